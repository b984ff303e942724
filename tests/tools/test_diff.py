"""What `diff` finds of names, values and kinds, what it reads for that, and any bytes."""

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
from torchzip.types import MetaTensor, Parameter, QuantizedTensor, SparseTensor, Storage


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
