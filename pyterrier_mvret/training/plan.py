"""The settings of a training run, and how they are said to the library's trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pyterrier_mvret.training import losses
from pyterrier_mvret.training.state_cache import StateCache

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoderTrainingArguments

# ColBERTv2 trains all weights at 1e-5; a new head on a still transformer takes more
_RATES = {"all": 1e-5, "last": 5e-5, "head": 1e-3, "salience": 1e-2}


@dataclass(frozen=True)
class Plan:
    """How a model is trained; ``fit`` takes these as keywords.

    Attributes:
        loss: ``"contrastive"``, ``"n-way"``, ``"kl"``, ``"kl-min-max"``, ``"margin-mse"``,
            ``"multi-granular"``, ``"latent-sparse"``, or one of their objects.
        train: ``"all"`` weights; ``"head"``: the projection alone (and salience heads); ``"last:n"``: also the
            transformer's last n layers; ``"salience"``: salience heads alone.
        epochs: passes over the data, unless ``max_steps`` says how many steps.
        max_steps: steps of the optimiser.
        batch_size: queries a step.
        mini_batch_size: gradient caching: the batch is encoded by so many texts at a time (GradCache, Gao et al. 2021),
            for the same gradient in less memory and about one more forward pass. For the contrastive loss.
        l1: weight of the mean salience added to the loss, for heads with ``gate="l1"``. Scores do not depend on the
            size of saliences (of documents' they do with ``normalizer="query"``), so it shrinks them as well as it
            makes them sparse: small weights, few steps.
        learning_rate: at its highest; none takes 1e-5 for all weights, 5e-5 for last layers, 1e-3 for a head,
            1e-2 for salience heads.
        warmup: share of the steps in which the rate rises from 0; from there it falls to 0, linearly.
        measures: of ir_measures, or their names, for validation; the first chooses.
        evaluations: validations (and checkpoints) over the whole run.
        early_stopping: stop after so many validations without a better one.
        seed: of the order of the data and of dropout.
        bf16: arithmetic in bfloat16 with float32 weights; none does so on a GPU that has it.
        state_cache: GiB of token states kept where the transformer stands still (``train="head"``), so that each text
            goes through it once; a :class:`~pyterrier_mvret.training.StateCache` shares them between runs; 0 for none.
        arguments: others of the library's ``MultiVectorEncoderTrainingArguments``: ``weight_decay``,
            ``gradient_accumulation_steps``, ``learning_rate_mapping``, ``max_length``, ``report_to``, ...
    """

    loss: "str | losses.Loss" = "contrastive"
    train: str = "all"
    epochs: float = 1
    max_steps: int | None = None
    batch_size: int = 32
    mini_batch_size: int | None = None
    l1: float = 0.0
    learning_rate: float | None = None
    warmup: float = 0.05
    measures: Sequence[Any] = ("nDCG@10",)
    evaluations: int = 10
    early_stopping: int | None = None
    seed: int = 0
    bf16: bool | None = None
    state_cache: float | StateCache = 2.0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **keywords: Any) -> "Plan":
        """A plan from keywords: those that are not its own are the trainer's.

        >>> Plan.of(train="head", weight_decay=0.01).arguments
        {'weight_decay': 0.01}
        """
        own = {f.name for f in fields(cls)} - {"arguments"}
        return cls(
            **{name: value for name, value in keywords.items() if name in own},
            arguments={name: value for name, value in keywords.items() if name not in own},
        )

    def __post_init__(self) -> None:
        for name in ("batch_size", "mini_batch_size", "max_steps", "evaluations", "early_stopping"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.epochs > 0:
            raise ValueError(f"epochs must be more than 0, got {self.epochs}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, from 0 to below 1, got {self.warmup}")
        if isinstance(self.measures, str) or not self.measures:
            raise ValueError(f"measures must be a list of at least one measure, got {self.measures!r}")
        if not isinstance(self.train, str):
            raise ValueError(f"train must be 'salience', 'head', 'last:n' or 'all', got {self.train!r}")

    @property
    def objective(self) -> losses.Loss:
        """The loss, if it was named."""
        return losses.named(self.loss)

    @property
    def units(self) -> bool:
        """Whether the loss reads units of documents."""
        return bool(getattr(self.objective, "units", False))

    @property
    def latent(self) -> bool:
        """Whether the loss is of sparse vectors."""
        return bool(getattr(self.objective, "latent", False))

    @property
    def rate(self) -> float:
        """The learning rate, or the usual one for what is trained."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATES.get(self.train.partition(":")[0], _RATES["all"])

    @property
    def cache(self) -> StateCache | None:
        """The cache that was passed, a new one of the size, or none."""
        if isinstance(self.state_cache, StateCache):
            return self.state_cache
        return StateCache(self.state_cache) if self.state_cache else None

    def record(self) -> dict[str, str]:
        """What decides the outcome, as text: two runs with equal records are one run."""
        told = ("state_cache", "arguments")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in told}
        own.update(loss=self.objective, learning_rate=self.rate, measures=[str(m) for m in self.measures])
        return {name: str(value) for name, value in {**own, **self.arguments}.items()}

    def trainer_arguments(
        self, folder: str, device: str, prompts: Mapping[str, str], choose: str | None, keep: bool
    ) -> "MultiVectorEncoderTrainingArguments":
        """The library's arguments.

        Args:
            folder: for checkpoints.
            device: the kind of device the model is on.
            prompts: what goes before the texts of each column; the trainer itself puts nothing there.
            choose: what is evaluated to find the best checkpoint; none where nothing is.
            keep: whether checkpoints are wanted even where there is nothing to choose.
        """
        from sentence_transformers import MultiVectorEncoderTrainingArguments

        interval: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no"}
        # below 1, which would mean every step, and rounded up to steps only where there is a rest
        every = (1 - 1e-9) / self.evaluations
        if keep or choose:
            interval.update(save_strategy="steps", save_steps=every, save_total_limit=2)
        if choose:
            interval.update(
                eval_strategy="steps",
                eval_steps=every,
                eval_on_start=True,
                load_best_model_at_end=True,
                metric_for_best_model=choose,
                greater_is_better=choose != "eval_loss",
                restore_callback_states_from_checkpoint=self.early_stopping is not None,
            )
        in_batch = getattr(self.objective, "in_batch", None)
        crossed = self.objective.teacher is None if in_batch is None else bool(in_batch)
        ours: dict[str, Any] = {
            "num_train_epochs": self.epochs,
            "max_steps": self.max_steps or -1,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "learning_rate": self.rate,
            "warmup_steps": self.warmup,
            "seed": self.seed,
            "bf16": _has_bf16(device) if self.bf16 is None else self.bf16,
            "use_cpu": device == "cpu",
            "logging_steps": 0.01,
            # where queries meet each other's documents, the same one twice in a batch would be its own negative
            "batch_sampler": "no_duplicates" if crossed else "batch_sampler",
            "prompts": dict(prompts),
            "report_to": "none",
            **interval,
        }
        return MultiVectorEncoderTrainingArguments(output_dir=folder, **{**ours, **self.arguments})


def _has_bf16(device: str) -> bool:
    import torch

    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
