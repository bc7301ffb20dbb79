"""Rules by which token vectors become a score, as values that models and indexes share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.aligned import AlignOver, Normalizer, Rule
from pyterrier_mvret.scoring.alignment import align_matrix, align_stored, alignment_of
from pyterrier_mvret.scoring.maxsim import MaxSim
from pyterrier_mvret.scoring.pairs import AlignedPairs
from pyterrier_mvret.scoring.stored import StoredVectors
from pyterrier_mvret.scoring.strategies import Strategy, named_alignment

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Alignment:
    """ALIGNER's sparse alignment as a scoring rule (Qian et al. 2022, equations 1 and 2).

    Scores are weighted means of similarities, so on the scale of one similarity; see :func:`align_packed`.

    Attributes:
        alignment: :class:`TopK`, :class:`TopP`, :class:`Soft`, or a name (:func:`named_alignment`).
        normalizer: ``"alignment"`` (the paper's) or ``"query"``.
        align_over: ``"all"`` (the paper's) or ``"salient"``.
        salience: whether token weights of queries and documents count; False scores all tokens alike.

    Raises:
        ValueError: an unknown name, or a salience that is neither.

    >>> rule = Alignment("top-p")
    >>> rule
    Alignment(alignment=TopP(0.01), normalizer='alignment', align_over='all', salience=True)
    >>> rule.scores(np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [0.8, 0.6]]), np.array([0, 2]))
    array([0.8], dtype=float32)
    """

    alignment: str | Strategy = "top-k"
    normalizer: Normalizer = "alignment"
    align_over: AlignOver = "all"
    salience: bool = True
    #: candidates by codes approximate it as they do a sum of inner products
    similarity: ClassVar[Literal["cosine"]] = "cosine"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alignment", named_alignment(self.alignment))
        if not isinstance(self.salience, bool | np.bool_):
            raise ValueError(f"salience must be True or False, got {self.salience!r}")
        object.__setattr__(self, "salience", bool(self.salience))
        Rule((self.strategy,), self.normalizer, self.align_over)  # says what is unknown

    @property
    def strategy(self) -> Strategy:
        """The alignment, if it was named."""
        return named_alignment(self.alignment)

    def scores(
        self,
        query: Array,
        vectors: Array,
        offsets: Array,
        weights: Array | None = None,
        doc_weights: Array | None = None,
    ) -> Floats:
        """Scores of one query with packed documents; arguments and result as :func:`align_packed`."""
        one = np.array([0, len(query)])
        return self.matrix(query, one, vectors, offsets, weights, doc_weights=doc_weights)[0]

    def matrix(
        self,
        queries: Array,
        query_offsets: Array,
        vectors: "Array | StoredVectors",
        offsets: Array,
        weights: Array | None = None,
        device: str | None = None,
        doc_weights: Array | None = None,
    ) -> Floats:
        """Scores of all packed queries with all packed documents; as :func:`align_matrix`."""
        u, v = self._weights(weights, doc_weights)
        return align_matrix(queries, query_offsets, vectors, offsets, self.strategy, u, v, **self._how(device))

    def stored(
        self,
        queries: Array,
        query_offsets: Array,
        stored: StoredVectors,
        starts: Array,
        ends: Array,
        weights: Array | None = None,
        device: str | None = None,
        doc_weights: Array | None = None,
    ) -> Floats:
        """Scores of packed queries with documents where they are stored; as :func:`align_stored`."""
        u, v = self._weights(weights, doc_weights)
        return align_stored(queries, query_offsets, stored, starts, ends, self.strategy, u, v, **self._how(device))

    def pairs(
        self, query: Array, document: Array, weights: Array | None = None, doc_weights: Array | None = None
    ) -> AlignedPairs:
        """What the score of one document is made of; as :func:`alignment_of`."""
        u, v = self._weights(weights, doc_weights)
        return alignment_of(query, document, self.strategy, u, v, **self._how())

    def _weights(self, *weights: Array | None) -> tuple[Array | None, ...]:
        return weights if self.salience else (None,) * len(weights)

    def _how(self, device: str | None = None) -> dict[str, Any]:
        return {"normalizer": self.normalizer, "align_over": self.align_over, "device": device}

    def describe(self) -> dict[str, Any]:
        """The rule as plain data, for :func:`rule_of`.

        >>> rule_of(Alignment("top-p").describe()) == Alignment("top-p")
        True
        """
        strategy = self.strategy
        return {**vars(self), "alignment": {"name": type(strategy).__name__, **vars(strategy)}}


ScoringRule = MaxSim | Alignment

_STRATEGIES: dict[str, Any] = {strategy.__name__: strategy for strategy in get_args(Strategy)}


def rule_of(description: Mapping[str, Any]) -> ScoringRule:
    """The rule that ``describe`` wrote down; plain MaxSim for nothing.

    Raises:
        ValueError: not a rule that this version knows.

    >>> rule_of({}), rule_of(MaxSim("l2").describe())
    (MaxSim(similarity='cosine', normalize=None), MaxSim(similarity='l2', normalize=None))
    """
    if "alignment" not in description:
        return MaxSim(**description)
    strategy = dict(description["alignment"])
    name = strategy.pop("name", None)
    if name not in _STRATEGIES:
        raise ValueError(f"an alignment of this version is one of {', '.join(_STRATEGIES)}, got {name!r}")
    return Alignment(**{**description, "alignment": _STRATEGIES[name](**strategy)})
