"""The best of scored documents, equal scores by docno."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def keep_best(scores: Array, positions: Array, k: int | None) -> tuple[Array, Array]:
    """Those that can still be among the k best (none for all): ties at the cut stay, until names decide.

    >>> keep_best(np.array([1.0, 3.0, 1.0, 0.5]), np.array([7, 8, 9, 10]), 2)
    (array([1., 3., 1.]), array([7, 8, 9]))
    """
    if k is None or len(scores) <= k:
        return scores, positions
    cut = np.partition(scores, len(scores) - k)[len(scores) - k]
    kept = scores >= cut
    return scores[kept], positions[kept]


def ranked(
    scores: Array, positions: Array, k: int | None, names: Callable[[Array], list[str]]
) -> tuple[Sequence[str], Array]:
    """Names and scores of the k best (none for all), best first; ``names`` says what is at positions."""
    scores, positions = keep_best(scores, positions, k)
    found = names(positions)
    order = np.lexsort((np.array(found, dtype=object), -scores))[:k]
    return [found[i] for i in order], scores[order]
