"""The pipeline stages over units of passages: score them, and fold them back; users get them from ``AGRaME``."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.encoders.splitters import Splitter, checked_propositions, checked_spans
from pyterrier_mvret.encoders.stages import blocks_of, query_texts
from pyterrier_mvret.encoders.units import proposition_rows, unit_rows
from pyterrier_mvret.scoring import EMPTY_DOCUMENT, unit_and_text_scores, with_text_scores
from pyterrier_mvret.scoring.ragged import ragged_rows

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.indexes.multivec import MultiVecIndex
    from pyterrier_mvret.indexes.store import Store

Array = npt.NDArray[Any]
Fold = Literal["max", "mean", "sum"]


class Passages(NamedTuple):
    """Encoded passages: packed vectors, the characters of each token, and where each passage begins."""

    vectors: Array
    spans: Array | None
    offsets: Array

    def some(self, places: Array) -> "Passages":
        """Those at places, in that order."""
        lengths = np.diff(self.offsets)[places]
        rows = ragged_rows(self.offsets[:-1][places], lengths)
        spans = None if self.spans is None else self.spans[rows]
        return Passages(self.vectors[rows], spans, np.concatenate([[0], np.cumsum(lengths)]))


class UnitScorer(Component):
    """R of passages -> R of their units; see :meth:`AGRaME.unit_scorer`.

    Args:
        encoder: of queries, and of passages without an index.
        splitter: cuts passages into units, unless a column ``spans`` says where they are.
        alpha: weight of the passage's score.
        source: an index with ``store_offsets=True`` that has the passages' vectors; none encodes their text.
        text_field: the column with the passages' text.
        keep_passages: units of so many passages a query, those that score best; none keeps all.
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
        verbose: bool = False,
    ):
        if keep_passages is not None and (not isinstance(keep_passages, int | np.integer) or keep_passages < 1):
            raise ValueError(f"keep_passages must be an integer of at least 1, or None for all, got {keep_passages!r}")
        self.encoder, self.splitter, self.alpha, self.source = encoder, splitter, alpha, source
        self.text_field, self.keep_passages, self.verbose = text_field, keep_passages, verbose

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R with ``query`` and text -> one row a unit, best first by ``rank``."""
        pt.validate.result_frame(inp, ["query", self.text_field], context=self)
        passages = inp.drop(columns=[*frames.DOC_COLUMNS, *frames.UNIT_COLUMNS, "score", "rank"], errors="ignore")
        if not len(inp):
            return self._framed(passages, inp, np.empty(0, np.int64), [])
        texts = frames.texts_of(inp, self.text_field)
        # what a passage is known by: its text where it is encoded, its name where vectors are stored
        keys = texts if self.source is None else inp["docno"].tolist()
        groups = [rows for _, rows in frames.query_groups(inp)]
        queries = query_texts(inp)
        encoded = self.encoder.encode_queries([queries[rows[0]] for rows in groups])
        store = self._store()
        of_rows: list[Array] = []
        found: list[dict[str, Any]] = []
        for block, distinct in blocks_of(keys, groups):
            held = self._passages(distinct, store)
            for i, places in block:
                at, units = self._scored(encoded[i], held.some(places), inp, texts, groups[i])
                of_rows.append(groups[i][at])
                found.append(units)
        return self._framed(passages, inp, np.concatenate(of_rows), found)

    def _passages(self, keys: list[str], store: "Store | None") -> Passages:
        if store is None:
            batch = self.encoder.encode_docs(keys, verbose=self.verbose)
            return Passages(batch.vectors, batch.spans, batch.offsets)
        positions = store.known(keys)
        vectors, offsets = store.gather(positions)
        return Passages(vectors, store.gather_array(positions, "token_offsets")[0], offsets)

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

    def _scored(
        self, query: Array, passages: Passages, inp: pd.DataFrame, texts: list[str], rows: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Of one query: for each unit that has tokens the place of its passage, its number, characters and scores."""
        mine = [texts[row] for row in rows]
        spans, units = self._units(passages, inp, mine, rows)
        own, whole = unit_and_text_scores(query, passages.vectors, units, passages.offsets)
        kept = own > EMPTY_DOCUMENT
        if self.keep_passages is not None:
            names = inp["docno"].iloc[rows].to_numpy(dtype=object)
            best = np.lexsort((names, -whole))[: self.keep_passages]
            kept &= np.isin(units.texts, best)
        number = np.concatenate([np.arange(len(s)) for s in spans])[kept]
        at = units.texts[kept]
        ends = [(min(one)[0], max(end for _, end in one)) for of_text in spans for one in of_text]
        return at, {
            "number": number,
            "places": np.array(ends, dtype=np.int64).reshape(-1, 2)[kept],
            frames.UNIT_SCORE: own[kept],
            frames.PASSAGE_SCORE: whole[at],
            "score": with_text_scores(own, units, whole, self.alpha)[kept],
        }

    def _units(self, passages: Passages, inp: pd.DataFrame, texts: list[str], rows: Array) -> tuple[list[Any], Any]:
        """Characters of each passage's units, as lists of spans, and their rows."""
        spans: list[Any]
        if frames.SPANS not in inp.columns:
            spans = [list(self.splitter.split(text)) for text in texts]
        else:
            given = inp[frames.SPANS].iloc[rows].tolist()
            names = inp["docno"].iloc[rows].tolist()
            several = any(_several(value) for value in given)
            check: Any = checked_propositions if several else checked_spans
            spans = [_given(check, *one) for one in zip(given, texts, names, strict=True)]
            if several:
                return spans, proposition_rows(passages.spans, passages.offsets, texts, spans)
        units = unit_rows(passages.spans, passages.offsets, texts, spans)
        return [[[span] for span in of_text] for of_text in spans], units

    def _framed(
        self, passages: pd.DataFrame, inp: pd.DataFrame, of_rows: Array, found: list[dict[str, Any]]
    ) -> pd.DataFrame:
        """One row a unit, with the columns of its passage's row."""
        out = passages.iloc[of_rows].reset_index(drop=True)

        def joined(name: str, empty: Any) -> Array:
            return np.concatenate([empty, *(part[name] for part in found)])

        places = joined("places", np.empty((0, 2), np.int64))
        number = joined("number", np.empty(0, np.int64))
        parents = inp["docno"].iloc[of_rows].tolist()
        texts = inp[self.text_field].iloc[of_rows].tolist()
        out["docno"] = pd.Series([f"{d}%s{i}" for d, i in zip(parents, number, strict=True)], dtype="str")
        out[self.text_field] = pd.Series([t[a:b] for t, (a, b) in zip(texts, places, strict=True)], dtype="str")
        out[frames.PARENT] = pd.Series(parents, dtype="str")
        out[frames.START], out[frames.END] = places[:, 0], places[:, 1]
        for name in (frames.UNIT_SCORE, frames.PASSAGE_SCORE):
            out[name] = joined(name, np.empty(0)).astype(np.float64)
        return frames.with_scores(out, joined("score", np.empty(0)))


def _several(spans: Any) -> bool:
    """Whether units are sets of spans (propositions) and not one span each."""
    first = next(iter(spans), None) if isinstance(spans, Iterable) else None
    return isinstance(first, Iterable) and isinstance(next(iter(first), None), Iterable)


def _given(check: Callable[[Any, str], list[Any]], spans: Any, text: str, docno: str) -> list[Any]:
    """A passage's units from its ``spans``; ValueError names the passage where they are none."""
    try:
        if not isinstance(spans, Iterable):
            raise ValueError(f"expected a list of spans, got {spans!r}")
        return check(spans, text)
    except ValueError as error:
        raise ValueError(f"{frames.SPANS} of passage {docno!r}: {error}") from error


class UnitFolder(Component):
    """R of units -> R of their passages; see :meth:`AGRaME.fold`.

    Args:
        how: what a passage's score is of its units': the largest, their mean or their sum.
    """

    def __init__(self, how: Fold = "max"):
        if how not in get_args(Fold):
            raise ValueError(f"how must be one of {', '.join(get_args(Fold))}, got {how!r}")
        self.how = how

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
        return frames.with_scores(kept.drop(columns=[*frames.UNIT_COLUMNS, "text"], errors="ignore"), folded)
