"""What ``scan --format sarif`` writes has what SARIF 2.1.0 requires, and nothing that it forbids.

`check` is a part of the standard: the properties that its schema requires of the objects that scan
writes, their types, and which others an object may have (`additionalProperties` is false for all).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import Capture, run

#: RFC 3986: a reference has these characters and escapes alone.
_REFERENCE = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-F]{2})*")
_LEVELS = ("none", "note", "warning", "error")


def has(value: Any, required: dict[str, type], optional: dict[str, type]) -> None:
    """Check that an object has properties of these types, and no others."""
    assert isinstance(value, dict)
    assert required.keys() <= value.keys() <= required.keys() | optional.keys()
    for name, item in value.items():
        assert type(item) is {**required, **optional}[name], name


def check(log: Any) -> int:
    """Check a log; return how many results it has."""
    has(log, {"version": str, "runs": list}, {"$schema": str})
    assert log["version"] == "2.1.0"
    count = 0
    for each in log["runs"]:
        has(each, {"tool": dict}, {"results": list})
        has(each["tool"], {"driver": dict}, {})
        driver = each["tool"]["driver"]
        has(driver, {"name": str}, {"version": str, "rules": list, "informationUri": str})
        ids = []
        for rule in driver["rules"]:
            has(rule, {"id": str}, {"shortDescription": dict})
            has(rule["shortDescription"], {"text": str}, {})
            ids.append(rule["id"])
        assert len(set(ids)) == len(ids)
        for result in each["results"]:
            has(result, {"message": dict}, {"ruleId": str, "level": str, "locations": list})
            has(result["message"], {"text": str}, {})
            assert result["message"]["text"]
            assert result["ruleId"] in ids
            assert result["level"] in _LEVELS
            for location in result["locations"]:
                _check_location(location)
            count += 1
    return count


def _check_location(location: Any) -> None:
    has(location, {"physicalLocation": dict}, {})
    place = location["physicalLocation"]
    has(place, {"artifactLocation": dict}, {"region": dict})
    has(place["artifactLocation"], {"uri": str}, {})
    assert _REFERENCE.fullmatch(place["artifactLocation"]["uri"])
    if "region" in place:
        has(place["region"], {"byteOffset": int}, {})
        assert place["region"]["byteOffset"] >= 0


CALL = b"cos\nsystem\n(S'ls'\ntR."


@pytest.mark.parametrize(
    "name",
    ["bad.pkl", "with space.pkl", "100%.pkl", "a#b?c.pkl", "重み.pkl", "a\udcff.pkl", "é:x.pkl"],
)
def test_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, name: str
) -> None:
    """Whatever a file is called, its address leads back to it."""
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(os.fsencode(name))).write_bytes(CALL)
    status, out, err = run(capsys, "scan", ".", "--format", "sarif")
    log = json.loads(out)
    assert (status, err, check(log)) == (1, "", 1)
    (result,) = log["runs"][0]["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote_to_bytes(uri) == b"./" + os.fsencode(name)


def test_all_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Findings of several rules, in members too; and a log without any."""
    monkeypatch.chdir(tmp_path)
    tz.save({"w": np.ones(3)}, "m.pt")
    assert check(json.loads(run.done(capsys, "scan", "m.pt", "--format", "sarif"))) == 0
    Path("cut.pt").write_bytes(Path("m.pt").read_bytes()[:-30])
    Path("bad.pkl").write_bytes(CALL)
    Path("ambiguous.zip").write_bytes(b"PK\3\4" + bytes(60))
    log = json.loads(run(capsys, "scan", ".", "--format", "sarif")[1])
    assert check(log) >= 3
    assert len({result["ruleId"] for result in log["runs"][0]["results"]}) >= 2
