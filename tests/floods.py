"""Pickles of one opcode over and over, and what reading each costs in memory.

``python -m tests.floods`` prints, as JSON, by how many bytes the peak memory of a process rose.
Python's own measure (tracemalloc) makes some of these fifty times slower, so each is read in a
forked child of a small process, whose high-water mark Linux can set back.
"""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import torchzip as tz
from tests import builders as b

PICKLE_NBYTES = 1 << 20
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def _with_name(unit: bytes, name: bytes = b.name("a", "B")) -> tuple[bytes, bytes]:
    return name + b"q\0", unit


#: What stands before, and what comes again and again.
UNITS = {
    "None": (b"", b"N"), "int": (b"", b"K\1"), "()": (b"", b")"), "[]": (b"", b"]"),
    "{}": (b"", b"}"), "set()": (b"", b"\x8f"), "frozenset()": (b"", b"(\x91"), "(": (b"", b"("),
    "[] by LIST": (b"", b"(l"), "{} by DICT": (b"", b"(d"), "[None]": (b"", b"]Na"),
    "(None,)": (b"", b"N\x85"), "a tuple around": (b"N", b"\x85"), "a pair": (b"N", b"2\x86"),
    "(None,) by TUPLE": (b"", b"(Nt"), "DUP": (b"N", b"2"), "MEMOIZE": (b"N", b"\x94"),
    "float": (b"", b"G" + bytes(8)), "text": (b"", b"\x8c\3abc"), "bytes": (b"", b"C\2ab"),
    "bytearray": (b"", b"\x96" + bytes(8)), "a long int": (b"", b"\x8a\5" + b"\1" * 5),
    "text of protocol 0": (b"", b"Vab\n"), "string of protocol 0": (b"", b"S'a'\n"),
    "int of protocol 0": (b"", b"I777\n"), "a name": (b"", b.name("a", "B")),
    "a new object": _with_name(b"h\0)\x81"), "a call": _with_name(b"h\0)R"),
    "a call around": (b.name("a", "B"), b")R"), "an old object": _with_name(b"(h\0o"),
    "an OrderedDict": _with_name(b"h\0)R", b.name("collections", "OrderedDict")),
    "a Size": _with_name(b"h\0)\x85R", b.name("torch", "Size")),
    "a set by a call": _with_name(b"h\0]\x85R", b.name("builtins", "set")),
    "a device": _with_name(b"h\0X\3\0\0\0cpu\x85R", b.name("torch", "device")),
    "[] with a number": (b"", b"]\x94"), "() around, with a number": (b"N", b"\x85\x94"),
    "set() with a number": (b"", b"\x8f\x94"), "a set as Python writes it": _with_name(
        b"h\0]r\1\0\0\0\x85r\2\0\0\0Rr\3\0\0\0", b.name("builtins", "set")
    ),
    "a complex": _with_name(b"h\0K\1K\1\x86R", b.name("builtins", "complex")),
}  # fmt: skip


def flood(name: str) -> bytes:
    """Return a checkpoint whose pickle is a megabyte of the same."""
    if name == "numbers":
        numbered = range(PICKLE_NBYTES // 5)
        pickle = b.stream(b"N", *(b"r" + struct.pack("<I", number) for number in numbered))
    else:
        before, unit = UNITS[name]
        pickle = b.stream(b"(", before, unit * (PICKLE_NBYTES // len(unit)), b"t")
    return b.checkpoint(pickle, {})


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _risen(name: str) -> int:
    """Return by how much the peak of this process rises."""
    data = flood(name)
    _CLEAR_REFS.write_text("5")
    before = _status("VmRSS")
    try:
        tz.load(io.BytesIO(data))
    except (tz.LimitError, tz.FormatError):
        pass
    return _status("VmHWM") - before


def main() -> None:
    """Print the rise for every flood."""
    tz.load(io.BytesIO(b.checkpoint(b.stream(b.tensor()))))  # all that reading imports
    risen = {}
    for name in [*UNITS, "numbers"]:
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, str(_risen(name)).encode())
            os._exit(0)
        risen[name] = int(os.read(reader, 100))
        os.wait()
        os.close(reader)
        os.close(writer)
    print(json.dumps(risen))


if __name__ == "__main__":
    main()
