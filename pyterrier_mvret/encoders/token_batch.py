"""The token vectors of several texts, packed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenBatch:
    """Scored token vectors of a list of texts, one text after the other.

    Attributes:
        vectors: (tokens, dim) float32; only tokens that take part in scoring (the mask is already applied).
        offsets: (texts + 1,) int64; text ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        token_ids: (tokens,) int32, row for row; none after token pooling, where a row is no longer one token.
        spans: (tokens, 2) int32, characters ``[start, end)`` of each token in its text; ``[0, 0]`` for tokens that
            stand for no text (markers, separators, expansion); none after token pooling or with a slow tokeniser.
        weights: (tokens,) float32 token weights, where the encoder has any.
        importance: (tokens,) float32, what ranks tokens when only a share of them is kept (higher is rather kept),
            where it was asked for or the encoder has salience heads; none after token pooling.

    >>> batch = TokenBatch(np.eye(3, dtype=np.float32), np.array([0, 2, 3]))
    >>> len(batch), batch[1]
    (2, array([[0., 0., 1.]], dtype=float32))
    """

    vectors: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32] | None = None
    spans: npt.NDArray[np.int32] | None = None
    weights: npt.NDArray[np.float32] | None = None
    importance: npt.NDArray[np.float32] | None = None

    @classmethod
    def of_nothing(cls, ranked: bool) -> "TokenBatch":
        """The batch of no texts; ``ranked`` ones have an importance."""
        ids, spans = np.empty(0, np.int32), np.empty((0, 2), np.int32)
        importance = np.empty(0, np.float32) if ranked else None
        return cls(np.empty((0, 0), np.float32), np.zeros(1, np.int64), ids, spans, importance=importance)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> npt.NDArray[np.float32]:
        return self.vectors[self.rows(i)]

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return (self[i] for i in range(len(self)))

    def rows(self, i: int) -> slice:
        """The rows of text ``i``."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of a batch of {len(self)}")
        i %= len(self)
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.vectors.shape[1])
