"""Training from within a pipeline."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd
import pyterrier as pt

from pyterrier_mvret.encoders.stages import TextScorer, query_texts
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.scoring import ScoringRule
from pyterrier_mvret.training.data import groups
from pyterrier_mvret.training.losses import named
from pyterrier_mvret.training.teachers import with_teacher

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.pruning import Pruning


class Model(Protocol):
    """What can be fitted, and scores texts."""

    encoder: TokenEncoder

    @property
    def scoring(self) -> ScoringRule:
        """The rule."""

    @property
    def pruning(self) -> "Pruning | None":
        """Which tokens are kept."""

    def fit_encoder(self, data: Any, valid: Any = None, **settings: Any) -> Any:
        """Trains."""


class TrainableScorer(TextScorer, pt.Estimator):
    """A :class:`TextScorer` that ``pipeline.fit`` trains, on the documents that the stages before it returned.

    Args:
        model: what is trained, and scores; its other stages change with it.
        text_field: the column with the text.
        verbose: progress bars.
        training: keywords of the model's ``fit``, and those of :func:`~pyterrier_mvret.training.groups`
            (``n``, ``depth``, ``skip``, ``pick``, ``short``, ``min_label``) for mining negatives; ``teacher=``, a
            pipeline whose scores are distilled, for the losses that have one; it reads the same ``text_field``.
        refine: ``"pruned"`` scores the tokens that the model keeps, ``"full"`` all.
    """

    def __init__(
        self,
        model: Model,
        text_field: str = "text",
        verbose: bool = False,
        training: Mapping[str, Any] | None = None,
        refine: Literal["pruned", "full"] = "pruned",
    ):
        self.model, self.training, self.refine = model, training, refine
        self.text_field, self.verbose = text_field, verbose

    # what the model has now, not what it had when the stage was made

    @property
    def encoder(self) -> TokenEncoder:  # type: ignore[override]
        """The model's."""
        return self.model.encoder

    @property
    def scoring(self) -> ScoringRule:  # type: ignore[override]
        """The model's."""
        return self.model.scoring

    @property
    def pruning(self) -> "Pruning | None":  # type: ignore[override]
        """The model's, unless all tokens are to be scored."""
        return self.model.pruning if self.refine == "pruned" else None

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> "TrainableScorer":
        """Trains the model on retrieved documents: relevant ones as positives, others as negatives.

        Args:
            topics_or_res_tr: results of the training topics, with ``query`` and text.
            qrels_tr: their judgements; relevant documents that were not retrieved have no text and are left out.
            topics_or_res_va: results of the validation topics.
            qrels_va: their judgements.

        Raises:
            ValueError: as for the model's ``fit`` and for mining.
        """
        results = self._with_text(topics_or_res_tr)
        retrieved = qrels_tr.merge(results[["qid", "docno"]].drop_duplicates(), on=["qid", "docno"])
        mining = {"n", "depth", "skip", "pick", "short", "min_label"}
        settings = dict(self.training or {})
        chosen = {name: settings.pop(name) for name in mining & set(settings)}
        topics = results.drop_duplicates("qid")[["qid", "query"]]
        data = groups(topics, retrieved, results, **chosen, seed=settings.get("seed", 0))
        teacher = settings.pop("teacher", None)
        if teacher is not None:
            wants = named(settings.get("loss", "contrastive")).teacher
            scale: Literal["min-max"] | None = "min-max" if wants == "unit" else None
            data = with_teacher(data, teacher, normalize=scale, text_field=self.text_field, verbose=self.verbose)
        valid = None
        if topics_or_res_va is not None and qrels_va is not None:
            valid = (self._with_text(topics_or_res_va), qrels_va)
        self.model.fit_encoder(data, valid, **settings)
        return self

    def _with_text(self, results: pd.DataFrame) -> pd.DataFrame:
        pt.validate.result_frame(results, ["query", self.text_field], context=self)
        return results.assign(query=query_texts(results), text=results[self.text_field])
