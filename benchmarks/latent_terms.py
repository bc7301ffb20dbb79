"""Latent Terms beside the same model's cosine and MaxSim, word BM25, and dictionaries that were never trained.

    python benchmarks/latent_terms.py --data FOLDER --scratch FOLDER [--steps train quality pisa ablations speed]
    python benchmarks/latent_terms.py                   # prints the kept tables

Dictionaries are trained on passages of three collections (latent_states.POOL), none of which is evaluated. All settings
were chosen before any run, and nothing is chosen by a measure: all topics are test topics. The scratch folder keeps
states, dictionaries, terms and values of topics, so that a run that was stopped goes on; results are written to
latent_terms.json after every system and every step.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import latent_engines
from latent_bench import BATCH, COLLECTIONS, FILE, LARGE, MAIN, OTHER_TEXT, STEPS, Bench
from latent_scores import NAMES
from latent_states import POOL, collection
from limits import about

_PACKAGES = ("torch", "transformers", "sentence-transformers", "pyterrier", "pyterrier-pisa", "scipy")


def show(results: dict[str, Any]) -> None:
    """All kept tables."""
    for name, one in results.get("dictionaries", {}).items():
        if "last" in one:
            last = one["last"]
            print(f"{name}: explained {last['explained']}, dead {last['dead']}, {one['tokens a second']} tokens/s")
    for name, entry in results.get("quality", {}).items():
        print(f"\n{name}: {entry['documents']} documents, {entry['queries']} queries")
        for system, row in entry["rows"].items():
            print(f"  {system:<44}" + " ".join(f"{m} {row[m]:.3f}" for m in NAMES))
        for row in [*entry.get("contrasts", []), *entry.get("contrasts added", [])]:
            print(f"  {row['measure']:8} {row['contrast']:<42} {row['delta']:+.3f} p {row['p']:.4f} Holm {row['holm']}")
    for name, entry in results.get("pisa", {}).items():
        print(f"\n{name}, {entry['dictionary']}: {entry['terms a document']} terms a document")
        for way, row in entry["ways"].items():
            cells = [f"{m} {row[m]:.4f}" for m in NAMES]
            print(f"  {way:<14}", *cells, f"{row['ms a query']} ms", f"{row['bytes a document']} bytes a document")
        print(*(f"  {what}: {value}" for what, value in entry.items() if what != "ways"), sep="\n")
    for name, entry in results.get("ablations", {}).items():
        print(f"\n{name}, {entry['dictionary']}")
        for setting, row in entry["rows"].items():
            cells = [f"{m} {idf} {row[idf][m]:.3f}" for m in NAMES for idf in ("rsj", "lucene", "dot") if idf in row]
            print(f"  {setting:<38}", *cells)
    for what, value in results.get("speed", {}).items():
        print(f"{what}: {value}")


def main() -> None:
    """Runs the steps that were asked for, and prints what is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections; without it, kept results are printed")
    parser.add_argument("--scratch", type=Path, help="folder of what is computed once; some 12 GB")
    parser.add_argument("--steps", nargs="+", default=["train", "quality", "pisa", "ablations", "speed"])
    parser.add_argument("--collections", nargs="+", default=COLLECTIONS)
    parser.add_argument("--large", action="store_true", help="larger dictionaries and collections; hours on a CPU")
    arguments = parser.parse_args()
    results = json.loads(FILE.read_text()) if FILE.exists() else {}
    if arguments.data:
        if arguments.scratch is None:
            parser.error("--data needs --scratch")
        results["about"] = about("python benchmarks/latent_terms.py --data FOLDER --scratch FOLDER", _PACKAGES) | {
            "model": "all-MiniLM-L6-v2, last hidden states, special tokens kept, documents cut at 256 tokens",
            "training": f"{', '.join(POOL)}; {STEPS} steps of {BATCH} states",
            "latent BM25": "k1 8, b 0.7, sums of activations, square root",
            "hybrids": "of each side's 1,000 best: sum of scores scaled to 0..1 for each query, or 1 / (60 + rank)",
        }
        bench = Bench(arguments.data, arguments.scratch, results)
        if arguments.large:
            bench.variants += LARGE
            arguments.collections.append("limit-rebuilt/20000")
        run(bench, arguments.steps, arguments.collections)
    show(results)


def run(bench: Bench, steps: list[str], collections: list[str]) -> None:
    """One step after the other, of one collection after the other."""
    if "train" in steps:
        for one in [*MAIN, *bench.variants, *OTHER_TEXT]:
            bench.dictionary(one)
    for name in collections:
        c = collection(bench.data, name)
        if "quality" in steps:
            bench.quality(c)
        if "pisa" in steps:
            latent_engines.pisa(bench, c)
        if "ablations" in steps and name in latent_engines.ABLATED:
            latent_engines.ablations(bench, c)
    if "speed" in steps:
        latent_engines.speed(bench)


if __name__ == "__main__":
    main()
