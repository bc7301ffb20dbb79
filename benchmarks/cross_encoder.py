"""A cross-encoder from MiniLM's weights, trained on rows of a benchmark: a teacher, and a reranker to compare with.

    python benchmarks/cross_encoder.py --data FOLDER --cache FOLDER     # tries settings, on validation topics alone

Only the classifier is new: six layers and BERT's pooler are those of the sentence encoder. The loss is
sentence-transformers' plain one for rerankers, binary cross-entropy of pairs: it asks for no more than a label, takes
any number of negatives, and leaves logits, whose differences are log-odds: as a teacher their temperature is 1.
A seed draws the classifier, the order of pairs and what drops out. Weights and logits are float32, products within the
layers bfloat16, which took a third of the time of training, and half of that of scoring, on one core that has
instructions for it.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from torch import nn
from transformers import set_seed

import pyterrier_mvret as mv

Pair = tuple[str, str]
EPOCHS, BATCH, RATE, LENGTH, WARMUP = 1, 16, 5e-5, 160, 0.1
SETTINGS = {"epochs": EPOCHS, "batch": BATCH, "rate": RATE, "length": LENGTH, "warm-up": WARMUP}


def untrained(seed: int, length: int = LENGTH, name: str = mv.models.MINILM) -> CrossEncoder:
    """MiniLM with a drawn classifier.

    Args:
        seed: of the classifier.
        length: tokens of a pair; of the longer of the two the rest is cut.
        name: of the sentence encoder.
    """
    set_seed(seed)
    model = CrossEncoder(name, num_labels=1, max_length=length)
    drawn = model.model.classifier
    model.model.classifier = _Exact(drawn.in_features, 1)
    model.model.classifier.load_state_dict(drawn.state_dict())
    return model


class _Exact(nn.Linear):
    """In float32, since logits of eight bits would tie."""

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            return super().forward(pooled.float())


def trained(
    data: Any, seed: int, epochs: float = EPOCHS, batch: int = BATCH, rate: float = RATE, length: int = LENGTH
) -> CrossEncoder:
    """A cross-encoder of training rows.

    Args:
        data: what ``mv.training.groups`` returned.
        seed: of the classifier, of the order and of what drops out.
        epochs: times each pair is seen.
        batch: pairs a step.
        rate: the highest learning rate, after a tenth of the steps; it falls to 0.
        length: as for :func:`untrained`.
    """
    from datasets import Dataset

    model = untrained(seed, length)
    with tempfile.TemporaryDirectory() as folder:
        how = CrossEncoderTrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            warmup_steps=WARMUP,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),  # bfloat16 is refused there unless one says so
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        loss = BinaryCrossEntropyLoss(model)
        CrossEncoderTrainer(model, how, Dataset.from_list(labelled(data)), loss=loss).train()
    return model.eval()


def labelled(data: Any) -> list[dict[str, Any]]:
    """Each pair of rows once: of a positive 1, of a negative 0."""
    labels: dict[Pair, float] = {}
    for row in data:
        for i, text in enumerate(mv.training.data.texts_of(row)):
            labels[row["query"], text] = max(labels.get((row["query"], text), 0.0), float(i == 0))
    return [{"query": query, "text": text, "label": label} for (query, text), label in labels.items()]


class Scores:
    """Logits of pairs, each asked once.

    >>> pt.apply.doc_score(Scores(model).scores, batch_size=4096)  # doctest: +SKIP
    """

    def __init__(self, model: CrossEncoder | None = None, at_once: int = 32):
        if model is not None:
            self.model = model
        self._at_once, self._known = at_once, dict[Pair, float]()

    def scores(self, results: pd.DataFrame) -> npt.NDArray[np.float64]:
        """Of results with ``query`` and ``text``, in their order."""
        pairs = list(zip(results["query"], results["text"], strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if new:
            self._learn(new)
        return np.array([self._known[pair] for pair in pairs])

    def _learn(self, new: list[Pair]) -> None:
        how: dict[str, Any] = {"activation_fn": nn.Identity(), "show_progress_bar": False}
        with torch.autocast(self.model.device.type, torch.bfloat16):
            found = self.model.predict(new, batch_size=self._at_once, **how)  # sorts by length
        self._known.update(zip(new, found.tolist(), strict=True))


class KeptScores(Scores):
    """Scores in a file; where all that is asked for is in it, nothing is trained.

    Args:
        data: rows to train on.
        seed: as for :func:`trained`.
        folder: of the file, which is named after rows, seed and settings.
        how: settings of :func:`trained`.
    """

    def __init__(self, data: Any, seed: int, folder: Path, **how: Any):
        super().__init__()
        self._data, self._seed, self._how = data, seed, how
        settings = [SETTINGS, seed, how, labelled(data)]
        self._file = folder / f"cross-encoder-{_digest(settings)}.json"
        kept = json.loads(self._file.read_text()) if self._file.exists() else {"seconds": None, "scores": []}
        self._known = {(query, text): score for query, text, score in kept["scores"]}
        #: of training
        self.seconds: float | None = kept["seconds"]

    @cached_property
    def model(self) -> CrossEncoder:
        """Trained when it is first asked for."""
        start = time.perf_counter()
        model = trained(self._data, self._seed, **self._how)
        self.seconds = round(time.perf_counter() - start, 1)
        return model

    def _learn(self, new: list[Pair]) -> None:
        super()._learn(new)
        kept = [[*pair, score] for pair, score in self._known.items()]
        self._file.write_text(json.dumps({"seconds": self.seconds, "scores": kept}))


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def first(data: Any, rows: int, negatives: int, seed: int = 0) -> Any:
    """So many rows, drawn, with so many of their negatives."""
    names = [f"negative_{i + 1}" for i in range(negatives)]
    chosen = data.shuffle(seed=seed).select(range(min(rows, len(data))))
    cut = chosen.map(lambda row: {"docnos": row["docnos"][: negatives + 1]})
    return cut.select_columns(["qid", "docnos", "query", "positive", *names])


def trials(data: Path, cache: Path, pairs: int, tries: Iterable[tuple[float, int, int]]) -> None:
    """nDCG@10 of the cosine's best 20 documents, reranked, over validation topics of seed 0, which no seed tests.

    Args:
        data: folder of the collections.
        cache: of states of texts.
        pairs: of training, in all epochs.
        tries: rate, negatives a row, epochs.
    """
    from datasets import concatenate_datasets
    from laspar import TRAINED
    from laspar_data import Collection

    collections = [Collection(name, data, cache, True) for name in TRAINED]
    most = max(negatives for _, negatives, _ in tries)
    rows = concatenate_datasets([c.rows(0, negatives=most) for c in collections])
    for c in collections:
        print(c.name, "cosine", c.cosine(c.divided(0)["valid"])["nDCG@10"].mean().round(4), flush=True)

    def told(name: str, model: CrossEncoder) -> None:
        start, asked, found = time.perf_counter(), Scores(model), []
        for c in collections:
            values = c.reranked(c.divided(0)["valid"], asked)["nDCG@10"]
            found.append(round(float(values.mean()), 4))
        speed = len(asked._known) / (time.perf_counter() - start)
        print(name, found, round(float(np.mean(found)), 4), f"{speed:.0f} pairs/s scored", flush=True)

    told("untrained", untrained(0))
    for rate, negatives, epochs in tries:
        part = first(rows, pairs // (1 + negatives) // epochs, negatives)
        start = time.perf_counter()
        model = trained(part, 0, epochs=epochs, rate=rate)
        speed = len(labelled(part)) * epochs / (time.perf_counter() - start)
        told(f"rate {rate}, {negatives} negatives, {epochs} epochs, {speed:.1f} pairs/s trained:", model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--cache", type=Path, required=True, help="where states of texts are kept between runs")
    parser.add_argument("--pairs", type=int, default=4000, help="of training, the same for all that is tried")
    parser.add_argument("--tries", nargs="+", default=["5e-5,1,1", "1e-4,1,1"], help="rate,negatives,epochs")
    arguments = parser.parse_args()
    tries = [(float(a), int(b), int(c)) for a, b, c in (one.split(",") for one in arguments.tries)]
    trials(arguments.data, arguments.cache, arguments.pairs, tries)
