"""Which token vectors belong to which unit of a text: from characters to rows.

A token's place is that of its characters without white space at their ends, since byte-level tokenisers count the blank
before a word. Tokens that stand for no character (markers, separators, expansion, a blank alone) belong to no unit.
What a skiplist or pruning took away, or a length limit cut off, has no row; units of nothing else are empty.

>>> import pyterrier_mvret as mv
>>> from pyterrier_mvret.encoders.splitters import Sentences
>>> texts = ["The cat sat. It slept."]
>>> encoder = mv.TokenEncoder(mv.models.MINILM, skiplist="punctuation")
>>> batch = encoder.encode_docs(texts)
>>> units = unit_rows(batch.spans, batch.offsets, texts, [Sentences().split(text) for text in texts])
>>> [encoder.tokens(batch.token_ids[units.rows(i)]) for i in range(len(units))]
[['the', 'cat', 'sat'], ['it', 'slept']]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.encoders.splitters import Span
from pyterrier_mvret.scoring.ragged import ragged_rows
from pyterrier_mvret.scoring.units import UnitRows

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

# white space up to the highest such character, U+3000, and one that stands for all beyond it
_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])


def unit_rows(
    token_spans: Array | None, offsets: Array, texts: Sequence[str], units: Sequence[Sequence[Span]]
) -> UnitRows:
    """Rows of units that follow one another, such as sentences: those whose token's first character lies in the unit.

    AGRaME's sentence scores have no special tokens; which unit takes a token across a border is our choice.

    Args:
        token_spans: (tokens, 2) characters ``[start, end)`` of each token in its text, ``[0, 0]`` for special ones:
            ``spans`` of a :class:`TokenBatch`, row for row with its vectors.
        offsets: (texts + 1,) integers; text ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        texts: what was encoded.
        units: for each text the spans of its units, as a splitter returns them. Where they overlap, a token belongs to
            several.

    Returns:
        Rows of all units, text by text; a unit without tokens has none. ``texts`` says which text each is of.

    Raises:
        ValueError: no token spans (after token pooling, or with a slow tokeniser), or lengths that do not fit.
    """
    return _rows(token_spans, offsets, texts, [[[span] for span in spans] for spans in units], whole=False)


def proposition_rows(
    token_spans: Array | None, offsets: Array, texts: Sequence[str], propositions: Sequence[Sequence[Sequence[Span]]]
) -> UnitRows:
    """Rows of propositions: of tokens that lie entirely in one of a proposition's spans.

    The rule is that of the public sub-sentence encoder, whose data AGRaME is evaluated on (section 4.2). A token may
    belong to several propositions.

    Args:
        token_spans: as for :func:`unit_rows`.
        offsets: as for :func:`unit_rows`.
        texts: what was encoded.
        propositions: for each text its propositions, each as spans that need not touch.

    Returns:
        As :func:`unit_rows`.

    Raises:
        ValueError: as :func:`unit_rows`.

    >>> tokens = np.array([[0, 0], [0, 3], [4, 7], [8, 11], [12, 19], [0, 0]])
    >>> units = proposition_rows(tokens, np.array([0, 6]), ["Ann and Bob laughed"], [[[(0, 3), (12, 19)], [(8, 19)]]])
    >>> units.rows(0), units.rows(1)
    (array([1, 4]), array([3, 4]))
    """
    return _rows(token_spans, offsets, texts, propositions, whole=True)


def _rows(
    token_spans: Array | None,
    offsets: Array,
    texts: Sequence[str],
    units: Sequence[Sequence[Sequence[Span]]],
    whole: bool,
) -> UnitRows:
    """Rows of units of one or several spans; of tokens that begin in one of them, or lie in it as a whole."""
    if token_spans is None:
        raise ValueError("tokens have no places in their texts: encode without token pooling, with a fast tokeniser")
    token_spans, offsets = np.asarray(token_spans, dtype=np.int64), np.asarray(offsets)
    if token_spans.shape != (offsets[-1], 2) or not len(offsets) - 1 == len(texts) == len(units):
        raise ValueError(
            f"{len(texts)} texts and lists of units for {len(units)} of them do not fit offsets of {len(offsets) - 1} "
            f"texts with {offsets[-1]} tokens, and token spans of shape {token_spans.shape}"
        )
    counts = [len(of_text) for of_text in units]
    parts = [spans for of_text in units for spans in of_text]
    text_of_unit = np.repeat(np.arange(len(texts)), counts)
    unit = np.repeat(np.arange(len(parts)), [len(spans) for spans in parts])
    spans = np.array([span for spans in parts for span in spans], dtype=np.int64).reshape(-1, 2)

    # all texts as one, and places counted in characters that are not white space: so nothing remains to be stripped
    ink = np.concatenate([[0], np.cumsum(_inked("".join(texts)))])
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    tokens = ink[_in_all(token_spans, np.repeat(np.arange(len(texts)), np.diff(offsets)), lengths, "a token")]
    spans = ink[_in_all(spans, text_of_unit[unit], lengths, "a unit")]

    some = np.flatnonzero(tokens[:, 0] < tokens[:, 1])
    # mostly in order; normalisation may swap combining marks
    some = some[np.argsort(tokens[some, 0], kind="stable")]
    first, last = np.searchsorted(tokens[some, 0], spans).T
    rows = some[ragged_rows(first, last - first)]
    of_span = np.repeat(np.arange(len(spans)), last - first)
    if whole:
        inside = tokens[rows, 1] <= spans[of_span, 1]
        rows, of_span = rows[inside], of_span[inside]
    return UnitRows.of_pairs(unit[of_span], rows, text_of_unit)


def _in_all(spans: Ints, texts: Ints, lengths: Ints, what: str) -> Ints:
    """Characters of all texts together, from those of each span's text."""
    outside = (spans[:, 0] < 0) | (spans[:, 1] < spans[:, 0]) | (spans[:, 1] > lengths[texts])
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(
            f"characters {spans[first].tolist()} of {what} are not in text {texts[first]}, which has "
            f"{lengths[texts[first]]}: is it another text than was encoded?"
        )
    return spans + (np.cumsum(lengths) - lengths)[texts, None]


def _inked(text: str) -> npt.NDArray[np.bool_]:
    """Which characters are not white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return ~_SPACE[np.minimum(codes, len(_SPACE) - 1)]
