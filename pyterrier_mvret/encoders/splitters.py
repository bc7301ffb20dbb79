"""Texts into units that follow one another: sentences, paragraphs, phrases; each as characters of the original text.

A splitter is a value with one method, ``split(text)``. It returns half-open spans ``[start, end)`` in reading order,
none of them empty and none with white space at its ends, so ``text[start:end]`` is the unit's text. Any other object
with such a method serves as well (:func:`checked_spans` says what it got wrong).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from operator import index
from typing import Any, Protocol, runtime_checkable

#: characters ``[start, end)`` of a text
Span = tuple[int, int]


@runtime_checkable
class Splitter(Protocol):
    """Whatever cuts a text into units."""

    def split(self, text: str) -> Sequence[Span]:
        """Spans of the units, in reading order."""


@dataclass(frozen=True)
class Sentences:
    """Sentences, by the package sentencex: abbreviations, quotes, brackets and blank lines of some 300 languages.

    AGRaME does not say how it splits passages; ``benchmarks/sentence_splitters.py`` is what we chose by.

    Attributes:
        language: its ISO code; an unknown one falls back to English.

    >>> text = "Dr. Smith paid $3.5 million.  He left."
    >>> [text[start:end] for start, end in Sentences().split(text)]
    ['Dr. Smith paid $3.5 million.', 'He left.']
    """

    language: str = "en"

    def split(self, text: str) -> list[Span]:
        """Spans of the sentences, in reading order."""
        from sentencex import get_sentence_boundaries

        found = get_sentence_boundaries(self.language, text)
        return _stripped(text, ((sentence["start_index"], sentence["end_index"]) for sentence in found))


@dataclass(frozen=True)
class Paragraphs:
    r"""Blocks of lines between blank lines, whatever ends a line.

    >>> Paragraphs().split("A cat\nsat.\n \nIt ran.")
    [(0, 10), (13, 20)]
    """

    def split(self, text: str) -> list[Span]:
        """Spans of the paragraphs, in reading order."""
        # a second line end within white space is that of a blank line
        blank = [m.span() for m in re.finditer(r"\s+", text) if len(f"{m[0]}.".splitlines()) > 2]
        edges = [0, *(place for span in blank for place in span), len(text)]
        return _stripped(text, zip(edges[::2], edges[1::2], strict=True))


@dataclass(frozen=True)
class Phrases:
    """Windows of so many words, where white space ends a word.

    Attributes:
        words: words of a window; the last one may have fewer.
        stride: words from one window's beginning to the next one's. None is ``words``: each word is in one window.
            Smaller ones overlap, and larger ones leave words out.

    Raises:
        ValueError: a number that is not a whole one of at least 1.

    >>> text = "the cat sat on the mat today"
    >>> [text[start:end] for start, end in Phrases(3).split(text)]
    ['the cat sat', 'on the mat', 'today']
    >>> [text[start:end] for start, end in Phrases(4, stride=2).split(text)]
    ['the cat sat on', 'sat on the mat', 'the mat today']
    """

    words: int = 5
    stride: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("words", self.words), ("stride", self.stride)):
            allowed = isinstance(number, Integral) and not isinstance(number, bool) and number >= 1
            if not allowed and (name, number) != ("stride", None):
                raise ValueError(f"{name} must be a whole number of at least 1, got {number!r}")

    def split(self, text: str) -> list[Span]:
        """Spans of the windows, in reading order."""
        words = [m.span() for m in re.finditer(r"\S+", text)]
        stride = self.words if self.stride is None else self.stride
        # no window after the one that reaches the end
        starts = range(0, min(len(words), max(1, len(words) - self.words + stride)), stride)
        return [(words[i][0], words[min(i + self.words, len(words)) - 1][1]) for i in starts]


@dataclass(frozen=True)
class WholeText:
    """The text as one unit: without white space at its ends, none if there is nothing else.

    >>> WholeText().split(" A cat. "), WholeText().split(" ")
    ([(1, 7)], [])
    """

    def split(self, text: str) -> list[Span]:
        """The span of the text."""
        return _stripped(text, [(0, len(text))])


_NAMED: dict[str, Splitter] = {
    "sentence": Sentences(),
    "paragraph": Paragraphs(),
    "phrase": Phrases(),
    "text": WholeText(),
}


def named_splitter(unit: str | Splitter) -> Splitter:
    """The splitter of a name, or the splitter that is given.

    Args:
        unit: ``"sentence"``, ``"paragraph"``, ``"phrase"`` (five words), ``"text"``, or an object with ``split(text)``.

    Raises:
        ValueError: neither a splitter nor one of the names.

    >>> named_splitter("sentence"), named_splitter(Phrases(8))
    (Sentences(language='en'), Phrases(words=8, stride=None))
    """
    if isinstance(unit, str) and unit in _NAMED:
        return _NAMED[unit]
    if isinstance(unit, str | type) or not isinstance(unit, Splitter):
        raise ValueError(f"a unit is one of {', '.join(map(repr, _NAMED))}, or has split(text); got {unit!r}")
    return unit


def checked_spans(spans: Iterable[Any], text: str, *, apart: bool = True) -> list[Span]:
    """Spans that a user or a splitter gives, as pairs of ints without white space at their ends.

    Args:
        spans: (start, end) pairs of characters, in reading order; they may touch and leave gaps.
        text: what they are of.
        apart: False lets them overlap, as windows do.

    Raises:
        ValueError: no pairs of whole numbers, or a span that lies outside the text, holds nothing but white space, or
            begins before the one before it ends.

    >>> checked_spans([[0, 7], [7, 13]], "It was. It is.")
    [(0, 7), (8, 13)]
    """
    pairs = [_pair(span, text) for span in spans]
    found = _stripped(text, pairs)
    if len(found) < len(pairs):
        blank = next(i for i, pair in enumerate(pairs) if not _stripped(text, [pair]))
        raise ValueError(f"span {blank}, {pairs[blank]}, holds nothing but white space")
    if not apart:
        return found
    late = next((i for i, (one, two) in enumerate(pairwise(found), 1) if two[0] < one[1]), None)
    if late is not None:
        raise ValueError(f"span {late}, {found[late]}, begins before span {late - 1}, {found[late - 1]}, ends")
    return found


def checked_propositions(propositions: Iterable[Any], text: str) -> list[list[Span]]:
    """Propositions that a user gives: for each its spans, which need not touch and may be shared.

    Args:
        propositions: one sequence of (start, end) pairs of characters each, in any order.
        text: what they are of.

    Raises:
        ValueError: a proposition without spans, no pairs of whole numbers, or a span outside the text or empty.

    >>> checked_propositions([[(0, 3), (13, 19)], [(4, 19)]], "Ann and Bob laughed.")
    [[(0, 3), (13, 19)], [(4, 19)]]
    """
    found = [[_pair(span, text) for span in spans] for spans in propositions]
    if not all(found):
        raise ValueError(f"proposition {found.index([])} has no span")
    return found


def _pair(span: Any, text: str) -> Span:
    """A span as two ints, if it holds some of the text."""
    try:
        start, end = map(index, span)
    except (TypeError, ValueError):
        raise ValueError(f"a span must be a pair of whole numbers, (start, end), got {span!r}") from None
    if not 0 <= start < end <= len(text):
        raise ValueError(f"span {(start, end)} is empty or leaves its text of {len(text)} characters")
    return start, end


def _stripped(text: str, spans: Iterable[Span]) -> list[Span]:
    """Spans without white space at their ends, and without those of nothing else."""
    found = []
    for start, end in spans:
        part = text[start:end]
        inner = part.strip()
        if inner:
            start += len(part) - len(part.lstrip())
            found.append((start, start + len(inner)))
    return found
