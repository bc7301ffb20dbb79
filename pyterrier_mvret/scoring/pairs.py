"""What a score is made of: pairs of tokens, whatever rule aligned them."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class AlignedPairs(NamedTuple):
    """What a score is made of: aligned pairs of tokens, by query token, the best document token first.

    Attributes:
        query: (pairs,) positions of query tokens.
        document: (pairs,) positions of document tokens.
        similarity: (pairs,) float32 similarities ``S_ij``.
        weight: (pairs,) ``A_ij``, the product of both saliences, 0 where one of them is, 1 where there are none; of
            a soft alignment the product with its gate, and pairs of no weight are left out.
        contribution: (pairs,) what each adds to the score, ``A_ij S_ij / Z``; they sum to it.
    """

    query: Ints
    document: Ints
    similarity: Floats
    weight: Doubles
    contribution: Doubles

    @property
    def share(self) -> Doubles:
        """(pairs,) contributions as parts of the score: they sum to 1; zeros where the score is 0."""
        score = self.contribution.sum()
        return self.contribution / score if score else np.zeros_like(self.contribution)
