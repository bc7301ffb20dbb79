import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.training.latent_similarity import LatentSimilarity, as_rows
from tests.training.test_sparsity import sparse


@given(seed=st.integers(0, 10**6), empty=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_scores_and_gradients_are_those_of_dense_vectors(seed, empty):
    q_ids, q_weights, q = sparse(seed, texts=3, k=4, empty=empty)
    d_ids, d_weights, d = sparse(seed + 1, texts=6, k=5, empty=empty)
    q, d = (torch.from_numpy(x).requires_grad_() for x in (q, d))
    for weights in (q_weights, d_weights):
        weights.requires_grad_()
    rows, mask = as_rows(q_ids, q_weights)
    found, active = (x.unflatten(0, (3, 2)) for x in as_rows(d_ids, d_weights))
    similarity, factor = LatentSimilarity(), torch.randn(3, 6)
    scores = similarity.matrix(rows, found, queries_mask=mask, documents_mask=active)
    torch.testing.assert_close(scores, (q @ d.T).float())
    got = torch.autograd.grad((scores * factor).sum(), (q_weights, d_weights))
    want = torch.autograd.grad((q @ d.T * factor).sum(), (q, d))
    for part, weights, dense, ids in zip(got, (q_weights, d_weights), want, (q_ids, d_ids), strict=True):
        torch.testing.assert_close(part, dense.gather(1, ids) * (weights > 0), rtol=1e-5, atol=1e-6)
    own = scores.view(3, 3, 2)[torch.arange(3), torch.arange(3)]
    torch.testing.assert_close(similarity.groups(rows, found, queries_mask=mask, documents_mask=active), own)
    torch.testing.assert_close(
        similarity.pairs(rows, found[:, 0], queries_mask=mask, documents_mask=active[:, 0]), own[:, 0]
    )


def test_padding_says_nothing():
    rows, mask = as_rows(torch.tensor([[4, 8]]), torch.tensor([[1.0, 2.0]]))
    padded = torch.cat([rows, torch.full((1, 1, 2), 8.0)], 1)
    active = torch.cat([mask, torch.zeros(1, 1, dtype=torch.bool)], 1)
    score = LatentSimilarity().pairs(padded, padded, active, active)
    assert score.item() == pytest.approx(5)


def test_large_dimensions_stay_apart():
    rows, mask = as_rows(torch.tensor([[(1 << 24) - 2, (1 << 24) - 1]]), torch.tensor([[1.0, 2.0]]))
    assert LatentSimilarity().pairs(rows, rows, mask, mask).item() == 5
