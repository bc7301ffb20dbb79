"""Where the time of one query goes in ``query_encoder() >> retriever()``.

    python benchmarks/latency.py --data FOLDER --cache pool.npz [--documents 20000]

Documents and queries are those of end_to_end.py (see tokens.py); here the queries come as text, through MiniLM with the
reduction as its projection. Each query passes the pipeline alone. Parts are timed inside the same pass by clocks around
the functions named below; "rest" is what no clock covers: checks, columns, the digest of the weights. Writes
latency.json and prints it: median milliseconds over queries, with two threads and with one.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import tokens
import torch
from limits import about

import pyterrier_mvret as mv
from pyterrier_mvret import frames
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.indexes.stages import MultiVecRetriever
from pyterrier_mvret.indexes.store import Store

# none of these calls another of them
PARTS: dict[str, tuple[Any, str]] = {
    "encode: tokeniser and model": (TokenEncoder, "encode_queries"),
    "retrieve: all scored": (MultiVecRetriever, "_search"),
    "retrieve: candidates picked": (Store, "candidates"),
    "retrieve: candidates scored": (Store, "score"),
    "retrieve: frame": (frames, "ranked_frame"),
}


@contextmanager
def clock(owner: Any, name: str) -> Iterator[list[float]]:
    """Collects the seconds of each call of a function."""
    whole, times = getattr(owner, name), []

    def timed(*args: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        try:
            return whole(*args, **settings)
        finally:
            times.append(time.perf_counter() - start)

    with mock.patch.object(owner, name, timed):
        yield times


def passes(pipeline: Any, topics: list[str]) -> dict[str, float]:
    """Median milliseconds of the whole and of its parts, one query a pass."""
    rows: list[dict[str, float]] = []
    for topic in [*topics[:5], *topics]:
        frame = pd.DataFrame([{"qid": "1", "query": topic}])
        with ExitStack() as clocks:
            times = {part: clocks.enter_context(clock(*where)) for part, where in PARTS.items()}
            start = time.perf_counter()
            pipeline(frame)
            total = time.perf_counter() - start
        spent = {part: sum(mine) for part, mine in times.items()}
        rows.append({**spent, "rest": total - sum(spent.values()), "whole": total})
    rows = rows[5:]  # the first ones warm up
    return {part: round(1e3 * statistics.median(row[part] for row in rows), 2) for part in rows[0]}


def main(data: Path | None, cache: Path, documents: int, dtypes: list[str]) -> dict[str, Any]:
    """Every storage type, with two threads and with one."""
    pool = tokens.pool(data, cache)
    colbert = mv.ColBERT(tokens.encoder(pool))
    figures: dict[str, Any] = {}
    for dtype in dtypes:
        with tempfile.TemporaryDirectory() as folder:
            index = mv.MultiVecIndex(Path(folder) / "x.mv", dtype=dtype)
            index.index(tokens.documents(pool, documents))
            for kind, candidates in (("exact", None), ("candidates", "auto")):
                pipeline = colbert.query_encoder() >> index.retriever(num_results=100, candidates=candidates)
                for threads in (2, 1):
                    torch.set_num_threads(threads)
                    figures[f"{kind}, {dtype}, threads {threads}"] = passes(pipeline, pool.topics.tolist())
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; needed where --cache does not exist yet")
    parser.add_argument("--cache", type=Path, required=True, help="file of encoded vectors")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "int8"])
    arguments = parser.parse_args()
    outcome = {
        "about": about("python benchmarks/latency.py", ("numpy", "pandas", "torch", "sentence-transformers")),
        "documents": arguments.documents,
        "milliseconds": main(arguments.data, arguments.cache, arguments.documents, arguments.dtypes),
    }
    (Path(__file__).resolve().parent / "latency.json").write_text(json.dumps(outcome, indent=1) + "\n")
    print(pd.DataFrame(outcome["milliseconds"]).to_string())
