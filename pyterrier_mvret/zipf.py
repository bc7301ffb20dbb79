"""Rank and frequency of a vocabulary's terms, latents or words: fitted, and drawn beside each other."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.indexes.sparse import SparseIndex
from pyterrier_mvret.scoring import zipf
from pyterrier_mvret.scoring.zipf import LEAST, Zipf

Counted = Literal["documents", "tokens"]


def zipf_fit(
    source: Any, counted: Counted = "documents", *, documents: int | None = None, least: float = LEAST
) -> Zipf:
    """How Zipfian the terms of an index are; the estimators are our choice (the paper's are not known to us).

    Document and token frequencies have different exponents, so say which were taken. All-rank fits include the
    saturated head, terms that nearly all documents have, which is not Zipf's law: look at ``middle_exponent`` as well.

    Args:
        source: a :class:`SparseIndex`; a word index (``PisaIndex``, which must have its forward index; its words are
            stemmed as it stems); or frequencies, one a term, such as a column of :meth:`LatentTerms.frequencies`.
        counted: ``"documents"`` that have a term, or its ``"tokens"``, which a sparse index does not know
            (:meth:`LatentTerms.frequencies` does).
        documents: how many there are, for saturation; an index knows its own.
        least: terms that are rarer have no part in the fits.

    Returns:
        A :class:`~pyterrier_mvret.scoring.Zipf`.

    Raises:
        ValueError: tokens of a sparse index; a frequency that is negative, not finite, or larger than ``documents``.

    >>> fit = zipf_fit(1000 // np.arange(1, 201), "tokens")
    >>> round(fit.exponent, 3), fit.terms
    (1.025, 200)
    """
    frequencies, known = frequencies_of(source, counted)
    if documents is None and counted == "documents":
        documents = known
    return zipf.zipf_fit(frequencies, documents, least)


def frequencies_of(source: Any, counted: Counted = "documents") -> tuple[npt.NDArray[Any], int | None]:
    """Frequencies of a vocabulary's terms, and the number of documents where it is known; see :func:`zipf_fit`."""
    if counted not in ("documents", "tokens"):
        raise ValueError(f"counted must be 'documents' or 'tokens', got {counted!r}")
    if isinstance(source, SparseIndex):
        if counted == "tokens":
            raise ValueError("a sparse index counts documents, not tokens: latent.frequencies(corpus) counts both")
        statistics = source.store.statistics
        return statistics.frequencies, statistics.documents
    if hasattr(source, "get_corpus_iter"):
        return _of_words(source, counted)
    return np.asarray(source), None


def _of_words(index: Any, counted: Counted) -> tuple[npt.NDArray[Any], int]:
    """Those of the words of an index that can say which each of its documents has."""
    found: Counter[str] = Counter()
    documents = 0
    for document in index.get_corpus_iter(verbose=False):
        if not isinstance(document.get("toks"), Mapping):
            raise ValueError(f"{index!r} is no index of words: its documents have no counts of words ('toks')")
        found.update(document["toks"] if counted == "tokens" else document["toks"].keys())
        documents += 1
    return np.fromiter(found.values(), np.int64, len(found)), documents


def zipf_plot(
    sources: Mapping[str, Any], counted: Counted = "documents", *, least: float = LEAST, ax: Any = None
) -> Any:
    """Draws frequency over rank on log axes, vocabularies beside each other, with the fitted lines.

    A solid line is the fit on ranks 1 % to 50 %, whose exponent the legend names first; a dotted one that over all
    ranks, named second. Needs matplotlib (extra ``plot``). Returns the axes.

    Args:
        sources: what :func:`zipf_fit` takes, by name: ``{"latents": index, "words": word_index}``.
        counted: as for :func:`zipf_fit`.
        least: as for :func:`zipf_fit`.
        ax: axes of matplotlib to draw on; none makes new ones.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: as for :func:`zipf_fit`.

    >>> counts = 1000 // np.arange(1, 201)
    >>> zipf_plot({"words": counts}, "tokens").get_legend().get_texts()[0].get_text()
    'words: s = 1.02, 1.02'
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'pyterrier-mvret[plot]'") from error
    vocabularies = {}
    for name, source in sources.items():
        frequencies = frequencies_of(source, counted)[0]
        vocabularies[name] = zipf.fitted(frequencies, least), -np.sort(-frequencies[frequencies > 0])
    if ax is None:
        _, ax = pyplot.subplots()
    for name, (falling, used) in vocabularies.items():
        everywhere, middle = zipf.lines(falling)
        label = f"{name}: s = {middle.exponent:.2f}, {everywhere.exponent:.2f}"
        (drawn,) = ax.plot(np.arange(1, len(used) + 1), used, ".", markersize=3, alpha=0.5, label=label)
        for line, style in ((middle, "-"), (everywhere, ":")):
            if np.isnan(line.exponent):  # too few terms for a line
                continue
            ends = np.array([line.first, line.last])
            ax.plot(ends, line.scale / ends**line.exponent, style, color=drawn.get_color(), linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rank")
    ax.set_ylabel(counted)
    ax.legend()
    return ax
