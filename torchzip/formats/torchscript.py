"""TorchScript archives: what ``torch.jit.save`` writes (observed: torch 1.13 to 2.13).

The records (docs/format.md, section 11.3): ``data.pkl`` is the module, a tree of objects whose
classes are defined in the archive itself; ``constants.pkl``, which tells these archives from those
of ``torch.save``, is a tuple of what the code refers to as ``CONSTANTS.c0`` and so on. Storage
keys name ``data/<key>`` in the one and ``constants/<key>`` in the other. ``code/`` holds the
classes as text. Of ``traced_inputs.pkl``, ``*.debug_pkl`` and mobile's ``bytecode.pkl`` nothing is
read but the names in them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchzip.container.zip_reader import ZipReader
from torchzip.errors import LimitError, PickleError
from torchzip.formats.base import (
    Child,
    Contents,
    MakeFactory,
    Pickle,
    measured_by,
)
from torchzip.formats.zip import RecordOpener, ZipContainer
from torchzip.limits import Limits
from torchzip.pickling.table import Name
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.script import SCRIPT_PREFIX, ScriptRebuilder
from torchzip.tensors.storage import Measure, TensorStorage
from torchzip.types import ForeignObject, OtherTensor, Parameter

#: Classes written in C++, such as packed quantized weights: they have no definition.
_CPP_CLASSES = f"{SCRIPT_PREFIX}.torch.classes"

# Lines that matter: those at the margin, and the two lists of a module.
_LINE = re.compile(rb"^(?:\S|  __(?:parameters|buffers)__)[^\n]*", re.MULTILINE)
_CLASS = re.compile(rb"class (\w+)(?:\((\w+)\))?:\s*")
_LIST = re.compile(rb"  __(parameters|buffers)__ = \[")
# An escape is a letter or three octal digits; torch's printer escapes nothing in a name.
_ESCAPE = rb"\\([0-3][0-7]{2}|[\\'\"abfnrtv])"
_ITEM = re.compile(rb'"([^"\\]*(?:%s[^"\\]*)*)",? ?' % _ESCAPE)
#: A list of names takes no more than this; a million characters are some fifty thousand names.
_LIST_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ScriptClass:
    """What a class's definition says of the names in a state dict."""

    is_module: bool
    parameters: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()


class TorchScriptContainer(ZipContainer):
    """What ``torch.jit.save`` writes.

    The root is a tree of `types.ForeignObject`s, one for each module. Tensors are named as in the
    ``state_dict()`` of the module that ``torch.jit.load`` gives: its parameters, its buffers, its
    submodules, by what ``code/`` says of its class. Other tensor attributes have no name. Below an
    object whose class is missing there, or not understood, all tensors are named by their place.
    So are those of a module that keeps a state of its own (``__getstate__``) and has parameters or
    buffers: which is which only its code could tell.
    """

    format = "torchscript"
    label = "TorchScript"
    has_code = True
    is_script = True
    keeps_root = False
    can_be_shard = False
    torch_load = "needs weights_only=False"
    torch_reason = "a TorchScript archive; torch.jit.load reads it"
    rebuilder_type = ScriptRebuilder

    def __init__(self, archive: ZipReader, limits: Limits) -> None:
        super().__init__(archive, limits)
        self._code_left = limits.code_nbytes

    def read(self, make_factory: MakeFactory) -> Contents:
        opener = RecordOpener(self)
        factory = make_factory(opener)
        contents = self.run_pickle(self.pickle_record, opener, lambda opener: factory)
        modules = _Modules(self._read_classes(contents.globals))
        modules.mark_parameters(contents.root, factory)
        contents.parts_of = modules.parts_of
        contents.read_constants = lambda: self._read_constants(make_factory)
        return contents

    def pickles(self) -> Iterator[Pickle]:
        yield self._pickle(self.pickle_record)
        for name in self.archive:
            if name != self.pickle_record and name.endswith(("pkl", ".pickle")):
                yield self._pickle(name, is_read=False)

    def _used_records(self) -> set[str]:
        readers = {"data": self.read, "constants": self._read_constants}
        return {
            f"{folder}/{key}"
            for folder, read in readers.items()
            for measured in measured_by(read)
            for key in measured
        }

    def _read_constants(self, make_factory: MakeFactory) -> Contents:
        record = "constants.pkl"
        constants = self.run_pickle(record, self._open_constant, make_factory)
        if type(constants.root) is not tuple:
            raise PickleError(
                f"the constants are a {type(constants.root).__name__}, not a tuple",
                path=self.name,
                record=record,
            )
        return constants

    def _open_constant(self, key: str, measure: Measure) -> TensorStorage:
        return self.open_record(f"constants/{key}", measure)

    def _read_classes(self, names: list[Name]) -> dict[Name, ScriptClass]:
        """Return what the archive says of its classes; those that it does not explain are not."""
        classes: dict[Name, ScriptClass] = {}
        wanted: dict[str, set[str]] = {}
        for module, name in names:
            if _is_below(module, _CPP_CLASSES):
                classes[module, name] = ScriptClass(is_module=False)
            elif _is_below(module, SCRIPT_PREFIX):
                wanted.setdefault(module, set()).add(name)
        for module, held in wanted.items():
            found = self._read_code(module, held)
            classes |= {(module, name): known for name, known in found.items()}
        return classes

    def _read_code(self, module: str, names: set[str]) -> dict[str, ScriptClass]:
        record = f"code/{module.replace('.', '/')}.py"
        if record not in self.archive:
            return {}
        bound = self._limits.code_nbytes
        self._code_left -= self.archive.entry(record).nbytes
        if self._code_left < 0:
            raise LimitError(
                "code_nbytes", bound - self._code_left, bound, path=self.name, record=record
            )
        return parse_classes(self.archive.read(record, limit="code_nbytes"), names)


def _is_below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


class _Modules:
    """The modules in an archive's object."""

    def __init__(self, classes: dict[Name, ScriptClass]) -> None:
        self._classes = classes

    def _class_of(self, value: ForeignObject) -> ScriptClass | None:
        return self._classes.get((value.module, value.name)) if value.how == "new" else None

    def parts_of(self, value: ForeignObject) -> list[Child] | None:
        """Return what the state dict of a module has, in its order; None for whatever is there."""
        known = self._class_of(value)
        if known is None or not known.is_module:
            return None
        state = value.state
        if type(state) is not dict:
            return None if known.parameters or known.buffers else []
        groups: tuple[list[Child], list[Child], list[Child]] = ([], [], [])
        for name, child in state.items():
            row = (str(name), f".state[{name!r}]", child)
            if type(child) is ForeignObject and child.how == "new":
                below = self._class_of(child)
                if below is None or below.is_module:
                    groups[2].append(row)
            elif not isinstance(child, dict | list | tuple):
                if name in known.parameters:
                    groups[0].append(row)
                elif name in known.buffers:
                    groups[1].append(row)
        return [*groups[0], *groups[1], *groups[2]]

    def mark_parameters(self, root: Any, factory: Factory) -> None:
        """Let the tensors know which of them their modules call parameters."""
        seen: set[int] = set()
        parameters: dict[int, tuple[OtherTensor, Any]] = {}
        todo = [root]
        while todo:
            module = todo.pop()
            if type(module) is not ForeignObject or id(module) in seen:
                continue
            seen.add(id(module))
            known = self._class_of(module)
            if known is None or not known.is_module or type(module.state) is not dict:
                continue
            for name, child in module.state.items():
                todo.append(child)
                if name not in known.parameters:
                    continue
                spec = factory.spec_of(child)
                if spec is not None:
                    spec.is_parameter = True
                elif isinstance(child, OtherTensor):
                    if id(child) not in parameters:
                        made = factory.parameter(child, child.requires_grad, None)
                        made = made.data if type(made) is Parameter else made
                        parameters[id(child)] = (child, made)  # an id is taken while it lives
                    module.state[name] = parameters[id(child)][1]


def parse_classes(code: bytes, names: set[str]) -> dict[str, ScriptClass]:
    """Return those of ``names`` that the text of a module defines, as far as it is understood.

    The text is what torch's own printer writes, so its form is fixed: a class begins at the
    margin, its lists of names stand two spaces in and on one line each. A class that is there
    twice, or has a list of another form or twice, is left out.

    >>> text = b'class Net(Module):\\n  __parameters__ = ["w", "b", ]\\n  __buffers__ = []\\n'
    >>> sorted(parse_classes(text, {"Net"})["Net"].parameters)
    ['b', 'w']
    """
    found: dict[str, tuple[bool, dict[bytes, frozenset[str]]]] = {}
    odd: set[str] = set()
    name: str | None = None
    for line in _LINE.finditer(code):
        text = line.group()
        if text[:1] != b" ":
            head = _CLASS.fullmatch(text)
            name = head[1].decode("ascii") if head is not None else None
            if head is None or name not in names:
                name = None
            elif name in found:
                odd.add(name)
            else:
                found[name] = (head[2] == b"Module", {})
        elif name is not None and name not in odd:
            lists = found[name][1]
            row = _parse_list(text)
            if row is None or row[0] in lists:
                odd.add(name)
            else:
                lists[row[0]] = row[1]
    nothing: frozenset[str] = frozenset()
    return {
        name: ScriptClass(
            is_module, lists.get(b"parameters", nothing), lists.get(b"buffers", nothing)
        )
        for name, (is_module, lists) in found.items()
        if name not in odd
    }


def _parse_list(line: bytes) -> tuple[bytes, frozenset[str]] | None:
    """Return which list a line is, and its names; None if it has another form."""
    head = _LIST.match(line)
    if head is None or len(line) > _LIST_NBYTES:
        return None
    names = []
    at = head.end()
    while line[at : at + 1] == b'"':
        item = _ITEM.match(line, at)
        if item is None:
            return None
        try:
            names.append(codecs.escape_decode(item[1])[0].decode())
        except UnicodeDecodeError:
            return None
        at = item.end()
    return (head[1], frozenset(names)) if line[at:].rstrip() == b"]" else None
