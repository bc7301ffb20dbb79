"""What units cost beside MaxSim of the texts they are of: one query of 32 tokens, 128 dimensions, one thread.

    python benchmarks/units.py

Texts have 100 tokens, of which 97 lie in five sentences of random lengths; propositions are two pieces of a sentence
each. Ways take turns, and the best and the median round of each are kept, in milliseconds and as ratios to MaxSim, as
the machine may be busy. Writes units.json and prints it.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from limits import about

from pyterrier_mvret import scoring
from pyterrier_mvret.scoring import UnitRows

TOKENS, SENTENCES, ROUNDS = 100, 5, {100: 300, 1000: 60}


def measured(texts: int) -> dict[str, dict[str, Any]]:
    """Milliseconds of each way."""
    rng = np.random.default_rng(0)
    offsets = np.arange(texts + 1) * TOKENS
    vectors = rng.standard_normal((offsets[-1], 128), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[rng.integers(0, len(vectors), 32)].copy()
    # two special tokens before the sentences and one behind
    inner = [np.sort(rng.choice(np.arange(8, TOKENS - 8), SENTENCES - 1, replace=False)) for _ in range(texts)]
    cuts = np.array([[2, *places, TOKENS - 1] for places in inner]) + offsets[:-1, None]
    starts, ends, owners = cuts[:, :-1].ravel(), cuts[:, 1:].ravel(), np.repeat(np.arange(texts), SENTENCES)
    sentences = UnitRows.of_runs(starts, ends, owners)
    thirds = (ends - starts) // 3
    pieces = np.column_stack([starts, ends - thirds]).ravel(), np.column_stack([starts + thirds, ends]).ravel()
    propositions = UnitRows(*pieces, np.arange(len(starts) + 1) * 2, owners)
    parts = UnitRows.of([range(3, 9), range(9, 20), range(3, 20)]).members(32)
    held, every = scoring.TextUnits(vectors, sentences, offsets), np.arange(texts)
    ways = {
        "MaxSim of texts": lambda: scoring.maxsim_packed(query, vectors, offsets),
        "sentences": lambda: scoring.unit_scores(query, vectors, sentences),
        "sentences, for 3 parts of the query": lambda: scoring.unit_scores(query, vectors, sentences, parts),
        "propositions of two runs": lambda: scoring.unit_scores(query, vectors, propositions),
        "sentences and texts": lambda: held.scores(query, every),
        "the same, units put in order first": lambda: scoring.TextUnits(vectors, sentences, offsets).scores(
            query, every
        ),
        "sentences and texts, two query markers": lambda: held.scores(query, every, text_query=query),
        "sentences, and MaxSim of texts": lambda: (
            scoring.unit_scores(query, vectors, sentences),
            scoring.maxsim_packed(query, vectors, offsets),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS[texts]):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(1e3 * (time.perf_counter() - start))
    best, median = ({name: f(mine) for name, mine in times.items()} for f in (min, statistics.median))
    return {
        name: {
            "best": round(best[name], 3),
            "ratio of best": round(best[name] / best["MaxSim of texts"], 2),
            "ratio of medians": round(median[name] / median["MaxSim of texts"], 2),
        }
        for name in ways
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    outcome = {
        "about": about("OMP_NUM_THREADS=1 python benchmarks/units.py", ("numpy", "torch")),
        "backend": scoring.backend(),
        "texts": {texts: measured(texts) for texts in ROUNDS},
    }
    (Path(__file__).resolve().parent / "units.json").write_text(json.dumps(outcome, indent=1) + "\n")
    for texts, ways in outcome["texts"].items():
        print(f"{texts} texts of {TOKENS} tokens, {outcome['backend']}")
        print(pd.DataFrame(ways).T.to_string())
