"""The pipeline stages around a :class:`TokenEncoder`; users get them from a model's verbs."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.token_batch import TokenBatch
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.scoring import MaxSim

# texts whose vectors are held at once while reranking: some hundred megabytes at common lengths
_TEXTS_A_BLOCK = 4096


class QueryEncoder(Component):
    """Adds ``query_embs`` (and token ids, and which encoder it was) to frames with ``query``; equal queries once."""

    def __init__(self, encoder: "TokenEncoder", verbose: bool = False):
        self.encoder, self.verbose = encoder, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Q or R with ``query`` -> the same with ``query_embs``."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        if not len(inp):
            names = [frames.QUERY_EMBS, frames.QUERY_TOK_IDS]
            nothing = {name: frames.object_column([], inp.index) for name in names}
            nothing[frames.QUERY_ENCODER] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, frames.QUERY_COLUMNS, **nothing)
        texts = query_texts(inp)
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        batch = self.encoder.encode_queries(list(place), verbose=self.verbose)
        batch.vectors.flags.writeable = False  # rows of one query share their array
        at = [place[text] for text in texts]
        columns = {frames.QUERY_EMBS: frames.object_column((batch[i] for i in at), inp.index)}
        if batch.token_ids is not None:
            ids = batch.token_ids
            columns[frames.QUERY_TOK_IDS] = frames.object_column((ids[batch.rows(i)] for i in at), inp.index)
        if batch.weights is not None:
            weights = batch.weights
            columns[frames.QUERY_WEIGHTS] = frames.object_column((weights[batch.rows(i)] for i in at), inp.index)
        return frames.replaced(inp, frames.QUERY_COLUMNS, **columns, **{frames.QUERY_ENCODER: self.encoder.space})


class DocEncoder(Component):
    """Adds ``doc_embs`` (with token ids, character offsets, and how they were made) to frames with text."""

    _label = "DocEncoder"
    #: documents that an indexing pipeline hands over at once: enough to put texts of like length together
    batch_size = 512

    def __init__(self, encoder: "TokenEncoder", scoring: "MaxSim", text_field: str = "text", verbose: bool = False):
        self.encoder, self.scoring = encoder, scoring
        self.text_field, self.verbose = text_field, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """D or R with text -> the same with ``doc_embs``."""
        pt.validate.columns(inp, includes=["docno", self.text_field], context=self)
        optional = {frames.DOC_TOK_IDS: "token_ids", frames.DOC_TOK_OFFSETS: "spans"}
        if not len(inp):
            promised = [frames.DOC_EMBS, *(optional if self.encoder.token_pooling is None else ())]
            nothing = {c: frames.object_column([], inp.index) for c in promised}
            nothing[frames.DOC_ENCODER] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, frames.DOC_COLUMNS, **nothing)
        batch = self.encoder.encode_docs(frames.texts_of(inp, self.text_field), verbose=self.verbose)
        columns = {frames.DOC_EMBS: frames.object_column(batch, inp.index)}
        for column, field in optional.items():
            rows = getattr(batch, field)
            if rows is not None:
                columns[column] = frames.object_column((rows[batch.rows(i)] for i in range(len(batch))), inp.index)
        made = json.dumps({**self.encoder.describe(), "scoring": vars(self.scoring)})
        return frames.replaced(inp, frames.DOC_COLUMNS, **columns, **{frames.DOC_ENCODER: made})

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Rows that a cutoff drops need no vectors: the cutoff goes first."""
        return pt.RankCutoff(k) >> self


class TextScorer(Component):
    """Scores frames with ``query`` and text, encoding both now; every text of a block of queries is encoded once."""

    def __init__(self, encoder: "TokenEncoder", scoring: "MaxSim", text_field: str = "text", verbose: bool = False):
        self.encoder, self.scoring = encoder, scoring
        self.text_field, self.verbose = text_field, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with text -> R."""
        pt.validate.result_frame(inp, ["query", self.text_field], context=self)
        if not len(inp):
            return frames.with_scores(inp, np.empty(0))
        texts = frames.texts_of(inp, self.text_field)
        queries = query_texts(inp)
        scores = np.empty(len(inp), dtype=np.float64)
        groups = [rows for _, rows in frames.query_groups(inp)]
        encoded = self.encoder.encode_queries([queries[rows[0]] for rows in groups])
        weights = [frames.query_weights(inp, rows, len(query)) for rows, query in zip(groups, encoded, strict=True)]
        place: dict[str, int] = {}
        block: list[int] = []
        for i, rows in enumerate(groups):
            block.append(i)
            for row in rows:
                place.setdefault(texts[row], len(place))
            if len(place) >= _TEXTS_A_BLOCK or i == len(groups) - 1:
                documents = self.encoder.encode_docs(list(place), verbose=self.verbose)
                for j in block:
                    at = np.array([place[texts[row]] for row in groups[j]])
                    scores[groups[j]] = self._scores(encoded[j], documents, at, weights[j])
                place, block = {}, []
        return frames.with_scores(inp, scores)

    def _scores(
        self, query: npt.NDArray[Any], documents: "TokenBatch", at: npt.NDArray[Any], weights: npt.NDArray[Any] | None
    ) -> npt.NDArray[Any]:
        lengths = np.diff(documents.offsets)[at]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        packed = np.concatenate([documents[i] for i in at])
        return self.scoring.scores(query, packed, offsets, weights)


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
