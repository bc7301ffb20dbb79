"""Rows of several documents in one array: places of runs, and sums by run."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def ragged_rows(starts: Ints, lengths: Ints) -> Ints:
    """Row numbers of consecutive runs: ``start, start + 1, ...`` for each start.

    >>> ragged_rows(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def segment_sum(rows: Floats, offsets: Ints) -> Floats:
    """Sums of consecutive groups of rows; a group without rows sums to zero."""
    if len(offsets) == 2:
        return rows.sum(axis=0, keepdims=True)
    sums = np.zeros((len(offsets) - 1, rows.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(rows, offsets[filled], axis=0)
    return sums
