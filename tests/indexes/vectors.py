"""Small random collections of token vectors."""

import numpy as np
import pandas as pd

import pyterrier_mvret as mv

DIM = 6


def unit(rng, n):
    v = rng.standard_normal((n, DIM)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def documents(n=50, seed=0, prefix="d", empty_every=10):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n)
    lengths[5::empty_every] = 0
    return [{"docno": f"{prefix}{i}", "doc_embs": unit(rng, k)} for i, k in enumerate(lengths)]


def topics(n=3, seed=9, tokens=4):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"qid": [f"q{i}" for i in range(n)], "query_embs": [unit(rng, tokens) for _ in range(n)]})


def build(path, docs=None, **settings):
    return mv.MultiVecIndex(path, **settings).index(documents() if docs is None else docs)
