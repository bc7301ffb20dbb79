"""Sentences ranked inside encoded passages (AGRaME), beside sentences encoded alone, BM25 and MiniLM's cosine.

    python benchmarks/agrame_sentences.py --data FOLDER                  # ranks, and writes agrame_sentences.json
    python benchmarks/agrame_sentences.py --data FOLDER --only scifact   # the rows of one collection alone
    python benchmarks/agrame_sentences.py                                # prints the kept tables

Untrained MiniLM, gold sentence spans of the collections, judged sentences; texts are without titles, as spans are. The
sentences of all passages are ranked, on scifact of the best thousand, by their own score plus alpha times their
passage's; "z-scores" adds both after each has mean 0 and deviation 1 among a query's sentences.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from aligner_contrasts import corrected, randomisation
from ir_measures import RR, P, R, iter_calc
from limits import about

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
FILE = HERE / "agrame_sentences.json"
sys.path.insert(0, str(HERE.parent / "examples"))
from common import Cosine, bm25, load  # noqa: E402

#: how many passages' sentences are ranked; all of scifact's would be 46,000 a query
PASSAGES: dict[str, list[int | None]] = {
    "mvret:mini": [None, 10],
    "squad-a": [None, 10],
    "hotpot100": [None, 100, 10],
    "scifact": [1000, 100, 10],
}
ALPHAS = (0, 0.125, 0.25, 0.5, 1, 2)
#: tokens of a passage: with MiniLM's own 256, 63 % of scifact's passages would lose sentences
LENGTH = 512
MEASURES = [P @ 1, RR @ 10, R @ 5]
ALONE, ZERO, ONE = "sentences encoded alone", "passages encoded, alpha 0", "passages encoded, alpha 1"
PLANNED = [(ZERO, "BM25"), (ZERO, ALONE), (ONE, ALONE), (ONE, ZERO)]
Mix = Callable[[pd.DataFrame], pd.Series]


def lines(file: Path) -> list[str]:
    """Of a compressed file."""
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as opened:
        return [line.rstrip("\n") for line in opened]


class Sentences:
    """A collection's passages, their sentences, and judgements of sentences; named as this package names units."""

    def __init__(self, name: str, data: Path):
        if name.startswith("mvret:"):
            source = pt.get_dataset(name)
            documents = list(source.get_corpus_iter(verbose=False))
            found: Any = documents
            self.qrels = source.get_qrels("sentences")[["qid", "docno", "label"]]
            topics = source.get_topics()[["qid", "query"]]
        else:
            folder = data / name
            documents = [json.loads(line) for line in lines(folder / "docs.jsonl.gz")]
            found = map(json.loads, lines(folder / "sentences.jsonl.gz"))
            judged = [line.split() for line in lines(folder / "sentence_qrels.txt.gz")]
            rows = [(qid, docno.replace("#", "%s"), int(label)) for qid, _, docno, label in judged]
            self.qrels = pd.DataFrame(rows, columns=["qid", "docno", "label"])
            topics = load(collection=str(folder))[1]
        self.texts: dict[str, str] = {d["docno"]: d["text"] for d in documents}
        self.spans = {d["docno"]: [tuple(span) for span in d["spans"]] for d in found}
        self.topics = topics[topics["qid"].isin(self.qrels[self.qrels["label"] > 0]["qid"])].reset_index(drop=True)

    @property
    def passages(self) -> list[dict[str, str]]:
        """To be indexed."""
        return [{"docno": docno, "text": text} for docno, text in self.texts.items()]

    @property
    def sentences(self) -> list[dict[str, str]]:
        """To be indexed, each alone."""
        return [
            {"docno": f"{docno}%s{i}", "text": self.texts[docno][start:end]}
            for docno, spans in self.spans.items()
            for i, (start, end) in enumerate(spans)
        ]

    def with_text(self, results: pd.DataFrame) -> pd.DataFrame:
        """Results with texts of passages and spans of sentences."""
        names = results["docno"]
        return results.assign(text=names.map(self.texts), spans=names.map(self.spans))


def as_ranked(run: pd.DataFrame) -> pd.Series:
    """The scores that the run has."""
    return run["score"]


def weighed(alpha: float) -> Mix:
    """A sentence's own score plus alpha times its passage's."""
    return lambda run: run["unit_score"] + alpha * run["passage_score"]


def standardised(run: pd.DataFrame) -> pd.Series:
    """Both scores on one scale among each query's sentences, added."""
    both = run.groupby("qid")[["unit_score", "passage_score"]]
    return ((run[["unit_score", "passage_score"]] - both.transform("mean")) / both.transform("std")).sum(axis=1)


def found(pipeline: pt.Transformer, topics: pd.DataFrame, mixes: dict[str, Mix]) -> tuple[dict[str, Any], float]:
    """The ten best of each query by each mix, and milliseconds a query; 32 queries at once, to save memory."""
    best: dict[str, list[pd.DataFrame]] = {name: [] for name in mixes}
    took = 0.0
    for start in range(0, len(topics), 32):
        begun = time.perf_counter()
        run = pipeline(topics[start : start + 32])
        took += time.perf_counter() - begun
        for name, mix in mixes.items():
            mine = run[["qid", "docno"]].assign(score=mix(run))
            order = mine.sort_values(["score", "docno"], ascending=[False, True])
            best[name].append(order.groupby("qid", sort=False).head(10))
    return {name: pd.concat(parts) for name, parts in best.items()}, 1e3 * took / len(topics)


def rows_of(name: str, data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every way on one collection, and the planned differences."""
    these = Sentences(name, data)
    agrame = mv.AGRaME(mv.TokenEncoder(mv.models.MINILM, doc_length=LENGTH, verbose=True), alpha=0)
    with tempfile.TemporaryDirectory() as folder:
        rows: list[dict[str, Any]] = []
        values: dict[str, pd.Series] = {}
        for pipeline, mixes, index in _ways(these, agrame, PASSAGES[name], Path(folder)):
            runs, took = found(pipeline, these.topics, mixes)
            for way, run in runs.items():
                each = _each(these, run)
                means = {str(m): round(float(each[str(m)].mean()), 4) for m in MEASURES}
                size = None if index is None else index.info()["bytes"]
                rows.append({"collection": name, "way": way, **means, "ms a query": round(took, 2), "bytes": size})
                values[way] = each["P@1"]
    differences = [compared(values[left], values[right], collection=name, contrast=f"{left} - {right}")
                   for left, right in PLANNED]  # fmt: skip
    return rows, corrected(differences)


def _each(these: Sentences, run: pd.DataFrame) -> pd.DataFrame:
    """Measures of each query, 0 where it finds nothing."""
    names = {"qid": "query_id", "docno": "doc_id", "label": "relevance"}
    values = pd.DataFrame(iter_calc(MEASURES, these.qrels.rename(columns=names), run.rename(columns=names)))
    table = values.assign(measure=values["measure"].map(str)).pivot_table("value", "query_id", "measure")
    return table.reindex(these.topics["qid"], fill_value=0.0)


def _ways(
    these: Sentences, agrame: mv.AGRaME, depths: list[int | None], folder: Path
) -> Iterator[tuple[pt.Transformer, dict[str, Mix], mv.MultiVecIndex | None]]:
    """Pipelines, the rankings that are made of each one's scores, and the index that they read."""
    yield bm25(these.sentences, folder / "words.pisa"), {"BM25": as_ranked}, None
    yield Cosine(these.sentences), {"MiniLM cosine": as_ranked}, None
    queries = agrame.query_encoder()
    alone = mv.MultiVecIndex(folder / "sentences.mv")
    (agrame.doc_encoder() >> alone).index(these.sentences)
    yield queries >> alone.retriever(num_results=1000, candidates=None), {ALONE: as_ranked}, alone
    whole = mv.MultiVecIndex(folder / "passages.mv", store_offsets=True)
    (agrame.doc_encoder() >> whole).index(these.passages)
    mixes: dict[str, Mix] = {f"passages encoded, alpha {alpha:g}": weighed(alpha) for alpha in ALPHAS}
    mixes["passages encoded, z-scores"] = standardised
    for depth in depths:
        retriever = whole.retriever(num_results=depth, candidates=None)
        pipeline = queries >> retriever >> pt.apply.generic(these.with_text) >> agrame.unit_scorer(whole)
        if depth == depths[0]:
            yield pipeline, mixes, whole
        else:
            yield pipeline, {f"{way}, of the best {depth}": mixes[way] for way in (ZERO, ONE)}, whole


def compared(left: Any, right: Any, **row: Any) -> dict[str, Any]:
    """Mean difference of paired values, its 95 % interval (bootstrap over queries), and p of a randomisation test."""
    differences = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(0, len(differences), (10_000, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    numbers = {"delta": differences.mean(), "low": low, "high": high}
    return row | {k: round(float(v), 4) for k, v in numbers.items()} | {"p": round(randomisation(differences), 4)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    parser.add_argument("--only", nargs="+", choices=list(PASSAGES), help="run these collections; others stay as kept")
    arguments = parser.parse_args()
    if arguments.data is not None:
        chosen = arguments.only or list(PASSAGES)
        outcome: dict[str, Any] = json.loads(FILE.read_text()) if arguments.only else {}
        command = "OMP_NUM_THREADS=1 python benchmarks/agrame_sentences.py --data FOLDER"
        outcome["about"] = about(command, ("torch", "sentence-transformers")) | {"tokens of a passage": LENGTH}
        for collection in chosen:
            new = dict(zip(("rows", "contrasts"), rows_of(collection, arguments.data), strict=True))
            for part, rows in new.items():
                kept = [row for row in outcome.get(part, []) if row["collection"] != collection]
                outcome[part] = sorted(kept + rows, key=lambda row: list(PASSAGES).index(row["collection"]))
            FILE.write_text(json.dumps(outcome, indent=1) + "\n")
    kept = json.loads(FILE.read_text())
    print(pd.DataFrame(kept["rows"]).to_string(index=False))
    print(pd.DataFrame(kept["contrasts"]).to_string(index=False))
