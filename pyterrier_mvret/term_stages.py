"""The pipeline stages that turn text into weighted terms; users get them from ``LatentTerms`` and ``Laspar``."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component, Configured
from pyterrier_mvret.encoders.stages import blocks_of, query_texts
from pyterrier_mvret.encoders.states import Layer, checked_layer, token_states
from pyterrier_mvret.scoring.latent_vectors import dot
from pyterrier_mvret.scoring.pooling import Pool, Transform, check_pooling, pooled_terms

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.sae import TopKSAE
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

Task = Literal["query", "document"]
# texts whose states are held at once: a few hundred megabytes at common lengths and widths
_TEXTS_A_BLOCK = 512


class Vocabulary(Configured, ABC):
    """What gives texts their weighted terms, as a value: all that a stage needs of a method."""

    encoder: "TokenEncoder"

    @property
    @abstractmethod
    def space(self) -> str:
        """``name#digest`` of the terms: equal digests mean terms and weights that can be compared."""

    @abstractmethod
    def of_documents(self) -> dict[str, Any]:
        """What else the documents of one index must share."""

    @abstractmethod
    def terms(self, texts: list[str], task: Task, verbose: bool = False) -> list[dict[str, float]]:
        """Terms of each text with their weights, the heaviest first; equal texts are encoded once."""

    def _named(self, what: str, *told: Any) -> str:
        """A space, by the encoder's own and what is told besides."""
        name, _, digest = self.encoder.space.rpartition("#")
        return f"{name}+{what}#{hashlib.sha256(json.dumps([digest, *told]).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Pooling:
    """How states of a text's tokens become its terms.

    Attributes:
        layer: ``"last_hidden_state"``, or ``"projected"`` for what a multi-vector model's projection makes of it.
        special_tokens: whether markers, [CLS], [SEP] count.
        pool: ``"sum"`` or ``"max"`` over tokens.
        transform: ``"sqrt"``, ``"identity"``, ``"log1p"`` or ``"binary"``, of what was pooled.
        prefix: what a term begins with, before the latent's number.
    """

    layer: Layer = "last_hidden_state"
    special_tokens: bool = True
    pool: Pool = "sum"
    transform: Transform = "sqrt"
    prefix: str = "z"

    def __post_init__(self) -> None:
        checked_layer(self.layer)
        check_pooling(self.pool, self.transform)


class SAEVocabulary(Vocabulary):
    """Latents of a sparse autoencoder over token states (Latent Terms).

    Args:
        encoder: whose states.
        sae: whose latents.
        pooling: from one to the other.
        top: terms of a text at most; none keeps all.
    """

    def __init__(self, encoder: "TokenEncoder", sae: "TopKSAE", pooling: Pooling, top: int | None = None):
        if top is not None and top < 1:
            raise ValueError(f"a text keeps at least 1 term, got {top}")
        self.encoder, self.sae, self.pooling, self.top = encoder, sae, pooling, top

    @property
    def space(self) -> str:
        """See the base."""
        return self._named(f"{self.sae.latents} latents", self.sae.digest, asdict(self.pooling))

    def of_documents(self) -> dict[str, Any]:
        """See the base."""
        return {"top": self.top}

    def terms(self, texts: list[str], task: Task, verbose: bool = False) -> list[dict[str, float]]:
        """See the base."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct, found = list(place), []
        what = "queries" if task == "query" else "documents"
        pool, transform = self.pooling.pool, self.pooling.transform
        with pt.tqdm(total=len(distinct), desc=f"terms of {what}", unit="text", disable=not verbose) as bar:
            for start in range(0, len(distinct), _TEXTS_A_BLOCK):
                block = distinct[start : start + _TEXTS_A_BLOCK]
                states = token_states(self.encoder, block, task, self.pooling.layer, self.pooling.special_tokens)
                activations, ids = (part.cpu().numpy() for part in self.sae.encode(states.states))
                found += self._dicts(*pooled_terms(activations, ids, states.offsets, pool, transform, self.top))
                bar.update(len(block))
        return [found[place[text]] for text in texts]

    def _dicts(
        self, offsets: npt.NDArray[Any], latents: npt.NDArray[Any], weights: npt.NDArray[Any]
    ) -> list[dict[str, float]]:
        text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((latents, -weights, text))
        names = [f"{self.pooling.prefix}{latent}" for latent in latents[order].tolist()]
        values = weights[order].tolist()
        return [
            dict(zip(names[a:b], values[a:b], strict=True))
            for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ]


class QueryTermEncoder(Component):
    """Q (or R) with ``query`` -> the same with ``query_toks``; a model's ``query_encoder()``.

    Args:
        vocabulary: whose terms.
        verbose: progress bars.
    """

    def __init__(self, vocabulary: Vocabulary, verbose: bool = False):
        self.vocabulary, self.verbose = vocabulary, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds ``query_toks``, a dict a query, and of which vocabulary they are."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        terms: list[Any] = self.vocabulary.terms(query_texts(inp), "query", self.verbose) if len(inp) else []
        columns = {frames.QUERY_TOKS: frames.object_column(terms, inp.index)}
        space = self.vocabulary.space if len(inp) else ""
        columns[frames.QUERY_TOKS_ENCODER] = pd.Series([space] * len(inp), index=inp.index, dtype="str")
        return frames.replaced(inp, frames.QUERY_TOKS_COLUMNS, **columns)


class DocTermEncoder(Component):
    """D or R with text -> the same with ``toks``; a model's ``doc_encoder()``.

    Args:
        vocabulary: whose terms.
        text_field: the column with the text.
        verbose: progress bars.
    """

    #: documents that an indexing pipeline hands over at once: enough to put texts of like length together
    batch_size = 512

    def __init__(self, vocabulary: Vocabulary, text_field: str = "text", verbose: bool = False):
        self.vocabulary, self.text_field, self.verbose = vocabulary, text_field, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds ``toks``, a dict a document, and how they were made."""
        pt.validate.columns(inp, includes=["docno", self.text_field], context=self)
        texts = frames.texts_of(inp, self.text_field)
        terms: list[Any] = self.vocabulary.terms(texts, "document", self.verbose) if texts else []
        columns = {frames.TOKS: frames.object_column(terms, inp.index)}
        made = self._made() if len(inp) else ""
        columns[frames.TOKS_ENCODER] = pd.Series([made] * len(inp), index=inp.index, dtype="str")
        return frames.replaced(inp, frames.TOKS_COLUMNS, **columns)

    def _made(self) -> str:
        """How the terms were made, for the index that they go to."""
        about = self.vocabulary.encoder.describe()["document"]
        document = {"prefix": about["prefix"], "length": about["length"], **self.vocabulary.of_documents()}
        return json.dumps({"space": self.vocabulary.space, "document": document})


class TermScorer(Component):
    """R with ``query`` and text -> R by the dot product of their terms, encoding both now: a model's ``text_scorer()``.

    Args:
        vocabulary: whose terms.
        text_field: the column with the text.
        verbose: progress bars.
    """

    def __init__(self, vocabulary: Vocabulary, text_field: str = "text", verbose: bool = False):
        self.vocabulary, self.text_field, self.verbose = vocabulary, text_field, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with text -> R; texts that share no term score 0."""
        pt.validate.result_frame(inp, ["query", self.text_field], context=self)
        scores = np.empty(len(inp), dtype=np.float64)
        if len(inp):
            texts, asked = frames.texts_of(inp, self.text_field), query_texts(inp)
            groups = [rows for _, rows in frames.query_groups(inp)]
            queries = self.vocabulary.terms([asked[rows[0]] for rows in groups], "query")
            for block, distinct in blocks_of(texts, groups):
                documents = self.vocabulary.terms(distinct, "document", self.verbose)
                for i, at in block:
                    scores[groups[i]] = [dot(queries[i], documents[one]) for one in at]
        return frames.with_scores(inp, scores)
