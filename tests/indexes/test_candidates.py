"""Retrieval through candidates that codes pick: what it finds, what it leaves exact, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import builder, quantize, stages
from pyterrier_mvret.indexes.segments import DamagedIndexError

from .test_codecs import clustered, unit
from .vectors import build


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("candidates") / "index.mv"
    return mv.MultiVecIndex(path, dtype="float32", quantize=True).index(clustered(400))


@pytest.fixture
def queries():
    rng = np.random.default_rng(5)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(8)], "query_embs": [unit(rng, 6, 16) for _ in range(8)]})


def same(a, b):
    columns = ["qid", "docno", "rank"]
    pd.testing.assert_frame_equal(a[columns], b[columns])
    np.testing.assert_allclose(a["score"], b["score"], atol=1e-5)


def test_as_many_candidates_as_documents_is_exact(index, queries):
    exact = index.retriever(num_results=50, candidates=None)(queries)
    same(index.retriever(num_results=50, candidates=400)(queries), exact)
    same(index.retriever(num_results=50, candidates=10**6)(queries), exact)
    same(index.retriever(num_results=50)(queries), exact)  # "auto" is 4,096


def test_a_quarter_of_the_documents_holds_nearly_all_of_the_best(index, queries):
    exact = index.retriever(num_results=10, candidates=None)(queries)
    found = index.retriever(num_results=10, candidates=100)(queries)
    assert len(exact.merge(found, on=["qid", "docno"])) >= 0.95 * len(exact)
    scores = exact.merge(found, on=["qid", "docno"])
    np.testing.assert_allclose(scores["score_x"], scores["score_y"], atol=1e-5)  # exact, whatever was picked


def test_no_more_come_back_than_were_scored(index, queries):
    found = index.retriever(num_results=50, candidates=7)(queries)
    assert found.groupby("qid").size().tolist() == [7] * 8
    assert not found["docno"].eq("d7").any()  # a document without vectors


def test_weights_of_query_tokens_count_among_candidates(index, queries):
    weighted = queries.assign(query_weights=[np.array([0, 0, 9, 0, 0, 1], np.float32)] * 8)
    exact = index.retriever(num_results=10, candidates=None)(weighted)
    found = index.retriever(num_results=10, candidates=100)(weighted)
    assert len(exact.merge(found, on=["qid", "docno"])) >= 0.9 * len(exact)


def test_segments_without_codes_are_scored_whole(tmp_path, queries):
    index = mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32", quantize=True).index(clustered(100))
    few = [{**d, "docno": f"few{i}"} for i, d in enumerate(clustered(20, seed=4))]  # too few to learn from
    index.index(few, mode="append")
    many = [{**d, "docno": f"many{i}"} for i, d in enumerate(clustered(100, seed=5))]
    index.index(many, mode="append")
    assert [s.quantized for s in index.store.segments] == [True, False, True]
    found = index.retriever(num_results=None, candidates=21)(queries)
    counts = found[found["qid"] == "q0"]["docno"].str.extract(r"([a-z]+)")[0].value_counts()
    assert counts["few"] == 19  # all but the one without vectors
    assert counts.drop("few").sum() == 21
    exact = index.retriever(num_results=5, candidates=None)(queries)
    assert len(exact.merge(index.retriever(num_results=5, candidates=150)(queries), on=["qid", "docno"])) >= 38


def test_a_cutoff_does_not_change_what_is_found(index, queries):
    for settings in ({}, {"candidates": 30}, {"num_results": None}, {"num_results": 10_000}, {"candidates": None}):
        stage = index.retriever(**settings)
        same((stage % 5).compile()(queries), (stage % 5)(queries))
    assert index.retriever().fuse_rank_cutoff(5).num_results == 5
    assert index.retriever(num_results=10_000).fuse_rank_cutoff(5) is None
    assert index.retriever(num_results=None).fuse_rank_cutoff(5).candidates is None


def test_candidates_need_codes(path, queries):
    index = build(path)
    assert not index.info()["quantized"]
    frame = queries.assign(query_embs=[unit(np.random.default_rng(0), 3, 6)] * 8)
    with pytest.raises(ValueError, match="cannot pick 10 candidates: without quantize=True"):
        index.retriever(candidates=10)(frame)
    for wrong in (0, -1, 1.5, "all"):
        with pytest.raises(ValueError, match="candidates must be"):
            index.retriever(candidates=wrong)


def test_distances_are_ranked_by_products_only_for_vectors_of_length_one(tmp_path, index, queries):
    l2 = mv.scoring.MaxSim("l2")
    same(index.retriever(l2, num_results=9)(queries), index.retriever(l2, num_results=9, candidates=None)(queries))
    longer = [{**d, "doc_embs": d["doc_embs"] * (1 + i % 3)} for i, d in enumerate(clustered(60))]
    other = mv.MultiVecIndex(tmp_path / "x.mv", quantize=True).index(longer)
    with pytest.raises(ValueError, match="distances of vectors that are not of length one"):
        other.retriever(l2, candidates=5)(queries)
    exact = other.retriever(l2, num_results=9, candidates=None)(queries)
    same(other.retriever(l2, num_results=9)(queries), exact)  # "auto" scores all


def test_codes_are_kept_from_a_size_on(path, monkeypatch):
    assert not mv.MultiVecIndex(path).index(clustered(60)).info()["quantized"]
    monkeypatch.setattr(builder, "QUANTIZED_FROM", 1500)
    assert mv.MultiVecIndex(path).index(clustered(60), mode="overwrite").info()["quantized"]
    assert not mv.MultiVecIndex(path, quantize=False).index(clustered(60), mode="overwrite").info()["quantized"]
    with pytest.raises(ValueError, match="was built with quantize=False, not True"):
        len(mv.MultiVecIndex(path, quantize=True))


def test_sixteen_bytes_a_vector(index):
    files = index.manifest["segments"][0]["files"]
    assert files["pq_codes"]["shape"] == [399 * 30, 16]
    assert index.manifest["segments"][0]["vectors"] >= quantize.FEWEST


def test_the_torch_path_finds_the_same(index, queries):
    for candidates in (None, 60):
        ours = index.retriever(num_results=20, candidates=candidates)(queries)
        same(index.retriever(num_results=20, candidates=candidates, device="cpu")(queries), ours)


def test_auto_picks_only_where_it_leaves_most_documents_out(index, queries, monkeypatch):
    exact, few = (index.retriever(num_results=20, candidates=count)(queries) for count in (None, 30))
    assert not few["docno"].equals(exact["docno"])
    monkeypatch.setattr(stages, "AUTO_CANDIDATES", 30)
    same(index.retriever(num_results=20)(queries), few)
    monkeypatch.setattr(stages, "AUTO_CANDIDATES", 201)  # more than half of 400
    same(index.retriever(num_results=20)(queries), exact)
    monkeypatch.setattr(stages, "AUTO_CANDIDATES", 30)
    assert index.retriever(num_results=50)(queries).groupby("qid").size().tolist() == [50] * 8
    assert len(index.retriever(num_results=None)(queries)) == 8 * 399


def test_auto_picks_only_for_rules_that_codes_rank_by(index, queries, monkeypatch):
    monkeypatch.setattr(stages, "AUTO_CANDIDATES", 30)
    one, two = (mv.scoring.Alignment(mv.TopK(k)) for k in (1, 2))
    few, all_ = (
        [index.retriever(rule, num_results=20, candidates=count)(queries) for rule in (one, two)]
        for count in (30, None)
    )
    same(index.retriever(one, num_results=20)(queries), few[0])
    same(index.retriever(two, num_results=20)(queries), all_[1])
    assert not few[1]["docno"].equals(all_[1]["docno"])


def test_a_large_segment_without_codes_hides_no_other(tmp_path, queries):
    path = tmp_path / "x.mv"
    index = mv.MultiVecIndex(path, dtype="float32", quantize=False).index(clustered(120))
    index = mv.MultiVecIndex(path)
    manifest = index.manifest
    manifest["quantize"] = True  # as if the first segment had been too small
    (path / "pt_meta.json").write_text(json.dumps(manifest))
    near = [{"docno": f"best{i}", "doc_embs": np.concatenate([q, q])} for i, q in enumerate(queries["query_embs"])]
    rest = [{**d, "docno": f"new{i}"} for i, d in enumerate(clustered(100, seed=8))]
    index.index(near + rest, mode="append")
    found = index.retriever(num_results=10, candidates=30)(queries)
    assert found[found["rank"] == 0]["docno"].tolist() == [f"best{i}" for i in range(8)]


def test_auto_counts_documents_with_codes(tmp_path, queries, monkeypatch):
    index = mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32", quantize=True).index(clustered(60))
    index.index([{**d, "docno": f"few{i}"} for i, d in enumerate(clustered(30, seed=4))], mode="append")
    monkeypatch.setattr(stages, "AUTO_CANDIDATES", 31)  # twice that is more than 60
    same(index.retriever(num_results=9)(queries), index.retriever(num_results=9, candidates=None)(queries))


def test_one_longer_vector_is_enough_to_refuse_distances(tmp_path, queries):
    docs = clustered(60)
    docs[50]["doc_embs"][3] *= 0.5
    index = mv.MultiVecIndex(tmp_path / "x.mv", quantize=True).index(docs)
    with pytest.raises(ValueError, match="not of length one"):
        index.retriever(mv.scoring.MaxSim("l2"), candidates=5)(queries)
    index.index([{**d, "docno": f"more{i}"} for i, d in enumerate(clustered(60))], mode="append")
    with pytest.raises(ValueError, match="not of length one"):  # all segments count
        index.retriever(mv.scoring.MaxSim("l2"), candidates=5)(queries)


def test_vectors_too_long_to_be_learned_from(tmp_path):
    docs = clustered(60)
    docs[3]["doc_embs"] = docs[3]["doc_embs"] * np.float32(1e21)
    with pytest.raises(ValueError, match="too long for their distances"):
        mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32", quantize=True).index(docs)
    assert not (tmp_path / "x.mv").exists()
    assert len(mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32").index(docs)) == 60


def test_queries_beyond_float32_are_an_error_through_candidates_too(index, queries):
    for huge in (
        queries.assign(query_embs=[np.full((6, 16), 3e38, np.float32)] * 8),
        queries.assign(query_weights=[np.full(6, 3e38, np.float32)] * 8),
    ):
        with pytest.raises(ValueError, match="a score is not finite"):
            index.retriever(candidates=10)(huge)


def test_settings_of_other_types_are_refused(tmp_path):
    with pytest.raises(ValueError, match="quantize must be"):
        mv.MultiVecIndex(tmp_path / "x.mv", quantize="yes")
    index = mv.MultiVecIndex(tmp_path / "x.mv", quantize=np.True_).index(clustered(60))
    assert index.info()["quantized"] is True
    with pytest.raises(ValueError, match="candidates must be"):
        index.retriever(candidates=True)


@pytest.mark.parametrize("lost", ["pq_rotation", "docnos"])
def test_a_manifest_that_forgets_a_file_is_damaged(tmp_path, lost):
    path = tmp_path / "x.mv"
    index = mv.MultiVecIndex(path, quantize=True).index(clustered(60))
    manifest = json.loads(json.dumps(index.manifest))
    del manifest["segments"][0]["files"][lost]
    (path / "pt_meta.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedIndexError, match=f"lacks {lost}"):
        len(mv.MultiVecIndex(path))
