"""AGRaME on MiniLM: passages are found, and their sentences ranked by the very same token vectors.

    python examples/agrame.py                            # mvret:mini, a small collection inside the package
    python examples/agrame.py --query "who purrs"        # instead of the first topic
    python examples/agrame.py --first colbert            # passages by MaxSim end to end, not by BM25
    python examples/agrame.py --html sentences.html      # the same as a page, every shown passage in full
    python examples/agrame.py --collection FOLDER        # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz

Passages are encoded once; a sentence is a set of rows of the index. Where a collection says where its sentences are
and which are relevant (mvret:mini, or a folder with sentences.jsonl.gz and sentence_qrels.txt.gz), those are used and
a table follows; else sentences are found by rule. A title takes part in encoding and belongs to no sentence.
"""

import argparse
import gzip
import html
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
from common import bm25, load
from ir_measures import RR, P, R

import pyterrier_mvret as mv

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{query}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ max-width: 45em; margin: 2em auto; padding: 0 1em; font: 1em/1.5 serif; color: #222; background: #fff }}
h1 {{ font-size: 1.3em }} h2 {{ font-size: 1em; color: #666; overflow-wrap: anywhere }}
mark {{ background: #fdf0b5 }} mark.best {{ background: #ffd34d }} sup {{ color: #666 }}
</style></head><body><h1>{query}</h1>
{passages}
</body></html>
"""


def labelled(
    dataset: str | None, collection: str | None, texts: dict[str, str]
) -> tuple[dict[str, list[Any]], pd.DataFrame] | None:
    """Characters of each passage's sentences, and their labels; none where the collection has none."""
    if collection is not None:
        folder = Path(collection)
        if not (folder / "sentences.jsonl.gz").is_file():
            return None
        spans = {d["docno"]: d["spans"] for d in map(json.loads, lines(folder / "sentences.jsonl.gz"))}
        judged = [line.split() for line in lines(folder / "sentence_qrels.txt.gz")]
        rows = [(qid, docno.replace("#", "%s"), int(label)) for qid, _, docno, label in judged]
        qrels = pd.DataFrame(rows, columns=["qid", "docno", "label"])
    elif dataset in (None, "mvret:mini"):
        source = pt.get_dataset("mvret:mini")
        spans = {d["docno"]: d["spans"] for d in source.get_corpus_iter(verbose=False)}
        qrels = source.get_qrels("sentences")
    else:
        return None
    moved = {}
    for docno, text in texts.items():  # places are of the text alone, which stands behind its title
        title = len(text.rstrip()) - max((end for _, end in spans[docno]), default=0)
        moved[docno] = [(start + title, end + title) for start, end in spans[docno]]
    return moved, qrels


def lines(file: Path) -> list[str]:
    """Of a compressed file."""
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as opened:
        return list(opened)


def marked(text: str, sentences: pd.DataFrame, mark: Callable[[str, int], str], plain: Callable[[str], str]) -> str:
    """A passage's text with some of its sentences marked, by their rank among all sentences."""
    parts, at = [], 0
    for start, end, rank in sentences.sort_values("start")[["start", "end", "rank"]].to_numpy().tolist():
        parts += [plain(text[at:start]), mark(text[start:end], rank + 1)]
        at = end
    return "".join([*parts, plain(text[at:])])


def in_terminal(sentence: str, rank: int) -> str:
    """Colours where a person looks on, markers where a file is written."""
    if not sys.stdout.isatty():
        return f"[{rank}> {sentence} <{rank}]"
    return f"\033[{'1;32' if rank == 1 else '32'}m[{rank}] {sentence}\033[0m"


def in_page(sentence: str, rank: int) -> str:
    """A sentence as HTML."""
    kind = ' class="best"' if rank == 1 else ""
    return f"<mark{kind}><sup>{rank}</sup> {html.escape(sentence)}</mark>"


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--model", help="a multi-vector checkpoint (default: MiniLM's token states)")
parser.add_argument("--query", help="what to show sentences for (default: the first topic)")
parser.add_argument("--first", choices=["bm25", "colbert"], default="bm25", help="what finds the passages to show")
parser.add_argument("--alpha", type=float, default=1.0, help="weight of a passage's score in its sentences'")
parser.add_argument("--passages", type=int, default=20, help="passages whose sentences are ranked")
parser.add_argument("--show", type=int, default=3, help="passages that are shown")
parser.add_argument("--sentences", type=int, default=2, help="sentences that are marked in each of them")
parser.add_argument("--html", type=Path, help="a page to write")
arguments = parser.parse_args()

documents, topics, _ = load(arguments.dataset, arguments.collection)
texts = {d["docno"]: d["text"] for d in documents}
labels = labelled(arguments.dataset, arguments.collection, texts)
print(f"{len(documents)} passages, {len(topics)} topics, sentences {'as labelled' if labels else 'by rule'}")

encoder = mv.TokenEncoder(arguments.model or mv.models.MINILM, verbose=True)
agrame = mv.AGRaME(encoder, alpha=arguments.alpha)

with tempfile.TemporaryDirectory() as folder:
    # 1. one encoding and one index; it keeps the characters of each token, by which sentences find their rows
    index = mv.MultiVecIndex(Path(folder) / "passages.mv", store_offsets=True)
    (agrame.doc_encoder() >> index).index(documents)
    table = pd.DataFrame({"docno": list(texts), "text": list(texts.values())})
    if labels is not None:
        table["spans"] = table["docno"].map(labels[0])
    with_text = pt.apply.generic(lambda found: found.merge(table, on="docno", how="left"))
    first = {
        "bm25": bm25(documents, Path(folder) / "passages.pisa") % arguments.passages,
        "colbert": agrame.query_encoder() >> index.retriever(num_results=arguments.passages),
    }

    # 2. for one query the best passages, and in each the best sentences, numbered by their place among all
    query = arguments.query or topics["query"].iloc[0]
    asked = pd.DataFrame([{"qid": "1", "query": query}])
    units = (first[arguments.first] >> with_text >> agrame.unit_scorer(index))(asked)
    shown = agrame.fold("max")(units).nsmallest(arguments.show, "rank")
    best = units.sort_values("rank").groupby("parent_docno").head(arguments.sentences)
    best = best[best["parent_docno"].isin(shown["docno"])]
    print(f"\n{printable(query)}\n")
    page = []
    for passage in shown["docno"]:
        mine, text = best[best["parent_docno"] == passage], texts[passage]
        print(f"{printable(passage)}: {marked(printable(text), mine, in_terminal, str)}\n")
        page.append(f"<h2>{html.escape(passage)}</h2>\n<p>{marked(text, mine, in_page, html.escape)}</p>")
    scores = best[["rank", "docno", "unit_score", "passage_score", "score"]]
    print(scores.round(2).to_string(index=False) if len(best) else "no passage found")
    if arguments.html is not None:
        filled = PAGE.format(query=html.escape(query), passages="\n".join(page))
        arguments.html.write_text(filled, encoding="utf-8", errors="replace")
        print(f"page: {arguments.html}")

    # 3. what it is worth: sentences found by words, encoded one by one, and inside their passages
    if labels is not None:
        spans, qrels = labels
        alone = [
            {"docno": f"{docno}%s{i}", "text": texts[docno][start:end]}
            for docno, places in spans.items()
            for i, (start, end) in enumerate(places)
        ]
        each = mv.MultiVecIndex(Path(folder) / "sentences.mv")
        (agrame.doc_encoder() >> each).index(alone)
        systems = {
            "BM25 of sentences": bm25(alone, Path(folder) / "sentences.pisa"),
            "sentences encoded alone": agrame.query_encoder() >> each.retriever(),
        }
        for name, passages in first.items():
            for alpha in (0, 1):
                scorer = mv.AGRaME(encoder, alpha=alpha).unit_scorer(index)
                systems[f"{name} >> AGRaME, alpha {alpha}"] = passages >> with_text >> scorer
        judged = topics[topics["qid"].isin(qrels[qrels["label"] > 0]["qid"])]
        measured = pt.Experiment(systems, judged[["qid", "query"]], qrels, [P @ 1, RR @ 10, R @ 5, "mrt"], round=3)
        sizes = {"sentences": each.info()["bytes"] / 2**20, "passages": index.info()["bytes"] / 2**20}
        print(f"\n{measured.to_string(index=False)}")
        print(", ".join(f"index of {name}: {size:.1f} MiB" for name, size in sizes.items()))
