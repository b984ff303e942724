"""Every pickle that a loader of a file would run: a name in any of them is said.

Each file here is made once for each of its pickles, with a call of ``os.system`` in that one alone.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats.dcp_builder import Builder
from tests.formats.pt2_builder import config, meta, payload
from tests.formats.tar_builder import four_numbers, pid, tar_of
from torchzip.cli.main import main
from torchzip.tools import verify

#: Given the place of a pickle and its bytes, what to write there.
Put = Callable[[str, bytes], bytes]
#: Writes a file into a folder; returns what to open.
Write = Callable[[Path, Put], Path]

CALL = b.call("os.system", "true")


def planted(pickle: bytes, call: bytes = CALL) -> bytes:
    """Return a pickle that calls ``os.system`` first, and then is what it was."""
    return pickle[:2] + call + pickle[2:]


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "m.pt"
    path.write_bytes(data)
    return path


def legacy_of(put: Put) -> bytes:
    return (
        put("magic number", b.stream(b.MAGIC))
        + put("version", b.stream(b.integer(1001)))
        + put("sys_info", b.stream(b.dict_of({"little_endian": True})))
        + put("object", b.stream(b.dict_of({"w": b.tensor(b.persistent(extra=b"N"))})))
        + put("storage keys", b.stream(b.list_of("0")))
        + struct.pack("<q", 4)
        + b.DATA
    )


def _tar(put: Put) -> bytes:
    one, two = b.integer(1), b.integer(2)
    kind = b.name("torch", "FloatStorage")
    row = b.stream(b.tuple_of(one, "cpu", kind))
    storages = put("storages, count", b.stream(one)) + put("storages, a row", row)
    storages += struct.pack("<q", 4) + b.DATA + put("storages, views", b.stream(b"]"))
    row = b.stream(b.tuple_of(two, one, b.name("torch", "FloatTensor")))
    tensors = put("tensors, count", b.stream(one)) + put("tensors, a row", row)
    tensors += struct.pack("<i4x3q", 1, 4, 1, 0)
    return tar_of(
        {
            "sys_info": put("sys_info", b.stream(b"}")),
            "pickle": put("pickle", b.stream(b.dict_of({"w": pid(2)}))),
            "tensors": tensors,
            "storages": storages,
        }
    )


def _inner(put: Put, place: str, pickle: bytes) -> bytes:
    return b.checkpoint(put(place, b.stream(pickle)))


def _pt2(put: Put) -> bytes:
    rows = {
        "t": payload("tensor_0", use_pickle=True) | {"tensor_meta": None},
        "c": payload("custom_obj_0", use_pickle=True) | {"tensor_meta": None},
        "o": payload("opaque_obj_0", use_pickle=True) | {"tensor_meta": None},
    }
    packed = b.name("__torch__.torch.classes.q", "Packed") + b")\x81" + b.tensor() + b"\x85b"
    records = {
        "data/weights/weight_0": struct.pack("<4f", 1, 2, 3, 4),
        "data/weights/model_weights_config.json": config(
            {"w": payload("weight_0", meta(sizes=(4,)))}
        ),
        "data/constants/tensor_0": _inner(put, "constant", b.tensor()),
        "data/constants/custom_obj_0": _inner(put, "custom object", packed),
        "data/constants/opaque_obj_0": put("opaque object", b.stream(b"K\1")),
        "data/constants/model_constants_config.json": config(rows),
        "models/model.json": b"{}",
        "data/sample_inputs/model.pt": _inner(put, "sample inputs", b"))\x86"),
        "archive_format": b"pt2",
        "archive_version": b"0",
        ".data/version": b"3",
        "byteorder": b"little",
    }
    members = [
        b.Member(name=f"a/{name}".encode(), data=data, method=8 if "sample" in name else 0)
        for name, data in records.items()
    ]
    return b.build_zip(members)


def _pt2_of_files(put: Put) -> bytes:
    """Sample inputs in the legacy format have five pickles of their own."""
    records = {
        "data/weights/model.pt": _inner(put, "weights", b.dict_of({"w": b.tensor()})),
        "data/constants/model.pt": _inner(put, "constants", b"}"),
        "models/model.json": b"{}",
        "data/sample_inputs/model.pt": legacy_of(lambda place, data: put(f"inputs, {place}", data)),
        "archive_format": b"pt2",
        ".data/version": b"3",
    }
    return b.zip_of(records, root="a/")


def _old_pt2(put: Put) -> bytes:
    records = {
        "serialized_exported_program.json": b"{}",
        "serialized_state_dict.pt": _inner(put, "state dict", b.dict_of({"w": b.tensor()})),
        "serialized_constants.pt": _inner(put, "constants", b"}"),
        "serialized_example_inputs.pt": _inner(put, "example inputs", b")"),
        "version": b"8.2",
    }
    return b.zip_of(records, root="")


def _script(put: Put) -> bytes:
    module = b.name("__torch__", "Net") + b")\x81" + b.dict_of({"w": b.tensor()}) + b"b"
    records = {
        "data.pkl": put("data.pkl", b.stream(module)),
        "constants.pkl": put("constants.pkl", b.stream(b")")),
        "code/__torch__.py": b"class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n",
        "code/__torch__.py.debug_pkl": put("debug_pkl", b.stream(b"))\x86")),
        "traced_inputs.pkl": put("traced_inputs.pkl", b.stream(b"}")),
        "bytecode.pkl": put("bytecode.pkl", b.stream(b")")),
        "data/0": b.DATA,
        "version": b"3",
    }
    return b.zip_of(records, root="a/")


def _dcp(folder: Path, put: Put) -> Path:
    made = Builder(folder / "dcp")
    made.tensor("w", np.ones(4, np.float32))
    made.value("v", 5)
    made.files.clear()
    made.places.clear()
    made.put("__0_0.distcp", "w", (0,), _inner(put, "item of a tensor", b.tensor()))
    made.put("__1_0.distcp", "v", None, _inner(put, "item of an object", b.text("x")))
    made.write()
    made.folder.joinpath("__0.metadata").write_bytes(put("metadata of a rank", made.metadata()))
    chosen = made.folder / ".metadata"
    chosen.write_bytes(put(".metadata", chosen.read_bytes()))
    return chosen


def _sharded(folder: Path, put: Put) -> Path:
    (folder / "one.bin").write_bytes(
        b.checkpoint(put("a zip shard", b.stream(b.dict_of({"a": b.tensor()}))))
    )
    (folder / "two.bin").write_bytes(legacy_of(lambda place, data: put(f"shard, {place}", data)))
    index = {"metadata": {}, "weight_map": {"a": "one.bin", "w": "two.bin"}}
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps(index))
    return path


def _zero(folder: Path, put: Put) -> Path:
    made = folder / "zero"
    made.mkdir()
    states = b.dict_of({"module": b.dict_of({"w": b.tensor()})})
    path = made / "mp_rank_00_model_states.pt"
    path.write_bytes(_inner(put, "model states", states))
    return made


def _ranks(folder: Path, put: Put) -> Path:
    made = folder / "ranks"
    made.mkdir()
    for rank in range(2):
        path = made / f"model_world_size_2_rank_{rank}.pt"
        path.write_bytes(_inner(put, f"rank {rank}", b.dict_of({"w": b.tensor()})))
    return made


def _nemo(folder: Path, put: Put) -> Path:
    path = folder / "m.nemo"
    path.write_bytes(tar_of({"./model_weights.ckpt": _inner(put, "weights", b.tensor())}))
    return path


def _alone(make: Callable[[Put], bytes]) -> Write:
    return lambda folder, put: _file(folder, make(put))


FILES: dict[str, Write] = {
    "zip": _alone(lambda put: _inner(put, "data.pkl", b.tensor())),
    "legacy": _alone(legacy_of),
    "tar": _alone(_tar),
    "pt2": _alone(_pt2),
    "pt2 of files": _alone(_pt2_of_files),
    "old pt2": _alone(_old_pt2),
    "torchscript": _alone(_script),
    "dcp": _dcp,
    "sharded": _sharded,
    "zero": _zero,
    "ranks": _ranks,
    "nemo": _nemo,
}


def _places(write: Write) -> list[str]:
    found: list[str] = []

    def put(place: str, data: bytes) -> bytes:
        found.append(place)
        return data

    with tempfile.TemporaryDirectory() as name:
        write(Path(name), put)
    return found


ROWS = [(kind, place) for kind, write in FILES.items() for place in _places(write)]


@pytest.mark.parametrize("kind", FILES)
def test_without_a_call(tmp_path: Path, kind: str) -> None:
    """None of these files has a foreign name of its own, but for the classes it defines."""
    path = FILES[kind](tmp_path, lambda place, data: data)
    with tz.lazy_load(path) as ckpt:
        assert ckpt.globals
        assert all(module.startswith("__torch__") for module, _ in ckpt.foreign)
        assert ckpt.verify().notes == ()
    assert verify(path).refused == ()


@pytest.mark.parametrize("is_dropped", [False, True], ids=["left", "dropped"])
@pytest.mark.parametrize(("kind", "place"), ROWS, ids=lambda value: str(value))
def test_every_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, place: str, is_dropped: bool
) -> None:
    """A call in one pickle of a file, whichever, is in every answer that is about names."""
    call = CALL + b"0" * is_dropped

    def put(other: str, data: bytes) -> bytes:
        return planted(data, call) if other == place else data

    path = FILES[kind](tmp_path, put)
    for read in (tz.load, tz.lazy_load):
        with pytest.raises(tz.UnsafeGlobalError, match=r"os\.system"):
            read(path, foreign="raise")
    if place == ".metadata":  # of which torchzip reads no other names at all
        with pytest.raises(tz.UnsafeGlobalError, match=r"os\.system"):
            tz.lazy_load(path)
        return
    with tz.lazy_load(path) as ckpt:
        assert ("os", "system") in ckpt.globals
        assert ("os", "system") in ckpt.foreign
    assert "os.system" in verify(path).refused
    assert main(["globals", str(path)]) == 1
    assert "os.system" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 1
    assert "os.system" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["zip", "torchscript", "pt2"])
def test_records_that_nobody_declares(tmp_path: Path, kind: str, protocol: int) -> None:
    """A pickle in a record of its own is said, with what it names; other bytes are not."""
    path = FILES[kind](tmp_path, lambda place, data: data)
    stray = b"cos\nsystem\n(S'true'\ntR." if not protocol else b.stream(CALL, protocol=protocol)
    root = "archive/" if kind == "zip" else "a/"
    more = {"extra/x": stray, "extra/readme.txt": b"I have (some) text.", "data/99": stray}
    with tz.lazy_load(path) as ckpt:
        archive = ckpt.container.archive  # type: ignore[attr-defined]
        records = {name: archive.read(name) for name in archive}
    path.write_bytes(b.zip_of(records | more, root=root))
    notes = verify(path).notes
    assert len(notes) == 2, notes
    for note in notes:
        assert "is a pickle that no loader of this format runs; it names 'os.system'" in note


def test_bytes_of_a_tensor_that_are_a_pickle(tmp_path: Path) -> None:
    """Nothing is said of them: they are what a tensor has."""
    raw = b.stream(CALL)
    raw += bytes(-len(raw) % 4)
    tensor = b.tensor(b.persistent(numel=len(raw) // 4), size=(len(raw) // 4,))
    path = _file(tmp_path, b.checkpoint(b.stream(tensor), {"0": raw}))
    assert verify(path).notes == ()


def test_a_pickle_that_cannot_be_followed(tmp_path: Path) -> None:
    """Nobody can say what it names, so whoever asks is told that."""
    path = FILES["torchscript"](
        tmp_path, lambda place, data: b"\x80\2R." if "traced" in place else data
    )
    with tz.lazy_load(path) as ckpt, pytest.raises(tz.FormatError, match=r"traced_inputs\.pkl"):
        ckpt.globals  # noqa: B018
    with pytest.raises(tz.FormatError, match=r"traced_inputs\.pkl"):
        tz.load(path, foreign="raise")
    assert tz.load(path) is not None


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_a_file_that_is_a_tar_file_too(tmp_path: Path, kind: str) -> None:
    """Such a file is refused: torch tries a tar file first, whose pickles nobody else looks at."""
    if kind == "legacy":
        long = b.stream(b.dict_of({"x" * 500: True}))
        raw = legacy_of(lambda place, data: long if place == "sys_info" else data)
    else:
        header = b'{"__metadata__":{"x":"%s"}}' % (b" " * 600)
        raw = b.safetensors(header)
    path = _file(tmp_path, raw)
    assert tz.load(path) is not None
    data = bytearray(raw)
    data[148:156] = b"%07o " % (sum(data[:148]) + 8 * ord(" ") + sum(data[156:512]))
    path.write_bytes(data)
    with pytest.raises(tz.FormatError, match="a tar file as well"):
        tz.lazy_load(path)


def test_old_checkpoint_without_sys_info() -> None:
    made = four_numbers().members()
    made.pop("sys_info")
    assert tz.lazy_load(io.BytesIO(tar_of(made)), foreign="raise").globals
