"""How sparse alignments are computed: the compiled kernel's sums where they are enough, ranked similarities elsewhere.

Ranked similarities of a block of documents are padded and summed up along the rank, so that every strategy is one
entry of the same running sums. Soft alignments are no prefix of a ranking: each is summed up by itself.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring import fused, maxsim
from pyterrier_mvret.scoring.ragged import check_runs, checked_offsets, in_blocks, padded_blocks, segment_sum
from pyterrier_mvret.scoring.salience import entropy_lp
from pyterrier_mvret.scoring.stored import StoredVectors
from pyterrier_mvret.scoring.strategies import Soft, Strategy

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Normalizer = Literal["alignment", "query"]
AlignOver = Literal["all", "salient"]

# similarities held at once: they, and what is computed of them, stay in cache
_ELEMENTS_AT_ONCE = 1 << 18
_ROWS_AT_LEAST = 64
# the k best by k searches for the best up to this k, by a sort beyond
_SEARCHES = 16
#: a normaliser that is not above it counts as 0: products of saliences that gates leave near 0 are lost in float32 and
#: not in float64, which must not decide a score; and gradients, divided by less, would not be finite in training
LEAST_MASS = 1e-30


@dataclass(frozen=True)
class Rule:
    """Strategies that are computed together, and the variants of their normaliser."""

    strategies: tuple[Strategy, ...]
    normalizer: Normalizer
    align_over: AlignOver

    def __post_init__(self) -> None:
        if self.normalizer not in get_args(Normalizer):
            raise ValueError(f"normalizer must be one of {get_args(Normalizer)}, got {self.normalizer!r}")
        if self.align_over not in get_args(AlignOver):
            raise ValueError(f"align_over must be one of {get_args(AlignOver)}, got {self.align_over!r}")

    def counts(self, lengths: Ints) -> Ints:
        """(strategies, documents): document tokens that each query token aligns with, or what its alignments sum to."""
        return np.stack([strategy.counts(lengths) for strategy in self.strategies])


class Given(NamedTuple):
    """Checked arguments: packed queries, documents as runs of stored rows, saliences (none: ones), torch's device."""

    queries: Array
    query_offsets: Ints
    stored: StoredVectors
    starts: Ints
    lengths: Ints
    query_weights: Doubles | None
    doc_weights: Array | None
    device: str | None

    @classmethod
    def checked(
        cls,
        queries: Array,
        query_offsets: Array,
        stored: StoredVectors,
        starts: Array,
        ends: Array,
        query_weights: Array | None,
        doc_weights: Array | None,
        device: str | None,
    ) -> "Given":
        """Arguments in the types that are computed with; ValueError where they do not fit each other."""
        maxsim._check_dimensions(queries, stored)
        query_offsets = checked_offsets(query_offsets, len(queries), "query_offsets")
        check_runs(starts, ends, len(stored), "a document")
        u = None if query_weights is None else _one_a_token(query_weights, len(queries), "query")
        v = None if doc_weights is None else _one_a_token(doc_weights, len(stored), "doc")
        u = None if u is None else _checked(u, "query")  # documents' where they are read: an index holds many more
        starts = np.asarray(starts, dtype=np.int64)
        return cls(queries, query_offsets, stored, starts, np.asarray(ends, dtype=np.int64) - starts, u, v, device)

    def of_queries(self, part: slice) -> "Given":
        """The same with consecutive queries alone."""
        offsets = self.query_offsets[part.start : part.stop + 1]
        tokens = slice(int(offsets[0]), int(offsets[-1]))
        u = None if self.query_weights is None else self.query_weights[tokens]
        return self._replace(queries=self.queries[tokens], query_offsets=offsets - offsets[0], query_weights=u)

    def rows(self, documents: Ints, rule: Rule) -> tuple[Ints, Ints, Doubles | None]:
        """Stored rows that documents may align with, padded with rows of their own; how many are real; saliences."""
        lengths = self.lengths[documents]
        places = np.arange(lengths.max(initial=0))
        rows = self.starts[documents, None] + np.minimum(places, lengths[:, None] - 1)
        if self.doc_weights is None:
            return rows, lengths, None
        v = _checked(self.doc_weights[rows], "doc")
        if rule.align_over == "all":
            return rows, lengths, v
        salient = (places < lengths[:, None]) & (v > 0)
        lengths = salient.sum(axis=1)
        first = np.argsort(~salient, axis=1, kind="stable")[:, : max(1, lengths.max(initial=0))]
        return np.take_along_axis(rows, first, axis=1), lengths, np.take_along_axis(v, first, axis=1)

    def masses(self, tokens: Ints, v: Doubles, rule: Rule) -> tuple[Doubles, Doubles]:
        """Of wholly aligned pairs with document saliences: ``A_ij``, and what each adds to the normaliser."""
        u = np.ones(1) if self.query_weights is None else self.query_weights[tokens]
        weight = u * v
        return weight, weight if rule.normalizer == "alignment" else np.broadcast_to(u, weight.shape)


def scored(given: Given, rule: Rule) -> Floats:
    """(strategies, queries, documents) scores."""
    documents = np.where(given.lengths > 0, np.float32(0), maxsim.EMPTY_DOCUMENT)
    shape = (len(rule.strategies), len(given.query_offsets) - 1, len(documents))
    scores = np.broadcast_to(documents, shape).copy()
    remaining = np.flatnonzero(given.lengths)
    # for one ranked strategy without document saliences the kernel's sums do, divided by what was counted
    if len(rule.strategies) == 1 and given.doc_weights is None and not isinstance(rule.strategies[0], Soft):
        counts = rule.counts(given.lengths)[0]
        quick = counts[remaining] <= fused.MOST_K
        _add_summed(given, counts, remaining[quick], scores[0])
        remaining = remaining[~quick]
    if len(remaining) and len(rule.strategies):
        _add_in_blocks(given, rule, remaining, scores)
    return scores


def pairs_of(given: Given, rule: Rule) -> tuple[Ints, Ints, Floats, Doubles, float]:
    """Aligned pairs of the only document: both positions, similarity and ``A_ij``; and the normaliser."""
    rows, lengths, v = given.rows(np.array([0]), rule)
    similarities, strategy = _similarities(given, rows, lengths), rule.strategies[0]
    gates = _gates(strategy, similarities) if isinstance(strategy, Soft) else None
    count = int(rule.counts(lengths)[0, 0] if gates is None else lengths[0])
    values, places = _best(similarities, count)
    tokens, found = np.repeat(np.arange(len(given.queries)), count), places[:, 0].ravel()
    weight, mass = given.masses(tokens, np.ones(len(found)) if v is None else v[0][found], rule)
    listed = np.ones(len(found), dtype=bool)
    if gates is not None:
        opened = np.take_along_axis(gates, places, axis=-1).ravel()
        weight, mass = weight * opened, mass * opened
        listed = weight > 0
    return tokens[listed], rows[0][found[listed]], values.ravel()[listed], weight[listed], float(mass.sum())


def _add_summed(given: Given, counts: Ints, documents: Ints, scores: Floats) -> None:
    """Scores of documents without saliences: sums of the best similarities, divided by their number or weight."""
    starts, lengths, u = given.starts, given.lengths, given.query_weights
    if u is not None:  # scores do not depend on the size of saliences, float32 does
        u = u / max(u.max(initial=0), np.finfo(np.float64).tiny)
    weights = None if u is None else u.astype(np.float32)
    masses = segment_sum((np.ones(len(given.queries)) if u is None else u)[:, None], given.query_offsets)
    for k in np.unique(counts[documents])[::-1]:
        # a document of fewer than k tokens gives the sum of all, so that one call serves all of a top-k
        now = counts[documents] == np.minimum(k, lengths[documents])
        mine, documents = documents[now], documents[~now]
        if len(mine):
            packed = given.queries, given.query_offsets, given.stored, starts[mine], starts[mine] + lengths[mine]
            sums = maxsim._scores(*packed, weights, int(k), given.device)
            scores[:, mine] = _ratio(sums, masses * counts[mine])


def _add_in_blocks(given: Given, rule: Rule, documents: Ints, scores: Floats) -> None:
    """Scores of documents from their similarities, in blocks of bounded memory."""
    for queries in in_blocks(np.diff(given.query_offsets), _ELEMENTS_AT_ONCE // _ROWS_AT_LEAST):
        part = given.of_queries(queries)
        rows = max(_ROWS_AT_LEAST, _ELEMENTS_AT_ONCE // max(1, len(part.queries)))
        for block in padded_blocks(given.lengths[documents], rows):
            scores[:, queries, documents[block]] = _of_block(part, rule, documents[block])


def _of_block(given: Given, rule: Rule, documents: Ints) -> Floats:
    """(strategies, queries, documents of the block): similarities are computed once for all strategies."""
    rows, lengths, v = given.rows(documents, rule)
    similarities = _similarities(given, rows, lengths)
    scores = np.empty((len(rule.strategies), len(given.query_offsets) - 1, len(documents)), dtype=np.float32)
    for number, strategy in enumerate(rule.strategies):
        if isinstance(strategy, Soft):
            scores[number] = _spread(given, rule, strategy, similarities, v)
    ranked = [number for number, strategy in enumerate(rule.strategies) if not isinstance(strategy, Soft)]
    if ranked:  # the last, as it overwrites similarities
        of_rank = replace(rule, strategies=tuple(rule.strategies[number] for number in ranked))
        scores[ranked] = _ranked(given, of_rank, similarities, lengths, v)
    return scores


def _ranked(given: Given, rule: Rule, similarities: Floats, lengths: Ints, v: Doubles | None) -> Array:
    """(strategies, queries, documents): running sums along the rank, read where each strategy ends. Overwrites."""
    counts = np.maximum(rule.counts(lengths), 1)
    values, places = _best(similarities, int(counts.max()))
    each = np.arange(len(lengths))[:, None]
    weight, mass = given.masses(_tokens(given), np.ones(places.shape) if v is None else v[each, places], rule)
    aligned = np.arange(values.shape[2]) < lengths[:, None]  # the rest is padding
    parts = np.where(aligned, values, 0) * weight
    sums, masses = (_by_query(given, a).cumsum(axis=2) for a in (parts, mass * aligned))
    at = counts.T - 1
    return _ratio(sums[:, each, at], masses[:, each, at]).transpose(2, 0, 1)


def _spread(given: Given, rule: Rule, strategy: Soft, similarities: Floats, v: Doubles | None) -> Array:
    """(queries, documents) scores by a soft alignment: all pairs count, each by its gate."""
    gates = _gates(strategy, similarities)
    weight, mass = given.masses(_tokens(given), np.ones(gates.shape[1:]) if v is None else v, rule)
    parts = np.where(gates > 0, similarities, 0) * weight  # gates of padding are 0
    sums, masses = (_by_query(given, (gates * a).sum(axis=2)) for a in (parts, mass))
    return _ratio(sums, masses)


def _gates(strategy: Soft, similarities: Floats) -> Doubles:
    """(query tokens, documents, padded rows) of a soft alignment; 0 in the padding."""
    gates: Doubles = entropy_lp(similarities, strategy.k, strategy.epsilon, similarities > -np.inf)
    return gates


def _tokens(given: Given) -> Ints:
    return np.arange(len(given.queries))[:, None, None]


def _by_query(given: Given, parts: Doubles) -> Doubles:
    """Sums over each query's tokens: (query tokens, documents, ...) to (queries, documents, ...)."""
    width = int(np.prod(parts.shape[1:]))
    return segment_sum(parts.reshape(len(parts), width), given.query_offsets).reshape(-1, *parts.shape[1:])


def _similarities(given: Given, rows: Ints, lengths: Ints) -> Floats:
    """(query tokens, documents, padded rows); minus infinity in the padding."""
    import torch  # its products are faster than numpy's at these shapes

    tokens, sizes = maxsim._as_computed(given.queries, given.stored)
    vectors = given.stored.floats(rows.ravel())
    # torch warns of arrays it could write to and must not
    left, right = (
        torch.from_numpy(np.require(a, requirements=["W"])).to(given.device or "cpu") for a in (tokens, vectors)
    )
    products = (left @ right.T).cpu().numpy()
    if sizes is not None:
        products *= sizes[:, None]
    padded = maxsim._checked_scores(products).reshape(len(tokens), *rows.shape)
    padding = np.arange(rows.shape[1]) >= lengths[:, None]
    if padding.any():
        padded[:, padding] = -np.inf
    return padded


def _best(similarities: Floats, k: int) -> tuple[Floats, Ints]:
    """The k largest along the last axis and their places, best first; of equal ones the first. Overwrites."""
    if k > _SEARCHES:
        order = np.argsort(-similarities, axis=-1, kind="stable")[..., :k]
        return np.take_along_axis(similarities, order, axis=-1), order
    places = np.empty((*similarities.shape[:-1], k), dtype=np.int64)
    values = np.empty(places.shape, dtype=np.float32)
    for rank in range(k):
        place = similarities.argmax(axis=-1, keepdims=True)
        places[..., rank, None], values[..., rank, None] = place, np.take_along_axis(similarities, place, axis=-1)
        np.put_along_axis(similarities, place, -np.inf, axis=-1)
    return values, places


def _ratio(sums: Array, masses: Doubles) -> Array:
    """Sums divided by masses, which are at least 0; 0 where there is no mass."""
    some = masses > LEAST_MASS
    return np.divide(sums, masses, out=np.zeros(np.broadcast_shapes(sums.shape, masses.shape)), where=some)


def _one_a_token(weights: Array, tokens: int, side: str) -> Array:
    weights = np.asarray(weights)
    if weights.shape != (tokens,):
        raise ValueError(f"{side}_weights must have one number a token, {tokens}, got shape {weights.shape}")
    return weights


def _checked(weights: Array, side: str) -> Doubles:
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"{side}_weights must be finite and at least 0")
    return weights.astype(np.float64, copy=False)
