"""Token vectors of a collection on disk: build, retrieve, rescore, load."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pyterrier_mvret.indexes.builder import SegmentBuilder
from pyterrier_mvret.indexes.columns import TOKENS
from pyterrier_mvret.indexes.extras import EXTRAS
from pyterrier_mvret.indexes.segmented import Mode
from pyterrier_mvret.indexes.stages import MultiVecIndexer, MultiVecRetriever, MultiVecScorer, VecLoader, scoring_of
from pyterrier_mvret.indexes.vector_index import Dtype, VectorIndex
from pyterrier_mvret.scoring import ScoringRule


class MultiVecIndex(VectorIndex):
    """The token vectors of a collection, in a folder of immutable segments and one manifest.

    Build it behind an encoder, ``(colbert.doc_encoder() >> index).index(docs)``; then every verb below is a stage.
    The folder appears whole or not at all, readers never see half of a write, and a failed write leaves what was
    there before.

    Args:
        path: the folder.
        dtype: how vectors are stored: ``"float32"``, ``"float16"`` (the default), ``"bfloat16"``, ``"int8"`` (a scale
            a vector; query tokens are rounded to 8 bits, too, when they meet them), or ``"residual1"``,
            ``"residual2"``, ``"residual4"``: the nearest centroid and 1, 2 or 4 bits a dimension (ColBERTv2).
        quantize: keep 16 bytes a vector more by which :meth:`retriever` picks candidates; none does so where it saves
            time, from 524,288 vectors on (a segment).
        store_ids: keep each vector's token id.
        store_offsets: keep each vector's character offsets in its text.
        store_weights: keep each vector's weight (the salience of its token); none does so where the documents bring
            weights along.
        verbose: progress bars.

    Raises:
        FileNotFoundError: used before it is built.
        DamagedIndexError: a file is missing, cut short or changed.
        ValueError: a setting other than that of the index on disk.

    >>> import tempfile
    >>> import numpy as np, pandas as pd
    >>> index = MultiVecIndex(tempfile.mkdtemp() + "/toy.mv", dtype="float32")
    >>> _ = index.index([{"docno": "d1", "doc_embs": np.eye(2)}, {"docno": "d2", "doc_embs": -np.eye(2)}])
    >>> query = pd.DataFrame([{"qid": "1", "query_embs": np.array([[1.0, 0.0]])}])
    >>> index.retriever()(query)[["qid", "docno", "score", "rank"]]
      qid docno  score  rank
    0   1    d1    1.0     0
    1   1    d2    0.0     1
    """

    ARTIFACT_TYPE, ARTIFACT_FORMAT = "multivec_index", "mvret"
    _VERSION = 3
    _KEYS = ("dtype", "dim", "store_ids", "store_offsets", "encoder", "segments")
    columns, _DTYPE = TOKENS, "float16"

    def __init__(
        self,
        path: str | Path,
        *,
        dtype: Dtype | None = None,
        quantize: bool | None = None,
        store_ids: bool = False,
        store_offsets: bool = False,
        store_weights: bool | None = None,
        verbose: bool = False,
    ):
        super().__init__(path)
        self._take(dtype, quantize)
        self.store_ids, self.store_offsets, self.store_weights = store_ids, store_offsets, store_weights
        self.verbose = verbose

    # ------------------------------------------------------------------ verbs

    def indexer(self, mode: Mode = "create") -> MultiVecIndexer:
        """A stage that ends an indexing pipeline.

        Args:
            mode: ``"create"`` refuses to touch an index that exists, ``"overwrite"`` replaces it once the new one is
                complete (with the settings given here, not those of the old one), ``"append"`` adds a segment (same
                encoder, same settings, new docnos).

        >>> import numpy as np, tempfile
        >>> index = MultiVecIndex(tempfile.mkdtemp() + "/toy.mv")
        >>> _ = index.index([{"docno": "d1", "doc_embs": np.eye(2)}])
        >>> len(index.indexer("append").index([{"docno": "d2", "doc_embs": np.eye(2)}]))
        2
        """
        return MultiVecIndexer(self, mode)

    def retriever(
        self,
        model: Any = None,
        *,
        num_results: int | None = 1000,
        candidates: int | Literal["auto"] | None = "auto",
        batch_size: int = 64,
        device: str | None = None,
        verbose: bool = False,
    ) -> MultiVecRetriever:
        """Q with ``query_embs`` -> R: the best documents, by exact scores; equal scores by docno.

        With ``candidates=None`` every document is scored. Otherwise all are looked up by their product-quantised codes
        first, and only the candidates that look best are scored: more of them cost more time and miss less. Codes know
        nothing of alignments beyond the best token, nor of document tokens' weights: rules with these miss more.

        Args:
            model: the model (or its scoring rule) that says how vectors are scored; none is that of the model that
                built the index, plain MaxSim if none did.
            num_results: documents a query at most; none for all. ``retriever % k`` becomes ``num_results=k`` when
                the pipeline is compiled.
            candidates: documents that are picked by codes and scored exactly; segments without codes are scored whole
                besides. ``"auto"`` is one document of 32, but 4,096 and ``num_results`` at least, where at least twice
                as many have codes (see ``quantize`` of :class:`MultiVecIndex`) and the rule ranks by the best document
                token of each query token alone, as codes do; else all. None is all.
            batch_size: queries that share one pass over the index where every document is scored.
            device: where torch scores, ``"cuda"`` for example; none is the compiled kernel on the CPU.
            verbose: a progress bar over the passes.

        Raises:
            ValueError: a number of candidates from an index without codes (when the stage runs).
        """
        return MultiVecRetriever(self, model, num_results, batch_size, verbose, candidates, device)

    def scorer(self, model: Any = None, *, verbose: bool = False) -> MultiVecScorer:
        """R with ``query_embs`` and ``docno`` -> R scored from the stored vectors.

        A docno that is not in the index is an error when the stage runs; a document without vectors scores -1e9.

        Args:
            model: as for :meth:`retriever`.
            verbose: a progress bar over queries.

        >>> import numpy as np, pandas as pd, tempfile
        >>> index = MultiVecIndex(tempfile.mkdtemp() + "/toy.mv")
        >>> _ = index.index([{"docno": "d1", "doc_embs": np.eye(2)}])
        >>> candidates = pd.DataFrame([{"qid": "1", "docno": "d1", "query_embs": np.array([[0.5, -1.0]])}])
        >>> index.scorer()(candidates)["score"].tolist()
        [0.5]
        """
        return MultiVecScorer(self, model, verbose)

    def vec_loader(self) -> VecLoader:
        """Frames with ``docno`` -> the same with ``doc_embs`` (and ids, offsets and weights where stored), as float32.

        >>> import numpy as np, pandas as pd, tempfile
        >>> index = MultiVecIndex(tempfile.mkdtemp() + "/toy.mv")
        >>> _ = index.index([{"docno": "d1", "doc_embs": np.eye(2)}])
        >>> index.vec_loader()(pd.DataFrame({"docno": ["d1"]}))["doc_embs"][0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        return VecLoader(self)

    # ------------------------------------------------------------------ building

    def index(self, iter: Iterable[Any], mode: Mode = "create") -> "MultiVecIndex":
        """Builds from records with ``docno`` and ``doc_embs``, streaming; see :meth:`indexer` for modes.

        Raises:
            FileExistsError: ``mode="create"`` where an index is.
            ValueError: a record that cannot be stored; nothing of this call is kept.
        """
        return super().index(iter, mode)

    def _kept(self, manifest: dict[str, Any]) -> dict[str, Any]:
        # weights as in the index, if it has documents that say; none leaves it to the first document
        present = manifest.get("store_weights", False)
        return {
            "store_ids": manifest["store_ids"],
            "store_offsets": manifest["store_offsets"],
            "store_weights": self.store_weights if present is None else present,
        }

    def _learned(self, builder: SegmentBuilder) -> dict[str, Any]:
        return super()._learned(builder) | {"store_weights": builder.weighed}

    def index_inputs(self) -> list[list[str]]:
        """The columns that indexing needs."""
        stored = self._manifest_on_disk() if self.built() else {}
        kept = [x.column for x in EXTRAS.values() if getattr(self, x.setting) or stored.get(x.setting)]
        return [["docno", self.columns.doc, *kept]]

    def _new_manifest(self) -> dict[str, Any]:
        return super()._new_manifest() | {
            "store_ids": self.store_ids,
            "store_offsets": self.store_offsets,
            "store_weights": self.store_weights,
        }

    def _fixed(self, old: dict[str, Any], new: dict[str, Any]) -> tuple[str, ...]:
        """Documents must be scored in the same way, too.

        What vectors and weights are does not depend on how they are aligned: the default stays that of the index.
        """
        rules = old.get("scoring"), new.get("scoring")
        aligned = all(rule is not None and "alignment" in rule for rule in rules)
        return ("document",) if aligned else ("document", "scoring")

    # ------------------------------------------------------------------ reading

    def _check_settings(self, manifest: dict[str, Any]) -> None:
        super()._check_settings(manifest)
        for setting in (extra.setting for extra in EXTRAS.values()):
            # none: as the first document will have it
            if getattr(self, setting) and manifest.get(setting, False) is False:
                raise ValueError(f"{self.path} was built without {setting}=True")

    @property
    def scoring(self) -> ScoringRule:
        """The scoring rule of the model that built the index; plain MaxSim if none did."""
        return scoring_of(self.store)
