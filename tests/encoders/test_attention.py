"""Attention received: what the transformer itself gives on demand, with nothing changed by the watching."""

import copy
import json
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import attention, batches
from pyterrier_mvret.encoders.importance import Attention
from tests import checkpoints as make

TEXTS = ["a cat", "", "rain fell on the dog, fast!", "?", "a cat", "who sat on the mat " * 40, "mat"]
SPREAD = 0.3  # of weights, so large that attention is far from even
ENCODE = {"query": "encode_queries", "document": "encode_docs"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = make.stanford(tmp_path_factory.mktemp("sharp") / "colbert")
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("query.weight", "key.weight")):
            weights[name] = weights[name] * SPREAD / 0.02
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tiny_encoder(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    text = encoder.encode_docs(["rain fell on the dog"], importance=Attention()).importance
    assert text.std() > 0.03  # or the comparisons below say nothing
    return encoder


def expected(encoder, text, task):
    """(tokens,) of one text that goes alone through the Hugging Face model, in its arithmetic that tells attention."""
    model = encoder.model
    features = batches.tokenised(model, batches.with_prefix(model, [text], task), task)
    features.pop("offset_mapping", None)
    plain = copy.deepcopy(model[0].auto_model).eval()
    plain.set_attn_implementation("eager")
    inputs = {k: v for k, v in features.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():
        heads = plain(**inputs, output_attentions=True).attentions[-1][0].double().numpy()
        scored = model(dict(features), task=task)["attention_mask"][0].bool().numpy()
    seen = features["attention_mask"][0].bool().numpy()
    return heads[:, seen].mean(axis=(0, 1))[scored]


def assert_as_expected(encoder, texts, task):
    batch = getattr(encoder, ENCODE[task])(texts, importance=Attention())
    assert batch.importance.dtype == np.float32
    for i, text in enumerate(texts):
        got = batch.importance[batch.rows(i)]
        np.testing.assert_allclose(got, expected(encoder, text, task), atol=1e-5)
        alone = getattr(encoder, ENCODE[task])([text], importance=Attention())
        np.testing.assert_allclose(alone.importance, got, atol=1e-5)


@pytest.mark.parametrize("task", ENCODE)
@pytest.mark.parametrize("settings", [{}, {"attend": True}, {"query_expansion": False, "skiplist": []}])
def test_attention_is_what_the_transformer_gives(tiny, task, settings):
    assert_as_expected(mv.TokenEncoder(tiny, device="cpu", **settings), TEXTS, task)


def test_attention_in_minilm(minilm):
    texts = ["A cat sat on the mat.", "", "Rain fell for three days, and the river rose. " * 5]
    assert_as_expected(minilm, texts, "document")
    batch = minilm.encode_docs(texts, importance=Attention())
    np.testing.assert_allclose([batch.importance[batch.rows(i)].sum() for i in range(3)], 1, atol=1e-6)


@pytest.mark.parametrize("task", ENCODE)
def test_attention_when_texts_are_longer_than_what_is_held_at_once(tiny_encoder, task, monkeypatch):
    whole = getattr(tiny_encoder, ENCODE[task])(TEXTS, importance=Attention()).importance
    monkeypatch.setattr(attention, "_QUERIES_AT_ONCE", 3)
    with Attention().watching(tiny_encoder.model):  # which does not take our arithmetic for the model's
        cut = getattr(tiny_encoder, ENCODE[task])(TEXTS, importance=Attention()).importance
    np.testing.assert_allclose(cut, whole, atol=1e-6)


SIZES = {
    "vocab_size": len(make.VOCAB),
    "hidden_size": 16,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "initializer_range": SPREAD,
}
OTHERS = {
    # sliding windows in all layers but the first
    "windows": transformers.ModernBertConfig(
        **SIZES, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, local_attention=6
    ),
    # causal, several heads that share their keys
    "causal": transformers.Qwen3Config(
        **SIZES, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4
    ),
    "distilled": transformers.DistilBertConfig(
        vocab_size=len(make.VOCAB),
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=64,
        initializer_range=SPREAD,
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_of_other_transformers(kind, implementation, tmp_path):
    folder = make.sentence_encoder(tmp_path / "model")
    (folder / "config.json").unlink()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(OTHERS[kind]).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    encoder = mv.TokenEncoder(folder, device="cpu")
    encoder.model[0].auto_model.set_attn_implementation(implementation)
    assert_as_expected(encoder, TEXTS, "document")


def test_expansion_that_attention_leaves_out_receives_none(tiny):
    for attend in (False, True):
        batch = mv.TokenEncoder(tiny, attend=attend, device="cpu").encode_queries(["who sat"], importance=Attention())
        assert batch.importance[:5].min() > 0
        assert ((batch.importance[5:] > 0) == attend).all()
        assert batch.importance.sum() == pytest.approx(1, abs=1e-6)


def test_tokens_of_the_skiplist_ask_but_are_not_ranked(tiny_encoder):
    batch = tiny_encoder.encode_docs(["a cat, a dog!"], importance=Attention())
    assert len(batch.importance) == len(batch.token_ids) == 7
    assert 0.5 < batch.importance.sum() < 0.99


def test_half_precision(tiny, tiny_encoder):
    texts = ["a cat sat on the mat", "rain"]
    exact = tiny_encoder.encode_docs(texts, importance=Attention()).importance
    half = mv.TokenEncoder(tiny, dtype="bfloat16", device="cpu").encode_docs(texts, importance=Attention()).importance
    np.testing.assert_allclose(half, exact, atol=5e-2)
    assert half[:9].sum() == pytest.approx(1, abs=1e-6)  # probabilities are not rounded


def state(model):
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    return hooks, [set(vars(m)) for m in model.modules()], str(model[0].auto_model.config), model.training


def test_vectors_and_the_model_stay_as_they_are(tiny):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(tiny), device="cpu").train()
    encoder = mv.TokenEncoder(model)
    plain, before = encoder.encode_docs(TEXTS), state(model)
    assert plain.importance is None
    watched = encoder.encode_docs(TEXTS, importance=Attention())
    for field in ("vectors", "offsets", "token_ids", "spans"):
        np.testing.assert_array_equal(getattr(watched, field), getattr(plain, field))
    assert state(model) == before
    with Attention().watching(model):
        within = encoder.encode_docs(TEXTS)
        with Attention().watching(model):
            nested = encoder.encode_docs(TEXTS, importance=Attention())
        after = encoder.encode_docs(TEXTS)
    for batch in (within, nested, after):
        np.testing.assert_array_equal(batch.importance, watched.importance)
    assert state(model) == before
    assert encoder.encode_docs(["a cat"]).importance is None


def test_an_error_leaves_nothing_behind(tiny, monkeypatch):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    expected = encoder.encode_docs(TEXTS, importance=Attention()).importance
    before = state(encoder.model)
    with monkeypatch.context() as broken:
        broken.setattr(encoder.model[-1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encoder.encode_docs(["a cat"], importance=Attention())
    assert state(encoder.model) == before
    np.testing.assert_array_equal(encoder.encode_docs(TEXTS, importance=Attention()).importance, expected)


def test_other_threads_do_not_notice(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    texts = [[f"{text} {word}" for text in TEXTS] for word in ("cat", "dog", "mat", "rain")] * 2
    asked = [None, Attention()] * 4
    exact = [encoder.encode_docs(t, importance=i) for t, i in zip(texts, asked)]
    got = [None] * len(texts)
    start = threading.Barrier(len(texts))

    def work(i):
        start.wait(10)
        got[i] = encoder.encode_docs(texts[i], importance=asked[i])

    with Attention().watching(encoder.model):  # of this thread alone
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for mine, theirs, importance in zip(got, exact, asked):
        np.testing.assert_allclose(mine.vectors, theirs.vectors, atol=2e-6)
        if importance is None:
            assert mine.importance is None
        else:
            np.testing.assert_allclose(mine.importance, theirs.importance, atol=1e-6)


def test_attention_that_cannot_be_watched_is_named(tiny, monkeypatch):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    with monkeypatch.context() as kernel, Attention().watching(encoder.model):
        assert encoder.encode_docs(["a cat"]).importance is not None
        kernel.setattr(attention, "_FUSED", None)  # what a model with a kernel of its own does not call
        with pytest.raises(ValueError, match="attention of kind 'sdpa' cannot be watched: open the model with"):
            encoder.encode_docs(["a cat"])
    with monkeypatch.context() as replaced:
        replaced.setattr(encoder.model[0], "forward", encoder.model[0].forward)
        with pytest.raises(ValueError, match="another computation stands in place"):
            encoder.encode_docs(["a cat"], importance=Attention())
    real = torch.ones(2, 3, dtype=torch.bool)
    for shape in ((2, 2, 3, 4), (1, 2, 3, 3), (2, 2, 2, 3), (2, 2, 4, 3)):  # of other texts or tokens
        assert attention._received(iter([torch.ones(shape)]), real) is None
    if find_spec("openvino") is not None:
        with pytest.raises(ValueError, match="backend='openvino'"):
            mv.TokenEncoder(tiny, backend="openvino").encode_docs(["a cat"], importance=Attention())
