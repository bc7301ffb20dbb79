"""The pipeline stages of a :class:`MultiVecIndex`; users get them from its verbs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component, Configured

if TYPE_CHECKING:
    from pyterrier_mvret.indexes.multivec import MultiVecIndex
    from pyterrier_mvret.scoring import MaxSim

Array = npt.NDArray[Any]
# vectors decoded to float32 at once: a few tens of megabytes at common dimensions
_BLOCK_VECTORS = 1 << 15


class MultiVecIndexer(Configured, pt.Indexer):
    """Ends an indexing pipeline; see :meth:`MultiVecIndex.indexer`."""

    def __init__(self, target: "MultiVecIndex", mode: Any = "create"):
        self.target, self.mode = target, mode

    def index(self, iter: Iterable[Any]) -> "MultiVecIndex":
        """Builds the index and returns it."""
        return self.target.index(iter, mode=self.mode)

    def index_inputs(self) -> list[list[str]]:
        """The columns that indexing needs."""
        return self.target.index_inputs()

    def schematic(self, *, input_columns: list[str] | None = None) -> dict[str, Any]:
        """What PyTerrier's drawing shows."""
        return {"label": "MultiVecIndex", "help_url": None}


class _QueryStage(Component):
    """What stages that read ``query_embs`` share."""

    source: "MultiVecIndex"
    model: Any

    def _scoring(self) -> "MaxSim":
        if self.model is None:
            return self.source.scoring
        encoder = getattr(self.model, "encoder", None)
        if encoder is not None:
            self.source.check_space(encoder.space, "the model")
        return getattr(self.model, "scoring", self.model)

    def _queries(self, inp: pd.DataFrame) -> Iterator[tuple[Array, Array, Array | None]]:
        """Each query's row positions, vectors and token weights (or none), each checked."""
        if frames.QUERY_ENCODER in inp.columns:
            for space in inp[frames.QUERY_ENCODER].dropna().unique():
                self.source.check_space(space, "the queries")
        dim = self.source.manifest["dim"]
        for qid, rows in frames.query_groups(inp):
            vectors = frames.matrix(
                frames.first_value(inp[frames.QUERY_EMBS], rows, qid), f"{frames.QUERY_EMBS} of query {qid!r}"
            )
            if dim is not None and vectors.shape[1] != dim:
                raise ValueError(f"query {qid!r} has vectors of {vectors.shape[1]} dimensions, the index {dim}")
            weights = None
            if frames.QUERY_WEIGHTS in inp.columns:
                weights = np.asarray(frames.first_value(inp[frames.QUERY_WEIGHTS], rows, qid), dtype=np.float32)
                if weights.shape != (len(vectors),) or not np.isfinite(weights).all():
                    raise ValueError(f"{frames.QUERY_WEIGHTS} of query {qid!r} must be {len(vectors)} finite numbers")
            yield rows, vectors, weights


class MultiVecRetriever(_QueryStage):
    """Exact end-to-end retrieval; see :meth:`MultiVecIndex.retriever`."""

    _label = "MultiVecRetriever"
    _not_identity: ClassVar[tuple[str, ...]] = ("verbose", "batch_size")

    def __init__(
        self,
        source: "MultiVecIndex",
        model: Any = None,
        num_results: int | None = 1000,
        batch_size: int = 64,
        verbose: bool = False,
    ):
        if num_results is not None and num_results < 1:
            raise ValueError(f"num_results must be at least 1, or None for all, got {num_results}")
        self.source, self.model = source, model
        self.num_results, self.batch_size, self.verbose = num_results, batch_size, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Q with ``query_embs`` -> R."""
        pt.validate.query_frame(inp, [frames.QUERY_EMBS], context=self)
        if not len(inp):
            return frames.ranked_frame(inp, [])
        queries = list(self._queries(inp))
        scoring = self._scoring()
        hits: list[tuple[Sequence[str], Array]] = []
        batches = range(0, len(queries), self.batch_size)
        for start in pt.tqdm(batches, desc="retrieving", unit="batch", disable=not self.verbose):
            hits += self._search(queries[start : start + self.batch_size], scoring)
        firsts = np.array([rows[0] for rows, _, _ in queries])
        return frames.ranked_frame(inp.iloc[firsts], hits)

    def _search(self, batch: list[Any], scoring: "MaxSim") -> list[tuple[Sequence[str], Array]]:
        """The best documents of each query; one pass over the index serves them all."""
        vectors = np.concatenate([v for _, v, _ in batch])
        offsets = np.concatenate([[0], np.cumsum([len(v) for _, v, _ in batch])])
        weights = None
        if any(w is not None for _, _, w in batch):
            weights = np.concatenate([np.ones(len(v), np.float32) if w is None else w for _, v, w in batch])
        best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in batch]
        for first, block, block_offsets in self.source.store.blocks(_BLOCK_VECTORS):
            scores = scoring.matrix(vectors, offsets, block, block_offsets, weights)
            filled = np.flatnonzero(np.diff(block_offsets))  # a document without vectors matches nothing
            for i, (old_scores, old_positions) in enumerate(best):
                best[i] = self._keep(
                    np.concatenate([old_scores, scores[i, filled]]), np.concatenate([old_positions, first + filled])
                )
        return [self._ranked(scores, positions) for scores, positions in best]

    def _keep(self, scores: Array, positions: Array) -> tuple[Array, Array]:
        """Those that can still be among the best: ties at the cut stay, until names decide."""
        k = self.num_results
        if k is None or len(scores) <= k:
            return scores, positions
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = scores >= cut
        return scores[kept], positions[kept]

    def _ranked(self, scores: Array, positions: Array) -> tuple[Sequence[str], Array]:
        names = self.source.store.names(positions)
        order = np.lexsort((np.array(names, dtype=object), -scores))[: self.num_results]
        return [names[i] for i in order], scores[order]

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """``retriever % k`` retrieves k."""
        if self.num_results is None or k < self.num_results:
            return self._replace(num_results=k)
        return None


class MultiVecScorer(_QueryStage):
    """Rescoring from stored vectors; see :meth:`MultiVecIndex.scorer`."""

    _label = "MultiVecScorer"

    def __init__(self, source: "MultiVecIndex", model: Any = None, verbose: bool = False):
        self.source, self.model, self.verbose = source, model, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with ``query_embs`` and ``docno`` -> R."""
        pt.validate.result_frame(inp, [frames.QUERY_EMBS], context=self)
        if not len(inp):
            return frames.with_scores(inp, np.empty(0))
        scoring = self._scoring()
        positions = positions_of(self.source, inp["docno"])
        scores = np.empty(len(inp), dtype=np.float64)
        queries = list(self._queries(inp))
        for rows, vectors, weights in pt.tqdm(queries, desc="scoring", unit="q", disable=not self.verbose):
            mine = positions[rows]
            ends = np.cumsum(self.source.store.lengths(mine))
            start = 0
            while start < len(mine):  # in blocks: a query may have any number of documents
                budget = (ends[start - 1] if start else 0) + _BLOCK_VECTORS
                end = max(start + 1, int(np.searchsorted(ends, budget, side="right")))
                packed, offsets = self.source.store.gather(mine[start:end])
                scores[rows[start:end]] = scoring.scores(vectors, packed, offsets, weights)
                start = end
        return frames.with_scores(inp, scores)


class VecLoader(Component):
    """Stored vectors as columns; see :meth:`MultiVecIndex.vec_loader`."""

    _label = "VecLoader"

    def __init__(self, source: "MultiVecIndex"):
        self.source = source

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Frames with ``docno`` -> the same with ``doc_embs``."""
        pt.validate.columns(inp, includes=["docno"], context=self)
        arrays = {frames.DOC_TOK_IDS: "token_ids", frames.DOC_TOK_OFFSETS: "token_offsets"}
        if not self.source.built():  # inspection of a pipeline whose index is still to come
            wanted = {c: a for c, a in arrays.items() if c in self.source.index_inputs()[0]}
        else:
            keeps = {"token_ids": "store_ids", "token_offsets": "store_offsets"}
            wanted = {c: a for c, a in arrays.items() if self.source.manifest[keeps[a]]}
        if not len(inp):
            nothing = {c: frames.object_column([], inp.index) for c in [frames.DOC_EMBS, *wanted]}
            return inp.assign(**nothing)
        positions = positions_of(self.source, inp["docno"])
        store = self.source.store
        columns = {frames.DOC_EMBS: store.gather(positions)}
        columns |= {column: store.gather_array(positions, array) for column, array in wanted.items()}
        return inp.assign(
            **{
                name: frames.object_column((p[o[i] : o[i + 1]] for i in range(len(inp))), inp.index)
                for name, (p, o) in columns.items()
            }
        )

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Rows that a cutoff drops need no vectors: the cutoff goes first."""
        return pt.RankCutoff(k) >> self


def positions_of(index: "MultiVecIndex", docnos: pd.Series) -> npt.NDArray[np.int64]:
    """Positions of documents in the index.

    Raises:
        ValueError: documents that are not in it, with the first names.
    """
    names = docnos.tolist()
    positions = index.store.positions(names)
    unknown = np.flatnonzero(positions < 0)
    if len(unknown):
        some = ", ".join(repr(names[i]) for i in unknown[:3])
        raise ValueError(f"{len(unknown)} of {len(names)} documents are not in {index.path}: {some}, ...")
    return positions
