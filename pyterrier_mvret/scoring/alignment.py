"""Sparse alignment: each query token takes several document tokens (ALIGNER, Qian et al. 2022, arXiv 2211.01267).

    sim(Q, D) = (1 / Z) sum_ij S_ij A_ij        A_ij = T_ij u_i v_j        Z = sum_ij A_ij        (equations 1 and 2)

``S`` are similarities of tokens, ``T`` is 1 where query token ``i`` aligns with document token ``j``
(:class:`TopK`, :class:`TopP`), or how much it does (:class:`Soft`), ``u`` and ``v`` are the saliences of query and
document tokens. Alignment is row by row, on similarities without saliences. Our choices where the paper is silent: of
equal similarities the lowest position is taken; a score is 0 where ``Z`` is, to 1e-30; and the variants
``normalizer="query"`` and ``align_over="salient"``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring import maxsim
from pyterrier_mvret.scoring.aligned import LEAST_MASS, AlignOver, Given, Normalizer, Rule, pairs_of, scored
from pyterrier_mvret.scoring.pairs import AlignedPairs
from pyterrier_mvret.scoring.ragged import checked_offsets
from pyterrier_mvret.scoring.stored import StoredVectors, as_stored
from pyterrier_mvret.scoring.strategies import Strategy, named_alignment

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def align_packed(
    query: Array,
    vectors: "Array | StoredVectors",
    offsets: Array,
    alignment: str | Strategy,
    query_weights: Array | None = None,
    doc_weights: Array | None = None,
    *,
    normalizer: Normalizer = "alignment",
    align_over: AlignOver = "all",
    device: str | None = None,
) -> Floats:
    """ALIGNER's score of one query with many documents (equation 1): a weighted mean of aligned similarities.

    Args:
        query: (query tokens, dim).
        vectors: (sum of document tokens, dim), or :class:`StoredVectors`; arithmetic as in :func:`maxsim_packed`.
        offsets: (documents + 1,) integers; document ``d`` owns rows ``offsets[d]:offsets[d + 1]``.
        alignment: :class:`TopK`, :class:`TopP`, :class:`Soft`, or a name (:func:`named_alignment`).
        query_weights: (query tokens,) saliences, at least 0; none means ones.
        doc_weights: (sum of document tokens,) saliences, at least 0; none means ones.
        normalizer: ``"alignment"`` divides by ``Z``, the paper's rule; ``"query"`` by the saliences of query tokens,
            once for each document token aligned, so that an aligned token of no salience counts as a match of zero
            instead of vanishing (our choice).
        align_over: ``"all"`` aligns with any document token, the paper's rule; ``"salient"`` with those of salience
            above 0 alone, as if the others were not there (our choice).
        device: where torch multiplies token vectors, such as ``"cuda"``; none is the compiled kernel where it does,
            or torch on the CPU.

    Returns:
        (documents,) float32, on the scale of one similarity; :data:`EMPTY_DOCUMENT` for a document without vectors,
        0 where nothing of any salience is aligned. ``TopK(1)`` without saliences is MaxSim divided by the number of
        query tokens.

    Raises:
        ValueError: shapes that do not fit, saliences that are negative or not finite, unknown names, or vectors that
            hold NaN or whose products leave float32.

    >>> from pyterrier_mvret.scoring import TopK
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> documents = np.array([[0.8, 0.6], [0.96, 0.28], [0.28, 0.96], [-0.6, 0.8]])
    >>> align_packed(query, documents, np.array([0, 2, 4]), TopK(1))
    array([0.78, 0.62], dtype=float32)
    >>> align_packed(query, documents, np.array([0, 2, 4]), TopK(1), doc_weights=np.array([1, 0.5, 0, 1])).round(3)
    array([0.72, 0.  ], dtype=float32)
    """
    rule = Rule((named_alignment(alignment),), normalizer, align_over)
    query = np.asarray(query)
    one = np.array([0, len(query)])
    return scored(_packed(query, one, vectors, offsets, query_weights, doc_weights, device), rule)[0, 0]


def align_matrix(
    queries: Array,
    query_offsets: Array,
    vectors: "Array | StoredVectors",
    offsets: Array,
    alignment: str | Strategy,
    query_weights: Array | None = None,
    doc_weights: Array | None = None,
    *,
    normalizer: Normalizer = "alignment",
    align_over: AlignOver = "all",
    device: str | None = None,
) -> Floats:
    """Scores of every packed query with every packed document, as :func:`align_packed`.

    Args:
        queries: (sum of query tokens, dim).
        query_offsets: (queries + 1,) integers.
        vectors: as for :func:`align_packed`.
        offsets: (documents + 1,) integers.
        alignment: as for :func:`align_packed`.
        query_weights: (sum of query tokens,) or none.
        doc_weights: (sum of document tokens,) or none.
        normalizer: as for :func:`align_packed`.
        align_over: as for :func:`align_packed`.
        device: as for :func:`align_packed`.

    Returns:
        (queries, documents) float32.

    Raises:
        ValueError: as :func:`align_packed`.

    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> documents = np.array([[0.6, 0.8], [0.8, -0.6]])
    >>> align_matrix(queries, np.array([0, 2, 3]), documents, np.array([0, 1, 2]), "top-k").round(1)
    array([[ 0.7,  0.1],
           [-0.6, -0.8]], dtype=float32)
    """
    rule = Rule((named_alignment(alignment),), normalizer, align_over)
    given = _packed(np.asarray(queries), query_offsets, vectors, offsets, query_weights, doc_weights, device)
    return scored(given, rule)[0]


def align_stored(
    queries: Array,
    query_offsets: Array,
    stored: StoredVectors,
    starts: Array,
    ends: Array,
    alignment: str | Strategy,
    query_weights: Array | None = None,
    doc_weights: Array | None = None,
    *,
    normalizer: Normalizer = "alignment",
    align_over: AlignOver = "all",
    device: str | None = None,
) -> Floats:
    """Scores of packed queries with documents where they are stored, as :func:`align_matrix`.

    Args:
        queries: (sum of query tokens, dim).
        query_offsets: (queries + 1,) integers.
        stored: the vectors; document ``d`` is rows ``starts[d]:ends[d]``, in any order.
        starts: (documents,) integers.
        ends: (documents,) integers.
        alignment: as for :func:`align_packed`.
        query_weights: (sum of query tokens,) or none.
        doc_weights: (rows of ``stored``,) or none; only those of the documents are read.
        normalizer: as for :func:`align_packed`.
        align_over: as for :func:`align_packed`.
        device: as for :func:`align_packed`.

    Returns:
        (queries, documents) float32.

    Raises:
        ValueError: as :func:`align_packed`, or a document that leaves ``stored``.

    >>> from pyterrier_mvret.scoring import StoredVectors, TopK
    >>> stored = StoredVectors(np.array([[0.6, 0.8], [0.8, -0.6], [0.0, 1.0]], np.float32))
    >>> align_stored(np.eye(2), np.array([0, 2]), stored, np.array([2, 0]), np.array([3, 2]), TopK(2)).round(1)
    array([[0.5, 0.4]], dtype=float32)
    """
    given = Given.checked(queries, query_offsets, stored, starts, ends, query_weights, doc_weights, device)
    rule = Rule((named_alignment(alignment),), normalizer, align_over)
    return scored(given, rule)[0]


def align_grid(
    query: Array,
    vectors: "Array | StoredVectors",
    offsets: Array,
    alignments: Sequence[str | Strategy],
    query_weights: Array | None = None,
    doc_weights: Array | None = None,
    *,
    normalizer: Normalizer = "alignment",
    align_over: AlignOver = "all",
    device: str | None = None,
) -> Floats:
    """Scores by several strategies at once: similarities are computed and ranked once for all of them.

    For choosing a strategy with a few judged queries, which the paper calls few-shot alignment adaptation.

    Args:
        query: (query tokens, dim).
        vectors: as for :func:`align_packed`.
        offsets: (documents + 1,) integers.
        alignments: strategies or their names.
        query_weights: as for :func:`align_packed`.
        doc_weights: as for :func:`align_packed`.
        normalizer: as for :func:`align_packed`.
        align_over: as for :func:`align_packed`.
        device: as for :func:`align_packed`.

    Returns:
        (strategies, documents) float32, each row as :func:`align_packed` to rounding.

    Raises:
        ValueError: as :func:`align_packed`.

    >>> from pyterrier_mvret.scoring import TopK, TopP
    >>> short_and_long = np.array([[0.8], [0.1], [0.75], [0.74], [0.72], [0.7], [0.05], [0.04], [0.03]])
    >>> align_grid(np.ones((1, 1)), short_and_long, np.array([0, 2, 9]), [TopK(1), TopK(2), TopP(0.3)]).round(3)
    array([[0.8  , 0.75 ],
           [0.45 , 0.745],
           [0.8  , 0.745]], dtype=float32)
    """
    rule = Rule(tuple(named_alignment(a) for a in alignments), normalizer, align_over)
    query = np.asarray(query)
    one = np.array([0, len(query)])
    return scored(_packed(query, one, vectors, offsets, query_weights, doc_weights, device), rule)[:, 0]


def alignment_of(
    query: Array,
    document: "Array | StoredVectors",
    alignment: str | Strategy,
    query_weights: Array | None = None,
    doc_weights: Array | None = None,
    *,
    normalizer: Normalizer = "alignment",
    align_over: AlignOver = "all",
    device: str | None = None,
) -> AlignedPairs:
    """The pairs of tokens that a score is made of.

    Args:
        query: (query tokens, dim).
        document: (document tokens, dim), or :class:`StoredVectors`.
        alignment: as for :func:`align_packed`.
        query_weights: (query tokens,) or none.
        doc_weights: (document tokens,) or none.
        normalizer: as for :func:`align_packed`.
        align_over: as for :func:`align_packed`.
        device: as for :func:`align_packed`.

    Returns:
        The pairs; none for an empty query or document.

    Raises:
        ValueError: as :func:`align_packed`.

    >>> from pyterrier_mvret.scoring import TopK
    >>> pairs = alignment_of(np.eye(2), np.array([[0.6, 0.8], [0.8, -0.6]]), TopK(1), doc_weights=np.array([1, 0.5]))
    >>> pairs.document, pairs.weight, pairs.contribution.round(4)
    (array([1, 0]), array([0.5, 1. ]), array([0.2667, 0.5333]))
    """
    rule = Rule((named_alignment(alignment),), normalizer, align_over)
    query, stored = np.asarray(query), as_stored(document)
    run = np.array([0]), np.array([len(stored)])
    given = Given.checked(query, np.array([0, len(query)]), stored, *run, query_weights, doc_weights, device)
    query_at, document_at, similarity, weight, total = pairs_of(given, rule)
    contribution = weight * similarity / total if total > LEAST_MASS else np.zeros(len(weight))
    return AlignedPairs(query_at, document_at, similarity, weight, contribution)


def _packed(
    queries: Array,
    query_offsets: Array,
    vectors: "Array | StoredVectors",
    offsets: Array,
    query_weights: Array | None,
    doc_weights: Array | None,
    device: str | None,
) -> Given:
    """Checked arguments of packed queries and packed documents."""
    stored = as_stored(vectors)
    maxsim._check_dimensions(queries, stored)
    offsets = checked_offsets(offsets, len(stored), "offsets")
    return Given.checked(queries, query_offsets, stored, offsets[:-1], offsets[1:], query_weights, doc_weights, device)
