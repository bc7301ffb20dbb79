"""What is left of an untrained MiniLM when a share of document tokens is kept: quality, bytes, time.

    python benchmarks/pruning.py --data FOLDER [--cache FOLDER]      # encodes, prunes, indexes, writes pruning.json
    python benchmarks/pruning.py                                     # prints the kept table

Tokens are ranked without training: by the attention they receive, by inverse document frequency, and by two controls,
first tokens and random ones. Queries keep all tokens. ``refine="pruned"`` scores the kept tokens alone, from an index
of nothing else; ``refine="full"`` is the paper's way: the 100 documents that the pruned index finds (paper: 1,000) are
scored by all their tokens, from a second index. Every document is searched; documents end at 180 tokens; float16. Times
are of the whole search behind the query encoder, medians of rounds in which the ways take turns: read them as ratios to
all tokens.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import RR, R, nDCG
from limits import about

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.importance import IDF, Attention, First, Random, pruned

HERE = Path(__file__).resolve().parent
FILE = HERE / "pruning.json"
sys.path.insert(0, str(HERE.parent / "examples"))
from common import load  # noqa: E402

COLLECTIONS = ("cranfield", "cacm", "msmarco-dl19-mini")
SHARES = (0.6, 0.4, 0.2, 0.1)
MEASURES = [nDCG @ 10, RR @ 10, R @ 100]
ROUNDS, DEPTH = 3, 100


def indexed(folder: Path, docnos: list[str], batch: mv.TokenBatch) -> mv.MultiVecIndex:
    """An index of token vectors."""
    index = mv.MultiVecIndex(folder, quantize=False)
    return index.index({"docno": d, "doc_embs": v} for d, v in zip(docnos, batch, strict=True))


def seconds(ways: dict[str, pt.Transformer], queries: pd.DataFrame) -> dict[str, float]:
    """Median seconds of each way over all queries."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way(queries)
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def encoded(encoder: mv.TokenEncoder, texts: list[str], file: Path) -> mv.TokenBatch:
    """Vectors of documents and the attention that each token received, kept in a file."""
    if not file.exists():
        batch = encoder.encode_docs(texts, importance=Attention())
        half = batch.vectors.astype(np.float16)
        np.savez(file, v=half, o=batch.offsets, t=batch.token_ids, a=batch.importance)
    with np.load(file) as kept:
        return mv.TokenBatch(kept["v"].astype(np.float32), kept["o"], kept["t"], importance=kept["a"])


def rows_of(name: str, data: Path, cache: Path) -> list[dict[str, Any]]:
    """All shares, rankings and refinements of one collection."""
    documents, topics, qrels = load(collection=str(data / name))
    encoder = mv.TokenEncoder(mv.models.MINILM, doc_length=180, verbose=True)
    texts, docnos = [d["text"] for d in documents], [d["docno"] for d in documents]
    whole = encoded(encoder, texts, cache / f"{name}.pruning.npz")
    kinds = {"attention": Attention(), "idf": IDF.of(encoder, texts), "first": First(), "random": Random()}
    queries = mv.Aligner(encoder).query_encoder()(topics)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        full = indexed(Path(folder) / "full.mv", docnos, whole)
        search = full.retriever(num_results=DEPTH, candidates=None)
        run = search(queries)
        found.append(row(name, 1.0, "", "full", run, qrels, full.info()))
        timed, entries = {"all": search}, {"all": [found[0]]}
        for share in SHARES:
            for kind, importance in kinds.items():
                scored = whole if kind == "attention" else replace(whole, importance=importance.scores(whole))
                index = indexed(Path(folder) / f"{kind}-{share}.mv", docnos, pruned(scored, share))
                first = index.retriever(num_results=DEPTH, candidates=None)
                for refine, way in {"pruned": first, "full": first >> full.scorer()}.items():
                    found.append(row(name, share, kind, refine, way(queries), qrels, index.info()))
                    entries.setdefault(f"{share} {refine}", []).append(found[-1])
                    if kind == "attention":  # times depend on the share, not on which tokens
                        timed[f"{share} {refine}"] = way
        for way, time_ in seconds(timed, queries).items():
            for entry in entries[way]:
                entry["ms a query"] = round(1e3 * time_ / len(topics), 2)
    return found


def row(
    name: str, share: float, kind: str, refine: str, run: pd.DataFrame, qrels: pd.DataFrame, info: dict[str, Any]
) -> dict[str, Any]:
    """One line of the table."""
    measured = pt.Evaluate(run, qrels, metrics=MEASURES)
    return {
        "collection": name,
        "kept": share,
        "by": kind,
        "refine": refine,
        **{str(m): round(measured[str(m)], 4) for m in MEASURES},
        "vectors": info["vectors"],
        "bytes": info["bytes"],
    }


def show(results: dict[str, Any]) -> None:
    """nDCG@10 by share and ranking; bytes and times of each share."""
    table = pd.DataFrame(results["rows"])
    for name, mine in table.groupby("collection", sort=False):
        whole = mine[mine["kept"] == 1].iloc[0]
        print(f"\n{name}: all tokens nDCG@10 {whole['nDCG@10']:.4f}, {whole['bytes'] / 2**20:.1f} MiB")
        rest = mine[mine["kept"] < 1]
        wide = rest.pivot_table(index=["kept", "refine"], columns="by", values="nDCG@10", sort=False)
        by_share = rest.drop_duplicates(["kept", "refine"]).set_index(["kept", "refine"])
        wide["bytes"] = (by_share["bytes"] / whole["bytes"]).round(3)
        wide["time"] = (by_share["ms a query"] / whole["ms a query"]).round(3)
        print(wide.to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    parser.add_argument("--cache", type=Path, help="where vectors of documents are kept (default: thrown away)")
    arguments = parser.parse_args()
    if arguments.data is None:
        show(json.loads(FILE.read_text()))
    else:
        outcome: dict[str, Any] = {
            "about": about("python benchmarks/pruning.py --data FOLDER", ("torch", "sentence-transformers")),
            "rows": [],
        }
        with tempfile.TemporaryDirectory() as scratch:
            for collection in COLLECTIONS:
                outcome["rows"] += rows_of(collection, arguments.data, arguments.cache or Path(scratch))
                FILE.write_text(json.dumps(outcome, indent=1) + "\n")
        show(outcome)
