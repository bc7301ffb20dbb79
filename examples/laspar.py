"""LASPAR on MiniLM: a head of thousands of latent dimensions is trained, and its sparse vectors searched in PISA.

    python examples/laspar.py                          # mvret:mini, a small collection inside the package
    python examples/laspar.py --collection FOLDER      # docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz
    python examples/laspar.py --latents 65536 --k-doc 512 --k-query 128    # the method's own sizes
    python examples/laspar.py --out FOLDER             # keeps model and index; run again to go on where it stopped

Topics are divided: half to train on, a few to choose the checkpoint by, the rest for the table at the end. That is too
little for a dictionary of thousands of dimensions, so sentences of the passages are asked as well. Negatives are
BM25's, and MiniLM's own cosine is the teacher. The transformer stands still, so a run takes minutes. The control is the
head before training, a random projection: only what is better was learned.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import pyterrier as pt
from common import Cosine, bm25, load
from ir_measures import R, nDCG

import pyterrier_mvret as mv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--dataset", help="a PyTerrier dataset, such as irds:vaswani (default: mvret:mini)")
parser.add_argument("--collection", help="a folder with docs.jsonl.gz, queries.tsv.gz, qrels.txt.gz")
parser.add_argument("--latents", type=int, default=16384, help="latent dimensions")
parser.add_argument("--k-doc", type=int, default=64, help="dimensions of a document that are kept")
parser.add_argument("--k-query", type=int, default=32, help="dimensions of a query that are kept")
parser.add_argument("--sentences", type=int, default=1500, help="sentences of passages that are asked in training")
parser.add_argument("--epochs", type=float, default=3, help="passes over the training rows")
parser.add_argument("--negatives", type=int, default=1, help="BM25 negatives a relevant document")
parser.add_argument("--teacher", default="", help="a sentence encoder (default: MiniLM)")
parser.add_argument("--show", type=int, default=3, help="latent dimensions that are shown")
parser.add_argument("--out", type=Path, help="where model and index go (default: thrown away)")
arguments = parser.parse_args()

documents, topics, qrels = load(arguments.dataset, arguments.collection)
train_topics, rest = mv.training.split(topics, 0.5, seed=0)
valid_topics, test_topics = mv.training.split(rest, 0.6, seed=0)
print(
    f"{len(documents)} documents; topics: {len(train_topics)} train, {len(valid_topics)} valid, {len(test_topics)} test"
)
table = pd.DataFrame(documents)
texts = pt.apply.generic(lambda results: results.merge(table, on="docno", how="left"))


def indexed(model: mv.Laspar, path: Path) -> mv.SparseIndex:
    """An index of a model's latents."""
    index = mv.SparseIndex(path)
    (model.doc_encoder() >> index.indexer("overwrite")).index(documents)
    return index


def asked_of_passages(number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sentences as topics, and the passage that each is from as the relevant one."""
    splitter = mv.Sentences()
    rows = [
        (f"{d['docno']}#{start}", d["text"][start:end], d["docno"], 1)
        for d in documents
        for start, end in splitter.split(d["text"])
    ]
    all_of_them = pd.DataFrame(rows, columns=["qid", "query", "docno", "label"])
    some = all_of_them.sample(min(number, len(rows)), random_state=0)
    return some[["qid", "query"]].reset_index(drop=True), some[["qid", "docno", "label"]]


with tempfile.TemporaryDirectory() as scratch:
    out = arguments.out or Path(scratch)
    out.mkdir(parents=True, exist_ok=True)
    words = bm25(documents, Path(scratch) / "words.pisa")
    cosine = Cosine(documents)

    # 1. rows of a query, a relevant document and BM25's mistakes, with what the teacher thinks of each
    sentences, their_passages = asked_of_passages(arguments.sentences)
    asked = pd.concat([train_topics[["qid", "query"]], sentences], ignore_index=True)
    judged = pd.concat([qrels[["qid", "docno", "label"]], their_passages])
    data = mv.training.groups(asked, judged, words % 50, arguments.negatives, documents, short="drop")
    teacher = cosine if not arguments.teacher else Cosine(documents, arguments.teacher)
    data = mv.training.with_teacher(data, pt.apply.doc_score(teacher.scores, batch_size=256))
    print(f"{len(data)} training rows, the first: {data[0]['query']!r} -> {data[0]['docnos']}")

    # 2. the head, and its control
    settings = {"latents": arguments.latents, "k_doc": arguments.k_doc, "k_query": arguments.k_query}
    untrained = mv.Laspar(mv.models.MINILM, **settings)
    laspar = mv.Laspar(mv.models.MINILM, **settings)
    laspar.fit(
        data,
        valid=((cosine % 100 >> texts)(valid_topics), qrels),
        loss=mv.training.LatentSparse(distillation="kl"),
        epochs=arguments.epochs,
        evaluations=4,
        test_topics=test_topics,
        path=out / "model",
        resume=True,
    )
    chosen = laspar.history.dropna(subset=["nDCG@10"])
    print("nDCG@10 on validation topics:", dict(zip(chosen["step"], chosen["nDCG@10"].round(4), strict=True)))

    # 3. indexes and one table
    index, control = indexed(laspar, out / "laspar.sparse"), indexed(untrained, Path(scratch) / "untrained.sparse")
    retrieve = laspar.query_encoder() >> index.retriever()
    systems = {
        "BM25": words,
        "MiniLM cosine": cosine,
        "LASPAR, untrained": untrained.query_encoder() >> control.retriever(),
        "LASPAR, trained": retrieve,
    }
    compared = pt.Experiment(systems, test_topics, qrels, [nDCG @ 10, R @ 100, "mrt"])
    print(f"\n{compared[['name', 'nDCG@10', 'R@100', 'mrt']].round(4).to_string(index=False)}")
    print(
        f"{index.info()['postings'] / len(documents):.0f} latents a document, {index.info()['bytes'] / 2**20:.1f} MiB"
    )

    # 4. one ranking: what its score is made of, and which passages share these dimensions
    topic = test_topics.iloc[0]
    best = retrieve(test_topics.iloc[:1])["docno"].iloc[0]
    text = table.set_index("docno")["text"][best]
    parts = laspar.explain(topic["query"], text)
    print(f"\n{topic['query']!r} -> {best}: {len(parts)} latents in common, score {parts['score'].sum():.3f}")
    print(parts.head(8).round(3).to_string(index=False))
    shown = parts["term"].head(arguments.show).tolist()
    alone = pd.DataFrame({"qid": shown, "query_toks": [{latent: 1.0} for latent in shown]})
    for latent, found in (index.retriever() >> texts)(alone).groupby("qid", sort=False):
        print(f"\nlatent {latent}: {len(found)} passages, those in which it weighs most")
        for passage in found.head(3).itertuples():
            print(f"  {passage.score:.3f} {passage.docno}: {' '.join(passage.text.split())[:90]}")
