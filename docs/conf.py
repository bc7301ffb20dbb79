"""Settings of the documentation: sphinx-build -W docs docs/_build."""

import pyterrier_mvret

project = "pyterrier_mvret"
release = version = pyterrier_mvret.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_ivar = True  # names like "tokens" are attributes of several classes, and words
exclude_patterns = ["_build"]
html_theme = "furo"
