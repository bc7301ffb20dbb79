"""Seismic as an engine: exact scores of what it finds, what it may miss, and its files."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import derived_files, segments, sparse_seismic
from pyterrier_mvret.indexes.segments import DamagedIndexError
from tests.indexes.sparse_docs import WHOLE_DOCS, asked, best, latents, matrices, needs_seismic, topics

pytestmark = needs_seismic
QUERY = topics({"z3": 1.0})


def derived(path):
    return sorted(p for p in path.iterdir() if p.name.startswith("derived-"))


def build(path, docs=WHOLE_DOCS, engine="seismic"):
    return mv.SparseIndex(path, engine).index(docs)


@pytest.fixture
def large(monkeypatch):
    """Collections of any size are searched as large ones are."""
    monkeypatch.setattr(sparse_seismic, "_POSTINGS", 50)


@pytest.mark.parametrize("weighting", [None, mv.scoring.BM25(), mv.scoring.BM25(2, 0.3, "lucene")])
def test_what_is_found_in_part_is_scored_exactly(tmp_path, large, weighting):
    docs, queries = latents(400), asked(20)
    index = build(tmp_path / "i", docs)
    exact = mv.SparseIndex(tmp_path / "i", "csr").retriever(weighting, num_results=None)(queries)
    exact = exact.set_index(["qid", "docno"])["score"]
    few = mv.SparseIndex(index.path, mv.Seismic(query_cut=2, heap_factor=1.0))
    for source in (index, few):
        got = source.retriever(weighting, num_results=10)(queries)
        expected = exact.loc[list(got[["qid", "docno"]].itertuples(index=False))]
        np.testing.assert_allclose(got["score"], expected, rtol=1e-12)
        for _, group in got.groupby("qid"):
            assert group["score"].is_monotonic_decreasing
            assert len(group) == 10


def test_settings_change_what_is_found(tmp_path, large):
    docs, queries = latents(400), asked(20)
    documents, wanted = matrices(docs, queries)
    tops = [set(best(row, docs, 10)[0]) for row in (wanted @ documents.T).toarray()]
    build(tmp_path / "i", docs)

    def recall(**settings):
        engine = mv.Seismic(**settings)
        got = mv.SparseIndex(tmp_path / "i", engine).retriever(num_results=10)(queries)
        return np.mean([len(top & set(g["docno"])) / 10 for top, (_, g) in zip(tops, got.groupby("qid", sort=False))])

    assert recall(query_cut=20, heap_factor=0) > recall(query_cut=1, heap_factor=0) + 0.1
    assert recall(query_cut=20, heap_factor=0) > recall(query_cut=20, heap_factor=3) + 0.1
    assert len(derived(tmp_path / "i")) == 1  # one index for all settings


def test_small_collections_are_searched_in_full_whatever_the_settings(tmp_path):
    docs, queries = latents(300), asked(10)
    build(tmp_path / "i", docs)
    least = mv.SparseIndex(tmp_path / "i", mv.Seismic(query_cut=1, heap_factor=5))
    exact = mv.SparseIndex(tmp_path / "i", "csr")
    for k in (3, 1000, None):
        one, two = (index.retriever(num_results=k)(queries) for index in (least, exact))
        assert one["docno"].tolist() == two["docno"].tolist()
        np.testing.assert_allclose(one["score"], two["score"], rtol=1e-12)


def test_the_named_engine_is_the_one_with_default_settings(tmp_path, large):
    build(tmp_path / "i", latents(200))
    assert json.loads((tmp_path / "i" / "pt_meta.json").read_text())["engine"] == "seismic"
    named, plain = mv.SparseIndex(tmp_path / "i", "seismic"), mv.SparseIndex(tmp_path / "i", mv.Seismic())
    pd.testing.assert_frame_equal(named.retriever()(asked(3)), plain.retriever()(asked(3)))
    assert plain.info()["engine"] == mv.SparseIndex(tmp_path / "i").info()["engine"] == "seismic"
    assert mv.SparseIndex("x", mv.Seismic(16)) == mv.SparseIndex("x", mv.Seismic(query_cut=16))
    assert mv.SparseIndex("x", mv.Seismic(16)) != mv.SparseIndex("x", mv.Seismic(17))
    made = build(tmp_path / "j", engine=mv.Seismic(7))
    assert repr(mv.SparseIndex("x", mv.Seismic(7))).endswith("engine=Seismic(query_cut=7, heap_factor=0.7))")
    assert mv.SparseIndex(made.path).info()["engine"] == "seismic"


def test_settings_that_are_none():
    for cut in (0, -1, 2.5, None):
        with pytest.raises(ValueError, match="query_cut must be an integer of at least 1"):
            mv.Seismic(query_cut=cut)
    for factor in (-0.1, np.inf, np.nan):
        with pytest.raises(ValueError, match="heap_factor must be a finite number of at least 0"):
            mv.Seismic(heap_factor=factor)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
def test_weights_of_any_size(tmp_path, large, size):
    docs = [{**d, "toks": {t: size * w for t, w in d["toks"].items()}} for d in latents(200)]
    plain = build(tmp_path / "p", latents(200)).retriever(num_results=20)(asked(5))
    queries = topics(*({t: w * size for t, w in toks.items()} for toks in asked(5)["query_toks"]))
    got = build(tmp_path / "i", docs).retriever(num_results=20)(queries)
    assert got["docno"].tolist() == plain["docno"].tolist()
    np.testing.assert_allclose(got["score"], plain["score"] * size**2, rtol=1e-5)


def test_weights_that_vanish_beside_the_largest_are_found(tmp_path):
    docs = [{"docno": "huge", "toks": {"a": 1e30}}, *({"docno": f"d{i}", "toks": {"a": 1.0 + i}} for i in range(60))]
    results = build(tmp_path / "i", docs).retriever(num_results=3)(topics({"a": 1.0}))
    assert results["docno"].tolist() == ["huge", "d59", "d58"]  # all but one are 0 to Seismic


def test_vectors_are_written_as_seismic_reads_them(tmp_path, monkeypatch):
    matrix, _ = matrices(latents(60, empty_every=7), asked(1))
    largest = matrix.data.max()
    for at_once in (1, 100, 1 << 22):
        monkeypatch.setattr(sparse_seismic, "_WRITTEN_AT_ONCE", at_once)
        sparse_seismic._write_vectors(tmp_path / "v", matrix)
        words = np.fromfile(tmp_path / "v", dtype="<u4").tolist()
        assert words.pop(0) == matrix.shape[0]
        for row in range(matrix.shape[0]):
            mine = slice(matrix.indptr[row], matrix.indptr[row + 1])
            n = words.pop(0)
            ids, weights, words = words[:n], np.array(words[n : 2 * n], "<u4").view("<f4"), words[2 * n :]
            assert ids == matrix.indices[mine].tolist()
            np.testing.assert_array_equal(weights, (matrix.data[mine] / largest).astype(np.float32))
        assert not words


def test_a_document_of_too_many_terms_is_named(tmp_path):
    docs = [*WHOLE_DOCS, {"docno": "long", "toks": {f"t{i}": 1.0 for i in range(65_536)}}]
    index = build(tmp_path / "i", docs)
    with pytest.raises(ValueError, match="document 'long' has 65536 terms, Seismic takes 65535 at most"):
        index.retriever()(QUERY)
    assert not derived(tmp_path / "i")


def test_files_are_made_once_and_kept_until_the_next_write(tmp_path):
    index = build(tmp_path / "i")
    assert not derived(index.path)
    for stage, count in ((index.retriever(), 1), (index.retriever(num_results=3), 1), (index.bm25(), 2)):
        assert stage(QUERY)["docno"].tolist() == ["d1"]
        assert len(derived(index.path)) == count
    assert sorted(p.name for p in derived(index.path)[0].iterdir()) == ["index", "pt_meta.json"]
    assert index.info()["engine_bytes"] == sum(p.stat().st_size for f in derived(index.path) for p in f.iterdir())
    before = {p: p.stat().st_mtime_ns for folder in derived(index.path) for p in folder.iterdir()}
    mv.SparseIndex(index.path).retriever()(QUERY)
    assert {p: p.stat().st_mtime_ns for folder in derived(index.path) for p in folder.iterdir()} == before
    index.index([{"docno": "d9", "toks": {"z3": 1.0}}], mode="append")
    assert not derived(index.path)
    assert index.retriever()(QUERY)["docno"].tolist() == ["d1", "d9"]


def test_damaged_files_are_named_and_can_be_deleted(tmp_path, monkeypatch):
    path = tmp_path / "i"
    build(path).retriever()(QUERY)
    (folder,) = derived(path)
    mv.SparseIndex(path).verify()
    monkeypatch.setattr(derived_files, "READ_WHOLE", 0)  # what is read whole is checked whole
    content = (folder / "index").read_bytes()
    for damaged in (content[:-1], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        (folder / "index").write_bytes(damaged)
        with pytest.raises(DamagedIndexError, match=f"{folder.name}/index differs"):
            mv.SparseIndex(path).retriever()(QUERY)
        with pytest.raises(DamagedIndexError, match=f"{folder.name}/index differs"):
            mv.SparseIndex(path).verify()
    (folder / "index").unlink()
    with pytest.raises(DamagedIndexError, match="is damaged .*: delete it, it is made anew"):
        mv.SparseIndex(path).retriever()(QUERY)
    shutil.rmtree(folder)
    assert len(mv.SparseIndex(path).retriever()(QUERY)) == 1


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    path = tmp_path / "i"
    build(path, latents(300))
    code = f"""
import resource, pandas as pd, pyterrier_mvret as mv
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
query = pd.DataFrame([{{"qid": "1", "query_toks": {{"z300": 1.0}}}}])
stage = mv.SparseIndex({str(path)!r}).retriever()
for room in (100_000, 300_000):  # for the vectors, for the index
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
    try:
        stage(query)
    except OSError as error:
        print(error)
    else:
        raise AssertionError("no error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
assert len(stage(query))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(derived(path)) == 1


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    index = build(tmp_path / "i")
    index.retriever()(QUERY)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(segments, "deriving", refused)
    assert len(mv.SparseIndex(index.path).retriever()(QUERY)) == 1
    with pytest.raises(
        PermissionError, match="lacks Seismic's files for this search and cannot be written to .* engine="
    ):
        index.bm25()(QUERY)


def test_nothing_is_written_to_the_terminal(tmp_path, capfd):
    build(tmp_path / "i", latents(50)).retriever()(asked(3))
    os.write(1, b"still there")
    assert capfd.readouterr() == ("still there", "")


def test_without_seismic(tmp_path):
    path = build(tmp_path / "c").path
    code = f"""
import sys
sys.modules["seismic"] = None
import pandas as pd, pyterrier_mvret as mv
query = pd.DataFrame([{{"qid": "1", "query_toks": {{"z3": 1.0}}}}])
def stream():
    raise AssertionError("nothing should be encoded for an index that cannot be searched")
    yield
for call in (
    lambda: mv.SparseIndex({str(tmp_path / "p")!r}, mv.Seismic(3)).index(stream()),
    lambda: mv.SparseIndex({str(path)!r}).retriever()(query),
):
    try:
        call()
    except ImportError as error:
        assert "pip install 'pyterrier-mvret[seismic]'" in str(error), error
    else:
        raise AssertionError("no error")
assert len(mv.SparseIndex({str(path)!r}, "csr").retriever()(query)) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "p").exists()
