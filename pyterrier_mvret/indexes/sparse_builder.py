"""From a stream of documents with term weights to one segment on disk.

Arrays of a segment are postings by document (``offsets``, ``term_ids``, ``weights``), the sum of each document's
weights (``lengths``), how many of its documents have each term of the index so far (``frequencies``), and the names of
documents and of its new terms, each with what finds them.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret import frames
from pyterrier_mvret.indexes import docnos
from pyterrier_mvret.indexes.segment_writer import Record, SegmentWriter
from pyterrier_mvret.scoring.bm25 import row_sums

# what is held before it is written: at most so many documents, and about so many postings
_DOCUMENTS_A_BLOCK = 256
_POSTINGS_A_BLOCK = 1 << 18
_MOST_TERMS = np.iinfo(np.int32).max


class SparseSegmentBuilder(SegmentWriter):
    """Writes the arrays of one segment: postings by document, and the terms that no segment before has.

    What stays in memory is the vocabulary, and two hashes a document.

    Args:
        folder: an empty folder to write into.
        vocabulary: terms of the segments before, with their numbers; new ones are added.
        known: names -> whether each is already in the index, for appending.
        check_encoder: called once, with how the first document was encoded (or None), before it is written.
    """

    content, made_by = frames.TOKS, frames.TOKS_ENCODER

    def __init__(
        self,
        folder: Path,
        vocabulary: dict[str, int] | None = None,
        known: Callable[[list[str]], npt.NDArray[np.bool_]] | None = None,
        check_encoder: Callable[[dict[str, Any] | None], None] | None = None,
    ):
        super().__init__(folder, known, check_encoder)
        self.postings = 0
        self._vocabulary = {} if vocabulary is None else vocabulary
        self._old_terms = len(self._vocabulary)
        self._frequencies = np.zeros(self._old_terms, dtype=np.int64)

    def add(self, records: Iterable[Record]) -> None:
        """Consumes the stream.

        Raises:
            ValueError: a record that cannot be stored, by docno and term; nothing of the stream is kept then.
        """
        block: list[tuple[str, npt.NDArray[np.int32], npt.NDArray[np.float32]]] = []
        waiting = 0
        for record in records:
            name = self._name(record, not self.documents and not block)
            ids, weights = self._row(record.get(self.content), name)
            block.append((name, ids, weights))
            waiting += len(ids)
            if len(block) == _DOCUMENTS_A_BLOCK or waiting >= _POSTINGS_A_BLOCK:
                self._add_block(block)
                block, waiting = [], 0
        if block:
            self._add_block(block)

    def _row(self, toks: Any, name: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """A document's term numbers, rising, and their weights; a weight of 0 is no posting."""
        if frames.is_missing(toks):
            raise ValueError(f"document {name!r} has no {self.content}: put an encoder before the index")
        weights = term_weights(toks, f"{self.content} of document {name!r}")
        if not weights.all():
            toks = [term for term, weight in zip(toks, weights, strict=True) if weight]
            weights = weights[weights > 0]
        ids = self._numbers(toks, name)
        order = np.argsort(ids)
        return ids[order], weights[order]

    def _numbers(self, terms: Iterable[str], name: str) -> npt.NDArray[np.int32]:
        """Numbers of terms; new terms get the next ones."""
        vocabulary = self._vocabulary
        found = [vocabulary.get(term) for term in terms]
        if None in found:
            for term in terms:
                if term not in vocabulary:
                    if not frames.is_text(term):
                        raise ValueError(f"a term of document {name!r} must be a string of valid Unicode, got {term!r}")
                    vocabulary[term] = len(vocabulary)
            if len(vocabulary) > _MOST_TERMS:
                raise ValueError(f"more than {_MOST_TERMS} different terms")
            found = [vocabulary[term] for term in terms]
        return np.array(found, dtype=np.int32)

    def _add_block(self, block: list[tuple[str, npt.NDArray[np.int32], npt.NDArray[np.float32]]]) -> None:
        names = [name for name, _, _ in block]
        self._check_new(names)
        lengths = np.array([len(ids) for _, ids, _ in block], dtype=np.int64)
        ids = np.concatenate([ids for _, ids, _ in block])
        weights = np.concatenate([weights for _, _, weights in block])
        self._write("offsets", "<i8", None, self._running(self.postings, lengths, self.documents))
        self._write("term_ids", "<i4", None, ids)
        self._write("weights", "<f4", None, weights)
        self._write("lengths", "<f8", None, row_sums(weights, np.concatenate([[0], np.cumsum(lengths)])))
        self._count(ids)
        self._write_names(names)
        self.postings += len(ids)
        self.empty += int((lengths == 0).sum())

    def _count(self, ids: npt.NDArray[np.int32]) -> None:
        short = len(self._vocabulary) - len(self._frequencies)
        if short > 0:  # twice the size: a large vocabulary is not copied with every block
            self._frequencies = np.pad(self._frequencies, (0, short + len(self._vocabulary)))
        np.add.at(self._frequencies, ids, 1)

    def finish(self) -> dict[str, Any]:
        """Completes all files; returns the segment's entry in the manifest."""
        new = list(self._vocabulary)[self._old_terms :]
        encoded = [term.encode() for term in new]
        ends = np.fromiter(chain([0], map(len, encoded)), np.int64, len(new) + 1).cumsum()
        self._write("terms", "|u1", None, np.frombuffer(b"".join(encoded), np.uint8))
        self._write("term_offsets", "<i8", None, ends)
        for field, array in docnos.lookup_arrays(docnos.hashes(new)).items():
            self._write(TERM_FIELDS[field], docnos.FIELDS[field], None, array)
        self._write("frequencies", "<i8", None, self._frequencies[: len(self._vocabulary)])
        self._write_lookup()
        return {
            "documents": self.documents,
            "postings": self.postings,
            "empty": self.empty,
            "terms": len(new),
            "hash_probe": docnos.hash_probe(),
            "files": self._close(),
        }


#: terms are kept as docnos are: what the arrays are called
TERM_FIELDS = {field: field.replace("docnos", "terms").replace("docno_", "term_") for field in docnos.FIELDS}
FIELDS = {
    **docnos.FIELDS,
    **{name: docnos.FIELDS[field] for field, name in TERM_FIELDS.items()},
    "offsets": "<i8",
    "term_ids": "<i4",
    "weights": "<f4",
    "lengths": "<f8",
    "frequencies": "<i8",
}


def term_weights(toks: Any, what: str) -> npt.NDArray[np.float32]:
    """The weights of a dict of terms, as float32.

    Raises:
        ValueError: not a dict, or a weight that is negative or not a finite number in float32, by term.

    >>> term_weights({"z3": 2.25, "z7": 0}, "toks of document 'd1'").tolist()
    [2.25, 0.0]
    >>> term_weights({"z3": -1.0}, "toks of document 'd1'")
    Traceback (most recent call last):
    ValueError: toks of document 'd1': the weight of term 'z3' must be a finite number of at least 0, got -1.0
    """
    if not isinstance(toks, Mapping):
        raise ValueError(f"{what}: expected a dict of terms and weights, got {type(toks).__name__}")
    weights = _float32(list(toks.values()))
    if weights is None:
        term, weight = next((term, weight) for term, weight in toks.items() if _float32([weight]) is None)
        raise ValueError(f"{what}: the weight of term {term!r} must be a finite number of at least 0, got {weight!r}")
    return weights


def _float32(values: list[Any]) -> npt.NDArray[np.float32] | None:
    """Weights as an array; none if one of them is no weight."""
    try:
        array = np.array(values)  # of strings and dates where there are any: asked for floats, numpy would read them
    except (TypeError, ValueError, RuntimeError):  # ragged, or a tensor that cannot be read
        return None
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "fiub"):
        return None
    with np.errstate(over="ignore"):
        weights = array.astype(np.float32)
    return weights if ((weights >= 0) & (weights < np.inf)).all() else None
