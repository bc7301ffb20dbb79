"""Collections under the prefix ``mvret:``: one written for this project, and a generator of LIMIT-style ones."""

import itertools
import json
import random
import re
import string
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from importlib import resources
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt
from pyterrier.datasets import Dataset
from pyterrier.datasets import DatasetProvider as _Provider


class Mini(Dataset):
    """``mvret:mini``: passages of three to six sentences, topics of several kinds, graded and sentence labels.

    Written for this project. Look-alike passages use the same words for something else, or other words for the same.
    Each topic's pool (the writer's candidates and the best documents of BM25, of MiniLM's cosine and of its MaxSim) was
    read by the writer and again by a second reader who did not see the first labels: 2,312 pairs, 99.0 % alike,
    Cohen's kappa 0.95; the 24 differences were settled by reading once more
    (``benchmarks/mini_agreement.py``). What is not in a pool has no label. Text and both readings are the work of
    language models; no person has assessed the collection.

    ``get_topics()`` has ``qid``, ``query``, ``kind`` (keywords, question, paraphrase, two-attribute) and ``style``
    (``natural``, or ``adversarial`` where words were chosen to mislead); variants of that name select. ``get_qrels()``
    has labels 0 to 2; ``get_qrels("sentences")`` labels sentences, named ``docno%s<i>``, with their characters
    ``[start, end)``: the passage's label where both readers chose the sentence, 1 where one did.

    >>> mini = pt.get_dataset("mvret:mini")
    >>> len(list(mini.get_corpus_iter(verbose=False))), len(mini.get_topics()) >= 80
    (324, True)
    """

    _VARIANTS = ("natural", "adversarial", "keywords", "question", "paraphrase", "two-attribute")

    @cached_property
    def _content(self) -> dict[str, list[dict[str, Any]]]:
        folder = resources.files("pyterrier_mvret") / "data" / "mini"
        return {
            name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
            for name in ("documents", "topics")
        }

    def get_corpus_iter(self, *, verbose: bool = True) -> Iterator[dict[str, Any]]:
        """Documents with ``docno``, ``text`` and ``spans`` (characters [start, end) of each sentence)."""
        documents = self._content["documents"]
        for document in pt.tqdm(documents, desc="mvret:mini documents", disable=not verbose):
            text, spans = _join(document["sentences"])
            yield {"docno": document["docno"], "text": text, "spans": spans}

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Topics; ``variant`` selects a kind or a style."""
        if variant is not None and variant not in self._VARIANTS:
            raise ValueError(f"mvret:mini has topic variants {', '.join(self._VARIANTS)}; got {variant!r}")
        columns = ["qid", "query", "kind", "style"]
        topics = pd.DataFrame([{c: t[c] for c in columns} for t in self._content["topics"]], columns=columns)
        if variant is not None:
            topics = topics[(topics["kind"] == variant) | (topics["style"] == variant)].reset_index(drop=True)
        return topics

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Passage labels, or with ``"sentences"`` sentence labels."""
        if variant not in (None, "sentences"):
            raise ValueError(f"mvret:mini has qrels None (passages) and 'sentences'; got {variant!r}")
        labels = [(t["qid"], *label) for t in self._content["topics"] for label in t["labels"]]
        if variant is None:
            return pd.DataFrame([label[:3] for label in labels], columns=["qid", "docno", "label"])
        spans = {d["docno"]: _join(d["sentences"])[1] for d in self._content["documents"]}
        rows = [
            (qid, f"{docno}%s{i}", label, docno, *spans[docno][int(i)])
            for qid, docno, _, sentences in labels
            for i, label in sentences.items()
        ]
        return pd.DataFrame(rows, columns=["qid", "docno", "label", "parent_docno", "start", "end"])

    def get_corpus_lang(self) -> str:
        """English."""
        return "en"

    def get_topics_lang(self) -> str:
        """English."""
        return "en"


def _join(sentences: list[str]) -> tuple[str, list[list[int]]]:
    """The text of a passage and where its sentences lie in it."""
    ends = list(itertools.accumulate(len(s) + 1 for s in sentences))
    return " ".join(sentences), [[end - 1 - len(s), end - 1] for end, s in zip(ends, sentences, strict=True)]


@cache
def _words() -> dict[str, list[str]]:
    """Made-up people's names, and the parts of what they like."""
    return json.loads((resources.files("pyterrier_mvret") / "data" / "limit_words.json").read_text("utf-8"))


class Limit(Dataset):
    """``mvret:limit``: a LIMIT-style collection of any size, always the same for the same settings.

    After Weller et al. 2025, "On the Theoretical Limitations of Embedding-Based Retrieval": documents list what a
    person likes, a query asks who likes one thing, and every pair of a small core of documents is the answer of some
    query, which few dimensions cannot express. Exactly two documents are relevant to a query. Names and likings are
    made up here; figures are not comparable with those of the published collection.

    Args:
        docs: documents in all; those outside the core like only what nobody asks for.
        queries: queries; the core is the smallest with so many pairs.
        likings: things each person likes, about.
        seed: of the draw.

    >>> limit = Limit(docs=60, queries=20, likings=10, seed=1)
    >>> limit.get_topics()["query"][0], int(limit.get_qrels().groupby("qid").size().min())
    ('Who likes Persian pears?', 2)
    """

    def __init__(self, docs: int = 1000, queries: int = 500, likings: int = 45, seed: int = 0):
        self.docs, self.queries, self.likings, self.seed = docs, queries, likings, seed
        core = next(n for n in itertools.count(2) if n * (n - 1) // 2 >= queries)
        if queries < 1 or core > docs:
            raise ValueError(f"{queries} queries need pairs of {core} documents; docs={docs} is too few")
        people, things = self._people(), self._things()
        if docs > len(people):
            raise ValueError(f"docs={docs}: there are names for {len(people)}")
        if queries + 4 * likings > len(things):
            raise ValueError(f"queries={queries}: there are {len(things)} things to like")
        if likings < 2:
            raise ValueError(f"likings must be at least 2, got {likings}")
        self._core = core

    @staticmethod
    def _things() -> list[str]:
        return [f"{adjective} {noun}" for adjective in _words()["adjectives"] for noun in _words()["nouns"]]

    @staticmethod
    def _people() -> list[str]:
        initials = ["", *(f"{letter}. " for letter in string.ascii_uppercase)]
        return [
            f"{first} {initial}{last}"
            for initial in initials
            for first in _words()["first_names"]
            for last in _words()["last_names"]
        ]

    @cached_property
    def _content(self) -> tuple[list[dict[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
        rng = random.Random(self.seed)
        things = self._things()
        rng.shuffle(things)
        asked, others = things[: self.queries], things[self.queries :]
        names = rng.sample(self._people(), self.docs)
        pairs = rng.sample(list(itertools.combinations(range(self._core), 2)), self.queries)
        likes: list[list[str]] = [[] for _ in range(self.docs)]
        for thing, pair in zip(asked, pairs, strict=True):
            for document in pair:
                likes[document].append(thing)
        place = rng.sample(range(self.docs), self.docs)  # the core stands anywhere
        documents = []
        for i in range(self.docs):
            mine = likes[i] + rng.sample(others, max(0, self.likings - len(likes[i])))
            rng.shuffle(mine)
            documents.append((place[i], f"{names[i]} likes {', '.join(mine[:-1])} and {mine[-1]}."))
        corpus = [{"docno": f"p{at}", "text": text} for at, text in sorted(documents)]
        topics = [(f"q{i}", f"Who likes {thing}?") for i, thing in enumerate(asked)]
        qrels = [(f"q{i}", f"p{place[document]}") for i, pair in enumerate(pairs) for document in pair]
        return corpus, topics, qrels

    def get_corpus_iter(self, *, verbose: bool = True) -> Iterator[dict[str, Any]]:
        """Documents with ``docno`` and ``text``."""
        yield from pt.tqdm(self._content[0], desc="mvret:limit documents", disable=not verbose)

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Topics with ``qid`` and ``query``."""
        if variant is not None:
            raise ValueError(f"mvret:limit has one set of topics; got {variant!r}")
        return pd.DataFrame(self._content[1], columns=["qid", "query"])

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Two documents a query, label 1."""
        if variant is not None:
            raise ValueError(f"mvret:limit has one set of qrels; got {variant!r}")
        return pd.DataFrame(self._content[2], columns=["qid", "docno"]).assign(label=1)

    def get_corpus_lang(self) -> str:
        """English."""
        return "en"

    def get_topics_lang(self) -> str:
        """English."""
        return "en"


class DatasetProvider(_Provider):
    """What ``pt.get_dataset("mvret:...")`` finds.

    ``mvret:mini``; ``mvret:limit``, or with settings ``mvret:limit/docs=50000,queries=1000,seed=7``.

    >>> len(pt.get_dataset("mvret:limit/docs=60,queries=20,seed=7").get_topics())
    20
    """

    _NAMES: ClassVar[dict[str, Callable[..., Dataset]]] = {"mini": Mini, "limit": Limit}

    def get_dataset(self, name: str) -> Dataset:
        """The dataset.

        Raises:
            KeyError: no such name, or a setting it does not have.
        """
        base, _, settings = name.partition("/")
        if base not in self._NAMES or (settings and not re.fullmatch(r"(\w+=\d+)(,\w+=\d+)*", settings)):
            raise KeyError(f"no dataset mvret:{name}; there are mvret:mini and mvret:limit[/docs=N,queries=N,seed=N]")
        arguments = {k: int(v) for k, _, v in (s.partition("=") for s in settings.split(",") if s)}
        try:
            return self._NAMES[base](**arguments)
        except TypeError as error:
            raise KeyError(f"mvret:{name}: {error}") from None

    def list_dataset_names(self) -> list[str]:
        """The names without settings."""
        return list(self._NAMES)
