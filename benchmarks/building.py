"""How fast an index is built on one core, and how much memory that takes.

    python benchmarks/building.py

Speed: 3,000 documents of 60 to 80 vectors, 128 dimensions, float32, handed over as records; the best of five builds,
everything included (checks, conversion, checksums, writing, syncing the files). Memory: the highest resident size of
a process while it builds, over its size before, for two sizes of collection; only names and hashes may make a
difference. Linux only. Writes building.json and prints it.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyterrier_mvret as mv

REPEATS = 5
DTYPES = ("float32", "float16", "int8")
SIZES = (20_000, 80_000)


def records() -> Callable[[], Iterator[dict[str, Any]]]:
    """A stream that costs nothing but slices."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(60, 81, 3000))])
    vectors = rng.standard_normal((offsets[-1], 128), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return lambda: (
        {"docno": f"d{i}", "doc_embs": vectors[start:end]} for i, (start, end) in enumerate(pairwise(offsets.tolist()))
    )


def speed(stream: Callable[[], Iterator[dict[str, Any]]], dtype: str) -> dict[str, float]:
    """Vectors a second."""
    seconds, processor = [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            start, start_processor = time.perf_counter(), time.process_time()
            index = mv.MultiVecIndex(Path(folder) / "x.mv", dtype=dtype).index(stream())
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_processor)
            vectors = index.info()["vectors"]
    return {
        "vectors a second": round(vectors / min(seconds), -3),
        "vectors a second of processor time": round(vectors / min(processor), -3),
    }


def resident(field: str) -> float:
    """A line of the process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def memory(documents: int) -> float:
    """Megabytes that building takes; in this process, so once a process."""
    array = np.ones((30, 64), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        for n in (300, documents):  # the first build loads what is loaded on first use
            before = resident("VmRSS")
            stream = ({"docno": f"d{i}", "doc_embs": array} for i in range(n))
            mv.MultiVecIndex(Path(folder) / f"{n}.mv").index(stream)
    return round(resident("VmHWM") - before, 1)


def main() -> dict[str, Any]:
    """All figures."""
    stream = records()
    command = [sys.executable, __file__]
    return {
        "speed": {dtype: speed(stream, dtype) for dtype in DTYPES},
        "memory": {
            f"{n} documents of 30 vectors, 64 dimensions": {
                "megabytes stored (float16)": round(n * 30 * 64 * 2 / 1e6, 1),
                "megabytes of memory": float(subprocess.run([*command, str(n)], stdout=-1, check=True).stdout),
            }
            for n in SIZES
        },
    }


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        print(memory(int(sys.argv[1])))
        sys.exit()
    outcome = {
        "about": {
            "command": "python benchmarks/building.py",
            "machine": platform.processor() or platform.machine(),
            "versions": {p: version(p) for p in ("numpy", "pandas")},
        },
        **main(),
    }
    text = json.dumps(outcome, indent=1)
    (Path(__file__).resolve().parent / "building.json").write_text(text + "\n")
    print(text)
