"""The README is executed: its Python, the commands it prints, and the results it quotes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyterrier_mvret as mv

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SYSTEMS = ["BM25", "MiniLM cosine", "BM25 >> ColBERT, text", "BM25 >> ColBERT, index", "ColBERT end to end"]


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", README, flags=re.S | re.M)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_commands_do_all_the_set_up():
    first, second = commands()
    assert first == 'pip install -c constraints.txt -e ".[demo]" && python examples/quickstart.py'
    assert second == 'pip install -c constraints.txt -e ".[test]" && pytest -m "not slow"'
    # .ci/run takes them from the README, so what is printed is what is run
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(capsys):
    for block in re.findall(r"^```python\n(.*?)^```", README, flags=re.S | re.M):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    assert "ColBERT end to end" in printed
    assert "query_token" in printed


@pytest.mark.slow
def test_quick_start_compares_five_systems_and_explains():
    printed = run("examples/quickstart.py")
    for system in SYSTEMS:
        assert re.search(rf"^ *{re.escape(system)} +\d", printed, flags=re.M), printed
    assert "nDCG@10 p-value corrected" in printed
    assert "contribution" in printed
    assert "[info]" not in printed  # the engine's own log


@pytest.mark.slow
def test_quick_start_on_a_folder_of_files():
    folder = ROOT.parent / "shared" / "data" / "squad-a"
    if not folder.is_dir():
        pytest.skip(f"no collection at {folder}")
    assert "120 documents, 612 topics" in run("examples/quickstart.py", "--collection", str(folder))


def test_quoted_results_are_the_kept_ones():
    run("benchmarks/tables.py", "--check")
    run("benchmarks/quality.py")
    run("benchmarks/projection_heads.py")
    run("benchmarks/training.py")
    run("benchmarks/trained_head.py")
    run("benchmarks/alignment.py", "--show")
    run("benchmarks/alignment_adaptation.py")
    run("benchmarks/pruning.py")
    run("benchmarks/aligner_ablations.py")
    run("benchmarks/agrame_sentences.py")
    run("benchmarks/agrame_questions.py")
    run("benchmarks/agrame_train.py")
    run("benchmarks/agrame_cite.py")
    run("benchmarks/latent_terms.py")
    run("benchmarks/laspar_encoding.py", "--show")
    run("benchmarks/laspar.py")
    run("benchmarks/nvf_phases.py", "--show")
    run("benchmarks/nvf_real.py")
    run("benchmarks/nvf_cost.py", "--show")


def test_agreement_of_the_two_readings_is_as_quoted():
    printed = run("benchmarks/mini_agreement.py")
    assert "2312 pairs, 24 graded differently" in printed
    assert "agreement 0.990, Cohen's kappa 0.952" in printed


@pytest.mark.slow
def test_training_example_trains_saves_and_reads_back(tmp_path):
    printed = run("examples/train_colbert.py", "--epochs", "2", "--layers", "1", "--out", str(tmp_path))
    last, reloaded = (line.split()[-3:] for line in printed.splitlines()[-2:])
    assert last == reloaded  # nDCG@10 and the others, before and after the disk
    assert (tmp_path / "head.png").is_file()
    assert (tmp_path / "last" / "training.json").is_file()


@pytest.mark.slow
def test_aligner_example_chooses_prunes_and_explains(tmp_path):
    pytest.importorskip("matplotlib")
    printed = run("examples/aligner.py", "--shares", "0.4", "--out", str(tmp_path))
    assert re.search(r"^Chosen by 8 topics: Top[KP]\(", printed, flags=re.M)
    assert set(re.findall(r"\d+% kept, refine=\w+", printed)) == {"40% kept, refine=pruned", "40% kept, refine=full"}
    assert (tmp_path / "pruning.png").is_file()


@pytest.mark.slow
def test_latent_terms_example_trains_compares_and_explains(tmp_path):
    pytest.importorskip("matplotlib")
    printed = run("examples/latent_terms.py", "--latents", "512", "--tokens", "60000", "--out", str(tmp_path))
    table = dict(
        re.findall(r"^ *(.*(?:words|cosine|idf \w+|Terms)) +([01]\.\d+) +[01]\.\d+ +\d+\.\d+$", printed, flags=re.M)
    )
    assert len(table) == 6 and float(table["Latent Terms, idf lucene"]) > 0.5
    assert re.search(r"^z\d+: purity [01]\.\d\d, \d+ tokens in \d+ passages$", printed, flags=re.M)
    assert re.search(r"^middle_exponent +\d\.\d+ +\d\.\d+ +\d\.\d+$", printed, flags=re.M)
    assert (tmp_path / "zipf.png").is_file()
    saved, indexed = mv.LatentTerms.load(tmp_path / "model"), mv.SparseIndex(tmp_path / "latent.sparse")
    assert saved.space.rpartition("#")[2] == indexed.info()["encoder"].rpartition("#")[2]


@pytest.mark.slow
def test_agrame_example_marks_sentences_and_writes_a_page(tmp_path):
    page = tmp_path / "page.html"
    printed = run("examples/agrame.py", "--query", "<script>spring tide & full moon", "--html", str(page))
    assert re.search(r"^nat-spring-tide: .*\[1> It comes twice in each lunar month,.* <1\]", printed, flags=re.M)
    assert "\033" not in printed  # colours are for terminals
    alpha = {a: float(re.search(rf"colbert >> AGRaME, alpha {a} +(\S+)", printed)[1]) for a in "01"}
    alone = float(re.search(r"sentences encoded alone +(\S+)", printed)[1])
    assert alone < alpha["0"]  # context of the passage helps, without training
    written = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;spring tide &amp; full moon" in written
    assert not re.search(r"<script|https?:|<img|<link", written)
    assert written.count('class="best"') == 1


@pytest.mark.slow
def test_laspar_example_trains_compares_and_shows_dimensions(tmp_path):
    printed = run("examples/laspar.py", "--latents", "4096", "--epochs", "2", "--out", str(tmp_path))
    rows = re.findall(r"^ *([A-Z].*?) +([01]\.\d+) +[01]\.\d+ +\d+\.\d+$", printed, flags=re.M)
    table = {name: float(value) for name, value in rows}
    assert set(table) == {"BM25", "MiniLM cosine", "LASPAR, untrained", "LASPAR, trained"}
    assert table["LASPAR, untrained"] < table["LASPAR, trained"]
    assert len(re.findall(r"^latent \d+: \d+ passages", printed, flags=re.M)) == 3
    saved, indexed = mv.Laspar.load(tmp_path / "model"), mv.SparseIndex(tmp_path / "laspar.sparse")
    assert saved.head.trained
    assert saved.space.rpartition("#")[2] == indexed.info()["encoder"].rpartition("#")[2]


@pytest.mark.slow
def test_nvf_example_trains_compares_and_reads_back(tmp_path):
    printed = run("examples/nvf.py", "--epochs", "6", "--out", str(tmp_path))
    rows = re.findall(r"^ *(\S.*?) +([01]\.\d+) +[01]\.\d+ +\d+\.\d+ +\S+$", printed, flags=re.M)
    table = {name: float(value) for name, value in rows}
    assert len(table) == 6
    # what starts as the inner product stays near it; the notes' form forgets it
    assert table["inner product >> NVF"] > table["MiniLM, inner product"] - 0.03
    assert table["inner product >> NVF, notes' form"] < table["MiniLM, inner product"] - 0.2
    assert re.search(r"^\{'inner product': 0\.\d+, 'network': -?\d", printed, flags=re.M)
    nvf, index = mv.NVF.load(tmp_path / "nvf.safetensors"), mv.SingleVecIndex(tmp_path / "minilm.sv")
    assert nvf.space.rpartition("#")[2] == index.info()["encoder"].rpartition("#")[2]
