"""Queries, their candidates and what is relevant among them, as arrays: what pair scorers learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.training.measures import parsed

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Missing = Literal["inject", "drop", "keep"]


@dataclass(frozen=True)
class CandidateSets:
    """One row a query; documents are held once, however many queries found them.

    Attributes:
        queries: (queries, dim) float32.
        documents: (documents, dim) float32.
        candidates: (queries, K) rows of documents, best first; -1 where a query has fewer.
        gains: (queries, K) float32, the label of a relevant candidate; 0 of any other.
        scores: (queries, K) float32 scores of the first stage; of a document that was put in, the query's least.
        qids: a name a query.
        docnos: a name a document.
        left_out: queries that were left out as none of their candidates is relevant.
    """

    queries: Floats
    documents: Floats
    candidates: Ints
    gains: Floats
    scores: Floats
    qids: Sequence[str] = ()
    docnos: Sequence[str] = ()
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.queries)

    def measured(self, scores: Floats, qrels: pd.DataFrame, measure: Any) -> float:
        """A measure of the candidates as scored, (queries, K); queries without any count as 0, as with PyTerrier."""
        row, column = np.nonzero(self.candidates >= 0)
        names = np.asarray(self.docnos, dtype=object)[self.candidates[row, column]]
        qids = np.asarray(self.qids, dtype=object)[row]
        run = pd.DataFrame({"qid": qids, "docno": names, "score": scores[row, column].astype(np.float64)})
        return float(pt.Evaluate(run, qrels, metrics=[parsed(measure)])[str(parsed(measure))])


def candidate_sets(
    results: pd.DataFrame,
    qrels: pd.DataFrame,
    *,
    index: Any = None,
    depth: int | None = None,
    missing: Missing = "inject",
    normalize: bool = True,
) -> CandidateSets:
    """Candidate sets of a first stage's results.

    Args:
        results: R with ``query_vec``, and ``doc_vec`` unless there is an index.
        qrels: ``qid``, ``docno``, ``label``; labels of at least 1 are relevant, what is not judged is not.
        index: with a ``vec_loader()``, from which documents' vectors are read.
        depth: candidates of a query at most, by rank.
        missing: relevant documents that are not among a query's candidates take the place of its last irrelevant ones
            (``"inject"``; one of these always stays, and a vector must be known, from the index or another query's
            results), or do not; queries without a relevant candidate are then left out, unless they are to be kept
            for validation (``"keep"``).
        normalize: scale vectors to length one.

    Raises:
        ValueError: a candidate twice, vectors that are none or of different lengths, no query that is left.

    >>> columns = {"qid": "1", "docno": ["a", "b"], "score": [2.0, 1.0], "rank": [0, 1]}
    >>> results = pd.DataFrame(columns).assign(
    ...     query_vec=[np.ones(2)] * 2, doc_vec=[np.eye(2)[0], np.eye(2)[1]])
    >>> sets = candidate_sets(results, pd.DataFrame({"qid": ["1"], "docno": ["b"], "label": [2]}))
    >>> sets.candidates.tolist(), sets.gains.tolist()
    ([[0, 1]], [[0.0, 2.0]])
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be one of {', '.join(get_args(Missing))}, got {missing!r}")
    pt.validate.columns(qrels, includes=["qid", "docno", "label"])
    vectors = [frames.QUERY_VEC, *([] if index is not None else [frames.DOC_VEC])]
    pt.validate.result_frame(results, ["score", "rank", *vectors])
    twice = results[results.duplicated(["qid", "docno"])]
    if len(twice):
        raise ValueError(f"query {twice['qid'].iloc[0]!r} has candidate {twice['docno'].iloc[0]!r} twice")
    relevant = _relevant(qrels)
    asked = results["qid"].isin(relevant) if missing != "keep" else np.ones(len(results), dtype=bool)
    results = results[asked].sort_values("rank", kind="stable")
    if depth is not None:
        results = results[results.groupby("qid", sort=False).cumcount() < depth]
    names, documents = _documents(results, relevant, index, missing)
    place = {name: i for i, name in enumerate(names)}
    at = results["docno"].map(place).to_numpy(dtype=np.int64)
    scores = results["score"].to_numpy(dtype=np.float64)
    qids, queries, rows = [], [], []
    for qid, mine in frames.query_groups(results):
        row = _row(at[mine], scores[mine], relevant.get(qid, {}), place, missing)
        if missing != "keep" and not row[1].any():
            continue
        query = frames.first_value(results[frames.QUERY_VEC], mine, qid)
        queries.append(frames.vector(query, f"{frames.QUERY_VEC} of query {qid!r}"))
        qids.append(qid)
        rows.append(row)
    if not rows:
        raise ValueError("no query has a relevant document among its candidates" if relevant else "no judgement")
    if len({len(query) for query in queries} | {documents.shape[1]}) > 1:
        raise ValueError(f"{frames.QUERY_VEC} and {frames.DOC_VEC} must all have as many dimensions")
    candidates, gains, known = zip(*rows, strict=True)
    width = max(map(len, candidates))
    return CandidateSets(
        unit(np.stack(queries)) if normalize else np.stack(queries),
        unit(documents) if normalize else documents,
        _padded(candidates, width, -1),
        _padded(gains, width, 0),
        _padded(known, width, 0),
        qids,
        names,
        left_out=0 if missing == "keep" else len(relevant) - len(rows),
    )


def relevant_sets(
    topics: pd.DataFrame, qrels: pd.DataFrame, names: Sequence[str], documents: Floats, normalize: bool = True
) -> CandidateSets:
    """Candidate sets of relevant documents alone, over all documents of a collection.

    Args:
        topics: Q with ``query_vec``; topics without a relevant document are left out.
        qrels: ``qid``, ``docno``, ``label``.
        names: of the documents.
        documents: (documents, dim) float32, as they are to be scored.
        normalize: scale queries to length one.

    Raises:
        ValueError: no topic with a relevant document that is there, or vectors that do not fit.
    """
    place = {name: i for i, name in enumerate(names)}
    vectors = topics.drop_duplicates("qid")[["qid", frames.QUERY_VEC]]
    judged = qrels[(qrels["label"] >= 1) & qrels["docno"].isin(place)].merge(vectors, on="qid")
    rows = []
    for qid, mine in frames.query_groups(judged):
        what = f"{frames.QUERY_VEC} of query {qid!r}"
        query = frames.vector(judged[frames.QUERY_VEC].iloc[mine[0]], what)
        if len(query) != documents.shape[1]:
            raise ValueError(f"{what} has {len(query)} dimensions, documents have {documents.shape[1]}")
        at = np.array([place[name] for name in judged["docno"].iloc[mine]], dtype=np.int64)
        rows.append((qid, query, at, judged["label"].iloc[mine].to_numpy(dtype=np.float32)))
    if not rows:
        raise ValueError("no topic has a relevant document in the index")
    width = max(len(at) for _, _, at, _ in rows)
    queries = np.stack([query for _, query, _, _ in rows])
    gains = _padded([labels for *_, labels in rows], width, 0)
    candidates = _padded([at for _, _, at, _ in rows], width, -1)
    qids = [qid for qid, *_ in rows]
    return CandidateSets(unit(queries) if normalize else queries, documents, candidates, gains, gains, qids, names)


def asked(pairs: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics and judgements from query vectors and the documents that they should find.

    >>> topics, qrels = asked([([1.0, 0.0], "a"), ([0.0, 1.0], "b")])
    >>> topics["qid"].tolist(), qrels["docno"].tolist(), qrels["label"].tolist()
    (['0', '1'], ['a', 'b'], [1, 1])
    """
    if isinstance(pairs, pd.DataFrame):
        pt.validate.columns(pairs, includes=[frames.QUERY_VEC, "docno"])
        vectors, docnos = pairs[frames.QUERY_VEC].tolist(), pairs["docno"].tolist()
    else:
        vectors, docnos = (list(part) for part in zip(*pairs, strict=True)) if (pairs := list(pairs)) else ([], [])
    qids = [str(i) for i in range(len(vectors))]
    topics = pd.DataFrame({"qid": qids}).assign(query=qids)
    topics[frames.QUERY_VEC] = frames.object_column(vectors, topics.index)
    return topics, pd.DataFrame({"qid": qids, "docno": docnos, "label": 1})


def unit(vectors: Floats) -> Floats:
    """Rows of length one; of zeros where there is nothing else."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    scaled: Floats = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _relevant(qrels: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Labels of each query's relevant documents, the largest first."""
    judged = qrels[qrels["label"] >= 1].sort_values("label", ascending=False, kind="stable")
    rows = judged[["qid", "docno", "label"]].itertuples(index=False)
    labels: dict[str, dict[str, float]] = {}
    for qid, docno, label in rows:
        labels.setdefault(qid, {})[docno] = float(label)
    return labels


def _documents(
    results: pd.DataFrame, relevant: Mapping[str, Mapping[str, float]], index: Any, missing: str
) -> tuple[list[str], Floats]:
    """Names and vectors of all documents that are needed."""
    if index is None:
        first = results.drop_duplicates("docno")
        return first["docno"].tolist(), frames.vectors(first, frames.DOC_VEC)
    names = dict.fromkeys(results["docno"])
    if missing == "inject":
        names |= dict.fromkeys(docno for qid in results["qid"].unique() for docno in relevant[qid])
    loaded = index.vec_loader()(pd.DataFrame({"docno": list(names)}))
    return list(names), frames.vectors(loaded, frames.DOC_VEC)


def _row(
    candidates: npt.NDArray[Any],
    scores: npt.NDArray[np.float64],
    labels: Mapping[str, float],
    place: Mapping[str, int],
    missing: str,
) -> tuple[npt.NDArray[Any], Floats, Floats]:
    """A query's candidates, gains and scores, with relevant documents put in."""
    gain = {place[name]: label for name, label in labels.items() if name in place}
    candidates, known = candidates.copy(), scores.astype(np.float32)
    if missing == "inject":
        absent = [at for at in gain if at not in set(candidates.tolist())]
        free = [i for i in range(len(candidates))[::-1] if int(candidates[i]) not in gain][:-1]
        for i, at in zip(free[: len(absent)][::-1], absent, strict=False):
            candidates[i], known[i] = at, known.min()
    gains = np.array([gain.get(at, 0.0) for at in candidates.tolist()], dtype=np.float32)
    return candidates, gains, known


def _padded(rows: Sequence[npt.NDArray[Any]], width: int, fill: float) -> npt.NDArray[Any]:
    padded = np.full((len(rows), width), fill, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
