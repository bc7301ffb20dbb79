"""Teachers: any pipeline that scores frames says what training is to imitate."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.training.data import texts_of

if TYPE_CHECKING:
    from datasets import Dataset

# queries whose documents a teacher scores at once: enough for full batches, little text in memory
_QUERIES_A_BLOCK = 64


def with_teacher(
    data: "Dataset",
    teacher: pt.Transformer,
    *,
    normalize: Literal["min-max"] | None = None,
    text_field: str = "text",
    verbose: bool = False,
) -> "Dataset":
    """The same rows with ``scores``: what a teacher thinks of each of the row's documents.

    Args:
        data: what :func:`groups` returned.
        teacher: any pipeline that scores frames with ``qid``, ``query``, ``docno`` and text: a cross-encoder, another
            model's ``text_scorer()``, a sum of two. Equal pairs are scored once.
        normalize: ``"min-max"`` scales each row's scores to [0, 1], as distillation in PyLate's form expects
            (:class:`KL` with ``normalize="min-max"``); none keeps the teacher's own scale.
        text_field: the column in which the teacher reads the text.
        verbose: a progress bar over queries.

    Raises:
        ValueError: the teacher left out a document or scored it with something that is no finite number; one qid has
            two queries, or a document of it two texts.

    >>> import pyterrier_mvret as mv
    >>> topics = pd.DataFrame({"qid": ["1"], "query": ["pets"]})
    >>> qrels = pd.DataFrame({"qid": ["1"], "docno": ["a"], "label": [1]})
    >>> run = pd.DataFrame({"qid": "1", "docno": ["b"], "score": [3.], "rank": [0], "text": ["Rates rose."]})
    >>> data = mv.training.groups(topics, qrels, run, n=1, docs={"a": "Cats purr.", "b": "Rates rose."})
    >>> length = pt.apply.doc_score(lambda row: len(row["text"]))
    >>> mv.training.with_teacher(data, length)[0]["scores"]
    [10.0, 11.0]
    """
    if normalize not in (None, "min-max"):
        raise ValueError(f"normalize is 'min-max' or None, got {normalize!r}")
    missing = [c for c in ("qid", "docnos", "query", "positive") if c not in data.column_names]
    if missing:
        raise ValueError(f"a teacher scores rows with qid, docnos and texts; these lack {', '.join(missing)}")
    if "scores" in data.column_names:
        raise ValueError("these rows have a teacher's scores already")
    scores: list[list[float]] = [[] for _ in range(len(data))]
    for block in blocks_by_query(data["qid"], "teacher", verbose):
        rows = list(data.select(block))
        asked = Pairs()
        for row in rows:
            for docno, text in zip(row["docnos"], texts_of(row), strict=True):
                asked.add(row["qid"], row["query"], docno, text)
        score = taught(asked, teacher, text_field)
        for place, row in zip(block, rows, strict=True):
            values = [score[row["qid"], docno] for docno in row["docnos"]]
            scores[place] = _min_max(values) if normalize else values
    return data.add_column("scores", scores)


def blocks_by_query(qids: Sequence[str], what: str, verbose: bool) -> Iterator[list[int]]:
    """Numbers of rows, those of some queries at a time, with a progress bar over queries."""
    rows_of: dict[str, list[int]] = {}
    for row, qid in enumerate(qids):
        rows_of.setdefault(qid, []).append(row)
    groups = list(rows_of.values())
    with pt.tqdm(total=len(groups), desc=what, unit="query", disable=not verbose) as bar:
        for start in range(0, len(groups), _QUERIES_A_BLOCK):
            block = groups[start : start + _QUERIES_A_BLOCK]
            yield [row for rows in block for row in rows]
            bar.update(len(block))


class Pairs:
    """What a teacher is asked: equal pairs of query and document once.

    Raises:
        ValueError: one qid has two queries, or a document of it two texts.
    """

    def __init__(self) -> None:
        self._queries: dict[str, str] = {}
        self._texts: dict[tuple[str, str], str] = {}

    def add(self, qid: str, query: str, docno: str, text: str) -> None:
        """One more pair, if it is new."""
        if self._queries.setdefault(qid, query) != query:  # two collections that number their topics alike
            raise ValueError(
                f"topic {qid!r} has two queries, {self._queries[qid]!r} and {query!r}, and a teacher tells topics by "
                "their qid: let it score each collection before they are put together"
            )
        if self._texts.setdefault((qid, docno), text) != text:
            raise ValueError(f"document {docno!r} of topic {qid!r} has two texts, and a teacher gives one score")

    def frame(self, text_field: str) -> pd.DataFrame:
        """The pairs as results to be scored."""
        rows = [(qid, self._queries[qid], docno, text) for (qid, docno), text in self._texts.items()]
        frame = pd.DataFrame(rows, columns=["qid", "query", "docno", text_field])
        # no number: what a teacher does not score must not pass for a score
        return frames.with_scores(frame, np.zeros(len(frame))).assign(score=np.nan)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._texts)


def taught(asked: Pairs, teacher: pt.Transformer, text_field: str) -> dict[tuple[str, str], float]:
    """A teacher's scores, by qid and docno.

    Raises:
        ValueError: it left out a document or scored it with something that is no finite number.
    """
    if next(iter(asked), None) is None:
        return {}
    scored = teacher(asked.frame(text_field))
    pt.validate.columns(scored, includes=["qid", "docno", "score"])
    score = dict(zip(zip(scored["qid"], scored["docno"], strict=True), scored["score"], strict=True))
    for qid, docno in asked:
        value = score.get((qid, docno))
        if value is None or not np.isfinite(value):
            what = "no score" if value is None else f"the score {value}"
            raise ValueError(f"the teacher gave {what} to document {docno!r} for topic {qid!r}")
    return {pair: float(score[pair]) for pair in asked}


def _min_max(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]
