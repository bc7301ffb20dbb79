"""Document names in arrays: position to name and name to position, without a Python object a document.

Names lie one after the other as UTF-8. A 64-bit hash of each, sorted, sits in buckets by its leading bits, about one
a bucket, so finding a name touches a few numbers whatever the size; the name itself is compared in the end.
"""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyterrier_mvret.scoring.ragged import ragged_rows

Ints = npt.NDArray[np.int64]
Names = Sequence[str] | npt.NDArray[np.object_]
FIELDS = {
    "docnos": "|u1",
    "docno_offsets": "<i8",
    "docno_hashes": "<u8",
    "docno_positions": "<i8",
    "docno_buckets": "<i8",
}


def hashes(docnos: Names) -> npt.NDArray[np.uint64]:
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
        "docno_positions": order.astype(np.int64, copy=False),
        "docno_buckets": buckets.astype(np.int64, copy=False),
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
        # plain arrays over the same mapping: numpy's memmap class costs microseconds an access
        self._blob, self._offsets = np.asarray(arrays["docnos"]), np.asarray(arrays["docno_offsets"])
        self._hashes, self._positions = np.asarray(arrays["docno_hashes"]), np.asarray(arrays["docno_positions"])
        self._buckets = np.asarray(arrays["docno_buckets"])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def names(self, positions: Ints) -> list[str]:
        """Names of documents at positions."""
        starts, ends = self._offsets[positions].tolist(), self._offsets[positions + 1].tolist()
        blob = self._blob
        return [blob[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]

    def positions(self, docnos: Names) -> Ints:
        """Positions of documents by name; -1 for a name that is not there."""
        found = np.full(len(docnos), -1, dtype=np.int64)
        if not len(self) or not len(docnos):
            return found
        wanted = hashes(docnos)
        bucket = (wanted >> np.uint64(64 - _bits(len(self)))).astype(np.int64)
        first = self._buckets[bucket]
        counts = self._buckets[bucket + 1] - first
        slots, asked = ragged_rows(first, counts), np.repeat(np.arange(len(docnos)), counts)
        hit = self._hashes[slots] == wanted[asked]
        asked, candidates = asked[hit], self._positions[slots[hit]]
        same = self._equal(candidates, np.array(docnos, dtype=object)[asked].tolist())
        found[asked[same]] = candidates[same]
        return found

    def _equal(self, positions: Ints, names: list[str]) -> npt.NDArray[np.bool_]:
        """Whether the stored names are the asked ones: equal hashes alone prove nothing."""
        text = "".join(names)
        encoded = text.encode()
        parts: Iterable[Sized] = names if len(encoded) == len(text) else map(str.encode, names)
        starts = self._offsets[positions]
        lengths = self._offsets[positions + 1] - starts
        if lengths.tolist() == list(map(len, parts)):
            stored = self._blob[ragged_rows(starts, lengths)].tobytes()
            if stored == encoded:
                return np.ones(len(names), dtype=bool)
        return np.array([n == m for n, m in zip(names, self.names(positions), strict=True)], dtype=bool)


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
