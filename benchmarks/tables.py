"""The tables that README.md quotes, made from the kept results.

python benchmarks/tables.py            # writes them into README.md
python benchmarks/tables.py --check    # fails where README.md says something else
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
_LEFT_OUT = re.compile(
    r"(512|2048|4096) candidates|(auto|1024) candidates, (float32|residual2)| (8|16) cells|fast scan"
)


def quality() -> str:
    """nDCG@10 of every system and collection; the best of each row in bold, * where p < 0.05 against BM25."""
    rows = json.loads((HERE / "quality.json").read_text())["rows"]
    systems = list(dict.fromkeys(r["name"] for r in rows))
    lines = [f"| collection | queries | {' | '.join(systems)} |", "|---|---:|" + "---:|" * len(systems)]
    for name in dict.fromkeys(r["collection"] for r in rows):
        mine = {r["name"]: r for r in rows if r["collection"] == name}
        best = max(round(r["nDCG@10"], 3) for r in mine.values())
        cells = []
        for system in systems:
            value, p = round(mine[system]["nDCG@10"], 3), mine[system]["nDCG@10 p-value corrected"]
            star = "\\*" if p is not None and p < 0.05 else ""
            cells.append(f"**{value:.3f}**{star}" if value == best else f"{value:.3f}{star}")
        lines.append(f"| {name} | {mine[systems[0]]['queries']} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        "\\* differs from BM25: paired t-test over topics, p < 0.05 after Holm's correction within a collection."
    )
    return "\n".join(lines)


def encoding() -> str:
    """Passages a second of each arithmetic and backend."""
    results = json.loads((HERE / "encoding.json").read_text())
    lines = ["| way | passages a second | ratio | largest error | nDCG@10 |", "|---|---:|---:|---:|---:|"]
    quality = results["quality"]["nDCG@10"]
    for name, row in results["speed"]["systems"].items():
        error = f"{row['largest error']:.0e}" if "largest error" in row else ""
        score = f"{quality[name]:.4f}" if name in quality else ""
        lines.append(f"| {name} | {row['passages a second']} | {row['ratio']} | {error} | {score} |")
    return "\n".join(["", *lines, ""])


def fidelity() -> str:
    """What each way of storing vectors costs."""
    results = json.loads((HERE / "fidelity.json").read_text())
    size = "bytes a vector (384 dimensions)"
    lines = [
        "| stored as | bytes a vector of 384 dimensions | largest relative error | mean | nDCG@10 |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {row[size]} | {row['largest relative error']:.0e} | {row['mean relative error']:.0e} "
        f"| {row['nDCG@10']:.4f} |"
        for name, row in results.items()
        if isinstance(row, dict) and size in row
    ]
    return "\n".join(["", *lines, f"\nScores of the text itself: nDCG@10 {results['text']['nDCG@10']:.4f}.", ""])


def kernel() -> str:
    """Ways to score a thousand documents, and what the machine could do at most."""
    results = json.loads((HERE / "maxsim.json").read_text())
    columns = [f"{state}, threads {threads}" for threads in (2, 1) for state in ("warm", "cold")]
    lines = [f"| way | {' | '.join(columns)} | largest error |", "|---|" + "---:|" * 5]
    for name, row in results["milliseconds"].items():
        error = "" if row.get("largest error") is None else f"{row['largest error']:.0e}"
        lines.append(f"| {name} | {' | '.join(f'{row[column]:.2f}' for column in columns)} | {error} |")
    limits = results["limits"]["threads 2"]
    facts = ", ".join(f"{what} {value:g}" for what, value in limits.items())
    return "\n".join(["", *lines, f"\nThe machine's limits with two threads: {facts}.", ""])


def end_to_end() -> str:
    """Time and recall at every size; of each sweep one setting, all of them are in the file."""
    sizes = json.loads((HERE / "end_to_end.json").read_text())["sizes"]
    header = "| documents | way | ms, 2 threads | ms, 1 thread | recall@10 | recall@100 | bytes a vector |"
    lines = [header, "|---:|---|---:|---:|---:|---:|---:|"]
    for size, entry in sizes.items():
        for name, row in entry["ways"].items():
            if _LEFT_OUT.search(name):
                continue
            times = [row.get(f"ms, threads {threads}, batch 1") for threads in (2, 1)]
            cells = ["" if time is None else f"{time:g}" for time in times]
            cells += [f"{row['recall@10']:.3f}", f"{row['recall@100']:.3f}", f"{row['bytes a vector']:g}"]
            lines.append(f"| {int(size):,} | {name} | {' | '.join(cells)} |")
    queries = ", ".join(f"{entry['queries']} with {int(size):,} documents" for size, entry in sizes.items())
    return "\n".join(["", *lines, f"\nQueries: {queries}.", ""])


def latency() -> str:
    """Where one query's time goes."""
    results = json.loads((HERE / "latency.json").read_text())
    runs = {name: row for name, row in results["milliseconds"].items() if name.endswith("threads 2")}
    lines = [f"| milliseconds | {' | '.join(name.removesuffix(', threads 2') for name in runs)} |"]
    lines.append("|---|" + "---:|" * len(runs))
    for part in next(iter(runs.values())):
        lines.append(f"| {part} | {' | '.join(f'{row[part]:g}' for row in runs.values())} |")
    return "\n".join(["", *lines, ""])


def heads() -> str:
    """Heads over seeds: where each is better or worse than one matrix."""
    results = json.loads((HERE / "projection_heads.json").read_text())
    tests = list(results["tests"])
    lines = [
        f"| head | weights | {' | '.join(tests)} | average (seeds) | p |",
        "|---|---:|" + "---:|" * (len(tests) + 2),
    ]
    for row in results["rows"]:
        low, high = min(row["average"]["seeds"]), max(row["average"]["seeds"])
        spread = f" ({low:.3f} to {high:.3f})" if low < high else ""
        p = "" if row["p over all topics"] is None else f"{row['p over all topics']:.2g}"
        weights = "" if row["parameters"] is None else f"{row['parameters']:,}"
        cells = " | ".join(f"{row[test]['mean']:.3f}" for test in tests)
        lines.append(f"| {row['head']} | {weights} | {cells} | {row['average']['mean']:.3f}{spread} | {p} |")
    about = results["about"]
    test = "paired t-test over all topics against `linear`, means of seeds, not corrected for the number of heads"
    lines.append(f"\np: {test}. {about['training']}.")
    return "\n".join(["", *lines, ""])


def alignment() -> str:
    """What an alignment costs beside MaxSim."""
    times = json.loads((HERE / "alignment.json").read_text())["milliseconds"]
    lines = ["| alignment | ms, 1 thread | ratio | ms, 2 threads | ratio |", "|---|---:|---:|---:|---:|"]
    for name, row in times.items():
        cells = [f"{row[n]:.2f} | {row[n] / times['MaxSim'][n]:.2f}" for n in ("threads 1", "threads 2")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["", *lines, ""])


def pruning() -> str:
    """nDCG@10 by share of tokens, ranking and refinement."""
    rows = json.loads((HERE / "pruning.json").read_text())["rows"]
    kinds = list(dict.fromkeys(row["by"] for row in rows if row["by"]))
    lines = [
        f"| collection | kept | refine | {' | '.join(kinds)} | bytes | time |",
        "|---|---:|---|" + "---:|" * (len(kinds) + 2),
    ]
    for name in dict.fromkeys(row["collection"] for row in rows):
        mine = [row for row in rows if row["collection"] == name]
        whole = mine[0]
        lines.append(
            f"| {name} | 100 % | | {' | '.join([format(whole['nDCG@10'], '.3f')] * len(kinds))} | 1.00 | 1.00 |"
        )
        for kept, refine in dict.fromkeys((row["kept"], row["refine"]) for row in mine[1:]):
            some = {row["by"]: row for row in mine if (row["kept"], row["refine"]) == (kept, refine)}
            one = some[kinds[0]]
            cells = [f"{some[kind]['nDCG@10']:.3f}" for kind in kinds]
            cells += [f"{one['bytes'] / whole['bytes']:.2f}", f"{one['ms a query'] / whole['ms a query']:.2f}"]
            lines.append(f"| {name} | {kept:.0%} | {refine} | {' | '.join(cells)} |".replace("%", " %"))
    return "\n".join(["", *lines, ""])


def training() -> str:
    """Speed and memory of training."""
    results = json.loads((HERE / "training.json").read_text())
    lines = ["| setting | queries a second | peak MiB above start |", "|---|---:|---:|"]
    for name, row in results["settings"].items():
        lines.append(f"| {name} | {row['queries a second']:g} | {row['peak MiB above start']:,} |")
    return "\n".join(["", *lines, ""])


def sentences() -> str:
    """P@1 of sentences; the best of each row in bold, * where passage encoding differs from sentences alone."""
    results = json.loads((HERE / "agrame_sentences.json").read_text())
    alone, whole = "sentences encoded alone", "passages encoded, alpha 0"
    ways = {
        "BM25": "BM25",
        "MiniLM cosine": "cosine",
        alone: "alone",
        whole: "in passages, alpha 0",
        "passages encoded, alpha 1": "alpha 1",
        f"{whole}, of the best 10": "alpha 0, of 10 passages",
    }
    lines = [f"| collection | {' | '.join(ways.values())} | ms, all | of 10 |", "|---|" + "---:|" * (len(ways) + 2)]
    for name in dict.fromkeys(row["collection"] for row in results["rows"]):
        mine = {row["way"]: row for row in results["rows"] if row["collection"] == name}
        tests = [row for row in results["contrasts"] if row["collection"] == name and row["holm"] < 0.05]
        starred = {row["contrast"].removesuffix(f" - {alone}") for row in tests if row["contrast"].endswith(alone)}
        values = {way: format(mine[way]["P@1"], ".3f") for way in ways}
        best = max(values.values())
        cells = [f"**{v}**" if v == best else v for v in values.values()]
        cells = [cell + "\\*" * (way in starred) for way, cell in zip(ways, cells, strict=True)]
        cells += [f"{mine[way]['ms a query']:.0f}" for way in (whole, f"{whole}, of the best 10")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    test = "paired randomisation over topics, p < 0.05 after Holm's correction within a collection"
    return "\n".join(["", *lines, f"\n\\* differs from sentences encoded alone: {test}.", ""])


def agrame_training() -> str:
    """P@1 of topics that were not trained on, by what was trained."""
    rows = json.loads((HERE / "agrame_train.json").read_text())["rows"]
    ranked = {"sentences, alpha 0": "sentences", "sentences, alpha 1": "alpha 1", "passages": "passages"}
    collections = list(dict.fromkeys(row["collection"] for row in rows))
    heads = [f"{name}, {what}" for name in collections for what in ranked.values()]
    lines = [f"| trained on | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        cells = []
        for name in collections:
            for way in ranked:
                key = (condition, name, way)
                mine = [row for row in rows if (row["condition"], row["collection"], row["ranked"]) == key]
                mean = sum(row["P@1"] * row["topics"] for row in mine) / sum(row["topics"] for row in mine)
                seeds = [row["P@1"] for row in mine]
                cells.append(f"{mean:.3f} ({min(seeds):.3f} to {max(seeds):.3f})")
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join(["", *lines, ""])


def latent() -> str:
    """nDCG@10 and R@100 of Latent Terms, means of seeds; * differs from cosine, + from random atoms."""
    results = json.loads((HERE / "latent_terms.json").read_text())["quality"]
    ways = {"BM25 on words": "words", "cosine": "cosine", "MaxSim": "MaxSim"}
    ways |= {f"random, {idf}": f"random 4096/16 seed {{}}, {idf}" for idf in ("rsj", "lucene")}
    ways |= {f"Latent Terms, {idf}": f"TopK 4096/16 seed {{}}, {idf}" for idf in ("rsj", "lucene")}
    ways |= {"words + latent": "words + TopK 4096/16 seed {}, rsj, sum", "words + cosine": "words + cosine, sum"}
    lines = [f"| collection | measure | {' | '.join(ways)} |", "|---|---|" + "---:|" * len(ways)]
    for name in sorted(results, key=lambda name: not name.startswith("limit")):
        entry = results[name]
        for measure in ("nDCG@10", "R@100"):
            found = {r["contrast"] for r in entry["contrasts"] if r["measure"] == measure and r["holm"] < 0.05}
            cells = []
            for way, system in ways.items():
                values = [entry["rows"][system.format(seed)][measure] for seed in (0, 1)]
                idf = way.rpartition(" ")[2]
                marks = "\\*" * (f"latent {idf} - cosine" in found) + "+" * (f"latent {idf} - random {idf}" in found)
                cells.append(f"{sum(values) / 2:.3f}{marks if way.startswith('Latent') else ''}")
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    test = "paired randomisation over topics, p < 0.05 after Holm's correction within a collection and measure"
    lines.append(f"\n\\* differs from cosine, + from random atoms with the same idf: {test}.")
    return "\n".join(["", *lines, ""])


def laspar() -> str:
    """nDCG@10 of heads over seeds, and their costs; of other architectures than the mean, two ways of training."""
    rows = json.loads((HERE / "laspar.json").read_text())["rows"]
    collections = list(dict.fromkeys(row["collection"] for row in rows))
    costs = ("document non-zeros", "query non-zeros", "FLOPS", "engine bytes", "ms a query")
    heads = ["latents", "pooling", "regulariser", "teacher", *(f"{c}, R@100" for c in collections), *costs]
    lines = [
        f"| {' | '.join(h.replace(', R@100', ' (R@100)') for h in heads)} |",
        "|---:|---|---|---|" + "---:|" * (len(heads) - 4),
    ]
    systems = dict.fromkeys((row.get("latents"), *(row[c] for c in heads[1:4])) for row in rows)
    for latents, pooling, regulariser, teacher in systems:
        pair = (regulariser, teacher)
        if latents and pooling != "mean" and pair not in (("untrained", "none"), ("none", "none"), ("flops", "dense")):
            continue
        wanted = (latents, pooling, *pair)
        mine = [row for row in rows if (row.get("latents"), *(row[c] for c in heads[1:4])) == wanted]
        cells = [f"{latents:,}" if latents else "", pooling, regulariser, teacher]
        for name in collections:
            some = [row for row in mine if row["collection"] == name]
            topics = sum(len(row["topics"]) for row in some)
            means = [sum(row[m] * len(row["topics"]) for row in some) / topics for m in ("nDCG@10", "R@100")]
            cells.append(f"{means[0]:.3f} ({means[1]:.3f})")
        first = [row for row in mine if row["collection"] == collections[0]]
        for cost in costs:
            mean = sum(row.get(cost, 0) for row in first) / len(first)
            cells.append(f"{mean:,.0f}" if cost == "engine bytes" else f"{mean:.3g}")
        lines.append(f"| {' | '.join(cells if latents else [*cells[: -len(costs)], *[''] * len(costs)])} |")
    return "\n".join(["", *lines, f"\nCosts are those of {collections[0]}.", ""])


def nvf() -> str:
    """nDCG@10 of NVF over seeds, beside what it is before training."""
    from nvf_real import tables  # brings the whole package along

    rows = tables(json.loads((HERE / "nvf_real.json").read_text())["rows"]).to_dict(orient="records")
    columns = {
        "inner product": ("cosine", "inner product"),
        "query transform": ("all", "query transform"),
        ">> NVF": ("cosine", "B, residual"),
        ">> NVF, notes' form": ("cosine", "B, the notes' form"),
        "BM25": ("BM25", "as found"),
        "BM25 >> inner product": ("BM25", "inner product"),
        "BM25 >> NVF": ("BM25", "B, residual"),
        "BM25 >> NVF, added to BM25": ("BM25", "B, added to BM25"),
    }
    lines = [f"| collection | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name in dict.fromkeys(row["collection"] for row in rows):
        mine = {(row["candidates"], row["system"]): row for row in rows if row["collection"] == name}
        cells = [
            f"{mine[at]['nDCG@10']:.3f}" + "\\*" * (0 <= (mine[at].get("holm") or 1) < 0.05) for at in columns.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    test = "paired randomisation over topics, p < 0.05 after Holm's correction within a collection"
    note = (
        "\\* differs from what it is before training, the inner product over the same candidates (the query transform: "
        "over all documents) or BM25"
    )
    return "\n".join(["", *lines, f"\n{note}: {test}.", ""])


def filled(text: str) -> str:
    """README.md with its quoted results replaced."""
    for name, table in (
        ("quality", "\n" + quality() + "\n"),
        ("encoding", encoding()),
        ("kernel", kernel()),
        ("end to end", end_to_end()),
        ("fidelity", fidelity()),
        ("latency", latency()),
        ("heads", heads()),
        ("alignment", alignment()),
        ("pruning", pruning()),
        ("training", training()),
        ("sentences", sentences()),
        ("agrame training", agrame_training()),
        ("latent terms", latent()),
        ("laspar", laspar()),
        ("nvf", nvf()),
    ):
        block = f"<!-- {name} -->{table}<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->(.*?<!-- /{name} -->)?", lambda _, b=block: b, text, flags=re.S)
    return text


if __name__ == "__main__":
    now = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(0 if filled(now) == now else "README.md quotes other results: run python benchmarks/tables.py")
    README.write_text(filled(now), encoding="utf-8")
