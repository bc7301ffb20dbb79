"""What NVF's reranking costs: 100 candidates a query, MiniLM's 384 dimensions, one core, vectors already there.

    python benchmarks/nvf_cost.py            # measures, and writes nvf_cost.json
    python benchmarks/nvf_cost.py --show     # prints what is kept

Processor time of one thread, per query, median of rounds in which all ways take turns. "stage" is the whole
transformer, frame in and frame out, for 200 queries at once and for one; "network" its arithmetic alone; "features
written out" the same network on ``[q; d; q - d; q * d]``. The first two lines are what any reranker pays: the first
layer's product of the candidates with a matrix of 384 x 128, and ranking them.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
import torch
from limits import about

import pyterrier_mvret as mv
from pyterrier_mvret import frames
from pyterrier_mvret.training.candidate_sets import unit

FILE = Path(__file__).resolve().parent / "nvf_cost.json"
QUERIES, DEPTH, DIM, ROUNDS = 200, 100, 384, 15


def candidates() -> pd.DataFrame:
    """Results with vectors; documents are shared by queries, as they are in a collection."""
    rng = np.random.default_rng(0)
    queries, documents = (unit(rng.normal(size=(n, DIM)).astype(np.float32)) for n in (QUERIES, 5000))
    found = rng.integers(len(documents), size=(QUERIES, DEPTH))
    rows = {
        "qid": np.repeat([f"q{i}" for i in range(QUERIES)], DEPTH),
        "docno": [f"d{i}" for i in range(QUERIES * DEPTH)],
        "score": np.tile(np.arange(DEPTH, 0, -1.0), QUERIES),
        "rank": np.tile(np.arange(DEPTH), QUERIES),
    }
    frame = pd.DataFrame(rows)
    index = frame.index
    return frame.assign(
        query_vec=frames.object_column((q for q in queries for _ in range(DEPTH)), index),
        doc_vec=frames.object_column((documents[at] for row in found for at in row), index),
    )


def trained(frame: pd.DataFrame, features: str) -> mv.NVF:
    """One epoch, so that nothing in it is zero."""
    qrels = pd.DataFrame(
        {"qid": [f"q{i}" for i in range(20)], "docno": [f"d{100 * i + 7}" for i in range(20)], "label": 1}
    )
    return mv.NVF(features=features).fit(frame.head(2000), qrels, valid=0, epochs=1, verbose=False)


def ways() -> dict[str, tuple[Callable[[], Any], int]]:
    """Everything that is timed, and for how many queries."""
    frame = candidates()
    one = frame.head(DEPTH)
    queries = frames.vectors(frame[::DEPTH], "query_vec")
    documents = frames.vectors(frame, "doc_vec")
    at = np.arange(len(frame)).reshape(QUERIES, DEPTH)
    matrix = torch.randn(DIM, 128)
    block = torch.from_numpy(documents[:DEPTH])
    found: dict[str, tuple[Callable[[], Any], int]] = {
        "product of the candidates with one matrix": (lambda: [block @ matrix for _ in range(QUERIES)], QUERIES),
        "ranking alone": (lambda: frames.with_scores(frame, frame["score"].to_numpy()), QUERIES),
    }
    for features in ("concat", "difference", "cross"):
        nvf = trained(frame, features)
        stage = nvf.reranker()
        found[f"network, {features}"] = (lambda nvf=nvf: nvf.scored(queries, documents, at), QUERIES)
        found[f"stage, {features}"] = (lambda stage=stage: stage(frame), QUERIES)
        found[f"stage, {features}, one query a call"] = (lambda stage=stage: stage(one), 1)
        if features == "difference":
            found["features written out"] = (lambda nvf=nvf: written_out(nvf, queries, documents, at), QUERIES)
    return found


@torch.inference_mode()
def written_out(nvf: mv.NVF, queries: Any, documents: Any, at: Any) -> Any:
    """Option B as the notes have it, 20 queries at once."""
    network = nvf.scorer(DIM)
    scores = []
    for rows in np.array_split(np.arange(len(queries)), len(queries) // 20):
        d = torch.from_numpy(documents[at[rows]])
        q = torch.from_numpy(queries[rows])[:, None].expand_as(d)
        hidden = network.first(torch.cat([q, d, q - d, q * d], dim=-1)).relu()
        scores.append(network.last(network.second(hidden).relu()))
    return scores


def measure() -> dict[str, Any]:
    """Median milliseconds a query of each way."""
    torch.set_num_threads(1)
    timed = ways()
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS + 1):  # the first one warms up
        for name, (way, queries) in timed.items():
            start = time.process_time()
            way()
            found[name].append(1000 * (time.process_time() - start) / queries)
    return {name: round(statistics.median(values[1:]), 4) for name, values in found.items()}


if __name__ == "__main__":
    if "--show" not in sys.argv:
        told = about("python benchmarks/nvf_cost.py", ("torch", "numpy", "pandas"))
        FILE.write_text(json.dumps({"about": told, "ms a query": measure()}, indent=1) + "\n")
    for name, value in json.loads(FILE.read_text())["ms a query"].items():
        print(f"{name:45} {value:.3f}")
