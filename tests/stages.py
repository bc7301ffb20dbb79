"""Every stage of the package, as the contract makes it; a new stage is one entry in STAGES."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.stages import TextScorer
from tests import checkpoints
from tests.encoders.test_latents import with_latents
from tests.encoders.test_salience import with_heads

TEXTS = {"d1": "a cat sat on the mat", "d2": "the sky is blue", "d3": "a dog ran fast in the rain", "d4": ""}


class Counting(mv.TokenEncoder):
    """Counts the texts that reach the model."""

    calls = 0
    encoded = 0

    def _forward(self, inputs, task, whole):
        type(self).calls += 1
        type(self).encoded += len(inputs)
        return super()._forward(inputs, task, whole)


class CountingVectors(mv.VectorEncoder):
    """Counts as :class:`Counting` does."""

    def _forward(self, texts, task, verbose):
        Counting.calls += 1
        Counting.encoded += len(texts)
        return super()._forward(texts, task, verbose)


def made(tiny, folder) -> SimpleNamespace:
    """Models and their indexes: a plain one, and one that prunes and weighs tokens."""
    with_heads(tiny).save(folder / "salient")
    with_latents(tiny).save(folder / "latents")
    parts = SimpleNamespace(
        colbert=mv.ColBERT(Counting(tiny, device="cpu")),
        aligner=mv.Aligner(
            Counting(folder / "salient", device="cpu"), mv.TopK(2), normalizer="query", query_keep=0.5, doc_keep=0.6
        ),
        index=mv.MultiVecIndex(folder / "docs.mv", store_ids=True, store_offsets=True),
        weighed=mv.MultiVecIndex(folder / "weighed.mv", store_weights=True),
    )
    corpus = [{"docno": d, "text": t} for d, t in TEXTS.items()]
    parts.latent = mv.LatentTerms(parts.colbert.encoder, mv.TopKSAE.random(16, latents=32, k=3))
    parts.laspar = mv.Laspar(folder / "latents", device="cpu")
    parts.nvf = field()
    parts.agrame = mv.AGRaME(parts.colbert.encoder, unit=mv.Phrases(3))
    (parts.colbert.doc_encoder() >> parts.index).index(corpus)
    (parts.aligner.doc_encoder() >> parts.weighed).index(corpus)
    parts.vectors = CountingVectors(checkpoints.sentence_encoder(folder / "sentence"), device="cpu")
    parts.single = mv.SingleVecIndex(folder / "docs.vec")
    (parts.vectors.doc_encoder() >> parts.single).index(corpus)
    for engine in ("pisa", "csr"):
        index = mv.SparseIndex(folder / f"{engine}.sparse", engine)
        setattr(parts, engine, index.index({"docno": d, "toks": toks(text)} for d, text in TEXTS.items()))
    return parts


def toks(text: str) -> dict[str, float]:
    return {word: 1.0 + i for i, word in enumerate(text.split())}


def with_toks(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(query_toks=frame["query"].map(toks))


def queries() -> pd.DataFrame:
    return pd.DataFrame(
        {"qid": ["1", "2", "3"], "query": ["a cat", "blue sky", "a cat"], "topic_note": ["x", "y", "z"]}
    )


def results() -> pd.DataFrame:
    rows = [
        {"qid": q, "query": text, "docno": d, "text": TEXTS[d], "score": float(i), "rank": 3 - i, "extra": q + d}
        for q, text in (("1", "a cat"), ("2", "blue sky"))
        for i, d in enumerate(TEXTS)
    ]
    return pd.DataFrame(rows)


def with_vectors(frame: pd.DataFrame) -> pd.DataFrame:
    """Vectors of words' lengths, of queries and of documents."""

    def vector(text: str) -> np.ndarray:
        return np.array([1.0, len(text), len(text.split()), text.count("a")], dtype=np.float32)

    there = {f"{side}_vec": frame[c].map(vector) for side, c in (("query", "query"), ("doc", "text")) if c in frame}
    return frame.assign(**there)


def field() -> mv.NVF:
    """Trained, on two queries."""
    qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["d1", "d2"], "label": 1})
    return mv.NVF(hidden=4).fit(with_vectors(results()), qrels, valid=0, epochs=2, verbose=False)


def answers() -> pd.DataFrame:
    said = {"1": "A cat sat and a dog ran.", "2": "The sky is blue."}
    parts = {"1": [["A cat sat", "a dog ran"]], "2": [["the sky"]]}
    frame = results()
    return frame.assign(qanswer=frame["qid"].map(said), qpropositions=frame["qid"].map(parts))


def documents() -> pd.DataFrame:
    return pd.DataFrame([{"docno": d, "text": t, "url": f"u{d}"} for d, t in TEXTS.items()])


# stage -> (how to make it, the same with another setting, an example frame, the columns it adds, or drops: those with a
# minus); what comes after a comma is another case of the same stage
STAGES = {
    "QueryEncoder": (
        lambda p: p.colbert.query_encoder(),
        lambda p: mv.ColBERT(p.colbert.encoder.name, query_length=8).query_encoder(),
        lambda p: queries(),
        {"query_embs", "query_tok_ids", "query_encoder"},
    ),
    "QueryEncoder, weighed and pruned": (
        lambda p: p.aligner.query_encoder(),
        lambda p: p.aligner.query_encoder(refine="full"),
        lambda p: queries(),
        {"query_embs", "query_tok_ids", "query_weights", "query_encoder"},
    ),
    "DocEncoder": (
        lambda p: p.colbert.doc_encoder(),
        lambda p: p.colbert.doc_encoder(text_field="title"),
        lambda p: documents(),
        {"doc_embs", "doc_tok_ids", "doc_tok_offsets", "doc_encoder"},
    ),
    "DocEncoder, weighed and pruned": (
        lambda p: p.aligner.doc_encoder(),
        lambda p: p.aligner.doc_encoder(refine="full"),
        lambda p: documents(),
        {"doc_embs", "doc_tok_ids", "doc_tok_offsets", "doc_weights", "doc_encoder"},
    ),
    "TextScorer": (
        lambda p: TextScorer(p.colbert.encoder, p.colbert.scoring),
        lambda p: TextScorer(p.colbert.encoder, mv.scoring.MaxSim("l2")),
        lambda p: results(),
        set(),
    ),
    "TrainableScorer": (
        lambda p: p.colbert.text_scorer(max_steps=1),
        lambda p: mv.ColBERT(p.colbert.encoder, normalize="query").text_scorer(),
        lambda p: results(),
        set(),
    ),
    "TrainableScorer, weighed and pruned": (
        lambda p: p.aligner.text_scorer(),
        lambda p: p.aligner.text_scorer(refine="full"),
        lambda p: results(),
        set(),
    ),
    "MultiVecRetriever": (
        lambda p: p.index.retriever(),
        lambda p: p.index.retriever(num_results=2),
        lambda p: p.colbert.query_encoder()(queries()),
        {"docno", "score", "rank"},
    ),
    "MultiVecRetriever, weighed": (
        lambda p: p.weighed.retriever(p.aligner),
        lambda p: p.weighed.retriever(mv.scoring.Alignment(mv.TopP(0.5))),
        lambda p: p.aligner.query_encoder()(queries()),
        {"docno", "score", "rank"},
    ),
    "MultiVecScorer": (
        lambda p: p.index.scorer(),
        lambda p: p.index.scorer(mv.scoring.MaxSim("l2")),
        lambda p: p.colbert.query_encoder()(results()),
        set(),
    ),
    "MultiVecScorer, weighed": (
        lambda p: p.weighed.scorer(p.aligner),
        lambda p: p.weighed.scorer(),
        lambda p: p.aligner.query_encoder()(results()),
        set(),
    ),
    "VecLoader": (
        lambda p: p.index.vec_loader(),
        lambda p: mv.MultiVecIndex("elsewhere.mv").vec_loader(),
        lambda p: results(),
        {"doc_embs", "doc_tok_ids", "doc_tok_offsets", "doc_encoder"},
    ),
    "VecLoader, weighed": (
        lambda p: p.weighed.vec_loader(),
        lambda p: mv.MultiVecIndex("elsewhere.mv").vec_loader(),
        lambda p: results(),
        {"doc_embs", "doc_weights", "doc_encoder"},
    ),
    "UnitScorer": (
        lambda p: p.agrame.unit_scorer(),
        lambda p: mv.AGRaME(p.colbert.encoder, alpha=0).unit_scorer(),
        lambda p: results(),
        {"parent_docno", "start", "end", "unit_score", "passage_score"},
    ),
    "UnitScorer, from an index": (
        lambda p: p.agrame.unit_scorer(p.index),
        lambda p: p.agrame.unit_scorer(p.index, keep_passages=2),
        lambda p: results(),
        {"parent_docno", "start", "end", "unit_score", "passage_score"},
    ),
    "UnitFolder": (
        lambda p: p.agrame.fold(),
        lambda p: p.agrame.fold("mean"),
        lambda p: p.agrame.unit_scorer()(results()),
        {"best_unit", *(f"-{c}" for c in ("text", "parent_docno", "start", "end", "unit_score", "passage_score"))},
    ),
}

STAGES |= {
    "QueryTermEncoder": (
        lambda p: p.latent.query_encoder(),
        lambda p: mv.LatentTerms(p.latent.encoder, p.latent.sae, top_query=2).query_encoder(),
        lambda p: queries(),
        {"query_toks", "query_toks_encoder"},
    ),
    "DocTermEncoder": (
        lambda p: p.latent.doc_encoder(),
        lambda p: mv.LatentTerms(p.latent.encoder, p.latent.sae, pool="max").doc_encoder(),
        lambda p: results(),
        {"toks", "toks_encoder"},
    ),
    "QueryTermEncoder, of a head": (
        lambda p: p.laspar.query_encoder(),
        lambda p: mv.Laspar(p.laspar.encoder.name, k_query=2).query_encoder(),
        lambda p: queries(),
        {"query_toks", "query_toks_encoder"},
    ),
    "DocTermEncoder, of a head": (
        lambda p: p.laspar.doc_encoder(),
        lambda p: p.laspar.doc_encoder("title"),
        lambda p: results(),
        {"toks", "toks_encoder"},
    ),
    "TermScorer": (
        lambda p: p.laspar.text_scorer(),
        lambda p: mv.Laspar(p.laspar.encoder.name, k_doc=2).text_scorer(),
        lambda p: results(),
        set(),
    ),
    "SparseRetriever": (
        lambda p: p.pisa.bm25(),
        lambda p: p.pisa.bm25(k1=2),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseRetriever, lucene": (
        lambda p: p.pisa.bm25(idf="lucene"),
        lambda p: p.pisa.bm25(),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseRetriever, dot product": (
        lambda p: p.pisa.retriever(),
        lambda p: p.pisa.retriever(num_results=2),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseRetriever, exact": (
        lambda p: p.csr.bm25(),
        lambda p: mv.SparseIndex(p.csr.path, "pisa").bm25(),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseScorer": (
        lambda p: p.pisa.scorer(),
        lambda p: p.pisa.scorer(mv.scoring.BM25()),
        lambda p: with_toks(results()),
        set(),
    ),
}
STAGES |= {
    "VecQueryEncoder": (
        lambda p: p.vectors.query_encoder(),
        lambda p: mv.VectorEncoder(p.vectors.name, normalize=False).query_encoder(),
        lambda p: queries(),
        {"query_vec", "query_vec_encoder"},
    ),
    "VecDocEncoder": (
        lambda p: p.vectors.doc_encoder(),
        lambda p: p.vectors.doc_encoder("title"),
        lambda p: results(),
        {"doc_vec", "doc_vec_encoder"},
    ),
    "MultiVecRetriever, of single vectors": (
        lambda p: p.single.retriever(),
        lambda p: p.single.retriever(num_results=2),
        lambda p: p.vectors.query_encoder()(queries()),
        {"docno", "score", "rank"},
    ),
    "MultiVecScorer, of single vectors": (
        lambda p: p.single.scorer(),
        lambda p: mv.SingleVecIndex("elsewhere.vec").scorer(),
        lambda p: p.vectors.query_encoder()(results()),
        set(),
    ),
    "VecLoader, of single vectors": (
        lambda p: p.single.vec_loader(),
        lambda p: mv.SingleVecIndex("elsewhere.vec").vec_loader(),
        lambda p: results(),
        {"doc_vec", "doc_vec_encoder"},
    ),
}
CITATIONS = {"sentence_id", "sentence", "sentence_start", "sentence_end", "margin", "propositions"}
STAGES |= {
    "Citer": (
        lambda p: p.agrame.cite(),
        lambda p: p.agrame.cite(margin=1.0),
        lambda p: answers(),
        CITATIONS,
    ),
    "Citer, from an index": (
        lambda p: p.agrame.cite(p.index),
        lambda p: p.agrame.cite(p.index, splitter="text"),
        lambda p: answers(),
        CITATIONS,
    ),
}
STAGES |= {
    "QueryMover": (
        lambda p: p.nvf.query_transform(),
        lambda p: mv.NVF(hidden=8).query_transform(),
        lambda p: with_vectors(queries()),
        set(),
    ),
    "SoftResult": (
        lambda p: p.nvf.soft_result(2),
        lambda p: p.nvf.soft_result(2, temperature=0.5),
        lambda p: with_vectors(results()),
        {f"-{c}" for c in ("docno", "text", "score", "rank", "doc_vec", "extra")},
    ),
    "PairReranker": (
        lambda p: p.nvf.reranker(),
        lambda p: mv.NVF(hidden=8).reranker(),
        lambda p: with_vectors(results()),
        set(),
    ),
    "PairReranker, first stage's scores": (
        lambda p: mv.NVF(use_score=True).reranker(),
        lambda p: mv.NVF(use_score=True, normalize=False).reranker(),
        lambda p: with_vectors(results()),
        set(),
    ),
}
