"""Where latents are active in texts: the rows that weights, frequencies and explanations are made of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders.states import token_states
from pyterrier_mvret.scoring.pooling import pooled_terms
from pyterrier_mvret.term_stages import Pooling

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.forward import Task
    from pyterrier_mvret.encoders.sae import TopKSAE
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

Array = npt.NDArray[Any]
#: name and text of a passage
Passage = tuple[str, str]

# texts whose states are held at once
_TEXTS_A_BLOCK = 256
# blanks of byte-level vocabularies, as these spell them
_BLANKS = str.maketrans({" ": "Ġ", "\n": "Ċ", "\t": "ĉ", "\r": "č"})


class LatentModel(Protocol):
    """What makes terms of texts: :class:`LatentTerms`."""

    encoder: "TokenEncoder"
    top_query: int | None
    top_doc: int | None

    @property
    def dictionary(self) -> "TopKSAE":
        """The autoencoder."""

    @property
    def pooling(self) -> Pooling:
        """How states become terms."""

    @property
    def space(self) -> str:
        """``name#digest`` of the vocabulary."""


class Fired(NamedTuple):
    """Active latents of texts: one row an active latent of a token, in reading order.

    Attributes:
        offsets: (texts + 1,) int64; text ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        latents: (rows,) int64.
        activations: (rows,) float32, above 0.
        token_ids: (rows,) int32.
        spans: (rows, 2) int32, characters of the token in its text; ``[0, 0]`` where it stands for no text.
    """

    offsets: Array
    latents: Array
    activations: Array
    token_ids: Array
    spans: Array

    @property
    def texts(self) -> Array:
        """(rows,) the text of each row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def only(self, rows: Array) -> "Fired":
        """Some rows of all texts, by their numbers, which rise."""
        return Fired(np.searchsorted(rows, self.offsets), *(field[rows] for field in self[1:]))

    def terms(self, pooling: Pooling, top: int | None = None) -> tuple[Array, Array, Array]:
        """Offsets, latents and weights of the texts' terms; see :func:`pooled_terms`."""
        columns = self.activations[:, None], self.latents[:, None]
        return pooled_terms(*columns, self.offsets, pooling.pool, pooling.transform, top)


def fired(model: LatentModel, texts: Sequence[str], task: "Task") -> Fired:
    """Which latents are active in which tokens of at least one text."""
    pooling = model.pooling
    states = token_states(model.encoder, texts, task, pooling.layer, pooling.special_tokens)
    activations, ids = (part.cpu().numpy() for part in model.dictionary.encode(states.states))
    rows, columns = np.nonzero(activations > 0)
    fields = ids[rows, columns], activations[rows, columns], states.token_ids[rows], states.spans[rows]
    return Fired(np.searchsorted(rows, states.offsets), *fields)


def passages_of(corpus: Iterable[Any], text_field: str = "text") -> Iterator[Passage]:
    """Names and texts of a corpus; texts without a name have their number, from 0.

    Raises:
        ValueError: no corpus, or a document without its text, by name.

    >>> list(passages_of(["a cat", {"docno": "d7", "text": "a dog"}]))
    [('0', 'a cat'), ('d7', 'a dog')]
    """
    if isinstance(corpus, str | Mapping):
        raise ValueError("a corpus is texts, or dicts with 'docno' and text: a list, a frame, an iterator")
    records = corpus.to_dict("records") if isinstance(corpus, pd.DataFrame) else corpus
    for number, one in enumerate(records):
        name = str(one.get("docno", number)) if isinstance(one, Mapping) else str(number)
        text: Any = one.get(text_field) if isinstance(one, Mapping) else one
        if not frames.is_text(text):
            raise ValueError(f"document {name!r} must have a string of valid Unicode in {text_field!r}, got {text!r}")
        yield name, text


def in_blocks(passages: Iterable[Passage], total: int | None, verbose: bool) -> Iterator[list[Passage]]:
    """Passages some at a time, with a progress bar."""
    with pt.tqdm(total=total, desc="reading", unit="text", disable=not verbose) as bar:
        rest = iter(passages)
        while block := list(islice(rest, _TEXTS_A_BLOCK)):
            yield block
            bar.update(len(block))


def size_of(corpus: Iterable[Any]) -> int | None:
    """How many texts, where it is known."""
    return len(corpus) if isinstance(corpus, Sized) else None


def frequencies(model: LatentModel, corpus: Iterable[Any], text_field: str, verbose: bool) -> pd.DataFrame:
    """How often each latent is active; see :meth:`LatentTerms.frequencies`."""
    size = model.dictionary.latents
    tokens, documents, mass = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size)
    for block in in_blocks(passages_of(corpus, text_field), size_of(corpus), verbose):
        found = fired(model, [text for _, text in block], "document")
        tokens += np.bincount(found.latents, minlength=size)
        mass += np.bincount(found.latents, weights=found.activations, minlength=size)
        documents += np.bincount(np.unique(found.texts * size + found.latents) % size, minlength=size)
    order = np.argsort(-tokens, kind="stable")
    names = [f"{model.pooling.prefix}{latent}" for latent in order.tolist()]
    columns = {"tokens": tokens[order], "documents": documents[order], "mass": mass[order]}
    return pd.DataFrame({"term": pd.Series(names, dtype="str"), **columns})


def readable(encoder: "TokenEncoder", token_ids: Array) -> list[str]:
    """Tokens as the vocabulary spells them, but byte-level ones by their letters: ``Ġcafé``, not ``ĠcafÃ©``."""
    spelled = encoder.tokens(token_ids)
    tokenizer = encoder.model.tokenizer
    if "ByteLevel" not in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)):
        return spelled
    letters = [tokenizer.convert_tokens_to_string([token]).translate(_BLANKS) for token in spelled]
    # a part of a letter's bytes has no letters
    return [byte if "\ufffd" in text else text for byte, text in zip(spelled, letters, strict=True)]
