"""Column names and frame builders: the only place that knows what a column is called.

Columns follow PyTerrier's data model. Names of query columns start with ``q``, names of document columns never do
(PyTerrier keeps the former and drops the latter when it rewrites queries).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

QUERY_EMBS = "query_embs"  # float32 (tokens, dim) array, one a query
QUERY_TOK_IDS = "query_tok_ids"  # int32 (tokens,), row for row with query_embs
QUERY_WEIGHTS = "query_weights"  # float32 (tokens,), row for row with query_embs; optional
QUERY_ENCODER = "query_encoder"  # identity of the vector space the query was encoded into
DOC_EMBS = "doc_embs"  # float32 (tokens, dim) array, one a document
DOC_TOK_IDS = "doc_tok_ids"  # int32 (tokens,), row for row with doc_embs
DOC_TOK_OFFSETS = "doc_tok_offsets"  # int32 (tokens, 2): characters [start, end) of each token in the text
DOC_WEIGHTS = "doc_weights"  # float32 (tokens,), row for row with doc_embs; optional
DOC_ENCODER = "doc_encoder"  # JSON text: everything that fixed the document vectors
QUERY_VEC = "query_vec"  # float32 (dim,) array, one a query: of the whole text, not of its tokens
QUERY_VEC_ENCODER = "query_vec_encoder"  # identity of the vector space it is of
DOC_VEC = "doc_vec"  # float32 (dim,) array, one a document
DOC_VEC_ENCODER = "doc_vec_encoder"  # JSON text: everything that fixed the document vectors
QUERY_TOKS = "query_toks"  # {term: weight}, one a query (PyTerrier's name)
QUERY_TOKS_ENCODER = "query_toks_encoder"  # identity of the vocabulary that the query's terms are of
TOKS = "toks"  # {term: weight}, one a document (PyTerrier's name)
TOKS_ENCODER = "toks_encoder"  # JSON text: everything that fixed the document's terms and weights
QUERY_SPANS = "query_spans"  # (start, end) characters of the part of a query that is scored
SPANS = "spans"  # characters of a passage's units: (start, end) pairs, or lists of pairs for propositions
PARENT = "parent_docno"  # the passage that a unit is of
START = "start"  # characters [start, end) of a unit in its passage
END = "end"
UNIT_SCORE = "unit_score"  # of the unit's own tokens
PASSAGE_SCORE = "passage_score"  # of all tokens of its passage
BEST_UNIT = "best_unit"  # of a passage that units were folded back to
ANSWER = "qanswer"  # a generated answer, one a query (PyTerrier-RAG's name): a string, or a list of its sentences
QUERY_PROPOSITIONS = "qpropositions"  # for each sentence of the answer its propositions: strings, or lists of spans
SENTENCE_ID = "sentence_id"  # number of a sentence in its answer, from 0
SENTENCE = "sentence"  # its text
SENTENCE_START = "sentence_start"  # characters [start, end) of it in the answer
SENTENCE_END = "sentence_end"
PROPOSITIONS = "propositions"  # numbers of a sentence's propositions that cite the passage
MARGIN = "margin"  # by how much the passage is ahead of the next one
CITED = "docnos"  # passages that a sentence cites, best first
CITED_ANSWER = "qanswer_cited"  # an answer with numbers of passages behind its sentences
CITATIONS = "qcitations"  # docnos of these numbers

# columns that belong together: whoever replaces the vectors replaces or drops the others
QUERY_COLUMNS = (QUERY_EMBS, QUERY_TOK_IDS, QUERY_WEIGHTS, QUERY_ENCODER)
QUERY_VEC_COLUMNS = (QUERY_VEC, QUERY_VEC_ENCODER)
DOC_VEC_COLUMNS = (DOC_VEC, DOC_VEC_ENCODER)
QUERY_TOKS_COLUMNS = (QUERY_TOKS, QUERY_TOKS_ENCODER)
TOKS_COLUMNS = (TOKS, TOKS_ENCODER)
CITATION_COLUMNS = (SENTENCE_ID, SENTENCE, SENTENCE_START, SENTENCE_END, MARGIN, PROPOSITIONS)
UNIT_COLUMNS = (SPANS, PARENT, START, END, UNIT_SCORE, PASSAGE_SCORE)
DOC_COLUMNS = (DOC_EMBS, DOC_TOK_IDS, DOC_TOK_OFFSETS, DOC_WEIGHTS, DOC_ENCODER)


def is_missing(value: Any) -> bool:
    """True for the values that pandas leaves where a column has none (None, NaN, NA); False for any array.

    >>> [is_missing(v) for v in (None, float("nan"), "", np.zeros((0, 4)))]
    [True, True, False, False]
    """
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def object_column(values: Iterable[Any], index: pd.Index) -> pd.Series:
    """A column of Python objects, right also when empty (an empty list would make a column of floats)."""
    column = np.empty(len(index), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return pd.Series(column, index=index, dtype=object)


def replaced(frame: pd.DataFrame, group: Sequence[str], **columns: Any) -> pd.DataFrame:
    """The frame with new columns of a group that belongs together; old ones of the group do not stay beside them."""
    stale = [c for c in group if c in frame.columns and c not in columns]
    return frame.drop(columns=stale).assign(**columns)


def query_groups(frame: pd.DataFrame) -> Iterator[tuple[str, npt.NDArray[np.intp]]]:
    """Each qid with the *positions* of its rows (index labels may repeat), in order of first appearance.

    Raises:
        ValueError: a row without a qid.
    """
    query, qids = numbered(frame["qid"])
    if (query < 0).any():
        raise ValueError(f"row {int(query.argmin())} has no qid")
    rows = np.argsort(query, kind="stable")
    ends = np.cumsum(np.bincount(query, minlength=len(qids)))
    yield from zip(qids, np.split(rows, ends[:-1]), strict=False)  # a frame without rows: one part, no qid


def numbered(column: pd.Series) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.object_]]:
    """A column as numbers of its distinct values, -1 where there is none, and those values as they first appear."""
    return pd.factorize(column.to_numpy(dtype=object))  # as objects: pandas takes longer over its own strings


def first_value(column: pd.Series, rows: npt.NDArray[np.intp], qid: str) -> Any:
    """The first value present among a query's rows.

    ``A + B`` leaves query columns empty in rows that only ``B`` returned, so any one row may lack it.

    Raises:
        ValueError: no row of the query has a value.
    """
    value = _first_present(column, rows)
    if value is None:
        raise ValueError(f"column {column.name!r} has no value in any row of query {qid!r}")
    return value


def _first_present(column: pd.Series, rows: npt.NDArray[np.intp]) -> Any:
    values = column.array  # without the cost of .iloc a row
    return next((values[row] for row in rows if not is_missing(values[row])), None)


def is_text(value: Any) -> bool:
    r"""True for a string that is valid Unicode (a lone surrogate, as in broken JSON, is not).

    >>> is_text("caf\u00e9"), is_text("\ud83d"), is_text(None)
    (True, False, False)
    """
    try:
        return isinstance(value, str) and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False


def first_no_text(values: Sequence[Any]) -> int | None:
    r"""The position of the first value that is not :func:`is_text`; None if all are.

    >>> first_no_text(["a", "\u00e9"]), first_no_text(["a", 3, "\ud83d"]), first_no_text(["a", "\ud83d", "\ude00"])
    (None, 1, 1)
    """
    try:
        "".join(values).encode()  # all at once: a check a name would cost more than finding the name
        return None
    except (TypeError, UnicodeEncodeError):
        return next(i for i, value in enumerate(values) if not is_text(value))


def query_weights(frame: pd.DataFrame, rows: npt.NDArray[np.intp], tokens: int) -> npt.NDArray[np.float32] | None:
    """A query's token weights, if the frame has the column and any of its rows a value.

    Raises:
        ValueError: not one finite number a query vector, or of a row with other vectors than the query's first.
    """
    if QUERY_WEIGHTS not in frame.columns:
        return None
    values = frame[QUERY_WEIGHTS].array
    at = next((row for row in rows if not is_missing(values[row])), None)
    if at is None:
        return None
    if QUERY_EMBS in frame.columns and not _same_vectors(frame[QUERY_EMBS], rows, at):
        qid = frame["qid"].iloc[at]
        raise ValueError(f"{QUERY_WEIGHTS} of query {qid!r} are beside other {QUERY_EMBS} than its first: encode anew")
    weights = np.asarray(values[at], dtype=np.float32)
    if weights.shape != (tokens,) or not np.isfinite(weights).all():
        qid = frame["qid"].iloc[rows[0]]
        raise ValueError(f"{QUERY_WEIGHTS} of query {qid!r} must be {tokens} finite numbers, one a query vector")
    return weights


def _same_vectors(column: pd.Series, rows: npt.NDArray[np.intp], row: np.intp) -> bool:
    """Whether a row lacks vectors, or has those of the first row that has any."""
    first, mine = _first_present(column, rows), column.array[row]
    if mine is first or is_missing(mine):
        return True
    return np.shape(mine) == np.shape(first) and np.allclose(mine, first, atol=1e-3)


def texts_of(frame: pd.DataFrame, field: str) -> list[str]:
    """The texts of a column; an empty text is a text, a missing or broken one is an error that names its document.

    Raises:
        ValueError: some row has no text.
    """
    texts = frame[field].tolist()
    missing = [i for i, text in enumerate(texts) if not is_text(text)]
    if missing:
        first = missing[0]
        where = f"docno {frame['docno'].iloc[first]!r}" if "docno" in frame.columns else f"row {first}"
        raise ValueError(
            f"column {field!r} must hold a string of valid Unicode in every row: {len(missing)} of {len(texts)} "
            f"do not, the first is {where} with {texts[first]!r}"
        )
    return texts


def matrix(value: Any, what: str) -> npt.NDArray[Any]:
    """A two-dimensional float32 array without NaN or infinity, or one clear error.

    Raises:
        ValueError: not an array of numbers, another shape, or a value that is not finite in float32.
    """
    return _numbers(value, what, 2, "(tokens, dim)")


def vector(value: Any, what: str) -> npt.NDArray[Any]:
    """The same for an array of one dimension, (dim,).

    >>> vector([1, 2.5], "query_vec of query '1'")
    array([1. , 2.5], dtype=float32)
    >>> vector([[1, 2.5]], "query_vec of query '1'")
    Traceback (most recent call last):
    ValueError: query_vec of query '1': expected a (dim,) array of numbers, got shape (1, 2), float64
    """
    return _numbers(value, what, 1, "(dim,)")


def _numbers(value: Any, what: str, dimensions: int, shape: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor that numpy cannot read, a ragged list
        raise ValueError(f"{what}: expected a {shape} array of numbers: {error}") from error
    if array.ndim != dimensions or array.dtype.kind not in "fiu":
        raise ValueError(f"{what}: expected a {shape} array of numbers, got shape {array.shape}, {array.dtype}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: holds NaN or infinite values (in float32)")
    return array


def vectors(frame: pd.DataFrame, column: str, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
    """(rows, dim) float32 from a column of vectors of a frame with ``docno``; of some rows, by position, or all.

    Raises:
        ValueError: a row with a vector that is none, naming its docno, or of another length than the first.
    """
    cells = frame[column].to_numpy(dtype=object)
    values = (cells if rows is None else cells[rows]).tolist()
    if not values:
        return np.empty((0, 0), dtype=np.float32)
    dim = np.shape(values[0])
    try:
        if len(dim) == 1 and all(value.shape == dim for value in values):
            # a third of the time of np.stack
            stacked = np.concatenate(values).reshape(len(values), -1).astype(np.float32, copy=False)
            if np.isfinite(stacked).all():
                return stacked
    except (AttributeError, TypeError, ValueError):
        pass  # lists of numbers, or what is no vector
    names = frame["docno"].tolist() if rows is None else frame["docno"].iloc[rows].tolist()
    found = [vector(value, f"{column} of document {name!r}") for name, value in zip(names, values, strict=True)]
    other = next((i for i, value in enumerate(found) if len(value) != len(found[0])), None)
    if other is not None:
        sizes = len(found[other]), len(found[0])
        raise ValueError(f"{column} of document {names[other]!r} has {sizes[0]} dimensions, the first one {sizes[1]}")
    return np.stack(found)


def with_scores(frame: pd.DataFrame, scores: npt.NDArray[Any]) -> pd.DataFrame:
    """The frame with ``score`` (float64) and ``rank`` (from 0 within each query, equal scores by docno).

    Other columns stay, and so does the order of rows.
    """
    scores = np.asarray(scores, dtype=np.float64)
    query, _ = numbered(frame["qid"])
    order = np.lexsort((-scores, query))
    begins = _differs(query[order])
    tied = ~(begins | _differs(scores[order]))  # with the row before
    if tied.any():
        order = _by_docno(frame, order, tied)
    starts = np.flatnonzero(begins)
    ranks = np.empty(len(frame), dtype=np.int64)
    ranks[order] = np.arange(len(frame)) - np.repeat(starts, np.diff(starts, append=len(frame)))
    return frame.assign(score=scores, rank=ranks)


def _differs(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value is another than the one before; the first is."""
    differs = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def _by_docno(frame: pd.DataFrame, order: npt.NDArray[np.intp], tied: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The order of rows with runs of tied ones sorted by docno; names of others are not looked at."""
    among = np.flatnonzero(tied | np.append(tied[1:], False))
    run = np.cumsum(~tied)[among]
    names, _ = pd.factorize(frame["docno"].array[order[among]], sort=True)
    order[among] = order[among][np.lexsort((names, run))]
    return order


def ranked_frame(queries: pd.DataFrame, hits: Sequence[tuple[Sequence[str], npt.NDArray[Any]]]) -> pd.DataFrame:
    """A result frame from one ``(docnos, scores)`` pair a query row, best first; a query may have no hit.

    >>> q = pd.DataFrame({"qid": ["1", "2"], "query": ["a", "b"]})
    >>> ranked_frame(q, [(["d3", "d1"], np.array([2.0, 1.0])), ([], np.array([]))])
      qid query docno  score  rank
    0   1     a    d3    2.0     0
    1   1     a    d1    1.0     1
    """
    queries = queries.drop(columns=["docno", "score", "rank"], errors="ignore")
    sizes = np.array([len(scores) for _, scores in hits], dtype=np.int64)
    out = queries.iloc[np.repeat(np.arange(len(queries)), sizes)].reset_index(drop=True)
    docnos = [docno for names, _ in hits for docno in names]
    scores = np.concatenate([np.asarray(s, np.float64) for _, s in hits]) if hits else np.empty(0)
    ranks = np.concatenate([np.arange(n) for n in sizes]) if hits else np.empty(0)
    return out.assign(docno=pd.Series(docnos, dtype="str", index=out.index), score=scores, rank=ranks.astype(np.int64))
