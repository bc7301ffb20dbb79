import pickle
import string

import numpy as np
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import token_encoder
from tests import checkpoints

LONG = "a cat sat on the mat and " * 30


def test_query_ids_are_exactly_as_colbert_lays_them_out(tiny_encoder):
    batch = tiny_encoder.encode_queries(["who sat", LONG])
    short, long = (tiny_encoder.tokens(batch.token_ids[batch.rows(i)]) for i in (0, 1))
    assert short == ["[CLS]", "[unused0]", "who", "sat", "[SEP]"] + ["[MASK]"] * 7
    assert len(long) == 12
    assert (long[1], long[-1]) == ("[unused0]", "[SEP]")
    assert len([t for t in long if not t.startswith("[")]) == 9


def test_punctuation_goes_from_documents_only(tiny_encoder):
    text = "a cat, a mat!"
    q, d = tiny_encoder.encode_queries([text]), tiny_encoder.encode_docs([text])
    assert {",", "!"} <= set(tiny_encoder.tokens(q.token_ids))
    assert tiny_encoder.tokens(d.token_ids) == ["[CLS]", "[unused1]", "a", "cat", "a", "mat", "[SEP]"]


def test_a_skip_word_that_is_unknown_does_not_remove_unknown_tokens(tiny_encoder):
    assert "~" in tiny_encoder.describe()["document"]["skiplist"]
    d = tiny_encoder.encode_docs(["~ 你"])  # both unknown to the vocabulary
    assert tiny_encoder.tokens(d.token_ids) == ["[CLS]", "[unused1]", "[UNK]", "[UNK]", "[SEP]"]


def test_spans_point_at_the_tokens_of_the_text(minilm):
    texts = ["Café au lait, 3 times!", "  spaced   out  ", "naïve coöperation", ""]
    batch = minilm.encode_docs(texts)
    for i, text in enumerate(texts):
        for token, (start, end) in zip(minilm.tokens(batch.token_ids[batch.rows(i)]), batch.spans[batch.rows(i)]):
            if token.startswith("["):
                assert (start, end) == (0, 0)
            else:
                piece = text[start:end].lower()
                assert (
                    token.removeprefix("##") in (piece, piece.encode("ascii", "ignore").decode()) or not piece.isascii()
                )
                assert end > start


def test_spans_do_not_count_the_marker(tiny_encoder):
    batch = tiny_encoder.encode_docs(["cat sat"])
    assert batch.spans.tolist() == [[0, 0], [0, 0], [0, 3], [4, 7], [0, 0]]
    query = tiny_encoder.encode_queries(["cat"])
    assert query.spans.tolist()[:4] == [[0, 0], [0, 0], [0, 3], [0, 0]]
    assert not query.spans[4:].any()


def test_rows_have_length_one_and_do_not_depend_on_the_batch(tiny_encoder):
    texts = ["a cat", LONG, "", "rain fell on the dog", "?"]
    together = tiny_encoder.encode_docs(texts)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-5)
    for i, text in enumerate(texts):
        np.testing.assert_allclose(tiny_encoder.encode_docs([text]).vectors, together[i], atol=1e-5)
    one = mv.TokenEncoder(tiny_encoder.name, batch_size=1, device="cpu").encode_docs(texts)
    np.testing.assert_allclose(one.vectors, together.vectors, atol=1e-5)
    np.testing.assert_array_equal(one.token_ids, together.token_ids)


def test_equal_texts_are_encoded_once_and_no_text_is_fine(tiny, monkeypatch):
    seen, batches = [], token_encoder.batches.batches

    def spy(model, inputs, *others):
        seen.extend(one.text for one in inputs)
        return batches(model, inputs, *others)

    monkeypatch.setattr(token_encoder.batches, "batches", spy)
    batch = mv.TokenEncoder(tiny, device="cpu").encode_docs(["a", "b", "a", "a"])
    assert seen == ["a", "b"]
    np.testing.assert_array_equal(batch[0], batch[3])
    nothing = mv.TokenEncoder("no/such/model").encode_docs([])  # nothing to do: nothing is loaded
    assert len(nothing) == 0
    assert nothing.vectors.shape[0] == 0


def test_pooled_documents_have_fewer_rows_and_no_token_ids(tiny):
    plain = mv.TokenEncoder(tiny, device="cpu")
    pooled = mv.TokenEncoder(tiny, token_pooling=2, device="cpu")
    text = "a cat sat on the mat and a dog ran"
    a, b = plain.encode_docs([text]), pooled.encode_docs([text])
    assert len(b.vectors) < len(a.vectors)
    assert b.token_ids is None
    assert b.spans is None
    np.testing.assert_array_equal(pooled.encode_queries(["a cat"]).vectors, plain.encode_queries(["a cat"]).vectors)
    assert pooled.space == plain.space  # comparable vectors...
    assert pooled.describe()["document"] != plain.describe()["document"]  # ...made differently


def test_unnormalised_vectors(tiny):
    raw = mv.TokenEncoder(tiny, normalize=False, device="cpu")
    unit = mv.TokenEncoder(tiny, device="cpu")
    a, b = raw.encode_docs(["a cat"]).vectors, unit.encode_docs(["a cat"]).vectors
    np.testing.assert_allclose(a / np.linalg.norm(a, axis=1, keepdims=True), b, atol=1e-5)
    assert np.abs(np.linalg.norm(a, axis=1) - 1).max() > 0.01
    assert raw.space != unit.space


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_lives_in_the_same_space(tiny, tiny_encoder, dtype):
    half = mv.TokenEncoder(tiny, dtype=dtype, device="cpu")
    a, b = half.encode_docs(["a cat sat"]), tiny_encoder.encode_docs(["a cat sat"])
    assert a.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(a.vectors, axis=1), 1, atol=1e-6)  # not rounded to half precision
    np.testing.assert_allclose(a.vectors, b.vectors, atol=0.05)
    assert half.space == tiny_encoder.space


def test_space_is_of_the_weights_not_of_their_place(tiny, tiny_encoder, tmp_path):
    import shutil

    copied = mv.TokenEncoder(shutil.copytree(tiny, tmp_path / "copy"), device="cpu")
    assert copied.space.partition("#")[2] == tiny_encoder.space.partition("#")[2]
    assert tiny_encoder.space.startswith(tiny.name + "#")


def test_value_semantics_and_pickling(tiny, tiny_encoder):
    assert mv.TokenEncoder(tiny, device="cpu") == tiny_encoder
    assert hash(mv.TokenEncoder(tiny, device="cpu")) == hash(tiny_encoder)
    assert mv.TokenEncoder(tiny, doc_length=9) != mv.TokenEncoder(tiny)
    assert repr(mv.TokenEncoder("x", doc_length=9)) == "TokenEncoder(name='x', doc_length=9)"
    again = pickle.loads(pickle.dumps(tiny_encoder))
    assert "_opened" not in vars(again)
    assert len(pickle.dumps(tiny_encoder)) < 2000
    np.testing.assert_allclose(again.encode_docs(["a cat"]).vectors, tiny_encoder.encode_docs(["a cat"]).vectors)


def test_a_model_in_memory(tiny):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(tiny), device="cpu")
    encoder = mv.TokenEncoder(model)
    assert encoder.encode_docs(["a cat"]).vectors.shape[1] == 8
    assert encoder == mv.TokenEncoder(model)
    assert encoder.model is model
    with pytest.raises(ValueError, match="query_length, token_pooling: a model in memory is used as it is"):
        mv.TokenEncoder(model, query_length=6, token_pooling=2)
    before = encoder.space
    with torch.no_grad():
        next(model.parameters()).add_(0.5)  # as training does
    assert encoder.space != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"backend": "onnx"}, "backend must be one of torch, openvino"),
        ({"query_length": 2}, "query_length must leave room"),
        ({"doc_length": 0}, "doc_length must leave room"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        mv.TokenEncoder("x", **settings)


def test_minilm_is_the_published_file_and_has_no_projection(minilm, monkeypatch):
    from pyterrier_mvret.encoders import models

    assert minilm.dim == 384
    assert minilm.space.startswith("all-MiniLM-L6-v2#")
    assert minilm.tokens(minilm.encode_docs([string.punctuation]).token_ids)[1] == "!"  # nothing is skipped
    monkeypatch.setattr(models, "_MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the published file"):
        models.minilm()


def test_token_states_equal_the_librarys_own(minilm):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(mv.models.MINILM, device="cpu")
    texts = ["A cat sat on the mat.", "Rain."]
    for i, states in enumerate(model.encode(texts, output_value="token_embeddings")):
        expected = states.cpu().numpy()
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(minilm.encode_docs(texts)[i], expected, atol=1e-5)


def test_settings_about_queries(tiny):
    base = {"device": "cpu"}
    query = ["who sat"]
    off = mv.TokenEncoder(tiny, **base).encode_queries(query).vectors
    on = mv.TokenEncoder(tiny, attend=True, **base).encode_queries(query).vectors
    assert np.abs(off[:5] - on[:5]).max() > 1e-3
    plain = mv.TokenEncoder(tiny, query_expansion=False, **base)
    assert len(plain.encode_queries(["cat " * 40]).vectors) == 12  # the length stays the checkpoint's
    shorter = mv.TokenEncoder(tiny, query_expansion=False, query_length=6, **base)
    assert len(shorter.encode_queries(["cat " * 40]).vectors) == 6
    with pytest.raises(ValueError, match="attend=True is about query expansion"):
        mv.TokenEncoder(tiny, query_expansion=False, attend=True, **base).model  # noqa: B018
    for settings in ({"doc_length": 65}, {"query_length": 65}, {"query_length": 65, "query_expansion": False}):
        with pytest.raises(ValueError, match="=65: the model has 64 positions"):
            mv.TokenEncoder(tiny, **settings, **base).model  # noqa: B018


def test_misread_arguments_are_refused(tiny_encoder):
    with pytest.raises(ValueError, match="skiplist must be a list of words or 'punctuation', got 'the'"):
        mv.TokenEncoder("x", skiplist="the")
    with pytest.raises(ValueError, match="expected a list of texts, got one string"):
        tiny_encoder.encode_docs("a cat")


def test_a_marker_known_to_the_vocabulary_is_one_token(tmp_path):
    from tests import checkpoints

    folder = checkpoints.sentence_encoder(tmp_path / "plain")
    encoder = mv.TokenEncoder(folder, query_prefix="[unused0] ", doc_prefix="[unused1] ", device="cpu")
    assert encoder.tokens(encoder.encode_queries(["cat"]).token_ids) == ["[CLS]", "[unused0]", "cat", "[SEP]"]
    assert encoder.tokens(encoder.encode_docs(["cat"]).token_ids) == ["[CLS]", "[unused1]", "cat", "[SEP]"]


def test_normalisation_on_request(tiny, tmp_path):
    raw = mv.TokenEncoder(tiny, normalize=False, device="cpu")
    raw.save(tmp_path / "raw")
    saved = mv.TokenEncoder(tmp_path / "raw", device="cpu")
    assert np.abs(np.linalg.norm(saved.encode_docs(["a cat"]).vectors, axis=1) - 1).max() > 0.01
    unit = mv.TokenEncoder(tmp_path / "raw", normalize=True, device="cpu")
    np.testing.assert_allclose(np.linalg.norm(unit.encode_docs(["a cat"]).vectors, axis=1), 1, atol=1e-5)


def test_the_model_is_in_inference_mode(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    encoder.encode_docs(["a"])
    assert not encoder.model.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_not_saved(tiny, tiny_encoder, tmp_path, dtype):
    half = mv.TokenEncoder(tiny, dtype=dtype, device="cpu")
    half.save(tmp_path / "saved")
    assert mv.TokenEncoder(tmp_path / "saved").space.partition("#")[2] == tiny_encoder.space.partition("#")[2]


def test_a_setting_changed_after_use_is_in_force(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    assert len(encoder.encode_queries(["cat"]).vectors) == 12
    encoder.query_length = 8
    assert len(encoder.encode_queries(["cat"]).vectors) == 8


def test_encoding_uses_no_dropout_and_leaves_the_mode_alone(tiny):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(tiny), device="cpu")
    model.train()
    encoder = mv.TokenEncoder(model)
    first = encoder.encode_docs(["a cat sat"]).vectors
    np.testing.assert_array_equal(encoder.encode_docs(["a cat sat"]).vectors, first)
    assert model.training


def test_training_in_place_survives_another_batch_size_and_is_noticed(tiny):
    encoder = mv.TokenEncoder(tiny, device="cpu")
    before = encoder.space
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.add_(0.3)
    trained = encoder.space
    assert trained != before
    encoder.batch_size = 8
    assert encoder.space == trained
    encoder.normalize = False  # another encoder: read anew
    assert encoder.space not in (before, trained)
    words = mv.TokenEncoder(tiny, skiplist=["cat"], device="cpu")
    words.encode_docs(["a cat and dog"])
    words.skiplist.append("dog")
    kept = words.tokens(words.encode_docs(["a cat and dog"]).token_ids)
    assert kept == ["[CLS]", "[unused1]", "a", "and", "[SEP]"]


def test_the_digest_of_a_model_in_memory_follows_its_modules(tiny):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize

    model = MultiVectorEncoder(str(tiny), device="cpu")
    encoder = mv.TokenEncoder(model)
    before = encoder.space
    for key in [k for k, m in model.named_children() if isinstance(m, Normalize)]:
        delattr(model, key)
    assert encoder.space != before
    encoder.query_length = 6
    with pytest.raises(ValueError, match="query_length: a model in memory is used as it is"):
        encoder.encode_queries(["cat"])


def test_queries_with_prefixes_of_their_own_in_one_batch(tiny_encoder):
    texts = ["a cat", "who sat", "a cat"]
    prefixes = ["[unused0] ", "[unused1] ", "it is "]
    together = tiny_encoder.encode_queries(texts, prefix=prefixes)
    for i, (text, prefix) in enumerate(zip(texts, prefixes)):
        alone = tiny_encoder.encode_queries([text], prefix=prefix)
        np.testing.assert_allclose(together[i], alone.vectors, atol=1e-6)
        np.testing.assert_array_equal(together.token_ids[together.rows(i)], alone.token_ids)
        places = together.spans[together.rows(i)]
        np.testing.assert_array_equal(places, alone.spans)
        assert [text[a:b] for a, b in places if a < b] == text.split()  # of the text alone, prefix or not
    np.testing.assert_array_equal(together[0], tiny_encoder.encode_queries(["a cat"]).vectors)
    with pytest.raises(ValueError, match="zip"):
        tiny_encoder.encode_queries(texts, prefix=["a"])
    with pytest.raises(ValueError, match=r"marker '\[unused2\]' is not in the vocabulary"):  # it would be split
        tiny_encoder.encode_queries(texts, prefix="[unused2] ")


def test_a_query_may_be_encoded_whole(tiny):
    long = " ".join(["a cat sat on the mat"] * 5)
    encoder = mv.TokenEncoder(tiny, device="cpu")  # ColBERT's own: twelve tokens, padded with masks they do not see
    assert len(encoder.encode_queries([long]).vectors) == 12
    whole = encoder.encode_queries([long, "a cat"], whole=True)
    assert np.diff(whole.offsets).tolist() == [33, 5]
    assert encoder.tokens(whole.token_ids[whole.rows(1)]) == ["[CLS]", "[unused0]", "a", "cat", "[SEP]"]
    # tokens that do not see the expansion are what they are without it
    np.testing.assert_allclose(whole[1], encoder.encode_queries(["a cat"]).vectors[:5], atol=1e-6)


def test_a_whole_query_may_be_longer_than_a_checkpoint_states(tmp_path):
    encoder = mv.TokenEncoder(checkpoints.pylate(tmp_path / "pylate"), device="cpu")
    assert encoder.model.max_seq_length == 19
    long = " ".join(["a cat sat on the mat"] * 20)
    assert len(encoder.encode_queries([long[:150]], whole=True).vectors) == 3 + len(long[:150].split())
    assert len(encoder.encode_queries([long], whole=True).vectors) == 64  # its places
