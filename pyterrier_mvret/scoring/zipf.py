"""How Zipfian the frequencies of terms are (Zipf's law: the r-th most frequent term is 1 / r^s times as frequent).

Latent Terms (Clavie et al. 2026) calls its vocabularies Zipfian; which frequencies, ranks and estimator are meant is
not known to us. Those here are our choice: least squares on log axes, over all ranks and without the head, which for
latents is saturated (many are in nearly all documents), and the maximum-likelihood exponent beside them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: terms that are rarer have no part in a fit: their frequencies are steps of whole numbers, not a slope
LEAST = 5
#: ranks without the saturated head and the stepped tail, in percent of the terms
MIDDLE = (1, 50)


class PowerLaw(NamedTuple):
    """A straight line on log axes: ``frequency = scale / rank ** exponent``.

    Attributes:
        exponent: of the rank.
        r2: share of the variance of log frequencies that the line explains.
        scale: what the line says of rank 1.
        first: the first rank that it was fitted on, from 1.
        last: the last one.
    """

    exponent: float
    r2: float
    scale: float
    first: int
    last: int


def power_law(frequencies: npt.NDArray[Any], first: int = 1, last: int | None = None) -> PowerLaw:
    """Least squares of the logarithm of frequencies on the logarithm of ranks.

    Args:
        frequencies: (terms,) above 0, falling.
        first: the first rank, from 1.
        last: the last rank; none for that of the rarest term.

    Returns:
        The line; NaN in all its numbers where there are fewer than two ranks.

    >>> line = power_law(1000 / np.arange(1, 201))
    >>> round(line.exponent, 6), round(line.r2, 6), round(line.scale, 6)
    (1.0, 1.0, 1000.0)
    """
    last = len(frequencies) if last is None else last
    if last - first < 1:
        return PowerLaw(np.nan, np.nan, np.nan, first, last)
    x, y = np.log(np.arange(first, last + 1)), np.log(np.asarray(frequencies, np.float64)[first - 1 : last])
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx)) if y[0] != y[-1] else 0.0
    left = float(((dy - slope * dx) ** 2).sum())
    r2 = 1 - left / float(dy @ dy) if y[0] != y[-1] else 1.0  # a level line leaves nothing to explain
    return PowerLaw(0.0 - slope, r2, float(np.exp(y.mean() - slope * x.mean())), first, last)


@dataclass(frozen=True)
class Zipf:
    """Frequencies of a vocabulary in a few numbers; see :func:`zipf_fit`.

    Attributes:
        exponent: over all ranks of the fitted terms.
        r2: of that line.
        middle_exponent: over ranks 1 % to 50 % of them.
        middle_r2: of that line.
        alpha: maximum-likelihood exponent of the distribution of frequencies; 1 + 1 / exponent where both hold.
        terms: how many were fitted.
        rare: terms that occur, but less often than ``least``.
        unused: terms that never occur.
        top_1: share of all occurrences that the most frequent 1 % of the terms that occur have (one term at least).
        top_10: the same of 10 %.
        saturated: share of the terms that occur which are in more than half of the documents; none without their
            number.
        largest: share of the documents that have the most frequent term; none without their number.
    """

    exponent: float
    r2: float
    middle_exponent: float
    middle_r2: float
    alpha: float
    terms: int
    rare: int
    unused: int
    top_1: float
    top_10: float
    saturated: float | None = None
    largest: float | None = None


def fitted(frequencies: npt.NDArray[Any], least: float = LEAST) -> Floats:
    """Frequencies of the terms that a fit takes, the most frequent first.

    Raises:
        ValueError: a frequency that is negative or not finite, or none at all.
    """
    values = np.asarray(frequencies, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("frequencies must be one number a term, finite and at least 0")
    if not least > 0:
        raise ValueError(f"least must be above 0, got {least!r}")
    return -np.sort(-values[values >= least])


def lines(falling: Floats) -> tuple[PowerLaw, PowerLaw]:
    """The lines over all ranks, and over ranks 1 % to 50 %, of :func:`fitted` frequencies."""
    first, last = MIDDLE
    return power_law(falling), power_law(falling, max(1, _percent(first, len(falling))), last * len(falling) // 100)


def zipf_fit(frequencies: npt.NDArray[Any], documents: int | None = None, least: float = LEAST) -> Zipf:
    """How Zipfian frequencies are: slopes on log axes, what the head holds, how saturated it is.

    Frequencies are counts: documents that have each term, or tokens (the two have different exponents, so say which).
    Rounding to whole numbers alone moves the exponent by some hundredths: 1.02 beside 1.00 is no finding.

    Args:
        frequencies: (terms,) at least 0, in any order.
        documents: how many there are, where frequencies count documents.
        least: rarer terms are left out of the fits.

    Raises:
        ValueError: a frequency that is negative, not finite, or larger than ``documents``.

    >>> fit = zipf_fit(1000 // np.arange(1, 201))
    >>> round(fit.exponent, 6), round(fit.r2, 6)
    (1.024809, 0.998599)
    """
    falling = fitted(frequencies, least)
    values = -np.sort(-np.asarray(frequencies, dtype=np.float64))
    used = values[values > 0]
    if documents is not None and len(used) and used[0] > documents:
        raise ValueError(f"a term is in {used[0]:g} of {documents} documents: these frequencies do not count documents")
    everywhere, middle = lines(falling)
    told = documents is not None and len(used) > 0
    return Zipf(
        exponent=everywhere.exponent,
        r2=everywhere.r2,
        middle_exponent=middle.exponent,
        middle_r2=middle.r2,
        alpha=_alpha(falling, least),
        terms=len(falling),
        rare=len(used) - len(falling),
        unused=len(values) - len(used),
        top_1=_head(used, 1),
        top_10=_head(used, 10),
        saturated=float((used > documents / 2).mean()) if told and documents else None,
        largest=float(used[0] / documents) if told and documents else None,
    )


def _alpha(falling: Floats, least: float) -> float:
    """The approximation for whole numbers of Clauset, Shalizi and Newman 2009, equation 3.7."""
    total = float(np.log(falling / (least - 0.5)).sum()) if least > 0.5 else 0.0
    return 1 + len(falling) / total if total > 0 else np.nan


def _head(used: Floats, percent: int) -> float:
    """What the most frequent terms have of all occurrences."""
    return float(used[: _percent(percent, len(used))].sum() / used.sum()) if len(used) else np.nan


def _percent(percent: int, of: int) -> int:
    """Rounded up, in whole numbers: 0.1 * 70 is above 7."""
    return -(-percent * of // 100)
