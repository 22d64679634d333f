"""Settings of the documentation site; ``make docs`` builds it."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

project = "proscale"
copyright = "the authors of proscale"
(release,) = re.findall(r'__version__ = "(.+)"', (ROOT / "proscale" / "__init__.py").read_text())

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

# A page of the API reference for each module, made anew from the docstrings in every build.
apidoc_modules = [
    {
        "path": "../proscale",
        "destination": "api",
        "exclude_patterns": ["../proscale/cli", "../proscale/ops/triton_kernels.py"],
        "separate_modules": True,
        "module_first": True,
        "include_private": False,
    }
]
apidoc_automodule_options = {"members", "show-inheritance"}
# A name is documented in its own module, not in the packages that export it, too.
autodoc_default_options = {"ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
default_role = "code"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = f"proscale {release}"


# Pages that include a file from outside of the site; links to the file lead to the page.
INCLUDED = {"datasets/README.md": "dataset_layout.md", "benchmarks/README.md": "benchmarks.md"}


def link_to_pages(app: Sphinx, name: str, content: list[str]) -> None:
    """Rewrite the links of a page to the files in ``INCLUDED``."""
    for file, page in INCLUDED.items():
        content[0] = content[0].replace(f"](../{file}", f"]({page}")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_to_pages)
