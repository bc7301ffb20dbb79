"""Sentences ranked inside encoded passages (AGRaME), beside sentences encoded alone, BM25 and MiniLM's cosine.

    python benchmarks/agrame_sentences.py --data FOLDER     # encodes, ranks, and writes agrame_sentences.json
    python benchmarks/agrame_sentences.py                   # prints the kept table

Untrained MiniLM, gold sentence spans of the collections, judged sentences. Passage encoding ranks the sentences of all
passages, by their own score (alpha 0) or with their passage's (alpha 1). Texts are without titles, as spans are.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
from ir_measures import RR, P, R
from limits import about

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
FILE = HERE / "agrame_sentences.json"
sys.path.insert(0, str(HERE.parent / "examples"))
from common import Cosine, bm25, load  # noqa: E402

PASSAGES = {"squad-a": None, "hotpot100": None}
MEASURES = [P @ 1, RR @ 10, R @ 5]


def lines(file: Path) -> list[str]:
    """Of a compressed file."""
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as opened:
        return [line.rstrip("\n") for line in opened]


class Sentences:
    """A collection's passages, their sentences, and judgements of sentences; named as this package names units."""

    def __init__(self, folder: Path):
        self.texts = {d["docno"]: d["text"] for d in map(json.loads, lines(folder / "docs.jsonl.gz"))}
        found = map(json.loads, lines(folder / "sentences.jsonl.gz"))
        self.spans = {d["docno"]: [tuple(span) for span in d["spans"]] for d in found}
        judged = [line.split() for line in lines(folder / "sentence_qrels.txt.gz")]
        rows = [(qid, docno.replace("#", "%s"), int(label)) for qid, _, docno, label in judged]
        self.qrels = pd.DataFrame(rows, columns=["qid", "docno", "label"])
        topics = load(collection=str(folder))[1]
        self.topics = topics[topics["qid"].isin(self.qrels["qid"])]

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


def rows_of(name: str, data: Path) -> list[dict[str, Any]]:
    """Every way on one collection."""
    these = Sentences(data / name)
    encoder = mv.TokenEncoder(mv.models.MINILM, verbose=True)
    plain, summed = mv.AGRaME(encoder, alpha=0), mv.AGRaME(encoder, alpha=1)
    with tempfile.TemporaryDirectory() as folder:
        alone = mv.MultiVecIndex(Path(folder) / "sentences.mv")
        (plain.doc_encoder() >> alone).index(these.sentences)
        whole = mv.MultiVecIndex(Path(folder) / "passages.mv", store_offsets=True)
        (plain.doc_encoder() >> whole).index(these.passages)
        found = (
            plain.query_encoder() >> whole.retriever(num_results=PASSAGES[name]) >> pt.apply.generic(these.with_text)
        )
        ways = {
            "BM25": (bm25(these.sentences, Path(folder) / "words.pisa"), None),
            "MiniLM cosine": (Cosine(these.sentences), None),
            "sentences encoded alone": (plain.query_encoder() >> alone.retriever(num_results=1000), alone),
            "passages encoded, alpha 0": (found >> plain.unit_scorer(whole), whole),
            "passages encoded, alpha 1": (found >> summed.unit_scorer(whole), whole),
        }
        rows = []
        for way, (pipeline, index) in ways.items():
            start = time.perf_counter()
            run = pipeline(these.topics)
            took = 1e3 * (time.perf_counter() - start) / len(these.topics)
            measured = pt.Evaluate(run, these.qrels, metrics=MEASURES)
            row = {"collection": name, "way": way, **{str(m): round(measured[str(m)], 4) for m in MEASURES}}
            row |= {"ms a query": round(took, 2), "bytes": index.info()["bytes"] if index is not None else None}
            rows.append(row)
        return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    arguments = parser.parse_args()
    if arguments.data is not None:
        outcome: dict[str, Any] = {
            "about": about("python benchmarks/agrame_sentences.py --data FOLDER", ("torch", "sentence-transformers")),
            "rows": [],
        }
        for collection in PASSAGES:
            outcome["rows"] += rows_of(collection, arguments.data)
            FILE.write_text(json.dumps(outcome, indent=1) + "\n")
    print(pd.DataFrame(json.loads(FILE.read_text())["rows"]).to_string(index=False))
