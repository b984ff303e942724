"""The page in a real browser: with a stub in the place of Pyodide, and with Pyodide where it is.

The stub shows what the page and its worker do: mounting, ranges, errors, names. No package
registry has a release of Pyodide with numpy and ml_dtypes; where ``TORCHZIP_PYODIDE`` is the folder
of one, the same tests run with it, and those that need Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.browser import DESKTOP, PHONE, SMALL_PHONE
from tests.remote.range_server import Answer, RangeServer, serving
from torchzip.web.site import server, site_files

_STUB = Path(__file__).with_name("stub.mjs")
EVIL = "<img src=x onerror=\"document.title='run'\">"


def stub_folder(folder: Path) -> Path:
    """Return a folder like that of Pyodide, with the stub in it."""
    folder.mkdir()
    (folder / "pyodide.mjs").write_bytes(_STUB.read_bytes())
    packages = {
        name: {"file_name": f"{name}.whl", "depends": []} for name in ("numpy", "ml-dtypes")
    }
    (folder / "pyodide-lock.json").write_text(json.dumps({"packages": packages}))
    for name in (
        "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip", "numpy.whl", "ml-dtypes.whl",
    ):  # fmt: skip
        (folder / name).write_bytes(b"")
    return folder


@contextlib.contextmanager
def served(pyodide: Path) -> Iterator[str]:
    with server(site_files(pyodide), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of the page with the stub."""
    with served(stub_folder(tmp_path_factory.mktemp("stub") / "pyodide")) as address:
        yield address


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    """Give the address of the page with Pyodide."""
    folder = os.environ.get("TORCHZIP_PYODIDE")
    if folder is None:
        pytest.skip("TORCHZIP_PYODIDE is not the folder of a release of Pyodide")
    with served(Path(folder)) as address:
        yield address


@pytest.fixture(params=["stub", pytest.param("real", marks=pytest.mark.long)])
def address(request: pytest.FixtureRequest) -> str:
    """Return the address of the page, with each of the two."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a checkpoint."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    rng = np.random.default_rng(0)
    weights = {f"layers.{each}.weight": rng.standard_normal((64, 64)) for each in range(40)}
    tz.save({**weights, EVIL: np.ones(3), "step": 7}, path)
    return path


class Page:
    """The page in a tab of its own, and what went wrong there."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": DESKTOP, **options})
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(60_000)
        self.troubles: list[str] = []
        self.tab.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.requests: list[tuple[str, str]] = []
        self.tab.on("request", lambda request: self.requests.append((request.method, request.url)))
        self.tab.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.tab.goto(address)
        self.wait("!at('file').disabled || !at('error').hidden")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.context.close()
        assert exc[0] is not None or self.troubles == []

    def wait(self, condition: str) -> None:
        self.tab.wait_for_function(condition)

    def look(self, script: str) -> Any:
        return self.tab.evaluate(script)

    def choose(self, *paths: Path) -> None:
        self.tab.set_input_files("#file", list(paths))
        self.done()

    def ask(self, url: str) -> None:
        self.tab.fill("#url", url)
        self.tab.press("#url", "Enter")
        self.done()

    def done(self) -> None:
        self.wait("at('stop').hidden && (!at('result').hidden || !at('error').hidden)")

    @property
    def error(self) -> str:
        return str(self.tab.text_content("#error")) if self.tab.is_visible("#error") else ""

    @property
    def listing(self) -> str:
        return str(self.tab.text_content("#list"))

    @property
    def nbytes(self) -> int:
        """What the page says that it has read, rounded."""
        found = re.search(r"read ([\d.]+) (\w+)\.", self.tab.inner_text("#doing"))
        assert found is not None
        unit = {"bytes": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}[found[2]]
        return round(float(found[1]) * unit)


def _shared(status: int, headers: dict[str, str], body: bytes) -> Answer:
    """Let pages of other sites read a file, as far as they need."""
    allowed = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": "Content-Range",
    }
    return status, headers | allowed, body


@pytest.fixture
def web(model: Path) -> Iterator[RangeServer]:
    """Give a server of the checkpoint that allows pages of other sites to read it."""
    with serving({"model.pt": model.read_bytes(), "bad.pt": b"hello"}) as made:
        made.change = _shared
        yield made


# -- files -----------------------------------------------------------------------------------------


def test_choose(browser: Any, address: str, model: Path) -> None:
    """A file is shown under its name, and the keyboard goes on from there. Nothing is sent."""
    with Page(browser, address) as page:
        assert ("GET", address + "torchzip.zip") in page.requests
        page.requests.clear()
        page.choose(model)
        page.tab.frame_locator("#report").locator("body").wait_for()
        assert [url.split(":")[0] for _, url in page.requests] == ["blob"]  # the report
        assert page.error == ""
        assert page.tab.inner_text("#name") == "model.pt"
        assert page.look("document.activeElement.id") == "name"
        assert re.search(r"(^|[^/])model\.pt", page.listing)
        assert page.tab.get_attribute("#save", "download") == "model.pt.html"


def test_drop(browser: Any, address: str, model: Path) -> None:
    """Anywhere on the page; and again, with another file."""
    with Page(browser, address) as page:
        for name in ("a.pt", "b.pt"):
            page.look(f"""async () => {{
              const bytes = Uint8Array.from({list(model.read_bytes()[:])});
              const dropped = new DataTransfer();
              dropped.items.add(new File([bytes], "{name}"));
              document.querySelector("h1").dispatchEvent(new DragEvent("drop", {{
                dataTransfer: dropped, bubbles: true, cancelable: true,
              }}));
            }}""")
            page.done()
            assert page.error == ""
            assert name in page.listing


def test_several_files(browser: Any, stub: str, model: Path, tmp_path: Path) -> None:
    """They are a folder."""
    (tmp_path / "other.pt").write_bytes(model.read_bytes())
    with Page(browser, stub) as page:
        page.choose(model, tmp_path / "other.pt")
        assert page.tab.inner_text("#name") == "model.pt, other.pt"
        assert page.listing.startswith("model.pt,other.pt PK")


def test_not_a_checkpoint(browser: Any, address: str, model: Path, tmp_path: Path) -> None:
    """The error is shown in the place of the checkpoint before, and another file can be opened."""
    (tmp_path / "bad.pt").write_bytes(b"hello")
    with Page(browser, address) as page:
        page.choose(model)
        page.choose(tmp_path / "bad.pt")
        assert page.error.startswith("bad.pt: not a checkpoint")
        assert not page.tab.is_visible("#result")
        page.choose(model)
        assert page.error == ""
        assert page.tab.is_visible("#result")


def test_hostile_names(browser: Any, address: str, model: Path, tmp_path: Path) -> None:
    """Names of files are shown as they are, and nothing in them is run."""
    path = tmp_path / f"{EVIL}.pt".replace("/", "")
    path.write_bytes(model.read_bytes())
    broken = tmp_path / f"{EVIL}.txt"
    broken.write_bytes(b"hello")
    with Page(browser, address) as page:
        page.choose(path)
        assert page.tab.inner_text("#name") == path.name
        page.choose(broken)
        assert broken.name in page.error
        assert page.look("document.querySelector('img')") is None
        assert page.look("document.title") == "Open a checkpoint · torchzip"


def test_the_report_is_kept_out(browser: Any, stub: str, model: Path) -> None:
    """A script in the frame of the report does not reach the page."""
    with Page(browser, stub) as page:
        page.choose(model)
        page.tab.frame_locator("#report").locator("#said", has_text="kept out").wait_for()
        assert page.look("document.title") == "Open a checkpoint · torchzip"


def test_changed_while_open(browser: Any, stub: str, model: Path, tmp_path: Path) -> None:
    """A file that has changed since it was chosen is not read on."""
    path = tmp_path / "model.pt"
    path.write_bytes(model.read_bytes())
    with Page(browser, stub) as page:
        page.choose(path)
        path.write_bytes(b"PK" + model.read_bytes())
        page.tab.click("#check")
        page.done()
        assert page.error.startswith("model.pt: ")
        assert "could not be read" in page.error


# -- URLs ------------------------------------------------------------------------------------------


def test_url(browser: Any, address: str, web: RangeServer) -> None:
    """A file on another server is read by ranges."""
    with Page(browser, address) as page:
        page.ask(web.url + "model.pt?x=1")
        assert page.error == ""
        assert page.tab.inner_text("#name") == "model.pt"
        assert all("Range" in request.headers for request in web.requests)
        assert len(web.requests) < 50


def test_url_without_content_range(browser: Any, stub: str, web: RangeServer) -> None:
    """The size comes from a HEAD, where the header of the range is for the server's own pages."""
    web.change = lambda status, headers, body: (
        status, headers | {"Access-Control-Allow-Origin": "*"}, body,
    )  # fmt: skip
    with Page(browser, stub) as page:
        page.ask(web.url + "model.pt")
        assert page.error == ""
        assert page.listing.startswith("model.pt PK")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda status, headers, body: (status, headers, body), "Access-Control-Allow-Origin"),
        (lambda *answer: _shared(404, {}, b""), "answers 404"),
        (lambda status, headers, body: _shared(200, headers, body), "does not give parts of files"),
    ],
    ids=["no CORS", "missing", "no ranges"],
)
def test_url_errors(browser: Any, stub: str, web: RangeServer, change: Any, message: str) -> None:
    """What is wrong, and what to do."""
    web.change = change
    with Page(browser, stub) as page:
        page.ask(web.url + "model.pt")
        assert page.error.startswith(web.url + "model.pt")
        assert message in page.error


def test_no_server(browser: Any, stub: str) -> None:
    """No connection looks like a refusal to a page, and the message says both."""
    with Page(browser, stub) as page:
        page.ask("http://127.0.0.1:9/model.pt")
        assert "Either there is no such server" in page.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda status, headers, body: _shared(
                status, headers | {"Last-Modified": "Tue, 01 Dec 2026 10:00:00 GMT"}, body
            ),
            "was replaced",
        ),
        (lambda status, headers, body: _shared(status, headers, body[:-1]), "were expected"),
        (lambda *answer: _shared(500, {}, b""), "answers 500"),
    ],
    ids=["replaced", "short", "failing"],
)
def test_url_fails_later(
    browser: Any, stub: str, web: RangeServer, change: Any, message: str
) -> None:
    """What goes wrong while Python reads is said as it is, not as an I/O error."""
    web.changes = [_shared]
    web.change = change
    with Page(browser, stub) as page:
        page.ask(web.url + "model.pt")
        assert message in page.error


# -- the page --------------------------------------------------------------------------------------


def test_keyboard(browser: Any, stub: str, model: Path) -> None:
    """Tab goes through what can be used, in the order of the page; the views are switched."""
    with Page(browser, stub) as page:
        page.choose(model)
        page.tab.click("h1")  # the page begins here
        found = []
        for _ in range(7):
            page.tab.keyboard.press("Tab")
            found.append(page.look("document.activeElement.id || document.activeElement.tagName"))
        assert found == ["file", "url", "BUTTON", "show-report", "show-list", "check", "save"]
        page.tab.focus("#show-list")
        page.tab.keyboard.press("Enter")
        assert page.tab.is_visible("#list")
        assert not page.tab.is_visible("#report")
        assert page.tab.get_attribute("#show-list", "aria-pressed") == "true"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE, SMALL_PHONE], ids=["desktop", "phone", "360"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_widths(browser: Any, stub: str, model: Path, viewport: Any, scheme: str) -> None:
    """Nothing is wider than the screen, and the colours are those that were asked for."""
    with Page(browser, stub, viewport=viewport, color_scheme=scheme) as page:
        for _ in range(2):
            assert page.look("document.documentElement.scrollWidth") <= viewport["width"]
            page.choose(model)
        ground = page.look("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(248, 248, 245)" if scheme == "light" else "rgb(20, 23, 26)")


def test_stop(browser: Any, stub: str, web: RangeServer) -> None:
    """What takes too long is ended, and the page begins again."""
    with Page(browser, stub) as page:
        web.delay_s = 60
        page.tab.fill("#url", web.url + "model.pt")
        page.tab.press("#url", "Enter")
        page.tab.click("#stop")
        page.wait("!at('file').disabled")
        assert "is ready" in page.tab.inner_text("#doing")
        web.delay_s = 0


def test_python_does_not_start(browser: Any, tmp_path: Path) -> None:
    """It is said, and nothing can be opened."""
    folder = stub_folder(tmp_path / "pyodide")
    (folder / "pyodide.mjs").write_text("export function loadPyodide() { throw new Error('odd') }")
    with served(folder) as address, Page(browser, address) as page:
        assert page.error == "Python did not start. odd"
        assert page.tab.is_disabled("#file")


# -- with Python -----------------------------------------------------------------------------------


@pytest.mark.long
def test_report_and_listing(browser: Any, real: str, model: Path) -> None:
    """They are those of this computer's Python; hostile names in the file are text in both."""
    with Page(browser, real) as page:
        page.choose(model)
        report = page.tab.frame_locator("#report")
        assert report.locator("h1").inner_text() == "model.pt"
        assert EVIL in page.listing
        assert report.locator("img").count() == 0
        report.locator("a", has_text="All tensors").click()
        assert "layers.39.weight" in report.locator("body").inner_text()
        page.tab.click("#check")
        page.done()
        report.locator("text=Every CRC").or_(report.locator("#verification")).first.wait_for()
        assert page.nbytes > model.stat().st_size
        page.tab.click("#show-list")
        lines = page.listing.splitlines()
        assert sum(line.startswith("layers.") for line in lines) == 40


@pytest.mark.long
def test_damaged(browser: Any, real: str, model: Path, tmp_path: Path) -> None:
    """A flipped bit shows when all data is read; a file that is cut short shows at once."""
    data = bytearray(model.read_bytes())
    data[300_000] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    (tmp_path / "short.pt").write_bytes(data[:-1000])
    with Page(browser, real) as page:
        page.choose(tmp_path / "flipped.pt")
        assert page.error == ""
        page.tab.click("#check")
        page.done()
        assert "CRC" in page.error
        assert page.tab.is_visible("#result")
        page.choose(tmp_path / "short.pt")
        assert page.error.startswith("short.pt")


@pytest.mark.long
def test_shards(browser: Any, real: str, model: Path, tmp_path: Path) -> None:
    """The files of a model that was cut into shards are opened together."""
    report = tz.convert(model, tmp_path / "model.safetensors.index.json", max_shard_size="500KB")
    assert len(report.files) > 2
    with Page(browser, real) as page:
        page.choose(*map(Path, report.files))
        assert page.error == ""
        report_title = page.tab.frame_locator("#report").locator("h1").inner_text()
        assert report_title == "model.safetensors.index.json"
        assert "layers.39.weight" in page.listing


class _Holes:
    """A file object that leaves a hole for large writes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def write(self, data: Any) -> int:
        nbytes = memoryview(data).nbytes
        if nbytes < 1 << 20:
            return self._file.write(data)
        return self._file.seek(nbytes, os.SEEK_CUR) and nbytes

    def close(self) -> None:
        self._file.close()


@pytest.mark.long
def test_five_gigabytes(browser: Any, real: str, tmp_path: Path) -> None:
    """They are opened by reading some kilobytes; Python's memory does not grow by them."""
    file: Any = _Holes(tmp_path / "big.pt")
    tz.save({"big": np.zeros(5 << 30, np.uint8), "last": np.arange(3)}, file, crc32=False)
    file.close()
    assert (tmp_path / "big.pt").stat().st_size > 5 << 30
    with Page(browser, real) as page:
        page.choose(tmp_path / "big.pt")
        assert page.error == ""
        assert "5.4 GB" in page.tab.inner_text("#doing")
        assert page.nbytes < 1_000_000
        assert re.search(r"^last +int64", page.listing, re.MULTILINE)
