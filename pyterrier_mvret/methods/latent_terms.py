"""Latent Terms: a frozen retriever's hidden vocabulary, scored with BM25 (Clavie et al. 2026, arXiv 2605.29384)."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from copy import copy, deepcopy
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from pyterrier_mvret.component import Configured
from pyterrier_mvret.encoders.states import Layer, streamed, token_states
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.model import SETTINGS, encoder_of, saved_settings, settings_of
from pyterrier_mvret.scoring.bm25 import BM25
from pyterrier_mvret.scoring.pooling import Pool, Transform
from pyterrier_mvret.term_activity import frequencies, passages_of, size_of
from pyterrier_mvret.term_meaning import TermMeanings, describe, explain
from pyterrier_mvret.term_stages import DocTermEncoder, Pooling, QueryTermEncoder, SAEVocabulary

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.sae import TopKSAE
    from pyterrier_mvret.indexes.sparse import SparseIndex
    from pyterrier_mvret.training.sae import SAETrainer

_SAE, _ENCODER = "sae.safetensors", "encoder"
_BM25 = BM25()
# texts by which a corpus is known again
_FIRST_TEXTS = 256


class LatentTerms(Configured):
    """Latents of a sparse autoencoder over token states as the terms of a text; an index scores them with BM25.

    Activations of a latent are added up over a text's tokens, and the root of the sum is the term's weight (equations
    7 to 9). Nothing is trained for retrieval: the autoencoder reconstructs the states of a frozen encoder.

    Args:
        encoder: a :class:`TokenEncoder`, or what its first argument may be; single-vector models serve as well.
        sae: a trained dictionary, or the file of one, which is opened on the encoder's device; none until :meth:`fit`
            trains one.
        layer: which states: ``"last_hidden_state"`` (before a multi-vector model's projection), or ``"projected"``.
        special_tokens: whether markers, [CLS], [SEP] count. The paper does not say; replications that match its
            numbers keep them.
        pool: ``"sum"``, the paper's, or ``"max"`` over tokens.
        transform: ``"sqrt"``, the paper's; ``"identity"``, ``"log1p"``, ``"binary"``.
        top_doc: terms of a document at most, the heaviest; none keeps all.
        top_query: the same of a query.
        prefix: what terms begin with.
        verbose: progress bars.
        **settings: those of :class:`TokenEncoder`, where ``encoder`` is not one already.

    >>> import pyterrier_mvret as mv
    >>> from pyterrier_mvret.encoders.sae import TopKSAE
    >>> latent = LatentTerms(mv.models.MINILM, TopKSAE.random(384, latents=1024, k=8))
    >>> toks = latent.doc_encoder()(pd.DataFrame([{"docno": "d", "text": "A cat sat."}]))["toks"][0]
    >>> 8 <= len(toks) <= 48, next(iter(toks))[0]
    (True, 'z')
    """

    def __init__(
        self,
        encoder: "TokenEncoder | str | Path | MultiVectorEncoder",
        sae: "TopKSAE | str | Path | None" = None,
        *,
        layer: Layer = "last_hidden_state",
        special_tokens: bool = True,
        pool: Pool = "sum",
        transform: Transform = "sqrt",
        top_doc: int | None = None,
        top_query: int | None = None,
        prefix: str = "z",
        verbose: bool = False,
        **settings: Any,
    ):
        saved = saved_settings(str(encoder)) if isinstance(encoder, str | Path) else None
        if saved is not None and saved["method"] == type(self).__name__:
            raise ValueError(f"{encoder} is a saved model: open it with {type(self).__name__}.load")
        encoder = encoder_of(encoder, settings)
        if isinstance(sae, str | Path):
            from sentence_transformers.util import get_device_name

            from pyterrier_mvret.encoders.sae import TopKSAE

            sae = TopKSAE.load(sae, encoder.device or get_device_name())
        Pooling(layer, special_tokens, pool, transform, prefix)  # says at once what is no word
        self.encoder, self.sae = encoder, sae
        self.layer, self.special_tokens = layer, special_tokens
        self.pool, self.transform, self.prefix = pool, transform, prefix
        self.top_doc, self.top_query, self.verbose = top_doc, top_query, verbose

    @property
    def pooling(self) -> Pooling:
        """How states become terms."""
        return Pooling(self.layer, self.special_tokens, self.pool, self.transform, self.prefix)

    @property
    def dictionary(self) -> "TopKSAE":
        """The autoencoder.

        Raises:
            ValueError: there is none yet.
        """
        if self.sae is None:
            raise ValueError("there is no dictionary yet: fit(corpus) trains one, sae= takes one")
        return self.sae

    @property
    def space(self) -> str:
        """``name#digest`` of the vocabulary: equal digests mean terms that can be compared."""
        return self._vocabulary(None).space

    def query_encoder(self) -> QueryTermEncoder:
        """Q (or R) with ``query`` -> the same with ``query_toks``, {term: weight}; no query is expanded."""
        return QueryTermEncoder(self._vocabulary(self.top_query), self.verbose)

    def doc_encoder(self, text_field: str = "text") -> DocTermEncoder:
        """D (or R) with text -> the same with ``toks``, {term: weight}; the first stage of an indexing pipeline.

        Args:
            text_field: the column with the text.
        """
        return DocTermEncoder(self._vocabulary(self.top_doc), text_field, self.verbose)

    def _vocabulary(self, top: int | None) -> SAEVocabulary:
        return SAEVocabulary(self.encoder, self.dictionary, self.pooling, top)

    def frequencies(self, corpus: Iterable[Any], *, text_field: str = "text", verbose: bool = True) -> pd.DataFrame:
        """How often each latent is active in a corpus, the most frequent first, those that never are last.

        Args:
            corpus: as for :meth:`describe`.
            text_field: as for :meth:`describe`.
            verbose: a progress bar.

        Returns:
            One row a latent: ``term``; in how many ``tokens`` and ``documents`` it is active, whatever ``top_doc``
            cuts; ``mass``, the sum of its activations. :func:`~pyterrier_mvret.zipf_fit` takes either column.
        """
        return frequencies(self, corpus, text_field, verbose)

    def describe(
        self,
        terms: str | Iterable[str],
        corpus: Iterable[Any],
        *,
        passages: int = 5,
        tokens: int = 10,
        index: "SparseIndex | None" = None,
        text_field: str = "text",
        verbose: bool = True,
    ) -> TermMeanings:
        """What terms mean: the tokens that fire them most, and the passages in which they weigh most.

        Its ``purity``, the share of a term's activation on one token, is near 1 for a latent that stands for one word
        (a proxy of ours: how the paper sorts latents into kinds is not known).

        Args:
            terms: one, or several that are looked for in one pass, such as the keys of ``query_toks``.
            corpus: texts, or dicts with ``docno`` and text, which stream by; a frame.
            passages: so many a term.
            tokens: so many a term.
            index: of the same corpus: only the passages in which it says that a term weighs most are encoded, and
                tokens are counted in those alone.
            text_field: the field with the text.
            verbose: a progress bar.

        Returns:
            Frames ``terms``, ``tokens`` and ``passages``; see :class:`~pyterrier_mvret.term_meaning.TermMeanings`.

        Raises:
            ValueError: no term of this model, an index of another vocabulary, or one with documents that the corpus
                lacks.

        >>> import pyterrier_mvret as mv
        >>> latent = LatentTerms(mv.models.MINILM, mv.TopKSAE.random(384, latents=1024, k=8))
        >>> term = next(iter(latent.query_encoder().search("tide")["query_toks"][0]))
        >>> told = latent.describe(term, ["The tide is low.", "High tides."], verbose=False)
        >>> told.terms.columns.tolist()
        ['term', 'token', 'purity', 'tokens', 'documents', 'mass']
        """
        how: dict[str, Any] = {"passages": passages, "tokens": tokens, "index": index}
        return describe(self, terms, corpus, **how, text_field=text_field, verbose=verbose)

    def explain(
        self, query: str, text: str, index: "SparseIndex | None" = None, weighting: BM25 | None = _BM25
    ) -> pd.DataFrame:
        """The terms that a query and a text share, those that add most to the score first.

        Args:
            query: the query.
            text: the document's text, which need not be in the index.
            index: whose statistics count; without one, scores are dot products.
            weighting: as ``index.bm25`` has it; none is the dot product.

        Returns:
            One row a term: ``term``, ``query_weight``, ``doc_weight``, ``idf`` and ``tf`` (the saturated weight, below
            k1 + 1), ``score``, which is their product and adds up to that of the document (exactly: PISA's is
            rounded), ``share`` of the whole, ``query_tokens`` and ``doc_tokens`` that fire it. A dot product has
            neither ``idf`` nor ``tf``.

        Raises:
            ValueError: an index of another vocabulary, or what is no text.

        >>> import pyterrier_mvret as mv
        >>> latent = LatentTerms(mv.models.MINILM, mv.TopKSAE.random(384, latents=1024, k=8))
        >>> latent.explain("tide", "The tide is low.")[["query_tokens", "doc_tokens"]].isin(["tide"]).any().tolist()
        [True, True]
        """
        return explain(self, query, text, index, weighting)

    def fit(
        self,
        corpus: Iterable[Any],
        *,
        latents: int = 32768,
        k: int = 16,
        text_field: str = "text",
        sae: "TopKSAE | None" = None,
        path: str | Path | None = None,
        resume: bool = False,
        device: str | None = None,
        verbose: bool = True,
        **training: Any,
    ) -> Self:
        """Trains the dictionary on texts, no labels: generic ones rather than those that are searched (the paper).

        Args:
            corpus: texts, or dicts with the text field; a list, a frame, whatever can be read again from its start.
                States stream by: memory holds those of ``buffer_batches`` steps.
            latents: size of the dictionary.
            k: active latents of a token at most.
            text_field: the field with the text.
            sae: a dictionary of which a copy is trained: one to train on, or of another kind (BatchTopK, Matryoshka);
                none makes one of ``latents`` and ``k``.
            path: a folder for the model (:meth:`load` reads it), which appears when training is done; until then
                checkpoints lie beside it.
            resume: go on from the checkpoints of a run with the same settings, or start if there are none; a finished
                run is opened. The outcome is that of a run that never stopped (on a CPU, to the bit), if the corpus is
                the same: its size and its first texts are compared.
            device: where; none takes an accelerator if there is one.
            verbose: a progress bar with loss, explained variance and dead latents.
            **training: settings of :class:`~pyterrier_mvret.SAETrainer`: ``tokens=``, ``batch_tokens=``,
                ``learning_rate=``, ``seed=``, ...

        Returns:
            The model itself; ``history`` has the curves. Stages made before keep the dictionary they had.

        Raises:
            ValueError: a corpus that can be read only once, has no token, or a document without text; a dictionary of
                other dimensions than the states; or the run to be resumed had other settings.
            FileExistsError: ``path``, or the checkpoints of an unfinished run, are there, and ``resume`` is not set.
        """
        from sentence_transformers.util import get_device_name

        from pyterrier_mvret.encoders.sae import TopKSAE
        from pyterrier_mvret.training.run import Run
        from pyterrier_mvret.training.sae import SAETrainer

        def texts() -> Iterator[str]:
            return (text for _, text in passages_of(corpus, text_field))

        if iter(corpus) is corpus or next(texts(), None) != next(texts(), None):
            raise ValueError("a corpus is read several times: pass a list, or an object whose iter starts anew")
        how = SAETrainer(**training)
        width = token_states(self.encoder, ["width"], "document", self.layer).states.shape[1]
        if sae is not None and sae.dim != width:
            raise ValueError(f"the dictionary takes states of {sae.dim} dimensions, those of the encoder have {width}")
        sae = TopKSAE(width, latents, k, seed=how.seed) if sae is None else deepcopy(sae)

        def states(start: int) -> Iterable[Any]:
            return streamed(self.encoder, texts(), self.layer, self.special_tokens, start)

        record = self._record(sae, how, f"{size_of(corpus)} texts, those at the start: {_digest(texts())}")
        run = Run(None if path is None else Path(path).absolute(), resume, record)
        try:
            if run.finished:
                assert run.path is not None
                sae, history = TopKSAE.load(run.path / _SAE, device or get_device_name()), run.history()
            else:
                checkpoints = None if run.path is None else run.folder
                history = how.fit(sae.to(device or get_device_name()), states, checkpoints=checkpoints, verbose=verbose)
                if run.path is not None:
                    trained = self._with(sae)
                    run.complete(trained.save, history)
        finally:
            run.close()
        self.sae, self.history = sae, history
        return self

    def _record(self, sae: "TopKSAE", how: "SAETrainer", corpus: str) -> dict[str, str]:
        """What decides the outcome of a training run."""
        described = {name: value for name, value in self.encoder.describe().items() if name not in ("name", "revision")}
        described["space"] = described["space"].rpartition("#")[2]  # weights, wherever they were read from
        return {
            "encoder": json.dumps(described, sort_keys=True),
            "states": f"{self.layer}, special tokens: {self.special_tokens}",
            "dictionary": json.dumps({**sae.settings(), "digest": sae.digest}),
            "training": json.dumps(how.settings()),
            "corpus": corpus,
        }

    def _with(self, sae: "TopKSAE") -> Self:
        """The same with another dictionary."""
        other = copy(self)
        other.sae = sae
        return other

    #: the curves of the last training
    history: pd.DataFrame | None = None

    def save(self, path: str | Path) -> None:
        """Writes encoder, dictionary and settings; :meth:`load` reads them.

        The settings are written last, and those of a model that is replaced removed first: what was interrupted is no
        model.
        """
        path, dictionary = Path(path), self.dictionary
        path.mkdir(parents=True, exist_ok=True)
        (path / SETTINGS).unlink(missing_ok=True)
        self.encoder.save(path / _ENCODER)
        dictionary.save(path / _SAE)
        own = {name: value for name, value in self._identity() if name not in ("encoder", "sae")}
        unfinished = path / f".{SETTINGS}"
        unfinished.write_text(json.dumps({"method": type(self).__name__, **own}), encoding="utf-8")
        unfinished.replace(path / SETTINGS)

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> Self:
        """Reads what :meth:`save` wrote; ``settings``, of the model or the encoder, override what was saved.

        Raises:
            FileNotFoundError: the folder was not written by :meth:`save`.
            ValueError: it was, by another method; or its settings are damaged, or of another version.
        """
        path = Path(path)
        saved = settings_of(cls, path, {p.name for p in cls._parameters()} - {"encoder", "sae"})
        own = {name: settings.pop(name) for name in ("verbose", *saved) if name in settings}
        return cls(TokenEncoder(path / _ENCODER, **settings), path / _SAE, **{**saved, **own})


def _digest(texts: Iterator[str]) -> str:
    """Of the first texts of a corpus."""
    return hashlib.sha256(json.dumps(list(islice(texts, _FIRST_TEXTS))).encode()).hexdigest()[:16]
