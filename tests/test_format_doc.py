"""docs/format.md has every section that the code refers to, the code's tables, and a real file."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

import torchzip as tz
from torchzip.dtypes import DTYPES, NAME_ONLY, SAFETENSORS
from torchzip.pickling.allowlist import TORCH_SAFE_NAMES
from torchzip.pickling.opcodes import OPCODES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "format.md").read_text()
_HEADINGS = re.findall(r"^##+ ([\d.]+?)\.? (.*)$", PAGE, re.MULTILINE)
_REFERENCE = re.compile(r"\b[Ss]ections? (\d[\d.]*(?:(?:, | and | or | to )\d[\d.]*)*)")


def referred(text: str) -> set[str]:
    """Return the numbers of sections that a text refers to.

    >>> sorted(referred("see sections 6 and 7.1, and section 2.3."))
    ['2.3', '6', '7.1']
    """
    found = _REFERENCE.findall(re.sub(r"\s+(#:? )?", " ", text))
    return {number.rstrip(".") for each in found for number in re.findall(r"\d[\d.]*", each)}


def section(number: str) -> str:
    begin = re.search(rf"^##+ {re.escape(number)}\.? .*$", PAGE, re.MULTILINE)
    assert begin is not None, number
    return re.split(r"^##", PAGE[begin.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def test_references() -> None:
    """Each section that the package, its tests or the page itself refer to is there."""
    numbers = {number for number, _ in _HEADINGS}
    package = sorted((ROOT / "torchzip").rglob("*.py"))
    tests = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]
    found = {path: referred(path.read_text()) for path in [*package, *tests]}
    found[Path("docs/format.md")] = referred(PAGE)
    assert {str(path): lost for path, each in found.items() if (lost := each - numbers)} == {}
    assert sum(len(found[path]) for path in package) >= 12


def test_headings() -> None:
    """They are numbered in order, and the contents link to all that have two hashes."""
    keys = [[int(part) for part in number.split(".")] for number, _ in _HEADINGS]
    assert keys == sorted(keys)
    tops = [(number, title) for number, title in _HEADINGS if "." not in number]
    links = re.findall(r"^(\d+)\. \[(.*)\]\(#(.*)\)$", PAGE, re.MULTILINE)
    assert [(number, title) for number, title, _ in links] == tops
    for number, title, anchor in links:
        assert anchor == f"{number}-{title.lower().replace(' ', '-')}"


def test_dtypes() -> None:
    """The table of dtypes is that of the code."""
    rows = re.findall(
        r"^\| (\w+)[^|]*\| (\w*) *\| (\d+) \| (\w*) *\|$", section("10"), re.MULTILINE
    )
    assert rows == [
        (row.name, row.storage_class or "", str(row.itemsize), row.numpy or "")
        for row in DTYPES.values()
    ]
    codes = re.search(r"ascending rank: ([A-Z0-9_\s]+)\.", section("11.7"))
    assert codes is not None
    assert codes[1].split() == sorted(
        SAFETENSORS, key=lambda code: SAFETENSORS[code].safetensors_rank
    )


def test_what_the_loader_accepts() -> None:
    """The opcodes are those of the code, and so are the numbers of names."""
    text = section("8.2")
    listed = re.findall(r"^[A-Z0-9_ \n]+$", text, re.MULTILINE)
    assert sorted(" ".join(listed).split()) == sorted(
        each.name for each in OPCODES if each.torch_safe
    )
    assert f"accepts {sum(each.torch_safe for each in OPCODES)} opcodes" in text
    names = section("8.3")
    assert f"has {len(TORCH_SAFE_NAMES) - 4} names" in names
    assert f"the {len(DTYPES) + len(NAME_ONLY)} dtypes" in names
    words = set(re.findall(r"\w+", names))
    for name in TORCH_SAFE_NAMES:
        last = name.rpartition(".")[2]
        assert last in words or last in DTYPES or last in NAME_ONLY or last.endswith("Storage"), (
            name
        )


def test_complete_file() -> None:
    """Section 13 is what torchzip writes, which other tests compare with torch."""
    made = bytearray()
    for line in section("13").split("```")[1].splitlines()[1:]:
        at, code = line[:5].strip(), line[7:55].strip()
        assert not at or int(at) == len(made), line
        repeated = re.fullmatch(r"5a x (\d+)", code)
        made += b"Z" * int(repeated[1]) if repeated else bytes.fromhex(code)
    written = io.BytesIO()
    tz.save({"a": np.array([1, -2], np.int8)}, written)
    assert written.getvalue() == made
    assert f"{len(made)} bytes" in section("13")
