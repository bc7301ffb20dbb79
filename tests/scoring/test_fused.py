"""The compiled kernel beyond its scores: its presence, its threads, and what it refuses."""

import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring import fused, maxsim_matrix

needs_extension = pytest.mark.skipif(fused._maxsim is None, reason="the extension was not compiled")


def test_the_extension_is_compiled_where_there_is_a_compiler():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or sys.platform == "win32":
        pytest.skip("no compiler")
    assert fused._maxsim is not None
    assert {"baseline", "neon"} & set(fused._maxsim.versions())


def case(dim=5, rows=9, queries=2, documents=3):
    """Arguments of the kernel that are right."""
    blocks = queries
    return {
        "version": fused._maxsim.versions()[-1],
        "queries": np.ones((blocks, dim, 32), np.float32),
        "weights": np.ones((blocks, 32), np.float32),
        "owners": np.arange(blocks, dtype=np.int64),
        "vectors": np.ones((rows, dim), np.float32),
        "starts": np.array([0, 4, 4], dtype=np.int64)[:documents],
        "ends": np.array([4, 4, rows], dtype=np.int64)[:documents],
        "out": np.zeros((queries, documents), np.float32),
        "scales": None,
        "centroids": None,
        "ids": None,
        "values": None,
        "kind": 0,
        "bits": 0,
        "unit": 0,
        "k": 1,
        "blocks": blocks,
        "dim": dim,
        "rows": rows,
        "queries_count": queries,
        "documents": documents,
        "centroid_count": 0,
        "first": 0,
        "last": documents,
    }


RESIDUAL = {
    "kind": 4,
    "bits": 1,
    "dim": 8,
    "queries": np.ones((2, 8, 32), np.float32),
    "vectors": np.zeros((9, 1), np.uint8),
    "centroids": np.ones((2, 8), np.float32),
    "ids": np.ones(9, np.int32),
    "values": np.zeros((256, 8), np.float32),
    "centroid_count": 2,
}


@needs_extension
def test_right_residual_arguments_are_scored():
    arguments = {**case(), **RESIDUAL}
    fused._maxsim.score(*arguments.values())
    assert arguments["out"].tolist() == [[256.0, 0.0, 256.0]] * 2


@needs_extension
def test_right_arguments_are_scored():
    arguments = case()
    fused._maxsim.score(*arguments.values())
    assert arguments["out"].tolist() == [[160.0, 0.0, 160.0]] * 2


@needs_extension
@pytest.mark.parametrize(
    "wrong",
    [
        {"version": "sse9"},
        {"kind": 5},
        {"kind": 3},
        {"kind": -1},
        {"kind": 4},
        {**RESIDUAL, "bits": 3},
        {**RESIDUAL, "bits": 4},
        {**RESIDUAL, "ids": np.zeros(8, np.int32)},
        {**RESIDUAL, "ids": None},
        {**RESIDUAL, "values": np.ones((255, 8), np.float32)},
        {**RESIDUAL, "centroids": np.ones((2, 7), np.float32)},
        {**RESIDUAL, "centroid_count": 3},
        {**RESIDUAL, "centroid_count": 2**61},
        {"documents": 2**61, "queries_count": 0, "blocks": 0, "k": 1, "first": 0, "last": 3},
        {"k": -1},
        {"k": 9},
        {"k": 0},
        {"kind": 1},
        {"dim": 0},
        {"dim": 6},
        {"dim": -5},
        {"dim": 2**40},
        {"rows": 10},
        {"rows": -1},
        {"rows": 2**60},
        {"blocks": 3},
        {"blocks": -1},
        {"blocks": 2**58},
        {"queries_count": 1},
        {"queries_count": 2**60},
        {"documents": 4},
        {"documents": -1},
        {"documents": 2**61},
        {"first": -1},
        {"first": 4},
        {"last": 4},
        {"last": 2**62},
        {"owners": np.array([0, 2])},
        {"owners": np.array([-1, 0])},
        {"starts": np.array([0, 5, 4]), "ends": np.array([4, 4, 9])},
        {"starts": np.array([-1, 4, 4])},
        {"ends": np.array([4, 4, 10])},
        {"ends": np.array([4, 2**62, 9])},
        {"starts": np.array([0, 4])},
        {"ends": np.array([4, 4, 9, 9])},
        {"out": np.zeros((2, 2), np.float32)},
        {"out": np.zeros((2, 3), np.float64)},
        {"weights": np.ones((2, 31), np.float32)},
        {"queries": np.ones((2, 5, 31), np.float32)},
        {"vectors": np.ones((8, 5), np.float32)},
        {"scales": np.ones(8, np.float32)},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_read(wrong):
    arguments = {**case(), **wrong}
    with pytest.raises(ValueError):
        fused._maxsim.score(*arguments.values())
    assert not np.asarray(arguments["out"]).any()


@needs_extension
@given(
    st.lists(st.integers(-3, 14), min_size=3, max_size=3),
    st.lists(st.integers(-3, 14), min_size=3, max_size=3),
    st.integers(-2, 5),
    st.integers(-2, 5),
)
@settings(max_examples=300, deadline=None)
def test_any_documents_are_either_inside_or_refused(starts, ends, first, last):
    places = {"starts": np.array(starts, dtype=np.int64), "ends": np.array(ends, dtype=np.int64)}
    arguments = {**case(), **places, "first": first, "last": last}
    sound = 0 <= first <= last <= 3
    if sound:
        sound = all(0 <= a <= b <= 9 for a, b in zip(starts[first:last], ends[first:last]))
    if not sound:
        with pytest.raises(ValueError):
            fused._maxsim.score(*arguments.values())
        return
    fused._maxsim.score(*arguments.values())
    expected = [160.0 if first <= i < last and starts[i] < ends[i] else 0.0 for i in range(3)]
    assert arguments["out"].tolist() == [expected] * 2


@needs_extension
def test_read_only_results_and_strided_arrays_are_refused():
    arguments = case()
    arguments["out"].flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        fused._maxsim.score(*arguments.values())
    with pytest.raises((BufferError, ValueError)):
        fused._maxsim.score(*{**case(), "vectors": np.ones((9, 10), np.float32)[:, ::2]}.values())


def test_one_thread_and_several_give_the_same_bits(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 500)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vectors = rng.standard_normal((offsets[-1], 64), dtype=np.float32)
    queries, query_offsets = rng.standard_normal((70, 64), dtype=np.float32), np.array([0, 33, 33, 70])
    monkeypatch.setattr(fused, "_PRODUCTS_A_THREAD", 1)
    results = []
    for workers in (1, 2, 3, 7):
        monkeypatch.setattr(fused, "threads", lambda n=workers: n)
        results.append(maxsim_matrix(queries, query_offsets, vectors, offsets))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_threads_are_those_that_the_caller_allows(monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert fused.threads() == 1
    finally:
        torch.set_num_threads(before)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert fused.threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert fused.threads() >= 1


@needs_extension
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os, numpy as np
from pyterrier_mvret.scoring import fused, maxsim_packed
fused._PRODUCTS_A_THREAD, fused.threads = 1, lambda: 2
arguments = np.ones((4, 8), np.float32), np.ones((90, 8), np.float32), np.arange(0, 91, 3)
first = maxsim_packed(*arguments)
child = os.fork()
if child == 0:
    os._exit(0 if (maxsim_packed(*arguments) == first).all() else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("dim", [1, 2, 31, 32, 33, 127, 128, 129, 384, 1024])
def test_dimensions_and_unaligned_memory(dim):
    rng = np.random.default_rng(dim)
    lengths = np.array([0, 1, 13, 0, 130, 7])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    raw = bytearray(4 * dim * int(offsets[-1]) + 1)
    vectors = np.frombuffer(raw, dtype=np.float32, offset=1, count=dim * int(offsets[-1])).reshape(-1, dim)
    vectors[:] = rng.standard_normal(vectors.shape)
    query = rng.standard_normal((37, dim)).astype(np.float32)
    products = query.astype(np.float64) @ vectors.T.astype(np.float64)
    expected = [products[:, a:b].max(axis=1).sum() if b > a else -1e9 for a, b in zip(offsets[:-1], offsets[1:])]
    got = maxsim_matrix(query, np.array([0, 37]), vectors, offsets)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


def test_every_half_is_read_as_numpy_reads_it():
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].reshape(-1, 1)
    one = np.ones((1, 1), np.float32)
    got = maxsim_matrix(one, np.array([0, 1]), finite, np.arange(len(finite) + 1))[0]
    np.testing.assert_array_equal(got, finite[:, 0].astype(np.float32))


def test_one_vector_that_is_no_number_is_noticed_among_many():
    vectors = np.ones((50, 4), np.float32)
    vectors[20, 2] = np.nan
    with pytest.raises(ValueError, match="a score is not finite"):
        maxsim_matrix(np.ones((3, 4), np.float32), np.array([0, 3]), vectors, np.array([0, 50]))
