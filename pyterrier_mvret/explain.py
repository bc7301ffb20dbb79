"""Why a document got its score: alignments of tokens as data, and as a heat map."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.pruning import Pruning
    from pyterrier_mvret.encoders.token_batch import TokenBatch
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder
    from pyterrier_mvret.scoring import ScoringRule


def alignment(
    encoder: "TokenEncoder", scoring: "ScoringRule", query: str, text: str, pruning: "Pruning | None" = None
) -> pd.DataFrame:
    """The document tokens that each query token takes, as one row a pair; see ``explain`` of a model.

    Raises:
        ValueError: a document without vectors has nothing to align with.
    """
    q, d = _sides(encoder, query, text, pruning)
    if not len(d.vectors):
        raise ValueError("the text has no scored token: nothing to align with")
    pairs = scoring.pairs(q.vectors, d.vectors, *((q.weights, d.weights) if scoring.salience else ()))
    frame = pd.DataFrame(
        {
            "query_token": np.array(_tokens(encoder, q.token_ids, len(q.vectors)), dtype=object)[pairs.query],
            "doc_token": np.array(_tokens(encoder, d.token_ids, len(d.vectors)), dtype=object)[pairs.document],
            "similarity": pairs.similarity,
            "weight": pairs.weight,
            "contribution": pairs.contribution,
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


def _sides(encoder: "TokenEncoder", query: str, text: str, pruning: "Pruning | None") -> "list[TokenBatch]":
    if pruning is None:
        return [encoder.encode_queries([query]), encoder.encode_docs([text])]
    return [pruning.encoded(encoder, [query], "query", False), pruning.encoded(encoder, [text], "document", False)]


def _tokens(encoder: "TokenEncoder", token_ids: Any, n: int) -> list[str]:
    return encoder.tokens(token_ids) if token_ids is not None else [f"#{i}" for i in range(n)]


def heatmap(encoder: "TokenEncoder", query: str, text: str, ax: Any = None) -> Any:
    """Draws all similarities of query and document tokens, the best of each query token framed.

    Needs matplotlib (extra ``plot``). Returns the axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'pyterrier-mvret[plot]'") from error
    q, d = encoder.encode_queries([query]), encoder.encode_docs([text])
    similarities = q.vectors @ d.vectors.T
    if ax is None:
        _, ax = pyplot.subplots(figsize=(2 + 0.3 * similarities.shape[1], 1.5 + 0.3 * similarities.shape[0]))
    image = ax.imshow(similarities, aspect="auto", cmap="viridis")
    ax.set_xticks(range(len(d.vectors)), _tokens(encoder, d.token_ids, len(d.vectors)), rotation=90)
    ax.set_yticks(range(len(q.vectors)), _tokens(encoder, q.token_ids, len(q.vectors)))
    for row, column in enumerate(similarities.argmax(axis=1)):
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.5))
    ax.figure.colorbar(image, ax=ax, label="similarity")
    return ax
