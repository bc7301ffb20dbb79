"""MaxSim kernels side by side: one query of 32 tokens, 1,000 documents (mean 78 tokens), 128 dimensions.

    python benchmarks/maxsim.py

Each way is timed on data it has just read ("warm") and after 200 MB of something else have gone through the cache
("cold"), with two threads and with one, each in a process of its own, as some libraries cannot change theirs later;
beside them the bare matrix product, the machine's peak of it, and the speed of reading memory. The peer maxsim-cpu is
timed where it is installed. Writes maxsim.json and prints it. Milliseconds differ between machines and days: read
ratios within one run.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from limits import about, limits
from sentence_transformers.util import maxsim

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.residual import ResidualCodec
from pyterrier_mvret.scoring import fused

try:
    import maxsim_cpu
except ImportError:
    maxsim_cpu = None

REPEATS = 15
rng = np.random.default_rng(0)
lengths = rng.integers(40, 117, 1000)
offsets = np.concatenate([[0], np.cumsum(lengths)])
vectors = rng.standard_normal((offsets[-1], 128), dtype=np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
query = vectors[rng.integers(0, len(vectors), 32)].copy()
half = vectors.astype(np.float16)
scales = np.abs(vectors).max(axis=1) / 127
codes = mv.scoring.StoredVectors(np.rint(vectors / scales[:, None]).astype(np.int8), scales)
codec = ResidualCodec(vectors[rng.permutation(len(vectors))], len(vectors), bits=2)
coded = codec.encode(vectors)
coded = mv.scoring.StoredVectors(
    coded["vectors"], residual=mv.scoring.Residual(coded["centroid_ids"], codec.centroids, codec.values)
)
thirds = (offsets[:-1, None] + lengths[:, None] * np.arange(4) // 3).astype(np.int64)
units = thirds[:, :-1].ravel(), thirds[:, 1:].ravel()
tensor, query_tensor = torch.from_numpy(vectors), torch.from_numpy(query)
tensor_bfloat16 = tensor.bfloat16()
documents = list(torch.split(tensor, lengths.tolist()))
arrays = [d.numpy() for d in documents]
owner = torch.from_numpy(np.repeat(np.arange(1000), lengths))[:, None].expand(-1, 32)
other = np.ones(50_000_000, dtype=np.float32)


def without_kernel() -> Any:
    """What the package does where nothing was compiled."""
    kept, fused.versions = fused.versions, lambda: ()
    try:
        return mv.scoring.maxsim_packed(query, vectors, offsets)
    finally:
        fused.versions = kept


def packed_torch() -> Any:
    """One matrix product, then a segment maximum: the usual fast route by hand."""
    best = torch.full((1000, 32), -torch.inf)
    return best.scatter_reduce_(0, owner, tensor @ query_tensor.T, "amax").sum(1).numpy()


def packed_torch_bfloat16() -> Any:
    """The same with vectors that are kept in bfloat16."""
    best = torch.full((1000, 32), -torch.inf)
    products = (tensor_bfloat16 @ query_tensor.bfloat16().T).float()
    return best.scatter_reduce_(0, owner, products, "amax").sum(1).numpy()


def packed_torch_medium() -> Any:
    """The same with torch's "medium" precision: oneDNN may round to bfloat16; the error says whether it did."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return packed_torch()
    finally:
        torch.set_float32_matmul_precision(before)


def ways(index: mv.MultiVecIndex) -> dict[str, Callable[[], Any]]:
    """Everything that is timed."""
    stage, frame = index.scorer(), pd.DataFrame({"qid": "1", "docno": [f"d{i}" for i in range(1000)]})
    frame = frame.assign(query_embs=[query] * 1000)
    named: dict[str, Callable[[], Any]] = {
        "sentence-transformers maxsim": lambda: maxsim([query_tensor], documents)[0].numpy(),
        "packed torch, scatter_reduce": packed_torch,
        "packed torch, bfloat16, scatter_reduce": packed_torch_bfloat16,
        'packed torch through oneDNN ("medium"), scatter_reduce': packed_torch_medium,
    }
    if maxsim_cpu is not None:
        named["maxsim-cpu"] = lambda: maxsim_cpu.maxsim_scores_variable(query, arrays)
    ours = f"ours, {mv.scoring.backend()}"
    return named | {
        "ours without the kernel, torch": without_kernel,
        f"{ours}, float32": lambda: mv.scoring.maxsim_packed(query, vectors, offsets),
        f"{ours}, float16": lambda: mv.scoring.maxsim_packed(query, half, offsets),
        f"{ours}, bfloat16": lambda: mv.scoring.maxsim_packed(query, tensor_bfloat16, offsets),
        f"{ours}, int8": lambda: mv.scoring.maxsim_packed(query, codes, offsets),
        f"{ours}, residual codes of 2 bits": lambda: mv.scoring.maxsim_packed(query, coded, offsets),
        f"{ours}, float32, sums of the 4 best": lambda: mv.scoring.maxsim_packed(query, vectors, offsets, k=4),
        f"{ours}, float32, maxima of 3 units a document": lambda: mv.scoring.maxima(query, vectors, *units),
        "ours, whole stage from the index, float32": lambda: stage(frame)["score"].to_numpy(),
        "matrix product alone (torch)": lambda: tensor @ query_tensor.T,
        "reading the vectors once (sum)": lambda: vectors.sum(),
    }


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


def figures(threads: int) -> dict[str, Any]:
    """Milliseconds and errors of all ways, and the machine's limits."""
    torch.set_num_threads(threads)
    expected = maxsim([query_tensor], documents)[0].numpy()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        index = mv.MultiVecIndex(Path(folder) / "x.mv", dtype="float32")
        index.index({"docno": f"d{i}", "doc_embs": d} for i, d in enumerate(arrays))
        for name, way in ways(index).items():
            mine = found[name] = {
                f"warm, threads {threads}": timed(way, cold=False),
                f"cold, threads {threads}": timed(way, cold=True),
            }
            scores = np.asarray(way())
            if scores.shape == expected.shape and not name.endswith("best"):
                mine["largest error"] = float(f"{np.abs(scores - expected).max():.1g}")
    return {"milliseconds": found, "limits": limits(threads)}


def in_a_process(threads: int) -> dict[str, Any]:
    """:func:`figures` where every library starts with so many threads."""
    count = str(threads)
    environment = os.environ | {"OMP_NUM_THREADS": count, "RAYON_NUM_THREADS": count}
    command = [sys.executable, __file__, "--threads", count]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Both numbers of threads side by side."""
    two, one = in_a_process(2), in_a_process(1)
    outcome = {
        "about": about("python benchmarks/maxsim.py", ("numpy", "torch", "sentence-transformers", "maxsim-cpu")),
        "limits": {"threads 2": two["limits"], "threads 1": one["limits"]},
        "milliseconds": {name: one["milliseconds"][name] | mine for name, mine in two["milliseconds"].items()},
    }
    (Path(__file__).resolve().parent / "maxsim.json").write_text(json.dumps(outcome, indent=1) + "\n")
    columns = [f"{state}, threads {n}" for n in (2, 1) for state in ("warm", "cold")]
    print(pd.DataFrame(outcome["milliseconds"]).T[[*columns, "largest error"]].to_string())
    print(pd.DataFrame(outcome["limits"]).T.to_string())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--threads"]:
        print(json.dumps(figures(int(sys.argv[2]))))
    else:
        main()
