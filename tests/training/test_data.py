from itertools import permutations

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from tests.training.common import Document

TOPICS = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["feline pets", "interest", "unjudged"]})
QRELS = pd.DataFrame({"qid": ["1", "1", "2", "2"], "docno": ["a", "b", "c", "d"], "label": [1, 2, 1, 0]})
TEXTS = {"a": "Cats purr.", "b": "Kittens, too.", "c": "Rates rose.", "d": "Rates.", "e": "", "f": "Fog."}
RUN = pd.DataFrame(
    [(qid, docno, rank, 9.0 - rank) for qid in ("1", "2") for rank, docno in enumerate("fdaebc")],
    columns=["qid", "docno", "rank", "score"],
)


def as_rows(texts):
    return [{"docno": docno, "text": text} for docno, text in texts.items()]


FORMS = {
    "mapping": lambda texts: texts,
    "frame": lambda texts: pd.DataFrame(as_rows(texts)),
    "list of dicts": as_rows,
    "stream": lambda texts: iter(as_rows(texts)),
    "objects": lambda texts: (Document(docno, text) for docno, text in texts.items()),
    "dataset of rows": lambda texts: Dataset.from_list(as_rows(texts)),
}


def test_pairs_have_a_row_a_relevant_document():
    data = mv.training.pairs(TOPICS, QRELS, TEXTS)
    assert data.column_names == ["qid", "docnos", "query", "positive"]
    assert [(row["qid"], row["docnos"]) for row in data] == [("1", ["a"]), ("1", ["b"]), ("2", ["c"])]
    assert list(data["query"]) == ["feline pets", "feline pets", "interest"]
    assert list(data["positive"]) == [TEXTS[d] for d in "abc"]
    assert [row["docnos"] for row in mv.training.pairs(TOPICS, QRELS, TEXTS, min_label=2)] == [["b"]]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_documents_gives_the_same_set(form):
    expected = mv.training.groups(TOPICS, QRELS, RUN, 2, TEXTS)
    data = mv.training.groups(TOPICS, QRELS, RUN, 2, FORMS[form](TEXTS))
    assert data.to_list() == expected.to_list()


def test_a_dataset_of_pyterrier_gives_its_documents():
    mini = pt.get_dataset("mvret:mini")
    data = mv.training.pairs(mini.get_topics(), mini.get_qrels(), mini)
    texts = {document["docno"]: document["text"] for document in mini.get_corpus_iter(verbose=False)}
    assert len(data) == (mini.get_qrels()["label"] >= 1).sum()
    assert all(row["positive"] == texts[row["docnos"][0]] for row in data)


def test_a_stream_is_left_where_nothing_more_is_needed():
    def stream():
        yield from as_rows({d: TEXTS[d] for d in "abc"})
        raise AssertionError("read on")

    assert len(mv.training.pairs(TOPICS, QRELS, stream())) == 3


def test_the_run_itself_may_have_the_texts():
    run = RUN.assign(text=RUN["docno"].map(TEXTS))
    expected = mv.training.groups(TOPICS, QRELS, RUN, 2, TEXTS)
    assert mv.training.groups(TOPICS, QRELS, run, 2).to_list() == expected.to_list()


def test_a_pipeline_is_run_for_topics_that_have_relevant_documents():
    asked = []

    def retrieve(topics):
        asked.extend(topics["qid"])
        return RUN.merge(topics)

    data = mv.training.groups(TOPICS, QRELS, pt.apply.generic(retrieve), 2, TEXTS)
    assert asked == ["1", "2"]
    assert data.to_list() == mv.training.groups(TOPICS, QRELS, RUN, 2, TEXTS).to_list()


def test_inputs_stay_as_they_are():
    before = [frame.copy() for frame in (TOPICS, QRELS, RUN)]
    mv.training.groups(TOPICS, QRELS, RUN, 2, TEXTS)
    for frame, old in zip((TOPICS, QRELS, RUN), before):
        pd.testing.assert_frame_equal(frame, old)


# ------------------------------------------------------------------ negatives


def mined(**settings):
    return {tuple(row["docnos"]) for row in mv.training.groups(TOPICS, QRELS, RUN, docs=TEXTS, **settings)}


def test_top_negatives_are_the_first_that_are_not_relevant():
    assert mined(n=2, pick="top") == {("a", "f", "d"), ("b", "f", "d"), ("c", "f", "d")}
    assert mined(n=2, pick="top", skip=1) == {("a", "d", "e"), ("b", "d", "e"), ("c", "d", "a")}


def test_depth_counts_documents_that_are_not_relevant():
    assert mined(n=3, depth=3) <= {(p, *o) for p in "abc" for o in permutations("fdea", 3)}
    assert {frozenset(docnos[1:]) for docnos in mined(n=2, depth=2)} == {frozenset("fd")}
    assert {frozenset(docnos[1:]) for docnos in mined(n=2, depth=2, skip=1, min_label=1)} <= {
        frozenset("de"),
        frozenset("da"),
    }


def test_runs_without_ranks_are_sorted_by_score():
    run = RUN.drop(columns="rank").sample(frac=1, random_state=0)
    data = mv.training.groups(TOPICS, QRELS, run, 2, TEXTS, pick="top")
    assert {tuple(row["docnos"]) for row in data} == mined(n=2, pick="top")
    with pytest.raises(ValueError, match="'rank' or 'score'"):
        mv.training.groups(TOPICS, QRELS, run[["qid", "docno"]], 2, TEXTS)


def test_a_document_that_is_in_the_run_twice_is_one_negative():
    run = pd.concat([RUN, RUN]).reset_index(drop=True)
    for pick in ("top", "random"):
        data = mv.training.groups(TOPICS, QRELS, run, 3, TEXTS, pick=pick)
        assert all(len(set(row["docnos"])) == 4 for row in data)


def test_seeds_draw_differently_and_repeat():
    run = pd.DataFrame([("1", f"n{i}", i) for i in range(50)], columns=["qid", "docno", "rank"])
    docs = {**TEXTS, **{f"n{i}": "x" for i in range(50)}}
    drawn = [mv.training.groups(TOPICS.head(1), QRELS, run, 5, docs, seed=seed)["docnos"][:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0][1:] != drawn[0][1][1:]  # each row draws for itself


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), skip=st.integers(0, 3), extra=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_negatives_are_never_relevant_and_come_from_the_window(seed, n, skip, extra):
    rng = np.random.default_rng(seed)
    docnos = [f"d{i}" for i in range(15)]
    qrels = pd.DataFrame([(q, d, int(rng.integers(-1, 3))) for q in "12" for d in rng.permutation(docnos)[:6]])
    qrels.columns = ["qid", "docno", "label"]
    run = pd.DataFrame([(q, d, r) for q in "12" for r, d in enumerate(rng.permutation(docnos))])
    run.columns = ["qid", "docno", "rank"]
    relevant = {(q, d) for q, d, label in qrels.itertuples(index=False) if label >= 1}
    topics = TOPICS[TOPICS["qid"].isin({q for q, _ in relevant})]
    if not len(topics):
        return
    docs = dict.fromkeys(docnos, "text")
    data = mv.training.groups(topics, qrels, run, n, docs, depth=n + extra, skip=skip, seed=seed, short="drop")
    assert {(row["qid"], row["docnos"][0]) for row in data} == relevant
    for row in data:
        positive, *others = row["docnos"]
        ranked = [d for d in run[run["qid"] == row["qid"]]["docno"] if (row["qid"], d) not in relevant]
        assert len(set(others)) == n and set(others) <= set(ranked[skip : skip + n + extra])
        assert (row["qid"], positive) in relevant


def test_too_few_negatives_are_an_error_or_drop_the_topic():
    run = pd.concat([RUN[RUN["qid"] == "1"], RUN[RUN["qid"] == "2"].head(2)])
    with pytest.raises(ValueError, match=r"topic '2' \('interest'\) has 2 negatives .*n=3"):
        mv.training.groups(TOPICS, QRELS, run, 3, TEXTS)
    data = mv.training.groups(TOPICS, QRELS, run, 3, TEXTS, short="drop")
    assert [row["docnos"][0] for row in data] == ["a", "b"]
    with pytest.raises(ValueError, match="nothing to train on"):
        mv.training.groups(TOPICS, QRELS, run.iloc[:0], 3, TEXTS, short="drop")


@pytest.mark.parametrize(
    "settings", [{"n": 0}, {"n": 3, "depth": 2}, {"skip": -1}, {"pick": "best"}, {"short": "pad"}], ids=str
)
def test_settings_out_of_range_are_errors(settings):
    with pytest.raises(ValueError, match="got"):
        mv.training.groups(TOPICS, QRELS, RUN, docs=TEXTS, **settings)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("topics", "qrels", "docs", "message"),
    [
        (pd.concat([TOPICS, TOPICS.head(1)]), QRELS, TEXTS, "topic '1' is there twice"),
        (TOPICS, pd.concat([QRELS, QRELS.head(1).assign(label=0)]), TEXTS, "'a' is judged for topic '1' more than"),
        (TOPICS, QRELS, {"a": "", "b": ""}, "document 'c', needed for topic '2', is not"),
        (TOPICS, QRELS, {**TEXTS, "b": None}, "document 'b': the text must be"),
        (TOPICS, QRELS, {**TEXTS, "b": "\ud83d"}, "document 'b': the text must be"),
        (TOPICS.assign(query=[None, "a", "b"]), QRELS, TEXTS, "topic '1': the query"),
        (TOPICS.assign(query=pd.Series(["a", "\ud83d", "b"], dtype=object)), QRELS, TEXTS, "topic '2': the query"),
        (TOPICS.iloc[:0], QRELS, TEXTS, "nothing to train on"),
        (TOPICS, QRELS.iloc[:0], TEXTS, "nothing to train on"),
        (TOPICS, QRELS, [], "document 'a', needed"),
        (TOPICS, QRELS, [{"doc_id": "a"}], "docs must have docno and text"),
        (TOPICS, QRELS, pd.DataFrame({"docno": ["a"]}), "text"),
        (TOPICS.drop(columns="query"), QRELS, TEXTS, "query"),
        (TOPICS, QRELS.drop(columns="label"), TEXTS, "label"),
    ],
)
def test_bad_input_is_named(topics, qrels, docs, message):
    with pytest.raises(Exception, match=message):
        mv.training.pairs(topics, qrels, docs)


def test_a_judgement_that_is_there_twice_is_one():
    twice = pd.concat([QRELS, QRELS])
    assert mv.training.pairs(TOPICS, twice, TEXTS).to_list() == mv.training.pairs(TOPICS, QRELS, TEXTS).to_list()


def test_numbers_as_names_become_strings():
    topics, qrels = TOPICS.assign(qid=[1, 2, 3]), QRELS.assign(qid=[1, 1, 2, 2], docno=[10, 11, 12, 13])
    run = pd.DataFrame([(q, d, d) for q in (1, 2) for d in range(10, 16)], columns=["qid", "docno", "rank"])
    texts = {10 + i: text for i, text in enumerate(TEXTS.values())}
    for pick in ("top", "random"):
        data = mv.training.groups(topics, qrels, run, 2, texts, pick=pick)
        assert list(data["qid"]) == ["1", "1", "2"]
        assert all(isinstance(docno, str) for row in data for docno in row["docnos"])
    taught = mv.training.with_teacher(data, pt.apply.doc_score(lambda row: len(row["text"])))
    assert taught[0]["scores"][0] == len(TEXTS["a"])
