"""What terms fire on, how often, and what two texts share: against loops over tokens, and against an index's scores."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tokenizers import decoders

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.encoders.states import token_states
from pyterrier_mvret.methods.latent_terms import LatentTerms
from pyterrier_mvret.scoring import BM25
from pyterrier_mvret.scoring.pooling import _TRANSFORMS
from pyterrier_mvret.term_activity import passages_of, readable
from pyterrier_mvret.term_meaning import _merged
from tests.encoders.tokenizers import FAMILIES, byte_bpe

WORDS = ["a", "cat", "sat", "on", "the", "mat", "dog", "ran", "fast", "blue", "sky", "rain", "fell", "cats", "dogs"]


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 12))) for _ in range(n)]


DOCS = [{"docno": f"d{i}", "text": text} for i, text in enumerate(texts(40))]


@pytest.fixture(scope="module")
def latent(tiny_encoder):
    return LatentTerms(tiny_encoder, TopKSAE.random(16, latents=64, k=3, seed=1))


@pytest.fixture
def index(latent, tmp_path):
    index = mv.SparseIndex(tmp_path / "x.sparse", "csr")
    (latent.doc_encoder() >> index).index(DOCS)
    return index


def firing(latent, text):
    """(latent, activation, token, start, end) of all active latents of a text."""
    states, sae, rows = token_states(latent.encoder, [text]), latent.sae, []
    dense = (states.states - sae.mean.detach().numpy()) @ sae.encoder.detach().numpy().T
    for state, token, (start, end) in zip(dense, latent.encoder.tokens(states.token_ids), states.spans.tolist()):
        for j in np.argsort(-state)[: sae.k]:
            if state[j] > 0:
                rows.append((int(j), float(state[j]), token, start, end))
    return rows


def test_states_know_where_their_tokens_stand(latent):
    found = token_states(latent.encoder, ["cats sat", ""])
    assert found.spans.tolist() == [[0, 0], [0, 0], [0, 3], [3, 4], [5, 8], [0, 0], [0, 0], [0, 0], [0, 0]]
    assert token_states(latent.encoder, []).spans.shape == (0, 2)
    bare = token_states(latent.encoder, ["cats sat"], special_tokens=False)
    assert bare.spans.tolist() == [[0, 3], [3, 4], [5, 8]]


def test_frequencies_count_tokens_documents_and_activation(latent, index):
    tokens, documents, mass = defaultdict(int), defaultdict(set), defaultdict(float)
    for doc in DOCS:
        for j, activation, *_ in firing(latent, doc["text"]):
            tokens[j] += 1
            documents[j].add(doc["docno"])
            mass[j] += activation
    frame = latent.frequencies(DOCS, verbose=False)
    assert frame["term"].tolist() == [f"z{j}" for j in sorted(range(64), key=lambda j: (-tokens[j], j))]
    for term, n, d, m in frame.itertuples(index=False):
        j = int(term[1:])
        assert (n, d) == (tokens[j], len(documents[j]))
        assert m == pytest.approx(mass[j], rel=1e-4)
    assert (frame["tokens"] == 0).any()  # some of the random atoms are never active, and have their row
    known = index.lexicon().merge(frame, on="term")
    assert len(known) == (frame["documents"] > 0).sum()
    assert (known["documents_x"] == known["documents_y"]).all()
    assert mv.zipf_fit(index) == mv.zipf_fit(frame.loc[frame["documents"] > 0, "documents"], documents=len(DOCS))
    assert latent.frequencies([], verbose=False)["tokens"].sum() == 0


def test_tokens_and_passages_of_terms(latent):
    every = {d["docno"]: firing(latent, d["text"]) for d in DOCS}
    frequent = latent.frequencies(DOCS, verbose=False)["term"].tolist()
    terms = [*frequent[3::-1], frequent[-1]]  # the last is never active
    told = latent.describe(terms, (d for d in DOCS), passages=4, tokens=3, verbose=False)
    assert told.terms["term"].tolist() == terms and len(told) == 5
    for term in terms[:-1]:
        mine = {docno: [row for row in rows if f"z{row[0]}" == term] for docno, rows in every.items()}
        times, mass = defaultdict(int), defaultdict(float)
        for _, activation, token, *_ in (row for rows in mine.values() for row in rows):
            times[token] += 1
            mass[token] += activation
        total = sum(mass.values())
        best = sorted(mass, key=lambda token: -mass[token])[:3]
        found = told[term].tokens
        assert found["token"].tolist() == best
        assert found["times"].tolist() == [times[token] for token in best]
        np.testing.assert_allclose(found["mass"], [mass[token] for token in best], rtol=1e-4)
        np.testing.assert_allclose(found["share"], [mass[token] / total for token in best], rtol=1e-4)
        (about,) = told[term].terms.to_dict("records")
        assert about["token"] == best[0] and about["purity"] == pytest.approx(mass[best[0]] / total, rel=1e-4)
        assert (about["tokens"], about["documents"]) == (sum(times.values()), sum(map(bool, mine.values())))
        weights = {docno: math.sqrt(sum(row[1] for row in rows)) for docno, rows in mine.items()}
        found = told[term].passages
        np.testing.assert_allclose(found["weight"], sorted(weights.values(), reverse=True)[:4], rtol=1e-4)
        for one in found.to_dict("records"):
            assert one["weight"] == pytest.approx(weights[one["docno"]], rel=1e-4)
            fires = {c for *_, start, end in mine[one["docno"]] for c in range(start, end)}
            assert {c for start, end in one["spans"] for c in range(start, end)} == fires
            assert set(one["fires_on"]) == {one["text"][start:end] for start, end in one["spans"]}
            for (start, end), activation in zip(one["spans"], one["activations"]):
                inside = [row[1] for row in mine[one["docno"]] if start <= row[3] < row[4] <= end]
                assert activation == pytest.approx(max(inside), rel=1e-4)
            if one["spans"]:
                start, end = one["spans"][int(np.argmax(one["activations"]))]
                assert one["fires_on"][0] == one["text"][start:end]
    silent = told.terms.iloc[-1]
    assert silent["tokens"] == 0 and np.isnan(silent["purity"])
    assert not len(told[terms[-1]].passages) and f"{terms[-1]}: never active" in repr(told)


def test_one_term_is_as_one_of_several_and_blocks_do_not_matter(latent, monkeypatch):
    terms = latent.frequencies(DOCS, verbose=False)["term"][:3].tolist()
    whole = latent.describe(terms, DOCS, passages=3, verbose=False)
    alone = latent.describe(terms[1], DOCS, passages=3, verbose=False)
    monkeypatch.setattr("pyterrier_mvret.term_activity._TEXTS_A_BLOCK", 7)
    blocks = latent.describe(terms, pd.DataFrame(DOCS), passages=3, verbose=False)
    for name in ("terms", "tokens", "passages"):
        one, all_, parts = (getattr(told, name) for told in (alone, whole, blocks))
        pd.testing.assert_frame_equal(one, getattr(whole[terms[1]], name), rtol=1e-4)
        pd.testing.assert_frame_equal(parts, all_, rtol=1e-4)


def test_an_index_says_which_passages_to_read(latent, index, monkeypatch):
    more = [{"docno": f"e{i}", "text": text} for i, text in enumerate(texts(15, seed=5))]
    (latent.doc_encoder() >> index.indexer("append")).index(more)
    corpus = [*DOCS, *more]
    terms = latent.frequencies(corpus, verbose=False)["term"][4:7].tolist()
    whole = latent.describe(terms, corpus, passages=2, verbose=False)
    read = []

    def reading(encoder, some, *rest):
        read.extend(some)
        return token_states(encoder, some, *rest)

    monkeypatch.setattr("pyterrier_mvret.term_activity.token_states", reading)
    told = latent.describe(terms, corpus, passages=2, index=index, verbose=False)
    assert len(read) <= 2 * len(terms)
    np.testing.assert_allclose(told.passages["weight"], whole.passages["weight"], rtol=1e-5)
    with pytest.raises(ValueError, match="are not in the corpus: '"):
        latent.describe(terms, DOCS[:1], index=index, verbose=False)
    unused = latent.frequencies(corpus, verbose=False)["term"].iloc[-1]
    assert not len(latent.describe(unused, corpus, index=index, verbose=False).passages)


def test_printed_and_drawn(latent):
    corpus = [{"docno": "<d>", "text": "the <b> cat & " + "mat " * 100}]
    term = latent.doc_encoder()(pd.DataFrame(corpus))["toks"][0]
    told = latent.describe(term, corpus, verbose=False)  # the keys of a dict
    mat = next(t for t in told.tokens[told.tokens["token"] == "mat"]["term"])
    printed, page = repr(told[mat]), told[mat]._repr_html_()
    assert printed.startswith(f"{mat}: purity ") and "[mat]" in printed and "<d> (" in printed
    assert printed.endswith("...") and max(map(len, printed.splitlines())) < 800
    (one,) = told[mat].passages.to_dict("records")
    strong = np.array(one["activations"]) >= max(one["activations"]) / 2
    shown = sum(end <= one["spans"][int(strong.argmax())][0] + 180 for (_, end), on in zip(one["spans"], strong) if on)
    assert 0 < shown <= page.count("<mark>") <= strong.sum()
    assert "&lt;d&gt;" in page and "<b>" not in page and "<mark>mat</mark>" in page
    assert list(told) == told.terms["term"].tolist() and mat in told and "z9999" not in told
    with pytest.raises(KeyError):
        told["z9999"]


@pytest.mark.parametrize("family", FAMILIES)
def test_words_that_stand_side_by_side_are_marked_apart(tmp_path, family):
    tokenizer = FAMILIES[family](tmp_path)
    for text in ("blue sky rain", "naïve  日本語 😀\n coöperation", "שלום עולם مرحبا", "e\u0301 👩‍👩‍👧 x"):
        spans = np.array(tokenizer(text, return_offsets_mapping=True)["offset_mapping"])
        runs, largest = _merged(text, spans, np.arange(len(spans), dtype=float))
        marked = [text[start:end] for start, end in runs]
        assert all(run == run.strip() and run for run in marked) and len(largest) == len(runs)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))
        covered = {c for start, end in runs for c in range(start, end)}
        assert covered == {c for start, end in spans for c in range(start, end) if not text[c].isspace()}
        if family in ("bytes", "bytes, prefix"):  # others leave signs out, or have runs of unknown ones
            assert marked == text.split()


@pytest.mark.parametrize("transform", _TRANSFORMS)
@pytest.mark.parametrize("weighting", [BM25(), BM25(idf="lucene"), BM25(0.9, 0.4), None], ids=str)
def test_parts_add_up_to_the_score(latent, tmp_path, transform, weighting):
    model = LatentTerms(latent.encoder, latent.sae, transform=transform, top_doc=9, top_query=8)
    index = mv.SparseIndex(tmp_path / "x.sparse", "csr")
    (model.doc_encoder() >> index).index(DOCS)
    queries = pd.DataFrame([{"qid": str(i), "query": text} for i, text in enumerate(["blue sky", "a cat sat", "dogs"])])
    found = (model.query_encoder() >> index.retriever(weighting, num_results=5))(queries)
    assert len(found) >= 10
    text_of = {doc["docno"]: doc["text"] for doc in DOCS}
    for row in found.itertuples():
        parts = model.explain(row.query, text_of[row.docno], index, weighting)
        assert parts["score"].sum() == pytest.approx(row.score, rel=1e-6)
        assert parts["share"].sum() == pytest.approx(1)
        assert parts["score"].is_monotonic_decreasing
        assert ("idf" in parts.columns) == (weighting is not None)


def test_the_parts_by_hand(latent, index):
    query, text = "cats ran", "the cat ran in the rain"  # no document of the index
    asked = latent.query_encoder()(pd.DataFrame({"qid": ["1"], "query": [query]}))["query_toks"][0]
    toks = latent.doc_encoder()(pd.DataFrame({"docno": ["x"], "text": [text]}))["toks"][0]
    parts = latent.explain(query, text, index, BM25(2, 0.5, "lucene"))
    assert set(parts["term"]) == asked.keys() & toks.keys() and len(parts) > 2
    lexicon = index.lexicon().set_index("term")["documents"]
    mean = sum(sum(latent.doc_encoder()(pd.DataFrame([doc]))["toks"][0].values()) for doc in DOCS) / len(DOCS)
    length = 2 * (0.5 + 0.5 * sum(toks.values()) / mean)
    for one in parts.to_dict("records"):
        n, w = lexicon.get(one["term"], 0), toks[one["term"]]
        assert one["idf"] == pytest.approx(math.log(1 + (len(DOCS) - n + 0.5) / (n + 0.5)))
        assert one["tf"] == pytest.approx(3 * w / (w + length), rel=1e-5)
        assert one["score"] == pytest.approx(asked[one["term"]] * one["idf"] * one["tf"], rel=1e-6)
        fires = {row[2] for row in firing(latent, text) if f"z{row[0]}" == one["term"]}
        assert set(one["doc_tokens"].split(", ")) == fires
    plain = latent.explain(query, text)
    assert plain["score"].sum() == pytest.approx(sum(asked[t] * toks[t] for t in asked.keys() & toks.keys()))
    assert "idf" not in plain.columns
    np.testing.assert_allclose(latent.explain(query, text, index, None)["score"], plain["score"])


def test_nothing_shared(latent, tmp_path):
    model = LatentTerms(latent.encoder, TopKSAE.random(16, latents=4096, k=1, seed=3), special_tokens=False)
    parts = model.explain("cat", "")
    assert not len(parts) and parts.columns.tolist() == latent.explain("cat", "cat").columns.tolist()
    empty = mv.SparseIndex(tmp_path / "none.sparse", "csr").index([])
    assert not len(model.explain("", "", empty))
    assert np.isfinite(model.explain("cat", "cat", empty)["score"]).all()  # a term that no document has


def test_bad_input_is_named(latent, index):
    stranger = LatentTerms(latent.encoder, TopKSAE.random(16, latents=64, k=3, seed=2))
    for verb in (lambda: stranger.explain("a", "a", index), lambda: stranger.describe("z1", DOCS, index=index)):
        with pytest.raises(ValueError, match="holds terms of encoder"):
            verb()
    with pytest.raises(ValueError, match=r"weighting must be mv.scoring.BM25"):
        latent.explain("a", "a", index, "bm25")
    for term in ("z64", "z01", "cat", "z-1", 3):
        with pytest.raises(ValueError, match="terms of this model are z0 to z63"):
            latent.describe([term], DOCS)
    with pytest.raises(ValueError, match="at least 1"):
        latent.describe("z1", DOCS, passages=0)
    for one in (None, float("nan"), "\ud800"):
        with pytest.raises(ValueError, match="the text must be a string"):
            latent.explain("a", one)
        with pytest.raises(ValueError, match="the query must be a string"):
            latent.explain(one, "a", index)
    for corpus in ("a text", {"d1": "a text"}):
        with pytest.raises(ValueError, match="a corpus is texts"):
            latent.frequencies(corpus)
    with pytest.raises(ValueError, match="document 'd1' must have a string"):
        latent.frequencies([{"docno": "d1", "body": "a"}], verbose=False)
    assert list(passages_of([{"docno": "d1", "body": "a"}], "body")) == [("d1", "a")]


def test_byte_level_tokens_can_be_read():
    tokenizer = byte_bpe(prefix=False, trim=False)
    ids = np.array(tokenizer("a coöperation\n語")["input_ids"])

    def tokens(ids):
        return list(tokenizer.convert_ids_to_tokens(ids.tolist()))

    encoder = SimpleNamespace(tokens=tokens, model=SimpleNamespace(tokenizer=tokenizer))
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    spelled = readable(encoder, ids)
    assert spelled[1:4] == ["a", "Ġcoöperation", "Ċ"]
    assert tokens(ids)[2] == "ĠcoÃ¶peration"
    assert spelled[4:] == tokens(ids)[4:]  # bytes of one letter
    assert not any("\ufffd" in token for token in spelled)
