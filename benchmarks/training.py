"""Queries a second and peak memory of training, with and without gradient caching and cached states.

    python benchmarks/training.py --data FOLDER    # FOLDER/scifact; measures and writes training.json
    python benchmarks/training.py                  # prints the kept table

MiniLM with a head of 128 dimensions, contrastive loss over pairs: the first twelve words of an abstract, and the
abstract. Every setting runs in a process of its own, so that its peak of memory is its own; memory is counted above
what the process holds once model and data are loaded. Quality is no matter here.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from common import load  # noqa: E402

ALL = {"train": "all", "learning_rate": 1e-5}
SETTINGS = {
    "all weights, batch 16": {**ALL, "batch_size": 16},
    "all weights, batch 64": {**ALL, "batch_size": 64},
    "all weights, batch 64, gradient caching by 8": {**ALL, "batch_size": 64, "mini_batch_size": 8},
    "all weights, batch 64, gradient caching by 16": {**ALL, "batch_size": 64, "mini_batch_size": 16},
    "all weights, batch 256, gradient caching by 16": {**ALL, "batch_size": 256, "mini_batch_size": 16},
    "last layer, batch 64": {"train": "last:1", "batch_size": 64},
    "head, batch 64, states computed at each step": {"train": "head", "batch_size": 64, "state_cache": 0},
    "head, batch 64, states kept (first pass and two more)": {"train": "head", "batch_size": 64, "epochs": 3},
}
PAIRS = 256


def one(name: str, folder: Path) -> dict:
    """Trains one setting, in this process."""
    documents = load(collection=str(folder / "scifact"))[0][:PAIRS]
    topics = pd.DataFrame([(d["docno"], " ".join(d["text"].split()[:12])) for d in documents], columns=["qid", "query"])
    qrels = pd.DataFrame([(d["docno"], d["docno"], 1) for d in documents], columns=["qid", "docno", "label"])
    data = mv.training.pairs(topics, qrels, documents)
    colbert = mv.ColBERT(mv.models.MINILM, init_projection=128, doc_length=180)
    colbert.encoder.encode_docs(["everything is loaded"])
    colbert.fit(data.select(range(2)), max_steps=1, batch_size=2, train="head", verbose=False)  # the trainer, too
    before = peak()
    settings = SETTINGS[name]
    started = time.perf_counter()
    colbert.fit(data, verbose=False, **{"epochs": 1, **settings})
    seconds = time.perf_counter() - started
    queries = int(colbert.history["step"].iloc[-1]) * settings["batch_size"]
    return {"queries a second": round(queries / seconds, 1), "peak MiB above start": round(peak() - before)}


def peak() -> float:
    """The most memory this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def score_matrix() -> dict[str, float]:
    """Milliseconds forward and back through a matrix of scores: 32 queries of 20 tokens, 160 documents of 180."""
    import torch
    from sentence_transformers.multi_vector_encoder.scoring import colbert_scores

    from pyterrier_mvret.training.similarity import MaxSimSimilarity

    torch.manual_seed(0)
    queries, documents = torch.randn(32, 20, 128), torch.randn(32, 5, 180, 128)
    masks = {"queries_mask": torch.ones(32, 20, dtype=bool), "documents_mask": torch.ones(32, 5, 180, dtype=bool)}
    ways = {"sentence-transformers": colbert_scores, "ours": MaxSimSimilarity(mv.scoring.MaxSim(), unit=True).matrix}
    found = {name: [] for name in ways}
    for _ in range(9):
        for name, way in ways.items():
            q, d = queries.clone().requires_grad_(), documents.clone().requires_grad_()
            started = time.perf_counter()
            way(q, d, **masks).sum().backward()
            found[name].append(1000 * (time.perf_counter() - started))
    return {name: round(sorted(times)[len(times) // 2], 1) for name, times in found.items()}


def show(found: dict) -> None:
    """The table."""
    print(pd.DataFrame(found["settings"]).T.to_string())
    print("\nscore matrix, forward and back, ms:", found["score matrix, ms"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    parser.add_argument("--one", help="one setting, in this process")
    arguments = parser.parse_args()
    target = HERE / "training.json"
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.data)))
        sys.exit()
    if arguments.data:
        settings = {}
        for name in SETTINGS:
            command = [sys.executable, __file__, "--data", str(arguments.data), "--one", name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            settings[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, settings[name], flush=True)
        about = {
            "command": "python benchmarks/training.py --data FOLDER",
            "pairs": PAIRS,
            "machine": platform.processor() or platform.machine(),
            "versions": {p: version(p) for p in ("torch", "transformers", "sentence-transformers")},
        }
        found = {"about": about, "settings": settings, "score matrix, ms": score_matrix()}
        target.write_text(json.dumps(found, indent=1) + "\n")
    show(json.loads(target.read_text()))
