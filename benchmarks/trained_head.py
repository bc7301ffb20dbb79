"""Does a trained head of 128 dimensions beat MiniLM's 384 untrained ones on topics it has not seen?

    python benchmarks/trained_head.py --data FOLDER     # trains and writes trained_head.json
    python benchmarks/trained_head.py                   # prints the kept table

In each collection half of the topics train a head on the still transformer (contrastive loss, BM25 negatives), a fifth
of them chooses the checkpoint, and the other half is tested, all documents ranked. Three seeds divide the topics, start
the head and order the data; controls are the untrained head of the same seed, and the untrained states. The test is
over topics, each the mean of the seeds that tested it.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from projection_heads import DOC_LENGTH, MIN_LABEL, TRAIN_LENGTH, Collection, head_of
from scipy.stats import ttest_rel

import pyterrier_mvret as mv

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from common import bm25  # noqa: E402

COLLECTIONS = ("cranfield", "squad-a", "cacm", "vaswani")
SEEDS = (0, 1, 2)
EPOCHS, BATCH, NEGATIVES = 6, 16, 3
WAYS = ("untrained, 384", "untrained, 128", "trained head, 128")


def run(collection: Collection) -> dict:
    """Three seeds on one collection."""
    cache = mv.training.StateCache(gib=4)
    label = MIN_LABEL.get(collection.name, 1)
    values: dict[str, list[pd.Series]] = {way: [] for way in WAYS}
    curves = []
    with tempfile.TemporaryDirectory() as scratch:
        words = bm25(collection.documents, Path(scratch) / "words.pisa")
        texts = pd.DataFrame(collection.documents)
        for seed in SEEDS:
            train, test = mv.training.split(collection.topics, 0.5, seed=seed)
            train, chosen = mv.training.split(train, 0.2, seed=seed)
            data = mv.training.groups(
                train,
                collection.qrels,
                words,
                NEGATIVES,
                collection.documents,
                short="drop",
                min_label=label,
                seed=seed,
            )
            valid = ((words % 30)(chosen).merge(texts, on="docno"), collection.qrels)
            head = mv.heads.Linear(128, seed=seed)
            colbert = mv.ColBERT(mv.models.MINILM, doc_length=DOC_LENGTH, init_projection=head)
            values["untrained, 384"].append(collection.measure([], test))
            values["untrained, 128"].append(collection.measure(head_of(colbert.encoder), test))
            colbert.fit(
                data,
                valid,
                train="head",
                epochs=EPOCHS,
                batch_size=BATCH,
                evaluations=4,
                seed=seed,
                state_cache=cache,
                test_topics=test,
                max_length={"document": TRAIN_LENGTH},
                verbose=False,
            )
            values["trained head, 128"].append(collection.measure(head_of(colbert.encoder), test))
            curves.append(colbert.history.dropna(subset=["nDCG@10"])["nDCG@10"].round(4).tolist())
    pooled = {way: pd.concat(series).groupby(level=0).mean() for way, series in values.items()}
    return {
        "topics tested": len(test),
        "rows trained on": len(data),
        **{way: [round(float(series.mean()), 4) for series in values[way]] for way in WAYS},
        "p, trained against untrained 384": float(
            ttest_rel(pooled["trained head, 128"], pooled["untrained, 384"]).pvalue
        ),
        "validation, from before training on": curves,
    }


def show(found: dict) -> None:
    """The table."""
    rows = [
        {
            "collection": name,
            **{way: f"{np.mean(row[way]):.3f} ({min(row[way]):.3f} to {max(row[way]):.3f})" for way in WAYS},
            "p": f"{row['p, trained against untrained 384']:.3f}",
        }
        for name, row in found["collections"].items()
    ]
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, the kept results are printed")
    parser.add_argument("--cache", type=Path, help="where states of texts are kept between runs")
    arguments = parser.parse_args()
    target = HERE / "trained_head.json"
    if arguments.data:
        found: dict = {
            "about": {
                "command": "python benchmarks/trained_head.py --data FOLDER",
                "training": f"{EPOCHS} epochs of batches of {BATCH}, {NEGATIVES} BM25 negatives a row",
                "machine": platform.processor() or platform.machine(),
                "versions": {p: version(p) for p in ("torch", "transformers", "sentence-transformers", "pyterrier")},
            },
            "collections": {},
        }
        with tempfile.TemporaryDirectory() as folder:
            for name in COLLECTIONS:
                started = time.time()
                row = run(Collection(name, arguments.data, arguments.cache or Path(folder)))
                found["collections"][name] = row
                print(name, {way: row[way] for way in WAYS}, f"{time.time() - started:.0f} s", flush=True)
                target.write_text(json.dumps(found, indent=1) + "\n")
    show(json.loads(target.read_text()))
