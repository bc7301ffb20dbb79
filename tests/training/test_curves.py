"""The trainer's log as a frame and as a drawing."""

import numpy as np
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.training import curves


def test_curves_put_a_steps_entries_in_one_row():
    log = [
        {"step": 0, "epoch": 0, "eval_nDCG@10": 0.1, "eval_runtime": 3.0},
        {"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 0.1},
        {"step": 1, "epoch": 0.5, "eval_loss": 1.5, "eval_samples_per_second": 3.0},
        {"step": 2, "epoch": 1.0, "train_runtime": 9.0, "train_loss": 2.0},
    ]
    history = curves.from_log(log)
    assert history["step"].tolist() == [0, 1, 2]
    assert history.columns.tolist() == ["step", "epoch", "nDCG@10", "loss", "learning_rate", "valid_loss"]
    assert history.loc[1, ["loss", "valid_loss"]].tolist() == [2.0, 1.5]


def test_terms_of_the_validation_loss_are_not_those_of_training():
    log = [
        {"step": 1, "loss": 2.5, "ranking": 2.0, "l1": 0.5},
        {"step": 1, "eval_loss": 5.0, "eval_ranking": 4.0, "eval_l1": 1.0},
        {"step": 2, "loss": 3.0, "own": 1.0, "in_batch": 2.0, "eval_own": 7.0, "eval_in_batch": 8.0},
    ]
    history = curves.from_log(log)
    names = ["loss", "ranking", "l1", "valid_loss", "valid_ranking", "valid_l1"]
    assert history.loc[0, names].tolist() == [2.5, 2, 0.5, 5, 4, 1]
    assert history.loc[1, ["own", "in_batch", "valid_own", "valid_in_batch"]].tolist() == [1, 2, 7, 8]


def test_the_drawing_has_what_was_logged():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    log = [
        {"step": 0, "eval_nDCG@10": 0.1},
        {"step": 1, "loss": 2.0, "learning_rate": 0.1},
        {"step": 2, "loss": 1.0, "eval_nDCG@10": 0.3},
    ]
    ax = mv.training.plot(curves.from_log(log))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 2.0], [2, 1.0]])
    other = next(a for a in ax.figure.axes if a is not ax)
    assert other.get_ylabel() == "nDCG@10"
    np.testing.assert_array_equal(other.lines[0].get_xydata(), [[0, 0.1], [2, 0.3]])
    pyplot.close(ax.figure)
