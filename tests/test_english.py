"""The package speaks plain English: phrases of its first dialect do not come back.

Looked through are the string literals, docstrings and comments of the package, and the pages that
users read, but for their code blocks.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: A phrase as a regular expression, and what to say instead. Blanks match line breaks as well.
_GLOSSARY = (
    (r"\ba text\b(?! (?:record|file|mode))", "a string"),
    (r"\btexts\b", "strings"),
    (
        r"(?<!here )\b(?:is|are|was|were) no (?!more\b|longer\b|less\b|other\b)",
        "is not a, is not (there is no X and has no X are fine)",
    ),
    (r"\bwhat (?:is|are|has) no\b", "anything that is not"),
    (
        r"\b(?:(?:that|it|what|which|this) is none|is none that)\b",
        "there is none, is not valid, is not one",
    ),
    (r"\b(?:has|have) not\b"
     r"(?! (?:yet|been|had|\w+ed|\w*[^aeiou]t|come|gone|run|begun|seen|made)\b)",
     "does not have, lacks"),
    (r"\b(?:is|are|was|were) told by\b", "is recognised by, is determined by"),
    (r"\b(?:is|are|was) not said\b", "is unspecified"),
    (r"\b(?:speaks?|spoke) against\b", "does not match, contradicts"),
    (r"\ball that it has of\b", "exactly the bytes of"),
    (r"\bmust not turn \w+( \w+)? round\b", "must not byte-swap"),
    (r"\bstands? (?:at|before|behind|in|right|there|twice|where)\b", "is, occurs"),
    (r"\bbehind (?:a|each|it|its|that|the|them|this)\b", "after"),
    (r"\banew\b", "again, re- (rewrite)"),
    (r"\b(?:can|could|may|to) be had\b", "can be recovered, is available"),
    (r"\bnothing (?:says|tells)\b", "it is unknown"),
    (r"\bput right\b", "corrected"),
)  # fmt: skip
_PHRASES = [(re.compile(phrase), better) for phrase, better in _GLOSSARY]


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string literal, and of each run of comment lines."""
    tree = ast.parse(source)
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(value) for node in formatted for value in node.values}
    for node in formatted:
        values = [each.value if isinstance(each, ast.Constant) else "{}" for each in node.values]
        yield node.lineno, "".join(map(str, values))
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in parts:
            yield each.lineno, each.value
    begin, comment = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            begin, comment = begin or token.start[0], f"{comment} {token.string.lstrip('#: ')}"
        elif token.type != tokenize.NL and comment:
            yield begin, comment
            begin, comment = 0, ""


def phrases_in(text: str) -> list[str]:
    """Return each phrase in a text with what is around it, and what to say instead."""
    flat = re.sub(r"\s+", " ", text)
    return [
        f"{found[0]!r} in {flat[max(found.start() - 40, 0) : found.end() + 40]!r}: say {better}"
        for phrase, better in _PHRASES
        for found in phrase.finditer(flat)
    ]


def _files() -> list[Path]:
    package = ROOT / "torchzip"
    return sorted(package.rglob("*.py"))


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_package(path: Path) -> None:
    """None of the phrases is in a module."""
    assert [
        f"{path.name}:{line}: {found}"
        for line, text in texts_of(path.read_text())
        for found in phrases_in(text)
    ] == []


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs"])
def test_pages(name: str) -> None:
    """Nor in what users read."""
    pages = sorted((ROOT / name).rglob("*.md")) if name == "docs" else [ROOT / name]
    for page in pages:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert phrases_in(text) == [], page.name


@pytest.mark.parametrize(
    "text",
    [
        "there is no such record", "There are no tensors", "it has no CRC", "is no longer there",
        "has not been read", "have not changed", "of no more than", "a text record",
    ],
)  # fmt: skip
def test_plain_english_is_left_alone(text: str) -> None:
    """The expressions are not greedy."""
    assert phrases_in(text) == []
