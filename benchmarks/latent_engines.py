"""For latent_terms.py: engines against each other, settings of the weighting, and speed."""

import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from latent_bench import DIM, IDFS, MAIN, Bench, per_row
from latent_scores import NAMES, as_matrix, bm25_scores, frequencies, from_frame, measured, sentence_vectors, unit
from latent_states import Collection, States, collection, encoded, tokens_per_second
from limits import limits
from scipy.sparse import csr_array, vstack

import pyterrier_mvret as mv
from pyterrier_mvret import frames
from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.scoring.pooling import pooled_terms

#: where settings of the weighting are compared
ABLATED = ("limit-small", "vaswani", "cranfield")
#: queries that are timed, and how often each
TIMED, REPEATS = 50, 3
_SPEED_TEXTS = 512


# ---------------------------------------------------------------------- engines


def dicts(matrix: csr_array) -> Iterator[dict[str, float]]:
    """Rows as an encoder would hand them over."""
    for begin, end in itertools.pairwise(matrix.indptr.tolist()):
        names = (f"z{latent}" for latent in matrix.indices[begin:end].tolist())
        yield dict(zip(names, matrix.data[begin:end].tolist(), strict=True))


def pisa(bench: Bench, c: Collection) -> None:
    """PISA and the exact product of the first dictionary, and PISA on words: measures, time, bytes."""
    one = MAIN[0]
    queries, documents = bench.latent(c, one)
    path = bench.scratch / "index" / f"{c.name.replace('/', '-')}.latent"
    shutil.rmtree(path, ignore_errors=True)
    records = ({"docno": d["docno"], "toks": toks} for d, toks in zip(c.documents, dicts(documents), strict=True))
    begin = time.perf_counter()
    index = mv.SparseIndex(path, "pisa").index(records)
    entry: dict[str, Any] = {"dictionary": one.name, "building s": round(time.perf_counter() - begin, 2)}
    asked = c.topics.assign(**{frames.QUERY_TOKS: list(dicts(queries))})
    found, entry["ways"] = {}, {}
    for engine, idf in itertools.product(("csr", "pisa"), IDFS):
        stage = mv.SparseIndex(path, engine).bm25(idf=idf)
        before = index.info()["engine_bytes"]
        begin = time.perf_counter()
        stage(asked.head(1))  # makes what the engine needs
        row: dict[str, Any] = {"preparing s": round(time.perf_counter() - begin, 2)}
        found[engine, idf] = stage(asked)
        row |= means(from_frame(found[engine, idf], c), c)
        row["ms a query"] = milliseconds(stage, asked)
        row["ms a query, 10 results"] = milliseconds(stage % 10, asked)
        row["bytes a document"] = round(
            (index.info()["engine_bytes"] - before if engine == "pisa" else 12 * documents.nnz) / len(c.documents)
        )
        entry["ways"][f"{engine}, {idf}"] = row
    entry |= {"stored bytes a document": round(index.info()["bytes"] / len(c.documents))}
    entry |= {"terms a document": per_row(documents), "terms a query": per_row(queries)}
    for idf in IDFS:
        entry[f"overlap of the best 10, {idf}"] = overlap(found["csr", idf], found["pisa", idf], 10)
        wrong = measured_difference(found["csr", idf], bm25_scores(queries, documents, idf=idf), c)
        entry[f"largest relative difference from the reference, {idf}"] = wrong
    entry["ways"]["words"] = words(bench, c)
    bench.results.setdefault("pisa", {})[c.name] = entry
    bench.keep()
    print(time.strftime("%T"), c.name, entry, flush=True)


def words(bench: Bench, c: Collection) -> dict[str, Any]:
    """PISA on words."""
    stage, path = bench.bm25(c)
    row = means(from_frame(stage(c.topics), c), c) | {"ms a query": milliseconds(stage, c.topics)}
    row["ms a query, 10 results"] = milliseconds(bench.bm25(c, 10)[0], c.topics)
    row["files"] = {p.name: p.stat().st_size for p in sorted(path.iterdir())}
    row["bytes a document"] = round(searched(row["files"]) / len(c.documents))
    return row


def searched(files: dict[str, int]) -> int:
    """Bytes of the files that a search of words reads: compressed postings, their bounds, and names."""
    return sum(size for name, size in files.items() if name.startswith("bm25.") or name.endswith("lex"))


def means(scores: Any, c: Collection) -> dict[str, float]:
    """Of measures."""
    return {m: round(float(v), 4) for m, v in zip(NAMES, measured(scores, c).mean(0), strict=True)}


def milliseconds(stage: pt.Transformer, asked: pd.DataFrame) -> float:
    """Processor time, as other work may share the machine: of queries asked one at a time, without their encoding."""
    stage = stage.compile()
    rows = [asked.iloc[i : i + 1] for i in range(min(TIMED, len(asked)))]
    return round(statistics.median(seconds(lambda row=row: stage(row)) for row in rows) * 1000, 2)


def seconds(call: Callable[[], Any]) -> float:
    """The least of a few."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def overlap(left: pd.DataFrame, right: pd.DataFrame, k: int) -> float:
    """Share of the k best that both have, mean over queries."""
    sets = [df[df["rank"] < k].groupby("qid")["docno"].agg(set) for df in (left, right)]
    shares = [len(sets[0][qid] & sets[1].get(qid, set())) / len(sets[0][qid]) for qid in sets[0].index]
    return round(float(np.mean(shares)), 4)


def measured_difference(found: pd.DataFrame, reference: Any, c: Collection) -> float:
    """Of a retriever's scores from a matrix."""
    scores = from_frame(found, c)
    there = scores > -np.inf
    return float(f"{np.abs(scores[there] / reference[there] - 1).max():.1e}")


# ---------------------------------------------------------------------- settings


def ablations(bench: Bench, c: Collection) -> None:
    """The first dictionary with other weightings, one change at a time."""
    sae = bench.dictionary(MAIN[0])
    special = [bench.encoder.model.tokenizer.cls_token_id, bench.encoder.model.tokenizer.sep_token_id]
    latents: dict[str, list[tuple[States, Any, Any]]] = {}
    for task in ("query", "document"):
        latents[task] = []
        for _, read in bench.parts(c, task):
            states = read()
            activations, ids = (part.numpy() for part in sae.encode(states.states))
            latents[task].append((states._replace(states=np.empty((0, 0), np.float32)), activations, ids))

    def terms(task: str, no_special: bool = False, **pooling: Any) -> csr_array:
        blocks = []
        for states, activations, ids in latents[task]:
            mask = ~np.isin(states.token_ids, special)[:, None] if no_special else 1.0
            found = pooled_terms(activations * mask, ids, states.offsets, **pooling)
            blocks.append(as_matrix(found, sae.latents))
        return csr_array(vstack(blocks, format="csr"))

    both = {task: terms(task) for task in latents}
    q, d = both["query"], both["document"]
    pairs: dict[str, tuple[csr_array, csr_array, dict[str, float]]] = {"the paper's": (q, d, {})}
    for k1, b in ((0.9, 0.4), (1.2, 0.75), (1.5, 0.75), (4, 0.7), (16, 0.7), (8, 0.0), (8, 0.4), (8, 1.0)):
        pairs[f"k1 {k1:g}, b {b:g}"] = (q, d, {"k1": k1, "b": b})
    for transform in ("identity", "log1p", "binary"):
        pairs[transform] = (terms("query", transform=transform), terms("document", transform=transform), {})
    pairs["binary queries"] = (terms("query", transform="binary"), d, {})
    pairs["maximum over tokens"] = (terms("query", pool="max"), terms("document", pool="max"), {})
    pairs["maximum in documents"] = (q, terms("document", pool="max"), {})
    pairs["without special tokens"] = (terms("query", no_special=True), terms("document", no_special=True), {})
    for top in (200, 100, 50):
        pairs[f"{top} heaviest terms of a document"] = (q, terms("document", top=top), {})
    pairs["32 heaviest terms of a query"] = (terms("query", top=32), d, {})
    pairs["without the 1 % most frequent latents"] = (without(q, d), without(d, d), {})
    rows = {}
    for name, (queries, documents, settings) in pairs.items():
        rows[name] = {idf: means(bm25_scores(queries, documents, idf=idf, **settings), c) for idf in IDFS}
        rows[name] |= {"terms a document": per_row(documents), "terms a query": per_row(queries)}
    product = np.asarray((csr_array(q, dtype=np.float64) @ d.T).toarray())
    rows["dot product, no BM25"] = {"dot": means(np.where(product > 0, product, -np.inf), c)}
    bench.results.setdefault("ablations", {})[c.name] = {"dictionary": MAIN[0].name, "rows": rows}
    bench.keep()
    print(time.strftime("%T"), c.name, "ablations", flush=True)


def without(matrix: csr_array, documents: csr_array, share: float = 0.01) -> csr_array:
    """A matrix without the latents that most documents have."""
    counts = frequencies(documents)
    most = np.argsort(-counts, kind="stable")[: max(1, round(share * (counts > 0).sum()))]
    left = matrix.copy()
    left.data[np.isin(left.indices, most)] = 0
    left.eliminate_zeros()
    return left


# ---------------------------------------------------------------------- speed


def speed(bench: Bench) -> None:
    """States, latents and terms a second, and that the rows of this benchmark are what users get."""
    c = collection(bench.data, "vaswani")
    texts = c.texts[:_SPEED_TEXTS]
    states = encoded(bench.encoder, texts)
    tokens = len(states.states)
    row: dict[str, Any] = {"tokens": tokens, "limits": limits(1)}
    row["states a second"] = round(tokens / seconds(lambda: encoded(bench.encoder, texts)))
    row["latents a second"] = {}
    for latents in (1024, 4096, 16384, 32768):
        sae = TopKSAE.random(DIM, latents, 16, mean=states.states.mean(0))
        some = states.states[:8192]
        row["latents a second"][str(latents)] = round(len(some) / seconds(lambda sae=sae, some=some: sae.encode(some)))
    sae = bench.dictionary(MAIN[0])
    activations, ids = (part.numpy() for part in sae.encode(states.states))
    row["pooling, tokens a second"] = round(tokens / seconds(lambda: pooled_terms(activations, ids, states.offsets)))
    latent = mv.LatentTerms(bench.encoder, sae)
    frame = pd.DataFrame(c.documents[:_SPEED_TEXTS])
    row["doc_encoder, tokens a second"] = round(tokens / seconds(lambda: latent.doc_encoder()(frame)))
    asked = c.topics.head(20)
    rows = [asked.iloc[i : i + 1] for i in range(len(asked))]
    encode = latent.query_encoder()
    row["query_encoder, ms a query"] = round(
        statistics.median(seconds(lambda one=one: encode(one)) for one in rows) * 1000, 2
    )
    row["states a second, all parts"] = tokens_per_second(bench.scratch / "states" / "vaswani" / "document")
    bench.results["speed"] = row | checks(bench, c, states, latent)
    bench.keep()


def checks(bench: Bench, c: Collection, states: States, latent: mv.LatentTerms) -> dict[str, float]:
    """Largest differences between what this benchmark computes from states and the package's or the model's own."""
    from sentence_transformers import SentenceTransformer

    few, asked = c.documents[:32], c.topics.head(4)
    own = SentenceTransformer(mv.models.MINILM).encode([d["text"] for d in few])
    cosine = np.abs(sentence_vectors(states)[: len(few)] - own).max()
    pairs = asked.merge(pd.DataFrame(few), how="cross")
    scored = mv.ColBERT(bench.encoder).text_scorer()(pairs)
    scored = scored.set_index(["qid", "docno"])["score"]
    queries = encoded(bench.encoder, asked["query"].tolist(), "query")
    ends = states.offsets[: len(few) + 1]
    mine = mv.scoring.maxsim_matrix(unit(queries.states), queries.offsets, unit(states.states[: ends[-1]]), ends)
    theirs = np.array([[scored[qid, d["docno"]] for d in few] for qid in asked["qid"]])
    toks = latent.doc_encoder()(pd.DataFrame(few))["toks"]
    kept = dicts(bench.latent(c, MAIN[0])[1][: len(few)])
    worst = max(abs(own.get(z, 0.0) - w) for row, own in zip(kept, toks, strict=True) for z, w in row.items())
    return {
        "cosine: largest difference of a component": float(f"{cosine:.1e}"),
        "MaxSim: largest difference": float(f"{np.abs(mine - theirs).max():.1e}"),
        "terms: largest difference of a weight": float(f"{worst:.1e}"),
    }
