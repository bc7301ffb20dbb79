"""Approximate MaxSim from product-quantised token vectors (Jégou et al. 2011): what picks candidates to score exactly.

A vector is cut into parts, each replaced by the nearest of 256 centroids of that part, so it takes a byte a part. The
similarity of a query token is then a sum of table entries, one a part; entries are bytes, so the table stays in cache.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring import fused
from pyterrier_mvret.scoring.ragged import check_runs, in_blocks, ragged_rows

try:
    from pyterrier_mvret.scoring import _quantized  # type: ignore[attr-defined]
except ImportError:  # installed without a compiler
    _quantized = None

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_BLOCK = 32  # query tokens an entry of the table holds; BLOCK in quantized.c
# what a look-up of 32 entries costs beside a product of the MaxSim kernel, for sharing out work
_PRODUCTS_A_LOOKUP = 32
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Quantizer:
    """Where the parts of vectors go.

    Attributes:
        rotation: (dim, parts * width) float32 with orthonormal rows: spreads what matters over all parts.
        centroids: (parts, 256, width) float32.
    """

    rotation: Floats
    centroids: Floats

    def table(self, query: Floats, weights: Floats | None = None) -> "QueryTable":
        """The similarities of a query's tokens with all centroids.

        Args:
            query: (query tokens, dim) float32.
            weights: (query tokens,) or none.

        Raises:
            ValueError: similarities beyond float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            return self._table(query, weights)

    def _table(self, query: Floats, weights: Floats | None) -> "QueryTable":
        parts, codes, width = self.centroids.shape
        tokens = len(query)
        pieces = (query @ self.rotation).reshape(tokens, parts, width)
        products = np.ascontiguousarray(self.centroids @ pieces.transpose(1, 2, 0), dtype=np.float32)
        low, high = products.min(axis=1), products.max(axis=1)
        # rounded entries of all parts must still fit into a byte together
        step = np.maximum((high - low).sum(axis=0) / np.float32(255 - parts), np.float32(1e-12))
        table = np.empty((-(-tokens // _BLOCK), parts, codes, _BLOCK), np.uint8)
        fill = _fill if _quantized is None or not fused.versions() else _quantized.fill
        fill(products, np.ascontiguousarray(low), step, table, parts, tokens)
        worth = np.zeros(len(table) * _BLOCK, np.float32)
        worth[:tokens] = step if weights is None else step * weights
        lowest = low.sum(axis=0)
        base = float((lowest if weights is None else lowest * weights).sum())
        if not (np.isfinite(base) and np.isfinite(worth).all() and np.isfinite(step).all()):
            raise ValueError("a score is not finite: the query holds NaN, or products beyond float32")
        return QueryTable(table, worth.reshape(-1, _BLOCK), base)


@dataclass(frozen=True)
class QueryTable:
    """Similarities of one query's tokens with the centroids of all parts, as bytes.

    Attributes:
        table: (blocks of 32 query tokens, parts, 256, 32) uint8.
        weights: (blocks, 32) float32: what a step of the table is worth for each query token.
        base: what a document scores whose entries are all zero.
    """

    table: npt.NDArray[np.uint8]
    weights: Floats
    base: float

    def scores(self, codes: Array, starts: Ints, ends: Ints) -> Floats:
        """Approximate MaxSim.

        Args:
            codes: (rows, parts) uint8.
            starts: (documents,) integers; document ``d`` is rows ``starts[d]:ends[d]``.
            ends: (documents,) integers.

        Returns:
            (documents,) float32; meaningless for a document without rows.

        Raises:
            ValueError: codes of another shape, or documents that leave them.
        """
        out = np.full(len(starts), self.base, np.float32)
        blocks, parts = self.table.shape[:2]
        starts, ends = (np.ascontiguousarray(a, dtype=np.int64) for a in (starts, ends))
        if codes.ndim != 2 or codes.shape[1] != parts or codes.dtype != np.uint8:
            raise ValueError(f"codes must be (rows, {parts}) bytes, got {codes.dtype} of shape {codes.shape}")
        check_runs(starts, ends, len(codes), "a document")
        if _quantized is None or not fused.versions():
            return self._looked_up(codes, starts, ends, out)
        sizes = (blocks, parts, len(codes), len(starts))

        def run(first: int, last: int) -> None:
            _quantized.approximate(self.table, self.weights, codes, starts, ends, out, *sizes, first, last)

        fused.in_threads(run, np.cumsum(ends - starts), _PRODUCTS_A_LOOKUP * blocks * parts)
        return out

    def _looked_up(self, codes: Array, starts: Ints, ends: Ints, out: Floats) -> Floats:
        """The same where nothing was compiled."""
        filled = np.flatnonzero(ends > starts)
        lengths = (ends - starts)[filled]
        for block in in_blocks(lengths, _ROWS_AT_ONCE):
            mine = filled[block]
            rows = np.asarray(codes[ragged_rows(starts[mine], lengths[block])])
            cuts = np.cumsum(lengths[block]) - lengths[block]
            for table, weights in zip(self.table, self.weights, strict=True):
                sums = table[0, rows[:, 0]].copy()
                for part in range(1, len(table)):
                    sums += table[part, rows[:, part]]
                out[mine] += np.maximum.reduceat(sums, cuts, axis=0) @ weights
        return out


def _fill(products: Floats, low: Floats, step: Floats, table: Array, parts: int, tokens: int) -> None:
    """``fill`` of the compiled module."""
    scaled = np.clip((products - low[:, None]) / step + np.float32(0.5), 0, 255).astype(np.uint8)
    table[:] = 0
    for b in range(len(table)):
        part = scaled[:, :, b * _BLOCK : (b + 1) * _BLOCK]
        table[b, :, :, : part.shape[2]] = part
