"""The dictionaries and systems that latent_terms.py compares, and what is computed of each collection."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt
from latent_scores import (
    NAMES,
    added,
    bm25_scores,
    contrasts,
    explained,
    frequencies,
    from_frame,
    kept,
    maxsim,
    measured,
    reciprocal,
    sentence_vectors,
    terms,
    word_pieces,
)
from latent_states import Collection, States, collection, merged, parts, pool, words
from scipy.sparse import csr_array, load_npz, save_npz, vstack

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.training.sae import SAETrainer

FILE = Path(__file__).resolve().parent / "latent_terms.json"
DIM, BATCH, STEPS = 384, 2048, 800
IDFS = ("rsj", "lucene")
FUSIONS = {"sum": added, "RRF": reciprocal}


@dataclass(frozen=True)
class Dictionary:
    """A dictionary to compare.

    Attributes:
        kind: ``"TopK"``, ``"BatchTopK"``, ``"Matryoshka"`` (prefixes of a sixteenth and a quarter), or ``"random"``.
        latents: its size.
        k: active latents of a token.
        seed: of first weights and order of states.
        text: what it is trained on, the pool or a collection.
    """

    kind: str = "TopK"
    latents: int = 4096
    k: int = 16
    seed: int = 0
    text: str = "pool"

    @property
    def name(self) -> str:
        """As in the results."""
        where = "" if self.text == "pool" else f" on {self.text}"
        return f"{self.kind} {self.latents}/{self.k} seed {self.seed}{where}"

    def new(self, mean: Any) -> TopKSAE:
        """Untrained; the random one knows the mean of states, as the others will."""
        if self.kind == "random":
            return TopKSAE.random(DIM, self.latents, self.k, seed=self.seed, mean=mean)
        prefixes = (self.latents // 16, self.latents // 4) if self.kind == "Matryoshka" else ()
        budget: Any = "batch" if self.kind == "BatchTopK" else "token"
        return TopKSAE(DIM, self.latents, self.k, budget=budget, prefixes=prefixes, seed=self.seed)


MAIN = [Dictionary(kind, seed=seed) for kind in ("TopK", "random") for seed in (0, 1)]
VARIANTS = [
    Dictionary(latents=1024),
    Dictionary("random", latents=1024),
    Dictionary(k=8),
    Dictionary(k=32),
    Dictionary("BatchTopK"),
    Dictionary("Matryoshka"),
]
#: what takes longer, with --large: no time was left for it in the kept results
LARGE = [Dictionary(kind, latents=16384) for kind in ("TopK", "random")]
LARGE += [Dictionary("random", k=k) for k in (8, 32)]
# added when the others had been seen on vaswani: is it the training text?
OTHER_TEXT = [Dictionary(text="scifact")]
#: where variants are evaluated, and those with another training text; elsewhere the four of MAIN
SMALL = ("limit-small", "vaswani", "cranfield", "limit-rebuilt/1000")
OTHER_SEARCHED = ("limit-small", "vaswani", "cranfield")
COLLECTIONS = [*SMALL, "scifact", "limit-rebuilt/5000"]


def _named(kind: str, idf: str, fusion: str = "") -> list[str]:
    """Systems of MAIN, one a seed."""
    names = [f"{one.name}, {idf}" for one in MAIN if one.kind == kind]
    return [f"words + {name}, {fusion}" for name in names] if fusion else names


_LATENT, _HYBRID = _named("TopK", "rsj"), _named("TopK", "rsj", "sum")
#: the means of systems that are compared, named before any run
PLANNED: dict[str, tuple[list[str], list[str]]] = {
    **{f"latent {idf} - cosine": (_named("TopK", idf), ["cosine"]) for idf in IDFS},
    **{f"latent {idf} - random {idf}": (_named("TopK", idf), _named("random", idf)) for idf in IDFS},
    "latent lucene - latent rsj": (_named("TopK", "lucene"), _LATENT),
    "latent rsj - words": (_LATENT, ["words"]),
    "latent rsj - word pieces rsj": (_LATENT, ["word pieces, rsj"]),
    "latent rsj - MaxSim": (_LATENT, ["MaxSim"]),
    "words + latent, sum - words": (_HYBRID, ["words"]),
    "words + latent, sum - latent rsj": (_HYBRID, _LATENT),
    "words + latent, sum - words + random, sum": (_HYBRID, _named("random", "rsj", "sum")),
    "words + latent, sum - words + cosine, sum": (_HYBRID, ["words + cosine, sum"]),
    "words + latent, RRF - words + latent, sum": (_named("TopK", "rsj", "RRF"), _HYBRID),
}
_OTHER = {idf: [f"{one.name}, {idf}" for one in OTHER_TEXT] for idf in IDFS}
#: named when PLANNED had been seen on vaswani, and corrected by themselves
ADDED = {
    **{f"on scifact {idf} - on the pool {idf}": (_OTHER[idf], _named("TopK", idf)) for idf in IDFS},
    **{f"on scifact {idf} - random {idf}": (_OTHER[idf], _named("random", idf)) for idf in IDFS},
    "on scifact rsj - cosine": (_OTHER["rsj"], ["cosine"]),
}
#: a system's name, its scores, and what else is kept of it
System = tuple[str, Callable[[], Any], dict[str, Any]]


@dataclass(eq=False)
class Bench:
    """Folders, the encoder, and results as they are kept."""

    data: Path
    scratch: Path
    results: dict[str, Any] = field(default_factory=dict)
    variants: list[Dictionary] = field(default_factory=lambda: list(VARIANTS))

    @cached_property
    def encoder(self) -> mv.TokenEncoder:
        """Untrained for token vectors; all neural rows read its states."""
        return mv.TokenEncoder(mv.models.MINILM)

    def keep(self) -> None:
        """Writes results."""
        part = FILE.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1) + "\n")
        part.replace(FILE)

    # ------------------------------------------------------------------ dictionaries

    @lru_cache(maxsize=1)  # noqa: B019 (there is one bench)
    def trained_on(self, text: str) -> list[States]:
        """States to train on, all in memory."""
        texts = pool(self.data) if text == "pool" else collection(self.data, text).texts
        return [read() for _, read in parts(self.encoder, texts, self.scratch / "states" / text / "document")]

    @cache  # noqa: B019
    def dictionary(self, one: Dictionary) -> TopKSAE:
        """Trained where the scratch folder has none."""
        path = self.scratch / "dictionaries" / f"{_file(one.name)}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = self.trained_on(one.text)
            count = sum(len(part.states) for part in found)
            mean = sum(part.states.sum(0, dtype=np.float64) for part in found) / count
            sae, entry = one.new(mean), asdict(one)
            if one.kind != "random":
                how = SAETrainer(tokens=STEPS * BATCH, batch_tokens=BATCH, seed=one.seed)
                begin = time.perf_counter()
                log = how.fit(sae, lambda start: (part.states for part in found[start:]), verbose=False)
                entry["tokens a second"] = round(STEPS * BATCH / (time.perf_counter() - begin))
                entry["last"] = json.loads(log.tail(1).to_json(orient="records"))[0]
            sae.save(path)
            self.results.setdefault("dictionaries", {})[one.name] = entry
            self.keep()
            print(time.strftime("%T"), entry, flush=True)
        return TopKSAE.load(path)

    # ------------------------------------------------------------------ what is computed once a collection

    def parts(self, c: Collection, task: str = "document") -> list[tuple[str, Callable[[], States]]]:
        """Of documents or queries, as names and what reads them; parts of a collection share those of the whole."""
        texts = c.texts if task == "document" else c.topics["query"].tolist()
        return parts(self.encoder, texts, self.scratch / "states" / c.folder / task, task)

    def terms(self, c: Collection, name: str, make: Callable[[States], csr_array], task: str) -> csr_array:
        """(texts, terms), kept part by part."""
        folder = self.scratch / "terms" / c.folder / _file(name) / task
        folder.mkdir(parents=True, exist_ok=True)
        found: list[csr_array] = []
        for part, read in self.parts(c, task):
            path = folder / f"{part}.npz"
            if not path.exists():
                unfinished = path.with_suffix(".part.npz")
                save_npz(unfinished, make(read()))
                unfinished.replace(path)
            found.append(csr_array(load_npz(path)))
        return csr_array(vstack(found, format="csr"))

    def latent(self, c: Collection, one: Dictionary) -> tuple[csr_array, csr_array]:
        """Terms of queries and documents."""
        make = lambda states: terms(self.dictionary(one), states)  # noqa: E731 (opened only where terms are missing)
        return self.terms(c, one.name, make, "query"), self.terms(c, one.name, make, "document")

    def explained(self, c: Collection, one: Dictionary) -> float:
        """Share of the variance of documents' states that a dictionary restores, over the first texts."""
        path = self.scratch / "explained" / c.folder / f"{_file(one.name)}.npy"
        _, read = self.parts(c)[0]
        return round(float(kept(path, lambda: explained(self.dictionary(one), read().states))), 4)

    def _array(self, c: Collection, what: str, task: str, make: Callable[[States], Any], axis: int = 0) -> Any:
        """What is made of each part, kept part by part."""
        folder = self.scratch / what / c.folder / task
        made = [kept(folder / f"{part}.npy", lambda read=read: make(read())) for part, read in self.parts(c, task)]
        return np.concatenate(made, axis=axis)

    def cosine(self, c: Collection) -> Any:
        """(queries, documents)."""
        queries, documents = (self._array(c, "vectors", task, sentence_vectors) for task in ("query", "document"))
        return queries @ documents.T

    def maxsim(self, c: Collection) -> Any:
        """(queries, documents)."""
        queries = merged([read() for _, read in self.parts(c, "query")])
        return self._array(c, "maxsim", "document", partial(maxsim, queries), axis=1)

    def bm25(self, c: Collection, num_results: int = 1000) -> tuple[pt.Transformer, Path]:
        """BM25 on words, as the other benchmarks have it (PISA, Porter2, k1 0.9, b 0.4), and its folder."""
        path = self.scratch / "words" / f"{_file(c.name)}.{num_results}"
        return words(c, path, num_results), path

    def words(self, c: Collection) -> Any:
        """(queries, documents)."""
        return from_frame(self.bm25(c)[0](c.topics), c)

    # ------------------------------------------------------------------ quality

    def quality(self, c: Collection) -> None:
        """All systems of a collection: measures of each, then contrasts."""
        entry = self.results.setdefault("quality", {}).setdefault(c.name, {})
        entry |= {"documents": len(c.documents), "queries": len(c.topics)}
        rows, values = entry.setdefault("rows", {}), {}
        for name, scores, more in self._systems(c):
            path = self.scratch / "values" / _file(c.name) / f"{_file(name)}.npy"
            values[name] = kept(path, lambda scores=scores: measured(scores(), c))
            means = {m: round(float(v), 5) for m, v in zip(NAMES, values[name].mean(0), strict=True)}
            rows[name] = means | more
            self.keep()
        entry["contrasts"] = contrasts(values, PLANNED)
        if c.name in OTHER_SEARCHED:
            entry["contrasts added"] = contrasts(values, ADDED)
        self.keep()
        print(time.strftime("%T"), c.name, {name: row["nDCG@10"] for name, row in rows.items()}, flush=True)

    def _systems(self, c: Collection) -> Iterator[System]:
        words, cosine, by_tokens = (
            cache(partial(self.words, c)),
            partial(self.cosine, c),
            cache(partial(self.maxsim, c)),
        )
        yield from (("words", words, {}), ("cosine", cosine, {}), ("MaxSim", by_tokens, {}))
        make = partial(word_pieces, width=len(self.encoder.model.tokenizer))
        pieces = [self.terms(c, "word pieces", make, task) for task in ("query", "document")]
        for idf in IDFS:
            yield f"word pieces, {idf}", partial(bm25_scores, *pieces, k1=0.9, b=0.4, idf=idf), {}
        for fusion, fuse in FUSIONS.items():
            yield f"words + cosine, {fusion}", lambda fuse=fuse: fuse(words(), cosine()), {}
            yield f"words + MaxSim, {fusion}", lambda fuse=fuse: fuse(words(), by_tokens()), {}
        variants = [*(self.variants if c.name in SMALL else []), *(OTHER_TEXT if c.name in OTHER_SEARCHED else [])]
        for one in [*MAIN, *variants]:
            queries, documents = self.latent(c, one)
            counts: dict[str, Any] = {"terms a document": per_row(documents), "terms a query": per_row(queries)}
            counts["latents in half of all documents"] = int((frequencies(documents) > len(c.documents) / 2).sum())
            weights = np.percentile(documents.data, (5, 50, 95)).round(2).tolist()
            counts["weights in documents, 5, 50 and 95 %"] = weights
            if one.kind != "random":
                counts["explained"] = self.explained(c, one)
            for idf in IDFS:
                scores = cache(partial(bm25_scores, queries, documents, idf=idf))
                yield f"{one.name}, {idf}", scores, counts
                for fusion, fuse in FUSIONS.items() if one in MAIN else ():
                    hybrid = lambda fuse=fuse, scores=scores: fuse(words(), scores())  # noqa: E731 (not made yet)
                    yield f"words + {one.name}, {idf}, {fusion}", hybrid, {}


def per_row(matrix: csr_array) -> float:
    """Entries of a row on average."""
    return round(matrix.nnz / matrix.shape[0], 1)


def _file(name: str) -> str:
    return name.replace("/", "-")
