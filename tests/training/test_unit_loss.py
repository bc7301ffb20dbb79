"""AGRaME's loss: the specification's numbers, a plain reference, and training with it."""

import copy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyterrier_mvret as mv
from pyterrier_mvret.encoders import batches, markers
from pyterrier_mvret.encoders.units import unit_rows
from pyterrier_mvret.methods.agrame import _loss_for
from pyterrier_mvret.scoring import MaxSim, unit_scores
from pyterrier_mvret.training import KL, MarginMSE, MultiGranular
from pyterrier_mvret.training.similarity import MaxSimSimilarity
from pyterrier_mvret.training.unit_loss import UnitCollator, unit_divergence, unit_numbers, unit_similarities
from tests.training.test_losses import Given, Silent, columns
from tests.training.test_similarity import padded

INF = float("inf")


def softmax(values):
    values = np.exp(values - np.max(values))
    return values / values.sum()


def divergence(wanted, found):
    """KL(wanted || found) of two softmaxes, in numpy."""
    p, q = softmax(np.array(wanted)), softmax(np.array(found))
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q) if a > 0)


def ragged(rows):
    most = max(map(len, rows))
    return torch.tensor([[*row, *[-INF] * (most - len(row))] for row in rows])[None]


# ------------------------------------------------------------------ the loss on numbers


def test_the_worked_example():
    scores, targets = ragged([[0.0, 0], [1.0, 0, 0]]), ragged([[1.0, 0], [0.0, 0, 0]])
    weights = torch.tensor([[2.0, 0]]).softmax(-1)
    assert float(unit_divergence(scores, targets, weights)) == pytest.approx(0.111964, abs=1e-6)
    one = torch.tensor([[1.0, 0]])
    assert float(unit_divergence(scores, targets, one)) == pytest.approx(0.110944, abs=1e-6)  # not 0.120115, reversed
    assert divergence([0, 0], [1, 0]) == pytest.approx(0.120115, abs=1e-6)
    passages, _ = computed(MultiGranular(KL()), [[1.0, 0]], [[2.0, 0]])
    assert float(passages["passages"].detach()) == pytest.approx(0.067131, abs=1e-6)


def computed(loss, matrix, labels):
    """Through the module that training uses, on documents of one token in one unit."""
    features = columns(len(matrix), len(matrix[0]) // len(matrix))
    for column in features[1:]:
        column["units"] = torch.zeros(len(matrix), 1, dtype=torch.long)
        column["unit_scores"] = torch.zeros(len(matrix), 1)
    rule = Given(matrix)
    return loss.build(Silent(), rule, None)(features, None if labels is None else torch.tensor(labels)), rule


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_plain_reference(seed):
    rng = np.random.default_rng(seed)
    rows = [[rng.normal(size=rng.integers(0, 4)).tolist() for _ in range(3)] for _ in range(2)]
    wanted = [[[x if rng.random() < 0.7 else -INF for x in rng.normal(size=len(r))] for r in group] for group in rows]
    most = max(1, *(len(r) for group in rows for r in group))
    pack = lambda groups: torch.tensor([[[*r, *[-INF] * (most - len(r))] for r in group] for group in groups])  # noqa: E731
    scores, targets = pack(rows).float().requires_grad_(), pack(wanted)
    weights = torch.from_numpy(rng.random((2, 3)))
    got = unit_divergence(scores, targets, weights)
    expected = np.mean(
        [
            sum(
                float(weights[q, i]) * divergence(wanted[q][i], rows[q][i])
                for i in range(3)
                if any(x > -INF for x in wanted[q][i])
            )
            for q in range(2)
        ]
    )
    assert float(got.detach()) == pytest.approx(expected, abs=1e-5)
    got.backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[scores == -INF] == 0).all()


def test_properties_of_the_divergence():
    rng = np.random.default_rng(0)
    scores, targets = torch.from_numpy(rng.normal(size=(2, 1, 3, 4)))
    ones = torch.ones(1, 3) / 3
    assert float(unit_divergence(targets + 5, targets, ones)) == pytest.approx(0, abs=1e-6)  # P9
    shifted = unit_divergence(scores + torch.tensor([1.0, -2, 9])[:, None], targets, ones)
    assert float(shifted) == pytest.approx(float(unit_divergence(scores, targets, ones)), abs=1e-6)
    assert float(unit_divergence(scores[..., :1], targets[..., :1], ones)) == 0  # a passage of one unit
    nothing = torch.full_like(scores, -INF)
    assert float(unit_divergence(scores, nothing, ones)) == float(unit_divergence(nothing, targets, ones)) == 0


def test_without_a_teacher_the_positive_has_all_the_weight():
    loss = MultiGranular("n-way")
    assert loss.teacher is None and not loss.in_batch and MultiGranular("contrastive").in_batch
    assert MultiGranular().teacher == "any" and MultiGranular("kl-min-max").teacher == "unit"
    got, _ = computed(loss, [[1.0, 0]], None)
    assert float(got["units"]) == 0
    for wrong in (MarginMSE(), MultiGranular()):
        with pytest.raises(ValueError, match="a loss over a query's passages"):
            MultiGranular(wrong)
    with pytest.raises(ValueError, match="weight must be"):
        MultiGranular(weight=-1)


# ------------------------------------------------------------------ scores of units, with gradients


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_scores_of_units_are_those_of_ranking(seed):
    rng = np.random.default_rng(seed)
    asked = [rng.normal(size=(rng.integers(1, 4), 5)).astype(np.float32) - 1 for _ in range(2)]
    found = [rng.normal(size=(rng.integers(0, 7), 5)).astype(np.float32) for _ in range(6)]
    queries, queries_mask = padded(asked, rng)
    documents, mask = padded(found, rng)
    numbers = torch.from_numpy(rng.integers(-1, 3, mask.shape))
    queries.requires_grad_(), documents.requires_grad_()
    shape = (2, 3)
    got = unit_similarities(
        queries, documents.unflatten(0, shape), queries_mask, mask.unflatten(0, shape), numbers.unflatten(0, shape), 3
    )
    for i, vectors in enumerate(found):
        mine = numbers[i][mask[i]].numpy()
        units = mv.scoring.UnitRows.of([np.flatnonzero(mine == u) for u in range(3)])
        expected = unit_scores(asked[i // 3], vectors, units)
        expected = np.where(expected < -1e8, -INF, expected)
        np.testing.assert_allclose(got[i // 3, i % 3].detach(), expected, atol=1e-4)
    got[got > -INF].sum().backward()
    assert queries.grad.isfinite().all() and documents.grad.isfinite().all()
    assert (documents.grad[~mask] == 0).all() and (documents.grad[numbers < 0] == 0).all()


# ------------------------------------------------------------------ batches


def test_batches_say_of_which_unit_each_token_is(tiny_encoder):
    texts = ["A cat sat. It ran fast.", "blue, sky"]
    spans = [mv.Sentences().split(text) for text in texts]
    model = tiny_encoder.model
    features = batches.tokenised(model, batches.with_prefix(model, texts, "document"), "document")
    raw = model.preprocess(
        texts, prompt=model.prompts["document"], task="document", processing_kwargs=batches.with_offsets(model)
    )
    numbers = unit_numbers(raw["offset_mapping"], model.prompts["document"], texts, spans)
    assert numbers.shape == features["input_ids"].shape
    tokens = [model.tokenizer.convert_ids_to_tokens(row) for row in raw["input_ids"].tolist()]
    by_unit = [[t for t, n in zip(tokens[0], numbers[0].tolist()) if n == u] for u in (-1, 0, 1)]
    assert by_unit == [["[CLS]", "[unused1]", "[SEP]"], ["a", "cat", "sat", "."], ["it", "ran", "fast", "."]]
    # the same rule as that of ranking
    batch = tiny_encoder.encode_docs(texts)
    units = unit_rows(batch.spans, batch.offsets, texts, spans)
    kept = torch.isin(raw["input_ids"][0], torch.from_numpy(batch.token_ids[batch.rows(0)]).long())
    assert numbers[0][kept].tolist() == [-1, -1, 0, 0, 0, 1, 1, 1, -1]
    assert units.rows(1).tolist() == [5, 6, 7]


def test_the_loss_of_a_batch_is_that_of_its_texts(tiny):
    """From rows of a training set to the loss, against what the encoder says of each text alone."""
    texts = ["A cat, sat. The dog ran fast! It is the rain.", "the sky is blue. it fell on a mat. who sat?", "dog"]
    rng = np.random.default_rng(0)
    spans = [mv.Sentences().split(text) for text in texts]
    rows, names = [], ("positive", "negative_1", "negative_2")
    for query in ("where is a cat", "blue sky"):
        documents = rng.permutation(3)
        row = {"query": query, **{name: texts[i] for name, i in zip(names, documents)}}
        row |= {"scores": rng.normal(size=3).tolist(), "spans": [spans[i] for i in documents]}
        rows.append({**row, "unit_scores": [rng.normal(size=len(spans[i])).tolist() for i in documents]})
    model = copy.deepcopy(mv.TokenEncoder(tiny, device="cpu", doc_length=16).model)  # which cuts off a sentence
    markers.UnitMarker("[Q2]")(model)
    place, cat = model.tokenizer.convert_tokens_to_ids(["[Q2]", "cat"])
    table = model[0].auto_model.get_input_embeddings().weight.data
    table[place] = table[cat]  # as if trained
    prompts = {"query": "[unused0] ", "unit_query": "[Q2] "}
    prompts |= dict.fromkeys(names, "[unused1] ")
    preprocess = partial(model.preprocess, processing_kwargs=batches.with_offsets(model))
    batch = UnitCollator(preprocess_fn=preprocess, prompts=prompts, model=model)(rows)
    features = [
        {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}
        for name in ("query", *names, "unit_query")
    ]
    module = MultiGranular(weight=0.5).build(model, MaxSimSimilarity(MaxSim(), unit=True), None)
    got = module(features, batch["label"])

    encoder, passages, units = mv.TokenEncoder(model), [], []
    for row in rows:
        first, second = (encoder.encode_queries([row["query"]], prefix=p).vectors for p in ("[unused0] ", "[Q2] "))
        own, parts = [], []
        for i, name in enumerate(names):
            document = encoder.encode_docs([row[name]])
            own.append((first @ document.vectors.T).max(1).sum())
            found, wanted = [], []
            for (start, end), target in zip(row["spans"][i], row["unit_scores"][i]):
                mine = [j for j, (a, b) in enumerate(document.spans) if a < b and start <= a < end]
                if mine:
                    found.append((second @ document.vectors[mine].T).max(1).sum())
                    wanted.append(target)
            parts.append(divergence(wanted, found))
        passages.append(divergence(row["scores"], own))
        units.append(softmax(row["scores"]) @ parts)
    assert float(got["passages"].detach()) == pytest.approx(np.mean(passages), abs=1e-4)
    assert float(got["units"].detach()) == pytest.approx(0.5 * np.mean(units), abs=1e-4)


# ------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def planted():
    """Passages of two sentences, one of which has the query's words."""
    rng = np.random.default_rng(1)
    words = ["cat", "mat", "dog", "sky", "rain", "blue", "fast", "fell", "sat", "ran"]
    rows, texts, judged = [], {}, []
    for i in range(10):
        own, other = rng.choice(words, 3, replace=False), rng.choice(words, 3, replace=False)
        first = bool(rng.integers(2))
        sentences = [" ".join(own), " ".join(other)][:: 1 if first else -1]
        texts[f"d{i}"] = f"The {sentences[0]}. It {sentences[1]}."
        rows.append((str(i), " ".join(own[:2])))
        judged.append((str(i), f"d{i}%s{0 if first else 1}", 1))
    topics = pd.DataFrame(rows, columns=["qid", "query"])
    qrels = pd.DataFrame({"qid": topics["qid"], "docno": [f"d{i}" for i in range(10)], "label": 1})
    run = topics.merge(pd.DataFrame({"docno": list(texts), "text": list(texts.values())}), how="cross")
    run = run.assign(score=0.0, rank=run.groupby("qid").cumcount())
    unit_qrels = pd.DataFrame(judged, columns=["qid", "docno", "label"])
    data = mv.training.groups(topics, qrels, run, n=2)
    return data, run, unit_qrels, mv.training.with_units(data, unit_qrels, unit=mv.Sentences())


QUICK = {"verbose": False, "batch_size": 5, "max_steps": 8, "learning_rate": 1e-2, "warmup": 0.0}


def test_training_lowers_the_units_part_and_moves_the_marker(tiny, planted, tmp_path):
    _, run, qrels, units = planted
    model = mv.AGRaME(tiny, query_marker="[Q2]", device="cpu")
    with pytest.raises(ValueError, match="an untrained one ranks noise"):
        model.unit_scorer()(run)
    settings = {**QUICK, "loss": MultiGranular("n-way"), "max_steps": 30, "measures": ["P@1"]}
    model.fit_encoder(units, (run, qrels), path=tmp_path / "trained", **settings)
    losses = model.history["units"].dropna()
    assert losses.iloc[-5:].mean() < 0.8 * losses.iloc[:5].mean()
    assert model.history["P@1"].dropna().max() > model.history["P@1"].iloc[0]
    own, second = (model.encoder.encode_queries(["a cat"], prefix=p).vectors for p in ("[unused0] ", "[Q2] "))
    assert abs(own - second).max() > 1e-3
    again = mv.AGRaME.load(tmp_path / "trained", device="cpu")
    assert again.query_marker == "[Q2]"
    pd.testing.assert_frame_equal(again.unit_scorer()(run), model.unit_scorer()(run), atol=1e-5)
    stock = mv.AGRaME(tmp_path / "trained", device="cpu", query_marker="[Q2]")
    assert markers.of_units(stock.encoder, "auto") == "[Q2] "


def test_losses_that_need_a_teacher_and_a_set_for_validation(tiny, planted):
    data, _, _, units = planted
    with pytest.raises(ValueError, match="lacks scores"):
        mv.AGRaME(tiny, device="cpu").fit_encoder(units, loss="multi-granular", **QUICK)
    taught = units.add_column("scores", [[2.0, 1.0, 0.0]] * len(units))
    assert _loss_for(taught) == MultiGranular("kl") and _loss_for(units) == MultiGranular("contrastive")
    model = mv.AGRaME(tiny, device="cpu")
    model.fit_encoder(taught, taught.select(range(3)), **{**QUICK, "learning_rate": 1e-3})
    assert model.history["valid_loss"].notna().any() and {"passages", "units"} <= set(model.history.columns)
    both = MultiGranular(KL(in_batch=1.0), weight=0.5)
    model.fit_encoder(taught, loss=both, **QUICK)
    assert {"own", "in_batch", "units"} <= set(model.history.columns)
    with pytest.raises(ValueError, match="lacks spans"):
        model.fit_encoder(data, loss=MultiGranular("n-way"), **QUICK)


def test_what_trains_no_marker_is_refused(tiny, planted):
    data, run, qrels, units = planted
    model = mv.AGRaME(tiny, query_marker="[Q2]", device="cpu")
    for wrong in ({"loss": "n-way"}, {"loss": MultiGranular("n-way"), "train": "head"}):
        with pytest.raises(ValueError, match="is trained with loss='multi-granular' and train='all'"):
            model.fit_encoder(units, **{**QUICK, **wrong})
    plain = mv.AGRaME(tiny, device="cpu")
    mixed = pd.concat([qrels, qrels.assign(docno="d1")], ignore_index=True)
    with pytest.raises(ValueError, match="judge units, such as 'd0%s.', and passages, such as 'd1'"):
        plain.fit_encoder(data, (run, mixed), loss="n-way", **QUICK)
    passages = qrels.assign(docno=qrels["docno"].str.partition("%s")[0])
    plain.fit_encoder(data, (run, passages), loss="n-way", **{**QUICK, "learning_rate": 1e-3})
    assert plain.history["nDCG@10"].notna().any()


@pytest.mark.filterwarnings("ignore:training did not help")
def test_what_validation_ranks_by_belongs_to_a_run(tiny, planted, tmp_path):
    _, run, qrels, units = planted
    settings = {**QUICK, "max_steps": 2, "evaluations": 1, "learning_rate": 1e-3, "path": tmp_path / "trained"}
    spans = run["text"].map(mv.Sentences().split)
    arrays = run.assign(spans=[np.array(of_text) for of_text in spans])  # as read from Parquet
    mv.AGRaME(tiny, device="cpu").fit_encoder(units, (arrays, qrels), **settings)
    settings["resume"] = True
    mv.AGRaME(tiny, device="cpu").fit_encoder(units, (run.assign(spans=spans), qrels), **settings)
    with pytest.raises(ValueError, match=r"other settings: scorer was .*alpha=1.0.*, is .*alpha=0.0"):
        mv.AGRaME(tiny, device="cpu", alpha=0).fit_encoder(units, (arrays, qrels), **settings)
    with pytest.raises(ValueError, match="other settings: validation was"):
        mv.AGRaME(tiny, device="cpu").fit_encoder(units, (run, qrels), **settings)


def test_a_unit_that_cannot_be_saved_is_said_before_training(tiny, planted, tmp_path):
    model = mv.AGRaME(tiny, device="cpu", unit=mv.Phrases(7))
    with pytest.raises(ValueError, match="has none"):
        model.fit_encoder(planted[3], path=tmp_path / "trained", **QUICK)
    assert not list(tmp_path.iterdir()) and model.history is None


def test_units_are_not_scored_with_saliences(tiny, planted):
    model = mv.Aligner(tiny, mv.TopK(1), device="cpu")  # trains salience heads
    with pytest.raises(ValueError, match="by plain MaxSim, and this model scores by Alignment"):
        model.fit_encoder(planted[3], loss=MultiGranular("n-way"), **QUICK)


def test_other_rules_and_gradient_caching_are_refused(tiny, planted):
    units = planted[3]
    for model in (mv.ColBERT(tiny, normalize="query", device="cpu"), mv.Aligner(tiny, device="cpu")):
        fit = model.fit if isinstance(model, mv.ColBERT) else model.fit_encoder
        with pytest.raises(ValueError, match="by plain MaxSim, and this model scores by"):
            fit(units, loss=MultiGranular("n-way"), **QUICK)
    model = mv.AGRaME(tiny, device="cpu")
    with pytest.raises(ValueError, match="for Contrastive alone"):
        model.fit_encoder(units, **QUICK, mini_batch_size=2)
    with pytest.raises(ValueError, match="prepare= is taken"):
        mv.AGRaME(tiny, query_marker=None, device="cpu").fit_encoder(units, **QUICK, prepare=print)


def test_a_trained_marker_may_be_trained_on_in_any_way(tiny, planted):
    data, _, _, units = planted
    model = mv.AGRaME(tiny, query_marker="[Q2]", device="cpu").fit_encoder(units, **{**QUICK, "max_steps": 1})
    model.fit_encoder(data, loss="n-way", train="last:1", **{**QUICK, "max_steps": 1})
    assert markers.of_units(model.encoder, "[Q2]")


def test_the_loss_is_what_the_data_was_made_for(tiny, planted):
    data, run, qrels, units = planted
    for rows, terms in ((data, set()), (units, {"passages", "units"})):
        model = mv.AGRaME(tiny, device="cpu")
        model.fit_encoder(rows, **{**QUICK, "max_steps": 1})
        assert {"passages", "units"} & set(model.history.columns) == terms
    model = mv.AGRaME(tiny, device="cpu")
    judged = qrels.assign(docno=qrels["docno"].str.partition("%s")[0])
    model.text_scorer(**QUICK, n=2).fit(run, judged)
    assert model.history["loss"].notna().any()
    assert len(model.history)


def test_a_head_alone_may_learn_from_units(tiny, planted):
    units = planted[3]
    model = mv.AGRaME(tiny, device="cpu")
    model.fit_encoder(units, loss=MultiGranular("contrastive"), **{**QUICK, "train": "head"})
    assert model.history["units"].dropna().iloc[-1] < model.history["units"].dropna().iloc[0]


def test_equal_spans_do_not_keep_rows_apart(tiny_encoder):
    assert {"spans", "unit_scores", "scores"} <= set(UnitCollator(preprocess_fn=None).valid_label_columns)
