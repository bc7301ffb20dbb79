"""Latent Terms from text to ranking, with a random dictionary: what needs no training."""

import json

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.encoders.states import token_states
from pyterrier_mvret.methods.latent_terms import LatentTerms

TEXTS = {
    "d1": "a cat sat on the mat",
    "d2": "the dog ran fast",
    "d3": "blue sky",
    "d4": "",
    "d5": "rain fell in the sky and it was blue",
}
DOCS = pd.DataFrame({"docno": TEXTS.keys(), "text": TEXTS.values()})


@pytest.fixture(scope="module")
def latent(tiny_encoder):
    return LatentTerms(tiny_encoder, TopKSAE.random(16, latents=64, k=3, seed=1))


def reference(latent, text, task="document"):
    """Terms by their definition, token by token."""
    sae = latent.sae
    states = token_states(latent.encoder, [text], task).states
    dense = (states - sae.mean.detach().numpy()) @ sae.encoder.detach().numpy().T
    found: dict[str, float] = {}
    for row in dense:
        for j in np.argsort(-row)[: sae.k]:
            if row[j] > 0:
                found[f"z{j}"] = found.get(f"z{j}", 0.0) + float(row[j])
    return {term: np.sqrt(value) for term, value in found.items()}


def test_states_are_those_before_the_projection(tiny_encoder, tiny):
    found = token_states(tiny_encoder, list(TEXTS.values()))
    assert found.states.shape[1] == 16 and len(found.offsets) == 6
    projected = token_states(tiny_encoder, ["a cat"], layer="projected").states
    vectors = mv.TokenEncoder(tiny, normalize=False, skiplist=[], device="cpu").encode_docs(["a cat"]).vectors
    np.testing.assert_allclose(projected, vectors, atol=1e-5)
    bare = token_states(tiny_encoder, ["a cat"], special_tokens=False)
    assert tiny_encoder.tokens(bare.token_ids) == ["a", "cat"]
    unknown = token_states(tiny_encoder, ["a \U0001f98a"], special_tokens=False)
    assert tiny_encoder.tokens(unknown.token_ids) == ["a", "[UNK]"]  # a word, if not one it knows
    # a padded batch and one text alone, and no expansion of queries
    for i, text in enumerate(TEXTS.values()):
        alone = token_states(tiny_encoder, [text])
        np.testing.assert_allclose(found.states[found.offsets[i] : found.offsets[i + 1]], alone.states, atol=1e-5)
    assert len(token_states(tiny_encoder, ["a cat"], "query").states) == 5
    assert token_states(tiny_encoder, []).states.shape == (0, 0)


def test_terms_by_their_definition(latent):
    documents = latent.doc_encoder()(DOCS)
    for text, toks in zip(documents["text"], documents["toks"]):
        expected = reference(latent, text)
        assert toks.keys() == expected.keys()
        assert [toks[t] for t in expected] == pytest.approx(list(expected.values()), rel=1e-4)
        assert list(toks.values()) == sorted(toks.values(), reverse=True)
    query = latent.query_encoder()(pd.DataFrame({"qid": ["1"], "query": ["blue sky"]}))
    assert query["query_toks"][0] == pytest.approx(reference(latent, "blue sky", "query"), rel=1e-4)
    assert query["query_toks_encoder"][0] == latent.space


def test_fewer_terms_and_other_poolings(latent, tiny_encoder):
    whole = latent.doc_encoder()(DOCS)["toks"][0]
    few = LatentTerms(tiny_encoder, latent.sae, top_doc=2, top_query=1)
    assert few.doc_encoder()(DOCS)["toks"][0] == dict(list(whole.items())[:2])
    assert len(few.query_encoder()(pd.DataFrame({"qid": ["1"], "query": ["cat"]}))["query_toks"][0]) == 1
    other = LatentTerms(tiny_encoder, latent.sae, transform="identity", prefix="t")
    toks = other.doc_encoder()(DOCS)["toks"][0]
    assert {f"z{term[1:]}": np.sqrt(weight) for term, weight in toks.items()} == pytest.approx(whole, rel=1e-5)
    assert other.space != latent.space


@pytest.mark.parametrize("engine", ["csr", "pisa"])
def test_a_document_finds_itself(latent, tmp_path, engine):
    if engine == "pisa":
        pytest.importorskip("pyterrier_pisa")
    index = mv.SparseIndex(tmp_path / "x.sparse", engine=engine)
    docs = [{"docno": d, "text": t} for d, t in TEXTS.items() if t]
    (latent.doc_encoder() >> index).index(docs)
    topics = pd.DataFrame([{"qid": d["docno"], "query": d["text"]} for d in docs])
    run = (latent.query_encoder() >> index.bm25(idf="lucene"))(topics)
    best = run[run["rank"] == 0]
    assert (best["qid"] == best["docno"]).all() and len(best) == len(docs)
    stranger = LatentTerms(latent.encoder, TopKSAE.random(16, latents=64, k=3, seed=2))
    with pytest.raises(ValueError, match="holds terms of encoder"):
        (stranger.query_encoder() >> index.bm25())(topics)


def test_fitting_is_repeatable_and_lowers_the_error(tiny_encoder):
    corpus = [{"text": text} for text in TEXTS.values()] * 20
    settings = {"latents": 32, "k": 4, "tokens": 12_800, "batch_tokens": 64, "buffer_batches": 4, "device": "cpu"}
    one, two = (LatentTerms(tiny_encoder).fit(corpus, **settings, verbose=False) for _ in range(2))
    assert one.space == two.space
    assert one.history["loss"].iloc[-1] < 0.8 * one.history["loss"].iloc[0]
    with pytest.raises(ValueError, match="read several times"):
        LatentTerms(tiny_encoder).fit(iter(corpus), **settings)
    with pytest.raises(ValueError, match="no dictionary yet"):
        LatentTerms(tiny_encoder).doc_encoder()


class Once:
    """A corpus whose second reading goes on where the first stopped."""

    def __init__(self, texts):
        self.rest = iter(texts)

    def __iter__(self):
        yield from self.rest


def test_a_corpus_is_texts_that_can_be_read_again(tiny_encoder):
    settings = {"latents": 32, "k": 4, "tokens": 640, "batch_tokens": 64, "device": "cpu", "verbose": False}
    fit = LatentTerms(tiny_encoder).fit
    by_list = fit(list(TEXTS.values()), **settings).space
    assert fit(DOCS, **settings).space == by_list  # a frame, whose iter are its columns
    assert fit(DOCS.rename(columns={"text": "body"}), text_field="body", **settings).space == by_list
    for corpus in ("a cat sat", {"d1": "a cat sat"}):
        with pytest.raises(ValueError, match="a corpus is texts"):
            fit(corpus, **settings)
    for corpus in ([None], ["a", None], [{"text": None}], [{"docno": "1"}], [float("nan")], ["\ud800"]):
        with pytest.raises(ValueError, match="must have a string"):
            fit(corpus, **settings)
    with pytest.raises(ValueError, match="read several times"):
        fit(Once(TEXTS.values()), **settings)
    for corpus in ([], pd.DataFrame({"docno": [], "text": []})):
        with pytest.raises(ValueError, match="no token state"):
            fit(corpus, **settings)


def test_a_dictionary_that_is_trained_on_is_copied(latent):
    model = LatentTerms(latent.encoder, TopKSAE.random(16, latents=64, k=3, seed=1))
    before, stage = model.dictionary, model.doc_encoder()
    model.fit(DOCS, sae=before, tokens=640, batch_tokens=64, device="cpu", verbose=False)
    assert before.digest == latent.dictionary.digest != model.dictionary.digest
    assert stage(DOCS)["toks"].tolist() == latent.doc_encoder()(DOCS)["toks"].tolist()
    with pytest.raises(ValueError, match="8 dimensions, those of the encoder have 16"):
        model.fit(DOCS, sae=TopKSAE(8, latents=64, k=3))


class Interrupted:
    """A corpus whose reading stops once."""

    def __init__(self, texts, after):
        self.texts, self.after = texts, after

    def __iter__(self):
        for i, text in enumerate(self.texts):
            if i == self.after:
                self.after = None
                raise KeyboardInterrupt
            yield text

    def __len__(self):
        return len(self.texts)


def test_a_training_that_was_stopped_goes_on(tiny_encoder, tmp_path):
    texts = [text for text in TEXTS.values() if text] * 200
    settings = {"latents": 32, "k": 4, "tokens": 12_800, "batch_tokens": 64, "buffer_batches": 4, "device": "cpu"}
    settings |= {"save_steps": 5, "verbose": False}
    whole = LatentTerms(tiny_encoder).fit(texts, **settings)
    corpus = Interrupted(texts, 600)
    with pytest.raises(KeyboardInterrupt):
        LatentTerms(tiny_encoder).fit(corpus, path=tmp_path / "model", **settings)
    assert not (tmp_path / "model").exists()
    with pytest.raises(FileExistsError, match="resume=True"):
        LatentTerms(tiny_encoder).fit(corpus, path=tmp_path / "model", **settings)
    with pytest.raises(ValueError, match="other settings: .*corpus"):
        LatentTerms(tiny_encoder).fit(texts[1:], path=tmp_path / "model", resume=True, **settings)
    with pytest.raises(ValueError, match="other settings: .*corpus"):  # begins alike
        LatentTerms(tiny_encoder).fit(texts[:-1], path=tmp_path / "model", resume=True, **settings)
    resumed = LatentTerms(tiny_encoder).fit(corpus, path=tmp_path / "model", resume=True, **settings)
    assert resumed.space == whole.space and not (tmp_path / "model.training").exists()
    opened = LatentTerms.load(tmp_path / "model", device="cpu")
    assert opened.sae.digest == whole.sae.digest
    finished = LatentTerms(tiny_encoder).fit(corpus, path=tmp_path / "model", resume=True, **settings)
    assert finished.space == whole.space
    assert finished.history["loss"].tolist() == whole.history["loss"].tolist()


def test_what_was_interrupted_in_saving_is_no_model(latent, tmp_path, monkeypatch):
    latent.save(tmp_path / "model")

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(TopKSAE, "save", full)
    with pytest.raises(OSError, match="no space"):
        latent.save(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        LatentTerms.load(tmp_path / "model")


def test_files(latent, tmp_path):
    latent.save(tmp_path / "model")
    again = LatentTerms.load(tmp_path / "model", device="cpu")
    assert again.space.rpartition("#")[2] == latent.space.rpartition("#")[2]
    assert again.doc_encoder()(DOCS)["toks"].tolist()[0] == pytest.approx(latent.doc_encoder()(DOCS)["toks"][0])
    with pytest.raises(FileNotFoundError):
        LatentTerms.load(tmp_path)


def test_settings_of_another_version_or_folder(latent, tmp_path):
    latent.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"open it with LatentTerms\.load"):
        LatentTerms(tmp_path / "model")
    file = tmp_path / "model" / "pyterrier_mvret.json"
    saved = json.loads(file.read_text())
    for other, strange in (({**saved, "newer": 1}, "newer"), ({**saved, "pool": None}, None), (dict(saved), "pool")):
        if strange == "pool":
            del other["pool"]
        file.write_text(json.dumps(other))
        with pytest.raises(ValueError, match=strange or "pool must be"):
            LatentTerms.load(tmp_path / "model")
    file.write_text(json.dumps({**saved, "method": "ColBERT"}))
    with pytest.raises(ValueError, match=r"ColBERT\.load"):
        LatentTerms.load(tmp_path / "model")


def test_nothing_in_nothing_out(latent):
    documents = latent.doc_encoder()(DOCS[:0])
    assert {"toks", "toks_encoder"} <= set(documents.columns) and not len(documents)
    queries = latent.query_encoder()(pd.DataFrame({"qid": [], "query": []}, dtype=str))
    assert {"query_toks", "query_toks_encoder"} <= set(queries.columns)
