import copy
import re

import hypothesis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.markers import UnitMarker, WithoutUnitMarker
from pyterrier_mvret.scoring import maxsim_packed

PASSAGES = {
    "p1": "A cat sat on the mat. The dog ran fast!  It is the rain.",
    "p2": "The sky is blue.",
    "p3": "",
    "p4": "Where is a cat? A cat is on the mat.",
}
QUERIES = pd.DataFrame({"qid": ["1", "2"], "query": ["where is a cat", "blue sky"]})


def candidates(**columns) -> pd.DataFrame:
    documents = pd.DataFrame({"docno": PASSAGES.keys(), "text": PASSAGES.values()})
    return QUERIES.merge(documents, how="cross").assign(score=0.0, rank=0, **columns)


@pytest.fixture(scope="module")
def agrame(tiny_encoder):
    return mv.AGRaME(tiny_encoder)


@pytest.fixture(scope="module")
def index(agrame, tmp_path_factory):
    index = mv.MultiVecIndex(tmp_path_factory.mktemp("agrame") / "x.mv", dtype="float32", store_offsets=True)
    (agrame.doc_encoder() >> index).index([{"docno": d, "text": t} for d, t in PASSAGES.items()])
    return index


def reference(encoder, query, text, spans, alpha=1.0):
    """Scores of units by their definition, token by token."""
    q, d = encoder.encode_queries([query]).vectors, encoder.encode_docs([text])
    passage = sum(max(x @ y for y in d.vectors) for x in q)
    found = {}
    for number, (start, end) in enumerate(spans):
        rows = [i for i, (a, b) in enumerate(d.spans) if a < b and start <= a < end]
        if rows:
            own = sum(max(x @ d.vectors[i] for i in rows) for x in q)
            found[number] = (own, passage, own + alpha * passage)
    return found


@pytest.mark.parametrize("stored", [False, True], ids=["text", "index"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3])
def test_units_are_scored_by_their_own_tokens_and_their_passage(agrame, index, tiny_encoder, alpha, stored):
    model = mv.AGRaME(tiny_encoder, alpha=alpha)
    out = model.unit_scorer(index if stored else None)(candidates())
    assert out["docno"].is_unique is False  # two queries
    for qid, query in QUERIES.itertuples(index=False):
        for docno, text in PASSAGES.items():
            mine = out[(out["qid"] == qid) & (out["parent_docno"] == docno)]
            expected = reference(tiny_encoder, query, text, mv.Sentences().split(text), alpha)
            assert mine["docno"].tolist() == [f"{docno}%s{i}" for i in expected]
            for row, scores in zip(mine.itertuples(), expected.values(), strict=True):
                assert (row.unit_score, row.passage_score, row.score) == pytest.approx(scores, abs=1e-5)
                assert row.text == text[row.start : row.end]
    for _, group in out.groupby("qid"):
        assert sorted(group["rank"]) == list(range(len(group)))


def test_the_passage_score_is_that_of_the_text_scorer(agrame):
    units = agrame.unit_scorer()(candidates()).drop_duplicates(["qid", "parent_docno"])
    passages = agrame.text_scorer()(candidates()).set_index(["qid", "docno"])["score"]
    for row in units.itertuples():
        assert row.passage_score == pytest.approx(passages[row.qid, row.parent_docno], abs=1e-5)


def test_the_order_within_a_passage_does_not_depend_on_alpha(tiny_encoder):
    orders = []
    for alpha in (0, 5):
        out = mv.AGRaME(tiny_encoder, alpha=alpha).unit_scorer()(candidates()).sort_values("rank")
        orders.append([list(g["docno"]) for _, g in out.groupby(["qid", "parent_docno"])])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("stored", [False, True], ids=["text", "index"])
def test_spans_may_be_given(agrame, index, stored):
    spans = [[(0, 9), (13, 21)], [(4, 7)], [], [(0, 15)]] * 2
    frame = candidates().assign(spans=spans)
    out = agrame.unit_scorer(index if stored else None)(frame)
    first = out[out["qid"] == "1"]
    assert first["text"].tolist() == ["A cat sat", "the mat.", "sky", "Where is a cat?"]
    assert "spans" not in out.columns
    wrong = {"leaves its text": [(0, 99)], "expected a list of spans": None, "pair of whole numbers": [[1, 2, 3]]}
    for message, value in wrong.items():
        with pytest.raises(ValueError, match=f"spans of passage 'p1': .*{message}"):
            agrame.unit_scorer()(frame.assign(spans=[value, *spans[1:]]))


def test_propositions_are_sets_of_spans(agrame, tiny_encoder):
    text, parts = PASSAGES["p1"], [[(2, 5), (17, 20)], [(26, 29)]]
    frame = candidates()[lambda f: f["docno"] == "p1"].assign(spans=[parts] * 2)
    out = agrame.unit_scorer()(frame)
    d = tiny_encoder.encode_docs([text])
    for row in out.itertuples():
        spans = parts[int(row.docno.rpartition("%s")[2])]
        rows = [i for i, (a, b) in enumerate(d.spans) if a < b and any(s <= a and b <= e for s, e in spans)]
        query = tiny_encoder.encode_queries([row.query]).vectors
        own = maxsim_packed(query, d.vectors[rows], np.array([0, len(rows)]))[0]
        assert row.unit_score == pytest.approx(own, abs=1e-5)
        assert (row.start, row.end) == (spans[0][0], spans[-1][1])


def test_units_of_the_best_passages_alone(agrame):
    out = agrame.unit_scorer(keep_passages=1)(candidates())
    whole = agrame.unit_scorer()(candidates())
    for qid, group in out.groupby("qid"):
        best = whole[whole["qid"] == qid].sort_values("passage_score").iloc[-1]["parent_docno"]
        assert set(group["parent_docno"]) == {best}
    with pytest.raises(ValueError, match="keep_passages must be an integer of at least 1"):
        agrame.unit_scorer(keep_passages=0)


def test_equal_passages_and_units_go_by_their_names(agrame):
    frame = pd.DataFrame({"qid": "1", "query": "a cat", "docno": ["b", "a", "c"], "text": "It is. It is."})
    units = agrame.unit_scorer(keep_passages=1)(frame.assign(spans=[[(0, 13)]] * 3))
    assert units["docno"].tolist() == ["a%s0"]
    equal = pd.DataFrame({"qid": "1", "docno": ["a%s1", "a%s0"], "parent_docno": "a", "score": 1.0})
    assert agrame.fold()(equal)["best_unit"].tolist() == ["a%s0"]


def test_units_beyond_the_length_limit_have_no_row(tiny):
    short = mv.AGRaME(tiny, doc_length=8, device="cpu")
    out = short.unit_scorer()(candidates())
    assert out[(out["qid"] == "1") & (out["parent_docno"] == "p1")]["docno"].tolist() == ["p1%s0"]
    assert np.isfinite(out["score"]).all()


def test_nothing_to_score(agrame):
    out = agrame.unit_scorer()(candidates()[lambda f: f["docno"] == "p3"])
    assert len(out) == 0
    assert {"parent_docno", "start", "end", "unit_score", "passage_score", "score", "rank"} <= set(out.columns)
    assert len(agrame.fold()(out)) == 0


@pytest.mark.parametrize("how", ["max", "mean", "sum"])
def test_units_fold_back_to_passages(agrame, how):
    units = agrame.unit_scorer()(candidates())
    passages = agrame.fold(how)(units)
    expected = units.groupby(["qid", "parent_docno"])["score"].agg(how)
    assert len(passages) == len(expected)
    for row in passages.itertuples():
        assert row.score == pytest.approx(expected[row.qid, row.docno])
        mine = units[(units["qid"] == row.qid) & (units["parent_docno"] == row.docno)]
        assert row.best_unit == mine.sort_values("score").iloc[-1]["docno"]
    assert not {"parent_docno", "start", "text"} & set(passages.columns)
    with pytest.raises(ValueError, match="how must be one of"):
        agrame.fold("median")


def test_a_passage_does_not_take_over_the_text_of_its_best_unit(agrame):
    frame = candidates().rename(columns={"text": "body"}).assign(text="of the passage")
    passages = agrame.fold(text_field="body")(agrame.unit_scorer(text_field="body")(frame))
    assert "body" not in passages.columns and set(passages["text"]) == {"of the passage"}


def test_an_index_must_know_characters_and_be_of_the_same_encoder(agrame, tmp_path, tiny):
    bare = mv.MultiVecIndex(tmp_path / "bare.mv")
    (agrame.doc_encoder() >> bare).index([{"docno": d, "text": t} for d, t in PASSAGES.items()])
    with pytest.raises(ValueError, match="build it with store_offsets=True"):
        agrame.unit_scorer(bare)(candidates())
    other = mv.AGRaME(tiny, normalize=False, device="cpu")
    with pytest.raises(ValueError, match="holds vectors of encoder"):
        other.unit_scorer(bare)(candidates())


def test_a_passage_that_the_index_does_not_have_is_named(agrame, index):
    with pytest.raises(ValueError, match="1 of .* documents are not in .*'p9'"):
        agrame.unit_scorer(index)(candidates().replace({"docno": {"p2": "p9"}}))


def test_another_text_than_was_indexed_is_refused(agrame, index):
    with pytest.raises(ValueError, match="another text"):
        agrame.unit_scorer(index)(candidates().assign(text="A cat."))


def test_settings(tiny, tmp_path):
    with pytest.raises(ValueError, match="alpha must be"):
        mv.AGRaME(tiny, alpha=-1)
    with pytest.raises(ValueError, match="a unit is one of"):
        mv.AGRaME(tiny, unit="word")
    model = mv.AGRaME(tiny, alpha=0.5, unit="phrase", device="cpu")
    model.save(tmp_path / "model")
    again = mv.AGRaME.load(tmp_path / "model", device="cpu")
    assert (again.alpha, again.unit) == (0.5, "phrase")
    pd.testing.assert_frame_equal(again.unit_scorer()(candidates()), model.unit_scorer()(candidates()), atol=1e-5)
    with pytest.raises(ValueError, match="has none"):
        mv.AGRaME(tiny, unit=mv.Phrases(7)).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------ queries: another marker, and parts of them


@pytest.fixture(scope="module")
def marked(tiny):
    """An encoder with a second query marker that has another vector than the first, as after training."""
    encoder = mv.TokenEncoder(tiny, device="cpu")
    model = copy.deepcopy(encoder.model)
    UnitMarker("[Q2]")(model)
    place = model.tokenizer.convert_tokens_to_ids("[Q2]")
    weights = model[0].auto_model.get_input_embeddings().weight.data
    weights[place] = weights[model.tokenizer.convert_tokens_to_ids("cat")]
    return mv.TokenEncoder(model)


def test_units_are_scored_with_the_second_marker_and_passages_with_the_first(marked):
    out = mv.AGRaME(marked, alpha=0.5).unit_scorer()(candidates())
    for row in out.itertuples():
        first, second = (marked.encode_queries([row.query], prefix=p).vectors for p in ("[unused0] ", "[Q2] "))
        d = marked.encode_docs([PASSAGES[row.parent_docno]])
        rows = [i for i, (a, b) in enumerate(d.spans) if a < b and row.start <= a < row.end]
        own, whole = (second @ d.vectors[rows].T).max(1).sum(), (first @ d.vectors.T).max(1).sum()
        assert (row.unit_score, row.passage_score) == pytest.approx((own, whole), abs=1e-4)
        assert row.score == pytest.approx(own + 0.5 * whole, abs=1e-4)
    ordinary = mv.AGRaME(marked, query_marker=None).unit_scorer()(candidates())
    assert not np.allclose(ordinary["unit_score"], out["unit_score"])
    np.testing.assert_allclose(ordinary["passage_score"], out["passage_score"], atol=1e-5)


def test_propositions_cite_with_the_first_marker(marked):
    frame = candidates().assign(qanswer="the cat sat. a dog ran.")
    without = mv.TokenEncoder(copy.deepcopy(marked.model))
    WithoutUnitMarker()(without.model)
    columns = ["docno", "sentence_id", "score", "margin"]
    out, expected = (mv.AGRaME(encoder).cite()(frame)[columns] for encoder in (marked, without))
    pd.testing.assert_frame_equal(out, expected)


def test_both_encodings_of_all_queries_are_one_call(marked, monkeypatch):
    calls, encode = [], mv.TokenEncoder.encode_queries
    monkeypatch.setattr(
        mv.TokenEncoder, "encode_queries", lambda self, texts, **k: calls.append(len(texts)) or encode(self, texts, **k)
    )
    mv.AGRaME(marked).unit_scorer()(candidates())
    assert calls == [4]


def test_a_part_of_the_query(agrame, index, tiny_encoder, marked):
    parts = {"1": [(9, 14)], "2": [(0, 4), (5, 8)]}  # "a cat", "blue sky"
    frame = candidates().assign(query_spans=lambda f: f["qid"].map(parts))
    out = agrame.unit_scorer()(frame)
    pd.testing.assert_frame_equal(out, agrame.unit_scorer(index)(frame), atol=1e-5)
    for row in out.itertuples():
        q = tiny_encoder.encode_queries([row.query], whole=True)
        asked = q.vectors[[i for i, (a, b) in enumerate(q.spans) if any(s <= a < b <= e for s, e in parts[row.qid])]]
        d = tiny_encoder.encode_docs([PASSAGES[row.parent_docno]])
        rows = [i for i, (a, b) in enumerate(d.spans) if a < b and row.start <= a < row.end]
        assert len(asked) == 2
        assert row.unit_score == pytest.approx((asked @ d.vectors[rows].T).max(1).sum(), abs=1e-5)
        assert row.passage_score == pytest.approx((asked @ d.vectors.T).max(1).sum(), abs=1e-5)
    for value, message in (([(3, 3)], "is empty"), (3, "expected a list"), ([(5, 6)], "hold no token")):
        wrong = frame.assign(query_spans=[value if q == "1" else parts[q] for q in frame["qid"]])
        with pytest.raises(ValueError, match=f"query_spans of query 'where is a cat'.*{message}"):
            agrame.unit_scorer()(wrong)


def test_a_part_beyond_the_length_of_queries_has_its_tokens(agrame):
    query = "who sat on the mat in the rain and what was it of a cat"  # whose tokens are cut at twelve
    frame = candidates()[lambda f: f["qid"] == "1"].assign(query=query)
    start = query.index("a cat")
    last = agrame.unit_scorer()(frame.assign(query_spans=[[(start, len(query))]] * len(frame)))
    assert 0 < last["passage_score"].max() <= 2  # two tokens
    with pytest.raises(ValueError, match="leaves its text"):
        agrame.unit_scorer()(frame.assign(query_spans=[[(start, len(query) + 1)]] * len(frame)))


def test_spans_of_one_passage_may_differ_between_queries(agrame):
    frame = candidates()[lambda f: f["docno"] == "p1"].assign(spans=[[(0, 9)], [(13, 21), (22, 28)]])
    assert agrame.unit_scorer()(frame)["text"].tolist() == ["A cat sat", "the mat.", "The do"]


@pytest.mark.parametrize("marker", ["auto", None])
def test_an_explanation_of_a_unit_sums_to_its_score(marked, marker):
    model = mv.AGRaME(marked, query_marker=marker)
    for row in model.unit_scorer()(candidates()).itertuples():
        pairs = model.explain(row.query, PASSAGES[row.parent_docno], (row.start, row.end))
        assert pairs["contribution"].sum() == pytest.approx(row.unit_score, abs=1e-4)
        assert (pairs["doc_start"] >= row.start).all() and (pairs["doc_end"] <= row.end).all()
    whole = model.explain("a cat", PASSAGES["p1"])
    assert set(whole["doc_token"]) - {"a", "cat"}  # of the passage: markers, too
    for span, message in (((9, 99), "leaves its text"), ((20, 21), "no scored token")):
        with pytest.raises(ValueError, match=message):
            model.explain("a cat", PASSAGES["p1"], span)


@given(seed=st.integers(0, 10**6), stored=st.booleans())
@hypothesis.settings(
    max_examples=15, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_any_spans(agrame, index, tiny_encoder, seed, stored):
    rng = np.random.default_rng(seed)
    frame = candidates().sample(rng.integers(1, 8), random_state=seed).assign(score=rng.normal())
    spans = []
    for text in frame["text"]:
        words = [m.span() for m in re.finditer(r"\S+", text)]
        cuts = sorted(rng.choice(len(words) + 1, min(len(words) + 1, 4), replace=False)) if words else []
        spans.append([(words[a][0], words[b - 1][1]) for a, b in zip(cuts[::2], cuts[1::2])])
    out = agrame.unit_scorer(index if stored else None)(frame.assign(spans=spans))
    rows = out.groupby(["qid", "parent_docno"])
    for (qid, docno, text, query), mine in zip(frame[["qid", "docno", "text", "query"]].to_numpy(), spans):
        expected = reference(tiny_encoder, query, text, mine)
        got = rows.get_group((qid, docno)) if expected else out[:0]
        assert got["docno"].tolist() == [f"{docno}%s{i}" for i in expected]
        np.testing.assert_allclose(got["score"], [one[2] for one in expected.values()], atol=1e-4)


def test_weights_of_query_tokens(agrame, marked):
    plain = agrame.unit_scorer()(candidates())
    counts = {row.qid: len(agrame.encoder.encode_queries([row.query]).vectors) for row in QUERIES.itertuples()}
    frame = candidates()
    weights = {qid: np.full(n, 2.0, np.float32) for qid, n in counts.items()}
    twice = agrame.unit_scorer()(frame.assign(query_weights=frame["qid"].map(weights)))
    np.testing.assert_allclose(
        twice[["unit_score", "passage_score"]], 2 * plain[["unit_score", "passage_score"]], atol=1e-4
    )
    # beside vectors they are of those vectors' tokens
    beside = agrame.query_encoder()(frame).assign(query_weights=frame["qid"].map(weights))
    np.testing.assert_allclose(agrame.unit_scorer()(beside)["score"], plain["score"], atol=1e-5)
    with pytest.raises(ValueError, match="a second marker makes two"):
        mv.AGRaME(marked).unit_scorer()(frame.assign(query_weights=frame["qid"].map(weights)))
    with pytest.raises(ValueError, match="query_spans name parts"):
        agrame.unit_scorer()(frame.assign(query_weights=1, query_spans=[[(0, 5)]] * len(frame)))


@pytest.mark.parametrize("found", [[(0, 3, 4)], [(0, 99)], [(3, 3)]])
def test_a_splitter_of_ones_own_is_checked(tiny_encoder, found):
    class Wrong:
        def split(self, text):
            return found

    with pytest.raises(ValueError, match="Wrong object at .* of the text"):
        mv.AGRaME(tiny_encoder, unit=Wrong()).unit_scorer()(candidates())


def test_windows_may_overlap_and_spans_be_read_once(tiny_encoder, agrame):
    out = mv.AGRaME(tiny_encoder, unit=mv.Phrases(3, stride=1)).unit_scorer()(candidates())
    assert out[(out["qid"] == "1") & (out["parent_docno"] == "p2")]["text"].tolist() == ["The sky is", "sky is blue."]
    one = candidates()[lambda f: f["docno"] == "p1"]
    lazy = one.assign(spans=[(s for s in [(0, 9), (13, 21)]) for _ in range(len(one))])
    assert agrame.unit_scorer()(lazy)["text"].tolist() == ["A cat sat", "the mat."] * 2
