"""Token states that are kept between steps, and between runs, where the transformer below a head stands still."""

from typing import Any


class StateCache:
    """Token states of texts that a still transformer has seen, up to a size; pass one to several runs to share it.

    ``fit(train="head")`` makes one of its own. Handing the same one to the runs of a comparison (heads, losses, seeds)
    lets every text go through the transformer once in all: the runs after the first train the head alone. States of
    another transformer are never taken: those that are there are dropped when one comes.

    Args:
        gib: GiB of states at most; texts beyond them are encoded at each step.

    >>> import pyterrier_mvret as mv
    >>> cache = mv.training.StateCache(gib=1.5)
    >>> len(cache)
    0
    """

    def __init__(self, gib: float = 2.0):
        if not gib >= 0:
            raise ValueError(f"gib must be at least 0, got {gib}")
        self.gib = gib
        self._owner: str | None = None
        self.clear()

    def clear(self) -> None:
        """Drops all states."""
        self._states: dict[Any, Any] = {}
        self._left = int(self.gib * 2**30)

    def belong_to(self, owner: str) -> None:
        """Drops the states of another transformer than this one (its digest)."""
        if owner != self._owner:
            self.clear()
            self._owner = owner

    def get(self, key: Any) -> Any:
        """The states of a row of tokens, if they are there."""
        return self._states.get(key)

    def put(self, key: Any, states: Any) -> None:
        """Keeps the states of a row, if there is room."""
        if states.nbytes <= self._left and key not in self._states:
            self._states[key] = states
            self._left -= states.nbytes

    def __len__(self) -> int:
        return len(self._states)

    def __repr__(self) -> str:
        return f"StateCache(gib={self.gib})"
