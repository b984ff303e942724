"""Values to bytes: the opcodes that CPython's C pickler writes at protocol 2.

``torch.save`` uses that pickler, so a file that is identical to torch's needs the same opcodes,
including which objects get a memo number and when. The rules (docs/format.md, section 5) are those
of CPython 3.8 to 3.14, ``Modules/_pickle.c``; where releases differ, those of the running Python:

* Every put is written, used or not, and objects are numbered in the order of their puts. None,
  bools, ints, floats and the empty tuple never get a number.
* An object that has a number is written as a get. Identity decides, not equality.
* A list or dict is put before its contents, a tuple after them. A tuple that turns out to have
  been put meanwhile contains itself: its items are popped again, and a get written.
* Batches of 1000. The last batch of a list has the remaining items, even if it is only one. A
  dict continues as long as the last batch was full, so 1000 pairs end with an empty batch. Items
  of other objects come from an iterator: a single remaining one is written without a mark.
* Names are those of Python 2 where they differ.

This module does not know numpy arrays and tensors: ``writers`` maps types to functions that
write them with the methods of `Emitter`, and ``find_writer`` returns one for other types.
"""

from __future__ import annotations

import copyreg
import functools
import re
import struct
import sys
from _compat_pickle import REVERSE_IMPORT_MAPPING, REVERSE_NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import FunctionType
from typing import Any

from torchzip.errors import printable, shortened
from torchzip.leaf_types import ForeignObject
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.pickling.opcodes import get_opcode, put_opcode, text_opcode
from torchzip.pickling.reductions import (
    Reduction,
    fault_of,
    is_nested_name,
    module_of,
    numbers_parts_of_names,
    reduce_object,
    text_of,
)

_BATCH = 1000
#: Fewer are as fast one by one as in bulk.
_MANY_PAIRS = 24
#: The name that represents a code of ``copyreg``'s extension registry.
_EXTENSION = re.compile(r"extension ([1-9][0-9]{0,9})")
#: Most characters of a path in an error.
_MAX_PATH = 300
_PACK_I32 = struct.Struct("<i").pack
_PACK_U32 = struct.Struct("<I").pack
_PACK_F64 = struct.Struct(">d").pack

Writer = Callable[["Emitter", Any], None]
#: Writes pairs of a list from a position on, as far as it can; returns how many.
Bulk = Callable[["Emitter", Sequence[tuple[Any, Any]], int], int]


class StoppedError(Exception):
    """Raised at the byte set by `Emitter.stop_at`: ``path`` is that of the current value."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Emitter:
    """Writes one value as one pickle. `dump` returns its bytes.

    ``refused`` then lists what torch's default loader will refuse: (path, reason). ``is_plain``
    says whether it only holds numbers below 256 bytes, strings, lists, tuples, dicts,
    OrderedDicts, and the types of ``plain``; ``int_nbytes`` is the size of the longest int, if it
    has more than 32 bits.

    Methods for writers: `save` writes any value, `name` a global, `call` the call of one, `string`
    a string by its identity, `write` raw opcodes; `put` numbers the value just written, `written`
    writes a get if the value has a number.
    """

    def __init__(
        self,
        writers: Mapping[type, Writer],
        reduce: Callable[[Any], Reduction] = reduce_object,
        bulk: Bulk | None = None,
        find_writer: Callable[[type], Writer | None] = lambda kind: None,
        plain: Collection[type] = (),
    ) -> None:
        self.is_plain: bool = True
        self.int_nbytes: int = 0
        self.refused: list[tuple[str, str]] = []
        self.path: list[Any] = []
        self.count: int = 0  # memo numbers given so far
        self._writers = writers
        self._reduce = reduce
        self._bulk = bulk
        self._find_writer = find_writer
        self._plain = plain
        self._parts: list[bytes] = [b"\x80\x02"]
        self.write = self._parts.append
        self.memo: dict[Any, int] = {}  # the numbers by key, which bulk writers add to
        self._alive: list[Any] = []  # objects whose id is a key of the memo, kept alive
        self._dispatch: dict[type, Callable[[Any], None]] = {
            type(None): lambda value: self.write(b"N"),
            bool: lambda value: self.write(b"\x88" if value else b"\x89"),
            int: self._int,
            float: lambda value: self.write(b"G" + _PACK_F64(value)),
            str: self.string,
            bytes: self._bytes,
            bytearray: self._bytearray,
            tuple: self._tuple,
            list: self._list,
            dict: self._dict,
            set: self._set,
            frozenset: self._set,
            type: self._class_or_function,
            FunctionType: self._class_or_function,
            ForeignObject: self._foreign,
        }
        self._builtin = frozenset(self._dispatch)

    def dump(self, value: Any) -> bytes:
        """Return the pickle of ``value``.

        Raises
        ------
        TypeError, ValueError
            If something in it cannot be saved; the message begins with the path to it.
        """
        try:
            self.save(value)
        except RecursionError:
            raise ValueError(f"{self.where(shorten=True)}: nested too deeply to be saved") from None
        self.write(b".")
        return b"".join(self._parts)

    def stop_at(self, offset: int) -> None:
        """Let `dump` raise StoppedError when it reaches this byte of the pickle."""
        left = offset - len(self._parts[0])

        def write(part: bytes) -> None:
            nonlocal left
            left -= len(part)
            if left < 0:
                raise StoppedError(self.where())

        self.write = write

    def where(self, *, shorten: bool = False) -> str:
        """Return the path of the current value, for messages."""
        parts = [*self.path[:3], "..."] if shorten and len(self.path) > 3 else self.path
        path = ".".join(map(text_of, parts))
        # Keys may come from a hostile file that is saved again.
        return shortened(printable(path), _MAX_PATH) or "the object itself"

    # -- for writers ---------------------------------------------------------------------

    def save(self, value: Any) -> None:
        """Write any value."""
        writer = self._dispatch.get(type(value))
        if writer is not None:
            writer(value)
        else:
            self._other(value)

    def put(self, key: Any) -> None:
        """Give the value just written the next number, under ``key``.

        The key None is for values that never occur again.
        """
        number = self.count
        self.count = number + 1
        if key is not None:
            self.memo[key] = number
        self.write(put_opcode(number))

    def put_object(self, value: Any) -> None:
        """Give the value just written the next number, under its identity."""
        self._alive.append(value)
        self.put(id(value))

    def written(self, key: Any) -> bool:
        """Write a get and return True if ``key`` has a number."""
        number = self.memo.get(key)
        if number is None:
            return False
        self.write(get_opcode(number))
        return True

    def refuse(self, reason: str) -> None:
        """Note that torch's default loader will refuse the current value."""
        self.is_plain = False
        self.refused.append((self.where(), reason))

    def string(self, value: str) -> None:
        """Write a string, or a get of the same string object."""
        if not self.written(id(value)):
            raw = value.encode("utf-8", "surrogatepass")
            if len(raw) > 0xFFFFFFFF:
                raise ValueError(f"{self.where()}: a string of more than 4 GiB")
            self.write(text_opcode(len(raw)) + raw)
            self.put_object(value)

    def name(self, module: str, name: str) -> None:
        """Write a global by its Python 3 name, or a get of it."""
        if not is_torch_safe(module, name):
            self.refuse(f"{module}.{name}")
        key = (module, name)
        if self.written(key):
            return
        top, *attributes = name.split(".")
        if not attributes:
            self._top_level_name(module, name)
        elif numbers_parts_of_names():
            self.name("builtins", "getattr")
            self.name(module, name[: -len(attributes[-1]) - 1])
            self.string(attributes[-1])
            self.write(b"\x86")
            self.put(None)
            self.write(b"R")
        else:
            for _ in attributes:
                self.name("builtins", "getattr")
            self._top_level_name(module, top)
            for attribute in attributes:
                self.string(attribute)
                self.write(b"\x86R")
        self.put(key)

    def call(self, module: str, name: str, args: tuple[Any, ...]) -> None:
        """Write the call of a global."""
        self.name(module, name)
        self._tuple(args)
        self.write(b"R")

    def _top_level_name(self, module: str, name: str) -> None:
        """Write the opcode of a global."""
        if (module, name) in REVERSE_NAME_MAPPING:
            module, name = REVERSE_NAME_MAPPING[module, name]
        elif module in REVERSE_IMPORT_MAPPING:
            module = REVERSE_IMPORT_MAPPING[module]
        if "\n" in module or "\n" in name:
            raise ValueError(f"{self.where()}: a name with a line break, {name!r}")
        try:
            self.write(f"c{module}\n{name}\n".encode())
        except UnicodeEncodeError:
            raise ValueError(
                f"{self.where()}: a name that is not Unicode, {module!r} {name!r}"
            ) from None

    # -- plain values ----------------------------------------------------------------------

    def _int(self, value: int) -> None:
        if 0 <= value < 256:
            self.write(b"K%c" % value)
        elif 0 <= value < 65536:
            self.write(b"M" + value.to_bytes(2, "little"))
        elif -0x80000000 <= value < 0x80000000:
            self.write(b"J" + _PACK_I32(value))
        else:
            raw = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
            if value < 0 and len(raw) > 1 and raw[-1] == 0xFF and raw[-2] & 0x80:
                raw = raw[:-1]
            self.int_nbytes = max(self.int_nbytes, len(raw))
            if len(raw) < 256:
                self.write(b"\x8a%c" % len(raw) + raw)
            else:
                self.refuse("an int of 256 bytes or more")
                self.write(b"\x8b" + _PACK_I32(len(raw)) + raw)

    def _bytes(self, value: bytes) -> None:
        if self.written(id(value)):
            return
        if value:
            self.call("_codecs", "encode", (value.decode("latin1"), "latin1"))
        else:
            self.call("builtins", "bytes", ())
        self.put_object(value)

    def _bytearray(self, value: bytearray) -> None:
        if self.written(id(value)):
            return
        self.call("builtins", "bytearray", (bytes(value),) if value else ())
        self.put_object(value)

    # -- containers --------------------------------------------------------------------------

    def _tuple(self, value: tuple[Any, ...]) -> None:
        size = len(value)
        if size == 0:
            self.write(b")")
            return
        if self.written(id(value)):
            return
        if size > 3:
            self.write(b"(")
        self._items(value)
        number = self.memo.get(id(value))
        if number is not None:  # it contains itself, through a list or a dict
            self.refuse("a tuple that contains itself")
            self.write(b"0" * size if size <= 3 else b"1")
            self.written(id(value))
            return
        self.write((b"\x85", b"\x86", b"\x87")[size - 1] if size <= 3 else b"t")
        self.put_object(value)

    def _items(self, values: Iterable[Any], first: int = 0) -> None:
        """Write values in order, with positions from ``first`` on in their paths."""
        path, dispatch = self.path, self._dispatch
        path.append(None)
        for index, item in enumerate(values, first):
            path[-1] = index
            writer = dispatch.get(type(item))
            if writer is not None:
                writer(item)
            else:
                self._other(item)
        path.pop()

    def _pairs(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        path, dispatch = self.path, self._dispatch
        bulk = self._bulk if len(pairs) >= _MANY_PAIRS else None
        path.append(None)
        index = 0
        while index < len(pairs):
            key, value = pairs[index]
            if bulk is not None and (type(value) is dict or type(value) not in self._builtin):
                done = bulk(self, pairs, index)
                if done:
                    index += done
                    continue
            index += 1
            path[-1] = key
            writer = dispatch.get(type(key))
            if writer is not None:
                writer(key)
            else:
                self._other(key)
            writer = dispatch.get(type(value))
            if writer is not None:
                writer(value)
            else:
                self._other(value)
        path.pop()

    def _list(self, value: list[Any]) -> None:
        if self.written(id(value)):
            return
        self.write(b"]")
        self.put_object(value)
        if len(value) == 1:
            self._items(value)
            self.write(b"a")
            return
        done = 0
        while done < len(value):
            self.write(b"(")
            self._items(value[done : done + _BATCH], done)
            self.write(b"e")
            done += _BATCH

    def _dict(self, value: dict[Any, Any]) -> None:
        if self.written(id(value)):
            return
        self.write(b"}")
        self.put_object(value)
        if len(value) == 1:
            self._pairs(list(value.items()))
            self.write(b"s")
            return
        pairs = iter(value.items())
        # Continues as long as the last batch was full: 1000 pairs end with an empty one.
        while value:
            batch = list(islice(pairs, _BATCH))
            self.write(b"(")
            self._pairs(batch)
            self.write(b"u")
            if len(batch) < _BATCH:
                break

    def _iterated(self, items: Iterator[Any], *, pairs: bool) -> None:
        """Write the items of an iterator, by the third rule of batches."""
        one, many = (b"s", b"u") if pairs else (b"a", b"e")
        done = 0
        while batch := list(islice(items, _BATCH)):
            if len(batch) > 1:
                self.write(b"(")
            if pairs:
                if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in batch):
                    raise TypeError(f"{self.where()}: its dict items are not pairs")
                self._pairs(batch)
            else:
                self._items(batch, done)
            self.write(many if len(batch) > 1 else one)
            if len(batch) < _BATCH:
                return
            done += _BATCH

    def _set(self, value: set[Any] | frozenset[Any]) -> None:
        if self.written(id(value)):
            return
        self.reduced(value, (type(value), (list(value),)))

    # -- names and objects -----------------------------------------------------------------

    def _class_or_function(self, value: Any) -> None:
        for constant in (None, NotImplemented, ...):
            if value is type(constant):  # no module has it under that name
                if not self.written(id(value)):
                    self.reduced(value, (type, (constant,)))
                return
        self._global(value, None)

    def _global(self, value: Any, name: str | None) -> None:
        """Write a live Python object as the name under which it can be imported."""
        if name is None:
            name = getattr(value, "__qualname__", None) or value.__name__
        assert name is not None
        module = module_of(value, name)
        try:
            __import__(module)
            found: Any = sys.modules[module]
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, KeyError, AttributeError):
            raise TypeError(
                f"{self.where()}: cannot save {value!r}: it is not found as {module}.{name}"
            ) from None
        if found is not value:
            raise TypeError(
                f"{self.where()}: cannot save {value!r}: {module}.{name} is something else"
            )
        self.name(module, name)

    def _foreign(self, value: ForeignObject) -> None:
        """Write the opcodes from which a foreign object was read."""
        self.is_plain = False
        if value.how == "name":
            extension = _EXTENSION.fullmatch(value.name) if value.module == "copyreg" else None
            if extension is not None and int(extension[1]) < 1 << 31:
                self._extension(int(extension[1]))
            else:
                self.name(value.module, value.name)
            return
        if is_nested_name(value) and not numbers_parts_of_names():
            self.name(value.module, value.name)
            return
        if self.written(id(value)):
            return
        callee, args = value.callee, value.args or ()
        if value.how == "call" and value.kwargs:
            raise ValueError(
                f"{self.where()}: a call with keywords, for which pickle has no opcode"
            )
        if value.how == "new" and value.kwargs:
            # Protocol 2 has no NEWOBJ_EX: a partial of __new__ is called without arguments.
            make = ForeignObject("builtins", "getattr", (callee, "__new__"))
            state = (make, (callee, *args), value.kwargs, None)
            callee = ForeignObject("functools", "partial", (make,), state=state)
            args = ()
        self.save(callee)
        self._tuple(args)
        self.write(b"\x81" if value.how == "new" and not value.kwargs else b"R")
        if self._is_written_by_now(value):
            return
        self.put_object(value)
        if isinstance(value.items, dict):
            self._iterated(iter(value.items.items()), pairs=True)
        elif isinstance(value.items, set):
            self.refuse("items that are added to a set")
            self.write(b"(")
            self._items(value.items)
            self.write(b"\x90")
        elif value.items:
            self._iterated(iter(value.items), pairs=False)
        self._state(value, value.state, value.setter)

    def _extension(self, code: int) -> None:
        """Write an extension code of ``copyreg``. It never gets a number."""
        self.refuse("an extension code")
        nbytes = 1 if code < 256 else 2 if code < 65536 else 4
        opcode = {1: b"\x82", 2: b"\x83", 4: b"\x84"}[nbytes]
        self.write(opcode + code.to_bytes(nbytes, "little"))

    def _other(self, value: Any) -> None:
        """Write a value of a type that has no method here."""
        kind = type(value)
        for base in kind.__mro__:
            writer = self._writers.get(base)
            if writer is not None:
                break
        else:
            base, writer = kind, self._find_writer(kind)
        if writer is not None:
            self.is_plain = self.is_plain and base in self._plain
            self._dispatch[kind] = functools.partial(writer, self)
            writer(self, value)
            return
        if self.written(id(value)):
            return
        if issubclass(kind, type) and kind not in copyreg.dispatch_table:
            self._class_or_function(value)
            return
        try:
            reduction = self._reduce(value)
        except Exception as error:
            # A foreign __reduce__ may raise anything; the user needs the path.
            raise TypeError(
                f"{self.where()}: cannot save an object of type {kind.__qualname__} "
                f"({text_of(error)})"
            ) from error
        if isinstance(reduction, str):
            self._global(value, reduction)
            return
        if not (isinstance(reduction, tuple) and 2 <= len(reduction) <= 6):
            raise TypeError(
                f"{self.where()}: __reduce_ex__ of {kind.__qualname__} gave no reduction"
            )
        wrong = fault_of(reduction)
        if wrong is not None:
            raise TypeError(
                f"{self.where()}: cannot save an object of type {kind.__qualname__}: its "
                f"reduction has {wrong}"
            )
        self.reduced(value, reduction)

    def reduced(self, value: Any, reduction: tuple[Any, ...]) -> None:
        """Write an object by its reduction."""
        callee, args, state, list_items, dict_items, setter = (*reduction, *(None,) * 4)[:6]
        self._alive.append(reduction)
        if callee is not OrderedDict or args or (state is not None and [*state] != ["_metadata"]):
            self.is_plain = False
        name = getattr(callee, "__name__", "")
        if name == "__newobj__":
            self.save(args[0])
            self._tuple(args[1:])
            self.write(b"\x81")
        elif name == "__newobj_ex__":
            made, positional, keywords = args
            self.save(functools.partial(made.__new__, made, *positional, **keywords))
            self.write(b")R")
        else:
            self.save(callee)
            self._tuple(args)
            self.write(b"R")
        if self._is_written_by_now(value):
            return
        self.put_object(value)
        if list_items is not None:
            self._iterated(iter(list_items), pairs=False)
        if dict_items is not None:
            self._iterated(iter(dict_items), pairs=True)
        self._state(value, state, setter)

    def _is_written_by_now(self, value: Any) -> bool:
        """Write a get in place of an object that its own arguments contain, and return True."""
        if id(value) not in self.memo:
            return False
        self.refuse("an object that contains itself in its arguments")
        self.write(b"0")
        return self.written(id(value))

    def _state(self, value: Any, state: Any, setter: Any) -> None:
        if state is None:
            return
        if setter is None:
            self.save(state)
            self.write(b"b")
            return
        self.save(setter)
        self.save(value)
        self.save(state)
        self.refuse("a state that a function sets")
        self.write(b"\x86R0")
