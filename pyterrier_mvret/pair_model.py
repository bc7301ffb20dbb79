"""What NVF is made of: two networks over vectors, how they score, and their file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyterrier_mvret.component import Configured
from pyterrier_mvret.encoders import weights_file
from pyterrier_mvret.indexes.documents import digest_of
from pyterrier_mvret.pair_stages import space_of
from pyterrier_mvret.training.candidate_sets import CandidateSets, unit

if TYPE_CHECKING:
    from torch import Tensor

    from pyterrier_mvret.scoring.pair_networks import Features, PairScorer, QueryTransform

_VERSION = 1
Floats = npt.NDArray[np.float32]


class PairModel(Configured):
    """Base of a method that scores pairs of a query vector and a document vector; its arguments are settings."""

    features: "Features"
    hidden: int
    residual: bool
    use_score: bool
    normalize: bool
    dropout: float
    heads: int
    seed: int
    device: str | None

    _not_identity: ClassVar[tuple[str, ...]] = ("verbose", "device")
    #: curves of the last training of the reranker, and of the query transform
    history: pd.DataFrame | None = None
    transform_history: pd.DataFrame | None = None
    #: candidates of a query at most in training; limits ``"cross"`` alone
    depth: int | None = None
    #: digest of the vectors' space, where the training data said whose they are
    space: str | None = None
    _scorer: "PairScorer | None" = None
    _transform: "QueryTransform | None" = None

    def _identity(self) -> tuple[tuple[str, Any], ...]:
        # stages are equal where their models score alike
        return (*super()._identity(), ("weights", self._digest()))

    def _digest(self) -> str | None:
        weights = self._weights()
        return weights_file.digest(weights) if weights else None

    def fit(self, *args: Any, **settings: Any) -> Self:
        """Trains the pair scorer."""
        raise NotImplementedError

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """Writes settings and trained networks into one file, whole or not at all; :meth:`load` reads it.

        The encoder is not in it, but which one's vectors were trained on is.
        """
        own = {name: value for name, value in super()._identity() if name != "encoder"}
        told = {"dim": self._dim, "depth": self.depth, "space": self.space}
        weights_file.write(path, "NVF", _VERSION, {"settings": own, **told}, self._weights())

    @classmethod
    def load(cls, path: str | Path, encoder: Any = None, **settings: Any) -> Self:
        """Reads what :meth:`save` wrote.

        Args:
            path: the file.
            encoder: as for the class.
            **settings: ``device=``, ``verbose=``, and those of :class:`VectorEncoder`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another file, or a damaged one; settings that the weights were not trained with.
        """
        told, weights = weights_file.read(path, "NVF", _VERSION, "neural vector field")
        if fixed := sorted(set(settings) & set(told["settings"])):
            raise ValueError(f"{', '.join(fixed)}: fixed by the training of {path}")
        make: Any = cls
        nvf = make(encoder, **told["settings"], **settings)
        nvf.depth, nvf.space = told["depth"], told["space"]
        for name in ("_scorer", "_transform"):
            mine = {key.removeprefix(f"{name}."): w for key, w in weights.items() if key.startswith(f"{name}.")}
            if mine:
                network = (nvf._new_scorer if name == "_scorer" else nvf._new_transform)(told["dim"])
                network.load_state_dict(mine)
                setattr(nvf, name, network)
        return nvf

    def _weights(self) -> "dict[str, Tensor]":
        """Of the networks that were trained."""
        both = (("_scorer", self._scorer), ("_transform", self._transform))
        return {f"{at}.{name}": w for at, net in both if net is not None for name, w in net.state_dict().items()}

    @property
    def _dim(self) -> int | None:
        return next((network.dim for network in (self._scorer, self._transform) if network is not None), None)

    def _new_scorer(self, dim: int) -> "PairScorer":
        from pyterrier_mvret.scoring.pair_networks import PairScorer

        network = PairScorer(dim, self.features, self.hidden, self.residual, self.dropout, self.heads, self.seed)
        return network.to(self.device or "cpu").eval()

    def _new_transform(self, dim: int, temperature: float | None = None) -> "QueryTransform":
        from pyterrier_mvret.scoring.pair_networks import QueryTransform

        start = (0.05 if self.residual else 1.0) if temperature is None else temperature
        return QueryTransform(dim, self.residual, start, self.seed).to(self.device or "cpu").eval()

    # ------------------------------------------------------------------ what the stages ask for

    def scorer(self, dim: int) -> "PairScorer":
        """The network for vectors of so many dimensions; an untrained one where none was trained.

        Raises:
            ValueError: it was trained on others, or must be trained first.
        """
        if self._scorer is None:
            if not self.residual:
                raise ValueError("NVF with residual=False scores nothing before it is trained: call fit")
            return self._new_scorer(dim)
        check_dim(self._scorer, dim)
        return self._scorer

    def scored(
        self,
        queries: Floats,
        documents: Floats,
        candidates: npt.NDArray[np.int64],
        scores: Floats | None = None,
    ) -> Floats:
        """Scores of candidates, arrays in and out; see :mod:`~pyterrier_mvret.training.candidate_sets`.

        Args:
            queries: (queries, dim).
            documents: (documents, dim).
            candidates: (queries, K) rows of documents, -1 where there are fewer.
            scores: (queries, K) of the first stage, for ``use_score``.

        Returns:
            (queries, K), minus infinity where there is no candidate.

        Raises:
            ValueError: more candidates than ``"cross"`` was trained with.
        """
        from pyterrier_mvret.training.vector_field import scored

        if self.features == "cross" and self.depth is not None and candidates.shape[1] > self.depth:
            raise ValueError(
                f"features='cross' was trained with {self.depth} candidates a query, and its scores depend on how many "
                f"there are: put % {self.depth} in front, {candidates.shape[1]} came"
            )
        if self.normalize:
            queries, documents = unit(queries), unit(documents)
        first = np.zeros(candidates.shape, np.float32) if scores is None else scores
        gains = np.zeros(candidates.shape, np.float32)
        sets = CandidateSets(queries, documents, candidates, gains, first)
        return scored(self.scorer(documents.shape[1]), sets, self.use_score)

    def moved(self, queries: Floats) -> Floats:
        """(queries, dim) after the query transform; of length one."""
        import torch

        if self._transform is None:
            if not self.residual:
                raise ValueError("the query transform of NVF with residual=False must be trained: fit_query_transform")
            return unit(queries)
        if self.normalize:  # as in training
            queries = unit(queries)
        check_dim(self._transform, queries.shape[1])
        with torch.inference_mode():
            at = self._transform.second.weight.device
            return self._transform(torch.from_numpy(queries).to(at)).cpu().numpy()

    def check_spaces(self, inp: pd.DataFrame) -> None:
        """ValueError where the frame says that vectors are of different encoders, or of another than was trained on."""
        self.check_space(space_of(inp))

    def check_space(self, space: str | None) -> None:
        """ValueError where it is known to be another than was trained on."""
        if space is not None and self.space is not None and digest_of(space) != digest_of(self.space):
            raise ValueError(f"NVF was trained on vectors of {self.space}, these are of {space}")

    def _space_beside(self, dim: int, space: str | None, *networks: Any) -> str | None:
        """The space of training data, which must be that of networks that stay."""
        for network in networks:
            check_dim(network, dim)
        if all(network is None for network in networks):
            return space
        self.check_space(space)
        return space or self.space


def check_dim(network: Any, dim: int) -> None:
    """ValueError where a network is of other vectors; none is of any."""
    if network is not None and network.dim != dim:
        raise ValueError(f"NVF was trained on vectors of {network.dim} dimensions, these have {dim}")
