import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret import frames


@given(st.lists(st.integers(0, 4), max_size=6))
@settings(max_examples=60, deadline=None)
def test_ranked_frame_holds_any_mix_of_hits(sizes):
    queries = pd.DataFrame(
        {"qid": [f"q{i}" for i in range(len(sizes))], "query": ["t"] * len(sizes)}, dtype="str"
    ).assign(query_embs=frames.object_column((np.ones((2, 3)) for _ in sizes), pd.RangeIndex(len(sizes))))
    hits = [([f"d{j}" for j in range(n)], np.arange(n, 0, -1, dtype=np.float32)) for n in sizes]
    out = frames.ranked_frame(queries, hits)
    assert len(out) == sum(sizes)
    assert list(out.columns) == ["qid", "query", "query_embs", "docno", "score", "rank"]
    assert out["docno"].dtype == "str"
    assert out["score"].dtype == np.float64
    assert out["rank"].dtype == np.int64
    for qid, n in zip(queries["qid"], sizes):
        mine = out[out["qid"] == qid]
        assert mine["rank"].tolist() == list(range(n))
        assert all(m.shape == (2, 3) for m in mine["query_embs"])


def test_ranked_frame_replaces_an_earlier_ranking():
    queries = pd.DataFrame({"qid": ["1"], "query": ["a"], "docno": ["old"], "score": [9.0], "rank": [0]})
    out = frames.ranked_frame(queries, [(["new"], np.array([1.0]))])
    assert out.to_dict(orient="records") == [{"qid": "1", "query": "a", "docno": "new", "score": 1.0, "rank": 0}]


def test_first_value_skips_what_a_union_left_empty():
    column = pd.Series([None, np.nan, np.ones((1, 2)), np.zeros((1, 2))], dtype=object, name="query_embs")
    np.testing.assert_array_equal(frames.first_value(column, np.arange(4), "q"), np.ones((1, 2)))
    with pytest.raises(ValueError, match="'query_embs' has no value in any row of query 'q'"):
        frames.first_value(column, np.arange(2), "q")


def test_texts_name_the_document_that_has_none():
    frame = pd.DataFrame({"docno": ["a", "b"], "text": ["fine", None]})
    with pytest.raises(ValueError, match="1 of 2 do not, the first is docno 'b' with"):
        frames.texts_of(frame, "text")
    with pytest.raises(ValueError, match="the first is row 0 with 3"):
        frames.texts_of(pd.DataFrame({"text": [3]}), "text")


def test_object_column_keeps_matrices_whole():
    index = pd.Index([7, 7])
    column = frames.object_column([np.ones((2, 2)), np.ones((2, 2))], index)
    assert column.dtype == object
    assert column.iloc[0].shape == (2, 2)
    assert frames.object_column([], index[:0]).dtype == object
