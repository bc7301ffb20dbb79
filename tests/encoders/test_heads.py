import copy
import json
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import checkpoints
from pyterrier_mvret.encoders.projection import ACTIVATIONS, Projection
from tests import checkpoints as make

heads = mv.heads
TEXTS = ["a cat sat on the mat", "rain fell", "?", ""]
ACTS = ("identity", "relu", "gelu", "silu")
ALL = [
    heads.Linear(4),
    *(heads.FFN(4, 3, 1.5, act, residual) for act in ACTS for residual in (None, "layer", "skip")),
    *(heads.GLU(4, 1.5, act) for act in (*ACTS, "sigmoid")),
]
LINEAR = [
    heads.Linear(4),
    *(heads.FFN(4, layers, 1.5, residual=r) for layers in (1, 2, 3, 4) for r in (None, "layer", "skip")),
    heads.FFN(4, 3, 1, residual="layer"),  # the first residual needs no map either
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make.sentence_encoder(tmp_path_factory.mktemp("plain") / "model")


def encoder(folder, head, **settings):
    return mv.TokenEncoder(folder, init_projection=head, device="cpu", **settings)


def project(modules, states):
    features = {"token_embeddings": torch.as_tensor(states)}
    with torch.no_grad():
        for module in modules:
            features = module(features)
    return features["token_embeddings"].numpy()


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


# ------------------------------------------------------------------ folding


@pytest.mark.parametrize("head", LINEAR, ids=repr)
def test_a_linear_head_folds_into_one_matrix_with_equal_vectors(head, plain):
    deep = encoder(plain, head)
    before = deep.space
    torch.manual_seed(3)
    state = torch.get_rng_state()
    flat = deep.fold()
    assert torch.equal(torch.get_rng_state(), state)
    kinds = [type(m).__name__ for m in flat.model]
    assert kinds == ["Transformer", "Dense", "MultiVectorMask", "Normalize"]
    assert flat.model[1].linear.weight.shape == (4, make.HIDDEN)
    assert flat.model[1].linear.weight.requires_grad
    for encode in ("encode_docs", "encode_queries"):
        a, b = getattr(deep, encode)(TEXTS), getattr(flat, encode)(TEXTS)
        np.testing.assert_allclose(a.vectors, b.vectors, atol=2e-6)
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
    assert deep.space == before
    assert deep.model is not flat.model


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.sampled_from([None, "layer", "skip"]), st.integers(0, 99), st.integers(1, 12))
def test_folding_is_exact_for_any_linear_head(layers, residual, seed, in_features):
    from pyterrier_mvret.encoders.folding import _product

    modules = heads.FFN(3, layers, 2, residual=residual, seed=seed).modules(in_features)
    states = np.random.default_rng(seed).normal(size=(20, in_features))
    deep = project([m.double() for m in modules], states)
    flat = states @ _product(copy.deepcopy(modules)).linear.weight.detach().numpy().T
    np.testing.assert_allclose(flat, deep, atol=1e-12)


def test_pylates_recipe_folds(tmp_path):
    folder = make.pylate(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "pylate.models.Dense.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    shutil.rmtree(folder / "1_Dense")
    up, residual, down = make.projection(32, 16, 1), make.projection(32, 16, 2), make.projection(16, 32, 3)
    make.dense(folder / "1_Dense", up, residual=residual, use_residual=True)
    make.dense(folder / "2_Dense", down)
    deep = mv.TokenEncoder(folder, device="cpu")
    flat = deep.fold()
    exact = down.double() @ (up.double() + residual.double())
    np.testing.assert_allclose(flat.model[1].linear.weight.detach(), exact, rtol=1e-6)
    np.testing.assert_allclose(flat.encode_docs(TEXTS).vectors, deep.encode_docs(TEXTS).vectors, atol=2e-6)
    assert flat.describe()["document"] == deep.describe()["document"]
    np.testing.assert_array_equal(flat.encode_queries(["cat"]).token_ids, deep.encode_queries(["cat"]).token_ids)
    flat.save(tmp_path / "flat")
    again = mv.TokenEncoder(tmp_path / "flat", device="cpu")
    np.testing.assert_allclose(again.encode_docs(TEXTS).vectors, flat.encode_docs(TEXTS).vectors, atol=1e-6)
    assert again.space.partition("#")[2] == flat.space.partition("#")[2]


def test_biases_fold_and_what_comes_after_stays(plain):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense

    backbone, _, *rest = encoder(plain, 4, token_pooling=2).model
    torch.manual_seed(0)
    identity = torch.nn.Identity()
    biased = [Dense(*shape, True, identity, module_input_name="token_embeddings") for shape in ((16, 8), (8, 4))]
    model = MultiVectorEncoder(modules=[backbone, *biased, *rest], device="cpu")
    model.module_kwargs = {str(i): ["task"] if i == 4 else [] for i in range(6)}
    flat = heads.fold(model)
    assert [type(m) for m in flat] == [type(m) for m in [backbone, biased[0], *rest]]
    assert flat.module_kwargs == {"0": [], "1": [], "2": [], "3": ["task"], "4": []}
    model.module_kwargs = flat.module_kwargs = None
    deep, folded = mv.TokenEncoder(model), mv.TokenEncoder(flat)
    np.testing.assert_allclose(deep.encode_docs(TEXTS).vectors, folded.encode_docs(TEXTS).vectors, atol=2e-6)


def test_half_precision_folds_to_half_precision(plain):
    half = encoder(plain, heads.FFN(4, residual="layer"), dtype="bfloat16")
    flat = half.fold()
    assert flat.model[1].linear.weight.dtype is torch.bfloat16
    assert np.abs(flat.encode_docs(TEXTS).vectors - half.encode_docs(TEXTS).vectors).max() < 0.05


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (heads.FFN(4, 3, activation="gelu"), r"module 1 \(Dense, activation GELU\) is not linear"),
        (heads.FFN(4, activation="relu", residual="layer"), r"module 1 \(Dense, activation ReLU\) is not linear"),
        (heads.FFN(4, activation="silu", residual="skip"), r"module 1 \(Projection, ffn\+skip, activation silu\)"),
        (heads.GLU(4), r"module 1 \(Projection, glu, activation sigmoid\) is not linear"),
        (heads.GLU(4, activation="identity"), r"module 1 \(Projection, glu, activation identity\) is not linear"),
        (None, "no projection, so there is nothing to fold"),
    ],
)
def test_what_cannot_be_one_matrix_is_refused(head, message, plain):
    with pytest.raises(ValueError, match=message):
        encoder(plain, head).fold()


def test_no_folding_across_other_modules_and_other_backends(plain):
    from sentence_transformers import MultiVectorEncoder

    backbone, dense, mask, normalize = encoder(plain, 4).model
    model = MultiVectorEncoder(modules=[backbone, dense, normalize, copy.deepcopy(dense), mask], device="cpu")
    with pytest.raises(ValueError, match=r"module 2 \(Normalize\) stands between projections"):
        heads.fold(model)
    with pytest.raises(ValueError, match="fold with backend='torch'"):
        encoder(plain, 4, backend="openvino").fold()


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


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("head", ALL, ids=repr)
def test_a_saved_head_comes_back_the_same(head, plain, tmp_path):
    before = encoder(plain, head, query_expansion=True, query_length=8, skiplist="punctuation")
    before.save(tmp_path / "saved")
    assert checkpoints.detect(tmp_path / "saved") == "native"
    after = mv.TokenEncoder(tmp_path / "saved", device="cpu")
    for encode in ("encode_queries", "encode_docs"):
        np.testing.assert_array_equal(getattr(after, encode)(TEXTS).vectors, getattr(before, encode)(TEXTS).vectors)
    assert after.space.partition("#")[2] == before.space.partition("#")[2]
    assert after.dim == 4
    with pytest.raises(ValueError, match="has its own projection"):
        mv.TokenEncoder(tmp_path / "saved", init_projection=head).model  # noqa: B018


@pytest.mark.parametrize("safe", [True, False])
def test_a_checkpoint_of_the_trainer_is_read(safe, plain, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    for head in (heads.GLU(4), heads.FFN(4, residual="skip")):
        folder = tmp_path / type(head).__name__
        before = encoder(plain, head)
        with torch.no_grad():
            for parameter in before.model[1].parameters():
                parameter.mul_(1.5)
        before.model.save_pretrained(str(folder), safe_serialization=safe)
        names = [m["type"] for m in json.loads((folder / "modules.json").read_text())]
        assert names[1] == checkpoints._OWN
        after = mv.TokenEncoder(folder, device="cpu")
        np.testing.assert_array_equal(after.encode_docs(TEXTS).vectors, before.encode_docs(TEXTS).vectors)
        # sentence-transformers on its own wants to be told that this package may be imported
        alone = MultiVectorEncoder(str(folder), device="cpu", trust_remote_code=True)
        assert isinstance(alone[1], Projection)
        with pytest.raises(ValueError, match="trust_remote_code"):
            MultiVectorEncoder(str(folder), device="cpu")


def test_foreign_modules_beside_ours_still_need_trust(plain, tmp_path):
    encoder(plain, heads.GLU(4)).save(tmp_path / "saved")
    file = tmp_path / "saved" / "modules.json"
    modules = json.loads(file.read_text())
    modules[2]["type"] = "somewhere.Projection"
    file.write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="trust_remote_code"):
        mv.TokenEncoder(tmp_path / "saved").model  # noqa: B018


@pytest.mark.parametrize("lost", ["file", "type", "ColBERT"])
def test_our_module_is_known_whatever_the_config_says(lost, plain, tmp_path):
    before = encoder(plain, heads.GLU(4), query_prefix="", doc_prefix="")
    before.save(tmp_path / "saved")
    config = tmp_path / "saved" / "config_sentence_transformers.json"
    if lost == "file":
        config.unlink()
    elif lost == "type":
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_type"}))
    else:
        make.edit(config, model_type="ColBERT")
        modules = tmp_path / "saved" / "modules.json"
        modules.write_text(json.dumps(json.loads(modules.read_text())[:2]))  # PyLate lists no mask, no normalisation
    after = mv.TokenEncoder(tmp_path / "saved", skiplist=[], device="cpu")
    assert [type(m).__name__ for m in after.model] == ["Transformer", "Projection", "MultiVectorMask", "Normalize"]
    np.testing.assert_array_equal(after.encode_docs(["a cat"]).vectors, before.encode_docs(["a cat"]).vectors)


@pytest.mark.parametrize("head", [heads.FFN(4, 3, 2, "gelu"), heads.FFN(4, 3, 1, residual="layer")], ids=repr)
def test_a_deep_head_is_saved_as_pylate_saves_it(head, plain, tmp_path):
    before = encoder(plain, head, skiplist=[])
    saved = tmp_path / "saved"
    before.save(saved)
    for i in (1, 2, 3):
        config = json.loads((saved / f"{i}_Dense" / "config.json").read_text())
        assert {"in_features", "out_features", "bias", "activation_function"} <= set(config)
        assert config["bias"] is False
        assert config.get("use_residual", False) == (head.residual == "layer" and i < 3)
        assert config["activation_function"].startswith("torch.nn.modules.")
    file = saved / "modules.json"
    modules = json.loads(file.read_text())
    for module in modules[1:4]:
        module["type"] = "pylate.models.Dense"
    file.write_text(json.dumps(modules))
    native = mv.TokenEncoder(saved, device="cpu")
    np.testing.assert_array_equal(native.encode_docs(TEXTS).vectors, before.encode_docs(TEXTS).vectors)
    file.write_text(json.dumps(modules[:4]))
    make.edit(saved / "config_sentence_transformers.json", model_type="ColBERT", skiplist_words=[])
    pylate = mv.TokenEncoder(saved, device="cpu")
    assert checkpoints.detect(saved) == "pylate"
    np.testing.assert_array_equal(pylate.encode_docs(TEXTS).vectors, before.encode_docs(TEXTS).vectors)


def test_a_damaged_head_is_named(plain, tmp_path):
    from safetensors.torch import load_file, save_file

    encoder(plain, heads.GLU(4)).save(tmp_path / "whole")
    config, file = "1_Projection/config.json", "1_Projection/model.safetensors"

    def damaged(name):
        return shutil.copytree(tmp_path / "whole", tmp_path / name)

    unknown = damaged("unknown")
    make.edit(unknown / config, power=2)
    with pytest.raises(
        ValueError, match=r"1_Projection/config\.json is not of a projection: missing or unknown: power"
    ):
        mv.TokenEncoder(unknown).model  # noqa: B018
    form = damaged("form")
    make.edit(form / config, form="moe")
    with pytest.raises(ValueError, match="form must be glu or ffn.skip, got 'moe'"):
        mv.TokenEncoder(form).model  # noqa: B018
    activation = damaged("activation")
    make.edit(activation / config, activation="tanh")
    with pytest.raises(ValueError, match="activation must be one of .*, got 'tanh'"):
        mv.TokenEncoder(activation).model  # noqa: B018
    short = damaged("short")
    save_file({k: v for k, v in load_file(short / file).items() if k != "gate.weight"}, short / file)
    with pytest.raises(ValueError, match=f"the checkpoint {short} cannot be read"):
        mv.TokenEncoder(short).model  # noqa: B018


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
