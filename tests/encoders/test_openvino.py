"""The transformer compiled by OpenVINO: the same vectors, the same space, nothing else changed."""

import pickle
import subprocess
import sys
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import openvino

if find_spec("openvino") is None:
    pytest.skip("OpenVINO is not installed", allow_module_level=True)

TEXTS = ["a cat", "", "rain fell on the dog", "?", "a cat", "who sat on the mat " * 40, "mat"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda"}, "computes on the CPU, got device='cuda'"),
        ({"dtype": "float16"}, "computes in float32 or bfloat16, got dtype='float16'"),
    ],
)
def test_what_openvino_does_not_offer(settings, message):
    with pytest.raises(ValueError, match=message):
        mv.TokenEncoder("x", backend="openvino", **settings)


def test_the_extra_is_named_where_openvino_is_missing(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-mvret\[openvino\]'"):
        mv.TokenEncoder(tiny, backend="openvino").model  # noqa: B018


# imported as the package does it: by itself it would report its use over the network
ov = openvino._openvino()
needs_bfloat16 = pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="no bfloat16 arithmetic"
)


@pytest.fixture(scope="module")
def compiled(tiny):
    return mv.TokenEncoder(tiny, backend="openvino")


@pytest.mark.parametrize("encode", ["encode_docs", "encode_queries"])
def test_vectors_equal_pytorchs(tiny_encoder, compiled, encode):
    expected, got = getattr(tiny_encoder, encode)(TEXTS), getattr(compiled, encode)(TEXTS)
    np.testing.assert_allclose(got.vectors, expected.vectors, atol=2e-6)
    np.testing.assert_array_equal(got.offsets, expected.offsets)
    np.testing.assert_array_equal(got.token_ids, expected.token_ids)
    np.testing.assert_array_equal(got.spans, expected.spans)


@pytest.mark.parametrize("settings", [{"attend": True}, {"normalize": False}, {"token_pooling": 2}, {"skiplist": []}])
def test_everything_around_the_transformer_stays(tiny, settings):
    plain = mv.TokenEncoder(tiny, device="cpu", **settings)
    other = mv.TokenEncoder(tiny, backend="openvino", **settings)
    for encode in ("encode_docs", "encode_queries"):
        np.testing.assert_allclose(
            getattr(other, encode)(TEXTS).vectors, getattr(plain, encode)(TEXTS).vectors, atol=5e-6
        )


def test_the_space_is_that_of_the_weights_and_the_backend_is_described(tiny, tiny_encoder, compiled):
    assert compiled.space == tiny_encoder.space
    assert (compiled.describe()["backend"], tiny_encoder.describe()["backend"]) == ("openvino", "torch")
    assert compiled == mv.TokenEncoder(tiny, backend="openvino")
    assert compiled != mv.TokenEncoder(tiny)
    assert "backend='openvino'" in repr(compiled)


def test_pickled_and_saved(tiny_encoder, compiled, tmp_path):
    expected = tiny_encoder.encode_docs(TEXTS).vectors
    compiled.encode_docs(["a cat"])
    again = pickle.loads(pickle.dumps(compiled))
    assert again == compiled
    np.testing.assert_allclose(again.encode_docs(TEXTS).vectors, expected, atol=2e-6)
    compiled.save(tmp_path / "saved")
    saved = mv.TokenEncoder(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(saved.encode_docs(TEXTS).vectors, expected, atol=2e-6)


@needs_bfloat16
def test_bfloat16_is_near_and_of_length_one(minilm):
    texts = ["A cat sat on the mat.", "", "Rain fell for three days, and the river rose. " * 5]
    half = mv.TokenEncoder(mv.models.MINILM, backend="openvino", dtype="bfloat16")
    got, expected = half.encode_docs(texts).vectors, minilm.encode_docs(texts).vectors
    assert (got * expected).sum(1).min() > 0.999
    assert np.abs(got - expected).max() > 1e-4  # it is in use
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert half.space == minilm.space


def test_minilm_in_float32(minilm):
    texts = ["A cat sat on the mat.", "", "Rain fell for three days, and the river rose. " * 5]
    other = mv.TokenEncoder(mv.models.MINILM, backend="openvino")
    np.testing.assert_allclose(other.encode_docs(texts).vectors, minilm.encode_docs(texts).vectors, atol=2e-6)


def test_changed_weights_are_compiled_anew_and_gradients_are_pytorchs(tiny):
    encoder = mv.TokenEncoder(tiny, backend="openvino")
    before = encoder.encode_docs(["a cat"]).vectors
    transformer = encoder.model[0].auto_model
    features = encoder.model.preprocess(["a cat"], task="document")
    out = encoder.model(features, task="document")["token_embeddings"]
    out.sum().backward()
    assert any(p.grad is not None for p in transformer.parameters())
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).reshape(parameter.shape))
    after = encoder.encode_docs(["a cat"]).vectors
    assert np.abs(after - before).max() > 1e-3
    model, docs = encoder.model, {"task": "document"}
    with torch.no_grad():
        expected = model(model.preprocess(["a cat"], **docs), **docs)
    with torch.inference_mode():
        got = model(model.preprocess(["a cat"], **docs), **docs)
    kept = expected["attention_mask"]
    np.testing.assert_allclose(got["token_embeddings"][kept], expected["token_embeddings"][kept], atol=2e-6)


def test_what_is_compiled_wrong_is_refused(tiny, monkeypatch):
    from transformers import BertModel

    real = BertModel.forward

    def otherwise(self, *args, **kwargs):
        """Takes another branch while it is traced, as models do whose code asks for the values of a tensor."""
        out = real(self, *args, **kwargs)
        if torch.jit.is_tracing():
            out.last_hidden_state = out.last_hidden_state.flip(-1)
        return out

    monkeypatch.setattr(BertModel, "forward", otherwise)
    with pytest.raises(ValueError, match="colbert: compiled by OpenVINO, this model does not compute"):
        mv.TokenEncoder(tiny, backend="openvino").model  # noqa: B018


def test_bfloat16_without_the_processors_help_is_refused(tiny, monkeypatch):
    class Core:
        def get_property(self, *_):
            return ["FP32"]

    monkeypatch.setattr(ov, "Core", Core)
    with pytest.raises(ValueError, match="this processor has no bfloat16 arithmetic"):
        mv.TokenEncoder(tiny, backend="openvino", dtype="bfloat16").model  # noqa: B018


def test_several_threads_share_a_compiled_model(tiny, tiny_encoder, compiled):
    texts = [[f"{text} {word}" for text in TEXTS] for word in ("cat", "dog", "mat")]
    got = [None] * len(texts)

    def work(i):
        got[i] = compiled.encode_docs(texts[i]).vectors

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, part in zip(got, texts):
        np.testing.assert_allclose(mine, tiny_encoder.encode_docs(part).vectors, atol=2e-6)


def test_no_usage_is_reported():
    code = (
        "import sys; from pyterrier_mvret.encoders import openvino; openvino._openvino();"
        "assert 'openvino.tools.ovc' in sys.modules and 'openvino_telemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
