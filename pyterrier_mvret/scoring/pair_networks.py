"""The networks of NVF (Neural Vector Field): one moves a query before it is searched, one scores what was found.

NVF has notes and code (MIT, December 2025, package ``bbdos.nvf``), and no paper. Its first stage is soft attention over
all documents, ``a = softmax(q' D^T / T)`` with a learned ``q'``; as neither softmax nor T changes an order, that stage
is a *query transform* in front of any search by inner product. Its second stage scores each pair of the query and one
of the K best by a small network. Residual forms of both, which start as the inner product itself, are ours.

The classes need torch to be defined: this file is imported inside of functions alone.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from torch import Tensor, nn

Features = Literal["concat", "difference", "cross"]
# where the inner product of unit vectors starts to weigh as much as what networks say
_ALPHA = 20.0
_LEAST, _LARGEST = 0.005, 10.0  # of a temperature: steps of 1e-3 near 0.008 would cross zero and turn a ranking over


class QueryTransform(nn.Module):
    """``q' = normalise(q + W2 relu(W1 q + c1) + c2)``, and the temperature that it is trained at.

    The residual form starts with ``W2 = 0, c2 = 0``: before training it is exact nearest-neighbour search. The notes'
    own form has no ``q +`` and starts at random.

    Args:
        dim: of vectors.
        residual: False for the notes' form.
        temperature: where T starts; its logarithm is learned, and it stays between 0.005 and 10.
        seed: of the first weights.

    Raises:
        ValueError: another temperature.

    >>> moved = QueryTransform(2)(torch.tensor([[3.0, 4.0]]))
    >>> moved.detach().tolist()
    [[0.6000..., 0.8000...]]
    >>> sum(weight.numel() for weight in QueryTransform(128).parameters())
    33025
    """

    def __init__(self, dim: int, residual: bool = True, temperature: float = 0.05, seed: int = 0):
        super().__init__()
        if not _LEAST <= temperature <= _LARGEST:
            raise ValueError(f"temperature must be from {_LEAST} to {_LARGEST}, got {temperature}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dim, self.residual = dim, residual
        if residual:
            _zeroed(self.second)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, queries: Tensor) -> Tensor:
        """(queries, dim) -> (queries, dim) of length one; a vector of zeros may stay one."""
        moved = self.second(F.relu(self.first(queries)))
        return F.normalize(queries + moved if self.residual else moved, dim=-1)

    @property
    def temperature(self) -> Tensor:
        """T."""
        return self.log_temperature.exp().clamp(_LEAST, _LARGEST)


class PairScorer(nn.Module):
    """A score for a query and each of its candidates: ``alpha * base + f(features)``, or ``f`` alone.

    ``f`` is shared by all pairs. ``"concat"`` (option A of the notes) reads ``[q; d]`` and ``"difference"`` (option B,
    the notes' choice) ``[q; d; q - d; q * d]``, through two hidden layers of ``hidden`` and ``hidden / 2``.
    ``"cross"`` (option C, which the notes only name; the form is ours) lets the query attend to all of its candidates:
    there, and only there, a score depends on what else was found.

    ``W [q; d; q - d; q * d]`` is computed as ``(W1 + W3) q + (W2 - W3) d + W4 (q * d)``: half of the products, and no
    array of features.

    Args:
        dim: of vectors.
        features: what ``f`` reads.
        hidden: width of its first layer.
        residual: add ``alpha`` times a score that is known, the inner product or that of the first stage; ``f`` starts
            at 0. False is the notes' form.
        dropout: behind each hidden layer, in training.
        heads: of attention, for ``"cross"``.
        seed: of the first weights.

    Raises:
        ValueError: other features, or a width that cannot be halved or divided among heads.

    >>> [sum(w.numel() for w in PairScorer(128, f, residual=False).parameters()) for f in get_args(Features)]
    [41217, 73985, 148481]
    """

    def __init__(
        self,
        dim: int,
        features: Features = "difference",
        hidden: int = 128,
        residual: bool = True,
        dropout: float = 0.1,
        heads: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        check_network(features, hidden, dropout, heads)
        self.dim, self.features = dim, features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if features == "cross":
                self.of_query, self.of_document = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
                self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
            width = {"concat": 2 * dim, "difference": 4 * dim, "cross": 3 * hidden}[features]
            self.first = nn.Linear(width, hidden)
            narrow = hidden if features == "cross" else hidden // 2
            self.second = None if features == "cross" else nn.Linear(hidden, narrow)
            self.last = nn.Linear(narrow, 1)
        self.dropout = nn.Dropout(dropout)
        # its logarithm, as a negative weight would turn rankings over
        self.log_alpha = nn.Parameter(torch.tensor(math.log(_ALPHA))) if residual else None
        if residual:
            _zeroed(self.last)

    def forward(self, queries: Tensor, documents: Tensor, base: Tensor, mask: Tensor) -> Tensor:
        """Scores of candidates.

        Args:
            queries: (queries, dim).
            documents: (queries, candidates, dim), whatever where there is none.
            base: (queries, candidates) scores that are known.
            mask: (queries, candidates), True where there is a candidate.

        Returns:
            (queries, candidates), minus infinity where there is none.
        """
        hidden = self._hidden(queries, documents, mask)
        if self.second is not None:
            hidden = self.dropout(F.relu(self.second(hidden)))
        scores = self.last(hidden).squeeze(-1)
        if self.log_alpha is not None:
            scores = self.alpha * base + scores
        return scores.masked_fill(~mask, -torch.inf)

    @property
    def alpha(self) -> Tensor:
        """The weight of what is known, 1 where nothing is."""
        return torch.ones(()) if self.log_alpha is None else self.log_alpha.exp()

    def _hidden(self, queries: Tensor, documents: Tensor, mask: Tensor) -> Tensor:
        """(queries, candidates, hidden)."""
        if self.features == "cross":
            query, seen = self.of_query(queries)[:, None], self.of_document(documents)
            # a query without candidates would attend to nothing, which is NaN
            hides = ~mask & mask.any(1, keepdim=True)
            context = self.attention(query, seen, seen, key_padding_mask=hides, need_weights=False)[0]
            pairs = torch.cat([context.expand_as(seen), seen, query * seen], dim=-1)
            return self.dropout(F.relu(self.first(pairs)))
        parts = self.first.weight.split(queries.shape[-1], dim=1)
        if self.features == "concat":
            of_query, of_document = parts
            found = F.linear(documents, of_document)
        else:
            of_query, of_document = parts[0] + parts[2], parts[1] - parts[2]
            found = F.linear(documents, of_document) + F.linear(queries[:, None] * documents, parts[3])
        return self.dropout(F.relu(found + F.linear(queries, of_query, self.first.bias)[:, None]))


def check_network(features: str, hidden: int, dropout: float, heads: int) -> None:
    """ValueError where no such network can be made."""
    if features not in get_args(Features):
        raise ValueError(f"features must be one of {', '.join(get_args(Features))}, got {features!r}")
    if hidden < 2 or hidden % 2:
        raise ValueError(f"hidden must be an even number of at least 2, got {hidden}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is a share, from 0 to below 1, got {dropout}")
    if heads < 1 or (features == "cross" and hidden % heads):
        raise ValueError(f"hidden={hidden} cannot be divided among heads={heads}")


def score_candidates(
    network: PairScorer, queries: Tensor, documents: Tensor, candidates: Tensor, scores: Tensor | None = None
) -> Tensor:
    """Scores of each query's candidates, with the inner product or the first stage's score as what is known.

    Args:
        network: what scores.
        queries: (queries, dim).
        documents: (documents, dim).
        candidates: (queries, K) rows of documents, -1 where there are fewer.
        scores: (queries, K) of a first stage, to be taken instead of inner products.

    Returns:
        (queries, K), minus infinity where there is no candidate.
    """
    mask = candidates >= 0
    found = documents[candidates.clamp(min=0)]
    # a matrix product sums in another order at the edges of its tiles: equal documents would not score alike
    base = (found * queries[:, None]).sum(-1) if scores is None else min_max(scores, mask)
    return network(queries, found, base, mask)


def min_max(scores: Tensor, mask: Tensor) -> Tensor:
    """(queries, candidates) scores of a first stage from 0 to 1 within each query; zeros where all are equal.

    Minus infinity, which a text without tokens may have, counts as the least of the others.

    >>> min_max(torch.tensor([[3.0, 1.0, 2.0, 9.0]]), torch.tensor([[True, True, True, False]]))[:, :3].tolist()
    [[1.0, 0.0, 0.5]]
    """
    counts = mask & ~scores.isneginf()
    least = scores.masked_fill(~counts, torch.inf).amin(1, keepdim=True)
    most = scores.masked_fill(~counts, -torch.inf).amax(1, keepdim=True)
    spread = most - least
    return torch.where(counts & (spread > 0), (scores - least) / spread.where(spread > 0, torch.ones_like(spread)), 0.0)


def _zeroed(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
