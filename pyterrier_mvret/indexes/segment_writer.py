"""What writing a segment takes whatever it holds: its files, the names of its documents, and who encoded them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret import frames
from pyterrier_mvret.indexes import docnos
from pyterrier_mvret.indexes.segments import ArrayWriter

Record = Mapping[str, Any]


class SegmentWriter:
    """Base of what writes one segment; a subclass knows the rest of a record.

    Args:
        folder: an empty folder to write into.
        known: names -> whether each is already in the index, for appending.
        check_encoder: called once, with how the first document was encoded (or None), before it is written.
    """

    #: columns of the documents' frame: what is stored, and who made it
    content: str
    made_by: str

    def __init__(
        self,
        folder: Path,
        known: Callable[[list[str]], npt.NDArray[np.bool_]] | None = None,
        check_encoder: Callable[[dict[str, Any] | None], None] | None = None,
    ):
        self.folder = folder
        self.documents = self.empty = 0
        self.encoder: dict[str, Any] | None = None
        self._encoder_text: Any = None
        self._known, self._check_encoder = known, check_encoder
        self._seen = docnos.SeenDocnos()
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._writers: dict[str, ArrayWriter] = {}
        self._blob_end = 0

    def add(self, records: Iterable[Record]) -> None:
        """Consumes the stream.

        Raises:
            ValueError: a record that cannot be stored, by docno; nothing of the stream is kept then.
        """
        raise NotImplementedError

    def finish(self) -> dict[str, Any]:
        """Completes all files; returns the segment's entry in the manifest."""
        raise NotImplementedError

    def _name(self, record: Record, first: bool) -> str:
        if not isinstance(record, Mapping):
            raise ValueError(f"expected a record with docno and {self.content}, got {type(record).__name__}")
        name = record.get("docno")
        if not frames.is_text(name) or not name:
            raise ValueError(f"a document's docno must be a non-empty string of valid Unicode, got {name!r}")
        made = record.get(self.made_by)
        made = None if frames.is_missing(made) else made
        if first:
            self._encoder_text, self.encoder = made, self._described(made, name)
            if self._check_encoder is not None:
                self._check_encoder(self.encoder)
        elif made != self._encoder_text:
            raise ValueError(f"document {name!r} comes from another encoder than the documents before it")
        return name

    def _described(self, made: Any, name: str) -> dict[str, Any] | None:
        """What a document says about who encoded it."""
        if made is None:
            return None
        try:
            described = json.loads(made)
        except (TypeError, ValueError):
            described = None
        if not isinstance(described, dict):
            raise ValueError(f"{self.made_by} of document {name!r} is not a description of an encoder: {made!r}")
        return described

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

    def _write_names(self, names: list[str]) -> None:
        """Writes the names of a block, and counts its documents."""
        encoded = [name.encode() for name in names]
        sizes = np.array([len(e) for e in encoded], dtype=np.int64)
        self._write("docno_offsets", "<i8", None, self._running(self._blob_end, sizes, self.documents))
        self._write("docnos", "|u1", None, np.frombuffer(b"".join(encoded), np.uint8))
        self._blob_end += int(sizes.sum())
        self.documents += len(names)

    def _write_lookup(self) -> None:
        """Writes what finds a document by its name."""
        for field, array in docnos.lookup_arrays(np.concatenate(self._hashes)).items():
            self._write(field, docnos.FIELDS[field], None, array)

    @staticmethod
    def _running(start: int, lengths: npt.NDArray[np.int64], documents: int) -> npt.NDArray[np.int64]:
        """Ends of this block's documents; before the first block also the zero that all offsets begin with."""
        ends = start + np.cumsum(lengths)
        return ends if documents else np.concatenate([[0], ends])

    def _write(self, field: str, dtype: str, columns: int | None, rows: npt.NDArray[Any]) -> None:
        if field not in self._writers:
            self._writers[field] = ArrayWriter(self.folder / f"{field}.npy", dtype, columns)
        self._writers[field].append(rows)

    def _write_rows(self, field: str, rows: npt.NDArray[Any]) -> None:
        """Writes rows of the type and width that they have."""
        little = rows.dtype.newbyteorder("<").str
        self._write(field, little, rows.shape[1] if rows.ndim == 2 else None, rows)

    def _close(self) -> dict[str, Any]:
        """Completes the files so far; returns what a reader checks, by field."""
        files = {field: writer.close() for field, writer in self._writers.items()}
        self._writers = {}
        return files

    def abort(self) -> None:
        """Lets go of the files."""
        for writer in self._writers.values():
            writer.abort()


def records_of(documents: Any) -> Iterable[Record]:
    """Document records from what PyTerrier's users pass to ``index()``: records in any iterable, or a frame.

    Raises:
        ValueError: a single record or a string.
    """
    if isinstance(documents, str | Mapping):
        raise ValueError(f"expected documents in a list, frame or generator, got one {type(documents).__name__}")
    return documents.to_dict(orient="records") if hasattr(documents, "to_dict") else documents
