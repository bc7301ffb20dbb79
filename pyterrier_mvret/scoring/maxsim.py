"""MaxSim: each query token takes its best document token (ColBERT, Khattab and Zaharia 2020, equation 3).

    S(Q, D) = sum_i w_i max_j <Q_i, D_j>

Documents are *packed*: the token vectors of all of them one after the other, and offsets that say where each begins.
No document is padded, so none can change another's score, and a best similarity below zero stays below zero.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring import dots, fused, packed
from pyterrier_mvret.scoring.pairs import AlignedPairs
from pyterrier_mvret.scoring.ragged import check_runs, checked_offsets, in_blocks, ragged_rows, segment_sum
from pyterrier_mvret.scoring.stored import StoredVectors, as_stored, rounded

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: Score of a document without any vector, as in sentence-transformers: finite, and below all that unit vectors reach.
EMPTY_DOCUMENT = np.float32(-1e9)

# stored vectors decoded to float32 at once: a few tens of megabytes at common dimensions
_DECODED_AT_ONCE = 1 << 15


def maxsim_packed(
    query: Array, vectors: "Array | StoredVectors", offsets: Array, weights: Array | None = None, *, k: int = 1
) -> Floats:
    """MaxSim of one query with many documents.

    Args:
        query: (query tokens, dim).
        vectors: (sum of document tokens, dim), or :class:`StoredVectors`. Arithmetic is float32; only where vectors
            are int8, query tokens are rounded to 8 bits, too, and products are whole numbers, exact up to
            1,040 dimensions.
        offsets: (documents + 1,) integers; document ``d`` owns rows ``offsets[d]:offsets[d + 1]``.
        weights: (query tokens,), multiplies what each query token adds; none means ones.
        k: similarities a query token takes from a document: the sum of its ``k`` best, or of all where there are
            fewer (ALIGNER's top-k alignment, Qian et al. 2022, before its normaliser); 1 is ColBERT.

    Returns:
        (documents,) float32 scores; :data:`EMPTY_DOCUMENT` for a document without vectors.

    Raises:
        ValueError: shapes that do not fit, offsets that leave ``vectors`` or decrease, or a score that is not finite
            (NaN in the vectors, or products beyond float32).

    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> documents = np.array([[0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8]])
    >>> maxsim_packed(query, documents, np.array([0, 2, 4]))
    array([1.56, 1.24], dtype=float32)
    >>> maxsim_packed(query, documents, np.array([0, 1, 4]), k=2).round(2)
    array([1.4, 3. ], dtype=float32)
    """
    query = np.asarray(query)
    _check_rows(query, "query")
    return maxsim_matrix(query, np.array([0, len(query)]), vectors, offsets, weights, k=k)[0]


def maxsim_matrix(
    queries: Array,
    query_offsets: Array,
    vectors: "Array | StoredVectors",
    offsets: Array,
    weights: Array | None = None,
    *,
    k: int = 1,
) -> Floats:
    """MaxSim of every packed query with every packed document; each block of documents is read once for all queries.

    Args:
        queries: (sum of query tokens, dim).
        query_offsets: (queries + 1,) integers.
        vectors: as for :func:`maxsim_packed`.
        offsets: (documents + 1,) integers.
        weights: (sum of query tokens,) or none.
        k: as for :func:`maxsim_packed`.

    Returns:
        (queries, documents) float32.

    Raises:
        ValueError: as :func:`maxsim_packed`.

    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> maxsim_matrix(queries, np.array([0, 2, 3]), np.array([[0.6, 0.8], [0.8, -0.6]]), np.array([0, 1, 2])).round(1)
    array([[ 1.4,  0.2],
           [-0.6, -0.8]], dtype=float32)
    """
    queries, stored = np.asarray(queries), as_stored(vectors)
    offsets = checked_offsets(offsets, len(stored), "offsets")
    query_offsets = checked_offsets(query_offsets, len(queries), "query_offsets")
    _check_dimensions(queries, stored)
    if weights is not None:
        weights = _checked_weights(weights, len(queries))
    return _scores(queries, query_offsets, stored, offsets[:-1], offsets[1:], weights, k)


def maxima(query: Array, vectors: "Array | StoredVectors", starts: Array, ends: Array) -> Floats:
    """Each query token's best similarity within runs of rows: units of passages, in one pass over the vectors.

    Sums over a run's row are its score; the maximum over a passage's runs is the passage's (AGRaME, Reddy et al.
    2024, scores both from one encoding).

    Args:
        query: (query tokens, dim).
        vectors: as for :func:`maxsim_packed`.
        starts: (runs,) integers: the first row of each run. Runs may overlap, leave gaps, and come in any order.
        ends: (runs,) integers: the row after its last.

    Returns:
        (runs, query tokens) float32; minus infinity for a run without rows.

    Raises:
        ValueError: shapes that do not fit, runs that leave ``vectors``, or NaN.

    >>> maxima(np.eye(2), np.array([[0.6, 0.8], [0.8, -0.6], [0.0, 1.0]]), np.array([0, 2]), np.array([2, 3]))
    array([[0.8, 0.8],
           [0. , 1. ]], dtype=float32)
    """
    query, stored = np.asarray(query), as_stored(vectors)
    _check_dimensions(query, stored)
    starts, ends = np.asarray(starts), np.asarray(ends)
    if starts.shape != ends.shape or starts.ndim != 1 or {starts.dtype.kind, ends.dtype.kind} - set("iu"):
        raise ValueError("starts and ends must be one-dimensional arrays of integers, one a run")
    check_runs(starts, ends, len(stored), "a run")
    tokens, sizes = _as_computed(query, stored)
    way = fused if fused.takes(stored) else packed
    best = way.maxima(tokens, stored, starts.astype(np.int64), ends.astype(np.int64))
    if sizes is not None:
        with np.errstate(invalid="ignore"):  # of a run without rows and a token of zeros
            best = np.where(sizes > 0, best * sizes, np.where(best > -np.inf, 0, best)).astype(np.float32)
    if np.isnan(best).any() or np.isposinf(best).any():
        raise ValueError("a similarity is not finite: the vectors hold NaN, or products beyond float32")
    return best


def _scores(
    queries: Array,
    query_offsets: Ints,
    stored: StoredVectors,
    starts: Ints,
    ends: Ints,
    weights: Floats | None,
    k: int = 1,
    device: str | None = None,
) -> Floats:
    """Scores of packed queries with documents anywhere in the stored vectors: (queries, documents)."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    k = min(k, int((ends - starts).max(initial=1)))  # no document has more to sum
    tokens, sizes = _as_computed(queries, stored)
    if sizes is not None:
        weights = sizes if weights is None else weights * sizes
    scores = np.repeat(np.where(ends > starts, np.float32(0), EMPTY_DOCUMENT)[None], len(query_offsets) - 1, axis=0)
    if device is None and dots.takes(query_offsets, stored, starts, ends):
        dots.add_scores(tokens, stored, starts, weights, scores)
    elif device is None and fused.takes(stored, k):
        fused.add_scores(tokens, query_offsets, stored, starts, ends, weights, k, scores)
    else:
        packed.add_scores(tokens, query_offsets, stored, starts, ends, weights, k, scores, device or "cpu")
    return _checked_scores(scores)


def _as_computed(queries: Array, stored: StoredVectors) -> tuple[Floats, Floats | None]:
    """Query tokens as they are multiplied with stored vectors, and factors that are still missing then, if any."""
    tokens = np.ascontiguousarray(queries, dtype=np.float32)
    if not stored.whole_numbers:
        return tokens, None
    if not np.isfinite(tokens).all():
        raise ValueError("a score is not finite: the query holds NaN or infinity")
    return rounded(tokens)


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
    queries, stored = np.asarray(queries), as_stored(vectors)
    offsets = checked_offsets(offsets, len(stored), "offsets")
    query_offsets = checked_offsets(query_offsets, len(queries), "query_offsets")
    _check_dimensions(queries, stored)
    if len(offsets) != len(query_offsets):
        raise ValueError(f"{len(query_offsets) - 1} queries cannot be paired with {len(offsets) - 1} documents")
    if weights is not None:
        weights = _checked_weights(weights, len(queries))
    scores = np.empty(len(offsets) - 1, dtype=np.float32)
    for i in range(len(scores)):
        mine = slice(query_offsets[i], query_offsets[i + 1])
        one, factors = np.array([0, mine.stop - mine.start]), None if weights is None else weights[mine]
        place = slice(i, i + 1)
        scores[i] = _scores(queries[mine], one, stored, offsets[:-1][place], offsets[1:][place], factors)[0, 0]
    return scores


def backend() -> str:
    """What computes scores here: ``"C"`` with the instruction set, or ``"torch"`` where nothing was compiled.

    >>> backend() in ("C avx512-vnni", "C avx512", "C avx2", "C neon", "C baseline", "torch")
    True
    """
    return f"C {fused.versions()[0]}" if fused.versions() else "torch"


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
    #: document tokens have no weights here
    salience: ClassVar[bool] = False

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
        stored: StoredVectors,
        starts: Array,
        ends: Array,
        weights: Array | None = None,
        device: str | None = None,
    ) -> Floats:
        """Scores of packed queries with documents where they are stored, without a copy where the kernel can.

        Args:
            queries: (sum of query tokens, dim).
            query_offsets: (queries + 1,) integers.
            stored: the vectors; document ``d`` is rows ``starts[d]:ends[d]``, in any order.
            starts: (documents,) integers.
            ends: (documents,) integers.
            weights: (sum of query tokens,) or none.
            device: where torch computes; none is the compiled kernel, or torch on the CPU.

        Returns:
            (queries, documents) float32, as :meth:`matrix` of the decoded documents.
        """
        check_runs(starts, ends, len(stored), "a document")
        if weights is not None:
            weights = _checked_weights(weights, len(queries))
        lengths = ends - starts
        if self.similarity == "cosine":
            scores = _scores(queries, query_offsets, stored, starts, ends, weights, device=device)
            return self._per_query(scores, query_offsets, lengths == 0)
        scores = np.empty((len(query_offsets) - 1, len(starts)), dtype=np.float32)
        # decoded in blocks, so that memory does not grow with the documents asked for
        for block in in_blocks(lengths, _DECODED_AT_ONCE):
            offsets = np.concatenate([[0], np.cumsum(lengths[block])])
            rows = stored.floats(ragged_rows(starts[block], lengths[block]))
            scores[:, block] = self.matrix(queries, query_offsets, rows, offsets, weights, device)
        return scores

    def matrix(
        self,
        queries: Array,
        query_offsets: Array,
        vectors: "Array | StoredVectors",
        offsets: Array,
        weights: Array | None = None,
        device: str | None = None,
    ) -> Floats:
        """Scores of all packed queries with all packed documents; as :func:`maxsim_matrix`."""
        queries, stored = np.asarray(queries), as_stored(vectors)
        _check_dimensions(queries, stored)
        if self.similarity == "l2":
            # -||q - d||^2 = 2 (<q, d> - ||d||^2 / 2) - ||q||^2: one more dimension makes it an inner product
            rows = stored.floats(slice(None))
            norms = _squared_norms(queries)
            queries = np.column_stack([queries, np.full(len(queries), -0.5, np.float32)])
            stored = StoredVectors(np.column_stack([rows, _squared_norms(rows)]))
        offsets = checked_offsets(offsets, len(stored), "offsets")
        query_offsets = checked_offsets(query_offsets, len(queries), "query_offsets")
        if weights is not None:
            weights = _checked_weights(weights, len(queries))
        sums = _scores(queries, query_offsets, stored, offsets[:-1], offsets[1:], weights, device=device)
        if self.similarity == "l2":
            with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                mass = norms if weights is None else norms * weights
                sums = 2 * sums - segment_sum(mass[:, None], query_offsets)
            sums = _checked_scores(sums)
        return self._per_query(sums, query_offsets, np.diff(offsets) == 0)

    def _per_query(self, sums: Floats, query_offsets: Array, empty: npt.NDArray[np.bool_]) -> Floats:
        """What remains to be done with sums: normalisation, and the score of empty documents."""
        if self.normalize == "query":
            sums /= np.maximum(np.diff(query_offsets), 1).astype(np.float32)[:, None]
        sums[:, empty] = EMPTY_DOCUMENT
        return sums

    def pairs(
        self, query: Array, document: Array, weights: Array | None = None, doc_weights: Array | None = None
    ) -> AlignedPairs:
        """The document token that each query token takes; similarities are inner products, contributions scores."""
        products = np.asarray(query, np.float32) @ np.asarray(document, np.float32).T
        values = products
        if self.similarity == "l2":
            values = 2 * products - _squared_norms(document) - _squared_norms(query)[:, None]
        best = values.argmax(axis=1)
        rows = np.arange(len(best))
        u = np.ones(len(best)) if weights is None else np.asarray(weights, np.float64)
        share = len(query) if self.normalize == "query" else 1
        return AlignedPairs(rows, best, products[rows, best], u, u * values[rows, best] / share)

    def describe(self) -> dict[str, Any]:
        """The rule as plain data, for :func:`rule_of`."""
        return dict(vars(self))


def _squared_norms(rows: Array) -> Floats:
    rows = np.asarray(rows, dtype=np.float32)
    with np.errstate(over="ignore"):
        return np.einsum("ij,ij->i", rows, rows)


def _check_dimensions(queries: Array, stored: StoredVectors) -> None:
    _check_rows(queries, "queries")
    _check_rows(stored.vectors, "vectors")
    if queries.shape[1] != stored.dim:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, document vectors {stored.dim}")


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
