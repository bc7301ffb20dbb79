"""Reading the segments of a :class:`SparseIndex`: terms, statistics, and postings by document."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes.documents import (
    DocumentStore,
    check_small,
    check_types,
    look_up,
    name_table,
    open_arrays,
)
from pyterrier_mvret.indexes.segments import DamagedIndexError
from pyterrier_mvret.indexes.sparse_builder import FIELDS, TERM_FIELDS
from pyterrier_mvret.scoring.bm25 import BM25, Matrix, Statistics
from pyterrier_mvret.scoring.ragged import ragged_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# ways to search that are kept open: each may hold all postings, and a grid of parameters has many
_SEARCHERS = 4


class SparseSegment:
    """One segment, memory-mapped."""

    def __init__(self, folder: Path, entry: Mapping[str, Any]):
        arrays = open_arrays(folder, entry)
        check_types(folder, arrays, FIELDS)
        # plain arrays over the same mapping: numpy's memmap class costs microseconds an access
        self.offsets: Ints = np.asarray(arrays["offsets"])
        self.term_ids, self.weights = np.asarray(arrays["term_ids"]), np.asarray(arrays["weights"])
        self.lengths, self.frequencies = np.asarray(arrays["lengths"]), np.asarray(arrays["frequencies"])
        sizes = len(self.lengths), len(self.offsets) - 1, len(self.term_ids), len(self.weights)
        terms = len(arrays["term_offsets"]) - 1
        named = entry["documents"], entry["documents"], entry["postings"], entry["postings"]
        if sizes != named or terms != entry["terms"]:
            raise DamagedIndexError(f"{folder} does not hold the documents, postings and terms that the manifest names")
        check_small(folder, entry, ("term_ids", "weights"))
        self.docnos = name_table(arrays, entry)
        self.terms = name_table(arrays, entry, TERM_FIELDS)

    def __len__(self) -> int:
        return len(self.lengths)


class SparseStore(DocumentStore[SparseSegment]):
    """All segments of an index as one row of documents; terms of a segment follow those of the segments before."""

    content = "terms"

    def __init__(self, path: Path, manifest: dict[str, Any]):
        segments = [SparseSegment(path / entry["name"], entry) for entry in manifest["segments"]]
        super().__init__(path, manifest, segments)
        self._searchers: dict[Any, Any] = {}
        self._making = threading.Lock()

    @cached_property
    def statistics(self) -> Statistics:
        """What BM25 knows of the collection."""
        frequencies = np.zeros(self.terms, dtype=np.int64)
        for segment in self.segments:
            frequencies[: len(segment.frequencies)] += segment.frequencies
        total = sum(float(segment.lengths.sum()) for segment in self.segments)
        return Statistics(len(self), frequencies, total / max(len(self), 1))

    def searcher(self, key: Any, make: Callable[[], Any]) -> Any:
        """What searches the store in one way, made on first use; of several threads by one, and the latest are kept."""
        with self._making:
            found = self._searchers.pop(key, None) or make()
            self._searchers[key] = found
            while len(self._searchers) > _SEARCHERS:
                del self._searchers[next(iter(self._searchers))]
            return found

    @property
    def terms(self) -> int:
        """How many different terms there are."""
        return sum(len(segment.terms) for segment in self.segments)

    def term_names(self) -> list[str]:
        """All terms, in the order of their numbers."""
        return [name for s in self.segments for name in s.terms.names(np.arange(len(s.terms), dtype=np.int64))]

    def term_numbers(self, terms: Sequence[str]) -> Ints:
        """Numbers of terms, -1 for unknown ones."""
        return look_up([segment.terms for segment in self.segments], terms)

    def matrix(self) -> Matrix:
        """(documents, terms) CSR of the weights as float32, without a copy if there is one segment."""
        from scipy.sparse import csr_array

        parts = [(s.weights, s.term_ids, s.offsets) for s in self.segments]
        if len(parts) == 1:
            data, ids, offsets = parts[0]
        else:
            starts = np.cumsum([0, *(len(s.weights) for s in self.segments)])
            data = np.concatenate([np.empty(0, np.float32), *(part[0] for part in parts)])
            ids = np.concatenate([np.empty(0, np.int32), *(part[1] for part in parts)])
            ends = (s.offsets[1:] + start for s, start in zip(self.segments, starts, strict=False))
            offsets = np.concatenate([np.zeros(1, np.int64), *ends])
        return csr_array((data, ids, offsets), shape=(len(self), self.terms))

    def score(self, weighting: BM25 | None, terms: Ints, weights: Floats, positions: Ints) -> Floats:
        """Exact scores of one query with documents at positions; by dot product without a weighting model."""
        query = np.zeros(self.terms)
        query[terms] = weights if weighting is None else weights * weighting.term_weights(self.statistics, terms)
        scores = np.zeros(len(positions))
        for segment, mine, local in self._by_segment(positions):
            counts = segment.offsets[local + 1] - segment.offsets[local]
            rows = ragged_rows(segment.offsets[local], counts)
            worth = query[segment.term_ids[rows]]
            hit = np.flatnonzero(worth)
            of = np.repeat(np.arange(len(local)), counts)[hit]
            stored = segment.weights[rows[hit]].astype(np.float64)
            if weighting is not None:
                norms = weighting.norms(segment.lengths[local], self.statistics.mean_length)
                stored = weighting.saturated(stored, norms[of])
            scores[mine] = np.bincount(of, worth[hit] * stored, minlength=len(local))
        return scores
