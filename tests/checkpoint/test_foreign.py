"""``foreign="raise"``: an error, or a value without a single ForeignObject in it."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.hostile.parts import FROM_TYPE, PARAMETER, torchscript, zipped
from tests.sampling import some, thorough
from torchzip.formats.base import MeasuringFactory
from torchzip.pickling.table import Name
from torchzip.tensors.rebuild import Rebuilder
from torchzip.tensors.script import ScriptRebuilder
from torchzip.tensors.specs import TensorSpec
from torchzip.types import ForeignObject, OtherTensor


def _known(rebuilder_type: type[Rebuilder]) -> list[Name]:
    table = rebuilder_type(MeasuringFactory()).table
    return sorted({*table.values, *table.calls, *table.builds, *table.names})


#: Every name that a file may mention without an error.
NAMES = _known(Rebuilder)
SCRIPT_NAMES = _known(ScriptRebuilder)

#: name, arguments, something else -> what is made of the name.
_FORMS: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "bare": lambda name, args, more: name,
    "called": lambda name, args, more: name + args + b"R",
    "new": lambda name, args, more: name + args + b"\x81",
    "new with keywords": lambda name, args, more: name + args + b.dict_of({"a": more}) + b"\x92",
    "an old object": lambda name, args, more: b"(" + name + more + b"o",
    "an instance": lambda name, args, more: b"(" + more + b"i" + name[1:],
    "called and given a state": lambda name, args, more: name + args + b"R" + more + b"b",
    "new and given a state": lambda name, args, more: name + args + b"\x81" + more + b"b",
    "in use before its state": lambda name, args, more: (b"("
     + name + args + b"Rq\x77lq\x780h\x77" + more + b"bh\x78\x86"),
    "called and filled": lambda name, args, more: name + args + b"R" + more + b"a",
    "called and given a key": lambda name, args, more: (name
     + args + b"R" + b.text("k") + more + b"s"),
    "twice": lambda name, args, more: name + args + b"R" + b")R",
    "a class of old tensors": lambda name, args, more: (name
     + b")R" + b.tuple_of(b.persistent(), 0, (4,), (1,)) + b"b"),
    "in a call": lambda name, args, more: name + b.tuple_of(name + args + b"R", more) + b"R",
    "a persistent id": lambda name, args, more: (b.tuple_of("module", name, "", "") + b"Q"),
}  # fmt: skip

_SPARSE = b.call(
    "torch._utils._rebuild_sparse_tensor",
    b.call("torch.serialization._get_layout", "torch.sparse_coo"),
    (b.tensor(b.persistent("1", numel=0, kind=b.name("torch", "LongStorage")),
                 size=(1, 0), stride=(0, 1)), b.tensor(size=(0,)), (3,)),
)  # fmt: skip
_META = b.name("torch._utils", "_rebuild_meta_tensor_no_storage")
_META_ARGS = b.tuple_of(b.name("torch", "float32"), (2,), (1,), False)
_V2 = b.name("torch._utils", "_rebuild_tensor_v2")
_V2_ARGS = b.tuple_of(b.persistent(), 0, (4,), (1,), False, b.HOOKS)
_TENSOR = b.name("torch", "Tensor")
_JAGGED = b.name("torch.nested._internal.nested_tensor", "_rebuild_njt")
_OFFSETS = b.tensor(b.persistent("2", numel=2, kind=b.name("torch", "LongStorage")), size=(2,))

#: Where an object may be in a value.
_PLACES: dict[str, Callable[[bytes], bytes]] = {
    "root": lambda x: x,
    "a list": lambda x: b.list_of(b"N", x),
    "a tuple": lambda x: b.tuple_of(b"N", x),
    "a dict": lambda x: b.dict_of({"a": b.tensor(), "b": x}),
    "a key": lambda x: b"}" + x + b"Ns",
    "a pair for a key": lambda x: b"}" + b.tuple_of(b"N", x) + b"Ns",
    "a set": lambda x: b.call("builtins.set", [x]),
    "a frozenset": lambda x: b.call("builtins.frozenset", [x]),
    "an OrderedDict": lambda x: b.call("collections.OrderedDict", [["a", x]]),
    "an attribute of an OrderedDict": lambda x: b.HOOKS + b.dict_of({"_metadata": x}) + b"b",
    "a deque": lambda x: b.call("collections.deque", [x]),
    "a Counter": lambda x: b.call("collections.Counter", {"a": x}),
    "a defaultdict": lambda x: (b.call("collections.defaultdict", b.name("builtins", "list"))
     + b.text("a") + x + b"s"),
    "a slice": lambda x: b.call("builtins.slice", b"N", x, b"N"),
    "a Parameter": lambda x: b.call(PARAMETER, x, True, b.HOOKS),
    "a Parameter's state": lambda x: b.call("torch._utils._rebuild_parameter_with_state",
     b.tensor(), True, b.HOOKS, {"a": x}),
    "a tensor's attribute": lambda x: b.call(FROM_TYPE, _V2, _TENSOR, _V2_ARGS, {"a": x}),
    "a tensor's slots": lambda x: b.call(FROM_TYPE, _V2, _TENSOR, _V2_ARGS, (b"}", x)),
    "the range of a tensor's axis": lambda x: b.call(FROM_TYPE,
     _V2, _TENSOR, _V2_ARGS, {"_dynamo_dynamic_range": b.call("builtins.set", [x])}),
    "a tensor's class": lambda x: b.call(FROM_TYPE, _V2, x, _V2_ARGS, b"}"),
    "an attribute of a meta tensor": lambda x: b.call(FROM_TYPE,
     _META, _TENSOR, _META_ARGS, {"a": x}),
    "the class of a meta tensor": lambda x: b.call(FROM_TYPE, _META, x, _META_ARGS, b"}"),
    "the arguments of a jagged tensor": lambda x: b.call(_JAGGED,
     {"values": b.tensor(), "offsets": _OFFSETS, "_metadata_cache": x}),
    "the ranges of a jagged tensor": lambda x: b.call(FROM_TYPE,
     _JAGGED, b.name("torch.nested._internal.nested_tensor", "NestedTensor"),
     ({"values": b.tensor(), "offsets": _OFFSETS},), {"a": x}),
    "beside a sparse tensor": lambda x: b.list_of(_SPARSE, x),
}  # fmt: skip

_STORAGES = {"0": b.DATA, "1": b"", "2": bytes(8) + (4).to_bytes(8, "little")}

_ATOMS = st.sampled_from(
    [b.integer(5), b"N", b.TRUE, b.text("x"), b.text("f4"), b.text("cpu"), b"]", b"}", b")",
     b"G" + bytes(8), b"C\1x", b.ints(2, 3), b.list_of(1), b.tensor(), b.HOOKS,
     b.persistent(), b.name("torch", "float32"), b.ints(0), b.integer(0), b.FALSE]
)  # fmt: skip
_VALUES = st.one_of(
    _ATOMS,
    st.sampled_from(NAMES).map(lambda name: b.name(*name)),
    st.lists(_ATOMS, max_size=3).map(lambda items: b.tuple_of(*items)),
)
_ARGUMENTS = st.lists(_VALUES, max_size=8).map(lambda values: b.tuple_of(*values))


def objects_in(value: Any) -> Iterator[ForeignObject]:
    """Yield every ForeignObject that can be reached, by any way at all.

    The bare name of a tensor's class is left out, and the ranges in the attributes of one.
    """
    todo, seen = [value], {}
    while todo:
        held = todo.pop()
        if id(held) in seen or isinstance(held, str | bytes | int | float | np.ndarray | type):
            continue
        seen[id(held)] = held
        if isinstance(held, ForeignObject):
            yield held
        elif isinstance(held, collections.abc.Mapping):
            todo += [*held, *held.values()]
        elif isinstance(held, collections.abc.Iterable) and not isinstance(held, tz.LazyTensor):
            todo += held
        if isinstance(held, slice):
            todo += [held.start, held.stop, held.step]
        if type(held).__module__.startswith(("torchzip.types", "collections")):
            todo += getattr(held, "__dict__", {}).values()
            slots = [name for kind in type(held).__mro__ for name in getattr(kind, "__slots__", ())]
            todo += [
                getattr(held, name)
                for name in slots
                if name not in ("__weakref__", "subclass", "attributes")
            ]
        own: Any = held.spec if isinstance(held, tz.LazyTensor) else held
        if isinstance(own, TensorSpec | OtherTensor):
            if own.subclass is not None and own.subclass.how != "name":
                todo.append(own.subclass)
            attributes = own.attributes
            if isinstance(attributes, dict):
                attributes = {**attributes}
                ranges = attributes.pop("_dynamo_dynamic_range", None)
                todo += [] if _are_ranges(ranges) else [ranges]
            todo.append(attributes)


def _are_ranges(value: Any) -> bool:
    """Return whether a value is a set of what torch writes for ``_DimRange(axis, least, most)``."""
    return isinstance(value, set) and all(
        isinstance(each, ForeignObject)
        and (each.name, each.how, each.args, each.kwargs) == ("_DimRange", "new", (), None)
        and each.items is None
        and {int, type(None)}.issuperset(map(type, each.state))
        for each in value
    )


def check(data: bytes) -> int:
    """Load a file in every way; return how many of them gave a value, and had no object in it."""
    count = 0
    for lazily in (False, True):
        try:
            if lazily:
                with tz.lazy_load(io.BytesIO(data), foreign="raise") as checkpoint:
                    found = [*objects_in(checkpoint.root), *objects_in(checkpoint.constants)]
            else:
                found = [*objects_in(tz.load(io.BytesIO(data), foreign="raise"))]
        except tz.TorchZipError:
            continue
        assert found == []
        count += 1
    return count


def _file(name: Name, form: str, place: str, args: bytes, more: bytes) -> bytes:
    made = _FORMS[form](b.name(*name), args, more)
    return b.checkpoint(b.stream(_PLACES[place](made)), _STORAGES)


@thorough
@given(
    st.sampled_from(NAMES), st.sampled_from([*_FORMS]), st.sampled_from([*_PLACES]), _ARGUMENTS,
    _VALUES,
)  # fmt: skip
@example(("torch", "Tensor"), "called", "a dict", b.tuple_of(5), b"N")
@example(("torch", "Tensor"), "called", "a tensor's class", b.tuple_of(5), b"N")
@example(("torch", "FloatStorage"), "bare", "a list", b")", b"N")
@example(("numpy", "dtype"), "called", "a tuple", b.tuple_of("f4", False, True), b"N")
@example(("torch", "Tensor"), "called", "a tensor's attribute", b.tuple_of(5), b"N")
def test_any_name_in_any_form(name: Name, form: str, place: str, args: bytes, more: bytes) -> None:
    """Whatever a file does with a name that is known, wherever: no object is in the value."""
    check(_file(name, form, place, args, more))


@pytest.mark.parametrize("place", _PLACES)
def test_an_object_in_each_place(place: str) -> None:
    """It is seen there; and what is no object may stand there, unless that is refused always."""
    call = b.call(_TENSOR, 5)
    with pytest.raises(tz.UnsafeGlobalError, match=r"torch\.Tensor\. foreign='keep'") as caught:
        tz.lazy_load(io.BytesIO(_file(("torch", "Tensor"), "called", place, call[len(_TENSOR):-1],
                                      b"N")), foreign="raise")  # fmt: skip
    assert caught.value.names == [("torch", "Tensor")]
    assert caught.value.path == "<BytesIO>"
    harmless = {"a Parameter": b.tensor(), "a tensor's class": _TENSOR}
    harmless["the class of a meta tensor"] = _TENSOR
    data = b.checkpoint(b.stream(_PLACES[place](harmless.get(place, b.integer(5)))), _STORAGES)
    assert check(data) == 2


@pytest.mark.parametrize("form", _FORMS)
def test_each_name(form: str) -> None:
    """Each name, with nothing, with a number and with a tensor."""
    rows = [(b")", b"N"), (b.tuple_of(5), b"}"), (b.tuple_of(b.tensor()), b"N"),
            (_V2_ARGS, b.list_of(5))]  # fmt: skip
    for name in some(NAMES):
        for args, more in rows:
            check(_file(name, form, "a list", args, more))


@pytest.mark.parametrize("form", _FORMS)
def test_each_name_of_torchscript(form: str) -> None:
    """The same in the module of an archive, and in its constants."""
    for name in some(SCRIPT_NAMES):
        for args in (b")", b.tuple_of(5), b"]\x85"):
            made = _FORMS[form](b.name(*name), args, b"N")
            check(torchscript(b.stream(made)))
            check(torchscript(b.stream(b"N"), constants=b.stream(made + b"\x85")))


def test_constants_of_torchscript() -> None:
    """What only a lazy checkpoint reads is looked through as well."""
    data = torchscript(b.stream(b"N"), constants=b.stream(b.call(_TENSOR, 5) + b"\x85"))
    with pytest.raises(tz.UnsafeGlobalError, match=r"torch\.Tensor"):
        tz.lazy_load(io.BytesIO(data), foreign="raise")


def test_all_objects_are_named_at_once() -> None:
    """In the order in which they come, each name once."""
    data = zipped(b.list_of(b.name("torch", "FloatStorage"), b.call(_TENSOR), b.call(_TENSOR)))
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.load(io.BytesIO(data), foreign="raise")
    assert caught.value.names == [("torch", "FloatStorage"), ("torch", "Tensor")]
    kept = tz.load(io.BytesIO(data))
    assert [type(value) for value in kept] == [ForeignObject] * 3


def test_ranges_of_a_jagged_tensor() -> None:
    """What torch's compiler notes on the sizes of one stays, as it stays in torch's safe loader."""
    dim_range = b.name("torch._dynamo.decorators", "_DimRange") + b")\x81"
    for state, is_right in ((b.list_of(0, b"N", b"N"), True), (b.list_of(_TENSOR), False)):
        data = b.checkpoint(
            b.stream(_PLACES["the range of a tensor's axis"](dim_range + state + b"b"))
        )
        assert check(data) == 1 + is_right  # `load` gives the tensor without its attributes


def test_a_large_value_is_looked_through_once() -> None:
    """Shared containers are not followed by each way to them, and cycles end."""
    value = b"]" + b"2\x86" * 60
    assert tz.load(io.BytesIO(zipped(value)), foreign="raise") is not None
    cycle = b"]q\x63h\x63a"
    assert len(tz.load(io.BytesIO(zipped(cycle)), foreign="raise")) == 1
    deep = b"]" * 100_000 + b"a" * 99_999
    assert len(tz.load(io.BytesIO(zipped(deep)), foreign="raise")) == 1


# -- what a Parameter is made of -------------------------------------------------------------------

_UINT8 = b.call("numpy.dtype", "u1", False, True)
_UINT8 += b"(K\3X\1\0\0\0|NNNK\0K\0K\0tb"
_NO_TENSORS: dict[str, bytes] = {
    "5": b.integer(5),
    "None": b"N",
    "True": b.TRUE,
    "a text": b.text("x"),
    "a float": b"G" + bytes(8),
    "bytes": b"C\1x",
    "a list": b.list_of(b.tensor()),
    "a tuple": b.tuple_of(b.tensor()),
    "a dict": b.dict_of({"a": b.tensor()}),
    "a storage": b.persistent(),
    "a dtype": b.name("torch", "int8"),
    "a class": _TENSOR,
    "a name": b.name("os", "system"),
    "a Size": b.call("torch.Size", (2,)),
    "an array of numpy": b.call("numpy.core.numeric._frombuffer", b"C\1x", _UINT8, (1,), "C"),
}  # fmt: skip
_TENSORS: dict[str, bytes] = {
    "a tensor": b.tensor(), "a meta tensor": _META + _META_ARGS + b"R", "a sparse tensor": _SPARSE,
    "a Parameter": b.call(PARAMETER, b.tensor(), True, b.HOOKS),
    "a tensor of a class": b.call(FROM_TYPE, _V2, b.name("a", "B"), _V2_ARGS, b"}"),
    "what a foreign call gives": b.call("a.b", b.tensor()),
}  # fmt: skip
_MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "_rebuild_parameter": lambda x: b.call(PARAMETER, x, True, b.HOOKS),
    "_rebuild_parameter_with_state": lambda x: b.call("torch._utils._rebuild_parameter_with_state",
     x, True, b.HOOKS, b"}"),
    "an old Parameter": lambda x: (b.call("torch.nn.parameter.Parameter", x)
     + b.tuple_of(True, False, b.HOOKS) + b"b"),
    "an old Parameter without arguments": lambda x: (b.name("torch.nn.parameter", "Parameter")
     + b")R" + b.tuple_of(x, b"N", b.HOOKS, True, False) + b"b"),
    "an old Variable": lambda x: (b.call("torch.autograd.variable.Variable", x)
     + b.tuple_of(True, False, b.HOOKS) + b"b"),
}  # fmt: skip


@pytest.mark.parametrize("maker", _MAKERS)
@pytest.mark.parametrize("value", [*_NO_TENSORS, *_TENSORS])
def test_what_a_parameter_is_made_of(maker: str, value: str) -> None:
    """A tensor, or what may give one; anything else is refused, and lazily as well."""
    raw = _NO_TENSORS[value] if value in _NO_TENSORS else _TENSORS[value]
    data = b.checkpoint(b.stream(b.dict_of({"w": _MAKERS[maker](raw)})), _STORAGES)
    for read in (tz.load, tz.lazy_load):
        if value in _NO_TENSORS:
            with pytest.raises(tz.FormatError, match="a tensor was expected"):
                read(io.BytesIO(data))
        else:
            read(io.BytesIO(data))


def test_a_parameter_of_a_parameter() -> None:
    """It is one around the same tensor, as torch makes it, and has its name."""
    inner = b.call(PARAMETER, b.tensor(), True, b.HOOKS)
    data = b.checkpoint(b.stream(b.dict_of({"w": b.call(PARAMETER, inner, False, b.HOOKS)})))
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert list(checkpoint) == ["w"]
        assert checkpoint["w"].numpy().tolist() == [1, 2, 3, 4]
        assert not checkpoint["w"].requires_grad
        assert isinstance(checkpoint.root["w"].data, tz.LazyTensor)


def test_fields_are_looked_at() -> None:
    """Whatever kind of tensor there will be: all its fields are, but for the two of its class."""
    names = {
        field.name for kind in OtherTensor.__subclasses__() for field in dataclasses.fields(kind)
    }
    assert {"constructor", "scale", "lengths", "attributes", "subclass"} <= names
