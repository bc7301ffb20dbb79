"""Files: damage, settings on disk, packages."""

import functools
import json
import pickle
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.segments import DamagedIndexError
from tests.indexes.vectors import DIM, build, documents, topics


def test_truncated_missing_and_flipped_files_are_named(path):
    index = build(path, dtype="int8")
    folder = path / index.manifest["segments"][0]["name"]
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(DamagedIndexError, match=f"{file.name} has .* bytes instead of"):
            mv.MultiVecIndex(path).retriever()(topics())
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedIndexError, match=rf"{file.name} differs from what was written \(checksum\)"):
            mv.MultiVecIndex(path).verify()
        file.write_bytes(b"\x00" * 16 + content[16:])
        with pytest.raises(DamagedIndexError, match=f"{file.name} has a damaged header"):
            mv.MultiVecIndex(path).verify()
        file.unlink()
        with pytest.raises(DamagedIndexError, match=f"{file.name} is missing"):
            len(mv.MultiVecIndex(path))
        file.write_bytes(content)
        mv.MultiVecIndex(path).verify()


def test_damaged_and_foreign_manifests(path):
    index = build(path)
    manifest = path / "pt_meta.json"
    content = manifest.read_text()
    manifest.write_text(content[:-5])
    with pytest.raises(DamagedIndexError, match=r"pt_meta\.json is damaged"):
        len(mv.MultiVecIndex(path))
    changes = [
        ({"type": "dense_index", "format": "flex"}, "holds a dense_index.flex, not a multivec_index.mvret"),
        ({"version": 99}, "format version 99; this release reads up to 3"),
    ]
    for change, message in changes:
        manifest.write_text(json.dumps({**json.loads(content), **change}))
        with pytest.raises(ValueError, match=message):
            len(mv.MultiVecIndex(path))
    broken = json.loads(content)
    broken["segments"][0]["documents"] += 1
    manifest.write_text(json.dumps(broken))
    with pytest.raises(DamagedIndexError, match="does not hold the documents"):
        len(mv.MultiVecIndex(path))
    manifest.write_text(content)
    assert len(mv.MultiVecIndex(path)) == len(index)


def test_arrays_are_plain_numpy_files(path):
    docs, index = documents(), build(path, dtype="float32")
    folder = path / index.manifest["segments"][0]["name"]
    vectors, offsets = np.load(folder / "vectors.npy"), np.load(folder / "offsets.npy")
    np.testing.assert_array_equal(vectors, np.concatenate([d["doc_embs"] for d in docs]))
    assert offsets.tolist() == np.cumsum([0] + [len(d["doc_embs"]) for d in docs]).tolist()


def test_settings_of_an_index_on_disk_rule(path):
    build(path, dtype="int8")
    assert mv.MultiVecIndex(path).info()["dtype"] == "int8"
    with pytest.raises(ValueError, match="stores int8, and was opened with dtype='float32'"):
        len(mv.MultiVecIndex(path, dtype="float32"))
    with pytest.raises(ValueError, match="was built without store_offsets=True"):
        len(mv.MultiVecIndex(path, store_offsets=True))
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, int8, residual1"):
        mv.MultiVecIndex(path, dtype="float64")


def test_ids_and_offsets_are_kept_on_request(path):
    docs = [
        {**d, "doc_tok_ids": np.arange(len(d["doc_embs"])), "doc_tok_offsets": np.ones((len(d["doc_embs"]), 2), int)}
        for d in documents()
    ]
    index = build(path, docs, store_ids=True, store_offsets=True)
    loaded = mv.MultiVecIndex(path).vec_loader()(pd.DataFrame({"docno": ["d4", "d5", "d1"]}))
    for row in loaded.itertuples():
        original = next(d for d in docs if d["docno"] == row.docno)
        np.testing.assert_array_equal(row.doc_tok_ids, original["doc_tok_ids"])
        np.testing.assert_array_equal(row.doc_tok_offsets, original["doc_tok_offsets"])
        assert row.doc_tok_ids.dtype == np.int32
    assert index.index_inputs() == [["docno", "doc_embs", "doc_tok_ids", "doc_tok_offsets"]]
    with pytest.raises(ValueError, match="document 'x0' has no doc_tok_ids"):
        index.index(documents(2, prefix="x"), mode="append")


def test_artifact_load_package_and_copy(path, tmp_path, monkeypatch):
    index = build(path)
    expected = index.retriever()(topics())
    loaded = pt.Artifact.load(str(path))
    assert isinstance(loaded, mv.MultiVecIndex)
    pd.testing.assert_frame_equal(loaded.retriever()(topics()), expected)
    index.build_package(str(tmp_path / "p.tar.lz4"), verbose=False)
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pt.io, "pyterrier_home", lambda: str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        unpacked = pt.Artifact.from_url(f"http://127.0.0.1:{server.server_port}/p.tar.lz4")
        server.shutdown()
    unpacked.verify()
    pd.testing.assert_frame_equal(unpacked.retriever()(topics()), expected)
    moved = shutil.move(path, tmp_path / "moved.mv")
    pd.testing.assert_frame_equal(mv.MultiVecIndex(moved).retriever()(topics()), expected)


def test_value_semantics_and_pickling(path):
    index = build(path)
    assert index == mv.MultiVecIndex(path)
    assert index != mv.MultiVecIndex(path.with_name("other.mv"))
    assert "index.mv" in repr(index)
    stage = pickle.loads(pickle.dumps(index.retriever()))
    pd.testing.assert_frame_equal(stage(topics()), index.retriever()(topics()))


def test_cutoff_becomes_the_number_of_results(path):
    index = build(path)
    compiled = (index.retriever() % 3).compile()
    assert compiled == index.retriever(num_results=3)
    assert (index.retriever(num_results=2) % 3).compile()(topics())["rank"].max() == 1
    loaded = (index.retriever() >> index.vec_loader() % 2).compile()
    assert "num_results=2" in repr(loaded)


def test_a_flipped_bit_in_a_header_or_in_a_small_file_is_found(path):
    index = build(path, dtype="float16")
    folder = path / index.manifest["segments"][0]["name"]
    vectors = folder / "vectors.npy"
    content = vectors.read_bytes()
    vectors.write_bytes(content.replace(b"'<f2'", b"'>f2'"))
    with pytest.raises(DamagedIndexError, match=r"vectors\.npy has a damaged header"):
        len(mv.MultiVecIndex(path))
    vectors.write_bytes(content)
    for name in ("offsets", "docnos", "docno_buckets", "docno_positions", "docno_hashes", "docno_offsets"):
        file = folder / f"{name}.npy"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedIndexError, match=rf"{name}\.npy differs from what was written"):
            len(mv.MultiVecIndex(path))  # at opening: a wrong bit here would be a wrong document
        file.write_bytes(content)


@pytest.mark.parametrize("content", ["[]", "{}", '{"type": "multivec_index", "format": "mvret"}', "3"])
def test_manifests_that_say_nothing(path, content):
    build(path)
    (path / "pt_meta.json").write_text(content)
    with pytest.raises(DamagedIndexError, match=r"pt_meta\.json is damaged"):
        len(mv.MultiVecIndex(path))


def test_names_are_found_also_where_another_release_hashes_otherwise(path, monkeypatch):
    from pyterrier_mvret.indexes import docnos
    from pyterrier_mvret.indexes import documents as reading

    build(path)
    usual = docnos.hashes
    with monkeypatch.context() as patch:
        for module in (docnos, reading):
            patch.setattr(module, "hashes", lambda names: usual([f"#{name}" for name in names]))
        other = mv.MultiVecIndex(path).index(documents(5, prefix="n"), mode="append")
        assert other.store.positions(["d1", "n1", "zz"]).tolist() == [1, 51, -1]
    again = mv.MultiVecIndex(path)  # one segment hashed in each way
    assert again.store.positions(["d1", "n1", "zz"]).tolist() == [1, 51, -1]
    with pytest.raises(ValueError, match="docno 'n0' is already in the index"):
        again.index(documents(5, prefix="n"), mode="append")


def test_verifying_while_another_process_replaces_the_index(path, monkeypatch):
    from pyterrier_mvret.indexes import segments

    index, check = build(path), segments.check_digest

    def meddling(*arguments):
        monkeypatch.setattr(segments, "check_digest", check)
        mv.MultiVecIndex(path).index(documents(3, prefix="new"), mode="overwrite")
        return check(*arguments)

    monkeypatch.setattr(segments, "check_digest", meddling)
    index.verify()
    assert len(index) == 3  # what it now holds was read


@pytest.mark.parametrize("key", ["dtype", "dim", "encoder", "segments", "store_ids"])
def test_incomplete_manifests(path, key):
    build(path)
    manifest = json.loads((path / "pt_meta.json").read_text())
    (path / "pt_meta.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != key}))
    with pytest.raises(DamagedIndexError, match=f"does not say {key}"):
        len(mv.MultiVecIndex(path))
    broken = {**manifest, "segments": [{k: v for k, v in manifest["segments"][0].items() if k != "files"}]}
    (path / "pt_meta.json").write_text(json.dumps(broken))
    with pytest.raises(DamagedIndexError, match="does not say files of a segment"):
        len(mv.MultiVecIndex(path))
    (path / "pt_meta.json").write_text(json.dumps({**manifest, "dtype": "float8"}))
    with pytest.raises(DamagedIndexError, match="'float8', which is none of float32"):
        len(mv.MultiVecIndex(path))


def test_copies_for_other_processes_carry_no_vectors(path):
    index = build(path)
    stages = [index.retriever(), index.scorer(), index.vec_loader()]
    index.retriever()(topics())  # opened
    assert all(len(pickle.dumps(stage)) < 2000 for stage in stages)


def test_a_loaded_document_does_not_keep_the_others_in_memory(path):
    loaded = build(path).vec_loader()(pd.DataFrame({"docno": ["d1", "d2"]}))
    assert all(vectors.base is None for vectors in loaded["doc_embs"])


def test_one_search_sees_one_index(path):
    index = build(path)

    class Meddling(mv.scoring.MaxSim):
        def stored(self, *arguments):
            if mv.MultiVecIndex(path).info()["documents"] == 50:
                index.index(documents(3, prefix="new"), mode="overwrite")
            return super().stored(*arguments)

    results = index.retriever(Meddling())(topics())
    assert results["docno"].str.startswith("d").all()  # names and scores of the same documents
    assert set(index.retriever()(topics())["docno"]) == {"new0", "new1", "new2"}


def test_stages_say_what_they_were_given(path):
    index = build(path)
    for wrong in (10, "l2", mv.ColBERT):
        for verb in (index.retriever, index.scorer):
            with pytest.raises(ValueError, match="expected a model .* or a scoring rule"):
                verb(wrong)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        index.retriever(batch_size=0)
    with pytest.raises(ValueError, match=r"num_results must be an integer of at least 1.*2\.5"):
        index.retriever(num_results=2.5)
    assert index.retriever(num_results=np.int64(5)) == index.retriever(num_results=5)
    assert hash(index.retriever(num_results=np.int64(5))) == hash(index.retriever(num_results=5))
    assert index.index_inputs() == [["docno", "doc_embs"]]


def test_vectors_too_large_for_float32_are_refused_not_ranked(path, tmp_path):
    index = build(path)
    with pytest.raises(ValueError, match="query 'q'.*NaN or infinite"):
        index.retriever()(pd.DataFrame({"qid": ["q"], "query_embs": [np.full((1, DIM), 1e39)]}))
    large = build(tmp_path / "y.mv", [{"docno": "d", "doc_embs": np.full((1, DIM), 1e30)}], dtype="float32")
    with pytest.raises(ValueError, match="a score is not finite"):
        large.retriever()(pd.DataFrame({"qid": ["q"], "query_embs": [np.full((1, DIM), 1e30)]}))


def test_vectors_carry_their_origin_into_another_index(path, tmp_path):
    made = '{"space": "a#1", "scoring": {"similarity": "l2", "normalize": null}}'
    index = build(path, [{**d, "doc_encoder": made} for d in documents()])
    stale = pd.DataFrame({"docno": ["d1", "d2"], "doc_tok_ids": [[1], [2]], "doc_encoder": "other"})
    loaded = index.vec_loader()(stale)
    assert "doc_tok_ids" not in loaded.columns  # of other vectors
    copied = build(tmp_path / "y.mv", loaded)
    assert copied.info()["encoder"] == "a#1"
    assert copied.scoring == mv.scoring.MaxSim("l2")
    with pytest.raises(ValueError, match="a#1, the queries vectors of b#2"):
        copied.retriever()(topics().assign(query_encoder=["a#1", "b#2", "a#1"]))
