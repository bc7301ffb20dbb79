import pyterrier as pt
import pytest

from pyterrier_mvret.training.measures import parsed


def test_measures_have_several_names():
    assert parsed("ndcg_cut_10") == parsed("nDCG@10") == parsed(pt.measures.nDCG @ 10)
    with pytest.raises(ValueError, match="nonsense"):
        parsed("nonsense")
