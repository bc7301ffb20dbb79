"""Forms of storage: what they keep, what they cost, and what they refuse."""

import numpy as np
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes import residual
from pyterrier_mvret.indexes.residual import ResidualCodec, centroid_count

from .vectors import topics

ALL = ["float32", "float16", "bfloat16", "int8", "residual1", "residual2", "residual4"]


def unit(rng, n, dim):
    v = rng.standard_normal((n, dim)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def clustered(n=60, tokens=30, dim=16, seed=0):
    """Documents whose vectors lie around few directions, one without vectors."""
    rng = np.random.default_rng(seed)
    directions = unit(rng, 40, dim)
    docs = []
    for i in range(n):
        near = directions[rng.integers(0, 40, tokens)] + 0.1 * rng.standard_normal((tokens, dim))
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        docs.append({"docno": f"d{i}", "doc_embs": near[: 0 if i == 7 else None].astype(np.float32)})
    return docs


@pytest.mark.parametrize("dtype", ALL)
def test_vectors_come_back_and_score_alike_in_every_form(path, dtype):
    docs = clustered()
    index = mv.MultiVecIndex(path, dtype=dtype).index(docs)
    frame = topics(1).assign(query_embs=[unit(np.random.default_rng(3), 5, 16)])
    loaded = index.vec_loader()(frame.merge(index.retriever(num_results=None)(frame)[["qid", "docno"]]))
    assert set(loaded["docno"]) == {d["docno"] for d in docs} - {"d7"}
    errors, lengths = [], []
    for name, vectors in zip(loaded["docno"], loaded["doc_embs"]):
        whole = docs[int(name[1:])]["doc_embs"]
        errors += ((vectors - whole) ** 2).sum(axis=1).tolist()
        lengths += np.linalg.norm(vectors, axis=1).tolist()
    most = dict(zip(ALL, [0, 1e-7, 1e-5, 1e-4, 0.1, 0.04, 0.01]))  # of the vectors' energy
    assert np.mean(errors) <= most[dtype]
    np.testing.assert_allclose(lengths, 1, atol=2e-2 if dtype == "int8" else 3e-3)
    whole = mv.scoring.maxsim_packed(
        frame["query_embs"][0], np.concatenate(loaded["doc_embs"].tolist()), np.arange(0, 30 * len(loaded) + 1, 30)
    )
    scored = index.scorer()(frame.merge(loaded[["qid", "docno"]]))
    np.testing.assert_allclose(scored["score"], whole, atol=3e-2 if dtype == "int8" else 1e-5)


def test_bytes_a_vector_of_128_dimensions(path):
    rng = np.random.default_rng(0)
    docs = [{"docno": f"d{i}", "doc_embs": unit(rng, 50, 128)} for i in range(100)]
    expected = dict(zip(ALL, [512, 256, 256, 132, 20, 36, 68]))
    for dtype in ALL:
        index = mv.MultiVecIndex(path.with_name(dtype), dtype=dtype).index(docs)
        entry = index.manifest["segments"][0]["files"]
        a_row = [np.load(index.path / index.manifest["segments"][0]["name"] / f"{f}.npy") for f in entry]
        assert sum(a.nbytes for a in a_row if len(a) == 5000) / 5000 == expected[dtype]


def test_worked_example_of_residual_values():
    # spec of residual compression: residuals -0.4..0.4 in steps of 0.1, two bits
    codec = ResidualCodec.__new__(ResidualCodec)
    codec.bits, codec.centroids, codec.unit = 2, np.zeros((1, 1), np.float32), False
    codec._index = residual._searchable(codec.centroids, False)
    codec._learn_values(np.linspace(-0.4, 0.4, 9, dtype=np.float32)[:, None])
    np.testing.assert_allclose(codec._cuts, [-0.2, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(codec.values, [-0.3, -0.1, 0.1, 0.3], atol=1e-6)
    codec.centroids = np.zeros((1, 4), np.float32)
    codec._index = residual._searchable(codec.centroids, False)
    codec._cuts = np.array([-0.2, 0, 0.2], np.float32)
    packed = codec.encode(np.array([[-0.35, -0.2, 0.05, 0.9]], np.float32))["vectors"]
    assert [packed[0, 0] >> shift & 3 for shift in (0, 2, 4, 6)] == [0, 0, 2, 3]


@pytest.mark.parametrize(
    ("vectors", "expected"), [(1, 1), (3, 1), (8, 2), (50, 12), (10_000, 1024), (600_000_000, 262144)]
)
def test_how_many_centroids(vectors, expected):
    assert centroid_count(vectors) == expected


def test_many_centroids_go_through_cells(monkeypatch):
    monkeypatch.setattr(residual, "_FLAT", 16)
    rng = np.random.default_rng(0)
    vectors = np.concatenate([d["doc_embs"] for d in clustered(200)])
    codec = ResidualCodec(vectors[rng.permutation(len(vectors))], len(vectors), 2)
    assert 16 < len(codec.centroids) <= centroid_count(len(vectors))
    exact = np.argmax(vectors @ codec.centroids.T, axis=1)
    assert (codec.nearest(vectors) == exact).mean() > 0.9


def test_vectors_of_other_lengths_keep_them(path):
    docs = [{**d, "doc_embs": 3 * d["doc_embs"]} for d in clustered()]
    index = mv.MultiVecIndex(path, dtype="residual4").index(docs)
    import pandas as pd

    vectors = index.vec_loader()(pd.DataFrame({"docno": ["d1"]}))["doc_embs"][0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 3, atol=0.4)


@pytest.mark.parametrize("documents", [0, 1, 2])
def test_tiny_and_empty_collections(path, documents):
    docs = [{"docno": f"d{i}", "doc_embs": np.eye(8, dtype=np.float32)[: i + 1]} for i in range(documents)]
    index = mv.MultiVecIndex(path, dtype="residual2", quantize=True).index(docs)
    assert len(index) == documents
    if documents:
        found = index.retriever()(topics(1).assign(query_embs=[np.eye(8, dtype=np.float32)[:1]]))
        assert len(found) == documents
        assert found["score"][0] == pytest.approx(1, abs=0.2)


def test_a_collection_of_documents_without_vectors(path):
    docs = [{"docno": "d0", "doc_embs": np.empty((0, 8), np.float32)}]
    index = mv.MultiVecIndex(path, dtype="residual1", quantize=True).index(docs)
    frame = topics(1).assign(query_embs=[np.eye(8, dtype=np.float32)])
    assert len(index.retriever()(frame)) == 0
    assert index.scorer()(frame.assign(docno="d0"))["score"].tolist() == [-1e9]


def test_dimensions_that_fill_no_bytes_are_refused(path):
    with pytest.raises(ValueError, match="residual1 fills whole bytes: 12 dimensions are no multiple of 8"):
        mv.MultiVecIndex(path, dtype="residual1").index([{"docno": "d", "doc_embs": np.ones((1, 12))}])
    assert not path.exists()


def test_numbers_beyond_bfloat16_name_their_document(path):
    docs = [{"docno": "fine", "doc_embs": np.ones((2, 4))}, {"docno": "huge", "doc_embs": np.full((1, 4), 3.4e38)}]
    with pytest.raises(ValueError, match="vectors of document 'huge' do not fit bfloat16"):
        mv.MultiVecIndex(path, dtype="bfloat16").index(docs)


def test_bfloat16_rounds_as_torch_does(path):
    import pandas as pd
    import torch

    vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    index = mv.MultiVecIndex(path, dtype="bfloat16").index([{"docno": "d", "doc_embs": vectors}])
    loaded = index.vec_loader()(pd.DataFrame({"docno": ["d"]}))["doc_embs"][0]
    np.testing.assert_array_equal(loaded, torch.from_numpy(vectors).bfloat16().float().numpy())


def test_nothing_but_the_index_is_left_on_disk(path):
    index = mv.MultiVecIndex(path, dtype="residual2").index(clustered())
    files = {p.stem for p in next(path.glob("segment-*")).iterdir()}
    assert files == set(index.manifest["segments"][0]["files"])


def test_a_missing_or_damaged_code_file_is_noticed(path):
    index = mv.MultiVecIndex(path, dtype="residual2").index(clustered())
    file = next(path.glob("segment-*/centroids.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="centroids.npy differs from what was written"):
        len(mv.MultiVecIndex(path))
    file.unlink()
    with pytest.raises(ValueError, match="centroids.npy is missing"):
        len(mv.MultiVecIndex(path))
    index.index(clustered(), mode="overwrite")
    assert len(index) == 60


def test_builds_are_reproducible(path):
    digests = []
    for name in ("a", "b"):
        index = mv.MultiVecIndex(path.with_name(name), dtype="residual2", quantize=True).index(clustered())
        digests.append({f: e["sha256"] for f, e in index.manifest["segments"][0]["files"].items()})
    assert digests[0] == digests[1]


def test_rare_vectors_of_another_length_keep_it(path):
    import pandas as pd

    docs = clustered()
    docs[9]["doc_embs"][4] = 0
    docs[9]["doc_embs"][5] *= 2
    index = mv.MultiVecIndex(path, dtype="residual4").index(docs)
    assert index.manifest["segments"][0]["unit"] is False
    lengths = np.linalg.norm(index.vec_loader()(pd.DataFrame({"docno": ["d9"]}))["doc_embs"][0], axis=1)
    assert lengths[4] < 0.5
    assert lengths[5] > 1.5


def test_vectors_without_dimensions_are_refused(path):
    for dtype in ("float32", "residual2"):
        with pytest.raises(ValueError, match="document 'd' has vectors of 0 dimensions"):
            mv.MultiVecIndex(path, dtype=dtype, quantize=True).index([{"docno": "d", "doc_embs": np.empty((3, 0))}])


def test_a_manifest_that_contradicts_the_files_is_damaged(path):
    import json

    index = mv.MultiVecIndex(path, dtype="residual2").index(clustered())
    for change in ("dtype", "unit"):
        manifest = json.loads(json.dumps(index.manifest))
        if change == "dtype":
            manifest["dtype"] = "float32"
        else:
            del manifest["segments"][0]["unit"]
        (path / "pt_meta.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="holds uint8|does not say whether"):
            len(mv.MultiVecIndex(path))
