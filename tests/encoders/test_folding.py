import copy
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from tests import checkpoints as make
from tests.encoders.variants import LINEAR, TEXTS, encoder, heads, project


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
