"""A problem that a tiny model can learn: queries are the first words of the documents that answer them."""

import gc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from tests import checkpoints


@pytest.fixture(scope="session")
def toy():
    rng = np.random.default_rng(0)
    texts = {f"d{i}": " ".join(rng.choice(checkpoints.WORDS, 6)) for i in range(20)}
    topics = pd.DataFrame([(str(i), " ".join(texts[f"d{i}"].split()[:3])) for i in range(10)], columns=["qid", "query"])
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": [f"d{i}" for i in range(10)], "label": 1})
    run = pd.DataFrame(
        [(str(q), f"d{d}", -float(d), d) for q in range(10) for d in range(20)],
        columns=["qid", "docno", "score", "rank"],
    )
    groups = mv.training.groups(topics, qrels, run, n=3, docs=texts)
    return SimpleNamespace(
        texts=texts,
        topics=topics,
        qrels=qrels,
        run=run,
        results=run.merge(topics).assign(text=lambda rows: rows["docno"].map(texts)),
        pairs=mv.training.pairs(topics, qrels, texts),
        groups=groups,
        taught=groups.add_column("scores", rng.random((len(groups), 4)).tolist()),
    )


@pytest.fixture
def colbert(tiny):
    """Makes models of the same first weights."""
    return lambda **settings: mv.ColBERT(tiny, device="cpu", **settings)


@pytest.fixture
def quick():
    """Settings of a run of two steps."""
    return {"verbose": False, "batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "train": "head"}


@pytest.fixture
def plain(tmp_path):
    """An encoder without a head."""
    return checkpoints.sentence_encoder(tmp_path / "plain")


@pytest.fixture(scope="session", autouse=True)
def quick_collection():
    """The library collects garbage at the end of each run; what the other tests have left need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_cards(monkeypatch):
    """Checkpoints without a model card, which takes longer to write than a tiny model to train."""
    monkeypatch.setattr("sentence_transformers.base.model.BaseModel._create_model_card", lambda *_, **__: None)
