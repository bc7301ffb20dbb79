import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring.pooling import pooled_terms


def as_dicts(offsets, latents, weights):
    return [dict(zip(latents[a:b].tolist(), weights[a:b].tolist())) for a, b in zip(offsets, offsets[1:])]


@given(st.integers(0, 10**6), st.sampled_from(["sum", "max"]), st.sampled_from([None, 1, 3]))
@settings(max_examples=60, deadline=None)
def test_terms_by_their_definition(seed, pool, top):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, rng.integers(1, 5))
    tokens, k = int(lengths.sum()), int(rng.integers(1, 4))
    activations = np.maximum(rng.normal(size=(tokens, k)), 0)
    ids = np.array([rng.choice(9, k, replace=False) for _ in range(tokens)]).reshape(tokens, k)
    offsets = np.cumsum([0, *lengths])
    expected = []
    for a, b in zip(offsets, offsets[1:]):
        found = {}
        for row in range(a, b):
            for value, latent in zip(activations[row], ids[row]):
                if value > 0:
                    found[int(latent)] = (
                        found.get(int(latent), 0) + value if pool == "sum" else max(found.get(int(latent), 0), value)
                    )
        best = sorted(found.items(), key=lambda pair: (-np.float32(np.sqrt(pair[1])), pair[0]))[:top]
        expected.append({latent: np.sqrt(value) for latent, value in best})
    got = as_dicts(*pooled_terms(activations, ids, offsets, pool, top=top))
    assert [set(one) for one in got] == [set(one) for one in expected]
    for mine, theirs in zip(got, expected):
        for latent, weight in mine.items():
            assert weight == pytest.approx(theirs[latent], rel=1e-6)


def test_the_sum_comes_before_the_root():
    offsets, latents, weights = pooled_terms([[4.0], [5.0]], [[7], [7]], [0, 2])
    assert (offsets.tolist(), latents.tolist(), weights.tolist()) == ([0, 1], [7], [3.0])
    for transform, weight in (("identity", 9), ("log1p", np.log(10)), ("binary", 1)):
        assert pooled_terms([[4.0], [5.0]], [[7], [7]], [0, 2], transform=transform)[2] == pytest.approx(weight)


def test_words_that_mean_nothing():
    with pytest.raises(ValueError, match="pool must be one of sum, max"):
        pooled_terms([[1.0]], [[0]], [0, 1], pool="mean")
    with pytest.raises(ValueError, match="transform must be one of sqrt"):
        pooled_terms([[1.0]], [[0]], [0, 1], transform="square")
