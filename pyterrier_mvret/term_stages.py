"""The pipeline stages that turn text into weighted latent terms; users get them from ``LatentTerms``."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyterrier as pt

from pyterrier_mvret import frames
from pyterrier_mvret.component import Component
from pyterrier_mvret.encoders.stages import query_texts
from pyterrier_mvret.encoders.states import Layer, checked_layer, token_states
from pyterrier_mvret.scoring.pooling import Pool, Transform, check_pooling, pooled_terms

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.sae import TopKSAE
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder

# texts whose states are held at once: a few hundred megabytes at common lengths and widths
_TEXTS_A_BLOCK = 512


@dataclass(frozen=True)
class Pooling:
    """How states of a text's tokens become its terms.

    Attributes:
        layer: ``"last_hidden_state"``, or ``"projected"`` for what a multi-vector model's projection makes of it.
        special_tokens: whether markers, [CLS], [SEP] count.
        pool: ``"sum"`` or ``"max"`` over tokens.
        transform: ``"sqrt"``, ``"identity"``, ``"log1p"`` or ``"binary"``, of what was pooled.
        prefix: what a term begins with, before the latent's number.
    """

    layer: Layer = "last_hidden_state"
    special_tokens: bool = True
    pool: Pool = "sum"
    transform: Transform = "sqrt"
    prefix: str = "z"

    def __post_init__(self) -> None:
        checked_layer(self.layer)
        check_pooling(self.pool, self.transform)


def vocabulary(encoder: "TokenEncoder", sae: "TopKSAE", pooling: Pooling) -> str:
    """``name#digest`` of the terms: equal digests mean terms and weights that can be compared."""
    name, _, digest = encoder.space.rpartition("#")
    told = json.dumps([digest, sae.digest, asdict(pooling)])
    return f"{name}+{sae.latents} latents#{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def term_dicts(
    encoder: "TokenEncoder",
    sae: "TopKSAE",
    pooling: Pooling,
    texts: list[str],
    task: Literal["query", "document"],
    top: int | None,
    verbose: bool,
) -> list[dict[str, float]]:
    """Terms of each text with their weights, the heaviest first."""
    place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    distinct, found = list(place), []
    what = "queries" if task == "query" else "documents"
    with pt.tqdm(total=len(distinct), desc=f"terms of {what}", unit="text", disable=not verbose) as bar:
        for start in range(0, len(distinct), _TEXTS_A_BLOCK):
            block = distinct[start : start + _TEXTS_A_BLOCK]
            states = token_states(encoder, block, task, pooling.layer, pooling.special_tokens)
            latents = sae.encode(states.states)
            activations, ids = (part.cpu().numpy() for part in latents)
            found += _dicts(
                pooling, *pooled_terms(activations, ids, states.offsets, pooling.pool, pooling.transform, top)
            )
            bar.update(len(block))
    return [found[place[text]] for text in texts]


def _dicts(
    pooling: Pooling, offsets: npt.NDArray[Any], latents: npt.NDArray[Any], weights: npt.NDArray[Any]
) -> list[dict[str, float]]:
    text = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((latents, -weights, text))
    names = [f"{pooling.prefix}{latent}" for latent in latents[order].tolist()]
    values = weights[order].tolist()
    return [
        dict(zip(names[a:b], values[a:b], strict=True))
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]


class _TermEncoder(Component):
    """What both sides share.

    Args:
        encoder: whose states.
        sae: whose latents.
        pooling: from one to the other.
        top: terms of a text at most; none keeps all.
        verbose: progress bars.
    """

    def __init__(
        self, encoder: "TokenEncoder", sae: "TopKSAE", pooling: Pooling, top: int | None = None, verbose: bool = False
    ):
        if top is not None and top < 1:
            raise ValueError(f"a text keeps at least 1 term, got {top}")
        self.encoder, self.sae, self.pooling, self.top, self.verbose = encoder, sae, pooling, top, verbose

    def _terms(self, texts: list[str], task: Literal["query", "document"]) -> list[dict[str, float]]:
        return term_dicts(self.encoder, self.sae, self.pooling, texts, task, self.top, self.verbose)


class QueryTermEncoder(_TermEncoder):
    """Q (or R) with ``query`` -> the same with ``query_toks``; see :meth:`LatentTerms.query_encoder`."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds ``query_toks``, a dict a query, and of which vocabulary they are."""
        pt.validate.columns(inp, includes=["qid", "query"], context=self)
        terms: list[Any] = self._terms(query_texts(inp), "query") if len(inp) else []
        columns = {frames.QUERY_TOKS: frames.object_column(terms, inp.index)}
        space = vocabulary(self.encoder, self.sae, self.pooling) if len(inp) else ""
        columns[frames.QUERY_TOKS_ENCODER] = pd.Series([space] * len(inp), index=inp.index, dtype="str")
        return frames.replaced(inp, frames.QUERY_TOKS_COLUMNS, **columns)


class DocTermEncoder(_TermEncoder):
    """D or R with text -> the same with ``toks``; see :meth:`LatentTerms.doc_encoder`.

    Args:
        encoder: as for queries.
        sae: as for queries.
        pooling: as for queries.
        top: as for queries.
        text_field: the column with the text.
        verbose: progress bars.
    """

    #: documents that an indexing pipeline hands over at once: enough to put texts of like length together
    batch_size = 512

    def __init__(
        self,
        encoder: "TokenEncoder",
        sae: "TopKSAE",
        pooling: Pooling,
        top: int | None = None,
        text_field: str = "text",
        verbose: bool = False,
    ):
        super().__init__(encoder, sae, pooling, top, verbose)
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds ``toks``, a dict a document, and how they were made."""
        pt.validate.columns(inp, includes=["docno", self.text_field], context=self)
        terms: list[Any] = self._terms(frames.texts_of(inp, self.text_field), "document") if len(inp) else []
        columns = {frames.TOKS: frames.object_column(terms, inp.index)}
        made = self._made() if len(inp) else ""
        columns[frames.TOKS_ENCODER] = pd.Series([made] * len(inp), index=inp.index, dtype="str")
        return frames.replaced(inp, frames.TOKS_COLUMNS, **columns)

    def _made(self) -> str:
        """How the terms were made, for the index that they go to."""
        about = self.encoder.describe()
        document = {"prefix": about["document"]["prefix"], "length": about["document"]["length"], "top": self.top}
        return json.dumps({"space": vocabulary(self.encoder, self.sae, self.pooling), "document": document})
