"""Token vectors at scale that look like real ones, for benchmarks: no download, any number of documents.

*Real documents.* Up to 20,000 passages of the small test collections (titles in front, in a fixed random order),
encoded with MiniLM cut at 80 tokens, and reduced from 384 to 128 dimensions. The reduction is a principal component
analysis without centring (the 128 leading eigenvectors of the second moments of all document vectors, so inner products
are kept as well as any linear map can), and vectors are scaled to length one again. Queries are real topics of the same
collections, expanded with [MASK] to 32 tokens and reduced with the same matrix. MiniLM was not trained for late
interaction: these vectors have the clusters of real text and the shape of ColBERT's, and say nothing about quality.

*Made documents.* Beyond the real ones, a document copies the token sequence of a random real document, and each token's
vector is ``w v + (1 - w) u``, scaled to length one, with ``v`` the copied vector, ``u`` that of another occurrence of
the same token anywhere, and ``w`` uniform in [0.5, 1]. Clusters therefore lie where real ones lie, but the collection
is **synthetic**: no new vocabulary appears as it grows, and a made document is near the one it was made of. A token
that occurs once keeps its vector.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pyterrier_mvret as mv

COLLECTIONS = ("cacm", "cranfield", "hotpot100", "msmarco-dl19-mini", "scifact", "squad-a", "vaswani")
DOCUMENTS, DOC_LENGTH, DIM = 20_000, 80, 128
QUERY_LENGTH, QUERIES_A_COLLECTION = 32, 14
SEED = 7
_SETTINGS: dict[str, Any] = {
    "doc_length": DOC_LENGTH,
    "query_length": QUERY_LENGTH,
    "query_expansion": True,
    "device": "cpu",
}
_AT_ONCE = 1000  # documents made at a time

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """Real documents, packed, and real queries.

    Attributes:
        vectors: (tokens, 128) float32, of length one.
        offsets: (documents + 1,) int64; document ``d`` owns rows ``offsets[d]:offsets[d + 1]``.
        token_ids: (tokens,) int32.
        queries: (queries, 32, 128) float32, of length one.
        topics: (queries,) texts of the queries.
        matrix: (384, 128) float32, the reduction; see :func:`encoder`.
        energy: share of the vectors' squared length that the reduction keeps.
    """

    vectors: Floats
    offsets: Ints
    token_ids: npt.NDArray[np.int32]
    queries: Floats
    topics: npt.NDArray[np.str_]
    matrix: Floats
    energy: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def pool(data: Path | None, cache: Path) -> Pool:
    """The pool in the file ``cache`` (npz); encoded from the collections in the folder ``data`` where there is none."""
    if not cache.exists():
        if data is None:
            raise FileNotFoundError(f"{cache} is to be made: say where the collections are")
        made = _encoded(data)
        part = cache.with_name(cache.name + ".part")
        with part.open("wb") as file:
            np.savez(file, **vars(made))
        part.replace(cache)
    with np.load(cache) as arrays:
        return Pool(**arrays)


def documents(source: Pool, n: int, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """Records of ``n`` documents for an index, one at a time: the real ones first, then made ones."""
    real = min(n, len(source))
    for d in range(real):
        yield {"docno": f"r{d}", "doc_embs": source.vectors[source.offsets[d] : source.offsets[d + 1]]}
    others = _Occurrences(source.token_ids)
    rng = np.random.default_rng(seed)
    for first in range(real, n, _AT_ONCE):
        chosen = rng.integers(0, len(source), min(_AT_ONCE, n - first))
        rows, offsets = _rows(source.offsets, chosen)
        weight = rng.uniform(0.5, 1, (len(rows), 1)).astype(np.float32)
        mixed = _unit(weight * source.vectors[rows] + (1 - weight) * source.vectors[others.of(rows, rng)])
        for i in range(len(chosen)):
            yield {"docno": f"s{first + i}", "doc_embs": mixed[offsets[i] : offsets[i + 1]]}


def queries(source: Pool, n: int | None = None) -> list[Floats]:
    """Vectors of ``n`` queries (all by default), each (32, 128); any first few are of several collections."""
    return list(source.queries[:n])


def encoder(source: Pool) -> mv.TokenEncoder:
    """MiniLM with the reduction as its projection: text -> vectors as in the pool (there with rounded arithmetic)."""
    import torch

    found = mv.TokenEncoder(mv.models.MINILM, init_projection=DIM, **_SETTINGS)
    head = next(m for m in found.model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == DIM)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(source.matrix.T))
    return found


class _Occurrences:
    """Where each token occurs."""

    def __init__(self, token_ids: npt.NDArray[np.int32]):
        self.order = np.argsort(token_ids, kind="stable")
        _, first, counts = np.unique(token_ids[self.order], return_index=True, return_counts=True)
        self.starts, self.counts = np.empty(len(token_ids), np.int64), np.empty(len(token_ids), np.int64)
        self.starts[self.order], self.counts[self.order] = np.repeat(first, counts), np.repeat(counts, counts)
        self.places = np.empty(len(token_ids), np.int64)
        self.places[self.order] = np.arange(len(token_ids))

    def of(self, rows: Ints, rng: np.random.Generator) -> Ints:
        """For each row a random other row with the same token; itself where there is none."""
        starts, counts = self.starts[rows], self.counts[rows]
        step = rng.integers(1, np.maximum(counts, 2))
        found: Ints = self.order[starts + (self.places[rows] - starts + step) % counts]
        return found


def _rows(offsets: Ints, chosen: Ints) -> tuple[Ints, Ints]:
    """Row numbers of the chosen documents one after the other, and where each begins among them."""
    lengths = offsets[chosen + 1] - offsets[chosen]
    return mv.scoring.maxsim.ragged_rows(offsets[chosen], lengths), np.concatenate([[0], np.cumsum(lengths)])


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# ---------------------------------------------------------------------- encoding


def _encoded(data: Path) -> Pool:
    rng = np.random.default_rng(SEED)
    texts = [text for name in COLLECTIONS for text in _texts(data / name)]
    texts = [texts[i] for i in rng.permutation(len(texts))[:DOCUMENTS]]
    full = mv.TokenEncoder(mv.models.MINILM, dtype="bfloat16", verbose=True, **_SETTINGS)
    batch = full.encode_docs(texts)
    assert batch.token_ids is not None
    matrix, energy = _reduction(batch.vectors)
    topics = _topics(data, rng)
    asked = full.encode_queries(topics).vectors.reshape(len(topics), QUERY_LENGTH, -1)
    return Pool(
        vectors=_unit(batch.vectors @ matrix),
        offsets=batch.offsets,
        token_ids=batch.token_ids,
        queries=_unit(asked @ matrix),
        topics=np.array(topics),
        matrix=matrix,
        energy=np.float64(energy),
    )


def _reduction(vectors: Floats) -> tuple[Floats, float]:
    """The leading eigenvectors of the second moments, and the share of squared length they keep."""
    moments = np.zeros((vectors.shape[1], vectors.shape[1]))
    for first in range(0, len(vectors), 1 << 16):
        block = vectors[first : first + (1 << 16)]
        moments += block.T @ block
    values, directions = np.linalg.eigh(moments)  # ascending
    return directions[:, : -DIM - 1 : -1].astype(np.float32), float(values[-DIM:].sum() / values.sum())


def _texts(folder: Path) -> Iterator[str]:
    with gzip.open(folder / "docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            text = f"{record.get('title', '')} {record['text']}".strip()
            if text:
                yield text


def _topics(data: Path, rng: np.random.Generator) -> list[str]:
    """As many topics of each collection, in turn, so that any first few are of several collections."""
    columns = []
    for name in COLLECTIONS:
        with gzip.open(data / name / "queries.tsv.gz", "rt", encoding="utf-8", newline="\n") as lines:
            found = [line.rstrip("\n").split("\t", 1)[1] for line in lines]
        columns.append([found[i] for i in rng.permutation(len(found))[:QUERIES_A_COLLECTION]])
    return [topic for row in zip(*columns, strict=True) for topic in row]
