"""LASPAR's training on the common path, on a tiny transformer."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from sentence_transformers import CrossEncoder

import pyterrier_mvret as mv
from pyterrier_mvret.methods.laspar import Laspar
from pyterrier_mvret.training import latent_loss
from tests import checkpoints
from tests.training.conftest import toy  # noqa: F401 (a fixture)

pytestmark = pytest.mark.filterwarnings("ignore:the latent head is untrained")
LOSS = mv.training.LatentSparse(query_weight=0.0, document_weight=0.0)


@pytest.fixture
def laspar(tiny):
    return lambda **settings: Laspar(tiny, device="cpu", **{"latents": 200, "k_doc": 12, "k_query": 6, **settings})


@pytest.fixture
def quick():
    return {"verbose": False, "batch_size": 5, "max_steps": 6, "learning_rate": 1e-2}


def test_training_lowers_the_loss_and_leaves_the_transformer(laspar, toy, quick, recwarn):  # noqa: F811
    model = laspar()
    model.fit(toy.groups, loss=LOSS, **{**quick, "max_steps": 60, "learning_rate": 0.2})
    assert not [w for w in recwarn if "untrained" in str(w.message)]
    history = model.history
    assert history["loss"].iloc[-5:].mean() < 0.8 * history["loss"].iloc[:5].mean()
    assert {"query_active", "document_latents", "document_empty", "ranking"} <= set(history.columns)
    assert history["document_active"].max() <= 12 and history["document_latents"].max() <= 200
    assert model.head.trained
    fresh = laspar()
    for name, weight in fresh.encoder.model[0].named_parameters():
        if "pooler" in name:  # drawn anew at each loading, and not used
            continue
        torch.testing.assert_close(dict(model.encoder.model[0].named_parameters())[name], weight, rtol=0, atol=0)
    assert not torch.equal(model.head.weight, fresh.head.weight)
    assert model.space != fresh.space


@pytest.mark.parametrize("documents", ["flops", "equipartition"])
@pytest.mark.parametrize("distillation", ["kl", "margin-mse"])
def test_teachers_and_penalties(laspar, toy, quick, documents, distillation):  # noqa: F811
    loss = mv.training.LatentSparse(distillation=distillation, documents=documents, warmup=0)
    model = laspar().fit(toy.taught, loss=loss, **quick)
    terms = {"ranking", "distillation", "query_l1", documents}
    assert terms <= set(model.history.columns)
    np.testing.assert_allclose(model.history[sorted(terms)].sum(axis=1), model.history["loss"], atol=2e-3)


def test_penalties_make_vectors_sparse(laspar, toy, quick):  # noqa: F811
    """Only those: with the largest k alone, texts keep k."""
    active = []
    for weight in (0.0, 0.3):
        loss = mv.training.LatentSparse(0.05, query_weight=weight, document_weight=weight, warmup=0)
        model = laspar(normalize=False).fit(toy.groups, loss=loss, **{**quick, "max_steps": 60, "learning_rate": 0.05})
        toks = model.doc_encoder()(pd.DataFrame({"docno": toy.texts.keys(), "text": toy.texts.values()}))["toks"]
        active.append(np.mean([sum(one.values()) for one in toks]))
    assert active[1] < 0.5 * active[0]


def test_validation_ranks_with_sparse_vectors_and_a_stopped_run_goes_on(laspar, toy, quick, tmp_path):  # noqa: F811
    rest = {**quick, "loss": LOSS, "evaluations": 2}
    valid = (toy.results, toy.qrels)
    whole = laspar().fit(toy.pairs, valid, path=tmp_path / "whole", **rest)
    assert whole.history["nDCG@10"].notna().sum() >= 2
    reopened = Laspar.load(tmp_path / "whole", device="cpu")
    assert reopened.head.trained and reopened.head.k_doc == 12
    results = toy.results.head(20)
    expected = whole.text_scorer()(results)["score"]
    np.testing.assert_allclose(reopened.text_scorer()(results)["score"], expected, atol=1e-6)
    again = laspar().fit(toy.pairs, valid, path=tmp_path / "whole", resume=True, **rest)
    np.testing.assert_allclose(again.text_scorer()(results)["score"], expected, atol=1e-6)


def test_penalties_rise_by_steps_of_the_optimiser_also_of_a_run_that_was_stopped(
    laspar,
    toy,  # noqa: F811
    quick,
    tmp_path,
    monkeypatch,
):
    seen, forward = [], latent_loss.LatentLoss.forward

    def counted(self, *args):
        seen.append(self.progress)
        if len(seen) == 10:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(latent_loss.LatentLoss, "forward", counted)
    loss = mv.training.LatentSparse(query_weight=0.1, document_weight=1.0)
    how = {**quick, "batch_size": 2, "gradient_accumulation_steps": 2, "evaluations": 3, "loss": loss}
    with pytest.raises(KeyboardInterrupt):
        laspar().fit(toy.groups, path=tmp_path / "stopped", **how)
    assert seen == pytest.approx(np.array([0, 0, 1, 1, 2, 3, 3, 4, 4, 5]) / 6)  # an epoch is of five batches
    stopped = laspar().fit(toy.groups, path=tmp_path / "stopped", resume=True, **how)
    assert seen[10:] == pytest.approx(np.array([4, 4, 5]) / 6)
    whole = laspar().fit(toy.groups, path=tmp_path / "whole", **how)
    torch.testing.assert_close(stopped.head.weight, whole.head.weight, rtol=0, atol=0)


def test_the_encoder_may_be_trained_as_well(laspar, toy, quick):  # noqa: F811
    model = laspar(pooling="attention").fit(toy.pairs, train="all", **quick)
    assert not torch.equal(next(model.encoder.model[0].parameters()), next(laspar().encoder.model[0].parameters()))
    assert model.head.attention.abs().sum() > 0


@pytest.mark.parametrize(("train", "rate"), [("head", 1e-2), ("all", 1e-5)])
def test_the_head_alone_learns_faster_than_other_heads(laspar, toy, quick, train, rate):  # noqa: F811
    model = laspar().fit(toy.pairs, train=train, **{**quick, "learning_rate": None})
    assert rate / 2 < model.history["learning_rate"].max() <= rate
    moved = {  # by Adam, some six steps of the rate, which falls
        name: (weight - dict(laspar().encoder.model.named_parameters())[name]).abs().max().item()
        for name, weight in model.encoder.model.named_parameters()
        if "pooler" not in name
    }
    for name, far in moved.items():
        own = 1e-2 if name.startswith("1.") else rate if train == "all" and name.startswith("0.") else 0
        assert far <= 6.1 * own
    assert moved["1.weight"] > 1e-2 and (moved["0.model.encoder.layer.1.output.dense.weight"] > 0) == (train == "all")


@pytest.mark.parametrize(
    ("settings", "training", "message"),
    [
        ({"rows": "float16"}, {}, "cannot be trained"),
        ({"normalize_before_topk": True}, {}, "cannot be trained"),
        ({}, {"mini_batch_size": 2}, "gradient caching"),
        ({}, {"loss": mv.training.LatentSparse(distillation="kl")}, "scores"),
        ({}, {"loss": "contrastive"}, "sparse vectors take loss=mv.training.LatentSparse"),
        ({"k_doc": 200}, {"loss": mv.training.LatentSparse(documents="equipartition")}, "k_doc=200, latents=200"),
    ],
)
def test_what_cannot_be_trained(laspar, toy, quick, settings, training, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        laspar(**settings).fit(toy.pairs, **quick, **training)


def test_a_collapse_is_an_error(laspar, toy, quick):  # noqa: F811
    model = laspar(normalize=False)
    model.encoder.model  # noqa: B018
    with torch.no_grad():
        model.head.offset.fill_(-100.0)
    with pytest.raises(ValueError, match="training collapsed"):
        model.fit(toy.pairs, **quick)


@pytest.mark.parametrize("distillation", ["kl", "margin-mse"])
def test_a_cross_encoder_is_a_teacher(laspar, toy, quick, tmp_path, distillation):  # noqa: F811
    """From the library's own model, through a pipeline, into a ranking that is more like the teacher's."""
    reader = CrossEncoder(str(checkpoints.cross_encoder(tmp_path / "cross")), device="cpu")
    teacher = pt.apply.doc_score(
        lambda part: reader.predict(list(zip(part["query"], part["text"])), activation_fn=torch.nn.Identity()),
        batch_size=8,
    )
    data = mv.training.with_teacher(toy.groups, teacher)
    asked = pd.DataFrame(
        [
            (row["qid"], row["query"], docno, toy.texts[docno], score)
            for row in data
            for docno, score in zip(row["docnos"], row["scores"])
        ],
        columns=["qid", "query", "docno", "text", "teacher"],
    )
    logits = reader.predict(list(zip(asked["query"], asked["text"])), activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(asked["teacher"], logits, atol=1e-5)

    def agreement(model):
        scored = model.text_scorer()(asked).groupby("qid")
        return np.mean([group["score"].corr(group["teacher"], method="spearman") for _, group in scored])

    how = {"distillation": distillation, "distillation_weight": 100.0, "teacher_temperature": 1.0}  # of logits
    model = laspar(k_doc=30, k_query=30, normalize=False)
    before = agreement(model)
    loss = mv.training.LatentSparse(query_weight=0.0, documents=None, **how)
    model.fit(data, loss=loss, train="all", **{**quick, "max_steps": 80, "learning_rate": 5e-3})
    lowered = model.history["distillation"]
    assert lowered.iloc[-5:].mean() < 0.5 * lowered.iloc[:5].mean()
    assert agreement(model) > before + 0.2


@pytest.mark.parametrize("distillation", ["kl", "margin-mse"])
def test_a_teacher_of_one_document_has_nothing_to_say(laspar, toy, quick, distillation):  # noqa: F811
    alone = toy.pairs.add_column("scores", [[1.0]] * len(toy.pairs))
    with pytest.raises(ValueError, match="distillation needs at least one negative"):
        laspar().fit(alone, loss=mv.training.LatentSparse(distillation=distillation), **quick)


@pytest.mark.parametrize(("normalize", "temperature"), [(True, 0.05), (False, 1.0)])
def test_scores_are_divided_by_what_fits_their_range(laspar, toy, quick, normalize, temperature):  # noqa: F811
    none = {"query_weight": 0.0, "document_weight": 0.0}
    first = {**quick, "max_steps": 1}
    taken, named = (
        laspar(normalize=normalize).fit(toy.groups, loss=mv.training.LatentSparse(**none, **how), **first).history
        for how in ({}, {"temperature": temperature})
    )
    assert taken["ranking"].tolist() == named["ranking"].tolist()


def held_still(model, active):
    """Makes latents of all texts the same: those of positive bias, whatever the states are."""
    model.encoder.model  # noqa: B018
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.offset.fill_(-1.0)
        model.head.offset[:active] = torch.linspace(1, 2, active)
    return model


@pytest.mark.parametrize(("active", "settings"), [(1, {}), (15, {}), (15, {"normalize": False})])
def test_documents_of_the_same_latents_are_warned_of_once(laspar, toy, quick, active, settings, recwarn):  # noqa: F811
    held_still(laspar(**settings), active).fit(toy.pairs, **quick)
    told = [str(w.message) for w in recwarn if "all documents" in str(w.message)]
    assert len(told) == 1 and f"up to step 1 have the same latents ({min(active, 12)} of 200)" in told[0]


def test_documents_that_differ_or_have_all_latents_are_not_warned_of(laspar, toy, quick, recwarn):  # noqa: F811
    laspar().fit(toy.pairs, **quick)
    held_still(laspar(latents=15, k_doc=15), 15).fit(toy.pairs, **quick)  # told apart by weights alone
    assert not [w for w in recwarn if "all documents" in str(w.message)]


def test_a_matrix_that_is_not_finite_is_no_collapse(laspar, toy, quick, recwarn):  # noqa: F811
    model = laspar()
    model.encoder.model  # noqa: B018
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="training diverged"):
        model.fit(toy.pairs, **quick)
    assert not [w for w in recwarn if "all documents" in str(w.message)]


def test_the_bar_says_how_sparse_vectors_are(laspar, toy, quick, capsys):  # noqa: F811
    model = laspar().fit(toy.pairs, **{**quick, "verbose": True})
    last = model.history.iloc[-1]
    shown = capsys.readouterr().err
    for name in ("query_active", "query_latents", "document_active", "document_latents"):
        assert f"{name}={last[name]:g}" in shown


def test_a_validation_set_is_measured_alike_at_every_step_and_is_not_counted(laspar, toy, quick):  # noqa: F811
    loss = mv.training.LatentSparse(query_weight=1.0, document_weight=1.0, warmup=1.0)
    model = laspar()
    rest = {**quick, "loss": loss, "evaluations": 3, "learning_rate": 1e-9, "logging_steps": 1}
    with pytest.warns(UserWarning, match="did not help"):
        history = model.fit(toy.pairs.select(range(5)), toy.groups, **rest).history
    measured = history[["valid_loss", "valid_query_l1", "valid_flops"]].dropna()
    assert len(measured) == 4 and (measured > 0).all().all()
    np.testing.assert_allclose(measured, [measured.iloc[0]] * 4, rtol=1e-3)  # it has not moved
    seen = model.doc_encoder()(pd.DataFrame({"docno": "d", "text": toy.pairs.select(range(5))["positive"]}))["toks"]
    assert history["document_latents"].dropna().unique().tolist() == [len(set().union(*seen))]


def test_a_loss_of_sparse_vectors_needs_them(tiny, toy, quick):  # noqa: F811
    with pytest.raises(ValueError, match="latent head"):
        mv.ColBERT(tiny, device="cpu").fit(toy.pairs, loss="latent-sparse", train="all", **quick)


def test_a_large_matrix_moves_by_the_rows_that_were_kept(laspar, toy, quick, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(latent_loss, "_DENSE", 100)
    fresh, settings = laspar(k_doc=2, k_query=2), {**quick, "learning_rate": 0.2, "loss": LOSS}
    model = laspar(k_doc=2, k_query=2).fit(toy.groups, **{**settings, "max_steps": 1, "warmup": 0})
    moved = (model.head.weight != fresh.head.weight).any(1)
    assert 0 < moved.sum() < 200
    assert moved.sum() <= model.history["query_latents"].iloc[0] + model.history["document_latents"].iloc[0]
    whole = laspar().fit(toy.groups, path=tmp_path / "model", **{**settings, "max_steps": 60})
    assert whole.history["loss"].iloc[-5:].mean() < 0.8 * whole.history["loss"].iloc[:5].mean()
    unclipped = laspar(k_doc=2, k_query=2).fit(toy.groups, **{**settings, "max_grad_norm": 0})
    assert unclipped.history["grad_norm"].gt(0).all()
    for made in (model, whole, unclipped):
        assert not made.head.sparse_gradient
