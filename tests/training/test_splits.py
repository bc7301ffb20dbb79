import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv

QUERIES = st.lists(
    st.sampled_from(["cat", "Cat", " cat ", "blue  sky", "blue sky", "BLUE SKY", "dog", "rain", "ß", "SS"]), min_size=1
)


def key(query):
    return " ".join(query.casefold().split())


def frame(queries):
    return pd.DataFrame({"qid": [str(i) for i in range(len(queries))], "query": queries})


@given(queries=QUERIES, share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_no_query_is_on_both_sides_and_no_row_is_lost(queries, share, seed):
    data = frame(queries)
    distinct = len({key(q) for q in queries})
    if distinct < 2:
        with pytest.raises(ValueError, match="divided in two"):
            mv.training.split(data, share, seed=seed)
        return
    first, second = mv.training.split(data, share, seed=seed)
    sides = [{key(q) for q in part["query"]} for part in (first, second)]
    assert not sides[0] & sides[1] and sides[0] and sides[1]
    assert sorted([*first["qid"], *second["qid"]]) == sorted(data["qid"])
    assert len(sides[1]) == min(max(1, round(share * distinct)), distinct - 1)
    again = mv.training.split(data.sample(frac=1, random_state=1), share, seed=seed)
    assert {key(q) for q in again[1]["query"]} == sides[1]  # whatever the order of the rows


def test_seeds_divide_differently():
    data = frame([f"query {i}" for i in range(50)])
    parts = [mv.training.split(data, 0.5, seed=seed)[1]["qid"].tolist() for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_training_sets_are_divided_as_frames_are(toy):
    first, second = mv.training.split(toy.groups, 0.3, seed=2)
    frames = mv.training.split(toy.topics, 0.3, seed=2)
    assert [list(first["qid"]), list(second["qid"])] == [part["qid"].tolist() for part in frames]
    assert first.column_names == toy.groups.column_names and len(second) == 3


def test_the_input_stays_as_it_is(toy):
    before = toy.topics.copy()
    first, _ = mv.training.split(toy.topics.set_index(toy.topics.index + 7), 0.3)
    assert first.index.tolist() == list(range(7))
    pd.testing.assert_frame_equal(toy.topics, before)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2, float("nan")])
def test_a_share_is_between_nothing_and_all(toy, share):
    with pytest.raises(ValueError, match="share"):
        mv.training.split(toy.topics, share)


# ------------------------------------------------------------------ test topics


def test_topics_that_share_nothing_pass(toy):
    first, second = mv.training.split(toy.pairs, 0.3)
    test = frame(list(second["query"])).assign(qid=list(second["qid"]))
    mv.training.refuse_test_topics(first, test)
    mv.training.refuse_test_topics(first, test.iloc[:0])


def test_a_shared_text_is_refused_whatever_its_qid_case_and_spacing(toy):
    text = toy.topics["query"][3]
    test = frame(["unrelated", f"  {text.upper()}\n"]).assign(qid=["x", "y"])
    with pytest.raises(ValueError, match=f"1 of 10 training queries is .* '{text}'"):
        mv.training.refuse_test_topics(toy.pairs, test)


@pytest.mark.parametrize("qid", ["3", 3])
def test_a_shared_qid_is_refused_unless_collections_number_alike(toy, qid):
    test = frame(["something else"]).assign(qid=[qid])
    with pytest.raises(ValueError, match="1 qids .* '3'"):
        mv.training.refuse_test_topics(toy.pairs, test)
    mv.training.refuse_test_topics(toy.pairs, test, qids=False)
