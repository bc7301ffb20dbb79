"""The largest entries of a product that is never whole, and what sparse vectors are made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pyterrier_mvret.scoring.latent_vectors import dot, log_relu, running_top


def by_definition(y, k):
    """Ids of the largest entries, of equal ones the smaller id first, and their values."""
    ids = np.argsort(-y, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(y, ids, axis=1), ids


# few different numbers, so that many are equal
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 23)), elements=st.integers(-3, 3)),
    st.integers(1, 30),
    st.lists(st.integers(1, 23), max_size=8),
)
def test_top_of_parts_is_the_top_of_all(y, k, cuts):
    ends = sorted({min(cut, y.shape[1]) for cut in cuts} | {y.shape[1]})
    parts = (torch.from_numpy(y[:, a:b]) for a, b in zip([0, *ends], ends))
    values, ids = running_top(parts, k)
    expected = by_definition(y, k)
    np.testing.assert_array_equal(values.numpy(), expected[0])
    np.testing.assert_array_equal(ids.numpy(), expected[1])


def test_one_part_at_a_time_is_looked_at():
    def parts():
        for start in range(0, 60, 10):
            part = torch.arange(start, start + 10.0).repeat(2, 1)
            yield part
            part.fill_(torch.nan)  # whoever looks again sees nothing

    assert running_top(parts(), 3).ids.tolist() == [[59, 58, 57]] * 2
    with pytest.raises(ValueError, match="no products"):
        running_top(iter(()), 3)


@pytest.mark.parametrize("place", range(6))
def test_what_is_no_number_does_not_get_lost(place):
    y = torch.arange(12.0).reshape(2, 6)
    y[1, place] = torch.nan
    values, ids = running_top(y.split(2, dim=1), 2)
    assert values[0].tolist() == [5, 4] and ids[0].tolist() == [5, 4]
    assert values[1].isnan().tolist() == [True, False] and ids[1, 0] == place


def test_log_relu_is_cut_off_and_has_no_gradient_there():
    y = torch.tensor([-1.0, 2.0, 22_025.0, 22_027.0], requires_grad=True)
    x = log_relu(y)
    np.testing.assert_allclose(x.detach(), [0, np.log(3), np.log(22_026), 10], rtol=1e-6)
    x.sum().backward()
    np.testing.assert_allclose(y.grad, [0, 1 / 3, 1 / 22_026, 0], rtol=1e-5)


def test_dot_is_taken_in_float64():
    query = {str(i): 1.0 + i * 2.0**-40 for i in range(5)}
    document = {str(i): 3.0 for i in range(2, 9)}
    assert dot(query, document) == 9 + 3 * 9 * 2.0**-40
    assert dot(query, {}) == dot({}, document) == 0.0
