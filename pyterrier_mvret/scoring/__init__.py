"""Pure functions on arrays: how token vectors of a query and a document become one number."""

from pyterrier_mvret.scoring.maxsim import (
    EMPTY_DOCUMENT,
    MaxSim,
    backend,
    maxima,
    maxsim_matrix,
    maxsim_packed,
    maxsim_pairs,
)
from pyterrier_mvret.scoring.stored import Residual, StoredVectors

__all__ = [
    "EMPTY_DOCUMENT",
    "MaxSim",
    "Residual",
    "StoredVectors",
    "backend",
    "maxima",
    "maxsim_matrix",
    "maxsim_packed",
    "maxsim_pairs",
]
