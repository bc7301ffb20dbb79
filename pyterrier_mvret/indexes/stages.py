"""The pipeline stages of a :class:`VectorIndex`; users get them from the verbs of its subclasses."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.indexes.extras import EXTRAS
from pyterrier_mvret.indexes.ranking import keep_best, ranked
from pyterrier_mvret.indexes.segmented import SegmentIndexer
from pyterrier_mvret.scoring import MaxSim, ScoringRule, rule_of

if TYPE_CHECKING:
    from pyterrier_mvret.indexes.store import Store
    from pyterrier_mvret.indexes.vector_index import VectorIndex

Array = npt.NDArray[Any]
# documents scored before the best are sorted out: their scores, a row a query, stay in cache
_BLOCK_DOCUMENTS = 4096
# candidates that "auto" scores exactly: at least so many, and one document of so many (benchmarks/end_to_end.json)
AUTO_CANDIDATES = 4096
_AUTO_SHARE = 32


class MultiVecIndexer(SegmentIndexer):
    """Ends an indexing pipeline; see :meth:`MultiVecIndex.indexer`."""


class _QueryStage(Component):
    """What stages that read queries' vectors share. ``store`` is taken once a call: no search sees two indexes."""

    source: "VectorIndex"
    model: Any

    def _queries(
        self, inp: pd.DataFrame, store: "Store", scoring: ScoringRule
    ) -> Iterator[tuple[Array, Array, Array | None]]:
        """Each query's row positions, vectors and token weights (or none) as the rule reads them, each checked."""
        columns = self.source.columns
        needed = self._weighs_queries(store, scoring)
        ignored = not columns.weighed or (not isinstance(scoring, MaxSim) and not scoring.salience)
        if columns.query_encoder in inp.columns:
            for space in frames.numbered(inp[columns.query_encoder])[1]:
                store.check_space(space, "the queries")
        column = inp[columns.query]
        for qid, rows in frames.query_groups(inp):
            vectors = columns.rows(frames.first_value(column, rows, qid), f"{columns.query} of query {qid!r}")
            if store.dim is not None and vectors.shape[1] != store.dim:
                raise ValueError(f"query {qid!r} has vectors of {vectors.shape[1]} dimensions, the index {store.dim}")
            weights = None if ignored else frames.query_weights(inp, rows, len(vectors))
            if needed and weights is None:
                raise ValueError(
                    f"query {qid!r} has no {frames.QUERY_WEIGHTS}, and the model scores by them: encode it with the "
                    "model's own query_encoder(), or score with salience=False"
                )
            yield rows, vectors, weights

    def _weighs_queries(self, store: "Store", scoring: ScoringRule) -> bool:
        """Whether it is a model with saliences that scores: the one given, or the one that built the index."""
        encoder = getattr(self.model, "encoder", None)
        if self.model is None:
            return scoring.salience and bool(store.manifest["encoder"] and store.manifest.get("store_weights"))
        return encoder is not None and scoring.salience and encoder.has_salience


def scoring_by(model: Any, store: "Store") -> ScoringRule:
    """The rule by which a model scores an index; none stands for the model that built it.

    Raises:
        ValueError: the index is of another encoder, or lacks the weights of document tokens that the model scores by.
    """
    if model is None:
        return scoring_of(store)
    scoring, encoder = getattr(model, "scoring", model), getattr(model, "encoder", None)
    if encoder is not None:
        store.check_space(encoder.space, "the model")
        if scoring.salience and encoder.has_salience and len(store) and not store.manifest.get("store_weights"):
            raise ValueError(
                f"{store.path} holds no weights of document tokens, and the model scores by them: build it with "
                "the model's own doc_encoder(), or score with salience=False"
            )
    return scoring


def scoring_of(store: "Store") -> ScoringRule:
    """The scoring rule of the model that built an index; plain MaxSim if none did."""
    return rule_of((store.manifest["encoder"] or {}).get("scoring", {}))


def _checked_model(model: Any) -> Any:
    """A model, a scoring rule, or nothing."""
    if model is None or (not isinstance(model, type) and (hasattr(model, "scoring") or hasattr(model, "matrix"))):
        return model
    raise ValueError(f"expected a model (such as ColBERT) or a scoring rule (such as MaxSim), got {model!r}")


class MultiVecRetriever(_QueryStage):
    """Exact end-to-end retrieval; see :meth:`MultiVecIndex.retriever`."""

    _not_identity: ClassVar[tuple[str, ...]] = ("verbose", "batch_size")

    def __init__(
        self,
        source: "VectorIndex",
        model: Any = None,
        num_results: int | None = 1000,
        batch_size: int = 64,
        verbose: bool = False,
        candidates: int | Literal["auto"] | None = "auto",
        device: str | None = None,
    ):
        if num_results is not None and (not isinstance(num_results, int | np.integer) or num_results < 1):
            raise ValueError(f"num_results must be an integer of at least 1, or None for all, got {num_results!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.source, self.model = source, _checked_model(model)
        number = isinstance(candidates, int | np.integer) and not isinstance(candidates, bool) and candidates >= 1
        if not (number or candidates in (None, "auto")):
            raise ValueError(f"candidates must be an integer of at least 1, 'auto' or None for all, got {candidates!r}")
        self.num_results, self.batch_size, self.verbose = num_results, batch_size, verbose
        self.candidates, self.device = candidates, device

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Q with queries' vectors -> R."""
        pt.validate.query_frame(inp, [self.source.columns.query], context=self)
        if not len(inp):
            return frames.ranked_frame(inp, [])
        store = self.source.store
        scoring = scoring_by(self.model, store)
        queries = list(self._queries(inp, store, scoring))
        hits: list[tuple[Sequence[str], Array]] = []
        candidates = self._to_score(store, scoring)
        batches = range(0, len(queries), self.batch_size)
        for start in pt.tqdm(batches, desc="retrieving", unit="batch", disable=not self.verbose):
            batch = queries[start : start + self.batch_size]
            if candidates is None:
                hits += self._search(batch, scoring, store)
            else:
                hits += [self._rescored(query, weights, candidates, scoring, store) for _, query, weights in batch]
        firsts = np.array([rows[0] for rows, _, _ in queries])
        return frames.ranked_frame(inp.iloc[firsts], hits)

    def _to_score(self, store: "Store", scoring: ScoringRule) -> int | None:
        """Documents to be scored exactly; none for all.

        Raises:
            ValueError: candidates asked for where nothing can pick them.
        """
        possible = store.quantized > 0 and store.takes_products(scoring)
        if self.candidates == "auto":
            if not (possible and store.ranked_by_codes(scoring)) or self.num_results is None:
                return None
            count = max(AUTO_CANDIDATES, store.quantized // _AUTO_SHARE, self.num_results)
            # picking pays only if it leaves most documents out
            return count if store.quantized >= 2 * count else None
        if self.candidates is not None and not possible:
            reason = "distances of vectors that are not of length one" if store.quantized else "without quantize=True"
            raise ValueError(f"{self.source.path} cannot pick {self.candidates} candidates: {reason}")
        return self.candidates

    def _rescored(
        self, query: Array, weights: Array | None, candidates: int, scoring: ScoringRule, store: "Store"
    ) -> tuple[Sequence[str], Array]:
        """The best of the documents that look best by their codes, scored exactly."""
        positions = store.candidates(query, weights, candidates)
        scores = store.score(scoring, query, positions, weights, self.device)
        return ranked(scores, positions, self.num_results, store.names)

    def _search(self, batch: list[Any], scoring: ScoringRule, store: "Store") -> list[tuple[Sequence[str], Array]]:
        """The best documents of each query; one pass over the index serves them all."""
        vectors = np.concatenate([v for _, v, _ in batch])
        offsets = np.concatenate([[0], np.cumsum([len(v) for _, v, _ in batch])])
        weights = None
        if any(w is not None for _, _, w in batch):
            weights = np.concatenate([np.ones(len(v), np.float32) if w is None else w for _, v, w in batch])
        found: list[list[tuple[Array, Array]]] = [[] for _ in batch]
        for positions, scores in store.scan(scoring, vectors, offsets, weights, _BLOCK_DOCUMENTS, self.device):
            for parts, mine in zip(found, scores, strict=True):
                parts.append((mine, positions))
                if self.num_results is not None:
                    parts[:] = [keep_best(*_joined(parts), self.num_results)]
        return [ranked(*_joined(parts), self.num_results, store.names) for parts in found]

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """``retriever % k`` retrieves k, if that leaves the candidates as they are: a cutoff changes nothing found."""
        if self.num_results is not None and k >= self.num_results:
            return None
        if self.candidates != "auto":
            return self._replace(num_results=k)
        if self.num_results is None:  # all were scored, and still are
            return self._replace(num_results=k, candidates=None)
        return self._replace(num_results=k) if self.num_results <= AUTO_CANDIDATES else None


class MultiVecScorer(_QueryStage):
    """Rescoring from stored vectors; see :meth:`MultiVecIndex.scorer`."""

    def __init__(self, source: "VectorIndex", model: Any = None, verbose: bool = False):
        self.source, self.model, self.verbose = source, _checked_model(model), verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with queries' vectors and ``docno`` -> R."""
        pt.validate.result_frame(inp, [self.source.columns.query], context=self)
        if not len(inp):
            return frames.with_scores(inp, np.empty(0))
        store = self.source.store
        scoring = scoring_by(self.model, store)
        positions = store.known(inp["docno"].tolist())
        scores = np.empty(len(inp), dtype=np.float64)
        queries = list(self._queries(inp, store, scoring))
        for rows, vectors, weights in pt.tqdm(queries, desc="scoring", unit="q", disable=not self.verbose):
            scores[rows] = store.score(scoring, vectors, positions[rows], weights)
        return frames.with_scores(inp, scores)


class VecLoader(Component):
    """Stored vectors as columns; see :meth:`MultiVecIndex.vec_loader`."""

    def __init__(self, source: "VectorIndex"):
        self.source = source

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Frames with ``docno`` -> the same with documents' vectors."""
        pt.validate.columns(inp, includes=["docno"], context=self)
        columns = self.source.columns
        if not len(inp):
            nothing = {name: frames.object_column([], inp.index) for name in self.source.index_inputs()[0][1:]}
            nothing[columns.doc_encoder] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, columns.doc_group, **nothing)
        store = self.source.store
        positions = store.known(inp["docno"].tolist())
        # copies: one document that is kept must not keep all of them in memory
        vectors, ends = store.gather(positions)
        cells = (columns.cell(vectors[ends[i] : ends[i + 1]]).copy() for i in range(len(inp)))
        loaded: dict[str, Any] = {columns.doc: frames.object_column(cells, inp.index)}
        for field, extra in EXTRAS.items():
            if store.manifest.get(extra.setting):
                rows, ends = store.gather_array(positions, field)
                parts = (rows[ends[i] : ends[i + 1]].copy() for i in range(len(inp)))
                loaded[extra.column] = frames.object_column(parts, inp.index)
        # how the vectors were made goes with them: they may be put into another index
        encoder = store.manifest["encoder"]
        loaded[columns.doc_encoder] = json.dumps(encoder) if encoder else None
        return frames.replaced(inp, columns.doc_group, **loaded)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Rows that a cutoff drops need no vectors: the cutoff goes first."""
        return pt.RankCutoff(k) >> self


def _joined(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if not parts:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    if len(parts) == 1:
        return parts[0]
    scores, positions = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(positions)
