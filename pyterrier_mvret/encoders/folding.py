"""A head of several linear modules as the one matrix that it is, and what a head's weights alone do not tell."""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense

_STATES = "token_embeddings"


def fold(model: "MultiVectorEncoder") -> "MultiVectorEncoder":
    """A copy of a model whose head is one matrix; token vectors are equal up to float32's rounding.

    Without activations any depth and any residual is one linear map, so what such a head adds is of use in training
    and costs nothing afterwards. The product is taken in float64. Biases fold too; all other modules stay.

    Args:
        model: in any precision, on any device; it is not changed.

    Raises:
        ValueError: there is no head, something stands between its modules, or one of them is not linear.

    >>> import pyterrier_mvret as mv
    >>> head = mv.heads.FFN(64, layers=3, residual="layer")
    >>> model = mv.TokenEncoder(mv.models.MINILM, init_projection=head).model
    >>> [type(m).__name__ for m in model], [type(m).__name__ for m in mv.heads.fold(model)]
    (['Transformer', 'Dense', 'Dense', 'Dense', 'MultiVectorMask', 'Normalize'],
     ['Transformer', 'Dense', 'MultiVectorMask', 'Normalize'])
    """
    first, last = _linear_head(model)
    folded = copy.deepcopy(model)
    weight = next(model[first].parameters())
    dense = _product(list(folded)[first : last + 1]).to(weight.device, weight.dtype)
    folded[first] = dense.train(model[first].training)
    remove(folded, range(first + 1, last + 1))
    return folded


def remove(model: "MultiVectorEncoder", places: Iterable[int]) -> None:
    """Takes modules out of a model; the others, and their keyword arguments, are numbered anew.

    With a gap in the numbers, the next module that is appended would take the place of another.
    """
    gone = set(places)
    kept = [name for i, name in enumerate(model._modules) if i not in gone]
    for place in sorted(gone, reverse=True):
        del model[place]  # numbers modules
    if model.module_kwargs is not None:
        by_name = {str(i): model.module_kwargs.get(name, []) for i, name in enumerate(kept)}
        model.module_kwargs = type(model.module_kwargs)(by_name)


def insert(model: "MultiVectorEncoder", place: int, module: Any) -> None:
    """Puts a module into a model; those behind it, and their keyword arguments, are numbered anew."""
    model.insert(place, module)
    if model.module_kwargs is not None:
        moved = ((int(name), names) for name, names in model.module_kwargs.items())
        by_name = {str(i + (i >= place)): names for i, names in moved}
        model.module_kwargs = type(model.module_kwargs)(by_name)


def _linear_head(model: "MultiVectorEncoder") -> tuple[int, int]:
    """Places of the first and the last module of a model's head, checked to be linear."""
    places = [i for i, module in enumerate(model) if _projects(module)]
    if not places:
        raise ValueError("this encoder has no projection, so there is nothing to fold")
    for i in range(places[0], places[-1] + 1):
        module: Any = model[i]
        if i not in places:
            raise ValueError(f"module {i} ({type(module).__name__}) stands between projections: they cannot be folded")
        if not _is_linear(module):
            raise ValueError(f"module {i} ({_kind(module)}) is not linear: this head cannot be folded")
    return places[0], places[-1]


def _projects(module: Any) -> bool:
    from sentence_transformers.base.modules import Dense

    from pyterrier_mvret.encoders.projection import Projection

    if isinstance(module, Dense):
        return module.module_input_name == module.module_output_name == _STATES
    return isinstance(module, Projection)


def _is_linear(module: Any) -> bool:
    import torch

    from pyterrier_mvret.encoders.projection import Projection

    if isinstance(module, Projection):
        return module.is_linear
    return isinstance(module.activation_function, torch.nn.Identity)


def _kind(module: Any) -> str:
    from pyterrier_mvret.encoders.projection import Projection

    if isinstance(module, Projection):
        return f"Projection, {module.form}, activation {module.activation}"
    return f"{type(module).__name__}, activation {type(module.activation_function).__name__}"


def _product(modules: "list[torch.nn.Module]") -> "Dense":
    """One Dense for a chain of linear modules, read off its outputs for the unit vectors; the modules end in float64.

    A linear map is what it does to the axes, so no residual or scale needs a formula of its own here.
    """
    import torch

    from pyterrier_mvret.encoders.projection import dense, seeded

    def outputs(rows: "torch.Tensor") -> "torch.Tensor":
        features: Any = {_STATES: rows}
        for module in modules:
            features = module(features)
        return features[_STATES]

    head: Any = torch.nn.Sequential(*modules).cpu().double()
    in_features = head[0].in_features
    with torch.no_grad():
        shift = outputs(torch.zeros(1, in_features, dtype=torch.float64))
        matrix = (outputs(torch.eye(in_features, dtype=torch.float64)) - shift).T.contiguous()
    with seeded(0):  # first weights are drawn, and replaced
        folded = dense(in_features, len(matrix), bias=any(getattr(module, "bias", False) for module in head))
    folded.linear.weight = torch.nn.Parameter(matrix)
    if folded.bias:
        folded.linear.bias = torch.nn.Parameter(shift[0])
    return folded


def hidden_form(module: Any) -> str:
    """What a head's module computes beyond what names and shapes of its weights say; nothing for a plain matrix.

    Two heads of equal weights and another activation make other vectors; so may a residual that needs no weights.
    """
    from sentence_transformers.base.modules import Dense

    from pyterrier_mvret.encoders.latent_head import LatentHead
    from pyterrier_mvret.encoders.projection import Projection
    from pyterrier_mvret.encoders.salience_heads import SalienceHeads

    if isinstance(module, Projection):
        return _kind(module)
    if isinstance(module, LatentHead):  # how many a query keeps is a matter of the search
        return repr(sorted(item for item in module.get_config_dict().items() if item[0] not in ("k_query", "trained")))
    if isinstance(module, SalienceHeads):  # no vector, but the weights that go with it
        return repr(sorted(module.get_config_dict().items()))
    if not isinstance(module, Dense):
        return ""
    activation = "" if _is_linear(module) else type(module.activation_function).__name__
    identity = module.use_residual and module.in_features == module.out_features
    return activation + " + identity" * identity
