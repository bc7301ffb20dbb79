"""ALIGNER's few-shot alignment adaptation (arXiv 2211.01267, Table 2) on an untrained MiniLM, beside a length prior.

    python benchmarks/alignment_adaptation.py --data FOLDER   # scores and writes alignment_adaptation.json
    python benchmarks/alignment_adaptation.py                 # prints the kept table

Candidates are each topic's best 100 by MaxSim over all documents; the paper's nine strategies score them anew. Eight
topics, drawn at random, choose a strategy by nDCG@10; the other topics of the collection measure it. Three rules: the
paper's (the best mean), ours (a gain of more than one standard error, else one token), and two standard errors.

A larger k favours long documents and a larger p short ones, so beside each choice stands one that can do nothing else:
sim + c ln(m) with one aligned token, m document tokens, and nine values of c, chosen on the same topics by the same
rules.

Nothing was tuned on these topics: the grid is the paper's, and margins and values of c were written down before.
"""

import argparse
import json
import platform
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from projection_heads import DOC_LENGTH, Collection, project

import pyterrier_mvret as mv
from pyterrier_mvret import frames
from pyterrier_mvret.training.adaptation import GRID, choose

HERE = Path(__file__).resolve().parent
COLLECTIONS = ["hotpot100", "scifact", "cranfield", "vaswani", "squad-a", "limit-small", "cacm", "msmarco-dl19-mini"]
DEPTH, TOPICS, SEEDS, MARGINS = 100, 8, range(20), (0, 1, 2)
PRIORS = (0.0, 0.005, -0.005, 0.01, -0.01, 0.02, -0.02, 0.04, -0.04)  # as many as strategies; none and small first
FAMILIES = ("alignment", "length prior")
MEASURE = "nDCG@10"


class Scored(NamedTuple):
    """Candidates of the judged topics of a collection, under two families of settings."""

    results: pd.DataFrame  # qid, docno, tokens
    qrels: pd.DataFrame
    scores: dict[str, tuple[tuple, np.ndarray]]  # family -> settings, (settings, rows)


def scored(collection: Collection) -> Scored:
    """Each topic's best documents by MaxSim, scored by every strategy and every prior."""
    states = collection.states
    queries, documents = project([], states["qv"]), project([], states["dv"])
    ends, starts = states["qo"], states["do"]
    lengths = np.diff(starts)
    relevant = set(collection.qrels.loc[collection.qrels["label"] > 0, "qid"])
    rows, grids = [], []
    for i, (qid, mine) in enumerate(
        zip(collection.topics["qid"], mv.scoring.maxsim_matrix(queries, ends, documents, starts), strict=True)
    ):
        if qid not in relevant:
            continue
        top = np.argsort(-mine, kind="stable")[:DEPTH]
        vectors = np.concatenate([documents[starts[d] : starts[d + 1]] for d in top])
        offsets = np.concatenate([[0], np.cumsum(lengths[top])])
        grids.append(mv.scoring.align_grid(queries[ends[i] : ends[i + 1]], vectors, offsets, GRID))
        rows.append(pd.DataFrame({"qid": qid, "docno": collection.docnos[top], "tokens": lengths[top]}))
    results, scores = pd.concat(rows, ignore_index=True), np.concatenate(grids, axis=1)
    one = scores[GRID.index(mv.TopK(1))]
    priors = one + np.array(PRIORS)[:, None] * np.log(results["tokens"].to_numpy())
    qrels = collection.qrels[collection.qrels["qid"].isin(results["qid"])]
    return Scored(results, qrels, dict(zip(FAMILIES, ((GRID, scores), (PRIORS, priors)), strict=True)))


def fixed(data: Scored, family: str) -> tuple[pd.DataFrame, list[dict]]:
    """nDCG@10 of every topic under every setting, and a row a setting: over all topics, with the top 10's length."""
    grid, scores = data.scores[family]
    everything = choose(data.results, scores, data.qrels, grid, MEASURE)
    rows = []
    for row, values in zip(scores, everything.table.to_dict("records"), strict=True):
        first = frames.with_scores(data.results, row)
        tokens = first.loc[first["rank"] < 10, "tokens"].mean()
        rows.append({"setting": repr(values["alignment"]), "tokens in top 10": round(float(tokens), 1)})
        rows[-1].update({name: round(float(values[name]), 4) for name in (MEASURE, "gain", "standard_error")})
        rows[-1].update({name: int(values[name]) for name in ("wins", "losses")})
    return everything.by_query, rows


def adapted(data: Scored, family: str, by_query: pd.DataFrame, margin: float) -> dict:
    """What the choice of eight topics is worth on the others, over random draws of eight."""
    grid, scores = data.scores[family]
    qids = data.results["qid"].unique()
    outcomes = []
    for seed in SEEDS:
        drawn = np.random.default_rng(seed).choice(qids, TOPICS, replace=False)
        mine = data.results["qid"].isin(drawn).to_numpy()
        judged = data.qrels[data.qrels["qid"].isin(drawn)]
        chosen = choose(data.results[mine], scores[:, mine], judged, grid, MEASURE, margin).alignment
        others = by_query.drop(index=drawn).mean()
        outcomes.append((chosen, others[grid[0]], others[chosen], others.max()))
    settings, one, value, best = zip(*outcomes, strict=True)
    gains = np.subtract(value, one)
    return {
        "margin": margin,
        "k=1": spread(one),
        "chosen": spread(value),
        "difference": spread(gains),
        "least": round(float(gains.min()), 4),
        "most": round(float(gains.max()), 4),
        "oracle difference": spread(np.subtract(best, one)),
        "kept": sum(setting == grid[0] for setting in settings),
        "choices": {repr(setting): n for setting, n in Counter(settings).most_common()},
        "differences": [round(float(g), 4) for g in gains],
    }


def spread(values) -> list[float]:
    """Mean and standard deviation (ddof 0) over draws."""
    return [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]


def run(data_folder: Path, cache_folder: Path, target: Path) -> None:
    """All collections; what is known is written after each."""
    found = {"about": about(), "collections": {}}
    for name in COLLECTIONS:
        started = time.time()
        collection = Collection(name, data_folder, cache_folder)
        lengths = dict(zip(collection.docnos, np.diff(collection.states["do"]), strict=True))
        relevant = collection.qrels.loc[collection.qrels["label"] > 0, "docno"].map(lengths)
        data = scored(collection)
        row = {
            "documents": len(collection.documents),
            "topics": int(data.results["qid"].nunique()),
            "tokens": round(float(np.mean(list(lengths.values()))), 1),
            "tokens of candidates": round(float(data.results["tokens"].mean()), 1),
            "tokens of relevant documents": round(float(relevant.mean()), 1),
        }
        for family in data.scores:
            by_query, rows = fixed(data, family)
            row[family] = {"fixed": rows, "adapted": [adapted(data, family, by_query, m) for m in MARGINS]}
        found["collections"][name] = row
        target.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {time.time() - started:.0f} s", flush=True)


def about() -> dict:
    """What a reader needs to know beside the figures."""
    packages = ("torch", "transformers", "sentence-transformers", "pyterrier", "ir-measures")
    return {
        "command": "python benchmarks/alignment_adaptation.py --data FOLDER",
        "model": f"all-MiniLM-L6-v2, untrained for late interaction, no projection, {DOC_LENGTH} document tokens",
        "candidates": f"best {DEPTH} by MaxSim over all documents",
        "draws": f"{len(SEEDS)} draws of {TOPICS} topics; measured on all other topics; spreads are over draws, ddof 0",
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in packages},
    }


def show(found: dict) -> None:
    """Fixed settings with the lengths they prefer, and what a choice by eight topics is worth."""
    collections = found["collections"]
    for family in FAMILIES:
        values, tokens = [], []
        for name, c in collections.items():
            rows = c[family]["fixed"]
            values.append({"collection": name} | {r["setting"]: f"{r[MEASURE]:.3f}" for r in rows})
            tokens.append({"collection": name} | {r["setting"]: f"{r['tokens in top 10']:.0f}" for r in rows})
            tokens[-1]["relevant"] = f"{c['tokens of relevant documents']:.0f}"
        print(f"\n{family}: {MEASURE}, all topics\n{pd.DataFrame(values).to_string(index=False)}")
        print(f"\n{family}: mean document tokens in the top 10\n{pd.DataFrame(tokens).to_string(index=False)}")
    for family in FAMILIES:
        for place, margin in enumerate(MARGINS):
            outcomes = {name: c[family]["adapted"][place] for name, c in collections.items()}
            table = pd.DataFrame([line(name, outcome) for name, outcome in outcomes.items()]).to_string(index=False)
            mean = np.mean([outcome["difference"][0] for outcome in outcomes.values()])
            print(f"\n{family}, chosen by {TOPICS} topics, margin {margin}: mean difference {mean:+.4f}\n{table}")


def line(name: str, outcome: dict) -> dict[str, str]:
    """A row of the table of choices."""
    return {
        "collection": name,
        "k=1": f"{outcome['k=1'][0]:.3f}",
        "difference": f"{outcome['difference'][0]:+.4f} ± {outcome['difference'][1]:.4f}",
        "least": f"{outcome['least']:+.3f}",
        "most": f"{outcome['most']:+.3f}",
        "oracle": f"{outcome['oracle difference'][0]:+.4f}",
        "kept": f"{outcome['kept']}/{len(outcome['differences'])}",
        "choices": ", ".join(f"{n} {setting}" for setting, n in outcome["choices"].items()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    parser.add_argument("--cache", type=Path, help="where states of texts are kept between runs")
    arguments = parser.parse_args()
    target = HERE / "alignment_adaptation.json"
    if arguments.data:
        with tempfile.TemporaryDirectory() as folder:
            run(arguments.data, arguments.cache or Path(folder), target)
    show(json.loads(target.read_text()))
