"""What torchzip writes, against what torch writes for the same tree: byte for byte."""

from __future__ import annotations

import io
import os
import pathlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import torchzip as tz
from tests.comparing import assert_same_bytes
from tests.random_trees import random_tree
from tests.sampling import some
from tests.saved import saved
from tests.torch_oracle import asks_torch, tensor, to_torchzip, torch_bytes, torch_settings
from tests.trees import CASES

# What torch's default loader will not take is the subject of two tests of their own.
pytestmark = asks_torch("torch.load", "ComplexHalf support is experimental")

#: Trees of many kinds, for what is tried with several settings.
SAMPLE = (
    "two_tensors_on_one_storage", "many_tensors_share_all_dtypes", "state_dict", "AdamW",
    "parameters_shared", "strings", "dict of 2000", "untyped_storage", "named tuple",
    "float32-empty", "payload of 12 bytes that begins like a descriptor", "None",
    "large_payload_with_a_descriptor_in_each_block",
)  # fmt: skip


def compare(torch: Any, tree: Any, alignment: int = 64, crc32: bool = True) -> None:
    """Save a torch tree with torch and with torchzip; the files must be equal."""
    with torch_settings(torch, alignment, crc32):
        expected = torch_bytes(torch, tree)
    actual = saved(to_torchzip(torch, tree), alignment=alignment, crc32=crc32)
    assert_same_bytes(actual, expected)


@pytest.mark.parametrize("name", CASES)
def test_writes_torchs_bytes(torch: Any, name: str) -> None:
    """Every tree is the same file, whoever writes it."""
    compare(torch, CASES[name](torch))


# -- settings and destinations -----------------------------------------------------------------


@pytest.mark.few
@pytest.mark.parametrize("crc32", [True, False], ids=["crc", "no crc"])
@pytest.mark.parametrize("alignment", [1, 2, 16, 64, 100, 4096, 65000])
def test_alignment_and_crc(torch: Any, alignment: int, crc32: bool) -> None:
    """The two settings of the container give the same file as in torch."""
    for name in SAMPLE:
        compare(torch, CASES[name](torch), alignment, crc32)


@pytest.mark.parametrize(
    "name",
    [
        "m.pt", "model.v1.tar.gz", "x", "x.", ".hid.pt", "a b.pt", "..pt", "a..b", "A-B_c+d.bin",
        "mod\u00e8le.pt", "\u00e9/m.pt", "d.ir/x", "d.ir/x.y.z", "back\\slash.pt",
        "x" * 200 + ".pt", "new\nline.pt", "%s {}.pt",
    ],
)  # fmt: skip
def test_archive_name_of_a_path(torch: Any, tmp_path: pathlib.Path, name: str) -> None:
    """The file's own name is part of the file, by torch's rules."""
    tree = CASES["two_tensors_on_one_storage"](torch)
    theirs, ours = tmp_path / "torch" / name, tmp_path / "torchzip" / name
    for path in (theirs, ours):
        path.parent.mkdir(parents=True)
    torch.save(tree, str(theirs))
    tz.save(to_torchzip(torch, tree), str(ours))
    assert_same_bytes(ours.read_bytes(), theirs.read_bytes())
    ours.unlink()
    tz.save(to_torchzip(torch, tree), ours)
    assert_same_bytes(ours.read_bytes(), theirs.read_bytes())


def test_empty_archive_name_is_refused(torch: Any, tmp_path: pathlib.Path) -> None:
    """A path that leaves no archive name is an error in both, and torchzip leaves no file."""
    with pytest.raises(RuntimeError):
        torch.save([1], str(tmp_path / ".pt"))
    (tmp_path / ".pt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="name"):
        tz.save([1], tmp_path / ".pt")
    assert list(tmp_path.iterdir()) == []


def test_relative_path(torch: Any, tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    """A bare file name gives the same archive name as in torch."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": 1}, "m.pt")
    expected = pathlib.Path("m.pt").read_bytes()
    tz.save({"a": 1}, "m.pt")
    assert_same_bytes(pathlib.Path("m.pt").read_bytes(), expected)


def test_open_file(torch: Any, tmp_path: pathlib.Path) -> None:
    """An open file is a file object for both, whatever it is called."""
    tree = CASES["state_dict"](torch)
    with open(tmp_path / "theirs.pt", "wb") as file:
        torch.save(tree, file)
    with open(tmp_path / "ours.pt", "wb") as file:
        tz.save(to_torchzip(torch, tree), file)
    assert_same_bytes((tmp_path / "ours.pt").read_bytes(), (tmp_path / "theirs.pt").read_bytes())


def test_stream_that_holds_data_already(torch: Any) -> None:
    """Offsets and the alignment count from where the archive begins."""
    tree = CASES["two_tensors_on_one_storage"](torch)
    theirs, ours = io.BytesIO(), io.BytesIO()
    for file in (theirs, ours):
        file.write(b"seven b")
    torch.save(tree, theirs)
    tz.save(to_torchzip(torch, tree), ours)
    assert_same_bytes(ours.getvalue(), theirs.getvalue())


def test_several_in_one_stream(torch: Any) -> None:
    """Checkpoints one after the other are those of torch."""
    theirs, ours = io.BytesIO(), io.BytesIO()
    for name in ("state_dict", "strings", "int8-views"):
        tree = CASES[name](torch)
        torch.save(tree, theirs)
        tz.save(to_torchzip(torch, tree), ours)
    assert_same_bytes(ours.getvalue(), theirs.getvalue())


# -- many storages -----------------------------------------------------------------------------


def _many(torch: Any, count: int) -> Any:
    data = torch.arange(count, dtype=torch.int16)
    return {f"t{i}": data[i : i + 1].clone() for i in range(count)}


@pytest.mark.few
@pytest.mark.parametrize("count", [127, 128, 257, 541, 1109, 1200, 2352, 11000])
def test_serialization_id_of_many_storages(torch: Any, count: int) -> None:
    """The id folds the names in the order of a hash table that has grown."""
    compare(torch, _many(torch, count))


def test_serialization_id_of_few_storages(torch: Any) -> None:
    """Every count over the first three growth points of that table."""
    for count in (*range(64), *range(120, 126)):
        compare(torch, _many(torch, count))


@pytest.mark.long
def test_seventy_thousand_records(torch: Any) -> None:
    """More members than the end record of a zip can count."""
    compare(torch, _many(torch, 70_000))


# -- numpy's own arrays ------------------------------------------------------------------------


def _arrays() -> dict[str, NDArray[Any]]:
    square = np.arange(12.0).reshape(3, 4)
    return {
        "contiguous": square.copy(),
        "scalar": np.array(3.5),
        "column-major": np.asfortranarray(square),
        "row, column-major": np.zeros((1, 3), order="F"),
        "column, column-major": np.zeros((3, 1), order="F"),
        "ones, column-major": np.zeros((1, 1, 1), order="F"),
        "size 1 in the middle, column-major": np.zeros((2, 1, 3), order="F"),
        "size 1 within": np.zeros((3, 1, 2)),
        "transposed": square.T,
        "transposed row": np.zeros((1, 3)).T,
        "complex": np.ones((2, 2), np.complex64),
        "bool": np.array([True, False]),
        "a new axis": np.arange(3.0)[None, :, None],
        "65536 bytes and one": np.arange(65537, dtype=np.uint8),
    }


@pytest.mark.parametrize("name", _arrays())
def test_array_as_from_numpy_has_it(torch: Any, name: str) -> None:
    """An array is what ``torch.from_numpy`` makes of it, strides included."""
    array = _arrays()[name]
    expected = torch_bytes(torch, {"x": torch.from_numpy(array)})
    assert_same_bytes(saved({"x": array}), expected)


@given(
    shape=st.lists(st.integers(0, 3), max_size=5).map(lambda sizes: [*sizes, 0]).flatmap(
        st.permutations
    ),
    dtype=st.sampled_from(["f4", "i8", "?", "c16", "u2", ">f8", ml_dtypes.bfloat16]),
    seed=st.integers(0, 2**32),
)  # fmt: skip
def test_an_empty_array_has_no_layout(torch: Any, shape: list[int], dtype: Any, seed: int) -> None:
    """Whatever strides numpy gives it, an empty array is what ``torch.zeros`` of its shape is."""
    rng = random.Random(seed)
    array = np.zeros([size + rng.randint(0, 2) for size in shape], dtype)
    array = array.transpose(rng.sample(range(len(shape)), len(shape)))
    array = array[tuple(slice(0, size, rng.choice((1, 1, 2))) for size in shape)]
    odd = np.ndarray(array.shape, dtype, b"", 0, tuple(rng.randint(0, 9) for _ in shape))
    assert not array.size
    name = str(odd.dtype.newbyteorder("=").name)
    expected = torch_bytes(torch, {"x": torch.zeros(array.shape, dtype=getattr(torch, name))})
    for each in (array, odd, np.zeros(array.shape, dtype)):
        assert_same_bytes(saved({"x": each}), expected)


@pytest.mark.parametrize("name", _arrays())
def test_array_beside_a_view(torch: Any, name: str) -> None:
    """What else is in the tree does not change how an array is written."""
    array, other = _arrays()[name], np.arange(6.0)
    view = torch.from_numpy(other)
    expected = torch_bytes(torch, [torch.from_numpy(array), view, view[2:]])
    assert_same_bytes(saved([array, other, other[2:]]), expected)


@pytest.mark.parametrize(
    ("array", "packed"),
    [
        (np.arange(6.0)[::-1], np.arange(6.0)[::-1].copy()),
        (np.arange(6, dtype=">i4"), np.arange(6, dtype="<i4")),
        (np.arange(6, dtype=">c8").reshape(2, 3).T, np.array([[0, 3], [1, 4], [2, 5]], "c8")),
        (np.zeros(3, "u1,f4")["f1"], np.zeros(3, "f4")),
        (np.arange(10.0)[::3], np.arange(10.0)[::3].copy()),
        (np.arange(12.0).reshape(3, 4)[:, 1], np.arange(12.0).reshape(3, 4)[:, 1].copy()),
        (np.arange(10.0)[4:7], np.arange(4.0, 7.0)),
    ],
    ids=["backward", "big-endian", "big-endian transposed", "unaligned", "gaps", "column", "part"],
)  # fmt: skip
def test_what_torch_cannot_lay_out_is_packed(
    torch: Any, array: NDArray[Any], packed: NDArray[Any]
) -> None:
    """Backward, swapped and gapped arrays are written as a tensor of their elements."""
    expected = torch_bytes(torch, [torch.from_numpy(packed)])
    assert_same_bytes(saved([array]), expected)


def test_broadcast_arrays(torch: Any) -> None:
    """A broadcast array is an expanded tensor: its storage is not repeated."""
    row = np.arange(3.0)
    expected = torch_bytes(torch, [torch.from_numpy(row).expand(1000, 3)])
    assert_same_bytes(saved([np.broadcast_to(row, (1000, 3))]), expected)


def test_arrays_in_a_slice(torch: Any) -> None:
    """A slice can hold arrays as a list can: they keep their strides and their ties."""
    array = np.arange(6.0).reshape(2, 3).T
    view = torch.from_numpy(array)
    expected = torch_bytes(torch, [slice(view, view[1:], 3), view])
    with pytest.warns(UserWarning, match="slice"):
        actual = saved([slice(array, array[1:], 3), array])
    assert_same_bytes(actual, expected)


def test_ml_dtypes_arrays(torch: Any) -> None:
    """The dtypes of ml_dtypes are torch's of the same name."""
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        values = [1.0, 2.0, 0.5]
        array = np.array(values, getattr(ml_dtypes, name))
        expected = torch_bytes(torch, torch.tensor(values).to(getattr(torch, name)))
        assert_same_bytes(saved(array), expected)


def test_different_dtypes_on_one_storage_are_refused_by_both(torch: Any) -> None:
    """Two dtypes over the same bytes: an error in both, which names the places."""
    x = torch.arange(4, dtype=torch.int32)
    tree = {"a": x, "b": [x.view(torch.float32)]}
    with pytest.raises(RuntimeError, match="same data as different types"):
        torch_bytes(torch, tree)
    with pytest.raises(ValueError, match=r"a, b\.0"):
        saved(to_torchzip(torch, tree))


# -- random trees --------------------------------------------------------------------------------


# Some that shrink to small trees, and some that are large from the start.
_RANDOMS = st.randoms(use_true_random=False) | st.integers(0, 1 << 32).map(random.Random)


@given(rng=_RANDOMS, size=st.integers(1, 120), depth=st.integers(0, 6))
def test_random_tree(torch: Any, rng: random.Random, size: int, depth: int) -> None:
    """Trees of any build: scalars, containers in themselves, views, leaves of torch."""
    compare(torch, random_tree(torch, rng, size, depth))


def test_thousands_of_random_trees(torch: Any) -> None:
    """Thousands of small trees; the seed of one that differs is in the message."""
    for seed in some(range(2000)):
        tree = random_tree(torch, random.Random(seed), size=20, depth=3)
        try:
            compare(torch, tree)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


# -- the warning -----------------------------------------------------------------------------------


def _warnings_of(tree: Any) -> tuple[bytes, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = saved(tree)
    assert all(issubclass(warning.category, UserWarning) for warning in caught)
    return data, [str(warning.message) for warning in caught]


def _torch_refuses(torch: Any, data: bytes) -> bool:
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        # Other errors come from hardware that is not there, with the pickle already accepted.
        return "Weights only" in str(error) or "WeightsUnpickler" in str(error)
    return False


@pytest.mark.parametrize("name", CASES)
def test_warns_exactly_when_torch_refuses(torch: Any, name: str) -> None:
    """One warning if torch's default loader will not take the file, and none if it will."""
    data, messages = _warnings_of(to_torchzip(torch, CASES[name](torch)))
    assert len(messages) == _torch_refuses(torch, data), messages
    assert all("weights_only=True" in message for message in messages)


def test_warns_for_random_trees_exactly_when_torch_refuses(torch: Any) -> None:
    """The same for trees that nobody thought of."""
    for seed in some(range(500)):
        data, messages = _warnings_of(
            to_torchzip(torch, random_tree(torch, random.Random(seed), size=5, depth=2))
        )
        assert len(messages) == _torch_refuses(torch, data), (seed, messages)


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"model": {"config": pathlib.PurePosixPath("x")}}, ["model.config (pathlib."]),
        ({"a": [1, {2: b""}], "b": {"c": frozenset()}}, ["a.1.2 (", "b.c ("]),
        (range(3), ["the object itself ("]),
        ([1, [..., 2**3000]], ["1.0 (", "1.1 ("]),
    ],
)
def test_warning_names_the_places(torch: Any, tree: Any, paths: list[str]) -> None:
    """The warning says where in the tree the trouble is."""
    data, messages = _warnings_of(tree)
    assert _torch_refuses(torch, data)
    (message,) = messages
    for path in paths:
        assert path in message


# -- past 4 GiB ----------------------------------------------------------------------------------


class SparseFile(io.RawIOBase):
    """A file in memory that keeps no page of zeros."""

    PAGE = 1 << 16

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._at = 0

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        array = np.frombuffer(data, np.uint8)
        if len(array) > self.PAGE and not array.any():
            self._at += len(array)
        else:
            for start, part in self._parts(array):
                if part.any():
                    page = self.pages.setdefault(start // self.PAGE, bytearray(self.PAGE))
                    first = start % self.PAGE
                    page[first : first + len(part)] = part.tobytes()
        self.size = max(self.size, self._at)
        return len(array)

    def _parts(self, array: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        done = 0
        while done < len(array):
            count = min(self.PAGE - self._at % self.PAGE, len(array) - done)
            yield self._at, array[done : done + count]
            self._at += count
            done += count

    def readinto(self, buffer: Any) -> int:
        out = memoryview(buffer).cast("B")
        count = max(0, min(len(out), self.PAGE - self._at % self.PAGE, self.size - self._at))
        page = self.pages.get(self._at // self.PAGE)
        first = self._at % self.PAGE
        out[:count] = page[first : first + count] if page is not None else bytes(count)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _needs_memory() -> None:
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
    except OSError:
        pytest.skip("the free memory of this machine is not known")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    if int(lines["MemAvailable"].split()[0]) < 12 << 20:
        pytest.skip("needs 12 GB of memory")


def _compare_large(torch: Any, tree: Any, crc32: bool) -> Any:
    theirs: Any = SparseFile()
    ours: Any = SparseFile()
    with torch_settings(torch, crc32=crc32):
        torch.save(tree, theirs)
    tz.save(to_torchzip(torch, tree), ours, crc32=crc32)
    assert ours.size == theirs.size
    assert ours.pages == theirs.pages
    return theirs


@pytest.mark.long
@pytest.mark.parametrize(
    ("nbytes", "crc32"),
    [(2**32 + 5, False), (0xFFFFFFFF, False), (0xFFFFFFFE, False), (0xFFFFFFFF, True)],
)
def test_past_4_gib(torch: Any, nbytes: int, crc32: bool) -> None:
    """Where sizes and offsets need zip64 fields, the files are equal still."""
    _needs_memory()
    large = torch.from_numpy(np.zeros(nbytes, np.uint8))  # pages that are never written
    small = torch.arange(5)
    tree = {"before": small, "large": large, "end": large[-3:], "after": [small + 1, small + 2]}
    theirs = _compare_large(torch, tree, crc32)
    theirs.seek(0)
    with tz.lazy_load(theirs) as ckpt:
        assert ckpt["large"].shape == (nbytes,)
        assert ckpt["large"][-2:].tolist() == [0, 0]
        assert ckpt["after.1"].numpy().tolist() == [2, 3, 4, 5, 6]
        assert ckpt["before"].numpy().tolist() == [0, 1, 2, 3, 4]


def test_offset_past_4_gib_by_many_storages(torch: Any) -> None:
    """Many large storages and small ones between: offsets cross 4 GiB, sizes do not."""
    _needs_memory()
    parts = [torch.from_numpy(np.zeros((1 << 30) - 3000 * i, np.uint8)) for i in range(5)]
    tree = [[part, tensor(torch, "int16", (i,))] for i, part in enumerate(parts)]
    _compare_large(torch, tree, crc32=False)
