"""ColBERT: late interaction over token vectors (Khattab and Zaharia, SIGIR 2020; ColBERTv2, NAACL 2022)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from pyterrier_mvret.component import Configured
from pyterrier_mvret.encoders.stages import DocEncoder, QueryEncoder
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.explain import alignment
from pyterrier_mvret.scoring import MaxSim
from pyterrier_mvret.training import fit
from pyterrier_mvret.training.stages import TrainableScorer

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder

_SETTINGS = "pyterrier_mvret.json"


class ColBERT(Configured):
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
        if isinstance(encoder, TokenEncoder):
            if settings:
                raise ValueError(f"{', '.join(settings)}: set on the TokenEncoder that was passed, not beside it")
        else:
            encoder = TokenEncoder(encoder, **settings)
        self.encoder = encoder
        self.similarity, self.normalize, self.verbose = similarity, normalize, verbose
        saved = _saved_settings(encoder.name)
        if saved and (saved["similarity"], saved["normalize"]) != (similarity, normalize):
            raise ValueError(f"{encoder.name} was saved with {saved}: open it with ColBERT.load")
        self.scoring  # noqa: B018 (says at once what is out of range)

    @property
    def scoring(self) -> MaxSim:
        """The rule that turns vectors into scores."""
        return MaxSim(self.similarity, self.normalize)

    def query_encoder(self) -> QueryEncoder:
        """Q (or R) with ``query`` -> the same with ``query_embs``, one (tokens, dim) float32 array a query.

        >>> import pyterrier_mvret as mv
        >>> encode = mv.ColBERT(mv.models.MINILM).query_encoder()
        >>> encode(pd.DataFrame({"qid": ["1"], "query": ["a cat"]}))["query_embs"][0].shape
        (4, 384)
        """
        return QueryEncoder(self.encoder, self.verbose)

    def doc_encoder(self, text_field: str = "text") -> DocEncoder:
        """D with text -> D with ``doc_embs``; the first stage of an indexing pipeline.

        >>> import pyterrier_mvret as mv
        >>> encode = mv.ColBERT(mv.models.MINILM).doc_encoder()
        >>> encode(pd.DataFrame({"docno": ["d"], "text": ["A cat sat."]}))["doc_embs"][0].shape
        (6, 384)
        """
        return DocEncoder(self.encoder, self.scoring, text_field, self.verbose)

    def text_scorer(self, text_field: str = "text", **training: Any) -> TrainableScorer:
        """R with ``query`` and text -> R, encoding both now; see the example of the class.

        It is also a :class:`pyterrier.Estimator`: ``pipeline.fit(topics, qrels, topics_va, qrels_va)`` trains the model
        on what the stages before it return. ``training`` are keywords of :meth:`fit` and of
        :func:`~pyterrier_mvret.training.groups` for that.
        """
        return TrainableScorer(self, text_field, self.verbose, training or None)

    def fit(self, data: "Dataset", valid: Any = None, **settings: Any) -> "ColBERT":
        """Trains the encoder; every stage of this model changes with it, and an index built before refuses it.

        Args:
            data: a training set: :func:`~pyterrier_mvret.training.pairs`, :func:`~pyterrier_mvret.training.groups`,
                :func:`~pyterrier_mvret.training.with_teacher`.
            valid: ``(results, qrels)`` of validation topics, results with ``text``; or a training set; or none.
            **settings: ``loss=``, ``train=``, ``path=``, ``resume=``, ``max_steps=``, ... as for
                :func:`~pyterrier_mvret.training.fit`.

        Returns:
            The model itself; ``history`` has the curves.

        >>> import pyterrier_mvret as mv
        >>> colbert = mv.ColBERT(mv.models.MINILM, init_projection=8)
        >>> topics = pd.DataFrame({"qid": ["1", "2"], "query": ["feline pets", "interest"]})
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "b"], "label": [1, 1]})
        >>> data = mv.training.pairs(topics, qrels, {"a": "Cats purr.", "b": "The bank raised its rates."})
        >>> colbert.fit(data, train="head", max_steps=2, batch_size=2, verbose=False).history["step"].tolist()
        [1, 2]
        """
        self.history = fit(self.encoder, self.scoring, data, valid, finish=self._write_settings, **settings)
        return self

    #: the curves of the last :meth:`fit`
    history: pd.DataFrame | None = None

    def explain(self, query: str, text: str) -> pd.DataFrame:
        """Which document token each query token took; ``contribution`` sums to the score.

        Returns:
            One row a query vector: ``query_token``, ``doc_token``, ``similarity``, ``weight``, ``contribution``,
            ``query_position``, ``doc_position``, and character offsets ``query_start``, ``query_end``, ``doc_start``,
            ``doc_end`` (equal where a token stands for no text).

        >>> import pyterrier_mvret as mv
        >>> pairs = mv.ColBERT(mv.models.MINILM).explain("pet kitten", "A cat purred.")
        >>> pairs[["query_token", "doc_token"]].to_numpy().tolist()
        [['[CLS]', '[CLS]'], ['pet', 'cat'], ['kitten', 'cat'], ['[SEP]', '.']]
        """
        return alignment(self.encoder, self.scoring, query, text)

    def save(self, path: str | Path) -> None:
        """Writes checkpoint (in sentence-transformers' layout) and settings; :meth:`load` reads them."""
        self.encoder.save(path)
        self._write_settings(Path(path))

    def _write_settings(self, path: Path) -> None:
        settings = {"method": "ColBERT", "similarity": self.similarity, "normalize": self.normalize}
        (path / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> "ColBERT":
        """Reads what :meth:`save` wrote; ``settings`` override those of the encoder.

        Raises:
            FileNotFoundError: the folder was not written by :meth:`save`.
        """
        saved = _saved_settings(str(path))
        if saved is None:
            raise FileNotFoundError(f"{path} holds no {_SETTINGS}: open a checkpoint with ColBERT(path)")
        return cls(str(path), similarity=saved["similarity"], normalize=saved["normalize"], **settings)


def _saved_settings(name: Any) -> dict[str, Any] | None:
    file = Path(name) / _SETTINGS if isinstance(name, str) else None
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None
