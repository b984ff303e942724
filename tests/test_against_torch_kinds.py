"""Sparse, quantized, nested and meta tensors, with torch as the oracle in both directions."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import torchzip as tz
from tests import builders as b
from tests.comparing import (
    assert_equal_in_torch,
    assert_same_array,
    assert_same_bytes,
    check_tensor,
    check_tree,
)
from tests.kind_trees import CASES, VALUES, matrix, random_values
from tests.sampling import costly
from tests.saved import records_of, saved
from tests.torch_oracle import asks_torch, raw_array, storage_array, torch_bytes
from torchzip.types import (
    MetaTensor,
    NestedTensor,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    SparseTensor,
)

pytestmark = asks_torch(":UserWarning", ":FutureWarning", ":DeprecationWarning")


def load_again(torch: Any, data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_read_and_write_again(torch: Any, name: str) -> None:
    """Read lazily and at once, equal bit for bit; what is written again is what torch wrote."""
    tree = CASES[name](torch)
    data = torch_bytes(torch, tree)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        assert check_tree(torch, ckpt.root, tree) > 0
        assert not ckpt.subclassed
        for tensor in ckpt.values():
            assert isinstance(tensor, tz.LazyTensor | OtherTensor)
        assert_same_bytes(saved(ckpt.root), data)
    eager = tz.load(io.BytesIO(data))
    check_tree(torch, eager, tree)
    load_again(torch, saved(eager))
    check_tree(torch, tz.load(io.BytesIO(saved(eager))), tree)


@pytest.mark.parametrize("name", CASES)
def test_legacy(torch: Any, name: str) -> None:
    """The format before 1.6, whose storages come after the object."""
    tree = CASES[name](torch)
    data = torch_bytes(torch, tree, _use_new_zipfile_serialization=False)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        check_tree(torch, ckpt.root, tree)
        again = saved(ckpt.root)
    check_tree(torch, tz.load(io.BytesIO(data)), tree)
    with tz.lazy_load(io.BytesIO(again)) as ckpt:
        check_tree(torch, ckpt.root, tree)


@pytest.mark.parametrize("name", ["parameters", "attributes", "shared memory and shared objects"])
def test_equal_in_torch(torch: Any, name: str) -> None:
    """What is written from a lazy checkpoint is equal in torch, whatever the file's protocol."""
    tree = CASES[name](torch)
    for protocol in (2, 4):
        data = torch_bytes(torch, tree, pickle_protocol=protocol)
        with tz.lazy_load(io.BytesIO(data)) as ckpt:
            again = load_again(torch, saved(ckpt.root))
        assert check_tree(torch, tz.load(io.BytesIO(torch_bytes(torch, again))), tree) > 0
        if name == "shared memory and shared objects":
            assert_equal_in_torch(torch, again, load_again(torch, data))


# -- writing what a user made --------------------------------------------------------------------

#: Tensors that do not reach all of their memory, of which torch writes the whole; and trees in
#: which torch has one object where arrays are two.
NOT_THE_SAME_BYTES = (
    "coo coalesced", "coo of views", "coo of strided values", "csr of a stored transpose", "csc",
    "csc batched", "csr batched twice", "bsr", "bsr of blocks of one", "bsc", "per tensor view",
    "per channel view", "packed with an offset", "nested of scalars", "a state dict", "jagged",
    "jagged with lengths of known extent", "shared memory and shared objects", "parameters",
)  # fmt: skip


def from_numpy(torch: Any, value: Any) -> Any:
    """Return a torch tree as a user of torchzip makes it from arrays."""
    if isinstance(value, dict):
        return {key: from_numpy(torch, item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_numpy(torch, item) for item in value]
    made = _from_numpy(torch, value)
    if isinstance(value, torch.nn.Parameter):
        return Parameter(made, value.requires_grad)
    return made


def _from_numpy(torch: Any, tensor: Any) -> Any:
    def array(part: Any) -> NDArray[Any]:
        # Over the whole storage, as the tensor lies in it.
        return raw_array(part.detach(), storage_array(torch, part.untyped_storage()))

    if tensor.is_meta:
        name = str(tensor.dtype).removeprefix("torch.")
        grad = tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter)
        return MetaTensor(name, tensor.shape, tensor.stride(), grad)
    if tensor.is_quantized:
        name = str(tensor.dtype).removeprefix("torch.")
        raw = storage_array(torch, tensor.untyped_storage())
        params: tuple[Any, ...]
        if tensor.qscheme() == torch.per_tensor_affine:
            params = (tensor.q_scale(), tensor.q_zero_point())
        else:
            params = (
                array(tensor.q_per_channel_scales()), array(tensor.q_per_channel_zero_points()),
                tensor.q_per_channel_axis(),
            )  # fmt: skip
        if name in ("quint4x2", "quint2x4"):
            packed = raw[tensor.storage_offset() :]
            return QuantizedTensor(packed, *params, torch_dtype=name, shape=tensor.shape)
        return QuantizedTensor(raw_array(tensor, raw), *params)
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.detach()
        return SparseTensor(
            "sparse_coo", array(tensor._indices()), array(tensor._values()), tensor.shape,
            tensor.is_coalesced(),
        )  # fmt: skip
    if tensor.is_nested and tensor.layout == torch.strided:
        tensor = tensor.detach()
        return NestedTensor(
            "strided",
            array(tensor.values()),
            array(tensor._nested_tensor_storage_offsets()),
            sizes=array(tensor._nested_tensor_size()),
            strides=array(tensor._nested_tensor_strides()),
        )
    if tensor.is_nested:
        grad = tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter)
        return NestedTensor(
            "jagged", array(tensor._values), array(tensor._offsets),
            lengths=None if tensor._lengths is None else array(tensor._lengths),
            ragged_idx=tensor._ragged_idx, requires_grad=grad,
        )  # fmt: skip
    layout = str(tensor.layout).removeprefix("torch.")
    if layout in ("sparse_csr", "sparse_bsr"):
        pair = (tensor.crow_indices(), tensor.col_indices())
    elif layout in ("sparse_csc", "sparse_bsc"):
        pair = (tensor.ccol_indices(), tensor.row_indices())
    else:
        return array(tensor)
    values = array(tensor.detach().values())
    return SparseTensor(layout, tuple(map(array, pair)), values, tensor.shape)


@pytest.mark.parametrize("name", [name for name in CASES if name != "attributes"])
def test_written_from_arrays(torch: Any, name: str) -> None:
    """Tensors that a user makes from arrays are written as torch writes its own."""
    tree = CASES[name](torch)
    made = from_numpy(torch, tree)
    data = saved(made)
    again = load_again(torch, data)
    assert check_tree(torch, tz.load(io.BytesIO(data)), tree) > 0
    assert check_tree(torch, made, again) > 0
    if name not in NOT_THE_SAME_BYTES:
        assert_same_bytes(data, torch_bytes(torch, tree))


def test_one_array_in_two_tensors(torch: Any) -> None:
    """Scales that several tensors share are written as torch does: one storage, two tensors."""
    scales, zero_points = np.array([0.5, 0.25]), np.array([0, 1])
    first, second = np.array([[1, 2]] * 2, "int8"), np.array([[3, 4]] * 2, "int8")
    made = [
        QuantizedTensor(first, scales, zero_points, 0),
        QuantizedTensor(second, scales, zero_points, 0),
    ]
    params = torch.from_numpy(scales), torch.from_numpy(zero_points)
    tree = [
        torch._make_per_channel_quantized_tensor(torch.from_numpy(part), *params, 0)
        for part in (first, second)
    ]
    with tz.lazy_load(io.BytesIO(saved(made))) as ckpt:
        assert ckpt.root[0].scale.spec.storage is ckpt.root[1].scale.spec.storage
    check_tree(torch, made, load_again(torch, saved(made)))
    check_tree(torch, tz.load(io.BytesIO(torch_bytes(torch, tree))), tree)


@pytest.mark.parametrize("name", ["coo float32", "per channel qint8", "csc", "nested", "jagged"])
def test_incremental(torch: Any, name: str) -> None:
    """Parts are stored early, and the structure says what they are parts of."""
    tensor = CASES[name](torch)
    data = torch_bytes(torch, tensor)
    file = io.BytesIO()
    with tz.lazy_load(io.BytesIO(data)) as ckpt, tz.incremental_save(file) as out:
        out.save(
            {
                "arrays": out.store_early(from_numpy(torch, tensor)),
                "lazy": out.store_early(ckpt.root),
                "eager": out.store_early(tz.load(io.BytesIO(data))),
                "parameter": out.store_early(Parameter(ckpt.root, False)),
                "late": ckpt.root,
            }
        )
    again = load_again(torch, file.getvalue())
    assert list(again) == ["arrays", "lazy", "eager", "parameter", "late"]
    for held in again.values():
        check_tensor(torch, tz.load(io.BytesIO(data)), held)
    assert isinstance(again["parameter"], torch.nn.Parameter)


@pytest.mark.parametrize("name", ["coo float32", "csr float32", "per channel qint8", "nested"])
def test_casts_leave_the_parts_alone(torch: Any, name: str, tmp_path: Path) -> None:
    """A conversion casts dense tensors, also those that share memory with a part of another."""
    other = CASES[name](torch)
    tree = {"w": torch.ones(3), "other": other}
    if not other.is_quantized:
        tree["values"] = (other._values if "coo" in name else other.values)().detach()
    torch.save(tree, tmp_path / "a.pt")
    report = tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype="bfloat16")
    again = torch.load(tmp_path / "b.pt", weights_only=False)
    assert report.tensors == len(tree)
    told = () if other.is_quantized else ("other (values)",)  # what stays is said
    assert tuple(line.partition(": it stays float32;")[0] for line in report.lost) == told
    assert again["w"].dtype == again.get("values", again["w"]).dtype == torch.bfloat16
    with tz.lazy_load(tmp_path / "b.pt") as ckpt:
        check_tensor(torch, ckpt["other"], other)
    check_tensor(torch, tz.load(tmp_path / "b.pt")["other"], again["other"])
    report = tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", dtype="bfloat16")
    assert any(line.startswith("other: a ") for line in report.lost)
    with tz.lazy_load(tmp_path / "b.safetensors") as ckpt:
        assert set(ckpt) == tree.keys() - {"other"}


# -- random ones -----------------------------------------------------------------------------------


def check_there_and_back(torch: Any, tensor: Any) -> None:
    raw = torch_bytes(torch, tensor)
    with tz.lazy_load(io.BytesIO(raw)) as ckpt:
        check_tensor(torch, ckpt[""], tensor)
        assert_same_bytes(saved(ckpt.root), raw)


@costly
@given(data=st.data())
def test_random_coo(torch: Any, data: st.DataObject) -> None:
    """Any COO tensor is dense as torch makes it."""
    sizes = data.draw(st.lists(st.integers(0, 4), max_size=4))
    sparse = data.draw(st.integers(0, len(sizes)))
    nnz = 0 if 0 in sizes[:sparse] else data.draw(st.integers(0, 12))
    seed = data.draw(st.integers(0, 99))
    dtype = data.draw(st.sampled_from(VALUES))
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack(
        [torch.randint(max(n, 1), (nnz,), generator=generator) for n in sizes[:sparse]]
        or [torch.zeros(nnz).long()]
    )[:sparse]
    values = random_values(torch, dtype, nnz, *sizes[sparse:])
    tensor = torch.sparse_coo_tensor(indices, values, sizes)
    check_there_and_back(torch, tensor)


@costly
@given(
    st.sampled_from(["csr", "csc", "bsr", "bsc"]),
    st.lists(st.integers(1, 3), max_size=2),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.integers(0, 99),
)
def test_random_compressed(
    torch: Any, layout: str, batch: list[int], counts: Any, block: Any, seed: int
) -> None:
    """Any dense tensor made compressed is itself again."""
    generator = torch.Generator().manual_seed(seed)
    blocks = "b" in layout
    step = block if blocks else (1, 1)
    # As many in each batch.
    mask = (torch.rand(counts, generator=generator) > 0.5).expand(*batch, *counts)
    mask = mask.repeat_interleave(step[0], -2).repeat_interleave(step[1], -1)
    dense = torch.randn(mask.shape, generator=generator) * mask
    make = getattr(dense, f"to_sparse_{layout}")
    try:
        tensor = make(block) if blocks else make()
    except RuntimeError:
        return  # torch makes none of some sizes of 0
    check_there_and_back(torch, tensor)


@costly
@given(data=st.data())
def test_random_quantized(torch: Any, data: st.DataObject) -> None:
    """Any quantized tensor has the numbers that torch gives it."""
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    name = data.draw(st.sampled_from(["qint8", "quint8", "qint32"]))
    raw = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}[name]
    bounds = np.iinfo(raw)
    seed = data.draw(st.integers(0, 99))
    ints = np.random.default_rng(seed).integers(bounds.min, bounds.max, shape, raw, endpoint=True)
    zero_points = st.integers(bounds.min, bounds.max)
    scales = st.floats(1e-6, 1e6)
    part = torch.from_numpy(ints)
    if data.draw(st.booleans()):
        scale, zero_point = data.draw(scales), data.draw(zero_points)
        made = QuantizedTensor(ints, scale, zero_point)
        tensor = torch._make_per_tensor_quantized_tensor(part, scale, zero_point)
    else:
        axis = data.draw(st.integers(0, len(shape) - 1))
        count = shape[axis]
        many = np.array(data.draw(st.lists(scales, min_size=count, max_size=count)))
        zeros = np.array(data.draw(st.lists(zero_points, min_size=count, max_size=count)), "int64")
        made = QuantizedTensor(ints, many, zeros, axis)
        tensor = torch._make_per_channel_quantized_tensor(
            part, torch.from_numpy(many), torch.from_numpy(zeros), axis
        )
    check_tensor(torch, made, tensor)
    assert_same_bytes(saved(made), torch_bytes(torch, tensor))


# -- torch's other writers, and classes of their own -----------------------------------------------


@pytest.mark.parametrize(
    "name", ["coo float32", "coo hybrid float64", "csr float32", "per channel qint8"]
)
def test_torchscript(torch: Any, name: str) -> None:
    """The flat arguments of the C++ pickler, read from its ``data.pkl``."""
    tensor = CASES[name](torch)
    file, module = io.BytesIO(), torch.nn.Identity()
    module.register_buffer("x", tensor)
    torch.jit.save(torch.jit.script(module), file)
    records = records_of(file.getvalue())
    storages = {key[5:]: value for key, value in records.items() if key.startswith("data/")}
    data = b.checkpoint(records["data.pkl"], storages)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        values: Iterable[Any] = ckpt.values()
        (made,) = [value for value in values if isinstance(value, OtherTensor)]
        if made.kind == "sparse_coo":
            assert isinstance(made, SparseTensor)
            assert made.is_coalesced is None
            made = made.replace(is_coalesced=False)
        check_tensor(torch, made, tensor)


def test_two_tensor(torch: Any) -> None:
    """A wrapper subclass stays foreign; its inner tensors have names, and torch reads it again."""
    from torch.testing._internal.two_tensor import TwoTensor

    tree = {"two": TwoTensor(torch.arange(4.0), torch.ones(4)), "w": torch.ones(2)}
    data = torch_bytes(torch, tree)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        assert list(ckpt) == ["two.a", "two.b", "w"]
        assert list(ckpt.subclassed) == ["two"]
        assert isinstance(ckpt.root["two"], tz.types.ForeignObject)
        assert ckpt["two.a"].numpy().tolist() == [0, 1, 2, 3]
        assert_same_bytes(saved(ckpt.root), data)
    eager = tz.load(io.BytesIO(data))
    again = load_again(torch, saved(eager))
    assert again["two"].a.tolist() == [0, 1, 2, 3]


def test_distributed_tensor(torch: Any, tmp_path: Path) -> None:
    """So does a DTensor, whose local part is reached, and which no conversion casts."""
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    from torch.distributed.tensor import Replicate, distribute_tensor

    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        weight = distribute_tensor(torch.arange(6.0).reshape(2, 3), mesh, [Replicate()])
        tree = {"weight": weight, "parameter": torch.nn.Parameter(weight), "w": torch.ones(2)}
        torch.save(tree, tmp_path / "a.pt")
    finally:
        distributed.destroy_process_group()
    with tz.lazy_load(tmp_path / "a.pt") as ckpt:
        assert {"weight._local_tensor", "parameter._local_tensor", "w"} <= set(ckpt)
        assert set(ckpt.subclassed) == {"weight", "parameter"}
        assert ckpt["weight._local_tensor"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
        # Its mesh names a device by torch's own constant, so the bytes are not the same again.
        with tz.lazy_load(io.BytesIO(saved(ckpt.root))) as again:
            assert list(again) == list(ckpt)
            assert list(again.subclassed) == list(ckpt.subclassed)
            for name in ckpt:
                assert_same_array(again[name].numpy(), ckpt[name].numpy())
    tz.convert(tmp_path / "a.pt", tmp_path / "c.pt", dtype="float16")
    with tz.lazy_load(tmp_path / "c.pt") as ckpt:
        assert ckpt["w"].torch_dtype == "float16"
        assert ckpt["weight._local_tensor"].torch_dtype == "float32"


def test_quantized_in_a_distributed_checkpoint(torch: Any, tmp_path: Path) -> None:
    """Torch writes it as the one item that it is; that it is not read is said by name."""
    if not torch.distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    from torch.distributed import checkpoint as dcp

    q = torch.quantize_per_tensor(matrix(torch), 0.1, 3, torch.qint8)
    dcp.save({"q": q, "w": torch.ones(2)}, checkpoint_id=tmp_path / "dcp")
    with tz.lazy_load(tmp_path / "dcp") as ckpt:
        assert ckpt["w"].numpy().tolist() == [1, 1]
        with pytest.raises(tz.UnsupportedError, match="a quantized tensor"):
            ckpt["q"].numpy()
    with pytest.raises(tz.UnsupportedError, match="a quantized tensor"):
        tz.load(tmp_path / "dcp")
