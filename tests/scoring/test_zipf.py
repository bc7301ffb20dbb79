"""Slopes of frequencies: the numbers worked by hand, drawn vocabularies, and what is no frequency."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring.zipf import power_law, zipf_fit

RANKS = np.arange(1, 201)


def test_numbers_worked_by_hand():
    exact = zipf_fit(1000 / RANKS)
    assert (exact.exponent, exact.r2) == pytest.approx((1, 1), abs=1e-12)
    assert (exact.middle_exponent, exact.middle_r2) == pytest.approx((1, 1), abs=1e-12)
    floored = zipf_fit(1000 // RANKS)
    assert (floored.exponent, floored.r2) == pytest.approx((1.024809, 0.998599), abs=5e-7)
    assert zipf_fit([100, 50, 33, 25, 20]).exponent == pytest.approx(1.000878, abs=5e-7)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 2.5), st.integers(50, 400), st.integers(0, 1000))
def test_a_power_law_is_found_whatever_the_order_and_the_head(exponent, terms, seed):
    frequencies = 1e6 / np.arange(1, terms + 1) ** exponent
    line = power_law(frequencies)
    assert (line.exponent, line.r2, line.scale) == pytest.approx((exponent, 1, 1e6))
    shuffled = np.random.default_rng(seed).permutation(frequencies)
    assert zipf_fit(shuffled, least=1e-9).exponent == pytest.approx(exponent)
    # a saturated head bends the line over all ranks and leaves the middle alone
    head = -(-terms // 100) - 1
    flat = np.minimum(frequencies, frequencies[head])
    assert zipf_fit(flat, least=1e-9).middle_exponent == pytest.approx(exponent, rel=1e-6)


def test_least_squares_as_numpy_does_it():
    rng = np.random.default_rng(3)
    falling = -np.sort(-rng.pareto(1.1, 300) * 50 - 5)
    for first, last in ((1, 300), (3, 150)):
        x, y = np.log(np.arange(first, last + 1)), np.log(falling[first - 1 : last])
        slope, intercept = np.polyfit(x, y, 1)
        line = power_law(falling, first, last)
        assert (line.exponent, line.scale) == pytest.approx((-slope, np.exp(intercept)))
        assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    fit = zipf_fit(falling)
    assert fit.middle_exponent == power_law(falling, 3, 150).exponent


def test_rare_and_unused_terms_are_counted_and_not_fitted():
    frequencies = np.concatenate([1000 // RANKS, [4, 3, 1, 0, 0]])
    fit, bare = zipf_fit(frequencies), zipf_fit(1000 // RANKS)
    assert (fit.terms, fit.rare, fit.unused) == (200, 3, 2)
    assert (fit.exponent, fit.r2, fit.alpha) == (bare.exponent, bare.r2, bare.alpha)
    assert zipf_fit(frequencies, least=20).terms == 50


def test_what_the_head_has():
    frequencies = np.array([50] * 2 + [10] * 18 + [1] * 180 + [0] * 100)
    fit = zipf_fit(frequencies)
    total = 100 + 180 + 180
    assert (fit.top_1, fit.top_10) == pytest.approx((100 / total, 280 / total))  # of 200 terms that occur
    assert zipf_fit([7]).top_1 == 1


def test_saturation():
    fit = zipf_fit([10, 6, 5, 1, 0], documents=10)
    assert (fit.saturated, fit.largest) == (0.5, 1.0)  # exactly half is not more than half
    assert zipf_fit([10], documents=10).saturated == 1  # a term that all documents have
    assert zipf_fit([10, 6]).saturated is None and zipf_fit([10, 6]).largest is None
    with pytest.raises(ValueError, match="11 of 10 documents"):
        zipf_fit([11, 1], documents=10)


def test_likelihood_of_drawn_frequencies():
    rng = np.random.default_rng(0)
    for alpha in (1.8, 2.2, 3.0):
        # the approximation is a little off where least is small
        assert zipf_fit(rng.zipf(alpha, 200_000)).alpha == pytest.approx(alpha, rel=0.02)


def test_too_little_to_fit():
    for frequencies in ([], [3, 2], [0, 0], [9]):
        fit = zipf_fit(np.array(frequencies))
        assert np.isnan([fit.exponent, fit.r2, fit.middle_exponent]).all()
    assert zipf_fit([], documents=0).largest is None
    level = zipf_fit([7] * 10)
    assert (level.exponent, level.r2, level.alpha) == (0, 1, pytest.approx(1 + 1 / np.log(7 / 4.5)))


def test_what_is_no_frequency():
    for frequencies in ([1, -1], [1, np.nan], [1, np.inf], [[1, 2]]):
        with pytest.raises(ValueError, match="one number a term"):
            zipf_fit(frequencies)
    with pytest.raises(ValueError, match="least must be above 0"):
        zipf_fit([1], least=0)
