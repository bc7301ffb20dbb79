"""From the active latents of tokens to the weighted terms of texts (Latent Terms, Clavie et al. 2026, section 3.2)."""

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Pool = Literal["sum", "max"]
Transform = Literal["sqrt", "identity", "log1p", "binary"]
_TRANSFORMS: dict[str, Any] = {
    "sqrt": np.sqrt,
    "identity": lambda weights: weights,
    "log1p": np.log1p,
    "binary": np.ones_like,
}


def check_pooling(pool: str, transform: str) -> None:
    """ValueError for a word that is none of ``Pool`` or ``Transform``."""
    if pool not in get_args(Pool):
        raise ValueError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool!r}")
    if transform not in _TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(_TRANSFORMS)}, got {transform!r}")


def pooled_terms(
    activations: Array,
    ids: Array,
    offsets: Array,
    pool: Pool = "sum",
    transform: Transform = "sqrt",
    top: int | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Terms of texts: activations of a latent over a text's tokens are added up, then transformed.

        u_j(x) = sum_t z_tj        w_j(x) = sqrt(u_j(x))        (equations 7 to 9)

    Args:
        activations: (tokens, k), at least 0; of 0 nothing is active.
        ids: (tokens, k) latents.
        offsets: (texts + 1,) integers; text ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        pool: ``"sum"``, or ``"max"`` over tokens.
        transform: ``"sqrt"``, the paper's; ``"identity"``, ``"log1p"``, ``"binary"``.
        top: terms of a text at most, those of the largest weights, of equal ones the smaller latent; none keeps all.

    Returns:
        (texts + 1,) offsets of terms, (terms,) latents, rising within a text, and (terms,) float32 weights.

    >>> activations = np.array([[2.0, 1.9], [3.0, 2.3], [2.0, 0.0]])
    >>> offsets, latents, weights = pooled_terms(activations, np.array([[0, 3], [1, 3], [2, 0]]), np.array([0, 3]))
    >>> latents, weights.round(6)
    (array([0, 1, 2, 3]), array([1.414214, 1.732051, 1.414214, 2.04939 ], dtype=float32))
    """
    check_pooling(pool, transform)
    activations, ids = np.asarray(activations, dtype=np.float64), np.asarray(ids, dtype=np.int64)
    offsets = np.asarray(offsets, dtype=np.int64)
    texts = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[:, None]
    active = activations > 0
    most = int(ids.max(initial=0)) + 1
    keys, values = (texts * most + ids)[active], activations[active]
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1) > 0)
    combine: Any = np.add if pool == "sum" else np.maximum
    totals = combine.reduceat(values, first) if len(first) else values
    text, latent = np.divmod(keys[first], most)
    weights = _TRANSFORMS[transform](totals).astype(np.float32)
    if top is not None:
        best = np.lexsort((latent, -weights, text))
        place = np.arange(len(best)) - np.searchsorted(text, text[best])
        kept = np.sort(best[place < top])
        text, latent, weights = text[kept], latent[kept], weights[kept]
    return np.searchsorted(text, np.arange(len(offsets))), latent, weights
