import os
from pathlib import Path

# nothing in the tests may reach for a model hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PT_TEST_TRANSFORMER_REPORTS", "0")

import pytest

import pyterrier_mvret as mv
from tests import checkpoints

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def no_documentation_server():
    """Schematics of other packages' stages ask a documentation server for links; tests run without a network."""
    import pyterrier as pt

    pt.documentation.objects_inv = lambda *_, **__: {}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A Stanford-layout checkpoint with random weights: two layers, 16 dimensions, projected to 8."""
    return checkpoints.stanford(tmp_path_factory.mktemp("tiny") / "colbert")


@pytest.fixture(scope="session")
def tiny_encoder(tiny) -> mv.TokenEncoder:
    return mv.TokenEncoder(tiny, device="cpu")


@pytest.fixture(scope="session")
def tiny_sentence(tmp_path_factory) -> Path:
    """A sentence encoder with random weights: the mean of token states of 16 dimensions."""
    return checkpoints.sentence_encoder(tmp_path_factory.mktemp("tiny") / "sentence")


@pytest.fixture(scope="session")
def minilm() -> mv.TokenEncoder:
    return mv.TokenEncoder(mv.models.MINILM, device="cpu")


@pytest.fixture
def collection():
    """Reads one of the real collections, or skips where they are not."""

    def read(name: str):
        if not (DATA / name / "docs.jsonl.gz").is_file():
            pytest.skip(f"the collection {name} is not at {DATA}")
        from examples.common import load

        return load(collection=str(DATA / name))

    return read
