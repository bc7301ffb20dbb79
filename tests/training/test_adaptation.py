"""Few-shot choice of an alignment, against a reference that ranks and counts in plain Python."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from pyterrier_mvret import frames
from pyterrier_mvret.scoring import TopK, TopP
from pyterrier_mvret.training.adaptation import GRID, choose

# where the only relevant document is, from 0, and nDCG@10 of that
FIRST, SECOND, THIRD, LATE = 0, 1, 2, 10
VALUE = {FIRST: 1.0, SECOND: 0.6309297535714575, THIRD: 0.5, LATE: 0.0}
# the worked example: four topics under k = 1 and k = 2
WORKED = {TopK(1): (FIRST, THIRD, SECOND, LATE), TopK(2): (SECOND, SECOND, FIRST, THIRD)}


def ranked(places, candidates=12):
    """Results, scores and judgements such that each strategy ranks each topic's relevant document at its place."""
    topics = [str(i) for i in range(len(next(iter(places.values()))))]
    docnos = [f"d{i:02}" for i in range(candidates)]
    results = pd.DataFrame([(qid, docno) for qid in topics for docno in docnos], columns=["qid", "docno"])
    qrels = pd.DataFrame({"qid": topics, "docno": docnos[0], "label": 1})
    scores = np.array(
        [
            [s for place in row for s in [candidates - place - 0.5, *range(candidates - 1, 0, -1)]]
            for row in places.values()
        ]
    )
    return results, scores, qrels, list(places)


def of(topics, results, scores, qrels, grid):
    """The same with some topics alone."""
    mine = results["qid"].isin(topics).to_numpy()
    return results[mine], scores[:, mine], qrels[qrels["qid"].isin(topics)], grid


def ndcg(results, row, qrels, qid, depth=10):
    labels = dict(qrels[qrels["qid"] == qid][["docno", "label"]].to_numpy())
    found = sorted((-s, d) for q, d, s in zip(results["qid"], results["docno"], row) if q == qid)[:depth]
    discounted = lambda gains: sum(g / math.log2(i + 2) for i, g in enumerate(gains))  # noqa: E731
    best = discounted(sorted(labels.values(), reverse=True)[:depth])
    return discounted(labels.get(d, 0) for _, d in found) / best if best else 0.0


@st.composite
def problems(draw):
    """Random candidates, scores without ties and graded judgements; rows in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    topics, strategies = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rows = [(f"q{t}", f"d{d}") for t in range(topics) for d in range(rng.integers(1, 14))]
    results = pd.DataFrame(rows, columns=["qid", "docno"]).sample(frac=1, random_state=int(rng.integers(99)))
    scores = np.stack([rng.permutation(len(rows)) for _ in range(strategies)]) / 7
    judged = [(f"q{t}", f"d{d}", int(rng.integers(0, 4))) for t in range(topics) for d in rng.permutation(14)[:4]]
    qrels = pd.DataFrame(judged, columns=["qid", "docno", "label"])
    return results, scores, qrels, list(GRID[:strategies])


# ------------------------------------------------------------------ the paper's rule


def test_the_grid_is_the_papers():
    assert (*map(TopK, (1, 2, 4, 6, 8)), *map(TopP, (0.005, 0.01, 0.015, 0.02))) == GRID


def test_two_folds_of_two_topics():
    given = ranked(WORKED)
    on_others = []
    for fold, others, chosen, mean in (
        (["0", "1"], ["2", "3"], TopK(1), 0.75),
        (["2", "3"], ["0", "1"], TopK(2), 0.75),
    ):
        found = choose(*of(fold, *given), margin=0)
        assert found.alignment == chosen
        assert found.table["nDCG@10"].max() == pytest.approx(mean)
        on_others.append(choose(*of(others, *given), margin=0).by_query[chosen].mean())
    assert on_others == pytest.approx([0.315465, 0.630930], abs=1e-6)
    assert (np.mean(on_others), np.std(on_others)) == pytest.approx((0.473197, 0.157732), abs=1e-6)


@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_the_table_is_what_counting_says(problem):
    results, scores, qrels, grid = problem
    found = choose(*problem, margin=0)
    topics = sorted(set(qrels["qid"]))
    expected = np.array([[ndcg(results, row, qrels, qid) for row in scores] for qid in topics])
    np.testing.assert_allclose(found.by_query.loc[topics], expected, atol=1e-9)
    np.testing.assert_allclose(found.table["nDCG@10"], expected.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.table["gain"], (expected - expected[:, :1]).mean(axis=0), atol=1e-9)
    better = expected - expected[:, :1] > 1e-9
    assert found.table["wins"].tolist() == better.sum(axis=0).tolist()
    assert found.table["losses"].tolist() == (expected - expected[:, :1] < -1e-9).sum(axis=0).tolist()
    assert found.table["alignment"].tolist() == list(found.by_query.columns) == grid
    assert found.table.loc[found.table["chosen"], "alignment"].tolist() == [found.alignment]
    values = found.table.set_index("alignment")["nDCG@10"]
    assert values[found.alignment] == values.max()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_ties_go_to_one_token_then_to_the_first(order):
    tied = [(TopK(1), (FIRST, THIRD)), (TopK(2), (THIRD, FIRST)), (TopP(0.02), (FIRST, THIRD))]
    assert choose(*ranked(dict(tied[i] for i in order)), margin=0).alignment == TopK(1)
    better = [(TopK(1), (SECOND, THIRD)), *tied[1:]]
    first = next(i for i in order if i)
    assert choose(*ranked(dict(better[i] for i in order)), margin=0).alignment == tied[first][0]


def test_equal_means_are_equal_however_their_topics_are_ordered():
    rng = np.random.default_rng(0)
    for _ in range(20):
        places = rng.choice(list(VALUE), 8)
        assert choose(*ranked({TopK(1): places, TopK(2): rng.permutation(places)}), margin=0).alignment == TopK(1)


def test_the_choice_is_that_of_an_experiment_ties_included():
    rng = np.random.default_rng(3)
    results, _, qrels, grid = ranked({k: [FIRST] * 6 for k in GRID})
    scores = rng.integers(0, 4, (len(grid), len(results))).astype(np.float32)
    found = choose(results, scores, qrels, margin=0)
    systems = [frames.with_scores(results, row) for row in scores]
    topics = pd.DataFrame({"qid": qrels["qid"], "query": "any"})
    means = pt.Experiment(systems, topics, qrels, [pt.measures.nDCG @ 10])["nDCG@10"]
    assert found.table["nDCG@10"].tolist() == pytest.approx(means.tolist())
    assert found.alignment == grid[means.argmax()]


# ------------------------------------------------------------------ the margin


def test_by_default_a_gain_within_one_standard_error_is_none():
    chance = {TopK(1): (FIRST, SECOND, SECOND, SECOND), TopK(2): (SECOND, FIRST, SECOND, FIRST)}  # + 0.09, error 0.17
    assert choose(*ranked(chance)).alignment == TopK(1)
    assert choose(*ranked(chance), margin=0).alignment == TopK(2)
    clear = {TopK(1): (THIRD, SECOND, SECOND, SECOND), TopK(2): (SECOND, FIRST, SECOND, FIRST)}
    assert choose(*ranked(clear)).alignment == TopK(2)
    assert choose(*ranked(clear), margin=9).alignment == TopK(1)


@given(problem=problems(), margin=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
@settings(max_examples=60, deadline=None)
def test_the_margin_is_in_standard_errors_of_paired_differences(problem, margin):
    found = choose(*problem, margin=margin)
    best = choose(*problem, margin=0).alignment
    values = found.by_query
    if len(values) == 1:
        assert found.alignment == TopK(1) and found.table["standard_error"].isna().all()
        return
    if best == TopK(1):
        assert found.alignment == TopK(1)
        return
    row = found.table.set_index("alignment").loc[best]
    difference = values[best] - values[TopK(1)]
    assert row["standard_error"] == pytest.approx(difference.sem(), abs=1e-9)
    if difference.std() > 1e-9:
        t = ttest_rel(values[best], values[TopK(1)]).statistic
        assert abs(t - margin) < 1e-9 or found.alignment == (best if t > margin else TopK(1))


def test_the_same_gain_on_every_topic_is_beyond_any_margin():
    same = {TopK(1): (SECOND,) * 3, TopP(0.01): (FIRST,) * 3}
    assert choose(*ranked(same), margin=100).alignment == TopP(0.01)
    one = of(["0"], *ranked(same))
    assert choose(*one, margin=0).alignment == TopP(0.01)
    assert choose(*one).alignment == TopK(1)  # one topic says nothing of another


def test_without_one_token_the_first_entry_is_kept():
    places = {TopP(0.01): (SECOND, FIRST), TopK(2): (FIRST, FIRST), TopK(4): (LATE, FIRST)}
    found = choose(*ranked(places))
    assert found.alignment == TopP(0.01)  # TopK(2) gains one standard error, not more
    assert found.table["gain"].tolist() == pytest.approx([0, (1 - VALUE[SECOND]) / 2, -VALUE[SECOND] / 2])
    assert choose(*ranked(places), margin=0.5).alignment == TopK(2)


def test_other_settings_are_compared_alike():
    results, scores, qrels, _ = ranked(WORKED)
    found = choose(results, scores, qrels, [0.0, 0.01], margin=0)
    assert found.alignment == 0.01 and found.by_query.columns.tolist() == [0.0, 0.01]


def test_strategies_have_names():
    results, scores, qrels, _ = ranked({TopP(0.01): (SECOND, FIRST), TopK(1): (SECOND, FIRST)})
    found = choose(results, scores, qrels, ["top-p", "top-k"], margin=0)
    assert found.alignment == TopK(1) and found.table["alignment"].tolist() == [TopP(0.01), TopK(1)]


# ------------------------------------------------------------------ topics


def test_topics_without_judgements_do_not_count():
    results, scores, qrels, grid = ranked(WORKED)
    both = choose(*of(["0", "1"], results, scores, qrels, grid), margin=0)
    judged = choose(results, scores, qrels[qrels["qid"].isin(["0", "1"])], grid, margin=0)
    pd.testing.assert_frame_equal(judged.by_query, both.by_query)
    pd.testing.assert_frame_equal(judged.table, both.table)


def test_topics_without_candidates_count_nothing():
    results, scores, qrels, grid = ranked(WORKED)
    some = results["qid"].isin(["0", "1"]).to_numpy()
    found = choose(results[some], scores[:, some], qrels, grid, margin=0)
    assert found.by_query.loc[["2", "3"]].eq(0).all(axis=None) and len(found.by_query) == 4
    assert found.table["nDCG@10"].tolist() == pytest.approx([1.5 / 4, 2 * VALUE[SECOND] / 4])


def test_the_order_and_labels_of_rows_do_not_matter():
    results, scores, qrels, grid = ranked(WORKED)
    first = choose(results, scores, qrels, grid)
    again = choose(results, scores, qrels, grid)
    order = np.random.default_rng(0).permutation(len(results))
    other = choose(results.iloc[order].set_axis([7] * len(results)), scores[:, order], qrels[::-1], grid)
    for found in (again, other):
        assert found.alignment == first.alignment
        pd.testing.assert_frame_equal(found.table, first.table)
        pd.testing.assert_frame_equal(found.by_query.sort_index(), first.by_query.sort_index())


def test_inputs_stay_as_they_are_and_old_scores_are_not_read():
    results, scores, qrels, grid = ranked(WORKED)
    scored = results.assign(score=np.nan, rank=0)
    before = scored.copy(), scores.copy(), qrels.copy()
    assert choose(scored, scores, qrels, grid).table.equals(choose(results, scores, qrels, grid).table)
    pd.testing.assert_frame_equal(scored, before[0])
    np.testing.assert_array_equal(scores, before[1])
    pd.testing.assert_frame_equal(qrels, before[2])


@pytest.mark.parametrize("measure", ["RR@10", "recip_rank", pt.measures.RR @ 10])
def test_other_measures_choose_otherwise(measure):
    places = {TopK(1): (FIRST, LATE), TopK(2): (THIRD, THIRD)}  # nDCG@10: equal means
    found = choose(*ranked(places), measure=measure, margin=0)
    name = "RR" if measure == "recip_rank" else "RR@10"
    assert found.table[name].tolist() == pytest.approx([0.5 if name == "RR@10" else 6 / 11, 1 / 3])


def test_the_choice_is_printed_with_its_evidence():
    text = repr(choose(*ranked(WORKED), margin=0))
    assert text.startswith("Adaptation(TopK(2), by 4 topics)\n")
    assert "TopK(1)   0.5327" in text and "TopK(2)   0.6905" in text


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": []}, "empty"),
        ({"grid": [TopK(1), TopK(1)]}, r"TopK\(1\) twice"),
        ({"grid": [TopK(1), "top-k"]}, r"TopK\(1\) twice"),
        ({"grid": [TopK(1), "top-q"]}, "top-q"),
        ({"grid": [TopK(1)]}, r"\(1, 48\), got shape \(2, 48\)"),
        ({"margin": -0.1}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"measure": "nonsense"}, "nonsense"),
    ],
)
def test_settings_are_checked(change, message):
    results, scores, qrels, grid = ranked(WORKED)
    with pytest.raises(ValueError, match=message):
        choose(results, scores, qrels, **{"grid": grid, **change})


def test_scores_are_checked():
    results, scores, qrels, grid = ranked(WORKED)
    for other in (scores.T, scores[:, 1:], scores[0]):
        with pytest.raises(ValueError, match="shape"):
            choose(results, other, qrels, grid)
    scores[1, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        choose(results, scores, qrels, grid)


def test_frames_are_checked():
    results, scores, qrels, grid = ranked(WORKED)
    for column in results:
        with pytest.raises(pt.validate.InputValidationError, match=column):
            choose(results.drop(columns=column), scores, qrels, grid)
    for column in qrels:
        with pytest.raises(pt.validate.InputValidationError, match=column):
            choose(results, scores, qrels.drop(columns=column), grid)
    with pytest.raises(ValueError, match="no topic"):
        choose(results, scores, qrels.assign(qid="x" + qrels["qid"]), grid)
    with pytest.raises(ValueError, match="no topic"):
        choose(results[:0], scores[:, :0], qrels, grid)
    with pytest.raises(ValueError, match="topic '0' has candidate 'd00' twice"):
        choose(results.assign(docno=results["docno"].replace("d01", "d00")), scores, qrels, grid)


def test_choosing_needs_no_torch():
    code = "import sys, pyterrier_mvret.training.adaptation; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_topic_with_labels_below_0_alone_counts_as_one_that_finds_nothing():
    results, scores, qrels, grid = ranked(WORKED)
    spam = qrels.assign(label=[-2, *qrels["label"][1:]])
    by_query = choose(results, scores, spam, grid).by_query
    assert by_query.loc["0"].tolist() == [0, 0]
    assert by_query.loc["1"].tolist() == [VALUE[THIRD], VALUE[SECOND]]
