"""What the package ships."""

import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_entry_points_load():
    for group, name in (
        ("pyterrier.artifact", "multivec_index.mvret"),
        ("pyterrier.artifact", "singlevec_index.mvret"),
        ("pyterrier.artifact", "sparse_index.mvret"),
        ("pyterrier.dataset_provider", "mvret"),
    ):
        (found,) = entry_points(group=group, name=name)
        assert ":" in found.value
        assert found.load() is not None


@pytest.mark.slow
def test_a_wheel_holds_the_data_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, str(ROOT)], check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("py.typed", "data/limit_words.json", "data/mini/documents.jsonl", "data/mini/topics.jsonl"):
        assert f"pyterrier_mvret/{wanted}" in names
    assert any(n.endswith("LICENSE") for n in names)
    assert {n.split("/")[0].split("-")[0] for n in names} == {"pyterrier_mvret"}
