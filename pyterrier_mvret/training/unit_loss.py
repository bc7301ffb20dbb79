"""AGRaME's training: batches that know the units of their documents, and the loss over them (Reddy et al. 2024)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.data_collator import DEFAULT_LABEL_COLUMNS
from sentence_transformers.multi_vector_encoder.data_collator import MultiVectorEncoderDataCollator
from torch import Tensor, nn

from pyterrier_mvret.encoders import batches, markers
from pyterrier_mvret.encoders.units import unit_rows
from pyterrier_mvret.scoring.ragged import ragged_rows
from pyterrier_mvret.training.trainer import PartTrainer
from pyterrier_mvret.training.unit_data import UNITS

#: the column of queries with the second marker
UNIT_QUERY = "unit_query"


@dataclass
class UnitCollator(MultiVectorEncoderDataCollator):
    """Batches whose documents say of which unit each token is, and what each unit's target is."""

    # what is no text, for the sampler that keeps equal texts apart as well
    valid_label_columns: list[str] = field(default_factory=lambda: [*DEFAULT_LABEL_COLUMNS, *UNITS])
    model: MultiVectorEncoder | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows of a training set to a batch."""
        assert self.model is not None
        prompts = self.model.prompts
        rows = [{name: value for name, value in row.items() if name not in UNITS} for row in features]
        if markers.UNIT in prompts:
            rows = [{**row, UNIT_QUERY: row["query"]} for row in rows]
        batch = super().__call__(rows)
        for name in [name for name in rows[0] if f"{name}_input_ids" in batch]:
            offsets = batch.pop(f"{name}_offset_mapping", None)
            if name in ("query", UNIT_QUERY):
                continue
            if offsets is None or f"{name}_cu_seq_lens_q" in batch:
                raise ValueError("training with units needs a fast tokeniser, and batches that are padded")
            place = 0 if name == "positive" else int(name.removeprefix("negative_"))
            spans = [row["spans"][place] for row in features]
            prefix = prompts.get("document") or ""
            batch[f"{name}_units"] = unit_numbers(offsets, prefix, [row[name] for row in rows], spans)
            batch[f"{name}_unit_scores"] = _padded([row["unit_scores"][place] for row in features])
        return batch

    def _get_task_for_column(self, column_name: str, column_position: int, router_mapping: dict[str, str]) -> str:
        if column_name == UNIT_QUERY:
            return "query"
        return super()._get_task_for_column(column_name, column_position, router_mapping)


def unit_numbers(offset_mapping: Tensor, prefix: str, texts: Sequence[str], spans: Sequence[Any]) -> Tensor:
    """(texts, tokens): the number of the unit that each token belongs to, -1 for none (:func:`unit_rows`)."""
    shape = tuple(offset_mapping.shape[:2])
    places = batches.places(batches.in_text(offset_mapping, [len(prefix)] * len(texts)).numpy(), shape)
    units = unit_rows(places.reshape(-1, 2), np.arange(shape[0] + 1) * shape[1], texts, spans)
    out = np.full(shape[0] * shape[1], -1, dtype=np.int64)
    number = np.arange(len(units)) - np.searchsorted(units.texts, units.texts)
    out[ragged_rows(units.starts, units.ends - units.starts)] = np.repeat(number, units.sizes)
    return torch.from_numpy(out.reshape(shape))


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    """(rows, most), minus infinity behind each row's end."""
    out = torch.full((len(rows), max(map(len, rows), default=0)), -torch.inf)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


class UnitTrainer(PartTrainer):
    """The trainer for batches that know units."""

    def get_data_collator(self, model: Any, args: Any, processing_class: Any = None) -> UnitCollator:
        """Ours, which asks for the characters of tokens."""
        return UnitCollator(
            preprocess_fn=partial(model.preprocess, processing_kwargs=batches.with_offsets(model)),
            prompts=args.prompts,
            max_length=args.max_length,
            model=model,
        )


class Seen:
    """A rule's similarity that keeps what it was asked last: the vectors of a batch, as a loss had them."""

    def __init__(self, similarity: Any):
        self._similarity = similarity
        self._last: tuple[Tensor, ...] | None = None

    def matrix(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """As the rule has it."""
        self._last = (queries, documents, queries_mask, documents_mask)
        return self._similarity.matrix(queries, documents, queries_mask=queries_mask, documents_mask=documents_mask)

    def groups(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """As the rule has it."""
        self._last = (queries, documents, queries_mask, documents_mask)
        return self._similarity.groups(queries, documents, queries_mask=queries_mask, documents_mask=documents_mask)

    def pairs(self, queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
        """None: a loss that sees one document at a time has no passages to be weighed."""
        raise ValueError("units go with a loss over all of a query's documents")

    def take(self) -> tuple[Tensor, ...]:
        """Queries, documents and their masks, once."""
        last, self._last = self._last, None
        assert last is not None
        return last


class WithUnits(nn.Module):
    """A loss over passages plus AGRaME's over their units, from one pass through the documents.

    Args:
        model: encodes the queries once more where there is a second query marker.
        loss: of passages, built with ``seen``.
        seen: what it scores with.
        weight: of the units' part.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, seen: Seen, weight: float):
        super().__init__()
        self.model, self.loss, self.seen, self.weight = model, loss, seen, weight

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> dict[str, Tensor]:
        """The parts, which the trainer adds up and logs one by one."""
        query, *columns = [dict(features) for features in sentence_features]
        marked = columns.pop() if "units" not in columns[-1] else None
        numbers, targets = (_stacked([c.pop(key) for c in columns], pad) for key, pad in _PADDING.items())
        loss = self.loss([query, *columns], labels)
        queries, documents, queries_mask, documents_mask = self.seen.take()
        if marked is not None:
            out = self.model(marked, task="query")
            queries, queries_mask = out["token_embeddings"], out["attention_mask"].bool()
        with torch.autocast(queries.device.type, enabled=False):
            scores = unit_similarities(queries, documents, queries_mask, documents_mask, numbers, targets.shape[-1])
            units = unit_divergence(scores, targets, _weights(labels, targets))
        parts = loss if isinstance(loss, dict) else {"passages": loss}
        return {**parts, "units": self.weight * units}


# of what documents bring along: what stands behind the end of a shorter one
_PADDING = {"units": -1, "unit_scores": -torch.inf}


def _stacked(columns: Sequence[Tensor], pad: float) -> Tensor:
    """(queries, columns, most)."""
    most = max(column.shape[1] for column in columns)
    return torch.stack([nn.functional.pad(c, (0, most - c.shape[1]), value=pad) for c in columns], dim=1)


def _weights(labels: Tensor | None, targets: Tensor) -> Tensor:
    """(queries, documents): the passage teacher's softmax; without a teacher all on the positive."""
    if labels is None:
        return nn.functional.one_hot(torch.zeros(len(targets), dtype=torch.long), targets.shape[1]).to(targets)
    return labels.detach().to(targets).softmax(-1)


def unit_similarities(
    queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor, numbers: Tensor, count: int
) -> Tensor:
    """In-passage scores: MaxSim of each query with each unit of its own documents (AGRaME, section 4.1).

    Args:
        queries: (Q, n, dim).
        documents: (Q, N, m, dim).
        queries_mask: (Q, n).
        documents_mask: (Q, N, m); tokens of a skiplist are not scored.
        numbers: (Q, N, m) the number of each token's unit, -1 for none.
        count: of units at most.

    Returns:
        (Q, N, count) float32; minus infinity for a unit without scored tokens, with no gradient.
    """
    similarities = torch.einsum("qnd,qkmd->qknm", queries.float(), documents.float())
    unit = torch.where(documents_mask & (numbers >= 0), numbers, count)
    best = similarities.new_full((*similarities.shape[:3], count + 1), -torch.inf)
    best = best.scatter_reduce(-1, unit[:, :, None].expand(similarities.shape), similarities, "amax")[..., :count]
    empty = ~(unit[..., None] == torch.arange(count, device=unit.device)).any(2)
    best = best.masked_fill(empty[:, :, None], 0) * queries_mask[:, None, :, None]
    return best.sum(2).masked_fill(empty, -torch.inf)


def unit_divergence(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over queries of the weighted divergences of units' softmax from its target (AGRaME, Reddy et al. 2024).

    Args:
        scores: (Q, N, units) of the model; minus infinity for units that are none or have no token.
        targets: (Q, N, units) before the softmax; minus infinity for units that are to have no share.
        weights: (Q, N) of the documents; those without a target for any unit add nothing.
    """
    missing = scores == -torch.inf
    targets = targets.float().masked_fill(missing, -torch.inf)
    said = (targets > -torch.inf).any(-1, keepdim=True)
    wanted = targets.masked_fill(~said, 0).softmax(-1)
    found = scores.masked_fill(~said, 0).log_softmax(-1).masked_fill(missing, 0)
    divergence = (torch.special.xlogy(wanted, wanted) - wanted * found).sum(-1)
    return (weights * divergence.masked_fill(~said[..., 0], 0)).sum(-1).mean()
