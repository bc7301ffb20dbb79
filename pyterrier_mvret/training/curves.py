"""Loss and validation over the steps of a training run: as a frame, and drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

# what a loss of several terms is made of, as the modules of ``objectives`` call them
_TERMS = ("own", "in_batch", "passages", "units", "ranking", "l1", "distillation", "query_l1", "flops", "equipartition")
#: what a training of sparse vectors says of them
USED = tuple(f"{side}_{what}" for side in ("query", "document") for what in ("active", "latents", "empty"))


def measured(logs: Mapping[str, Any]) -> list[str]:
    """The names of what was evaluated, in an entry of the log."""
    timing = ("_runtime", "_per_second")
    return [key for key in logs if key.startswith("eval_") and not key.endswith(timing)]


def from_log(log: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The trainer's log as curves: one row a logged step, ``loss`` and ``learning_rate`` beside what was evaluated.

    A loss of several terms has a column for each; on validation data they are ``valid_loss`` and so on.

    Values that were not taken at a step are NaN; step 0 is the model before training.
    """
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        row = rows.setdefault(int(entry["step"]), {"step": int(entry["step"]), "epoch": entry.get("epoch")})
        for name in ("loss", *_TERMS, *USED, "learning_rate", "grad_norm"):
            if name in entry:
                row[name] = _number(entry[name])
        for name in measured(entry):
            measure = name.removeprefix("eval_")
            row[f"valid_{measure}" if measure in ("loss", *_TERMS) else measure] = _number(entry[name])
    return pd.DataFrame([rows[step] for step in sorted(rows)])


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)


def plot(history: pd.DataFrame, ax: Any = None) -> Any:
    """Draws the loss, and on a second scale what was measured on validation data, over steps.

    Needs matplotlib (extra ``plot``). Returns the axes of the loss.

    Raises:
        ImportError: matplotlib is not installed.

    >>> import pyterrier_mvret as mv
    >>> history = pd.DataFrame({"step": [0, 10, 20], "loss": [None, 1.2, 0.7], "nDCG@10": [0.4, None, 0.5]})
    >>> mv.training.plot(history).get_ylabel()
    'training loss'
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'pyterrier-mvret[plot]'") from error
    if ax is None:
        _, ax = pyplot.subplots()
    drawn = history.dropna(subset=["loss"])
    ax.plot(drawn["step"], drawn["loss"], color="0.5", label="training loss")
    ax.set_xlabel("step")
    ax.set_ylabel("training loss")
    known = {"step", "epoch", "loss", *_TERMS, *USED, "learning_rate", "grad_norm"}
    names = [name for name in history.columns if name not in known]
    if names:
        other = ax.twinx()
        for name in names:
            points = history.dropna(subset=[name])
            other.plot(points["step"], points[name], marker="o", label=name)
        other.set_ylabel(", ".join(names))
        other.legend(loc="lower right")
    return ax
