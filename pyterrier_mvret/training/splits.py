"""Parts of data that share no query, and the refusal of training on the topics that one reports."""

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from datasets import Dataset

Split = TypeVar("Split", bound="Dataset | pd.DataFrame")


def split(data: Split, valid: float = 0.1, *, seed: int = 0) -> tuple[Split, Split]:
    """Two parts that share no query: never pairs of one query on both sides.

    Args:
        data: topics, results, or a training set; whatever has ``qid`` and ``query``.
        valid: share of the queries in the second part; at least one query goes to either.
        seed: of the division.

    Raises:
        ValueError: fewer than two queries, or a share that is not between 0 and 1.

    >>> import pyterrier_mvret as mv
    >>> topics = pd.DataFrame({"qid": ["1", "2", "3", "4"], "query": ["a", "b", "c", "A "]})
    >>> [part["qid"].tolist() for part in mv.training.split(topics, 0.3)]
    [['1', '2', '4'], ['3']]
    """
    if not 0 < valid < 1:
        raise ValueError(f"valid is a share of the queries, between 0 and 1, got {valid}")
    keys = _query_keys(data)
    names = sorted(set(keys))
    if len(names) < 2:
        raise ValueError(f"{len(names)} query cannot be divided in two")
    count = min(max(1, round(valid * len(names))), len(names) - 1)
    held = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]}
    first = [i for i, key in enumerate(keys) if key not in held]
    second = [i for i, key in enumerate(keys) if key in held]
    if isinstance(data, pd.DataFrame):
        return data.iloc[first].reset_index(drop=True), data.iloc[second].reset_index(drop=True)
    return data.select(first), data.select(second)


def refuse_test_topics(data: "Dataset | pd.DataFrame", topics: pd.DataFrame, *, qids: bool = True) -> None:
    """Does nothing where training data and test topics share no query, else raises.

    Texts are compared without case and white space. ``qids=False`` compares them alone: for collections that number
    their topics alike.

    Raises:
        ValueError: shared queries, the first of them named.

    >>> import pyterrier_mvret as mv
    >>> train = pd.DataFrame({"qid": ["1"], "query": ["What is  PISA?"]})
    >>> mv.training.refuse_test_topics(train, pd.DataFrame({"qid": ["9"], "query": ["what is pisa?"]}))
    Traceback (most recent call last):
    ...
    ValueError: 1 of 1 training queries is among the test topics, the first is 'what is pisa?': ...
    """
    keys = set(_query_keys(data))
    shared = sorted(keys & set(_query_keys(topics)))
    if shared:
        verb = "is" if len(shared) == 1 else "are"
        raise ValueError(
            f"{len(shared)} of {len(keys)} training queries {verb} among the test topics, the first is {shared[0]!r}: "
            "figures on these topics would not be held out"
        )
    same = sorted(set(map(str, _column(data, "qid"))) & set(map(str, topics["qid"]))) if qids else []
    if same:
        raise ValueError(
            f"{len(same)} qids of the training data are those of test topics, the first is {same[0]!r}: pass "
            "qids=False (test_qids=False to fit) if they come from different collections"
        )


def _column(data: "Dataset | pd.DataFrame", name: str) -> list[Any]:
    return data[name].tolist() if isinstance(data, pd.DataFrame) else list(data[name])


def _query_keys(data: "Dataset | pd.DataFrame") -> list[str]:
    """What makes two queries the same for our purposes: their words, not their case or spacing."""
    return [" ".join(str(query).casefold().split()) for query in _column(data, "query")]
