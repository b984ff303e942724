"""The page of `report`, without a browser: what is in it, for any file, always the same."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.formats.counting import Counted
from tests.saved import RELEASES, flipped, zipped_again
from torchzip.checkpoint.module_tree import module_tree
from torchzip.checkpoint.outline import outline
from torchzip.cli.main import main
from torchzip.errors import FormatError, is_printable
from torchzip.tools import edit, report
from torchzip.tools.report_page.size_tree import size_tree
from torchzip.types import ForeignObject, MetaTensor, QuantizedTensor, SparseTensor, TypedArray

FILES = sorted(
    path
    for path in RELEASES.rglob("*")
    if path.suffix in (".pt", ".pth", ".pt2", ".safetensors", ".bin", ".tar", ".jit")
)

#: Elements without an end tag.
_VOID = {"meta", "input", "wbr", "link", "br", "hr", "img"}


class Page(HTMLParser):
    """Sees that tags are closed in order, and collects elements, texts, and what is in scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]].append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    @property
    def data(self) -> Any:
        return json.loads(self.inside["script"][0])


def page_of(file: Any, **options: Any) -> Page:
    out = io.BytesIO()
    report(file, out, **options)
    return Page(out.getvalue().decode())


def saved(value: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    tz.save(value, path)
    return path


def test_there_are_files() -> None:
    """The golden files are there."""
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_any_file(path: Path) -> None:
    """Of each golden file a well-formed page, with all its tensors, twice the same."""
    try:
        checkpoint = tz.lazy_load(path)
    except tz.TorchZipError:
        with pytest.raises(tz.TorchZipError):
            page_of(path)
        return
    with checkpoint:
        names = list(checkpoint)
    first, second = io.BytesIO(), io.BytesIO()
    report(path, first)
    report(path, second)
    assert first.getvalue() == second.getvalue()
    page = Page(first.getvalue().decode())
    assert "Sound" in page.text
    for name in names:
        assert name in page.text


def test_nothing_is_fetched(tmp_path: Path) -> None:
    """No address is in the page, and its policy allows its own style and script only."""
    path = saved({"w": np.zeros(3)}, tmp_path)
    out = io.BytesIO()
    report(path, out)
    text = out.getvalue().decode()
    page = Page(text)
    policies = [
        attributes["content"]
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    script, style = page.inside["script"][1], page.inside["style"][0]
    hashes = [
        base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script)
    ]
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    ]
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        assert "style" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    outside = text.replace("http://www.w3.org/2000/svg", "")  # a name, in the script
    assert "http:" not in outside
    assert "https:" not in outside
    assert "url(" not in style
    assert "@import" not in style


HOSTILE = [
    "</script><img src=x onerror=alert(1)>", "<!--", "-->", "]]>", "<script>", "&lt;",
    "' onclick='", '" onclick="', "${file}", "$file", "\u2028", "\x1b[31m", "\u202e", "a\nb",
    "\x00", "<" * 500, "\u3164", "a\u2800",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str, tmp_path: Path) -> None:
    """A name is text, wherever it stands: of a tensor, a module, a value, a class, a file."""
    tied = np.zeros(100)
    value = {
        name: tied, "in": {name: np.ones(3), "tied": tied}, "text": name, f"v{name}": 1,
        # A pickle has names up to the end of a line.
        "of": ForeignObject("os", name.replace("\n", " ")), "s": {1: np.zeros(2), name + "x": name},
    }  # fmt: skip
    path = tmp_path / ("<b>' onclick='&.pt")
    with pytest.warns(UserWarning, match="torch.load"):
        tz.save(value, path)
    page = page_of(path)
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "p", "h1", "h2", "h3",
        "dl", "div", "dt", "dd", "ul", "li", "strong", "span", "nav", "main", "section", "table",
        "caption", "thead", "tbody", "tr", "th", "td", "svg", "rect", "path", "article", "code",
        "label", "input", "output", "footer", "script", "wbr", "details", "summary",
    }  # fmt: skip
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert page.inside["title"] == ["<b>' onclick='&.pt · checkpoint report"]
    assert len(page.inside["script"]) == 2
    assert is_printable("".join(page.texts).replace("\n", ""))


def test_figures(tmp_path: Path) -> None:
    """Counts, sizes, verdicts, ties and statistics are those of the file."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    bad = np.array([np.nan, np.inf, 1, 2])
    path = saved(
        {"a": {"w": weight}, "tied": weight, "bad": bad, "part": bad[1:], "n": 7}, tmp_path
    )
    text = page_of(path).text
    assert "tensors4" in text.replace(" ", "")
    assert "Sound" in text
    assert "torch.load accepts it" in text
    assert "the same tensor as a.w" in text
    assert "shares the storage of bad" in text
    assert "mean2.5" in text
    assert "NaN1" in text
    assert "infinite1" in text
    assert "NaN or infinite values of the 3 largest tensors: bad, part" in text


def test_long_tables_are_closed(tmp_path: Path) -> None:
    """A table of hundreds of values is there to be opened, with the first of them."""
    page = page_of(saved({f"value{number}": number for number in range(345)}, tmp_path))
    assert "Show 200 of 345" in page.text
    assert "value199" in page.text
    assert "value200" not in page.text
    assert "and 145 more" in page.text
    assert "Show" not in page_of(saved({"value": 1}, tmp_path)).text


def test_foreign(tmp_path: Path) -> None:
    """Classes that torch refuses are said at the top and in their table."""
    with pytest.warns(UserWarning, match="torch.load"):
        path = saved({"w": np.zeros(2), "a": ForeignObject("my.module", "Thing", ())}, tmp_path)
    text = page_of(path).text
    assert "needs weights_only=False because of my.module.Thing" in text
    assert "my.module.Thing foreign refuses".replace(" ", "") in text.replace(" ", "")


def test_other_kinds(tmp_path: Path) -> None:
    """Tensors that are not dense have rows; what has no numbers has no histogram."""
    value = {
        "sparse": SparseTensor("sparse_coo", np.array([[0, 2]]), np.array([1.5, 2.5]), (4,), True),
        "quantized": QuantizedTensor(np.array([3, 4], "uint8"), 0.5, 3),
        "meta": MetaTensor("float32", (2, 3)), "bits": TypedArray(np.zeros(4, "u1"), "bits8"),
        "empty": np.zeros((0, 5)), "scalar": np.array(1.0), "complex": np.array([3 + 4j, 0]),
    }  # fmt: skip
    page = page_of(saved(value, tmp_path))
    for told in ("sparse_coo", "quantized", "meta", "bits8", "0 × 5", "scalar", "absolute values"):
        assert told in page.text
    assert sum(tag == "article" for tag, _ in page.tags) == 1


@pytest.mark.parametrize("value", [np.arange(3.0), {"epoch": 1}, {}, [], "text"], ids=str)
def test_small_things(value: Any, tmp_path: Path) -> None:
    """A bare tensor, values alone, nothing at all."""
    page = page_of(saved(value, tmp_path))
    assert "model.pt" in page.text
    assert ("(the object itself)" in page.text) == (not isinstance(value, dict) or not value)


def test_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage of the data is said in the page; the status is 1."""
    array = np.arange(1000.0)
    path = saved({"w": array, "v": np.ones(3)}, tmp_path)
    data = path.read_bytes()
    path.write_bytes(flipped(data, data.index(array.tobytes())))
    text = page_of(path).text
    assert "Damaged" in text
    assert "record data/0" in text
    assert str(tmp_path) not in text
    assert "Damaged" not in page_of(path, read_data=False).text
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 1
    assert "CRC" in capsys.readouterr().err
    assert (tmp_path / "r.html").exists()


def test_without_structure(tmp_path: Path) -> None:
    """Of a file that cannot be opened there is no page."""
    path = tmp_path / "bad.pt"
    path.write_bytes(b"<html>")
    with pytest.raises(FormatError):
        report(path, tmp_path / "r.html")
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 1
    assert not (tmp_path / "r.html").exists()


def test_unreached_bytes(tmp_path: Path) -> None:
    """Storages of which tensors are only a part, the largest first; no section without any."""
    rows, row = np.ones((10, 1000)), np.ones(50)
    path = saved({"w": rows[:3], "v": row[:25], "whole": np.ones(5), "x": [rows, row]}, tmp_path)
    edit(path, drop="x")
    page = page_of(path)
    assert "Bytes that no tensor reaches" in page.texts
    at = page.texts.index("First tensor in the storage")
    told = [text for text in page.texts[at:] if text.strip()]
    assert told[3:9] == ["w", "56.0 kB", "80.0 kB", "v", "200 B", "400 B"]
    page = page_of(saved({"w": np.ones(5)}, tmp_path))
    assert "Bytes that no tensor reaches" not in page.texts


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_unreached_bytes_of_many_records(
    method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record is read for them, however many there are; of deflated ones nothing is said."""
    counted, reads = Counted(monkeypatch), set()
    for count in (2, 200):
        rows = [np.ones((4, 9)) for _ in range(count)]
        path = saved({"w": [each[:2] for each in rows], "x": rows}, tmp_path)
        edit(path, drop="x")
        path.write_bytes(zipped_again(path.read_bytes(), method))
        counted.forget()
        page = page_of(path, read_data=False)
        is_stored = method == zipfile.ZIP_STORED
        assert ("Bytes that no tensor reaches" in page.texts) == is_stored
        reads.add(counted.reads)
    assert len(reads) == 1


def test_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data no tensor is read."""
    path = saved({f"w{number}": np.ones(100_000) for number in range(5)}, tmp_path)
    counted = Counted(monkeypatch)
    page = page_of(path, read_data=False)
    assert counted.nbytes < 100_000
    assert "Not verified" in page.text
    assert "article" not in {tag for tag, _ in page.tags}


def test_file_objects(tmp_path: Path) -> None:
    """A checkpoint in a file object, from where it stands."""
    path = saved({"w": np.zeros(3)}, tmp_path)
    buffer = io.BytesIO(path.read_bytes())
    assert "Sound" in page_of(buffer).text


def test_overwriting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is there stays, without overwrite."""
    monkeypatch.chdir(tmp_path)
    saved({"w": np.zeros(3)}, tmp_path)
    made = report("model.pt", "r.html")
    assert made.nbytes == Path("r.html").stat().st_size
    with pytest.raises(FileExistsError):
        report("model.pt", "r.html")
    report("model.pt", "r.html", overwrite=True)
    assert main(["report", "model.pt", "-o", "r.html"]) == 2
    assert main(["report", "model.pt", "-o", "r.html", "--force"]) == 0
    assert main(["report", "model.pt"]) == 0
    assert Path("report.html").read_bytes() == Path("r.html").read_bytes()


@pytest.mark.long
def test_bounded(tmp_path: Path) -> None:
    """Of very many tensors the largest have rows, the rest a sum; so the page stays small."""
    path = saved({f"m{i // 100}.w{i}": np.ones(i % 7 + 1, "f4") for i in range(12_000)}, tmp_path)
    out = io.BytesIO()
    made = report(path, out)
    page = Page(out.getvalue().decode())
    assert made.tensors == 12_000
    assert made.nbytes < 1_500_000
    assert "These are the 2,000 largest; 10,000 more have" in page.text
    assert _sum(page.data["tree"]) == page.data["tree"][1]


def test_long_names_are_bounded(tmp_path: Path) -> None:
    """A name of a megabyte does not make a page of ten."""
    path = saved(
        {"x" * 1_000_000: np.ones(3), "y": {"z" * 1_000_000: 1}, "t": "u" * 10**6}, tmp_path
    )
    assert report(path, io.BytesIO()).nbytes < 60_000


def _sum(node: list[Any]) -> int:
    """Return the bytes of the leaves; each module has those of its parts."""
    if isinstance(node[3], list) and node[3]:
        total = sum(map(_sum, node[3]))
        assert total == node[1]
        return total
    return int(node[1])


@pytest.mark.parametrize("count", [1, 50, 3000])
def test_size_tree(count: int, tmp_path: Path) -> None:
    """Each module has the bytes of its parts, sorted, however much is left out."""
    weights = {f"a{i % 40}.b{i % 7}.w{i}": np.ones(i + 1, "f4") for i in range(count)}
    weights |= {"a0": np.ones(5), "tied": weights["a0.b0.w0"]}
    with tz.lazy_load(saved(weights, tmp_path)) as checkpoint:
        found = outline(checkpoint)
    made = size_tree(module_tree(found), list(found.by_dtype))
    assert _sum(made) == found.stored_nbytes
    sizes = [part[1] for part in made[3]]
    assert sizes == sorted(sizes, reverse=True)
    assert any("(itself)" in map(str, part) for node in made[3] for part in node[3] or [])


def test_assets_are_in_the_package() -> None:
    """Skeleton, style and script are found where a wheel has them, beside the modules."""
    import torchzip.tools.report_page as package

    folder = resources.files(package)
    for name in ("page.html", "page.css", "page.js"):
        assert folder.joinpath(name).is_file()
    # hatchling takes all files of the folders of a package that git does not ignore.
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'packages = ["torchzip"]' in project
