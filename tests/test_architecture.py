"""Who may import whom, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pyterrier_mvret

ROOT = Path(pyterrier_mvret.__file__).parent
# a part of the package -> the parts it may import
ALLOWED = {
    "scoring": {"scoring"},
    "component": set(),
    "frames": set(),
    "encoders": {"encoders", "scoring", "component", "frames"},
    "indexes": {"indexes", "scoring", "component", "frames"},
    "training": {"training", "encoders", "indexes", "scoring", "component", "frames"},
    "unit_stages": {"encoders", "indexes", "scoring", "component", "frames"},
    "term_stages": {"encoders", "scoring", "component", "frames"},
    "term_activity": {"term_stages", "encoders", "scoring", "frames"},
    "term_meaning": {"frames", "term_activity", "term_stages", "encoders", "indexes", "scoring"},
    "pair_stages": {"indexes", "scoring", "component", "frames"},
    "pair_model": {"pair_stages", "encoders", "indexes", "training", "scoring", "component"},
    "citation": {"encoders", "frames"},
    "citation_stages": {"citation", "encoders", "indexes", "scoring", "component", "frames"},
    "model": {"encoders", "training", "scoring", "component", "explain"},
    "methods": {
        *("model", "citation_stages", "term_activity", "term_meaning", "term_stages", "unit_stages", "explain"),
        *("pair_model", "pair_stages"),
        *("encoders", "indexes", "training", "scoring", "component", "frames"),
    },
    "explain": {"component", "frames", "encoders", "scoring"},
    "datasets": {"component", "frames"},
    "zipf": {"indexes", "scoring"},
}
# files that define subclasses of torch's classes: they import torch, and are imported only inside of functions
MODULES = {
    "pyterrier_mvret.encoders.attention",
    "pyterrier_mvret.encoders.latent_head",
    "pyterrier_mvret.encoders.own_module",
    "pyterrier_mvret.encoders.projection",
    "pyterrier_mvret.encoders.sae",
    "pyterrier_mvret.encoders.salience_heads",
    "pyterrier_mvret.scoring.pair_networks",
    "pyterrier_mvret.training.alignment",
    "pyterrier_mvret.training.frozen",
    "pyterrier_mvret.training.network_loop",
    "pyterrier_mvret.training.objectives",
    "pyterrier_mvret.training.latent_loss",
    "pyterrier_mvret.training.reconstruction",
    "pyterrier_mvret.training.row_adagrad",
    "pyterrier_mvret.training.sae",
    "pyterrier_mvret.training.sparsity",
    "pyterrier_mvret.training.similarity",
    "pyterrier_mvret.training.trainer",
    "pyterrier_mvret.training.unit_loss",
    "pyterrier_mvret.training.vector_field",
    "pyterrier_mvret.training.winners",
}
HEAVY = {"torch", "transformers", "sentence_transformers", "faiss", "pyterrier_pisa", "scipy"}


def imports(path: Path, at_top: bool = False):
    """Modules that a file imports outside of type checking; with ``at_top`` only those imported with the file."""
    tree = ast.parse(path.read_text())
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", None) == "TYPE_CHECKING"]
    skipped = {id(n) for block in checked for n in ast.walk(block)}
    nodes = tree.body if at_top else ast.walk(tree)
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return [p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"]


def test_no_arrow_points_the_wrong_way():
    for path in files():
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            if module.startswith("pyterrier_mvret."):
                target = module.split(".")[1]
                assert target in ALLOWED[part], f"{path.relative_to(ROOT)} imports {module}"


def test_scoring_is_arrays_alone():
    for path in (ROOT / "scoring").glob("*.py"):
        outside = {m.split(".")[0] for m in imports(path)} - {"pyterrier_mvret"} - set(sys.stdlib_module_names)
        assert outside <= {"numpy", "scipy", "torch"}, path
        assert not {"io", "pathlib", "json"} & {m.split(".")[0] for m in imports(path)}, path


def test_heavy_packages_are_imported_where_they_are_used():
    for path in files():
        tops = set(imports(path, at_top=True))
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        assert name in MODULES or not tops & MODULES, f"{path} imports {tops & MODULES} at its top"
        heavy = {m.split(".")[0] for m in tops} & HEAVY
        assert bool(heavy) == (name in MODULES), f"{path} imports {heavy} at its top"


def test_importing_the_package_is_cheap():
    code = """
import sys, pyterrier_mvret as mv
from pyterrier_mvret import scoring
assert "pyterrier" not in sys.modules and "pandas" not in sys.modules, "the package alone loads no framework"
mv.ColBERT, mv.MultiVecIndex, mv.SparseIndex, mv.TokenEncoder, mv.datasets, mv.explain, mv.training.KL
mv.SingleVecIndex, mv.VectorEncoder("a folder")
mv.TokenEncoder("a folder", init_projection=mv.heads.FFN(8, residual="skip"))
heavy = {"torch", "transformers", "sentence_transformers", "faiss", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_others_do_not():
    for name in pyterrier_mvret.__all__:
        assert getattr(pyterrier_mvret, name) is not None
    assert set(pyterrier_mvret.__all__) <= set(dir(pyterrier_mvret))
    assert not hasattr(pyterrier_mvret, "nonsense")


def test_files_stay_small():
    for path in files():
        assert len(path.read_text().splitlines()) <= 420, path
