"""What ``torch.load`` would do with a pickle; nothing in it is made or called.

torch 2.13 has two loaders. The default one (``weights_only=True``) is an interpreter of 34 opcodes
with a list of names. The other is Python's own, which does what the file says. Both are followed at
once: what only the first refuses is noted, and what both refuse is a `RefusedError`. The default
loader checks less than torchzip in some places and more in others; this asks for the latter.

torchzip has read the file before, so whatever its `Interpreter` refuses now is because of what
stands for the values here, and torch refuses it too.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from typing import Any

from torchzip.dtypes import ALIASES
from torchzip.errors import LimitError, TorchZipError, shown
from torchzip.formats.base import collector_paused
from torchzip.leaf_types import ForeignObject
from torchzip.limits import Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.pickling.disassembly import parse_step
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.memo import Memo
from torchzip.pickling.python2 import python2_string, python3_name
from torchzip.pickling.table import Table
from torchzip.tools.torch_verdict.calls import (
    Made,
    RefusedError,
    Unknown,
    call,
    described,
    is_a,
    is_empty,
    is_tensor,
    new,
    set_attributes,
    unknown,
    value_of,
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

    def run(self, data: bytes, limits: Limits, *, has_storages: bool = True) -> None:
        """Follow a pickle.

        Raises
        ------
        RefusedError
            If both loaders fail.
        LimitError
        """
        fault = self._look_at(data)
        table = Table(persistent=self._storage if has_storages else _no_storage)
        try:
            with collector_paused(True):
                _Following(self, data, table, limits).run()
        except LimitError:
            raise
        except TorchZipError as error:
            raise RefusedError(fault or error.message) from None
        if fault is not None:
            raise RefusedError(fault)

    def _look_at(self, data: bytes) -> str | None:
        """Note the opcodes of a pickle; return what both loaders refuse of them, if anything.

        Python's loader reads a frame at once, and then continues after it. From a file object with
        ``peek``, as legacy files are read, it loses nothing.
        """
        faults = []
        end = frame_end = 0
        name = ""
        while name != "STOP":
            step = parse_step(data, end)
            name, end = step.opcode.name, step.end
            if not step.opcode.torch_safe:
                self.opcodes[name] = None
            # The size of a string is read by itself.
            behind_size = end - (step.nbytes if "bytes" in step.opcode.argument else 0)
            if step.offset + 1 < frame_end < end and frame_end != behind_size:
                faults.append("a frame of the pickle ends within an opcode")
            if name == "FRAME" and not self.is_legacy:
                if end < frame_end < end + step.argument:
                    faults.append("a frame ends within another")
                frame_end = max(frame_end, end + step.argument)
            elif name == "GLOBAL" and step.nbytes != sum(map(len, step.argument)):
                faults.append("a name has a carriage return, or more than 256 bytes")
            elif name in ("BINSTRING", "SHORT_BINSTRING"):
                raw = data[end - step.nbytes : end]
                if type(python2_string(raw)) is bytes:
                    said = f"a string of Python 2 is {shown(raw)}"
                    faults.append(f"{said}, which is not UTF-8")
        return faults[0] if faults else None

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
        return ForeignObject(module, name)

    # -- storages --------------------------------------------------------------------------

    def _storage(self, pid: Any) -> Any:
        """Return what stands for a persistent id."""
        if isinstance(pid, Unknown):
            return unknown()
        if not isinstance(pid, tuple) or not pid:
            raise RefusedError(f"a persistent id is {described(pid)}; a tuple was expected")
        what = pid[0].decode("latin-1") if isinstance(pid[0], bytes) else pid[0]
        if what == "module" and self.is_legacy:
            self.reasons["a class is stored with its source"] = None
            return pid[1] if len(pid) == 4 else unknown()
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


def _no_storage(pid: Any) -> Any:
    raise RefusedError("a pickle around the object mentions a storage")


class _Following(Interpreter):
    """An interpreter whose names are those of torch, and whose calls are `calls.call`."""

    def __init__(self, loader: TorchLoader, data: bytes, table: Table, limits: Limits) -> None:
        super().__init__(data, table, limits)
        self._loader = loader

    def _name(self, module: str, name: str) -> Any:
        return self._loader.name(module, name)

    def _call(self, callee: Any, args: Any) -> Any:
        self._charge(args)
        made = call(callee, args)
        if self._loader.is_legacy and isinstance(made, Made) and made.form == "nested":
            raise RefusedError(
                "a nested tensor in the legacy format, whose sizes torch asks for before it has "
                "read them"
            )
        return made

    def _new(self, callee: Any, args: Any, kwargs: Any = None) -> Any:
        return new(callee, args)

    def _build(self, target: Any, state: Any, memo: Memo) -> Any:
        if isinstance(target, Unknown) or isinstance(state, Unknown):
            return target
        is_pair = isinstance(state, tuple) and len(state) == 2
        if is_tensor(target):
            self._build_tensor(target, state)
        elif isinstance(target, OrderedDict | Counter):
            kind = type(target).__name__
            if isinstance(state, tuple) and (kind == "Counter" or is_pair):
                self._loader.reasons[f"the state of a {kind} is a tuple"] = None
            elif not (isinstance(state, dict) or (kind == "Counter" and is_empty(state))):
                raise RefusedError(
                    f"{described(state)} is the state of a {kind}; a dict was expected"
                )
        elif isinstance(target, set | bytearray | complex) or is_a(target, "Size", "device"):
            if not all(map(is_empty, state if is_pair else (state,))):
                raise RefusedError(f"{described(target)} is given a state, and has no attributes")
        else:
            raise RefusedError(f"{described(target)} is given a state, which it cannot have")
        return target

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
        set_attributes(target, {"requires_grad": state[0]})
