"""The object around the tensors as JSON: what goes in comes out, and what is lost is said."""

from __future__ import annotations

import datetime as dt
import json
import math
import pathlib
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.convert.carried import Carried, carry
from torchzip.convert.restored import restore
from torchzip.errors import LimitError
from torchzip.limits import Limits
from torchzip.tensors.numpy_values import pickled_array
from torchzip.tensors.specs import TensorSpec, contiguous_stride, is_dense
from torchzip.tensors.storage import ArrayStorage
from torchzip.types import (
    Device,
    Dtype,
    ForeignObject,
    Layout,
    Parameter,
    QScheme,
    Size,
    SparseTensor,
    Storage,
)


def lazy(array: Any, stride: tuple[int, ...] | None = None, **changes: Any) -> LazyTensor:
    """Return a LazyTensor over the memory of an array, with a stride in elements."""
    array = np.asarray(array)
    storage = ArrayStorage(np.ascontiguousarray(array), array.dtype.name)
    stride = contiguous_stride(array.shape) if stride is None else stride
    spec = TensorSpec(array.dtype.name, array.shape, stride, 0, storage)
    return LazyTensor(spec.replace(**changes))


class File:
    """Stands for a safetensors file: tensors by name, contiguous, over memory."""

    def __init__(self, tensors: dict[str, LazyTensor]) -> None:
        self.names = {id(tensor.spec.storage): name for name, tensor in tensors.items()}
        self.tensors = {name: lazy(tensor.numpy()) for name, tensor in tensors.items()}

    def name_of(self, value: Any) -> str | None:
        """Return the name of the tensor that has this storage; arrays are not in the file."""
        return self.names.get(id(value.spec.storage)) if type(value) is LazyTensor else None

    def there_and_back(self, root: Any, **options: Any) -> tuple[Any, Carried]:
        """Return what comes back, and what was carried."""
        carried = carry(root, self.name_of, **options)
        assert carried.text is not None
        carried.text.encode()
        return restore(carried.text, self.tensors.get), carried


def back(root: Any) -> Any:
    """Return what comes back of an object without tensors, of which nothing may be lost."""
    made, carried = File({}).there_and_back(root)
    assert carried.lost == []
    return made


def lost(root: Any, **options: Any) -> list[str]:
    """Return what is said to be lost."""
    return carry(root, lambda tensor: None, **options).lost


class _Same:
    """Compares two trees: types, values to the bit, order, attributes, and which are one object."""

    def __init__(self) -> None:
        self._partners: dict[int, int] = {}
        self._backwards: dict[int, int] = {}

    def check(self, made: Any, value: Any) -> None:
        assert type(made) is type(value)
        if type(value) in (type(None), bool, int, str, bytes, Dtype, Layout, QScheme):
            assert made == value
            return
        if type(value) in (float, complex):
            assert repr(made) == repr(value)
            return
        if type(value) is tuple and not value:
            return
        if id(value) in self._partners or id(made) in self._backwards:
            assert self._partners.get(id(value)) == id(made)
            assert self._backwards.get(id(made)) == id(value)
            return
        self._partners[id(value)], self._backwards[id(made)] = id(made), id(value)
        if isinstance(value, dict):
            assert len(made) == len(value)
            for (key, item), (other, expected) in zip(made.items(), value.items(), strict=True):
                _Same().check(key, other)
                self.check(item, expected)
            if isinstance(value, defaultdict):
                assert made.default_factory is value.default_factory
            self.check(getattr(made, "__dict__", None), getattr(value, "__dict__", None))
        elif isinstance(value, list | tuple | deque):
            assert len(made) == len(value)
            for item, expected in zip(made, value, strict=True):
                self.check(item, expected)
            assert getattr(made, "maxlen", None) == getattr(value, "maxlen", None)
        elif isinstance(value, set | frozenset):
            assert _in_order(made) == _in_order(value)
        elif isinstance(value, np.ndarray | np.generic):
            assert (made.dtype, made.shape) == (value.dtype, value.shape)
            assert made.tobytes("A") == value.tobytes("A")
            assert made.flags.c_contiguous == value.flags.c_contiguous
        elif isinstance(value, LazyTensor):
            for name in ("shape", "stride", "torch_dtype", "requires_grad", "is_parameter"):
                assert getattr(made, name) == getattr(value, name)
            assert made.numpy().tobytes() == value.numpy().tobytes()
            self.check(made.spec.attributes, value.spec.attributes)
        elif isinstance(value, Parameter):
            self.check(made.data, value.data)
            self.check(made.state, value.state)
            assert made.requires_grad is value.requires_grad
        else:
            assert repr(made) == repr(value)
            assert getattr(made, "fold", 0) == getattr(value, "fold", 0)


def _in_order(value: Any) -> str:
    """Return the text of a key, with the items of sets in an order."""
    if isinstance(value, set | frozenset):
        return f"{type(value)}{sorted(map(_in_order, value))}"
    if type(value) is tuple:
        return f"({[*map(_in_order, value)]})"
    return repr(value)


ZONE = dt.timezone(dt.timedelta(hours=-5, seconds=7), "somewhere")
ATOMS = [
    None, True, 0, -1, 2**63 - 1, -(2**63), 2**63, -(2**70), 10**4000, 1.5, 1.0, -0.0, 1e300,
    5e-324, math.nan, math.inf, -math.inf, "", "text", "\u00e9\u4e2d\U0001f600\0\"\\", "\ud800",
    "\ud83d\ude00", b"", b"\0\xff", bytearray(b"ab"), 1 + 2j, complex(-0.0, math.nan),
    range(3, 9, 2), range(0, 2**80), slice(1, None, -2),
    dt.datetime(2020, 1, 2, 3, 4, 5, 6), dt.datetime(2020, 1, 2, fold=1),
    dt.datetime(2020, 1, 2, tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=ZONE), dt.datetime.min,
    dt.time(1, 2), dt.time(23, 59, 59, 999_999, tzinfo=ZONE, fold=1), dt.date(1, 2, 3),
    dt.timedelta(-1, 2, 3), dt.UTC, ZONE, dt.timezone(dt.timedelta(hours=1)), Decimal("1.50"),
    Decimal("-Infinity"), Decimal("sNaN12"), Fraction(-1, 3), Fraction(2**70, 3),
    pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/a"), pathlib.Path("x/\ud800"),
    pathlib.Path(), Size([2, 3]), Size([]), Size([2**70]), Dtype("float16"), Dtype("int3"),
    Device("cuda", 1), Device("cpu"), Layout("strided"), Layout("_mkldnn"),
    QScheme("per_tensor_affine"), np.float32(1.5), np.float64("nan"), np.bool_(True), np.int8(-3),
    np.complex64(1j), ml_dtypes.bfloat16(1.5), np.dtype("f4"), np.dtype(">c8"),
    np.dtype(ml_dtypes.float8_e4m3fn), pickled_array(np.arange(624, dtype="u4")),
    pickled_array(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    pickled_array(np.arange(6, dtype=">i4").reshape(3, 2)), pickled_array(np.array(5)),
    pickled_array(np.zeros((0, 3))), pickled_array(np.array([1.5], ml_dtypes.bfloat16)),
]  # fmt: skip
CONTAINERS = [
    {}, {"a": 1}, {1: "a", None: 2, 2: 3, 1.5: 4, (1, ("a", b"b")): 5, b"c": 6, Size([1]): 7},
    {"\ud800": 1, "dict": 2}, {frozenset([1, 2]): 1, math.nan: 2, dt.date(2020, 1, 1): 3},
    {Dtype("float32"): 1, -0.0: 2, "tensor": 3}, OrderedDict(b=1, a=2), OrderedDict({1: 2}),
    defaultdict(list, a=[1]), defaultdict(None, a=1), defaultdict(OrderedDict), Counter("abca"),
    Counter({1: 2.5}), deque([1, [2]]), deque([1, 2], maxlen=3), deque(), [], [[]], (), ((),), (1,),
    ([1], {"a": (2,)}), {1, "a", (2, "b")}, set(), frozenset([b"a", 1.5]), frozenset(),
]  # fmt: skip


@pytest.mark.parametrize("value", [*ATOMS, *CONTAINERS], ids=lambda value: type(value).__name__)
def test_values_come_back(value: Any) -> None:
    """Each value comes back as itself, alone and inside of others."""
    if type(value) is not dict or value:  # an empty dict needs no text
        _Same().check(back(value), value)
    tree = {"x": [value, (value, {"y": [value]})], "z": 1}
    _Same().check(back(tree), tree)


_KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.text(alphabet=st.characters(categories=["Cs", "Lu"])),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
VALUES = st.recursive(
    _KEYS | st.sampled_from(ATOMS) | st.sets(_KEYS, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.lists(inner, max_size=5).map(deque)
        | st.dictionaries(_KEYS, inner, max_size=5)
        | st.dictionaries(st.text(), inner, max_size=5)
        | st.dictionaries(_KEYS, inner, max_size=5).map(OrderedDict)
        | st.tuples(inner, inner).map(lambda pair: [pair[0], pair[1], pair[0]])
    ),
    max_leaves=25,
)


@given(VALUES)
def test_trees_come_back(value: Any) -> None:
    """Any tree comes back, its order and its sharing too; the same tree gives the same text."""
    tree = {"": value, "n": 0}
    carried = carry(tree, lambda tensor: None)
    assert carried.lost == []
    assert carried.text is not None
    carried.text.encode()
    made = restore(carried.text, lambda name: None)
    _Same().check(made, tree)
    assert carry(made, lambda tensor: None).text == carried.text


def test_text_is_readable() -> None:
    """The text is the JSON that the module describes."""
    weight = lazy(np.arange(6.0, dtype="f4").reshape(2, 3))
    frozen = lazy(np.zeros(2, "f4"))
    state = OrderedDict({"w": weight, "f": Parameter(frozen, False)})
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    file = File({"model.w": weight, "model.f": frozen})
    root = {"model": state, "epoch": 3, "betas": (0.9, 0.999), "dtype": Dtype("float16")}
    _, carried = file.there_and_back(root)
    assert carried.text == json.dumps(
        {
            "root": {
                "dict": {
                    "model": {
                        "OrderedDict": {
                            "w": {"tensor": "model.w"},
                            "f": {"parameter": "model.f", "requires_grad": False},
                        },
                        "attributes": {
                            "_metadata": {"OrderedDict": {"": {"dict": {"version": 1}}}}
                        },
                    },
                    "epoch": 3,
                    "betas": {"tuple": [0.9, 0.999]},
                    "dtype": {"torch.dtype": "float16"},
                }
            }
        },
        separators=(",", ":"),
    )
    assert carried.lost == []


def test_a_state_dict_needs_no_text() -> None:
    """A plain dict of tensors by their names is what any reader makes of the file."""
    a, b = lazy(np.zeros((2, 3))), lazy(np.zeros((2, 3)), (3, 1))
    file = File({"a": a, "b": b})
    assert carry({"a": a, "b": b}, file.name_of) == Carried(None, [])
    assert carry({}, file.name_of) == Carried(None, [])
    assert carry({"a": a, "b": b}, file.name_of, in_file=["a", "b"]) == Carried(None, [])
    carried = carry({"a": a, "b": b}, file.name_of, in_file=["b", "a"])
    assert carried == Carried('{"root":{"tensors":["a","b"]}}', [])
    expanded = lazy(np.zeros((2, 3)), (0, 1))  # is contiguous there, which is said by nothing
    assert carry({"a": expanded}, lambda tensor: "a") == Carried(None, [])
    for root in (
        OrderedDict(a=a, b=b),
        {"a": a, "c": b},
        {"b": a, "a": b},
        {"a": a, "b": 1},
        {"a": Parameter(LazyTensor(a.spec.replace(is_parameter=True)), False), "b": b},
        {"a": a, "b": LazyTensor(b.spec.replace(requires_grad=True))},
        {"a": a, "b": LazyTensor(b.spec.replace(stride=(1, 2)))},
        {"a": a, "b": a},
        [a, b],
        a,
    ):
        made, carried = file.there_and_back(root)
        assert carried.lost == []
        _Same().check(made, root if root is not a else LazyTensor(a.spec.replace()))


def test_tensors_come_back() -> None:
    """Parameters, gradients, attributes and strides; one object stays one, two stay two."""
    rng = np.random.default_rng(1)
    shapes = [(2, 3), (2, 3, 4, 5), (1, 3), (3, 1, 2), (2, 0, 3), (), (4,)]
    strides = [(1, 2), (60, 1, 15, 3), (1, 1), (2, 7, 1), (1, 2, 3), (), (1,)]
    tensors = {
        f"t{i}": lazy(rng.random(shape), stride)
        for i, (shape, stride) in enumerate(zip(shapes, strides, strict=True))
    }
    leaf = lazy(rng.random((2, 2)), requires_grad=True)
    named: dict[str, Any] = {"label": ["x"]}
    labelled = lazy(rng.random(3), subclass=ForeignObject("torch", "Tensor"), attributes=named)
    data = lazy(rng.random((2, 3)), (1, 2), is_parameter=True, requires_grad=True)
    parameter = Parameter(data, True, {"named": named})
    named["parameter"] = parameter  # a cycle through what cannot be changed
    tensors |= {"leaf": leaf, "labelled": labelled, "parameter": data}
    root = {**tensors, "parameter": parameter, "again": [parameter, leaf, tensors["t0"]]}
    root["tied"] = LazyTensor(tensors["t0"].spec)  # another tensor over the same memory
    made, carried = File(tensors).there_and_back(root)
    assert carried.lost == []
    _Same().check(made, root)
    assert made["tied"].spec.storage is made["t0"].spec.storage
    assert made["labelled"].spec.subclass.name == "Tensor"
    for name in ("t0", "t1", "parameter"):
        assert (made[name].data if name == "parameter" else made[name]).spec.storage_offset == 0
    # In memory the elements lie in the order of the stride.
    elements = np.empty(6)
    made["t0"].spec.storage.read_into(0, elements.view(np.uint8))
    assert elements.tolist() == made["t0"].numpy().T.reshape(-1).tolist()


def test_gaps_and_overlaps_become_contiguous() -> None:
    """A stride that is no permutation has no meaning in a tensor of its own; nothing is lost."""
    for shape, stride in (((2, 2), (3, 1)), ((2, 3), (0, 1)), ((2, 2), (1, 1))):
        assert not is_dense(shape, stride)
        base = lazy(np.arange(8.0))
        tensor = LazyTensor(base.spec.replace(shape=shape, stride=stride))
        made, carried = File({"x": tensor}).there_and_back([tensor])
        assert carried.lost == []
        assert made[0].stride == contiguous_stride(shape)
        assert made[0].numpy().tolist() == tensor.numpy().tolist()


def test_cycles_and_sharing() -> None:
    """What there are two ways to is one object again, also if it contains itself."""
    cycle: list[Any] = [1]
    cycle += [cycle, {"self": cycle}]
    _Same().check(back(cycle), cycle)
    inner: list[Any] = []
    outer = (inner, 2)
    inner.append(outer)
    for root in (outer, inner, [outer, inner]):
        _Same().check(back(root), root)
    state: Any = OrderedDict()
    state.me = state
    _Same().check(back(state), state)
    doubled: Any = ["x"]
    for _ in range(200):  # 2**200 ways
        doubled = (doubled, doubled)
    assert len(carry(doubled, lambda tensor: None).text or "") < 10_000
    made = back(doubled)
    for _ in range(200):
        assert made[0] is made[1]
        made = made[0]
    assert made == ["x"]


@pytest.mark.few
@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"a": inner},
        lambda inner: OrderedDict({1: inner}),
        lambda inner: {(1, 2): (inner, [])},
    ],
)
@pytest.mark.parametrize("depth", [31, 32, 33, 64, 448, 900, 901, 100_000])
def test_depth(wrap: Any, depth: int) -> None:
    """No depth is too much for Python's stack; what is past the limit is lost, which is said."""
    root: Any = "leaf"
    for _ in range(depth):
        root = wrap(root)
    carried = carry(root, lambda tensor: None)
    assert carried.text is not None
    made = restore(carried.text, lambda name: None)
    while isinstance(made, list | tuple | dict):
        made = next(iter(made.values()), None) if isinstance(made, dict) else (*made, None)[0]
    if made == "leaf":
        assert carried.lost == []
        assert depth <= 900
    else:
        (line,) = {line.partition(": ")[2] for line in carried.lost}
        assert line.startswith("nested more than 900 deep")
        with pytest.raises(LimitError, match="nesting would be"):
            restore(carried.text, lambda name: None, Limits(nesting=300))


def test_what_is_lost_is_said() -> None:
    """Each line names the place and the reason; entries are left out, items become None."""
    namespace = ForeignObject("argparse", "Namespace", (), how="new", state={"a": 1})
    attributed: Any = OrderedDict(a=1)
    attributed.hook = namespace
    labelled = lazy(np.zeros(2), subclass=ForeignObject("lib", "Weight"), attributes={"a": 1})
    root = {
        "hyper_parameters": namespace,
        "callbacks": [1, namespace, (namespace, 2)],
        "state": attributed,
        "storage": Storage(np.zeros(2)),
        "records": np.dtype([("a", "f4")]),
        "text": np.str_("x"),
        "large": b"x" * (5 << 20),
        "unnamed": lazy(np.zeros(3)),
        "keys": {namespace: 1, "kept": 2, (namespace, 1): 3},
        "items": {1, namespace},
        "labelled": labelled,
        "slice": slice("a"),
        "int": 1 << 20_000,
        "sparse": SparseTensor("sparse_coo", lazy([[0]]), lazy([1.0]), (2,)),
        "sparse items": [SparseTensor("sparse_coo", lazy([[0]]), lazy([1.0]), (2,))],
    }
    made, carried = File({"labelled": labelled}).there_and_back(root)
    foreign = "argparse.Namespace cannot be held by JSON"
    assert carried.lost == [
        f"hyper_parameters: {foreign}",
        f"callbacks.1: {foreign}; None stands for it",
        f"callbacks.2.0: {foreign}; None stands for it",
        f"state (hook): {foreign}",
        "storage: a Storage cannot be held by JSON",
        "records: a value of numpy's dtype [('a', '<f4')] cannot be held by JSON",
        "text: a value of numpy's dtype <U1 cannot be held by JSON",
        "large: a value of 5,242,880 bytes is too large for a header",
        "unnamed: a tensor that the state dict does not name",
        f"keys.{namespace!r}: its key: {namespace!r} cannot be held by JSON",
        f"keys.({namespace!r}, 1): its key: {namespace!r} cannot be held by JSON",
        f"items: its key: {namespace!r} cannot be held by JSON",
        "labelled (class): lib.Weight, with its state",
        "slice: a slice of other things than ints",
        "int: an int of more than 1,785 bytes",
    ]
    assert made["callbacks"] == [1, None, (None, 2)]
    assert made["keys"] == {"kept": 2}
    assert made["items"] == {1}
    assert made["sparse items"] == [None]
    assert "hyper_parameters" not in made
    assert "sparse" not in made
    assert lost(OrderedDict({"a": {}, "b": [[namespace]]})) == [
        f"b.0.0: {foreign}; None stands for it"
    ]
    long = lost({"x" * 10_000: {"y" * 10_000: namespace}})
    assert len(long[0]) < 1000


def test_objects_of_other_classes() -> None:
    """As a root they are not carried; inside, their tensors stay together in a dict."""
    module = ForeignObject("torch.nn", "Linear", (), how="new", state={"_parameters": {}})
    assert carry(module, lambda tensor: None) == Carried(None, [])
    sparse = SparseTensor("sparse_coo", np.zeros((1, 0), np.int64), np.zeros(0), (1,))
    assert carry(sparse, lambda tensor: None) == Carried(None, [])
    tensors = {f"nets.0.{name}": lazy(np.zeros(2)) for name in ("bias", "weight", "a.b")}
    tensors["nets.00.x"] = lazy(np.zeros(1))
    root = {"nets": [module, Parameter(module)], "epoch": 1}
    file = File(tensors)
    names = {name: name for name in tensors}
    made, carried = file.there_and_back(root, names=names)
    assert list(made["nets"][0]) == ["a.b", "bias", "weight"]
    assert made["nets"][1] is None
    assert carried.lost == [
        "nets.0: torch.nn.Linear cannot be held by JSON; a dict of its tensors stands for it",
        "nets.1: torch.nn.Linear cannot be held by JSON; None stands for it",
    ]
    made, carried = file.there_and_back(root, names=names, listed={id(module)})
    assert len(made["nets"][0]) == 3
    assert carried.lost == []


def test_large_objects_are_not_carried() -> None:
    """A text that no header has room for is not written, and that is said."""
    root: Any = {"history": [[] for _ in range(3000)]}
    for limits, what in (
        (Limits(header_nbytes=5000), "bytes"),
        (Limits(containers=0), "containers"),
    ):
        carried = carry(root, lambda tensor: None, limits=limits)
        assert carried.text is None
        assert len(carried.lost) == 1
        assert what in carried.lost[0]
