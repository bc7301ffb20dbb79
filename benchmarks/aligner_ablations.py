"""Does training with token salience help (ALIGNER, arXiv 2211.01267), and how far do its shares matter?

    python benchmarks/aligner_ablations.py --data FOLDER --cache FOLDER   # trains and writes aligner_ablations.json
    python benchmarks/aligner_ablations.py                                # prints the kept table

The paper prints no figure of a model that was trained with salience and not pruned, and one pair of shares alone.
Regime and training data are those of ``projection_heads.py``: a still MiniLM, a linear head of 128 dimensions,
contrastive loss with two BM25 negatives, equal steps, batches and seeds for all runs. Tests: the other half of
cranfield, and cacm and msmarco-dl19-mini, which no training topic or text comes from. All documents are ranked. A run
that was stopped goes on.
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from aligner_conditions import CANDIDATES, MEASURES, SHARES, Condition, Tested, fractional, outcomes, through
from aligner_contrasts import contrasts, spread, summary
from projection_heads import (
    BATCH,
    DOC_LENGTH,
    HALVED,
    NEGATIVES,
    SEEDS,
    STEPS,
    TRAIN_LENGTH,
    UNSEEN,
    Collection,
    training_sets,
)

import pyterrier_mvret as mv
from pyterrier_mvret import Aligner

HERE = Path(__file__).resolve().parent
TESTS = ("cranfield", *UNSEEN)


@dataclass(frozen=True)
class Run:
    """How a model is trained; with ``base``, heads alone on that run's vectors."""

    alpha_q: float = 0.5
    alpha_d: float = 0.4
    gate: Any = "lp"
    normalizer: Any = "alignment"
    align_over: Any = "all"
    base: str | None = None

    @property
    def scores(self) -> tuple[str, ...]:
        """Rules that the model is tested by."""
        if self.gate == "none":
            return ("off",)
        return ("alignment", "query", "off", *(("salient",) if self.align_over == "salient" else ()))

    @property
    def told(self) -> tuple[str, ...]:
        """Rules that are printed: of variants of R0 but the normaliser's those as trained, and without saliences."""
        as_trained = "salient" if self.align_over == "salient" else "alignment"
        return (as_trained, "off") if self.shares != (0.5, 0.4) or as_trained == "salient" else self.scores

    @property
    def shares(self) -> tuple[float, float]:
        """Of tokens for which gates open."""
        return self.alpha_q, self.alpha_d

    @property
    def curve(self) -> tuple[str, ...]:
        """Rules along the curve: without saliences, and as trained."""
        return ("off",) if self.gate == "none" else ("off", self.normalizer)


RUNS = {
    "R0": Run(),
    "R0q": Run(normalizer="query"),
    "R1": Run(gate="none"),
    "R1+": Run(base="R1"),
    "R1+q": Run(normalizer="query", base="R1"),
    "R0s": Run(align_over="salient"),
    "A1": Run(alpha_q=0.2),
    "A2": Run(alpha_d=0.2),
    "A3": Run(alpha_d=0.6),
    "A4": Run(alpha_q=0.8),
}
CURVES = ("R0", "R0q", "R1", "R1+")  # tested with documents pruned by more shares
COLUMNS = ("run", "seed", "collection", *Condition._fields, *MEASURES, "kept", "bytes", "zero")


def train(run: Run, seed: int, data: Any, states: mv.training.StateCache, base: Aligner | None) -> Aligner:
    """A trained model; its vectors are those of ``base`` where there is one."""
    start = {"init_projection": mv.heads.Linear(128, seed=seed), "doc_length": DOC_LENGTH}
    encoder = mv.TokenEncoder(mv.models.MINILM, **start) if base is None else mv.TokenEncoder(base.encoder.model)
    aligner = Aligner(encoder, normalizer=run.normalizer, align_over=run.align_over)
    heads = {"gate": run.gate, "alpha_q": run.alpha_q, "alpha_d": run.alpha_d, "head_seed": seed}
    how = {"train": "head" if base is None else "salience", **heads, **_plan(seed, states)}
    return aligner.fit_encoder(data, **how)


def _plan(seed: int, states: mv.training.StateCache, steps: int = STEPS) -> dict[str, Any]:
    lengths = {"max_length": {"document": TRAIN_LENGTH}}
    return {"max_steps": steps, "batch_size": BATCH, "seed": seed, "state_cache": states, "verbose": False, **lengths}


def check_no_salience(data: Any, states: mv.training.StateCache, seed: int = 0, steps: int = 5) -> None:
    """Without salience an Aligner is ColBERT with scores divided by query tokens, bit for bit; else AssertionError."""
    plan = {"train": "head", **_plan(seed, states, steps)}
    start = {"init_projection": mv.heads.Linear(128, seed=seed), "doc_length": DOC_LENGTH}
    aligner = Aligner(mv.models.MINILM, **start).fit_encoder(data, gate="none", **plan)
    colbert = mv.ColBERT(mv.models.MINILM, normalize="query", **start)
    colbert.fit(data, loss=mv.training.Contrastive(scale=20), **plan)
    ours, theirs = (dict(model.encoder.model.named_parameters()) for model in (aligner, colbert))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert aligner.history["loss"].equals(colbert.history["loss"])


def run(data_folder: Path, cache: Path, target: Path, seeds: tuple[int, ...]) -> None:
    """All runs of one seed, then the next; what is known is written after each."""
    collections = {n: Collection(n, data_folder, cache) for n in ("hotpot100", "squad-a", *HALVED, *UNSEEN)}
    tests = [Tested(collections[name], cache) for name in TESTS]
    with tempfile.TemporaryDirectory() as scratch:
        data, _ = training_sets([collections[n] for n in ("hotpot100", "squad-a", *HALVED)], Path(scratch))
    for test in tests:
        mv.training.refuse_test_topics(data, test.topics, qids=False)  # collections number topics alike
    topics_folder = cache / "aligner"
    topics_folder.mkdir(exist_ok=True)
    nothing = {"about": about(len(data), tests), "runs": [], "results": table([])}
    found = json.loads(target.read_text()) if target.exists() else nothing
    done = {(r["run"], r["seed"]) for r in found["runs"]}
    states = mv.training.StateCache(gib=8)
    check_no_salience(data, states)
    print(f"{len(data)} rows; without salience training is ColBERT's, bit for bit", flush=True)
    for seed in seeds:
        models: dict[str, Aligner] = {}  # that others build on
        for name, how in RUNS.items():
            if (name, seed) in done:
                continue
            if how.base is not None and how.base not in models:
                models[how.base] = train(RUNS[how.base], seed, data, states, None)
            started = time.time()
            aligner = train(how, seed, data, states, models.get(how.base or ""))
            if name in {r.base for r in RUNS.values()}:
                models[name] = aligner
            told = {"run": name, "seed": seed, **asdict(how), "seconds": round(time.time() - started, 1)}
            told["loss"] = round(float(aligner.history["loss"].dropna().tail(10).mean()), 4)
            rows, topics, told["gates"] = evaluated(aligner, name, seed, tests)
            pd.concat(topics).to_csv(topics_folder / f"{name}-{seed}.csv", index=False)
            found["runs"].append(told)
            found["results"]["rows"] += rows
            write(found, target)
            print(name, seed, told, f"{time.time() - started:.0f} s", flush=True)
    topics = pd.concat(pd.read_csv(f, keep_default_na=False) for f in sorted(topics_folder.glob("*.csv")))
    found["summary"], found["contrasts"] = (table(rows) for rows in (summary(topics), contrasts(topics)))
    write(found, target)


def evaluated(aligner: Aligner, name: str, seed: int, tests: list[Tested]) -> tuple[list, list, dict]:
    """Rows, values of topics, and shares of gates of a model, over collections."""
    modules = list(aligner.encoder.model)[1:]
    rows, topics, gates = [], [], {}
    for test in tests:
        queries, documents = through(modules, test.queries, "query"), through(modules, test.documents, "document")
        if documents.weights is not None:
            shares = [fractional(tokens) for tokens in (queries, documents)]
            gates[test.name] = {
                side: {"fractional": round(share, 4), "zero": round(zero, 4)}
                for side, (share, zero) in zip(("query", "document"), shares, strict=True)
            }
        curve = RUNS[name].curve if name in CURVES else ()
        for seen in outcomes(test, queries, documents, RUNS[name].scores, curve, seed):
            means = [round(float(value), 4) for value in seen.topics.mean()]
            took = [round(seen.kept, 4), seen.vectors * documents.dim * 2, round(seen.zero, 6)]
            rows.append([name, seed, test.name, *seen.condition, *means, *took])
            where = {"run": name, "seed": seed, "collection": test.name, **seen.condition._asdict()}
            topics.append(seen.topics.reset_index().assign(**where))
    return rows, topics, gates


def table(rows: list[dict]) -> dict:
    """Rows without their names."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) or list(COLUMNS)
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def frame(found: dict) -> pd.DataFrame:
    """Back from :func:`table`."""
    return pd.DataFrame(found["rows"], columns=found["columns"])


def write(found: dict, target: Path) -> None:
    """JSON with a line a row."""
    parts = []
    for name, value in found.items():
        rows = value if name == "runs" else value.get("rows")
        text = json.dumps(value)
        if rows:
            text = text.replace(json.dumps(rows), "[\n  " + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]")
        parts.append(f' "{name}": {text}')
    scratch = target.with_suffix(".new")
    scratch.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    scratch.replace(target)


def about(rows: int, tests: list[Tested]) -> dict:
    """What a reader needs to know beside the figures."""
    packages = ("torch", "transformers", "sentence-transformers", "pyterrier")
    return {
        "command": "python benchmarks/aligner_ablations.py --data FOLDER --cache FOLDER",
        "model": "all-MiniLM-L6-v2, still; linear head of 128 dimensions, salience heads on its vectors",
        "training": f"{rows} rows, {NEGATIVES} BM25 negatives each, {STEPS} steps of {BATCH}, {TRAIN_LENGTH} tokens, "
        "rate 1e-3 (salience heads 1e-2), scale 20, epsilon 0.002",
        "seconds": "of training, on a machine that others used",
        "tests": {test.name: len(test.topics) for test in tests},
        "documents": {test.name: len(test.docnos) for test in tests},
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in packages},
    }


def show(found: dict) -> None:
    """Means and spreads over seeds: pruned and not, the curve, and what was compared."""
    settings = pd.DataFrame(found["runs"]).drop(columns=["seed", "gates", "loss", "seconds"])
    print(settings.drop_duplicates().fillna("").to_string(index=False))
    rows = frame(found["results"])
    # as trained, and without saliences; of refined searches the smallest share alone
    told = pd.Series([score in RUNS[run].told for run, score in zip(rows["run"], rows["score"], strict=True)])
    hardest = (rows["doc_share"] == SHARES[-1][1]) & (rows["candidates"] == CANDIDATES[-1])
    rows = rows[told & ((rows["refine"] != "full") | hardest)]
    alone = (rows["query_share"] == 1) & (rows["doc_share"] < 1)
    tables = {
        "all tokens, or shares of query and document tokens kept (best: with all tokens)": rows[~alone],
        "all query tokens, shares of document tokens kept": rows[alone],
    }
    for collection in found["about"]["tests"]:
        for title, shown in tables.items():
            print(f"\n{collection}, nDCG@10: {title}\n")
            print(side_by_side(shown[shown["collection"] == collection]).to_string(na_rep=""))
    print("\nCompared as planned: differences of nDCG@10 (std over seeds), p after Holm within a collection\n")
    planned = frame(found["contrasts"])
    numbers = planned[["delta", "delta std", "holm"]].to_numpy()
    planned["cell"] = [f"{delta:+.3f} ({std:.3f}) p {p:.3f}" for delta, std, p in numbers]
    shown = planned.pivot_table(index="contrast", columns="collection", values="cell", aggfunc="first", sort=False)
    print(shown.to_string(na_rep=""))


def side_by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each run, way of pruning and rule; a column for each pair of shares."""
    shares = rows[["query_share", "doc_share", "refine", "candidates"]].to_numpy()
    columns = [f"{q:g}/{d:g} {f'best {n}' if refine == 'full' else refine}".strip() for q, d, refine, n in shares]
    order = sorted(set(columns), key=lambda name: (name.partition(" ")[2], *(-float(n) for n in _numbers(name))))
    cells = rows.assign(shares=columns).pivot_table(
        index=["run", "by", "score"],
        columns="shares",
        values="nDCG@10",
        aggfunc=lambda values: f"{values.mean():.3f} ({spread(values):.3f})",
        sort=False,
    )[order]
    names = list(RUNS)
    return cells.sort_index(level="run", key=lambda level: level.map(names.index), sort_remaining=False)


def _numbers(shares: str) -> list[str]:
    return shares.partition(" ")[0].split("/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    parser.add_argument("--cache", type=Path, help="where states of texts and values of topics are kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of heads, salience and order of the data")
    arguments = parser.parse_args()
    target = HERE / "aligner_ablations.json"
    if arguments.data:
        with tempfile.TemporaryDirectory() as folder:
            run(arguments.data, arguments.cache or Path(folder), target, tuple(arguments.seeds))
    show(json.loads(target.read_text()))
