"""MaxSim as losses see it: padded batches, with gradients."""

import torch
from sentence_transformers.multi_vector_encoder import scoring
from torch import Tensor

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim
from pyterrier_mvret.training.winners import Winners


class MaxSimSimilarity:
    """MaxSim between padded batches, as the rule ranks: cosine or distance, a sum or a mean over query tokens.

    Raises:
        ValueError: squared distances of vectors that are not of length one; of those they are 2 - 2 <q, d>.
    """

    def __init__(self, rule: MaxSim, unit: bool):
        if rule.similarity == "l2" and not unit:
            raise ValueError("training with similarity='l2' needs an encoder that normalises")
        self._mean, self._distances = rule.normalize == "query", rule.similarity == "l2"

    def matrix(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim) and (D, N, m, dim) -> (Q, D * N): every query against every document."""
        mask = documents_mask.flatten(0, 1)
        if queries.device.type == "cpu" and queries.dtype == documents.dtype == torch.float32:
            # also under autocast: sums of half precision would collide
            with torch.autocast("cpu", enabled=False):
                best, _ = Winners.apply(queries, documents.flatten(0, 1), mask, 1)
                scores = (best[..., 0] * queries_mask[:, None]).sum(-1)
        else:
            scores = scoring.colbert_scores(queries, documents, queries_mask, documents_mask)
        return self._finished(scores, queries_mask, mask)

    def groups(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim) and (Q, N, m, dim) -> (Q, N): every query against its own documents."""
        scores = scoring.colbert_kd_scores(queries, documents, queries_mask, documents_mask)
        return self._finished(scores, queries_mask, documents_mask)

    def pairs(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim) and (Q, m, dim) -> (Q,): every query against its one document."""
        scores = scoring.colbert_scores_pairwise(queries, documents, queries_mask, documents_mask)
        return self._finished(scores[:, None], queries_mask, documents_mask[:, None])[:, 0]

    def _finished(self, scores: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        tokens = queries_mask.sum(1, keepdim=True).clamp(min=1)
        if self._distances:
            scores = 2 * scores - 2 * tokens
        scores = scores / tokens if self._mean else scores
        return scores.masked_fill(~documents_mask.any(-1), float(EMPTY_DOCUMENT))
