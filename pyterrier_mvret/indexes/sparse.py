"""Weighted terms of a collection on disk: build, retrieve, rescore."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from pyterrier_mvret import frames
from pyterrier_mvret.indexes import derived_files, sparse_pisa, sparse_seismic
from pyterrier_mvret.indexes.segmented import Mode, SegmentedIndex
from pyterrier_mvret.indexes.segments import derived_folders
from pyterrier_mvret.indexes.sparse_builder import SparseSegmentBuilder
from pyterrier_mvret.indexes.sparse_exact import ExactSearcher
from pyterrier_mvret.indexes.sparse_seismic import Seismic, SeismicSearcher
from pyterrier_mvret.indexes.sparse_stages import SparseIndexer, SparseRetriever, SparseScorer
from pyterrier_mvret.indexes.sparse_store import SparseStore
from pyterrier_mvret.scoring.bm25 import BM25, Idf

Engine = Literal["pisa", "csr", "seismic"] | Seismic
_ENGINES = ("pisa", "csr", "seismic")
_SCALE = 100.0


class SparseIndex(SegmentedIndex[SparseStore]):
    """The weighted terms of a collection: latents of a sparse autoencoder, LASPAR's dimensions, or any others.

    Build it behind an encoder, ``(latent.doc_encoder() >> index).index(docs)``, or from dicts made by hand; then every
    verb below is a stage. On disk are the weights as they came, by document; the folder appears whole or not at all,
    and a failed write leaves what was there before. What an engine needs is made from them on first use. PISA's files
    are kept beside them, and dropped by the next write: appending costs the new documents, and the first search
    after it the files of all.

    Args:
        path: the folder.
        engine: what searches. ``"pisa"`` (the default; Linux) compresses postings as integers and leaves out documents
            that cannot be among the best; scores are the formula's within rounding, mostly below 1 %. ``"csr"`` is the
            exact product in float64, with all postings in memory; faster on small collections. ``"seismic"`` (extra
            ``seismic``; also :class:`mv.Seismic(...) <Seismic>` with its settings) is approximate: scores are exact,
            some of the best documents may be missing. Any index can be opened with any; none takes that of the index
            on disk.
        scale: PISA's BM25 with the idf ``"rsj"`` keeps weights as multiples of 1 / scale (100 by default); smaller
            ones than half of that are lost, with a warning.
        verbose: progress bars.

    Raises:
        FileNotFoundError: used before it is built.
        DamagedIndexError: a file is missing, cut short or changed.
        ValueError: a setting other than that of the index on disk, or queries of another encoder.
        ImportError: ``engine="pisa"`` where pyterrier-pisa is not installed, ``"seismic"`` without pyseismic-lsr.

    >>> import tempfile
    >>> import pandas as pd
    >>> index = SparseIndex(tempfile.mkdtemp() + "/toy.sparse")
    >>> docs = {"d1": {"z3": 5, "z7": 1}, "d2": {"z7": 2}, "d3": {"z9": 4}, "d4": {"z9": 1}, "d5": {"z9": 2, "z11": 9}}
    >>> _ = index.index({"docno": d, "toks": toks} for d, toks in docs.items())
    >>> query = pd.DataFrame([{"qid": "1", "query_toks": {"z3": 1.0, "z7": 1.0}}])
    >>> index.bm25()(query)[["qid", "docno", "score", "rank"]].round(3)
      qid docno  score  rank
    0   1    d1  3.724     0
    1   1    d2  0.899     1
    >>> index.retriever()(query)["score"].round(1).tolist()
    [6.0, 2.0]
    """

    ARTIFACT_TYPE, ARTIFACT_FORMAT = "sparse_index", "mvret"
    _VERSION = 1
    _KEYS = ("engine", "scale", "encoder", "segments")
    _SEGMENT_KEYS = ("name", "documents", "postings", "empty", "terms", "hash_probe", "files")

    def __init__(
        self,
        path: str | Path,
        engine: Engine | None = None,
        *,
        scale: float | None = None,
        verbose: bool = False,
    ):
        super().__init__(path)
        if engine not in (None, *_ENGINES) and not isinstance(engine, Seismic):
            raise ValueError(f"engine must be 'pisa', 'csr', 'seismic' or mv.Seismic(...), got {engine!r}")
        if scale is not None and not 0 < scale < np.inf:
            raise ValueError(f"scale must be a finite number above 0, got {scale!r}")
        self.engine, self.scale, self.verbose = engine, scale, verbose

    # ------------------------------------------------------------------ verbs

    def indexer(self, mode: Mode = "create") -> SparseIndexer:
        """A stage that ends an indexing pipeline.

        Args:
            mode: ``"create"`` refuses to touch an index that exists, ``"overwrite"`` replaces it once the new one is
                complete, ``"append"`` adds documents (same encoder, new docnos): they are written alone, but numbers
                of documents and lengths change for all, so PISA's files are made anew on the next search.

        >>> import tempfile
        >>> index = SparseIndex(tempfile.mkdtemp() + "/toy.sparse")
        >>> _ = index.index([{"docno": "d1", "toks": {"z3": 0.5}}])
        >>> len(index.indexer("append").index([{"docno": "d2", "toks": {"z4": 1.0}}]))
        2
        """
        return SparseIndexer(self, mode)

    def bm25(
        self,
        k1: float = 8.0,
        b: float = 0.7,
        idf: Idf = "rsj",
        *,
        num_results: int | None = 1000,
        batch_size: int = 64,
        verbose: bool = False,
    ) -> SparseRetriever:
        """Q with ``query_toks`` -> R by BM25 (Latent Terms, equations 3 and 4; the defaults are appendix D's).

        Scores are the formula's own, query weights linear, whatever the engine's integers. Terms in half of the
        documents or more have no idf under ``"rsj"`` and find nothing; a query without any other term has no
        results, and is counted in a warning.

        Args:
            k1: where a weight saturates.
            b: how much a document's sum of weights counts. PISA writes its files for each ``k1`` and ``b``: a grid of
                them is better searched with ``engine="csr"``.
            idf: ``"rsj"`` or ``"lucene"`` (:func:`pyterrier_mvret.scoring.bm25.idf`); the paper's own is disputed.
            num_results: as for :meth:`retriever`.
            batch_size: as for :meth:`retriever`.
            verbose: as for :meth:`retriever`.
        """
        return SparseRetriever(self, BM25(k1, b, idf), num_results, batch_size, verbose)

    def retriever(
        self,
        weighting: BM25 | None = None,
        *,
        num_results: int | None = 1000,
        batch_size: int = 64,
        verbose: bool = False,
    ) -> SparseRetriever:
        """Q with ``query_toks`` -> R: the best documents that share a term with the query; equal scores by docno.

        Args:
            weighting: ``mv.scoring.BM25(...)``; none is the dot product of weights, for PISA rounded to 10
                bits of the largest weight of documents and 8 bits of a query's (after LASPAR's quantiser).
            num_results: documents a query at most; none for all. ``retriever % k`` becomes ``num_results=k`` when
                the pipeline is compiled.
            batch_size: queries that are searched together.
            verbose: a progress bar over batches.
        """
        return SparseRetriever(self, weighting, num_results, batch_size, verbose)

    def scorer(self, weighting: BM25 | None = None, *, verbose: bool = False) -> SparseScorer:
        """R with ``query_toks`` and ``docno`` -> R scored exactly, in float64, from the stored weights.

        So ``index.bm25() % 100 >> index.scorer(mv.scoring.BM25())`` removes PISA's rounding from scores. A docno that
        is not in the index is an error when the stage runs; a document that shares no term scores 0.

        Args:
            weighting: as for :meth:`retriever`.
            verbose: a progress bar over queries.

        >>> import pandas as pd, tempfile
        >>> index = SparseIndex(tempfile.mkdtemp() + "/toy.sparse")
        >>> _ = index.index([{"docno": "d1", "toks": {"z3": 0.5, "z4": 2.0}}])
        >>> candidates = pd.DataFrame([{"qid": "1", "docno": "d1", "query_toks": {"z3": 3.0}}])
        >>> index.scorer()(candidates)["score"].tolist()
        [1.5]
        """
        return SparseScorer(self, weighting, verbose)

    # ------------------------------------------------------------------ building

    def index(self, iter: Iterable[Any], mode: Mode = "create") -> "SparseIndex":
        """Builds from records with ``docno`` and ``toks``, streaming; see :meth:`indexer` for modes.

        A weight of 0 is as no weight; documents without terms count as documents, and are never found.

        Raises:
            FileExistsError: ``mode="create"`` where an index is.
            ValueError: a record that cannot be stored, by docno and term; nothing of this call is kept.
        """
        return super().index(iter, mode)

    def index_inputs(self) -> list[list[str]]:
        """The columns that indexing needs."""
        return [["docno", frames.TOKS]]

    def _new_manifest(self) -> dict[str, Any]:
        return super()._new_manifest() | {"engine": self._named or "pisa", "scale": float(self.scale or _SCALE)}

    def _builder(self, folder: Path, manifest: dict[str, Any], before: SparseStore | None) -> SparseSegmentBuilder:
        if self._engine(manifest) == "pisa":
            sparse_pisa.require_pisa()  # before hours of encoding, not after them
        if self._engine(manifest) == "seismic":
            sparse_seismic.require_seismic()

        def check(found: dict[str, Any] | None) -> None:
            self._check_encoder(manifest, found)

        if before is None:
            return SparseSegmentBuilder(folder, check_encoder=check)
        vocabulary = {term: number for number, term in enumerate(before.term_names())}
        return SparseSegmentBuilder(folder, vocabulary, lambda names: before.positions(names) >= 0, check)

    # ------------------------------------------------------------------ reading

    def _open(self, manifest: dict[str, Any]) -> SparseStore:
        return SparseStore(self.path.absolute(), manifest)  # it is searched in new ways later, perhaps from elsewhere

    def _check_settings(self, manifest: dict[str, Any]) -> None:
        if self.scale not in (None, manifest["scale"]):
            raise ValueError(f"{self.path} was built with scale={manifest['scale']}, not {self.scale}")

    @property
    def _named(self) -> str | None:
        """The engine's name; its settings are not kept with the index."""
        return "seismic" if isinstance(self.engine, Seismic) else self.engine

    def _engine(self, manifest: dict[str, Any]) -> str:
        return self._named or manifest["engine"]

    def searcher(self, store: SparseStore, weighting: BM25 | None) -> Any:
        """What searches a store, made on first use."""
        engine = self._engine(store.manifest)
        if engine == "csr":
            return store.searcher(("csr", weighting), lambda: ExactSearcher(store, weighting))
        if engine == "seismic":
            settings = self.engine if isinstance(self.engine, Seismic) else Seismic()
            return store.searcher((settings, weighting), lambda: SeismicSearcher(store, weighting, settings))
        scale = store.manifest["scale"]
        return store.searcher(("pisa", weighting), lambda: sparse_pisa.PisaSearcher(store, weighting, scale))

    def lexicon(self) -> pd.DataFrame:
        """All terms, with the number of documents that have each (``term``, ``documents``)."""
        return pd.DataFrame({"term": self.store.term_names(), "documents": self.store.statistics.frequencies})

    def info(self) -> dict[str, Any]:
        """Counts (documents, those without terms, terms, postings, segments), bytes, engine, scale, encoder.

        >>> import tempfile
        >>> index = SparseIndex(tempfile.mkdtemp() + "/toy.sparse", "csr")
        >>> info = index.index([{"docno": "d1", "toks": {"z3": 0.5, "z4": 2.0}}, {"docno": "d2", "toks": {}}]).info()
        >>> info["documents"], info["empty"], info["terms"], info["postings"], info["engine"]
        (2, 1, 2, 2, 'csr')
        """
        entries = self.manifest["segments"]
        counts = {key: sum(e[key] for e in entries) for key in ("documents", "empty", "terms", "postings")}
        derived = [p for folder in derived_folders(self.path) for p in folder.glob("*")]
        return {
            **counts,
            "engine": self._engine(self.manifest),
            "scale": self.manifest["scale"],
            "bytes": sum(file["bytes"] for entry in entries for file in entry["files"].values()),
            "engine_bytes": sum(p.stat().st_size for p in derived),
            "segments": len(entries),
            "encoder": (self.manifest["encoder"] or {}).get("space"),
        }

    def _check_files(self, manifest: dict[str, Any]) -> None:
        super()._check_files(manifest)
        for folder in derived_folders(self.path):
            derived_files.check_folder(folder, whole=True)
