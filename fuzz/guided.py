"""``python -m fuzz.guided``: inputs that reach new lines of torchzip are changed further (atheris).

The choices behind an input are bytes that atheris changes, where `fuzz` takes them from a seed.
Needs ``pip install atheris``. Options are those of libFuzzer: ``-max_total_time=600`` and so on.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from random import Random
from typing import Any


class Choices(Random):
    """Chooses by given bytes; when they are used up, always the first."""

    def __new__(cls, data: bytes) -> Choices:
        return super().__new__(cls)  # Random would take the bytes for a seed

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def getrandbits(self, k: int) -> int:
        """Return the next bytes as a number of ``k`` bits."""
        nbytes = (k + 7) // 8
        taken = self._data[self._at : self._at + nbytes]
        self._at += nbytes
        return int.from_bytes(taken, "little") & ((1 << k) - 1)

    def random(self) -> float:
        return self.getrandbits(16) / (1 << 16)


def main() -> None:
    """Run until something is found, or libFuzzer has had enough."""
    import atheris

    with atheris.instrument_imports(include=["torchzip"]):
        import torchzip.cli.main
        import torchzip.convert.run  # noqa: F401

    from fuzz import doors, seeds
    from fuzz.inputs import make

    with ExitStack() as stack:
        send = stack.enter_context(doors.room())

        def try_one(data: bytes) -> Any:
            if data[:1] == b"\0":  # the bytes themselves, where no choice stands between
                return send(seeds.Case.of(data[1:]), [])
            return send(make(Choices(data)), ["disassemble"])

        atheris.Setup(sys.argv, try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
