"""What `diff` finds, beside numpy; what it reads for that; and what it says of any bytes."""

from __future__ import annotations

import io
import json
import math
import random
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.child_process import python
from tests.formats.counting import Counted
from tests.hostile.attack import Attack
from tests.hostile.every import ATTACKS
from tests.sampling import some
from tests.saved import flipped, saved
from tests.test_big import HoleyFile
from tests.test_memory import peak_mb
from torchzip import tools
from torchzip.tools import Diff, diff
from torchzip.tools.differences import ValueChange
from torchzip.types import MetaTensor, Parameter, QuantizedTensor, SparseTensor, Storage, TypedArray

Array = np.ndarray[Any, Any]

_FLOATS = [
    np.dtype(name)
    for name in (
        "float64", "float32", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz,
    )
]  # fmt: skip
_INTS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
_COMPLEX = [np.dtype(name) for name in ("complex64", "complex128")]
_ALL = [*_FLOATS, *_INTS, *_COMPLEX, np.dtype(bool)]


def file_of(value: Any) -> io.BytesIO:
    return io.BytesIO(saved(value))


def between(one: Any, other: Any, **options: Any) -> Diff:
    """Return what differs between two values when they are saved."""
    return diff(file_of(one), file_of(other), **options)


def values_of(found: Diff) -> Any:
    """Return how the elements of the one tensor that changed differ."""
    (change,) = found.changed
    assert change.what == ("values",)
    return change.values


def numbers(dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return numbers of all bits, NaNs and infinities among them."""
    count = math.prod(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(bool).reshape(shape)
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()


def plainly(one: Array, other: Array) -> tuple[int, float | None, int, tuple[int, ...]] | None:
    """Return count, largest difference, NaNs and first index, element by element."""
    found = []
    nans = 0
    largest: float | None = None
    with np.errstate(all="ignore"):
        for index in np.ndindex(one.shape):
            x, y = one[index].item(), other[index].item()
            if one.dtype.kind == "c":
                parts = [(x.real, y.real), (x.imag, y.imag)]
                if all(p == q or (p != p and q != q) for p, q in parts):
                    continue
                gaps = [0.0 if p == q or (p != p and q != q) else abs(p - q) for p, q in parts]
                gap: Any = float(np.hypot(gaps[0], gaps[1]))
                nan = any(each != each for each in gaps)
            else:
                if x == y or (x != x and y != y):
                    continue
                nan = x != x or y != y
                gap = abs(x - y)
            found.append(index)
            if nan:
                nans += 1
            elif one.dtype != bool:
                largest = gap if largest is None else max(largest, gap)
    return (len(found), largest, nans, found[0]) if found else None


@pytest.mark.parametrize("dtype", _ALL, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_against_numpy(dtype: np.dtype[Any], seed: int) -> None:
    """Count, largest difference, NaNs on one side and the first index, of random numbers."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(1, 9, int(rng.integers(0, 4))))
    one = numbers(dtype, shape, rng)
    other = np.where(rng.random(shape) < 0.7, one, numbers(dtype, shape, rng)).astype(dtype)
    found = between({"x": one}, {"x": other})
    expected = plainly(one, other)
    if expected is None:
        assert found.is_equal
        assert found.equal == 1
        return
    values = values_of(found)
    assert (values.count, values.nans, values.first) == (expected[0], expected[2], expected[3])
    if expected[1] is None:
        assert values.max_abs is None
    elif dtype.kind in "iu":
        assert type(values.max_abs) is int
        assert values.max_abs == expected[1]
    else:
        assert values.max_abs == pytest.approx(expected[1], rel=1e-15)


@pytest.mark.parametrize("seed", range(12))
def test_views(seed: int) -> None:
    """Tensors are compared by what they show, however each lies in its storage."""
    rng = np.random.default_rng(seed)
    one = rng.integers(-3, 3, (6, 5, 4)).astype(np.int32)
    other = one.copy()
    for _ in range(seed % 4):
        other[tuple(rng.integers(0, one.shape))] += 1
    order = tuple(rng.permutation(3))
    inverse = tuple(np.argsort(order))
    lying = np.ascontiguousarray(other.transpose(order)).transpose(inverse)
    wide = np.zeros((12, 5, 4), np.int32)
    wide[::2] = other
    for way in (other, lying, wide[::2]):
        found = between({"x": one}, {"x": way, "whole": wide} if way.base is wide else {"x": way})
        expected = plainly(one, other)
        if expected is None:
            assert not found.changed
        else:
            values = values_of(found)
            assert (values.count, values.max_abs, values.nans, values.first) == expected


@pytest.mark.parametrize("seed", range(12))
def test_views_of_one_order(seed: int) -> None:
    """Tensors that lie in one order that is not C's are read in it; the index is the tensor's."""
    rng = np.random.default_rng(seed)
    lying = rng.integers(-3, 3, (7, 1, 4, 5)).astype(np.int32)
    changed = lying.copy()
    for _ in range(4):
        changed[tuple(rng.integers(0, lying.shape))] += 1
    order = tuple(rng.permutation(4))
    for part in (np.s_[:], np.s_[1:6], np.s_[:, :, 1:3], np.s_[..., ::2]):
        one, other = (array[part].transpose(order) for array in (lying, changed))
        found = diff(
            *(file_of([array, whole]) for array, whole in ((one, lying), (other, changed)))
        )
        values = [each.values for each in found.changed if each.before.name == "0"]
        expected = plainly(one, other)
        got = [(v.count, v.max_abs, v.nans, v.first) for v in values if v is not None]
        assert got == ([] if expected is None else [expected])


def test_broadcast() -> None:
    """A tensor of 2**60 elements over one is compared by that one."""
    files = []
    for value in (1.0, 1.5):
        made = b.tensor(b.persistent(numel=1), size=(1 << 30, 1 << 30), stride=(0, 0))
        data = np.float32(value).tobytes()
        files.append(io.BytesIO(b.checkpoint(b.stream(b.dict_of({"x": made})), {"0": data})))
    values = values_of(diff(*files))
    assert (values.count, values.max_abs, values.first) == (1 << 60, 0.5, (0, 0))


def test_overlapping_without_end() -> None:
    """Windows that show 64 elements 2**58 times are an error, and no week of work."""
    files = []
    for value in (1, 2):
        made = b.tensor(b.persistent(numel=64), size=(2,) * 58, stride=(1,) * 58)
        data = np.full(64, value, np.float32).tobytes()
        files.append(io.BytesIO(b.checkpoint(b.stream(b.dict_of({"x": made})), {"0": data})))
    assert diff(files[0], io.BytesIO(files[0].getvalue())).is_equal  # by its CRC
    files[0].seek(0)
    with pytest.raises(tz.UnsupportedError, match="overlap too much"):
        diff(*files)


def test_several_blocks() -> None:
    """The first index and the sums are those of the whole, over blocks of different lengths."""
    one = np.arange(3_000_001, dtype=np.float32)
    other = one.copy()
    other[[70_000, 2_999_999]] += [2, 64]
    base = np.zeros(3_000_008, np.float32)
    base[5:-2] = other
    found = between({"x": one, "y": one[::-1]}, {"x": base[5:-2], "y": one[::-1], "base": base})
    values = values_of(found)
    assert (values.count, values.max_abs, values.first) == (2, 64.0, (70_000,))
    assert found.equal == 1


# -- dtypes ----------------------------------------------------------------------------------------


def test_dtype_is_a_change() -> None:
    """Without `cast` it is said, and the values are not compared."""
    one, other = np.ones(3, np.float32), np.zeros(3, np.float16)
    (change,) = between({"x": one}, {"x": other}).changed
    assert (change.what, change.values) == (("dtype",), None)
    assert (change.before.torch_dtype, change.after.torch_dtype) == ("float32", "float16")


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float8_e4m3fn", "float64"])
def test_cast(tmp_path: Path, target: str) -> None:
    """What `convert` makes of a file is equal under `cast`, and a change in it is found."""
    rng = np.random.default_rng(1)
    tz.save({"x": rng.standard_normal((200, 300)).astype(np.float32)}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", dtype=target)
    found = diff(tmp_path / "a.pt", tmp_path / "b.safetensors", cast=True)
    assert (found.is_equal, found.equal) == (True, 1)
    assert not diff(tmp_path / "a.pt", tmp_path / "b.safetensors").is_equal
    changed = tz.load(tmp_path / "b.safetensors")
    changed["x"][7, 9] = 16
    tz.save(changed, tmp_path / "c.pt")
    assert values_of(diff(tmp_path / "a.pt", tmp_path / "c.pt", cast=True)).first == (7, 9)


def test_cast_is_for_floats() -> None:
    """An int is no float, with `cast` either."""
    found = between({"x": np.ones(3, np.int32)}, {"x": np.ones(3, np.float32)}, cast=True)
    assert found.changed[0].what == ("dtype",)


def test_zeros_and_nans() -> None:
    """Zeros of either sign are equal, and NaNs of any bits; that is said."""
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    one = {"zero": np.array([0.0]), "nan": nan, "same": np.ones(1)}
    other = {"zero": np.array([-0.0]), "nan": nan[::-1].copy(), "same": np.ones(1)}
    found = between(one, other)
    assert (found.is_equal, found.equal, found.other_bits) == (True, 3, ("zero", "nan"))


def test_one_nan_against_a_number() -> None:
    """It differs, and no difference of numbers comes of it."""
    values = values_of(between([np.array([1.0, np.nan])], [np.array([1.0, 2.0])]))
    assert (values.count, values.max_abs, values.nans) == (1, None, 1)


def test_ints_are_exact() -> None:
    """The whole range of 64 bits, which no float has."""
    low, high = -(1 << 63), (1 << 63) - 1
    values = values_of(between([np.array([low, 5])], [np.array([high, 5])]))
    assert values.max_abs == (1 << 64) - 1
    values = values_of(between([np.array([0], "uint64")], [np.array([(1 << 64) - 1], "uint64")]))
    assert values.max_abs == (1 << 64) - 1


def test_raw_bits() -> None:
    """A dtype that numpy has not is compared by its bits."""
    one, other = np.array([1, 2, 3], np.uint16), np.array([1, 7, 3], np.uint16)
    values = values_of(between([TypedArray(one, "bits16")], [TypedArray(other, "bits16")]))
    assert (values.count, values.max_abs, values.first) == (1, None, (1,))


# -- names ----------------------------------------------------------------------------------------


def test_added_removed_renamed() -> None:
    """Names of one side, and pairs of the same bytes."""
    x, y = np.arange(6.0), np.arange(6.0) + 1
    found = between(
        {"a": x, "gone": np.ones(2), "same": y}, {"same": y, "b": x, "new": np.ones((1, 2))}
    )
    assert [(old.name, new.name) for old, new in found.renamed] == [("a", "b")]
    assert [row.name for row in found.removed] == ["gone"]
    assert [(row.name, row.shape) for row in found.added] == [("new", (1, 2))]
    assert found.equal == 1
    assert not found.is_equal


def test_renamed_without_crcs(tmp_path: Path) -> None:
    """The bytes tell, where a file has no CRCs."""
    tensors = {f"old.{n}": np.full(5, n, np.float32) for n in range(20)}
    tz.save(tensors, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", rename=[("^old", "new")])
    found = diff(tmp_path / "a.pt", tmp_path / "b.safetensors")
    pairs = [(f"old.{n}", f"new.{n}") for n in range(20)]
    assert [(old.name, new.name) for old, new in found.renamed] == pairs
    assert (found.added, found.removed) == ((), ())


def test_one_crc_is_no_proof() -> None:
    """Two records with one CRC and other bytes are no pair."""
    files = []
    for name, data in (("a", b.DATA), ("b", bytes(16))):
        members = b.members_of(b.stream(b.dict_of({name: b.tensor()})), {"0": data})
        made = [
            b.Member(name=m.name, data=m.data, crc=7 if b"data/" in m.name else None)
            for m in members
        ]
        files.append(io.BytesIO(b.build_zip(made)))
    with pytest.raises(tz.FormatError, match="CRC"):
        diff(*files)


def test_several_of_the_same_bytes() -> None:
    """Each has one partner."""
    zeros = {name: np.zeros(3) for name in "abc"}
    found = between(zeros, {name: np.zeros(3) for name in "de"})
    assert [(old.name, new.name) for old, new in found.renamed] == [("a", "d"), ("b", "e")]
    assert [row.name for row in found.removed] == ["c"]


# -- values beside the tensors --------------------------------------------------------------------


def test_values() -> None:
    """Numbers, texts and lists of them, by flat name."""
    one = {"w": np.ones(2), "step": 7, "opt": {"lr": 0.1, "betas": (0.9, 0.99)}, "old": "x"}
    other = {"w": np.ones(2), "step": 8, "opt": {"lr": 0.1, "betas": (0.9, 0.999)}, "new": None}
    found = between(one, other)
    assert found.equal == 1
    assert [(each.name, each.before, each.after) for each in found.values] == [
        ("step", "7", "8"),
        ("opt.betas", "(0.9, 0.99)", "(0.9, 0.999)"),
        ("old", "'x'", None),
        ("new", None, "None"),
    ]


@pytest.mark.filterwarnings("ignore:torch.load")
@pytest.mark.parametrize(
    "value",
    [math.nan, [math.nan, 1.5], {"a": {}}, {1, 2}, b"x", 1 << 200, np.float64(3), np.arange(0),
     OrderedDict(a=1), tz.types.Size((2, 3)), tz.types.Dtype("float16"), [{"a": [1, 2]}], ()],
    ids=repr,
)  # fmt: skip
def test_equal_values(value: Any) -> None:
    """A value equals itself, NaN too."""
    assert between({"v": value}, {"v": value}).is_equal


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), ([1], (1,)), ({}, []), ("a", b"a"), ([], [[]])]
)
def test_types_of_values(one: Any, other: Any) -> None:
    """What Python calls equal may be of another type, and that is a difference."""
    assert len(between({"v": one}, {"v": other}).values) >= 1


def test_foreign_objects() -> None:
    """Their classes and what is in them."""

    def namespace(module: str, lr: float) -> bytes:
        made = b.call("copyreg._reconstructor", b.name(module, "Net"),
                      b.name("builtins", "object"), b"N")  # fmt: skip
        state = b.dict_of({"lr": b"G" + struct.pack(">d", lr)})
        return b.checkpoint(b.stream(b.dict_of({"args": made + state + b"b"})))

    def names(one: bytes, other: bytes) -> list[str]:
        return [each.name for each in diff(io.BytesIO(one), io.BytesIO(other)).values]

    assert names(namespace("m", 1), namespace("m", 1)) == []
    assert names(namespace("m", 1), namespace("m", 2)) == ["args.lr"]
    assert names(namespace("m", 1), namespace("n", 1)) == ["args", "args.0"]


def test_shared_containers_are_bounded() -> None:
    """Lists in lists, each twice: 2**60 names in a few bytes are an error, at once."""
    body = b.list_of(b"K\x01")
    for depth in range(60):
        body = b"](" + body + b"q" + bytes([depth]) + b"h" + bytes([depth]) + b"]e"
    file = b.checkpoint(b.stream(body))
    with pytest.raises(tz.LimitError):
        diff(io.BytesIO(file), io.BytesIO(file), limits=tz.Limits(shared_names=10_000))


def test_cycles() -> None:
    """A list in itself has an end."""
    cycle: list[Any] = [1, "a", {}]
    cycle.append(cycle)
    assert between({"c": cycle}, {"c": cycle}).is_equal


# -- kinds and formats ----------------------------------------------------------------------------


def test_sparse() -> None:
    """The parts of a tensor that is not dense are compared, each by its name."""

    def sparse(indices: Any, values: Any, size: int = 4) -> SparseTensor:
        return SparseTensor("sparse_coo", np.array([indices]), np.array(values), (size,), True)

    first = sparse([0, 2], [1.0, 2.0])
    assert between({"s": first}, {"s": sparse([0, 2], [1.0, 2.0])}).is_equal
    (change,) = between({"s": first}, {"s": sparse([0, 2], [1.0, 2.5])}).changed
    assert change.part == "values"
    assert change.values is not None
    assert change.values.max_abs == 0.5
    (change,) = between({"s": first}, {"s": sparse([0, 3], [1.0, 2.0])}).changed
    assert change.part == "indices"
    assert between({"s": first}, {"s": sparse([0], [1.0])}).changed[0].what == ("form",)
    assert between({"s": first}, {"s": sparse([0, 2], [1.0, 2.0], 5)}).changed[0].what == ("shape",)
    assert between({"s": first}, {"s": np.zeros(4)}).changed[0].what == ("kind",)
    renamed = between({"s": first}, {"t": sparse([0, 2], [1.0, 2.0])}).renamed
    assert [(old.name, new.name) for old, new in renamed] == [("s", "t")]


def test_quantized() -> None:
    """Scale and zero point are its form, the integers a part."""

    def quantized(*ints: int, scale: float = 0.5) -> QuantizedTensor:
        return QuantizedTensor(np.array(ints, np.uint8), scale, 3)

    first = {"q": quantized(1, 2)}
    assert between(first, {"q": quantized(1, 2)}).is_equal
    (change,) = between(first, {"q": quantized(1, 9)}).changed
    assert change.part == "int_repr"
    assert change.values is not None
    assert (change.values.count, change.values.max_abs) == (1, 7)
    assert between(first, {"q": quantized(1, 2, scale=0.25)}).changed[0].what == ("form",)


def test_meta() -> None:
    """Shape, dtype and stride are all that it has."""
    first = {"m": MetaTensor("float32", (2, 3))}
    assert between(first, {"m": MetaTensor("float32", (2, 3))}).is_equal
    assert between(first, {"m": MetaTensor("float32", (2, 3), (1, 2))}).changed[0].what == ("form",)
    other = {"m": MetaTensor("float16", (3,))}
    assert between(first, other).changed[0].what == ("dtype", "shape")


def test_bare_storages() -> None:
    """A storage in the tree is compared as a tensor is."""
    one = {"s": Storage(np.arange(4, dtype=np.float32), "float32")}
    other = {"s": Storage(np.array([0, 1, 2, 4], np.float32), "float32")}
    assert between(one, one).is_equal
    found = between(one, other)
    assert (found.changed[0].before.kind, values_of(found).first) == ("storage", (3,))
    assert between(one, {"t": one["s"]}).renamed[0][1].name == "t"


def test_parameters() -> None:
    """A Parameter is its data, with or without requires_grad, and another thing than a tensor."""
    data = np.ones(3)
    assert between({"p": Parameter(data)}, {"p": Parameter(np.ones(3), False)}).is_equal
    found = between({"p": Parameter(data)}, {"p": data})
    assert found.changed == ()
    assert found.values == (ValueChange("p (form)", "a Parameter", "a tensor"),)


GOLDEN = sorted(b.GOLDEN.glob("*.pt"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_golden_files_equal_themselves(path: Path) -> None:
    """Whatever is in a file, the file is equal to itself."""
    found = diff(path, path)
    assert found.is_equal, found
    assert not found.other_bits


def test_across_formats(tmp_path: Path) -> None:
    """A file, what it was converted to, and its shards are equal: ties and values too."""
    weight = np.arange(600, dtype=np.float32).reshape(20, 30)
    tree = {"net": OrderedDict(w=weight, t=weight.T, bias=np.ones(30)), "tied": weight, "step": 3}
    tz.save(tree, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    (tmp_path / "c").mkdir()
    index = tmp_path / "c" / "model.safetensors.index.json"
    tz.convert(tmp_path / "a.pt", index, max_shard_size="2KB")
    places = [tmp_path / "a.pt", tmp_path / "b.safetensors", tmp_path / "c"]
    for one in places:
        for other in places:
            found = diff(one, other)
            assert found.is_equal, found
            assert found.equal == 4


def test_legacy_against_zip() -> None:
    """The same values in the stream of before 1.6."""
    legacy = b.GOLDEN / "views-legacy.pt"
    with tz.lazy_load(legacy) as checkpoint:
        count = len(checkpoint)
        again = file_of(checkpoint.root)
    found = diff(legacy, again)
    assert (found.is_equal, found.equal) == (True, count)


def test_byte_order() -> None:
    """A file of the other byte order has other bytes and the same values."""
    body = b.stream(b.dict_of({"x": b.tensor()}))
    files = []
    for order, text in (("<", b"little"), (">", b"big")):
        data = np.arange(4).astype(order + "f4").tobytes()
        members = b.members_of(body, {"0": data}, byteorder=text)
        files.append(io.BytesIO(b.build_zip(members)))
    found = diff(*files)
    assert (found.is_equal, found.equal) == (True, 1)


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    """The texts of two headers are compared."""
    paths = []
    for name, text in (("a", "one"), ("b", "two")):
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        header = json.dumps({"__metadata__": {"note": text}, "x": entry}).encode()
        paths.append(tmp_path / f"{name}.safetensors")
        paths[-1].write_bytes(b.safetensors(header, b.DATA))
    (change,) = diff(*paths).values
    assert (change.name, change.before, change.after) == ("__metadata__.note", "'one'", "'two'")


# -- cost -----------------------------------------------------------------------------------------


def test_equal_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all CRCs agree, no byte of a tensor is read."""
    tensors = {f"w{n}": np.full(200_000, n, np.float32) for n in range(10)}
    for name in ("a.pt", "b.pt"):
        tz.save(tensors, tmp_path / name)
    counted = Counted(monkeypatch)
    found = diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (found.is_equal, found.equal) == (True, 10)
    assert counted.nbytes < 2 * (0xFFFF + 22 + 10_000)


def test_a_tie_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty names of one tensor cost what one does."""
    for name, value in (("a.pt", 1), ("b.pt", 2)):
        array = np.full(500_000, value, np.float32)
        tz.save({f"w{n}": array for n in range(50)}, tmp_path / name)
    counted = Counted(monkeypatch)
    assert len(diff(tmp_path / "a.pt", tmp_path / "b.pt").changed) == 50
    assert counted.nbytes < 2 * 2_000_000 + 200_000


def test_transposed_tensors_are_read_without_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that lie in one order cost one pass over each, in large reads."""
    for name, value in (("a.pt", 0), ("b.pt", 1)):
        array = np.zeros((3000, 2000), np.float32)
        array[5, 7] = value
        tz.save({"x": array.T}, tmp_path / name)
    counted = Counted(monkeypatch)
    found = diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert values_of(found).first == (7, 5)
    assert counted.nbytes < 2 * 24_000_000 + 200_000


def _measured(monkeypatch: pytest.MonkeyPatch, paths: list[Path]) -> tuple[Diff, int, int]:
    """Return what differs, the bytes read for that, and the peak memory of a process in MB."""
    script = "import sys; from torchzip.tools import diff; diff(*sys.argv[1:])"
    peak = peak_mb(script, *paths)
    counted = Counted(monkeypatch)
    return diff(*paths), counted.nbytes, peak


@pytest.fixture
def sparse_folder(tmp_path: Path) -> Path:
    """Return a folder whose files may have holes, and peaks that can be known."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is only known on Linux")
    with (tmp_path / "probe").open("wb") as file:
        file.truncate(1 << 24)
    if (tmp_path / "probe").stat().st_blocks * 512 >= 1 << 24:
        pytest.skip("this file system has no sparse files")
    return tmp_path


@pytest.mark.long
def test_two_gigabytes_that_differ_in_one_tensor(
    sparse_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only that tensor is read, in a few megabytes of memory."""
    paths = [sparse_folder / "a.pt", sparse_folder / "b.pt"]
    for path, value in zip(paths, (1, 2), strict=True):
        tensors = {f"w{n}": np.zeros(5_000_000, np.float32) for n in range(100)}
        tensors["w50"][0] = value
        file: Any = HoleyFile(path)
        tz.save(tensors, file)
        file.close()
        assert path.stat().st_size > 2_000_000_000
    found, nbytes, peak = _measured(monkeypatch, paths)
    assert (found.equal, found.changed[0].before.name, values_of(found).count) == (99, "w50", 1)
    assert nbytes < 50_000_000
    assert peak < 78


@pytest.mark.long
def test_one_tensor_larger_than_memory_may_be(
    sparse_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor of 600 MB that has to be read takes no more memory."""
    paths = [sparse_folder / "a.safetensors", sparse_folder / "b.safetensors"]
    entry = {"dtype": "F32", "shape": [150_000_000], "data_offsets": [0, 600_000_000]}
    head = b.safetensors(json.dumps({"x": entry}).encode())
    for path, value in zip(paths, (1, 2), strict=True):
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + 600_000_000)
            file.seek(-4, io.SEEK_END)
            file.write(np.float32(value).tobytes())
    found, _, peak = _measured(monkeypatch, paths)
    assert (found.changed[0].before.name, values_of(found).count) == ("x", 1)
    assert peak < 78


# -- any bytes ------------------------------------------------------------------------------------


def _try(one: bytes, other: bytes) -> Diff | None:
    try:
        return diff(io.BytesIO(one), io.BytesIO(other))
    except (tz.TorchZipError, OSError):
        return None


@pytest.mark.parametrize("attack", ATTACKS[::10], ids=[each.name for each in ATTACKS[::10]])
def test_hostile_files(attack: Attack) -> None:
    """A result or an error of ours, beside a sound file; tests/test_hostile.py has them all."""
    sound = saved({"x": np.arange(4, dtype=np.float32), "n": 1})
    _try(sound, attack.data)


def test_damaged_bytes() -> None:
    """One changed byte anywhere: an error, a difference, or nothing that CRCs or values show."""
    sound = saved({"x": np.arange(300.0), "y": {"z": np.ones(3, np.int8)}, "n": 1})
    rng = random.Random(3)
    for _ in some(range(300)):
        data = flipped(sound, rng.randrange(len(sound)), 1 << rng.randrange(8))
        _try(data, sound)
        _try(sound, data)


def test_damage_shows_where_it_is_read() -> None:
    """A tensor whose bytes are not those of its CRC is an error, with file and record."""
    one = file_of({"x": np.arange(300.0)})
    data = saved({"x": np.arange(300.0) + 1})
    data = flipped(data, data.index(np.arange(1, 301.0).tobytes()) + 700, 4)
    with pytest.raises(tz.FormatError, match=r"record data/0: .*CRC"):
        diff(one, io.BytesIO(data))


# -- the door -------------------------------------------------------------------------------------


def test_importing_costs_nothing() -> None:
    """``import torchzip.tools`` brings neither numpy nor what compares."""
    code = "import sys, torchzip.tools; print('numpy' in sys.modules, dir(torchzip.tools)[-1])"
    assert python("-c", code).split()[0] == "False"
    with pytest.raises(AttributeError):
        tools.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_limits() -> None:
    """They are those of both files."""
    make: Callable[[], io.BytesIO] = lambda: file_of({"x": np.ones(3)})  # noqa: E731
    with pytest.raises(tz.LimitError):
        diff(make(), make(), limits=tz.Limits(pickle_nbytes=10))
