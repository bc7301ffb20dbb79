"""Propositions of a sentence as characters of it: strings that a segmenter wrote are found again, word by word.

A segmenter (the paper's is SegmenT5) rewrites a sentence as several short ones: mostly in the sentence's own words and
order, with words left out, repeated or added. The public code of sub-sentence encoders, whose propositions AGRaME
uses, compares stems and matches words across any distance. Here equal words are taken in the sentence's order first,
which is our choice, and needs no list of stems.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from pyterrier_mvret.encoders.splitters import Span, checked_propositions


def aligned_spans(proposition: str, sentence: str) -> list[Span]:
    """Where a proposition stands in its sentence: spans of the words that both have, in reading order.

    Of all ways to find the proposition's words in the sentence's order, the one with most words is taken, then the one
    with the fewest words between them. What is left over is looked for again, so that words which changed places are
    found too. Words that follow one another in the sentence are one span.

    Args:
        proposition: a string; case, punctuation and Unicode's compatible forms make no difference.
        sentence: what it was made from.

    Returns:
        Spans that need not touch. Words that only one of the two has are skipped; with no word in common there is none.

    >>> sentence = "Ann, who was born in Rome, founded the firm and ran it."
    >>> [sentence[start:end] for start, end in aligned_spans("Ann founded the firm.", sentence)]
    ['Ann', 'founded the firm']
    >>> [sentence[start:end] for start, end in aligned_spans("Rome is where Ann was born", sentence)]
    ['Ann', 'was born', 'Rome']
    >>> aligned_spans("Nobody knows", sentence)
    []
    """
    wanted, there = [word for word, _ in _words(proposition)], _words(sentence)
    places = list(range(len(there)))  # of the sentence's words that were not found yet
    found: list[int] = []
    while pairs := _in_order(wanted, [there[place][0] for place in places]):
        found += [places[j] for _, j in pairs]
        mine, theirs = {i for i, _ in pairs}, {j for _, j in pairs}
        wanted = [word for i, word in enumerate(wanted) if i not in mine]
        places = [place for j, place in enumerate(places) if j not in theirs]
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(found)), lambda at: at[1] - at[0])]
    return [(there[run[0]][1][0], there[run[-1]][1][1]) for run in runs]


def proposition_spans(propositions: Iterable[Any], sentence: str) -> list[list[Span]]:
    """Propositions that a user or a segmenter gives, each as spans of the sentence.

    Args:
        propositions: for each a string (:func:`aligned_spans`), or its (start, end) pairs of characters.
        sentence: what they are of.

    Returns:
        One list of spans each; an empty one for a string that has no word of the sentence.

    Raises:
        ValueError: one string in the place of a list, or what :func:`checked_propositions` refuses.

    >>> proposition_spans(["Bob laughed", [(0, 3), (12, 19)], "it rained"], "Ann and Bob laughed.")
    [[(8, 19)], [(0, 3), (12, 19)], []]
    """
    if isinstance(propositions, str) or not isinstance(propositions, Iterable):
        raise ValueError(f"expected a list of propositions, got {propositions!r}")
    found = []
    for number, one in enumerate(propositions):
        if isinstance(one, str):
            found.append(aligned_spans(one, sentence))
        elif isinstance(one, Iterable):
            found += checked_propositions([one], sentence)
        else:
            raise ValueError(f"proposition {number} must be a string or a list of (start, end) pairs, got {one!r}")
    return found


def _words(text: str) -> list[tuple[str, Span]]:
    """Words, comparable, with their characters: runs of letters, digits and marks, and single ideographs and kana."""
    kinds: list[int | None] = []
    for place, character in enumerate(text):
        mark = unicodedata.combining(character) and kinds and kinds[-1] is not None
        kinds.append(kinds[-1] if mark else _kind(character, place))
    words, start = [], 0
    for kind, run in groupby(kinds):
        end = start + len(list(run))
        if kind is not None:
            words.append((unicodedata.normalize("NFKC", text[start:end]).casefold(), (start, end)))
        start = end
    return words


def _kind(character: str, place: int) -> int | None:
    """Equal for characters of one word: none outside of words, -1 in words, and its own for one that is a word."""
    if unicodedata.category(character)[0] not in "LMN":
        return None
    return place if "\u3040" <= character <= "\u9fff" else -1  # scripts without blanks between words


def _in_order(wanted: Sequence[str], words: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of equal words, rising on both sides: as many as possible, and as close together among ``words``."""
    reward = len(words) + 1  # one pair more is worth all the gaps that there can be
    above: list[tuple[int, Any]] = [(0, None)] * (len(words) + 1)  # score, and the pairs as a linked list
    for i, word in enumerate(wanted):
        row: list[tuple[int, Any]] = [(0, None)]
        for j, other in enumerate(words):
            score, path = row[j]
            here = (score - (path is not None), path)  # a gap costs where something was found before it
            if above[j + 1][0] >= here[0]:
                here = above[j + 1]
            if word == other and above[j][0] + reward > here[0]:
                here = (above[j][0] + reward, (i, j, above[j][1]))
            row.append(here)
        above = row
    path = max(above, key=lambda cell: cell[0])[1]
    pairs = []
    while path is not None:
        pairs.append(path[:2])
        path = path[2]
    return pairs[::-1]
