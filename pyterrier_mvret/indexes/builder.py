"""From a stream of document records to one segment on disk; what stays in memory are two hashes a document.

Where codes are learned, a sample of the vectors is held besides.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret import frames
from pyterrier_mvret.indexes import derive, docnos, quantize, residual
from pyterrier_mvret.indexes.codecs import Codec
from pyterrier_mvret.indexes.columns import TOKENS, Columns
from pyterrier_mvret.indexes.extras import EXTRAS, Extra
from pyterrier_mvret.indexes.segment_writer import Record, SegmentWriter
from pyterrier_mvret.scoring import StoredVectors

# what is held before it is written: at most so many documents, and about so many vectors; so few stay in cache
# between being copied, converted, hashed and written
_DOCUMENTS_A_BLOCK = 256
_VECTORS_A_BLOCK = 1 << 12
# vectors from which on candidates by codes save time (benchmarks/end_to_end.json)
QUANTIZED_FROM = 1 << 19
# squared length from which on sums of squares leave float32, and k-means with them
_LONGEST = 1e30


class _Block:
    """Documents that wait to be written together.

    Vectors are copied: a generator may use one array, or one record, for all its documents. They are copied into one
    array that stays, as memory that is taken from the system anew for each block costs more than the copying.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lengths: list[int] = []
        self.extras: list[Mapping[str, npt.NDArray[Any]]] = []
        self._rows = np.empty((0, 0), dtype=np.float32)
        self._used = 0

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """The vectors of all documents, packed; valid until the block is changed."""
        return self._rows[: self._used]

    def add(self, name: str, matrix: npt.NDArray[Any], extras: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds a document, with other arrays a token by field; all have vectors of the same dimensions."""
        end, dim = self._used + len(matrix), matrix.shape[1]
        if end > len(self._rows) or dim != self._rows.shape[1]:  # the first document, or a very long one
            rows = np.empty((end + _VECTORS_A_BLOCK, dim), dtype=np.float32)
            if self._used:
                rows[: self._used] = self.vectors
            self._rows = rows
        self._rows[self._used : end] = matrix
        self._used = end
        self.names.append(name)
        self.lengths.append(len(matrix))
        self.extras.append(extras)

    def is_full(self) -> bool:
        """Whether it is time to write."""
        return len(self.names) == _DOCUMENTS_A_BLOCK or self._used >= _VECTORS_A_BLOCK

    def clear(self) -> None:
        """Forgets the documents."""
        self.names, self.lengths, self.extras, self._used = [], [], [], 0


class SegmentBuilder(SegmentWriter):
    """Writes the arrays of one segment.

    Args:
        folder: an empty folder to write into.
        codec: how vectors are stored.
        dim: dimensions, or none to take the first document's.
        columns: where a record has its vectors.
        store_ids: keep ``doc_tok_ids``.
        store_offsets: keep ``doc_tok_offsets``.
        store_weights: keep ``doc_weights``; none keeps them if the first document has any.
        known: names -> whether each is already in the index, for appending.
        check_encoder: called once, with how the first document's vectors were made (or None), before it is written.
        quantized: keep codes for picking candidates; none does from :data:`QUANTIZED_FROM` vectors on.
        verbose: a progress bar over what is left to do once all vectors are there.
    """

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        dim: int | None,
        *,
        columns: Columns = TOKENS,
        store_ids: bool = False,
        store_offsets: bool = False,
        store_weights: bool | None = None,
        known: Callable[[list[str]], npt.NDArray[np.bool_]] | None = None,
        check_encoder: Callable[[dict[str, Any] | None], None] | None = None,
        quantized: bool | None = None,
        verbose: bool = False,
    ):
        super().__init__(folder, known, check_encoder)
        self.codec, self.dim = codec, dim
        self.content, self.made_by, self._rows_of = columns.doc, columns.doc_encoder, columns.rows
        self.vectors = 0
        self._quantized, self._verbose = quantized, verbose
        self._shortest, self._longest = np.inf, 0.0  # squared lengths of vectors
        self._keep = {"token_ids": store_ids, "token_offsets": store_offsets, "token_weights": store_weights}

    def add(self, records: Iterable[Record]) -> None:
        """Consumes the stream.

        Raises:
            ValueError: a record that cannot be stored, by docno; nothing of the stream is kept then.
        """
        block = _Block()
        for record in records:
            first = not self.documents and not block.names
            name = self._name(record, first)
            if first and self._keep["token_weights"] is None:
                self._keep["token_weights"] = not frames.is_missing(record.get(frames.DOC_WEIGHTS))
            matrix = self._matrix(record, name)
            extras = {field: extra.of(record, name, len(matrix)) for field, extra in self._extras}
            block.add(name, matrix, extras)
            if block.is_full():
                self._add_block(block)
                block.clear()
        if block.names:
            self._add_block(block)

    def _add_block(self, block: "_Block") -> None:
        names = block.names
        self._check_new(names)
        lengths, vectors = np.array(block.lengths, dtype=np.int64), block.vectors
        self._write("offsets", "<i8", None, self._running(self.vectors, lengths, self.documents))
        self.codec.check(vectors.shape[1])
        with np.errstate(over="ignore"):  # infinity is long enough
            lengths_squared = np.einsum("ij,ij->i", vectors, vectors)
        self._shortest = min(self._shortest, lengths_squared.min(initial=np.inf))
        self._longest = max(self._longest, lengths_squared.max(initial=0))
        for field, array in self.codec.encode(vectors).items():
            if not _all_finite(array):
                row = next(i for i in range(len(array)) if not _all_finite(array[i]))
                name = names[int(np.searchsorted(np.cumsum(lengths), row, side="right"))]
                raise ValueError(f"vectors of document {name!r} do not fit {self.codec.name}: use float32")
            self._write_rows(field, array)
        for field, extra in self._extras:
            rows = np.concatenate([extras[field] for extras in block.extras])
            self._write(field, extra.dtype, extra.columns, rows)
        self._write_names(names)
        self.vectors += len(vectors)
        self.empty += int((lengths == 0).sum())

    def _matrix(self, record: Record, name: str) -> npt.NDArray[Any]:
        value = record.get(self.content)
        if frames.is_missing(value):
            raise ValueError(f"document {name!r} has no {self.content}: put an encoder before the index")
        matrix = self._rows_of(value, f"{self.content} of document {name!r}")
        if not matrix.shape[1]:
            raise ValueError(f"document {name!r} has vectors of 0 dimensions")
        if self.dim is None:
            self.dim = matrix.shape[1]
        if matrix.shape[1] != self.dim:
            raise ValueError(f"document {name!r} has vectors of {matrix.shape[1]} dimensions, the index {self.dim}")
        return matrix

    @property
    def _extras(self) -> list[tuple[str, "Extra"]]:
        """Per-token arrays that travel with the vectors."""
        return [(field, extra) for field, extra in EXTRAS.items() if self._keep[field]]

    @property
    def weighed(self) -> bool:
        """Whether documents' token weights are kept."""
        return bool(self._keep["token_weights"])

    def finish(self) -> dict[str, Any]:
        """Completes all files; returns the segment's entry in the manifest."""
        self._write_lookup()
        files = self._close()
        # up to what half precision leaves of it
        unit = bool(self.vectors and 0.98 < self._shortest <= self._longest < 1.02)
        self._derive(unit)
        files |= self._close()
        return {
            "documents": self.documents,
            "vectors": self.vectors,
            "empty": self.empty,
            "hash_probe": docnos.hash_probe(),
            "unit": unit,
            "files": files,
        }

    def _derive(self, unit: bool) -> None:
        """Writes what is learned from the vectors.

        Raises:
            ValueError: codes asked for, and vectors whose squared distances are beyond float32.
        """
        learnable = self.vectors >= quantize.FEWEST and self._longest < _LONGEST
        quantized = learnable and (self.vectors >= QUANTIZED_FROM if self._quantized is None else self._quantized)
        if self._quantized and self._longest >= _LONGEST:
            raise ValueError("quantize=True: some vectors are too long for their distances to fit float32")
        if not (quantized or self.codec.bits):
            return
        spool = self.folder / "spool.npy"
        if self.codec.bits:
            (self.folder / "vectors.npy").rename(spool)
        sizes = residual.sampled(self.vectors) if self.codec.bits else 0, quantize.SAMPLED if quantized else 0
        sample = derive.sample(self._source, self.vectors, max(sizes))
        coders: list[derive.Coder] = []
        if self.codec.bits:
            coders.append(residual.ResidualCodec(sample, self.vectors, self.codec.bits, unit))
        if quantized:
            coders.append(quantize.Encoder(quantize.learn(sample[: quantize.SAMPLED])))
        derive.derive(self._source, self.vectors, coders, self._write_rows, self._verbose)
        spool.unlink(missing_ok=True)

    def _source(self) -> StoredVectors:
        """The vectors that were written."""
        if not self.vectors:
            return StoredVectors(np.empty((0, self.dim or 0), np.float32))
        fields = {"spool": "vectors"} if self.codec.bits else {field: field for field in self.codec.fields}
        arrays = {field: np.load(self.folder / f"{file}.npy", mmap_mode="r") for file, field in fields.items()}
        return StoredVectors(arrays["vectors"], arrays.get("scales"))


def _all_finite(array: npt.NDArray[Any]) -> bool:
    """As ``np.isfinite(array).all()``, which for float16 takes longer than writing to disk; uint16 are bfloat16.

    >>> [_all_finite(np.array([1, x], np.float16)) for x in (-65504, np.nan, -np.inf)]
    [True, False, False]
    """
    if array.dtype == np.float16:
        return int((array.view(np.uint16) & 0x7C00).max(initial=0)) < 0x7C00
    if array.dtype == np.uint16:
        return int((array & 0x7F80).max(initial=0)) < 0x7F80
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
