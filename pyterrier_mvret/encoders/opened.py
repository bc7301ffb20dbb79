"""A sentence-transformers model as an encoder holds it: opened on first use, and known by a digest of its weights."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pyterrier_mvret.component import Configured
from pyterrier_mvret.encoders import models

M = TypeVar("M")


class OpenedOnUse(Configured, Generic[M]):
    """Base of encoders; ``name`` is a folder, a name on the Hub, or a model already in memory."""

    name: Any
    device: str | None
    #: settings that a model in memory leaves free, and those that make no other model of a checkpoint
    _free_in_memory: ClassVar[tuple[str, ...]]
    _not_opened_by: ClassVar[tuple[str, ...]]

    def _open(self, name: str) -> M:
        """The model of a checkpoint, on the device that was asked for."""
        raise NotImplementedError

    def _state(self) -> Any:
        """Changes with whatever the digest covers, as far as PyTorch notices."""
        raise NotImplementedError

    def _digest_anew(self) -> str:
        """Twelve hexadecimal digits over all that fixes the vector space."""
        raise NotImplementedError

    @property
    def model(self) -> M:
        """The model, opened on first use, and again when a setting was changed since.

        A model that was passed in is used as it is and never changed, so it takes no settings here.
        """
        if not isinstance(self.name, str):
            self._check_in_memory()
            return self.name
        # what only says how the work is done does not make another model
        key = [(name, copy.copy(value)) for name, value in self._identity() if name not in self._not_opened_by]
        if self._opened is None or self._opened[0] != key:
            self._weights = None
            self._opened = (key, self._open(self.name))
        model: Any = self._opened[1]
        if self.device is not None and self.device != self._at:
            model.to(self.device)
            self._at = self.device
        return model

    _opened: tuple[Any, M] | None = None
    _weights: tuple[Any, str] | None = None
    _at: str | None = None

    def _check_in_memory(self) -> None:
        free = ("name", *self._free_in_memory)
        changed = [p.name for p in self._parameters() if p.name not in free and getattr(self, p.name) != p.default]
        if changed:
            raise ValueError(f"{', '.join(changed)}: a model in memory is used as it is; change the model itself")

    def _check_revision(self, name: str, revision: str | None) -> None:
        if revision is not None and Path(name).is_dir():
            raise ValueError(f"revision={revision!r} is for names on the model hub; {name} is a folder")

    @property
    def space(self) -> str:
        """``name#digest`` of the vector space: equal digests mean comparable vectors.

        The digest covers every weight, and what else changes vectors: not the name or place of the checkpoint, how
        texts are cut and prefixed, nor device, batch size or arithmetic. Vectors from another machine, or in half
        precision, live in the same space.
        """
        return f"{Path(self._label).name}#{self._digest()}"

    @property
    def _label(self) -> str:
        return models.label(self.name) if isinstance(self.name, str) else type(self.name).__name__

    def _digest(self) -> str:
        state = self._state()
        if self._weights is None or self._weights[0] != state:
            self._weights = (state, self._digest_anew())
        return self._weights[1]

    def __getstate__(self) -> Mapping[str, Any]:
        # settings travel, weights do not: a copy in another process opens the checkpoint itself
        return {k: v for k, v in self.__dict__.items() if k not in ("_opened", "_weights", "_at")}
