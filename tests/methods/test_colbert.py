import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv

TEXTS = {"d1": "a cat sat on the mat", "d2": "the sky is blue, the rain fell", "d3": "a dog ran", "d4": ""}
QUERIES = pd.DataFrame({"qid": ["1", "2"], "query": ["where is a cat", "blue sky"]})


def candidates() -> pd.DataFrame:
    documents = pd.DataFrame({"docno": TEXTS.keys(), "text": TEXTS.values()})
    return QUERIES.merge(documents, how="cross").assign(score=0.0, rank=0)


def corpus():
    return [{"docno": d, "text": t} for d, t in TEXTS.items()]


@pytest.fixture(scope="module")
def colbert(tiny_encoder):
    return mv.ColBERT(tiny_encoder)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("int8", 2e-2)], ids=["float32", "float16", "int8"]
)
@pytest.mark.parametrize("settings", [{}, {"similarity": "l2"}, {"normalize": "query"}], ids=str)
def test_scores_from_the_index_are_those_of_the_text(tiny_encoder, tmp_path, dtype, tolerance, settings):
    colbert = mv.ColBERT(tiny_encoder, **settings)
    index = mv.MultiVecIndex(tmp_path / "x.mv", dtype=dtype)
    (colbert.doc_encoder() >> index).index(corpus())
    fly = colbert.text_scorer()(candidates())
    # the index remembers the scoring of the model that built it; the model may also be named
    for scorer in (index.scorer(), index.scorer(colbert)):
        stored = (colbert.query_encoder() >> scorer)(candidates())
        np.testing.assert_allclose(stored["score"], fly["score"], rtol=tolerance, atol=tolerance)
    everything = (colbert.query_encoder() >> index.retriever(num_results=None))(QUERIES)
    merged = everything.merge(fly, on=["qid", "docno"], suffixes=("", "_fly"))
    assert len(merged) == len(fly)
    np.testing.assert_allclose(merged["score"], merged["score_fly"], rtol=tolerance, atol=tolerance)


def test_settings_change_scores_as_they_say(tiny_encoder):
    plain = mv.ColBERT(tiny_encoder).text_scorer()(candidates())
    l2 = mv.ColBERT(tiny_encoder, similarity="l2").text_scorer()(candidates())
    mean = mv.ColBERT(tiny_encoder, normalize="query").text_scorer()(candidates())
    n = 12  # query vectors, expansion included
    np.testing.assert_allclose(l2["score"], 2 * plain["score"] - 2 * n, atol=1e-4)
    np.testing.assert_allclose(mean["score"], plain["score"] / n, atol=1e-6)
    assert plain["rank"].tolist() == l2["rank"].tolist() == mean["rank"].tolist()
    assert mean["score"].between(-1, 1).all()


def test_scores_do_not_depend_on_the_company_of_a_document(colbert):
    together = colbert.text_scorer()(candidates()).set_index(["qid", "docno"])["score"]
    for i in range(len(candidates())):
        alone = colbert.text_scorer()(candidates().iloc[[i]])
        assert alone["score"].iloc[0] == pytest.approx(together[alone["qid"].iloc[0], alone["docno"].iloc[0]], abs=1e-5)


def test_many_texts_are_encoded_in_blocks(colbert, monkeypatch):
    from pyterrier_mvret.encoders import stages

    expected = colbert.text_scorer()(candidates())
    monkeypatch.setattr(stages, "_TEXTS_A_BLOCK", 2)
    np.testing.assert_allclose(colbert.text_scorer()(candidates())["score"], expected["score"], atol=1e-5)


def test_odd_texts_have_scores(colbert):
    odd = pd.DataFrame(
        {
            "qid": ["1", "1", "2", "2", "3"],
            "query": ["?!...", "?!...", "", "", "a cat " * 100],
            "docno": list("abcde"),
            "text": ["", "...", "a cat " * 200, "你好 ~", "a cat"],
        }
    )
    scores = colbert.text_scorer()(odd)["score"]
    assert np.isfinite(scores).all()
    assert (scores > -100).all()


def test_missing_queries_and_texts(colbert):
    union = candidates().head(4)
    hole = union.assign(query=[None, "where is a cat", np.nan, "where is a cat"])
    pd.testing.assert_series_equal(colbert.text_scorer()(hole)["score"], colbert.text_scorer()(union)["score"])
    assert all(len(v) == 12 for v in colbert.query_encoder()(hole)["query_embs"])
    with pytest.raises(ValueError, match="'query' has no value in any row of query '1'"):
        colbert.query_encoder()(hole.assign(query=None))
    with pytest.raises(ValueError, match="query '1' must be a string of valid Unicode, got"):
        colbert.query_encoder()(pd.DataFrame({"qid": ["1"], "query": [3]}))
    with pytest.raises(ValueError, match="docno 'd2' with"):
        colbert.text_scorer()(union.assign(text=["a", None, "b", "c"]))
    with pytest.raises(ValueError, match="1 of 1 do not, the first is docno 'd' with"):
        colbert.doc_encoder()(pd.DataFrame({"docno": ["d"], "text": [float("nan")]}))


def test_wrong_frames_name_the_missing_column_and_the_stage(colbert, tmp_path):
    with pytest.raises(pt.validate.InputValidationError, match=r"(?s)query.*QueryEncoder|QueryEncoder.*query"):
        colbert.query_encoder()(pd.DataFrame({"qid": ["1"]}))
    index = mv.MultiVecIndex(tmp_path / "x.mv").index([])
    with pytest.raises(pt.validate.InputValidationError, match="query_embs"):
        index.retriever()(QUERIES)
    with pytest.raises(pt.validate.InputValidationError, match="docno"):
        index.retriever()(colbert.query_encoder()(candidates()))


def test_an_index_of_another_encoder_is_refused(colbert, tiny, tmp_path):
    other = mv.ColBERT(mv.TokenEncoder(tiny, normalize=False, device="cpu"))
    index = mv.MultiVecIndex(tmp_path / "x.mv")
    (colbert.doc_encoder() >> index).index(corpus())
    mine, theirs = colbert.encoder.space, other.encoder.space
    for stage in (index.retriever(), index.scorer()):
        frame = QUERIES if stage == index.retriever() else candidates()
        with pytest.raises(ValueError, match=f"encoder {mine}, the queries vectors of {theirs}"):
            (other.query_encoder() >> stage)(frame)
    with pytest.raises(ValueError, match="the model vectors of"):
        (colbert.query_encoder() >> index.scorer(other))(candidates())
    with pytest.raises(ValueError, match=f"built with encoder {mine}; these documents come from {theirs}"):
        (other.doc_encoder() >> index.indexer("append")).index([{"docno": "n", "text": "a"}])
    longer = mv.ColBERT(tiny, doc_length=10, device="cpu")
    (longer.query_encoder() >> index.retriever())(QUERIES)  # the same space: queries may come from it...
    with pytest.raises(ValueError, match="built with document="):  # ...documents made otherwise may not
        (longer.doc_encoder() >> index.indexer("append")).index([{"docno": "n", "text": "a"}])
    with pytest.raises(ValueError, match="another encoder than the documents before"):
        mixed = [*colbert.doc_encoder()(corpus()), *longer.doc_encoder()([{"docno": "n", "text": "a"}])]
        mv.MultiVecIndex(tmp_path / "y.mv").index(mixed)
    assert len(index) == 4


def test_index_says_how_it_was_made(colbert, tmp_path):
    index = mv.MultiVecIndex(tmp_path / "x.mv", store_ids=True, store_offsets=True)
    (colbert.doc_encoder() >> index).index(corpus())
    encoder = mv.MultiVecIndex(tmp_path / "x.mv").manifest["encoder"]
    assert encoder["space"] == colbert.encoder.space
    assert encoder["document"]["prefix"] == "[unused1] "
    assert encoder["scoring"] == {"similarity": "cosine", "normalize": None}
    loaded = index.vec_loader()(pd.DataFrame({"docno": ["d2"]})).iloc[0]
    text = TEXTS["d2"]
    tokens = colbert.encoder.tokens(loaded["doc_tok_ids"])
    words = [text[a:b] for a, b in loaded["doc_tok_offsets"]]
    assert [w for w in words if w] == [t for t in tokens if not t.startswith("[")]


def test_experiment_and_plans(colbert, tmp_path):
    index = mv.MultiVecIndex(tmp_path / "x.mv")
    (colbert.doc_encoder() >> index).index(corpus())
    qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["d1", "d2"], "label": [1, 1]})
    first = pt.Transformer.from_df(candidates())
    systems = {
        "text": first >> colbert.text_scorer(),
        "index": first >> colbert.query_encoder() >> index.scorer(),
        "end": colbert.query_encoder() >> index.retriever(),
        "end % 2": colbert.query_encoder() >> index.retriever() % 2,
    }
    tables = [
        pt.Experiment(systems, QUERIES, qrels, ["map", "recip_rank"], plan=plan, validate=validate, batch_size=size)
        for plan, validate, size in (("linear", "error", None), ("tree", "warn", None), ("linear", "warn", 1))
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])
    assert tables[0]["map"][:3].nunique() == 1  # the first three rank the same documents by the same scores


def test_explanation_adds_up_to_the_score(tiny_encoder):
    for settings in ({}, {"similarity": "l2"}, {"normalize": "query"}):
        colbert = mv.ColBERT(tiny_encoder, **settings)
        for row in colbert.text_scorer()(candidates()).itertuples():
            pairs = colbert.explain(row.query, row.text)
            assert pairs["contribution"].sum() == pytest.approx(row.score, abs=1e-4)
    pairs = colbert.explain("cat", "a cat sat")
    matched = pairs[pairs["doc_token"] == "cat"].iloc[0]
    assert (matched["doc_start"], matched["doc_end"]) == (2, 5)
    assert pairs[pairs["query_token"] == "cat"][["query_start", "query_end"]].values.tolist() == [[0, 3]]


def test_heatmap(colbert):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = mv.explain.heatmap(colbert, "a cat", "a cat sat")
    assert len(ax.patches) == 12
    assert [t.get_text() for t in ax.get_xticklabels()] == ["[CLS]", "[unused1]", "a", "cat", "sat", "[SEP]"]


def test_save_and_load(tiny_encoder, tmp_path):
    colbert = mv.ColBERT(tiny_encoder, similarity="l2", normalize="query")
    colbert.save(tmp_path / "saved")
    again = mv.ColBERT.load(tmp_path / "saved", device="cpu")
    assert (again.similarity, again.normalize) == ("l2", "query")
    np.testing.assert_allclose(
        again.text_scorer()(candidates())["score"], colbert.text_scorer()(candidates())["score"], atol=1e-5
    )
    with pytest.raises(FileNotFoundError, match="holds no pyterrier_mvret.json"):
        mv.ColBERT.load(tiny_encoder.name)


def test_arguments(tiny, tiny_encoder):
    assert mv.ColBERT(tiny, device="cpu") == mv.ColBERT(tiny_encoder)
    assert mv.ColBERT(tiny) != mv.ColBERT(tiny, similarity="l2")
    with pytest.raises(ValueError, match="doc_length: set on the TokenEncoder"):
        mv.ColBERT(tiny_encoder, doc_length=9)
    with pytest.raises(ValueError, match="similarity must be"):
        mv.ColBERT(tiny, similarity="dot")


def test_token_ids_and_embeddings_go_together(colbert):
    out = colbert.query_encoder()(QUERIES)
    for row in out.itertuples():
        assert len(row.query_tok_ids) == len(row.query_embs) == 12
        assert row.query_embs.dtype == np.float32
    docs = colbert.doc_encoder()(pd.DataFrame(corpus()))
    for row in docs.itertuples():
        assert len(row.doc_tok_ids) == len(row.doc_tok_offsets) == len(row.doc_embs)


def test_pooled_encoder_through_the_index(tiny, tmp_path):
    colbert = mv.ColBERT(tiny, token_pooling=2, device="cpu")
    index = mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32")
    (colbert.doc_encoder() >> index).index(corpus())
    fly = colbert.text_scorer()(candidates())
    stored = (colbert.query_encoder() >> index.scorer())(candidates())
    np.testing.assert_allclose(stored["score"], fly["score"], atol=1e-5)
    pairs = colbert.explain("a cat", TEXTS["d1"])
    assert pairs["doc_token"].str.startswith("#").all()


def test_l2_is_the_distance_also_of_vectors_of_any_length(tiny, tmp_path):
    encoder = mv.TokenEncoder(tiny, normalize=False, device="cpu")
    colbert = mv.ColBERT(encoder, similarity="l2")
    index = mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32")
    (colbert.doc_encoder() >> index).index(corpus())
    stored = (colbert.query_encoder() >> index.scorer())(candidates())
    for row, fly in zip(stored.itertuples(), colbert.text_scorer()(candidates())["score"]):
        d = encoder.encode_docs([row.text])[0].astype(np.float64)
        expected = sum(max(-((q - v) ** 2).sum() for v in d) for q in row.query_embs.astype(np.float64))
        assert row.score == pytest.approx(expected, rel=1e-4)
        assert fly == pytest.approx(expected, rel=1e-4)
        assert colbert.explain(row.query, row.text)["contribution"].sum() == pytest.approx(expected, rel=1e-4)


def test_append_of_documents_that_another_rule_scores(tiny_encoder, tmp_path):
    index = mv.MultiVecIndex(tmp_path / "x.mv")
    (mv.ColBERT(tiny_encoder).doc_encoder() >> index).index(corpus())
    l2 = mv.ColBERT(tiny_encoder, similarity="l2")
    with pytest.raises(ValueError, match="was built with scoring=.*cosine.*; these have .*l2"):
        (l2.doc_encoder() >> index.indexer("append")).index([{"docno": "n", "text": "a"}])


def test_settings_changed_later_are_in_force(tiny_encoder):
    colbert = mv.ColBERT(tiny_encoder)
    colbert.similarity = "l2"
    assert colbert == mv.ColBERT(tiny_encoder, similarity="l2")
    assert (colbert.text_scorer()(candidates())["score"] < 0).all()


def test_a_saved_model_is_not_opened_as_another(tiny_encoder, tmp_path):
    mv.ColBERT(tiny_encoder, similarity="l2").save(tmp_path / "saved")
    with pytest.raises(ValueError, match="was saved with .*l2.*: open it with ColBERT.load"):
        mv.ColBERT(tmp_path / "saved")
    assert mv.ColBERT(tmp_path / "saved", similarity="l2").similarity == "l2"


def test_query_weights_count_in_text_scoring_too(colbert, tmp_path):
    index = mv.MultiVecIndex(tmp_path / "x.mv", dtype="float32")
    (colbert.doc_encoder() >> index).index(corpus())
    weights = np.linspace(0, 2, 12)
    weighted = candidates().assign(query_weights=[weights] * len(candidates()))
    fly = colbert.text_scorer()(weighted)
    # a fresh encoding drops weights of earlier vectors, so they are put on after it
    stored = index.scorer()(colbert.query_encoder()(candidates()).assign(query_weights=weighted["query_weights"]))
    np.testing.assert_allclose(fly["score"], stored["score"], atol=1e-5)
    assert np.abs(fly["score"] - colbert.text_scorer()(candidates())["score"]).max() > 0.01
    ones = candidates().assign(query_weights=[np.ones(12)] * len(candidates()))
    pd.testing.assert_series_equal(colbert.text_scorer()(ones)["score"], colbert.text_scorer()(candidates())["score"])
    assert "query_weights" not in colbert.query_encoder()(weighted).columns
    with pytest.raises(ValueError, match="query_weights of query '1' must be 12 finite numbers"):
        colbert.text_scorer()(candidates().assign(query_weights=[np.ones(3)] * len(candidates())))


def test_columns_of_earlier_vectors_do_not_stay_beside_new_ones(colbert, tiny):
    pooled = mv.ColBERT(tiny, token_pooling=2, device="cpu")
    out = (colbert.doc_encoder() >> pooled.doc_encoder())(pd.DataFrame(corpus()))
    assert "doc_tok_ids" not in out.columns
    assert "doc_tok_offsets" not in out.columns
    empty = pooled.doc_encoder()(pd.DataFrame(corpus()).iloc[:0])
    assert list(empty.columns) == list(pooled.doc_encoder()(pd.DataFrame(corpus())).columns)


def test_a_cutoff_does_not_lose_the_row_that_has_the_query(colbert):
    union = pd.DataFrame(
        {"qid": "1", "query": ["a cat", None], "docno": ["a", "b"], "score": [1.0, 5.0], "rank": [1, 0]}
    )
    pipeline = colbert.query_encoder() % 1
    for out in (pipeline(union), pipeline.compile()(union)):
        assert out["docno"].tolist() == ["b"]
        assert out["query_embs"].iloc[0].shape == (12, 8)


def test_equal_queries_share_their_vectors_safely(colbert):
    out = colbert.query_encoder()(pd.DataFrame({"qid": ["1", "2"], "query": ["a cat", "a cat"]}))
    with pytest.raises(ValueError, match="read-only"):
        out["query_embs"].iloc[0][:] = 0


def test_texts_that_are_no_text_are_named(colbert):
    with pytest.raises(ValueError, match="docno 'd' with"):
        colbert.doc_encoder()(pd.DataFrame({"docno": ["d"], "text": pd.Series(["\ud83d"], dtype=object)}))


def test_texts_are_encoded_in_blocks_of_bounded_size(tiny, monkeypatch):
    from pyterrier_mvret.encoders import stages

    sizes = []

    class Spy(mv.TokenEncoder):
        def encode_docs(self, texts, verbose=None):
            sizes.append(len(texts))
            return super().encode_docs(texts, verbose)

    monkeypatch.setattr(stages, "_TEXTS_A_BLOCK", 4)
    mv.ColBERT(Spy(tiny, device="cpu")).text_scorer()(candidates())
    assert sizes == [4, 4]
