"""How many document tokens a query token aligns with: ALIGNER's top-k and top-p (Qian et al. 2022)."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.shares import checked_lengths, checked_share, floor_of

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TopK:
    """Each query token aligns with its ``k`` most similar document tokens, or with all where there are fewer.

    From "Multi-Vector Retrieval as Sparse Alignment" (arXiv 2211.01267); ``k = 1`` is ColBERT's MaxSim. What happens
    in documents of fewer than ``k`` tokens is our choice: the paper does not say.

    Attributes:
        k: document tokens a query token, at least 1.

    Raises:
        ValueError: ``k`` below 1, or not a whole number.

    >>> TopK(4).count(78), TopK(4).count(3)
    (4, 3)
    """

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, Integral) or isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {self.k!r}")
        object.__setattr__(self, "k", int(self.k))

    def __repr__(self) -> str:
        return f"TopK({self.k})"

    def count(self, m: int) -> int:
        """Document tokens that each query token aligns with, in a document of ``m`` tokens."""
        return int(self.counts(np.array([m]))[0])

    def counts(self, lengths: Array) -> Ints:
        """:meth:`count` of many documents: (documents,) lengths in tokens, (documents,) int64 counts."""
        return np.minimum(checked_lengths(lengths), self.k)


@dataclass(frozen=True)
class TopP:
    """Each query token aligns with the share ``p`` of the document's tokens: ``max(floor(p * m), 1)`` of ``m``.

    From "Multi-Vector Retrieval as Sparse Alignment" (arXiv 2211.01267). The share counts as the decimal that it is
    written as, so ``TopP(0.29)`` takes 29 of 100 tokens.

    Attributes:
        p: share of the document's tokens, from 0 (one token: as ``TopK(1)``) to 1 (all).

    Raises:
        ValueError: ``p`` outside 0 to 1, or not a number.

    >>> TopP(0.29).count(100), TopP(0.01).count(199), TopP(0.01).count(200)
    (29, 1, 2)
    """

    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", checked_share(self.p, "p"))

    def __repr__(self) -> str:
        return f"TopP({self.p})"

    def count(self, m: int) -> int:
        """Document tokens that each query token aligns with, in a document of ``m`` tokens; none only if ``m`` is 0."""
        return int(self.counts(np.array([m]))[0])

    def counts(self, lengths: Array) -> Ints:
        """:meth:`count` of many documents: (documents,) lengths in tokens, (documents,) int64 counts."""
        lengths = checked_lengths(lengths)
        return np.minimum(np.maximum(floor_of(self.p, lengths), 1), lengths)


Strategy = TopK | TopP

_NAMED: dict[str, Strategy] = {"top-k": TopK(1), "top-p": TopP(0.01)}


def named_alignment(alignment: str | Strategy) -> Strategy:
    """The strategy of a name, or the strategy that is given.

    Args:
        alignment: ``"top-k"`` for ``TopK(1)``, ``"top-p"`` for ``TopP(0.01)``, or a strategy.

    Raises:
        ValueError: neither a strategy nor one of the names.

    >>> named_alignment("top-p"), named_alignment(TopK(2))
    (TopP(0.01), TopK(2))
    """
    if isinstance(alignment, Strategy):
        return alignment
    if not isinstance(alignment, str) or alignment not in _NAMED:
        raise ValueError(f"alignment must be 'top-k', 'top-p', TopK(k) or TopP(p), got {alignment!r}")
    return _NAMED[alignment]
