"""What indexes of vectors share, however many vectors a document has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes.builder import SegmentBuilder
from pyterrier_mvret.indexes.codecs import CODECS
from pyterrier_mvret.indexes.columns import Columns
from pyterrier_mvret.indexes.segmented import SegmentedIndex
from pyterrier_mvret.indexes.stages import VecLoader
from pyterrier_mvret.indexes.store import Store

Dtype = Literal["float32", "float16", "bfloat16", "int8", "residual1", "residual2", "residual4"]


class VectorIndex(SegmentedIndex[Store]):
    """Base of the indexes of vectors: how vectors are stored, opened and counted."""

    _KEYS: ClassVar[tuple[str, ...]] = ("dtype", "dim", "encoder", "segments")
    _SEGMENT_KEYS = ("name", "documents", "vectors", "empty", "hash_probe", "files")
    #: where its stages find vectors
    columns: ClassVar[Columns]
    #: of an index that is built anew, where none is asked for
    _DTYPE: ClassVar[Dtype]
    _QUANTIZE: ClassVar[bool | None] = None
    dtype: Dtype | None
    quantize: bool | None

    def _take(self, dtype: Dtype | None, quantize: bool | None) -> None:
        """Sets what says how vectors are stored."""
        if dtype is not None and dtype not in CODECS:
            raise ValueError(f"dtype must be one of {', '.join(CODECS)}, got {dtype!r}")
        if quantize is not None and not isinstance(quantize, bool | np.bool_):
            raise ValueError(f"quantize must be True, False or None, got {quantize!r}")
        self.dtype, self.quantize = dtype, quantize

    def vec_loader(self) -> VecLoader:
        """Frames with ``docno`` -> the same with the stored vectors, as float32."""
        return VecLoader(self)

    # ------------------------------------------------------------------ building

    def index_inputs(self) -> list[list[str]]:
        """The columns that indexing needs."""
        return [["docno", self.columns.doc]]

    def _new_manifest(self) -> dict[str, Any]:
        return super()._new_manifest() | {
            "dtype": self.dtype or self._DTYPE,
            "quantize": self._QUANTIZE if self.quantize is None else bool(self.quantize),
            "dim": None,
        }

    def _builder(self, folder: Path, manifest: dict[str, Any], before: Store | None) -> SegmentBuilder:
        return SegmentBuilder(
            folder,
            CODECS[manifest["dtype"]],
            manifest["dim"],
            columns=self.columns,
            **self._kept(manifest),
            known=(lambda names: before.positions(names) >= 0) if before is not None else None,
            check_encoder=lambda found: self._check_encoder(manifest, found),
            quantized=manifest.get("quantize"),
            verbose=self.verbose,
        )

    def _kept(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """What is kept of each vector besides: the builder's ``store_ids``, ``store_offsets``, ``store_weights``."""
        return {"store_weights": False}

    def _learned(self, builder: SegmentBuilder) -> dict[str, Any]:
        return {"dim": builder.dim}

    # ------------------------------------------------------------------ reading

    def _open(self, manifest: dict[str, Any]) -> Store:
        return Store(self.path, manifest)

    def _check_settings(self, manifest: dict[str, Any]) -> None:
        if self.dtype not in (None, manifest["dtype"]):
            raise ValueError(f"{self.path} stores {manifest['dtype']}, and was opened with dtype={self.dtype!r}")
        if self.quantize not in (None, manifest.get("quantize")):
            raise ValueError(f"{self.path} was built with quantize={manifest.get('quantize')}, not {self.quantize}")

    def holds(self, docnos: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each of these documents is in the index.

        >>> import tempfile
        >>> import pyterrier_mvret as mv
        >>> index = mv.SingleVecIndex(tempfile.mkdtemp() + "/toy.vec")
        >>> index.index([{"docno": "d1", "doc_vec": [1.0, 2.0]}]).holds(["d1", "d2"]).tolist()
        [True, False]
        """
        return self.store.positions(docnos) >= 0

    def info(self) -> dict[str, Any]:
        """Counts (documents, those without vectors, vectors, segments), bytes, dim, dtype, encoder.

        >>> import tempfile
        >>> import numpy as np, pyterrier_mvret as mv
        >>> index = mv.MultiVecIndex(tempfile.mkdtemp() + "/toy.mv", dtype="int8")
        >>> info = index.index([{"docno": "d1", "doc_embs": np.eye(2)}]).info()
        >>> info["documents"], info["vectors"], info["dim"], info["dtype"]
        (1, 2, 2, 'int8')
        """
        entries = self.manifest["segments"]
        size = sum(file["bytes"] for entry in entries for file in entry["files"].values())
        vectors = sum(entry["vectors"] for entry in entries)
        return {
            "documents": sum(entry["documents"] for entry in entries),
            "empty": sum(entry["empty"] for entry in entries),
            "vectors": vectors,
            "dim": self.manifest["dim"],
            "dtype": self.manifest["dtype"],
            "quantized": self.store.quantized > 0,
            "bytes": size,
            "bytes_per_vector": round(size / vectors, 1) if vectors else None,
            "segments": len(entries),
            "encoder": (self.manifest["encoder"] or {}).get("space"),
        }
