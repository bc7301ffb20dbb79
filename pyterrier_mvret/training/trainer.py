"""sentence-transformers' trainer, with parts held still, PyTerrier's evaluation, and one progress bar."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils import logging

from pyterrier_mvret.training import curves
from pyterrier_mvret.training.measures import measurable, parsed


class PartTrainer(MultiVectorEncoderTrainer):
    """Keeps the parts of a model that do not move as they are in inference: their dropout would be noise alone.

    Attributes:
        still: those parts.
        carrying: makes what surrounds each pass through model and loss, there and back.
    """

    still: Sequence[nn.Module] = ()
    carrying: Callable[[], AbstractContextManager[Any]] = nullcontext

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The library's: loss and gradient."""
        with self.carrying():
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """The library's: the loss of a validation set."""
        with self.carrying():
            return super().prediction_step(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The library's, which is called after it has set the whole model to training."""
        for module in self.still:
            module.eval()
        return super().compute_loss(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """The library's, which would add a step to a run whose last checkpoint was written at its end."""
        saved: Any = self.state.stateful_callbacks
        if saved["TrainerControl"]["args"]["should_training_stop"]:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_best_model(self) -> None:
        """The library only logs where this fails, and goes on with the last weights as if they were the best."""
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: it would put rows of the training data into the checkpoint's card."""


class RankingEvaluator(BaseEvaluator):
    """Reranks validation results with the model as it is, and measures that through PyTerrier.

    Args:
        results: ``qid``, ``query``, ``docno``, ``text``.
        qrels: of those topics.
        scorer: the stage that ranks with a model.
        measures: of ir_measures; the first chooses the best checkpoint.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        qrels: pd.DataFrame,
        scorer: Callable[[MultiVectorEncoder], pt.Transformer],
        measures: Sequence[Any],
    ):
        super().__init__()
        self.results, self.scorer = results, scorer
        self.measures = [parsed(measure) for measure in measures]
        self.qrels = measurable(qrels[qrels["qid"].isin(results["qid"])])
        self.primary_metric = str(self.measures[0])
        if not len(self.qrels):
            raise ValueError("no topic of the validation results has a judgement")

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Mean of each measure over the topics."""
        ranked = self.scorer(model)(self.results)
        found = pt.Evaluate(ranked, self.qrels, metrics=self.measures)
        return {str(measure): float(found[str(measure)]) for measure in self.measures}


class Bar(TrainerCallback):
    """One progress bar over steps; behind it the last loss, how sparse vectors are, and the last measures."""

    def __init__(self, verbose: bool):
        self._verbose = verbose
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens it; resumed training begins where it stopped."""
        self._bar = pt.tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=not self._verbose
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step on."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Shows what was logged.

        Raises:
            ValueError: the loss or its gradient is no longer finite: nothing good can come of the steps that are left.
        """
        logs = logs or {}
        # half precision's loss is scaled up until a gradient overflows; such a step is left out and the scale lowered
        watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
        lost = [name for name in watched if not np.isfinite(float(logs.get(name, 0.0)))]
        if lost:
            raise ValueError(f"training diverged: {lost[0]} at step {state.global_step}; try a lower learning_rate")
        if self._bar is not None:
            shown = {name: f"{logs[name]:.4f}" for name in ("loss", *curves.measured(logs)) if name in logs}
            shown |= {name: f"{logs[name]:g}" for name in curves.USED if name in logs and not name.endswith("_empty")}
            self._bar.set_postfix({name.removeprefix("eval_"): value for name, value in shown.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Also where training was interrupted."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def one_bar(trainer: MultiVectorEncoderTrainer, verbose: bool) -> Iterator[None]:
    """Our bar in place of the library's prints and bars."""
    bar = Bar(verbose)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(bar)
    try:
        with no_bars():
            yield
    finally:
        bar.close()


@contextmanager
def no_bars() -> Iterator[None]:
    """None of the library's bars over weights that are read and written."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """The library seeds all generators of the process; afterwards the user's go on where they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is what is meant)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
