import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_mvret.training.measures import measurable, parsed


def test_measures_have_several_names():
    assert parsed("ndcg_cut_10") == parsed("nDCG@10") == parsed(pt.measures.nDCG @ 10)
    with pytest.raises(ValueError, match="nonsense"):
        parsed("nonsense")


def test_labels_below_0_do_not_end_the_process():
    qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "a"], "label": [-2, 1]})
    run = qrels[["qid", "docno"]].assign(score=1.0)
    found = pt.Evaluate(run, measurable(qrels), metrics=["recip_rank"])
    assert found["recip_rank"] == 0.5
    assert qrels["label"].tolist() == [-2, 1]
