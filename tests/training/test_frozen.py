from types import SimpleNamespace

import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.training import StateCache, frozen
from pyterrier_mvret.training.fitting import _part
from tests.training.common import StoppedError, distance, moved, stop_at, weights

pytestmark = pytest.mark.usefixtures("no_cards")


def where(names):
    """The parts of the tiny model that names of weights belong to."""
    parts = {"embeddings": "embeddings", "layer.0.": "first layer", "layer.1.": "last layer", "1.linear": "head"}
    return {part for name in names for key, part in parts.items() if key in name}


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("head", {"head"}),
        ("last:1", {"last layer", "head"}),
        ("last:2", {"first layer", "last layer", "head"}),
        ("all", {"embeddings", "first layer", "last layer", "head"}),
    ],
)
def test_the_part_that_is_asked_for_moves_and_nothing_else(colbert, toy, quick, train, expected):
    model = colbert()
    before = weights(model)
    model.fit(toy.pairs, **{**quick, "train": train})
    assert where(moved(before, weights(model))) == expected
    assert all(weight.requires_grad for weight in model.encoder.model.parameters())
    assert not model.encoder.model.training


def test_flags_are_those_from_before_even_after_an_error(colbert):
    model = colbert().encoder.model
    chosen = [name for name, _ in model.named_parameters()][::2]
    for name in chosen:
        model.get_parameter(name).requires_grad = False
    with pytest.raises(StoppedError), _part(model, "head"):
        assert [n for n, w in model.named_parameters() if w.requires_grad and n.startswith("0.")] == []
        raise StoppedError
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == chosen


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("heads", "'head', 'last:n' or 'all'"),
        ("last:0", "from 1 to all 2"),
        ("last:3", "from 1 to all 2"),
        ("last:", "from 1 to all 2"),
        ("last:-1", "from 1 to all 2"),
        ("last:1.5", "from 1 to all 2"),
    ],
)
def test_what_cannot_be_trained_is_said(colbert, toy, quick, train, message):
    with pytest.raises(ValueError, match=message):
        colbert().fit(toy.pairs, **{**quick, "train": train})


def test_a_head_must_be_there(plain, toy, quick):
    with pytest.raises(ValueError, match="init_projection"):
        mv.ColBERT(plain, device="cpu").fit(toy.pairs, **quick)
    mv.ColBERT(plain, device="cpu").fit(toy.pairs, **{**quick, "train": "last:1"})


def test_every_weight_of_a_deeper_head_moves(plain, toy, quick):
    head = mv.heads.FFN(4, residual="skip", activation="gelu")
    model = mv.ColBERT(plain, device="cpu", init_projection=head)
    before = weights(model)
    model.fit(toy.pairs, **quick)
    names = moved(before, weights(model))
    assert names == {name for name in before if name.startswith("1.")} and len(names) == 4


def test_parts_that_do_not_move_run_as_in_inference(colbert, toy, quick, monkeypatch):
    """Dropout below what is trained would be noise alone: the same data gives the same loss at every step."""
    model = colbert()
    settings = {**quick, "learning_rate": 0.0, "batch_size": 10, "max_steps": 3, "state_cache": 0}
    losses = {train: model.fit(toy.pairs, **{**settings, "train": train}).history["loss"] for train in ("head", "all")}
    assert losses["head"].max() - losses["head"].min() < 1e-5
    assert losses["all"].max() - losses["all"].min() > 1e-3


# ------------------------------------------------------------------ token states that are computed once

ENCODERS = [
    {"query_expansion": True, "attend": True},
    {"query_expansion": True, "attend": False},
    {"query_expansion": False},
    {"skiplist": ["cat", "the"]},
]


@pytest.mark.parametrize(("settings", "mini_batch_size"), [*((e, None) for e in ENCODERS), (ENCODERS[1], 2)], ids=str)
def test_cached_states_change_no_outcome(colbert, toy, quick, settings, mini_batch_size):
    how = {**quick, "max_steps": 6, "evaluations": 2, "mini_batch_size": mini_batch_size}
    fitted = []
    for gib in (2.0, 0):
        model = colbert(**settings)
        before = weights(model)
        model.fit(toy.groups, toy.groups, state_cache=gib, **how)
        fitted.append((weights(model), model.history))
    assert distance(before, fitted[0][0]) > 1e-3
    assert distance(fitted[0][0], fitted[1][0]) < 1e-5
    torch.testing.assert_close(
        *(torch.tensor(history.to_numpy()) for _, history in fitted), equal_nan=True, atol=1e-4, rtol=0
    )


def features(model, texts, task):
    return model.preprocess(texts, prompt=model.prompts.get(task), task=task)


def counted(model, monkeypatch):
    """How many texts go through the transformer itself."""
    rows, whole = [], model[0].model.forward

    def forward(*args, **kwargs):
        rows.append(len(kwargs["input_ids"]))
        return whole(*args, **kwargs)

    monkeypatch.setattr(model[0].model, "forward", forward)
    return rows


def test_a_text_goes_through_the_transformer_once(colbert, monkeypatch):
    model = colbert().encoder.model
    rows = counted(model, monkeypatch)
    with frozen.cached_states(model, StateCache()):
        model(features(model, ["a cat", "the dog ran fast", "a cat"], "document"), task="document")
        assert sum(rows) == 2
        wider = features(model, ["a cat sat on the mat", "a cat"], "document")
        out = model(wider, task="document")["token_embeddings"][1]
        assert sum(rows) == 3
        model(features(model, ["a cat"], "query"), task="query")  # with another marker: another text
        assert sum(rows) == 4
    expected = model(features(model, ["a cat sat on the mat", "a cat"], "document"), task="document")
    kept = expected["attention_mask"][1].bool()
    torch.testing.assert_close(out[kept], expected["token_embeddings"][1][kept], atol=1e-6, rtol=0)


def test_texts_of_equal_tokens_that_see_each_other_differently_are_two(colbert, monkeypatch):
    model = colbert().encoder.model
    rows = counted(model, monkeypatch)
    made = features(model, ["a cat sat"], "document")
    blind = {**made, "attention_mask": made["attention_mask"].clone()}
    blind["attention_mask"][0, 2] = 0
    with frozen.cached_states(model, StateCache()):
        a, b = (model[0](dict(f))["token_embeddings"] for f in (made, blind))
    assert sum(rows) == 2 and not torch.equal(a, b)


@pytest.mark.parametrize("texts", [0, 1, 2])
def test_memory_stays_below_the_limit(colbert, texts, monkeypatch):
    model = colbert().encoder.model
    one = features(model, ["a cat"], "document")["input_ids"].shape[1] * 16 * 4  # float32 states of 16 dimensions
    rows = counted(model, monkeypatch)
    cache = StateCache((texts * one + one // 2) / 2**30)
    with frozen.cached_states(model, cache):
        for _ in range(2):
            for text in ("a cat", "the dog", "on it"):
                model(features(model, [text], "document"), task="document")
        assert sum(state.nbytes for state in cache._states.values()) == texts * one
    assert sum(rows) == 6 - texts


def test_states_are_shared_between_runs_of_one_transformer_alone(colbert, toy, quick, monkeypatch):
    cache = mv.training.StateCache()
    alone = weights(colbert().fit(toy.pairs, **quick))
    colbert().fit(toy.pairs, **{**quick, "seed": 1, "batch_size": 10}, state_cache=cache)  # sees all texts
    many = len(cache)
    second = colbert()
    rows = counted(second.encoder.model, monkeypatch)
    # the run's own copy is what would be counted otherwise
    monkeypatch.setattr("pyterrier_mvret.training.fitting.copy", SimpleNamespace(deepcopy=lambda model: model))
    second.fit(toy.pairs, state_cache=cache, **quick)
    assert sum(rows) == 0 < many == len(cache)
    assert distance(weights(second), alone) < 1e-6
    monkeypatch.undo()
    other = colbert()
    other.fit(toy.pairs, **{**quick, "train": "all"})  # its transformer has moved
    before = weights(other)
    other.fit(toy.pairs, state_cache=cache, **quick)
    again = colbert().fit(toy.pairs, **{**quick, "train": "all"}).fit(toy.pairs, state_cache=0, **quick)
    assert moved(before, weights(other)) and distance(weights(other), weights(again)) < 1e-5


def test_a_cache_has_a_size():
    with pytest.raises(ValueError, match="at least 0"):
        mv.training.StateCache(-1)
    assert repr(mv.training.StateCache(1.5)) == "StateCache(gib=1.5)"


def test_states_seen_in_validation_serve_training(colbert):
    """They are made without recording anything, and still gradients flow above them."""
    model = colbert().encoder.model
    with frozen.cached_states(model, StateCache()):
        with torch.inference_mode():
            model(features(model, ["a cat"], "document"), task="document")
        out = model(features(model, ["a cat"], "document"), task="document")["token_embeddings"]
        out.sum().backward()
    assert model[1].linear.weight.grad.any()


def test_the_transformer_is_itself_again_after_an_error(colbert, toy, quick, monkeypatch):
    model = colbert().encoder.model
    with pytest.raises(StoppedError), frozen.cached_states(model, StateCache(0)):
        assert "forward" in vars(model[0])
        raise StoppedError
    assert "forward" not in vars(model[0])
    in_memory = mv.ColBERT(model)
    stop_at(monkeypatch, 1)
    with pytest.raises(StoppedError):
        in_memory.fit(toy.pairs, **quick)
    monkeypatch.undo()
    assert "forward" not in vars(in_memory.fit(toy.pairs, **quick).encoder.model[0])
