"""``torchzip scan``: its options, and what was found as text, JSON or SARIF."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torchzip
from torchzip import tools
from torchzip.checkpoint.quantities import count_text
from torchzip.cli.command import BAD, DONE, Command, in_options, print_verdict, reading_options, say
from torchzip.cli.naming import ALLOW_ARGUMENT, advice, policy_of
from torchzip.cli.rendering import fitted_table, screen
from torchzip.errors import printable

if TYPE_CHECKING:
    from torchzip.tools.scanning.scan import Finding, Scanned

#: Some file could not be judged, and nothing else was found.
UNJUDGED = 3
_FAIL_ON = ("foreign", "torch-refuses", "unreadable", "never")
_RULES = {
    "foreign-global": "A pickle names something outside torch's own list and the policy",
    "torch-refuses": "torch.load does not load the file by default, or not at all",
    "ambiguous-archive": "An archive that two readers could read in two ways",
    "unreadable": "A file, or what is in it, that could not be judged",
}

COMMAND = Command(
    name="scan",
    summary="find what files would have Python do when they are loaded",
    description="""\
Look into files of any kind, and into directories, for what loading them would do: checkpoints,
plain pickles, arrays of objects, and what is in zip, tar, gzip, bzip2 and xz files. Nothing is
loaded, and no tensor is read. A file is safe if torch.load takes it by default (weights_only=True);
every other name that its pickles mention is a finding, unless the policy allows it.

A policy is a file with a glob such as numpy.* on each line, or the name of a preset: lightning,
transformers-args, deepspeed, torchao, torchscript, dtensor, numpy.

Exit status: 0 nothing found, 1 findings, 2 wrong usage, 3 a file could not be judged.
""",
    examples="""
        torchzip scan model.pt
        torchzip scan models/ --allow lightning
        torchzip scan . --allow policy.txt --format sarif > found.sarif
    """,
    arguments={
        "paths": {"metavar": "PATH", "nargs": "+"},
        **ALLOW_ARGUMENT,
        "--format": {
            "choices": ["text", "json", "sarif"],
            "default": "text",
            "help": "of what is printed; sarif is for code scanners (default: text)",
        },
        "--json": {
            "dest": "format",
            "action": "store_const",
            "const": "json",
            "help": "the same as --format json",
        },
        "--fail-on": {
            "choices": _FAIL_ON,
            "default": "foreign",
            "help": "exit status 1 for foreign names and ambiguous archives (the default); also "
            "for what torch refuses though the policy allows it; also for what could not be "
            "judged; or never",
        },
    },
)


def run(arguments: argparse.Namespace) -> int:
    allowed = policy_of(arguments).globs
    found = tools.scan(arguments.paths, allow=allowed, **reading_options(arguments))
    if arguments.format == "json":
        print_verdict(json.dumps(dataclasses.asdict(found), indent=2))
    elif arguments.format == "sarif":
        print_verdict(json.dumps(as_sarif(found), indent=2))
    else:
        print_verdict(as_text(found))
    status = status_of(found, arguments.fail_on)
    names = [finding.name for finding in found.findings if finding.name is not None]
    if status == BAD and names:
        say(f"exit status 1, as torch.load refuses names by default; {advice(names)}")
    return status


def status_of(found: Scanned, fail_on: str) -> int:
    """Return the exit status, by what was found and what counts."""
    if fail_on == "never":
        return DONE
    verdicts = {file.verdict for file in found.files}
    level = _FAIL_ON.index(fail_on)
    if found.has_findings or (level >= 1 and "known" in verdicts):
        return BAD
    if not found.findings:
        return DONE
    return BAD if level >= 2 else UNJUDGED


def as_text(found: Scanned) -> str:
    """Return a line for each file, with its findings below, and the sums."""
    lines = []
    rows = [[file.verdict, printable(file.path), file.format] for file in found.files]
    for line, file in zip(fitted_table(rows, screen(), (1,)), found.files, strict=True):
        lines.append(line)
        lines += [
            f"  {_place(finding)}{printable(in_options(finding.message))}"
            for finding in file.findings
        ]
    counts = Counter(file.verdict for file in found.files)
    sums = ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(counts.items()))
    return "\n".join([*lines, f"{count_text(len(found.files), 'file')}: {sums or 'nothing there'}"])


def _place(finding: Finding) -> str:
    parts = [finding.rule]
    if finding.member is not None:
        parts.append(f"in {printable(finding.member)}")
    if finding.offset is not None:
        parts.append(f"byte {finding.offset:,}")
    return f"{', '.join(parts)}: "


def as_sarif(found: Scanned) -> dict[str, Any]:
    """Return the findings in SARIF 2.1.0."""
    rules = [
        {"id": f"torchzip/{rule}", "shortDescription": {"text": text}}
        for rule, text in _RULES.items()
    ]
    driver = {
        "name": "torchzip",
        "version": torchzip.__version__,
        "rules": rules,
    }
    results = [_result(finding) for finding in found.findings]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(finding: Finding) -> dict[str, Any]:
    path = finding.path if finding.member is None else f"{finding.path}!{finding.member}"
    # A reference as RFC 3986 has it: no spaces, and nothing that only this computer can decode.
    uri = quote(os.fsencode(path), safe="/!")
    place: dict[str, Any] = {"artifactLocation": {"uri": uri}}
    if finding.offset is not None:
        place["region"] = {"byteOffset": finding.offset}
    return {
        "ruleId": f"torchzip/{finding.rule}",
        "level": "note" if finding.rule == "unreadable" else "error",
        "message": {"text": printable(finding.message)},
        "locations": [{"physicalLocation": place}],
    }
