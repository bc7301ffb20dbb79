"""Few-shot alignment adaptation: which alignment suits a task, told by a few judged topics (ALIGNER, arXiv 2211.01267).

Candidates are retrieved once; strategies score the same ones anew, so that comparing nine costs little more than one.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.scoring.strategies import Strategy, TopK, TopP, named_alignment
from pyterrier_mvret.training.measures import measurable, parsed

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

#: the paper's candidates: one, two, four, six or eight tokens, or 0.5, 1, 1.5 or 2 % of the document's (Table 7)
GRID: tuple[Strategy, ...] = (
    *(TopK(k) for k in (1, 2, 4, 6, 8)),
    *(TopP(p) for p in (0.005, 0.01, 0.015, 0.02)),
)


@dataclass(frozen=True, eq=False, repr=False)
class Adaptation:
    """The alignment that was chosen, and what the choice rests on.

    Attributes:
        alignment: the chosen strategy.
        table: one row a strategy, in the grid's order: ``alignment``; its mean of the measure, under the measure's
            name; ``gain``, that mean less the one of the strategy that is kept without evidence; ``standard_error``
            of the gain, over topics (NaN with one topic); ``wins`` and ``losses``, topics where the strategy is
            better or worse; ``chosen``.
        by_query: the measure of each topic (index ``qid``) under each strategy (columns).
    """

    alignment: Any
    table: pd.DataFrame
    by_query: pd.DataFrame

    def __repr__(self) -> str:
        table = self.table.round(4).to_string(index=False)
        return f"Adaptation({self.alignment!r}, by {len(self.by_query)} topics)\n{table}"


def choose(
    results: pd.DataFrame,
    scores: Array,
    qrels: pd.DataFrame,
    grid: Sequence[Hashable] = GRID,
    measure: Any = "nDCG@10",
    margin: float = 1.0,
) -> Adaptation:
    """The strategy that ranks judged topics best, unless it is too close to ``TopK(1)`` to be told from it.

    The paper takes the best mean (nDCG@10 of eight topics; Table 2 has what it gains), which is ``margin=0``. It
    loses where one token is best already, as chance then decides among nine; so by default (our choice) the gain over
    ``TopK(1)`` must exceed one standard error of the topics' differences; two are safer where little is to be gained
    (``benchmarks/alignment_adaptation.py``). Measure on other topics than these.

    Args:
        results: candidates: ``qid``, ``docno``. Topics without judgements are left out.
        scores: (strategies, rows) scores of the candidates by each strategy, row for row with ``results``.
        qrels: ``qid``, ``docno``, ``label``, of the topics to choose by: one without candidates counts 0.
        grid: what the rows of ``scores`` are: strategies or their names, or other settings that are to be compared
            in the same way. Of equal means the first is better. ``TopK(1)`` is kept without evidence, in a grid
            that lacks it the first entry.
        measure: of ir_measures, or its name; rankings are measured as ``pt.Experiment`` measures them.
        margin: standard errors that a gain must exceed; with one topic, which has none, only 0 can choose another.

    Raises:
        ValueError: an empty grid or an entry twice, a margin below 0, scores of another shape or with NaN, a
            candidate twice in a topic, an unknown measure, or no topic with a judgement.
        pt.validate.InputValidationError: a frame without one of its columns.

    >>> results = pd.DataFrame({"qid": ["1", "1", "2", "2"], "docno": ["a", "b", "c", "d"]})
    >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["b", "d"], "label": 1})
    >>> scores = np.array([[0.8, 0.7, 0.6, 0.4], [0.5, 0.6, 0.3, 0.4]])
    >>> choose(results, scores, qrels, [TopK(1), TopK(2)])
    Adaptation(TopK(2), by 2 topics)
    alignment  nDCG@10   gain  standard_error  wins  losses  chosen
      TopK(1)   0.6309 0.0000             0.0     0       0   False
      TopK(2)   1.0000 0.3691             0.0     2       0    True
    """
    grid = _checked_grid(grid)
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin!r}")
    measure = parsed(measure)
    by_query = _by_query(results, _checked_scores(scores, (len(grid), len(results))), qrels, grid, measure)
    values = by_query.to_numpy()
    kept = grid.index(TopK(1)) if TopK(1) in grid else 0
    means = np.array([fsum(column) / len(values) for column in values.T])  # exact sums: equal means are equal
    gains, errors = means - means[kept], _standard_errors(values - values[:, [kept]])
    best = int(means.argmax())
    chosen = best if gains[best] > (margin * errors[best] if margin else 0) else kept
    table = pd.DataFrame(
        {
            "alignment": frames.object_column(grid, pd.RangeIndex(len(grid))),
            str(measure): means,
            "gain": gains,
            "standard_error": errors,
            "wins": (values > values[:, [kept]]).sum(axis=0),
            "losses": (values < values[:, [kept]]).sum(axis=0),
            "chosen": np.arange(len(grid)) == chosen,
        }
    )
    return Adaptation(grid[chosen], table, by_query)


def _by_query(
    results: pd.DataFrame, scores: Doubles, qrels: pd.DataFrame, grid: list[Any], measure: Any
) -> pd.DataFrame:
    """The measure of each judged topic under each strategy."""
    pt.validate.columns(results, includes=["qid", "docno"])
    pt.validate.columns(qrels, includes=["qid", "docno", "label"])
    judged = results["qid"].isin(qrels["qid"]).to_numpy()
    if not judged.any():
        raise ValueError("no topic of the results has a judgement")
    candidates = results.loc[judged, ["qid", "docno"]].reset_index(drop=True)
    twice = candidates[candidates.duplicated()]
    if len(twice):
        raise ValueError(f"topic {twice['qid'].iloc[0]!r} has candidate {twice['docno'].iloc[0]!r} twice")
    columns, qrels = [], measurable(qrels)
    for row in scores[:, judged]:
        found = pt.Evaluate(frames.with_scores(candidates, row), qrels, metrics=[measure], perquery=True)
        columns.append(pd.Series({qid: values[str(measure)] for qid, values in found.items()}))
    by_query = pd.concat(columns, axis=1).rename_axis("qid")
    by_query.columns = pd.Index(grid, tupleize_cols=False)
    return by_query


def _standard_errors(differences: Doubles) -> Doubles:
    """Of the mean of each column; NaN where there is one row."""
    if len(differences) == 1:
        return np.full(differences.shape[1], np.nan)
    return differences.std(axis=0, ddof=1) / np.sqrt(len(differences))


def _checked_grid(grid: Sequence[Any]) -> list[Any]:
    entries = [named_alignment(entry) if isinstance(entry, str) else entry for entry in grid]
    if not entries:
        raise ValueError("the grid is empty")
    twice = [entry for i, entry in enumerate(entries) if entry in entries[:i]]
    if twice:
        raise ValueError(f"the grid has {twice[0]!r} twice")
    return entries


def _checked_scores(scores: Array, shape: tuple[int, int]) -> Doubles:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != shape:
        raise ValueError(f"scores must be (strategies, rows of results), {shape}, got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    return scores
