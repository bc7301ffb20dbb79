"""The compiled MaxSim kernel: whether it is here, and how Python hands it arrays.

The kernel (``maxsim.c``) scores tiles of document rows against 32 query tokens at a time and keeps running maxima, so
the matrix of all similarities is never written. Where the extension was not compiled, numpy does the same in
``maxsim.py``.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from pyterrier_mvret.scoring import _maxsim  # type: ignore[attr-defined]
except ImportError:  # installed without a compiler
    _maxsim = None

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_BLOCK = 32  # query tokens a tile takes; BLOCK in maxsim.c
_KINDS = {np.dtype("float32"): 0, np.dtype("float16"): 1, np.dtype("int8"): 2}
# products below which a second thread costs more than it saves
_PRODUCTS_A_THREAD = 1 << 22


@cache
def versions() -> tuple[str, ...]:
    """Instruction sets of this processor that the kernel serves, fastest first; none without the extension."""
    return tuple(_maxsim.versions()) if _maxsim is not None else ()


def takes(vectors: npt.NDArray[Any]) -> bool:
    """Whether the kernel is here and reads such vectors where they lie."""
    plain = vectors.flags.c_contiguous and vectors.flags.aligned and vectors.shape[1] > 0
    return bool(versions()) and vectors.dtype in _KINDS and plain


def matrix(
    queries: Floats,
    query_offsets: Ints,
    vectors: npt.NDArray[Any],
    starts: Ints,
    ends: Ints,
    weights: Floats | None,
    out: Floats,
    scales: Floats | None = None,
) -> None:
    """Adds the scores of all packed queries with documents to ``out`` (queries, documents).

    Documents are rows ``starts[d]:ends[d]`` of ``vectors``, anywhere and in any order; nothing is copied. With
    ``scales`` (one a row) int8 vectors count times their scale. The kernel checks that every document lies inside.
    """
    blocks, block_weights, owners = _in_blocks(queries, query_offsets, weights)
    if not len(owners):  # queries without tokens add nothing
        return
    documents, dim = len(starts), vectors.shape[1]
    starts, ends = (np.ascontiguousarray(a, dtype=np.int64) for a in (starts, ends))
    sizes = (_KINDS[vectors.dtype], len(owners), dim, len(vectors), len(query_offsets) - 1, documents)

    def run(first: int, last: int) -> None:
        _maxsim.score(
            versions()[0], blocks, block_weights, owners, vectors, starts, ends, out, scales, *sizes, first, last
        )

    rows = np.cumsum(ends - starts)
    products = len(owners) * _BLOCK * dim * int(rows[-1] if documents else 0)
    parts = min(threads(), 1 + products // _PRODUCTS_A_THREAD, max(1, documents))
    if parts == 1:
        run(0, documents)
        return
    # whole documents a thread, about as many vectors each
    cuts = np.searchsorted(rows, np.linspace(0, rows[-1], parts + 1)[1:-1]).tolist()
    bounds = [0, *cuts, documents]
    for done in [_pool(parts).submit(run, a, b) for a, b in pairwise(bounds) if a < b]:
        done.result()


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
