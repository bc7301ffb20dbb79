"""Answers with citations: written out, and judged as ALCE's program does."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.citation import citation_quality, cited_answers, cited_sentences

ANSWERS = pd.DataFrame(
    {"qid": ["1", "2", "3"], "qanswer": [" Cats purr.  Dogs bark! So it is.\n", ["It rained", "A lot."], ""]}
)


def citations(*rows) -> pd.DataFrame:
    """From (qid, sentence_id, sentence, docno), the best first."""
    frame = pd.DataFrame(rows, columns=["qid", "sentence_id", "sentence", "docno"])
    return frame.assign(rank=frame.groupby("qid").cumcount())


CITED = citations(
    ("1", 0, "Cats purr.", "d5"), ("1", 2, "So it is.", "d2"), ("1", 2, "So it is.", "d5"), ("2", 1, "A lot.", "d1")
)


def test_all_sentences_are_listed():
    out = cited_sentences(CITED, ANSWERS)
    expected = [
        ("1", 0, "Cats purr.", 1, 11, ["d5"]),
        ("1", 1, "Dogs bark!", 13, 23, []),
        ("1", 2, "So it is.", 24, 33, ["d2", "d5"]),
        ("2", 0, "It rained", 0, 9, []),
        ("2", 1, "A lot.", 10, 16, ["d1"]),
    ]
    assert list(out.itertuples(index=False, name=None)) == expected
    assert list(out.columns) == ["qid", "sentence_id", "sentence", "sentence_start", "sentence_end", "docnos"]


def test_numbers_are_written_behind_sentences():
    out = cited_answers(CITED, ANSWERS)
    assert out["qanswer_cited"].tolist() == [
        " Cats purr. [1]  Dogs bark! So it is. [2][1]\n",
        "It rained A lot. [1]",
        "",
    ]
    assert out["qcitations"].tolist() == [["d5", "d2"], ["d1"], []]
    assert out["qanswer"].tolist() == ANSWERS["qanswer"].tolist()
    assert out["qid"].tolist() == ["1", "2", "3"]


def test_answers_may_be_repeated_beside_passages():
    frame = pd.concat([ANSWERS, ANSWERS.iloc[::-1]]).assign(docno="d")
    pd.testing.assert_frame_equal(cited_answers(CITED, frame), cited_answers(CITED, ANSWERS))


def test_without_citations_answers_stay_as_they_are():
    none = CITED.iloc[:0]
    assert cited_answers(none, ANSWERS)["qanswer_cited"].tolist() == [ANSWERS["qanswer"][0], "It rained A lot.", ""]
    assert not cited_sentences(none, ANSWERS)["docnos"].map(len).any()
    for function, columns in ((cited_sentences, 6), (cited_answers, 4)):
        assert function(none, ANSWERS.iloc[:0]).shape == (0, columns)


def test_order_is_by_rank():
    again = cited_sentences(CITED.iloc[::-1], ANSWERS)
    pd.testing.assert_frame_equal(again, cited_sentences(CITED, ANSWERS))


@pytest.mark.parametrize(
    "row", [("1", 1, "Dogs meow!", "d1"), ("1", 7, "More.", "d1"), ("9", 0, "Who?", "d1"), ("3", 0, "It.", "d1")]
)
def test_citations_of_another_answer_are_an_error(row):
    number, sentence = row[1:3]
    wrong = f"sentence {number} of the answer of query '{row[0]}' is not '{sentence[:-1]}.'"
    with pytest.raises(ValueError, match=wrong):
        cited_sentences(citations(row), ANSWERS)
    with pytest.raises(ValueError, match=wrong):
        cited_answers(citations(row), ANSWERS)


def test_the_wrong_one_of_several_sentences_is_named():
    mixed = citations(("1", 1, "Dogs bark!", "d1"), ("1", 1, "Dogs meow!", "d2"))
    with pytest.raises(ValueError, match="is not 'Dogs meow!'"):
        cited_sentences(mixed, ANSWERS)


def test_equal_ranks_stay_in_order():
    """Such as of the citations of two stages, one after the other."""
    docnos = [f"d{i}" for i in range(50, 0, -1)]
    tied = citations(*(("1", 1, "Dogs bark!", docno) for docno in docnos)).assign(rank=np.arange(50) % 2)
    assert cited_sentences(tied, ANSWERS)["docnos"][1] == docnos[::2] + docnos[1::2]


def test_another_splitter(tiny_encoder):
    answers = pd.DataFrame({"qid": ["1"], "qanswer": ["a cat sat on the mat"], "docno": ["d"], "text": ["a mat"]})
    split = mv.Phrases(3)
    out = mv.AGRaME(tiny_encoder).cite(splitter=split)(answers)
    assert cited_answers(out, answers, split)["qanswer_cited"].tolist() == ["a cat sat [1] on the mat [1]"]
    with pytest.raises(ValueError, match="was it cut otherwise"):
        cited_answers(out, answers)


# ----------------------------------------------------------------- ALCE

WORDS = {"x": "a", "y": "b", "z": "c", "ab": "a b"}


def has_all(premise: str, hypothesis: str) -> bool:
    """A judge: the premise has every word of the hypothesis."""
    return set(hypothesis.split()) <= set(premise.split())


def judged(*sentences, qid="1") -> pd.DataFrame:
    return pd.DataFrame([(qid, *one) for one in sentences], columns=["qid", "sentence", "docnos"])


@pytest.mark.parametrize(
    ("docnos", "recall", "precision"),
    [
        (["x", "y"], 1, 1),  # together, neither alone: the specification's toy example
        (["x", "y", "z"], 1, 2 / 3),  # and its second: the third is of no use
        (["ab"], 1, 1),
        (["ab", "x"], 1, 1 / 2),
        (["ab", "ab"], 1, 1),  # each does alone
        (["x"], 0, 0),
        (["x", "z"], 0, 0),
        ([], 0, 0),
        (["ab", "unknown"], 0, 0),
    ],
)
def test_one_sentence(docnos, recall, precision):
    quality = citation_quality(judged(("a b", docnos)), WORDS, has_all)
    assert (quality.recall, quality.precision) == pytest.approx((100 * recall, 100 * precision))


def test_recall_is_over_sentences_and_precision_over_citations():
    first = judged(("a b", ["x", "y", "z"]), ("a", []), ("c", ["x"]), ("b", ["unknown", "y"]))
    quality = citation_quality(pd.concat([first, judged(("a", ["x"]), qid="2")]), WORDS, has_all)
    expected = [("1", 1 / 4, 2 / 4), ("2", 1.0, 1.0)]  # those of an unknown passage do not count
    assert list(quality.answers.itertuples(index=False, name=None)) == expected
    assert (quality.recall, quality.precision) == (62.5, 75.0)


def reference(sentences: pd.DataFrame, passages: dict[str, str], entails) -> tuple[float, float]:
    """Over one answer, written after the paper's section 3: a citation is of no use if it is irrelevant."""
    recalls, precisions = [], []
    for sentence, docnos in zip(sentences["sentence"], sentences["docnos"]):
        texts = [passages[d] for d in docnos]
        recall = bool(texts) and entails("\n".join(texts), sentence)
        recalls.append(recall)
        for i, text in enumerate(texts):
            rest = [t for j, t in enumerate(texts) if j != i]
            irrelevant = not entails(text, sentence) and bool(rest) and entails("\n".join(rest), sentence)
            precisions.append(recall and not irrelevant)
    return np.mean(recalls), np.mean(precisions) if precisions else 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "a b", "a b c"]), st.lists(st.sampled_from(list(WORDS)), max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_quality_is_what_the_paper_says(rows):
    sentences = judged(*rows)
    answers = citation_quality(sentences, WORDS, has_all).answers
    assert tuple(answers.loc[0, ["recall", "precision"]]) == pytest.approx(reference(sentences, WORDS, has_all))


def test_the_judge_reads_passages_in_order_one_a_line():
    asked = []

    def judge(premise, hypothesis):
        asked.append((premise, hypothesis))
        return premise == "b\na"

    citation_quality(judged(("a b", ["y", "x"])), WORDS, judge)
    assert asked == [("b\na", "a b"), ("b", "a b"), ("a", "a b"), ("a", "a b"), ("b", "a b")]


def test_a_sentence_without_citations_is_not_judged():
    quality = citation_quality(judged(("a b", []), ("a", ["unknown"])), WORDS, lambda *_: pytest.fail("was asked"))
    assert (quality.recall, quality.precision) == (0, 0)


def test_nothing_to_judge_is_an_error():
    with pytest.raises(ValueError, match="no sentence to judge"):
        citation_quality(judged(), WORDS, has_all)


def test_from_passages_to_quality(tiny_encoder):
    frame = pd.DataFrame(
        {"qid": "1", "docno": ["x", "y"], "text": ["a cat sat", "the dog ran"], "qanswer": "the dog ran. a cat."}
    )
    out = mv.AGRaME(tiny_encoder).cite(splitter=mv.Phrases(3))(frame)
    sentences = cited_sentences(out, frame, mv.Phrases(3))
    assert sentences["sentence"].tolist() == ["the dog ran.", "a cat."]
    assert citation_quality(sentences, dict(zip(frame["docno"], frame["text"])), lambda *_: True).recall == 100


@pytest.mark.parametrize("docnos", [None, "['d1']", float("nan")])
def test_citations_that_are_no_list_are_no_citations(docnos):
    sentences = pd.DataFrame({"qid": ["1", "1"], "sentence": ["a", "b"], "docnos": [["d1"], docnos]})
    with pytest.raises(ValueError, match="docnos must be a list of docnos for each sentence"):
        mv.citation.citation_quality(sentences, {"d1": "a"}, lambda premise, hypothesis: True)
