"""TorchScript archives made by hand: names, classes, constants, and what is refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.formats.test_pt2 import lazy
from tests.saved import saved
from torchzip.dtypes import DTYPES
from torchzip.errors import (
    ArchiveError,
    LimitError,
    PickleError,
    TensorError,
    TorchZipError,
    UnsupportedError,
)
from torchzip.formats.torchscript import ScriptClass, parse_classes
from torchzip.tensors.script import storage_class

NET = b"""class Net(Module):
  __parameters__ = ["weight", ]
  __buffers__ = ["mean", ]
  mean : Tensor
  weight : Tensor
  plain : Tensor
  sub : __torch__.lib.___torch_mangle_3.Sub
  def forward(self: __torch__.Net,
    x: Tensor) -> Tensor:
    return torch.mul(x, self.weight)
"""
SUB = b"""class Sub(Module):
  __parameters__ = ["bias", ]
  __buffers__ = []
  bias : Tensor
"""
CODE = {"__torch__": NET, "__torch__/lib/___torch_mangle_3": SUB}


def an_object(module: str, name: str, state: bytes | None = None) -> bytes:
    return b.name(module, name) + b")\x81" + (b"" if state is None else state + b"b")


def a_tensor(key: str = "0", **changes: Any) -> bytes:
    return b.tensor(b.persistent(key), **changes)


def net(**more: bytes) -> bytes:
    """Return a Net with a Sub in it; its attributes stand in another order than its names."""
    sub = an_object("__torch__.lib.___torch_mangle_3", "Sub", b.dict_of({"bias": a_tensor("2")}))
    state = {
        "sub": sub, "mean": a_tensor("1"), "weight": a_tensor("0", requires_grad=b.TRUE),
        "plain": a_tensor("0"), **more,
    }  # fmt: skip
    return an_object("__torch__", "Net", b.dict_of(state))


def numbers(start: int) -> bytes:
    return struct.pack("<4f", *range(start, start + 4))


def archive(
    pickle: bytes,
    code: Mapping[str, bytes] | None = None,
    constants: bytes = b")",
    *,
    more: list[b.Member] | None = None,
) -> bytes:
    """Return an archive as ``torch.jit.save`` lays it out: deflated code, two sets of storages."""
    records = {
        **{f"data/{key}": numbers(10 * key) for key in range(3)},
        "data.pkl": b.stream(pickle),
        **{f"code/{file}.py": text for file, text in (CODE if code is None else code).items()},
        "constants/0": numbers(100), "constants.pkl": b.stream(constants),
        "version": b"3\n", "byteorder": b"little",
    }  # fmt: skip
    members = [
        b.Member(name=f"archive/{name}".encode(), data=data, method=8 * name.startswith("code/"))
        for name, data in records.items()
    ]
    return b.build_zip(members + (more or []))


# -- names -------------------------------------------------------------------------------------


def test_names_are_those_of_the_state_dict() -> None:
    """Parameters, then buffers, then submodules; other tensors are in the root only."""
    with lazy(archive(net())) as ckpt:
        assert ckpt.format == "torchscript"
        assert list(ckpt) == ["weight", "mean", "sub.bias"]
        assert [ckpt[name].is_parameter for name in ckpt] == [True, False, True]
        assert [ckpt[name].requires_grad for name in ckpt] == [True, False, False]
        assert ckpt["sub.bias"].numpy().tolist() == [20, 21, 22, 23]
        assert isinstance(ckpt.root, tz.types.ForeignObject)
        assert (ckpt.root.module, ckpt.root.name) == ("__torch__", "Net")
        assert ckpt.root.state["plain"].numpy().tolist() == [0, 1, 2, 3]
        assert ckpt.foreign == [
            ("__torch__", "Net"), ("__torch__.lib.___torch_mangle_3", "Sub"),
        ]  # fmt: skip
        assert ckpt.constants == ()


@pytest.mark.parametrize("mmap", [False, True])
def test_load_gives_the_object(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "script.pt"
    path.write_bytes(archive(net()))
    root = tz.load(path, mmap=mmap)
    assert root.state["sub"].state["bias"].tolist() == [20, 21, 22, 23]
    assert root.state["weight"].flags.writeable is not mmap
    assert np.shares_memory(root.state["weight"], root.state["plain"])


def test_raise_names_the_classes() -> None:
    with pytest.raises(tz.UnsafeGlobalError, match=r"__torch__\.Net"):
        lazy(archive(net()), foreign="raise")


@pytest.mark.parametrize("location", ["meta", "meta:0"])
@pytest.mark.parametrize("key", ["7", "0"])
def test_tensors_on_the_meta_device(location: str, key: str) -> None:
    """Such a tensor is there without data, and all others are read; its record is not looked at."""
    storage = b.persistent(key, location=location)
    meta = b.tensor(storage, offset=1, size=(2, 2), stride=(1, 1), requires_grad=True)
    module = an_object("__torch__", "Net", b.dict_of({"weight": meta, "mean": a_tensor("1")}))
    with lazy(archive(module, constants=meta + b"\x85")) as ckpt:
        assert list(ckpt) == ["weight", "mean"]
        assert ckpt["weight"].is_parameter
        held = [ckpt["weight"], *ckpt.constants]
        assert ckpt["mean"].numpy().tolist() == [10, 11, 12, 13]
        assert ckpt.verify().tensors == 2
    state = tz.load(io.BytesIO(archive(module))).state
    assert state["mean"].tolist() == [10, 11, 12, 13]
    for tensor in (*held, state["weight"]):
        assert isinstance(tensor, tz.types.MetaTensor)
        assert (tensor.torch_dtype, tensor.shape, tensor.stride) == ("float32", (2, 2), (1, 1))
        assert tensor.requires_grad


def test_a_meta_tensor_past_its_storage() -> None:
    """What an archive says of a storage without data holds for its tensors all the same."""
    meta = b.tensor(b.persistent(location="meta"), size=(5,))
    with pytest.raises(TensorError, match="reaches to byte 20 of a storage of 16"):
        lazy(archive(an_object("__torch__", "Net", b.dict_of({"weight": meta}))))


def test_a_class_that_is_no_module_has_no_names() -> None:
    """Neither a script class nor one of C++ is part of a state dict."""
    pair = an_object("__torch__", "Pair", b.dict_of({"weight": a_tensor("1")}))
    packed = an_object("__torch__.torch.classes.q", "Packed", a_tensor("1") + b"\x85")
    code = {"__torch__": NET + b"class Pair:\n  weight : Tensor\n", **{
        "__torch__/lib/___torch_mangle_3": SUB}}  # fmt: skip
    with lazy(archive(net(pair=pair, packed=packed, mean=pair), code)) as ckpt:
        assert list(ckpt) == ["weight", "sub.bias"]
        assert ckpt.root.state["packed"].state[0].shape == (4,)


@pytest.mark.parametrize("value", [b"N", b"]", b"K\1", b.list_of(a_tensor("1"))])
def test_a_parameter_that_is_no_tensor_has_no_name(value: bytes) -> None:
    """A buffer may be None, and a list never is one."""
    with lazy(archive(net(mean=value))) as ckpt:
        assert list(ckpt) == ["weight", "sub.bias"]


def test_tied_modules_have_both_names() -> None:
    """A module that is there twice, by the memo."""
    sub = an_object("__torch__.lib.___torch_mangle_3", "Sub", b.dict_of({"bias": a_tensor("2")}))
    both = b"}(" + b.text("a") + sub + b"q\1" + b.text("b") + b"h\1" + b"u"
    with lazy(archive(an_object("__torch__", "Net", both))) as ckpt:
        assert list(ckpt) == ["a.bias", "b.bias"]
        assert ckpt["a.bias"].spec.storage is ckpt["b.bias"].spec.storage


def test_without_code_every_tensor_has_a_name() -> None:
    """Where a class is not explained, the names are the paths."""
    with lazy(archive(net(), {})) as ckpt:
        assert list(ckpt) == ["sub.bias", "mean", "weight", "plain"]
    with lazy(archive(net(), {"__torch__": NET})) as ckpt:
        assert list(ckpt) == ["weight", "mean", "sub.bias"]


@pytest.mark.parametrize(
    "change",
    [
        (b'["weight", ]', b"weight"),
        (b'["weight", ]', b'["weight", ] + x'),
        (b'["weight", ]', b'["weight"'),
        (b'["weight", ]', b'["wei\\ght", ]'),
        (b'["weight", ]', b'["\\400", ]'),
        (b'["weight", ]', b'["\\377", ]'),
        (b'["weight", ]', b"['weight', ]"),
        (b"  __buffers__", b"  __parameters__"),
        (b"class Net", b"class Net(Module):\nclass Net"),
        (b'["weight", ]', b'["' + b"w" * (1 << 20) + b'", ]'),
    ],
)
def test_odd_code_is_no_guess(change: tuple[bytes, bytes]) -> None:
    """A definition that is not as torch prints it counts for nothing."""
    code = {**CODE, "__torch__": NET.replace(*change)}
    with lazy(archive(net(), code)) as ckpt:
        assert list(ckpt) == ["sub.bias", "mean", "weight", "plain"]


def test_a_state_of_its_own() -> None:
    """A module with ``__getstate__``: no names if it has none, its places if it has some."""
    state = a_tensor("1") + b"K\1\x86"
    sub = an_object("__torch__.lib.___torch_mangle_3", "Sub", state)
    with lazy(archive(net(sub=sub))) as ckpt:
        assert list(ckpt) == ["weight", "mean", "sub.state.0"]
    nothing = {**CODE, "__torch__/lib/___torch_mangle_3": SUB.replace(b'"bias", ', b"")}
    with lazy(archive(net(sub=sub), nothing)) as ckpt:
        assert list(ckpt) == ["weight", "mean"]


# -- the code ----------------------------------------------------------------------------------


def test_classes_of_a_file() -> None:
    """What is at the margin ends a class; nothing deeper counts."""
    text = b"""op_version_set = 1
class A(Module):
  __parameters__ = ["a", "b\\"\\\\\\n\\303\\251", ]
  __buffers__ = []
  __annotations__["0"] = Tensor
  def forward(self):
    __parameters__ = ["x", ]
def f():
  __parameters__ = ["y", ]
class B:
  a : Tensor
class C(NamedTuple):
  a : Tensor
class D(Module):
"""
    assert parse_classes(text, set("ABCDE")) == {
        "A": ScriptClass(True, frozenset(["a", 'b"\\\né']), frozenset()),
        "B": ScriptClass(False),
        "C": ScriptClass(False),
        "D": ScriptClass(True),
    }
    assert set(parse_classes(text, {"B"})) == {"B"}


@given(st.lists(st.text(min_size=1), unique=True))
def test_quoted_names_come_back(names: list[str]) -> None:
    """Names as torch's parser takes them: letters for some, octal for what is not printable."""
    letters = {v: k for k, v in zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True)}

    def quoted(byte: int) -> bytes:
        if byte in b"\\'\"":
            return b"\\" + bytes([byte])
        if byte in letters:
            return b"\\" + bytes([letters[byte]])
        return bytes([byte]) if 32 <= byte < 127 else b"\\%03o" % byte

    encoded = [name.encode("utf-8", "ignore") for name in names]
    listed = b"".join(b'"' + b"".join(map(quoted, name)) + b'", ' for name in encoded)
    text = b"class A(Module):\n  __parameters__ = [" + listed + b"]\n"
    wanted = frozenset(name.decode() for name in encoded)
    assert parse_classes(text, {"A"})["A"].parameters == wanted


@given(st.binary(max_size=200), st.integers(0, len(NET)))
def test_any_code(noise: bytes, at: int) -> None:
    parse_classes(NET[:at] + noise + NET[at:], {"Net"})


def test_code_is_bounded() -> None:
    """A bomb among the class definitions is a LimitError, not a wait."""
    bomb = {**CODE, "__torch__": NET + b" " * (33 << 20)}
    with pytest.raises(LimitError) as caught:
        tz.load(io.BytesIO(archive(net(), bomb)))
    assert caught.value.limit == "code_nbytes"
    both = {name: text + b" " * 600 for name, text in CODE.items()}
    limits = tz.Limits(code_nbytes=1000)
    with pytest.raises(LimitError, match="code_nbytes"):
        lazy(archive(net(), both), limits=limits)


def test_damaged_code_is_said() -> None:
    data = bytearray(archive(net()))
    entry = data.rindex(b"archive/code/__torch__.py")
    data[entry - 30] ^= 1  # its CRC in the directory
    with pytest.raises(ArchiveError):
        lazy(bytes(data))


def test_verify_covers_the_code() -> None:
    """Deflated records are read, and one that nothing else looks at."""
    extra = b.Member(name=b"archive/code/__torch__/x.py.debug_pkl", data=b"abc" * 99, method=8)
    with lazy(archive(net(), more=[extra])) as ckpt:
        assert ckpt.verify().records == 11
    damaged = archive(net(), more=[replace(extra, crc=1, local_crc=1)])
    with lazy(damaged) as ckpt, pytest.raises(ArchiveError, match="CRC"):
        ckpt.verify()


# -- constants ---------------------------------------------------------------------------------


def test_constants() -> None:
    """They lie in records of their own, under the keys that the tensors have too."""
    values = a_tensor("0") + a_tensor("0", size=(2,)) + b"K\1\x87"
    with lazy(archive(net(), constants=values)) as ckpt:
        first, second, third = ckpt.constants
        assert (first.numpy().tolist(), second.shape, third) == ([100, 101, 102, 103], (2,), 1)
        assert first.spec.storage is second.spec.storage
        assert list(ckpt) == ["weight", "mean", "sub.bias"]
    foreign = an_object("__torch__.torch.classes.q", "Packed", b")") + b"\x85"
    with lazy(archive(net(), constants=foreign)) as ckpt:
        assert ("__torch__.torch.classes.q", "Packed") in ckpt.foreign
        assert ("__torch__.torch.classes.q", "Packed") in ckpt.globals


@pytest.mark.parametrize(
    ("constants", "error"),
    [
        (b"]", PickleError),
        (a_tensor("1") + b"\x85", ArchiveError),
        (b.tensor(b.persistent("0", numel=5)) + b"\x85", TensorError),
        (b"", PickleError),
    ],
)
def test_broken_constants(constants: bytes, error: type[TorchZipError]) -> None:
    with pytest.raises(error) as caught:
        lazy(archive(net(), constants=constants))
    assert caught.value.path is not None
    assert "constants" in str(caught.value)


def test_other_formats_have_no_constants() -> None:
    with lazy(b.checkpoint(b.stream(b.tensor()))) as ckpt:
        assert ckpt.constants == ()


# -- what only the C++ pickler writes ----------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_storage_classes(name: str) -> None:
    """Each dtype has one, which counts elements; the values are the bytes of the record."""
    row = DTYPES[name]
    count = 16 // row.itemsize
    value = b.tensor(b.persistent("1", numel=count, kind=storage_class(row)), size=(count,))
    with lazy(archive(net(mean=value))) as ckpt:
        tensor = ckpt["mean"]
        assert (tensor.torch_dtype, tensor.shape) == (name, (count,))
        assert tensor.numpy().tobytes() == numbers(10)
        assert ("torch", storage_class(row)) not in ckpt.foreign
        again = saved({"t": tensor})
    with lazy(again) as ckpt:
        assert (ckpt["t"].torch_dtype, ckpt["t"].numpy().tobytes()) == (name, numbers(10))


def test_storage_classes_of_cpp_are_not_pythons() -> None:
    """A file of ``torch.save`` with such a class is refused, as torch refuses it."""
    pid = b.persistent(numel=8, kind="UInt16Storage")
    with pytest.raises(UnsupportedError, match="UInt16Storage"):
        tz.load(io.BytesIO(b.checkpoint(b.stream(b.tensor(pid)))))


def jit(function: str, *arguments: bytes) -> bytes:
    return b.call(b.name("torch.jit._pickle", function), *arguments)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (jit("build_intlist", b.list_of(b"K\1", b"K\2")), [1, 2]),
        (jit("build_doublelist", b"]"), []),
        (jit("build_boollist", b.list_of(True)), [True]),
        (jit("restore_type_tag", b.list_of("x"), b.text("List[str]")), ["x"]),
        (jit("restore_type_tag", b"}", b.text("Dict[int, str]")), {}),
        (b.call("torch.device", "cuda:1"), tz.types.Device("cuda", 1)),
        (b.call("torch.device", "cpu"), tz.types.Device("cpu")),
        (b.name("builtins", "complex") + b"G" + bytes(8) + b"G" + bytes(8) + b"\x86R", 0j),
    ],
)
def test_values(value: bytes, expected: Any) -> None:
    with lazy(archive(net(value=value))) as ckpt:
        assert ckpt.root.state["value"] == expected


def test_enum() -> None:
    """A member is its class, called with the value itself."""
    with lazy(archive(net(value=b.name("__torch__", "Color") + b"K\2R"))) as ckpt:
        made = ckpt.root.state["value"]
        assert (made.module, made.name, made.args) == ("__torch__", "Color", (2,))


def test_tensor_list() -> None:
    """Tensors in a list are in the root, and have no names."""
    value = jit("build_tensorlist", b.list_of(a_tensor("1")))
    with lazy(archive(net(value=value))) as ckpt:
        assert ckpt.root.state["value"][0].numpy().tolist() == [10, 11, 12, 13]
        assert len(ckpt) == 3


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (jit("build_intlist"), PickleError),
        (jit("build_intlist", b"K\1"), PickleError),
        (jit("build_tensorlist", b"]", b"]"), PickleError),
        (jit("restore_type_tag", b"]"), PickleError),
        (jit("restore_type_tag", b"]", b"K\1"), PickleError),
        (jit("build_tensor_from_id", b"K\1"), UnsupportedError),
        (b.call("torch.device", "cuda:x"), PickleError),
        (b.call("torch.device", "cuda:"), PickleError),
        (b.call("torch.device", "cuda:٣"), PickleError),
        (b.call("torch.device", "cuda:" + "9" * 99), PickleError),
        (b.call("torch.device", b"K\1"), PickleError),
        (b.name("other", "Color") + b"K\2R", PickleError),
        (b.name("torch.jit._pickle", "build_intlist") + b"K\2R", PickleError),
        (b.tensor(b.persistent("7", kind=b.name("torch", "QuadStorage"))), UnsupportedError),
        (b.tensor(b.persistent("7")), ArchiveError),
        (b.tensor(b.persistent("../constants/0")), PickleError),
    ],
)
def test_refused(value: bytes, error: type[TorchZipError]) -> None:
    """What the C++ pickler does not write is an error with its place."""
    for read in (tz.load, tz.lazy_load):
        with pytest.raises(error) as caught:
            read(io.BytesIO(archive(net(value=value))))
        assert caught.value.record is not None


def test_cycles_end() -> None:
    itself = b.name("__torch__", "Net") + b")\x81q\1}(" + b.text("sub") + b"h\1"
    data = archive(itself + b.text("weight") + a_tensor("0") + b"ub")
    with lazy(data) as ckpt:
        assert list(ckpt) == ["weight"]
    tz.load(io.BytesIO(data))


def test_big_endian() -> None:
    """Classes of C++ know the size of their elements, so the bytes can be swapped."""
    pid = b.persistent("0", numel=8, kind="UInt16Storage")
    records = {
        "data/0": struct.pack(">8H", *range(8)),
        "data.pkl": b.stream(b.tensor(pid, size=(8,))),
        "constants.pkl": b.stream(b")"), "version": b"3", "byteorder": b"big",
    }  # fmt: skip
    assert tz.load(io.BytesIO(b.zip_of(records))).tolist() == list(range(8))


def test_before_1_4() -> None:
    """The archives of torch 1.0 to 1.3 are told apart."""
    with pytest.raises(UnsupportedError, match=r"before 1\.4"):
        lazy(b.zip_of({"model.json": b"{}", "version": b"1"}))


# -- conversion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_convert(tmp_path: Path, suffix: str) -> None:
    """The tensors of the state dict are written; what has no name there is said."""
    source = tmp_path / "script.pt"
    source.write_bytes(archive(net(), constants=a_tensor("0") + b"\x85"))
    report = tz.convert(source, tmp_path / f"out.{suffix}")
    assert report.tensors == 3
    assert "constants.0: a constant of the code" in report.lost
    assert not any("plain" in lost for lost in report.lost)  # its data is that of weight
    with tz.lazy_load(tmp_path / f"out.{suffix}") as ckpt:
        assert set(ckpt) == {"weight", "mean", "sub.bias"}
        assert ckpt["mean"].numpy().tolist() == [10, 11, 12, 13]
        assert ckpt.foreign == []
    source.write_bytes(archive(net(plain=a_tensor("0", size=(2,)))))
    report = tz.convert(source, tmp_path / f"again.{suffix}")
    assert "plain: a tensor that the state dict does not name" in report.lost
