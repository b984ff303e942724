"""Sparse, quantized, nested and meta tensors that torch makes, for the tests against it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from tests.torch_oracle import random_bytes, storage_of

Make = Callable[[Any], Any]
CASES: dict[str, Make] = {}


def case(name: str) -> Callable[[Make], Make]:
    """Add a function (torch) -> tensor or tree of tensors to the cases."""

    def add(make: Make) -> Make:
        CASES[name] = make
        return make

    return add


VALUES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64"
).split()


def random_values(t: Any, dtype: str, *shape: int) -> Any:
    generator = t.Generator().manual_seed(7)
    if dtype == "bool":
        return t.rand(shape, generator=generator) > 0.5
    if dtype.startswith("complex"):
        parts = t.randn((*shape, 2), generator=generator, dtype=t.float64)
        return t.view_as_complex(parts).to(getattr(t, dtype))
    made = t.randn(shape, generator=generator) * 50
    return made.to(getattr(t, dtype))


_INDICES = [[0, 1, 1, 0, 1], [2, 0, 0, 1, 0]]


def _of_values(d: str) -> dict[str, Make]:
    return {
        f"coo {d}": lambda t: t.sparse_coo_tensor(_INDICES, random_values(t, d, 5), (2, 3)),
        f"coo hybrid {d}": lambda t: t.sparse_coo_tensor(
            _INDICES, random_values(t, d, 5, 2, 3), (2, 3, 2, 3)
        ),
        f"csr {d}": lambda t: t.sparse_csr_tensor(
            [0, 2, 3], [0, 2, 1], random_values(t, d, 3), (2, 3)
        ),
        f"bsr {d}": lambda t: t.sparse_bsr_tensor(
            [0, 1, 2], [1, 0], random_values(t, d, 2, 2, 3), (4, 6)
        ),
    }


CASES |= {
    "coo coalesced": lambda t: t.sparse_coo_tensor(
        _INDICES, random_values(t, "float32", 5), (2, 3)
    ).coalesce(),
    "coo of one dimension": lambda t: t.sparse_coo_tensor([[0, 4]], t.tensor([-0.0, 2.0]), (5,)),
    "coo 0-d": lambda t: t.sparse_coo_tensor(t.zeros(0, 2).long(), t.tensor([1.0, 2.0]), ()),
    "coo without sparse dimensions": lambda t: t.sparse_coo_tensor(
        t.zeros(0, 2).long(), t.ones(2, 3), (3,)
    ),
    "coo empty": lambda t: t.sparse_coo_tensor(t.zeros(2, 0).long(), t.zeros(0), (4, 5)),
    "coo of size 0": lambda t: t.sparse_coo_tensor(t.zeros(2, 0).long(), t.zeros(0), (0, 5)),
    "coo hybrid of size 0": lambda t: t.sparse_coo_tensor(
        t.zeros(1, 2).long(), t.zeros(2, 0), (3, 0)
    ),
    "coo of expanded values": lambda t: t.sparse_coo_tensor(_INDICES, t.ones(1).expand(5), (2, 3)),
    "coo of strided values": lambda t: t.sparse_coo_tensor(
        t.arange(20).reshape(5, 4).t()[:2, :3], t.arange(12.0).reshape(4, 3).t(), (20, 20, 4)
    ),
    "coo of views": lambda t: t.sparse_coo_tensor(
        t.arange(9)[2:5][None], t.arange(99.0)[7:10], (5,)
    ),
    "coo with negative zeros": lambda t: t.sparse_coo_tensor(
        [[0, 1, 0]], t.tensor([-0.0, -0.0, -0.0]), (3,)
    ),
    "coo with infinities": lambda t: t.sparse_coo_tensor(
        [[0, 1, 2]], t.tensor([float("inf"), -float("inf"), 1]), (3,)
    ),
    "csr with int32 indices": lambda t: t.sparse_csr_tensor(
        t.tensor([0, 1, 2], dtype=t.int32), t.tensor([1, 0], dtype=t.int32), t.ones(2), (2, 3)
    ),
    "csr empty": lambda t: t.sparse_csr_tensor([0, 0, 0], t.zeros(0).long(), t.zeros(0), (2, 3)),
    "csr of size 0": lambda t: t.sparse_csr_tensor([0], t.zeros(0).long(), t.zeros(0), (0, 3)),
    "csr of expanded values": lambda t: t.sparse_csr_tensor(
        [0, 2, 3], [0, 2, 1], t.ones(1).expand(3), (2, 3)
    ),
    "csr batched": lambda t: t.sparse_csr_tensor(
        [[0, 2, 3], [0, 0, 3]], [[0, 2, 1], [0, 1, 2]], random_values(t, "float32", 2, 3), (2, 2, 3)
    ),
    "csr batched twice": lambda t: t.stack([t.stack([t.eye(3), t.eye(3) * 2])] * 2).to_sparse_csr(),
    "csr with dense dimensions": lambda t: t.sparse_csr_tensor(
        [0, 2, 3], [0, 2, 1], random_values(t, "float32", 3, 2, 4), (2, 3, 2, 4)
    ),
    "csr whose columns are not sorted": lambda t: t.sparse_csr_tensor(
        [0, 3, 3], [2, 0, 2], t.tensor([1.5, 2.0, 4.0]), (2, 3), check_invariants=False
    ),
    "csr of bools, twice in a place": lambda t: t.sparse_csr_tensor(
        [0, 2], [0, 0], t.tensor([True, True]), (1, 3), check_invariants=False
    ),
    "csr of a stored transpose": lambda t: t.arange(12.0).reshape(3, 4).t().to_sparse_csr(),
    "csc": lambda t: random_values(t, "float32", 4, 6).relu().to_sparse_csc(),
    "csc batched": lambda t: t.stack([t.eye(3), t.eye(3) * 2]).to_sparse_csc(),
    "csc with dense dimensions": lambda t: t.sparse_csc_tensor(
        [0, 2, 3], [0, 2, 1], random_values(t, "float32", 3, 2), (3, 2, 2)
    ),
    "bsr": lambda t: random_values(t, "float32", 4, 6).relu().to_sparse_bsr((2, 3)),
    "bsr of blocks of one": lambda t: t.eye(3).to_sparse_bsr((1, 1)),
    "bsr batched": lambda t: t.sparse_bsr_tensor(
        [[0, 1, 2], [0, 0, 2]], [[1, 0], [0, 1]], random_values(t, "float32", 2, 2, 2, 3), (2, 4, 6)
    ),
    "bsr with dense dimensions": lambda t: t.sparse_bsr_tensor(
        [0, 1, 2], [1, 0], random_values(t, "float32", 2, 2, 3, 5), (4, 6, 5)
    ),
    "bsc": lambda t: random_values(t, "float32", 4, 6).relu().to_sparse_bsc((2, 3)),
    "bsc batched": lambda t: t.sparse_bsc_tensor(
        [[0, 1, 2], [0, 0, 2]], [[1, 0], [0, 1]], random_values(t, "float32", 2, 2, 3, 2), (2, 6, 4)
    ),
}


_BITS = random_bytes(3, 2000)


def _rebuilt(
    t: Any, data: Any, dtype: Any, size: tuple[int, ...], params: Any, offset: int = 0
) -> Any:
    """Return a quantized tensor over these bytes, as torch's own reader makes it."""
    stride = t.empty(size).stride()
    storage = t.storage.TypedStorage(wrap_storage=storage_of(t, data), dtype=dtype, _internal=True)
    return t._utils._rebuild_qtensor(storage, offset, size, stride, params, False, OrderedDict())


def matrix(t: Any) -> Any:
    return random_values(t, "float32", 4, 6) / 10


def _scales(t: Any) -> Any:
    return t.tensor([0.1, 0.25, 1 / 3, 2.0], dtype=t.float64)


def _of_integers(d: str) -> dict[str, Make]:
    return {
        f"per tensor {d}": lambda t: t.quantize_per_tensor(matrix(t), 0.1, 3, getattr(t, d)),
        f"per channel {d}": lambda t: t.quantize_per_channel(
            matrix(t), _scales(t), t.tensor([0, 1, 5, 127]), 0, getattr(t, d)
        ),
    }


def _of_float_parameters(d: str, n: int) -> dict[str, Make]:
    return {
        f"float parameters {d} of {n}": lambda t: t.quantize_per_channel(
            random_values(t, "float32", 4, n) / 20,
            _scales(t).float(),
            t.tensor([0.3, 0.0, 2.5, 1.0]),
            0,
            getattr(t, d),
        ),
    }


for _dtype in VALUES:
    CASES |= _of_values(_dtype)
for _dtype in ("qint8", "quint8", "qint32"):
    CASES |= _of_integers(_dtype)
for _dtype in ("qint8", "quint8", "quint4x2", "quint2x4"):
    for _columns in (1, 5, 6, 7):
        CASES |= _of_float_parameters(_dtype, _columns)

CASES |= {
    "per tensor view": lambda t: t.quantize_per_tensor(matrix(t), 0.1, 3, t.qint8)[1:, 2::2],
    "per tensor transposed": lambda t: t.quantize_per_tensor(matrix(t), 0.1, 3, t.quint8).t(),
    "per tensor expanded": lambda t: t.quantize_per_tensor(matrix(t), 0.1, 3, t.quint8).expand(
        2, 4, 6
    ),
    "per tensor channels last": lambda t: t.quantize_per_tensor(
        random_values(t, "float32", 2, 3, 4, 5).to(memory_format=t.channels_last), 0.1, 3, t.qint8
    ),
    "per tensor 0-d": lambda t: t.quantize_per_tensor(t.tensor(1.5), 0.1, 3, t.qint8),
    "per tensor empty": lambda t: t.quantize_per_tensor(t.zeros(0, 3), 0.1, 3, t.qint8),
    "per channel view": lambda t: t.quantize_per_channel(
        matrix(t), _scales(t), t.tensor([0, 1, 2, 3]), 0, t.qint8
    )[:, 1:4],
    "per channel of the last axis": lambda t: t.quantize_per_channel(
        random_values(t, "float32", 2, 3, 4), _scales(t), t.tensor([0, 1, 2, 3]), 2, t.quint8
    ),
    "per channel empty": lambda t: t.quantize_per_channel(
        t.zeros(0, 4), _scales(t), t.tensor([0, 1, 2, 3]), 1, t.quint8
    ),
    "packed of odd numbers of elements": lambda t: t.quantize_per_channel(
        random_values(t, "float32", 3, 3, 3) / 20, t.ones(3), t.zeros(3), 1, t.quint4x2
    ),
    "packed per tensor": lambda t: _rebuilt(
        t, bytes(range(40, 50)), t.quint4x2, (3, 5), (t.per_tensor_affine, 0.1, 3)
    ),
    "packed with an offset": lambda t: _rebuilt(
        t,
        bytes(range(40, 60)),
        t.quint2x4,
        (5, 3),
        (t.per_channel_affine, t.ones(3), t.zeros(3), 1),
        offset=3,
    ),
    "per tensor of all bits": lambda t: _rebuilt(
        t, _BITS, t.qint32, (500,), (t.per_tensor_affine, 1 / 3, -99_999)
    ),
    "per channel of all bits": lambda t: _rebuilt(
        t,
        _BITS,
        t.qint32,
        (5, 100),
        (
            t.per_channel_affine,
            t.tensor([0.1, 1 / 3, 1e300, 7, 0], dtype=t.float64),
            t.tensor([1, -(2**31), 2**31 - 1, 12_345_678, 0]),
            0,
        ),
    ),
    "meta": lambda t: t.empty(2, 3, device="meta"),
    "meta with gradient": lambda t: t.empty(2, 3, device="meta", requires_grad=True),
    "meta strided": lambda t: t.empty_strided((2, 3), (0, 7), device="meta", dtype=t.bfloat16),
    "meta 0-d": lambda t: t.empty((), device="meta", dtype=t.bool),
    "meta float8": lambda t: t.empty(0, 3, device="meta", dtype=t.float8_e5m2),
    "meta subbyte": lambda t: t.empty(2, device="meta", dtype=t.uint4),
}


def _strided(t: Any) -> Any:
    return t.nested.nested_tensor([t.arange(6.0).reshape(2, 3), t.ones(4, 3)])


CASES |= {
    "nested": _strided,
    "nested transposed": lambda t: _strided(t).transpose(1, 2),
    "nested selected": lambda t: _strided(t).select(2, 1),
    "nested chunk": lambda t: t.nested.nested_tensor(
        [t.arange(8.0).reshape(2, 4), t.ones(4, 4)]
    ).chunk(2, -1)[1],
    "nested of scalars": lambda t: t.nested.nested_tensor([t.tensor(1.0), t.tensor(2.0)]),
    "nested with empty ones": lambda t: t.nested.nested_tensor(
        [t.zeros(0, 3), t.ones(2, 3), t.zeros(1, 0)]
    ),
    "nested bfloat16": lambda t: t.nested.nested_tensor([t.ones(2), t.zeros(3)], dtype=t.bfloat16),
    "jagged": lambda t: t.nested.nested_tensor(
        [t.arange(6.0).reshape(2, 3), t.ones(4, 3)], layout=t.jagged
    ),
    "jagged from offsets": lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(10.0), t.tensor([0, 4, 4, 10])
    ),
    "jagged with lengths": lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(10, 2), t.tensor([0, 4, 8]), t.tensor([2, 3])
    ),
    "jagged with lengths of known extent": lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(10, 2),
        t.tensor([0, 4, 8]),
        t.tensor([2, 3]),
        min_seqlen=2,
        max_seqlen=3,
    ),
    "jagged on another axis": lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(2, 10), t.tensor([0, 4, 10]), jagged_dim=2
    ),
    "jagged transposed": lambda t: t.nested.nested_tensor_from_jagged(
        t.arange(20.0).reshape(10, 2), t.tensor([0, 4, 10])
    ).transpose(1, 2),
    "jagged that needs a gradient": lambda t: (
        t.nested.nested_tensor_from_jagged(t.arange(10.0), t.tensor([0, 4, 10]))
        .detach()
        .requires_grad_()
    ),
}


@case("parameters")
def _parameters(t: Any) -> Any:
    return {
        "coo": t.nn.Parameter(
            t.sparse_coo_tensor(_INDICES, random_values(t, "float32", 5), (2, 3))
        ),
        "csr": t.nn.Parameter(t.eye(3).to_sparse_csr(), requires_grad=False),
        "quantized": t.nn.Parameter(
            t.quantize_per_tensor(matrix(t), 0.1, 3, t.qint8), requires_grad=False
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
        "coo": t.sparse_coo_tensor(_INDICES, random_values(t, "float32", 5), (2, 3)),
        "csr": t.eye(3).to_sparse_csr(),
        "quantized": t.quantize_per_tensor(matrix(t), 0.1, 3, t.qint8),
        "per channel": t.quantize_per_channel(
            matrix(t), _scales(t), t.tensor([0, 1, 2, 3]), 0, t.qint8
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
    q = t.quantize_per_tensor(matrix(t), 0.1, 3, t.qint8)
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
    module.register_buffer("q", t.quantize_per_tensor(matrix(t), 0.1, 3, t.qint8))
    module.weight = t.nn.Parameter(t.ones(3))
    return module.state_dict()
