"""What the engines of a sparse index cost, and what they miss, by number of documents and of non-zero weights.

    python benchmarks/sparse_engines.py                            # all combinations; those that are kept are left out
    python benchmarks/sparse_engines.py --documents 5000           # some of them (also --terms 128, --law zipf)
    python benchmarks/sparse_engines.py --index nq.sparse --queries topics.jsonl --name nq

Vectors are drawn: D = 65,536 dimensions, evenly ("uniform") or dimension r with probability in proportion to 1/r
("zipf"), weights log(1 + 2|N(0,1)|), L2-normalised. Such vectors have no clusters and no skew of weights, the worst
case for engines that prune; `--index` measures a real index (a copy of it is searched) with queries from lines of JSON
with `query_toks`.

One core, and its processor time, which other work on the machine changes less than the clock's; on an idle one they
are the same. Every engine runs in processes of its own, one that makes its files and one that searches: milliseconds
a query for the 10 and the 1,000 best positions, one query a call (median of three times 100) and in batches of 64
(best of three rounds); recall of the 10 best against the exact product; largest relative error of a score among
them. Memory is what opening and searching add to a process: its own, and files that are mapped. Results are added to
sparse_engines.json one combination at a time, and printed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.ranking import keep_best

HERE = Path(__file__).resolve().parent
KEPT = HERE / "sparse_engines.json"
DIMENSIONS = 65_536
DOCUMENTS = (5_000, 50_000, 500_000)
#: non-zero weights of documents and of queries
TERMS = ((32, 16), (128, 32), (512, 128))
LAWS = ("uniform", "zipf")
QUERIES = 100
ROUNDS = 3
#: PISA takes 40 bytes each while its files are made
MOST_POSTINGS = 100_000_000
#: Seismic's summaries grow with the documents they are of: 150 bytes a posting of 32, 200 of 128, 635 of 512 weights
MOST_SEISMIC_BYTES = 8e9
ENGINES: dict[str, Any] = {
    "csr": "csr",
    "pisa": "pisa",
    "seismic, cut 10": mv.Seismic(query_cut=10),
    "seismic, cut 32": mv.Seismic(query_cut=32),
}
Toks = dict[str, float]


def vectors(rng: np.random.Generator, texts: int, terms: int, law: str) -> Iterator[Toks]:
    """Weighted terms of so many texts, ``terms`` each."""
    names = [str(i) for i in range(DIMENSIONS)]
    for _ in range(texts):
        ids = uniform(rng, terms) if law == "uniform" else zipf(rng, terms)
        weights = np.log1p(2 * np.abs(rng.standard_normal(terms)))
        weights /= np.linalg.norm(weights)
        yield dict(zip([names[i] for i in ids.tolist()], weights.tolist(), strict=True))


def uniform(rng: np.random.Generator, terms: int) -> npt.NDArray[np.int64]:
    """Different dimensions, each as likely as any other."""
    return rng.choice(DIMENSIONS, terms, replace=False, shuffle=False)


def zipf(rng: np.random.Generator, terms: int) -> npt.NDArray[np.int64]:
    """The first different ones of a stream of dimensions, r with probability in proportion to 1/r."""
    drawn = np.empty(0, dtype=np.int64)
    while True:
        more = np.exp(rng.uniform(0, np.log(DIMENSIONS + 1), 4 * terms)).astype(np.int64) - 1
        drawn = np.concatenate([drawn, np.minimum(more, DIMENSIONS - 1)])
        first = np.sort(np.unique(drawn, return_index=True)[1])
        if len(first) >= terms:
            return drawn[first[:terms]]


# ---------------------------------------------------------------------- one engine, in a process of its own


def resident(field: str) -> float:
    """A line of the process's status, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def build(path: Path, engine: str) -> dict[str, float]:
    """Makes what an engine searches."""
    index = mv.SparseIndex(path, ENGINES[engine])
    store = index.store
    before, start = resident("VmRSS"), time.process_time()
    index.searcher(store, None)
    return {
        "build seconds": round(time.process_time() - start, 2),
        "build megabytes of memory": round(resident("VmHWM") - before),
    }


def search(path: Path, engine: str, queries: Path, answers: Path) -> dict[str, float]:
    """Opens an engine's files and searches them; keeps the 10 best of each query."""
    index = mv.SparseIndex(path, ENGINES[engine])
    store = index.store
    asked = [numbered(store, json.loads(line)["query_toks"]) for line in queries.open()]
    own, mapped, start = resident("RssAnon"), resident("RssFile"), time.process_time()
    searcher = index.searcher(store, None)
    opening = time.process_time() - start
    result = {"open seconds": round(opening, 2)}
    for k in (10, 1000):
        best = [keep_best(*found, k) for found in searcher.search(asked, k)]  # warms up
        if k == 10:
            kept = {f"{name}{i}": pair[at] for i, pair in enumerate(best) for at, name in enumerate("sp")}
            with answers.open("wb") as out:
                np.savez(out, **kept)
        alone = []
        for query in asked * ROUNDS:
            start = time.process_time()
            for found in searcher.search([query], k):
                keep_best(*found, k)
            alone.append(time.process_time() - start)
        together = []
        for _ in range(ROUNDS):
            start = time.process_time()
            for first in range(0, len(asked), 64):
                for found in searcher.search(asked[first : first + 64], k):
                    keep_best(*found, k)
            together.append((time.process_time() - start) / len(asked))
        result[f"ms, k={k}"] = round(float(np.median(alone)) * 1e3, 3)
        result[f"ms in batches, k={k}"] = round(min(together) * 1e3, 3)
    result["megabytes of memory"] = round(resident("RssAnon") - own, 1)
    result["megabytes mapped"] = round(resident("RssFile") - mapped, 1)
    return result


def numbered(store: Any, toks: Toks) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """A query as engines take it: numbers of known terms, rising, and their weights."""
    ids, weights = store.term_numbers(list(toks)), np.array(list(toks.values()))
    order = np.argsort(ids)[np.count_nonzero(ids < 0) :]
    return ids[order], weights[order]


# ---------------------------------------------------------------------- all engines on one index


def compare(path: Path, queries: Path, scratch: Path, engines: Iterable[str] = ENGINES) -> dict[str, Any]:
    """Figures of engines over an index; the exact one is always among them."""
    rows: dict[str, Any] = {}
    info = mv.SparseIndex(path).info()
    large = info["postings"] * (130 + info["postings"] / info["documents"]) > MOST_SEISMIC_BYTES
    for name in engines:
        if large and name.startswith("seismic"):
            rows[name] = {"left out": "does not fit the memory"}
            continue
        made, built = bytes_made(path), child("build", path, name)
        if name != "csr" and bytes_made(path) == made:  # another setting's files serve
            same = next(other for other in rows if other.split(",")[0] == name.split(",")[0])
            built = {key: rows[same][key] for key in (*built, "megabytes on disk")}
        else:
            built["megabytes on disk"] = round((bytes_made(path) - made) / 1e6, 1)
        answers = scratch / f"{name}.npz"
        rows[name] = {**built, **child("search", path, name, queries, answers)}
        rows[name] |= agreement(np.load(scratch / "csr.npz"), np.load(answers))
        rows[name]["ms, ratio to csr"] = round(rows[name]["ms, k=10"] / rows["csr"]["ms, k=10"], 2)
        print(f"  {name}: {json.dumps(rows[name])}", flush=True)
    return {
        "postings": info["postings"],
        "dimensions in use": info["terms"],
        "megabytes of the index": round(info["bytes"] / 1e6, 1),
        "engines": rows,
    }


def child(*arguments: Any) -> dict[str, Any]:
    """What a process of its own measures."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def bytes_made(path: Path) -> int:
    """Bytes of all engines' files."""
    return sum(p.stat().st_size for p in path.glob("derived-*/*"))


def agreement(exact: Any, found: Any) -> dict[str, float]:
    """Recall of the 10 best, and the largest relative error among the scores of those that are."""
    shares, errors = [], [0.0]
    for i in range(len(exact.files) // 2):
        true = dict(zip(exact[f"p{i}"].tolist(), exact[f"s{i}"].tolist(), strict=True))
        got = dict(zip(found[f"p{i}"].tolist(), found[f"s{i}"].tolist(), strict=True))
        best = sorted(got, key=got.__getitem__, reverse=True)[: len(true)]
        shares.append(len(true.keys() & best) / max(len(true), 1))
        errors += [abs(got[d] / true[d] - 1) for d in true.keys() & best]
    return {"recall@10": round(float(np.mean(shares)), 4), "largest error of a score": float(f"{max(errors):.1e}")}


def drawn(scratch: Path, documents: int, terms: tuple[int, int], law: str, engines: Iterable[str]) -> dict[str, Any]:
    """Figures of engines over drawn vectors."""
    rng = np.random.default_rng(0)
    path, queries = scratch / "x.sparse", scratch / "queries.jsonl"
    start = time.perf_counter()
    records = ({"docno": f"d{i}", "toks": toks} for i, toks in enumerate(vectors(rng, documents, terms[0], law)))
    mv.SparseIndex(path, "csr").index(records)
    print(f"  drawn and indexed in {time.perf_counter() - start:.0f} s", flush=True)
    with queries.open("w") as out:
        out.writelines(json.dumps({"query_toks": t}) + "\n" for t in vectors(rng, QUERIES, terms[1], law))
    return compare(path, queries, scratch, engines)


def copied(scratch: Path, index: Path, queries: Path) -> dict[str, Any]:
    """Figures of every engine over a real index."""
    path = scratch / "x.sparse"
    shutil.copytree(index, path, ignore=shutil.ignore_patterns("derived-*"))
    return compare(path, queries, scratch)


def keep(name: str, result: dict[str, Any]) -> None:
    """Adds one combination to the kept results."""
    kept = results()
    before = kept["combinations"].get(name, {}).get("engines", {})
    result["engines"] = {**before, **result["engines"]}
    kept["about"] = {
        "command": "python benchmarks/sparse_engines.py",
        "machine": f"{platform.machine()}, one core",
        "versions": {p: version(p) for p in ("numpy", "scipy", "pyterrier_pisa", "pyseismic-lsr")},
        "left out": f"combinations of more than {MOST_POSTINGS} postings; Seismic where it would take more than "
        f"{MOST_SEISMIC_BYTES:.0e} bytes",
    }
    kept["combinations"][name] = {"measured": time.strftime("%Y-%m-%d"), **result}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def results() -> dict[str, Any]:
    """What is kept."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"about": {}, "combinations": {}}


def main() -> None:
    """Measures what was asked for and is not kept yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, nargs="+", default=DOCUMENTS)
    parser.add_argument("--terms", type=int, nargs="+", default=[t for t, _ in TERMS], help="non-zeros of documents")
    parser.add_argument("--law", nargs="+", default=LAWS, choices=LAWS)
    parser.add_argument("--again", action="store_true", help="measures combinations that are kept, too")
    parser.add_argument(
        "--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), help="others stay as kept"
    )
    parser.add_argument("--index", type=Path, help="a real index instead, with --queries and --name")
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--name")
    asked = parser.parse_args()
    if asked.index:
        with tempfile.TemporaryDirectory() as scratch:
            keep(asked.name, copied(Path(scratch), asked.index, asked.queries))
        return
    for documents, terms, law in product(asked.documents, TERMS, asked.law):
        name = f"{documents} documents, {terms[0]}/{terms[1]}, {law}"
        if terms[0] not in asked.terms or (name in results()["combinations"] and not asked.again):
            continue
        if documents * terms[0] > MOST_POSTINGS:
            print(f"{name}: left out, {documents * terms[0]} postings", flush=True)
            continue
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            keep(name, drawn(Path(scratch), documents, terms, law, dict.fromkeys(["csr", *asked.engines])))


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # of threads, too: Seismic builds with as many as there are
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "--child" in sys.argv:
        task, *arguments = sys.argv[2:]
        folder, engine, *files = arguments
        outcome = {"build": build, "search": search}[task](Path(folder), engine, *map(Path, files))
        print(json.dumps(outcome))
    else:
        main()
