"""ALIGNER on MiniLM: an alignment chosen by eight judged topics, and an index of fewer and fewer token vectors.

    python examples/aligner.py                          # mvret:mini, a small collection inside the package
    python examples/aligner.py --collection FOLDER      # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz
    python examples/aligner.py --out FOLDER             # keeps the indexes and the plot (extra "plot")

Nothing is trained: alignment is a choice of scoring, and tokens are pruned by the attention they receive. The eight
topics that choose are left out of every table. Expect little of the alignment where documents are about equally long.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import load
from ir_measures import RR, R, nDCG

import pyterrier_mvret as mv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--shots", type=int, default=8, help="judged topics that choose the alignment")
parser.add_argument("--seed", type=int, default=0, help="which topics these are")
parser.add_argument("--shares", type=float, nargs="+", default=[0.6, 0.4, 0.2, 0.1], help="shares of tokens kept")
parser.add_argument("--out", type=Path, help="where indexes and the plot go (default: thrown away)")
arguments = parser.parse_args()

documents, topics, qrels = load(arguments.dataset, arguments.collection)
few = topics.sample(arguments.shots, random_state=arguments.seed)
rest = topics[~topics["qid"].isin(few["qid"])]
print(f"{len(documents)} documents; topics: {len(few)} choose the alignment, {len(rest)} test it")

with tempfile.TemporaryDirectory() as folder:
    out = arguments.out or Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    encoder = mv.TokenEncoder(mv.models.MINILM)

    def indexed(name: str, model: mv.Aligner) -> mv.MultiVecIndex:
        """An index of the tokens that a model keeps."""
        index = mv.MultiVecIndex(out / f"{name}.mv", verbose=True)
        (model.doc_encoder() >> index.indexer("overwrite")).index(documents)
        return index

    # 1. few-shot adaptation: candidates are retrieved once, nine strategies score them
    full = indexed("full", mv.Aligner(encoder))
    aligner = mv.Aligner(encoder).fit(few, qrels, full)
    print(f"\nChosen by {len(few)} topics: {aligner.alignment}\n{aligner.adaptation.table.round(4)}")
    first = aligner.query_encoder() >> full.retriever(mv.scoring.Alignment(mv.TopK(1)), num_results=100)
    systems = {repr(s): first >> full.scorer(mv.scoring.Alignment(s)) for s in mv.training.GRID}
    print(pt.Experiment(systems, rest, qrels, [nDCG @ 10, RR @ 10]).round(4).to_string(index=False))

    # 2. pruning: search among the tokens that are kept, and score by them alone or (the paper's way) by all
    rows = [{"kept": 1.0, "vectors": full.info()["vectors"], "mebibytes": full.info()["bytes"] / 2**20}]
    # of few documents a long ranking holds them all, and refinement would undo any pruning: a hundred are found
    pipelines = {"all tokens": aligner.query_encoder() >> full.retriever(aligner, num_results=100)}
    for share in arguments.shares:
        pruned = mv.Aligner(encoder, aligner.alignment, doc_keep=share)
        index = indexed(f"kept-{share}", pruned)
        info = index.info()
        rows.append({"kept": share, "vectors": info["vectors"], "mebibytes": info["bytes"] / 2**20})
        search = pruned.query_encoder() >> index.retriever(pruned, num_results=100)
        pipelines[f"{share:.0%} kept, refine=pruned"] = search
        pipelines[f"{share:.0%} kept, refine=full"] = search >> full.scorer(aligner)
    print(f"\n{pd.DataFrame(rows).round(2).to_string(index=False)}")
    table = pt.Experiment(pipelines, rest, qrels, [nDCG @ 10, RR @ 10, R @ 100, "mrt"])
    print(table.round(4).to_string(index=False))

    # 3. why: which tokens one score is made of
    topic = rest.iloc[0]
    best = pipelines["all tokens"](rest.iloc[:1])["docno"].iloc[0]
    text = next(d["text"] for d in documents if d["docno"] == best)
    pairs = aligner.explain(topic["query"], text).sort_values("contribution", ascending=False)
    print(f"\n{topic['query']!r} -> {best}")
    print(pairs[["query_token", "doc_token", "similarity", "share"]].head(8).round(3).to_string(index=False))

    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: pip install 'pyterrier-mvret[plot]'")
    else:
        values = table.set_index("name")["nDCG@10"]
        shares = [row["kept"] for row in rows]
        for refine in ("pruned", "full"):
            line = [values[f"{share:.0%} kept, refine={refine}"] for share in arguments.shares]
            pyplot.plot(shares, [values["all tokens"], *line], marker="o", label=f'refine="{refine}"')
        pyplot.xlabel("share of document tokens kept")
        pyplot.ylabel("nDCG@10")
        pyplot.legend()
        pyplot.savefig(out / "pruning.png", dpi=120)
        print(f"curve: {out / 'pruning.png'}")
