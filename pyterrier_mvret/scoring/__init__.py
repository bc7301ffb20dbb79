"""Pure functions on arrays: how token vectors, or weighted terms, of a query and a document become one number."""

from pyterrier_mvret.scoring import salience, soft_attention
from pyterrier_mvret.scoring.alignment import (
    align_grid,
    align_matrix,
    align_packed,
    align_stored,
    alignment_of,
)
from pyterrier_mvret.scoring.bm25 import BM25, bm25_matrix
from pyterrier_mvret.scoring.maxsim import (
    EMPTY_DOCUMENT,
    MaxSim,
    backend,
    maxima,
    maxsim_matrix,
    maxsim_packed,
    maxsim_pairs,
)
from pyterrier_mvret.scoring.pairs import AlignedPairs
from pyterrier_mvret.scoring.rules import Alignment, ScoringRule, rule_of
from pyterrier_mvret.scoring.stored import Residual, StoredVectors
from pyterrier_mvret.scoring.strategies import Soft, TopK, TopP, named_alignment
from pyterrier_mvret.scoring.text_units import TextUnits, UnitScores
from pyterrier_mvret.scoring.units import UnitRows, unit_maxima, unit_scores, with_text_scores
from pyterrier_mvret.scoring.zipf import Zipf, zipf_fit

__all__ = [
    "BM25",
    "EMPTY_DOCUMENT",
    "AlignedPairs",
    "Alignment",
    "MaxSim",
    "Residual",
    "ScoringRule",
    "Soft",
    "StoredVectors",
    "TextUnits",
    "TopK",
    "TopP",
    "UnitRows",
    "UnitScores",
    "Zipf",
    "align_grid",
    "align_matrix",
    "align_packed",
    "align_stored",
    "alignment_of",
    "backend",
    "bm25_matrix",
    "maxima",
    "maxsim_matrix",
    "maxsim_packed",
    "maxsim_pairs",
    "named_alignment",
    "rule_of",
    "salience",
    "soft_attention",
    "unit_maxima",
    "unit_scores",
    "with_text_scores",
    "zipf_fit",
]
