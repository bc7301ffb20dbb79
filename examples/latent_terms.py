"""Latent Terms on MiniLM: a sparse autoencoder's latents as the terms of texts, scored with BM25 in PISA.

    python examples/latent_terms.py                        # mvret:mini, a small collection inside the package
    python examples/latent_terms.py --dataset mvret:limit/docs=500,queries=200 --train mvret:mini
    python examples/latent_terms.py --collection FOLDER    # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz
    python examples/latent_terms.py --out FOLDER           # keeps model, indexes and the plot (extra "plot")

The autoencoder learns to reconstruct token states, without any judgement. Unless --train names other texts, those are
the searched ones; the paper trains on generic text. It runs for about two minutes; real runs take 10 million tokens and
more. The control is a dictionary of random directions: only what is better than that was learned.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import Cosine, bm25, load
from ir_measures import R, nDCG
from pyterrier_pisa import PisaIndex

import pyterrier_mvret as mv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--train", help="a dataset or a folder whose texts are trained on (default: those searched)")
parser.add_argument("--latents", type=int, default=4096, help="size of the dictionary")
parser.add_argument("--k", type=int, default=16, help="active latents of a token at most")
parser.add_argument("--tokens", type=int, default=1_000_000, help="token states to train on")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", type=Path, help="where model, indexes and the plot go (default: thrown away)")
arguments = parser.parse_args()

documents, topics, qrels = load(arguments.dataset, arguments.collection)
texts = [d["text"] for d in documents]
if arguments.train:
    folder = Path(arguments.train).is_dir()
    texts = [d["text"] for d in load(*(None, arguments.train) if folder else (arguments.train, None))[0]]
print(f"{len(documents)} documents, {len(topics)} topics; {len(texts)} texts to train on")

with tempfile.TemporaryDirectory() as scratch:
    out = arguments.out or Path(scratch)
    out.mkdir(parents=True, exist_ok=True)
    encoder = mv.TokenEncoder(mv.models.MINILM)

    # 1. the dictionary, and its control
    training = {"tokens": arguments.tokens, "batch_tokens": 2048, "seed": arguments.seed}
    latent = mv.LatentTerms(encoder).fit(texts, latents=arguments.latents, k=arguments.k, **training)
    latent.save(out / "model")
    print(latent.history.iloc[[0, -1]][["tokens", "unique", "passes", "loss", "explained", "dead"]].to_string())
    sae = latent.dictionary
    control = mv.TopKSAE.random(sae.dim, sae.latents, sae.k, seed=arguments.seed, mean=sae.mean.detach().cpu())
    untrained = mv.LatentTerms(encoder, control)

    # 2. indexes and one table
    def indexed(name: str, model: mv.LatentTerms) -> mv.SparseIndex:
        """An index of a model's terms."""
        index = mv.SparseIndex(out / f"{name}.sparse", verbose=True)
        (model.doc_encoder() >> index.indexer("overwrite")).index(documents)
        return index

    def scaled(retriever: pt.Transformer) -> pt.Transformer:
        """Each topic's scores from 0 to 1, so that sums of two retrievers weigh them alike."""
        return retriever >> pt.apply.by_query(_scaled, add_ranks=True)

    def _scaled(found: pd.DataFrame) -> pd.DataFrame:
        low, high = found["score"].min(), found["score"].max()
        return found.assign(score=(found["score"] - low) / max(high - low, 1e-9))

    index = indexed("latent", latent)
    controls = indexed("random", untrained)
    words = bm25(documents, out / "words.pisa", num_results=1000)
    terms = latent.query_encoder() >> index.bm25(idf="lucene")
    systems = {
        "BM25 on words": words,
        "MiniLM cosine": Cosine(documents),
        "random dictionary, idf lucene": untrained.query_encoder() >> controls.bm25(idf="lucene"),
        "Latent Terms, idf rsj": latent.query_encoder() >> index.bm25(),
        "Latent Terms, idf lucene": terms,
        "words + Latent Terms": scaled(words) + scaled(terms),
    }
    table = pt.Experiment(systems, topics, qrels, [nDCG @ 10, R @ 100, "mrt"])
    print(f"\n{table[['name', 'nDCG@10', 'R@100', 'mrt']].round(4).to_string(index=False)}")

    # 3. what terms mean: one ranking, and the passages that share its best terms
    topic = topics.iloc[0]
    best = terms(topics.iloc[:1])["docno"].iloc[0]
    text = next(d["text"] for d in documents if d["docno"] == best)
    parts = latent.explain(topic["query"], text, index, mv.scoring.BM25(idf="lucene"))
    print(f"\n{topic['query']!r} -> {best}")
    print(parts[["term", "idf", "tf", "score", "query_tokens", "doc_tokens"]].head(8).round(3).to_string(index=False))
    print(latent.describe(parts["term"].head(2), documents, index=index, passages=2, verbose=False))

    # 4. Zipf: documents that have each latent, beside those that have each word
    vocabularies = {"latents": index, "random latents": controls, "words": PisaIndex(str(out / "words.pisa"))}
    fits = {name: vars(mv.zipf_fit(source)) for name, source in vocabularies.items()}
    shown = ["exponent", "r2", "middle_exponent", "middle_r2", "saturated", "largest", "top_1"]
    print(f"\n{pd.DataFrame(fits).loc[shown].astype(float).round(3).to_string()}")
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: pip install 'pyterrier-mvret[plot]'")
    else:
        mv.zipf_plot(vocabularies)
        pyplot.savefig(out / "zipf.png", dpi=120)
        print(f"plot: {out / 'zipf.png'}")
