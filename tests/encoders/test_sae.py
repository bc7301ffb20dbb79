"""The specification's worked example of a sparse autoencoder, and properties that need no training."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.encoders import sae as module
from pyterrier_mvret.encoders import weights_file
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
    # the budget of the three tokens: they share six, and one has more than two
    sae.threshold.fill_(0.999)
    assert (sae.encode(STATES).activations > 0).sum(1).tolist() == [3, 2, 1]


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
    assert (tmp_path / "sae.safetensors").stat().st_mode & 0o777 == (tmp_path / "cut").stat().st_mode & 0o777


def test_any_flipped_byte_of_a_file_is_one_kind_of_error(tmp_path, worked):
    worked.save(tmp_path / "sae")
    content = bytearray((tmp_path / "sae").read_bytes())
    unnoticed = 0
    for at in range(len(content)):
        content[at] ^= 1
        (tmp_path / "flipped").write_bytes(content)
        content[at] ^= 1
        try:
            again = TopKSAE.load(tmp_path / "flipped")
        except ValueError:
            continue
        unnoticed += 1  # a space that fills up the header
        assert again.digest == worked.digest and again.settings() == worked.settings()
    assert unnoticed < 8


def test_files_of_another_version(tmp_path, worked):
    from safetensors.torch import save_file

    about = {"pyterrier_mvret": "TopKSAE", "format": "2", "settings": json.dumps(worked.settings())}
    save_file(worked.state_dict(), tmp_path / "new", about)
    with pytest.raises(ValueError, match="of this version"):
        TopKSAE.load(tmp_path / "new")


def test_the_digest_is_of_the_weights_as_they_are(worked):
    first, digest = worked.digest, weights_file.digest
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_file, "digest", lambda *a: seen.append(a) or digest(*a))
        assert worked.digest == first
        assert not seen
        with torch.no_grad():
            worked.decoder += 1
        assert worked.digest == first
        with torch.no_grad():
            worked.mean += 1
        changed = worked.digest
        assert changed != first
        assert copy.deepcopy(worked).digest == changed
        worked.k = 1
        assert worked.digest not in (first, changed)
        worked.encoder = torch.nn.Parameter(worked.encoder.detach() + 1)
        assert worked.digest not in (first, changed)
    with torch.inference_mode():
        made = TopKSAE(6, latents=12, k=3)
        before = made.digest
        made.mean += 1
        assert made.digest != before


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


def test_states_of_any_kind(worked):
    states = np.random.default_rng(0).normal(size=(6, worked.dim)).astype(np.float16).astype(np.float32)
    expected = worked.encode(states)
    fixed = states.copy()
    fixed.flags.writeable = False
    for same in (
        states.astype(np.float64),
        states.astype(np.float16),
        states.astype(">f4"),
        np.asfortranarray(states),
        states[::-1].copy()[::-1],
        fixed,
        states.tolist(),
        torch.tensor(states).half(),
        torch.tensor(states).double(),
        torch.tensor(states, requires_grad=True),
    ):
        found = worked.encode(same)
        assert found.activations.dtype == torch.float32
        assert not found.activations.requires_grad
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert worked.encode(states[:0]).ids.shape == (0, worked.k)
    sized = TopKSAE(np.int64(6), latents=np.int32(12), k=np.int64(3), prefixes=np.array([4]))
    assert sized.settings() == TopKSAE(6, latents=12, k=3, prefixes=(4,)).settings()
    with pytest.raises(TypeError):
        TopKSAE(6, latents=12, k=2.5)


def test_states_that_are_none(worked):
    for far in (np.full((1, 2), 1e300), torch.full((1, 2), 1e300, dtype=torch.float64)):
        with pytest.raises(ValueError, match="finite"):
            worked.encode(far)
    with pytest.raises(ValueError, match="shape"):
        worked.encode(np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="infinite"):
        worked.encode(np.full((1, 2), np.nan, np.float32))
