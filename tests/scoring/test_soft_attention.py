"""Soft attention: the specification's table, its limits in T, and what gradients pass."""

import pytest
import torch

from pyterrier_mvret.scoring.soft_attention import choose, soft_attention, soft_result


@pytest.fixture(scope="module", autouse=True)
def version():
    """No compiled kernel has a part in this: once is enough."""


DOCUMENTS = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]], dtype=torch.float64)
QUERY = torch.tensor([0.8, 0.6], dtype=torch.float64)


@pytest.mark.parametrize(
    ("temperature", "weights", "result"),
    [
        (1.0, [0.3342, 0.2736, 0.3922], [0.5695, 0.5874]),
        (0.1, [0.1642, 0.0222, 0.8135], [0.6524, 0.6730]),
        (0.01, [0.0, 0.0, 1.0], [0.6, 0.8]),
    ],
)
def test_worked_by_hand(temperature, weights, result):
    found = soft_attention(QUERY, DOCUMENTS, temperature)
    torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float64), atol=6e-5, rtol=0)
    found = soft_result(QUERY, DOCUMENTS, temperature)
    torch.testing.assert_close(found, torch.tensor(result, dtype=torch.float64), atol=6e-5, rtol=0)


def test_rows_sum_to_one_in_the_order_of_products_at_any_temperature():
    rng = torch.Generator().manual_seed(0)
    queries, documents = (torch.randn(n, 8, generator=rng, dtype=torch.float64) for n in (5, 20))
    order = (queries @ documents.T).argsort(dim=1)
    for temperature in (0.05, 0.5, 5.0):
        weights = soft_attention(queries, documents, temperature)
        torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
        assert torch.equal(weights.log().argsort(dim=1)[:, -5:], order[:, -5:])
    assert soft_attention(queries, documents, 1e-4).amax(1).min() == pytest.approx(1)
    assert soft_attention(queries, documents, 1e6).max() == pytest.approx(1 / 20, rel=1e-3)
    for temperature, shares in ((1e-30, [1.0, 0, 0]), (float("inf"), [1 / 3] * 3)):
        found = soft_attention(torch.tensor([2.0, 0.0]), DOCUMENTS.float(), temperature)
        torch.testing.assert_close(found, torch.tensor(shares))
    own = documents.expand(5, 20, 8)  # documents of each query
    torch.testing.assert_close(soft_result(queries, own, 0.5), soft_result(queries, documents, 0.5))


def test_gradients_agree_with_differences():
    query = QUERY.clone().requires_grad_()
    soft_result(query, DOCUMENTS, 0.1)[0].backward()
    for i in range(2):
        step = torch.zeros_like(QUERY)
        step[i] = 1e-6
        up, down = (soft_result(QUERY + s * step, DOCUMENTS, 0.1)[0] for s in (1, -1))
        assert query.grad[i].item() == pytest.approx((up - down).item() / 2e-6, rel=1e-6)


@pytest.mark.parametrize("choice", ["soft", "hard", "straight-through", "gumbel"])
def test_what_passes_a_choice(choice):
    query = QUERY[None].clone().requires_grad_()
    torch.manual_seed(0)
    found = choose(query, DOCUMENTS, 0.1, choice)
    passes = found.requires_grad
    assert passes == (choice != "hard")
    if choice in ("hard", "straight-through"):
        torch.testing.assert_close(found.detach(), DOCUMENTS[2:])
    if choice == "gumbel":
        assert any(torch.allclose(found.detach()[0], document) for document in DOCUMENTS)
    if choice == "straight-through":
        (mine,) = torch.autograd.grad(found[0, 0], query)
        (soft,) = torch.autograd.grad(soft_result(query, DOCUMENTS, 0.1)[0, 0], query)
        torch.testing.assert_close(mine, soft)
        assert mine.abs().sum() > 0


def test_gumbel_draws_by_the_attention():
    torch.manual_seed(0)
    drawn = choose(QUERY.expand(20000, 2), DOCUMENTS, 0.5, "gumbel")
    shares = torch.stack([(drawn - document).abs().sum(1).lt(1e-6).double().mean() for document in DOCUMENTS])
    torch.testing.assert_close(shares, soft_attention(QUERY, DOCUMENTS, 0.5), atol=0.015, rtol=0)


@pytest.mark.parametrize("choice", ["soft", "hard", "straight-through", "gumbel"])
def test_a_temperature_near_0_leaves_numbers(choice):
    found = choose(QUERY[None].float(), DOCUMENTS.float(), 1e-30, choice)
    torch.testing.assert_close(found, DOCUMENTS[2:].float())


def test_another_choice():
    with pytest.raises(ValueError, match="choice must be one of soft, hard, straight-through, gumbel, got 'best'"):
        choose(QUERY[None], DOCUMENTS, 0.1, "best")
