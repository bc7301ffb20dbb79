"""Which differences between runs are more than chance: paired randomisation over topics, Holm-corrected."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

FLIPS = 20_000
WHERE = ["score", "by", "query_share", "doc_share", "refine", "candidates"]
Floats = npt.NDArray[Any]


class Side(NamedTuple):
    """A run under a condition."""

    run: str
    score: str
    by: str = ""
    shares: tuple[float, float] = (1.0, 1.0)


def _pruned(run: str, score: str, by: str = "salience") -> Side:
    return Side(run, score, by, (0.5, 0.2))


# named before any run: what the ablations are asked
PLANNED = {
    "with salience - without, paper's normaliser": (Side("R0", "alignment"), Side("R1", "off")),
    "with salience - without, query normaliser": (Side("R0q", "query"), Side("R1", "off")),
    "vectors trained with salience - without": (Side("R0", "off"), Side("R1", "off")),
    "query normaliser - paper's, each as trained": (Side("R0q", "query"), Side("R0", "alignment")),
    "the same, (.5, .2) kept": (_pruned("R0q", "query"), _pruned("R0", "alignment")),
    "joint - afterwards": (Side("R0", "alignment"), Side("R1+", "alignment")),
    "alpha_q .2 - .5": (Side("A1", "alignment"), Side("R0", "alignment")),
    "alpha_d .2 - .4": (Side("A2", "alignment"), Side("R0", "alignment")),
    "alpha_d .6 - .4": (Side("A3", "alignment"), Side("R0", "alignment")),
    "alpha_q .8 - .5": (Side("A4", "alignment"), Side("R0", "alignment")),
    "learned - random without salience, (.5, .2) kept": (_pruned("R0", "alignment"), _pruned("R1", "off", "random")),
    "the same, query normaliser": (_pruned("R0q", "query"), _pruned("R1", "off", "random")),
    "the same, against attention": (_pruned("R0q", "query"), _pruned("R1", "off", "attention")),
}


def contrasts(topics: pd.DataFrame, measure: str = "nDCG@10") -> list[dict]:
    """The planned differences: mean, spread over seeds, and p over topics, corrected within a collection."""
    rows = []
    for collection, mine in topics.groupby("collection", sort=False):
        family = []
        for name, sides in PLANNED.items():
            left, right = (by_seed(of_side(mine, side), measure) for side in sides)
            if left.size and right.size:
                family.append({"collection": collection, "contrast": name, **compared(left, right)})
        rows += corrected(family)
    return rows


def of_side(topics: pd.DataFrame, side: Side) -> pd.DataFrame:
    """Its values of topics."""
    here = (topics["run"] == side.run) & (topics["score"] == side.score) & (topics["by"] == side.by)
    here &= (topics["query_share"] == side.shares[0]) & (topics["doc_share"] == side.shares[1])
    return topics[here & (topics["refine"] == ("" if side.by == "" else "pruned"))]


def summary(topics: pd.DataFrame, measure: str = "nDCG@10") -> list[dict]:
    """Each run against R0 under the same condition; one without salience against R0 as it was trained.

    Refined rankings are left out: they differ little from those of all tokens.
    """
    rows = []
    for collection, mine in topics[topics["refine"] != "full"].groupby("collection", sort=False):
        values = {key: by_seed(part, measure) for key, part in mine.groupby(["run", *WHERE], sort=False)}
        family = []
        for (run, score, by, *where), found in values.items():
            row = {"collection": collection, "run": run, **dict(zip(WHERE, (score, by, *where), strict=True))}
            means = found.mean(axis=0)
            row |= {"mean": round(float(means.mean()), 4), "seed std": round(spread(means), 4)}
            same = ("R0", "alignment" if run == "R1" else score, "salience" if by else "", *where)
            if run != "R0" and same in values:
                row |= compared(found, values[same])
                family.append(row)
            rows.append(row)
        corrected(family)
    return rows


def by_seed(topics: pd.DataFrame, measure: str) -> pd.DataFrame:
    """(topics, seeds)."""
    return topics.pivot_table(index="qid", columns="seed", values=measure)


def compared(left: pd.DataFrame, right: pd.DataFrame) -> dict[str, float]:
    """Mean difference over the seeds that both have, its spread over them, and p of each topic's mean over seeds."""
    differences = (left - right).dropna(axis=1)
    seeds = differences.mean(axis=0)
    p = randomisation(differences.mean(axis=1).to_numpy())
    return {"delta": round(float(seeds.mean()), 4), "delta std": round(spread(seeds), 4), "p": round(p, 5)}


def spread(seeds: pd.Series) -> float:
    """Standard deviation over seeds; 0 of one."""
    return float(seeds.std(ddof=1)) if len(seeds) > 1 else 0.0


def randomisation(differences: Floats) -> float:
    """Two-sided p of a paired randomisation test: how often random signs give a mean as far from zero.

    >>> randomisation(np.zeros(5)), randomisation(np.ones(20)) < 0.001
    (1.0, True)
    """
    sums = np.abs(_signs(len(differences)) @ differences)
    return float((1 + (sums >= abs(differences.sum()) - 1e-9).sum()) / (FLIPS + 1))


@lru_cache
def _signs(topics: int) -> Floats:
    return np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, topics))


def corrected(rows: list[dict]) -> list[dict]:
    """The rows with ``holm``: p corrected for all of them (Holm 1979).

    >>> [row["holm"] for row in corrected([{"p": 0.01}, {"p": 0.04}, {"p": 0.03}])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i]["p"])
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, rows[i]["p"] * (len(rows) - rank)))
        rows[i]["holm"] = round(highest, 4)
    return rows
