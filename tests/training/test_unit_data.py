import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.training import with_units
from pyterrier_mvret.training.data import checked
from pyterrier_mvret.training.unit_data import UNITS

TEXTS = {"a": "Dogs bark. Cats cost $5 or $6.", "b": "Rates rose.", "c": ""}


@pytest.fixture(scope="module")
def data():
    topics = pd.DataFrame({"qid": ["1"], "query": ["price of a cat"]})
    qrels = pd.DataFrame({"qid": ["1"], "docno": ["a"], "label": [1]})
    run = pd.DataFrame({"qid": "1", "docno": ["b", "c"], "score": [2.0, 1.0], "rank": [0, 1]})
    return mv.training.groups(topics, qrels, run, n=2, docs=TEXTS, pick="top")


def qrels(*names, label=1):
    return pd.DataFrame({"qid": "1", "docno": names, "label": label})


def test_judgements_are_targets(data):
    row = with_units(data, qrels("a%s1"))[0]
    assert row["spans"] == [[[0, 10], [11, 30]], [[0, 11]], []]
    assert row["unit_scores"] == [[-np.inf, 0.0], [-np.inf], []]
    assert row["docnos"] == ["a", "b", "c"]


def test_a_teacher_reads_the_passage_with_the_unit_marked(data):
    seen = []

    def score(row):
        seen.append((row["docno"], row["text"]))
        return len(seen)

    row = with_units(data, pt.apply.doc_score(score))[0]
    assert seen == [
        ("a%s0", "$ Dogs bark. $ Cats cost ＄5 or ＄6."),
        ("a%s1", "Dogs bark. $ Cats cost ＄5 or ＄6. $"),
        ("b%s0", "$ Rates rose. $"),
    ]
    assert row["unit_scores"] == [[1.0, 2.0], [3.0], []]
    seen.clear()
    with_units(data, pt.apply.doc_score(score), delimiter=None)
    assert [text for _, text in seen] == ["Dogs bark.", "Cats cost $5 or $6.", "Rates rose."]


def test_columns_have_their_types_also_where_no_document_has_a_unit(data):
    teacher = pt.apply.doc_score(lambda row: 1.0)
    nothing = with_units(data, teacher, spans={docno: [] for docno in TEXTS})
    assert nothing.features == with_units(data, qrels("a%s1")).features
    assert nothing[0]["spans"] == nothing[0]["unit_scores"] == [[], [], []]
    other = with_units(data, qrels("a%s0"))
    assert other._fingerprint != with_units(data, qrels("a%s1"))._fingerprint  # by which results are cached


def test_spans_may_be_given(data):
    spans = {"a": [(0, 4), (5, 30)], "b": [(0, 11)], "c": []}
    assert with_units(data, qrels("a%s0"), spans=spans)[0]["spans"][0] == [[0, 4], [5, 30]]
    with pytest.raises(ValueError, match="no entry for document 'b'"):
        with_units(data, qrels("a%s0"), spans={"a": []})
    with pytest.raises(ValueError, match="spans of document 'a': .*leaves its text"):
        with_units(data, qrels("a%s0"), spans={**spans, "a": [(0, 99)]})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (qrels("a"), "name them 'docno%s0'"),
        (qrels("a%s7"), "'a' has 2 units: other spans"),
        (qrels("a%s1", label=0), "no unit of any document is relevant"),
        (qrels("z%s0"), "no unit of any document is relevant"),
        (pt.apply.generic(lambda frame: frame.assign(score=np.nan)), "the score nan to document 'a%s0'"),
        (pt.apply.generic(lambda frame: frame), "the score nan to document 'a%s0'"),
        (pt.apply.generic(lambda frame: frame[:1].assign(score=1.0)), "no score to document 'a%s1'"),
    ],
)
def test_targets_that_fit_no_unit(data, target, message):
    with pytest.raises(ValueError, match=message):
        with_units(data, target)


def test_places_of_judgements_are_compared_where_they_are_known(data):
    judged = qrels("a%s1").assign(start=11, end=30)
    assert with_units(data, judged)[0]["unit_scores"][0] == [-np.inf, 0.0]
    with pytest.raises(ValueError, match=r"a%s1 was judged as characters \[11, 29\], and is \[11, 30\]: pass spans="):
        with_units(data, judged.assign(end=29))


def test_rows_are_checked(data):
    units = with_units(data, qrels("a%s1"))
    assert checked(units, None, UNITS).column_names == ["query", "positive", "negative_1", "negative_2", *UNITS]
    with pytest.raises(ValueError, match="lacks spans, unit_scores .*with_units adds spans and unit_scores"):
        checked(data, None, UNITS)
    with pytest.raises(ValueError, match="have units already"):
        with_units(units, qrels("a%s1"))
    for delimiter in ("<b>", ""):
        with pytest.raises(ValueError, match="one character"):
            with_units(data, qrels("a%s1"), delimiter=delimiter)
    with pytest.raises(ValueError, match="lack qid"):
        with_units(data.remove_columns("qid"), qrels("a%s1"))

    def broken(**columns):
        return checked(units.remove_columns(list(columns)).add_column(*next(iter(columns.items()))), None, UNITS)

    with pytest.raises(ValueError, match="row 0 .*unit_scores must be .* of 2 units"):
        broken(unit_scores=[[[0.0], [0.0], []]])
    with pytest.raises(ValueError, match="row 0 .*unit_scores must be"):
        broken(unit_scores=[[[0.0, np.nan], [0.0], []]])
    with pytest.raises(ValueError, match="row 0 .*spans must be one list a document"):
        broken(spans=[[[[0, 10], [11, 30]]]])
    with pytest.raises(ValueError, match="row 0 .*spans of document 1.*leaves its text"):
        broken(spans=[[[[0, 10], [11, 30]], [[0, 50]], []]])
