"""Losses that the library lacks, as modules beside its own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from sentence_transformers.base.losses.merged_forward import embed_columns_padded
from sentence_transformers.util import stack_padded_token_embeddings
from torch import Tensor, nn


class NWayLoss(nn.Module):
    """Cross-entropy over each query's own documents, the first of them the right one."""

    def __init__(self, model: nn.Module, similarity_fct: Any):
        super().__init__()
        self.model, self.similarity_fct = model, similarity_fct

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Features of the query and of its documents, as the library's collator makes them -> the loss."""
        query, *columns = [dict(features) for features in sentence_features]
        if len(columns) < 2:
            raise ValueError("N-way training needs at least one negative a query (see mv.training.groups)")
        out = self.model(query, task=query.get("task", "query"))
        documents, mask = stack_padded_token_embeddings(
            *embed_columns_padded(self.model, columns, task_default="document")
        )
        scores = self.similarity_fct(
            out["token_embeddings"],
            documents,
            queries_mask=out["attention_mask"].bool(),
            documents_mask=mask,
        )
        return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def in_batch_cross_entropy(scores: Tensor) -> Tensor:
    """Stanford's in-batch term: each query's positive among all documents of the batch but its own negatives.

    Args:
        scores: (B, B * N), query-major; query i's positive is column i * N.
    """
    batch, columns = scores.shape
    n = columns // batch
    own = torch.arange(columns, device=scores.device) // n == torch.arange(batch, device=scores.device)[:, None]
    negative = torch.arange(columns, device=scores.device) % n > 0
    others = scores.masked_fill(own & negative, -torch.inf)
    return F.cross_entropy(others, torch.arange(batch, device=scores.device) * n)


class WithInBatch(nn.Module):
    """A loss over queries' own documents plus the in-batch term, from one pass through the model and one matrix.

    Args:
        loss: what has a ``similarity_fct`` for queries and their own documents; it is replaced.
        matrix: scores of every query with every document.
        finish: what becomes of the own documents' scores before ``loss`` sees them.
        weight: of the in-batch term.
    """

    def __init__(self, loss: Any, matrix: Callable[..., Tensor], finish: Callable[[Tensor], Tensor], weight: float):
        super().__init__()
        self.loss, self.matrix, self.finish, self.weight = loss, matrix, finish, weight
        self.loss.similarity_fct = self._own
        self._scores: Tensor | None = None

    def _own(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        self._scores = self.matrix(queries, documents, queries_mask=queries_mask, documents_mask=documents_mask)
        rows = torch.arange(len(queries), device=self._scores.device)
        return self.finish(self._scores.view(len(queries), len(queries), -1)[rows, rows])

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parts, which the trainer adds up and logs one by one."""
        own = self.loss(sentence_features, labels)
        scores, self._scores = self._scores, None
        assert scores is not None
        return {"own": own, "in_batch": self.weight * in_batch_cross_entropy(scores)}


class WithL1(nn.Module):
    """A loss plus the mean salience of tokens (``scoring.salience.l1_penalty``), collected by the model's heads.

    Args:
        loss: any, of saliences that are carried.
        heads: those of the model, with gate ``"l1"``.
        weight: of the term.
    """

    def __init__(self, loss: nn.Module, heads: Any, weight: float):
        super().__init__()
        self.loss, self.weight = loss, weight
        self._penalties: list[Tensor] = heads.penalties  # the list alone: weights of the heads belong to the model

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parts, which the trainer adds up and logs one by one."""
        self._penalties.clear()
        loss = self.loss(sentence_features, labels)
        parts = loss if isinstance(loss, dict) else {"ranking": loss}
        return {**parts, "l1": self.weight * torch.stack(self._penalties).mean()}


def on_own_documents(
    loss: Callable[[Callable[..., Tensor]], nn.Module],
    similarity: Any,
    in_batch: float,
    finish: Callable[[Tensor], Tensor] = lambda scores: scores,
) -> nn.Module:
    """A loss over ``finish(scores)`` of queries and their own documents, with the in-batch term where it has weight."""
    module = loss(lambda *vectors, **masks: finish(similarity.groups(*vectors, **masks)))
    return WithInBatch(module, similarity.matrix, finish, in_batch) if in_batch else module


def min_max(scores: Tensor) -> Tensor:
    """Each row to [0, 1]; PyLate's own epsilon keeps rows of equal scores finite."""
    low, high = scores.amin(-1, keepdim=True), scores.amax(-1, keepdim=True)
    return (scores - low) / (high - low + 1e-8)
