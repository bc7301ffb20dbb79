import pytest

from tests import checkpoints as make


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make.sentence_encoder(tmp_path_factory.mktemp("plain") / "model")
