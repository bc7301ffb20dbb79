"""What the machine itself can do, so that figures of one machine say something about another."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_SIDE, _GIGABYTE, _REPEATS = 3072, 250_000_000, 5


def limits(threads: int) -> dict[str, float]:
    """Speed of a large square product in float32 and in bfloat16 (torch), and of reading an array of 1 GB."""
    torch.set_num_threads(threads)
    square = torch.rand(_SIDE, _SIDE)
    half = square.bfloat16()
    products = 2 * _SIDE**3 / 1e9
    figures = {
        "matrix product, float32, GFLOP/s": products / _seconds(lambda: square @ square),
        "matrix product, bfloat16, GFLOP/s": products / _seconds(lambda: half @ half),
    }
    array = torch.ones(_GIGABYTE)
    figures["reading memory, GB/s"] = 4 * _GIGABYTE / 1e9 / _seconds(array.sum)
    return {name: float(f"{value:.3g}") for name, value in figures.items()}


def pace() -> float:
    """GFLOP/s of a smaller product, in a tenth of a second: on a shared machine, how much of it there was just now."""
    square = torch.rand(_SIDE // 2, _SIDE // 2)
    return float(f"{2 * (_SIDE // 2) ** 3 / 1e9 / _seconds(lambda: square @ square):.3g}")


def about(command: str, packages: Iterable[str]) -> dict[str, Any]:
    """The machine and how busy it was, and the versions of packages ("not installed" for a peer that is not there)."""
    return {
        "command": command,
        "cores": os.cpu_count(),
        "machine": _processor(),
        "load average": round(os.getloadavg()[0], 1),
        "versions": {package: installed(package) or "not installed" for package in packages},
    }


def installed(package: str) -> str | None:
    """The version of a package, or none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Model and vector instructions where the system tells, as they decide what a kernel can reach."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile"}
    return " ".join([fields.get("model name", platform.machine()), *sorted(flags)])


def _seconds(function: Callable[[], Any]) -> float:
    """Median, after one call that is not counted."""
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
