"""What `incremental_save` writes, as torch reads it: values, ties, nothing left behind."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import pathlib
import random
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import torchzip as tz
from tests.child_process import python
from tests.comparing import assert_equal_in_torch, assert_same_array, assert_same_bytes
from tests.sampling import some
from tests.saved import saved
from tests.torch_oracle import (
    NUMPY_DTYPES,
    RAW_DTYPES,
    array_dtype,
    asks_torch,
    random_bytes,
    storage_array,
    torch_bytes,
)
from tests.trees import CASES, TORCH_ONLY

pytestmark = asks_torch("ComplexHalf support is experimental")


def loaded(torch: Any, path: pathlib.Path) -> Any:
    """Read a file in all the ways that torch has; they must agree. Its CRCs must be right."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    config = importlib.import_module("torch.utils.serialization.config")
    tree = torch.load(path)
    assert_equal_in_torch(torch, torch.load(path, mmap=True), tree)
    with config.patch("load.calculate_storage_offsets", True):
        assert_equal_in_torch(torch, torch.load(path, mmap=True), tree)
        assert_equal_in_torch(torch, torch.load(path), tree)
    return tree


def storages_in(path: pathlib.Path) -> int:
    """Return how many storages a file holds."""
    with zipfile.ZipFile(path) as archive:
        return sum("/data/" in name for name in archive.namelist() if "/.data/" not in name)


# -- values ---------------------------------------------------------------------------------------


def test_arrays_of_all_dtypes(torch: Any, path: pathlib.Path) -> None:
    """Every dtype, stored early and freed, comes back bit for bit."""
    expected: dict[str, NDArray[Any]] = {}
    state: dict[str, Any] = {}
    with tz.incremental_save(path) as out:
        for seed, name in enumerate(NUMPY_DTYPES):
            dtype = array_dtype(name)
            data = random_bytes(seed, 12 * dtype.itemsize)
            if name == "bool":
                data = bytearray(byte & 1 for byte in data)
            array = np.frombuffer(data, dtype).reshape(3, 4)
            expected[name] = array.copy()
            state[name] = out.store_early(array)
            del array
        for name in RAW_DTYPES:
            bits = np.arange(5).astype(array_dtype(name))
            state[name] = out.store_early(tz.types.TypedArray(bits, name))
        out.save(state)
    tree = loaded(torch, path)
    assert list(tree) == [*NUMPY_DTYPES, *RAW_DTYPES]
    for name, array in expected.items():
        assert_same_array(tree[name], array)
    for name in RAW_DTYPES:
        assert str(tree[name].dtype) == f"torch.{name}"
        held = storage_array(torch, tree[name].untyped_storage())
        assert held.view(array_dtype(name)).tolist() == [0, 1, 2, 3, 4]


def test_layouts(torch: Any, path: pathlib.Path) -> None:
    """Scalars, empty, transposed, broadcast, backward, swapped and gapped arrays."""
    square = np.arange(12.0).reshape(3, 4)
    arrays = {
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "transposed": square.T,
        "column-major": np.asfortranarray(square + 1),
        "broadcast": np.broadcast_to(np.arange(3.0), (5, 3)),
        "backward": square[::-1, ::-1],
        "big-endian": square.astype(">f8"),
        "gaps": np.arange(20.0)[::3],
        "column": (square + 2)[:, 1],
        "size 1": np.zeros((1, 3, 1)).T,
    }
    with tz.incremental_save(path) as out:
        out.save({name: out.store_early(array) for name, array in arrays.items()})
    tree = loaded(torch, path)
    for name, array in arrays.items():
        assert_same_array(tree[name], array.astype(array.dtype.newbyteorder("=")))
    assert tree["broadcast"].stride()[0] == 0
    assert tree["transposed"].stride() == (1, 4)


def test_structure_is_that_of_the_tree(torch: Any, path: pathlib.Path) -> None:
    """Containers, attributes and Parameters around early tensors are what they were."""
    weight, bias = np.arange(6.0).reshape(2, 3), np.ones(2, ml_dtypes.bfloat16)
    with tz.incremental_save(path) as out:
        state: Any = OrderedDict()
        state["weight"] = out.store_early(tz.types.Parameter(weight))
        state["bias"] = tz.types.Parameter(out.store_early(bias), requires_grad=False)
        state["again"] = state["weight"]
        state._metadata = OrderedDict({"": {"version": 1}})
        out.save({"model": state, "epoch": 3, "betas": (0.9, 0.999)})
    tree = loaded(torch, path)
    model = tree["model"]
    assert type(model) is OrderedDict
    assert vars(model)["_metadata"] == OrderedDict({"": {"version": 1}})
    assert type(model["weight"]) is torch.nn.Parameter
    assert model["again"] is model["weight"]
    assert model["weight"].requires_grad
    assert type(model["bias"]) is torch.nn.Parameter
    assert not model["bias"].requires_grad
    assert model["weight"].tolist() == weight.tolist()
    assert (tree["epoch"], tree["betas"]) == (3, (0.9, 0.999))


def test_nothing_early_is_what_torch_writes(torch: Any, tmp_path: pathlib.Path) -> None:
    """Without early tensors the file is the one of ``torch.save``."""
    x = np.arange(6.0)
    file = io.BytesIO()
    with tz.incremental_save(file) as out:
        out.save({"x": x, "part": x[2:4]})
    tensor = torch.from_numpy(x)
    assert_same_bytes(file.getvalue(), torch_bytes(torch, {"x": tensor, "part": tensor[2:4]}))
    assert_same_bytes(file.getvalue(), saved({"x": x, "part": x[2:4]}))


@pytest.mark.filterwarnings("ignore:torch.load")
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "name",
    ["state_dict", "AdamW", "parameters_shared", "conjugated_and_negated", "uint16-views",
     "tensor_with_attributes", "untyped_storage_and_its_tensors", "sparse",
     "view_of_a_large_storage"],
)  # fmt: skip
def test_tensors_of_another_file(torch: Any, path: pathlib.Path, name: str) -> None:
    """Lazy tensors stored early keep their strides, ties and bits."""
    data = torch_bytes(torch, {**CASES, **TORCH_ONLY}[name](torch))
    with tz.lazy_load(io.BytesIO(data)) as ckpt, tz.incremental_save(path) as out:
        for tensor in ckpt.values():
            out.store_early(tensor)
        out.save(ckpt.root)
    expected = torch.load(io.BytesIO(data), weights_only=False)
    assert_equal_in_torch(torch, torch.load(path, weights_only=False), expected)


# -- ties --------------------------------------------------------------------------------------


def test_one_array_stored_twice(torch: Any, tmp_path: pathlib.Path) -> None:
    """The same array stored early twice is one storage."""
    path, x = tmp_path / "m.pt", np.arange(10.0)
    with tz.incremental_save(path) as out:
        out.save({"a": out.store_early(x), "b": out.store_early(x)})
    tree = loaded(torch, path)
    assert tree["a"].data_ptr() == tree["b"].data_ptr()
    assert storages_in(path) == 1


def test_ten_overlapping_views(torch: Any, tmp_path: pathlib.Path) -> None:
    """Ten views of a stored array lie where they lay, in its storage."""
    path, x = tmp_path / "m.pt", np.arange(1000, dtype=np.int32)
    views = [x[i * 50 : i * 50 + 500] for i in range(10)]
    views.append(x.reshape(10, 100).T[3:50:2])
    with tz.incremental_save(path) as out:
        out.save([out.store_early(view) for view in (x, *views)])
    whole, *rest = loaded(torch, path)
    assert storages_in(path) == 1
    for tensor, view in zip(rest, views, strict=True):
        assert tensor.untyped_storage().data_ptr() == whole.data_ptr()
        assert_same_array(tensor, view)
    whole[:] = 7
    assert all((tensor == 7).all() for tensor in rest)


def test_ten_overlapping_views_that_are_plain(torch: Any, tmp_path: pathlib.Path) -> None:
    """The same without the array itself, and nothing early."""
    path, x = tmp_path / "m.pt", np.arange(1000, dtype=np.int32)
    views = [x[i * 50 : i * 50 + 500] for i in range(10)]
    with tz.incremental_save(path) as out:
        early = out.store_early(np.ones(3))
        out.save([early, *views])
    _, *rest = loaded(torch, path)
    assert storages_in(path) == 2
    assert len({tensor.untyped_storage().data_ptr() for tensor in rest}) == 1
    for tensor, view in zip(rest, views, strict=True):
        assert_same_array(tensor, view)


def test_early_and_plain_stay_tied(torch: Any, tmp_path: pathlib.Path) -> None:
    """An array that was stored early is found again where it stands plainly in the tree."""
    path, x = tmp_path / "m.pt", np.arange(12.0)
    with tz.incremental_save(path) as out:
        early = out.store_early(x)
        out.save({
            "plain": x, "early": early, "view": x[3:6], "matrix": x.reshape(3, 4).T,
            "parameter": tz.types.Parameter(x), "other": x.copy(),
        })  # fmt: skip
    tree = loaded(torch, path)
    assert storages_in(path) == 2
    for name in ("plain", "view", "matrix", "parameter"):
        pointer = tree[name].untyped_storage().data_ptr()
        assert pointer == tree["early"].data_ptr(), name
    assert tree["other"].data_ptr() != tree["early"].data_ptr()
    assert tree["view"].tolist() == [3, 4, 5]
    assert tree["matrix"].stride() == (1, 4)


def test_parts_that_overlap_in_part(torch: Any, tmp_path: pathlib.Path) -> None:
    """What was stored already cannot grow; the values are right all the same."""
    path, x = tmp_path / "m.pt", np.arange(100.0)
    parts = [x[:60], x[40:], x[20:80], x, x[::7], x[1::7], x[50:55]]
    with tz.incremental_save(path) as out:
        out.save([out.store_early(part) for part in parts] + parts)
    tree = loaded(torch, path)
    for tensor, part in zip(tree, parts + parts, strict=True):
        assert_same_array(tensor, part)


def test_an_array_that_changed_since(torch: Any, tmp_path: pathlib.Path) -> None:
    """The early tensor has the values of then, the plain array those of now."""
    path, x = tmp_path / "m.pt", np.arange(5.0)
    with tz.incremental_save(path) as out:
        early = out.store_early(x)
        x[2] = 99
        out.save({"early": early, "plain": x})
    tree = loaded(torch, path)
    assert tree["early"].tolist() == [0, 1, 2, 3, 4]
    assert tree["plain"].tolist() == [0, 1, 99, 3, 4]


class WriteOnly:
    """A destination that has nothing but ``write``."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def write(self, data: Any) -> int:
        self.blocks.append(bytes(data))
        return len(self.blocks[-1])


@pytest.mark.parametrize("crc32", [True, False])
@pytest.mark.parametrize("kind", ["path", "BytesIO", "write only"])
def test_one_buffer_filled_again_and_again(
    torch: Any, path: pathlib.Path, kind: str, crc32: bool
) -> None:
    """Each tensor has the values that the buffer held when it was stored."""
    file: Any = {"path": path, "BytesIO": io.BytesIO(), "write only": WriteOnly()}[kind]
    buffer = np.empty((20, 50), np.float32)
    with tz.incremental_save(file, crc32=crc32) as out:
        state: dict[str, Any] = {}
        for i in range(30):
            buffer[:] = i // 3  # also the same values again
            state[f"t{i}"] = out.store_early(buffer)
            state[f"v{i}"] = out.store_early(buffer[5:7, 3:])
        state["last"] = buffer
        out.save(state)
    if kind == "path":
        data = path.read_bytes()
    else:
        data = file.getvalue() if kind == "BytesIO" else b"".join(file.blocks)
    tree = torch.load(io.BytesIO(data))
    for i in range(30):
        assert tree[f"t{i}"].unique().tolist() == [i // 3]
        assert tree[f"v{i}"].unique().tolist() == [i // 3]
    assert tree["last"].unique().tolist() == [9]


def test_freed_address_taken_by_another(torch: Any, path: pathlib.Path) -> None:
    """An array at the address of one that was freed is an array of its own."""
    state: dict[str, Any] = {}
    addresses = []
    with tz.incremental_save(path) as out:
        for i in range(300):
            array = np.full(5000, i // 2, np.int64)  # pairs of equal values, too
            addresses.append(array.__array_interface__["data"][0])
            state[str(i)] = out.store_early(array)
            if i % 3 == 0:
                state[f"{i} view"] = out.store_early(array[10:20])
            del array
        out.save(state)
    assert len(set(addresses)) < len(addresses) // 2, "addresses did not repeat"
    tree = loaded(torch, path)
    pointers = set()
    for i in range(300):
        assert tree[str(i)].unique().tolist() == [i // 2]
        pointers.add(tree[str(i)].data_ptr())
        if i % 3 == 0:
            assert tree[f"{i} view"].tolist() == [i // 2] * 10
            assert tree[f"{i} view"].data_ptr() == tree[str(i)].data_ptr() + 80
    assert len(pointers) == 300


def test_random_programs(torch: Any, path: pathlib.Path) -> None:
    """Any mix of arrays, views, early, plain, changed, freed: values of their time, in torch."""
    for seed in some(range(150)):
        rng = random.Random(seed)
        pool: list[NDArray[Any]] = []
        early: list[tuple[Any, NDArray[Any]]] = []
        spans: list[tuple[int, int]] = []
        plain: list[NDArray[Any]] = []
        with tz.incremental_save(path, alignment=rng.choice((1, 16, 64))) as out:
            for _ in range(rng.randint(1, 25)):
                action = rng.random()
                if action < 0.3 or not pool:
                    pool.append(np.full(rng.choice((0, 1, 8, 100, 1000)), rng.random()))
                elif action < 0.5:
                    whole = rng.choice(pool)
                    first = rng.randint(0, whole.size)
                    last = rng.randint(first, whole.size)
                    pool.append(whole[first : last : rng.choice((1, 1, 3))])
                elif action < 0.6:
                    rng.choice(pool)[...] = rng.random()
                elif action < 0.7:
                    del pool[rng.randrange(len(pool))]
                elif action < 0.9:
                    array = rng.choice(pool)
                    early.append((out.store_early(array), array.copy()))
                    spans.append(np.lib.array_utils.byte_bounds(array))
                else:
                    plain.append(rng.choice(pool))
            out.save({"early": [proxy for proxy, _ in early], "plain": plain})
        tree = loaded(torch, path)
        for tensor, (_, array) in zip(tree["early"], early, strict=True):
            assert_same_array(tensor, array)
        for tensor, array in zip(tree["plain"], plain, strict=True):
            assert_same_array(tensor, array)
        # Ties of plain arrays, where no part of the memory had been written already.
        fresh = []
        for index, array in enumerate(plain):
            start, stop = np.lib.array_utils.byte_bounds(array)
            if all(stop <= first or last <= start for first, last in spans):
                fresh.append((index, array))
        for i, first_array in fresh:
            for j, second_array in fresh:
                if np.shares_memory(first_array, second_array):
                    pointers = {
                        tree["plain"][k].data_ptr() - plain[k].__array_interface__["data"][0]
                        for k in (i, j)
                    }
                    assert len(pointers) == 1, (seed, i, j)


# -- chunks ------------------------------------------------------------------------------------


def test_chunks(torch: Any, tmp_path: pathlib.Path) -> None:
    """Blocks of any size and shape become one tensor."""
    path, whole = tmp_path / "m.pt", np.arange(1000, dtype=np.int32)
    cuts = [0, 1, 1, 400, 700, 1000]
    blocks = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    blocks[-1] = blocks[-1].reshape(3, 100)
    with tz.incremental_save(path) as out:
        state = {
            "a": out.store_chunks(blocks, shape=(10, 100), dtype=np.int32),
            "b": out.store_chunks((block for block in blocks), shape=[1000], dtype="torch.int32"),
            "none": out.store_chunks([], shape=(0, 3), dtype="bfloat16"),
            "plain": np.ones(3),
        }
        state["tied"] = state["a"]
        out.save(state)
    tree = loaded(torch, path)
    assert tree["a"].flatten().tolist() == whole.tolist()
    assert tree["b"].tolist() == whole.tolist()
    assert (tree["none"].dtype, tree["none"].shape) == (torch.bfloat16, (0, 3))
    assert tree["tied"] is tree["a"]
    assert tree["plain"].tolist() == [1, 1, 1]


_CHILD = """
import json, sys
import numpy as np
import torchzip as tz

def blocks():
    for i in range(512):
        yield np.full(1 << 20, i, np.float32)

with tz.incremental_save(sys.argv[1]) as out:
    big = out.store_chunks(blocks(), shape=(512, 1 << 20), dtype="float32")
    out.save({"big": big, "small": np.arange(3)})
with tz.lazy_load(sys.argv[1]) as ckpt:
    part = ckpt["big"][300, 5:8].tolist()
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"part": part, "peak": peak * 1024, "torch": "torch" in sys.modules}))
"""


@pytest.mark.long
def test_chunks_of_two_gigabytes_in_little_memory(torch: Any, path: pathlib.Path) -> None:
    """A tensor of 2 GB is written, and a slice of it read, in less than 150 MB."""
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("the peak of a process without its parent's is only known on Linux")
    try:
        result = json.loads(python("-c", _CHILD, path))
        assert result["part"] == [300.0, 300.0, 300.0]
        assert not result["torch"]
        assert result["peak"] < 150_000_000
        assert path.stat().st_size > 1 << 31
        tree = torch.load(path, mmap=True)
        assert tree["big"].shape == (512, 1 << 20)
        assert tree["big"][511, -3:].tolist() == [511, 511, 511]
        assert tree["small"].tolist() == [0, 1, 2]
        del tree
    finally:
        path.unlink(missing_ok=True)
