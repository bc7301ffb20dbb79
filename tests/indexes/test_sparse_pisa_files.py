"""PISA's files: when they are made and dropped, what they say, and what becomes of failures."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pyterrier_pisa
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import derived_files, segments, sparse_pisa
from pyterrier_mvret.indexes.segments import DamagedIndexError
from tests.indexes.sparse_docs import FRACTION_DOCS, WHOLE_DOCS, asked, latents, topics


def derived(path):
    return sorted(p for p in path.iterdir() if p.name.startswith("derived-"))


def test_files_are_made_once_and_kept_until_the_next_write(tmp_path):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    assert not derived(path)
    query = topics({"z3": 1.0})
    for stage, count in ((index.bm25(), 1), (index.bm25(8.0), 1), (index.bm25(2), 2), (index.retriever(), 3)):
        stage(query)
        assert len(derived(path)) == count
    before = {p: p.stat().st_mtime_ns for folder in derived(path) for p in folder.iterdir()}
    mv.SparseIndex(path).bm25()(query)
    assert {p: p.stat().st_mtime_ns for folder in derived(path) for p in folder.iterdir()} == before
    assert {p.suffix for p in before} & {".docs", ".freqs"} == set()  # what was compressed is not kept twice
    assert index.info()["engine_bytes"] == sum(p.stat().st_size for p in before)
    index.index([{"docno": "d9", "toks": {"z3": 1.0}}], mode="append")
    assert not derived(path)
    assert index.bm25()(query)["docno"].tolist() == ["d1", "d9"]


def test_damaged_files_are_named_and_can_be_deleted(tmp_path, monkeypatch):
    path = tmp_path / "i"
    mv.SparseIndex(path).index(WHOLE_DOCS).bm25()(topics({"z3": 1.0}))
    (folder,) = derived(path)
    mv.SparseIndex(path).verify()
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(DamagedIndexError, match=folder.name):
            mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))
        if file.name != "pt_meta.json":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            # PISA would end the process, or find other documents
            with pytest.raises(DamagedIndexError, match=file.name):
                mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))
            monkeypatch.setattr(derived_files, "READ_WHOLE", 0)
            derived_files.check_folder(folder)
            with pytest.raises(DamagedIndexError, match=file.name):
                mv.SparseIndex(path).verify()
            monkeypatch.undo()
        file.write_bytes(content)
    meta = json.loads((folder / "pt_meta.json").read_text())
    for other in ([], {}, {**meta, "files": []}, {k: v for k, v in meta.items() if k != "plan"}):
        (folder / "pt_meta.json").write_text(json.dumps(other))
        with pytest.raises(DamagedIndexError, match="is damaged .*: delete it, it is made anew"):
            mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))
    shutil.rmtree(folder)
    assert len(mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))) == 1


def test_a_failure_while_files_are_made_leaves_none(tmp_path, monkeypatch):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    write = sparse_pisa.write_inverted

    def full(folder, *arguments):
        write(folder, *arguments)
        raise OSError("disk full")

    monkeypatch.setattr(sparse_pisa, "write_inverted", full)
    with pytest.raises(OSError, match="disk full"):
        index.bm25()(topics({"z3": 1.0}))
    assert not derived(path)
    monkeypatch.setattr(sparse_pisa, "write_inverted", write)
    assert len(index.bm25()(topics({"z3": 1.0}))) == 1


@pytest.mark.parametrize(
    "docs",
    [
        latents(300),
        [{"docno": f"d{i}", "toks": {f"t{i}": 1.0}} for i in range(3000)],  # lists of one posting
        [{"docno": f"d{i}", "toks": {"a": 1.0, "b": i + 1.0} if i < 9 else {}} for i in range(3000)],
    ],
)
def test_room_is_made_sure_of_before_pisa_writes(tmp_path, monkeypatch, docs):
    # on a full disk PISA ends the process
    asked_for, reserve = [], sparse_pisa._reserve
    monkeypatch.setattr(sparse_pisa, "_reserve", lambda *a: (asked_for.append(a[1]), reserve(*a)))
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(docs)
    for stage in (index.bm25(), index.bm25(idf="lucene"), index.retriever()):
        stage(topics({**docs[0]["toks"]}))
        written = sum(p.stat().st_size for p in derived(path)[0].glob("*bmw*"))
        assert written < asked_for[-1] < 1e7
        shutil.rmtree(derived(path)[0])


def test_a_full_disk_is_an_error(tmp_path):
    path = tmp_path / "i"
    mv.SparseIndex(path).index(latents(300))
    code = f"""
import errno, resource, pandas as pd, pyterrier_mvret as mv
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
query = pd.DataFrame([{{"qid": "1", "query_toks": {{"z300": 1.0}}}}])
stage = mv.SparseIndex({str(path)!r}).bm25()
try:
    stage(query)
except OSError as error:
    assert error.errno == errno.EFBIG, error
else:
    raise AssertionError("no error")
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
assert len(stage(query))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(derived(path)) == 1


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    index = mv.SparseIndex(tmp_path / "i").index(WHOLE_DOCS)
    query = topics({"z3": 1.0})

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    index.bm25()(query)
    monkeypatch.setattr(segments, "deriving", refused)
    assert len(mv.SparseIndex(tmp_path / "i").bm25()(query)) == 1
    with pytest.raises(PermissionError, match="lacks PISA's files for this search and cannot be written to .* engine="):
        index.retriever()(query)


def test_two_processes_may_make_the_same_files(tmp_path, monkeypatch):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    write = sparse_pisa.write_inverted

    def meanwhile(*arguments):
        monkeypatch.setattr(sparse_pisa, "write_inverted", write)
        mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))
        write(*arguments)

    monkeypatch.setattr(sparse_pisa, "write_inverted", meanwhile)
    assert len(index.bm25()(topics({"z3": 1.0}))) == 1
    assert len(derived(path)) == 1


def test_nothing_is_written_to_the_terminal(tmp_path, capfd):
    index = mv.SparseIndex(tmp_path / "i").index(latents(50))
    for stage in (index.bm25(), index.bm25(idf="lucene"), index.retriever()):
        stage(asked(3))
    os.write(1, b"still there")
    out, err = capfd.readouterr()
    assert out == "still there"
    assert not err


def test_the_terminal_is_not_lost_between_threads(capfd):
    def silenced(seconds):
        for _ in range(10):
            with sparse_pisa.silent():
                os.write(1, b"hidden")
                time.sleep(seconds)

    threads = [threading.Thread(target=silenced, args=(i / 2000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"still")
    os.write(2, b"there")
    assert capfd.readouterr() == ("still", "there")


def test_without_pisa(tmp_path):
    code = f"""
import sys
sys.modules["pyterrier_pisa"] = None
import pandas as pd, pyterrier_mvret as mv
docs = [{{"docno": "d", "toks": {{"a": 1.0}}}}]
query = pd.DataFrame([{{"qid": "1", "query_toks": {{"a": 1.0}}}}])
def stream():
    raise AssertionError("nothing should be encoded for an index that cannot be searched")
    yield
for call in (lambda: mv.SparseIndex({str(tmp_path / "p")!r}).index(stream()), ):
    try:
        call()
    except ImportError as error:
        assert 'engine="csr"' in str(error), error
    else:
        raise AssertionError("no error")
index = mv.SparseIndex({str(tmp_path / "c")!r}, "csr").index(docs)
assert mv.SparseIndex(index.path).retriever()(query)["score"].tolist() == [1.0]
try:
    mv.SparseIndex(index.path, "pisa").retriever()(query)
except ImportError as error:
    assert 'engine="csr"' in str(error), error
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "p").exists()


def test_a_folder_says_what_it_holds_and_opens_in_pisa(tmp_path):
    index = mv.SparseIndex(tmp_path / "i").index(FRACTION_DOCS)
    index.retriever()(topics({"z3": 1.0}))
    (folder,) = derived(tmp_path / "i")
    meta = json.loads((folder / "pt_meta.json").read_text())
    assert (meta["format"], meta["weighting"], meta["postings"], meta["lost"]) == ("pisa", "None", 8, 0)
    pisa = pyterrier_pisa.PisaIndex(str(folder), stops="none").quantized(toks_scale=1)
    number = index.store.term_numbers(["z3"])[0]
    got = pisa(pd.DataFrame([{"qid": "1", "query_toks": {f"{number:010}": 1.0}}]))
    assert got["docno"].tolist() == [f"{0:010}"]
    assert got["score"].tolist() == [round(2.25 / 6 * 1023)]


def test_a_writer_that_drops_files_while_they_are_opened(tmp_path, monkeypatch):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    derive, check = sparse_pisa._derive, sparse_pisa.check_folder
    appended = []

    def append():
        name = f"n{len(appended)}"
        appended.append(name)
        mv.SparseIndex(path).index([{"docno": name, "toks": {"z3": 1.0}}], mode="append")

    def dropped_before(*arguments):
        monkeypatch.setattr(sparse_pisa, "_derive", derive)
        derive(*arguments)
        append()

    def dropped_while(folder, **settings):
        monkeypatch.setattr(sparse_pisa, "check_folder", check)
        append()
        return check(folder, **settings)

    monkeypatch.setattr(sparse_pisa, "_derive", dropped_before)
    monkeypatch.setattr(sparse_pisa, "check_folder", dropped_while)
    assert index.bm25()(topics({"z3": 1.0}))["docno"].tolist() == ["d1"]  # of the index as it was opened
    assert len(appended) == 2
    assert len(derived(path)) == 1  # what somebody opens stays until the next write
    assert mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))["docno"].tolist() == ["d1", "n0", "n1"]
    append()
    assert not derived(path)


def test_a_folder_that_was_made_anew_meanwhile_is_looked_at_again(tmp_path, monkeypatch):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    index.bm25()(topics({"z3": 1.0}))
    (folder,) = derived(path)
    flock = segments.fcntl.flock

    def anew(*arguments):
        monkeypatch.setattr(segments.fcntl, "flock", flock)
        shutil.copytree(folder, tmp_path / "copy")
        shutil.rmtree(folder)
        (tmp_path / "copy").rename(folder)
        flock(*arguments)

    for raised in (False, True):
        monkeypatch.setattr(segments.fcntl, "flock", anew)
        if raised:
            with pytest.raises(FileNotFoundError, match="made anew by somebody else"), segments.kept(folder):
                raise AssertionError("it is another folder")
        else:
            assert len(mv.SparseIndex(path).bm25()(topics({"z3": 1.0}))) == 1


def test_a_writer_is_not_stopped_by_what_readers_finish_or_drop(tmp_path, monkeypatch):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    listed = Path.iterdir
    gone = [path / "derived-0123456789ab", path / "derived-0123456789ab.01234567.tmp"]
    monkeypatch.setattr(Path, "iterdir", lambda self: [*listed(self), *(gone if self == path else [])])
    index.index([{"docno": "d9", "toks": {"z3": 1.0}}], mode="append")
    assert not segments.holds_other_files(path)
    assert index.info()["engine_bytes"] == 0
    gone[0].write_text("no folder, and not ours")
    assert segments.holds_other_files(path)


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path):
    path = tmp_path / "i"
    index = mv.SparseIndex(path).index(WHOLE_DOCS)
    left = [path / f"derived-0123456789ab.{n}.tmp" for n in ("01234567", "76543210")]
    for folder in left:
        folder.mkdir()
        (folder / "inv.docs").write_bytes(b"half")
    os.utime(left[0], (0, 0))
    index.index([{"docno": "d9", "toks": {"z3": 1.0}}], mode="append")
    assert [folder.exists() for folder in left] == [False, True]
    assert len(index.bm25()(topics({"z3": 1.0}))) == 2
