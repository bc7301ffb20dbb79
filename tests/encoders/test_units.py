"""From characters to rows: AGRaME's worked example, every family of tokenisers, and a reference in loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.importance import First, pruned
from pyterrier_mvret.encoders.splitters import Paragraphs, Phrases, Sentences
from pyterrier_mvret.encoders.units import proposition_rows, unit_rows
from tests.encoders.tokenizers import FAMILIES

EXAMPLE = "The cat sat. Á dog, ran!  What is on the mat?"
EXAMPLE_SPANS = [(0, 12), (12, 24), (24, 45)]
PIECES = ["The", "cat", "naïve", "e\u0301te\u0301", "a\u0301\u0323", "\u0301", "ﬁ", "½", "日本", "\U0001f600", "ß"]
PIECES += ["\U0001f468\u200d\U0001f469", ".", "?!", "“", ",", " ", "  ", "\t", "\n\n", "\u00a0", "\u3000", "[SEP]", "x"]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), st.text(max_size=20))


@pytest.fixture(scope="module", params=FAMILIES)
def tokenize(request, tmp_path_factory):
    """Texts to token spans and offsets, as encoders lay them out."""
    tokenizer = FAMILIES[request.param](tmp_path_factory.mktemp("tokenizer"))

    def spans(texts, most=64):
        options = {"return_offsets_mapping": True, "truncation": True, "max_length": most}
        each = [np.array(tokenizer(text, **options)["offset_mapping"]) for text in texts]
        return np.concatenate(each), np.cumsum([0, *map(len, each)])

    return spans


def stripped(span, text):
    """A token's characters without blanks at its ends; none for a token of nothing else."""
    part = text[span[0] : span[1]]
    start = span[0] + len(part) - len(part.lstrip())
    return (start, start + len(part.strip())) if part.strip() else None


def expected(spans, offsets, texts, units, belongs):
    """Rows of each unit, in loops."""
    return [
        [r for r in range(offsets[i], offsets[i + 1]) if (place := stripped(spans[r], text)) and belongs(place, unit)]
        for i, text in enumerate(texts)
        for unit in units[i]
    ]


def ids(units, rows):
    """The unit of each row, -1 for none; units share none here."""
    found = np.full(rows, -1)
    for i in range(len(units)):
        assert (found[units.rows(i)] == -1).all()
        found[units.rows(i)] = i
    return found.tolist()


@st.composite
def texts_and_units(draw, disjoint):
    """Texts, and for each some intervals of its characters: in order and apart, or any."""
    texts = draw(st.lists(TEXTS, min_size=1, max_size=3))
    units = []
    for text in texts:
        if disjoint:
            cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
            units.append([(a, b) for a, b in zip(cuts, cuts[1:]) if draw(st.booleans())])
        else:
            pair = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(sorted).map(tuple)
            units.append(draw(st.lists(st.lists(pair, max_size=3), max_size=4)))
    return texts, units


@given(texts_and_units(disjoint=True), st.integers(3, 64))
@settings(max_examples=60, deadline=None)
def test_units_take_tokens_by_their_first_character(tokenize, case, most):
    texts, units = case
    spans, offsets = tokenize(texts, most)
    got = unit_rows(spans, offsets, texts, units)
    rows = expected(spans, offsets, texts, units, lambda place, unit: unit[0] <= place[0] < unit[1])
    assert [got.rows(i).tolist() for i in range(len(got))] == rows
    assert got.sizes.tolist() == [len(r) for r in rows]
    assert got.texts.tolist() == [i for i, of_text in enumerate(units) for _ in of_text]


@given(texts_and_units(disjoint=False))
@settings(max_examples=60, deadline=None)
def test_propositions_take_tokens_that_lie_inside(tokenize, case):
    texts, units = case
    spans, offsets = tokenize(texts)
    got = proposition_rows(spans, offsets, texts, units)
    rows = expected(spans, offsets, texts, units, lambda p, unit: any(a <= p[0] and p[1] <= b for a, b in unit))
    assert [got.rows(i).tolist() for i in range(len(got))] == rows


@given(TEXTS, st.sampled_from([Sentences(), Paragraphs(), Phrases(1), Phrases(3)]))
@settings(max_examples=60, deadline=None)
def test_units_that_cover_a_text_have_all_of_its_tokens_in_order(tokenize, text, splitter):
    spans, offsets = tokenize([text], most=1000)
    units = unit_rows(spans, offsets, [text], [splitter.split(text)])
    found = ids(units, len(spans))
    assert [i >= 0 for i in found] == [stripped(span, text) is not None for span in spans]
    kept = [i for i in found if i >= 0]
    assert kept == sorted(kept)


def test_overlapping_windows_share_tokens(tokenize):
    text, windows = "the cat sat on the mat", Phrases(4, stride=2)
    spans, offsets = tokenize([text])
    units = unit_rows(spans, offsets, [text], [windows.split(text)])
    rows = expected(spans, offsets, [text], [windows.split(text)], lambda place, unit: unit[0] <= place[0] < unit[1])
    assert [units.rows(i).tolist() for i in range(len(units))] == rows
    assert sum(units.sizes) > len(spans) - 2  # some are in both


def test_tokens_out_of_order_find_their_unit():
    spans = np.array([[0, 0], [0, 1], [2, 3], [1, 2], [3, 4], [0, 0]])  # as after a canonical reordering
    units = unit_rows(spans, np.array([0, 6]), ["abcd"], [[(0, 2), (2, 4)]])
    assert [units.rows(i).tolist() for i in (0, 1)] == [[1, 3], [2, 4]]
    assert units.offsets.tolist() == [0, 2, 4]  # two runs each


def test_worked_example_of_spans(tiny):
    for skiplist, expected_ids in (
        ([], [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, -1]),
        ("punctuation", [-1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, -1]),
    ):
        batch = mv.TokenEncoder(tiny, skiplist=skiplist, device="cpu").encode_docs([EXAMPLE])
        units = unit_rows(batch.spans, batch.offsets, [EXAMPLE], [EXAMPLE_SPANS])
        assert ids(units, len(batch.vectors)) == expected_ids
        split = unit_rows(batch.spans, batch.offsets, [EXAMPLE], [Sentences().split(EXAMPLE)])
        assert ids(split, len(batch.vectors)) == expected_ids
        assert (np.diff(split.offsets) == 1).all()  # sentences are one run each


def test_what_was_cut_off_is_empty(tiny):
    texts = [EXAMPLE, "", "!?", "cat " + EXAMPLE]
    units = [EXAMPLE_SPANS, [], [(0, 2)], [(0, 3), *((a + 4, b + 4) for a, b in EXAMPLE_SPANS)]]
    batch = mv.TokenEncoder(tiny, doc_length=8, device="cpu").encode_docs(texts)
    found = unit_rows(batch.spans, batch.offsets, texts, units)
    # CLS, marker, five tokens, SEP; then punctuation goes
    assert found.sizes.tolist() == [3, 1, 0, 0, 1, 3, 0, 0]
    assert found.texts.tolist() == [0, 0, 0, 2, 3, 3, 3, 3]
    few = pruned(mv.TokenEncoder(tiny, device="cpu").encode_docs(texts, importance=First()), 0.5)
    assert unit_rows(few.spans, few.offsets, texts, units).sizes.tolist() == [3, 2, 0, 0, 1, 3, 2, 0]


def test_parts_of_a_query_have_no_marker_and_no_expansion(tiny_encoder):
    query = "the cat and the dog ran"
    batch = tiny_encoder.encode_queries([query])
    parts = proposition_rows(batch.spans, batch.offsets, [query], [[[(0, 7), (20, 23)], [(12, 23)], [(0, 23)]]])
    assert [tiny_encoder.tokens(batch.token_ids[parts.rows(i)]) for i in range(3)] == [
        ["the", "cat", "ran"],
        ["the", "dog", "ran"],
        query.split(),
    ]
    assert parts.members(len(batch.vectors))[2].tolist() == [0, 0, *[1] * 6, 0, *[0] * 3]


def test_what_does_not_fit_is_named():
    spans, offsets = np.array([[0, 0], [0, 3]]), np.array([0, 2])
    with pytest.raises(ValueError, match="token pooling"):
        unit_rows(None, offsets, ["cat"], [[]])
    with pytest.raises(ValueError, match="do not fit"):
        unit_rows(spans, offsets, ["cat", "dog"], [[], []])
    with pytest.raises(ValueError, match="do not fit"):
        unit_rows(spans[:1], offsets, ["cat"], [[]])
    with pytest.raises(ValueError, match="another text"):
        unit_rows(spans, offsets, ["ca"], [[]])
    for unit in ((0, 4), (2, 1), (-1, 2)):
        with pytest.raises(ValueError, match="of a unit are not in text 0"):
            unit_rows(spans, offsets, ["cat"], [[unit]])
    assert len(unit_rows(np.empty((0, 2), np.int32), np.array([0]), [], [])) == 0
