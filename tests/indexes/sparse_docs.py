"""Small random collections of weighted terms, and the engines that search them."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from tests.scoring.test_bm25 import FRACTIONS, WHOLE

needs_seismic = pytest.mark.skipif(importlib.util.find_spec("seismic") is None, reason="pyseismic-lsr is not installed")
ENGINES = ["pisa", "csr", pytest.param("seismic", marks=needs_seismic)]


def named(dicts, prefix="d"):
    return [{"docno": f"{prefix}{i}", "toks": toks} for i, toks in enumerate(dicts, 1)]


WHOLE_DOCS, FRACTION_DOCS = named(WHOLE), named(FRACTIONS)


def topics(*dicts):
    return pd.DataFrame({"qid": [f"q{i}" for i in range(len(dicts))], "query_toks": list(dicts)})


def latents(n, seed=0, terms=400, length=60, prefix="d", empty_every=50):
    """Documents of Zipf-like terms, some of them in almost all, with weights as square roots of sums."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, terms + 1) ** 0.7
    docs = []
    for i in range(n):
        ids = rng.choice(terms, length, replace=False, p=share / share.sum())
        weights = np.sqrt(rng.gamma(2.0, 8.0, length))
        toks = {} if i % empty_every == empty_every - 1 else dict(zip((f"z{j}" for j in ids), weights.tolist()))
        docs.append({"docno": f"{prefix}{i}", "toks": toks})
    return docs


def asked(n, seed=1, **shape):
    return topics(*(d["toks"] for d in latents(n, seed, length=20, empty_every=n + 1, **shape)))


def matrices(docs, queries):
    """Documents and queries over one vocabulary."""
    terms = {t: i for i, t in enumerate(sorted({t for d in docs for t in d["toks"]}))}

    def matrix(dicts):
        out = np.zeros((len(dicts), len(terms)))
        for row, toks in enumerate(dicts):
            for term, weight in toks.items():
                if term in terms:
                    out[row, terms[term]] = np.float32(weight)
        return csr_array(out)

    return matrix([d["toks"] for d in docs]), matrix(queries["query_toks"].tolist())


def best(scores, docs, k=None):
    """Names and scores above 0, best first, equal ones by name."""
    found = sorted((-s, d["docno"]) for s, d in zip(scores, docs) if s > 0)[:k]
    return [name for _, name in found], [-s for s, _ in found]
