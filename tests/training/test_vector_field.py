"""What NVF's networks learn, where there is something to learn and where there is nothing."""

import numpy as np
import pytest
import torch

from benchmarks import nvf_data as data
from pyterrier_mvret.scoring.pair_networks import PairScorer, QueryTransform
from pyterrier_mvret.training.network_loop import NetworkTrainer, listwise
from pyterrier_mvret.training.vector_field import fit_scorer, fit_transform, nearest, scored


def candidates(rng, documents, number, noise, drop=False):
    queries, truth = data.copies(rng, documents, number, noise)
    return data.sets(queries, truth, documents, data.nearest(queries, documents, 5), drop)


def reranked(seed, noise, epochs, train=15000, features="difference"):
    """Top-1 of the inner product, of a trained scorer, and both on documents that were never seen."""
    rng = np.random.default_rng(seed)
    documents, unseen = data.collection(rng), data.collection(rng)
    learned = candidates(rng, documents, train, noise, drop=True)
    valid = candidates(rng, documents, train // 10, noise, drop=True)
    judged = valid, data.judgements(valid)
    how = NetworkTrainer(epochs=epochs, batch_size=256, seed=seed)
    network = PairScorer(data.DIM, features, seed=seed)
    fit_scorer(network, learned, judged, how, measure="RR", verbose=False)
    found = []
    for there in (documents, unseen):
        test = candidates(rng, there, 5000, noise)
        found += [100 * data.first(test.scores, test.gains), 100 * data.first(scored(network, test), test.gains)]
        ceiling = 100 * test.gains.any(1).mean()
        assert found[-1] <= ceiling
    return found


def test_it_learns_which_dimensions_are_noise_and_takes_that_to_other_documents():
    product, learned, other_product, other = reranked(42, data.UNEVEN, 6)
    assert product == pytest.approx(70.5, abs=2)
    assert learned >= 86 and learned >= product + 15
    assert other >= 86 and other >= other_product + 15


def test_where_the_inner_product_is_the_best_rule_nothing_is_gained():
    product, learned, other_product, other = reranked(42, 0.3, 6)
    assert learned == pytest.approx(product, abs=1.5)
    assert other == pytest.approx(other_product, abs=1.5)


def test_exact_search_on_the_notes_data():
    rng = np.random.default_rng(42)
    documents = data.collection(rng)
    for noise, top1, top5, within in ((0.3, 51.2, 75.1, 1.5), (0.2, 93.9, 98.9, 1.0)):
        queries, truth = data.copies(rng, documents, 5000, noise)
        found = nearest(None, queries, torch.from_numpy(documents), 5)[1]
        assert 100 * (found[:, 0] == truth).mean() == pytest.approx(top1, abs=within)
        assert 100 * (found == truth[:, None]).any(1).mean() == pytest.approx(top5, abs=within)
    clustered = data.clustered(rng)
    within = (clustered.reshape(100, 10, -1) @ clustered.reshape(100, 10, -1).transpose(0, 2, 1))[
        :, *np.triu_indices(10, 1)
    ]
    assert within.mean() == pytest.approx(0.163, abs=0.01)


def test_the_transform_learns_the_same_and_keeps_what_it_had_where_it_does_not():
    rng = np.random.default_rng(0)
    documents = data.collection(rng, 200)

    def relevant(number, noise):
        queries, truth = data.copies(rng, documents, number, noise)
        sets = data.targets(queries, truth, documents)
        return sets, data.judgements(sets)

    def top1(network, sets):
        return (nearest(network, sets.queries, torch.from_numpy(documents), 1)[1] == sets.candidates).mean()

    how = NetworkTrainer(epochs=5, batch_size=128)
    (train, _), valid, (test, _) = (relevant(n, data.UNEVEN) for n in (6000, 300, 2000))
    network = QueryTransform(data.DIM)
    history = fit_transform(network, train, valid, how, verbose=False)
    assert top1(network, test) > top1(None, test) + 0.05
    assert history["nDCG@10"].iloc[-1] > history["nDCG@10"].iloc[0]
    assert history["epoch"].tolist()[0] == 0 and history["kept"].sum() == 1

    # a few queries that are all found already: epoch 0 is kept, and with it the vectors
    (train, _), valid = (relevant(20, 0.01) for _ in range(2))
    network = QueryTransform(data.DIM)
    history = fit_transform(network, train, valid, how, verbose=False)
    assert history.loc[history["kept"], "epoch"].tolist() == [0]
    torch.testing.assert_close(network(torch.from_numpy(train.queries)), torch.from_numpy(train.queries))


def test_of_more_documents_than_fit_some_are_drawn(monkeypatch):
    from pyterrier_mvret.training import vector_field

    rng = np.random.default_rng(0)
    documents = data.collection(rng, 300)
    queries, truth = data.copies(rng, documents, 2000, data.UNEVEN)
    sets = data.targets(queries, truth, documents)
    losses = []
    for most in (1 << 16, 64):
        monkeypatch.setattr(vector_field, "_MOST_DOCUMENTS", most)
        network = QueryTransform(data.DIM)
        history = fit_transform(network, sets, None, NetworkTrainer(epochs=3, batch_size=64), verbose=False)
        losses.append(history["loss"].dropna().tolist())
        with torch.inference_mode():
            moved = nearest(network, queries, torch.from_numpy(documents), 1)[1]
        assert (moved == truth[:, None]).mean() > 0.8
    assert losses[1][0] < losses[0][0]  # fewer to be told apart


def test_what_is_kept_and_when_it_stops():
    network = torch.nn.Linear(1, 1)
    values = iter([0.5, 0.4, 0.7, 0.6, 0.7, 0.1])
    weights = []

    def measure():
        weights.append(network.weight.item())
        return next(values)

    how = NetworkTrainer(epochs=20, patience=3, learning_rate=0.1)
    history = how.fit(network, 4, lambda rows: network(torch.ones(len(rows), 1)).mean(), measure, "RR", verbose=False)
    assert history["epoch"].tolist() == [0, 1, 2, 3, 4, 5]
    assert history.loc[history["kept"], "epoch"].tolist() == [2]
    assert network.weight.item() == weights[2]
    assert not network.training


def test_a_loss_that_is_no_number_is_an_error():
    network = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="the loss is nan in epoch 1"):
        NetworkTrainer().fit(network, 2, lambda rows: network(torch.ones(1, 1)).sum() * float("nan"), verbose=False)


def test_a_last_step_that_diverges_is_an_error():
    network = torch.nn.Linear(1, 1)
    how = NetworkTrainer(epochs=1, learning_rate=1e30)

    def loss(rows):
        return network(torch.ones(len(rows), 1)).square().square().sum()

    with pytest.raises(ValueError, match="the loss is inf after epoch 1: try a lower learning_rate"):
        how.fit(network, 2, loss, verbose=False)
    # where an earlier epoch was better, its weights stay
    network.reset_parameters()
    values = iter([1.0, 0.0])
    assert how.fit(network, 2, loss, lambda: next(values), verbose=False)["kept"].tolist() == [True, False]


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"learning_rate": 0}, {"weight_decay": -1}]
)
def test_trainers_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NetworkTrainer(**settings)


def test_listwise_loss_is_cross_entropy_of_gains():
    rng = np.random.default_rng(0)
    scores, gains = rng.normal(size=(4, 6)), rng.integers(0, 3, size=(4, 6)).astype(float)
    gains[:, 0] += 1
    expected = []
    for s, g in zip(scores, gains):
        expected.append(-sum(p * np.log(np.exp(x) / np.exp(s).sum()) for x, p in zip(s, g / g.sum())))
    found = listwise(torch.tensor(scores), torch.tensor(gains))
    assert found.item() == pytest.approx(np.mean(expected))
    padded = torch.cat([torch.tensor(scores), torch.full((4, 2), -torch.inf)], 1).requires_grad_()
    found = listwise(padded, torch.cat([torch.tensor(gains), torch.zeros(4, 2)], 1))
    found.backward()
    assert found.item() == pytest.approx(np.mean(expected))
    assert padded.grad.isfinite().all()
