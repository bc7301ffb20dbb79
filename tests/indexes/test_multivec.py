import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from tests.indexes.vectors import DIM, build, documents, topics
from tests.scoring.test_maxsim import reference


def brute_force(docs, query):
    scored = [(d["docno"], reference(query, d["doc_embs"])) for d in docs if len(d["doc_embs"])]
    return sorted(scored, key=lambda s: (-s[1], s[0]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("int8", 3e-2)])
def test_scores_are_those_of_the_vectors(path, dtype, tolerance):
    docs, index = documents(), build(path, dtype=dtype)
    results = index.retriever(num_results=None)(topics())
    for qid, group in results.groupby("qid"):
        query = topics().set_index("qid")["query_embs"][qid]
        expected = dict(brute_force(docs, query))
        assert set(group["docno"]) == set(expected)  # all documents with vectors, none without
        np.testing.assert_allclose(group["score"], [expected[d] for d in group["docno"]], atol=tolerance)
    rescored = index.scorer()(results)
    np.testing.assert_allclose(rescored["score"], results["score"], atol=1e-5)
    assert index.info()["dtype"] == dtype
    assert index.info()["empty"] == 5
    stored = index.vec_loader()(pd.DataFrame({"docno": ["d3", "d5", "d0"]}))["doc_embs"]
    for vectors, i in zip(stored, (3, 5, 0), strict=True):
        assert vectors.shape == docs[i]["doc_embs"].shape
        np.testing.assert_allclose(vectors, docs[i]["doc_embs"], atol=tolerance)


def test_best_first_and_as_many_as_asked(path):
    docs, index = documents(), build(path, dtype="float32")
    for k in (1, 3, 45, 1000):
        results = index.retriever(num_results=k)(topics())
        for qid, group in results.groupby("qid", sort=False):
            query = topics().set_index("qid")["query_embs"][qid]
            assert group["docno"].tolist() == [d for d, _ in brute_force(docs, query)[:k]]
            assert group["rank"].tolist() == list(range(min(k, 45)))
    with pytest.raises(ValueError, match="num_results must be an integer of at least 1"):
        index.retriever(num_results=0)


def test_equal_scores_are_ranked_by_docno(path):
    same = np.eye(DIM, dtype=np.float32)[:2]
    names = ["b", "a10", "a9", "c", "a"]
    index = build(path, [{"docno": n, "doc_embs": same} for n in names])
    for k in (1, 2, 3, None):
        got = index.retriever(num_results=k)(topics(1))["docno"].tolist()
        assert got == sorted(names)[: k or 5]


def test_batches_blocks_and_segments_change_nothing(path, tmp_path, monkeypatch):
    from pyterrier_mvret.indexes import stages

    docs = documents(80)
    whole = build(path, docs, dtype="float32")
    parts = mv.MultiVecIndex(tmp_path / "parts.mv", dtype="float32")
    for i, piece in enumerate((docs[:1], docs[1:40], docs[40:])):
        parts.index(piece, mode="append" if i else "create")
    assert parts.info()["segments"] == 3
    expected = whole.retriever()(topics(7))
    columns = ["qid", "docno", "rank"]
    for index in (whole, parts):
        for batch_size in (1, 3, 64):
            got = index.retriever(batch_size=batch_size)(topics(7))
            pd.testing.assert_frame_equal(got[columns], expected[columns])
            np.testing.assert_allclose(got["score"], expected["score"], atol=1e-5)
    mixed = expected.sample(frac=1, random_state=0)
    monkeypatch.setattr(stages, "_BLOCK_DOCUMENTS", 7)
    for index in (whole, parts):
        np.testing.assert_allclose(index.scorer()(mixed)["score"], mixed["score"], atol=1e-5)
        pd.testing.assert_frame_equal(index.retriever()(topics(7))[columns], expected[columns])
    names = mixed["docno"].head(20)
    for a, b in zip(whole.vec_loader()(mixed.head(20))["doc_embs"], parts.vec_loader()(mixed.head(20))["doc_embs"]):
        np.testing.assert_array_equal(a, b)
    assert parts.store.names(parts.store.positions(names.tolist())) == names.tolist()


def test_query_weights(path):
    docs, index = documents(), build(path, dtype="float32")
    q = topics(2).assign(query_weights=[np.array([1.0, 0.0, 2.0, -1.0]), np.ones(4)])
    results = index.retriever(num_results=None)(q)
    for row in results.itertuples():
        d = next(d["doc_embs"] for d in docs if d["docno"] == row.docno)
        assert row.score == pytest.approx(reference(row.query_embs, d, row.query_weights), abs=1e-4)
    np.testing.assert_allclose(index.scorer()(results)["score"], results["score"], atol=1e-5)
    for wrong in (np.ones(3), np.array([1, 2, np.nan, 1])):
        with pytest.raises(ValueError, match="query_weights of query 'q0' must be 4 finite numbers"):
            index.retriever()(topics(1).assign(query_weights=[wrong]))


def test_an_empty_document_is_scored_below_all_and_never_retrieved(path):
    index = build(path)
    r = pd.DataFrame({"qid": "q0", "docno": ["d5", "d1"], "query_embs": list(topics(1)["query_embs"]) * 2})
    scored = index.scorer()(r)
    assert scored["score"].tolist()[0] == -1e9
    assert scored["rank"].tolist() == [1, 0]
    assert "d5" not in set(index.retriever()(topics(1))["docno"])


def test_query_without_vectors_and_query_values_missing_in_some_rows(path):
    index = build(path)
    none = pd.DataFrame({"qid": ["q"], "query_embs": [np.empty((0, DIM), np.float32)]})
    assert set(index.retriever()(none)["score"]) == {0.0}
    r = pd.DataFrame({"qid": "q0", "docno": ["d1", "d2"], "query_embs": [None, topics(1)["query_embs"][0]]})
    assert index.scorer()(r)["score"].notna().all()
    with pytest.raises(ValueError, match="'query_embs' has no value in any row of query 'q0'"):
        index.scorer()(r.assign(query_embs=[None, float("nan")]))


@pytest.mark.parametrize("bad", [np.full((2, DIM), np.nan), np.ones(DIM), np.ones((2, DIM + 1)), "text"])
def test_bad_query_vectors_are_one_clear_error(path, bad):
    index = build(path)
    with pytest.raises(ValueError, match="query 'q'"):
        index.retriever()(pd.DataFrame({"qid": ["q"], "query_embs": [bad]}))


def test_unknown_docno_is_named(path):
    index = build(path)
    r = pd.DataFrame({"qid": "q0", "docno": ["d1", "nowhere"], "query_embs": list(topics(1)["query_embs"]) * 2})
    for stage in (index.scorer(), index.vec_loader()):
        with pytest.raises(ValueError, match="1 of 2 documents are not in .*: 'nowhere'"):
            stage(r)


def test_weights_of_some_queries_only_and_from_any_row(path):
    index = build(path, dtype="float32")
    weights = np.array([2.0, 0.0, 1.0, 1.0])
    some = topics(2).assign(query_weights=[weights, None])
    plain = index.retriever(num_results=None)(topics(2)).set_index(["qid", "docno"])["score"]
    mixed = index.retriever(num_results=None)(some).set_index(["qid", "docno"])["score"]
    np.testing.assert_allclose(mixed["q1"].sort_index(), plain["q1"].sort_index(), atol=1e-6)
    assert not np.allclose(mixed["q0"].sort_index(), plain["q0"].sort_index())
    r = pd.DataFrame({"qid": "q0", "docno": ["d1", "d2"], "query_embs": list(topics(1)["query_embs"]) * 2})
    rescored = index.scorer()(r.assign(query_weights=[None, weights]))
    np.testing.assert_allclose(rescored["score"], [mixed["q0"]["d1"], mixed["q0"]["d2"]], atol=1e-5)


def test_weights_of_other_vectors_are_refused(path):
    index, vectors = build(path, dtype="float32"), topics(1)["query_embs"][0]
    rows = pd.DataFrame({"qid": "q0", "docno": ["d1", "d2"], "query_weights": [None, np.ones(4)]})
    alike = rows.assign(query_embs=[vectors, vectors.copy()])
    absent = rows.assign(query_embs=[vectors, None])
    np.testing.assert_array_equal(index.scorer()(alike)["score"], index.scorer()(absent)["score"])
    with pytest.raises(ValueError, match="query_weights of query 'q0' are beside other query_embs than its first"):
        index.scorer()(rows.assign(query_embs=[vectors, vectors[::-1]]))


def test_scorer_ranks_equal_scores_by_docno_whatever_the_order_of_rows(path):
    index = build(path, [{"docno": n, "doc_embs": np.eye(DIM)[:1]} for n in "cab"])
    r = pd.DataFrame({"qid": "q0", "docno": list("cab"), "query_embs": list(topics(1)["query_embs"]) * 3})
    assert index.scorer()(r)["rank"].tolist() == [2, 0, 1]


def test_a_row_without_a_qid_is_an_error(path):
    index = build(path)
    r = pd.DataFrame({"qid": ["q0", None], "docno": ["d1", "d2"], "query_embs": list(topics(1)["query_embs"]) * 2})
    with pytest.raises(ValueError, match="row 1 has no qid"):
        index.scorer()(r)


def test_what_must_be_decoded_is_decoded_in_blocks(path, monkeypatch):
    from pyterrier_mvret.scoring import StoredVectors, maxsim

    index, sizes, decode = build(path), [], StoredVectors.floats
    monkeypatch.setattr(maxsim, "_DECODED_AT_ONCE", 10)

    def spy(self, rows):
        decoded = decode(self, rows)
        sizes.append(len(decoded))
        return decoded

    monkeypatch.setattr(StoredVectors, "floats", spy)
    l2 = mv.scoring.MaxSim("l2")  # not of the kernel's kind
    everything = index.retriever(l2, num_results=None)(topics(1))
    rescored = index.scorer(l2)(everything)
    np.testing.assert_allclose(rescored["score"], everything["score"], atol=1e-5)
    assert len(sizes) > 10
    assert max(sizes) <= 10


def test_the_kernel_reads_stored_vectors_where_they_lie(path, monkeypatch):
    from pyterrier_mvret.scoring import StoredVectors, fused

    if not fused.versions():
        pytest.skip("the extension was not compiled")
    index = build(path, dtype="int8")
    monkeypatch.setattr(StoredVectors, "floats", None)  # nothing is decoded outside the kernel
    results = index.retriever()(topics())
    np.testing.assert_allclose(index.scorer()(results)["score"], results["score"], atol=1e-6)


def test_documents_are_found_by_name_in_any_segment(path):
    names = ["a", "aa", "ä", "文書", "a\x00", "x" * 3000, "🙂"]
    vectors = {name: np.full((1, DIM), i, np.float32) for i, name in enumerate(names)}
    index = mv.MultiVecIndex(path)
    for i in range(0, len(names), 3):
        index.index([{"docno": n, "doc_embs": vectors[n]} for n in names[i : i + 3]], mode="append" if i else "create")
    asked = [*names[::-1], "a", "ä", "a"]
    assert [names[p] for p in index.store.known(asked)] == asked
    assert index.store.positions(["aaa", *asked, ""]).tolist()[:: len(asked) + 1] == [-1, -1]
    assert index.store.positions([]).tolist() == []
    with pytest.raises(ValueError, match="2 of 3 documents are not in .*: 'A', 'b', ..."):
        index.store.known(["A", "a", "b"])
    for odd in (3, None, float("nan"), "\ud83d"):
        with pytest.raises(ValueError, match="a docno must be a string, got"):
            index.store.known(["a", odd, "b"])
