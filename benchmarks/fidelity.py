"""How far scores from an index are from scores of the text, for each way of storing vectors.

    python benchmarks/fidelity.py

On mvret:mini with MiniLM, all topics with all documents: the largest error relative to the score, the ranking it leaves
(nDCG@10, and topics whose first ten documents differ), and bytes a vector. The same for sentence-transformers' own
maxsim over the same vectors. Writes fidelity.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from ir_measures import nDCG
from sentence_transformers.util import maxsim

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.codecs import CODECS

mini = pt.get_dataset("mvret:mini")
documents = pd.DataFrame(mini.get_corpus_iter(verbose=False))[["docno", "text"]]
topics, qrels = mini.get_topics()[["qid", "query"]], mini.get_qrels()
colbert = mv.ColBERT(mv.models.MINILM, device="cpu")

pairs = topics.merge(documents, how="cross").assign(score=0.0, rank=0)
reference = colbert.text_scorer()(pairs)
queries, texts = colbert.encoder.encode_queries(topics["query"]), colbert.encoder.encode_docs(documents["text"])
library = maxsim(list(queries), list(texts)).numpy().ravel()


def compared(results: pd.DataFrame) -> dict[str, Any]:
    """Errors and ranking against scores of the text; rows in the same order."""
    error = np.abs(results["score"].to_numpy() - reference["score"].to_numpy()) / reference["score"].abs().to_numpy()

    def firsts(frame: pd.DataFrame) -> pd.Series:
        return frame[frame["rank"] < 10].sort_values(["qid", "rank"]).groupby("qid")["docno"].agg(tuple)

    table = pt.Experiment([pt.Transformer.from_df(results)], topics, qrels, [nDCG @ 10])
    return {
        "largest relative error": float(f"{error.max():.2g}"),
        "mean relative error": float(f"{error.mean():.2g}"),
        "topics with another top 10": int((firsts(results) != firsts(reference)).sum()),
        "nDCG@10": round(float(table["nDCG@10"].iloc[0]), 4),
    }


outcome: dict[str, Any] = {
    "command": "python benchmarks/fidelity.py",
    "pairs": len(pairs),
    "text": compared(reference),
    "sentence-transformers' maxsim": compared(pt.model.add_ranks(pairs.assign(score=library.astype(np.float64)))),
}
with tempfile.TemporaryDirectory() as folder:
    for dtype in CODECS:
        index = mv.MultiVecIndex(Path(folder) / f"{dtype}.mv", dtype=dtype)
        (colbert.doc_encoder() >> index).index(documents.to_dict(orient="records"))
        results = (colbert.query_encoder() >> index.scorer())(pairs)
        outcome[dtype] = {**compared(results), "bytes a vector (384 dimensions)": index.info()["bytes_per_vector"]}
text = json.dumps(outcome, indent=1)
(Path(__file__).resolve().parent / "fidelity.json").write_text(text + "\n")
print(text)
