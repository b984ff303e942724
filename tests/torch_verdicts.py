"""What ``torch.load`` does with a file, asked of a process of its own, which it may crash."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.child_process import ChildProcess, CrashedError

#: What torch may use for one file.
_MEMORY_NBYTES = 12 << 30


def _torch() -> Callable[[str], tuple[str, str]]:
    """Return what says what torch.load does with a file, in the words of `verify`, and why."""
    import torch
    import torch._dynamo  # which its loader asks for before it takes jagged tensors

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # torch prints what it thinks of some files
        os.dup2(silence, stream)
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_NBYTES, _MEMORY_NBYTES))

    def verdict(path: str) -> tuple[str, str]:
        why = ""
        for verdict, weights_only in (("accepts", True), ("needs weights_only=False", False)):
            try:
                torch.load(path, map_location="cpu", weights_only=weights_only)
                return verdict, why
            except Exception as error:
                why = f"{type(error).__name__}: {str(error)[-300:]}"
        return "refuses", why

    return verdict


class Verdicts(ChildProcess):
    """What torch.load does with files."""

    def __init__(self) -> None:
        super().__init__(_torch)

    def of(self, path: Path) -> tuple[str, str]:
        """Return what it does with one, and why; "crashes" if it does not come back."""
        try:
            found: tuple[str, str] = self.ask(str(path))
        except CrashedError:
            return "crashes", ""
        return found
