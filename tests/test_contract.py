"""One contract for every stage of the package; the stages are in ``tests/stages.py``."""

import copy
import inspect
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.component import Component
from tests.stages import STAGES, Counting, made


@pytest.fixture(scope="module")
def parts(tiny, tmp_path_factory):
    return made(tiny, tmp_path_factory.mktemp("contract"))


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
    if "vocabulary" in vars(fresh):
        fresh.vocabulary = copy.copy(fresh.vocabulary)
        fresh.vocabulary.encoder = mv.TokenEncoder("no/such/model")
    if isinstance(getattr(fresh, "model", None), mv.NVF):
        fresh.model = mv.NVF(residual=False, use_score=fresh.model.use_score)  # which was not trained
    elif getattr(fresh, "model", None) is not None:
        fresh.model = mv.ColBERT("no/such/model")
    if getattr(fresh, "source", None) is not None:
        settings = ("store_ids", "store_offsets", "store_weights")
        stored = {s: getattr(fresh.source, s) for s in settings if hasattr(fresh.source, s)}
        fresh.source = type(fresh.source)("/no/such/index.mv", **stored)
    assert list(fresh(frame.iloc[:0]).columns) == list(empty.columns)
    for column, dtype in empty.dtypes.items():
        if column in ("score", "rank"):
            assert dtype.kind in "fi"
        elif column in ("query_embs", "doc_embs", "query_vec", "doc_vec"):
            assert dtype.kind == "O"


def test_3_the_input_stays_as_it_was(case):
    stage, _, _, frame, _ = case
    before = copy.deepcopy(frame.to_dict(orient="list"))  # a frame's own deep copy shares the arrays in its cells
    stage(frame)
    same(frame, pd.DataFrame(before, index=frame.index))


def test_4_index_labels_change_nothing_and_extra_columns_stay(case):
    stage, _, _, frame, added = case
    expected = stage(frame)
    odd = frame.set_axis([0] * len(frame), axis=0)
    same(stage(odd).reset_index(drop=True), expected.reset_index(drop=True))
    order = np.random.default_rng(0).permutation(len(frame))
    shuffled, key = stage(frame.iloc[order]), [c for c in ("qid", "docno") if c in expected.columns]
    close(shuffled.sort_values(key), expected.sort_values(key), expected.columns)
    for column in ("topic_note", "extra", "url"):
        if column in frame.columns:
            assert (column in expected.columns) == (f"-{column}" not in added)


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
    rewritten = "docno" in frame.columns and "docno" not in columns
    # a cutoff needs queries, and ranks: given, or made by the stage; rewritten queries have none
    if "qid" in frame.columns and not rewritten:
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
