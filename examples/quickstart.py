"""ColBERT beside BM25 and a single-vector model in one experiment, with no download.

    python examples/quickstart.py                          # mvret:mini, a small collection inside the package
    python examples/quickstart.py --dataset irds:vaswani   # any PyTerrier or ir_datasets collection
    python examples/quickstart.py --collection FOLDER      # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz

The model is all-MiniLM-L6-v2, a single-vector model whose token states are scored as they are: nothing was trained
for late interaction, so what ColBERT gains or loses here is the scoring alone. Pass a trained checkpoint as --model.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import Cosine, bm25, load
from ir_measures import AP, RR, R, nDCG

import pyterrier_mvret as mv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--model", default=None, help="a checkpoint for the ColBERT rows (default: MiniLM's token states)")
parser.add_argument("--rerank", type=int, default=100, help="documents that ColBERT reranks a query")
arguments = parser.parse_args()

documents, topics, qrels = load(arguments.dataset, arguments.collection)
print(f"{len(documents)} documents, {len(topics)} topics")

colbert = mv.ColBERT(arguments.model or mv.models.MINILM, verbose=True)

with tempfile.TemporaryDirectory() as folder:
    words = bm25(documents, Path(folder) / "words.pisa")
    index = mv.MultiVecIndex(Path(folder) / "tokens.mv")
    (colbert.doc_encoder() >> index).index(documents)
    print(index.info())

    table = pd.DataFrame(documents)
    texts = pt.apply.generic(lambda results: results.merge(table, on="docno", how="left"))
    results = pt.Experiment(
        {
            "BM25": words,
            "MiniLM cosine": Cosine(documents),
            "BM25 >> ColBERT, text": words % arguments.rerank >> texts >> colbert.text_scorer(),
            "BM25 >> ColBERT, index": words % arguments.rerank >> colbert.query_encoder() >> index.scorer(),
            "ColBERT end to end": colbert.query_encoder() >> index.retriever(),
        },
        topics[["qid", "query"]],
        qrels,
        [nDCG @ 10, RR @ 10, AP, R @ 100, "mrt"],
        baseline="BM25",
        correction="holm",
        round=3,
        verbose=True,
    )
    shown = [c for c in results.columns if " " not in c or c.endswith("p-value corrected")]
    print("\nmrt: milliseconds a query; p-values: paired t-test against BM25, Holm's correction\n")
    print(results[shown].to_string(index=False))

    # why is the first document of the first topic first?
    topic = topics.iloc[:1]
    best = (colbert.query_encoder() >> index.retriever(num_results=1))(topic[["qid", "query"]]).iloc[0]
    text = next(d["text"] for d in documents if d["docno"] == best["docno"])
    print(f"\n{topic['query'].iloc[0]!r} -> {best['docno']} (score {best['score']:.2f}): {text}\n")
    pairs = colbert.explain(topic["query"].iloc[0], text)
    print(pairs[["query_token", "doc_token", "similarity", "contribution"]].round(3).to_string(index=False))
