"""NVF on the data of its notes: what is learned, what exact search has anyway, and what limits both.

    python benchmarks/nvf_phases.py                      # computes what nvf_phases.json lacks, and prints its tables
    python benchmarks/nvf_phases.py --seeds 42           # one of the seeds
    python benchmarks/nvf_phases.py --show               # prints the kept tables

Three parts. "phases": 1,000 documents of 128 dimensions, drawn or in clusters; queries from anywhere or noisy copies;
stage 1 in the notes' form and as exact search, stage 2 in the notes' form (option B) and with the inner product added.
"uneven": noise that differs between dimensions, where learning can help, also on documents that were never seen.
"gradients": one result a query is chosen, and the query transform is trained by what comes back alone.

Sizes are the notes' but for stage 2, which has 30,000 queries and stops early (they have 100,000, and 50 epochs), or
15,000 of uneven noise.
Every figure is of 5,000 queries that nothing was trained or chosen on.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kept
import numpy as np
import nvf_data as data
import pandas as pd
import torch
from limits import about
from nvf_data import Floats, Ints

from pyterrier_mvret.scoring.pair_networks import PairScorer, QueryTransform
from pyterrier_mvret.scoring.soft_attention import choose
from pyterrier_mvret.training.network_loop import NetworkTrainer
from pyterrier_mvret.training.vector_field import fit_scorer, fit_transform, nearest, scored

FILE = Path(__file__).resolve().parent / "nvf_phases.json"
SEEDS = (42, 43, 44, 45, 46)
QUERIES, PAIRS, UNEVEN_PAIRS, TEST = 50_000, 30_000, 15_000, 5_000
#: of the notes: what they say they have, what they want, and what would be more than that
NOTES = {
    "Top-1, drawn": ("68", "90", "95"),
    "Top-5, drawn": ("97", "97", "98"),
    "Top-1, clustered": ("none", "88", "93"),
}
Asked = Callable[[np.random.Generator, Floats, int], tuple[Floats, Ints]]
QUERY_KINDS: dict[str, Asked] = {
    "from anywhere": data.at_random,
    "noisy copies": lambda rng, documents, number: data.copies(rng, documents, number, data.NOTES),
}


def reranker(seed: int, train: Any, valid: Any, features: str, residual: bool, epochs: int) -> PairScorer:
    """A trained pair scorer; epochs are chosen on validation queries."""
    network = PairScorer(data.DIM, features, residual=residual, seed=seed)
    how = NetworkTrainer(epochs=epochs, batch_size=256, patience=4, seed=seed)
    fit_scorer(network, train, (valid, data.judgements(valid)), how, measure="RR", verbose=False)
    return network


def percent(value: float) -> float:
    """As it is kept."""
    return round(100 * float(value), 2)


def phases(seed: int) -> Iterator[dict[str, Any]]:
    """Both stages on both kinds of documents and of queries."""
    for layout, make in (("drawn", data.collection), ("clustered", data.clustered)):
        rng = np.random.default_rng(seed)
        documents = make(rng)
        matrix = torch.from_numpy(documents)
        transform = QueryTransform(data.DIM, residual=False, temperature=1.0, seed=seed)
        how = NetworkTrainer(epochs=30, batch_size=256, patience=None, seed=seed)
        learned = data.targets(*data.at_random(rng, documents, QUERIES), documents)
        fit_transform(transform, learned, None, how, verbose=False)
        for kind, ask in QUERY_KINDS.items():
            drawn = [ask(rng, documents, number) for number in (PAIRS, PAIRS // 10, TEST)]
            for stage, network in (("soft attention", transform), ("exact search", None)):
                found = [nearest(network, queries, matrix, 5) for queries, _ in drawn]
                train, valid = (data.sets(*drawn[i], documents, found[i], drop=True) for i in (0, 1))
                test = data.sets(*drawn[2], documents, found[2])
                row = {"part": "phases", "seed": seed, "documents": layout, "queries": kind, "stage 1": stage}
                row |= {"Top-1": percent(test.gains[:, 0].mean()), "Top-5": percent(test.gains.any(1).mean())}
                products = np.einsum("bd,bkd->bk", test.queries, documents[test.candidates])
                yield {**row, "stage 2": "none"}
                yield {**row, "stage 2": "inner product", "Top-1": percent(data.first(products, test.gains))}
                for name, residual in (("B, the notes' form", False), ("B, residual", True)):
                    if stage == "exact search" and not residual:
                        continue
                    scorer = reranker(seed, train, valid, "difference", residual, 25)
                    yield {**row, "stage 2": name, "Top-1": percent(data.first(scored(scorer, test), test.gains))}


def uneven(seed: int) -> Iterator[dict[str, Any]]:
    """Every option where there is something to learn, on documents that are known and others."""
    rng = np.random.default_rng(seed)
    documents, unseen = data.collection(rng), data.collection(rng)
    sizes = (UNEVEN_PAIRS, UNEVEN_PAIRS // 10, TEST)
    drawn = [data.copies(rng, documents, number, data.UNEVEN) for number in sizes]
    other = data.copies(rng, unseen, TEST, data.UNEVEN)
    for k in (5, 20):
        train, valid = (data.sets(*one, documents, data.nearest(one[0], documents, k), drop=True) for one in drawn[:2])
        known = data.sets(*drawn[2], documents, data.nearest(drawn[2][0], documents, k))
        new = data.sets(*other, unseen, data.nearest(other[0], unseen, k))
        row = {"part": "uneven", "seed": seed, "k": k}
        row |= {"ceiling": percent(known.gains.any(1).mean()), "ceiling, unseen": percent(new.gains.any(1).mean())}
        yield row | figures("inner product", known.scores, known, new.scores, new)
        options = [("A", "concat", False), ("B", "difference", False), ("C", "cross", False)]
        options += [(f"{name}, residual", features, True) for name, features, _ in options]
        for name, features, residual in options:
            scorer = reranker(seed, train, valid, features, residual, 12)
            yield row | figures(name, scored(scorer, known), known, scored(scorer, new), new)


def figures(name: str, scores: Floats, known: Any, others: Floats, new: Any) -> dict[str, Any]:
    """Top-1 on both."""
    tops = {"Top-1": percent(data.first(scores, known.gains)), "Top-1, unseen": percent(data.first(others, new.gains))}
    return {"scorer": name, **tops}


def gradients(seed: int) -> Iterator[dict[str, Any]]:
    """What passes a choice of one result, and what the query transform learns from it.

    The loss is ``|r - d|^2`` of the chosen result and the truth. Noise is uneven. T starts at 0.05.
    """
    rng = np.random.default_rng(seed)
    documents = data.collection(rng)
    matrix = torch.from_numpy(documents)
    queries, truth = data.copies(rng, documents, PAIRS // 2, data.UNEVEN)
    test, right = data.copies(rng, documents, TEST, data.UNEVEN)
    unseen = data.collection(rng)
    other, wanted_there = data.copies(rng, unseen, TEST, data.UNEVEN)
    asked, wanted = torch.from_numpy(queries), matrix[torch.from_numpy(truth)]

    def tops(network: QueryTransform) -> dict[str, float]:
        found, there = (
            nearest(network, q, torch.from_numpy(d), 1)[1][:, 0] for q, d in ((test, documents), (other, unseen))
        )
        return {"Top-1": percent((found == right).mean()), "Top-1, unseen": percent((there == wanted_there).mean())}

    def loss(network: QueryTransform, rows: Any, how: str, source: torch.Tensor = asked) -> torch.Tensor:
        return (choose(network(source[rows]), matrix, network.temperature, how) - wanted[rows]).square().sum(1)

    some = torch.arange(1000)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        slopes = {}
        for how in ("soft", "hard", "straight-through", "gumbel"):
            source = asked.clone().requires_grad_()
            value = loss(QueryTransform(data.DIM), some, how, source).sum()
            passes = value.requires_grad  # the break has nothing to differentiate
            slope = torch.autograd.grad(value, source)[0] if passes else torch.zeros_like(source)
            slopes[how] = slope[some].detach()
    for how, slope in slopes.items():
        network = QueryTransform(data.DIM, seed=seed)
        if how != "hard":
            trainer = NetworkTrainer(epochs=10, batch_size=256, seed=seed)
            trainer.fit(network, len(asked), lambda rows, n=network, how=how: loss(n, rows, how).mean(), verbose=False)
        norms = slope.norm(dim=1)
        row = {"part": "gradients", "seed": seed, "choice": how, "norm": round(float(norms.mean()), 4)}
        row["share of queries with a gradient"] = round(float((norms > 0).float().mean()), 4)
        cosine = torch.nn.functional.cosine_similarity(slope, slopes["soft"]).mean()
        yield row | {"cosine to soft": round(float(cosine), 3)} | tops(network)
    network = QueryTransform(data.DIM, seed=seed)
    trainer = NetworkTrainer(epochs=10, batch_size=256, patience=None, seed=seed)
    fit_transform(network, data.targets(queries, truth, documents), None, trainer, verbose=False)
    yield {"part": "gradients", "seed": seed, "choice": "cross-entropy"} | tops(network)


PARTS: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {
    "phases": phases,
    "uneven": uneven,
    "gradients": gradients,
}


def measure(parts: list[str], seeds: list[int]) -> None:
    """Adds what is not kept yet, a part of a seed at a time."""
    found = kept.read(FILE)
    found["about"] = about("python benchmarks/nvf_phases.py", ("torch", "numpy"))
    for seed in seeds:
        for part in parts:
            if any(row["part"] == part and row["seed"] == seed for row in found["rows"]):
                continue
            start = time.perf_counter()
            found["rows"] += list(PARTS[part](seed))
            print(f"{part}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
            kept.write(FILE, found)


def tables(rows: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Mean and standard deviation over seeds of every part."""
    keys = {
        "phases": ["documents", "queries", "stage 1", "stage 2"],
        "uneven": ["k", "scorer"],
        "gradients": ["choice"],
    }
    found = {}
    for part, by in keys.items():
        frame = pd.DataFrame([row for row in rows if row["part"] == part])
        if len(frame):
            values = [c for c in frame.columns if c not in ("part", "seed", *by)]
            found[part] = frame.groupby(by, sort=False)[values].agg(lambda v: "" if v.isna().all() else data.spread(v))
    return found


def against_the_notes(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The notes' figures and targets beside what each form reaches, and the limit of the task."""
    frame = pd.DataFrame([row for row in rows if row["part"] == "phases"])
    lines = []
    for name, (current, target, stretch) in NOTES.items():
        measure, layout = name.split(", ")
        for kind in QUERY_KINDS:
            mine = frame[(frame["documents"] == layout) & (frame["queries"] == kind)]

            def of(stage: str, second: str, mine: pd.DataFrame = mine, measure: str = measure) -> str:
                chosen = mine[(mine["stage 1"] == stage) & (mine["stage 2"] == second)]
                return data.spread(chosen[measure].tolist())

            lines.append(
                {
                    "figure": name,
                    "queries": kind,
                    "notes": current,
                    "target": target,
                    "stretch": stretch,
                    "soft attention": of("soft attention", "none"),
                    "+ B, the notes' form": of("soft attention", "B, the notes' form"),
                    "+ B, residual": of("soft attention", "B, residual"),
                    "NVF (exact + B, residual)": of("exact search", "B, residual"),
                    "exact search": of("exact search", "none"),
                }
            )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--show", action="store_true", help="prints the kept tables alone")
    arguments = parser.parse_args()
    if not arguments.show:
        measure(arguments.parts, arguments.seeds)
    known = kept.read(FILE)["rows"]
    for title, shown in tables(known).items():
        print(f"\n{title}\n{shown.to_string()}")
    print(f"\nagainst the notes\n{against_the_notes(known).to_string(index=False)}")
