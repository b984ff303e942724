"""What ``torch.load`` does with a file, asked of a process of its own, which it may crash."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: What torch may use, and how long it may take for one file.
_MEMORY_NBYTES = 12 << 30
_PATIENCE_SECONDS = 60


def _verdict(torch: Any, path: str) -> tuple[str, str]:
    """Return what torch.load does with a file, in the words of `tools.verify`, and why."""
    why = ""
    for verdict, weights_only in (("accepts", True), ("needs weights_only=False", False)):
        try:
            torch.load(path, map_location="cpu", weights_only=weights_only)
            return verdict, why
        except Exception as error:
            why = f"{type(error).__name__}: {str(error)[-300:]}"
    return "refuses", why


def _serve(connection: Connection) -> None:
    import torch
    import torch._dynamo  # which its loader asks for before it takes jagged tensors

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # torch prints what it thinks of some files
        os.dup2(silence, stream)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_NBYTES, _MEMORY_NBYTES))
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        connection.send(_verdict(torch, path))


class Verdicts:
    """Asks that process, and starts it again after a crash."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Any = None

    def of(self, path: Path) -> tuple[str, str]:
        """Return what torch.load does with a file, and why; "crashes" if it does not come back."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(there,), daemon=True)
            self._process.start()
            there.close()
        with contextlib.suppress(EOFError, OSError):
            self._connection.send(str(path))
            if self._connection.poll(_PATIENCE_SECONDS):
                found: tuple[str, str] = self._connection.recv()
                return found
        self.close()
        return "crashes", ""

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


@contextlib.contextmanager
def verdicts() -> Iterator[Verdicts]:
    """Give what asks torch, for a while."""
    asked = Verdicts()
    with contextlib.closing(asked):
        yield asked
