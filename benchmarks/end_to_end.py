"""End-to-end retrieval: time a query and recall against exact float32 scores, ours beside the usual ways.

    python benchmarks/end_to_end.py --data FOLDER --cache pool.npz [--sizes 20000 100000] [--only ours faiss]

FOLDER holds one folder a collection (docs.jsonl.gz, queries.tsv.gz); what is made of it, real and synthetic documents
of some 60 vectors of 128 dimensions and real queries of 32, is described in tokens.py and kept in the file --cache.
Each way answers one query at a time, batches of 16, and all 64 at once, with two threads and with one, and returns its
best 100 documents; a document counts as found if its exact score reaches that of the 10th or 100th. Ways of ours are
whole pipeline stages, data frames included; the others are bare functions that return arrays. See peers.py for them and
for those that are not compared.

Writes end_to_end.json, one entry a size, with the machine's limits and how busy it was, and prints it as a table.
--only replaces some families of an entry: compare those only that were measured together, and at a like pace ("GFLOP/s
at the time": a matrix product just before, for each number of threads). 20,000 documents take some minutes; larger
sizes need disk for an index a storage type (500,000 documents in float32: 16 GB).
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pyterrier as pt
import tokens
import torch
from limits import about, limits, pace
from peers import PEERS
from setting import DEPTH, Answers, Floats, Setting, Way

import pyterrier_mvret as mv

TARGET = Path(__file__).resolve().parent / "end_to_end.json"
PACKAGES = ("numpy", "torch", "faiss-cpu", "qdrant-edge-py", "lancedb")
# what an index offers
OURS: dict[str, Callable[[mv.MultiVecIndex], Any]] = {
    "exact": lambda index: index.retriever(num_results=DEPTH, candidates=None),
    "auto candidates": lambda index: index.retriever(num_results=DEPTH),
    **{
        f"{count} candidates": lambda index, count=count: index.retriever(num_results=DEPTH, candidates=count)
        for count in (512, 1024, 2048, 4096)
    },
}


def ours(setting: Setting) -> Iterator[Way]:
    """Every verb of :data:`OURS` on an index of each storage type."""
    for dtype in setting.dtypes:
        index, seconds = setting.index(dtype)
        for name, verb in OURS.items():
            way = Way(f"ours, {name}, {dtype}", _through(verb(index)), seconds, index.info()["bytes_per_vector"])
            yield way
    if {"int8", "float32"} <= set(setting.dtypes):
        (fast, first), (exact, second) = setting.index("int8"), setting.index("float32")
        pipeline = fast.retriever(num_results=DEPTH + 20, candidates=None) >> exact.scorer() >> pt.RankCutoff(DEPTH)
        size = sum(index.info()["bytes_per_vector"] for index in (fast, exact))
        yield Way("ours, exact, int8 >> float32", _through(pipeline, sort=True), first + second, size)


def _through(stage: Any, sort: bool = False) -> Callable[[list[Floats]], Answers]:
    def search(queries: list[Floats]) -> Answers:
        frame = pd.DataFrame({"qid": [str(i) for i in range(len(queries))], "query_embs": queries})
        found = stage(frame)
        if sort:
            found = found.sort_values(["qid", "rank"], key=lambda c: c.astype(int))
        positions = np.array([int(docno[1:]) for docno in found["docno"].tolist()])
        return np.split(positions, np.flatnonzero(found["rank"].to_numpy() == 0)[1:])

    return search


WAYS: dict[str, Callable[[Setting], Iterator[Way]]] = {"ours": ours, **PEERS}


# ---------------------------------------------------------------------- measuring


def truth(setting: Setting, queries: list[Floats]) -> Floats:
    """Exact float32 scores (queries, documents), over documents as they are made."""
    offsets = np.arange(len(queries) + 1) * len(queries[0])
    packed = np.concatenate(queries)
    parts = [mv.scoring.maxsim_matrix(packed, offsets, *block) for block in setting.blocks(4096)]
    return np.concatenate(parts, axis=1)


def recall(answers: Answers, scores: Floats, k: int) -> float:
    """Share of the first k that are among the k best, ties included."""
    found = 0
    for mine, exact in zip(answers, scores, strict=True):
        needed = np.partition(exact, len(exact) - k)[len(exact) - k]
        found += int((exact[mine[:k]] >= needed - 1e-5).sum())
    return round(found / (k * len(answers)), 4)


def milliseconds(way: Way, queries: list[Floats], batch: int, budget: float) -> float:
    """Median milliseconds a query in batches of so many; at least one batch, and no more than the budget allows."""
    way.search(queries[:1])
    times: list[float] = []
    for first in range(0, len(queries) - batch + 1, batch):
        start = time.perf_counter()
        way.search(queries[first : first + batch])
        times.append(time.perf_counter() - start)
        if sum(times) > budget:
            break
    return float(f"{1e3 * statistics.median(times) / batch:.3g}")


def measured(way: Way, queries: list[Floats], scores: Floats, budget: float) -> dict[str, Any]:
    """All figures of a way."""
    figures: dict[str, Any] = {}
    paces = []
    for threads in way.threads:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        time.sleep(0.3)  # threads of what was timed before wait busily for a while
        paces.append(pace())
        for batch in (1, 16):
            figures[f"ms, threads {threads}, batch {batch}"] = milliseconds(way, queries, batch, budget)
        start = time.perf_counter()
        answers = way.search(queries)
        seconds = time.perf_counter() - start
        figures[f"ms, threads {threads}, batch {len(queries)}"] = float(f"{1e3 * seconds / len(queries):.3g}")
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)
    figures |= {f"recall@{k}": recall(answers, scores, k) for k in (10, DEPTH)}
    figures["GFLOP/s at the time"] = paces
    return figures | {"seconds to build": round(way.seconds, 1), "bytes a vector": way.bytes_per_vector}


def run(setting: Setting, queries: list[Floats], only: list[str], budget: float) -> None:
    """The chosen ways at one size; each family is kept once it is measured."""
    machine = {f"threads {threads}": limits(threads) for threads in (1, 2)}
    scores = truth(setting, queries)
    for family in only:
        entry: dict[str, Any] = {
            "about": about(f"python benchmarks/end_to_end.py --sizes {setting.size}", PACKAGES),
            "limits": machine,
            "vectors": setting.rows,
            "queries": len(queries),
            "ways": {},
        }
        for way in WAYS[family](setting):
            entry["ways"][way.name] = measured(way, queries, scores, budget)
            print(f"  {way.name}: {json.dumps(entry['ways'][way.name])}", flush=True)
        keep(setting.size, entry)


# ---------------------------------------------------------------------- results


def keep(size: int, entry: dict[str, Any]) -> None:
    """Puts an entry into the file; ways that were not measured now stay, if they were measured on as many vectors."""
    results = json.loads(TARGET.read_text()) if TARGET.exists() else {"sizes": {}}
    before = results["sizes"].get(str(size), {})
    if before.get("vectors") == entry["vectors"] and before.get("queries") == entry["queries"]:
        entry["ways"] = before["ways"] | entry["ways"]
    results["sizes"][str(size)] = entry
    results["sizes"] = dict(sorted(results["sizes"].items(), key=lambda item: int(item[0])))
    TARGET.write_text(json.dumps(results, indent=1) + "\n")


def show() -> None:
    """The kept results as tables."""
    for size, entry in json.loads(TARGET.read_text())["sizes"].items():
        print(f"\n{int(size):,} documents, {entry['vectors']:,} vectors, {entry['queries']} queries")
        table = pd.DataFrame(entry["ways"]).T
        table.columns = [name.replace("threads ", "t").replace(", batch ", " b") for name in table.columns]
        print(table.to_string())
        print(json.dumps(entry["limits"]))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; needed where --cache does not exist yet")
    parser.add_argument("--cache", type=Path, help="file of encoded vectors; without it, the kept results are printed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2, help="time that one figure may take, about")
    parser.add_argument("--scratch", type=Path, help="where indexes are built and removed again; default: temporary")
    arguments = parser.parse_args()
    if not arguments.cache and not TARGET.exists():
        parser.error("nothing was kept yet: give --cache (and --data)")
    if arguments.cache:
        pool = tokens.pool(arguments.data, arguments.cache)
        queries = tokens.queries(pool, arguments.queries)
        for size in arguments.sizes:
            folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
            try:
                setting = Setting(pool, size, folder, arguments.dtypes)
                print(f"{size:,} documents", flush=True)
                run(setting, queries, arguments.only, arguments.seconds)
            finally:
                shutil.rmtree(folder)
    show()


if __name__ == "__main__":
    main()
