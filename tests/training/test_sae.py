from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.training.reconstruction import Chosen, keep_length, losses
from pyterrier_mvret.training.sae import SAETrainer


def planted(seed=0, tokens=20_000, atoms=64, dim=32, active=3):
    """Positive sums of a few of many directions."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(atoms, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = np.zeros((tokens, atoms))
    for row in weights:
        row[rng.choice(atoms, active, replace=False)] = rng.uniform(0.5, 2, active)
    return (weights @ directions).astype(np.float32), directions


def test_gradients_of_chosen_activations_are_those_of_the_dense_product():
    torch.manual_seed(0)
    x, w, b = (torch.randn(*s, requires_grad=True) for s in ((7, 5), (11, 5), (11,)))
    ids = torch.stack([torch.randperm(11)[:3] for _ in range(7)])
    weight = torch.randn(7, 3)
    dense = F.linear(x, w, b)
    expected = torch.autograd.grad((dense.gather(1, ids) * weight).sum(), (x, w, b))
    values = Chosen.apply(x, w, b, ids, dense.detach().gather(1, ids))
    for got, want in zip(torch.autograd.grad((values * weight).sum(), (x, w, b)), expected):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("settings", [{}, {"budget": "batch"}, {"prefixes": (16, 32)}, {"input_norm": "layer"}])
def test_planted_directions_are_found(settings):
    states, directions = planted()
    sae = TopKSAE(32, latents=64, k=3, **settings)
    best = lambda: (sae.decoder.detach().numpy() @ directions.T).max(0).mean()  # noqa: E731
    before = best()
    trainer = SAETrainer(tokens=400 * 256, batch_tokens=256, learning_rate=1e-2, dead_after=5000)
    history = trainer.fit(sae, lambda start: np.array_split(states, 100)[start:], verbose=False)
    assert history["loss"].iloc[-1] < 0.55 * history["loss"].iloc[0]
    assert best() > before + 0.15
    np.testing.assert_allclose(sae.decoder.detach().norm(dim=1), 1, atol=1e-6)
    active = (sae.encode(states[:2000]).activations > 0).sum(1).float().mean()
    assert active <= 3 or (settings.get("budget") == "batch" and active < 4)


def test_dead_latents_alone_learn_what_the_others_leave():
    states = torch.from_numpy(planted(tokens=50)[0])
    sae = TopKSAE(32, latents=64, k=3)
    assert losses(sae, states, torch.zeros(64, dtype=torch.bool), 8)[2] == 0
    dead = torch.zeros(64, dtype=torch.bool)
    dead[[3, 9]] = True  # fewer than k_aux
    aux = losses(sae, states, dead, 8)[2]
    aux.backward()
    assert sae.encoder.grad.isfinite().all()
    assert set(sae.encoder.grad.abs().sum(1).nonzero()[:, 0].tolist()) <= {3, 9}


def test_what_would_change_an_atoms_length_is_taken_from_its_gradient():
    decoder = torch.nn.Parameter(F.normalize(torch.randn(5, 4), dim=1))
    decoder.grad = torch.randn(5, 4)
    keep_length(decoder)
    torch.testing.assert_close((decoder.grad * decoder.data).sum(1), torch.zeros(5), atol=1e-6, rtol=0)


def test_a_seed_repeats():
    states, _ = planted(tokens=2000)
    trainer = SAETrainer(tokens=5120, batch_tokens=256)
    runs = []
    for _ in range(2):
        sae = TopKSAE(32, latents=64, k=3)
        trainer.fit(sae, lambda start: [states][start:], verbose=False)
        runs.append(sae.digest)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": 0},
        {"batch_tokens": 0},
        {"warmup": 1.0},
        {"clip": 0},
        {"clip": -1.0},
        {"aux": -1},
        {"learning_rate": float("nan")},
        {"weight_decay": -0.1},
    ],
    ids=str,
)
def test_settings_that_train_nothing(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SAETrainer(**settings)


# ------------------------------------------------------------------ checkpoints


class KilledError(Exception):
    pass


def stopping(parts, after):
    """Parts of states, until so many have been read."""
    read = iter(range(after))

    def states(start):
        for part in parts[start:]:
            if next(read, None) is None:
                raise KilledError
            yield part

    return states


@pytest.mark.parametrize("settings", [{}, {"budget": "batch"}])
@pytest.mark.parametrize("after", [9, 27, 43])
def test_a_run_that_was_stopped_ends_as_a_whole_one(tmp_path, after, settings):
    parts = np.array_split(planted(tokens=2000)[0], 20)
    trainer = SAETrainer(tokens=6400, batch_tokens=64, buffer_batches=3, save_steps=7, dead_after=200)
    whole, stopped, resumed = (TopKSAE(32, latents=64, k=3, **settings) for _ in range(3))
    expected = trainer.fit(whole, lambda start: parts[start:], verbose=False)
    with pytest.raises(KilledError):
        trainer.fit(stopped, stopping(parts, after), checkpoints=tmp_path, verbose=False)
    assert stopped.digest != whole.digest
    found = [p.name for p in tmp_path.iterdir()]
    assert len(found) == 1 and found[0] != "checkpoint-100"
    history = trainer.fit(resumed, lambda start: parts[start:], checkpoints=tmp_path, verbose=False)
    assert resumed.digest == whole.digest
    torch.testing.assert_close(resumed.decoder, whole.decoder, rtol=0, atol=0)
    times = ["tokens_per_second"]
    assert history.drop(columns=times).equals(expected.drop(columns=times))
    again = TopKSAE(32, latents=64, k=3, **settings)
    trainer.fit(again, lambda start: pytest.fail("nothing is left to read"), checkpoints=tmp_path, verbose=False)
    assert again.digest == whole.digest


def test_checkpoints_of_another_run_or_damaged(tmp_path):
    states = planted(tokens=500)[0]
    trainer = SAETrainer(tokens=640, batch_tokens=64)

    def fit(how, seed=0):
        sae = TopKSAE(32, latents=64, k=3, seed=seed)
        return how.fit(sae, lambda start: [states][start:], checkpoints=tmp_path, verbose=False)

    fit(trainer)
    with pytest.raises(ValueError, match="other settings: trainer"):
        fit(replace(trainer, learning_rate=1e-2))
    with pytest.raises(ValueError, match="other settings: sae"):
        fit(trainer, seed=1)
    fit(replace(trainer, save_steps=3))
    file = tmp_path / "checkpoint-10" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is damaged"):
        fit(trainer)
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        fit(trainer)


def test_the_mean_begins_at_that_of_the_buffer():
    states = planted(tokens=1000)[0] + 3
    sae = TopKSAE(32, latents=64, k=3)
    history = SAETrainer(tokens=64, batch_tokens=64, learning_rate=0.0).fit(sae, lambda start: [states][start:])
    np.testing.assert_allclose(sae.mean.detach(), states.mean(0), rtol=1e-5)
    assert history[["tokens", "unique", "passes"]].iloc[-1].tolist() == [64, 1000, 1]


@pytest.mark.parametrize("budget", ["token", "batch"])
def test_states_that_are_all_alike(budget):
    sae = TopKSAE(4, latents=8, k=2, budget=budget)
    trainer = SAETrainer(tokens=64, batch_tokens=16)
    history = trainer.fit(sae, lambda start: [np.ones((40, 4), np.float32)][start:], verbose=False)
    assert np.isfinite(history["loss"]).all() and history["active"].iloc[0] == 0
