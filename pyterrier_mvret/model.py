"""What the models that score token vectors share: an encoder, a scoring rule, and the verbs around them."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from pyterrier_mvret.component import Configured
from pyterrier_mvret.encoders.stages import DocEncoder, QueryEncoder
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.explain import alignment
from pyterrier_mvret.training.stages import TrainableScorer

if TYPE_CHECKING:
    from datasets import Dataset

    from pyterrier_mvret.encoders.pruning import Pruning
    from pyterrier_mvret.scoring import ScoringRule

#: the file beside a checkpoint that holds a model's own settings
SETTINGS = "pyterrier_mvret.json"


class TokenModel(Configured, ABC):
    """Base of a method: its constructor's arguments are an ``encoder`` and what its scoring rule is made of."""

    encoder: TokenEncoder
    verbose: bool

    def _take(self, encoder: Any, settings: dict[str, Any]) -> None:
        """Sets the encoder; see :func:`encoder_of`."""
        self.encoder = encoder_of(encoder, settings)

    def _check_saved(self, encoder: Any) -> None:
        """ValueError where ``encoder`` is a folder of this method that was saved with other settings.

        A :class:`TokenEncoder` is free: whoever passes it says how it is scored.
        """
        saved = None if isinstance(encoder, TokenEncoder) else saved_settings(self.encoder.name)
        if saved is None or saved.pop("method") != type(self).__name__:
            return
        if saved != json.loads(json.dumps(self._settings())):
            raise ValueError(f"{self.encoder.name} was saved with {saved}: open it with {type(self).__name__}.load")

    @property
    @abstractmethod
    def scoring(self) -> "ScoringRule":
        """The rule that turns vectors into scores."""

    @property
    def pruning(self) -> "Pruning | None":
        """Which tokens are kept; none keeps all."""
        return None

    def query_encoder(self) -> QueryEncoder:
        """Q (or R) with ``query`` -> the same with ``query_embs``, one (tokens, dim) float32 array a query.

        >>> import pyterrier_mvret as mv
        >>> encode = mv.ColBERT(mv.models.MINILM).query_encoder()
        >>> encode(pd.DataFrame({"qid": ["1"], "query": ["a cat"]}))["query_embs"][0].shape
        (4, 384)
        """
        return QueryEncoder(self.encoder, self.verbose, self.scoring.salience, self.pruning)

    def doc_encoder(self, text_field: str = "text") -> DocEncoder:
        """D with text -> D with ``doc_embs``; the first stage of an indexing pipeline.

        >>> import pyterrier_mvret as mv
        >>> encode = mv.ColBERT(mv.models.MINILM).doc_encoder()
        >>> encode(pd.DataFrame({"docno": ["d"], "text": ["A cat sat."]}))["doc_embs"][0].shape
        (6, 384)
        """
        rule = self.scoring
        return DocEncoder(self.encoder, rule, text_field, self.verbose, rule.salience, self.pruning)

    def text_scorer(self, text_field: str = "text", **training: Any) -> TrainableScorer:
        """R with ``query`` and text -> R, encoding both now; see the example of the class.

        It is also a :class:`pyterrier.Estimator`: ``pipeline.fit(topics, qrels, topics_va, qrels_va)`` trains the model
        on what the stages before it return. ``training`` are keywords of :meth:`fit_encoder` and of
        :func:`~pyterrier_mvret.training.groups` for that.
        """
        return TrainableScorer(self, text_field, self.verbose, training or None)

    def fit_encoder(self, data: "Dataset", valid: Any = None, **settings: Any) -> Self:
        """Trains the encoder; every stage of this model changes with it, and an index built before refuses it.

        Args:
            data: a training set: :func:`~pyterrier_mvret.training.pairs`, :func:`~pyterrier_mvret.training.groups`,
                :func:`~pyterrier_mvret.training.with_teacher`.
            valid: ``(results, qrels)`` of validation topics, results with ``text``; or a training set; or none.
            **settings: ``loss=``, ``train=``, ``path=``, ``resume=``, ``max_steps=``, ... as for
                :func:`~pyterrier_mvret.training.fit`.

        Returns:
            The model itself; ``history`` has the curves.
        """
        from pyterrier_mvret.training import fit

        self.history = fit(self.encoder, self.scoring, data, valid, finish=self._write_settings, **settings)
        return self

    #: the curves of the last training
    history: pd.DataFrame | None = None

    def explain(self, query: str, text: str) -> pd.DataFrame:
        """Which document tokens each query token took; ``contribution`` sums to the score.

        Returns:
            One row a pair of tokens: ``query_token``, ``doc_token``, ``similarity``, ``weight``, ``contribution``,
            ``share`` (of the score),
            ``query_position``, ``doc_position``, and character offsets ``query_start``, ``query_end``, ``doc_start``,
            ``doc_end`` (equal where a token stands for no text); of a model with salience heads also
            ``query_salience`` and ``doc_salience``, whose product is the weight.

        >>> import pyterrier_mvret as mv
        >>> pairs = mv.ColBERT(mv.models.MINILM).explain("pet kitten", "A cat purred.")
        >>> pairs[["query_token", "doc_token"]].to_numpy().tolist()
        [['[CLS]', '[CLS]'], ['pet', 'cat'], ['kitten', 'cat'], ['[SEP]', '.']]
        """
        return alignment(self.encoder, self.scoring, query, text, self.pruning)

    def save(self, path: str | Path) -> None:
        """Writes checkpoint (in sentence-transformers' layout) and settings; :meth:`load` reads them."""
        self._settings()  # what cannot be saved is said before anything is written
        self.encoder.save(path)
        self._write_settings(Path(path))

    def _settings(self) -> dict[str, Any]:
        """The model's own settings as plain data."""
        return {name: value for name, value in self._identity() if name != "encoder"}

    @classmethod
    def _arguments(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The constructor's arguments that plain data stand for."""
        return settings

    def _write_settings(self, path: Path) -> None:
        settings = {"method": type(self).__name__, **self._settings()}
        (path / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> Self:
        """Reads what :meth:`save` wrote; ``settings``, of the model or the encoder, override what was saved.

        Raises:
            FileNotFoundError: the folder was not written by :meth:`save`.
            ValueError: it was, by another method; or its settings are damaged, or of another version.
        """
        saved = settings_of(cls, path, {p.name for p in cls._parameters()} - {"encoder"})
        own = {key: settings.pop(key) for key in ("verbose", *saved) if key in settings}
        make: Any = cls
        return make(TokenEncoder(path, **settings), **{**cls._arguments(saved), **own})


def encoder_of(encoder: Any, settings: dict[str, Any]) -> TokenEncoder:
    """An encoder from what the first argument of :class:`TokenEncoder` may be, or as it is.

    Raises:
        ValueError: settings for an encoder that is already made.
    """
    if not isinstance(encoder, TokenEncoder):
        return TokenEncoder(encoder, **settings)
    if settings:
        raise ValueError(f"{', '.join(settings)}: set on the TokenEncoder that was passed, not beside it")
    return encoder


def settings_of(method: type, path: str | Path, names: set[str]) -> dict[str, Any]:
    """The settings that a model of a method was saved with; see :meth:`TokenModel.load` for what it raises."""
    saved = saved_settings(str(path))
    name = method.__name__
    if saved is None:
        raise FileNotFoundError(f"{path} holds no {SETTINGS}: open a checkpoint with {name}(path)")
    by = saved.pop("method")
    if by != name:
        raise ValueError(f"{path} was saved by {by}: open it with {by}.load")
    if strange := sorted(set(saved) ^ names):
        raise ValueError(f"{Path(path) / SETTINGS} is not of {name}: missing or unknown: {', '.join(strange)}")
    return saved


def saved_settings(name: Any) -> dict[str, Any] | None:
    """What a model's folder says of it; none where it is none. ValueError if that is damaged."""
    file = Path(name) / SETTINGS if isinstance(name, str) else None
    if file is None or not file.is_file():
        return None
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(saved, dict) or "method" not in saved:
        raise ValueError(f"{file} is damaged: it names no method")
    return saved
