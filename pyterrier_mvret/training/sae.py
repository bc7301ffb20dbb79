"""Training of sparse autoencoders: token states stream by, nothing is kept but a buffer that mixes them.

Recipe of Latent Terms (Clavie et al. 2026, arXiv 2605.29384, appendix A): AdamW, rate 1e-3 after a warm-up of 5 %, then
down a cosine, 4,096 tokens a step. What the paper does not state is Gao et al.'s (arXiv 2406.04093): atoms of length
one, AuxK for dead latents. ``mean`` begins at that of the first batch, as replications have it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt
import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from torch import Tensor, nn

from pyterrier_mvret.encoders.sae import Latents, TopKSAE

States = Callable[[], Iterable[npt.NDArray[Any]]]
# BatchTopK looks among so many times k activations of each token
_SPARE = 4


@dataclass(frozen=True)
class SAETrainer:
    """How a sparse autoencoder is trained.

    Attributes:
        tokens: token states that are trained on; a corpus that has fewer is read again.
        batch_tokens: of one step.
        learning_rate: at its highest.
        warmup: share of the steps in which the rate rises; from there it falls to 0 along a cosine.
        aux: weight of the loss by which dead latents learn what the others leave (AuxK); 0 for none.
        k_aux: dead latents that do so in each token; none takes 512, or an eighth of all where that is less.
        dead_after: tokens after which a latent that was never active counts as dead.
        clip: largest norm of a gradient.
        weight_decay: of AdamW.
        buffer_batches: batches of states that are mixed: tokens of one text are alike.
        seed: of the order in which states are drawn.
    """

    tokens: int = 10_000_000
    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    warmup: float = 0.05
    aux: float = 1 / 32
    k_aux: int | None = None
    dead_after: int = 1_000_000
    clip: float = 1.0
    weight_decay: float = 0.0
    buffer_batches: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "dead_after", "buffer_batches", "k_aux"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to below 1, got {self.warmup}")

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return max(1, round(self.tokens / self.batch_tokens))

    def rate(self, step: int) -> float:
        """Of a step, from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    def fit(self, sae: TopKSAE, states: States, *, verbose: bool = True) -> pd.DataFrame:
        """Trains it where it is.

        Args:
            sae: what is trained, on its device.
            states: returns token states, text after text, each time it is called: (tokens, dim) arrays.
            verbose: a progress bar with loss, explained variance, dead latents.

        Returns:
            One row for about every hundredth of the steps: ``step``, ``tokens``, ``loss`` (squared error over
            variance), ``explained`` (1 minus it), ``aux``, ``dead``, ``active`` (latents of a token), ``rate``, and
            ``tokens_per_second``.

        Raises:
            ValueError: no state at all, one that is not finite, or a loss that is not.
        """
        run = _Run(self, sae)
        bar = pt.tqdm(total=self.steps, desc="training the dictionary", unit="step", disable=not verbose)
        try:
            for batch in self._batches(states):
                run.step(batch)
                bar.update()
                if run.logged is not None:
                    bar.set_postfix({name: run.logged[name] for name in ("loss", "explained", "dead")})
                if run.number >= self.steps:
                    break
        finally:
            bar.close()
            sae.eval()
        return pd.DataFrame(run.log)

    def _batches(self, states: States) -> Iterator[npt.NDArray[np.float32]]:
        """States in batches, drawn from a buffer that is filled again when it is half empty; without end."""
        rng = np.random.default_rng(self.seed)
        capacity = max(2, self.buffer_batches) * self.batch_tokens
        held: list[npt.NDArray[Any]] = []
        count = 0
        while True:
            seen = 0
            for part in states():
                seen += len(part)
                held.append(np.asarray(part, dtype=np.float32))
                count += len(part)
                if count >= capacity:
                    mixed = np.concatenate(held)[rng.permutation(count)]
                    emitted = (count // 2) // self.batch_tokens * self.batch_tokens
                    yield from np.split(mixed[:emitted], max(1, emitted // self.batch_tokens))
                    held, count = [mixed[emitted:].copy()], count - emitted
            if not seen:
                raise ValueError("there is no token state to train on")
            if count >= self.batch_tokens:  # a corpus that the buffer holds as a whole
                mixed = np.concatenate(held)[rng.permutation(count)]
                emitted = count // self.batch_tokens * self.batch_tokens
                yield from np.split(mixed[:emitted], emitted // self.batch_tokens)
                held, count = [mixed[emitted:].copy()], count - emitted


class _Run:
    """A training run: the optimiser, what is dead, and the log."""

    def __init__(self, how: SAETrainer, sae: TopKSAE):
        self.how, self.sae, self.number = how, sae.train(), 0
        self.device = sae.mean.device
        self.optimiser = torch.optim.AdamW(
            sae.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, eps=1e-8
        )
        self.idle = torch.zeros(sae.latents, dtype=torch.long, device=self.device)
        self.log: list[dict[str, Any]] = []
        self.logged: dict[str, Any] | None = None
        self._every = max(1, how.steps // 100)
        self._since = (time.perf_counter(), 0)

    def step(self, batch: npt.NDArray[np.float32]) -> None:
        """One step of the optimiser."""
        states = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device)
        if not states.isfinite().all():
            raise ValueError("a token state is not finite")
        if not self.number:
            self._begin(states)
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.rate(self.number)
        loss, latents, said = losses(self.sae, states, self.idle > self.how.dead_after, self._k_aux)
        total = loss + self.how.aux * said["aux"]
        if not torch.isfinite(total):
            raise ValueError(f"training diverged at step {self.number}: the loss is {total.item()}")
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        _keep_length(self.sae.decoder)
        nn.utils.clip_grad_norm_(self.sae.parameters(), self.how.clip)
        self.optimiser.step()
        with torch.no_grad():
            self.sae.decoder.copy_(F.normalize(self.sae.decoder, dim=1))
            active = torch.zeros_like(self.idle, dtype=torch.bool)
            active[latents.ids[latents.activations > 0]] = True
            self.idle += len(states)
            self.idle[active] = 0
            if self.sae.budget == "batch":
                least = latents.activations[latents.activations > 0].min()
                self.sae.threshold += (least - self.sae.threshold) * (1 if not self.number else 0.01)
        self.number += 1
        self._note(loss.item(), said["aux"].item(), latents)

    @property
    def _k_aux(self) -> int:
        if not self.how.aux:
            return 0
        return self.how.k_aux or max(1, min(512, self.sae.latents // 8))

    def _begin(self, states: Tensor) -> None:
        """The mean of the first batch, unless one was given."""
        with torch.no_grad():
            if not self.sae.mean.any():
                self.sae.mean.copy_(self.sae.normed(states).mean(0))

    def _note(self, loss: float, aux: float, latents: Latents) -> None:
        if self.number % self._every and self.number != self.how.steps:
            return
        now, tokens = time.perf_counter(), self.number * self.how.batch_tokens
        since, before = self._since
        self._since = (now, tokens)
        self.logged = {
            "step": self.number,
            "tokens": tokens,
            "loss": round(loss, 4),
            "explained": round(1 - loss, 4),
            "aux": round(aux, 4),
            "dead": int((self.idle > self.how.dead_after).sum()),
            "active": round(float((latents.activations > 0).sum(1).float().mean()), 2),
            "rate": self.how.rate(self.number - 1),
            "tokens_per_second": round((tokens - before) / max(now - since, 1e-9)),
        }
        self.log.append(self.logged)


def losses(sae: TopKSAE, states: Tensor, dead: Tensor, k_aux: int) -> tuple[Tensor, Latents, dict[str, Tensor]]:
    """Squared error over variance, the active latents, and the error of dead ones.

    The dense product of tokens and latents has no gradient: only selected activations do, which are few.
    """
    target = sae.normed(states)
    centred = target - sae.mean
    with torch.no_grad():
        dense = sae.activations(centred)
        ids = _selected(sae, dense)
    values = Chosen.apply(centred, sae.encoder, sae.encoder_bias, ids[0], dense.gather(1, ids[0])).clamp(min=0)
    if ids[1] is not None:
        values = values * ids[1]
    latents = Latents(values, ids[0])
    variance = (target - target.mean(0)).square().sum(1).mean().clamp(min=1e-12)
    restored = sae.decode(latents)
    loss = (target - restored).square().sum(1).mean() / variance
    for size in sae.prefixes:
        part = Latents(values * (latents.ids < size), latents.ids)
        loss = loss + (target - sae.decode(part)).square().sum(1).mean() / variance
    loss = loss / (1 + len(sae.prefixes))
    aux = _aux(sae, centred, (target - restored).detach(), dead, k_aux)
    return loss, Latents(values.detach(), latents.ids), {"aux": aux}


def _selected(sae: TopKSAE, dense: Tensor) -> tuple[Tensor, Tensor | None]:
    """(tokens, some) ids of the largest activations, and which of them are within a batch's budget."""
    if sae.budget == "token":
        return dense.topk(sae.k, dim=1).indices, None
    values, ids = dense.topk(min(sae.latents, _SPARE * sae.k), dim=1)
    least, _ = values.flatten().topk(sae.k * len(values))
    return ids, values >= least[-1]


def _aux(sae: TopKSAE, centred: Tensor, rest: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    """What the best dead latents leave of the rest, over its size; exactly 0 where none is dead."""
    found = dead.nonzero()[:, 0]
    if not k_aux or not len(found):
        return centred.new_zeros(())
    dense = F.linear(centred.detach(), sae.encoder[found], sae.encoder_bias[found])
    values, ids = dense.topk(min(k_aux, len(found)), dim=1)
    restored = F.embedding_bag(found[ids], sae.decoder, per_sample_weights=values.clamp(min=0), mode="sum")
    return (rest - restored).square().sum(1).mean() / rest.square().sum(1).mean().clamp(min=1e-12)


def _keep_length(decoder: nn.Parameter) -> None:
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
        to_encoder, to_bias = torch.zeros_like(encoder), encoder.new_zeros(len(encoder))
        for column in range(ids.shape[1]):  # some rows at a time: all pairs at once would be k times the states
            to_encoder.index_add_(0, ids[:, column], gradient[:, column, None] * centred)
        to_bias.index_add_(0, ids.flatten(), gradient.flatten())
        return to_states, to_encoder, to_bias, None, None
