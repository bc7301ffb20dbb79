"""How far the two readings behind the labels of mvret:mini agree: Cohen's kappa over all pooled pairs.

    python benchmarks/mini_agreement.py

Reads mini_readings.json: topic, passage, grade of the first reading, grade of the second (blind to the first).
"""

import json
from collections import Counter
from pathlib import Path

rows = json.loads((Path(__file__).parent / "mini_readings.json").read_text())
n = len(rows)
agreement = sum(first == second for _, _, first, second in rows) / n
firsts, seconds = Counter(r[2] for r in rows), Counter(r[3] for r in rows)
chance = sum(firsts[g] * seconds[g] for g in (0, 1, 2)) / n**2
kappa = (agreement - chance) / (1 - chance)
print(f"{n} pairs, {sum(r[2] != r[3] for r in rows)} graded differently")
print(f"agreement {agreement:.3f}, Cohen's kappa {kappa:.3f}")
