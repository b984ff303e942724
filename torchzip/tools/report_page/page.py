"""The whole page: skeleton, style and script are files beside this module."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from string import Template

import torchzip.tools.report_page as package
from torchzip.tools.report_page import sections
from torchzip.tools.report_page.contents import Contents
from torchzip.tools.report_page.markup import escaped, json_text
from torchzip.tools.report_page.size_tree import size_tree


@cache
def _asset(name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")


def build_page(contents: Contents) -> str:
    """Return the page. The same contents give the same bytes.

    Its content security policy lets its own style and script pass, by their hashes, and
    nothing else: not even what a mistake in escaping would let through.
    """
    sums = sorted(contents.outline.by_dtype.items(), key=lambda item: -item[1].nbytes)
    dtypes = [dtype for dtype, _ in sums]
    has_tensors = bool(contents.outline.tensors)
    parts = [
        ("sizes", "Sizes", sections.sizes(contents, dtypes) if has_tensors else ""),
        ("dtypes", "Dtypes", sections.by_dtype(contents) if has_tensors else ""),
        (
            "values",
            "Largest tensors",
            sections.distributions(contents) if contents.distributions else "",
        ),
        ("shared", "Ties and views", sections.sharing(contents)),
        ("unreached", "Unreached bytes", sections.unreached(contents)),
        ("names", "Classes", sections.names(contents)),
        ("other", "Other values", sections.values(contents)),
        ("verification", "Verification", sections.verification(contents)),
        ("tensors", "All tensors", sections.tensors(contents) if has_tensors else ""),
    ]
    style, script = _asset("page.css"), _asset("page.js")
    data = {"dtypes": dtypes, "tree": size_tree(contents.tree, dtypes)} if has_tensors else None
    return Template(_asset("page.html")).substitute(
        style=style,
        script=script if data else "",
        style_hash=_hash(style),
        script_hash=_hash(script if data else ""),
        data=json_text(data),
        file=escaped(contents.file),
        format=escaped(contents.label),
        summary=sections.summary(contents),
        links="".join(f'<li><a href="#{at}">{title}</a></li>' for at, title, html in parts if html),
        sections="\n".join(html for _, _, html in parts if html),
    )


def _hash(text: str) -> str:
    """Return the name of an inline script or style in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
