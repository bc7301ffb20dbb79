"""Answers with citations (PropCite: AGRaME, Reddy et al. 2024, section 4.3): written out, and judged.

:meth:`AGRaME.cite` says which passages each sentence of an answer rests on. It returns a result frame, where a sentence
that cites nothing has no row: :func:`cited_sentences` lists all sentences of answers with what they cite,
:func:`cited_answers` writes numbers of passages behind them, and :func:`citation_quality` judges them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders.splitters import Span, Splitter, checked_spans, named_splitter


class Answer(NamedTuple):
    """An answer, and the characters of its sentences."""

    text: str
    spans: list[Span]

    @property
    def sentences(self) -> list[str]:
        """Their texts."""
        return [self.text[start:end] for start, end in self.spans]


def answer_of(column: pd.Series, rows: npt.NDArray[np.intp], qid: str, splitter: Splitter) -> Answer:
    """A query's answer, cut into sentences.

    Raises:
        ValueError: no answer, two different ones, or neither a string nor a list of strings.
    """
    value = only_value(column, rows, qid)
    if frames.is_text(value):
        return Answer(value, checked_spans(splitter.split(value), value))
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(map(frames.is_text, value)):
        raise ValueError(f"{frames.ANSWER} of query {qid!r} must be a string or a list of sentences, got {value!r}")
    ends = np.cumsum([len(sentence) + 1 for sentence in value]).tolist()  # with a blank between any two
    return Answer(" ".join(value), [(end - 1 - len(one), end - 1) for one, end in zip(value, ends, strict=True)])


def only_value(column: pd.Series, rows: npt.NDArray[np.intp], qid: str) -> Any:
    """The value that a query's rows have, those that have any.

    Raises:
        ValueError: none, or two different ones.
    """
    value = frames.first_value(column, rows, qid)
    others = (column.array[row] for row in rows)
    if any(not (other is value or frames.is_missing(other) or _plain(other) == _plain(value)) for other in others):
        raise ValueError(f"query {qid!r} has two different values of {column.name}")
    return value


def _plain(value: Any) -> Any:
    """A value that can be compared, also if it is an array, or holds arrays."""
    return value if isinstance(value, str) or not isinstance(value, Iterable) else [_plain(one) for one in value]


def cited_sentences(
    citations: pd.DataFrame, answers: pd.DataFrame, splitter: str | Splitter = "sentence"
) -> pd.DataFrame:
    """All sentences of answers, with the passages that each cites, which may be none.

    Args:
        citations: from :meth:`AGRaME.cite`; rows that were dropped since are no longer cited.
        answers: a frame with ``qid`` and ``qanswer``, as it was cited for: a row a query, or the passages' frame.
        splitter: cuts answers into sentences, as for :meth:`AGRaME.cite`.

    Returns:
        One row a sentence in reading order: ``qid``, ``sentence_id``, ``sentence``, ``sentence_start``,
        ``sentence_end``, and ``docnos``, a list, best first.

    Raises:
        ValueError: a citation of another sentence than the answer has.

    >>> answers = pd.DataFrame({"qid": ["1"], "qanswer": ["Cats purr. Dogs bark."]})
    >>> citations = pd.DataFrame({"qid": ["1"], "docno": ["d7"], "rank": [0], "sentence_id": [1],
    ...                           "sentence": ["Dogs bark."]})
    >>> cited_sentences(citations, answers)[["sentence_id", "sentence", "docnos"]]
       sentence_id    sentence docnos
    0            0  Cats purr.     []
    1            1  Dogs bark.   [d7]
    """
    pt.validate.columns(answers, includes=["qid", frames.ANSWER])
    columns = ["qid", "docno", "rank", frames.SENTENCE_ID, frames.SENTENCE]
    pt.validate.columns(citations, includes=columns)
    cited: dict[tuple[str, int], list[tuple[str, str]]] = {}
    ranked = citations[columns].sort_values("rank", kind="stable")
    for qid, docno, _, number, sentence in ranked.itertuples(index=False):
        cited.setdefault((qid, number), []).append((docno, sentence))
    out = []
    for qid, rows in frames.query_groups(answers):
        answer = answer_of(answers[frames.ANSWER], rows, qid, named_splitter(splitter))
        for number, (sentence, span) in enumerate(zip(answer.sentences, answer.spans, strict=True)):
            found = cited.pop((qid, number), [])
            wrong = [one for one in found if one[1] != sentence]
            if wrong:
                cited[qid, number] = wrong
            out.append((qid, number, sentence, *span, [docno for docno, _ in found]))
    if cited:
        (qid, number), found = next(iter(cited.items()))
        raise ValueError(
            f"sentence {number} of the answer of query {qid!r} is not {found[0][1]!r}: was it cut otherwise?"
        )
    names = ["qid", frames.SENTENCE_ID, frames.SENTENCE, frames.SENTENCE_START, frames.SENTENCE_END, frames.CITED]
    return pd.DataFrame(out, columns=names)


def cited_answers(
    citations: pd.DataFrame, answers: pd.DataFrame, splitter: str | Splitter = "sentence"
) -> pd.DataFrame:
    """Answers with numbers in brackets behind each sentence, for the passages that it cites.

    Args:
        citations: as for :func:`cited_sentences`.
        answers: as for :func:`cited_sentences`.
        splitter: as for :func:`cited_sentences`.

    Returns:
        One row a query: ``qid``, ``qanswer``, ``qanswer_cited``, and ``qcitations``, the list of docnos that [1], [2],
        and so on stand for, as they are first cited.

    >>> answers = pd.DataFrame({"qid": ["1"], "qanswer": ["Cats purr. Dogs bark."]})
    >>> citations = pd.DataFrame({"qid": ["1", "1"], "docno": ["d7", "d3"], "rank": [0, 1], "sentence_id": [1, 1],
    ...                           "sentence": ["Dogs bark.", "Dogs bark."]})
    >>> cited_answers(citations, answers)[["qanswer_cited", "qcitations"]].to_numpy().tolist()
    [['Cats purr. Dogs bark. [1][2]', ['d7', 'd3']]]
    """
    of_query = dict(iter(cited_sentences(citations, answers, splitter).groupby("qid", sort=False)))
    out = []
    for qid, rows in frames.query_groups(answers):
        text = answer_of(answers[frames.ANSWER], rows, qid, named_splitter(splitter)).text
        number: dict[str, int] = {}
        written, behind = "", 0
        if qid in of_query:
            for end, docnos in of_query[qid][[frames.SENTENCE_END, frames.CITED]].itertuples(index=False):
                marks = "".join(f"[{number.setdefault(docno, len(number) + 1)}]" for docno in docnos)
                written += text[behind:end] + (f" {marks}" if marks else "")
                behind = end
        out.append((qid, frames.first_value(answers[frames.ANSWER], rows, qid), written + text[behind:], list(number)))
    return pd.DataFrame(out, columns=["qid", frames.ANSWER, frames.CITED_ANSWER, frames.CITATIONS])


class Quality(NamedTuple):
    """How well sentences are supported by what they cite, as ALCE measures it.

    Attributes:
        recall: percent, the mean over answers of the share of sentences that their citations together entail.
        precision: percent, the mean over answers of the share of citations that are of use.
        answers: frame of ``qid``, ``recall`` and ``precision``, from 0 to 1.
    """

    recall: float
    precision: float
    answers: pd.DataFrame


def citation_quality(
    sentences: pd.DataFrame, passages: Mapping[str, str], entails: Callable[[str, str], bool]
) -> Quality:
    """Citation recall and precision of ALCE (Gao et al. 2023, arXiv 2305.14627).

    A sentence has its recall if the passages that it cites, one after the other, entail it. If they do, a citation
    counts towards precision unless its passage alone does not entail the sentence while the others without it do.

    Args:
        sentences: ``qid``, ``sentence`` and the list ``docnos`` for all sentences of answers, also those that cite
            nothing, such as :func:`cited_sentences` returns. ALCE's program judges the first three citations of each.
        passages: texts by docno; ALCE's are ``"Title: "``, the title, a line break and the text. As in ALCE, a sentence
            that cites another passage has neither recall nor precision, and its citations are not counted.
        entails: the judge, ``entails(premise, hypothesis)``, such as a model of natural language inference.

    Raises:
        ValueError: no sentence at all.

    >>> sentences = pd.DataFrame({"qid": ["1"], "sentence": ["a b"], "docnos": [["x", "y", "z"]]})
    >>> def judge(premise, hypothesis):
    ...     return set(hypothesis.split()) <= set(premise.split())
    >>> quality = citation_quality(sentences, {"x": "a", "y": "b", "z": "c"}, judge)
    >>> quality.recall, round(quality.precision, 1)
    (100.0, 66.7)
    """
    pt.validate.columns(sentences, includes=["qid", frames.SENTENCE, frames.CITED])
    if not len(sentences):
        raise ValueError("there is no sentence to judge")
    rows = []
    odd = next((one for one in sentences[frames.CITED] if isinstance(one, str) or not isinstance(one, Iterable)), None)
    if odd is not None or sentences[frames.CITED].isna().any():
        raise ValueError(f"{frames.CITED} must be a list of docnos for each sentence, got {odd!r}")
    for qid, at in frames.query_groups(sentences):
        of_answer = sentences[[frames.SENTENCE, frames.CITED]].iloc[at].itertuples(index=False)
        judged = [_judged(sentence, docnos, passages, entails) for sentence, docnos in of_answer]
        supported, useful, counted = (sum(part) for part in zip(*judged, strict=True))
        rows.append((qid, supported / len(at), useful / counted if counted else 0.0))
    answers = pd.DataFrame(rows, columns=["qid", "recall", "precision"])
    return Quality(100 * float(answers["recall"].mean()), 100 * float(answers["precision"].mean()), answers)


def _judged(
    sentence: str, docnos: list[str], passages: Mapping[str, str], entails: Callable[[str, str], bool]
) -> tuple[int, int, int]:
    """Of one sentence: whether it is supported, how many of its citations are of use, and how many count."""
    if not len(docnos) or any(docno not in passages for docno in docnos):
        return 0, 0, 0
    cited = [passages[docno] for docno in docnos]

    def hold(texts: list[str]) -> bool:
        return bool(entails("\n".join(texts), sentence))

    if not hold(cited):
        return 0, 0, len(cited)
    if len(cited) == 1:
        return 1, 1, 1
    useful = [hold([text]) or not hold(cited[:i] + cited[i + 1 :]) for i, text in enumerate(cited)]
    return 1, sum(useful), len(cited)
