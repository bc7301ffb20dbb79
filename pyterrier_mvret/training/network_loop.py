"""Training of small networks over vectors that are already there: batches, early stopping, the best weights kept."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import pyterrier as pt
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkTrainer:
    """How a network is trained.

    Attributes:
        epochs: passes over the rows at most.
        batch_size: rows of one step; few, as a hundred judged topics are few steps otherwise.
        learning_rate: of Adam.
        weight_decay: of AdamW; 0 is Adam.
        patience: epochs without a better validation after which training stops; none for all epochs.
        seed: of the order of rows, and of dropout.
    """

    epochs: int = 50
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int | None = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ValueError("learning_rate must be a finite number above 0, weight_decay one of at least 0")

    def fit(
        self,
        network: nn.Module,
        rows: int,
        loss: Callable[[Tensor], Tensor],
        measure: Callable[[], float] | None = None,
        name: str = "valid",
        verbose: bool = True,
    ) -> pd.DataFrame:
        """Trains it where it is; the weights that measured best stay, those before training among them.

        Args:
            network: what is trained.
            rows: how many there are to learn from.
            loss: of some rows, by their numbers.
            measure: of the network as it is, more is better; none keeps the last weights.
            name: what is measured.
            verbose: a progress bar.

        Returns:
            ``epoch`` (0 is before training), ``loss``, what was measured, and whether an epoch's weights were ``kept``.

        Raises:
            ValueError: a loss that is not finite.
        """
        device = next(network.parameters()).device
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        order = torch.Generator().manual_seed(self.seed)
        history = [{"epoch": 0, "loss": math.nan, **({} if measure is None else {name: _measured(network, measure)})}]
        best, at = copy.deepcopy(network.state_dict()), 0
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            pt.tqdm(total=self.epochs, desc="training", unit="epoch", disable=not verbose) as bar,
        ):
            torch.manual_seed(self.seed)
            for epoch in range(1, self.epochs + 1):
                network.train()
                total = 0.0
                for batch in torch.randperm(rows, generator=order).split(self.batch_size):
                    value = loss(batch)
                    if not value.isfinite():
                        raise ValueError(f"the loss is {value.item()} in epoch {epoch}: try a lower learning_rate")
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
                    total += value.item() * len(batch)
                row = {"epoch": epoch, "loss": total / rows}
                if measure is not None:
                    row[name] = _measured(network, measure)
                history.append(row)
                bar.set_postfix({key: f"{value:.4f}" for key, value in row.items() if key != "epoch"})
                bar.update()
                if measure is None or row[name] > history[at][name]:
                    best, at = copy.deepcopy(network.state_dict()), epoch
                elif self.patience is not None and epoch - at >= self.patience:
                    break
            network.load_state_dict(best)
            network.eval()
            with torch.inference_mode():  # the last step may have been the one that diverged
                value = loss(batch)
            if not value.isfinite():
                raise ValueError(f"the loss is {value.item()} after epoch {at}: try a lower learning_rate")
        curves = pd.DataFrame(history)
        return curves.assign(kept=curves["epoch"] == at)


def _measured(network: nn.Module, measure: Callable[[], float]) -> float:
    network.eval()
    with torch.inference_mode():
        return measure()


def listwise(scores: Tensor, gains: Tensor) -> Tensor:
    """Cross-entropy of what is scored and what is relevant, ``-sum_j p_j log softmax_j(scores)``, ``p_j ~ gain_j``.

    Args:
        scores: (queries, candidates), minus infinity where there is none.
        gains: (queries, candidates), 0 where there is none; every query has one above.

    >>> listwise(torch.tensor([[2.0, 0.0, -torch.inf]]), torch.tensor([[0.0, 1.0, 0.0]])).item()
    2.1269...
    """
    targets = gains / gains.sum(1, keepdim=True)
    logs = scores.log_softmax(1).masked_fill(targets == 0, 0)  # zero times minus infinity is no number
    return -(targets * logs).sum(1).mean()
