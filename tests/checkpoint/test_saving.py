"""Saving: what comes back, what is refused with its place, and what stays after a failure."""

from __future__ import annotations

import io
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.saved import saved
from torchzip.dtypes import DTYPES
from torchzip.tensors.memory import PackedStorage
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.types import (
    Device,
    Dtype,
    ForeignObject,
    Layout,
    NestedTensor,
    Parameter,
    QScheme,
    QuantizedTensor,
    Size,
    SparseTensor,
    Storage,
    TypedArray,
)

Array = np.ndarray[Any, Any]


def roundtrip(obj: Any, **options: Any) -> Any:
    return tz.load(io.BytesIO(saved(obj, **options)))


def same(ours: Array, theirs: Array) -> None:
    """Compare values, shape and dtype."""
    assert type(ours) is np.ndarray
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype.newbyteorder("=")
    np.testing.assert_array_equal(ours, theirs)


_ARRAYS = [
    np.arange(12.0).reshape(3, 4), np.arange(12.0).reshape(3, 4).T,
    np.arange(12.0).reshape(3, 4)[:, 1:3], np.arange(12.0)[::3], np.arange(12.0)[::-1],
    np.arange(12.0).reshape(3, 4)[::-1, ::-2], np.arange(12, dtype=">i4"),
    np.arange(12, dtype=">c16")[::-5], np.array(5.0), np.array(5, ">i2"), np.zeros((0, 3)),
    np.zeros((3, 0, 2), np.int8), np.broadcast_to(np.arange(3.0), (4, 3)),
    np.zeros(5, "u1,f8")["f1"],
    np.frombuffer(b"x" + np.arange(3.0).tobytes(), np.float64, offset=1),
    np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    np.arange(5, dtype=ml_dtypes.bfloat16),
    np.arange(5, dtype=ml_dtypes.float8_e5m2)[::2],
    np.array([True, False]),
    np.zeros((1, 1, 1)),
    np.array([np.nan, np.inf, -0.0]),
]  # fmt: skip


@pytest.mark.parametrize("array", _ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}{a.strides}")
def test_arrays_come_back_equal(array: Array) -> None:
    """Whatever the layout, alone, twice, read-only, and beside a view of its memory."""
    frozen = array.view()
    frozen.flags.writeable = False
    part = array[..., :1] if array.ndim else array[...]
    made = roundtrip({"a": array, "again": array, "frozen": frozen, "part": part})
    for name in ("a", "again", "frozen"):
        same(made[name], array)
    same(made["part"], part)
    assert made["again"] is made["a"]


@pytest.mark.parametrize("dtype", [name for name, row in DTYPES.items() if row.numpy])
def test_every_dtype(dtype: str) -> None:
    """All bits of each dtype that numpy has come back."""
    raw = np.arange(64, dtype=np.uint8)
    array = raw.view(numpy_dtype(dtype))
    made = roundtrip(array)
    assert made.dtype == array.dtype
    assert made.tobytes() == raw.tobytes()


@pytest.mark.parametrize("dtype", [name for name, row in DTYPES.items() if not row.numpy])
def test_every_dtype_that_numpy_has_not(dtype: str) -> None:
    """The raw bits and the name come back."""
    array = np.arange(12, dtype=np.uint8).view(numpy_dtype(dtype))
    made = roundtrip({"x": TypedArray(array, dtype)})["x"]
    assert type(made) is TypedArray
    assert made.torch_dtype == dtype
    assert made.array.tobytes() == array.tobytes()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f4", "f8", "i8", "u1", "?", "c8", ">f4", ">i2", "bfloat16"]),
            st.lists(st.integers(0, 4), max_size=4),
            st.sampled_from([None, "T", "reverse", "step"]),
        ),
        max_size=6,
    ),
    st.sampled_from([1, 8, 64, 4096]),
    st.booleans(),
)
def test_any_arrays(specs: list[tuple[str, list[int], str | None]], align: int, crc: bool) -> None:
    """Any dtypes, shapes and strides, with any options of the container."""
    arrays = []
    for index, (dtype, shape, how) in enumerate(specs):
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        size = int(np.prod(shape))
        array = (np.arange(size) + index).astype(kind).reshape(shape)
        if how == "T":
            array = array.T
        elif how is not None and array.ndim:
            array = array[:: -1 if how == "reverse" else 2]
        arrays.append(array)
    made = roundtrip({"arrays": arrays, "tuple": tuple(arrays)}, alignment=align, crc32=crc)
    for ours, theirs in zip(made["arrays"], arrays, strict=True):
        same(ours, theirs)


def test_records_of_a_file(tmp_path: Path) -> None:
    """Storages are aligned, and the file is named inside as torch names it."""
    path = tmp_path / "model.v1.pt"
    tz.save({"a": np.ones(3), "b": np.zeros(2)}, path, alignment=256)
    with tz.lazy_load(path) as checkpoint:
        for name in checkpoint:
            span = checkpoint[name].spec.storage.span()
            assert span is not None
            assert span[1] % 256 == 0
    assert path.read_bytes()[30:47] == b"model.v1/data.pkl"


def test_values_come_back() -> None:
    """Every leaf type and every plain container."""
    tree = {
        "n": [1, -1, 1 << 100, 1.5, None, True, "é", b"raw", bytearray(b"x"), 2j],
        "t": (1, (2, ())),
        "s": {1, 2},
        "o": OrderedDict(a=1),
        "size": Size((2, 3)),
        "dtype": Dtype("float16"),
        "device": Device("cuda", 1),
        "layout": Layout("strided"),
        "scheme": QScheme("per_tensor_affine"),
    }
    made = roundtrip(tree)
    assert made == tree
    assert type(made["size"]) is Size


def test_parameter_and_storage() -> None:
    """A parameter keeps its flags, a storage its data and place."""
    parameter = Parameter(np.arange(3.0), requires_grad=False)
    tree = {"p": parameter, "s": Storage(np.arange(4.0), "float64", "cuda:0"), "p2": parameter}
    with tz.lazy_load(io.BytesIO(saved(tree))) as checkpoint:
        root = checkpoint.root
        assert root["p"] is root["p2"]
        assert not root["p"].requires_grad
        assert root["p"].data.numpy().tolist() == [0, 1, 2]
        assert (root["s"].torch_dtype, root["s"].location) == ("float64", "cuda:0")
        assert root["s"].data.numpy().tolist() == [0, 1, 2, 3]


def test_ties_survive() -> None:
    """Arrays that share memory share it again."""
    base = np.arange(12.0).reshape(3, 4)
    made = roundtrip({"w": base, "t": base.T, "row": base[1]})
    made["w"][1, 2] = -1
    assert made["t"][2, 1] == made["row"][2] == -1


def test_small_view_saves_little(path: Path) -> None:
    """A view of 4 KB makes a file of a few KB, whatever it is a view of."""
    base, other = np.zeros((2, 10 << 20), np.uint8)
    tz.save({"v": base[1 << 20 :][:4096], "gaps": other[:: 1 << 12]}, path)
    assert path.stat().st_size < 12_000


def test_metadata_of_an_ordered_dict() -> None:
    """The attributes of a state dict come back."""
    state: Any = OrderedDict(w=np.ones(2))
    state._metadata = OrderedDict([("", {"version": 1})])
    assert roundtrip(state)._metadata == {"": {"version": 1}}


def test_cycles() -> None:
    """An object that contains itself comes back so."""
    tree: dict[str, Any] = {"w": np.ones(2)}
    tree["self"] = tree
    made = roundtrip(tree)
    assert made["self"] is made


def test_lazy_tensors_are_saved_again(tmp_path: Path) -> None:
    """The root of one file saved as another has the same tensors on the same storages."""
    base = np.arange(20.0).reshape(4, 5)
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    tz.save({"w": Parameter(base), "t": base.T, "col": base[:, 2], "n": [1]}, first)
    with tz.lazy_load(first) as checkpoint:
        tz.save(checkpoint.root, second)
        with tz.lazy_load(second) as again:
            assert list(again) == list(checkpoint)
            for name in again:
                ours, theirs = again[name], checkpoint[name]
                assert (ours.stride, ours.storage_offset) == (theirs.stride, theirs.storage_offset)
                assert ours.is_parameter == theirs.is_parameter
                np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
            assert again["t"].spec.storage is again["w"].spec.storage


def test_lazy_tensors_of_deflated_and_swapped_files() -> None:
    """What is not there as it will be written is made so on the way."""
    swapped = b.members_of(
        b.stream(b.tensor()), {"0": np.array([1, 2, 3, 4], ">f4").tobytes()}, byteorder=b"big"
    )
    with tz.lazy_load(io.BytesIO(b.build_zip(swapped))) as checkpoint:
        assert roundtrip(checkpoint.root).tolist() == [1, 2, 3, 4]


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([object()], dtype=object), "dtype object"),
        (np.array(["a"]), "dtype <U1"),
        (np.zeros(2, "u1,f4"), "dtype"),
        (np.array(["2020"], "M8[D]"), "datetime64"),
        (np.zeros(2, np.longdouble), "dtype"),
        (np.ma.masked_array([1.0], [True]), "masked"),
        (lambda: 0, "cannot save"),
        (Parameter("text"), "a Parameter of str"),
        (Parameter(None), "a Parameter of NoneType"),
        (TypedArray(np.zeros(2, np.uint8), "bits16"), "items of 2 bytes"),
        (TypedArray(np.zeros(2, np.uint8), "float3"), "no dtype 'float3'"),
        (TypedArray([1, 2], "bits8"), "needs an array"),
        (Storage("text"), "must be an array"),
        (Storage(np.zeros(3, np.float32), "float3"), "no storage of dtype 'float3'"),
        (Storage(np.zeros(3, np.uint16), "uint16"), "no storage of dtype 'uint16'"),
        (Storage(np.zeros(3, np.float32), "int8"), "a Storage of int8 has data of float32"),
        (Storage(np.zeros((2, 3)), "float64"), "one-dimensional"),
        (Storage(np.broadcast_to(np.float64(1), (5,)), "float64"), "dense"),
        (Storage(np.zeros(3), "float64", 5), "location"),  # type: ignore[arg-type]
        (Dtype("half"), "torch writes no dtype 'half'"),
        (QScheme("affine"), "torch has no qscheme 'affine'"),
        (ForeignObject("m", "f", (), {"key": 1}), "a call with keywords"),
        (ForeignObject("m\ud800", "f"), "a name that is not Unicode"),
        (ForeignObject("m", "f\n"), "a name with a line break"),
    ],
    ids=lambda value: re.sub(" at 0x.*", "", str(value))[:30],
)
def test_what_cannot_be_saved_says_where(tmp_path: Path, value: Any, message: str) -> None:
    """The message begins with the path in the object; nothing is written."""
    path = tmp_path / "m.pt"
    tree = {"model": {"layers": [np.ones(2), {"weight": value}]}}
    with pytest.raises((TypeError, ValueError)) as caught:
        tz.save(tree, path)
    assert str(caught.value).startswith("model.layers.1.weight: ")
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_is_no_value(tmp_path: Path) -> None:
    """It would be written as the name of a file; what is in it has to be asked for."""
    tz.save({"weight": np.ones(2)}, tmp_path / "m.pt")
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        for value, path in ((checkpoint, "the object itself"), ({"model": checkpoint}, "model")):
            with pytest.raises(TypeError, match=f"^{path}: .*save its root"):
                tz.save(value, tmp_path / "n.pt")
    assert os.listdir(tmp_path) == ["m.pt"]


def test_storage_that_is_a_part(tmp_path: Path) -> None:
    """A bare storage is written whole, so a part of what another array has cannot be one."""
    numbers = np.arange(10)
    storage, path = Storage(numbers[2:5], "int64"), tmp_path / "m.pt"
    (alone,) = roundtrip([storage])
    assert alone.data.tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="0: a Storage of 24 bytes which are a part of 80"):
        tz.save([storage, numbers], path)
    tz.save({"part": numbers[2:5], "all": numbers}, path)
    with tz.lazy_load(path) as checkpoint, pytest.raises(ValueError, match="a part of 80"):
        tz.save([Storage(checkpoint["part"], "int64")], tmp_path / "other.pt")


def test_layout_that_torch_has_not() -> None:
    """It is written as it is, with a warning."""
    with pytest.warns(UserWarning, match="the layout zigzag"):
        assert roundtrip([Layout("zigzag"), Layout("strided")])[0] == Layout("zigzag")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Size("ab"), TypeError),  # type: ignore[arg-type]
        (lambda: Size([1.5]), TypeError),  # type: ignore[list-item]
        (lambda: Dtype(5), TypeError),  # type: ignore[arg-type]
        (lambda: Layout(None), TypeError),  # type: ignore[arg-type]
        (lambda: Device(5), TypeError),  # type: ignore[arg-type]
        (lambda: Device("cuda", "1"), TypeError),  # type: ignore[arg-type]
        (lambda: Device("cuda", -1), ValueError),
        (lambda: SparseTensor("sparse_coo", [[0, 1]], np.ones(2), (2,)), TypeError),
        (lambda: SparseTensor("sparse_coo", np.array([[0]]), None, (2,)), TypeError),
        (lambda: QuantizedTensor(5, 1.0, 0), TypeError),
        (lambda: NestedTensor("jagged", np.ones(2), 5), TypeError),
        (lambda: ForeignObject(5, "f"), TypeError),  # type: ignore[arg-type]
        (lambda: ForeignObject("m", "f", 5), TypeError),  # type: ignore[arg-type]
        (lambda: ForeignObject("m", "f", (), {1: 2}), TypeError),  # type: ignore[dict-item]
        (lambda: ForeignObject("m", "f", (), items=5), TypeError),  # type: ignore[arg-type]
        (lambda: ForeignObject("m", "f", how="made"), ValueError),
    ],
)
def test_leaf_types_of_something_else(make: Any, error: type[Exception]) -> None:
    """What a leaf type cannot be made of is refused at once."""
    with pytest.raises(error):
        make()


def test_sizes_become_plain_ints() -> None:
    """As in torch: what numpy counts with is an index."""
    size = roundtrip({"size": Size(np.array([2, 3]))})["size"]
    assert (type(size), size, {*map(type, size)}) == (Size, (2, 3), {int})


class _Says:
    """An object that says it is of another class, or raises when it is asked."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if vars(self)["kind"] is None:
            raise KeyError("no class")
        return vars(self)["kind"]


@pytest.mark.filterwarnings("ignore:torch.load")
@pytest.mark.parametrize("kind", [np.ndarray, dict, tz.LazyTensor, tz.types.SparseTensor, None])
def test_objects_that_lie_about_their_class(kind: Any) -> None:
    """What they are counts: they are pickled as such, as pickle does it."""
    loaded = roundtrip({"k": [_Says(kind), np.ones(2)]})
    assert loaded["k"][0].callee.name == "_Says"
    assert loaded["k"][1].tolist() == [1, 1]


class _Mute(str):
    def __str__(self) -> str:
        raise KeyError("no text")

    __repr__ = __str__


class _MuteError(Exception):
    __str__ = _Mute.__str__


class _Failing:
    def __reduce__(self) -> Any:
        raise _MuteError


@pytest.mark.parametrize("value", [np.zeros(2, object), lambda: 0, _Failing()])
def test_keys_and_errors_without_a_text(value: Any) -> None:
    """A message is made of them all the same."""
    with pytest.raises(TypeError, match=r"^model\.<_Mute>: cannot save"):
        tz.save({"model": {_Mute("k"): value}}, io.BytesIO())
    array = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"^<_Mute>\.a, <_Mute>\.b: arrays of dtype"):
        tz.save({_Mute("k"): {"a": array, "b": array.view(np.int32)}}, io.BytesIO())


class _InArguments:
    def __reduce__(self) -> Any:
        return (list, ((type(self)(), type(self)()),))


class _InState:
    def __reduce__(self) -> Any:
        return (list, (), type(self)())


@pytest.mark.parametrize("endless", [_InArguments, _InState])
def test_objects_made_of_new_ones_without_end(tmp_path: Path, endless: Any) -> None:
    """They are an error with its path, not all memory."""
    with pytest.raises(ValueError, match="nested too deeply"):
        tz.save({"a": [np.ones(2), endless()]}, tmp_path / "m.pt")
    assert os.listdir(tmp_path) == []


def test_rows_of_a_matrix_are_matrices() -> None:
    """A row longer than a block is cut further, though ``matrix[0]`` has two axes again."""
    matrix = np.arange(60.0).reshape(2, 30).astype(">f8").view(np.matrix)
    blocks = list(PackedStorage(matrix, "float64").blocks(64))
    assert max(block.nbytes for block in blocks) <= 64
    assert np.concatenate(blocks).view("f8").tolist() == list(range(60))
    same(roundtrip({"m": matrix})["m"], np.asarray(matrix))


def test_numpy_scalars_are_not_arrays() -> None:
    """A numpy scalar is saved as pickle does it, with a warning that names its path."""
    with pytest.warns(UserWarning, match=r"stats\.loss"):
        saved({"stats": {"loss": np.float32(1.5)}})


def test_dtype_conflict_names_both_paths(tmp_path: Path) -> None:
    """Two dtypes on one memory cannot be kept, and both places are named."""
    base = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"^(a\.x, b\.1|b\.1, a\.x): .*share memory"):
        tz.save({"a": {"x": base}, "b": [0, base.view(np.int32)]}, tmp_path / "m.pt")
    assert os.listdir(tmp_path) == []


def test_warning_lists_paths(path: Path) -> None:
    """What torch's default loader will refuse is said, with each path and reason."""
    with pytest.warns(UserWarning, match="weights_only=True will refuse") as caught:
        tz.save({"opt": {"frozen": frozenset([1])}, "w": np.ones(2), "e": b""}, path)
    message = str(caught[0].message)
    assert "opt.frozen (builtins.frozenset)" in message
    assert "e (builtins.bytes)" in message
    assert caught[0].filename == __file__
    assert tz.load(path)["opt"] == {"frozen": frozenset([1])}


def test_long_warning_is_cut() -> None:
    """Twenty paths are listed, the others counted."""
    with pytest.warns(UserWarning, match="and 30 more"):
        tz.save([{"f": frozenset([i])} for i in range(50)], io.BytesIO())


def test_tensor_of_another_writer_is_refused(tmp_path: Path) -> None:
    """A proxy of `incremental_save` means nothing elsewhere."""
    with tz.incremental_save(tmp_path / "a.pt") as out:
        early = out.store_early(np.ones(2))
        with pytest.raises(ValueError, match=r"^x\.0: stored by another writer"):
            tz.save({"x": [early]}, tmp_path / "b.pt")
        out.save({"x": early})
    assert sorted(os.listdir(tmp_path)) == ["a.pt"]
