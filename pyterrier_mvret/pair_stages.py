"""The pipeline stages of a pair scorer; users get them from ``NVF``."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.indexes.documents import digest_of

if TYPE_CHECKING:
    from pyterrier_mvret.pair_model import PairModel

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]
_LEAST_TEMPERATURE = 1e-30  # float32 has none much below


class QueryMover(Component):
    """Q (or R) with ``query_vec`` -> the same with vectors that were moved; see ``NVF.query_transform``."""

    def __init__(self, model: "PairModel"):
        self.model = model

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Replaces ``query_vec``; the encoder's name beside it stays, as the vectors are searched in its space."""
        pt.validate.columns(inp, includes=["qid", frames.QUERY_VEC], context=self)
        moved = frames.object_column([], inp.index)
        if len(inp):
            self.model.check_spaces(inp)
            groups, queries = query_vectors(inp)
            found = self.model.moved(queries)
            found.flags.writeable = False  # rows of one query share their array
            for i, rows in enumerate(groups):
                for row in rows:
                    moved.array[row] = found[i]
        return inp.assign(**{frames.QUERY_VEC: moved})


class SoftResult(Component):
    """R with ``query_vec`` and ``doc_vec`` -> Q whose vector is a mean of the best documents; see ``NVF.soft_result``.

    Args:
        k: documents that are averaged, by rank.
        temperature: of the softmax over their inner products with the query.
    """

    def __init__(self, k: int = 10, temperature: float = 0.05):
        if k < 1 or not temperature >= _LEAST_TEMPERATURE:
            raise ValueError(
                f"k must be at least 1, temperature {_LEAST_TEMPERATURE} or more, got {k} and {temperature}"
            )
        self.k, self.temperature = k, temperature

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """One row a query that has results."""
        pt.validate.result_frame(inp, [frames.QUERY_VEC, frames.DOC_VEC, "rank"], context=self)
        space_of(inp)  # raises where there are two
        groups, queries = query_vectors(inp) if len(inp) else ([], np.empty((0, 0), np.float32))
        firsts = np.array([rows[0] for rows in groups], dtype=np.intp)
        # PyTerrier's rule: columns of queries are named so, and outlive a rewriting of the query
        kept = [column for column in inp.columns if column.startswith("q")]
        out = inp.iloc[firsts][kept].reset_index(drop=True)
        means = [self._mean(inp, rows, query) for rows, query in zip(groups, queries, strict=True)]
        return out.assign(**{frames.QUERY_VEC: frames.object_column(means, out.index)})

    def _mean(self, inp: pd.DataFrame, rows: Rows, query: Floats) -> Floats:
        import torch

        from pyterrier_mvret.scoring.soft_attention import soft_result

        best = inp.iloc[rows].sort_values("rank", kind="stable").head(self.k)
        documents = frames.vectors(best, frames.DOC_VEC)
        _same_length(query, documents)
        return soft_result(torch.from_numpy(query), torch.from_numpy(documents), self.temperature).numpy()


class PairReranker(Component, pt.Estimator):
    """R with ``query_vec`` and ``doc_vec`` -> R, each pair scored by the model; see ``NVF.reranker``.

    ``pipeline.fit`` trains the model on what the stages before this one return.

    Args:
        model: what scores, and is trained.
        verbose: progress bars.
        training: keywords of the model's ``fit``.
    """

    _not_identity: ClassVar[tuple[str, ...]] = ("verbose", "training")

    def __init__(self, model: "PairModel", verbose: bool = False, training: dict[str, Any] | None = None):
        self.model, self.verbose, self.training = model, verbose, training

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """R -> R."""
        known = ["score"] if self.model.use_score else []
        pt.validate.result_frame(inp, [frames.QUERY_VEC, frames.DOC_VEC, *known], context=self)
        scores = np.empty(len(inp), dtype=np.float64)
        if len(inp):
            self.model.check_spaces(inp)
            groups, queries = query_vectors(inp)
            first = known_scores(inp) if known else None
            blocks = list(_blocks(groups))
            for block in pt.tqdm(blocks, desc="scoring", unit="block", disable=not self.verbose):
                rows = np.concatenate([groups[i] for i in block])
                # vectors of a block at a time: they stay in the processor's cache, and no copy of all is made
                documents = frames.vectors(inp, frames.DOC_VEC, rows)
                _same_length(queries[0], documents)
                at = _padded([len(groups[i]) for i in block])
                there = at >= 0
                first_scores = None if first is None else first[rows][at]
                scores[rows] = self.model.scored(queries[block], documents, at, first_scores)[there]
            _check_finite(inp, scores, "vectors too long for float32, or weights that diverged")
        return frames.with_scores(inp, scores)

    def fit(
        self,
        topics_or_res_tr: pd.DataFrame,
        qrels_tr: pd.DataFrame,
        topics_or_res_va: pd.DataFrame | None = None,
        qrels_va: pd.DataFrame | None = None,
    ) -> "PairReranker":
        """Trains the model on retrieved documents; see ``NVF.fit``, which has the rest of the settings."""
        settings = {"verbose": self.verbose, **(self.training or {})}
        self.model.fit(topics_or_res_tr, qrels_tr, topics_or_res_va, qrels_va, **settings)
        return self


def query_vectors(inp: pd.DataFrame) -> tuple[list[Rows], Floats]:
    """Positions of each query's rows, and the vectors of queries.

    Raises:
        ValueError: a query without a vector, one that is none, or of another length than the first.
    """
    groups, found = [], []
    for qid, rows in frames.query_groups(inp):
        groups.append(rows)
        vector = frames.first_value(inp[frames.QUERY_VEC], rows, qid)
        found.append(frames.vector(vector, f"{frames.QUERY_VEC} of query {qid!r}"))
        if not len(found[-1]):
            raise ValueError(f"{frames.QUERY_VEC} of query {qid!r} has no dimensions")
        if len(found[-1]) != len(found[0]):
            raise ValueError(f"query {qid!r} has a vector of {len(found[-1])} dimensions, the first {len(found[0])}")
    return groups, np.stack(found)


def space_of(*inps: pd.DataFrame | None, index: Any = None) -> str | None:
    """The one vector space that frames and an index say their vectors are of; none where they say nothing.

    Raises:
        ValueError: vectors of different spaces.
    """
    found = {getattr(getattr(index, "store", None), "space", None)}
    for inp in inps:
        if inp is not None and frames.QUERY_VEC_ENCODER in inp.columns:
            found |= set(frames.numbered(inp[frames.QUERY_VEC_ENCODER])[1])
        if inp is not None and frames.DOC_VEC_ENCODER in inp.columns:
            found |= {_said(text) for text in frames.numbered(inp[frames.DOC_VEC_ENCODER])[1]}
    spaces = sorted(str(space) for space in found if not frames.is_missing(space))
    if len({digest_of(space) for space in spaces}) > 1:
        raise ValueError(f"vectors of different encoders meet: {', '.join(spaces)}")
    return spaces[0] if spaces else None


def _said(text: Any) -> str | None:
    """The space that a document's encoder names."""
    try:
        return json.loads(text).get("space")
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{frames.DOC_VEC_ENCODER} is not a description of an encoder: {text!r}") from None


def known_scores(inp: pd.DataFrame) -> Floats:
    """Scores of a first stage.

    Raises:
        ValueError: one that is no number, or infinite; minus infinity is one.
    """
    scores = inp["score"].to_numpy(dtype=np.float64)
    _check_finite(inp, np.where(np.isneginf(scores), 0, scores), "use_score=True adds to it")
    with np.errstate(over="ignore"):
        return scores.astype(np.float32)


def _check_finite(inp: pd.DataFrame, scores: npt.NDArray[np.float64], why: str) -> None:
    odd = np.flatnonzero(~np.isfinite(scores))
    if len(odd):
        qid, docno = (inp[column].iloc[odd[0]] for column in ("qid", "docno"))
        raise ValueError(f"score of document {docno!r} for query {qid!r} is {scores[odd[0]]}: {why}")


# pairs that are scored at once: as few as fill the processor's cores, so that what is computed stays in its cache
_PAIRS_AT_ONCE = 2048


def _blocks(groups: Sequence[Rows]) -> Iterator[list[int]]:
    """Numbers of queries that are scored at once, those of like many candidates together."""
    block: list[int] = []
    for i in np.argsort([len(rows) for rows in groups], kind="stable").tolist():
        if block and (len(block) + 1) * len(groups[i]) > _PAIRS_AT_ONCE:
            yield block
            block = []
        block.append(i)
    yield block


def _padded(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """Numbers of rows that lie one after the other, a line for each run of them; -1 behind it.

    >>> _padded([1, 3]).tolist()
    [[0, -1, -1], [1, 2, 3]]
    """
    sizes = np.array(lengths)
    at = np.arange(sizes.max()) + (np.cumsum(sizes) - sizes)[:, None]
    return np.where(np.arange(sizes.max()) < sizes[:, None], at, -1)


def _same_length(query: Floats, documents: Floats) -> None:
    if len(query) != documents.shape[1]:
        raise ValueError(
            f"{frames.QUERY_VEC} has {len(query)} dimensions and {frames.DOC_VEC} {documents.shape[1]}: "
            "they are of different encoders"
        )
