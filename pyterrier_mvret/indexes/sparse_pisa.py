"""PISA as the engine of a :class:`SparseIndex`: postings as integers, found with dynamic pruning.

PISA stores integers and counts query terms, so weights are rounded here, in one of three ways:

* BM25 with PISA's own idf (``"rsj"``): weights times ``scale``, with ``k1`` times ``scale``, which changes scores by a
  constant only;
* another idf: what each term adds to a document's score, as 16-bit integers of the largest, scored by dot product;
* dot product: weights of documents as 10-bit integers of the largest, of a query as 8-bit integers of its own: recall
  of the 10 best is then at least 0.99 on vectors of every shape that was tried, which 8 bits of both miss by a little.
  PISA's work grows with a query's integers, not with those of documents.

PISA's files are written from the CSR arrays as its indexer for tokens would, many times faster; it takes all postings
in memory, some 40 bytes each.
"""

import contextlib
import ctypes
import json
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyterrier_mvret.indexes.derived_files import META, check_folder, making, opened, seal
from pyterrier_mvret.indexes.sparse_exact import Query
from pyterrier_mvret.indexes.sparse_store import SparseStore
from pyterrier_mvret.scoring.bm25 import BM25, Matrix, row_sums

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_DOCUMENT_BITS, _QUERY_BITS = 10, 8
_IMPACT_BITS = 16
# a query's largest weight under BM25 becomes at least so much: PISA's work grows with the sum, errors fall with it
_QUERY_LEVELS = 512
# documents found beyond those asked for, so that ties at the cut are seen
_SLACK = 32
# scores and names that PISA holds at once
_RESULTS_AT_ONCE = 1 << 20
_LARGEST = np.iinfo(np.uint32).max
_PISA = {"type": "sparse_index", "format": "pisa", "package_hint": "pyterrier-pisa", "stemmer": "none"}
_TOO_LARGE = "weights are too large for PISA's 32-bit integers: build the index with a smaller scale"


def require_pisa() -> None:
    """Raises ImportError, naming the other engine, where pyterrier_pisa is not installed."""
    try:
        import pyterrier_pisa  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'engine="pisa" needs pyterrier-pisa (pip install pyterrier-pisa; Linux only); '
            'SparseIndex(path, engine="csr") needs nothing more'
        ) from error


def rounded(weights: Array, step: float, least: int = 1) -> Ints:
    """Weights as numbers of steps, rounded to the nearest and at least ``least`` (LASPAR's quantiser).

    >>> rounded(np.array([0.845737, 0.5336, 0.009, 0.99996]), 0.99996 / 255).tolist()
    [216, 136, 2, 255]
    """
    return np.maximum(np.rint(np.asarray(weights, dtype=np.float64) / step), least).astype(np.int64)


@dataclass(frozen=True)
class _Plan:
    """How an index is stored in PISA and what its scores are worth.

    Attributes:
        step: what an integer of a document is worth.
        least: integers of documents are at least this; 0 loses what rounds to it.
        scoring: of PISA: ``{}`` is the dot product, else parameters of its BM25.
        factor: what a score is worth, besides the query's step.
    """

    step: float
    least: int
    scoring: dict[str, float]
    factor: float


class PisaSearcher:
    """Searches PISA's files, which are made first where there are none.

    Args:
        store: whose postings they are.
        weighting: how they are scored; none by dot product.
        scale: integers a unit of weight, for BM25 with PISA's own idf.
    """

    def __init__(self, store: SparseStore, weighting: BM25 | None, scale: float):
        require_pisa()
        self._documents = len(store)
        self._weighting = weighting
        meta, self._pisa = _opened(store, weighting, scale)
        self._plan = _Plan(**meta["plan"])
        if meta["lost"]:
            warnings.warn(
                f"{store.path}: {meta['lost']} of {meta['postings']} weights are below {self._plan.step / 2:g} and "
                "are lost in PISA: build the index with a larger scale",
                stacklevel=2,
            )

    def search(self, queries: Sequence[Query], k: int | None) -> Iterator[tuple[Floats, Ints]]:
        """Scores and positions of the k best documents of each query (none for all), and of all tied with the last."""
        depth = self._documents + 1 if k is None else min(k + _SLACK, self._documents + 1)
        step = max(1, _RESULTS_AT_ONCE // depth)
        for first in range(0, len(queries), step):
            block = queries[first : first + step]
            for query, (scores, positions) in zip(block, self._found(block, depth), strict=True):
                asked = depth
                while k is not None and len(scores) == asked and scores[-1] == scores[k - 1]:  # a tie goes on
                    asked = min(4 * asked, self._documents + 1)
                    ((scores, positions),) = self._found([query], asked)
                yield scores, positions

    def _found(self, queries: Sequence[Query], depth: int) -> list[tuple[Floats, Ints]]:
        if self._pisa is None:
            return [(np.empty(0), np.empty(0, np.int64))] * len(queries)
        steps = [self._query_step(weights) for _, weights in queries]
        asked = [
            dict(zip(map(_name, ids.tolist()), rounded(weights, step).tolist(), strict=True))
            for (ids, weights), step in zip(queries, steps, strict=True)
        ]
        pisa = copy(self._pisa)  # a thread may ask for another number of results
        pisa.num_results = depth
        frame = pd.DataFrame({"qid": [str(i) for i in range(len(queries))], "query_toks": asked})
        found = pisa.transform(frame)
        counts = np.bincount(found["qid"].astype(np.int64), minlength=len(queries))
        positions = np.split(found["docno"].astype(np.int64).to_numpy(), np.cumsum(counts)[:-1])
        scores = np.split(found["score"].to_numpy(np.float64), np.cumsum(counts)[:-1])
        return [(s * (self._plan.factor * step), p) for s, p, step in zip(scores, positions, steps, strict=True)]

    def _query_step(self, weights: Floats) -> float:
        """What an integer of a query is worth; a power of two under BM25, so that small whole weights stay exact."""
        if self._weighting is None:
            return float(weights.max()) / (2**_QUERY_BITS - 1)
        return float(2.0 ** np.floor(np.log2(weights.max() / _QUERY_LEVELS)))


def _opened(store: SparseStore, weighting: BM25 | None, scale: float) -> tuple[dict[str, Any], Any]:
    """What PISA's files say of themselves, and the stage over them (none where nothing can be found).

    They are made where there are none.
    """

    def read(folder: Path) -> tuple[dict[str, Any], Any]:
        # PISA ends the process where a file is gone
        meta = check_folder(folder, keys=("plan", "postings", "lost"))
        return meta, _retriever(folder, _Plan(**meta["plan"])) if meta["postings"] > meta["lost"] else None

    return opened(store.path, key_of(store, weighting, scale), lambda: _derive(store, weighting, scale), read)


def key_of(store: SparseStore, weighting: BM25 | None, scale: float) -> str:
    """What PISA's files depend on."""
    names = [entry["name"] for entry in store.manifest["segments"]]
    # by how weights are rounded, too: files that were made otherwise are made anew
    rounding = scale if _counts(weighting) else _DOCUMENT_BITS if weighting is None else _IMPACT_BITS
    return json.dumps(["pisa", names, repr(weighting), rounding])


def _counts(weighting: BM25 | None) -> bool:
    """Whether PISA itself computes the weighting model."""
    return weighting is not None and weighting.idf == "rsj"


def _derive(store: SparseStore, weighting: BM25 | None, scale: float) -> None:
    """Writes PISA's files, and what reading them takes, into a folder that appears whole or not at all."""
    matrix = store.matrix()
    if weighting is not None and not _counts(weighting):
        matrix = weighting.impacts(matrix, store.statistics)
    plan = _plan(matrix, weighting, scale)
    if matrix.data.max(initial=0) > _LARGEST * plan.step:
        raise ValueError(_TOO_LARGE)
    levels = rounded(matrix.data, plan.step, plan.least).astype(np.uint32)
    if plan.scoring and row_sums(levels, matrix.indptr).max(initial=0) > _LARGEST:
        raise ValueError(_TOO_LARGE)
    lost = int((levels == 0).sum())
    meta = _PISA | {"weighting": repr(weighting), "plan": asdict(plan), "postings": len(levels), "lost": lost}
    with making(store.path, key_of(store, weighting, scale), "PISA") as folder:
        (folder / META).write_text(json.dumps({**meta, "files": {}}))
        if len(levels) > lost:
            write_inverted(folder, levels, matrix)
            _compress(folder, plan)
        seal(folder, meta)


def _plan(matrix: Matrix, weighting: BM25 | None, scale: float) -> _Plan:
    if weighting is not None and _counts(weighting):
        k1 = weighting.k1
        return _Plan(1 / scale, 0, {"k1": scale * k1, "b": weighting.b}, (1 + k1) / (1 + scale * k1))
    bits = _DOCUMENT_BITS if weighting is None else _IMPACT_BITS
    step = float(matrix.data.max(initial=0)) / (2**bits - 1) or 1.0
    return _Plan(step, 1, {}, step)


def _compress(folder: Path, plan: _Plan) -> None:
    """Has PISA make what it searches, and removes what it was made of."""
    raw = [folder / name for name in ("inv.docs", "inv.freqs", "inv.sizes")]
    # what is compressed is smaller, but for lists of a posting or two; what prunes takes some bytes a list
    _reserve(folder, sum(path.stat().st_size for path in raw) + 4 * (folder / "fwd.termlex").stat().st_size)
    _retriever(folder, plan)
    for path in raw:
        path.unlink()


def _reserve(folder: Path, size: int) -> None:
    """Raises OSError where so many bytes cannot be written: PISA ends the process, without a word, on a full disk."""
    room = folder / "room"
    try:
        with room.open("wb") as out:
            os.posix_fallocate(out.fileno(), 0, size)
    finally:
        room.unlink(missing_ok=True)


def write_inverted(folder: Path, levels: Array, matrix: Matrix) -> None:
    """Writes what PISA compresses: postings by term, lengths of documents, and names.

    Documents are called by their positions and terms by their numbers, so that no name can break a file of names.

    Args:
        folder: to write into.
        levels: integers of all postings; those of 0 are left out.
        matrix: (documents, terms) CSR that says where they are.
    """
    from scipy.sparse import csr_array

    lengths = np.minimum(row_sums(levels, matrix.indptr), _LARGEST)  # a dot product does not look at them
    inverted = csr_array((levels, matrix.indices, matrix.indptr), shape=matrix.shape).tocsc()
    inverted.eliminate_zeros()
    sizes = np.diff(inverted.indptr)
    used = np.flatnonzero(sizes)
    sizes = sizes[used]
    # each term's postings follow their number
    heads = np.cumsum(sizes + 1) - (sizes + 1)
    for name, first, values in (("inv.docs", [1, len(lengths)], inverted.indices), ("inv.freqs", [], inverted.data)):
        rows = np.empty(len(values) + len(used), dtype="<u4")
        body = np.ones(len(rows), dtype=bool)
        body[heads] = False
        rows[heads], rows[body] = sizes, values
        with (folder / name).open("wb") as out:
            out.write(np.array(first, dtype="<u4").data)
            out.write(rows.data)
    np.concatenate([[len(lengths)], lengths]).astype("<u4").tofile(folder / "inv.sizes")
    _write_names(folder / "fwd.termlex", used)
    _write_names(folder / "fwd.doclex", np.arange(len(lengths)))


_DIGITS = 10  # so that names are sorted as their numbers are


def _name(number: int) -> str:
    return f"{number:0{_DIGITS}}"


def _write_names(path: Path, numbers: Ints) -> None:
    """Numbers as PISA's table of strings: how many, where each begins, and all of them."""
    digits = numbers[:, None] // 10 ** np.arange(_DIGITS - 1, -1, -1) % 10 + ord("0")
    with path.open("wb") as out:
        out.write(np.array([len(numbers)], dtype="<u8").data)
        out.write((np.arange(len(numbers) + 1) * _DIGITS).astype("<u8").data)
        out.write(digits.astype(np.uint8).data)


def _retriever(folder: Path, plan: _Plan) -> Any:
    """PISA's stage over the files of a folder."""
    from pyterrier_pisa import PisaIndex

    index = PisaIndex(str(folder), stemmer="none", stops="none")
    # integers come as they are, counted as so many terms; the default algorithm is many times slower on long queries
    settings: dict[str, Any] = {"query_weighted": True, "toks_scale": 1.0, "query_algorithm": "maxscore"}
    with silent():
        return index.bm25(**plan.scoring, **settings) if plan.scoring else index.quantized(**settings)


_SILENCE = threading.Lock()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides what compiled code writes to the terminal; of one thread at a time, as handles are the process's."""
    flush = ctypes.CDLL(None).fflush
    with _SILENCE:
        flush(None)  # of others, from before
        nowhere, saved = os.open(os.devnull, os.O_WRONLY), {}
        try:
            for handle in (1, 2):
                with contextlib.suppress(OSError):  # closed, as a service's may be
                    saved[handle] = os.dup(handle)
                    os.dup2(nowhere, handle)
            yield
        finally:
            flush(None)  # what C still holds would come out later
            for handle, copy in saved.items():
                os.dup2(copy, handle)
            for handle in (nowhere, *saved.values()):
                os.close(handle)
