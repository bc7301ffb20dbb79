"""How texts become batches, and that this never shows in the vectors."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import batches, onednn

TEXTS = ["a cat", "", "rain fell on the dog", "?", "a cat", "who sat on the mat " * 40, "mat", "the sky is blue"]


@given(st.lists(st.integers(0, 600)), st.integers(1, 2000))
def test_batches_are_cut_by_tokens(lengths, budget):
    lengths = np.array(lengths, dtype=np.int64)
    groups = batches.cut(lengths, budget)
    assert sorted(np.concatenate([*groups, []]).astype(int)) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * lengths[group].max() <= budget
    longest = [max(lengths[group].max(), 1) for group in groups]  # a text without tokens is in a batch, too
    assert longest == sorted(longest, reverse=True)  # texts of like length go together


def test_the_budget_is_the_callers_and_on_a_cpu_what_stays_in_cache(tiny_encoder):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert batches.budget(tiny_encoder.model, 1) == 128
        assert batches.budget(tiny_encoder.model, 1000) == 512
    finally:
        torch.set_num_threads(threads)

    class Accelerated:
        device = torch.device("cuda")

    assert batches.budget(Accelerated(), 64) == 64 * 128


def test_every_text_is_tokenised_once_and_batches_hold_no_needless_padding(tiny_encoder, monkeypatch):
    model = tiny_encoder.model
    calls, preprocess = [], type(model).preprocess
    monkeypatch.setattr(type(model), "preprocess", lambda self, t, **k: calls.extend(t) or preprocess(self, t, **k))
    texts = [text * (i % 3) for i, text in enumerate(TEXTS * 30)]
    monkeypatch.setattr(batches, "_TEXTS_A_BLOCK", 50)
    seen = []
    for places, features in batches.batches(model, batches.with_prefix(model, texts, "document"), "document", 1):
        seen += places
        assert features["attention_mask"].any(0).all()
        assert features["offset_mapping"].shape[:2] == features["input_ids"].shape
        assert len(places) == len(features["input_ids"])
    assert sorted(calls) == sorted(texts)
    assert sorted(seen) == list(range(len(texts)))


@pytest.mark.parametrize("encode", ["encode_docs", "encode_queries"])
def test_the_cut_never_shows(tiny, encode, monkeypatch):
    one = mv.TokenEncoder(tiny, batch_size=1, device="cpu")
    expected = [getattr(one, encode)([text]) for text in TEXTS]
    for size, block in ((1, 512), (1, 3), (2, 512), (64, 512)):
        monkeypatch.setattr(batches, "_TEXTS_A_BLOCK", block)
        got = getattr(mv.TokenEncoder(tiny, batch_size=size, device="cpu"), encode)(TEXTS)
        assert len(got) == len(TEXTS)
        for i, alone in enumerate(expected):  # in the order given, duplicates and the empty text included
            np.testing.assert_allclose(got[i], alone.vectors, atol=2e-6)
            np.testing.assert_array_equal(got.token_ids[got.rows(i)], alone.token_ids)
            np.testing.assert_array_equal(got.spans[got.rows(i)], alone.spans)


def test_an_expansion_of_at_least_so_many_tokens_keeps_its_rows(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    encoder.model[0].query_expansion = {"strategy": "min", "attend": False, "length": 12, "token": None}
    texts = ["cat", "a cat sat on the mat and a dog ran fast in the rain", "who sat"]
    together = encoder.encode_queries(texts)
    assert np.diff(together.offsets).tolist()[::2] == [12, 12]
    assert np.diff(together.offsets)[1] > 12
    for i, text in enumerate(texts):
        np.testing.assert_allclose(together[i], encoder.encode_queries([text]).vectors, atol=2e-6)


def test_padding_on_the_left(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    expected = encoder.encode_docs(TEXTS)
    encoder.model.tokenizer.padding_side = "left"
    inputs = batches.with_prefix(encoder.model, ["a cat", "a"], "document")
    (_, features), *_ = batches.batches(encoder.model, inputs, "document", 1)
    assert features["attention_mask"].tolist() == [[1] * 5, [0] + [1] * 4]
    got = encoder.encode_docs(TEXTS)
    np.testing.assert_array_equal(got.token_ids, expected.token_ids)
    np.testing.assert_array_equal(got.spans, expected.spans)


# ------------------------------------------------------------------ oneDNN

needs_onednn = pytest.mark.skipif(not onednn.accurate(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return torch.nn.Linear(48, 24), torch.randn(2, 5, 48)


@pytest.fixture
def counted(monkeypatch):
    """How often the operator was called."""
    calls, operator = [], onednn._operator()
    monkeypatch.setattr(onednn, "_operator", lambda: lambda *a: calls.append(1) or operator(*a))
    onednn._mode.cache_clear()
    onednn.accurate.cache_clear()
    onednn.accurate()
    calls.clear()
    yield calls
    onednn._mode.cache_clear()
    onednn.accurate.cache_clear()


@needs_onednn
def test_linear_layers_run_in_onednn_within_the_context_alone(layer, counted):
    linear, inputs = layer
    with torch.inference_mode():
        expected = linear(inputs)
        with onednn.linear_layers(linear):
            got = linear(inputs)
            assert len(counted) == 1
            assert torch.nn.functional.linear(inputs.bfloat16(), linear.weight.bfloat16()).dtype == torch.bfloat16
            assert linear(inputs[0, 0]).shape == (24,)
            assert linear(inputs[:0]).shape == (0, 5, 24)
        linear(inputs)
    assert len(counted) == 1
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-6)
    half = torch.nn.Linear(48, 24, dtype=torch.bfloat16)
    with torch.inference_mode(), onednn.linear_layers(half):
        linear(inputs)
    assert len(counted) == 1
    with onednn.linear_layers(linear):  # gradients are PyTorch's business
        linear(inputs).sum().backward()
    assert len(counted) == 1
    assert linear.weight.grad is not None


@needs_onednn
def test_nothing_is_left_behind_by_an_exception_or_seen_by_another_thread(tiny, layer, counted, monkeypatch):
    linear, inputs = layer
    before = (torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision)
    inside, at_work, done = [], threading.Event(), threading.Event()

    def other():
        at_work.wait(10)
        with torch.inference_mode():
            linear(inputs)
        inside.append(len(counted))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with torch.inference_mode(), onednn.linear_layers(linear):
        at_work.set()
        assert done.wait(10)
    thread.join()
    assert inside == [0]

    encoder = mv.TokenEncoder(tiny, device="cpu")
    last = encoder.model[-1]
    monkeypatch.setattr(last, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.encode_docs(["a cat"])
    calls = len(counted)
    assert calls > 0
    with torch.inference_mode():
        linear(inputs)
    assert len(counted) == calls
    assert before == (torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision)


@pytest.mark.parametrize("operator", [None, lambda x, w, b, *_: torch.nn.functional.linear(x.bfloat16(), w.bfloat16())])
def test_without_onednn_or_with_less_than_float32_the_blas_computes(tiny, tiny_encoder, operator, monkeypatch):
    expected = tiny_encoder.encode_docs(TEXTS).vectors
    monkeypatch.setattr(onednn, "_operator", lambda: operator)
    onednn.accurate.cache_clear()
    try:
        assert not onednn.accurate()
        got = mv.TokenEncoder(tiny, device="cpu").encode_docs(TEXTS).vectors
    finally:
        onednn.accurate.cache_clear()
    np.testing.assert_allclose(got, expected, atol=2e-6)


@needs_onednn
def test_the_users_settings_are_heeded(layer, counted, monkeypatch):
    linear, inputs = layer
    with torch.inference_mode():
        with torch.autocast("cpu"), onednn.linear_layers(linear):
            assert linear(inputs).dtype == torch.bfloat16
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        with onednn.linear_layers(linear):
            linear(inputs)
    assert counted == []


def test_several_threads_share_an_encoder(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    texts = [[f"{text} {word}" for text in TEXTS] for word in ("cat", "dog", "mat", "rain")]
    expected = [encoder.encode_docs(part).vectors for part in texts]
    got = [None] * len(texts)

    def work(i):
        got[i] = encoder.encode_docs(texts[i]).vectors

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, theirs in zip(got, expected):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)
