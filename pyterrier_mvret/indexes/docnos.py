"""Document names in arrays: position to name and name to position, without a Python object a document.

Names lie one after the other as UTF-8. A 64-bit hash of each, sorted, sits in buckets by its leading bits, about one
a bucket, so finding a name touches a few numbers whatever the size; the name itself is compared in the end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyterrier_mvret.scoring.ragged import ragged_rows

Ints = npt.NDArray[np.int64]
FIELDS = {
    "docnos": "|u1",
    "docno_offsets": "<i8",
    "docno_hashes": "<u8",
    "docno_positions": "<i8",
    "docno_buckets": "<i8",
}


def hashes(docnos: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64-bit hashes of strings, the same on every machine (SipHash, as pandas has it)."""
    return pd.util.hash_array(np.array(docnos, dtype=object), categorize=False)


def hash_probe() -> int:
    """What the hash makes of a known string; kept with an index, as another release might hash in another way."""
    return int(hashes(["pyterrier_mvret"])[0])


def lookup_arrays(docno_hashes: npt.NDArray[np.uint64]) -> dict[str, npt.NDArray[Any]]:
    """The arrays that turn a hash into positions."""
    order = np.argsort(docno_hashes, kind="stable")
    ordered = docno_hashes[order]
    bits = _bits(len(ordered))
    buckets = np.searchsorted(ordered >> np.uint64(64 - bits), np.arange((1 << bits) + 1, dtype=np.uint64))
    return {
        "docno_hashes": ordered,
        "docno_positions": order.astype(np.int64),
        "docno_buckets": buckets.astype(np.int64),
    }


def _bits(n: int) -> int:
    return max(1, int(n).bit_length())


class DocnoTable:
    """Reads the arrays of :data:`FIELDS`.

    >>> names = ["d1", "d2"]
    >>> blob = np.frombuffer("".join(names).encode(), np.uint8)
    >>> table = DocnoTable({"docnos": blob, "docno_offsets": np.array([0, 2, 4]), **lookup_arrays(hashes(names))})
    >>> table.positions(["d2", "nowhere", "d1"]), table.names(np.array([1, 0]))
    (array([ 1, -1,  0]), ['d2', 'd1'])
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]):
        self._blob, self._offsets = arrays["docnos"], arrays["docno_offsets"]
        self._hashes, self._positions = arrays["docno_hashes"], arrays["docno_positions"]
        self._buckets = arrays["docno_buckets"]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def names(self, positions: Ints) -> list[str]:
        """Names of documents at positions."""
        starts, ends = self._offsets[positions].tolist(), self._offsets[positions + 1].tolist()
        blob = self._blob
        return [blob[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]

    def positions(self, docnos: Sequence[str]) -> Ints:
        """Positions of documents by name; -1 for a name that is not there."""
        found = np.full(len(docnos), -1, dtype=np.int64)
        if not len(self) or not len(docnos):
            return found
        wanted = hashes(docnos)
        bucket = (wanted >> np.uint64(64 - _bits(len(self)))).astype(np.int64)
        slot, end = self._buckets[bucket], self._buckets[bucket + 1]
        open_ = np.flatnonzero(slot < end)
        while len(open_):
            hit = open_[self._hashes[slot[open_]] == wanted[open_]]
            candidates = self._positions[slot[hit]]
            same = self._equal(hit, candidates, docnos)
            found[hit[same]] = candidates[same]
            slot[open_] += 1
            open_ = open_[(slot[open_] < end[open_]) & (found[open_] < 0)]
        return found

    def _equal(self, asked: npt.NDArray[np.intp], positions: Ints, docnos: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether the stored names are the asked ones: equal hashes alone prove nothing."""
        names = [docnos[i].encode() for i in asked]
        lengths = self._offsets[positions + 1] - self._offsets[positions]
        stored = self._blob[ragged_rows(self._offsets[positions], lengths)].tobytes()
        if stored == b"".join(names) and lengths.tolist() == [len(n) for n in names]:
            return np.ones(len(names), dtype=bool)
        return np.array([n == m.encode() for n, m in zip(names, self.names(positions), strict=True)], dtype=bool)


class SeenDocnos:
    """Finds a name given twice while a build runs, in eight bytes a document.

    Hashes are kept in sorted runs, each at least twice as long as the next, so that adding stays cheap.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []

    def add(self, batch: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """Adds hashes; returns which of them (positions in the batch) were there before or earlier in the batch."""
        ordered, first = np.unique(batch, return_index=True)
        repeated = np.ones(len(batch), dtype=bool)
        repeated[first] = False
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, batch), len(run) - 1)
            repeated |= run[at] == batch
        while self._runs and len(self._runs[-1]) < 2 * len(ordered):
            ordered = np.union1d(self._runs.pop(), ordered)
        if len(ordered):
            self._runs.append(ordered)
        return np.flatnonzero(repeated)
