"""The documentation site builds without a warning, its links lead somewhere, and all is on it.

That the examples on its pages run is in tests/test_pages.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import torchzip as tz
from docs.command_pages import markdown
from tests.browser import DESKTOP, PHONE
from torchzip.cli.main import build_parser

ROOT = Path(__file__).parents[1]
#: Set in CI: the site must build there.
REQUIRE_DOCS = "TORCHZIP_REQUIRE_DOCS"
#: Tags that load what an attribute names.
_LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
#: Links that a page has and does not load.
_NOT_LOADED = ("canonical", "next", "prev", "index", "search")


class Page(HTMLParser):
    """What a page of the site links to, loads, and has anchors for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what a tag names."""
        given = {name: value or "" for name, value in attrs}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag in _LOADING and _LOADING[tag] in given and given.get("rel") not in _NOT_LOADED:
            self.loaded.add(given[_LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; skip without sphinx, unless it has to be there."""
    missing = [
        name for name in ("sphinx", "furo", "myst_parser") if importlib.util.find_spec(name) is None
    ]
    if missing and not os.environ.get(REQUIRE_DOCS):
        pytest.skip(f"no {', '.join(missing)}; install them: pip install 'torchzip[docs]'")
    made = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(made / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(made / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return made / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Return the pages by their paths."""
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_links(site: Path, pages: dict[Path, Page]) -> None:
    """A file and an anchor in it, or a URL of the web without blanks."""
    internal = 0
    for path, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                assert re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", link), (path, link)
                continue
            assert not parts.scheme, (path, link)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), (path, link)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids, (path, link)
            internal += 1
    assert internal > 1000


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    """No script, font or picture is that of another server."""
    for path, page in pages.items():
        assert [link for link in page.loaded if re.match(r"(\w+:)?//", link)] == [], path
    for path in site.rglob("*.css"):
        css = path.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:\w+:)?//", css) == [], path


def test_public_names(site: Path, pages: dict[Path, Page]) -> None:
    """Each has a place in the reference."""
    ids = {each for path in (site / "reference").glob("*.html") for each in pages[path].ids}
    modules = ("executors", "lazy", "tools", "types")
    wanted = {f"torchzip.{name}" for name in tz.__all__ if not name.startswith("__")}
    for name in modules:
        wanted.discard(f"torchzip.{name}")
        wanted.add(f"module-torchzip.{name}")
    wanted |= {f"torchzip.tools.{name}" for name in tz.tools.__all__}
    wanted |= {f"torchzip.lazy.{name}" for name in tz.lazy.__all__}
    wanted |= {f"torchzip.types.{name}" for name in tz.types.__all__}
    wanted |= {"torchzip.executors.ray", "torchzip.executors.spark"}
    assert wanted - ids == set()


def test_search(site: Path) -> None:
    """The pages are in the index that the search looks through."""
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for name in ("tutorials/convert", "reference/cli", "format", "architecture"):
        assert f'"{name}"' in index


@pytest.mark.parametrize(
    "name", ["index", "tutorials/convert", "reference/cli", "reference/api", "guarantees", "format"]
)
def test_widths(site: Path, browser: Any, name: str) -> None:
    """What is too wide for a phone is scrolled in its own box, not the page; no script fails."""
    for viewport in (DESKTOP, PHONE):
        page = browser.new_page(viewport=viewport)
        errors: list[str] = []
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert errors == []
        page.close()


def test_commands() -> None:
    """The reference has each command, option and example; the parsers take the examples."""
    made = markdown(build_parser())
    (commands,) = (each for each in build_parser()._actions if each.dest == "command")
    assert isinstance(commands.choices, dict)
    assert len(commands.choices) > 12
    for name, command in commands.choices.items():
        section = made.split(f"\n## torchzip {name}\n")[1].split("\n## ")[0]
        for action in command._actions:
            if action.dest != "help":
                word = (action.option_strings or [str(action.metavar or action.dest)])[-1]
                assert word in section, (name, word)
                assert action.help or not action.option_strings, (name, word)
        for example in command.epilog.splitlines()[1:]:
            assert f"\n{example.strip()}\n" in section
            words = shlex.split(re.split(r" [|>] ", example)[0])
            assert build_parser().parse_args(words[1:]).command == name


def test_help_as_markdown() -> None:
    """Characters with a sense in Markdown are escaped, what is code is not."""
    from docs.command_pages import _prose

    assert _prose("as --npy does, of *.pt, `a_b`") == r"as `--npy` does, of \*.pt, `a_b`"
