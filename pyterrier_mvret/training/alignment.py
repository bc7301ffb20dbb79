"""Sparse alignment as losses see it: padded batches, with gradients, and saliences that travel inside of vectors.

    sim(Q, D) = (1 / Z) sum_ij S_ij A_ij        A_ij = T_ij u_i v_j        (Qian et al. 2022, equations 1 and 2)

What top-k and top-p select is a constant to the gradient, which for ``S`` is ``A_ij / Z`` and reaches selected pairs
alone. So where they are few, the way back goes through them, and a gradient of the whole product of tokens is never
held. A soft alignment passes gradients through its gates, too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, MaxSim, Soft, TopK
from pyterrier_mvret.scoring.aligned import LEAST_MASS, AlignOver, Normalizer, Rule
from pyterrier_mvret.scoring.salience import entropy_lp, hard_gate
from pyterrier_mvret.scoring.strategies import Strategy
from pyterrier_mvret.training import winners

# up to so many document tokens a query token, gradients go through each of them instead of a product of matrices
_FEW = 16


class _Tokens(NamedTuple):
    """Padded texts: (texts, tokens, dim) vectors, (texts, tokens) saliences, both 0 in the padding, and the mask."""

    vectors: Tensor
    saliences: Tensor
    mask: Tensor


class AlignmentSimilarity:
    """ALIGNER's score between padded batches (equation 1), as :func:`align_matrix` computes it, with gradients.

    They are exact for similarities and saliences. No gradient passes a selection; of equal similarities the first are
    selected. A score is 0, and so is its gradient, where the normaliser is 0; documents without tokens score
    :data:`EMPTY_DOCUMENT`. Arithmetic is float32 under autocast, too. ``TopK(1)`` without saliences is
    :class:`MaxSimSimilarity` with a mean over query tokens, to the bit.

    Args:
        strategy: which document tokens a query token aligns with.
        normalizer: as for :func:`align_packed`.
        align_over: as for :func:`align_packed`.
        weighed: whether the last dimension of each vector is no part of it but the token's salience, at least 0: the
            library's losses hand on vectors and masks alone. Else all saliences are 1.

    Raises:
        ValueError: unknown names; vectors that hold NaN, where all similarities of a document are looked at.

    >>> similarity = AlignmentSimilarity(TopK(1), "alignment", "all", weighed=True)
    >>> query = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.5]]])  # two tokens of saliences 1 and 0.5
    >>> document = torch.tensor([[[[0.96, 0.28, 0.5], [0.8, 0.6, 1.0]]]])
    >>> similarity.matrix(query, document, torch.ones(1, 2).bool(), torch.ones(1, 1, 2).bool())
    tensor([[0.7800]])
    """

    def __init__(self, strategy: Strategy, normalizer: Normalizer, align_over: AlignOver, weighed: bool):
        from pyterrier_mvret.training.similarity import MaxSimSimilarity

        self._strategy, self._weighed = strategy, weighed
        self._rule = Rule((strategy,), normalizer, align_over)
        plain = strategy == TopK(1) and not weighed
        self._colbert = MaxSimSimilarity(MaxSim(normalize="query"), unit=True) if plain else None

    def matrix(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim) and (D, N, m, dim) -> (Q, D * N): every query against every document."""
        if self._colbert is not None:
            return self._colbert.matrix(queries, documents, queries_mask, documents_mask)
        with _full_precision(queries):
            found = self._tokens(documents.flatten(0, 1), documents_mask.flatten(0, 1))
            return self._scores(self._tokens(queries, queries_mask), found)

    def groups(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim) and (Q, N, m, dim) -> (Q, N): every query against its own documents."""
        if self._colbert is not None:
            return self._colbert.groups(queries, documents, queries_mask, documents_mask)
        with _full_precision(queries):
            asked, found = self._tokens(queries, queries_mask), self._tokens(documents, documents_mask)
            rows = [
                self._scores(_Tokens(*(part[i, None] for part in asked)), _Tokens(*(part[i] for part in found)))
                for i in range(len(queries))
            ]
            return torch.cat(rows)

    def pairs(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """(Q, n, dim) and (Q, m, dim) -> (Q,): every query against its one document."""
        if self._colbert is not None:
            return self._colbert.pairs(queries, documents, queries_mask, documents_mask)
        return self.groups(queries, documents[:, None], queries_mask, documents_mask[:, None])[:, 0]

    def _tokens(self, vectors: Tensor, mask: Tensor) -> _Tokens:
        vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
        vectors = vectors.masked_fill(~mask[..., None], 0)  # whatever the padding holds
        if not self._weighed:
            return _Tokens(vectors, mask.to(vectors.dtype), mask)
        return _Tokens(vectors[..., :-1].contiguous(), vectors[..., -1], mask)

    def _scores(self, queries: _Tokens, documents: _Tokens) -> Tensor:
        """(queries, documents)."""
        free = documents.mask  # what may be aligned with
        if self._rule.align_over == "salient":
            free = free & (documents.saliences > 0)
        counts = self._counts(free)
        most = max(1, int(counts.max()))
        if isinstance(self._strategy, Soft) or most > _FEW:
            scores = self._in_blocks(queries, documents, free)
        else:
            scores = self._of_best(queries, documents, free, counts, most)
        return scores.masked_fill(~documents.mask.any(1), float(EMPTY_DOCUMENT))

    def _counts(self, free: Tensor) -> Tensor:
        """(documents,): with how many tokens of a document each query token aligns."""
        counts = self._rule.counts(free.sum(1).cpu().numpy())[0]
        return torch.from_numpy(counts).to(free.device)

    def _of_best(self, queries: _Tokens, documents: _Tokens, free: Tensor, counts: Tensor, most: int) -> Tensor:
        """Scores from the best similarities alone."""
        values, rows = winners.Winners.apply(queries.vectors, documents.vectors, free, most)
        v = documents.saliences.flatten().index_select(0, rows.flatten()).view_as(values)
        aligned = torch.arange(most, device=counts.device) < counts[:, None, None]
        return self._mean(values, aligned.to(values.dtype), queries.saliences[:, None, :, None], v)

    def _in_blocks(self, queries: _Tokens, documents: _Tokens, free: Tensor) -> Tensor:
        """Scores from all similarities; of several blocks of documents each is computed again on the way back."""
        step = max(1, winners.PRODUCTS_AT_ONCE // max(1, queries.mask.numel() * free.shape[1]))
        parts = [part.split(step) for part in (documents.vectors, documents.saliences, free)]
        if len(parts[0]) <= 1:
            return self._of_all(*queries[:2], documents.vectors, documents.saliences, free)
        blocks = [
            checkpoint(self._of_all, *queries[:2], *block, use_reentrant=False, preserve_rng_state=False)
            for block in zip(*parts, strict=True)
        ]
        return torch.cat(blocks, 1)

    def _of_all(self, queries: Tensor, u: Tensor, documents: Tensor, v: Tensor, free: Tensor) -> Tensor:
        similarities: Any = _Products.apply(queries.flatten(0, 1), documents.flatten(0, 1))
        similarities = similarities.view(*u.shape, *v.shape).transpose(1, 2)
        real = free[:, None].expand(similarities.shape)
        if isinstance(self._strategy, Soft):
            aligned = entropy_lp(similarities, self._strategy.k, self._strategy.epsilon, real)
        else:
            budgets = self._counts(free)[:, None].expand(similarities.shape[:-1])
            aligned = hard_gate(similarities, budgets, real)
        return self._mean(similarities, aligned, u[:, None, :, None], v[:, None])

    def _mean(self, similarities: Tensor, aligned: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Equation 1 over the last two dimensions, query tokens and the document tokens that each looks at."""
        weight = aligned * u * v
        mass = weight if self._rule.normalizer == "alignment" else aligned * u
        sums, total = (weight * similarities).sum((-2, -1)), mass.sum((-2, -1))
        some = total > LEAST_MASS
        return torch.where(some, sums / torch.where(some, total, 1), 0)


class _Products(torch.autograd.Function):
    """Products of all rows with all rows, in full precision on the way back as well, where autocast would round."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        """(a, dim) and (b, dim) -> (a, b)."""
        ctx.save_for_backward(left, right)
        return left @ right.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """As of any product of matrices."""
        left, right = ctx.saved_tensors
        with _full_precision(gradient):
            return (
                gradient @ right if ctx.needs_input_grad[0] else None,
                gradient.T @ left if ctx.needs_input_grad[1] else None,
            )


def _full_precision(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
