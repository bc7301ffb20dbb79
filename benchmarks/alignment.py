"""What sparse alignment costs beside MaxSim: one query of 32 tokens, 1,000 documents (mean 78 tokens), 128 dimensions.

    python benchmarks/alignment.py             # measures, and writes alignment.json
    python benchmarks/alignment.py --show      # prints what is kept

Ways take turns, so that a slow spell of the machine falls on all of them, each number of threads in a process of its
own. Read the ratios to MaxSim, the first row; milliseconds differ between machines and days.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from limits import about

import pyterrier_mvret as mv
from pyterrier_mvret.scoring import align_grid, align_packed, maxsim_packed

FILE = Path(__file__).resolve().parent / "alignment.json"
ROUNDS = 41
rng = np.random.default_rng(0)
lengths = rng.integers(40, 117, 1000)
offsets = np.concatenate([[0], np.cumsum(lengths)])
vectors = rng.standard_normal((offsets[-1], 128), dtype=np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
query = vectors[rng.integers(0, len(vectors), 32)].copy()
u, v = rng.random(32, dtype=np.float32), rng.random(len(vectors), dtype=np.float32)
v[rng.random(len(v)) < 0.6] = 0  # as gates of 40 % leave them


def ways() -> dict[str, Callable[[], Any]]:
    """Everything that is timed."""
    alignments = [*(mv.TopK(k) for k in (1, 2, 4, 6, 8, 16)), mv.TopP(0.01), mv.TopP(0.05), mv.Soft(1, 0.05)]
    named: dict[str, Callable[[], Any]] = {"MaxSim": lambda: maxsim_packed(query, vectors, offsets)}
    for a in alignments:
        named[repr(a)] = lambda a=a: align_packed(query, vectors, offsets, a)
    for a in (mv.TopK(1), mv.TopK(4), mv.TopP(0.01)):
        named[f"{a!r}, saliences of queries"] = lambda a=a: align_packed(query, vectors, offsets, a, u)
        named[f"{a!r}, saliences of both"] = lambda a=a: align_packed(query, vectors, offsets, a, u, v)
    named["all nine of the paper's grid at once"] = lambda: align_grid(query, vectors, offsets, mv.training.GRID)
    return named


def figures(threads: int) -> dict[str, float]:
    """Median milliseconds of each way."""
    torch.set_num_threads(threads)
    found: dict[str, list[float]] = {name: [] for name in ways()}
    for _ in range(ROUNDS):
        for name, way in ways().items():
            start = time.perf_counter()
            way()
            found[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(times[1:]), 2) for name, times in found.items()}


def in_a_process(threads: int) -> dict[str, float]:
    """:func:`figures` where every library starts with so many threads."""
    count = str(threads)
    command = [sys.executable, __file__, "--threads", count]
    environment = os.environ | {"OMP_NUM_THREADS": count}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def show(results: dict[str, Any]) -> None:
    """Milliseconds and ratios."""
    table = pd.DataFrame(results["milliseconds"]).T
    for column in list(table):
        table[f"{column}, ratio"] = (table[column] / table.loc["MaxSim", column]).round(2)
    print(table.to_string())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--threads"]:
        print(json.dumps(figures(int(sys.argv[2]))))
    elif sys.argv[1:] == ["--show"]:
        show(json.loads(FILE.read_text()))
    else:
        one, two = in_a_process(1), in_a_process(2)
        outcome = {
            "about": about("python benchmarks/alignment.py", ("numpy", "torch")),
            "milliseconds": {name: {"threads 1": one[name], "threads 2": two[name]} for name in one},
        }
        FILE.write_text(json.dumps(outcome, indent=1) + "\n")
        show(outcome)
