import pytest

from pyterrier_mvret.scoring import fused

VERSIONS = ["avx512-vnni", "avx512", "avx2", "neon", "baseline", "torch"]


@pytest.fixture(scope="module", autouse=True, params=VERSIONS)
def version(request):
    """Every test of scores runs with each version of the kernel that this machine has, and without it."""
    present, name = fused.versions(), request.param
    if name != "torch" and name not in present:
        pytest.skip(f"no {name} here")
    original = fused.versions
    fused.versions = lambda: () if name == "torch" else (name,)
    yield name
    fused.versions = original
