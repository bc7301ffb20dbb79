"""Residual codes: a vector as its nearest centroid and a few bits a dimension (ColBERTv2, Santhanam et al. 2022, 3.3).

Centroids are learned on a sample of the vectors, the values of the codes on others: each residual's code is the bucket
it falls into, buckets are equally full, and a code stands for the middle of its bucket.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

FIELDS = {"vectors": "|u1", "centroid_ids": "<i4", "centroids": "<f2", "code_values": "<f4"}
_SEED = 123
_ITERATIONS = 4  # of k-means, as in ColBERTv2's code
_SAMPLED_A_CENTROID = 32
_HELD_OUT = 50_000  # vectors at most that residuals are taken from
# above this many centroids, k-means and assignment go through cells of centroids
_FLAT = 2048
_CELLS_PROBED = 4


def centroid_count(vectors: int) -> int:
    """How many centroids (ColBERTv2's rule, held back for small collections): a power of two near 16 sqrt(vectors).

    >>> [centroid_count(n) for n in (0, 50, 1_000, 100_000, 1_000_000)]
    [1, 12, 250, 4096, 8192]
    """
    return max(1, min(1 << int(np.log2(16 * np.sqrt(max(vectors, 1)))), vectors // 4))


def sampled(vectors: int) -> int:
    """How many vectors to learn from."""
    return min(vectors, _SAMPLED_A_CENTROID * centroid_count(vectors) + _HELD_OUT)


def _flat(vectors: Floats, unit: bool) -> Any:
    """An index of all vectors: by inner product where they have length one, else by distance."""
    import faiss

    index = (faiss.IndexFlatIP if unit else faiss.IndexFlatL2)(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return index


def _k_means(sample: Floats, count: int, unit: bool) -> Floats:
    import faiss

    means = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=_ITERATIONS,
        seed=_SEED,
        spherical=unit,
        min_points_per_centroid=1,
        max_points_per_centroid=1 << 30,
    )
    means.train(np.ascontiguousarray(sample))
    return np.asarray(means.centroids, dtype=np.float32)


def _k_means_in_cells(sample: Floats, count: int, unit: bool) -> Floats:
    """K-means within each cell of a coarse k-means: as good for this purpose, and far from quadratic."""
    cells = _k_means(sample[: 64 * _FLAT], int(count**0.5), unit)
    owner = _flat(cells, unit).search(sample, 1)[1][:, 0]
    members = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner, minlength=len(cells)))[:-1])
    # each cell gets its share, and at least one
    return np.concatenate(
        [_k_means(sample[rows], max(1, count * len(rows) // len(sample)), unit) for rows in members if len(rows)]
    )


def _searchable(centroids: Floats, unit: bool) -> tuple[Any, ...]:
    """A faiss index that finds the nearest centroid, with what it refers to and does not own.

    Where there are many centroids, it looks into the nearest cells of them.
    """
    import faiss

    if len(centroids) <= _FLAT:
        return (_flat(centroids, unit),)
    cells = _k_means(centroids, int(len(centroids) ** 0.5), unit)
    metric = faiss.METRIC_INNER_PRODUCT if unit else faiss.METRIC_L2
    coarse = _flat(cells, unit)
    index: Any = faiss.IndexIVFFlat(coarse, centroids.shape[1], len(cells), metric)
    index.train(cells)
    index.add(centroids)
    index.nprobe = _CELLS_PROBED
    return index, coarse


class ResidualCodec:
    """Codes vectors.

    Args:
        sample: (rows, dim) vectors in random order, to learn from.
        vectors: how many are to be coded.
        bits: bits a dimension: 1, 2 or 4.
        unit: whether all vectors have length one.
    """

    def __init__(self, sample: Floats, vectors: int, bits: int, unit: bool = True):
        self.bits, self.unit = bits, unit
        held_out = min(_HELD_OUT, len(sample) // 20)
        self.centroids = self._learn_centroids(sample[held_out:], centroid_count(vectors))
        self._index = _searchable(self.centroids, self.unit)
        self._learn_values(sample[:held_out] if held_out else sample)

    def _learn_centroids(self, sample: Floats, count: int) -> Floats:
        if not len(sample):
            return np.zeros((1, sample.shape[1]), np.float32)
        learn = _k_means if count <= _FLAT else _k_means_in_cells
        # residuals are taken from centroids as they are stored
        return learn(sample, min(count, len(sample)), self.unit).astype(np.float16).astype(np.float32)

    def _learn_values(self, sample: Floats) -> None:
        residuals = sample - self.centroids[self.nearest(sample)]
        count = 2**self.bits
        levels = (np.arange(1, 2 * count) / (2 * count)).astype(np.float64)
        quantiles = np.quantile(residuals, levels) if len(sample) else np.zeros(len(levels))
        self.values, self._cuts = quantiles[::2].astype(np.float32), quantiles[1::2].astype(np.float32)

    def nearest(self, vectors: Floats) -> npt.NDArray[np.int32]:
        """Each vector's centroid, found among the nearest cells of centroids where there are many."""
        if not len(vectors):
            return np.empty(0, np.int32)
        return self._index[0].search(np.ascontiguousarray(vectors), 1)[1][:, 0].astype(np.int32)

    def encode(self, vectors: Floats) -> dict[str, npt.NDArray[Any]]:
        """(rows, dim) vectors as ``vectors`` (rows, dim * bits / 8) uint8 and ``centroid_ids`` (rows,) int32."""
        ids = self.nearest(vectors)
        residuals = vectors - self.centroids[ids]
        codes: npt.NDArray[np.uint8] = np.zeros(residuals.shape, np.uint8)
        for cut in self._cuts:  # a value equal to a cut belongs below it
            codes += residuals > cut
        each = 8 // self.bits
        packed = np.zeros((len(codes), vectors.shape[1] // each), np.uint8)
        for place in range(each):  # the first dimension in the lowest bits
            packed |= codes[:, place::each] << (place * self.bits)
        return {"vectors": packed, "centroid_ids": ids}

    def learned(self) -> dict[str, npt.NDArray[Any]]:
        """What decoding needs besides."""
        return {"centroids": self.centroids.astype(np.float16), "code_values": self.values}
