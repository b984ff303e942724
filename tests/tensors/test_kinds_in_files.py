"""Other kinds of tensors in files made by hand: what is read, and what is refused."""

from __future__ import annotations

import io
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.systems import needs
from tests.tensors.test_kinds import numbers, roundtrip
from tests.tensors.test_python_values import AsPickled
from tests.test_cost import peak_below
from torchzip.errors import PickleError, TensorError
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import contiguous_stride
from torchzip.types import Dtype, ForeignObject

_RECORDS = {
    "0": struct.pack("<4f", 1, 2, 3, 4),
    "1": struct.pack("<6q", 0, 1, 2, 0, 1, 2),
    "2": bytes([1, 2, 3, 4]),
    "3": struct.pack("<4d", 0.5, 0.25, 2, 4),
}


def _utils(function: str, *arguments: b.Value) -> bytes:
    return b.call(f"torch._utils.{function}", *arguments)


def _floats(*size: int) -> bytes:
    return b.tensor(size=size, stride=contiguous_stride(size))


def _longs(count: int = 6) -> bytes:
    """Return the storage of int64, of so many if it is another one."""
    return b.persistent("1", numel=count, kind="LongStorage")


def _ints(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    return b.tensor(_longs(), size=size, stride=stride, offset=offset)


def _doubles(count: int) -> bytes:
    return b.tensor(b.persistent("3", numel=4, kind="DoubleStorage"), size=(count,))


def _layout(name: str) -> bytes:
    return b.call("torch.serialization._get_layout", f"torch.{name}")


def _size(*sizes: int) -> bytes:
    return b.call("torch.Size", sizes)


_SIZE = _size(3, 3)


def _sparse(layout: str, *data: b.Value) -> bytes:
    return _utils("_rebuild_sparse_tensor", _layout(layout), data)


def _coo(
    indices: bytes = _ints((2, 3), (3, 1)),
    values: bytes = _floats(3),
    size: b.Value = _SIZE,
    *more: b.Value,
) -> bytes:
    return _sparse("sparse_coo", indices, values, size, *more)


def _csr(rows: bytes, columns: bytes, values: bytes, size: bytes) -> bytes:
    return _sparse("sparse_csr", rows, columns, values, size)


_AFFINE = b.name("torch", "per_tensor_affine")


def _quantized(
    storage: bytes = b.persistent("2", kind="QUInt8Storage"),
    size: b.Value = (2, 2),
    stride: b.Value = (2, 1),
    *,
    params: b.Value = (_AFFINE, 0.5, 1),
    offset: int = 0,
    grad: b.Value = False,
    hooks: bytes = b.HOOKS,
) -> bytes:
    return _utils("_rebuild_qtensor", storage, offset, size, stride, params, grad, hooks)


_PACKED = b.persistent("2", kind="QUInt4x2Storage")


def _per_tensor(scale: b.Value = 0.5, zero_point: b.Value = 1) -> bytes:
    return _quantized(params=(_AFFINE, scale, zero_point))


def _per_channel(scales: b.Value, zero_points: b.Value, axis: b.Value = 0, kind: str = "") -> bytes:
    scheme = b.name("torch", f"per_channel_affine{kind}")
    return _quantized(params=(scheme, scales, zero_points, axis))


def _nested(*parts: bytes) -> bytes:
    return _utils("_rebuild_nested_tensor", *parts)


def _windows(values: bytes) -> bytes:
    """Return a nested tensor of two windows of the values."""
    return _nested(values, _ints((2, 1), (0, 1), 2), _ints((2, 1), (0, 1), 1), _ints((2,), (1,), 1))


def _jagged(**given: b.Value) -> bytes:
    module = "torch.nested._internal.nested_tensor"
    rebuild, kind = b.name(module, "_rebuild_njt"), b.name(module, "NestedTensor")
    return b.call(
        "torch._tensor._rebuild_from_type_v2", rebuild, kind, (given,), {"_ragged_idx": 1}
    )


_F32 = b.name("torch", "float32")


def _meta(
    size: b.Value = (2,), stride: b.Value = (1,), grad: b.Value = False, dtype: b.Value = _F32
) -> bytes:
    return _utils("_rebuild_meta_tensor_no_storage", dtype, size, stride, grad)


def file_of(value: bytes) -> bytes:
    """Return a checkpoint of a value, with the storages that are used here."""
    return b.checkpoint(b.stream(value), _RECORDS)


_ROWS, _COLUMNS = _ints((3,), (1,)), _ints((2,), (1,))
_COO_PARTS = (_ints((2, 3), (3, 1)), _floats(3), _size(3, 3))
_DIAGONAL = [[1, 0, 0], [0, 2, 0], [0, 0, 3]]
_FROM_SCRIPT = ((3, 3), False, _ints((2, 3), (3, 1)), _floats(3), b.HOOKS)
SOUND: dict[str, tuple[bytes, Any]] = {
    "coo of four parts": (_coo(*_COO_PARTS, True), _DIAGONAL),
    "coo of three parts": (_coo(), _DIAGONAL),
    "coo of TorchScript": (_utils("_rebuild_sparse_tensor", 1, *_FROM_SCRIPT), _DIAGONAL),
    "csr of TorchScript": (
        _utils(
            "_rebuild_sparse_csr_tensor", 2, (2, 3), False, _ROWS, _COLUMNS, _floats(2), b.HOOKS
        ),
        _DIAGONAL[:2],
    ),
    "csr": (_csr(_ROWS, _COLUMNS, _floats(2), _size(2, 3)), _DIAGONAL[:2]),
    "per tensor": (_quantized(), [[0, 0.5], [1, 1.5]]),
    "per tensor with a whole scale": (_per_tensor(2), [[0, 2], [4, 6]]),
    "per channel": (_per_channel(_doubles(2), _COLUMNS), [[0.5, 1], [0.5, 0.75]]),
    "per channel of lists": (_per_channel([0.5, 2], [0, 1], 1), [[0.5, 2], [1.5, 6]]),
    "nested": (_windows(_floats(4)), [[2, 3], [3, 4]]),
    "jagged": (_jagged(values=_floats(2, 2), offsets=_ROWS), [[[1, 2]], [[3, 4]]]),
    "meta": (_meta(), None),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_files_by_hand(name: str) -> None:
    """Each form that a file may have is read, lazily and at once, and can be written again."""
    value, told = SOUND[name]
    assert numbers(tz.load(io.BytesIO(file_of(value)))) == told
    with tz.lazy_load(io.BytesIO(file_of(value))) as ckpt:
        assert numbers(ckpt.root) == told
        assert numbers(roundtrip(ckpt.root)) == told


_TENSOR_ERRORS = {
    "an unknown layout": _sparse("sparse_x", _floats(3), _floats(3), _floats(3), _size(3)),
    "a strided layout": _sparse("strided", _floats(3), _floats(3), _floats(3), _size(3)),
    "indices that are none": _coo(b"N"),
    "indices that are sparse": _coo(_coo()),
    "indices of floats": _coo(_floats(2, 2)),
    "values that are quantized": _coo(values=_quantized()),
    "values of another length": _coo(values=_floats(4)),
    "a size that is none": _coo(size=b"N"),
    "a size of texts": _coo(size=("3", "3")),
    "a size below 0": _coo(size=(3, -3)),
    "a size past 64 bits": _coo(size=(3, 1 << 70)),
    "a size of 65 dimensions": _coo(size=(3,) * 65),
    "coalesced by a text": _coo(*_COO_PARTS, "x"),
    "coalesced by a list": _coo(*_COO_PARTS, b"]"),
    "an index outside": _coo(size=_size(2, 3)),
    "a compressed index outside": _csr(_ROWS, _ints((2,), (1,), 1), _floats(2), _size(2, 2)),
    "rows that go backwards": _csr(_ints((6,), (1,)), _COLUMNS, _floats(2), _size(5, 3)),
    "a quantized tensor on floats": _quantized(b.persistent()),
    "a quantized tensor on none": _quantized(b"N"),
    "a quantized tensor on a tensor": _quantized(b.tensor()),
    "a quantized tensor outside": _quantized(size=(2, 3)),
    "a quantized tensor with a gradient of 2": _quantized(grad=2),
    "another scheme": _quantized(params=(b.name("torch", "per_tensor_symmetric"), 0.5, b"N")),
    "a scale of text": _per_tensor("1"),
    "a scale past the floats": _per_tensor(10**400),
    "a zero point of a float": _per_tensor(0.5, 0.5),
    "a zero point past 64 bits": _per_tensor(0.5, 1 << 70),
    "an axis outside": _per_channel(_doubles(2), _COLUMNS, 2),
    "an axis below 0": _per_channel(_doubles(2), _COLUMNS, -1),
    "an axis of many digits": _per_channel(_doubles(2), _COLUMNS, 10**600),
    "an axis that is none": _per_channel(_doubles(2), _COLUMNS, b"N"),
    "three scales": _per_channel(_doubles(3), _COLUMNS),
    "scales that are no tensor": _per_channel(0.5, _COLUMNS),
    "a list and a tensor": _per_channel([0.5, 0.5], _COLUMNS),
    "lists of texts": _per_channel(["x", 0.5], [0, 0]),
    "lists of huge numbers": _per_channel([0.5, 0.5], [0, 1 << 80]),
    "packed past its storage": _quantized(_PACKED, (3, 3), (3, 1)),
    "packed and not contiguous": _quantized(_PACKED, (2, 2), (1, 2)),
    "packed behind its storage": _quantized(_PACKED, offset=4),
    "nested of other parts": _nested(_floats(4), b"N", b"N", b"N"),
    "nested outside": _windows(_floats(2)),
    "jagged with other offsets": _jagged(values=_floats(2), offsets=b"N"),
    "jagged outside": _jagged(values=_floats(1, 2), offsets=_ROWS),
    "jagged on no axis": _jagged(values=_floats(2), offsets=_ROWS, _ragged_idx="1"),
    "a gradient that is none": _jagged(values=_floats(2), offsets=_ROWS, requires_grad=b"N"),
    "meta of no dtype": _meta(dtype="float32"),
    "meta of two strides": _meta(stride=(1, 1)),
    "meta of a huge size": _meta((1 << 40, 1 << 40), (1, 1)),
    "meta of a size past 64 bits": _meta((1 << 64,)),
    "meta of a bool size": _meta((True,)),
    "meta with a gradient of None": _meta(grad=b"N"),
}
_PICKLE_ERRORS = {
    "coo of two parts": _sparse("sparse_coo", _floats(3), _size(3)),
    "coo of no tuple": _utils("_rebuild_sparse_tensor", _layout("sparse_coo"), b"N"),
    "no layout": _utils("_rebuild_sparse_tensor", "torch.sparse_coo", (_floats(3),)),
    "an unknown layout number": _utils("_rebuild_sparse_tensor", 9, *_FROM_SCRIPT),
    "no parameters": _quantized(params=b"N"),
    "parameters of nothing": _quantized(params=b")"),
    "no scheme": _quantized(params=("x", 0.5, b"N")),
    "nested of three parts": _nested(_floats(4), b"N", b"N"),
    "jagged without offsets": _jagged(values=_floats(2)),
}
_UNSUPPORTED = {
    "a quantized tensor with hooks": _quantized(hooks=b.dict_of({"a": b"N"})),
    "lists of float parameters": _per_channel([0.5, 0.5], [0.5, 0.5], kind="_float_qparams"),
}
_BROKEN: dict[str, tuple[bytes, type[tz.TorchZipError]]] = {
    **{name: (value, TensorError) for name, value in _TENSOR_ERRORS.items()},
    **{name: (value, PickleError) for name, value in _PICKLE_ERRORS.items()},
    **{name: (value, tz.UnsupportedError) for name, value in _UNSUPPORTED.items()},
}


@pytest.mark.parametrize("name", _BROKEN)
def test_broken_files(name: str) -> None:
    """`load` raises the error of the row, a lazy checkpoint at the latest with the numbers."""
    value, error = _BROKEN[name]
    with pytest.raises(error) as caught:
        tz.load(io.BytesIO(file_of(value)))
    assert caught.value.path == "<BytesIO>"
    assert len(str(caught.value)) < 1000
    with pytest.raises(error), tz.lazy_load(io.BytesIO(file_of(value))) as ckpt:
        numbers(ckpt.root)


@pytest.mark.parametrize("name", _BROKEN)
def test_broken_files_at_every_entrance(name: str, tmp_path: Path) -> None:
    """`verify` says what `load` says, and nothing carries such a tensor on."""
    value, error = _BROKEN[name]
    data = file_of(value)
    with pytest.raises(error), tz.lazy_load(io.BytesIO(data)) as ckpt:
        ckpt.verify()
    with pytest.raises(error):
        tz.tools.verify(io.BytesIO(data))
    with pytest.raises(tz.TorchZipError):
        tz.convert(io.BytesIO(data), tmp_path / "out.pt")
    with pytest.raises((tz.TorchZipError, ValueError)), tz.lazy_load(io.BytesIO(data)) as ckpt:
        tz.save(ckpt.root, tmp_path / "out.pt")
    with (
        pytest.raises((tz.TorchZipError, ValueError)),
        tz.lazy_load(io.BytesIO(data)) as ckpt,
        tz.incremental_save(tmp_path / "out.pt") as writer,
    ):
        writer.save(writer.store_early(ckpt[""]))
    assert list(tmp_path.iterdir()) == []


def test_wrong_indices_are_lost_in_repair(tmp_path: Path) -> None:
    """`repair` gives up a tensor that `load` would refuse, and keeps the others."""
    path, out = tmp_path / "m.pt", tmp_path / "out.pt"
    path.write_bytes(file_of(b.dict_of({"s": _BROKEN["an index outside"][0], "w": _floats(2)})))
    report = tz.tools.repair(path, out)
    assert [lost.name for lost in report.lost] == ["s"]
    assert list(tz.load(out)) == ["w"]


@needs("sysconf")
def test_endless_axes() -> None:
    """Parts of 2**40 elements over a few bytes are checked at once, and made dense never."""
    many = 1 << 40
    nowhere = b.tensor(size=(many,), stride=(0,))
    rows, column = _ints((many,), (0,)), _ints((many, 1), (0, 0))
    for value in (
        _coo(_ints((2, many), (0, 0)), nowhere),
        _csr(rows, _ints((0,), (1,)), _floats(0), _size(many - 1, 3)),
        _jagged(values=nowhere, offsets=rows),
        _nested(nowhere, column, column, rows),
    ):
        made = tz.load(io.BytesIO(file_of(value)))
        with tz.lazy_load(io.BytesIO(file_of(value))) as ckpt:
            for tensor in (made, ckpt.root):
                assert tensor.shape
                with pytest.raises(OSError, match="does not fit"):
                    numbers(tensor)


def test_overlapping_indices() -> None:
    """Windows of indices that overlap are not gone through again and again."""
    records = {"0": bytes(8), "1": bytes(8 << 16)}
    long = _longs(1 << 16)
    indices = b.tensor(long, size=(1 << 15, 1 << 15), stride=(1, 1))
    values = b.tensor(b.persistent(numel=2), size=(1 << 15,), stride=(0,))
    value = _coo(indices, values, _size(1, 1))
    with pytest.raises(TensorError):  # of more dimensions than a tensor has
        tz.load(io.BytesIO(b.checkpoint(b.stream(value), records)))
    compressed = b.tensor(long, size=(1 << 15, 1 << 14), stride=(1, 1))
    empty = b.tensor(long, size=(1 << 15, 0), stride=(1, 1))
    none = b.tensor(b.persistent(numel=2), size=(1 << 15, 0), stride=(1, 1))
    value = _csr(compressed, empty, none, _size(1 << 15, (1 << 14) - 1, 3))
    data = b.checkpoint(b.stream(value), records)
    with pytest.raises(tz.UnsupportedError, match="overlap"):
        tz.load(io.BytesIO(data))
    with peak_below(32 << 20), pytest.raises(tz.UnsupportedError, match="overlap"):
        tz.tools.verify(io.BytesIO(data))


def test_many_windows_of_one_storage() -> None:
    """Thousands of tensors over overlapping indices cost a bounded time, or are refused."""
    numel = 1 << 17
    records = {"0": bytes(8), "1": bytes(8 * numel)}
    long = _longs(numel)
    parts = []
    for offset in range(3000):
        indices = b.tensor(long, size=(1, numel - 3000), stride=(1, 1), offset=offset)
        values = b.tensor(b.persistent(numel=2), size=(numel - 3000,), stride=(0,))
        parts.append(_coo(indices, values, _size(1)))
    data = b.checkpoint(b.stream(b.list_of(*parts)), records)
    start = time.perf_counter()
    with pytest.raises(tz.UnsupportedError, match="overlap"):
        tz.load(io.BytesIO(data))
    with pytest.raises(tz.UnsupportedError, match="overlap"):
        tz.tools.verify(io.BytesIO(data))
    assert time.perf_counter() - start < 40
    again = b.checkpoint(b.stream(b.list_of(*parts[:1] * 3000)), records)
    assert len(tz.load(io.BytesIO(again))) == 3000  # one window, looked at once


def test_lists_are_not_copied() -> None:
    """A long list of scales in thousands of tensors is one list."""
    count = 20_000
    scales = b"](" + b"K\1" * count + b"eq\x64"
    zeros = b"](" + b"K\0" * count + b"eq\x65"
    scheme = b.name("torch", "per_channel_affine")
    first = _quantized(size=(0, count), params=(scheme, scales, zeros, 1))
    other = _quantized(size=(0, count), params=(scheme, b"h\x64", b"h\x65", 1))
    data = file_of(b.list_of(first, *[other] * 2000))
    with peak_below(32 << 20):
        made = tz.load(io.BytesIO(data))
    assert len(made) == 2001
    assert made[0].scale is made[-1].scale


def test_a_jagged_tensor_in_itself() -> None:
    """Its argument dict can hold it; that is an error where it is written, and nowhere else."""
    given = b.dict_of({"values": _floats(4), "offsets": _ints((3,), (1,))}) + b"q\x64"
    rebuild = b.name("torch.nested._internal.nested_tensor", "_rebuild_njt")
    value = b.tuple_of(b.call(rebuild, given) + b"q\x65", b"h\x64" + b.text("x") + b"h\x65s")
    tensor, held = tz.load(io.BytesIO(file_of(value)))
    assert held["x"] is tensor
    with pytest.raises(ValueError, match="nested too deeply"):
        tz.save(tensor, io.BytesIO())


@pytest.mark.parametrize(
    "function",
    [
        "_rebuild_device_tensor_from_cpu_tensor",
        "_rebuild_device_tensor_from_numpy",
        "_rebuild_xla_tensor",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_device_tensors(function: str, dtype: str, tmp_path: Path) -> None:
    """Tensors of other backends are plain ones: a name, a dtype, and the tag of their device."""
    values = np.array([[1, 2, 3]], numpy_dtype(dtype))
    held: Any = AsPickled(values.astype(np.float32) if dtype == "bfloat16" else values)
    if "cpu" in function:
        held = values
    device = ForeignObject("torch._utils", function, (held, Dtype(dtype), "xla:1", True))
    path = tmp_path / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tz.save({"fc.weight": device, "b": np.ones(2)}, path)
    assert np.array_equal(tz.load(path)["fc.weight"], values)
    for target in ("o.safetensors", "o.pt"):
        assert tz.convert(path, tmp_path / target).tensors == 2
        with tz.lazy_load(tmp_path / target, foreign="raise") as ckpt:
            assert list(ckpt.subclassed) == []
            assert ckpt["fc.weight"].torch_dtype == dtype
            assert ckpt["fc.weight"].numpy().tobytes() == values.tobytes()
            storage = ckpt["fc.weight"].spec.storage
            assert storage.location == ("xla:1" if target == "o.pt" else "cpu")


def test_npu_tensors() -> None:
    """The tensor of an NPU is a dense one; how its memory was laid out there is left out."""
    rebuild = "torch_npu.utils.storage._rebuild_npu_tensor"
    storage = b.persistent(location="npu:0")
    value = b.call(rebuild, storage, 0, (2,), (1,), False, b.HOOKS, (b"N",))
    with tz.lazy_load(io.BytesIO(file_of(b.dict_of({"w": value})))) as ckpt:
        assert ckpt["w"].numpy().tolist() == [1, 2]
        assert ckpt["w"].spec.storage.location == "npu:0"
