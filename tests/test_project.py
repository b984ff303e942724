"""The project's own files agree: versions of Python, of the package, and what CI runs."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import torchzip as tz

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def parsed(path: Path) -> dict[Any, Any]:
    """Return what a YAML file has."""
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(made, dict)
    return made


def declared_pythons() -> list[str]:
    """Return the versions of Python that the classifiers name."""
    start = "Programming Language :: Python :: "
    names = [each.removeprefix(start) for each in PROJECT["classifiers"] if start in each]
    return [name for name in names if name.startswith("3.")]


def test_pythons() -> None:
    """Each declared Python is tested, on each system that is declared; the first is the least."""
    matrix = parsed(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]
    assert matrix["matrix"]["python"] == declared_pythons()
    assert PROJECT["requires-python"] == f">={declared_pythons()[0]}"
    systems = {"macos-latest": "MacOS", "windows-latest": "Microsoft :: Windows",
               "ubuntu-latest": "POSIX :: Linux"}  # fmt: skip
    declared = {f"Operating System :: {systems[each]}" for each in matrix["matrix"]["os"]}
    assert declared == {each for each in PROJECT["classifiers"] if "Operating System" in each}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"for version in {' '.join(declared_pythons())}; do" in script


def test_windows_runs_what_runs_without_posix() -> None:
    """The tests on Windows are those that are tried here with the calls taken away."""
    matrix = parsed(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]["strategy"]
    (windows,) = matrix["matrix"]["include"]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"pytest -p tests.without_posix {windows['paths']}" in script
    doc = ast.get_docstring(
        ast.parse((ROOT / "tests" / "without_posix.py").read_text(encoding="utf-8"))
    )
    assert doc is not None
    assert windows["paths"] in doc


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows(path: Path) -> None:
    """They may read, and what more one job needs stands there; actions have a version."""
    workflow = parsed(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"], name
        assert "write-all" not in str(job.get("permissions"))
        for step in job["steps"]:
            used = step.get("uses")
            assert used is None or re.search(r"@(v\d+|release/v\d+)$", used), used


def test_publishing() -> None:
    """Only a release publishes, without a token, with attestations."""
    jobs = parsed(ROOT / ".github" / "workflows" / "package.yml")["jobs"]
    assert jobs["publish"]["if"] == "github.event_name == 'release'"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    (upload,) = (each for each in jobs["publish"]["steps"] if "publish" in each["uses"])
    assert upload["with"] == {"attestations": True}
    assert "secrets." not in "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)


def test_versions_agree() -> None:
    """That of the package stands in the citation and in the changelog."""
    assert parsed(ROOT / "CITATION.cff")["version"] == tz.__version__
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", text, re.MULTILINE)[1] in (tz.__version__, "Unreleased")  # type: ignore[index]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms(path: Path) -> None:
    """Each asks for something, under names of its own."""
    form = parsed(path)
    if path.name == "config.yml":
        assert form["contact_links"]
        return
    assert form["name"]
    assert form["description"]
    names = [each["id"] for each in form["body"] if each["type"] != "markdown"]
    assert names
    assert len(names) == len(set(names))


def test_pre_commit() -> None:
    """Hooks use the tools of the environment, and fetch nothing."""
    (local,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == ["ruff format", "ruff check", "mypy"]
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
