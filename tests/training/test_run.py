import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.training import trainer
from pyterrier_mvret.training.run import Run
from tests.training.common import StoppedError, distance, moved, stop_at, weights

pytestmark = pytest.mark.usefixtures("no_cards")

# three batches an epoch: steps 4, 5, 7 and 8 lie within later ones
RUN = {"verbose": False, "batch_size": 4, "max_steps": 10, "evaluations": 5, "learning_rate": 1e-3, "train": "all"}
unhelpful = pytest.mark.filterwarnings("ignore:training did not help")


def stopped(model, data, step, valid=None, **settings):
    """A run with a path that comes to this step and no further."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        stop_at(patch, step)
        model.fit(data, valid, **settings)


def same(a, b, tolerance=1e-6):
    assert distance(weights(a), weights(b)) <= tolerance
    pd.testing.assert_frame_equal(a.history, b.history, atol=1e-5, check_dtype=False)


# ------------------------------------------------------------------ the result


def test_the_result_opens_as_any_checkpoint(colbert, toy, quick, tmp_path):
    model = colbert().fit(toy.pairs, path=tmp_path / "fitted", **quick)
    in_memory = colbert().fit(toy.pairs, **quick)
    expected = in_memory.text_scorer()(toy.results)["score"]
    place = tmp_path / "fitted"
    for opened in (model, mv.ColBERT.load(place), mv.ColBERT(place), mv.ColBERT(str(place), device="cpu")):
        np.testing.assert_allclose(opened.text_scorer()(toy.results)["score"], expected, atol=1e-5)
        assert opened.encoder.space.partition("#")[2] == in_memory.encoder.space.partition("#")[2]
    assert model.encoder.name == str(place) and model.encoder.device == "cpu"
    assert [p.name for p in tmp_path.iterdir()] == ["fitted"]


def test_the_rule_is_saved_with_the_result(colbert, toy, quick, tmp_path):
    model = colbert(similarity="l2", normalize="query").fit(toy.pairs, path=tmp_path / "fitted", **quick)
    loaded = mv.ColBERT.load(tmp_path / "fitted")
    assert loaded.scoring == model.scoring
    np.testing.assert_allclose(
        loaded.text_scorer()(toy.results)["score"], model.text_scorer()(toy.results)["score"], atol=1e-6
    )
    with pytest.raises(ValueError, match=r"ColBERT\.load"):
        mv.ColBERT(tmp_path / "fitted")


def test_settings_of_the_encoder_are_saved_with_the_result(tiny, toy, quick, tmp_path):
    model = mv.ColBERT(tiny, device="cpu", query_length=9, skiplist=["cat"], query_prefix="who ", batch_size=7)
    described = model.encoder.describe()
    model.fit(toy.pairs, path=tmp_path / "fitted", **quick)
    kept = {k: v for k, v in described.items() if k not in ("space", "name")}
    assert {k: v for k, v in model.encoder.describe().items() if k in kept} == kept
    assert model.encoder.batch_size == 7 and model.encoder.query_length is None


def test_places_may_be_deep_and_relative(colbert, toy, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = colbert().fit(toy.pairs, path="a/b/fitted", **quick)
    assert moved(weights(colbert()), weights(mv.ColBERT(tmp_path / "a" / "b" / "fitted")))
    monkeypatch.chdir(tmp_path.parent)  # before the model was opened
    assert moved(weights(colbert()), weights(model))


@pytest.mark.parametrize("what", ["file", "folder", "result"])
def test_nothing_is_written_over(colbert, toy, quick, tmp_path, what):
    place = tmp_path / "fitted"
    if what == "file":
        place.write_text("mine")
    elif what == "folder":
        place.mkdir()
    else:
        colbert().fit(toy.pairs, path=place, **quick)
    model = colbert()
    before = weights(model)
    with pytest.raises(FileExistsError, match="resume=True"):
        model.fit(toy.pairs, path=place, **quick)
    if what != "result":
        with pytest.raises(ValueError, match="no training run"):
            model.fit(toy.pairs, path=place, resume=True, **quick)
    assert not moved(before, weights(model)) and not (tmp_path / "fitted.training").exists()


# ------------------------------------------------------------------ resuming


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "settings"),
    [("pairs", {}), ("taught", {"loss": "kl"}), ("pairs", {"mini_batch_size": 2, "train": "head"})],
    ids=["contrastive", "kl", "cached"],
)
def test_a_resumed_run_ends_as_a_whole_one(colbert, toy, tmp_path, data, settings):
    """Dropout is active, and runs stop within an epoch and at its end, before and after a checkpoint."""
    settings = {**RUN, **settings}
    whole = colbert().fit(getattr(toy, data), path=tmp_path / "whole", **settings)
    for step in (3, 5, 6):
        place = tmp_path / str(step)
        stopped(colbert(), getattr(toy, data), step, path=place, **settings)
        assert not place.exists() and place.with_name(f"{step}.training").exists()
        same(colbert().fit(getattr(toy, data), path=place, resume=True, **settings), whole)


def test_a_run_may_stop_more_than_once(colbert, toy, tmp_path):
    whole = colbert().fit(toy.pairs, path=tmp_path / "whole", **RUN)
    for step in (3, 5, 9):
        stopped(colbert(), toy.pairs, step, path=tmp_path / "parts", resume=step > 3, **RUN)
    same(colbert().fit(toy.pairs, path=tmp_path / "parts", resume=True, **RUN), whole)


@unhelpful
@pytest.mark.parametrize("step", [4, 5])
def test_validation_and_early_stopping_go_on_where_they_were(colbert, toy, tmp_path, step):
    settings = {**RUN, "max_steps": 12, "evaluations": 6, "early_stopping": 2, "learning_rate": 0.1}
    valid = (toy.results, toy.qrels)
    whole = colbert().fit(toy.pairs, valid, path=tmp_path / "whole", **settings)
    assert whole.history["step"].iloc[-1] == 8  # best at step 4
    stopped(colbert(), toy.pairs, step, valid, path=tmp_path / "part", **settings)
    same(colbert().fit(toy.pairs, valid, path=tmp_path / "part", resume=True, **settings), whole)


@unhelpful
@pytest.mark.parametrize("early_stopping", [None, 2])
def test_a_run_that_stopped_after_its_last_checkpoint_adds_no_step(colbert, toy, tmp_path, monkeypatch, early_stopping):
    settings = {**RUN, "max_steps": 11, "early_stopping": early_stopping, "learning_rate": 0.1}
    settings["lr_scheduler_type"] = "constant"  # a further step would show
    valid = (toy.results, toy.qrels)
    whole = colbert().fit(toy.pairs, valid, path=tmp_path / "whole", **settings)

    def load(self):
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(trainer.PartTrainer, "_load_best_model", load)
        colbert().fit(toy.pairs, valid, path=tmp_path / "part", **settings)
    same(colbert().fit(toy.pairs, valid, path=tmp_path / "part", resume=True, **settings), whole)


@unhelpful
def test_a_run_may_be_moved_before_it_is_resumed(colbert, toy, tmp_path):
    settings = {**RUN, "learning_rate": 0.1}
    valid = (toy.results, toy.qrels)
    whole = colbert().fit(toy.pairs, valid, path=tmp_path / "whole", **settings)
    stopped(colbert(), toy.pairs, 7, valid, path=tmp_path / "old", **settings)
    (tmp_path / "old.training").rename(tmp_path / "new.training")
    same(colbert().fit(toy.pairs, valid, path=tmp_path / "new", resume=True, **settings), whole)


def test_the_best_weights_are_read_or_the_run_fails(colbert, toy, quick, monkeypatch):
    def load(self, path):
        raise OSError("no such disk")

    monkeypatch.setattr(trainer.PartTrainer, "_load_from_checkpoint", load)
    with pytest.raises(OSError, match="no such disk"):
        colbert().fit(toy.pairs, (toy.results, toy.qrels), **quick)


def test_resuming_where_there_is_nothing_starts(colbert, toy, quick, tmp_path):
    model = colbert().fit(toy.pairs, path=tmp_path / "fitted", resume=True, **quick)
    same(model, colbert().fit(toy.pairs, **quick))


def test_an_unfinished_run_is_not_begun_again_unasked(colbert, toy, tmp_path):
    stopped(colbert(), toy.pairs, 3, path=tmp_path / "fitted", **RUN)
    with pytest.raises(FileExistsError, match="unfinished run: pass resume=True"):
        colbert().fit(toy.pairs, path=tmp_path / "fitted", **RUN)


def test_a_run_that_stopped_before_its_first_checkpoint_leaves_nothing(colbert, toy, tmp_path):
    stopped(colbert(), toy.pairs, 1, path=tmp_path / "fitted", **RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_opened(colbert, toy, tmp_path):
    first = colbert().fit(toy.pairs, path=tmp_path / "fitted", **RUN)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "fitted").rglob("*")}
    again = colbert().fit(toy.pairs, path=tmp_path / "fitted", resume=True, **RUN)
    same(again, first, 0)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "fitted").rglob("*")} == before
    assert again.encoder.name == first.encoder.name


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was '0.001', is '0.5'"),
        ({"seed": 3, "train": "head"}, r"train was 'all', is 'head'; seed was '0', is '3'"),
        ({"loss": mv.training.NWay()}, "loss was 'Contrastive"),
        ({"weight_decay": 0.1}, "weight_decay was None, is '0.1'"),
        ({"data": 5}, "data was '[0-9a-f]{16}'"),
        ({"valid": True}, "validation was ''"),
        ({"encoder": {"query_length": 8}}, "encoder was .*length"),
        ({"rule": {"normalize": "query"}}, r"rule was .MaxSim.*None.* is .*'query'"),
    ],
    ids=str,
)
def test_another_run_is_not_resumed(colbert, toy, tmp_path, change, message, finished):
    settings = {**RUN, "max_steps": 4, "evaluations": 4}
    place, change = tmp_path / "fitted", dict(change)
    if finished:
        colbert().fit(toy.groups, path=place, **settings)
    else:
        stopped(colbert(), toy.groups, 2, path=place, **settings)
    model = colbert(**change.pop("encoder", {}), **change.pop("rule", {}))
    data = toy.groups.select(range(change.pop("data", 10)))
    valid = toy.groups if change.pop("valid", False) else None
    with pytest.raises(ValueError, match=message):
        model.fit(data, valid, path=place, resume=True, **{**settings, **change})


def test_what_does_not_decide_the_outcome_may_change(colbert, toy, tiny, tmp_path):
    settings = {**RUN, "train": "head"}
    whole = colbert().fit(toy.pairs, **{**settings, "evaluations": 5})
    stopped(colbert(), toy.pairs, 5, path=tmp_path / "fitted", **settings)
    (tmp_path / "elsewhere").symlink_to(tiny)
    model = mv.ColBERT(tmp_path / "elsewhere", device="cpu", batch_size=2)
    model.fit(toy.pairs, path=tmp_path / "fitted", resume=True, **{**settings, "state_cache": 0})
    same(model, whole)


# ------------------------------------------------------------------ files of a run that was killed


def checkpoints_of(place):
    return sorted(int(p.name.partition("-")[2]) for p in place.glob("checkpoint-*"))


@pytest.mark.parametrize("damage", ["half a state", "empty"])
def test_a_checkpoint_that_was_not_written_to_its_end_is_skipped(colbert, toy, tmp_path, damage):
    whole = colbert().fit(toy.pairs, path=tmp_path / "whole", **RUN)
    stopped(colbert(), toy.pairs, 5, path=tmp_path / "part", **RUN)
    folder = tmp_path / "part.training"
    assert checkpoints_of(folder) == [2, 4]
    state = folder / "checkpoint-4" / "trainer_state.json"
    if damage == "half a state":
        state.write_text(state.read_text()[:100])
    else:
        for file in folder.glob("checkpoint-4/*" if damage == "empty" else "checkpoint-4/trainer_state.json"):
            file.unlink() if file.is_file() else [f.unlink() for f in file.iterdir()]
    same(colbert().fit(toy.pairs, path=tmp_path / "part", resume=True, **RUN), whole)


def test_checkpoints_are_numbers_and_not_words(tmp_path):
    run = Run(tmp_path / "fitted", False, {})
    for step in (8, 10, 9):
        folder = run.folder / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
    assert Path(run.checkpoint()).name == "checkpoint-10"


def test_a_record_that_is_gone_is_said(colbert, toy, tmp_path):
    stopped(colbert(), toy.pairs, 3, path=tmp_path / "part", **RUN)
    (tmp_path / "part.training" / "training.json").write_text("{")
    with pytest.raises(ValueError, match=r"part\.training is no training run"):
        colbert().fit(toy.pairs, path=tmp_path / "part", resume=True, **RUN)


def test_what_a_run_left_beside_its_result_does_not_matter(colbert, toy, tmp_path):
    """Killed while it removed its checkpoints, or while it wrote its result."""
    place = tmp_path / "fitted"
    (tmp_path / "fitted.writing").mkdir()
    (tmp_path / "fitted.writing" / "junk").write_text("half")
    (tmp_path / "fitted.training.new").mkdir()
    colbert().fit(toy.pairs, path=place, **RUN)
    assert [p.name for p in tmp_path.iterdir()] == ["fitted"] and not (place / "junk").exists()
    (tmp_path / "fitted.training" / "checkpoint-4").mkdir(parents=True)
    colbert().fit(toy.pairs, path=place, resume=True, **RUN)
    assert [p.name for p in tmp_path.iterdir()] == ["fitted"]


@unhelpful
def test_a_run_without_a_path_leaves_no_files(colbert, toy, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    colbert().fit(toy.pairs, toy.pairs, **quick)
    stopped(colbert(), toy.pairs, 1, **quick)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("data", "loss"), [("pairs", "contrastive"), ("taught", "kl")])
def test_a_killed_run_ends_as_a_whole_one(colbert, tiny, toy, tmp_path, data, loss):
    settings = {**RUN, "loss": loss}
    getattr(toy, data).save_to_disk(str(tmp_path / "data"))
    arguments = [str(tiny), str(tmp_path / "data"), str(tmp_path / "killed"), "7", json.dumps(settings)]
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.training.killed", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "killed").exists() and checkpoints_of(tmp_path / "killed.training") == [4, 6]
    resumed = colbert().fit(getattr(toy, data), path=tmp_path / "killed", resume=True, **settings)
    same(resumed, colbert().fit(getattr(toy, data), path=tmp_path / "whole", **settings), 1e-5)
