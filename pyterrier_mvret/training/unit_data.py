"""Units of documents in training sets: where they are, and what a teacher or judgements say of each.

Two more columns of a training set (:mod:`pyterrier_mvret.training.data`), both with one entry a document of the row:

| column | type | |
|---|---|---|
| ``spans`` | lists of (start, end) pairs | characters of its units, one after the other |
| ``unit_scores`` | lists of floats | what the softmax of each document's units is to be, before it |

Judgements are such scores, too: 0 for relevant units and minus infinity for others, so that the softmax is over the
relevant ones alone. A document without a relevant unit says nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders.splitters import Span, Splitter, checked_spans, named_splitter
from pyterrier_mvret.training.data import texts_of
from pyterrier_mvret.training.teachers import Pairs, blocks_by_query, taught

if TYPE_CHECKING:
    from datasets import Dataset

#: the columns of units
UNITS = ("spans", "unit_scores")
# in place of a delimiter that is part of the text (prices)
_FULL_WIDTH = {"$": "\uff04"}


def with_units(
    data: "Dataset",
    target: "pt.Transformer | pd.DataFrame",
    *,
    unit: str | Splitter = "sentence",
    spans: Mapping[str, Sequence[Span]] | None = None,
    delimiter: str | None = "$",
    text_field: str = "text",
    min_label: int = 1,
    verbose: bool = False,
) -> "Dataset":
    """The same rows with units of their documents, and a target for each: a teacher's score, or a judgement.

    AGRaME's teacher (Reddy et al. 2024) reads the query and the whole passage, with the unit between dollar
    signs. It was trained by binary cross-entropy on passages whose sentences contain an answer or do not.

    Args:
        data: what :func:`groups` or :func:`with_teacher` returned.
        target: a pipeline that scores frames with ``qid``, ``query``, ``docno`` (``d%s0``) and text, such as a
            cross-encoder; or qrels whose docnos name units so. Where qrels have columns ``start`` and ``end``, as those
            of ``mvret:mini``, they must be the units' own.
        unit: as for :class:`AGRaME`; units may not overlap.
        spans: characters of each document's units, by docno; none means what ``unit`` finds.
        delimiter: what a teacher's text has before and after the unit (where the passage itself has it, it becomes its
            full-width form); none shows the teacher the unit alone.
        text_field: the column in which the teacher reads the text.
        min_label: the least label of a relevant unit.
        verbose: a progress bar over queries.

    Raises:
        ValueError: a document that ``spans`` lacks or does not fit, a judged unit that a document does not have, no
            relevant unit at all, or a teacher that leaves out a unit or scores it with no finite number.

    >>> import pyterrier_mvret as mv
    >>> topics = pd.DataFrame({"qid": ["1"], "query": ["pets that purr"]})
    >>> qrels = pd.DataFrame({"qid": ["1"], "docno": ["a"], "label": [1]})
    >>> data = mv.training.pairs(topics, qrels, {"a": "Dogs bark. Cats purr."})
    >>> row = mv.training.with_units(data, pd.DataFrame({"qid": ["1"], "docno": ["a%s1"], "label": [1]}))[0]
    >>> row["spans"], row["unit_scores"]
    ([[[0, 10], [11, 21]]], [[-inf, 0.0]])
    """
    missing = [c for c in ("qid", "docnos", "query", "positive") if c not in data.column_names]
    if missing:
        raise ValueError(f"units are of rows with qid, docnos and texts; these lack {', '.join(missing)}")
    if set(UNITS) & set(data.column_names):
        raise ValueError("these rows have units already")
    if delimiter is not None and len(delimiter) != 1:
        raise ValueError(f"a delimiter is one character, or none, got {delimiter!r}")
    found = _Spans(named_splitter(unit), spans)
    if isinstance(target, pd.DataFrame):
        places, scores = _judged(data, target, found, min_label)
    else:
        places, scores = _taught(data, target, found, delimiter, text_field, verbose)
    import pyarrow as pa

    # as arrays: the library takes far longer over nested lists, and knows no type of those that are all empty
    span = pa.list_(pa.int64())
    columns = pa.array(places, pa.list_(pa.list_(span))), pa.array(scores, pa.list_(pa.list_(pa.float64())))
    return data.add_column("spans", columns[0]).add_column("unit_scores", columns[1])


class _Spans:
    """Spans of documents, each looked for once."""

    def __init__(self, splitter: Splitter, given: Mapping[str, Sequence[Span]] | None):
        self._splitter, self._given = splitter, given
        self._known: dict[tuple[str, str], list[list[int]]] = {}

    def __call__(self, docno: str, text: str) -> list[list[int]]:
        if (docno, text) not in self._known:
            if self._given is not None and docno not in self._given:
                raise ValueError(f"spans has no entry for document {docno!r}")
            spans = self._splitter.split(text) if self._given is None else self._given[docno]
            try:
                self._known[docno, text] = [list(span) for span in checked_spans(spans, text)]
            except ValueError as error:
                raise ValueError(f"spans of document {docno!r}: {error}") from error
        return self._known[docno, text]


def _documents(row: Mapping[str, Any], spans: _Spans) -> Iterator[tuple[str, str, list[list[int]]]]:
    """Name, text and units of each document of a row."""
    for docno, text in zip(row["docnos"], texts_of(row), strict=True):
        yield docno, text, spans(docno, text)


def _judged(data: "Dataset", qrels: pd.DataFrame, spans: _Spans, min_label: int) -> tuple[list[Any], list[Any]]:
    """Places of units, and targets that are judgements."""
    pt.validate.columns(qrels, includes=["qid", "docno", "label"])
    relevant: dict[tuple[str, str], set[int]] = {}
    chosen = qrels[qrels["label"] >= min_label]
    judged: dict[str, list[int]] = {}
    if {frames.START, frames.END} <= set(qrels.columns):
        judged = dict(zip(chosen["docno"], chosen[[frames.START, frames.END]].to_numpy().tolist(), strict=True))
    for qid, name in zip(chosen["qid"], chosen["docno"], strict=True):
        docno, _, number = str(name).rpartition("%s")
        if not docno or not number.isdecimal():
            raise ValueError(f"judgements of units name them 'docno%s0', 'docno%s1', ...; got {name!r}")
        relevant.setdefault((qid, docno), set()).add(int(number))
    places: list[Any] = []
    scores: list[Any] = []
    for row in data:
        documents = list(_documents(row, spans))
        places.append([units for _, _, units in documents])
        scores.append([])
        for docno, _, units in documents:
            right = relevant.get((row["qid"], docno), set())
            if right and max(right) >= len(units):
                raise ValueError(f"{docno}%s{max(right)} is judged, and {docno!r} has {len(units)} units: other spans?")
            for i in right:
                place = judged.get(f"{docno}%s{i}", units[i])
                if place != units[i]:
                    raise ValueError(f"{docno}%s{i} was judged as characters {place}, and is {units[i]}: pass spans=")
            scores[-1].append([0.0 if i in right else -np.inf for i in range(len(units))])
    if not any(0.0 in one for row_scores in scores for one in row_scores):
        raise ValueError("no unit of any document is relevant: are these judgements of units of this data?")
    return places, scores


def _taught(
    data: "Dataset", teacher: pt.Transformer, spans: _Spans, delimiter: str | None, text_field: str, verbose: bool
) -> tuple[list[Any], list[Any]]:
    """Places of units, and a teacher's scores of them."""
    places: list[Any] = [None] * len(data)
    scores: list[Any] = [None] * len(data)
    for block in blocks_by_query(data["qid"], "teacher", verbose):
        rows = {row: data[row] for row in block}
        asked = Pairs()
        for one in rows.values():
            for docno, text, units in _documents(one, spans):
                for i, span in enumerate(units):
                    asked.add(one["qid"], one["query"], f"{docno}%s{i}", _shown(text, span, delimiter))
        score = taught(asked, teacher, text_field)
        for row, one in rows.items():
            documents = list(_documents(one, spans))
            places[row] = [units for _, _, units in documents]
            scores[row] = [
                [score[one["qid"], f"{docno}%s{i}"] for i in range(len(units))] for docno, _, units in documents
            ]
    return places, scores


def _shown(text: str, span: Sequence[int], delimiter: str | None) -> str:
    """What a teacher reads of a unit."""
    start, end = span
    if delimiter is None:
        return text[start:end]
    text = text.replace(delimiter, _FULL_WIDTH.get(delimiter, " "))
    return f"{text[:start]}{delimiter} {text[start:end]} {delimiter}{text[end:]}"
