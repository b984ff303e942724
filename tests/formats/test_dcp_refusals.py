"""Distributed checkpoints made by hand that are refused, or odd."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as d
from tests.formats.test_dcp import A
from tests.refusals import Refusal, each_refusal
from tests.saved import saved
from tests.test_cost import peak_below
from tests.test_hostile_files import ODD


@pytest.fixture
def made(tmp_path: Path) -> d.Builder:
    """Return a checkpoint of nothing yet."""
    return d.Builder(tmp_path / "c")


Change = Callable[[d.Builder], None]


def _no_tensor(**changes: Any) -> Change:
    """Return what gives tensor ``w`` another description."""

    def change(made: d.Builder) -> None:
        given = {"shape": (7, 4), "boxes": [((0, 0), (7, 4))], **changes}
        made.items["w"] = d.tensor_metadata(given["shape"], given["boxes"], given.get("props"))

    return change


def _place(*arguments: Any, **more: Any) -> Change:
    def change(made: d.Builder) -> None:
        made.places[0] = (d.index("w", (0, 0)), d.info(*arguments, **more))

    return change


def _also(index: bytes, info: bytes) -> Change:
    return lambda made: made.places.append((index, info))


def _items(**items: bytes) -> Change:
    return lambda made: made.items.update(items)


def _metadata(**more: bytes) -> Change:
    return lambda made: made.more.update(more)


def _path(*steps: str | int) -> Change:
    def change(made: d.Builder) -> None:
        made.tensor("w", A, path=steps)
        del made.places[0]

    return change


def _paths(**paths: bytes) -> Change:
    def change(made: d.Builder) -> None:
        made.paths = {**made.paths, **paths}

    return change


def _item(value: Any) -> Change:
    """Return what puts another item in the place of tensor ``w``."""

    def change(made: d.Builder) -> None:
        raw = value if isinstance(value, bytes) else saved(value)
        made.files["__0_0.distcp"] = raw
        made.places[0] = (d.index("w", (0, 0)), d.info("__0_0.distcp", 0, len(raw)))

    return change


def _properties(**changes: Any) -> Change:
    return _no_tensor(props=d.properties(**changes))


def _mixed(made: d.Builder) -> None:
    made.value("x", 1, ("l", 0))
    made.value("y", 2, ("l", "a"))


_BIG = 1 << 62
_HOSTILE: list[Refusal] = [
    # the tensor and its chunks
    ("a chunk is missing", _no_tensor(boxes=[((0, 0), (3, 4))]), "12 of the 28 elements"),
    ("no chunk", _no_tensor(boxes=[]), "0 of the 28"),
    ("chunks overlap", _no_tensor(boxes=[((0, 0), (7, 4)), ((1, 0), (2, 2))]),
     "does not say where"),
    ("a chunk reaches out", _no_tensor(boxes=[((0, 0), (8, 4))]), "reaches out"),
    ("a chunk of one dimension", _no_tensor(boxes=[((0,), (28,))]), "does not say where"),
    ("a huge tensor", _no_tensor(shape=(_BIG, 4), boxes=[((0, 0), (_BIG, 4))]), "an item of"),
    ("a huge empty tensor", _no_tensor(shape=(0, _BIG, _BIG), boxes=[]), "stride"),
    ("many dimensions", _no_tensor(shape=(1,) * 65, boxes=[]), "65 dimensions"),
    ("a size of 2**64", _no_tensor(shape=(1 << 64,), boxes=[]), "Size"),
    ("a negative size", _no_tensor(shape=(-1, 4), boxes=[]), "Size"),
    ("another dtype", _properties(dtype=b.name("torch", "int32")), "int32"),
    ("another size", _no_tensor(shape=(4, 7), boxes=[((0, 0), (4, 7))]), r"\[4, 7\]"),
    ("a dtype that is none", _properties(dtype=b.integer(5)), "dtype"),
    ("a dtype without tensors", _properties(dtype=b.name("torch", "int4")), "dtype"),
    ("sparse", _no_tensor(props=d.properties(layout="torch.sparse_coo")),
     "sparse_coo", tz.UnsupportedError),
    ("a layout that is none", _no_tensor(props=d.properties(layout="strided")), "a name like"),
    ("requires_grad 1", _properties(requires_grad=b.integer(1)), "requires_grad"),
    ("six properties", _properties(more=b"N"), "five"),
    # where the items are
    ("a file that is not there", _place("__9_0.distcp", 0, 9), "__9_0.distcp"),
    ("a path", _place("../__0_0.distcp", 0, 9), "plain name"),
    ("an absolute path", _place("/etc/passwd", 0, 9), "plain name"),
    ("a file name with NUL", _place("a\0b", 0, 9), "plain name"),
    ("past the file", _place("__0_0.distcp", 0, 1 << 40), "truncated"),
    ("an offset of 2**70", _place("__0_0.distcp", 1 << 70, 9), "an int from 0"),
    ("a negative length", _place("__0_0.distcp", 0, -1), "an int from 0"),
    ("compressed", _place("__0_0.distcp", 0, 9, transform_descriptors=b.list_of("zstd.1")),
     r"'w' is encoded \(zstd\.1\)", tz.UnsupportedError),
    ("transforms that are none", _place("__0_0.distcp", 0, 9, transform_descriptors=b.integer(3)),
     "a list was expected"),
    ("items overlap", _also(d.index("v", None), d.info("__0_0.distcp", 40, 30)), "overlap"),
    ("nothing says where", lambda made: made.places.clear(), "does not say where"),
    ("an object without a place", _items(x=d.BYTES), "does not say where 'x'"),
    ("a place under no index", _also(b.text("w"), d.info("__0_0.distcp", 0, 9)), "MetadataIndex"),
    ("an index without a name", _also(d.new(d.MODULE, "MetadataIndex",
     b.dict_of({})), d.info("__0_0.distcp", 0, 9)), "the name of a MetadataIndex"),
    ("an index without a state", _also(d.new(d.MODULE, "MetadataIndex"),
     d.info("__0_0.distcp", 0, 9)), "MetadataIndex"),
    # the items
    ("an item that is no archive", _item(bytes(300)), "begins with"),
    ("an item that is a list", _item([1] * 40), "a tensor was expected"),
    ("an item of another shape", _item(A.T), r"\[4, 7\]"),
    ("an item that is small", _item(b"PK\3\4" + bytes(20)), "an item of 24"),
    ("an item that is cut", _item(saved(A)[:-30]), "__0_0.distcp, 'w'"),
    # the nesting
    ("a path of nothing", _paths(w=b")"), "not made of keys"),
    ("a path that is a list", _paths(w=b.list_of("w")), "a tuple was expected"),
    ("a path of floats", _paths(w=b.tuple_of("a", b"G" + struct.pack(">d", 1.0))), "path"),
    ("a path that begins with a position", _path(0, "a"), "path"),
    ("a negative position", _path("a", -1), "path"),
    ("a huge position", _path("a", 1 << 40), "a list has 1 values"),
    ("a deep path", _path("a", *[0] * 900), "nesting", tz.LimitError),
    ("a very deep path", _path(*["a"] * 50_000), "nesting", tz.LimitError),
    ("a path twice", lambda made: made.value("w2", 5, path=("w",)), "that of another value"),
    ("a path through a value", lambda made: made.value("w2", 5, path=("w", "x")),
     "through another value"),
    ("a dict that is a list", _mixed, "another kind"),
    ("planner_data that is none", _metadata(planner_data=b.integer(3)), "planner"),
    # the classes
    ("a foreign name", _metadata(version=b.call("os.system", "ls")),
     "os.system", tz.UnsafeGlobalError),
    ("a foreign class for the root", _metadata(storage_meta=d.new(d.MODULE, "Metadata", b"}")),
     "StorageMeta"),
    ("getattr", _metadata(version=b.call("builtins.getattr", "x", "y")),
     "getattr", tz.UnsafeGlobalError),
    ("getattr of a class", _metadata(version=b.call("builtins.getattr",
     b.name(d.MODULE, "Metadata"), "y")), "getattr", tz.UnsafeGlobalError),
    ("a persistent id", _metadata(version=b.persistent()), "persistent"),
    ("a tensor in the metadata", _metadata(version=b.name("torch._utils", "_rebuild_tensor_v2")),
     "_rebuild_tensor_v2", tz.UnsafeGlobalError),
    ("no dict of tensors", _metadata(state_dict_metadata=b"]"), "a dict"),
    ("no dict of places", _metadata(storage_data=b"N"), "storage_data"),
    ("a number for a tensor", _items(w=b.integer(1)), "TensorStorageMetadata"),
    ("a tensor with arguments",
     _items(w=b.name(d.MODULE, "TensorStorageMetadata")
     + b.ints(1) + b"\x81" + b"}b"), "TensorStorageMetadata"),
    ("a called class",
     _items(w=b.call(b.name(d.MODULE, "BytesStorageMetadata"))), "BytesStorageMetadata"),
    ("a memory format of text", _properties(memory_format=b.call(
     b.name(d.MODULE, "_MEM_FORMAT_ENCODING"), "x")), "memory format"),
    ("a path of numbers", _metadata(version=b.call("pathlib.PosixPath", 1)), "strings"),
]  # fmt: skip


@each_refusal(_HOSTILE, tz.FormatError)
def test_hostile(
    made: d.Builder, given: Change, error: type[tz.TorchZipError], message: str
) -> None:
    made.tensor("w", A)
    given(made)
    folder = made.write()
    with peak_below(40_000_000), pytest.raises(error, match=message) as caught:
        tz.load(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(error), tz.lazy_load(folder) as checkpoint:
        checkpoint.verify()


def test_overlapping_chunks(made: d.Builder) -> None:
    """Two boxes that share an element are refused when the checkpoint is opened."""
    made.tensor("w", A, [((0, 0), (4, 4)), ((3, 0), (3, 4))])
    with pytest.raises(tz.FormatError, match=r"w: .*overlap"), tz.lazy_load(made.write()):
        pass


def test_a_deflated_chunk(made: d.Builder) -> None:
    """Torch never deflates; reading parts of such a chunk would inflate it over and over."""
    made.items["w"] = d.tensor_metadata((4,), [((0,), (4,))])
    members = b.members_of(b.stream(b.tensor()))
    members = [replace(each, method=8 * each.name.endswith(b"data/0")) for each in members]
    made.put("__0_0.distcp", "w", (0,), b.build_zip(members))
    with pytest.raises(tz.UnsupportedError, match=r"'w'.*deflated"):
        tz.load(made.write())


def test_used_over_and_over(made: d.Builder) -> None:
    """One list of chunks in two bytes each time is no way to make a reader work."""
    state = b.dict_of({"offsets": d.size(0), "sizes": d.size(0)})
    chunk = d.new(d.MODULE, "ChunkStorageMetadata", state) + b"q\x62"
    fields = {
        "properties": d.properties(),
        "size": d.size(0),
        "chunks": b"](" + chunk + b"h\x62" * 50_000 + b"e",
    }
    first = d.new(d.MODULE, "TensorStorageMetadata", b.dict_of(fields))
    made.items = {"t0": first + b"q\x61"}
    made.items |= {f"t{i}": b"h\x61" for i in range(1, 2000)}
    with pytest.raises(tz.FormatError, match="over and over"):
        tz.load(made.write())


def test_one_file_does_not_spoil_another(tmp_path: Path) -> None:
    """What the check of keys remembers ends with the file."""
    colliding = [
        (b.integer(i * ((1 << 61) - 1)), d.info("__0_0.distcp", 0, 9)) for i in range(1, 99)
    ]
    for number in range(3):
        made = d.Builder(tmp_path / str(number))
        made.tensor("w", A)
        made.places += colliding
        with pytest.raises(tz.FormatError, match="MetadataIndex"):
            tz.load(made.write())


# -- odd places, odd files -------------------------------------------------------------------------


def _distributed(folder: Path) -> d.Builder:
    made = d.Builder(folder)
    made.tensor("w", np.arange(4, dtype=np.float32))
    return made


def _metadata_as_items(made: d.Builder) -> None:
    made.places[0] = (d.index("w", (0,)), d.info(".metadata", 0, 200))


def _moved_item(
    file_of: Callable[[bytes], bytes] = bytes, start: int = 0, less: int = 0
) -> Callable[[d.Builder], None]:
    """Return what puts an item into another file, and some of that in its place."""

    def change(made: d.Builder) -> None:
        ((name, raw),) = made.files.items()
        made.files[name] = file_of(raw)
        nbytes = len(made.files[name]) - less
        made.places[0] = (d.index("w", (0,)), d.info(name, start, nbytes))

    return change


def _item_of_another(made: d.Builder) -> None:
    made.tensor("v", np.arange(8, dtype=np.int64), dtype="int64", files=1)
    made.places[0], made.places[1] = (
        (made.places[0][0], made.places[1][1]), (made.places[1][0], made.places[0][1]),
    )  # fmt: skip


_DISTRIBUTED: dict[str, Callable[[d.Builder], None]] = {
    "its metadata for an item": _metadata_as_items,
    "an item that holds the item": _moved_item(lambda raw: saved({"w": raw})),
    "an item with a byte before it": _moved_item(lambda raw: b"x" + raw),
    "an item of one byte less": _moved_item(less=1),
    "an item from its second byte on": _moved_item(start=1, less=1),
    "two items that changed places": _item_of_another,
}


@pytest.mark.parametrize("name", _DISTRIBUTED)
def test_odd_distributed_checkpoints(tmp_path: Path, name: str) -> None:
    """Places that are not those of the items."""
    made = _distributed(tmp_path / "c")
    _DISTRIBUTED[name](made)
    with pytest.raises(tz.FormatError):
        tz.load(made.write())


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", [name for name in ODD if name != "nothing"])
def test_no_regular_file_for_items(tmp_path: Path, name: str) -> None:
    """Items in a FIFO, a device or the like raise at once."""
    folder = _distributed(tmp_path / "c").write()
    (items,) = folder.glob("*.distcp")
    items.unlink()
    ODD[name](items)
    with pytest.raises((OSError, tz.TorchZipError)):
        tz.load(folder)


def test_metadata_cut_at_every_byte(tmp_path: Path) -> None:
    """A ``.metadata`` that is cut is an error; so is an item, which is cut in fewer places."""
    folder = _distributed(tmp_path / "c").write()
    assert tz.load(folder)["w"].tolist() == [0, 1, 2, 3]
    for path in (folder / ".metadata", *folder.glob("*.distcp")):
        raw = path.read_bytes()
        for nbytes in range(0, len(raw), 1 if path.name == ".metadata" else 11):
            path.write_bytes(raw[:nbytes])
            with pytest.raises(tz.TorchZipError):
                tz.load(folder)
        path.write_bytes(raw)
    assert tz.load(folder)["w"].tolist() == [0, 1, 2, 3]
