"""Real collections: the figures an untrained MiniLM is known to reach."""

import json
from pathlib import Path

import pyterrier as pt
import pytest

import pyterrier_mvret as mv

# nDCG@10 over all documents, as benchmarks/quality.json keeps it
RESULTS = json.loads((Path(__file__).resolve().parents[1] / "benchmarks" / "quality.json").read_text())["rows"]
KNOWN = {r["collection"]: r["nDCG@10"] for r in RESULTS if r["name"] == "MaxSim end to end"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squad-a", "limit-small"])
def test_end_to_end_quality(name, collection, minilm, tmp_path):
    documents, topics, qrels = collection(name)
    colbert = mv.ColBERT(minilm)
    index = mv.MultiVecIndex(tmp_path / "x.mv")
    (colbert.doc_encoder() >> index).index(documents)
    table = pt.Experiment([colbert.query_encoder() >> index.retriever(num_results=100)], topics, qrels, ["ndcg_cut_10"])
    assert table["ndcg_cut_10"].iloc[0] == pytest.approx(KNOWN[name], abs=0.003)


@pytest.mark.slow
def test_empty_documents_of_cranfield_pass_through(collection, minilm, tmp_path):
    documents, topics, _ = collection("cranfield")
    few = [d for d in documents if not d["text"]] + documents[:20]
    assert any(not d["text"] for d in few)
    colbert = mv.ColBERT(minilm)
    index = mv.MultiVecIndex(tmp_path / "x.mv")
    (colbert.doc_encoder() >> index).index(few)
    results = (colbert.query_encoder() >> index.retriever())(topics.head(3))
    assert len(results) == 3 * len(few)  # [CLS] and [SEP] remain of an empty text
    assert results["score"].notna().all()
