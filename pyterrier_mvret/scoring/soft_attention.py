"""Soft attention over documents, the first stage of NVF, and ways to send gradients through the choice of one.

    a = softmax(q' D^T / T)        r = a D

``r``, the "soft result", is a weighted mean of documents: dense Rocchio feedback over a whole collection. It is near
the mean of all documents unless T is small (below about 0.1 for unit vectors) or only the best are averaged. Functions
on torch tensors, differentiable in all of them.
"""

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Choice = Literal["soft", "hard", "straight-through", "gumbel"]


def soft_attention(queries: "Tensor", documents: "Tensor", temperature: "Tensor | float") -> "Tensor":
    """Weights of documents for each query: rows that sum to 1, in the order of inner products at any temperature.

    Args:
        queries: (..., dim).
        documents: (documents, dim), or (..., documents, dim) with others for each query.
        temperature: T.

    >>> import torch
    >>> documents = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    >>> soft_attention(torch.tensor([0.8, 0.6]), documents, 0.1).tolist()
    [0.1642..., 0.0222..., 0.8135...]
    """
    return _logits(queries, documents, temperature).softmax(-1)


def soft_result(queries: "Tensor", documents: "Tensor", temperature: "Tensor | float") -> "Tensor":
    """(..., dim), the mean of documents under :func:`soft_attention`.

    >>> import torch
    >>> documents = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    >>> soft_result(torch.tensor([0.8, 0.6]), documents, 1.0).tolist()
    [0.5695..., 0.5873...]
    """
    return _mean(soft_attention(queries, documents, temperature), documents)


def choose(
    queries: "Tensor",
    documents: "Tensor",
    temperature: "Tensor | float",
    choice: Choice = "straight-through",
) -> "Tensor":
    """One result vector a query, as a pipeline hands it on, and how gradients pass the choice.

    ``"hard"`` returns the best document, and no gradient: the break that the notes accept. ``"straight-through"``
    returns the same document, with the gradient of the soft result. ``"gumbel"`` (Jang et al. 2017, arXiv 1611.01144,
    the straight-through form) returns a document drawn by the attention, with the gradient of the noisy soft result.
    ``"soft"`` is :func:`soft_result`.

    Raises:
        ValueError: another choice.

    >>> import torch
    >>> query = torch.tensor([[0.8, 0.6]], requires_grad=True)
    >>> documents = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])
    >>> found = choose(query, documents, 0.1)
    >>> found[:, 0].sum().backward()
    >>> found.detach().round(decimals=4).tolist(), bool(query.grad.abs().sum() > 0)
    ([[0.6..., 0.8...]], True)
    """
    if choice not in get_args(Choice):
        raise ValueError(f"choice must be one of {', '.join(get_args(Choice))}, got {choice!r}")
    logits = _logits(queries, documents, temperature)
    if choice == "gumbel":
        logits = logits - logits.new_empty(logits.shape).exponential_().log()
    weights = logits.softmax(-1)
    if choice != "soft":
        best = weights.detach().argmax(-1, keepdim=True)
        hard = weights.detach().new_zeros(weights.shape).scatter_(-1, best, 1.0)
        # the value of the one, the gradient of the other
        weights = hard if choice == "hard" else hard + (weights - weights.detach())
    return _mean(weights, documents)


def _logits(queries: "Tensor", documents: "Tensor", temperature: "Tensor | float") -> "Tensor":
    """Inner products over T, the largest of a query 0: with a T near 0, others would be infinite."""
    products = (documents @ queries[..., None]).squeeze(-1) if documents.ndim > 2 else queries @ documents.T
    return (products - products.detach().amax(-1, keepdim=True)).div(temperature)


def _mean(weights: "Tensor", documents: "Tensor") -> "Tensor":
    return (weights[..., None, :] @ documents).squeeze(-2) if documents.ndim > 2 else weights @ documents
