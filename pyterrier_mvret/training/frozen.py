"""Training a part of a model: which weights move, and token states that are computed once where none below do."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from torch import Tensor, nn

from pyterrier_mvret.encoders import batches, onednn, salience, settings
from pyterrier_mvret.training.state_cache import StateCache


def freeze(model: MultiVectorEncoder, train: str) -> list[nn.Module]:
    """Leaves only a part of the weights to be trained.

    Args:
        model: whose ``requires_grad`` flags are set.
        train: ``"all"``; ``"salience"``, the salience heads alone; ``"head"``, all that comes after the transformer;
            or ``"last:n"``, also its last n layers and what it has after them.

    Returns:
        The parts that do not move; they are to run as in inference, without dropout.

    Raises:
        ValueError: another word, more layers than there are, or no head to train.
    """
    transformer, head = model[0], list(model)[1:]
    if train not in ("all", "head", "salience") and not train.startswith("last:"):
        raise ValueError(f"train must be 'salience', 'head', 'last:n' or 'all', got {train!r}")
    if train == "salience":
        return _salience_alone(model)
    if train == "head" and not any(True for module in head for _ in module.parameters()):
        raise ValueError("there is no head to train: make the encoder with init_projection=, or train='last:1'")
    weights = dict(transformer.named_parameters())
    moving = {"all": set(weights), "head": set()}.get(train)
    if moving is None:
        moving = _from_last_layers(transformer, train.removeprefix("last:"))
    for name, weight in weights.items():
        # the pooler's weights reach no token vector
        weight.requires_grad = name in moving and "pooler" not in name.split(".")
    return [
        module
        for module in transformer.modules()
        if any(True for _ in module.parameters()) and not any(w.requires_grad for w in module.parameters())
    ]


def _salience_alone(model: MultiVectorEncoder) -> list[nn.Module]:
    heads = salience.heads_of(model)
    if heads is None:
        raise ValueError("there are no salience heads to train")
    for weight in model.parameters():
        weight.requires_grad = False
    for weight in heads.parameters():
        weight.requires_grad = True
    return [module for module in model if module is not heads]


def _from_last_layers(transformer: nn.Module, count: str) -> set[str]:
    """Names of the weights in the last layers and after them, in the order in which the model registers them."""
    stacks = [(name, m) for name, m in transformer.named_modules() if isinstance(m, nn.ModuleList)]
    stack, layers = max(stacks, key=lambda pair: len(pair[1]), default=("", []))
    if not count.isdigit() or not 0 < int(count) <= len(layers):
        raise ValueError(f"train='last:n' takes from 1 to all {len(layers)} layers of the transformer, got {count!r}")
    names = [name for name, _ in transformer.named_parameters()]
    first = f"{stack}.{len(layers) - int(count)}."
    return set(names[next(i for i, name in enumerate(names) if name.startswith(first)) :])


@contextmanager
def cached_states(model: MultiVectorEncoder, cache: StateCache) -> Iterator[None]:
    """Within it, a transformer that stands still computes the states of each text once, as far as the cache goes."""
    transformer = model[0]
    cache.belong_to(f"{settings.weights_digest(transformer)} {transformer.config} {model.device}")
    transformer.forward = _CachedForward(transformer, cache, batches.budget(model, batch_size=32))
    try:
        yield
    finally:
        del transformer.forward


class _CachedForward:
    """In place of a transformer's forward: rows that were seen before are looked up by their tokens."""

    def __init__(self, transformer: Any, cache: StateCache, tokens: int):
        self._transformer, self._forward = transformer, transformer.forward
        self._cache, self._tokens = cache, tokens

    def __call__(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if "cu_seq_lens_q" in features:  # packed into one row by flash attention: no rows to look up
            with torch.no_grad():
                return self._forward(features, **kwargs)
        used = batches.needed(features)
        ends = used.shape[1] - used[:, ::-1].argmax(1)
        keys = [*self._keys(features, ends)]
        found = {key: self._cache.get(key) for key in keys}
        missing = {key: row for row, key in enumerate(keys) if found[key] is None}
        for key, states in self._computed(features, missing, ends, kwargs):
            found[key] = states
            self._cache.put(key, states)
        example = found[keys[0]]
        out = example.new_zeros((*used.shape, example.shape[1]))
        for row, key in enumerate(keys):
            out[row, : len(found[key])] = found[key]
        features[self._transformer.module_output_name] = out
        return features

    @staticmethod
    def _keys(features: dict[str, Any], ends: Any) -> Iterator[tuple[Any, ...]]:
        """What fixes a row's states: its tokens, which of them see each other, and the arithmetic."""
        names = [n for n in ("input_ids", "attention_mask", "token_type_ids", "position_ids") if n in features]
        arrays = [features[name].cpu().numpy() for name in names]
        half = torch.is_autocast_enabled(features["attention_mask"].device.type)
        for row, end in enumerate(ends):
            yield (half, *(array[row, :end].tobytes() for array in arrays))

    def _computed(
        self, features: dict[str, Any], rows: dict[tuple[Any, ...], int], ends: Any, kwargs: dict[str, Any]
    ) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        keys, places = list(rows), np.array(list(rows.values()), dtype=np.intp)
        was = self._transformer.training
        self._transformer.eval()
        for group in batches.cut(ends[places], self._tokens):
            chosen = places[group]
            part = batches.part_of(features, chosen, np.arange(ends[chosen].max()))
            fast = nullcontext() if torch.is_inference_mode_enabled() else onednn.linear_layers(self._transformer)
            with torch.no_grad(), fast:  # an encoder that asks has its own
                states = self._forward(part, **kwargs)[self._transformer.module_output_name]
            for key, row, state in zip((keys[g] for g in group), chosen, states, strict=True):
                yield key, state[: ends[row]].clone()
        self._transformer.train(was)
