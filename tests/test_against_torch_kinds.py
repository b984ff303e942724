"""Sparse, quantized, nested and meta tensors, with torch as the oracle in both directions."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
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
from tests.sampling import costly
from tests.saved import records_of, saved
from tests.torch_oracle import (
    asks_torch,
    random_bytes,
    raw_array,
    storage_array,
    storage_of,
    torch_bytes,
)
from torchzip.types import (
    MetaTensor,
    NestedTensor,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    SparseTensor,
)

pytestmark = asks_torch(":UserWarning", ":FutureWarning", ":DeprecationWarning")

Make = Callable[[Any], Any]
CASES: dict[str, Make] = {}


def case(name: str) -> Callable[[Make], Make]:
    """Add a function (torch) -> tensor or tree of tensors to the cases."""

    def add(make: Make) -> Make:
        CASES[name] = make
        return make

    return add


# -- what torch is asked to write ------------------------------------------------------------

VALUES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64"
).split()


def _values(t: Any, dtype: str, *shape: int) -> Any:
    generator = t.Generator().manual_seed(7)
    if dtype == "bool":
        return t.rand(shape, generator=generator) > 0.5
    if dtype.startswith("complex"):
        parts = t.randn((*shape, 2), generator=generator, dtype=t.float64)
        return t.view_as_complex(parts).to(getattr(t, dtype))
    made = t.randn(shape, generator=generator) * 50
    return made.to(getattr(t, dtype))


_INDICES = [[0, 1, 1, 0, 1], [2, 0, 0, 1, 0]]


def _of_values(d: str) -> None:
    case(f"coo {d}")(lambda t: t.sparse_coo_tensor(_INDICES, _values(t, d, 5), (2, 3)))
    case(f"coo hybrid {d}")(
        lambda t: t.sparse_coo_tensor(_INDICES, _values(t, d, 5, 2, 3), (2, 3, 2, 3))
    )
    case(f"csr {d}")(lambda t: t.sparse_csr_tensor([0, 2, 3], [0, 2, 1], _values(t, d, 3), (2, 3)))
    case(f"bsr {d}")(
        lambda t: t.sparse_bsr_tensor([0, 1, 2], [1, 0], _values(t, d, 2, 2, 3), (4, 6))
    )


case("coo coalesced")(
    lambda t: t.sparse_coo_tensor(_INDICES, _values(t, "float32", 5), (2, 3)).coalesce()
)
case("coo of one dimension")(lambda t: t.sparse_coo_tensor([[0, 4]], t.tensor([-0.0, 2.0]), (5,)))
case("coo 0-d")(lambda t: t.sparse_coo_tensor(t.zeros(0, 2).long(), t.tensor([1.0, 2.0]), ()))
case("coo without sparse dimensions")(
    lambda t: t.sparse_coo_tensor(t.zeros(0, 2).long(), t.ones(2, 3), (3,))
)
case("coo empty")(lambda t: t.sparse_coo_tensor(t.zeros(2, 0).long(), t.zeros(0), (4, 5)))
case("coo of size 0")(lambda t: t.sparse_coo_tensor(t.zeros(2, 0).long(), t.zeros(0), (0, 5)))
case("coo hybrid of size 0")(
    lambda t: t.sparse_coo_tensor(t.zeros(1, 2).long(), t.zeros(2, 0), (3, 0))
)
case("coo of expanded values")(lambda t: t.sparse_coo_tensor(_INDICES, t.ones(1).expand(5), (2, 3)))
case("coo of strided values")(
    lambda t: t.sparse_coo_tensor(
        t.arange(20).reshape(5, 4).t()[:2, :3], t.arange(12.0).reshape(4, 3).t(), (20, 20, 4)
    )
)
case("coo of views")(
    lambda t: t.sparse_coo_tensor(t.arange(9)[2:5][None], t.arange(99.0)[7:10], (5,))
)
case("coo with negative zeros")(
    lambda t: t.sparse_coo_tensor([[0, 1, 0]], t.tensor([-0.0, -0.0, -0.0]), (3,))
)
case("coo with infinities")(
    lambda t: t.sparse_coo_tensor([[0, 1, 2]], t.tensor([float("inf"), -float("inf"), 1]), (3,))
)
case("csr with int32 indices")(
    lambda t: t.sparse_csr_tensor(
        t.tensor([0, 1, 2], dtype=t.int32), t.tensor([1, 0], dtype=t.int32), t.ones(2), (2, 3)
    )
)
case("csr empty")(lambda t: t.sparse_csr_tensor([0, 0, 0], t.zeros(0).long(), t.zeros(0), (2, 3)))
case("csr of size 0")(lambda t: t.sparse_csr_tensor([0], t.zeros(0).long(), t.zeros(0), (0, 3)))
case("csr of expanded values")(
    lambda t: t.sparse_csr_tensor([0, 2, 3], [0, 2, 1], t.ones(1).expand(3), (2, 3))
)
case("csr batched")(
    lambda t: t.sparse_csr_tensor(
        [[0, 2, 3], [0, 0, 3]], [[0, 2, 1], [0, 1, 2]], _values(t, "float32", 2, 3), (2, 2, 3)
    )
)
case("csr batched twice")(
    lambda t: t.stack([t.stack([t.eye(3), t.eye(3) * 2])] * 2).to_sparse_csr()
)
case("csr with dense dimensions")(
    lambda t: t.sparse_csr_tensor(
        [0, 2, 3], [0, 2, 1], _values(t, "float32", 3, 2, 4), (2, 3, 2, 4)
    )
)
case("csr whose columns are not sorted")(
    lambda t: t.sparse_csr_tensor(
        [0, 3, 3], [2, 0, 2], t.tensor([1.5, 2.0, 4.0]), (2, 3), check_invariants=False
    )
)
case("csr of bools, twice in a place")(
    lambda t: t.sparse_csr_tensor(
        [0, 2], [0, 0], t.tensor([True, True]), (1, 3), check_invariants=False
    )
)
case("csr of a stored transpose")(lambda t: t.arange(12.0).reshape(3, 4).t().to_sparse_csr())
case("csc")(lambda t: _values(t, "float32", 4, 6).relu().to_sparse_csc())
case("csc batched")(lambda t: t.stack([t.eye(3), t.eye(3) * 2]).to_sparse_csc())
case("csc with dense dimensions")(
    lambda t: t.sparse_csc_tensor([0, 2, 3], [0, 2, 1], _values(t, "float32", 3, 2), (3, 2, 2))
)
case("bsr")(lambda t: _values(t, "float32", 4, 6).relu().to_sparse_bsr((2, 3)))
case("bsr of blocks of one")(lambda t: t.eye(3).to_sparse_bsr((1, 1)))
case("bsr batched")(
    lambda t: t.sparse_bsr_tensor(
        [[0, 1, 2], [0, 0, 2]], [[1, 0], [0, 1]], _values(t, "float32", 2, 2, 2, 3), (2, 4, 6)
    )
)
case("bsr with dense dimensions")(
    lambda t: t.sparse_bsr_tensor([0, 1, 2], [1, 0], _values(t, "float32", 2, 2, 3, 5), (4, 6, 5))
)
case("bsc")(lambda t: _values(t, "float32", 4, 6).relu().to_sparse_bsc((2, 3)))
case("bsc batched")(
    lambda t: t.sparse_bsc_tensor(
        [[0, 1, 2], [0, 0, 2]], [[1, 0], [0, 1]], _values(t, "float32", 2, 2, 3, 2), (2, 6, 4)
    )
)


_BITS = random_bytes(3, 2000)


def _rebuilt(
    t: Any, data: Any, dtype: Any, size: tuple[int, ...], params: Any, offset: int = 0
) -> Any:
    """Return a quantized tensor over these bytes, as torch's own reader makes it."""
    stride = t.empty(size).stride()
    storage = t.storage.TypedStorage(wrap_storage=storage_of(t, data), dtype=dtype, _internal=True)
    return t._utils._rebuild_qtensor(storage, offset, size, stride, params, False, OrderedDict())


def _x(t: Any) -> Any:
    return _values(t, "float32", 4, 6) / 10


def _scales(t: Any) -> Any:
    return t.tensor([0.1, 0.25, 1 / 3, 2.0], dtype=t.float64)


def _of_integers(d: str) -> None:
    case(f"per tensor {d}")(lambda t: t.quantize_per_tensor(_x(t), 0.1, 3, getattr(t, d)))
    case(f"per channel {d}")(
        lambda t: t.quantize_per_channel(
            _x(t), _scales(t), t.tensor([0, 1, 5, 127]), 0, getattr(t, d)
        )
    )


def _of_float_parameters(d: str, n: int) -> None:
    case(f"float parameters {d} of {n}")(
        lambda t: t.quantize_per_channel(
                _values(t, "float32", 4, n) / 20,
                _scales(t).float(), t.tensor([0.3, 0.0, 2.5, 1.0]), 0, getattr(t, d),
            )
    )  # fmt: skip


for _dtype in VALUES:
    _of_values(_dtype)
for _dtype in ("qint8", "quint8", "qint32"):
    _of_integers(_dtype)
for _dtype in ("qint8", "quint8", "quint4x2", "quint2x4"):
    for _columns in (1, 5, 6, 7):
        _of_float_parameters(_dtype, _columns)

case("per tensor view")(lambda t: t.quantize_per_tensor(_x(t), 0.1, 3, t.qint8)[1:, 2::2])
case("per tensor transposed")(lambda t: t.quantize_per_tensor(_x(t), 0.1, 3, t.quint8).t())
case("per tensor expanded")(
    lambda t: t.quantize_per_tensor(_x(t), 0.1, 3, t.quint8).expand(2, 4, 6)
)
case("per tensor channels last")(
    lambda t: t.quantize_per_tensor(
        _values(t, "float32", 2, 3, 4, 5).to(memory_format=t.channels_last), 0.1, 3, t.qint8
    )
)
case("per tensor 0-d")(lambda t: t.quantize_per_tensor(t.tensor(1.5), 0.1, 3, t.qint8))
case("per tensor empty")(lambda t: t.quantize_per_tensor(t.zeros(0, 3), 0.1, 3, t.qint8))
case("per channel view")(
    lambda t: t.quantize_per_channel(_x(t), _scales(t), t.tensor([0, 1, 2, 3]), 0, t.qint8)[:, 1:4]
)
case("per channel of the last axis")(
    lambda t: t.quantize_per_channel(
        _values(t, "float32", 2, 3, 4), _scales(t), t.tensor([0, 1, 2, 3]), 2, t.quint8
    )
)
case("per channel empty")(
    lambda t: t.quantize_per_channel(t.zeros(0, 4), _scales(t), t.tensor([0, 1, 2, 3]), 1, t.quint8)
)
case("packed of odd numbers of elements")(
    lambda t: t.quantize_per_channel(
        _values(t, "float32", 3, 3, 3) / 20, t.ones(3), t.zeros(3), 1, t.quint4x2
    )
)
case("packed per tensor")(
    lambda t: _rebuilt(t, bytes(range(40, 50)), t.quint4x2, (3, 5), (t.per_tensor_affine, 0.1, 3))
)
case("packed with an offset")(
    lambda t: _rebuilt(
        t, bytes(range(40, 60)), t.quint2x4, (5, 3),
        (t.per_channel_affine, t.ones(3), t.zeros(3), 1), offset=3,
    )
)  # fmt: skip
case("per tensor of all bits")(
    lambda t: _rebuilt(t, _BITS, t.qint32, (500,), (t.per_tensor_affine, 1 / 3, -99_999))
)
case("per channel of all bits")(
    lambda t: _rebuilt(
        t, _BITS, t.qint32, (5, 100),
        (t.per_channel_affine, t.tensor([0.1, 1 / 3, 1e300, 7, 0], dtype=t.float64),
         t.tensor([1, -(2**31), 2**31 - 1, 12_345_678, 0]), 0),
    )
)  # fmt: skip
case("meta")(lambda t: t.empty(2, 3, device="meta"))
case("meta with gradient")(lambda t: t.empty(2, 3, device="meta", requires_grad=True))
case("meta strided")(lambda t: t.empty_strided((2, 3), (0, 7), device="meta", dtype=t.bfloat16))
case("meta 0-d")(lambda t: t.empty((), device="meta", dtype=t.bool))
case("meta float8")(lambda t: t.empty(0, 3, device="meta", dtype=t.float8_e5m2))
case("meta subbyte")(lambda t: t.empty(2, device="meta", dtype=t.uint4))


def _strided(t: Any) -> Any:
    return t.nested.nested_tensor([t.arange(6.0).reshape(2, 3), t.ones(4, 3)])


case("nested")(_strided)
case("nested transposed")(lambda t: _strided(t).transpose(1, 2))
case("nested selected")(lambda t: _strided(t).select(2, 1))
case("nested chunk")(
    lambda t: t.nested.nested_tensor([t.arange(8.0).reshape(2, 4), t.ones(4, 4)]).chunk(2, -1)[1]
)
case("nested of scalars")(lambda t: t.nested.nested_tensor([t.tensor(1.0), t.tensor(2.0)]))
case("nested with empty ones")(
    lambda t: t.nested.nested_tensor([t.zeros(0, 3), t.ones(2, 3), t.zeros(1, 0)])
)
case("nested bfloat16")(lambda t: t.nested.nested_tensor([t.ones(2), t.zeros(3)], dtype=t.bfloat16))
case("jagged")(
    lambda t: t.nested.nested_tensor([t.arange(6.0).reshape(2, 3), t.ones(4, 3)], layout=t.jagged)
)
case("jagged from offsets")(
    lambda t: t.nested.nested_tensor_from_jagged(t.arange(10.0), t.tensor([0, 4, 4, 10]))
)
case("jagged with lengths")(
    lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(10, 2), t.tensor([0, 4, 8]), t.tensor([2, 3])
    )
)
case("jagged with lengths of known extent")(
    lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(10, 2), t.tensor([0, 4, 8]), t.tensor([2, 3]),
        min_seqlen=2, max_seqlen=3,
    )
)  # fmt: skip
case("jagged on another axis")(
    lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(2, 10), t.tensor([0, 4, 10]), jagged_dim=2
    )
)
case("jagged transposed")(
    lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(10, 2), t.tensor([0, 4, 10])
    ).transpose(1, 2)
)
case("jagged that needs a gradient")(
    lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(10.0), t.tensor([0, 4, 10])
    ).detach().requires_grad_()
)  # fmt: skip


@case("parameters")
def _parameters(t: Any) -> Any:
    return {
        "coo": t.nn.Parameter(t.sparse_coo_tensor(_INDICES, _values(t, "float32", 5), (2, 3))),
        "csr": t.nn.Parameter(t.eye(3).to_sparse_csr(), requires_grad=False),
        "quantized": t.nn.Parameter(
            t.quantize_per_tensor(_x(t), 0.1, 3, t.qint8), requires_grad=False
        ),
        "meta": t.nn.Parameter(t.empty(3, device="meta")),
        "nested": t.nn.Parameter(_strided(t)),
        "jagged": t.nn.Parameter(
            t.nested.nested_tensor_from_jagged(t.arange(10.0), t.tensor([0, 4, 10]))
        ),
    }


@case("attributes")
def _attributes(t: Any) -> Any:
    tree = {
        "coo": t.sparse_coo_tensor(_INDICES, _values(t, "float32", 5), (2, 3)),
        "csr": t.eye(3).to_sparse_csr(),
        "quantized": t.quantize_per_tensor(_x(t), 0.1, 3, t.qint8),
        "per channel": t.quantize_per_channel(
            _x(t), _scales(t), t.tensor([0, 1, 2, 3]), 0, t.qint8
        ),
        "meta": t.empty(3, device="meta"),
        "nested": _strided(t),
        "parameter": t.nn.Parameter(t.eye(3).to_sparse()),
    }
    for name, tensor in tree.items():
        tensor.note = {"name": name, "tensor": t.ones(2)}
    return tree


@case("shared memory and shared objects")
def _shared(t: Any) -> Any:
    values, indices = t.arange(5.0), t.tensor(_INDICES)
    first = t.sparse_coo_tensor(indices, values, (2, 3))
    q = t.quantize_per_tensor(_x(t), 0.1, 3, t.qint8)
    nested = _strided(t)
    return {
        "values": values,
        "first": first,
        "second": t.sparse_coo_tensor(indices, values, (4, 4)),
        "again": first,
        "q": q,
        "row": q[1],
        "nested": [nested, nested.detach(), nested],
    }


@case("a state dict")
def _state(t: Any) -> Any:
    module = t.nn.Module()
    module.register_buffer("adjacency", t.eye(4).to_sparse_csr())
    module.register_buffer("graph", t.eye(4).to_sparse())
    module.register_buffer("q", t.quantize_per_tensor(_x(t), 0.1, 3, t.qint8))
    module.weight = t.nn.Parameter(t.ones(3))
    return module.state_dict()


# -- what torch reads -----------------------------------------------------------------------------


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
        assert ckpt["0"].scale.spec.storage is ckpt["1"].scale.spec.storage
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
    values = _values(torch, dtype, nnz, *sizes[sparse:])
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
        (made,) = [value for value in ckpt.values() if isinstance(value, OtherTensor)]
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

    q = torch.quantize_per_tensor(_x(torch), 0.1, 3, torch.qint8)
    dcp.save({"q": q, "w": torch.ones(2)}, checkpoint_id=tmp_path / "dcp")
    with tz.lazy_load(tmp_path / "dcp") as ckpt:
        assert ckpt["w"].numpy().tolist() == [1, 1]
        with pytest.raises(tz.UnsupportedError, match="a quantized tensor"):
            ckpt["q"].numpy()
    with pytest.raises(tz.UnsupportedError, match="a quantized tensor"):
        tz.load(tmp_path / "dcp")
