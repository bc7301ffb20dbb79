"""NVF on real collections: MiniLM vectors, five folds of topics, three seeds; no topic is tested by what saw it.

    python benchmarks/nvf_real.py --data FOLDER --cache FOLDER       # computes what nvf_real.json lacks
    python benchmarks/nvf_real.py --data FOLDER --cross-encoder      # also a MiniLM cross-encoder, trained alike
    python benchmarks/nvf_real.py                                    # prints the kept tables

A fold is tested, the next one chooses the epoch, the other three are trained on; a seed divides the topics and draws
the weights. What is compared, over the same 100 candidates of BM25 or of cosine: the inner product (an untrained NVF),
option B added to it, or to BM25's own scores, option C, and B in the notes' form. The query transform ranks
all documents. All of a topic's values are kept, and tested against what a system is before training: the inner product,
or BM25 where it is added to that (paired randomisation over topics, means over seeds, Holm's correction within a
collection).
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kept
import numpy as np
import pandas as pd
import pyterrier as pt
from aligner_contrasts import corrected, randomisation
from ir_measures import RR, R, nDCG
from limits import about

import pyterrier_mvret as mv

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from common import bm25, load

FILE = Path(__file__).resolve().parent / "nvf_real.json"
COLLECTIONS = ("cranfield", "hotpot100", "vaswani", "scifact")
CROSS = ("hotpot100",)
SEEDS, FOLDS, DEPTH = (0, 1, 2), 5, 100
MEASURES = [nDCG @ 10, RR @ 10, R @ 100]
#: by name: settings, first stages
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "B, residual": ({}, ("cosine", "BM25")),
    "B, added to BM25": ({"use_score": True}, ("BM25",)),
    "B, the notes' form": ({"residual": False}, ("cosine",)),
    "C, residual": ({"features": "cross"}, ("cosine",)),
}
NEGATIVES = 4


class Collection:
    """Candidates and vectors of one collection, made once."""

    def __init__(self, name: str, data: Path, cache: Path):
        self.name = name
        self.documents, self.topics, self.qrels = load(collection=str(data / name))
        self.encoder = mv.VectorEncoder(mv.models.MINILM)
        self.index = mv.SingleVecIndex(cache / f"{name}.sv")
        stage = mv.NVF(self.encoder)
        if not self.index.built():
            (stage.doc_encoder() >> self.index).index(self.documents)
        self.topics = stage.query_encoder()(self.topics)
        asked = self.topics.drop(columns=["query_vec", "query_vec_encoder"])
        vectors = self.topics[["qid", "query_vec", "query_vec_encoder"]]
        with tempfile.TemporaryDirectory() as scratch:
            words = bm25(self.documents, Path(scratch) / "words.pisa", num_results=DEPTH)(asked)
        self.runs = {
            "BM25": words.merge(vectors, on="qid"),
            "cosine": self.index.retriever(num_results=DEPTH)(self.topics),
        }
        self.runs = {name: self.index.vec_loader()(run) for name, run in self.runs.items()}

    def folds(self, seed: int) -> dict[str, int]:
        """Each topic's fold."""
        order = np.random.default_rng(seed).permutation(len(self.topics))
        return {self.topics["qid"].iloc[at]: i % FOLDS for i, at in enumerate(order)}

    def values(self, run: pd.DataFrame) -> pd.DataFrame:
        """Measures of every topic; 0 where nothing was found."""
        found = pt.Evaluate(run[["qid", "docno", "score"]], self.qrels, metrics=MEASURES, perquery=True)
        none = dict.fromkeys(map(str, MEASURES), 0.0)
        return pd.DataFrame({qid: found.get(qid, none) for qid in self.topics["qid"]}).T


def parts(frame: pd.DataFrame, folds: dict[str, int], fold: int) -> list[pd.DataFrame]:
    """Training, validation and test rows."""
    of = frame["qid"].map(folds)
    valid = (fold + 1) % FOLDS
    return [frame[~of.isin([fold, valid])], frame[of == valid], frame[of == fold]]


def reranked(c: Collection, first: str, seed: int, form: dict[str, Any]) -> tuple[pd.DataFrame, float]:
    """Candidates as scored by models that did not see their topic, and how many epochs were kept on average."""
    folds, found, epochs = c.folds(seed), [], []
    for fold in range(FOLDS):
        train, valid, test = parts(c.runs[first], folds, fold)
        nvf = mv.NVF(seed=seed, **form)
        nvf.fit(train, c.qrels, valid, c.qrels, index=c.index, verbose=False)
        found.append(nvf.reranker()(test))
        epochs.append(kept_epoch(nvf.history))
    return pd.concat(found), float(np.mean(epochs))


def kept_epoch(history: pd.DataFrame) -> int:
    """The epoch whose weights stayed."""
    return int(history.loc[history["kept"], "epoch"].iloc[0])


def transformed(c: Collection, seed: int) -> tuple[pd.DataFrame, float]:
    """All documents ranked by moved queries."""
    folds, found, epochs = c.folds(seed), [], []
    for fold in range(FOLDS):
        train, valid, test = parts(c.topics, folds, fold)
        nvf = mv.NVF(seed=seed)
        nvf.fit_query_transform(train, c.qrels, c.index, valid, c.qrels, verbose=False)
        found.append(nvf.retriever(c.index, num_results=DEPTH)(test))
        epochs.append(kept_epoch(nvf.transform_history))
    return pd.concat(found), float(np.mean(epochs))


def crossed(c: Collection, seed: int) -> dict[str, pd.DataFrame]:
    """Both first stages reranked by a cross-encoder of MiniLM's weights, trained on the same topics as NVF."""
    import cross_encoder

    folds = c.folds(seed)
    texts = pd.DataFrame(c.documents)
    found: dict[str, list[pd.DataFrame]] = {first: [] for first in c.runs}
    for fold in range(FOLDS):
        train, valid, _ = parts(c.topics, folds, fold)
        # it has no epoch to choose: validation topics are trained on as well
        asked = pd.concat([train, valid])[["qid", "query"]]
        run = c.runs["BM25"][c.runs["BM25"]["qid"].isin(asked["qid"])]
        data = mv.training.groups(asked, c.qrels, run, NEGATIVES, c.documents, short="drop", seed=seed)
        scores = cross_encoder.Scores(cross_encoder.trained(data, seed))
        score = pt.apply.doc_score(scores.scores, batch_size=4096)
        for first, mine in found.items():
            test = parts(c.runs[first], folds, fold)[2]
            mine.append(score(test[["qid", "query", "docno", "score", "rank"]].merge(texts, on="docno")))
    return {first: pd.concat(mine) for first, mine in found.items()}


def measure(arguments: argparse.Namespace, cache: Path) -> None:
    """Adds what is not kept yet."""
    found = kept.read(FILE)
    found["about"] = about("python benchmarks/nvf_real.py --data FOLDER", ("torch", "sentence-transformers"))

    def add(c: Collection, first: str, system: str, seed: int, run: pd.DataFrame, **told: Any) -> None:
        values = c.values(run)
        means = {name: round(float(values[name].mean()), 4) for name in values}
        row = {"collection": c.name, "first stage": first, "system": system, "seed": seed, **means, **told}
        found["rows"].append(row | {"topics": values["nDCG@10"].round(4).tolist()})
        print(row, flush=True)
        kept.write(FILE, found)

    def missing(name: str, first: str, system: str, seed: int) -> bool:
        wanted = {"collection": name, "first stage": first, "system": system, "seed": seed}
        return not any(wanted.items() <= row.items() for row in found["rows"])

    for name in arguments.collections:
        c = Collection(name, arguments.data, cache)
        for first, run in c.runs.items():
            if missing(name, first, "as found", 0):
                add(c, first, "as found", 0, run)
                add(c, first, "inner product", 0, mv.NVF().reranker()(run))
        for seed in arguments.seeds:
            if arguments.cross_encoder:
                if name in CROSS and missing(name, "BM25", "cross-encoder", seed):
                    start = time.perf_counter()
                    for first, run in crossed(c, seed).items():
                        add(c, first, "cross-encoder", seed, run)
                    print(f"{time.perf_counter() - start:.0f} s", flush=True)
                continue
            for system, (form, stages) in FORMS.items():
                for first in stages:
                    if missing(name, first, system, seed):
                        start = time.perf_counter()
                        run, epochs = reranked(c, first, seed, form)
                        add(c, first, system, seed, run, epochs=epochs, seconds=round(time.perf_counter() - start))
            if missing(name, "all", "query transform", seed):
                run, epochs = transformed(c, seed)
                add(c, "all", "query transform", seed, run, epochs=epochs)


def tables(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Means over seeds, the least and the largest, and the gain over what a system is before training."""
    lines = []
    for collection in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == collection]
        topics = {}
        for row in mine:
            topics.setdefault((row["first stage"], row["system"]), []).append(row["topics"])
        family = []
        for (first, system), values in topics.items():
            same = [r for r in mine if (r["first stage"], r["system"]) == (first, system)]
            known = [float(np.mean(r["topics"])) for r in same]
            line = {"collection": collection, "candidates": first, "system": system, "seeds": len(same)}
            line |= {"nDCG@10": np.mean(known), "least": min(known), "most": max(known)}
            line |= {name: round(np.mean([r[name] for r in same]), 4) for name in ("RR@10", "R@100")}
            line["epochs"] = round(np.mean([r["epochs"] for r in same]), 1) if "epochs" in same[0] else ""
            start = "as found" if system == "B, added to BM25" else "inner product"  # what it is before training
            reference = topics.get(("cosine" if first == "all" else first, start))
            if system not in ("inner product", "as found") and reference:
                gains = np.mean(values, axis=0) - np.array(reference[0])
                line |= {"gain": round(float(gains.mean()), 4), "p": round(randomisation(gains), 5)}
                family.append(line)
            lines.append(line)
        corrected(family)
    return pd.DataFrame(lines).fillna("")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    parser.add_argument("--cache", type=Path, help="where vectors are kept between runs")
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--cross-encoder", action="store_true", help="the cross-encoder alone, which takes far longer")
    arguments = parser.parse_args()
    if arguments.data is not None:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments, arguments.cache or Path(folder))
    print(tables(kept.read(FILE)["rows"]).to_string(index=False, float_format="{:.4f}".format))
