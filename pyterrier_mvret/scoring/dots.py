"""MaxSim of one query vector with documents of one vector each: inner products, and no maximum to take.

A matrix product would be as fast, but sums in another order at the edges of its tiles: equal documents then get scores
that differ in the last digit, and could not be ranked by name. Here, as in the kernel, an inner product does not
depend on what else is computed.
"""

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring import fused
from pyterrier_mvret.scoring.packed import float_rows
from pyterrier_mvret.scoring.ragged import in_blocks
from pyterrier_mvret.scoring.stored import StoredVectors

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# the kernel computes with 32 query vectors whatever there are: about five times the time of one, in one thread
_THREADS = 4
_ROWS_AT_ONCE = 1 << 13


def takes(query_offsets: Ints, stored: StoredVectors, starts: Ints, ends: Ints) -> bool:
    """Whether it is one query vector, documents of one vector that need no decoding, and faster than the kernel."""
    one = query_offsets.tolist() == [0, 1] and stored.vectors.dtype == np.float32
    return one and fused.threads() <= _THREADS and bool((ends - starts == 1).all())


def add_scores(query: Floats, stored: StoredVectors, starts: Ints, weights: Floats | None, out: Floats) -> None:
    """Adds the inner products of a query (1, dim) with rows of the stored vectors to ``out`` (1, rows)."""
    weight = 1 if weights is None else weights[0]
    if weight == 0:  # says that the query's vector does not count, whatever it is
        return
    ones = np.ones(len(starts), dtype=np.int64)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at what comes out
        for block in in_blocks(ones, _ROWS_AT_ONCE):
            out[0, block] += weight * np.einsum("d,nd->n", query[0], float_rows(stored, starts[block], ones[block]))
