"""What is in a checkpoint, as plain rows, against an independent count."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.saved import saved
from torchzip.checkpoint.module_tree import module_tree
from torchzip.checkpoint.outline import DtypeSum, Outline, ValueRow, outline
from torchzip.errors import FormatError
from torchzip.types import (
    MetaTensor,
    NestedTensor,
    Parameter,
    QuantizedTensor,
    SparseTensor,
    Storage,
)


def of(obj: Any, limits: tz.Limits | None = None) -> Outline:
    """Return the outline of an object that is saved and opened again."""
    return outline(tz.lazy_load(io.BytesIO(saved(obj)), limits=limits))


def rows_of(obj: Any) -> dict[str, Any]:
    return {row.name: row for row in of(obj).tensors}


def test_a_row() -> None:
    """Everything that a dense tensor is."""
    (row,) = of({"w": Parameter(np.zeros((2, 3), np.float32), requires_grad=True)}).tensors
    assert row._asdict() == {
        "name": "w", "kind": "dense", "dtype": "float32", "shape": (2, 3), "nbytes": 24,
        "numel": 6, "stride": (3, 1), "storage_offset": 0, "requires_grad": True,
        "is_parameter": True, "location": "cpu", "storages": (0,), "span": (0, 24),
        "is_view": False, "shares_storage_with": None, "tied_to": None, "subclass": None,
    }  # fmt: skip


def test_views_and_ties() -> None:
    """A tie is the same elements in the same form; a view is some of what is stored."""
    base = np.arange(12.0).reshape(3, 4)
    rows = rows_of({"w": base, "tied": base, "t": base.T, "row": base[1], "again": base[1]})
    assert [row.shares_storage_with for row in rows.values()] == [None, "w", "w", "w", "w"]
    assert [row.tied_to for row in rows.values()] == [None, "w", None, None, "row"]
    assert [row.is_view for row in rows.values()] == [False, False, False, True, True]
    assert rows["row"].span == (32, 64)
    assert rows["t"].span == (0, 96)
    assert {row.storages for row in rows.values()} == {(0,)}


def test_a_view_may_come_first() -> None:
    """What comes later is tied to it all the same, each to the first of its form."""
    base = np.arange(12.0)
    rows = rows_of({"part": base[2:4], "whole": base, "w2": base, "p2": base[2:4]})
    assert [row.tied_to for row in rows.values()] == [None, None, "whole", "part"]


def test_gaps_and_repeats_are_views() -> None:
    """Every other element, or one element many times, is not what is stored."""
    base = np.arange(12.0)
    gaps, spread = rows_of({"gaps": base[::2], "w": base})["gaps"], np.broadcast_to(base, (3, 12))
    assert (gaps.is_view, gaps.span, gaps.nbytes) == (True, (0, 88), 48)
    made = rows_of({"spread": spread, "w": base})["spread"]
    assert (made.nbytes, made.is_view) == (288, made.stride == (0, 1))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    """A scalar has one element, an empty tensor none and no byte."""
    (row,) = of({"t": np.zeros(shape, np.int16)}).tensors
    assert (row.shape, row.numel) == (shape, int(np.prod(shape)))
    assert row.span == (0, row.nbytes)


def test_a_bare_tensor() -> None:
    """The root itself has the empty name, and is the root of the tree."""
    found = of(np.ones(3))
    assert [row.name for row in found.tensors] == [""]
    tree = module_tree(found)
    assert (tree.row, tree.children) == (found.tensors[0], {})


def test_other_kinds() -> None:
    """Their parts are their storages; a meta tensor has none."""
    sparse = SparseTensor("sparse_coo", np.array([[0, 2]]), np.array([1.0, 2.0]), (4,), True)
    rows = rows_of({
        "s": sparse, "s2": sparse, "q": QuantizedTensor(np.array([1, 2, 3], np.int8), 0.5, 0),
        "n": NestedTensor("jagged", np.arange(5.0), np.array([0, 2, 5])),
        "m": MetaTensor("float16", (2, 3)),
    })  # fmt: skip
    assert [rows[name].kind for name in rows] == [
        "sparse_coo", "sparse_coo", "quantized", "nested_jagged", "meta",
    ]  # fmt: skip
    assert (rows["s"].numel, rows["s"].nbytes, len(rows["s"].storages)) == (2, 32, 2)
    assert (rows["s"].tied_to, rows["s2"].tied_to) == (None, "s")
    assert (rows["q"].numel, rows["q"].nbytes) == (3, 3)
    assert (rows["n"].shape, rows["n"].numel) == ((2, None), 5)
    assert (rows["m"].storages, rows["m"].location, rows["m"].nbytes) == ((), "meta", 0)
    assert rows["m"].stride == (3, 1)


def test_values() -> None:
    """What is no tensor, by path, in short; a list of numbers is one value."""
    found = of({
        "w": np.ones(2), "step": 7, "cfg": {"lr": 0.1, "betas": (0.9, 0.99), "name": "x" * 300},
        3: None, "none": {}, "data": Storage(np.zeros(5, np.float32), "float32"),
    })  # fmt: skip
    assert found.values == (
        ValueRow("step", "int", "7", 7),
        ValueRow("cfg.lr", "float", "0.1", 0.1),
        ValueRow("cfg.betas", "tuple", "(0.9, 0.99)", (0.9, 0.99)),
        ValueRow("cfg.name", "str", "'" + "x" * 100 + "'...", "x" * 300),
        ValueRow("3", "NoneType", "None"),
        ValueRow("none", "dict", "an empty dict"),
        ValueRow("data", "storage", "5 float32, cpu"),
    )
    assert found.stored_nbytes == 16 + 20
    assert [row.tensors for row in found.storages] == [1, 0]


def test_too_many_values_are_a_note() -> None:
    """Where containers are shared a thousand times over, the tensors are still listed."""
    value: Any = [1, "a", {}]
    for _ in range(40):
        value = [value, value]
    found = of({"w": np.ones(2), "bomb": value})
    assert [row.name for row in found.tensors] == ["w"]
    assert found.values == ()
    assert "shared_names" in found.notes[0]


def test_two_tensors_of_one_name() -> None:
    """There is no outline of them."""
    with pytest.raises(FormatError, match=r"two tensors are called 'a\.b'"):
        of({"a.b": np.ones(1), "a": {"b": np.ones(2)}})


def test_script_constants() -> None:
    """Those of an archive of TorchScript count, and have names that are not theirs."""
    with tz.lazy_load(b.GOLDEN / "script.pt") as checkpoint:
        found = outline(checkpoint)
        assert found.constant_count == len(checkpoint.constants)
    assert len(found.tensors) == 5


@pytest.mark.parametrize("path", sorted(b.GOLDEN.glob("*.pt")), ids=lambda path: path.name)
def test_golden_files(path: Any) -> None:
    """Every file that opens has an outline, whose sums are those of its tensors."""
    with tz.lazy_load(path) as checkpoint:
        found = outline(checkpoint)
        assert [row.name for row in found.tensors] == list(checkpoint)
        assert found.nbytes == sum(tensor.nbytes for tensor in checkpoint.values())
        assert found.stored_nbytes == sum(row.nbytes for row in found.storages)


# -- sums ------------------------------------------------------------------------------------------


_NAMES = st.lists(st.sampled_from(["a", "b", "layers", "0", "1", ""]), min_size=1, max_size=4)
_DTYPES = st.sampled_from(["f4", "f8", "i2"])


@st.composite
def _state_dicts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a flat dict of tensors, some of them ties and views of others."""
    made: dict[str, Any] = {}
    for name in draw(st.lists(_NAMES.map(".".join), unique=True, max_size=12)):
        held = list(made.values())
        how = draw(st.sampled_from(["new", "tie", "view"])) if held else "new"
        if how == "new":
            made[name] = np.zeros(draw(st.integers(0, 6)), draw(_DTYPES))
        else:
            array = draw(st.sampled_from(held))
            first = draw(st.integers(0, len(array))) if how == "view" else 0
            made[name] = array[first:] if how == "view" else array
    return made


def _base(array: Any) -> Any:
    return array if array.base is None else array.base


@pytest.mark.long
@given(_state_dicts())
def test_sums_agree_with_an_independent_count(state: dict[str, Any]) -> None:
    """Per dtype, stored, and at each level of the tree."""
    found = of(state)
    by_dtype: dict[str, DtypeSum] = {}
    for array in state.values():
        old = by_dtype.get(array.dtype.name, DtypeSum(0, 0))
        by_dtype[array.dtype.name] = DtypeSum(old.tensors + 1, old.nbytes + array.nbytes)
    assert found.by_dtype == by_dtype
    bases = {id(_base(array)): _base(array).nbytes for array in state.values()}
    assert found.stored_nbytes == sum(bases.values())
    tree = module_tree(found)
    seen = [(0, tree), *tree.walk()]
    assert sum(module.row is not None for _, module in seen) == len(state)
    for depth, module in seen:
        prefix = module.path
        below = {
            name: array
            for name, array in state.items()
            if not depth or (name and name == prefix) or name.startswith(prefix + ".")
        }
        assert module.tensors == len(below)
        assert module.nbytes == sum(array.nbytes for array in below.values())
        assert module.all_numel == sum(array.size for array in below.values())
    assert tree.stored_nbytes == found.stored_nbytes
    for _, module in seen:
        own = module.row is not None
        if not own:
            children = module.children.values()
            assert module.stored_nbytes == sum(child.stored_nbytes for child in children)
            assert module.numel == sum(child.numel for child in children)


def test_deep_names() -> None:
    """A name of a thousand dots, or of a hundred thousand, is no tree of as many levels."""
    found = of({"." * 100_000: np.ones(1), "a" + ".b" * 1000: np.ones(1), "c": np.ones(1)})
    tree = module_tree(found)
    assert max(depth for depth, _ in tree.walk()) == 64
    leaves = [module.path for _, module in tree.walk() if module.row is not None]
    assert leaves == [row.name for row in found.tensors]


def test_a_tensor_that_is_a_prefix() -> None:
    """A name may be a tensor's and the beginning of others."""
    tree = module_tree(of({"a": np.ones(1), "a.b": np.ones(2)}))
    assert [(m.path, m.tensors, m.row is not None) for _, m in tree.walk()] == [
        ("a", 2, True), ("a.b", 1, True),
    ]  # fmt: skip
