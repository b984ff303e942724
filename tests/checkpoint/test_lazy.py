"""Lazy checkpoints: names, slices, handles that survive pickle, errors with a hint."""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.child_process import in_threads
from tests.saved import flipped, saved
from torchzip.errors import TensorNotFoundError
from torchzip.types import ForeignObject, Parameter

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WEIGHT = np.arange(60, dtype=np.float32).reshape(6, 10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a checkpoint with a few tensors."""
    made = tmp_path / "model.pt"
    tz.save(
        {
            "layer": {"weight": WEIGHT, "bias": np.arange(6, dtype=_BFLOAT16)},
            "tied": WEIGHT,
            "column": WEIGHT[:, 3],
            "step": np.array(7),
            "empty": np.zeros((0, 4), np.int16),
            "lr": 0.5,
        },
        made,
    )
    return made


def test_mapping(path: Path) -> None:
    """A checkpoint is a mapping from flat names to tensors, in file order."""
    with tz.lazy_load(path) as checkpoint:
        assert isinstance(checkpoint, Mapping)
        names = ["layer.weight", "layer.bias", "tied", "column", "step", "empty"]
        assert list(checkpoint) == list(checkpoint.keys()) == names
        assert len(checkpoint) == 6
        assert "layer.weight" in checkpoint
        assert "layer" not in checkpoint
        assert "lr" not in checkpoint
        assert checkpoint.get("nothing") is None
        assert dict(checkpoint)["tied"] is checkpoint["tied"]
        assert checkpoint.root["lr"] == 0.5
        assert checkpoint.root["layer"]["weight"] is checkpoint["layer.weight"]
        assert checkpoint.format == "zip"
        assert checkpoint == checkpoint
        assert len({checkpoint, checkpoint}) == 1


def test_attributes(path: Path) -> None:
    """What a tensor says of itself, without reading it."""
    with tz.lazy_load(path) as checkpoint:
        weight, column = checkpoint["layer.weight"], checkpoint["column"]
        assert (weight.shape, weight.ndim, weight.nbytes) == ((6, 10), 2, 240)
        assert (weight.dtype, weight.torch_dtype) == (np.dtype("float32"), "float32")
        assert (weight.stride, weight.storage_offset) == ((10, 1), 0)
        assert (weight.requires_grad, weight.is_parameter) == (False, False)
        assert (column.shape, column.stride, column.storage_offset) == ((6,), (10,), 3)
        assert checkpoint["layer.bias"].dtype == _BFLOAT16
        assert checkpoint["layer.bias"].torch_dtype == "bfloat16"
        assert checkpoint["step"].shape == ()
        assert checkpoint["empty"].nbytes == 0


def test_repr(path: Path) -> None:
    """One honest line each."""
    with tz.lazy_load(path) as checkpoint:
        assert repr(checkpoint) == (
            f"<Checkpoint {str(path)!r}, zip, "
            "6 tensors (1 bfloat16, 3 float32, 1 int16, 1 int64), 260 B stored>"
        )
        assert repr(checkpoint["layer.weight"]) == "LazyTensor(float32, shape=[6, 10])"
        assert repr(checkpoint["step"]) == "LazyTensor(int64, shape=[])"


def test_values(path: Path) -> None:
    """Every way to read a tensor gives the same array, of its own."""
    with tz.lazy_load(path) as checkpoint:
        tensor = checkpoint["layer.weight"]
        for array in (tensor.numpy(), np.asarray(tensor), np.array(tensor), tensor[...]):
            assert type(array) is np.ndarray
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, WEIGHT)
        first = tensor.numpy()
        first[...] = -1
        np.testing.assert_array_equal(tensor.numpy(), WEIGHT)
        assert np.asarray(tensor, np.float64).dtype == np.float64
        assert np.array_equal(np.add(tensor, 1), WEIGHT + 1)
        with pytest.raises(ValueError, match="no array to share"):
            np.asarray(tensor, copy=False)


def test_scalar_tensor_is_an_array(path: Path) -> None:
    """A tensor without dimensions gives an array without dimensions, as numpy does."""
    with tz.lazy_load(path) as checkpoint:
        step = checkpoint["step"]
        for array in (step.numpy(), np.asarray(step), step[...]):
            assert type(array) is np.ndarray
            assert (array.shape, int(array)) == ((), 7)
        assert type(step[()]) is np.int64


@pytest.mark.parametrize(
    "key",
    [
        np.s_[2],
        np.s_[1:4, :4],
        np.s_[::2],
        np.s_[:, ::3],
        np.s_[:, 5],
        np.s_[:, :1],
        np.s_[::-1, ::-2],
        np.s_[-1, -1],
        np.s_[..., 0],
        np.s_[None, 2],
        np.s_[[0, 3]],
        np.s_[[0, 3], [1, 2]],
        np.s_[np.array([True, False] * 3)],
        np.s_[3:3],
        np.s_[()],
        np.s_[2, ...],
        np.s_[1, 2, ...],
    ],
    ids=repr,
)
def test_indexing_is_that_of_numpy(path: Path, key: Any) -> None:
    """A slice is what numpy gives for the whole array, type and shape included."""
    with tz.lazy_load(path) as checkpoint:
        made, expected = checkpoint["layer.weight"][key], WEIGHT[key]
        assert type(made) is type(expected)
        assert made.dtype == expected.dtype
        np.testing.assert_array_equal(made, expected)


def test_index_errors(path: Path) -> None:
    """What numpy refuses is an IndexError."""
    with tz.lazy_load(path) as checkpoint:
        for key in (6, (0, 10), (0, 0, 0), -7):
            with pytest.raises(IndexError):
                checkpoint["layer.weight"][key]


# -- errors ----------------------------------------------------------------------------------


def test_missing_name_has_a_suggestion(path: Path) -> None:
    """A name that is nearly right is told."""
    with tz.lazy_load(path) as checkpoint:
        with pytest.raises(TensorNotFoundError) as caught:
            checkpoint["layer.wieght"]
        assert isinstance(caught.value, KeyError)
        assert "did you mean 'layer.weight'" in str(caught.value)
        assert str(path) in str(caught.value)
        with pytest.raises(KeyError) as other:
            checkpoint["qqqqqqqqqq"]
        assert "did you mean" not in str(other.value)
        with pytest.raises(KeyError):
            checkpoint[0]  # type: ignore[index]


def test_closed_checkpoint(path: Path) -> None:
    """After `close` the structure is there and no tensor can be read."""
    checkpoint = tz.lazy_load(path)
    tensor = checkpoint["layer.weight"]
    checkpoint.close()
    checkpoint.close()
    assert tensor.shape == (6, 10)
    with pytest.raises(ValueError, match="closed") as caught:
        tensor.numpy()
    assert not isinstance(caught.value, tz.TorchZipError)
    assert str(path) in str(caught.value)


def test_wrong_arguments(path: Path) -> None:
    """A caller's mistake is an error of Python."""
    with pytest.raises(ValueError, match="foreign must be"):
        tz.lazy_load(path, foreign="drop")  # type: ignore[arg-type]
    for wrong in (None, 7, b"bytes", {str(path)}):
        with pytest.raises(TypeError):
            tz.lazy_load(wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        tz.lazy_load(path.with_name("no.pt"))


def test_foreign_raise_lists_all_names() -> None:
    """Every name outside the table is listed at once."""
    data = b.checkpoint(
        b.stream(
            b.list_of(
                b.name("os", "system"),
                b.call("a.b.C"),
                b.name("os", "system"),
                b.name("torch", "float32"),
                b.tensor(),
            )
        )
    )
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert checkpoint.foreign == [("os", "system"), ("a.b", "C")]
        assert ("torch", "FloatStorage") in checkpoint.globals
        assert [type(item) for item in checkpoint.root[:3]] == [ForeignObject] * 3
        assert checkpoint["4"].numpy().tolist() == [1, 2, 3, 4]
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.lazy_load(io.BytesIO(data), foreign="raise")
    assert caught.value.names == [("os", "system"), ("a.b", "C")]
    assert (caught.value.module, caught.value.name) == ("os", "system")
    assert "os.system, a.b.C" in str(caught.value)


def test_tensors_of_other_kinds() -> None:
    """They are values of the mapping like the others; what only a class can make is not."""
    with tz.lazy_load(b.GOLDEN / "sparse.pt") as checkpoint:
        assert list(checkpoint) == ["s", "w"]
        sparse: Any = checkpoint["s"]
        assert type(sparse) is tz.types.SparseTensor
        assert isinstance(sparse.values, tz.LazyTensor)
        assert not checkpoint.subclassed
    subclass = b.call(
        "torch._tensor._rebuild_from_type_v2",
        b.name("torch._utils", "_rebuild_wrapper_subclass"),
        b.name("m", "Wrapper"),
        (b.name("m", "Wrapper"),),
        {"inner": b.tensor()},
    )
    data = b.checkpoint(b.stream(b.dict_of({"w": subclass})))
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert list(checkpoint) == ["w.inner"]
        assert checkpoint["w.inner"].numpy().tolist() == [1, 2, 3, 4]
        assert list(checkpoint.subclassed) == ["w"]
        assert checkpoint.subclassed["w"] is checkpoint.root["w"]
        assert "w" not in checkpoint
        with pytest.raises(tz.UnsupportedError, match="only its own code can make") as caught:
            checkpoint["w"]
        assert isinstance(caught.value, NotImplementedError)
        assert "<BytesIO>" in str(caught.value)


def test_conflicting_names() -> None:
    """Both tensors are reached from the root."""
    inner = b.dict_of({"b": b.tensor(offset=1, size=(1,))})
    data = b.checkpoint(b.stream(b.dict_of({"a.b": b.tensor(), "a": inner})))
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        with pytest.raises(tz.FormatError, match=r"two tensors are called 'a\.b'"):
            checkpoint["a.b"]
        assert checkpoint.root["a.b"].numpy().tolist() == [1, 2, 3, 4]
        assert checkpoint.root["a"]["b"].numpy().tolist() == [2]


# -- pickle ------------------------------------------------------------------------------------


def test_tensor_survives_pickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of a path is opened again where it is loaded, wherever that stands."""
    monkeypatch.chdir(path.parent)
    with tz.lazy_load(path.name) as checkpoint:
        data = pickle.dumps([checkpoint["layer.weight"], checkpoint["column"]])
    monkeypatch.chdir("/")
    weight, column = pickle.loads(data)
    np.testing.assert_array_equal(weight.numpy(), WEIGHT)
    np.testing.assert_array_equal(weight[2:4, 1:3], WEIGHT[2:4, 1:3])
    np.testing.assert_array_equal(column.numpy(), WEIGHT[:, 3])
    assert weight.spec.storage is column.spec.storage


def test_checkpoint_survives_pickle(path: Path) -> None:
    """So does a whole checkpoint, with its options."""
    with tz.lazy_load(path, limits=tz.Limits(nesting=77)) as checkpoint:
        again = pickle.loads(pickle.dumps(checkpoint))
    with again:
        assert list(again) == list(checkpoint)
        assert again["layer.weight"].numpy().shape == (6, 10)
        assert again.limits.nesting == 77


def _in_memory(path: Path) -> Any:
    return io.BytesIO(b"before" + path.read_bytes())


def _fsspec_file(path: Path) -> Any:
    fsspec = pytest.importorskip("fsspec")
    path.with_suffix(".more").write_bytes(b"before" + path.read_bytes())
    return fsspec.filesystem("file").open(str(path.with_suffix(".more")), "rb")


@pytest.mark.parametrize("make", [_in_memory, _fsspec_file])
def test_file_objects_that_survive_pickle(path: Path, make: Any) -> None:
    """So do a checkpoint and a tensor on a file object that does, from where it stood."""
    file = make(path)
    file.seek(6)
    expected = tz.load(path)["layer"]["weight"]
    with tz.lazy_load(file, limits=tz.Limits(nesting=77)) as checkpoint:
        weight = pickle.loads(pickle.dumps(checkpoint["layer.weight"]))
        np.testing.assert_array_equal(weight.numpy(), expected)
        again = pickle.loads(pickle.dumps(checkpoint))
    with again:
        assert list(again) == list(checkpoint)
        np.testing.assert_array_equal(again["layer.weight"].numpy(), expected)
        assert again.limits.nesting == 77


def test_what_does_not_survive_pickle(path: Path) -> None:
    """An open file of this process cannot be sent; that is said, not found out there."""
    with path.open("rb") as file, tz.lazy_load(file) as checkpoint:
        with pytest.raises(TypeError):
            pickle.dumps(checkpoint)
        with pytest.raises(TypeError):
            pickle.dumps(checkpoint["layer.weight"])


# -- other sources and layouts -----------------------------------------------------------------


def test_file_object(path: Path) -> None:
    """A file object is read from where it stands, and left open."""
    data = b"junk" * 11 + path.read_bytes()
    file = io.BytesIO(data)
    file.seek(44)
    with tz.lazy_load(file) as checkpoint:
        assert checkpoint["layer.weight"].numpy()[1, 1] == 11
        assert checkpoint.path == "<BytesIO>"
    assert not file.closed


def test_threads(path: Path) -> None:
    """Tensors are read in many threads at once, from a path and from a file object."""
    for source in (path, io.BytesIO(path.read_bytes())):
        with tz.lazy_load(source) as checkpoint:

            def work(number: int, checkpoint: tz.Checkpoint = checkpoint) -> None:
                for name in ("layer.weight", "tied") * 30:
                    assert np.array_equal(checkpoint[name].numpy(), WEIGHT)

            in_threads(*[work] * 8)


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("FloatStorage", "f4"), ("DoubleStorage", "f8"), ("ShortStorage", "i2"), ("ByteStorage", "u1"),
     ("ComplexFloatStorage", "c8"), ("ComplexDoubleStorage", "c16"), ("LongStorage", "i8")],
)  # fmt: skip
def test_big_endian_files(kind: str, dtype: str, method: int) -> None:
    """Values of a file of the other byte order are right, in whole and in part."""
    array = np.array([1, 2, 3, 4 if dtype == "u1" else -4], dtype)
    storage = b.persistent(numel=4, kind=b.name("torch", kind))
    stored = array.astype(array.dtype.newbyteorder(">")).tobytes()
    members = b.members_of(
        b.stream(b.dict_of({"x": b.tensor(storage)})), {"0": stored}, byteorder=b"big"
    )
    data = b.build_zip([replace(each, method=method) for each in members])
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        tensor = checkpoint["x"]
        assert tensor.numpy().tolist() == array.tolist()
        assert tensor[1:3].tolist() == array[1:3].tolist()
        assert tensor[3] == array[3]
        checkpoint.verify()
    assert tz.load(io.BytesIO(data))["x"].tolist() == array.tolist()


def test_untyped_storages_are_not_swapped() -> None:
    """An untyped storage counts bytes, and bytes have no order."""
    storage = b.persistent(numel=4, kind=b.name("torch.storage", "UntypedStorage"))
    made = b.tensor(
        storage, size=(2,), function=b.name("torch._utils", "_rebuild_tensor_v3"),
        extra=b.name("torch", "uint16"),
    )  # fmt: skip
    members = b.members_of(b.stream(made), {"0": b"\x01\x02\x03\x04"}, byteorder=b"big")
    expected = np.frombuffer(b"\x01\x02\x03\x04", np.uint16).tolist()
    assert tz.load(io.BytesIO(b.build_zip(members))).tolist() == expected


def test_deflated_records() -> None:
    """People zip checkpoints again; tensors and slices of them are read all the same."""
    values = np.arange(100_000, dtype=np.float32)
    storage = b.persistent(numel=values.size)
    members = b.members_of(
        b.stream(b.tensor(storage, size=(1000, 100), stride=(100, 1))), {"0": values.tobytes()}
    )
    data = b.build_zip([replace(each, method=8) for each in members])
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        tensor = checkpoint[""]
        np.testing.assert_array_equal(tensor.numpy().ravel(), values)
        np.testing.assert_array_equal(tensor[500:502, 7:9], values.reshape(1000, 100)[500:502, 7:9])
        np.testing.assert_array_equal(tensor[::-300, 3], values.reshape(1000, 100)[::-300, 3])
    np.testing.assert_array_equal(tz.load(io.BytesIO(data)).ravel(), values)


@pytest.mark.parametrize("conj", [False, True])
@pytest.mark.parametrize("neg", [False, True])
def test_lazy_bits(conj: bool, neg: bool) -> None:
    """Conjugation and negation that torch has put off are carried out."""
    flags = {name: b.TRUE for name, on in (("neg", neg), ("conj", conj)) if on}
    storage = b.persistent(numel=2, kind=b.name("torch", "ComplexFloatStorage"))
    made = b.tensor(storage, size=(2,), extra=b.dict_of(flags) if flags else b"")
    data = b.checkpoint(b.stream(made))
    expected = np.array([1 + 2j, 3 + 4j], np.complex64)
    expected = (expected.conj() if conj else expected) * np.complex64(-1 if neg else 1)
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        tensor = checkpoint[""]
        assert (tensor.spec.conj, tensor.spec.neg) == (conj, neg)
        assert tensor.numpy().tolist() == expected.tolist()
        assert tensor[1:].tolist() == expected[1:].tolist()
        assert tensor[0] == expected[0]
    assert tz.load(io.BytesIO(data)).tolist() == expected.tolist()


def test_parameters() -> None:
    """A parameter stands in the root as one, and under its name as a tensor."""
    parameter = b.call("torch._utils._rebuild_parameter", b.tensor(), True, b.HOOKS)
    data = b.checkpoint(b.stream(b.dict_of({"w": parameter, "b": b.tensor()})))
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        root = checkpoint.root
        assert type(root["w"]) is Parameter
        assert root["w"].data is checkpoint["w"]
        assert (checkpoint["w"].is_parameter, checkpoint["w"].requires_grad) == (True, True)
        assert (checkpoint["b"].is_parameter, checkpoint["b"].requires_grad) == (False, False)
        assert repr(checkpoint["w"]).startswith("LazyTensor(parameter, float32")


def test_metadata_of_a_state_dict() -> None:
    """The `_metadata` of `module.state_dict()` is an attribute of the OrderedDict."""
    with tz.lazy_load(b.GOLDEN / "module-state.pt") as checkpoint:
        assert "" in checkpoint.root._metadata


def test_verify(path: Path) -> None:
    """Every record is read and compared; damage is found where it is."""
    with tz.lazy_load(path) as checkpoint:
        report = checkpoint.verify()
    assert report.tensors == 6
    assert report.without_crc == ()
    assert report.records > 4
    assert report.nbytes > 240
    data = path.read_bytes()
    data = flipped(data, data.index(WEIGHT.tobytes()[40:80]))
    with (
        tz.lazy_load(io.BytesIO(data)) as checkpoint,
        pytest.raises(tz.FormatError, match="damaged") as caught,
    ):
        checkpoint.verify()
    assert caught.value.record == "data/0"


def test_verify_without_crcs(tmp_path: Path) -> None:
    """A file without CRCs is read and its records are named."""
    made = tmp_path / "m.pt"
    tz.save({"w": np.ones(3), "e": np.zeros(0)}, made, crc32=False)
    with tz.lazy_load(made) as checkpoint:
        report = checkpoint.verify()
    assert "data/0" in report.without_crc
    assert "data/1" not in report.without_crc  # it has no bytes


def test_length_and_rows() -> None:
    """A tensor has the length of its first axis and gives its rows; without axes, neither."""
    data = saved({"x": np.arange(6.0).reshape(3, 2), "zero": np.array(7.0)})
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        assert len(ckpt["x"]) == 3
        assert [row.tolist() for row in ckpt["x"]] == [[0, 1], [2, 3], [4, 5]]
        with pytest.raises(TypeError, match="without dimensions"):
            len(ckpt["zero"])
        with pytest.raises(TypeError, match="without dimensions"):
            iter(ckpt["zero"])


def test_pickled_in_another_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is that of the folder in which the checkpoint was opened."""
    monkeypatch.chdir(path.parent)
    (tmp_path / "elsewhere").mkdir()
    with tz.lazy_load(path.name) as checkpoint:
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pickle.loads(pickle.dumps(checkpoint)) as again:
            assert list(again) == list(checkpoint)


def test_closed_on_a_file_object(path: Path) -> None:
    """Its tensors cannot be read either, and the object stays open."""
    with path.open("rb") as file:
        with tz.lazy_load(file) as checkpoint:
            tensor = next(iter(checkpoint.values()))
        with pytest.raises(ValueError, match="the checkpoint is closed"):
            tensor.numpy()
        assert not file.closed


def test_dropped_checkpoint_closes_its_file(path: Path) -> None:
    """Without a call of `close`, and without a look for cycles, which a program may forbid."""
    checkpoint: Any = tz.lazy_load(path)
    tensor = checkpoint["layer.weight"]
    container = weakref.ref(checkpoint.container)
    gc.disable()
    try:
        del checkpoint
        assert tensor.numpy().shape == tensor.shape
        del tensor
        assert container() is None
    finally:
        gc.enable()
