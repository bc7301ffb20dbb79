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


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.sampled_from(["d9", "d10", "ä", "d1"]))))
@settings(max_examples=100, deadline=None)
def test_ranks_are_by_score_then_docno_then_row(rows):
    frame = pd.DataFrame(rows, columns=["qid", "score", "docno"]).astype({"qid": "str", "docno": "str"})
    frame.index = pd.Index([7] * len(frame))
    out = frames.with_scores(frame.drop(columns="score"), frame["score"].to_numpy(dtype=float))
    expected = {}
    for qid in set(frame["qid"]):
        mine = sorted((-s, d, i) for i, (q, s, d) in enumerate(rows) if q == qid)
        expected |= {i: rank for rank, (_, _, i) in enumerate(mine)}
    assert out["rank"].tolist() == [expected[i] for i in range(len(rows))]
    assert out["docno"].tolist() == frame["docno"].tolist()
    assert (out["score"].dtype, out["rank"].dtype) == (np.float64, np.int64)
    assert out.index.equals(frame.index)


@pytest.mark.parametrize("qids", [["2", "1", "2", "10"], [2, 1, 2, 10], [None, "x"], [np.nan, 3.0]])
def test_query_groups_are_positions_in_order_of_first_appearance(qids):
    frame = pd.DataFrame({"qid": qids}, index=[5] * len(qids))
    if len(qids) == 2:
        with pytest.raises(ValueError, match="row 0 has no qid"):
            list(frames.query_groups(frame))
        return
    groups = list(frames.query_groups(frame))
    assert [qid for qid, _ in groups] == [qids[0], qids[1], qids[3]]
    assert [rows.tolist() for _, rows in groups] == [[0, 2], [1], [3]]
    assert list(frames.query_groups(frame[:0])) == []


def test_no_text_is_found_among_texts_whatever_it_is():
    for odd in (3, None, float("nan"), "\ud83d", b"bytes"):
        assert frames.first_no_text(["a", "ä", odd, 4]) == 2
    assert frames.first_no_text([]) is None


@pytest.mark.parametrize("bad", [np.ones((1, 3)), 3.0, ["a"], [[1], [2, 3]], [1.0, np.nan], [1e39], None])
def test_a_vector_is_finite_numbers_of_one_dimension(bad):
    with pytest.raises(ValueError, match="^it: (expected a \\(dim,\\) array of numbers|holds NaN or infinite values)"):
        frames.vector(bad, "it")
    assert frames.vector([1, 2], "it").dtype == np.float32
    assert frames.vector([], "it").shape == (0,)
