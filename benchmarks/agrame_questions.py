"""What AGRaME's paper leaves open: encoded length, size of units, compression, special rows, another encoder.

    python benchmarks/agrame_questions.py --data FOLDER [--encoder FOLDER ...]   # writes agrame_questions.json
    python benchmarks/agrame_questions.py --data FOLDER --only lengths           # one experiment; others stay as kept
    python benchmarks/agrame_questions.py                                        # prints the kept tables

MiniLM's token states as they are, and those of other sentence encoders; gold sentence spans, judged sentences, no
titles. All units of a collection are ranked for each query; P@1 says whether the first is relevant: a sentence by its
label, a phrase by its sentence's, a passage by whether it has such a sentence.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from agrame_sentences import LENGTH, Sentences, compared
from aligner_contrasts import corrected
from limits import about

import pyterrier_mvret as mv
from pyterrier_mvret import frames
from pyterrier_mvret.encoders.splitters import Phrases
from pyterrier_mvret.encoders.token_batch import TokenBatch
from pyterrier_mvret.encoders.units import unit_rows
from pyterrier_mvret.scoring import UnitRows, maxima, unit_scores

FILE = Path(__file__).resolve().parent / "agrame_questions.json"
COLLECTIONS = ("mvret:mini", "squad-a", "hotpot100")
DTYPES = ("float32", "float16", "bfloat16", "int8", "residual4", "residual2", "residual1")
SENTENCE, MIXED, PASSAGE = "sentence P@1", "sentence P@1, alpha 1", "passage P@1"
DIVISORS: dict[str, Callable[[Any], Any]] = {"tokens": np.asarray, "root of tokens": np.sqrt}
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
#: one line of a table: what it is called, facts, and whether each query's first is relevant, by measure
Line = tuple[str, dict[str, Any], dict[str, Bools]]


class Setting:
    """What one encoder makes of a collection."""

    def __init__(self, these: Sentences, encoder: mv.TokenEncoder):
        self.encoder = encoder
        self.docnos, self.texts = list(these.texts), list(these.texts.values())
        self.spans = [these.spans[docno] for docno in self.docnos]
        self.queries = encoder.encode_queries(these.topics["query"].tolist())
        self.passage_of = np.repeat(np.arange(len(self.spans)), [len(spans) for spans in self.spans])
        names = [d["docno"] for d in these.sentences]
        place = {name: i for i, name in enumerate(names)}
        topic = {qid: i for i, qid in enumerate(these.topics["qid"])}
        self.wanted = np.zeros((len(topic), len(names)), dtype=bool)
        for qid, docno in these.qrels.loc[these.qrels["label"] > 0, ["qid", "docno"]].itertuples(index=False):
            self.wanted[topic[qid], place[docno]] = True
        self.wanted_passages = np.zeros((len(topic), len(self.texts)), dtype=bool)
        at, sentence = np.nonzero(self.wanted)
        self.wanted_passages[at, self.passage_of[sentence]] = True

    @cached_property
    def passages(self) -> TokenBatch:
        """Encoded as they are."""
        return self.encoder.encode_docs(self.texts, verbose=True)

    @cached_property
    def alone(self) -> TokenBatch:
        """Sentences, each encoded alone."""
        each = zip(self.texts, self.spans, strict=True)
        return self.encoder.encode_docs([text[a:b] for text, spans in each for a, b in spans], verbose=True)

    @cached_property
    def sentences(self) -> UnitRows:
        """Rows of the encoded passages."""
        return unit_rows(self.passages.spans, self.passages.offsets, self.texts, self.spans)

    def scores(self, vectors: Floats, units: UnitRows, weights: Sequence[Floats] | None = None) -> Floats:
        """(queries, units); ``weights`` of each query's tokens."""
        each: Sequence[Floats | None] = weights or [None] * len(self.queries)
        return np.stack([unit_scores(q, vectors, units, w) for q, w in zip(self.queries, each, strict=True)])


def whole(batch: TokenBatch) -> UnitRows:
    """Each text as a unit, special tokens included."""
    return UnitRows.of_runs(batch.offsets[:-1], batch.offsets[1:])


def special(batch: TokenBatch) -> Bools:
    """Which tokens stand for no character."""
    assert batch.spans is not None
    return batch.spans[:, 1] == 0


def some(units: UnitRows, keep: Callable[[Ints], Ints]) -> UnitRows:
    """Units of other rows, given those that each has."""
    return UnitRows.of([keep(units.rows(i)).tolist() for i in range(len(units))], units.texts)


def first(scores: Floats, wanted: Bools) -> Bools:
    """Whether each query's best unit is relevant."""
    return wanted[np.arange(len(scores)), scores.argmax(axis=1)]


# ---------------------------------------------------------------------------------------------- experiments


def encoders(s: Setting) -> Iterator[Line]:
    """Sentences alone and inside passages; do a sentence's rows hold the tokens that it has alone?"""
    own, texts = s.scores(s.passages.vectors, s.sentences), s.scores(s.passages.vectors, whole(s.passages))
    alone, ids = s.scores(s.alone.vectors, whole(s.alone)), s.alone.token_ids
    assert ids is not None
    assert s.passages.token_ids is not None
    inner = [ids[s.alone.rows(i)][1:-1] for i in range(len(s.alone))]
    same = [np.array_equal(s.passages.token_ids[s.sentences.rows(i)], inner[i]) for i in range(len(inner))]
    folded = np.stack([alone[:, s.passage_of == i].max(axis=1, initial=-np.inf) for i in range(len(s.texts))], axis=1)
    cut = int((s.sentences.sizes == 0).sum())
    fact = {"sentences": len(inner), "of the tokens they have alone": round(float(np.mean(same)), 4), "cut off": cut}
    yield "sentences alone", {}, {SENTENCE: first(alone, s.wanted), PASSAGE: first(folded, s.wanted_passages)}
    passage = first(texts, s.wanted_passages)
    yield "passages, alpha 0", fact, {SENTENCE: first(own, s.wanted), PASSAGE: passage}
    yield "passages, alpha 1", fact, {SENTENCE: first(own + texts[:, s.passage_of], s.wanted), PASSAGE: passage}


def lengths(s: Setting) -> Iterator[Line]:
    """The same sentences, encoded in parts of their passages, and in longer texts: of one article, or by chance."""
    for most in (2, 4):
        pieces = [(i, spans[at : at + most]) for i, spans in enumerate(s.spans) for at in range(0, len(spans), most)]
        texts = [s.texts[i][spans[0][0] : spans[-1][1]] for i, spans in pieces]
        batch = s.encoder.encode_docs(texts, verbose=True)
        inner = [[(a - spans[0][0], b - spans[0][0]) for a, b in spans] for _, spans in pieces]
        rows = unit_rows(batch.spans, batch.offsets, texts, inner)
        yield (
            f"up to {most} sentences",
            _around(batch, rows),
            {SENTENCE: first(s.scores(batch.vectors, rows), s.wanted)},
        )
    shuffled = np.random.default_rng(0).permutation(len(s.texts))
    articles = pd.factorize(pd.Series(s.docnos).str.extract(r"^(a\d\d)p\d$")[0])[0]  # -1 for all but squad-a
    sizes = np.diff(s.passages.offsets)
    plans = {"passages alone": [[i] for i in range(len(s.texts))]}
    for most in (2, 4):
        if (articles >= 0).all():
            plans[f"up to {most} of an article"] = _grouped(range(len(s.texts)), articles, sizes, most)
        plans[f"up to {most} by chance"] = _grouped(shuffled, np.zeros(len(s.texts)), sizes, most)
    for way, groups in plans.items():
        places, joined, inner = [], [], []
        for group in groups:
            starts = np.cumsum([0, *(len(s.texts[i]) + 1 for i in group)])[:-1]
            joined.append(" ".join(s.texts[i] for i in group))
            inner.append([(a + at, b + at) for at, i in zip(starts, group, strict=True) for a, b in s.spans[i]])
            places.append([(at, at + len(s.texts[i])) for at, i in zip(starts, group, strict=True)])
        batch = s.encoder.encode_docs(joined, verbose=True)
        order = [i for group in groups for i in group]
        back = np.argsort(np.concatenate([np.flatnonzero(s.passage_of == i) for i in order]))
        units = unit_rows(batch.spans, batch.offsets, joined, inner)
        own = s.scores(batch.vectors, units)[:, back]
        passages = s.scores(batch.vectors, unit_rows(batch.spans, batch.offsets, joined, places))[:, np.argsort(order)]
        around = s.scores(batch.vectors, whole(batch))[:, units.texts[back]]
        yield (
            way,
            _around(batch, units),
            {
                SENTENCE: first(own, s.wanted),
                MIXED: first(own + passages[:, s.passage_of], s.wanted),
                f"{MIXED}, whole text": first(own + around, s.wanted),
                PASSAGE: first(passages, s.wanted_passages),
            },
        )


def _around(batch: TokenBatch, rows: UnitRows) -> dict[str, Any]:
    """Tokens of the text around a sentence, on average, and sentences that are beyond its end."""
    tokens = np.diff(batch.offsets)[rows.texts]
    return {"tokens around a sentence": round(float(tokens.mean())), "cut off": int((rows.sizes == 0).sum())}


def _grouped(order: Any, articles: npt.NDArray[Any], sizes: Ints, most: int) -> list[list[int]]:
    """Neighbours of one article, as many as allowed and as fit without their special tokens."""
    groups: list[list[int]] = []
    for i in order:
        mine = groups[-1] if groups else []
        fits = len(mine) < most and sizes[mine].sum() - 2 * len(mine) + sizes[i] <= LENGTH
        if mine and fits and articles[mine[0]] == articles[i]:
            mine.append(i)
        else:
            groups.append([i])
    return groups


def units(s: Setting) -> Iterator[Line]:
    """Phrases, sentences and passages: scores as they are, divided by length, with a cap, and with what is around."""
    texts = s.scores(s.passages.vectors, whole(s.passages))
    sentence = s.scores(s.passages.vectors, s.sentences)
    kinds = {"sentence": (s.sentences, np.arange(len(s.sentences)))}
    for words in (3, 5, 8):
        cut = [
            [[(a + x, a + y) for x, y in Phrases(words).split(text[a:b])] for a, b in spans]
            for text, spans in zip(s.texts, s.spans, strict=True)
        ]
        of = np.repeat(np.arange(len(s.sentences)), [len(phrases) for mine in cut for phrases in mine])
        flat = [[span for phrases in mine for span in phrases] for mine in cut]
        kinds[f"{words} words"] = unit_rows(s.passages.spans, s.passages.offsets, s.texts, flat), of
    for kind, (rows, of) in kinds.items():
        own, size = s.scores(s.passages.vectors, rows), np.maximum(rows.sizes, 1)
        around = texts[:, s.passage_of[of]]
        ways = {
            "as is": own,
            "/ tokens": own / size,
            "/ root of tokens": own / np.sqrt(size),
            "+ passage": own + around,
        }
        if kind == "sentence":
            for cap in (16, 32):
                ways[f"of {cap} tokens"] = s.scores(s.passages.vectors, some(rows, itemgetter(slice(cap))))
        else:
            ways["+ sentence"] = own + sentence[:, of]
        for way, scores in ways.items():
            scores = np.where(rows.sizes > 0, scores, -np.inf)
            fact = {
                "tokens": round(float(size.mean()), 1),
                "of the first": round(float(size[scores.argmax(1)].mean()), 1),
            }
            yield f"{kind}, {way}", fact, {SENTENCE: first(scores, s.wanted[:, of])}
    size = np.diff(s.passages.offsets)
    for way, scores in {"as is": texts, **{f"/ {by}": texts / of(size) for by, of in DIVISORS.items()}}.items():
        yield f"passage, {way}", _sizes(size, scores), {PASSAGE: first(scores, s.wanted_passages)}


def _sizes(size: Ints, scores: Floats) -> dict[str, Any]:
    """Tokens of a unit, and of those that come first."""
    firsts = size[scores.argmax(axis=1)]
    return {"tokens": round(float(size.mean()), 1), "of the first": round(float(firsts.mean()), 1)}


def compression(s: Setting) -> Iterator[Line]:
    """Vectors as an index stores them, and whether the first sentence and passage stay those of float32."""
    assert s.passages.spans is not None
    before: list[Ints] = []
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            index = mv.MultiVecIndex(Path(folder) / "passages.mv", dtype=dtype, store_offsets=True)
            index.index(
                {"docno": docno, "doc_embs": vectors, frames.DOC_TOK_OFFSETS: s.passages.spans[s.passages.rows(i)]}
                for i, (docno, vectors) in enumerate(zip(s.docnos, s.passages, strict=True))
            )
            vectors, _ = index.store.gather(index.store.known(s.docnos))
            info = index.info()
        own, texts = s.scores(vectors, s.sentences), s.scores(vectors, whole(s.passages))
        best = [scores.argmax(axis=1) for scores in (own, texts)]
        before = before or best
        kept = [round(float((now == then).mean()), 4) for now, then in zip(best, before, strict=True)]
        fact = {"bytes a vector": info["bytes_per_vector"], "same sentence": kept[0], "same passage": kept[1]}
        yield (
            dtype,
            fact,
            {
                SENTENCE: first(own, s.wanted),
                MIXED: first(own + texts[:, s.passage_of], s.wanted),
                PASSAGE: first(texts, s.wanted_passages),
            },
        )


def special_rows(s: Setting) -> Iterator[Line]:
    """Markers and separators: in the passage's score, in the sentence's, and in the query."""
    batch, vectors = s.passages, s.passages.vectors
    marks = special(batch)
    of_text = [np.flatnonzero(marks[batch.rows(i)]) + batch.offsets[i] for i in range(len(batch))]
    inner = some(whole(batch), lambda rows: rows[~marks[rows]])
    with_marks = UnitRows.of(
        [[*s.sentences.rows(i), *of_text[text]] for i, text in enumerate(s.sentences.texts)], s.sentences.texts
    )
    words = [(~special(s.queries)[s.queries.rows(i)]).astype(np.float32) for i in range(len(s.queries))]
    taken = [
        (maxima(q, vectors, inner.starts, inner.ends) < maxima(q, vectors, batch.offsets[:-1], batch.offsets[1:]))[w]
        for q, w in zip(s.queries, s.wanted_passages, strict=True)
    ]
    fact = {"maxima of special rows": round(float(np.concatenate([t.ravel() for t in taken]).mean()), 4)}
    own, texts = s.scores(vectors, s.sentences), s.scores(vectors, whole(batch))
    content = s.scores(vectors, inner)
    own_words, texts_words = s.scores(vectors, s.sentences, words), s.scores(vectors, whole(batch), words)
    for way, a, b, facts in (
        ("as it is", own, texts, fact),
        ("passage without", own, content, {}),
        ("sentence with its passage's", s.scores(vectors, with_marks), texts, {}),
        ("query without", own_words, texts_words, {}),
        ("none anywhere", own_words, s.scores(vectors, inner, words), {}),
    ):
        hits = {SENTENCE: first(a, s.wanted), MIXED: first(a + b[:, s.passage_of], s.wanted)}
        yield way, facts, hits | {PASSAGE: first(b, s.wanted_passages)}
    marks_alone = special(s.alone)
    bare = some(whole(s.alone), lambda rows: rows[~marks_alone[rows]])
    yield "sentences alone", {}, {SENTENCE: first(s.scores(s.alone.vectors, whole(s.alone)), s.wanted)}
    yield "sentences alone, without", {}, {SENTENCE: first(s.scores(s.alone.vectors, bare), s.wanted)}


# ---------------------------------------------------------------------------------------------- tables

EXPERIMENTS: dict[str, Callable[[Setting], Iterator[Line]]] = {
    "encoders": encoders,
    "lengths": lengths,
    "units": units,
    "compression": compression,
    "special rows": special_rows,
}
#: measure, way, and what it is compared with
PLANNED: dict[str, list[tuple[str, str, str]]] = {
    "encoders": [
        (SENTENCE, "passages, alpha 0", "sentences alone"),
        (SENTENCE, "passages, alpha 1", "passages, alpha 0"),
        (PASSAGE, "passages, alpha 0", "sentences alone"),
    ],
    "lengths": [
        (measure, left, right)
        for measure in (SENTENCE, PASSAGE)
        for left, right in (
            ("up to 2 sentences", "passages alone"),
            ("up to 4 sentences", "passages alone"),
            ("up to 2 of an article", "passages alone"),
            ("up to 4 of an article", "passages alone"),
            ("up to 2 by chance", "passages alone"),
            ("up to 4 by chance", "passages alone"),
            ("up to 4 of an article", "up to 4 by chance"),
        )
    ],
    "units": [
        *((SENTENCE, f"{words} words, as is", "sentence, as is") for words in (3, 5, 8)),
        (SENTENCE, "sentence, / tokens", "sentence, as is"),
        (SENTENCE, "sentence, / root of tokens", "sentence, as is"),
        (SENTENCE, "5 words, / tokens", "5 words, as is"),
        (SENTENCE, "5 words, + sentence", "sentence, as is"),
    ],
    "compression": [
        (measure, dtype, "float32") for dtype in ("int8", "residual2", "residual1") for measure in (SENTENCE, PASSAGE)
    ],
    "special rows": [
        (MIXED, "passage without", "as it is"),
        (SENTENCE, "sentence with its passage's", "as it is"),
        (SENTENCE, "query without", "as it is"),
        (SENTENCE, "sentences alone, without", "sentences alone"),
    ],
}


def measured(experiment: str, setting: Setting, labels: dict[str, str]) -> tuple[list[dict], list[dict]]:
    """Rows of a table, and its planned differences, corrected together."""
    lines = {way: (facts, hits) for way, facts, hits in EXPERIMENTS[experiment](setting)}
    rows = []
    for way, (facts, hits) in lines.items():
        means = {measure: round(float(values.mean()), 4) for measure, values in hits.items()}
        rows.append({**labels, "way": way, **means, **facts})
    contrasts = []
    for measure, left, right in PLANNED[experiment]:
        if left in lines and measure in lines[left][1]:
            two = (lines[way][1][measure] for way in (left, right))
            contrasts.append(compared(*two, **labels, measure=measure, contrast=f"{left} - {right}"))
    return rows, corrected(contrasts)


def shown(outcome: dict[str, Any]) -> None:
    """Prints the tables."""
    for name in EXPERIMENTS:
        for part, rows in outcome.get(name, {}).items():
            print(f"\n{name}: {part}\n{pd.DataFrame(rows).to_string(index=False, na_rep='')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the collections; none prints what is kept")
    parser.add_argument("--encoder", nargs="*", default=[], help="folders of further sentence encoders")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), help="run these; others stay as kept")
    parser.add_argument("--collections", nargs="+", choices=COLLECTIONS, default=COLLECTIONS, help="of these alone")
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {}
    if arguments.data is not None:
        command = "OMP_NUM_THREADS=1 python benchmarks/agrame_questions.py --data FOLDER --encoder all-mpnet-base-v2"
        spaces = kept.get("about", {}).get("encoders", {})
        kept["about"] = about(command, ("torch", "sentence-transformers")) | {"tokens of a text": LENGTH}
        kept["about"]["encoders"] = spaces
        for encoder in (mv.models.MINILM, *arguments.encoder):
            model = mv.TokenEncoder(encoder, doc_length=LENGTH)
            spaces[model.space] = {"dim": model.dim}
            for collection in arguments.collections:
                setting = Setting(Sentences(collection, arguments.data), model)
                labels = {"collection": collection, "encoder": model.space}
                for experiment in arguments.only or EXPERIMENTS:
                    found = dict(zip(("rows", "contrasts"), measured(experiment, setting, labels), strict=True))
                    for part, rows in found.items():
                        table = kept.setdefault(experiment, {}).setdefault(part, [])
                        others = [row for row in table if not labels.items() <= row.items()]
                        table[:] = sorted(others + rows, key=lambda row: COLLECTIONS.index(row["collection"]))
                    FILE.write_text(json.dumps(kept, indent=1) + "\n")
    shown(kept)
