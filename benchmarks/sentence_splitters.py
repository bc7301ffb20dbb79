"""Sentence splitters beside each other: agreement with given sentences, offsets that can be trusted, speed.

    python benchmarks/sentence_splitters.py --data FOLDER      # measures, and writes sentence_splitters.json
    python benchmarks/sentence_splitters.py                    # prints the kept table

FOLDER holds squad-a, hotpot100 and scifact; mvret:mini ships with the package. Peers that are not installed are left
out with a message. *Spans* counts sentences whose characters are exactly the given ones, *boundaries* places where a
sentence other than the first begins. Whose sentences are given: mini's were written one by one; hotpot100's and
scifact's come from their data sets, which split them by machine; squad-a's from a rule much like ``plain rule``
here, which so agrees with itself.*Unsafe* are texts, of all collections and some awkward ones, in which the spans are
not in order, overlap, leave out more than white space, or a library fails; strings were looked for in the text.
Sentences a second are of one thread, best of up to three, and to be read as ratios.

Not compared: spaCy (17 packages that we lack, for its ``sentencizer`` alone), nltk's trained Punkt, stanza, wtpsplit
and kss (data or models to be downloaded), minisbd (AGPL, onnxruntime).
"""

import argparse
import gzip
import importlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
from limits import about

FILE = Path(__file__).resolve().with_suffix(".json")
COLLECTIONS = ("squad-a", "hotpot100", "scifact")
REPEATS, LONG = 3, 30  # times; seconds after which one is enough

Span = tuple[int, int]
Split = Callable[[str], Iterable[Span]]

AWKWARD = [
    "",
    " \n\t ",
    "  Two blanks.  Before  and after.   ",
    "Same. Same. Same.",
    "No end",
    "...",
    "a\r\nb.\r\n\r\nC d.\rE f.",
    "Wait.. what? Really?! Yes!!  (Sure.) [Ok.] “Fine.” ‘Good.’",
    "1) The first item. 2) The second item.",
    "Cafe\u0301 noir. E\u0301te\u0301 a\u0300 Paris. \u0301Alone.",
    "Smile \U0001f600. Family \U0001f468\u200d\U0001f469! Flag \U0001f1e9\U0001f1ea? \U0001f600\U0001f600. End",
    "Zero\u200bwidth. No\u00a0break. Thin\u2009blank.\u2028Line. \u3000Wide.",
    "これは文です。これも文です！本当？はい。",
    "Nul\x00byte. Vertical\x0btab. Form\x0cfeed. Unit\x1fseparator.",
    "Ends in a quote.” And on. \"Said so.\" he said. 'Oh.' she said.",
    "see e.g. Smith et al. (1999, p. 3). The U.S. is big. Mr. X. Y. Zed left at 5 p.m. Then came St. Mary's.",
    "A list:\n- one.\n- two\n\n\n\nA new paragraph. With two sentences.\n",
    "ﬁrst ligature. İstanbul. ǅ title case. ß ends.",
    "www.example.com. Version 1.2.3. $3.50. .5 is half. a.b.c d... E",
]


def plain_rule() -> Split:
    """An end at . ! or ? before white space and an upper-case letter, digit or quote; a few abbreviations."""
    end = re.compile(r"""[.!?]+['"’”)\]]*(?=\s+["'“‘(\[]?[^\W_a-z])""")
    abbreviation = re.compile(
        r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|al|Fig|No|Inc|Ltd|Co|Corp|approx|cf|p|pp|vol)|\b[A-Z])\.$"
    )

    def split(text: str) -> Iterator[Span]:
        start = 0
        for match in end.finditer(text):
            if abbreviation.search(text, max(0, match.end() - 12), match.end()):
                continue
            yield start, match.end()
            start = match.end()
        yield start, len(text)

    return split


def sentencex() -> Split:
    """Wikimedia's splitter, in Rust."""
    found = importlib.import_module("sentencex").get_sentence_boundaries
    return lambda text: ((s["start_index"], s["end_index"]) for s in found("en", text))


def pysbd() -> Split:
    """Golden rules of pragmatic_segmenter."""
    segmenter = importlib.import_module("pysbd").Segmenter(language="en", clean=False, char_span=True)
    return lambda text: ((s.start, s.end) for s in segmenter.segment(text))


def sentencesplit() -> Split:
    """A fork of pysbd."""
    segmenter = importlib.import_module("sentencesplit").Segmenter(language="en")
    return lambda text: ((s.start, s.end) for s in segmenter.segment_spans(text))


def blingfire() -> Split:
    """Microsoft's automata, in C++."""
    found = importlib.import_module("blingfire").text_to_sentences_and_offsets
    return lambda text: found(text)[1]


def syntok() -> Split:
    """Segtok's second version; sentences are lists of tokens with places."""
    segmenter = importlib.import_module("syntok.segmenter")

    def split(text: str) -> Iterator[Span]:
        for paragraph in segmenter.analyze(text):
            for tokens in paragraph:
                yield tokens[0].offset, tokens[-1].offset + len(tokens[-1].value)

    return split


def segtok() -> Split:
    """By strings."""
    segmenter = importlib.import_module("segtok.segmenter")
    return lambda text: searched(text, segmenter.split_multi(text))


def nltk() -> Split:
    """Punkt without its trained data, which nltk does not ship."""
    return importlib.import_module("nltk.tokenize.punkt").PunktSentenceTokenizer().span_tokenize


def nupunkt() -> Split:
    """Punkt with data that the package ships, made for legal text."""
    return importlib.import_module("nupunkt").sent_spans


def sentence_splitter() -> Split:
    """The splitter of Europarl, by strings."""
    splitter = importlib.import_module("sentence_splitter").SentenceSplitter(language="en")
    return lambda text: searched(text, splitter.split(text))


def sentence_stream() -> Split:
    """Made for speech, by strings."""
    found = importlib.import_module("sentence_stream").stream_to_sentences
    return lambda text: searched(text, found([text]))


def simplemma() -> Split:
    """By strings."""
    found = importlib.import_module("simplemma").split_sentences
    return lambda text: searched(text, found(text, lang="en"))


def tokenizesentences() -> Split:
    """English alone."""
    return importlib.import_module("tokenizesentences").tokenize_spans


SPLITTERS: dict[str, Callable[[], Split]] = {
    "plain rule": plain_rule,
    "sentencex": sentencex,
    "pysbd": pysbd,
    "sentencesplit": sentencesplit,
    "blingfire": blingfire,
    "syntok": syntok,
    "segtok": segtok,
    "nltk": nltk,
    "nupunkt": nupunkt,
    "sentence-splitter": sentence_splitter,
    "sentence-stream": sentence_stream,
    "simplemma": simplemma,
    "tokenizesentences": tokenizesentences,
}

#: when the measured releases came out
RELEASED = {
    "sentencex": "2026-09",
    "pysbd": "2021-02",
    "sentencesplit": "2026-06",
    "blingfire": "2021-09",
    "syntok": "2022-03",
    "segtok": "2021-12",
    "nltk": "2026-10",
    "nupunkt": "2026-09",
    "sentence-splitter": "2019-01",
    "sentence-stream": "2026-01",
    "simplemma": "2026-08",
    "tokenizesentences": "2026-08",
}


def package(name: str) -> dict[str, Any]:
    """What an installed package says of itself, and how large it is."""
    found = distribution(name)
    fields, needs = found.metadata, found.requires or []
    said = fields.get("License-Expression") or fields.get("License") or ""
    classified = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier", []) if c.startswith("License")]
    return {
        "released": RELEASED[name],
        "licence": (classified or [said])[0],
        "needs": [need for need in needs if "extra" not in need],
        "megabytes": round(sum(f.size or 0 for f in found.files or []) / 1e6, 1),
    }


def searched(text: str, sentences: Iterable[str]) -> Iterator[Span]:
    """Where strings lie in the text, each behind the one before; those that are not there are left out."""
    behind = 0
    for sentence in sentences:
        place = text.find(sentence, behind)
        if place >= 0:
            behind = place + len(sentence)
            yield place, behind


def stripped(text: str, spans: Iterable[Span]) -> list[Span]:
    """Spans without white space at their ends; without those that are nothing else."""
    found = []
    for start, end in spans:
        inner = text[start:end].strip()
        if inner:
            start += len(text[start:end]) - len(text[start:end].lstrip())
            found.append((start, start + len(inner)))
    return found


def unsafe(text: str, spans: list[Span]) -> bool:
    """Whether spans are out of order, overlap, leave the text, or leave out more than white space."""
    edges = [0, *(place for span in spans for place in span), len(text)]
    between = (text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
    return edges != sorted(edges) or any(gap.strip() for gap in between)


def fails(split: Split, text: str) -> bool:
    """Whether a text is split unsafely, or not at all."""
    try:
        return unsafe(text, stripped(text, split(text)))
    except Exception:  # whatever a library raises
        return True


def collections(data: Path) -> dict[str, list[tuple[str, list[Span]]]]:
    """Texts and their sentences."""
    mini = pt.get_dataset("mvret:mini").get_corpus_iter(verbose=False)
    found = {"mini": [(d["text"], [tuple(span) for span in d["spans"]]) for d in mini]}
    for name in COLLECTIONS:
        texts, spans = (read(data / name / f"{what}.jsonl.gz") for what in ("docs", "sentences"))
        pairs = zip(texts, spans, strict=True)
        found[name] = [(d["text"], stripped(d["text"], s["spans"])) for d, s in pairs]
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """Objects, one a line."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def agreement(found: list[set[Any]], given: list[set[Any]]) -> dict[str, float]:
    """Precision, recall and F1 over all texts together."""
    hits = sum(len(a & b) for a, b in zip(found, given, strict=True))
    precision, recall = (hits / max(1, sum(map(len, side))) for side in (found, given))
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"P": round(precision, 4), "R": round(recall, 4), "F1": round(f1, 4)}


def measured(split: Split, texts: list[tuple[str, list[Span]]]) -> dict[str, Any]:
    """Agreement and speed on one collection."""
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < LONG:
        start = time.perf_counter()
        raw = [list(split(text)) for text, _ in texts]
        seconds.append(time.perf_counter() - start)
    found = [stripped(text, spans) for (text, _), spans in zip(texts, raw, strict=True)]
    given = [spans for _, spans in texts]
    return {
        "spans": agreement([set(s) for s in found], [set(s) for s in given]),
        "boundaries": agreement([{a for a, _ in s[1:]} for s in found], [{a for a, _ in s[1:]} for s in given]),
        "sentences a second": round(sum(map(len, given)) / min(seconds)),
        "unsafe": sum(unsafe(text, spans) for (text, _), spans in zip(texts, found, strict=True)),
    }


def main(data: Path) -> None:
    """All splitters on all collections."""
    given = collections(data)
    rows: dict[str, Any] = {}
    for name, make in SPLITTERS.items():
        try:
            split = make()
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        print(name, flush=True)
        rows[name] = {collection: measured(split, texts) for collection, texts in given.items()}
        rows[name]["awkward texts unsafe"] = sum(fails(split, text) for text in AWKWARD)
    outcome = {
        "about": about("python benchmarks/sentence_splitters.py --data FOLDER", list(SPLITTERS)[1:]),
        "sentences": {collection: sum(len(s) for _, s in texts) for collection, texts in given.items()},
        "texts": {"awkward": len(AWKWARD)} | {collection: len(texts) for collection, texts in given.items()},
        "packages": {name: package(name) for name in rows if name in RELEASED},
        "splitters": rows,
    }
    FILE.write_text(json.dumps(outcome, indent=1) + "\n")


def show() -> None:
    """F1 of spans and of boundaries, texts with unsafe spans, and speed on scifact beside the plain rule's."""
    kept = json.loads(FILE.read_text())
    names = [name for name in kept["texts"] if name != "awkward"]
    rows = kept["splitters"]
    table = pd.DataFrame(
        {
            splitter: {f"{name} {what}": row[name][what]["F1"] for what in ("spans", "boundaries") for name in names}
            | {"unsafe": sum(row[name]["unsafe"] for name in names), "awkward": row["awkward texts unsafe"]}
            | {"sentences a second": row["scifact"]["sentences a second"]}
            for splitter, row in rows.items()
        }
    ).T
    whole = ["unsafe", "awkward", "sentences a second"]
    print(table.astype(dict.fromkeys(whole, int)).to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    arguments = parser.parse_args()
    if arguments.data:
        main(arguments.data)
    show()
