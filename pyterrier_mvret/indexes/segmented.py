"""An index as a folder of immutable segments and one manifest: how it is written, opened and checked."""

from collections.abc import Callable, Iterable, Sized
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import pyterrier as pt

from pyterrier_mvret.component import Configured
from pyterrier_mvret.indexes import segments
from pyterrier_mvret.indexes.documents import digest_of
from pyterrier_mvret.indexes.segment_writer import SegmentWriter, records_of

Mode = Literal["create", "overwrite", "append"]


class Segments(Sized, Protocol):
    """The segments of an index, opened as one; its length is the number of documents."""

    manifest: dict[str, Any]


Opened = TypeVar("Opened", bound=Segments)


class SegmentedIndex(Configured, pt.Artifact, pt.Indexer, Generic[Opened]):
    """What all indexes of this package share; a subclass knows what its segments hold.

    The folder appears whole or not at all, readers never see half of a write, and a failed write leaves what was
    there before.
    """

    ARTIFACT_PACKAGE_HINT = "pyterrier-mvret"
    verbose: bool
    #: of the manifest's format
    _VERSION: ClassVar[int]
    #: what the manifest must say of the index, and of a segment
    _KEYS: ClassVar[tuple[str, ...]]
    _SEGMENT_KEYS: ClassVar[tuple[str, ...]]

    # ------------------------------------------------------------------ what a subclass says

    def _new_manifest(self) -> dict[str, Any]:
        """Settings of an index that is built anew."""
        return {
            "type": self.ARTIFACT_TYPE,
            "format": self.ARTIFACT_FORMAT,
            "package_hint": self.ARTIFACT_PACKAGE_HINT,
            "version": self._VERSION,
            "encoder": None,
            "segments": [],
        }

    def _check_settings(self, manifest: dict[str, Any]) -> None:
        """Raises ValueError where this object's settings are not those of the index on disk."""
        raise NotImplementedError

    def _builder(self, folder: Path, manifest: dict[str, Any], before: "Opened | None") -> SegmentWriter:
        """What writes a segment, behind those of ``before``."""
        raise NotImplementedError

    def _fixed(self, old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
        """What else than the space must not differ between the encoder of the index and that of documents to come."""
        return ("document",)

    def _learned(self, builder: Any) -> dict[str, Any]:
        """What the manifest takes from the documents."""
        return {}

    def _open(self, manifest: dict[str, Any]) -> Opened:
        """The segments that a manifest names."""
        raise NotImplementedError

    # ------------------------------------------------------------------ building

    def index(self, iter: Iterable[Any], mode: Mode = "create") -> Any:
        """Builds from records, streaming; see :meth:`indexer` for modes.

        Raises:
            FileExistsError: ``mode="create"`` where an index is.
            ValueError: a record that cannot be stored; nothing of this call is kept.
        """
        if mode not in ("create", "overwrite", "append"):
            raise ValueError(f"mode must be 'create', 'overwrite' or 'append', got {mode!r}")
        records = records_of(iter)
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} exists and is no index: it is left alone")
        self.__dict__.pop("store", None)  # opened anew after this, however it ends
        with segments.writing(self.path, lambda: self._check_target(mode)) as scratch:
            present = self._present(mode)
            if present is not None:
                segments.keep_only(self.path, [scratch.name, *_names(present)])
            before = present if mode == "append" else None
            manifest = before or self._new_manifest()
            builder = self._builder(scratch, manifest, self._open(before) if before else None)
            try:
                builder.add(pt.tqdm(records, desc="indexing", unit="d", disable=not self.verbose))
                if builder.documents:
                    entry = builder.finish()
                    manifest |= {**self._learned(builder), "version": self._VERSION}
                    manifest["segments"].append({"name": segments.publish(scratch).name, **entry})
            finally:
                builder.abort()
            segments.write_manifest(self.path, manifest)
            segments.keep_only(self.path, _names(manifest))
            segments.drop_derived(self.path)
        return self

    def _check_encoder(self, manifest: dict[str, Any], found: dict[str, Any] | None) -> None:
        """The first document fixes the encoder; later ones must have been made in the same way."""
        if not manifest["segments"]:
            manifest["encoder"] = found
            return
        old, new = manifest["encoder"] or {}, found or {}
        if digest_of(old.get("space")) != digest_of(new.get("space")):
            raise ValueError(
                f"{self.path} was built with encoder {old.get('space')}; these documents come from {new.get('space')}"
            )
        for key in self._fixed(old, new):
            if old.get(key) != new.get(key):
                raise ValueError(f"{self.path} was built with {key}={old.get(key)!r}; these have {new.get(key)!r}")

    def _check_target(self, mode: Mode) -> None:
        if self.built():
            if mode == "create":
                raise FileExistsError(f"{self.path} holds an index; choose mode='overwrite' or mode='append'")
        elif segments.holds_other_files(self.path):
            raise FileExistsError(f"{self.path} exists and is no index: it is left alone")

    def _present(self, mode: Mode) -> dict[str, Any] | None:
        """The manifest on disk; an index that is to be replaced may have other settings, or be damaged."""
        if not self.built():
            return None
        if mode == "append":
            return self._manifest_on_disk()
        try:
            return self._read_manifest()
        except segments.DamagedIndexError:
            if segments.holds_other_files(self.path):  # perhaps never was an index of ours
                raise
            return None

    # ------------------------------------------------------------------ reading

    def built(self) -> bool:
        """Whether there is an index in the folder."""
        return (self.path / segments.MANIFEST).is_file()

    def _read_manifest(self) -> dict[str, Any]:
        kind = (self.ARTIFACT_TYPE, self.ARTIFACT_FORMAT)
        return segments.read_manifest(self.path, kind, self._VERSION, self._KEYS, self._SEGMENT_KEYS)

    def _manifest_on_disk(self) -> dict[str, Any]:
        manifest = self._read_manifest()
        self._check_settings(manifest)
        return manifest

    @cached_property
    def store(self) -> Opened:
        """Manifest and memory-mapped segments as one, opened on first use: what a stage takes once for all its work."""
        return self._undisturbed(self._open)

    def _undisturbed(self, read: Callable[[dict[str, Any]], Any]) -> Any:
        """What is read of the segments, again where another process replaced them meanwhile."""
        manifest = self._manifest_on_disk()
        while True:
            try:
                return read(manifest)
            except segments.DamagedIndexError:
                present = self._manifest_on_disk()
                if present == manifest:
                    raise
                manifest = present

    def __len__(self) -> int:
        return len(self.store)

    def __getstate__(self) -> dict[str, Any]:
        # a copy in another process maps the files itself
        return {k: v for k, v in self.__dict__.items() if k != "store"}

    def verify(self) -> None:
        """Reads every file and compares size and checksum with the manifest.

        Raises:
            DamagedIndexError: naming the first file that differs.
        """
        self._undisturbed(self._check_files)
        self.__dict__.pop("store", None)
        len(self)

    @property
    def manifest(self) -> dict[str, Any]:
        """The contents of ``pt_meta.json``: settings, encoder, segments with sizes and checksums."""
        return self.store.manifest

    def _check_files(self, manifest: dict[str, Any]) -> None:
        for entry in manifest["segments"]:
            for field, file in entry["files"].items():
                segments.check_digest(self.path / entry["name"] / f"{field}.npy", file)


class SegmentIndexer(Configured, pt.Indexer):
    """Ends an indexing pipeline."""

    def __init__(self, target: SegmentedIndex[Any], mode: Any = "create"):
        self.target, self.mode = target, mode

    def index(self, iter: Iterable[Any]) -> Any:
        """Builds the index and returns it."""
        return self.target.index(iter, mode=self.mode)

    def index_inputs(self) -> list[list[str]]:
        """The columns that indexing needs."""
        return self.target.index_inputs()

    def schematic(self, *, input_columns: list[str] | None = None) -> dict[str, Any]:
        """What PyTerrier's drawing shows."""
        return {"label": type(self.target).__name__, "help_url": None}


def _names(manifest: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in manifest["segments"]]
