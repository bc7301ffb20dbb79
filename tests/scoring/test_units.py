"""Units of encoded texts: AGRaME's worked examples and properties, and a plain reference on ragged units."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring import (
    EMPTY_DOCUMENT,
    TextUnits,
    UnitRows,
    maxsim_packed,
    unit_maxima,
    unit_scores,
    with_text_scores,
)


def unit_and_text_scores(query, vectors, units, offsets, weights=None):
    """Of all texts."""
    scores = TextUnits(vectors, units, offsets).scores(query, np.arange(len(offsets) - 1), weights)
    np.testing.assert_array_equal(scores.at, units.texts)
    return scores.units, scores.texts


Q = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)


def close(got, expected, atol=1e-4):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=atol)


def reference(query, vectors, rows, weights):
    """Sum over query tokens of the best similarity among the rows, in float64; in loops."""
    if len(rows) == 0:
        return -1e9
    return sum(w * max(float(q @ vectors[r]) for r in rows) for w, q in zip(weights, query))


@st.composite
def cases(draw):
    """A query, packed texts (some empty) and units of them: any rows, in runs or scattered, shared or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, offsets = int(rng.integers(1, 20)), np.cumsum([0, *rng.integers(0, 12, rng.integers(1, 6))])
    shift = draw(st.sampled_from([0.0, -2.0]))  # with it, most similarities are negative
    vectors = (rng.standard_normal((offsets[-1], dim)) + shift).astype(np.float32)
    query = (rng.standard_normal((rng.integers(0, 40), dim)) - shift).astype(np.float32)
    rows, texts = [], []
    for text, (a, b) in enumerate(zip(offsets, offsets[1:])):
        for _ in range(rng.integers(0, 4)):
            rows.append(rng.choice(np.arange(a, b), rng.integers(0, b - a + 1), replace=bool(rng.integers(2))))
            texts.append(text)
    return rng, query, vectors, offsets, rows, np.array(texts, dtype=np.int64)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_any_rows_weights_and_parts(case):
    rng, query, vectors, offsets, rows, texts = case
    units = UnitRows.of(rows, texts)
    assert units.sizes.tolist() == [len(set(r)) for r in rows]
    assert [units.rows(i).tolist() for i in range(len(units))] == [sorted(set(r.tolist())) for r in rows]
    ones, weights = np.ones(len(query)), rng.standard_normal(len(query))
    close(unit_scores(query, vectors, units), [reference(query, vectors, r, ones) for r in rows], 1e-3)
    close(unit_scores(query, vectors, units, weights), [reference(query, vectors, r, weights) for r in rows], 1e-3)
    parts = [np.flatnonzero(rng.integers(0, 2, len(query))) for _ in range(3)]
    got = unit_scores(query, vectors, units, UnitRows.of(parts).members(len(query)))
    close(got, [[reference(query[p], vectors, r, np.ones(len(p))) for r in rows] for p in parts], 1e-3)
    whole = UnitRows.of_runs(offsets[:-1], offsets[1:])
    close(unit_scores(query, vectors, whole, weights), maxsim_packed(query, vectors, offsets, weights), 1e-3)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_texts_beside_their_units(case):
    rng, query, vectors, offsets, rows, texts = case
    units = UnitRows.of(rows, texts)
    for weights in (None, rng.standard_normal(len(query)), rng.standard_normal((2, len(query)))):
        of_units, of_texts = unit_and_text_scores(query, vectors, units, offsets, weights)
        close(of_units, unit_scores(query, vectors, units, weights), 1e-3)
        close(of_texts, unit_scores(query, vectors, UnitRows.of_runs(offsets[:-1], offsets[1:]), weights), 1e-3)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_some_of_the_texts_in_any_order_and_another_query_for_them(case):
    rng, query, vectors, offsets, rows, texts = case
    held = TextUnits(vectors, UnitRows.of(rows, texts), offsets)
    asked = rng.integers(0, len(offsets) - 1, rng.integers(0, 6))
    other = rng.standard_normal((3, vectors.shape[1])).astype(np.float32)
    units = [(at, number, u) for at, text in enumerate(asked) for number, u in enumerate(np.flatnonzero(texts == text))]
    of_text = UnitRows.of_runs(offsets[:-1], offsets[1:])
    for text_query in (None, other):
        got = held.scores(query, asked, text_query=text_query)
        assert list(zip(got.at, got.number)) == [(at, number) for at, number, _ in units]
        close(got.units, [reference(query, vectors, rows[u], np.ones(len(query))) for _, _, u in units], 1e-3)
        close(got.texts, unit_scores(query if text_query is None else other, vectors, of_text)[asked], 1e-3)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_properties_of_units(case):
    rng, query, vectors, offsets, _, _ = case
    filled = [(a, b) for a, b in zip(offsets, offsets[1:]) if b > a]
    for a, b in filled:
        cut, extra = int(rng.integers(a, b + 1)), int(rng.integers(a, b))
        pieces = [np.arange(a, cut), np.arange(cut, b), np.arange(a, b), np.append(np.arange(a, cut), extra)]
        best = unit_maxima(query, vectors, UnitRows.of(pieces))
        close(best[:2].max(axis=0), best[2])  # P1: a cover
        assert (best[[0, 1, 3]] <= best[2] + 1e-4).all()  # P1 and P3: no part is above the whole
        assert (best[0] <= best[3] + 1e-4).all()  # P3: more rows, never less
        close(unit_maxima(query, vectors, UnitRows.of([pieces[2][::-1], np.tile(pieces[2], 2)])), best[[2, 2]])  # P5
        split = int(rng.integers(0, len(query) + 1))
        halves = UnitRows.of([range(split), range(split, len(query)), range(len(query))]).members(len(query))
        one, two, both = unit_scores(query, vectors, UnitRows.of(pieces[2:]), halves)
        close(one + two, both, 1e-3)  # P4: additive over the query


def test_worked_example_of_cover_and_special_rows():
    rows = np.array([[0.6, 0.8], [0.8, -0.6], [0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8], [-0.8, -0.6]])
    units = UnitRows.of([[2, 3], [4, 5], [2, 3, 4, 5], range(7)])
    close(unit_maxima(Q, rows, units), [[0.96, 0.6], [0.28, 0.96], [0.96, 0.96], [0.96, 0.96]])
    close(unit_scores(Q, rows, units), [1.56, 1.24, 1.92, 1.92])
    rows[0] = 0, 1  # now a special row wins (P2)
    close(unit_scores(Q, rows, units), [1.56, 1.24, 1.92, 1.96])
    sentences = UnitRows.of([[2, 3], [4, 5]])
    close(unit_and_text_scores(Q, rows, sentences, np.array([0, 7]))[1], [1.96])
    other = np.array([[0.6, 0.8], [0, 1]])  # another marker, another order (P6)
    close(unit_scores(other, rows, sentences), [1.56, 1.896])


def test_worked_example_of_alpha():
    rows = np.array([[0.8, 0.6], [0.6, 0.8], [0.96, 0.28], [0.8, 0.6], [0.28, 0.96]])
    units = UnitRows.of([[0, 1], [2, 3], [4]], texts=np.array([0, 1, 1]))
    scores, texts = unit_and_text_scores(Q, rows, units, np.array([0, 2, 5]))
    close(texts, [1.6, 1.92])
    close(with_text_scores(scores, units.texts, texts, alpha=0), [1.6, 1.56, 1.24])
    close(with_text_scores(scores, units.texts, texts), [3.2, 3.48, 3.16])
    tie = with_text_scores(scores, units.texts, texts, alpha=0.125)
    close(tie[0], tie[1])


def test_worked_example_of_propositions_and_passages():
    query, offsets = np.eye(4), np.array([0, 2, 5, 6])
    passages = [[1, 0, 0, 0], [0, 0.9, 0, 0], [0.2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0.6], [0.4, 0.4, 0.4, 0.4]]
    propositions = UnitRows.of([[0, 1], [2, 3], [0, 1, 2, 3]]).members(4)
    got = unit_scores(query, np.array(passages), UnitRows.of_runs(offsets[:-1], offsets[1:]), propositions)
    close(got, [[1.9, 0.2, 0.8], [0, 1.6, 0.8], [1.9, 1.8, 1.6]])


@given(st.integers(0, 2**32), st.floats(0, 8).map(lambda a: round(a * 8) / 8))
@settings(max_examples=30, deadline=None)
def test_alpha_leaves_the_order_within_a_text(seed, alpha):
    rng = np.random.default_rng(seed)  # eighths, whose sums are exact
    scores, of_texts, texts = rng.integers(-99, 99, 20) / 8, rng.integers(-99, 99, 4) / 8, rng.integers(0, 4, 20)
    units = UnitRows.of([[0]] * 20, texts)
    got = with_text_scores(scores, units.texts, of_texts, alpha)
    np.testing.assert_array_equal(got, scores + alpha * of_texts[texts])
    for text in range(4):  # P7
        mine = texts == text
        np.testing.assert_array_equal(np.argsort(got[mine], kind="stable"), np.argsort(scores[mine], kind="stable"))
    np.testing.assert_array_equal(with_text_scores(scores, units.texts, of_texts, alpha=0), scores)  # P8


def test_units_without_rows_stay_below_all_others():
    vectors = np.array([[-3.0, 0.0], [0.0, -5.0]], np.float32)
    units = UnitRows.of([[0], [], [1]], texts=np.array([0, 0, 1]))
    zeros = np.zeros(2)
    np.testing.assert_array_equal(unit_scores(Q, vectors, units), [-3, EMPTY_DOCUMENT, -5])
    np.testing.assert_array_equal(unit_scores(Q, vectors, units, zeros), [0, EMPTY_DOCUMENT, 0])
    np.testing.assert_array_equal(unit_scores(Q, vectors, units, -np.eye(2))[:, 1], [EMPTY_DOCUMENT] * 2)
    scores, texts = unit_and_text_scores(Q, vectors, units, np.array([0, 1, 2, 2]))
    np.testing.assert_array_equal(texts, [-3, -5, EMPTY_DOCUMENT])
    np.testing.assert_array_equal(with_text_scores(scores, units.texts, texts, 2.0), [-9, EMPTY_DOCUMENT, -15])
    # a unit of a text that was not scored, too
    np.testing.assert_array_equal(
        with_text_scores([1.0] * 3, units.texts, [EMPTY_DOCUMENT, 1]), [EMPTY_DOCUMENT] * 2 + [2]
    )


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_stored_vectors_are_read_where_they_lie(dtype):
    rng = np.random.default_rng(0)
    stored = rng.integers(-127, 128, (30, 8)).astype(dtype)
    query = rng.integers(-127, 128, (5, 8)).astype(np.float32)
    query[:, 0] = 127  # so that rounding leaves each as it is
    units = UnitRows.of([[0, 1, 2, 20, 21], range(30), [29]], texts=np.zeros(3, int))
    close(unit_scores(query, stored, units), unit_scores(query, stored.astype(np.float32), units))
    close(unit_and_text_scores(query, stored, units, np.array([0, 30]))[1], unit_scores(query, stored, units)[1])


def test_nothing_to_score():
    none = UnitRows.of([])
    assert len(none) == 0
    assert unit_scores(Q, np.empty((0, 2)), none).shape == (0,)
    assert unit_scores(Q, np.eye(2), none, np.ones((3, 2))).shape == (3, 0)
    units, texts = unit_and_text_scores(Q, np.eye(2), none, np.array([0, 1, 1, 2]))
    assert units.shape == (0,)
    np.testing.assert_array_equal(texts, [1, EMPTY_DOCUMENT, 1])
    assert with_text_scores(units, none.texts, texts).shape == (0,)
    assert none.members(3).shape == (0, 3)
    np.testing.assert_array_equal(unit_scores(np.empty((0, 2)), np.eye(2), UnitRows.of([[0], []])), [0, -1e9])


def test_what_does_not_fit_is_named():
    units = UnitRows.of([[0, 1], [3]], texts=np.array([0, 1]))
    with pytest.raises(ValueError, match="run lies outside"):
        unit_scores(Q, np.eye(2), units)
    with pytest.raises(ValueError, match="2 numbers a part"):
        unit_scores(Q, np.ones((4, 2)), units, np.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        unit_scores(Q, np.ones((4, 2)), units, np.array([1, np.nan]))
    with pytest.raises(ValueError, match="not finite"):
        unit_scores(Q, np.full((4, 2), np.nan), units)
    with pytest.raises(ValueError, match="text by text"):
        TextUnits(np.ones((4, 2)), UnitRows.of([[3], [0]], texts=np.array([1, 0])), np.array([0, 2, 4]))
    for offsets in ([0, 1, 4], [0, 4], [0, 4, 4]):  # across a text, beyond the last, in another
        with pytest.raises(ValueError, match="another text"):
            unit_and_text_scores(Q, np.ones((4, 2)), units, np.array(offsets))
    with pytest.raises(ValueError, match="outside the rows"):
        units.members(3)
    for alpha in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="alpha"):
            with_text_scores([1, 2], units.texts, [1, 2], alpha)
    for scores, texts in (([1], [1, 2]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="as many scores as units, 2"):
            with_text_scores(scores, units.texts, texts)


@pytest.mark.parametrize(
    "arrays",
    [
        ([0], [1, 2], [0, 1], [0]),
        ([2], [1], [0, 1], [0]),
        ([-1], [1], [0, 1], [0]),
        ([0], [1], [0, 2], [0]),
        ([0, 1], [1, 2], [0, 2, 1, 2], [0, 0, 0]),
        ([0], [1], [0, 1], [0, 1]),
        ([0], [1], [0, 1], [-1]),
        ([0.5], [1], [0, 1], [0]),
        ([[0]], [[1]], [0, 1], [0]),
        ([], [], [], []),
    ],
)
def test_runs_that_are_none(arrays):
    with pytest.raises(ValueError, match="must|lies outside"):
        UnitRows(*map(np.array, arrays))


def test_rows_that_are_none():
    for unit, rows in ((0, -1), (-1, 0), (1, 0)):
        with pytest.raises(ValueError, match="rows must be at least 0"):
            UnitRows.of_pairs(np.array([unit]), np.array([rows]), texts=np.array([0]))
