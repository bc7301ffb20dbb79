"""What latent terms mean: the tokens and passages that fire them, and what two texts share.

Users get it from :class:`LatentTerms`.
"""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pyterrier_mvret import frames
from pyterrier_mvret.indexes.sparse_stages import checked_weighting
from pyterrier_mvret.scoring.bm25 import BM25, idf
from pyterrier_mvret.term_activity import (
    Fired,
    LatentModel,
    Passage,
    fired,
    in_blocks,
    passages_of,
    readable,
    size_of,
)
from pyterrier_mvret.term_stages import Pooling

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.indexes.sparse import SparseIndex
    from pyterrier_mvret.indexes.sparse_store import SparseStore

Array = npt.NDArray[Any]
Span = tuple[int, int]
Draw = Callable[[str], str]

# characters of a passage that are printed, and those before the first token that fires
_SHOWN, _BEFORE = 240, 60


class TermMeanings:
    """What terms fire on: three frames, printed as one page; see :meth:`LatentTerms.describe`.

    Attributes:
        terms: one row a term: ``term``; ``token``, that which has most of its activation, and ``purity``, its share of
            it; in how many ``tokens`` and ``documents`` it is active; ``mass``, the sum of its activations.
        tokens: the tokens that have most of it: ``term``, ``token``, ``times``, ``mass``, ``share``.
        passages: those in which it weighs most: ``term``, ``docno``, ``weight``; ``fires_on``, the words, the strongest
            first; their characters ``spans`` and ``activations`` in reading order; ``text``. Printed ones have those
            words marked that fire at least half as strongly as the strongest.
    """

    def __init__(self, terms: pd.DataFrame, tokens: pd.DataFrame, passages: pd.DataFrame):
        self.terms, self.tokens, self.passages = terms, tokens, passages

    def __len__(self) -> int:
        return len(self.terms)

    def __iter__(self) -> Iterator[str]:
        """The terms, as of a dict."""
        return iter(self.terms["term"])

    def __getitem__(self, term: str) -> "TermMeanings":
        """That of one term."""
        if term not in self.terms["term"].tolist():
            raise KeyError(term)
        parts = (self.terms, self.tokens, self.passages)
        return TermMeanings(*(part[part["term"] == term].reset_index(drop=True) for part in parts))

    def __repr__(self) -> str:
        return "\n".join(self._lines("{}".format, "  {}".format, "[{}]".format, str))

    def _repr_html_(self) -> str:
        lines = self._lines("<h4>{}</h4>".format, "<div>{}</div>".format, "<mark>{}</mark>".format, html.escape)
        return "\n".join(lines)

    def _lines(self, head: Draw, line: Draw, mark: Draw, plain: Draw) -> Iterator[str]:
        for about in self.terms.to_dict("records"):
            term = about["term"]
            if not about["tokens"]:
                yield head(plain(f"{term}: never active"))
                continue
            told = f"purity {about['purity']:.2f}, {about['tokens']} tokens in {about['documents']} passages"
            yield head(plain(f"{term}: {told}"))
            mine = self.tokens[self.tokens["term"] == term]
            shares = (f"{token} {share:.0%}" for token, share in zip(mine["token"], mine["share"], strict=True))
            yield line(plain(", ".join(shares)))
            for one in self.passages[self.passages["term"] == term].to_dict("records"):
                told = plain(f"{one['docno']} ({one['weight']:.2f}): ")
                half = max(one["activations"], default=0.0) / 2
                strong = [span for span, a in zip(one["spans"], one["activations"], strict=True) if a >= half]
                yield line(told + _excerpt(one["text"], strong, mark, plain))


def _excerpt(text: str, spans: list[Span], mark: Draw, plain: Draw) -> str:
    """The part of a text around the first of some spans, with these marked, on one line."""
    at = first = max(0, spans[0][0] - _BEFORE) if spans else 0
    last = first + _SHOWN
    parts = ["..." if first else ""]
    for start, end in (span for span in spans if span[1] <= last):
        parts += [plain(text[at:start]), mark(plain(text[start:end]))]
        at = end
    parts += [plain(text[at:last]), "..." if last < len(text) else ""]
    return " ".join("".join(parts).split())


class _Hit(NamedTuple):
    """A passage that has a term."""

    weight: float
    docno: str
    text: str
    spans: list[Span]
    activations: list[float]

    @property
    def words(self) -> list[str]:
        """What fires it, the strongest first."""
        order = sorted(range(len(self.spans)), key=lambda i: (-self.activations[i], i))
        return list(dict.fromkeys(self.text[slice(*self.spans[i])] for i in order))


class _Tally:
    """Tokens and best passages of some latents, added up while texts stream by."""

    def __init__(self, latents: Array, passages: int, most: int):
        self.latents, self.passages = latents, passages
        self.places = np.full(most, -1)
        self.places[latents] = np.arange(len(latents))
        self.times: list[Counter[int]] = [Counter() for _ in latents]
        self.mass: list[dict[int, float]] = [{} for _ in latents]
        self.best: list[list[_Hit]] = [[] for _ in latents]
        self.documents = np.zeros(len(latents), np.int64)

    def add(self, block: list[Passage], found: Fired, pooling: Pooling) -> None:
        """Adds a block of passages."""
        found = found.only(np.flatnonzero(self.places[found.latents] >= 0))
        self._add_tokens(found)
        offsets, latents, weights = found.terms(pooling)
        places, texts = self.places[latents], np.repeat(np.arange(len(block)), np.diff(offsets))
        self.documents += np.bincount(places, minlength=len(self.latents))
        # rows of one text and latent, in the order of the terms
        rows = np.lexsort((found.latents, found.texts))
        starts = np.flatnonzero(np.diff(found.texts[rows] * len(self.places) + found.latents[rows], prepend=-1))
        least = np.array([hits[-1].weight if len(hits) == self.passages else 0.0 for hits in self.best])
        for i in np.flatnonzero(weights >= least[places]):
            mine = rows[starts[i] : starts[i + 1] if i + 1 < len(starts) else len(rows)]
            docno, text = block[texts[i]]
            runs = _merged(text, found.spans[mine], found.activations[mine])
            self._offer(int(places[i]), _Hit(float(weights[i]), docno, text, *runs))

    def _add_tokens(self, found: Fired) -> None:
        keys = (self.places[found.latents] << 32) + found.token_ids
        keys, inverse, times = np.unique(keys, return_inverse=True, return_counts=True)
        mass = np.bincount(inverse, weights=found.activations, minlength=len(keys))
        for key, n, more in zip(keys.tolist(), times.tolist(), mass.tolist(), strict=True):
            place, token = divmod(key, 1 << 32)
            self.times[place][token] += n
            self.mass[place][token] = self.mass[place].get(token, 0.0) + more

    def _offer(self, place: int, hit: _Hit) -> None:
        hits = sorted([*self.best[place], hit], key=lambda one: (-one.weight, one.docno))
        self.best[place] = hits[: self.passages]


def _merged(text: str, spans: Array, activations: Array) -> tuple[list[Span], list[float]]:
    """Spans of tokens as runs of characters, each with its largest activation.

    Pieces of one word are one run. Blanks, which byte-level tokens begin with, are of no run; what stands for no text,
    or for blanks alone, is none.

    >>> _merged("the cats ran", np.array([[0, 0], [3, 7], [7, 8], [8, 12]]), np.array([5.0, 1.0, 2.0, 3.0]))
    ([(4, 8), (9, 12)], [2.0, 3.0])
    """
    runs: list[Span] = []
    largest: list[float] = []
    for (start, end), activation in zip(spans.tolist(), activations.tolist(), strict=True):
        bare = text[start:end].strip()
        if not bare:
            continue
        start += text[start:end].index(bare)
        end = start + len(bare)
        if runs and start <= runs[-1][1]:
            runs[-1], largest[-1] = (runs[-1][0], max(runs[-1][1], end)), max(largest[-1], activation)
        else:
            runs.append((start, end))
            largest.append(activation)
    return runs, largest


def describe(
    model: LatentModel,
    terms: str | Iterable[str],
    corpus: Iterable[Any],
    *,
    passages: int,
    tokens: int,
    index: "SparseIndex | None",
    text_field: str,
    verbose: bool,
) -> TermMeanings:
    """What terms fire on; see :meth:`LatentTerms.describe`."""
    if passages < 1 or tokens < 1:
        raise ValueError(f"passages and tokens are at least 1, got {passages} and {tokens}")
    names = [terms] if isinstance(terms, str) else list(dict.fromkeys(terms))
    pooling, size = model.pooling, model.dictionary.latents
    latents = {name: _latent(name, pooling.prefix, size) for name in names}
    tally = _Tally(np.array(sorted(latents.values()), dtype=np.int64), passages, size)
    texts, total = passages_of(corpus, text_field), size_of(corpus)
    if index is not None:
        index.store.check_space(model.space, "the model")
        wanted = _heaviest(index.store, names, passages)
        texts, total = _named(texts, wanted), len(wanted)
    for block in in_blocks(texts, total, verbose):
        tally.add(block, fired(model, [text for _, text in block], "document"), pooling)
    return _meanings(model.encoder, tally, {name: int(tally.places[latents[name]]) for name in names}, tokens)


def _latent(term: str, prefix: str, latents: int) -> int:
    number = str(term).removeprefix(prefix)
    if not (number.isdecimal() and int(number) < latents and term == f"{prefix}{int(number)}"):
        raise ValueError(f"terms of this model are {prefix}0 to {prefix}{latents - 1}, got {term!r}")
    return int(number)


def _heaviest(store: "SparseStore", terms: list[str], k: int) -> set[str]:
    """Names of the k documents in which each term weighs most."""
    matrix, numbers = store.matrix(), store.term_numbers(terms)
    rows = np.flatnonzero(np.isin(matrix.indices, numbers[numbers >= 0]))
    rows = rows[np.lexsort((-matrix.data[rows], matrix.indices[rows]))]
    term = matrix.indices[rows]
    place = np.arange(len(term)) - np.searchsorted(term, term)
    return set(store.names(np.searchsorted(matrix.indptr, rows[place < k], side="right") - 1))


def _named(passages: Iterable[Passage], wanted: set[str]) -> Iterator[Passage]:
    """The wanted passages; ValueError if the corpus ends before all were there."""
    missing = set(wanted)
    for docno, text in passages if missing else ():
        if docno in missing:
            missing.remove(docno)
            yield docno, text
            if not missing:
                return
    if missing:
        some = ", ".join(map(repr, sorted(missing)[:3]))
        raise ValueError(f"{len(missing)} documents of the index are not in the corpus: {some}, ...")


def _meanings(encoder: "TokenEncoder", tally: _Tally, places: dict[str, int], tokens: int) -> TermMeanings:
    """The frames, terms in the order in which they were asked for."""
    about, fires, where = [], [], []
    for term, place in places.items():
        times, mass = tally.times[place], tally.mass[place]
        total = sum(mass.values())
        best = sorted(mass, key=lambda token: (-mass[token], token))[:tokens]
        spelled = readable(encoder, np.array(best, dtype=np.int64))
        for token, name in zip(best, spelled, strict=True):
            fires.append((term, name, times[token], mass[token], mass[token] / total))
        first = (spelled[0], mass[best[0]] / total) if best else (None, np.nan)
        about.append((term, *first, times.total(), int(tally.documents[place]), total))
        for hit in tally.best[place]:
            where.append((term, hit.docno, hit.weight, hit.words, hit.spans, hit.activations, hit.text))
    return TermMeanings(
        pd.DataFrame(about, columns=["term", "token", "purity", "tokens", "documents", "mass"]),
        pd.DataFrame(fires, columns=["term", "token", "times", "mass", "share"]),
        pd.DataFrame(where, columns=["term", "docno", "weight", "fires_on", "spans", "activations", "text"]),
    )


def explain(
    model: LatentModel,
    query: str,
    text: str,
    index: "SparseIndex | None",
    weighting: BM25 | None,
) -> pd.DataFrame:
    """The terms that a query and a text share, and what each adds; see :meth:`LatentTerms.explain`."""
    weighting, pooling = checked_weighting(weighting), model.pooling
    for what, one in (("query", query), ("text", text)):
        if not frames.is_text(one):
            raise ValueError(f"the {what} must be a string of valid Unicode, got {one!r}")
    asked, told = fired(model, [query], "query"), fired(model, [text], "document")
    _, of_query, query_weights = asked.terms(pooling, model.top_query)
    _, of_text, weights = told.terms(pooling, model.top_doc)
    shared, mine, theirs = np.intersect1d(of_query, of_text, return_indices=True)
    names = [f"{pooling.prefix}{latent}" for latent in shared.tolist()]
    parts: dict[str, Any] = {
        "term": pd.Series(names, dtype="str"),
        "query_weight": query_weights[mine].astype(np.float64),
        "doc_weight": weights[theirs].astype(np.float64),
    }
    worth = parts["doc_weight"]
    if index is not None:
        index.store.check_space(model.space, "the model")
        if weighting is not None:
            length = float(weights.sum(dtype=np.float64))
            parts |= _bm25(index.store, weighting, names, worth, length)
            worth = parts["idf"] * parts["tf"]
    score = parts["query_weight"] * worth
    parts["score"] = score
    parts["share"] = score / (score.sum() or 1.0)
    for side, found in (("query", asked), ("doc", told)):
        parts[f"{side}_tokens"] = pd.Series([_tokens(model.encoder, found, one) for one in shared], dtype="str")
    order = np.lexsort((shared, -parts["query_weight"] * parts["doc_weight"], -score))
    return pd.DataFrame(parts).iloc[order].reset_index(drop=True)


def _bm25(store: "SparseStore", weighting: BM25, terms: list[str], weights: Array, length: float) -> dict[str, Array]:
    """What BM25 makes of weights in a text of some length, by the statistics of an index."""
    known = store.statistics
    counts = np.append(known.frequencies, 0)[store.term_numbers(terms)]  # -1, unknown, is in no document
    norms = np.repeat(weighting.norms(np.array([length]), known.mean_length), len(weights))
    return {"idf": idf(counts, known.documents, weighting.idf), "tf": weighting.saturated(weights, norms)}


def _tokens(encoder: "TokenEncoder", found: Fired, latent: int) -> str:
    """The tokens that fire a latent in one text, in reading order."""
    ids = found.token_ids[found.latents == latent]
    return ", ".join(dict.fromkeys(readable(encoder, ids)))
