"""Whole checkpoints: arrays that share what they shared, checked as they are read."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.child_process import in_threads
from tests.comparing import assert_same_tree
from tests.saved import flipped, saved
from tests.systems import open_files_can_go
from torchzip.checkpoint import loading
from torchzip.errors import PickleError
from torchzip.tensors.memory import owner_of
from torchzip.types import Device, Dtype, ForeignObject, Layout, QScheme, Size, Storage, TypedArray


def load(*parts: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Any:
    return tz.load(io.BytesIO(b.checkpoint(b.stream(*parts), storages)), **options)


def test_plain_values() -> None:
    """What is no tensor comes back as Python has it."""
    made = load(
        b.dict_of(
            {
                "list": [1, b"N", True],
                "tuple": (1, 2),
                "bytes": b.call("_codecs.encode", "ÿ", "latin1"),
                "none": b.call("__builtin__.bytes"),
                "set": b.call("__builtin__.set", [1, 1]),
                "complex": b.call("__builtin__.complex", 1, 2),
                "range": b.name("__builtin__", "xrange") + b.ints(1, 5, 2) + b"R",
                "slice": b.name("__builtin__", "slice") + b.tuple_of(b"NNN") + b"R",
                "ordered": b.HOOKS + b.text("k") + b.integer(3) + b"s",
                "counter": b.call("collections.Counter", {"a": 2}),
                "size": b.call("torch.Size", (2, 3)),
                "dtype": b.name("torch", "float16"),
                "device": b.call("torch.device", "cuda", 1),
                "layout": b.call("torch.serialization._get_layout", "torch.strided"),
                "scheme": b.name("torch", "per_tensor_affine"),
            }
        )
    )
    assert made == {
        "list": [1, None, True],
        "tuple": (1, 2),
        "bytes": b"\xff",
        "none": b"",
        "set": {1},
        "complex": 1 + 2j,
        "range": range(1, 5, 2),
        "slice": slice(None),
        "ordered": OrderedDict(k=3),
        "counter": {"a": 2},
        "size": Size((2, 3)),
        "dtype": Dtype("float16"),
        "device": Device("cuda", 1),
        "layout": Layout("strided"),
        "scheme": QScheme("per_tensor_affine"),
    }
    assert type(made["ordered"]) is OrderedDict
    assert type(made["size"]) is Size


@pytest.mark.parametrize("mmap", [False, True])
def test_shared_storages_share_memory(path: Path, mmap: bool) -> None:
    """Tensors of one storage are views of one memory; a parameter is its array."""
    parameter = b.call("torch._utils._rebuild_parameter", b.tensor(), True, b.HOOKS)
    flat = b.tensor(stride=(0,))
    path.write_bytes(
        b.checkpoint(
            b.stream(b.list_of(b.tensor(), b.tensor(offset=1, size=(2,)), flat, parameter))
        )
    )
    whole, part, broadcast, data = tz.load(path, mmap=mmap)
    assert part.tolist() == [2, 3]
    assert broadcast.tolist() == [1] * 4
    assert np.shares_memory(whole, part)
    assert np.shares_memory(whole, data)
    assert whole.flags.writeable is not mmap
    if mmap:
        with pytest.raises(ValueError, match="read-only"):
            whole[0] = 9
    else:
        whole[1] = 9
        assert part[0] == data[1] == 9


def test_mmap_needs_a_path() -> None:
    """A file object has no mapping."""
    with pytest.raises(TypeError, match="path"):
        load(b"N", mmap=True)


def test_mmap_of_what_cannot_be_mapped(path: Path) -> None:
    """Deflated bytes and bytes of the other order are read, never served as they are."""
    members = b.members_of(b.stream(b.tensor()))
    path.write_bytes(b.build_zip([replace(each, method=8) for each in members]))
    assert tz.load(path, mmap=True).tolist() == [1, 2, 3, 4]
    swapped = np.array([1, 2, 3, 4], ">f4").tobytes()
    path.write_bytes(
        b.build_zip(b.members_of(b.stream(b.tensor()), {"0": swapped}, byteorder=b"big"))
    )
    assert tz.load(path, mmap=True).tolist() == [1, 2, 3, 4]


@open_files_can_go
def test_mapped_arrays_outlive_the_call(path: Path) -> None:
    """The mapping lives as long as a view of it."""
    tz.save({"w": np.arange(1000.0)}, path)
    array = tz.load(path, mmap=True)["w"]
    path.unlink()
    assert array.sum() == 499_500


def test_unaligned_records_are_mapped_right(tmp_path: Path) -> None:
    """A record that stands at an odd place gives right values."""
    members = b.members_of(b.stream(b.tensor()))
    for shift in range(4):
        path = tmp_path / f"{shift}.pt"
        path.write_bytes(b.build_zip([replace(each, local_extra=b"x" * shift) for each in members]))
        assert tz.load(path, mmap=True).tolist() == [1, 2, 3, 4]
        assert tz.load(path).tolist() == [1, 2, 3, 4]


def test_crc_is_checked_unless_told() -> None:
    """Damage is found; ``verify=False`` gives what is there."""
    members = b.members_of(b.stream(b.tensor()))
    damaged = b.build_zip(
        [replace(each, crc=1) if each.name.endswith(b"data/0") else each for each in members]
    )
    with pytest.raises(tz.FormatError, match="damaged") as caught:
        tz.load(io.BytesIO(damaged))
    assert caught.value.record == "data/0"
    assert tz.load(io.BytesIO(damaged), verify=False).tolist() == [1, 2, 3, 4]
    unchecked = b.build_zip([replace(each, crc=0) for each in members])
    assert tz.load(io.BytesIO(unchecked)).tolist() == [1, 2, 3, 4]


def test_storage_that_does_not_fit_into_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which file it is, and how to read it all the same."""
    tz.save({"w": np.ones(1000)}, path)

    def empty(shape: Any, *args: Any) -> Any:
        if shape == 8000:
            raise MemoryError
        return np.zeros(shape, *args)

    monkeypatch.setattr("torchzip.checkpoint.loading.np.empty", empty)
    with pytest.raises(
        OSError, match="storage 0 of 8,000 bytes does not fit into memory"
    ) as caught:
        tz.load(path)
    assert caught.value.filename == str(path)
    assert "mmap=True" in str(caught.value)


def test_many_megabytes(path: Path) -> None:
    """What is read by more than one thread is the same, and damage in it is found."""
    state = {f"w{i}": np.arange(700_000, dtype=np.float32) + i for i in range(8)}
    tz.save(state, path)
    assert_same_tree(tz.load(path), state)
    data = path.read_bytes()
    with pytest.raises(tz.FormatError, match="damaged"):
        tz.load(io.BytesIO(flipped(data, len(data) // 2)))


def test_dtypes_that_numpy_has_not() -> None:
    """ml_dtypes has bfloat16 and float8; the raw bits of the others keep their name."""
    half = b.persistent(numel=8, kind=b.name("torch", "BFloat16Storage"))
    assert load(b.tensor(half, size=(8,))).dtype == ml_dtypes.bfloat16
    raw = b.persistent(numel=16, kind=b.name("torch", "QUInt4x2Storage"))
    made = load(b.tensor(raw, size=(16,)))
    assert type(made) is TypedArray
    assert (made.torch_dtype, made.array.dtype) == ("quint4x2", np.uint8)
    bits = b.tensor(
        b.persistent(numel=16, kind=b.name("torch.storage", "UntypedStorage")), size=(8,),
        function=b.name("torch._utils", "_rebuild_tensor_v3"), extra=b.name("torch", "bits16"),
    )  # fmt: skip
    assert load(bits).array.dtype == np.uint16


def test_tensors_as_keys() -> None:
    """An array has no hash; as a key it is a TypedArray, the same one wherever it is met."""
    key = TypedArray(np.ones(2, np.float32), "float32")
    with pytest.warns(UserWarning, match="frozenset"):
        data = saved([{key: 1}, {key}, OrderedDict([(key, 2)]), frozenset([key]), key])
    made = tz.load(io.BytesIO(data))
    found = [next(iter(held)) for held in made[:4]]
    assert all(one is found[0] for one in found)
    assert found[0].array is made[4]
    assert made[0][found[0]] == 1


def test_bare_storage() -> None:
    """A storage without a tensor is its data."""
    made = load(b.persistent())
    assert isinstance(made, Storage)
    assert (made.torch_dtype, made.location) == ("float32", "cpu")
    assert made.data.tolist() == [1, 2, 3, 4]


def test_locations_are_kept_apart_from_arrays() -> None:
    """A tensor of another device is an array like any other."""
    assert load(b.tensor(b.persistent(location="cuda:7"))).tolist() == [1, 2, 3, 4]


def test_very_old_tensors() -> None:
    """`_rebuild_tensor` of four arguments, and views of storages."""
    old = b.call("torch._utils._rebuild_tensor", b.persistent(), 1, (2,), (1,))
    assert load(old).tolist() == [2, 3]
    view = b.tuple_of("v", 1, 2)
    assert load(b.tensor(b.persistent(extra=view), size=(2,))).tolist() == [2, 3]


def test_optional_records() -> None:
    """A file needs its pickle and its version, and nothing else."""
    members = b.members_of(b.stream(b.tensor()), byteorder=None)
    assert tz.load(io.BytesIO(b.build_zip(members))).tolist() == [1, 2, 3, 4]
    moved = [
        replace(each, name=b"archive/.data/version") if each.name.endswith(b"version") else each
        for each in members
    ]
    assert tz.load(io.BytesIO(b.build_zip(moved))).tolist() == [1, 2, 3, 4]
    for version in (b"1", b" 10", b"3\n", b"6 and more"):
        data = b.build_zip(b.members_of(b.stream(b"N"), {}, version=version))
        assert tz.load(io.BytesIO(data)) is None


@pytest.mark.parametrize("root", ["m", "a b", "model.v1", "é", "."])
def test_any_root(root: str) -> None:
    """The archive name does not matter."""
    data = b.build_zip(b.members_of(b.stream(b.tensor()), root=root))
    assert tz.load(io.BytesIO(data)).tolist() == [1, 2, 3, 4]


def test_archive_inside_a_file() -> None:
    """A file object is read from where it stands to its end, and left open."""
    data = b.checkpoint(b.stream(b.tensor()))
    file = io.BytesIO(b"head" * 9 + data)
    file.seek(36)
    assert tz.load(file).tolist() == [1, 2, 3, 4]
    assert not file.closed


def test_legacy_streams_follow_one_another() -> None:
    """After a legacy load the file object stands behind it, where the next begins."""
    one = b.legacy(b.stream(b.tensor()), b.stream(b.list_of("0")), b"\4" + bytes(7) + b.DATA)
    file = io.BytesIO(one + one)
    assert tz.load(file).tolist() == [1, 2, 3, 4]
    assert file.tell() == len(one)
    assert tz.load(file).tolist() == [1, 2, 3, 4]


def test_file_object_at_its_end() -> None:
    """As it is right after a save to it: the file is not empty, and is not to be fetched again."""
    file = io.BytesIO()
    tz.save({"w": 1}, file)
    with pytest.raises(tz.FormatError, match=r"no bytes are left after byte [\d,]+.*; seek to"):
        tz.load(file)
    file.seek(0)
    assert tz.load(file) == {"w": 1}


def test_foreign() -> None:
    """Names outside the table are kept, or refused with all of them listed."""
    parts = b.list_of(b.name("m", "C"), b.call("n.f", b.tensor()))
    made = load(parts)
    assert type(made[0]) is type(made[1]) is ForeignObject
    assert made[1].args is not None
    assert made[1].args[0].tolist() == [1, 2, 3, 4]
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        load(parts, foreign="raise")
    assert caught.value.names == [("m", "C"), ("n", "f")]
    with pytest.raises(ValueError, match="foreign must be"):
        load(b"N", foreign="drop")


def test_text_streams() -> None:
    """A stream of text is no file of bytes: the caller's mistake, read or written."""
    for use in (
        lambda: tz.load(io.StringIO("PK" * 100)),  # type: ignore[arg-type]
        lambda: tz.lazy_load(io.StringIO("PK" * 100)),  # type: ignore[arg-type]
        lambda: tz.save({}, io.StringIO()),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            use()


def test_failed_load_leaves_the_path_free(path: Path) -> None:
    """A file that is no checkpoint is closed again."""
    path.write_bytes(b"PK\3\4" + bytes(100))
    for _ in range(3):
        with pytest.raises(tz.FormatError):
            tz.load(path)
        with pytest.raises(tz.FormatError):
            tz.lazy_load(path)
    path.unlink()


def test_loads_in_threads(tmp_path: Path) -> None:
    """Loads at the same time do not meet."""
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.pt")
        tz.save({"w": np.full(1000, index), "n": index}, paths[-1])

    def work(number: int) -> None:
        index = number % 4
        for _ in range(20):
            made = tz.load(paths[index])
            assert made["n"] == index
            assert (made["w"] == index).all()

    in_threads(*[work] * 8)


def test_load_is_repeatable() -> None:
    """Two loads of one object give arrays of their own."""
    file = io.BytesIO(b.checkpoint(b.stream(b.tensor())))
    first = tz.load(file)
    file.seek(0)
    second = tz.load(file)
    assert not np.shares_memory(first, second)


def test_safetensors(tmp_path: Path) -> None:
    """A safetensors file is a flat dict."""
    header = (
        b'{"__metadata__":{"k":"v"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}'
    )
    data = b.safetensors(header, b"\x80\x3f\x00\x40" + np.float32(7).tobytes())
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    for mmap in (False, True):
        made = tz.load(path, mmap=mmap)
        assert list(made) == ["b", "a"]
        assert made["b"].tolist() == [1.0, 2.0]
        assert made["a"].tolist() == [[7.0]]
    with tz.lazy_load(path) as checkpoint:
        assert checkpoint.metadata == {"k": "v"}
        assert checkpoint.format == "safetensors"


def test_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """One processor reads all; a browser has no threads at all."""
    tree = {name: np.full(1 << 22, ord(name), np.uint8) for name in "abc"}
    file = io.BytesIO(saved(tree))

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    monkeypatch.setattr(loading, "processors", lambda: 2)
    with pytest.raises(RuntimeError):
        tz.load(file)
    monkeypatch.setattr(loading, "processors", lambda: 1)
    file.seek(0)
    assert_same_tree(tz.load(file), tree)


def test_memory_goes_with_the_object() -> None:
    """What nobody holds any more is freed at once, and not when Python looks for cycles."""
    file = io.BytesIO(saved({"a": np.ones(1000), "b": [np.ones(10, np.float32)]}))
    gc.collect()
    gc.disable()
    try:
        loaded = tz.load(file)
        memory = [weakref.ref(owner_of(array)) for array in (loaded["a"], loaded["b"][0])]
        assert all(reference() is not None for reference in memory)
        del loaded
        assert all(reference() is None for reference in memory)
    finally:
        gc.enable()


def test_device_that_torch_refuses() -> None:
    """A negative index is none."""
    with pytest.raises(PickleError, match=r"torch\.device takes a type and an index"):
        load(b.call("torch.device", "cuda", -1))
