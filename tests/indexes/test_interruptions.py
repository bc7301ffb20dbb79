"""Interrupts, kills, full disks and other writers: an index is whole before and after."""

import resource
import shutil
import subprocess
import sys

import pandas as pd
import pytest

import pyterrier_mvret as mv
from tests.indexes.vectors import build, documents, topics


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


def test_create_loses_against_an_index_that_appeared_meanwhile(path, monkeypatch):
    from pyterrier_mvret.indexes import segments

    lock = segments._lock

    def late(folder):
        monkeypatch.setattr(segments, "_lock", lock)
        build(path, documents(7))
        return lock(folder)

    monkeypatch.setattr(segments, "_lock", late)
    with pytest.raises(FileExistsError, match="holds an index"):
        build(path, documents(2, prefix="mine"))
    assert len(mv.MultiVecIndex(path)) == 7


def test_a_manifest_that_cannot_be_written_changes_nothing(path, monkeypatch):
    index = build(path)
    before = sorted(p.name for p in path.iterdir())
    content = (path / "pt_meta.json").read_text()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("json.dump", full)
        with pytest.raises(OSError, match="No space left"):
            index.index(documents(3, prefix="n"), mode="append")
    assert sorted(p.name for p in path.iterdir()) == before
    assert (path / "pt_meta.json").read_text() == content
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", full)  # written whole beside, then renamed: never in place
        with pytest.raises(OSError, match="No space left"):
            index.index(documents(3, prefix="n"), mode="append")
    assert (path / "pt_meta.json").read_text() == content
    assert sorted(p.name for p in path.iterdir()) == before


def test_a_failed_create_removes_the_folders_it_made(tmp_path):
    with pytest.raises(ValueError, match="has no doc_embs"):
        build(tmp_path / "a" / "b" / "x.mv", [{"docno": "d"}])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
def test_an_interrupt_at_any_step_leaves_a_whole_index(path, mode, monkeypatch):
    """Interrupts every call of the functions that touch files, one after the other, before and after it acts."""
    from pyterrier_mvret.indexes import segments

    names = ["keep_only", "publish", "write_manifest", "_sync_folder"]
    seen = set()
    for step in range(60):
        if path.exists():
            shutil.rmtree(path)
        if mode != "create":
            build(path, documents(5))
        calls = iter(range(1000))

        def interrupted(function, name, stop=step, calls=calls):
            def run(*arguments):
                if next(calls) == stop:
                    seen.add((name, "before"))
                    raise KeyboardInterrupt
                result = function(*arguments)
                if next(calls) == stop:
                    seen.add((name, "after"))
                    raise KeyboardInterrupt
                return result

            return run

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(segments, name, interrupted(getattr(segments, name), name))
            try:
                build_or_add(path, mode)
                finished = True
            except KeyboardInterrupt:
                finished = False
        old, new = (0 if mode == "create" else 5), {"create": 3, "append": 8, "overwrite": 3}[mode]
        if mv.MultiVecIndex(path).built():
            index = mv.MultiVecIndex(path)
            index.verify()
            assert len(index) in (old, new)
        else:
            assert mode == "create"
        if finished:
            break
    assert finished
    assert {("write_manifest", "after"), ("keep_only", "before"), ("publish", "after")} <= seen


def build_or_add(path, mode):
    mv.MultiVecIndex(path).index(documents(3, prefix="n"), mode=mode)


def test_what_a_killed_writer_left_beside_the_manifest_is_no_obstacle(path):
    path.mkdir()
    (path / "pt_meta.json.tmp").write_text("{")
    (path / "segment-0123abcd.tmp").mkdir()
    (path / "segment-0123abcd").mkdir()
    index = build(path)
    assert sorted(p.name for p in path.iterdir()) == sorted(["pt_meta.json", index.manifest["segments"][0]["name"]])


def test_a_folder_removed_between_opening_and_locking_is_made_again(path, monkeypatch):
    from pyterrier_mvret.indexes import segments

    flock = segments.fcntl.flock

    def slow(handle, how):
        monkeypatch.setattr(segments.fcntl, "flock", flock)
        path.rmdir()  # as a writer does that failed
        return flock(handle, how)

    monkeypatch.setattr(segments.fcntl, "flock", slow)
    assert len(build(path)) == 50
