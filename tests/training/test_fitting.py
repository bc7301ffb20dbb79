import copy
import pickle
import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.training import Plan, trainer
from tests.training.common import StoppedError, distance, moved, stop_at, weights

unhelpful = pytest.mark.filterwarnings("ignore:training did not help")


# ------------------------------------------------------------------ what is minimised is what ranks


@pytest.mark.parametrize("rule", [{}, {"normalize": "query"}, {"similarity": "l2"}], ids=str)
def test_the_loss_is_that_of_the_scores_that_rank(colbert, toy, quick, rule):
    """Markers, expansion, masks, and rule are those of encoding: the first loss follows from the scorer's scores."""
    model = colbert(**rule)
    first = toy.topics.head(4)
    everything = first[["qid", "query"]].merge(pd.DataFrame({"docno": [f"d{i}" for i in range(4)]}), how="cross")
    ranked = model.text_scorer()(everything.assign(text=everything["docno"].map(toy.texts)))
    scores = ranked.pivot_table(values="score", index="qid", columns="docno").to_numpy(copy=True)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.arange(4)).item()
    history = model.fit(toy.pairs.select(range(4)), **quick).history
    assert history["loss"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "loss", ["contrastive", "n-way", "kl", "kl-min-max", "margin-mse", mv.training.KL(in_batch=1.0)]
)
def test_training_lowers_every_loss(colbert, toy, quick, loss):
    settings = {**quick, "max_steps": 40, "batch_size": 10, "learning_rate": 2e-2, "warmup": 0}
    history = colbert().fit(toy.taught, loss=loss, **settings).history
    assert history["step"].tolist() == list(range(1, 41))
    assert history["loss"].iloc[-3:].mean() < 0.95 * history["loss"].iloc[:3].mean()


def test_curves_have_rates_that_rise_and_fall(colbert, toy, quick):
    settings = {**quick, "max_steps": 10, "warmup": 0.5, "learning_rate": 0.5}
    history = colbert().fit(toy.pairs, **settings).history
    np.testing.assert_allclose(history["learning_rate"], [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.2, 0.1], atol=1e-9)
    assert history.columns.tolist() == ["step", "epoch", "loss", "learning_rate", "grad_norm"]
    assert np.isfinite(history.to_numpy()).all()


def test_parts_of_a_loss_have_curves(colbert, toy, quick):
    history = colbert().fit(toy.groups, loss=mv.training.NWay(in_batch=0.5), **quick).history
    np.testing.assert_allclose(history["loss"], history["own"] + history["in_batch"], atol=1e-3)


def test_epochs_say_how_many_steps_where_nothing_else_does(colbert, toy, quick):
    settings = {k: v for k, v in quick.items() if k != "max_steps"}
    history = colbert().fit(toy.pairs, **settings, epochs=2).history
    assert len(history) == 6 and history["epoch"].iloc[-1] == 2


def test_a_document_of_two_queries_does_not_meet_itself_in_a_batch(toy):
    def sampler(loss):
        return Plan(loss=loss).trainer_arguments("x", "cpu", {}, None, False).batch_sampler.value

    crossed = ("contrastive", mv.training.NWay(in_batch=1.0), mv.training.KL(in_batch=1.0))
    assert {sampler(n) for n in crossed} == {"no_duplicates"}
    assert {sampler(n) for n in ("n-way", "kl", "margin-mse")} == {"batch_sampler"}


# ------------------------------------------------------------------ the model changes, or stays


def test_half_precision_ends_with_training(colbert, toy, quick):
    """A float32 encoder that stays in memory must not go on in another arithmetic than the one that is saved."""
    model, seen = colbert(), []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    try:
        model.fit(toy.pairs, bf16=True, **quick)
        assert any(seen)
        seen.clear()
        for fitted in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert fitted.text_scorer()(toy.results)["score"].notna().all()
    finally:
        hook.remove()
    assert seen and not any(seen)


def test_stages_made_before_change_with_the_model(colbert, toy, quick):
    model = colbert()
    query, scorer, space = model.query_encoder(), model.text_scorer(), model.encoder.space
    before = query(toy.topics)["query_embs"][0], scorer(toy.results)["score"]
    assert model.fit(toy.pairs, **quick) is model
    assert not np.allclose(query(toy.topics)["query_embs"][0], before[0])
    assert not np.allclose(scorer(toy.results)["score"], before[1])
    assert model.encoder.space != space == colbert().encoder.space


@pytest.mark.parametrize("place", [None, "fitted"])
def test_an_index_built_before_refuses_the_model(colbert, toy, quick, tmp_path, place):
    model = colbert()
    index = mv.MultiVecIndex(tmp_path / "index")
    docs = [{"docno": docno, "text": text} for docno, text in toy.texts.items()]
    (model.doc_encoder() >> index).index(docs)
    pipeline = model.query_encoder() >> index.retriever()
    assert len(pipeline(toy.topics))
    model.fit(toy.pairs, path=place and tmp_path / place, **quick)
    with pytest.raises(ValueError, match="index"):
        pipeline(toy.topics)


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt])
@pytest.mark.parametrize("train", ["head", "all"])
def test_training_that_stops_changes_nothing(colbert, toy, quick, monkeypatch, error, train):
    model = colbert()
    before, space, described = weights(model), model.encoder.space, repr(model)
    stop_at(monkeypatch, 1, error)
    with pytest.raises(error):
        model.fit(toy.pairs, **{**quick, "train": train})
    assert not moved(before, weights(model)) and (model.encoder.space, repr(model)) == (space, described)
    assert model.history is None and not model.encoder.model.training


def test_a_model_that_was_passed_in_is_not_written_to(tiny, colbert, toy, quick):
    own = colbert().encoder.model
    model = mv.ColBERT(own)
    before = weights(model)
    model.fit(toy.pairs, **quick)
    assert model.encoder.model is not own and moved(before, weights(model))
    assert not moved(before, weights(mv.ColBERT(own)))


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("place", [None, "fitted"])
def test_copies_keep_trained_weights(colbert, toy, quick, tmp_path, way, place):
    model = colbert().fit(toy.pairs, path=place and tmp_path / place, **quick)
    assert moved(weights(colbert()), weights(way(model)))
    assert not moved(weights(model), weights(way(model)))


def test_training_goes_on_from_what_was_trained(colbert, toy, quick):
    model = colbert().fit(toy.pairs, **quick)
    first = weights(model)
    model.fit(toy.pairs, **quick)
    assert moved(first, weights(model)) == {"1.linear.weight"}


def test_seeds_repeat_and_differ(colbert, toy, quick):
    fitted = [weights(colbert().fit(toy.pairs, **{**quick, "train": "all", "seed": s})) for s in (0, 0, 1)]
    assert distance(fitted[0], fitted[1]) == 0 and moved(fitted[0], fitted[2])


def test_the_users_random_numbers_go_on_as_if_nothing_had_been_trained(colbert, toy, quick):
    model = colbert()
    assert model.encoder.dim == 8  # opening a checkpoint may draw weights

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    def seeded():
        random.seed(4), np.random.seed(4), torch.manual_seed(4)  # noqa: NPY002

    seeded()
    expected = drawn()
    seeded()
    model.fit(toy.pairs, **{**quick, "train": "all"})
    assert drawn() == expected


def test_nothing_is_printed_unless_asked_for(colbert, toy, quick, capfd, tmp_path):
    model = colbert()
    model.text_scorer()(toy.results)  # what the library says of a checkpoint and its queries comes once, before
    capfd.readouterr()
    model.fit(toy.pairs, **quick)
    model.fit(toy.pairs, **{**quick, "path": tmp_path / "fitted", "evaluations": 1})
    assert capfd.readouterr() == ("", "")
    colbert().fit(toy.pairs, **{**quick, "verbose": True})
    assert "training: 100%" in capfd.readouterr().err


# ------------------------------------------------------------------ settings that cannot be


@pytest.mark.parametrize(
    ("encoder", "settings", "message"),
    [
        ({"dtype": "bfloat16"}, {}, "dtype='bfloat16'"),
        ({"token_pooling": 2}, {}, "token_pooling"),
        ({"normalize": False, "similarity": "l2"}, {}, "normalises"),
        ({}, {"resume": True}, "path="),
        ({}, {"early_stopping": 1}, "valid="),
        ({}, {"loss": "hinge"}, "contrastive, n-way"),
        ({}, {"loss": "kl"}, "with_teacher"),
        ({}, {"batch_size": 0}, "batch_size must be at least 1"),
        ({}, {"early_stopping": 0}, "early_stopping must be at least 1"),
        ({}, {"evaluations": 0}, "evaluations must be at least 1"),
        ({}, {"max_steps": 0}, "max_steps must be at least 1"),
        ({}, {"epochs": 0}, "epochs must be more than 0"),
        ({}, {"warmup": 1}, "warmup is a share"),
        ({}, {"measures": []}, "at least one measure"),
        ({}, {"measures": "nDCG@10"}, "must be a list"),
        ({}, {"train": 2}, "'head', 'last:n' or 'all', got 2"),
        ({}, {"batch_size": 1}, "several queries"),
        ({}, {"mini_batch_size": 2, "loss": "n-way"}, "gradient caching"),
        ({}, {"bathc_size": 2}, "bathc_size"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_said_and_leaves_no_files(colbert, toy, quick, tmp_path, encoder, settings, message):
    normalize = {"normalize": encoder.pop("normalize")} if "normalize" in encoder else {}
    rule = {k: encoder[k] for k in ("similarity",) if k in encoder}
    made = mv.TokenEncoder(
        colbert().encoder.name, device="cpu", **normalize, **{k: v for k, v in encoder.items() if k not in rule}
    )
    place = {} if "resume" in settings else {"path": tmp_path / "fitted"}
    with pytest.raises((ValueError, TypeError), match=message):
        mv.ColBERT(made, **rule).fit(toy.pairs, **{**quick, **settings, **place})
    assert list(tmp_path.iterdir()) == []


def test_another_backend_is_refused(tiny, toy, quick):
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="backend='openvino'"):
        mv.ColBERT(tiny, device="cpu", backend="openvino").fit(toy.pairs, **quick)


def test_a_model_in_memory_is_trained_in_float32_alone(colbert, toy, quick):
    half = copy.deepcopy(colbert().encoder.model).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.bfloat16"):
        mv.ColBERT(half).fit(toy.pairs, **quick)


def test_one_query_alone_has_nothing_to_differ_from(colbert, toy, quick):
    with pytest.raises(ValueError, match="several queries"):
        colbert().fit(toy.pairs.select([0, 0, 0]), **quick)
    colbert().fit(toy.groups.select([0, 0, 0]), **quick)


@pytest.mark.parametrize("rate", [1e6, float("nan")])
def test_divergence_is_an_error(colbert, toy, quick, rate):
    model = colbert()
    before = weights(model)
    with pytest.raises(ValueError, match=r"diverged|learning rate"):
        model.fit(toy.pairs, **{**quick, "train": "all", "max_steps": 6, "learning_rate": rate})
    assert not moved(before, weights(model))


def test_divergence_stops_the_run_where_it_is_seen(colbert, toy, quick, monkeypatch):
    stop_at(monkeypatch, 50)
    with pytest.raises(ValueError, match=r"diverged: \w+ at step \d+;"):
        colbert().fit(toy.pairs, **{**quick, "train": "all", "max_steps": 60, "learning_rate": 1e12, "warmup": 0})


@pytest.mark.parametrize("fp16", [False, True])
def test_a_gradient_that_overflows_is_no_divergence_where_the_loss_is_scaled_for_it(fp16):
    bar, now = trainer.Bar(verbose=False), SimpleNamespace(global_step=1)
    told = {"loss": 1.0, "grad_norm": float("inf")}
    with nullcontext() if fp16 else pytest.raises(ValueError, match="grad_norm at step 1"):
        bar.on_log(SimpleNamespace(fp16=fp16), now, None, logs=told)
    with pytest.raises(ValueError, match="loss at step 1"):
        bar.on_log(SimpleNamespace(fp16=fp16), now, None, logs={**told, "loss": float("nan")})


def test_collections_may_number_their_topics_alike(colbert, toy, quick):
    others = pd.DataFrame({"qid": toy.topics["qid"], "query": [f"another {i}" for i in range(len(toy.topics))]})
    with pytest.raises(ValueError, match="test_qids=False"):
        colbert().fit(toy.pairs, test_topics=others, **quick)
    assert len(colbert().fit(toy.pairs, test_topics=others, test_qids=False, **quick).history)


def test_a_rate_of_zero_is_no_default(colbert, toy, quick):
    model = colbert()
    before = weights(model)
    model.fit(toy.pairs, **{**quick, "learning_rate": 0})
    assert not moved(before, weights(model))
    assert [Plan(train=t).rate for t in ("all", "last:2", "head")] == [1e-5, 5e-5, 1e-3]


def test_the_trainers_own_settings_pass_through(colbert, toy, quick):
    model = colbert()
    model.fit(toy.pairs, **quick, weight_decay=0.5, lr_scheduler_type="constant", gradient_accumulation_steps=2)
    assert model.history["learning_rate"].tolist() == [1e-2, 1e-2] and model.history["epoch"].tolist() == [2 / 3, 1]


# ------------------------------------------------------------------ test topics


@pytest.mark.parametrize("where", ["data", "results", "set"])
def test_test_topics_are_refused(colbert, toy, quick, where):
    train = toy.pairs.select(range(5))
    held = toy.results[toy.results["qid"].isin(["5", "6"])]
    valid = {"data": None, "results": (held, toy.qrels), "set": toy.pairs.select([5, 6])}[where]
    test = toy.topics.iloc[[0 if where == "data" else 5]]
    with pytest.raises(ValueError, match="not be held out"):
        colbert().fit(train, valid, test_topics=test, **quick)


@unhelpful
def test_other_test_topics_pass(colbert, toy, quick):
    held = toy.results[toy.results["qid"].isin(["5", "6"])]
    settings = {**quick, "evaluations": 1, "test_topics": toy.topics.iloc[7:]}
    colbert().fit(toy.pairs.select(range(5)), (held, toy.qrels), **settings)
