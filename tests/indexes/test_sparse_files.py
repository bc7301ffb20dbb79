"""Building a sparse index: what is accepted, appending, encoders, files and their damage."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import sparse_builder
from pyterrier_mvret.indexes.segments import DamagedIndexError
from tests.indexes.sparse_docs import ENGINES, WHOLE_DOCS, asked, latents, named, topics


def build(path, docs=WHOLE_DOCS, engine="csr", **settings):
    return mv.SparseIndex(path, engine, **settings).index(docs)


def made_by(space, docs=WHOLE_DOCS, **more):
    return [{**d, "toks_encoder": json.dumps({"space": space, **more})} for d in docs]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"docno": "x", "toks": {"z3": 1.0, "z7": -0.5}}, "'x': the weight of term 'z7' must be .* got -0.5"),
        ({"docno": "x", "toks": {"z3": float("nan")}}, "'x': the weight of term 'z3'"),
        ({"docno": "x", "toks": {"z3": float("inf")}}, "'x': the weight of term 'z3'"),
        ({"docno": "x", "toks": {"z3": 1e39}}, "'x': the weight of term 'z3'"),  # beyond float32
        ({"docno": "x", "toks": {"z3": 1.0, "z7": "much"}}, "'x': the weight of term 'z7' .* got 'much'"),
        ({"docno": "x", "toks": {"z3": None}}, "'x': the weight of term 'z3'"),
        ({"docno": "x", "toks": {"z7": 1.0, "z3": "1.5"}}, "'x': the weight of term 'z3' .* got '1.5'"),
        ({"docno": "x", "toks": {"z3": b"1"}}, "'x': the weight of term 'z3' .* got b'1'"),
        ({"docno": "x", "toks": {"z7": 1.0, "z3": np.datetime64("2020-01-01")}}, "'x': the weight of term 'z3'"),
        ({"docno": "x", "toks": {"z7": 1.0, "z3": [1.0]}}, r"'x': the weight of term 'z3' .* got \[1.0\]"),
        ({"docno": "x", "toks": {"z7": 1.0, "z3": 10**400}}, "'x': the weight of term 'z3'"),
        ({"docno": pd.NA, "toks": {}}, "docno must be a non-empty string of valid Unicode, got <NA>"),
        ({"docno": "x", "toks": {7: 1.0}}, "a term of document 'x' must be a string of valid Unicode, got 7"),
        ({"docno": "x", "toks": {"\ud83d": 1.0}}, "a term of document 'x' must be a string"),
        ({"docno": "x", "toks": ["z3"]}, "toks of document 'x': expected a dict of terms and weights, got list"),
        ({"docno": "x", "toks": None}, "document 'x' has no toks: put an encoder before the index"),
        ({"docno": "x", "text": "words"}, "document 'x' has no toks"),
        ({"docno": "", "toks": {}}, "docno must be a non-empty string"),
        ({"docno": "d1", "toks": {}}, "docno 'd1' occurs twice"),
        (["x"], "expected a record with docno and toks, got list"),
        ({"docno": "x", "toks": {}, "toks_encoder": "{}"}, "'x' comes from another encoder"),
    ],
)
def test_bad_documents_are_named_and_nothing_is_kept(path, record, message):
    with pytest.raises(ValueError, match=message):
        build(path, [*WHOLE_DOCS, record])
    assert not path.exists()
    index = build(path)
    with pytest.raises(ValueError, match=message.replace("occurs twice", "is already in the index")):
        index.index([*named([{"a": 1}], "new"), record], mode="append")
    index.verify()
    assert len(index) == 5
    assert index.info()["segments"] == 1


def test_weights_come_back_as_they_went_in(path):
    docs = latents(700)
    index = build(path, docs)
    folder = path / index.manifest["segments"][0]["name"]
    ids, weights, offsets = (np.load(folder / f"{name}.npy") for name in ("term_ids", "weights", "offsets"))
    names = index.lexicon()["term"]
    for i, doc in enumerate(docs):
        mine = slice(offsets[i], offsets[i + 1])
        assert (np.diff(ids[mine]) > 0).all()
        kept = dict(zip(names[ids[mine]], weights[mine]))
        assert kept == {term: np.float32(weight) for term, weight in doc["toks"].items()}
    assert ids.dtype == np.int32
    assert weights.dtype == np.float32
    counts = pd.Series([t for d in docs for t in d["toks"]]).value_counts()
    assert index.lexicon().set_index("term")["documents"].to_dict() == counts.to_dict()


def test_numbers_of_any_kind_and_zeros(path):
    toks = {"a": np.float16(0.5), "b": 2, "c": np.int64(3), "zero": 0, "tiny": 1e-60, "d": True}
    index = build(path, [{"docno": "d", "toks": toks}, {"docno": "e", "toks": {}}])
    assert index.lexicon()["term"].tolist() == ["a", "b", "c", "d"]
    assert index.retriever()(topics({"a": 1, "b": 1, "c": 1, "d": 1}))["score"].tolist() == [6.5]


def test_blocks_change_nothing(path, tmp_path, monkeypatch):
    docs = latents(120)
    whole = build(path, docs)
    monkeypatch.setattr(sparse_builder, "_DOCUMENTS_A_BLOCK", 7)
    monkeypatch.setattr(sparse_builder, "_POSTINGS_A_BLOCK", 150)
    again = build(tmp_path / "again", iter(docs))
    one, two = (index.manifest["segments"][0]["files"] for index in (whole, again))
    assert {name: file["sha256"] for name, file in one.items()} == {name: file["sha256"] for name, file in two.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_appended_documents_are_as_if_built_at_once(path, tmp_path, engine):
    docs, queries = latents(200), asked(8)
    docs[150:] = [{**d, "toks": {**d["toks"], f"new{i}": 3.0}} for i, d in enumerate(docs[150:])]
    queries.loc[0, "query_toks"]["new7"] = 2.0
    whole, parts = build(path, docs, engine), mv.SparseIndex(tmp_path / "parts", engine)
    for i, piece in enumerate((docs[:60], docs[60:61], docs[61:150], docs[150:])):
        parts.index(pd.DataFrame(piece), mode="append" if i else "create")
        assert set(parts.bm25()(queries)["docno"]) <= set(whole.bm25()(queries)["docno"])  # searched between writes
    assert parts.info()["segments"] == 4
    for verb in ("bm25", "retriever"):
        expected, got = (getattr(index, verb)()(queries) for index in (whole, parts))
        assert got["docno"].tolist() == expected["docno"].tolist()
        np.testing.assert_allclose(got["score"], expected["score"], rtol=1e-6)
    candidates = whole.bm25(num_results=20)(queries).sample(frac=1, random_state=1)
    for weighting in (None, mv.scoring.BM25()):
        one, two = (index.scorer(weighting)(candidates) for index in (whole, parts))
        np.testing.assert_allclose(one["score"], two["score"], rtol=1e-12)
    frame = parts.lexicon().set_index("term")["documents"]
    assert frame.sort_index().equals(whole.lexicon().set_index("term")["documents"].sort_index())
    with pytest.raises(ValueError, match="docno 'd0' is already in the index"):
        parts.index(docs[:1], mode="append")


def test_modes(path):
    index = build(path)
    with pytest.raises(FileExistsError, match="holds an index; choose mode='overwrite' or mode='append'"):
        build(path)
    index.indexer("overwrite").index(named([{"b": 1.0}] * 3))
    assert (len(index), index.lexicon()["term"].tolist()) == (3, ["b"])
    assert mv.SparseIndex(path, scale=7).index(WHOLE_DOCS, mode="overwrite").info()["scale"] == 7
    assert mv.SparseIndex(path).info()["scale"] == 7
    assert mv.SparseIndex(path).info()["engine"] == "pisa"  # of the last that was written
    build(path.with_name("c"))
    assert mv.SparseIndex(path.with_name("c")).info()["engine"] == "csr"
    with pytest.raises(ValueError, match="mode must be"):
        index.index([], mode="add")
    with pytest.raises(ValueError, match="expected documents in a list, frame or generator, got one dict"):
        index.index(WHOLE_DOCS[0])
    with pytest.raises(FileExistsError, match="exists and is no index"):
        path.with_name("other").mkdir()
        (path.with_name("other") / "notes.txt").write_text("mine")
        build(path.with_name("other"))
    assert mv.MultiVecIndex(path).built()
    with pytest.raises(ValueError, match=r"holds a sparse_index\.mvret, not a multivec_index\.mvret"):
        len(mv.MultiVecIndex(path))


def test_encoders_must_match(path):
    index = build(path, made_by("sae#1", document={"k": 16}))
    assert index.info()["encoder"] == "sae#1"
    query = topics({"z3": 1.0})
    expected = index.bm25()(query)
    for space in ("sae#1", "a copy#1", None):  # unknown ones are taken as they are
        results = index.bm25()(query.assign(query_toks_encoder=space))
        assert results["score"].tolist() == expected["score"].tolist()
    other = query.assign(query_toks_encoder="sae#2")
    for stage, frame in (
        (index.bm25(), other),
        (index.retriever(), other),
        (index.scorer(), other.assign(docno="d1")),
    ):
        with pytest.raises(ValueError, match="holds terms of encoder sae#1, the queries terms of sae#2"):
            stage(frame)
    more = named([{"z3": 1.0}], "m")
    with pytest.raises(ValueError, match="was built with encoder sae#1; these documents come from sae#2"):
        index.index(made_by("sae#2", more, document={"k": 16}), mode="append")
    with pytest.raises(ValueError, match="these documents come from None"):
        index.index(more, mode="append")
    with pytest.raises(ValueError, match=r"built with document={'k': 16}; these have {'k': 8}"):
        index.index(made_by("sae#1", more, document={"k": 8}), mode="append")
    assert len(index.index(made_by("sae#1", more, document={"k": 16}), mode="append")) == 6
    by_hand = build(path.with_name("hand"))
    assert by_hand.info()["encoder"] is None
    assert len(by_hand.bm25()(query.assign(query_toks_encoder="sae#2"))) == 1
    with pytest.raises(ValueError, match="toks_encoder of document 'd1' is not a description of an encoder"):
        build(path.with_name("no"), [{**WHOLE_DOCS[0], "toks_encoder": "sae"}])


def test_truncated_missing_and_flipped_files_are_named(path):
    index = build(path)
    folder = path / index.manifest["segments"][0]["name"]
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(DamagedIndexError, match=f"{file.name} has .* bytes instead of"):
            mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedIndexError, match=rf"{file.name} differs from what was written \(checksum\)"):
            mv.SparseIndex(path).verify()
        file.unlink()
        with pytest.raises(DamagedIndexError, match=f"{file.name} is missing"):
            len(mv.SparseIndex(path))
        file.write_bytes(content)
        mv.SparseIndex(path).verify()


@pytest.mark.parametrize("key", ["engine", "scale", "encoder", "segments"])
def test_incomplete_manifests(path, key):
    build(path)
    manifest = json.loads((path / "pt_meta.json").read_text())
    (path / "pt_meta.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != key}))
    with pytest.raises(DamagedIndexError, match=f"does not say {key}"):
        len(mv.SparseIndex(path))


def test_a_manifest_of_other_counts(path):
    build(path)
    content = (path / "pt_meta.json").read_text()
    for key in ("documents", "postings", "terms"):
        manifest = json.loads(content)
        manifest["segments"][0][key] += 1
        (path / "pt_meta.json").write_text(json.dumps(manifest))
        with pytest.raises(DamagedIndexError, match="does not hold the documents, postings and terms"):
            len(mv.SparseIndex(path))


def test_interrupted_and_killed_builds_leave_the_old_index(path):
    def interrupted():
        yield from latents(400, prefix="n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, interrupted())
    assert not path.exists()
    index = build(path, engine="pisa")
    expected = index.bm25()(topics({"z3": 1.0}))
    kept = sorted(p.name for p in path.iterdir())
    for mode in ("append", "overwrite"):
        with pytest.raises(KeyboardInterrupt):
            index.index(interrupted(), mode=mode)
        assert sorted(p.name for p in path.iterdir()) == kept  # what was made for searching, too
    code = f"""
import os, pyterrier_mvret as mv
def docs():
    yield from ({{"docno": f"n{{i}}", "toks": {{"a": 1.0}}}} for i in range(600))
    os._exit(9)
mv.SparseIndex({str(path)!r}).index(docs(), mode="append")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert list(path.glob("*.tmp"))
    pd.testing.assert_frame_equal(mv.SparseIndex(path).bm25()(topics({"z3": 1.0})), expected)
    index.index(named([{"z3": 1.0}], "m"), mode="append")
    assert not list(path.glob("*.tmp"))
    assert len(index) == 6


def test_an_index_that_another_process_replaced(path):
    index = build(path, engine="pisa")
    query = topics({"z3": 1.0})
    stage = index.bm25()
    before = stage(query)
    build_again = mv.SparseIndex(path).index(named([{"z3": 1.0}, *[{"b": 1.0}] * 5], "n"), mode="overwrite")
    pd.testing.assert_frame_equal(stage(query), before)  # it has what it opened
    assert build_again.bm25()(query)["docno"].tolist() == ["n1"]


def test_a_progress_bar_only_when_asked_for(path, capsys):
    build(path, verbose=True)
    assert "indexing" in capsys.readouterr().err
    index = mv.SparseIndex(path)
    index.bm25()(topics({"z3": 1.0}))
    assert not capsys.readouterr().err
    index.bm25(verbose=True)(topics({"z3": 1.0}))
    assert "retrieving" in capsys.readouterr().err


def test_it_is_an_artifact(path):
    mv.SparseIndex(path, "csr").index([{"docno": "d1", "toks": {"z1": 1.0}}])
    loaded = pt.Artifact.load(str(path))
    assert isinstance(loaded, mv.SparseIndex) and loaded.info()["documents"] == 1
