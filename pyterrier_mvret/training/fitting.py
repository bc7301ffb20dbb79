"""``model.fit``: an encoder trained on the library's trainer, whole or in part, resumable, measured on the way."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.encoders import markers, salience, settings
from pyterrier_mvret.encoders.stages import TextScorer
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.scoring import MaxSim, ScoringRule
from pyterrier_mvret.training import curves
from pyterrier_mvret.training.data import checked
from pyterrier_mvret.training.plan import Plan
from pyterrier_mvret.training.run import Run
from pyterrier_mvret.training.splits import refuse_test_topics
from pyterrier_mvret.training.unit_data import UNITS

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder


# (results, qrels) of validation topics, or a training set whose loss is taken
Validation = Union[tuple[pd.DataFrame, pd.DataFrame], "Dataset"]


def fit(
    encoder: TokenEncoder,
    rule: ScoringRule,
    data: "Dataset",
    valid: Validation | None = None,
    *,
    path: str | Path | None = None,
    resume: bool = False,
    test_topics: pd.DataFrame | None = None,
    test_qids: bool = True,
    verbose: bool = True,
    prepare: "Callable[[MultiVectorEncoder], None] | None" = None,
    scorer: Callable[[TokenEncoder], pt.Transformer] | None = None,
    finish: Callable[[Path], None] | None = None,
    **plan: Any,
) -> pd.DataFrame:
    """Trains an encoder on sentence-transformers' ``MultiVectorEncoderTrainer``; every stage that holds it changes.

    A copy is trained and takes the encoder's place at the end: training that fails or is interrupted changes nothing.

    Args:
        encoder: what is trained.
        rule: how its vectors are scored, in the loss and in validation.
        data: a training set (:mod:`pyterrier_mvret.training.data`).
        valid: what chooses the best checkpoint: ``(results, qrels)`` of validation topics, results with ``query`` and
            ``text``, which are reranked and measured; or a training set, whose loss is taken. None keeps the last step.
        path: where the trained model goes; checkpoints lie beside it, in ``<path>.training``, until then. None keeps
            the model in memory alone.
        resume: go on from the checkpoints of a run with the same settings, or start if there are none; a finished run
            is opened. A run with other settings is an error that names them.
        test_topics: topics that must be neither trained nor validated on, by their text and their qid.
        test_qids: False compares texts alone, for data from collections that number their topics alike.
        verbose: a progress bar with the last loss and measures.
        prepare: changes the copy before it is trained (gives it salience heads, say); a value whose ``repr`` says how.
        scorer: makes the stage that ranks validation results, from the encoder as it is; a value whose ``repr`` says
            how. None scores texts by ``rule``.
        finish: writes what else belongs to a model into its folder, before the folder appears.
        **plan: the settings of :class:`~pyterrier_mvret.training.plan.Plan`.

    Returns:
        The curves: ``step``, ``epoch``, ``loss``, ``learning_rate``, and what was measured at each validation, from
        step 0, before training.

    Raises:
        ValueError: an encoder that cannot be trained as it is set, data that is not in the format, a test topic among
            those trained on, settings other than those of the run to be resumed.
        FileExistsError: ``path`` is there already, and ``resume`` is not set.
    """
    how = Plan.of(**plan)
    if not (valid is None or hasattr(valid, "column_names") or (isinstance(valid, tuple) and len(valid) == 2)):
        raise ValueError(f"valid is a pair (results, qrels) or a training set, got {type(valid).__name__}")
    if test_topics is not None:
        for seen in (data, valid[0] if isinstance(valid, tuple) else valid):
            if seen is not None:
                refuse_test_topics(seen, test_topics, qids=test_qids)
    if how.early_stopping is not None and valid is None:
        raise ValueError("early_stopping needs valid=, which says what is better")
    _check_trainable(encoder)
    units = UNITS if how.units else ()
    columns = checked(data, how.objective.teacher, units)
    if isinstance(valid, tuple):
        results, qrels = valid
        pt.validate.columns(results, includes=["qid", "query", "docno", "text"])
        pt.validate.columns(qrels, includes=["qid", "docno", "label"])
    elif valid is not None:
        valid = checked(valid, how.objective.teacher, units)
    _check_contrast(columns, how)
    record = {} if path is None else _record(encoder, rule, columns, valid, how)
    record |= {name: repr(made) for name, made in (("prepare", prepare), ("scorer", scorer)) if made is not None}
    # absolute: the model is opened from there on first use, and by copies in other processes
    run = Run(None if path is None else Path(path).absolute(), resume, record)
    try:
        if run.finished:
            history = run.history()
        else:
            model = copy.deepcopy(encoder.model)
            if prepare is not None:
                prepare(model)
            stage = scorer or (lambda encoder: TextScorer(encoder, rule))
            history = _train(model, rule, columns, valid, how, run, stage, verbose)
            trained = TokenEncoder(model)
            if run.path is not None:
                run.complete(lambda folder: _save(trained, folder, finish), history)
        encoder.adopt(model if run.path is None else run.path)
    finally:
        run.close()
    return history


def _train(
    model: "MultiVectorEncoder",
    rule: ScoringRule,
    columns: "Dataset",
    valid: Validation | None,
    how: Plan,
    run: Run,
    stage: Callable[[TokenEncoder], pt.Transformer],
    verbose: bool,
) -> pd.DataFrame:
    """Trains the model where it is, and returns the curves."""
    from transformers import EarlyStoppingCallback

    from pyterrier_mvret.training import frozen, trainer

    choose = evaluator = None
    if isinstance(valid, tuple):
        results, qrels = valid
        evaluator = trainer.RankingEvaluator(results, qrels, lambda m: stage(TokenEncoder(m)), how.measures)
        choose = f"eval_{evaluator.primary_metric}"
    elif valid is not None:
        choose = "eval_loss"
    heads = _weighing(rule, model)
    if how.train == "salience" and heads is None:
        raise ValueError("train='salience' needs salience heads, and a rule and a gate by which scores depend on them")
    scores = _scores(rule, model, weighed=heads is not None)
    carrying = nullcontext if heads is None else partial(salience.carried, model)
    with trainer.own_randomness(model.device), _part(model, how.train) as still:
        cache = how.cache if how.train in ("head", "salience") else None
        with nullcontext() if cache is None else frozen.cached_states(model, cache):
            last = run.checkpoint()
            arguments = how.trainer_arguments(
                str(run.folder), model.device.type, _prompts(model, columns, valid), choose, keep=run.path is not None
            )
            if last is not None:  # evaluated at that step already
                arguments.eval_on_start = False
            runner = _trainer(how)(
                model=model,
                args=arguments,
                train_dataset=columns,
                eval_dataset=None if isinstance(valid, tuple) else valid,
                loss=_loss(model, rule, scores, heads, how),
                evaluator=evaluator,
            )
            runner.still, runner.carrying = still, carrying
            if how.early_stopping is not None:
                runner.add_callback(EarlyStoppingCallback(how.early_stopping))
            with trainer.one_bar(runner, verbose):
                runner.train(resume_from_checkpoint=last)
            # else what was trained in half precision would go on encoding in it
            runner.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"training diverged: {name} is no longer finite; try a lower learning_rate")
    history = curves.from_log(runner.state.log_history)
    if choose is not None:
        _warn_if_untrained_was_best(history, "valid_loss" if choose == "eval_loss" else choose.removeprefix("eval_"))
    return history


def _trainer(how: Plan) -> Any:
    """The trainer for batches as the loss wants them."""
    if how.units:
        from pyterrier_mvret.training.unit_loss import UnitTrainer

        return UnitTrainer
    if how.latent:
        from pyterrier_mvret.training.latent_loss import LatentTrainer

        return LatentTrainer
    from pyterrier_mvret.training.trainer import PartTrainer

    return PartTrainer


def _weighing(rule: ScoringRule, model: "MultiVectorEncoder") -> Any:
    """The salience heads that scores depend on, if there are any."""
    heads = salience.heads_of(model)
    return heads if heads is not None and rule.salience and heads.gate != "none" else None


def _scores(rule: ScoringRule, model: "MultiVectorEncoder", weighed: bool) -> Any:
    """The rule as losses see it."""
    if isinstance(rule, MaxSim):
        from pyterrier_mvret.training.similarity import MaxSimSimilarity

        return MaxSimSimilarity(rule, unit=settings.normalizes(model))
    from pyterrier_mvret.training.alignment import AlignmentSimilarity

    return AlignmentSimilarity(rule.strategy, rule.normalizer, rule.align_over, weighed)


def _loss(model: "MultiVectorEncoder", rule: ScoringRule, scores: Any, heads: Any, how: Plan) -> Any:
    """The library's module, with the L1 term where it has weight."""
    from pyterrier_mvret.training.objectives import WithL1

    if how.units and (heads is not None or rule != MaxSim()):
        raise ValueError(f"a loss over units scores them by plain MaxSim, and this model scores by {rule}")
    loss = how.objective.build(model, scores, how.mini_batch_size)
    if not how.l1:
        return loss
    if heads is None or heads.gate != "l1" or how.mini_batch_size is not None:
        raise ValueError("l1= is for salience heads with gate='l1' that weigh in scores, without mini_batch_size=")
    return WithL1(loss, heads, how.l1)


def _prompts(model: "MultiVectorEncoder", columns: "Dataset", valid: Validation | None) -> dict[str, str]:
    """Markers and prefixes of each column's texts, as in encoding; a validation set may have more negatives."""
    names = [*columns.column_names, *([] if valid is None or isinstance(valid, tuple) else valid.column_names)]
    tasks = {name: "query" if name == "query" else "document" for name in names if name not in ("scores", *UNITS)}
    if "spans" in names and markers.UNIT in model.prompts:
        tasks["unit_query"] = markers.UNIT
    return {name: model.prompts.get(task) or "" for name, task in tasks.items()}


@contextmanager
def _part(model: "MultiVectorEncoder", train: str) -> Any:
    """Within it, only a part of the weights is trained; afterwards the model is as free as before, and in inference."""
    from pyterrier_mvret.training import frozen

    flags = [weight.requires_grad for weight in model.parameters()]
    try:
        yield frozen.freeze(model, train)
    finally:
        for weight, flag in zip(model.parameters(), flags, strict=True):
            weight.requires_grad = flag
        model.eval()


def _check_trainable(encoder: TokenEncoder) -> None:
    if encoder.dtype != "float32" or encoder.backend != "torch":
        raise ValueError(
            f"an encoder with dtype={encoder.dtype!r}, backend={encoder.backend!r} cannot be trained: train in float32 "
            "on torch (with bf16=True where it is faster), and choose others for what was saved"
        )
    rounded = {str(weight.dtype) for weight in encoder.model.parameters()} - {"torch.float32"}
    if rounded:  # a model in memory
        raise ValueError(
            f"a model with weights in {', '.join(sorted(rounded))} cannot be trained: make them float32 first"
        )
    if settings.pools(encoder.model, "document") or settings.pools(encoder.model, "query"):
        raise ValueError("an encoder with token_pooling cannot be trained: train without, and pool what was saved")


def _check_contrast(columns: "Dataset", how: Plan) -> None:
    """A positive alone is always the best of its batch: a loss of zero that teaches nothing."""
    alone = how.batch_size == 1 or len(set(columns["query"])) == 1
    if how.objective.teacher is None and "negative_1" not in columns.column_names and alone:
        raise ValueError("without negatives, a batch must have several queries: see mv.training.groups for negatives")


def _save(trained: TokenEncoder, folder: Path, finish: Callable[[Path], None] | None) -> None:
    from pyterrier_mvret.training.trainer import no_bars

    with no_bars():
        trained.save(folder)
    if finish is not None:
        finish(folder)


def _record(
    encoder: TokenEncoder, rule: ScoringRule, columns: "Dataset", valid: Validation | None, how: Plan
) -> dict[str, str]:
    """Everything that decides the outcome of a run, as text."""
    described = {k: v for k, v in encoder.describe().items() if k not in ("name", "revision")}
    described["space"] = described["space"].rpartition("#")[2]  # weights, wherever they were read from
    if isinstance(valid, tuple):
        results, qrels = valid
        spans = [name for name in (frames.SPANS, frames.QUERY_SPANS) if name in results.columns]
        parts = (results[["qid", "query", "docno", "text", *spans]], qrels[["qid", "docno", "label"]])
        # spans that were read from files are arrays
        validation = _digest(
            json.dumps(part.to_numpy().tolist(), default=lambda array: array.tolist()) for part in parts
        )
    else:
        validation = "" if valid is None else _digest(_rows(valid))
    return {
        "encoder": json.dumps(described, sort_keys=True),
        "rule": str(rule),
        "data": _digest(_rows(columns)),
        "validation": validation,
        **how.record(),
    }


def _rows(columns: "Dataset") -> Any:
    return (json.dumps(columns[start : start + 1000]) for start in range(0, len(columns), 1000))


def _digest(parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode())
    return sha.hexdigest()[:16]


def _warn_if_untrained_was_best(history: pd.DataFrame, measure: str) -> None:
    values = history.set_index("step")[measure].dropna()
    better = values.lt if measure == "valid_loss" else values.gt
    if len(values) > 1 and 0 in values.index and not better(values[0]).any():
        warnings.warn(
            f"training did not help on the validation data: {measure} was {values[0]:.4f} before it and at best "
            f"{values.drop(0).min() if measure == 'valid_loss' else values.drop(0).max():.4f} after",
            stacklevel=2,
        )
