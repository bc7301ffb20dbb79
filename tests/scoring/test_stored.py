"""Every form of storage, scored where it lies, against a float64 reference on the decoded vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring import MaxSim, Residual, StoredVectors, maxima, maxsim_matrix, maxsim_packed
from pyterrier_mvret.scoring.stored import as_stored, rounded

FORMS = ["float32", "float16", "bfloat16", "int8", "int8 scaled", "residual 1", "residual 2", "residual 4"]


def stored_and_whole(form, rows, dim, rng):
    """Random vectors in a form, and what they stand for, worked out here."""
    floats = rng.standard_normal((rows, dim)).astype(np.float32)
    if form == "float32":
        return StoredVectors(floats), floats
    if form == "float16":
        return StoredVectors(floats.astype(np.float16)), floats.astype(np.float16).astype(np.float32)
    if form == "bfloat16":
        bits = floats.view(np.uint32) >> 16
        return StoredVectors(bits.astype(np.uint16)), (bits << 16).astype(np.uint32).view(np.float32)
    if form.startswith("int8"):
        codes = rng.integers(-127, 128, (rows, dim)).astype(np.int8)
        scales = (rng.random(rows) / 50).astype(np.float32) if form == "int8 scaled" else None
        return StoredVectors(codes, scales), codes * (1 if scales is None else scales[:, None])
    bits, unit = int(form[-1]), bool(rng.integers(2))
    codes = rng.integers(0, 2**bits, (rows, dim))
    centroids = rng.standard_normal((5, dim)).astype(np.float32)
    values = np.sort(rng.standard_normal(2**bits)).astype(np.float32)
    ids = rng.integers(0, 5, rows).astype(np.int32)
    whole = centroids[ids].astype(np.float64) + values[codes]
    if unit:
        whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    ones = (codes[:, :, None] >> np.arange(bits) & 1).reshape(rows, -1)  # lowest bit first
    return StoredVectors(
        np.packbits(ones, axis=1, bitorder="little"), residual=Residual(ids, centroids, values, unit)
    ), whole


def as_multiplied(stored, queries):
    """Query tokens as the definition of a form has them: rounded to 8 bits for int8."""
    if not stored.whole_numbers:
        return queries.astype(np.float64)
    whole, sizes = rounded(queries)
    return whole.astype(np.float64) * sizes[:, None]


@given(st.integers(0, 2**32), st.sampled_from(FORMS), st.sampled_from([1, 1, 2, 5]))
@settings(max_examples=150, deadline=None)
def test_documents_anywhere_in_any_order_and_overlapping(seed, form, k):
    rng = np.random.default_rng(seed)
    dim, rows = 8 * int(rng.integers(1, 9)) if form[0] == "r" else int(rng.integers(1, 40)), int(rng.integers(1, 300))
    stored, whole = stored_and_whole(form, rows, dim, rng)
    np.testing.assert_allclose(stored.floats(slice(None)), whole, rtol=1e-6, atol=1e-6)
    edges = np.sort(rng.integers(0, rows + 1, (int(rng.integers(1, 40)), 2)), axis=1)
    starts, ends = edges[:, 0], edges[:, 1]
    query_offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 40, 3))])
    queries = rng.standard_normal((query_offsets[-1], dim)).astype(np.float32)
    weights = rng.standard_normal(len(queries)).astype(np.float32)
    weights[rng.random(len(weights)) < 0.2] = 0
    for device in (None, "cpu"):
        got = MaxSim().stored(queries, query_offsets, stored, starts, ends, weights, device)
        by_token = maxima(queries, stored, starts, ends)
        for d, (a, b) in enumerate(edges):
            products = as_multiplied(stored, queries) @ whole[a:b].T.astype(np.float64)
            best = products.max(axis=1, initial=-np.inf)
            np.testing.assert_allclose(by_token[d], best, rtol=1e-4, atol=2e-4)
            sums = [(weights * best)[m:n].sum() if b > a else -1e9 for m, n in zip(query_offsets, query_offsets[1:])]
            np.testing.assert_allclose(got[:, d], sums, rtol=1e-4, atol=3e-3)
    packed, _ = stored_and_whole(form, rows, dim, np.random.default_rng(1))
    offsets = np.sort(np.concatenate([[0], rng.integers(0, rows + 1, 9), [rows]]))
    scores = maxsim_matrix(queries, query_offsets, packed, offsets, weights, k=k)
    decoded = packed.floats(slice(None)).astype(np.float64)
    for d, (a, b) in enumerate(zip(offsets, offsets[1:])):
        products = np.sort(as_multiplied(packed, queries) @ decoded[a:b].T, axis=1)[:, -k:].sum(axis=1)
        sums = [(weights * products)[m:n].sum() if b > a else -1e9 for m, n in zip(query_offsets, query_offsets[1:])]
        np.testing.assert_allclose(scores[:, d], sums, rtol=1e-4, atol=1e-2)


@given(st.integers(0, 2**32), st.sampled_from(FORMS))
@settings(max_examples=30, deadline=None)
def test_distances_to_stored_vectors(seed, form):
    rng = np.random.default_rng(seed)
    stored, whole = stored_and_whole(form, 60, 16, rng)
    queries, starts, ends = rng.standard_normal((7, 16)).astype(np.float32), np.array([9, 0, 3]), np.array([60, 0, 7])
    got = MaxSim("l2").stored(queries, np.array([0, 7]), stored, starts, ends)[0]
    for score, a, b in zip(got, starts, ends):
        distances = ((queries[:, None].astype(np.float64) - whole[None, a:b]) ** 2).sum(axis=2)
        np.testing.assert_allclose(score, -distances.min(axis=1).sum() if b > a else -1e9, rtol=1e-4, atol=1e-3)


def test_int8_is_exact_in_whole_numbers():
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (500, 129)).astype(np.int8)
    query = rng.integers(-127, 128, (33, 129)).astype(np.float32)
    query[:, 0] = 127  # so that rounding leaves each as it is
    products = query.astype(np.int64) @ codes.T.astype(np.int64)
    offsets = np.arange(0, 501, 50)
    best = np.stack([products[:, a:b].max(axis=1) for a, b in zip(offsets, offsets[1:])])
    np.testing.assert_array_equal(maxima(query, codes, offsets[:-1], offsets[1:]), best)


def test_extreme_bytes():
    codes = np.array([[-128] * 9, [127] * 9, [0] * 9], np.int8)
    query = np.array([[1.0] * 9, [-1.0] * 9], np.float32)
    expected = [[-1152, 1152], [1143, -1143], [0, 0]]
    np.testing.assert_allclose(maxima(query, codes, np.arange(3), np.arange(1, 4)), expected)


def test_tensors_of_bfloat16_are_taken_as_they_are():
    import torch

    vectors = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    half = vectors.bfloat16()
    assert as_stored(half).vectors.dtype == np.uint16
    offsets, query = np.array([0, 10, 40]), vectors[:3].numpy()
    np.testing.assert_array_equal(
        maxsim_packed(query, half, offsets), maxsim_packed(query, half.float().numpy(), offsets)
    )


def test_a_row_of_zeros_stays_zero():
    residual = Residual(np.zeros(1, np.int32), np.zeros((1, 8), np.float32), np.zeros(2, np.float32))
    stored = StoredVectors(np.zeros((1, 1), np.uint8), residual=residual)
    assert maxsim_packed(np.ones((1, 8)), stored, np.array([0, 1])).tolist() == [0.0]


@pytest.mark.parametrize("bad", [-1, 2, 2**31 - 1])
def test_a_centroid_that_does_not_exist_is_an_error(bad):
    ids = np.zeros(70, np.int32)
    ids[65] = bad
    residual = Residual(ids, np.ones((2, 8), np.float32), np.array([-0.1, 0.1], np.float32))
    stored = StoredVectors(np.zeros((70, 1), np.uint8), residual=residual)
    with pytest.raises(ValueError, match="centroid is not among the centroids"):
        maxsim_packed(np.ones((1, 8)), stored, np.array([0, 70]))


def test_numbers_that_are_none_are_an_error_in_every_form():
    query, offsets = np.ones((2, 8), np.float32), np.array([0, 2])
    centroids = np.array([[1.0], [np.nan]], np.float32).repeat(8, axis=1)
    residual = Residual(np.array([0, 1], np.int32), centroids, np.zeros(2, np.float32))
    for broken in (
        StoredVectors(np.array([[1] * 8, [0x7FC0] * 8], np.uint16)),
        StoredVectors(np.ones((2, 8), np.int8), np.array([1, np.nan], np.float32)),
        StoredVectors(np.zeros((2, 1), np.uint8), residual=residual),
    ):
        for k in (1, 2):
            with pytest.raises(ValueError, match="a score is not finite"):
                maxsim_packed(query, broken, offsets, k=k)
        with pytest.raises(ValueError, match="a similarity is not finite"):
            maxima(query, broken, offsets[:-1], offsets[1:])
    with pytest.raises(ValueError, match="not finite"):
        maxsim_packed(query * np.nan, np.ones((2, 8), np.int8), offsets)


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        ([0], [9], "outside the rows 0 to 4"),
        ([-1], [2], "outside the rows 0 to 4"),
        ([3], [2], "outside the rows 0 to 4"),
        ([0, 1], [2], "one a run"),
        ([0.0], [2.0], "integers"),
    ],
)
def test_runs_that_lie_are_refused(starts, ends, message):
    with pytest.raises(ValueError, match=message):
        maxima(np.ones((2, 3)), np.ones((4, 3)), np.array(starts), np.array(ends))


def test_k_of_nothing_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1"):
        maxsim_packed(np.ones((2, 3)), np.ones((4, 3)), np.array([0, 4]), k=0)


def test_no_runs_and_no_query_tokens():
    nothing = np.empty(0, np.int64)
    assert maxima(np.ones((2, 3)), np.ones((4, 3)), nothing, nothing).shape == (0, 2)
    assert maxima(np.ones((0, 3)), np.ones((4, 3)), np.array([0]), np.array([4])).shape == (1, 0)


def test_more_bytes_than_a_sum_of_32_bits_holds():
    codes = np.full((2, 70_000), 127, np.int8)
    got = maxima(np.ones((1, 70_000), np.float32), codes, np.array([0]), np.array([2]))
    np.testing.assert_allclose(got, [[70_000 * 127.0]], rtol=1e-3)


def test_documents_that_lie_are_refused_on_every_way():
    query, stored = np.ones((2, 3), np.float32), StoredVectors(np.ones((4, 3), np.float32))
    for rule in (MaxSim(), MaxSim("l2")):
        for starts, ends in (([0, 8], [2, 0]), ([-1], [2]), ([0], [5])):
            for device in (None, "cpu"):
                with pytest.raises(ValueError, match="outside the rows"):
                    rule.stored(query, np.array([0, 2]), stored, np.array(starts), np.array(ends), None, device)


def test_more_similarities_than_a_document_has_cost_nothing():
    query, vectors = np.ones((3, 4), np.float32), np.ones((40, 4), np.float32)
    assert (maxsim_packed(query, vectors, np.arange(41), k=10**9) == 12).all()


def test_arrays_of_other_types_are_brought_into_the_kernels():
    codes = np.zeros((2, 1), np.uint8)
    plain = Residual(np.zeros(2, np.int64), np.ones((1, 8), np.float16), np.zeros(2), unit=False)
    got = maxsim_packed(np.ones((1, 8)), StoredVectors(codes, residual=plain), np.array([0, 2]))
    assert got.tolist() == [8.0]
    scaled = StoredVectors(np.full((2, 8), 127, np.int8), np.array([1.0, 2.0, 3.0, 4.0])[::2])
    np.testing.assert_allclose(maxsim_packed(np.ones((1, 8)), scaled, np.array([0, 2])), [3 * 127 * 8], rtol=1e-5)
