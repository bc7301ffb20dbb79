"""Shares of tokens as decimals, as their user wrote them.

0.29 of 100 tokens are 29, although the float nearest 0.29 is below it and its product rounds to less.
"""

from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def checked_share(share: float, name: str) -> float:
    """A share as the float of the decimal that it is written as, from 0 to 1; else ValueError."""
    if not isinstance(share, Real) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {share!r}")
    return float(str(share)) if isinstance(share, np.floating) else float(share)


def floor_of(share: float, lengths: Ints) -> Ints:
    """``floor(share * length)`` of the decimal, without rounding in between."""
    exact, whole = _exact(share, lengths)
    return (whole * exact.numerator // exact.denominator).astype(np.int64)


def ceil_of(share: float, lengths: Ints) -> Ints:
    """``ceil(share * length)`` of the decimal, without rounding in between."""
    exact, whole = _exact(share, lengths)
    return (-(-whole * exact.numerator // exact.denominator)).astype(np.int64)


def _exact(share: float, lengths: Ints) -> tuple[Fraction, Array]:
    """The share as a fraction, and lengths in a type that holds products with it."""
    exact = Fraction(str(share))
    fits = max(exact.numerator * int(lengths.max(initial=1)), exact.denominator) < 2**63
    return exact, lengths if fits else lengths.astype(object)


def checked_lengths(lengths: Array) -> Ints:
    """Lengths as int64; ValueError unless they are whole numbers of at least 0."""
    lengths = np.asarray(lengths)
    if lengths.dtype.kind not in "iu" or (lengths < 0).any():
        raise ValueError("lengths must be whole numbers of at least 0")
    return lengths.astype(np.int64, copy=False)
