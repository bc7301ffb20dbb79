"""The pipeline stages of a :class:`VectorEncoder`; users get them from its verbs."""

import json
from typing import TYPE_CHECKING

import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.encoders.stages import query_texts

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.vector_encoder import VectorEncoder


class VecQueryEncoder(Component):
    """Adds ``query_vec`` (and which encoder it was) to frames with ``query``; equal queries once.

    Args:
        encoder: whose vectors they are.
        verbose: progress bars.

    >>> import pyterrier_mvret as mv
    >>> encode = mv.VectorEncoder(mv.models.MINILM).query_encoder()
    >>> encode(pd.DataFrame({"qid": ["1"], "query": ["a cat"]}))["query_vec"][0].shape
    (384,)
    """

    def __init__(self, encoder: "VectorEncoder", verbose: bool = False):
        self.encoder, self.verbose = encoder, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Q or R with ``query`` -> the same with ``query_vec``."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        if not len(inp):
            nothing = {frames.QUERY_VEC: frames.object_column([], inp.index)}
            nothing[frames.QUERY_VEC_ENCODER] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, frames.QUERY_VEC_COLUMNS, **nothing)
        texts = query_texts(inp)
        distinct = list(dict.fromkeys(texts))
        vectors = self.encoder.encode_queries(distinct, verbose=self.verbose)
        vectors.flags.writeable = False  # rows of one query share their array
        of = dict(zip(distinct, vectors, strict=True))
        columns = {frames.QUERY_VEC: frames.object_column((of[text] for text in texts), inp.index)}
        return frames.replaced(
            inp, frames.QUERY_VEC_COLUMNS, **columns, **{frames.QUERY_VEC_ENCODER: self.encoder.space}
        )


class VecDocEncoder(Component):
    """Adds ``doc_vec`` (and how it was made) to frames with text.

    Args:
        encoder: whose vectors they are.
        text_field: the column with the text.
        verbose: progress bars.

    >>> import pyterrier_mvret as mv
    >>> encode = mv.VectorEncoder(mv.models.MINILM).doc_encoder()
    >>> encode(pd.DataFrame({"docno": ["d"], "text": ["A cat sat."]}))["doc_vec"][0].shape
    (384,)
    """

    #: documents that an indexing pipeline hands over at once: enough to put texts of like length together
    batch_size = 512

    def __init__(self, encoder: "VectorEncoder", text_field: str = "text", verbose: bool = False):
        self.encoder, self.text_field, self.verbose = encoder, text_field, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """D or R with text -> the same with ``doc_vec``."""
        pt.validate.columns(inp, includes=["docno", self.text_field], context=self)
        if not len(inp):
            nothing = {frames.DOC_VEC: frames.object_column([], inp.index)}
            nothing[frames.DOC_VEC_ENCODER] = pd.Series([], index=inp.index, dtype="str")
            return frames.replaced(inp, frames.DOC_VEC_COLUMNS, **nothing)
        vectors = self.encoder.encode_docs(frames.texts_of(inp, self.text_field), verbose=self.verbose)
        columns = {frames.DOC_VEC: frames.object_column(vectors, inp.index)}
        made = json.dumps(self.encoder.describe())
        return frames.replaced(inp, frames.DOC_VEC_COLUMNS, **columns, **{frames.DOC_VEC_ENCODER: made})

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Rows that a cutoff drops need no vectors: the cutoff goes first."""
        return pt.RankCutoff(k) >> self
