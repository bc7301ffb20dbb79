"""ALIGNER: sparse alignment and token salience (Qian et al. 2022, "Multi-Vector Retrieval as Sparse Alignment").

arXiv 2211.01267. Query and document tokens align pairwise (top-k or top-p), tokens have learned saliences, and both
factors multiply: ``sim(Q, D) = (1 / Z) sum_ij S_ij A_ij`` with ``A = T * (u v^T)`` and ``Z = sum A`` (equations 1, 2).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders.importance import Importance, from_dict, named
from pyterrier_mvret.encoders.pruning import Pruning
from pyterrier_mvret.encoders.salience import SalienceSettings
from pyterrier_mvret.encoders.stages import DocEncoder, QueryEncoder
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.indexes.stages import scoring_by
from pyterrier_mvret.model import TokenModel
from pyterrier_mvret.scoring import Alignment, TopK, align_grid, rule_of
from pyterrier_mvret.scoring.aligned import AlignOver, Normalizer
from pyterrier_mvret.scoring.salience import Gate
from pyterrier_mvret.scoring.strategies import Strategy
from pyterrier_mvret.training import GRID, Adaptation, Contrastive, choose
from pyterrier_mvret.training.measures import parsed
from pyterrier_mvret.training.stages import TrainableScorer

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.indexes.multivec import MultiVecIndex

Refine = Literal["pruned", "full"]


class Aligner(TokenModel):
    """Each query token aligns with several document tokens, and tokens have saliences.

    Scores are weighted means of cosines, so at most 1; with ``normalizer="query"`` at most the largest salience of a
    document token, which has no bound. Works with every multi-vector checkpoint: alignment and pruning need no
    training. Saliences come from heads that :meth:`fit_encoder` trains; without them all tokens weigh alike, and
    ``TopK(1)`` ranks as ColBERT does.

    Args:
        encoder: a :class:`TokenEncoder`, or what its first argument may be (a folder, a name on the Hub, a model).
        alignment: :class:`TopK`, :class:`TopP`, :class:`Soft`, ``"top-k"`` for ``TopK(1)`` or ``"top-p"`` for
            ``TopP(0.01)``; :meth:`fit` chooses one by a few judged topics.
        normalizer: what scores are divided by where tokens have saliences: ``"alignment"`` (the paper's) or
            ``"query"``; see :func:`~pyterrier_mvret.scoring.align_packed`.
        align_over: ``"all"`` document tokens (the paper's) or ``"salient"`` ones alone.
        salience: whether saliences weigh in scores; False leaves them for pruning alone.
        query_keep: share of query tokens that are kept; none keeps all.
        doc_keep: share of document tokens that are kept: an index shrinks to it.
        keep_by: what ranks tokens for that: ``"salience"`` (the paper's; the default where the encoder has heads),
            ``"attention"`` received (the default where it has none), an
            :class:`~pyterrier_mvret.encoders.importance.IDF`, or the controls ``"first"`` and ``"random"``.
        verbose: progress bars.
        **settings: those of :class:`TokenEncoder`, where ``encoder`` is not one already.

    Raises:
        ValueError: a setting out of range, settings for an encoder that is already made, or other than those it was
            saved with.

    >>> import pyterrier_mvret as mv
    >>> aligner = mv.Aligner(mv.models.MINILM, mv.TopK(2), doc_keep=0.5)
    >>> documents = pd.DataFrame({"docno": ["d"], "text": ["A cat sat on the mat."]})
    >>> aligner.doc_encoder()(documents)["doc_embs"][0].shape, aligner.doc_encoder(refine="full").pruning
    ((5, 384), None)
    """

    def __init__(
        self,
        encoder: "TokenEncoder | str | Path | MultiVectorEncoder",
        alignment: str | Strategy = "top-k",
        *,
        normalizer: Normalizer = "alignment",
        align_over: AlignOver = "all",
        salience: bool = True,
        query_keep: float | None = None,
        doc_keep: float | None = None,
        keep_by: str | Importance | None = None,
        verbose: bool = False,
        **settings: Any,
    ):
        self._take(encoder, settings)
        self.alignment, self.normalizer, self.align_over = alignment, normalizer, align_over
        self.salience = salience
        self.query_keep, self.doc_keep = query_keep, doc_keep
        self.keep_by, self.verbose = keep_by, verbose
        self._check_saved(encoder)
        self.scoring, self.pruning  # noqa: B018 (say at once what is out of range)

    @property
    def scoring(self) -> Alignment:
        """The rule that turns vectors into scores."""
        return Alignment(self.alignment, self.normalizer, self.align_over, self.salience)

    @property
    def pruning(self) -> Pruning | None:
        """Which tokens are kept; none keeps all."""
        kept = Pruning(None if self.keep_by is None else named(self.keep_by), self.query_keep, self.doc_keep)
        return None if kept.query is None and kept.document is None else kept

    # ------------------------------------------------------------------ verbs

    def query_encoder(self, refine: Refine = "pruned") -> QueryEncoder:
        """Q (or R) with ``query`` -> the same with ``query_embs``, and ``query_weights`` where there are heads.

        Args:
            refine: ``"pruned"`` keeps ``query_keep`` of the tokens; ``"full"`` keeps all, for the stage of the paper
                that refines what a pruned search found with all vectors of query and document.
        """
        return QueryEncoder(self.encoder, self.verbose, self.salience, self._pruning(refine))

    def doc_encoder(self, text_field: str = "text", refine: Refine = "pruned") -> DocEncoder:
        """D with text -> D with ``doc_embs``, and ``doc_weights`` where there are heads; see :meth:`query_encoder`.

        Saliences are those of the whole text, also where only some of its tokens are kept.
        """
        return DocEncoder(self.encoder, self.scoring, text_field, self.verbose, self.salience, self._pruning(refine))

    def text_scorer(self, text_field: str = "text", refine: Refine = "pruned", **training: Any) -> TrainableScorer:
        """R with ``query`` and text -> R, encoding both now, with the tokens that :meth:`query_encoder` says.

        It is also a :class:`pyterrier.Estimator`, as ``text_scorer`` of ColBERT; ``training`` are keywords of
        :meth:`fit_encoder` and of :func:`~pyterrier_mvret.training.groups`.

        >>> import pyterrier_mvret as mv
        >>> results = pd.DataFrame([{"qid": "1", "query": "a cat", "docno": "d", "text": "A cat sat."}])
        >>> alike = mv.Aligner(mv.models.MINILM), mv.ColBERT(mv.models.MINILM, normalize="query")
        >>> [round(float(model.text_scorer()(results)["score"][0]), 3) for model in alike]
        [0.87, 0.87]
        """
        self._pruning(refine)
        return TrainableScorer(self, text_field, self.verbose, training or None, refine)

    def _pruning(self, refine: Refine) -> Pruning | None:
        if refine not in ("pruned", "full"):
            raise ValueError(f"refine must be 'pruned' or 'full', got {refine!r}")
        return self.pruning if refine == "pruned" else None

    # ------------------------------------------------------------------ few-shot adaptation

    def fit(
        self,
        topics: pd.DataFrame,
        qrels: pd.DataFrame,
        index: "MultiVecIndex | None" = None,
        *,
        retriever: pt.Transformer | None = None,
        grid: Sequence[str | Strategy] = GRID,
        measure: Any = "nDCG@10",
        margin: float = 1.0,
        num_results: int = 1000,
    ) -> "Aligner":
        """Chooses the alignment by a few judged topics (few-shot alignment adaptation, section 4.2 of the paper).

        Candidates are retrieved once, and scored by every strategy. Eight topics are the paper's number. Evaluate on
        others than these.

        Args:
            topics: ``qid`` and ``query``.
            qrels: their judgements; a topic without a relevant document says nothing, and is left out.
            index: where vectors are; without it texts that ``retriever`` returns are encoded.
            retriever: a pipeline that finds candidates for topics (``bm25 % 100``, say); none searches ``index``, by
                the best document token of each query token.
            grid: strategies; the paper's nine by default.
            measure: of ir_measures, or its name.
            margin: how clear the evidence must be to leave ``TopK(1)``, in standard errors: see
                :func:`~pyterrier_mvret.training.choose`. 0 is the paper's rule.
            num_results: candidates a topic where ``index`` is searched.

        Returns:
            The model itself, with the alignment that was chosen; ``adaptation`` has the whole grid.

        Raises:
            ValueError: neither an index nor a retriever, an index of another encoder or without the weights that
                the model scores by, no judged topic, or as ``choose``.

        >>> import pyterrier_mvret as mv
        >>> documents = [{"docno": "a", "text": "Cats purr."}, {"docno": "b", "text": "The bank raised its rates."}]
        >>> topics = pd.DataFrame({"qid": ["1", "2"], "query": ["feline pets", "interest"]})
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "b"], "label": [1, 1]})
        >>> candidates = pt.apply.generic(lambda q: q.merge(pd.DataFrame(documents), how="cross"))
        >>> aligner = mv.Aligner(mv.models.MINILM).fit(topics, qrels, retriever=candidates)
        >>> aligner.alignment, len(aligner.adaptation.table)
        (TopK(1), 9)
        """
        pt.validate.query_frame(topics, ["query"])
        pt.validate.columns(qrels, includes=["qid", "docno", "label"])
        measure = parsed(measure)  # says what is no measure before anything is retrieved
        relevant = qrels.loc[qrels["label"] > 0, "qid"]
        asked = topics[topics["qid"].isin(relevant)]
        if not len(asked):
            raise ValueError("none of the topics has a relevant document in qrels")
        if index is not None:
            scoring_by(self, index.store)  # says what does not fit
        queries = self.query_encoder()
        if retriever is None:
            if index is None:
                raise ValueError("give an index, or a retriever that finds candidates (with their text)")
            first = Alignment(TopK(1), self.normalizer, self.align_over, self.salience)
            candidates = (queries >> index.retriever(first, num_results=num_results))(asked)
        else:
            candidates = queries(retriever(asked))  # anew, where another model's vectors found them
        vectors = self.doc_encoder() if index is None else index.vec_loader()
        scores = np.empty((len(grid), len(candidates)))
        for rows, part in self._scored(candidates, vectors, grid):
            scores[:, rows] = part
        judged = qrels[qrels["qid"].isin(asked["qid"])]
        self.adaptation = choose(candidates, scores, judged, grid, measure, margin)
        self.alignment = self.adaptation.alignment
        return self

    #: what the last :meth:`fit` saw: each strategy's measure, and the topics' values
    adaptation: Adaptation | None = None

    def _scored(
        self, candidates: pd.DataFrame, vectors: pt.Transformer, grid: Sequence[str | Strategy]
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[Any]]]:
        """Each query's rows, and their scores by each strategy: (strategies, rows)."""
        groups = list(frames.query_groups(candidates))
        for qid, rows in pt.tqdm(groups, desc="adapting", unit="q", disable=not self.verbose):
            documents = vectors(candidates.iloc[rows])
            embs = documents[frames.DOC_EMBS].tolist()
            query = frames.first_value(candidates[frames.QUERY_EMBS], rows, qid)
            u = frames.query_weights(candidates, rows, len(query))
            weights = documents.get(frames.DOC_WEIGHTS)
            v = None if weights is None else np.concatenate(weights.tolist())
            offsets = np.concatenate([[0], np.cumsum([len(e) for e in embs])])
            how: dict[str, Any] = {"normalizer": self.normalizer, "align_over": self.align_over}
            how |= {"query_weights": u, "doc_weights": v} if self.salience else {}
            yield rows, align_grid(query, np.concatenate(embs), offsets, grid, **how)

    def get_parameter(self, name: str) -> Any:
        """A setting of scoring, for ``pt.GridSearch(pipeline, {aligner: {"alignment": [...]}}, topics, qrels)``.

        Raises:
            ValueError: any other, as stages made before would not follow.
        """
        if name not in ("alignment", "normalizer", "align_over"):
            raise ValueError(f"alignment, normalizer and align_over can be searched, got {name!r}")
        return getattr(self, name)

    def set_parameter(self, name: str, value: Any) -> None:
        """Changes a setting, also for the stages made before that score by this model."""
        self.get_parameter(name)
        setattr(self, name, value)

    # ------------------------------------------------------------------ training

    def fit_encoder(
        self,
        data: "Dataset",
        valid: Any = None,
        *,
        gate: Gate = "lp",
        alpha_q: float = 0.5,
        alpha_d: float = 0.4,
        epsilon: float = 0.002,
        head_seed: int = 0,
        **settings: Any,
    ) -> "Aligner":
        """Trains the encoder with the alignment in its loss, and salience heads with it; an index must be built anew.

        Args:
            data: a training set, as for ``fit`` of ColBERT.
            valid: as there; results are scored by all tokens, whatever ``query_keep`` and ``doc_keep`` are.
            gate: how gates of salience open (:func:`~pyterrier_mvret.scoring.salience.saliences`): ``"lp"`` is the
                paper's; ``"relu"``, ``"hard"`` and ``"l1"`` (with ``l1=``) are compared there; ``"none"`` attaches no
                heads, and those that are there weigh all tokens alike. With ``salience=False`` in the constructor none
                are attached either.
            alpha_q: share of a query's tokens for which gates open.
            alpha_d: the same of a document's.
            epsilon: weight of the entropy in the gates' program.
            head_seed: of the heads' first weights; heads that are there go on from theirs.
            **settings: as for :func:`~pyterrier_mvret.training.fit`. Scores lie in [-1, 1], so the default loss is
                ``Contrastive(scale=20)``; salience heads learn at 1e-2 (our choices: the paper gives neither), or
                at what ``learning_rate_mapping={"_salience": ...}`` says. ``train="salience"`` trains the heads alone,
                at ``learning_rate``.

        Returns:
            The model itself; ``history`` has the curves.

        >>> import pyterrier_mvret as mv
        >>> aligner = mv.Aligner(mv.models.MINILM, init_projection=8)
        >>> topics = pd.DataFrame({"qid": ["1", "2"], "query": ["feline pets", "interest"]})
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "b"], "label": [1, 1]})
        >>> data = mv.training.pairs(topics, qrels, {"a": "Cats purr.", "b": "The bank raised its rates."})
        >>> aligner.fit_encoder(data, train="head", max_steps=2, batch_size=2, verbose=False).history["step"].tolist()
        [1, 2]
        >>> aligner.doc_encoder()(pd.DataFrame({"docno": ["a"], "text": ["Cats purr."]}))["doc_weights"][0].shape
        (6,)
        """
        heads = SalienceSettings(gate, alpha_q, alpha_d, epsilon, head_seed)
        settings = {"loss": Contrastive(scale=20), **settings}
        if self.salience and (gate != "none" or self.encoder.has_salience):
            settings = {"prepare": heads, **settings}
            if settings.get("train") != "salience":  # alone, they have the learning rate for themselves
                rates = {r"_salience\.": 1e-2, **settings.get("learning_rate_mapping", {})}
                settings["learning_rate_mapping"] = rates
        return super().fit_encoder(data, valid, **settings)

    # ------------------------------------------------------------------ files

    def _settings(self) -> dict[str, Any]:
        """The model's own settings as plain data."""
        own = {**super()._settings(), **self.scoring.describe()}
        if self.pruning is not None:
            own |= {"query_keep": self.pruning.query, "doc_keep": self.pruning.document}
        return {**own, "keep_by": None if self.keep_by is None else named(self.keep_by).to_dict()}

    @classmethod
    def _arguments(cls, settings: dict[str, Any]) -> dict[str, Any]:
        by = settings["keep_by"]
        alignment = rule_of({"alignment": settings["alignment"]})
        assert isinstance(alignment, Alignment)
        return {**settings, "alignment": alignment.strategy, "keep_by": None if by is None else from_dict(by)}
