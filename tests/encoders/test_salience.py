"""Salience heads as part of a model: attached, saved, read back, and what they say of texts."""

import copy
import json

import numpy as np
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import salience
from pyterrier_mvret.encoders.importance import Salience
from pyterrier_mvret.encoders.salience import SalienceSettings
from pyterrier_mvret.scoring.salience import budget, entropy_lp

TEXTS = ["a cat sat on the mat", "the sky is blue, the rain fell", "a dog", ""]


@pytest.fixture
def salient(tiny):
    """An encoder with heads of random weights, so that saliences differ."""
    return with_heads(tiny)


def with_heads(tiny, **settings):
    import torch

    model = copy.deepcopy(mv.TokenEncoder(tiny, device="cpu").model)
    SalienceSettings(**settings)(model)
    heads = salience.heads_of(model)
    with torch.no_grad():
        for weight in (heads.query_salience.weight, heads.document_salience.weight):
            weight.copy_(torch.from_numpy(np.random.default_rng(weight.numel()).standard_normal(weight.shape)))
    return mv.TokenEncoder(model)


def raw(encoder, batch, side):
    head = getattr(salience.heads_of(encoder.model), f"{side}_salience")
    return batch.vectors @ head.weight.detach().numpy()[0] + head.bias.item()


@pytest.mark.parametrize(("side", "share"), [("query", 0.5), ("document", 0.4)])
def test_saliences_are_gates_times_scores_of_each_text(salient, side, share):
    batch = (salient.encode_queries if side == "query" else salient.encode_docs)(TEXTS)
    for i in range(len(batch)):
        rows = batch.rows(i)
        s = np.maximum(raw(salient, batch, side)[rows], 0)
        k = budget(share, np.array([len(s)]))[0]
        np.testing.assert_allclose(batch.weights[rows], s * entropy_lp(s, k, 0.002), atol=1e-5)
    np.testing.assert_allclose(batch.importance, raw(salient, batch, side), atol=1e-5)
    asked = salient.encode_docs(TEXTS, importance=Salience()).importance
    np.testing.assert_array_equal(asked, salient.encode_docs(TEXTS).importance)


def test_saliences_of_a_text_do_not_depend_on_its_company(salient):
    together = salient.encode_docs(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = salient.encode_docs([text])
        np.testing.assert_allclose(alone.weights, together.weights[together.rows(i)], atol=1e-5)


def test_vectors_are_those_without_heads(tiny, salient):
    np.testing.assert_array_equal(salient.encode_docs(TEXTS).vectors, mv.TokenEncoder(tiny).encode_docs(TEXTS).vectors)


def test_new_heads_weigh_all_tokens_about_alike(tiny):
    model = copy.deepcopy(mv.TokenEncoder(tiny, device="cpu").model)
    SalienceSettings("relu")(model)
    batch = mv.TokenEncoder(model).encode_docs(TEXTS)
    assert np.abs(batch.weights - 1).max() < 0.2
    other, same = copy.deepcopy(mv.TokenEncoder(tiny, device="cpu").model), copy.deepcopy(model)
    SalienceSettings("relu", seed=1)(other)
    assert mv.TokenEncoder(other).space != mv.TokenEncoder(model).space == mv.TokenEncoder(same).space


def test_heads_are_saved_and_read_back(salient, tiny, tmp_path):
    salient.save(tmp_path / "model")
    again = mv.TokenEncoder(tmp_path / "model", device="cpu")
    assert again.has_salience
    assert again._opened is None  # told without opening it
    assert again.space.rpartition("#")[2] == salient.space.rpartition("#")[2]
    a, b = again.encode_docs(TEXTS), salient.encode_docs(TEXTS)
    np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)
    assert again.describe()["document"]["salience"]["document_share"] == 0.4
    assert not mv.TokenEncoder(tiny).has_salience
    assert "salience" not in mv.TokenEncoder(tiny).describe()["document"]


def test_the_librarys_own_loader_asks_for_trust(salient, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    salient.save(tmp_path / "model")
    with pytest.raises(ValueError, match="(?s)SalienceHeads.*trust_remote_code"):
        MultiVectorEncoder(str(tmp_path / "model"), device="cpu")
    opened = MultiVectorEncoder(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    vectors = opened.encode_document(TEXTS[:1], convert_to_numpy=True)[0]
    np.testing.assert_allclose(vectors, salient.encode_docs(TEXTS[:1]).vectors, atol=1e-5)


def test_settings_of_heads_are_part_of_the_space(tiny):
    spaces = {with_heads(tiny, **s).space for s in ({}, {"alpha_d": 0.2}, {"gate": "relu"}, {"epsilon": 0.1})}
    assert len(spaces) == 4


def test_heads_that_are_there_take_settings_and_keep_weights(salient):
    before = salience.heads_of(salient.model).document_salience.weight.clone()
    SalienceSettings("none", alpha_q=0.1)(salient.model)
    heads = salience.heads_of(salient.model)
    assert (heads.gate, heads.query_share) == ("none", 0.1)
    assert (heads.document_salience.weight == before).all()
    assert len([m for m in salient.model if m is heads]) == 1
    assert (salient.encode_docs(TEXTS).weights == 1).all()


def test_saliences_are_carried_as_one_more_dimension(salient):
    model = salient.model
    features = model.preprocess(TEXTS, task="document")
    plain = model(dict(features), task="document")
    with salience.carried(model):
        out = model(dict(features), task="document")
    assert out["token_embeddings"].shape[-1] == plain["token_embeddings"].shape[-1] + 1
    np.testing.assert_array_equal(out["token_embeddings"][..., -1].detach(), plain["token_weights"].detach())
    assert (plain["token_weights"][~plain["attention_mask"].bool()] == 0).all()
    assert model(dict(features), task="document")["token_embeddings"].shape == plain["token_embeddings"].shape
    assert model.get_embedding_dimension() == 8


def test_heads_come_after_all_that_is_there(tiny, tmp_path):
    """Also where the encoder was opened without one of its modules, and that was not the last."""
    from sentence_transformers import MultiVectorEncoder

    model = mv.TokenEncoder(tiny, device="cpu").model
    transformer, projection, mask, normalize = model
    MultiVectorEncoder(modules=[transformer, projection, normalize, mask], prompts=model.prompts).save(str(tmp_path))
    plain = mv.TokenEncoder(tmp_path, device="cpu", normalize=False)
    kinds = [type(module) for module in plain.model]
    assert kinds == [type(transformer), type(projection), type(mask)]
    model = copy.deepcopy(plain.model)
    SalienceSettings()(model)
    assert [type(module) for module in model][:-1] == kinds
    a, b = plain.encode_docs(TEXTS), mv.TokenEncoder(model).encode_docs(TEXTS)
    np.testing.assert_array_equal(a.vectors, b.vectors)  # without the mask, there were more of them


def test_what_would_change_their_vectors_is_refused(salient, tmp_path):
    salient.save(tmp_path / "model")
    for settings in ({"normalize": False}, {"token_pooling": 2}):
        with pytest.raises(ValueError, match="salience heads were trained on"):
            mv.TokenEncoder(tmp_path / "model", **settings).model  # noqa: B018


def test_damaged_settings_are_named(salient, tmp_path):
    salient.save(tmp_path / "model")
    (config,) = (tmp_path / "model").glob("*_SalienceHeads/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "power": 2}))
    with pytest.raises(ValueError, match=r"config\.json is not of SalienceHeads: missing or unknown: power"):
        mv.TokenEncoder(tmp_path / "model").model  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gate": "soft"}, "gate must be one of"), ({"alpha_q": 0}, "alpha_q must be above 0"),
     ({"alpha_d": 1.5}, "alpha_d must be a number from 0 to 1"), ({"epsilon": 0}, "epsilon must be above 0")],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SalienceSettings(**settings)


def test_half_precision_keeps_the_gates(tiny, tmp_path):
    with_heads(tiny).save(tmp_path / "model")
    whole, half = (mv.TokenEncoder(tmp_path / "model", device="cpu", dtype=d) for d in ("float32", "bfloat16"))
    a, b = whole.encode_docs(TEXTS), half.encode_docs(TEXTS)
    assert b.weights.dtype == np.float32
    assert np.isfinite(b.weights).all()
    for i in range(len(TEXTS)):  # as many gates are open where vectors are rounded, up to one at the threshold
        opened = [int((batch.weights[batch.rows(i)] > 1e-3).sum()) for batch in (a, b)]
        assert abs(opened[0] - opened[1]) <= 1
