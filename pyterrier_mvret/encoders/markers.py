"""Query markers: the ordinary one (``m_q``), and AGRaME's second one (``m'_q``), which says that units are asked for.

A marker is a prefix that the tokeniser keeps in one piece. The second one is one more prompt of the checkpoint, so it
is saved and opened with it, and one that a checkpoint does not name was not trained (Reddy et al. 2024, section 4.1).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

#: the name of the second query marker among a model's prompts
UNIT = "unit"


def is_marker(prefix: str) -> bool:
    """Whether a prefix is written as one token, such as ``"[Q] "``, and not as text."""
    return prefix.strip().startswith("[") and prefix.strip().endswith("]")


def register(tokenizer: Any, prefix: str) -> None:
    """Makes the tokeniser keep a marker it knows (``[unused0]``) in one piece instead of splitting its text."""
    for marker in (prefix, *prefix.split(maxsplit=1)[:1]):
        if marker and marker in tokenizer.get_vocab():
            if tokenizer.tokenize(marker) != [marker]:
                _keep_whole(tokenizer, marker)
            return


def check_whole(tokenizer: Any, prefix: str, who: str) -> None:
    """ValueError where a prefix is a marker, and the tokeniser does not read it as one token."""
    if is_marker(prefix):
        pieces = tokenizer.tokenize(prefix)
        if len(pieces) != 1 or pieces == [tokenizer.unk_token]:
            raise ValueError(f"{who} marker {prefix.strip()!r} is not in the vocabulary (read as {pieces})")


def _keep_whole(tokenizer: Any, marker: str) -> None:
    from transformers import AddedToken

    token = AddedToken(marker, normalized=False, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})


def of_units(encoder: "TokenEncoder", wanted: str | None) -> str | None:
    """What goes before queries whose units are scored; none where that is the ordinary prefix.

    Args:
        encoder: of the queries.
        wanted: ``"auto"`` takes the marker that the checkpoint was trained with, if there is one; none never does; a
            marker must be that one.

    Raises:
        ValueError: another marker than the checkpoint was trained with.
    """
    if wanted is None:
        return None
    found = encoder.model.prompts.get(UNIT)
    if wanted != "auto" and not trained(encoder, wanted):
        has = "no second query marker" if found is None else f"the second query marker {found.strip()!r}"
        raise ValueError(
            f"{encoder.space} was trained with {has}, and an untrained one ranks noise: train {wanted!r} with "
            "fit_encoder (loss='multi-granular'), or take query_marker='auto'"
        )
    return found


def trained(encoder: "TokenEncoder", marker: str) -> bool:
    """Whether a checkpoint was trained with this second query marker."""
    return (encoder.model.prompts.get(UNIT) or "").strip() == marker.strip()


@dataclass(frozen=True)
class UnitMarker:
    """Gives a model the second query marker, to be trained.

    Called with a model it changes it. A token that is no word of the tokeniser's is added, and its vector is that of
    the ordinary query marker (of the first special token where there is none), so that training starts with the
    model's own queries. The paper does not say which token it took, nor how its vector began: both are our choice. A
    marker that the model was trained with already is left as it is.

    Args:
        marker: a token, ``"[unused2]"`` of BERT's vocabulary, ``"[Q2]"`` elsewhere; or text that goes before queries.
    """

    marker: str

    def __post_init__(self) -> None:
        if not self.marker.strip():
            raise ValueError(f"a marker is a token or a text, got {self.marker!r}")

    def __call__(self, model: "MultiVectorEncoder") -> None:
        """Changes the model where it is."""
        token, own = self.marker.strip(), model.prompts.get("query") or ""
        if (model.prompts.get(UNIT) or "").strip() == token:
            return
        self._check_free(model, token)
        prefix = token + " "
        if is_marker(token):
            _add(model, token, like=own)
            if model.tokenizer.tokenize(prefix) != [token]:  # one of bytes or pieces makes a token of the blank
                prefix = token
        model.prompts[UNIT] = prefix

    def _check_free(self, model: "MultiVectorEncoder", token: str) -> None:
        """ValueError where the token has a use already: its vector would be written over."""
        uses = dict.fromkeys(model.tokenizer.special_tokens_map.values(), "a special token")
        for task, prompt in model.prompts.items():
            if task != UNIT and prompt:
                uses |= dict.fromkeys((prompt.strip(), *prompt.split()), f"the {task} marker")
        if token in uses:
            raise ValueError(f"{self.marker!r} is {uses[token]} of this model: the second one must be another")


def _add(model: "MultiVectorEncoder", marker: str, like: str) -> None:
    """One token, with the vector of another."""
    import torch

    tokenizer: Any = model.tokenizer
    transformer: Any = model[0]
    source = tokenizer(like, add_special_tokens=False)["input_ids"] or tokenizer("")["input_ids"]
    if not source:
        raise ValueError(f"no token to begin {marker!r} with: the tokeniser has no marker and no special token")
    if marker in tokenizer.get_vocab():
        register(tokenizer, marker)
    else:
        _keep_whole(tokenizer, marker)
    place = tokenizer.convert_tokens_to_ids(marker)
    network = transformer.auto_model
    if place >= network.get_input_embeddings().num_embeddings:
        network.resize_token_embeddings(place + 1, mean_resizing=False)
    with torch.no_grad():
        vectors = network.get_input_embeddings().weight
        vectors[place] = vectors[source[0]]


@dataclass(frozen=True)
class WithoutUnitMarker:
    """Makes a model forget the second query marker: what is trained without it does not know it any longer."""

    def __call__(self, model: "MultiVectorEncoder") -> None:
        """Changes the model where it is."""
        model.prompts.pop(UNIT, None)
