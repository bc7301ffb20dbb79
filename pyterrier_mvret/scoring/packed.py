"""MaxSim in torch: matrix products of packed rows, then maxima by segment; on any device, and without a compiler.

Similarities are computed in chunks, so that memory stays bounded whatever the shapes; a document that is longer than a
chunk carries its maxima on.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.ragged import ragged_rows, segment_sum
from pyterrier_mvret.scoring.stored import StoredVectors

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# similarities held at once (float32): small enough to stay in cache, large enough that products run at speed
_ELEMENTS_AT_ONCE = 1 << 19
_ROWS_AT_LEAST = 64
# an accelerator wants more at once
_ELEMENTS_ON_DEVICE = 1 << 25


def add_scores(
    queries: Floats,
    query_offsets: Ints,
    stored: StoredVectors,
    starts: Ints,
    ends: Ints,
    weights: Floats | None,
    k: int,
    out: Floats,
    device: str = "cpu",
) -> None:
    """Adds the scores of all packed queries with documents to ``out``; as :func:`fused.add_scores`, for any ``k``."""
    most = max(1, _at_once(device) // _ROWS_AT_LEAST)
    first = 0
    while first < len(query_offsets) - 1:  # so many queries that a block of documents still has some rows
        last = max(first + 1, int(np.searchsorted(query_offsets, query_offsets[first] + most, side="right")) - 1)
        tokens = slice(query_offsets[first], query_offsets[last])
        of_each = query_offsets[first : last + 1] - query_offsets[first]
        mine = None if weights is None else weights[tokens, None]
        for documents, best in _best(queries[tokens], stored, starts, ends, k, device):
            sums = best[:, 0]
            for more in range(1, best.shape[1]):
                sums = sums + best[:, more].masked_fill(best[:, more] == -np.inf, 0)
            by_token = sums.T.cpu().numpy()
            out[first:last, documents] += segment_sum(by_token if mine is None else by_token * mine, of_each)
        first = last


def maxima(queries: Floats, stored: StoredVectors, starts: Ints, ends: Ints, device: str = "cpu") -> Floats:
    """As :func:`fused.maxima`."""
    out = np.full((len(starts), len(queries)), -np.inf, dtype=np.float32)
    for runs, best in _best(queries, stored, starts, ends, 1, device):
        out[runs] = best[:, 0].cpu().numpy()
    return out


def _at_once(device: str) -> int:
    return _ELEMENTS_AT_ONCE if device == "cpu" else _ELEMENTS_ON_DEVICE


def _best(
    queries: Floats, stored: StoredVectors, starts: Ints, ends: Ints, k: int, device: str
) -> "Iterator[tuple[npt.NDArray[np.intp], torch.Tensor]]":
    """Blocks of documents (those with vectors) and each query token's k best similarities: (documents, k, tokens).

    Where a document has fewer than k vectors, the rest is minus infinity.
    """
    import torch

    filled = np.flatnonzero(ends > starts)
    starts, lengths = starts[filled], (ends - starts)[filled]
    behind = np.cumsum(lengths)
    rows = max(1, _at_once(device) // max(1, len(queries)))
    tokens = torch.from_numpy(np.require(queries, requirements=["C", "W"])).to(device).T
    first, done, carry = 0, 0, None  # done: rows of the first document that were taken before
    while first < len(filled):
        # whole documents if at least one fits, else a part of one
        last = int(np.searchsorted(behind, behind[first] - lengths[first] + done + rows, side="right"))
        part = last <= first
        block = slice(first, first + 1 if part else last)
        begin, size = starts[block].copy(), lengths[block].copy()
        begin[0] += done
        size[0] = rows if part else size[0] - done
        vectors = torch.from_numpy(float_rows(stored, begin, size)).to(device)
        best = _k_best(vectors @ tokens, torch.from_numpy(size).to(device), k)
        if carry is not None:
            best[0] = torch.cat([best[0], carry]).topk(k, dim=0).values
        if part:
            carry, done = best[0], done + rows
        else:
            yield filled[block], best
            first, done, carry = last, 0, None


def float_rows(stored: StoredVectors, starts: Ints, lengths: Ints) -> Floats:
    """Rows of several documents, packed: a view where they lie one after the other as float32."""
    if (starts[1:] == (starts + lengths)[:-1]).all():
        decoded = stored.floats(slice(int(starts[0]), int(starts[-1] + lengths[-1])))
    else:
        decoded = stored.floats(ragged_rows(starts, lengths))
    # torch warns of arrays it could write to and must not, and takes no unusual layouts
    return np.require(decoded, np.float32, ["C", "A", "W"])


def _k_best(similarities: "torch.Tensor", lengths: "torch.Tensor", k: int) -> "torch.Tensor":
    """The k largest of each column within consecutive groups of rows: (groups, k, columns)."""
    import torch

    groups, columns = len(lengths), similarities.shape[1]
    owner = torch.repeat_interleave(lengths)[:, None].expand(-1, columns)
    best = similarities.new_full((groups, k, columns), -torch.inf)
    places = torch.arange(len(similarities), device=similarities.device)[:, None].expand(-1, columns)
    for t in range(k):
        top = similarities.new_full((groups, columns), -torch.inf).scatter_reduce_(0, owner, similarities, "amax")
        best[:, t] = top
        if t + 1 < k:  # the first place of each maximum is taken out
            hits = torch.where(similarities == top.gather(0, owner), places, len(places))
            taken = places.new_full((groups, columns), len(places)).scatter_reduce_(0, owner, hits, "amin")
            similarities = similarities.masked_fill(places == taken.gather(0, owner), -torch.inf)
    return best
