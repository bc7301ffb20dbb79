import numpy as np
import pytest
import torch

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim, Soft, TopK, TopP, align_matrix
from pyterrier_mvret.scoring.salience import saliences
from pyterrier_mvret.training import alignment, winners
from pyterrier_mvret.training.alignment import AlignmentSimilarity
from pyterrier_mvret.training.similarity import MaxSimSimilarity
from tests.scoring.alignments import UD, UQ, VARIANTS, D, Q
from tests.training import test_similarity
from tests.training.test_similarity import padded

STRATEGIES = [TopK(1), TopK(2), TopK(20), TopP(0.4), TopP(1), Soft(1, 0.1), Soft(2, 0.1), Soft(20, 0.1)]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=str)


@pytest.fixture(params=["few", "all"])
def way(request, monkeypatch):
    """Through the best similarities where they are few, in many blocks; and through all of them, in one."""
    monkeypatch.setattr(*((winners, "PRODUCTS_AT_ONCE", 40) if request.param == "few" else (alignment, "_FEW", 0)))


def ragged(seed, queries=3, group=2, dim=4, empty=0.2):
    """Vectors of queries and of groups of documents, with saliences behind; often similarities are equal."""
    rng = np.random.default_rng(seed)

    def text(rows):
        vectors = rng.integers(-2, 2, (rows, dim)) / 4  # sums are exact
        saliences = rng.random((rows, 1)) * (rng.random((rows, 1)) < 0.7)
        return np.concatenate([vectors, saliences], axis=1).astype(np.float32)

    asked = [text(rng.integers(0 if rng.random() < empty else 1, 5)) for _ in range(queries)]
    found = [[text(0 if rng.random() < empty else rng.integers(1, 9)) for _ in range(group)] for _ in range(queries)]
    return asked, found


def batch(seed, weighed=True, **sizes):
    """Texts, and the same as padded tensors; padding is anywhere, and of large vectors and saliences."""
    asked, found = ragged(seed, **sizes)
    if not weighed:
        asked, found = [text[:, :-1] for text in asked], [[text[:, :-1] for text in group] for group in found]
    rng = np.random.default_rng(seed)
    queries, queries_mask = padded(asked, rng)
    flat, mask = padded([document for group in found for document in group], rng)
    shape = len(found), len(found[0])
    return asked, found, (queries, flat.unflatten(0, shape), queries_mask, mask.unflatten(0, shape))


def ranked(strategy, asked, found, weighed, **variant):
    """Scores as ranking computes them."""
    flat = [document for group in found for document in group]
    offsets = [np.cumsum([0, *map(len, texts)]) for texts in (asked, flat)]
    queries, documents = np.concatenate(asked), np.concatenate(flat)
    if not weighed:
        return align_matrix(queries, offsets[0], documents, offsets[1], strategy, **variant)
    saliences = queries[:, -1], documents[:, -1]
    return align_matrix(queries[:, :-1], offsets[0], documents[:, :-1], offsets[1], strategy, *saliences, **variant)


def gradients(score, inputs):
    """Scores, and the gradients of a weighted sum of them."""
    queries, documents, *masks = inputs
    queries, documents = queries.clone().requires_grad_(), documents.clone().requires_grad_()
    scores = score(queries, documents, *masks)
    weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    return scores.detach(), *torch.autograd.grad((scores * weight.to(scores.dtype)).sum(), [queries, documents])


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@every_strategy
def test_scores_are_those_of_the_ranking_rule(strategy, variant, weighed, way):
    score = AlignmentSimilarity(strategy, *variant, weighed)
    for seed in range(5):
        asked, found, inputs = batch(seed, weighed)
        expected = ranked(strategy, asked, found, weighed, normalizer=variant[0], align_over=variant[1])
        queries, documents, queries_mask, mask = inputs
        matrix = score.matrix(queries, documents, queries_mask=queries_mask, documents_mask=mask)
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-5)
        own = expected.reshape(3, 3, 2)[np.arange(3), np.arange(3)]
        np.testing.assert_allclose(score.groups(*inputs).numpy(), own, atol=1e-5)
        first = score.pairs(queries, documents[:, 0], queries_mask, mask[:, 0])
        np.testing.assert_allclose(first.numpy(), own[:, 0], atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("strategy", [TopK(1), TopP(0.2), Soft(1, 0.1)], ids=str)
def test_closed_gates_are_the_same_to_training_and_ranking(strategy, variant, way):
    """Where all that a query token aligns with is closed, its saliences and their products are at float32's end."""
    score, empty = AlignmentSimilarity(strategy, *variant, weighed=True), 0
    for seed in range(3):
        draws = torch.Generator().manual_seed(seed)
        queries, documents = (torch.randn(12, n, 4, generator=draws) for n in (4, 25))
        raws = [1 + 0.3 * torch.randn(12, n, generator=draws) for n in (4, 25)]
        weights = [saliences(raw.requires_grad_(), "lp", 0.4, 0.002) for raw in raws]
        q, d = (torch.cat([x, u[..., None]], -1) for x, u in zip((queries, documents), weights))
        matrix = score.matrix(q, d[:, None], torch.ones(12, 4).bool(), torch.ones(12, 1, 25).bool())
        expected = ranked(strategy, q.detach().numpy(), d.detach().numpy()[:, None], True,
                          normalizer=variant[0], align_over=variant[1])  # fmt: skip
        np.testing.assert_allclose(matrix.detach().numpy(), expected, atol=1e-5)
        matrix.square().sum().mul(2**16).backward()  # as half precision scales losses
        assert all(raw.grad.isfinite().all() and raw.grad.any() for raw in raws)
        empty += (expected == 0).sum()
    assert empty or strategy == Soft(1, 0.1) or variant[1] == "salient"


def worked(dtype=torch.float64, uq=UQ, ud=UD):
    """The worked example with unit vectors as the query, so that its similarities are the document's components."""
    similarities = Q @ D.T
    queries = torch.tensor(np.column_stack([np.eye(2), uq])[None], dtype=dtype)
    documents = torch.tensor(np.column_stack([similarities.T, ud])[None, None], dtype=dtype)
    return queries.requires_grad_(), documents.requires_grad_(), torch.ones(1, 2).bool(), torch.ones(1, 1, 5).bool()


FORMS = {
    "matrix": lambda score, q, d, *masks: score.matrix(q, d, *masks)[0, 0],
    "groups": lambda score, q, d, *masks: score.groups(q, d, *masks)[0, 0],
    "pairs": lambda score, q, d, asked, found: score.pairs(q, d[:, 0], asked, found[:, 0])[0],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_worked_gradients(form, dtype, way):
    queries, documents, *masks = worked(dtype)
    score = FORMS[form](AlignmentSimilarity(TopK(2), "alignment", "all", weighed=True), queries, documents, *masks)
    score.backward()
    assert score.dtype == dtype and score.item() == pytest.approx(0.760714, abs=1e-6)
    of_similarities = [[0.5625, 0.3125, 0, 0, 0], [0, 0, 0, 0, 0.125]]
    np.testing.assert_allclose(documents.grad[0, 0, :, :-1].T, of_similarities, atol=1e-6)
    np.testing.assert_allclose(queries.grad[0, :, -1], [-0.022768, 0.091071], atol=1e-6)
    np.testing.assert_allclose(documents.grad[0, 0, :, -1], [-0.058780, 0.060268, 0.006138, 0, 0.028460], atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "plain", "salient"),
    [(TopK(1), 0.9, 0.881633), (TopK(3), 0.714286, 0.613605), (TopP(0.4), 0.816667, 0.760714),
     (TopK(9), 0.468, 0.526333), (Soft(1, 0.1), 0.861403, None), (Soft(1, 0.5), 0.683482, None),
     (Soft(2, 0.1), 0.804518, None)],
)  # fmt: skip
def test_the_worked_scores(strategy, plain, salient, way):
    score = AlignmentSimilarity(strategy, "alignment", "all", weighed=True)
    ones = worked(uq=np.ones(2), ud=np.ones(5))
    assert score.matrix(*ones).item() == pytest.approx(plain, abs=1e-6)
    if salient is not None:
        assert score.matrix(*worked()).item() == pytest.approx(salient, abs=1e-6)


@every_strategy
def test_gradients_of_a_weighted_mean(strategy, way):
    queries, documents, *masks = worked()
    AlignmentSimilarity(strategy, "alignment", "all", weighed=True).matrix(queries, documents, *masks).backward()
    assert documents.grad[..., :-1].sum() == pytest.approx(1, abs=1e-12)
    for vectors in (queries, documents):  # a score does not depend on the scale of saliences
        saliences, slopes = vectors.detach()[..., -1], vectors.grad[..., -1]
        assert (saliences * slopes).sum() == pytest.approx(0, abs=1e-12)
        assert slopes.abs().max() > 1e-3
    if not isinstance(strategy, Soft):  # A_ij / Z
        saliences = torch.outer(torch.tensor(UQ), torch.tensor(UD))
        taken = documents.grad[0, 0, :, :-1].T != 0
        total = saliences[taken].sum()
        np.testing.assert_allclose(documents.grad[0, 0, :, :-1].T, torch.where(taken, saliences / total, 0))


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("normalizer", ["alignment", "query"])
@every_strategy
def test_gradients_are_slopes(strategy, normalizer, weighed, way):
    if strategy == TopK(1) and not weighed:
        strategy = TopP(0)  # the same, in our way
    rng = np.random.default_rng(0)
    masks = torch.tensor(rng.random((2, 3)) < 0.8), torch.tensor(rng.random((2, 2, 6)) < 0.8)
    queries, documents = (torch.tensor(rng.random((*mask.shape, 4)) + 0.1, requires_grad=True) for mask in masks)
    for align_over in ("all", "salient"):
        score = AlignmentSimilarity(strategy, normalizer, align_over, weighed)
        for form in (score.matrix, score.groups):
            assert torch.autograd.gradcheck(form, (queries, documents, *masks), fast_mode=True)


@every_strategy
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_mass_is_a_score_of_zero_without_gradient(strategy, variant, way):
    score = AlignmentSimilarity(strategy, *variant, weighed=True)
    for uq, ud in ((UQ * 0, UD), (UQ, UD * 0), (UQ * 1e-22, UD * 1e-22), (UQ * 1e-40, UD)):
        if variant[0] == "query" and uq[0] == 1e-22:
            continue  # their normaliser is large enough
        queries, documents, *masks = worked(torch.float32, uq, ud)
        scores = score.matrix(queries, documents, *masks)
        scores.backward()
        assert scores.item() == 0
        assert queries.grad.isfinite().all() and documents.grad.isfinite().all()
    if strategy == TopK(1) and variant == ("alignment", "all"):
        assert score.matrix(*worked(ud=np.array([1, 0, 0, 1, 0]))).item() == 0


@every_strategy
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_padding_holds_anything_and_gets_no_gradient(strategy, variant, way):
    _, _, (queries, documents, queries_mask, mask) = batch(4, empty=0)
    score = AlignmentSimilarity(strategy, *variant, weighed=True)
    clean = gradients(score.matrix, (queries, documents, queries_mask, mask))
    assert not clean[1][~queries_mask].any() and not clean[2][~mask].any()
    assert clean[1][queries_mask].any() and clean[2][mask].any()
    for garbage in (torch.nan, torch.inf, -1e30):
        dirty = [v.masked_fill(~m[..., None], garbage) for v, m in ((queries, queries_mask), (documents, mask))]
        for one, other in zip(clean, gradients(score.matrix, (*dirty, queries_mask, mask))):
            assert torch.equal(one, other)


@every_strategy
def test_a_document_without_tokens_is_last_and_harmless(strategy, way):
    _, _, (queries, documents, queries_mask, mask) = batch(6, empty=0)
    mask[0, 1] = False
    score = AlignmentSimilarity(strategy, "alignment", "salient", weighed=True)
    scores, *slopes = gradients(score.matrix, (queries, documents, queries_mask, mask))
    assert (scores[:, 1] == float(EMPTY_DOCUMENT)).all() and (scores[:, [0, 2, 3, 4, 5]].abs() < 2).all()
    assert all(slope.isfinite().all() for slope in slopes) and not slopes[1][0, 1].any()
    assert score.groups(queries, documents, queries_mask, mask)[0, 1] == float(EMPTY_DOCUMENT)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_one_best_without_saliences_is_colbert_to_the_bit(variant):
    score = AlignmentSimilarity(TopK(1), *variant, weighed=False)
    colbert = MaxSimSimilarity(MaxSim(normalize="query"), unit=True)
    for seed in range(4):
        _, _, (queries, documents, queries_mask, mask) = test_similarity.batch(seed, dim=32)
        inputs = dict.fromkeys(("matrix", "groups"), (queries, documents, queries_mask, mask))
        inputs["pairs"] = queries, documents[:, 1], queries_mask, mask[:, 1]
        for form, given in inputs.items():
            for ours, theirs in zip(*(gradients(getattr(s, form), given) for s in (score, colbert))):
                assert torch.equal(ours, theirs)


@every_strategy
def test_automatic_mixed_precision_does_not_round(strategy, way):
    _, _, inputs = batch(7, dim=64)
    score = AlignmentSimilarity(strategy, "alignment", "all", weighed=True).matrix
    inputs = (inputs[0] * 0.37, inputs[1] * 0.71, *inputs[2:])  # of more bits than bfloat16 has
    whole = gradients(score, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(whole, gradients(score, inputs)):
            assert torch.equal(one, other)
    assert score(inputs[0].bfloat16(), inputs[1].bfloat16(), *inputs[2:]).dtype == torch.float32


@pytest.mark.parametrize("strategy", [TopK(1), TopK(3), TopK(20), Soft(1), Soft(2)], ids=str)
def test_no_product_of_all_tokens_is_kept(strategy, monkeypatch):
    monkeypatch.setattr(winners, "PRODUCTS_AT_ONCE", 5000)
    queries, documents = torch.rand(4, 6, 3, requires_grad=True), torch.rand(10, 2, 100, 3, requires_grad=True)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        score = AlignmentSimilarity(strategy, "alignment", "all", weighed=True)
        scores = score.matrix(queries, documents, torch.ones(4, 6).bool(), torch.ones(10, 2, 100).bool())
    assert 0 < sum(sizes) < 4 * 6 * 20 * 100
    scores.sum().backward()
    assert queries.grad.any() and documents.grad.any()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="normalizer must be one of"):
        AlignmentSimilarity(TopK(1), "document", "all", weighed=False)
    with pytest.raises(ValueError, match="align_over must be one of"):
        AlignmentSimilarity(TopK(1), "query", "some", weighed=False)
