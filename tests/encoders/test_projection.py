import json
import shutil

import numpy as np
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import checkpoints
from pyterrier_mvret.encoders.projection import Projection
from tests import checkpoints as make
from tests.encoders.variants import ALL, TEXTS, encoder, heads


@pytest.mark.parametrize("head", ALL, ids=repr)
def test_a_saved_head_comes_back_the_same(head, plain, tmp_path):
    before = encoder(plain, head, query_expansion=True, query_length=8, skiplist="punctuation")
    before.save(tmp_path / "saved")
    assert checkpoints.detect(tmp_path / "saved") == "native"
    after = mv.TokenEncoder(tmp_path / "saved", device="cpu")
    for encode in ("encode_queries", "encode_docs"):
        np.testing.assert_array_equal(getattr(after, encode)(TEXTS).vectors, getattr(before, encode)(TEXTS).vectors)
    assert after.space.partition("#")[2] == before.space.partition("#")[2]
    assert after.dim == 4
    with pytest.raises(ValueError, match="has its own projection"):
        mv.TokenEncoder(tmp_path / "saved", init_projection=head).model  # noqa: B018


@pytest.mark.parametrize("safe", [True, False])
def test_a_checkpoint_of_the_trainer_is_read(safe, plain, tmp_path):
    from sentence_transformers import MultiVectorEncoder

    for head in (heads.GLU(4), heads.FFN(4, residual="skip")):
        folder = tmp_path / type(head).__name__
        before = encoder(plain, head)
        with torch.no_grad():
            for parameter in before.model[1].parameters():
                parameter.mul_(1.5)
        before.model.save_pretrained(str(folder), safe_serialization=safe)
        names = [m["type"] for m in json.loads((folder / "modules.json").read_text())]
        assert names[1] == checkpoints._OWN
        after = mv.TokenEncoder(folder, device="cpu")
        np.testing.assert_array_equal(after.encode_docs(TEXTS).vectors, before.encode_docs(TEXTS).vectors)
        # sentence-transformers on its own wants to be told that this package may be imported
        alone = MultiVectorEncoder(str(folder), device="cpu", trust_remote_code=True)
        assert isinstance(alone[1], Projection)
        with pytest.raises(ValueError, match="trust_remote_code"):
            MultiVectorEncoder(str(folder), device="cpu")


def test_foreign_modules_beside_ours_still_need_trust(plain, tmp_path):
    encoder(plain, heads.GLU(4)).save(tmp_path / "saved")
    file = tmp_path / "saved" / "modules.json"
    modules = json.loads(file.read_text())
    modules[2]["type"] = "somewhere.Projection"
    file.write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="trust_remote_code"):
        mv.TokenEncoder(tmp_path / "saved").model  # noqa: B018


@pytest.mark.parametrize("lost", ["file", "type", "ColBERT"])
def test_our_module_is_known_whatever_the_config_says(lost, plain, tmp_path):
    before = encoder(plain, heads.GLU(4), query_prefix="", doc_prefix="")
    before.save(tmp_path / "saved")
    config = tmp_path / "saved" / "config_sentence_transformers.json"
    if lost == "file":
        config.unlink()
    elif lost == "type":
        config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "model_type"}))
    else:
        make.edit(config, model_type="ColBERT")
        modules = tmp_path / "saved" / "modules.json"
        modules.write_text(json.dumps(json.loads(modules.read_text())[:2]))  # PyLate lists no mask, no normalisation
    after = mv.TokenEncoder(tmp_path / "saved", skiplist=[], device="cpu")
    assert [type(m).__name__ for m in after.model] == ["Transformer", "Projection", "MultiVectorMask", "Normalize"]
    np.testing.assert_array_equal(after.encode_docs(["a cat"]).vectors, before.encode_docs(["a cat"]).vectors)


@pytest.mark.parametrize("head", [heads.FFN(4, 3, 2, "gelu"), heads.FFN(4, 3, 1, residual="layer")], ids=repr)
def test_a_deep_head_is_saved_as_pylate_saves_it(head, plain, tmp_path):
    before = encoder(plain, head, skiplist=[])
    saved = tmp_path / "saved"
    before.save(saved)
    for i in (1, 2, 3):
        config = json.loads((saved / f"{i}_Dense" / "config.json").read_text())
        assert {"in_features", "out_features", "bias", "activation_function"} <= set(config)
        assert config["bias"] is False
        assert config.get("use_residual", False) == (head.residual == "layer" and i < 3)
        assert config["activation_function"].startswith("torch.nn.modules.")
    file = saved / "modules.json"
    modules = json.loads(file.read_text())
    for module in modules[1:4]:
        module["type"] = "pylate.models.Dense"
    file.write_text(json.dumps(modules))
    native = mv.TokenEncoder(saved, device="cpu")
    np.testing.assert_array_equal(native.encode_docs(TEXTS).vectors, before.encode_docs(TEXTS).vectors)
    file.write_text(json.dumps(modules[:4]))
    make.edit(saved / "config_sentence_transformers.json", model_type="ColBERT", skiplist_words=[])
    pylate = mv.TokenEncoder(saved, device="cpu")
    assert checkpoints.detect(saved) == "pylate"
    np.testing.assert_array_equal(pylate.encode_docs(TEXTS).vectors, before.encode_docs(TEXTS).vectors)


def test_a_damaged_head_is_named(plain, tmp_path):
    from safetensors.torch import load_file, save_file

    encoder(plain, heads.GLU(4)).save(tmp_path / "whole")
    config, file = "1_Projection/config.json", "1_Projection/model.safetensors"

    def damaged(name):
        return shutil.copytree(tmp_path / "whole", tmp_path / name)

    unknown = damaged("unknown")
    make.edit(unknown / config, power=2)
    with pytest.raises(ValueError, match=r"1_Projection/config\.json is not of Projection: missing or unknown: power"):
        mv.TokenEncoder(unknown).model  # noqa: B018
    form = damaged("form")
    make.edit(form / config, form="moe")
    with pytest.raises(ValueError, match="form must be glu or ffn.skip, got 'moe'"):
        mv.TokenEncoder(form).model  # noqa: B018
    activation = damaged("activation")
    make.edit(activation / config, activation="tanh")
    with pytest.raises(ValueError, match="activation must be one of .*, got 'tanh'"):
        mv.TokenEncoder(activation).model  # noqa: B018
    short = damaged("short")
    save_file({k: v for k, v in load_file(short / file).items() if k != "gate.weight"}, short / file)
    with pytest.raises(ValueError, match=f"the checkpoint {short} cannot be read"):
        mv.TokenEncoder(short).model  # noqa: B018
