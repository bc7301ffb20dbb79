"""How float32 vectors are stored: the arrays a codec writes, and what scoring reads of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes import residual
from pyterrier_mvret.scoring import Residual, StoredVectors

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Codec:
    """One way of storing vectors.

    Attributes:
        name: what users pass as ``dtype``.
        fields: name and type of each array with a row a vector; ``vectors`` is two-dimensional, any other is not.
        encode: (rows, dim) float32 to one array a field.
        bits: of residual codes, which must be learned: until all vectors are there, they are kept as ``encode`` has
            them.
    """

    name: str
    fields: Mapping[str, str]
    encode: Callable[[Floats], Arrays]
    bits: int = 0

    def check(self, dim: int) -> None:
        """Raises ValueError if vectors of so many dimensions cannot be stored."""
        if dim * self.bits % 8:
            raise ValueError(f"{self.name} fills whole bytes: {dim} dimensions are no multiple of {8 // self.bits}")

    def stored(self, arrays: Arrays, unit: bool) -> StoredVectors:
        """What scoring reads; ``unit`` says whether residual codes stand for vectors of length one."""
        if not self.bits:
            return StoredVectors(arrays["vectors"], arrays.get("scales"))
        centroids = np.asarray(arrays["centroids"], dtype=np.float32)
        references = Residual(arrays["centroid_ids"], centroids, np.asarray(arrays["code_values"]), unit)
        return StoredVectors(arrays["vectors"], residual=references)


def _encode_int8(vectors: Floats) -> Arrays:
    """Each vector on its own scale: its largest absolute value becomes 127, so the error is at most scale / 2."""
    work = np.abs(vectors)  # one array of this size, not three: fresh memory costs more than the arithmetic
    scales = work.max(axis=1, initial=0) / 127
    np.divide(vectors, np.where(scales > 0, scales, 1)[:, None], out=work)
    np.rint(work, out=work)
    return {"vectors": work.astype(np.int8), "scales": scales.astype(np.float32)}


def _encode_bfloat16(vectors: Floats) -> Arrays:
    """The upper half of each float32, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(vectors).view(np.uint32)
    return {"vectors": ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)}


def _cast(dtype: str) -> Callable[[Floats], Arrays]:
    def encode(vectors: Floats) -> Arrays:
        with np.errstate(over="ignore"):
            return {"vectors": vectors.astype(dtype, copy=False)}

    return encode


_RESIDUAL = {field: residual.FIELDS[field] for field in ("vectors", "centroid_ids")}
CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("float32", {"vectors": "<f4"}, _cast("<f4")),
        Codec("float16", {"vectors": "<f2"}, _cast("<f2")),
        Codec("bfloat16", {"vectors": "<u2"}, _encode_bfloat16),
        Codec("int8", {"vectors": "|i1", "scales": "<f4"}, _encode_int8),
        *(Codec(f"residual{bits}", _RESIDUAL, _cast("<f2"), bits) for bits in (1, 2, 4)),
    )
}
