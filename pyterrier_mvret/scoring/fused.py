"""The compiled MaxSim kernel: whether it is here, and how Python hands it arrays.

The kernel (``maxsim.c``) scores tiles of document rows against 32 query tokens at a time and keeps running maxima, so
the matrix of all similarities is never written. Where the extension was not compiled, ``packed.py`` does the same.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.stored import StoredVectors

try:
    from pyterrier_mvret.scoring import _maxsim  # type: ignore[attr-defined]
except ImportError:  # installed without a compiler
    _maxsim = None

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

#: the most similarities a query token can take from a document here; MOST_K in maxsim.c
MOST_K = 8
#: the most dimensions of int8 vectors here; MOST_BYTES in maxsim.c
MOST_BYTES = 1 << 16
_BLOCK = 32  # query tokens a tile takes; BLOCK in maxsim.c
_KINDS = {np.dtype("f4"): 0, np.dtype("f2"): 1, np.dtype("u2"): 2, np.dtype("i1"): 3, np.dtype("u1"): 4}
# products below which a second thread costs more than it saves
_PRODUCTS_A_THREAD = 1 << 22
# threads take parts of this size as they get done with others, each about so many
_PRODUCTS_A_PART = 1 << 27
_PARTS_A_THREAD = 8


@cache
def versions() -> tuple[str, ...]:
    """Instruction sets of this processor that the kernel serves, fastest first; none without the extension."""
    return tuple(_maxsim.versions()) if _maxsim is not None else ()


def takes(stored: StoredVectors, k: int = 1) -> bool:
    """Whether the kernel is here and reads such vectors where they lie."""
    vectors = stored.vectors
    plain = vectors.flags.c_contiguous and vectors.flags.aligned and vectors.shape[1] > 0
    codes = (vectors.dtype == np.uint8) == (stored.residual is not None)
    short = vectors.dtype != np.int8 or stored.dim <= MOST_BYTES
    return bool(versions()) and vectors.dtype in _KINDS and plain and codes and short and k <= MOST_K


def add_scores(
    queries: Floats,
    query_offsets: Ints,
    stored: StoredVectors,
    starts: Ints,
    ends: Ints,
    weights: Floats | None,
    k: int,
    out: Floats,
) -> None:
    """Adds the scores of all packed queries with documents to ``out`` (queries, documents).

    Documents are rows ``starts[d]:ends[d]`` of the stored vectors, anywhere and in any order; nothing is copied. The
    kernel checks that every document lies inside. Each query token counts its ``k`` best similarities.
    """
    if k == 1 and len(queries) > 1 and (np.diff(query_offsets) == 1).all():
        # a block is of one query, but for maxima: 32 queries of one token fill one
        best = maxima(queries, stored, starts, ends).T
        with np.errstate(invalid="ignore"):  # of a document without rows
            best = best if weights is None else np.where(weights[:, None] == 0, 0, best * weights[:, None])
        out += np.where(ends > starts, best, 0)
    elif len(queries):
        _run(queries, query_offsets, stored, starts, ends, weights, k, out)


def maxima(queries: Floats, stored: StoredVectors, starts: Ints, ends: Ints) -> Floats:
    """The best similarity of each query token with each run of rows, (runs, query tokens); minus infinity for none."""
    width = -(-len(queries) // _BLOCK) * _BLOCK
    out = np.full((len(starts), width), -np.inf, dtype=np.float32)
    if width:
        _run(queries, np.array([0, len(queries)]), stored, starts, ends, None, 0, out)
    return out[:, : len(queries)]


def _run(
    queries: Floats,
    query_offsets: Ints,
    stored: StoredVectors,
    starts: Ints,
    ends: Ints,
    weights: Floats | None,
    k: int,
    out: Floats,
) -> None:
    blocks, block_weights, owners = _in_blocks(queries, query_offsets, weights)
    documents, dim, residual = len(starts), stored.dim, stored.residual
    starts, ends = (np.ascontiguousarray(a, dtype=np.int64) for a in (starts, ends))
    refers = (None, None, None, 0, 0) if residual is None else (
        residual.centroids, residual.ids, residual.by_byte, residual.bits, int(residual.unit)
    )  # fmt: skip
    arrays = (blocks, block_weights, owners, stored.vectors, starts, ends, out, stored.scales, *refers[:3])
    flags = (_KINDS[stored.vectors.dtype], *refers[3:], k)
    sizes = (len(owners), dim, len(stored), len(query_offsets) - 1, documents)
    centroids = 0 if residual is None else len(residual.centroids)

    def run(first: int, last: int) -> None:
        _maxsim.score(versions()[0], *arrays, *flags, *sizes, centroids, first, last)

    in_threads(run, np.cumsum(ends - starts), len(owners) * _BLOCK * dim)


def in_threads(run: Callable[[int, int], None], rows: Ints, products: int) -> None:
    """Calls ``run(first, last)`` for parts of the documents, about as many rows each, in as many threads as pay.

    Args:
        run: works on documents first to last, without the GIL.
        rows: (documents,) rows up to the end of each document.
        products: what a row costs.
    """
    documents = len(rows)
    total = int(rows[-1]) if documents else 0
    workers = max(1, min(threads(), 1 + products * total // _PRODUCTS_A_THREAD, documents))
    # long work is cut finer than there are threads, so that one on a busy core does not hold up the others
    parts = max(workers, min(_PARTS_A_THREAD * workers, products * total // _PRODUCTS_A_PART)) if workers > 1 else 1
    cuts = np.searchsorted(rows, np.linspace(0, total, parts + 1)[1:-1]).tolist()
    work = iter([(a, b) for a, b in pairwise([0, *cuts, documents]) if a < b])

    def drain() -> None:
        for first, last in work:
            run(first, last)

    if workers == 1:
        drain()
        return
    # all work is for the pool: while this thread waits, its core is free, and systems tend to wake workers just there
    others = [_pool(workers).submit(drain) for _ in range(workers)]
    try:
        wait(others)
    finally:  # interrupted: nobody writes into the results once this returns
        for _ in work:
            pass
        wait(others)
    for other in others:
        other.result()


def _in_blocks(queries: Floats, query_offsets: Ints, weights: Floats | None) -> tuple[Floats, Floats, Ints]:
    """Queries cut into blocks of 32 tokens as [block][dim][token], their weights, and whose block each is.

    What a block has too many is zero, with weight zero.
    """
    lengths = np.diff(query_offsets)
    counts = -(-lengths // _BLOCK)
    owners = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    starts = _BLOCK * (np.cumsum(counts) - counts)
    rows = np.arange(len(queries)) + np.repeat(starts - query_offsets[:-1], lengths)
    padded = np.zeros((len(owners) * _BLOCK, queries.shape[1]), dtype=np.float32)
    padded[rows] = queries
    padded_weights = np.zeros(len(padded), dtype=np.float32)
    padded_weights[rows] = 1 if weights is None else weights
    by_block = padded.reshape(len(owners), _BLOCK, queries.shape[1])
    return np.ascontiguousarray(by_block.transpose(0, 2, 1)), padded_weights, owners


def threads() -> int:
    """Threads to use: torch's setting if torch is loaded, else OMP_NUM_THREADS, else the cores this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return max(1, torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="maxsim")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
