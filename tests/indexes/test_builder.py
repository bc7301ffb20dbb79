"""Building: what may come in, modes, interruptions, and what is left behind."""

import numpy as np
import pandas as pd
import pytest

import pyterrier_mvret as mv
from pyterrier_mvret.indexes.segments import DamagedIndexError
from tests.indexes.vectors import DIM, build, documents, topics


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"docno": 7, "doc_embs": np.ones((1, DIM))}, "docno must be a non-empty string of valid Unicode, got 7"),
        ({"docno": "", "doc_embs": np.ones((1, DIM))}, "docno must be a non-empty string"),
        ({"doc_embs": np.ones((1, DIM))}, "docno must be a non-empty string of valid Unicode, got None"),
        ({"docno": "x"}, "document 'x' has no doc_embs"),
        ({"docno": "x", "doc_embs": np.full((1, DIM), np.inf)}, "document 'x'.*NaN or infinite"),
        ({"docno": "x", "doc_embs": np.ones(DIM)}, "document 'x'.*expected a .tokens, dim. array"),
        ({"docno": "x", "doc_embs": np.ones((1, 2))}, "document 'x' has vectors of 2 dimensions, the index 6"),
        ({"docno": "d3", "doc_embs": np.ones((1, DIM))}, "docno 'd3' occurs twice"),
        ({"docno": "x", "doc_embs": np.full((1, DIM), 1e6)}, "'x' do not fit float16: use float32"),
    ],
)
def test_a_bad_document_leaves_nothing_behind(path, record, message):
    many = documents(300)  # more than a block before it
    with pytest.raises(ValueError, match=message):
        build(path, [*many, record])
    assert not path.exists()
    index = build(path)
    before = index.retriever()(topics())
    for mode in ("overwrite", "append"):
        fresh = [{**d, "docno": "n" + d["docno"]} for d in many] if mode == "append" else many
        with pytest.raises(ValueError, match=message.replace("occurs twice", "(occurs twice|is already in the index)")):
            mv.MultiVecIndex(path).index([*fresh, record], mode=mode)
        pd.testing.assert_frame_equal(mv.MultiVecIndex(path).retriever()(topics()), before)
        assert sorted(p.name for p in path.iterdir()) == sorted(["pt_meta.json", index.manifest["segments"][0]["name"]])


def test_duplicate_docnos_are_found_wherever_they_are(path):
    docs = documents(1000, empty_every=2000)
    for first, second in ((0, 1), (0, 999), (255, 256), (700, 800)):
        docs_again = [dict(d) for d in docs]
        docs_again[second]["docno"] = docs[first]["docno"]
        with pytest.raises(ValueError, match=f"docno 'd{first}' occurs twice"):
            build(path, docs_again)


def test_equal_hashes_of_different_names_are_told_apart(path, monkeypatch):
    from pyterrier_mvret.indexes import docnos

    monkeypatch.setattr(docnos, "hashes", lambda names: np.array([len(n) for n in names], dtype=np.uint64))
    index = build(path, documents(600, empty_every=1000))  # a handful of distinct hashes
    names = [f"d{i}" for i in (0, 7, 99, 100, 599)]
    assert index.store.positions([*names, "d600", "zz"]).tolist() == [0, 7, 99, 100, 599, -1, -1]
    with pytest.raises(ValueError, match="'d3' occurs twice"):
        build(path.with_name("again.mv"), [*documents(600), {"docno": "d3", "doc_embs": np.ones((1, DIM))}])


def test_modes(path):
    index = build(path)
    with pytest.raises(FileExistsError, match="mode='overwrite' or mode='append'"):
        index.index(documents())
    index.index(documents(3, prefix="x"), mode="append")
    assert len(index) == 53
    with pytest.raises(ValueError, match="docno 'd0' is already in the index"):
        index.index(documents(3), mode="append")
    assert len(mv.MultiVecIndex(path)) == 53
    old = index.retriever(num_results=None)
    old(topics())
    index.index(documents(2, prefix="y"), mode="overwrite")
    assert set(old(topics())["docno"]) == {"y0", "y1"}  # the same object sees the new index
    assert len(list(path.glob("segment-*"))) == 1
    with pytest.raises(ValueError, match="mode must be"):
        index.index([], mode="upsert")
    assert index.indexer("append").index(documents(2, prefix="z")) is index
    assert len(index) == 4


def test_append_to_what_is_not_there_creates(path):
    assert len(mv.MultiVecIndex(path).index(documents(4), mode="append")) == 4


def test_a_reader_keeps_what_it_opened_while_the_index_is_replaced(path):
    build(path)
    reader = mv.MultiVecIndex(path)
    before = reader.retriever()(topics())
    mv.MultiVecIndex(path).index(documents(3, prefix="new"), mode="overwrite")
    pd.testing.assert_frame_equal(reader.retriever()(topics()), before)
    assert len(mv.MultiVecIndex(path)) == 3


def test_a_reader_that_read_the_manifest_just_before_a_replacement(path, monkeypatch):
    build(path)
    reader, read = mv.MultiVecIndex(path), mv.MultiVecIndex._manifest_on_disk
    old = [read(reader)]
    mv.MultiVecIndex(path).index(documents(3, prefix="new"), mode="overwrite")
    monkeypatch.setattr(mv.MultiVecIndex, "_manifest_on_disk", lambda self: old.pop() if old else read(self))
    assert len(reader) == 3
    assert not old


def test_no_document_one_document_two_documents(path, tmp_path):
    empty = build(path, [])
    assert len(empty) == 0
    assert len(empty.retriever()(topics())) == 0
    assert "score" in empty.retriever()(topics()).columns
    empty.verify()
    assert len(empty.index(documents(2), mode="append")) == 2
    one = build(tmp_path / "one.mv", documents(1))
    assert one.retriever()(topics())["docno"].tolist() == ["d0"] * 3
    only_empty = build(tmp_path / "e.mv", [{"docno": "e", "doc_embs": np.empty((0, DIM))}])
    assert len(only_empty.retriever()(topics())) == 0
    only_empty.verify()


def test_frames_and_generators_are_consumed_alike(path, tmp_path):
    a = build(path, pd.DataFrame(documents()))
    b = build(tmp_path / "b.mv", (d for d in documents()))
    pd.testing.assert_frame_equal(a.retriever()(topics()), b.retriever()(topics()))


def test_memory_does_not_grow_with_the_collection(path):
    import tracemalloc

    def stream(n):
        for i in range(n):
            yield {"docno": f"d{i}", "doc_embs": np.full((20, 64), i % 7, dtype=np.float32)}

    peaks = []
    for n in (1000, 8000):
        tracemalloc.start()
        mv.MultiVecIndex(path).index(stream(n), mode="overwrite")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 8,000 documents hold 41 MB of float32; names and hashes may grow, vectors may not
    assert peaks[1] < peaks[0] + 2e6


def test_a_folder_that_is_no_index_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    index = mv.MultiVecIndex(tmp_path)
    for mode in ("create", "overwrite", "append"):
        with pytest.raises(FileExistsError, match="is no index: it is left alone"):
            index.index(documents(), mode=mode)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        index.retriever()(topics())
    with pytest.raises(FileNotFoundError, match="does not exist; build one with"):
        mv.MultiVecIndex(tmp_path / "nowhere").scorer()(
            pd.DataFrame({"qid": ["q"], "docno": ["d"], "query_embs": [np.ones((1, 2))]})
        )
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_index_opened_before_another_wrote_sees_what_is_there(path):
    early = build(path)
    assert len(early) == 50
    mv.MultiVecIndex(path).index(documents(3, prefix="n"), mode="append")
    with pytest.raises(ValueError, match="docno 'n0' is already in the index"):
        early.index(documents(3, prefix="n"), mode="append")
    mv.MultiVecIndex(path).index(documents(2, prefix="fresh"), mode="overwrite")
    early.index(documents(3), mode="append")  # these names are free again
    assert len(early) == 5


def test_folders_of_others_are_never_removed(tmp_path):
    for name in ("segment-2024", "segment-0badcafe"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no index: it is left alone"):
        build(tmp_path)
    index = build(tmp_path / "x.mv")
    (index.path / "segment-0badcafe").mkdir()
    (index.path / "segment-0badcafe" / "precious.txt").write_text("mine")
    index.index(documents(3), mode="overwrite")
    assert (index.path / "segment-0badcafe" / "precious.txt").read_text() == "mine"
    assert (tmp_path / "segment-2024" / "precious.txt").is_file()


def test_overwrite_takes_new_settings_and_replaces_what_is_damaged(path):
    build(path, dtype="float16")
    index = mv.MultiVecIndex(path, dtype="int8", store_ids=True)
    docs = [{**d, "doc_tok_ids": np.arange(len(d["doc_embs"]))} for d in documents(4)]
    index.index(docs, mode="overwrite")
    assert mv.MultiVecIndex(path).info()["dtype"] == "int8"
    (path / "pt_meta.json").write_text("{broken")
    assert len(mv.MultiVecIndex(path).index(documents(3), mode="overwrite")) == 3
    (path / "pt_meta.json").write_text("{broken")
    (path / "vecs.f4").write_text("of another kind of index")
    with pytest.raises(DamagedIndexError):
        mv.MultiVecIndex(path).index(documents(3), mode="overwrite")


def test_a_single_record_or_a_string_is_not_a_collection(path):
    for wrong in (documents(1)[0], "abc"):
        with pytest.raises(ValueError, match="expected documents in a list, frame or generator"):
            build(path, wrong)
    with pytest.raises(ValueError, match="expected a record with docno and doc_embs, got str"):
        build(path, ["abc"])


def test_docnos_of_any_language_and_length(path):
    names = ["ä", "文書", "x" * 5000, "a\x00b", "a", "🙂", " b "]
    index = build(path, [{"docno": n, "doc_embs": np.eye(DIM)[:2]} for n in names])
    assert sorted(index.retriever()(topics(1))["docno"]) == sorted(names)
    asked = pd.DataFrame({"docno": names[::-1]})
    assert len(index.vec_loader()(asked)) == len(names)
    with pytest.raises(ValueError, match="non-empty string of valid Unicode"):
        build(path.with_name("y.mv"), [{"docno": "\ud83d", "doc_embs": np.eye(DIM)}])
    for odd in (3, None, "\ud83d"):
        with pytest.raises(ValueError, match="a docno must be a string"):
            index.vec_loader()(pd.DataFrame({"docno": pd.Series([odd], dtype=object)}))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("doc_tok_offsets", np.zeros((2, 3), int)),
        ("doc_tok_offsets", np.zeros(2, int)),
        ("doc_tok_ids", np.zeros((2, 2), int)),
        ("doc_tok_ids", np.array([1.5, 2.0])),
        ("doc_tok_ids", np.array([0, 2**33])),
        ("doc_tok_ids", np.array([0])),
    ],
)
def test_ids_and_offsets_of_another_form_are_refused(path, column, value):
    record = {
        "docno": "d", "doc_embs": np.eye(DIM)[:2], "doc_tok_ids": np.arange(2), "doc_tok_offsets": np.ones((2, 2), int)
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"{column} of document 'd' must be 32-bit integers of shape"):
        build(path, [{**record, column: value}], store_ids=True, store_offsets=True)
    build(path, [record], store_ids=True, store_offsets=True).verify()


def test_long_documents_are_written_by_vectors_not_by_documents(path, monkeypatch):
    from pyterrier_mvret.indexes import builder

    monkeypatch.setattr(builder, "_VECTORS_A_BLOCK", 10)
    blocks = []
    add = builder.SegmentBuilder._add_block
    monkeypatch.setattr(
        builder.SegmentBuilder, "_add_block", lambda self, block: (blocks.append(len(block.vectors)), add(self, block))
    )
    build(path, documents(40))
    assert len(blocks) > 5
    assert max(blocks) < 10 + 9


def test_an_encoders_name_that_is_no_description(path):
    for wrong in ("colbert", '"colbert"', 3):
        with pytest.raises(ValueError, match="doc_encoder of document 'd' is not a description"):
            build(path, [{"docno": "d", "doc_embs": np.eye(DIM), "doc_encoder": wrong}])
    labelled = {"docno": "d", "doc_embs": np.eye(DIM), "doc_encoder": '{"space": "a#1"}'}
    with pytest.raises(ValueError, match="'e' comes from another encoder"):
        build(path, [labelled, {**labelled, "docno": "e", "doc_encoder": None}])
    calls = []

    def stream():
        calls.append(1)
        yield {**labelled, "docno": "x", "doc_encoder": '{"space": "b#2"}'}
        calls.append(2)

    index = build(path, [labelled])
    with pytest.raises(ValueError, match="was built with encoder a#1; these documents come from b#2"):
        index.index(stream(), mode="append")
    assert calls == [1]  # known at the first document, not after hours of encoding


def test_one_array_for_all_documents(path):
    def stream():
        buffer = np.zeros((3, DIM), np.float32)
        for i in range(600):  # blocks of 256
            buffer[:] = i
            yield {"docno": f"d{i}", "doc_embs": buffer[: i % 4]}

    index = build(path, stream(), dtype="float32")
    loaded = index.vec_loader()(pd.DataFrame({"docno": [f"d{i}" for i in range(600)]}))["doc_embs"]
    for i, vectors in enumerate(loaded):
        np.testing.assert_array_equal(vectors, np.full((i % 4, DIM), i))


def test_one_record_for_all_documents(path):
    def stream():
        ids, offsets = np.zeros(2, np.int32), np.zeros((2, 2), np.int32)
        record = {"doc_embs": np.eye(2, DIM), "doc_tok_ids": ids, "doc_tok_offsets": offsets}
        for i in range(300):
            record["docno"] = f"d{i}"
            ids[:], offsets[:] = i, -i
            yield record

    index = build(path, stream(), store_ids=True, store_offsets=True)
    loaded = index.vec_loader()(pd.DataFrame({"docno": [f"d{i}" for i in range(300)]}))
    assert [ids.tolist() for ids in loaded["doc_tok_ids"]] == [[i, i] for i in range(300)]
    assert [offsets.tolist() for offsets in loaded["doc_tok_offsets"]] == [[[-i, -i]] * 2 for i in range(300)]


def test_arrays_of_any_layout_and_type_of_number(path, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "mapped.npy", rng.standard_normal((5, DIM), dtype=np.float32))
    given = [
        np.load(tmp_path / "mapped.npy", mmap_mode="r"),
        rng.standard_normal((5, DIM)),
        np.asfortranarray(rng.standard_normal((5, DIM), dtype=np.float32)),
        rng.standard_normal((10, 3 * DIM), dtype=np.float32)[::-2, ::3],
        rng.standard_normal((5, DIM)).astype(">f4"),
        rng.standard_normal((5, DIM)).astype(np.float16),
        rng.integers(-9, 9, (5, DIM)),
        rng.standard_normal((5000, DIM), dtype=np.float32),  # more than a block holds
        rng.standard_normal((5, DIM)).tolist(),
    ]
    names = [f"d{i}" for i in range(len(given))]
    records = [{"docno": n, "doc_embs": v} for n, v in zip(names, given)]
    for dtype in ("float32", "float16"):
        for some in (records, records[2:3]):  # of arrays that are all in Fortran's order numpy joins to another such
            index = build(path.with_name(f"{dtype}{len(some)}.mv"), some, dtype=dtype)
            loaded = index.vec_loader()(pd.DataFrame({"docno": [r["docno"] for r in some]}))["doc_embs"]
            for record, vectors in zip(some, loaded, strict=True):
                expected = np.asarray(record["doc_embs"], np.float32).astype(dtype).astype(np.float32)
                np.testing.assert_array_equal(vectors, expected)
            index.verify()


@pytest.mark.parametrize("at", [0, 3, 255, 256, 299])
@pytest.mark.parametrize(("value", "message"), [(7e4, "do not fit float16: use float32"), (np.nan, "holds NaN")])
def test_the_document_with_a_wrong_value_is_named(path, at, value, message):
    docs = [{**d, "doc_embs": d["doc_embs"].copy()} for d in documents(300, empty_every=7)]
    docs[at]["doc_embs"] = np.full((2, DIM), 1.0)
    docs[at]["doc_embs"][-1, -1] = -value
    with pytest.raises(ValueError, match=f"document 'd{at}'.* {message}"):
        build(path, docs, dtype="float16")


def test_a_frame_whose_encoder_column_has_holes_is_unlabelled(path):
    frame = pd.DataFrame(documents(3)).assign(doc_encoder=[np.nan, None, np.nan])
    assert build(path, frame).info()["encoder"] is None
