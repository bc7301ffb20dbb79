"""The usual ways to search token vectors, for end_to_end.py.

*torch* scores every document: a matrix product a block, then a maximum a document. *faiss* is the recipe that most
hand-built ColBERT searches follow: an inverted file over all token vectors finds the k' nearest of each query token in
nprobe cells, the documents they belong to are candidates, and those are scored exactly (here with our kernel, from our
index, which favours the recipe). *qdrant-edge*, where it is installed, scores every document too.

Not compared, as seen with their releases of the time:

- qdrant-edge-py 0.9.0 with a graph (HNSW) over documents: it compares documents by MaxSim while it builds, and took a
  minute for 500 documents of 60 vectors on two busy cores;
- lancedb 0.40.0: it installs beside us; on the same two busy cores its exact scan of 3,000 documents took 1.1 seconds a
  query, and its index (IVF_PQ over 180,000 vectors) was not built within 100 seconds;
- fast-plaid 1.7.0 and pylate 1.6.0: they install other versions of torch, transformers and sentence-transformers than
  this package is tested with.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np
import torch
from setting import DEPTH, IN_MEMORY, Answers, Floats, Ints, Setting, Way

import pyterrier_mvret as mv

try:
    import qdrant_edge
except ImportError:
    qdrant_edge = None

# measured: similarities of so many documents with one query stay in cache
_BLOCK_DOCUMENTS = 256


def packed_torch(setting: Setting) -> Iterator[Way]:
    """All vectors in memory, as float32 or bfloat16; each block of documents a product and a maximum."""
    if setting.size > IN_MEMORY:
        return
    vectors, offsets = setting.packed
    for dtype in (torch.float32, torch.bfloat16):
        start = time.perf_counter()
        tensor = torch.from_numpy(vectors).to(dtype)
        name = f"torch, packed, {str(dtype).removeprefix('torch.')}"
        kept = float(tensor.element_size() * tensor.shape[1])
        yield Way(name, _blockwise(tensor, offsets), time.perf_counter() - start, kept)


def _blockwise(tensor: torch.Tensor, offsets: Ints) -> Callable[[list[Floats]], Answers]:
    blocks = []
    for first in range(0, len(offsets) - 1, _BLOCK_DOCUMENTS):
        mine = offsets[first : first + _BLOCK_DOCUMENTS + 1]
        owner = np.repeat(np.arange(len(mine) - 1), np.diff(mine))[:, None]
        blocks.append((tensor[mine[0] : mine[-1]], torch.from_numpy(owner), len(mine) - 1))

    def search(queries: list[Floats]) -> Answers:
        asked = torch.from_numpy(np.concatenate(queries)).to(tensor.dtype)
        parts = []
        for rows, owner, count in blocks:
            best = torch.full((count, len(asked)), -torch.inf)
            best.scatter_reduce_(0, owner.expand(-1, len(asked)), (rows @ asked.T).float(), "amax")
            parts.append(best.view(count, len(queries), -1).sum(2))
        return list(torch.cat(parts).T.topk(DEPTH).indices.numpy())

    return search


# ---------------------------------------------------------------------- inverted files over token vectors

#: cells visited, and nearest token vectors taken, for each query token: a span of recall, not a tuned frontier
FAISS_SWEEP = ((8, 128), (16, 512), (32, 1024))
# fast scan: codes of 4 bits, compared in registers
FAISS_KINDS: dict[str, Callable[[Any, int, int], Any]] = {
    "IVFFlat": lambda cells, dim, n: faiss.IndexIVFFlat(cells, dim, n, faiss.METRIC_INNER_PRODUCT),
    "IVFPQ": lambda cells, dim, n: faiss.IndexIVFPQ(cells, dim, n, dim // 4, 8, faiss.METRIC_INNER_PRODUCT),
    "IVFPQ fast scan": lambda cells, dim, n: faiss.IndexIVFPQFastScan(
        cells, dim, n, dim // 2, 4, faiss.METRIC_INNER_PRODUCT
    ),
}


def inverted_files(setting: Setting) -> Iterator[Way]:
    """Each kind, with each setting of the sweep; the cells are learned once and serve all kinds."""
    if setting.size > IN_MEMORY:
        return
    vectors, offsets = setting.packed
    owner = np.repeat(np.arange(setting.size), np.diff(offsets))
    exact, _ = setting.index(setting.dtypes[0])
    dim = vectors.shape[1]
    cells, learning = faiss.IndexFlatIP(dim), 0.0
    count = 2 ** int(np.log2(4 * np.sqrt(len(vectors))))  # faiss advises 4 to 16 times the root
    for kind, made in FAISS_KINDS.items():
        start = time.perf_counter()
        index = made(cells, dim, count)
        index.cp.spherical, index.cp.max_points_per_centroid = True, 64
        if hasattr(index, "by_residual"):
            index.by_residual = False  # tables that serve all cells: faster, as good when rescored
        index.train(vectors)
        learning = learning or time.perf_counter() - start
        index.add(vectors)
        seconds = time.perf_counter() - start + (0 if kind == next(iter(FAISS_KINDS)) else learning)
        kept = index.code_size + 8 + exact.info()["bytes_per_vector"]
        for visited, nearest in FAISS_SWEEP:
            search = _recipe(index, owner, exact, visited, nearest)
            yield Way(f"faiss {kind}, {visited} cells, k' {nearest}, rescored", search, seconds, kept)


def _recipe(
    index: Any, owner: Ints, exact: mv.MultiVecIndex, cells: int, nearest: int
) -> Callable[[list[Floats]], Answers]:
    rule, store = mv.scoring.MaxSim(), exact.store

    def search(queries: list[Floats]) -> Answers:
        index.nprobe = cells
        _, rows = index.search(np.concatenate(queries), nearest)
        answers = []
        for query, mine in zip(queries, rows.reshape(len(queries), -1), strict=True):
            candidates = np.unique(owner[mine[mine >= 0]])
            scores = store.score(rule, query, candidates)
            answers.append(candidates[np.argsort(-scores, kind="stable")[:DEPTH]])
        return answers

    return search


# ---------------------------------------------------------------------- other engines


def edge(setting: Setting) -> Iterator[Way]:
    """Qdrant's embedded engine, exact; it takes its threads from the machine."""
    if qdrant_edge is None or setting.size > IN_MEMORY:
        return
    maxsim = qdrant_edge.MultiVectorConfig(qdrant_edge.MultiVectorComparator.MaxSim)
    params = qdrant_edge.EdgeVectorParams(
        size=setting.pool.vectors.shape[1], distance=qdrant_edge.Distance.Dot, multivector_config=maxsim
    )
    folder = setting.scratch / "edge"
    folder.mkdir()
    start = time.perf_counter()
    shard = qdrant_edge.EdgeShard.create(str(folder), qdrant_edge.EdgeConfig(vectors=params))
    first = 0
    for vectors, offsets in setting.blocks(500):
        rows = np.split(vectors, offsets[1:-1])
        points = [qdrant_edge.Point(first + i, mine.tolist()) for i, mine in enumerate(rows)]
        shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
        first += len(rows)
    seconds = time.perf_counter() - start

    def search(queries: list[Floats]) -> Answers:
        found = []
        for query in queries:
            nearest = qdrant_edge.Query.Nearest(query.tolist())
            request = qdrant_edge.QueryRequest(limit=DEPTH, query=nearest, params=qdrant_edge.SearchParams(exact=True))
            found.append(np.array([point.id for point in shard.query(request)]))
        return found

    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    try:
        yield Way("qdrant-edge, exact", search, seconds, round(size / setting.rows, 1), threads=(2,))
    finally:
        shard.close()


PEERS: dict[str, Callable[[Setting], Iterator[Way]]] = {
    "torch": packed_torch,
    "faiss": inverted_files,
    "qdrant-edge": edge,
}
