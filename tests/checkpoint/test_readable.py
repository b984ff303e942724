"""What is written without an error is read within the default limits, flat names included."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from math import isqrt
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import torchzip as tz
from tests.container.memory import BytesSource
from tests.picklable import Plain
from tests.sampling import costly, thorough
from tests.saved import saved
from tests.torch_oracle import torch_bytes
from torchzip.checkpoint import structure
from torchzip.checkpoint.structure import Structure
from torchzip.container.shard_index import build_index, parse_index
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import StorageKeys
from torchzip.types import Device, Parameter, Size

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.load with"),
    pytest.mark.filterwarnings("ignore:.*nothing was written"),
]

# -- trees -----------------------------------------------------------------------------------------

_ATOMS = st.one_of(
    st.integers(-3, 300), st.integers(), st.booleans(), st.none(), st.floats(),
    st.binary(max_size=3),
    st.sampled_from(["", "a", "a.b", "weight", "\n\0", "\U000e0001" * 9, "long " * 40]),
    st.integers(1, 2500).map(lambda nbytes: (1 << 8 * nbytes) - 1),
    st.integers(1, 50).map(lambda index: index * ((1 << 61) - 1)),
)  # fmt: skip


def _levels(value: Any, count: int) -> Any:
    for _ in range(count):
        value = (value,)
    return value


def _twice(value: Any, count: int) -> Any:
    for _ in range(count):
        value = [value, value]
    return value


_KEYS = st.one_of(
    _ATOMS,
    st.recursive(
        _ATOMS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4).map(tuple), st.frozensets(inner, max_size=3)
        ),
        max_leaves=6,
    ),
    st.integers(0, 500).map(lambda count: tuple(range(count))),
    st.builds(_levels, _ATOMS, st.integers(1, 120)),
    st.tuples(st.sampled_from([-2, -1]), st.sampled_from([-2, -1]), st.integers(-3, 0)),
)
_ODD = st.one_of(
    _ATOMS,
    st.sets(_KEYS, max_size=4),
    st.frozensets(_KEYS, max_size=4),
    st.integers(1, 5000).map(lambda digits: Decimal("1" * digits)),
    st.builds(Fraction, st.integers(), st.integers(1, 9)),
    st.builds(slice, _KEYS, _KEYS),
    st.sampled_from([range(3), range(1 << 70), PurePosixPath("a/b"), 2j, Device("cpu")]),
    st.lists(st.integers(0, 1 << 65), max_size=3).map(Size),
    st.builds(Plain),
    st.lists(_ATOMS, max_size=3).map(lambda items: deque(items, 3)),
    st.dictionaries(_KEYS, st.integers(0, 3), max_size=3).map(Counter),
)
_PLAIN_KEYS = st.one_of(
    st.sampled_from(["a", "weight", "x.y", "", "\U000e0001" * 9, "n" * 300]), st.integers(0, 9)
)


@st.composite
def trees(
    draw: st.DrawFn,
    tensors: Callable[[], list[Any]],
    leaves: st.SearchStrategy[Any],
    keys: st.SearchStrategy[Any],
) -> Any:
    """Return an object whose parts are in several places, some of them deep."""
    parts: list[Any] = [*tensors(), draw(leaves)]
    for _ in range(draw(st.integers(1, 8))):
        held = draw(st.lists(st.sampled_from(parts), max_size=5))
        kind = draw(st.sampled_from(["list", "tuple", "dict", "OrderedDict", "leaf", "many"]))
        if kind in ("dict", "OrderedDict"):
            names = draw(st.lists(keys, min_size=len(held), max_size=len(held)))
            pairs = zip(names, held, strict=True)
            parts.append(dict(pairs) if kind == "dict" else OrderedDict(pairs))
        elif kind == "leaf":
            parts.append(draw(leaves))
        elif kind == "many":
            wrap = draw(st.sampled_from([_levels, _twice]))
            parts.append(wrap(parts[-1], draw(st.integers(1, 6))))
        else:
            parts.append(held if kind == "list" else tuple(held))
    return parts[-1] if draw(st.booleans()) else {"tree": parts[-1], "all": parts}


def _arrays() -> list[Any]:
    array = np.zeros(2, np.float32)
    return [array, Parameter(np.ones((1, 2)), False), array]


#: For any tree, and for trees of which nobody has to read anything again.
_ANY = trees(_arrays, _ODD, _KEYS)
_PLAIN = trees(_arrays, st.one_of(st.integers(0, 9), st.just("text"), st.binary()), _PLAIN_KEYS)

_FEW = st.integers(1, 200)
#: Bounds that are lower, so that small trees meet them.
_LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "nesting": st.integers(1, 20), "int_nbytes": _FEW, "key_nesting": st.integers(1, 9),
        "shared_names": st.integers(0, 60), "names_nbytes": st.integers(0, 5000),
        "pickle_nbytes": st.integers(0, 5000), "entries": st.integers(6, 12), "key_values": _FEW,
    },
).map(lambda bounds: tz.Limits(**bounds))  # fmt: skip


# -- writing and reading ---------------------------------------------------------------------------


def unchecked(tree: Any) -> bytes:
    """Return a file that nobody has looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "check_readable", lambda *arguments, **options: None)
        return saved(tree)


def read(data: bytes, limits: tz.Limits | None = None) -> None:
    """Read a file in every way."""
    tz.load(io.BytesIO(data), limits=limits)
    with tz.lazy_load(io.BytesIO(data), limits=limits) as checkpoint:
        list(checkpoint)


def _is_read(data: bytes, limits: tz.Limits) -> bool:
    try:
        read(data, limits)
    except tz.TorchZipError:
        return False
    return True


def _refused(write: Callable[[], object]) -> str | None:
    """Return what a writer says if it refuses what readers would; None if it has written it."""
    try:
        write()
    except ValueError as error:
        return str(error)
    return None


@thorough
@given(_ANY)
def test_what_is_saved_is_read(tree: Any) -> None:
    """Any object that `save` takes is read with default limits; of others nothing is written."""
    file = io.BytesIO()
    said = _refused(lambda: tz.save(tree, file))
    if said is None:
        read(file.getvalue())
    else:
        assert "readers would refuse it" in said
        assert file.getvalue() == b""
        assert not _is_read(unchecked(tree), tz.Limits())


@thorough
@given(st.one_of(_ANY, _PLAIN), _LIMITS)
@example([1 << 31], tz.Limits(int_nbytes=1))
def test_the_bounds_of_a_writer_are_those_of_readers(tree: Any, limits: tz.Limits) -> None:
    """Whatever the bounds: what is written is read, and what is refused would not be."""
    said = _refused(lambda: Structure(tree, StorageKeys(), place_arrays, limits=limits))
    assert said is None or "readers would refuse it" in said
    assert (said is None) == _is_read(unchecked(tree), limits)


@thorough
@given(_PLAIN)
def test_what_is_not_read_again(tree: Any) -> None:
    """A plain tree never has what is counted for each 4 bytes of it: no reader would refuse it."""
    read(unchecked(tree), tz.Limits(containers=256, memo=256, argument_items=0, key_values=0))


def test_plain_trees_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """State dicts, and what training saves with them, cost no more than to be written."""
    monkeypatch.setattr("torchzip.checkpoint.readable.read_pickle", None)
    betas = (0.9, 0.999)
    weights = OrderedDict((f"layers.{i}.weight", Parameter(np.zeros(3))) for i in range(2000))
    weights._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    state = {i: {"step": np.zeros(()), "exp_avg": np.zeros(3)} for i in range(2000)}
    groups = [{"lr": 0.1, "betas": betas, "params": list(range(i, i + 9))} for i in range(3)]
    tree = {"model": weights, "optimizer": {"state": state, "param_groups": groups}, "epoch": 3}
    tz.save(tree, io.BytesIO())
    tz.save(dict(weights), io.BytesIO())
    tz.save({"a": [1, 2.5, b"x", None, True, "text"], "b": {None: 1, True: ()}}, io.BytesIO())
    with pytest.raises(TypeError, match="not callable"):
        tz.save({"a": {1}}, io.BytesIO())


# -- ordinary values, and what is none -------------------------------------------------------------


def _shared(names: int, length: int, tensor: Callable[[], Any]) -> Any:
    listed = [tensor() for _ in range(length)]
    return {f"layer.{index}": listed for index in range(names)}


#: What programs have, each past a bound that there was once. All are made n times smaller, for
#: readers with bounds that are n times lower.
ORDINARY: dict[str, Callable[[Callable[[], Any], int], Any]] = {
    "a board of Go": lambda tensor, n: {tuple(range(361)): tensor()},
    "keys of nine levels": lambda tensor, n: {_levels(1, 9): tensor()},
    "keys of 90 levels": lambda tensor, n: {_levels(1, 90): tensor()},
    "300,000 sets": lambda tensor, n: [set() for _ in range(300_000 // n)],
    "300,000 sets of one": lambda tensor, n: [{index} for index in range(300_000 // n)],
    "700,000 lists": lambda tensor, n: [[] for _ in range(700_000 // n)],
    "400 tensors under 400 names": lambda tensor, n: _shared(
        isqrt(160_000 // n), isqrt(160_000 // n), tensor
    ),
    "an int of 254 bytes": lambda tensor, n: {"seed": (1 << 8 * 254) - 1},
    "200,000 keys that are pairs": lambda tensor, n: {
        (index % 500, index // 500): index for index in range(200_000 // n)
    },
    "100,000 floats": lambda tensor, n: {index / 7 for index in range(100_000 // n)},
    "512 keys of one hash": lambda tensor, n: {
        tuple(-1 - (number >> bit & 1) for bit in range(9)): 1 for number in range(512 // n)
    },
    "state and action": lambda tensor, n: {
        (state, action): 0.0
        for state in [tuple(range(start, start + 361)) for start in range(100 // n)]
        for action in range(362)
    },
    "a long name before many": lambda tensor, n: {"n" * 5000: [tensor() for _ in range(5000 // n)]},
    "40 levels": lambda tensor, n: _levels(tensor(), 40),
    "defaultdicts": lambda tensor, n: [
        defaultdict(list, {"a": [index]}) for index in range(200_000 // n)
    ],
    "many OrderedDicts": lambda tensor, n: [OrderedDict() for _ in range(300_000 // n)],
}  # fmt: skip
_SIZES = [pytest.param(1, marks=pytest.mark.long), 50]


def _lower(n: int) -> tz.Limits:
    """Return bounds that are lower, but for those of one value."""
    kept = ("int_nbytes", "key_nesting", "nesting", "text_nbytes", "deflate_ratio")
    bounds = {field.name: getattr(tz.Limits(), field.name) for field in fields(tz.Limits)}
    return tz.Limits(
        **{name: bound if name in kept else bound // n for name, bound in bounds.items()}
    )


@pytest.mark.parametrize("n", _SIZES)
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_values(name: str, n: int) -> None:
    """What torch would save and load, `save` writes, and it is read."""
    read(saved(ORDINARY[name](lambda: np.zeros(1, np.float32), n)), _lower(n))


@pytest.mark.torch
@pytest.mark.parametrize("n", _SIZES)
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_values_of_torch(name: str, n: int) -> None:
    """What torch.load reads of ordinary values, they read."""
    import torch

    data = torch_bytes(torch, ORDINARY[name](lambda: torch.zeros(1), n))
    torch.load(io.BytesIO(data), weights_only=False)
    read(data, _lower(n))


@pytest.mark.torch
@costly
@given(st.data())
def test_odd_trees_of_torch(data: st.DataObject) -> None:
    """As much goes for odd trees, where no number is longer than Python prints."""
    import torch

    def tensors() -> list[Any]:
        tensor = torch.zeros(2)
        return [tensor, torch.nn.Parameter(torch.ones(1, 2)), tensor]

    keys = st.one_of(
        st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=4).map(tuple)),
        st.integers(0, 500).map(lambda count: tuple(range(count))),
        st.builds(_levels, st.integers(), st.integers(1, 90)),
        _PLAIN_KEYS,
    )
    leaves = st.one_of(st.sets(keys), st.frozensets(keys), st.integers(), st.text(), st.binary())
    made = torch_bytes(torch, data.draw(trees(tensors, leaves, keys)))
    torch.load(io.BytesIO(made), weights_only=False)
    read(made)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": {"b": [1, 1 << 8 * 1786]}}, r"^a\.b\.1: .*int_nbytes would be 1,787, past 1,785"),
        ({"a": [{1}, {_levels(2, 101)}]}, r"^a\.1: .*key_nesting would be 101, past 100"),
        ({"w": np.ones(2), "d": [Decimal("1" * 4001)]}, r"^d\.0: .*up to 4,000 characters"),
        ({"x": _twice([np.ones(1)], 30)}, r"^the object itself: .*shared_names would be"),
        ({"x" * 70_000: [np.ones(1)] * 2000}, r"^the object itself: .*names_nbytes would be"),
    ],
    ids=range(5),
)  # fmt: skip
def test_what_readers_would_refuse(tmp_path: Path, path: Path, tree: Any, said: str) -> None:
    """The path in the object, the bound and what it would be; the old file stays."""
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=said):
        tz.save(tree, path)
    with tz.incremental_save(path) as out:
        tree["early"] = out.store_early(np.zeros(5))
        with pytest.raises(ValueError, match=said):
            out.save(tree)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


def test_what_was_read_with_a_raised_bound(tmp_path: Path) -> None:
    """It is written by whoever gives the bound, and refused by whoever does not."""
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    source.write_bytes(unchecked({"w": np.ones(2), "n": 1 << 8 * 2000}))
    raised = tz.Limits(int_nbytes=3000)
    with pytest.raises(tz.LimitError):
        tz.convert(source, target)
    tz.convert(source, target, limits=raised)
    tz.tools.edit(target, set_values={"m": 1}, limits=replace(raised, nesting=3))
    assert tz.load(target, limits=raised)["n"] == 1 << 8 * 2000
    with pytest.raises(tz.UnsupportedError, match="n: readers would refuse it"):
        tz.tools.repair(source, tmp_path / "c.pt", limits=raised)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.pt", "b.pt"]


@pytest.mark.few
@pytest.mark.parametrize("target", ["b.safetensors", "b.safetensors.index.json"])
def test_a_header_that_no_reader_takes(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header or an index past 100 MB is not written, and what to do is said."""
    source = tmp_path / "a.pt"
    tz.save({f"{i:06d}" + "n" * 1_000_000: np.zeros(1, np.uint8) for i in range(105)}, source)
    with pytest.raises(tz.UnsupportedError, match="shorter names"):
        tz.convert(source, tmp_path / target, limits=tz.Limits(header_nbytes=1 << 40))
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


def test_brackets_in_the_names_of_an_index() -> None:
    """A name may have a bracket: the index counts them, and the name pays for them."""
    shard = "model-00001-of-00001.safetensors"
    weight_map = {f"layers[{index}]": shard for index in range(210_000)}
    raw = build_index({"total_size": 1}, weight_map)
    assert parse_index(BytesSource(raw), tz.Limits()).weight_map == weight_map
    with pytest.raises(tz.UnsupportedError, match="containers would be"):
        build_index({}, {"[" * 1_000_000: shard})


def test_one_tensor_under_very_many_names() -> None:
    """Names beyond those of the tensors are bounded, but in a flat dict: its keys are they."""
    tensor = np.zeros(1)
    limits = tz.Limits(shared_names=50)
    flat = unchecked({str(index): tensor for index in range(100)})
    read(flat, limits)
    for tree in ([tensor] * 100, {"a": dict.fromkeys("abcdefgh", tensor), "b": [tensor] * 60}):
        with pytest.raises(ValueError, match="shared_names would be"):
            Structure(tree, StorageKeys(), place_arrays, limits=limits)
        with pytest.raises(tz.LimitError):
            read(unchecked(tree), limits)
