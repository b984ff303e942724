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
from collections.abc import Iterable
from typing import Any

from torchzip.dtypes import ALIASES
from torchzip.errors import shown
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.pickling.disassembly import Step
from torchzip.pickling.python2 import python3_name
from torchzip.tools.torch_verdict.calls import call, described, new, set_attributes, value_of
from torchzip.tools.torch_verdict.values import (
    UNKNOWN,
    Made,
    RefusedError,
    Unknown,
    check_hash,
    is_a,
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

    def run(self, steps: Iterable[Step], *, has_storages: bool) -> None:
        """Follow one pickle.

        Raises
        ------
        RefusedError
            If both loaders fail.
        """
        _Run(self, has_storages).run(steps)

    # -- names -----------------------------------------------------------------------------

    def name(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        # The default loader translates names of Python 2 whatever the protocol.
        module, name = python3_name(module, name)
        path = f"{module}.{name}"
        if is_torch_safe(module, name):
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
        if is_a(kind, "StorageType"):
            return str(kind.name)
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
        self._frame_end = 0

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            opcode = step.opcode
            if not opcode.torch_safe:
                self._loader.opcodes[opcode.name] = None
            if step.offset + 1 < self._frame_end < step.end and self._is_cut(step):
                raise RefusedError("a frame of the pickle ends within an opcode")
            try:
                self._act(opcode.name, step.argument, step)
            except IndexError:
                raise RefusedError("an opcode finds too little on the stack") from None

    def _act(self, name: str, argument: Any, step: Step) -> None:
        """Carry out one opcode; those that a file has most often come first."""
        stack = self._stack
        match name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[int(argument)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                try:
                    stack.append(self._memo[int(argument)])
                except KeyError:
                    raise RefusedError(f"memo number {argument!r} was never set") from None
            case "BININT1" | "BININT" | "BININT2" | "BINFLOAT":
                stack.append(argument)
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "TUPLE":
                items = self._marked()
                self._stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                is_whole = step.nbytes == len(argument)
                stack.append(argument.decode("utf-8", "surrogatepass" if is_whole else "replace"))
            case "EMPTY_TUPLE":
                stack.append(())
            case "NEWFALSE" | "NEWTRUE":
                stack.append(name == "NEWTRUE")
            case "NONE":
                stack.append(None)
            case "REDUCE":
                args = stack.pop()
                made = stack[-1] = call(stack[-1], args)
                if self._loader.is_legacy and isinstance(made, Made) and made.form == "nested":
                    raise RefusedError(
                        "a nested tensor in the legacy format, whose sizes torch asks for before "
                        "it has read them"
                    )
            case "BINPERSID" | "PERSID":
                pid = argument if name == "PERSID" else stack.pop()
                if not self._has_storages:
                    raise RefusedError("a pickle around the object mentions a storage")
                stack.append(self._loader.storage(pid))
            case "GLOBAL":
                if step.nbytes != sum(map(len, argument)):
                    raise RefusedError("a name has a carriage return, or more than 256 bytes")
                stack.append(self._loader.name(*(part.decode() for part in argument)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                if type(attribute) is not str or type(module) is not str:
                    raise RefusedError("a name is not a string")
                stack.append(self._loader.name(module, attribute))
            case "INST":
                args = tuple(self._marked())
                callee = self._loader.name(*(part.decode() for part in argument))
                self._stack.append(call(callee, args))
            case "OBJ":
                callee, *items = self._marked()
                self._stack.append(call(callee, tuple(items)))
            case "NEWOBJ" | "NEWOBJ_EX":
                if name == "NEWOBJ_EX":
                    stack.pop()
                args = stack.pop()
                stack[-1] = new(stack[-1], args)
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(Made(name.removeprefix("EMPTY_").lower()))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self._marked()
                self._append(self._stack[-1], items)
            case "SETITEM" | "SETITEMS":
                if name == "SETITEM":
                    items = stack[-2:]
                    del stack[-2:]
                else:
                    items = self._marked()
                self._set_items(self._stack[-1], items)
            case "ADDITEMS" | "FROZENSET":
                items = self._marked()
                for item in items:
                    check_hash(item)
                if name == "FROZENSET":
                    self._stack.append(UNKNOWN)
                elif isinstance(self._stack[-1], Made):
                    self._stack[-1].count += len(items)
            case "LIST" | "DICT":
                items = self._marked()
                self._stack.append(Made(name.lower()))
                fill = self._append if name == "LIST" else self._set_items
                fill(self._stack[-1], items)
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "DUP":
                stack.append(stack[-1])
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self._marked()
            case "LONG1" | "LONG4":
                stack.append(int.from_bytes(argument, "little", signed=True))
            case "INT" | "LONG":
                number = int(argument.removesuffix(b"L"))
                stack.append(bool(number) if argument in (b"00", b"01") else number)
            case "FLOAT":
                stack.append(float(argument))
            case "BINSTRING" | "SHORT_BINSTRING":
                is_whole = step.nbytes == len(argument)
                try:
                    stack.append(argument.decode("utf-8", "strict" if is_whole else "replace"))
                except UnicodeDecodeError:
                    raise RefusedError(
                        f"a string of Python 2 is {shown(argument)}, which is not UTF-8"
                    ) from None
            case "STRING":
                stack.append(argument[1:-1].decode("latin-1"))
            case "UNICODE":
                stack.append(argument.decode("raw-unicode-escape", "replace"))
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "BYTEARRAY8":
                stack.append(Made("bytearray", count=step.nbytes))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(UNKNOWN)
            case "FRAME":
                self._begin_frame(step)

    def _marked(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    # -- frames ----------------------------------------------------------------------------

    def _begin_frame(self, step: Step) -> None:
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

    # -- items and states ------------------------------------------------------------------

    def _append(self, target: Any, items: list[Any]) -> None:
        if is_a(target, "list"):
            target.append(items)
        elif not isinstance(target, Unknown):
            raise RefusedError(f"something is appended to {described(target)}")

    def _set_items(self, target: Any, items: list[Any]) -> None:
        for key in items[::2]:
            if type(key) is not str:
                check_hash(key)
        if is_dict(target):
            for key, value in zip(items[::2], items[1::2], strict=False):
                target.put(key, value)
        elif not isinstance(target, Unknown):
            raise RefusedError(f"items are set in {described(target)}")

    def _build(self, target: Any, state: Any) -> None:
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
            is_right = is_a(storage, "storage") and storage.name == target.name
            if not (is_right or isinstance(storage, Unknown)):
                raise RefusedError(f"a tensor of {target.name} is set to {described(storage)}")
            return
        if target.kind == "Tensor":
            self._loader.reasons["the state of a tensor is that of a Variable"] = None
        if len(state) == 5:
            state = (state[3], state[4], state[2])
        if len(state) != 3:
            raise RefusedError(f"the state of a tensor has {len(state)} values")
        set_attributes(target, Made("dict", count=1, items={"requires_grad": state[0]}))
