"""Reading what segments of every kind have: checked files, and documents by name and by position."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.frames import first_no_text
from pyterrier_mvret.indexes.docnos import FIELDS, DocnoTable, hash_probe, hashes, lookup_arrays
from pyterrier_mvret.indexes.segments import DamagedIndexError, check_digest, open_array

Ints = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
#: of files that are not read by parts, up to this size (8 million documents) all is checked
READ_WHOLE = 1 << 26


def open_arrays(folder: Path, entry: Mapping[str, Any]) -> Arrays:
    """The arrays of a segment's entry in the manifest, memory-mapped; raises DamagedIndexError."""
    return {field: open_array(folder / f"{field}.npy", file) for field, file in entry["files"].items()}


def check_types(folder: Path, arrays: Arrays, types: Mapping[str, str]) -> None:
    """Raises DamagedIndexError where an array lacks, or is of another type."""
    for name, dtype in types.items():
        if name not in arrays:
            raise DamagedIndexError(f"{folder} lacks {name}")
        if arrays[name].dtype != np.dtype(dtype):
            raise DamagedIndexError(f"{name} of {folder} holds {arrays[name].dtype}, not {np.dtype(dtype)}")


def check_small(folder: Path, entry: Mapping[str, Any], by_parts: Collection[str]) -> None:
    """Compares checksums of what is small and not read by parts: a wrong bit there would be a wrong document."""
    for field, file in entry["files"].items():
        if field not in by_parts and file["bytes"] <= READ_WHOLE:
            check_digest(folder / f"{field}.npy", file)


def name_table(arrays: Arrays, entry: Mapping[str, Any], fields: Mapping[str, str] = {}) -> DocnoTable:
    """What finds names of a segment; ``fields`` says what arrays are called where they are no docnos."""
    tables = {name: arrays[fields.get(name, name)] for name in FIELDS}
    if entry["hash_probe"] != hash_probe():  # written by a release that hashes otherwise
        positions = np.arange(len(tables["docno_offsets"]) - 1, dtype=np.int64)
        tables |= lookup_arrays(hashes(DocnoTable(tables).names(positions)))
    return DocnoTable(tables)


class Segment(Protocol):
    """What a store needs of a segment, whatever it holds."""

    docnos: DocnoTable

    def __len__(self) -> int: ...


S = TypeVar("S", bound=Segment)


class DocumentStore(Generic[S]):
    """All segments of an index as one row of documents: position 0 is the first document of the first segment."""

    #: what an encoder made, for messages
    content = "vectors"

    def __init__(self, path: Path, manifest: dict[str, Any], segments: Sequence[S]):
        self.path, self.manifest, self.segments = path, manifest, segments
        self.starts = np.concatenate([[0], np.cumsum([len(s) for s in segments])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def space(self) -> str | None:
        """``name#digest`` of what is stored, where its encoder was told."""
        return (self.manifest["encoder"] or {}).get("space")

    def check_space(self, space: str, what: str) -> None:
        """Raises ValueError if what is of a space (``name#digest``) cannot be compared with what is stored."""
        mine = self.space
        if mine is not None and digest_of(mine) != digest_of(space):
            raise ValueError(f"{self.path} holds {self.content} of encoder {mine}, {what} {self.content} of {space}")

    def positions(self, docnos: Sequence[str]) -> Ints:
        """Positions of documents by name, -1 for unknown names."""
        return look_up([segment.docnos for segment in self.segments], docnos)

    def _by_segment(self, positions: Ints) -> Iterator[tuple[S, npt.NDArray[np.intp], Ints]]:
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


def look_up(tables: Sequence[DocnoTable], names: Sequence[str]) -> Ints:
    """Positions of names in tables that follow each other, -1 for unknown names."""
    found, wanted, start = np.full(len(names), -1, dtype=np.int64), np.array(names, dtype=object), 0
    for table in tables:
        missing = np.flatnonzero(found < 0)
        local = table.positions(wanted[missing])
        found[missing] = np.where(local >= 0, local + start, -1)
        start += len(table)
    return found


def digest_of(space: str | None) -> str | None:
    """The part of ``name#digest`` that says whether vectors are comparable; names of copies may differ."""
    return space.rpartition("#")[2] if space else None
