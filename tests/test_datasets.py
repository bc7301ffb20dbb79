import re

import pandas as pd
import pyterrier as pt
import pytest
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from pyterrier_mvret.datasets import Limit, Mini


@pytest.fixture(scope="module")
def mini():
    return pt.get_dataset("mvret:mini")


def test_mini_is_as_large_and_as_varied_as_it_says(mini):
    documents = list(mini.get_corpus_iter(verbose=False))
    topics = mini.get_topics()
    assert len(documents) >= 300
    assert len(topics) >= 80
    assert topics["kind"].value_counts().to_dict() == {
        "question": 54, "keywords": 48, "paraphrase": 24, "two-attribute": 18
    }  # fmt: skip
    assert {len(d["spans"]) for d in documents} == {3, 4, 5, 6}


def test_mini_names_and_texts_are_sound(mini):
    documents = list(mini.get_corpus_iter(verbose=False))
    docnos = [d["docno"] for d in documents]
    assert len(set(docnos)) == len(docnos)
    assert len({d["text"] for d in documents}) == len(documents)
    for d in documents:
        assert re.fullmatch(r"[a-z]{3}-[a-z0-9-]+", d["docno"])
        assert d["text"] == d["text"].strip()
        assert "  " not in d["text"]
        sentences = [d["text"][a:b] for a, b in d["spans"]]
        assert " ".join(sentences) == d["text"]
        assert all(s[-1] in ".!?\"'”’)" for s in sentences)


def test_mini_labels_point_at_what_exists(mini):
    documents = {d["docno"]: d for d in mini.get_corpus_iter(verbose=False)}
    topics, qrels, sentences = mini.get_topics(), mini.get_qrels(), mini.get_qrels("sentences")
    assert topics["qid"].is_unique
    assert topics["query"].is_unique
    assert set(qrels["docno"]) <= set(documents)
    assert set(qrels["qid"]) == set(topics["qid"])
    assert set(qrels["label"]) == {0, 1, 2}
    assert not qrels.duplicated(["qid", "docno"]).any()
    assert (qrels[qrels["label"] == 2].groupby("qid").size().reindex(topics["qid"]) >= 1).all()
    assert not sentences.duplicated(["qid", "docno"]).any()
    for row in sentences.itertuples():
        parent, _, i = row.docno.partition("%s")
        assert parent == row.parent_docno
        assert documents[parent]["spans"][int(i)] == [row.start, row.end]
    # a passage is relevant if and only if some sentence of it is, and no sentence more than its passage
    best = sentences.groupby(["qid", "parent_docno"])["label"].max()
    relevant = qrels[qrels["label"] > 0].set_index(["qid", "docno"])["label"]
    assert set(best.index) == set(relevant.index)
    assert all(best[key] <= relevant[key] for key in best.index)


def test_paraphrases_share_no_word_with_their_answer(mini):
    texts = {d["docno"]: d["text"] for d in mini.get_corpus_iter(verbose=False)}
    qrels = mini.get_qrels()

    def words(text):
        return {w for w in re.findall(r"[a-z]+", text.lower()) if w not in {*ENGLISH_STOP_WORDS, "does"} and len(w) > 2}

    for topic in mini.get_topics("paraphrase").itertuples():
        answers = qrels[(qrels["qid"] == topic.qid) & (qrels["label"] == 2)]["docno"]
        for docno in answers:
            assert not words(topic.query) & words(texts[docno]), (topic.query, docno)


def test_mini_variants(mini):
    natural, adversarial = mini.get_topics("natural"), mini.get_topics("adversarial")
    assert len(natural) + len(adversarial) == len(mini.get_topics())
    assert set(mini.get_topics("keywords")["kind"]) == {"keywords"}
    with pytest.raises(ValueError, match="topic variants natural, adversarial"):
        mini.get_topics("hard")
    with pytest.raises(ValueError, match="'sentences'"):
        mini.get_qrels("words")
    assert isinstance(Mini().get_topics(), pd.DataFrame)


def test_limit_has_two_relevant_documents_a_query_and_every_pair_once():
    limit = Limit(docs=200, queries=100, likings=12, seed=3)
    documents = {d["docno"]: d["text"] for d in limit.get_corpus_iter(verbose=False)}
    topics, qrels = limit.get_topics(), limit.get_qrels()
    assert len(documents) == 200
    assert len(topics) == topics["query"].nunique() == 100
    pairs = qrels.groupby("qid")["docno"].agg(frozenset)
    assert set(pairs.map(len)) == {2}
    assert pairs.nunique() == 100
    assert len(set().union(*pairs)) <= 15  # the smallest core with a hundred pairs
    for topic in topics.itertuples():
        thing = re.fullmatch(r"Who likes (.+)\?", topic.query)[1]
        who = {d for d, text in documents.items() if re.search(rf"(likes|,|and) {thing}(,| and|\.)", text)}
        assert who == set(pairs[topic.qid])
    names = [text.partition(" likes ")[0] for text in documents.values()]
    assert len(set(names)) == 200


def test_limit_is_the_same_again_and_another_with_another_seed():
    a, b, c = Limit(60, 20, 10, 1), Limit(60, 20, 10, 1), Limit(60, 20, 10, 2)
    assert list(a.get_corpus_iter(verbose=False)) == list(b.get_corpus_iter(verbose=False))
    assert list(a.get_corpus_iter(verbose=False)) != list(c.get_corpus_iter(verbose=False))
    pd.testing.assert_frame_equal(a.get_qrels(), b.get_qrels())


def test_names_and_settings_of_limit():
    limit = pt.get_dataset("mvret:limit/docs=60,queries=20,seed=7")
    assert (limit.docs, limit.queries, limit.seed) == (60, 20, 7)
    assert len(pt.get_dataset("mvret:limit").get_topics()) == 500
    for wrong in ("mvret:nothing", "mvret:limit/colour=3", "mvret:limit/docs=many", "mvret:mini/docs=3"):
        with pytest.raises(KeyError):
            pt.get_dataset(wrong)
    with pytest.raises(ValueError, match="too few"):
        Limit(docs=10, queries=1000)
    with pytest.raises(ValueError, match="things to like"):
        Limit(docs=50000, queries=9000)
    assert {"mvret:mini", "mvret:limit"} <= set(pt.list_datasets()["dataset"])


def test_settings_that_limit_cannot_have():
    with pytest.raises(ValueError, match="likings must be at least 2"):
        Limit(likings=1)
    with pytest.raises(ValueError, match="one set of qrels"):
        Limit(60, 20, 10).get_qrels("bogus")
