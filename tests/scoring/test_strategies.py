import numpy as np
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.scoring import Soft, TopK, TopP, named_alignment


def test_counts():
    for p, first, at_256, at_512 in (
        (0.005, 400, 1, 2), (0.01, 200, 2, 5), (0.015, 134, 3, 7), (0.02, 100, 5, 10), (0.05, 40, 12, 25)
    ):  # fmt: skip
        counts = TopP(p).counts(np.arange(1, 513))
        assert counts.argmax() >= 0 and np.flatnonzero(counts == 2)[0] + 1 == first
        assert (TopP(p).count(256), TopP(p).count(512)) == (at_256, at_512)
    assert [TopP(0.29).count(m) for m in (0, 1, 3, 4, 100)] == [0, 1, 1, 1, 29]
    assert TopP(0.07).count(100) == 7 and TopP(1).count(9) == 9 and TopP(np.float32(0.29)).count(100) == 29
    assert TopP(1e-300).count(10**9) == 1 and TopP(0.3333333333333333).count(3 * 10**6) == 999_999
    assert [TopK(4).count(m) for m in (0, 3, 4, 9)] == [0, 3, 4, 4]
    assert TopK(2).counts(np.array([1, 2, 3], np.uint32)).dtype == np.int64
    np.testing.assert_array_equal(Soft(4).counts(np.array([0, 3, 4, 9])), [0, 3, 4, 4])


def test_strategies_are_values():
    assert TopK(2) == TopK(np.int64(2)) != TopK(3) and TopK(1) != TopP(1) and len({TopP(0.01), TopP(0.01)}) == 1
    assert repr([TopK(2), TopP(0.015)]) == "[TopK(2), TopP(0.015)]"
    assert Soft() == Soft(1, 0.01) != Soft(1, 0.02) and Soft(1) != TopK(1) and len({Soft(2), Soft(np.int64(2))}) == 1
    assert repr([Soft(), Soft(2, 0.1)]) == "[Soft(1, epsilon=0.01), Soft(2, epsilon=0.1)]"
    assert mv.TopK is TopK and mv.TopP is TopP and mv.Soft is Soft
    assert named_alignment("top-k") == TopK(1) and named_alignment("top-p") == TopP(0.01)
    assert named_alignment(TopP(0.5)) == TopP(0.5) and named_alignment(Soft(3)) == Soft(3)
    for wrong in (0, -1, 1.5, True, "2", None):
        with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
            TopK(wrong)
        with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
            Soft(wrong)
    for wrong in (0, -0.1, float("nan"), float("inf"), "0.1", None, True):
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
            Soft(1, wrong)
    for wrong in (-0.1, 1.01, float("nan"), "0.1", None, True):
        with pytest.raises(ValueError, match="p must be a number from 0 to 1"):
            TopP(wrong)
    for wrong in ("topk", 3, None, TopK):
        with pytest.raises(ValueError, match="alignment must be 'top-k', 'top-p', TopK.*Soft"):
            named_alignment(wrong)
    with pytest.raises(ValueError, match="lengths must be whole numbers"):
        TopP(0.1).counts(np.array([1.5]))
    with pytest.raises(ValueError, match="lengths must be whole numbers"):
        TopK(1).count(-1)
