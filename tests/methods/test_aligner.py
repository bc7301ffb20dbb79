import copy

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.importance import IDF, Attention, First, Salience
from pyterrier_mvret.scoring import Alignment, align_packed
from tests import checkpoints
from tests.encoders.test_salience import with_heads
from tests.methods.test_colbert import QUERIES, TEXTS, candidates, corpus

RULES = [
    {"alignment": mv.TopK(2)},
    {"alignment": mv.TopP(0.4), "normalizer": "query"},
    {"alignment": mv.Soft(1, 0.1), "align_over": "salient"},
]
PRUNED = {"query_keep": 0.5, "doc_keep": 0.4}


@pytest.fixture
def salient(tiny):
    return with_heads(tiny)


def indexed(model, path, **settings):
    index = mv.MultiVecIndex(path, dtype="float32", **settings)
    (model.doc_encoder() >> index).index(corpus())
    return index


# ---------------------------------------------------------------- scores


def test_one_token_without_salience_ranks_as_colbert(tiny_encoder, tmp_path):
    colbert, aligner = mv.ColBERT(tiny_encoder), mv.Aligner(tiny_encoder)
    a, b = colbert.text_scorer()(candidates()), aligner.text_scorer()(candidates())
    n = 12  # query vectors, expansion included
    filled = a["score"] > -1e8
    np.testing.assert_allclose(b["score"][filled], a["score"][filled] / n, atol=1e-6)
    assert a["rank"].tolist() == b["rank"].tolist()
    # an index of either serves both
    index = indexed(colbert, tmp_path / "x.mv")
    stored = (aligner.query_encoder() >> index.scorer(aligner))(candidates())
    np.testing.assert_allclose(stored["score"], b["score"], atol=1e-5)


@pytest.mark.parametrize("keep", [{}, PRUNED, {**PRUNED, "keep_by": "first"}], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("heads", [False, True], ids=["plain", "heads"])
def test_scores_from_the_index_are_those_of_the_text(tiny, tmp_path, rule, keep, heads):
    aligner = mv.Aligner(with_heads(tiny) if heads else tiny, **rule, **keep)
    index = indexed(aligner, tmp_path / "x.mv")
    assert index.manifest["store_weights"] is heads
    fly = aligner.text_scorer()(candidates())
    for scorer in (index.scorer(), index.scorer(aligner)):
        stored = (aligner.query_encoder() >> scorer)(candidates())
        np.testing.assert_allclose(stored["score"], fly["score"], atol=1e-5)
    everything = (aligner.query_encoder() >> index.retriever(num_results=None))(QUERIES)
    merged = everything.merge(fly, on=["qid", "docno"], suffixes=("", "_fly"))
    assert len(merged) == len(everything) > 0
    np.testing.assert_allclose(merged["score"], merged["score_fly"], atol=1e-5)


def test_saliences_weigh_queries_and_documents(salient):
    aligner = mv.Aligner(salient, mv.TopK(2), normalizer="query")
    scores = aligner.text_scorer()(candidates()).set_index(["qid", "docno"])["score"]
    for qid, query in QUERIES.itertuples(index=False):
        for docno, text in TEXTS.items():
            q, d = salient.encode_queries([query]), salient.encode_docs([text])
            weights = {"query_weights": q.weights, "doc_weights": d.weights, "normalizer": "query"}
            expected = align_packed(q.vectors, d.vectors, d.offsets, mv.TopK(2), **weights)[0]
            assert scores[qid, docno] == pytest.approx(expected, abs=1e-6)
    alike = mv.Aligner(salient, mv.TopK(2), salience=False)
    plain = mv.Aligner(mv.TokenEncoder(copy.deepcopy(salient.model)), mv.TopK(2), salience=False)
    assert "query_weights" not in alike.query_encoder()(QUERIES).columns
    assert not np.allclose(alike.text_scorer()(candidates())["score"], scores)
    np.testing.assert_allclose(
        alike.text_scorer()(candidates())["score"], plain.text_scorer()(candidates())["score"], atol=1e-6
    )


def test_colbert_of_an_encoder_with_heads_is_colbert(tiny, salient):
    a, b = mv.ColBERT(tiny).text_scorer()(candidates()), mv.ColBERT(salient).text_scorer()(candidates())
    np.testing.assert_allclose(a["score"], b["score"], atol=1e-5)
    assert "query_weights" not in mv.ColBERT(salient).query_encoder()(QUERIES).columns
    assert "doc_weights" not in mv.ColBERT(salient).doc_encoder()(pd.DataFrame(corpus())).columns


def test_an_index_without_weights_is_refused_where_they_count(salient, tmp_path):
    index = indexed(mv.ColBERT(salient), tmp_path / "x.mv")
    queries = mv.Aligner(salient).query_encoder()(candidates())
    with pytest.raises(ValueError, match="holds no weights of document tokens"):
        index.scorer(mv.Aligner(salient))(queries)
    assert len(index.scorer(mv.Aligner(salient, salience=False))(queries))


@pytest.mark.parametrize("told", [True, False], ids=["model", "index"])
def test_queries_without_saliences_are_refused_where_they_count(salient, tmp_path, told):
    aligner = mv.Aligner(salient, mv.TopK(2))
    index = indexed(aligner, tmp_path / "x.mv")
    model = aligner if told else None
    for other in (mv.ColBERT(salient), mv.Aligner(salient, salience=False)):
        for stage, frame in ((index.scorer(model), candidates()), (index.retriever(model), QUERIES)):
            with pytest.raises(ValueError, match="query '1' has no query_weights, and the model scores by them"):
                stage(other.query_encoder()(frame))
        alike = index.scorer(mv.Aligner(salient, mv.TopK(2), salience=False))
        assert len(alike(other.query_encoder()(candidates())))


@pytest.mark.parametrize("keep", [{}, PRUNED], ids=str)
def test_texts_are_scored_whatever_vectors_found_them(tiny, salient, tmp_path, keep):
    aligner = mv.Aligner(salient, mv.TopK(2), **keep)
    found = aligner.query_encoder()(candidates())
    for scorer in (mv.ColBERT(tiny).text_scorer(), aligner.text_scorer(), aligner.text_scorer(refine="full")):
        pd.testing.assert_series_equal(scorer(found)["score"], scorer(candidates())["score"])


def test_an_index_without_documents_finds_nothing(salient, tmp_path):
    aligner, index = mv.Aligner(salient), mv.MultiVecIndex(tmp_path / "x.mv")
    (aligner.doc_encoder() >> index).index([])
    for model in (aligner, None):
        assert len((aligner.query_encoder() >> index.retriever(model))(QUERIES)) == 0


# ---------------------------------------------------------------- pruning


def test_an_index_shrinks_to_the_tokens_that_are_kept(salient, tmp_path):
    full = indexed(mv.Aligner(salient), tmp_path / "full.mv")
    kept = indexed(mv.Aligner(salient, doc_keep=0.2), tmp_path / "kept.mv")
    assert kept.info()["vectors"] < 0.5 * full.info()["vectors"]
    docnos = pd.DataFrame({"docno": list(TEXTS)})
    for row, whole in zip(kept.vec_loader()(docnos).itertuples(), full.vec_loader()(docnos).itertuples(), strict=True):
        assert len(row.doc_embs) == max(min(1, len(whole.doc_embs)), -(-len(whole.doc_embs) // 5))
        # rows of the whole, with the weights that they have there: gates are not computed anew
        for vector, weight in zip(row.doc_embs, row.doc_weights, strict=True):
            at = np.flatnonzero((whole.doc_embs == vector).all(axis=1))
            assert weight in whole.doc_weights[at]
        assert sorted(row.doc_weights)[-1:] == sorted(whole.doc_weights)[-1:]


def test_refinement_with_all_tokens_after_a_pruned_search(salient, tmp_path):
    aligner = mv.Aligner(salient, mv.TopK(2), query_keep=0.3, doc_keep=0.4)
    pruned, full = indexed(aligner, tmp_path / "p.mv"), mv.MultiVecIndex(tmp_path / "f.mv", dtype="float32")
    (aligner.doc_encoder(refine="full") >> full).index(corpus())
    search = aligner.query_encoder() >> pruned.retriever()
    refined = (search >> aligner.query_encoder(refine="full") >> full.scorer(aligner))(QUERIES)
    fly = aligner.text_scorer(refine="full")(candidates())
    unpruned = mv.Aligner(salient, mv.TopK(2)).text_scorer()(candidates())
    merged = refined.merge(unpruned, on=["qid", "docno"], suffixes=("", "_unpruned"))
    np.testing.assert_allclose(merged["score"], merged["score_unpruned"], atol=1e-5)
    np.testing.assert_allclose(fly["score"], unpruned["score"], atol=1e-6)
    assert not np.allclose(search(QUERIES)["score"], refined["score"])
    with pytest.raises(ValueError, match="refine must be 'pruned' or 'full'"):
        aligner.doc_encoder(refine="all")


def test_what_ranks_tokens_is_told_or_follows_the_encoder(tiny, salient):
    for encoder, by in ((mv.TokenEncoder(tiny), Attention()), (salient, Salience())):
        assert mv.Aligner(encoder, doc_keep=0.5).pruning.ranking(encoder) == by
    assert mv.Aligner(tiny, doc_keep=0.5, keep_by="first").pruning.by == First()
    assert mv.Aligner(tiny).pruning is None
    documents = pd.DataFrame(corpus())
    first = mv.Aligner(tiny, doc_keep=0.5, keep_by="first").doc_encoder()(documents)["doc_embs"]
    for few, all_ in zip(first, mv.Aligner(tiny).doc_encoder()(documents)["doc_embs"], strict=True):
        np.testing.assert_allclose(few, all_[: len(few)], atol=1e-6)
    with pytest.raises(ValueError, match="salience heads"):
        mv.Aligner(tiny, doc_keep=0.5, keep_by="salience").doc_encoder()(documents)


def test_stages_made_before_training_have_its_heads(tiny):
    aligner = mv.Aligner(mv.TokenEncoder(copy.deepcopy(mv.TokenEncoder(tiny, device="cpu").model)), **PRUNED)
    queries, documents, frame = aligner.query_encoder(), aligner.doc_encoder(), pd.DataFrame(corpus())
    assert "query_weights" not in queries(QUERIES).columns
    assert '"by": {"kind": "attention"}' in documents(frame)["doc_encoder"][0]
    aligner.encoder.adopt(with_heads(tiny).model)
    for old, new, on in ((queries, aligner.query_encoder(), QUERIES), (documents, aligner.doc_encoder(), frame)):
        assert old == new
        for some in (on, on.iloc[:0]):
            assert old(some).columns.tolist() == new(some).columns.tolist()
            assert old(some).filter(regex="_weights$").shape[1] == 1
    assert '"by": {"kind": "salience"}' in documents(frame)["doc_encoder"][0]


def test_making_stages_opens_no_checkpoint():
    aligner = mv.Aligner("nobody/nothing", doc_keep=0.5)
    stages = [aligner.query_encoder(), aligner.doc_encoder(), aligner.text_scorer()]
    with pytest.raises(OSError, match="no checkpoint 'nobody/nothing'"):
        stages[0](QUERIES)


def test_documents_pruned_otherwise_do_not_join(tiny, tmp_path):
    index = indexed(mv.Aligner(tiny, doc_keep=0.5), tmp_path / "x.mv")
    for other in ({"doc_keep": 0.4}, {"doc_keep": 0.5, "keep_by": "first"}, {}):
        with pytest.raises(ValueError, match="was built with document="):
            (mv.Aligner(tiny, **other).doc_encoder() >> index.indexer("append")).index([{"docno": "n", "text": "a"}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"doc_keep": 0}, "share of document tokens kept must be above 0"), ({"query_keep": 1.5}, "from 0 to 1"),
     ({"alignment": "top"}, "alignment must be"), ({"normalizer": "doc"}, "normalizer must be one of"),
     ({"align_over": "some"}, "align_over must be one of"), ({"keep_by": "idf"}, r"IDF\.of"),
     ({"keep_by": "best"}, "importance must be attention, first"), ({"salience": "no"}, "salience must be True or")],
)  # fmt: skip
def test_settings_out_of_range_are_said_at_once(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        mv.Aligner(tiny, **settings)


# ---------------------------------------------------------------- adaptation


def judged():
    return pd.DataFrame({"qid": ["1", "2"], "docno": ["d3", "d2"], "label": [1, 2]})


def counting(stage):
    calls = []
    return calls, pt.apply.generic(lambda q: calls.append(q["qid"].tolist()) or stage(q))


def test_a_few_judged_topics_choose_the_alignment(tiny, tmp_path):
    aligner = mv.Aligner(tiny)
    index = indexed(aligner, tmp_path / "x.mv")
    assert aligner.fit(QUERIES, judged(), index, margin=0) is aligner
    table = aligner.adaptation.table
    assert table["alignment"].tolist() == list(mv.training.GRID)
    assert table["nDCG@10"][table["chosen"]].item() == table["nDCG@10"].max()
    assert aligner.alignment == table["alignment"][table["chosen"]].item()
    # as if each strategy had ranked on its own
    for strategy, value in zip(table["alignment"], table["nDCG@10"], strict=True):
        alone = (aligner.query_encoder() >> index.retriever(Alignment(strategy)))(QUERIES)
        assert pt.Evaluate(alone, judged(), ["ndcg_cut_10"])["ndcg_cut_10"] == pytest.approx(value)


@pytest.mark.parametrize("heads", [False, True], ids=["plain", "heads"])
def test_candidates_come_once_from_any_pipeline_and_vectors_from_index_or_text(tiny, tmp_path, heads):
    model = with_heads(tiny) if heads else tiny
    retrieve = pt.apply.generic(lambda q: candidates().merge(q[["qid"]]))
    tables = []
    for stored in (False, True):
        aligner = mv.Aligner(model, normalizer="query")
        calls, retriever = counting(retrieve)
        aligner.fit(QUERIES, judged(), indexed(aligner, tmp_path / "x.mv") if stored else None, retriever=retriever)
        assert calls == [["1", "2"]]
        tables.append(aligner.adaptation.by_query)
    pd.testing.assert_frame_equal(*tables)


def test_vectors_of_other_models_choose_no_alignment(tiny, salient, tmp_path):
    stranger = mv.ColBERT(checkpoints.sentence_encoder(tmp_path / "other"), init_projection=8, device="cpu")
    strange, index = indexed(stranger, tmp_path / "s.mv"), indexed(mv.ColBERT(tiny), tmp_path / "x.mv")
    retrieve = pt.apply.generic(lambda q: candidates().merge(q[["qid"]]))
    with pytest.raises(ValueError, match="s.mv holds vectors of encoder"):
        mv.Aligner(tiny).fit(QUERIES, judged(), strange, retriever=retrieve)
    with pytest.raises(ValueError, match="holds no weights of document tokens"):
        mv.Aligner(salient).fit(QUERIES, judged(), indexed(mv.ColBERT(salient), tmp_path / "w.mv"))
    found = stranger.query_encoder() >> strange.retriever()
    tables = [
        mv.Aligner(tiny).fit(QUERIES, judged(), index, retriever=r).adaptation.by_query
        for r in (found, found >> pt.apply.generic(lambda r: r[["qid", "query", "docno"]]))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_topics_without_relevant_documents_are_not_asked(tiny):
    calls, retriever = counting(pt.apply.generic(lambda q: candidates().merge(q[["qid"]])))
    qrels = judged().assign(label=[0, 1])
    mv.Aligner(tiny).fit(QUERIES, qrels, retriever=retriever)
    assert calls == [["2"]]
    with pytest.raises(ValueError, match="none of the topics has a relevant document"):
        mv.Aligner(tiny).fit(QUERIES, qrels.assign(label=0), retriever=retriever)
    with pytest.raises(ValueError, match="give an index, or a retriever"):
        mv.Aligner(tiny).fit(QUERIES, qrels)


def test_stages_made_before_follow_the_choice(tiny):
    aligner = mv.Aligner(tiny)
    scorer = aligner.text_scorer()
    before = scorer(candidates())["score"]
    aligner.alignment = mv.TopK(4)
    np.testing.assert_array_equal(
        scorer(candidates())["score"], mv.Aligner(tiny, mv.TopK(4)).text_scorer()(candidates())["score"]
    )
    assert not np.allclose(before, scorer(candidates())["score"])


def test_pyterriers_grid_searches_take_an_aligner(tiny, tmp_path):
    aligner = mv.Aligner(tiny)
    index = indexed(aligner, tmp_path / "x.mv")
    pipeline = aligner.query_encoder() >> index.retriever(aligner)
    grid = {aligner: {"alignment": [mv.TopK(1), mv.TopK(3), mv.TopP(0.5)]}}
    values = {}
    for strategy in grid[aligner]["alignment"]:
        run = (mv.Aligner(tiny, strategy).query_encoder() >> index.retriever(mv.Aligner(tiny, strategy)))(QUERIES)
        values[strategy] = pt.Evaluate(run, judged(), ["map"])["map"]
    value, settings = pt.GridSearch(pipeline, grid, QUERIES, judged(), "map", return_type="best_setting")
    assert value == pytest.approx(max(values.values()))
    assert values[settings[0][2]] == pytest.approx(value)
    assert aligner.alignment == "top-k"  # as it was
    folds = [QUERIES.iloc[:1], QUERIES.iloc[1:]]
    found, chosen = pt.KFoldGridSearch(pipeline, grid, folds, judged(), "map")
    assert set(found["qid"]) == {"1", "2"}
    assert len(chosen) == 2
    with pytest.raises(ValueError, match="can be searched"):
        aligner.get_parameter("doc_keep")


# ---------------------------------------------------------------- files and reasons


@pytest.mark.parametrize(
    "settings",
    [{}, {"alignment": mv.TopP(0.29), "align_over": "salient"}, {"alignment": mv.Soft(2, 0.1), **PRUNED},
     {"doc_keep": 0.5, "keep_by": "random"}, {"doc_keep": 0.5, "keep_by": IDF(3, ((5, 2),))}],
    ids=str,
)  # fmt: skip
def test_save_and_load(tiny, tmp_path, settings):
    aligner = mv.Aligner(tiny, device="cpu", **settings)
    aligner.save(tmp_path / "model")
    again = mv.Aligner.load(tmp_path / "model", device="cpu")
    assert again.scoring == aligner.scoring
    assert again.pruning == aligner.pruning
    np.testing.assert_allclose(
        again.text_scorer()(candidates())["score"], aligner.text_scorer()(candidates())["score"], atol=1e-5
    )
    if settings:
        with pytest.raises(ValueError, match="open it with Aligner.load"):
            mv.Aligner(tmp_path / "model")
    with pytest.raises(ValueError, match="was saved by Aligner"):
        mv.ColBERT.load(tmp_path / "model")


def test_a_saved_model_is_scored_and_pruned_otherwise_where_one_says_so(salient, tmp_path):
    mv.Aligner(salient, mv.TopK(2), doc_keep=0.5).save(tmp_path / "model")
    again = mv.Aligner.load(tmp_path / "model", alignment=mv.TopP(0.5), doc_keep=0.2, device="cpu", verbose=True)
    assert (again.alignment, again.doc_keep, again.encoder.device, again.verbose) == (mv.TopP(0.5), 0.2, "cpu", True)
    swept = mv.Aligner(again.encoder, mv.TopK(3), doc_keep=0.3)
    assert (swept.alignment, swept.doc_keep) == (mv.TopK(3), 0.3)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"method": "Ali', "pyterrier_mvret.json is damaged: Unterminated"), ("[]", "damaged: it names no method"),
     ('{"method": "Aligner", "new": 1}', "is not of Aligner: missing or unknown: align_over, .*, new, ")],
)  # fmt: skip
def test_damaged_settings_are_named(tiny, tmp_path, content, message):
    mv.Aligner(tiny).save(tmp_path / "model")
    (tmp_path / "model" / "pyterrier_mvret.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        mv.Aligner.load(tmp_path / "model")


@pytest.mark.parametrize("wrong", [mv.TopK(2), 3, mv.ColBERT("nobody/nothing")], ids=repr)
def test_what_is_no_encoder_is_said_at_once(wrong):
    with pytest.raises(ValueError, match=r"expected a folder, .* got .*pass its \.encoder"):
        mv.Aligner(wrong)


def test_numbers_of_numpy_are_numbers(tiny, tmp_path):
    aligner = mv.Aligner(tiny, salience=np.bool_(False), doc_keep=np.float32(0.2), query_keep=np.float32(0.7))
    assert (aligner.pruning.document, aligner.pruning.query) == (0.2, 0.7)
    assert indexed(aligner, tmp_path / "x.mv").manifest["encoder"]["document"]["kept"] == 0.2
    aligner.save(tmp_path / "model")
    assert mv.Aligner.load(tmp_path / "model").pruning == aligner.pruning


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("keep", [{}, PRUNED], ids=str)
def test_explanations_sum_to_the_score(salient, rule, keep):
    aligner = mv.Aligner(salient, **rule, **keep)
    scores = aligner.text_scorer()(candidates()).set_index(["qid", "docno"])["score"]
    for qid, query in QUERIES.itertuples(index=False):
        pairs = aligner.explain(query, TEXTS["d2"])
        assert pairs["contribution"].sum() == pytest.approx(scores[qid, "d2"], abs=1e-5)
        assert pairs["share"].sum() == pytest.approx(1)
        if not isinstance(rule["alignment"], mv.Soft):
            np.testing.assert_allclose(pairs["query_salience"] * pairs["doc_salience"], pairs["weight"], atol=1e-6)
        for row in pairs.itertuples():
            if row.doc_end > row.doc_start:
                assert TEXTS["d2"][row.doc_start : row.doc_end].lower() == row.doc_token.removeprefix("##")


def test_pictures_show_pairs_and_saliences(salient):
    pytest.importorskip("matplotlib").use("Agg")
    aligner = mv.Aligner(salient, mv.TopK(2))
    pairs = aligner.explain("a cat", "a cat sat")
    ax = mv.explain.heatmap(aligner, "a cat", "a cat sat")
    assert len(ax.patches) == len(pairs)
    assert len(ax.figure.axes) >= 2
