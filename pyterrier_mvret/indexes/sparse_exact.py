"""The exact engine of a :class:`SparseIndex`: a product of sparse matrices in float64."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes.sparse_store import SparseStore
from pyterrier_mvret.scoring.bm25 import BM25

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
#: a query's term numbers, rising, and their weights, all above 0
Query = tuple[Ints, Floats]

# scores held at once, were every document found
_SCORES_AT_ONCE = 1 << 23


class ExactSearcher:
    """Searches an inverted copy of all postings, in memory: 12 bytes a posting.

    Args:
        store: whose postings they are.
        weighting: how they are scored; none by dot product.
    """

    def __init__(self, store: SparseStore, weighting: BM25 | None):
        matrix = store.matrix()
        impacts = matrix.astype(np.float64) if weighting is None else weighting.impacts(matrix, store.statistics)
        self._inverted = impacts.T.tocsr()
        self._inverted.eliminate_zeros()  # terms without idf are never asked for, and have the longest lists

    def search(self, queries: Sequence[Query], k: int | None) -> Iterator[tuple[Floats, Ints]]:
        """Scores and positions of all documents that share a term with a query, in any order."""
        from scipy.sparse import csr_array

        terms, documents = self._inverted.shape
        step = max(1, _SCORES_AT_ONCE // max(1, documents))
        for first in range(0, len(queries), step):
            block = queries[first : first + step]
            ids = np.concatenate([ids for ids, _ in block])
            weights = np.concatenate([weights for _, weights in block])
            ends = np.cumsum([0, *(len(ids) for ids, _ in block)])
            found = csr_array((weights, ids, ends), shape=(len(block), terms)) @ self._inverted
            for start, end in zip(found.indptr[:-1], found.indptr[1:], strict=True):
                yield found.data[start:end], found.indices[start:end].astype(np.int64)
