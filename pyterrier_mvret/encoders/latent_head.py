"""LASPAR's head as a module of a model: from the states of a text's tokens to a sparse vector of many latents.

The class needs torch to be defined, so this file is imported where heads are attached or read, never at the top of
another. Its full name is written into checkpoints: moving it would make them unreadable.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from sentence_transformers.util.tensor import repad_flattened_features
from torch import Tensor, nn

from pyterrier_mvret.encoders.own_module import OwnModule
from pyterrier_mvret.scoring.latent_vectors import log_relu, running_top

# numbers of a (texts, latents) array that is held at once: 16 MB
_AT_ONCE = 1 << 22
# rows of U that are multiplied at once on a CPU: as float32 they stay in its cache (measured: 2,048 of 384 dimensions)
_BLOCK = 2048
# rows of U that are drawn at once; a number by which the weights of a seed are fixed
_DRAWN = 65536
# where weights of positions start: 1 over the tokens of a common text, so that sums are about means
_POSITION = 1 / 64


class LatentHead(OwnModule):
    """``x = log(1 + ReLU(U h + b))`` of a text's pooled states ``h``, of which the ``k`` largest entries are kept.

    It stands directly behind the transformer and changes nothing that comes after it: ``latent_ids`` (texts, k) int64
    and ``latent_weights`` (texts, k) float32 are added, heaviest first; a weight of 0 is not active, whatever its id.
    U is walked through in chunks, so no (texts, latents) array is held. In training the winners' rows are looked up
    again, with gradient: it reaches the rows that are kept, and no others.

    Args:
        in_features: dimensions of a token's state.
        latents: D, rows of U.
        k_doc: entries of a document that are kept.
        k_query: the same of a query.
        pooling: how states become one: ``"mean"``, ``"sum"`` (the earlier architecture: tokens are upscaled, then
            added up), ``"position"`` (a learned weight a position, the later one) or ``"attention"`` (a softmax of
            ``v h_t``).
        norm_input: scale ``h`` to length one.
        normalize: scale ``x`` to length one, after all but k entries are gone.
        normalize_before_topk: by the length before they are gone, as the method's code does; not for training.
        bias: whether there is b.
        rows: how U is kept: ``"float32"``, ``"float16"``, or ``"int8"`` with a scale a row. Only float32 can be
            trained; products are float32 always.
        positions: of ``pooling="position"``: how many have a weight of their own; those behind have the last one's.
        trained: whether U was ever trained: an untrained one is a random projection, and said to be.

    >>> head = LatentHead(2, 4, k_doc=4, k_query=2, pooling="sum", norm_input=False)
    >>> _ = head.weight.data.copy_(torch.tensor([[1, 0.5], [-1, 1], [0.5, -1], [0, -2]]))
    >>> states = {"token_embeddings": torch.tensor([[[1.0, 0], [0, 2]]]), "attention_mask": torch.ones(1, 2)}
    >>> found = head(states, task="query")
    >>> found["latent_ids"].tolist(), found["latent_weights"].tolist()
    ([[0, 1]], [[0.8457..., 0.5336...]])
    """

    config_keys: list[str] = [  # noqa: RUF012 (as its base declares it)
        "in_features",
        "latents",
        "k_doc",
        "k_query",
        "pooling",
        "norm_input",
        "normalize",
        "normalize_before_topk",
        "bias",
        "rows",
        "positions",
        "trained",
    ]
    forward_kwargs: set[str] = {"task", "latents"}  # noqa: RUF012

    def __init__(
        self,
        in_features: int,
        latents: int,
        k_doc: int,
        k_query: int,
        pooling: str = "mean",
        norm_input: bool = True,
        normalize: bool = True,
        normalize_before_topk: bool = False,
        bias: bool = True,
        rows: str = "float32",
        positions: int = 256,
        trained: bool = False,
    ):
        super().__init__()
        self.in_features, self.latents = in_features, latents
        self.k_doc, self.k_query = k_doc, k_query
        self.pooling, self.norm_input = pooling, norm_input
        self.normalize, self.normalize_before_topk = normalize, normalize_before_topk
        self.bias, self.rows, self.positions, self.trained = bias, rows, positions, trained
        shape = (latents, in_features)
        if rows == "float32":
            self.weight: Tensor = nn.Parameter(torch.zeros(shape))
        else:
            # halves are kept as their bits: what makes a model float32 would make them so, too
            self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16 if rows == "float16" else torch.int8))
        if rows == "int8":
            self.scale: Tensor
            self.register_buffer("scale", torch.zeros(latents, 1))
        self.offset = nn.Parameter(torch.zeros(latents)) if bias else None
        if pooling == "position":
            self.position = nn.Parameter(torch.full((positions,), _POSITION))
        elif pooling == "attention":
            self.attention = nn.Parameter(torch.zeros(in_features))  # zeros make it the mean
        #: in training: gradients of U as sparse tensors, which a large U needs
        self.sparse_gradient = False

    # ------------------------------------------------------------------ what a model calls

    def forward(
        self, features: dict[str, Any], task: str | None = None, latents: bool = True, **kwargs: Any
    ) -> dict[str, Any]:
        """Adds ``latent_ids`` and ``latent_weights``; ``latents=False``, for token vectors alone, adds nothing."""
        if latents:
            if "cu_seq_lens_q" in features:
                features = repad_flattened_features(features)
            features["latent_ids"], features["latent_weights"] = self.encode(self.pooled(features), task)
        return features

    def pooled(self, features: dict[str, Any]) -> Tensor:
        """(texts, in_features) float32: each text's states as one; neither padding nor query expansion counts."""
        real = features["attention_mask"].bool()
        if "query_expansion_positions" in features:
            real = real & ~features["query_expansion_positions"].bool()
        with torch.autocast(real.device.type, enabled=False):
            states = features["token_embeddings"].float().masked_fill(~real[..., None], 0)
            h = self._weighed(states, real)
            return F.normalize(h, dim=1) if self.norm_input else h

    def _weighed(self, states: Tensor, real: Tensor) -> Tensor:
        if self.pooling == "sum":
            return states.sum(1)
        if self.pooling == "mean":
            return states.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        if self.pooling == "position":
            place = (real.cumsum(1) - 1).clamp(0, self.positions - 1)
            weights = self.position.float()[place]
        else:
            scores = states @ self.attention.float() / math.sqrt(self.in_features)
            # the least number instead of minus infinity: a text without a token has a sum of zeros
            weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(1)
        return (weights[..., None] * states).sum(1)

    def encode(self, h: Tensor, task: str | None = None) -> tuple[Tensor, Tensor]:
        """Ids and weights, (texts, k), of pooled states; a text without a token has no weight above 0.

        Raises:
            ValueError: training with ``normalize_before_topk``: the length of what is not kept would have no gradient.
        """
        learning = torch.is_grad_enabled()
        if learning and self.training and self.normalize_before_topk:
            raise ValueError("a head with normalize_before_topk=True cannot be trained: set it on a trained one")
        k = min(self.k_query if task == "query" else self.k_doc, self.latents)
        squares = h.new_zeros(len(h)) if self.normalize_before_topk else None
        with torch.autocast(h.device.type, enabled=False):
            with torch.no_grad():
                values, ids = running_top(self._products(h.float(), squares), k)
            x = log_relu(self._gathered(h.float(), ids) if learning else values)
            x = x * h.detach().any(1, keepdim=True)
            if not self.normalize:
                return ids, x
            return ids, F.normalize(x, dim=1) if squares is None else x / squares.sqrt().clamp(min=1e-12)[:, None]

    def _products(self, h: Tensor, squares: Tensor | None) -> Iterator[Tensor]:
        """``U h + b`` some latents at a time, (texts, latents); squared lengths of what becomes of all are added up."""
        at_once = max(_BLOCK, min(_DRAWN, _AT_ONCE // max(1, len(h))))
        block = _BLOCK if h.device.type == "cpu" else at_once
        room = h.new_empty((len(h), min(at_once, self.latents)))  # every part is in the place of the one before
        for start in range(0, self.latents, at_once):
            end = min(start + at_once, self.latents)
            y = room[:, : end - start]
            for first in range(start, end, block):
                last = min(first + block, end)
                y[:, first - start : last - start] = F.linear(h, self._rows(slice(first, last)))
            if self.offset is not None:
                y += self.offset[start:end].float()
            if squares is not None:
                squares += log_relu(y).square().sum(1)
            yield y

    def _gathered(self, h: Tensor, ids: Tensor) -> Tensor:
        """``(U h + b)`` of chosen latents alone, with gradient."""
        if self.rows == "float32":
            rows = F.embedding(ids, self.weight, sparse=self.sparse_gradient).float()
        else:
            rows = self._rows(ids)
        values = torch.bmm(rows, h[:, :, None]).squeeze(2)
        return values if self.offset is None else values + self.offset[ids].float()

    # ------------------------------------------------------------------ rows of U

    def _rows(self, at: Any) -> Tensor:
        """Rows of U as float32."""
        rows = self.weight[at]
        if self.rows == "float16":
            return rows.view(torch.float16).float()
        return rows.float() if self.rows == "float32" else rows.float() * self.scale[at]

    @torch.no_grad()
    def _keep(self, at: slice, rows: Tensor) -> None:
        """Takes float32 rows into U."""
        if self.rows == "int8":
            scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            self.scale[at], self.weight[at] = scale, (rows / scale).round().to(torch.int8)
        else:
            self.weight[at] = rows if self.rows == "float32" else rows.half().view(torch.int16)

    @torch.no_grad()
    def draw(self, seed: int, bias: float = 0.0) -> None:
        """An untrained U: N(0, 1), the same on every machine; some rows at a time, as they are kept."""
        generator = torch.Generator().manual_seed(seed)
        for at in self._slices():
            self._keep(at, torch.randn(at.stop - at.start, self.in_features, generator=generator))
        if self.offset is not None:
            self.offset.fill_(bias)
        self.trained = False

    @torch.no_grad()
    def kept_as(self, rows: str) -> "LatentHead":
        """The same head with U kept in another way."""
        other = LatentHead(**{**self.get_config_dict(), "rows": rows})
        for at in self._slices():
            other._keep(at, self._rows(at).cpu())
        others = {name: tensor for name, tensor in self.state_dict().items() if name not in ("weight", "scale")}
        other.load_state_dict(others, strict=False)
        return other.to(self.weight.device).train(self.training)

    def _slices(self) -> Iterator[slice]:
        for start in range(0, self.latents, _DRAWN):
            yield slice(start, min(start + _DRAWN, self.latents))
