"""AGRaME trained on sentence-labelled questions: a loss of passages alone, of sentences as well, and a second marker.

    python benchmarks/agrame_train.py --data FOLDER                 # trains, ranks, adds to agrame_train.json
    python benchmarks/agrame_train.py --data FOLDER --seeds 0       # one of the seeds
    python benchmarks/agrame_train.py                               # prints the kept table

MiniLM, all weights. Each seed holds out a third of squad-a's articles and of hotpot100's questions, so that a question
is tested once; no passage of a held-out article, and none that a held-out question needs, is seen in training. scifact
is tested alone: claims over abstracts, nothing of which was trained on. Targets are judgements: one right sentence of a
passage, or several. Nothing is chosen by any measure: the settings below are what was run.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from agrame_sentences import Sentences
from ir_measures import RR, P, R, Success
from limits import about

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
FILE = HERE / "agrame_train.json"
sys.path.insert(0, str(HERE.parent / "examples"))
from common import bm25, load  # noqa: E402

SEEDS = (0, 1, 2)
TRAINED = ("squad-a", "hotpot100")
CANDIDATES = {"squad-a": 120, "hotpot100": 100, "scifact": 10}
PLAN: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 5e-5,
    "max_length": {"document": 128},
    "state_cache": 0,
    "verbose": False,
}
NEGATIVES = 1
#: the loss, and the second query marker, of each condition
UNITS = mv.training.MultiGranular("contrastive")
CONDITIONS: dict[str, tuple[Any, str | None]] = {
    "untrained": (None, None),
    "passages": ("contrastive", None),
    "passages and sentences": (UNITS, None),
    "passages and sentences, second marker": (UNITS, "[unused2]"),
}


class Collection(Sentences):
    """With judgements of passages, and of which third each question is."""

    def __init__(self, data: Path, name: str):
        super().__init__(name, data)
        self.name, self.passage_qrels = name, load(collection=str(data / name))[2]
        with tempfile.TemporaryDirectory() as folder:
            found = bm25(self.passages, Path(folder) / "words.pisa", CANDIDATES[name])(self.topics)
        self.found = found[["qid", "query", "docno", "score", "rank"]]

    def held_out(self, seed: int) -> set[str]:
        """Topics that are tested with a seed: of whole articles where articles have several."""
        if self.name not in TRAINED:
            return set(self.topics["qid"])
        article = self.passage_qrels.drop_duplicates("qid").set_index("qid")["docno"]
        key = article.str.partition("p")[0] if self.name == "squad-a" else article.index.to_series()
        names = np.random.default_rng(7).permutation(sorted(set(key)))
        return set(key.index[key.isin(names[seed :: len(SEEDS)])])

    def training_set(self, seed: int) -> Any:
        """Rows of the other topics, with BM25's negatives from passages that no tested topic needs."""
        out = self.held_out(seed)
        tested = self.passage_qrels[self.passage_qrels["qid"].isin(out)]["docno"]
        closed = set(tested)
        if self.name == "squad-a":  # of the article as a whole
            closed = {d for d in self.texts if d.partition("p")[0] in set(tested.str.partition("p")[0])}
        topics = self.topics[~self.topics["qid"].isin(out)]
        run = self.found[self.found["qid"].isin(topics["qid"]) & ~self.found["docno"].isin(closed)]
        qrels = self.passage_qrels[~self.passage_qrels["docno"].isin(closed)]
        rows = mv.training.groups(topics, qrels, run, NEGATIVES, self.texts, depth=20, short="drop", seed=seed)
        return mv.training.with_units(rows, self.qrels[self.qrels["qid"].isin(topics["qid"])], spans=self.spans)

    def measured(self, model: mv.AGRaME, seed: int) -> list[dict[str, Any]]:
        """Of the tested topics: sentences by their own score and with their passage's, and passages."""
        topics = self.topics[self.topics["qid"].isin(self.held_out(seed))]
        found = self.with_text(self.found[self.found["qid"].isin(topics["qid"])])
        ordinary = mv.AGRaME(model.encoder, alpha=0, query_marker=None)
        with tempfile.TemporaryDirectory() as folder:
            index = mv.MultiVecIndex(Path(folder) / "passages.mv", store_offsets=True)
            candidates = [{"docno": docno, "text": self.texts[docno]} for docno in found["docno"].unique()]
            (model.doc_encoder() >> index).index(candidates)
            scored = model.unit_scorer(index)(found)  # alpha 0: both terms are columns
            plain = ordinary.unit_scorer(index)(found)
        both = scored.assign(score=scored["unit_score"] + scored["passage_score"])
        passages = scored.drop_duplicates(["qid", "parent_docno"])
        passages = passages.assign(docno=passages["parent_docno"], score=passages["passage_score"])
        ways = {"sentences, alpha 0": scored, "sentences, alpha 1": both, "passages": passages}
        if model.query_marker is not None:
            ways["sentences, alpha 0, ordinary marker"] = plain
        rows = []
        for way, run in ways.items():
            qrels = self.passage_qrels if way == "passages" else self.qrels
            run = pt.model.add_ranks(run.drop(columns="rank"))
            each = pt.Evaluate(run, qrels[qrels["qid"].isin(topics["qid"])], [P @ 1, Success @ 5, R @ 5, RR @ 10])
            rows.append({"collection": self.name, "ranked": way, "topics": len(topics), **_rounded(each)})
        return rows


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def run(collections: list[Collection], condition: str, seed: int) -> list[dict[str, Any]]:
    """One condition with one seed."""
    from datasets import concatenate_datasets

    loss, marker = CONDITIONS[condition]
    model = mv.AGRaME(mv.models.MINILM, alpha=0, query_marker=marker)
    start = time.perf_counter()
    if loss is not None:
        data = concatenate_datasets([c.training_set(seed) for c in collections if c.name in TRAINED])
        model.fit_encoder(data, loss=loss, seed=seed, **PLAN)
        print(
            f"{condition}, seed {seed}: {len(data)} rows",
            model.history.filter(["loss", "units"]).iloc[[0, -1]].round(3),
        )
    took = time.perf_counter() - start
    rows = [row for c in collections for row in c.measured(model, seed)]
    return [{"condition": condition, "seed": seed, **row, "seconds of training": round(took)} for row in rows]


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Means over topics of all seeds, with the least and the largest seed's P@1."""
    frame = pd.DataFrame(rows)
    if len({frozenset(mine) for _, mine in frame.groupby("condition")["seed"]}) > 1:  # each seed has other topics
        print("not every condition was run with every seed: rows are not comparable", file=sys.stderr)
    keys = ["collection", "ranked", "condition"]
    measures = ["P@1", "Success@5", "R@5", "RR@10"]
    weighted = frame[measures].mul(frame["topics"], axis=0).assign(**frame[[*keys, "topics"]])
    sums = weighted.groupby(keys, sort=False).sum()
    means = sums[measures].div(sums["topics"], axis=0).round(3)
    seeds = frame.groupby(keys, sort=False)["P@1"].agg(["min", "max"]).round(3)
    return means.join(seeds.rename(columns={"min": "least P@1", "max": "largest P@1"})).sort_index(level=[0, 1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    if arguments.data is not None:
        kept["about"] = about("python benchmarks/agrame_train.py --data FOLDER", ("torch", "sentence-transformers"))
        kept["plan"] = {**PLAN, "negatives": NEGATIVES, "candidates": CANDIDATES}
        collections = [Collection(arguments.data, name) for name in CANDIDATES]
        for seed in arguments.seeds:
            for condition in arguments.conditions:
                if any((row["condition"], row["seed"]) == (condition, seed) for row in kept["rows"]):
                    continue
                kept["rows"] += run(collections, condition, seed)
                FILE.write_text(json.dumps(kept, indent=1) + "\n")
    print(table(kept["rows"]).to_string())
