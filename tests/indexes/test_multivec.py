import functools
import json
import pickle
import resource
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.segments import DamagedIndexError
from tests.scoring.test_maxsim import reference

DIM = 6


def unit(rng, n):
    v = rng.standard_normal((n, DIM)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def documents(n=50, seed=0, prefix="d", empty_every=10):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n)
    lengths[5::empty_every] = 0
    return [{"docno": f"{prefix}{i}", "doc_embs": unit(rng, k)} for i, k in enumerate(lengths)]


def topics(n=3, seed=9, tokens=4):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(n)], "query_embs": [unit(rng, tokens) for _ in range(n)]})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.mv"


def build(path, docs=None, **settings):
    return mv.MultiVecIndex(path, **settings).index(documents() if docs is None else docs)


def brute_force(docs, query):
    scored = [(d["docno"], reference(query, d["doc_embs"])) for d in docs if len(d["doc_embs"])]
    return sorted(scored, key=lambda s: (-s[1], s[0]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("int8", 3e-2)])
def test_scores_are_those_of_the_vectors(path, dtype, tolerance):
    docs, index = documents(), build(path, dtype=dtype)
    results = index.retriever(num_results=None)(topics())
    for qid, group in results.groupby("qid"):
        query = topics().set_index("qid")["query_embs"][qid]
        expected = dict(brute_force(docs, query))
        assert set(group["docno"]) == set(expected)  # all documents with vectors, none without
        np.testing.assert_allclose(group["score"], [expected[d] for d in group["docno"]], atol=tolerance)
    rescored = index.scorer()(results)
    np.testing.assert_allclose(rescored["score"], results["score"], atol=1e-5)
    assert index.info()["dtype"] == dtype
    assert index.info()["empty"] == 5
    stored = index.vec_loader()(pd.DataFrame({"docno": ["d3", "d5", "d0"]}))["doc_embs"]
    for vectors, i in zip(stored, (3, 5, 0), strict=True):
        assert vectors.shape == docs[i]["doc_embs"].shape
        np.testing.assert_allclose(vectors, docs[i]["doc_embs"], atol=tolerance)


def test_best_first_and_as_many_as_asked(path):
    docs, index = documents(), build(path, dtype="float32")
    for k in (1, 3, 45, 1000):
        results = index.retriever(num_results=k)(topics())
        for qid, group in results.groupby("qid", sort=False):
            query = topics().set_index("qid")["query_embs"][qid]
            assert group["docno"].tolist() == [d for d, _ in brute_force(docs, query)[:k]]
            assert group["rank"].tolist() == list(range(min(k, 45)))
    with pytest.raises(ValueError, match="num_results must be an integer of at least 1"):
        index.retriever(num_results=0)


def test_equal_scores_are_ranked_by_docno(path):
    same = np.eye(DIM, dtype=np.float32)[:2]
    names = ["b", "a10", "a9", "c", "a"]
    index = build(path, [{"docno": n, "doc_embs": same} for n in names])
    for k in (1, 2, 3, None):
        got = index.retriever(num_results=k)(topics(1))["docno"].tolist()
        assert got == sorted(names)[: k or 5]


def test_batches_blocks_and_segments_change_nothing(path, tmp_path, monkeypatch):
    from pyterrier_mvret.indexes import stages

    docs = documents(80)
    whole = build(path, docs, dtype="float32")
    parts = mv.MultiVecIndex(tmp_path / "parts.mv", dtype="float32")
    for i, piece in enumerate((docs[:1], docs[1:40], docs[40:])):
        parts.index(piece, mode="append" if i else "create")
    assert parts.info()["segments"] == 3
    expected = whole.retriever()(topics(7))
    columns = ["qid", "docno", "rank"]
    for index in (whole, parts):
        for batch_size in (1, 3, 64):
            got = index.retriever(batch_size=batch_size)(topics(7))
            pd.testing.assert_frame_equal(got[columns], expected[columns])
            np.testing.assert_allclose(got["score"], expected["score"], atol=1e-5)
    mixed = expected.sample(frac=1, random_state=0)
    monkeypatch.setattr(stages, "_BLOCK_VECTORS", 7)
    for index in (whole, parts):
        np.testing.assert_allclose(index.scorer()(mixed)["score"], mixed["score"], atol=1e-5)
        pd.testing.assert_frame_equal(index.retriever()(topics(7))[columns], expected[columns])
    names = mixed["docno"].head(20)
    for a, b in zip(whole.vec_loader()(mixed.head(20))["doc_embs"], parts.vec_loader()(mixed.head(20))["doc_embs"]):
        np.testing.assert_array_equal(a, b)
    assert parts.store.names(parts.store.positions(names.tolist())) == names.tolist()


def test_query_weights(path):
    docs, index = documents(), build(path, dtype="float32")
    q = topics(2).assign(query_weights=[np.array([1.0, 0.0, 2.0, -1.0]), np.ones(4)])
    results = index.retriever(num_results=None)(q)
    for row in results.itertuples():
        d = next(d["doc_embs"] for d in docs if d["docno"] == row.docno)
        assert row.score == pytest.approx(reference(row.query_embs, d, row.query_weights), abs=1e-4)
    np.testing.assert_allclose(index.scorer()(results)["score"], results["score"], atol=1e-5)
    with pytest.raises(ValueError, match="query_weights of query 'q0' must be 4 finite numbers"):
        index.retriever()(topics(1).assign(query_weights=[np.ones(3)]))


def test_an_empty_document_is_scored_below_all_and_never_retrieved(path):
    index = build(path)
    r = pd.DataFrame({"qid": "q0", "docno": ["d5", "d1"], "query_embs": list(topics(1)["query_embs"]) * 2})
    scored = index.scorer()(r)
    assert scored["score"].tolist()[0] == -1e9
    assert scored["rank"].tolist() == [1, 0]
    assert "d5" not in set(index.retriever()(topics(1))["docno"])


def test_query_without_vectors_and_query_values_missing_in_some_rows(path):
    index = build(path)
    none = pd.DataFrame({"qid": ["q"], "query_embs": [np.empty((0, DIM), np.float32)]})
    assert set(index.retriever()(none)["score"]) == {0.0}
    r = pd.DataFrame({"qid": "q0", "docno": ["d1", "d2"], "query_embs": [None, topics(1)["query_embs"][0]]})
    assert index.scorer()(r)["score"].notna().all()
    with pytest.raises(ValueError, match="'query_embs' has no value in any row of query 'q0'"):
        index.scorer()(r.assign(query_embs=[None, float("nan")]))


@pytest.mark.parametrize("bad", [np.full((2, DIM), np.nan), np.ones(DIM), np.ones((2, DIM + 1)), "text"])
def test_bad_query_vectors_are_one_clear_error(path, bad):
    index = build(path)
    with pytest.raises(ValueError, match="query 'q'"):
        index.retriever()(pd.DataFrame({"qid": ["q"], "query_embs": [bad]}))


def test_unknown_docno_is_named(path):
    index = build(path)
    r = pd.DataFrame({"qid": "q0", "docno": ["d1", "nowhere"], "query_embs": list(topics(1)["query_embs"]) * 2})
    for stage in (index.scorer(), index.vec_loader()):
        with pytest.raises(ValueError, match="1 of 2 documents are not in .*: 'nowhere'"):
            stage(r)


# ---------------------------------------------------------------------- building


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"docno": 7, "doc_embs": np.ones((1, DIM))}, "docno must be a non-empty string of valid Unicode, got 7"),
        ({"docno": "", "doc_embs": np.ones((1, DIM))}, "docno must be a non-empty string"),
        ({"doc_embs": np.ones((1, DIM))}, "docno must be a non-empty string of valid Unicode, got None"),
        ({"docno": "x"}, "document 'x' has no doc_embs"),
        ({"docno": "x", "doc_embs": np.full((1, DIM), np.inf)}, "document 'x'.*NaN or infinite"),
        ({"docno": "x", "doc_embs": np.ones(DIM)}, "document 'x'.*expected a .tokens, dim. array"),
        ({"docno": "x", "doc_embs": np.ones((1, 2))}, "document 'x' has vectors of 2 dimensions, the index 6"),
        ({"docno": "d3", "doc_embs": np.ones((1, DIM))}, "docno 'd3' occurs twice"),
        ({"docno": "x", "doc_embs": np.full((1, DIM), 1e6)}, "'x' do not fit float16: use float32"),
    ],
)
def test_a_bad_document_leaves_nothing_behind(path, record, message):
    many = documents(300)  # more than a block before it
    with pytest.raises(ValueError, match=message):
        build(path, [*many, record])
    assert not path.exists()
    index = build(path)
    before = index.retriever()(topics())
    for mode in ("overwrite", "append"):
        fresh = [{**d, "docno": "n" + d["docno"]} for d in many] if mode == "append" else many
        with pytest.raises(ValueError, match=message.replace("occurs twice", "(occurs twice|is already in the index)")):
            mv.MultiVecIndex(path).index([*fresh, record], mode=mode)
        pd.testing.assert_frame_equal(mv.MultiVecIndex(path).retriever()(topics()), before)
        assert sorted(p.name for p in path.iterdir()) == sorted(["pt_meta.json", index.manifest["segments"][0]["name"]])


def test_duplicate_docnos_are_found_wherever_they_are(path):
    docs = documents(1000, empty_every=2000)
    for first, second in ((0, 1), (0, 999), (255, 256), (700, 800)):
        docs_again = [dict(d) for d in docs]
        docs_again[second]["docno"] = docs[first]["docno"]
        with pytest.raises(ValueError, match=f"docno 'd{first}' occurs twice"):
            build(path, docs_again)


def test_equal_hashes_of_different_names_are_told_apart(path, monkeypatch):
    from pyterrier_mvret.indexes import docnos

    monkeypatch.setattr(docnos, "hashes", lambda names: np.array([len(n) for n in names], dtype=np.uint64))
    index = build(path, documents(600, empty_every=1000))  # a handful of distinct hashes
    names = [f"d{i}" for i in (0, 7, 99, 100, 599)]
    assert index.store.positions([*names, "d600", "zz"]).tolist() == [0, 7, 99, 100, 599, -1, -1]
    with pytest.raises(ValueError, match="'d3' occurs twice"):
        build(path.with_name("again.mv"), [*documents(600), {"docno": "d3", "doc_embs": np.ones((1, DIM))}])


def test_modes(path):
    index = build(path)
    with pytest.raises(FileExistsError, match="mode='overwrite' or mode='append'"):
        index.index(documents())
    index.index(documents(3, prefix="x"), mode="append")
    assert len(index) == 53
    with pytest.raises(ValueError, match="docno 'd0' is already in the index"):
        index.index(documents(3), mode="append")
    assert len(mv.MultiVecIndex(path)) == 53
    old = index.retriever(num_results=None)
    old(topics())
    index.index(documents(2, prefix="y"), mode="overwrite")
    assert set(old(topics())["docno"]) == {"y0", "y1"}  # the same object sees the new index
    assert len(list(path.glob("segment-*"))) == 1
    with pytest.raises(ValueError, match="mode must be"):
        index.index([], mode="upsert")
    assert index.indexer("append").index(documents(2, prefix="z")) is index
    assert len(index) == 4


def test_append_to_what_is_not_there_creates(path):
    assert len(mv.MultiVecIndex(path).index(documents(4), mode="append")) == 4


def test_a_reader_keeps_what_it_opened_while_the_index_is_replaced(path):
    build(path)
    reader = mv.MultiVecIndex(path)
    before = reader.retriever()(topics())
    mv.MultiVecIndex(path).index(documents(3, prefix="new"), mode="overwrite")
    pd.testing.assert_frame_equal(reader.retriever()(topics()), before)
    assert len(mv.MultiVecIndex(path)) == 3


def test_a_reader_that_read_the_manifest_just_before_a_replacement(path, monkeypatch):
    build(path)
    reader, read = mv.MultiVecIndex(path), mv.MultiVecIndex._manifest_on_disk
    old = [read(reader)]
    mv.MultiVecIndex(path).index(documents(3, prefix="new"), mode="overwrite")
    monkeypatch.setattr(mv.MultiVecIndex, "_manifest_on_disk", lambda self: old.pop() if old else read(self))
    assert len(reader) == 3
    assert not old


def test_no_document_one_document_two_documents(path, tmp_path):
    empty = build(path, [])
    assert len(empty) == 0
    assert len(empty.retriever()(topics())) == 0
    assert "score" in empty.retriever()(topics()).columns
    empty.verify()
    assert len(empty.index(documents(2), mode="append")) == 2
    one = build(tmp_path / "one.mv", documents(1))
    assert one.retriever()(topics())["docno"].tolist() == ["d0"] * 3
    only_empty = build(tmp_path / "e.mv", [{"docno": "e", "doc_embs": np.empty((0, DIM))}])
    assert len(only_empty.retriever()(topics())) == 0
    only_empty.verify()


def test_frames_and_generators_are_consumed_alike(path, tmp_path):
    a = build(path, pd.DataFrame(documents()))
    b = build(tmp_path / "b.mv", (d for d in documents()))
    pd.testing.assert_frame_equal(a.retriever()(topics()), b.retriever()(topics()))


def test_memory_does_not_grow_with_the_collection(path):
    import tracemalloc

    def stream(n):
        for i in range(n):
            yield {"docno": f"d{i}", "doc_embs": np.full((20, 64), i % 7, dtype=np.float32)}

    peaks = []
    for n in (1000, 8000):
        tracemalloc.start()
        mv.MultiVecIndex(path).index(stream(n), mode="overwrite")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 8,000 documents hold 41 MB of float32; names and hashes may grow, vectors may not
    assert peaks[1] < peaks[0] + 2e6


def test_interrupted_build_leaves_nothing(path):
    def interrupted():
        yield from documents(400)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, interrupted())
    assert not path.exists()


def test_killed_build_is_cleaned_up_by_the_next_one(path):
    code = f"""
import os, numpy as np, pyterrier_mvret as mv
def docs():
    for i in range(600):
        yield {{"docno": f"d{{i}}", "doc_embs": np.ones((1, 4))}}
    os._exit(9)
mv.MultiVecIndex({str(path)!r}).index(docs())
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert list(path.glob("*.tmp"))
    assert not mv.MultiVecIndex(path).built()
    index = build(path)
    assert not list(path.glob("*.tmp"))
    assert len(index) == 50


def test_a_disk_that_fills_leaves_the_old_index(path):
    index = build(path)
    before = index.retriever()(topics())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # what any one file may hold
    try:
        for mode in ("append", "overwrite"):
            with pytest.raises(OSError, match="File too large"):
                mv.MultiVecIndex(path).index(documents(2000, prefix="n"), mode=mode)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    mv.MultiVecIndex(path).verify()
    pd.testing.assert_frame_equal(mv.MultiVecIndex(path).retriever()(topics()), before)
    assert not list(path.glob("*.tmp"))


def test_two_writers_are_kept_apart(path):
    index = build(path)

    def nested():
        with pytest.raises(BlockingIOError, match="being written by another process"):
            mv.MultiVecIndex(path).index(documents(2, prefix="b"), mode="append")
        yield from documents(2, prefix="a")

    index.index(nested(), mode="append")
    assert len(index) == 52


def test_a_folder_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    index = mv.MultiVecIndex(tmp_path)
    for mode in ("create", "overwrite", "append"):
        with pytest.raises(FileExistsError, match="is no index: it is left alone"):
            index.index(documents(), mode=mode)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        index.retriever()(topics())
    with pytest.raises(FileNotFoundError, match="does not exist; build one with"):
        mv.MultiVecIndex(tmp_path / "nowhere").scorer()(
            pd.DataFrame({"qid": ["q"], "docno": ["d"], "query_embs": [np.ones((1, 2))]})
        )
    assert (tmp_path / "notes.txt").read_text() == "mine"


# ---------------------------------------------------------------------- files


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
        ({"version": 99}, "format version 99; this release reads up to 1"),
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
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, int8"):
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
