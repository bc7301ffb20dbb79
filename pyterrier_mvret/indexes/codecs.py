"""How float32 vectors are stored: the arrays a codec writes, and back to float32."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Codec:
    """One way of storing vectors.

    Attributes:
        name: what users pass as ``dtype``.
        fields: name and type of each array that is written; ``vectors`` has ``dim`` columns, any other has one.
        encode: (rows, dim) float32 to one array a field.
        decode: rows of those arrays back to (rows, dim) float32.
    """

    name: str
    fields: Mapping[str, str]
    encode: Callable[[Floats], Arrays]
    decode: Callable[[Arrays], Floats]


def _encode_int8(vectors: Floats) -> Arrays:
    """Each vector on its own scale: its largest absolute value becomes 127, so the error is at most scale / 2."""
    work = np.abs(vectors)  # one array of this size, not three: fresh memory costs more than the arithmetic
    scales = work.max(axis=1, initial=0) / 127
    np.divide(vectors, np.where(scales > 0, scales, 1)[:, None], out=work)
    np.rint(work, out=work)
    return {"vectors": work.astype(np.int8), "scales": scales.astype(np.float32)}


def _decode_int8(arrays: Arrays) -> Floats:
    decoded = arrays["vectors"].astype(np.float32)
    decoded *= arrays["scales"][:, None]
    return decoded


def _cast(dtype: str) -> Callable[[Floats], Arrays]:
    def encode(vectors: Floats) -> Arrays:
        with np.errstate(over="ignore"):
            return {"vectors": vectors.astype(dtype, copy=False)}

    return encode


def _widen(arrays: Arrays) -> Floats:
    return arrays["vectors"].astype(np.float32, copy=False)


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("float32", {"vectors": "<f4"}, _cast("<f4"), _widen),
        Codec("float16", {"vectors": "<f2"}, _cast("<f2"), _widen),
        Codec("int8", {"vectors": "|i1", "scales": "<f4"}, _encode_int8, _decode_int8),
    )
}
