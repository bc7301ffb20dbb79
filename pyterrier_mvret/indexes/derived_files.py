"""Files that an engine makes from an index's segments: sealed with their checksums, checked and opened."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pyterrier_mvret.indexes import segments
from pyterrier_mvret.indexes.documents import READ_WHOLE

META = "pt_meta.json"
Opened = TypeVar("Opened")


def opened(path: Path, key: str, make: Callable[[], None], read: Callable[[Path], Opened]) -> Opened:
    """What ``read`` makes of the folder of derived files, which ``make`` writes where there is none.

    Args:
        path: of the index.
        key: what the files depend on.
        make: writes the folder, through :func:`making`.
        read: opens it; no writer removes it meanwhile.
    """
    folder = segments.derived_folder(path, key)
    while True:
        if not folder.exists():
            make()
        try:
            with segments.kept(folder):
                return read(folder)
        except FileNotFoundError:  # a writer dropped it just now
            continue


@contextlib.contextmanager
def making(path: Path, key: str, engine: str) -> Iterator[Path]:
    """As :func:`segments.deriving`; says what to do where the index cannot be written to.

    Raises:
        PermissionError: the folder of the index is not ours to write.
    """
    try:
        with segments.deriving(path, key) as folder:
            yield folder
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(
            f"{path} lacks {engine}'s files for this search and cannot be written to ({error}): search it once where "
            'it can be, or open it with engine="csr"'
        ) from error


def seal(folder: Path, meta: dict[str, Any]) -> None:
    """Completes a folder: what it says of itself, with the checksums of all files, which are synced."""
    files = {p.name: _described(p) for p in sorted(folder.iterdir()) if p.name != META}
    (folder / META).write_text(json.dumps({**meta, "files": files}, indent=1))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def check_folder(folder: Path, *, keys: Collection[str] = (), whole: bool = False) -> dict[str, Any]:
    """What a folder says of itself, after a check of sizes, and of checksums where that takes no time.

    Args:
        folder: where the files are.
        keys: what it must say.
        whole: checks the checksums of large files, too.

    Raises:
        DamagedIndexError: a file is missing, cut short or changed.
    """
    try:
        meta = json.loads((folder / META).read_text())
        for name, expected in meta["files"].items():
            read = whole or expected["bytes"] <= READ_WHOLE
            if (folder / name).stat().st_size != expected["bytes"] or (read and _described(folder / name) != expected):
                raise segments.DamagedIndexError(f"{folder / name} differs from what was written: delete {folder}")
        missing = [key for key in keys if key not in meta]
        if missing:
            raise KeyError(f"it does not say {', '.join(missing)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, segments.DamagedIndexError):
            raise
        raise segments.DamagedIndexError(f"{folder} is damaged ({error}): delete it, it is made anew") from error
    return meta


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
