"""The ``.metadata`` of torch.distributed.checkpoint: which tensors there are, and where.

A plain pickle (protocol 4, frames; torch 2.13 on Python 3.11 as observed) of one ``Metadata``. Its
classes have a table of their own here, and no other name is taken:

* ``Metadata``: ``state_dict_metadata`` {name: TensorStorageMetadata | BytesStorageMetadata},
  ``planner_data`` {name: path} or None, ``storage_data`` {MetadataIndex: _StorageInfo},
  ``storage_meta``, ``version``; the last two are younger than the rest;
* ``TensorStorageMetadata``: ``properties`` (state: dtype, layout, requires_grad, memory format,
  pin_memory), ``size``, ``chunks`` of ``offsets`` and ``sizes``;
* ``MetadataIndex``: name, and for a chunk of a tensor its offsets;
* ``_StorageInfo``: the file, the first byte and the length of an item in it, and its encoding.

Until 2.2 TensorProperties and its enum stood in ``torch.distributed._shard``.

Megatron-Core (0.16.1 as observed) gives ``Metadata`` attributes of its own: ``all_local_plans``,
which lists every item again as each rank planned it, with classes of ``checkpoint.planner``, and
once ``mcore_data``. Attributes that torch does not have mean nothing here: they are skipped
(`formats.dcp_others`), or else what they name is inert.
A name outside the table that is anywhere else is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchzip.dtypes import DTYPES, NAME_ONLY
from torchzip.errors import (
    MAX_NDIM,
    ErrorPlace,
    PickleError,
    UnsafeGlobalError,
    UnsupportedError,
    shown,
    too_many_dimensions,
    wrong_arguments,
)
from torchzip.files.folder import is_plain_name
from torchzip.formats.dcp_others import without_others
from torchzip.limits import Limits, is_number
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.keys import KeyCheck
from torchzip.pickling.table import KEEP, Name, Table
from torchzip.tensors.rebuild import make_layout
from torchzip.tensors.specs import check_requires_grad, wrong_dtype
from torchzip.types import Dtype, ForeignObject, Layout, Size

_MODULE = "torch.distributed.checkpoint.metadata"
_OLD_MODULE = "torch.distributed._shard.sharded_tensor.metadata"

#: The classes of the values, and the modules that they were in.
_CLASSES = {
    "Metadata": [_MODULE],
    "TensorStorageMetadata": [_MODULE],
    "BytesStorageMetadata": [_MODULE],
    "ChunkStorageMetadata": [_MODULE],
    "TensorProperties": [_MODULE, _OLD_MODULE],
    "StorageMeta": [_MODULE],
    "_StorageInfo": ["torch.distributed.checkpoint.filesystem"],
    "MetadataIndex": [_MODULE],
}
#: The attributes of ``Metadata``.
_FIELDS = ("state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version")
_GETATTR = ("builtins", "getattr")
_ENCODINGS = ((_MODULE, "_MEM_FORMAT_ENCODING"), (_OLD_MODULE, "MEM_FORMAT_ENCODING"))

#: The path of a value in the object as it was saved: keys of dicts, positions in lists.
Path = tuple[str | int, ...]
#: A name, and the offsets of a chunk; None for an object that is not a tensor.
ItemKey = tuple[str, tuple[int, ...] | None]


@dataclass(frozen=True, slots=True)
class TensorItem:
    """One tensor. ``chunks`` are the offsets and sizes of its parts, each once."""

    torch_dtype: str
    shape: tuple[int, ...]
    requires_grad: bool
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item lies: a plain file name, and bytes of that file."""

    file: str
    offset: int
    nbytes: int


@dataclass(slots=True)
class DcpMetadata:
    """What a ``.metadata`` says. In ``items`` None is an object that is not a tensor."""

    items: dict[str, TensorItem | None] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    places: dict[ItemKey, Place] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    globals: list[Name] = field(default_factory=list)
    foreign: list[Name] = field(default_factory=list)
    nbytes: int = 0


def parse_metadata(data: bytes, limits: Limits, path: str) -> DcpMetadata:
    """Return what the bytes of a ``.metadata`` say.

    Raises
    ------
    UnsafeGlobalError
        If it names anything but the classes above, other than in attributes that torch lacks.
    TorchZipError
        If a number, a name or a class is not what it must be.
    """
    # The check of keys remembers the keys of one file.
    member = _Getattr()
    calls: dict[Name, Callable[[tuple[Any, ...]], Any]] = {**_TABLE.calls, _GETATTR: member}
    table = dataclasses.replace(_TABLE, calls=calls, keys=KeyCheck())
    own = without_others(data, _FIELDS)
    names = [] if own is None else own.names
    interpreter = Interpreter(data if own is None else own.data, table, limits)
    with ErrorPlace(path=path):
        root = interpreter.run()
        foreign = [name for name in interpreter.globals if not _TABLE.knows(name)]
        if foreign or member.is_foreign:
            foreign += [_GETATTR] if member.is_foreign else []
            _check_places(root, foreign)
        made = _Reader(len(data)).read(root)
    made.globals = list(dict.fromkeys([*interpreter.globals, *names]))
    skipped = [name for name in names if not _TABLE.knows(name) or name == _GETATTR]
    made.foreign = list(dict.fromkeys([*foreign, *skipped]))
    return made


def _check_places(root: Any, foreign: list[Name]) -> None:
    """See that foreign names are in attributes alone that torch's Metadata does not have."""
    state = _fields(root, "Metadata", "the root")
    ours = _foreign_below([state.get(name) for name in _FIELDS])
    others = _foreign_below([value for name, value in state.items() if name not in _FIELDS])
    refused = [name for name in foreign if name in ours or name not in others]
    if refused:
        raise UnsafeGlobalError(
            refused,
            what="names that no .metadata of torch.distributed.checkpoint has",
            advice="It cannot be read without knowing what they mean.",
        )


def _foreign_below(values: list[Any]) -> set[Name]:
    """Return the names of all objects in some values that the table does not have."""
    found: set[Name] = set()
    seen: set[int] = set()
    todo = values
    while todo:
        value = todo.pop()
        if isinstance(value, str | int | float | None) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            todo += value
        elif type(value) is ForeignObject:
            name = (value.module, value.name)
            if not _TABLE.knows(name) or name == _GETATTR:
                found.add(name)
            todo += [value.callee, value.args, value.kwargs, value.state, value.items, value.setter]
    return found


# -- the table -------------------------------------------------------------------------------


def _size(args: tuple[Any, ...]) -> Size:
    sizes = args[0] if len(args) == 1 else None
    if type(sizes) is not tuple or not all(is_number(size) for size in sizes):
        raise wrong_arguments("torch.Size", "one tuple of ints from 0 to 2**63", args)
    return Size(sizes)


def _encoding(args: tuple[Any, ...]) -> Any:
    if len(args) != 1 or type(args[0]) is not int:
        raise wrong_arguments("a memory format", "an int", args)
    return args[0]


class _Getattr:
    """A member of an enum by its name, as Python 3.11.2 writes them; others write the value."""

    def __init__(self) -> None:
        #: One of an enum that is not known was met.
        self.is_foreign = False

    def __call__(self, args: tuple[Any, ...]) -> Any:
        if (
            len(args) == 2
            and type(args[0]) is ForeignObject
            and args[0].how == "name"
            and (args[0].module, args[0].name) in _ENCODINGS
            and type(args[1]) is str
        ):
            return args[1]
        self.is_foreign = True
        return KEEP


def _path(args: tuple[Any, ...]) -> str:
    if not all(type(part) is str for part in args):
        raise wrong_arguments("a path", "strings", args)
    return "/".join(part.rstrip("/") if len(args) > 1 else part for part in args)


def _index(made: ForeignObject, state: Any) -> ItemKey:
    """Return what a MetadataIndex is equal by: its name and offsets, not its ``index``."""
    _check_class(made, "MetadataIndex", "an index")
    state = _checked(state, dict, "the state of a MetadataIndex")
    name = _checked(state.get("fqn"), str, "the name of a MetadataIndex")
    offset = state.get("offset")
    if offset is None:
        return name, None
    return name, tuple(_checked(offset, Size, "the offset of a MetadataIndex"))


_TABLE = Table(
    values={("torch", name): Dtype(name) for name in (*DTYPES, *NAME_ONLY)},
    calls={
        ("torch", "Size"): _size,
        ("torch.serialization", "_get_layout"): make_layout,
        _GETATTR: _Getattr(),
        **dict.fromkeys(_ENCODINGS, _encoding),
        **{
            (module, f"{pure}{kind}Path"): _path
            for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
            for pure in ("", "Pure")
            for kind in ("", "Posix", "Windows")
        },
    },
    builds={(_MODULE, "MetadataIndex"): _index},
    names=frozenset((module, name) for name, modules in _CLASSES.items() for module in modules),
)


#: Whether a ``.metadata`` of torch may have a name.
knows_in_metadata = _TABLE.knows


# -- the values ------------------------------------------------------------------------------


_WANTED: dict[type, str] = {
    dict: "a dict", list: "a list", tuple: "a tuple", str: "a string", Size: "a torch.Size",
    Layout: "a torch layout", int: "an int from 0 to 2**63",
}  # fmt: skip


def _checked(value: Any, kind: type, what: str) -> Any:
    """Return a value of one of these types."""
    if type(value) is not kind or (kind is int and not is_number(value)):
        raise PickleError(f"{what} is {shown(value)}; {_WANTED[kind]} was expected")
    return value


def _check_class(value: Any, wanted: str, what: str) -> None:
    if (
        type(value) is not ForeignObject
        or value.name != wanted
        or value.module not in _CLASSES[wanted]
        or value.how != "new"
        or value.args
        or value.kwargs
        or value.items is not None
        or value.setter is not None
    ):
        raise PickleError(f"{what} is {shown(value)}; {wanted} was expected")


def _fields(value: Any, wanted: str, what: str) -> dict[str, Any]:
    _check_class(value, wanted, what)
    state: dict[str, Any] = _checked(value.state, dict, f"the state of {what}")
    return state


class _Reader:
    """Checks the tree of a ``.metadata``.

    A pickle can mention one list many times in two bytes each; what is gone over in all is bounded
    by the bytes of the pickle, which an honest one exceeds many times.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._left = nbytes

    def _charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise PickleError(
                "the same lists are used over and over, beyond the pickle's own size of "
                f"{self._nbytes:,} bytes"
            )

    def read(self, root: Any) -> DcpMetadata:
        state = _fields(root, "Metadata", "the root")
        made = DcpMetadata(nbytes=self._nbytes)
        items = _checked(state.get("state_dict_metadata"), dict, "state_dict_metadata")
        for name, item in items.items():
            made.items[name] = self._item(_checked(name, str, "a key of state_dict_metadata"), item)
        for key, info in _checked(state.get("storage_data"), dict, "storage_data").items():
            if type(key) is not tuple:
                raise PickleError(
                    f"storage_data has {shown(key)} as a key; a MetadataIndex was expected"
                )
            made.places[key] = _place(f"the place of {shown(key[0])}", info)
        planner_data = state.get("planner_data")
        if planner_data is not None:
            for name, path in _checked(planner_data, dict, "planner_data").items():
                made.paths[_checked(name, str, "a key of planner_data")] = self._path(name, path)
        made.texts = _texts(state)
        return made

    def _item(self, name: str, item: Any) -> TensorItem | None:
        called = shown(name)
        if type(item) is ForeignObject and item.name == "BytesStorageMetadata":
            _check_class(item, "BytesStorageMetadata", called)
            return None
        state = _fields(item, "TensorStorageMetadata", called)
        properties: Any = state.get("properties")
        _check_class(properties, "TensorProperties", f"the properties of {called}")
        known = _checked(properties.state, tuple, f"the state of the properties of {called}")
        if len(known) != 5:
            raise PickleError(f"{called} has {len(known):,} properties; five were expected")
        dtype, layout, requires_grad = known[:3]
        if type(dtype) is not Dtype or dtype.name not in DTYPES:
            raise wrong_dtype(called, dtype)
        if _checked(layout, Layout, f"the layout of {called}").name != "strided":
            raise UnsupportedError(
                f"{called}: tensors of layout {layout.name[:40]} are not read yet"
            )
        check_requires_grad(called, requires_grad)
        size = _numbers(state, "size", called)
        chunks = _checked(state.get("chunks"), list, f"the list of chunks of {called}")
        self._charge(len(chunks))
        # Ranks that hold the same part list it each; it was saved once. By its text: tuples of ints
        # can be chosen so that all have one hash.
        boxes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for chunk in chunks:
            what = f"a chunk of {called}"
            fields = _fields(chunk, "ChunkStorageMetadata", what)
            box = _numbers(fields, "offsets", what), _numbers(fields, "sizes", what)
            boxes[str(box)] = box
        return TensorItem(dtype.name, size, requires_grad, tuple(boxes.values()))

    def _path(self, name: str, path: Any) -> Path:
        """Return where a value is in the object: a key, and more keys or positions."""
        what = f"the path of {shown(name)}"
        self._charge(len(_checked(path, tuple, what)))
        if type((*path, None)[0]) is not str or not all(
            type(step) is str or is_number(step) for step in path
        ):
            raise PickleError(f"{what} is not made of keys and positions from 0 on")
        made: Path = path
        return made


def _numbers(state: Mapping[str, Any], name: str, what: str) -> tuple[int, ...]:
    size = _checked(state.get(name), Size, f"the {name} of {what}")
    if len(size) > MAX_NDIM:
        raise too_many_dimensions(what, len(size))
    return tuple(size)


def _place(what: str, info: Any) -> Place:
    state = _fields(info, "_StorageInfo", what)
    transforms = state.get("transform_descriptors")
    if transforms:
        encoded = _checked(transforms, list, f"the list of transforms of {what}")[:5]
        names = ", ".join(each[:40] for each in encoded if type(each) is str)
        raise UnsupportedError(f"{what} is encoded ({names}); such items are not read yet")
    file = state.get("relative_path")
    if not is_plain_name(file):
        raise PickleError(
            f"{what} is in the file {shown(file)}; a plain name in the same directory was expected"
        )
    offset, nbytes = (
        _checked(state.get(each), int, f"the {each} of {what}") for each in ("offset", "length")
    )
    return Place(str(file), offset, nbytes)


def _texts(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the strings that say where a checkpoint comes from."""
    known: dict[str, Any] = {"version": state.get("version")}
    meta = state.get("storage_meta")
    if meta is not None:
        _check_class(meta, "StorageMeta", "storage_meta")
        if type(meta.state) is dict:
            known |= {key: meta.state.get(key) for key in ("checkpoint_id", "save_id")}
    return {key: value for key, value in known.items() if type(value) is str}
