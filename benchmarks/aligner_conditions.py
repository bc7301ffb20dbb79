"""Conditions under which a trained Aligner is tested: which tokens are kept, and how scores are normalised.

Every collection is ranked as a whole, from states of its texts that are computed once, before any head.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from ir_measures import RR, R, nDCG
from projection_heads import DOC_LENGTH, MIN_LABEL, Collection

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.importance import IDF, Attention, First, Importance, Random, pruned
from pyterrier_mvret.scoring import Alignment
from pyterrier_mvret.scoring.aligned import LEAST_MASS
from pyterrier_mvret.scoring.ragged import padded_blocks, ragged_rows

RULES = {
    "alignment": Alignment(),
    "query": Alignment(normalizer="query"),
    "salient": Alignment(align_over="salient"),
    "off": Alignment(salience=False),
}
SHARES = ((0.5, 0.4), (0.5, 0.2), (0.5, 0.1))
CURVE = (0.6, 0.4, 0.2, 0.1)
CANDIDATES = (1000, 100)
RELEVANT = {**MIN_LABEL, "msmarco-dl19-mini": 2}  # of RR and R: TREC's own rule there
MEASURES = ("nDCG@10", "RR@10", "R@1000")


class Condition(NamedTuple):
    """What is searched, and how it is scored."""

    score: str
    by: str = ""  # what ranks tokens
    query_share: float = 1.0
    doc_share: float = 1.0
    refine: Literal["", "pruned", "full"] = ""
    candidates: int = 0


@dataclass(frozen=True)
class Outcome:
    """What was seen: values of topics, the share of document vectors searched, and of scores that are 0."""

    condition: Condition
    topics: pd.DataFrame
    kept: float
    vectors: int
    zero: float


class Tested:
    """The tested topics of a collection, with the states of their texts and what ranks tokens without training."""

    def __init__(self, collection: Collection, cache: Path):
        self.name, self.docnos = collection.name, collection.docnos
        self.topics = collection.topics if not len(collection.halves()[1]) else collection.halves()[1]
        self._collection, self._cache = collection, cache

    @cached_property
    def _watched(self) -> dict[str, Any]:
        """Attention that tokens receive, and token ids: of documents and of the collection's queries."""
        file = self._cache / f"{self.name}.attention.npz"
        if not file.exists():
            encoder = mv.TokenEncoder(mv.models.MINILM, normalize=False, doc_length=DOC_LENGTH, verbose=True)
            docs = encoder.encode_docs([d["text"] for d in self._collection.documents], importance=Attention())
            queries = encoder.encode_queries(self._collection.topics["query"].tolist(), importance=Attention())
            np.savez(
                file, da=docs.importance, dt=docs.token_ids, qa=queries.importance, qt=queries.token_ids
            )  # fmt: skip
        with np.load(file) as stored:
            return {name: stored[name] for name in stored.files}

    @cached_property
    def idf(self) -> IDF:
        """Of the collection's documents."""
        encoder = mv.TokenEncoder(mv.models.MINILM, doc_length=DOC_LENGTH)
        return IDF.of(encoder, [d["text"] for d in self._collection.documents])

    @cached_property
    def documents(self) -> mv.TokenBatch:
        """States, with attention as importance."""
        states = self._collection.states
        return mv.TokenBatch(states["dv"], states["do"], self._watched["dt"], importance=self._watched["da"])

    @cached_property
    def queries(self) -> mv.TokenBatch:
        """The same of tested queries alone."""
        states, all_topics = self._collection.states, self._collection.topics
        places = np.flatnonzero(all_topics["qid"].isin(self.topics["qid"]))
        starts, lengths = states["qo"][places], np.diff(states["qo"])[places]
        rows = ragged_rows(starts, lengths)
        return mv.TokenBatch(
            states["qv"][rows],
            np.concatenate([[0], np.cumsum(lengths)]),
            self._watched["qt"][rows],
            importance=self._watched["qa"][rows],
        )

    @cached_property
    def judged(self) -> pd.DataFrame:
        """Judgements of the tested topics."""
        qrels = self._collection.qrels
        return qrels[qrels["qid"].isin(self.topics["qid"])]

    @cached_property
    def _is_judged(self) -> Any:
        """(topics, documents)."""
        pairs = set(zip(self.judged["qid"], self.judged["docno"], strict=True))
        return np.array([[(qid, docno) in pairs for docno in self.docnos] for qid in self.topics["qid"]])

    def measure(self, scores: Any) -> pd.DataFrame:
        """Measures of each topic; documents of score minus infinity are not ranked."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :1000]
        ranked = np.take_along_axis(scores, order, axis=1) > -np.inf
        # unjudged documents from rank 11 on change none of the measures
        shown = ranked & (np.take_along_axis(self._is_judged, order, axis=1) | (np.arange(order.shape[1]) < 10))
        topic, rank = np.nonzero(shown)
        found = pd.DataFrame({"qid": self.topics["qid"].to_numpy()[topic], "docno": self.docnos[order[topic, rank]]})
        label = RELEVANT.get(self.name, 1)
        measures = [nDCG @ 10, RR(rel=label) @ 10, R(rel=label) @ 1000]
        values = pt.Evaluate(found.assign(score=-rank.astype(float)), self.judged, measures, perquery=True)
        rows = [[values[qid][str(m)] for m in measures] for qid in self.topics["qid"]]
        return pd.DataFrame(rows, index=self.topics["qid"], columns=list(MEASURES))

    def ways(self, trained: bool, seed: int) -> dict[str, Importance | None]:
        """What ranks tokens: salience where heads are, else what needs no training; None is the batch's own."""
        if trained:
            return {"salience": None}
        return {"random": Random(seed), "first": First(), "idf": self.idf, "attention": None}


def through(modules: list, states: mv.TokenBatch, task: str) -> mv.TokenBatch:
    """Token vectors of states under what comes after the transformer; with saliences where it has heads."""
    lengths, parts, rows = np.diff(states.offsets), [], []
    with torch.inference_mode():
        for block in padded_blocks(lengths, 1 << 15):
            padded = np.arange(lengths[block].max()) < lengths[block][:, None]
            rows.append(ragged_rows(states.offsets[block], lengths[block]))
            mask = torch.from_numpy(padded)
            vectors = torch.zeros(*mask.shape, states.dim)
            vectors[mask] = torch.from_numpy(states.vectors[rows[-1]].astype(np.float32))
            features = {"token_embeddings": vectors, "attention_mask": mask.long()}
            for module in modules:
                takes_task = "task" in getattr(module, "forward_kwargs", ())
                features = module(features, task=task) if takes_task else module(features)
            names = ("token_embeddings", "token_weights", "token_importance")
            parts.append([features[name][mask].numpy() for name in names if name in features])
    back = np.argsort(np.concatenate(rows))
    vectors, *said = (np.concatenate(part)[back] for part in zip(*parts, strict=True))
    heads = {"weights": said[0], "importance": said[1]} if said else {}
    return replace(states, vectors=vectors, **heads)


def fractional(tokens: mv.TokenBatch) -> tuple[float, float]:
    """Shares of tokens whose gate is between 0.01 and 0.99, and whose salience is 0."""
    score = np.maximum(tokens.importance, 0)
    gates = np.divide(tokens.weights, score, out=np.zeros_like(score), where=score > 0)
    return float(((gates > 0.01) & (gates < 0.99)).mean()), float((tokens.weights == 0).mean())


def outcomes(
    test: Tested, queries: Any, documents: Any, scores: tuple[str, ...], curve: tuple[str, ...], seed: int
) -> Iterator[Outcome]:
    """What is seen under each condition.

    Args:
        test: the collection.
        queries: what :func:`through` gives for it.
        documents: the same.
        scores: names of rules, ``"off"`` alone for a model without saliences.
        curve: rules by which documents are also pruned to several shares while all query tokens are used.
        seed: of random pruning.
    """
    whole = matrices(queries, documents, scores)
    check_shared(queries, documents, whole)
    for score in scores:
        yield seen(test, Condition(score), whole[score], documents, documents)
    trained = queries.weights is not None
    for by, importance in test.ways(trained, seed).items():
        for query_share, doc_share in [*SHARES, *((1.0, share) for share in CURVE if curve)]:
            shorter = keep(queries, importance, query_share), keep(documents, importance, doc_share)
            now = scores if query_share < 1 else curve
            found = matrices(*shorter, tuple({**dict.fromkeys(now), "off": None}))
            for score in now:
                condition = Condition(score, by, query_share, doc_share, "pruned")
                yield seen(test, condition, found[score], shorter[1], documents)
            if query_share == 1:
                continue
            ranks = np.argsort(np.argsort(-found["off"], axis=1, kind="stable"), axis=1)
            for number in CANDIDATES:
                for score in scores:
                    refined = np.where(ranks < number, whole[score], -np.inf)
                    condition = Condition(score, by, query_share, doc_share, "full", number)
                    yield seen(test, condition, refined, shorter[1], documents)


def keep(tokens: mv.TokenBatch, importance: Importance | None, share: float) -> mv.TokenBatch:
    """The batch with a share of each text's tokens."""
    return pruned(tokens if importance is None else replace(tokens, importance=importance.scores(tokens)), share)


def matrices(queries: mv.TokenBatch, documents: mv.TokenBatch, scores: tuple[str, ...]) -> dict[str, Any]:
    """(queries, documents) scores by each rule; where tokens have saliences, the best document tokens are shared."""
    common = [name for name in scores if documents.weights is not None and name != "salient"]
    found = best_shared(queries, documents, common) if len(common) > 1 else {}
    return {name: found[name] if name in found else by_rule(queries, documents, name) for name in scores}


def by_rule(queries: mv.TokenBatch, documents: mv.TokenBatch, score: str) -> Any:
    """(queries, documents) scores."""
    packed = queries.vectors, queries.offsets, documents.vectors, documents.offsets
    return RULES[score].matrix(*packed, queries.weights, doc_weights=documents.weights)


def best_shared(queries: mv.TokenBatch, documents: mv.TokenBatch, scores: list[str]) -> dict[str, Any]:
    """What :func:`by_rule` gives for each rule, from one search for the best document tokens."""
    tokens, u = torch.from_numpy(queries.vectors), queries.weights.astype(np.float64)[:, None]
    lengths, starts = np.diff(documents.offsets), documents.offsets[:-1]
    found = {name: np.zeros((len(queries), len(documents)), np.float32) for name in scores}
    for block in padded_blocks(lengths, max(64, (1 << 18) // len(tokens))):
        within = np.minimum(np.arange(lengths[block].max()), lengths[block, None] - 1)
        rows = starts[block, None] + within
        products = (tokens @ torch.from_numpy(documents.vectors[rows.ravel()]).T).numpy()
        products = products.reshape(len(tokens), *rows.shape)
        place = products.argmax(axis=2)
        best = np.take_along_axis(products, place[..., None], axis=2)[..., 0].astype(np.float64)
        v = documents.weights[rows[np.arange(len(block)), place]].astype(np.float64)
        for name in scores:
            weight = np.ones_like(v) if name == "off" else u * v
            mass = np.broadcast_to(u, v.shape) if name == "query" else weight
            sums, total = (np.add.reduceat(part, queries.offsets[:-1]) for part in (weight * best, mass))
            found[name][:, block] = np.divide(sums, total, out=np.zeros_like(sums), where=total > LEAST_MASS)
    return found


def check_shared(queries: mv.TokenBatch, documents: mv.TokenBatch, whole: dict[str, Any], number: int = 20) -> None:
    """Scores of the first documents are those of the package's rules; else AssertionError."""
    end = documents.offsets[number]
    weights = None if documents.weights is None else documents.weights[:end]
    few = mv.TokenBatch(documents.vectors[:end], documents.offsets[: number + 1], weights=weights)
    for name, scores in whole.items():
        np.testing.assert_allclose(scores[:, :number], by_rule(queries, few, name), atol=1e-5)


def seen(test: Tested, condition: Condition, scores: Any, searched: mv.TokenBatch, whole: mv.TokenBatch) -> Outcome:
    """Measures under a condition, and what it took."""
    vectors = len(searched.vectors)
    ranked = scores > -np.inf
    zero = float((scores[ranked] == 0).mean())
    return Outcome(condition, test.measure(scores), vectors / len(whole.vectors), vectors, zero)
