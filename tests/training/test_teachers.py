"""Teachers' scores, and what a set must have before a loss reads it: the second half of ``training.data``."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk

import pyterrier_mvret as mv
from pyterrier_mvret.training.data import checked


def length(row):
    return float(len(row["text"]))


def scored(toy):
    return [
        [float(len(row[name])) for name in ("positive", *(f"negative_{i}" for i in (1, 2, 3)))] for row in toy.groups
    ]


TEACHERS = {
    "as it comes": pt.apply.doc_score(length),
    "in another order": pt.apply.doc_score(length) >> pt.apply.generic(lambda r: r.sample(frac=1, random_state=3)),
    "with columns left out": pt.apply.doc_score(length) >> pt.apply.generic(lambda r: r[["qid", "docno", "score"]]),
    "a sum of two": pt.apply.doc_score(lambda row: 1.0) + pt.apply.doc_score(lambda row: length(row) - 1),
}


@pytest.mark.parametrize("teacher", TEACHERS)
def test_scores_go_to_their_documents(toy, teacher):
    data = mv.training.with_teacher(toy.groups, TEACHERS[teacher])
    assert data.column_names == [*toy.groups.column_names, "scores"]
    assert list(data["scores"]) == scored(toy)
    assert data.remove_columns("scores").to_list() == toy.groups.to_list()


def test_equal_pairs_are_scored_once_and_in_blocks(toy, monkeypatch):
    monkeypatch.setattr("pyterrier_mvret.training.teachers._QUERIES_A_BLOCK", 3)
    seen = []

    def teach(results):
        seen.append(results[["qid", "docno"]])
        return results.assign(score=results["text"].str.len())

    data = mv.training.with_teacher(toy.groups, pt.apply.generic(teach))
    assert list(data["scores"]) == scored(toy)
    asked = pd.concat(seen)
    assert not asked.duplicated().any() and len(seen) == 4 and max(part["qid"].nunique() for part in seen) == 3


def test_rows_of_one_query_need_not_lie_together(toy):
    order = np.random.default_rng(0).permutation(2 * len(toy.groups)) % len(toy.groups)
    data = mv.training.with_teacher(toy.groups.select(order), pt.apply.doc_score(length))
    assert list(data["scores"]) == [scored(toy)[i] for i in order]


def test_the_teacher_reads_the_text_where_it_wants_to(toy):
    teacher = pt.apply.doc_score(lambda row: float(len(row["body"])))
    assert list(mv.training.with_teacher(toy.groups, teacher, text_field="body")["scores"]) == scored(toy)


def test_min_max_takes_each_row_to_the_unit_interval(toy):
    data = mv.training.with_teacher(toy.groups, pt.apply.doc_score(length), normalize="min-max")
    for row, raw in zip(data["scores"], scored(toy)):
        assert (min(row), max(row)) == (0, 1)
        np.testing.assert_allclose(row, (np.array(raw) - min(raw)) / (max(raw) - min(raw)))


def test_equal_scores_are_zeros_and_no_division(toy):
    data = mv.training.with_teacher(toy.groups, pt.apply.doc_score(lambda row: 3.0), normalize="min-max")
    assert set(np.ravel(data["scores"][:])) == {0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[r["docno"] != "d4"], "no score to document 'd4' for topic"),
        (lambda r: r.assign(score=r["score"].where(r["docno"] != "d4")), "the score nan to document 'd4'"),
        (lambda r: r.assign(score=np.inf), "the score inf"),
        (lambda r: r.drop(columns="score"), "score"),
    ],
)
def test_a_teacher_must_score_everything(toy, change, message):
    teacher = pt.apply.doc_score(length) >> pt.apply.generic(change)
    with pytest.raises(Exception, match=message):
        mv.training.with_teacher(toy.groups, teacher)


def test_a_set_is_taught_once(toy):
    with pytest.raises(ValueError, match="already"):
        mv.training.with_teacher(toy.taught, pt.apply.doc_score(length))
    with pytest.raises(ValueError, match="min-max"):
        mv.training.with_teacher(toy.groups, pt.apply.doc_score(length), normalize="softmax")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"query": "another " + row["query"]}, "topic '0' has two queries, .*let it score each"),
        (lambda row: {"positive": "another " + row["positive"]}, "document 'd0' of topic '0' has two texts"),
    ],
)
def test_two_collections_that_number_alike_are_not_taught_at_once(toy, change, message):
    both = concatenate_datasets([toy.groups, toy.groups.map(change)])
    with pytest.raises(ValueError, match=message):
        mv.training.with_teacher(both, pt.apply.doc_score(length))


def test_rows_of_ones_own_need_names_of_documents_for_a_teacher(toy):
    with pytest.raises(ValueError, match="lack docnos"):
        mv.training.with_teacher(toy.groups.remove_columns("docnos"), pt.apply.doc_score(length))


# ------------------------------------------------------------------ what a loss reads


def test_a_loss_reads_texts_in_their_order_and_scores_where_it_wants_them(toy):
    mixed = toy.taught.select_columns(list(reversed(toy.taught.column_names)))
    texts = ["query", "positive", "negative_1", "negative_2", "negative_3"]
    assert checked(mixed, None).column_names == texts
    assert checked(mixed, "unit").column_names == [*texts, "scores"]


def test_ten_negatives_are_not_sorted_as_words(toy):
    many = mv.training.groups(toy.topics, toy.qrels, toy.run, 12, toy.texts)
    assert checked(many, None).column_names[2:] == [f"negative_{i}" for i in range(1, 13)]


def test_sets_survive_the_disk(toy, tmp_path):
    toy.taught.save_to_disk(str(tmp_path / "set"))
    data = load_from_disk(str(tmp_path / "set"))
    assert data.to_list() == toy.taught.to_list() and data.features == toy.taught.features
    assert checked(data, "unit").to_list() == checked(toy.taught, "unit").to_list()


@pytest.mark.parametrize("view", ["numpy", "torch", "pandas"])
def test_the_view_of_a_set_does_not_matter(toy, view):
    assert checked(toy.taught.with_format(view), "unit").to_list() == checked(toy.taught, "unit").to_list()


def by_hand(**columns):
    rows = {"qid": ["7", "8"], "query": ["a", "b"], "positive": ["c", "d"], "negative_1": ["e", "f"]}
    return Dataset.from_dict({**rows, **columns})


def test_a_set_made_by_hand_is_welcome():
    assert len(checked(by_hand(topic_note=["x", "y"]), None)) == 2
    assert len(checked(by_hand(scores=[[1, 0], [5, 2]]), "any")) == 2  # whole numbers


@pytest.mark.parametrize(
    ("data", "teacher", "message"),
    [
        (pd.DataFrame({"qid": ["1"]}), None, "datasets.Dataset .* got DataFrame"),
        ([], None, "got list"),
        (by_hand().remove_columns("positive"), None, "lacks positive"),
        (by_hand().remove_columns("qid"), None, "lacks qid"),
        (by_hand(), "any", "lacks scores .*with_teacher"),
        (by_hand().select([]), None, "without a row"),
        (by_hand(positive=["c", None]), None, r"row 1 \(topic '8'\): positive must be text, got None"),
        (by_hand(negative_1=[3, 4]), None, r"row 0 \(topic '7'\): negative_1 must be text, got 3"),
        (by_hand(scores=[[1.0, 0.0], [1.0]]), "any", r"row 1 \(topic '8'\): scores must be 2 finite"),
        (by_hand(scores=[[1.0, 0.0], [1.0, float("nan")]]), "any", r"row 1 \(topic '8'\)"),
        (by_hand(scores=[[1.0, None], [1.0, 0.0]]), "any", r"row 0 \(topic '7'\)"),
        (by_hand(scores=[None, [1.0, 0.0]]), "any", r"row 0 \(topic '7'\)"),
        (by_hand(scores=[[1.0, 0.0], [1.5, 0.0]]), "unit", r"row 1 \(topic '8'\): .*\[0, 1\].*min-max"),
        (by_hand(scores=[[1.0, -0.1], [1.0, 0.0]]), "unit", r"row 0 \(topic '7'\)"),
        (by_hand(negative=["g", "h"]), None, "columns negative_1.* got negative_1, negative"),
        (by_hand(negative_3=["g", "h"]), None, "columns negative_1"),
        (by_hand(negative_x=["g", "h"]), None, "columns negative_1"),
    ],
)
def test_what_is_not_in_the_format_is_named(data, teacher, message):
    with pytest.raises(ValueError, match=message):
        checked(data, teacher)


def test_rows_are_named_far_into_a_set():
    data = Dataset.from_dict({"qid": ["1"] * 1500, "query": ["a"] * 1500, "positive": ["b"] * 1499 + [None]})
    with pytest.raises(ValueError, match="row 1499"):
        checked(data, None)
