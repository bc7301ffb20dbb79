"""Measures of rankings, under the names that users know them by."""

from typing import Any

import ir_measures


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
