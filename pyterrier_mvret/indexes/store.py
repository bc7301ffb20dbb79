"""Reading segments: vectors and names of documents by their position in the index."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.frames import first_no_text
from pyterrier_mvret.indexes import quantize, residual
from pyterrier_mvret.indexes.codecs import CODECS, Codec
from pyterrier_mvret.indexes.docnos import FIELDS, DocnoTable, hash_probe, hashes, lookup_arrays
from pyterrier_mvret.indexes.extras import EXTRAS
from pyterrier_mvret.indexes.segments import DamagedIndexError, check_digest, open_array
from pyterrier_mvret.scoring import MaxSim, ScoringRule, TopK
from pyterrier_mvret.scoring.ragged import ragged_rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
# arrays with a row a token are read by parts; of the others, up to this size (8 million documents) all is checked
_A_TOKEN = ("vectors", "scales", *EXTRAS, "centroid_ids", "pq_codes")
_READ_WHOLE = 1 << 26


class Segment:
    """One segment, memory-mapped."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], codec: Codec):
        self.codec = codec
        self.arrays = {field: open_array(folder / f"{field}.npy", file) for field, file in entry["files"].items()}
        self.offsets: Ints = self.arrays["offsets"]
        if codec.bits and "unit" not in entry:
            raise DamagedIndexError(f"the manifest does not say whether vectors of {folder} have length one")
        self.unit = bool(entry.get("unit", False))
        self.all_filled = not entry["empty"]
        a_row = [name for name in (*codec.fields, *EXTRAS, "pq_codes") if name in self.arrays]
        types = {**FIELDS, **codec.fields, **(residual.FIELDS if codec.bits else {})}
        types |= quantize.FIELDS if "pq_codes" in self.arrays else {}
        for name, dtype in types.items():
            if name not in self.arrays:
                raise DamagedIndexError(f"{folder} lacks {name}")
            if self.arrays[name].dtype != np.dtype(dtype):
                raise DamagedIndexError(f"{name} of {folder} holds {self.arrays[name].dtype}, not {np.dtype(dtype)}")
        rows = {name: len(self.arrays[name]) for name in a_row}
        if len(self.offsets) != entry["documents"] + 1 or set(rows.values()) != {entry["vectors"]}:
            raise DamagedIndexError(f"{folder} does not hold the documents and vectors that the manifest names")
        for field, file in entry["files"].items():  # a wrong bit here would be a wrong document: read what is small
            if field not in _A_TOKEN and file["bytes"] <= _READ_WHOLE:
                check_digest(folder / f"{field}.npy", file)
        tables = {name: self.arrays[name] for name in FIELDS}
        if entry["hash_probe"] != hash_probe():  # written by a release that hashes otherwise
            positions = np.arange(entry["documents"], dtype=np.int64)
            tables |= lookup_arrays(hashes(DocnoTable(tables).names(positions)))
        self.docnos = DocnoTable(tables)
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


class Store:
    """All segments of an index as one row of documents: position 0 is the first document of the first segment."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        if manifest["dtype"] not in CODECS:
            raise DamagedIndexError(f"{path} stores {manifest['dtype']!r}, which is none of {', '.join(CODECS)}")
        codec = CODECS[manifest["dtype"]]
        self.segments = [Segment(path / entry["name"], entry, codec) for entry in manifest["segments"]]
        self.starts = np.concatenate([[0], np.cumsum([len(s) for s in self.segments])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int | None:
        """Dimensions of the vectors; none as long as there are no documents."""
        return self.manifest["dim"]

    def check_space(self, space: str, what: str) -> None:
        """Raises ValueError if vectors of a space (``name#digest``) cannot be compared with those stored."""
        mine = (self.manifest["encoder"] or {}).get("space")
        if mine is not None and digest_of(mine) != digest_of(space):
            raise ValueError(f"{self.path} holds vectors of encoder {mine}, {what} vectors of {space}")

    def positions(self, docnos: Sequence[str]) -> Ints:
        """Positions of documents by name, -1 for unknown names."""
        found, names = np.full(len(docnos), -1, dtype=np.int64), np.array(docnos, dtype=object)
        for start, segment in zip(self.starts, self.segments, strict=False):
            missing = np.flatnonzero(found < 0)
            local = segment.docnos.positions(names[missing])
            found[missing] = np.where(local >= 0, local + start, -1)
        return found

    def _by_segment(self, positions: Ints) -> Iterator[tuple[Segment, npt.NDArray[np.intp], Ints]]:
        """The segments concerned, with which of the asked documents each holds and where in the segment."""
        if len(self.segments) == 1 and len(positions):  # the usual index
            yield self.segments[0], np.arange(len(positions)), positions
            return
        owner = np.searchsorted(self.starts, positions, side="right") - 1
        for i, segment in enumerate(self.segments):
            mine = np.flatnonzero(owner == i)
            if len(mine):
                yield segment, mine, positions[mine] - self.starts[i]

    def names(self, positions: Ints) -> list[str]:
        """Names of documents at positions."""
        names = [""] * len(positions)
        for segment, mine, local in self._by_segment(positions):
            for i, name in zip(mine, segment.docnos.names(local), strict=True):
                names[i] = name
        return names

    def lengths(self, positions: Ints) -> Ints:
        """Vectors of each document."""
        lengths = np.zeros(len(positions), dtype=np.int64)
        for segment, mine, local in self._by_segment(positions):
            lengths[mine] = segment.offsets[local + 1] - segment.offsets[local]
        return lengths

    def known(self, docnos: Sequence[Any]) -> Ints:
        """Positions of documents by name.

        Raises:
            ValueError: documents that are not there, with the first names.
        """
        odd = first_no_text(docnos)
        if odd is not None:
            raise ValueError(f"a docno must be a string, got {docnos[odd]!r}")
        positions = self.positions(docnos)
        unknown = np.flatnonzero(positions < 0)
        if len(unknown):
            some = ", ".join(repr(docnos[i]) for i in unknown[:3])
            raise ValueError(f"{len(unknown)} of {len(docnos)} documents are not in {self.path}: {some}, ...")
        return positions

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


def digest_of(space: str | None) -> str | None:
    """The part of ``name#digest`` that says whether vectors are comparable; names of copies may differ."""
    return space.rpartition("#")[2] if space else None
