"""States of tokens as a frozen transformer leaves them: before projection, mask and normalisation.

Latent Terms (Clavie et al. 2026, arXiv 2605.29384) is trained on "the final hidden states of the backbone model": all
positions that are no padding, special tokens among them (replications that match the paper's numbers keep those).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyterrier as pt

from pyterrier_mvret.encoders import batches, latents, onednn, salience

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.forward import Task
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

Layer = Literal["last_hidden_state", "projected"]
# texts whose states are held at once where they stream by
_TEXTS_A_BLOCK = 256


class TokenStates(NamedTuple):
    """States of several texts, packed.

    Attributes:
        states: (tokens, dim) float32, as they are: of any length.
        offsets: (texts + 1,) int64; text ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        token_ids: (tokens,) int32.
        spans: (tokens, 2) int32, characters ``[start, end)`` of each token in its text; ``[0, 0]`` for tokens that
            stand for no text, and for all with a slow tokeniser.
    """

    states: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]
    spans: npt.NDArray[np.int32]


def checked_layer(layer: str) -> str:
    """ValueError for another word than those of ``Layer``."""
    if layer not in get_args(Layer):
        raise ValueError(f"layer must be one of {', '.join(get_args(Layer))}, got {layer!r}")
    return layer


def token_states(
    encoder: "TokenEncoder",
    texts: Sequence[str],
    task: "Task" = "document",
    layer: Layer = "last_hidden_state",
    special_tokens: bool = True,
    verbose: bool = False,
) -> TokenStates:
    """States of all tokens of texts, with the encoder's prefix of the task.

    A document is cut where the encoder cuts it; a query is not expanded, and cut only where the model ends.

    Args:
        encoder: whose transformer it is, single-vector or multi-vector.
        texts: equal ones are encoded once.
        task: ``"query"`` or ``"document"``.
        layer: ``"projected"`` takes what the encoder's projection makes of them.
        special_tokens: False leaves out markers, [CLS], [SEP].
        verbose: a progress bar.

    >>> import pyterrier_mvret as mv
    >>> found = token_states(mv.TokenEncoder(mv.models.MINILM), ["A cat sat.", "A dog."])
    >>> found.states.shape, found.offsets.tolist()
    ((11, 384), [0, 6, 11])
    """
    model = encoder.model
    inputs = batches.with_prefix(model, texts, task)
    place = {one: i for i, one in enumerate(dict.fromkeys(inputs))}
    parts: list[tuple[npt.NDArray[Any], ...]] = [()] * len(place)
    training = model.training
    model.eval()
    bar = pt.tqdm(total=len(place), desc="encoding", unit="text", disable=not verbose)
    try:
        for rows, features in batches.batches(model, list(place), task, encoder.batch_size, whole=task == "query"):
            for row, part in zip(rows, _states(model, features, layer, special_tokens), strict=True):
                parts[row] = part
            bar.update(len(rows))
    finally:
        bar.close()
        model.train(training)
    chosen = [parts[place[one]] for one in inputs]
    offsets = np.cumsum([0, *(len(part[0]) for part in chosen)], dtype=np.int64)
    if not chosen:
        return TokenStates(np.empty((0, 0), np.float32), offsets, np.empty(0, np.int32), np.empty((0, 2), np.int32))
    states, token_ids, spans = (np.concatenate(field) for field in zip(*chosen, strict=True))
    return TokenStates(states, offsets, token_ids, spans)


def _states(
    model: "MultiVectorEncoder", features: dict[str, Any], layer: str, special_tokens: bool
) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """States, ids and spans of each text of a batch."""
    import torch
    from sentence_transformers.util import batch_to_device

    spans = features.pop("offset_mapping", None)
    with torch.inference_mode(), onednn.linear_layers(model):
        features = batch_to_device(features, model.device)
        if "cu_seq_lens_q" in features:
            raise ValueError("states need batches that are padded: open the model without flash attention")
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        if not special_tokens:
            mask = mask & ~torch.isin(ids, torch.tensor(_standing_for_no_text(model.tokenizer), device=ids.device))
        out = model[0](features)
        for module in _projections(model) if layer == "projected" else ():
            out = module(out)
        states = out["token_embeddings"][mask].float().cpu().numpy()
    kept = mask.cpu().numpy()
    places = batches.places(np.empty((len(kept), 0, 2)) if spans is None else spans.cpu().numpy(), kept.shape)
    fields = states, ids.cpu().numpy()[kept].astype(np.int32), places[kept]
    ends = np.cumsum(kept.sum(1))[:-1]
    return zip(*(np.split(field, ends) for field in fields), strict=True)


def _standing_for_no_text(tokenizer: Any) -> list[int]:
    """Special tokens but the one for words that a tokeniser does not know, where it is that alone."""
    roles = ("cls", "sep", "pad", "mask", "bos", "eos")
    unknown = {tokenizer.unk_token_id} - {getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    return [number for number in tokenizer.all_special_ids if number not in unknown]


def _projections(model: "MultiVectorEncoder") -> list[Any]:
    """Modules behind the transformer that change what a state is, but for its length and what is known of it."""
    others = (salience.heads_of(model), latents.head_of(model))
    return [m for m in list(model)[1:] if m not in others and any(True for _ in m.parameters())]


def streamed(
    encoder: "TokenEncoder",
    texts: Iterable[str],
    layer: Layer = "last_hidden_state",
    special_tokens: bool = True,
    start: int = 0,
) -> Iterator[npt.NDArray[np.float32]]:
    """States of a corpus, some texts at a time and never all: what a sparse autoencoder is trained on.

    Args:
        encoder: as for :func:`token_states`.
        texts: read once.
        layer: as for :func:`token_states`.
        special_tokens: as for :func:`token_states`.
        start: number of the first array that is wanted; texts before it are not encoded.
    """
    remaining = islice(texts, start * _TEXTS_A_BLOCK, None)
    while block := list(islice(remaining, _TEXTS_A_BLOCK)):
        yield token_states(encoder, block, "document", layer, special_tokens).states
