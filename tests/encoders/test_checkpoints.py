import json
import string

import numpy as np
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.encoders.checkpoints import detect
from tests import checkpoints as make

QUERIES = ["who sat", "a cat sat on the mat in the rain and a dog ran fast", "a [MASK] sat", "?", ""]
DOCS = ["a cat, it sat!", "the sky is blue. " * 8, "~ zzz qq", "...", ""]


def linear(states):
    return states @ make.projection().T


def first(states):
    return states @ make.projection(32, 16, 1).T + states @ make.projection(32, 16, 2).T


def second(states):
    return states @ make.projection(32, 32, 3).T + states


def third(states):
    return states @ make.projection(8, 32, 4).T


LAYOUTS = {
    "stanford": (make.stanford, [linear], True),
    "stanford, architecture not named": (lambda f: make.stanford(f, architecture="BertModel"), [linear], True),
    "stanford beside a modules.json": (make.stanford_beside_modules, [linear], True),
    "stanford beside Transformer and Dense": (make.stanford_and_pylate, [linear], True),
    "the same with a sentence-transformers config": (
        lambda f: make.stanford_and_pylate(f, sentence_config=True),
        [linear],
        True,
    ),
    "pylate": (make.pylate, [linear], True),
    "pylate, no model type": (lambda f: make.pylate(f, model_type=None), [linear], True),
    "pylate, Dense by its package": (lambda f: make.pylate(f, dense_type="pylate.models.Dense"), [linear], True),
    "pylate, Dense by package, no type": (
        lambda f: make.pylate(f, model_type=None, dense_type="pylate.models.Dense"),
        [linear],
        True,
    ),
    "three Dense with residuals": (make.three_dense, [first, second, third], False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_equal_a_plain_encoder(layout, tmp_path):
    build, heads, expand = LAYOUTS[layout]
    folder = build(tmp_path / "model")
    encoder = mv.TokenEncoder(folder, device="cpu")
    assert encoder.dim == make.DIM
    for task, texts in (("query", QUERIES), ("document", DOCS)):
        batch = encoder.encode_queries(texts) if task == "query" else encoder.encode_docs(texts)
        for i, text in enumerate(texts):
            ids, vectors = make.reference(folder, text, task, heads, expand=expand)
            assert batch.token_ids[batch.rows(i)].tolist() == ids.tolist(), (task, text)
            np.testing.assert_allclose(batch[i], vectors, atol=2e-6)


def test_scores_equal_the_librarys_maxsim(tmp_path):
    from sentence_transformers.util import maxsim

    for layout, (build, _, _) in LAYOUTS.items():
        encoder = mv.TokenEncoder(build(tmp_path / layout.replace(" ", "-")), device="cpu")
        q, d = encoder.encode_queries(QUERIES), encoder.encode_docs(DOCS)
        ours = mv.scoring.maxsim_matrix(q.vectors, q.offsets, d.vectors, d.offsets)
        np.testing.assert_allclose(ours, maxsim(list(q), list(d)).numpy(), rtol=1e-5, atol=1e-5)


def test_pickled_weights_are_read_without_running_code(tmp_path):
    folder = make.stanford(tmp_path / "model", architecture="BertModel", pickled=True)
    plain = mv.TokenEncoder(make.stanford(tmp_path / "safe"), device="cpu")
    encoder = mv.TokenEncoder(folder, device="cpu")
    np.testing.assert_allclose(encoder.encode_docs(["a cat"]).vectors, plain.encode_docs(["a cat"]).vectors, atol=1e-6)

    class Evil:
        def __reduce__(self):
            return (eval, ("1/0",))

    torch.save({"linear.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only|unsupported"):
        mv.TokenEncoder(folder, device="cpu").model  # noqa: B018


def test_attend_is_read_and_changes_the_vectors_of_real_tokens(tmp_path):
    off = mv.TokenEncoder(make.stanford(tmp_path / "off"), device="cpu")
    on = mv.TokenEncoder(make.stanford(tmp_path / "on", metadata={"attend_to_mask_tokens": True}), device="cpu")
    none = mv.TokenEncoder(tmp_path / "off", query_expansion=False, device="cpu")
    a, b, c = (e.encode_queries(["who sat"]).vectors for e in (off, on, none))
    assert a.shape == b.shape == (12, 8)
    assert c.shape == (5, 8)  # [CLS] [unused0] who sat [SEP]
    np.testing.assert_allclose(a[:5], c, atol=1e-6)
    assert np.abs(a[:5] - b[:5]).max() > 1e-3


def test_stanford_without_metadata_takes_the_classes_defaults(tmp_path):
    encoder = mv.TokenEncoder(make.stanford(tmp_path / "model", metadata={}), device="cpu")
    described = encoder.describe()
    assert described["query_expansion"]["length"] == 32
    assert described["document"]["length"] == 64  # 220, but this model has 64 positions
    assert described["document"]["prefix"] == "[unused1] "


def test_sentence_encoder_gets_no_projection_unless_asked(tmp_path):
    folder = make.sentence_encoder(tmp_path / "model")
    plain = mv.TokenEncoder(folder, device="cpu")
    assert plain.dim == make.HIDDEN
    batch = plain.encode_docs(["a cat."])
    assert plain.tokens(batch.token_ids) == ["[CLS]", "a", "cat", ".", "[SEP]"]
    asked = mv.TokenEncoder(folder, init_projection=4, device="cpu")
    assert asked.dim == 4
    again = mv.TokenEncoder(folder, init_projection=4, device="cpu")
    np.testing.assert_array_equal(asked.encode_docs(["a cat"]).vectors, again.encode_docs(["a cat"]).vectors)
    assert asked.space != plain.space


def test_what_is_not_multi_vector_is_one_clear_error(tmp_path):
    bare = make.backbone(tmp_path / "bare")
    with pytest.raises(ValueError, match="not a multi-vector checkpoint.*init_projection=dim"):
        mv.TokenEncoder(bare).model  # noqa: B018
    assert mv.TokenEncoder(bare, init_projection=4, device="cpu").dim == 4
    cross = make.backbone(tmp_path / "cross", "BertForSequenceClassification")
    with pytest.raises(ValueError, match="BertForSequenceClassification.*no token vectors"):
        mv.TokenEncoder(cross).model  # noqa: B018
    sparse = make.backbone(tmp_path / "sparse")
    make.edit(sparse / "config_sentence_transformers.json", model_type="SparseEncoder")
    with pytest.raises(ValueError, match="SparseEncoder.*no token vectors"):
        mv.TokenEncoder(sparse).model  # noqa: B018
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no model"):
        mv.TokenEncoder(tmp_path / "empty").model  # noqa: B018
    with pytest.raises(OSError, match="no checkpoint 'nobody/nothing'"):
        mv.TokenEncoder("nobody/nothing").model  # noqa: B018
    with pytest.raises(ValueError, match="own projection"):
        mv.TokenEncoder(make.stanford(tmp_path / "stanford"), init_projection=4).model  # noqa: B018
    make.edit(bare / "modules.json")
    (bare / "modules.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"modules\.json is not valid JSON"):
        mv.TokenEncoder(bare).model  # noqa: B018


def test_saved_encoder_comes_back_the_same(tmp_path):
    for name in ("stanford beside a modules.json", "three Dense with residuals"):
        encoder = mv.TokenEncoder(LAYOUTS[name][0](tmp_path / name.replace(" ", "-")), device="cpu")
        target = tmp_path / f"saved-{name.replace(' ', '-')}"
        encoder.save(target)
        assert detect(target) == "native"
        again = mv.TokenEncoder(target, device="cpu")
        for encode in ("encode_queries", "encode_docs"):
            before, after = getattr(encoder, encode)(DOCS), getattr(again, encode)(DOCS)
            np.testing.assert_array_equal(before.token_ids, after.token_ids)
            np.testing.assert_allclose(before.vectors, after.vectors, atol=1e-6)
        assert again.space.partition("#")[2] == encoder.space.partition("#")[2]
        assert again.describe()["document"] == encoder.describe()["document"]


def test_settings_override_the_checkpoint(tiny):
    encoder = mv.TokenEncoder(
        tiny, query_length=6, doc_length=8, skiplist=["cat"], query_prefix="", doc_prefix="[unused0] ", device="cpu"
    )
    q, d = encoder.encode_queries(["who sat on the mat"]), encoder.encode_docs(["a cat, it sat on the mat"])
    assert encoder.tokens(q.token_ids) == ["[CLS]", "who", "sat", "on", "the", "[SEP]"]
    assert encoder.tokens(d.token_ids) == ["[CLS]", "[unused0]", "a", ",", "it", "sat", "[SEP]"]
    everything = mv.TokenEncoder(tiny, skiplist=[], device="cpu").encode_docs(["a cat!"])
    assert encoder.tokens(everything.token_ids) == ["[CLS]", "[unused1]", "a", "cat", "!", "[SEP]"]
    punctuation = mv.TokenEncoder(tiny, skiplist="punctuation", device="cpu")
    assert punctuation.describe()["document"]["skiplist"] == sorted(string.punctuation)


def test_view_of_a_repaired_checkpoint_leaves_the_folder_alone(tmp_path):
    folder = make.stanford_beside_modules(tmp_path / "model")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    mv.TokenEncoder(folder, device="cpu").model  # noqa: B018
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert json.loads(before["config.json"])["architectures"] == ["BertModel"]


def test_a_pylate_checkpoint_that_calls_its_backbone_colbert(tmp_path):
    folder = make.pylate(tmp_path / "model", model_type=None)
    plain = mv.TokenEncoder(folder, device="cpu").encode_docs(["a cat!"]).vectors
    make.edit(folder / "config.json", architectures=["HF_ColBERT"])  # and no Stanford files
    np.testing.assert_allclose(mv.TokenEncoder(folder, device="cpu").encode_docs(["a cat!"]).vectors, plain, atol=1e-6)


def test_what_would_load_and_rank_noise_is_refused(tmp_path):
    unknown = make.stanford(tmp_path / "marker", metadata={"query_token_id": "[nosuch]"})
    with pytest.raises(ValueError, match=r"the query marker '\[nosuch\]' is not in the vocabulary"):
        mv.TokenEncoder(unknown, device="cpu").model  # noqa: B018
    text = make.pylate(tmp_path / "text")
    make.edit(text / "config_sentence_transformers.json", document_prefix="[D] ")
    with pytest.raises(ValueError, match=r"the document marker '\[D\]' is not in the vocabulary"):
        mv.TokenEncoder(text, device="cpu").model  # noqa: B018
    headless = make.sentence_encoder(tmp_path / "headless")
    modules = json.loads((headless / "modules.json").read_text())
    (headless / "modules.json").write_text(json.dumps(modules[:1]))
    make.edit(headless / "config_sentence_transformers.json", model_type="ColBERT")
    with pytest.raises(ValueError, match="not a multi-vector checkpoint: it calls itself ColBERT"):
        mv.TokenEncoder(headless, device="cpu").model  # noqa: B018


def test_damaged_checkpoints_are_named(tmp_path):
    short = make.stanford(tmp_path / "short")
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"the checkpoint {short} cannot be read"):
        mv.TokenEncoder(short, device="cpu").model  # noqa: B018
    metadata = make.stanford(tmp_path / "metadata")
    (metadata / "artifact.metadata").write_text("{")
    with pytest.raises(ValueError, match=f"the checkpoint {metadata} cannot be read"):
        mv.TokenEncoder(metadata, device="cpu").model  # noqa: B018
    nan = make.stanford(tmp_path / "nan")
    from safetensors.torch import load_file, save_file

    broken = load_file(nan / "model.safetensors")
    broken["linear.weight"][:] = float("nan")
    save_file(broken, nan / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="a probe came out"):
        mv.TokenEncoder(nan, device="cpu").model  # noqa: B018
    modules = make.pylate(tmp_path / "modules")
    (modules / "modules.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"modules\.json is not a list"):
        mv.TokenEncoder(modules, device="cpu").model  # noqa: B018
    for dim in (0, -3):
        with pytest.raises(ValueError, match="init_projection must be a number of dimensions"):
            mv.TokenEncoder(make.sentence_encoder(tmp_path / f"s{dim}"), init_projection=dim).model  # noqa: B018


def test_lengths_and_prompts_that_a_checkpoint_does_not_state(tmp_path):
    folder = make.pylate(tmp_path / "pylate")
    config = folder / "config_sentence_transformers.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in stated.items() if not k.endswith("_length")}))
    make.edit(folder / "config.json", max_position_embeddings=512)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    key = "embeddings.position_embeddings.weight"
    weights[key] = torch.zeros(512, make.HIDDEN)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    described = mv.TokenEncoder(folder, device="cpu").describe()
    assert described["document"]["length"] == 180
    assert described["query_expansion"] == {"strategy": "fixed", "attend": False, "token": None, "length": 32}
    batch = mv.TokenEncoder(folder, device="cpu").encode_queries(["who sat"])
    assert batch.vectors.shape == (32, make.DIM)
    sentence = make.sentence_encoder(tmp_path / "sentence")
    make.edit(sentence / "config_sentence_transformers.json", prompts={"query": "who ", "passage": "it "})
    encoder = mv.TokenEncoder(sentence, device="cpu")
    assert encoder.tokens(encoder.encode_queries(["cat"]).token_ids) == ["[CLS]", "who", "cat", "[SEP]"]
    assert encoder.tokens(encoder.encode_docs(["cat"]).token_ids) == ["[CLS]", "it", "cat", "[SEP]"]
    expanded = mv.TokenEncoder(sentence, query_expansion=True, query_prefix="", device="cpu")
    assert expanded.encode_queries(["cat"]).vectors.shape[0] == 32


def test_scaling_the_last_projection_changes_nothing_after_normalisation(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make.stanford(tmp_path / "model")
    before = mv.TokenEncoder(folder, device="cpu").encode_docs(DOCS).vectors
    weights = load_file(folder / "model.safetensors")
    weights["linear.weight"] *= 7
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(mv.TokenEncoder(folder, device="cpu").encode_docs(DOCS).vectors, before, atol=1e-6)


def test_names_on_the_hub_are_fetched_as_asked(tmp_path, monkeypatch):
    folder, asked = make.stanford(tmp_path / "snapshot"), []

    def snapshot(name, **settings):
        asked.append((name, settings))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    encoder = mv.TokenEncoder("org/model", revision="abc", cache_folder="/somewhere", device="cpu")
    assert encoder.dim == make.DIM
    ((name, settings),) = asked
    assert name == "org/model"
    assert (settings["revision"], settings["cache_dir"]) == ("abc", "/somewhere")
    assert not any(p.endswith((".py", ".bin")) for p in settings["allow_patterns"])  # no code, no pickles
    assert encoder.describe()["revision"] == "abc"
    mv.TokenEncoder("org/model", trust_remote_code=True, device="cpu").model  # noqa: B018
    assert "*.py" in asked[-1][1]["allow_patterns"]
    make.stanford(tmp_path / "pickled", pickled=True)
    folder = tmp_path / "pickled"
    mv.TokenEncoder("org/old", device="cpu").model  # noqa: B018
    assert "*.bin" in asked[-1][1]["allow_patterns"]  # only where there is nothing better
    with pytest.raises(ValueError, match="revision='abc' is for names on the model hub"):
        mv.TokenEncoder(folder, revision="abc").model  # noqa: B018


def test_code_of_a_checkpoint_runs_only_on_request(tmp_path, monkeypatch):
    seen = []
    import sentence_transformers

    real = sentence_transformers.MultiVectorEncoder

    def spy(*arguments, **settings):
        seen.append(settings.get("trust_remote_code"))
        return real(*arguments, **settings)

    monkeypatch.setattr(sentence_transformers, "MultiVectorEncoder", spy)
    folder = make.stanford(tmp_path / "model")
    mv.TokenEncoder(folder, device="cpu").model  # noqa: B018
    mv.TokenEncoder(folder, device="cpu", trust_remote_code=True).model  # noqa: B018
    assert seen == [False, True]
