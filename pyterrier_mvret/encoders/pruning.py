"""Which tokens of queries and documents are kept, and by what they are ranked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyterrier_mvret.encoders.importance import Attention, Importance, Salience, pruned
from pyterrier_mvret.scoring.shares import checked_share

if TYPE_CHECKING:
    from pyterrier_mvret.encoders.token_batch import TokenBatch
    from pyterrier_mvret.encoders.token_encoder import TokenEncoder


@dataclass(frozen=True)
class Pruning:
    """Shares of tokens that are kept: ``ceil(share * tokens)`` of a text, at least one (ALIGNER, section 4.3).

    Attributes:
        by: what ranks a text's tokens; none is salience where the encoder has heads, else attention.
        query: share of a query's tokens, above 0; none keeps all.
        document: share of a document's tokens, above 0; none keeps all.

    Raises:
        ValueError: a share that is not above 0 and at most 1.

    >>> from pyterrier_mvret.encoders.importance import First
    >>> Pruning(First(), document=0.2)
    Pruning(by=First(), query=None, document=0.2)
    """

    by: Importance | None = None
    query: float | None = None
    document: float | None = None

    def __post_init__(self) -> None:
        for side, share in (("query", self.query), ("document", self.document)):
            if share is None:
                continue
            share = checked_share(share, f"the share of {side} tokens kept")
            if share == 0:
                raise ValueError(f"the share of {side} tokens kept must be above 0, got {share}")
            object.__setattr__(self, side, share)

    def ranking(self, encoder: "TokenEncoder") -> Importance:
        """What ranks the tokens of an encoder, which may have been trained since."""
        return self.by or (Salience() if encoder.has_salience else Attention())

    def encoded(
        self, encoder: "TokenEncoder", texts: list[str], task: Literal["query", "document"], verbose: bool
    ) -> "TokenBatch":
        """The tokens of texts that are kept, in reading order."""
        encode, share = (
            (encoder.encode_queries, self.query) if task == "query" else (encoder.encode_docs, self.document)
        )
        if share is None:
            return encode(texts, verbose=verbose)
        return pruned(encode(texts, verbose=verbose, importance=self.ranking(encoder)), share)
