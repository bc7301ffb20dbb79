"""Immutable segments on disk: arrays in ``.npy`` files, and a manifest that names the segments of an index.

A segment is written under a temporary name, synced, and renamed; the manifest is replaced by rename, last. So a reader
sees an index as it was before a write or as it is after it, never between.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps two writers apart
    fcntl = None  # type: ignore[assignment]

MANIFEST = "pt_meta.json"


class DamagedIndexError(ValueError):
    """A file of an index is missing, cut short or changed."""


class ArrayWriter:
    """Writes one ``.npy`` file row by row, so that no array is ever whole in memory; numpy reads the result."""

    def __init__(self, path: Path, dtype: str, columns: int | None = None):
        self._file = path.open("wb")
        self._dtype, self._columns = np.dtype(dtype), columns
        self._rows = 0
        self._digest = hashlib.sha256()
        self._write_header()

    def _write_header(self) -> None:
        shape = (self._rows,) if self._columns is None else (self._rows, self._columns)
        # numpy pads the header for a growing first axis: it can be written again in place
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        )

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Adds rows."""
        data = np.ascontiguousarray(rows, dtype=self._dtype)
        self._file.write(data.data)
        self._digest.update(data.data)
        self._rows += len(data)

    def flush(self) -> None:
        """Makes the rows so far visible to readers of the file."""
        self._file.flush()

    def close(self) -> dict[str, Any]:
        """Completes the file; returns what a reader checks: bytes in all, and the digest of the rows."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()
        return {"bytes": size, "sha256": self._digest.hexdigest()}

    def abort(self) -> None:
        """Lets go of the file."""
        with contextlib.suppress(OSError):  # a full disk: closing flushes and fails once more
            self._file.close()


def open_array(path: Path, expected: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Maps an array, after a check of its size.

    Raises:
        DamagedIndexError: missing, of another size, or with a damaged header.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DamagedIndexError(f"{path} is missing") from None
    if size != expected["bytes"]:
        raise DamagedIndexError(f"{path} has {size} bytes instead of {expected['bytes']}: truncated or overwritten")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        try:  # numpy cannot map an array without rows
            array = np.load(path, allow_pickle=False)
        except ValueError:
            raise DamagedIndexError(f"{path} has a damaged header: {error}") from error
    return array


def check_digest(path: Path, expected: Mapping[str, Any]) -> None:
    """Reads the whole file and compares.

    Raises:
        DamagedIndexError: any row differs from what was written.
    """
    array = open_array(path, expected)
    digest = hashlib.sha256()
    step = max(1, (1 << 24) // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        digest.update(np.ascontiguousarray(array[start : start + step]).data)
    if digest.hexdigest() != expected["sha256"]:
        raise DamagedIndexError(f"{path} differs from what was written (checksum)")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Locks an index folder for one writer and yields a scratch folder for a segment; leaves nothing on failure.

    Raises:
        BlockingIOError: another process writes to the index.
    """
    created = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(path)
    except BlockingIOError:
        raise BlockingIOError(f"{path} is being written by another process") from None
    try:
        scratch = path / f"segment-{secrets.token_hex(4)}.tmp"
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        if created and not (path / MANIFEST).exists():
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Locks the folder until the returned handle is closed, or the process ends however it ends."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    return handle


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest in one step."""
    scratch = path / f"{MANIFEST}.tmp"
    with scratch.open("w", encoding="utf-8") as out:
        json.dump(manifest, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    scratch.replace(path / MANIFEST)
    _sync_folder(path)


def publish(scratch: Path) -> Path:
    """Gives a finished segment its lasting name."""
    _sync_folder(scratch)
    target = scratch.with_suffix("")
    scratch.rename(target)
    return target


def keep_only(path: Path, names: Iterable[str]) -> None:
    """Removes segments that no manifest names: replaced, or left by a writer that was killed.

    Readers that have them mapped keep them.
    """
    for folder in set(path.glob("segment-*")) - {path / name for name in names}:
        shutil.rmtree(folder, ignore_errors=True)


def holds_other_files(path: Path) -> bool:
    """Whether a path holds anything that is not an index's."""
    if not path.exists():
        return False
    known = (MANIFEST, f"{MANIFEST}.tmp")
    return not path.is_dir() or any(p.name not in known and not p.match("segment-*") for p in path.iterdir())


def _sync_folder(path: Path) -> None:
    if fcntl is None:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(path: Path, kind: tuple[str, str], version: int) -> dict[str, Any]:
    """The manifest of an index.

    Raises:
        FileNotFoundError: no such folder, or no index in it.
        DamagedIndexError: unreadable.
        ValueError: another kind of artifact, or of a newer format.
    """
    file = path / MANIFEST
    if not file.is_file():
        state = "does not exist" if not path.exists() else f"holds no index (no {MANIFEST})"
        raise FileNotFoundError(f"{path} {state}; build one with (model.doc_encoder() >> index).index(docs)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedIndexError(f"{file} is damaged: {error}") from error
    found = (manifest.get("type"), manifest.get("format"))
    if found != kind:
        raise ValueError(f"{path} holds a {found[0]}.{found[1]}, not a {kind[0]}.{kind[1]}")
    if manifest["version"] > version:
        raise ValueError(f"{path} has format version {manifest['version']}; this release reads up to {version}")
    return manifest
