"""A training run that is killed before a step: checkpoint, data, path, step, settings as JSON."""

import json
import os
import signal
import sys

from datasets import load_from_disk

import pyterrier_mvret as mv
from pyterrier_mvret.training.trainer import PartTrainer


def main(checkpoint, data, path, step, settings):
    whole = PartTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *args, **kwargs)

    PartTrainer.training_step = training_step
    mv.ColBERT(checkpoint, device="cpu").fit(load_from_disk(data), path=path, **json.loads(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
