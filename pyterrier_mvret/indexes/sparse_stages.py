"""The pipeline stages of a :class:`SparseIndex`; users get them from its verbs."""

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.indexes.ranking import ranked
from pyterrier_mvret.indexes.segmented import SegmentIndexer
from pyterrier_mvret.indexes.sparse_builder import term_weights
from pyterrier_mvret.scoring.bm25 import BM25

if TYPE_CHECKING:
    from pyterrier_mvret.indexes.sparse import SparseIndex
    from pyterrier_mvret.indexes.sparse_exact import Query
    from pyterrier_mvret.indexes.sparse_store import SparseStore


class SparseIndexer(SegmentIndexer):
    """Ends an indexing pipeline; see :meth:`SparseIndex.indexer`."""


class _QueryStage(Component):
    """What stages that read ``query_toks`` share. ``store`` is taken once a call: no search sees two indexes."""

    source: "SparseIndex"
    weighting: BM25 | None

    def _queries(self, inp: pd.DataFrame, store: "SparseStore") -> list[tuple[npt.NDArray[np.intp], "Query"]]:
        """Each query's row positions, with the numbers and weights of those of its terms that can add to a score."""
        if frames.QUERY_TOKS_ENCODER in inp.columns:
            for space in frames.numbered(inp[frames.QUERY_TOKS_ENCODER])[1]:
                store.check_space(space, "the queries")
        read = []
        for qid, rows in frames.query_groups(inp):
            toks = frames.first_value(inp[frames.QUERY_TOKS], rows, qid)
            read.append((rows, toks, term_weights(toks, f"{frames.QUERY_TOKS} of query {qid!r}").astype(np.float64)))
            odd = frames.first_no_text(list(toks))
            if odd is not None:
                raise ValueError(f"a term of query {qid!r} must be a string of valid Unicode, got {list(toks)[odd]!r}")
        every = list(dict.fromkeys(term for _, toks, _ in read for term in toks))
        numbers = dict(zip(every, self._counting(store, every).tolist(), strict=True))
        return [(rows, _rising([numbers[term] for term in toks], weights)) for rows, toks, weights in read]

    def _counting(self, store: "SparseStore", terms: list[str]) -> npt.NDArray[np.int64]:
        """Numbers of terms, -1 for those that are unknown or have no idf."""
        numbers = store.term_numbers(terms)
        if self.weighting is not None:
            known = np.flatnonzero(numbers >= 0)
            nothing = self.weighting.term_weights(store.statistics, numbers[known]) == 0
            numbers[known[nothing]] = -1
        return numbers


def _rising(numbers: list[int], weights: npt.NDArray[np.float64]) -> "Query":
    """The terms that have a number and weigh something, by their numbers."""
    ids = np.array(numbers, dtype=np.int64)
    kept = np.flatnonzero((ids >= 0) & (weights > 0))
    kept = kept[np.argsort(ids[kept])]
    return ids[kept], weights[kept]


class SparseRetriever(_QueryStage):
    """Retrieval by term weights; see :meth:`SparseIndex.retriever`."""

    _not_identity: ClassVar[tuple[str, ...]] = ("verbose", "batch_size")

    def __init__(
        self,
        source: "SparseIndex",
        weighting: BM25 | None = None,
        num_results: int | None = 1000,
        batch_size: int = 64,
        verbose: bool = False,
    ):
        if num_results is not None and (not isinstance(num_results, int | np.integer) or num_results < 1):
            raise ValueError(f"num_results must be an integer of at least 1, or None for all, got {num_results!r}")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
        self.source, self.weighting = source, checked_weighting(weighting)
        self.num_results, self.batch_size, self.verbose = num_results, batch_size, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Q with ``query_toks`` -> R."""
        pt.validate.query_frame(inp, [frames.QUERY_TOKS], context=self)
        if not len(inp):
            return frames.ranked_frame(inp, [])
        store = self.source.store
        asked = self._queries(inp, store)
        searched = [i for i, (_, (ids, _)) in enumerate(asked) if len(ids)]
        if len(searched) < len(asked):
            warnings.warn(
                f"{len(asked) - len(searched)} of {len(asked)} queries have no term that {store.path} could score by, "
                "and no results",
                stacklevel=2,
            )
        hits: list[Any] = [([], np.empty(0))] * len(asked)
        batches = range(0, len(searched), self.batch_size)
        for first in pt.tqdm(batches, desc="retrieving", unit="batch", disable=not self.verbose):
            batch = searched[first : first + self.batch_size]
            searcher = self.source.searcher(store, self.weighting)
            found = searcher.search([asked[i][1] for i in batch], self.num_results)
            for i, (scores, positions) in zip(batch, found, strict=True):
                hits[i] = ranked(scores, positions, self.num_results, store.names)
        firsts = np.array([rows[0] for rows, _ in asked])
        return frames.ranked_frame(inp.iloc[firsts], hits)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """``retriever % k`` retrieves k: a cutoff changes nothing found."""
        if self.num_results is not None and k >= self.num_results:
            return None
        return self._replace(num_results=k)


class SparseScorer(_QueryStage):
    """Rescoring by stored term weights; see :meth:`SparseIndex.scorer`."""

    def __init__(self, source: "SparseIndex", weighting: BM25 | None = None, verbose: bool = False):
        self.source, self.weighting, self.verbose = source, checked_weighting(weighting), verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with ``query_toks`` and ``docno`` -> R."""
        pt.validate.result_frame(inp, [frames.QUERY_TOKS], context=self)
        if not len(inp):
            return frames.with_scores(inp, np.empty(0))
        store = self.source.store
        positions = store.known(inp["docno"].tolist())
        scores = np.empty(len(inp), dtype=np.float64)
        queries = self._queries(inp, store)
        for rows, (ids, weights) in pt.tqdm(queries, desc="scoring", unit="q", disable=not self.verbose):
            scores[rows] = store.score(self.weighting, ids, weights, positions[rows])
        return frames.with_scores(inp, scores)


def checked_weighting(weighting: Any) -> BM25 | None:
    """A weighting model, or none for the dot product."""
    if weighting is None or isinstance(weighting, BM25):
        return weighting
    raise ValueError(f"weighting must be mv.scoring.BM25(...), or None for the dot product, got {weighting!r}")
