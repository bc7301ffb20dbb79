"""Checkpoints of a training loop of our own: tensors and plain data, whole or not there."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_TENSORS, _STATE = "tensors.safetensors", "trainer_state.json"


def write(folder: Path, step: int, tensors: "dict[str, Tensor]", about: dict[str, Any]) -> None:
    """Writes ``checkpoint-<step>`` into a folder, and then removes the older ones; before, what killed runs left.

    Args:
        folder: made where there is none.
        step: its number.
        tensors: by name, of any device.
        about: what can be written as JSON; ``settings`` in it must be the same when it is read.
    """
    from safetensors.torch import save_file

    place = folder / f"checkpoint-{step}"
    scratch = folder / f".checkpoint-{step}.{os.getpid()}"
    for left in folder.glob(".checkpoint-*"):
        shutil.rmtree(left)
    scratch.mkdir(parents=True)
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, scratch / _TENSORS)
        _sync(scratch / _TENSORS)
        state = {"step": step, "sha256": _checksum(scratch / _TENSORS), **about}
        (scratch / _STATE).write_text(json.dumps(state), encoding="utf-8")
        _sync(scratch / _STATE)
        shutil.rmtree(place, ignore_errors=True)
        scratch.replace(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for other in folder.glob("checkpoint-*"):
        if other != place:
            shutil.rmtree(other)


def last(folder: Path, settings: dict[str, Any]) -> "tuple[int, dict[str, Tensor], dict[str, Any]] | None":
    """Step, tensors and the rest of the last checkpoint in a folder; none where there is none.

    Raises:
        ValueError: it was written with other settings, or is damaged.
    """
    from safetensors.torch import load_file

    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.partition("-")[2]))
    if not found:
        return None
    place = found[-1]
    try:
        state = json.loads((place / _STATE).read_text(encoding="utf-8"))
        whole = state["sha256"] == _checksum(place / _TENSORS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} cannot be read ({error}): remove it to start anew") from error
    if not whole:
        raise ValueError(f"{place} is damaged: remove it to start anew")
    _compare(place, state["settings"], json.loads(json.dumps(settings)))
    return state["step"], load_file(place / _TENSORS), state


def _compare(place: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    if was != now:
        differ = [f"{name} was {was.get(name)!r}, is {now.get(name)!r}" for name in now if was.get(name) != now[name]]
        raise ValueError(f"{place} belongs to a run with other settings: {'; '.join(differ)}")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
