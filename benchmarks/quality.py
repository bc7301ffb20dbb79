"""Quality of untrained MaxSim beside BM25 and a single vector, on small public collections.

    python benchmarks/quality.py --data FOLDER [--collections vaswani squad-a ...]

FOLDER holds one folder a collection in the form that examples/common.py reads. Writes quality.json and prints its
table. Nothing is trained and nothing tuned: all topics are test topics. The same MiniLM weights serve the three
neural rows, so they differ in the scoring alone.
"""

import argparse
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pyterrier as pt
from ir_measures import AP, RR, R, nDCG

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from common import Cosine, bm25, load  # noqa: E402

MEASURES = [nDCG @ 10, RR @ 10, AP, R @ 100]
# what a trial of the same untrained model reached, nDCG@10 of MaxSim over all documents
EXPECTED = {"vaswani": 0.499, "squad-a": 0.983, "limit-small": 0.986, "scifact": 0.707}


def run(name: str, folder: Path, dtype: str) -> pd.DataFrame:
    """One table: five systems on one collection."""
    documents, topics, qrels = load(collection=str(folder / name))
    colbert = mv.ColBERT(mv.models.MINILM)
    with tempfile.TemporaryDirectory() as scratch:
        words = bm25(documents, Path(scratch) / "words.pisa")
        index = mv.MultiVecIndex(Path(scratch) / "tokens.mv", dtype=dtype, verbose=True)
        (colbert.doc_encoder() >> index).index(documents)
        table = pt.Experiment(
            {
                "BM25": words,
                "MiniLM cosine": Cosine(documents),
                "BM25 >> MaxSim (100)": words % 100 >> colbert.query_encoder() >> index.scorer(),
                "MaxSim end to end": colbert.query_encoder() >> index.retriever(),
            },
            topics,
            qrels,
            MEASURES,
            baseline="BM25",
            correction="holm",
        )
    keep = ["name", *map(str, MEASURES), *[f"{m} p-value corrected" for m in MEASURES]]
    return table[keep].assign(collection=name, documents=len(documents), queries=len(topics))


def show(rows: list[dict]) -> None:
    """The table that the README quotes."""
    frame = pd.DataFrame(rows)
    columns = ["collection", "documents", "queries", "name", *map(str, MEASURES)]
    print(frame[columns].round(3).to_string(index=False))
    for name, expected in EXPECTED.items():
        mine = frame[(frame["collection"] == name) & (frame["name"] == "MaxSim end to end")]
        if len(mine):
            print(f"{name}: nDCG@10 {mine['nDCG@10'].iloc[0]:.3f}, trial {expected}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    parser.add_argument(
        "--collections", nargs="+", default=["vaswani", "squad-a", "limit-small", "cranfield", "scifact"]
    )
    parser.add_argument("--dtype", default="float16")
    arguments = parser.parse_args()
    target = HERE / "quality.json"
    if arguments.data:
        rows = [
            row
            for name in arguments.collections
            for row in json.loads(run(name, arguments.data, arguments.dtype).to_json(orient="records"))
        ]
        packages = ("torch", "transformers", "sentence-transformers", "pyterrier", "pyterrier-pisa")
        about = {
            "command": f"python benchmarks/quality.py --data FOLDER --collections {' '.join(arguments.collections)}",
            "model": "all-MiniLM-L6-v2, untrained for late interaction, no projection",
            "dtype": arguments.dtype,
            "machine": platform.processor() or platform.machine(),
            "versions": {p: version(p) for p in packages},
        }
        target.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    show(json.loads(target.read_text())["rows"])
