"""Texts to batches of tokens: every text is tokenised once, and texts of like length go together.

Batches are cut by tokens, padding included, since that is what time and memory follow: a batch of a fixed number of
texts is small where texts are short and large where they are long.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.ragged import padded_blocks

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

# the length of a common passage, which says what "batch_size texts" are in tokens
_TOKENS_A_TEXT = 128
# On a CPU, larger batches leave the cache between one layer and the next (measured with MiniLM: benchmarks/NOTES.md)
_TOKENS_A_THREAD = 512
# tokens that every model takes which has places for them; some of 514 places count from the third
_WHOLE = 512
# texts whose tokens are held at once: enough to find many of one length, little beside their vectors
_TEXTS_A_BLOCK = 512


class Input(NamedTuple):
    """A text, and the marker or prefix that goes before it."""

    prefix: str
    text: str


def with_prefix(model: "MultiVectorEncoder", texts: Sequence[str], task: str) -> list[Input]:
    """Texts with the model's own prefix of a task."""
    prefix = model.prompts.get(task) or ""
    return [Input(prefix, text) for text in texts]


def budget(model: "MultiVectorEncoder", batch_size: int) -> int:
    """Tokens of a batch at most, padding included; a text that has more goes alone."""
    import torch

    tokens = batch_size * _TOKENS_A_TEXT
    if model.device.type == "cpu":
        tokens = min(tokens, _TOKENS_A_THREAD * torch.get_num_threads())
    return tokens


def cut(lengths: npt.NDArray[np.integer[Any]], tokens: int) -> list[npt.NDArray[np.intp]]:
    """Places of texts, longest first, in groups that have at most so many tokens when padded to their longest.

    >>> [group.tolist() for group in cut(np.array([3, 9, 2, 3, 50]), 10)]
    [[4], [1], [0, 3, 2]]
    """
    return list(padded_blocks(np.maximum(lengths, 1), tokens))  # a text without tokens is in a batch, too


def batches(
    model: "MultiVectorEncoder", inputs: Sequence[Input], task: str, batch_size: int, whole: bool = False
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Places of inputs, and their features as ``model`` takes them; every one once, in no order to rely on."""
    tokens = budget(model, batch_size)
    # packed into one row by flash attention, a block's features cannot be divided again
    packed = bool(getattr(model[0], "can_flatten_inputs", False))
    at_once = batch_size if packed else _TEXTS_A_BLOCK
    by_characters = sorted(range(len(inputs)), key=lambda i: len(inputs[i].text), reverse=True)
    for start in range(0, len(inputs), at_once):
        block = by_characters[start : start + at_once]
        features = tokenised(model, [inputs[i] for i in block], task, whole)
        if packed:
            yield block, features
            continue
        used = needed(features)
        for rows in cut(used.sum(1), tokens):
            yield [block[row] for row in rows], part_of(features, rows, np.flatnonzero(used[rows].any(0)))


def tokenised(model: "MultiVectorEncoder", inputs: Sequence[Input], task: str, whole: bool = False) -> dict[str, Any]:
    """Features of inputs, padded to the longest, with the place of each token in its text if the tokeniser knows.

    Inputs that are wanted whole are cut where the model has no more places for tokens, and are not expanded.
    """
    common = inputs[0].prefix
    texts = [i.text for i in inputs]
    if any(i.prefix != common for i in inputs):
        common, texts = "", [i.prefix + i.text for i in inputs]
    how = {"task": None, **_longest(model)} if whole else {"task": task}
    features = model.preprocess(texts, prompt=common, processing_kwargs=with_offsets(model), **how)
    if "offset_mapping" in features:
        features["offset_mapping"] = in_text(features["offset_mapping"], [len(i.prefix) for i in inputs])
    return features


def _longest(model: "MultiVectorEncoder") -> dict[str, int]:
    """What lets a text be longer than the checkpoint states (PyLate's states the length of a task), where it can be."""
    transformer: Any = model[0]
    possible = min(getattr(transformer.config, "max_position_embeddings", None) or 0, _WHOLE)
    stated = model.max_seq_length
    return {"max_length": possible} if stated is not None and stated < possible else {}


def with_offsets(model: "MultiVectorEncoder") -> dict[str, Any] | None:
    """What asks the tokeniser for the characters of its tokens; none if it does not know them."""
    return {"text": {"return_offsets_mapping": True}} if getattr(model.tokenizer, "is_fast", False) else None


def in_text(offset_mapping: Any, prefixes: Sequence[int]) -> Any:
    """Characters counted from each text's own start, below 0 for what is before it."""
    return offset_mapping - offset_mapping.new_tensor(prefixes)[:, None, None]


def needed(features: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Which positions the model must see: tokens, and the expansion of queries, which attention may leave out."""
    used = features["attention_mask"].bool()
    if "query_expansion_positions" in features:
        used = used | features["query_expansion_positions"].bool()
    return used.cpu().numpy()


def part_of(features: dict[str, Any], rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> dict[str, Any]:
    """Some texts of a block, without the padding at either side of the columns that they need."""
    import torch

    count = len(features["attention_mask"])
    span = slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 1)
    part: dict[str, Any] = {}
    for name, value in features.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            value = value[torch.from_numpy(rows)]
            value = value[:, span].contiguous() if value.ndim > 1 else value
        part[name] = value
    return part


def places(spans: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Character spans of the text alone, 0 for other tokens; expansion may be wider than what the tokeniser saw."""
    places = np.zeros((*shape, 2), np.int32)
    places[:, : spans.shape[1]] = np.clip(spans, 0, None)
    places[places[..., 0] >= places[..., 1]] = 0
    return places
