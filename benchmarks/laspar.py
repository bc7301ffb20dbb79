"""LASPAR's training, taken apart: architecture, regulariser, distillation and size, over three seeds.

    python benchmarks/laspar.py --data FOLDER --cache FOLDER     # trains, searches, adds to laspar.json
    python benchmarks/laspar.py --data FOLDER --seeds 0          # one of the seeds
    python benchmarks/laspar.py --data FOLDER --cache FOLDER --teachers cross-encoder     # adds two conditions
    python benchmarks/laspar.py --dry                            # what would be run, and about how long
    python benchmarks/laspar.py                                  # prints the kept table

Heads on a still MiniLM. scifact and cranfield give training rows: their topics that are not tested, and sentences of
some of their documents, asked for the document. A third of their topics is tested with each seed, so that every topic
is tested once; cacm is tested as a whole, and nothing of it was trained on. 15 % of the topics, the same with every
seed, choose the learning rate of each architecture and are never tested. All documents are ranked, in PISA. The
cross-encoder (cross_encoder.py) is trained on a seed's rows, as heads are, before it scores them.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import kept
import numpy as np
import pandas as pd
from aligner_contrasts import corrected, randomisation
from cross_encoder import SETTINGS, KeptScores
from laspar_data import MEASURES, SEEDS, Collection, Teacher, taught
from limits import about

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
FILE = HERE / "laspar.json"
TRAINED, UNSEEN = ("scifact", "cranfield"), ("cacm",)
SMALL, LARGE = (16384, 64, 32), (65536, 512, 128)
POOLINGS = ("mean", "sum", "position", "attention")
EPOCHS, BATCH = 2, 32
RATES = (3e-3, 1e-2, 3e-2)
REGULARISERS: dict[str, dict[str, Any]] = {
    "none": {"documents": None, "query_weight": 0},
    "flops": {"documents": "flops", "document_weight": 100, "query_weight": 0},
    "equipartition": {"documents": "equipartition", "document_weight": 100, "query_weight": 0},
    "flops, L1 of queries": {"documents": "flops", "document_weight": 100, "query_weight": 0.2},
    "defaults": {},
}
GRID = ("none", "flops", "equipartition", "flops, L1 of queries")
TEACHERS = ("none", "dense")
CROSS = "cross-encoder"
TEMPERATURES = {"dense": 0.05, CROSS: 1.0}  # of cosines and of logits
#: documents of the cosine that the cross-encoder itself is measured by
RERANKED = 20
#: seconds of a run of one size: training, and all that is measured; on a quiet core
SECONDS = {SMALL: (15, 6), LARGE: (48, 18)}
#: of a cross-encoder: training, scoring rows and reranking
CROSS_SECONDS = 600
STATES = 600


class Condition(NamedTuple):
    """What is trained, and how; of no regulariser: not at all."""

    size: tuple[int, int, int]
    pooling: str
    regulariser: str | None = None
    teacher: str = "none"

    def told(self) -> dict[str, Any]:
        """As columns."""
        size = dict(zip(("latents", "k_doc", "k_query"), self.size, strict=True))
        return {
            **size,
            "pooling": self.pooling,
            "regulariser": self.regulariser or "untrained",
            "teacher": self.teacher,
        }


CONDITIONS = [
    *(Condition(SMALL, pooling) for pooling in POOLINGS),
    *(Condition(SMALL, p, r, t) for p in POOLINGS for r in GRID for t in TEACHERS),
    Condition(SMALL, "mean", "defaults"),
    Condition(LARGE, "mean"),
    Condition(LARGE, "mean", "none", "none"),
    Condition(LARGE, "mean", "flops", "dense"),
    *(Condition(SMALL, "mean", r, CROSS) for r in ("none", "flops")),
]


def laspar(condition: Condition, seed: int) -> mv.Laspar:
    """An untrained model; the seed draws its matrix."""
    latents, k_doc, k_query = condition.size
    how: dict[str, Any] = {"pooling": condition.pooling, "seed": seed, "doc_length": 180}
    return mv.Laspar(mv.models.MINILM, latents, k_doc=k_doc, k_query=k_query, **how)


def trained(condition: Condition, seed: int, rate: float, data: Any, states: Any) -> mv.Laspar:
    """A model of a condition."""
    model = laspar(condition, seed)
    if condition.regulariser is None:
        return model
    how = dict(REGULARISERS[condition.regulariser])
    if condition.teacher != "none":
        how |= {"distillation": "kl", "teacher_temperature": TEMPERATURES[condition.teacher]}
    loss = mv.training.LatentSparse(**how)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": rate, "seed": seed}
    return model.fit(data, loss=loss, state_cache=states, verbose=False, **settings)


def rates(collections: list[Collection], data: Any, states: Any) -> dict[str, Any]:
    """The learning rate of each architecture, by topics that are neither trained on nor tested."""
    found = {}
    for pooling in POOLINGS:
        values = {}
        for rate in RATES:
            head = trained(Condition(SMALL, pooling, "none"), SEEDS[0], rate, data, states).head
            measured = [c.sparse(head, c.divided(0)["valid"])[0] for c in collections if c.trained]
            values[str(rate)] = round(float(np.mean([v["nDCG@10"].mean() for v in measured])), 4)
        found[pooling] = {"rate": float(max(values, key=values.__getitem__)), "validation": values}
        print(pooling, found[pooling], flush=True)
    return found


def run(condition: Condition, seed: int, rate: float, collections: list[Collection], *given: Any) -> list[dict]:
    """One model, tested on every collection."""
    start = time.perf_counter()
    model = trained(condition, seed, rate, *given)
    took = {"seconds of training": round(time.perf_counter() - start, 1)}
    if model.history is not None:
        took["loss"] = round(float(model.history["ranking"].dropna().tail(10).mean()), 4)
    rows = []
    for c in collections:
        topics = c.divided(seed)["test"]
        values, costs = c.sparse(model.head, topics)
        rows.append({**condition.told(), "seed": seed, **took, **as_kept(c, values), **costs})
    return rows


def as_kept(collection: Collection, values: pd.DataFrame) -> dict[str, Any]:
    """Means, and nDCG@10 topic by topic."""
    means = {name: round(float(values[name].mean()), 4) for name in MEASURES}
    return {"collection": collection.name, **means, "topics": values["nDCG@10"].round(4).tolist()}


def baselines(collections: list[Collection], seed: int) -> list[dict[str, Any]]:
    """MiniLM's cosine and BM25 on the topics of a seed."""
    rows = []
    for c in collections:
        topics = c.divided(seed)["test"]
        for name, values in (("MiniLM cosine", c.cosine(topics)), ("BM25", c.values(c.words(topics), topics))):
            rows.append({"pooling": name, "regulariser": "", "teacher": "", "seed": seed, **as_kept(c, values)})
    return rows


def crossed(rows: list[Any], collections: list[Collection], seed: int, cache: Path) -> tuple[list[Any], list[dict]]:
    """A seed's rows with scores of a cross-encoder that was trained on them, and rows of how it reranks by itself."""
    from datasets import concatenate_datasets

    rows = [one.remove_columns([c for c in one.column_names if c == "scores"]) for one in rows]
    teacher = KeptScores(concatenate_datasets(rows), seed, cache)
    start = time.perf_counter()
    scored = [taught(one, teacher) for one in rows]
    scores = np.array([row["scores"] for one in scored for row in one])
    told = {
        "seconds of training": teacher.seconds,
        "training rows in order": round(float((scores[:, 0] > scores[:, 1:].max(1)).mean()), 4),
    }
    print(f"cross-encoder, seed {seed}: {told}, {time.perf_counter() - start:.0f} s", flush=True)
    found = []
    for c in collections:
        topics = c.divided(seed)["test"]
        name = f"{CROSS} on the cosine's {RERANKED}"
        row = {"pooling": name, "regulariser": "", "teacher": "", "seed": seed, **told}
        found.append({**row, **as_kept(c, c.reranked(topics, teacher, RERANKED))})
        print(name, c.name, found[-1]["nDCG@10"], f"{time.perf_counter() - start:.0f} s", flush=True)
    return scored, found


def measure(arguments: argparse.Namespace, cache: Path) -> None:
    """All conditions of one seed, then the next; what is known is written after each."""
    from datasets import concatenate_datasets

    # a smoke run does all with little, and keeps it elsewhere
    target = cache / "laspar-smoke.json" if arguments.smoke else FILE
    topics = 20 if arguments.smoke else None
    conditions = [c for c in CONDITIONS if c.teacher in arguments.teachers]
    if arguments.smoke:
        conditions = [conditions[i] for i in sorted({0, min(5, len(conditions) - 1), len(conditions) - 1})]
    names = [*TRAINED, *UNSEEN][1 if arguments.smoke else 0 :]
    collections = [Collection(name, arguments.data, cache, name in TRAINED, topics) for name in names]
    found: dict[str, Any] = {"rates": {}, **kept.read(target)}
    command = "python benchmarks/laspar.py --data FOLDER"
    part = f"about {CROSS}" if arguments.teachers == [CROSS] else "about"
    found[part] = about(command, ("torch", "sentence-transformers", "pyterrier-pisa"))
    settings = {"epochs": EPOCHS, "batch": BATCH, "regularisers": REGULARISERS, "teacher": arguments.teacher_name}
    found["plan"] = {**found.get("plan", {}), **settings}
    states = mv.training.StateCache(gib=6)
    teacher = Teacher(arguments.teacher) if "dense" in arguments.teachers else None
    for seed in arguments.seeds:
        sets = [c.rows(seed, teacher) for c in collections if c.trained]
        data = concatenate_datasets(sets)
        data_of = dict.fromkeys(TEACHERS, data)
        for c in collections:
            mv.training.refuse_test_topics(data, c.divided(seed)["test"], qids=False)
        print(f"seed {seed}: {len(data)} rows, {[len(one) for one in sets]}", flush=True)
        found["plan"][f"rows, seed {seed}"] = len(data)
        if not found["rates"]:
            same = {pooling: {"rate": RATES[1]} for pooling in POOLINGS}
            found["rates"] = same if arguments.smoke else rates(collections, data, states)
        if not any(row["pooling"] == "BM25" and row["seed"] == seed for row in found["rows"]):
            found["rows"] += baselines(collections, seed)
        if CROSS in arguments.teachers:
            found["plan"][CROSS] = SETTINGS
            scored, own = crossed(sets, collections, seed, cache)
            data_of[CROSS] = concatenate_datasets(scored)
            if not any(row["pooling"] == own[0]["pooling"] and row["seed"] == seed for row in found["rows"]):
                found["rows"] += own
        for condition in conditions:
            told = {**condition.told(), "seed": seed}
            if any(told.items() <= row.items() for row in found["rows"]):
                continue
            start = time.perf_counter()
            rate = found["rates"][condition.pooling]["rate"]
            rows = run(condition, seed, rate, collections, data_of[condition.teacher], states)
            found["rows"] += rows
            values = {row["collection"]: (row["nDCG@10"], row["FLOPS"]) for row in rows}
            print(told, values, rows[0]["seconds of training"], f"{time.perf_counter() - start:.0f} s", flush=True)
            kept.write(target, found)


KEYS = ["latents", "k_doc", "pooling", "regulariser", "teacher"]
COSTS = ["document non-zeros", "query non-zeros", "FLOPS", "latents used", "engine bytes", "ms a query"]


def table(found: dict[str, Any]) -> pd.DataFrame:
    """Means over topics of all seeds, the least and the largest seed, and scifact's costs."""
    frame = pd.DataFrame(found["rows"])
    frame[KEYS] = frame[KEYS].fillna("")
    for name in MEASURES:
        frame[f"{name} summed"] = frame[name] * frame["topics"].map(len)
    frame["number"] = frame["topics"].map(len)
    parts = []
    for collection, mine in frame.groupby("collection", sort=False):
        groups = mine.groupby(KEYS, sort=False)
        sums = groups[["number", *(f"{name} summed" for name in MEASURES)]].sum()
        part = pd.DataFrame({name: (sums[f"{name} summed"] / sums["number"]).round(3) for name in MEASURES})
        part["seeds"] = groups["nDCG@10"].agg(lambda v: f"{v.min():.3f} to {v.max():.3f}")
        if collection == frame["collection"].iloc[0]:
            part = part.join(groups[COSTS].mean().round(3))
        parts.append(part.add_prefix(f"{collection}, "))
    return pd.concat(parts, axis=1)


#: conditions, and what is other in those that they are compared with
CONTRASTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "trained - untrained": ({"regulariser": "none", "teacher": "none"}, {"regulariser": "untrained"}),
    "flops - none": ({"regulariser": "flops"}, {"regulariser": "none"}),
    "equipartition - flops": ({"regulariser": "equipartition"}, {"regulariser": "flops"}),
    "L1 of queries - without": ({"regulariser": "flops, L1 of queries"}, {"regulariser": "flops"}),
    "teacher - none": ({"teacher": "dense"}, {"teacher": "none"}),
    "cross-encoder - dense": ({"teacher": CROSS}, {"teacher": "dense"}),
    "cross-encoder - none": ({"teacher": CROSS}, {"teacher": "none"}),
    "sum - mean": ({"pooling": "sum"}, {"pooling": "mean"}),
    "position - sum": ({"pooling": "position"}, {"pooling": "sum"}),
    "attention - mean": ({"pooling": "attention"}, {"pooling": "mean"}),
}


def contrasts(found: dict[str, Any]) -> pd.DataFrame:
    """Differences of nDCG@10 at the smaller size, all else equal; paired randomisation test, Holm's correction.

    A topic's value is the mean over the pairs of conditions that differ in this alone (and of cacm over seeds).
    """
    columns = ["pooling", "regulariser", "teacher", "collection", "seed"]
    small = [row for row in found["rows"] if row.get("latents") == SMALL[0]]
    known = {tuple(row[c] for c in columns): row["topics"] for row in small}
    rows = []
    for name, (where, change) in CONTRASTS.items():
        for collection in (*TRAINED, *UNSEEN):
            gains = []
            for row in small:
                other = known.get(tuple({**row, **change}[c] for c in columns))
                same = {**row, **where} == row and row["collection"] == collection
                # the crossing of conditions is that of the other teachers
                same = same and row["teacher"] in (*TEACHERS, where.get("teacher"))
                if same and row["regulariser"] in GRID and other is not None:
                    # of other collections than cacm, each seed has topics of its own
                    names = [f"{'' if collection in UNSEEN else row['seed']} {i}" for i in range(len(other))]
                    gains.append(pd.Series(np.subtract(row["topics"], other), index=names))
            if gains:
                topics = pd.concat(gains).groupby(level=0).mean()
                gain = round(float(topics.mean()), 4)
                p = round(randomisation(topics.to_numpy()), 5)
                rows.append({"contrast": name, "collection": collection, "gain": gain, "p": p})
    return pd.DataFrame(corrected(rows))


def plan(arguments: argparse.Namespace) -> None:
    """What would be run."""
    conditions = [c for c in CONDITIONS if c.teacher in arguments.teachers]
    frame = pd.DataFrame([c.told() for c in conditions])
    frame["seconds"] = [(0 if c.regulariser is None else SECONDS[c.size][0]) + SECONDS[c.size][1] for c in conditions]
    print(frame.to_string())
    seeds = len(arguments.seeds)
    parts = {
        "conditions": int(frame["seconds"].sum()) * seeds,
        "states": 200 if arguments.teachers == [CROSS] else 600,
        "rates": 0 if arguments.teachers == [CROSS] else len(POOLINGS) * len(RATES) * sum(SECONDS[SMALL]),
        "cross-encoders": CROSS_SECONDS * seeds if CROSS in arguments.teachers else 0,
    }
    print(f"{len(conditions)} conditions, {seeds} seeds; seconds {parts}: {sum(parts.values()) / 60:.0f} min")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    parser.add_argument("--cache", type=Path, help="where states of texts are kept between runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=[*TEACHERS, CROSS], help="conditions")
    parser.add_argument("--teacher", default="", help="another sentence encoder than MiniLM, as the dense one")
    parser.add_argument("--teacher-name", default="all-MiniLM-L6-v2", help="what the kept file calls it")
    parser.add_argument("--smoke", action="store_true", help="two collections, 20 topics, three conditions; not kept")
    parser.add_argument("--dry", action="store_true", help="prints the plan")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="the latent head is untrained")  # controls are
    if arguments.dry:
        plan(arguments)
        sys.exit()
    if arguments.data is not None:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, arguments.cache or Path(folder))
    if FILE.exists():
        kept_rows = kept.read(FILE)
        print(table(kept_rows).to_string())
        print(contrasts(kept_rows).to_string(index=False))
