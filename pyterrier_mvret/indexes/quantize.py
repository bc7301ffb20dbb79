"""Product quantisation of token vectors, for picking candidates (:mod:`pyterrier_mvret.scoring.quantized`)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.quantized import Quantizer

Floats = npt.NDArray[np.float32]

FIELDS = {"pq_codes": "|u1", "pq_rotation": "<f4", "pq_centroids": "<f4"}
#: vectors that a quantiser can be learned from at least
FEWEST = 1 << 10
#: vectors that it is learned from at most
SAMPLED = 1 << 16
_CODES = 256
_PARTS = 16
_SEED = 123


def learn(sample: Floats) -> Quantizer:
    """A quantiser with 16 parts (fewer below 16 dimensions).

    Vectors are first turned by a random rotation, so that all parts matter alike; on MiniLM's vectors a learned one
    (OPQ) was no better (benchmarks/NOTES.md).

    Args:
        sample: (at least :data:`FEWEST`, dim) vectors.
    """
    import faiss

    dim = sample.shape[1]
    parts = min(_PARTS, dim)
    width = -(-dim // parts)
    square = np.random.default_rng(_SEED).standard_normal((parts * width, parts * width))
    rotation = np.ascontiguousarray(np.linalg.qr(square)[0][:dim], dtype=np.float32)
    quantizer = faiss.ProductQuantizer(parts * width, parts, 8)
    quantizer.cp.seed, quantizer.cp.niter, quantizer.cp.min_points_per_centroid = _SEED, 8, 1
    quantizer.train(sample @ rotation)
    return Quantizer(rotation, faiss.vector_to_array(quantizer.centroids).reshape(parts, _CODES, width))


class Encoder:
    """Codes vectors with a quantiser."""

    def __init__(self, quantizer: Quantizer):
        import faiss

        self.quantizer = quantizer
        parts, _, width = quantizer.centroids.shape
        self._quantizer = faiss.ProductQuantizer(parts * width, parts, 8)
        faiss.copy_array_to_vector(quantizer.centroids.ravel(), self._quantizer.centroids)

    def encode(self, vectors: Floats) -> dict[str, npt.NDArray[Any]]:
        """(rows, dim) vectors as (rows, parts) bytes."""
        return {"pq_codes": self._quantizer.compute_codes(np.ascontiguousarray(vectors @ self.quantizer.rotation))}

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """What scoring needs besides; centroids of all parts as one table."""
        centroids = self.quantizer.centroids
        return {
            "pq_rotation": self.quantizer.rotation,
            "pq_centroids": centroids.reshape(-1, centroids.shape[2]),
        }


def quantizer_of(arrays: dict[str, npt.NDArray[Any]]) -> Quantizer:
    """The quantiser of a segment's arrays."""
    rotation, centroids = np.asarray(arrays["pq_rotation"]), np.asarray(arrays["pq_centroids"])
    return Quantizer(rotation, centroids.reshape(-1, _CODES, centroids.shape[1]))
