"""Measures of rankings, under the names that users know them by."""

from typing import Any

import ir_measures
import pandas as pd


def parsed(measure: Any) -> Any:
    """A measure of ir_measures, from itself, its name (``nDCG@10``) or trec_eval's name (``ndcg_cut_10``).

    Raises:
        ValueError: no such measure.

    >>> parsed("ndcg_cut_10"), parsed("RR@10")
    (nDCG@10, RR@10)
    """
    if not isinstance(measure, str):
        return measure
    try:
        return ir_measures.parse_measure(measure)
    except (NameError, ValueError):
        return next(iter(ir_measures.parse_trec_measure(measure)))


def measurable(qrels: pd.DataFrame) -> pd.DataFrame:
    """Judgements as trec_eval's code can read them: labels below 0, as those of web spam, count as 0.

    With a query that has no other label it crashes, and Python with it.

    >>> measurable(pd.DataFrame({"qid": ["1", "1"], "docno": ["a", "b"], "label": [-2, 1]}))["label"].tolist()
    [0, 1]
    """
    return qrels.assign(label=qrels["label"].clip(lower=0))
