import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim
from pyterrier_mvret.training import winners
from pyterrier_mvret.training.similarity import MaxSimSimilarity

RULES = [MaxSim(s, n) for s in ("cosine", "l2") for n in (None, "query")]


def ragged(seed, queries=3, group=2, dim=4, empty=0.2):
    """Unit vectors of queries and of groups of documents, some of which have none."""
    rng = np.random.default_rng(seed)

    def unit(rows):
        vectors = rng.normal(size=(rows, dim)) - 0.5  # maxima below zero are common
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    asked = [unit(rng.integers(1, 5)) for _ in range(queries)]
    found = [[unit(0 if rng.random() < empty else rng.integers(1, 6)) for _ in range(group)] for _ in range(queries)]
    return asked, found


def padded(rows, rng):
    """(texts, tokens, dim) and its mask; padding is anywhere, and larger than all vectors."""
    width = max(map(len, rows)) + 1
    out = np.full((len(rows), width, rows[0].shape[1]), 7, np.float32)
    mask = np.zeros((len(rows), width), bool)
    for i, vectors in enumerate(rows):
        mask[i, rng.permutation(width)[: len(vectors)]] = True
        out[i, mask[i]] = vectors
    return torch.from_numpy(out), torch.from_numpy(mask)


def batch(seed, **sizes):
    asked, found = ragged(seed, **sizes)
    rng = np.random.default_rng(seed)
    queries, queries_mask = padded(asked, rng)
    flat, mask = padded([document for group in found for document in group], rng)
    shape = (len(found), len(found[0]))
    return asked, found, (queries, flat.unflatten(0, shape), queries_mask, mask.unflatten(0, shape))


def expected(rule, query, document):
    if not len(document):
        return float(EMPTY_DOCUMENT)
    score = (query @ document.T).max(1).sum()
    score = 2 * score - 2 * len(query) if rule.similarity == "l2" else score
    return score / len(query) if rule.normalize else score


@pytest.mark.parametrize("rule", RULES, ids=str)
@given(seed=st.integers(0, 10**6), sizes=st.sampled_from([(1, 1), (3, 2), (4, 1)]))
@settings(max_examples=25, deadline=None)
def test_scores_are_those_of_the_ranking_rule(rule, seed, sizes):
    asked, found, inputs = batch(seed, queries=sizes[0], group=sizes[1])
    flat = [document for group in found for document in group]
    reference = np.array([[expected(rule, query, document) for document in flat] for query in asked])
    scores = MaxSimSimilarity(rule, unit=True)
    matrix = scores.matrix(*inputs).numpy()
    np.testing.assert_allclose(matrix, reference, atol=1e-5)
    offsets = np.cumsum([0, *map(len, flat)])
    ranked = rule.matrix(np.concatenate(asked), np.cumsum([0, *map(len, asked)]), np.concatenate(flat), offsets)
    np.testing.assert_allclose(matrix, ranked, atol=1e-5)
    own = reference.reshape(len(asked), len(asked), -1)[np.arange(len(asked)), np.arange(len(asked))]
    np.testing.assert_allclose(scores.groups(*inputs).numpy(), own, atol=1e-5)
    queries, documents, queries_mask, mask = inputs
    first = scores.pairs(queries, documents[:, 0], queries_mask, mask[:, 0])
    np.testing.assert_allclose(first.numpy(), own[:, 0], atol=1e-5)


def gradients(score, inputs):
    queries, documents, *masks = inputs
    queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    scores = score(queries, documents, *masks)
    weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((scores * weight).sum(), [queries, documents]), weight


@pytest.mark.parametrize("at_once", [1, 100, 1 << 23])
@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_those_of_the_library(seed, at_once, monkeypatch):
    monkeypatch.setattr(winners, "PRODUCTS_AT_ONCE", at_once)
    _, _, inputs = batch(seed)
    ours, _ = gradients(MaxSimSimilarity(MaxSim(), unit=True).matrix, inputs)
    theirs, _ = gradients(colbert_scores, inputs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_are_the_slopes_of_the_formula(rule):
    asked, found, inputs = batch(3, empty=0)
    (to_queries, to_documents), weight = gradients(MaxSimSimilarity(rule, unit=True).matrix, inputs)
    rng, step = np.random.default_rng(0), 1e-6
    moved_queries = [rng.normal(size=q.shape) for q in asked]
    moved_documents = [[rng.normal(size=d.shape) for d in group] for group in found]

    def value(size):
        queries = [q + size * m for q, m in zip(asked, moved_queries)]
        flat = [d + size * m for group, moves in zip(found, moved_documents) for d, m in zip(group, moves)]
        return sum(
            float(weight[i, j]) * expected(rule, query, document)
            for i, query in enumerate(queries)
            for j, document in enumerate(flat)
        )

    slope = (value(step) - value(-step)) / (2 * step)
    queries_mask, mask = inputs[2], inputs[3]
    along = sum((to_queries[i][queries_mask[i]].numpy() * m).sum() for i, m in enumerate(moved_queries))
    for i, group in enumerate(moved_documents):
        along += sum((to_documents[i, j][mask[i, j]].numpy() * m).sum() for j, m in enumerate(group))
    assert along == pytest.approx(slope, rel=1e-3)


def test_padding_gets_no_gradient():
    _, _, inputs = batch(4)
    (to_queries, to_documents), _ = gradients(MaxSimSimilarity(MaxSim(), unit=True).matrix, inputs)
    assert not to_queries[~inputs[2]].any() and not to_documents[~inputs[3]].any()
    assert to_queries[inputs[2]].any() and to_documents[inputs[3]].any()


def test_one_side_alone_may_need_a_gradient():
    _, _, (queries, documents, *masks) = batch(5)
    both, _ = gradients(MaxSimSimilarity(MaxSim(), unit=True).matrix, (queries, documents, *masks))
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    for side, reference in enumerate(both):
        inputs = [queries.clone(), documents.clone()]
        inputs[side].requires_grad_()
        scores = MaxSimSimilarity(MaxSim(), unit=True).matrix(*inputs, *masks)
        torch.testing.assert_close(torch.autograd.grad((scores * weight).sum(), inputs[side])[0], reference)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_document_without_tokens_is_last_and_harmless(rule):
    _, _, (queries, documents, queries_mask, mask) = batch(6, empty=0)
    mask[0, 1] = False
    scores = MaxSimSimilarity(rule, unit=True)
    forms = {
        "matrix": lambda q, d: scores.matrix(q, d, queries_mask, mask)[:, 1],
        "groups": lambda q, d: scores.groups(q, d, queries_mask, mask)[:1, 1],
        "pairs": lambda q, d: scores.pairs(q, d[:, 1], queries_mask, mask[:, 1])[:1],
    }
    for form in forms.values():
        q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        out = form(q, d)
        assert (out == float(EMPTY_DOCUMENT)).all()
        out.sum().backward()
        assert not q.grad.any() and not d.grad.any()  # not NaN either
    q = queries.clone().requires_grad_()
    torch.nn.functional.cross_entropy(
        scores.matrix(q, documents, queries_mask, mask), torch.tensor([0, 2, 4])
    ).backward()
    assert q.grad.isfinite().all() and q.grad.any()


def test_automatic_mixed_precision_does_not_round_sums():
    _, _, inputs = batch(7, dim=64)
    score = MaxSimSimilarity(MaxSim(), unit=True).matrix
    whole, _ = gradients(score, inputs)
    scores = score(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = gradients(score, inputs)
        assert torch.equal(score(*inputs), scores)
    for a, b in zip(whole, mixed):
        assert torch.equal(a, b)


def test_other_precisions_take_the_librarys_way():
    _, _, (queries, documents, *masks) = batch(8)
    score = MaxSimSimilarity(MaxSim(), unit=True).matrix
    double = score(queries.double(), documents.double(), *masks)
    torch.testing.assert_close(double, score(queries, documents, *masks), atol=1e-5, rtol=0)


def test_distances_need_unit_vectors():
    with pytest.raises(ValueError, match="normalises"):
        MaxSimSimilarity(MaxSim("l2"), unit=False)


def projected(weight, states_of_query, states_of_document):
    queries, documents = states_of_query @ weight.T, states_of_document @ weight.T
    ones = [torch.ones(1, len(queries), dtype=bool), torch.ones(1, 1, len(documents), dtype=bool)]
    return MaxSimSimilarity(MaxSim(), unit=False).matrix(queries[None], documents[None, None], *ones)[0, 0]


def test_the_heads_gradient_is_that_of_the_winners():
    weight = torch.tensor([[1.0, 0, 0], [0, 1, 0]], requires_grad=True)
    asked = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    found = torch.tensor([[1.0, 0, 2], [0, 2, 1], [0.5, 0.5, 5]], requires_grad=True)
    score = projected(weight, asked, found)
    score.backward()
    assert score.item() == 3
    assert weight.grad.tolist() == [[2, 0, 3], [0, 4, 1]]
    assert found.grad[:2].any(1).all() and not found.grad[2].any()


def test_the_rank_of_a_pairs_gradient_is_twice_the_number_of_winners():
    """Tokens that share a winner add up, so ``n + winners`` is reached only where every token has its own."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        asked, found = (torch.from_numpy(rng.normal(size=(n, 12)).astype(np.float32)) for n in (3, 10))
        weight = torch.from_numpy(rng.normal(size=(8, 12)).astype(np.float32)).requires_grad_()
        found.requires_grad_()
        projected(weight, asked, found).backward()
        winners = len(set((asked @ weight.T @ weight @ found.T).argmax(1).tolist()))
        assert int(found.grad.any(1).sum()) == winners
        assert torch.linalg.matrix_rank(weight.grad) == 2 * winners
        seen.add(winners)
    assert seen == {1, 2, 3}
