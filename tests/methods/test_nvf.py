"""NVF: its verbs over frames, what training may and may not do, files."""

import copy
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.training.candidate_sets import unit

DIM = 8
FEATURES = ("concat", "difference", "cross")


def frame(queries=6, candidates=5, seed=0) -> pd.DataFrame:
    """Results whose relevant document is the one with the largest *second* half of its product."""
    rng = np.random.default_rng(seed)
    documents = unit(rng.normal(size=(12, DIM)).astype(np.float32))
    rows = []
    for i in range(queries):
        q = unit(rng.normal(size=(1, DIM)).astype(np.float32))[0]
        found = rng.permutation(12)[:candidates]
        for rank, d in enumerate(found):
            rows.append((f"q{i}", f"words {i}", q, f"d{d}", documents[d], float(10 - rank), rank))
    return pd.DataFrame(rows, columns=["qid", "query", "query_vec", "docno", "doc_vec", "score", "rank"])


def judged(results: pd.DataFrame) -> pd.DataFrame:
    half = [float(q[4:] @ d[4:]) for q, d in zip(results["query_vec"], results["doc_vec"])]
    best = results.assign(half=half).sort_values("half").groupby("qid").tail(1)
    return best[["qid", "docno"]].assign(label=1)


def products(results: pd.DataFrame) -> np.ndarray:
    return np.array([float(q @ d) for q, d in zip(results["query_vec"], results["doc_vec"])])


def fitted(features="difference", **settings) -> mv.NVF:
    results = frame(60)
    return mv.NVF(features=features, hidden=16, **settings).fit(results, judged(results), epochs=4, verbose=False)


# ---------------------------------------------------------------------- before training


@pytest.mark.parametrize("features", FEATURES)
def test_before_training_it_is_the_inner_product(features):
    results = frame()
    found = mv.NVF(features=features).reranker()(results)
    np.testing.assert_allclose(found["score"], products(results), atol=1e-6)
    expected = results.assign(p=products(results)).groupby("qid")["p"].rank(ascending=False) - 1
    assert found["rank"].tolist() == expected.astype(int).tolist()
    scaled = results.assign(query_vec=[q * 7 for q in results["query_vec"]])
    pd.testing.assert_series_equal(mv.NVF(features=features).reranker()(scaled)["rank"], found["rank"])
    raw = mv.NVF(features=features, normalize=False).reranker()(scaled)
    np.testing.assert_allclose(raw["score"], 7 * products(results), rtol=1e-5, atol=1e-5)


def test_before_training_with_first_stage_scores_it_is_the_first_stage():
    results = frame().assign(score=lambda f: f["score"] * 3 - 50)
    found = mv.NVF(use_score=True).reranker()(results)
    assert found["rank"].tolist() == results["rank"].tolist()
    assert (found["score"].min(), found["score"].max()) == (0, 1)


def test_the_notes_form_must_be_trained():
    nvf = mv.NVF(residual=False)
    with pytest.raises(ValueError, match="residual=False scores nothing before it is trained"):
        nvf.reranker()(frame())
    with pytest.raises(ValueError, match="must be trained: fit_query_transform"):
        nvf.query_transform()(frame())


def test_the_transform_leaves_queries_where_they_are():
    results = frame()
    moved = mv.NVF().query_transform()(results.assign(query_vec=[3 * q for q in results["query_vec"]]))
    np.testing.assert_allclose(np.stack(moved["query_vec"]), np.stack(results["query_vec"]), atol=1e-6)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("features", FEATURES)
def test_it_learns_what_only_half_of_the_dimensions_say(features):
    train, test = frame(400), frame(100, seed=1)
    nvf = mv.NVF(features=features, hidden=32)
    nvf.fit(train, judged(train), epochs=30, batch_size=32, learning_rate=3e-3, patience=None, verbose=False)
    before, after = (
        pt.Evaluate(run, judged(test), metrics=["recip_rank"])["recip_rank"]
        for run in (mv.NVF().reranker()(test), nvf.reranker()(test))
    )
    # option A must learn a product from sums, for which these are too few
    assert after > (before - 0.02 if features == "concat" else before + 0.05)
    assert nvf.history.columns.tolist() == ["epoch", "loss", "nDCG@10", "kept"]
    assert nvf.history["loss"].iloc[-1] < nvf.history["loss"].iloc[1]


def test_validation_keeps_what_was_there_where_nothing_is_learned():
    results = frame(20)
    best = results.assign(p=products(results)).sort_values("p").groupby("qid").tail(1)
    nvf = mv.NVF().fit(results, best[["qid", "docno"]].assign(label=1), epochs=3, verbose=False)
    assert nvf.history.loc[nvf.history["kept"], "epoch"].tolist() == [0]
    np.testing.assert_allclose(nvf.reranker()(results)["score"], products(results), atol=1e-6)


def test_a_pipeline_trains_it_by_given_topics():
    train, valid = frame(30), frame(10, seed=2).assign(qid=lambda f: "v" + f["qid"])
    everything = pd.concat([train, valid])
    source = pt.Transformer.from_df(everything.drop(columns=["query"]), uniform=True)
    topics = [part.drop_duplicates("qid")[["qid", "query"]] for part in (train, valid)]
    nvf = mv.NVF(hidden=8)
    pipeline = source >> nvf.reranker(epochs=2, measure="RR@5")
    pipeline.fit(topics[0], judged(train), topics[1], judged(valid))
    assert nvf.history.columns.tolist() == ["epoch", "loss", "RR@5", "kept"]
    assert len(nvf.history) == 3
    assert nvf._scorer is not None


def test_equal_seeds_make_equal_weights_and_stages_know_which_they_have():
    first, second, other = fitted(), fitted(), fitted(seed=1)
    assert first == second and hash(first) == hash(second)
    assert first != other and first != mv.NVF(hidden=16)
    assert first.reranker() == second.reranker() != other.reranker()
    results = frame(seed=3)
    pd.testing.assert_frame_equal(first.reranker()(results), second.reranker()(results))


def test_going_on_from_the_last_weights():
    results = frame(60)
    nvf = mv.NVF(hidden=16)
    losses = []
    for _ in range(3):
        nvf.fit(results, judged(results), valid=0, epochs=5, warm_start=True, learning_rate=1e-2, verbose=False)
        losses.append(nvf.history["loss"].iloc[1])
    assert losses[0] > losses[1] > losses[2]
    anew = nvf.fit(results, judged(results), valid=0, epochs=5, learning_rate=1e-2, verbose=False)
    assert anew.history["loss"].iloc[1] == losses[0]


@pytest.mark.parametrize("broken", ["interrupt", "diverge"])
def test_training_that_fails_changes_nothing(monkeypatch, broken):
    nvf = fitted()
    before, history = copy.deepcopy(nvf._weights()), nvf.history
    results = frame(60, seed=5)
    if broken == "interrupt":

        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("pyterrier_mvret.training.vector_field.listwise", stop)
        with pytest.raises(KeyboardInterrupt):
            nvf.fit(results, judged(results), epochs=2, warm_start=True, verbose=False)
    else:
        with pytest.raises(ValueError, match="the loss is"):
            nvf.fit(results, judged(results), epochs=9, warm_start=True, learning_rate=1e30, verbose=False)
    assert all(np.array_equal(before[name], weight) for name, weight in nvf._weights().items())
    assert nvf.history is history


@pytest.fixture
def index(tmp_path):
    results = frame(60)
    documents = results.drop_duplicates("docno")[["docno", "doc_vec"]]
    return mv.SingleVecIndex(tmp_path / "docs.sv").index(documents.to_dict(orient="records"))


def test_pairs_without_judgements(index):
    results = frame(60)
    pairs = judged(results).merge(results.drop_duplicates("qid")[["qid", "query_vec"]], on="qid")
    nvf = mv.NVF(hidden=8).fit_pairs(pairs, index, depth=4, epochs=2, verbose=False)
    assert (nvf.depth, len(nvf.history)) == (4, 3)
    again = mv.NVF(hidden=8).fit_pairs(
        list(zip(pairs["query_vec"], pairs["docno"])), index, depth=4, epochs=2, verbose=False
    )
    assert again == nvf


def test_the_query_transform_in_front_of_an_index(index):
    results = frame(60)
    topics = results.drop_duplicates("qid")[["qid", "query", "query_vec"]]
    qrels = judged(results)
    nvf = mv.NVF()
    plain, untrained = index.retriever(num_results=3), nvf.retriever(index, num_results=3)
    pd.testing.assert_frame_equal(plain(topics)[["qid", "docno", "rank"]], untrained(topics)[["qid", "docno", "rank"]])
    nvf.fit_query_transform(topics, qrels, index, valid=0, epochs=60, learning_rate=1e-2, verbose=False)
    before, after = (
        pt.Evaluate(run(topics), qrels, metrics=["recip_rank"])["recip_rank"] for run in (plain, untrained)
    )
    assert after > before + 0.1
    assert nvf.transform_history["loss"].iloc[-1] < nvf.transform_history["loss"].iloc[1]
    assert nvf.soft_result().temperature == pytest.approx(float(nvf._transform.temperature.detach()))
    pairs = qrels.merge(topics, on="qid")
    by_pairs = mv.NVF().fit_query_transform(pairs, index=index, epochs=1, verbose=False)
    assert by_pairs.transform_history["epoch"].tolist() == [0, 1]
    feedback = untrained >> index.vec_loader() >> nvf.soft_result(2) >> index.retriever(num_results=2)
    assert feedback(topics).groupby("qid").size().eq(2).all()


def test_topics_without_judgements_are_not_held_out(index):
    results = frame(30).drop(columns="query")
    qrels = judged(results).head(4)
    topics = results.drop_duplicates("qid")[["qid", "query_vec"]]
    for seed in range(4):
        nvf = mv.NVF(hidden=4, seed=seed)
        nvf.fit(results, qrels, epochs=1, verbose=False)
        nvf.fit_query_transform(topics, qrels, index, epochs=1, verbose=False)
        for history in (nvf.history, nvf.transform_history):
            assert history["nDCG@10"].iloc[0] > 0
    with pytest.raises(ValueError, match="no query has a relevant document: queries are 'v', ..."):
        nvf.fit(
            results, qrels, results.assign(qid="v" + results["docno"]).drop_duplicates("qid").assign(qid="v"), qrels
        )


def test_judgements_of_documents_that_the_index_lacks(index):
    results = frame(20)
    qrels = pd.concat([judged(results), judged(results).assign(docno="elsewhere", label=2)])
    nvf = mv.NVF(hidden=4).fit(results, qrels, index=index, epochs=1, verbose=False)
    nvf.fit_query_transform(results.drop_duplicates("qid"), qrels, index, epochs=1, verbose=False)
    assert len(nvf.history) == len(nvf.transform_history) == 2


def test_missing_relevant_documents_come_from_the_index(index):
    results = frame(10).drop(columns="doc_vec")
    far = results.groupby("qid")["docno"].agg(lambda mine: next(f"d{i}" for i in range(12) if f"d{i}" not in set(mine)))
    qrels = far.reset_index().assign(label=1)
    with pytest.raises(ValueError, match="no query has a relevant document"):
        mv.NVF().fit(results, qrels, index=index, missing="drop", valid=0, verbose=False)
    assert len(mv.NVF(hidden=4).fit(results, qrels, index=index, valid=0, epochs=1, verbose=False).history) == 2


# ---------------------------------------------------------------------- frames


def test_groups_of_different_sizes_and_orders_score_alike():
    nvf, results = fitted(), frame(30, 5)
    expected = nvf.reranker()(results).set_index(["qid", "docno"])["score"]
    ragged = results.groupby("qid").apply(lambda g: g.sample(1 + int(g.name[1:]) % 5, random_state=0)[g.columns])
    ragged = results[results.index.isin(ragged.index.get_level_values(-1))].sample(frac=1, random_state=1)
    found = nvf.reranker()(ragged)
    np.testing.assert_allclose(
        found["score"], [expected[qid, d] for qid, d in zip(found["qid"], found["docno"])], atol=1e-5
    )


def test_a_list_wise_score_is_of_as_many_candidates_as_it_was_trained_with():
    nvf = fitted("cross")
    assert nvf.depth == 5
    with pytest.raises(ValueError, match="trained with 5 candidates a query.*put % 5 in front, 7 came"):
        nvf.reranker()(frame(2, 7))
    assert len(nvf.reranker()(frame(2, 3))) == 6
    fitted().reranker()(frame(2, 7))  # others do not mind


def test_a_query_vector_in_one_row_of_its_query_is_enough():
    results = frame()
    sparse = results.assign(query_vec=results["query_vec"].where(results["rank"] == 3, None))
    pd.testing.assert_series_equal(mv.NVF().reranker()(sparse)["score"], mv.NVF().reranker()(results)["score"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(doc_vec=[np.full(DIM, np.nan), *f["doc_vec"][1:]]), "doc_vec of document 'd.*NaN"),
        (lambda f: f.assign(query_vec=[np.full(DIM, np.inf)] * len(f)), "query_vec of query 'q0': holds NaN or inf"),
        (lambda f: f.assign(doc_vec=[np.ones(3)] * len(f)), "query_vec has 8 dimensions and doc_vec 3"),
        (lambda f: f.assign(doc_vec=[None, *f["doc_vec"][1:]]), "doc_vec of document"),
        (lambda f: f.assign(query_vec_encoder="a#1", doc_vec_encoder='{"space": "b#2"}'), "different encoders meet"),
        (lambda f: f.assign(doc_vec_encoder="b#2"), "doc_vec_encoder is not a description of an encoder: 'b#2'"),
        (lambda f: f.assign(query_vec=[np.ones(0)] * len(f)), "query_vec of query 'q0' has no dimensions"),
    ],
)
def test_vectors_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        mv.NVF().reranker()(change(frame()))


def test_scores_that_are_no_numbers():
    results = frame()
    long = results.assign(query_vec=[q * 1e30 for q in results["query_vec"]], doc_vec=results["doc_vec"] * 1e30)
    with pytest.raises(ValueError, match="score of document 'd.*' for query 'q0' is .*: vectors too long"):
        mv.NVF(normalize=False).reranker()(long)
    added = mv.NVF(use_score=True)
    for value in (np.nan, np.inf):
        odd = results.assign(score=[*results["score"][:-1], value])
        where = f"score of document {odd['docno'].iloc[-1]!r} for query 'q5' is {value}: use_score=True"
        with pytest.raises(ValueError, match=where):
            added.reranker()(odd)
        with pytest.raises(ValueError, match=where):
            added.fit(results, judged(results), odd, judged(results), verbose=False)
    # a text without tokens, say
    least = added.reranker()(results.assign(score=results["score"].where(results["rank"] < 4, -np.inf)))
    assert least["rank"].tolist() == results["rank"].tolist()


def test_documents_of_equal_vectors_are_ranked_by_name():
    rng = np.random.default_rng(0)
    q, d = (unit(rng.normal(size=(1, 384)).astype(np.float32))[0] for _ in range(2))
    names = [f"d{i:02d}" for i in rng.permutation(50)]
    results = pd.DataFrame({"qid": "1", "docno": names}).assign(query_vec=[q] * 50, doc_vec=[d] * 50)
    found = mv.NVF().reranker()(results).sort_values("rank")
    assert found["docno"].tolist() == sorted(names)


def test_it_remembers_whose_vectors_it_was_trained_on():
    results = frame(20).assign(query_vec_encoder="a#1", doc_vec_encoder='{"space": "elsewhere/a#1"}')
    nvf = mv.NVF(hidden=4).fit(results, judged(results), epochs=1, verbose=False)
    assert nvf.space == "a#1"
    nvf.reranker()(frame())  # of vectors that nothing is said of, nothing is known
    other = frame().assign(query_vec_encoder="b#2")
    for stage in (nvf.reranker(), nvf.query_transform()):
        with pytest.raises(ValueError, match="trained on vectors of a#1, these are of b#2"):
            stage(other)
    other = results.assign(query_vec_encoder="b#2", doc_vec_encoder=None)
    for given in ((other, judged(results)), (results, judged(results), other)):
        with pytest.raises(ValueError, match=r"trained on vectors of a#1, these are of b#2|meet: a#1, b#2"):
            nvf.fit(*given, warm_start=True, verbose=False)
    assert nvf.fit(other, judged(results), epochs=1, verbose=False).space == "b#2"  # anew, of others
    with pytest.raises(ValueError, match="trained on vectors of 8 dimensions, these have 3"):
        short = frame().assign(query_vec=[np.ones(3)] * 30, doc_vec=[np.ones(3)] * 30)
        nvf.reranker()(short)


def test_both_networks_and_the_index_are_of_one_space(index, tmp_path):
    results = frame(20).assign(query_vec_encoder="a#1")
    topics, qrels = results.drop_duplicates("qid"), judged(results)
    short = [{"docno": name, "doc_vec": v[:4]} for name, v in zip(results["docno"][:5], results["doc_vec"])]
    small = mv.SingleVecIndex(tmp_path / "small.sv").index(short)
    nvf = mv.NVF(hidden=4).fit(results, qrels, epochs=1, verbose=False)
    with pytest.raises(ValueError, match="trained on vectors of 8 dimensions, these have 4"):
        cut = topics.assign(query_vec=[q[:4] for q in topics["query_vec"]])
        nvf.fit_query_transform(cut, qrels.assign(docno=short[0]["docno"]), small, verbose=False)
    with pytest.raises(ValueError, match="trained on vectors of a#1, these are of b#2"):
        nvf.fit_query_transform(topics.assign(query_vec_encoder="b#2"), qrels, index, verbose=False)
    # an index or topics of which nothing is said forget nothing
    assert nvf.fit_query_transform(topics.drop(columns="query_vec_encoder"), qrels, index, epochs=1).space == "a#1"

    records = [r | {"doc_vec_encoder": '{"space": "b#2"}'} for r in index.get_corpus_iter()]
    other = mv.SingleVecIndex(tmp_path / "other.sv").index(records)
    for train in (mv.NVF().fit, mv.NVF().fit_query_transform):
        with pytest.raises(ValueError, match="vectors of different encoders meet: a#1, b#2"):
            train(results, qrels, index=other, verbose=False)
    unnamed = results.drop(columns="query_vec_encoder")
    assert mv.NVF(hidden=4).fit(unnamed, qrels, index=other, epochs=1, verbose=False).space == "b#2"
    with pytest.raises(ValueError, match=r"an index with get_corpus_iter\(\), got None"):
        mv.NVF().fit_query_transform(topics, qrels)


def test_vectors_that_keep_their_lengths_are_moved_as_in_training(index):
    import torch

    results = frame(60)
    topics = results.drop_duplicates("qid").assign(query_vec=lambda f: f["query_vec"] * 7)
    nvf = mv.NVF(normalize=False)
    nvf.fit_query_transform(topics, judged(results), index, valid=0, epochs=5, learning_rate=1e-2, verbose=False)
    with torch.inference_mode():
        trained = nvf._transform(torch.from_numpy(np.stack(topics["query_vec"])))
    np.testing.assert_allclose(np.stack(nvf.query_transform()(topics)["query_vec"]), trained, atol=1e-6)


def test_soft_result_is_a_mean_of_the_best():
    results = frame(2, 4)
    found = mv.NVF().soft_result(2, 0.1)(results.sample(frac=1, random_state=0))
    assert sorted(found.columns) == ["qid", "query", "query_vec"]
    for qid, vector in zip(found["qid"], found["query_vec"]):
        mine = results[results["qid"] == qid].head(2)
        d, q = np.stack(mine["doc_vec"]), mine["query_vec"].iloc[0]
        weights = np.exp(d @ q / 0.1) / np.exp(d @ q / 0.1).sum()
        np.testing.assert_allclose(vector, weights @ d, atol=1e-6)
    assert mv.NVF().soft_result()(results.iloc[:0]).columns.tolist() == ["qid", "query", "query_vec"]
    with pytest.raises(ValueError, match="vectors of different encoders meet: a#1, b#2"):
        mv.NVF().soft_result()(results.assign(query_vec_encoder="a#1", doc_vec_encoder='{"space": "b#2"}'))
    coldest = mv.NVF().soft_result(4, 1e-30)(results)["query_vec"]
    assert np.isfinite(np.stack(coldest)).all()
    for wrong in ({"k": 0}, {"temperature": 0.0}, {"temperature": 1e-45}, {"temperature": float("nan")}):
        with pytest.raises(ValueError, match="at least 1"):
            mv.NVF().soft_result(**wrong)


# ---------------------------------------------------------------------- text, files


def test_verbs_that_read_text_need_an_encoder(index):
    nvf = mv.NVF()
    for verb in (nvf.query_encoder, nvf.doc_encoder, nvf.text_scorer, lambda: nvf.explain("a", "b")):
        with pytest.raises(ValueError, match="NVF has no encoder"):
            verb()


def test_text_is_encoded_and_explained():
    nvf = mv.NVF(mv.models.MINILM)
    texts = ["Cats purr when they are stroked.", "The bank raised its rates.", ""]
    rows = {"qid": "1", "query": "feline pets", "docno": list("abc"), "text": texts, "score": 0.0, "rank": range(3)}
    found = nvf.text_scorer()(pd.DataFrame(rows))
    assert found["docno"][found["rank"].idxmin()] == "a"
    parts = nvf.explain("feline pets", texts[0])
    assert parts["score"].sum() == pytest.approx(found["score"].iloc[0], abs=1e-6)
    learned = pd.concat([found.assign(qid=str(i)) for i in range(5)])
    qrels = learned.drop_duplicates("qid")[["qid"]].assign(docno="b", label=1)
    nvf.fit(learned, qrels, valid=0, epochs=5, verbose=False)
    parts = nvf.explain("feline pets", texts[1])
    score = nvf.text_scorer()(pd.DataFrame(rows))["score"].iloc[1]
    assert parts["score"].sum() == pytest.approx(score, abs=1e-6)
    assert parts["score"].iloc[1] > 0
    with pytest.raises(ValueError, match="trained on vectors of a#1, these are of"):
        nvf.space = "a#1"
        nvf.explain("feline pets", texts[0])
    for other in (mv.NVF(mv.models.MINILM, use_score=True), mv.NVF(mv.models.MINILM, "cross")):
        with pytest.raises(ValueError, match="depend on what else was found"):
            other.explain("a", "b")


@pytest.mark.parametrize("features", FEATURES)
def test_files(tmp_path, features, index):
    nvf, results = fitted(features, dropout=0.0), frame(20)
    topics = results.drop_duplicates("qid")
    nvf.fit_query_transform(topics, judged(results), index, epochs=2, verbose=False)
    nvf.save(tmp_path / "nvf.safetensors")
    loaded = mv.NVF.load(tmp_path / "nvf.safetensors", verbose=True)
    assert loaded == nvf and loaded.depth == nvf.depth and loaded.verbose
    assert repr(loaded) == repr(nvf)
    pd.testing.assert_frame_equal(loaded.reranker()(results), nvf.reranker()(results))
    pd.testing.assert_frame_equal(loaded.query_transform()(results), nvf.query_transform()(results))
    copied = pickle.loads(pickle.dumps(nvf))
    assert copied == nvf
    assert mv.NVF.load(tmp_path / "nvf.safetensors", mv.models.MINILM).encoder is not None
    with pytest.raises(ValueError, match="hidden: fixed by the training of"):
        mv.NVF.load(tmp_path / "nvf.safetensors", hidden=4)


def test_an_untrained_one_is_saved_as_well(tmp_path):
    mv.NVF(hidden=6, seed=3).save(tmp_path / "n")
    assert mv.NVF.load(tmp_path / "n") == mv.NVF(hidden=6, seed=3)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file of a neural vector field"):
        mv.NVF.load(tmp_path / "nothing")
    fitted().save(tmp_path / "nvf")
    content = (tmp_path / "nvf").read_bytes()
    (tmp_path / "nvf").write_bytes(content[:-8])
    with pytest.raises(ValueError, match="cannot be read|is damaged"):
        mv.NVF.load(tmp_path / "nvf")
    (tmp_path / "nvf").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        mv.NVF.load(tmp_path / "nvf")
    mv.TopKSAE(2, latents=4, k=1).save(tmp_path / "sae")
    with pytest.raises(ValueError, match="holds no neural vector field of this version"):
        mv.NVF.load(tmp_path / "sae")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "B"}, "features must be one of"),
        ({"hidden": 3}, "even number"),
        ({"heads": 3, "features": "cross"}, "cannot be divided"),
        ({"batch_size": 4}, "batch_size: set on the VectorEncoder"),
    ],
)
def test_settings_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        mv.NVF(**arguments)
