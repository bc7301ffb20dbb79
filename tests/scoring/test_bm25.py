"""BM25 over real weights: the tables worked by hand, a double loop, and what must hold whatever the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from pyterrier_mvret.scoring import BM25, bm25_matrix
from pyterrier_mvret.scoring.bm25 import Statistics, idf


@pytest.fixture(autouse=True)
def version():
    """Once is enough: no kernel is involved."""


TERMS = ("z3", "z7", "z9", "z11")
# the examples worked by hand: whole weights, and fractions
WHOLE = [{"z3": 5, "z7": 1}, {"z7": 2}, {"z9": 4}, {"z9": 1, "z11": 3}, {"z9": 2, "z11": 6}]
FRACTIONS = [{"z3": 2.25, "z7": 0.5}, {"z7": 1.5}, *WHOLE[2:]]


def rows(dicts):
    return csr_array([[d.get(t, 0.0) for t in TERMS] for d in dicts])


def double_loop(queries, documents, k1, b, form):
    n = (documents > 0).sum(axis=0)
    lengths = documents.sum(axis=1)
    out = np.zeros((len(queries), len(documents)))
    for q, query in enumerate(queries):
        for d, document in enumerate(documents):
            for j in np.flatnonzero(query):
                odds = (len(documents) - n[j] + 0.5) / (n[j] + 0.5)
                weight = np.log(1 + odds) if form == "lucene" else max(0.0, np.log(odds))
                norm = k1 * (1 - b + b * lengths[d] / lengths.mean())
                if document[j] > 0:
                    out[q, d] += query[j] * weight * document[j] * (k1 + 1) / (document[j] + norm)
    return out


@pytest.mark.parametrize(
    ("k1", "b", "query", "expected"),
    [
        (8, 0.7, {"z3": 1, "z7": 1}, (3.724341, 0.899480)),
        (0.9, 0.4, {"z3": 1, "z7": 1}, (2.063628, 0.475314)),
        (8, 0.7, {"z3": 2, "z7": 1}, (7.157505, 0.899480)),
    ],
)
def test_the_table_of_whole_weights(k1, b, query, expected):
    scores = bm25_matrix(rows([query]), rows(WHOLE), k1, b)[0]
    np.testing.assert_allclose(scores[:2], expected, atol=1e-6)
    assert not scores[2:].any()


def test_the_table_of_fractions():
    query = rows([{"z3": 1, "z7": 1}])
    np.testing.assert_allclose(bm25_matrix(query, rows(FRACTIONS))[0, :2], (2.857906, 0.760348), atol=1e-6)
    np.testing.assert_allclose(
        bm25_matrix(query, rows(FRACTIONS), idf="lucene")[0, :2], (3.908999, 1.978353), atol=1e-6
    )


@pytest.mark.parametrize("form", ["rsj", "lucene"])
def test_equal_to_a_double_loop(form):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        documents = random_array((rng.integers(1, 12), 9), density=rng.uniform(0.1, 0.9), rng=rng).toarray() * 20
        queries = random_array((3, 9), density=0.4, rng=rng).toarray()
        if not documents.any():
            continue
        k1, b = rng.uniform(0, 20), rng.uniform()
        got = bm25_matrix(csr_array(queries), csr_array(documents), k1, b, form)
        np.testing.assert_allclose(got, double_loop(queries, documents, k1, b, form), rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([4.0, 100.0, 0.37]), k1=st.floats(0.1, 50), b=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_scaling_weights_and_k1_alike_changes_scores_by_a_constant(seed, scale, k1, b):
    rng = np.random.default_rng(seed)
    documents, queries = random_array((8, 6), density=0.5, rng=rng), random_array((2, 6), density=0.6, rng=rng)
    scaled = bm25_matrix(queries, documents * scale, scale * k1, b) * ((1 + k1) / (1 + scale * k1))
    np.testing.assert_allclose(scaled, bm25_matrix(queries, documents, k1, b), rtol=1e-12, atol=1e-300)


@given(seed=st.integers(0, 10**6), k1=st.floats(0.1, 50))
@settings(max_examples=40, deadline=None)
def test_a_score_rises_with_the_weight_and_saturates(seed, k1):
    rng = np.random.default_rng(seed)
    weights = np.sort(rng.uniform(0.1, 9.9, 4))
    # equal lengths; most documents lack the term
    documents = np.zeros((12, 2))
    documents[:4, 0], documents[:, 1] = weights, 10 - np.pad(weights, (0, 8))
    query = csr_array([[2.5, 0.0]])
    scores = bm25_matrix(query, csr_array(documents), k1)[0, :4]
    assert (np.diff(scores) >= 0).all()
    assert scores[-1] < 2.5 * idf(np.array([4]), 12)[0] * (k1 + 1)
    linear = bm25_matrix(query, csr_array(documents), 1e9)[0, :4]
    np.testing.assert_allclose(linear / linear[0], weights / weights[0], rtol=1e-6)


def test_without_b_length_counts_for_nothing():
    longer = [{**WHOLE[0], "z11": 50.0}, *WHOLE[1:3], {"z9": 1}, *WHOLE[4:]]  # z11 stays in two documents
    query = rows([{"z3": 1, "z7": 1}])
    before, after = bm25_matrix(query, rows(WHOLE), b=0)[0], bm25_matrix(query, rows(longer), b=0)[0]
    np.testing.assert_allclose(before, after, rtol=1e-12)
    assert bm25_matrix(query, rows(longer))[0, 0] < bm25_matrix(query, rows(WHOLE))[0, 0]


def test_a_term_of_all_documents():
    documents, query = csr_array([[1.0, 2.0], [1.0, 0.0], [3.0, 0.0]]), csr_array([[1.0, 0.0]])
    assert not bm25_matrix(query, documents).any()
    assert (bm25_matrix(query, documents, idf="lucene") > 0.1).all()
    assert idf(np.array([2, 3]), 4).tolist() == [0, 0]  # in half of them or more


def test_empty_documents_count_and_stored_zeros_do_not():
    query = rows([{"z3": 1}])
    padded = bm25_matrix(query, rows([*WHOLE, {}, {}]))
    statistics = Statistics(7, np.array([1, 2, 3, 2]), 24 / 7)
    impacts = BM25().impacts(rows(WHOLE), statistics)
    np.testing.assert_allclose((query @ impacts.T).toarray()[0], padded[0, :5], rtol=1e-12)
    stored = csr_array((np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert Statistics.of(stored).frequencies.tolist() == [0, 1]
    assert bm25_matrix(query, csr_array((0, 4))).shape == (1, 0)
    assert not bm25_matrix(query, csr_array((2, 4))).any()


@pytest.mark.parametrize("bad", [{"k1": -1}, {"k1": np.inf}, {"k1": np.nan}, {"b": 1.1}, {"b": -0.1}, {"idf": "okapi"}])
def test_parameters_outside_their_range(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        BM25(**bad)


def test_weights_that_are_none():
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="weights must be finite and at least 0"):
            BM25().impacts(csr_array([[bad, 1.0]]))
    assert BM25(8, 0.7) == BM25(8.0, 0.7)
    assert repr(BM25(8)) == repr(BM25(8.0))
