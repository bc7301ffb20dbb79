"""Scores of all queries with all documents for latent_terms.py: systems, fusions, measures, contrasts.

A score matrix is (queries, documents); minus infinity is a document that was not found.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from aligner_contrasts import corrected, randomisation
from ir_measures import R, nDCG
from latent_states import Collection, States
from scipy.sparse import csr_array

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.ranking import ranked
from pyterrier_mvret.scoring.pooling import pooled_terms

Floats = npt.NDArray[Any]

MEASURES = [nDCG @ 10, R @ 100]
NAMES = [str(measure) for measure in MEASURES]
#: documents of each list that a fusion reads
DEPTH = 1000
#: the constant of reciprocal rank fusion (Cormack et al. 2009)
RRF = 60


# ---------------------------------------------------------------------- systems


def bm25_scores(queries: csr_array, documents: csr_array, k1: float = 8.0, b: float = 0.7, idf: Any = "rsj") -> Floats:
    """BM25 in float64; what shares no term that weighs anything is not found."""
    scores = mv.scoring.bm25_matrix(queries, documents, k1, b, idf)
    scores[scores <= 0] = -np.inf
    return scores


def terms(sae: Any, states: States, **pooling: Any) -> csr_array:
    """(texts, latents) weights of the terms of some texts."""
    activations, ids = (part.numpy() for part in sae.encode(states.states))
    return as_matrix(pooled_terms(activations, ids, states.offsets, **pooling), sae.latents)


def explained(sae: Any, states: Floats, some: int = 4096) -> Floats:
    """1 minus squared error over variance, of the first states."""
    x = torch.from_numpy(states[:some])
    with torch.no_grad():
        rest = x - sae.decode(sae.encode(x))
    return np.array(1 - float(rest.square().sum() / (x - x.mean(0)).square().sum()))


def as_matrix(found: tuple[Any, Any, Any], width: int) -> csr_array:
    """What ``pooled_terms`` found, as a matrix."""
    offsets, latents, weights = found
    return csr_array((weights, latents, offsets), shape=(len(offsets) - 1, width))


def frequencies(matrix: csr_array) -> Floats:
    """(terms,) texts that have each."""
    return np.bincount(matrix.indices, minlength=matrix.shape[1])


def word_pieces(states: States, width: int) -> csr_array:
    """(texts, vocabulary) counts of the tokeniser's own tokens: what a perfect hash of tokens would be."""
    ones = np.ones(len(states.token_ids), np.float32)
    counts = csr_array((ones, states.token_ids, states.offsets), shape=(len(states.offsets) - 1, width))
    counts.sum_duplicates()
    return counts


def sentence_vectors(states: States) -> Floats:
    """(texts, dim): means over all tokens, of length one, as all-MiniLM-L6-v2 makes them."""
    means = np.add.reduceat(states.states, states.offsets[:-1]) / np.diff(states.offsets)[:, None]
    return unit(means)


def unit(rows: Floats) -> Floats:
    """Rows of length one."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def maxsim(queries: States, documents: States) -> Floats:
    """MaxSim of token states scaled to length one."""
    left, right = unit(queries.states), unit(documents.states)
    return mv.scoring.maxsim_matrix(left, queries.offsets, right, documents.offsets)


# ---------------------------------------------------------------------- from frames, and back


def from_frame(found: pd.DataFrame, collection: Collection) -> Floats:
    """The score matrix of a retriever's results."""
    rows = {qid: i for i, qid in enumerate(collection.topics["qid"])}
    columns = {d["docno"]: i for i, d in enumerate(collection.documents)}
    scores = np.full((len(rows), len(columns)), -np.inf)
    scores[found["qid"].map(rows), found["docno"].map(columns)] = found["score"]
    return scores


def best(scores: Floats, docnos: Floats, k: int) -> list[list[str]]:
    """The k best documents of each query, equal scores by docno."""
    names = lambda positions: docnos[positions].tolist()  # noqa: E731 (what ranked asks for)
    lists = []
    for row in scores:
        positions = np.flatnonzero(row > -np.inf)
        lists.append(list(ranked(row[positions], positions, k, names)[0]))
    return lists


def measured(scores: Floats, collection: Collection) -> Floats:
    """(queries, measures), one row a topic; 0 where nothing was found."""
    docnos = np.array([d["docno"] for d in collection.documents], dtype=object)
    qids = collection.topics["qid"].tolist()
    run = {
        qid: {docno: float(-rank) for rank, docno in enumerate(found)}
        for qid, found in zip(qids, best(scores, docnos, 100), strict=True)
    }
    qrels: dict[str, dict[str, int]] = {}
    for row in collection.qrels.itertuples():
        qrels.setdefault(row.qid, {})[row.docno] = row.label
    values = np.zeros((len(qids), len(MEASURES)))
    rows = {qid: i for i, qid in enumerate(qids)}
    for metric in ir_measures.iter_calc(MEASURES, qrels, run):
        values[rows[metric.query_id], NAMES.index(str(metric.measure))] = metric.value
    return values


# ---------------------------------------------------------------------- fusion


def added(*parts: Floats) -> Floats:
    """Sum of scores, those of each query's best documents scaled to 0 (the last of them) to 1; not found is 0."""
    return _fused([_scaled(_cut(part)) for part in parts], parts)


def reciprocal(*parts: Floats) -> Floats:
    """Sum of 1 / (60 + rank) over the lists that have the document."""
    return _fused([_reciprocal(_cut(part)) for part in parts], parts)


def _fused(values: Sequence[Floats], parts: Sequence[Floats]) -> Floats:
    found = np.any([_cut(part) > -np.inf for part in parts], axis=0)
    return np.where(found, np.sum(values, axis=0), -np.inf)


def _cut(scores: Floats) -> Floats:
    """Scores of the best documents of each query; others are as not found."""
    if scores.shape[1] <= DEPTH:
        return scores
    least = np.partition(scores, -DEPTH, axis=1)[:, -DEPTH, None]
    return np.where(scores >= least, scores, -np.inf)


def _scaled(scores: Floats) -> Floats:
    found = scores > -np.inf
    low = np.where(found, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = scores.max(axis=1, keepdims=True, initial=-np.inf)
    spread = np.where(high > low, high - low, 1.0)
    with np.errstate(invalid="ignore"):
        return np.where(found, (scores - low) / spread, 0.0)


def _reciprocal(scores: Floats) -> Floats:
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None], axis=1)
    return np.where(scores > -np.inf, 1.0 / (RRF + 1 + ranks), 0.0)


# ---------------------------------------------------------------------- contrasts


def contrasts(values: dict[str, Floats], planned: dict[str, tuple[list[str], list[str]]]) -> list[dict[str, Any]]:
    """Planned differences, means over seeds first; p by paired randomisation over topics, Holm's within a measure.

    Args:
        values: (topics, measures) of each system.
        planned: systems whose mean is on the left, and those on the right.
    """
    rows = []
    for at, measure in enumerate(NAMES):
        family = []
        for name, sides in planned.items():
            if all(system in values for side in sides for system in side):
                left, right = (np.mean([values[system][:, at] for system in side], axis=0) for side in sides)
                p = randomisation(left - right)
                delta = round(float((left - right).mean()), 4)
                family.append({"contrast": name, "measure": measure, "delta": delta, "p": round(p, 5)})
        rows += corrected(family)
    return rows


# ---------------------------------------------------------------------- files


def kept(path: Path, make: Any) -> Floats:
    """The array in a file, made where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, make())
        part.replace(path)
    return np.load(path)
