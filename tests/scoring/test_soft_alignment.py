import tracemalloc
from unittest import mock

import numpy as np
import pytest

from pyterrier_mvret.scoring import (
    EMPTY_DOCUMENT,
    Soft,
    StoredVectors,
    TopK,
    TopP,
    align_grid,
    align_matrix,
    align_packed,
    align_stored,
    aligned,
    alignment_of,
)
from tests.scoring.alignments import UD, UQ, VARIANTS, D, Q, of_similarities, one, reference


@pytest.fixture(scope="module", autouse=True)
def version():
    """Nothing here is computed by the kernel."""


def rows(strategy, query=Q, document=D, **saliences):
    """The alignment as a matrix."""
    pairs = alignment_of(query, document, strategy, **saliences)
    out = np.zeros((len(query), len(document)))
    out[pairs.query, pairs.document] = pairs.weight
    return out


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [(Soft(1, 0.1), 0.861403), (Soft(1, 0.5), 0.683482), (Soft(2, 0.1), 0.804518), (Soft(9, 0.1), 0.468)],
)
def test_the_worked_example(strategy, expected):
    assert one(strategy) == pytest.approx(expected, abs=1e-6)
    assert one(strategy, np.ones(2), np.ones(5)) == pytest.approx(expected, abs=1e-6)
    assert one(strategy, UQ * 3, UD * 0.1) == pytest.approx(one(strategy, UQ, UD), abs=1e-6)
    # beside ranked strategies, before and after them
    mixed = align_grid(Q, D, np.array([0, 5]), [TopK(2), strategy, TopP(0.6), strategy])[:, 0]
    np.testing.assert_allclose(mixed, [0.816667, expected, 0.714286, expected], atol=1e-6)


def test_the_worked_alignments():
    expected = {
        1: [[0.129178, 0.867795, 0.000164, 0, 0.002862], [0.088760, 0.009929, 0.172880, 0.007047, 0.721384]],
        2: [[0.977102, 1, 0.001243, 0.000003, 0.021651], [0.318574, 0.035637, 0.620497, 0.025293, 1]],
    }
    for k, weights in expected.items():
        np.testing.assert_allclose(rows(Soft(k, 0.1)), weights, atol=1e-6)
        saliences = {"query_weights": UQ, "doc_weights": UD}
        np.testing.assert_allclose(rows(Soft(k, 0.1), **saliences), weights * np.outer(UQ, UD), atol=1e-6)
    pairs = alignment_of(Q, D, Soft(1, 0.1), UQ, UD)
    assert len(pairs.query) == 8 and 2 not in pairs.document  # the token of no salience
    assert pairs.document[pairs.query == 0].tolist() == [1, 0, 4, 3]  # the best first
    assert pairs.contribution.sum() == pytest.approx(one(Soft(1, 0.1), UQ, UD), abs=1e-6)
    with_zero = alignment_of(Q, D, Soft(1, 0.1), UQ, UD, normalizer="query")  # its share of the normaliser stays
    assert with_zero.contribution.sum() == pytest.approx(one(Soft(1, 0.1), UQ, UD, normalizer="query"), abs=1e-6)


def test_limits_and_sums():
    rng = np.random.default_rng(0)
    query, document = rng.standard_normal((3, 4)), rng.standard_normal((9, 4))
    similarities = query @ document.T
    softmax = np.exp(similarities / 0.3)
    np.testing.assert_allclose(
        rows(Soft(1, 0.3), query, document), softmax / softmax.sum(axis=1, keepdims=True), atol=1e-5
    )
    for k in (1, 2, 5, 8, 9, 20):
        for epsilon in (0.002, 0.1, 2.0):
            np.testing.assert_allclose(rows(Soft(k, epsilon), query, document).sum(axis=1), min(k, 9), rtol=1e-12)
        np.testing.assert_allclose(rows(Soft(k, 1e-6), query, document), rows(TopK(k), query, document), atol=1e-6)
        assert one(Soft(k, 1e-6), query=query, document=document) == pytest.approx(
            one(TopK(k), query=query, document=document), abs=1e-6
        )
    assert one(Soft(3, 1e9), query=query, document=document) == pytest.approx(similarities.mean(), abs=1e-6)


def test_an_aligned_token_of_no_salience():
    example = of_similarities([[0.9, 0.1], [0.2, 0.3]])
    near = Soft(1, 1e-3)
    for how, expected in (({}, 0.9), ({"normalizer": "query"}, 0.45), ({"align_over": "salient"}, 0.55)):
        assert one(near, None, np.array([1, 0]), **example, **how) == pytest.approx(expected, abs=1e-6)
    for normalizer, align_over in VARIANTS:
        how = {"normalizer": normalizer, "align_over": align_over}
        scores = align_packed(Q, np.concatenate([D, D]), np.array([0, 5, 5, 10]), near, UQ, np.repeat([0, 1], 5), **how)
        assert scores[0] == 0 and scores[1] == EMPTY_DOCUMENT and scores[2] > 0.7
        assert align_packed(Q[:0], D, np.array([0, 5]), near, **how).tolist() == [0]
    for query, document in ((Q, D[:0]), (Q[:0], D)):
        assert all(len(field) == 0 for field in alignment_of(query, document, near))


@pytest.mark.parametrize("strategy", [Soft(1, 0.05), Soft(3, 0.2)])
def test_documents_anywhere_in_stored_vectors(strategy):
    rng = np.random.default_rng(1)
    stored = StoredVectors((rng.standard_normal((60, 8)) / 3).astype(np.float16))
    queries, starts, ends = rng.standard_normal((5, 8)) / 3, np.array([30, 0, 10, 40]), np.array([60, 20, 10, 41])
    uq, ud = rng.random(5), rng.random(60)
    for weights in ((None, None), (uq, None), (None, ud), (uq, ud)):
        scores = align_stored(queries, np.array([0, 2, 5]), stored, starts, ends, strategy, *weights)
        for i, tokens in enumerate((slice(0, 2), slice(2, 5))):
            expected = [
                reference(queries[tokens], stored.floats(slice(a, b)), strategy,
                          None if weights[0] is None else uq[tokens], None if weights[1] is None else ud[a:b])
                for a, b in zip(starts, ends)
            ]  # fmt: skip
            np.testing.assert_allclose(scores[i], expected, atol=1e-5)


@pytest.mark.parametrize("strategy", [Soft(1), Soft(2)])
def test_memory_does_not_grow_with_documents(strategy):
    lengths = np.concatenate([np.full(8_000, 5), [8_000], np.full(4_000, 8)])
    d, offsets = np.ones((lengths.sum(), 4), np.float32), np.concatenate([[0], np.cumsum(lengths)])
    queries = np.ones((64, 4), np.float32)
    with mock.patch.object(aligned, "_ELEMENTS_AT_ONCE", 1 << 15):
        tracemalloc.start()
        scores = align_matrix(queries, np.arange(0, 65, 8), d, offsets, strategy)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    np.testing.assert_allclose(scores, 4)
    assert peak < 20e6  # the similarities alone would be 20 MB, and gates 41 MB
