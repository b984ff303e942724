"""Sparse, quantized, nested and meta tensors without torch: types, checks, hostile files."""

from __future__ import annotations

import copy
import io
import pickle
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import torchzip as tz
from tests import builders as b
from tests.saved import saved
from tests.tensors.test_python_values import AsPickled
from tests.test_cost import peak_below
from torchzip.errors import PickleError, TensorError
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import contiguous_stride
from torchzip.types import (
    Dtype,
    ForeignObject,
    MetaTensor,
    NestedTensor,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    SparseTensor,
    TypedArray,
)

Array = NDArray[Any]


def f4(values: Any) -> Array:
    return np.array(values, np.float32)


def i1(values: Any) -> Array:
    return np.array(values, np.int8)


def u1(values: Any) -> Array:
    return np.array(values, np.uint8)


COO = SparseTensor("sparse_coo", np.array([[0, 1], [2, 0]]), f4([1, 2]), (2, 3))
CSR = SparseTensor("sparse_csr", (np.array([0, 1, 2]), np.array([2, 0])), f4([1, 2]), (2, 3))
BSR = SparseTensor(
    "sparse_bsr",
    (np.array([0, 1]), np.array([1])),
    np.arange(4, dtype="float32").reshape(1, 2, 2),
    (2, 4),
)
PER_TENSOR = QuantizedTensor(i1([[1, 2], [3, 4]]), 0.5, 1)
PER_CHANNEL = QuantizedTensor(u1([[1, 2], [3, 4]]), np.array([0.5, 0.25]), np.array([0, 1]), 1)
PACKED = QuantizedTensor(
    u1([0x21, 0x43, 0x05]), f4([1, 2, 4, 8, 16]), f4([0] * 5), 0,
    torch_dtype="quint4x2", shape=(5, 1),
)  # fmt: skip
STRIDED = NestedTensor(
    "strided", np.arange(6.0), np.array([0, 2]),
    sizes=np.array([[2, 1], [2, 2]]), strides=np.array([[1, 1], [1, 2]]),
)  # fmt: skip
JAGGED = NestedTensor("jagged", np.arange(10.0).reshape(5, 2), np.array([0, 2, 5]))
META = MetaTensor("bfloat16", (2, 0, 3), requires_grad=True)
ALL = [COO, CSR, BSR, PER_TENSOR, PER_CHANNEL, PACKED, STRIDED, JAGGED, META]


def roundtrip(tree: Any, **options: Any) -> Any:
    return tz.load(io.BytesIO(saved(tree)), **options)


def numbers(tensor: OtherTensor) -> Any:
    """Return what a tensor stands for, as lists."""
    if isinstance(tensor, SparseTensor):
        return tensor.todense().tolist()
    if isinstance(tensor, QuantizedTensor):
        return tensor.dequantize().tolist()
    if isinstance(tensor, NestedTensor):
        return [array.tolist() for array in tensor.unbind()]
    return None


# -- the types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "text", "kind", "nbytes"),
    [
        (COO, "SparseTensor(sparse_coo, float32, shape=[2, 3], nnz=2)", "sparse_coo", 40),
        (CSR, "SparseTensor(sparse_csr, float32, shape=[2, 3], nnz=2)", "sparse_csr", 48),
        (BSR, "SparseTensor(sparse_bsr, float32, shape=[2, 4], nnz=1)", "sparse_bsr", 40),
        (PER_TENSOR, "QuantizedTensor(qint8, shape=[2, 2], per_tensor_affine)", "quantized", 4),
        (
            PER_CHANNEL,
            "QuantizedTensor(quint8, shape=[2, 2], per_channel_affine, axis=1)",
            "quantized",
            36,
        ),
        (
            PACKED,
            "QuantizedTensor(quint4x2, shape=[5, 1], per_channel_affine_float_qparams, axis=0)",
            "quantized",
            43,
        ),
        (STRIDED, "NestedTensor(strided, float64, shape=[2, None, None])", "nested", 128),
        (JAGGED, "NestedTensor(jagged, float64, shape=[2, None, 2])", "nested_jagged", 104),
        (META, "MetaTensor(bfloat16, shape=[2, 0, 3], requires_grad=True)", "meta", 0),
    ],
)
def test_what_a_type_says(tensor: OtherTensor, text: str, kind: str, nbytes: int) -> None:
    """One honest line, a word for the kind, and the bytes of its parts."""
    assert (repr(tensor), tensor.kind, tensor.nbytes) == (text, kind, nbytes)
    assert tensor.torch_dtype in text
    parameter = tensor.replace(is_parameter=True)
    assert "parameter" in repr(parameter)
    assert not tensor.is_parameter


@pytest.mark.parametrize("tensor", ALL, ids=repr)
def test_immutable_small_and_picklable(tensor: OtherTensor) -> None:
    """No attribute is set, none is added; two are equal only if they are one; pickle keeps all."""
    assert type(tensor).__module__ == "torchzip.types"  # which is what a pickle of it says
    for name in ("shape", "requires_grad", "other"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(tensor, name, 1)
    assert not hasattr(tensor, "__dict__")
    again = pickle.loads(pickle.dumps(tensor))
    assert repr(again) == repr(tensor)
    assert numbers(again) == numbers(tensor)
    assert again != tensor
    assert tensor in {tensor}
    doubled = copy.copy(tensor).with_parts(lambda part: part)
    assert all(new is old for new, old in zip(doubled.parts, tensor.parts, strict=True))


def test_defaults() -> None:
    """The dtype of a quantized tensor, the stride of a meta tensor, numpy's own numbers."""
    assert [
        QuantizedTensor(np.zeros(1, name), 1.0, 0).torch_dtype
        for name in ("int8", "uint8", "int32")
    ] == ["qint8", "quint8", "qint32"]
    assert META.stride == (3, 3, 1)
    assert MetaTensor("float32", ()).stride == ()
    taken = QuantizedTensor(i1([1]), np.float32(0.5), np.int64(3))
    assert (type(taken.scale), type(taken.zero_point)) == (float, int)
    assert COO.compressed_indices is COO.plain_indices is None
    assert CSR.is_coalesced is None
    listed = SparseTensor("sparse_csr", list(CSR.indices), CSR.values, (2, 3))
    assert listed.indices == CSR.indices
    assert listed.shape == (2, 3)


def test_numbers() -> None:
    """What the tensors of this file stand for, by hand."""
    assert numbers(COO) == numbers(CSR) == [[0, 0, 1], [2, 0, 0]]
    assert numbers(BSR) == [[0, 0, 0, 1], [0, 0, 2, 3]]
    assert numbers(PER_TENSOR) == [[0, 0.5], [1, 1.5]]
    assert numbers(PER_CHANNEL) == [[0.5, 0.25], [1.5, 0.75]]
    assert numbers(PACKED) == [[1], [4], [12], [32], [80]]
    assert numbers(STRIDED) == [[[0], [1]], [[2, 4], [3, 5]]]
    assert numbers(JAGGED) == [[[0, 1], [2, 3]], [[4, 5], [6, 7], [8, 9]]]


def test_sums() -> None:
    """Values of one place are added in their own dtype, one after the other."""
    indices = np.zeros((1, 3), np.int64)
    for values, total in (
        (np.array([2048, 1, 1], np.float16), 2048),
        (i1([100, 100, 100]), 44),
        (np.array([True, True, False]), True),
        (np.array([256, 1, 1], ml_dtypes.bfloat16), 256),
        (np.array([8, 0.25, 0.25], ml_dtypes.float8_e4m3fn), 8),
    ):
        made = SparseTensor("sparse_coo", indices, values, (1,)).todense()
        assert made.dtype == values.dtype
        assert made.tolist() == [total]
    zero = SparseTensor("sparse_coo", np.array([[0]]), f4([-0.0]), (1,)).todense()
    assert zero.tobytes() == f4([0.0]).tobytes()


def test_old_parameters_are_lists() -> None:
    """Torch before 1.4 wrote scales and zero points as lists."""
    tensor = QuantizedTensor(PER_CHANNEL.int_repr, [0.5, 0.25], [0, 1], 1)
    assert numbers(tensor) == numbers(PER_CHANNEL)
    assert (tensor.qscheme, tensor.nbytes) == ("per_channel_affine", 4)
    again = roundtrip(tensor)
    assert (again.scale, again.zero_point) == ([0.5, 0.25], [0, 1])


def test_values_that_numpy_cannot_add() -> None:
    """A dtype that numpy has not is kept, and has no dense array."""
    values = TypedArray(u1([1, 2]), "bits8")
    tensor = SparseTensor("sparse_coo", COO.indices, values, (2, 3))
    again = roundtrip(tensor)
    assert again.torch_dtype == "bits8"
    with pytest.raises(tz.UnsupportedError, match="bits8"):
        again.todense()


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ALL, ids=repr)
def test_roundtrip(tensor: OtherTensor, tmp_path: Path) -> None:
    attributes = None if tensor is JAGGED else {"note": [1, np.ones(2)]}
    tree = {
        "x": tensor,
        "p": Parameter(tensor, False),
        "a": tensor.replace(attributes=attributes),
        "again": [tensor],
    }
    path = tmp_path / "m.pt"
    tz.save(tree, path)
    for mmap in (False, True):
        root = tz.load(path, mmap=mmap)
        assert root["again"][0] is root["x"]
        for name in "xpa":
            assert numbers(root[name]) == numbers(tensor)
            assert root[name].shape == tensor.shape
    with tz.lazy_load(path) as ckpt:
        assert list(ckpt) == ["x", "p", "a", "again.0"]
        assert repr(ckpt["x"]) == repr(tensor)
        assert ckpt["p"].is_parameter
        assert ckpt["p"].requires_grad is False
        assert isinstance(ckpt.root["p"], Parameter) == (tensor is not JAGGED)
        if attributes:
            assert ckpt["a"].attributes["note"][1].numpy().tolist() == [1, 1]
            assert ckpt["a"].subclass.name == "Tensor"
        for part in ckpt["x"].parts:
            assert isinstance(part, tz.LazyTensor)
        (tmp_path / "b").mkdir()
        tz.save(ckpt.root, tmp_path / "b" / "m.pt")
        assert (tmp_path / "b" / "m.pt").read_bytes() == path.read_bytes()
        copied = pickle.loads(pickle.dumps(ckpt["x"]))
    assert numbers(copied) == numbers(tensor)


def test_names_and_kinds_in_containers() -> None:
    """They are leaves: their parts have no names of their own."""
    tree = {"a": {"b": [COO, JAGGED]}, "c": (PER_CHANNEL,), "d": np.ones(1)}
    with tz.lazy_load(io.BytesIO(saved(tree))) as ckpt:
        assert list(ckpt) == ["a.b.0", "a.b.1", "c.0", "d"]
        assert ckpt.verify().tensors == 4
        assert ckpt["c.0"].scale.numpy().tolist() == [0.5, 0.25]


def test_foreign_raise() -> None:
    """What torchzip knows is not foreign, a jagged tensor's class included."""
    roundtrip(ALL, foreign="raise")


def test_memory_is_shared() -> None:
    values = np.arange(4, dtype="float32")
    tensor = SparseTensor("sparse_coo", COO.indices, values[1:3], (2, 3))
    root = roundtrip({"v": values, "s": tensor})
    assert np.shares_memory(root["v"], root["s"].values)


def test_integers_of_another_file() -> None:
    """A LazyTensor of plain uint8 becomes a storage of quint8."""
    with tz.lazy_load(io.BytesIO(saved({"x": u1([[1, 2], [3, 4]])}))) as ckpt:
        made = roundtrip({"q": QuantizedTensor(ckpt["x"], 0.5, 1), "x": ckpt["x"]})
    assert numbers(made["q"]) == [[0, 0.5], [1, 1.5]]
    assert made["x"].dtype == np.uint8


def test_early_parts(tmp_path: Path) -> None:
    """`store_early` stores the parts; integers stored early by themselves are of another dtype."""
    with tz.incremental_save(tmp_path / "m.pt") as out:
        out.save([out.store_early(tensor) for tensor in ALL] + [COO])
    for made, tensor in zip(tz.load(tmp_path / "m.pt"), [*ALL, COO], strict=True):
        assert numbers(made) == numbers(tensor)
    with (
        pytest.raises(TypeError, match="store the QuantizedTensor"),
        tz.incremental_save(tmp_path / "n.pt") as out,
    ):
        out.save(QuantizedTensor(out.store_early(i1([1])), 0.5, 0, torch_dtype="qint8"))
    with pytest.raises(ValueError, match="go from"), tz.incremental_save(tmp_path / "n.pt") as out:
        out.store_early(SparseTensor("sparse_coo", COO.indices + 9, COO.values, (2, 3)))


WRONG: dict[str, OtherTensor] = {
    "indices outside": COO.replace(indices=COO.indices + 9),
    "indices below 0": COO.replace(indices=COO.indices - 1),
    "indices of int32": COO.replace(indices=COO.indices.astype("i4")),
    "indices of one dimension": COO.replace(indices=np.array([0, 1])),
    "too many indices": COO.replace(indices=np.zeros((3, 2), int)),
    "too few values": COO.replace(values=COO.values[:1]),
    "values of another shape": COO.replace(values=np.ones((2, 2))),
    "a pair of indices": COO.replace(indices=CSR.indices),
    "coalesced, perhaps": COO.replace(is_coalesced=2),
    "an unknown layout": SparseTensor("sparse_xyz", COO.indices, COO.values, (2, 3)),
    "a shape below 0": COO.replace(shape=(2, -3)),
    "one index tensor": CSR.replace(indices=COO.indices),
    "indices of two dtypes": CSR.replace(indices=(CSR.indices[0].astype("i4"), CSR.indices[1])),
    "indices of int16": CSR.replace(indices=tuple(part.astype("i2") for part in CSR.indices)),
    "too many rows": CSR.replace(shape=(3, 3)),
    "rows that go backwards": CSR.replace(indices=(np.array([0, 3, 2]), CSR.indices[1])),
    "rows that do not begin with 0": CSR.replace(indices=(np.array([1, 1, 2]), CSR.indices[1])),
    "rows that end too early": CSR.replace(indices=(np.array([0, 1, 1]), CSR.indices[1])),
    "a column outside": CSR.replace(shape=(2, 2)),
    "blocks that do not fit": BSR.replace(shape=(2, 5)),
    "blocks of size 0": BSR.replace(values=np.zeros((1, 0, 2))),
    "a block column outside": BSR.replace(indices=(BSR.indices[0], np.array([2]))),
    "integers of another dtype": QuantizedTensor(
        np.array([1], np.int16), 0.5, 0, torch_dtype="qint8"
    ),
    "a quantized float": QuantizedTensor(np.ones(1), 0.5, 0),
    "an axis outside": QuantizedTensor(i1([[1]]), np.ones(1), np.zeros(1), 2),
    "too few scales": QuantizedTensor(i1([[1, 2]]), np.ones(1), np.zeros(2), 1),
    "too few zero points": QuantizedTensor(i1([[1, 2]]), np.ones(2), np.zeros(1), 1),
    "integer scales": QuantizedTensor(i1([1]), np.array([1]), np.array([0]), 0),
    "too few bytes": QuantizedTensor(u1([1]), 0.5, 0, torch_dtype="quint4x2", shape=(3,)),
    "another shape": QuantizedTensor(u1([1]), 0.5, 0, shape=(2,)),
    "a nested size outside": STRIDED.replace(sizes=np.array([[2, 1], [2, 3]])),
    "a nested offset outside": STRIDED.replace(offsets=np.array([0, 3])),
    "a nested stride outside": STRIDED.replace(strides=np.array([[1, 1], [1, 1 << 62]])),
    "a nested size of 2**62": STRIDED.replace(sizes=np.array([[2, 1], [1 << 62, 1 << 62]])),
    "a nested size below 0": STRIDED.replace(sizes=np.array([[2, 1], [-2, 2]])),
    "no nested strides": STRIDED.replace(strides=None),
    "nested sizes of int32": STRIDED.replace(sizes=STRIDED.sizes.astype("i4")),
    "nested lengths": STRIDED.replace(lengths=np.array([1, 1])),
    "nested values of two dimensions": STRIDED.replace(values=np.ones((2, 3))),
    "another nested layout": STRIDED.replace(layout="ragged"),
    "jagged offsets outside": JAGGED.replace(offsets=np.array([0, 2, 6])),
    "jagged offsets that go backwards": JAGGED.replace(offsets=np.array([0, 3, 2])),
    "no jagged offsets": JAGGED.replace(offsets=np.array([], "int64")),
    "jagged offsets of floats": JAGGED.replace(offsets=np.array([0.0, 2.0])),
    "jagged lengths outside": JAGGED.replace(lengths=np.array([2, 4])),
    "jagged lengths below 0": JAGGED.replace(lengths=np.array([2, -1])),
    "too few jagged lengths": JAGGED.replace(lengths=np.array([2])),
    "another ragged axis": JAGGED.replace(ragged_idx=3),
    "jagged sizes": JAGGED.replace(sizes=STRIDED.sizes),
    "a meta dtype that is none": MetaTensor("float31", (1,)),
    "a meta size below 0": MetaTensor("float32", (-1,), (1,)),
    "too many meta strides": MetaTensor("float32", (1,), (1, 1)),
    "a meta tensor past 2**63": MetaTensor("float32", (1 << 40, 1 << 40)),
    "objects": COO.replace(values=np.array([None, None])),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_saved(name: str, tmp_path: Path) -> None:
    """Parts that do not fit together are an error with their path, and nothing is written."""
    with pytest.raises(ValueError, match=r"^model\.x: "):
        tz.save({"model": {"x": WRONG[name]}}, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())
    if name != "a meta tensor past 2**63" and not isinstance(WRONG[name], MetaTensor):
        with pytest.raises(TensorError):
            numbers(WRONG[name])


def test_zero_points_outside_the_integers() -> None:
    """Kept, and refused where numbers are asked for, as in torch."""
    for tensor in (
        QuantizedTensor(i1([1]), 0.5, 300),
        QuantizedTensor(u1([1]), np.ones(1), np.array([-1]), 0),
    ):
        again = roundtrip(tensor)
        with pytest.raises(TensorError, match="zero points"):
            again.dequantize()


# -- memory --------------------------------------------------------------------------------------


def test_huge_shapes_are_not_allocated() -> None:
    """A dense array that no machine holds is an OSError that says so, at once."""
    shape = (1 << 40, 1 << 20)
    huge = SparseTensor("sparse_coo", COO.indices, COO.values, shape)
    again = roundtrip(huge)
    with peak_below(1 << 20):
        for tensor in (huge, again, huge.replace(shape=((1 << 62), (1 << 62)))):
            with pytest.raises(OSError, match="does not fit"):
                tensor.todense()


def test_memory_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the size of the memory is not known, numpy's MemoryError is an OSError."""
    monkeypatch.setattr("os.sysconf", lambda name: -1)
    tensor = SparseTensor("sparse_coo", COO.indices, COO.values, (1 << 40, 1 << 20))
    with pytest.raises(OSError, match="does not fit"):
        tensor.todense()


# -- files by hand -------------------------------------------------------------------------------

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
        assert numbers(ckpt[""]) == told
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
        numbers(ckpt[""])


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
            for tensor in (made, ckpt[""]):
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
