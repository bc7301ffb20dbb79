"""Citations with no language model: sentences whose supporting passage is known, among passages that BM25 found.

    python benchmarks/agrame_cite.py --data FOLDER     # encodes, cites, and writes agrame_cite.json
    python benchmarks/agrame_cite.py                   # prints the kept table

Untrained MiniLM. A "generated sentence" is a claim of scifact that has evidence (for or against: both are to be cited),
two such claims joined by "and", or a question of hotpot100, which needs two paragraphs. Its context is BM25's best
passages of the collection; gold passages that are not among them take the last places, as an answer is made from what
it cites. Propositions are the claims that were joined, elsewhere clauses by a rule of punctuation and conjunctions.

precision: share of gold among the passages that a sentence cites, mean over sentences that cite any.
recall: share of what a sentence needs (one claim: any gold passage; two: one of each; a question: both) that it cites.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from limits import about

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
FILE = HERE / "agrame_cite.json"
sys.path.insert(0, str(HERE.parent / "examples"))
from agrame_sentences import lines  # noqa: E402
from common import bm25, load  # noqa: E402

MARGINS = [0.25, 0.5, 1.0, 2.0, 3.0]
RESAMPLES = 2000
CLAUSE = re.compile(r"[,;:]\s+|\s+(?:and|but|that|which|who|while|whereas|because|when|after|if)\s+")


@dataclass
class Case:
    """A sentence, its propositions, its context (best first), and sets of passages of which one each is needed."""

    qid: str
    sentence: str
    propositions: list[str]
    context: list[str]
    needs: list[set[str]]


def clauses(sentence: str) -> list[str]:
    """Parts of at least three words; shorter ones stay with what is before them."""
    parts, begin = [], 0
    for match in CLAUSE.finditer(sentence):
        left, right = sentence[begin : match.start()], sentence[match.end() :]
        if len(left.split()) >= 3 and len(right.split()) >= 3:
            parts.append(left)
            begin = match.end()
    return [*parts, sentence[begin:]]


class Collection:
    """Texts, and of each topic BM25's passages with the gold ones among them."""

    def __init__(self, folder: Path):
        documents, topics, qrels = load(collection=str(folder))
        documents = list(documents)
        self.texts = {d["docno"]: d["text"] for d in documents}
        judged = {line.split()[0] for line in lines(folder / "sentence_qrels.txt.gz")}
        self.topics = topics[topics["qid"].isin(judged)]
        self.gold = qrels[qrels["label"] > 0].groupby("qid")["docno"].agg(list).to_dict()
        with tempfile.TemporaryDirectory() as place:
            found = bm25(documents, Path(place) / "words.pisa", num_results=10)(self.topics)
        self.found = found.sort_values("rank").groupby("qid")["docno"].agg(list).to_dict()

    def context(self, qid: str, k: int) -> list[str]:
        """The best of BM25, gold ones that are missing in the last places."""
        best, gold = self.found.get(qid, [])[:k], self.gold[qid][:k]
        missing = [docno for docno in gold if docno not in best]
        kept = [docno for docno in best if docno in gold]
        others = [docno for docno in best if docno not in gold][: k - len(kept) - len(missing)]
        return [docno for docno in best if docno in kept or docno in others] + missing

    def cases(self, k: int, each: bool) -> list[Case]:
        """A case a topic; ``each`` gold passage is needed, or any of them."""
        out = []
        for qid, text in self.topics[["qid", "query"]].itertuples(index=False):
            gold = [{docno} for docno in self.gold[qid]] if each else [set(self.gold[qid])]
            out.append(Case(qid, text, clauses(text), self.context(qid, k), gold))
        return out


def joined(cases: list[Case]) -> list[Case]:
    """Two cases in one sentence, in the order of a fixed shuffle."""
    order = np.random.default_rng(0).permutation(len(cases))
    out = []
    for a, b in zip(order[::2], order[1::2], strict=False):
        one, two = cases[a], cases[b]
        parts = [one.sentence.rstrip(" ."), two.sentence.rstrip(" .")]
        context = list(dict.fromkeys([*one.context, *two.context]))
        out.append(Case(f"{one.qid}+{two.qid}", " and ".join(parts) + ".", parts, context, one.needs + two.needs))
    return out


def cited(cases: list[Case], out: pd.DataFrame) -> dict[str, list[str]]:
    """Passages by case, each once."""
    found = out.drop_duplicates(["qid", "docno"]).groupby("qid")["docno"].agg(list)
    return {case.qid: found.get(case.qid, []) for case in cases}


def measured(cases: list[Case], cites: dict[str, list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (NaN for none cited) and recall of each sentence."""
    precision, recall = np.full(len(cases), np.nan), np.zeros(len(cases))
    for i, case in enumerate(cases):
        mine, gold = cites[case.qid], set.union(*case.needs)
        recall[i] = np.mean([bool(need & set(mine)) for need in case.needs])
        if mine:
            precision[i] = np.mean([docno in gold for docno in mine])
    return precision, recall


def interval(differences: np.ndarray) -> list[float]:
    """95% of the means of resampled differences."""
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(RESAMPLES)]
    return [round(float(v), 3) for v in np.percentile(means, [2.5, 97.5])]


def ways_of(cases: list[Case], agrame: mv.AGRaME, index: mv.MultiVecIndex) -> dict[str, dict[str, list[str]]]:
    """What each way cites."""

    def contexts(answer: Callable[[Case], list[str]]) -> pd.DataFrame:
        rows = [(c.qid, d, c.sentence, answer(c)) for c in cases for d in c.context]
        return pd.DataFrame(rows, columns=["qid", "docno", "query", "qanswer"])

    whole = contexts(lambda case: [case.sentence])
    cite = agrame.cite(index)
    parts = cite(whole.assign(qpropositions=[[c.propositions] for c in cases for _ in c.context]))
    first = cite(whole)
    seen = set(zip(first["qid"], first["docno"], strict=True))
    rest = whole[[pair not in seen for pair in zip(whole["qid"], whole["docno"], strict=True)]]
    every_row = (agrame.query_encoder() >> index.scorer())(whole.drop(columns="qanswer"))
    ways = {
        "propositions": parts,
        "propositions encoded alone": cite(contexts(lambda case: case.propositions)),
        "sentence, top 1": first,
        "sentence, top 2": pd.concat([first, cite(rest)]),
        "sentence, special tokens too, top 1": every_row[every_row["rank"] == 0],
        "BM25, top 1": whole.drop_duplicates("qid"),
        **{f"propositions, margin {m}": parts[parts["margin"] >= m] for m in MARGINS},
    }
    return {name: cited(cases, out) for name, out in ways.items()}


def rows_of(name: str, cases: list[Case], agrame: mv.AGRaME, index: mv.MultiVecIndex) -> list[dict[str, Any]]:
    """Every way on one set of sentences."""
    about_set = {"sentences": name, "n": len(cases)}
    scores = {way: (cites, *measured(cases, cites)) for way, cites in ways_of(cases, agrame, index).items()}
    _, base_precision, base_recall = scores["propositions"]
    rows = []
    for way, (cites, precision, recall) in scores.items():
        row = {
            **about_set,
            "way": way,
            "precision": round(float(np.nanmean(precision)), 3),
            "recall": round(float(recall.mean()), 3),
            "citations": round(float(np.mean([len(c) for c in cites.values()])), 2),
            "cite any": round(float(np.mean([bool(c) for c in cites.values()])), 3),
        }
        if way != "propositions" and not np.isnan(precision).any():
            row["precision: propositions ahead by"] = interval(base_precision - precision)
            row["recall: propositions ahead by"] = interval(base_recall - recall)
        rows.append(row)
    chance = np.mean([len(set.union(*c.needs) & set(c.context)) / len(c.context) for c in cases])
    return [*rows, {**about_set, "way": "a random passage", "precision": round(float(chance), 3), "citations": 1.0}]


def run(data: Path) -> list[dict[str, Any]]:
    """All sets of sentences."""
    scifact, hotpot = Collection(data / "scifact"), Collection(data / "hotpot100")
    five, ten = scifact.cases(5, each=False), scifact.cases(10, each=False)
    sets = {
        "scifact, 5 passages": (scifact, five),
        "scifact, 10 passages": (scifact, ten),
        "scifact, 10 passages, several clauses": (scifact, [c for c in ten if len(c.propositions) > 1]),
        "two claims of scifact, 5 passages each": (scifact, joined(five)),
        "hotpot100, 10 passages": (hotpot, hotpot.cases(10, each=True)),
        "hotpot100, 10 passages, several clauses": (
            hotpot,
            [c for c in hotpot.cases(10, each=True) if len(c.propositions) > 1],
        ),
    }
    agrame = mv.AGRaME(mv.models.MINILM, verbose=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        indexes: dict[int, mv.MultiVecIndex] = {}
        for name, (collection, cases) in sets.items():
            if id(collection) not in indexes:  # of the largest contexts: the others are among them
                wanted = {d for c in (ten if collection is scifact else cases) for d in c.context}
                wanted |= {d for c in five for d in c.context} if collection is scifact else set()
                indexes[id(collection)] = mv.MultiVecIndex(Path(folder) / f"{len(indexes)}.mv", dtype="float32")
                texts = [{"docno": d, "text": collection.texts[d]} for d in sorted(wanted)]
                (agrame.doc_encoder() >> indexes[id(collection)]).index(texts)
            rows += rows_of(name, cases, agrame, indexes[id(collection)])
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    arguments = parser.parse_args()
    if arguments.data is not None:
        outcome = {
            "about": about("python benchmarks/agrame_cite.py --data FOLDER", ("torch", "sentence-transformers")),
            "rows": run(arguments.data),
        }
        FILE.write_text(json.dumps(outcome, indent=1) + "\n")
    print(pd.DataFrame(json.loads(FILE.read_text())["rows"]).to_string(index=False))
