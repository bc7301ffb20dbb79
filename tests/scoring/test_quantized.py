"""Approximate scores by codes: equal to sums of table entries, near to exact scores, and never read out of bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring import quantized
from pyterrier_mvret.scoring.quantized import Quantizer

needs_extension = pytest.mark.skipif(quantized._quantized is None, reason="the extension was not compiled")


def a_quantizer(rng, dim, parts):
    width = -(-dim // parts)
    square = np.linalg.qr(rng.standard_normal((parts * width, parts * width)))[0]
    return Quantizer(
        square[:dim].astype(np.float32), rng.standard_normal((parts, 256, width)).astype(np.float32) / width**0.5
    )


def decoded(quantizer, codes):
    """What codes stand for, in the vectors' own space."""
    turned = np.concatenate([quantizer.centroids[p, codes[:, p]] for p in range(codes.shape[1])], axis=1)
    return turned.astype(np.float64) @ quantizer.rotation.T.astype(np.float64)


@given(st.integers(0, 2**32), st.sampled_from([(1, 1), (6, 4), (40, 16), (33, 16), (64, 16)]), st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_the_decoded_vectors_up_to_rounding(seed, shape, tokens):
    rng = np.random.default_rng(seed)
    dim, parts = shape
    quantizer = a_quantizer(rng, dim, parts)
    codes = rng.integers(0, 256, (200, parts)).astype(np.uint8)
    query = rng.standard_normal((tokens, dim)).astype(np.float32)
    weights = rng.standard_normal(tokens).astype(np.float32) if seed % 2 else None
    edges = np.sort(rng.integers(0, 201, (20, 2)), axis=1)
    got = quantizer.table(query, weights).scores(codes, edges[:, 0], edges[:, 1])
    products = query.astype(np.float64) @ decoded(quantizer, codes).T
    tables = np.einsum(
        "tpw,pcw->tpc", (query @ quantizer.rotation).reshape(tokens, parts, -(-dim // parts)), quantizer.centroids
    )
    # each entry is rounded by half a step at most; a step is a part of the range that sums can take
    steps = (tables.max(axis=2, initial=-1e9) - tables.min(axis=2, initial=1e9)).sum(axis=1) / (255 - parts)
    factors = np.ones(tokens) if weights is None else weights
    most = float((np.abs(factors) * steps).sum()) * parts / 2 + 1e-3
    for score, a, b in zip(got, *edges.T):
        if b > a:
            assert abs(score - (factors * products[:, a:b].max(axis=1)).sum()) <= most


def test_compiled_and_uncompiled_are_equal(version):
    if version == "torch":
        pytest.skip("compared with itself")
    rng = np.random.default_rng(0)
    quantizer = a_quantizer(rng, 48, 16)
    codes = rng.integers(0, 256, (5000, 16)).astype(np.uint8)
    query, offsets = rng.standard_normal((45, 48)).astype(np.float32), np.arange(0, 5001, 25)
    table = quantizer.table(query)
    bytes_ = np.empty_like(table.table)
    quantized._fill(*_products(quantizer, query), bytes_, 16, 45)
    assert (np.abs(bytes_.astype(int) - table.table) <= 1).all()  # one may round the other way
    rest = table._looked_up(codes, offsets[:-1], offsets[1:], np.full(200, table.base, np.float32))
    np.testing.assert_allclose(table.scores(codes, offsets[:-1], offsets[1:]), rest, rtol=1e-5, atol=1e-4)


def _products(quantizer, query):
    pieces = (query @ quantizer.rotation).reshape(len(query), *quantizer.centroids.shape[::2])
    products = np.ascontiguousarray(quantizer.centroids @ pieces.transpose(1, 2, 0))
    low, high = products.min(axis=1), products.max(axis=1)
    return products, low, ((high - low).sum(axis=0) / 239).astype(np.float32)


def test_sums_of_the_largest_entries_do_not_overflow():
    parts, ones = 16, np.ones((32, 16), np.float32)
    line = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, -1, 1)
    quantizer = Quantizer(np.eye(16, dtype=np.float32), line.repeat(16, axis=0))
    codes = np.array([[255] * parts, [0] * parts, [128] * parts], np.uint8)
    scores = quantizer.table(ones).scores(codes, np.arange(3), np.arange(1, 4))
    np.testing.assert_allclose(scores, [512, -512, 2], atol=35)  # 16 roundings one way


def test_wrong_codes_and_documents_are_refused():
    table = a_quantizer(np.random.default_rng(0), 8, 8).table(np.ones((2, 8), np.float32))
    codes, start, end = np.zeros((9, 8), np.uint8), np.array([0]), np.array([9])
    assert len(table.scores(codes, start, end)) == 1
    for wrong in (codes[:, :7], codes.astype(np.int8), codes[0]):
        with pytest.raises(ValueError, match="codes must be"):
            table.scores(wrong, start, end)
    for a, b in ((0, 10), (-1, 9), (5, 4)):
        with pytest.raises(ValueError, match="outside the rows"):
            table.scores(codes, np.array([a]), np.array([b]))


def arguments():
    """Arguments of the compiled function that are right."""
    return {
        "table": np.ones((2, 4, 256, 32), np.uint8),
        "weights": np.ones((2, 32), np.float32),
        "codes": np.zeros((9, 4), np.uint8),
        "starts": np.array([0, 4, 4]),
        "ends": np.array([4, 4, 9]),
        "out": np.zeros(3, np.float32),
        "blocks": 2,
        "parts": 4,
        "rows": 9,
        "documents": 3,
        "first": 0,
        "last": 3,
    }


@needs_extension
def test_right_arguments_are_scored():
    right = arguments()
    quantized._quantized.approximate(*right.values())
    assert right["out"].tolist() == [256.0, 0.0, 256.0]


@needs_extension
@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": 1},
        {"blocks": -1},
        {"blocks": 2**60},
        {"parts": 0},
        {"parts": 5},
        {"parts": 2**62},
        {"rows": 10},
        {"rows": -1},
        {"rows": 2**62},
        {"documents": 4},
        {"documents": -1},
        {"documents": 2**62},
        {"first": -1},
        {"first": 4},
        {"last": 4},
        {"starts": np.array([0, 4])},
        {"starts": np.array([0, 5, 4])},
        {"starts": np.array([-1, 4, 4])},
        {"ends": np.array([4, 4, 10])},
        {"weights": np.ones((2, 31), np.float32)},
        {"out": np.zeros(2, np.float32)},
        {"codes": np.zeros((9, 5), np.uint8)},
        {"table": np.ones((2, 4, 255, 32), np.uint8)},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_read(wrong):
    given_ = {**arguments(), **wrong}
    with pytest.raises(ValueError):
        quantized._quantized.approximate(*given_.values())
    assert not given_["out"].any()


@needs_extension
def test_a_table_that_does_not_fit_is_refused():
    right = [np.ones((4, 256, 3), np.float32), np.ones((4, 3), np.float32), np.ones(3, np.float32)]
    table = np.zeros((1, 4, 256, 32), np.uint8)
    quantized._quantized.fill(*right, table, 4, 3)
    for wrong in ([*right, table, 4, 4], [*right, table, 0, 3], [*right, table[:, :3], 4, 3], [*right, table, 4, -1]):
        with pytest.raises(ValueError):
            quantized._quantized.fill(*wrong)
