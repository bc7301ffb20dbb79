"""Strings found again in the sentence that they were made from, beside an exhaustive search."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyterrier_mvret.encoders.propositions import _in_order, aligned_spans, proposition_spans

SENTENCE = "Ann, who was born in Rome, founded the firm and the bank, and Bob's cousin ran it."
HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"  # with vowel signs, which are marks


@pytest.mark.parametrize(
    ("proposition", "parts"),
    [
        ("Ann founded the firm", ["Ann", "founded the firm"]),
        ("ANN FOUNDED THE FIRM!", ["Ann", "founded the firm"]),
        ("the big bank", ["the bank"]),  # the nearer "the", not the first
        ("Bob's cousin ran the firm", ["the firm", "Bob's cousin ran"]),  # found though the order is another
        ("The famous Ann was certainly born there", ["Ann", "was born", "the"]),
        ("Ann Ann Ann", ["Ann"]),
        (SENTENCE, [SENTENCE[:-1]]),
        ("nobody knows", []),
        ("", []),
        (" .,! ", []),
    ],
)
def test_words_are_found_in_order_and_close_together(proposition, parts):
    assert [SENTENCE[a:b] for a, b in aligned_spans(proposition, SENTENCE)] == parts


def test_nothing_is_found_in_nothing():
    assert aligned_spans("a cat", "") == aligned_spans("a cat", "?!") == []


@pytest.mark.parametrize(
    ("proposition", "sentence", "parts"),
    [
        ("caf\u00e9", "The cafe\u0301 closed", ["cafe\u0301"]),
        (HINDI, f"x {HINDI}!", [HINDI]),
        ("STRASSE", "die Stra\u00dfe", ["Stra\u00dfe"]),
        ("\u65e5\u672c", "\u65b0\u65e5\u672c\u8a9e", ["\u65e5\u672c"]),
        ("\u304c\u304f", "\u79c1\u306f\u304b\u3099\u304f\u3055\u3044", ["\u304b\u3099\u304f"]),
        ("\ufb01rm", "a firm", ["firm"]),
    ],
    ids=["composed", "vowel signs", "case folding", "no blanks", "voiced kana", "ligature"],
)  # fmt: skip
def test_words_of_any_script(proposition, sentence, parts):
    assert [sentence[a:b] for a, b in aligned_spans(proposition, sentence)] == parts


WORDS = st.lists(st.sampled_from("abc"), max_size=7)


def best_by_search(wanted, words):
    """Most pairs, then fewest words between the first and the last, among all choices."""
    for size in range(min(len(wanted), len(words)), 0, -1):
        chosen = {tuple(c) for c in combinations(wanted, size)}
        gaps = [at[-1] - at[0] + 1 - size for at in combinations(range(len(words)), size)
                if tuple(words[i] for i in at) in chosen]  # fmt: skip
        if gaps:
            return size, min(gaps)
    return 0, 0


@given(WORDS, WORDS)
def test_the_alignment_in_order_is_the_best_one(wanted, words):
    pairs = _in_order(wanted, words)
    mine, theirs = [i for i, _ in pairs], [j for _, j in pairs]
    assert [wanted[i] for i in mine] == [words[j] for j in theirs]
    assert (np.diff(mine) > 0).all()
    assert (np.diff(theirs) > 0).all()
    gaps = theirs[-1] - theirs[0] + 1 - len(theirs) if theirs else 0
    assert (len(pairs), gaps) == best_by_search(wanted, words)


@given(WORDS, WORDS)
def test_every_word_that_both_have_is_found(wanted, words):
    sentence = " ".join(words)
    spans = aligned_spans(" ".join(wanted), sentence)
    found = " ".join(sentence[a:b] for a, b in spans).split()
    assert sorted(found) == sorted(w for c in "abc" for w in [c] * min(wanted.count(c), words.count(c)))
    assert all(one[1] < two[0] - 1 for one, two in zip(spans, spans[1:]))  # what touches is one span


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_has_spans_inside_the_sentence(proposition, sentence):
    for start, end in aligned_spans(proposition, sentence):
        assert 0 <= start < end <= len(sentence)


def test_a_long_sentence_of_one_word_is_one_span():
    words = ["a"] * 300
    assert aligned_spans(" ".join(words), " ".join(words)) == [(0, 599)]


def test_strings_and_spans_may_be_mixed():
    given = [[(0, 3)], "the bank", np.array([[5, 8], [27, 34]]), "nobody"]
    assert proposition_spans(given, SENTENCE) == [[(0, 3)], [(48, 56)], [(5, 8), (27, 34)], []]
    assert proposition_spans([], SENTENCE) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("the bank", "expected a list of propositions, got 'the bank'"),
        (None, "expected a list of propositions, got None"),
        ([3], "proposition 0 must be a string or a list"),
        (["Ann", []], "has no span"),
        ([(0, 3)], "a span must be a pair"),  # one proposition, not a list of them
        ([[(0, 999)]], "leaves its text"),
    ],
)
def test_what_is_no_proposition_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        proposition_spans(wrong, SENTENCE)
