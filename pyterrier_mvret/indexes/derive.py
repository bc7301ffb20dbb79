"""Arrays of a segment that are learned from its vectors once all of them are there, in one more pass over the file."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyterrier as pt

from pyterrier_mvret.scoring import StoredVectors

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

_ROWS_AT_ONCE = 1 << 15
_SAMPLED_AT_ONCE = 1 << 11
_SEED = 123


class Coder(Protocol):
    """Codes vectors by what it has learned."""

    def encode(self, vectors: Floats) -> Arrays:
        """Arrays with a row a vector, by field."""

    def learned(self) -> Arrays:
        """Arrays that the codes refer to, by field."""


def sample(opened: Callable[[], StoredVectors], vectors: int, size: int) -> Floats:
    """So many vectors in random order, the same ones for the same number of vectors.

    Args:
        opened: maps the file anew; only so do pages that were read stop counting as this process's memory.
        vectors: how many there are.
        size: how many are wanted.
    """
    rows = np.random.default_rng(_SEED).choice(vectors, min(size, vectors), replace=False)
    order = np.argsort(rows)  # read as they lie
    out = np.empty((len(rows), opened().dim), np.float32)
    for first in range(0, len(rows), _SAMPLED_AT_ONCE):
        part = order[first : first + _SAMPLED_AT_ONCE]
        out[part] = opened().floats(rows[part])
    return out


def derive(
    opened: Callable[[], StoredVectors],
    vectors: int,
    coders: Sequence[Coder],
    write: Callable[[str, Any], None],
    verbose: bool,
) -> None:
    """Codes all vectors in blocks, and writes codes and what they refer to; arguments as for :func:`sample`."""
    blocks = range(0, max(1, vectors), _ROWS_AT_ONCE)  # also without vectors: empty arrays
    for first in pt.tqdm(blocks, desc="coding", unit="block", disable=not verbose):
        block = opened().floats(slice(first, first + _ROWS_AT_ONCE))
        for coder in coders:
            for field, array in coder.encode(block).items():
                write(field, array)
    for coder in coders:
        for field, array in coder.learned().items():
            write(field, array)
