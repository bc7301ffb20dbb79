"""Which document tokens a query token aligns with: ALIGNER's top-k, top-p and soft alignment (Qian et al. 2022)."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.shares import checked_lengths, checked_share, floor_of

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def _checked_k(k: Any) -> int:
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
    return int(k)


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
        object.__setattr__(self, "k", _checked_k(self.k))

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


@dataclass(frozen=True)
class Soft:
    """Each query token spreads ``k`` over all document tokens, the more to one the more similar it is.

    The differentiable alignment ("DA") of "Multi-Vector Retrieval as Sparse Alignment" (arXiv 2211.01267, appendix
    A.2, Table 13): a query token's row solves the entropy-regularised program of equation 4, with its similarities as
    scores and ``k`` as budget (:func:`salience.entropy_lp`). ``k = 1`` is a softmax with temperature ``epsilon``; as
    ``epsilon`` falls to 0 the row becomes that of ``TopK(k)``. The default of ``epsilon`` is our choice.

    Attributes:
        k: what a query token's row sums to, at least 1; in a document of fewer tokens each counts 1.
        epsilon: weight of the entropy, on the scale of a similarity, above 0.

    Raises:
        ValueError: ``k`` below 1 or not a whole number, ``epsilon`` not above 0 or not finite.

    >>> Soft(), Soft(2, epsilon=0.1).count(78), Soft(2, epsilon=0.1).count(1)
    (Soft(1, epsilon=0.01), 2, 1)
    """

    k: int = 1
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _checked_k(self.k))
        number = isinstance(self.epsilon, Real) and not isinstance(self.epsilon, bool)
        if not number or not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number above 0, got {self.epsilon!r}")
        object.__setattr__(self, "epsilon", float(self.epsilon))

    def __repr__(self) -> str:
        return f"Soft({self.k}, epsilon={self.epsilon})"

    def count(self, m: int) -> int:
        """What the alignments of each query token sum to, in a document of ``m`` tokens."""
        return int(self.counts(np.array([m]))[0])

    def counts(self, lengths: Array) -> Ints:
        """:meth:`count` of many documents: (documents,) lengths in tokens, (documents,) int64 sums."""
        return np.minimum(checked_lengths(lengths), self.k)


Strategy = TopK | TopP | Soft

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
        raise ValueError(f"alignment must be 'top-k', 'top-p', TopK(k), TopP(p) or Soft(k), got {alignment!r}")
    return _NAMED[alignment]
