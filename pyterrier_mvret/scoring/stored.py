"""Token vectors in the forms in which they are stored, and back to float32.

Scoring reads them as they lie: the compiled kernel decodes what it needs in cache, everything else asks for ``floats``.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Residual:
    """What residual codes refer to (ColBERTv2, Santhanam et al. 2022, section 3.3).

    Attributes:
        ids: (rows,) int32, the centroid of each vector.
        centroids: (centroids, dim) float32.
        values: (2, 4 or 16,) float32, what each code of a dimension adds to the centroid.
        unit: whether decoded vectors are scaled to length one.
    """

    ids: Array
    centroids: Floats
    values: Floats
    unit: bool = True

    def __post_init__(self) -> None:
        # of the types that the kernel reads
        object.__setattr__(self, "ids", np.ascontiguousarray(self.ids, dtype=np.int32))
        object.__setattr__(self, "centroids", np.ascontiguousarray(self.centroids, dtype=np.float32))
        object.__setattr__(self, "values", np.ascontiguousarray(self.values, dtype=np.float32))

    @property
    def bits(self) -> int:
        """Bits a dimension: 1, 2 or 4."""
        return len(self.values).bit_length() - 1

    @cached_property
    def by_byte(self) -> Floats:
        """(256, 8 / bits): the values of the codes in each byte, the first code in the lowest bits."""
        shifts = np.arange(0, 8, self.bits)
        codes = np.arange(256)[:, None] >> shifts & (len(self.values) - 1)
        return np.ascontiguousarray(self.values[codes], dtype=np.float32)


@dataclass(frozen=True)
class StoredVectors:
    """Token vectors as a codec stores them.

    Attributes:
        vectors: (rows, dim) float32, float16, int8 or uint16 (the bits of bfloat16, which numpy lacks); or
            (rows, dim * bits / 8) uint8, residual codes.
        scales: (rows,) float32 that int8 vectors are to be multiplied with, or none.
        residual: what residual codes refer to.

    >>> StoredVectors(np.array([[127, -64]], np.int8), scales=np.array([0.5], np.float32)).floats(slice(None))
    array([[ 63.5, -32. ]], dtype=float32)
    """

    vectors: Array
    scales: Floats | None = None
    residual: Residual | None = None

    def __post_init__(self) -> None:
        if self.scales is not None:
            object.__setattr__(self, "scales", np.ascontiguousarray(self.scales, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int((self.vectors if self.residual is None else self.residual.centroids).shape[1])

    @property
    def whole_numbers(self) -> bool:
        """Whether products are of whole numbers: int8 vectors meet query tokens rounded to 8 bits (:func:`rounded`)."""
        return self.vectors.dtype == np.int8

    def floats(self, rows: "slice | npt.NDArray[np.int64]") -> Floats:
        """Rows as (rows, dim) float32.

        Raises:
            ValueError: residual codes that refer to a centroid that is not there.
        """
        stored = np.asarray(self.vectors[rows])
        if self.residual is not None:
            return self._restored(stored, np.asarray(self.residual.ids[rows]))
        if stored.dtype == np.uint16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        decoded = stored.astype(np.float32, copy=False)
        return decoded if self.scales is None else decoded * np.asarray(self.scales[rows])[:, None]

    def _restored(self, codes: Array, ids: Array) -> Floats:
        residual = self.residual
        assert residual is not None
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(residual.centroids):
            raise ValueError("a vector's centroid is not among the centroids: damaged codes")
        decoded = residual.centroids[ids] + residual.by_byte[codes].reshape(len(codes), self.dim)
        if residual.unit:
            norms = np.linalg.norm(decoded, axis=1, keepdims=True)
            decoded /= np.where(norms > 0, norms, 1)
        return decoded


def as_stored(vectors: Any) -> StoredVectors:
    """Vectors in a form that scoring reads: bfloat16 tensors as they are, arrays of unusual types as float32."""
    if isinstance(vectors, StoredVectors):
        return vectors
    if str(getattr(vectors, "dtype", "")) == "torch.bfloat16":
        import torch

        return StoredVectors(vectors.detach().cpu().view(torch.int16).numpy().view(np.uint16))
    array = np.asarray(vectors)
    if array.dtype.name == "bfloat16":  # of the ml_dtypes package
        return StoredVectors(array.view(np.uint16))
    kept = array.dtype in (np.dtype("f4"), np.dtype("f2"), np.dtype("i1"))
    return StoredVectors(array if kept else array.astype(np.float32))


def rounded(queries: Floats) -> tuple[Floats, Floats]:
    """Query tokens as whole numbers from -127 to 127, and what each is to be multiplied with.

    Products with int8 vectors are then exact, up to 1,040 dimensions: every way of computing them gives the same.

    >>> rounded(np.array([[0.5, -1.0], [0.0, 0.0]], np.float32))
    (array([[  64., -127.],
           [   0.,    0.]], dtype=float32), array([0.00787402, 0.        ], dtype=float32))
    """
    sizes = np.abs(queries).max(axis=1, initial=0) / np.float32(127)
    return np.rint(queries / np.where(sizes > 0, sizes, 1)[:, None]), sizes
