"""torch tensors given to the writers: what they write of them, against what torch writes."""

from __future__ import annotations

import gc
import io
import pathlib
import random
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.comparing import assert_equal_in_torch, assert_same_bytes
from tests.random_trees import random_tree
from tests.sampling import costly
from tests.saved import saved
from tests.torch_oracle import asks_torch, tensor, torch_bytes
from tests.trees import CASES, TORCH_ONLY

pytestmark = asks_torch(
    "torch.load", "ComplexHalf support is experimental", "The PyTorch API of nested tensors",
    "Sparse", ".*quantiz", "TypedStorage is deprecated",
)  # fmt: skip

#: Trees with numpy arrays, which torch pickles and torchzip saves as tensors.
_NUMPY = ("numpy_values", "numpy_records")
TREES = {name: make for name, make in {**CASES, **TORCH_ONLY}.items() if name not in _NUMPY}


def in_torch(torch: Any, tree: Any) -> Any:
    """Save a torch tree as it is, and load it with torch."""
    return torch.load(io.BytesIO(saved(tree)), weights_only=False)


@pytest.mark.parametrize("name", TREES)
def test_writes_torchs_bytes(torch: Any, name: str) -> None:
    """Every tree is the same file, whoever writes it."""
    tree = TREES[name](torch)
    assert_same_bytes(saved(tree), torch_bytes(torch, tree))


@given(st.integers(0, 2**32))
def test_random_trees(torch: Any, seed: int) -> None:
    """Any tree of torch's values is the same file."""
    tree = random_tree(torch, random.Random(seed))
    assert_same_bytes(saved(tree), torch_bytes(torch, tree))


def test_subclass_of_a_tensor(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of a class of its own is written as torch writes it, with its attributes."""
    kind: Any = type("Tagged", (torch.Tensor,), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "Tagged", kind, raising=False)
    made = torch.arange(3.0).as_subclass(kind)
    made.tag = "tag"
    assert_same_bytes(saved([made, made]), torch_bytes(torch, [made, made]))


def _python_device(torch: Any) -> Any:
    """Return a tensor of a device that says it is an accelerator, and lies on the CPU."""

    class OnDevice(torch.Tensor):  # type: ignore[misc]
        @property
        def device(self) -> Any:
            return torch.device("xla", 0)

        def cpu(self) -> Any:
            return torch.tensor([1.0, 2.0])

    return torch.zeros(2).as_subclass(OnDevice)


def test_tensor_of_a_device_without_storages(torch: Any) -> None:
    """Its own ``cpu()`` gives the data, and the device's name is kept."""
    function, args = _python_device(torch)._reduce_ex_internal(2)
    assert function.__name__ == "_rebuild_device_tensor_from_cpu_tensor"

    class Reduced:
        def __reduce__(self) -> Any:
            return function, args

    assert_same_bytes(saved([Reduced()]), torch_bytes(torch, [Reduced()]))


class _DeviceStorage:
    """What torch's storage of an accelerator shows to a writer."""

    __module__ = "torch.storage"
    __qualname__ = "UntypedStorage"

    def __init__(self, held: Any, device: Any) -> None:
        self.held = held
        self.device = device
        self._cdata = id(self)
        self.copies = 0

    def nbytes(self) -> int:
        return int(self.held.nbytes())

    def cpu(self) -> Any:
        self.copies += 1
        return self.held


def test_storage_on_a_device(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied to the CPU by itself, once, and keeps its tag."""
    held = torch.arange(4.0).untyped_storage()
    stored = _DeviceStorage(held, torch.device("cuda", 1))
    monkeypatch.setattr(sys.modules["torch.serialization"], "location_tag", lambda _: "cuda:1")
    file = io.BytesIO(saved({"a": stored, "b": [stored]}))
    found = tz.lazy_load(file)
    assert found.root["a"].location == "cuda:1"
    assert found.root["a"].data.numpy().tobytes() == np.arange(4.0, dtype="f4").tobytes()
    assert found.root["a"] is found.root["b"][0]
    assert stored.copies == 1


def test_two_dtypes_on_one_storage(torch: Any) -> None:
    """What torch refuses is refused, with its place."""
    x = torch.zeros(4)
    with pytest.raises(RuntimeError, match="different types"):
        torch_bytes(torch, [x, x.view(torch.int32)])
    with pytest.raises(ValueError, match=r"^1\.a\.0: .*float32 and int32.*copy one"):
        saved([x, {"a": x.view(torch.int32)}])


def test_storages_without_data(torch: Any) -> None:
    """A storage on the meta device is an error that names its place."""
    storage = torch.empty(2, device="meta").untyped_storage()
    with pytest.raises(TypeError, match=r"^a\.0: cannot save a storage on the meta device"):
        saved({"a": [storage]})


# -- beside numpy --------------------------------------------------------------------------------


def test_arrays_in_the_memory_of_tensors(torch: Any) -> None:
    """An array that shares memory with a tensor is a view of the tensor's storage."""
    x = torch.arange(6.0)
    array = x.numpy()
    tree = {"x": x, "array": array, "part": array[2:4], "apart": np.ones(6, "f4"),
            "parameter": tz.types.Parameter(array[::2])}  # fmt: skip
    found = in_torch(torch, tree)
    found["x"].add_(10)
    assert found["array"].tolist() == [10, 11, 12, 13, 14, 15]
    assert found["part"].tolist() == [12, 13]
    assert found["parameter"].tolist() == [10, 12, 14]
    assert found["apart"].tolist() == [1] * 6
    with pytest.raises(ValueError, match=r"^raw: .*float32 and int32"):
        saved({"x": x, "raw": array.view("i4")})


def test_leaf_types_of_torch_tensors(torch: Any) -> None:
    """Torch tensors stand where the leaf types take arrays, and stay tied there."""
    x = torch.arange(4.0).bfloat16()
    i = torch.tensor([[0, 1], [0, 1]])
    found = in_torch(torch, {
        "p": tz.types.Parameter(x), "nn": tz.types.Parameter(torch.nn.Parameter(x)), "x": x,
        "s": tz.types.SparseTensor("sparse_coo", i, x[:2], (2, 2)), "i": i,
        "storage": tz.types.Storage(torch.ones(3), "float32"),
        "coo": tz.types.Parameter(torch.eye(2).to_sparse()),
    })  # fmt: skip
    found["x"].add_(1)
    assert isinstance(found["p"], torch.nn.Parameter)
    for name in ("p", "nn"):
        assert found[name].tolist() == [1, 2, 3, 4]
    assert found["s"].to_dense().tolist() == [[1, 0], [0, 2]]
    assert found["storage"].tolist() == [1, 1, 1]
    assert found["coo"].to_dense().tolist() == [[1, 0], [0, 1]]
    assert isinstance(found["coo"], torch.nn.Parameter)


# -- the incremental writer and map ---------------------------------------------------------------


@costly
@given(seed=st.integers(0, 2**32))
def test_stored_early(torch: Any, path: pathlib.Path, seed: int) -> None:
    """Any tensor that is stored early comes back as from torch, ties between them included."""
    rng = random.Random(seed)
    names = rng.sample(
        ["sparse", "quantized", "meta", "nested", "conjugated", "negated", "requires_grad",
         "buffer", "two_tensors_on_one_storage", "parameters_shared",
         "view_of_a_large_storage", "parameter_with_attributes",
         "many_tensors_share_all_dtypes", "different_dtypes_that_count_as_bytes"], 4,
    )  # fmt: skip
    tree = {name: TREES[name](torch) for name in names}
    with tz.incremental_save(path) as out:

        def early(value: Any) -> Any:
            if isinstance(value, dict):
                return type(value)({key: early(item) for key, item in value.items()})
            if isinstance(value, list):
                return [early(item) for item in value]
            stays = not isinstance(value, torch.Tensor) or rng.random() < 0.3
            known.setdefault(id(value), value if stays else out.store_early(value))
            return known[id(value)]

        known: dict[int, Any] = {}
        out.save(early(tree))
    expected = torch.load(io.BytesIO(torch_bytes(torch, tree)), weights_only=False)
    assert_equal_in_torch(torch, torch.load(path, weights_only=False), expected)


def test_tensors_that_are_freed_or_changed(torch: Any, path: pathlib.Path) -> None:
    """The values are those of the moment, whatever has the same address or storage later."""
    with tz.incremental_save(path) as out:
        found = {}
        for number in range(20):
            found[f"{number}"] = out.store_early(torch.full((1000,), float(number)))
            gc.collect()
        x = torch.ones(3)
        found["before"] = out.store_early(x)
        x += 1
        found["after"] = out.store_early(x)
        found["again"] = x
        out.save(found)
    got = torch.load(path)
    assert all((got[f"{number}"] == number).all() for number in range(20))
    assert got["before"].tolist() == [1, 1, 1]
    assert got["after"].tolist() == [2, 2, 2]
    assert got["after"].data_ptr() == got["again"].data_ptr()


def test_chunks(torch: Any, path: pathlib.Path) -> None:
    """Blocks of a large tensor may be torch's, of any dtype, with or without a gradient."""
    with tz.incremental_save(path) as out:
        chunks = [torch.ones(2, requires_grad=True), torch.zeros(3)[1:]]
        halves = [torch.ones(2).bfloat16()]
        bits = [tensor(torch, "bits8", (2,))]
        out.save([
            out.store_chunks(chunks, shape=(4,), dtype="float32"),
            out.store_chunks(halves, shape=(2,), dtype="bfloat16"),
            out.store_chunks(bits, shape=(2,), dtype="bits8"),
        ])  # fmt: skip
    got = torch.load(path)
    assert [got[0].tolist(), got[1].tolist()] == [[1, 1, 0, 0], [1, 1]]
    with (
        pytest.raises(TypeError, match="bits8; uint8 was announced"),
        tz.incremental_save(path) as out,
    ):
        out.store_chunks(bits, shape=(2,), dtype="uint8")


def test_map_gives_torch_tensors(torch: Any, tmp_path: pathlib.Path) -> None:
    """``map`` may give torch tensors, of dtypes that numpy does not have too."""
    tz.save({"w": np.arange(4, dtype="f4")}, tmp_path / "a.pt")

    def split(name: str, value: Any) -> Any:
        held = torch.from_numpy(value.numpy()).bfloat16()
        return [(f"{name}.0", held[:2]), (f"{name}.1", torch.nn.Parameter(held[2:]))]

    report = tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", map=split)
    assert report.tensors == 2
    got = tz.load(tmp_path / "b.safetensors")
    assert [got["w.0"].tolist(), got["w.1"].tolist()] == [[0, 1], [2, 3]]
    assert got["w.0"].dtype.name == "bfloat16"


def test_tensors_of_classes_of_their_own_are_not_stored_early(
    torch: Any, tmp_path: pathlib.Path
) -> None:
    """What only its own code can make is refused there, with what to do."""
    subclasses = pytest.importorskip("torch.testing._internal.two_tensor")
    made = subclasses.TwoTensor(torch.ones(2), torch.ones(2))
    with (
        pytest.raises(TypeError, match=r"TwoTensor .*give the plain tensors"),
        tz.incremental_save(tmp_path / "m.pt") as out,
    ):
        out.store_early(made)
    assert_same_bytes(saved([made]), torch_bytes(torch, [made]))
