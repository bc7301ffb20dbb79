"""Value semantics for everything that has settings, and the base of every pipeline stage."""

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

import pyterrier as pt


class Configured:
    """An object that *is* its constructor's arguments: equal, hashed and printed by them.

    Each constructor argument is kept in a public attribute of the same name (PyTerrier's inspection, ``GridSearch``
    and fusion rely on that), and anything costly is made on first use. Attributes named in ``_not_identity`` change
    what is printed while running, never what comes out.

    >>> class Scale(Configured):
    ...     def __init__(self, factor, shift=0, verbose=False):
    ...         self.factor, self.shift, self.verbose = factor, shift, verbose
    >>> Scale(2), Scale(2, shift=1)
    (Scale(factor=2), Scale(factor=2, shift=1))
    >>> Scale(2) == Scale(2, verbose=True), Scale(2) == Scale(3)
    (True, False)
    """

    _not_identity: ClassVar[tuple[str, ...]] = ("verbose",)

    @classmethod
    def _parameters(cls) -> Iterator[inspect.Parameter]:
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in cls._not_identity:
                yield parameter

    def _identity(self) -> tuple[tuple[str, Any], ...]:
        return tuple((p.name, getattr(self, p.name)) for p in self._parameters())

    def __repr__(self) -> str:
        shown = (
            f"{p.name}={getattr(self, p.name)!r}"
            for p in self._parameters()
            if p.default is p.empty or not _same(getattr(self, p.name), p.default)
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._identity() == other._identity()

    def __hash__(self) -> int:
        try:
            return hash((type(self), self._identity()))
        except TypeError:  # a setting that is a list or a dict
            return hash(type(self))


def _same(a: object, b: object) -> bool:
    return type(a) is type(b) and a == b


class Component(Configured, pt.Transformer):
    """Base of every stage of this package: value equality and a schematic that is drawn without a network.

    PyTerrier runs a stage that two pipelines share only once if the two are *equal* (``pt.Experiment(plan="tree")``),
    and refuses stages that are equal but cannot be hashed.
    """

    def schematic(self, *, input_columns: list[str] | None = None) -> dict[str, Any]:
        """What PyTerrier's drawing shows; a ``help_url`` that is set, if to nothing, keeps it off the network."""
        return {"label": type(self).__name__, "help_url": None}

    def subtransformers(self) -> dict[str, Any]:
        """No inner pipeline: models and indexes held in settings are factories, not stages."""
        return {}

    def _replace(self, **changes: Any) -> "Component":
        """A copy with some settings changed, for fusion: no setting can be forgotten."""
        return pt.inspect.transformer_apply_attributes(self, **changes)
