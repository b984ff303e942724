"""Sparse, quantized, nested and meta tensors without torch: types, checks, what is saved."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import torchzip as tz
from tests.saved import saved
from tests.systems import needs
from tests.test_cost import peak_below
from torchzip.errors import TensorError
from torchzip.types import (
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
            odd: Any = ckpt["a"]
            assert odd.attributes["note"][1].numpy().tolist() == [1, 1]
            assert odd.subclass.name == "Tensor"
        for part in ckpt.root["x"].parts:
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
        assert ckpt.root["c"][0].scale.numpy().tolist() == [0.5, 0.25]


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


@needs("sysconf")
def test_huge_shapes_are_not_allocated() -> None:
    """A dense array that no machine holds is an OSError that says so, at once."""
    shape = (1 << 40, 1 << 20)
    huge = SparseTensor("sparse_coo", COO.indices, COO.values, shape)
    again = roundtrip(huge)
    with peak_below(1 << 20):
        for tensor in (huge, again, huge.replace(shape=((1 << 62), (1 << 62)))):
            with pytest.raises(OSError, match="does not fit"):
                tensor.todense()


@needs("sysconf")
def test_memory_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the size of the memory is not known, numpy's MemoryError is an OSError."""
    monkeypatch.setattr("os.sysconf", lambda name: -1)
    tensor = SparseTensor("sparse_coo", COO.indices, COO.values, (1 << 40, 1 << 20))
    with pytest.raises(OSError, match="does not fit"):
        tensor.todense()
