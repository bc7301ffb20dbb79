"""Multi-vector and latent-sparse retrieval for PyTerrier.

Text becomes vectors once; everything else is a choice of how to score them. Two nouns carry the package: a *model*
(:class:`ColBERT`) encodes and scores text, an *index* (:class:`MultiVecIndex`, :class:`SparseIndex`) stores, retrieves
and rescores. Every verb of either returns a :class:`pyterrier.Transformer`.

Names are loaded on first use: importing the package imports neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it; a name equal to its module's last part is the module itself
_PUBLIC = {
    "AGRaME": "pyterrier_mvret.methods.agrame",
    "Aligner": "pyterrier_mvret.methods.aligner",
    "ColBERT": "pyterrier_mvret.methods.colbert",
    "Laspar": "pyterrier_mvret.methods.laspar",
    "LatentSettings": "pyterrier_mvret.encoders.latents",
    "LatentTerms": "pyterrier_mvret.methods.latent_terms",
    "MultiVecIndex": "pyterrier_mvret.indexes.multivec",
    "NVF": "pyterrier_mvret.methods.nvf",
    "Paragraphs": "pyterrier_mvret.encoders.splitters",
    "Phrases": "pyterrier_mvret.encoders.splitters",
    "Seismic": "pyterrier_mvret.indexes.sparse_seismic",
    "Sentences": "pyterrier_mvret.encoders.splitters",
    "SAETrainer": "pyterrier_mvret.training.sae",
    "SingleVecIndex": "pyterrier_mvret.indexes.singlevec",
    "SparseIndex": "pyterrier_mvret.indexes.sparse",
    "Soft": "pyterrier_mvret.scoring.strategies",
    "TokenBatch": "pyterrier_mvret.encoders.token_batch",
    "TokenEncoder": "pyterrier_mvret.encoders.token_encoder",
    "TopK": "pyterrier_mvret.scoring.strategies",
    "TopKSAE": "pyterrier_mvret.encoders.sae",
    "TopP": "pyterrier_mvret.scoring.strategies",
    "VectorEncoder": "pyterrier_mvret.encoders.vector_encoder",
    "citation": "pyterrier_mvret.citation",
    "datasets": "pyterrier_mvret.datasets",
    "explain": "pyterrier_mvret.explain",
    "heads": "pyterrier_mvret.encoders.heads",
    "importance": "pyterrier_mvret.encoders.importance",
    "models": "pyterrier_mvret.encoders.models",
    "scoring": "pyterrier_mvret.scoring",
    "training": "pyterrier_mvret.training",
    "zipf_fit": "pyterrier_mvret.zipf",
    "zipf_plot": "pyterrier_mvret.zipf",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from pyterrier_mvret import citation, datasets, explain, scoring, training
    from pyterrier_mvret.encoders import heads, importance, models
    from pyterrier_mvret.encoders.latents import LatentSettings
    from pyterrier_mvret.encoders.sae import TopKSAE
    from pyterrier_mvret.encoders.splitters import Paragraphs, Phrases, Sentences
    from pyterrier_mvret.encoders.token_batch import TokenBatch
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.encoders.vector_encoder import VectorEncoder
    from pyterrier_mvret.indexes.multivec import MultiVecIndex
    from pyterrier_mvret.indexes.singlevec import SingleVecIndex
    from pyterrier_mvret.indexes.sparse import SparseIndex
    from pyterrier_mvret.indexes.sparse_seismic import Seismic
    from pyterrier_mvret.methods.agrame import AGRaME
    from pyterrier_mvret.methods.aligner import Aligner
    from pyterrier_mvret.methods.colbert import ColBERT
    from pyterrier_mvret.methods.laspar import Laspar
    from pyterrier_mvret.methods.latent_terms import LatentTerms
    from pyterrier_mvret.methods.nvf import NVF
    from pyterrier_mvret.scoring.strategies import Soft, TopK, TopP
    from pyterrier_mvret.training.sae import SAETrainer
    from pyterrier_mvret.zipf import zipf_fit, zipf_plot


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    value = module if module.__name__.rpartition(".")[2] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
