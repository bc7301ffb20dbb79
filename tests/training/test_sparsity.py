import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.training.sparsity import Usage, equipartition, flops, l1


def sparse(seed, texts=4, k=5, dimensions=9, empty=0.2):
    """k-sparse vectors as ids and weights, and dense."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(dimensions)[:k] for _ in range(texts)])
    weights = rng.exponential(size=(texts, k)) * (rng.random((texts, k)) > empty)
    dense = np.zeros((texts, dimensions))
    np.put_along_axis(dense, ids, weights, axis=1)
    return torch.from_numpy(ids), torch.from_numpy(weights), dense


@given(seed=st.integers(0, 10**6), empty=st.sampled_from([0.0, 0.5, 0.95, 1.0]))
@settings(max_examples=60, deadline=None)
def test_penalties_by_their_definition(seed, empty):
    ids, weights, dense = sparse(seed, empty=empty)
    assert l1(weights).item() == pytest.approx(dense.sum() / len(dense))
    assert flops(ids, weights).item() == pytest.approx((dense.mean(0) ** 2).sum())
    rows = dense[dense.sum(1) > 0]
    expected = 0.0
    if len(rows):
        mean = (rows / rows.sum(1, keepdims=True)).mean(0)
        entropy = -sum(p * math.log(p) for p in mean if p > 0)
        expected = 1 - entropy / math.log(min(9, 5 * len(rows)))
    assert equipartition(ids, weights, 9).item() == pytest.approx(expected, abs=1e-9)


def test_flops_of_unit_vectors_is_the_mean_cosine():
    ids, weights, dense = sparse(3, texts=6)
    lengths = np.linalg.norm(dense, axis=1, keepdims=True)
    unit = dense / lengths
    assert flops(ids, weights / torch.from_numpy(lengths)).item() == pytest.approx((unit @ unit.T).mean())


def test_equipartition_at_its_ends():
    apart = torch.arange(12).reshape(4, 3)
    assert equipartition(apart, torch.ones(4, 3), 50).item() == pytest.approx(0, abs=1e-6)
    assert equipartition(torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1), 50).item() == 1
    assert equipartition(apart[:1, :1], torch.ones(1, 1), 50).item() == 0  # nothing could be spread


@pytest.mark.parametrize("penalty", [l1, flops, equipartition])
def test_gradients_are_finite_also_of_empty_texts(penalty):
    ids, weights, _ = sparse(0)
    weights[1] = 0
    weights.requires_grad_()
    arguments = {l1: (weights,), flops: (ids, weights), equipartition: (ids, weights, 9)}[penalty]
    penalty(*arguments).backward()
    assert weights.grad.isfinite().all()


def test_usage_is_counted_until_it_is_taken():
    usage = Usage()
    usage.add("document", torch.tensor([[1, 2], [2, 3]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    usage.add("document", torch.tensor([[5, 2]]), torch.tensor([[0.0, 0.0]]))
    assert usage.take() == {"document_active": 1.0, "document_latents": 2, "document_empty": 1}
    assert usage.take() == {}
