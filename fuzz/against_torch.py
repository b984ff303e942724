"""Beside torch: what its safe loader accepts, torchzip reads alike, or refuses."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import tempfile
import warnings
from collections.abc import Collection, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torchzip as tz
from fuzz.doors import DOORS, Send, put
from fuzz.seeds import Case
from fuzz.values import Described, OfTorch, OfTorchzip, UnknownError
from torchzip.errors import TorchZipError

#: What torch may use for one file, beyond what it needs to be there, and how long it may take.
_SPARE_NBYTES = 8 << 30
_PATIENCE_SECONDS = 60


class DifferentError(AssertionError):
    """torchzip gives a value where torch gives another."""


class Both(Exception):  # noqa: N818 - these four are outcomes, as `Outcome.made` counts them
    """Both read the file, and it is the same to them."""


class OnlyTorchzip(Exception):  # noqa: N818
    """torch refused it."""


class TorchCrashed(Exception):  # noqa: N818
    """torchzip read the file, and torch's process died of it or did not come back."""


class NotTorchzip(Exception):  # noqa: N818
    """torchzip refused it; torch was not asked."""


class TorchProcess:
    """torch in a process of its own: it crashes on some of these files, and is started again."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None

    def load(self, path: Path) -> Described | None:
        """Return what torch's safe loader makes of a file; None where it refuses.

        Raises
        ------
        TorchCrashed
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there,), daemon=True)
            self._process.start()
            there.close()
        try:
            self._connection.send(str(path))
            if self._connection.poll(_PATIENCE_SECONDS):
                made: Described | None = self._connection.recv()
                return made
        except (EOFError, OSError):
            pass
        self.close()
        raise TorchCrashed

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection: Connection) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with open("/proc/self/statm") as status:
        now = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _SPARE_NBYTES, hard))
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        made: Described | None = None
        # torch refuses in exceptions of any class, and so may what looks at a tensor that it made.
        with contextlib.suppress(Exception):
            value = torch.load(path, map_location="cpu", weights_only=True)
            made = OfTorch(torch).describe(value)
        connection.send(made)


def describe(path: Path) -> Described | None:
    """Return what torchzip makes of a file; None where it refuses."""
    try:
        with tz.lazy_load(path, foreign="raise") as checkpoint:
            return OfTorchzip().describe(checkpoint.root)
    except (TorchZipError, OSError, UnknownError):
        return None


@contextlib.contextmanager
def room() -> Iterator[Send]:
    """Give a function that has both read the file of a case; the doors play no part.

    It raises `DifferentError`, or returns which of the two took the file.
    """
    process = TorchProcess()
    with tempfile.TemporaryDirectory() as name, contextlib.closing(process):

        def send(case: Case, doors: Collection[str] = DOORS) -> type:
            path = put(case, Path(name) / "given")
            ours = describe(path) if path.is_file() else None
            if ours is None:
                return NotTorchzip
            try:
                theirs = process.load(path)
            except TorchCrashed:
                return TorchCrashed
            if theirs is None:
                return OnlyTorchzip
            if ours != theirs:
                raise DifferentError(f"torchzip: {ours}\ntorch: {theirs}"[:4000])
            return Both

        yield send
