"""From a stream of document records to one segment on disk, in memory that does not grow with the stream."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from more_itertools import chunked

from pyterrier_mvret import frames
from pyterrier_mvret.indexes import docnos
from pyterrier_mvret.indexes.codecs import Codec
from pyterrier_mvret.indexes.segments import ArrayWriter

_DOCUMENTS_A_BLOCK = 256
Record = Mapping[str, Any]


class SegmentBuilder:
    """Writes the arrays of one segment.

    Args:
        folder: an empty folder to write into.
        codec: how vectors are stored.
        dim: dimensions, or none to take the first document's.
        store_ids: keep ``doc_tok_ids``.
        store_offsets: keep ``doc_tok_offsets``.
        known: whether names are already in the index, for appending.
    """

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        dim: int | None,
        *,
        store_ids: bool = False,
        store_offsets: bool = False,
        known: Any = None,
    ):
        self.folder, self.codec, self.dim = folder, codec, dim
        self.documents = self.vectors = self.empty = 0
        self.encoder: str | None = None
        self._known = known
        self._seen = docnos.SeenDocnos()
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._writers: dict[str, ArrayWriter] = {}
        self._blob_end = 0
        # per-token arrays that travel with the vectors: column, type and width
        self._extras = {
            name: spec
            for name, keep, spec in (
                ("token_ids", store_ids, (frames.DOC_TOK_IDS, "<i4", None)),
                ("token_offsets", store_offsets, (frames.DOC_TOK_OFFSETS, "<i4", 2)),
            )
            if keep
        }

    def add(self, records: Iterable[Record]) -> None:
        """Consumes the stream.

        Raises:
            ValueError: a record that cannot be stored, by docno; nothing of the stream is kept then.
        """
        for block in chunked(records, _DOCUMENTS_A_BLOCK):
            self._add_block(block)

    def _add_block(self, block: list[Record]) -> None:
        names = [self._name(record) for record in block]
        matrices = [self._matrix(record, name) for record, name in zip(block, names, strict=True)]
        self._check_new(names)
        if self.dim is None:
            self.dim = matrices[0].shape[1]
        wrong = next((i for i, m in enumerate(matrices) if m.shape[1] != self.dim), None)
        if wrong is not None:
            raise ValueError(
                f"document {names[wrong]!r} has vectors of {matrices[wrong].shape[1]} dimensions, the index {self.dim}"
            )
        lengths = np.array([len(m) for m in matrices], dtype=np.int64)
        self._write("offsets", "<i8", None, self._running(self.vectors, lengths, self.documents))
        vectors = np.concatenate(matrices).astype(np.float32, copy=False)
        for field, array in self.codec.encode(vectors).items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    f"vectors of documents {names[0]!r} to {names[-1]!r} do not fit {self.codec.name}: use float32"
                )
            self._write(field, self.codec.fields[field], self.dim if array.ndim == 2 else None, array)
        for field, (column, dtype, columns) in self._extras.items():
            self._write(field, dtype, columns, self._extra(block, names, matrices, column))
        encoded = [name.encode() for name in names]
        sizes = np.array([len(e) for e in encoded], dtype=np.int64)
        self._write("docno_offsets", "<i8", None, self._running(self._blob_end, sizes, self.documents))
        self._write("docnos", "|u1", None, np.frombuffer(b"".join(encoded), np.uint8))
        self._blob_end += int(sizes.sum())
        self.documents += len(block)
        self.vectors += len(vectors)
        self.empty += int((lengths == 0).sum())

    @staticmethod
    def _running(start: int, lengths: npt.NDArray[np.int64], documents: int) -> npt.NDArray[np.int64]:
        """Ends of this block's documents; before the first block also the zero that all offsets begin with."""
        ends = start + np.cumsum(lengths)
        return ends if documents else np.concatenate([[0], ends])

    def _write(self, field: str, dtype: str, columns: int | None, rows: npt.NDArray[Any]) -> None:
        if field not in self._writers:
            self._writers[field] = ArrayWriter(self.folder / f"{field}.npy", dtype, columns)
        self._writers[field].append(rows)

    def _name(self, record: Record) -> str:
        name = record.get("docno")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a document's docno must be a non-empty string, got {name!r}")
        encoder = record.get(frames.DOC_ENCODER)
        if not frames.is_missing(encoder):
            if self.encoder is None and self.documents == 0:
                self.encoder = encoder
            elif encoder != self.encoder:
                raise ValueError(f"document {name!r} comes from another encoder than the documents before it")
        return name

    @staticmethod
    def _matrix(record: Record, name: str) -> npt.NDArray[Any]:
        value = record.get(frames.DOC_EMBS)
        if frames.is_missing(value):
            raise ValueError(f"document {name!r} has no {frames.DOC_EMBS}: put an encoder before the index")
        return frames.matrix(value, f"{frames.DOC_EMBS} of document {name!r}")

    @staticmethod
    def _extra(
        block: list[Record], names: list[str], matrices: list[npt.NDArray[Any]], column: str
    ) -> npt.NDArray[Any]:
        rows = []
        for record, name, matrix in zip(block, names, matrices, strict=True):
            value = record.get(column)
            if value is None or frames.is_missing(value) or len(value) != len(matrix):
                raise ValueError(
                    f"document {name!r} has no {column} for its {len(matrix)} vectors "
                    "(pooled tokens have none); build the index without storing them"
                )
            rows.append(np.asarray(value))
        return np.concatenate(rows)

    def _check_new(self, names: list[str]) -> None:
        hashed = docnos.hashes(names)
        self._hashes.append(hashed)
        for i in self._seen.add(hashed):
            if names[i] in names[:i] or self._written(names[i]):
                raise ValueError(f"docno {names[i]!r} occurs twice")
        if self._known is not None:
            there = np.flatnonzero(self._known(names))
            if len(there):
                raise ValueError(f"docno {names[there[0]]!r} is already in the index")

    def _written(self, name: str) -> bool:
        """Whether a name is among those written so far; read only where a hash came twice."""
        if not self.documents:
            return False
        for field in ("docnos", "docno_offsets"):
            self._writers[field].flush()
        blob = (self.folder / "docnos.npy").read_bytes()
        ends = np.fromfile(self.folder / "docno_offsets.npy", dtype="<i8")[-(self.documents + 1) :]
        blob = blob[len(blob) - self._blob_end :]
        size = len(name.encode())
        candidates = np.flatnonzero(np.diff(ends) == size)
        return any(blob[ends[i] : ends[i] + size] == name.encode() for i in candidates)

    def finish(self) -> dict[str, Any]:
        """Completes all files; returns the segment's entry in the manifest."""
        lookup = docnos.lookup_arrays(np.concatenate(self._hashes))
        for field, array in lookup.items():
            self._write(field, docnos.FIELDS[field], None, array)
        files = {field: writer.close() for field, writer in self._writers.items()}
        return {"documents": self.documents, "vectors": self.vectors, "empty": self.empty, "files": files}

    def abort(self) -> None:
        """Lets go of the files."""
        for writer in self._writers.values():
            writer.abort()


def records_of(documents: Any) -> Iterator[Record]:
    """Document records from what PyTerrier's users pass to ``index()``: records in any iterable, or a frame."""
    if hasattr(documents, "to_dict"):
        documents = documents.to_dict(orient="records")
    yield from documents
