"""LASPAR (Neural LAtent SPArse Retrieval): a text as a few hundred of very many learned dimensions.

The method has a description and code, and no paper. Both of its architectures are one: states of tokens are added up
with some weights, one matrix takes them to D latents, ``log(1 + ReLU)`` and the largest k make the vector sparse, and
an inverted index has the dot products. :class:`~pyterrier_mvret.encoders.latents.LatentSettings` says what is the
code's and what is our choice.
"""

import copy
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from pyterrier_mvret.component import Configured
from pyterrier_mvret.encoders import latents as latent_heads
from pyterrier_mvret.encoders.latents import LatentSettings, Rows, StatePooling
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.model import SETTINGS, saved_settings
from pyterrier_mvret.term_stages import DocTermEncoder, QueryTermEncoder, Task, TermScorer, Vocabulary

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.latent_head import LatentHead
    from pyterrier_mvret.training.fitting import Validation


# of the head alone, whose rows start with a length of 20 (384 dimensions): the 1e-3 of other heads hardly turns them
_RATE = 1e-2


class LatentVocabulary(Vocabulary):
    """The latents of an encoder's head as terms, by the strings of their numbers.

    Args:
        encoder: with a latent head.
    """

    def __init__(self, encoder: TokenEncoder):
        self.encoder = encoder

    @property
    def space(self) -> str:
        """See the base; the encoder's own digest covers the head, and how many latents of a document are kept."""
        return self._named(f"{latent_heads.the_head(self.encoder).latents} latents")

    def of_documents(self) -> dict[str, Any]:
        """See the base."""
        return {"top": latent_heads.the_head(self.encoder).k_doc}

    def terms(self, texts: list[str], task: Task, verbose: bool = False) -> list[dict[str, float]]:
        """See the base."""
        return latent_heads.latent_vectors(self.encoder, texts, task, verbose).dicts()


class Laspar(Configured):
    """Sparse vectors over latent dimensions, scored by dot product in an inverted index.

    A checkpoint with a latent head is used as it is. Any other gets an untrained head, with a warning: terms are then a
    random projection of the encoder's states, a code in which overlap follows the cosine: with MiniLM it is a baseline
    worth having, and no LASPAR. Settings left at None are the checkpoint's own, or those of
    :class:`~pyterrier_mvret.encoders.latents.LatentSettings` for a new head; ``k_doc``, ``k_query``,
    ``normalize_before_topk`` and ``rows`` can be other than the checkpoint's. Prefixes, too, are the checkpoint's own:
    the method's code writes ``query_prefix="query: "`` and ``doc_prefix="document: "``, which an encoder must have been
    trained with.

    Args:
        encoder: what the first argument of :class:`TokenEncoder` may be, or such an encoder, which is not changed:
            without ``latents=`` of its own, a copy gets the head.
        latents: D, how many latents there are (65,536).
        k_doc: latents of a document that are kept (512).
        k_query: the same of a query (128). One index can be asked by queries of any.
        pooling: how states of tokens become one: ``"mean"``, ``"sum"``, ``"position"`` or ``"attention"``.
        norm_input: scale pooled states to length one.
        normalize: scale vectors to length one.
        normalize_before_topk: by their length before all but k entries go.
        bias: whether latents have a bias, or where it starts.
        rows: how the matrix is kept: ``"float32"``, ``"float16"`` or ``"int8"``.
        seed: of a new head's matrix.
        verbose: progress bars.
        **settings: those of :class:`TokenEncoder`, where ``encoder`` is not one already.

    Raises:
        ValueError: a setting out of range, or, on first use, other than that of the checkpoint's head.

    >>> import pyterrier_mvret as mv, tempfile
    >>> laspar = mv.Laspar(mv.models.MINILM, latents=4096, k_doc=64, k_query=32)
    >>> index = mv.SparseIndex(tempfile.mkdtemp() + "/toy.laspar")
    >>> docs = [{"docno": "d1", "text": "A cat sat on a mat."}, {"docno": "d2", "text": "Stocks fell again."}]
    >>> _ = (laspar.doc_encoder() >> index).index(docs)
    >>> retrieve = laspar.query_encoder() >> index.retriever()
    >>> retrieve(pd.DataFrame({"qid": ["1"], "query": ["feline"]}))["docno"].tolist()[0]
    'd1'
    """

    def __init__(
        self,
        encoder: "TokenEncoder | str | Path | MultiVectorEncoder",
        latents: int | None = None,
        *,
        k_doc: int | None = None,
        k_query: int | None = None,
        pooling: StatePooling | None = None,
        norm_input: bool | None = None,
        normalize: bool | None = None,
        normalize_before_topk: bool | None = None,
        bias: bool | float | None = None,
        rows: Rows | None = None,
        seed: int = 0,
        verbose: bool = False,
        **settings: Any,
    ):
        self.latents, self.k_doc, self.k_query, self.pooling = latents, k_doc, k_query, pooling
        self.norm_input, self.normalize = norm_input, normalize
        self.normalize_before_topk, self.bias, self.rows, self.seed = normalize_before_topk, bias, rows, seed
        self.verbose = verbose
        wanted = LatentSettings(
            latents, k_doc, k_query, pooling, norm_input, normalize, normalize_before_topk, bias, rows, seed
        )
        self.encoder = _with_head(encoder, wanted, settings)

    @property
    def head(self) -> "LatentHead":
        """The head, a torch module, with all of its settings; opens the checkpoint."""
        return latent_heads.the_head(self.encoder)

    @property
    def space(self) -> str:
        """``name#digest`` of the latents: equal digests mean vectors that can be compared."""
        return self._vocabulary.space

    @property
    def _vocabulary(self) -> LatentVocabulary:
        return LatentVocabulary(self.encoder)

    # ------------------------------------------------------------------ verbs

    def query_encoder(self) -> QueryTermEncoder:
        """Q (or R) with ``query`` -> the same with ``query_toks``, {"4711": weight}; weights up to 1e-5 are dropped."""
        return QueryTermEncoder(self._vocabulary, self.verbose)

    def doc_encoder(self, text_field: str = "text") -> DocTermEncoder:
        """D (or R) with text -> the same with ``toks``, {"4711": weight}; the first stage of an indexing pipeline.

        Args:
            text_field: the column with the text.
        """
        return DocTermEncoder(self._vocabulary, text_field, self.verbose)

    def text_scorer(self, text_field: str = "text") -> TermScorer:
        """R with ``query`` and text -> R by exact dot products, encoding both now; no index is needed.

        >>> import pyterrier_mvret as mv
        >>> texts = ["A cat sat on a mat.", "Stocks fell again."]
        >>> results = pd.DataFrame({"qid": "1", "query": "feline", "docno": ["d1", "d2"], "text": texts})
        >>> mv.Laspar(mv.models.MINILM, latents=4096).text_scorer()(results)["rank"].tolist()
        [0, 1]
        """
        return TermScorer(self._vocabulary, text_field, self.verbose)

    def explain(self, query: str, text: str) -> pd.DataFrame:
        """The latents that query and text share: what the score is made of, largest part first.

        Returns:
            ``term``, ``query_weight``, ``doc_weight``, ``score`` (their product; all add up to the score), ``share``
            (of the score).
        """
        (q,), (d,) = self._vocabulary.terms([query], "query"), self._vocabulary.terms([text], "document")
        shared = [(term, q[term], d[term], q[term] * d[term]) for term in q if term in d]
        pairs = pd.DataFrame(shared, columns=["term", "query_weight", "doc_weight", "score"])
        pairs = pairs.astype(dict.fromkeys(pairs.columns[1:], "float64")).assign(share=pairs["score"])
        pairs["share"] = pairs["score"] / max(pairs["score"].sum(), 1e-300)
        return pairs.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    # ------------------------------------------------------------------ training

    def fit(self, data: "Dataset", valid: "Validation | None" = None, **settings: Any) -> Self:
        """Trains the head, or with ``train="all"`` the encoder as well; every stage of this model changes.

        Args:
            data: a training set: :func:`mv.training.pairs`, :func:`~mv.training.groups` (with negatives),
                :func:`~mv.training.with_teacher` (scores of a dense model or a cross-encoder, for ``distillation=``).
            valid: ``(results, qrels)`` of other topics, with ``text``, to choose the best checkpoint by.
            **settings: ``loss=`` (``"latent-sparse"``, or :class:`~pyterrier_mvret.training.LatentSparse` with
                temperature, teacher and penalties), ``train=`` (``"head"`` by default), ``path=``, ``resume=``,
                ``epochs=``, ``batch_size=``, ``learning_rate=`` (none takes 1e-2 for the head, and for what else is
                trained that of the plan), ... as for :func:`~pyterrier_mvret.training.fit`.

        Returns:
            The model itself. ``history`` has the curves: the terms of the loss, and of queries and documents the
            ``active`` latents of a text, how many different ``latents`` there were, and how many texts were ``empty``.

        Raises:
            ValueError: as for :func:`~pyterrier_mvret.training.fit`; another loss, which would leave the head as it
                is; no text has an active latent any more.

        >>> import pyterrier_mvret as mv
        >>> topics = pd.DataFrame({"qid": ["1", "2"], "query": ["feline", "interest"]})
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "b"], "label": [1, 1]})
        >>> pairs = mv.training.pairs(topics, qrels, {"a": "Cats purr.", "b": "The bank raised its rates."})
        >>> laspar = mv.Laspar(mv.models.MINILM, latents=1024, k_doc=32).fit(pairs, max_steps=1, verbose=False)
        >>> laspar.head.trained, float(laspar.history["document_active"].iloc[0])
        (True, 32.0)
        """
        from pyterrier_mvret.scoring import MaxSim
        from pyterrier_mvret.training import fit, losses

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the latent head is untrained")  # it is about to be
            self.encoder.model  # noqa: B018 (opens it)
        told = {"loss": "latent-sparse", "train": "head", **settings}
        if not isinstance(losses.named(told["loss"]), losses.LatentSparse):
            raise ValueError(f"sparse vectors take loss=mv.training.LatentSparse(...), got {told['loss']!r}")
        if told["train"] == "head" and told.get("learning_rate") is None:
            told["learning_rate"] = _RATE
        elif told.get("learning_rate") is None:  # by the transformer's, 1,000 times smaller, the head would stand still
            told.setdefault("learning_rate_mapping", {rf"^model\.{list(self.encoder.model).index(self.head)}\.": _RATE})
        how: dict[str, Any] = {"prepare": _trained, "scorer": _scorer, "finish": self._write_settings}
        # the rule is that of token vectors, which have no part in it
        self.history = fit(self.encoder, MaxSim(), data, valid, **how, **told)
        return self

    #: the curves of the last training
    history: pd.DataFrame | None = None

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Writes a checkpoint in sentence-transformers' layout, the head in it; :meth:`load` reads it."""
        self.encoder.save(path)
        self._write_settings(Path(path))

    def _write_settings(self, path: Path) -> None:
        (path / SETTINGS).write_text(json.dumps({"method": type(self).__name__}), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> Self:
        """Reads what :meth:`save` wrote; ``settings``, of the model or the encoder, as for the class.

        Raises:
            FileNotFoundError: the folder was not written by :meth:`save`.
            ValueError: it was, by another method.
        """
        saved = saved_settings(str(path))
        if saved is None:
            raise FileNotFoundError(f"{path} holds no {SETTINGS}: open a checkpoint with {cls.__name__}(path)")
        if saved["method"] != cls.__name__:
            raise ValueError(f"{path} was saved by {saved['method']}: open it with {saved['method']}.load")
        return cls(path, **settings)


def _trained(model: "MultiVectorEncoder") -> None:
    """Marks the head of a copy that is trained."""
    head = latent_heads.head_of(model)
    assert head is not None
    head.trained = True


def _scorer(encoder: TokenEncoder) -> TermScorer:
    """What validation ranks with."""
    return TermScorer(LatentVocabulary(encoder))


def _with_head(encoder: Any, wanted: LatentSettings, settings: dict[str, Any]) -> TokenEncoder:
    """An encoder that has a latent head when it is opened."""
    if isinstance(encoder, str | Path):
        return TokenEncoder(encoder, latents=wanted, **settings)
    if not isinstance(encoder, TokenEncoder):
        encoder = TokenEncoder(encoder, **settings)  # says what is no model
    elif settings:
        raise ValueError(f"{', '.join(settings)}: set on the TokenEncoder that was passed, not beside it")
    if not isinstance(encoder.name, str):
        return _in_memory(encoder, wanted)
    if encoder.latents is None:
        encoder = copy.copy(encoder)
        encoder._opened = encoder._weights = None
        encoder.latents = wanted
    elif wanted not in (LatentSettings(), encoder.latents):
        raise ValueError(f"the encoder has latents={encoder.latents}: set them there, not beside it")
    return encoder


def _in_memory(encoder: TokenEncoder, wanted: LatentSettings) -> TokenEncoder:
    """A model in memory is never changed: a copy gets the head, or other settings of its own."""
    model = encoder.model
    if latent_heads.head_of(model) is None or wanted != LatentSettings():
        model = copy.deepcopy(model)
        wanted(model)
        encoder = TokenEncoder(model, batch_size=encoder.batch_size, verbose=encoder.verbose)
    latent_heads.warn_if_untrained(model, encoder._label)
    return encoder
