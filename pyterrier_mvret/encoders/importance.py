"""What ranks the tokens of a text when only a share of them is kept.

Each way is a value: pass it as ``encoder.encode_docs(texts, importance=Attention())``, and the batch's ``importance``
ranks its tokens, for :func:`pruned`. :class:`Salience` is what ALIGNER learns (Qian et al. 2022, arXiv 2211.01267);
the others need no training, so that any checkpoint can be pruned, and are what a learnt salience has to beat: the
first tokens, IDF and attention are compared in "A Study on Token Pruning for ColBERT" (Lassance et al. 2021, arXiv
2112.06540). Their exact forms here are our choice.

>>> import pyterrier_mvret as mv
>>> encoder = mv.TokenEncoder(mv.models.MINILM)
>>> batch = pruned(encoder.encode_docs(["The cat sat on the mat."], importance=First()), share=0.5)
>>> encoder.tokens(batch.token_ids)
['[CLS]', 'the', 'cat', 'sat', 'on']
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyterrier as pt

from pyterrier_mvret.encoders import batches
from pyterrier_mvret.encoders.token_batch import TokenBatch
from pyterrier_mvret.scoring import salience
from pyterrier_mvret.scoring.shares import checked_share

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

Floats = npt.NDArray[np.float32]

# texts whose tokens are counted at once
_TEXTS_A_BLOCK = 512
# how many of the commonest tokens tell one vocabulary from another
_TOKENS_SPELLED = 100


class Importance(ABC):
    """What every way to rank tokens has: what a forward pass must add for it, and scores of a batch.

    >>> First().describe(), Random(3).describe()
    ({'kind': 'first'}, {'kind': 'random', 'seed': 3})
    """

    kind: ClassVar[str]

    def watching(self, model: "MultiVectorEncoder") -> AbstractContextManager[None]:
        """Within it, forwards of ``model`` put what this ranking needs into ``features["token_importance"]``.

        Raises:
            ValueError: the model cannot give it.
        """
        return nullcontext()

    @abstractmethod
    def scores(self, batch: TokenBatch) -> Floats:
        """(tokens,) float32, one a row of the batch; of one text, higher scores are rather kept.

        Args:
            batch: as encoded within :meth:`watching`.

        Raises:
            ValueError: the batch lacks what is needed.
        """

    def describe(self) -> dict[str, Any]:
        """What it is, as little plain data: for the manifest of an index, and for comparison."""
        return self.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data for JSON; :func:`from_dict` reads it back."""
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Attention(Importance):
    """The attention that a token receives in the transformer's last layer: the default for encoders without salience.

    The mean, over heads and over the positions of the text that attention sees, of the probability of attention to
    the token (our form of a score that Lassance et al. 2021 compare). Scores of a text's positions sum to 1, those of
    tokens on a skiplist included; expansion that attention leaves out has 0. It needs no training and no collection.
    Vectors are those that are encoded without it, to the last digit.

    >>> import pyterrier_mvret as mv
    >>> encoder = mv.TokenEncoder(mv.models.MINILM)
    >>> encoder.encode_docs(["The cat sat."], importance=Attention()).importance.round(2)
    array([0.52, 0.05, 0.19, 0.16, 0.04, 0.04], dtype=float32)
    """

    kind: ClassVar[str] = "attention"

    def watching(self, model: "MultiVectorEncoder") -> AbstractContextManager[None]:
        """As :func:`pyterrier_mvret.encoders.attention.watched`."""
        from pyterrier_mvret.encoders import attention

        return attention.watched(model)

    def scores(self, batch: TokenBatch) -> Floats:
        """What was watched."""
        return _said(batch, "Attention() is watched while single tokens are encoded (no token pooling)")


@dataclass(frozen=True)
class Salience(Importance):
    """What the salience heads of a model put out, before ReLU and gates (ALIGNER, equation 3): saliences rank alike.

    >>> Salience().scores(TokenBatch(np.eye(2, dtype=np.float32), np.array([0, 2])))
    Traceback (most recent call last):
    ...
    ValueError: Salience() needs a model with salience heads over single tokens, and this batch has none
    """

    kind: ClassVar[str] = "salience"

    def scores(self, batch: TokenBatch) -> Floats:
        """What the model said."""
        return _said(batch, "Salience() needs a model with salience heads over single tokens")


@dataclass(frozen=True)
class First(Importance):
    """Earlier tokens rank higher (first-k of Lassance et al. 2021): a control.

    >>> batch = TokenBatch(np.zeros((3, 4), np.float32), np.array([0, 2, 3]), np.array([7, 8, 7], np.int32))
    >>> First().scores(batch)
    array([-0., -1., -0.], dtype=float32)
    """

    kind: ClassVar[str] = "first"

    def scores(self, batch: TokenBatch) -> Floats:
        """Minus the place in the text, counted from 0."""
        ids = _token_ids(batch, "First()")  # rows that are no tokens have no order
        places = np.arange(len(ids)) - np.repeat(batch.offsets[:-1], np.diff(batch.offsets))
        return -places.astype(np.float32)


@dataclass(frozen=True)
class Random(Importance):
    """Random numbers that only the text's tokens and the seed decide, on every machine: a control.

    Attributes:
        seed: another one gives another order.

    Raises:
        ValueError: a seed that is not a whole number.

    >>> batch = TokenBatch(np.zeros((3, 4), np.float32), np.array([0, 3]), np.array([7, 8, 7], np.int32))
    >>> Random().scores(batch).round(3), Random(1).scores(batch).round(3)
    (array([0.909, 0.856, 0.773], dtype=float32), array([0.31 , 0.044, 0.665], dtype=float32))
    """

    kind: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    def scores(self, batch: TokenBatch) -> Floats:
        """From 0 to 1, cut from a hash of seed and token ids."""
        ids = _token_ids(batch, repr(self)).astype("<i4")
        rows = (ids[batch.rows(i)] for i in range(len(batch)))
        drawn = (hashlib.shake_256(f"{self.seed} ".encode() + row.tobytes()).digest(4 * len(row)) for row in rows)
        return (np.frombuffer(b"".join(drawn), "<u4") / 2**32).astype(np.float32)


@dataclass(frozen=True, repr=False)
class IDF(Importance):
    """Inverse document frequency of a token: ``ln((N + 1) / (df + 1))``, of N documents of which df have the token.

    Lassance et al. 2021 compare it; the smoothing is our choice. Tokens that no document has rank highest. Special
    tokens, and with them markers and the expansion of queries, count as in every document: they rank last, at 0; only
    the unknown token is counted. Made by :meth:`of`.

    Attributes:
        documents: N.
        frequencies: pairs of token id and df, by id.
        vocabulary: digest of how the commonest tokens are spelled: ids of another tokeniser mean other tokens.

    Raises:
        ValueError: frequencies that are not from 1 to N.

    >>> idf = IDF(3, ((7, 1), (101, 3)))
    >>> idf
    IDF(documents=3, digest='418dfcfdc1ff')
    >>> batch = TokenBatch(np.zeros((3, 4), np.float32), np.array([0, 3]), np.array([101, 7, 8], np.int32))
    >>> idf.scores(batch).round(3)
    array([0.   , 0.693, 1.386], dtype=float32)
    """

    kind: ClassVar[str] = "idf"
    documents: int
    frequencies: tuple[tuple[int, int], ...]
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        pairs = {int(token): int(df) for token, df in self.frequencies}
        if not all(token >= 0 and 0 < df <= self.documents for token, df in pairs.items()):
            raise ValueError(f"document frequencies must be from 1 to the number of documents, {self.documents}")
        object.__setattr__(self, "frequencies", tuple(sorted(pairs.items())))

    @classmethod
    def of(cls, encoder: "TokenEncoder", texts: Iterable[str], verbose: bool = False) -> "IDF":
        """Counts the tokens of documents, as the encoder cuts them; nothing is encoded.

        Tokens of a skiplist are counted, too: queries may keep them.

        Args:
            encoder: whose tokeniser, prefix and length of documents are used.
            texts: documents, read once and in blocks; equal ones count as often as they come.
            verbose: a progress bar.

        Raises:
            ValueError: no texts, or something else than a text.

        >>> import pyterrier_mvret as mv
        >>> encoder = mv.TokenEncoder(mv.models.MINILM)
        >>> idf = IDF.of(encoder, ["the cat sat", "the dog ran", "the cat ran"])
        >>> idf.scores(encoder.encode_docs(["the cat flew"])).round(2)
        array([0.  , 0.  , 0.29, 1.39, 0.  ], dtype=float32)
        """
        if isinstance(texts, str):
            raise ValueError("expected texts, got one string")
        model, counts, documents = encoder.model, Counter[int](), 0
        for block in _blocks(pt.tqdm(texts, desc="counting tokens", unit="text", disable=not verbose)):
            inputs = batches.with_prefix(model, block, "document")
            tokens, df = _document_frequencies(batches.tokenised(model, inputs, "document"))
            counts.update(dict(zip(tokens.tolist(), df.tolist(), strict=True)))
            documents += len(block)
        if not documents:
            raise ValueError("IDF needs documents to count tokens in, and there are none")
        for token in set(model.tokenizer.all_special_ids) - {model.tokenizer.unk_token_id}:
            counts[token] = documents
        counted = cls(documents, tuple(counts.items()))
        return replace(counted, vocabulary=counted._spelled_by(model.tokenizer))

    def watching(self, model: "MultiVectorEncoder") -> AbstractContextManager[None]:
        """Nothing is needed of the model but that its vocabulary is the one whose tokens were counted."""
        found = self._spelled_by(model.tokenizer)
        if self.vocabulary not in (None, found):
            raise ValueError(
                f"{self!r} is of token ids of another vocabulary: digest {self.vocabulary}, the encoder's is {found}"
            )
        return nullcontext()

    def scores(self, batch: TokenBatch) -> Floats:
        """Inverse document frequencies of the batch's token ids."""
        ids = _token_ids(batch, "IDF")
        df = np.zeros(max(len(self._by_id), ids.max(initial=0) + 1), np.int64)
        df[: len(self._by_id)] = self._by_id
        return np.log((self.documents + 1) / (df[ids] + 1)).astype(np.float32)

    def describe(self) -> dict[str, Any]:
        """The number of documents and a digest."""
        return {"kind": self.kind, "documents": self.documents, "digest": self._digest}

    def __repr__(self) -> str:
        return f"IDF(documents={self.documents}, digest={self._digest!r})"

    @cached_property
    def _digest(self) -> str:
        return _digest(self.to_dict())

    @cached_property
    def _by_id(self) -> npt.NDArray[np.int64]:
        counted = dict(self.frequencies)
        by_id = np.zeros(max(counted, default=-1) + 1, np.int64)
        by_id[list(counted)] = list(counted.values())
        return by_id

    def _spelled_by(self, tokenizer: Any) -> str:
        commonest = np.argsort(-self._by_id, kind="stable")[:_TOKENS_SPELLED].tolist()
        return _digest(tokenizer.convert_ids_to_tokens(commonest))


_NAMED: dict[str, Importance] = {i.kind: i for i in (Attention(), First(), Random(), Salience())}


def named(importance: str | Importance) -> Importance:
    """The importance of a name, or the one that is given.

    Args:
        importance: ``"attention"``, ``"first"``, ``"random"``, ``"salience"``, or a value of this module.

    Raises:
        ValueError: neither an importance nor one of the names.

    >>> named("attention"), named(Random(3))
    (Attention(), Random(seed=3))
    """
    if isinstance(importance, Importance):
        return importance
    if importance == IDF.kind:
        raise ValueError("importance 'idf' needs documents to count in: make it with IDF.of(encoder, texts)")
    if not isinstance(importance, str) or importance not in _NAMED:
        raise ValueError(f"importance must be {', '.join(_NAMED)}, or IDF.of(encoder, texts), got {importance!r}")
    return _NAMED[importance]


def from_dict(data: Mapping[str, Any]) -> Importance:
    """The importance that :meth:`Importance.to_dict` wrote, also after JSON.

    Raises:
        ValueError: data of something else.

    >>> from_dict(json.loads(json.dumps(Random(3).to_dict())))
    Random(seed=3)
    """
    settings = dict(data)
    kinds: dict[str, type[Importance]] = {cls.kind: cls for cls in (Attention, First, IDF, Random, Salience)}
    kind = settings.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"an importance is of kind {', '.join(kinds)}, not {kind!r}")
    try:
        return kinds[kind](**settings)
    except TypeError as error:
        raise ValueError(f"not the data of importance {kind!r}: {error}") from error


def pruned(batch: TokenBatch, share: float) -> TokenBatch:
    """The batch with a share of each text's tokens: ``ceil(share * tokens)`` of the highest importance, at least one.

    Args:
        batch: with ``importance``.
        share: of tokens that are kept, from 0 to 1; 1 keeps all.

    Returns:
        A batch of as many texts, their tokens in reading order, all fields row for row; texts without tokens stay so.

    Raises:
        ValueError: a share outside 0 to 1, or no importance.

    >>> batch = TokenBatch(np.eye(3, dtype=np.float32), np.array([0, 2, 3]), importance=np.array([0.1, 0.3, 0.2]))
    >>> pruned(batch, 0.5).vectors, pruned(batch, 0.5).offsets
    (array([[0., 1., 0.],
           [0., 0., 1.]], dtype=float32), array([0, 1, 2]))
    """
    if checked_share(share, "share") == 1:
        return batch
    if batch.importance is None:
        raise ValueError("the batch has nothing to rank tokens by: encode it with importance=")
    rows = salience.kept(batch.importance, share, batch.offsets)
    values = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "offsets"}
    by_row = {name: value[rows] for name, value in values.items() if value is not None}
    return TokenBatch(offsets=np.searchsorted(rows, batch.offsets).astype(np.int64), **by_row)


def _document_frequencies(features: Mapping[str, Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids of tokens, ascending, and in how many of the tokenised texts each is."""
    ids = np.asarray(features["input_ids"])
    if "cu_seq_lens_q" in features:  # packed into one row for flash attention
        lengths = np.diff(np.asarray(features["cu_seq_lens_q"]))
        texts, ids = np.repeat(np.arange(len(lengths)), lengths), ids[0]
    else:
        real = np.asarray(features["attention_mask"]).astype(bool)
        texts, ids = real.nonzero()[0], ids[real]
    count = max(1, len(texts))
    once = np.unique(ids.astype(np.int64) * count + texts) // count  # of equal tokens of a text one
    return np.unique(once, return_counts=True)


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while block := list(islice(rest, _TEXTS_A_BLOCK)):
        for text in block:
            if not isinstance(text, str):
                raise ValueError(f"expected texts, got {text!r}")
        yield block


def _said(batch: TokenBatch, needs: str) -> Floats:
    if batch.importance is None:
        raise ValueError(f"{needs}, and this batch has none")
    return batch.importance


def _token_ids(batch: TokenBatch, what: str) -> npt.NDArray[np.int32]:
    if batch.token_ids is None:
        raise ValueError(f"{what} ranks single tokens, and this batch has none (token pooling?)")
    return batch.token_ids


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:12]
