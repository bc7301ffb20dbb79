"""PISA as an engine: what it is given, how it is asked, and what rounding costs."""

import numpy as np
import pyterrier_pisa
import pytest
from scipy.sparse import csr_array

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import sparse_pisa
from tests.indexes.sparse_docs import FRACTION_DOCS, WHOLE_DOCS, asked, best, latents, matrices, topics


def derived(path):
    return sorted(p for p in path.iterdir() if p.name.startswith("derived-"))


def test_files_are_those_of_pisas_own_indexer(tmp_path):
    docs = latents(300, empty_every=7)
    matrix, _ = matrices(docs, topics())
    levels = sparse_pisa.rounded(matrix.data, 2.0, 0)  # some are 0
    assert (levels == 0).any()
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    sparse_pisa.write_inverted(own, levels, matrix)
    rows = csr_array((levels, matrix.indices, matrix.indptr), shape=matrix.shape)
    records = (
        {
            "docno": f"{i:010}",
            "toks": {f"{t:010}": int(w) for t, w in zip(rows[[i]].indices, rows[[i]].data)},
        }
        for i in range(len(docs))
    )
    pyterrier_pisa.PisaIndex(str(other), stemmer="none").toks_indexer(scale=1).index(records)
    names = sorted(p.name for p in own.iterdir())
    assert names == ["fwd.doclex", "fwd.termlex", "inv.docs", "inv.freqs", "inv.sizes"]
    for name in names:
        assert (own / name).read_bytes() == (other / name).read_bytes(), name


def test_pisa_is_never_asked_to_round_or_to_forget_weights(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("PISA's own indexing multiplies by 100 and cuts")

    monkeypatch.setattr(pyterrier_pisa.PisaIndex, "index", never)
    monkeypatch.setattr(pyterrier_pisa.PisaIndex, "toks_indexer", never)
    asked_for = []
    init = pyterrier_pisa.PisaRetrieve.__init__
    monkeypatch.setattr(
        pyterrier_pisa.PisaRetrieve,
        "__init__",
        lambda self, *a, **k: (asked_for.append(k), init(self, *a, **k))[1],
    )
    index = mv.SparseIndex(tmp_path / "i").index(FRACTION_DOCS)
    for stage in (index.bm25(), index.bm25(idf="lucene"), index.retriever()):
        assert len(stage(topics({"z3": 1.9, "z7": 0.9}))) == 2
    assert len(asked_for) >= 3
    for settings in asked_for:
        assert settings["query_weighted"] is True
        assert settings["toks_scale"] == 1
        assert settings["query_algorithm"] == "maxscore"


def test_the_scale_changes_rounding_and_not_the_scale_of_scores(tmp_path):
    query = topics({"z3": 1, "z7": 1})
    for scale in (4, 100, 1000):
        index = mv.SparseIndex(tmp_path / f"{scale}", scale=scale).index(FRACTION_DOCS)
        assert index.bm25()(query)["score"].tolist() == pytest.approx([2.857906, 0.760348], rel=1e-5)
    coarse = mv.SparseIndex(tmp_path / "1", scale=1).index(FRACTION_DOCS)
    with pytest.warns(UserWarning, match=r"1 of 8 weights are below 0.5 and are lost in PISA: .* larger scale"):
        scores = coarse.bm25()(query)
    assert scores["score"].tolist()[0] != pytest.approx(2.857906, rel=1e-3)
    with pytest.raises(ValueError, match=r"was built with scale=1.0, not 100"):
        len(mv.SparseIndex(tmp_path / "1", scale=100))


def test_small_weights_are_reported_as_lost(tmp_path):
    docs = [*FRACTION_DOCS, {"docno": "small", "toks": {"z3": 0.004, "z4": 0.006}}]
    index = mv.SparseIndex(tmp_path / "i").index(docs)
    with pytest.warns(UserWarning, match=r"1 of 10 weights are below 0.005 and are lost"):
        assert index.bm25()(topics({"z3": 1.0}))["docno"].tolist() == ["d1"]
    with pytest.warns(UserWarning, match="are lost"):  # at every opening
        assert mv.SparseIndex(tmp_path / "i").bm25()(topics({"z4": 1.0}))["docno"].tolist() == ["small"]
    assert index.retriever()(topics({"z3": 1.0}))["docno"].tolist() == ["d1", "small"]  # nothing is lost there
    exact = mv.SparseIndex(tmp_path / "i", "csr").bm25()(topics({"z3": 1.0}))
    assert exact["docno"].tolist() == ["d1", "small"]


def test_weights_that_do_not_fit(tmp_path):
    index = mv.SparseIndex(tmp_path / "i").index([{"docno": "d", "toks": {"a": 1e30}}, *WHOLE_DOCS[1:]])
    with pytest.raises(ValueError, match="too large for PISA's 32-bit integers"):
        index.bm25()(topics({"a": 1.0}))
    assert not derived(tmp_path / "i")
    assert index.retriever()(topics({"a": 1.0}))["score"].tolist() == pytest.approx([1e30])
    summed = mv.SparseIndex(tmp_path / "s").index([{"docno": "d", "toks": {"a": 3e7, "b": 3e7}}, *WHOLE_DOCS[1:]])
    with pytest.raises(ValueError, match="too large for PISA's 32-bit integers"):
        summed.bm25()(topics({"a": 1.0}))


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_other_idfs_take_weights_of_any_size(tmp_path, size):
    docs = [{**d, "toks": {t: size * w for t, w in d["toks"].items()}} for d in latents(300)]
    queries = asked(10)
    expected = mv.scoring.bm25_matrix(*reversed(matrices(docs, queries)), idf="lucene")
    results = mv.SparseIndex(tmp_path / "i").index(docs).bm25(idf="lucene", num_results=20)(queries)
    for row, (_, group) in enumerate(results.groupby("qid", sort=False)):
        exact = dict(zip((d["docno"] for d in docs), expected[row]))
        np.testing.assert_allclose(group["score"], [exact[d] for d in group["docno"]], rtol=5e-3)


def test_the_quantiser_worked_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_pisa, "_DOCUMENT_BITS", 8)  # as the specification's example has it
    docs = {"a": {"3": 0.845737, "7": 0.5336}, "b": {"3": 0.009, "9": 0.99996}, "c": {"7": 0.0444}}
    index = mv.SparseIndex(tmp_path / "i").index({"docno": d, "toks": toks} for d, toks in docs.items())
    results = index.retriever()(topics({"3": 0.222365, "7": 0.455826, "9": 0.861845}))
    assert results["docno"].tolist() == ["b", "a", "c"]
    # three integers of the table times what a step is worth on both sides
    worth = 0.99996 * 0.861845 / 255**2
    np.testing.assert_allclose(results["score"], np.array([65157, 32616, 1485]) * worth, rtol=1e-6)
    np.testing.assert_allclose(results["score"], [0.86356, 0.43228, 0.01968], atol=6e-6)


def test_dot_products_are_those_of_the_rounded_weights(tmp_path):
    docs, queries = latents(200), asked(12)
    documents, wanted = (m.toarray() for m in matrices(docs, queries))
    document_step, query_steps = documents.max() / 1023, wanted.max(axis=1, keepdims=True) / 255
    stored = np.where(documents > 0, np.maximum(np.rint(documents / document_step), 1), 0)
    asked_for = np.where(wanted > 0, np.maximum(np.rint(wanted / query_steps), 1), 0)
    expected = asked_for @ stored.T * document_step * query_steps
    results = mv.SparseIndex(tmp_path / "i").index(docs).retriever(num_results=20)(queries)
    errors = 0.5 * (document_step * wanted @ (documents > 0).T + query_steps * (wanted > 0) @ documents.T)
    errors += 0.25 * document_step * query_steps * ((wanted > 0) @ (documents > 0).T.astype(float))
    for row, (_, group) in enumerate(results.groupby("qid", sort=False)):
        names, scores = best(expected[row], docs, 20)
        assert group["docno"].tolist() == names
        np.testing.assert_allclose(group["score"], scores, rtol=1e-9)
        at = [int(name[1:]) for name in names]
        assert (np.abs(group["score"] - (wanted @ documents.T)[row, at]) <= errors[row, at] + 1e-9).all()


@pytest.mark.parametrize("scale", [4, 100])
def test_bm25_is_that_of_the_rounded_weights(tmp_path, scale):
    docs, queries = latents(200), asked(12)
    documents, wanted = (m.toarray() for m in matrices(docs, queries))
    stored = np.rint(documents * scale) / scale
    wanted[:, (documents > 0).sum(axis=0) >= len(docs) / 2] = 0  # these have no idf, and PISA is not asked for them
    steps = 2.0 ** np.floor(np.log2(wanted.max(axis=1, keepdims=True) / 512))
    asked_for = np.rint(wanted / steps) * steps
    expected = mv.scoring.bm25_matrix(csr_array(asked_for), csr_array(stored), 3.0, 0.4)
    results = mv.SparseIndex(tmp_path / "i", scale=scale).index(docs).bm25(3.0, 0.4)(queries)
    for row, (_, group) in enumerate(results.groupby("qid", sort=False)):
        exact = dict(zip((d["docno"] for d in docs), expected[row]))
        np.testing.assert_allclose(group["score"], [exact[d] for d in group["docno"]], rtol=1e-5)
        assert len(group) == (expected[row] > 0).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kept", "asked_for", "space", "law"),
    [
        (20000, 64, 32, 65536, "uniform"),
        (20000, 64, 32, 65536, "zipf"),
        (4000, 512, 128, 4_194_304, "zipf"),  # LASPAR's own sizes
    ],
)
def test_the_quantiser_keeps_the_best(tmp_path, number, kept, asked_for, space, law):
    rng = np.random.default_rng(0)

    def drawn(size):
        if law == "uniform":
            return rng.choice(space, size, replace=False)
        many = np.exp(rng.uniform(0, np.log(space), 8 * size)).astype(int)  # dimension r as often as 1/r
        return many[np.sort(np.unique(many, return_index=True)[1])][:size]  # the first different ones

    def vectors(n, size):
        for _ in range(n):
            ids = drawn(size)
            weights = np.log1p(2 * np.abs(rng.standard_normal(len(ids))))
            yield dict(zip(map(str, ids), (weights / np.linalg.norm(weights)).tolist()))

    docs = [{"docno": f"d{i:05}", "toks": toks} for i, toks in enumerate(vectors(number, kept))]
    queries = topics(*vectors(200, asked_for))
    mv.SparseIndex(tmp_path / "i").index(docs)
    exact, pisa = (
        mv.SparseIndex(tmp_path / "i", e).retriever(num_results=10)(queries).groupby("qid")["docno"].agg(set)
        for e in ("csr", "pisa")
    )
    recall = np.mean([len(exact[q] & pisa[q]) / 10 for q in queries["qid"]])
    assert recall >= 0.99


def test_long_ties_are_followed_to_their_end(tmp_path, monkeypatch):
    docs = [{"docno": f"n{i:04}", "toks": {"a": 1.0}} for i in np.random.default_rng(0).permutation(500)]
    docs += [{"docno": f"x{i}", "toks": {"b": 1.0}} for i in range(600)]
    index = mv.SparseIndex(tmp_path / "i").index(docs)
    for stage in (index.bm25(num_results=4), index.retriever(num_results=4)):
        assert stage(topics({"a": 1.0}))["docno"].tolist() == [f"n{i:04}" for i in range(4)]
    monkeypatch.setattr(sparse_pisa, "_RESULTS_AT_ONCE", 40)  # one query a call
    queries = asked(5)
    small = mv.SparseIndex(tmp_path / "l").index(latents(100))
    expected = mv.SparseIndex(tmp_path / "l", "csr").bm25(num_results=9)(queries)
    got = small.bm25(num_results=9)(queries)
    overlap = [
        len(set(a) & set(b)) for (_, a), (_, b) in zip(got.groupby("qid")["docno"], expected.groupby("qid")["docno"])
    ]
    assert min(overlap) >= 8


def test_more_docs_than_a_result_can_be_asked_of(tmp_path):
    docs = latents(30)
    index = mv.SparseIndex(tmp_path / "i").index(docs)
    matrix, wanted = matrices(docs, asked(3))
    expected = (wanted @ matrix.T).toarray()
    for k in (29, 30, 31, 5000, None):
        results = index.retriever(num_results=k)(asked(3))
        for row, (_, group) in enumerate(results.groupby("qid", sort=False)):
            assert len(group) == len(best(expected[row], docs, k)[0])
