"""Sparse vectors over many latent dimensions (LASPAR): the largest entries of a product by parts, and what they become.

    y = U h + b        x = min(log(1 + max(0, y)), 10)        x = x / |x|

for a text's pooled states ``h``. Tokens are added up before the product, never after it: ``sum_t U h_t = U sum_t h_t``,
so LASPAR's earlier architecture, which upscales every token first, needs no (tokens, dimensions) array either.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

#: where log-ReLU is cut off, as the method's code does: products above 22,025 have no gradient
CEILING = 10.0


class Top(NamedTuple):
    """The largest entries of each row.

    Attributes:
        values: (rows, k), falling.
        ids: (rows, k) int64; of equal values the smaller id comes first.
    """

    values: "Tensor"
    ids: "Tensor"


def running_top(products: "Iterable[Tensor]", k: int) -> Top:
    """The k largest entries of rows that come some columns at a time, as if they had come at once.

    Args:
        products: (rows, columns) parts, from left to right; at least one. Only one is looked at at a time.
        k: entries a row, at least 1; all of them where there are fewer. NaN comes first: it must not get lost.

    Raises:
        ValueError: there are no parts.

    >>> import torch
    >>> running_top(iter(torch.tensor([[1.0, 5.0, 2.0, 5.0, 0.0]]).split(2, dim=1)), 3)
    Top(values=tensor([[5., 5., 2.]]), ids=tensor([[1, 3, 2]]))
    """
    best: Top | None = None
    start = 0
    for part in products:
        if best is None or best.values.shape[1] < k:
            best = _merged(best, part, start, k, None)
        else:  # of equal values those found before have the smaller ids: only larger ones matter
            best = _merged(best, part, start, k, (part <= best.values[:, -1:]).logical_not_())
        start += part.shape[1]
    if best is None:
        raise ValueError("there are no products")
    return best


def _merged(best: Top | None, part: "Tensor", start: int, k: int, wanted: "Tensor | None") -> Top:
    """The best of those found before and of the wanted entries of a part (none: all that can matter)."""
    import torch

    if wanted is None:
        least = part.topk(min(k, part.shape[1]), dim=1).values[:, -1:]
        # with all that are equal to the last: topk takes any of them
        wanted = (part < least).logical_not_()
    rows, columns = wanted.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(part))
    width = int(counts.max()) if len(rows) else 0
    if best is not None and not width:
        return best
    place = torch.arange(len(rows), device=part.device) - (counts.cumsum(0) - counts)[rows]
    values = part.new_full((len(part), width), -torch.inf)
    ids = torch.zeros((len(part), width), dtype=torch.int64, device=part.device)
    values[rows, place], ids[rows, place] = part[rows, columns], columns + start
    if best is not None:
        values, ids = torch.cat([best.values, values], dim=1), torch.cat([best.ids, ids], dim=1)
    # ids rise among equal values, and a stable sort keeps them so
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return Top(values.gather(1, order), ids.gather(1, order))


def log_relu(products: "Tensor") -> "Tensor":
    """``min(log(1 + max(0, y)), 10)`` of each entry, in its type: float32 is wanted, half precision rounds the sum.

    >>> import torch
    >>> log_relu(torch.tensor([2.0, 1.0, -1.5, 1e9]))
    tensor([ 1.0986,  0.6931,  0.0000, 10.0000])
    """
    return products.relu().log1p().clamp(max=CEILING)


def dot(query: Mapping[str, float], document: Mapping[str, float]) -> float:
    """The dot product of two sparse vectors, in float64.

    >>> dot({"3": 0.5, "7": 2.0}, {"7": 0.25, "9": 1.0})
    0.5
    """
    return float(sum(weight * document[term] for term, weight in query.items() if term in document))
