"""ColBERT: late interaction over token vectors (Khattab and Zaharia, SIGIR 2020; ColBERTv2, NAACL 2022)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.model import TokenModel
from pyterrier_mvret.scoring import MaxSim

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder


class ColBERT(TokenModel):
    """Each query token takes its best document token: ``S(Q, D) = sum_i max_j <Q_i, D_j>``.

    Scores are sums of cosines, one a query token: at most the number of query vectors (32 for most checkpoints).

    Args:
        encoder: a :class:`TokenEncoder`, or what its first argument may be (a folder, a name on the Hub, a model).
        similarity: ``"cosine"``, or ``"l2"`` for ``sum_i max_j -||Q_i - D_j||^2`` (the original's alternative).
        normalize: ``"query"`` divides scores by the number of query vectors.
        verbose: progress bars.
        **settings: those of :class:`TokenEncoder`, where ``encoder`` is not one already.

    Raises:
        ValueError: settings for an encoder that is already made, or other than those it was saved with.

    >>> import pandas as pd
    >>> import pyterrier_mvret as mv
    >>> colbert = mv.ColBERT(mv.models.MINILM)
    >>> results = pd.DataFrame([
    ...     {"qid": "1", "query": "feline pets", "docno": "d1", "text": "Cats purr when they are stroked."},
    ...     {"qid": "1", "query": "feline pets", "docno": "d2", "text": "The bank raised its rates."}])
    >>> colbert.text_scorer()(results)[["docno", "rank"]]
      docno  rank
    0    d1     0
    1    d2     1
    """

    def __init__(
        self,
        encoder: "TokenEncoder | str | Path | MultiVectorEncoder",
        *,
        similarity: Literal["cosine", "l2"] = "cosine",
        normalize: Literal["query"] | None = None,
        verbose: bool = False,
        **settings: Any,
    ):
        self._take(encoder, settings)
        self.similarity, self.normalize, self.verbose = similarity, normalize, verbose
        self._check_saved(encoder)
        self.scoring  # noqa: B018 (says at once what is out of range)

    @property
    def scoring(self) -> MaxSim:
        """The rule that turns vectors into scores."""
        return MaxSim(self.similarity, self.normalize)

    def fit(self, data: "Dataset", valid: Any = None, **settings: Any) -> "ColBERT":
        """Trains the encoder, as :meth:`fit_encoder`.

        >>> import pandas as pd
        >>> import pyterrier_mvret as mv
        >>> colbert = mv.ColBERT(mv.models.MINILM, init_projection=8)
        >>> topics = pd.DataFrame({"qid": ["1", "2"], "query": ["feline pets", "interest"]})
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "b"], "label": [1, 1]})
        >>> data = mv.training.pairs(topics, qrels, {"a": "Cats purr.", "b": "The bank raised its rates."})
        >>> colbert.fit(data, train="head", max_steps=2, batch_size=2, verbose=False).history["step"].tolist()
        [1, 2]
        """
        return self.fit_encoder(data, valid, **settings)
