"""The best similarities alone, with their gradient: what ranking by the best tokens needs of a product of tokens.

The gradient of a maximum reaches one document token a query token, the winner. So no gradient of the whole product is
ever held: winners are remembered, and the way back is a sum over them. On a CPU that is twice as fast as automatic
differentiation of the product (benchmarks/training.json), whose gradient is zero nearly everywhere.
"""

from typing import Any

import torch
from torch import Tensor

# similarities of tokens that are held at once
PRODUCTS_AT_ONCE = 1 << 23


class Winners(torch.autograd.Function):
    """The best similarities of each query token with each document, and whose they are."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, documents: Tensor, free: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(Q, n, dim), (D, m, dim), (D, m) -> (Q, D, n, k) similarities, best first, and rows of all documents.

        Where a document has fewer that are ``free``, the rest is 0.
        """
        width = documents.shape[1]
        shape = len(queries), queries.shape[1], len(documents), k
        values, rows = queries.new_empty(shape), torch.empty(shape, dtype=torch.int32, device=queries.device)
        tokens = queries.flatten(0, 1)
        hidden = torch.zeros_like(free, dtype=queries.dtype).masked_fill_(~free, -torch.inf)
        step = max(1, PRODUCTS_AT_ONCE // max(1, len(tokens) * width))
        for start in range(0, len(documents), step):
            block = slice(start, start + step)
            products = tokens @ documents[block].flatten(0, 1).T
            products += hidden[block].flatten()  # of a row, faster than a mask of all
            products = products.view(*shape[:2], -1, width)
            for rank in range(k):
                best, at = products.max(-1, keepdim=True)  # of equal ones the first
                values[:, :, block, rank], rows[:, :, block, rank] = best[..., 0], at[..., 0]
                if rank < k - 1:
                    products.scatter_(-1, at, -torch.inf)
        values.masked_fill_(values.isneginf(), 0)
        rows += torch.arange(len(documents), dtype=torch.int32, device=rows.device)[:, None] * width
        values, rows = values.transpose(1, 2), rows.transpose(1, 2)
        ctx.save_for_backward(queries, documents, rows)
        ctx.mark_non_differentiable(rows)
        return values, rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        """A query token's gradient is the sum of what it selected, a document token's of the query tokens it won."""
        queries, documents, rows = ctx.saved_tensors
        rows, share = rows.transpose(1, 2).flatten(2), gradient.transpose(1, 2).flatten(2)  # (Q, n, D * k)
        flat = documents.flatten(0, 1)
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
