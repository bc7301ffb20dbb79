"""The pipeline stage that cites passages for sentences of answers (PropCite); users get it from ``AGRaME``."""

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.citation import Answer, answer_of, only_value
from pyterrier_mvret.component import Component
from pyterrier_mvret.encoders.propositions import proposition_spans
from pyterrier_mvret.encoders.splitters import Span, Splitter
from pyterrier_mvret.encoders.stages import blocks_of
from pyterrier_mvret.encoders.units import proposition_rows
from pyterrier_mvret.scoring import EMPTY_DOCUMENT, UnitRows, unit_scores

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.indexes.multivec import MultiVecIndex
    from pyterrier_mvret.indexes.store import Store

Array = npt.NDArray[Any]
Segmenter = Callable[[str], Iterable[Any]]


class Claims(NamedTuple):
    """What an answer says, encoded."""

    answer: Answer
    vectors: Array  # (tokens, dim) of all its sentences
    parts: Array  # (propositions, tokens) ones and zeros: which tokens each has
    sentence: Array  # (propositions,) number of the sentence that each is of, not decreasing


class Citation(NamedTuple):
    """A sentence cites a passage: a row of the output."""

    row: int  # the passage's, in the input
    sentence_id: int
    sentence: str
    sentence_start: int
    sentence_end: int
    margin: float
    propositions: list[int]
    score: float


class Citer(Component):
    """R of passages with answers -> R of sentences and the passages they cite; see :meth:`AGRaME.cite`.

    Args:
        encoder: of sentences, and of passages without an index.
        splitter: cuts answers into sentences.
        margin: by how much a proposition's best passage must be ahead of the next one; none asks for nothing.
        propositions: says what propositions a sentence has, unless a column ``qpropositions`` does.
        source: an index that has the passages' vectors; none encodes their text.
        text_field: the column with the passages' text.
        verbose: progress bars.
    """

    def __init__(
        self,
        encoder: "TokenEncoder",
        splitter: Splitter,
        margin: float | None = None,
        propositions: Segmenter | None = None,
        source: "MultiVecIndex | None" = None,
        text_field: str = "text",
        verbose: bool = False,
    ):
        if margin is not None and (isinstance(margin, str) or not 0 <= margin < np.inf):
            raise ValueError(f"margin must be a finite number of at least 0, or None, got {margin!r}")
        if propositions is not None and not callable(propositions):
            raise ValueError(f"propositions must be a function of a sentence, or None, got {propositions!r}")
        self.encoder, self.splitter, self.margin, self.propositions = encoder, splitter, margin, propositions
        self.source, self.text_field, self.verbose = source, text_field, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with ``qanswer`` -> one row a sentence and passage that it cites, in reading order."""
        needed = [frames.ANSWER, self.text_field] if self.source is None else [frames.ANSWER]
        pt.validate.result_frame(inp, needed, context=self)
        if not len(inp):
            return self._framed(inp, [])
        names = inp["docno"].tolist()
        odd = frames.first_no_text(names)
        if odd is not None:
            raise ValueError(f"a docno must be a string, got {names[odd]!r}")
        keys = frames.texts_of(inp, self.text_field) if self.source is None else names
        answers: list[Answer] = []
        groups: list[Array] = []
        given: list[list[list[list[Span]]]] = []
        known: dict[str, list[list[Span]]] = {}
        for qid, rows in frames.query_groups(inp):
            answer = answer_of(inp[frames.ANSWER], rows, qid, self.splitter)
            parts = self._parts(inp, rows, qid, answer, known)
            distinct_rows = _distinct(names, keys, rows, qid)
            if answer.spans:  # an empty answer needs no vectors
                answers.append(answer)
                groups.append(distinct_rows)
                given.append(parts)
        store = self._store()
        cited: list[Citation] = []
        empty: list[str] = []  # for each proposition without tokens its sentence
        bar = pt.tqdm(total=len(groups), desc="citing", unit="answer", disable=not self.verbose)
        for block, distinct in blocks_of(keys, groups):
            vectors, offsets = self._held(distinct, store)
            encoded = self._claims([answers[i] for i, _ in block], [given[i] for i, _ in block])
            for (i, at), claims in zip(block, encoded, strict=True):
                # equal texts have equal scores: each is scored once
                places, back = np.unique(at, return_inverse=True)
                passages = UnitRows.of_runs(offsets[places], offsets[places + 1])
                scores = unit_scores(claims.vectors, vectors, passages, weights=claims.parts)[:, back]
                cited += _citations(claims, scores, groups[i], self.margin)
                empty += [claims.answer.sentences[n] for n in claims.sentence[~claims.parts.any(axis=1)]]
                bar.update()
        bar.close()
        _warn_of_empty(empty, sum(len(parts) for of_answer in given for parts in of_answer))
        return self._framed(inp, cited)

    def _parts(
        self, inp: pd.DataFrame, rows: Array, qid: str, answer: Answer, known: dict[str, list[list[Span]]]
    ) -> list[list[list[Span]]]:
        """For each sentence of an answer its propositions, as spans; ``known`` ones are not asked for again."""
        sentences = answer.sentences
        try:
            if frames.QUERY_PROPOSITIONS in inp.columns:
                value = only_value(inp[frames.QUERY_PROPOSITIONS], rows, qid)
                given = [] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
                if len(given) != len(sentences):
                    raise ValueError(f"expected {len(sentences)} lists, one for each sentence, got {value!r}")
                return [proposition_spans(*one) for one in zip(given, sentences, strict=True)]
            if self.propositions is None:
                return [[[(0, len(sentence))]] for sentence in sentences]
            for sentence in sentences:
                if sentence not in known:
                    known[sentence] = proposition_spans(self.propositions(sentence), sentence)
            return [known[sentence] for sentence in sentences]
        except ValueError as error:
            raise ValueError(f"propositions of query {qid!r}: {error}") from error

    def _claims(self, answers: list[Answer], given: list[list[list[list[Span]]]]) -> list[Claims]:
        """Answers with the vectors of their sentences, all of a block encoded in one go.

        The marker is the ordinary one: the second was trained for whole queries, and the paper does not say which it
        took.
        """
        sentences = [sentence for answer in answers for sentence in answer.sentences]
        batch = self.encoder.encode_queries(sentences, whole=True)
        of_sentences = [propositions for of_answer in given for propositions in of_answer]
        units = proposition_rows(batch.spans, batch.offsets, sentences, of_sentences)
        firsts = np.cumsum([0, *(len(answer.spans) for answer in answers)])
        bounds = np.searchsorted(units.texts, firsts)
        claims = []
        for i, answer in enumerate(answers):
            start, end = batch.offsets[firsts[i]], batch.offsets[firsts[i + 1]]
            mine = range(bounds[i], bounds[i + 1])
            parts = UnitRows.of([units.rows(part) - start for part in mine]).members(end - start)
            claims.append(Claims(answer, batch.vectors[start:end], parts, units.texts[mine] - firsts[i]))
        return claims

    def _store(self) -> "Store | None":
        """What the index holds, taken once for all the work; ValueError where it is of another encoder."""
        if self.source is None:
            return None
        self.source.store.check_space(self.encoder.space, "the model")
        return self.source.store

    def _held(self, keys: list[str], store: "Store | None") -> tuple[Any, Array]:
        """Vectors of whole passages, special tokens included, and their offsets."""
        if store is None:
            batch = self.encoder.encode_docs(keys, verbose=self.verbose)
            return batch.vectors, batch.offsets
        return store.gather(store.known(keys))

    def _framed(self, inp: pd.DataFrame, cited: list[Citation]) -> pd.DataFrame:
        """One row a citation, with the columns of its passage's row."""
        passages = inp.drop(columns=[*frames.CITATION_COLUMNS, "score", "rank"], errors="ignore")
        out = passages.iloc[[one.row for one in cited]].reset_index(drop=True)
        types = {frames.SENTENCE: "str", frames.MARGIN: "float64", frames.PROPOSITIONS: "object"}
        for name in frames.CITATION_COLUMNS:
            values = [getattr(one, name) for one in cited]
            out[name] = pd.Series(values, index=out.index, dtype=types.get(name, "int64"))
        return frames.with_scores(out, np.array([one.score for one in cited]))


def top_passages(scores: Array, margin: float | None = None) -> tuple[Array, Array]:
    """The passage that each proposition cites (AGRaME, section 4.3).

    Args:
        scores: (propositions, passages) of :func:`pyterrier_mvret.scoring.unit_scores`.
        margin: by how much the best must be ahead of the next one (the paper's variant of higher precision has 1.0).

    Returns:
        (propositions,) the number of its best passage, the first of equal ones, and -1 where it cites none; and by how
        much it is ahead: infinity where no other passage has a score.

    >>> scores = np.array([[1.9, 0.2, 0.8], [0.0, 1.6, 0.8]])
    >>> top_passages(scores), top_passages(scores, margin=1.0)[0]
    ((array([0, 1]), array([1.1, 0.8])), array([ 0, -1]))
    """
    scores = np.array(scores, dtype=np.float64)
    each = np.arange(len(scores))
    best = scores.argmax(axis=1)
    top = scores[each, best]
    scores[each, best] = EMPTY_DOCUMENT
    second = scores.max(axis=1)
    ahead = np.where(second > EMPTY_DOCUMENT, top - second, np.inf)
    cites = (top > EMPTY_DOCUMENT) & (ahead >= (margin or 0))
    return np.where(cites, best, -1), ahead


def _citations(claims: Claims, scores: Array, rows: Array, margin: float | None) -> list[Citation]:
    """What an answer's sentences cite, in reading order, the best first."""
    best, ahead = top_passages(scores, margin)
    best[~claims.parts.any(axis=1)] = -1  # nothing of it was encoded
    citing: dict[tuple[int, int], list[int]] = {}
    for part in np.flatnonzero(best >= 0).tolist():
        citing.setdefault((int(claims.sentence[part]), int(best[part])), []).append(part)
    cited = []
    for (number, place), parts in sorted(citing.items()):
        start, end = claims.answer.spans[number]
        first = int(np.searchsorted(claims.sentence, number))
        own = [part - first for part in parts]
        score, margin_ = float(scores[parts, place].max()), float(ahead[parts].max())
        cited.append(Citation(rows[place], number, claims.answer.text[start:end], start, end, margin_, own, score))
    return sorted(cited, key=lambda one: (one.sentence_id, -one.score))


def _distinct(names: list[str], keys: list[str], rows: Array, qid: str) -> Array:
    """A query's rows, one a docno, by docno: so that of equal scores the first docno is cited."""
    first: dict[str, int] = {}
    for row in rows.tolist():
        if keys[first.setdefault(names[row], row)] != keys[row]:
            raise ValueError(f"passage {names[row]!r} of query {qid!r} has two different texts")
    return np.array([first[name] for name in sorted(first)])


def _warn_of_empty(empty: list[str], propositions: int) -> None:
    if empty:
        warnings.warn(
            f"{len(empty)} of {propositions} propositions have no token and cite nothing (no word of theirs is in "
            f"their sentence, or it is cut off), the first of {empty[0]!r}",
            stacklevel=2,
        )
