"""Frequencies of indexes: what is counted, fitted and drawn."""

import sys

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.zipf import frequencies_of
from tests.indexes.sparse_docs import latents


@pytest.fixture
def index(tmp_path):
    return mv.SparseIndex(tmp_path / "x.sparse", "csr").index(latents(300))


def test_a_sparse_index_has_document_frequencies(index):
    index.index(latents(40, seed=9, prefix="e"), "append")
    fit = mv.zipf_fit(index)
    counts = pd.Series([t for d in [*latents(300), *latents(40, seed=9, prefix="e")] for t in d["toks"]]).value_counts()
    assert (fit.largest, fit.saturated) == pytest.approx((counts.iloc[0] / 340, (counts > 170).mean()))
    assert fit == mv.zipf_fit(counts, documents=340) == mv.zipf_fit(index.lexicon()["documents"], documents=340)
    assert 0 < fit.middle_exponent < 2
    with pytest.raises(ValueError, match="latent.frequencies"):
        mv.zipf_fit(index, "tokens")
    with pytest.raises(ValueError, match="'documents' or 'tokens'"):
        mv.zipf_fit(index, "postings")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PISA's iterator leaves a file open
def test_a_word_index_has_both(tmp_path):
    pisa = pytest.importorskip("pyterrier_pisa")
    words = pisa.PisaIndex(str(tmp_path / "w.pisa"), text_field="text")
    words.index([{"docno": "1", "text": "cat cat sat"}, {"docno": "2", "text": ""}, {"docno": "3", "text": "a cat"}])
    for counted, expected in (("documents", [1, 1, 2]), ("tokens", [1, 1, 3])):
        frequencies, documents = frequencies_of(words, counted)
        assert sorted(frequencies) == expected and documents == 3
    assert mv.zipf_fit(words).largest == pytest.approx(2 / 3)
    assert mv.zipf_fit(words, "tokens", least=1).largest is None

    class Texts:
        def get_corpus_iter(self, verbose=True):
            yield {"docno": "1", "text": "cat"}

    with pytest.raises(ValueError, match="no index of words"):
        mv.zipf_fit(Texts())


def test_drawn_points_and_lines(index):
    pytest.importorskip("matplotlib").use("Agg")
    counts = 1000 // np.arange(1, 201)
    ax = mv.zipf_plot({"latents": index, "words": counts, "few": [3, 2, 0]})
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_ylabel()) == ("log", "log", "documents")
    assert [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()] == ["latents", "words", "few"]
    fit = mv.zipf_fit(index)
    assert f"s = {fit.middle_exponent:.2f}, {fit.exponent:.2f}" in ax.get_legend().get_texts()[0].get_text()
    points, middle, everywhere = ax.lines[:3]
    np.testing.assert_array_equal(points.get_ydata(), sorted(index.lexicon()["documents"], reverse=True))
    for line, exponent in ((middle, fit.middle_exponent), (everywhere, fit.exponent)):
        (x0, x1), (y0, y1) = line.get_xdata(), line.get_ydata()
        assert np.log(y0 / y1) / np.log(x1 / x0) == pytest.approx(exponent)
    assert len(ax.lines) == 3 + 3 + 1  # too few terms have no line
    assert mv.zipf_plot({"words": counts}, "tokens", ax=ax) is ax


def test_drawing_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pyterrier-mvret\[plot\]"):
        mv.zipf_plot({"words": [9, 8, 7]})
