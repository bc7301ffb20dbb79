"""Immutable segments on disk: arrays in ``.npy`` files, and a manifest that names the segments of an index.

A segment is written under a temporary name, synced, and renamed; the manifest is replaced by rename, last. So a reader
sees an index as it was before a write or as it is after it, never between.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps two writers apart
    fcntl = None  # type: ignore[assignment]

MANIFEST = "pt_meta.json"
_SEGMENT = re.compile(r"segment-[0-9a-f]{8}(\.tmp)?")
_DERIVED = re.compile(r"derived-[0-9a-f]{12}(\.[0-9a-f]{8}\.tmp)?")

_ABANDONED = 24 * 60 * 60  # seconds


class DamagedIndexError(ValueError):
    """A file of an index is missing, cut short or changed."""


class ArrayWriter:
    """Writes one ``.npy`` file row by row, so that no array is ever whole in memory; numpy reads the result."""

    def __init__(self, path: Path, dtype: str, columns: int | None = None):
        self._path = path
        self._file = path.open("wb")
        self._dtype, self._columns = np.dtype(dtype), columns
        self._rows = 0
        self._digest = hashlib.sha256()
        self._write_header()

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self._rows,) if self._columns is None else (self._rows, self._columns)

    def _write_header(self) -> None:
        # numpy pads the header for a growing first axis: it can be written again in place
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        )

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Adds rows."""
        expected = () if self._columns is None else (self._columns,)
        if rows.shape[1:] != expected:
            raise ValueError(f"{self._path.name} takes rows of shape {expected}, got {rows.shape[1:]}")
        data = np.ascontiguousarray(rows, dtype=self._dtype)
        self._file.write(data.data)
        self._digest.update(data.data)
        self._rows += len(data)

    def flush(self) -> None:
        """Makes the rows so far visible to readers of the file."""
        self._file.flush()

    def close(self) -> dict[str, Any]:
        """Completes the file; returns what a reader checks: bytes in all, type, shape, and the digest of the rows."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = os.fstat(self._file.fileno()).st_size
        self._file.close()
        return {
            "bytes": size,
            "dtype": self._dtype.str,
            "shape": list(self._shape),
            "sha256": self._digest.hexdigest(),
        }

    def abort(self) -> None:
        """Lets go of the file."""
        with contextlib.suppress(OSError):  # a full disk: closing flushes and fails once more
            self._file.close()


def open_array(path: Path, expected: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Maps an array, after a check of its size, type and shape.

    Raises:
        DamagedIndexError: missing, of another size, or not what was written.
    """
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedIndexError(f"{path} has {size} bytes instead of {expected['bytes']}: truncated or overwritten")
        empty = 0 in expected["shape"]  # numpy cannot map an array without rows
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except FileNotFoundError:
        raise DamagedIndexError(f"{path} is missing") from None
    except ValueError as error:
        if isinstance(error, DamagedIndexError):
            raise
        raise DamagedIndexError(f"{path} has a damaged header: {error}") from error
    if [array.dtype.str, list(array.shape)] != [expected["dtype"], expected["shape"]]:
        raise DamagedIndexError(f"{path} has a damaged header: {array.dtype.str} {array.shape}")
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
def writing(path: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Locks an index folder for one writer and yields a scratch folder for a segment; leaves nothing on failure.

    Args:
        path: the folder; made where there is none.
        check: called once no other process can write, before anything is written; may refuse by raising.

    Raises:
        BlockingIOError: another process writes to the index.
    """
    created = [p for p in (path, *path.parents) if not p.exists()]
    lock = _lock(path)
    scratch = path / f"segment-{secrets.token_hex(4)}.tmp"
    try:
        check()
        scratch.mkdir()
        yield scratch
    except BaseException:
        published, named = scratch.with_suffix(""), _named(path)
        if named is not None and published.name not in named:  # an interrupt may come after the manifest was replaced
            shutil.rmtree(published, ignore_errors=True)
        (path / f"{MANIFEST}.tmp").unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in created:
            with contextlib.suppress(OSError):  # not empty: it is needed, by us or by somebody else
                folder.rmdir()
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _named(path: Path) -> set[str] | None:
    """The segments that the manifest names; nothing where it cannot be read."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return {entry["name"] for entry in manifest["segments"]}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lock(path: Path) -> int | None:
    """Locks the folder, making it first, until the returned handle is closed or the process ends however it ends.

    Raises:
        BlockingIOError: somebody else holds the lock.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise BlockingIOError(f"{path} is being written by another process") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # another writer failed and removed the folder that was locked: again


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


def keep_only(path: Path, names: Collection[str]) -> None:
    """Removes segments that no manifest names: replaced, or left by a writer that was killed.

    Readers that have them mapped keep them.
    """
    for folder in path.iterdir():
        if _SEGMENT.fullmatch(folder.name) and folder.name not in names and _holds_arrays_alone(folder):
            shutil.rmtree(folder, ignore_errors=True)


def drop_derived(path: Path) -> None:
    """Removes what was computed from segments that are no longer all there is; it is computed anew when needed.

    What somebody may be computing right now stays for a day, what somebody opens right now until the next time.
    """
    for folder in path.iterdir():
        if not _is_derived(folder):
            continue
        with contextlib.suppress(OSError):  # in use, or finished or removed by somebody else just now
            if not folder.name.endswith(".tmp") or folder.stat().st_mtime < time.time() - _ABANDONED:
                with kept(folder, alone=True):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def kept(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Holds a derived folder, so that no writer removes it meanwhile.

    Args:
        folder: which.
        alone: to remove it; others that hold it are an error then.

    Raises:
        FileNotFoundError: it is not there.
        BlockingIOError: others hold it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise FileNotFoundError(f"{folder} was removed, and made anew by somebody else")
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def deriving(path: Path, key: str) -> Iterator[Path]:
    """Yields a scratch folder for what is computed from the segments; it appears as ``derived_folder(path, key)``.

    Nothing is locked: of two processes that compute the same, the first to be done is kept.
    """
    target = derived_folder(path, key)
    scratch = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        scratch.mkdir()
        yield scratch
        _sync_folder(scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def derived_folder(path: Path, key: str) -> Path:
    """Where something is kept that was computed from the segments; ``key`` says from which, and what."""
    return path / f"derived-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def derived_folders(path: Path) -> list[Path]:
    """All that is complete."""
    return sorted(p for p in path.iterdir() if _is_derived(p) and not p.name.endswith(".tmp"))


def _is_derived(folder: Path) -> bool:
    if not _DERIVED.fullmatch(folder.name):
        return False
    try:
        with os.scandir(folder) as files:
            return all(file.is_file() for file in files)
    except FileNotFoundError:  # somebody who needs no lock gave it another name, or removed it, just now
        return True
    except NotADirectoryError:
        return False


def holds_other_files(path: Path) -> bool:
    """Whether a path holds anything that is not an index's."""
    if not path.exists():
        return False
    if not path.is_dir():
        return True
    known = (MANIFEST, f"{MANIFEST}.tmp")
    return any(
        p.name not in known and not (_SEGMENT.fullmatch(p.name) and _holds_arrays_alone(p)) and not _is_derived(p)
        for p in path.iterdir()
    )


def _holds_arrays_alone(folder: Path) -> bool:
    return folder.is_dir() and all(p.suffix == ".npy" for p in folder.iterdir())


def _sync_folder(path: Path) -> None:
    if fcntl is None:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_manifest(
    path: Path, kind: tuple[str, str], version: int, keys: Collection[str], segment_keys: Collection[str]
) -> dict[str, Any]:
    """The manifest of an index, which must say what ``keys`` name, and ``segment_keys`` of each segment.

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
    if not isinstance(manifest, dict) or not {"type", "format"} <= manifest.keys():
        raise DamagedIndexError(f"{file} is damaged: it does not say what it describes")
    found = (manifest.get("type"), manifest.get("format"))
    if found != kind:
        raise ValueError(f"{path} holds a {found[0]}.{found[1]}, not a {kind[0]}.{kind[1]}")
    if not isinstance(manifest.get("version"), int):
        raise DamagedIndexError(f"{file} is damaged: it names no version")
    if manifest["version"] > version:
        raise ValueError(f"{path} has format version {manifest['version']}; this release reads up to {version}")
    missing = [key for key in keys if key not in manifest]
    if not missing:
        missing = [f"{key} of a segment" for key in segment_keys for e in manifest["segments"] if key not in e]
    if missing:
        raise DamagedIndexError(f"{file} is damaged: it does not say {', '.join(missing)}")
    return manifest
