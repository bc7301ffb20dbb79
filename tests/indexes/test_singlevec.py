import json
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret import frames
from pyterrier_mvret.scoring import fused
from tests.indexes.vectors import build as build_multi
from tests.indexes.vectors import documents as multi_documents

DIM = 6


def documents(n=60, seed=0, prefix="d"):
    """Vectors of any length, one of zeros, and pairs of equal ones."""
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    vectors[n // 2] = 0
    if fused.versions():  # in torch's products, scores of equal vectors may differ in the last digit
        vectors[n // 3 :: 7] = vectors[0]
    return [{"docno": f"{prefix}{i}", "doc_vec": vector} for i, vector in enumerate(vectors)]


def topics(n=5, seed=9):
    vectors = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(n)], "query_vec": list(vectors)})


def build(path, docs=None, **settings):
    return mv.SingleVecIndex(path, **settings).index(documents() if docs is None else docs)


def reference(docs, query, k=None):
    """Docnos and inner products, best first, equal ones by docno."""
    scored = [(d["docno"], float(np.einsum("d,d->", d["doc_vec"], query))) for d in docs]
    return sorted(scored, key=lambda s: (-s[1], s[0]))[:k]


@pytest.mark.parametrize("k", [1, 7, 60, None])
@pytest.mark.parametrize("queries", [1, 5])
def test_best_inner_products_first_equal_ones_by_docno(path, k, queries):
    docs, index = documents(), build(path)
    assert (index.info()["dtype"], index.info()["vectors"], len(index)) == ("float32", 60, 60)
    results = index.retriever(num_results=k)(topics(queries))
    assert results["score"].min() < 0 or k != 60  # negative scores are scores
    for (_, topic), (_, group) in zip(topics(queries).iterrows(), results.groupby("qid", sort=False)):
        expected = reference(docs, topic["query_vec"], k)
        assert group["docno"].tolist() == [d for d, _ in expected]
        np.testing.assert_allclose(group["score"], [s for _, s in expected], atol=1e-5)
        assert group["rank"].tolist() == list(range(len(expected)))
    pd.testing.assert_frame_equal(index.scorer()(results), results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("bfloat16", 1e-1), ("int8", 2e-1)])
def test_other_forms_of_storage(path, dtype, tolerance):
    docs, index = documents(), build(path, dtype=dtype)
    results = index.retriever(num_results=None)(topics())
    for (_, topic), (_, group) in zip(topics().iterrows(), results.groupby("qid", sort=False)):
        expected = dict(reference(docs, topic["query_vec"]))
        np.testing.assert_allclose(group["score"], [expected[d] for d in group["docno"]], atol=tolerance)
        tied = [group["docno"].tolist().index(d["docno"]) for d in docs if (d["doc_vec"] == docs[0]["doc_vec"]).all()]
        assert len(tied) > 5 or not fused.versions()
        assert max(tied) - min(tied) == len(tied) - 1  # equal documents have equal scores
    np.testing.assert_allclose(index.scorer()(results)["score"], results["score"], rtol=1e-5, atol=1e-6)
    assert index.info()["dtype"] == dtype


def test_batches_and_segments_change_nothing(path, tmp_path, monkeypatch):
    from pyterrier_mvret.indexes import stages

    docs = documents(90)
    whole, parts = build(path, docs), mv.SingleVecIndex(tmp_path / "parts.vec")
    for i, piece in enumerate((docs[:1], docs[1:40], docs[40:])):
        (parts.indexer("append") if i else parts.indexer()).index(piece)
    expected = whole.retriever()(topics(40))
    assert parts.info()["segments"] == 3
    for index in (whole, parts):
        for block, batch_size in ((7, 1), (4096, 3), (33, 64)):
            monkeypatch.setattr(stages, "_BLOCK_DOCUMENTS", block)
            got = index.retriever(batch_size=batch_size)(topics(40))
            pd.testing.assert_frame_equal(got, expected, rtol=1e-5, atol=1e-6)
    parts.verify()
    records = list(parts.get_corpus_iter())
    assert [r["docno"] for r in records] == [d["docno"] for d in docs]
    for record, d in zip(records, docs):
        np.testing.assert_array_equal(record["doc_vec"], d["doc_vec"])
    again = mv.SingleVecIndex(tmp_path / "again.vec").index(whole.get_corpus_iter())
    pd.testing.assert_frame_equal(again.retriever()(topics()), whole.retriever()(topics()))


def test_records_are_read_in_blocks(path, monkeypatch):
    from pyterrier_mvret.indexes import singlevec

    monkeypatch.setattr(singlevec, "_DOCUMENTS_AT_ONCE", 7)
    index = build(path)
    vectors = [r["doc_vec"] for r in index.get_corpus_iter()]
    np.testing.assert_array_equal(vectors, [d["doc_vec"] for d in documents()])
    assert all(v.base is None for v in vectors)
    index.index([], mode="overwrite")
    assert list(index.get_corpus_iter()) == []
    assert len(index.retriever()(topics())) == 0


def test_equal_documents_are_ranked_by_docno_whatever_their_number_and_place(path):
    vector = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
    names = [f"d{i}" for i in range(4099)]
    index = build(path, [{"docno": n, "doc_vec": vector} for n in names])
    for queries in (1, 2, 33) if fused.versions() else (1,):  # torch's products differ in the last digit
        results = index.retriever(num_results=None)(topics(queries))
        for _, group in results.groupby("qid"):
            assert group["score"].nunique() == 1
            assert group["docno"].tolist() == sorted(names)


def test_codes_pick_candidates(path, monkeypatch):
    from pyterrier_mvret.indexes import builder

    monkeypatch.setattr(builder, "QUANTIZED_FROM", 1)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    index = build(path, [{"docno": f"d{i}", "doc_vec": v} for i, v in enumerate(vectors)], quantize=True)
    assert index.info()["quantized"]
    q = topics().assign(query_vec=list(rng.standard_normal((5, 16)).astype(np.float32)))
    exact = index.retriever(num_results=5)(q)
    picked = index.retriever(num_results=5, candidates=300)(q)
    both = picked.merge(exact, on=["qid", "docno"])
    assert len(both) > 20
    np.testing.assert_allclose(both["score_x"], both["score_y"], rtol=1e-5)
    pd.testing.assert_frame_equal(index.retriever(num_results=5, candidates=None)(q), exact)
    plain = mv.SingleVecIndex(path.with_name("plain")).index(index.get_corpus_iter())
    assert not plain.info()["quantized"]  # only on request: by default nothing is missed
    pd.testing.assert_frame_equal(plain.retriever(num_results=5)(q), exact)


def test_vectors_are_loaded_with_how_they_were_made(path):
    made = json.dumps({"space": "tiny#abc", "document": {"prefix": "d: "}})
    docs = [{**d, "doc_vec_encoder": made} for d in documents()]
    index = build(path, docs)
    frame = pd.DataFrame({"docno": ["d3", "d0", "d3"], "doc_vec": "old", "doc_embs": "of another model"})
    loaded = index.vec_loader()(frame)
    assert loaded["doc_embs"].tolist() == frame["doc_embs"].tolist()
    for row, i in zip(loaded.itertuples(), (3, 0, 3)):
        np.testing.assert_array_equal(row.doc_vec, docs[i]["doc_vec"])
        assert row.doc_vec.dtype == np.float32
        assert json.loads(row.doc_vec_encoder) == json.loads(made)
    assert loaded["doc_vec"][0].base is None
    assert build(path.with_name("other"), loaded.iloc[:2].drop(columns="doc_embs")).info()["encoder"] == "tiny#abc"


def test_queries_and_documents_of_other_spaces_are_refused(path):
    made = {"space": "tiny#abc", "document": {"prefix": "d: "}}
    index = build(path, [{**d, "doc_vec_encoder": json.dumps(made)} for d in documents()])
    assert len(index.retriever()(topics().assign(query_vec_encoder="renamed#abc"))) == 300
    odd = topics().assign(query_vec_encoder="tiny#def")
    with pytest.raises(ValueError, match="vectors of encoder tiny#abc, the queries vectors of tiny#def"):
        index.retriever()(odd)
    with pytest.raises(ValueError, match="built with encoder tiny#abc; these documents come from None"):
        index.index(documents(2, prefix="x"), mode="append")
    other = json.dumps({**made, "document": {"prefix": ""}})
    with pytest.raises(ValueError, match="built with document="):
        index.index([{"docno": "x", "doc_vec": np.ones(DIM), "doc_vec_encoder": other}], mode="append")
    assert len(index) == 60


BAD = [
    (np.full(DIM, np.nan), "doc_vec of document 'x' ?: holds NaN or infinite"),
    (np.full(DIM, np.inf), "doc_vec of document 'x' ?: holds NaN or infinite"),
    (np.ones(DIM + 1), "document 'x' has vectors of 7 dimensions, the index 6"),
    (np.ones((1, DIM)), r"doc_vec of document 'x': expected a \(dim,\) array of numbers"),
    (None, "document 'x' has no doc_vec: put an encoder before the index"),
    ("text", r"doc_vec of document 'x': expected a \(dim,\) array of numbers"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_vector_that_cannot_be_stored_is_one_clear_error(path, bad, message):
    docs = [*documents(3), {"docno": "x", "doc_vec": bad}]
    with pytest.raises(ValueError, match=message):
        build(path, docs)
    assert not path.exists()
    index = build(path)
    with pytest.raises(ValueError, match=message):
        index.index(docs[3:], mode="append")
    assert len(index) == 60


def test_names_are_unique_and_known(path):
    with pytest.raises(ValueError, match="docno 'd0' occurs twice"):
        build(path, documents(2) * 2)
    with pytest.raises(ValueError, match="document 'a' has vectors of 0 dimensions"):
        build(path, [{"docno": "a", "doc_vec": []}])
    index = build(path)
    with pytest.raises(ValueError, match="docno 'd1' is already in the index"):
        index.index(documents(2)[1:], mode="append")
    r = pd.DataFrame({"qid": "q", "docno": ["d1", "nowhere"], "query_vec": [np.ones(DIM)] * 2})
    for stage in (index.scorer(), index.vec_loader()):
        with pytest.raises(ValueError, match="1 of 2 documents are not in .*: 'nowhere'"):
            stage(r)


@pytest.mark.parametrize("bad", [np.full(DIM, np.nan), np.ones((1, DIM)), np.ones(DIM + 1), "text"])
def test_bad_query_vectors_are_one_clear_error(path, bad):
    index = build(path)
    with pytest.raises(ValueError, match="query 'q'"):
        index.retriever()(pd.DataFrame({"qid": ["q"], "query_vec": [bad]}))


def test_products_beyond_float32_are_an_error(path):
    index = build(path, [{"docno": "d", "doc_vec": [3e38, 3e38]}])
    for n in (1, 2):
        with pytest.raises(ValueError, match="a score is not finite"):
            index.retriever()(topics(n).assign(query_vec=[np.full(2, 3e38)] * n))


def test_what_belongs_to_token_vectors_is_left_alone(path):
    """Frames may hold vectors of several models; weights of one model's tokens are not for another's vector."""
    docs = [{**d, "doc_weights": np.ones(4), "doc_embs": np.ones((4, 2))} for d in documents()]
    index = build(path, docs)
    extra = topics().assign(query_weights=[np.zeros(4)] * 5, query_embs=[np.ones((4, 2))] * 5, query_encoder="other#1")
    results = index.retriever()(extra)
    pd.testing.assert_series_equal(results["score"], index.retriever()(topics())["score"])
    pd.testing.assert_series_equal(index.scorer()(results)["score"], results["score"], rtol=1e-5)
    assert index.index_inputs() == [["docno", "doc_vec"]]
    assert list(index.vec_loader()(pd.DataFrame({"docno": ["d1"]}))) == ["docno", "doc_vec", "doc_vec_encoder"]


def test_a_query_given_in_one_of_its_rows(path):
    index = build(path)
    r = pd.DataFrame({"qid": "q", "docno": ["d1", "d2"], "query_vec": [None, topics(1)["query_vec"][0]]})
    assert index.scorer()(r)["score"].notna().all()
    with pytest.raises(ValueError, match="'query_vec' has no value in any row of query 'q'"):
        index.scorer()(r.assign(query_vec=None))


def test_it_is_an_artifact_of_its_own_kind(path, tmp_path):
    index = build(path)
    loaded = pt.Artifact.load(str(path))
    assert isinstance(loaded, mv.SingleVecIndex)
    pd.testing.assert_frame_equal(loaded.retriever()(topics()), index.retriever()(topics()))
    copied = pickle.loads(pickle.dumps(index))
    assert copied == index
    pd.testing.assert_frame_equal(copied.retriever()(topics()), index.retriever()(topics()))
    with pytest.raises(ValueError, match=r"holds a singlevec_index.mvret, not a multivec_index.mvret"):
        len(mv.MultiVecIndex(path))
    build_multi(tmp_path / "multi.mv", multi_documents(3))
    with pytest.raises(ValueError, match=r"holds a multivec_index.mvret, not a singlevec_index.mvret"):
        len(mv.SingleVecIndex(tmp_path / "multi.mv"))


def test_settings_are_those_of_the_index_on_disk(path):
    build(path, dtype="int8")
    assert len(mv.SingleVecIndex(path)) == 60
    with pytest.raises(ValueError, match="stores int8, and was opened with dtype='float32'"):
        len(mv.SingleVecIndex(path, dtype="float32"))
    with pytest.raises(ValueError, match="built with quantize=False, not True"):
        len(mv.SingleVecIndex(path, quantize=True))
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        mv.SingleVecIndex(path, dtype="float64")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        len(mv.SingleVecIndex(path.with_name("nowhere")))


def test_a_pipeline_from_text_to_results(path, tiny_sentence):
    from pyterrier_mvret.encoders.vector_stages import VecDocEncoder, VecQueryEncoder

    encoder, index = mv.VectorEncoder(tiny_sentence, device="cpu"), mv.SingleVecIndex(path)
    texts = {"d1": "a cat sat on the mat", "d2": "the sky is blue", "d3": ""}
    (VecDocEncoder(encoder) >> index).index([{"docno": d, "text": t} for d, t in texts.items()])
    assert index.info()["encoder"] == encoder.space
    search = VecQueryEncoder(encoder) >> index.retriever()
    results = search(pd.DataFrame({"qid": ["1", "2"], "query": ["the sky is blue", ""]}))
    assert results[results["rank"] == 0]["docno"].tolist() == ["d2", "d3"]
    np.testing.assert_allclose(results[results["rank"] == 0]["score"], 1, atol=1e-5)
    loaded = (search >> index.vec_loader())(pd.DataFrame({"qid": ["1"], "query": ["rain"]}))
    products = [np.dot(q, d) for q, d in zip(loaded["query_vec"], loaded["doc_vec"])]
    np.testing.assert_allclose(products, loaded["score"], atol=1e-6)
    assert set(frames.QUERY_VEC_COLUMNS + frames.DOC_VEC_COLUMNS) <= set(loaded.columns)
    raw = mv.VectorEncoder(tiny_sentence, normalize=False, device="cpu")
    with pytest.raises(ValueError, match="holds vectors of encoder"):
        (VecQueryEncoder(raw) >> index.retriever())(pd.DataFrame({"qid": ["1"], "query": ["rain"]}))
