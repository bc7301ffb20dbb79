"""What every run of laspar.py is given: collections whose topics are divided, training rows, and one way to measure.

States of texts are computed once, before any head, and read by every condition; indexes and queries go through PISA.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import projection_heads
import pyterrier as pt
import torch
from ir_measures import R, nDCG
from projection_heads import DOC_LENGTH, MIN_LABEL

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.latents import LatentVectors
from pyterrier_mvret.scoring.ragged import padded_blocks, ragged_rows

SEEDS = (0, 1, 2)
VALID = 0.15
NEGATIVES, SENTENCES, LEAST_WORDS = 1, 500, 5
MEASURES = ("nDCG@10", "R@100")
_DEPTH = 100
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_TOKENS_AT_ONCE = 1 << 13  # blocks that stay in cache


class Collection(projection_heads.Collection):
    """A collection, what BM25 finds in it, and whether anything of it is trained on."""

    def __init__(self, name: str, data: Path, cache: Path, trained: bool, topics: int | None = None):
        super().__init__(name, data, cache)
        self.trained, self.label = trained, MIN_LABEL.get(name, 1)
        self._used = self.topics[:topics]
        self._scratch = tempfile.TemporaryDirectory()

    @cached_property
    def words(self) -> Any:
        """BM25."""
        return projection_heads.bm25(self.documents, Path(self._scratch.name) / "words.pisa")

    def divided(self, seed: int) -> dict[str, pd.DataFrame]:
        """Topics to train on, to choose the rate by (the same with every seed), and to test: a third with each seed."""
        if not self.trained:
            return {"train": self._used[:0], "valid": self._used[:0], "test": self._used}
        rest, valid = mv.training.split(self._used, VALID, seed=7)
        tested = set(np.random.default_rng(7).permutation(sorted(rest["qid"]))[seed :: len(SEEDS)])
        inside = rest["qid"].isin(tested)
        return {"train": rest[~inside], "valid": valid, "test": rest[inside]}

    def sentences(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """A sentence of each of some documents as a topic, and the document as its relevant one."""
        rng = np.random.default_rng(7)
        rows: list[tuple[str, str]] = []
        for i in rng.permutation(len(self.documents)):
            parts = [s for s in _SENTENCE.split(self.documents[i]["text"]) if len(s.split()) >= LEAST_WORDS]
            if parts and len(rows) < SENTENCES:
                rows.append((self.documents[i]["docno"], str(rng.choice(parts))))
        found = pd.DataFrame(rows, columns=["docno", "query"]).assign(label=1)
        found["qid"] = "sentence of " + found["docno"]
        return found[["qid", "query"]], found[["qid", "docno", "label"]]

    def rows(self, seed: int, teacher: "Teacher | None" = None, judged: bool = True, negatives: int = NEGATIVES) -> Any:
        """Training rows: judged topics and sentences, BM25's negatives, a teacher's scores if there is one."""
        topics, qrels = self.sentences()
        if judged:
            relevant = self.qrels.assign(label=(self.qrels["label"] >= self.label).astype(int))
            topics = pd.concat([self.divided(seed)["train"][["qid", "query"]], topics], ignore_index=True)
            qrels = pd.concat([relevant[["qid", "docno", "label"]], qrels])
        found = mv.training.groups(topics, qrels, self.words, negatives, self.documents, short="drop", seed=seed)
        return found if teacher is None else taught(found, teacher)

    # ------------------------------------------------------------------ measuring

    def _features(self, side: str, places: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], dict[str, Any]]]:
        """Padded states of texts, a block at a time."""
        offsets = self.states[f"{side}o"]
        starts, lengths = offsets[:-1][places], np.diff(offsets)[places]
        for block in padded_blocks(lengths, _TOKENS_AT_ONCE):
            mask = torch.from_numpy(np.arange(lengths[block].max()) < lengths[block][:, None])
            states = torch.zeros(*mask.shape, self.states[f"{side}v"].shape[1])
            rows = ragged_rows(starts[block], lengths[block])
            states[mask] = torch.from_numpy(self.states[f"{side}v"][rows].astype(np.float32))
            yield block, {"token_embeddings": states, "attention_mask": mask.long()}

    def pooled(self, head: Any, side: str, places: npt.NDArray[Any] | None = None) -> torch.Tensor:
        """What a head makes of all documents (side "d") or of some topics ("q"), before it projects them."""
        places = np.arange(len(self.states[f"{side}o"]) - 1) if places is None else places
        found = torch.zeros(len(places), head.in_features)  # of texts without a token
        with torch.inference_mode():
            for block, features in self._features(side, places):
                found[block] = head.pooled(features)
        return found

    def places(self, topics: pd.DataFrame) -> npt.NDArray[Any]:
        """Where topics stand among the collection's."""
        return np.flatnonzero(self.topics["qid"].isin(topics["qid"]))

    def values(self, run: pd.DataFrame, topics: pd.DataFrame) -> pd.DataFrame:
        """Measures of each topic."""
        judged = self.qrels[self.qrels["qid"].isin(topics["qid"])]
        measures = [nDCG @ 10, R(rel=self.label) @ _DEPTH]
        found = pt.Evaluate(run[["qid", "docno", "score"]], judged, measures, perquery=True)
        rows = [[found[qid][str(m)] for m in measures] for qid in topics["qid"]]
        return pd.DataFrame(rows, index=topics["qid"], columns=list(MEASURES))

    def cosine(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Values of MiniLM's cosine, of the very states that heads are given."""
        return self.values(self.nearest(topics), topics)

    def nearest(self, topics: pd.DataFrame) -> pd.DataFrame:
        """Documents of the largest cosines, best first."""
        head = mv.Laspar(mv.models.MINILM, 1).head
        scores = self.pooled(head, "q", self.places(topics)) @ self.pooled(head, "d").T
        best, at = scores.topk(_DEPTH)
        qids = np.repeat(topics["qid"].to_numpy(), _DEPTH)
        scored = best.flatten().double().numpy()
        return pd.DataFrame({"qid": qids, "docno": self.docnos[at.flatten().numpy()], "score": scored})

    def reranked(self, topics: pd.DataFrame, teacher: Any, depth: int = 20) -> pd.DataFrame:
        """Values of the cosine's documents, the first of each topic in a teacher's order."""
        run = self.nearest(topics)
        top = run.groupby("qid").cumcount() < depth
        texts = pd.DataFrame(self.documents)[["docno", "text"]]
        asked = run[top].merge(topics[["qid", "query"]], on="qid").merge(texts, on="docno", how="left")
        scores = teacher.scores(asked)
        run.loc[top, "score"] = scores - scores.min() + 2  # above any cosine
        return self.values(run, topics)

    def sparse(self, head: Any, topics: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Values of a head's sparse vectors in PISA, and what they are like and cost."""
        vectors = {}
        for side, task, places in (("d", "document", None), ("q", "query", self.places(topics))):
            with torch.inference_mode():
                parts = [head.encode(h, task) for h in self.pooled(head, side, places).split(512)]
            vectors[task] = LatentVectors(*(torch.cat(part).numpy() for part in zip(*parts, strict=True)))
        asked = pd.DataFrame({"qid": topics["qid"].to_numpy(), "query_toks": vectors["query"].dicts()})
        with tempfile.TemporaryDirectory() as folder:
            index = mv.SparseIndex(Path(folder) / "index")
            found = zip(self.docnos.tolist(), vectors["document"].dicts(), strict=True)
            index.index({"docno": docno, "toks": toks} for docno, toks in found)
            retriever = index.retriever(num_results=_DEPTH)
            run, took = retriever(asked), []
            for _ in range(3):
                start = time.process_time()
                retriever(asked)
                took.append(time.process_time() - start)
            told = index.info()
        likeness = _likeness(vectors["query"], vectors["document"], head.latents)
        costs = {"engine bytes": told["engine_bytes"], "ms a query": round(1000 * min(took) / len(asked), 3)}
        return self.values(run, topics), {**likeness, **costs}


def _likeness(queries: LatentVectors, documents: LatentVectors, latents: int) -> dict[str, float]:
    """Mean non-zeros of either side, multiplications a pair in expectation (FLOPS), latents that documents use."""
    shares = {}
    for name, vectors in (("query", queries), ("document", documents)):
        used = np.bincount(vectors.ids[vectors.weights > 1e-5], minlength=latents)
        shares[name] = used / len(vectors.ids)
    return {
        **{f"{name} non-zeros": round(float(share.sum()), 2) for name, share in shares.items()},
        "FLOPS": round(float((shares["query"] * shares["document"]).sum()), 4),
        "latents used": int((shares["document"] > 0).sum()),
    }


def taught(data: Any, teacher: Any) -> Any:
    """Rows with a teacher's scores."""
    return mv.training.with_teacher(data, pt.apply.doc_score(teacher.scores, batch_size=4096))


class Teacher:
    """Cosines of a sentence encoder; each text goes through it once."""

    def __init__(self, name: str):
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(name or mv.models.MINILM)
        self.model.max_seq_length = min(self.model.max_seq_length, DOC_LENGTH)
        self._known: dict[str, Any] = {}

    def scores(self, results: pd.DataFrame) -> Any:
        """Of queries and texts."""
        return (self._vectors(results["query"]) * self._vectors(results["text"])).sum(1)

    def _vectors(self, texts: pd.Series) -> Any:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.model.encode(new, normalize_embeddings=True), strict=True))
        return np.stack([self._known[text] for text in texts])
