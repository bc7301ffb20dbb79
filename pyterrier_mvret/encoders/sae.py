"""Sparse autoencoders over token states: which few of many latents each state is a sum of.

    z = TopK(ReLU(W_enc (h - b_pre) + b_enc))        h' = W_dec z + b_pre

The form of Gao et al. 2024 ("Scaling and evaluating sparse autoencoders", arXiv 2406.04093), which Latent Terms (Clavie
et al. 2026, arXiv 2605.29384, section 4.1) trains on the states of a frozen retriever, for reconstruction alone. Its
latents are then terms. BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) spends the budget over a batch, Matryoshka
(Bussmann et al. 2025, arXiv 2503.17547) lets prefixes of the dictionary reconstruct as well.
"""

import json
import operator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from torch import Tensor, nn

from pyterrier_mvret import frames
from pyterrier_mvret.encoders import weights_file

Budget = Literal["token", "batch"]
# numbers of a dense (tokens, latents) array that is held at once
_AT_ONCE = 1 << 24
_FORMAT = 1


class Latents(NamedTuple):
    """The active latents of tokens: at most k each (BatchTopK: however many), the rest of a row is zeros.

    Attributes:
        activations: (tokens, k) float32, at least 0, the largest first.
        ids: (tokens, k) int64; of an activation of 0 it means nothing.
    """

    activations: Tensor
    ids: Tensor


class TopKSAE(nn.Module):
    """A dictionary of latents, ``k`` of which at most are active in a token.

    "TopK" is per token, in training and afterwards alike; what is not positive is not active, so that a token may have
    fewer. Arithmetic is float32, whatever the encoder's is: half precision reorders latents.

    Args:
        dim: dimensions of a token state.
        latents: size of the dictionary; the paper's 32,768 is of the order of a tokeniser's vocabulary.
        k: active latents of a token at most.
        budget: ``"token"``, or ``"batch"``: BatchTopK, which spends ``k`` a token on average over a batch in training,
            and afterwards keeps the values above a threshold that training has found. States that are longer than
            others take most of it, so it goes with ``input_norm="layer"``.
        prefixes: sizes of nested dictionaries that each are to reconstruct (Matryoshka); none for the whole alone.
        input_norm: ``"layer"`` takes a state's mean away and divides by its deviation first (Gao et al. do; for Latent
            Terms it is not said); then the length of a state no longer adds to the weight of its terms.
        seed: of the first weights.

    Raises:
        ValueError: a size below 1, more active latents than there are, or prefixes that do not rise to ``latents``.

    >>> sae = TopKSAE(2, latents=4, k=2)
    >>> sae.encode(np.array([[2.5, 0.5], [0.5, 2.5]], np.float32)).activations.shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        dim: int,
        latents: int = 32768,
        k: int = 16,
        *,
        budget: Budget = "token",
        prefixes: tuple[int, ...] = (),
        input_norm: Literal["layer"] | None = None,
        seed: int = 0,
    ):
        super().__init__()
        dim, latents, k, seed = (operator.index(size) for size in (dim, latents, k, seed))  # numpy's have no JSON
        if min(dim, latents, k) < 1 or k > latents:
            raise ValueError(f"dim, latents and k are at least 1, and k at most latents: {dim}, {latents}, {k}")
        if budget not in ("token", "batch") or input_norm not in (None, "layer"):
            raise ValueError(f"budget is 'token' or 'batch', input_norm 'layer' or None: {budget!r}, {input_norm!r}")
        prefixes = tuple(operator.index(size) for size in prefixes)
        if list(prefixes) != sorted(set(prefixes)) or any(not 0 < size < latents for size in prefixes):
            raise ValueError(f"prefixes must rise and be below {latents}, got {prefixes}")
        self.dim, self.latents, self.k = dim, latents, k
        self.budget, self.prefixes, self.input_norm, self.seed = budget, prefixes, input_norm, seed
        generator = torch.Generator().manual_seed(seed)
        atoms = F.normalize(torch.randn(latents, dim, generator=generator), dim=1)
        # rows are atoms; the encoder begins as the decoder's transpose
        self.decoder, self.encoder = nn.Parameter(atoms), nn.Parameter(atoms.clone())
        self.encoder_bias, self.mean = nn.Parameter(torch.zeros(latents)), nn.Parameter(torch.zeros(dim))
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    @classmethod
    def random(cls, dim: int, latents: int = 32768, k: int = 16, *, seed: int = 0, mean: Any = None) -> "TopKSAE":
        """The control of every experiment: random atoms, never trained.

        Args:
            dim: as for the class.
            latents: as for the class.
            k: as for the class.
            seed: of the atoms.
            mean: (dim,) the mean of token states, which is all that it knows of them; none for zeros.
        """
        sae = cls(dim, latents, k, seed=seed)
        if mean is not None:
            with torch.no_grad():
                sae.mean.copy_(torch.as_tensor(np.asarray(mean, dtype=np.float32)))
        return sae

    # ------------------------------------------------------------------ encoding

    @torch.no_grad()
    def encode(self, states: "Tensor | npt.NDArray[Any]") -> Latents:
        """Active latents of token states, some tokens at a time: no dense (tokens, latents) array stays.

        Args:
            states: (tokens, dim), of any type of number.

        Raises:
            ValueError: another shape, or a state that is not finite in float32.
        """
        if not isinstance(states, Tensor):
            # a copy, as PyTorch takes no array that is read-only or runs backwards
            states = torch.from_numpy(np.array(frames.matrix(states, "token states"), order="C"))
        if states.ndim != 2 or states.shape[1] != self.dim:
            raise ValueError(f"expected states of shape (tokens, {self.dim}), got {tuple(states.shape)}")
        states = states.to(self.mean.device)
        step = max(1, _AT_ONCE // self.latents)
        with torch.autocast(states.device.type, enabled=False):
            parts = [self._encoded(part.float()) for part in states.split(step)]
        width = max(part.ids.shape[1] for part in parts)
        wide = [[F.pad(field, (0, width - field.shape[1])) for field in part] for part in parts]
        return Latents(*map(torch.cat, zip(*wide, strict=True)))

    def _encoded(self, states: Tensor) -> Latents:
        if not states.isfinite().all():
            raise ValueError("a token state is not finite")
        activations = self.activations(self.centred(states))
        if self.budget == "batch" and self.threshold > 0:  # else it was never trained
            return reaching(activations, self.threshold)
        values, ids = activations.topk(self.k, dim=1)
        return Latents(values.clamp(min=0), ids)

    def centred(self, states: Tensor) -> Tensor:
        """(tokens, dim) float32 as the dictionary sees them: normed where it is so, without the mean."""
        return self.normed(states) - self.mean

    def normed(self, states: Tensor) -> Tensor:
        """(tokens, dim) float32, what is to be reconstructed."""
        states = states.float()
        return F.layer_norm(states, (self.dim,)) if self.input_norm == "layer" else states

    def activations(self, centred: Tensor) -> Tensor:
        """(tokens, latents) before TopK and ReLU."""
        return F.linear(centred, self.encoder, self.encoder_bias)

    def decode(self, latents: Latents) -> Tensor:
        """(tokens, dim): what active latents stand for."""
        return self.mean + F.embedding_bag(
            latents.ids, self.decoder, per_sample_weights=latents.activations, mode="sum"
        )

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"dim={self.dim}, latents={self.latents}, k={self.k}, digest={self.digest!r}"

    # ------------------------------------------------------------------ files

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = ("dim", "latents", "k", "budget", "prefixes", "input_norm", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits over weights and settings: equal ones make the same terms."""
        settings = json.dumps({name: value for name, value in self.settings().items() if name != "seed"})
        # the decoder has no part in encoding
        weights = {name: tensor for name, tensor in self.state_dict().items() if name != "decoder"}
        if any(tensor.is_inference() for tensor in weights.values()):  # PyTorch does not notice what changes these
            return weights_file.digest(weights, settings)
        # every call of a stage asks, and a hundred megabytes take longer than a query
        state = (settings, *((tensor.data_ptr(), tensor._version) for tensor in weights.values()))
        if self._digested is None or self._digested[0] != state:
            self._digested = (state, weights_file.digest(weights, settings))
        return self._digested[1]

    _digested: tuple[Any, str] | None = None

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all; settings are in its header."""
        weights_file.write(path, "TopKSAE", _FORMAT, self.settings(), self.state_dict())

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> "TopKSAE":
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another file, or a damaged one.
        """
        settings, weights = weights_file.read(path, "TopKSAE", _FORMAT, "sparse autoencoder")
        sae = cls(**settings)
        sae.load_state_dict(weights)
        return sae.to(device) if device is not None else sae


def reaching(activations: Tensor, least: Tensor) -> Latents:
    """The activations above 0 that reach a value; as wide as the token that has most of them."""
    counts = ((activations >= least) & (activations > 0)).sum(1)
    values, ids = activations.topk(max(1, int(counts.max())) if len(counts) else 1, dim=1)
    return Latents(values.clamp(min=0) * (values >= least), ids)
