"""Rows of several documents in one array: places of runs, and sums by run."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def ragged_rows(starts: Ints, lengths: Ints) -> Ints:
    """Row numbers of consecutive runs: ``start, start + 1, ...`` for each start.

    >>> ragged_rows(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def check_runs(starts: Ints, ends: Ints, rows: int, what: str) -> None:
    """Raises ValueError where a run leaves the rows or ends before it starts; ``what`` names a run."""
    if len(starts) and not (starts.min() >= 0 and ends.max() <= rows and (starts <= ends).all()):
        raise ValueError(f"{what} lies outside the rows 0 to {rows}, or ends before it starts")


def in_blocks(lengths: Ints, rows: int) -> Iterator[slice]:
    """Consecutive runs in blocks of at most so many rows, and of at least one run.

    >>> list(in_blocks(np.array([2, 3, 9, 1]), 5))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    behind = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        budget = (behind[first - 1] if first else 0) + rows
        last = max(first + 1, int(np.searchsorted(behind, budget, side="right")))
        yield slice(first, last)
        first = last


def padded_blocks(lengths: Ints, rows: int) -> Iterator[Ints]:
    """Numbers of runs in blocks of at most so many rows once each is padded to its block's longest, or of one run.

    Longest first, so that padding stays small; runs without rows are left out.

    >>> [block.tolist() for block in padded_blocks(np.array([2, 3, 0, 9, 2]), 6)]
    [[3], [1, 0], [4]]
    """
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    first = 0
    while first < len(order):
        last = first + max(1, rows // int(lengths[order[first]]))
        yield order[first:last]
        first = last


def segment_sum(rows: Array, offsets: Ints) -> Array:
    """Sums of consecutive groups of rows, in their type; a group without rows sums to zero."""
    if len(offsets) == 2:
        return rows.sum(axis=0, keepdims=True)
    sums = np.zeros((len(offsets) - 1, rows.shape[1]), dtype=rows.dtype)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(rows, offsets[filled], axis=0)
    return sums


def checked_offsets(offsets: Array, rows: int, name: str) -> npt.NDArray[np.int64]:
    """Offsets of packed rows as int64; ValueError unless they rise from 0 to the number of rows."""
    offsets = np.asarray(offsets)
    if offsets.ndim != 1 or len(offsets) == 0 or offsets.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a one-dimensional array of integers with at least one entry")
    offsets = offsets.astype(np.int64, copy=False)
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} must rise from 0 to the number of rows, {rows}, without decreasing")
    return offsets
