"""What chooses a checkpoint: validation through PyTerrier or by a loss, early stopping, and the curves."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.training import trainer
from pyterrier_mvret.training.measures import parsed
from tests import checkpoints
from tests.training.common import distance, weights

pytestmark = pytest.mark.usefixtures("no_cards")
unhelpful = pytest.mark.filterwarnings("ignore:training did not help")
MEASURES = ["nDCG@10", pt.measures.RR(rel=1), "map_cut_5"]


@pytest.fixture
def found(monkeypatch):
    """Makes validation find these values, one a time."""

    def find(*values):
        left = iter(values)
        call = lambda self, *_, **__: {self.primary_metric: next(left)}  # noqa: E731
        monkeypatch.setattr(trainer.RankingEvaluator, "__call__", call)

    return find


def test_validation_measures_the_model_as_it_is(colbert, toy, quick):
    model = colbert()
    measures = [parsed(m) for m in MEASURES]
    before = pt.Evaluate(model.text_scorer()(toy.results), toy.qrels, metrics=measures)
    settings = {**quick, "max_steps": 6, "evaluations": 3, "measures": MEASURES, "train": "all"}
    history = model.fit(toy.pairs, (toy.results, toy.qrels), **settings).history.set_index("step")
    names = ["nDCG@10", "RR", "AP@5"]
    assert history.index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert history.loc[history["nDCG@10"].notna()].index.tolist() == [0, 2, 4, 6]
    assert np.isnan(history.loc[0, "loss"])
    for name in names:
        assert history.loc[0, name] == pytest.approx(before[name])
    after = pt.Evaluate(model.text_scorer()(toy.results), toy.qrels, metrics=measures)
    assert history["nDCG@10"].drop(0).max() == pytest.approx(after["nDCG@10"])


@pytest.mark.parametrize("best", [2, 4, 6])
def test_the_best_checkpoint_is_kept_and_not_the_last(colbert, toy, quick, found, best):
    settings = {**quick, "max_steps": 6, "evaluations": 3, "lr_scheduler_type": "constant"}
    found(0.1, *(0.5 if step == best else 0.2 for step in (2, 4, 6)))
    chosen = colbert().fit(toy.pairs, (toy.results, toy.qrels), **settings)
    shorter = colbert().fit(toy.pairs, **{**settings, "max_steps": best})
    assert distance(weights(chosen), weights(shorter)) < 1e-6
    assert len(chosen.history) == 7


@unhelpful
def test_a_training_set_validates_by_its_loss(colbert, toy, quick):
    train, valid = mv.training.split(toy.groups, 0.3)
    settings = {**quick, "max_steps": 20, "evaluations": 4, "learning_rate": 5e-2}
    model = colbert().fit(train, valid, **settings)
    history = model.history.set_index("step")["valid_loss"].dropna()
    assert history.index.tolist() == [0, 5, 10, 15, 20]
    # training goes on from the best of them, not from the last
    on = model.fit(train, valid, **{**settings, "max_steps": 1, "evaluations": 1})
    assert on.history["valid_loss"].iloc[0] == pytest.approx(history.drop(0).min(), abs=1e-4)


@unhelpful
@pytest.mark.parametrize("checkpoint", [checkpoints.pylate, checkpoints.stanford])
def test_a_validation_set_may_have_more_negatives(tmp_path, toy, quick, checkpoint):
    """All of its documents get the marker: the first loss follows from the scorer's scores."""
    model = mv.ColBERT(checkpoint(tmp_path / "checkpoint"), device="cpu")
    names = ["positive", "negative_1", "negative_2", "negative_3"]
    rows = [(row["qid"], row["query"], name, row[name]) for row in toy.groups for name in names]
    ranked = model.text_scorer()(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]))
    scores = ranked.pivot_table(values="score", index="qid", columns="docno")[names].to_numpy(copy=True)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.zeros(10, dtype=torch.long))
    history = model.fit(toy.groups.remove_columns(names[2:]), toy.groups, loss="n-way", **quick).history
    assert history["valid_loss"][0] == pytest.approx(expected.item(), abs=1e-4)


@unhelpful
def test_early_stopping_stops(colbert, toy, quick, found):
    found(0.1, 0.2, 0.3, 0.25, 0.3, 0.9)
    settings = {**quick, "max_steps": 10, "evaluations": 5, "early_stopping": 2}
    history = colbert().fit(toy.pairs, (toy.results, toy.qrels), **settings).history
    assert history["step"].iloc[-1] == 8
    assert history["nDCG@10"].dropna().tolist() == [0.1, 0.2, 0.3, 0.25, 0.3]


def test_training_that_does_not_help_is_said(colbert, toy, quick, found):
    found(0.5, 0.4, 0.5)
    with pytest.warns(UserWarning, match=r"did not help .* 0\.5000 before it and at best 0\.5000 after"):
        colbert().fit(toy.pairs, (toy.results, toy.qrels), **quick)


@pytest.mark.parametrize("evaluations", [1, 3, 10])
@pytest.mark.parametrize("steps", [5, 30])
def test_there_are_as_many_validations_as_asked_for_or_steps(colbert, toy, quick, found, evaluations, steps):
    found(*range(100))
    settings = {**quick, "max_steps": steps, "evaluations": evaluations}
    history = colbert().fit(toy.pairs, (toy.results, toy.qrels), **settings).history
    taken = history.loc[history["nDCG@10"].notna(), "step"].tolist()
    assert taken[0] == 0 and taken[-1] == steps
    every = -(-steps // evaluations)
    assert taken[1:] == sorted({*range(every, steps + 1, every), steps})


@pytest.mark.parametrize("place", [None, "fitted"])
@pytest.mark.parametrize("column", ["qid", "query", "docno", "text"])
def test_validation_results_need_their_columns(colbert, toy, quick, tmp_path, column, place):
    with pytest.raises(pt.validate.InputValidationError, match=column):
        colbert().fit(
            toy.pairs, (toy.results.drop(columns=column), toy.qrels), path=place and tmp_path / place, **quick
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("valid", [pd.DataFrame({"qid": ["1"]}), [1, 2], (1, 2, 3)], ids=str)
def test_validation_is_a_pair_or_a_set(colbert, toy, quick, valid):
    with pytest.raises(ValueError, match=r"valid is a pair \(results, qrels\) or a training set"):
        colbert().fit(toy.pairs, valid, **quick)


def test_validation_topics_need_judgements(colbert, toy, quick):
    with pytest.raises(ValueError, match="judgement"):
        colbert().fit(toy.pairs, (toy.results, toy.qrels.iloc[:0]), **quick)
    with pytest.raises(Exception, match="label"):
        colbert().fit(toy.pairs, (toy.results, toy.qrels.drop(columns="label")), **quick)
