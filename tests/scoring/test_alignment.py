import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    fused,
    maxsim_packed,
)
from tests.scoring.alignments import UD, UQ, VARIANTS, D, Q, of_similarities, one, pack, ragged, reference, strategies

PAPER = [TopK(k) for k in (1, 2, 4, 6, 8)] + [TopP(p) for p in (0.005, 0.01, 0.015, 0.02)]


@pytest.fixture(scope="module", autouse=True, params=["fastest", "torch"])
def version(request):
    """With the kernel and without: its versions are compared where MaxSim is tested."""
    if request.param == "fastest":
        yield
    else:
        with mock.patch.object(fused, "versions", lambda: ()):
            yield


@given(ragged(), strategies, st.sampled_from(VARIANTS), st.booleans(), st.booleans(), st.sampled_from([8, 1 << 18]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_scores_equal_the_definition(case, alignment, variant, of_query, of_documents, elements):
    dim, queries, documents, uqs, uds = case
    q, q_offsets = pack(queries, dim)
    d, offsets = pack(documents, dim)
    weights = np.concatenate(uqs) if of_query else None, np.concatenate([*uds, []]) if of_documents else None
    how = dict(zip(["normalizer", "align_over"], variant))
    with mock.patch.object(aligned, "_ELEMENTS_AT_ONCE", elements), mock.patch.object(aligned, "_ROWS_AT_LEAST", 4):
        scores = align_matrix(q, q_offsets, d, offsets, alignment, *weights, **how)
    expected = [
        [reference(a, b, alignment, u if of_query else None, v if of_documents else None, **how)
         for b, v in zip(documents, uds)]
        for a, u in zip(queries, uqs)
    ]  # fmt: skip
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.reshape(expected, scores.shape), rtol=1e-5, atol=1e-5)


@given(ragged(), st.lists(strategies, max_size=5), st.sampled_from(VARIANTS), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_grid_is_its_strategies(case, alignments, variant, weighted):
    dim, queries, documents, uqs, uds = case
    d, offsets = pack(documents, dim)
    weights = (uqs[0], np.concatenate([*uds, []])) if weighted else ()
    how = dict(zip(["normalizer", "align_over"], variant))
    grid = align_grid(queries[0], d, offsets, alignments, *weights, **how)
    assert grid.shape == (len(alignments), len(documents)) and grid.dtype == np.float32
    for scores, alignment in zip(grid, alignments):
        np.testing.assert_allclose(scores, align_packed(queries[0], d, offsets, alignment, *weights, **how), atol=1e-5)


@given(ragged(), strategies, st.sampled_from(VARIANTS))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pairs_add_up_to_the_score(case, alignment, variant):
    _, queries, documents, uqs, uds = case
    how = dict(zip(["normalizer", "align_over"], variant))
    for document, ud in zip(documents, uds):
        pairs = alignment_of(queries[0], document, alignment, uqs[0], ud, **how)
        score = one(alignment, uqs[0], ud, queries[0], document, **how)
        np.testing.assert_allclose(pairs.contribution.sum(), score if len(document) else 0, atol=1e-5)
        similarity = queries[0][pairs.query] @ document.T if len(document) else np.empty((0, 0))
        np.testing.assert_allclose(pairs.similarity, similarity[np.arange(len(pairs.query)), pairs.document])
        saliences = uqs[0][pairs.query] * ud[pairs.document]
        if isinstance(alignment, Soft):
            assert (pairs.weight > 0).all() and (pairs.weight <= saliences + 1e-12).all()
        else:
            np.testing.assert_allclose(pairs.weight, saliences)


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        (TopK(1), 0.9), (TopP(0.39), 0.9), (TopP(0), 0.9), (TopK(2), 0.816667), (TopP(0.4), 0.816667),
        (TopK(3), 0.714286), (TopP(0.6), 0.714286), (TopK(4), 0.6), (TopK(5), 0.468), (TopK(9), 0.468),
        (TopP(1), 0.468),
    ],
)  # fmt: skip
def test_the_worked_example(alignment, expected):
    assert one(alignment) == pytest.approx(expected, abs=1e-6)
    assert one(alignment, np.ones(2), np.ones(5)) == pytest.approx(expected, abs=1e-6)
    grid = align_grid(Q, D, np.array([0, 5]), [TopK(3), alignment])
    np.testing.assert_allclose(grid[:, 0], [0.714286, expected], atol=1e-6)


@pytest.mark.parametrize(("k", "expected"), [(1, 0.881633), (2, 0.760714), (3, 0.613605), (5, 0.526333)])
def test_the_worked_example_with_saliences(k, expected):
    # wrong: selection by salience gives 0.716883 for k = 1, division by tokens or pairs 0.608571 or 0.304286 for k = 2
    assert one(TopK(k), UQ, UD) == pytest.approx(expected, abs=1e-6)
    assert one(TopK(k), UQ * 3, UD * 0.1) == pytest.approx(expected, abs=1e-6)
    assert one(TopK(k), UQ * 1e-14, UD * 1e-14) == pytest.approx(expected, abs=1e-6)
    assert one(TopK(k), UQ * 1e-60) == pytest.approx(one(TopK(k), UQ), abs=1e-6)


def test_the_worked_pairs():
    pairs = alignment_of(Q, D, TopK(2), UQ, UD)
    assert list(zip(pairs.query, pairs.document)) == [(0, 1), (0, 0), (1, 4), (1, 2)]
    np.testing.assert_allclose(pairs.weight, [0.5, 0.9, 0.2, 0])
    np.testing.assert_allclose(pairs.share, [0.352113, 0.492958, 0.154930, 0], atol=1e-6)
    np.testing.assert_allclose(pairs.contribution, pairs.share * 1.217143 / 1.6, atol=1e-6)
    negative = alignment_of(-Q, D, TopK(5), UQ, UD)  # similarities of both signs
    assert negative.share.sum() == pytest.approx(1) and (negative.share < 0).any() and (negative.share > 0).any()
    assert alignment_of(Q, D, TopK(1), UQ, np.zeros(5)).share.tolist() == [0, 0]
    for query, document in ((Q, D[:0]), (Q[:0], D)):
        assert all(len(field) == 0 for field in alignment_of(query, document, "top-k"))


def test_columns_do_not_choose():
    # alignment by columns, or by rows and columns together, would be 0.762667
    for ways in ({}, {"uq": np.ones(2), "ud": np.ones(5)}):
        assert one(TopK(1), **ways) == pytest.approx(0.9, abs=1e-6)


def test_an_aligned_token_of_no_salience():
    example = of_similarities([[0.9, 0.1], [0.2, 0.3]])
    for ud, literal, of_query, salient in (([1, 1], 0.6, 0.6, 0.6), ([1, 0], 0.9, 0.45, 0.55)):
        for uq in (None, np.ones(2)):
            for how, expected in (
                ({}, literal), ({"normalizer": "query"}, of_query), ({"align_over": "salient"}, salient)
            ):  # fmt: skip
                assert one(TopK(1), uq, np.array(ud), **example, **how) == pytest.approx(expected, abs=1e-6)


def test_salient_alignment_is_a_document_without_the_others():
    rng = np.random.default_rng(3)
    query, document = rng.standard_normal((4, 6)), rng.standard_normal((50, 6))
    ud = rng.random(50) * (rng.random(50) < 0.4)
    for alignment in (TopK(1), TopK(3), TopK(40), TopP(0.1), TopP(0.5), TopP(1)):
        for normalizer in ("alignment", "query"):
            score = one(alignment, None, ud, query, document, normalizer=normalizer, align_over="salient")
            kept = one(alignment, None, ud[ud > 0], query, document[ud > 0], normalizer=normalizer)
            assert score == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize(
    ("kept", "plain", "weighted"),
    [([0, 1, 2, 3, 4], 0.9, 0.881633), ([0, 1, 3, 4], 0.9, 0.881633), ([0, 1, 4], 0.9, 0.881633),
     ([0, 4], 0.804762, 0.716883), ([0], 0.7, 0.68)],
)  # fmt: skip
def test_scores_of_pruned_documents(kept, plain, weighted):
    assert one(TopK(1), document=D[kept]) == pytest.approx(plain, abs=1e-6)
    assert one(TopK(1), UQ, UD[kept], document=D[kept]) == pytest.approx(weighted, abs=1e-6)


def test_of_equal_similarities_the_first_is_taken():
    tied = of_similarities([[0.5, 0.5, 0.1], [0.9, 0.1, 0.2]])
    assert one(TopK(1), None, np.array([1, 0.2, 1]), **tied) == pytest.approx(0.7, abs=1e-6)
    # the same by sorting: more than a search for each
    rng = np.random.default_rng(0)
    similarities = rng.integers(0, 3, (2, 40)) / 4
    ud = rng.random(40)
    for k in (1, 5, aligned._SEARCHES, aligned._SEARCHES + 1, 39):
        example = of_similarities(similarities)
        assert one(TopK(k), None, ud, **example) == pytest.approx(reference(*example.values(), TopK(k), None, ud))
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(alignment_of(*example.values(), TopK(k)).document, order.ravel())


def test_length_decides_as_the_paper_says():
    short, long = [0.8, 0.1], [0.75, 0.74, 0.72, 0.70, 0.05, 0.04, 0.03, 0.02, 0.01, 0.0]
    alignments = [TopK(1), TopK(2), TopK(4), TopP(0.2), TopP(0.4), TopP(1)]
    expected = [[0.8, 0.75], [0.45, 0.745], [0.45, 0.7275], [0.8, 0.745], [0.8, 0.7275], [0.45, 0.306]]
    d, offsets = np.array(short + long)[:, None], np.array([0, 2, 12])
    np.testing.assert_allclose(align_grid(np.ones((1, 1)), d, offsets, alignments), expected, atol=1e-6)
    for alignment, scores in zip(alignments, expected):
        np.testing.assert_allclose(align_packed(np.ones((1, 1)), d, offsets, alignment), scores, atol=1e-6)


def test_one_best_without_saliences_ranks_like_maxsim():
    rng = np.random.default_rng(4)
    query, offsets = rng.standard_normal((7, 16)), np.arange(0, 3001, 10)
    d = rng.standard_normal((3000, 16)).astype(np.float32)
    best = maxsim_packed(query, d, offsets)
    for alignment in ("top-k", TopK(1), TopP(0), TopP(0.19)):
        scores = align_packed(query, d, offsets, alignment)
        np.testing.assert_array_equal(scores, best / np.float32(7))
        np.testing.assert_array_equal(np.argsort(-scores, kind="stable"), np.argsort(-best, kind="stable"))
    np.testing.assert_allclose(align_packed(query, d, offsets, TopK(1), None, np.ones(3000)) * 7, best, rtol=1e-5)


@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_properties_of_a_weighted_mean(seed, m, weighted):
    rng = np.random.default_rng(seed)
    query, document = rng.standard_normal((3, 4)), rng.standard_normal((m, 4))
    similarities = query @ document.T
    uq, ud = (rng.random(3), rng.random(m)) if weighted else (None, None)
    alignments = [TopK(k) for k in range(1, m + 3)] + [TopP(p) for p in np.linspace(0, 1, 9)]
    scores = align_grid(query, document, np.array([0, m]), alignments, uq, ud)[:, 0]
    assert (scores >= similarities.min() - 1e-5).all() and (scores <= similarities.max() + 1e-5).all()
    if not weighted:
        by_k, by_p = scores[: m + 2], scores[m + 2 :]
        assert (np.diff(by_k) <= 1e-6).all() and (np.diff(by_p) <= 1e-6).all()
        np.testing.assert_allclose([by_k[m - 1], by_k[m + 1], by_p[-1]], similarities.mean(), atol=1e-5)
        np.testing.assert_allclose(by_p[0], by_k[0], atol=1e-6)
        more = np.concatenate([document, rng.standard_normal((1, 4))])
        grown = align_grid(query, more, np.array([0, m + 1]), alignments[:m])[:, 0]
        assert (grown >= by_k[:m] - 1e-5).all()  # a token more never hurts, if there were k before

    def again(q, d, u=uq, v=ud):
        return align_grid(q, d, np.array([0, len(d)]), alignments, u, v)[:, 0]

    rows, columns = rng.permutation(3), rng.permutation(m)
    shuffled = again(query[rows], document[columns], *((uq[rows], ud[columns]) if weighted else ()))
    np.testing.assert_allclose(shuffled, scores, atol=1e-5)
    if weighted:
        np.testing.assert_allclose(again(query, document, uq * 7, ud * 0.01), scores, atol=1e-5)
    # 2.5 S - 4, by one dimension more
    moved = again(np.column_stack([query * 2.5, np.full(3, -4)]), np.column_stack([document, np.ones(m)]))
    np.testing.assert_allclose(moved, 2.5 * scores - 4, atol=2e-5)


def test_a_token_more_can_hurt_below_k_and_with_top_p():
    for alignment, fewer, more, before, after in (
        (TopK(4), [0.8, 0.1], [0.8, 0.1, 0], 0.45, 0.3),
        (TopP(0.5), [0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1], 0.9, 0.5),
    ):
        assert one(alignment, **of_similarities([fewer])) == pytest.approx(before, abs=1e-6)
        assert one(alignment, **of_similarities([more])) == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradients_are_those_of_the_mean(k):
    """Finite differences of scores against what pairs say: ``A_ij / Z``, and the two formulas of saliences."""
    example = {"query": np.eye(2), "document": (Q @ D.T).T}
    pairs = alignment_of(**example, alignment=TopK(k), query_weights=UQ, doc_weights=UD)
    score, total = pairs.contribution.sum(), pairs.weight.sum()
    of_uq, of_ud = np.zeros(2), np.zeros(5)
    np.add.at(of_uq, pairs.query, UD[pairs.document] * (pairs.similarity - score) / total)
    np.add.at(of_ud, pairs.document, UQ[pairs.query] * (pairs.similarity - score) / total)
    if k == 2:
        np.testing.assert_allclose(of_uq, [-0.022768, 0.091071], atol=1e-6)
        np.testing.assert_allclose(of_ud, [-0.058780, 0.060268, 0.006138, 0, 0.028460], atol=1e-6)
        np.testing.assert_allclose(pairs.weight / total, [0.3125, 0.5625, 0.125, 0], atol=1e-6)
    assert UQ @ of_uq == pytest.approx(0, abs=1e-7) and UD @ of_ud == pytest.approx(0, abs=1e-7)

    def score_of(uq, ud):
        return alignment_of(**example, alignment=TopK(k), query_weights=uq, doc_weights=ud).contribution.sum()

    step = 1e-5
    slopes = [
        (score_of(UQ + step * e, UD) - score_of(np.maximum(UQ - step * e, 0), UD)) / (2 * step) for e in np.eye(2)
    ]
    np.testing.assert_allclose(slopes, of_uq, atol=1e-6)
    slopes = [(score_of(UQ, UD + step * e) - score_of(UQ, UD)) / step for e in np.eye(5)]
    np.testing.assert_allclose(slopes, of_ud, atol=1e-5)


def test_nothing_of_any_salience_scores_zero():
    for how in (dict(zip(["normalizer", "align_over"], v)) for v in VARIANTS):
        d = np.concatenate([D, D])
        scores = align_packed(Q, d, np.array([0, 5, 5, 10]), TopK(2), UQ, np.repeat([0, 1], 5), **how)
        assert scores[0] == 0 and scores[1] == EMPTY_DOCUMENT and scores[2] > 0.7
        assert align_packed(Q, D, np.array([0, 5]), TopK(2), np.zeros(2), **how).tolist() == [0]
        assert align_packed(Q[:0], d, np.array([0, 5, 10]), TopK(2), **how).tolist() == [0, 0]
    assert one(TopK(1), UQ, np.array([1, 0, 0, 1, 0])) == 0


def test_documents_under_100_tokens_are_the_same_to_the_papers_shares():
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 100, 30)
    d, offsets = rng.standard_normal((lengths.sum(), 4)), np.concatenate([[0], np.cumsum(lengths)])
    scores = align_grid(rng.standard_normal((3, 4)), d, offsets, [TopK(1), *PAPER[5:]])
    np.testing.assert_array_equal(scores[1:], np.repeat(scores[:1], 4, axis=0))


def test_arguments_that_do_not_fit_are_refused():
    for weights in (np.ones(3), np.array([1, -0.1]), np.array([1, np.nan]), np.array([np.inf, 1])):
        with pytest.raises(ValueError, match="query_weights must"):
            one(TopK(1), weights)
    for weights in (np.ones(4), np.full(5, -1), np.full(5, np.nan)):
        with pytest.raises(ValueError, match="doc_weights must"):
            one(TopK(1), None, weights)
    with pytest.raises(ValueError, match=r"normalizer must be one of \('alignment', 'query'\), got 'doc'"):
        one(TopK(1), normalizer="doc")
    with pytest.raises(ValueError, match=r"align_over must be one of \('all', 'salient'\), got 'some'"):
        one(TopK(1), align_over="some")
    with pytest.raises(ValueError, match="3 dimensions, document vectors 5"):
        align_packed(np.ones((2, 3)), np.ones((4, 5)), np.array([0, 4]), "top-k")
    with pytest.raises(ValueError, match="offsets must rise"):
        align_packed(Q, D, np.array([0, 4]), "top-k")
    with pytest.raises(ValueError, match="a document lies outside"):
        align_stored(Q, np.array([0, 2]), StoredVectors(D), np.array([3]), np.array([6]), "top-k")
    for alignment, ud in ((TopK(1), None), (TopK(1), UD), (TopK(20), None)):
        with pytest.raises(ValueError, match="a score is not finite"):
            one(alignment, None, ud, document=np.where(D == 1, np.nan, D))


def test_only_saliences_of_the_documents_are_read():
    ud = np.concatenate([np.full(5, np.nan), UD, [-1]])
    stored = StoredVectors(np.concatenate([D, D, D[:1]]).astype(np.float32))
    scores = align_stored(Q, np.array([0, 2]), stored, np.array([5]), np.array([10]), TopK(2), UQ, ud)
    assert scores[0, 0] == pytest.approx(0.760714, abs=1e-6)
    for start, end in ((4, 10), (5, 11)):
        with pytest.raises(ValueError, match="doc_weights must be finite and at least 0"):
            align_stored(Q, np.array([0, 2]), stored, np.array([start]), np.array([end]), TopK(2), UQ, ud)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_documents_anywhere_in_stored_vectors_of_any_type(dtype):
    rng = np.random.default_rng(6)
    d = (rng.standard_normal((60, 8)) * 20).astype(dtype)
    scales = rng.random(60).astype(np.float32) + 0.5 if dtype == np.int8 else None
    stored = StoredVectors(d if dtype != np.float64 else d.astype(np.float32), scales=scales)
    queries, starts, ends = rng.standard_normal((5, 8)), np.array([30, 0, 10, 40]), np.array([60, 20, 10, 41])
    uq, ud = rng.random(5), rng.random(60)
    if dtype == np.int8:  # rounded as the kernel rounds
        queries = np.rint(queries * 127 / np.abs(queries).max(axis=1, keepdims=True))
    for alignment, weights in ((TopK(2), ()), (TopK(2), (uq,)), (TopP(0.3), (uq, ud)), (TopK(25), ())):
        scores = align_stored(queries, np.array([0, 2, 5]), stored, starts, ends, alignment, *weights)
        for i, tokens in enumerate((slice(0, 2), slice(2, 5))):
            expected = [
                reference(queries[tokens], stored.floats(slice(a, b)), alignment,
                          *([uq[tokens]] if weights else []), *([ud[a:b]] if len(weights) > 1 else []))
                for a, b in zip(starts, ends)
            ]  # fmt: skip
            np.testing.assert_allclose(scores[i], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("alignment", "ud"), [(TopK(2), None), (TopK(2), UD), (TopP(1), None), (Soft(2, 0.1), None)])
def test_products_are_computed_where_they_should_be(alignment, ud):
    one_query, offsets, run = np.array([0, 2]), np.array([0, 5]), (np.array([0]), np.array([5]))
    ways = {
        "packed": lambda device: align_packed(Q, D, offsets, alignment, UQ, ud, device=device),
        "matrix": lambda device: align_matrix(Q, one_query, D, offsets, alignment, UQ, ud, device=device),
        "stored": lambda device: align_stored(
            Q, one_query, StoredVectors(D.astype(np.float32)), *run, alignment, UQ, ud, device=device
        ),
        "grid": lambda device: align_grid(Q, D, offsets, [alignment, TopK(3)], UQ, ud, device=device),
        "pairs": lambda device: alignment_of(Q, D, alignment, UQ, ud, device=device).contribution,
    }
    for way in ways.values():
        np.testing.assert_allclose(way("cpu"), way(None), atol=1e-6)
        with pytest.raises(RuntimeError, match="nowhere"):
            way("nowhere")


def test_arrays_that_must_not_be_written_to_are_not():
    arrays = [np.array(a, np.float32) for a in (Q, D)] + [np.array([0, 5]), UQ.copy(), UD.copy()]
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    query, d, offsets, uq, ud = arrays
    assert align_packed(query, d, offsets, TopK(2), uq, ud)[0] == pytest.approx(0.760714, abs=1e-6)
    assert align_packed(query, d, offsets, TopK(2), uq)[0] == pytest.approx(one(TopK(2), UQ), abs=1e-6)
    assert alignment_of(query, d, TopK(2)).contribution.sum() == pytest.approx(0.816667, abs=1e-6)
    for a, b in zip(arrays, copies):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("alignment", "weighted"), [(TopK(1), True), (TopP(0.5), True), (TopK(20), False)])
def test_memory_does_not_grow_with_documents(alignment, weighted):
    # one long document among very many short ones: padded to one width they would take gigabytes
    lengths = np.concatenate([np.full(20_000, 5), [20_000], np.full(10_000, 8)])
    d, offsets = np.ones((lengths.sum(), 4), np.float32), np.concatenate([[0], np.cumsum(lengths)])
    query, ud = np.ones((16, 4), np.float32), np.ones(len(d)) if weighted else None
    with mock.patch.object(aligned, "_ELEMENTS_AT_ONCE", 1 << 15):
        tracemalloc.start()
        scores = align_packed(query, d, offsets, alignment, None, ud)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    np.testing.assert_allclose(scores, 4)
    # the long document alone: 1.3 MB of similarities, and a few copies; all would be 13 MB
    assert peak < (30e6 if alignment == TopP(0.5) else 9e6)


def test_very_many_queries_stay_bounded():
    queries, query_offsets = np.ones((30_000, 4), np.float32), np.arange(0, 30_001, 20)
    d, offsets = np.ones((100, 4), np.float32), np.array([0, 40, 100])
    with mock.patch.object(aligned, "_ELEMENTS_AT_ONCE", 1 << 14):
        tracemalloc.start()
        scores = align_matrix(queries, query_offsets, d, offsets, TopK(2), doc_weights=np.ones(100))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    np.testing.assert_allclose(scores, 4)
    assert peak < 3e6  # the similarities alone would be 12 MB
