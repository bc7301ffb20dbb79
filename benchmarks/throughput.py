"""Speed of encoding and of scoring, in one process beside sentence-transformers' own.

    python benchmarks/throughput.py

Writes throughput.json and prints it. Absolute times depend on the machine: read the ratios. Scoring uses random unit
vectors: one query of 32 tokens, 1,000 documents of 40 to 116 tokens (mean 78), 128 dimensions. Encoding uses the
passages and topics of mvret:mini with MiniLM.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import maxsim

import pyterrier_mvret as mv

REPEATS = 9


def seconds(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each, run in turn so that the machine's moods fall on all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(REPEATS):
        for function, mine in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


def scoring() -> dict[str, Any]:
    """One query against a thousand documents."""
    rng = np.random.default_rng(0)

    def unit(n: int) -> np.ndarray:
        v = rng.standard_normal((n, 128), dtype=np.float32)
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    lengths = rng.integers(40, 117, 1000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vectors, query = unit(offsets[-1]), unit(32)
    documents = [vectors[a:b] for a, b in pairwise(offsets)]
    tensors, query_tensor = [torch.from_numpy(d) for d in documents], torch.from_numpy(query)
    np.testing.assert_allclose(
        mv.scoring.maxsim_packed(query, vectors, offsets), maxsim([query_tensor], tensors)[0].numpy(), rtol=1e-5
    )
    with tempfile.TemporaryDirectory() as folder:
        stages = {}
        docnos = [f"d{i}" for i in range(1000)]
        for dtype in ("float32", "float16", "int8"):
            index = mv.MultiVecIndex(Path(folder) / f"{dtype}.mv", dtype=dtype)
            index.index({"docno": n, "doc_embs": d} for n, d in zip(docnos, documents, strict=True))
            stages[dtype] = index.scorer()
        frame = pd.DataFrame({"qid": "1", "docno": docnos}).assign(query_embs=[query] * 1000)
        names = ["library", "ours", "product alone", *(f"stage {d}" for d in stages)]
        measured = seconds(
            lambda: maxsim([query_tensor], tensors),
            lambda: mv.scoring.maxsim_packed(query, vectors, offsets),
            lambda: query @ vectors.T,
            *(lambda stage=stage: stage(frame) for stage in stages.values()),
        )
    ms = {name: round(1e3 * s, 2) for name, s in zip(names, measured, strict=True)}
    return {
        "ms": ms,
        "ours against sentence-transformers' maxsim": round(ms["library"] / ms["ours"], 1),
        "ours against the matrix product alone": round(ms["ours"] / ms["product alone"], 2),
        "scores a second, ours": round(1000 / measured[1]),
    }


def encoding() -> dict[str, Any]:
    """Documents and queries a second."""
    mini = pt.get_dataset("mvret:mini")
    texts = [d["text"] for d in mini.get_corpus_iter(verbose=False)]
    queries = mini.get_topics()["query"].tolist()
    encoder = mv.TokenEncoder(mv.models.MINILM, device="cpu")
    single = SentenceTransformer(mv.models.MINILM, device="cpu")
    encoder.encode_docs(texts[:8])
    tokens = len(encoder.encode_docs(texts).vectors) / len(texts)
    names = ["documents", "queries", "documents, library's token states"]
    measured = seconds(
        lambda: encoder.encode_docs(texts),
        lambda: encoder.encode_queries(queries),
        lambda: single.encode(texts, output_value="token_embeddings", show_progress_bar=False),
    )
    counts = [len(texts), len(queries), len(texts)]
    rates = {name: round(n / s) for name, n, s in zip(names, counts, measured, strict=True)}
    return {"a second": rates, "tokens a document": round(tokens, 1)}


if __name__ == "__main__":
    packages = ("torch", "numpy", "sentence-transformers")
    outcome = {
        "about": {
            "command": "python benchmarks/throughput.py",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "versions": {p: version(p) for p in packages},
        },
        "scoring": scoring(),
        "encoding": encoding(),
    }
    text = json.dumps(outcome, indent=1)
    (Path(__file__).resolve().parent / "throughput.json").write_text(text + "\n")
    print(text)
