"""MaxSim kernels side by side: one query of 32 tokens, 1,000 documents (mean 78 tokens), 128 dimensions.

    python benchmarks/maxsim.py

Each way is timed on data it has just read ("warm") and after 200 MB of something else have gone through the cache
("cold"), in turn, and with one and two threads; beside them the bare matrix product and the speed of reading memory.
Writes maxsim.json and prints it. Milliseconds differ between machines and days: read ratios within one run.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sentence_transformers.util import maxsim

import pyterrier_mvret as mv
from pyterrier_mvret.scoring import fused

REPEATS = 15
rng = np.random.default_rng(0)
lengths = rng.integers(40, 117, 1000)
offsets = np.concatenate([[0], np.cumsum(lengths)])
vectors = rng.standard_normal((offsets[-1], 128), dtype=np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
query = vectors[rng.integers(0, len(vectors), 32)].copy()
half, codes = vectors.astype(np.float16), np.rint(vectors * 127).astype(np.int8)
tensor, query_tensor = torch.from_numpy(vectors), torch.from_numpy(query)
documents = list(torch.split(tensor, lengths.tolist()))
owner = torch.from_numpy(np.repeat(np.arange(1000), lengths))[:, None].expand(-1, 32)
other = np.ones(50_000_000, dtype=np.float32)


def without_kernel() -> Any:
    """The numpy route of the package."""
    kept, fused.versions = fused.versions, lambda: ()
    try:
        return mv.scoring.maxsim_packed(query, vectors, offsets)
    finally:
        fused.versions = kept


def packed_torch() -> Any:
    """One matrix product, then a segment maximum: the usual fast route by hand."""
    best = torch.full((1000, 32), -torch.inf)
    return best.scatter_reduce_(0, owner, tensor @ query_tensor.T, "amax").sum(1).numpy()


def timed(function: Callable[[], Any], cold: bool) -> float:
    """Median milliseconds."""
    time.sleep(0.3)  # threads of the libraries timed before wait busily for a while
    function()
    times = []
    for _ in range(REPEATS):
        if cold:
            other.sum()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 2)


def main() -> dict[str, Any]:
    """All figures."""
    expected = maxsim([query_tensor], documents)[0].numpy()
    with tempfile.TemporaryDirectory() as folder:
        index = mv.MultiVecIndex(Path(folder) / "x.mv", dtype="float32")
        index.index({"docno": f"d{i}", "doc_embs": d.numpy()} for i, d in enumerate(documents))
        stage, frame = index.scorer(), pd.DataFrame({"qid": "1", "docno": [f"d{i}" for i in range(1000)]})
        frame = frame.assign(query_embs=[query] * 1000)
        ways: dict[str, Callable[[], Any]] = {
            "sentence-transformers maxsim": lambda: maxsim([query_tensor], documents)[0].numpy(),
            "packed torch, scatter_reduce": packed_torch,
            "ours, numpy": without_kernel,
            f"ours, {mv.scoring.backend()}, float32": lambda: mv.scoring.maxsim_packed(query, vectors, offsets),
            f"ours, {mv.scoring.backend()}, float16": lambda: mv.scoring.maxsim_packed(query, half, offsets),
            f"ours, {mv.scoring.backend()}, int8": lambda: mv.scoring.maxsim_packed(query, codes, offsets),
            "ours, whole stage from the index, float32": lambda: stage(frame)["score"].to_numpy(),
            "matrix product alone (torch)": lambda: tensor @ query_tensor.T,
            "reading the vectors once (sum)": lambda: vectors.sum(),
        }
        figures: dict[str, Any] = {}
        for threads in (2, 1):
            torch.set_num_threads(threads)
            for name, way in ways.items():
                mine = figures.setdefault(name, {})
                mine[f"warm, threads {threads}"] = timed(way, cold=False)
                mine[f"cold, threads {threads}"] = timed(way, cold=True)
        torch.set_num_threads(2)
        for name, way in ways.items():
            scores = np.asarray(way())
            if scores.shape == expected.shape:
                scale = 127 if name.endswith("int8") else 1
                figures[name]["largest error"] = float(f"{np.abs(scores / scale - expected).max():.1g}")
    return figures


if __name__ == "__main__":
    outcome = {
        "about": {
            "command": "python benchmarks/maxsim.py",
            "cores": os.cpu_count(),
            "machine": platform.processor() or platform.machine(),
            "versions": {p: version(p) for p in ("numpy", "torch", "sentence-transformers")},
        },
        "milliseconds": main(),
    }
    (Path(__file__).resolve().parent / "maxsim.json").write_text(json.dumps(outcome, indent=1) + "\n")
    print(pd.DataFrame(outcome["milliseconds"]).T.to_string())
