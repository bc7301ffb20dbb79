"""What ranks tokens: each way against a plain reference, and what is kept by it."""

import json
import math
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import importance, token_encoder
from pyterrier_mvret.encoders.importance import IDF, Attention, First, Importance, Random, Salience, named, pruned

TEXTS = ["a cat sat", "", "rain fell on the dog, fast!", "?", "a cat sat", "who sat on the mat " * 40, "~ mat"]


class Heads(torch.nn.Module):
    """Says of each token what can be told apart; as a module at the end of a model."""

    def forward(self, features, **_):
        ids = features["input_ids"]
        features["token_weights"] = (ids % 7).to(features["token_embeddings"].dtype)
        features["token_importance"] = (ids - 3).to(features["token_embeddings"].dtype)
        return features


@pytest.fixture
def with_heads(tiny):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(tiny), device="cpu")
    model.append(Heads())
    return mv.TokenEncoder(model)


# ------------------------------------------------------------------ what an encoder gathers


@pytest.mark.parametrize("encode", ["encode_docs", "encode_queries"])
def test_what_modules_say_of_tokens_is_gathered_row_for_row(with_heads, tiny_encoder, encode):
    plain, batch = getattr(tiny_encoder, encode)(TEXTS), getattr(with_heads, encode)(TEXTS)
    np.testing.assert_array_equal(batch.token_ids, plain.token_ids)
    np.testing.assert_array_equal(batch.weights, batch.token_ids % 7)
    np.testing.assert_array_equal(batch.importance, batch.token_ids - 3)
    assert batch.weights.dtype == batch.importance.dtype == np.float32
    assert plain.weights is None and plain.importance is None
    salience = getattr(with_heads, encode)(TEXTS, importance=Salience())
    np.testing.assert_array_equal(salience.importance, batch.importance)


def test_what_is_asked_for_comes_before_what_heads_say(with_heads, tiny_encoder):
    for asked in (Attention(), First(), Random()):
        batch, plain = (e.encode_docs(TEXTS, importance=asked) for e in (with_heads, tiny_encoder))
        np.testing.assert_allclose(batch.importance, plain.importance, atol=1e-6)
        np.testing.assert_array_equal(batch.weights, batch.token_ids % 7)


def test_equal_texts_are_ranked_once_and_no_text_is_fine(tiny, monkeypatch):
    seen, batches = [], token_encoder.batches.batches
    monkeypatch.setattr(
        token_encoder.batches, "batches", lambda m, ins, *o: seen.extend(i.text for i in ins) or batches(m, ins, *o)
    )
    encoder = mv.TokenEncoder(tiny, device="cpu")
    batch = encoder.encode_docs(["a", "b", "a"], importance=Attention())
    assert seen == ["a", "b"]
    np.testing.assert_array_equal(batch.importance[batch.rows(0)], batch.importance[batch.rows(2)])
    nothing = mv.TokenEncoder("no/such/model").encode_queries([], importance=Attention())
    assert len(nothing) == 0 and nothing.importance.shape == (0,)
    assert encoder.encode_docs([]).importance is None


def test_what_a_batch_lacks_is_named(tiny, tiny_encoder):
    with pytest.raises(ValueError, match="needs a model with salience heads"):
        tiny_encoder.encode_docs(["a cat"], importance=Salience())
    pooled = mv.TokenEncoder(tiny, token_pooling=2, device="cpu")
    for asked, message in (
        (Attention(), r"Attention\(\) is watched while single tokens are encoded"),
        (First(), r"First\(\) ranks single tokens, and this batch has none \(token pooling"),
        (Random(3), r"Random\(seed=3\) ranks single tokens"),
        (IDF(1, ()), "IDF ranks single tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            pooled.encode_docs(["a cat sat on the mat"], importance=asked)
    with pytest.raises(ValueError, match="is watched while single tokens are encoded"):
        Attention().scores(tiny_encoder.encode_docs(["a cat"]))


# ------------------------------------------------------------------ inverse document frequency


def counted(encoder, texts):
    """In how many documents each token is, from what the encoder encodes."""
    batch = encoder.encode_docs(texts)
    rows = [set(batch.token_ids[batch.rows(i)].tolist()) for i in range(len(texts))]
    return {token: sum(token in row for row in rows) for token in set().union(*rows)}


@pytest.mark.parametrize("block", [3, 512])
def test_idf_counts_the_documents_of_a_token_as_it_is_encoded(tiny, block, monkeypatch):
    monkeypatch.setattr(importance, "_TEXTS_A_BLOCK", block)
    encoder = mv.TokenEncoder(tiny, skiplist=[], device="cpu")
    expected = counted(encoder, TEXTS)
    monkeypatch.setattr(mv.TokenEncoder, "_forward", lambda *_: 1 / 0)  # nothing is encoded
    idf = IDF.of(encoder, (text for text in TEXTS))
    got, special = dict(idf.frequencies), set(encoder.model.tokenizer.all_special_ids)
    unknown = encoder.model.tokenizer.unk_token_id
    assert {t: n for t, n in got.items() if t in expected} == expected
    assert set(got) - set(expected) <= special - {unknown}
    assert got[unknown] == 1
    assert all(got[token] == len(TEXTS) for token in special - {unknown})
    assert idf == IDF.of(encoder, TEXTS)
    assert IDF.of(encoder, TEXTS[1:]) != idf


def test_idf_of_tokens(tiny_encoder):
    idf = IDF.of(tiny_encoder, TEXTS)
    batch = tiny_encoder.encode_queries(["who sat? what", "a ~"], importance=idf)
    scores = dict(zip(tiny_encoder.tokens(batch.token_ids), batch.importance.tolist()))
    df = {"who": 1, "sat": 3, "?": 1, "what": 0, "a": 2, "[UNK]": 1}
    for token, count in df.items():
        assert scores[token] == pytest.approx(math.log(8 / (count + 1)), rel=1e-6)
    for token in ("[CLS]", "[SEP]", "[MASK]", "[unused0]"):  # in no document, some of them, and yet of no interest
        assert scores[token] == 0
    assert batch.importance.dtype == np.float32 and batch.importance.max() == pytest.approx(math.log(8))


def test_idf_of_texts_packed_for_flash_attention(tiny_encoder):
    features = importance.batches.tokenised(
        tiny_encoder.model, importance.batches.with_prefix(tiny_encoder.model, TEXTS, "document"), "document"
    )
    ids, real = features["input_ids"].numpy(), features["attention_mask"].numpy().astype(bool)
    packed = {
        "input_ids": torch.from_numpy(ids[real][None]),
        "cu_seq_lens_q": torch.from_numpy(np.concatenate([[0], np.cumsum(real.sum(1))])),
    }
    for mine, theirs in zip(importance._document_frequencies(packed), importance._document_frequencies(features)):
        np.testing.assert_array_equal(mine, theirs)


def test_idf_is_a_value_of_what_it_counted(tiny_encoder, minilm):
    idf, again = IDF.of(tiny_encoder, TEXTS), IDF.of(tiny_encoder, TEXTS)
    assert idf == again and hash(idf) == hash(again) and repr(idf) == repr(again)
    assert IDF(3, ((9, 1), (7, 2))) == IDF(3, ((7, 2), (9, 1)))
    others = [IDF(3, ((7, 2),)), IDF(3, ((7, 1),)), IDF(4, ((7, 2),)), IDF(3, ((8, 2),)), IDF(3, ((7, 2),), "a")]
    assert len(set(others)) == len({repr(o) for o in others}) == len({o.describe()["digest"] for o in others}) == 5
    assert len(json.dumps(idf.describe())) < 100
    assert idf.describe() == {"kind": "idf", "documents": 7, "digest": idf.describe()["digest"]}
    with pytest.raises(ValueError, match=r"IDF\(documents=7, .* of another vocabulary: digest \w+, the"):
        minilm.encode_docs(["a cat"], importance=idf)


def test_documents_that_cannot_be_counted(tiny_encoder):
    with pytest.raises(ValueError, match="expected texts, got one string"):
        IDF.of(tiny_encoder, "a cat")
    with pytest.raises(ValueError, match="expected texts, got None"):
        IDF.of(tiny_encoder, ["a cat", None])
    with pytest.raises(ValueError, match="there are none"):
        IDF.of(tiny_encoder, iter(()))
    for wrong in ((7, 4), (7, 0), (-1, 2)):
        with pytest.raises(ValueError, match="from 1 to the number of documents, 3"):
            IDF(3, (wrong,))


# ------------------------------------------------------------------ controls


def test_earlier_tokens_come_first(tiny_encoder):
    batch = tiny_encoder.encode_docs(TEXTS, importance=First())
    for i in range(len(batch)):
        assert (-batch.importance[batch.rows(i)]).tolist() == [*range(batch.rows(i).stop - batch.rows(i).start)]


def test_random_numbers_belong_to_a_text_and_a_seed(tiny_encoder):
    batch = tiny_encoder.encode_docs(TEXTS, importance=Random())
    turned = tiny_encoder.encode_docs(TEXTS[::-1], importance=Random())
    for i, text in enumerate(TEXTS):
        mine = batch.importance[batch.rows(i)]
        np.testing.assert_array_equal(mine, turned.importance[turned.rows(len(TEXTS) - 1 - i)])
        np.testing.assert_array_equal(mine, tiny_encoder.encode_docs([text], importance=Random()).importance)
    other = tiny_encoder.encode_docs(TEXTS, importance=Random(1)).importance
    assert (other != batch.importance).all()
    with pytest.raises(ValueError, match="seed must be a whole number, got 0.5"):
        Random(0.5)


def test_random_numbers_are_even():
    ids = np.arange(20_000, dtype=np.int32)
    scores = Random().scores(mv.TokenBatch(np.empty((20_000, 0)), np.arange(0, 20_001, 10), ids))
    assert np.histogram(scores, 10, (0, 1))[0] == pytest.approx(2000, abs=200)
    assert abs(np.corrcoef(scores[:-1], scores[1:])[0, 1]) < 0.03


# ------------------------------------------------------------------ values


ALL = [Attention(), First(), Random(), Random(7), Salience(), IDF(3, ((7, 2), (9, 1)), "abc")]


def test_values_come_back_from_plain_data():
    assert len(set(ALL)) == len({repr(i) for i in ALL}) == len(ALL)
    for i, value in enumerate(ALL):
        again = importance.from_dict(json.loads(json.dumps(value.to_dict())))
        assert again == value and hash(again) == hash(value) and type(again) is type(value)
        assert pickle.loads(pickle.dumps(value)) == value
        assert importance.from_dict(value.to_dict()).describe() == value.describe()
        assert value.describe() not in [other.describe() for other in ALL[:i]]
    for data in ({}, {"kind": "idf"}, {"kind": "first", "k": 3}, {"kind": "bm25"}):
        with pytest.raises(ValueError, match=r"an importance is of kind attention, .* not|not the data of importance"):
            importance.from_dict(data)


def test_names():
    assert [named(n) for n in ("attention", "first", "random", "salience")] == [
        Attention(), First(), Random(), Salience()
    ]  # fmt: skip
    assert all(named(value) is value and isinstance(value, Importance) for value in ALL)
    with pytest.raises(ValueError, match=r"make it with IDF.of\(encoder, texts\)"):
        named("idf")
    for wrong in ("bm25", None, 3, ["first"]):
        with pytest.raises(ValueError, match="importance must be attention, first, random, salience, or IDF.of"):
            named(wrong)


# ------------------------------------------------------------------ pruning


@given(st.integers(0, 2**32), st.lists(st.integers(0, 9), max_size=6), st.sampled_from([0, 0.1, 0.29, 0.5, 0.9, 1]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pruning_keeps_the_highest_of_each_text_in_reading_order(seed, lengths, share):
    rng = np.random.default_rng(seed)
    n, offsets = sum(lengths), np.cumsum([0, *lengths])
    batch = mv.TokenBatch(
        rng.standard_normal((n, 4)).astype(np.float32),
        offsets,
        token_ids=np.arange(n, dtype=np.int32),
        spans=rng.integers(0, 9, (n, 2)).astype(np.int32),
        weights=rng.random(n).astype(np.float32),
        importance=(rng.integers(-3, 4, n) / 2).astype(np.float32),
    )
    got = pruned(batch, share)
    assert len(got) == len(lengths) and got.offsets.dtype == np.int64
    for i, length in enumerate(lengths):
        scores = batch.importance[batch.rows(i)].tolist()
        count = min(max(math.ceil(round(share * length, 6)), 1), length)
        best = sorted(sorted(range(length), key=lambda j: -scores[j])[:count])
        assert (got.token_ids[got.rows(i)] - offsets[i]).tolist() == best
    rows = got.token_ids
    for field in fields(batch):
        if field.name != "offsets":
            value = getattr(got, field.name)
            np.testing.assert_array_equal(value, getattr(batch, field.name)[rows])
            assert value.dtype == getattr(batch, field.name).dtype


def test_pruning_what_has_no_ranking(tiny_encoder):
    batch = tiny_encoder.encode_docs(TEXTS)
    assert pruned(batch, 1) is batch
    with pytest.raises(ValueError, match="nothing to rank tokens by: encode it with importance="):
        pruned(batch, 0.5)
    for wrong in (1.5, -0.1, "half"):
        with pytest.raises(ValueError, match="share must be a number from 0 to 1"):
            pruned(batch, wrong)
    few = pruned(mv.TokenBatch(np.eye(2, dtype=np.float32), np.array([0, 0, 2]), importance=np.array([1.0, 2])), 0.5)
    assert few.offsets.tolist() == [0, 0, 1] and few.token_ids is few.spans is few.weights is None


def test_rare_words_are_what_idf_keeps(minilm):
    texts = ["A cat sat on the mat.", "Rain fell for three days, and the river rose.", "Who sat there?"]
    idf = IDF.of(minilm, texts)
    kept = pruned(minilm.encode_docs(texts, importance=idf), 0.4)
    words = [" ".join(minilm.tokens(kept.token_ids[kept.rows(i)])) for i in range(3)]
    assert words == ["a cat on mat", "rain fell for three days ,", "who there ?"]
    assert np.diff(kept.offsets).tolist() == [4, 6, 3]
