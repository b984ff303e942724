"""The tar files of torch before 0.1.10, and the tensors of that time."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats.tar_builder import OldCheckpoint, OldStorage, OldTensor, pid, tar_of
from tests.formats.test_pt2 import lazy
from tests.refusals import Refusal, each_refusal
from tests.test_cost import CountingFile
from torchzip.types import Parameter, Storage

_FLOATS = struct.pack("<6f", *range(6))


def _example() -> OldCheckpoint:
    """Return a checkpoint with a tie, a strided view, a window and a bare storage."""
    double = b.name("torch", "DoubleStorage")
    big = 140_000_000_000_000
    return OldCheckpoint(
        storages=[
            OldStorage(key=b.integer(1), data=_FLOATS),
            OldStorage(key=b.integer(big),
             data=struct.pack("<3d", 7, 8, 9), kind=double, itemsize=8, location=b.text("cuda:0")),
            OldStorage(key=b.integer(3), data=b""),
        ],
        views=[(20, 1, 2, 4)],
        tensors=[
            OldTensor(key=b.integer(10), storage=b.integer(1), size=(2, 3), stride=(3, 1)),
            OldTensor(key=b.integer(11), storage=b.integer(1), size=(3, 2), stride=(1, 3)),
            OldTensor(key=b.integer(12), storage=b.integer(big),
             size=(2,), stride=(1,), offset=1, kind=b.name("torch.cuda", "DoubleTensor")),
            OldTensor(key=b.integer(13), storage=b.integer(20), size=(3,), stride=(1,), offset=1),
            OldTensor(key=b.integer(14), storage=b.integer(3), size=(0,), stride=(1,)),
        ],
        pickle=b.stream(b.dict_of({
            "a": pid("10"), "b": pid("10"), "t": pid(11), "d": pid("12"), "w": pid("13"),
            "e": pid("14"), "s": pid("20"), "n": 5,
        })),
    )  # fmt: skip


def test_reads_what_the_description_says() -> None:
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    with lazy(_example().build()) as checkpoint:
        assert checkpoint.format == "tar"
        assert list(checkpoint) == ["a", "b", "t", "d", "w", "e"]
        np.testing.assert_array_equal(checkpoint["a"], expected)
        np.testing.assert_array_equal(checkpoint["t"], expected.T)
        assert checkpoint["d"].numpy().tolist() == [8, 9]
        assert checkpoint["w"].numpy().tolist() == [3, 4, 5]
        assert checkpoint["w"].storage_offset == 3
        assert checkpoint["e"].shape == (0,)
        assert checkpoint.root["a"] is checkpoint.root["b"]
        assert checkpoint["a"].spec.storage is checkpoint["w"].spec.storage
        assert checkpoint["d"].spec.storage.location == "cuda:0"
        bare = checkpoint.root["s"]
        assert isinstance(bare, Storage)
        assert np.asarray(bare.data).tolist() == [2, 3, 4, 5]
        assert checkpoint.root["n"] == 5
        assert ("torch", "FloatStorage") in checkpoint.globals
        assert checkpoint.foreign == []


def test_as_python_2_writes_it() -> None:
    """Texts are SHORT_BINSTRING, keys LONG1, ids may be lines; a class comes with its source."""

    def old(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    key = b"\x8a\x06" + (140_000_000_000_000).to_bytes(6, "little")
    source = b.tuple_of(b.name("my.model", "Net"), old(b"model.py"), old(b"class Net: pass")) + b"Q"
    made = OldCheckpoint(
        storages=[OldStorage(key=key, data=_FLOATS, location=old(b"cuda:1"))],
        tensors=[OldTensor(key=b"\x8a\x01\x05", storage=key, size=(2,), stride=(1,))],
        pickle=b.stream(b.list_of(old(b"5") + b"Q", b"P5\n", source + b")\x81}b")),
    )
    with lazy(made.build()) as checkpoint:
        first, second, net = checkpoint.root
        assert first is second
        assert first.numpy().tolist() == [0, 1]
        assert first.spec.storage.location == "cuda:1"
        assert (net.module, net.name) == ("my.model", "Net")
        assert checkpoint.foreign == [("my.model", "Net")]
    with pytest.raises(tz.UnsafeGlobalError, match="Net"):
        tz.load(io.BytesIO(made.build()), foreign="raise")


def test_load_shares_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(_example().build())
    made = tz.load(path)
    assert made["a"] is made["b"]
    made["a"][1, 0] = 99
    assert made["w"].tolist() == [99, 4, 5]
    mapped = tz.load(path, mmap=True)
    assert mapped["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert not mapped["t"].flags.writeable


def test_verify_and_convert(tmp_path: Path) -> None:
    """Records have no CRC; a conversion keeps views and ties."""
    example = _example()
    example.pickle = b.stream(b.dict_of({"a": pid(10), "w": pid(13), "d": pid(12), "s": pid(1)}))
    (tmp_path / "m.pt").write_bytes(example.build())
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        report = checkpoint.verify()
    assert report.records == 3
    assert report.tensors == 3
    assert len(report.without_crc) == 3
    tz.convert(tmp_path / "m.pt", tmp_path / "n.pt")
    made = tz.load(tmp_path / "n.pt")
    assert np.shares_memory(made["a"], made["w"])
    assert made["d"].tolist() == [8, 9]


def test_opening_reads_no_data() -> None:
    many = [OldStorage(key=b.integer(i), data=bytes(400_000)) for i in range(1, 9)]
    tensors = [
        OldTensor(key=b.integer(100 + i), storage=b.integer(i), size=(100_000,), stride=(1,))
        for i in range(1, 9)
    ]
    pickle = b.stream(b.list_of(*(pid(100 + i) for i in range(1, 9))))
    file = CountingFile(OldCheckpoint(pickle=pickle, storages=many, tensors=tensors).build())
    with tz.lazy_load(file) as checkpoint:
        assert file.nbytes < 80_000
        assert checkpoint["7"].nbytes == 400_000


def test_members_in_any_order_and_extended_headers() -> None:
    """A header of type x gives the size of the next member; other kinds are skipped."""
    members = _example().members()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("tensors")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            info.mtime = 0.5  # does not fit the header, so an extended one goes before
            info.pax_headers = {"size": str(info.size), "path": name}
            tar.addfile(info, io.BytesIO(members[name]))
    with lazy(file.getvalue()) as checkpoint:
        assert checkpoint["d"].numpy().tolist() == [8, 9]


def test_several_in_a_file_object() -> None:
    """`load` leaves a file object behind the tar."""
    data = _example().build()
    ended = data.rstrip(b"\0")
    one = ended + bytes(-len(ended) % 512 + 1024)
    file = io.BytesIO(one + one)
    assert tz.load(file)["n"] == 5
    assert tz.load(file)["n"] == 5
    assert file.tell() == 2 * len(one)


def _with(**changes: Any) -> Callable[[], bytes]:
    def build() -> bytes:
        made = _example()
        for name, value in changes.items():
            setattr(made, name, value)
        return made.build()

    return build


def _storage(**changes: Any) -> Callable[[], bytes]:
    given = {"key": b.integer(1), "data": _FLOATS, **changes}
    return _with(storages=[OldStorage(**given)], views=[], tensors=[], pickle=b.stream(pid("1")))


def _tensor(**changes: Any) -> Callable[[], bytes]:
    given = {"key": b.integer(10), "storage": b.integer(1), "size": (2,), "stride": (1,), **changes}
    return _with(tensors=[OldTensor(**given)], pickle=b.stream(pid("10")))


def _member(name: str, data: bytes | None) -> Callable[[], bytes]:
    def build() -> bytes:
        members = _example().members()
        if data is None:
            del members[name]
        else:
            members[name] = data
        return tar_of(members)

    return build


def _header(at: int, raw: bytes, *, keep_sum: bool = False) -> Callable[[], bytes]:
    def build() -> bytes:
        data = bytearray(_example().build())
        data[at : at + len(raw)] = raw
        if not keep_sum:
            total = sum(data[:148]) + sum(data[156:512]) + 8 * 32
            data[148:156] = b"%06o\0 " % total
        return bytes(data)

    return build


_HOSTILE: list[Refusal] = [
    ("a count past the data", _storage(count=1 << 40), "truncated"),
    ("a negative count", _storage(count=-1), "elements"),
    ("a storage of an unknown class", _storage(kind=b.name("os", "system")),
     "os.system", tz.UnsupportedError),
    ("a storage class that was called", _storage(kind=b.call("torch.FloatStorage")),
     "class", tz.UnsupportedError),
    ("a key that is no number", _storage(key=b.text("../x")), "key"),
    ("a location that is none", _storage(location=b.integer(1)), "location"),
    ("two storages with one key", _with(storages=[OldStorage(key=b.integer(1), data=_FLOATS)] * 2),
     "key 1"),
    ("a view of nothing", _with(views=[(20, 99, 0, 1)]), "99"),
    ("a view past its storage", _with(views=[(20, 1, 4, 3)]), "view"),
    ("a view of a view that wraps", _with(views=[(20, 1, -1, 3)]), "key"),
    ("a view of three numbers", _with(views=[(20, 1, 1)]), "four"),
    ("a tensor past its storage", _tensor(offset=5), "reaches"),
    ("a tensor past its window", _tensor(storage=b.integer(20), size=(5,)), "reaches to element 4"),
    ("a tensor on nothing", _tensor(storage=b.integer(77)), "77"),
    ("a negative stride", _tensor(stride=(-1,)), "stride"),
    ("a negative offset", _tensor(offset=-1), "offset"),
    ("many dimensions", _tensor(ndim=1 << 30), "dimensions"),
    ("negative dimensions", _tensor(ndim=-1), "dimensions"),
    ("fewer numbers than dimensions", _tensor(ndim=3), "needs 8 bytes"),
    ("a sparse tensor", _tensor(kind=b.name("torch.sparse", "FloatTensor")),
     "torch.sparse.FloatTensor", tz.UnsupportedError),
    ("a key that nothing has", _with(pickle=b.stream(pid("999"))), "999"),
    ("a persistent id of text", _with(pickle=b.stream(pid("x"))), "key"),
    ("a persistent id as in a zip", _with(pickle=b.stream(b.tensor())), "key"),
    ("a count that is text", _member("storages", b.stream(b.text("1"))), "count"),
    ("a huge count", _member("tensors", b.stream(b.integer((1 << 31) - 1))), "runs past the end"),
    ("no tensors", _member("tensors", None), "without tensors"),
    ("an empty pickle", _member("pickle", b""), "ends"),
    ("empty storages", _member("storages", b""), "runs past the end"),
    ("a size past the file", _header(124, b"77777777777\0"), "truncated"),
    ("a size of 2**88", _header(124, b"\x80" + b"\xff" * 11), "truncated"),
    ("a size that is no number", _header(124, b"0x777777777\0"), "a number was"),
    ("a wrong sum", _header(124, b"00000000001\0", keep_sum=True), "sum"),
    ("another file", lambda: tar_of({"a.txt": b"hello"}), "it has 'a.txt'"),
    ("an empty tar", lambda: tar_of({})[:257] + b"ustar" + bytes(600), "checksum"),
]  # fmt: skip


@each_refusal(_HOSTILE, tz.FormatError)
def test_hostile(given: Callable[[], bytes], error: type[tz.TorchZipError], message: str) -> None:
    data = given()
    with pytest.raises(error, match=message):
        tz.load(io.BytesIO(data))


def test_two_members_of_one_name() -> None:
    """Which of the two counts cannot be told."""
    members = list(_example().members().items())
    with pytest.raises(tz.FormatError, match="two members are called 'storages'"):
        lazy(tar_of([*members, members[-1]]))


def test_any_byte_changed() -> None:
    data = _example().build()
    rng = np.random.default_rng(7)
    interesting = np.flatnonzero(np.frombuffer(data, np.uint8))
    for at in rng.choice(interesting, 400):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        try:
            tz.load(io.BytesIO(changed))
        except (tz.TorchZipError, OSError):
            continue


# -- tensors by their class ----------------------------------------------------------------------


def _old(kind: str = "FloatTensor", module: str = "torch", **storage: Any) -> bytes:
    """Return an old tensor: its class, called, and a state."""
    state = b.tuple_of(b.persistent(**storage), 1, (3,), (1,))
    return b.call(b.name(module, kind)) + state + b"b"


@pytest.mark.parametrize("module", ["torch", "torch.cuda"])
def test_a_tensor_by_its_class(module: str) -> None:
    """Class, BUILD with storage, offset, size and stride: a tensor like others, ties too."""
    put = b.call(b.name(module, "FloatTensor")) + b"q\x09"
    state = b.tuple_of(b.persistent(), 1, (3,), (1,)) + b"b"
    data = b.checkpoint(b.stream(b.dict_of({"w": put + state, "v": b"h\x09"})))
    with lazy(data) as checkpoint:
        assert list(checkpoint) == ["w", "v"]
        assert checkpoint.root["w"] is checkpoint.root["v"]
        assert checkpoint["w"].numpy().tolist() == [2, 3, 4]
        assert checkpoint.foreign == []
    made = tz.load(io.BytesIO(data))
    assert made["w"].tolist() == [2, 3, 4]


def test_parameters_of_old() -> None:
    """A Parameter around its tensor, one with all in its state, and a Variable."""
    parameter = b.name("torch.nn.parameter", "Parameter")
    variable = b.name("torch.autograd.variable", "Variable")
    state = b.tuple_of(True, False, b"N") + b"b"
    whole = b.tuple_of(_old(), b"N", b"N", False, False) + b"b"
    tree = {
        "around": b.call(parameter, _old()) + state,
        "whole": parameter + b")\x81" + whole,
        "variable": b.call(variable, _old()) + state,
    }
    data = b.checkpoint(b.stream(b.dict_of(tree)))
    with lazy(data) as checkpoint:
        assert list(checkpoint) == ["around", "whole", "variable"]
        for name in ("around", "whole"):
            assert isinstance(checkpoint.root[name], Parameter)
        assert [tensor.requires_grad for tensor in checkpoint.values()] == [True, False, True]
        assert checkpoint["around"].numpy().tolist() == [2, 3, 4]
    assert tz.load(io.BytesIO(data))["variable"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("pickle", "error", "text"),
    [
        (_old("DoubleTensor"), tz.FormatError, "float32"),
        (_old() + b"Nb", tz.UnsupportedError, "BUILD"),
        (b.call("torch.FloatTensor") + b"Nb", tz.FormatError, "state"),
        (b.call("torch.FloatTensor")
         + b.ints(1, 2, 3, 4) + b"b", tz.FormatError, "a storage was expected"),
        (b.call("torch.FloatTensor", 9), tz.UnsupportedError, "FloatTensor"),
        (_old(module="torch.sparse"), tz.UnsupportedError, "torch.sparse.FloatTensor"),
        (_old(module="torch.cuda.sparse"), tz.UnsupportedError, "sparse"),
    ],
    ids=["dtype", "twice", "none", "numbers", "called", "sparse", "cuda sparse"],
)  # fmt: skip
def test_hostile_old_tensors(pickle: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tz.load(io.BytesIO(b.checkpoint(b.stream(pickle))))


# -- several streams -----------------------------------------------------------------------------


def _stream(values: tuple[float, ...]) -> bytes:
    pickle = b.stream(b.tensor(b.persistent(extra=b"N"), size=(4,), stride=(1,)))
    keys = b.stream(b.list_of("0"))
    return b.legacy(pickle, keys, struct.pack("<q4f", 4, *values))


def test_each_load_takes_one_stream() -> None:
    """Of several checkpoints in one file object each `load` gives the next."""
    first, second = _stream((1, 2, 3, 4)), _stream((5, 6, 7, 8))
    file = io.BytesIO(b"head" + first + second + b"tail")
    file.seek(4)
    assert tz.load(file).tolist() == [1, 2, 3, 4]
    assert file.tell() == 4 + len(first)
    assert tz.load(file).tolist() == [5, 6, 7, 8]
    assert file.read() == b"tail"


def test_lazy_load_begins_where_the_file_stands() -> None:
    """`lazy_load` takes the stream at the file's position; several may be open at once."""
    first, second = _stream((1, 2, 3, 4)), _stream((5, 6, 7, 8))
    file = io.BytesIO(first + second)
    with tz.lazy_load(file) as one:
        file.seek(len(first))
        with tz.lazy_load(file) as two:
            assert two[""][1:].tolist() == [6, 7, 8]
            assert one[""][:2].tolist() == [1, 2]
            assert two.verify().records == one.verify().records == 1
            assert two[""].numpy().tolist() == [5, 6, 7, 8]
    file.seek(0)
    assert tz.load(file).tolist() == [1, 2, 3, 4]
