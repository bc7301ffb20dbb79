"""One vector a document on disk: build, retrieve, rescore, load."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyterrier as pt

from pyterrier_mvret.indexes.columns import TEXTS
from pyterrier_mvret.indexes.segmented import Mode
from pyterrier_mvret.indexes.stages import MultiVecIndexer, MultiVecRetriever, MultiVecScorer, VecLoader
from pyterrier_mvret.indexes.vector_index import Dtype, VectorIndex
from pyterrier_mvret.scoring import MaxSim

# documents that are read at once: some megabytes at common dimensions
_DOCUMENTS_AT_ONCE = 1 << 12
_INNER_PRODUCT = MaxSim()


class SingleVecIndex(VectorIndex):
    """One vector a document, of any encoder, in a folder of immutable segments and one manifest.

    Build it behind an encoder, ``(encoder.doc_encoder() >> index).index(docs)``, or from vectors that are there
    already; then every verb below is a stage. Scores are inner products, computed for every document unless the index
    was built with ``quantize=True``, so what is found is exact. Files are those of :class:`MultiVecIndex`, a document
    being one with a single row.

    Args:
        path: the folder.
        dtype: how vectors are stored, as for :class:`MultiVecIndex`. The default is ``"float32"``: one vector a
            document is small beside its text, and scores are then the inner products of the vectors as they came.
        quantize: keep 16 bytes a document more by which :meth:`retriever` picks candidates. They are kept on request
            only: with one vector a document, a pass over all costs little, and misses nothing.
        verbose: progress bars.

    Raises:
        FileNotFoundError: used before it is built.
        DamagedIndexError: a file is missing, cut short or changed.
        ValueError: a setting other than that of the index on disk.

    >>> import tempfile
    >>> import numpy as np, pandas as pd
    >>> index = SingleVecIndex(tempfile.mkdtemp() + "/toy.vec")
    >>> _ = index.index([{"docno": "d1", "doc_vec": [0.6, 0.8]}, {"docno": "d2", "doc_vec": [-1.0, 0.0]}])
    >>> query = pd.DataFrame([{"qid": "1", "query_vec": np.array([1.0, 0.0])}])
    >>> index.retriever()(query)[["qid", "docno", "score", "rank"]].round(3)
      qid docno  score  rank
    0   1    d1    0.6     0
    1   1    d2   -1.0     1
    """

    ARTIFACT_TYPE, ARTIFACT_FORMAT = "singlevec_index", "mvret"
    _VERSION = 1
    columns, _DTYPE, _QUANTIZE = TEXTS, "float32", False

    def __init__(
        self, path: str | Path, *, dtype: Dtype | None = None, quantize: bool | None = None, verbose: bool = False
    ):
        super().__init__(path)
        self._take(dtype, quantize)
        self.verbose = verbose

    def indexer(self, mode: Mode = "create") -> MultiVecIndexer:
        """A stage that ends an indexing pipeline.

        Args:
            mode: ``"create"`` refuses to touch an index that exists, ``"overwrite"`` replaces it once the new one is
                complete, ``"append"`` adds a segment (same encoder, same settings, new docnos).

        >>> import tempfile
        >>> index = SingleVecIndex(tempfile.mkdtemp() + "/toy.vec")
        >>> _ = index.index([{"docno": "d1", "doc_vec": [1.0, 0.0]}])
        >>> len(index.indexer("append").index([{"docno": "d2", "doc_vec": [0.0, 1.0]}]))
        2
        """
        return MultiVecIndexer(self, mode)

    def index(self, iter: Iterable[Any], mode: Mode = "create") -> "SingleVecIndex":
        """Builds from records with ``docno`` and ``doc_vec``, streaming; see :meth:`indexer` for modes.

        A record may say how its vector was made, in ``doc_vec_encoder``: JSON, as encoders write it. Queries and
        documents of other encoders are then refused.

        Raises:
            FileExistsError: ``mode="create"`` where an index is.
            ValueError: a record that cannot be stored; nothing of this call is kept.
        """
        return super().index(iter, mode)

    def retriever(
        self,
        *,
        num_results: int | None = 1000,
        candidates: int | Literal["auto"] | None = "auto",
        batch_size: int = 64,
        device: str | None = None,
        verbose: bool = False,
    ) -> MultiVecRetriever:
        """Q with ``query_vec`` -> R: the documents of largest inner product; equal scores by docno.

        Args:
            num_results: documents a query at most; none for all. ``retriever % k`` becomes ``num_results=k`` when
                the pipeline is compiled.
            candidates: as for :meth:`MultiVecIndex.retriever`, for an index with ``quantize=True``; all documents of
                any other are scored.
            batch_size: queries that share one pass over the index.
            device: where torch scores, ``"cuda"`` for example; none is the CPU.
            verbose: a progress bar over the passes.
        """
        return MultiVecRetriever(self, _INNER_PRODUCT, num_results, batch_size, verbose, candidates, device)

    def scorer(self, *, verbose: bool = False) -> MultiVecScorer:
        """R with ``query_vec`` and ``docno`` -> R scored by inner products with the stored vectors.

        A docno that is not in the index is an error when the stage runs.

        Args:
            verbose: a progress bar over queries.

        >>> import pandas as pd, tempfile
        >>> index = SingleVecIndex(tempfile.mkdtemp() + "/toy.vec")
        >>> _ = index.index([{"docno": "d1", "doc_vec": [1.0, 2.0]}])
        >>> index.scorer()(pd.DataFrame([{"qid": "1", "docno": "d1", "query_vec": [0.5, -1.0]}]))["score"].tolist()
        [-1.5]
        """
        return MultiVecScorer(self, _INNER_PRODUCT, verbose)

    def vec_loader(self) -> VecLoader:
        """Frames with ``docno`` -> the same with ``doc_vec`` as float32, and how it was made.

        >>> import pandas as pd, tempfile
        >>> index = SingleVecIndex(tempfile.mkdtemp() + "/toy.vec")
        >>> _ = index.index([{"docno": "d1", "doc_vec": [1.0, 2.0]}])
        >>> index.vec_loader()(pd.DataFrame({"docno": ["d1"]}))["doc_vec"][0]
        array([1., 2.], dtype=float32)
        """
        return VecLoader(self)

    def get_corpus_iter(self, verbose: bool = False) -> Iterator[dict[str, Any]]:
        """Records with ``docno`` and ``doc_vec`` (float32) in the index's order, for indexes of other packages.

        >>> import tempfile
        >>> index = SingleVecIndex(tempfile.mkdtemp() + "/toy.vec")
        >>> _ = index.index([{"docno": "d1", "doc_vec": [1.0, 2.0]}])
        >>> list(index.get_corpus_iter())
        [{'docno': 'd1', 'doc_vec': array([1., 2.], dtype=float32)}]
        """
        store = self.store
        starts = range(0, len(store), _DOCUMENTS_AT_ONCE)
        for start in pt.tqdm(starts, desc="reading", unit="block", disable=not verbose):
            positions = np.arange(start, min(start + _DOCUMENTS_AT_ONCE, len(store)))
            vectors, _ = store.gather(positions)
            for name, vector in zip(store.names(positions), vectors, strict=True):
                yield {"docno": name, self.columns.doc: vector.copy()}  # one that is kept must not keep its block
