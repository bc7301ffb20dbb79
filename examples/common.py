"""What the examples and benchmarks share: reading a collection, and two baselines."""

import ctypes
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

import pyterrier_mvret as mv


def load(
    dataset: str | None = None, collection: str | None = None
) -> tuple[list[dict[str, Any]], pd.DataFrame, pd.DataFrame]:
    """Documents (``docno``, ``text``), topics and qrels of a PyTerrier dataset, or of a folder of files.

    A folder holds ``docs.jsonl.gz``, ``queries.tsv.gz`` and ``qrels.txt.gz``. Where documents have a title, the text
    is the title, a blank, and the text. Topics without a judged document are left out.
    """
    if collection is not None:
        documents, topics, qrels = _read_folder(Path(collection))
    else:
        source = pt.get_dataset(dataset or "mvret:mini")
        documents, topics, qrels = source.get_corpus_iter(), source.get_topics(), source.get_qrels()
    texts = [{"docno": d["docno"], "text": _text(d)} for d in documents]
    if "query" not in topics.columns:  # several fields, as TREC topics have
        named = next(c for c in ("title", "text", "question") if c in topics.columns)
        topics = topics.rename(columns={named: "query"})
    return texts, topics[topics["qid"].isin(qrels["qid"])].reset_index(drop=True), qrels


def _text(document: dict[str, Any]) -> str:
    """Title and body, under whatever names collections have for them."""
    fields = [f for f in ("title", "abstract", "text", "body", "contents") if f in document]
    if not fields:
        raise ValueError(f"document {document['docno']!r} has no text among {', '.join(document)}")
    return " ".join(document[f] for f in fields if document[f])


def _read_folder(folder: Path) -> tuple[Iterable[dict[str, Any]], pd.DataFrame, pd.DataFrame]:
    def lines(name: str) -> Iterator[str]:
        with gzip.open(folder / name, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\n")

    topics = pd.DataFrame([line.split("\t", 1) for line in lines("queries.tsv.gz")], columns=["qid", "query"])
    judged = [line.split() for line in lines("qrels.txt.gz")]
    qrels = pd.DataFrame([(q, d, int(label)) for q, _, d, label in judged], columns=["qid", "docno", "label"])
    return (json.loads(line) for line in lines("docs.jsonl.gz")), topics, qrels


def bm25(documents: list[dict[str, Any]], path: Path, num_results: int = 1000) -> pt.Transformer:
    """BM25 in PISA, with its default tokeniser, Porter2 stemmer and stop list; k1 = 0.9, b = 0.4."""
    from pyterrier_pisa import PisaIndex

    index = PisaIndex(str(path), text_field="text")
    with quiet():
        index.index(documents)
        retriever = index.bm25(num_results=num_results)
        retriever.search("first")  # the first query compresses the postings
    return retriever


class Cosine(pt.Transformer):
    """The single-vector baseline: one sentence embedding a text, all documents ranked by cosine."""

    schematic = {"label": "Cosine", "help_url": None}  # noqa: RUF012

    def __init__(self, documents: list[dict[str, Any]], model: str = "", num_results: int = 1000):
        from sentence_transformers import SentenceTransformer

        self.num_results = num_results
        self.model = SentenceTransformer(model or mv.models.MINILM)
        self.docnos = [d["docno"] for d in documents]
        self.vectors = self.model.encode([d["text"] for d in documents], show_progress_bar=True, convert_to_tensor=True)

    def transform(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Q -> R."""
        from sentence_transformers.util import semantic_search

        pt.validate.query_frame(topics, ["query"], context=self)
        queries = self.model.encode(topics["query"].tolist(), convert_to_tensor=True)
        rows = [
            {**topic, "docno": self.docnos[hit["corpus_id"]], "score": hit["score"], "rank": rank}
            for topic, hits in zip(
                topics.to_dict(orient="records"),
                semantic_search(queries, self.vectors, top_k=self.num_results) if len(topics) else [],
                strict=True,
            )
            for rank, hit in enumerate(hits)
        ]
        return pd.DataFrame(rows, columns=[*topics.columns, "docno", "score", "rank"])

    def scores(self, results: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Cosines of the queries and documents of results: a teacher, as ``pt.apply.doc_score(cosine.scores)``."""
        rows, names = pd.factorize(results["query"])
        place = {docno: i for i, docno in enumerate(self.docnos)}
        queries = self.model.encode(names.tolist(), convert_to_tensor=True, normalize_embeddings=True)
        documents = self.vectors[[place[docno] for docno in results["docno"]]]
        return (queries[rows.tolist()] * documents / documents.norm(dim=1, keepdim=True)).sum(1).cpu().numpy()


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what compiled code writes to the terminal."""
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    saved_error = os.dup(2)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C still holds would come out later
        os.dup2(saved, 1)
        os.dup2(saved_error, 2)
        for handle in (saved, saved_error, nowhere):
            os.close(handle)
