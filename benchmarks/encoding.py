"""Speed and fidelity of encoding: PyTorch as it comes, and each arithmetic and backend of TokenEncoder.

    python benchmarks/encoding.py [--data FOLDER] [--threads N]

Passages of mvret:mini with MiniLM. One thread unless told otherwise, and processor time, least of the repeats in turn:
what other programs do on the machine counts as little as it can. With more threads, elapsed time. Absolute rates depend
on the machine: read the ratios, against PyTorch over passages sorted by length in batches of 32. Errors are against its
vectors. nDCG@10 is of all documents of squad-a under --data, else of mvret:mini. Writes encoding.json and prints it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
import torch
from ir_measures import nDCG
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import pyterrier_mvret as mv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import load

PASSAGES, REPEATS, BATCH = 64, 5, 32
PLAIN = "PyTorch, sorted"


class Plain:
    """What one writes without this package: batches of 32 texts of like length, and rows cut out text by text."""

    def __init__(self, length: int):
        self.tokenizer = AutoTokenizer.from_pretrained(mv.models.MINILM)
        self.model = AutoModel.from_pretrained(mv.models.MINILM).eval()
        self.length = length

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Unit vectors of each text's tokens."""
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors: dict[int, np.ndarray] = {}
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            features = self.tokenizer(
                [texts[i] for i in places], padding=True, truncation=True, max_length=self.length, return_tensors="pt"
            )
            with torch.inference_mode():
                states = torch.nn.functional.normalize(self.model(**features).last_hidden_state, dim=-1)
            for place, rows, mask in zip(places, states, features["attention_mask"].bool(), strict=True):
                vectors[place] = rows[mask].numpy()
        return [vectors[i] for i in range(len(texts))]


def encoders() -> dict[str, mv.TokenEncoder]:
    """Each arithmetic and backend that this installation and processor have."""
    made = {"float32": mv.TokenEncoder(mv.models.MINILM, device="cpu")}
    made["bfloat16"] = mv.TokenEncoder(mv.models.MINILM, device="cpu", dtype="bfloat16")
    for dtype in ("float32", "bfloat16"):
        encoder = mv.TokenEncoder(mv.models.MINILM, device="cpu", dtype=dtype, backend="openvino")
        try:
            encoder.model  # noqa: B018 (opened to see whether it can be)
        except (ImportError, ValueError) as error:
            print(f"left out: {error}")
        else:
            made[f"openvino {dtype}"] = encoder
    return made


def seconds(functions: dict[str, Callable[[], Any]], clock: Callable[[], float]) -> dict[str, float]:
    """Least seconds of each over the repeats, run in turn."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(REPEATS):
        for name, function in functions.items():
            start = clock()
            function()
            best[name] = min(best[name], clock() - start)
    return best


def speed(threads: int, kinds: dict[str, mv.TokenEncoder]) -> dict[str, Any]:
    """Passages a second, ratios, and errors against plain PyTorch."""
    corpus = pt.get_dataset("mvret:mini").get_corpus_iter(verbose=False)
    texts = [document["text"] for document in corpus][:PASSAGES]
    single = SentenceTransformer(mv.models.MINILM, device="cpu")
    plain = Plain(kinds["float32"].describe()["document"]["length"])

    def unsorted() -> None:
        for start in range(0, len(texts), BATCH):
            single.encode(texts[start : start + BATCH], output_value="token_embeddings", show_progress_bar=False)

    functions: dict[str, Callable[[], Any]] = {"sentence-transformers, unsorted": unsorted}
    functions[PLAIN] = lambda: plain(texts)
    functions |= {name: lambda e=encoder: e.encode_docs(texts) for name, encoder in kinds.items()}
    measured = seconds(functions, time.process_time if threads == 1 else time.perf_counter)
    expected = np.concatenate(plain(texts))
    systems = {}
    for name, took in measured.items():
        row: dict[str, Any] = {
            "passages a second": round(len(texts) / took, 1),
            "ratio": round(measured[PLAIN] / took, 2),
        }
        if name in kinds:
            vectors = kinds[name].encode_docs(texts).vectors
            row["largest error"] = float(f"{np.abs(vectors - expected).max():.2g}")
            row["least cosine"] = round(float((vectors * expected).sum(1).min()), 6)
        systems[name] = row
    return {"tokens a passage": round(len(expected) / len(texts), 1), "systems": systems}


def quality(data: Path | None, kinds: dict[str, mv.TokenEncoder]) -> dict[str, Any]:
    """nDCG@10 over all documents of a collection, index and queries in the same arithmetic."""
    documents, topics, qrels = load(collection=None if data is None else str(data / "squad-a"))
    found = {}
    for name, encoder in kinds.items():
        colbert = mv.ColBERT(encoder)
        with tempfile.TemporaryDirectory() as folder:
            index = mv.MultiVecIndex(Path(folder) / "index.mv", dtype="float32")
            (colbert.doc_encoder() >> index).index(documents)
            system = colbert.query_encoder() >> index.retriever(num_results=10)
            table = pt.Experiment([system], topics, qrels, [nDCG @ 10])
        found[name] = round(float(table["nDCG@10"].iloc[0]), 4)
    differences = {name: round(value - found["float32"], 4) for name, value in found.items()}
    return {
        "collection": "mvret:mini" if data is None else "squad-a",
        "documents": len(documents),
        "topics": len(topics),
        "nDCG@10": found,
        "difference to float32": differences,
    }


def processor() -> dict[str, Any]:
    """What of the processor decides: vector instructions and bfloat16 arithmetic."""
    capability = torch.backends.cpu.get_cpu_capability()
    has = {"bfloat16": "avx512_bf16", "AMX": "amx_bf16"}
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return {"vectors": capability, **{name: flag in flags for name, flag in has.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds the collection squad-a")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kinds = encoders()
    names = ("torch", "transformers", "sentence-transformers", *(["openvino"] if len(kinds) > 2 else []))
    outcome = {
        "about": {
            "command": "python benchmarks/encoding.py",
            "threads": arguments.threads,
            "time": "processor" if arguments.threads == 1 else "elapsed",
            "cores": os.cpu_count(),
            "processor": processor(),
            "versions": {name: version(name) for name in names},
        },
        "speed": speed(arguments.threads, kinds),
        "quality": quality(arguments.data, kinds),
    }
    text = json.dumps(outcome, indent=1)
    (Path(__file__).resolve().parent / "encoding.json").write_text(text + "\n")
    print(text)
