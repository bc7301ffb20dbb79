"""What fixes the vectors of a model: settings applied to it, read from it, and a digest of its weights.

The functions work on sentence-transformers' ``MultiVectorEncoder``, whose settings live in its modules: lengths and
query expansion in the Transformer, the skiplist in the mask, normalisation and pooling as modules of their own.
"""

import hashlib
import string
from typing import TYPE_CHECKING, Any

import numpy as np

from pyterrier_mvret.encoders import latents, markers
from pyterrier_mvret.encoders.folding import hidden_form, remove
from pyterrier_mvret.encoders.salience import heads_of

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

# lengths of the sources' own defaults, for checkpoints that do not state theirs (Stanford class, PyLate)
_DOC_LENGTH = {"stanford": 220, "pylate": 180}
_QUERY_LENGTH = 32
# numbers that are digested at once
_AT_ONCE = 1 << 24


def apply(settings: "TokenEncoder", model: "MultiVectorEncoder", layout: str) -> None:
    """Explicit settings over the checkpoint's own, these over the defaults of the code that wrote it."""
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    for task, prefix in (("query", settings.query_prefix), ("document", settings.doc_prefix)):
        if prefix is not None:
            model.prompts[task] = prefix
            markers.register(model.tokenizer, prefix)
    transformer: Any = model[0]
    positions = getattr(transformer.config, "max_position_embeddings", None) or 0
    default = _DOC_LENGTH.get(layout)
    if default is not None and positions > 0:
        default = min(default, positions)
    length = settings.doc_length or transformer.document_length or default
    if length is not None:
        transformer.document_length = length
    _apply_expansion(settings, transformer)
    _check_lengths(transformer, positions)
    mask = _mask(model)
    if mask is not None and settings.skiplist is not None:
        mask.skiplist_words = list(string.punctuation if settings.skiplist == "punctuation" else settings.skiplist)
        mask.resolve_with_tokenizer(model.tokenizer)
    if heads_of(model) is not None and (settings.normalize is not None or settings.token_pooling is not None):
        raise ValueError("normalize and token_pooling would change the vectors that salience heads were trained on")
    if settings.normalize is True and not normalizes(model):
        model.append(Normalize(module_input_name="token_embeddings"))
    elif settings.normalize is False:
        remove(model, [place for place, module in enumerate(model) if isinstance(module, Normalize)])
    if settings.token_pooling is not None:
        unit = normalizes(model)
        model.append(HierarchicalTokenPooling(pool_factor=settings.token_pooling, normalize_embeddings=unit))


def _apply_expansion(settings: "TokenEncoder", transformer: Any) -> None:
    current = transformer.query_expansion
    expand = settings.query_expansion if settings.query_expansion is not None else current is not None
    if not expand:
        if settings.attend:
            raise ValueError("attend=True is about query expansion, and this encoder expands no queries")
        transformer.query_expansion = None
        transformer.query_length = settings.query_length or (current or {}).get("length") or transformer.query_length
        return
    current = dict(current or {"strategy": "fixed", "attend": False, "length": _QUERY_LENGTH})
    current["length"] = settings.query_length or current["length"]
    if settings.attend is not None:
        current["attend"] = settings.attend
    transformer.query_length = None  # the expansion's own length rules
    transformer.query_expansion = current


def _check_lengths(transformer: Any, positions: int) -> None:
    """The model has no place for more tokens than it has positions."""
    expansion = transformer.query_expansion or {}
    query_length = expansion.get("length") or transformer.query_length
    for what, length in (("query_length", query_length), ("doc_length", transformer.document_length)):
        if 0 < positions < (length or 0):
            raise ValueError(f"{what}={length}: the model has {positions} positions")


def describe(model: "MultiVectorEncoder") -> dict[str, Any]:
    """The settings of a model as plain data; ``document`` holds those that documents of one index must share."""
    transformer: Any = model[0]
    mask, heads, latent = _mask(model), heads_of(model), latents.head_of(model)
    return {
        "query_prefix": model.prompts.get("query") or "",
        **({"unit_prefix": model.prompts[markers.UNIT]} if markers.UNIT in model.prompts else {}),
        "query_length": transformer.query_length,
        "query_expansion": dict(transformer.query_expansion) if transformer.query_expansion else None,
        "document": {
            "prefix": model.prompts.get("document") or "",
            "length": transformer.document_length or transformer.max_seq_length,
            "skiplist": sorted(mask.skiplist_words) if mask else [],
            "pooling": [repr(m.get_config_dict()) for m in _poolings(model)],
            **({} if heads is None else {"salience": heads.get_config_dict()}),
        },
        "normalize": normalizes(model),
        **({} if latent is None else {"latents": latent.get_config_dict()}),
    }


def normalizes(model: "MultiVectorEncoder") -> bool:
    """Whether token vectors come out with length one."""
    from sentence_transformers.base.modules import Normalize

    return any(isinstance(m, Normalize) and m.module_input_name == "token_embeddings" for m in model)


def pools(model: "MultiVectorEncoder", task: str) -> bool:
    """Whether rows of a task stand for clusters of tokens instead of tokens."""
    return any(m.applies_to(task) for m in _poolings(model))


def _poolings(model: "MultiVectorEncoder") -> list[Any]:
    from sentence_transformers.multi_vector_encoder.modules import BaseTokenPooling

    return [m for m in model if isinstance(m, BaseTokenPooling)]


def _mask(model: "MultiVectorEncoder") -> Any:
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    return next((m for m in model if isinstance(m, MultiVectorMask)), None)


def state(model: "MultiVectorEncoder") -> tuple[Any, ...]:
    """Changes with whatever the digest covers, as far as PyTorch notices: steps of training, exchanged weights."""
    return (
        normalizes(model),
        _forms(model),
        *tensor_state(model),
    )


def tensor_state(module: "torch.nn.Module") -> tuple[Any, ...]:
    """Changes with a module's weights."""
    return tuple((t.data_ptr(), t._version) for t in (*module.parameters(), *module.buffers()))


def _forms(model: "MultiVectorEncoder") -> tuple[str, ...]:
    """What modules compute beyond what their weights say; empty for a model whose projections are plain matrices."""
    forms = ((name, hidden_form(module)) for name, module in model.named_children())
    return tuple(f"{name} {form}" for name, form in forms if form)


def digest(model: "MultiVectorEncoder") -> str:
    """Twelve hexadecimal digits over all weights that reach a token vector, activations, and the normalisation."""
    return weights_digest(model, "".join([str(normalizes(model)), *_forms(model)]))


def weights_digest(module: "torch.nn.Module", told: str = "") -> str:
    """Twelve hexadecimal digits over a module's weights, and what else is told."""
    sha = hashlib.sha256(told.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if "pooler" in name.split("."):  # not used, and drawn anew at each loading where a checkpoint has none
            continue
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        for part in tensor.detach().contiguous().view(-1).split(_AT_ONCE):  # a large one has no room for a copy
            sha.update(part.float().cpu().numpy().data)
    return sha.hexdigest()[:12]


def check_probe(model: "MultiVectorEncoder", label: str) -> None:
    """Markers are single tokens; a short text comes out as rows of the promised width, of length one if normalised.

    Raises:
        ValueError: a checkpoint that would load and rank noise.
    """
    for task in ("query", "document", markers.UNIT):
        markers.check_whole(model.tokenizer, model.prompts.get(task) or "", f"{label}: the {task}")
    for encode in (model.encode_query, model.encode_document):
        rows = np.asarray(encode(["probe"], convert_to_numpy=True, show_progress_bar=False)[0], np.float32)
        if rows.ndim != 2 or rows.shape[1] != model.get_embedding_dimension() or not np.isfinite(rows).all():
            raise ValueError(f"{label}: a probe came out with shape {rows.shape} or non-finite; damaged checkpoint?")
        if normalizes(model) and not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-2):
            raise ValueError(f"{label}: token vectors should have length one and do not; damaged checkpoint?")
