"""Seismic as the engine of a :class:`SparseIndex`: approximate search, exact scores.

Each term's postings are grouped into blocks of similar documents, each with a summary of its largest weights. A query
looks into the lists of its heaviest terms, skips blocks whose summary says that they are not worth it, and scores the
documents of the others in full (Bruch, Nardini, Rulli and Venturini, "Efficient Inverted Indexes for Approximate
Retrieval over Learned Sparse Representations", SIGIR 2024, arXiv 2404.18812).

Seismic stores weights as 16-bit floats, so what it finds is scored again here, in float64 from the stored weights.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes.derived_files import check_folder, making, opened, seal
from pyterrier_mvret.indexes.sparse_exact import Query
from pyterrier_mvret.indexes.sparse_pisa import silent
from pyterrier_mvret.indexes.sparse_store import SparseStore
from pyterrier_mvret.scoring.bm25 import BM25, Matrix

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# what Seismic keeps of a term's postings on average; no list is cut in a collection of so many documents
_POSTINGS = 3500
# of one document: Seismic counts them in 16 bits
_MOST_TERMS = (1 << 16) - 1
# documents found beyond those asked for: some change places when scored again, and ties at the cut are seen
_SLACK = 8
_WRITTEN_AT_ONCE = 1 << 22
_META = {"type": "sparse_index", "format": "seismic", "package_hint": "pyseismic-lsr"}


@dataclass(frozen=True)
class Seismic:
    """The engine ``"seismic"`` with its settings: ``mv.SparseIndex(path, engine=mv.Seismic(query_cut=64))``.

    The method is that of Bruch, Nardini, Rulli and Venturini (SIGIR 2024, arXiv 2404.18812). The package
    ``pyseismic-lsr`` (extra ``seismic``) is MIT-licensed; its authors ask that work which uses it cite their papers.

    Settings change which documents are found, never their scores, and can differ at every opening. Collections of up
    to 3,500 documents are searched in full, whatever they are.

    Args:
        query_cut: how many of a query's heaviest terms are looked up; documents that have only others are not found.
            The authors recommend 10 for queries of words; more is our own choice, as latents weigh more alike
            (``benchmarks/NOTES.md``).
        heap_factor: from 0, which skips no block of documents, to 1 and above: blocks whose summary promises less than
            this part of the last of the best scores so far are skipped.

    Raises:
        ValueError: a setting outside its range.

    >>> Seismic(query_cut=16)
    Seismic(query_cut=16, heap_factor=0.7)
    """

    query_cut: int = 32
    heap_factor: float = 0.7

    def __post_init__(self) -> None:
        if not isinstance(self.query_cut, int | np.integer) or self.query_cut < 1:
            raise ValueError(f"query_cut must be an integer of at least 1, got {self.query_cut!r}")
        if not 0 <= self.heap_factor < np.inf:
            raise ValueError(f"heap_factor must be a finite number of at least 0, got {self.heap_factor!r}")


def require_seismic() -> None:
    """Raises ImportError, naming the extra, where pyseismic-lsr is not installed."""
    try:
        import seismic  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "engine=\"seismic\" needs pyseismic-lsr (pip install 'pyterrier-mvret[seismic]'); "
            'SparseIndex(path, engine="csr") needs nothing more'
        ) from error


class SeismicSearcher:
    """Searches Seismic's index, which is made first where there is none, and held in memory.

    Args:
        store: whose postings they are.
        weighting: how they are scored; none by dot product.
        settings: how much of the index a query looks at.
    """

    def __init__(self, store: SparseStore, weighting: BM25 | None, settings: Seismic):
        require_seismic()
        self._store, self._weighting = store, weighting
        whole = len(store) <= _POSTINGS
        self._cut, self._factor = (store.terms, 0.0) if whole else (settings.query_cut, settings.heap_factor)
        self._index = opened(store.path, key_of(store, weighting), lambda: _derive(store, weighting), _loaded)

    def search(self, queries: Sequence[Query], k: int | None) -> Iterator[tuple[Floats, Ints]]:
        """Scores and positions of about the k best documents of each query (none for all that its terms lead to)."""
        everything = len(self._store) + 1
        depth = everything if k is None else min(k + _SLACK, everything)
        for ids, weights in queries:
            asked = depth
            found, positions = self._found(ids, weights, asked)
            while k is not None and len(found) == asked and found[-1] == found[k - 1]:  # a tie goes on
                asked = min(4 * asked, everything)
                found, positions = self._found(ids, weights, asked)
            yield self._store.score(self._weighting, ids, weights, positions), positions

    def _found(self, ids: Ints, weights: Floats, depth: int) -> tuple[Floats, Ints]:
        """Seismic's own scores, falling, and positions."""
        if self._index is None:
            return np.empty(0), np.empty(0, np.int64)
        parts = (weights / weights.max()).astype(np.float32)  # of any size, they are within float32
        found = self._index.search(ids.astype(np.int32), parts, depth, self._cut, self._factor, 0, True)
        if not found:
            return np.empty(0), np.empty(0, np.int64)
        scores, positions = zip(*found, strict=True)
        return np.array(scores), np.array(positions, dtype=np.int64)


def key_of(store: SparseStore, weighting: BM25 | None) -> str:
    """What Seismic's index depends on."""
    return json.dumps(["seismic", [entry["name"] for entry in store.manifest["segments"]], repr(weighting)])


def _derive(store: SparseStore, weighting: BM25 | None) -> None:
    """Writes Seismic's index into a folder that appears whole or not at all."""
    from seismic import SeismicIndexRawLV

    matrix = store.matrix()
    if weighting is not None:
        matrix = weighting.impacts(matrix, store.statistics).copy()
        matrix.eliminate_zeros()  # terms without idf are never asked for, and have the longest lists
    counts = np.diff(matrix.indptr)
    if counts.max(initial=0) > _MOST_TERMS:
        (docno,) = store.names(counts.argmax(keepdims=True))
        raise ValueError(f"document {docno!r} has {counts.max()} terms, Seismic takes {_MOST_TERMS} at most")
    with making(store.path, key_of(store, weighting), "Seismic") as folder:
        if matrix.nnz:
            vectors = folder / "vectors"
            _write_vectors(vectors, matrix)
            with silent():
                SeismicIndexRawLV.build(str(vectors), n_postings=_POSTINGS).save(str(folder / "index"))
            vectors.unlink()
            (written,) = folder.iterdir()  # with or without a suffix, as releases differ from their documentation
            written.rename(folder / "index")
        seal(folder, _META | {"weighting": repr(weighting), "postings": int(matrix.nnz)})


def _write_vectors(path: Path, matrix: Matrix) -> None:
    """Rows of a CSR matrix as Seismic reads them: how many; then of each its length, term numbers, float32 weights.

    Weights become parts of the largest: as 16-bit floats, others would overflow or vanish.
    """
    largest = float(matrix.data.max())
    offsets = matrix.indptr.astype(np.int64)
    with path.open("wb") as out:
        out.write(np.array([len(offsets) - 1], dtype="<u4").data)
        first = 0
        while first < len(offsets) - 1:
            last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _WRITTEN_AT_ONCE, "right")) - 1)
            mine = slice(offsets[first], offsets[last])
            counts = np.diff(offsets[first : last + 1])
            starts = 2 * (offsets[first:last] - offsets[first]) + np.arange(last - first)
            rows = np.empty(2 * int(counts.sum()) + len(counts), dtype="<u4")
            rows[starts] = counts
            # a row's terms follow its length, its weights follow its terms
            at = np.repeat(starts + 1 - (offsets[first:last] - offsets[first]), counts) + np.arange(int(counts.sum()))
            rows[at] = matrix.indices[mine]
            rows[at + np.repeat(counts, counts)] = (matrix.data[mine] / largest).astype("<f4").view("<u4")
            out.write(rows.data)
            first = last


def _loaded(folder: Path) -> Any:
    """Seismic's index, none where nothing can be found; what is read whole is checked whole."""
    from seismic import SeismicIndexRawLV

    if not check_folder(folder, keys=("postings",), whole=True)["postings"]:
        return None
    with silent():
        return SeismicIndexRawLV.load(str(folder / "index"))
