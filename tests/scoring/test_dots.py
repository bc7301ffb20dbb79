import numpy as np
import pytest

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim, StoredVectors, dots, fused, maxsim_matrix

RNG = np.random.default_rng(0)


def rows(n, dim=7):
    return RNG.standard_normal((n, dim)).astype(np.float32)


def scores(queries, vectors, starts, ends, weights=None, offsets=None):
    offsets = np.arange(len(queries) + 1) if offsets is None else offsets
    return MaxSim().stored(queries, offsets, StoredVectors(vectors), starts, ends, weights)


@pytest.mark.parametrize("queries", [1, 2, 31, 32, 33, 70])
@pytest.mark.parametrize("weighed", [False, True])
def test_queries_of_one_vector_are_scored_as_any_others(queries, weighed):
    q, vectors = rows(queries), rows(90)
    weights = RNG.standard_normal(queries).astype(np.float32) if weighed else None
    factors = np.ones((queries, 1)) if weights is None else weights[:, None].astype(np.float64)
    lengths = RNG.integers(0, 5, 30)
    lengths[3] = 0
    ends = np.cumsum(lengths)
    products = q.astype(np.float64) @ vectors.T
    many = scores(q, vectors, ends - lengths, ends, weights)
    for d, (a, b) in enumerate(zip(ends - lengths, ends)):
        expected = (factors * products[:, a:b].max(1, keepdims=True))[:, 0] if b > a else EMPTY_DOCUMENT
        np.testing.assert_allclose(many[:, d], expected, rtol=1e-5, atol=1e-5)
    places = RNG.permutation(90)[:40]
    single = scores(q, vectors, places, places + 1, weights)
    np.testing.assert_allclose(single, factors * products[:, places], rtol=1e-5, atol=1e-5)
    assert scores(q, vectors, places[:0], places[:0], weights).shape == (queries, 0)


def test_a_query_without_vectors_among_queries_of_one():
    q, vectors = rows(2), rows(5)
    out = scores(q, vectors, np.arange(5), np.arange(1, 6), offsets=np.array([0, 1, 1, 2]))
    np.testing.assert_allclose(out[[0, 2]], q @ vectors.T, atol=1e-5)
    assert not out[1].any()


@pytest.mark.parametrize("queries", [1, 3])
def test_what_is_not_finite_is_said_unless_it_has_no_weight(queries):
    q, vectors = rows(queries), rows(4)
    vectors[2, 0] = np.nan
    places = np.arange(4)
    with pytest.raises(ValueError, match="a score is not finite"):
        scores(q, vectors, places, places + 1)
    if fused.versions():  # torch multiplies with the weights that are zero, too
        assert not scores(q, vectors, places, places + 1, np.zeros(queries)).any()
    np.testing.assert_allclose(scores(q, vectors, places[:2], places[:2] + 1), q @ vectors[:2].T, atol=1e-5)
    with pytest.raises(ValueError, match="a score is not finite"):
        scores(np.full((queries, 7), 3e38, np.float32), vectors[:1] + 3e38, places[:1], places[:1] + 1)


@pytest.mark.parametrize("dim", [1, 7, 384, 385])
@pytest.mark.parametrize("queries", [1, 2, 40])
def test_equal_vectors_have_equal_scores_whatever_is_beside_them(dim, queries):
    if queries > 1 and not fused.versions():
        pytest.skip("torch's matrix products sum in another order at their edges")
    vectors, q = np.repeat(rows(1, dim), 9001, axis=0), rows(queries, dim)
    for n in (2, 3, 17, 9001):
        out = maxsim_matrix(q, np.arange(queries + 1), vectors[:n], np.arange(n + 1))
        assert (out == out[:, :1]).all()


def test_one_query_takes_the_short_way_where_it_is_shorter(monkeypatch):
    vectors, one = StoredVectors(rows(4)), np.array([0, 1])
    places = np.arange(4)
    monkeypatch.setattr(fused, "threads", lambda: 1)
    assert dots.takes(one, vectors, places, places + 1)
    assert not dots.takes(np.array([0, 2]), vectors, places, places + 1)
    assert not dots.takes(np.array([0, 1, 2]), vectors, places, places + 1)
    assert not dots.takes(one, vectors, np.array([0]), np.array([2]))
    assert not dots.takes(one, StoredVectors(rows(4).astype(np.float16)), places, places + 1)
    monkeypatch.setattr(fused, "threads", lambda: 16)
    assert not dots.takes(one, vectors, places, places + 1)
