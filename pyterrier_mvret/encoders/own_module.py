"""What modules of this package share that checkpoints name: how they are written and read.

The class needs torch to be defined, so this file is imported by its modules alone.
"""

from pathlib import Path
from typing import Any, Self

from sentence_transformers.base.modules import Module


class OwnModule(Module):
    """A module whose folder holds its settings in ``config.json``, and its weights."""

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes ``config.json`` and the weights."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: settings are missing, or there are some that this version does not know.
        """
        where: dict[str, Any] = {"subfolder": subfolder, "token": token, "cache_folder": cache_folder}
        where |= {"revision": revision, "local_files_only": local_files_only}
        config = cls.load_config(model_name_or_path, **where)
        strange = sorted(set(config) ^ set(cls.config_keys))
        if strange:
            file = Path(model_name_or_path, subfolder, cls.config_file_name)
            raise ValueError(f"{file} is not of {cls.__name__}: missing or unknown: {', '.join(strange)}")
        return cls.load_torch_weights(model_name_or_path, model=cls(**config), **where)
