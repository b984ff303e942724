"""The page of ``torchzip report`` in a real browser: Debian's Chromium, without a screen."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.browser import DESKTOP, PHONE, SMALL_PHONE
from torchzip.tools import report

EVIL = "</script><img src=x onerror=document.title='run'><script>document.title='run'</script>"


def model() -> dict[str, Any]:
    """Return a training checkpoint of three dtypes, with a tie and hostile names."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {
        f"layers.{layer}.{part}.weight": rng.standard_normal((8 * (layer + 1), 50), np.float32)
        for layer in range(6)
        for part in ("attention", "mlp")
    }
    weights["embed.weight"] = rng.standard_normal((100, 50)).astype(np.float16)
    weights["head.weight"] = weights["embed.weight"]
    return {
        "model": weights, "steps": np.arange(30), EVIL: np.ones(700), "step": 7, "text": EVIL,
        "x\u202e\x1b[31m": np.zeros(3), "long" * 100: np.zeros(400), "empty": np.zeros((0, 3)),
    }  # fmt: skip


def many() -> dict[str, Any]:
    return {
        f"blocks.{number // 10}.layer{number % 10}.weight": np.ones(number + 1, np.float32)
        for number in range(1000)
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the pages that the tests look at."""
    folder = tmp_path_factory.mktemp("pages")
    objects = {
        "model": model(), "many": many(), "one": np.arange(5.0), "none": {"step": 1},
        "flat": {f"w{number}": np.ones(number + 1) for number in range(1000)},
    }  # fmt: skip
    made = {}
    for name, value in objects.items():
        tz.save(value, folder / f"{name}.pt")
        made[name] = folder / f"{name}.html"
        report(folder / f"{name}.pt", made[name])
    return made


class Opened:
    """A page in a tab of its own, and what went wrong there."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": DESKTOP, **options})
        self.tab = self.context.new_page()
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.troubles.append(message.text))
        self.tab.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.context.close()

    def look(self, script: str) -> Any:
        return self.tab.evaluate(script)

    def crumbs(self) -> str:
        return str(self.tab.inner_text("#crumbs"))


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, SMALL_PHONE], ids=["desktop", "phone", "360"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["model", "many", "one", "none", "flat"])
def test_opens(browser: Any, pages: dict[str, Path], name: str, scheme: str, viewport: Any) -> None:
    """No complaint, no request beside the file itself, nothing wider than the screen."""
    with Opened(browser, pages[name], color_scheme=scheme, viewport=viewport) as page:
        assert page.troubles == []
        assert page.requests == [pages[name].as_uri()]
        width = viewport["width"]
        assert page.look("document.documentElement.scrollWidth") <= width
        assert page.look("document.title") == f"{name}.pt · checkpoint report"


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """() => {
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = new Map();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const pair = `${getComputedStyle(element).color} on ${ground(element)}`;
    found.set(pair, element.outerHTML.slice(0, 90));
  }
  return [...found];
}"""
TILE_COLOURS = """(number) => {
  const tile = document.createElement("div");
  tile.className = `tile d${number}`;
  document.body.append(tile);
  const style = getComputedStyle(tile);
  return `${style.color} on ${style.backgroundColor}`;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    """Every text has the contrast of WCAG's AA, 4.5 to 1; so have the colours that were not met."""
    with Opened(browser, pages["model"], color_scheme=scheme) as page:
        found = page.look(CONTRASTS)
        for number in range(8):
            pair = page.tab.evaluate(TILE_COLOURS, number)
            found.append([pair, f"d{number}"])
    assert len(found) > 10
    for pair, where in found:
        one, other = sorted(map(_luminance, pair.split(" on ")))
        assert (other + 0.05) / (one + 0.05) >= 4.5, (pair, where)


TOP_TILES = """() => {
  const map = document.getElementById("map").getBoundingClientRect();
  return {
    area: map.width * map.height,
    tiles: [...document.querySelectorAll(".tile.top")].map((tile) => {
      const box = tile.getBoundingClientRect();
      return { bytes: Number(tile.dataset.bytes), area: box.width * box.height,
               inside: box.left >= map.left - 0.5 && box.right <= map.right + 0.5
                 && box.top >= map.top - 0.5 && box.bottom <= map.bottom + 0.5 };
    }),
  };
}"""


def covering_tiles(page: Opened) -> tuple[float, list[dict[str, Any]]]:
    """Return the area of the map and its tiles, which have that area together."""
    found = page.look(TOP_TILES)
    area, tiles = found["area"], found["tiles"]
    assert sum(tile["area"] for tile in tiles) == pytest.approx(area, rel=0.01)
    return area, tiles


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["model", "many", "one", "flat"])
def test_treemap(browser: Any, pages: dict[str, Path], name: str, viewport: Any) -> None:
    """The tiles cover the map, and the area of each is its share of the bytes."""
    with Opened(browser, pages[name], viewport=viewport) as page:
        area, tiles = covering_tiles(page)
        total = sum(tile["bytes"] for tile in tiles)
        with tz.lazy_load(pages[name].with_suffix(".pt")) as checkpoint:
            stored = {
                id(tensor.spec.storage): tensor.spec.storage.nbytes
                for tensor in checkpoint.values()
            }
        assert total == sum(stored.values())
        assert all(tile["inside"] for tile in tiles)
        for tile in tiles:
            expected = tile["bytes"] / total * area
            # Rounded to 1/64 of a pixel on each side.
            assert tile["area"] == pytest.approx(expected, rel=0.02, abs=3)


def test_zoom_by_mouse(browser: Any, pages: dict[str, Path]) -> None:
    """A click goes into a module, a crumb back; the table below says what is there."""
    with Opened(browser, pages["model"]) as page:
        assert page.crumbs() == "everything"
        page.tab.click(".tile.top.open > button")
        assert page.crumbs() == "everything/model"
        assert page.tab.inner_text("#parts tbody th >> nth=0") == "layers"
        page.tab.click(".tile.top.open > button >> nth=0")
        assert page.crumbs() == "everything/model/layers"
        assert page.tab.inner_text("#parts tbody th >> nth=0") == "5"
        covering_tiles(page)
        page.tab.click("#crumbs button >> text=everything")
        assert page.crumbs() == "everything"
        page.tab.click("#parts tbody button >> text=model")
        assert page.crumbs() == "everything/model"
        assert page.troubles == []


def test_zoom_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    """Tab reaches the modules, Enter goes into one, Escape goes back."""
    with Opened(browser, pages["model"]) as page:
        for _ in range(40):
            page.tab.keyboard.press("Tab")
            if page.look("document.activeElement.matches('.tile.top > button')"):
                break
        label = page.look("document.activeElement.getAttribute('aria-label')")
        assert label.startswith("model, 14 tensors, ")
        assert page.look("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.tab.is_visible("#tip")
        page.tab.keyboard.press("Enter")
        assert page.crumbs() == "everything/model"
        page.tab.keyboard.press("Tab")
        page.tab.keyboard.press("Enter")
        assert page.crumbs() == "everything/model/layers"
        page.tab.keyboard.press("Escape")
        page.tab.keyboard.press("Escape")
        assert page.crumbs() == "everything"


def test_tooltip(browser: Any, pages: dict[str, Path]) -> None:
    """Exact sizes, and what it is."""
    with Opened(browser, pages["model"]) as page:
        page.tab.hover(".tile.leaf >> text=</script>")
        tip = page.tab.inner_text("#tip")
        assert "5,600 bytes" in tip
        assert "float64 · 700" in tip
        assert "</script><img" in tip


def names(page: Opened) -> list[str]:
    made: list[str] = page.look(
        "[...document.querySelectorAll('#tensors-table tbody tr')]"
        ".filter((row) => !row.hidden).map((row) => row.cells[0].textContent)"
    )
    return made


def test_search(browser: Any, pages: dict[str, Path]) -> None:
    """What is typed has to be in the name, the dtype, the shape or the notes."""
    with Opened(browser, pages["model"]) as page:
        assert len(names(page)) == 19
        page.tab.fill("#search", "LAYERS.3")
        assert names(page) == [f"model.layers.3.{part}.weight" for part in ("attention", "mlp")]
        assert page.tab.inner_text("#found") == "2 of 19"
        page.tab.fill("#search", "float16 tied")
        assert names(page) == ["model.head.weight"]
        page.tab.fill("#search", "nothing at all")
        assert names(page) == []
        page.tab.fill("#search", "")
        assert len(names(page)) == 19
        assert page.tab.inner_text("#found") == ""


def test_sort(browser: Any, pages: dict[str, Path]) -> None:
    """By name and by size, up, down, and back to the order of the file."""
    with Opened(browser, pages["many"]) as page:
        before = names(page)
        page.tab.click("#tensors-table th button >> text=Size")
        assert names(page) == before[::-1]
        heads = "[...document.querySelectorAll('#tensors-table th')].map(h => h.ariaSort)"
        assert page.look(heads)[1] == "descending"
        page.tab.click("#tensors-table th button >> text=Size")
        assert names(page) == before
        page.tab.click("#tensors-table th button >> text=Name")
        assert page.look(heads)[:2] == ["ascending", None]
        assert names(page)[1] == "blocks.0.layer1.weight"
        page.tab.click("#tensors-table th button >> text=Name")
        assert names(page)[0] == "blocks.99.layer9.weight"
        page.tab.click("#tensors-table th button >> text=Name")
        assert names(page) == before


def test_hostile_names_are_inert(browser: Any, pages: dict[str, Path]) -> None:
    """Names from the file are text wherever they stand; nothing of them is run or made."""
    with Opened(browser, pages["model"]) as page:
        page.tab.fill("#search", "onerror")
        page.tab.hover(".tile.leaf >> text=</script>")
        assert page.look("document.querySelectorAll('img').length") == 0
        assert page.look("document.scripts.length") == 2
        assert page.look("document.title") == "model.pt · checkpoint report"
        assert any(EVIL[:40] in name for name in names(page))
        assert page.troubles == []


def test_the_policy_holds(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """What a mistake in escaping would let through is not run, nor fetched."""
    run = "document.title='run'"
    broken = f"<img src=https://example.org/x onerror={run}><script>{run}</script>"
    path = tmp_path / "broken.html"
    path.write_text(pages["model"].read_text("utf-8").replace("<main", broken + "<main"), "utf-8")
    with Opened(browser, path) as page:
        assert page.look("document.title") == "model.pt · checkpoint report"
        assert page.look("performance.getEntriesByType('resource').length") <= 1
        refused = [text for text in page.troubles if "Content Security Policy" in text]
        assert any("https://example.org/x" in text for text in refused)
        assert any("inline script" in text for text in refused)


def test_a_thousand_tensors(browser: Any, pages: dict[str, Path]) -> None:
    """Below a megabyte, and few enough nodes to be there at once."""
    for name in ("many", "flat"):
        assert pages[name].stat().st_size < 1_000_000
        with Opened(browser, pages[name]) as page:
            assert len(names(page)) == 1000
            assert page.look("document.querySelectorAll('*').length") < 25_000
            assert page.look("document.querySelectorAll('.tile').length") <= 2500
            page.tab.fill("#search", "w999" if name == "flat" else "blocks.99.")
            assert len(names(page)) == (1 if name == "flat" else 10)


def test_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    """The tables, histograms and figures are there."""
    with Opened(browser, pages["model"], java_script_enabled=False) as page:
        assert page.troubles == []
        assert page.tab.locator("#tensors-table tbody tr").count() == 19
        assert page.tab.locator("#parts tbody tr").count() == 6
        assert page.tab.locator("svg.histogram").count() > 10
        assert not page.tab.is_visible("#search")
        assert not page.tab.is_visible("#map")


def test_structure(browser: Any, pages: dict[str, Path]) -> None:
    """One h1, no level of headings skipped, every table with a name and heads, labels for all."""
    with Opened(browser, pages["model"]) as page:
        levels = page.look("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert page.look("document.documentElement.lang") == "en"
        assert page.look(
            "[...document.querySelectorAll('table')].every((t) => t.caption &&"
            " [...t.tHead.rows[0].cells].every((c) => c.scope === 'col'))"
        )
        links = page.look(
            "[...document.querySelectorAll('[href]')].map(a => a.attributes.href.value)"
        )
        assert all(link.startswith("#") for link in links)
        unnamed = page.look(
            "[...document.querySelectorAll('button')]"
            ".filter((b) => !(b.ariaLabel || b.textContent.trim())).length"
        )
        assert unnamed == 0
        ids = page.look("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))


def test_print_is_on_white(browser: Any, pages: dict[str, Path]) -> None:
    """Whoever reads on black prints black on white."""
    with Opened(browser, pages["model"], color_scheme="dark") as page:
        ground = "getComputedStyle(document.querySelector('.tile.leaf')).backgroundColor"
        dark = page.look(ground)
        page.tab.emulate_media(media="print", color_scheme="dark")
        assert _luminance(dark) < 0.2 < 0.6 < _luminance(page.look(ground))
        assert _luminance(page.look("getComputedStyle(document.body).color")) == 0


def test_resize_and_print(browser: Any, pages: dict[str, Path]) -> None:
    """The map is laid out anew for another width; on paper it is there, the controls are not."""
    with Opened(browser, pages["model"]) as page:
        page.tab.set_viewport_size(PHONE)
        page.tab.wait_for_function("document.getElementById('map').clientWidth < 400")
        covering_tiles(page)
        page.tab.emulate_media(media="print")
        assert page.tab.is_visible("#map")
        assert not page.tab.is_visible("#search")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_motion(browser: Any, pages: dict[str, Path], motion: str) -> None:
    """Nothing moves for those who do not want it."""
    with Opened(browser, pages["model"], reduced_motion=motion) as page:
        page.tab.click(".tile.top.open > button")
        name = page.look("getComputedStyle(document.getElementById('map')).animationName")
        assert name == ("none" if motion == "reduce" else "opened")


def test_data_is_json(pages: dict[str, Path]) -> None:
    """The data in the page is JSON without a bracket of HTML."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>',
        pages["model"].read_text("utf-8"),
    )
    assert found is not None
    assert not set("<>&") & set(found[1])
    assert json.loads(found[1])["dtypes"][0] in ("float32", "float64")
