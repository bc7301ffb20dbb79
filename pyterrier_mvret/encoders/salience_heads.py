"""Salience heads as a module of a model: one number a token, from its vector (ALIGNER, Qian et al. 2022, equation 3).

The class needs torch to be defined, so this file is imported where heads are attached or read, never at the top of
another. Its full name is written into checkpoints: moving it would make them unreadable.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pyterrier_mvret.encoders.own_module import OwnModule
from pyterrier_mvret.scoring.salience import l1_penalty, saliences


class SalienceHeads(OwnModule):
    """``W x + b`` of each token vector, queries and documents with weights of their own, and the saliences they give.

    It ends a model: ``token_importance`` is what the head puts out, ``token_weights`` are the saliences of
    :func:`~pyterrier_mvret.scoring.salience.saliences`, 0 for tokens that are not scored.

    Args:
        in_features: dimensions of a token vector.
        gate: as for ``saliences``.
        query_share: share of a query's tokens for which gates open.
        document_share: the same of a document's.
        epsilon: weight of the entropy.

    >>> heads = SalienceHeads(4, "relu", 0.5, 0.4, 0.002)
    >>> states = {"token_embeddings": torch.zeros(1, 3, 4), "attention_mask": torch.tensor([[1, 1, 0]])}
    >>> heads(states, task="document")["token_weights"].tolist()
    [[1.0, 1.0, 0.0]]
    """

    config_keys: list[str] = [  # noqa: RUF012 (as its base declares it)
        "in_features",
        "gate",
        "query_share",
        "document_share",
        "epsilon",
    ]
    forward_kwargs: set[str] = {"task"}  # noqa: RUF012

    def __init__(self, in_features: int, gate: Any, query_share: float, document_share: float, epsilon: float):
        super().__init__()
        self.in_features, self.gate = in_features, gate
        self.query_share, self.document_share, self.epsilon = query_share, document_share, epsilon
        self.query_salience, self.document_salience = (nn.Linear(in_features, 1) for _ in range(2))
        for head in (self.query_salience, self.document_salience):
            # scores about 1: none is cut off by the ReLU, and saliences are the gates
            nn.init.normal_(head.weight, std=0.02)
            nn.init.ones_(head.bias)
        #: in training: saliences go along as one more dimension of each vector, all that losses hand on
        self.carries = False
        #: what an L1 term is made of, a number a forward pass, where saliences are carried
        self.penalties: list[Tensor] = []

    def forward(self, features: dict[str, Any], task: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Adds ``token_importance`` and ``token_weights``, (texts, tokens)."""
        vectors, real = features["token_embeddings"], features["attention_mask"].bool()
        head, share = (
            (self.query_salience, self.query_share)
            if task == "query"
            else (self.document_salience, self.document_share)
        )
        with torch.autocast(vectors.device.type, enabled=False):  # scores over epsilon need all their digits
            raw = nn.functional.linear(vectors.float(), head.weight.float(), head.bias.float()).squeeze(-1)
            weights = saliences(raw, self.gate, share, self.epsilon, real)
        features.setdefault("token_importance", raw)
        features["token_weights"] = weights
        if self.carries:
            features["token_embeddings"] = torch.cat([vectors.float(), weights[..., None]], dim=-1)
            if self.gate == "l1":
                self.penalties.append(l1_penalty(weights, real))
        return features
