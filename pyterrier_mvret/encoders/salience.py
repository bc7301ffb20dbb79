"""Salience heads of a model: what to attach, which a model has, and taking saliences through training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from pyterrier_mvret.scoring.salience import Gate
from pyterrier_mvret.scoring.shares import checked_share

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.salience_heads import SalienceHeads


@dataclass(frozen=True)
class SalienceSettings:
    """Salience heads for queries and documents, as a value (ALIGNER, Qian et al. 2022, section 3.2).

    Attributes:
        gate: how gates open, as for :func:`~pyterrier_mvret.scoring.salience.saliences`.
        alpha_q: share of a query's tokens for which they do; the paper's is 0.5.
        alpha_d: the same of a document's; the paper's is 0.4.
        epsilon: weight of the entropy; the paper's is 0.002.
        seed: of the first weights, which are small, with biases of 1 (our choice: the paper does not say).

    Raises:
        ValueError: a setting out of range.

    >>> SalienceSettings(alpha_d=0.2)
    SalienceSettings(gate='lp', alpha_q=0.5, alpha_d=0.2, epsilon=0.002, seed=0)
    """

    gate: Gate = "lp"
    alpha_q: float = 0.5
    alpha_d: float = 0.4
    epsilon: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        if self.gate not in get_args(Gate):
            raise ValueError(f"gate must be one of {get_args(Gate)}, got {self.gate!r}")
        for name in ("alpha_q", "alpha_d"):
            if checked_share(getattr(self, name), name) == 0:
                raise ValueError(f"{name} must be above 0: no gate would open")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")

    def __call__(self, model: "MultiVectorEncoder") -> None:
        """Gives a model these heads; one that has heads keeps their weights and takes the settings."""
        from pyterrier_mvret.encoders.projection import seeded
        from pyterrier_mvret.encoders.salience_heads import SalienceHeads

        settings: dict[str, Any] = {"gate": self.gate, "query_share": self.alpha_q, "document_share": self.alpha_d}
        settings["epsilon"] = self.epsilon
        heads = heads_of(model)
        if heads is None:
            with seeded(self.seed):
                new = SalienceHeads(int(model.get_embedding_dimension() or 0), **settings)
            model.append(new.to(model.device))
        else:
            for name, value in settings.items():
                setattr(heads, name, value)


def heads_of(model: "MultiVectorEncoder") -> "SalienceHeads | None":
    """The salience heads of a model, if it has any."""
    from pyterrier_mvret.encoders.salience_heads import SalienceHeads

    return next((module for module in model if isinstance(module, SalienceHeads)), None)


@contextmanager
def carried(model: "MultiVectorEncoder") -> Iterator[None]:
    """Within it, token vectors of a model with heads have one dimension more: their saliences."""
    heads = heads_of(model)
    if heads is None:
        yield
        return
    heads.carries = True
    try:
        yield
    finally:
        heads.carries = False
        heads.penalties.clear()
