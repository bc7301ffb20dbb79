"""LASPAR's head: by its definition, from any chunk and in any company, with gradients, kept small, saved and read."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import latent_head
from pyterrier_mvret.encoders.latent_head import LatentHead
from pyterrier_mvret.encoders.latents import LatentSettings, head_of, latent_vectors
from pyterrier_mvret.encoders.states import token_states
from pyterrier_mvret.scoring.latent_vectors import dot
from tests import checkpoints

TEXTS = ["a cat sat on the mat", "the sky is blue, the rain fell", "a dog", "", "who ran fast in the rain"]
POOLINGS = ("mean", "sum", "position", "attention")


def with_latents(tiny, trained=True, **settings):
    """An encoder with a latent head, said to be trained unless the test is about that."""
    model = copy.deepcopy(mv.TokenEncoder(tiny, device="cpu").model)
    LatentSettings(**{"latents": 64, "k_doc": 8, "k_query": 4, **settings})(model)
    head_of(model).trained = trained
    return mv.TokenEncoder(model)


def head(latents=50, features=6, k=5, seed=0, **settings):
    made = LatentHead(features, latents, k, k, **{"norm_input": False, **settings})
    made.draw(seed, bias=0.1)
    return made.eval()


def states(lengths, features=6, seed=0):
    random = np.random.default_rng(seed)
    padded = torch.from_numpy(random.standard_normal((len(lengths), max(lengths), features)).astype(np.float32))
    return {"token_embeddings": padded, "attention_mask": torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]}


def dense(found, latents):
    out = np.zeros((len(found["latent_ids"]), latents), np.float32)
    np.put_along_axis(out, found["latent_ids"].numpy(), found["latent_weights"].detach().numpy(), axis=1)
    return out


# ---------------------------------------------------------------------- the definition


def test_the_worked_example():
    u = torch.tensor([[1, -1, 0.5, 0], [0.5, 1, -1, -2]]).T
    given = {"token_embeddings": torch.tensor([[[1.0, 0], [0, 2]]]), "attention_mask": torch.ones(1, 2)}
    one = LatentHead(2, 4, 4, 4, "sum", norm_input=False, bias=False)
    two = LatentHead(2, 4, 4, 4, "position", norm_input=False, positions=2)
    with torch.no_grad():
        one.weight.copy_(u)
        two.weight.copy_(u)
        two.position.copy_(torch.tensor([0.5, -0.25]))
        two.offset.copy_(torch.tensor([0.1, 0.1, 0.1, 1.2]))
        first, second = (dense(made(dict(given)), 4)[0] for made in (one, two))
        np.testing.assert_allclose(first, [0.845737, 0.533600, 0, 0], atol=1e-6)
        np.testing.assert_allclose(second, [0.222365, 0, 0.455826, 0.861845], atol=1e-6)
        np.testing.assert_allclose(first @ second, 0.188062, atol=1e-6)
        two.position.fill_(1)
        two.offset.zero_()
        np.testing.assert_allclose(dense(two(dict(given)), 4)[0], first, atol=1e-6)
        one.normalize = False
        np.testing.assert_allclose(dense(one(dict(given)), 4)[0], [np.log(3), np.log(2), 0, 0], atol=1e-6)


def test_adding_up_before_the_matrix_is_adding_up_after_it():
    made, given = head(pooling="sum", bias=False), states([7, 1, 4])
    real = given["attention_mask"][..., None]
    upscaled = (given["token_embeddings"] @ made.weight.detach().T * real).sum(1)  # (texts, tokens, latents) on the way
    x = torch.log1p(upscaled.relu()).clamp(max=10)
    kept = torch.where(x >= x.topk(5).values[:, -1:], x, 0)
    np.testing.assert_allclose(dense(made(given), 50), torch.nn.functional.normalize(kept), atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_by_their_formula(pooling):
    made, given = head(pooling=pooling, norm_input=True, positions=4), states([7, 1, 4])
    weights = {"mean": lambda h: np.full(len(h), 1 / len(h)), "sum": lambda h: np.ones(len(h))}
    with torch.no_grad():
        if pooling == "position":
            made.position.copy_(torch.tensor([0.3, -0.2, 0.5, 0.1]))
            weights["position"] = lambda h: np.array([0.3, -0.2, 0.5, 0.1, 0.1, 0.1, 0.1])[: len(h)]
        if pooling == "attention":
            np.testing.assert_allclose(made.pooled(given), head(norm_input=True).pooled(given), atol=1e-6)
            made.attention.normal_()
            v = made.attention.numpy() / np.sqrt(6)
            weights["attention"] = lambda h: np.exp(h @ v) / np.exp(h @ v).sum()
        found = made.pooled(given).numpy()
    for row, rows, real in zip(found, given["token_embeddings"].numpy(), given["attention_mask"].numpy()):
        h = weights[pooling](rows[real]) @ rows[real]
        np.testing.assert_allclose(row, h / np.linalg.norm(h), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_either_side_and_expansion_have_no_part(pooling):
    made, given = head(pooling=pooling), states([5, 5])
    expected = made(dict(given))
    for left, right in ((0, 9), (4, 0), (3, 2)):
        padded = {name: torch.nn.functional.pad(t, (0, 0, left, right) if t.ndim == 3 else (left, right), value=value)
                  for (name, t), value in zip(given.items(), (torch.nan, 0))}  # fmt: skip
        found = made(padded)
        np.testing.assert_allclose(dense(found, 50), dense(expected, 50), atol=1e-6)
    expanded = {name: torch.nn.functional.pad(t, (0, 0, 0, 3) if t.ndim == 3 else (0, 3), value=1)
                for name, t in given.items()}  # fmt: skip
    expanded["query_expansion_positions"] = torch.arange(8).repeat(2, 1) >= 5
    np.testing.assert_allclose(dense(made(expanded), 50), dense(expected, 50), atol=1e-6)


def test_vectors_are_sparse_and_of_length_one():
    made = head(k=3)
    with torch.no_grad():
        found = made(states([4, 2, 6, 1]))
        assert found["latent_ids"].shape == found["latent_weights"].shape == (4, 3)
        assert (found["latent_weights"] >= 0).all()
        np.testing.assert_allclose(found["latent_weights"].norm(dim=1), 1, atol=1e-6)
        made.offset.fill_(-100)
        assert not made(states([4, 2]))["latent_weights"].any()
        made.offset.fill_(100)
        nothing = {"token_embeddings": torch.ones(1, 3, 6), "attention_mask": torch.zeros(1, 3)}
        assert not made(nothing)["latent_weights"].any()


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("settings", [{}, {"normalize_before_topk": True}, {"normalize": False, "rows": "float16"}])
def test_chunks_change_nothing(monkeypatch, at_once, settings):
    made, given = head(**settings), states([4, 2, 6])
    with torch.no_grad():
        expected = made(dict(given))
        monkeypatch.setattr(latent_head, "_BLOCK", at_once)
        monkeypatch.setattr(latent_head, "_AT_ONCE", 1)
        found = made(dict(given))
    np.testing.assert_array_equal(found["latent_ids"], expected["latent_ids"])
    np.testing.assert_allclose(found["latent_weights"], expected["latent_weights"], atol=1e-6)
    few = head(latents=3, k=5, **settings)
    assert few(given)["latent_ids"].shape == (3, 3)


def test_the_length_before_the_cut():
    made, given = head(normalize_before_topk=True), states([4, 2])
    with torch.no_grad():
        whole = torch.log1p((made.pooled(given) @ made.weight.T + made.offset).relu())
        expected = whole.topk(5).values / whole.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(made(given)["latent_weights"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be trained"):
        made.train()(given)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_are_those_of_the_dense_path(sparse):
    made, given = head(pooling="attention", norm_input=True), states([7, 1, 4])
    given["token_embeddings"].requires_grad_()
    made.sparse_gradient = sparse
    weights = torch.from_numpy(np.random.default_rng(3).standard_normal((3, 50)).astype(np.float32))

    def gradients(x):
        loss = (x * weights).sum() + x.square().mean(0).square().sum()
        leaves = (made.weight, made.offset, made.attention, given["token_embeddings"])
        return loss.item(), [g.to_dense().numpy() for g in torch.autograd.grad(loss, leaves)]

    found = made.train()(dict(given), task="document")
    gathered = torch.zeros(3, 50).scatter(1, found["latent_ids"], found["latent_weights"])
    y = made.pooled(given) @ made.weight.T + made.offset
    mask = torch.zeros_like(y).scatter(1, y.topk(5).indices, 1)
    loss, expected = gradients(torch.nn.functional.normalize(log := torch.log1p(y.relu()) * mask))
    assert log.detach().count_nonzero() == 15
    mine, grads = gradients(gathered)
    assert mine == pytest.approx(loss, abs=1e-6)
    for a, b in zip(grads, expected):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert (np.abs(grads[0]).sum(1) > 0).sum() == len(np.unique(found["latent_ids"]))


def test_a_model_hands_gradients_through(tiny):
    model = with_latents(tiny).model
    features = model.preprocess(TEXTS[:2], task="document")
    out = model.train()(features, task="document")
    out["latent_weights"].sum().backward()
    moved = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {"1.weight", "1.offset"} <= moved and any(name.startswith("0.") for name in moved)
    assert out["token_embeddings"].shape[-1] == 8


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize(("rows", "error"), [("float16", 2e-3), ("int8", 2e-2)])
def test_rows_that_are_kept_small(rows, error, tiny):
    whole, small = head(k=50), head(k=50, rows=rows)
    with torch.no_grad():
        a, b = (dense(made(states([4, 2, 6])), 50) for made in (whole, small))
    assert 0 < np.abs(a - b).max() < error
    same = whole.kept_as(rows)
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
    sizes = {t: LatentHead(6, 1000, 5, 5, rows=t).weight.nbytes for t in ("float32", rows)}
    assert sizes[rows] * {"float16": 2, "int8": 4}[rows] == sizes["float32"]
    model = with_latents(tiny, rows=rows).model  # what rounds a model, or makes it float32, leaves them as they are
    kept = head_of(model).weight.clone()
    assert torch.equal(head_of(copy.deepcopy(model).to(torch.bfloat16).float()).weight, kept)


def test_the_matrix_is_that_of_its_seed(monkeypatch):
    assert torch.equal(head(seed=3).weight, head(seed=3).weight)
    assert not torch.equal(head(seed=3).weight, head(seed=4).weight)
    weight = head(latents=4000, features=16).weight
    assert abs(weight.mean()) < 0.02 and abs(weight.std() - 1) < 0.02
    state = torch.get_rng_state()
    head()
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------- in a model


def test_vectors_do_not_depend_on_the_company(tiny):
    encoder = with_latents(tiny)
    for task in ("document", "query"):
        expected = [latent_vectors(encoder, [text], task).dicts()[0] for text in TEXTS]
        assert max(map(len, expected)) == (8 if task == "document" else 4)
        for texts, size in ((TEXTS, 32), (TEXTS[::-1], 1), (TEXTS * 3, 2)):
            found = latent_vectors(mv.TokenEncoder(encoder.model, batch_size=size), texts, task).dicts()
            for text, vector in zip(texts, found):
                assert vector == pytest.approx(expected[TEXTS.index(text)], abs=1e-6)


def test_vectors_are_of_raw_states_without_expansion(tiny):
    encoder = with_latents(tiny)
    made = head_of(encoder.model)
    assert list(encoder.model).index(made) == 1
    for task, task_texts in (("document", TEXTS), ("query", ["a cat", ""])):
        assert task == "document" or encoder.model[0].query_expansion
        packed = token_states(encoder, task_texts, task)
        h = np.stack([packed.states[a:b].mean(0) for a, b in zip(packed.offsets, packed.offsets[1:])])
        y = torch.nn.functional.normalize(torch.from_numpy(h)) @ made.weight.T + made.offset
        expected = torch.log1p(y.relu()).topk(8 if task == "document" else 4).values
        found = latent_vectors(encoder, task_texts, task)
        np.testing.assert_allclose(found.weights, torch.nn.functional.normalize(expected).detach(), atol=1e-5)


def test_token_vectors_stay_as_they_are(tiny, monkeypatch):
    plain, latent = mv.TokenEncoder(tiny, device="cpu"), with_latents(tiny)
    monkeypatch.setattr(LatentHead, "encode", lambda *_: pytest.fail("latents of a token encoder"))
    for encode in ("encode_docs", "encode_queries"):
        a, b = (getattr(encoder, encode)(TEXTS).vectors for encoder in (plain, latent))
        np.testing.assert_array_equal(a, b)
    a, b = (token_states(e, TEXTS[:2], layer="projected").states for e in (plain, latent))
    np.testing.assert_array_equal(a, b)


def test_a_head_is_saved_and_read_back(tiny, tmp_path):
    for rows in ("float32", "float16", "int8"):
        encoder = with_latents(tiny, rows=rows, pooling="attention", bias=2.5)
        encoder.save(tmp_path / rows)
        again = mv.TokenEncoder(tmp_path / rows, device="cpu")
        assert again.space.rpartition("#")[2] == encoder.space.rpartition("#")[2]
        assert again.describe()["latents"] == encoder.describe()["latents"]
        assert (head_of(again.model).offset == 2.5).all()
        a, b = (latent_vectors(e, TEXTS) for e in (encoder, again))
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)
        half = mv.TokenEncoder(tmp_path / rows, device="cpu", dtype="bfloat16")
        assert half.space == again.space
        for one, other in zip(latent_vectors(half, TEXTS).dicts(), b.dicts()):
            assert 0.95 < dot(one, other) < 1.001


def test_spaces_differ_where_vectors_do(tiny):
    base = with_latents(tiny).space
    others = ({"seed": 1}, {"k_doc": 9}, {"pooling": "sum"}, {"norm_input": False}, {"normalize": False},
              {"normalize_before_topk": True}, {"latents": 65}, {"rows": "float16"}, {"bias": 1.0})  # fmt: skip
    spaces = [with_latents(tiny, **settings).space for settings in others]
    assert len({base, *spaces}) == 1 + len(others)
    assert with_latents(tiny, k_query=5).space == with_latents(tiny, trained=False).space == base


def test_an_untrained_head_is_said_to_be(tiny, tmp_path):
    asked = LatentSettings(latents=64)
    encoder = mv.TokenEncoder(tiny, device="cpu", latents=asked)
    with pytest.warns(UserWarning, match="random projection of colbert"):
        encoder.model  # noqa: B018
    encoder.save(tmp_path / "untrained")
    with pytest.warns(UserWarning, match="random projection of untrained"):
        mv.TokenEncoder(tmp_path / "untrained", latents=LatentSettings()).model  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mv.TokenEncoder(tmp_path / "untrained").model  # noqa: B018 (for its token vectors)
        encoder.model  # noqa: B018
    with pytest.warns(UserWarning, match="random projection"):
        travelled = pickle.loads(pickle.dumps(encoder))
        assert travelled.space == encoder.space
    with pytest.raises(ValueError, match="no latent head"):
        latent_vectors(mv.TokenEncoder(tiny, device="cpu"), ["a cat"])


def test_a_bare_transformer_will_do(tmp_path):
    folder = checkpoints.backbone(tmp_path / "bert")
    with pytest.raises(ValueError, match="not a multi-vector checkpoint"):
        mv.TokenEncoder(folder).model  # noqa: B018
    encoder = mv.TokenEncoder(folder, device="cpu", latents=LatentSettings(latents=64))
    with pytest.warns(UserWarning, match="random projection"):
        found = latent_vectors(encoder, TEXTS)
    encoder.save(tmp_path / "again")
    again = mv.TokenEncoder(tmp_path / "again", device="cpu")
    np.testing.assert_allclose(latent_vectors(again, TEXTS).weights, found.weights, atol=1e-6)


def test_settings_of_a_head_that_is_there(tiny):
    encoder = with_latents(tiny)
    model = encoder.model
    before, rest = head_of(model).weight.clone(), [type(m) for m in model]
    LatentSettings(latents=np.int64(64), k_doc=np.int64(3), bias=0.0, normalize_before_topk=True, rows="int8")(model)
    made = head_of(model)
    assert (made.k_doc, made.k_query, made.rows, made.trained) == (3, 4, "int8", True)
    assert made.normalize_before_topk and json.dumps(made.get_config_dict())
    assert (made._rows(slice(None)) - before).abs().max() < 0.03
    assert [type(m) for m in model] == rest
    for settings in ({"latents": 65}, {"pooling": "sum"}, {"bias": False}, {"normalize": False}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"latent head of this model has {name}="):
            LatentSettings(**settings)(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"latents": 0}, "latents must be a whole number"), ({"k_doc": 1.5}, "k_doc must be"), ({"k_query": True}, "k_qu"),
     ({"pooling": "max"}, "pooling must be one of mean"), ({"rows": "int4"}, "rows must be one of"),
     ({"bias": float("nan")}, "bias must be finite"), ({"seed": 1.5}, "seed must be a whole number"),
     ({"norm_input": "no"}, "norm_input must be True or False")],
)  # fmt: skip
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        LatentSettings(**settings)


def test_states_that_are_not_finite_are_refused(tiny):
    encoder = with_latents(tiny)
    with torch.no_grad():
        next(iter(encoder.model[0].parameters())).fill_(torch.nan)
    with pytest.raises(ValueError, match="states of MultiVectorEncoder are not finite for the text 'a cat'"):
        latent_vectors(encoder, ["a cat"])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_matrix_that_is_not_finite_makes_no_empty_vectors(tiny, normalize):
    for rows in (slice(None), 3, 63):
        encoder = with_latents(tiny, normalize=normalize)
        with torch.no_grad():
            head_of(encoder.model).weight[rows] = torch.nan
        with pytest.raises(
            ValueError, match="weights of latents of MultiVectorEncoder are not finite for the text 'a cat'"
        ):
            latent_vectors(encoder, ["a cat"])
