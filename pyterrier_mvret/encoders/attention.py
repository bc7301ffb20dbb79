"""The attention that tokens receive in a transformer's last layer, watched while it is computed.

It is not asked for as an output: for that a model has to leave PyTorch's own attention for slower arithmetic, in which
vectors differ in the last digits. Here the last layer's inputs to attention are kept as they pass, in this thread
alone, and its probabilities are computed from them: neither the model nor any vector changes.

The class needs torch to be defined, so this file is imported where attention is watched, never at the top of another.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

IMPORTANCE = "token_importance"
# query positions whose probabilities are held at once: little memory also for the longest texts
_QUERIES_AT_ONCE = 256
_FUSED = nn.functional.scaled_dot_product_attention
_SOFTMAX = (nn.functional.softmax, torch.softmax, Tensor.softmax)  # what models without fused attention call


@contextmanager
def watched(model: "MultiVectorEncoder") -> Iterator[None]:
    """Within it, forwards of ``model`` in this thread put what tokens receive into ``features["token_importance"]``.

    That is (texts, tokens) float32: the probability of attention to a token in the last layer of ``model[0]``, as a
    mean over heads and over the positions that attention sees. Those of a text sum to 1, also where the text's
    expansion, which attention leaves out, has 0; tokens of a skiplist count among the positions, as the model sees
    them. What other modules of the model put there is replaced.

    Raises:
        ValueError: the transformer's forward is not PyTorch's; or, at a forward, its attention is computed by a kernel
            that cannot be watched (flash attention).

    >>> import pyterrier_mvret as mv
    >>> model = mv.TokenEncoder(mv.models.MINILM, device="cpu").model
    >>> with torch.inference_mode(), watched(model):
    ...     features = model(model.preprocess(["a cat", "the cat sat"], task="document"), task="document")
    >>> features["token_importance"].shape, features["token_importance"].sum(1).round(decimals=3)
    (torch.Size([2, 5]), tensor([1., 1.]))
    """
    transformer: Any = model[0]
    for module in (transformer, getattr(transformer, "auto_model", transformer)):
        if "forward" in vars(module):
            raise ValueError(
                "attention cannot be watched: another computation stands in place of the transformer's forward pass "
                "(backend='openvino', or states that training keeps)"
            )
    watch = _Watch()
    handles = [
        transformer.register_forward_hook(watch.after_transformer),
        model.register_forward_hook(watch.after_model),
    ]
    try:
        with watch:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Keeps the inputs of the latest attention. PyTorch keeps such contexts by thread, but not hooks."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._latest: Callable[[], Iterator[Tensor]] | None = None
        self._received: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is _FUSED and out.ndim == 4:
            self._latest = partial(_probabilities, *args, **kwargs)
        elif func in _SOFTMAX and out.ndim == 4:
            self._latest = partial(iter, [out])
        return out

    def after_transformer(self, transformer: Any, args: Any, features: dict[str, Any]) -> None:
        """Computes what tokens received, while the mask is still that of attention."""
        if threading.get_ident() != self._thread:
            return
        latest, self._latest = self._latest, None
        self._received = None if latest is None else _received(latest(), features["attention_mask"].bool())
        if self._received is None:
            kind = getattr(getattr(transformer, "config", None), "_attn_implementation", "unknown")
            raise ValueError(
                f"attention of kind {kind!r} cannot be watched: open the model with attn_implementation='sdpa'"
            )

    def after_model(self, model: Any, args: Any, features: dict[str, Any]) -> None:
        """Hands it out last: modules for salience put their own outputs in the same place."""
        if threading.get_ident() == self._thread:
            features[IMPORTANCE], self._received = self._received, None


def _probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[Tensor]:
    """What fused attention weighs values with, (texts, heads, query positions, tokens); a block of positions a time."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    key = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) * scale
    places = torch.arange(key.shape[3], device=key.device)
    for positions in torch.arange(query.shape[2], device=key.device).split(_QUERIES_AT_ONCE):
        block = slice(int(positions[0]), int(positions[-1]) + 1)
        products = query[:, :, block].float() @ key
        if is_causal:
            products.masked_fill_(places > positions[:, None], -torch.inf)
        if attn_mask is not None:
            mask = attn_mask.broadcast_to(*query.shape[:3], len(places))[:, :, block]
            products.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else products.add_(mask)
        # by a name that models do not use: a watch around this one would take it for theirs
        yield torch.special.softmax(products, -1)


@torch.no_grad()
def _received(blocks: Iterator[Tensor], real: Tensor) -> Tensor | None:
    """(texts, tokens) means over heads and real query positions; none if the blocks are not of these tokens."""
    total, seen = torch.zeros(real.shape, device=real.device), 0
    for block in blocks:
        asking = real[:, seen : seen + block.shape[2]]
        if (len(block), *block.shape[2:]) != (*asking.shape, real.shape[1]):
            return None
        # filled, not multiplied: positions that see nothing hold NaN
        total += block.float().mean(1).masked_fill(~asking[..., None], 0).sum(1)
        seen += block.shape[2]
    return total / real.sum(1, keepdim=True).clamp(min=1) if seen == real.shape[1] else None
