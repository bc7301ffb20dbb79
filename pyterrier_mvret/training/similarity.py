"""The ranking rule as losses see it: padded batches, with gradients.

MaxSim's gradient reaches one document token a query token, the winner of its maximum. So a matrix of scores needs no
gradient of the whole product of tokens: winners are remembered, and the way back is a sum over them. On a CPU that is
twice as fast as automatic differentiation of the product (benchmarks/training.json), whose gradient is zero nearly
everywhere.
"""

from typing import Any

import torch
from sentence_transformers.multi_vector_encoder import scoring
from torch import Tensor

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim

# similarities of tokens that are held at once
_PRODUCTS_AT_ONCE = 1 << 23


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
            scores: Any = _MaxSimMatrix.apply(queries, documents.flatten(0, 1), queries_mask, mask)
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


class _MaxSimMatrix(torch.autograd.Function):
    """Scores of all queries with all documents; remembers which document token each query token took."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # sums of half precision would collide
    def forward(ctx: Any, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim), (D, m, dim) and their masks -> (Q, D)."""
        count, tokens, dim = queries.shape
        rows = queries.reshape(-1, dim)
        scores = queries.new_empty(count, len(documents))
        winners = torch.empty(count, tokens, len(documents), dtype=torch.int32)
        hidden = torch.zeros(documents_mask.shape, dtype=queries.dtype).masked_fill_(~documents_mask, -torch.inf)
        weight = queries_mask.to(queries.dtype)
        step = max(1, _PRODUCTS_AT_ONCE // max(1, len(rows) * documents.shape[1]))
        for start in range(0, len(documents), step):
            block = slice(start, start + step)
            products = rows @ documents[block].reshape(-1, dim).T
            products += hidden[block].flatten()
            best, at = products.view(count, tokens, -1, documents.shape[1]).max(3)
            best.masked_fill_(best.isneginf(), 0.0)  # a document without tokens: not infinity times a weight of 0
            scores[:, block] = torch.einsum("qnd,qn->qd", best, weight)
            winners[:, :, block] = at
        weight = weight[:, :, None] * documents_mask.any(1)
        ctx.save_for_backward(queries, documents, winners, weight)
        return scores

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Each query token's gradient is the sum of its winners, each winner's the sum of the query tokens it won."""
        queries, documents, winners, weight = ctx.saved_tensors
        dim = queries.shape[2]
        share = gradient[:, None] * weight  # (Q, n, D), as the winners
        rows = winners + torch.arange(len(documents), dtype=torch.int32) * documents.shape[1]
        flat = documents.reshape(-1, dim)
        to_queries = to_documents = None
        if ctx.needs_input_grad[0]:
            to_queries = torch.nn.functional.embedding_bag(
                rows.flatten(0, 1), flat, mode="sum", per_sample_weights=share.flatten(0, 1)
            ).view_as(queries)
        if ctx.needs_input_grad[1]:
            to_documents = torch.zeros_like(flat)
            for query, at, part in zip(queries, rows, share, strict=True):
                to_documents.index_add_(0, at.flatten(), (part[:, :, None] * query[:, None]).flatten(0, 1))
            to_documents = to_documents.view_as(documents)
        return to_queries, to_documents, None, None
