"""One batch through a model: what its modules say of each token that is scored."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.encoders import batches, onednn, settings

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

Task = Literal["query", "document"]
Fields = dict[str, npt.NDArray[Any]]  # of one text, by their names in a TokenBatch; all have one row a token
# what modules of a model may say of each token, and the field that takes it
_SAID = (("token_weights", "weights"), ("token_importance", "importance"))


def fields_of(model: "MultiVectorEncoder", features: dict[str, Any], task: Task) -> Iterator[Fields]:
    """What a batch says of each text, as one gather a field: rows of a text are views of the batch's arrays."""
    import torch
    from sentence_transformers.util import batch_to_device

    spans = features.pop("offset_mapping", None)
    with torch.inference_mode(), onednn.linear_layers(model):
        out = model(batch_to_device(features, model.device), task=task, latents=False)
        mask = out["attention_mask"].bool()
        rows = out["token_embeddings"][mask]
        if rows.dtype != torch.float32:
            # lengths that were rounded to half precision are off by up to a hundredth: made one again
            rows = rows.float()
            rows = torch.nn.functional.normalize(rows, dim=-1) if settings.normalizes(model) else rows
    fields: Fields = {"vectors": rows.cpu().numpy()}
    kept, token_ids = mask.cpu().numpy(), out["input_ids"]
    if mask.shape == token_ids.shape and not settings.pools(model, task):  # else a row is no longer one token
        fields["token_ids"] = token_ids.cpu().numpy()[kept].astype(np.int32)
        if spans is not None:
            fields["spans"] = batches.places(spans.cpu().numpy(), kept.shape)[kept]
        fields |= {field: out[name][mask].float().cpu().numpy() for name, field in _SAID if name in out}
    ends = np.cumsum(kept.sum(1))[:-1]
    texts = zip(*(np.split(field, ends) for field in fields.values()), strict=True)
    return (dict(zip(fields, text, strict=True)) for text in texts)
