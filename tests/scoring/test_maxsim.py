import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim, maxsim_matrix, maxsim_packed, maxsim_pairs, packed


def reference(query, document, weights=None, k=1):
    """The definition, one number at a time in float64."""
    if len(document) == 0:
        return float(EMPTY_DOCUMENT)
    total = 0.0
    for i, q in enumerate(query.astype(np.float64)):
        best = sum(sorted((float(np.dot(q, d)) for d in document.astype(np.float64)), reverse=True)[:k])
        total += best * (1.0 if weights is None else float(weights[i]))
    return total


def pack(matrices, dim):
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])]).astype(np.int64)
    return (np.concatenate(matrices) if matrices else np.empty((0, dim), np.float32)), offsets


@st.composite
def ragged(draw):
    """Queries, documents (some empty), weights (some negative) of one dimension; similarities of both signs."""
    dim = draw(st.sampled_from([1, 2, 3, 8, 17]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(0, 9), min_size=0, max_size=7))
    query_lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    shift = draw(st.sampled_from([-3.0, 0.0, 3.0]))  # -3: every similarity to the shifted queries is negative

    def make(n, sign):
        return (rng.standard_normal((n, dim)) + sign * abs(shift)).astype(np.float32)

    documents = [make(n, np.sign(shift)) for n in lengths]
    queries = [make(n, 1.0) for n in query_lengths]
    weights = [rng.standard_normal(n).astype(np.float32) for n in query_lengths]
    return dim, queries, documents, weights


@given(ragged(), st.sampled_from([1, 7, 1 << 19]), st.booleans(), st.sampled_from([1, 2, 3, 8, 11]))
@settings(max_examples=150, deadline=None)
def test_matrix_equals_the_definition(case, chunk, weighted, k):
    dim, queries, documents, weights = case
    q, q_offsets = pack(queries, dim)
    d, offsets = pack(documents, dim)
    w = np.concatenate(weights) if weighted else None
    with mock.patch.object(packed, "_ELEMENTS_AT_ONCE", chunk):
        scores = maxsim_matrix(q, q_offsets, d, offsets, w, k=k)
    expected = [[reference(a, b, v if weighted else None, k) for b in documents] for a, v in zip(queries, weights)]
    assert scores.dtype == np.float32
    # terms of both signs cancel: the error follows their number and size
    np.testing.assert_allclose(scores, np.reshape(expected, scores.shape), rtol=1e-5, atol=2e-3)


@given(ragged())
@settings(max_examples=50, deadline=None)
def test_packed_and_pairs_are_parts_of_the_matrix(case):
    dim, queries, documents, weights = case
    q, q_offsets = pack(queries, dim)
    d, offsets = pack(documents, dim)
    matrix = maxsim_matrix(q, q_offsets, d, offsets, np.concatenate(weights))
    for i, (query, w) in enumerate(zip(queries, weights)):
        np.testing.assert_allclose(maxsim_packed(query, d, offsets, w), matrix[i], rtol=1e-5, atol=1e-4)
    n = min(len(queries), len(documents))
    pairs = maxsim_pairs(*pack(queries[:n], dim), *pack(documents[:n], dim), np.concatenate([*weights[:n], []]))
    np.testing.assert_allclose(pairs, np.diagonal(matrix)[:n], rtol=1e-5, atol=1e-4)


def test_worked_examples():
    # specs of the reranking example: S = 1.56, 1.24, and 1.92 for the two documents as one
    query = np.array([[1, 0], [0, 1]])
    d = np.array([[0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8]])
    np.testing.assert_allclose(maxsim_packed(query, d, np.array([0, 2, 4])), [1.56, 1.24], atol=1e-6)
    np.testing.assert_allclose(maxsim_packed(query, d, np.array([0, 4])), [1.92], atol=1e-6)


def test_padding_cannot_lift_a_negative_score():
    # A alone is -0.6; implementations that pad with zeros give it 0
    query = np.array([[1.0, 0.0]])
    both = np.array([[-0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    np.testing.assert_allclose(maxsim_packed(query, both, np.array([0, 1, 3])), [-0.6, 0.6], atol=1e-6)
    np.testing.assert_allclose(maxsim_packed(query, both[:1], np.array([0, 1])), [-0.6], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, ">f4"])
def test_any_storage_type_and_layout(dtype):
    rng = np.random.default_rng(0)
    d = (rng.standard_normal((20, 6)) * 10).astype(dtype)
    query = rng.standard_normal((3, 6)).astype(np.float32)
    offsets = np.array([0, 5, 20], dtype=np.uint32)
    if dtype == np.int8:  # the query is rounded, too
        query = np.rint(query * 127 / np.abs(query).max(axis=1, keepdims=True))
    expected = [reference(query, d[:5].astype(np.float32)), reference(query, d[5:].astype(np.float32))]
    np.testing.assert_allclose(maxsim_packed(query, d, offsets), expected, rtol=1e-5)
    np.testing.assert_allclose(maxsim_packed(query, np.asfortranarray(d), offsets), expected, rtol=1e-5)


@given(ragged())
@settings(max_examples=50, deadline=None)
def test_properties_of_the_sum_of_maxima(case):
    dim, queries, documents, _ = case
    documents = [d for d in documents if len(d)]
    query = queries[0]
    d, offsets = pack(documents, dim)
    scores = maxsim_packed(query, d, offsets)
    shuffled, _ = pack([m[::-1] for m in documents], dim)
    np.testing.assert_allclose(maxsim_packed(query, shuffled, offsets), scores, rtol=1e-5, atol=1e-4)
    doubled, twice = pack([np.concatenate([m, m]) for m in documents], dim)
    np.testing.assert_allclose(maxsim_packed(query, doubled, twice), scores, rtol=1e-5, atol=1e-4)
    grown, more = pack([np.concatenate([m, np.ones((1, dim), np.float32)]) for m in documents], dim)
    assert (maxsim_packed(query, grown, more) >= scores - 1e-4).all()
    parts = sum(maxsim_packed(row[None], d, offsets) for row in query) if len(query) else np.zeros(len(documents))
    np.testing.assert_allclose(parts, scores, rtol=1e-4, atol=1e-4)


def test_l2_is_twice_the_cosine_less_twice_the_tokens():
    rng = np.random.default_rng(1)

    def unit(n):
        v = rng.standard_normal((n, 5))
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    query, d, offsets = unit(4), unit(9), np.array([0, 3, 3, 9])
    direct = [
        sum(max(-((q - row) ** 2).sum() for row in d[a:b]) for q in query) if b > a else -1e9
        for a, b in zip(offsets[:-1], offsets[1:])
    ]
    np.testing.assert_allclose(MaxSim("l2").scores(query, d, offsets), direct, rtol=1e-5)
    weights = np.array([0.5, 2.0, 0.0, 1.0])
    weighted = [
        sum(w * max(-((q - row) ** 2).sum() for row in d[a:b]) for w, q in zip(weights, query)) if b > a else -1e9
        for a, b in zip(offsets[:-1], offsets[1:])
    ]
    np.testing.assert_allclose(MaxSim("l2").scores(query, d, offsets, weights), weighted, rtol=1e-5)
    plain = MaxSim().scores(query, d, offsets)
    np.testing.assert_allclose(
        MaxSim(normalize="query").scores(query, d, offsets)[[0, 2]], plain[[0, 2]] / 4, rtol=1e-6
    )
    assert MaxSim(normalize="query").scores(query, d, offsets)[1] == EMPTY_DOCUMENT


def test_ones_as_weights_change_nothing():
    rng = np.random.default_rng(2)
    query, d, offsets = rng.standard_normal((4, 3)), rng.standard_normal((9, 3)), np.array([0, 4, 9])
    np.testing.assert_array_equal(maxsim_packed(query, d, offsets, np.ones(4)), maxsim_packed(query, d, offsets))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 5], "rise from 0 to the number of rows, 4"),
        ([1, 4], "rise from 0"),
        ([0, 3, 2, 4], "without decreasing"),
        ([], "at least one entry"),
        ([0.0, 4.0], "integers"),
        ([[0, 4]], "one-dimensional"),
    ],
)
def test_offsets_that_lie_are_refused(offsets, message):
    with pytest.raises(ValueError, match=message):
        maxsim_packed(np.ones((2, 3)), np.ones((4, 3)), np.array(offsets))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 dimensions, document vectors 5"):
        maxsim_packed(np.ones((2, 3)), np.ones((4, 5)), np.array([0, 4]))
    with pytest.raises(ValueError, match="query must be"):
        maxsim_packed(np.ones(3), np.ones((4, 3)), np.array([0, 4]))
    with pytest.raises(ValueError, match="weights must have one number a query token, 2"):
        maxsim_packed(np.ones((2, 3)), np.ones((4, 3)), np.array([0, 4]), np.ones(3))
    with pytest.raises(ValueError, match="cannot be paired"):
        maxsim_pairs(np.ones((2, 3)), np.array([0, 2]), np.ones((4, 3)), np.array([0, 2, 4]))
    with pytest.raises(ValueError, match="similarity must be"):
        MaxSim("dot")
    with pytest.raises(ValueError, match="normalize must be"):
        MaxSim(normalize="document")


def test_extra_memory_is_bounded_by_the_chunk():
    d = np.ones((200_000, 8), np.float32)
    offsets = np.arange(0, 200_001, 10)
    query = np.ones((32, 8), np.float32)
    maxsim_packed(query, d[:10], np.array([0, 10]))
    tracemalloc.start()
    with mock.patch.object(packed, "_ELEMENTS_AT_ONCE", 1 << 16):
        maxsim_packed(query, d, offsets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # all similarities at once would be 25.6 MB; offsets and scores of 20,000 documents take under 2 MB
    assert peak < 4e6


def test_one_very_long_document_and_very_many_queries_stay_bounded():
    chunk = 1 << 16
    long = np.ones((200_000, 4), np.float32)
    many, lengths = np.ones((40_000, 4), np.float32), np.arange(0, 40_001, 20)
    cases = [
        (np.ones((32, 4), np.float32), np.array([0, 32]), long, np.array([0, 7, 199_000, 200_000])),
        (many, lengths, long[:100], np.array([0, 40, 100])),
    ]
    for queries, query_offsets, vectors, offsets in cases:
        tracemalloc.start()
        spy = mock.patch.object(packed, "_k_best", wraps=packed._k_best)
        with mock.patch.object(packed, "_ELEMENTS_AT_ONCE", chunk), spy as k_best:
            scores = maxsim_matrix(queries, query_offsets, vectors, offsets)
        assert all(call.args[0].numel() <= chunk for call in k_best.call_args_list)  # torch's memory is not traced
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3e6  # the similarities alone would be 16 to 25 MB
        np.testing.assert_allclose(scores, np.diff(query_offsets)[:, None] * 4.0 * np.ones(len(offsets) - 1))


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="a score is not finite"):
        maxsim_packed(np.full((1, 2), 1e30), np.full((1, 2), 1e30), np.array([0, 1]))
    with pytest.raises(ValueError, match="a score is not finite"):
        maxsim_packed(np.ones((1, 2)), np.array([[np.nan, 0]]), np.array([0, 1]))


def test_a_query_without_tokens():
    d, offsets = np.eye(3), np.array([0, 1, 3])
    for rule in (MaxSim(), MaxSim("l2"), MaxSim(normalize="query")):
        assert rule.scores(np.empty((0, 3)), d, offsets).tolist() == [0, 0]


@given(ragged())
@settings(max_examples=40, deadline=None)
def test_l2_is_the_negative_squared_distance_for_any_vectors(case):
    dim, queries, documents, _ = case
    q, q_offsets = pack(queries, dim)
    d, offsets = pack(documents, dim)
    expected = [
        [
            sum(max(-((a - b) ** 2).sum() for b in doc.astype(np.float64)) for a in query.astype(np.float64))
            if len(doc)
            else -1e9
            for doc in documents
        ]
        for query in queries
    ]
    scores = MaxSim("l2").matrix(q, q_offsets, d, offsets)
    np.testing.assert_allclose(scores, np.reshape(expected, scores.shape), rtol=1e-4, atol=1e-3)


def test_pairs_check_their_weights():
    with pytest.raises(ValueError, match="weights must have one number a query token, 2"):
        maxsim_pairs(np.ones((2, 3)), np.array([0, 2]), np.ones((4, 3)), np.array([0, 4]), np.ones(9))


def test_each_query_is_divided_by_its_own_length():
    rng = np.random.default_rng(4)
    queries, d = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    query_offsets, offsets = np.array([0, 2, 2, 7]), np.array([0, 3, 5])
    sums = MaxSim().matrix(queries, query_offsets, d, offsets)
    means = MaxSim(normalize="query").matrix(queries, query_offsets, d, offsets)
    np.testing.assert_allclose(means, sums / np.array([[2], [1], [5]]), rtol=1e-6)


def test_l2_beyond_float32_and_of_other_dimensions():
    with pytest.raises(ValueError, match="a score is not finite"):
        MaxSim("l2").scores(np.full((1, 3), 1e20, "f4"), np.ones((1, 3), "f4"), np.array([0, 1]))
    with pytest.raises(ValueError, match="queries have 3 dimensions, document vectors 5"):
        MaxSim("l2").scores(np.ones((1, 3)), np.ones((1, 5)), np.array([0, 1]))
