"""What latent_terms.py reads: collections, a pool of other texts to train on, and the token states of both.

States are encoded once and kept part by part in a scratch folder (1.5 KB a token), for all dictionaries.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.states import token_states

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from common import bm25, load

#: generic passages of Wikipedia and the web; nothing of them is evaluated
POOL = ("hotpot100", "squad-a", "msmarco-dl19-mini")
#: texts of a kept part
PART = 1000


class States(NamedTuple):
    """Of several texts, packed.

    Attributes:
        states: (tokens, dim) float32.
        offsets: (texts + 1,) int64; text ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        token_ids: (tokens,) int32.
    """

    states: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]


@dataclass
class Collection:
    """Documents, topics and judgements.

    Attributes:
        name: the folder's, for a part of it with the number of documents: ``limit-rebuilt/5000``.
        documents: ``docno`` and ``text``.
        topics: ``qid`` and ``query``.
        qrels: ``qid``, ``docno``, ``label``.
    """

    name: str
    documents: list[dict[str, str]]
    topics: pd.DataFrame
    qrels: pd.DataFrame

    @property
    def folder(self) -> str:
        """What a part of a collection shares with the whole."""
        return self.name.partition("/")[0]

    @property
    def texts(self) -> list[str]:
        """Of all documents."""
        return [d["text"] for d in self.documents]


def collection(data: Path, name: str) -> Collection:
    """One of a folder of collections; of ``NAME/n`` all relevant documents, and the first others up to n."""
    folder, _, size = name.partition("/")
    documents, topics, qrels = load(collection=str(data / folder))
    if size:
        relevant = set(qrels.loc[qrels["label"] > 0, "docno"])
        documents = sorted(documents, key=lambda d: d["docno"] not in relevant)[: int(size)]
        if len(relevant) > int(size):
            raise ValueError(f"{folder} has {len(relevant)} relevant documents, more than {size}")
    return Collection(name, documents, topics, qrels)


def words(c: Collection, path: Path, num_results: int) -> pt.Transformer:
    """BM25 on words, indexed anew."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    return bm25(c.documents, path, num_results)


def pool(data: Path) -> list[str]:
    """Texts to train on, in a fixed random order."""
    texts = [d["text"] for name in POOL for d in load(collection=str(data / name))[0]]
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]


def parts(
    encoder: mv.TokenEncoder, texts: list[str], folder: Path, task: str = "document"
) -> list[tuple[str, Callable[[], States]]]:
    """A name for each part of the texts, and what reads its states, which are encoded where ``folder`` lacks them."""
    found = []
    for number, first in enumerate(range(0, len(texts), PART)):
        some = texts[first : first + PART]
        name = f"{number:03}-{len(some)}"
        found.append((name, partial(_states, encoder, some, folder / f"{name}.npz", task)))
    return found


def encoded(encoder: mv.TokenEncoder, texts: list[str], task: Any = "document") -> States:
    """States now."""
    found = token_states(encoder, texts, task)
    return States(found.states, found.offsets, found.token_ids)


def _states(encoder: mv.TokenEncoder, texts: list[str], path: Path, task: str) -> States:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        found = encoded(encoder, texts, task)
        seconds = time.perf_counter() - begin
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            np.savez(file, **found._asdict(), seconds=seconds)
        unfinished.replace(path)
    with np.load(path) as kept:
        return States(*(kept[name] for name in States._fields))


def tokens_per_second(folder: Path) -> float:
    """Median over the parts of a folder, when they were encoded."""
    speeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as kept:
            speeds.append(len(kept["token_ids"]) / float(kept["seconds"]))
    return round(float(np.median(speeds)))


def merged(found: list[States]) -> States:
    """One of several."""
    ends = np.cumsum([0, *(len(part.states) for part in found)])
    offsets = [part.offsets[1:] + end for part, end in zip(found, ends[:-1], strict=True)]
    return States(
        np.concatenate([part.states for part in found]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        np.concatenate([part.token_ids for part in found]),
    )
