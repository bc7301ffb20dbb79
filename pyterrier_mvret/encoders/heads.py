"""Heads that project an encoder's token states to token vectors: linear, deeper, gated, with skip connections.

The study is "Simple Projection Variants Improve ColBERT Performance" (Clavié, Lee, Takehi, Shakir and Kato, arXiv
2510.12327). Its abstract names deeper and non-linear feed-forward blocks, gated linear units and skip connections, and
finds an upscaled intermediate projection and a residual to matter most; the exact forms below are our reading of it.
The gain is not universal (a residual head was also reported to be worse than one matrix after short training), so the
default stays one matrix, and a variant is an experiment: train, and compare with :class:`Linear` over several seeds.

A head is a specification, a value without weights: pass it as ``TokenEncoder(name, init_projection=head)``. Input
``h`` has the encoder's ``d`` dimensions, output ``z`` has ``dim`` (k), the inner width is ``m = expansion * d``; there
are no biases, and vectors are normalised after the head. Weights start as torch's ``nn.Linear`` starts them, from
``seed``.

>>> import pyterrier_mvret as mv
>>> mv.TokenEncoder(mv.models.MINILM, init_projection=mv.heads.FFN(128, residual="layer")).dim
128
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from pyterrier_mvret.encoders.folding import fold

if TYPE_CHECKING:
    from sentence_transformers.base.modules import Module

__all__ = ["FFN", "GLU", "Head", "Linear", "fold"]

Activation = Literal["identity", "relu", "gelu", "silu"]
Gate = Literal["sigmoid", "identity", "relu", "gelu", "silu"]
Residual = Literal["layer", "skip"]


class Head(ABC):
    """What every head has: its output dimensions, and the seed of its first weights.

    >>> import pyterrier_mvret as mv
    >>> isinstance(mv.heads.Linear(128), mv.heads.Head)
    True
    """

    dim: int
    seed: int

    def modules(self, in_features: int) -> "list[Module]":
        """New, untrained sentence-transformers modules, float32 on the CPU; no state of a random generator changes.

        Args:
            in_features: dimensions d of the token states.

        Raises:
            ValueError: a width that is no positive whole number.

        >>> import pyterrier_mvret as mv
        >>> [(m.in_features, m.out_features) for m in mv.heads.FFN(128, layers=3).modules(384)]
        [(384, 768), (768, 768), (768, 128)]
        """
        _check_whole("in_features", in_features)
        from pyterrier_mvret.encoders.projection import seeded

        with seeded(self.seed):
            return self._build(in_features)

    @abstractmethod
    def parameters(self, in_features: int) -> int:
        """How many weights the head has over states of ``in_features`` dimensions; nothing is built.

        >>> import pyterrier_mvret as mv
        >>> mv.heads.Linear(128).parameters(768), mv.heads.FFN(128, layers=2, expansion=2).parameters(768)
        (98304, 1376256)
        """

    @abstractmethod
    def _build(self, in_features: int) -> "list[Module]": ...


@dataclass(frozen=True)
class Linear(Head):
    """One matrix, ``z = W h``: ColBERT's own head (Khattab and Zaharia, SIGIR 2020), and what an int asks for.

    Args:
        dim: output dimensions k.
        seed: of the first weights.

    Raises:
        ValueError: a setting out of range.

    >>> import pyterrier_mvret as mv
    >>> mv.heads.Linear(128)
    Linear(dim=128, seed=0)
    """

    dim: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_ends(self)

    def parameters(self, in_features: int) -> int:
        """``d k``."""
        return in_features * self.dim

    def _build(self, in_features: int) -> "list[Module]":
        from pyterrier_mvret.encoders.projection import dense

        return [dense(in_features, self.dim)]


@dataclass(frozen=True)
class FFN(Head):
    """Several matrices in a row: ``u_0 = h``, ``u_l = act(W_l u_(l-1))`` of width m for l < L, ``z = W_L u_(L-1)``.

    Residual ``"layer"``: ``u_l = act(W_l u_(l-1)) + r_l(u_(l-1))`` for l < L, where ``r_l`` is the identity if widths
    match and else a matrix, as PyLate and sentence-transformers have it. Residual ``"skip"``: ``z = FFN(h) + s R h``
    with a matrix R and a learned scalar s that starts at 1, our reading of a skip connection with a learned scale.
    With ``activation="identity"`` the head stays one matrix, whatever its depth and residual: it differs from
    :class:`Linear` in training only, and :func:`fold` makes it one. All but ``"skip"`` are saved in PyLate's format.
    One layer has nothing inside: only ``"skip"`` then changes it.

    Args:
        dim: output dimensions k.
        layers: matrices in a row, L.
        expansion: inner width over d, m / d; the width is rounded.
        activation: ``"identity"``, ``"relu"``, ``"gelu"`` or ``"silu"``, after each matrix but the last.
        residual: none, ``"layer"`` or ``"skip"``.
        seed: of the first weights.

    Raises:
        ValueError: a setting out of range.

    >>> import pyterrier_mvret as mv
    >>> head = mv.heads.FFN(128, residual="layer")
    >>> head.parameters(768), [m.use_residual for m in head.modules(768)]
    (2555904, [True, False])
    """

    dim: int
    layers: int = 2
    expansion: float = 2.0
    activation: Activation = "identity"
    residual: Residual | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_ends(self)
        _check_whole("layers", self.layers)
        _check_expansion(self.expansion)
        _check_one_of("activation", self.activation, get_args(Activation))
        _check_one_of("residual", self.residual, (None, *get_args(Residual)))

    def parameters(self, in_features: int) -> int:
        """``d m + (L - 2) m^2 + m k`` from two layers on, and those of R or of residual maps; s is one more."""
        widths = self._widths(in_features)
        count = sum(a * b for a, b in pairwise(widths))
        if self.residual == "layer":
            count += sum(a * b for a, b in pairwise(widths[:-1]) if a != b)
        if self.residual == "skip":
            count += in_features * self.dim + 1
        return count

    def _widths(self, in_features: int) -> list[int]:
        return [in_features, *[_width(self.expansion, in_features)] * (self.layers - 1), self.dim]

    def _build(self, in_features: int) -> "list[Module]":
        from pyterrier_mvret.encoders.projection import Projection, dense

        if self.residual == "skip":
            width = _width(self.expansion, in_features)
            return [Projection("ffn+skip", in_features, width, self.dim, self.activation, self.layers)]
        *inner, last = pairwise(self._widths(in_features))
        return [*(dense(a, b, self.activation, self.residual == "layer") for a, b in inner), dense(*last)]


@dataclass(frozen=True)
class GLU(Head):
    """A gated linear unit: ``z = W_o (act(W_g h) * (W_v h))``, gate and value of width m.

    The activation names the variant: ``"sigmoid"`` is GLU, ``"identity"`` bilinear, ``"silu"`` SwiGLU, ``"gelu"``
    GEGLU, ``"relu"`` ReGLU (Dauphin et al., ICML 2017; Shazeer, arXiv 2002.05202). None of them is one matrix, bilinear
    neither. Saved as a module of this package, which PyLate cannot read.

    Args:
        dim: output dimensions k.
        expansion: inner width over d, m / d; the width is rounded.
        activation: of the gate.
        seed: of the first weights.

    Raises:
        ValueError: a setting out of range.

    >>> import pyterrier_mvret as mv
    >>> mv.heads.GLU(128, activation="silu").parameters(384)
    688128
    """

    dim: int
    expansion: float = 2.0
    activation: Gate = "sigmoid"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_ends(self)
        _check_expansion(self.expansion)
        _check_one_of("activation", self.activation, get_args(Gate))

    def parameters(self, in_features: int) -> int:
        """``2 d m + m k``."""
        return _width(self.expansion, in_features) * (2 * in_features + self.dim)

    def _build(self, in_features: int) -> "list[Module]":
        from pyterrier_mvret.encoders.projection import Projection

        return [Projection("glu", in_features, _width(self.expansion, in_features), self.dim, self.activation)]


def requested(init_projection: Any) -> Head | None:
    """The head that a setting asks for: a number of dimensions means one matrix.

    Raises:
        ValueError: neither a positive whole number nor a head.

    >>> requested(128), requested(FFN(64)).layers, requested(None)
    (Linear(dim=128, seed=0), 2, None)
    """
    if init_projection is None or isinstance(init_projection, Head):
        return init_projection
    if _is_whole(init_projection) and init_projection > 0:
        return Linear(int(init_projection))
    raise ValueError(
        f"init_projection must be a number of dimensions or a head such as mv.heads.FFN(128), got {init_projection!r}"
    )


def _width(expansion: float, in_features: int) -> int:
    width = round(expansion * in_features)
    if width < 1:
        raise ValueError(f"expansion={expansion} leaves no inner width over {in_features} dimensions")
    return width


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_whole(what: str, value: Any, least: int = 1) -> None:
    if not _is_whole(value) or value < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")


def _check_ends(head: Head) -> None:
    _check_whole("dim", head.dim)
    _check_whole("seed", head.seed, least=0)


def _check_expansion(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"expansion must be a positive number, got {value!r}")


def _check_one_of(what: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(str, known))}, got {value!r}")
