"""Token vectors of a collection on disk: build, retrieve, rescore, load."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Configured
from pyterrier_mvret.indexes import segments
from pyterrier_mvret.indexes.builder import SegmentBuilder, records_of
from pyterrier_mvret.indexes.codecs import CODECS
from pyterrier_mvret.indexes.stages import MultiVecIndexer, MultiVecRetriever, MultiVecScorer, VecLoader
from pyterrier_mvret.indexes.store import Store
from pyterrier_mvret.scoring import MaxSim

Mode = Literal["create", "overwrite", "append"]
_VERSION = 1


class MultiVecIndex(Configured, pt.Artifact, pt.Indexer):
    """The token vectors of a collection, in a folder of immutable segments and one manifest.

    Build it behind an encoder, ``(colbert.doc_encoder() >> index).index(docs)``; then every verb below is a stage.
    The folder appears whole or not at all, readers never see half of a write, and a failed write leaves what was
    there before.

    Args:
        path: the folder.
        dtype: how vectors are stored: ``"float32"``, ``"float16"`` (the default) or ``"int8"`` (a scale a vector).
        store_ids: keep each vector's token id.
        store_offsets: keep each vector's character offsets in its text.
        verbose: progress bars.

    Raises:
        FileNotFoundError: used before it is built.
        DamagedIndexError: a file is missing, cut short or changed.
        ValueError: a setting other than that of the index on disk.

    >>> import tempfile
    >>> import numpy as np, pandas as pd
    >>> index = MultiVecIndex(tempfile.mkdtemp() + "/toy.mv", dtype="float32")
    >>> _ = index.index([{"docno": "d1", "doc_embs": np.eye(2)}, {"docno": "d2", "doc_embs": -np.eye(2)}])
    >>> query = pd.DataFrame([{"qid": "1", "query_embs": np.array([[1.0, 0.0]])}])
    >>> index.retriever()(query)[["qid", "docno", "score", "rank"]]
      qid docno  score  rank
    0   1    d1    1.0     0
    1   1    d2    0.0     1
    """

    ARTIFACT_TYPE = "multivec_index"
    ARTIFACT_FORMAT = "mvret"
    ARTIFACT_PACKAGE_HINT = "pyterrier-mvret"
    _not_identity: ClassVar[tuple[str, ...]] = ("verbose",)

    def __init__(
        self,
        path: str | Path,
        *,
        dtype: Literal["float32", "float16", "int8"] | None = None,
        store_ids: bool = False,
        store_offsets: bool = False,
        verbose: bool = False,
    ):
        super().__init__(path)
        if dtype is not None and dtype not in CODECS:
            raise ValueError(f"dtype must be one of {', '.join(CODECS)}, got {dtype!r}")
        self.dtype = dtype
        self.store_ids, self.store_offsets = store_ids, store_offsets
        self.verbose = verbose

    # ------------------------------------------------------------------ verbs

    def indexer(self, mode: Mode = "create") -> MultiVecIndexer:
        """A stage that ends an indexing pipeline.

        Args:
            mode: ``"create"`` refuses to touch an index that exists, ``"overwrite"`` replaces it once the new one is
                complete, ``"append"`` adds a segment (same encoder, same settings, new docnos).
        """
        return MultiVecIndexer(self, mode)

    def retriever(
        self, model: Any = None, *, num_results: int | None = 1000, batch_size: int = 64, verbose: bool = False
    ) -> MultiVecRetriever:
        """Q with ``query_embs`` -> R: exact search, every document is scored; equal scores by docno.

        Args:
            model: the model (or its scoring rule) that says how vectors are scored; none is that of the model that
                built the index, plain MaxSim if none did.
            num_results: documents a query at most; none for all. ``retriever % k`` becomes ``num_results=k`` when
                the pipeline is compiled.
            batch_size: queries that share one pass over the index.
            verbose: a progress bar over the passes.
        """
        return MultiVecRetriever(self, model, num_results, batch_size, verbose)

    def scorer(self, model: Any = None, *, verbose: bool = False) -> MultiVecScorer:
        """R with ``query_embs`` and ``docno`` -> R scored from the stored vectors; a docno not stored is an error."""
        return MultiVecScorer(self, model, verbose)

    def vec_loader(self) -> VecLoader:
        """Frames with ``docno`` -> the same with ``doc_embs`` (and ids and offsets where stored)."""
        return VecLoader(self)

    # ------------------------------------------------------------------ building

    def index(self, iter: Iterable[Any], mode: Mode = "create") -> "MultiVecIndex":
        """Builds from records with ``docno`` and ``doc_embs``, streaming; see :meth:`indexer` for modes.

        Raises:
            FileExistsError: ``mode="create"`` where an index is.
            ValueError: a record that cannot be stored; nothing of this call is kept.
        """
        if mode not in ("create", "overwrite", "append"):
            raise ValueError(f"mode must be 'create', 'overwrite' or 'append', got {mode!r}")
        if mode == "create" and self.built():
            raise FileExistsError(f"{self.path} holds an index; choose mode='overwrite' or mode='append'")
        if not self.built() and segments.holds_other_files(self.path):
            raise FileExistsError(f"{self.path} exists and is no index: it is left alone")
        with segments.writing(self.path) as scratch:
            present = self._manifest_on_disk() if self.built() else None
            segments.keep_only(self.path, [scratch.name, *_names(present)])
            before = present if mode == "append" else None
            manifest = before or self._new_manifest()
            builder = SegmentBuilder(
                scratch,
                CODECS[manifest["dtype"]],
                manifest["dim"],
                store_ids=manifest["store_ids"],
                store_offsets=manifest["store_offsets"],
                known=self._known if before else None,
            )
            try:
                records = pt.tqdm(records_of(iter), desc="indexing", unit="d", disable=not self.verbose)
                builder.add(records)
                if builder.documents:
                    self._check_encoder(manifest, builder.encoder, first=before is None)
                    entry = builder.finish()
                    manifest["dim"] = builder.dim
                    manifest["segments"].append({"name": segments.publish(scratch).name, **entry})
            finally:
                builder.abort()
            segments.write_manifest(self.path, manifest)
            segments.keep_only(self.path, _names(manifest))
        self._forget()
        return self

    def index_inputs(self) -> list[list[str]]:
        """The columns that indexing needs."""
        columns = ["docno", frames.DOC_EMBS]
        columns += [frames.DOC_TOK_IDS] * self.store_ids + [frames.DOC_TOK_OFFSETS] * self.store_offsets
        return [columns]

    def _known(self, names: list[str]) -> Any:
        return self.store.positions(names) >= 0

    def _new_manifest(self) -> dict[str, Any]:
        return {
            "type": self.ARTIFACT_TYPE,
            "format": self.ARTIFACT_FORMAT,
            "package_hint": self.ARTIFACT_PACKAGE_HINT,
            "version": _VERSION,
            "dtype": self.dtype or "float16",
            "dim": None,
            "store_ids": self.store_ids,
            "store_offsets": self.store_offsets,
            "encoder": None,
            "segments": [],
        }

    def _check_encoder(self, manifest: dict[str, Any], found: str | None, first: bool) -> None:
        """The first build fixes the encoder; later ones must have made their vectors in the same way."""
        described = json.loads(found) if found else None
        if first or not manifest["segments"]:
            manifest["encoder"] = described
            return
        old = manifest["encoder"] or {}
        for key in ("space", "document", "normalize"):
            was, now = old.get(key), (described or {}).get(key)
            if key == "space":  # the part after # is the digest; names of copies may differ
                was, now = _digest(was), _digest(now)
            if was != now:
                raise ValueError(f"{self.path} was built with encoder {key}={was!r}; these documents have {now!r}")

    # ------------------------------------------------------------------ reading

    def built(self) -> bool:
        """Whether there is an index in the folder."""
        return (self.path / segments.MANIFEST).is_file()

    def _manifest_on_disk(self) -> dict[str, Any]:
        kind = (self.ARTIFACT_TYPE, self.ARTIFACT_FORMAT)
        manifest = segments.read_manifest(self.path, kind, _VERSION)
        if self.dtype not in (None, manifest["dtype"]):
            raise ValueError(f"{self.path} stores {manifest['dtype']}, and was opened with dtype={self.dtype!r}")
        for setting in ("store_ids", "store_offsets"):
            if getattr(self, setting) and not manifest[setting]:
                raise ValueError(f"{self.path} was built without {setting}=True")
        return manifest

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The contents of ``pt_meta.json``: settings, encoder, segments with sizes and checksums."""
        return self._manifest_on_disk()

    @cached_property
    def store(self) -> Store:
        """The memory-mapped segments, opened on first use."""
        try:
            return Store(self.path, self.manifest, CODECS[self.manifest["dtype"]])
        except segments.DamagedIndexError:
            present = self._manifest_on_disk()
            if present == self.manifest:
                raise
            self.manifest = present  # replaced by another process since it was read
            return Store(self.path, present, CODECS[present["dtype"]])

    def _forget(self) -> None:
        for name in ("manifest", "store"):
            self.__dict__.pop(name, None)

    @property
    def scoring(self) -> MaxSim:
        """The scoring rule of the model that built the index; plain MaxSim if none did."""
        return MaxSim(**(self.manifest["encoder"] or {}).get("scoring", {}))

    def check_space(self, space: str, what: str) -> None:
        """Raises ValueError if vectors of a space (``name#digest``) cannot be compared with those of the index."""
        mine = (self.manifest["encoder"] or {}).get("space")
        if mine is not None and _digest(mine) != _digest(space):
            raise ValueError(f"{self.path} holds vectors of encoder {mine}, {what} vectors of {space}")

    def __len__(self) -> int:
        return len(self.store)

    def __getstate__(self) -> dict[str, Any]:
        # a copy in another process maps the files itself
        return {k: v for k, v in self.__dict__.items() if k not in ("manifest", "store")}

    def info(self) -> dict[str, Any]:
        """Counts (documents, those without vectors, vectors, segments), bytes, dim, dtype, encoder."""
        entries = self.manifest["segments"]
        size = sum(file["bytes"] for entry in entries for file in entry["files"].values())
        vectors = sum(entry["vectors"] for entry in entries)
        return {
            "documents": sum(entry["documents"] for entry in entries),
            "empty": sum(entry["empty"] for entry in entries),
            "vectors": vectors,
            "dim": self.manifest["dim"],
            "dtype": self.manifest["dtype"],
            "bytes": size,
            "bytes_per_vector": round(size / vectors, 1) if vectors else None,
            "segments": len(entries),
            "encoder": (self.manifest["encoder"] or {}).get("space"),
        }

    def verify(self) -> None:
        """Reads every file and compares size and checksum with the manifest.

        Raises:
            DamagedIndexError: naming the first file that differs.
        """
        for entry in self._manifest_on_disk()["segments"]:
            for field, file in entry["files"].items():
                segments.check_digest(self.path / entry["name"] / f"{field}.npy", file)
        self._forget()
        len(self)


def _names(manifest: dict[str, Any] | None) -> list[str]:
    return [entry["name"] for entry in manifest["segments"]] if manifest else []


def _digest(space: str | None) -> str | None:
    return space.rpartition("#")[2] if space else None
