"""The pipeline stages over units of passages: score them, and fold them back; users get them from ``AGRaME``."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.encoders import markers
from pyterrier_mvret.encoders.splitters import Splitter, checked_propositions, checked_spans
from pyterrier_mvret.encoders.stages import blocks_of, query_texts
from pyterrier_mvret.encoders.units import proposition_rows, unit_rows
from pyterrier_mvret.scoring import EMPTY_DOCUMENT, TextUnits, UnitScores, with_text_scores

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.indexes.multivec import MultiVecIndex
    from pyterrier_mvret.indexes.store import Store

Array = npt.NDArray[Any]
Fold = Literal["max", "mean", "sum"]


class Found(NamedTuple):
    """Units of one query's passages that have tokens."""

    rows: Array  # of the frame, one a unit
    number: Array  # which of its passage's units
    own: Array
    whole: Array
    score: Array
    places: Array  # (units, 2) first and last character


class Units(NamedTuple):
    """Passages that are held, with the first and last characters of each one's units."""

    scored: TextUnits
    places: list[Array]  # of each passage


class UnitScorer(Component):
    """R of passages -> R of their units; see :meth:`AGRaME.unit_scorer`.

    Args:
        encoder: of queries, and of passages without an index.
        splitter: cuts passages into units, unless a column ``spans`` says where they are.
        alpha: weight of the passage's score.
        source: an index with ``store_offsets=True`` that has the passages' vectors; none encodes their text.
        text_field: the column with the passages' text.
        keep_passages: units of so many passages a query, those that score best; none keeps all.
        query_marker: as for :class:`AGRaME`.
        verbose: progress bars.
    """

    def __init__(
        self,
        encoder: "TokenEncoder",
        splitter: Splitter,
        alpha: float = 1.0,
        source: "MultiVecIndex | None" = None,
        text_field: str = "text",
        keep_passages: int | None = None,
        query_marker: str | None = "auto",
        verbose: bool = False,
    ):
        if keep_passages is not None and (not isinstance(keep_passages, int | np.integer) or keep_passages < 1):
            raise ValueError(f"keep_passages must be an integer of at least 1, or None for all, got {keep_passages!r}")
        self.encoder, self.splitter, self.alpha, self.source = encoder, splitter, alpha, source
        self.text_field, self.keep_passages, self.query_marker = text_field, keep_passages, query_marker
        self.verbose = verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with ``query`` and text -> one row a unit, best first by ``rank``."""
        pt.validate.result_frame(inp, ["query", self.text_field], context=self)
        if not len(inp):
            return self._framed(inp, [])
        texts = frames.texts_of(inp, self.text_field)
        groups = [rows for _, rows in frames.query_groups(inp)]
        queries = query_texts(inp)
        store = self._store()
        names = inp["docno"].tolist()
        given, several = self._given(inp, texts, names)
        # what a passage is known by: its text where it is encoded, its name where vectors are stored; and its units
        keys = list(zip(texts if store is None else names, texts, given, strict=True))
        order, _ = pd.factorize(inp["docno"], sort=True)
        found: list[Found] = []
        bar = pt.tqdm(total=len(groups), desc="scoring units", unit="query", disable=not self.verbose)
        for block, distinct in blocks_of(keys, groups):
            held = self._held(distinct, store, several)
            mine = [groups[i] for i, _ in block]
            encoded = self._queries([queries[rows[0]] for rows in mine], inp, mine)
            for (i, at), query in zip(block, encoded, strict=True):
                scores = held.scored.scores(texts=at, **query)
                found.append(self._found(scores, [held.places[place] for place in at], groups[i], order))
                bar.update()
        bar.close()
        return self._framed(inp, found)

    def _queries(self, texts: list[str], inp: pd.DataFrame, groups: list[Array]) -> list[dict[str, Any]]:
        """Of each query what scores its passages and units, all encoded in one go."""
        # weights beside vectors are of those vectors' tokens, perhaps another model's: not of these
        weighed = frames.QUERY_WEIGHTS in inp.columns and frames.QUERY_EMBS not in inp.columns
        if frames.QUERY_SPANS in inp.columns:
            parts = [frames.first_value(inp[frames.QUERY_SPANS], rows, inp["qid"].iloc[rows[0]]) for rows in groups]
            # the ordinary marker: the second one was trained for whole queries (section 4.2)
            batch = self.encoder.encode_queries(texts, whole=True)
            chosen = [_checked_part(part, text) for part, text in zip(parts, texts, strict=True)]
            units = proposition_rows(batch.spans, batch.offsets, texts, [[part] for part in chosen])
            if not units.sizes.all():
                raise ValueError(f"{frames.QUERY_SPANS} of query {texts[units.sizes.argmin()]!r} hold no token")
            if weighed:
                raise ValueError(
                    f"{frames.QUERY_WEIGHTS} are of whole queries, {frames.QUERY_SPANS} name parts of them"
                )
            # tokens of no weight would add nothing: the others are the query
            return [{"query": batch.vectors[units.rows(i)]} for i in range(len(texts))]
        marker = markers.of_units(self.encoder, self.query_marker)
        if marker is None:
            batch = self.encoder.encode_queries(texts)
            weights = [
                frames.query_weights(inp, rows, len(batch[i])) if weighed else None for i, rows in enumerate(groups)
            ]
            return [{"query": batch[i], "weights": weights[i]} for i in range(len(texts))]
        if weighed:
            raise ValueError(f"{frames.QUERY_WEIGHTS} are of one encoding of a query, and a second marker makes two")
        n, own = len(texts), self.encoder.model.prompts.get("query") or ""
        both = self.encoder.encode_queries([*texts, *texts], prefix=[own] * n + [marker] * n)
        return [{"query": both[n + i], "text_query": both[i]} for i in range(n)]

    def _given(self, inp: pd.DataFrame, texts: list[str], names: list[str]) -> tuple[list[Any], bool]:
        """Units that the frame names, one value a row that can be compared, and whether they are sets of spans.

        None where a splitter finds them.
        """
        if frames.SPANS not in inp.columns:
            return [None] * len(inp), False
        known: dict[tuple[int, str], Any] = {}  # rows of one passage mostly share their spans, as objects
        values = [list(value) if isinstance(value, Iterator) else value for value in inp[frames.SPANS]]
        several = any(map(_several, values))
        for value, text, name in zip(values, texts, names, strict=True):
            if (id(value), text) not in known:
                known[id(value), text] = _as_given(value, text, name, several)
        return [known[id(value), text] for value, text in zip(values, texts, strict=True)], several

    def _held(self, keys: list[tuple[str, str, Any]], store: "Store | None", several: bool) -> Units:
        """Vectors and units of passages; of units that are sets of spans where there are ``several`` of each."""
        names, texts, given = (list(part) for part in zip(*keys, strict=True))
        if store is None:
            batch = self.encoder.encode_docs(names, verbose=self.verbose)
            vectors, offsets, tokens = batch.vectors, batch.offsets, batch.spans
        else:
            positions = store.known(names)
            vectors, offsets = store.gather(positions)
            tokens = store.gather_array(positions, "token_offsets")[0]
        spans: list[Any] = given
        if given[0] is None:
            spans = [_split(self.splitter, text) for text in texts]
        if several:
            units = proposition_rows(tokens, offsets, texts, spans)
            ends = [[(min(one)[0], max(end for _, end in one)) for one in of_text] for of_text in spans]
        else:
            units, ends = unit_rows(tokens, offsets, texts, spans), spans
        places = [np.array(one, dtype=np.int64).reshape(-1, 2) for one in ends]
        return Units(TextUnits(vectors, units, offsets), places)

    def _store(self) -> "Store | None":
        """What the index holds, taken once for all the work.

        Raises:
            ValueError: it is of another encoder, or does not know where tokens are in their texts.
        """
        if self.source is None:
            return None
        store = self.source.store
        store.check_space(self.encoder.space, "the model")
        if not store.manifest["store_offsets"]:
            raise ValueError(f"{store.path} does not know the characters of tokens: build it with store_offsets=True")
        return store

    def _found(self, scores: UnitScores, places: list[Array], rows: Array, order: Array) -> Found:
        """Units of one query, those that have tokens.

        Args:
            scores: of its passages, which are these rows of the frame.
            places: characters of each passage's units.
            rows: of the frame.
            order: by which rows of equal scores are sorted.
        """
        kept = scores.units > EMPTY_DOCUMENT
        if self.keep_passages is not None:
            best = np.lexsort((order[rows], -scores.texts))[: self.keep_passages]
            kept &= np.isin(scores.at, best)
        whole = scores.texts[scores.at]
        combined = with_text_scores(scores.units, scores.at, scores.texts, self.alpha)
        parts = (rows[scores.at], scores.number, scores.units, whole, combined, np.concatenate(places))
        return Found(*(part[kept] for part in parts))

    def _framed(self, inp: pd.DataFrame, found: list[Found]) -> pd.DataFrame:
        """One row a unit, with the columns of its passage's row."""
        nothing = np.empty(0, np.int64)
        none = Found(nothing, nothing, np.empty(0), np.empty(0), np.empty(0), np.empty((0, 2), np.int64))
        all_ = Found(*(np.concatenate(parts) for parts in zip(none, *found, strict=True)))
        passages = inp.drop(columns=[*frames.DOC_COLUMNS, *frames.UNIT_COLUMNS, "score", "rank"], errors="ignore")
        out = passages.iloc[all_.rows].reset_index(drop=True)
        parents, texts = out["docno"].tolist(), out[self.text_field].tolist()
        out["docno"] = pd.Series([f"{d}%s{i}" for d, i in zip(parents, all_.number, strict=True)], dtype="str")
        cut = [text[start:end] for text, (start, end) in zip(texts, all_.places, strict=True)]
        out[self.text_field] = pd.Series(cut, dtype="str")
        out[frames.PARENT] = pd.Series(parents, dtype="str")
        out[frames.START], out[frames.END] = all_.places[:, 0], all_.places[:, 1]
        out[frames.UNIT_SCORE] = all_.own.astype(np.float64)
        out[frames.PASSAGE_SCORE] = all_.whole.astype(np.float64)
        return frames.with_scores(out, all_.score)


def _split(splitter: Splitter, text: str) -> list[tuple[int, int]]:
    """A passage's units, which may overlap; ValueError names the splitter where they are none."""
    try:
        return checked_spans(splitter.split(text), text, apart=False)
    except ValueError as error:
        raise ValueError(f"{splitter!r} of the text {text[:80]!r}: {error}") from error


def _as_given(value: Any, text: str, docno: str, several: bool) -> tuple[Any, ...]:
    """A passage's units from its ``spans``, as tuples; ValueError names the passage where they are none."""
    try:
        if not isinstance(value, Iterable):
            raise ValueError(f"expected a list of spans, got {value!r}")
        if several:
            return tuple(tuple(spans) for spans in checked_propositions(value, text))
        return tuple(checked_spans(value, text))
    except ValueError as error:
        raise ValueError(f"{frames.SPANS} of passage {docno!r}: {error}") from error


def _checked_part(part: Any, text: str) -> list[tuple[int, int]]:
    """A query's part, as spans; ValueError names the query where it is none."""
    try:
        if not isinstance(part, Iterable):
            raise ValueError(f"expected a list of (start, end) pairs, got {part!r}")
        return checked_propositions([part], text)[0]
    except ValueError as error:
        raise ValueError(f"{frames.QUERY_SPANS} of query {text!r}: {error}") from error


def _several(spans: Any) -> bool:
    """Whether units are sets of spans (propositions) and not one span each."""
    first = next(iter(spans), None) if isinstance(spans, Iterable) else None
    return isinstance(first, Iterable) and isinstance(next(iter(first), None), Iterable)


class UnitFolder(Component):
    """R of units -> R of their passages; see :meth:`AGRaME.fold`.

    Args:
        how: what a passage's score is of its units': the largest, their mean or their sum.
        text_field: the column with the units' text.
    """

    def __init__(self, how: Fold = "max", text_field: str = "text"):
        if how not in get_args(Fold):
            raise ValueError(f"how must be one of {', '.join(get_args(Fold))}, got {how!r}")
        self.how, self.text_field = how, text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with ``parent_docno`` -> R with a row a passage, and its ``best_unit``."""
        pt.validate.result_frame(inp, [frames.PARENT, "score"], context=self)
        units = inp.reset_index(drop=True)
        passage = units.groupby(["qid", frames.PARENT], sort=False, dropna=False).ngroup().to_numpy()
        scores = units["score"].to_numpy(dtype=np.float64)
        names, _ = pd.factorize(units["docno"], sort=True)
        order = np.lexsort((names, -scores, passage))  # the best unit of each passage comes first
        best = order[np.diff(passage[order], prepend=-1) > 0]
        folded = scores[best]
        if self.how != "max":
            folded = np.bincount(passage, weights=scores, minlength=len(best))
            folded = folded / np.bincount(passage, minlength=len(best)) if self.how == "mean" else folded
        kept = units.iloc[best].reset_index(drop=True)
        kept = kept.assign(**{frames.BEST_UNIT: kept["docno"], "docno": kept[frames.PARENT]})
        return frames.with_scores(kept.drop(columns=[*frames.UNIT_COLUMNS, self.text_field], errors="ignore"), folded)
