"""What makes latent vectors sparse, and evenly spread, in training: penalties of a batch of k-sparse vectors.

All are of the vectors that are scored, after top-k and normalisation: before, a model lowers them by shrinking its
weights, which changes no ranking.
"""

import math
from typing import Any

import torch
from torch import Tensor


def l1(weights: Tensor) -> Tensor:
    """Mean sum of a text's weights (SPLADE's penalty of queries).

    Args:
        weights: (texts, k) at least 0.

    >>> l1(torch.tensor([[1.0, 2.0], [2.0, 0.0]]))
    tensor(2.5000)
    """
    return weights.sum() / len(weights)


def flops(ids: Tensor, weights: Tensor) -> Tensor:
    """``sum_j (mean_b x_bj)^2`` (Paria et al. 2020, arXiv 2004.05665): the cost of scoring in expectation.

    Of vectors of length one it is the mean cosine of all pairs of texts, each with itself included.

    Args:
        ids: (texts, k) latents, different ones within a text.
        weights: (texts, k) at least 0; of 0 a latent is not active.

    >>> flops(torch.tensor([[0, 2], [2, 1]]), torch.tensor([[1.0, 2.0], [2.0, 0.0]]))
    tensor(4.2500)
    """
    return (_means(ids, weights)).square().sum()


def equipartition(ids: Tensor, weights: Tensor, latents: int) -> Tensor:
    """``1 - H / ln min(D, B k)``, H the entropy of the mean of the texts' distributions over latents.

    0 where all latents that B texts of k weights can reach carry the same, 1 where one carries all. The name and the
    aim are KALE's (Borges et al. 2023, doi 10.1145/3578337.3605131), whose formula is not known to us: this is ours.
    Texts without weights have no part.

    Args:
        ids: (texts, k) latents, different ones within a text.
        weights: (texts, k) at least 0.
        latents: D, how many there are.

    >>> x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 2.0]])
    >>> equipartition(torch.arange(3).expand(2, 3), x, 3)
    tensor(0.5899)
    """
    sums = weights.sum(1, keepdim=True)
    texts = int((sums > 0).sum())
    reachable = min(latents, texts * weights.shape[1])
    if reachable < 2:  # nothing could be spread
        return weights.sum() * 0
    shares = weights / sums.clamp(min=torch.finfo(weights.dtype).tiny)
    mean = _means(ids, shares) * (len(weights) / texts)
    mean = mean[mean > 0]
    return 1 + (mean * mean.log()).sum() / math.log(reachable)


def _means(ids: Tensor, weights: Tensor) -> Tensor:
    """Mean weight of each latent that occurs, over texts."""
    used, place = torch.unique(ids, return_inverse=True)
    return weights.new_zeros(len(used)).index_add(0, place.flatten(), weights.flatten()) / len(weights)


class Usage:
    """How many latents texts have, and how many there are in all, since it was last asked.

    >>> usage = Usage()
    >>> usage.add("query", torch.tensor([[0, 2], [2, 1]]), torch.tensor([[1.0, 2.0], [2.0, 0.0]]))
    >>> usage.take()
    {'query_active': 1.5, 'query_latents': 2, 'query_empty': 0}
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[Any]] = {}

    def add(self, side: str, ids: Tensor, weights: Tensor) -> None:
        """Counts a batch.

        Args:
            side: ``"query"`` or ``"document"``.
            ids: (texts, k).
            weights: (texts, k); of 0 a latent is not active.
        """
        active = (weights != 0).detach()  # NaN is no text without latents: the trainer has its own words for it
        counts = active.sum(1)
        texts, total, empty, used = self._seen.get(side, (0, 0, 0, ids.new_empty(0)))
        used = torch.unique(torch.cat([used, ids.detach()[active]]))
        self._seen[side] = [texts + len(ids), total + int(counts.sum()), empty + int((counts == 0).sum()), used]

    def take(self) -> dict[str, float]:
        """Of each side: mean active latents of a text, different ones in all, texts without any; then forgets."""
        seen, self._seen = self._seen, {}
        out: dict[str, float] = {}
        for side, (texts, total, empty, used) in seen.items():
            out[f"{side}_active"] = round(total / texts, 2)
            out[f"{side}_latents"] = len(used)
            out[f"{side}_empty"] = empty
        return out
