"""A terminal for a command: a pseudo-terminal of a given width, and what was written to it."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys
from typing import Any

import pytest

_STYLE = re.compile("\x1b\\[[0-9;]*m")


def on_terminal(width: int, *arguments: Any, **environment: str) -> str:
    """Run a command of torchzip on a terminal and return what it shows there."""
    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))
    main_end, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "torchzip", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=its_end,
        env={**inherited, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environment},
    )
    os.close(its_end)
    shown = bytearray()
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while block := os.read(main_end, 1 << 16):
            shown += block
    os.close(main_end)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


def unstyled(text: str) -> str:
    """Return text without bold and dim."""
    return _STYLE.sub("", text)
