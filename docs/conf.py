"""The documentation site: ``sphinx-build -W --keep-going -b html docs FOLDER``.

Needs the extra ``docs``. The pages are Markdown, also for reading in the repository. Links that
lead out of this folder become links to the repository, or to the page that includes the file.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from sphinx.util import logging

_DOCS = Path(__file__).resolve().parent
_ROOT = _DOCS.parent
sys.path.insert(0, str(_ROOT))

import torchzip  # noqa: E402

_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_REPOSITORY = _PROJECT["urls"]["Repository"]
#: Files of the repository that are pages here: each has a file that includes it.
_INCLUDED = {
    _ROOT / "ARCHITECTURE.md": _DOCS / "architecture.md",
    _ROOT / "CHANGELOG.md": _DOCS / "changelog.md",
    _ROOT / "CONTRIBUTING.md": _DOCS / "contributing.md",
    _ROOT / "SECURITY.md": _DOCS / "security.md",
    _ROOT / "README.md": _DOCS / "index.md",
}

project = "torchzip"
author = "the torchzip developers"
copyright = f"{author}. Apache-2.0"
version = release = torchzip.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs.command_pages"]
exclude_patterns = ["*.py"]
smartquotes = False  # which makes a dash of the two hyphens of an option

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

napoleon_google_docstring = False
default_role = "py:obj"  # single backticks in docstrings: a link where the name has a page
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 66
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"torchzip {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "source_repository": _REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

_PAGE = re.compile(r"\bdocs/(\w+)\.md")
_LINK = re.compile(r"(?<!!)(\[[^\]]*\]\()([^)#:\s]+)(#[^)\s]*)?\)")


def _linked(text: str, path: Path, docname: str) -> str:
    """Return Markdown of a file as a page can have it: with links that lead somewhere there."""
    page = (_DOCS / docname).parent

    def link(match: re.Match[str]) -> str:
        target = (path.parent / match[2]).resolve()
        anchor = match[3] or ""
        if not target.exists():
            logging.getLogger(__name__).warning("%s: no %s", path, match[2], location=docname)
            return match[0]
        target = _INCLUDED.get(target, target)
        if target.is_relative_to(_DOCS):
            return f"{match[1]}{Path(os.path.relpath(target, page)).as_posix()}{anchor})"
        kind = "tree" if target.is_dir() else "blob"
        place = target.relative_to(_ROOT).as_posix()
        return f"{match[1]}{_REPOSITORY}/{kind}/main/{place}{anchor})"

    return _LINK.sub(link, text)


def _read_page(app: Any, docname: str, source: list[str]) -> None:
    source[0] = _linked(source[0], Path(app.env.doc2path(docname)), docname)


def _read_included(app: Any, path: Path, docname: str, source: list[str]) -> None:
    source[0] = _linked(source[0], _DOCS / path, docname)


def _find_name(app: Any, env: Any, node: Any, shown: Any) -> Any:
    """Look for a name of a docstring among those of the package, as for `LazyTensor` in `lazy`."""
    if node.get("refdomain") != "py":
        return None
    name = f"torchzip.{node['reftarget']}"
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], name, node, shown
    )


def _link_pages(app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make links of the paths of pages in a docstring."""
    lines[:] = [_PAGE.sub(r":doc:`/\1`", line) for line in lines]


def setup(app: Any) -> None:
    """Make links that lead somewhere of those in files and docstrings."""
    app.connect("source-read", _read_page)
    app.connect("include-read", _read_included)
    app.connect("missing-reference", _find_name)
    app.connect("autodoc-process-docstring", _link_pages)
