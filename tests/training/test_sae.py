import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.training.sae import Chosen, SAETrainer, _keep_length, losses


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
    history = trainer.fit(sae, lambda: np.array_split(states, 100), verbose=False)
    assert history["loss"].iloc[-1] < 0.55 * history["loss"].iloc[0]
    assert best() > before + 0.15
    np.testing.assert_allclose(sae.decoder.detach().norm(dim=1), 1, atol=1e-6)
    active = (sae.encode(states[:2000]).activations > 0).sum(1).float().mean()
    assert active <= 3 or (settings.get("budget") == "batch" and active < 4)


def test_dead_latents_alone_learn_what_the_others_leave():
    states = torch.from_numpy(planted(tokens=50)[0])
    sae = TopKSAE(32, latents=64, k=3)
    assert losses(sae, states, torch.zeros(64, dtype=torch.bool), 8)[2]["aux"] == 0
    dead = torch.zeros(64, dtype=torch.bool)
    dead[[3, 9]] = True  # fewer than k_aux
    aux = losses(sae, states, dead, 8)[2]["aux"]
    aux.backward()
    assert sae.encoder.grad.isfinite().all()
    assert set(sae.encoder.grad.abs().sum(1).nonzero()[:, 0].tolist()) <= {3, 9}


def test_what_would_change_an_atoms_length_is_taken_from_its_gradient():
    decoder = torch.nn.Parameter(F.normalize(torch.randn(5, 4), dim=1))
    decoder.grad = torch.randn(5, 4)
    _keep_length(decoder)
    torch.testing.assert_close((decoder.grad * decoder.data).sum(1), torch.zeros(5), atol=1e-6, rtol=0)


def test_states_are_mixed_and_each_is_seen_once_a_pass():
    trainer = SAETrainer(tokens=1000, batch_tokens=10, buffer_batches=4)
    parts = [np.full((3, 1), i, np.float32) for i in range(50)]
    batches = trainer._batches(lambda: parts)
    first = np.concatenate([next(batches) for _ in range(14)])[:, 0]
    assert max(np.bincount(first.astype(int))) <= 3
    assert (np.diff(first) < 0).any()
    with pytest.raises(ValueError, match="no token state"):
        next(trainer._batches(list))


def test_a_seed_repeats():
    states, _ = planted(tokens=2000)
    trainer = SAETrainer(tokens=5120, batch_tokens=256)
    runs = []
    for _ in range(2):
        sae = TopKSAE(32, latents=64, k=3)
        trainer.fit(sae, lambda: [states], verbose=False)
        runs.append(sae.digest)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"batch_tokens": 0}, {"warmup": 1.0}])
def test_settings_that_train_nothing(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SAETrainer(**settings)
