"""The definition of a sparse alignment, and problems to compare it on."""

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from pyterrier_mvret.scoring import EMPTY_DOCUMENT, Soft, TopK, TopP, align_packed

Q = np.array([[1, 0, 0], [0, 3 / 5, 4 / 5]])
D = np.array([[2 / 3, 1 / 3, 2 / 3], [6 / 7, 2 / 7, 3 / 7], [0, 0, 1], [-3 / 5, 4 / 5, 0], [2 / 7, 3 / 7, 6 / 7]])
UQ, UD = np.array([1, 0.25]), np.array([0.9, 0.5, 0, 0.2, 0.8])
VARIANTS = [("alignment", "all"), ("query", "all"), ("alignment", "salient"), ("query", "salient")]


def row(alignment, similarity):
    """How much a query token aligns with each of the document tokens whose similarities are given by position."""
    m = len(similarity)
    if isinstance(alignment, Soft):
        return dict(zip(similarity, gates(np.array(list(similarity.values())), alignment.k, alignment.epsilon)))
    count = min(m, alignment.k if isinstance(alignment, TopK) else max(Fraction(str(alignment.p)) * m // 1, 1))
    return dict.fromkeys(sorted(similarity, key=lambda j: (-similarity[j], j))[:count], 1.0)


def gates(s, k, epsilon):
    """``min(1, exp((s + a) / epsilon))`` with the ``a`` that makes them sum to ``k``, by bisection."""
    if len(s) <= k:
        return np.ones(len(s))
    low, high = -s.max() - epsilon * np.log(len(s)), -s.min()  # sums of at most 1, and of all ones
    for _ in range(200):
        middle = (low + high) / 2
        total = np.exp(np.minimum((s + middle) / epsilon, 0)).sum()
        low, high = (middle, high) if total < k else (low, middle)
    return np.exp(np.minimum((s + high) / epsilon, 0))


def reference(query, document, alignment, uq=None, ud=None, normalizer="alignment", align_over="all"):
    """The definition, one pair at a time in float64."""
    uq = np.ones(len(query)) if uq is None else uq
    ud = np.ones(len(document)) if ud is None else ud
    if len(document) == 0:
        return float(EMPTY_DOCUMENT)
    columns = [j for j in range(len(document)) if align_over == "all" or ud[j] > 0]
    total = mass = 0.0
    for i, q in enumerate(np.asarray(query, np.float64)):
        similarity = {j: float(q @ np.asarray(document[j], np.float64)) for j in columns}
        for j, aligned in row(alignment, similarity).items():
            total += similarity[j] * uq[i] * ud[j] * aligned
            mass += uq[i] * (ud[j] if normalizer == "alignment" else 1) * aligned
    return total / mass if mass > 1e-30 else 0.0


def pack(matrices, dim):
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in matrices])]).astype(np.int64)
    return np.concatenate([np.empty((0, dim)), *matrices]), offsets


def one(alignment, uq=None, ud=None, query=Q, document=D, **how):
    return align_packed(query, document, np.array([0, len(document)]), alignment, uq, ud, **how)[0]


def of_similarities(rows):
    """A query and a document whose similarities are these: unit vectors, and columns."""
    rows = np.asarray(rows, dtype=float)
    return {"query": np.eye(len(rows)), "document": rows.T}


strategies = st.one_of(
    st.integers(1, 20).map(TopK),
    st.sampled_from([0, 0.005, 0.1, 0.29, 0.5, 0.75, 1.0]).map(TopP),
    st.builds(Soft, st.sampled_from([1, 2, 5]), st.sampled_from([0.01, 0.5, 3.0])),
)


@st.composite
def ragged(draw):
    """Queries and documents, some empty; whole numbers, so that similarities are exact and often equal; saliences."""
    dim = draw(st.sampled_from([1, 2, 5]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 30]), min_size=0, max_size=6))
    query_lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    low = draw(st.sampled_from([-3, -6]))  # -6: with positive queries every similarity is negative
    queries = [rng.integers(1 if low == -6 else -3, 4, (n, dim)).astype(float) for n in query_lengths]
    documents = [rng.integers(low, low + 6, (n, dim)).astype(float) for n in lengths]

    def saliences(n):
        return rng.random(n) * (rng.random(n) < 0.7)

    return dim, queries, documents, [saliences(n) for n in query_lengths], [saliences(n) for n in lengths]
