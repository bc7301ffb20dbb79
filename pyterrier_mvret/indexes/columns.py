"""What an index of vectors calls its columns, and how their cells are read: all that its stages need to know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret import frames

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of index.

    Attributes:
        query: a query's vectors.
        query_encoder: the space that they are of.
        doc: a document's vectors.
        doc_encoder: how they were made.
        doc_group: columns of documents that belong together.
        rows: ``(cell, what it is called)`` to a (rows, dim) float32 array; ValueError for what is none.
        cell: a (rows, dim) array to what a cell holds.
        weighed: whether queries may come with a weight a row.
    """

    query: str
    query_encoder: str
    doc: str
    doc_encoder: str
    doc_group: tuple[str, ...]
    rows: Callable[[Any, str], Array]
    cell: Callable[[Array], Array]
    weighed: bool


def _one_row(value: Any, what: str) -> Array:
    return frames.vector(value, what)[None]


#: a row a token
TOKENS = Columns(
    frames.QUERY_EMBS,
    frames.QUERY_ENCODER,
    frames.DOC_EMBS,
    frames.DOC_ENCODER,
    frames.DOC_COLUMNS,
    rows=frames.matrix,
    cell=np.asarray,
    weighed=True,
)
#: one row a text
TEXTS = Columns(
    frames.QUERY_VEC,
    frames.QUERY_VEC_ENCODER,
    frames.DOC_VEC,
    frames.DOC_VEC_ENCODER,
    frames.DOC_VEC_COLUMNS,
    rows=_one_row,
    cell=lambda rows: rows[0],
    weighed=False,
)
