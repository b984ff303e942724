"""One attack per row, and the error it must raise; then: any bytes give one of three things.

Those three are a value, a `TorchZipError` and an `OSError`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from torchzip.errors import (
    ArchiveError,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    TorchZipError,
    UnsupportedError,
)
from torchzip.types import NestedTensor, OtherTensor, QuantizedTensor, SparseTensor

Row = tuple[str, bytes, type[TorchZipError]]


def _zip(*parts: bytes) -> bytes:
    return b.checkpoint(b.stream(*parts))


def _with(member: bytes, **changes: Any) -> bytes:
    """Return a good checkpoint with one record changed."""
    members = b.members_of(b.stream(b.tensor()))
    return b.build_zip(
        [
            replace(each, **changes) if each.name == b"archive/" + member else each
            for each in members
        ]
    )


def _and(**more: bytes) -> bytes:
    """Return a good checkpoint with more records."""
    members = b.members_of(b.stream(b.tensor()))
    members += [
        b.Member(name=f"archive/{name.replace('__', '.')}".encode(), data=data)
        for name, data in more.items()
    ]
    return b.build_zip(members)


def _doubling(depth: int = 40) -> bytes:
    """Return a list that is 2**depth items long, if it is walked as a tree."""
    return b"]" + b"2\x86" * depth


_HUGE = b"\x8b" + struct.pack("<i", 3000) + b"\xff" * 2999 + b"\x7f"
_HUGE_NEGATIVE = b"\x8b" + struct.pack("<i", 3000) + b"\0" * 2999 + b"\x80"
_DTYPE = b.name("torch", "uint16")
_UNTYPED = b.name("torch.storage", "UntypedStorage")
_V3 = b.name("torch._utils", "_rebuild_tensor_v3")
_PARAMETER = b.name("torch._utils", "_rebuild_parameter")
_FROM_TYPE = b.name("torch._tensor", "_rebuild_from_type_v2")


def _v3(dtype: bytes, **changes: Any) -> bytes:
    bytes_16 = b.persistent(numel=16, kind=_UNTYPED)
    return b.tensor(bytes_16, function=_V3, extra=dtype, **changes)


def _bytearray(argument: bytes) -> bytes:
    return b.call(b.name("builtins", "bytearray"), argument)


_PICKLES: list[tuple[str, bytes, type[TorchZipError]]] = [
    # storages
    ("storage key that climbs", b.tensor(b.persistent("../0")), PickleError),
    ("storage key with a folder", b.tensor(b.persistent("a/0")), PickleError),
    ("storage key with a backslash", b.tensor(b.persistent("a\\0")), PickleError),
    ("storage key with a zero byte", b.tensor(b.persistent("0\0")), PickleError),
    ("storage key with a line break", b.tensor(b.persistent("0\n")), PickleError),
    ("storage key that is empty", b.tensor(b.persistent("")), PickleError),
    ("storage key that is a dot", b.tensor(b.persistent(".")), PickleError),
    ("storage key that is two dots", b.tensor(b.persistent("..")), PickleError),
    ("storage key that is None", b.tensor(b.persistent(raw_key=b"N")), PickleError),
    ("storage key that is a bool", b.tensor(b.persistent(raw_key=b.TRUE)), PickleError),
    ("storage key that is a list", b.tensor(b.persistent(raw_key=b"]")), PickleError),
    ("storage key that is not there", b.tensor(b.persistent("1")), ArchiveError),
    ("storage key that is not text", b.tensor(b.persistent("\ud800")), ArchiveError),
    ("storage key of another record", b.tensor(b.persistent("0 ")), ArchiveError),
    ("storage of more elements", b.tensor(b.persistent(numel=5)), TensorError),
    ("storage of fewer elements", b.tensor(b.persistent(numel=3)), TensorError),
    ("storage of -4 elements", b.tensor(b.persistent(numel=-4)), TensorError),
    ("storage of 2**62 elements", b.tensor(b.persistent(numel=1 << 62)), TensorError),
    ("storage of 2**64 elements", b.tensor(b.persistent(numel=1 << 64)), TensorError),
    ("storage of True elements", b.tensor(b.persistent(numel=b.TRUE)), TensorError),
    ("storage of 4.0 elements", b.tensor(b.persistent(numel=b"G\x40\x10" + bytes(6))), TensorError),
    ("storage of None elements", b.tensor(b.persistent(numel=b"N")), TensorError),
    ("storage of elements as text", b.tensor(b.persistent(numel=b.text("4"))), TensorError),
    (
        "storage of an unknown class",
        b.tensor(b.persistent(kind=b.name("torch", "QuadStorage"))),
        UnsupportedError,
    ),
    ("storage of class None", b.tensor(b.persistent(kind=b"N")), TorchZipError),
    ("storage of a dtype", b.tensor(b.persistent(kind=_DTYPE)), TorchZipError),
    (
        "storage of a class that was called",
        b.tensor(b.persistent(kind=b.call(b.name("torch", "FloatStorage")))),
        UnsupportedError,
    ),
    ("storage at location 0", b.tensor(b.persistent(location=b.integer(0))), PickleError),
    ("storage at location None", b.tensor(b.persistent(location=b"N")), PickleError),
    ("persistent id that is text", b.tensor(b.text("0") + b"Q"), PickleError),
    ("persistent id that is empty", b.tensor(b")Q"), PickleError),
    ("persistent id of another kind", b.tensor(b.tuple_of(b.text("x")) + b"Q"), PickleError),
    ("persistent id that is short", b.tensor(b.tuple_of(b.text("storage")) + b"Q"), PickleError),
    ("persistent id that is long", b.tensor(b.persistent(extra=b"NN")), PickleError),
    (
        "persistent id of kind tensor",
        b.tensor() + b.tuple_of(b.tensor(), b"NNNN") + b"Q\x86",
        PickleError,
    ),
    ("storage view that is text", b.tensor(b.persistent(extra=b.text("x"))), PickleError),
    ("storage view of two", b.tensor(b.persistent(extra=b.ints(1, 2))), PickleError),
    ("storage view outside", b.tensor(b.persistent(extra=b.ints(1, 2, 3))), TensorError),
    ("storage view before", b.tensor(b.persistent(extra=b.ints(1, -1, 3))), TensorError),
    ("storage view of None", b.tensor(b.persistent(extra=b.tuple_of(b"NNN"))), TensorError),
    (
        "storage view with a list as key",
        b.tensor(b.persistent(extra=b.tuple_of(b"]", b.integer(0), b.integer(1)))),
        PickleError,
    ),
    # tensors
    ("offset past the end", b.tensor(offset=1), TensorError),
    ("offset of -1", b.tensor(offset=-1), TensorError),
    ("offset of 2**62", b.tensor(offset=1 << 62), TensorError),
    ("offset of 2**64", b.tensor(offset=1 << 64), TensorError),
    ("offset of True", b.tensor(offset=b.TRUE, size=(1,)), TensorError),
    ("offset of 0.0", b.tensor(offset=b"G" + bytes(8)), TensorError),
    ("offset of None", b.tensor(offset=b"N"), TensorError),
    ("size past the end", b.tensor(size=(5,)), TensorError),
    ("size of -1", b.tensor(size=(-1,)), TensorError),
    ("sizes of -1 and -4", b.tensor(size=(-1, -4), stride=(1, 1)), TensorError),
    ("size of 2**63", b.tensor(size=(1 << 63,)), TensorError),
    ("size of True", b.tensor(size=b.tuple_of(b.TRUE)), TensorError),
    ("size of text", b.tensor(size=b.tuple_of(b.text("4"))), TensorError),
    ("size that is a number", b.tensor(size=b.integer(4)), TensorError),
    ("size that is a dict", b.tensor(size=b"}"), TensorError),
    ("size and stride of two lengths", b.tensor(size=(2, 2)), TensorError),
    ("stride past the end", b.tensor(stride=(2,)), TensorError),
    ("stride of -1", b.tensor(stride=(-1,)), TensorError),
    ("stride of 2**62", b.tensor(stride=(1 << 62,)), TensorError),
    ("stride of True", b.tensor(stride=b.tuple_of(b.TRUE)), TensorError),
    ("stride of None", b.tensor(stride=b.tuple_of(b"N")), TensorError),
    (
        "two strides that meet past the end",
        b.tensor(size=(2, 2), stride=(2, 2)),
        TensorError,
    ),
    ("65 dimensions", b.tensor(size=(1,) * 65, stride=(1,) * 65), TensorError),
    ("a giant past 2**63 bytes", b.tensor(size=(1 << 61,), stride=(0,)), TensorError),
    (
        "a giant of many dimensions",
        b.tensor(size=(1 << 20,) * 4, stride=(0,) * 4),
        TensorError,
    ),
    ("an empty giant", b.tensor(size=(0, 1 << 63), stride=(1, 1)), TensorError),
    ("an empty giant of two", b.tensor(size=(0, 1 << 40, 1 << 40), stride=(1, 1, 1)), TensorError),
    ("requires_grad of 1", b.tensor(requires_grad=b.integer(1)), TensorError),
    ("requires_grad of None", b.tensor(requires_grad=b"N"), TensorError),
    ("hooks", b.tensor(hooks=b.dict_of({"a": b"N"})), UnsupportedError),
    ("hooks that are a tensor", b.tensor(hooks=b.tensor()), UnsupportedError),
    ("metadata of another name", b.tensor(extra=b.dict_of({"x": b.TRUE})), UnsupportedError),
    ("metadata that is no bool", b.tensor(extra=b.dict_of({"neg": b"N"})), UnsupportedError),
    ("metadata that is a list", b.tensor(extra=b.list_of(b.TRUE)), TensorError),
    ("metadata that is a tensor", b.tensor(extra=b.tensor()), TensorError),
    ("conj of a float", b.tensor(extra=b.dict_of({"conj": b.TRUE})), TensorError),
    ("a tensor on a number", b.tensor(b.integer(0)), TensorError),
    ("a tensor on a tensor", b.tensor(b.tensor()), TensorError),
    ("a tensor on a class", b.tensor(b.name("torch", "FloatStorage")), TensorError),
    ("a tensor with eight arguments", b.tensor(extra=b"NN"), PickleError),
    ("a tensor of nothing", b.call(b.name("torch._utils", "_rebuild_tensor_v2")), PickleError),
    ("a v3 tensor of no dtype", _v3(b"N"), TensorError),
    ("a v3 tensor of a dtype as text", _v3(b.text("float32")), TensorError),
    ("a v3 tensor of int4", _v3(b.name("torch", "int4")), TensorError),
    ("a v3 tensor past the end", _v3(_DTYPE, size=(9,)), TensorError),
    ("a v3 tensor with an odd end", _v3(_DTYPE, offset=8, size=(1,)), TensorError),
    ("a parameter of five", b.call(_PARAMETER, b.tensor(), b.TRUE, b.HOOKS, b"NN"), PickleError),
    ("a parameter with hooks", b.call(_PARAMETER, b.tensor(), b.TRUE, b.list_of(b"N")),
     UnsupportedError),
    ("a parameter that requires 1", b.call(_PARAMETER, b.tensor(), b.integer(1), b.HOOKS),
     TensorError),
    ("a subclass of three", b.call(_FROM_TYPE, b"NNN"), PickleError),
    ("a subclass of no class", b.call(_FROM_TYPE, b.name("a", "b"), b"N)N"), PickleError),
    # other calls
    ("Size of text", b.call(b.name("torch", "Size"), b.tuple_of(b.text("1"))), PickleError),
    ("Size of a number", b.call(b.name("torch", "Size"), b.integer(1)), PickleError),
    ("device of a number", b.call(b.name("torch", "device"), b.integer(1)), PickleError),
    ("device of text twice", b.call(b.name("torch", "device"), b.text("a"), b.text("b")),
     PickleError),
    ("layout without torch", b.call(b.name("torch.serialization", "_get_layout"), b.text("os.x")),
     PickleError),
    ("encode by another codec", b.call(b.name("_codecs", "encode"), b.text("x"), b.text("zip")),
     PickleError),
    ("encode past latin1", b.call(b.name("_codecs", "encode"), b.text("ā"), b.text("latin1")),
     PickleError),
    ("encode by a tensor", b.call(b.name("_codecs", "encode"), b.text("x"), b.tensor()),
     PickleError),
    ("bytes of 2**40", b.call(b.name("builtins", "bytes"), b.integer(1 << 40)), PickleError),
    ("bytearray of 2**40", _bytearray(b.integer(1 << 40)), PickleError),
    ("bytearray of text", _bytearray(b.text("x")), PickleError),
    ("complex of text", b.call(b.name("builtins", "complex"), b.text("1"), b.text("2")),
     PickleError),
    ("complex of 2**2000", b.call(b.name("builtins", "complex"), b.integer(1 << 2000), b.FALSE),
     PickleError),
    ("complex past the floats", b.call(b.name("builtins", "complex"), b.integer(1 << 2000),
                                       b.integer(0)), PickleError),
    ("range of step 0", b.name("__builtin__", "xrange") + b.ints(0, 1, 0) + b"R", PickleError),
    ("range of text", b.call(b.name("__builtin__", "xrange"), b.text("1")), PickleError),
    ("slice of one", b.call(b.name("builtins", "slice"), b.integer(1)), PickleError),
    ("set of lists", b.call(b.name("builtins", "set"), b.list_of(b"]", b"]")), UnsupportedError),
    ("set of a number", b.call(b.name("builtins", "set"), b.integer(1)), PickleError),
    ("set of tensors", b.call(b.name("builtins", "set"), b.list_of(b.tensor(), b"]")),
     UnsupportedError),
    ("OrderedDict of a dict", b.call(b.name("collections", "OrderedDict"), b"}"), PickleError),
    ("OrderedDict of triples", b.call(b.name("collections", "OrderedDict"),
                                      b.list_of(b.ints(1, 2, 3))), PickleError),
    ("Counter of a list", b.call(b.name("collections", "Counter"), b"]"), PickleError),
    ("BUILD of a tensor", b.tensor() + b"}b", UnsupportedError),
    ("BUILD of a class attribute", b.HOOKS + b.dict_of({"__class__": b"N"}) + b"b", PickleError),
    ("a key into a tensor", b.tensor() + b.text("a") + b"Ns", PickleError),
    ("an item to a tensor", b.tensor() + b"Na", PickleError),
    ("a call of a tensor", b.tensor() + b")R", PickleError),
    ("a call of a storage", b.persistent() + b")R", PickleError),
    ("a call of a dtype", _DTYPE + b")R", PickleError),
]  # fmt: skip

_HEAD = b.members_of(b.stream(b"N"), {})


def _legacy(
    *, keys: bytes = b.list_of(b.text("0")), count: int = 4, data: bytes = b.DATA,
    root: bytes | None = None, version: bytes = b.integer(1001),
) -> bytes:  # fmt: skip
    storages = struct.pack("<q", count) + data
    return b.legacy(
        b.stream(b.tensor() if root is None else root), b.stream(keys), storages, version=version
    )


_FILES: list[Row] = [
    # the archive around the pickle
    ("no data.pkl", b.build_zip([replace(_HEAD[0], name=b"archive/data.pk1")]), ArchiveError),
    ("no version", b.build_zip(b.members_of(b.stream(b"N"), {}, version=None)), ArchiveError),
    ("version 0", _with(b"version", data=b"0\n"), ArchiveError),
    ("version 11", _with(b"version", data=b"11\n"), ArchiveError),
    ("version -1", _with(b"version", data=b"-1"), ArchiveError),
    ("version of text", _with(b"version", data=b"three"), ArchiveError),
    ("version of nothing", _with(b"version", data=b""), ArchiveError),
    ("version of 4,000 digits", _with(b"version", data=b"9" * 4000), ArchiveError),
    ("version of 5,000 bytes", _with(b"version", data=b" " * 5000), LimitError),
    ("version that is no text", _with(b"version", data=b"\xff\xfe"), ArchiveError),
    ("two versions that differ", _and(**{"__data/version": b"99"}), ArchiveError),
    ("byte order of text", _with(b"byteorder", data=b"middle"), ArchiveError),
    ("byte order with a line break", _with(b"byteorder", data=b"little\n"), ArchiveError),
    ("byte order of 5,000 bytes", _with(b"byteorder", data=b"x" * 5000), LimitError),
    ("a byte order bomb", _with(b"byteorder", data=bytes(1 << 20), method=8), LimitError),
    ("a .pt2 archive without a program", _and(archive_format=b"pt2"), UnsupportedError),
    ("a wrong CRC of the pickle", _with(b"data.pkl", crc=1), ArchiveError),
    ("a wrong CRC of a storage", _with(b"data/0", crc=1), ArchiveError),
    ("a wrong CRC of the version", _with(b"version", crc=1), ArchiveError),
    ("a pickle bomb", _with(b"data.pkl", method=8, nbytes=1 << 29), LimitError),
    ("a pickle of 2 GiB", _with(b"data.pkl", method=8, nbytes=1 << 31), LimitError),
    ("a storage of another name below", _with(b"data/0", local_name=b"archive/data/1"),
     ArchiveError),
    ("a storage of 200 GB that is stored",
     _with(b"data/0", nbytes=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 200 * 10**9)),
     ArchiveError),
    ("an empty pickle", b.checkpoint(b""), PickleError),
    ("a pickle cut short", b.checkpoint(b.stream(b.tensor())[:-2]), PickleError),
    ("a pickle of other opcodes", b.checkpoint(b"\xff\xff\xff"), PickleError),
    # the legacy stream
    ("legacy of version 1000", _legacy(version=b.integer(1000)), FormatError),
    ("legacy of a version as text", _legacy(version=b.text("1001")), FormatError),
    ("legacy with keys in a dict", _legacy(keys=b"}"), PickleError),
    ("legacy with a key twice", _legacy(keys=b.list_of(b.text("0"), b.text("0"))), PickleError),
    ("legacy with a key as text and number", _legacy(keys=b.list_of(b.text("0"), b.integer(0))),
     PickleError),
    ("legacy without its key", _legacy(keys=b"]"), FormatError),
    ("legacy with another key", _legacy(keys=b.list_of(b.text("1"))), FormatError),
    ("legacy of fewer elements", _legacy(count=3), TensorError),
    ("legacy of -1 elements", _legacy(count=-1), TensorError),
    ("legacy of 2**62 elements", _legacy(count=1 << 62), TensorError),
    ("legacy that is cut", _legacy(data=b.DATA[:-1]), FormatError),
    ("legacy with a storage of 2**60", _legacy(root=b.tensor(b.persistent(numel=1 << 60))),
     TensorError),
    ("legacy with a view past the storage",
     _legacy(root=b.tensor(b.persistent(extra=b.ints(9, 2, 3)))),
     TensorError),
    ("legacy with an offset past the end", _legacy(root=b.tensor(offset=1)), TensorError),
    ("legacy with nothing behind", b.legacy(b"", b"", b""), PickleError),
    # other files
    ("an empty file", b"", FormatError),
    ("one byte", b"P", FormatError),
    ("text", b"hello world, this is no checkpoint", FormatError),
    ("zeros", bytes(1000), FormatError),
    ("a pickle of another program", b.stream(b"}"), FormatError),
    ("a web page", b"<!DOCTYPE html><html>404</html>", FormatError),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
     FormatError),
    ("a GGUF file", b"GGUF\3\0\0\0" + bytes(100), FormatError),
    ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(100), FormatError),
    ("a .npy file", b"\x93NUMPY\1\0" + bytes(100), FormatError),
    ("a gzip file", b"\x1f\x8b\x08" + bytes(100), FormatError),
    ("a RAR archive", b"Rar!\x1a\7" + bytes(100), FormatError),
    ("a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(100), FormatError),
    ("an empty zip archive", b"PK\5\6" + bytes(18), FormatError),
    ("the preview format", b"PYTORCH1" + bytes(100), UnsupportedError),
    ("a tar file", bytes(257) + b"ustar\0" + bytes(300), FormatError),
    # safetensors
    ("a safetensors header that is cut", b.safetensors(b'{"x":', nbytes=100), FormatError),
    ("safetensors of a shape of many digits",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[%s,%s],"data_offsets":[0,1]}}'
                   % (b"9" * 4000, b"9" * 4000), b"x"), FormatError),
    ("safetensors of an offset of many digits",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[%s,%s]}}'
                   % (b"9" * 4000, b"9" * 4000), b"x"), FormatError),
    ("safetensors of 65 dimensions",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}'
                   % b",".join([b"1"] * 65), b"x"), TorchZipError),
]  # fmt: skip

_ROWS: list[Row] = [(name, _zip(pickle), error) for name, pickle, error in _PICKLES] + _FILES


def _allowed() -> contextlib.AbstractContextManager[Any]:
    return contextlib.suppress(TorchZipError, OSError)


def read_lazily(data: bytes) -> None:
    """Do everything that a user would do with an untrusted file."""
    with _allowed(), tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert checkpoint.format in ("zip", "legacy", "safetensors", "torchscript", "tar", "pt2")
        assert repr(checkpoint)
        with _allowed():
            checkpoint.verify()
        with _allowed():
            for name in checkpoint:
                assert repr(checkpoint.get(name, None)) if name in checkpoint else True
        for name in _names(checkpoint):
            with _allowed():
                tensor = checkpoint[name]
                assert tensor.nbytes >= 0
                if isinstance(tensor, OtherTensor):
                    make_dense(tensor)
                    continue
                assert tensor[...].shape == tensor.shape
                if tensor.ndim and tensor.shape[0]:
                    assert tensor[0].shape == tensor.shape[1:]
                    assert tensor[:1].shape == (1, *tensor.shape[1:])


def make_dense(tensor: OtherTensor) -> None:
    """Ask for the numbers of a tensor that is not dense."""
    assert repr(tensor)
    if isinstance(tensor, SparseTensor):
        assert tensor.todense().shape == tensor.shape
    elif isinstance(tensor, QuantizedTensor):
        assert tensor.dequantize().shape == tensor.shape
    elif isinstance(tensor, NestedTensor):
        assert len(tensor.unbind()) == tensor.shape[0]


def _names(checkpoint: tz.Checkpoint) -> list[str]:
    with _allowed():
        return list(checkpoint)
    return []


@pytest.mark.parametrize(
    ("data", "error"), [row[1:] for row in _ROWS], ids=[row[0] for row in _ROWS]
)
def test_attack(data: bytes, error: type[TorchZipError]) -> None:
    """`load` raises the error of the row, with the file in its message."""
    with pytest.raises(error) as caught:
        tz.load(io.BytesIO(data))
    assert caught.value.path == "<BytesIO>"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("data", "error"), [row[1:] for row in _ROWS], ids=[row[0] for row in _ROWS]
)
def test_attack_on_lazy_load(data: bytes, error: type[TorchZipError]) -> None:
    """`lazy_load` and all that follows raise errors of torchzip and nothing else."""
    read_lazily(data)


def test_there_are_enough_rows() -> None:
    """No row is there twice."""
    assert len({data for _, data, _ in _ROWS}) == len({name for name, *_ in _ROWS}) == len(_ROWS)


def test_rows_are_broken_in_one_way_only() -> None:
    """What the rows change is read when it is not changed."""
    for data in (_zip(b.tensor()), _with(b"version"), _legacy()):
        assert tz.load(io.BytesIO(data)).tolist() == [1, 2, 3, 4]
    assert tz.load(io.BytesIO(_zip(_v3(_DTYPE, size=(8,))))).dtype == np.uint16


# -- numbers and values in every place -------------------------------------------------------------

_PLACES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("numel", lambda x: b.tensor(b.persistent(numel=x))),
    ("key", lambda x: b.tensor(b.persistent(raw_key=x))),
    ("class", lambda x: b.tensor(b.persistent(kind=x))),
    ("location", lambda x: b.tensor(b.persistent(location=x))),
    ("view", lambda x: b.tensor(b.persistent(extra=x))),
    ("view key", lambda x: b.tensor(b.persistent(extra=b.tuple_of(x, b.integer(0), b.integer(1))))),
    ("view offset", lambda x: b.tensor(b.persistent(extra=b.tuple_of(b.text("v"), x, x)))),
    ("kind of id", lambda x: b.tuple_of(x, b"NNNN") + b"Q"),
    ("persistent id", lambda x: x + b"Q"),
    ("storage", lambda x: b.tensor(x)),
    ("offset", lambda x: b.tensor(offset=x)),
    ("size", lambda x: b.tensor(size=x)),
    ("stride", lambda x: b.tensor(stride=x)),
    ("size item", lambda x: b.tensor(size=b.tuple_of(x))),
    ("stride item", lambda x: b.tensor(stride=b.tuple_of(x))),
    ("stride of none", lambda x: b.tensor(size=(0,), stride=b.tuple_of(x))),
    ("stride of one", lambda x: b.tensor(size=(1,), stride=b.tuple_of(x))),
    ("requires_grad", lambda x: b.tensor(requires_grad=x)),
    ("hooks", lambda x: b.tensor(hooks=x)),
    ("metadata", lambda x: b.tensor(extra=x)),
    ("metadata value", lambda x: b.tensor(extra=b.dict_of({"neg": x}))),
    ("metadata key", lambda x: b.tensor(extra=b"}" + x + b.TRUE + b"s")),
    ("dtype", lambda x: _v3(x)),
    ("argument tuple", lambda x: b.name("torch._utils", "_rebuild_tensor_v2") + x + b"R"),
    ("parameter", lambda x: b.call(_PARAMETER, x, b.TRUE, b.HOOKS)),
    ("parameter grad", lambda x: b.call(_PARAMETER, b.tensor(), x, b.HOOKS)),
    ("parameter state", lambda x: b.call(_PARAMETER, b.tensor(), b.TRUE, b.HOOKS, x)),
    ("subclass function", lambda x: b.call(_FROM_TYPE, x, b.name("a", "b"), b")N")),
    ("subclass arguments", lambda x: b.call(_FROM_TYPE, b.name("a", "b"), b.name("a", "b"), x, x)),
    ("Size", lambda x: b.call(b.name("torch", "Size"), x)),
    ("Size item", lambda x: b.call(b.name("torch", "Size"), b.tuple_of(x))),
    ("device", lambda x: b.call(b.name("torch", "device"), x)),
    ("device index", lambda x: b.call(b.name("torch", "device"), b.text("cpu"), x)),
    ("layout", lambda x: b.call(b.name("torch.serialization", "_get_layout"), x)),
    ("encode", lambda x: b.call(b.name("_codecs", "encode"), x, x)),
    ("codec", lambda x: b.call(b.name("_codecs", "encode"), b.text("x"), x)),
    ("bytes", lambda x: b.call(b.name("builtins", "bytes"), x)),
    ("bytearray", lambda x: _bytearray(x)),
    ("complex", lambda x: b.call(b.name("builtins", "complex"), x, x)),
    ("range", lambda x: b.call(b.name("__builtin__", "xrange"), x)),
    ("range step", lambda x: b.call(b.name("__builtin__", "xrange"), x, x, x)),
    ("slice", lambda x: b.call(b.name("builtins", "slice"), x, x, x)),
    ("set", lambda x: b.call(b.name("builtins", "set"), x)),
    ("set item", lambda x: b.call(b.name("builtins", "set"), b.list_of(x, b"N"))),
    ("frozenset item", lambda x: b.call(b.name("builtins", "frozenset"), b.list_of(x, b"N"))),
    ("OrderedDict", lambda x: b.call(b.name("collections", "OrderedDict"), x)),
    ("OrderedDict pair", lambda x: b.call(b.name("collections", "OrderedDict"), b.list_of(x, x))),
    ("Counter", lambda x: b.call(b.name("collections", "Counter"), x)),
    ("dict key", lambda x: b"}" + x + b.tensor() + b"s"),
    ("dict value", lambda x: b.dict_of({"a": x, "b": b.tensor()})),
    ("BUILD", lambda x: b.HOOKS + x + b"b"),
    ("BUILD attribute", lambda x: b.HOOKS + b"}" + x + b"Ns" + b"b"),
    ("foreign argument", lambda x: b.call(b.name("a", "b"), x, b.tensor())),
    ("foreign state", lambda x: b.call(b.name("a", "b")) + x + b"b"),
    ("foreign key", lambda x: b.call(b.name("a", "b")) + x + b.tensor() + b"s"),
    ("foreign callee", lambda x: x + b")R"),
    ("getattr", lambda x: b.call(b.call(b.name("builtins", "getattr"), b.name("a", "b"), x), x)),
    ("sparse", lambda x: b.call(b.name("torch._utils", "_rebuild_sparse_tensor"), x, x)),
    ("root", lambda x: x),
]

_VALUES: list[tuple[str, bytes]] = [
    ("an int of 7,000 digits", _HUGE),
    ("a negative int of 7,000 digits", _HUGE_NEGATIVE),
    ("a tuple of such ints", b.tuple_of(_HUGE, _HUGE_NEGATIVE)),
    ("a list of 2**40 as a tree", _doubling()),
    ("a tensor", b.tensor()),
    ("an empty tensor", b.tensor(size=(0,))),
    ("a scalar tensor", b.tensor(size=(), stride=())),
    ("a storage", b.persistent()),
    ("a parameter", b.call(_PARAMETER, b.tensor(), b.TRUE, b.HOOKS)),
    ("None", b"N"),
    ("NaN", b"G\x7f\xf8" + bytes(6)),
    ("infinity", b"G\x7f\xf0" + bytes(6)),
    ("text", b.text("x")),
    ("long text", b.text("x" * 100_000)),
    ("a lone surrogate", b.text("\ud800")),
    ("bytes", b.call(b.name("_codecs", "encode"), b.text("x"), b.text("latin1"))),
    ("a list", b.list_of(b"N", b"N")),
    ("a list of itself", b"]q\x63h\x63a"),
    ("a deep list", b"]" * 5000 + b"a" * 4999),
    ("a deep tuple", b")" + b"\x85" * 5000),
    ("a dict", b.dict_of({"a": b"N"})),
    ("a dict of itself", b"}q\x63Nh\x63s"),
    ("a name", b.name("os", "system")),
    ("a foreign object", b.call(b.name("os", "system"), b.text("x"))),
    ("a dtype", _DTYPE),
    ("a range of 2**70", b.call(b.name("__builtin__", "xrange"), b.integer(1 << 70))),
    ("a frozenset", b.call(b.name("builtins", "frozenset"), b.list_of(b"N", b.TRUE))),
]

#: Where a list that doubles is written out, the reader would never come back.
_HANGS = "a list of 2**40 as a tree"


@pytest.mark.parametrize("place", [row[1] for row in _PLACES], ids=[row[0] for row in _PLACES])
@pytest.mark.parametrize(
    "value",
    [row[1] for row in _VALUES if row[0] != _HANGS],
    ids=[row[0] for row in _VALUES if row[0] != _HANGS],
)
def test_any_value_in_any_place(place: Callable[[bytes], bytes], value: bytes) -> None:
    """Whatever stands where something else should: a value or an error of torchzip."""
    data = _zip(place(value))
    with _allowed():
        tz.load(io.BytesIO(data))
    read_lazily(data)


@pytest.mark.parametrize("place", [row[1] for row in _PLACES], ids=[row[0] for row in _PLACES])
def test_messages_are_short(place: Callable[[bytes], bytes]) -> None:
    """A value of the file is never written out whole: as a tree it may have no end."""
    for value in (_doubling(15), b.text("x" * 100_000), b.list_of(*[b"N"] * 20_000)):
        data = _zip(place(value))
        for read in (tz.load, tz.lazy_load):
            try:
                read(io.BytesIO(data))
            except TorchZipError as error:
                message = str(error)
            else:
                continue
            assert len(message) < 5000


@pytest.mark.parametrize(
    "value", [_doubling(15), _HUGE, b.tuple_of(_HUGE)], ids=["doubling", "huge", "tuple"]
)
@pytest.mark.parametrize("place", ["keys", "key", "version"])
def test_any_value_in_a_legacy_file(place: str, value: bytes) -> None:
    """The same for what only the legacy stream has."""
    options: dict[str, bytes] = {"version": value}
    if place != "version":
        options = {"keys": value if place == "keys" else b.list_of(value)}
    with pytest.raises(TorchZipError) as caught:
        tz.load(io.BytesIO(_legacy(**options)))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 5000


# -- attacks that come to nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "function"),
    [("os", "system"), ("builtins", "eval"), ("posix", "system"), ("subprocess", "Popen"),
     ("numpy", "load"), ("torch", "load"), ("torch.hub", "load"), ("builtins", "__import__"),
     ("torchzip", "save"), ("functools", "partial"), ("builtins", "getattr")],
)  # fmt: skip
def test_names_are_inert(module: str, function: str) -> None:
    """Any name outside the table becomes a ForeignObject, or an error that lists it."""
    data = _zip(b.call(b.name(module, function), b.text("exit 1")))
    made = tz.load(io.BytesIO(data))
    assert type(made) is tz.types.ForeignObject
    assert (made.module, made.name, made.args) == (module, function, ("exit 1",))
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.load(io.BytesIO(data), foreign="raise")
    assert caught.value.names == [(module, function)]


def test_zero_stride_giant_stays_a_view() -> None:
    """A tensor of terabytes on four bytes costs nothing to load."""
    data = _zip(b.tensor(size=(1 << 20, 1 << 20), stride=(0, 0)))
    made = tz.load(io.BytesIO(data))
    assert made.shape == (1 << 20, 1 << 20)
    assert made[77, 99] == 1
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        tensor = checkpoint[""]
        assert tensor.nbytes == 1 << 42
        assert tensor[5, :3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("extra", [b"", b.dict_of({"neg": b.TRUE})], ids=["plain", "neg"])
def test_zero_stride_giant_is_no_memory_error(extra: bytes) -> None:
    """Where it would have to be written out, there is an error of torchzip."""
    data = _zip(b.tensor(size=(1 << 30, 1 << 30), stride=(0, 0), extra=extra))
    with _allowed():
        tz.load(io.BytesIO(data))
    read_lazily(data)


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
def test_declared_storage_is_not_allocated(method: int) -> None:
    """A record that says 2**45 bytes and has 16 is an error before memory is asked for."""
    nbytes = 1 << 45
    members = b.members_of(b.stream(b.tensor(b.persistent(numel=nbytes // 4))))
    data = b.build_zip(
        [
            replace(
                each, method=method, nbytes=0xFFFFFFFF, local_nbytes=0xFFFFFFFF,
                extra=struct.pack("<HHQ", 1, 8, nbytes),
            )
            if each.name == b"archive/data/0"
            else each
            for each in members
        ]
    )  # fmt: skip
    with pytest.raises(TorchZipError):
        tz.load(io.BytesIO(data))
    read_lazily(data)


def test_shared_containers_do_not_blow_up() -> None:
    """A list that is 2**40 long as a tree is a few lists in memory."""
    data = _zip(_doubling())
    made = tz.load(io.BytesIO(data))
    for _ in range(40):
        made = made[0]
    assert made == []
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert list(checkpoint) == []
    with_tensor = _zip(b.list_of(b.tensor()) + b"2\x86" * 40)
    with tz.lazy_load(io.BytesIO(with_tensor)) as checkpoint, pytest.raises(LimitError):
        list(checkpoint)


# -- any bytes -----------------------------------------------------------------------------------

_GOLDEN = sorted(path for path in b.GOLDEN.glob("*.pt") if path.stat().st_size < 20_000)
_CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(0, 4)), min_size=1, max_size=5
)


def _changed(data: bytes, changes: list[tuple[float, int, int]]) -> bytes:
    made = bytearray(data)
    for where, byte, how in changes:
        at = int(where * (len(made) - 1))
        if how == 0:
            made[at] = byte
        elif how == 1:
            made[at] ^= 1 << byte % 8
        elif how == 2:
            del made[at : at + byte % 9]
        elif how == 3:
            made[at:at] = made[max(0, at - byte) : at]
        else:
            del made[at:]
        if not made:
            break
    return bytes(made)


def test_golden_files_are_there() -> None:
    """The mutations start from something that is read."""
    assert len(_GOLDEN) > 10
    assert all(path.read_bytes()[:1] in (b"P", b"\x80") for path in _GOLDEN)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_GOLDEN), _CHANGES)
def test_changed_golden_files(path: Any, changes: list[tuple[float, int, int]]) -> None:
    """Any change of a real file gives a value, a TorchZipError or an OSError."""
    data = _changed(path.read_bytes(), changes)
    with _allowed():
        tz.load(io.BytesIO(data))
    read_lazily(data)


def _pickle_of(data: bytes) -> bytes | None:
    """Return data.pkl of a checkpoint as torch writes it."""
    start = data.find(b"\x80\x02")
    if not data.startswith(b"PK") or start < 0:
        return None
    return data[start : data.index(b"PK\x07\x08", start)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(_GOLDEN), _CHANGES)
def test_changed_pickles(path: Any, changes: list[tuple[float, int, int]]) -> None:
    """The same behind a CRC that is right: changes reach the interpreter and the table."""
    data = path.read_bytes()
    pickle = _pickle_of(data)
    if pickle is None:
        return
    members = b.members_of(_changed(pickle, changes), {str(key): bytes(400) for key in range(12)})
    made = b.build_zip(members)
    with _allowed():
        tz.load(io.BytesIO(made))
    read_lazily(made)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"PK\3\4", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{"])
)
def test_random_bytes(data: bytes, magic: bytes) -> None:
    """Bytes without any sense."""
    with _allowed():
        tz.load(io.BytesIO(magic + data))
    read_lazily(magic + data)


def test_modules_stay_as_they_were() -> None:
    """Reading hostile files imports nothing and leaves no state."""
    before = set(sys.modules)
    for _, pickle, _ in _PICKLES:
        with _allowed():
            tz.load(io.BytesIO(_zip(pickle)))
    assert set(sys.modules) == before
