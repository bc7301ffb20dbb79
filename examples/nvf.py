"""NVF on MiniLM: single vectors, a query transform in front of their search and a learned reranker behind it.

    python examples/nvf.py                          # mvret:mini, a small collection inside the package
    python examples/nvf.py --collection FOLDER      # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz
    python examples/nvf.py --features cross         # let the query attend to all of its candidates
    python examples/nvf.py --out FOLDER             # keeps index and model

Topics are divided: half to train on, some to choose the epoch by, the rest for the table at the end. The control is the
inner product, which an untrained NVF is: only what is better was learned. "The notes' form" is the published one, which
forgets the inner product and has to learn everything anew.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import bm25, load
from ir_measures import RR, nDCG

import pyterrier_mvret as mv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--features", default="difference", choices=["concat", "difference", "cross"])
parser.add_argument("--depth", type=int, default=50, help="candidates that are reranked")
parser.add_argument("--epochs", type=int, default=30, help="passes over the training topics at most")
parser.add_argument("--out", type=Path, help="where index and model go (default: thrown away)")
arguments = parser.parse_args()

documents, topics, qrels = load(arguments.dataset, arguments.collection)
train, rest = mv.training.split(topics, 0.5, seed=0)
valid, test = mv.training.split(rest, 0.6, seed=0)
print(f"{len(documents)} documents; topics: {len(train)} train, {len(valid)} valid, {len(test)} test")

with tempfile.TemporaryDirectory() as scratch:
    out = arguments.out or Path(scratch)
    out.mkdir(parents=True, exist_ok=True)

    # 1. one vector a document, in an index that every stage below reads
    nvf = mv.NVF(mv.models.MINILM, arguments.features)
    index = mv.SingleVecIndex(out / "minilm.sv")
    (nvf.doc_encoder() >> index.indexer("overwrite")).index(documents)
    words = bm25(documents, Path(scratch) / "words.pisa", num_results=arguments.depth)
    cosine = nvf.query_encoder() >> index.retriever(num_results=arguments.depth)

    # 2. the reranker learns what its first stage confuses; relevant documents that it missed come from the index
    candidates = cosine >> index.vec_loader()
    reranked = candidates >> nvf.reranker(epochs=arguments.epochs, index=index)
    reranked.fit(train, qrels, valid, qrels)
    notes = mv.NVF(nvf.encoder, arguments.features, residual=False)
    of_the_notes = candidates >> notes.reranker(epochs=arguments.epochs, index=index)
    of_the_notes.fit(train, qrels, valid, qrels)
    with_bm25 = mv.NVF(nvf.encoder, use_score=True)
    found_by_words = words >> nvf.query_encoder() >> index.vec_loader()
    added = found_by_words >> with_bm25.reranker(epochs=arguments.epochs, index=index)
    added.fit(train, qrels, valid, qrels)
    curves = nvf.history
    kept = curves.loc[curves["kept"], "epoch"].iloc[0]
    print(f"epoch {kept} of {curves['epoch'].iloc[-1]} kept: {curves['nDCG@10'].round(4).tolist()}")

    # 3. the query transform moves queries before all documents are searched
    encode = nvf.query_encoder()
    nvf.fit_query_transform(encode(train), qrels, index, encode(valid), qrels)
    moved = encode >> nvf.retriever(index, num_results=arguments.depth)

    # 4. one table
    systems = {
        "BM25": words,
        "MiniLM, inner product": cosine,
        "soft attention (moved queries)": moved,
        "inner product >> NVF": reranked,
        "inner product >> NVF, notes' form": of_the_notes,
        "BM25 >> NVF, added to BM25": added,
    }
    table = pt.Experiment(systems, test, qrels, [nDCG @ 10, RR @ 10, "mrt"], baseline="MiniLM, inner product")
    print(f"\n{table[['name', 'nDCG@10', 'RR@10', 'mrt', 'nDCG@10 p-value']].round(4).to_string(index=False)}")

    # 5. one ranking: what was learned beside the inner product
    if arguments.features != "cross":
        texts = pd.DataFrame(documents).set_index("docno")["text"]
        best = reranked(test.iloc[:1]).sort_values("rank").head(3)
        for docno in best["docno"]:
            parts = nvf.explain(test["query"].iloc[0], texts[docno]).set_index("part")["score"]
            print(f"{parts.round(4).to_dict()} {docno}: {' '.join(texts[docno].split())[:70]}")

    nvf.save(out / "nvf.safetensors")
    again = mv.NVF.load(out / "nvf.safetensors", nvf.encoder)
    assert again == nvf
    print(f"\nsaved: {(out / 'nvf.safetensors').stat().st_size / 2**20:.1f} MiB, {again.depth} candidates a query")
