"""What a pair scorer learns from: candidates of a first stage, with relevant documents put in or not."""

import numpy as np
import pandas as pd
import pytest

from pyterrier_mvret.training.candidate_sets import asked, candidate_sets, held_out, relevant_sets, unit

VECTORS = {name: np.array(v, np.float32) for name, v in zip("abcdef", np.eye(6) + 0.1)}


def results(found: dict[str, str], with_vectors=True) -> pd.DataFrame:
    rows = [
        {"qid": qid, "query_vec": VECTORS["a"] * 2, "docno": d, "doc_vec": VECTORS[d], "score": 9.0 - r, "rank": r}
        for qid, docnos in found.items()
        for r, d in enumerate(docnos)
    ]
    frame = pd.DataFrame(rows)
    return frame if with_vectors else frame.drop(columns="doc_vec")


def judged(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


class Loader:
    """As an index's ``vec_loader``; counts what is asked for."""

    def vec_loader(self):
        return lambda frame: frame.assign(doc_vec=[VECTORS[d] for d in frame["docno"]])


def named(sets):
    return [[sets.docnos[at] if at >= 0 else None for at in row] for row in sets.candidates.tolist()]


def test_candidates_gains_and_scores_by_rank():
    frame = results({"1": "abc", "2": "dc"}).iloc[::-1].set_axis([0] * 5)
    sets = candidate_sets(frame, judged(("1", "b", 2), ("2", "c", 1), ("2", "d", 0)))
    by_qid = dict(zip(sets.qids, zip(named(sets), sets.gains.tolist(), sets.scores.tolist())))
    assert by_qid == {
        "1": (["a", "b", "c"], [0, 2, 0], [9, 8, 7]),
        "2": (["d", "c", None], [0, 1, 0], [9, 8, 0]),
    }
    np.testing.assert_allclose(np.linalg.norm(sets.documents, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(sets.queries, axis=1), 1, rtol=1e-6)
    assert sets.left_out == 0
    raw = candidate_sets(frame, judged(("1", "b", 2)), normalize=False)
    np.testing.assert_array_equal(raw.queries[0], VECTORS["a"] * 2)


def test_depth_goes_by_rank():
    sets = candidate_sets(results({"1": "cab"}), judged(("1", "a", 1)), depth=2)
    assert named(sets) == [["c", "a"]]


@pytest.mark.parametrize("index", [None, Loader()])
def test_relevant_documents_take_the_place_of_the_last_irrelevant_ones(index):
    frame = results({"1": "abc", "2": "dea"}, with_vectors=index is None)
    qrels = judged(("1", "a", 1), ("1", "d", 1), ("1", "e", 3), ("2", "d", 1), ("2", "f", 2))
    sets = candidate_sets(frame, qrels, index=index)
    # one irrelevant document stays; without an index, f has no vector
    assert named(sets)[0] == ["a", "b", "e"]
    assert sets.gains.tolist()[0] == [1, 0, 3]
    assert sets.scores[0, 2] == 7
    assert named(sets)[1] == (["d", "e", "f"] if index else ["d", "e", "a"])


def test_without_a_relevant_candidate():
    frame, qrels = results({"1": "abc", "2": "de"}), judged(("1", "f", 1), ("2", "e", 1), ("3", "a", 1))
    dropped = candidate_sets(frame, qrels, missing="drop")
    assert (dropped.qids, dropped.left_out) == (["2"], 2)
    kept = candidate_sets(frame, qrels, missing="keep")
    assert sorted(kept.qids) == ["1", "2"]
    with pytest.raises(ValueError, match="no query has a relevant document among its candidates"):
        candidate_sets(frame, judged(("1", "f", 1)), missing="drop")
    with pytest.raises(ValueError, match="no judgement of a relevant document"):
        candidate_sets(frame, judged())
    with pytest.raises(ValueError, match="no queries"):
        candidate_sets(frame.iloc[:0], qrels)
    for missing in ("inject", "drop", "keep"):
        with pytest.raises(ValueError, match="queries are '1', ..., judgements of 1, ..."):
            candidate_sets(frame, judged((1, "a", 1)), missing=missing)


def test_relevant_documents_that_an_index_lacks_are_not_put_in():
    class Says(Loader):
        def holds(self, docnos):
            return np.array([d in VECTORS for d in docnos])

    frame, qrels = results({"1": "ab"}, with_vectors=False), judged(("1", "zzz", 2), ("1", "c", 1))
    assert named(candidate_sets(frame, qrels, index=Says())) == [["a", "c"]]
    with pytest.raises(KeyError, match="zzz"):  # others must have them all
        candidate_sets(frame, qrels, index=Loader())


def test_labels():
    frame = results({"1": "abc"})
    for rows in ((("1", "b", 2), ("1", "b", 1)), (("1", "b", 1), ("1", "b", 2), ("1", "b", 0))):
        assert candidate_sets(frame, judged(*rows)).gains.tolist() == [[0, 2, 0]]
        sets = relevant_sets(frame, judged(*rows), list(VECTORS), np.stack(list(VECTORS.values())))
        assert (named(sets), sets.gains.tolist()) == ([["b"]], [[2]])
    with pytest.raises(ValueError, match="labels of qrels must be numbers, got '1'"):
        candidate_sets(frame, judged(("1", "b", "1")))
    # a query with no label above -2, as there are for web pages: evaluating it as it is crashes
    qrels = judged(("1", "b", 1), ("1", "a", -1), ("2", "a", -2))
    sets = candidate_sets(results({"1": "abc", "2": "ab"}), qrels, missing="keep")
    assert sets.measured(sets.scores, qrels, "RR@10") == 0.25
    assert sets.measured(sets.scores, qrels, "nDCG@10") == pytest.approx(0.5 / np.log2(3))


def test_only_topics_with_something_to_find_are_divided():
    frame = results(dict.fromkeys("123456789", "ab"))
    qrels = judged(("2", "a", 1), ("5", "a", 1), ("7", "a", 0), ("8", "b", 1))
    texts = frame["qid"].where(frame["rank"] == 0, None)  # a text in one of a query's rows
    for data in (frame, frame.assign(query=texts), frame.assign(query=None)):
        for seed in range(5):
            train, valid = (set(part["qid"]) for part in held_out(data, qrels, 0.3, seed))
            assert not train & valid and train | valid == {"2", "5", "8"}
    with pytest.raises(ValueError, match="one judged query cannot be divided in two"):
        held_out(frame, judged(("2", "a", 1)), 0.3, 0)
    with pytest.raises(ValueError, match="valid is a share"):
        held_out(frame, qrels, -1, 0)


def test_measured_as_pyterrier_does():
    frame, qrels = results({"1": "abc", "2": "de"}), judged(("1", "b", 1), ("2", "e", 1), ("3", "a", 1))
    sets = candidate_sets(frame, qrels, missing="keep")
    assert sets.measured(sets.scores, qrels, "RR@10") == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert sets.measured(-sets.scores, qrels, "recip_rank") == pytest.approx((0.5 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: pd.concat([f, f.iloc[:1]]), "query '1' has candidate 'a' twice"),
        (lambda f: f.assign(query_vec=None), "column 'query_vec' has no value in any row of query '1'"),
        (lambda f: f.assign(doc_vec=[np.full(6, np.nan)] * 2), "doc_vec of document 'a': holds NaN"),
        (lambda f: f.assign(doc_vec=[np.ones(6), np.ones(5)]), "doc_vec of document 'b' has 5 dimensions, the first"),
        (lambda f: f.assign(query_vec=[np.ones(5)] * 2), "must all have as many dimensions"),
        (lambda f: f.assign(query_vec=[np.ones((2, 5))] * 2), "query_vec of query '1': expected"),
    ],
)
def test_what_is_no_set(change, message):
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        candidate_sets(results({"1": "ab"}), judged(("1", "b", 1)), depth=0)
    with pytest.raises(ValueError, match=message):
        candidate_sets(change(results({"1": "ab"})), judged(("1", "b", 1)))
    with pytest.raises(ValueError, match="missing must be one of inject, drop, keep"):
        candidate_sets(results({"1": "ab"}), judged(("1", "b", 1)), missing="add")


def test_relevant_documents_among_all():
    topics = pd.DataFrame({"qid": ["1", "2"], "query_vec": [VECTORS["a"] * 3, VECTORS["b"]]})
    documents = np.stack(list(VECTORS.values()))
    qrels = judged(("1", "c", 1), ("1", "a", 2), ("2", "zzz", 1), ("2", "b", 0), ("9", "a", 1))
    sets = relevant_sets(topics, qrels, list(VECTORS), documents)
    assert (sets.qids, named(sets), sets.gains.tolist()) == (["1"], [["c", "a"]], [[1, 2]])
    np.testing.assert_allclose(sets.queries[0], unit(VECTORS["a"][None])[0], rtol=1e-6)
    with pytest.raises(ValueError, match="no topic has a relevant document in the index"):
        relevant_sets(topics, judged(("2", "zzz", 1)), list(VECTORS), documents)
    with pytest.raises(ValueError, match="query_vec of query '1' has 6 dimensions, documents have 4"):
        relevant_sets(topics, qrels, list(VECTORS), documents[:, :4])


def test_pairs_as_topics_and_judgements():
    frame = pd.DataFrame({"query_vec": [VECTORS["a"], VECTORS["b"]], "docno": ["a", "b"]})
    for pairs in (frame, [(VECTORS["a"], "a"), (VECTORS["b"], "b")], iter([(VECTORS["a"], "a"), (VECTORS["b"], "b")])):
        topics, qrels = asked(pairs)
        assert qrels.to_numpy().tolist() == [["0", "a", 1], ["1", "b", 1]]
        np.testing.assert_array_equal(topics["query_vec"][1], VECTORS["b"])
    assert len(asked([])[0]) == 0
    with pytest.raises(ValueError, match="query_vec of pair 1: holds NaN"):
        asked([(VECTORS["a"], "a"), (VECTORS["b"] * np.nan, "b")])


def test_pairs_of_equal_vectors_are_one_query():
    topics, qrels = asked([(VECTORS["b"], "a"), ([1, 2], "b"), (VECTORS["b"].tolist(), "c"), (VECTORS["b"], "a")])
    assert qrels["qid"].tolist() == ["0", "1", "0", "0"]
    assert topics["qid"].tolist() == ["0", "1"]
    np.testing.assert_array_equal(topics["query_vec"][1], [1, 2])


def test_vectors_of_zeros_stay():
    assert unit(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 0]]
    assert unit(np.zeros((0, 0), np.float32)).shape == (0, 0)


@pytest.mark.parametrize("length", [1e-35, 1e-20, 1e25, 1e37])
def test_vectors_whose_squares_float32_does_not_hold(length):
    vectors = np.array([[3, 4], [0.3, 0.4], [0, 0]], np.float32)
    found = unit(vectors * np.array([[length], [1], [1]], np.float32) / 4)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.6, 0.8], [0, 0]], rtol=1e-5)
    np.testing.assert_array_equal(found[1], unit(vectors[1:2] / 4)[0])
    # others beside it are what they are alone, to the last digit
    many = np.random.default_rng(0).normal(size=(50, 33)).astype(np.float32)
    np.testing.assert_array_equal(unit(np.vstack([many, 0 * many[:1]]))[:50], unit(many))
