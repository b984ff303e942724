"""Calls that are allowed, with arguments that are absurd."""

from __future__ import annotations

import struct

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import DTYPE, FROM_TYPE, PARAMETER, SYSTEM, byte_array, v3, zipped
from torchzip.errors import PickleError, TensorError, UnsupportedError

_NAN, _INFINITY = float("nan"), float("inf")


def _python(name: str, *arguments: b.Value) -> bytes:
    return b.call(f"__builtin__.{name}", *arguments)


def _collections(name: str, *arguments: b.Value) -> bytes:
    return b.call(f"collections.{name}", *arguments)


def _utils(name: str, *arguments: b.Value) -> bytes:
    return b.call(f"torch._utils.{name}", *arguments)


def _bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def _long(*values: int) -> bytes:
    """Return a tensor of int64 in a storage of its own, which `_STORAGES` has."""
    return _longs(values, (len(values),), (1,))


def _longs(values: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    key = "i" + "_".join(map(str, values)).replace("-", "m")
    _STORAGES[key] = struct.pack(f"<{len(values)}q", *values)
    stored = b.persistent(key, numel=len(values), kind="LongStorage")
    return b.tensor(stored, size=size, stride=stride)


def _row(*values: int) -> bytes:
    return _longs(values, (1, len(values)), (len(values), 1))


#: The storages of all pickles here.
_STORAGES: dict[str, bytes] = {"0": b.DATA, "q": bytes([1, 2, 3, 4])}


def _layout(name: str) -> bytes:
    return b.call("torch.serialization._get_layout", f"torch.{name}")


def _sparse(layout: str, *parts: b.Value) -> bytes:
    return _utils("_rebuild_sparse_tensor", _layout(layout), parts)


def _csr(*parts: b.Value) -> bytes:
    return _sparse("sparse_csr", *parts)


def _bsr(*parts: b.Value) -> bytes:
    return _sparse("sparse_bsr", *parts)


def _coo(indices: b.Value, values: b.Value, size: b.Value, *more: b.Value) -> bytes:
    return _sparse("sparse_coo", indices, values, size, *more)


def _values(count: int) -> bytes:
    return b.tensor(size=(count,))


_QUINT8 = b.persistent("q", kind="QUInt8Storage")
_AFFINE = b.name("torch", "per_tensor_affine")
_CHANNELS = b.name("torch", "per_channel_affine")


def _quantized(scheme: b.Value, storage: bytes = _QUINT8, size: tuple[int, ...] = (4,)) -> bytes:
    return _utils("_rebuild_qtensor", storage, 0, size, (1,), scheme, False, b.HOOKS)


def _per_channel(*scheme: b.Value) -> bytes:
    return _quantized((_CHANNELS, *scheme))


def _nested(sizes: b.Value, strides: b.Value, offsets: b.Value) -> bytes:
    return _utils("_rebuild_nested_tensor", b.tensor(), sizes, strides, offsets)


def _jagged(**parts: b.Value) -> bytes:
    """Return a jagged tensor of four floats, if ``parts`` are the others that it needs."""
    values = {"values": b.tensor(), **parts}
    return b.call("torch.nested._internal.nested_tensor._rebuild_njt", values)


def _meta(dtype: b.Value, size: b.Value, stride: b.Value, requires_grad: b.Value = False) -> bytes:
    return _utils("_rebuild_meta_tensor_no_storage", dtype, size, stride, requires_grad)


def _dtype(
    spelled: str, *, fields: bytes = b"NN", itemsize: int = -1, flags: int = 0, base: bytes = b"N",
    order: str = "<", more: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a dtype of numpy and its state: version, order, base, names, fields, sizes, flags."""
    made = b.call("numpy.dtype", spelled, False, True)
    return made + b.tuple_of(3, order, base, fields, itemsize, -1, flags, more) + b"b"


def _field(dtype: bytes, at: int, itemsize: int) -> bytes:
    fields = b.tuple_of("a") + b"}" + b.text("a") + b.tuple_of(dtype, at) + b"s"
    return _dtype(f"V{itemsize}", fields=fields, itemsize=itemsize)


def _content(data: b.Value) -> b.Value:
    return _bytes(data) if isinstance(data, bytes) else data


def _array(
    dtype: b.Value, shape: b.Value, data: b.Value, *, kind: bytes = b.name("numpy", "ndarray")
) -> bytes:
    made = b.call("numpy.core.multiarray._reconstruct", kind, (0,), "b")
    return made + b.tuple_of(1, shape, dtype, False, _content(data)) + b"b"


def _scalar(dtype: b.Value, data: b.Value) -> bytes:
    return b.call("numpy.core.multiarray.scalar", dtype, _content(data))


def _record(inner: bytes, count: int, itemsize: int = 4) -> bytes:
    """Return a dtype of many fields that all are one dtype at one place."""
    names = b"(" + b"".join(b.text(f"f{i}") for i in range(count)) + b"t"
    rows = b.tuple_of(b"h\xff", 0)
    fields = b"}(" + b"".join(b.text(f"f{i}") + rows for i in range(count)) + b"u"
    made = _dtype(f"V{itemsize}", fields=names + fields, itemsize=itemsize, order="|")
    return inner + b"q\xff0" + made


def _records(depth: int, count: int) -> bytes:
    made = _dtype("f4")
    for _ in range(depth):
        made = _record(made, count)
    return made


_VALUES: list[Row] = [
    # bytes and numbers of Python
    ("bytes of text and a codec", _python("bytes", "x", "latin1")),
    ("bytes of a list of numbers", _python("bytes", [b"K\1"])),
    ("bytearray of -1", byte_array(-1)),
    ("bytearray of a list of 2**40", byte_array([1 << 40])),
    ("bytearray of text by another codec", _python("bytearray", "x", "rot13")),
    ("bytearray of a range", byte_array(_python("xrange", 1 << 40))),
    ("bytearray of a name", byte_array(SYSTEM)),
    *[(f"encode by {codec}", b.call("_codecs.encode", "x", codec))
     for codec in ("bz2", "zlib", "hex", "rot13", "idna", "punycode",
     "utf-16", "mbcs", "unicode_escape", "undefined", "LATIN1", "latin1\0", "../latin1", "")],
    ("encode with a way to handle errors", b.call("_codecs.encode", "\u0101", "latin1", "ignore")),
    ("encode of bytes", b.call("_codecs.encode", _bytes(b"x"), "latin1")),
    ("encode of a lone surrogate", b.call("_codecs.encode", "\udc80", "latin1")),
    ("complex of nan and infinity", _python("complex", _NAN, _INFINITY), None),
    ("complex of bools", _python("complex", True, False)),
    ("complex of one", _python("complex", 1)),
    ("range of 2**2000", _python("xrange", 1 << 2000), None),
    ("range of a bool", _python("xrange", True)),
    ("range of floats", _python("xrange", _NAN)),
    ("range of four", _python("xrange", *[1] * 4)),
    ("slice of tensors", _python("slice", b.tensor(), b.tensor(), b.tensor()), None),
    ("slice of names", _python("slice", SYSTEM, SYSTEM, SYSTEM), None),
    # containers
    ("set of a dict", _python("set", {"a": b"N"})),
    ("set of text", _python("set", "abc")),
    ("set of a range of 2**40", _python("set", _python("xrange", 1 << 40))),
    ("set of a call", _python("set", b.call(SYSTEM))),
    ("set of two lists", _python("set", b"]", b"]")),
    ("frozenset of lists", _python("frozenset", [b"]"]), UnsupportedError),
    ("frozenset of frozensets of lists",
     _python("frozenset", [_python("frozenset", [b"]"])]), UnsupportedError),
    ("Counter of texts", _collections("Counter", {"a": "x"}), None),
    ("Counter of a name", _collections("Counter", SYSTEM)),
    ("Counter of text", _collections("Counter", "aab")),
    ("OrderedDict of a call", _collections("OrderedDict", b.call(SYSTEM))),
    ("OrderedDict of texts of two", _collections("OrderedDict", ["ab"])),
    ("OrderedDict with a list as a key",
     _collections("OrderedDict", [(b"]", b"N")]), UnsupportedError),
    ("OrderedDict of two lists", _collections("OrderedDict", b"]", b"]")),
    ("deque of -1", _collections("deque", b"]", -1)),
    ("deque of 2**63", _collections("deque", b"]", 1 << 63)),
    ("deque of 2**63-1", _collections("deque", b"]", (1 << 63) - 1), None),
    ("deque of a range of 2**40", _collections("deque", _python("xrange", 1 << 40))),
    ("deque of text", _collections("deque", "x")),
    ("deque of nothing that is filled", _collections("deque", b")", 0) + b"(NNNe", None),
    ("defaultdict of a number", _collections("defaultdict", 1), None),
    ("defaultdict of a dtype", _collections("defaultdict", DTYPE), None),
    ("defaultdict of a list and items",
     _collections("defaultdict", b.name("__builtin__", "list"), {"a": b"N"}), None),
    ("defaultdict of itself",
     _collections("defaultdict", b.name("collections", "defaultdict")), None),
    # times, numbers, paths
    ("datetime of month 99", b.call("datetime.datetime", _bytes(b"\x07\xe0\x63" + bytes(7)))),
    ("datetime of text past latin1", b.call("datetime.datetime", "\u0101" * 10)),
    ("datetime of numbers", b.call("datetime.datetime", 1, 1, 1)),
    ("datetime with a time zone that is a name",
     b.call("datetime.datetime", _bytes(b"\x07\xe0\1\1" + bytes(6)), SYSTEM), None),
    ("date of 5 bytes", b.call("datetime.date", _bytes(bytes(5)))),
    ("date of year 0", b.call("datetime.date", _bytes(b"\0\0\1\1"))),
    ("time of second 99", b.call("datetime.time", _bytes(b"\1\1\x63" + bytes(3)))),
    ("date of day 255", b.call("datetime.date", _bytes(b"\x07\xe0\1\xff"))),
    ("datetime of minute 99",
     b.call("datetime.datetime", _bytes(b"\x07\xe0\1\1\0\x63" + bytes(4)))),
    ("time of hour 99", b.call("datetime.time", _bytes(b"\x63" + bytes(5)))),
    ("timedelta of 2**2000", b.call("datetime.timedelta", 1 << 2000, 0, 0)),
    ("timedelta of nan", b.call("datetime.timedelta", _NAN, _NAN, _NAN)),
    ("timezone of a week", b.call("datetime.timezone", b.call("datetime.timedelta", 7, 0, 0))),
    ("timezone of a number", b.call("datetime.timezone", 1)),
    ("Decimal of 1,000,000 digits", b.call("decimal.Decimal", "1" * 1_000_000)),
    ("Decimal of a large power", b.call("decimal.Decimal", "1e999999999"), None),
    ("Decimal past its powers", b.call("decimal.Decimal", "1e" + "9" * 30)),
    ("Decimal of text", b.call("decimal.Decimal", "one")),
    ("Decimal of a tuple", b.call("decimal.Decimal", (0, 1, 2))),
    ("Decimal of a signalling nan as a key",
     b"}" + b.call("decimal.Decimal", "sNaN") + b"Ns", UnsupportedError),
    ("Decimal of a large power as a key",
     b"}" + b.call("decimal.Decimal", "1e999999999") + b"Ns", None),
    ("Fraction of 1/0", b.call("fractions.Fraction", "1/0")),
    ("Fraction of a large power", b.call("fractions.Fraction", "1e999999999")),
    ("Fraction of three numbers", b.call("fractions.Fraction", "1/2/3")),
    ("Fraction of floats", b.call("fractions.Fraction", _NAN, _NAN)),
    ("path of a device", b.call("pathlib.PosixPath", "/dev/zero"), None),
    ("path with a zero byte", b.call("pathlib.PurePosixPath", "a\0b"), None),
    ("path of 5,000 parts", b.call("pathlib.PosixPath", *["a"] * 5000)),
    ("path of numbers", b.call("pathlib.PosixPath", 1)),
    # leaf types of torch
    ("Size of -1", b.call("torch.Size", (-1,)), None),
    ("Size of 2**2000", b.call("torch.Size", (1 << 2000,)), None),
    ("Size of bools", b.call("torch.Size", (True,))),
    ("Size of a Size of nothing", b.call("torch.Size", b.call("torch.Size", b")"))),
    ("device of an empty text", b.call("torch.device", ""), None),
    ("device of index -2**70", b.call("torch.device", "cuda", -(1 << 70))),
    ("device of a bool", b.call("torch.device", "cuda", True)),
    ("layout of a method",
     b.call("torch.serialization._get_layout", "torch.__class__.__base__"), None),
    ("layout of bytes", b.call("torch.serialization._get_layout", _bytes(b"torch.strided"))),
    ("dtype that is called with itself", DTYPE + b"q\0h\0\x85R"),
    ("dtype by getattr", _python("getattr", DTYPE, "__class__"), None),
    ("scheme that is called", _AFFINE + b")R"),
    # rebuild functions as trampolines
    ("a subclass by a subclass", b.call(FROM_TYPE,
     FROM_TYPE, b.name("torch", "Tensor"), (SYSTEM, SYSTEM, b")", b"N"), b"N"), None),
    ("a subclass by set",
     b.call(FROM_TYPE, b.name("__builtin__", "set"), SYSTEM, b")", b"N"), None),
    ("a subclass by a parameter",
     b.call(FROM_TYPE, PARAMETER, SYSTEM, (b.tensor(), True, b.HOOKS), b"N"), None),
    ("a subclass of arguments in a list",
     b.call(FROM_TYPE, b.name("torch._utils", "_rebuild_tensor_v2"), SYSTEM, b"]", b"N"), None),
    ("a subclass of too few arguments", b.call(FROM_TYPE,
     b.name("torch._utils", "_rebuild_tensor_v2"), SYSTEM, b")", b"N")),
    ("a subclass by a text", b.call(FROM_TYPE, "os.system", SYSTEM, b")", b"N")),
    ("a parameter of None", b.call(PARAMETER, b"N", True, b.HOOKS), TensorError),
    ("a parameter of a name", b.call(PARAMETER, SYSTEM, True, b.HOOKS), TensorError),
    ("a parameter of a list in itself",
     b"]q\0" + b.call(PARAMETER, b"h\0", True, b.HOOKS) + b"a", TensorError),
    ("a wrapper of anything", _utils("_rebuild_wrapper_subclass", SYSTEM, b"NNNNNNN"), None),
    ("a wrapper of nothing", _utils("_rebuild_wrapper_subclass"), None),
    ("a device tensor of a name",
     _utils("_rebuild_device_tensor_from_numpy", SYSTEM, b"NNN"), TensorError),
    ("a device tensor of a giant", _utils("_rebuild_device_tensor_from_cpu_tensor",
     b.tensor(size=(1 << 40,), stride=(0,)), b"NNN"), TensorError),
]  # fmt: skip

_TENSORS: list[Row] = [
    # tensors without a storage
    ("a meta tensor of a giant", _meta(DTYPE, (1 << 62,), (1,)), None),
    ("a meta tensor of two giants", _meta(DTYPE, (1 << 40, 1 << 40), (1, 1))),
    ("a meta tensor of -1", _meta(DTYPE, (-1,), (1,))),
    ("a meta tensor of a negative stride", _meta(DTYPE, (4,), (-1,))),
    ("a meta tensor of other strides", _meta(DTYPE, (4,), (1, 1))),
    ("a meta tensor of 65 dimensions", _meta(DTYPE, (*[1] * 65,), (*[1] * 65,))),
    ("a meta tensor of a dtype as text", _meta("float32", (4,), (1,))),
    ("a meta tensor that requires 1", _meta(DTYPE, (4,), (1,), 1)),
    ("a meta tensor of a name as its size", _meta(DTYPE, SYSTEM, (1,))),
    ("a meta tensor of three",
     _utils("_rebuild_meta_tensor_no_storage", DTYPE, b")", b")"), PickleError),
    # sparse tensors
    ("a COO index past the shape", _coo(_row(0, 4), _values(2), (4,))),
    ("a COO index of -1", _coo(_row(0, -1), _values(2), (4,))),
    ("a COO index of 2**63-1", _coo(_row(0, (1 << 63) - 1), _values(2), (4,))),
    ("a COO index in no column", _coo(_row(0, 0), _values(2), (0,))),
    ("COO indices of floats", _coo(b.tensor(size=(1, 4), stride=(4, 1)), _values(4), (4,))),
    ("COO indices of one dimension", _coo(_long(0, 1), _values(2), (4,))),
    ("COO indices of more dimensions than the shape",
     _coo(_longs((0, 0, 0, 0), (2, 2), (2, 1)), _values(2), (4,))),
    ("COO indices of fewer values", _coo(_row(0, 1), _values(3), (4,))),
    ("COO indices of a giant over one",
     _coo(_longs((0,), (1, 1 << 40), (0, 0)), b.tensor(size=(1 << 40,), stride=(0,)), (4,)), None),
    ("COO of a shape past 2**63", _coo(_row(0), _values(1), (1 << 63,))),
    ("COO of a giant shape", _coo(_row(0), _values(1), ((1 << 63) - 1,)), None),
    ("COO of a shape of 2**120",
     _coo(_longs((0, 0), (2, 1), (1, 1)), _values(1), (1 << 60, 1 << 60)), None),
    ("COO that is coalesced by a name", _coo(_row(0), _values(1), (4,), SYSTEM)),
    ("COO of lists", _coo([b"K\0"], [b"K\0"], (4,))),
    ("COO of two things", _coo(_long(0), _values(1), b""), PickleError),
    ("COO of a pair of indices", _coo((_long(0), _long(0)), _values(1), (4,))),
    ("sparse of an unknown layout", _sparse("sparse_os", _long(0), _long(0), _values(1), (1,))),
    ("sparse of a strided layout", _sparse("strided", _long(0), _long(0), _values(1), (1,))),
    ("sparse of a layout as text",
     _utils("_rebuild_sparse_tensor", "torch.sparse_coo", b")"), PickleError),
    ("sparse by the number of an unknown layout",
     _utils("_rebuild_sparse_tensor", 99, *[b"N"] * 5), PickleError),
    ("CSR rows that go back", _csr(_long(0, 2, 1, 2), _long(0, 1), _values(2), (3, 3))),
    ("CSR rows that begin at 1", _csr(_long(1, 2), _long(0, 1), _values(2), (1, 3))),
    ("CSR rows that end past the values", _csr(_long(0, 9), _long(0, 1), _values(2), (1, 3))),
    ("CSR rows of -2**63", _csr(_long(-(1 << 63), 2), _long(0, 1), _values(2), (1, 3))),
    ("CSR rows of another number", _csr(_long(0, 1, 2), _long(0, 1), _values(2), (5, 3))),
    ("a CSR column past the shape", _csr(_long(0, 2), _long(0, 3), _values(2), (1, 3))),
    ("a CSR column of -1", _csr(_long(0, 2), _long(-1, 0), _values(2), (1, 3))),
    ("a CSC row past the shape",
     _sparse("sparse_csc", _long(0, 2), _long(0, 3), _values(2), (3, 1))),
    ("CSR columns of fewer values", _csr(_long(0, 2), _long(0, 1), _values(3), (1, 3))),
    ("CSR indices of floats", _csr(_values(2), _values(2), _values(2), (1, 3))),
    ("CSR of three dimensions without a batch",
     _csr(_long(0, 2), _long(0, 1), _values(2), (1, 3, 3))),
    ("BSR of blocks of nothing", _bsr(_long(0, 2),
     _long(0, 1), b.tensor(size=(2, 0, 0), stride=(1, 1, 1)), (2, 2))),
    ("BSR of blocks that do not fit",
     _bsr(_long(0, 1), _long(0), b.tensor(size=(1, 2, 2), stride=(4, 2, 1)), (3, 3))),
    ("a BSR column past the blocks",
     _bsr(_long(0, 1), _long(1), b.tensor(size=(1, 2, 2), stride=(4, 2, 1)), (2, 2))),
    # quantized tensors
    ("a scale of nan", _quantized((_AFFINE, _NAN, 0)), None),
    ("a scale of infinity", _quantized((_AFFINE, _INFINITY, 0)), None),
    ("a scale of 2**2000", _quantized((_AFFINE, 1 << 2000, 0))),
    ("a scale of a bool", _quantized((_AFFINE, True, 0))),
    ("a scale of a tensor", _quantized((_AFFINE, b.tensor(), 0))),
    ("a zero point of 2**70", _quantized((_AFFINE, 0.5, 1 << 70))),
    ("a zero point of a float", _quantized((_AFFINE, 0.5, 0.5))),
    ("a scheme of two", _quantized((_AFFINE, 0.5))),
    ("a scheme that is a name", _quantized((SYSTEM, 0.5, 0)), PickleError),
    ("a scheme that is empty", _quantized(b")"), PickleError),
    ("an axis past the dimensions", _per_channel(b.tensor(), _long(0, 0, 0, 0), 1)),
    ("an axis of -1", _per_channel(b.tensor(), _long(0, 0, 0, 0), -1)),
    ("an axis of True", _per_channel(b.tensor(), _long(0, 0, 0, 0), True)),
    ("scales for fewer channels", _per_channel(_values(3), _long(0, 0, 0, 0), 0)),
    ("zero points for more channels", _per_channel(b.tensor(), _long(0, 0, 0, 0, 0), 0)),
    ("scales that are whole numbers", _per_channel(_long(1, 1, 1, 1), _long(0, 0, 0, 0), 0)),
    ("scales in a list of texts", _per_channel([*["x"] * 4], [*[b"K\0"] * 4], 0)),
    ("scales in a short list", _per_channel(b"]", b"]", 0)),
    ("a quantized tensor of floats", _quantized((_AFFINE, 0.5, 0), b.persistent())),
    ("a quantized tensor past the storage", _quantized((_AFFINE, 0.5, 0), size=(5,))),
    ("a packed tensor past the storage", _quantized((_AFFINE, 0.5, 0),
     b.persistent("q", kind="QUInt4x2Storage"), size=(9,))),
    # nested tensors
    ("a nested offset past the buffer", _nested(_row(4), _row(1), _long(1))),
    ("a nested offset of -1", _nested(_row(1), _row(1), _long(-1))),
    ("a nested size of 2**62", _nested(_row(1 << 62), _row(4), _long(0))),
    ("a nested stride of -1", _nested(_row(4), _row(-1), _long(3))),
    ("nested sizes of floats", _nested(b.tensor(), b.tensor(), _long(0))),
    ("nested sizes of None", _nested(b"N", b"N", _long(0))),
    ("a nested tensor of three", _utils("_rebuild_nested_tensor", b"NNN"), PickleError),
    ("jagged offsets past the values", _jagged(offsets=_long(0, 5))),
    ("jagged offsets that go back", _jagged(offsets=_long(0, 3, 1))),
    ("a jagged offset of -1", _jagged(offsets=_long(-1, 2))),
    ("jagged lengths past the values", _jagged(offsets=_long(0, 2, 4), lengths=_long(1, 9))),
    ("jagged lengths of -1", _jagged(offsets=_long(0, 2, 4), lengths=_long(1, -1))),
    ("jagged lengths of another number", _jagged(offsets=_long(0, 2, 4), lengths=_long(1))),
    ("a jagged axis of 0", _jagged(offsets=_long(0, 4), _ragged_idx=0)),
    ("a jagged axis of 2**62", _jagged(offsets=_long(0, 4), _ragged_idx=1 << 62)),
    ("jagged without offsets", _jagged(), PickleError),
    ("jagged offsets of floats", _jagged(offsets=b.tensor())),
]  # fmt: skip

_NUMPY: list[Row] = [
    ("an array of texts past the last character", _array(_dtype("U1"), (1,), b"\0\0\x11\0")),
    ("a scalar text past the last character", _scalar(_dtype("U1"), b"\xff\xff\xff\x7f")),
    ("an array of a flag that is an array",
     b.call("numpy.core.multiarray._reconstruct", b.name("numpy", "ndarray"), (0,), "b")
     + b.tuple_of(1, (1,), _dtype("u1"), b.tensor(), _bytes(b"x")) + b"b", None),
    ("a dtype whose order is a tensor", b.call("numpy.dtype", "f4", False, True)
     + b.tuple_of(3, b.tensor(), b"NNN", -1, -1, 0) + b"b", None),
    ("a sparse tensor that is coalesced by a tensor",
     _utils("_rebuild_sparse_tensor", b.call("torch.serialization._get_layout", "torch.sparse_coo"),
     (b.tensor(), b.tensor(), (4,), b.tensor())), TensorError),
    ("a defaultdict of a tensor", b.call("collections.defaultdict", b.tensor()), None),
    ("an array of objects", _array(_dtype("O8", order="|"), (1,), [SYSTEM]), None),
    ("an array of objects as bytes", _array(_dtype("O8", order="|"), (1,), bytes(8)), None),
    ("an array of objects that hides", _array(_field(_dtype("O8"), 0, 8), (1,), bytes(8)), None),
    ("an array whose flag says objects", _array(_dtype("f4", flags=63), (1,), bytes(4)), None),
    ("an array of fewer bytes", _array(_dtype("f4"), (2,), bytes(4))),
    ("an array of a giant", _array(_dtype("f4"), (1 << 40,), bytes(4))),
    ("an array of a giant of nothing", _array(_dtype("f4"), (0, 1 << 62, 1 << 62), b"")),
    ("an array of items of no bytes", _array(_dtype("V0"), (1 << 62,), b""), None),
    ("an array of -1", _array(_dtype("f4"), (-1,), bytes(4))),
    ("an array of 65 dimensions", _array(_dtype("f4"), (*[1] * 65,), bytes(4))),
    ("an array of a shape as a list", _array(_dtype("f4"), [b"K\1"], bytes(4))),
    ("an array of another class", _array(_dtype("f4"), (1,), bytes(4), kind=SYSTEM), None),
    ("an array of a dtype of text", _array("f4", (1,), bytes(4)), None),
    ("a numpy dtype of an expression", _dtype("f4,O"), None),
    ("a numpy dtype of many digits", _dtype("S" + "9" * 9), None),
    ("a numpy dtype of 3 bytes", _dtype("f3")),
    ("a numpy dtype in itself", b.call("numpy.dtype", "V8", False, True) + b"q\0" + b.tuple_of(3,
     "|", b"N", ("a",), b"}" + b.text("a") + b.tuple_of(b"h\0", 0) + b"s", 8, 1, 0) + b"b", None),
    ("a field past the end of its record", _field(_dtype("f8"), 0, 4)),
    ("a field at -1", _field(_dtype("f4"), -1, 4), None),
    ("a field that is not there", _dtype("V4", fields=b.tuple_of("a") + b"}", itemsize=4), None),
    ("records in records, 900 wide", _records(4, 900), None),
    ("an array of records in records", _array(_records(3, 900), (9,), bytes(4)), None),
    ("a subarray of a giant", _dtype("V4", base=b.tuple_of(_dtype("f4"), (1 << 40,))), None),
    ("a subarray of -1", _dtype("V4", base=b.tuple_of(_dtype("f4"), (-1,))), None),
    ("times of an unknown unit",
     _dtype("M8", more=b.tuple_of(b"}", (_bytes(b"os"), 1, 1, 1))), None),
    ("a scalar of fewer bytes", _scalar(_dtype("f8"), bytes(4))),
    ("a scalar of objects", _scalar(_dtype("O8"), bytes(8)), None),
    ("a scalar of a dtype as text", _scalar("f8", bytes(8)), None),
    ("a scalar of text past latin1", _scalar(_dtype("f8"), "\u0101" * 8), None),
    ("an array from a buffer of fewer bytes", b.call("numpy.core.numeric._frombuffer",
     _bytes(bytes(4)), _dtype("f8"), (1,), "C")),
    ("an array from a buffer of objects",
     b.call("numpy.core.numeric._frombuffer", _bytes(bytes(8)), _dtype("O8"), (1,), "C"), None),
    ("a generator of numpy", b.call("numpy.random._pickle.__randomstate_ctor", "MT19937"), None),
    ("bits of numpy by a name", b.call("numpy.random._pickle.__bit_generator_ctor", SYSTEM), None),
    ("a v3 tensor with a scheme for its dtype", v3(_AFFINE), TensorError),
]  # fmt: skip

_PICKLES: list[Row] = [
    ("Size of text", b.call("torch.Size", ("1",))),
    ("Size of a number", b.call("torch.Size", 1)),
    ("device of a number", b.call("torch.device", 1)),
    ("device of text twice", b.call("torch.device", "a", "b")),
    ("layout without torch", b.call("torch.serialization._get_layout", "os.x")),
    ("encode by another codec", b.call("_codecs.encode", "x", "zip")),
    ("encode past latin1", b.call("_codecs.encode", "ā", "latin1")),
    ("encode by a tensor", b.call("_codecs.encode", "x", b.tensor())),
    ("bytes of 2**40", b.call("builtins.bytes", 1 << 40)),
    ("bytearray of 2**40", byte_array(1 << 40)),
    ("bytearray of text", byte_array("x")),
    ("complex of text", b.call("builtins.complex", "1", "2")),
    ("complex of 2**2000", b.call("builtins.complex", 1 << 2000, False)),
    ("complex past the floats", b.call("builtins.complex", 1 << 2000, 0)),
    ("range of step 0", b.name("__builtin__", "xrange") + b.ints(0, 1, 0) + b"R"),
    ("range of text", b.call("__builtin__.xrange", "1")),
    ("slice of one", b.call("builtins.slice", 1)),
    ("set of lists", b.call("builtins.set", [b"]", b"]"]), UnsupportedError),
    ("set of a number", b.call("builtins.set", 1)),
    ("set of tensors", b.call("builtins.set", [b.tensor(), b"]"]), UnsupportedError),
    ("OrderedDict of a dict", b.call("collections.OrderedDict", b"}")),
    ("OrderedDict of triples", b.call("collections.OrderedDict", [(1, 2, 3)])),
    ("Counter of a list", b.call("collections.Counter", b"]")),
    ("BUILD of a tensor", b.tensor() + b"}b", UnsupportedError),
    ("BUILD of a class attribute", b.HOOKS + b.dict_of({"__class__": b"N"}) + b"b"),
    ("a key into a tensor", b.tensor() + b.text("a") + b"Ns"),
    ("an item to a tensor", b.tensor() + b"Na"),
    ("a call of a tensor", b.tensor() + b")R"),
    ("a call of a storage", b.persistent() + b")R"),
    ("a call of a dtype", DTYPE + b")R"),
]  # fmt: skip


def _with_storages(pickle: bytes) -> bytes:
    return b.checkpoint(b.stream(pickle), _STORAGES)


ROWS = attacks(_PICKLES, PickleError, zipped)
ROWS += attacks([*_VALUES, *_NUMPY], PickleError, _with_storages)
ROWS += attacks(_TENSORS, TensorError, _with_storages)
