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
_SEED = 123


class Coder(Protocol):
    """Codes vectors by what it has learned."""

    def encode(self, vectors: Floats) -> Arrays:
        """Arrays with a row a vector, by field."""

    def learned(self) -> Arrays:
        """Arrays that the codes refer to, by field."""


def sample(source: StoredVectors, size: int) -> Floats:
    """So many vectors in random order, the same ones for the same number of vectors."""
    rows = np.random.default_rng(_SEED).choice(len(source), min(size, len(source)), replace=False)
    order = np.argsort(rows)  # read as they lie
    out = np.empty((len(rows), source.dim), np.float32)
    out[order] = source.floats(rows[order])
    return out


def derive(source: StoredVectors, coders: Sequence[Coder], write: Callable[[str, Any], None], verbose: bool) -> None:
    """Codes all vectors in blocks, and writes codes and what they refer to."""
    blocks = range(0, max(1, len(source)), _ROWS_AT_ONCE)  # also without vectors: empty arrays
    for first in pt.tqdm(blocks, desc="coding", unit="block", disable=not verbose):
        block = source.floats(slice(first, first + _ROWS_AT_ONCE))
        for coder in coders:
            for field, array in coder.encode(block).items():
                write(field, array)
    for coder in coders:
        for field, array in coder.learned().items():
            write(field, array)
