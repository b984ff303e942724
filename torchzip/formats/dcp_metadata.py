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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchzip.dtypes import DTYPES, NAME_ONLY
from torchzip.errors import (
    PickleError,
    TensorError,
    TorchZipError,
    UnsafeGlobalError,
    UnsupportedError,
)
from torchzip.files.folder import is_plain_name
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.table import Name, Table
from torchzip.types import Dtype, ForeignObject, Layout, Size

_MODULE = "torch.distributed.checkpoint.metadata"
_OLD_MODULE = "torch.distributed._shard.sharded_tensor.metadata"

_METADATA = frozenset([(_MODULE, "Metadata")])
_TENSOR = frozenset([(_MODULE, "TensorStorageMetadata")])
_BYTES = frozenset([(_MODULE, "BytesStorageMetadata")])
_CHUNK = frozenset([(_MODULE, "ChunkStorageMetadata")])
_PROPERTIES = frozenset([(_MODULE, "TensorProperties"), (_OLD_MODULE, "TensorProperties")])
_STORAGE_META = frozenset([(_MODULE, "StorageMeta")])
_INDEX = (_MODULE, "MetadataIndex")
_INFO = frozenset([("torch.distributed.checkpoint.filesystem", "_StorageInfo")])
_ENCODINGS = ((_MODULE, "_MEM_FORMAT_ENCODING"), (_OLD_MODULE, "MEM_FORMAT_ENCODING"))

#: The path of a value in the object as it was saved: keys of dicts, positions in lists.
Path = tuple[str | int, ...]
#: A name, and the offsets of a chunk; None for an object that is no tensor.
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
    """What a ``.metadata`` says. In ``items`` None is an object that is no tensor."""

    items: dict[str, TensorItem | None] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    places: dict[ItemKey, Place] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    globals: list[Name] = field(default_factory=list)
    nbytes: int = 0


def parse_metadata(data: bytes, limits: Limits, path: str) -> DcpMetadata:
    """Return what the bytes of a ``.metadata`` say.

    Raises
    ------
    UnsafeGlobalError
        If it names anything but the classes above.
    TorchZipError
        If a number, a name or a class is not what it must be.
    """
    interpreter = Interpreter(data, _TABLE, limits)
    try:
        root = interpreter.run()
        unknown = [name for name in interpreter.globals if not _TABLE.knows(name)]
        if unknown:
            raise _unsafe(unknown)
        made = _Reader(len(data)).read(root)
    except TorchZipError as error:
        error.at(path=path)
        raise
    made.globals = interpreter.globals
    return made


# -- the table -------------------------------------------------------------------------------


def _size(args: tuple[Any, ...]) -> Size:
    sizes = args[0] if len(args) == 1 else None
    if type(sizes) is not tuple or not all(_is_number(size) for size in sizes):
        raise PickleError("torch.Size takes one tuple of ints from 0 to 2**63")
    return Size(sizes)


def _layout(args: tuple[Any, ...]) -> Layout:
    if len(args) != 1 or type(args[0]) is not str or not args[0].startswith("torch."):
        raise PickleError("_get_layout takes a name like 'torch.strided'")
    return Layout(args[0].removeprefix("torch."))


def _encoding(args: tuple[Any, ...]) -> int:
    if len(args) != 1 or type(args[0]) is not int:
        raise PickleError("a memory format is a number")
    number: int = args[0]
    return number


def _getattr(args: tuple[Any, ...]) -> str:
    """Members of enums, as some releases of Python 3.11 and 3.12 write them."""
    if (
        len(args) == 2
        and type(args[0]) is ForeignObject
        and args[0].how == "name"
        and (args[0].module, args[0].name) in _ENCODINGS
        and type(args[1]) is str
    ):
        member: str = args[1]
        return member
    raise _unsafe([("builtins", "getattr")])


def _path(args: tuple[Any, ...]) -> str:
    if not all(type(part) is str for part in args):
        raise PickleError("a path is made of texts")
    return "/".join(part.rstrip("/") if len(args) > 1 else part for part in args)


def _index(made: ForeignObject, state: Any) -> ItemKey:
    """Return what a MetadataIndex is equal by: its name and offsets, not its ``index``."""
    _check_class(made, frozenset([_INDEX]), "an index")
    if type(state) is not dict or type(state.get("fqn")) is not str:
        raise PickleError("a MetadataIndex without a name")
    offset = state.get("offset")
    if offset is not None and type(offset) is not Size:
        raise PickleError("a MetadataIndex whose offset is no torch.Size")
    return state["fqn"], None if offset is None else tuple(offset)


_TABLE = Table(
    values={("torch", name): Dtype(name) for name in (*DTYPES, *NAME_ONLY)},
    calls={
        ("torch", "Size"): _size,
        ("torch.serialization", "_get_layout"): _layout,
        ("builtins", "getattr"): _getattr,
        **dict.fromkeys(_ENCODINGS, _encoding),
        **{
            (module, f"{pure}{kind}Path"): _path
            for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
            for pure in ("", "Pure")
            for kind in ("", "Posix", "Windows")
        },
    },
    builds={_INDEX: _index},
    names=_METADATA | _TENSOR | _BYTES | _CHUNK | _PROPERTIES | _STORAGE_META | _INFO,
)


# -- the values ------------------------------------------------------------------------------


def _unsafe(names: list[Name]) -> UnsafeGlobalError:
    error = UnsafeGlobalError(names)
    listed = ", ".join(f"{module}.{name}" for module, name in names)
    error.message = (
        f"names that no .metadata of torch.distributed.checkpoint has: {listed}. It cannot be read "
        "without knowing what they mean."
    )
    return error


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_class(value: Any, classes: frozenset[Name], what: str) -> None:
    if (
        type(value) is not ForeignObject
        or (value.module, value.name) not in classes
        or value.how != "new"
        or value.args
        or value.kwargs
        or value.items is not None
        or value.setter is not None
    ):
        wanted = " or ".join(sorted({name for _, name in classes}))
        found = repr(value) if type(value) is ForeignObject else type(value).__name__
        raise PickleError(f"{what}: {found} was found, {wanted} was expected")


def _fields(value: Any, classes: frozenset[Name], what: str) -> dict[str, Any]:
    _check_class(value, classes, what)
    if type(value.state) is not dict:
        raise PickleError(f"{what}: its state is no dict")
    state: dict[str, Any] = value.state
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
            raise PickleError("the same lists are used over and over, beyond the pickle's own size")

    def read(self, root: Any) -> DcpMetadata:
        state = _fields(root, _METADATA, "the root")
        made = DcpMetadata(nbytes=self._nbytes)
        items = state.get("state_dict_metadata")
        if type(items) is not dict:
            raise PickleError("state_dict_metadata is no dict")
        for name, item in items.items():
            if type(name) is not str:
                raise PickleError(f"state_dict_metadata has a key of type {type(name).__name__}")
            made.items[name] = self._item(name, item)
        storage_data = state.get("storage_data")
        if type(storage_data) is not dict:
            raise PickleError("storage_data is no dict")
        for key, info in storage_data.items():
            if type(key) is not tuple:
                raise PickleError("storage_data has a key that is no MetadataIndex")
            made.places[key] = _place(key[0], info)
        made.paths = self._paths(state.get("planner_data"))
        made.texts = _texts(state)
        return made

    def _item(self, name: str, item: Any) -> TensorItem | None:
        shown = repr(name[:200])
        if type(item) is ForeignObject and (item.module, item.name) in _BYTES:
            _check_class(item, _BYTES, shown)
            return None
        state = _fields(item, _TENSOR, shown)
        properties = state.get("properties")
        _check_class(properties, _PROPERTIES, f"the properties of {shown}")
        known = properties.state if isinstance(properties, ForeignObject) else None
        if type(known) is not tuple or len(known) != 5:
            raise PickleError(f"{shown}: its properties are no five values")
        dtype, layout, requires_grad = known[:3]
        if type(dtype) is not Dtype or dtype.name not in DTYPES:
            raise TensorError(f"{shown}: its dtype is none that a tensor can have")
        if type(layout) is not Layout:
            raise PickleError(f"{shown}: its layout is none")
        if layout.name != "strided":
            raise UnsupportedError(
                f"{shown}: tensors of layout {layout.name[:40]} are not read yet"
            )
        if type(requires_grad) is not bool:
            raise TensorError(f"{shown}: requires_grad is neither True nor False")
        size, chunks = state.get("size"), state.get("chunks")
        if type(size) is not Size or type(chunks) is not list:
            raise PickleError(f"{shown} lacks a size or a list of chunks")
        if len(size) > 64:  # numpy's limit is torch's
            raise TensorError(f"{shown}: a tensor of {len(size)} dimensions")
        self._charge(len(chunks))
        # Ranks that hold the same part list it each; it was saved once.
        boxes = dict.fromkeys(_box(shown, chunk) for chunk in chunks)
        return TensorItem(dtype.name, tuple(size), requires_grad, tuple(boxes))

    def _paths(self, planner_data: Any) -> dict[str, Path]:
        if planner_data is None:
            return {}
        if type(planner_data) is not dict:
            raise PickleError("planner_data is neither a dict nor None")
        made: dict[str, Path] = {}
        for name, path in planner_data.items():
            if type(name) is not str or type(path) is not tuple or not path:
                raise PickleError("planner_data maps something else than names to paths")
            self._charge(len(path))
            if type(path[0]) is not str or not all(
                type(step) is str or _is_number(step) for step in path
            ):
                raise PickleError(
                    f"the path of {name[:200]!r} is not made of keys and positions from 0 on"
                )
            made[name] = path
        return made


def _box(shown: str, chunk: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    state = _fields(chunk, _CHUNK, f"a chunk of {shown}")
    offsets, sizes = state.get("offsets"), state.get("sizes")
    if type(offsets) is not Size or type(sizes) is not Size:
        raise PickleError(f"a chunk of {shown} lacks offsets or sizes")
    if len(offsets) > 64 or len(sizes) > 64:
        raise TensorError(f"a chunk of {shown} has {len(sizes)} dimensions")
    return tuple(offsets), tuple(sizes)


def _place(name: str, info: Any) -> Place:
    shown = repr(name[:200])
    state = _fields(info, _INFO, f"the place of {shown}")
    transforms = state.get("transform_descriptors")
    if transforms is not None and type(transforms) not in (list, tuple):
        raise PickleError(f"the place of {shown} has transform_descriptors that are no list")
    if transforms:
        encoded = ", ".join(each[:40] for each in transforms[:5] if type(each) is str)
        raise UnsupportedError(f"{shown} is encoded ({encoded}); such items are not read yet")
    file, offset, nbytes = (state.get(each) for each in ("relative_path", "offset", "length"))
    if not is_plain_name(file):
        raise PickleError(
            f"{shown} lies in the file {str(file)[:100]!r}; a plain name in the same directory was "
            "expected"
        )
    if not _is_number(offset) or not _is_number(nbytes):
        raise PickleError(f"the place of {shown} has an offset or length that is no number")
    return Place(str(file), int(offset or 0), int(nbytes or 0))


def _texts(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that say where a checkpoint comes from."""
    known: dict[str, Any] = {"version": state.get("version")}
    meta = state.get("storage_meta")
    if meta is not None:
        _check_class(meta, _STORAGE_META, "storage_meta")
        if isinstance(meta, ForeignObject) and type(meta.state) is dict:
            known |= {key: meta.state.get(key) for key in ("checkpoint_id", "save_id")}
    return {key: value for key, value in known.items() if type(value) is str}
