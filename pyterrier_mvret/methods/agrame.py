"""AGRaME: ranking units of any size by one encoding of passages (Reddy et al. 2024, arXiv 2405.15028)."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
import pyterrier as pt

from pyterrier_mvret.citation_stages import Citer, Segmenter
from pyterrier_mvret.encoders import markers
from pyterrier_mvret.encoders.markers import UnitMarker, WithoutUnitMarker
from pyterrier_mvret.encoders.splitters import Splitter, checked_spans, named_splitter
from pyterrier_mvret.encoders.token_encoder import TokenEncoder
from pyterrier_mvret.encoders.units import unit_rows
from pyterrier_mvret.explain import as_frame
from pyterrier_mvret.model import TokenModel
from pyterrier_mvret.scoring import MaxSim
from pyterrier_mvret.training import losses
from pyterrier_mvret.training.unit_data import UNITS
from pyterrier_mvret.unit_stages import Fold, UnitFolder, UnitScorer

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import MultiVectorEncoder

    from pyterrier_mvret.indexes.multivec import MultiVecIndex


class AGRaME(TokenModel):
    """Scores sentences (or paragraphs, phrases, propositions) inside passages that are encoded once, as a whole.

    ``Score(q, s) = S(q, rows of s) + alpha S(q, p)`` for a unit ``s`` of a passage ``p`` (section 4.1): MaxSim over the
    unit's token vectors alone, plus the passage's MaxSim. Nothing is encoded again, and an index does not change. With
    a stock checkpoint this is what the paper calls ColBERTv2 with passage encoding; :meth:`fit_encoder` trains its loss
    over units and the second query marker.

    Args:
        encoder: a :class:`TokenEncoder`, or what its first argument may be (a folder, a name on the Hub, a model).
        alpha: weight of the passage's score; 0 ranks units by their own. The paper does not say what it used, but adds
            both in its motivating experiment: 1 is our choice.
        unit: ``"sentence"``, ``"paragraph"``, ``"phrase"`` (five words), ``"text"``, or an object with ``split(text)``.
        query_marker: what goes before a query whose units are scored, beside the ordinary marker that passages are
            scored with. ``"auto"`` takes the one that the checkpoint was trained with, and for a stock checkpoint the
            ordinary one for both. A marker, such as ``"[unused2]"``, is to be trained by :meth:`fit_encoder`; with
            any checkpoint that was not trained with it, scoring is an error. None never takes a second one.
        verbose: progress bars.
        **settings: those of :class:`TokenEncoder`, where ``encoder`` is not one already.

    Raises:
        ValueError: a setting out of range, or settings for an encoder that is already made.

    >>> import pandas as pd
    >>> import pyterrier_mvret as mv
    >>> agrame = mv.AGRaME(mv.models.MINILM)
    >>> passages = pd.DataFrame([{"qid": "1", "query": "who purrs", "docno": "d", "text": "Dogs bark. Cats purr."}])
    >>> agrame.unit_scorer()(passages).sort_values("rank")[["docno", "text"]].to_numpy().tolist()
    [['d%s1', 'Cats purr.'], ['d%s0', 'Dogs bark.']]
    """

    def __init__(
        self,
        encoder: "TokenEncoder | str | Path | MultiVectorEncoder",
        *,
        alpha: float = 1.0,
        unit: str | Splitter = "sentence",
        query_marker: str | None = "auto",
        verbose: bool = False,
        **settings: Any,
    ):
        self._take(encoder, settings)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number of at least 0, got {alpha!r}")
        named_splitter(unit)
        if query_marker is not None:
            UnitMarker(query_marker)  # says at once what is none
        self.alpha, self.unit, self.query_marker, self.verbose = float(alpha), unit, query_marker, verbose
        self._check_saved(encoder)

    @property
    def scoring(self) -> MaxSim:
        """The rule that turns vectors into scores, of passages and units alike."""
        return MaxSim()

    def unit_scorer(
        self, index: "MultiVecIndex | None" = None, *, text_field: str = "text", keep_passages: int | None = None
    ) -> UnitScorer:
        """R of passages with ``query`` and text -> R of their units.

        A unit's row has the columns of its passage's, and ``docno`` (the passage's, ``%s`` and the unit's number),
        ``parent_docno``, its text and characters ``start``, ``end``, ``unit_score``, ``passage_score``, and their
        combination as ``score``. Units without a token (beyond the length limit, or of skipped tokens) are left out.

        Args:
            index: where the passages' vectors are, built with ``store_offsets=True``; none encodes their text.
            text_field: the column with the text, as it was encoded. A column ``spans`` says where units are: for each
                passage (start, end) pairs of characters, or for propositions a list of such pairs each. A column
                ``query_spans`` names the part of a query that is scored, such as a proposition: (start, end) pairs.
            keep_passages: units of so many passages a query, those that score best; none keeps all.
        """
        splitter = named_splitter(self.unit)
        where = (index, text_field, keep_passages)
        return UnitScorer(self.encoder, splitter, self.alpha, *where, self.query_marker, self.verbose)

    def fold(self, how: Fold = "max", *, text_field: str = "text") -> UnitFolder:
        """R of units -> R of their passages, scored by their units; ``best_unit`` names the best of each.

        Args:
            how: ``"max"``, ``"mean"`` or ``"sum"`` of the scores of a passage's units.
            text_field: the column with the units' text, which is not the passages' and so left out.

        >>> import pandas as pd
        >>> import pyterrier_mvret as mv
        >>> units = pd.DataFrame({"qid": "1", "docno": ["a%s0", "a%s1", "b%s0"], "parent_docno": ["a", "a", "b"],
        ...                       "score": [1.0, 3.0, 2.0], "rank": [2, 0, 1]})
        >>> mv.AGRaME(mv.models.MINILM).fold()(units)[["docno", "best_unit", "score", "rank"]]
          docno best_unit  score  rank
        0     a      a%s1    3.0     0
        1     b      b%s0    2.0     1
        """
        return UnitFolder(how, text_field)

    def cite(
        self,
        index: "MultiVecIndex | None" = None,
        *,
        margin: float | None = None,
        propositions: Segmenter | None = None,
        splitter: str | Splitter = "sentence",
        text_field: str = "text",
    ) -> Citer:
        """R of passages with the answer that was made from them -> R of its sentences and the passages they cite.

        PropCite (section 4.3): each proposition of a sentence cites the passage where its tokens find most, and a
        sentence cites what its propositions do. The sentence is encoded once, with the ordinary query marker (our
        choice: the paper does not say), whole and without expansion. Its rows that stand for the proposition are
        scored against all rows of each passage.

        The input has ``qid``, ``docno``, text, and ``qanswer``: the answer, beside each passage of its query, as a
        string or as a list of sentences. A column ``qpropositions`` says what propositions each sentence has: a list
        for each sentence, of strings (found in the sentence word by word) or of lists of (start, end) pairs of the
        sentence's characters. **Without propositions** a sentence is its one proposition: the paper's ablation (ii),
        which cites one passage a sentence, and not PropCite proper. A proposition of no word of its sentence cites
        nothing, and a warning says how many there were.

        A row of the output is a sentence and a passage that it cites, with the columns of the passage's row (vectors
        included) and ``sentence_id``, ``sentence``, ``sentence_start``, ``sentence_end`` (characters of the answer; a
        list is joined by blanks), ``propositions`` (numbers of those that cite the passage), ``margin`` (the largest
        of theirs) and ``score`` (the largest). Rows are in reading order; ``rank`` is by score over all of an answer,
        and says little, as longer propositions score higher. A passage that several sentences cite has as many rows.
        A sentence that cites nothing has none: see :func:`pyterrier_mvret.citation.cited_sentences`.

        Args:
            index: where the passages' vectors are; none encodes their text.
            margin: a proposition cites its best passage only if that is ahead of the next one by so much (1.0 in the
                paper's variant of higher precision). It is a difference of MaxSim sums of cosines, where each token
                adds at most 1, so that long propositions pass more easily. A single passage is always cited. None asks
                for nothing; dropping rows whose ``margin`` is lower leaves each sentence the same passages.
            propositions: a function that returns a sentence's propositions, strings or lists of spans, where the frame
                has no ``qpropositions``; such as a model that segments sentences (the paper's is SegmenT5).
            splitter: cuts answers that are strings into sentences; as ``unit`` of the model, which cuts passages.
            text_field: the column with the passages' text; not needed with an index.

        >>> import pandas as pd
        >>> import pyterrier_mvret as mv
        >>> contexts = pd.DataFrame({"qid": "1", "docno": ["a", "b"], "text": ["A cat purrs.", "A dog may bark."],
        ...                          "qanswer": "Cats purr and dogs bark. Dogs are loud."})
        >>> cite = mv.AGRaME(mv.models.MINILM).cite(propositions=lambda sentence: sentence.split(" and "))
        >>> citations = cite(contexts)
        >>> citations[["sentence_id", "docno", "propositions"]].to_numpy().tolist()
        [[0, 'a', [0]], [0, 'b', [1]], [1, 'b', [0]]]
        >>> mv.citation.cited_answers(citations, contexts)["qanswer_cited"][0]
        'Cats purr and dogs bark. [1][2] Dogs are loud. [2]'
        """
        where = (index, text_field)
        return Citer(self.encoder, named_splitter(splitter), margin, propositions, *where, verbose=self.verbose)

    def explain(self, query: str, text: str, span: tuple[int, int] | None = None) -> pd.DataFrame:
        """As of every model for a passage; with ``span``, which tokens of that unit each query token took.

        Args:
            query: the query.
            text: the passage.
            span: characters (start, end) of a unit in it; none explains the passage's score.

        Raises:
            ValueError: a unit without a token, or characters that are not in the text.

        >>> import pyterrier_mvret as mv
        >>> pairs = mv.AGRaME(mv.models.MINILM).explain("kitten", "Dogs bark. Cats sleep.", span=(11, 22))
        >>> pairs[["query_token", "doc_token"]].to_numpy().tolist()
        [['[CLS]', 'cats'], ['kitten', 'cats'], ['[SEP]', '.']]
        """
        if span is None:
            return super().explain(query, text)
        marker = markers.of_units(self.encoder, self.query_marker)
        q, d = self.encoder.encode_queries([query], prefix=marker), self.encoder.encode_docs([text])
        rows = unit_rows(d.spans, d.offsets, [text], [checked_spans([span], text)]).rows(0)
        if not len(rows):
            raise ValueError(f"characters {span} have no scored token: nothing to align with")
        pairs = self.scoring.pairs(q.vectors, d.vectors[rows])
        return as_frame(self.encoder, self.scoring, q, d, pairs._replace(document=rows[pairs.document]))

    def fit_encoder(self, data: "Dataset", valid: Any = None, **settings: Any) -> Self:
        """Trains the encoder, and the second query marker where the model has one; an index must be built anew.

        Args:
            data: a training set. One with units (:func:`~pyterrier_mvret.training.with_units`) is trained by
                :class:`~pyterrier_mvret.training.MultiGranular`: the paper's loss where it has a teacher's scores of
                passages, with a contrastive loss over passages where it has none. One without units is trained by a
                contrastive loss. ``loss=`` says otherwise.
            valid: as for :func:`~pyterrier_mvret.training.fit`. Of a pair (results, qrels), results are passages with
                ``text`` (and ``spans``), and qrels judge their units, ``docno%s0``, or else passages.
            **settings: as for :func:`~pyterrier_mvret.training.fit`.

        Raises:
            ValueError: as there; qrels of units and passages; or a new second marker that would not be trained: with
                another loss, or with ``train="head"`` or ``"last:n"``, where vectors of tokens stand still.

        >>> import pandas as pd
        >>> import pyterrier_mvret as mv
        >>> topics = pd.DataFrame({"qid": ["1", "2"], "query": ["pets that purr", "rates"]})
        >>> qrels = pd.DataFrame({"qid": ["1", "2"], "docno": ["a", "b"], "label": 1})
        >>> data = mv.training.pairs(topics, qrels, {"a": "Dogs bark. Cats purr.", "b": "Banks lend. Rates rose."})
        >>> units = pd.DataFrame({"qid": ["1", "2"], "docno": ["a%s1", "b%s1"], "label": 1})
        >>> agrame = mv.AGRaME(mv.models.MINILM, query_marker="[unused2]")
        >>> settings = {"max_steps": 1, "batch_size": 2, "verbose": False}
        >>> agrame.fit_encoder(mv.training.with_units(data, units), **settings).encoder.describe()["unit_prefix"]
        '[unused2] '
        """
        if settings.get("path") is not None:
            self._settings()  # what cannot be saved is said before the training, not after it
        settings.setdefault("loss", _loss_for(data))
        prepare = self._marker_for(settings)
        if prepare is not None:
            if "prepare" in settings:
                raise ValueError("prepare= is taken by the second query marker: with query_marker='auto' it is free")
            settings["prepare"] = prepare
        if isinstance(valid, tuple) and len(valid) == 2 and _judge_units(valid[1]):
            splitter = named_splitter(self.unit)
            settings["scorer"] = partial(
                UnitScorer, splitter=splitter, alpha=self.alpha, query_marker=self.query_marker
            )
        return super().fit_encoder(data, valid, **settings)

    def _marker_for(self, settings: dict[str, Any]) -> UnitMarker | WithoutUnitMarker | None:
        """What is done to the second query marker before training; none where it is left as it is."""
        if self.query_marker is None:
            return WithoutUnitMarker()
        if self.query_marker == "auto" or markers.trained(self.encoder, self.query_marker):
            return None
        if not getattr(losses.named(settings["loss"]), "units", False) or settings.get("train", "all") != "all":
            raise ValueError(
                f"query_marker={self.query_marker!r} is trained with loss='multi-granular' and train='all': other "
                "training has no use for it (query_marker='auto' keeps one that is there)"
            )
        return UnitMarker(self.query_marker)

    def _settings(self) -> dict[str, Any]:
        """The model's own settings as plain data."""
        if not isinstance(self.unit, str):
            raise ValueError(f"a model is saved with a unit's name, and {self.unit!r} has none")
        return super()._settings()


def _loss_for(data: Any) -> "str | losses.Loss":
    """What a training set is made for."""
    names = set(getattr(data, "column_names", ()))
    if not names & set(UNITS):
        return "contrastive"
    return losses.MultiGranular("kl" if "scores" in names else "contrastive")


def _judge_units(qrels: pd.DataFrame) -> bool:
    """Whether judgements are of units, ``docno%s0``."""
    pt.validate.columns(qrels, includes=["docno"])
    named = qrels["docno"].astype(str).str.contains(r"%s\d+$")
    if named.any() and not named.all():
        raise ValueError(
            f"these qrels judge units, such as {qrels['docno'][named].iloc[0]!r}, and passages, such as "
            f"{qrels['docno'][~named].iloc[0]!r}: pass those of one kind"
        )
    return bool(named.any())
