"""What ``torch.load`` would do with a pickle, followed opcode by opcode; nothing is made or called.

torch 2.13 has two loaders. The default one (``weights_only=True``) is an interpreter of 34 opcodes
with a list of names. The other is Python's own, which does what the file says. Both are followed at
once: what only the first refuses is noted, and what both refuse is a `RefusedError`. The default
loader checks less than torchzip in some places and more in others; this asks for the latter.

torchzip has read the file before, so the pickle is whole, its stack is never empty and its keys are
cheap to hash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from torchzip.dtypes import ALIASES
from torchzip.errors import shown
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.pickling.disassembly import Step
from torchzip.pickling.python2 import python3_name
from torchzip.tools.torch_verdict.calls import call, described, new, set_attributes, value_of
from torchzip.tools.torch_verdict.values import (
    DICTS,
    UNKNOWN,
    Made,
    RefusedError,
    Unknown,
    check_hash,
    is_dict,
    is_empty,
    is_tensor,
)

#: Names that are allowed once another module of torch is imported.
_IMPORTS = {"torch._dynamo.decorators._DimRange": "torch._dynamo"}
#: The class of storages without a dtype.
_UNTYPED = "torch.storage.UntypedStorage"
#: Tags of storages that torch knows a device for, on one machine or another.
_KNOWN_TAG = re.compile(r"cpu|meta|mps(:\d+)?|(cuda|xpu|hpu|mtia|privateuseone)(:\d+)?", re.ASCII)


class TorchLoader:
    """Follows the pickles of one file; ``is_legacy`` says of which format.

    ``refused`` are the names that the default loader refuses, ``opcodes`` those that it does not
    know, ``reasons`` what else only it refuses. ``provisos`` are what the caller has to see to
    before it takes the file.
    """

    def __init__(self, *, is_legacy: bool) -> None:
        self.is_legacy = is_legacy
        self.refused: dict[str, None] = {}
        self.opcodes: dict[str, None] = {}
        self.reasons: dict[str, None] = {}
        self.provisos: dict[str, None] = {}
        # The dtype of each storage, and whether it has bytes, by its key.
        self._storages: dict[Any, Made] = {}
        self._names: dict[tuple[str, str], Any] = {}

    def run(self, steps: Iterable[Step], *, has_storages: bool = True) -> Any:
        """Follow one pickle; return what stands for its value.

        Raises
        ------
        RefusedError
            If both loaders fail.
        """
        return _Run(self, has_storages).run(steps)

    # -- names -----------------------------------------------------------------------------

    def name(self, module: str, name: str, protocol: int) -> Any:
        """Return what stands for a name."""
        known = self._names.get((module, name))
        if known is None:
            known = self._names[module, name] = self._find(module, name, protocol)
        return known

    def _find(self, module: str, name: str, protocol: int) -> Any:
        # The default loader translates names of Python 2 whatever the protocol.
        path = ".".join(python3_name(module, name))
        if is_torch_safe(*python3_name(module, name)):
            return value_of(path)
        if path in _IMPORTS:
            self.provisos[f"after import {_IMPORTS[path]}"] = None
        else:
            self.refused[path] = None
            module, _, alias = path.rpartition(".")
            if module == "torch" and alias in ALIASES:
                return value_of(f"torch.{ALIASES[alias]}")
        return UNKNOWN

    # -- storages --------------------------------------------------------------------------

    def storage(self, pid: Any) -> Any:
        """Return what stands for a persistent id."""
        if isinstance(pid, Unknown):
            return UNKNOWN
        if not isinstance(pid, tuple) or not pid:
            raise RefusedError(f"a persistent id is {described(pid)}; a tuple was expected")
        what = pid[0].decode("latin-1") if isinstance(pid[0], bytes) else pid[0]
        if what == "module" and self.is_legacy:
            self.reasons["a class is stored with its source"] = None
            return pid[1] if len(pid) == 4 else UNKNOWN
        wanted = 6 if self.is_legacy else 5
        if what != "storage" or len(pid) != wanted:
            raise RefusedError(
                f"a persistent id has {len(pid)} values; {wanted} were expected in this format"
            )
        kind, key, location, numel = pid[1:5]
        if isinstance(location, bytes) and not location.isascii():
            raise RefusedError(f"the location of a storage is {shown(location)}")
        if isinstance(location, str) and _KNOWN_TAG.fullmatch(location) is None:
            self.provisos[f"with map_location, as a storage is tagged {shown(location)}"] = None
        torch_dtype = self._dtype_of(kind)
        known = self._storages.get(key)
        if known is None or not known.count:  # an empty one has the dtype of each mention
            known = self._storages[key] = Made("storage", torch_dtype, count=numel)
        if self.is_legacy and pid[5] is not None:
            check_hash(pid[5])
        return known

    def _dtype_of(self, kind: Any) -> str:
        if isinstance(kind, Unknown):
            return ""
        if isinstance(kind, Made) and kind.kind == "StorageType":
            return kind.name
        if isinstance(kind, Made) and kind.name == _UNTYPED and not self.is_legacy:
            return "uint8"
        raise RefusedError(
            f"a storage is of class {described(kind)}, which torch cannot load"
            + (" from the legacy format" if self.is_legacy else "")
        )


class _Run:
    """The stack of one pickle."""

    def __init__(self, loader: TorchLoader, has_storages: bool) -> None:
        self._loader = loader
        self._has_storages = has_storages
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._protocol = 0
        self._frame_end = 0

    def run(self, steps: Iterable[Step]) -> Any:
        acts = _ACTS
        for step in steps:
            opcode = step.opcode
            if not opcode.torch_safe:
                self._loader.opcodes[opcode.name] = None
            if step.offset + 1 < self._frame_end < step.end and self._is_cut(step):
                raise RefusedError("a frame of the pickle ends within an opcode")
            try:
                acts[opcode.name](self, step)
            except IndexError:
                raise RefusedError("an opcode finds too little on the stack") from None
        return self._stack[-1] if self._stack else UNKNOWN

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    # -- constants -------------------------------------------------------------------------

    def _nothing(self, step: Step) -> None:
        pass

    def _frame(self, step: Step) -> None:
        """Python's loader reads a frame at once, and then continues after it.

        From a file object with ``peek``, as legacy files are read, it loses nothing.
        """
        end = step.end + step.argument
        if step.end < self._frame_end < end and not self._loader.is_legacy:
            raise RefusedError("a frame ends within another")
        self._frame_end = max(self._frame_end, end)

    def _is_cut(self, step: Step) -> bool:
        """Return whether a frame ends within what is read at once; a size is read by itself."""
        behind_size = step.end - (step.nbytes if "bytes" in step.opcode.argument else 0)
        return not self._loader.is_legacy and self._frame_end != behind_size

    def _proto(self, step: Step) -> None:
        self._protocol = step.argument

    def _number(self, step: Step) -> None:
        self._stack.append(step.argument)

    def _long(self, step: Step) -> None:
        self._stack.append(int.from_bytes(step.argument, "little", signed=True))

    def _line(self, step: Step) -> None:
        line = step.argument
        if step.opcode.name == "FLOAT":
            self._stack.append(float(line))
        elif line in (b"00", b"01"):
            self._stack.append(line == b"01")
        else:
            self._stack.append(int(line.removesuffix(b"L")))

    def _text(self, step: Step) -> None:
        name, raw = step.opcode.name, step.argument
        if name in ("SHORT_BINSTRING", "BINSTRING") and step.nbytes == len(raw):
            try:
                raw.decode()
            except UnicodeDecodeError:
                raise RefusedError(
                    f"a string of Python 2 is {shown(raw)}, which is not UTF-8"
                ) from None
        if name == "UNICODE":
            self._stack.append(raw.decode("raw-unicode-escape", "replace"))
        elif name == "STRING":
            self._stack.append(raw[1:-1].decode("latin-1"))
        elif step.nbytes == len(raw):
            self._stack.append(raw.decode("utf-8", "surrogatepass"))
        else:
            self._stack.append(raw.decode("utf-8", "replace"))

    def _bytes(self, step: Step) -> None:
        self._stack.append(
            Made("bytearray", count=step.nbytes)
            if step.opcode.name == "BYTEARRAY8"
            else step.argument
        )

    def _constant(self, step: Step) -> None:
        self._stack.append(_CONSTANTS[step.opcode.name])

    def _empty(self, step: Step) -> None:
        self._stack.append(Made(step.opcode.name.removeprefix("EMPTY_").lower()))

    # -- containers ------------------------------------------------------------------------

    def _mark(self, step: Step) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _tuple(self, step: Step) -> None:
        count = _COUNTS.get(step.opcode.name)
        if count is None:
            items = self._marked()
        else:
            items = self._stack[-count:]
            del self._stack[-count:]
        self._stack.append(tuple(items))

    def _list(self, step: Step) -> None:
        items = self._marked()
        self._stack.append(Made("list"))
        self._stack[-1].append(items)

    def _dict(self, step: Step) -> None:
        items = self._marked()
        self._stack.append(Made("dict"))
        self._fill(self._stack[-1], items)

    def _frozenset(self, step: Step) -> None:
        for item in self._marked():
            check_hash(item)
        self._stack.append(UNKNOWN)

    def _add_items(self, step: Step) -> None:
        items = self._marked()
        for item in items:
            check_hash(item)
        if isinstance(self._stack[-1], Made):
            self._stack[-1].count += len(items)

    def _append(self, step: Step) -> None:
        items = [self._stack.pop()] if step.opcode.name == "APPEND" else self._marked()
        target = self._stack[-1]
        if isinstance(target, Made) and target.kind == "list":
            target.append(items)
        elif not isinstance(target, Unknown):
            raise RefusedError(f"something is appended to {described(target)}")

    def _set_items(self, step: Step) -> None:
        if step.opcode.name == "SETITEM":
            items = self._stack[-2:]
            del self._stack[-2:]
        else:
            items = self._marked()
        self._fill(self._stack[-1], items)

    def _fill(self, target: Any, items: list[Any]) -> None:
        for key in items[::2]:
            if type(key) is not str:
                check_hash(key)
        if isinstance(target, Made) and target.kind in DICTS:
            for key, value in zip(items[::2], items[1::2], strict=False):
                target.put(key, value)
        elif not isinstance(target, Unknown):
            raise RefusedError(f"items are set in {described(target)}")

    # -- the stack and the memo ------------------------------------------------------------

    def _pop(self, step: Step) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _pop_mark(self, step: Step) -> None:
        self._marked()

    def _dup(self, step: Step) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, step: Step) -> None:
        name = step.opcode.name
        number = len(self._memo) if name == "MEMOIZE" else int(step.argument)
        self._memo[number] = self._stack[-1]

    def _get(self, step: Step) -> None:
        try:
            self._stack.append(self._memo[int(step.argument)])
        except KeyError:
            raise RefusedError(f"memo number {step.argument!r} was never set") from None

    # -- names and objects -----------------------------------------------------------------

    def _global(self, step: Step) -> None:
        module, name = step.argument
        if step.nbytes != len(module) + len(name):
            raise RefusedError("a name has a carriage return, or more than 256 bytes")
        self._stack.append(self._named(module, name))

    def _named(self, module: bytes, name: bytes) -> Any:
        return self._loader.name(module.decode(), name.decode(), self._protocol)

    def _stack_global(self, step: Step) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise RefusedError("a name is not a string")
        self._stack.append(self._loader.name(module, name, self._protocol))

    def _extension(self, step: Step) -> None:
        self._stack.append(UNKNOWN)

    def _inst(self, step: Step) -> None:
        items = tuple(self._marked())
        self._stack.append(call(self._named(*step.argument), items))

    def _obj(self, step: Step) -> None:
        callee, *items = self._marked()
        self._stack.append(call(callee, tuple(items)))

    def _reduce(self, step: Step) -> None:
        args = self._stack.pop()
        made = self._stack[-1] = call(self._stack[-1], args)
        if self._loader.is_legacy and isinstance(made, Made) and made.form == "nested":
            raise RefusedError(
                "a nested tensor in the legacy format, whose sizes torch asks for before it has "
                "read them"
            )

    def _new(self, step: Step) -> None:
        if step.opcode.name == "NEWOBJ_EX":
            self._stack.pop()
        args = self._stack.pop()
        self._stack[-1] = new(self._stack[-1], args)

    def _persistent(self, step: Step) -> None:
        pid: Any = step.argument if step.opcode.name == "PERSID" else self._stack.pop()
        if not self._has_storages:
            raise RefusedError("a pickle around the object mentions a storage")
        self._stack.append(self._loader.storage(pid))

    def _build(self, step: Step) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Unknown) or isinstance(state, Unknown):
            return
        kind = target.kind if isinstance(target, Made) else ""
        if is_tensor(target):
            self._build_tensor(target, state)
        elif kind in ("OrderedDict", "Counter"):
            self._build_dict(kind, state)
        elif kind in ("set", "bytearray", "Size", "device") or isinstance(target, complex):
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            if not all(map(is_empty, parts)):
                raise RefusedError(f"{described(target)} is given a state, and has no attributes")
        else:
            raise RefusedError(f"{described(target)} is given a state, which it cannot have")

    def _build_dict(self, kind: str, state: Any) -> None:
        if kind == "Counter" and is_empty(state):
            return
        if isinstance(state, tuple) and (kind == "Counter" or len(state) == 2):
            self._loader.reasons[f"the state of a {kind} is a tuple"] = None
            return
        if not is_dict(state):
            raise RefusedError(f"{described(state)} is the state of a {kind}; a dict was expected")

    def _build_tensor(self, target: Made, state: Any) -> None:
        """``Tensor.__setstate__``; the default loader takes the first of its forms alone."""
        if not isinstance(state, tuple):
            raise RefusedError(f"{described(state)} is the state of a tensor")
        if len(state) == 4:
            storage = state[0]
            if not isinstance(storage, Unknown) and not (
                isinstance(storage, Made)
                and storage.kind == "storage"
                and storage.name == target.name
            ):
                raise RefusedError(f"a tensor of {target.name} is set to {described(storage)}")
            return
        if target.kind == "Tensor":
            self._loader.reasons["the state of a tensor is that of a Variable"] = None
        if len(state) == 5:
            state = (state[3], state[4], state[2])
        if len(state) != 3:
            raise RefusedError(f"the state of a tensor has {len(state)} values")
        set_attributes(target, _state(requires_grad=state[0]))


def _state(**items: Any) -> Made:
    made = Made("dict")
    for name, value in items.items():
        made.put(name, value)
    return made


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTS: dict[str, Callable[[_Run, Step], None]] = {
    "FRAME": _Run._frame,
    **dict.fromkeys(("STOP", "NEXT_BUFFER", "READONLY_BUFFER"), _Run._nothing),
    "PROTO": _Run._proto,
    **dict.fromkeys(_CONSTANTS, _Run._constant),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT"), _Run._number),
    **dict.fromkeys(("LONG1", "LONG4"), _Run._long),
    **dict.fromkeys(("INT", "LONG", "FLOAT"), _Run._line),
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
         "BINUNICODE8"),
        _Run._text,
    ),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Run._bytes),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), _Run._empty),
    "MARK": _Run._mark,
    **dict.fromkeys(("TUPLE", *_COUNTS), _Run._tuple),
    "LIST": _Run._list,
    "DICT": _Run._dict,
    "FROZENSET": _Run._frozenset,
    "ADDITEMS": _Run._add_items,
    **dict.fromkeys(("APPEND", "APPENDS"), _Run._append),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _Run._set_items),
    "POP": _Run._pop,
    "POP_MARK": _Run._pop_mark,
    "DUP": _Run._dup,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Run._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Run._get),
    "GLOBAL": _Run._global,
    "STACK_GLOBAL": _Run._stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Run._extension),
    "INST": _Run._inst,
    "OBJ": _Run._obj,
    "REDUCE": _Run._reduce,
    **dict.fromkeys(("NEWOBJ", "NEWOBJ_EX"), _Run._new),
    "BUILD": _Run._build,
    **dict.fromkeys(("PERSID", "BINPERSID"), _Run._persistent),
}  # fmt: skip
