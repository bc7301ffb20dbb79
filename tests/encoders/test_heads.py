import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.projection import ACTIVATIONS
from tests import checkpoints as make
from tests.encoders.variants import ACTS, ALL, TEXTS, encoder, heads, project

# ------------------------------------------------------------------ the formulas, in numpy

ERF = np.vectorize(math.erf)
FUNCTIONS = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def weights(module):
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def expected(head, modules, states):
    h = np.asarray(states, np.float64)
    if isinstance(head, heads.Linear):
        return h @ weights(modules[0])["linear.weight"].T
    act = FUNCTIONS[head.activation]
    if isinstance(head, heads.GLU):
        w = weights(modules[0])
        return (act(h @ w["gate.weight"].T) * (h @ w["value.weight"].T)) @ w["output.weight"].T
    if head.residual == "skip":
        w = weights(modules[0])
        matrices = [w[f"stack.{i}.weight"] for i in range(head.layers)]
        skip = w["scale"] * (h @ w["skip.weight"].T)
    else:
        matrices, skip = [weights(m)["linear.weight"] for m in modules], 0
    u = h
    for i, matrix in enumerate(matrices[:-1]):
        inner = act(u @ matrix.T)
        if head.residual == "layer":
            residual = weights(modules[i]).get("residual.weight")
            inner = inner + (u if residual is None else u @ residual.T)
        u = inner
    return u @ matrices[-1].T + skip


@pytest.mark.parametrize("head", ALL, ids=repr)
def test_modules_compute_the_formula(head):
    states = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    modules = head.modules(16)
    if getattr(head, "residual", None) == "skip":
        torch.nn.init.constant_(modules[0].scale, 0.7)  # at 1 it could be forgotten
    out = project(modules, states)
    assert out.shape == (2, 5, 4)
    np.testing.assert_allclose(out, expected(head, modules, states), atol=2e-5)


def test_every_activation_has_a_module():
    assert set(ACTIVATIONS) == set(FUNCTIONS)


# ------------------------------------------------------------------ sizes and first weights


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (heads.Linear(128), 98_304),
        (heads.FFN(128), 1_376_256),
        (heads.FFN(128, residual="layer"), 2_555_904),
        (heads.FFN(128, expansion=0.5), 344_064),
        (heads.FFN(128, residual="skip"), 1_376_256 + 98_304 + 1),
    ],
)
def test_parameter_counts_at_768(head, count):
    assert head.parameters(768) == count


DIMS = st.integers(1, 9)
FFNS = st.builds(
    heads.FFN,
    DIMS,
    st.integers(1, 4),
    st.sampled_from([1, 0.5, 2.0, 1.3]),
    st.sampled_from(ACTS),
    st.sampled_from([None, "layer", "skip"]),
    st.integers(0, 2**40),
)
GLUS = st.builds(heads.GLU, DIMS, st.sampled_from([1, 0.5, 2.0]), st.sampled_from([*ACTS, "sigmoid"]))


@settings(max_examples=60, deadline=None)
@given(st.one_of(FFNS, GLUS, st.builds(heads.Linear, DIMS)), st.integers(2, 12))
def test_parameters_are_those_of_the_modules(head, in_features):
    modules = head.modules(in_features)
    assert head.parameters(in_features) == sum(p.numel() for m in modules for p in m.parameters())
    assert modules[-1].get_embedding_dimension() == head.dim
    assert not any(".bias" in name for m in modules for name in m.state_dict())


def test_weights_come_from_the_seed_and_from_nothing_else():
    for head in ALL:
        torch.manual_seed(7)
        before = torch.get_rng_state()
        one = [t for m in head.modules(16) for t in m.parameters()]
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(8)
        two = [t for m in head.modules(16) for t in m.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(one, two))
        other = copy.copy(head)
        object.__setattr__(other, "seed", 1)
        three = [t for m in other.modules(16) for t in m.parameters()]
        assert not any(torch.equal(a, b) for a, b in zip(one, three) if a.numel() > 1)


def test_a_number_is_the_linear_head_as_torch_draws_it(plain):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.nn.Linear(make.HIDDEN, 4, bias=False).weight
    by_number, by_head = encoder(plain, 4), encoder(plain, heads.Linear(4))
    assert torch.equal(by_number.model[1].linear.weight, drawn)
    assert by_number.space == by_head.space
    assert encoder(plain, np.int64(4)).space == by_head.space


# ------------------------------------------------------------------ other properties


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(2, 4), st.integers(0, 99))
def test_rank_is_bounded_by_the_inner_width(inner, dim, layers, seed):
    modules = heads.FFN(dim, layers, inner / 8, seed=seed).modules(8)
    outputs = project([m.double() for m in modules], np.random.default_rng(seed).normal(size=(40, 8)))
    assert np.linalg.matrix_rank(outputs, tol=1e-9) <= min(inner, dim)


def test_a_residual_head_starts_at_its_residual():
    first, last = modules = heads.FFN(4, residual="layer").modules(16)
    torch.nn.init.zeros_(first.linear.weight)
    states = np.random.default_rng(0).normal(size=(7, 16)).astype(np.float32)
    chain = last.linear.weight @ first.residual.weight
    np.testing.assert_allclose(project(modules, states), states @ chain.detach().numpy().T, atol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 7.0])
@pytest.mark.parametrize("head", [heads.Linear(4), heads.FFN(4, 3, activation="gelu", residual="layer"), heads.GLU(4)])
def test_the_last_weights_scale_changes_nothing_after_normalisation(head, scale, plain):
    one, other = encoder(plain, head), encoder(plain, head)
    module = other.model[head.layers if isinstance(head, heads.FFN) else 1]
    with torch.no_grad():
        (module.output if isinstance(head, heads.GLU) else module.linear).weight.mul_(scale)
    np.testing.assert_allclose(one.encode_docs(TEXTS).vectors, other.encode_docs(TEXTS).vectors, atol=2e-6)


# ------------------------------------------------------------------ settings


def test_no_head_is_attached_unasked(plain, tmp_path):
    assert encoder(plain, None).dim == make.HIDDEN
    assert len(encoder(plain, None).model) == 3
    bare = make.backbone(tmp_path / "bare")
    with pytest.raises(ValueError, match="not a multi-vector checkpoint"):
        mv.TokenEncoder(bare).model  # noqa: B018
    assert encoder(bare, heads.GLU(4)).dim == 4
    for folder in (make.stanford(tmp_path / "stanford"), make.pylate(tmp_path / "pylate")):
        with pytest.raises(ValueError, match="has its own projection"):
            mv.TokenEncoder(folder, init_projection=heads.GLU(4)).model  # noqa: B018


@pytest.mark.parametrize(
    ("make_head", "message"),
    [
        (lambda: heads.Linear(0), "dim must be a whole number of at least 1, got 0"),
        (lambda: heads.Linear(4.0), "dim must be a whole number"),
        (lambda: heads.Linear(True), "dim must be a whole number"),
        (lambda: heads.Linear(4, seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: heads.FFN(4, layers=0), "layers must be a whole number of at least 1"),
        (lambda: heads.FFN(4, layers=1.5), "layers must be a whole number"),
        (lambda: heads.FFN(4, expansion=0), "expansion must be a positive number, got 0"),
        (lambda: heads.FFN(4, expansion=math.nan), "expansion must be a positive number"),
        (lambda: heads.GLU(4, expansion="2"), "expansion must be a positive number, got '2'"),
        (lambda: heads.FFN(4, activation="sigmoid"), "activation must be one of identity, relu, gelu, silu, got 'sigm"),
        (lambda: heads.GLU(4, activation="tanh"), "activation must be one of sigmoid, identity, relu, gelu, silu"),
        (lambda: heads.FFN(4, residual=True), "residual must be one of None, layer, skip, got True"),
        (lambda: heads.FFN(4, expansion=0.01).modules(16), "expansion=0.01 leaves no inner width over 16 dimensions"),
        (lambda: heads.GLU(4).modules(0), "in_features must be a whole number of at least 1"),
        (lambda: mv.TokenEncoder("x", init_projection="128"), "a number of dimensions or a head such as"),
        (lambda: mv.TokenEncoder("x", init_projection=True), "a number of dimensions or a head such as"),
        (lambda: mv.TokenEncoder("x", init_projection=heads.FFN), "a number of dimensions or a head such as"),
    ],
)
def test_wrong_arguments(make_head, message):
    with pytest.raises(ValueError, match=message):
        make_head()


def test_encoders_with_a_head_are_values(plain):
    one, same = (encoder(plain, heads.FFN(4, activation="gelu")) for _ in range(2))
    other = encoder(plain, heads.FFN(4, activation="gelu", seed=1))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert repr(mv.TokenEncoder("x", heads.GLU(4))) == (
        "TokenEncoder(name='x', init_projection=GLU(dim=4, expansion=2.0, activation='sigmoid', seed=0))"
    )
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    np.testing.assert_array_equal(again.encode_docs(TEXTS).vectors, one.encode_docs(TEXTS).vectors)
    one.init_projection = heads.GLU(6)  # in force at once, as every setting
    assert one.dim == 6


def test_a_model_with_our_module_can_be_pickled(plain):
    model = encoder(plain, heads.FFN(4, residual="skip")).model
    again = mv.TokenEncoder(pickle.loads(pickle.dumps(model)))
    np.testing.assert_array_equal(again.encode_docs(TEXTS).vectors, mv.TokenEncoder(model).encode_docs(TEXTS).vectors)


def test_other_vectors_are_another_space_even_of_equal_weights(plain):
    """An activation, or a residual without a map, is in no weight."""
    alike = [
        [heads.FFN(4, 2, 1, act, residual) for act in ACTS for residual in (None, "layer")],
        [heads.GLU(4, activation=act) for act in (*ACTS, "sigmoid")],
        [heads.FFN(4, activation=act, residual="skip") for act in ACTS],
    ]
    spaces = []
    for group in alike:
        encoders = [encoder(plain, head) for head in group]
        first, *others = ([p.detach() for p in e.model[1].parameters()] for e in encoders)
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))
        spaces += [e.space for e in encoders]
    assert len(set(spaces)) == len(spaces)


def test_an_activation_exchanged_in_memory_is_noticed(plain):
    deep = encoder(plain, heads.FFN(4, activation="gelu"))
    before = deep.space
    deep.model[1].activation_function = torch.nn.ReLU()
    assert deep.space != before
