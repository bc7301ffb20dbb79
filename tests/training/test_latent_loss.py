"""LASPAR's loss: numbers worked by hand, a dense reference, and what the trainer says of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyterrier_mvret.training import losses
from pyterrier_mvret.training.latent_loss import LatentLoss, dot_products
from tests.training.test_sparsity import sparse


@given(seed=st.integers(0, 10**6), empty=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_dot_products_and_gradients_are_those_of_dense_vectors(seed, empty):
    q_ids, q_weights, q = sparse(seed, texts=3, k=4, empty=empty)
    d_ids, d_weights, d = sparse(seed + 1, texts=6, k=5, empty=empty)
    q, d = (torch.from_numpy(x).requires_grad_() for x in (q, d))
    for weights in (q_weights, d_weights):
        weights.requires_grad_()
    factor = torch.randn(3, 6, dtype=torch.float64)
    scores = dot_products((q_ids, q_weights), (d_ids, d_weights))
    torch.testing.assert_close(scores, q @ d.T)
    got = torch.autograd.grad((scores * factor).sum(), (q_weights, d_weights))
    want = torch.autograd.grad((q @ d.T * factor).sum(), (q, d))
    torch.testing.assert_close(got[0], want[0].gather(1, q_ids))
    # documents' latents that no query has are not looked at, and their gradients are zeros anyway
    torch.testing.assert_close(got[1], want[1].gather(1, d_ids))


class Table(nn.Module):
    """A model whose texts are rows of a table of sparse vectors."""

    def __init__(self, ids, weights):
        super().__init__()
        self.ids, self.weights = ids, nn.Parameter(weights)

    def forward(self, features, task=None):
        rows = features["input_ids"][:, 0]
        return {"latent_ids": self.ids[rows], "latent_weights": self.weights[rows], **features}


def columns(*rows):
    ids = [torch.tensor(column)[:, None] for column in rows]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


def test_all_terms_against_dense_vectors():
    rng = np.random.default_rng(0)
    ids, weights, dense = sparse(1, texts=6, k=5)
    module = LatentLoss(
        Table(ids, weights),
        losses.LatentSparse(distillation="kl", distillation_weight=2, query_weight=0.1, document_weight=0.3),
        9,
        0.5,
    )
    module.progress = 1 / 6
    teacher = torch.from_numpy(rng.normal(size=(2, 2)))
    parts = module(columns([0, 1], [2, 3], [4, 5]), teacher)  # positives are 2 and 3
    q, d = dense[:2], dense[[2, 4, 3, 5]]
    scores = q @ d.T
    log = np.log(np.exp(scores / 0.5) / np.exp(scores / 0.5).sum(1, keepdims=True))
    assert parts["ranking"].item() == pytest.approx(-(log[0, 0] + log[1, 2]) / 2)
    own = np.stack([scores[0, :2], scores[1, 2:]]) / 0.5
    p = (teacher / 0.05).softmax(-1).numpy()
    found = own - np.log(np.exp(own).sum(1, keepdims=True))
    assert parts["distillation"].item() == pytest.approx(2 * (p * (np.log(p + 1e-300) - found)).sum() / 2)
    assert parts["query_l1"].item() == pytest.approx(0.25 * 0.1 * q.sum() / 2)
    assert parts["flops"].item() == pytest.approx(0.25 * 0.3 * (d.mean(0) ** 2).sum())
    sum(parts.values()).backward()
    assert module.model.weights.grad.isfinite().all()


def test_margins_and_even_shares():
    ids, weights, dense = sparse(2, texts=3, k=5)
    how = losses.LatentSparse(distillation="margin-mse", documents="equipartition", query_weight=0, warmup=0)
    parts = LatentLoss(Table(ids, weights), how, 9, 0.05)(columns([0], [1], [2]), torch.tensor([[0.9, 0.2]]))
    margin = dense[0] @ dense[1] - dense[0] @ dense[2]
    assert parts["distillation"].item() == pytest.approx((margin - 0.7) ** 2, abs=1e-6)
    assert set(parts) == {"ranking", "distillation", "equipartition"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0"),
        ({"teacher_temperature": float("inf")}, "teacher_temperature must be above 0"),
        ({"documents": "l0"}, "documents 'flops'"),
        ({"distillation": "mse"}, "distillation is"),
        ({"query_weight": -1}, "query_weight"),
        ({"warmup": 2}, "warmup"),
    ],
)
def test_settings_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        losses.LatentSparse(**settings)


def test_penalties_rise_with_the_square_of_time():
    how = losses.LatentSparse(warmup=0.5)
    assert [how.risen(t) for t in (0, 0.05, 0.25, 0.5, 1)] == pytest.approx([0, 0.01, 0.25, 1, 1])
    assert losses.LatentSparse(warmup=0).risen(0) == 1
    assert losses.named("latent-sparse") == losses.LatentSparse() and losses.LatentSparse().teacher is None
