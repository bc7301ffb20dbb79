import copy
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.training.stages import TrainableScorer
from tests.training.common import moved, weights


@pytest.fixture
def settings(quick):
    return {**quick, "n": 2}


def fitted_on(monkeypatch):
    """What a model's ``fit`` is called with, instead of training."""
    calls = []

    def fit_encoder(self, data, valid=None, **rest):
        calls.append((data, valid, rest))

    monkeypatch.setattr(mv.ColBERT, "fit_encoder", fit_encoder)
    return calls


def retrieve(toy):
    return pt.apply.generic(lambda topics: toy.results.merge(topics[["qid"]]))


def test_a_pipeline_trains_its_last_stage(colbert, toy, settings):
    model = colbert()
    scorer = model.text_scorer(**settings)
    pipeline = retrieve(toy) >> scorer
    before, ranked = weights(model), pipeline(toy.topics)
    pipeline.fit(toy.topics, toy.qrels)
    assert moved(before, weights(model)) == {"1.linear.weight"}
    assert not np.allclose(pipeline(toy.topics)["score"], ranked["score"])
    assert model.history["step"].tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:training did not help")
def test_validation_topics_choose(colbert, toy, settings):
    model = colbert()
    train, valid = mv.training.split(toy.topics, 0.3)
    (retrieve(toy) >> model.text_scorer(**settings)).fit(train, toy.qrels, valid, toy.qrels)
    assert model.history["step"].tolist() == [0, 1, 2] and "nDCG@10" in model.history
    ranked = model.text_scorer()(toy.results.merge(valid[["qid"]]))
    found = pt.Evaluate(ranked, toy.qrels.merge(valid[["qid"]]), [pt.measures.nDCG @ 10])
    assert model.history["nDCG@10"].iloc[1:].max() == pytest.approx(found["nDCG@10"])


def test_relevant_documents_that_were_not_retrieved_are_left_out(colbert, toy, monkeypatch):
    calls = fitted_on(monkeypatch)
    results = toy.results[~toy.results["docno"].isin(["d2", "d5"])]
    colbert().text_scorer(n=4, depth=9, pick="top", max_steps=7).fit(results, toy.qrels)
    ((data, valid, rest),) = calls
    assert valid is None and rest == {"max_steps": 7}
    assert set(data["qid"]) == set(map(str, range(10))) - {"2", "5"}
    known = mv.training.groups(
        toy.topics, toy.qrels[~toy.qrels["qid"].isin(["2", "5"])], results, 4, depth=9, pick="top"
    )
    assert data.to_list() == known.to_list()


def test_the_seed_is_that_of_mining_too(colbert, toy, monkeypatch):
    calls = fitted_on(monkeypatch)
    for seed in (0, 1):
        colbert().text_scorer(n=4, seed=seed).fit(toy.results, toy.qrels)
    assert [rest for _, _, rest in calls] == [{"seed": 0}, {"seed": 1}]
    assert calls[0][0].to_list() != calls[1][0].to_list()


@pytest.mark.filterwarnings("ignore:training did not help")
def test_the_text_may_lie_in_another_column(colbert, toy, settings):
    results = toy.results.rename(columns={"text": "body"})
    models = [colbert(), colbert()]
    models[0].text_scorer(**settings).fit(toy.results, toy.qrels, toy.results, toy.qrels)
    models[1].text_scorer("body", **settings).fit(results, toy.qrels, results, toy.qrels)
    pd.testing.assert_frame_equal(models[0].history, models[1].history)
    assert not moved(weights(models[0]), weights(models[1]))
    with pytest.raises(Exception, match="text"):
        models[0].text_scorer().fit(results, toy.qrels)


def test_rows_that_lack_the_query_find_it_in_others(colbert, toy, monkeypatch):
    """As in what ``A + B`` returns."""
    calls = fitted_on(monkeypatch)
    gaps = toy.results.assign(query=toy.results["query"].where(toy.results["rank"] > 3))
    colbert().text_scorer(n=2).fit(gaps, toy.qrels, gaps, toy.qrels)
    colbert().text_scorer(n=2).fit(toy.results, toy.qrels, toy.results, toy.qrels)
    assert calls[0][0].to_list() == calls[1][0].to_list()
    pd.testing.assert_frame_equal(calls[0][1][0], calls[1][1][0])


def test_too_few_documents_are_an_error_or_drop_the_topic(colbert, toy, monkeypatch):
    calls = fitted_on(monkeypatch)
    shallow = toy.results[(toy.results["rank"] < 12) | (toy.results["qid"] == "1")]
    with pytest.raises(ValueError, match="negatives"):
        colbert().text_scorer(n=12).fit(shallow, toy.qrels)
    colbert().text_scorer(n=12, short="drop").fit(shallow, toy.qrels)
    assert set(calls[0][0]["qid"]) == {"1"}
    with pytest.raises(ValueError, match="nothing to train on"):
        colbert().text_scorer().fit(toy.results.iloc[:0], toy.qrels)


def test_the_input_stays_as_it_is(colbert, toy, monkeypatch):
    fitted_on(monkeypatch)
    before = toy.results.copy()
    colbert().text_scorer(n=2).fit(toy.results, toy.qrels)
    pd.testing.assert_frame_equal(toy.results, before)


# ------------------------------------------------------------------ the stage as a value


def test_stages_are_equal_where_their_settings_are(colbert):
    model = colbert()
    assert model.text_scorer() == model.text_scorer() == colbert().text_scorer()
    assert model.text_scorer(n=2) == model.text_scorer(n=2) != model.text_scorer()
    assert model.text_scorer("body") != model.text_scorer()
    assert model.text_scorer() != colbert(normalize="query").text_scorer()
    assert hash(model.text_scorer(n=2)) == hash(model.text_scorer(n=2))
    assert len({model.text_scorer(), model.text_scorer(), model.text_scorer("body")}) == 2


def test_it_is_an_estimator_that_scores_without_being_fitted(colbert, toy):
    scorer = colbert().text_scorer(max_steps=3)
    assert isinstance(scorer, pt.Estimator) and isinstance(scorer, TrainableScorer)
    assert "max_steps" in repr(scorer)
    ranked = scorer(toy.results)
    pd.testing.assert_frame_equal(ranked, colbert().text_scorer()(toy.results))
    assert scorer(toy.results.iloc[:0]).columns.tolist() == ranked.columns.tolist()


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_of_a_fitted_stage_score_the_same(colbert, toy, settings, way):
    scorer = colbert().text_scorer(**settings).fit(toy.results, toy.qrels)
    pd.testing.assert_frame_equal(way(scorer)(toy.results), scorer(toy.results))


@pytest.mark.parametrize(("loss", "unit"), [("kl", False), ("kl-min-max", True), ("margin-mse", False)])
def test_a_teacher_scores_what_was_mined(colbert, toy, monkeypatch, loss, unit):
    calls = fitted_on(monkeypatch)
    teacher = pt.apply.doc_score(lambda row: float(len(row["text"])))
    colbert().text_scorer(n=2, loss=loss, teacher=teacher).fit(toy.results, toy.qrels)
    ((data, _, rest),) = calls
    assert rest == {"loss": loss}
    lengths = [[len(row[name]) for name in ("positive", "negative_1", "negative_2")] for row in data]
    if unit:
        assert all(0 <= score <= 1 for row in data for score in row["scores"])
        assert [np.argmax(row["scores"]) for row in data] == [np.argmax(row) for row in lengths]
    else:
        assert [row["scores"] for row in data] == lengths


def test_the_teacher_reads_the_scorers_column(colbert, toy, monkeypatch):
    calls = fitted_on(monkeypatch)
    teacher = pt.apply.doc_score(lambda row: float(len(row["body"])))
    results = toy.results.rename(columns={"text": "body"})
    colbert().text_scorer("body", n=1, loss="kl", teacher=teacher).fit(results, toy.qrels)
    assert [row["scores"][0] for row in calls[0][0]] == [len(row["positive"]) for row in calls[0][0]]
