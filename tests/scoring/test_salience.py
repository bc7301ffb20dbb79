import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_mvret.scoring import TopK, align_packed
from pyterrier_mvret.scoring.salience import (
    budget,
    entropy_lp,
    entropy_lp_iterative,
    hard_gate,
    kept,
    l1_penalty,
    saliences,
)

S = np.array([0.9, 0.7, 0.4, 0.2, 0])
EPSILONS = [0.002, 0.02, 0.1, 1.0]


@pytest.fixture(scope="module", autouse=True)
def version():
    """Nothing here is computed by the kernel."""


@st.composite
def problems(draw):
    """Padded rows of scores, their masks, budgets and an epsilon; some scores are equal, padding is garbage."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    width = max(lengths) + draw(st.integers(0, 2)) or 1
    mask = np.arange(width) < np.array(lengths)[:, None]
    scores = np.where(mask, rng.integers(0, 9, mask.shape) / 8 * rng.choice([0.05, 1, 10]), np.nan)
    return (
        scores,
        mask,
        np.array([rng.integers(1, n + 2) if n else 0 for n in lengths]),
        draw(st.sampled_from(EPSILONS)),
    )


@pytest.mark.parametrize(
    ("k", "epsilon", "gates"),
    [
        (2, 0.2, [1, 0.748832, 0.167087, 0.061468, 0.022613]),
        (2, 0.05, [1, 0.997481, 0.002473, 0.000045, 0.000001]),
        (2, 0.002, [1, 1, 0, 0, 0]),
        (3, 0.2, [1, 1, 0.665241, 0.244728, 0.090031]),
        (5, 0.2, [1, 1, 1, 1, 1]),
        (5, 0.002, [1, 1, 1, 1, 1]),
        (9, 0.002, [1, 1, 1, 1, 1]),
    ],
)
def test_worked_gates(k, epsilon, gates):
    np.testing.assert_allclose(entropy_lp(S, k, epsilon), gates, atol=6e-7)
    tensor = torch.tensor(S, dtype=torch.float32)
    np.testing.assert_allclose(entropy_lp(tensor, k, epsilon), gates, atol=1e-6)


def test_gates_of_two_clamped_and_of_equal_scores():
    s = np.array([2, 1.5, 1.2, 0.9, 0.3, 0])
    gates = entropy_lp(s, 3, 0.5)
    np.testing.assert_allclose(gates, [1, 1, 0.554069, 0.304080, 0.091587, 0.050264], atol=6e-7)
    a = 0.5 * np.log(gates[2:]) - s[2:]
    np.testing.assert_allclose(a, -1.495233, atol=6e-7)
    assert s @ gates - 0.5 * gates @ np.log(gates) == pytest.approx(4.995233, abs=1e-6)
    np.testing.assert_allclose(0.2 * np.log(entropy_lp(S, 2, 0.2)[1:]) - S[1:], -0.757848, atol=1e-6)
    for level in (0, 0.3, 100):
        np.testing.assert_allclose(entropy_lp(np.full(5, level), 2, 0.002), 0.4, atol=1e-12)


@given(problems())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_properties_of_gates(problem):
    scores, mask, budgets, epsilon = problem
    gates = entropy_lp(scores, budgets, epsilon, mask)
    single = entropy_lp(torch.tensor(scores, dtype=torch.float32), budgets, epsilon, torch.tensor(mask))
    assert gates.dtype == np.float64 and single.dtype == torch.float32
    lengths = mask.sum(axis=1)
    np.testing.assert_allclose(gates.sum(axis=1), np.minimum(budgets, lengths), rtol=1e-12)
    np.testing.assert_allclose(single.sum(1), np.minimum(budgets, lengths), rtol=1e-5)
    np.testing.assert_allclose(single, gates, atol=5e-4)  # scores of 10 over 0.002, in float32
    assert ((gates >= 0) & (gates <= 1)).all() and (gates[~mask] == 0).all() and (single.numpy()[~mask] == 0).all()
    for row, gate, n, k in zip(scores, gates, lengths, budgets):
        if n:
            s, g = row[:n], gate[:n]
            np.testing.assert_allclose(entropy_lp(s, k, epsilon), g, atol=1e-12)
            assert (np.diff(g[np.argsort(s, kind="stable")]) >= -1e-12).all()
            np.testing.assert_allclose(g, g[np.argmax(s[:, None] == s, axis=1)], atol=1e-12)  # equal of equal
            np.testing.assert_allclose(entropy_lp(s + 3, k, epsilon), g, atol=1e-9)
            np.testing.assert_allclose(entropy_lp(s * 4, k, epsilon * 4), g, atol=1e-9)
            np.testing.assert_allclose(entropy_lp(s, 1, epsilon), softmax(s / epsilon), atol=1e-9)
            np.testing.assert_allclose(entropy_lp(s, k, 1e9), min(k / n, 1), atol=1e-6)
            ordered = np.sort(s)[::-1]
            if k >= n or ordered[k - 1] > ordered[k]:
                np.testing.assert_allclose(entropy_lp(s, k, 1e-4), hard_gate(s, k), atol=1e-6)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_large_scores_over_a_small_epsilon_stay_exact_in_float32():
    rng = np.random.default_rng(0)
    s = (rng.random((20, 60)) * 0.02 + 10).astype(np.float32)
    exact = entropy_lp(s, 24, 0.002)
    np.testing.assert_allclose(entropy_lp(torch.from_numpy(s), 24, 0.002), exact, atol=2e-6)


def test_the_worked_jacobian():
    s = torch.tensor(S, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: entropy_lp(x, 2, 0.2), s)
    expected = [
        [0.940413, -0.625601, -0.230146, -0.084666],
        [-0.625601, 0.695845, -0.051352, -0.018892],
        [-0.230146, -0.051352, 0.288448, -0.006950],
        [-0.084666, -0.018892, -0.006950, 0.110507],
    ]
    np.testing.assert_allclose(jacobian[1:, 1:], expected, atol=6e-7)
    assert (jacobian[0] == 0).all() and (jacobian[:, 0] == 0).all()
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-12)
    np.testing.assert_allclose(jacobian.sum(1), 0, atol=1e-12)
    step = 1e-6
    slopes = [(entropy_lp(S + step * e, 2, 0.2) - entropy_lp(S - step * e, 2, 0.2)) / (2 * step) for e in np.eye(5)]
    np.testing.assert_allclose(jacobian.T, slopes, atol=1e-8)


@pytest.mark.parametrize("gate", ["lp", "relu", "hard", "l1"])
def test_gradients_of_batches_are_exact_and_finite(gate):
    rng = np.random.default_rng(1)
    raw = torch.tensor(rng.standard_normal((5, 7)), requires_grad=True)
    mask = torch.arange(7) < torch.tensor([7, 5, 1, 0, 3])[:, None]
    direction = torch.tensor(rng.standard_normal((5, 7)))

    def value(x):
        return (saliences(x, gate, 0.4, 0.3, mask) * direction).sum()

    value(raw).backward()
    assert raw.grad.isfinite().all() and (raw.grad[~mask] == 0).all() and raw.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(value, raw)
    filthy = torch.where(mask, raw.detach(), torch.nan).requires_grad_()
    value(filthy).backward()
    np.testing.assert_array_equal(filthy.grad, raw.grad)


@pytest.mark.parametrize("k", [1, 0.5])
def test_a_budget_of_one_is_solved_without_sorting_and_comes_out_the_same(k):
    rng = np.random.default_rng(2)
    s = torch.tensor(rng.standard_normal((4, 6)), requires_grad=True)
    mask = torch.arange(6) < torch.tensor([6, 4, 1, 0])[:, None]
    direction = torch.tensor(rng.standard_normal((4, 6)))
    found = []
    for more in (0, 1):  # a row with another budget makes all of them be sorted
        rows, real = torch.cat([s, s[:more]]), torch.cat([mask, mask[:more]])
        gates = entropy_lp(rows, torch.tensor([k] * 4 + [3] * more), 0.3, real)[:4]
        found.append((gates.detach(), *torch.autograd.grad((gates * direction).sum(), s)))
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, atol=1e-14)


def test_no_tokens_have_no_gates():
    for shape in ((0,), (2, 0), (0, 3)):
        for k in (1, 2):
            assert entropy_lp(np.empty(shape), k, 0.1).shape == shape


def test_half_precision_and_autocast_are_computed_in_float32():
    exact = entropy_lp(S, 2, 0.2)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gates = entropy_lp(torch.tensor(S).to(dtype), 2, 0.2)
        assert gates.dtype == torch.float32
        np.testing.assert_allclose(gates, exact, atol=1e-6 if dtype == torch.float32 else 5e-3)
        assert gates.sum().item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize(
    ("steps", "gates", "total"),
    [
        (1, [1, 0.493377, 0.110087, 0.040499, 0.014899], 1.658862),
        (2, [1, 0.594838, 0.132726, 0.048827, 0.017963], 1.794354),
        (3, [1, 0.663011, 0.147938, 0.054423, 0.020021], 1.885393),
        (5, [1, 0.725359, 0.161850, 0.059541, 0.021904], 1.968654),
        (10, [1, 0.748076, 0.166918, 0.061406, 0.022590], 1.998990),
        (50, [1, 0.748832, 0.167087, 0.061468, 0.022613], 2.0),
    ],
)
def test_the_published_iteration(steps, gates, total):
    found = entropy_lp_iterative(S, 2, 0.2, steps)
    np.testing.assert_allclose(found, gates, atol=6e-7)
    assert found.sum() == pytest.approx(total, abs=1e-6)


def test_a_few_published_steps_are_not_enough_at_the_papers_epsilon():
    totals = [entropy_lp_iterative(S, 2, 0.002, steps).sum() for steps in (1, 2, 5, 10, 50, 200)]
    np.testing.assert_allclose(totals, [1, 1, 1, 1, 1, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("spread", "init", "eps_start", "expected"),
    [
        (1, "zero", None, {1: 0.010, 50: 0.010, 200: 0.126}),
        (0.1, "zero", None, {1: 0.010, 20: 0.131, 100: 0.802, 1000: 1.0}),
        (0.01, "zero", None, {3: 0.395, 5: 0.6, 10: 0.856, 50: 1.0}),
        (1, "minus_s", None, {20: 2.05}),
        (0.01, "minus_s", None, {20: 1.04}),
        (1, "minus_s", 4, {20: 0.73, 50: 0.76}),
        (0.1, "minus_s", 4, {20: 0.73, 50: 0.81}),
        (0.01, "minus_s", 4, {20: 0.62, 50: 0.999}),
    ],
)
def test_what_few_steps_reach(spread, init, eps_start, expected):
    """Sums of gates over the budget, 256 tokens; measured with other draws of the scores, hence only roughly."""
    g = np.random.default_rng(0).standard_normal((20, 256))
    scores = np.maximum(0, spread + spread * g)
    for steps, share in expected.items():
        gates = entropy_lp_iterative(scores, 103, 0.002, steps, init, eps_start=eps_start)
        assert (gates.sum(axis=1) / 103).mean() == pytest.approx(share, rel=0.05, abs=0.06)
    exact = entropy_lp(scores, 103, 0.002)
    fractional = ((exact > 0.01) & (exact < 0.99)).sum(axis=1).mean()
    assert fractional == pytest.approx({1: 2, 0.1: 10, 0.01: 85}[spread], rel=0.15, abs=1)


@given(problems())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_iteration_rises_from_zero_and_falls_from_minus_the_scores(problem):
    scores, mask, budgets, _ = problem
    lengths = mask.sum(axis=1)
    budgets = np.minimum(budgets, np.maximum(lengths - 1, 1))  # with all gates at 1 there is nothing to approach
    epsilon = max(0.05, 0.2 * np.nanmax(np.append(scores, 0)))
    exact = entropy_lp(scores, budgets, epsilon, mask)
    for init, sign in (("zero", 1), ("minus_s", -1)):
        sums = []
        for steps in (1, 2, 4, 16, 400):
            gates = entropy_lp_iterative(scores, budgets, epsilon, steps, init, mask)
            assert (gates <= 1 + 1e-12).all() and (gates[~mask] == 0).all()
            sums.append(gates.sum(axis=1))
        assert (np.diff(sums, axis=0) * sign >= -1e-9).all()
        assert (sign * (np.minimum(budgets, lengths) - sums[-1]) >= -1e-9).all()
        np.testing.assert_allclose(gates, exact, atol=1e-5)


def test_the_iteration_with_a_falling_epsilon_and_gradients():
    gates = entropy_lp_iterative(S, 2, 0.2, 60, "minus_s", eps_start=4, eps_decay=0.7)
    np.testing.assert_allclose(gates, entropy_lp(S, 2, 0.2), atol=1e-6)
    s = torch.tensor(S, requires_grad=True)
    slopes = [
        torch.autograd.functional.jacobian(f, s)
        for f in (lambda x: entropy_lp_iterative(x, 2, 0.2, 200), lambda x: entropy_lp(x, 2, 0.2))
    ]
    np.testing.assert_allclose(*slopes, atol=1e-6)
    empty = torch.zeros(2, 3, requires_grad=True)
    entropy_lp_iterative(empty, 1, 0.1, 3, mask=torch.tensor([[False] * 3, [True] * 3])).sum().backward()
    assert empty.grad.isfinite().all()


def test_budgets():
    shares = [(0.4, 1, 1), (0.4, 5, 2), (0.5, 5, 3), (0.2, 7, 2), (0.8, 3, 3), (0.4, 256, 103), (0.07, 100, 7)]
    assert [int(budget(share, n)) for share, n, _ in shares] == [k for *_, k in shares]
    np.testing.assert_array_equal(budget(0.4, np.array([[0, 1], [5, 10]])), [[0, 1], [2, 4]])
    np.testing.assert_array_equal(budget(1, np.array([7])), [7])
    for wrong in (-0.1, 1.5, float("nan"), "0.4"):
        with pytest.raises(ValueError, match="share must be a number from 0 to 1"):
            budget(wrong, 5)
    with pytest.raises(ValueError, match="lengths must be whole numbers"):
        budget(0.5, 2.5)


def test_the_compared_gates():
    raw = np.array([0.9, -0.5, 0.4, 0.4, 0.0])
    np.testing.assert_allclose(saliences(S, "lp", 0.4, 0.2), [0.9, 0.524183, 0.066835, 0.012294, 0], atol=6e-7)
    for gate, expected in (
        ("relu", [0.9, 0, 0.4, 0.4, 0]), ("l1", [0.9, 0, 0.4, 0.4, 0]),
        ("hard", [0.9, 0, 0.4, 0, 0]), ("none", [1, 1, 1, 1, 1]),
    ):  # fmt: skip
        np.testing.assert_allclose(saliences(raw, gate, 0.4), expected)
        assert saliences(raw, gate, mask=np.arange(5) < 0).tolist() == [0] * 5
    assert saliences(torch.zeros(2, 3), "hard").dtype == torch.float32
    masked = hard_gate(np.array([[1, 5, 9.0], [2, 1, 0]]), np.array([1, 2]), np.array([[1, 1, 0], [1, 1, 1]], bool))
    np.testing.assert_array_equal(masked, [[0, 1, 0], [1, 1, 0]])
    with pytest.raises(ValueError, match="gate must be one of"):
        saliences(raw, "softmax")


def test_the_l1_penalty_pulls_every_salience_alike():
    u = torch.tensor([[0.5, 1.0], [3.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    penalty = l1_penalty(u, mask)
    penalty.backward()
    assert penalty.item() == pytest.approx(1.5)
    np.testing.assert_allclose(u.grad, [[1 / 3, 1 / 3], [1 / 3, 0]], rtol=1e-6)
    assert l1_penalty(np.array([1.0, 3.0])) == 2 and l1_penalty(np.zeros((2, 0))) == 0


@given(st.integers(0, 2**32), st.lists(st.integers(0, 9), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_kept_tokens_are_nested_and_by_salience(seed, lengths):
    rng = np.random.default_rng(seed)
    raw = rng.integers(-4, 5, sum(lengths)) / 4
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    before = set()
    for share in (0, 0.1, 0.3, 0.5, 0.9, 1):
        rows = kept(raw, share, offsets)
        assert before <= set(rows) and (np.diff(rows) > 0).all()
        before = set(rows)
        for first, last in zip(offsets[:-1], offsets[1:]):
            mine = rows[(rows >= first) & (rows < last)] - first
            np.testing.assert_array_equal(mine, kept(raw[first:last], share))
            assert len(mine) == (max(budget(share, last - first), 1) if last > first else 0)
            if len(mine):
                u = saliences(raw[first:last], "lp", 0.4, 0.2)
                left = np.setdiff1d(np.arange(last - first), mine)
                assert u[mine].min() >= u[left].max(initial=0) - 1e-12  # saliences rank like outputs
    assert len(before) == len(raw)


def test_kept_of_the_worked_document():
    ud = np.array([0.9, 0.5, 0, 0.2, 0.8])
    for share, columns in ((1, [0, 1, 2, 3, 4]), (0.8, [0, 1, 3, 4]), (0.6, [0, 1, 4]), (0.4, [0, 4]), (0.2, [0])):
        assert kept(ud, share).tolist() == columns
    assert kept(np.array([0.1, 0.7, 0.7, 0.7]), 0.5).tolist() == [1, 2]
    assert kept(np.zeros(0), 0.5).tolist() == []
    for wrong, message in ((np.array([0.1, np.nan]), "without NaN"), (np.zeros((2, 2)), "one row")):
        with pytest.raises(ValueError, match=message):
            kept(wrong, 0.5)
    with pytest.raises(ValueError, match="offsets must rise"):
        kept(ud, 0.5, np.array([0, 4]))
    with pytest.raises(ValueError, match="share must be a number"):
        kept(ud, 40)


def test_problems_that_are_none_are_refused():
    for arguments, message in (
        ((S, 2, 0), "epsilon must be above 0"),
        ((S, 2, float("nan")), "epsilon must be above 0"),
        ((S, 0, 0.1), "budget must be above 0"),
        ((S, [1, 2], 0.1), r"one a row, \(\), got shape \(2,\)"),
        ((np.array([1, np.inf]), 1, 0.1), "scores hold NaN or infinity"),
        ((S, 2, 0.1, np.ones(4, bool)), r"got shapes \(5,\) and \(4,\)"),
        ((np.float64(3), 1, 0.1), r"must be \(..., tokens\)"),
    ):
        with pytest.raises(ValueError, match=message):
            entropy_lp(*arguments)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        entropy_lp_iterative(S, 2, 0.1, 0)
    with pytest.raises(ValueError, match="init must be 'zero' or 'minus_s'"):
        entropy_lp_iterative(S, 2, 0.1, 5, "ones")


@pytest.mark.parametrize(
    ("k", "epsilon", "score"), [(1, 0.1, 0.861403), (1, 0.5, 0.683482), (2, 0.1, 0.804518), (2, 1e-4, 0.816667)]
)
def test_soft_alignment_is_the_program_on_similarities(k, epsilon, score):
    q = np.array([[1, 0, 0], [0, 3 / 5, 4 / 5]])
    d = np.array([[14, 7, 14], [18, 6, 9], [0, 0, 21], [-12.6, 16.8, 0], [6, 9, 18]]) / 21
    similarities = q @ d.T
    soft = entropy_lp(similarities, k, epsilon)
    assert (soft * similarities).sum() / soft.sum() == pytest.approx(score, abs=1e-6)
    np.testing.assert_allclose(soft.sum(axis=1), k)
    if k == 1:
        np.testing.assert_allclose(soft, [softmax(row / epsilon) for row in similarities], atol=1e-12)
    if epsilon == 1e-4:
        assert align_packed(q, d, np.array([0, 5]), TopK(k))[0] == pytest.approx(score, abs=1e-6)
