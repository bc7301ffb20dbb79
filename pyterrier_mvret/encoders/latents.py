"""The latent head of a model (LASPAR): what to attach, which a model has, and the sparse vectors of texts."""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyterrier as pt

from pyterrier_mvret.encoders import batches, onednn

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.forward import Task
    from pyterrier_mvret.encoders.latent_head import LatentHead
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

StatePooling = Literal["mean", "sum", "position", "attention"]
Rows = Literal["float32", "float16", "int8"]

#: of a new head; the numbers kept are those of the method's own training runs
DEFAULTS: dict[str, Any] = {
    "latents": 65536,
    "k_doc": 512,
    "k_query": 128,
    "pooling": "mean",
    "normalize": True,
    "normalize_before_topk": False,
    "bias": True,
    "rows": "float32",
}
# what another value of makes no other head of
_FREE = ("k_doc", "k_query", "normalize_before_topk", "rows")
# texts whose pooled states meet U together: a large U is read once for all of them
_TEXTS_A_BLOCK = 512
# weights that are no more than this are no terms, as in the method's code
_LEAST = 1e-5


@dataclass(frozen=True)
class LatentSettings:
    """A latent head as a value (LASPAR; the method has no paper, and where its code is silent the choice is ours).

    What is None is as a model's own head has it, or the default of a new one, in brackets. ``k_doc``, ``k_query``,
    ``normalize_before_topk`` and ``rows`` can be changed on a head that is there; the others must be its own.

    Attributes:
        latents: D, how many latents there are (65,536; up to millions with ``rows="float16"``).
        k_doc: latents of a document that are kept (512).
        k_query: the same of a query (128).
        pooling: how states of tokens become one (``"mean"``): ``"sum"`` is the method's first architecture,
            ``"position"`` its second, ``"attention"`` looks at the tokens.
        norm_input: scale pooled states to length one (only after ``"mean"`` and ``"attention"``).
        normalize: scale vectors to length one (True).
        normalize_before_topk: by their length before all but k entries go (False); such a head cannot be trained.
        bias: whether latents have a bias (True), or where it starts (0); the method's code starts it at 3.
        rows: how the matrix is kept (``"float32"``): ``"float16"`` and ``"int8"`` cannot be trained.
        seed: of a new head's matrix, N(0, 1).

    Raises:
        ValueError: a setting out of range.

    >>> LatentSettings(latents=1024, k_doc=64).k_doc
    64
    """

    latents: int | None = None
    k_doc: int | None = None
    k_query: int | None = None
    pooling: StatePooling | None = None
    norm_input: bool | None = None
    normalize: bool | None = None
    normalize_before_topk: bool | None = None
    bias: bool | float | None = None
    rows: Rows | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latents", "k_doc", "k_query", "seed"):
            value = getattr(self, name)
            if isinstance(value, np.integer):  # of a grid; files of settings take Python's own
                object.__setattr__(self, name, value := int(value))
            whole = isinstance(value, int) and not isinstance(value, bool)
            if name == "seed" and not whole:
                raise ValueError(f"seed must be a whole number, got {value!r}")
            if name != "seed" and value is not None and not (whole and value > 0):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("norm_input", "normalize", "normalize_before_topk"):
            if getattr(self, name) not in (None, True, False):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        for name, known in (("pooling", StatePooling), ("rows", Rows)):
            if getattr(self, name) not in (None, *get_args(known)):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.bias is not None and not np.isfinite(self.bias):
            raise ValueError(f"bias must be finite, got {self.bias!r}")

    def __call__(self, model: "MultiVectorEncoder") -> None:
        """Gives a model such a head, untrained; one that is there keeps its weights and takes what is free."""
        head = head_of(model)
        if head is None:
            self._attach(model)
            return
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "seed"}
        for name, value in given.items():
            own, asked = getattr(head, name), value is not False if name == "bias" else value
            if name not in _FREE and own != asked:
                raise ValueError(f"the latent head of this model has {name}={own}, not {value}")
        for name in ("k_doc", "k_query", "normalize_before_topk"):
            setattr(head, name, given.get(name, getattr(head, name)))
        if given.get("rows", head.rows) != head.rows:
            model[list(model).index(head)] = head.kept_as(given["rows"])

    def _attach(self, model: "MultiVectorEncoder") -> None:
        from pyterrier_mvret.encoders.folding import insert
        from pyterrier_mvret.encoders.latent_head import LatentHead

        chosen = {**DEFAULTS, **{name: value for name, value in asdict(self).items() if value is not None}}
        seed, bias = chosen.pop("seed"), chosen.pop("bias")
        chosen.setdefault("norm_input", chosen["pooling"] in ("mean", "attention"))
        transformer: Any = model[0]
        head = LatentHead(transformer.get_embedding_dimension(), **chosen, bias=bias is not False)
        head.draw(seed, 0.0 if isinstance(bias, bool) else float(bias))
        insert(model, 1, head.to(model.device).train(model.training))


def head_of(model: "MultiVectorEncoder") -> "LatentHead | None":
    """The latent head of a model, if it has one."""
    from pyterrier_mvret.encoders.latent_head import LatentHead

    return next((module for module in model if isinstance(module, LatentHead)), None)


def the_head(encoder: "TokenEncoder") -> "LatentHead":
    """The latent head of an encoder.

    Raises:
        ValueError: it has none.
    """
    head = head_of(encoder.model)
    if head is None:
        raise ValueError(f"{encoder._label} has no latent head: open it with latents=mv.LatentSettings(), or mv.Laspar")
    return head


def warn_if_untrained(model: "MultiVectorEncoder", label: str) -> None:
    """Says of a head that was never trained what its terms are."""
    head = head_of(model)
    if head is not None and not head.trained:
        warnings.warn(
            f"the latent head is untrained: terms are a random projection of {label}, a baseline and not LASPAR",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """How many frames up the package was called from: whose line a warning is about."""
    inside, level = str(Path(__file__).parents[1]), 1
    while sys._getframe(level).f_code.co_filename.startswith(inside):
        level += 1
    return level


# ---------------------------------------------------------------------- texts


class LatentVectors(NamedTuple):
    """Sparse vectors of texts.

    Attributes:
        ids: (texts, k) int64 latents.
        weights: (texts, k) float32, at least 0, the largest first; of 0 the latent is not active.
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def dicts(self) -> list[dict[str, float]]:
        """Each text's latents, by the strings of their numbers, with weights above 1e-5, the heaviest first.

        >>> LatentVectors(np.array([[7, 3, 0]]), np.array([[0.5, 0.25, 0.0]], np.float32)).dicts()
        [{'7': 0.5, '3': 0.25}]
        """
        counts = (self.weights > _LEAST).sum(1).tolist()
        return [
            dict(zip(map(str, ids[:n].tolist()), weights[:n].tolist(), strict=True))
            for ids, weights, n in zip(self.ids, self.weights, counts, strict=True)
        ]


def latent_vectors(
    encoder: "TokenEncoder", texts: Sequence[str], task: "Task" = "document", verbose: bool = False
) -> LatentVectors:
    """Sparse vectors of texts, with the encoder's prefix and length limit of the task; query expansion has no part.

    A text's vector depends on no other text, and not on padding.

    Args:
        encoder: with a latent head.
        texts: equal ones are encoded once.
        task: ``"query"`` or ``"document"``, which decides k.
        verbose: a progress bar.

    Raises:
        ValueError: there is no head, or states or weights that are not finite.

    >>> import pyterrier_mvret as mv
    >>> encoder = mv.TokenEncoder(mv.models.MINILM)
    >>> LatentSettings(latents=1024, k_doc=32)(encoder.model)
    >>> latent_vectors(encoder, ["A cat sat.", "A dog."]).weights.shape
    (2, 32)
    """
    import torch

    head = the_head(encoder)
    inputs = batches.with_prefix(encoder.model, texts, task)
    place = {one: i for i, one in enumerate(dict.fromkeys(inputs))}
    distinct = list(place)
    found: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    training = encoder.model.training
    encoder.model.eval()
    what = "queries" if task == "query" else "documents"
    try:
        with pt.tqdm(total=len(distinct), desc=f"encoding {what}", unit="text", disable=not verbose) as bar:
            for start in range(0, len(distinct), _TEXTS_A_BLOCK):
                block = distinct[start : start + _TEXTS_A_BLOCK]
                with torch.inference_mode(), onednn.linear_layers(encoder.model):
                    ids, weights = head.encode(_pooled(encoder, head, block, task), task)
                _check_finite(f"weights of latents of {encoder._label}", weights, block)
                found.append((ids.cpu().numpy(), weights.cpu().numpy()))
                bar.update(len(block))
    finally:
        encoder.model.train(training)
    at = [place[one] for one in inputs]
    if not at:
        return LatentVectors(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
    return LatentVectors(*(np.concatenate(parts)[at] for parts in zip(*found, strict=True)))


def _pooled(encoder: "TokenEncoder", head: "LatentHead", inputs: list[batches.Input], task: "Task") -> Any:
    """Pooled states of texts, in their order."""
    import torch
    from sentence_transformers.util import batch_to_device

    model = encoder.model
    pooled = torch.empty((len(inputs), head.in_features), device=model.device)
    for rows, features in batches.batches(model, inputs, task, encoder.batch_size):
        features.pop("offset_mapping", None)
        features = batch_to_device(features, model.device)
        pooled[rows] = head.pooled(model[0](features))
    _check_finite(f"states of {encoder._label}", pooled, inputs)
    return pooled


def _check_finite(what: str, rows: Any, inputs: list[batches.Input]) -> None:
    """ValueError names the first text whose row is not."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        first = inputs[int(finite.logical_not().nonzero()[0])]
        raise ValueError(f"{what} are not finite for the text {first.text[:80]!r}")
