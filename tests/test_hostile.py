"""Each attack of `tests.hostile`: the error of its row, through every door, within limits."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from fuzz.doors import Send, room
from fuzz.guard import ExecutedError, guarded
from fuzz.seeds import Case
from tests import builders as b
from tests.hostile.attack import Attack
from tests.hostile.canary import RECORD
from tests.hostile.code import CANARIES
from tests.hostile.every import ATTACKS
from tests.hostile.parts import (
    DTYPE,
    FROM_TYPE,
    HUGE,
    HUGE_NEGATIVE,
    PARAMETER,
    byte_array,
    doubling,
    legacy,
    tensor_on,
    v3,
    with_record,
    zipped,
)
from tests.test_cost import peak_below
from torchzip.errors import LimitError, TorchZipError

#: What reading any of the attacks may need at its peak (docs/guarantees.md, 4).
_MOST_NBYTES = 64 << 20

each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=[each.name for each in ATTACKS])


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """Return what sends a file through every door, with a canary and under limits."""
    with room() as send:
        yield send


@pytest.fixture(autouse=True)
def _nothing_named_is_used() -> Iterator[None]:
    """Nothing that a file names is looked up, called, made, filled or given a state."""
    RECORD.clear()
    yield
    assert RECORD == []


@each_attack
def test_attack(attack: Attack) -> None:
    """`load` raises the error of the row, with the file in its message, in little memory."""
    with peak_below(_MOST_NBYTES + 2 * len(attack.data)):
        if attack.error is None:
            tz.load(io.BytesIO(attack.data), foreign=attack.foreign)
        else:
            with pytest.raises(attack.error) as caught:
                tz.load(io.BytesIO(attack.data), foreign=attack.foreign)
            assert str(caught.value.path).startswith("<BytesIO>")  # or a file inside it
            assert len(str(caught.value)) < 2000


#: The files of the attacks; one may be there for each value of ``foreign``, and a door tries both.
_FILES = list({attack.data: attack for attack in reversed(ATTACKS)}.values())[::-1]


@pytest.mark.parametrize("attack", _FILES, ids=[each.name for each in _FILES])
def test_attack_through_every_door(attack: Attack, send: Send) -> None:
    """Whatever a user does with the file: errors of torchzip and nothing else, no code runs."""
    send(Case.of(attack.data))


@each_attack
def test_verify_refuses_what_load_refuses(attack: Attack) -> None:
    """What `verify` calls sound, `load` reads: one set of checks stands at both entrances."""
    try:
        with tz.lazy_load(io.BytesIO(attack.data), foreign=attack.foreign) as checkpoint:
            checkpoint.verify()
    except (tz.TorchZipError, OSError):
        return
    tz.load(io.BytesIO(attack.data), foreign=attack.foreign)


def test_there_are_enough_rows() -> None:
    """No attack is there twice."""
    assert len(ATTACKS) >= 2000
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert len({(attack.data, attack.foreign) for attack in ATTACKS}) == len(ATTACKS)


def test_rows_are_broken_in_one_way_only() -> None:
    """What the rows change is read when it is not changed."""
    for data in (zipped(b.tensor()), with_record(b"version"), legacy()):
        assert tz.load(io.BytesIO(data)).tolist() == [1, 2, 3, 4]
    assert tz.load(io.BytesIO(zipped(v3(DTYPE, size=(8,))))).dtype == np.uint16


# -- what would notice that code runs -------------------------------------------------------------


@pytest.mark.parametrize("pickled", [row[1] for row in CANARIES], ids=[row[0] for row in CANARIES])
def test_canary_notices(pickled: bytes) -> None:
    """Python's own unpickler does what these rows ask for, and that is written down."""
    try:
        pickle.loads(b.stream(pickled))
    except AttributeError:
        assert b"Victim.append" in pickled  # a name with a dot, which protocol 2 has not
    assert RECORD
    RECORD.clear()


@pytest.mark.parametrize(
    "run",
    [
        lambda: pickle.loads(b.stream(b.call("os.getpid"))),
        lambda: os.system("exit 0"),
        lambda: subprocess.run(["true"], check=False),
        lambda: socket.socket(),
        lambda: eval("1"),
        lambda: compile("1", "x", "eval"),
        lambda: importlib.import_module("this"),
        lambda: Path("hostile.txt").write_text("x"),
        lambda: Path("hostile").mkdir(),
        lambda: os.remove("hostile.txt"),
    ],
    ids="pickle os.system subprocess socket eval compile import open mkdir remove".split(),
)
def test_guard_notices(run: Callable[[], object], tmp_path: Path) -> None:
    """What a file could make its reader do is stopped before it is done."""
    before = sorted(os.listdir())
    with pytest.raises(ExecutedError), guarded(tmp_path):
        run()
    assert sorted(os.listdir()) == before


# -- numbers and values in every place -------------------------------------------------------------

_PLACES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("numel", lambda x: tensor_on(numel=x)),
    ("key", lambda x: tensor_on(raw_key=x)),
    ("class", lambda x: tensor_on(kind=x)),
    ("location", lambda x: tensor_on(location=x)),
    ("view", lambda x: tensor_on(extra=x)),
    ("view key", lambda x: tensor_on(extra=(x, 0, 1))),
    ("view offset", lambda x: tensor_on(extra=("v", x, x))),
    ("kind of id", lambda x: b.tuple_of(x, b"NNNN") + b"Q"),
    ("persistent id", lambda x: x + b"Q"),
    ("storage", lambda x: b.tensor(x)),
    ("offset", lambda x: b.tensor(offset=x)),
    ("size", lambda x: b.tensor(size=x)),
    ("stride", lambda x: b.tensor(stride=x)),
    ("size item", lambda x: b.tensor(size=(x,))),
    ("stride item", lambda x: b.tensor(stride=(x,))),
    ("stride of none", lambda x: b.tensor(size=(0,), stride=(x,))),
    ("stride of one", lambda x: b.tensor(size=(1,), stride=(x,))),
    ("requires_grad", lambda x: b.tensor(requires_grad=x)),
    ("hooks", lambda x: b.tensor(hooks=x)),
    ("metadata", lambda x: b.tensor(extra=x)),
    ("metadata value", lambda x: b.tensor(extra={"neg": x})),
    ("metadata key", lambda x: b.tensor(extra=b"}" + x + b.TRUE + b"s")),
    ("dtype", lambda x: v3(x)),
    ("argument tuple", lambda x: b.name("torch._utils", "_rebuild_tensor_v2") + x + b"R"),
    ("parameter", lambda x: b.call(PARAMETER, x, True, b.HOOKS)),
    ("parameter grad", lambda x: b.call(PARAMETER, b.tensor(), x, b.HOOKS)),
    ("parameter state", lambda x: b.call(PARAMETER, b.tensor(), True, b.HOOKS, x)),
    ("subclass function", lambda x: b.call(FROM_TYPE, x, b.name("a", "b"), b")N")),
    ("subclass arguments", lambda x: b.call(FROM_TYPE, b.name("a", "b"), b.name("a", "b"), x, x)),
    ("Size", lambda x: b.call("torch.Size", x)),
    ("Size item", lambda x: b.call("torch.Size", (x,))),
    ("device", lambda x: b.call("torch.device", x)),
    ("device index", lambda x: b.call("torch.device", "cpu", x)),
    ("layout", lambda x: b.call("torch.serialization._get_layout", x)),
    ("encode", lambda x: b.call("_codecs.encode", x, x)),
    ("codec", lambda x: b.call("_codecs.encode", "x", x)),
    ("bytes", lambda x: b.call("builtins.bytes", x)),
    ("bytearray", lambda x: byte_array(x)),
    ("complex", lambda x: b.call("builtins.complex", x, x)),
    ("range", lambda x: b.call("__builtin__.xrange", x)),
    ("range step", lambda x: b.call("__builtin__.xrange", x, x, x)),
    ("slice", lambda x: b.call("builtins.slice", x, x, x)),
    ("set", lambda x: b.call("builtins.set", x)),
    ("set item", lambda x: b.call("builtins.set", [x, b"N"])),
    ("frozenset item", lambda x: b.call("builtins.frozenset", [x, b"N"])),
    ("OrderedDict", lambda x: b.call("collections.OrderedDict", x)),
    ("OrderedDict pair", lambda x: b.call("collections.OrderedDict", [x, x])),
    ("Counter", lambda x: b.call("collections.Counter", x)),
    ("dict key", lambda x: b"}" + x + b.tensor() + b"s"),
    ("dict value", lambda x: b.dict_of({"a": x, "b": b.tensor()})),
    ("BUILD", lambda x: b.HOOKS + x + b"b"),
    ("BUILD attribute", lambda x: b.HOOKS + b"}" + x + b"Ns" + b"b"),
    ("foreign argument", lambda x: b.call("a.b", x, b.tensor())),
    ("foreign state", lambda x: b.call("a.b") + x + b"b"),
    ("foreign key", lambda x: b.call("a.b") + x + b.tensor() + b"s"),
    ("foreign callee", lambda x: x + b")R"),
    ("getattr", lambda x: b.call(b.call("builtins.getattr", b.name("a", "b"), x), x)),
    ("sparse", lambda x: b.call("torch._utils._rebuild_sparse_tensor", x, x)),
    ("root", lambda x: x),
]

each_place = pytest.mark.parametrize(
    "place", [pytest.param(place, id=name) for name, place in _PLACES]
)

_VALUES: list[tuple[str, bytes]] = [
    ("an int of 7,000 digits", HUGE),
    ("a negative int of 7,000 digits", HUGE_NEGATIVE),
    ("a tuple of such ints", b.tuple_of(HUGE, HUGE_NEGATIVE)),
    ("a list of 2**40 as a tree", doubling()),
    ("a tensor", b.tensor()),
    ("an empty tensor", b.tensor(size=(0,))),
    ("a scalar tensor", b.tensor(size=(), stride=())),
    ("a storage", b.persistent()),
    ("a parameter", b.call(PARAMETER, b.tensor(), True, b.HOOKS)),
    ("None", b"N"),
    ("NaN", b"G\x7f\xf8" + bytes(6)),
    ("infinity", b"G\x7f\xf0" + bytes(6)),
    ("text", b.text("x")),
    ("long text", b.text("x" * 100_000)),
    ("a lone surrogate", b.text("\ud800")),
    ("bytes", b.call("_codecs.encode", "x", "latin1")),
    ("a list", b.list_of(b"N", b"N")),
    ("a list of itself", b"]q\x63h\x63a"),
    ("a deep list", b"]" * 5000 + b"a" * 4999),
    ("a deep tuple", b")" + b"\x85" * 5000),
    ("a dict", b.dict_of({"a": b"N"})),
    ("a dict of itself", b"}q\x63Nh\x63s"),
    ("a name", b.name("os", "system")),
    ("a foreign object", b.call("os.system", "x")),
    ("a dtype", DTYPE),
    ("a range of 2**70", b.call("__builtin__.xrange", 1 << 70)),
    ("a frozenset", b.call("builtins.frozenset", [b"N", True])),
]

#: Where a list that doubles is written out, the reader would never come back.
_HANGS = "a list of 2**40 as a tree"


@each_place
@pytest.mark.parametrize(
    "value", [pytest.param(value, id=name) for name, value in _VALUES if name != _HANGS]
)
def test_any_value_in_any_place(place: Callable[[bytes], bytes], value: bytes, send: Send) -> None:
    """Whatever stands where something else should: a value or an error of torchzip."""
    data = zipped(place(value))
    send(Case.of(data), [])  # what else is done with a file begins with these doors


@each_place
def test_messages_are_short(place: Callable[[bytes], bytes]) -> None:
    """A value of the file is never written out whole: as a tree it may have no end."""
    for value in (doubling(15), b.text("x" * 100_000), b.list_of(*[b"N"] * 20_000)):
        data = zipped(place(value))
        for read in (tz.load, tz.lazy_load):
            try:
                read(io.BytesIO(data))
            except TorchZipError as error:
                message = str(error)
            else:
                continue
            assert len(message) < 5000


@pytest.mark.parametrize(
    "value", [doubling(15), HUGE, b.tuple_of(HUGE)], ids=["doubling", "huge", "tuple"]
)
@pytest.mark.parametrize("place", ["keys", "key", "version"])
def test_any_value_in_a_legacy_file(place: str, value: bytes) -> None:
    """The same for what only the legacy stream has."""
    options: dict[str, bytes] = {"version": value}
    if place != "version":
        options = {"keys": value if place == "keys" else b.list_of(value)}
    with pytest.raises(TorchZipError) as caught:
        tz.load(io.BytesIO(legacy(**options)))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 5000


# -- attacks that come to nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "function"),
    [("os", "system"), ("builtins", "eval"), ("posix", "system"), ("subprocess", "Popen"),
     ("numpy", "load"), ("torch", "load"), ("torch.hub", "load"), ("builtins", "__import__"),
     ("torchzip", "save"), ("functools", "partial"), ("builtins", "getattr")],
)  # fmt: skip
def test_names_are_inert(module: str, function: str) -> None:
    """Any name outside the table becomes a ForeignObject, or an error that lists it."""
    data = zipped(b.call(b.name(module, function), "exit 1"))
    made = tz.load(io.BytesIO(data))
    assert type(made) is tz.types.ForeignObject
    assert (made.module, made.name, made.args) == (module, function, ("exit 1",))
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.load(io.BytesIO(data), foreign="raise")
    assert caught.value.names == [(module, function)]


def test_zero_stride_giant_stays_a_view() -> None:
    """A tensor of terabytes on four bytes costs nothing to load."""
    data = zipped(b.tensor(size=(1 << 20, 1 << 20), stride=(0, 0)))
    made = tz.load(io.BytesIO(data))
    assert made.shape == (1 << 20, 1 << 20)
    assert made[77, 99] == 1
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        tensor = checkpoint[""]
        assert tensor.nbytes == 1 << 42
        assert tensor[5, :3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("extra", [b"", b.dict_of({"neg": True})], ids=["plain", "neg"])
def test_zero_stride_giant_is_no_memory_error(extra: bytes, send: Send) -> None:
    """Where it would have to be written out, there is an error of torchzip."""
    data = zipped(b.tensor(size=(1 << 30, 1 << 30), stride=(0, 0), extra=extra))
    send(Case.of(data))


@pytest.mark.parametrize("method", [0, 8], ids=["stored", "deflated"])
def test_declared_storage_is_not_allocated(method: int, send: Send) -> None:
    """A record that says 2**45 bytes and has 16 is an error before memory is asked for."""
    nbytes = 1 << 45
    data = with_record(
        b"data/0", root=tensor_on(numel=nbytes // 4), method=method, nbytes=0xFFFFFFFF,
        local_nbytes=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, nbytes),
    )  # fmt: skip
    with pytest.raises(TorchZipError):
        tz.load(io.BytesIO(data))
    send(Case.of(data))


def test_shared_containers_do_not_blow_up() -> None:
    """A list that is 2**40 long as a tree is a few lists in memory."""
    data = zipped(doubling())
    made = tz.load(io.BytesIO(data))
    for _ in range(40):
        made = made[0]
    assert made == []
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert list(checkpoint) == []
    with_tensor = zipped(b.list_of(b.tensor()) + b"2\x86" * 40)
    with tz.lazy_load(io.BytesIO(with_tensor)) as checkpoint, pytest.raises(LimitError):
        list(checkpoint)
