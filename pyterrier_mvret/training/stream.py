"""Token states in batches: mixed in a buffer, as tokens of one text are alike, and never all held."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
#: ``states(start)`` returns (tokens, dim) arrays, text after text, from array number ``start`` on; always the same ones
States = Callable[[int], Iterable[npt.NDArray[Any]]]


class Stream:
    """Batches of states without end: a buffer is filled, mixed, handed out, and filled again.

    A corpus that the buffer holds is read once. Where a stream is can be told and restored: a run that was stopped
    reads again what the buffer held, no more, and goes on with the batch that was next.

    Args:
        states: where they come from.
        batch: states of a batch; all there are, where those are fewer.
        capacity: states that the buffer holds, if there are so many.
        seed: of their order.

    Attributes:
        passes: how often the end of the corpus was reached.
        read: states of the first pass, as far as it has come: how many different ones there are.

    >>> stream = Stream(lambda start: [np.full((3, 1), i) for i in range(start, 4)], batch=4, capacity=100, seed=0)
    >>> [next(stream).shape for _ in range(4)], stream.passes, stream.read
    ([(4, 1), (4, 1), (4, 1), (4, 1)], 2, 12)
    """

    def __init__(self, states: States, batch: int, capacity: int, seed: int):
        self._states, self._batch, self._capacity = states, batch, capacity
        self._rng = np.random.default_rng(seed)
        self._parts: Iterator[npt.NDArray[Any]] = iter(())
        self._start = self._next = self.passes = self.read = 0
        # the buffer as the arrays that came (one of all would be a second copy), where each ends, whether it is all
        # there is, and in which order its states are handed out
        self._held: list[Floats] = []
        self._ends, self._whole, self._order = np.empty(0, np.int64), False, np.empty(0, np.int64)
        self._begun: dict[str, Any] = {}
        self._left: Floats = np.empty((0, 0), np.float32)

    def __iter__(self) -> Iterator[Floats]:
        return self

    def __next__(self) -> Floats:
        """The next batch.

        Raises:
            ValueError: there is no state at all.
        """
        if not self._begun:
            self._parts = iter(self._states(0))
            self._fill(self._left)
        elif self._next + self._size > len(self._order):
            self._fill(self._left[:0] if self._whole else self._chosen(self._order[self._next :]))
        chosen = self._order[self._next : self._next + self._size]
        self._next += self._size
        return self._chosen(chosen)

    @property
    def held(self) -> list[Floats]:
        """What the buffer holds, in parts."""
        return self._held

    @property
    def _size(self) -> int:
        return min(self._batch, len(self._order))

    def _chosen(self, rows: npt.NDArray[np.int64]) -> Floats:
        """Some states of the buffer, by their numbers."""
        place = np.searchsorted(self._ends, rows, side="right")
        chosen = np.empty((len(rows), self._held[0].shape[1]), np.float32)
        for number in np.unique(place):
            part, mine = self._held[number], place == number
            chosen[mine] = part[rows[mine] - (self._ends[number] - len(part))]
        return chosen

    def _fill(self, left: Floats) -> None:
        """Fills the buffer, behind what was left in it, and mixes it."""
        self._begun = {
            "start": self._start,
            "passes": self.passes,
            "read": self.read,
            "rng": self._rng.bit_generator.state,
        }
        self._left = left
        if self._whole:
            self.passes += 1
        else:
            self._held = []  # gone before the next states come
            self._held = self._filled(left)
            self._ends = np.cumsum([len(part) for part in self._held], dtype=np.int64)
        if not self._held:
            raise ValueError("there is no token state to train on")
        self._order, self._next = self._rng.permutation(int(self._ends[-1])), 0

    def _filled(self, left: Floats) -> list[Floats]:
        parts, count, begun = [left] if len(left) else [], len(left), self._start
        while count < self._capacity:
            part = next(self._parts, None)
            if part is not None:
                self._start += 1
                if len(part):
                    parts.append(np.asarray(part, dtype=np.float32))
                count += len(part)
                self.read += len(part) * (not self.passes)
                continue
            if not self._start:
                raise ValueError("there is no token state to train on")
            self.passes, self._start = self.passes + 1, 0
            if not begun and not len(left):
                self._whole = True
                break
            self._parts = iter(self._states(0))
        return parts

    def state(self) -> tuple[dict[str, Any], Floats]:
        """Where it is: what can be written as JSON, and the few states that were left of the buffer before."""
        return {**self._begun, "next": self._next}, self._left

    def restore(self, state: dict[str, Any], left: Floats) -> None:
        """Goes where another stream of the same states was."""
        self._start, self.passes, self.read = state["start"], state["passes"], state["read"]
        self._rng.bit_generator.state = state["rng"]
        self._parts = iter(self._states(self._start))
        self._fill(np.asarray(left, dtype=np.float32))
        self._next = state["next"]
