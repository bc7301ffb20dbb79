import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.encoders.splitters import (
    Paragraphs,
    Phrases,
    Sentences,
    Splitter,
    WholeText,
    checked_propositions,
    checked_spans,
    named_splitter,
)

SPLITTERS = [
    Sentences(),
    Sentences("de"),
    Paragraphs(),
    Phrases(1),
    Phrases(3),
    Phrases(3, stride=2),
    Phrases(2, stride=5),
    WholeText(),
]
PIECES = [
    "Dr.",
    "The cat",
    "e\u0301",
    "\u0301",
    "日本。",
    "\U0001f600",
    "“Ah!”",
    "(a.b)",
    "...",
    "?",
    " ",
    "  ",
    "\n",
    "\r\n",
]
PIECES += [" ", "  ", "\n", "\r\n", "\n \n", "\t", "\u00a0", "\u2028", "\x0b", "\x1f", "\x00"]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.text(max_size=40))


def parts(splitter, text):
    return [text[start:end] for start, end in splitter.split(text)]


@given(TEXTS, st.sampled_from(SPLITTERS))
@settings(deadline=None)
def test_spans_are_in_order_and_hold_no_blank_at_their_ends(text, splitter):
    spans = splitter.split(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert parts(splitter, text) == [part.strip() for part in parts(splitter, text)]
    assert spans == sorted(spans)
    if splitter not in (Phrases(3, stride=2), Phrases(2, stride=5)):
        assert checked_spans(spans, text) == spans
        covered = {place for start, end in spans for place in range(start, end)}
        assert not "".join(c for i, c in enumerate(text) if i not in covered).strip()


def test_sentences():
    text = ' "Is it?" asked Dr. Smith, e.g. in the U.S. office.  It cost $3.50!\n\nÉté 😀. Then\nit ended… '
    assert parts(Sentences(), text) == [
        '"Is it?" asked Dr. Smith, e.g. in the U.S. office.',
        "It cost $3.50!",
        "Été 😀.",
        "Then\nit ended…",
    ]
    assert parts(Sentences("ja"), "これは文です。はい！") == ["これは文です。", "はい！"]
    assert parts(Sentences("no such language"), "A cat. A dog.") == ["A cat.", "A dog."]


def test_sentences_of_long_texts_are_whole():
    sentences = [f"Sentence {i} has {'very ' * (i % 40)}many words." for i in range(2000)]
    assert parts(Sentences(), " ".join(sentences)) == sentences


def test_the_given_sentences_of_the_small_collection():
    import pyterrier as pt

    abbreviated = ("end of May.", "long, floating arc.")  # which these may be
    for document in pt.get_dataset("mvret:mini").get_corpus_iter(verbose=False):
        if not any(words in document["text"] for words in abbreviated):
            assert Sentences().split(document["text"]) == [tuple(span) for span in document["spans"]]


def test_paragraphs():
    text = "\n one\ntwo \r\n\r\nthree\n \t \n\n\nfour\u2029five\r\rsix\n"
    assert parts(Paragraphs(), text) == ["one\ntwo", "three", "four\u2029five", "six"]
    assert Paragraphs().split(" \n\n ") == []


@pytest.mark.parametrize(
    ("words", "stride", "expected"),
    [
        (3, None, ["a b c", "d e f", "g"]),
        (3, 1, ["a b c", "b c d", "c d e", "d e f", "e f g"]),
        (3, 2, ["a b c", "c d e", "e f g"]),
        (4, 2, ["a b c d", "c d e f", "e f g"]),
        (2, 3, ["a b", "d e", "g"]),
        (7, None, ["a b c d e f g"]),
        (9, 1, ["a b c d e f g"]),
        (1, 9, ["a"]),
    ],
)
def test_windows_of_words(words, stride, expected):
    assert [" ".join(part.split()) for part in parts(Phrases(words, stride), " a b  c\td e\nf g ")] == expected


def test_splitters_are_values():
    assert Phrases(5) == Phrases() != Phrases(5, stride=5)
    assert repr(Phrases(3, 1)) == "Phrases(words=3, stride=1)"
    assert len({Sentences(), Sentences("en"), Sentences("de"), Paragraphs(), WholeText()}) == 4
    assert all(isinstance(splitter, Splitter) for splitter in SPLITTERS)
    for wrong in (0, -1, 2.5, True, "3"):
        with pytest.raises(ValueError, match="words must be"):
            Phrases(wrong)
        with pytest.raises(ValueError, match="stride must be"):
            Phrases(2, wrong)
    with pytest.raises(ValueError, match="words must be"):
        Phrases(None)


def test_names():
    assert [named_splitter(n) for n in ("sentence", "paragraph", "phrase", "text")] == [
        Sentences(),
        Paragraphs(),
        Phrases(),
        WholeText(),
    ]

    class Own:
        def split(self, text):
            return [(0, len(text))]

    own = Own()
    assert named_splitter(own) is own
    for wrong in ("sentences", None, Own, 5):
        with pytest.raises(ValueError, match="'sentence', 'paragraph'"):
            named_splitter(wrong)


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([(0, 15)], "leaves its text"),
        ([(-1, 3)], "leaves its text"),
        ([(3, 3)], "is empty"),
        ([(5, 3)], "is empty"),
        ([(0, 3), (7, 8)], r"span 1, \(7, 8\), holds nothing but white space"),
        ([(0, 3), (1, 6)], r"span 1, \(1, 6\), begins before span 0, \(0, 2\), ends"),
        ([(4, 6), (0, 3)], "span 1, .* begins before"),
        ([(0.0, 3)], "pair of whole numbers"),
        ([(0, 3, 6)], "pair of whole numbers"),
        ([7], "pair of whole numbers"),
        (["ab"], "pair of whole numbers"),
    ],
)
def test_spans_of_users_are_checked(spans, problem):
    with pytest.raises(ValueError, match=problem):
        checked_spans(spans, "It was. It is.")


def test_propositions_of_users_are_checked():
    import numpy as np

    text = "It was. It is."
    assert checked_propositions(np.array([[[0, 2], [8, 13]]]), text) == [[(0, 2), (8, 13)]]
    assert checked_propositions([[[3, 6], [0, 6]]], text) == [[(3, 6), (0, 6)]]  # any order, shared
    assert checked_propositions([], text) == []
    with pytest.raises(ValueError, match="proposition 1 has no span"):
        checked_propositions([[(0, 2)], []], text)
    with pytest.raises(ValueError, match="leaves its text"):
        checked_propositions([[(0, 20)]], text)
    with pytest.raises(ValueError, match="pair of whole numbers"):
        checked_propositions([[0, 2]], text)
