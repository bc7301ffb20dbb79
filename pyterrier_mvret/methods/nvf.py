"""NVF (Neural Vector Field): a learned query transform before search, and a learned pair scorer after it.

From public notes and code (MIT, December 2025, package ``bbdos.nvf``); there is no paper, and of the second phase there
are no published results. The idea: a vector database is a function from queries to results, so learn it. Stage 1
("peripheral") is soft attention over all documents, which ranks as inner products with a transformed query do; stage 2
("foveal") scores each of the K best by a small network. Residual forms, which start as the plain inner product, are
ours, and the default: the notes' own forms, trained on a few hundred judged queries, lose what the encoder knows
(``benchmarks/nvf_real.json``).
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders.vector_encoder import VectorEncoder
from pyterrier_mvret.pair_model import PairModel
from pyterrier_mvret.pair_stages import PairReranker, QueryMover, SoftResult, known_scores, space_of
from pyterrier_mvret.training.candidate_sets import Missing, asked, candidate_sets, held_out, relevant_sets, unit

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.vector_stages import VecDocEncoder, VecQueryEncoder
    from pyterrier_mvret.scoring.pair_networks import Features

# a transform sees every query in every document: steps of 1e-3 are too long for it
_TRANSFORM_RATE = 1e-4


class NVF(PairModel):
    """Scores pairs of one query vector and one document vector by what was learned about them.

    The vectors are anybody's: columns ``query_vec`` and ``doc_vec``. With ``residual=True`` a score is
    ``q . d + f(q, d) / alpha``, ``alpha`` learned and ``f`` zero before training: an untrained NVF *is* the inner
    product, and training keeps the epoch that is best on validation topics, epoch 0 among them.

    Args:
        encoder: a :class:`VectorEncoder`, or what its first argument may be, for the verbs that read text; none where
            others make the vectors.
        features: what the network reads: ``"concat"`` (option A of the notes), ``"difference"`` (B: both vectors, their
            difference and their product), ``"cross"`` (C: the query attends to all of its candidates, so that scores
            depend on what else was found; not more of them can be reranked than it was trained with).
        hidden: width of the network's first layer.
        residual: add the network's score to what is known; False is the notes' form, which must be trained.
        use_score: what is known is the first stage's score, from 0 to 1 within each query, instead of the inner
            product: for BM25 in front.
        normalize: scale vectors to length one.
        dropout: behind each hidden layer, in training.
        heads: of attention, for ``"cross"``.
        seed: of first weights, order of training rows, dropout: on a CPU equal seeds make equal weights.
        device: where networks are; none is the CPU.
        verbose: progress bars.
        **settings: those of :class:`VectorEncoder`, where ``encoder`` is not one already.

    Raises:
        ValueError: a setting out of range.

    >>> import numpy as np
    >>> nvf = NVF()
    >>> rows = {"qid": "1", "query_vec": [np.array([1.0, 0.0])] * 2, "docno": ["a", "b"], "score": 0.0, "rank": [0, 1]}
    >>> results = pd.DataFrame(rows).assign(doc_vec=[np.array([0.6, 0.8]), np.array([0.8, 0.6])])
    >>> nvf.reranker()(results)[["docno", "rank"]].to_numpy().tolist()
    [['a', 1], ['b', 0]]
    """

    def __init__(
        self,
        encoder: "VectorEncoder | str | Path | Any" = None,
        features: "Features" = "difference",
        hidden: int = 128,
        *,
        residual: bool = True,
        use_score: bool = False,
        normalize: bool = True,
        dropout: float = 0.1,
        heads: int = 4,
        seed: int = 0,
        device: str | None = None,
        verbose: bool = False,
        **settings: Any,
    ):
        from pyterrier_mvret.scoring.pair_networks import check_network

        check_network(features, hidden, dropout, heads)
        if isinstance(encoder, VectorEncoder) or encoder is None:
            if settings:
                raise ValueError(f"{', '.join(settings)}: set on the VectorEncoder that is passed, not beside it")
            self.encoder: VectorEncoder | None = encoder
        else:
            self.encoder = VectorEncoder(encoder, **settings)
        self.features, self.hidden, self.residual, self.use_score = features, hidden, residual, use_score
        self.normalize, self.dropout, self.heads = normalize, dropout, heads
        self.seed, self.device, self.verbose = seed, device, verbose

    # ------------------------------------------------------------------ verbs

    def query_encoder(self) -> "VecQueryEncoder":
        """Q (or R) with ``query`` -> the same with ``query_vec``, by the encoder."""
        return self._the_encoder().query_encoder()

    def doc_encoder(self, text_field: str = "text") -> "VecDocEncoder":
        """D (or R) with text -> the same with ``doc_vec``, by the encoder; the first stage of an indexing pipeline.

        Args:
            text_field: the column with the text.
        """
        return self._the_encoder().doc_encoder(text_field)

    def query_transform(self) -> QueryMover:
        """Q with ``query_vec`` -> Q with vectors moved to where their relevant documents are.

        It works in front of any search by inner product. Before :meth:`fit_query_transform`, vectors stay where they
        are, but have length one.
        """
        return QueryMover(self)

    def retriever(self, index: Any, *, num_results: int = 1000, **settings: Any) -> pt.Transformer:
        """Q with ``query_vec`` -> R: soft attention's ranking of all documents, by exact inner products.

        Softmax and temperature change no order, so this is :meth:`query_transform` and the index's own search.

        Args:
            index: a :class:`~pyterrier_mvret.SingleVecIndex`, or another index of single vectors.
            num_results: documents a query at most.
            **settings: others of ``index.retriever``.
        """
        return self.query_transform() >> index.retriever(num_results=num_results, **settings)

    def soft_result(self, k: int = 10, temperature: float | None = None) -> SoftResult:
        """R with ``query_vec`` and ``doc_vec`` -> Q, one row a query, whose vector is the mean of its k best documents.

        Documents are weighed by ``softmax(q . d / T)``: feedback, to search again with. A query without results has
        no row.

        Args:
            k: documents that are averaged, by rank.
            temperature: T; none is that of the trained query transform, or 0.05.

        >>> import numpy as np
        >>> found = pd.DataFrame({"qid": "1", "docno": ["a", "b"], "score": [1.0, 0.5], "rank": [0, 1]})
        >>> found = found.assign(query_vec=[np.array([1.0, 0.0])] * 2, doc_vec=[np.eye(2)[0], np.eye(2)[1]])
        >>> NVF().soft_result(temperature=0.5)(found)["query_vec"][0].tolist()
        [0.8807..., 0.1192...]
        """
        if temperature is None:
            temperature = 0.05 if self._transform is None else float(self._transform.temperature.detach())
        return SoftResult(k, temperature)

    def reranker(self, **training: Any) -> PairReranker:
        """R with ``query_vec`` and ``doc_vec`` -> R, each pair scored anew; of any first stage.

        It is also a :class:`pyterrier.Estimator`: ``pipeline.fit(topics, qrels, topics_va, qrels_va)`` trains the model
        on what the stages before it return. ``training`` are keywords of :meth:`fit` for that.
        """
        return PairReranker(self, self.verbose, training or None)

    def text_scorer(self, text_field: str = "text", **training: Any) -> pt.Transformer:
        """R with ``query`` and text -> R, encoding both now (columns ``query_vec``, ``doc_vec`` stay)."""
        return self.query_encoder() >> self.doc_encoder(text_field) >> self.reranker(**training)

    def explain(self, query: str, text: str) -> pd.DataFrame:
        """What the score of a text is made of: what is known, and what was learned.

        Returns:
            ``part`` (``"inner product"``, ``"network"``) and ``score``, which adds up to that of :meth:`reranker`.

        Raises:
            ValueError: scores that depend on what else was found (``use_score``, ``"cross"``), or an encoder other than
                that of the training data.

        >>> import pyterrier_mvret as mv
        >>> parts = NVF(mv.models.MINILM).explain("feline pets", "Cats purr.")
        >>> parts["part"].tolist(), float(parts["score"].iloc[1])
        (['inner product', 'network'], 0.0)
        """
        if self.use_score or self.features == "cross":
            raise ValueError("scores depend on what else was found: those of a text alone mean nothing")
        encoder = self._the_encoder()
        self.check_space(encoder.space)
        vectors = encoder.encode_queries([query]), encoder.encode_docs([text])
        score = float(self.scored(*vectors, np.zeros((1, 1), np.int64))[0, 0])
        q, d = (unit(v) if self.normalize else v for v in vectors)
        known = float((q * d).sum()) if self.residual else 0.0
        learned = score - known if self._scorer is not None else 0.0
        return pd.DataFrame({"part": ["inner product", "network"], "score": [known, learned]})

    def _the_encoder(self) -> VectorEncoder:
        if self.encoder is None:
            raise ValueError("NVF has no encoder: pass one, NVF(encoder), or put vectors into the frames otherwise")
        return self.encoder

    # ------------------------------------------------------------------ training

    def fit(
        self,
        results: pd.DataFrame,
        qrels: pd.DataFrame,
        valid_results: pd.DataFrame | None = None,
        valid_qrels: pd.DataFrame | None = None,
        *,
        index: Any = None,
        valid: float = 0.2,
        depth: int | None = None,
        missing: Missing = "inject",
        measure: Any = "nDCG@10",
        warm_start: bool = False,
        verbose: bool | None = None,
        **training: Any,
    ) -> Self:
        """Trains the reranker on what a first stage confuses: its results are the negatives.

        Args:
            results: R with ``query_vec``, and ``doc_vec`` unless there is an index.
            qrels: their judgements.
            valid_results: results of other topics, to choose the epoch by; none holds out a share of the topics.
            valid_qrels: the judgements of these; none takes them from ``qrels``.
            index: with a ``vec_loader()``, to read vectors of documents from; then relevant documents that were not
                retrieved can be put in.
            valid: the share of topics that is held out, of those with a relevant document; 0 keeps the weights of the
                last epoch.
            depth: candidates of a query at most, by rank.
            missing: what to do about relevant documents that were not retrieved: ``"inject"`` or ``"drop"`` (which is
                what the notes do); see :func:`~pyterrier_mvret.training.candidate_sets.candidate_sets`.
            measure: of ir_measures, by which the best epoch is kept.
            warm_start: go on from the weights of the last training, instead of new ones.
            verbose: a progress bar; none is the model's own.
            **training: ``epochs=``, ``batch_size=`` (queries), ``learning_rate=``, ``weight_decay=``, ``patience=``:
                see :class:`~pyterrier_mvret.training.network_loop.NetworkTrainer`.

        Returns:
            The model itself; ``history`` has the curves. Training that fails or is interrupted changes nothing.

        Raises:
            ValueError: no topic with a relevant candidate, vectors that do not fit, a loss that is not finite.
        """
        from pyterrier_mvret.training.network_loop import NetworkTrainer
        from pyterrier_mvret.training.vector_field import fit_scorer

        how = NetworkTrainer(**{"seed": self.seed, **training})
        space = space_of(results, valid_results, index=index)
        if valid_results is None and valid != 0:
            results, valid_results = held_out(results, qrels, valid, self.seed)
        given: dict[str, Any] = {"index": index, "depth": depth, "normalize": self.normalize}
        train = candidate_sets(results, qrels, missing=missing, **given)
        validation = None
        if valid_results is not None:
            judged = qrels if valid_qrels is None else valid_qrels
            validation = candidate_sets(valid_results, judged, missing="keep", **given), _of(judged, valid_results)
            if validation[0].queries.shape[1] != train.queries.shape[1]:
                raise ValueError("the vectors of valid_results are not as long as those of results")
        dim = train.queries.shape[1]
        start = self._scorer if warm_start and self._scorer is not None else None
        space = self._space_beside(dim, space, start, self._transform)
        if self.use_score:
            for frame in (results, valid_results):
                if frame is not None:
                    known_scores(frame)
        network = copy.deepcopy(start) if start is not None else self._new_scorer(dim)
        told = self.verbose if verbose is None else verbose
        history = fit_scorer(network, train, validation, how, use_score=self.use_score, measure=measure, verbose=told)
        self._scorer, self.history, self.space = network, history, space
        self.depth = train.candidates.shape[1]
        return self

    def fit_pairs(
        self,
        pairs: "pd.DataFrame | Iterable[tuple[Any, str]]",
        index: Any,
        *,
        depth: int = 20,
        **training: Any,
    ) -> Self:
        """Trains the reranker without judgements, on query vectors and the documents they should find.

        Candidates are what :meth:`retriever` finds with each vector. Pairs that the encoder already ranks first teach
        nothing: take those that it gets wrong (titles, clicks, generated questions, another encoder's queries).

        Args:
            pairs: a frame with ``query_vec`` and ``docno``, or such pairs; those of equal vectors are one query.
            index: a :class:`~pyterrier_mvret.SingleVecIndex` of the documents.
            depth: candidates of a query.
            **training: as for :meth:`fit`; a share of the pairs is held out for validation.
        """
        topics, qrels = asked(pairs)
        results = self.retriever(index, num_results=depth)(topics)
        return self.fit(results, qrels, index=index, **training)

    def fit_query_transform(
        self,
        topics: "pd.DataFrame | Iterable[tuple[Any, str]]",
        qrels: pd.DataFrame | None = None,
        index: Any = None,
        valid_topics: pd.DataFrame | None = None,
        valid_qrels: pd.DataFrame | None = None,
        *,
        valid: float = 0.2,
        measure: Any = "nDCG@10",
        temperature: float | None = None,
        warm_start: bool = False,
        verbose: bool | None = None,
        **training: Any,
    ) -> Self:
        """Trains the query transform: cross-entropy of relevant documents among all of an index.

        All vectors of the index are held as float32; of more than 65,536 documents, as many are drawn for each step.

        Args:
            topics: Q with ``query_vec``; without qrels, pairs as for :meth:`fit_pairs`.
            qrels: their judgements.
            index: with ``get_corpus_iter()`` of ``docno`` and ``doc_vec``.
            valid_topics: other topics, to choose the epoch by; none holds out a share.
            valid_qrels: the judgements of these; none takes them from ``qrels``.
            valid: the share of topics that is held out, of those with a relevant document; 0 keeps the weights of the
                last epoch.
            measure: by which the best epoch is kept, of the 100 best documents of all.
            temperature: where T starts; none is 0.05, or 1 in the notes' form (``residual=False``).
            warm_start: go on from the weights of the last training.
            verbose: a progress bar; none is the model's own.
            **training: as for :meth:`fit`; ``learning_rate`` is 1e-4.

        Returns:
            The model itself; ``transform_history`` has the curves.

        Raises:
            ValueError: no topic with a relevant document in the index, or as for :meth:`fit`.
        """
        from pyterrier_mvret.training.network_loop import NetworkTrainer
        from pyterrier_mvret.training.vector_field import fit_transform

        how = NetworkTrainer(**{"seed": self.seed, "learning_rate": _TRANSFORM_RATE, **training})
        given: Any = topics
        topics, qrels = asked(given) if qrels is None else (given, qrels)
        pt.validate.columns(topics, includes=["qid", frames.QUERY_VEC])
        if not hasattr(index, "get_corpus_iter"):
            raise ValueError(f"the query transform is trained over an index with get_corpus_iter(), got {index!r}")
        space = space_of(topics, valid_topics, index=index)
        corpus = pd.DataFrame(list(index.get_corpus_iter()), columns=["docno", frames.DOC_VEC])
        documents = frames.vectors(corpus, frames.DOC_VEC)
        documents = unit(documents) if self.normalize else documents
        names = corpus["docno"].tolist()
        if valid_topics is None and valid != 0:
            there = qrels[qrels["docno"].isin(corpus["docno"])]
            topics, valid_topics = held_out(topics, there, valid, self.seed)
        train = relevant_sets(topics, qrels, names, documents, self.normalize)
        validation = None
        if valid_topics is not None:
            judged = qrels if valid_qrels is None else valid_qrels
            found = relevant_sets(valid_topics, judged, names, documents, self.normalize)
            validation = found, _of(judged, valid_topics)
        start = self._transform if warm_start and self._transform is not None else None
        dim = train.queries.shape[1]
        space = self._space_beside(dim, space, start, self._scorer)
        network = copy.deepcopy(start) if start is not None else self._new_transform(dim, temperature)
        told = self.verbose if verbose is None else verbose
        history = fit_transform(network, train, validation, how, measure=measure, verbose=told)
        self._transform, self.transform_history, self.space = network, history, space
        return self


def _of(qrels: pd.DataFrame, topics: pd.DataFrame) -> pd.DataFrame:
    """The judgements of some topics."""
    return qrels[qrels["qid"].isin(topics["qid"])]
