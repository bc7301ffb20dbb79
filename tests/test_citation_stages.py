"""Citing, beside its definition in loops; the worked example is AGRaME's specification of PropCite by numbers."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.citation_stages import top_passages
from pyterrier_mvret.encoders.propositions import proposition_spans
from pyterrier_mvret.scoring import EMPTY_DOCUMENT, UnitRows, unit_scores

PASSAGES = {
    "p2": "The sky is blue. It fell.",
    "p1": "A cat sat on the mat.",
    "p3": "",
    "p4": "The dog ran fast in the rain.",
}
ANSWERS = {"1": "The cat sat and the dog ran fast. The sky is blue.", "2": "It was the rain."}
PROPOSITIONS = {"1": [["the cat sat", "The dog ran fast."], [[(4, 11)]]], "2": [["It was", [(7, 15)], "was rain"]]}


def contexts(**columns) -> pd.DataFrame:
    """Both queries with all passages; a column is one value a query."""
    columns = {"query": {"1": "who", "2": "what"}, "qanswer": ANSWERS, **columns}
    rows = [
        {"qid": qid, **{name: of[qid] for name, of in columns.items()}, "docno": docno, "text": text, "score": 1.0}
        for qid in ANSWERS
        for docno, text in PASSAGES.items()
    ]
    return pd.DataFrame(rows).assign(rank=0)


@pytest.fixture(scope="module")
def agrame(tiny_encoder):
    return mv.AGRaME(tiny_encoder)


@pytest.fixture(scope="module")
def index(agrame, tmp_path_factory):
    index = mv.MultiVecIndex(tmp_path_factory.mktemp("cite") / "x.mv", dtype="float32")
    (agrame.doc_encoder() >> index).index([{"docno": d, "text": t} for d, t in PASSAGES.items()])
    return index


def reference(encoder, answer, propositions, margin):
    """What each sentence cites, by the definition: (sentence, docno) to score, margin and proposition numbers."""
    found = {}
    for number, (start, end) in enumerate(mv.Sentences().split(answer)):
        sentence = answer[start:end]
        q = encoder.encode_queries([sentence], whole=True)
        for part, spans in enumerate(proposition_spans(propositions[number], sentence)):
            rows = [i for i, (a, b) in enumerate(q.spans) if a < b and any(s <= a and b <= e for s, e in spans)]
            scores = {}
            for docno, text in PASSAGES.items():
                d = encoder.encode_docs([text]).vectors
                scores[docno] = sum(max(q.vectors[i] @ y for y in d) for i in rows)
            best, second = sorted(scores, key=scores.get, reverse=True)[:2]
            ahead = scores[best] - scores[second]
            if margin is None or ahead >= margin:
                score, most, parts = found.get((number, best), (-np.inf, -np.inf, []))
                found[number, best] = (max(score, scores[best]), max(most, ahead), [*parts, part])
    return found


@pytest.mark.parametrize("stored", [False, True], ids=["text", "index"])
@pytest.mark.parametrize("margin", [None, 0.05])
@pytest.mark.parametrize("segmented", [True, False], ids=["propositions", "sentences"])
def test_each_proposition_cites_where_its_tokens_find_most(agrame, index, tiny_encoder, segmented, margin, stored):
    frame = contexts(qpropositions=PROPOSITIONS) if segmented else contexts()
    if stored:
        frame = frame.drop(columns="text")
    out = agrame.cite(index if stored else None, margin=margin)(frame)
    assert out["score"].between(0, 20).all()
    for qid, answer in ANSWERS.items():
        whole = [[[(0, end - start)]] for start, end in mv.Sentences().split(answer)]
        expected = reference(tiny_encoder, answer, PROPOSITIONS[qid] if segmented else whole, margin)
        mine = {(row.sentence_id, row.docno): row for row in out[out["qid"] == qid].itertuples()}
        assert mine.keys() == expected.keys()
        for key, (score, ahead, parts) in expected.items():
            row = mine[key]
            assert (row.score, row.margin) == pytest.approx((score, ahead), abs=1e-5)
            assert row.propositions == parts
            assert row.sentence == answer[row.sentence_start : row.sentence_end]
            assert stored or row.text == PASSAGES[row.docno]


def test_the_worked_example():
    """Rows e1 to e4 of a sentence; the first two are one proposition, the others the other."""
    passages = [[[1, 0, 0, 0], [0, 0.9, 0, 0]], [[0.2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0.6]], [[0.4] * 4]]
    vectors, offsets = np.concatenate(passages), np.array([0, 2, 5, 6])
    parts = UnitRows.of([[0, 1], [2, 3], [0, 1, 2, 3]]).members(4)
    scores = unit_scores(np.eye(4), vectors, UnitRows.of_runs(offsets[:-1], offsets[1:]), weights=parts)
    np.testing.assert_allclose(scores, [[1.9, 0.2, 0.8], [0.0, 1.6, 0.8], [1.9, 1.8, 1.6]], atol=1e-6)
    best, ahead = top_passages(scores[:2])
    assert best.tolist() == [0, 1]
    np.testing.assert_allclose(ahead, [1.1, 0.8], atol=1e-6)
    assert top_passages(scores[:2], margin=1.0)[0].tolist() == [0, -1]
    assert top_passages(scores[2:])[0].tolist() == [0]  # the whole sentence


SCORES = st.integers(1, 4).flatmap(
    lambda wide: st.lists(st.lists(st.sampled_from([0.0, 0.5, 2.0, EMPTY_DOCUMENT]), min_size=wide, max_size=wide))
)


@given(SCORES, st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_top_passages_in_loops(rows, margin):
    best, ahead = top_passages(np.array(rows).reshape(len(rows), -1) if rows else np.empty((0, 2)), margin)
    assert len(best) == len(rows)
    for row, one, by in zip(rows, best, ahead):
        scored = sorted((s for s in row if s > EMPTY_DOCUMENT), reverse=True)
        if not scored:
            assert one == -1
            continue
        expected = scored[0] - scored[1] if len(scored) > 1 else np.inf
        assert by == expected
        assert one == (row.index(scored[0]) if expected >= (margin or 0) else -1)


def test_parts_of_a_sentence_add_up(agrame, tiny_encoder):
    """Property P4: scores are sums over the query's tokens."""
    one = contexts()[lambda f: (f["qid"] == "1") & (f["docno"] == "p1")].assign(qanswer="The cat sat on a mat")
    parts = agrame.cite()(one.assign(qpropositions=[[["The cat sat", "on a mat"]]]))
    both = agrame.cite()(one)
    halves = [agrame.cite()(one.assign(qpropositions=[[[half]]]))["score"][0] for half in ("the cat sat", "on a mat")]
    assert parts["score"].tolist() == [max(halves)]
    assert both["score"][0] == pytest.approx(sum(halves), abs=1e-5)


def test_a_sentence_is_encoded_whole_and_without_expansion(tiny):
    """Tokens beyond the query length are there, so a proposition at the end finds its passage by its own rows."""
    words = " ".join(["a cat sat on the mat"] * 8 + ["the dog ran"])
    frame = pd.DataFrame({"qid": "1", "docno": ["p1"], "text": ["the dog ran"], "qanswer": [[words]]})
    scores = [
        mv.AGRaME(tiny, query_length=8, query_expansion=on, device="cpu").cite(propositions=lambda s: ["the dog ran"])
        for on in (True, False)
    ]
    one, two = (cite(frame) for cite in scores)
    assert one["score"][0] == pytest.approx(two["score"][0], abs=1e-5)
    assert 0 < one["score"][0] <= 3 + 1e-5


def test_a_function_may_say_the_propositions(agrame):
    asked = []

    def segment(sentence):
        asked.append(sentence)
        return sentence.split(" and ")

    frame = contexts(qanswer={"1": ANSWERS["1"], "2": ANSWERS["1"]})
    out = agrame.cite(propositions=segment)(frame)
    assert asked == ["The cat sat and the dog ran fast.", "The sky is blue."]  # once each
    halves = [["The cat sat", "the dog ran fast."], ["The sky is blue."]]
    pd.testing.assert_frame_equal(out, agrame.cite()(frame.assign(qpropositions=[halves] * len(frame)))[out.columns])
    given = agrame.cite(propositions=segment)(contexts(qpropositions=PROPOSITIONS))
    pd.testing.assert_frame_equal(given, agrame.cite()(contexts(qpropositions=PROPOSITIONS)))  # the column goes first


def test_answers_may_be_lists_of_sentences(agrame):
    cut = {qid: [text[a:b] for a, b in mv.Sentences().split(text)] for qid, text in ANSWERS.items()}
    out, expected = agrame.cite()(contexts(qanswer=cut)), agrame.cite()(contexts())
    pd.testing.assert_frame_equal(out.drop(columns="qanswer"), expected.drop(columns="qanswer"))
    arrays = {qid: np.array(sentences, dtype=object) for qid, sentences in cut.items()}
    again = agrame.cite()(contexts(qanswer=arrays))
    copies = contexts(qanswer=arrays).assign(qanswer=lambda f: [a.copy() for a in f["qanswer"]])
    pd.testing.assert_frame_equal(agrame.cite()(copies).drop(columns="qanswer"), expected.drop(columns="qanswer"))
    pd.testing.assert_frame_equal(again.drop(columns="qanswer"), expected.drop(columns="qanswer"))


def test_another_splitter_of_answers(agrame):
    out = agrame.cite(splitter="text")(contexts())
    assert out["sentence"].tolist() == list(ANSWERS.values())


def test_a_larger_margin_drops_citations_and_so_does_the_column(agrame):
    frame = contexts(qpropositions=PROPOSITIONS)
    every = agrame.cite()(frame)
    margin = every["margin"].median()
    fewer = agrame.cite(margin=margin)(frame)
    assert 0 < len(fewer) < len(every)
    kept = every[every["margin"] >= margin]
    key = ["qid", "sentence_id", "docno", "margin"]
    assert fewer[key].to_numpy().tolist() == kept[key].to_numpy().tolist()


def test_a_single_passage_is_cited_whatever_the_margin(agrame):
    out = agrame.cite(margin=1e6)(contexts().groupby("qid").head(1))
    assert out["docno"].tolist() == ["p2"] * 3
    assert np.isinf(out["margin"]).all()


def test_passages_of_equal_text_tie_and_the_first_docno_is_cited(agrame):
    twins = contexts()[lambda f: f["docno"] == "p4"]
    frame = pd.concat([twins.assign(docno="b"), twins.assign(docno="a"), contexts()[lambda f: f["docno"] == "p3"]])
    out = agrame.cite()(frame)
    assert set(out["docno"]) <= {"a", "p3"}
    assert "a" in set(out["docno"])
    assert (out[out["docno"] == "a"]["margin"] == 0).all()
    assert set(agrame.cite(margin=1e-9)(frame)["docno"]) <= {"p3"}


def test_a_passage_that_is_there_twice_counts_once(agrame):
    frame = contexts()
    twice = pd.concat([frame, frame])
    pd.testing.assert_frame_equal(agrame.cite()(twice), agrame.cite()(frame))
    with pytest.raises(ValueError, match="passage 'p1' of query '1' has two different texts"):
        agrame.cite()(pd.concat([frame, frame.assign(text="another")[lambda f: f["docno"] == "p1"]]))


def test_a_proposition_without_tokens_cites_nothing_and_says_so(agrame, index):
    lost = {"1": [["nobody knows", "the cat"], []], "2": [["it"]]}
    with pytest.warns(UserWarning, match="1 of 3 propositions have no token .* first of 'The cat sat and"):
        out = agrame.cite()(contexts(qpropositions=lost))
    assert [(row.qid, row.sentence_id, row.propositions) for row in out.itertuples()] == [("1", 0, [1]), ("2", 0, [0])]
    with pytest.warns(UserWarning, match="2 of 3 propositions have no token"):
        blank = agrame.cite()(contexts(qanswer={"1": ["", "The sky", " "], "2": []}))
    assert blank[["qid", "sentence_id", "sentence_start", "sentence_end"]].to_numpy().tolist() == [["1", 1, 1, 8]]
    cut = "a cat sat on the mat " * 20 + "the dog"
    with pytest.warns(UserWarning, match="it is cut off"):
        mine = {"1": [[[(0, 5)], [(len(cut) - 3, len(cut))]]], "2": [["it"]]}
        out = agrame.cite(index)(contexts(qanswer={"1": [cut], "2": ["it"]}, qpropositions=mine))
    assert out["propositions"].tolist() == [[0], [0]]


@pytest.mark.parametrize("stored", [False, True], ids=["text", "index"])
def test_empty_answers_cite_nothing(agrame, index, stored):
    cite = agrame.cite(index if stored else None)
    nothing = cite(contexts(qanswer={"1": "", "2": " \n"}))
    some = cite(contexts(qanswer={"1": "", "2": ANSWERS["2"]}))
    assert len(nothing) == 0
    assert list(nothing.columns) == list(some.columns)
    assert (nothing.dtypes == some.dtypes).all()
    assert set(some["qid"]) == {"2"}


def test_an_answer_may_be_missing_in_some_rows_but_not_in_all(agrame):
    frame = contexts()
    holes = frame.assign(qanswer=[None if i % 4 else a for i, a in enumerate(frame["qanswer"])])
    columns = ["qid", "docno", "sentence_id", "score"]
    pd.testing.assert_frame_equal(agrame.cite()(holes)[columns], agrame.cite()(frame)[columns])
    with pytest.raises(ValueError, match="'qanswer' has no value in any row of query '2'"):
        agrame.cite()(contexts(qanswer={"1": "a cat", "2": float("nan")}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(qanswer=[f"a{i}" for i in range(len(f))]), "query '1' has two different values of qanswer"),
        (
            lambda f: f.assign(qpropositions=[[["a"], [f"sky {i}"]] for i in range(len(f))]),
            "query '1' has two different values of qpropositions",
        ),
        (lambda f: f.assign(qanswer=3), "qanswer of query '1' must be a string or a list of sentences, got .*3"),
        (lambda f: f.assign(qanswer=[["a", "\ud83d"]] * len(f)), "qanswer of query '1' must be a string or a list"),
        (lambda f: f.assign(qanswer=[["a", 3]] * len(f)), "qanswer of query '1' must be a string or a list"),
        (lambda f: f.assign(text=None), "column 'text' must hold a string"),
        (lambda f: f.assign(docno=1), "a docno must be a string, got 1"),
        (lambda f: f.assign(qpropositions=[[["cat"]]] * len(f)), "propositions of query '1': expected 2 lists"),
        (lambda f: f.assign(qpropositions="cat"), "propositions of query '1': expected 2 lists"),
        (lambda f: f.assign(qpropositions=[[["cat"], "sky"]] * len(f)), "query '1': expected a list of propositions"),
        (lambda f: f.assign(qpropositions=[[[[(0, 99)]], []]] * len(f)), "query '1': .* leaves its text"),
        (lambda f: f.assign(qpropositions=None), "'qpropositions' has no value in any row of query '1'"),
    ],
)
def test_bad_input_is_named(agrame, change, message):
    with pytest.raises(ValueError, match=message):
        agrame.cite()(change(contexts()))


def test_bad_settings_are_named(agrame, index, minilm):
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="margin must be a finite number"):
            agrame.cite(margin=wrong)
    with pytest.raises(ValueError, match="propositions must be a function"):
        agrame.cite(propositions=["a cat"])
    with pytest.raises(ValueError, match="a unit is one of"):
        agrame.cite(splitter="clause")
    other = mv.AGRaME(minilm)
    with pytest.raises(ValueError, match="the model"):
        other.cite(index)(contexts())
    with pytest.raises(ValueError, match="are not in"):
        agrame.cite(index)(contexts().assign(docno="unknown"))


def test_citations_are_evaluated_though_a_passage_may_be_cited_twice(agrame):
    out = agrame.cite()(contexts(qanswer={"1": "The dog ran. The dog ran.", "2": "It is blue."}))
    first = out[out["qid"] == "1"]
    assert first["docno"].nunique() == 1
    assert first["sentence_id"].tolist() == first["rank"].tolist() == [0, 1]
    qrels = pd.DataFrame({"qid": ["1", "2"], "docno": [first["docno"][0], "unseen"], "label": 1})
    measured = [pt.Evaluate(run, qrels, metrics=["P_1", "map"]) for run in (out, out.drop_duplicates(["qid", "docno"]))]
    assert measured[0] == measured[1] == {"P_1": 0.5, "map": 0.5}
    assert pt.model.query_columns(out) == ["qid", "query", "qanswer"]


def test_answers_of_a_reader_join_passages(agrame):
    """What PyTerrier-RAG's Reader returns: a row a query."""
    read = pd.DataFrame([{"qid": q, "query": "who", "prompt": "...", "qanswer": a} for q, a in ANSWERS.items()])
    passages = contexts().drop(columns="qanswer")
    out = agrame.cite()(passages.merge(read[["qid", "qanswer"]], on="qid"))
    expected = agrame.cite()(contexts())
    pd.testing.assert_frame_equal(out[expected.columns], expected)
    sentences = mv.citation.cited_sentences(out, read)
    assert sentences["sentence"].tolist() == [
        "The cat sat and the dog ran fast.",
        "The sky is blue.",
        "It was the rain.",
    ]
    assert sentences["docnos"].map(len).tolist() == [1, 1, 1]


def test_passages_may_be_pooled_but_not_sentences(tiny):
    """Of a passage every vector is scored, whatever it stands for."""
    pooled = mv.AGRaME(tiny, token_pooling=2, device="cpu")
    out = pooled.cite()(contexts())
    assert len(out) == 3
    whole = mv.AGRaME(tiny, device="cpu").cite()(contexts())
    assert not np.allclose(out["score"], whole["score"])


def test_answers_are_encoded_block_by_block(agrame, monkeypatch):
    """So that as many sentences are held as belong to the passages that are."""
    lost = {"1": [["nobody knows", "the cat"], []], "2": [["it", "who knows"]]}
    asked = []

    def encode(self, texts, *args, **kwargs):
        asked.append(len(texts))
        return encode_queries(self, texts, *args, **kwargs)

    with pytest.warns(UserWarning, match="2 of 4 propositions"):
        expected = agrame.cite()(contexts(qpropositions=lost))
    encode_queries = mv.TokenEncoder.encode_queries
    monkeypatch.setattr(mv.TokenEncoder, "encode_queries", encode)
    monkeypatch.setattr("pyterrier_mvret.encoders.stages._TEXTS_A_BLOCK", 1)
    with pytest.warns(UserWarning, match="2 of 4 propositions .* first of 'The cat sat and") as warned:
        out = agrame.cite()(contexts(qpropositions=lost))
    pd.testing.assert_frame_equal(out, expected)
    assert asked == [2, 1]
    assert len(warned) == 1


def test_an_index_of_another_model_is_refused_before_any_work(index, minilm, monkeypatch):
    monkeypatch.setattr(mv.TokenEncoder, "encode_queries", lambda *_, **__: pytest.fail("encoded"))
    with pytest.raises(ValueError, match="the model"):
        mv.AGRaME(minilm).cite(index)(contexts())


def test_the_best_passage_of_a_sentence_comes_first(minilm):
    frame = pd.DataFrame({"qid": "1", "docno": ["a", "b"], "text": ["Cats purr.", "Dogs run fast in the rain."]})
    frame["qanswer"] = "Cats purr and dogs run fast in the rain."
    out = mv.AGRaME(minilm).cite(propositions=lambda sentence: sentence.split(" and "))(frame)
    assert out["docno"].tolist() == ["b", "a"]
    assert out["propositions"].tolist() == [[1], [0]]
    assert out["rank"].tolist() == [0, 1]
