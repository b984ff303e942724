"""Bounds on what a file may cost its reader. All of them can be changed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[int]:
    """Return whether a value from a file can be a size, a stride, an offset or a length.

    >>> is_number(3), is_number(True), is_number(-1), is_number(1 << 63)
    (True, False, False, False)
    """
    return type(value) is int and 0 <= value < 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader accepts before it raises `LimitError`.

    The defaults are far above what real checkpoints need (the largest seen have
    about 100,000 tensors and a few tens of MB of pickle) and low enough that a
    hostile file of a few KB costs neither memory nor time.
    """

    #: Bytes of one pickle stream.
    pickle_nbytes: int = 1 << 30
    #: Depth of nested containers, as walked for the flat names.
    nesting: int = 900
    #: Lists, dicts, tuples and open marks in one pickle, in addition to one for every 4 bytes of
    #: it. Python's own pickler never needs more. The result of a call counts as two, a set as four.
    containers: int = 200_000
    #: Memo entries of one pickle, in addition to one for every 4 bytes of it.
    memo: int = 80_000
    #: Items in the arguments of calls, in addition to two for every byte of the pickle: a value
    #: that is mentioned many times may be copied by a call each time, and each item of it takes up
    #: to 64 bytes. Eight characters or bytes count as one item.
    argument_items: int = 300_000
    #: Bytes of one arbitrary-precision integer; torch's own loader stops at 255. Python
    #: prints integers of up to 4300 digits, which have 1785 bytes.
    int_nbytes: int = 1785
    #: Values in tuples and frozensets that are keys of a dict or items of a set, in addition to 32
    #: for every byte of the pickle. Each use counts, since a tuple is hashed again each time. Keys
    #: with the same hash count once more for each other one.
    key_values: int = 1_000_000
    #: Depth of nested tuples in such a key.
    key_nesting: int = 100
    #: Records in an archive.
    entries: int = 10_000_000
    #: Bytes of a text record such as ``version`` or ``byteorder``.
    text_nbytes: int = 4096
    #: Inflated size of all deflated records divided by the size of the file, not counting the first
    #: 64 MiB; for a deflated pickle alone, not counting the first 8 MiB. Checkpoints that were
    #: zipped again have less than 2, or up to 10 if optimizer moments are all zeros.
    deflate_ratio: int = 32
    #: Flat names in addition to one for each tensor, if containers are shared.
    shared_names: int = 250_000
    #: Characters of all flat names together, unless the pickle itself is longer.
    names_nbytes: int = 64 << 20
    #: Bytes of the JSON header of a safetensors file (the package has the same bound, 100 MB), and
    #: of all configs of a .pt2 archive.
    header_nbytes: int = 100_000_000
    #: Bytes of all class definitions of a TorchScript archive that are read; the largest seen have
    #: a few MB.
    code_nbytes: int = 32 << 20

    def or_default(self) -> Limits:
        """Return the higher of each bound and its default, for checking a copy that is written.

        A file that was read with a higher bound can be written again, and needs that bound again.

        >>> Limits(nesting=5, memo=1 << 30).or_default() == Limits(memo=1 << 30)
        True
        """
        default = DEFAULT_LIMITS
        names = [field.name for field in fields(self)]
        return Limits(**{name: max(getattr(self, name), getattr(default, name)) for name in names})

    def __post_init__(self) -> None:
        for field in fields(self):
            bound = getattr(self, field.name)
            if type(bound) is not int:
                raise TypeError(f"{field.name} must be an int, not {type(bound).__name__}")
            if bound < 0:
                raise ValueError(f"{field.name} must be 0 or more, not {bound}")


#: What holds where nobody asks for anything else.
DEFAULT_LIMITS = Limits()
