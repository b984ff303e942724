"""``torchzip completion``, tried in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import Capture
from torchzip.cli.main import build_parser, main

#: The words of a line, the last one begun -> what bash offers.
Ask = Callable[..., set[str]]

#: Asks a completion script, as readline does, for what may follow the words; one a line.
_ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
set +o posix
complete_with=$(complete -p torchzip | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$complete_with torchzip "${@: -1}" "${@: -2:1}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def completed(tmp_path: Path, capsys: Capture) -> Ask:
    """Return a function that asks bash, which has read the script."""
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)

    def ask(*words: str) -> set[str]:
        command = [bash, "--norc", "-c", _ASK, "ask", str(script), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        return set(done.stdout.split("\n")) - {""}

    return ask


def test_commands_and_options(completed: Ask) -> None:
    """Bash offers the commands, and the options of the command that was chosen."""
    assert {"ls", "globals", "verify", "diff", "convert", "dis"} <= completed("torchzip", "")
    assert completed("torchzip", "con") == {"convert"}
    assert completed("torchzip", "convert", "--max") == {"--max-shard-size"}
    assert completed("torchzip", "diff", "--c") == {"--cast"}


def test_files(completed: Ask, tmp_path: Path) -> None:
    """Where a file is expected, files are offered."""
    (tmp_path / "model.pt").write_bytes(b"")
    assert completed("torchzip", "ls", "mod") == {"model.pt"}
    assert completed("torchzip", "convert", "a.pt", "mod") == {"model.pt"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh", "powershell"])
def test_each_shell_has_a_script(capsys: Capture, shell: str) -> None:
    """All commands are in each of them."""
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    (commands,) = (a for a in build_parser()._actions if a.dest == "command")
    assert commands.choices is not None
    for name in commands.choices:
        assert name in text


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """Wrong usage, with what to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "python -m pip install 'torchzip[completion]'" in captured.err
