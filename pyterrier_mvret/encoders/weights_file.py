"""Weights and settings of a network in one safetensors file, under one checksum, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def digest(weights: Mapping[str, "Tensor"], told: str = "") -> str:
    """Twelve hexadecimal digits over tensors by name, and what else is told."""
    sha = hashlib.sha256(told.encode())
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return sha.hexdigest()[:12]


def write(path: str | Path, kind: str, version: int, settings: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Writes the file; settings are in its header."""
    from safetensors.torch import save

    path, told = Path(path), json.dumps(settings)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = {"pyterrier_mvret": kind, "format": str(version), "settings": told}
    content = save(weights, metadata={**about, "checksum": digest(weights, told)})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as out:  # safetensors would let nobody else read it
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | Path, kind: str, version: int, what: str) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Settings and weights of a file that :func:`write` wrote; ``what`` names it in errors ("sparse autoencoder").

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file of a {what}")
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    told = about.get("settings", "")
    if about.get("pyterrier_mvret") != kind or about.get("format") != str(version):
        raise ValueError(f"{path} holds no {what} of this version")
    if digest(weights, told) != about.get("checksum"):
        raise ValueError(f"{path} is damaged: its weights or settings are not those that were written")
    return json.loads(told), weights
