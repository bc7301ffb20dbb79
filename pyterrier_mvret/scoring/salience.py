"""Unary salience: which tokens of a text matter (ALIGNER, Qian et al. 2022, arXiv 2211.01267, equations 3 to 5).

    s_i = max(W x_i + b, 0)        u_i = g_i s_i        (equation 3)

Gates ``g`` open for a given number of tokens, the *budget*: they solve a linear program with an entropy term
(equation 4). Texts are rows of one array; ``mask`` marks real tokens, and gates of the others are 0. Arrays of numpy
give arrays of numpy, computed in float64; tensors give tensors, in float32 or float64 whatever autocast says, with
gradients.
"""

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pyterrier_mvret.scoring.ragged import checked_offsets, ragged_rows
from pyterrier_mvret.scoring.shares import ceil_of, checked_lengths, checked_share

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Gate = Literal["lp", "relu", "hard", "l1", "none"]


def budget(share: float, lengths: Array) -> Ints:
    """Tokens for which gates open: ``ceil(share * length)``, of the decimal that the share is written as.

    As in the paper, whose shares are 0.5 for queries and 0.4 for documents.

    Args:
        share: from 0 to 1.
        lengths: integers of any shape: tokens of each text.

    Returns:
        int64 of the same shape.

    Raises:
        ValueError: a share outside 0 to 1, or lengths that are not whole numbers.

    >>> budget(0.4, np.array([1, 5, 256])), budget(0.07, np.array([100]))
    (array([  1,   2, 103]), array([7]))
    """
    return ceil_of(checked_share(share, "share"), checked_lengths(lengths))


def entropy_lp(scores: Any, budget: Any, epsilon: float, mask: Any = None) -> Any:
    """Gates that maximise ``sum g_i s_i + epsilon H(g)`` with ``sum g_i = budget`` and ``0 <= g_i <= 1`` (equation 4).

    Solved exactly by one sort, instead of the paper's iteration (:func:`entropy_lp_iterative`), which from zero takes
    hundreds of steps at its epsilon (our derivation): gates are ``min(1, exp((s_i + a) / epsilon))``, and ``a``
    follows from how many of the largest are 1. Gradients are exact: ``(g_i [i = j] - g_i g_j / sum g) / epsilon``
    among gates below 1, 0 at the others.

    Args:
        scores: (..., tokens) ``s``, array or tensor.
        budget: what the gates of a row sum to, a number or (...,); a row of no more tokens has all gates 1.
        epsilon: weight of the entropy, above 0; the smaller, the harder the gates. The paper's is 0.002.
        mask: (..., tokens), true for real tokens; none means all.

    Returns:
        (..., tokens) gates: float64 array, or a tensor (float32 of half-precision scores).

    Raises:
        ValueError: epsilon or a budget that is not above 0, shapes that do not fit, or scores that are not finite.

    >>> entropy_lp(np.array([0.9, 0.7, 0.4, 0.2, 0.0]), 2, 0.2).round(6)
    array([1.      , 0.748832, 0.167087, 0.061468, 0.022613])
    >>> entropy_lp(np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 9.0]]), np.array([2, 1]), 1e-3,
    ...            mask=np.array([[True, True, True], [True, True, False]])).round(6)
    array([[1., 1., 0.],
           [1., 0., 0.]])
    """
    s, k, real = _prepared(scores, budget, epsilon, mask)
    return _as_given(_exact_gates(s, k, epsilon, real), scores)


def entropy_lp_iterative(
    scores: Any,
    budget: Any,
    epsilon: float,
    steps: int,
    init: Literal["zero", "minus_s"] = "zero",
    mask: Any = None,
    *,
    eps_start: float | None = None,
    eps_decay: float = 0.7,
) -> Any:
    """Gates by the published coordinate ascent (equation 5), which needs many steps: for experiments on fidelity.

    From zero, sums of gates rise to the budget; from minus the scores (a public port's choice, not the paper's) they
    fall to it. Gradients are those of the steps.

    Args:
        scores: as for :func:`entropy_lp`.
        budget: as for :func:`entropy_lp`.
        epsilon: as for :func:`entropy_lp`.
        steps: at least 1; the paper says "a few".
        init: dual variables of the upper bounds at the start: zero (the paper's) or minus the scores.
        mask: as for :func:`entropy_lp`.
        eps_start: epsilon of the first step, lowered by ``eps_decay`` at each until it is ``epsilon`` (the port's);
            none means ``epsilon`` throughout. Gates are read at ``epsilon``, whatever the last step's was.
        eps_decay: what epsilon is multiplied with after a step.

    Returns:
        As :func:`entropy_lp`.

    Raises:
        ValueError: as :func:`entropy_lp`, no steps, or an unknown ``init``.

    >>> gates = entropy_lp_iterative(np.array([0.9, 0.7, 0.4, 0.2, 0.0]), 2, 0.2, steps=1)
    >>> gates.round(6), gates.sum().round(6)
    (array([1.      , 0.493377, 0.110087, 0.040499, 0.014899]), np.float64(1.658862))
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if init not in ("zero", "minus_s"):
        raise ValueError(f"init must be 'zero' or 'minus_s', got {init!r}")
    s, k, real = _prepared(scores, budget, epsilon, mask)
    start = epsilon if eps_start is None else max(eps_start, epsilon)
    b = s * 0 if init == "zero" else -s
    out = ~real & real.any(-1, keepdim=True)  # of a text without tokens nothing is left out: no sum over nothing
    for step in range(steps):
        now = max(start * eps_decay**step, epsilon)
        a = now * (k.log() - ((s + b) / now).masked_fill(out, -float("inf")).logsumexp(-1, keepdim=True))
        b = (-s - a).clamp(max=0)
    return _as_given(((s + b + a) / epsilon).exp() * real, scores)


def hard_gate(scores: Any, budget: Any, mask: Any = None) -> Any:
    """Gates 1 for the budget's number of largest scores, 0 for the others: the program without its entropy term.

    The paper compares it (Figure 6). No gradient passes the gates; of equal scores the first are taken (our choice).

    Args:
        scores: as for :func:`entropy_lp`.
        budget: as for :func:`entropy_lp`, whole numbers.
        mask: as for :func:`entropy_lp`.

    Returns:
        As :func:`entropy_lp`.

    Raises:
        ValueError: as :func:`entropy_lp`.

    >>> hard_gate(np.array([0.2, 0.9, 0.2, 0.0]), 2)
    array([1., 1., 0., 0.])
    """
    s, k, real = _prepared(scores, budget, 1.0, mask)
    return _as_given(_hard_gates(s, k, real), scores)


def saliences(raw: Any, gate: Gate = "lp", share: float = 0.4, epsilon: float = 0.002, mask: Any = None) -> Any:
    """Saliences from what a head puts out: ``u = g s`` with ``s = max(raw, 0)`` (equation 3).

    Args:
        raw: (..., tokens) outputs of the head, ``W x + b``.
        gate: how gates open. ``"lp"``: :func:`entropy_lp`. ``"hard"``: :func:`hard_gate`. ``"relu"``: all, so that
            ``u = s``. ``"l1"``: as ``"relu"``, for training with :func:`l1_penalty`. ``"none"``: saliences are 1
            whatever the head says.
        share: of a text's tokens, for :func:`budget`; ``"lp"`` and ``"hard"`` alone use it.
        epsilon: as for :func:`entropy_lp`; ``"lp"`` alone uses it.
        mask: as for :func:`entropy_lp`.

    Returns:
        (..., tokens) saliences, at least 0, and 0 where ``mask`` is false; as :func:`entropy_lp`.

    Raises:
        ValueError: an unknown gate, or as :func:`entropy_lp` and :func:`budget`.

    >>> saliences(np.array([0.9, 0.7, 0.4, 0.2, -1.0]), share=0.4, epsilon=0.2).round(6)
    array([0.9     , 0.524183, 0.066835, 0.012294, 0.      ])
    """
    if gate not in get_args(Gate):
        raise ValueError(f"gate must be one of {get_args(Gate)}, got {gate!r}")
    s, _, real = _prepared(raw, 1, epsilon, mask)
    if gate == "none":
        return _as_given(real.to(s.dtype), raw)
    s = s.relu()
    if gate in ("lp", "hard"):
        k = _budgets(budget(share, real.sum(-1).cpu().numpy()), s, real)
        s = s * (_exact_gates(s, k, epsilon, real) if gate == "lp" else _hard_gates(s, k, real))
    return _as_given(s, raw)


def l1_penalty(weights: Any, mask: Any = None) -> Any:
    """Mean salience of real tokens: added to a loss, it drives saliences to zero without a budget.

    What ColBERTer does to whole-word gates (Hofstätter et al. 2022, arXiv 2203.13088); the ALIGNER paper names it as
    related work. The mean instead of the sum is our choice: it does not depend on the texts' lengths.

    Args:
        weights: (..., tokens) saliences, array or tensor.
        mask: (..., tokens), true for real tokens; none means all.

    Returns:
        A number, or a tensor with gradient; 0 without tokens.

    >>> l1_penalty(np.array([[0.5, 1.0], [3.0, 9.0]]), np.array([[True, True], [True, False]]))
    np.float64(1.5)
    """
    real = abs(weights if mask is None else weights[mask])
    return real.sum() / max(1, int(np.prod(real.shape)))


def kept(scores: Array, share: float, offsets: Array | None = None) -> Ints:
    """Rows of the tokens that pruning keeps: ``ceil(share * tokens)`` of the highest scores, at least one of each text.

    The paper keeps a share of tokens by salience (Figures 6 and 7). Saliences rise with what the head puts out, so
    ``scores`` may be its outputs before the ReLU: they rank alike, and tell tokens of salience 0 apart. How the share
    is rounded is our choice; of equal scores the first are kept. Sets of a smaller share lie in those of a larger.

    Args:
        scores: (tokens,), of one text or of several packed ones.
        share: of tokens that are kept, from 0 to 1; 1 keeps all.
        offsets: (texts + 1,) integers, where the packed texts begin and end; none means one text.

    Returns:
        Rows of ``scores``, ascending.

    Raises:
        ValueError: a share outside 0 to 1, NaN, or offsets that do not fit.

    >>> kept(np.array([0.9, 0.5, 0.0, 0.2, 0.8]), 0.4)
    array([0, 4])
    >>> kept(np.array([0.9, 0.5, 0.0, 0.2, 0.8]), 0.2, np.array([0, 2, 5]))
    array([0, 4])
    """
    scores = np.asarray(scores)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(f"scores must be one row of numbers without NaN, got shape {scores.shape}")
    bounds = checked_offsets(np.array([0, len(scores)]) if offsets is None else offsets, len(scores), "offsets")
    lengths = np.diff(bounds)
    order = np.lexsort((-scores, np.repeat(np.arange(len(lengths)), lengths)))  # stable, text by text
    counts = np.minimum(np.maximum(budget(share, lengths), 1), lengths)
    return np.sort(order[ragged_rows(bounds[:-1], counts)])


def _prepared(scores: Any, budget: Any, epsilon: float, mask: Any) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Checked scores (0 where masked), budgets (..., 1) and mask, as tensors."""
    import torch

    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    if isinstance(scores, torch.Tensor):
        s = scores if scores.dtype == torch.float64 else scores.float()
    else:
        s = torch.from_numpy(np.array(scores, dtype=np.float64))
    real = torch.ones_like(s, dtype=torch.bool) if mask is None else torch.as_tensor(mask, device=s.device).bool()
    if s.ndim == 0 or real.shape != s.shape:
        raise ValueError(f"scores and mask must be (..., tokens), got shapes {tuple(s.shape)} and {tuple(real.shape)}")
    s = s.masked_fill(~real, 0)
    if not s.isfinite().all():
        raise ValueError("scores hold NaN or infinity")
    return s, _budgets(budget, s, real), real


def _budgets(budget: Any, s: "torch.Tensor", real: "torch.Tensor") -> "torch.Tensor":
    """(..., 1) budgets; 1 for texts without tokens, which need none."""
    import torch

    k = torch.as_tensor(budget, device=s.device).to(s.dtype)
    if k.shape not in ((), s.shape[:-1]):
        raise ValueError(f"budget must be a number or one a row, {tuple(s.shape[:-1])}, got shape {tuple(k.shape)}")
    k = k.expand(s.shape[:-1]).unsqueeze(-1).where(real.any(-1, keepdim=True), 1)
    if not (k > 0).all():
        raise ValueError("budget must be above 0")
    return k


def _as_given(gates: "torch.Tensor", like: Any) -> Any:
    """A tensor to whom gave a tensor, else an array."""
    import torch

    return gates if isinstance(like, torch.Tensor) else gates.numpy()


def _exact_gates(s: "torch.Tensor", k: "torch.Tensor", epsilon: float, real: "torch.Tensor") -> "torch.Tensor":
    """The program's solution: which gates are 1 is found without gradient, the others are written down with it."""
    import torch

    if s.numel() == 0:
        return s
    if (k <= 1).all():  # no gate is 1 beside others: a softmax, without sorting
        out = ~real & real.any(-1, keepdim=True)
        largest = s.detach().masked_fill(out, -torch.inf).amax(-1, keepdim=True)
        return k * ((s - largest) / epsilon).masked_fill(out, -torch.inf).softmax(-1) * real
    open_all = k >= real.sum(-1, keepdim=True)
    with torch.no_grad():
        ranks, order = _ranks(s, real)
        middle = s.gather(-1, order).gather(-1, (k.ceil().long() - 1).clamp(max=s.shape[-1] - 1))
    # gates do not change if scores shift; from the threshold, large scores over a small epsilon stay exact
    x = ((s - middle) / epsilon).masked_fill(~real, -torch.inf).masked_fill(open_all, 0)
    with torch.no_grad():
        ones = _gates_of_one(x.gather(-1, order), k)
    level = (k - ones).clamp(min=torch.finfo(s.dtype).tiny).log()
    a = level - x.masked_fill(ranks < ones, -torch.inf).logsumexp(-1, keepdim=True)
    return (x + a).clamp(max=0).exp().masked_fill(open_all, 1) * real


def _gates_of_one(x: "torch.Tensor", k: "torch.Tensor") -> "torch.Tensor":
    """How many gates are 1, (..., 1): the fewest that leave no larger gate behind; ``x`` descends."""
    import torch

    rest = x.flip(-1).logcumsumexp(-1).flip(-1)
    places = torch.arange(x.shape[-1], device=x.device)
    fits = (k - places).clamp(min=0).log() <= rest - x
    return (fits | (places >= k.ceil() - 1)).to(torch.uint8).argmax(-1, keepdim=True)


def _hard_gates(s: "torch.Tensor", k: "torch.Tensor", real: "torch.Tensor") -> "torch.Tensor":
    return ((_ranks(s.detach(), real)[0] < k) & real).to(s.dtype)


def _ranks(s: "torch.Tensor", real: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """The rank of each score from the largest, and their order; of equal scores the first comes first."""
    import torch

    order = s.masked_fill(~real, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(s.shape[-1], device=s.device).expand(s.shape)
    return torch.empty_like(order).scatter_(-1, order, places), order
