"""The files of a training run: checkpoints beside the place of the result, which appears whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

_RECORD = "training.json"


class Run:
    """A folder for checkpoints, kept for :meth:`complete` or ``resume`` if the run has a path, else thrown away.

    Args:
        path: where the trained model is to appear; none for a run that leaves no files.
        resume: whether files of an earlier run with the same record are welcome.
        record: what decides the outcome.

    Raises:
        FileExistsError: the result is there already, or checkpoints of an unfinished run are, without ``resume``.
        ValueError: the run to be resumed had another record.
    """

    def __init__(self, path: Path | None, resume: bool, record: Mapping[str, str]):
        self.path, self._record = path, dict(record)
        if path is None:
            if resume:
                raise ValueError("resume=True needs path=, where the checkpoints are")
            self.folder = Path(tempfile.mkdtemp(prefix="mvret-training-"))
            return
        self.folder = path.with_name(path.name + ".training")
        place, what = (path, "a result") if path.exists() else (self.folder, "an unfinished run")
        if place.exists():
            if not resume:
                raise FileExistsError(f"{place} holds {what}: pass resume=True to go on with it, or remove it")
            self._compare(place)
            if self.finished:  # and killed before it had removed its checkpoints
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        scratch = self.folder.with_name(self.folder.name + ".new")  # never a folder without its record
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _write_json(scratch / _RECORD, {"run": self._record})
        scratch.replace(self.folder)

    def _compare(self, place: Path) -> None:
        found = _read_record(place)["run"]
        names = [n for n in {**found, **self._record} if found.get(n) != self._record.get(n)]
        if names:
            differ = "; ".join(f"{n} was {found.get(n)!r}, is {self._record.get(n)!r}" for n in names)
            raise ValueError(f"{place} belongs to a run with other settings: {differ}")

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return self.path is not None and self.path.exists()

    def history(self) -> pd.DataFrame:
        """The curves of a finished run."""
        assert self.path is not None
        return pd.DataFrame(_read_record(self.path)["history"])

    def checkpoint(self) -> str | None:
        """The last checkpoint that was written to its end; what a killed run left half-written is removed."""
        for folder in sorted(
            self.folder.glob("checkpoint-*"), key=lambda p: int(p.name.partition("-")[2]), reverse=True
        ):
            try:  # the trainer writes its state last
                json.loads((folder / "trainer_state.json").read_text())
                return str(folder)
            except (OSError, ValueError):
                shutil.rmtree(folder)
        return None

    def complete(self, save: Callable[[Path], None], history: pd.DataFrame) -> None:
        """Writes the result beside its place, moves it there, and removes the checkpoints."""
        assert self.path is not None
        scratch = self.path.with_name(self.path.name + ".writing")
        shutil.rmtree(scratch, ignore_errors=True)
        save(scratch)
        rows = json.loads(history.to_json(orient="records", double_precision=15))
        _write_json(scratch / _RECORD, {"run": self._record, "history": rows})
        for file in scratch.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:  # on the disk before its name is
                    os.fsync(written.fileno())
        scratch.replace(self.path)
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Removes the files of a run without a path, and of one that stopped before there was anything to resume."""
        if self.path is None or (not self.finished and self.checkpoint() is None):
            shutil.rmtree(self.folder, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _read_record(place: Path) -> dict[str, Any]:
    try:
        return json.loads((place / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} is no training run of this package: {error}") from error
