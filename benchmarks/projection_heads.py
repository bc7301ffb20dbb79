"""Projection heads of "Simple Projection Variants" (arXiv 2510.12327) on a still MiniLM, over several seeds.

    python benchmarks/projection_heads.py --data FOLDER       # trains and writes projection_heads.json
    python benchmarks/projection_heads.py                     # prints the kept table

Regime: the transformer stands still, a head of 128 dimensions is trained on its 384-dimension states; the paper trains
all weights on far more data, so this is another experiment, with the same question: does a deeper head with equal
steps beat one matrix? Contrastive loss, two BM25 negatives a row, equal steps and batches for all.

Training topics: all of hotpot100 and squad-a, half of scifact and of cranfield. A fifth of the latter two chooses the
learning rate of each variant (by nDCG@10 of BM25's 30 documents, reranked, with the first seed). Tests: the other
halves of scifact and cranfield, and two collections that no training topic or text comes from: cacm,
msmarco-dl19-mini. All documents are ranked.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG
from scipy.stats import ttest_rel

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from common import bm25, load  # noqa: E402

FFN, GLU, Linear = mv.heads.FFN, mv.heads.GLU, mv.heads.Linear
VARIANTS = {
    "linear": Linear(128),
    "ffn(2, rho 2)": FFN(128),
    "ffn(2, rho 0.5)": FFN(128, expansion=0.5),
    "ffn+res(2, rho 2)": FFN(128, residual="layer"),
    "ffn+skip(2, rho 2)": FFN(128, residual="skip"),
    "ffn(2, rho 2, gelu)": FFN(128, activation="gelu"),
    "ffn+res(2, rho 2, gelu)": FFN(128, activation="gelu", residual="layer"),
    "glu(rho 2, sigmoid)": GLU(128),
    "glu(rho 2, silu)": GLU(128, activation="silu"),
}
UNSEEN = ("cacm", "msmarco-dl19-mini")
HALVED = ("scifact", "cranfield")
RATES, SEEDS = (3e-4, 1e-3), (0, 1, 2)
STEPS, BATCH, NEGATIVES, DOC_LENGTH, TRAIN_LENGTH = 150, 16, 2, 180, 96
MIN_LABEL = {"cranfield": 2}  # 1 means "of minimum interest" there


class Collection:
    """A collection with the states of its texts before any head, and the topics to be tested."""

    def __init__(self, name: str, data: Path, cache: Path):
        self.name = name
        self.documents, self.topics, self.qrels = load(collection=str(data / name))
        self.docnos = np.array([d["docno"] for d in self.documents])
        self._cache = cache

    @cached_property
    def states(self) -> dict[str, np.ndarray]:
        """Of documents and topics; computed once, and read where they are asked for."""
        file = self._cache / f"{self.name}.npz"
        if not file.exists():
            states = mv.TokenEncoder(mv.models.MINILM, normalize=False, doc_length=DOC_LENGTH, verbose=True)
            docs = states.encode_docs([d["text"] for d in self.documents])
            queries = states.encode_queries(self.topics["query"].tolist())
            np.savez(file, dv=docs.vectors.astype(np.float16), do=docs.offsets, qv=queries.vectors, qo=queries.offsets)
        with np.load(file) as stored:
            return {name: stored[name] for name in stored.files}

    def halves(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Topics to train on and topics to test."""
        return mv.training.split(self.topics, 0.5, seed=0) if self.name in HALVED else (self.topics, self.topics[:0])

    def measure(self, modules: list, topics: pd.DataFrame) -> pd.Series:
        """nDCG@10 of each topic, all documents ranked by MaxSim of the states under a head."""
        ends = self.states["qo"]
        places = np.flatnonzero(self.topics["qid"].isin(topics["qid"]))
        asked = [self.states["qv"][ends[i] : ends[i + 1]] for i in places]
        offsets = np.concatenate([[0], np.cumsum([len(q) for q in asked])])
        queries, documents = project(modules, np.concatenate(asked)), project(modules, self.states["dv"])
        scores = mv.scoring.maxsim_matrix(queries, offsets, documents, self.states["do"])
        rows = []
        for qid, mine in zip(self.topics["qid"].iloc[places], scores, strict=True):
            top = np.argsort(-mine, kind="stable")[:100]
            rows.append(pd.DataFrame({"qid": qid, "docno": self.docnos[top], "score": mine[top]}))
        judged = self.qrels[self.qrels["qid"].isin(topics["qid"])]
        found = pt.Evaluate(pd.concat(rows), judged, [nDCG @ 10], perquery=True)
        return pd.Series({qid: values["nDCG@10"] for qid, values in found.items()})


def project(modules: list, states: np.ndarray) -> np.ndarray:
    """Normalised token vectors of states under the modules of a head."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(states), 1 << 16):
            features = {"token_embeddings": torch.from_numpy(states[start : start + (1 << 16)].astype(np.float32))}
            for module in modules:
                features = module(features)
            parts.append(torch.nn.functional.normalize(features["token_embeddings"], dim=-1).numpy())
    return np.concatenate(parts)


def head_of(encoder: mv.TokenEncoder) -> list:
    """The modules between the transformer and the mask."""
    return list(encoder.model)[1:-2]


def training_sets(collections: list[Collection], scratch: Path) -> tuple:
    """Rows to train on, and what BM25 found for the topics that choose settings, with their judgements."""
    from datasets import concatenate_datasets

    sets, results, judged = [], [], []
    for c in collections:
        train, _ = c.halves()
        valid = train[:0]
        if c.name in HALVED:
            train, valid = mv.training.split(train, 0.2, seed=0)
        words = bm25(c.documents, scratch / f"{c.name}.pisa")
        label = MIN_LABEL.get(c.name, 1)
        sets.append(mv.training.groups(train, c.qrels, words, NEGATIVES, c.documents, short="drop", min_label=label))
        if not len(valid):
            continue
        found = (words % 30)(valid).merge(pd.DataFrame(c.documents), on="docno")
        # collections number topics alike
        results.append(found.assign(qid=c.name + " " + found["qid"], docno=c.name + " " + found["docno"]))
        judged.append(c.qrels.assign(qid=c.name + " " + c.qrels["qid"], docno=c.name + " " + c.qrels["docno"]))
    return concatenate_datasets(sets), (pd.concat(results), pd.concat(judged))


def train(head, rate: float, seed: int, data, valid, cache) -> tuple[mv.ColBERT, float]:
    """A trained model, and nDCG@10 of its reranking of the validation topics."""
    from dataclasses import replace

    colbert = mv.ColBERT(mv.models.MINILM, doc_length=DOC_LENGTH, init_projection=replace(head, seed=seed))
    colbert.fit(
        data,
        valid,
        train="head",
        max_steps=STEPS,
        batch_size=BATCH,
        learning_rate=rate,
        evaluations=1,
        seed=seed,
        state_cache=cache,
        max_length={"document": TRAIN_LENGTH},
        verbose=False,
    )
    value = float(colbert.history["nDCG@10"].dropna().iloc[-1])
    print(f"    {head} {rate}: {value:.4f}", flush=True)
    return colbert, value


def run(data_folder: Path, cache_folder: Path, target: Path) -> None:
    """All variants, seeds and collections; what is known is written after each variant."""
    started = time.time()
    collections = {n: Collection(n, data_folder, cache_folder) for n in ("hotpot100", "squad-a", *HALVED, *UNSEEN)}
    tests = {n: collections[n].topics if n in UNSEEN else collections[n].halves()[1] for n in (*HALVED, *UNSEEN)}
    with tempfile.TemporaryDirectory() as scratch:
        data, valid = training_sets([collections[n] for n in ("hotpot100", "squad-a", *HALVED)], Path(scratch))
    for topics in tests.values():
        mv.training.refuse_test_topics(data, topics, qids=False)  # collections number topics alike
    cache = mv.training.StateCache(gib=8)

    def tested(modules: list) -> dict[str, pd.Series]:
        return {name: collections[name].measure(modules, topics) for name, topics in tests.items()}

    print(f"{len(data)} rows, {valid[0]['qid'].nunique()} validation topics; {time.time() - started:.0f} s", flush=True)
    outcomes: dict[str, list[dict]] = {"untrained, 384 dimensions": [{"seed": None, "tests": tested([])}]}
    outcomes["untrained linear"] = [
        {"seed": s, "tests": tested(head_of(mv.TokenEncoder(mv.models.MINILM, init_projection=Linear(128, seed=s))))}
        for s in SEEDS
    ]
    chosen = {}
    for name, head in VARIANTS.items():
        tried = {rate: train(head, rate, SEEDS[0], data, valid, cache) for rate in RATES}
        rate = max(tried, key=lambda r: tried[r][1])
        chosen[name] = {"rate": rate, "validation": {str(r): round(v, 4) for r, (_, v) in tried.items()}}
        rows = []
        for seed in SEEDS:
            colbert, value = tried[rate] if seed == SEEDS[0] else train(head, rate, seed, data, valid, cache)
            row = {"seed": seed, "validation": value, "tests": tested(head_of(colbert.encoder))}
            row["loss"] = float(colbert.history["loss"].dropna().tail(10).mean())
            row["folding"] = folding_error(colbert.encoder)
            rows.append(row)
        outcomes[name] = rows
        means = {n: round(float(np.mean([r["tests"][n].mean() for r in rows])), 4) for n in tests}
        print(name, chosen[name], means, f"{time.time() - started:.0f} s", flush=True)
        found = {
            "about": about(len(data), int(valid[0]["qid"].nunique())),
            "tests": {test: len(topics) for test, topics in tests.items()},
            "rows": summary(outcomes, chosen),
        }
        target.write_text(json.dumps(found, indent=1) + "\n")


def folding_error(encoder: mv.TokenEncoder) -> float | None:
    """Largest difference of a token vector after folding the head into one matrix; none if it does not fold."""
    try:
        folded = encoder.fold()
    except ValueError:
        return None
    texts = ["Projection heads with identity activations are one matrix.", "A second text."]
    return float(np.abs(encoder.encode_docs(texts).vectors - folded.encode_docs(texts).vectors).max())


def summary(outcomes: dict[str, list[dict]], chosen: dict) -> list[dict]:
    """Mean and spread over seeds, and the paired test over topics against the linear head, means of seeds."""
    base = per_topic(outcomes["linear"])
    rows = []
    for name, seeds in outcomes.items():
        mine = per_topic(seeds)
        row = {
            "head": name,
            "parameters": VARIANTS[name].parameters(384) if name in VARIANTS else None,
            **chosen.get(name, {}),
            "folding": max((s["folding"] for s in seeds if s.get("folding") is not None), default=None),
        }
        for test, values in mine.items():
            by_seed = [float(s["tests"][test].mean()) for s in seeds]
            row[test] = {
                "mean": round(float(np.mean(by_seed)), 4),
                "seeds": [round(v, 4) for v in by_seed],
                "p": None if name == "linear" else float(ttest_rel(values, base[test]).pvalue),
            }
        averages = [float(np.mean([s["tests"][t].mean() for t in mine])) for s in seeds]
        row["average"] = {"mean": round(float(np.mean(averages)), 4), "seeds": [round(v, 4) for v in averages]}
        pooled, pooled_base = (np.concatenate([side[t].to_numpy() for t in mine]) for side in (mine, base))
        row["p over all topics"] = None if name == "linear" else float(ttest_rel(pooled, pooled_base).pvalue)
        rows.append(row)
    return rows


def per_topic(seeds: list[dict]) -> dict[str, pd.Series]:
    """Each topic's mean over seeds."""
    return {test: pd.concat([s["tests"][test] for s in seeds], axis=1).mean(axis=1) for test in seeds[0]["tests"]}


def about(rows: int, topics: int) -> dict:
    """What a reader needs to know beside the figures."""
    packages = ("torch", "transformers", "sentence-transformers", "pyterrier")
    return {
        "command": "python benchmarks/projection_heads.py --data FOLDER",
        "model": "all-MiniLM-L6-v2, still; heads of 128 dimensions",
        "training": f"{rows} rows, {NEGATIVES} BM25 negatives each, {STEPS} steps of {BATCH}, {TRAIN_LENGTH} tokens",
        "validation": f"{topics} topics, BM25's 30 reranked, nDCG@10",
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in packages},
    }


def show(found: dict) -> None:
    """The table."""
    tests = list(found["tests"])
    table = []
    for row in found["rows"]:
        cells = {"head": row["head"], "parameters": row["parameters"], "rate": row.get("rate")}
        cells.update({t: f"{row[t]['mean']:.3f}" for t in tests})
        low, high = min(row["average"]["seeds"]), max(row["average"]["seeds"])
        cells["average"] = f"{row['average']['mean']:.4f} ({low:.4f} to {high:.4f})"
        cells["p"] = "" if row["p over all topics"] is None else f"{row['p over all topics']:.3f}"
        table.append(cells)
    print(pd.DataFrame(table).to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    parser.add_argument("--cache", type=Path, help="where states of texts are kept between runs")
    arguments = parser.parse_args()
    target = HERE / "projection_heads.json"
    if arguments.data:
        with tempfile.TemporaryDirectory() as folder:
            cache = arguments.cache or Path(folder)
            run(arguments.data, cache, target)
    show(json.loads(target.read_text()))
