"""Dot products of latent-sparse vectors as losses see them: padded batches, with gradients.

The library's losses hand on vectors and masks of tokens. So that all of them serve, a sparse vector travels as rows of
two numbers, a dimension and its weight, in the place of tokens; float32 holds every dimension up to 16,777,216 exactly.
"""

import torch
from torch import Tensor

#: dimensions above it could not travel as float32
MOST_DIMENSIONS = 1 << 24


def as_rows(ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(texts, k, 2) rows of dimension and weight, and (texts, k) which of them are active.

    Args:
        ids: (texts, k).
        weights: (texts, k) at least 0; gradients go through them.
    """
    return torch.stack([ids.to(weights.dtype), weights], dim=-1), weights > 0


class LatentSimilarity:
    """Dot products of k-sparse vectors, of those dimensions alone that a query of the batch has.

    Nothing of the size of the latent space is held: dimensions that queries have are numbered anew.

    >>> query, mask = as_rows(torch.tensor([[7, 3]]), torch.tensor([[2.0, 1.0]]))
    >>> document, found = as_rows(torch.tensor([[3, 9]]), torch.tensor([[0.5, 4.0]]))
    >>> LatentSimilarity().matrix(query, document[:, None], mask, found[:, None])
    tensor([[0.5000]])
    """

    def matrix(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, 2) and (D, N, m, 2) -> (Q, D * N): every query against every document."""
        asked, found = _numbered(queries, documents.flatten(0, 1), queries_mask, documents_mask.flatten(0, 1))
        return asked @ found.T

    def groups(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, 2) and (Q, N, m, 2) -> (Q, N): every query against its own documents."""
        asked, found = _numbered(queries, documents.flatten(0, 1), queries_mask, documents_mask.flatten(0, 1))
        return torch.einsum("qu,qnu->qn", asked, found.unflatten(0, documents.shape[:2]))

    def pairs(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, 2) and (Q, m, 2) -> (Q,): every query against its one document."""
        return self.groups(queries, documents[:, None], queries_mask, documents_mask[:, None])[:, 0]


def _numbered(
    queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Dense (Q, used) and (D, used) vectors over the dimensions that queries have."""
    used = torch.unique(queries[..., 0].detach()[queries_mask])
    return _dense(queries, queries_mask, used), _dense(documents, documents_mask, used)


def _dense(rows: Tensor, mask: Tensor, used: Tensor) -> Tensor:
    ids, weights = rows[..., 0].detach().contiguous(), rows[..., 1].float()
    if not len(used):
        return weights[:, :0]
    place = torch.searchsorted(used, ids).clamp(max=len(used) - 1)
    weights = weights.masked_fill(~mask | (used[place] != ids), 0)
    return weights.new_zeros(len(rows), len(used)).scatter_add(1, place, weights)
