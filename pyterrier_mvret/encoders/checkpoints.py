"""Which of the public checkpoint layouts a folder holds, and opening it as a ``MultiVectorEncoder``.

sentence-transformers loads most layouts itself. Two it gets wrong (shown by loading fabricated checkpoints with
sentence-transformers 6.2.0), and both are mended here by handing it a corrected *view* of the folder:

* Stanford weights beside a ``modules.json`` that names only a Transformer (mxbai-colbert-large-v1): the projection,
  the markers and the normalisation are silently lost;
* a projection of type ``pylate.models.Dense`` (answerai-colbert-small-v1): refused as foreign code; with Stanford's
  files beside it, as there, the mask, the markers and the normalisation are silently lost.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyterrier_mvret.encoders import heads

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

Layout = Literal["native", "pylate", "stanford", "sentence", "transformer"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_METADATA = "artifact.metadata"
# the modules of this package that checkpoints name
_OWN = "pyterrier_mvret.encoders.projection.Projection"
SALIENCE = "pyterrier_mvret.encoders.salience_heads.SalienceHeads"
LATENTS = "pyterrier_mvret.encoders.latent_head.LatentHead"
_PROJECTION = "linear.weight"  # where Stanford checkpoints keep the projection, beside the backbone's weights


def local_folder(name: str, revision: str | None, cache_folder: str | None, trust_remote_code: bool) -> Path:
    """The checkpoint's folder: ``name`` itself if it is one, else a snapshot from the Hub (or its cache).

    Raises:
        OSError: neither a folder nor to be had from the Hub.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", "*.metadata", "*.safetensors"] + ["*.py"] * trust_remote_code
    try:
        folder = snapshot_download(name, revision=revision, cache_dir=cache_folder, allow_patterns=wanted)
        if not list(Path(folder).rglob("*.safetensors")):
            folder = snapshot_download(
                name, revision=revision, cache_dir=cache_folder, allow_patterns=[*wanted, "*.bin"]
            )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise OSError(
            f"no checkpoint {name!r} (revision {revision}): not a folder, and not to be had from the model hub: {error}"
        ) from error
    return Path(folder)


def read_json(path: Path) -> Any:
    """The file's content, or an empty dict where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def detect(folder: Path) -> Layout:
    """The layout of a checkpoint's folder.

    Raises:
        ValueError: nothing that yields token vectors.
    """
    modules = read_json(folder / "modules.json") or []
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules
    ):
        raise ValueError(f"{folder / 'modules.json'} is not a list of modules with a type")
    kinds = {m["type"].rpartition(".")[2] for m in modules}
    model_type = read_json(folder / "config_sentence_transformers.json").get("model_type")
    if model_type == "MultiVectorEncoder":
        return "native"
    if model_type in ("SparseEncoder", "CrossEncoder") or kinds & {"SpladePooling", "MLMTransformer", "LogitScore"}:
        raise ValueError(f"{folder} holds a {model_type or 'sparse encoder'}, which has no token vectors to score")
    own = any(m["type"] in (_OWN, SALIENCE, LATENTS) for m in modules)
    if own and "Pooling" not in kinds and model_type != "ColBERT":
        return "native"  # nothing else writes this module, whatever became of the file that says so
    has_dense = (own or "Dense" in kinds) and "Pooling" not in kinds
    # Stanford's files at the root say everything, whatever modules.json adds or leaves out
    if "Pooling" not in kinds and (not has_dense or (folder / _METADATA).is_file()) and _has_projection(folder):
        return "stanford"
    if has_dense:
        return "pylate"
    if model_type == "ColBERT":
        raise ValueError(f"{folder} is not a multi-vector checkpoint: it calls itself ColBERT and has no projection")
    if modules:
        return "sentence"
    config = read_json(folder / "config.json")
    if not config:
        raise ValueError(f"{folder} holds no model: neither modules.json nor config.json is there")
    classifier = [a for a in config.get("architectures") or [] if a.endswith("ForSequenceClassification")]
    if classifier:
        raise ValueError(f"{folder} holds a {classifier[0]} (a cross-encoder?), which has no token vectors to score")
    return "transformer"


def _has_projection(folder: Path) -> bool:
    """Whether the root weight file carries Stanford's projection; reads names only, and never a pickle's code."""
    for weights in _WEIGHTS:
        path = folder / weights
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with naming(folder), safe_open(path, framework="np") as tensors:
                return _PROJECTION in tensors.keys()  # noqa: SIM118 (no mapping)
        import torch

        return _PROJECTION in torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return False


@contextmanager
def repaired(folder: Path, layout: Layout) -> Iterator[Path]:
    """A view of the folder that sentence-transformers loads right: links to its files, corrected JSON."""
    modules, config = read_json(folder / "modules.json"), read_json(folder / "config.json")
    corrected: dict[str, Any] = {}
    hidden: set[str] = set()
    if layout in ("native", "pylate") and any(m["type"].startswith("pylate.") for m in modules):
        corrected["modules.json"] = [
            {**m, "type": f"sentence_transformers.models.{m['type'].rpartition('.')[2]}"}
            if m["type"].startswith("pylate.")
            else m
            for m in modules
        ]
    if layout == "native":
        settings = read_json(folder / "config_sentence_transformers.json")
        if settings.get("model_type") != "MultiVectorEncoder":  # would get a random projection on top of its own
            corrected["config_sentence_transformers.json"] = {**settings, "model_type": "MultiVectorEncoder"}
    elif layout == "pylate":
        if "HF_ColBERT" in (config.get("architectures") or []):  # would be taken for Stanford's own layout
            corrected["config.json"] = {k: v for k, v in config.items() if k != "architectures"}
    elif layout == "stanford" and (modules or "HF_ColBERT" not in (config.get("architectures") or [])):
        corrected["config.json"] = {**config, "architectures": ["HF_ColBERT"]}
        hidden = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"}
    if not corrected:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mvret-checkpoint-") as view:
        for entry in folder.iterdir():
            if entry.name in corrected or entry.name in hidden:
                continue
            target = Path(view) / entry.name
            try:
                target.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
            except OSError:  # a file system without links
                (shutil.copytree if entry.is_dir() else shutil.copy2)(entry, target)
        for name, content in corrected.items():
            (Path(view) / name).write_text(json.dumps(content), encoding="utf-8")
        yield Path(view)


def open_checkpoint(
    folder: Path,
    layout: Layout,
    init_projection: "int | heads.Head | None",
    trust_remote_code: bool,
    latents: bool = False,
) -> "MultiVectorEncoder":
    """Loads the checkpoint in float32 on the CPU; with ``latents`` a transformer that has nothing else is enough.

    Raises:
        ValueError: an untrained head would be needed and was not asked for, or was asked for where there is one.
    """
    head = heads.requested(init_projection)
    own_head = layout in ("native", "pylate", "stanford")
    if own_head and init_projection is not None:
        raise ValueError(f"{folder} has its own projection: init_projection={init_projection} would replace it")
    if not own_head:
        return _plain(folder, layout, head, trust_remote_code, latents)
    with repaired(folder, layout) as view, naming(folder):
        return _load(view, device="cpu", trust_remote_code=trust_remote_code, local_files_only=True)


def _load(folder: Path, **arguments: Any) -> "MultiVectorEncoder":
    """Hands sentence-transformers this package's own modules, if named there: it takes all others for foreign code.

    Its loader for such classes is private, so it is used where there is no other way and not elsewhere.
    """
    from sentence_transformers import MultiVectorEncoder

    if not any(names_module(folder, own) for own in (_OWN, SALIENCE, LATENTS)):
        return MultiVectorEncoder(str(folder), **arguments)
    from pyterrier_mvret.encoders.latent_head import LatentHead
    from pyterrier_mvret.encoders.projection import Projection
    from pyterrier_mvret.encoders.salience_heads import SalienceHeads

    own: dict[str, Any] = {_OWN: Projection, SALIENCE: SalienceHeads, LATENTS: LatentHead}
    return MultiVectorEncoder._load_with_module_classes(str(folder), own, **arguments)


def names_module(folder: Path, module: str) -> bool:
    """Whether a checkpoint says that a module is part of it."""
    return any(m["type"] == module for m in read_json(folder / "modules.json"))


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Says which checkpoint could not be read: the libraries' own messages about damaged files name none."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, json.JSONDecodeError, KeyError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {folder} cannot be read: {error!r}") from error


def prompts_of(encoder: "SentenceTransformer") -> dict[str, str]:
    """What a sentence encoder puts before queries and before documents."""
    saved = encoder.prompts or {}
    document = next((saved[k] for k in ("document", "passage", "corpus") if saved.get(k)), "")
    return {"query": saved.get("query") or "", "document": document or ""}


def _plain(
    folder: Path, layout: Layout, head: heads.Head | None, trust_remote_code: bool, latents: bool
) -> "MultiVectorEncoder":
    """A sentence encoder's token states as they are, or under a new head where one is asked for."""
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    if layout == "transformer" and head is None and not latents:
        raise ValueError(
            f"{folder} is not a multi-vector checkpoint and not a sentence encoder; "
            "pass init_projection=dim to give it a new, untrained projection"
        )
    prompts: dict[str, str] = {}
    if layout == "transformer":
        trust = {"trust_remote_code": trust_remote_code}
        backbone = Transformer(str(folder), model_kwargs=trust, processor_kwargs=trust, config_kwargs=trust)
    else:
        encoder = SentenceTransformer(
            str(folder), device="cpu", trust_remote_code=trust_remote_code, local_files_only=True
        )
        if not isinstance(encoder[0], Transformer):
            raise ValueError(f"{folder} starts with {type(encoder[0]).__name__}, which yields no token states")
        backbone = encoder[0]
        prompts = prompts_of(encoder)
    projection = head.modules(backbone.get_embedding_dimension()) if head is not None else []
    rest = [MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=[backbone, *projection, *rest], device="cpu", prompts=prompts)
