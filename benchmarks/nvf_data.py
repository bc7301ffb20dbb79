"""The synthetic data of NVF's notes, exactly, and a task on which learning can help; also for tests.

Documents are unit vectors. Queries are drawn at random, the truth being the nearest document, or are noisy copies of
documents. With noise that is the same in all dimensions the inner product is the best possible rule; with noise that
differs between dimensions it is not, and a scorer that learns which to trust is better.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from pyterrier_mvret.training.candidate_sets import CandidateSets, unit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
N, DIM = 1000, 128
#: standard deviations of noise: that of the notes' training script, and one a dimension
NOTES = 0.3
UNEVEN = np.repeat([0.35, 0.1], DIM // 2)


def collection(rng: np.random.Generator, number: int = N) -> Floats:
    """So many documents, N(0, 1) a component, of length one."""
    return unit(rng.normal(size=(number, DIM)).astype(np.float32))


def clustered(rng: np.random.Generator, clusters: int = 100, each: int = 10, spread: float = 0.2) -> Floats:
    """Documents around centroids; with the notes' spread, two of a cluster have a cosine of 0.16."""
    centroids = collection(rng, clusters).repeat(each, axis=0)
    return unit(centroids + spread * rng.normal(size=centroids.shape).astype(np.float32))


def copies(rng: np.random.Generator, documents: Floats, number: int, noise: Any) -> tuple[Floats, Ints]:
    """Queries that are noisy copies of documents, and which of them."""
    truth = rng.integers(len(documents), size=number)
    noisy = documents[truth] + noise * rng.normal(size=(number, documents.shape[1]))
    return unit(noisy.astype(np.float32)), truth


def nearest(queries: Floats, documents: Floats, k: int) -> tuple[Floats, Ints]:
    """Inner products and rows of the k best documents of each query."""
    products = torch.from_numpy(queries) @ torch.from_numpy(documents).T
    scores, found = products.topk(k)
    return scores.numpy(), found.numpy()


def at_random(rng: np.random.Generator, documents: Floats, number: int) -> tuple[Floats, Ints]:
    """Queries from anywhere, and the nearest document of each."""
    queries = collection(rng, number)
    return queries, nearest(queries, documents, 1)[1][:, 0]


def sets(
    queries: Floats, truth: Ints, documents: Floats, found: tuple[Floats, Ints], drop: bool = False
) -> CandidateSets:
    """Queries and what a first stage found; those whose truth is not among it stay, or go."""
    scores, candidates = found
    gains = (candidates == truth[:, None]).astype(np.float32)
    rows = gains.any(1) if drop else np.ones(len(queries), dtype=bool)
    qids = [str(i) for i in np.flatnonzero(rows)]
    names = [str(i) for i in range(len(documents))]
    return CandidateSets(queries[rows], documents, candidates[rows], gains[rows], scores[rows], qids, names)


def targets(queries: Floats, truth: Ints, documents: Floats) -> CandidateSets:
    """Queries and their truth alone, over all documents."""
    gains = np.ones((len(queries), 1), dtype=np.float32)
    qids, names = ([str(i) for i in range(n)] for n in (len(queries), len(documents)))
    return CandidateSets(queries, documents, truth[:, None], gains, gains, qids, names)


def judgements(found: CandidateSets) -> pd.DataFrame:
    """The truth of each query, as qrels."""
    row, column = np.nonzero(found.gains)
    docnos = found.candidates[row, column].astype(str)
    return pd.DataFrame({"qid": np.array(found.qids)[row], "docno": docnos, "label": 1})


def first(scores: Floats, gains: Floats) -> float:
    """Share of queries whose best candidate is the truth."""
    return float(np.take_along_axis(gains, scores.argmax(1)[:, None], 1).mean())


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.1f}"
