"""Training with a sparse alignment in the loss, and of salience heads."""

import copy

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import salience
from tests.encoders.test_salience import with_heads
from tests.methods.test_colbert import corpus
from tests.training.common import StoppedError, stop_at


@pytest.fixture
def quick(no_cards):
    return {"verbose": False, "batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "train": "head"}


def losses(model):
    return model.history["loss"].dropna().to_numpy()


def test_training_without_salience_is_colberts(tiny, toy, quick):
    aligner, colbert = mv.Aligner(tiny, device="cpu"), mv.ColBERT(tiny, device="cpu", normalize="query")
    aligner.fit_encoder(toy.pairs, gate="none", **quick)
    colbert.fit(toy.pairs, loss=mv.training.Contrastive(scale=20), **quick)
    np.testing.assert_array_equal(losses(aligner), losses(colbert))
    assert aligner.encoder.space.rpartition("#")[2] == colbert.encoder.space.rpartition("#")[2]
    assert not aligner.encoder.has_salience


@pytest.mark.parametrize("alignment", [mv.TopK(1), mv.TopK(3), mv.TopP(0.3), mv.Soft(1, 0.1)], ids=repr)
def test_the_first_loss_is_that_of_the_scores(tiny, toy, quick, alignment):
    import torch

    aligner = mv.Aligner(with_heads(tiny), alignment, normalizer="query")
    results = toy.results[toy.results["qid"].isin([str(i) for i in range(4)])]
    results = results[results["docno"].isin([f"d{i}" for i in range(4)])]
    found = aligner.text_scorer()(results).sort_values(["qid", "docno"])
    scores = found["score"].to_numpy().reshape(4, 4)
    expected = torch.nn.functional.cross_entropy(torch.tensor(scores * 20), torch.arange(4)).item()
    data = toy.pairs.select(range(4))
    aligner.fit_encoder(data, **{**quick, "max_steps": 1})
    assert losses(aligner)[0] == pytest.approx(expected, rel=1e-4)


def test_heads_are_trained_with_the_head_and_alone(tiny, toy, quick, tmp_path):
    aligner = mv.Aligner(tiny, device="cpu", normalizer="query")
    aligner.fit_encoder(toy.pairs, alpha_d=0.3, gate="relu", path=tmp_path / "model", **quick)
    heads = salience.heads_of(aligner.encoder.model)
    assert (heads.gate, heads.document_share) == ("relu", 0.3)
    again = mv.Aligner.load(tmp_path / "model", device="cpu")
    assert again == mv.Aligner.load(tmp_path / "model", device="cpu")
    assert again.normalizer == "query"
    before = again.doc_encoder()(pd.DataFrame(corpus()))
    again.fit_encoder(toy.pairs, gate="lp", **{**quick, "train": "salience"})
    after = again.doc_encoder()(pd.DataFrame(corpus()))
    for a, b in zip(before["doc_embs"], after["doc_embs"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any(not np.allclose(a, b) for a, b in zip(before["doc_weights"], after["doc_weights"], strict=True))
    assert salience.heads_of(again.encoder.model).gate == "lp"


def test_saliences_without_a_budget_are_driven_down_by_l1(tiny, toy, quick):
    means = {}
    for l1 in (0.0, 10.0):
        aligner = mv.Aligner(tiny, device="cpu")
        aligner.fit_encoder(toy.pairs, gate="l1", l1=l1, **quick)
        means[l1] = np.concatenate(aligner.doc_encoder()(pd.DataFrame(corpus()))["doc_weights"].tolist()).mean()
    assert means[10.0] < means[0.0] - 0.01
    with pytest.raises(ValueError, match="gate='l1'"):
        mv.Aligner(tiny, device="cpu").fit_encoder(toy.pairs, l1=1.0, **quick)


@pytest.mark.parametrize(
    ("settings", "linear", "queries", "documents"),
    [
        ({"train": "all", "learning_rate": 1e-5}, 1e-5, 1e-2, 1e-2),
        ({"learning_rate_mapping": {"linear": 1e-4}}, 1e-4, 1e-2, 1e-2),
        ({"learning_rate_mapping": {"query_salience": 3.0}}, 1e-3, 3.0, 1e-2),
        ({"train": "salience"}, None, 1e-3, 1e-3),
        ({"train": "salience", "learning_rate": None}, None, 1e-2, 1e-2),
        ({"gate": "l1", "l1": 0.1}, 1e-3, 1e-2, 1e-2),
    ],
    ids=str,
)  # fmt: skip
def test_heads_learn_at_a_rate_of_their_own(tiny, toy, quick, monkeypatch, settings, linear, queries, documents):
    from pyterrier_mvret.training.trainer import PartTrainer

    create, found = PartTrainer.create_optimizer, {}

    def created(self, *args, **kwargs):
        optimizer = create(self, *args, **kwargs)
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        for group in optimizer.param_groups:
            found.update({names[id(weight)]: (group["lr"], group["weight_decay"]) for weight in group["params"]})
        return optimizer

    monkeypatch.setattr(PartTrainer, "create_optimizer", created)
    settings = {**quick, "max_steps": 1, "weight_decay": 0.3, "learning_rate": 1e-3, **settings}
    mv.Aligner(tiny, device="cpu").fit_encoder(toy.pairs, **settings)
    assert found.get("1.linear.weight") == (None if linear is None else (linear, 0.3))
    for head, rate in (("4.query_salience", queries), ("4.document_salience", documents)):
        assert (found[f"{head}.weight"], found[f"{head}.bias"]) == ((rate, 0.3), (rate, 0))


def test_heads_that_no_score_depends_on_are_not_trained(tiny, toy, quick):
    for model, settings in (
        (mv.Aligner(with_heads(tiny), salience=False), {}),
        (mv.Aligner(with_heads(tiny)), {"gate": "none"}),
        (mv.Aligner(tiny, device="cpu"), {"gate": "none"}),
        (mv.ColBERT(with_heads(tiny)), {}),
    ):
        with pytest.raises(ValueError, match="train='salience' needs salience heads"):
            model.fit_encoder(toy.pairs, **{**quick, "train": "salience", **settings})
    with pytest.raises(ValueError, match="gate='l1' that weigh in scores"):
        mv.Aligner(with_heads(tiny, gate="l1"), salience=False).fit_encoder(toy.pairs, l1=1.0, **quick)


def test_heads_that_are_there_are_left_out_by_the_gate(tiny, toy, quick):
    aligner, colbert = mv.Aligner(with_heads(tiny)), mv.ColBERT(tiny, device="cpu", normalize="query")
    before = salience.heads_of(aligner.encoder.model).document_salience.weight.clone()
    aligner.fit_encoder(toy.pairs, gate="none", **quick)
    colbert.fit(toy.pairs, loss=mv.training.Contrastive(scale=20), **quick)
    np.testing.assert_array_equal(losses(aligner), losses(colbert))
    assert (salience.heads_of(aligner.encoder.model).document_salience.weight == before).all()
    scores = [model.text_scorer()(toy.results)["score"] for model in (aligner, colbert)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_gradient_caching_reaches_the_heads(tiny, toy, quick):
    trained = []
    for size in (None, 2):
        aligner = mv.Aligner(tiny, device="cpu", normalizer="query")
        aligner.fit_encoder(toy.pairs, mini_batch_size=size, **quick)
        trained.append(salience.heads_of(aligner.encoder.model).document_salience.weight.detach().numpy())
    np.testing.assert_allclose(*trained, atol=1e-5)
    assert not np.allclose(trained[0], salience.heads_of(fresh(tiny)).document_salience.weight.detach().numpy())


def fresh(tiny):
    model = copy.deepcopy(mv.TokenEncoder(tiny, device="cpu").model)
    salience.SalienceSettings()(model)
    return model


def test_a_set_validates_by_its_loss_with_saliences(tiny, toy, quick):
    aligner = mv.Aligner(tiny, device="cpu")
    aligner.fit_encoder(toy.pairs, toy.pairs, evaluations=1, **quick)
    assert aligner.history["valid_loss"].notna().sum() >= 1


def test_a_run_with_other_heads_is_not_resumed(tiny, toy, quick, tmp_path):
    mv.Aligner(tiny, device="cpu").fit_encoder(toy.pairs, path=tmp_path / "m", **quick)
    again = mv.Aligner(tiny, device="cpu").fit_encoder(toy.pairs, path=tmp_path / "m", resume=True, **quick)
    assert again.encoder.has_salience
    with pytest.raises(ValueError, match="prepare was"):
        mv.Aligner(tiny, device="cpu").fit_encoder(toy.pairs, path=tmp_path / "m", resume=True, alpha_d=0.2, **quick)


@pytest.mark.parametrize(
    "settings",
    [{"train": "all"}, {"mini_batch_size": 2}, {"gate": "l1", "l1": 0.1, "gradient_accumulation_steps": 2},
     {"train": "salience", "bf16": True}],
    ids=str,
)  # fmt: skip
def test_a_stopped_run_with_heads_ends_as_a_whole_one(tiny, toy, quick, tmp_path, settings):
    settings = {**quick, "max_steps": 8, "evaluations": 4, "learning_rate": 1e-3, **settings}
    whole, parts = mv.Aligner(tiny, device="cpu"), mv.Aligner(tiny, device="cpu")
    whole.fit_encoder(toy.pairs, path=tmp_path / "whole", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        stop_at(patch, 5)
        parts.fit_encoder(toy.pairs, path=tmp_path / "parts", **settings)
    assert not parts.encoder.has_salience
    parts.fit_encoder(toy.pairs, path=tmp_path / "parts", resume=True, **settings)
    assert parts.encoder.space.rpartition("#")[2] == whole.encoder.space.rpartition("#")[2]
    np.testing.assert_allclose(losses(parts), losses(whole), atol=1e-6)


def test_states_are_shared_by_runs_with_and_without_heads(tiny, toy, quick):
    cache, runs = mv.training.StateCache(), []
    for states in (cache, 0):
        aligner, colbert = mv.Aligner(tiny, device="cpu"), mv.ColBERT(tiny, device="cpu")
        alone = mv.Aligner(with_heads(tiny))
        aligner.fit_encoder(toy.pairs, state_cache=states, **quick)
        seen = len(cache)
        colbert.fit(toy.pairs, state_cache=states, **quick)
        alone.fit_encoder(toy.pairs, state_cache=states, **{**quick, "train": "salience"})
        assert len(cache) == seen > 0
        runs.append([losses(model) for model in (aligner, colbert, alone)])
    np.testing.assert_allclose(*runs, atol=1e-6)


@pytest.mark.filterwarnings("ignore:training did not help")
@pytest.mark.parametrize("train", ["all", "salience"])
@pytest.mark.parametrize("rule", [{}, {"alignment": mv.Soft(2, 0.1), "normalizer": "query", "align_over": "salient"}])
def test_what_is_validated_is_what_ranks(tiny, toy, quick, rule, train):
    aligner = mv.Aligner(with_heads(tiny), **rule)

    def measured():
        return pt.Evaluate(aligner.text_scorer()(toy.results), toy.qrels, ["ndcg_cut_10"])["ndcg_cut_10"]

    before = measured()
    aligner.fit_encoder(toy.pairs, (toy.results, toy.qrels), evaluations=2, **{**quick, "train": train})
    values = aligner.history["nDCG@10"].dropna().to_numpy()
    assert values[0] == pytest.approx(before)
    assert values[1:].max() == pytest.approx(measured())


def test_a_pipeline_trains_it(tiny, toy, quick):
    aligner = mv.Aligner(tiny, device="cpu")
    pipeline = pt.apply.generic(lambda q: toy.results.merge(q[["qid"]])) >> aligner.text_scorer(n=2, **quick)
    pipeline.fit(toy.topics, toy.qrels)
    assert aligner.encoder.has_salience
    assert len(losses(aligner)) == 3
