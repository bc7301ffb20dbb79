"""Training: sets from frames, losses as settings, and ``model.fit`` on sentence-transformers' trainer."""

from pyterrier_mvret.training.adaptation import GRID, Adaptation, choose
from pyterrier_mvret.training.curves import plot
from pyterrier_mvret.training.data import groups, pairs
from pyterrier_mvret.training.fitting import fit
from pyterrier_mvret.training.losses import KL, Contrastive, LatentSparse, MarginMSE, MultiGranular, NWay
from pyterrier_mvret.training.plan import Plan
from pyterrier_mvret.training.splits import refuse_test_topics, split
from pyterrier_mvret.training.state_cache import StateCache
from pyterrier_mvret.training.teachers import with_teacher
from pyterrier_mvret.training.unit_data import with_units

__all__ = [
    "GRID",
    "KL",
    "Adaptation",
    "Contrastive",
    "LatentSparse",
    "MarginMSE",
    "MultiGranular",
    "NWay",
    "Plan",
    "StateCache",
    "choose",
    "fit",
    "groups",
    "pairs",
    "plot",
    "refuse_test_topics",
    "split",
    "with_teacher",
    "with_units",
]
