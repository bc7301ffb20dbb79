import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyterrier_mvret.training.stream import Stream


def source(sizes):
    """Parts of states that are numbered, over all of them."""
    parts = np.split(np.arange(sum(sizes), dtype=np.float64)[:, None], np.cumsum(sizes)[:-1])
    return lambda start: parts[start:]


def taken(stream, batches):
    return [next(stream)[:, 0].astype(int).tolist() for _ in range(batches)]


def test_states_are_mixed_and_each_is_seen_about_once_a_pass():
    stream = Stream(source([3] * 50), batch=10, capacity=40, seed=0)
    batches = taken(stream, 15)
    order = np.concatenate(batches)
    seen = np.bincount(order, minlength=150)
    assert seen.max() <= 2 and (seen == 0).sum() <= 10  # those of the next pass that the last buffer holds
    assert (np.diff(order) < 0).any()
    assert stream.read == 150 and stream.passes == 1


def test_a_corpus_that_fits_is_read_once_and_mixed_again():
    reads = []

    def states(start):
        reads.append(start)
        return source([4, 4, 4])(start)

    stream = Stream(states, batch=5, capacity=100, seed=0)
    batches = taken(stream, 6)
    assert reads == [0] and stream.passes == 3 and stream.read == 12
    assert all(len(set(a + b)) == 10 for a, b in zip(batches[::2], batches[1::2], strict=True))
    assert batches[0] != batches[2]


def test_fewer_states_than_a_batch():
    assert sorted(taken(Stream(source([2, 1]), batch=5, capacity=100, seed=0), 2)[1]) == [0, 1, 2]


@pytest.mark.parametrize("states", [lambda start: [], lambda start: [np.empty((0, 3))] * (start == 0)])
def test_no_state(states):
    with pytest.raises(ValueError, match="no token state"):
        next(Stream(states, 2, 4, 0))


def test_a_corpus_that_is_read_once_only():
    parts = iter([np.zeros((3, 1))] * 5)
    stream = Stream(lambda start: parts, 2, 4, 0)
    with pytest.raises(ValueError, match="no token state"):
        taken(stream, 20)


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(any),
    batch=st.integers(1, 12),
    buffers=st.integers(1, 4),
    at=st.integers(1, 30),
)
def test_a_stream_goes_on_where_another_was(sizes, batch, buffers, at):
    whole, other = (Stream(source(sizes), batch, buffers * batch, seed=3) for _ in range(2))
    taken(whole, at)
    state, left = whole.state()
    other.restore(json.loads(json.dumps(state)), left)
    assert taken(other, 20) == taken(whole, 20)
    assert (other.passes, other.read) == (whole.passes, whole.read)


def test_memory_is_that_of_one_buffer():
    parts, capacity = 60, 20_000

    def states(start):
        return (np.ones((1000, 128), np.float32) for _ in range(start, parts))

    tracemalloc.start()
    try:
        stream = Stream(states, 500, capacity, 0)
        for _ in range(300):
            next(stream)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stream.passes > 1 and peak < 1.3 * capacity * 128 * 4
