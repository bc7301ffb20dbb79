"""Training of NVF's two networks: what scores pairs of vectors, and what moves queries before they are searched."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pyterrier_mvret.scoring.pair_networks import PairScorer, QueryTransform, score_candidates
from pyterrier_mvret.training.candidate_sets import CandidateSets
from pyterrier_mvret.training.network_loop import NetworkTrainer, listwise

Floats = npt.NDArray[np.float32]
# documents among which a query's relevant ones are told apart in one step; of larger collections, others each time
_MOST_DOCUMENTS = 1 << 16
# documents that validation ranks for a query
_DEPTH = 100
# numbers of a (queries, documents) array that is held at once
_AT_ONCE = 1 << 24


def fit_scorer(
    network: PairScorer,
    train: CandidateSets,
    valid: tuple[CandidateSets, pd.DataFrame] | None,
    how: NetworkTrainer,
    *,
    use_score: bool = False,
    measure: Any = "nDCG@10",
    verbose: bool = True,
) -> pd.DataFrame:
    """Trains a pair scorer where it is, by list-wise cross-entropy; returns the curves.

    Args:
        network: what is trained, on its device.
        train: every query with a relevant candidate.
        valid: candidates of other queries as they were retrieved, and their judgements.
        how: epochs, rate, patience.
        use_score: whether the first stage's scores stand in for inner products.
        measure: by which the best epoch is kept.
        verbose: a progress bar.
    """
    queries, documents, candidates, gains, scores = _tensors(train, network.last.weight.device)

    def loss(rows: Tensor) -> Tensor:
        rows = rows.to(queries.device)
        first = scores[rows] if use_score else None
        found = score_candidates(network, queries[rows], documents, candidates[rows], first)
        return listwise(found, gains[rows])

    def validated() -> float:
        assert valid is not None
        return valid[0].measured(scored(network, valid[0], use_score), valid[1], measure)

    return how.fit(network, len(train), loss, validated if valid else None, str(measure), verbose)


def scored(network: PairScorer, sets: CandidateSets, use_score: bool = False, at_once: int = 2048) -> Floats:
    """(queries, K) scores of candidates, minus infinity where there is none; so many pairs at once.

    What is known, the inner product say, has a weight of one in them: before training they are what is known.
    """
    queries, documents, candidates, _, scores = _tensors(sets, network.last.weight.device)
    step = max(1, at_once // max(candidates.shape[1], 1))
    found = np.empty(candidates.shape, dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(queries), step):
            rows = slice(first, first + step)
            base = scores[rows] if use_score else None
            part = score_candidates(network, queries[rows], documents, candidates[rows], base)
            found[rows] = (part / network.alpha).cpu().numpy()
    return found


def fit_transform(
    network: QueryTransform,
    train: CandidateSets,
    valid: tuple[CandidateSets, pd.DataFrame] | None,
    how: NetworkTrainer,
    *,
    measure: Any = "nDCG@10",
    verbose: bool = True,
) -> pd.DataFrame:
    """Trains a query transform where it is, by cross-entropy of the relevant among all documents; returns the curves.

    Args:
        network: what is trained, on its device.
        train: queries whose candidates are their relevant documents; all documents of the collection.
        valid: other queries, over the same documents, and their judgements: all documents are ranked.
        how: epochs, rate, patience.
        measure: by which the best epoch is kept.
        verbose: a progress bar.
    """
    queries, documents, candidates, gains, _ = _tensors(train, network.second.weight.device)
    drawn = torch.Generator().manual_seed(how.seed)

    def loss(rows: Tensor) -> Tensor:
        rows = rows.to(queries.device)
        relevant = candidates[rows]
        if len(documents) <= _MOST_DOCUMENTS:
            among, places = documents, relevant.clamp(min=0)
        else:
            others = torch.randint(len(documents), (_MOST_DOCUMENTS,), generator=drawn).to(relevant.device)
            chosen = torch.cat([others, relevant.clamp(min=0).flatten()]).unique()
            among, places = documents[chosen], torch.searchsorted(chosen, relevant.clamp(min=0))
        logs = (network(queries[rows]) @ among.T / network.temperature).log_softmax(1).gather(1, places)
        targets = gains[rows] / gains[rows].sum(1, keepdim=True)
        return -(targets * logs).sum(1).mean()

    def validated() -> float:
        assert valid is not None
        sets, qrels = valid
        scores, found = nearest(network, sets.queries, documents, _DEPTH)
        return replace(sets, candidates=found).measured(scores, qrels, measure)

    return how.fit(network, len(train), loss, validated if valid else None, str(measure), verbose)


def nearest(
    network: QueryTransform | None, queries: Floats, documents: Tensor, k: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Inner products and rows of the k best documents of each query, (queries, k), after its transform."""
    k = min(k, len(documents))
    parts = []
    with torch.inference_mode():
        for block in torch.from_numpy(queries).to(documents.device).split(max(1, _AT_ONCE // max(len(documents), 1))):
            moved = block if network is None else network(block)
            parts.append([part.cpu().numpy() for part in (moved @ documents.T).topk(k)])
    scores, found = zip(*parts, strict=True) if parts else ([np.empty((0, k))], [np.empty((0, k))])
    return np.concatenate(scores).astype(np.float32), np.concatenate(found).astype(np.int64)


def _tensors(sets: CandidateSets, device: Any) -> Sequence[Tensor]:
    arrays = sets.queries, sets.documents, sets.candidates, sets.gains, sets.scores
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
