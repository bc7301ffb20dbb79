"""BM25 over real-valued term weights, exactly, in float64 (Latent Terms, section 3.3, equations 3 and 4).

A text is a row of non-negative term weights, with what counts words elsewhere: a latent's square root of summed
activations for example. Document length is the sum of a row, and a query's weights enter linearly.

    score(q, d) = sum_j w_j(q) idf_j w_j(d) (k1 + 1) / (w_j(d) + k1 (1 - b + b |d| / mean |d|))
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[Any]
#: a ``scipy.sparse`` matrix or array in CSR form
Matrix = Any
Idf = Literal["rsj", "lucene"]


def idf(frequencies: Ints, documents: int, form: Idf = "rsj") -> Floats:
    """Weights of terms by the number of documents that have them.

    Readers of the paper disagree about its equation 4, so both forms are here; they differ on terms that about half
    of all documents or more have.

    Args:
        frequencies: (terms,) documents that have each term.
        documents: how many there are, empty ones included.
        form: ``"rsj"`` is ln((N - n + 0.5) / (n + 0.5)), 0 where that is negative; ``"lucene"`` is ln(1 + the same
            fraction), which is never 0.

    >>> idf(np.array([1, 2, 3]), 5).round(6).tolist(), idf(np.array([5]), 5, "lucene").round(6).tolist()
    ([1.098612, 0.336472, 0.0], [0.087011])
    """
    n = np.asarray(frequencies, dtype=np.float64)
    odds = (documents - n + 0.5) / (n + 0.5)
    return np.log1p(odds) if form == "lucene" else np.log(np.maximum(odds, 1.0))


@dataclass(frozen=True)
class Statistics:
    """What BM25 knows of a collection.

    Attributes:
        documents: how many there are, empty ones included.
        frequencies: (terms,) documents that have each term.
        mean_length: mean sum of a document's weights, over all documents.
    """

    documents: int
    frequencies: Ints
    mean_length: float

    @classmethod
    def of(cls, matrix: Matrix) -> "Statistics":
        """Those of a (documents, terms) matrix."""
        present = np.asarray(matrix.indices)[np.asarray(matrix.data) > 0]
        documents, terms = matrix.shape
        total = float(matrix.data.sum(dtype=np.float64))
        return cls(documents, np.bincount(present, minlength=terms), total / max(documents, 1))


@dataclass(frozen=True)
class BM25:
    """The weighting model with its parameters; the defaults are the paper's (appendix D).

    ``k1`` is so large because weights are no counts: square roots of summed activations lie between 1 and 20.

    Args:
        k1: where a weight saturates, at least 0.
        b: how much length counts, from 0 to 1.
        idf: as for :func:`idf`.

    Raises:
        ValueError: a parameter outside its range.
    """

    k1: float = 8.0
    b: float = 0.7
    idf: Idf = "rsj"

    def __post_init__(self) -> None:
        for name in ("k1", "b"):  # 8 and 8.0 are one setting
            object.__setattr__(self, name, float(getattr(self, name)))
        if not 0 <= self.k1 < np.inf:
            raise ValueError(f"k1 must be a finite number of at least 0, got {self.k1!r}")
        if not 0 <= self.b <= 1:
            raise ValueError(f"b must be between 0 and 1, got {self.b!r}")
        if self.idf not in ("rsj", "lucene"):
            raise ValueError(f"idf must be 'rsj' or 'lucene', got {self.idf!r}")

    def term_weights(self, statistics: Statistics, terms: Ints | slice = slice(None)) -> Floats:
        """(terms,) idf, of some terms by their numbers or of all."""
        return idf(statistics.frequencies[terms], statistics.documents, self.idf)

    def norms(self, lengths: Floats, mean_length: float) -> Floats:
        """At which weight a document's terms reach half of what they can add, by its length.

        Args:
            lengths: sums of documents' weights.
            mean_length: of all documents, empty ones included.
        """
        return self.k1 * (1 - self.b + self.b * (lengths / (mean_length or 1.0)))  # no terms at all: nothing to divide

    def saturated(self, weights: Floats, norms: Floats) -> Floats:
        """A weight's part of the score without idf, below k1 + 1; 0 for no weight.

        Args:
            weights: of terms in documents, at least 0.
            norms: of the documents they are in, of the same shape.
        """
        out = np.zeros(len(weights))
        return np.divide(weights * (self.k1 + 1), weights + norms, out=out, where=weights > 0)

    def impacts(self, matrix: Matrix, statistics: Statistics | None = None) -> Matrix:
        """What each term adds to a document's score, a query weight of 1 given.

        Args:
            matrix: (documents, terms) CSR of weights.
            statistics: of the collection; none are those of the matrix.

        Returns:
            (documents, terms) CSR of float64.

        Raises:
            ValueError: a weight that is negative or not finite.
        """
        from scipy.sparse import csr_array

        weights = np.asarray(matrix.data, dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("weights must be finite and at least 0")
        known = Statistics.of(matrix) if statistics is None else statistics
        norms = self.norms(row_sums(weights, matrix.indptr), known.mean_length)
        data = self.saturated(weights, np.repeat(norms, np.diff(matrix.indptr)))
        data *= self.term_weights(known)[matrix.indices]
        return csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def row_sums(data: npt.NDArray[Any], indptr: Ints) -> Floats:
    """(rows,) sums of the entries of each row of a CSR matrix, in float64.

    >>> row_sums(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 2, 3])).tolist()
    [3.0, 0.0, 4.0]
    """
    sums = np.zeros(len(indptr) - 1)
    filled = np.flatnonzero(np.diff(indptr))
    if len(filled):
        sums[filled] = np.add.reduceat(data, indptr[filled], dtype=np.float64)
    return sums


def bm25_matrix(queries: Matrix, documents: Matrix, k1: float = 8.0, b: float = 0.7, idf: Idf = "rsj") -> Floats:
    """Scores of all queries with all documents, exactly: the reference.

    Args:
        queries: (queries, terms) sparse matrix of weights.
        documents: (documents, terms) sparse matrix of weights.
        k1: as for :class:`BM25`.
        b: as for :class:`BM25`.
        idf: as for :func:`idf`.

    Returns:
        (queries, documents) float64.

    >>> from scipy.sparse import csr_array
    >>> weights = csr_array([[5, 1, 0, 0], [0, 2, 0, 0], [0, 0, 4, 0], [0, 0, 1, 3], [0, 0, 2, 6]])
    >>> bm25_matrix(csr_array([[1, 1, 0, 0]]), weights).round(6).tolist()
    [[3.724341, 0.89948, 0.0, 0.0, 0.0]]
    """
    from scipy.sparse import csr_array

    impacts = BM25(k1, b, idf).impacts(csr_array(documents))
    return np.asarray((csr_array(queries, dtype=np.float64) @ impacts.T).toarray())
