"""What an index keeps of each token beside its vector: the column it comes from, and how it is checked and stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret import frames

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Extra:
    """One such array.

    Attributes:
        column: of the documents' frame.
        dtype: as it is stored.
        columns: numbers a token, none for one that needs no second axis.
        setting: of :class:`MultiVecIndex`, which asks for it.
    """

    column: str
    dtype: str
    columns: int | None
    setting: str

    def of(self, record: Mapping[str, Any], name: str, length: int) -> Array:
        """A document's array, a copy.

        Raises:
            ValueError: none there, another shape, or numbers that cannot be stored.
        """
        value = record.get(self.column)
        if frames.is_missing(value):
            raise ValueError(
                f"document {name!r} has no {self.column} (pooled tokens have none); build the index with "
                f"{self.setting}=False, or give it to all documents"
            )
        shape = (length,) if self.columns is None else (length, self.columns)
        array = np.asarray(value)
        if array.shape == (0,) and not length:
            array = np.empty(shape, self.dtype)
        if array.shape != shape or not (self._floats(array) if self.dtype == "<f4" else self._integers(array)):
            kind = "finite numbers of at least 0" if self.dtype == "<f4" else "32-bit integers"
            raise ValueError(
                f"{self.column} of document {name!r} must be {kind} of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        return array.astype(self.dtype)

    @staticmethod
    def _integers(array: Array) -> bool:
        int32 = np.iinfo(np.int32)
        return array.dtype.kind in "iu" and (not array.size or int32.min <= array.min() <= array.max() <= int32.max)

    @staticmethod
    def _floats(array: Array) -> bool:
        return array.dtype.kind in "fiu" and bool(((array >= 0) & (array <= np.finfo(np.float32).max)).all())


#: by the name of the file
EXTRAS = {
    "token_ids": Extra(frames.DOC_TOK_IDS, "<i4", None, "store_ids"),
    "token_offsets": Extra(frames.DOC_TOK_OFFSETS, "<i4", 2, "store_offsets"),
    "token_weights": Extra(frames.DOC_WEIGHTS, "<f4", None, "store_weights"),
}
