"""Weights of document tokens: stored with the vectors, and read by rules that have any use for them."""

import json

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import segments
from pyterrier_mvret.scoring import Alignment, MaxSim, align_packed, rule_of
from tests.indexes.vectors import DIM, documents, topics


def weighed(seed=0, **settings):
    rng = np.random.default_rng(seed)
    docs = documents(seed=seed, **settings)
    return [{**d, "doc_weights": rng.random(len(d["doc_embs"])).astype(np.float32)} for d in docs]


def asked(seed=1):
    rng = np.random.default_rng(seed)
    return topics().assign(query_weights=lambda t: [rng.random(len(e)).astype(np.float32) for e in t["query_embs"]])


def expected(docs, row, rule):
    scores = {}
    for d in docs:
        weights = row.query_weights, d["doc_weights"]
        how = {"normalizer": rule.normalizer, "align_over": rule.align_over}
        offsets = np.array([0, len(d["doc_embs"])])
        scores[d["docno"]] = align_packed(row.query_embs, d["doc_embs"], offsets, rule.strategy, *weights, **how)[0]
    return scores


RULES = [
    Alignment(mv.TopK(1)),
    Alignment(mv.TopK(3), normalizer="query"),
    Alignment(mv.TopP(0.5), align_over="salient"),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("appended", [False, True], ids=["one segment", "two segments"])
def test_scores_are_those_of_vectors_and_weights(path, rule, appended):
    docs, index = weighed(), mv.MultiVecIndex(path, dtype="float32")
    index.index(docs[:30] if appended else docs)
    if appended:
        index.indexer("append").index(docs[30:])
    found = index.retriever(rule, num_results=None)(asked())
    for row in asked().itertuples():
        group = found[found["qid"] == row.qid].set_index("docno")["score"]
        scores = {d: s for d, s in expected(docs, row, rule).items() if s > -1e8}
        assert set(group.index) == set(scores)
        np.testing.assert_allclose(group, [scores[d] for d in group.index], atol=1e-5)
    rescored = index.scorer(rule)(found)
    np.testing.assert_allclose(rescored["score"], found["score"], atol=1e-6)


@pytest.mark.parametrize("rule", [MaxSim(), Alignment(mv.TopK(2), salience=False)], ids=str)
def test_rules_without_salience_do_not_read_them(path, tmp_path, rule):
    docs = weighed()
    bare = [{k: v for k, v in d.items() if k != "doc_weights"} for d in docs]
    with_weights, without = mv.MultiVecIndex(path).index(docs), mv.MultiVecIndex(tmp_path / "bare.mv").index(bare)
    a, b = (i.retriever(rule)(topics()) for i in (with_weights, without))
    pd.testing.assert_frame_equal(a, b)


def test_weights_that_a_rule_ignores_pick_no_candidates(path):
    index = mv.MultiVecIndex(path, quantize=True).index(weighed(n=400))
    retrieve = index.retriever(Alignment(mv.TopK(2), salience=False), candidates=5, num_results=5)
    lopsided = topics().assign(query_weights=lambda t: [np.eye(len(e), dtype=np.float32)[0] for e in t["query_embs"]])
    found = retrieve(lopsided).drop(columns="query_weights")
    pd.testing.assert_frame_equal(found[retrieve(topics()).columns], retrieve(topics()))


def test_they_come_back_with_the_vectors(path):
    docs, index = weighed(), mv.MultiVecIndex(path)
    index.index(docs)
    assert index.manifest["store_weights"]
    loaded = index.vec_loader()(pd.DataFrame({"docno": ["d7", "d5"]}))
    for weights, i in zip(loaded["doc_weights"], (7, 5), strict=True):
        np.testing.assert_array_equal(weights, docs[i]["doc_weights"])
    again = mv.MultiVecIndex(path.with_name("again.mv")).index(loaded)
    assert again.manifest["store_weights"]


def test_whether_they_are_stored_is_said_or_told_by_the_first_document(path, tmp_path):
    docs = weighed()
    off = mv.MultiVecIndex(tmp_path / "off.mv", store_weights=False).index(docs)
    assert not off.manifest["store_weights"]
    assert "doc_weights" not in off.vec_loader()(pd.DataFrame({"docno": ["d1"]})).columns
    with pytest.raises(ValueError, match="document 'd0' has no doc_weights"):
        mv.MultiVecIndex(path, store_weights=True).index(documents())
    assert not path.exists()
    with pytest.raises(ValueError, match="built without store_weights=True"):
        len(mv.MultiVecIndex(tmp_path / "off.mv", store_weights=True))
    with pytest.raises(ValueError, match="document 'd1' has no doc_weights"):
        mv.MultiVecIndex(path).index([docs[0], documents()[1]])


def test_an_index_without_documents_is_told_by_who_appends(path):
    mv.MultiVecIndex(path).index([])
    asking = mv.MultiVecIndex(path, store_weights=True)
    with pytest.raises(ValueError, match="document 'd0' has no doc_weights"):
        asking.indexer("append").index(documents())
    assert asking.indexer("append").index(weighed()).manifest["store_weights"]


def test_documents_without_them_do_not_join_those_with_them(path):
    index = mv.MultiVecIndex(path).index(weighed())
    with pytest.raises(ValueError, match="document 'n0' has no doc_weights"):
        index.indexer("append").index(documents(3, prefix="n"))
    index.indexer("append").index(weighed(n=3, prefix="n"))
    assert len(index) == 53


@pytest.mark.parametrize("value", [[-0.1, 1.0], [np.nan, 1.0], [np.inf, 1.0], [1.0], [[1.0, 1.0]], ["a", "b"]], ids=str)
def test_numbers_that_are_no_weights_are_refused(path, value):
    record = {"docno": "d", "doc_embs": np.eye(DIM)[:2], "doc_weights": np.array(value)}
    with pytest.raises(ValueError, match="doc_weights of document 'd' must be finite numbers of at least 0 of shape"):
        mv.MultiVecIndex(path).index([record])


def test_an_index_of_an_earlier_format_has_none(path):
    index = mv.MultiVecIndex(path).index(documents())
    file = path / segments.MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["store_weights"]
    file.write_text(json.dumps({**manifest, "version": 2}))
    old = mv.MultiVecIndex(path)
    pd.testing.assert_frame_equal(old.retriever()(topics()), index.retriever()(topics()))
    old.indexer("append").index(documents(3, prefix="n"))
    assert len(old) == 53
    with pytest.raises(ValueError, match="built without store_weights=True"):
        len(mv.MultiVecIndex(path, store_weights=True))


def test_a_damaged_array_of_weights_is_found(path):
    index = mv.MultiVecIndex(path).index(weighed())
    (file,) = path.glob("segment-*/token_weights.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(segments.DamagedIndexError, match="token_weights"):
        index.verify()
    file.write_bytes(content[:-4])
    with pytest.raises(segments.DamagedIndexError, match="truncated"):
        len(mv.MultiVecIndex(path))


@pytest.mark.parametrize("rule", [*RULES, Alignment(mv.TopK(2), salience=False), MaxSim("l2", "query")], ids=str)
def test_the_rule_of_the_model_that_built_it_is_the_default(path, rule):
    made = json.dumps({"space": "m#1", "scoring": rule.describe()})
    index = mv.MultiVecIndex(path).index({**d, "doc_encoder": made} for d in weighed())
    assert mv.MultiVecIndex(path).scoring == rule
    pd.testing.assert_frame_equal(index.retriever()(asked()), index.retriever(rule)(asked()))


def test_documents_join_whatever_alignment_their_model_has(path):
    first, other = (Alignment(mv.TopK(k)) for k in (2, 7))
    made = [json.dumps({"space": "m#1", "scoring": rule.describe()}) for rule in (first, other, MaxSim())]
    index = mv.MultiVecIndex(path).index({**d, "doc_encoder": made[0]} for d in weighed())
    index.indexer("append").index([{**weighed()[0], "docno": "new", "doc_encoder": made[1]}])
    assert len(index) == 51
    assert index.scoring == first  # the default stays
    with pytest.raises(ValueError, match="was built with scoring="):
        index.indexer("append").index([{**weighed()[0], "docno": "newer", "doc_encoder": made[2]}])


def test_an_alignment_of_another_version_is_no_rule():
    with pytest.raises(ValueError, match="one of TopK, TopP"):
        rule_of({"alignment": {"name": "TopQ", "q": 1}})
