"""What every way of end_to_end.py is given: the documents of one size, as records, blocks, arrays or an index."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokens

import pyterrier_mvret as mv

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Answers = list[Ints]

#: documents returned for a query
DEPTH = 100
#: documents up to which a way may hold all vectors in memory as float32
IN_MEMORY = 200_000


@dataclass(frozen=True)
class Way:
    """One way to search.

    Attributes:
        name: what the table calls it.
        search: queries -> positions of each query's best documents, best first.
        seconds: to build it.
        bytes_per_vector: what it keeps.
        threads: numbers of threads it is measured with; those it cannot be told are left out.
    """

    name: str
    search: Callable[[list[Floats]], Answers]
    seconds: float
    bytes_per_vector: float
    threads: tuple[int, ...] = (2, 1)


@dataclass
class Setting:
    """Documents 0 to ``size - 1``; the name of document ``d`` ends with ``d``."""

    pool: tokens.Pool
    size: int
    scratch: Path
    dtypes: list[str]
    _indexes: dict[str, tuple[mv.MultiVecIndex, float]] = field(default_factory=dict)

    def blocks(self, documents: int) -> Iterator[tuple[Floats, Ints]]:
        """Packed vectors and offsets of so many documents at a time."""
        records = tokens.documents(self.pool, self.size)
        while block := [record["doc_embs"] for record in islice(records, documents)]:
            yield np.concatenate(block), np.cumsum([0, *map(len, block)])

    def index(self, dtype: str) -> tuple[mv.MultiVecIndex, float]:
        """The index of a storage type, built once, and the seconds that took (making documents included)."""
        if dtype not in self._indexes:
            index = mv.MultiVecIndex(self.scratch / f"{dtype}.mv", dtype=dtype)
            start = time.perf_counter()
            index.index(tokens.documents(self.pool, self.size))
            self._indexes[dtype] = index, time.perf_counter() - start
        return self._indexes[dtype]

    @cached_property
    def packed(self) -> tuple[Floats, Ints]:
        """All vectors in memory, and the documents' offsets."""
        if self.size <= len(self.pool):
            offsets = self.pool.offsets[: self.size + 1]
            return self.pool.vectors[: offsets[-1]], offsets
        blocks = list(self.blocks(10_000))
        lengths = np.concatenate([np.diff(offsets) for _, offsets in blocks])
        return np.concatenate([vectors for vectors, _ in blocks]), np.concatenate([[0], np.cumsum(lengths)])

    @cached_property
    def rows(self) -> int:
        """Vectors in all."""
        return sum(len(vectors) for vectors, _ in self.blocks(10_000))
