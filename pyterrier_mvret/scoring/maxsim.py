"""MaxSim: each query token takes its best document token (ColBERT, Khattab and Zaharia 2020, equation 3).

    S(Q, D) = sum_i w_i max_j <Q_i, D_j>

Documents are *packed*: the token vectors of all of them one after the other, and offsets that say where each begins.
No document is padded, so none can change another's score, and a best similarity below zero stays below zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring import fused

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

#: Score of a document without any vector, as in sentence-transformers: finite, and below all that unit vectors reach.
EMPTY_DOCUMENT = np.float32(-1e9)

# Similarities held at once (float32): small enough to stay in cache, large enough that BLAS runs at speed.
_CHUNK_ELEMENTS = 1 << 19
_ROWS_AT_LEAST = 64
# stored vectors decoded to float32 at once: a few tens of megabytes at common dimensions
_DECODED_AT_ONCE = 1 << 15


def maxsim_packed(
    query: Array, vectors: Array, offsets: Array, weights: Array | None = None, *, chunk_elements: int = _CHUNK_ELEMENTS
) -> Floats:
    """MaxSim of one query with many documents.

    Args:
        query: (query tokens, dim).
        vectors: (sum of document tokens, dim), any float or integer type; arithmetic is float32.
        offsets: (documents + 1,) integers; document ``d`` owns rows ``offsets[d]:offsets[d + 1]``.
        weights: (query tokens,), multiplies each query token's best similarity; none means ones.
        chunk_elements: similarities held in memory at once.

    Returns:
        (documents,) float32 scores; :data:`EMPTY_DOCUMENT` for a document without vectors.

    Raises:
        ValueError: shapes that do not fit, offsets that leave ``vectors`` or decrease, or a score that is not finite
            (NaN in the vectors, or products beyond float32).

    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> documents = np.array([[0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8]])
    >>> maxsim_packed(query, documents, np.array([0, 2, 4]))
    array([1.56, 1.24], dtype=float32)
    """
    query = np.asarray(query)
    _check_rows(query, "query")
    return maxsim_matrix(
        query, np.array([0, len(query)]), vectors, offsets, weights=weights, chunk_elements=chunk_elements
    )[0]


def maxsim_matrix(
    queries: Array,
    query_offsets: Array,
    vectors: Array,
    offsets: Array,
    weights: Array | None = None,
    *,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> Floats:
    """MaxSim of every packed query with every packed document; each block of documents is read once for all queries.

    Args:
        queries: (sum of query tokens, dim).
        query_offsets: (queries + 1,) integers.
        vectors: (sum of document tokens, dim).
        offsets: (documents + 1,) integers.
        weights: (sum of query tokens,) or none.
        chunk_elements: similarities held in memory at once.

    Returns:
        (queries, documents) float32.

    Raises:
        ValueError: as :func:`maxsim_packed`.

    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> maxsim_matrix(queries, np.array([0, 2, 3]), np.array([[0.6, 0.8], [0.8, -0.6]]), np.array([0, 1, 2])).round(1)
    array([[ 1.4,  0.2],
           [-0.6, -0.8]], dtype=float32)
    """
    queries, vectors = np.asarray(queries), np.asarray(vectors)
    offsets = _checked_offsets(offsets, len(vectors), "offsets")
    query_offsets = _checked_offsets(query_offsets, len(queries), "query_offsets")
    _check_dimensions(queries, vectors)
    if weights is not None:
        weights = _checked_weights(weights, len(queries))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.full((len(query_offsets) - 1, len(offsets) - 1), EMPTY_DOCUMENT, dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets))  # reduceat cannot express an empty segment
    if fused.takes(vectors):
        scores[:, filled] = 0
        fused.matrix(queries, query_offsets, vectors, offsets[:-1], offsets[1:], weights, scores)
        return _checked_scores(scores)
    most = max(1, chunk_elements // _ROWS_AT_LEAST)
    first = 0
    while first < len(scores):  # so many queries that a block of documents still has some rows
        last = max(first + 1, int(np.searchsorted(query_offsets, query_offsets[first] + most, side="right")) - 1)
        tokens = slice(query_offsets[first], query_offsets[last])
        of_each = query_offsets[first : last + 1] - query_offsets[first]
        mine = None if weights is None else weights[tokens, None]
        for documents, best in _best_similarities(queries[tokens], vectors, offsets, filled, chunk_elements):
            scores[first:last, documents] = _segment_sum(best if mine is None else best * mine, of_each)
        first = last
    return _checked_scores(scores)


def _best_similarities(
    queries: Floats, vectors: Array, offsets: npt.NDArray[np.int64], filled: npt.NDArray[np.intp], chunk_elements: int
) -> Iterator[tuple[npt.NDArray[np.intp], Floats]]:
    """Blocks of documents (those in ``filled``) with each query token's best similarity: (query tokens, documents)."""
    starts, ends = offsets[filled], offsets[filled + 1]
    rows = max(1, chunk_elements // max(1, len(queries)))
    first, row, carry = 0, 0, None
    while first < len(filled):
        # whole documents if at least one fits, else a part of one, whose maximum is carried on
        last = int(np.searchsorted(ends, row + rows, side="right"))
        end = int(ends[last - 1]) if last > first else row + rows
        open_ = last == first
        last = max(last, first + 1)
        block = vectors[row:end].astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the scores
            similarities = queries @ block.T  # query tokens lie in rows: maxima run over contiguous memory
        best = np.maximum.reduceat(similarities, np.maximum(starts[first:last], row) - row, axis=1)
        if carry is not None:
            best[:, 0] = np.maximum(best[:, 0], carry)
        carry = best[:, 0] if open_ else None
        if not open_:
            yield filled[first:last], best
            first = last
        row = end


def maxsim_pairs(
    queries: Array, query_offsets: Array, vectors: Array, offsets: Array, weights: Array | None = None
) -> Floats:
    """MaxSim of the i-th packed query with the i-th packed document.

    Returns:
        (pairs,) float32.

    Raises:
        ValueError: as :func:`maxsim_packed`, or unequal numbers of queries and documents.

    >>> maxsim_pairs(np.eye(2), np.array([0, 1, 2]), np.array([[0.6, 0.8], [0.8, -0.6]]), np.array([0, 1, 2]))
    array([ 0.6, -0.6], dtype=float32)
    """
    queries, vectors = np.asarray(queries), np.asarray(vectors)
    offsets = _checked_offsets(offsets, len(vectors), "offsets")
    query_offsets = _checked_offsets(query_offsets, len(queries), "query_offsets")
    if len(offsets) != len(query_offsets):
        raise ValueError(f"{len(query_offsets) - 1} queries cannot be paired with {len(offsets) - 1} documents")
    if weights is not None:
        weights = _checked_weights(weights, len(queries))
    scores = np.empty(len(offsets) - 1, dtype=np.float32)
    for i in range(len(scores)):
        mine = slice(query_offsets[i], query_offsets[i + 1])
        document = vectors[offsets[i] : offsets[i + 1]]
        scores[i] = maxsim_packed(
            queries[mine], document, np.array([0, len(document)]), None if weights is None else weights[mine]
        )[0]
    return scores


def backend() -> str:
    """What computes scores here: ``"C"`` with the instruction set, or ``"numpy"`` where nothing was compiled.

    >>> backend() in ("C avx512", "C avx2", "C baseline", "numpy")
    True
    """
    return f"C {fused.versions()[0]}" if fused.versions() else "numpy"


@dataclass(frozen=True)
class MaxSim:
    """ColBERT's alignment as a scoring rule that models and indexes share.

    Attributes:
        similarity: ``"cosine"`` scores inner products (cosines, as token vectors are unit vectors);
            ``"l2"`` scores ``-||q - d||^2``, which for unit vectors is ``2 S - 2 n`` for n query tokens: the same
            ranking on another scale. Computed from inner products in float32, so a distance that is tiny beside
            the vectors' own length is not resolved.
        normalize: ``"query"`` divides by the number of query tokens, so that cosines lie in [-1, 1] whatever the
            query's length; none leaves the sum.

    >>> MaxSim("l2").scores(np.array([[1.0, 0.0]]), np.array([[-0.6, 0.8]]), np.array([0, 1]))
    array([-3.2], dtype=float32)
    """

    similarity: Literal["cosine", "l2"] = "cosine"
    normalize: Literal["query"] | None = None

    def __post_init__(self) -> None:
        if self.similarity not in ("cosine", "l2"):
            raise ValueError(f"similarity must be 'cosine' or 'l2', got {self.similarity!r}")
        if self.normalize not in (None, "query"):
            raise ValueError(f"normalize must be None or 'query' (divide scores), got {self.normalize!r}")

    def scores(self, query: Array, vectors: Array, offsets: Array, weights: Array | None = None) -> Floats:
        """Scores of one query with packed documents; arguments and result as :func:`maxsim_packed`."""
        one = np.array([0, len(query)])
        return self.matrix(query, one, vectors, offsets, weights)[0]

    def stored(
        self,
        queries: Array,
        query_offsets: Array,
        vectors: Array,
        starts: Array,
        ends: Array,
        decode: Callable[[Array], Floats],
        weights: Array | None = None,
        scales: Array | None = None,
    ) -> Floats:
        """Scores of packed queries with documents where they are stored, without a copy where the kernel can.

        Args:
            queries: (sum of query tokens, dim).
            query_offsets: (queries + 1,) integers.
            vectors: (rows, dim) as stored; document ``d`` is rows ``starts[d]:ends[d]``, in any order.
            starts: (documents,) integers.
            ends: (documents,) integers.
            decode: row numbers -> those rows as float32, where they must be read another way.
            weights: (sum of query tokens,) or none.
            scales: (rows,) what stored values are to be multiplied with, or none.

        Returns:
            (queries, documents) float32, as :meth:`matrix` of the decoded documents.
        """
        lengths = ends - starts
        if self.similarity == "cosine" and fused.takes(vectors):
            scores = np.where(lengths > 0, np.float32(0), EMPTY_DOCUMENT)
            scores = np.repeat(scores[None], len(query_offsets) - 1, axis=0)
            fused.matrix(np.asarray(queries, np.float32), query_offsets, vectors, starts, ends, weights, scores, scales)
            return self._per_query(_checked_scores(scores), query_offsets, lengths == 0)
        scores = np.empty((len(query_offsets) - 1, len(starts)), dtype=np.float32)
        behind = np.cumsum(lengths)
        first = 0
        while first < len(starts):  # decoded in blocks, so that memory does not grow with the documents asked for
            budget = (behind[first - 1] if first else 0) + _DECODED_AT_ONCE
            last = max(first + 1, int(np.searchsorted(behind, budget, side="right")))
            offsets = np.concatenate([[0], behind[first:last] - (behind[first] - lengths[first])])
            rows = decode(ragged_rows(starts[first:last], lengths[first:last]))
            scores[:, first:last] = self.matrix(queries, query_offsets, rows, offsets, weights)
            first = last
        return scores

    def matrix(
        self, queries: Array, query_offsets: Array, vectors: Array, offsets: Array, weights: Array | None = None
    ) -> Floats:
        """Scores of all packed queries with all packed documents; as :func:`maxsim_matrix`."""
        queries, vectors = np.asarray(queries), np.asarray(vectors)
        if self.similarity == "l2":
            # -||q - d||^2 = 2 (<q, d> - ||d||^2 / 2) - ||q||^2: one more dimension makes it an inner product
            _check_dimensions(queries, vectors)
            norms = _squared_norms(queries)
            queries = np.column_stack([queries, np.full(len(queries), -0.5, np.float32)])
            vectors = np.column_stack([vectors, _squared_norms(vectors)])
        sums = maxsim_matrix(queries, query_offsets, vectors, offsets, weights)
        if self.similarity == "l2":
            with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                mass = norms if weights is None else norms * np.asarray(weights, np.float32)
                sums = 2 * sums - _segment_sum(mass[:, None], np.asarray(query_offsets, np.int64))
            sums = _checked_scores(sums)
        return self._per_query(sums, query_offsets, np.diff(offsets) == 0)

    def _per_query(self, sums: Floats, query_offsets: Array, empty: npt.NDArray[np.bool_]) -> Floats:
        """What remains to be done with sums: normalisation, and the score of empty documents."""
        if self.normalize == "query":
            sums /= np.maximum(np.diff(query_offsets), 1).astype(np.float32)[:, None]
        sums[:, empty] = EMPTY_DOCUMENT
        return sums

    def alignment(self, query: Array, document: Array) -> tuple[npt.NDArray[np.intp], Floats, Floats]:
        """For each query token the document token it takes, their inner product, and what it adds to the score."""
        products = np.asarray(query, np.float32) @ np.asarray(document, np.float32).T
        values = products
        if self.similarity == "l2":
            values = 2 * products - _squared_norms(document) - _squared_norms(query)[:, None]
        best = values.argmax(axis=1)
        rows = np.arange(len(best))
        share = len(query) if self.normalize == "query" else 1
        return best, products[rows, best], values[rows, best] / np.float32(share)


def ragged_rows(starts: Array, lengths: Array) -> npt.NDArray[np.int64]:
    """Row numbers of consecutive runs: ``start, start + 1, ...`` for each start.

    >>> ragged_rows(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def _squared_norms(rows: Array) -> Floats:
    rows = np.asarray(rows, dtype=np.float32)
    with np.errstate(over="ignore"):
        return np.einsum("ij,ij->i", rows, rows)


def _segment_sum(rows: Floats, offsets: npt.NDArray[np.int64]) -> Floats:
    """Sums of consecutive groups of rows; a group without rows sums to zero."""
    if len(offsets) == 2:
        return rows.sum(axis=0, keepdims=True)
    sums = np.zeros((len(offsets) - 1, rows.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        sums[filled] = np.add.reduceat(rows, offsets[filled], axis=0)
    return sums


def _check_dimensions(queries: Array, vectors: Array) -> None:
    _check_rows(queries, "queries")
    _check_rows(vectors, "vectors")
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, document vectors {vectors.shape[1]}")


def _check_rows(array: Array, name: str) -> None:
    if array.ndim != 2:
        raise ValueError(f"{name} must be a (tokens, dim) array, got shape {array.shape}")


def _checked_scores(scores: Floats) -> Floats:
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: the vectors hold NaN, or products beyond float32")
    return scores


def _checked_weights(weights: Array, tokens: int) -> Floats:
    weights = np.asarray(weights, dtype=np.float32)
    if weights.shape != (tokens,):
        raise ValueError(f"weights must have one number a query token, {tokens}, got shape {weights.shape}")
    return weights


def _checked_offsets(offsets: Array, rows: int, name: str) -> npt.NDArray[np.int64]:
    offsets = np.asarray(offsets)
    if offsets.ndim != 1 or len(offsets) == 0 or offsets.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a one-dimensional array of integers with at least one entry")
    offsets = offsets.astype(np.int64, copy=False)
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} must rise from 0 to the number of rows, {rows}, without decreasing")
    return offsets
