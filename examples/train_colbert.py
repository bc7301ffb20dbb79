"""Trains a 128-dimension head for ColBERT on MiniLM, then its last layer, and reranks topics it has not seen.

    python examples/train_colbert.py                          # mvret:mini, a small collection inside the package
    python examples/train_colbert.py --collection FOLDER      # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz
    python examples/train_colbert.py --out FOLDER             # keeps the models; run again to go on where it stopped

Topics are divided: half to train on, a few to choose the checkpoint by, the rest for the table at the end. Negatives
are mined from BM25. The head comes first, on a still transformer whose token states are computed once; then the last
layer moves with it. With a few dozen topics do not expect much: what the table shows is how to do it.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import bm25, load
from ir_measures import AP, RR, nDCG

import pyterrier_mvret as mv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--dim", type=int, default=128, help="dimensions of a token vector")
parser.add_argument("--epochs", type=float, default=10, help="passes over the training pairs for the head")
parser.add_argument("--negatives", type=int, default=3, help="BM25 negatives a relevant document")
parser.add_argument("--layers", type=int, default=1, help="last layers trained after the head; 0 for none")
parser.add_argument("--out", type=Path, help="where models, checkpoints and the plot go (default: thrown away)")
arguments = parser.parse_args()

documents, topics, qrels = load(arguments.dataset, arguments.collection)
train_topics, rest = mv.training.split(topics, 0.5, seed=0)
valid_topics, test_topics = mv.training.split(rest, 0.6, seed=0)
print(
    f"{len(documents)} documents; topics: {len(train_topics)} train, {len(valid_topics)} valid, {len(test_topics)} test"
)

with tempfile.TemporaryDirectory() as folder:
    out = arguments.out or Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(documents)
    texts = pt.apply.generic(lambda results: results.merge(table, on="docno", how="left"))
    candidates = bm25(documents, Path(folder) / "words.pisa") % 50 >> texts

    # a row a relevant document, with documents that BM25 took for relevant and are not
    data = mv.training.groups(train_topics, qrels, candidates, arguments.negatives, documents, short="drop")
    valid = (candidates(valid_topics), qrels)
    print(f"{len(data)} training rows, the first: {data[0]['query']!r} -> {data[0]['docnos']}")

    common = {"test_topics": test_topics, "batch_size": 16, "evaluations": 5, "resume": True}
    head = mv.ColBERT(mv.models.MINILM, init_projection=arguments.dim)
    head.fit(data, valid, train="head", epochs=arguments.epochs, path=out / "head", **common)
    trained = {"head": head}
    if arguments.layers:
        name = f"head and last {arguments.layers}"
        trained[name] = mv.ColBERT.load(out / "head").fit(
            data, valid, train=f"last:{arguments.layers}", epochs=2, path=out / "last", **common
        )

    for name, model in trained.items():
        history = model.history
        shown = history.dropna(subset=["nDCG@10"])
        print(f"\n{name}: loss {history['loss'].dropna().iloc[0]:.3f} -> {history['loss'].dropna().iloc[-1]:.3f}")
        print("nDCG@10 on validation topics:", dict(zip(shown["step"], shown["nDCG@10"].round(4), strict=True)))
        mv.training.plot(history).figure.savefig(out / f"{name.replace(' ', '_')}.png", dpi=120)

    # reloaded from the disk, as another program would
    last = mv.ColBERT.load(out / ("last" if arguments.layers else "head"))
    systems = {
        "BM25": candidates,
        "untrained, 384 dimensions": candidates >> mv.ColBERT(mv.models.MINILM).text_scorer(),
        f"untrained, {arguments.dim}": candidates
        >> mv.ColBERT(mv.models.MINILM, init_projection=arguments.dim).text_scorer(),
        **{f"trained {name}, {arguments.dim}": candidates >> m.text_scorer() for name, m in trained.items()},
        "the last one, reloaded": candidates >> last.text_scorer(),
    }
    results = pt.Experiment(systems, test_topics, qrels, [nDCG @ 10, RR @ 10, AP], round=4, verbose=True)
    print("\n" + results.to_string(index=False))
