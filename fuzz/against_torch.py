"""Beside torch: what its safe loader accepts, torchzip reads alike, or refuses."""

from __future__ import annotations

import contextlib
import resource
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torchzip as tz
from fuzz.doors import DOORS, Send, put
from fuzz.seeds import Case
from fuzz.values import Described, OfTorch, OfTorchzip, UnknownError
from tests.child_process import ChildProcess, CrashedError
from torchzip.errors import TorchZipError

#: What torch may use for one file, beyond what it needs to be there.
_SPARE_NBYTES = 8 << 30


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


def _torch() -> Callable[[str], Described | None]:
    """Return what describes what torch's safe loader makes of a file; None where it refuses."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with open("/proc/self/statm") as status:
        now = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _SPARE_NBYTES, hard))

    def described(path: str) -> Described | None:
        # torch refuses in exceptions of any class, and so may what looks at a tensor that it made.
        with contextlib.suppress(Exception):
            value = torch.load(path, map_location="cpu", weights_only=True)
            return OfTorch(torch).describe(value)
        return None

    return described


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
    process = ChildProcess(_torch)
    with tempfile.TemporaryDirectory() as name, contextlib.closing(process):

        def send(case: Case, doors: Collection[str] = DOORS) -> type:
            path = put(case, Path(name) / "given")
            ours = describe(path) if path.is_file() else None
            if ours is None:
                return NotTorchzip
            try:
                theirs = process.ask(str(path))
            except CrashedError:
                return TorchCrashed
            if theirs is None:
                return OnlyTorchzip
            if ours != theirs:
                raise DifferentError(f"torchzip: {ours}\ntorch: {theirs}"[:4000])
            return Both

        yield send
