"""What training minimises, as settings: small objects that print, compare, and build the library's losses.

Scores are those of the model's own rule (MaxSim for ColBERT), so a loss sees what ranking will see. ``B`` queries in a
batch, ``N`` documents a query, the first of them the positive.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


class Similarity(Protocol):
    """A rule's scores, with gradients: padded batches of vectors and their masks in, scores out."""

    def matrix(self, queries: Any, documents: Any, queries_mask: Any, documents_mask: Any) -> "torch.Tensor":
        """(Q, tokens, dim) and (D, N, tokens, dim) -> (Q, D * N): every query against every document."""

    def groups(self, queries: Any, documents: Any, queries_mask: Any, documents_mask: Any) -> "torch.Tensor":
        """(Q, tokens, dim) and (Q, N, tokens, dim) -> (Q, N): every query against its own documents."""

    def pairs(self, queries: Any, documents: Any, queries_mask: Any, documents_mask: Any) -> "torch.Tensor":
        """(Q, tokens, dim) and (Q, tokens, dim) -> (Q,): every query against its one document."""


class Loss(Protocol):
    """What ``fit`` takes: it knows whether it needs a teacher, and builds the module that computes it."""

    @property
    def teacher(self) -> Literal["any", "unit"] | None:
        """Whether rows need a teacher's scores, and whether these must lie in [0, 1]."""

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """The module, around a model and a rule; ``mini_batch_size`` asks for gradient caching."""


@dataclass(frozen=True)
class Contrastive:
    """Cross-entropy over all ``B * N`` documents of the batch, the query's own negatives among them.

    sentence-transformers' ``MultiVectorMultipleNegativesRankingLoss``, which is PyLate's too. Worked example (scores of
    two queries over positive and negative of each): [[5, 4, 1, 2], [0, 1, 6, 3]] gives 0.209589. With gradient caching
    (GradCache, Gao et al. 2021) the batch may be larger than memory.

    Args:
        scale: what scores are multiplied by, one over the temperature; 1 fits sums over 32 rows.
    """

    scale: float = 1.0
    teacher: ClassVar[None] = None

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """The library's loss, or its cached form."""
        from sentence_transformers.multi_vector_encoder import losses

        if mini_batch_size is None:
            return losses.MultiVectorMultipleNegativesRankingLoss(
                model, scale=self.scale, similarity_fct=similarity.matrix
            )
        return losses.CachedMultiVectorMultipleNegativesRankingLoss(
            model, scale=self.scale, similarity_fct=similarity.matrix, mini_batch_size=mini_batch_size
        )


@dataclass(frozen=True)
class NWay:
    """Cross-entropy over each query's own ``N`` documents, the positive first (ColBERT v1 with N = 2).

    Args:
        in_batch: weight of Stanford's in-batch term (``use_ib_negatives``) added to it: cross-entropy over all
            documents of the batch but the query's own negatives. Worked example, scores as for :class:`Contrastive`:
            0.180924 for the N-way part, 0.037529 for the in-batch part.
    """

    in_batch: float = 0.0
    teacher: ClassVar[None] = None

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """Our own module: the library has no loss over a query's own documents without a teacher."""
        from pyterrier_mvret.training.objectives import NWayLoss, on_own_documents

        _no_cache(self, mini_batch_size)
        return on_own_documents(partial(NWayLoss, model), similarity, self.in_batch)


@dataclass(frozen=True)
class KL:
    """Distillation: KL divergence from the teacher's softmax over a query's documents to the model's.

    Two conventions are in use. Stanford's (ColBERTv2) compares the scores as they are. PyLate's scales the model's
    scores to [0, 1] within a query and expects the teacher's to be so already (``with_teacher(...,
    normalize="min-max")``): a teacher on another scale is refused here. Worked example, model (12, 10, 9.5) and teacher
    (3, 1, 0): 0.005883 in Stanford's form, 0.206401 in PyLate's.

    Args:
        normalize: none for Stanford's form, ``"min-max"`` for PyLate's.
        temperature: what both sides' scores are divided by; the loss is multiplied by its square (Hinton et al. 2015).
        in_batch: weight of Stanford's in-batch term; ColBERTv2 adds it with 1.
    """

    normalize: Literal["min-max"] | None = None
    temperature: float = 1.0
    in_batch: float = 0.0

    def __post_init__(self) -> None:
        if self.normalize not in (None, "min-max"):
            raise ValueError(f"normalize is 'min-max' or None, got {self.normalize!r}")

    @property
    def teacher(self) -> Literal["any", "unit"]:
        """PyLate's form takes the teacher as it is, so it must be scaled already."""
        return "unit" if self.normalize else "any"

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """The library's loss, over scores that are scaled first where ``normalize`` says so."""
        from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss

        from pyterrier_mvret.training.objectives import min_max, on_own_documents

        _no_cache(self, mini_batch_size)

        def loss(groups: Any) -> Any:
            return MultiVectorDistillKLDivLoss(model, similarity_fct=groups, temperature=self.temperature)

        finish = {"finish": min_max} if self.normalize else {}
        return on_own_documents(loss, similarity, self.in_batch, **finish)


@dataclass(frozen=True)
class MarginMSE:
    """Distillation of margins: mean squared difference of ``s(positive) - s(negative)`` to the teacher's.

    Hofstaetter et al. 2020. Worked example, margins (2.0, 2.5) and the teacher's (2.0, 3.0): 0.125. The teacher's scale
    is the model's to learn: a sum over 32 cosines can reach margins of a few units.
    """

    teacher: ClassVar[Literal["any"]] = "any"

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """The library's loss."""
        from sentence_transformers.multi_vector_encoder.losses import MultiVectorMarginMSELoss

        _no_cache(self, mini_batch_size)
        return MultiVectorMarginMSELoss(model, similarity_fct=similarity.pairs)


_NAMED: dict[str, Loss] = {
    "contrastive": Contrastive(),
    "n-way": NWay(),
    "kl": KL(),
    "kl-min-max": KL(normalize="min-max"),
    "margin-mse": MarginMSE(),
}


def named(loss: "str | Loss") -> Loss:
    """A loss by its name, or as it is.

    Raises:
        ValueError: no such loss.

    >>> named("kl-min-max")
    KL(normalize='min-max', temperature=1.0, in_batch=0.0)
    """
    if isinstance(loss, str):
        if loss not in _NAMED:
            raise ValueError(f"loss must be one of {', '.join(_NAMED)} or a loss object, got {loss!r}")
        return _NAMED[loss]
    if not hasattr(loss, "build"):
        raise ValueError(f"loss must be a name or have build(model, similarity, mini_batch_size), got {loss!r}")
    return loss


@dataclass(frozen=True)
class MultiGranular:
    """AGRaME's loss (Reddy et al. 2024): one for passages, plus one for the units inside them.

        L = L_psg + sum_i softmax_i(teacher(q, p_i)) KL(softmax_j target(q, s_j) || softmax_j S_in(q, s_j))

    ``S_in`` is scored with the second query marker, where the model has one. Weights and targets are constants; a
    passage of one unit, or without a target, adds nothing; the passage's score and ``alpha`` take no part. Rows have
    units (:func:`~pyterrier_mvret.training.with_units`). Where passages have no teacher, the positive has all the
    weight. Worked example: teacher (2, 0) and model (1, 0) for two passages; units of the first (1, 0) and (0, 0), of
    the second (0, 0, 0) and (1, 0, 0): 0.067131 for passages, 0.111964 for units.

    Args:
        passages: ``"kl"``, the paper's, for rows with a teacher's scores; ``"n-way"`` or ``"contrastive"`` without; or
            an object.
        weight: of the units' part; the paper adds it as it is.
    """

    passages: "str | Loss" = "kl"
    weight: float = 1.0
    units: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(named(self.passages), MarginMSE | MultiGranular):
            raise ValueError(f"passages is a loss over a query's passages, got {self.passages!r}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be a finite number of at least 0, got {self.weight!r}")

    @property
    def teacher(self) -> Literal["any", "unit"] | None:
        """That of passages."""
        return named(self.passages).teacher

    @property
    def in_batch(self) -> float:
        """Whether queries meet other queries' documents."""
        inner = named(self.passages)
        return float(getattr(inner, "in_batch", inner.teacher is None))

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """The passages' loss, with the units' beside it."""
        from pyterrier_mvret.training.unit_loss import Seen, WithUnits

        if mini_batch_size is not None:
            raise ValueError("mini_batch_size= (gradient caching) is for Contrastive alone, not for a loss over units")
        seen = Seen(similarity)
        return WithUnits(model, named(self.passages).build(model, seen, None), seen, self.weight)


_NAMED["multi-granular"] = MultiGranular()


@dataclass(frozen=True)
class LatentSparse:
    """LASPAR's loss, of latent-sparse vectors: ranking, a teacher, and penalties that make vectors sparse.

        L = L_rank + a L_distil + r(t) (l_q L1(queries) + l_d R(documents))        r(t) = min(1, t / (w T))^2

    Which terms there are is the public code's; its formulas, temperatures and weights are not published, and these are
    our choice. ``L_rank`` is cross-entropy over all documents of the batch, the query's own negatives among them.

    Args:
        temperature: what scores are divided by; none takes 0.05 for vectors of length one, 1 for others. Scores of the
            former lie in [0, 1], where a batch of 32 costs 2.518 at best with 1.
        distillation: ``"kl"``: divergence of the softmax over a query's own documents from the teacher's;
            ``"margin-mse"``: squared differences of margins (the teacher's scale is the model's to learn); none for
            rows without a teacher's scores. A teacher is whatever has scored the rows: a dense model, a cross-encoder.
        distillation_weight: ``a``.
        teacher_temperature: what a teacher's scores are divided by, for ``"kl"``: 0.05 fits cosines, 1 logits.
        query_weight: ``l_q``, of the mean sum of a query's weights.
        documents: R: ``"flops"`` or ``"equipartition"`` (:mod:`pyterrier_mvret.training.sparsity`), or none. The second
            is for heads that keep fewer latents than there are: of all vectors those without a zero are most even.
        document_weight: ``l_d``.
        warmup: ``w``: share of the run in which penalties rise to their weights. The public code takes 10,000 steps,
            sentence-transformers a third of a run, and so do we.
    """

    temperature: float | None = None
    distillation: Literal["kl", "margin-mse"] | None = None
    distillation_weight: float = 1.0
    teacher_temperature: float = 0.05
    query_weight: float = 5e-3
    documents: Literal["flops", "equipartition"] | None = "flops"
    document_weight: float = 5e-3
    warmup: float = 1 / 3
    in_batch: ClassVar[bool] = True
    latent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.distillation not in (None, "kl", "margin-mse") or self.documents not in (
            None,
            "flops",
            "equipartition",
        ):
            raise ValueError(
                "distillation is 'kl', 'margin-mse' or None, documents 'flops', 'equipartition' or None, got "
                f"{self.distillation!r}, {self.documents!r}"
            )
        for name in ("temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, got {value!r}")
        for name in ("distillation_weight", "query_weight", "document_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {getattr(self, name)!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the run, from 0 to 1, got {self.warmup!r}")

    @property
    def teacher(self) -> Literal["any"] | None:
        """Any scale, where there is one."""
        return None if self.distillation is None else "any"

    def risen(self, progress: float) -> float:
        """How much of their weights penalties have, at a share of the run.

        >>> loss = LatentSparse(warmup=0.5)
        >>> [loss.risen(t) for t in (0, 0.25, 0.5, 1)]
        [0.0, 0.25, 1.0, 1.0]
        """
        return 1.0 if self.warmup == 0 else min(1.0, progress / self.warmup) ** 2

    def build(self, model: "MultiVectorEncoder", similarity: Similarity, mini_batch_size: int | None) -> Any:
        """Our own module, of a model with a latent head."""
        from pyterrier_mvret.encoders.latents import head_of
        from pyterrier_mvret.training.latent_loss import LatentLoss

        _no_cache(self, mini_batch_size)
        head = head_of(model)
        if head is None:
            raise ValueError("this loss is for models with a latent head: see mv.Laspar")
        if head.rows != "float32" or head.normalize_before_topk:
            raise ValueError("a head with rows='float16', 'int8' or normalize_before_topk=True cannot be trained")
        if self.documents == "equipartition" and head.k_doc >= head.latents:
            raise ValueError(
                f"documents='equipartition' needs fewer entries a document than latents, got k_doc={head.k_doc}, "
                f"latents={head.latents}: it would make vectors dense"
            )
        temperature = self.temperature or (0.05 if head.normalize else 1.0)
        return LatentLoss(model, self, head.latents, temperature)


_NAMED["latent-sparse"] = LatentSparse()


def _no_cache(loss: Loss, mini_batch_size: int | None) -> None:
    if mini_batch_size is not None:
        raise ValueError(
            f"mini_batch_size= (gradient caching) is for Contrastive, whose batch is one problem; {loss} is a mean "
            "over queries: gradient_accumulation_steps= gives the same gradient in less memory"
        )
