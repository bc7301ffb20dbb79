"""Memory and speed of LASPAR's head: 65 thousand to 4 million latents, rows of three kinds, one thread and two.

    python benchmarks/laspar_encoding.py            computes and writes laspar_encoding.json
    python benchmarks/laspar_encoding.py --show     prints the kept table

MiniLM over passages of mvret:mini. Each size and kind is a process of its own, whose largest resident memory is kept.
One thread: processor time; two: elapsed time, so that other work on the machine counts. Least of the repeats. What is
to be read are the ratios: of transformer and head together to the transformer alone in the same process.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASES = [(65_536, "float32"), (65_536, "float16"), (1_048_576, "float32"), (1_048_576, "float16")]
CASES += [(4_194_304, "float32"), (4_194_304, "float16"), (4_194_304, "int8")]
BATCHES, THREADS = (1, 32), (1, 2)
BUDGET = 2.0  # seconds of repeats of one number, at least one repeat
RATIO = "of the transformer's time"
OUT = Path(__file__).resolve().parent / "laspar_encoding.json"


def least(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Least seconds of up to three repeats."""
    best, spent = float("inf"), 0.0
    for _ in range(3):
        start = clock()
        function()
        best = min(best, clock() - start)
        spent += best
        if spent > BUDGET:
            break
    return best


def measured(latents: int, rows: str) -> dict[str, Any]:
    """One size and kind, in this process."""
    import pyterrier as pt
    import torch

    import pyterrier_mvret as mv
    from pyterrier_mvret.encoders import latents as heads
    from pyterrier_mvret.encoders import onednn

    warnings.simplefilter("ignore")  # the head is untrained
    texts = [d["text"] for d in pt.get_dataset("mvret:mini").get_corpus_iter(verbose=False)][:32]
    laspar = mv.Laspar(mv.models.MINILM, latents, rows=rows, device="cpu")
    encoder, head = laspar.encoder, laspar.head

    def pooled(some: list[str]) -> Any:
        inputs = heads.batches.with_prefix(encoder.model, some, "document")
        return heads._pooled(encoder, head, inputs, "document")

    found: dict[str, Any] = {"latents": latents, "rows": rows, "matrix GB": round(head.weight.nbytes / 1e9, 3)}
    with torch.inference_mode(), onednn.linear_layers(encoder.model):
        for threads in THREADS:
            torch.set_num_threads(threads)
            clock = time.process_time if threads == 1 else time.perf_counter
            for size in BATCHES:
                some = texts[:size]
                states = pooled(some)
                transformer = least(lambda some=some: pooled(some), clock)
                projection = least(lambda states=states: head.encode(states), clock)
                found[f"{threads} threads, {size} texts"] = {
                    "texts a second": float(f"{size / (transformer + projection):.3g}"),
                    "head, ms a text": float(f"{projection / size * 1e3:.3g}"),
                    "transformer, ms a text": float(f"{transformer / size * 1e3:.3g}"),
                    RATIO: float(f"{1 + projection / transformer:.3g}"),
                }
    return {**found, "largest resident GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}


def show(outcome: dict[str, Any]) -> None:
    """The table."""
    settings = [f"{threads} threads, {size} texts" for threads in THREADS for size in BATCHES]
    print("| latents | rows | matrix GB | largest resident GB |", " | ".join(settings), "|")
    print("|---:|---|---:|---:|" + "---:|" * len(settings))
    for row in outcome["cases"]:
        cells = (f"{row[s]['texts a second']:g}/s, x{row[s][RATIO]:g}" for s in settings)
        print(f"| {row['latents']:,} | {row['rows']} | {row['matrix GB']} | {row['largest resident GB']} |", end=" ")
        print(" | ".join(cells), "|")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--case", nargs=2, help="one size and kind, printed as JSON")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measured(int(arguments.case[0]), arguments.case[1])))
        sys.exit()
    if not arguments.show:
        cases = []
        for latents, rows in CASES:
            command = [sys.executable, __file__, "--case", str(latents), rows]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print(cases[-1], flush=True)
        about = {"cores": os.cpu_count(), "versions": {n: version(n) for n in ("torch", "sentence-transformers")}}
        OUT.write_text(json.dumps({"about": about, "cases": cases}, indent=1) + "\n")
    show(json.loads(OUT.read_text()))
