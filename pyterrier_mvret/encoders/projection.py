"""What heads are built of in torch: ``Dense``, and a module for those forms that it cannot express.

The class needs torch to be defined, so this file is imported where a head is built or read, never at the top of
another. Its full name is written into checkpoints: moving it would make them unreadable.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from sentence_transformers.base.modules import Dense
from torch import Tensor, nn

from pyterrier_mvret.encoders.own_module import OwnModule

_STATES = "token_embeddings"
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
}


class Projection(OwnModule):
    """A gated head or one with a skip connection, over token vectors; no biases.

    ``"glu"``: ``z = W_o (act(W_g h) * (W_v h))``; ``"ffn+skip"``: ``z = FFN(h) + s R h`` with a learned scalar ``s``
    that starts at 1. Forms: see :class:`pyterrier_mvret.heads.GLU` and :class:`pyterrier_mvret.heads.FFN`.

    Args:
        form: ``"glu"`` or ``"ffn+skip"``.
        in_features: dimensions of the encoder's token states, d.
        hidden_features: inner width, m.
        out_features: dimensions of a token vector, k.
        activation: ``"identity"``, ``"relu"``, ``"gelu"``, ``"silu"`` or ``"sigmoid"``.
        layers: matrices in a row of an FFN; a GLU has two.

    Raises:
        ValueError: an unknown form or activation.

    >>> head = Projection("glu", 4, 8, 2, "sigmoid")
    >>> head({"token_embeddings": torch.zeros(3, 5, 4)})["token_embeddings"].shape
    torch.Size([3, 5, 2])
    """

    config_keys: list[str] = [  # noqa: RUF012 (as its base declares it)
        "form",
        "in_features",
        "hidden_features",
        "out_features",
        "activation",
        "layers",
    ]

    def __init__(
        self,
        form: str,
        in_features: int,
        hidden_features: int,
        out_features: int,
        activation: str,
        layers: int = 2,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.form, self.activation, self.layers = form, activation, layers
        self.in_features, self.hidden_features, self.out_features = in_features, hidden_features, out_features
        self.function = ACTIVATIONS[activation]()
        if form == "glu":
            self.gate = nn.Linear(in_features, hidden_features, bias=False)
            self.value = nn.Linear(in_features, hidden_features, bias=False)
            self.output = nn.Linear(hidden_features, out_features, bias=False)
        elif form == "ffn+skip":
            widths = [in_features, *[hidden_features] * (layers - 1), out_features]
            self.stack = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairwise(widths))
            self.skip = nn.Linear(in_features, out_features, bias=False)
            self.scale = nn.Parameter(torch.ones(1))
        else:
            raise ValueError(f"form must be glu or ffn+skip, got {form!r}")

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Projects ``token_embeddings``, (..., in_features) to (..., out_features)."""
        states = features[_STATES]
        features[_STATES] = self._glu(states) if self.form == "glu" else self._skip(states)
        return features

    def _glu(self, states: Tensor) -> Tensor:
        return self.output(self.function(self.gate(states)) * self.value(states))

    def _skip(self, states: Tensor) -> Tensor:
        inner = states
        for layer in self.stack[:-1]:
            inner = self.function(layer(inner))
        return self.stack[-1](inner) + self.scale * self.skip(states)

    @property
    def is_linear(self) -> bool:
        """Whether outputs are one matrix times the input; a gate multiplies the input with itself, so never is."""
        return self.form != "glu" and self.activation == "identity"

    def get_embedding_dimension(self) -> int:
        """Dimensions of a token vector."""
        return self.out_features


def dense(
    in_features: int, out_features: int, activation: str = "identity", residual: bool = False, bias: bool = False
) -> Dense:
    """A Dense over token states, in the format that PyLate has too."""
    return Dense(
        in_features,
        out_features,
        bias=bias,
        activation_function=ACTIVATIONS[activation](),
        module_input_name=_STATES,
        use_residual=residual,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn inside are the same on every machine; generators, also of accelerators, stay as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield
