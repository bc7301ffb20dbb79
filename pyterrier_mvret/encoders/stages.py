"""The pipeline stages around a :class:`TokenEncoder`; users get them from a model's verbs."""

import json
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.scoring import MaxSim
from pyterrier_mvret.scoring.ragged import ragged_rows

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.pruning import Pruning
    from pyterrier_mvret.encoders.token_batch import TokenBatch
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.scoring import ScoringRule

# texts whose vectors are held at once while reranking: some hundred megabytes at common lengths
_TEXTS_A_BLOCK = 4096

K = TypeVar("K", bound=Hashable)


class QueryEncoder(Component):
    """Adds ``query_embs`` (and token ids, and which encoder it was) to frames with ``query``; equal queries once.

    Args:
        encoder: whose vectors they are.
        verbose: progress bars.
        weighed: also add ``query_weights``, saliences, as soon as the encoder has heads for them.
        pruning: which tokens are kept; none keeps all.
    """

    def __init__(
        self, encoder: "TokenEncoder", verbose: bool = False, weighed: bool = False, pruning: "Pruning | None" = None
    ):
        self.encoder, self.verbose = encoder, verbose
        self.weighed, self.pruning = weighed, pruning

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Q or R with ``query`` -> the same with ``query_embs``."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        weighed = self.weighed and self.encoder.has_salience
        if not len(inp):
            names = [frames.QUERY_EMBS, frames.QUERY_TOK_IDS, *[frames.QUERY_WEIGHTS] * weighed]
            nothing = {name: frames.object_column([], inp.index) for name in names}
            nothing[frames.QUERY_ENCODER] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, frames.QUERY_COLUMNS, **nothing)
        texts = query_texts(inp)
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        batch = _encoded(self.encoder, list(place), "query", self.pruning, self.verbose)
        batch.vectors.flags.writeable = False  # rows of one query share their array
        at = [place[text] for text in texts]
        columns = {frames.QUERY_EMBS: frames.object_column((batch[i] for i in at), inp.index)}
        if batch.token_ids is not None:
            ids = batch.token_ids
            columns[frames.QUERY_TOK_IDS] = frames.object_column((ids[batch.rows(i)] for i in at), inp.index)
        if weighed:
            weights = _saliences(batch, self.encoder)
            columns[frames.QUERY_WEIGHTS] = frames.object_column((weights[batch.rows(i)] for i in at), inp.index)
        return frames.replaced(inp, frames.QUERY_COLUMNS, **columns, **{frames.QUERY_ENCODER: self.encoder.space})


class DocEncoder(Component):
    """Adds ``doc_embs`` (with token ids, character offsets, and how they were made) to frames with text."""

    _label = "DocEncoder"
    #: documents that an indexing pipeline hands over at once: enough to put texts of like length together
    batch_size = 512

    def __init__(
        self,
        encoder: "TokenEncoder",
        scoring: "ScoringRule",
        text_field: str = "text",
        verbose: bool = False,
        weighed: bool = False,
        pruning: "Pruning | None" = None,
    ):
        self.encoder, self.scoring = encoder, scoring
        self.text_field, self.verbose = text_field, verbose
        self.weighed, self.pruning = weighed, pruning

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """D or R with text -> the same with ``doc_embs``."""
        pt.validate.columns(inp, includes=["docno", self.text_field], context=self)
        optional = {frames.DOC_TOK_IDS: "token_ids", frames.DOC_TOK_OFFSETS: "spans"}
        weighed = self.weighed and self.encoder.has_salience
        weights = {frames.DOC_WEIGHTS: "weights"} if weighed else {}
        if not len(inp):
            promised = [frames.DOC_EMBS, *(optional if self.encoder.token_pooling is None else ()), *weights]
            nothing = {c: frames.object_column([], inp.index) for c in promised}
            nothing[frames.DOC_ENCODER] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, frames.DOC_COLUMNS, **nothing)
        texts = frames.texts_of(inp, self.text_field)
        batch = _encoded(self.encoder, texts, "document", self.pruning, self.verbose)
        if weighed:
            _saliences(batch, self.encoder)
        columns = {frames.DOC_EMBS: frames.object_column(batch, inp.index)}
        for column, field in {**optional, **weights}.items():
            rows = getattr(batch, field)
            if rows is not None:
                columns[column] = frames.object_column((rows[batch.rows(i)] for i in range(len(batch))), inp.index)
        return frames.replaced(inp, frames.DOC_COLUMNS, **columns, **{frames.DOC_ENCODER: self._made()})

    def _made(self) -> str:
        """How the vectors were made, for the index that they go to."""
        made = {**self.encoder.describe(), "scoring": self.scoring.describe()}
        if self.pruning is not None and self.pruning.document is not None:
            by = self.pruning.ranking(self.encoder).describe()
            made["document"] = {**made["document"], "kept": self.pruning.document, "by": by}
        return json.dumps(made)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Rows that a cutoff drops need no vectors: the cutoff goes first."""
        return pt.RankCutoff(k) >> self


class TextScorer(Component):
    """Scores frames with ``query`` and text, encoding both now; every text of a block of queries is encoded once."""

    def __init__(
        self,
        encoder: "TokenEncoder",
        scoring: "ScoringRule",
        text_field: str = "text",
        verbose: bool = False,
        pruning: "Pruning | None" = None,
    ):
        self.encoder, self.scoring = encoder, scoring
        self.text_field, self.verbose, self.pruning = text_field, verbose, pruning

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with text -> R."""
        pt.validate.result_frame(inp, ["query", self.text_field], context=self)
        if not len(inp):
            return frames.with_scores(inp, np.empty(0))
        texts = frames.texts_of(inp, self.text_field)
        queries = query_texts(inp)
        scores = np.empty(len(inp), dtype=np.float64)
        groups = [rows for _, rows in frames.query_groups(inp)]
        encoded = _encoded(self.encoder, [queries[rows[0]] for rows in groups], "query", self.pruning, False)
        weights = [self._weights(inp, rows, encoded, i) for i, rows in enumerate(groups)]
        for block, distinct in blocks_of(texts, groups):
            documents = _encoded(self.encoder, distinct, "document", self.pruning, self.verbose)
            for i, at in block:
                scores[groups[i]] = self._scores(encoded[i], documents, at, weights[i])
        return frames.with_scores(inp, scores)

    def _weights(
        self, inp: pd.DataFrame, rows: npt.NDArray[np.intp], encoded: "TokenBatch", i: int
    ) -> npt.NDArray[Any] | None:
        """Of a query's tokens: those of the frame, else the encoder's saliences where the rule has any use for them.

        Weights beside vectors are of those vectors' tokens, perhaps another model's or fewer: not of these.
        """
        given = None if frames.QUERY_EMBS in inp.columns else frames.query_weights(inp, rows, len(encoded[i]))
        if given is not None or not self.scoring.salience or encoded.weights is None:
            return given
        return encoded.weights[encoded.rows(i)]

    def _scores(
        self, query: npt.NDArray[Any], documents: "TokenBatch", at: npt.NDArray[Any], weights: npt.NDArray[Any] | None
    ) -> npt.NDArray[Any]:
        lengths = np.diff(documents.offsets)[at]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        rows = ragged_rows(documents.offsets[:-1][at], lengths)
        packed = documents.vectors[rows]
        if isinstance(self.scoring, MaxSim) or documents.weights is None:
            return self.scoring.scores(query, packed, offsets, weights)
        return self.scoring.scores(query, packed, offsets, weights, documents.weights[rows])


def blocks_of(
    keys: Sequence[K], groups: Sequence[npt.NDArray[np.intp]]
) -> Iterator[tuple[list[tuple[int, npt.NDArray[np.intp]]], list[K]]]:
    """Queries whose documents are held at once: their numbers and the places of their rows' keys, and distinct keys.

    >>> list(blocks_of(["a", "b", "a"], [np.array([0, 1]), np.array([2])]))
    [([(0, array([0, 1])), (1, array([0]))], ['a', 'b'])]
    """
    block: list[tuple[int, npt.NDArray[np.intp]]] = []
    place: dict[K, int] = {}
    for i, rows in enumerate(groups):
        block.append((i, np.array([place.setdefault(keys[row], len(place)) for row in rows])))
        if len(place) >= _TEXTS_A_BLOCK or i == len(groups) - 1:
            yield block, list(place)
            block, place = [], {}


def _encoded(
    encoder: "TokenEncoder",
    texts: list[str],
    task: "Literal['query', 'document']",
    pruning: "Pruning | None",
    verbose: bool,
) -> "TokenBatch":
    """Token vectors of texts, those that are kept."""
    if pruning is not None:
        return pruning.encoded(encoder, texts, task, verbose)
    return (encoder.encode_queries if task == "query" else encoder.encode_docs)(texts, verbose=verbose)


def _saliences(batch: "TokenBatch", encoder: "TokenEncoder") -> npt.NDArray[np.float32]:
    if batch.weights is None:
        raise ValueError(f"{encoder} says no salience of single tokens (token pooling?)")
    return batch.weights


def query_texts(inp: pd.DataFrame) -> list[str]:
    """The query's text for every row: the first one present among the rows of its qid.

    Raises:
        ValueError: a query without text in any row, or with something else than text.
    """
    texts = np.empty(len(inp), dtype=object)
    for qid, rows in frames.query_groups(inp):
        text = frames.first_value(inp["query"], rows, qid)
        if not frames.is_text(text):
            raise ValueError(f"query {qid!r} must be a string of valid Unicode, got {text!r}")
        texts[rows] = text
    return texts.tolist()
