"""Why a document got its score: alignments of tokens as data, and as a heat map."""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.pruning import Pruning
    from pyterrier_mvret.encoders.token_batch import TokenBatch
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.scoring import AlignedPairs, ScoringRule


class Model(Protocol):
    """What can be explained."""

    encoder: "TokenEncoder"

    @property
    def scoring(self) -> "ScoringRule":
        """The rule."""

    @property
    def pruning(self) -> "Pruning | None":
        """Which tokens are kept."""


def alignment(
    encoder: "TokenEncoder", scoring: "ScoringRule", query: str, text: str, pruning: "Pruning | None" = None
) -> pd.DataFrame:
    """The document tokens that each query token takes, as one row a pair; see ``explain`` of a model.

    Raises:
        ValueError: a document without vectors has nothing to align with.
    """
    return as_frame(encoder, scoring, *_aligned(encoder, scoring, query, text, pruning))


def as_frame(
    encoder: "TokenEncoder", scoring: "ScoringRule", q: "TokenBatch", d: "TokenBatch", pairs: "AlignedPairs"
) -> pd.DataFrame:
    """One row a pair of tokens, of an encoded query and document."""
    frame = pd.DataFrame(
        {
            "query_token": np.array(_tokens(encoder, q.token_ids, len(q.vectors)), dtype=object)[pairs.query],
            "doc_token": np.array(_tokens(encoder, d.token_ids, len(d.vectors)), dtype=object)[pairs.document],
            "similarity": pairs.similarity,
            "weight": pairs.weight,
            "contribution": pairs.contribution,
            "share": pairs.share,
            "query_position": pairs.query,
            "doc_position": pairs.document,
        }
    )
    for side, batch, rows in (("query", q, pairs.query), ("doc", d, pairs.document)):
        places = np.zeros((len(rows), 2), np.int32) if batch.spans is None else batch.spans[rows]
        frame[f"{side}_start"], frame[f"{side}_end"] = places[:, 0], places[:, 1]
        if scoring.salience and batch.weights is not None:
            frame[f"{side}_salience"] = batch.weights[rows]
    return frame


def _aligned(
    encoder: "TokenEncoder", scoring: "ScoringRule", query: str, text: str, pruning: "Pruning | None"
) -> "tuple[TokenBatch, TokenBatch, AlignedPairs]":
    """Both sides, and the pairs that the score is made of."""
    if pruning is None:
        q, d = encoder.encode_queries([query]), encoder.encode_docs([text])
    else:
        q, d = (pruning.encoded(encoder, [query], "query", False), pruning.encoded(encoder, [text], "document", False))
    if not len(d.vectors):
        raise ValueError("the text has no scored token: nothing to align with")
    return q, d, scoring.pairs(q.vectors, d.vectors, *((q.weights, d.weights) if scoring.salience else ()))


def _tokens(encoder: "TokenEncoder", token_ids: Any, n: int) -> list[str]:
    return encoder.tokens(token_ids) if token_ids is not None else [f"#{i}" for i in range(n)]


def heatmap(model: "Model", query: str, text: str, ax: Any = None) -> Any:
    """Draws all similarities of query and document tokens; aligned pairs are framed, the heavier the more they weigh.

    Tokens with saliences are labelled with them. Needs matplotlib (extra ``plot``). Returns the axes.

    Args:
        model: a :class:`ColBERT`, an :class:`Aligner`.
        query: the query.
        text: the document's text.
        ax: axes of matplotlib to draw on; none makes new ones.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the text has no scored token.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'pyterrier-mvret[plot]'") from error
    q, d, pairs = _aligned(model.encoder, model.scoring, query, text, model.pruning)
    similarities = q.vectors @ d.vectors.T
    if ax is None:
        _, ax = pyplot.subplots(figsize=(2 + 0.3 * similarities.shape[1], 1.5 + 0.3 * similarities.shape[0]))
    image = ax.imshow(similarities, aspect="auto", cmap="viridis")
    weighed = model.scoring.salience
    ax.set_xticks(range(len(d.vectors)), _labels(model.encoder, d, weighed), rotation=90)
    ax.set_yticks(range(len(q.vectors)), _labels(model.encoder, q, weighed))
    heaviest = pairs.weight.max(initial=0) or 1
    for row, column, weight in zip(pairs.query, pairs.document, pairs.weight, strict=True):
        width = 1.5 * weight / heaviest
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=width))
    ax.figure.colorbar(image, ax=ax, label="similarity")
    return ax


def _labels(encoder: "TokenEncoder", batch: "TokenBatch", weighed: bool) -> list[str]:
    tokens = _tokens(encoder, batch.token_ids, len(batch.vectors))
    if not weighed or batch.weights is None:
        return tokens
    return [f"{token} {weight:.2f}" for token, weight in zip(tokens, batch.weights, strict=True)]
