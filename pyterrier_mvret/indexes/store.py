"""Reading segments: vectors and names of documents by their position in the index."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes import quantize, residual
from pyterrier_mvret.indexes.codecs import CODECS, Codec
from pyterrier_mvret.indexes.docnos import FIELDS
from pyterrier_mvret.indexes.documents import DocumentStore, check_small, check_types, name_table, open_arrays
from pyterrier_mvret.indexes.extras import EXTRAS
from pyterrier_mvret.indexes.segments import DamagedIndexError
from pyterrier_mvret.scoring import MaxSim, ScoringRule, TopK
from pyterrier_mvret.scoring.ragged import ragged_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
# arrays with a row a token are read by parts
_A_TOKEN = ("vectors", "scales", *EXTRAS, "centroid_ids", "pq_codes")


class Segment:
    """One segment, memory-mapped."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], codec: Codec):
        self.codec = codec
        self.arrays = open_arrays(folder, entry)
        self.offsets: Ints = self.arrays["offsets"]
        if codec.bits and "unit" not in entry:
            raise DamagedIndexError(f"the manifest does not say whether vectors of {folder} have length one")
        self.unit = bool(entry.get("unit", False))
        self.all_filled = not entry["empty"]
        a_row = [name for name in (*codec.fields, *EXTRAS, "pq_codes") if name in self.arrays]
        types = {**FIELDS, **codec.fields, **(residual.FIELDS if codec.bits else {})}
        types |= quantize.FIELDS if "pq_codes" in self.arrays else {}
        check_types(folder, self.arrays, types)
        rows = {name: len(self.arrays[name]) for name in a_row}
        if len(self.offsets) != entry["documents"] + 1 or set(rows.values()) != {entry["vectors"]}:
            raise DamagedIndexError(f"{folder} does not hold the documents and vectors that the manifest names")
        check_small(folder, entry, _A_TOKEN)
        self.docnos = name_table(self.arrays, entry)
        self.stored = codec.stored(self.arrays, self.unit)
        self.weights = self.arrays.get("token_weights")
        self._codes = self.arrays.get("pq_codes")
        self._quantizer = quantize.quantizer_of(self.arrays) if self._codes is not None else None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def decode(self, rows: "slice | Ints") -> Floats:
        """Vectors of rows as float32."""
        return self.stored.floats(rows)

    def score(
        self,
        rule: ScoringRule,
        queries: Floats,
        query_offsets: Ints,
        documents: Any,
        weights: Any = None,
        device: str | None = None,
    ) -> Floats:
        """Scores of packed queries with documents of this segment (positions or a slice): (queries, documents)."""
        runs = self.offsets[:-1][documents], self.offsets[1:][documents]
        if isinstance(rule, MaxSim) or self.weights is None:
            return rule.stored(queries, query_offsets, self.stored, *runs, weights, device)
        return rule.stored(queries, query_offsets, self.stored, *runs, weights, device, self.weights)

    @property
    def quantized(self) -> bool:
        """Whether there are codes to pick candidates by."""
        return self._quantizer is not None

    def approximate(self, query: Floats, weights: Any) -> Floats:
        """Approximate scores of all documents; infinite without codes, minus infinity for documents without vectors."""
        if self._quantizer is None or self._codes is None:
            scores = np.full(len(self), np.inf, np.float32)
        else:
            table = self._quantizer.table(query, weights)
            scores = table.scores(self._codes, self.offsets[:-1], self.offsets[1:])
        if not self.all_filled:
            scores[np.diff(self.offsets) == 0] = -np.inf
        return scores


class Store(DocumentStore[Segment]):
    """All segments of an index as one row of documents."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        if manifest["dtype"] not in CODECS:
            raise DamagedIndexError(f"{path} stores {manifest['dtype']!r}, which is none of {', '.join(CODECS)}")
        codec = CODECS[manifest["dtype"]]
        segments = [Segment(path / entry["name"], entry, codec) for entry in manifest["segments"]]
        super().__init__(path, manifest, segments)

    @property
    def dim(self) -> int | None:
        """Dimensions of the vectors; none as long as there are no documents."""
        return self.manifest["dim"]

    def lengths(self, positions: Ints) -> Ints:
        """Vectors of each document."""
        lengths = np.zeros(len(positions), dtype=np.int64)
        for segment, mine, local in self._by_segment(positions):
            lengths[mine] = segment.offsets[local + 1] - segment.offsets[local]
        return lengths

    def gather(self, positions: Ints) -> tuple[Floats, Ints]:
        """Vectors of documents, packed in the order asked, and their offsets."""
        return self._gather(positions, lambda segment, rows: segment.decode(rows))

    def gather_array(self, positions: Ints, name: str) -> tuple[npt.NDArray[Any], Ints]:
        """Another per-token array (token ids, character offsets) of documents, packed in the order asked."""
        return self._gather(positions, lambda segment, rows: np.asarray(segment.arrays[name][rows]))

    def _gather(self, positions: Ints, read: Any) -> tuple[Any, Ints]:
        lengths = self.lengths(positions)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        packed: Any = None
        for segment, mine, local in self._by_segment(positions):
            rows = read(segment, ragged_rows(segment.offsets[local], lengths[mine]))
            if len(mine) == len(positions):  # all in one segment, in order
                return rows, offsets
            if packed is None:
                packed = np.empty((offsets[-1], *rows.shape[1:]), dtype=rows.dtype)
            packed[ragged_rows(offsets[mine], lengths[mine])] = rows
        return packed, offsets

    def score(
        self, rule: ScoringRule, query: Floats, positions: Ints, weights: Any = None, device: str | None = None
    ) -> Floats:
        """Scores of one query with documents at positions."""
        scores = np.empty(len(positions), dtype=np.float32)
        one = np.array([0, len(query)])
        for segment, mine, local in self._by_segment(positions):
            scores[mine] = segment.score(rule, query, one, local, weights, device)[0]
        return scores

    @property
    def quantized(self) -> int:
        """Documents that can be picked by codes."""
        return sum(len(segment) for segment in self.segments if segment.quantized)

    def takes_products(self, rule: ScoringRule) -> bool:
        """Whether a rule ranks documents as inner products do, which codes approximate."""
        unit = all(segment.unit for segment in self.segments)
        return rule.similarity == "cosine" or (rule.similarity == "l2" and unit)

    def ranked_by_codes(self, rule: ScoringRule) -> bool:
        """Whether a rule ranks documents as codes do, but for their error: by the best token of each query token."""
        if isinstance(rule, MaxSim):
            return True
        weighed = rule.salience and any(segment.weights is not None for segment in self.segments)
        return rule.strategy == TopK(1) and not weighed

    def candidates(self, query: Floats, weights: Any, count: int) -> Ints:
        """So many documents that score best by their codes, and all of segments without codes; in the index's order."""
        scores = np.concatenate([segment.approximate(query, weights) for segment in self.segments])
        count += int(np.isposinf(scores).sum())
        best = np.argpartition(-scores, count)[:count] if count < len(scores) else np.arange(len(scores))
        return np.sort(best[scores[best] > -np.inf]).astype(np.int64)

    def scan(
        self, rule: ScoringRule, queries: Floats, query_offsets: Ints, weights: Any, documents: int, device: str | None
    ) -> Iterator[tuple[Ints, Floats]]:
        """Scores of packed queries with all documents that have vectors, in blocks of so many: positions, scores."""
        for start, segment in zip(self.starts, self.segments, strict=False):
            for first in range(0, len(segment), documents):
                block = slice(first, min(first + documents, len(segment)))
                filled = np.flatnonzero(np.diff(segment.offsets[block.start : block.stop + 1]))
                scores = segment.score(rule, queries, query_offsets, block, weights, device)
                yield start + first + filled, scores[:, filled]
