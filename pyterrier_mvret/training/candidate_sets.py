"""Queries, their candidates and what is relevant among them, as arrays: what pair scorers learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.training.measures import measurable, parsed
from pyterrier_mvret.training.splits import split

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
        found = pt.Evaluate(run, measurable(qrels), metrics=[parsed(measure)])
        return float(found[str(parsed(measure))])


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
        qrels: ``qid``, ``docno``, ``label``; labels of at least 1 are relevant, what is not judged is not. Of a
            document that was judged twice, the largest label counts.
        index: with a ``vec_loader()``, from which documents' vectors are read.
        depth: candidates of a query at most, by rank.
        missing: relevant documents that are not among a query's candidates take the place of its last irrelevant ones
            (``"inject"``; one of these always stays, and a vector must be known, from the index or another query's
            results), or do not; queries without a relevant candidate are then left out, unless they are to be kept
            for validation (``"keep"``).
        normalize: scale vectors to length one.

    Raises:
        ValueError: a candidate twice, vectors that are none or of different lengths, labels that are no numbers, no
            query with a relevant document, or none that is left.

    >>> columns = {"qid": "1", "docno": ["a", "b"], "score": [2.0, 1.0], "rank": [0, 1]}
    >>> results = pd.DataFrame(columns).assign(
    ...     query_vec=[np.ones(2)] * 2, doc_vec=[np.eye(2)[0], np.eye(2)[1]])
    >>> sets = candidate_sets(results, pd.DataFrame({"qid": ["1"], "docno": ["b"], "label": [2]}))
    >>> sets.candidates.tolist(), sets.gains.tolist()
    ([[0, 1]], [[0.0, 2.0]])
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be one of {', '.join(get_args(Missing))}, got {missing!r}")
    if depth is not None and depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    vectors = [frames.QUERY_VEC, *([] if index is not None else [frames.DOC_VEC])]
    pt.validate.result_frame(results, ["score", "rank", *vectors])
    twice = results[results.duplicated(["qid", "docno"])]
    if len(twice):
        raise ValueError(f"query {twice['qid'].iloc[0]!r} has candidate {twice['docno'].iloc[0]!r} twice")
    relevant = _relevant(qrels)
    _check_judged(results, relevant)
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
        raise ValueError("no query has a relevant document among its candidates")
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
    judged = _relevant_rows(qrels)
    judged = judged[judged["docno"].isin(place)].merge(vectors, on="qid")
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


def held_out(data: pd.DataFrame, qrels: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics or results in two parts that share no query, the second to choose an epoch by.

    Only queries with a relevant document are divided, and returned: others say nothing in either part.

    Raises:
        ValueError: fewer than two of these queries, or no share.

    >>> topics = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["a", "b", "c"]})
    >>> qrels = pd.DataFrame({"qid": ["1", "3"], "docno": "d", "label": 1})
    >>> sorted(part["qid"].tolist() for part in held_out(topics, qrels, 0.5, seed=0))
    [['1'], ['3']]
    """
    relevant = _relevant(qrels)
    _check_judged(data, relevant)
    data = data[data["qid"].isin(relevant)]
    # a query's text may lack in some of its rows, or in all, or in the frame; its name does not
    texts = data.groupby("qid", sort=False)["query" if "query" in data.columns else "qid"].first()
    texts = texts.where(texts.notna(), texts.index)
    if len(texts) < 2:
        raise ValueError("one judged query cannot be divided in two: pass others to validate with, or valid=0")
    parts = split(pd.DataFrame({"qid": texts.index, "query": texts.to_numpy()}), share, seed=seed)
    train, valid = (data[data["qid"].isin(part["qid"])].reset_index(drop=True) for part in parts)
    return train, valid


def asked(pairs: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Topics and judgements from query vectors and the documents that they should find.

    Pairs of equal vectors are one topic: what one of them should find is not wrong for another.

    >>> topics, qrels = asked([([1.0, 0.0], "a"), ([0.0, 1.0], "b")])
    >>> topics["qid"].tolist(), qrels["docno"].tolist(), qrels["label"].tolist()
    (['0', '1'], ['a', 'b'], [1, 1])
    """
    if isinstance(pairs, pd.DataFrame):
        pt.validate.columns(pairs, includes=[frames.QUERY_VEC, "docno"])
        vectors, docnos = pairs[frames.QUERY_VEC].tolist(), pairs["docno"].tolist()
    else:
        vectors, docnos = (list(part) for part in zip(*pairs, strict=True)) if (pairs := list(pairs)) else ([], [])
    vectors = [frames.vector(vector, f"{frames.QUERY_VEC} of pair {i}") for i, vector in enumerate(vectors)]
    distinct: dict[bytes, int] = {}
    numbers = [distinct.setdefault(vector.tobytes(), len(distinct)) for vector in vectors]
    first = dict(zip(reversed(numbers), reversed(vectors), strict=True))
    qids = [str(i) for i in range(len(distinct))]
    topics = pd.DataFrame({"qid": qids}).assign(query=qids)
    topics[frames.QUERY_VEC] = frames.object_column((first[i] for i in range(len(distinct))), topics.index)
    return topics, pd.DataFrame({"qid": [str(i) for i in numbers], "docno": docnos, "label": 1})


def unit(vectors: Floats) -> Floats:
    """Rows of length one; of zeros where there is nothing else."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    odd = ~((lengths > 1e-12) & (lengths < np.inf))
    if odd.any():  # zeros, or squares that float32 does not hold
        largest = np.abs(vectors).max(-1, keepdims=True, initial=0)
        vectors = (vectors / np.where(odd & (largest > 0), largest, 1).astype(np.float32)).astype(np.float32)
        lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))[..., None]
    scaled: Floats = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _relevant(qrels: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Labels of each query's relevant documents, the largest first."""
    judged = _relevant_rows(qrels).sort_values("label", ascending=False, kind="stable")
    rows = judged[["qid", "docno", "label"]].itertuples(index=False)
    labels: dict[str, dict[str, float]] = {}
    for qid, docno, label in rows:
        labels.setdefault(qid, {})[docno] = float(label)
    return labels


def _relevant_rows(qrels: pd.DataFrame) -> pd.DataFrame:
    """Judgements of relevant documents; of one that was judged twice, the largest label."""
    pt.validate.columns(qrels, includes=["qid", "docno", "label"])
    try:
        judged = qrels[qrels["label"] >= 1].reset_index(drop=True)
    except TypeError:
        raise ValueError(f"labels of qrels must be numbers, got {qrels['label'].iloc[0]!r}") from None
    best = judged.sort_values("label", ascending=False, kind="stable").drop_duplicates(["qid", "docno"])
    return best.sort_index()


def _check_judged(data: pd.DataFrame, relevant: Mapping[str, Any]) -> None:
    """ValueError where no query has a relevant document."""
    if not len(data) or not relevant:
        raise ValueError("no queries" if relevant else "no judgement of a relevant document")
    if not data["qid"].isin(relevant).any():
        first, judged = data["qid"].iloc[0], next(iter(relevant))
        raise ValueError(f"no query has a relevant document: queries are {first!r}, ..., judgements of {judged!r}, ...")


def _documents(
    results: pd.DataFrame, relevant: Mapping[str, Mapping[str, float]], index: Any, missing: str
) -> tuple[list[str], Floats]:
    """Names and vectors of all documents that are needed."""
    if index is None:
        first = results.drop_duplicates("docno")
        return first["docno"].tolist(), frames.vectors(first, frames.DOC_VEC)
    names = dict.fromkeys(results["docno"])
    if missing == "inject":
        wanted = list(dict.fromkeys(docno for qid in results["qid"].unique() for docno in relevant[qid]))
        # judgements may be of a larger collection; of indexes that do not say what they hold, all must be there
        there = index.holds(wanted) if hasattr(index, "holds") else np.ones(len(wanted), dtype=bool)
        names |= dict.fromkeys(docno for docno, known in zip(wanted, there, strict=True) if known)
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
