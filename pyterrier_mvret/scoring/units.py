"""Scores of units of encoded texts: sentences of a passage, parts of a query (AGRaME, Reddy et al. 2024).

A text is encoded once. A finer unit of it is a set of its rows, and MaxSim over these rows alone is the unit's score;
a finer part of a query is a set of query rows, and only these are summed ("AGRaME: Any-Granularity Ranking with
Multi-Vector Embeddings", arXiv 2405.15028, sections 4.1 to 4.3):

    S(V, T) = sum_{i in V} w_i max_{r in T} <Q_i, P_r>

Longer units have an advantage (more rows to take the maximum over); the paper has no length normalisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.maxsim import EMPTY_DOCUMENT, maxima
from pyterrier_mvret.scoring.ragged import check_runs, ragged_rows
from pyterrier_mvret.scoring.stored import StoredVectors

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Which rows of packed vectors belong to each unit: consecutive ones mostly, so they are kept as runs.

    Units may share rows, leave rows out, and consist of several runs (propositions) or of none: what was cut off by a
    length limit, or lost all its tokens to a skiplist or to pruning.

    Attributes:
        starts: (runs,) int64, the first row of each run.
        ends: (runs,) int64, the row after its last.
        offsets: (units + 1,) int64; unit ``u`` owns runs ``offsets[u]:offsets[u + 1]``.
        texts: (units,) int64, the number of the text that each unit is of.

    Raises:
        ValueError: lengths that do not fit, a run that ends before it starts, or offsets that decrease.

    >>> units = UnitRows.of([[0, 1, 2], [], [3, 5]])
    >>> len(units), units.sizes, units.starts, units.ends
    (3, array([3, 0, 2]), array([0, 3, 5]), array([3, 4, 6]))
    """

    starts: Ints
    ends: Ints
    offsets: Ints
    texts: Ints

    def __post_init__(self) -> None:
        for name in ("starts", "ends", "offsets", "texts"):
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
                raise ValueError(f"{name} must be a one-dimensional array of integers")
            object.__setattr__(self, name, array.astype(np.int64, copy=False))
        runs, units = len(self.starts), len(self.offsets) - 1
        if len(self.ends) != runs or units < 0 or len(self.texts) != units:
            raise ValueError("there must be one end a run, one offset more than units, and one text a unit")
        check_runs(self.starts, self.ends, int(self.ends.max(initial=0)), "a run")
        if self.texts.min(initial=0) < 0:
            raise ValueError("texts must be numbers of texts, from 0")
        if self.offsets[0] != 0 or self.offsets[-1] != runs or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"offsets must rise from 0 to the number of runs, {runs}, without decreasing")

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], texts: Array | None = None) -> "UnitRows":
        """Units from the row numbers of each, in any order.

        Args:
            rows: one sequence of row numbers a unit.
            texts: (units,) the text that each is of; none means that all are of one.
        """
        unit = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        every = np.array([row for one in rows for row in one], dtype=np.int64)
        return cls.of_pairs(unit, every, np.zeros(len(rows), np.int64) if texts is None else texts)

    @classmethod
    def of_pairs(cls, unit: Array, rows: Array, texts: Array) -> "UnitRows":
        """Units from (unit, row) pairs in any order, equal pairs once.

        Args:
            unit: (pairs,) numbers of units.
            rows: (pairs,) the row that belongs to each.
            texts: (units,) the text that each unit is of.

        Raises:
            ValueError: a number of a row below 0, or of a unit outside 0 to the number of texts.
        """
        unit, rows = np.asarray(unit, dtype=np.int64), np.asarray(rows, dtype=np.int64)
        if rows.min(initial=0) < 0 or unit.min(initial=0) < 0 or unit.max(initial=-1) >= len(texts):
            raise ValueError(f"rows must be at least 0, and units from 0 to {len(texts) - 1}")
        most = int(rows.max(initial=0)) + 1
        pairs = np.sort(unit * most + rows, kind="stable")  # which takes no time over what is in order
        unit, rows = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], most)
        first = np.ones(len(rows), dtype=bool)
        first[1:] = (unit[1:] != unit[:-1]) | (rows[1:] != rows[:-1] + 1)
        ends = rows[np.append(first[1:], True)[: len(rows)]] + 1
        offsets = np.searchsorted(unit[first], np.arange(len(texts) + 1))
        return cls(rows[first], ends, offsets, texts)

    @classmethod
    def of_runs(cls, starts: Array, ends: Array, texts: Array | None = None) -> "UnitRows":
        """Units of one run each, such as whole texts.

        Args:
            starts: (units,) the first row of each.
            ends: (units,) the row after its last.
            texts: (units,) the text that each is of; none means that each is a text of its own.

        >>> offsets = np.array([0, 2, 5])
        >>> UnitRows.of_runs(offsets[:-1], offsets[1:]).texts
        array([0, 1])
        """
        units = np.arange(len(starts))
        return cls(starts, ends, np.arange(len(starts) + 1), units if texts is None else texts)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sizes(self) -> Ints:
        """(units,) rows of each; 0 for a unit that cannot be scored."""
        behind = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return np.diff(behind[self.offsets])

    def rows(self, i: int) -> Ints:
        """The rows of unit ``i``, ascending within runs."""
        runs = slice(self.offsets[i], self.offsets[i + 1])
        return ragged_rows(self.starts[runs], (self.ends - self.starts)[runs])

    def members(self, rows: int) -> Floats:
        """(units, rows) ones and zeros: which of so many rows belong to each unit.

        Of a query's parts it is what :func:`unit_scores` takes as ``weights``.

        Raises:
            ValueError: a unit has a row beyond them.

        >>> UnitRows.of([[0, 2], [1]]).members(3)
        array([[1., 0., 1.],
               [0., 1., 0.]], dtype=float32)
        """
        check_runs(self.starts, self.ends, rows, "a unit")
        out = np.zeros((len(self), rows), dtype=np.float32)
        lengths = self.ends - self.starts
        out[np.repeat(np.arange(len(self)), self.sizes), ragged_rows(self.starts, lengths)] = 1
        return out


def unit_maxima(query: Array, vectors: "Array | StoredVectors", units: UnitRows) -> Floats:
    """What each query token finds in each unit: its best similarity among the unit's rows, in one pass over all rows.

    All scores are sums over its rows, whatever the parts of the query are.

    Args:
        query: (query tokens, dim).
        vectors: as for :func:`maxsim_packed`.
        units: rows of ``vectors``.

    Returns:
        (units, query tokens) float32; minus infinity for a unit without rows.

    Raises:
        ValueError: as :func:`maxima`.

    >>> vectors = np.array([[0.6, 0.8], [0.8, -0.6], [0.0, 1.0]])
    >>> unit_maxima(np.eye(2), vectors, UnitRows.of([[0, 1], [0, 2], []]))
    array([[ 0.8,  0.8],
           [ 0.6,  1. ],
           [-inf, -inf]], dtype=float32)
    """
    best = maxima(query, vectors, units.starts, units.ends)
    return maxima_of_groups(best, units.offsets[:-1], np.diff(units.offsets) > 0)


def maxima_of_groups(best: Floats, firsts: Ints, filled: npt.NDArray[np.bool_]) -> Floats:
    """Maxima over consecutive runs, from the first of each group on; minus infinity for groups that are not filled."""
    if len(best) == len(firsts) and filled.all():  # a run each
        return best
    out = np.full((len(firsts), best.shape[1]), -np.inf, dtype=np.float32)
    if filled.any():
        out[filled] = np.maximum.reduceat(best, firsts[filled], axis=0)
    return out


def unit_scores(
    query: Array, vectors: "Array | StoredVectors", units: UnitRows, weights: Array | None = None
) -> Floats:
    """Scores of one query, or of parts of it, with units of encoded texts (AGRaME, sections 4.1 to 4.3).

    Args:
        query: (query tokens, dim).
        vectors: as for :func:`maxsim_packed`; nothing is encoded or copied again for units.
        units: rows of ``vectors``. Sentences have no rows of markers and separators; whole passages do.
        weights: (query tokens,) multiplies what each query token adds; or (parts, query tokens), one row a part of the
            query, such as :meth:`UnitRows.members`. None means ones.

    Returns:
        (units,) float32, or (parts, units); :data:`EMPTY_DOCUMENT` for a unit without rows, which so stays below all
        others. A part of no query token finds nothing: 0 for all units that have rows.

    Raises:
        ValueError: shapes that do not fit, rows that leave ``vectors``, or a score that is not finite.

    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> vectors = np.array([[0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8]])
    >>> units = UnitRows.of([[0, 1], [2, 3], [0, 1, 2, 3], []])
    >>> unit_scores(query, vectors, units)[:3]
    array([1.56, 1.24, 1.92], dtype=float32)
    >>> unit_scores(query, vectors, units, weights=UnitRows.of([[0], [1]]).members(2))[:, :3]
    array([[0.96, 0.28, 0.96],
           [0.6 , 0.96, 0.96]], dtype=float32)
    """
    return sums(unit_maxima(query, vectors, units), units.sizes == 0, weights)


def free_runs(units: UnitRows, offsets: Ints) -> tuple[Ints, Ints]:
    """Runs of rows that belong to no unit, none across two texts: their starts and ends."""
    text = np.repeat(units.texts, np.diff(units.offsets))
    known = units.texts.max(initial=-1) < len(offsets) - 1
    if not known or not ((offsets[text] <= units.starts) & (units.ends <= offsets[text + 1])).all():
        raise ValueError("a unit has rows of another text than its own")
    change = np.zeros(offsets[-1] + 1, dtype=np.int64)
    np.add.at(change, units.starts, 1)
    np.add.at(change, units.ends, -1)
    free = np.cumsum(change)[:-1] == 0
    border = np.zeros(len(change), dtype=bool)
    border[offsets] = True
    starts = free & (border[:-1] | ~np.append(False, free[:-1]))
    ends = free & (border[1:] | ~np.append(free[1:], False))
    return np.flatnonzero(starts), np.flatnonzero(ends) + 1


def sums(best: Floats, empty: npt.NDArray[np.bool_], weights: Array | None) -> Floats:
    """Sums over query tokens, for each part of the query if there are any."""
    best[empty] = 0  # minus infinity times a weight of 0 would be NaN
    if weights is None:
        scores = best.sum(axis=1)
    else:
        weights = np.asarray(weights, dtype=np.float32)
        if weights.ndim not in (1, 2) or weights.shape[-1] != best.shape[1]:
            raise ValueError(f"weights must have {best.shape[1]} numbers a part, one a query token: {weights.shape}")
        scores = weights @ best.T
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: the weights hold NaN, or sums go beyond float32")
    scores[..., empty] = EMPTY_DOCUMENT
    return scores


def with_text_scores(scores: Array, texts: Array, text_scores: Array, alpha: float = 1.0) -> Floats:
    """Scores by which units of different texts compete: each unit's own plus ``alpha`` times its text's.

        Score(q, s_j of p_i) = S_in(q, s_j of p_i) + alpha S(q, p_i)        (AGRaME, section 4.1)

    The order of one text's units does not depend on ``alpha``. The paper does not say which it used, but adds both
    scores in its motivating experiment: 1 is our choice. Where the two terms come from different query markers, the
    text's from the ordinary one, they live on different scales.

    Args:
        scores: (units,) float32, from :func:`unit_scores`.
        texts: (units,) the number of the text that each is of.
        text_scores: (texts,) scores of whole texts.
        alpha: weight of the text's score; 0 ranks by the units' own.

    Returns:
        (units,) float32; units and texts without rows stay at :data:`EMPTY_DOCUMENT`.

    Raises:
        ValueError: shapes that do not fit, or an ``alpha`` that is not a finite number of at least 0.

    >>> with_text_scores(np.array([1.6, 1.56, 1.24]), np.array([0, 1, 1]), np.array([1.6, 1.92])).round(2)
    array([3.2 , 3.48, 3.16], dtype=float32)
    """
    scores, text_scores = np.asarray(scores, dtype=np.float32), np.asarray(text_scores, dtype=np.float32)
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be a finite number of at least 0, got {alpha!r}")
    if scores.shape != texts.shape or text_scores.ndim != 1 or not (texts < len(text_scores)).all():
        raise ValueError(f"expected as many scores as units, {len(texts)}, and scores of all texts they are of")
    of_text = text_scores[texts]
    empty = (scores <= EMPTY_DOCUMENT) | (of_text <= EMPTY_DOCUMENT)
    return np.where(empty, EMPTY_DOCUMENT, scores + np.float32(alpha) * of_text)
