"""Retrieval and rescoring from a sparse index, by every engine."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.scoring import BM25, bm25_matrix
from tests.indexes.sparse_docs import (
    ENGINES,
    FRACTION_DOCS,
    WHOLE_DOCS,
    asked,
    best,
    latents,
    matrices,
    named,
    topics,
)

each = pytest.mark.parametrize("engine", ENGINES)


def build(path, docs, engine="csr", **settings):
    return mv.SparseIndex(path, engine, **settings).index(docs)


def scores_of(results, qid="q0"):
    return dict(results[results["qid"] == qid][["docno", "score"]].itertuples(index=False))


@each
def test_the_tables_worked_by_hand(path, tmp_path, engine):
    index = build(path, WHOLE_DOCS, engine)
    for k1, b, weight, expected in (
        (8, 0.7, 1, (3.724341, 0.899480)),
        (0.9, 0.4, 1, (2.063628, 0.475314)),
        (8, 0.7, 2, (7.157505, 0.899480)),
    ):
        got = scores_of(index.bm25(k1, b)(topics({"z3": weight, "z7": 1})))
        assert got == pytest.approx({"d1": expected[0], "d2": expected[1]}, rel=1e-5 if engine == "pisa" else 1e-6)
    index = build(tmp_path / "fractions", FRACTION_DOCS, engine)
    query = topics({"z3": 1, "z7": 1})
    tolerance = 1e-5 if engine == "pisa" else 1e-6
    assert scores_of(index.bm25()(query)) == pytest.approx({"d1": 2.857906, "d2": 0.760348}, rel=tolerance)
    lucene = scores_of(index.bm25(idf="lucene")(query))
    # impacts have 16 bits
    assert lucene == pytest.approx({"d1": 3.908999, "d2": 1.978353}, abs=1e-4 if engine == "pisa" else 1e-6)


@pytest.mark.parametrize("form", ["rsj", "lucene"])
def test_the_exact_engine_is_the_formula(path, form):
    docs, queries = latents(300), asked(20)
    expected = bm25_matrix(*reversed(matrices(docs, queries)), k1=8, b=0.7, idf=form)
    results = build(path, docs).bm25(idf=form, num_results=None)(queries)
    for row, (qid, group) in enumerate(results.groupby("qid", sort=False)):
        names, scores = best(expected[row], docs)
        assert qid == f"q{row}"
        assert group["docno"].tolist() == names
        np.testing.assert_allclose(group["score"], scores, rtol=1e-9)
        assert group["rank"].tolist() == list(range(len(names)))


@pytest.mark.parametrize("form", ["rsj", "lucene"])
def test_pisa_is_the_formula_within_its_rounding(path, form):
    docs, queries = latents(500), asked(30)
    expected = bm25_matrix(*reversed(matrices(docs, queries)), k1=8, b=0.7, idf=form)
    results = build(path, docs, "pisa").bm25(idf=form)(queries)
    overlap = []
    for row, (_, group) in enumerate(results.groupby("qid", sort=False)):
        exact = dict(zip((d["docno"] for d in docs), expected[row]))
        np.testing.assert_allclose(group["score"], [exact[d] for d in group["docno"]], rtol=0.02)
        overlap.append(len(set(group["docno"][:10]) & set(best(expected[row], docs, 10)[0])) / 10)
    assert np.mean(overlap) >= 0.95
    assert min(overlap) >= 0.9


@each
def test_dot_products(path, engine):
    docs, queries = latents(200), asked(10)
    documents, asked_for = matrices(docs, queries)
    expected = (asked_for @ documents.T).toarray()
    results = build(path, docs, engine).retriever()(queries)
    for row, (_, group) in enumerate(results.groupby("qid", sort=False)):
        exact = dict(zip((d["docno"] for d in docs), expected[row]))
        tolerance = 0.02 if engine == "pisa" else 1e-9
        np.testing.assert_allclose(group["score"], [exact[d] for d in group["docno"]], rtol=tolerance)
        assert len(group) == (expected[row] > 0).sum()


@each
@pytest.mark.parametrize("k", [1, 7, 100])
def test_a_cutoff_leaves_the_ranking(path, engine, k):
    index, queries = build(path, latents(300), engine), asked(10)
    for stage in (index.bm25(), index.bm25(idf="lucene"), index.retriever()):
        whole = stage(queries)
        cut = (stage % k).compile()
        assert cut.num_results == k
        expected = whole[whole["rank"] < k].reset_index(drop=True)
        got = cut(queries)
        assert got[["qid", "docno", "rank"]].equals(expected[["qid", "docno", "rank"]])
        np.testing.assert_allclose(got["score"], expected["score"], rtol=1e-6)
    assert index.bm25(num_results=5).fuse_rank_cutoff(9) is None


@each
def test_equal_scores_are_ranked_by_docno_also_at_the_cut(path, engine):
    names = [f"n{i:03}" for i in np.random.default_rng(0).permutation(120)]
    docs = [{"docno": n, "toks": {"a": 2.0, "c": 1.0}} for n in names] + named([{"b": 1.0}] * 200, "x")
    index = build(path, docs, engine)
    for stage in (index.bm25, index.retriever):
        for k in (1, 3, 50, 119, 120, 200, None):
            results = stage(num_results=k)(topics({"a": 1.0, "c": 0.3}))
            assert results["docno"].tolist() == sorted(names)[: k or 120]
            assert results["score"].nunique() == 1


@each
def test_terms_of_half_the_documents_find_nothing_and_change_no_ranking(path, engine):
    docs = [*named([{"all": 1.0 + i, **({"rare": 2.0} if i < 3 else {})} for i in range(10)])]
    index = build(path, docs, engine)
    with_all, without = (index.bm25()(topics(q)) for q in ({"rare": 1.0, "all": 5.0}, {"rare": 1.0}))
    pd.testing.assert_frame_equal(with_all.drop(columns="query_toks"), without.drop(columns="query_toks"))
    assert with_all["docno"].tolist() == ["d1", "d2", "d3"]
    with pytest.warns(UserWarning, match="1 of 2 queries have no term"):
        results = index.bm25()(topics({"all": 1.0}, {"rare": 1.0}))
    assert set(results["qid"]) == {"q1"}
    assert len(index.bm25(idf="lucene")(topics({"all": 1.0}))) == 10
    assert len(index.retriever()(topics({"all": 1.0}))) == 10


@each
def test_queries_without_known_terms(path, engine):
    index = build(path, WHOLE_DOCS, engine)
    queries = topics({"nowhere": 1.0}, {}, {"z3": 0.0}, {"z3": 1.0, "nowhere": 9.0})
    with pytest.warns(UserWarning, match="3 of 4 queries have no term that .* could score by, and no results") as seen:
        results = index.bm25()(queries)
    assert len(seen) == 1
    assert results["qid"].tolist() == ["q3"]
    scored = index.scorer(BM25())(queries.assign(docno="d1"))
    assert (scored["score"] > 0).tolist() == [False, False, False, True]
    with pytest.warns(UserWarning, match="1 of 1"):
        none = index.bm25()(queries.head(1))
    assert list(none.columns) == list(results.columns)
    assert none["score"].dtype == np.float64


@pytest.mark.parametrize(
    ("toks", "message"),
    [
        ({"z3": -1.0}, "query 'q0': the weight of term 'z3' must be a finite number of at least 0, got -1.0"),
        ({"z3": float("nan")}, "weight of term 'z3'"),
        ({"z7": 1.0, "z3": float("inf")}, "weight of term 'z3'"),
        ({"z3": "much"}, "weight of term 'z3'"),
        (["z3"], "query_toks of query 'q0': expected a dict of terms and weights, got list"),
        ({3: 1.0}, "a term of query 'q0' must be a string"),
        (None, "'query_toks' has no value in any row of query 'q0'"),
    ],
)
def test_bad_queries_are_one_clear_error(path, toks, message):
    index = build(path, WHOLE_DOCS)
    for stage in (index.bm25(), index.scorer()):
        with pytest.raises(ValueError, match=message):
            stage(topics(toks).assign(**({"docno": "d1"} if stage == index.scorer() else {})))


def test_rescoring_is_exact_whatever_the_engine(path):
    docs, queries = latents(200), asked(5)
    documents, wanted = matrices(docs, queries)
    index = build(path, docs, "pisa")
    candidates = index.bm25(num_results=30)(queries)
    for weighting, expected in (
        (None, (wanted @ documents.T).toarray()),
        (BM25(2, 0.3, "lucene"), bm25_matrix(wanted, documents, 2, 0.3, "lucene")),
    ):
        scored = index.scorer(weighting)(candidates.sample(frac=1, random_state=0))
        for row in scored.itertuples():
            exact = expected[int(row.qid[1:]), int(row.docno[1:])]
            assert row.score == pytest.approx(exact, rel=1e-12)
    with pytest.raises(ValueError, match="1 of 1 documents are not in .*'nope'"):
        index.scorer()(queries.head(1).assign(docno="nope"))
    assert index.scorer()(queries.head(1).assign(docno="d49"))["score"].tolist() == [0.0]  # without terms


@each
def test_few_documents(path, tmp_path, engine):
    empty = build(path, [], engine)
    assert len(empty) == 0
    query = topics({"z3": 1.0})
    one = build(tmp_path / "one", [{"docno": "d", "toks": {"z3": 2.0}}], engine)
    none = build(tmp_path / "none", [{"docno": "d", "toks": {}}, {"docno": "e", "toks": {"z3": 0.0}}], engine)
    for index in (empty, none):
        for stage in (index.bm25(), index.bm25(idf="lucene"), index.retriever()):
            with pytest.warns(UserWarning, match="1 of 1 queries"):
                assert not len(stage(query))
    assert one.retriever()(query)["score"].tolist() == pytest.approx([2.0])
    assert one.bm25(idf="lucene")(query)["docno"].tolist() == ["d"]
    assert none.info()["empty"] == 2


@each
def test_queries_with_several_rows_and_in_batches(path, engine):
    index, queries = build(path, latents(200), engine), asked(9)
    expected = index.bm25(batch_size=64)(queries)
    for batch_size in (1, 4):
        pd.testing.assert_frame_equal(index.bm25(batch_size=batch_size)(queries), expected)
    twice = pd.concat([queries.assign(query_toks=None), queries])
    again = index.bm25()(twice.sort_values("qid"))
    assert again["docno"].tolist() == expected["docno"].tolist()


def test_a_grid_of_parameters_does_not_fill_the_memory(path):
    index, queries = build(path, WHOLE_DOCS), topics({"z3": 1.0})
    first = index.searcher(index.store, None)
    for k1 in range(3):
        index.bm25(k1)(queries)
    assert index.searcher(index.store, None) is first
    latest = index.searcher(index.store, BM25(2))
    for k1 in range(3, 20):
        index.bm25(k1)(queries)
        assert index.searcher(index.store, BM25(2)) is latest  # what is used is kept
    assert index.searcher(index.store, None) is not first


@each
def test_threads_share_what_searches(path, engine):
    index, queries = build(path, latents(100), engine), asked(4)
    stages = [index.bm25(), index.bm25(2), index.retriever()] * 4
    expected = [stage(queries) for stage in stages]
    index = mv.SparseIndex(path)
    with ThreadPoolExecutor(6) as pool:
        for found, alone in zip(pool.map(lambda stage: stage._replace(source=index)(queries), stages), expected):
            pd.testing.assert_frame_equal(found, alone)
    assert len({id(index.searcher(index.store, stage.weighting)) for stage in stages}) == 3


def test_in_a_pipeline(path):
    docs = pd.DataFrame(latents(60))
    index = mv.SparseIndex(path)

    def hashed(frame):  # an encoder of one's own
        return frame.assign(toks=frame["toks"].map(lambda toks: {f"h{t}": 2 * w for t, w in toks.items()}))

    (pt.apply.generic(hashed, required_columns=["docno", "toks"]) >> index).index(docs.to_dict(orient="records"))
    query = topics({"hz300": 1.0})
    assert len(index.bm25()(query)) > 0
    pipeline = index.bm25() % 5 >> index.scorer(BM25())
    pd.testing.assert_frame_equal(pipeline.compile()(query), pipeline(query))
    loaded = pickle.loads(pickle.dumps(index.bm25()))
    assert loaded == index.bm25()
    pd.testing.assert_frame_equal(loaded(query), index.bm25()(query))
    with pytest.raises(pt.validate.InputValidationError):
        index.bm25()(pd.DataFrame({"qid": ["1"], "query": ["x"]}))


def test_an_index_that_is_open_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index, query = build("a b", WHOLE_DOCS, "pisa"), topics({"z3": 1.0})
    len(index)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert index.bm25()(query)["docno"].tolist() == ["d1"]


def test_settings_that_are_none(path):
    index = mv.SparseIndex(path)
    with pytest.raises(ValueError, match="engine must be 'pisa', 'csr', 'seismic' or .*, got 'exact'"):
        mv.SparseIndex(path, "exact")
    for scale in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="scale must be a finite number above 0"):
            mv.SparseIndex(path, scale=scale)
    with pytest.raises(ValueError, match="num_results must be an integer of at least 1"):
        index.bm25(num_results=0)
    for batch_size in (0, 2.5, None):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            index.retriever(batch_size=batch_size)
    with pytest.raises(ValueError, match="weighting must be"):
        index.scorer("bm25")
    with pytest.raises(FileNotFoundError, match=r"build one with"):
        index.bm25()(topics({"a": 1.0}))


@each
def test_terms_and_names_may_be_any_text(path, engine):
    odd = ["a b", "new\nline", "", "é\u2028", "日本", "0000000001", "%", "\t"]
    docs = [{"docno": f"doc {t}\n", "toks": {t: 1.0 + i}} for i, t in enumerate(odd)]
    index = build(path, [*docs, *named([{}] * 3)], engine)
    for i, term in enumerate(odd):
        for stage in (index.bm25(), index.retriever()):
            assert stage(topics({term: 1.0}))["docno"].tolist() == [f"doc {term}\n"]
        assert index.retriever()(topics({term: 3.0}))["score"].tolist() == pytest.approx([3.0 * (1 + i)], rel=0.02)
    assert index.lexicon()["term"].tolist() == odd
    assert index.lexicon()["documents"].tolist() == [1] * len(odd)
