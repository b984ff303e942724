"""What `repair` saves of damaged files, judged by where the bytes of each tensor lay before."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import torchzip as tz
from tests.hostile.attack import Attack
from tests.hostile.every import ATTACKS
from tests.sampling import some
from tests.saved import big_endian, flipped, quiet, saved, zipped_again
from tests.systems import open_files_can_go
from tests.tools.damage import (
    GOLDEN,
    Original,
    alike,
    damaged,
    end_of_pickle,
    judge,
    judge_some,
    places_of,
    repaired,
    twenty,
    value_of,
)
from torchzip.errors import ArchiveError, FormatError, LimitError, TorchZipError, UnsupportedError
from torchzip.tools import repair
from torchzip.types import Parameter, QuantizedTensor, SparseTensor, Storage

_TWENTY = Original(saved(twenty()))
_SMALL = saved({"a": np.arange(3, dtype=np.int16), "b": np.ones(2, np.uint8)})


# -- single damage -------------------------------------------------------------------------------

_KINDS: dict[str, Callable[[bytes], bytes]] = {
    "as torch writes it": lambda data: data,
    "zipped again": zipped_again,
    "deflated": lambda data: zipped_again(data, zipfile.ZIP_DEFLATED),
    "big-endian": big_endian,
}
each_kind = pytest.mark.parametrize("kind", _KINDS)


@each_kind
def test_flips(kind: str, tmp_path: Path) -> None:
    """One damaged byte loses the tensors on the storage that it is in, and no other."""
    original = Original(_KINDS[kind](_TWENTY.data))
    rng = random.Random(kind)
    start, stop = places_of(original.data)["data.pkl"]
    for _ in some(range(200)):
        place = rng.randrange(len(original.data))
        if kind == "deflated" and start <= place < stop:
            continue  # a byte of a deflated pickle is not put right
        data = flipped(original.data, place, rng.randint(1, 255))
        found = judge_some(original, data, original.without(place), tmp_path)
        assert found.tensors == len(original.without(place))
        assert not found.unverified


@pytest.mark.parametrize("kind", ["as torch writes it", "zipped again", "big-endian"])
def test_cuts(kind: str, tmp_path: Path) -> None:
    """Every tensor that lies before the end comes back, if the pickle does."""
    original = Original(_KINDS[kind](_TWENTY.data))
    rng = random.Random(kind)
    first = 4000 if kind != "as torch writes it" else end_of_pickle(original.data)
    for _ in some(range(200)):
        cut = rng.randrange(first, len(original.data))
        must = original.before(cut)
        if kind != "as torch writes it" and not must - {"model.empty"}:
            continue
        found = judge_some(original, original.data[:cut], must, tmp_path)
        # Only what lost its descriptor to the cut has no CRC.
        assert len(found.unverified) <= 3


def test_every_byte_of_a_small_file(tmp_path: Path) -> None:
    """As `test_flips`, for each byte."""
    original = Original(_SMALL)
    for place in some(range(len(original.data))):
        data = flipped(original.data, place, (1, 0x80, 0xFF)[place % 3])
        judge(original, data, original.without(place), tmp_path)


def test_cuts_of_a_small_file(tmp_path: Path) -> None:
    """As `test_cuts`, at each third byte; before the pickle's CRC there is an error."""
    original = Original(_SMALL)
    for cut in some(range(0, len(original.data), 3)):
        if cut >= end_of_pickle(original.data) and original.before(cut):
            judge(original, original.data[:cut], original.before(cut), tmp_path)
        elif cut < end_of_pickle(original.data):
            with pytest.raises(TorchZipError):
                repaired(original.data[:cut], tmp_path)


@pytest.mark.parametrize(
    "path", [path for path in GOLDEN if b"data.pkl" in path.read_bytes()[:99]],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)  # fmt: skip
def test_golden(path: Path, tmp_path: Path) -> None:
    """Files of four releases of torch, of all kinds of tensors; TorchScript comes back as bytes."""
    data = path.read_bytes()
    rng = random.Random(path.name)
    original = Original(data)
    for _ in some(range(12)):
        place = rng.randrange(len(data))
        broken = flipped(data, place, rng.randint(1, 255))
        if path.name == "script.pt":
            found, checkpoint = repaired(broken, tmp_path)
            if found.damage is not None:
                assert all(name.startswith(("data/", "constants/")) for name in checkpoint)
            continue
        judge(original, broken, original.without(place), tmp_path)
    if path.name != "script.pt":
        for _ in range(6):
            cut = rng.randrange(end_of_pickle(data), len(data))
            if original.before(cut):
                judge(original, data[:cut], original.before(cut), tmp_path)


# -- much damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [twenty, alike])
@given(seed=st.integers(0, 1 << 40))
@example(seed=16357577)  # a block with a whole record lands in the extra field of another
def test_any_damage(
    value: Callable[[], Any], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Whatever happens to a file with CRCs, what comes back under a name is right."""
    original = _BY_VALUE[value]
    data, done = damaged(original.data, random.Random(seed))
    try:
        found, checkpoint = repaired(data, tmp_path_factory.mktemp("damage"))
    except TorchZipError:
        return
    with checkpoint:
        if not all(name.startswith("data/") for name in checkpoint):
            assert checkpoint.root["step"] == 7
            for name in set(checkpoint) - set(found.unverified):
                assert value_of(checkpoint[name]) == original.values[name], (name, done)


_BY_VALUE = {twenty: _TWENTY, alike: Original(saved(alike()))}


@pytest.mark.parametrize("kind", _KINDS)
def test_noise_around(kind: str, tmp_path: Path) -> None:
    """A header of a download in front, and 100,000 zeros behind: all comes back."""
    original = Original(_KINDS[kind](_TWENTY.data))
    for front, behind in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 16557\r\n\r\n", b""),
        (b"", bytes(100_000)),
        (b"x" * 999, b"\r\n" * 50_000),
    ):
        judge(original, front + original.data + behind, set(original.values), tmp_path)


def test_a_hole(tmp_path: Path) -> None:
    """A failed download with zeros in the middle: what is outside of them comes back."""
    original = _TWENTY
    start = end_of_pickle(original.data)
    for first, last in ((5000, 8192), (4096, 12288), (start + 1000, start + 1400)):
        data = original.data[:first] + bytes(last - first) + original.data[last:]
        must = {
            name
            for name, spans in original.spans.items()
            if not any(begin < last and first < end for begin, end in spans)
        }
        judge(original, data, must, tmp_path)


def test_bytes_are_missing(tmp_path: Path) -> None:
    """In the middle, they cost the tensor that they are of; in front, all names, as of a pickle."""
    original = _TWENTY
    start, stop = max(span for spans in original.spans.values() for span in spans)
    data = original.data[: start + 1] + original.data[stop - 1 :]
    judge(original, data, original.without(start), tmp_path)
    found, checkpoint = repaired(original.data[950:], tmp_path)
    places = places_of(original.data).values()
    assert len(checkpoint) == sum(start < stop for start, stop in places) - 6
    assert all(each.startswith("data/") for each in checkpoint)
    assert "names, dtypes and shapes are lost" in found.notes[0]


# -- the structure -------------------------------------------------------------------------------


def test_pickle_put_right(tmp_path: Path) -> None:
    """One damaged byte of the pickle is found by its CRC, and that is said."""
    place = _TWENTY.data.index(b"layers.3.weight") + 9
    data = flipped(_TWENTY.data, place, 0x5A)
    found = judge_some(_TWENTY, data, set(_TWENTY.values), tmp_path)
    start = _TWENTY.data.index(b"\x80\2")
    assert found.notes == (
        f"byte {place - start:,} of data.pkl was damaged and was corrected by its CRC-32",
    )


def test_pickle_lost(tmp_path: Path) -> None:
    """Without a pickle the storages come back as bytes, and names are said to be lost."""
    data = bytearray(_TWENTY.data)
    place = data.index(b"layers.3.weight")
    data[place : place + 8] = b"nothing "
    found, checkpoint = repaired(bytes(data), tmp_path)
    records = places_of(_TWENTY.data).items()
    spans = {name: (start, stop) for name, (start, stop) in records if stop > start}
    spans = {name: span for name, span in spans.items() if name.startswith("data/")}
    assert set(checkpoint) == set(spans)
    for name, (start, stop) in spans.items():
        array = checkpoint[name].numpy()
        assert array.dtype == np.uint8
        assert array.tobytes() == _TWENTY.data[start:stop]
    assert "names, dtypes and shapes are lost" in found.notes[0]


@open_files_can_go
def test_big_pickle(tmp_path: Path) -> None:
    """In a pickle of 100 KB a bit is put right; a byte is not, as chance could find another."""
    value = {"w": np.ones(3, np.float32), "text": "x" * 100_000}
    original = Original(saved(value))
    place = original.data.index(b"xxxx") + 100
    for change, comes_back in ((0x10, True), (0x30, False)):
        found, checkpoint = repaired(flipped(original.data, place, change), tmp_path)
        assert list(checkpoint) == (["w"] if comes_back else ["data/0"])
        assert found.notes


def test_byteorder(tmp_path: Path) -> None:
    """Numbers are never turned round: without a byte order that is sure, they come as bytes."""
    original = Original(big_endian(_TWENTY.data))
    start, stop = places_of(original.data)["byteorder"]
    data = bytearray(original.data)
    data[start:stop] = b"lit"
    judge(original, bytes(data), set(original.values), tmp_path)  # its CRC is that of "big"
    header = original.data.index(b"archive/byteorder") - 30
    data[header : stop + 20] = bytes(stop + 20 - header)
    cut = original.data.index(b"PK\1\2")
    found, checkpoint = repaired(bytes(data[:cut]), tmp_path)
    assert all(name.startswith("data/") for name in checkpoint)
    assert "cannot be told" in found.notes[0]


def edited(data: bytes, pickle: bytes) -> bytes:
    """Return an archive with a new pickle and directory appended, and the old ones left there."""
    made = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        rows = [info for info in archive.infolist() if not info.filename.endswith("data.pkl")]
        crcs = [(i.filename, i.CRC, i.file_size, i.header_offset) for i in rows]
    name = b"archive/data.pkl"
    offset = len(made)
    pad = -(offset + 30 + len(name) + 4) % 64
    made += struct.pack("<4sHHHHHLLLHH", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(name), 4 + pad)
    made += name + b"FB" + struct.pack("<H", pad) + b"Z" * pad + pickle
    crc = zlib.crc32(pickle)
    made += struct.pack("<4sLLL", b"PK\7\x08", crc, len(pickle), len(pickle))
    start = len(made)
    for each, known, nbytes, at in [("archive/data.pkl", crc, len(pickle), offset), *crcs]:
        made += struct.pack(
            "<4sHHHHHHLLLHHHHHLL",
            b"PK\1\2", 0, 0, 0x808 if nbytes else 0x800, 0, 0, 0, known, nbytes, nbytes,
            len(each), 0, 0, 0, 0, 0, at,
        )  # fmt: skip
        made += each.encode()
    count = len(crcs) + 1
    made += struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, len(made) - start, start, 0)
    return bytes(made)


def test_edited(tmp_path: Path) -> None:
    """Of a file edited in place the new structure counts; cut within it, the old one."""
    old = Original(saved({"old": np.arange(5, dtype=np.int32), "other": np.ones(3)}))
    with zipfile.ZipFile(io.BytesIO(old.data)) as archive:
        pickle = archive.read("archive/data.pkl").replace(b"old", b"new")
    new = Original(old.data)
    new.data = edited(old.data, pickle)
    for held in (new.values, new.spans):
        held["new"] = held.pop("old")
    for place in some(range(0, len(new.data) - 22, 7)):
        data = flipped(new.data, place, 0x41)
        judge(new, data, new.without(place), tmp_path)
    for cut in some(range(len(old.data), len(new.data) - 22, 7)):
        judge(old, new.data[:cut], set(old.values), tmp_path)
    # With the new pickle beyond repair, the one before the edit is there still.
    start = new.data.rindex(b"\x80\2")
    data = new.data[: start + 10] + bytes(20) + new.data[start + 30 :]
    found = judge_some(old, data, set(old.values), tmp_path)
    assert "before the file was edited" in found.notes[0]


def test_archive_in_a_tensor(tmp_path: Path) -> None:
    """A tensor may be a checkpoint itself; its records are none of the file's."""
    inner = saved({"a": np.arange(64, dtype=np.float32), "b": np.arange(9), "c": np.ones(40)})
    value = {
        "a": np.full(64, 7, np.float32), "inner": np.frombuffer(inner, np.uint8).copy(),
        "b": np.arange(9) + 1, "z": np.zeros(40),
    }  # fmt: skip
    original = Original(saved(value))
    ((start, stop),) = original.spans["inner"]
    rng = random.Random(9)
    for _ in some(range(150)):
        place = rng.randrange(len(original.data))
        data = flipped(original.data, place, rng.randint(1, 255))
        judge(original, data, original.without(place), tmp_path)
    for cut in some([*range(start + 100, stop, 97), *range(stop, len(original.data), 31)]):
        judge(original, original.data[:cut], original.before(cut), tmp_path)


def test_signatures_in_a_tensor(tmp_path: Path) -> None:
    """Bytes that look like headers, rows and descriptors do not lead astray."""
    forged = b"PK\3\4" + bytes(22) + struct.pack("<HH", 14, 0) + b"archive/data/0" + b"PK\7\x08"
    value = {
        "a": np.arange(100, dtype=np.float32),
        "b": np.frombuffer(forged * 50 + b"PK\1\2PK\5\6" * 40, np.uint8).copy(),
        "c": np.arange(50),
    }
    original = Original(saved(value))
    for place in some(range(0, len(original.data), 23)):
        data = flipped(original.data, place, 0x20)
        judge(original, data, original.without(place), tmp_path)
    ((start, _),) = original.spans["b"]
    for cut in some(range(start, len(original.data), 61)):
        judge(original, original.data[:cut], original.before(cut), tmp_path)


@pytest.mark.parametrize("kind", ["as torch writes it", "zipped again"])
def test_names_out_of_order(kind: str, tmp_path: Path) -> None:
    """Without a directory, a header whose digit was damaged gives no tensor another's values."""
    original = Original(_KINDS[kind](_BY_VALUE[alike].data))
    name = original.data.index(b"archive/data/3") + 13
    data = bytearray(original.data)
    data[name : name + 1] = b"8"
    ((_, stop),) = original.spans["k5"]
    found, checkpoint = repaired(bytes(data[: stop + 16]), tmp_path)
    assert "k8" not in checkpoint
    assert {"k0", "k1", "k5"} <= set(checkpoint)
    assert "out of the file's order" in next(e.why for e in found.lost if e.name == "k8")


# -- what is around the tensors ------------------------------------------------------------------


def test_what_stands_for_the_lost(tmp_path: Path) -> None:
    """Lost tensors are taken out of dicts; in lists, tuples and objects None stands for them."""
    lost = np.arange(50, dtype=np.float64)
    kept = np.arange(9, dtype=np.int16)
    state = OrderedDict([("w", lost), ("v", kept)])
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    shared = [lost, kept]
    value = {
        "state": state, "list": shared, "same": shared, "tuple": (1, (lost, "a"), kept),
        "attributes": tz.types.ForeignObject("m", "C", (), state={"w": lost, "d": {"w": lost}}),
        "parameter": Parameter(lost), 3: lost, "text": "x", "pair": (kept, kept),
    }  # fmt: skip
    with pytest.warns(UserWarning, match="refuse"):
        original = Original(saved(value))
    ((start, _),) = original.spans["list.0"]
    found, checkpoint = repaired(flipped(original.data, start + 5), tmp_path)
    root = checkpoint.root
    assert list(root) == ["state", "list", "same", "tuple", "attributes", "text", "pair"]
    assert list(root["state"]) == ["v"]
    assert root["state"]._metadata == {"": {"version": 1}}
    assert root["list"] is root["same"]
    assert root["list"][0] is None
    assert value_of(root["list"][1]) == original.values["list.1"]
    assert root["tuple"][:2] == (1, (None, "a"))
    assert root["attributes"].state == {"w": None, "d": {}}
    assert root["pair"][0] is root["pair"][1]
    assert root["list"][1] is root["tuple"][2] is root["state"]["v"]
    assert {each.name for each in found.lost} == {
        "state.w", "list.0", "same.0", "tuple.1.0", "attributes.w", "attributes.d.w", "parameter",
        "3",
    }  # fmt: skip
    assert {each.torch_dtype for each in found.lost} == {"float64"}


def test_tensors_of_several_parts(tmp_path: Path) -> None:
    """A sparse or quantized tensor is lost with any of its parts; a bare storage by itself."""
    sparse = SparseTensor("sparse_coo", np.array([[0, 2]]), np.array([3.0, 4.0]), (5,))
    quantized = QuantizedTensor(np.arange(6, dtype=np.int8), 0.5, 3)
    bare = Storage(np.arange(30, dtype=np.float32), "float32")
    value = {"s": sparse, "q": quantized, "bare": [bare], "x": np.ones(2)}
    original = Original(saved(value))
    for name in ("s", "q"):
        for start, _ in original.spans[name]:
            data = flipped(original.data, start, 4)
            found = judge_some(original, data, original.without(start), tmp_path)
            assert [each.name for each in found.lost] == [name]
    start = original.data.index(bare.data.tobytes())
    found, checkpoint = repaired(flipped(original.data, start, 4), tmp_path)
    assert [each.name for each in found.lost] == ["bare.0"]
    assert checkpoint.root["bare"] == [None]


@pytest.mark.parametrize(
    "value", [np.ones(5), Parameter(np.ones(5)), [np.ones(5)], {"a": np.ones(5)}]
)
def test_nothing_left(value: Any, tmp_path: Path) -> None:
    """If all that there is is lost, that is an error, and nothing is written."""
    data = saved(value)
    data = flipped(data, data.index(np.ones(5).tobytes()))
    with pytest.raises(FormatError, match=r"nothing can be recovered: all of its tensors are lost"):
        repaired(data, tmp_path)


def test_a_bare_tensor(tmp_path: Path) -> None:
    """The root may be a tensor, which has the empty name."""
    original = Original(saved(np.arange(5)))
    judge(original, original.data[:-30], {""}, tmp_path)


def test_sound(tmp_path: Path) -> None:
    """A sound file is written again, byte for byte, and said to be sound."""
    found, checkpoint = repaired(saved({"a": np.ones(3), "b": 2}), tmp_path)
    assert (found.damage, found.lost, found.unverified, found.notes) == (None, (), (), ())
    assert checkpoint.root["b"] == 2
    files = [(tmp_path / name).read_bytes() for name in ("broken.pt", "out.pt")]
    assert len(places_of(files[0])) == len(places_of(files[1]))


def test_sound_of_other_formats(tmp_path: Path) -> None:
    """TorchScript gives its tensors by name; legacy and safetensors their object, unverified."""
    golden = GOLDEN[0].parent
    for file, of in (("script.pt", "torchscript"), ("plain-legacy.pt", "legacy")):
        data = (golden / file).read_bytes()
        original = Original(data)
        found = judge_some(original, data, set(original.values), tmp_path)
        assert (found.damage, found.format) == (None, of)
        assert bool(found.unverified) == (of == "legacy")


# -- files and their ends ------------------------------------------------------------------------


@open_files_can_go
def test_out_is_there(tmp_path: Path) -> None:
    """An existing file stays, and BROKEN itself, unless it is to be overwritten."""
    broken, out = tmp_path / "b.pt", tmp_path / "o.pt"
    broken.write_bytes(_TWENTY.data[:-10])
    out.write_bytes(b"mine")
    for target in (out, broken):
        with pytest.raises(FileExistsError):
            repair(broken, target)
    assert out.read_bytes() == b"mine"
    repair(broken, broken, overwrite=True)
    assert set(tz.load(broken)["model"]) == set(tz.load(io.BytesIO(_TWENTY.data))["model"])


def test_file_object(tmp_path: Path) -> None:
    """A file object is read from where it stands, and stays open."""
    file = io.BytesIO(b"in front" + _TWENTY.data[:9000])
    file.seek(8)
    found = repair(file, tmp_path / "o.pt")
    assert found.broken == "<BytesIO>"
    assert found.tensors == len(_TWENTY.before(9000))
    assert not file.closed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no record of a checkpoint is left"),
        (b"<html>404</html>", "no record of a checkpoint is left"),
        (bytes(5000), "no record of a checkpoint is left"),
        (_TWENTY.data[:500], "data.pkl"),
        (b"\0" * 257 + b"ustar" + bytes(300), "tar checkpoint"),
    ],
)  # fmt: skip
def test_nothing_to_be_had(data: bytes, message: str, tmp_path: Path) -> None:
    """What is no checkpoint is an error that says what was looked for."""
    with pytest.raises(TorchZipError, match=message):
        repaired(data, tmp_path)


def test_shards_are_refused(tmp_path: Path) -> None:
    """A directory is repaired file by file."""
    with pytest.raises((UnsupportedError, FormatError)):
        repair(tmp_path, tmp_path / "o.pt")
    (tmp_path / "m.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "m-1.safetensors"}})
    )
    (tmp_path / "m-1.safetensors").write_bytes(b"cut")
    (tmp_path / "__0_0.distcp").write_bytes(_TWENTY.data[:9000])
    with pytest.raises(UnsupportedError, match="distributed"):
        repair(tmp_path / "__0_0.distcp", tmp_path / "o.pt")
    with pytest.raises(UnsupportedError, match="by itself"):
        repair(tmp_path / "m.safetensors.index.json", tmp_path / "o.pt")


def test_damage_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that change between the look and the copy are noticed, and nothing is written."""
    broken, out = tmp_path / "b.pt", tmp_path / "o.pt"
    value = {"w": np.arange(90_000, dtype=np.float32)}
    data = saved(value)
    broken.write_bytes(data[:-10])

    def late(root: Any, path: Any) -> None:
        broken.write_bytes(flipped(data[:-10], 5000))
        tz.save(root, path)

    monkeypatch.setattr("torchzip.tools.repairing.repair.save", late)
    with pytest.raises(ArchiveError, match="CRC-32"):
        repair(broken, out)
    assert not out.exists()


@pytest.mark.parametrize("attack", ATTACKS, ids=[each.name for each in ATTACKS])
def test_hostile_files(attack: Attack, tmp_path: Path) -> None:
    """A result or an error of ours; nothing is written with the error."""
    out = tmp_path / "o.pt"
    with quiet():
        try:
            found = repair(io.BytesIO(attack.data), out)
        except (TorchZipError, OSError):
            assert not list(tmp_path.iterdir())
        else:
            assert found.nbytes == out.stat().st_size


@given(data=st.binary(max_size=400), at=st.integers(0, 400))
def test_any_bytes(data: bytes, at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the bytes, alone or in the middle of a file."""
    folder = tmp_path_factory.mktemp("bytes")
    whole = _BY_VALUE[alike].data
    for each in (data, b"PK\3\4" + data, whole[: 10 * at] + data + whole[10 * at + len(data) :]):
        try:
            repaired(each, folder)
        except (TorchZipError, OSError):
            assert not (folder / "out.pt").exists()


def test_limits(tmp_path: Path) -> None:
    """A pickle that passes a limit is an error that names it, and no damage."""
    for limits in (tz.Limits(pickle_nbytes=100), tz.Limits(containers=1, argument_items=1, memo=1)):
        with pytest.raises(LimitError):
            repaired(_TWENTY.data[:-1], tmp_path, limits=limits)


def test_wrong_arguments(tmp_path: Path, path: Path) -> None:
    """What is no file, or no path to write to, is a TypeError before anything is written."""
    tz.save({"a": np.ones(2)}, path)
    wrong: Any
    for wrong in (None, 5, b"m.pt"):
        with pytest.raises(TypeError):
            tz.tools.repair(wrong, tmp_path / "out.pt")
    out = io.BytesIO()
    wrong = out
    with pytest.raises(TypeError):
        tz.tools.repair(path, wrong, overwrite=True)
    assert (out.getvalue(), os.listdir(tmp_path)) == (b"", ["m.pt"])
