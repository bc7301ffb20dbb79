"""NVF's networks: sizes of the notes, features worked by hand, and a plain reference of each form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring.pair_networks import PairScorer, QueryTransform, min_max, score_candidates


@pytest.fixture(scope="module", autouse=True)
def version():
    """No compiled kernel has a part in this: once is enough."""


FEATURES = ("concat", "difference", "cross")


def drawn(seed, queries=3, candidates=4, dim=6):
    rng = np.random.default_rng(seed)
    q, d = rng.normal(size=(queries, dim)), rng.normal(size=(queries, candidates, dim))
    mask = rng.random((queries, candidates)) < 0.8
    mask[:, 0] = True
    return [torch.tensor(a, dtype=torch.float64) for a in (q, d)] + [torch.tensor(mask)]


def trained(features, residual=True, dim=6, hidden=8):
    """With weights everywhere: the last layer of the residual form starts at zero."""
    network = PairScorer(dim, features, hidden, residual, seed=1).double().eval()
    with torch.no_grad():
        for weight in (network.last.weight, network.last.bias):
            weight.copy_(torch.linspace(-1, 1, weight.numel(), dtype=torch.float64).reshape(weight.shape))
    return network


def linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def reference(network, q, d):
    """One pair, by the features themselves."""
    parts = [q, d] if network.features == "concat" else [q, d, q - d, q * d]
    hidden = np.maximum(linear(network.first, np.concatenate(parts)), 0)
    return linear(network.last, np.maximum(linear(network.second, hidden), 0))[0]


def listwise_reference(network, q, documents):
    """All candidates of a query, attention written out."""
    a = network.attention
    weights = [w.detach().numpy() for w in a.in_proj_weight.chunk(3)]
    biases = [b.detach().numpy() for b in a.in_proj_bias.chunk(3)]
    query, seen = linear(network.of_query, q), linear(network.of_document, documents)
    wq, wk, wv = (x @ w.T + b for x, w, b in zip((query, seen, seen), weights, biases))
    size = len(query) // a.num_heads
    heads = []
    for h in range(a.num_heads):
        part = slice(h * size, (h + 1) * size)
        logits = wk[:, part] @ wq[part] / np.sqrt(size)
        shares = np.exp(logits - logits.max())
        heads.append(shares / shares.sum() @ wv[:, part])
    context = linear(a.out_proj, np.concatenate(heads))
    pairs = [np.concatenate([context, one, query * one]) for one in seen]
    return np.array([linear(network.last, np.maximum(linear(network.first, p), 0))[0] for p in pairs])


@pytest.mark.parametrize(("features", "size"), [("concat", 41217), ("difference", 73985), ("cross", 148481)])
def test_sizes_of_the_notes(features, size):
    count = sum(w.numel() for w in PairScorer(128, features, residual=False).parameters())
    assert count == size
    assert sum(w.numel() for w in PairScorer(128, features).parameters()) == size + 1
    assert sum(w.numel() for w in QueryTransform(128).parameters()) == 33025


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), features=st.sampled_from(FEATURES), residual=st.booleans())
def test_scores_are_the_references(seed, features, residual):
    q, d, mask = drawn(seed)
    base = torch.einsum("bkn,bn->bk", d, q)
    network = trained(features, residual)
    with torch.no_grad():
        found = network(q, d, base, mask).numpy()
    for i in range(len(q)):
        there = np.flatnonzero(mask[i].numpy())
        mine = d[i].numpy()[there]
        if features == "cross":
            expected = listwise_reference(network, q[i].numpy(), mine)
        else:
            expected = np.array([reference(network, q[i].numpy(), one) for one in mine])
        if residual:
            expected = expected + float(network.alpha.detach()) * (mine @ q[i].numpy())
        np.testing.assert_allclose(found[i][there], expected, atol=1e-9)
        assert np.isneginf(found[i][~mask[i].numpy()]).all()


def test_the_notes_features_and_the_product_among_them():
    q, d = np.array([0.8, 0.6]), np.array([0.6, 0.8])
    network = PairScorer(2, "difference", hidden=2, residual=False).double().eval()
    with torch.no_grad():
        for layer in (network.first, network.second, network.last):
            layer.weight.zero_()
            layer.bias.zero_()
        # weights of one on the block of products give the inner product
        network.first.weight[0, 6:] = 1
        network.second.weight[0, 0] = network.last.weight[0, 0] = 1
    one = torch.ones(1, 1, dtype=torch.bool)
    found = network(torch.tensor(q)[None], torch.tensor(d)[None, None], torch.zeros(1, 1), one)
    assert found.item() == pytest.approx(0.96, abs=1e-12)
    features = np.concatenate([q, d, q - d, q * d])
    np.testing.assert_allclose(features, [0.8, 0.6, 0.6, 0.8, 0.2, -0.2, 0.48, 0.48])


@pytest.mark.parametrize("features", FEATURES)
def test_before_training_scores_are_what_is_known(features):
    q, d, mask = (t.float() if t.is_floating_point() else t for t in drawn(3))
    network = PairScorer(6, features, 8, seed=3).eval()
    base = torch.einsum("bkn,bn->bk", d, q)
    found = network(q, d, base, mask) / network.alpha
    torch.testing.assert_close(found[mask], base[mask])
    assert network.alpha.item() == pytest.approx(20)


@pytest.mark.parametrize("features", FEATURES)
def test_order_of_candidates_and_what_a_score_depends_on(features):
    q, d, _ = drawn(5, candidates=5)
    mask, base = torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 5, dtype=torch.float64)
    network = trained(features)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = network(q, d, base, mask)
    torch.testing.assert_close(network(q, d[:, order], base, mask), found[:, order])
    alone = network(q, d[:, :1], base[:, :1], mask[:, :1])
    assert torch.allclose(alone, found[:, :1]) == (features != "cross")
    padded = torch.cat([d, torch.full((3, 2, 6), 9.0, dtype=torch.float64)], dim=1)
    wide = torch.cat([mask, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(network(q, padded, torch.zeros(3, 7, dtype=torch.float64), wide)[:, :5], found)


@pytest.mark.parametrize("features", FEATURES)
def test_gradients_reach_queries_as_differences_say(features):
    q, d, _ = drawn(7, queries=1)
    mask, network = torch.ones(1, 4, dtype=torch.bool), trained(features)

    def score(query, documents):
        return network(query, documents, torch.einsum("bkn,bn->bk", documents, query), mask)[0, 0]

    query, documents = q.clone().requires_grad_(), d.clone().requires_grad_()
    score(query, documents).backward()
    for i in range(6):
        step = torch.zeros_like(q)
        step[0, i] = 1e-6
        slope = (score(q + step, d) - score(q - step, d)).item() / 2e-6
        assert query.grad[0, i].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)
    others = documents.grad[0, 1:].abs().sum().item()
    assert (others > 0) == (features == "cross")


def test_candidates_by_number_and_first_stage_scores():
    rng = np.random.default_rng(0)
    q, d = (torch.tensor(rng.normal(size=size), dtype=torch.float32) for size in ((2, 6), (5, 6)))
    candidates = torch.tensor([[4, 1, -1], [0, 2, 3]])
    network = PairScorer(6, "difference", 8).eval()
    found = score_candidates(network, q, d, candidates) / network.alpha
    assert found[0, 1].item() == pytest.approx(float(q[0] @ d[1]), abs=1e-6)
    assert torch.isneginf(found[0, 2])
    first = torch.tensor([[3.0, 7.0, -99.0], [2.0, 2.0, 2.0]])
    found = score_candidates(network, q, d, candidates, first) / network.alpha
    torch.testing.assert_close(found[0, :2], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found[1], torch.zeros(3))  # equal scores say nothing
    assert min_max(first, candidates >= 0)[0].tolist() == [0.0, 1.0, 0.0]
    least = torch.tensor([[-torch.inf, 3.0, 1.0, 2.0], [-torch.inf, 1.0, 1.0, -torch.inf], [-torch.inf] * 4])
    found = min_max(least, torch.ones(3, 4, dtype=torch.bool))
    assert found.tolist() == [[0.0, 1.0, 0.0, 0.5], [0.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("dim", [3, 100, 384])
@pytest.mark.parametrize("candidates", [1, 7, 50, 333])
def test_what_is_known_of_equal_documents_is_equal(dim, candidates):
    rng = np.random.default_rng(0)
    q, d = (torch.tensor(rng.normal(size=(n, dim)), dtype=torch.float32) for n in (3, 1))
    at = torch.zeros((3, candidates), dtype=torch.int64)
    with torch.no_grad():
        found = score_candidates(PairScorer(dim), q, d, at)
        alone = score_candidates(PairScorer(dim), q[:1], d, at[:1, :1])
    assert (found == found[:, :1]).all()
    assert found[0, 0] == alone[0, 0]


def test_the_transform_starts_where_queries_are():
    queries = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    moved = QueryTransform(8)
    torch.testing.assert_close(moved(queries), queries)
    assert moved(torch.zeros(1, 8)).abs().sum() == 0
    assert moved.temperature.item() == pytest.approx(0.05)
    plain = QueryTransform(8, residual=False, temperature=1.0)
    assert not torch.allclose(plain(queries), queries)
    torch.testing.assert_close(plain(queries).norm(dim=1), torch.ones(5))
    with torch.no_grad():
        plain.log_temperature.fill_(-100.0)
    assert plain.temperature.item() == pytest.approx(0.005)  # it never crosses zero
    for wrong in (0, -1, 100, float("nan")):  # one out of its range would never learn
        with pytest.raises(ValueError, match="temperature must be from 0.005 to 10"):
            QueryTransform(8, temperature=wrong)


def test_seeds():
    one, same, other = (PairScorer(6, "cross", 8, residual=False, seed=s) for s in (1, 1, 2))
    before = torch.random.get_rng_state()
    PairScorer(6, seed=9)
    assert torch.equal(torch.random.get_rng_state(), before)  # others' random numbers are left alone
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or not a.abs().sum()  # biases of attention start at zero


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "B"}, "features must be one of concat, difference, cross, got 'B'"),
        ({"hidden": 7}, "even number"),
        ({"hidden": 0}, "even number"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"features": "cross", "hidden": 6}, "cannot be divided among heads=4"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PairScorer(6, **arguments)
