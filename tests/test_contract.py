"""One contract for every stage of the package; a new stage is one entry in STAGES."""

import copy
import inspect
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.component import Component
from pyterrier_mvret.encoders.stages import TextScorer
from tests.encoders.test_salience import with_heads

TEXTS = {"d1": "a cat sat on the mat", "d2": "the sky is blue", "d3": "a dog ran fast in the rain", "d4": ""}


class Counting(mv.TokenEncoder):
    """Counts the texts that reach the model."""

    calls = 0
    encoded = 0

    def _forward(self, inputs, task, whole):
        type(self).calls += 1
        type(self).encoded += len(inputs)
        return super()._forward(inputs, task, whole)


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    """Models and their indexes: a plain one, and one that prunes and weighs tokens."""
    folder = tmp_path_factory.mktemp("contract")
    with_heads(tiny).save(folder / "salient")
    parts = SimpleNamespace(
        colbert=mv.ColBERT(Counting(tiny, device="cpu")),
        aligner=mv.Aligner(
            Counting(folder / "salient", device="cpu"), mv.TopK(2), normalizer="query", query_keep=0.5, doc_keep=0.6
        ),
        index=mv.MultiVecIndex(folder / "docs.mv", store_ids=True, store_offsets=True),
        weighed=mv.MultiVecIndex(folder / "weighed.mv", store_weights=True),
    )
    corpus = [{"docno": d, "text": t} for d, t in TEXTS.items()]
    parts.latent = mv.LatentTerms(parts.colbert.encoder, mv.TopKSAE.random(16, latents=32, k=3))
    parts.agrame = mv.AGRaME(parts.colbert.encoder, unit=mv.Phrases(3))
    (parts.colbert.doc_encoder() >> parts.index).index(corpus)
    (parts.aligner.doc_encoder() >> parts.weighed).index(corpus)
    for engine in ("pisa", "csr"):
        index = mv.SparseIndex(folder / f"{engine}.sparse", engine)
        setattr(parts, engine, index.index({"docno": d, "toks": toks(text)} for d, text in TEXTS.items()))
    return parts


def toks(text: str) -> dict[str, float]:
    return {word: 1.0 + i for i, word in enumerate(text.split())}


def with_toks(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(query_toks=frame["query"].map(toks))


def queries() -> pd.DataFrame:
    return pd.DataFrame(
        {"qid": ["1", "2", "3"], "query": ["a cat", "blue sky", "a cat"], "topic_note": ["x", "y", "z"]}
    )


def results() -> pd.DataFrame:
    rows = [
        {"qid": q, "query": text, "docno": d, "text": TEXTS[d], "score": float(i), "rank": 3 - i, "extra": q + d}
        for q, text in (("1", "a cat"), ("2", "blue sky"))
        for i, d in enumerate(TEXTS)
    ]
    return pd.DataFrame(rows)


def answers() -> pd.DataFrame:
    said = {"1": "A cat sat and a dog ran.", "2": "The sky is blue."}
    parts = {"1": [["A cat sat", "a dog ran"]], "2": [["the sky"]]}
    frame = results()
    return frame.assign(qanswer=frame["qid"].map(said), qpropositions=frame["qid"].map(parts))


def documents() -> pd.DataFrame:
    return pd.DataFrame([{"docno": d, "text": t, "url": f"u{d}"} for d, t in TEXTS.items()])


# stage -> (how to make it, the same with another setting, an example frame, the columns it adds, or drops: those with a
# minus); what comes after a comma is another case of the same stage
STAGES = {
    "QueryEncoder": (
        lambda p: p.colbert.query_encoder(),
        lambda p: mv.ColBERT(p.colbert.encoder.name, query_length=8).query_encoder(),
        lambda p: queries(),
        {"query_embs", "query_tok_ids", "query_encoder"},
    ),
    "QueryEncoder, weighed and pruned": (
        lambda p: p.aligner.query_encoder(),
        lambda p: p.aligner.query_encoder(refine="full"),
        lambda p: queries(),
        {"query_embs", "query_tok_ids", "query_weights", "query_encoder"},
    ),
    "DocEncoder": (
        lambda p: p.colbert.doc_encoder(),
        lambda p: p.colbert.doc_encoder(text_field="title"),
        lambda p: documents(),
        {"doc_embs", "doc_tok_ids", "doc_tok_offsets", "doc_encoder"},
    ),
    "DocEncoder, weighed and pruned": (
        lambda p: p.aligner.doc_encoder(),
        lambda p: p.aligner.doc_encoder(refine="full"),
        lambda p: documents(),
        {"doc_embs", "doc_tok_ids", "doc_tok_offsets", "doc_weights", "doc_encoder"},
    ),
    "TextScorer": (
        lambda p: TextScorer(p.colbert.encoder, p.colbert.scoring),
        lambda p: TextScorer(p.colbert.encoder, mv.scoring.MaxSim("l2")),
        lambda p: results(),
        set(),
    ),
    "TrainableScorer": (
        lambda p: p.colbert.text_scorer(max_steps=1),
        lambda p: mv.ColBERT(p.colbert.encoder, normalize="query").text_scorer(),
        lambda p: results(),
        set(),
    ),
    "TrainableScorer, weighed and pruned": (
        lambda p: p.aligner.text_scorer(),
        lambda p: p.aligner.text_scorer(refine="full"),
        lambda p: results(),
        set(),
    ),
    "MultiVecRetriever": (
        lambda p: p.index.retriever(),
        lambda p: p.index.retriever(num_results=2),
        lambda p: p.colbert.query_encoder()(queries()),
        {"docno", "score", "rank"},
    ),
    "MultiVecRetriever, weighed": (
        lambda p: p.weighed.retriever(p.aligner),
        lambda p: p.weighed.retriever(mv.scoring.Alignment(mv.TopP(0.5))),
        lambda p: p.aligner.query_encoder()(queries()),
        {"docno", "score", "rank"},
    ),
    "MultiVecScorer": (
        lambda p: p.index.scorer(),
        lambda p: p.index.scorer(mv.scoring.MaxSim("l2")),
        lambda p: p.colbert.query_encoder()(results()),
        set(),
    ),
    "MultiVecScorer, weighed": (
        lambda p: p.weighed.scorer(p.aligner),
        lambda p: p.weighed.scorer(),
        lambda p: p.aligner.query_encoder()(results()),
        set(),
    ),
    "VecLoader": (
        lambda p: p.index.vec_loader(),
        lambda p: mv.MultiVecIndex("elsewhere.mv").vec_loader(),
        lambda p: results(),
        {"doc_embs", "doc_tok_ids", "doc_tok_offsets", "doc_encoder"},
    ),
    "VecLoader, weighed": (
        lambda p: p.weighed.vec_loader(),
        lambda p: mv.MultiVecIndex("elsewhere.mv").vec_loader(),
        lambda p: results(),
        {"doc_embs", "doc_weights", "doc_encoder"},
    ),
    "UnitScorer": (
        lambda p: p.agrame.unit_scorer(),
        lambda p: mv.AGRaME(p.colbert.encoder, alpha=0).unit_scorer(),
        lambda p: results(),
        {"parent_docno", "start", "end", "unit_score", "passage_score"},
    ),
    "UnitScorer, from an index": (
        lambda p: p.agrame.unit_scorer(p.index),
        lambda p: p.agrame.unit_scorer(p.index, keep_passages=2),
        lambda p: results(),
        {"parent_docno", "start", "end", "unit_score", "passage_score"},
    ),
    "UnitFolder": (
        lambda p: p.agrame.fold(),
        lambda p: p.agrame.fold("mean"),
        lambda p: p.agrame.unit_scorer()(results()),
        {"best_unit", *(f"-{c}" for c in ("text", "parent_docno", "start", "end", "unit_score", "passage_score"))},
    ),
}

STAGES |= {
    "QueryTermEncoder": (
        lambda p: p.latent.query_encoder(),
        lambda p: mv.LatentTerms(p.latent.encoder, p.latent.sae, top_query=2).query_encoder(),
        lambda p: queries(),
        {"query_toks", "query_toks_encoder"},
    ),
    "DocTermEncoder": (
        lambda p: p.latent.doc_encoder(),
        lambda p: mv.LatentTerms(p.latent.encoder, p.latent.sae, pool="max").doc_encoder(),
        lambda p: results(),
        {"toks", "toks_encoder"},
    ),
    "SparseRetriever": (
        lambda p: p.pisa.bm25(),
        lambda p: p.pisa.bm25(k1=2),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseRetriever, lucene": (
        lambda p: p.pisa.bm25(idf="lucene"),
        lambda p: p.pisa.bm25(),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseRetriever, dot product": (
        lambda p: p.pisa.retriever(),
        lambda p: p.pisa.retriever(num_results=2),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseRetriever, exact": (
        lambda p: p.csr.bm25(),
        lambda p: mv.SparseIndex(p.csr.path, "pisa").bm25(),
        lambda p: with_toks(queries()),
        {"docno", "score", "rank"},
    ),
    "SparseScorer": (
        lambda p: p.pisa.scorer(),
        lambda p: p.pisa.scorer(mv.scoring.BM25()),
        lambda p: with_toks(results()),
        set(),
    ),
}
CITATIONS = {"sentence_id", "sentence", "sentence_start", "sentence_end", "margin", "propositions"}
STAGES |= {
    "Citer": (
        lambda p: p.agrame.cite(),
        lambda p: p.agrame.cite(margin=1.0),
        lambda p: answers(),
        CITATIONS,
    ),
    "Citer, from an index": (
        lambda p: p.agrame.cite(p.index),
        lambda p: p.agrame.cite(p.index, splitter="text"),
        lambda p: answers(),
        CITATIONS,
    ),
}


@pytest.fixture(params=STAGES)
def case(request, parts):
    make, make_other, example, added = STAGES[request.param]
    return make(parts), make(parts), make_other(parts), example(parts), added


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    assert list(a.columns) == list(b.columns)
    assert len(a) == len(b)
    for column in a.columns:
        for x, y in zip(a[column], b[column], strict=True):
            np.testing.assert_array_equal(x, y)


def close(a: pd.DataFrame, b: pd.DataFrame, columns) -> None:
    for column in columns:
        for x, y in zip(a[column], b[column], strict=True):
            if isinstance(x, float | np.ndarray):
                np.testing.assert_allclose(x, y, atol=1e-5)
            else:
                assert x == y


def test_every_stage_is_in_the_list():
    import pyterrier_mvret

    for module in pkgutil.walk_packages(pyterrier_mvret.__path__, "pyterrier_mvret."):
        for name, value in vars(import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, Component) and not name.startswith("_"):
                assert value is Component or name in STAGES, f"{name} is not held to the contract"


def test_1_inspection_agrees_with_a_real_run(case):
    stage, _, _, frame, added = case
    inputs = pt.inspect.transformer_inputs(stage)
    assert all(set(config) <= set(frame.columns) for config in inputs)
    assert set(pt.inspect.transformer_outputs(stage, list(frame.columns))) == set(stage(frame).columns)
    dropped = {name.removeprefix("-") for name in added if name.startswith("-")}
    assert set(stage(frame).columns) == (set(frame.columns) | added) - dropped - {f"-{name}" for name in dropped}
    for config in inputs:
        broken = frame.drop(columns=config[-1])
        with pytest.raises(pt.validate.InputValidationError):
            stage(broken)


def test_2_empty_in_same_columns_out_nothing_loaded(case, tmp_path):
    stage, _, _, frame, _ = case
    before = Counting.calls
    empty = stage(frame.iloc[:0])
    assert Counting.calls == before
    assert list(empty.columns) == list(stage(frame).columns)
    assert len(empty) == 0
    fresh = copy.copy(stage)
    if "encoder" in vars(fresh):
        modules = Path(fresh.encoder.name, "modules.json")
        if modules.is_file():  # what a checkpoint says it is made of may be read, but there is nothing more of it
            shutil.copy(modules, tmp_path)
        fresh.encoder = mv.TokenEncoder(tmp_path if modules.is_file() else "no/such/model")
    if getattr(fresh, "model", None) is not None:
        fresh.model = mv.ColBERT("no/such/model")
    if getattr(fresh, "source", None) is not None:
        settings = ("store_ids", "store_offsets", "store_weights")
        stored = {s: getattr(fresh.source, s) for s in settings if hasattr(fresh.source, s)}
        fresh.source = type(fresh.source)("/no/such/index.mv", **stored)
    assert list(fresh(frame.iloc[:0]).columns) == list(empty.columns)
    for column, dtype in empty.dtypes.items():
        if column in ("score", "rank"):
            assert dtype.kind in "fi"
        elif column in ("query_embs", "doc_embs"):
            assert dtype.kind == "O"


def test_3_the_input_stays_as_it_was(case):
    stage, _, _, frame, _ = case
    before = copy.deepcopy(frame.to_dict(orient="list"))  # a frame's own deep copy shares the arrays in its cells
    stage(frame)
    same(frame, pd.DataFrame(before, index=frame.index))


def test_4_index_labels_change_nothing_and_extra_columns_stay(case):
    stage, _, _, frame, _ = case
    expected = stage(frame)
    odd = frame.set_axis([0] * len(frame), axis=0)
    same(stage(odd).reset_index(drop=True), expected.reset_index(drop=True))
    order = np.random.default_rng(0).permutation(len(frame))
    shuffled, key = stage(frame.iloc[order]), [c for c in ("qid", "docno") if c in expected.columns]
    close(shuffled.sort_values(key), expected.sort_values(key), expected.columns)
    for column in ("topic_note", "extra", "url"):
        if column in frame.columns:
            assert column in expected.columns


def test_5_equal_settings_are_equal(case, parts):
    stage, twin, other, _, _ = case
    assert stage is not twin
    assert stage == twin
    assert hash(stage) == hash(twin)
    assert stage != other
    assert repr(stage).startswith(type(stage).__name__ + "(")
    assert repr(stage) != repr(other)
    rebuilt = pt.inspect.transformer_apply_attributes(stage)
    assert rebuilt == stage
    if hasattr(stage, "verbose"):
        assert pt.inspect.transformer_apply_attributes(stage, verbose=True) == stage


def test_6_compiled_equals_uncompiled(case):
    stage, _, _, frame, _ = case
    columns = list(stage(frame).columns)
    close(stage.compile()(frame), stage(frame), columns)
    if "qid" in frame.columns:  # a cutoff needs queries, and ranks: given, or made by the stage
        stage = stage if "rank" in columns else pt.apply.generic(_with_ranks) >> stage
        for pipeline in (stage % 2, pt.Transformer.identity() >> stage % 2):
            plain, compiled = pipeline(frame), pipeline.compile()(frame)
            order = ["qid", "docno"]
            close(plain.sort_values(order), compiled.sort_values(order), columns)


def _with_ranks(frame: pd.DataFrame) -> pd.DataFrame:
    docnos = [f"x{i}" for i in range(len(frame))]
    return frame.assign(docno=docnos, score=1.0, rank=frame.groupby("qid").cumcount())


def test_7_records_in_records_out_and_equal_texts_encoded_once(case):
    stage, _, _, frame, _ = case
    frame = pd.concat([frame, frame.assign(**({"qid": frame["qid"] + "b"} if "qid" in frame else {}))])
    Counting.encoded = 0
    expected = stage(frame)
    texts = sum(frame[c].nunique() for c in ("query", "text") if c in frame.columns)
    assert Counting.encoded <= texts
    records = stage(frame.to_dict(orient="records"))
    assert isinstance(records, list)
    close(pd.DataFrame(records), expected.reset_index(drop=True), expected.columns)


def test_8_schematic_is_drawn_without_a_network(case, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("asked a documentation server")

    monkeypatch.setattr(pt.documentation, "objects_inv", no_network)
    stage = case[0]
    assert "<" in pt.schematic.draw(stage)
    assert len(stage.schematic()["label"]) <= 20


def test_9_types_of_results(case):
    stage, _, _, frame, _ = case
    out = stage(frame)
    if "score" not in out.columns:
        return
    assert out["score"].dtype == np.float64
    assert out["rank"].dtype == np.int64
    assert all(isinstance(d, str) for d in out["docno"])
    assert not out["score"].isna().any()
    for _, group in out.groupby("qid"):
        assert sorted(group["rank"]) == list(range(len(group)))
        assert group.sort_values("rank")["score"].is_monotonic_decreasing


def test_pyterriers_own_checks(case):
    stage = case[0]
    suite = pt.testing.transformer_test_class(lambda: stage)
    import unittest

    outcome = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(suite).run(outcome)
    assert not outcome.errors
    assert not outcome.failures
