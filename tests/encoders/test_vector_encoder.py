import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.vector_stages import VecDocEncoder, VecQueryEncoder
from tests import checkpoints

TEXTS = ["a cat sat on the mat", "the sky is blue", "", "a dog ran fast in the rain and it fell"]


@pytest.fixture
def encoder(tiny_sentence):
    return mv.VectorEncoder(tiny_sentence, device="cpu")


def reference(folder, text, length=64):
    """The mean of a text's token states, of length one, by transformers and torch alone."""
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    model = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    ids = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        mean = model(**ids).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


def test_vectors_are_the_models_own(encoder, tiny_sentence):
    for vectors in (encoder.encode_docs(TEXTS), encoder.encode_queries(TEXTS)):
        assert (vectors.shape, vectors.dtype) == ((4, 16), np.float32)
        np.testing.assert_allclose(vectors, [reference(tiny_sentence, text) for text in TEXTS], atol=1e-5)
    assert encoder.dim == 16
    for i, text in enumerate(TEXTS):  # whatever is beside them
        np.testing.assert_allclose(encoder.encode_docs([text])[0], encoder.encode_docs(TEXTS)[i], atol=1e-5)


def test_no_texts_need_no_model():
    encoder = mv.VectorEncoder("no/such/model")
    assert encoder.encode_docs([]).shape == encoder.encode_queries([]).shape == (0, 0)
    with pytest.raises(ValueError, match="expected a list of texts, got one string"):
        encoder.encode_docs("a cat")
    with pytest.raises(OSError, match="no checkpoint 'no/such/model'"):
        encoder.encode_docs(["a cat"])


def test_equal_texts_are_encoded_once(encoder, monkeypatch):
    seen, encode = [], type(encoder.model).encode

    def spy(self, inputs, **how):
        seen.extend(inputs)
        return encode(self, inputs, **how)

    monkeypatch.setattr(type(encoder.model), "encode", spy)
    vectors = encoder.encode_docs(["b", "a", "b", "b"])
    assert seen == ["b", "a"]
    np.testing.assert_array_equal(vectors[[0, 0]], vectors[[2, 3]])


def test_prefixes_and_lengths(tiny_sentence, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(tiny_sentence, own)
    checkpoints.edit(own / "config_sentence_transformers.json", prompts={"query": "who ", "passage": "it "})
    encoder = mv.VectorEncoder(own, device="cpu")
    np.testing.assert_allclose(encoder.encode_queries(["sat"])[0], reference(own, "who sat"), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_docs(["sat"])[0], reference(own, "it sat"), atol=1e-5)
    other = mv.VectorEncoder(own, query_prefix="", doc_prefix="a ", query_length=3, doc_length=5, device="cpu")
    long = "cat sat on the mat"
    np.testing.assert_allclose(other.encode_queries([long])[0], reference(own, long, 3), atol=1e-5)
    np.testing.assert_allclose(other.encode_docs([long])[0], reference(own, f"a {long}", 5), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_docs([long])[0], reference(own, f"it {long}"), atol=1e-5)
    assert other.space == encoder.space  # how texts are cut and prefixed is told beside it
    assert encoder.describe()["document"] == {"prefix": "it ", "length": 64}
    described = other.describe()
    assert described["document"] == {"prefix": "a ", "length": 5}
    assert (described["query_prefix"], described["query_length"]) == ("", 3)
    assert json.loads(json.dumps(described)) == described
    opened = other.model
    other.doc_length = None
    np.testing.assert_allclose(other.encode_docs([long])[0], reference(own, f"a {long}"), atol=1e-5)
    assert other.model is opened


def test_the_space_follows_weights_and_form(encoder, tiny_sentence, tmp_path):
    assert encoder.space.startswith("sentence#")
    moved = tmp_path / "moved"
    shutil.copytree(tiny_sentence, moved)
    same = mv.VectorEncoder(moved, batch_size=1, device="cpu")
    digest = encoder.space.rpartition("#")[2]
    assert same.space == f"moved#{digest}"
    raw = mv.VectorEncoder(tiny_sentence, normalize=False, device="cpu")
    assert raw.space != encoder.space
    norms = np.linalg.norm(raw.encode_docs(TEXTS), axis=1)
    np.testing.assert_allclose(raw.encode_docs(TEXTS) / norms[:, None], encoder.encode_docs(TEXTS), atol=1e-5)
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (moved / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert mv.VectorEncoder(moved, device="cpu").space.rpartition("#")[2] != digest
    with torch.no_grad():
        next(same.model.parameters()).add_(0.5)
    assert same.space.rpartition("#")[2] != digest


def test_a_module_that_normalises_says_nothing_new(tiny_sentence):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize

    plain = SentenceTransformer(str(tiny_sentence), device="cpu")
    unit = SentenceTransformer(modules=[*plain, Normalize()], device="cpu")
    spaces = [mv.VectorEncoder(model).space for model in (plain, unit)]
    assert spaces[0] == spaces[1]
    assert mv.VectorEncoder(unit, normalize=False).space != mv.VectorEncoder(plain, normalize=False).space


def test_a_model_in_memory_is_used_and_left_as_it_is(tiny_sentence):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_sentence), device="cpu")
    model.train()
    encoder = mv.VectorEncoder(model, doc_prefix="it ", doc_length=4)
    np.testing.assert_allclose(encoder.encode_docs(["sat on"])[0], reference(tiny_sentence, "it sat on", 4), atol=1e-5)
    assert model.training
    assert model.max_seq_length == 64
    assert encoder.model is model
    assert encoder.describe()["name"] == "SentenceTransformer"
    with pytest.raises(ValueError, match="device: a model in memory is used as it is"):
        mv.VectorEncoder(model, device="cpu")
    with pytest.raises(ValueError, match="expected a folder, a name on the Hub or a SentenceTransformer"):
        mv.VectorEncoder(mv.TokenEncoder("x"))
    model.truncate_dim = 5
    assert encoder.encode_docs(["a"]).shape == (1, 5)
    assert encoder.dim == 5


def test_what_is_no_sentence_encoder_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="is no sentence encoder"):
        mv.VectorEncoder(tiny).encode_docs(["a"])
    bare = checkpoints.backbone(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"is no sentence encoder .* pass SentenceTransformer\(folder\) itself"):
        mv.VectorEncoder(bare).encode_docs(["a"])
    broken = checkpoints.sentence_encoder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="broken cannot be read"):
        mv.VectorEncoder(broken).encode_docs(["a"])
    with pytest.raises(ValueError, match="revision='main' is for names on the model hub"):
        mv.VectorEncoder(bare, revision="main").encode_docs(["a"])
    for settings, message in (({"batch_size": 0}, "batch_size"), ({"doc_length": 2}, "doc_length must leave room")):
        with pytest.raises(ValueError, match=message):
            mv.VectorEncoder(bare, **settings)


def test_vectors_that_are_not_finite_are_an_error(encoder):
    with torch.no_grad():
        next(encoder.model.parameters()).fill_(np.nan)
    with pytest.raises(ValueError, match="the vector of 'a cat' is not finite"):
        encoder.encode_docs(["a cat"])


def test_settings_travel_and_weights_do_not(encoder):
    vectors = encoder.encode_docs(TEXTS)
    sent = pickle.dumps(encoder)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again == encoder
    assert again._opened is None
    np.testing.assert_array_equal(again.encode_docs(TEXTS), vectors)
    assert again.space == encoder.space


def test_rows_of_a_query_share_its_vector(encoder):
    frame = pd.DataFrame({"qid": ["1", "2", "1"], "query": ["a cat", "blue", None], "docno": ["a", "b", "c"]})
    out = VecQueryEncoder(encoder)(frame.assign(query_vec="old", query_vec_encoder="old"))
    assert out["query_vec"][0] is out["query_vec"][2]
    assert not out["query_vec"][0].flags.writeable
    np.testing.assert_array_equal(out["query_vec"][1], encoder.encode_queries(["a cat", "blue"])[1])
    assert set(out["query_vec_encoder"]) == {encoder.space}


def test_documents_come_with_how_they_were_made(encoder):
    frame = pd.DataFrame({"docno": ["a", "b"], "body": ["a cat", ""], "doc_vec": None})
    out = VecDocEncoder(encoder, "body")(frame)
    np.testing.assert_array_equal(list(out["doc_vec"]), encoder.encode_docs(["a cat", ""]))
    assert json.loads(out["doc_vec_encoder"][0]) == encoder.describe()
    with pytest.raises(ValueError, match="1 of 2 do not, the first is docno 'b'"):
        VecDocEncoder(encoder, "body")(frame.assign(body=["a", None]))
