"""Checkpoints of our own loop: whole or not there, and nothing beside them."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from pyterrier_mvret.training import checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}


def test_the_last_is_read_and_the_only_one(tmp_path):
    assert checkpoint.last(tmp_path / "none", {}) is None
    for step in (9, 10):
        checkpoint.write(tmp_path / "run", step, TENSORS, {"settings": {"k": 1}, "log": [step]})
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-10"]
    step, tensors, about = checkpoint.last(tmp_path / "run", {"k": 1})
    assert step == 10 and about["log"] == [10]
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    with pytest.raises(ValueError, match="k was 1, is 2"):
        checkpoint.last(tmp_path / "run", {"k": 2})


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".checkpoint-3.123").mkdir()
    checkpoint.write(tmp_path, 4, TENSORS, {"settings": {}})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("failing", ["save_file", "json"])
def test_a_write_that_fails_leaves_the_one_before(tmp_path, monkeypatch, failing):
    checkpoint.write(tmp_path, 1, TENSORS, {"settings": {}})
    if failing == "json":
        with pytest.raises(TypeError):
            checkpoint.write(tmp_path, 2, TENSORS, {"settings": {}, "log": object()})
    else:
        monkeypatch.setattr("safetensors.torch.save_file", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            checkpoint.write(tmp_path, 2, TENSORS, {"settings": {}})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint.last(tmp_path, {})[0] == 1


def test_a_full_disk(tmp_path):
    checkpoint.write(tmp_path, 1, TENSORS, {"settings": {}})
    code = (
        "import pathlib, torch; from pyterrier_mvret.training import checkpoint;"
        f"checkpoint.write(pathlib.Path({str(tmp_path)!r}), 2, {{'a': torch.zeros(9999)}}, {{'settings': {{}}}})"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode > 0 and "Error" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("state", [b"{", b"[]", json.dumps({"step": 1}).encode(), None])
def test_what_is_damaged_is_named(tmp_path, state):
    checkpoint.write(tmp_path, 1, TENSORS, {"settings": {}})
    file = tmp_path / "checkpoint-1" / "trainer_state.json"
    if state is None:
        file.unlink()
    else:
        file.write_bytes(state)
    with pytest.raises(ValueError, match="checkpoint-1 cannot be read .* remove it"):
        checkpoint.last(tmp_path, {})
