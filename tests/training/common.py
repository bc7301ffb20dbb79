"""What several of these tests ask of a model."""

from typing import NamedTuple

import torch


def weights(colbert):
    """Copies of the weights that reach a token vector."""
    state = colbert.encoder.model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "pooler" not in name}


def moved(before, after):
    """Names of the weights that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def distance(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


class StoppedError(Exception):
    """What the tests stop a training run with."""


def stop_at(monkeypatch, step, error=StoppedError):
    """Training raises before the step after this one."""
    from pyterrier_mvret.training.trainer import PartTrainer

    whole = PartTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == step:
            raise error
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(PartTrainer, "training_step", training_step)


class Document(NamedTuple):
    docno: str
    text: str
