"""Every number and part of a tensor and its storage, wrong in every way."""

from __future__ import annotations

from typing import Any

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import DTYPE, FROM_TYPE, PARAMETER, UNTYPED, V3, v3, zipped
from torchzip.errors import ArchiveError, PickleError, TensorError, UnsupportedError

_V1 = b.name("torch._utils", "_rebuild_tensor")
_SIZE = b.name("torch", "Size")
_HALF = b.name("torch", "HalfStorage")
_COMPLEX = b.name("torch", "ComplexFloatStorage")


def _v1(*, offset: int = 0, size: b.Value = (4,), stride: b.Value = (1,),
        storage: bytes | None = None, more: bytes = b"") -> bytes:  # fmt: skip
    """Return a tensor as torch before 0.4 wrote them."""
    return b.call(_V1, b.persistent() if storage is None else storage, offset, size, stride, more)


def _old(state: bytes, kind: str = "FloatTensor", module: str = "torch") -> bytes:
    """Return a tensor by its class and its state."""
    return b.name(module, kind) + b")R" + state + b"b"


def _old_state(
    storage: bytes | None = None, offset: int = 0, size: b.Value = (4,), stride: b.Value = (1,)
) -> bytes:
    return b.tuple_of(b.persistent() if storage is None else storage, offset, size, stride)


def _twice(**changes: Any) -> bytes:
    """Return two tensors over one storage, which the second describes in another way."""
    return b.tensor() + b.tensor(b.persistent(**changes)) + b"\x86"


_MORE: list[Row] = [
    # the function of torch before 0.4
    ("an old tensor past the end", _v1(size=(5,))),
    ("an old tensor at -1", _v1(offset=-1)),
    ("an old tensor of True elements", _v1(size=b.tuple_of(True))),
    ("an old tensor of a negative stride", _v1(stride=(-1,), offset=3)),
    ("an old tensor of two strides", _v1(stride=(1, 1))),
    ("an old tensor of a size of text", _v1(size=b.text("4"))),
    ("an old tensor on a name", _v1(storage=b.name("os", "system"))),
    ("an old tensor of five", _v1(more=b.FALSE), PickleError),
    ("an old tensor of nothing", b.call(_V1), PickleError),
    ("an old tensor of a giant", _v1(size=(1 << 62,), stride=(0,))),
    # tensors by their class
    ("a tensor by its class past the end", _old(_old_state(size=(5,)))),
    ("a tensor by its class at -1", _old(_old_state(offset=-1))),
    ("a tensor by its class on other numbers", _old(_old_state(), "DoubleTensor")),
    ("a tensor by its class on bytes", _old(_old_state(b.persistent(kind=UNTYPED, numel=16)))),
    ("a tensor by its class on a number", _old(_old_state(b.integer(0)))),
    ("a tensor by its class with a state of three", _old(b.ints(1, 2, 3)), PickleError),
    ("a tensor by its class with a state of a dict", _old(b"}"), PickleError),
    ("a tensor by its class with arguments",
     b.call("torch.FloatTensor", 1 << 40), UnsupportedError),
    ("a tensor by its class without a state", b.name("torch", "FloatTensor") + b")R", None),
    ("a sparse tensor by its class",
     b.name("torch.sparse", "FloatTensor") + b")R}b", UnsupportedError),
    ("a variable of three things and no tensor",
     b.name("torch.autograd.variable", "Variable") + b")R" + b.tuple_of(b"NNN") + b"b", None),
    ("a variable that requires 1", b.call("torch.autograd.variable.Variable", b.tensor())
     + b.tuple_of(1, False, b.HOOKS) + b"b"),
    ("a variable with hooks", b.call("torch.autograd.variable.Variable", b.tensor())
     + b.tuple_of(False, False, {"a": b"N"}) + b"b", UnsupportedError),
    ("a variable of a name", b.call("torch.autograd.variable.Variable", b.name("os", "system"))
     + b.tuple_of(False, False, b"N") + b"b"),
    ("a variable of the number 5", b.call("torch.autograd.variable.Variable", 5)
     + b.tuple_of(False, False, b"N") + b"b"),
    # sizes and strides in other containers
    ("a size and stride in lists", b.tensor(size=b.list_of(4), stride=b.list_of(1)), None),
    ("a size that is a Size", b.tensor(size=b.call(_SIZE, (4,))), None),
    ("a stride that is a Size", b.tensor(stride=b.call(_SIZE, (1,))), None),
    ("a size that is a Size of -1", b.tensor(size=b.call(_SIZE, (-1,)))),
    ("a size that is a Size of 2**64", b.tensor(size=b.call(_SIZE, (1 << 64,)))),
    ("a size in a set", b.tensor(size=b"\x8f(K\4\x90")),
    ("a size in a deque", b.tensor(size=b.call("collections.deque", [4]))),
    ("a size that is a range", b.tensor(size=b.call("__builtin__.xrange", 4))),
    ("a size of bytes", b.tensor(size=b"C\1\4")),
    ("a size that is a tensor", b.tensor(size=b.tensor())),
    ("a size that is a call", b.tensor(size=b.call("os.system"))),
    ("a size in itself", b.tensor(size=b"]q\0h\0a")),
    ("a size of floats", b.tensor(size=b.tuple_of(b"G\x40\x10" + bytes(6)))),
    ("a size of None", b.tensor(size=b.tuple_of(b"N"))),
    ("a size of a size", b.tensor(size=b.tuple_of((4,)))),
    ("a size of 10,000 dimensions", b.tensor(size=b.tuple_of(*[b"K\1"] * 10_000))),
    ("a stride in a list in itself", b.tensor(stride=b"]q\0h\0a")),
    ("a stride that is a dict", b.tensor(stride=b"}")),
    ("a stride of floats", b.tensor(stride=b.tuple_of(b"G\x3f\xf0" + bytes(6)))),
    ("a stride of 2**64", b.tensor(stride=(1 << 64,))),
    ("a stride of 2**64 that is not gone", b.tensor(size=(1,), stride=(1 << 64,))),
    ("a stride of -1 that is not gone", b.tensor(size=(1,), stride=(-1,))),
    ("a stride of 2**62 that is not gone", b.tensor(size=(1,), stride=(1 << 62,)), None),
    ("strides that add up past 2**63",
     b.tensor(size=(2, 2, 2), stride=(1 << 62, 1 << 62, 1 << 62))),
    ("strides that wrap around to 0", b.tensor(size=(2, 2), stride=(1 << 63, 1 << 63))),
    ("sizes that wrap around to 4", b.tensor(size=(1 << 32, 1 << 32, 4), stride=(0, 0, 1))),
    ("an offset that wraps around", b.tensor(offset=(1 << 64) - 4)),
    ("an offset of an empty tensor past the end", b.tensor(offset=5, size=(0,)), None),
    ("an offset of an empty tensor of 2**63", b.tensor(offset=1 << 63, size=(0,))),
    ("an offset of a call", b.tensor(offset=b.call("os.getpid"))),
    ("64 dimensions of 2", b.tensor(size=(2,) * 64, stride=(0,) * 64)),
    ("64 dimensions of 1", b.tensor(size=(1,) * 64, stride=(1,) * 64), None),
    ("a scalar past the end", b.tensor(offset=4, size=(), stride=())),
    ("a scalar with a stride", b.tensor(size=(), stride=(1,))),
    # metadata and hooks
    ("a conjugated tensor", b.tensor(
        b.persistent(kind=_COMPLEX, numel=2), size=(2,), extra={"conj": True}), None),
    ("a negated tensor of a conjugated one", b.tensor(b.persistent(kind=_COMPLEX, numel=2),
     size=(2,), extra={"conj": True, "neg": True}), None),
    ("a negated tensor of bools", b.tensor(b.persistent(kind=b.name("torch", "BoolStorage"),
     numel=16), size=(16,), extra={"neg": True})),
    ("a negated tensor of bits", v3(b.name("torch", "bits8") + b.dict_of({"neg": True}))),
    ("a negated tensor of quantized numbers", b.tensor(b.persistent(kind=b.name("torch",
     "QInt8Storage"), numel=16), size=(16,), extra={"neg": True})),
    ("a bool of 2", b.tensor(b.persistent(kind=b.name("torch", "BoolStorage"), numel=16),
                             size=(16,)), None),
    ("conj of 1", b.tensor(b.persistent(kind=_COMPLEX, numel=2), size=(2,),
                           extra={"conj": 1}), UnsupportedError),
    ("metadata with a key that is a number", b.tensor(extra=b"}K\1" + b.TRUE + b"s"),
     UnsupportedError),
    ("metadata of an OrderedDict", b.tensor(extra=b.HOOKS)),
    ("metadata that is True", b.tensor(extra=True)),
    ("hooks that are a list", b.tensor(hooks=b"]"), UnsupportedError),
    ("hooks that are a call", b.tensor(hooks=b.call("os.system")), UnsupportedError),
    ("hooks of a name", b.tensor(hooks=b.HOOKS + b"K\0" + b.name("os", "system") + b"s"),
     UnsupportedError),
    ("hooks that are filled later", b"K\0" + b.HOOKS + b"q\x020" + b.tensor(hooks=b"h\2")
     + b"h\2K\0" + b.name("os", "system") + b"s\x87", None),
    ("a size that is filled later", b"]q\x01K\4a" + b.tensor(size=b"h\1") + b"h\1K\x7fa\x87", None),
    ("hooks that are False", b.tensor(hooks=b.FALSE), UnsupportedError),
    ("requires_grad of a whole number tensor", b.tensor(b.persistent(
     kind=b.name("torch", "LongStorage"), numel=2), size=(2,), requires_grad=True), None),
    ("requires_grad of a name", b.tensor(requires_grad=b.name("os", "system"))),
    # tensors of other dtypes
    ("a v3 tensor of floats in bytes", v3(b.name("torch", "float32")), None),
    ("a v3 tensor of doubles past the bytes", v3(b.name("torch", "float64"))),
    ("a v3 tensor on a typed storage", b.tensor(function=V3, extra=b.name("torch", "int32")), None),
    ("a v3 tensor of wider numbers on a typed storage",
     b.tensor(function=V3, extra=b.name("torch", "float64"))),
    ("a v3 tensor on half numbers", b.tensor(b.persistent(kind=_HALF, numel=8),
     function=V3, size=(2,), extra=b.name("torch", "complex64")), None),
    ("a v3 tensor of a storage class", v3(b.name("torch", "FloatStorage"))),
    ("a v3 tensor of a dtype that was called", v3(b.call(DTYPE)), PickleError),
    ("a v3 tensor of an alias of a dtype", v3(b.name("torch", "float"))),
    ("a v3 tensor of quantized numbers", v3(b.name("torch", "quint8")), None),
    ("a v3 tensor of bits", v3(b.name("torch", "bits8"), size=(16,)), None),
    ("a v3 tensor of numpy's dtype", v3(b.call("numpy.dtype", "f4", False, True))),
    ("a v3 tensor of an offset past the bytes", v3(DTYPE, offset=8)),
    ("a v3 tensor of an offset of 2**62", v3(DTYPE, offset=1 << 62)),
    ("a v3 tensor of nine", v3(b.name("torch", "uint16") + b"NN"), PickleError),
    ("a v3 tensor without its dtype",
     b.tensor(b.persistent(kind=UNTYPED, numel=16), function=V3), PickleError),
    ("a v2 tensor on bytes", b.tensor(b.persistent(kind=UNTYPED, numel=16), size=(16,)), None),
    ("a v2 tensor on bytes past the end",
     b.tensor(b.persistent(kind=UNTYPED, numel=16), size=(17,))),
    ("a v2 tensor on quantized numbers",
     b.tensor(b.persistent(kind=b.name("torch", "QInt8Storage"), numel=16), size=(16,)), None),
    ("a v2 tensor on packed numbers past the end", b.tensor(
     b.persistent(kind=b.name("torch", "QUInt4x2Storage"), numel=16), size=(33,))),
    # one storage, described twice
    ("a storage of two dtypes", _twice(kind=b.name("torch", "IntStorage")), None),
    ("a storage of two sizes", _twice(numel=2), None),
    ("a storage of two sizes that grows", _twice(numel=8), None),
    ("a storage at two locations", _twice(location=b.text("cuda:0")), None),
    ("a storage of two sizes that is used past the first",
     b.tensor() + b.tensor(b.persistent(numel=8), size=(8,)) + b"\x86"),
    ("a storage of a wider dtype that is used past the first",
     b.tensor() + b.tensor(b.persistent(kind=b.name("torch", "DoubleStorage")), function=V3,
                           extra=b.name("torch", "float64")) + b"\x86"),
    ("a storage of two sizes, the second -1", _twice(numel=-1), None),
    ("a storage of a sparse class",
     b.tensor(b.persistent(kind=b.name("torch.sparse", "FloatStorage"))), UnsupportedError),
    ("a storage of a tensor class", b.tensor(b.persistent(kind=b.name("torch", "FloatTensor"))),
     UnsupportedError),
    ("a storage of TypedStorage",
     b.tensor(b.persistent(kind=b.name("torch.storage", "TypedStorage"))), UnsupportedError),
    ("a storage of a class of TorchScript",
     b.tensor(b.persistent(kind=b.name("torch", "UInt16Storage"), numel=8)), UnsupportedError),
    ("a storage of a class as text",
     b.tensor(b.persistent(kind=b.text("FloatStorage"))), PickleError),
    ("a storage of a class of another module",
     b.tensor(b.persistent(kind=b.name("os", "FloatStorage"))), UnsupportedError),
    ("a storage of fewer bytes of another dtype", b.tensor(b.persistent(kind=_HALF))),
    ("a storage key of 300 characters", b.tensor(b.persistent("0" * 300)), PickleError),
    ("a storage key in other digits", b.tensor(b.persistent("\u0660")), ArchiveError),
    ("a storage key of a record's name", b.tensor(b.persistent("data.pkl")), ArchiveError),
    ("a storage key as bytes", b.tensor(b.persistent(raw_key=b"C\x010")), PickleError),
    ("a storage key as a number", b.tensor(b.persistent(raw_key=b.integer(0))), PickleError),
    ("a location with a control sequence", b.tensor(b.persistent(location="\x1b[2J")), None),
    ("a location of 100,000 characters", b.tensor(b.persistent(location="x" * 100_000)), None),
    ("a kind of id as bytes",
     b.tuple_of(b"C\7storage", b.name("torch", "FloatStorage"), "0", "cpu", 4) + b"Q", None),
    ("a storage that holds a storage", b.persistent(raw_key=b.persistent()), PickleError),
    ("a storage within its own size", b.persistent(numel=b.persistent()), None),
    ("a storage view in a view", b.tensor(b.persistent(extra=b.tuple_of("v", 3, 1)))),
    ("a storage view of two windows", b.tensor(b.persistent(extra=b.tuple_of("v", 0, 2)), size=(2,))
     + b.tensor(b.persistent(extra=b.tuple_of("v", 2, 2)), size=(2,)) + b"\x86", None),
    ("a storage view of 2**62 and 2**62",
     b.tensor(b.persistent(extra=b.tuple_of("v", 1 << 62, 1 << 62)))),
    ("a storage view of True", b.tensor(b.persistent(extra=b.tuple_of("v", True, True)))),
    ("a tensor past its storage view", b.tensor(
        b.persistent(extra=b.tuple_of("v", 2, 1)), size=(2,)), None),
    # parameters
    ("a parameter of a parameter",
     b.call(PARAMETER, b.call(PARAMETER, b.tensor(), True, b.HOOKS), False, b.HOOKS), None),
    ("a parameter of two", b.call(PARAMETER, b.tensor(), True), PickleError),
    ("a parameter that requires a tensor", b.call(PARAMETER, b.tensor(), b.tensor(), b.HOOKS)),
    ("a parameter on a storage", b.call(PARAMETER, b.persistent(), True, b.HOOKS)),
    ("a parameter of the number 5", b.call(PARAMETER, 5, True, b.HOOKS)),
    ("a parameter around None", b.call(PARAMETER, b"N", True, b.HOOKS)),
    ("a parameter of a class", b.call(PARAMETER, b.name("torch", "Tensor"), True, b.HOOKS)),
    ("a parameter with a state of a list",
     b.call("torch._utils._rebuild_parameter_with_state", b.tensor(), True, b.HOOKS, b"]"), None),
]  # fmt: skip

_PICKLES: list[Row] = [
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
    ("storage of more elements", b.tensor(b.persistent(numel=5))),
    ("storage of fewer elements", b.tensor(b.persistent(numel=3))),
    ("storage of -4 elements", b.tensor(b.persistent(numel=-4))),
    ("storage of 2**62 elements", b.tensor(b.persistent(numel=1 << 62))),
    ("storage of 2**64 elements", b.tensor(b.persistent(numel=1 << 64))),
    ("storage of True elements", b.tensor(b.persistent(numel=True))),
    ("storage of 4.0 elements", b.tensor(b.persistent(numel=b"G\x40\x10" + bytes(6)))),
    ("storage of None elements", b.tensor(b.persistent(numel=b"N"))),
    ("storage of elements as text", b.tensor(b.persistent(numel="4"))),
    ("storage of an unknown class",
     b.tensor(b.persistent(kind=b.name("torch", "QuadStorage"))), UnsupportedError),
    ("storage of class None", b.tensor(b.persistent(kind=b"N")), PickleError),
    ("storage of a dtype", b.tensor(b.persistent(kind=DTYPE)), PickleError),
    ("storage of a class that was called",
     b.tensor(b.persistent(kind=b.call("torch.FloatStorage"))), UnsupportedError),
    ("storage at location 0", b.tensor(b.persistent(location=0)), PickleError),
    ("storage at location None", b.tensor(b.persistent(location=b"N")), PickleError),
    ("persistent id that is text", b.tensor(b.text("0") + b"Q"), PickleError),
    ("persistent id that is empty", b.tensor(b")Q"), PickleError),
    ("persistent id of another kind", b.tensor(b.tuple_of("x") + b"Q"), PickleError),
    ("persistent id that is short", b.tensor(b.tuple_of("storage") + b"Q"), PickleError),
    ("persistent id that is long", b.tensor(b.persistent(extra=b"NN")), PickleError),
    ("persistent id of kind tensor",
     b.tensor() + b.tuple_of(b.tensor(), b"NNNN") + b"Q\x86", PickleError),
    ("storage view that is text", b.tensor(b.persistent(extra=b.text("x"))), PickleError),
    ("storage view of two", b.tensor(b.persistent(extra=b.ints(1, 2))), PickleError),
    ("storage view outside", b.tensor(b.persistent(extra=b.ints(1, 2, 3)))),
    ("storage view before", b.tensor(b.persistent(extra=b.ints(1, -1, 3)))),
    ("storage view of None", b.tensor(b.persistent(extra=b.tuple_of(b"NNN")))),
    ("storage view with a list as key",
     b.tensor(b.persistent(extra=b.tuple_of(b"]", 0, 1))), PickleError),
    # tensors
    ("offset past the end", b.tensor(offset=1)),
    ("offset of -1", b.tensor(offset=-1)),
    ("offset of 2**62", b.tensor(offset=1 << 62)),
    ("offset of 2**64", b.tensor(offset=1 << 64)),
    ("offset of True", b.tensor(offset=True, size=(1,))),
    ("offset of 0.0", b.tensor(offset=b"G" + bytes(8))),
    ("offset of None", b.tensor(offset=b"N")),
    ("size past the end", b.tensor(size=(5,))),
    ("size of -1", b.tensor(size=(-1,))),
    ("sizes of -1 and -4", b.tensor(size=(-1, -4), stride=(1, 1))),
    ("size of 2**63", b.tensor(size=(1 << 63,))),
    ("size of True", b.tensor(size=b.tuple_of(True))),
    ("size of text", b.tensor(size=b.tuple_of("4"))),
    ("size that is a number", b.tensor(size=b.integer(4))),
    ("size that is a dict", b.tensor(size=b"}")),
    ("size and stride of two lengths", b.tensor(size=(2, 2))),
    ("stride past the end", b.tensor(stride=(2,))),
    ("stride of -1", b.tensor(stride=(-1,))),
    ("stride of 2**62", b.tensor(stride=(1 << 62,))),
    ("stride of True", b.tensor(stride=b.tuple_of(True))),
    ("stride of None", b.tensor(stride=b.tuple_of(b"N"))),
    ("two strides that meet past the end", b.tensor(size=(2, 2), stride=(2, 2))),
    ("65 dimensions", b.tensor(size=(1,) * 65, stride=(1,) * 65)),
    ("a giant past 2**63 bytes", b.tensor(size=(1 << 61,), stride=(0,))),
    ("a giant of many dimensions", b.tensor(size=(1 << 20,) * 4, stride=(0,) * 4)),
    ("an empty giant", b.tensor(size=(0, 1 << 63), stride=(1, 1))),
    ("an empty giant of two", b.tensor(size=(0, 1 << 40, 1 << 40), stride=(1, 1, 1))),
    ("requires_grad of 1", b.tensor(requires_grad=1)),
    ("requires_grad of None", b.tensor(requires_grad=b"N")),
    ("hooks", b.tensor(hooks=b.dict_of({"a": b"N"})), UnsupportedError),
    ("hooks that are a tensor", b.tensor(hooks=b.tensor()), UnsupportedError),
    ("metadata of another name", b.tensor(extra={"x": True}), UnsupportedError),
    ("metadata that is no bool", b.tensor(extra={"neg": b"N"}), UnsupportedError),
    ("metadata that is a list", b.tensor(extra=[True])),
    ("metadata that is a tensor", b.tensor(extra=b.tensor())),
    ("conj of a float", b.tensor(extra={"conj": True})),
    ("a tensor on a number", b.tensor(b.integer(0))),
    ("a tensor on a tensor", b.tensor(b.tensor())),
    ("a tensor on a class", b.tensor(b.name("torch", "FloatStorage"))),
    ("a tensor with eight arguments", b.tensor(extra=b"NN"), PickleError),
    ("a tensor of nothing", b.call("torch._utils._rebuild_tensor_v2"), PickleError),
    ("a v3 tensor of no dtype", v3(b"N")),
    ("a v3 tensor of a dtype as text", v3(b.text("float32"))),
    ("a v3 tensor of int4", v3(b.name("torch", "int4"))),
    ("a v3 tensor past the end", v3(DTYPE, size=(9,))),
    ("a v3 tensor with an odd end", v3(DTYPE, offset=8, size=(1,))),
    ("a parameter of five", b.call(PARAMETER, b.tensor(), True, b.HOOKS, b"NN"), PickleError),
    ("a parameter with hooks", b.call(PARAMETER, b.tensor(), True, [b"N"]), UnsupportedError),
    ("a parameter that requires 1", b.call(PARAMETER, b.tensor(), 1, b.HOOKS)),
    ("a subclass of three", b.call(FROM_TYPE, b"NNN"), PickleError),
    ("a subclass of no class", b.call(FROM_TYPE, b.name("a", "b"), b"N)N"), PickleError),
]  # fmt: skip

ROWS = attacks([*_PICKLES, *_MORE], TensorError, zipped)
