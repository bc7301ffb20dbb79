import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyterrier_mvret.scoring import MaxSim
from pyterrier_mvret.training import KL, Contrastive, MarginMSE, NWay, losses
from pyterrier_mvret.training.similarity import MaxSimSimilarity

# two queries, each with a positive and a negative: columns are the documents of both
MATRIX = [[5.0, 4, 1, 2], [0, 1, 6, 3]]
STUDENT, TEACHER = [12.0, 10, 9.5], [3.0, 1, 0]


class Given:
    """A rule whose scores are given, and the gradients that reached them."""

    def __init__(self, matrix):
        self.scores = torch.tensor(matrix, requires_grad=True)
        self._pair = -1

    def matrix(self, queries, documents, queries_mask, documents_mask):
        assert documents.shape[:2] == documents_mask.shape[:2]
        return self.scores

    def groups(self, *vectors, **masks):
        rows = torch.arange(len(self.scores))
        return self.scores.view(len(rows), len(rows), -1)[rows, rows]

    def pairs(self, *vectors, **masks):
        self._pair += 1
        return self.groups()[:, self._pair]


class Silent(nn.Module):
    """A model whose vectors do not matter."""

    def forward(self, features, **kwargs):
        return {"token_embeddings": torch.zeros(*features["input_ids"].shape, 1), **features}


def columns(queries, documents):
    one = {"input_ids": torch.zeros(queries, 1, dtype=torch.long), "attention_mask": torch.ones(queries, 1)}
    return [dict(one) for _ in range(1 + documents)]


def computed(loss, matrix, labels=None):
    """The loss of given scores, through the module that training uses."""
    given = Given(matrix)
    module = loss.build(Silent(), given, None)
    labels = None if labels is None else torch.tensor(labels)
    return module(columns(len(matrix), len(matrix[0]) // len(matrix)), labels), given


@pytest.mark.parametrize(
    ("loss", "matrix", "labels", "value"),
    [
        (Contrastive(), MATRIX, None, 0.209589),
        (NWay(), MATRIX, None, 0.180924),
        (KL(), [STUDENT], [TEACHER], 0.005883),
        (KL(normalize="min-max"), [STUDENT], [TEACHER], 0.206401),
        (KL(temperature=2.0), [STUDENT], [TEACHER], 0.015996),
        (KL(temperature=0.5), [STUDENT], [TEACHER], 0.000434),
        (MarginMSE(), [[2.5, 0.5, 0.0]], [[4.0, 2.0, 1.0]], 0.125),
    ],
    ids=str,
)
def test_worked_numbers(loss, matrix, labels, value):
    assert computed(loss, matrix, labels)[0].item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_the_in_batch_term_comes_beside_the_loss_with_its_weight(weight):
    parts, _ = computed(NWay(in_batch=weight), MATRIX)
    assert set(parts) == {"own", "in_batch"}
    assert parts["own"].item() == pytest.approx(0.180924, abs=1e-6)
    assert parts["in_batch"].item() == pytest.approx(weight * 0.037529, abs=1e-6)


@pytest.mark.parametrize("normalize", [None, "min-max"])
def test_the_in_batch_term_sees_scores_as_they_are(normalize):
    labels = [[1.0, 0.0], [0.5, 0.0]]
    parts, _ = computed(KL(normalize=normalize, in_batch=1.0), MATRIX, labels)
    alone, _ = computed(KL(normalize=normalize), MATRIX, labels)
    assert parts["own"].item() == pytest.approx(alone.item(), abs=1e-7)
    assert parts["in_batch"].item() == pytest.approx(0.037529, abs=1e-6)


def test_the_in_batch_term_leaves_out_a_querys_own_negatives():
    parts, given = computed(NWay(in_batch=1.0), MATRIX)
    parts["in_batch"].backward()
    assert given.scores.grad[0, 1] == 0 and given.scores.grad[1, 3] == 0
    assert (given.scores.grad != 0).sum() == 6


def test_the_scale_multiplies_scores():
    doubled = [[2 * score for score in row] for row in MATRIX]
    assert computed(Contrastive(scale=2.0), MATRIX)[0].item() == pytest.approx(
        computed(Contrastive(), doubled)[0].item()
    )


@given(
    scores=st.lists(st.floats(-30, 30, width=16), min_size=2, max_size=5),
    low=st.floats(-5, 5, width=16),
    factor=st.floats(0.125, 8, width=16),
)
@settings(max_examples=50, deadline=None)
def test_min_max_forgets_scale_and_place_and_keeps_equal_scores_finite(scores, low, factor):
    teacher = [[1.0] + [0.0] * (len(scores) - 1)]
    loss, given = computed(KL(normalize="min-max"), [scores], teacher)
    loss.backward()
    assert loss.isfinite() and given.scores.grad.isfinite().all()
    if max(scores) - min(scores) > 0.1:
        other, _ = computed(KL(normalize="min-max"), [[low + factor * score for score in scores]], teacher)
        assert other.item() == pytest.approx(loss.item(), abs=1e-3)


def test_a_student_that_agrees_with_its_teacher_loses_nothing():
    for loss in (KL(), KL(temperature=3.0), MarginMSE()):
        assert computed(loss, [TEACHER], [TEACHER])[0].item() == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------ on a model


def features(model, texts):
    queries, *documents = zip(*texts)
    tasks = ["query"] + ["document"] * len(documents)
    made = [
        model.preprocess(list(t), prompt=model.prompts.get(k), task=k) for t, k in zip((queries, *documents), tasks)
    ]
    return [{**part, "task": task} for part, task in zip(made, tasks)]


TEXTS = [
    ("who sat", "a cat sat on the mat", "rain"),
    ("blue sky", "the sky is blue", "a dog ran fast"),
    ("dog", "it ran", "cat"),
]


@pytest.mark.parametrize("rule", [MaxSim(), MaxSim("l2", "query")], ids=str)
@pytest.mark.parametrize("mini_batch_size", [1, 2, 8])
def test_gradient_caching_changes_no_gradient(colbert, rule, mini_batch_size):
    model = colbert().encoder.model
    scores = MaxSimSimilarity(rule, unit=True)
    found = []
    for size in (None, mini_batch_size):
        model.zero_grad()
        loss = Contrastive().build(model, scores, size)(features(model, TEXTS))
        loss.backward()
        found.append((loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    assert found[0][1].keys() == found[1][1].keys() and any(g.any() for g in found[0][1].values())
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", [Contrastive(), NWay(in_batch=1.0), KL(in_batch=0.5), MarginMSE()], ids=str)
def test_every_loss_reaches_the_head(colbert, loss):
    model = colbert().encoder.model
    model.zero_grad()
    labels = torch.tensor([[1.0, 0.0]] * 3) if loss.teacher else None
    out = loss.build(model, MaxSimSimilarity(MaxSim(), unit=True), None)(features(model, TEXTS), labels)
    (sum(out.values()) if isinstance(out, dict) else out).backward()
    assert model[1].linear.weight.grad.any()


# ------------------------------------------------------------------ settings


def test_losses_have_names():
    assert losses.named("kl-min-max") == KL(normalize="min-max")
    assert {losses.named(n).teacher for n in ("contrastive", "n-way")} == {None}
    assert [losses.named(n).teacher for n in ("kl", "margin-mse", "kl-min-max")] == ["any", "any", "unit"]
    assert losses.named(KL(temperature=2.0)) == KL(temperature=2.0)


def test_what_is_no_loss_is_said():
    with pytest.raises(ValueError, match=r"one of contrastive, n-way, .*'hinge'"):
        losses.named("hinge")
    with pytest.raises(ValueError, match="build"):
        losses.named(3)
    with pytest.raises(ValueError, match="min-max"):
        KL(normalize="z-score")


@pytest.mark.parametrize("loss", [NWay(), KL(), MarginMSE()], ids=str)
def test_gradient_caching_is_for_the_contrastive_loss(loss):
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        loss.build(Silent(), Given(MATRIX), 2)


def test_own_documents_must_be_several():
    with pytest.raises(ValueError, match="negative"):
        computed(NWay(), [[1.0]])
