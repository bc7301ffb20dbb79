"""What a sparse autoencoder is trained on: the error of its reconstructions, and that of dead latents (AuxK).

AuxK is Gao et al.'s (arXiv 2406.04093); BatchTopK and nested dictionaries are as in ``encoders/sae.py``.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from torch import Tensor, nn

from pyterrier_mvret.encoders.sae import Latents, TopKSAE, reaching


def losses(sae: TopKSAE, states: Tensor, dead: Tensor, k_aux: int) -> tuple[Tensor, Latents, Tensor]:
    """Squared error over variance, the active latents, and the error that dead ones leave.

    Args:
        sae: what is trained.
        states: (tokens, dim).
        dead: (latents,) which of them are.
        k_aux: dead latents of a token that learn; 0 for none.

    The dense product of tokens and latents has no gradient: only selected activations do, which are few.
    """
    target = sae.normed(states)
    centred = target - sae.mean
    with torch.no_grad():
        dense = sae.activations(centred)
        chosen = _selected(sae, dense)
        del dense
    values = Chosen.apply(centred, sae.encoder, sae.encoder_bias, chosen.ids, chosen.activations)
    latents = Latents(values * (chosen.activations > 0), chosen.ids)
    variance = (target - target.mean(0)).square().sum(1).mean().clamp(min=1e-12)
    restored = sae.decode(latents)
    loss = (target - restored).square().sum(1).mean() / variance
    for size in sae.prefixes:
        part = Latents(latents.activations * (latents.ids < size), latents.ids)
        loss = loss + (target - sae.decode(part)).square().sum(1).mean() / variance
    loss = loss / (1 + len(sae.prefixes))
    aux = _aux(sae, centred, (target - restored).detach(), dead, k_aux)
    return loss, chosen, aux


def _selected(sae: TopKSAE, dense: Tensor) -> Latents:
    """The largest activations, of each token or of the batch."""
    if sae.budget == "batch":
        return reaching(dense, dense.flatten().topk(sae.k * len(dense), sorted=False).values.min())
    values, ids = dense.topk(sae.k, dim=1)
    return Latents(values.clamp(min=0), ids)


def _aux(sae: TopKSAE, centred: Tensor, rest: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    """What the best dead latents leave of the rest, over its size; exactly 0 where none is dead."""
    found = dead.nonzero()[:, 0]
    if not k_aux or not len(found):
        return centred.new_zeros(())
    dense = F.linear(centred.detach(), sae.encoder[found], sae.encoder_bias[found])
    values, ids = dense.topk(min(k_aux, len(found)), dim=1)
    restored = F.embedding_bag(found[ids], sae.decoder, per_sample_weights=values.clamp(min=0), mode="sum")
    return (rest - restored).square().sum(1).mean() / rest.square().sum(1).mean().clamp(min=1e-12)


def keep_length(decoder: nn.Parameter) -> None:
    """Takes away what of a gradient would change the length of atoms."""
    if decoder.grad is not None:
        decoder.grad -= (decoder.grad * decoder.data).sum(1, keepdim=True) * decoder.data


class Chosen(torch.autograd.Function):
    """Some activations of each token, with gradients that cost as many products as are chosen."""

    @staticmethod
    def forward(ctx: Any, centred: Tensor, encoder: Tensor, bias: Tensor, ids: Tensor, values: Tensor) -> Tensor:
        """The values are those of the dense product at ``ids``."""
        ctx.save_for_backward(centred, encoder, ids)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """As of ``(centred[:, None] * encoder[ids]).sum(-1) + bias[ids]``."""
        centred, encoder, ids = ctx.saved_tensors
        to_states = F.embedding_bag(ids, encoder, per_sample_weights=gradient, mode="sum")
        tokens, columns = gradient.nonzero(as_tuple=True)  # most of a row is none where a batch's budget is spent
        places = torch.stack([ids[tokens, columns], tokens])
        matrix = torch.sparse_coo_tensor(
            places, gradient[tokens, columns], (len(encoder), len(centred)), check_invariants=False
        )
        to_encoder, to_bias = torch.sparse.mm(matrix, centred), encoder.new_zeros(len(encoder))
        to_bias.index_add_(0, ids.flatten(), gradient.flatten())
        return to_states, to_encoder, to_bias, None, None
