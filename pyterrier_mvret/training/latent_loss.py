"""LASPAR's training: ranking by dot products of sparse vectors, a teacher's scores, and penalties that rise."""

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 (its common name)
from sentence_transformers.base.losses.merged_forward import merge_feature_batches
from torch import Tensor, nn
from transformers import TrainerCallback

from pyterrier_mvret.encoders.latents import head_of
from pyterrier_mvret.training.row_adagrad import RowAdagrad, clipped
from pyterrier_mvret.training.sparsity import Usage, equipartition, flops, l1
from pyterrier_mvret.training.trainer import PartTrainer

if TYPE_CHECKING:
    from pyterrier_mvret.training.losses import LatentSparse

# numbers of a matrix that an optimiser with two moments for each can still hold
_DENSE = 1 << 28
Sparse = tuple[Tensor, Tensor]  # ids and weights of texts, (texts, k) both


def dot_products(queries: Sparse, documents: Sparse) -> Tensor:
    """(Q, D) dot products of sparse vectors, with gradients to their weights.

    Nothing of the size of the latent space is held: latents that a query of the batch has are numbered anew.

    Args:
        queries: ids (Q, n), different ones within a text, and weights; of 0 a latent is not active.
        documents: ids (D, m) and weights.

    >>> asked = torch.tensor([[7, 3]]), torch.tensor([[2.0, 1.0]])
    >>> dot_products(asked, (torch.tensor([[3, 9], [3, 7]]), torch.tensor([[0.5, 4.0], [0.0, 1.0]])))
    tensor([[0.5000, 2.0000]])
    """
    used = torch.unique(queries[0])
    return _dense(queries, used) @ _dense(documents, used).T


def _dense(vectors: Sparse, used: Tensor) -> Tensor:
    """(texts, used) weights of the latents that are used."""
    ids, weights = vectors
    place = torch.searchsorted(used, ids).clamp(max=len(used) - 1)
    return weights.new_zeros(len(ids), len(used)).scatter_add(1, place, weights * (used[place] == ids))


def in_batch(scores: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's positive among all documents of the batch.

    Args:
        scores: (B, B * N), query-major; query i's positive is column i * N.
        temperature: what scores are divided by.

    >>> round(float(in_batch(torch.eye(32), 1.0)), 3), bool(in_batch(torch.eye(32), 0.05) < 1e-7)
    (2.518, True)
    """
    n = scores.shape[1] // len(scores)
    return F.cross_entropy(scores / temperature, torch.arange(len(scores), device=scores.device) * n)


class LatentLoss(nn.Module):
    """The terms of :class:`~pyterrier_mvret.training.LatentSparse`, from one pass through queries and documents.

    Args:
        model: with a latent head.
        how: the settings.
        latents: how many there are.
        temperature: what scores are divided by, whether it was named or not.
    """

    def __init__(self, model: nn.Module, how: "LatentSparse", latents: int, temperature: float):
        super().__init__()
        self.model, self.how, self.latents, self.temperature = model, how, latents, temperature
        #: share of the run that is done
        self.progress = 0.0
        #: what batches used, for the log
        self.usage = Usage()

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parts, which the trainer adds up and logs one by one."""
        query, *columns = [dict(features) for features in sentence_features]
        queries = self._vectors(query, "query")
        documents = self._documents(columns)
        if self.model.training:  # a validation set is none of what was trained on
            self.usage.add("query", *queries)
            self.usage.add("document", *documents)
        with torch.autocast(queries[1].device.type, enabled=False):
            scores = dot_products(queries, documents)
            parts = {"ranking": in_batch(scores, self.temperature)}
            if self.how.distillation is not None:
                assert labels is not None  # the training set was checked for them
                rows = torch.arange(len(scores), device=scores.device)
                own = scores.view(len(scores), len(scores), -1)[rows, rows]
                parts["distillation"] = self.how.distillation_weight * self._distilled(own, labels.to(own))
            return parts | self._penalties(queries, documents)

    def _vectors(self, features: dict[str, Any], task: str) -> Sparse:
        out = self.model(features, task=features.get("task", task))
        return out["latent_ids"], out["latent_weights"]

    def _documents(self, columns: list[dict[str, Any]]) -> Sparse:
        """Of all documents, query-major, as far as it goes from one pass."""
        merged = merge_feature_batches(columns) if len(columns) > 1 else None
        if merged is not None:
            found = [part.unflatten(0, (len(columns), -1)) for part in self._vectors(merged, "document")]
        else:
            found = [torch.stack(part) for part in zip(*(self._vectors(c, "document") for c in columns), strict=True)]
        ids, weights = (part.transpose(0, 1).flatten(0, 1) for part in found)
        return ids, weights

    def _distilled(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """Of queries and their own documents, (B, N) both."""
        if scores.shape[1] < 2:  # what a teacher thinks of one document alone says nothing
            raise ValueError("distillation needs at least one negative a query (see mv.training.groups)")
        if self.how.distillation == "margin-mse":
            return F.mse_loss(scores[:, :1] - scores[:, 1:], teacher[:, :1] - teacher[:, 1:])
        found = (scores / self.temperature).log_softmax(-1)
        return F.kl_div(found, (teacher / self.how.teacher_temperature).softmax(-1), reduction="batchmean")

    def _penalties(self, queries: Sparse, documents: Sparse) -> dict[str, Tensor]:
        # validations of one run are to be compared: with penalties that rise, the first would be the best
        risen = self.how.risen(self.progress) if self.model.training else 1.0
        parts = {}
        if self.how.query_weight:
            parts["query_l1"] = risen * self.how.query_weight * l1(queries[1])
        if self.how.documents == "flops":
            parts["flops"] = risen * self.how.document_weight * flops(*documents)
        elif self.how.documents == "equipartition":
            parts["equipartition"] = risen * self.how.document_weight * equipartition(*documents, self.latents)
        return parts


class _Progress(TrainerCallback):
    """Tells the loss how much of the run is done: in steps of the optimiser, wherever it was resumed."""

    def __init__(self, loss: LatentLoss):
        self._loss = loss

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before each step."""
        self._loss.progress = state.global_step / max(1, state.max_steps)


class LatentTrainer(PartTrainer):
    """The trainer that tells the loss how far it is, and logs how sparse vectors are.

    A matrix of more than a GiB has sparse gradients, of the rows that were kept in a step, and
    :class:`~pyterrier_mvret.training.row_adagrad.RowAdagrad` moves them.

    A run in which all documents come to have the same latents is warned of, once.

    Raises:
        ValueError: no text has an active latent any more: nothing can be learned from there.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        loss: Any = self.loss
        head: Any = head_of(loss.model)
        self._latent, self._head, self._warned = loss, head, False
        self.add_callback(_Progress(loss))
        head.sparse_gradient = head.weight.numel() > _DENSE

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The library's; afterwards gradients are dense again, as whoever trains the model by other means expects."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._head.sparse_gradient = False

    def get_optimizer_cls_and_kwargs(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The library's, or that for sparse gradients."""
        kind, settings = super().get_optimizer_cls_and_kwargs(*args, **kwargs)
        if not self._head.sparse_gradient:
            return kind, settings
        return RowAdagrad, {name: settings[name] for name in ("lr", "betas", "eps") if name in settings}

    def _clip_grad_norm(self, model: Any) -> Any:
        """The library's, which takes no gradient that is sparse."""
        if not self._head.sparse_gradient:
            return super()._clip_grad_norm(model)
        return clipped([p for p in model.parameters() if p.grad is not None], self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The library's, which takes no gradient that is sparse either, where nothing is to be clipped."""
        if grad_norm is None and self._head.sparse_gradient:
            grad_norm = clipped([p for p in model.parameters() if p.grad is not None], math.inf)
        return super()._get_grad_norm(model, grad_norm)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's, with what vectors used since it logged last."""
        used = self._latent.usage.take() if "loss" in logs else {}
        for side in ("query", "document"):
            if used.get(f"{side}_latents") == 0:
                raise ValueError(
                    f"training collapsed: no {side} has an active latent at step {self.state.global_step}; lower the "
                    "weights of the penalties, or the learning_rate"
                )
        super().log({**logs, **used}, start_time)
        self._warn_if_alike(used)

    def _warn_if_alike(self, used: dict[str, float]) -> None:
        found = used.get("document_latents")
        alike = found is not None and found == used["document_active"]
        # where all latents are kept it is no wonder, unless there is nothing but one weight
        if alike and (found == 1 or found < self._head.latents) and not self._warned:
            self._warned = True
            warnings.warn(
                f"all documents up to step {self.state.global_step} have the same latents ({found} of "
                f"{self._head.latents}): a query that finds one finds all; if document_latents in history stays there, "
                "lower the learning_rate, or the weights of the penalties",
                stacklevel=3,
            )
