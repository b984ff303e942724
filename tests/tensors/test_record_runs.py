"""Many tensors at once, and one at once, are what the opcodes come to one by one."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pickling.graphs import graph
from torchzip.errors import TensorError, TorchZipError
from torchzip.limits import Limits
from torchzip.pickling.emitter import Emitter
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.memo import Memo
from torchzip.pickling.opcodes import put_opcode
from torchzip.tensors.persistent_ids import BareStorage, Factory
from torchzip.tensors.rebuild import Rebuilder
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import ArrayStorage, Measure, TensorStorage
from torchzip.types import Parameter


@dataclass(frozen=True)
class Item:
    """One item of a state dict."""

    name: str
    key: str
    kind: str = "FloatStorage"
    location: str = "cpu"
    numel: int = 12
    offset: int = 0
    size: tuple[int, ...] = (4, 3)
    stride: tuple[int, ...] = (3, 1)
    parameter: bool | None = None  # requires_grad of a Parameter
    key_shared: bool = False  # the key is one object each time, as torch has it
    before: str = ""  # what comes before it in the dict, by the names in `Writer.between`
    members: tuple[str, ...] = ()  # names in a dict of its own, as the state of an optimizer
    name_shared: bool = False


class Writer(Emitter):
    """Writes items as the pickler in C does: what is met again is asked for by its number."""

    def __init__(self, first: int) -> None:
        super().__init__({})
        self.first = first
        self.strings: dict[str, str] = {}

    def shared(self, value: str) -> None:
        """Write a string that is the same object each time."""
        self.string(self.strings.setdefault(value, value))

    def fresh(self, value: str) -> None:
        """Write a string that is an object of its own."""
        self.string(value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass"))

    def numbered(self, opcodes: bytes) -> None:
        """Write opcodes, and number what they leave."""
        self.write(opcodes)
        self.put(None)

    def hooks(self) -> None:
        """Write an empty OrderedDict."""
        self.name("collections", "OrderedDict")
        self.numbered(b")R")

    def between(self, what: str) -> None:
        """Write a name and a value."""
        self.fresh("between")
        if what == "float":
            self.write(b"G" + struct.pack(">d", 0.5))
        elif what == "values":
            self.numbered(b"]")
            self.write(b"(K\x01NM\1\1\x88J\0\0\0\x80e")
        elif what == "object":
            self.name("torch.nn", "Module")
            self.numbered(b")\x81")
            self.numbered(b"}")
            self.write(b"(")
            self.between("values")
            self.write(b"ub")
        elif what == "again":  # what tensors ask for means something else from here on
            number = self.memo.get(("torch._utils", "_rebuild_tensor_v2"), 9)
            self.write(b"N" + put_opcode(number))
        else:
            self.write(b"(" * 300 + b"t" * 300)

    def item(self, item: Item) -> None:
        """Write a name and a tensor."""
        if item.before:
            self.between(item.before)
        if item.members:
            self.save(int(item.key) if item.key.isdecimal() else 0)
            self.numbered(b"}")
            self.write(b"(")
        for place, name in enumerate(item.members or (item.name,)):
            key = f"{item.key}{1000 + place}" if place else item.key
            self.tensor(dataclasses.replace(item, name=name, key=key))
        if item.members:
            self.write(b"u")

    def tensor(self, item: Item) -> None:
        """Write the name and the tensor alone."""
        (self.shared if item.name_shared else self.fresh)(item.name)
        if item.parameter is not None:
            self.name("torch._utils", "_rebuild_parameter")
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.write(b"((")
        self.shared("storage")
        self.name("torch", item.kind)
        (self.shared if item.key_shared else self.fresh)(item.key)
        self.shared(item.location)
        self.save(item.numel)
        self.numbered(b"t")
        self.write(b"Q")
        self.save(item.offset)
        self.save((*item.size,))
        self.save((*item.stride,))
        self.write(b"\x89")
        self.hooks()
        self.numbered(b"t")
        self.numbered(b"R")
        if item.parameter is not None:
            self.save(item.parameter)
            self.hooks()
            self.numbered(b"\x87")
            self.numbered(b"R")

    def checkpoint(self, items: list[Item], batch: int, asked: list[float]) -> bytes:
        """Return the pickle of the dict, and of what some numbers stand for behind it.

        ``asked`` are those numbers, as parts of all.
        """
        self.write(b"(]")
        for _ in range(self.first):  # as many numbers as come before the items
            self.put(None)
        self.numbered(b"}")
        for begin in range(0, len(items), batch):
            self.write(b"(")
            for item in items[begin : begin + batch]:
                self.item(item)
            self.write(b"u")
        for part in asked:
            self.write(b"j" + struct.pack("<I", int(part * self.count)))
        return b"".join([*self._parts, b"t."])


class Store(Factory):
    """Storages of zeros, as large as they are said to be, up to a bound."""

    def __init__(self) -> None:
        super().__init__(self.storage)

    def storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return a new one."""
        if key == "666" or measure.nbytes > 1 << 20:
            raise TensorError(f"storage {key} is not there")
        made = ArrayStorage(np.zeros(measure.nbytes, np.uint8), measure.torch_dtype)
        made.location = measure.location
        made.record = key
        return made

    def parameter(self, tensor: Any, requires_grad: bool, state: Any) -> Any:
        """Return a Parameter."""
        return Parameter(tensor, requires_grad, state)


#: What is compared of an object, beside its type.
_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    TensorSpec: attrgetter(
        "torch_dtype", "shape", "stride", "storage_offset", "storage", "requires_grad"
    ),
    BareStorage: attrgetter("storage", "first", "count"),
    ArrayStorage: attrgetter("record", "torch_dtype", "nbytes", "location"),
    Parameter: attrgetter("data", "requires_grad", "state"),
}


def outcome(data: bytes, *, plain: bool) -> Any:
    """Return what a pickle comes to, or the error."""
    table = Rebuilder(Store()).table
    if plain:
        table = dataclasses.replace(table, shortcut=None)
    interpreter = Interpreter(data, table, Limits())
    try:
        value = interpreter.run()
    except TorchZipError as error:
        return type(error), error.message
    return graph(value, _PARTS, ints_are_plain=True), interpreter.globals, interpreter.position


def runs_in(data: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many tensors were read in runs."""
    count = 0
    plain = Memo.add

    def add(self: Memo, run: Any) -> None:
        nonlocal count
        count += run.stop - run.first
        plain(self, run)

    with monkeypatch.context() as patch:
        patch.setattr(Memo, "add", add)
        outcome(data, plain=False)
    return count


_SHAPES: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [
    (12, (4, 3), (3, 1)),
    (12, (3, 4), (1, 3)),
    (1, (), ()),
    (0, (0,), (1,)),
    (300, (300,), (1,)),
    (70000, (70000,), (1,)),
    (16, (2, 2, 2, 2), (8, 4, 2, 1)),
    (32, (2, 2, 2, 2, 2), (16, 8, 4, 2, 1)),
    (1, (1,) * 9, (1,) * 9),
]
#: What is not in order, or looks so.
_ODD_SHAPES: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [
    (11, (4, 3), (3, 1)),
    (12, (4, 3), (3,)),
    (12, (4, -3), (3, 1)),
    (-12, (4, 3), (3, 1)),
    (12, (1 << 31, 0), (3, 1)),
    (1 << 40, (4, 3), (3, 1)),
]

_NAMES = st.one_of(
    st.just("layer.weight"),
    st.sampled_from(["X\x01", "\x89h\x09)R", "été", "\ud800", "", "storage", "u(", "long" * 100]),
)


@st.composite
def _items(draw: st.DrawFn) -> list[Item]:
    """Return state dicts of many alike items with some others among them."""
    count = draw(st.integers(0, 120))
    chance = random.Random(draw(st.integers(0, 1 << 30)))
    odd = draw(st.sampled_from([0.0, 0.0, 0.02, 0.2]))
    parameter = draw(st.sampled_from([None, None, True, False]))
    shapes = _SHAPES[: draw(st.integers(1, len(_SHAPES)))]
    kinds = ["FloatStorage", "HalfStorage", "ByteStorage", "UntypedStorage"]
    kinds = kinds[: draw(st.integers(1, 4))]
    members = draw(st.sampled_from([(), (), ("step",), ("step", "exp_avg", "exp_avg_sq")]))
    often, shared = draw(st.sampled_from([0.5, 1.0])), draw(st.booleans())
    before = draw(st.sampled_from([[""], ["", "float"], ["values"], ["object", "", "float"]]))
    items = []
    for index in range(count):
        numel, size, stride = chance.choice(shapes)
        item = Item(
            f"layers.{index}.weight", str(index), chance.choice(kinds),
            numel=numel, size=size, stride=stride, parameter=parameter,
            before=chance.choice(before), members=members if chance.random() < often else (),
            name_shared=shared,
        )  # fmt: skip
        if chance.random() < odd:
            numel, size, stride = chance.choice(_ODD_SHAPES)
            change: dict[str, Any] = chance.choice(
                [
                    {"key": str(chance.randrange(index + 1))},
                    {"key": chance.choice(["x", "a/b", "", "1" * 30, "01", "666", "٣"])},
                    {"key_shared": True},
                    {"name": draw(_NAMES)},
                    {"offset": chance.choice([1, 1 << 20, -1])},
                    {"location": chance.choice(["cuda:0", "", "meta"])},
                    {"parameter": chance.choice([None, True, False])},
                    {"kind": chance.choice(["LongStorage", "QInt8Storage", "NoStorage"])},
                    {"numel": numel, "size": size, "stride": stride},
                    {"before": chance.choice(["again", "deep", "object"])},
                    {"members": chance.choice([("a",), ("a", "b"), ("a", "b", "b")])},
                ]
            )
            item = dataclasses.replace(item, **change)
        items.append(item)
    return items


@given(
    items=_items(),
    first=st.sampled_from([0, 250, 300, 70_000]),
    batch=st.sampled_from([7, 1000]),
    asked=st.lists(st.floats(0, 1), max_size=8),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=2),
    is_flipped=st.booleans(),
)
def test_runs_are_what_the_opcodes_come_to(
    items: list[Item],
    first: int,
    batch: int,
    asked: list[float],
    flips: list[tuple[float, int]],
    is_flipped: bool,
) -> None:
    """With and without the shortcut: the same object, or the same error."""
    data = bytearray(Writer(first).checkpoint(items, batch, asked))
    for part, byte in flips if is_flipped else ():
        data[int(part * (len(data) - 1))] = byte
    assert outcome(bytes(data), plain=False) == outcome(bytes(data), plain=True)


@pytest.mark.parametrize("before", ["", "float", "object"])
def test_what_stands_between_is_passed_over(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of an optimizer, and modules: dicts and plain values between the tensors."""
    items = [
        Item(
            "step", str(index), before=before, name_shared=True,
            members=("step",) if index % 3 == 0 else (),
        )
        for index in range(500)
    ]  # fmt: skip
    data = Writer(0).checkpoint(items, 1000, [])
    assert runs_in(data, monkeypatch) > 450
    assert outcome(data, plain=False) == outcome(data, plain=True)


def test_dicts_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of an optimizer are one run, and their dicts can be asked for by number."""
    names = ("step", "exp_avg", "exp_avg_sq")
    items = [
        Item("", str(index), members=names[index % 3 :] + names[: index % 3], name_shared=True)
        for index in range(300)
    ]
    data = Writer(0).checkpoint(items, 1000, [part / 1000 for part in range(1000)])
    assert runs_in(data, monkeypatch) > 890
    assert outcome(data, plain=False) == outcome(data, plain=True)


@pytest.mark.parametrize("parameter", [None, True])
def test_runs_are_taken(parameter: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all items of an ordinary state dict, whatever their shapes and dtypes."""
    items = [
        Item(
            f"layers.{index}", str(index), ["FloatStorage", "HalfStorage"][index % 2],
            numel=numel, size=size, stride=stride, parameter=parameter,
        )
        for index in range(500)
        for numel, size, stride in [_SHAPES[index % 8]]
    ]  # fmt: skip
    data = Writer(0).checkpoint(items, 1000, [])
    assert runs_in(data, monkeypatch) > 400
    assert outcome(data, plain=False) == outcome(data, plain=True)


def test_every_number_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run has numbered is what was there, each time the same object."""
    items = [Item(f"layers.{index}", str(index)) for index in range(60)]
    every = [number / 1000 for number in range(1000)]
    data = Writer(100).checkpoint(items, 1000, [*every, *every])
    assert runs_in(data, monkeypatch) > 40
    assert outcome(data, plain=False) == outcome(data, plain=True)


def test_memoize_behind_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """MEMOIZE counts what was numbered, which a run has not made yet."""
    items = [Item(f"layers.{index}", str(index)) for index in range(60)]
    writer = Writer(100)
    data = writer.checkpoint(items, 1000, [])
    data = data[:-2] + b"K\x07\x94" + b"j" + struct.pack("<I", writer.count) + b"t."
    assert runs_in(data, monkeypatch) > 40
    assert outcome(data, plain=False) == outcome(data, plain=True)
    assert outcome(data, plain=False)[0][-1] == ("int", 7)


def test_a_number_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run does not hide what has one of its numbers, nor the other way round."""
    items = [Item(f"layers.{index}", str(index)) for index in range(60)]
    data = Writer(100).checkpoint(items, 1000, [])
    early = data[:3] + b"K\x05r" + struct.pack("<I", 520) + b"0" + data[3:]
    asked = b"j" + struct.pack("<I", 520)
    late = data[:-2] + b"K\x05r" + struct.pack("<I", 520) + b"0" + data[-2:]
    for each in (early, late):
        whole = each[:-2] + asked + b"t."
        assert outcome(whole, plain=False) == outcome(whole, plain=True)
    assert runs_in(early, monkeypatch) == 0
    assert outcome(late[:-2] + asked + b"t.", plain=False)[0][-1] == ("int", 5)
