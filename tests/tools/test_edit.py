"""What `edit` reads and writes, of which files, and what that costs.

tests/tools/test_edit_rules.py has what it makes of the object, test_edit_crash.py what a failure
leaves, tests/test_against_torch_edit.py what torch reads.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.container.memory import BytesSink
from tests.faults import descriptors
from tests.hostile.every import ATTACKS
from tests.saved import GOLDEN_FILES, zipped_again
from tests.systems import needs, open_files_can_go
from tests.test_big import HoleyFile
from torchzip.checkpoint.structure import Structure
from torchzip.container.zip_reader import ZipReader
from torchzip.container.zip_writer import ZipWriter
from torchzip.files.in_place import InPlaceFile
from torchzip.files.opening import open_source
from torchzip.files.source import FileSource
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import StorageKeys
from torchzip.tools import Edited, diff, edit
from torchzip.types import Parameter

Array = np.ndarray[Any, Any]


def tree() -> dict[str, Any]:
    """Return a training checkpoint in small."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = OrderedDict(
        [
            ("head.weight", weight),
            ("head.bias", np.ones(3, np.float32)),
            ("steps", np.array(7)),
            ("tied", weight),
        ]
    )
    vars(model)["_metadata"] = OrderedDict([("", {"version": 1}), ("head", {"version": 1})])
    return {
        "model": model,
        "optimizer": {"state": {0: {"m": np.zeros(5)}, 1: {"m": np.full(5, 2.0)}}, "lr": 0.1},
        "groups": [{"lr": 0.1}, {"lr": 0.2}],
        "epoch": 3,
    }


@pytest.fixture
def path(path: Path) -> Path:
    tz.save(tree(), path)
    return path


def plain(value: Any) -> Any:
    """Return what a loaded value is, with arrays as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Parameter):
        return ("parameter", value.requires_grad, plain(value.data))
    if isinstance(value, tz.LazyTensor):
        value = value.numpy()
    return (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value


def archive_of(path: Path) -> ZipReader:
    return ZipReader(FileSource(path), tz.Limits())


def records(path: Path) -> list[str]:
    """Return the names of the records, in the order of the directory."""
    return list(archive_of(path))


# -- the file --------------------------------------------------------------------------------------


def test_result(path: Path) -> None:
    """A frozen dataclass of plain values."""
    found = edit(path, rename={"epoch": "step"})
    assert type(found) is Edited
    assert json.loads(json.dumps(dataclasses.asdict(found)))["path"] == str(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nbytes = 0  # type: ignore[misc]


def test_dry_run(path: Path) -> None:
    """The same is said, and nothing done; it needs no right to write."""
    before = path.read_bytes()
    rules: dict[str, Any] = {"rename": {"epoch": "step"}, "drop": "optimizer"}
    path.chmod(0o400)
    told = edit(path, dry_run=True, **rules)
    assert path.read_bytes() == before
    path.chmod(0o600)
    assert edit(path, **rules) == told


def test_nothing_to_change(path: Path) -> None:
    """Nothing is written."""
    before = path.read_bytes(), path.stat().st_mtime_ns
    for rules in ({}, {"rename": {"epoch": "epoch"}}, {"drop": "x"}, {"device": "cpu"}):
        assert edit(path, **rules).how == "unchanged"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_new_structure_is_what_save_writes(path: Path) -> None:
    """The pickle that stands at the end is that of the edited object; the rest does not move."""
    before = path.read_bytes()
    edit(path, rename={"model": "net"}, set_values={"epoch": 4})
    data = path.read_bytes()
    assert data[: len(before) - 22] == before[:-22]
    archive = archive_of(path)
    with tz.lazy_load(path) as checkpoint:
        structure = Structure(checkpoint.root, StorageKeys(), place_arrays)
    assert archive.read("data.pkl") == structure.pickle
    # All is what torch's writer would have put at that place.
    offset = archive.entry("data.pkl").header_offset
    assert offset == len(before)
    sink = BytesSink()
    writer = ZipWriter(sink, "m", start=offset)
    writer.write_record("data.pkl", structure.pickle)
    writer.write_record(".data/serialization_id", archive.read(".data/serialization_id"))
    writer.flush()
    assert data[offset:].startswith(sink.data)
    rows = dict(zip(archive, archive.rows(), strict=True))
    old = ZipReader(open_source(io.BytesIO(before)), tz.Limits())
    for name, row in zip(old, old.rows(), strict=True):
        assert (rows[name] == row) == (name not in ("data.pkl", ".data/serialization_id"))
    assert list(rows) == list(old)


def test_serialization_id(path: Path) -> None:
    """It is that of a file with these names and CRCs, so it is another one each time."""

    def identity() -> bytes:
        return archive_of(path).read(".data/serialization_id")

    first = identity()
    edit(path, set_values={"epoch": 4})
    second = identity()
    edit(path, set_values={"epoch": 3})
    assert second != first
    assert identity() == first  # the same pickle again
    assert first.isdigit()


@needs("chown")
def test_inode_mode_and_symlinks(path: Path, tmp_path: Path) -> None:
    """All of them stay, and a symlink is followed."""
    path.chmod(0o640)
    link = tmp_path / "link.pt"
    link.symlink_to(path)
    before = path.stat()
    edit(link, set_values={"epoch": 4})
    after = path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    edit(link, compact=True)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert tz.load(path)["epoch"] == 4


def test_what_is_open_keeps_its_tensors(path: Path) -> None:
    """A lazy checkpoint, a mapping, and what they read later."""
    lazy = tz.lazy_load(path)
    mapped = tz.load(path, mmap=True)
    edit(path, drop=["model.head.weight", "model.tied", "optimizer"])
    edit(path, set_values={"epoch": 5})
    assert plain(mapped) == plain(tree())
    assert plain(lazy.root) == plain(tree())
    lazy.close()


@needs("fcntl")
def test_two_editors(path: Path) -> None:
    """The second is told so at once."""
    before = path.read_bytes()
    with InPlaceFile(path), pytest.raises(OSError, match="edited by another process"):
        edit(path, drop="epoch")
    assert path.read_bytes() == before
    assert edit(path, drop="epoch").how == "appended"


@pytest.mark.parametrize("compact", [False, True])
@open_files_can_go
def test_the_file_changes_meanwhile(path: Path, compact: bool) -> None:
    """What was read must be what is written to."""
    other = path.with_suffix(".other")
    tz.save({"other": 1}, other)

    def replaces(name: str) -> str:
        if other.exists():
            other.replace(path)
        return name

    with pytest.raises(tz.FormatError, match="replaced or changed"):
        edit(path, rename=replaces, drop="epoch", compact=compact)
    assert tz.load(path) == {"other": 1}

    def appends(name: str) -> str:
        with path.open("ab") as file:
            file.write(b"x")
        return f"{name}.x"

    with pytest.raises(tz.FormatError, match="replaced or changed"):
        edit(path, rename=appends, compact=compact)


@needs("mkfifo")
def test_files_that_are_none(tmp_path: Path) -> None:
    """Folders, file objects, what is not there or may not be written."""
    with pytest.raises(IsADirectoryError):
        edit(tmp_path, drop="x")
    with pytest.raises(FileNotFoundError):
        edit(tmp_path / "none.pt", drop="x")
    with pytest.raises(TypeError, match="path"):
        edit(io.BytesIO(), drop="x")  # type: ignore[arg-type]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="regular"):
        edit(fifo, drop="x")
    if os.geteuid():
        path = tmp_path / "m.pt"
        tz.save({"x": 1}, path)
        path.chmod(0o400)
        with pytest.raises(PermissionError):
            edit(path, drop="x")


@pytest.mark.parametrize("name", ["views-legacy.pt", "script.pt", "m.safetensors"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    """They are named, with what to do."""
    path = tmp_path / name
    if name.endswith(".pt"):
        shutil.copy(b.GOLDEN / name, path)
    else:
        tz.save({"a": np.ones(2)}, tmp_path / "m.pt")
        tz.convert(tmp_path / "m.pt", path)
    before, count = path.read_bytes(), descriptors()
    with pytest.raises(tz.UnsupportedError, match="torchzip convert"):
        edit(path, drop="x")
    assert path.read_bytes() == before
    assert descriptors() == count


def _zipped_again(path: Path, compression: int, comment: bytes = b"") -> None:
    path.write_bytes(zipped_again(path.read_bytes(), compression))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment


@pytest.mark.parametrize(
    "change",
    [
        lambda path: _zipped_again(path, zipfile.ZIP_STORED),
        lambda path: _zipped_again(path, zipfile.ZIP_DEFLATED),
        lambda path: _zipped_again(path, zipfile.ZIP_STORED, b"a comment"),
        lambda path: path.write_bytes(path.read_bytes() + b"tail"),
    ],
    ids=["stored", "deflated", "with a comment", "with a tail"],
)
def test_archives_that_cannot_grow(path: Path, change: Callable[[Path], Any]) -> None:
    """They are rewritten, all or nothing, and that is said."""
    change(path)
    before = path.read_bytes()
    told = edit(path, rename={"epoch": "step"}, dry_run=True)
    assert path.read_bytes() == before
    found = edit(path, rename={"epoch": "step"})
    assert found == told
    assert (found.how, found.nbytes, found.appended_nbytes) == ("rewritten", path.stat().st_size, 0)
    assert "rewritten" in found.notes[0]
    expected = tree()
    expected["step"] = expected.pop("epoch")
    assert plain(tz.load(path)) == plain(expected)
    assert edit(path, drop="step").how == "appended"


def test_zeros_behind_the_archive(path: Path) -> None:
    """They are what a power cut may leave, and go."""
    before = path.read_bytes()
    path.write_bytes(before + bytes(5000))
    assert edit(path, set_values={"epoch": 4}).how == "appended"
    assert path.stat().st_size < len(before) + 5000


def test_files_without_some_records(tmp_path: Path) -> None:
    """Older files have no serialization id, alignment or CRCs; nothing is added."""
    members = b.members_of(b.stream(b.dict_of({"w": b.tensor(), "s": 3})))
    path = tmp_path / "m.pt"
    path.write_bytes(b.build_zip(members, b.End(zip64=True)))
    names = records(path)
    found = edit(path, rename={"w": "v"})
    assert (found.how, records(path)) == ("appended", names)
    assert list(tz.load(path)) == ["v", "s"]
    tz.save(tree(), path, crc32=False, alignment=4096)
    assert edit(path, drop="epoch").how == "appended"
    archive = archive_of(path)
    assert archive.data_offset("data.pkl") % 4096 == 0
    assert archive.entry("data.pkl").crc
    assert "epoch" not in tz.load(path)


def test_byte_order_stays(tmp_path: Path) -> None:
    """A big-endian file is one afterwards."""
    data = np.arange(4, dtype=">f4").tobytes()
    members = b.members_of(b.stream(b.dict_of({"w": b.tensor()})), {"0": data}, byteorder=b"big")
    path = tmp_path / "m.pt"
    path.write_bytes(b.build_zip(members, b.End(zip64=True)))
    before = plain(tz.load(path))
    edit(path, set_values={"x": 1})
    assert plain(tz.load(path)) == {**before, "x": 1}
    assert archive_of(path).read("byteorder") == b"big"


def test_a_text_like_the_end_of_an_archive(path: Path) -> None:
    """What would make the file ambiguous is not appended."""
    text = (b"PK\5\6" + bytes(18)).decode("latin-1")
    assert edit(path, set_values={"x": text}).how == "appended"  # leads nowhere
    assert tz.load(path)["x"] == text


# -- what it costs ---------------------------------------------------------------------------------


class _Counting:
    """Stands for ``os``, and counts what is read and written."""

    def __init__(self) -> None:
        self.calls = self.read = self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pread(self, descriptor: int, nbytes: int, offset: int) -> bytes:
        data = os.pread(descriptor, nbytes, offset)
        self.calls, self.read = self.calls + 1, self.read + len(data)
        return data

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        done = os.pwrite(descriptor, data, offset)
        self.calls, self.written = self.calls + 1, self.written + done
        return done

    def fsync(self, descriptor: int) -> None:
        self.calls += 1


def write_sparse(path: Path, count: int, nbytes: int) -> None:
    """Write a checkpoint whose storages are holes."""
    file: Any = HoleyFile(path)
    zeros = {f"layers.{n}.weight": np.zeros(nbytes // 4, np.float32) for n in range(count)}
    tz.save(zeros, file, crc32=False)
    file.close()


@needs("pwrite")
def test_cost_of_5_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some KB are read and written, in some calls; and that past 4 GiB, too."""
    path = tmp_path / "m.pt"
    write_sparse(path, 100, 50_000_000)
    size = path.stat().st_size
    assert size > 5_000_000_000
    if path.stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files")
    counting = _Counting()
    monkeypatch.setattr("torchzip.files.platform_calls.os", counting)
    found = edit(path, rename=[("^layers", "blocks")], drop="layers.7.*")
    assert (found.how, found.dropped_nbytes) == ("appended", 50_000_000)
    assert counting.calls < 60
    assert counting.read < 500_000
    assert counting.written < found.appended_nbytes + 200 < 50_000
    with tz.lazy_load(path) as checkpoint:
        assert len(checkpoint) == 99
        assert checkpoint["blocks.99.weight"][-3:].tolist() == [0, 0, 0]
    assert edit(path, set_values={"x": 1}).how == "appended"
    archive = archive_of(path)
    assert all(archive.data_offset(name) for name in archive)


@pytest.mark.long
def test_many_tensors(tmp_path: Path) -> None:
    """The keys stay those that the file has, so no storage is written."""
    path = tmp_path / "m.pt"
    zeros = np.zeros((20_000, 2), np.float32)
    tz.save({f"a.{index}": row.copy() for index, row in enumerate(zeros)}, path)
    found = edit(path, rename=[("^a", "b")])
    assert len(found.renamed) == 20_000
    assert ".format_version" in records(path)
    found = edit(path, drop="b.777")
    assert ".format_version" not in records(path)
    assert len(found.notes) == 1
    assert len(tz.load(path)) == 19_999


# -- any files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDEN_FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_golden(tmp_path: Path, golden: Path) -> None:
    """Files of all releases: what is not edited stays, and so does every tensor."""
    path = tmp_path / golden.name
    shutil.copy(golden, path)
    with tz.lazy_load(path) as checkpoint:
        root, is_zip = checkpoint.root, checkpoint.format == "zip"
    rules: dict[str, Any] = {"device": "cuda:1"}
    if isinstance(root, dict):
        rules = {"set_values": {"zz": 1}}
    if not is_zip:
        with pytest.raises(tz.UnsupportedError):
            edit(path, **rules)
        return
    assert edit(path, **rules).how in ("appended", "unchanged")
    found = diff(golden, path)
    assert [change.name for change in found.values] == (["zz"] if isinstance(root, dict) else [])
    assert (found.changed, found.added, found.removed, found.renamed) == ((), (), (), ())


def _rebuilt(data: bytes) -> bytes | None:
    """Return an archive with the same records and zip64 end records; None where that fails."""
    try:
        archive = ZipReader(open_source(io.BytesIO(data)), tz.Limits())
        members = [
            b.Member(name=f"{archive.root}/{name}".encode("latin-1"), data=archive.read(name))
            for name in archive
        ]
    except (tz.TorchZipError, UnicodeError):
        return None
    return b.build_zip(members, b.End(zip64=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_attacks(tmp_path: Path) -> None:
    """Any bytes are edited or refused, by the errors of the reader; what was read is read again."""
    path = tmp_path / "m.pt"
    done = 0
    for attack in ATTACKS[::6]:
        data = _rebuilt(attack.data) or attack.data
        path.write_bytes(data)
        try:
            found = edit(path, device="cuda:1", requires_grad=True)
        except (tz.TorchZipError, OSError):
            assert path.read_bytes() == data, attack.name
            continue
        if attack.error is None and found.how != "unchanged":
            tz.load(path)
            done += 1
    assert done > 10
