"""Texts that are held together with their units, for many queries that each ask for some of the texts."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.maxsim import maxima
from pyterrier_mvret.scoring.ragged import checked_offsets, ragged_rows
from pyterrier_mvret.scoring.stored import StoredVectors, as_stored
from pyterrier_mvret.scoring.units import UnitRows, free_runs, maxima_of_groups, sums

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class UnitScores(NamedTuple):
    """Scores of units of several texts, text by text, and of the texts.

    Attributes:
        at: (units,) the place, among the texts asked for, of the one that each unit is of.
        number: (units,) which of its text's units each is, from 0.
        units: (units,) float32, or (parts, units) for parts of a query; :data:`EMPTY_DOCUMENT` without rows.
        texts: (texts,) float32, or (parts, texts).
    """

    at: Ints
    number: Ints
    units: Floats
    texts: Floats


class TextUnits:
    """Packed texts and their units; what does not depend on the query is prepared once, and no vector is copied.

    A text's best similarity is the best of its units' and of its other rows' (markers, separators), so that each row is
    read once where units share none.

    Args:
        vectors: as for :func:`maxsim_packed`.
        units: rows of ``vectors``, each of its own text; ``texts`` must not decrease.
        offsets: (texts + 1,) integers; text ``t`` owns rows ``offsets[t]:offsets[t + 1]``.

    Raises:
        ValueError: units out of order, or with rows of another text.

    >>> rows = np.array([[0.0, 1.0], [0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8]])
    >>> held = TextUnits(rows, UnitRows.of([[1, 2], [3], [4]], texts=np.array([0, 0, 1])), np.array([0, 4, 5]))
    >>> found = held.scores(np.eye(2), texts=np.array([1, 0]))
    >>> found.at, found.number, found.units.round(2), found.texts.round(2)
    (array([0, 1, 1]), array([0, 0, 1]), array([0.2 , 1.56, 1.24], dtype=float32), array([0.2 , 1.96], dtype=float32))
    """

    def __init__(self, vectors: "Array | StoredVectors", units: UnitRows, offsets: Array):
        self._stored = as_stored(vectors)
        self._offsets = checked_offsets(offsets, len(self._stored), "offsets")
        if (np.diff(units.texts) < 0).any():
            raise ValueError("units must come text by text")
        free_starts, free_ends = free_runs(units, self._offsets)
        starts, ends = np.concatenate([units.starts, free_starts]), np.concatenate([units.ends, free_ends])
        order = np.argsort(starts, kind="stable")  # rows are read as they lie, and runs of a text come together
        self._starts, self._ends = starts[order], ends[order]
        self._runs = np.searchsorted(self._starts, self._offsets)  # the first run of each text
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self._place = place[: len(units.starts)]  # of units' runs, unit by unit
        self._units = units
        self._first = np.searchsorted(units.texts, np.arange(len(self._offsets)))  # the first unit of each text

    def scores(
        self, query: Array, texts: Ints, weights: Array | None = None, text_query: Array | None = None
    ) -> UnitScores:
        """Scores of one query with some texts and their units.

        Args:
            query: (query tokens, dim).
            texts: numbers of texts, in any order, also repeated.
            weights: as for :func:`unit_scores`.
            text_query: (tokens, dim) scores texts in the place of ``query`` (AGRaME has two query markers).

        Raises:
            ValueError: as :func:`unit_scores`.
        """
        counts = np.diff(self._first)[texts]
        units = ragged_rows(self._first[:-1][texts], counts)
        at = np.repeat(np.arange(len(texts)), counts)
        number = units - self._first[:-1][texts][at]
        firsts, lengths = self._units.offsets[units], np.diff(self._units.offsets)[units]
        own = self._place[ragged_rows(firsts, lengths)]
        filled = np.diff(self._offsets)[texts] > 0
        if text_query is None:
            # runs of a text asked for lie where they lie among all, shifted together
            runs = np.diff(self._runs)[texts]
            begins = np.cumsum(runs) - runs
            found = self._maxima(query, ragged_rows(self._runs[:-1][texts], runs))
            best = found[own + np.repeat((begins - self._runs[:-1][texts])[at], lengths)]
            of_texts = sums(maxima_of_groups(found, begins, filled), ~filled, weights)
        else:
            best = self._maxima(query, own)
            whole = maxima(text_query, self._stored, self._offsets[:-1][texts], self._offsets[1:][texts])
            of_texts = sums(whole, ~filled, None)
        of_units = maxima_of_groups(best, np.cumsum(lengths) - lengths, lengths > 0)
        empty = self._units.sizes[units] == 0
        return UnitScores(at, number, sums(of_units, empty, weights), of_texts)

    def _maxima(self, query: Array, runs: Ints) -> Floats:
        return maxima(query, self._stored, self._starts[runs], self._ends[runs])
