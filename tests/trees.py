"""Trees for the tests against torch.

`CASES` maps names to functions that take the torch module and return a tree, so the names are known
without torch. `tests.torch_oracle.to_torchzip` says any such tree in torchzip's words. `TORCH_ONLY`
are trees with values that only torch can make: they are read, and saved again from what was read.
tests/random_trees.py makes endlessly many more.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import pathlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.picklable import DictSubclass, InItsArguments, ListSubclass, Plain
from tests.torch_oracle import (
    TENSOR_DTYPES,
    TYPED_STORAGES,
    array_dtype,
    random_bytes,
    storage_of,
    tensor,
    typed_storage,
    view,
)
from tests.value_trees import VALUES

Make = Callable[[Any], Any]

CASES: dict[str, Make] = {}


def _case(name: str, make: Make) -> None:
    assert name not in CASES
    CASES[name] = make


def case(make: Make) -> Make:
    """Add a function to `CASES` under its name."""
    _case(make.__name__.strip("_"), make)
    return make


def torch_only(make: Make) -> Make:
    """Add a function to `TORCH_ONLY` under its name."""
    TORCH_ONLY[make.__name__.strip("_")] = make
    return make


def _dtype_cases(dtype: str) -> None:
    _case(f"{dtype}-vector", lambda t: tensor(t, dtype, (7,)))
    _case(f"{dtype}-scalar", lambda t: {"x": tensor(t, dtype, ())})
    _case(f"{dtype}-empty", lambda t: [tensor(t, dtype, (0,)), tensor(t, dtype, (2, 0, 3))])
    _case(f"{dtype}-transposed", lambda t: tensor(t, dtype, (3, 4), (1, 3)))
    _case(f"{dtype}-expanded", lambda t: tensor(t, dtype, (3, 4), (0, 1)))
    _case(f"{dtype}-deep", lambda t: tensor(t, dtype, (2, 1, 3, 2, 1)))
    _case(
        f"{dtype}-parameter",
        lambda t: t.nn.Parameter(tensor(t, dtype, (2, 2)), requires_grad=False),
    )

    def views(t: Any) -> Any:
        base = tensor(t, dtype, (24,))
        storage = base.untyped_storage()
        part = view(t, dtype, storage, (3, 2), (4, 1), 5)
        return {
            "base": base,
            "part": part,
            "again": part,
            "all": view(t, dtype, storage, (2, 3, 4), (12, 4, 1)),
        }

    _case(f"{dtype}-views", views)


for _name in TENSOR_DTYPES:
    _dtype_cases(_name)

SIZES = (0, 1, 2, 3, 4, 999, 1000, 1001, 1999, 2000, 2001)
CONTAINERS: dict[str, Callable[[int], Any]] = {
    "list": lambda n: list(range(n)),
    "tuple": lambda n: tuple(range(n)),
    "dict": lambda n: {i: str(i) for i in range(n)},
    "OrderedDict": lambda n: OrderedDict((f"k{i}", i) for i in range(n)),
    "set": lambda n: set(range(n)),
    "frozenset": lambda n: frozenset(range(n)),
    "Counter": lambda n: Counter({f"k{i}": i for i in range(n)}),
    "list subclass": lambda n: ListSubclass(range(n)),
    "dict subclass": lambda n: DictSubclass((i, None) for i in range(n)),
    "deque": lambda n: deque(range(n)),
    "defaultdict": lambda n: defaultdict(list, ((i, [i]) for i in range(n))),
}


def _container_case(kind: str, make: Callable[[int], Any], size: int) -> None:
    _case(f"{kind} of {size}", lambda t: make(size))
    if size <= 1001 and kind in ("list", "tuple", "dict", "OrderedDict"):
        _case(f"nested {kind} of {size}", lambda t: [make(size), {"x": make(size)}])


for _kind, _make in CONTAINERS.items():
    for _count in SIZES:
        _container_case(_kind, _make, _count)


# Sharing and recursion.


CASES |= {
    "same_tensor_twice": lambda t: {"a": (x := tensor(t, "float32", (3,))), "b": [x, (x,)]},
    "two_tensors_on_one_storage": lambda t: {
        "a": (x := tensor(t, "float32", (6,))),
        "b": x.view(2, 3), "c": x.view(3, 2).t(), "d": x[:], "e": x[5:], "f": x[2],
    },
    "view_before_its_base": lambda t: [
        (x := tensor(t, "int16", (4, 5)))[1:3, 2:4], x[::2, ::3], x,
    ],
    "halves_that_lie_side_by_side": lambda t: [(x := tensor(t, "float64", (8, 3)))[4:], x[:4]],
}  # fmt: skip


@case
def _overlapping_windows(t: Any) -> Any:
    x = tensor(t, "uint8", (100,))
    return [x[i : i + 20] for i in range(0, 100, 10)]


@case
def _columns_and_rows_with_base(t: Any) -> Any:
    x = tensor(t, "float16", (5, 7))
    return {"columns": x.unbind(1), "rows": list(x.unbind(0)), "diagonal": x.diagonal(), "x": x}


@case
def _different_dtypes_that_count_as_bytes(t: Any) -> Any:
    base = tensor(t, "uint8", (16,))
    storage = base.untyped_storage()
    return [
        base,
        view(t, "uint16", storage, (8,), (1,)),
        view(t, "float8_e5m2", storage, (4,), (1,), 2),
        view(t, "uint64", storage, (2,), (1,)),
        storage,
    ]


@case
def _list_in_itself(t: Any) -> Any:
    x: list[Any] = [1]
    x.append(x)
    return x


@case
def _dict_in_itself(t: Any) -> Any:
    x: dict[str, Any] = {"a": 1}
    x["self"] = x
    return [x, x]


@case
def _ordered_dict_in_itself(t: Any) -> Any:
    x: OrderedDict[str, Any] = OrderedDict()
    x["self"] = x
    return x


def _tuple_in_itself(size: int) -> Make:
    def make(t: Any) -> Any:
        inner: list[Any] = []
        outer = (inner, *range(size - 1))
        inner.append(outer)
        return [outer, inner]

    return make


for _count in (1, 2, 3, 4, 5, 1001):
    _case(f"tuple of {_count} in itself", _tuple_in_itself(_count))


@case
def _tuple_in_itself_through_a_dict(t: Any) -> Any:
    inner: dict[str, Any] = {}
    outer = (tensor(t, "float32", (2,)), inner)
    inner["outer"] = outer
    return outer


@case
def _ordered_dict_with_attributes(t: Any) -> Any:
    x: Any = OrderedDict(a=1)
    x.extra = "extra"
    x.itself = x
    return [x, x]


@case
def _object_in_itself(t: Any) -> Any:
    x = Plain(name="x")
    x.__dict__["me"] = x
    return x


@case
def _shared_containers(t: Any) -> Any:
    a: list[Any] = []
    b = {"a": a}
    c = (a, b)
    d = OrderedDict(c=c)
    return [a, b, c, d, (c, d), a, {"d": d}]


@case
def _shared_values_that_are_never_memoized(t: Any) -> Any:
    number, real, empty = 2**70, 0.1, ()
    return [number, number, real, real, empty, empty, None, None, True, True]


@case
def _deep(t: Any) -> Any:
    x: Any = tensor(t, "float32", (1,))
    for depth in range(60):
        x = [x] if depth % 3 else {"x": (x,)}
    return x


@case
def _memo_beyond_255(t: Any) -> Any:
    strings = [f"s{i}" for i in range(300)]
    return [strings, strings[::-1], strings[250:260]]


@case
def _memo_of_thousands(t: Any) -> Any:
    lists: list[Any] = [[] for _ in range(2000)]
    return [lists, lists[250:260], tensor(t, "float32", (2,)), tensor(t, "float32", (2,))]


_case("parts_of_split", lambda t: list(tensor(t, "float32", (10, 2)).split(3)))
_case(
    "many_tensors_share_all_dtypes",
    lambda t: [{name: tensor(t, name, (i,)) for name in TENSOR_DTYPES} for i in range(1, 6)],
)
_case("object_in_its_arguments", lambda t: InItsArguments())
_case(
    "equal_but_not_the_same",
    lambda t: [[1], [1], (1, [2]), (1, [2]), "".join(["ab", "c"]), "".join(["ab", "c"]), {}, {}],
)


# Layouts.

LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None, int]] = {
    "size-1 dimensions with odd strides": ((1, 3, 1), (77, 1, 5), 0),
    "size 1 and stride 0": ((1,), (0,), 0),
    "size 1 and a huge stride": ((1, 2), (2**40, 1), 0),
    "scalar with an offset": ((), (), 0),
    "expanded": ((4, 3), (0, 1), 0),
    "expanded twice": ((4, 3, 2), (0, 0, 1), 0),
    "expanded scalar": ((5, 5), (0, 0), 0),
    "windows": ((4, 3), (1, 1), 0),
    "column-major": ((3, 4, 5), (1, 3, 12), 0),
    "channels last": ((2, 3, 4, 5), (60, 1, 15, 3), 0),
    "permuted": ((4, 2, 3), (1, 12, 4), 0),
    "7 dimensions": ((1, 2, 1, 2, 1, 2, 3), None, 0),
    "20 dimensions": ((1,) * 20, None, 0),
    "64 dimensions": ((1,) * 64, None, 0),
    "empty with strides": ((0, 3), (3, 1), 0),
    "empty in the middle": ((3, 0, 2), None, 0),
    "256 elements": ((256,), None, 0),
    "65536 elements": ((65536,), None, 0),
}


def _layout_case(name: str, dtype: str) -> None:
    _case(
        f"{name}, {dtype}",
        lambda t: [
            tensor(t, dtype, *LAYOUTS[name]),
            {"again": tensor(t, dtype, *LAYOUTS[name], seed=1)},
        ],
    )


for _name in LAYOUTS:
    for _dtype in ("float32", "bits16"):
        _layout_case(_name, _dtype)


CASES |= {
    "expanded_with_base": lambda t: {
        "x": (x := tensor(t, "float32", (3, 1))),
        "wide": x.expand(3, 1000), "deep": x.expand(2, 3, 1),
    },
    "unfolded": lambda t: [(x := tensor(t, "float32", (20,))).unfold(0, 5, 2), x],
}  # fmt: skip


# Payloads.

for _length in (3, 4, 7, 8, 9, 12, 64, 100):
    _case(
        f"payload of {_length} bytes that begins like a descriptor",
        functools.partial(
            lambda t, n: [
                view(t, "uint8", storage_of(t, (b"PK\x07\x08" + bytes(range(1, 100)))[:n]),
                     (n,), (1,))
            ],
            n=_length,
        ),
    )  # fmt: skip


@case
def _large_payload_with_a_descriptor_in_each_block(t: Any) -> Any:
    data = bytearray(random_bytes(5, 5 << 20))
    for start in range(0, len(data), 1 << 12):
        data[start : start + 4] = b"PK\x07\x08"
    storage = storage_of(t, data)
    return [view(t, "uint8", storage, (len(data),), (1,)), tensor(t, "float32", (3,))]


@case
def _payload_like_other_records(t: Any) -> Any:
    signatures = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
    return [view(t, "uint8", storage_of(t, head + bytes(60)), (64,), (1,)) for head in signatures]


@case
def _nan_payloads(t: Any) -> Any:
    data = np.array([0x7FC00001, 0xFF800001, 0x7F812345, 0x80000000], np.uint32).tobytes()
    return [
        view(t, "float32", storage_of(t, data), (4,), (1,)),
        view(t, "bfloat16", storage_of(t, data), (8,), (1,)),
    ]


_case(
    "bool_bytes_other_than_0_and_1",
    lambda t: view(t, "bool", storage_of(t, bytes(range(8))), (8,), (1,)),
)


# Storages.

for _name in TYPED_STORAGES:
    _case(
        f"typed storage of {_name}",
        functools.partial(
            lambda t, name: {
                "s": typed_storage(t, name, storage_of(t, bytes(array_dtype(name).itemsize * 5))),
                "empty": typed_storage(t, name, storage_of(t, b"")),
            },
            name=_name,
        ),
    )


@case
def _untyped_storage(t: Any) -> Any:
    storage = storage_of(t, random_bytes(1, 21))
    return {"a": storage, "b": [storage], "empty": t.UntypedStorage(0)}


@case
def _typed_storage_and_its_tensor(t: Any) -> Any:
    x = tensor(t, "float32", (4, 2))
    storage = typed_storage(t, "float32", x.untyped_storage())
    return {"s": storage, "x": x, "part": x[1:3], "again": storage}


_case(
    "untyped_storage_and_its_tensors",
    lambda t: [(x := tensor(t, "uint32", (6,))).untyped_storage(), x, x[2:]],
)


# Parameters, modules, optimizers.


@case
def _parameters_shared(t: Any) -> Any:
    p = t.nn.Parameter(tensor(t, "float32", (2, 3)))
    tied = t.nn.Parameter(p.detach())
    frozen = t.nn.Parameter(p.detach()[0], requires_grad=False)
    return OrderedDict(p=p, again=p, tied=tied, frozen=frozen, data=p.detach(), t=p.detach().t())


@case
def _parameter_with_attributes(t: Any) -> Any:
    p = t.nn.Parameter(tensor(t, "bfloat16", (2,)))
    p.tag = "tag"
    p.related = [tensor(t, "float32", (1,))]
    return [p, p]


@case
def _parameters_of_all_floats(t: Any) -> Any:
    names = ("float64", "float32", "float16", "bfloat16", "complex64", "complex128")
    return [t.nn.Parameter(tensor(t, name, (2,))) for name in names]


def _module(t: Any) -> Any:
    t.manual_seed(0)
    return t.nn.Sequential(
        OrderedDict(
            conv=t.nn.Conv2d(2, 3, 2),
            norm=t.nn.BatchNorm2d(3),
            block=t.nn.ModuleDict({"0": t.nn.Linear(3, 4), "x": t.nn.LSTM(4, 5)}),
            out=t.nn.Linear(4, 2, bias=False, dtype=t.bfloat16),
        )
    )


@case
def _state_dict_twice(t: Any) -> Any:
    module = _module(t)
    return [module.state_dict(), module.state_dict()]


@case
def _state_dict_tied(t: Any) -> Any:
    model = t.nn.ModuleDict({"embed": t.nn.Embedding(5, 3), "head": t.nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    return model.state_dict()


@case
def _transformer_layer(t: Any) -> Any:
    t.manual_seed(1)
    return t.nn.TransformerEncoderLayer(8, 2, 16).half().state_dict()


def _optimizer(name: str, **options: Any) -> Make:
    def make(t: Any) -> Any:
        t.manual_seed(2)
        model = t.nn.Sequential(t.nn.Linear(3, 4), t.nn.BatchNorm1d(4), t.nn.Linear(4, 1))
        optimizer = getattr(t.optim, name)(model.parameters(), lr=0.01, **options)
        schedule = t.optim.lr_scheduler.StepLR(optimizer, 2)
        model(t.ones(5, 3)).sum().backward()
        optimizer.step()
        schedule.step()
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "rng": t.get_rng_state(),
            "epoch": 7,
        }

    return make


_case("AdamW", _optimizer("AdamW"))
_case("AdamW amsgrad", _optimizer("AdamW", amsgrad=True, betas=(0.8, 0.9)))
_case("SGD", _optimizer("SGD", momentum=0.9, nesterov=True))
_case("SGD without momentum", _optimizer("SGD"))
_case("RMSprop", _optimizer("RMSprop", centered=True))
_case("Adagrad", _optimizer("Adagrad"))


_case("parameter", lambda t: t.nn.Parameter(tensor(t, "float32", (2, 3))))
_case("state_dict", lambda t: _module(t).state_dict())
_case(
    "state_dict_with_prefix",
    lambda t: {"model": _module(t).state_dict(prefix="model."), "epoch": 3},
)
_case("state_dict_keep_vars", lambda t: _module(t).state_dict(keep_vars=True))
_case("state_dict_without_metadata", lambda t: dict(_module(t).state_dict()))
_case("named_parameters", lambda t: dict(_module(t).named_parameters()))


for _name, _maker in VALUES.items():
    _case(_name, _maker)


# -- what only torch can make ------------------------------------------------------------------

TORCH_ONLY: dict[str, Make] = {
    "conjugated": lambda t: {
        "x": (x := tensor(t, "complex64", (3, 2))),
        "conj": x.conj(), "again": x.conj(), "t": x.mH,
    },
    "conjugated_scalar": lambda t: [(x := tensor(t, "complex64", ())), x.conj(), t._neg_view(x)],
    "negated": lambda t: {
        "imag": tensor(t, "complex64", (4,)).conj().imag,
        "neg": t._neg_view(tensor(t, "float32", (2,))),
    },
    "conjugated_and_negated": lambda t: [
        t._neg_view(x := tensor(t, "complex64", (4,))).conj(),
        t._neg_view(x.conj()), t._neg_view(x),
    ],
    "gapped_views_without_a_base": lambda t: [(x := tensor(t, "int32", (10,)))[::2], x[1::2]],
    "conjugated_alone": lambda t: tensor(t, "complex128", (3,)).conj(),
    "conjugated_and_expanded": lambda t: tensor(t, "complex64", (1, 2)).conj().expand(3, 2),
    "requires_grad": lambda t: [
        tensor(t, "float32", (2,)).requires_grad_(), tensor(t, "float32", (2,)),
    ],
    "buffer": lambda t: [
        t.nn.Buffer(tensor(t, "float32", (2,))),
        t.nn.Buffer(tensor(t, "int8", ()), persistent=False),
    ],
    "view_of_a_large_storage": lambda t: {"x": tensor(t, "float32", (2, 3), (100, 7), 11, 1000)},
    "empty_view_of_a_storage": lambda t: tensor(t, "float32", (3, 5))[1:1],
    "empty_tensor_past_its_storage": lambda t: view(
        t, "float32", storage_of(t, bytes(8)), (0, 4), (4, 1), 2
    ),
    "meta": lambda t: [t.empty(2, 3, device="meta"), t.nn.Parameter(t.empty(4, device="meta"))],
    "nested": lambda t: t.nested.as_nested_tensor([t.ones(2), t.zeros(3)]),
    "generator": lambda t: t.Generator().manual_seed(5),
    "whole_module": lambda t: {"model": _module(t), "epoch": 1},
    "whole_module_in_half": lambda t: t.nn.Sequential(
        t.nn.Linear(2, 2), t.nn.ReLU(), t.nn.Dropout(0.1)
    ).half(),
    "numpy_values": lambda t: [
        np.arange(3.0), np.float32(1.5), np.dtype("int16"), np.array(["a", "bc"]),
    ],
    "numpy_records": lambda t: np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "numpy_generator_state": lambda t: np.random.default_rng(0).bit_generator.state,
}  # fmt: skip


@torch_only
def _tensor_with_attributes(t: Any) -> Any:
    x = tensor(t, "float32", (2,))
    x.tag = {"a": [1, 2]}
    y = tensor(t, "uint16", (2,))
    y.other = x
    return [x, y, x]


@torch_only
def _parameter_with_slots_state(t: Any) -> Any:
    p = t.nn.Parameter(tensor(t, "float32", (2, 2)))
    p.tensor_model_parallel = True
    return OrderedDict(weight=p, view=p.detach()[0])


@torch_only
def _empty_tensors_with_strides_of_their_own(t: Any) -> Any:
    # An empty numpy array has no layout, so these are no trees for one.
    return [
        [tensor(t, dtype, (0, 3), (0, 0)), tensor(t, dtype, (2, 0), (17, 23))]
        for dtype in ("float32", "bits16")
    ]


@torch_only
def _sparse(t: Any) -> Any:
    coo = t.sparse_coo_tensor([[0, 1], [1, 2]], [3.0, 4.0], (2, 3)).coalesce()
    return {"coo": coo, "plain": tensor(t, "float32", (2,))}


@torch_only
def _quantized(t: Any) -> Any:
    x = t.arange(6.0).reshape(2, 3)
    scales, zeros = t.tensor([0.1, 0.2], dtype=t.float64), t.tensor([0, 1])
    return [
        t.quantize_per_tensor(x, 0.1, 10, t.quint8),
        t.quantize_per_channel(x, scales, zeros, 0, t.qint8),
    ]


@torch_only
def _everything_at_once(t: Any) -> Any:
    model = _module(t)
    return {
        "args": argparse.Namespace(device=t.device("cpu"), dtype=t.float32, path=pathlib.Path()),
        "model": model.state_dict(), "parameters": list(model.parameters()),
        "best": np.float64(0.5),
        "history": defaultdict(list, loss=[1.0, 0.5]), "when": datetime.date(2024, 5, 6),
    }  # fmt: skip
