"""Training of sparse autoencoders: token states stream by, nothing is kept but a buffer that mixes them.

Recipe of Latent Terms (Clavie et al. 2026, arXiv 2605.29384, appendix A): AdamW, rate 1e-3 after a warm-up of 5 %, then
down a cosine, 4,096 tokens a step. What the paper does not state is Gao et al.'s (arXiv 2406.04093): atoms of length
one, AuxK for dead latents. ``mean`` begins at that of the states that first fill the buffer (our choice).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt
import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from torch import Tensor, nn

from pyterrier_mvret.encoders.sae import TopKSAE
from pyterrier_mvret.training import checkpoint
from pyterrier_mvret.training.reconstruction import keep_length, losses
from pyterrier_mvret.training.stream import Floats, States, Stream


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
        save_steps: steps from one checkpoint to the next, where there is a folder for them.

    >>> import numpy as np
    >>> sae, states = TopKSAE(8, latents=32, k=2), np.random.default_rng(0).normal(size=(500, 8))
    >>> history = SAETrainer(tokens=6400, batch_tokens=64).fit(sae, lambda start: [states][start:], verbose=False)
    >>> bool(history["loss"].iloc[-1] < history["loss"].iloc[0])
    True
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
    save_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "dead_after", "buffer_batches", "k_aux", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("learning_rate", "aux", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")
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

    def settings(self) -> dict[str, Any]:
        """What decides the outcome."""
        return {name: value for name, value in vars(self).items() if name != "save_steps"}

    def fit(
        self, sae: TopKSAE, states: States, *, checkpoints: str | Path | None = None, verbose: bool = True
    ) -> pd.DataFrame:
        """Trains it where it is.

        Args:
            sae: what is trained, on its device.
            states: returns arrays of (tokens, dim) states, text after text, from array number ``start`` on; it is
                called again for every pass.
            checkpoints: a folder; training goes on from the last checkpoint in it, if there is one, and ends as if it
                had never stopped. Only the last is kept: weights, the optimiser's state, no states of tokens but those
                of less than one step.
            verbose: a progress bar with loss, explained variance, dead latents.

        Returns:
            One row for about every hundredth of the steps: ``step``, ``tokens`` (presented), ``unique`` (different ones
            read so far), ``passes`` (how often the end of the corpus was reached), ``loss`` (squared error over
            variance), ``explained`` (1 minus it), ``aux``, ``dead``, ``active`` (latents of a token), ``rate``, and
            ``tokens_per_second``, waiting for states included. Of nested dictionaries ``loss`` is their mean.

        Raises:
            ValueError: no state at all, one that is not finite, a loss that is not, or a checkpoint of other settings.
        """
        stream = Stream(states, self.batch_tokens, max(2, self.buffer_batches) * self.batch_tokens, self.seed)
        folder = None if checkpoints is None else Path(checkpoints)
        run = _Run(self, sae, stream)
        if folder is not None:
            run.resume(folder)
        bar = pt.tqdm(
            total=self.steps, initial=run.number, desc="training the dictionary", unit="step", disable=not verbose
        )
        try:
            while run.number < self.steps:
                run.step(next(stream))
                bar.update()
                if run.log:
                    bar.set_postfix({name: run.log[-1][name] for name in ("loss", "explained", "dead")})
                if folder is not None and (run.number % self.save_steps == 0 or run.number == self.steps):
                    run.save(folder)
        finally:
            bar.close()
            sae.eval()
        return pd.DataFrame(run.log)


class _Run:
    """A training run: the optimiser, what is dead, and the log."""

    def __init__(self, how: SAETrainer, sae: TopKSAE, stream: Stream):
        self.how, self.sae, self.stream, self.number = how, sae.train(), stream, 0
        self.device = sae.mean.device
        self.optimiser = torch.optim.AdamW(
            sae.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, eps=1e-8
        )
        self.idle = torch.zeros(sae.latents, dtype=torch.long, device=self.device)
        self.log: list[dict[str, Any]] = []
        self._began = sae.digest
        self._every = max(1, how.steps // 100)
        self._tokens = 0
        self._since = (time.perf_counter(), 0)

    def step(self, batch: Floats) -> None:
        """One step of the optimiser."""
        states = torch.from_numpy(batch).to(self.device)
        if not states.isfinite().all():
            raise ValueError("a token state is not finite")
        if not self.number and not self.sae.mean.any():
            with torch.no_grad():
                parts = self.stream.held
                sums = torch.stack([self.sae.normed(torch.from_numpy(part)).sum(0) for part in parts])
                self.sae.mean.copy_(sums.sum(0) / sum(map(len, parts)))
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.rate(self.number)
        loss, latents, aux = losses(self.sae, states, self.idle > self.how.dead_after, self._k_aux)
        total = loss + self.how.aux * aux
        if not torch.isfinite(total):
            raise ValueError(f"training diverged at step {self.number}: the loss is {total.item()}")
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        keep_length(self.sae.decoder)
        nn.utils.clip_grad_norm_(self.sae.parameters(), self.how.clip)
        self.optimiser.step()
        with torch.no_grad():
            self.sae.decoder.copy_(F.normalize(self.sae.decoder, dim=1))
            active = latents.activations > 0
            self._watch(latents.ids[active], len(states))
            if self.sae.budget == "batch" and active.any():
                least = latents.activations[active].min()
                self.sae.threshold += (least - self.sae.threshold) * (1 if not self.number else 0.01)
        self.number += 1
        self._tokens += len(states)
        if self.number % self._every == 0 or self.number == self.how.steps:
            self._note(loss, aux, active.sum() / len(states))

    @property
    def _k_aux(self) -> int:
        if not self.how.aux:
            return 0
        return self.how.k_aux or max(1, min(512, self.sae.latents // 8))

    def _watch(self, active: Tensor, tokens: int) -> None:
        """How many tokens each latent has not been active for."""
        self.idle += tokens
        self.idle[active] = 0

    def _note(self, loss: Tensor, aux: Tensor, active: Tensor) -> None:
        now = time.perf_counter()
        since, before = self._since
        self._since = (now, self._tokens)
        self.log.append(
            {
                "step": self.number,
                "tokens": self._tokens,
                "unique": self.stream.read,
                "passes": self.stream.passes,
                "loss": round(loss.item(), 4),
                "explained": round(1 - loss.item(), 4),
                "aux": round(aux.item(), 4),
                "dead": int((self.idle > self.how.dead_after).sum()),
                "active": round(active.item(), 2),
                "rate": self.how.rate(self.number - 1),
                "tokens_per_second": round((self._tokens - before) / max(now - since, 1e-9)),
            }
        )

    # ------------------------------------------------------------------ checkpoints

    def _settings(self) -> dict[str, Any]:
        return {"trainer": self.how.settings(), "sae": self.sae.settings(), "began": self._began}

    def save(self, folder: Path) -> None:
        """Writes all that going on takes; removes the checkpoint before it."""
        place, left = self.stream.state()
        tensors = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {"idle": self.idle, "left": torch.from_numpy(left)}
        about = {"tokens": self._tokens, "stream": place, "log": self.log, "settings": self._settings()}
        checkpoint.write(folder, self.number, tensors, about)

    def resume(self, folder: Path) -> None:
        """Goes on from the last checkpoint, if there is one."""
        found = checkpoint.last(folder, self._settings())
        if found is None:
            return
        self.number, tensors, about = found
        self.sae.load_state_dict(_under("sae.", tensors))
        state = self.optimiser.state_dict()
        state["state"] = {
            number: _under(f"adam.{number}.", tensors) for number in range(len(state["param_groups"][0]["params"]))
        }
        self.optimiser.load_state_dict(state)
        self.idle.copy_(tensors["idle"])
        self.log, self._tokens = about["log"], about["tokens"]
        self._since = (time.perf_counter(), self._tokens)
        if self.number < self.how.steps:  # else there is nothing to read
            self.stream.restore(about["stream"], tensors["left"].numpy())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
