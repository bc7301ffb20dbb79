"""From PyTerrier's frames to training sets: one format, a ``datasets.Dataset`` with one row a positive document.

| column | type | |
|---|---|---|
| ``qid`` | string | the topic |
| ``docnos`` | list of strings | the row's documents: the positive, then the negatives |
| ``query`` | string | |
| ``positive`` | string | text of the first document |
| ``negative_1`` ... ``negative_n`` | string | texts of the others; none in sets of pairs |
| ``scores`` | list of floats | a teacher's scores, one a document, if :func:`with_teacher` added them |

Columns from ``query`` on are what sentence-transformers' losses read, in their order; the first two say what a row is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders.splitters import checked_spans

if TYPE_CHECKING:
    from datasets import Dataset

Docs = Any  # a frame, a mapping docno -> text, a PyTerrier dataset, an iterable of dicts or of objects


def pairs(topics: pd.DataFrame, qrels: pd.DataFrame, docs: Docs, *, min_label: int = 1) -> "Dataset":
    """One row a relevant document: the training set of in-batch contrastive learning.

    Args:
        topics: ``qid``, ``query``; topics without a relevant document are left out.
        qrels: ``qid``, ``docno``, ``label``.
        docs: texts: a frame or an iterable of dicts (or of objects) with ``docno`` and ``text``, a mapping from docno
            to text, or a PyTerrier dataset. A stream is read once and only what is needed is kept.
        min_label: the least label of a relevant document.

    Raises:
        ValueError: a topic twice, a document judged in two ways, a relevant document that ``docs`` lacks, no row at
            all.

    >>> import pyterrier_mvret as mv
    >>> topics = pd.DataFrame({"qid": ["1"], "query": ["feline pets"]})
    >>> qrels = pd.DataFrame({"qid": ["1", "1"], "docno": ["a", "b"], "label": [1, 0]})
    >>> mv.training.pairs(topics, qrels, {"a": "Cats purr.", "b": "Rates rose."})[0]
    {'qid': '1', 'docnos': ['a'], 'query': 'feline pets', 'positive': 'Cats purr.'}
    """
    chosen = [
        (qid, query, [docno]) for qid, query, relevant in _relevant(topics, qrels, min_label) for docno in relevant
    ]
    return _dataset(chosen, docs)


def groups(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    run: "pd.DataFrame | pt.Transformer",
    n: int = 7,
    docs: Docs = None,
    *,
    depth: int = 100,
    skip: int = 0,
    pick: Literal["random", "top"] = "random",
    short: Literal["error", "drop"] = "error",
    min_label: int = 1,
    seed: int = 0,
) -> "Dataset":
    """One row a relevant document, with hard negatives: what a ranking found for the query that is not relevant.

    Args:
        topics: as for :func:`pairs`.
        qrels: as for :func:`pairs`.
        run: a pipeline to mine with (BM25, the model's own index), or the frame that one returned.
        n: negatives a row.
        docs: texts, as for :func:`pairs`; without them, ``run`` must have ``text`` for every document.
        depth: how deep in the ranking negatives are taken, in documents that are not relevant.
        skip: leave out so many of the first of these; unjudged ones at the very top are often relevant.
        pick: ``"random"`` draws ``n`` of them for each row, ``"top"`` takes the first ``n``.
        short: what to do where a ranking has fewer than ``n``: ``"error"``, or ``"drop"`` the topic's rows.
        min_label: the least label of a relevant document; judged ones below it are negatives as good as others.
        seed: of the random choice.

    Raises:
        ValueError: as for :func:`pairs`, and a topic with too few negatives.

    >>> import pyterrier_mvret as mv
    >>> topics = pd.DataFrame({"qid": ["1"], "query": ["feline pets"]})
    >>> qrels = pd.DataFrame({"qid": ["1"], "docno": ["a"], "label": [1]})
    >>> run = pd.DataFrame({"qid": "1", "docno": ["b", "a", "c"], "score": [3., 2., 1.], "rank": [0, 1, 2]})
    >>> texts = {"a": "Cats purr.", "b": "Feline is a word.", "c": "Pets sell well."}
    >>> mv.training.groups(topics, qrels, run, n=2, docs=texts, pick="top")[0]["docnos"]
    ['a', 'b', 'c']
    """
    if n < 1 or depth < n or skip < 0:
        raise ValueError(f"groups needs 1 <= n <= depth and skip >= 0, got n={n}, depth={depth}, skip={skip}")
    if pick not in ("random", "top") or short not in ("error", "drop"):
        raise ValueError(f"pick is 'random' or 'top', short is 'error' or 'drop'; got {pick!r} and {short!r}")
    positives = list(_relevant(topics, qrels, min_label))
    if isinstance(run, pt.Transformer):
        trained = topics[topics["qid"].isin({qid for qid, _, _ in positives})]
        run = run(trained.reset_index(drop=True))
    found = _rankings(run)
    generator = np.random.default_rng(seed)
    chosen = []
    for qid, query, relevant in positives:
        others = [docno for docno in dict.fromkeys(found.get(qid, ())) if docno not in relevant][skip : skip + depth]
        if len(others) < n:
            if short == "drop":
                continue
            raise ValueError(
                f"topic {qid!r} ({query!r}) has {len(others)} negatives in the run (after skip={skip}), n={n} are "
                "needed: take a deeper run, fewer negatives, or short='drop'"
            )
        for docno in relevant:
            drawn = range(n) if pick == "top" else generator.choice(len(others), n, replace=False)
            chosen.append((qid, query, [docno, *(others[i] for i in drawn)]))
    if docs is None:
        pt.validate.columns(run, includes=["docno", "text"])
        docs = run
    return _dataset(chosen, docs)


def _relevant(topics: pd.DataFrame, qrels: pd.DataFrame, min_label: int) -> Iterator[tuple[str, str, dict[str, None]]]:
    """Each topic that has relevant documents, with their docnos in the order of the qrels."""
    pt.validate.columns(topics, includes=["qid", "query"])
    pt.validate.columns(qrels, includes=["qid", "docno", "label"])
    if topics["qid"].duplicated().any():
        raise ValueError(f"topic {topics.loc[topics['qid'].duplicated(), 'qid'].iloc[0]!r} is there twice")
    judged = qrels[["qid", "docno", "label"]].drop_duplicates()
    twice = judged.duplicated(["qid", "docno"])
    if twice.any():
        qid, docno = judged.loc[twice, ["qid", "docno"]].iloc[0]
        raise ValueError(f"document {docno!r} is judged for topic {qid!r} more than once, with different labels")
    relevant: dict[str, dict[str, None]] = {}
    for qid, docno in judged.loc[judged["label"] >= min_label, ["qid", "docno"]].itertuples(index=False):
        relevant.setdefault(qid, {})[docno] = None
    for qid, query in zip(topics["qid"], topics["query"], strict=True):
        if not frames.is_text(query):
            raise ValueError(f"topic {qid!r}: the query must be a string of valid Unicode, got {query!r}")
        if qid in relevant:
            yield qid, query, relevant[qid]


def _rankings(run: pd.DataFrame) -> dict[str, list[str]]:
    """Each query's documents, best first."""
    pt.validate.columns(run, includes=["qid", "docno"])
    if "rank" in run.columns:
        run = run.sort_values("rank", kind="stable")
    elif "score" in run.columns:
        run = run.sort_values("score", ascending=False, kind="stable")
    else:
        raise ValueError("a run to mine negatives from needs 'rank' or 'score'")
    ranked = {}
    for qid, rows in frames.query_groups(run):
        ranked[qid] = run["docno"].array[rows].tolist()
    return ranked


def _dataset(rows: list[tuple[str, str, list[str]]], docs: Docs) -> "Dataset":
    """Rows of qid, query and docnos with the texts filled in."""
    datasets = _library()
    if not rows:
        raise ValueError("no topic has a relevant document (and negatives): nothing to train on")
    texts = _read_texts(docs, {docno for _, _, docnos in rows for docno in docnos})
    for qid, _, docnos in rows:
        for docno in docnos:
            if docno not in texts:
                raise ValueError(f"document {docno!r}, needed for topic {qid!r}, is not among the docs")
    names = ["positive", *(f"negative_{i}" for i in range(1, len(rows[0][2])))]
    columns: dict[str, Any] = {
        "qid": [str(qid) for qid, _, _ in rows],
        "docnos": [[str(docno) for docno in docnos] for _, _, docnos in rows],
        "query": [query for _, query, _ in rows],
        **{name: [texts[docnos[i]] for _, _, docnos in rows] for i, name in enumerate(names)},
    }
    text = datasets.Value("string")
    kinds = {name: datasets.List(text) if name == "docnos" else text for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _library() -> Any:
    try:
        import accelerate  # noqa: F401 (the trainer's, but to be missed now rather than after the data is made)
        import datasets
    except ImportError as error:
        raise ImportError("training needs two more packages: pip install 'pyterrier-mvret[train]'") from error
    return datasets


def _read_texts(docs: Docs, needed: set[str]) -> dict[str, str]:
    """The texts of some documents; the others go by."""
    if hasattr(docs, "get_corpus_iter"):
        docs = docs.get_corpus_iter(verbose=False)
    if isinstance(docs, pd.DataFrame):
        pt.validate.columns(docs, includes=["docno", "text"])
        found: Iterable[tuple[Any, Any]] = zip(docs["docno"], docs["text"], strict=True)
    elif isinstance(docs, Mapping):
        found = ((docno, docs[docno]) for docno in needed if docno in docs)
    else:
        found = (_docno_and_text(document) for document in docs)
    texts: dict[str, str] = {}
    for docno, text in found:
        if docno in needed:
            if not frames.is_text(text):
                raise ValueError(f"document {docno!r}: the text must be a string of valid Unicode, got {text!r}")
            texts[docno] = text
            if len(texts) == len(needed):
                break
    return texts


def _docno_and_text(document: Any) -> tuple[Any, Any]:
    if isinstance(document, Mapping) and "docno" in document and "text" in document:
        return document["docno"], document["text"]
    if hasattr(document, "docno") and hasattr(document, "text"):
        return document.docno, document.text
    raise ValueError(f"docs must have docno and text, got {document!r:.200}")


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """A row's texts, in the order of its docnos."""
    return [row["positive"], *(row[f"negative_{i}"] for i in range(1, len(row["docnos"])))]


def checked(data: Any, teacher: Literal["any", "unit"] | None, units: Sequence[str] = ()) -> "Dataset":
    """The columns that a loss reads, from a set that is in the format.

    Args:
        data: a training set.
        teacher: whether the loss needs a teacher's scores (else they are left out), on any scale or in [0, 1].
        units: the columns of units, for a loss that needs them.

    Raises:
        ValueError: a column that is missing; a row without text, or with scores that are not one finite number a
            document or not on the scale; the row is named.
    """
    if not isinstance(data, _library().Dataset):
        raise ValueError(f"training data is a datasets.Dataset (see mv.training.pairs), got {type(data).__name__}")
    data = data.with_format(None)  # plain values, whatever was set to look at them
    found = [c for c in data.column_names if c.startswith("negative")]
    negatives = [f"negative_{i}" for i in range(1, len(found) + 1)]
    if set(found) != set(negatives):
        raise ValueError(f"negatives go in columns negative_1, negative_2 and so on, got {', '.join(found)}")
    texts = ["query", "positive", *negatives]
    wanted = [*texts, *(["scores"] if teacher else []), *units]
    missing = [c for c in ("qid", *wanted) if c not in data.column_names]
    if missing:
        hint = "; mv.training.with_teacher adds scores" if "scores" in missing else ""
        hint += f"; mv.training.with_units adds {' and '.join(units)}" if set(units) & set(missing) else ""
        raise ValueError(f"training data lacks {', '.join(missing)} (it has {', '.join(data.column_names)}){hint}")
    if not len(data):
        raise ValueError("training data without a row")
    for start in range(0, len(data), 1000):
        part = data[start : start + 1000]
        for name in texts:
            bad = frames.first_no_text(part[name])
            if bad is not None:
                raise ValueError(f"{_row(part, start, bad)}: {name} must be text, got {part[name][bad]!r}")
        if units:
            _check_units(part, start, [part[name] for name in texts[1:]])
        for place, scores in enumerate(part["scores"] if teacher else ()):
            if not _are_finite(scores, len(negatives) + 1):
                raise ValueError(
                    f"{_row(part, start, place)}: scores must be {len(negatives) + 1} finite numbers, one a document, "
                    f"got {scores}"
                )
            if teacher == "unit" and not -1e-6 <= min(scores) <= max(scores) <= 1 + 1e-6:
                raise ValueError(
                    f"{_row(part, start, place)}: this loss wants a teacher's scores in [0, 1], got {scores}: use "
                    "mv.training.with_teacher(..., normalize='min-max'), or KL(normalize=None)"
                )
    return data.select_columns(wanted)


def _check_units(part: Mapping[str, Any], start: int, documents: list[list[str]]) -> None:
    """ValueError names the row whose ``spans`` or ``unit_scores`` do not fit its documents."""
    for place, (spans, scores) in enumerate(zip(part["spans"], part["unit_scores"], strict=True)):
        row = _row(part, start, place)
        if spans is None or scores is None or not len(spans) == len(scores) == len(documents):
            raise ValueError(f"{row}: spans must be one list a document, and unit_scores as well")
        for i, (units, values) in enumerate(zip(spans, scores, strict=True)):
            try:
                checked_spans(units, documents[i][place])
            except ValueError as error:
                raise ValueError(f"{row}: spans of document {i}: {error}") from error
            if len(values) != len(units) or any(v is None or np.isnan(v) or v == np.inf for v in values):
                raise ValueError(
                    f"{row}: unit_scores must be numbers below infinity of {len(units)} units, got {values}"
                )


def _are_finite(scores: Sequence[float | None] | None, count: int) -> bool:
    return scores is not None and len(scores) == count and all(s is not None and np.isfinite(s) for s in scores)


def _row(part: Mapping[str, Any], start: int, place: int) -> str:
    return f"row {start + place} (topic {part['qid'][place]!r})"
