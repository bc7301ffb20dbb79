"""The specification's worked example of a sparse autoencoder, and properties that need no training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.encoders import sae as module
from pyterrier_mvret.encoders.sae import TopKSAE

STATES = np.array([[2.5, 0.5], [0.5, 2.5], [-1.5, -0.5]], np.float32)


@pytest.fixture
def worked():
    sae = TopKSAE(2, latents=4, k=2)
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0.6, 0.8]])
    with torch.no_grad():
        sae.encoder.copy_(rows), sae.decoder.copy_(rows)
        sae.encoder_bias.copy_(torch.tensor([0, 0, 0, -0.1])), sae.mean.copy_(torch.tensor([0.5, -0.5]))
    return sae


def dense(sae, latents):
    out = np.zeros((len(latents.activations), sae.latents))
    for row, (values, ids) in enumerate(zip(latents.activations.numpy(), latents.ids.numpy())):
        out[row, ids[values > 0]] = values[values > 0]
    return out


def test_the_worked_example(worked):
    latents = worked.encode(STATES)
    np.testing.assert_allclose(dense(worked, latents), [[2, 0, 0, 1.9], [0, 3, 0, 2.3], [0, 0, 2, 0]], atol=1e-6)
    restored = worked.decode(latents).detach().numpy()
    np.testing.assert_allclose(restored, [[3.64, 1.02], [1.88, 4.34], [-1.5, -0.5]], atol=1e-6)
    error = ((STATES - restored) ** 2).sum(1)
    assert error.sum() / ((STATES - STATES.mean(0)) ** 2).sum() == pytest.approx(0.541579, abs=1e-6)
    assert (error / (STATES**2).sum(1)).mean() == pytest.approx(0.351795, abs=1e-6)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 9), at_once=st.sampled_from([1, 20, 10**6]))
@settings(max_examples=40, deadline=None)
def test_the_largest_positive_activations_are_kept(seed, k, at_once):
    rng = np.random.default_rng(seed)
    sae = TopKSAE.random(5, latents=9, k=k, seed=seed, mean=rng.normal(size=5))
    states = rng.normal(size=(rng.integers(0, 8), 5)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AT_ONCE", at_once)  # however few tokens are looked at together
        got = sae.encode(states)
    expected = (states - sae.mean.detach().numpy()) @ sae.encoder.detach().numpy().T
    expected[expected < -np.sort(-expected, axis=1)[:, k - 1 : k]] = 0
    np.testing.assert_allclose(dense(sae, got), np.maximum(expected, 0), atol=1e-5)
    assert got.activations.shape == got.ids.shape == (len(states), k)


def test_shifts_and_scales(worked):
    moved = torch.tensor([3.0, -1.0])
    before = dense(worked, worked.encode(STATES))
    with torch.no_grad():
        worked.mean += moved
    np.testing.assert_allclose(dense(worked, worked.encode(STATES + moved.numpy())), before, atol=1e-6)
    with torch.no_grad():
        worked.encoder_bias.zero_(), worked.mean.zero_()
    np.testing.assert_allclose(
        dense(worked, worked.encode(3 * STATES)), 3 * dense(worked, worked.encode(STATES)), atol=1e-5
    )


def test_a_threshold_in_the_place_of_a_budget(worked):
    sae = TopKSAE(2, latents=4, k=2, budget="batch")
    sae.load_state_dict({**worked.state_dict(), "threshold": torch.tensor(1.95)})
    np.testing.assert_allclose(dense(sae, sae.encode(STATES)), [[2, 0, 0, 0], [0, 3, 0, 2.3], [0, 0, 2, 0]], atol=1e-6)


def test_states_may_be_normed():
    sae = TopKSAE(6, latents=12, k=3, input_norm="layer")
    states = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_allclose(sae.encode(states).activations, sae.encode(7 * states + 2).activations, atol=1e-4)


def test_files(tmp_path, worked):
    worked.save(tmp_path / "sae.safetensors")
    again = TopKSAE.load(tmp_path / "sae.safetensors")
    assert again.digest == worked.digest and again.settings() == worked.settings()
    assert [p.name for p in tmp_path.iterdir()] == ["sae.safetensors"]
    with torch.no_grad():
        again.encoder[0, 0] += 1e-3
    assert again.digest != worked.digest
    with pytest.raises(FileNotFoundError):
        TopKSAE.load(tmp_path / "none")
    content = (tmp_path / "sae.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        TopKSAE.load(tmp_path / "cut")
    (tmp_path / "flipped").write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match="is damaged"):
        TopKSAE.load(tmp_path / "flipped")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "at least 1"),
        ({"k": 9}, "k at most latents"),
        ({"budget": "text"}, "budget is"),
        ({"prefixes": (4, 2)}, "prefixes must rise"),
        ({"prefixes": (8,)}, "prefixes must rise"),
    ],
)
def test_settings_that_fit_nothing(arguments, message):
    with pytest.raises(ValueError, match=message):
        TopKSAE(**{"dim": 3, "latents": 8, "k": 2, **arguments})


def test_states_that_are_none(worked):
    with pytest.raises(ValueError, match="shape"):
        worked.encode(np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="not finite"):
        worked.encode(np.full((1, 2), np.nan, np.float32))
