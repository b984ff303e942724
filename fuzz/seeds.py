"""Good files of every format, which the fuzzers start from."""

from __future__ import annotations

import datetime
import decimal
import fractions
import io
import json
import pathlib
import pickle
import struct
import tempfile
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import torchzip as tz
from fuzz.pickles import Node, parse
from tests import builders as b
from tests.formats import dcp_builder, tar_builder
from tests.saved import saved

#: Larger golden files are the same again, more slowly.
_MOST_NBYTES = 20_000
#: What the tensors of `_streams` lie on: four float32, four int64, eight int8.
STORAGES = {"0": b.DATA, "1": struct.pack("<4q", 0, 1, 2, 0), "2": bytes(range(8)),
            "3": bytes(16)}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Files by name; ``opened`` is the one that a user opens, or "" for their folder."""

    files: Mapping[str, bytes]
    opened: str = "hostile.pt"

    @staticmethod
    def of(data: bytes) -> Case:
        return Case({"hostile.pt": data})


@cache
def golden() -> list[bytes]:
    """Return what four releases of torch wrote: zip, legacy, TorchScript."""
    found = [path.read_bytes() for path in sorted(b.GOLDEN.parent.glob("*/*.pt"))]
    # One of them has no data.pkl: its release could not write what it was to hold.
    is_whole = [b"data.pkl" in data or not data.startswith(b"PK") for data in found]
    return [d for d, whole in zip(found, is_whole, strict=True) if whole and len(d) < _MOST_NBYTES]


@cache
def archives() -> list[list[b.Member]]:
    """Return the records of every seed that is an archive."""
    found = []
    for data in [*golden(), _pt2()]:
        if data.startswith(b"PK"):
            found.append(records_of(data))
    for stream in _streams():
        found.append(b.members_of(stream, STORAGES))
    return found


def records_of(data: bytes) -> list[b.Member]:
    """Return the records of one archive."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    return [b.Member(name=name.encode(), data=archive.read(name)) for name in archive.namelist()]


@cache
def trees() -> list[Node]:
    """Return all their pickles as trees."""
    return [parse(stream) for stream in _all_streams()]


@cache
def parts() -> list[Node]:
    """Return every value of every pickle, to stand in others."""
    found: list[Node] = []
    for stream in _all_streams():
        nodes = parse(stream, by_number=False).nodes()
        found += nodes if len(nodes) < 400 else nodes[:: len(nodes) // 400]
    return found


def _all_streams() -> list[bytes]:
    return [
        member.data for members in archives() for member in members if member.name.endswith(b".pkl")
    ]


def _python_objects() -> dict[str, Any]:
    loop: list[Any] = [1]
    loop.append(loop)
    shared = {"a": [1, 2.5, None, True, 3 + 4j]}
    return {
        "containers": {"l": [1, [2, (3,)]], "t": (), "s": {1, 2}, "f": frozenset("ab")},
        "shared": [shared, shared, loop],
        "collections": [
            OrderedDict(a=1), Counter("aab"), deque([1, 2], 5), defaultdict(list, a=[1]),
        ],
        "plain": [range(3), b"ab", bytearray(b"cd"), "é", 2**70, -1, 1e300, slice(1, 2, None)],
        "values": [
            datetime.datetime(2026, 1, 2, 3, 4, 5), datetime.date(2026, 1, 2), datetime.time(1, 2),
            datetime.timedelta(1, 2), datetime.UTC, decimal.Decimal("1.5"),
            fractions.Fraction(1, 3), pathlib.PurePosixPath("a/b"),
        ],
        "numpy": [
            np.arange(6.0).reshape(2, 3), np.float32(1.5), np.dtype("<i4"), np.array("ab"),
            np.zeros(2, np.dtype([("x", "<f4"), ("y", "<i2")])), np.array([True, False]),
            np.datetime64("2026-01-02"), np.asfortranarray(np.eye(3)),
        ],
    }  # fmt: skip


def _utils(function: str, *arguments: b.Value) -> bytes:
    return b.call(f"torch._utils._rebuild_{function}", *arguments)


@cache
def _streams() -> list[bytes]:
    """Return pickles by themselves: of Python's own values, and of every kind of tensor."""
    objects = _python_objects()
    made = [pickle.dumps(value, protocol) for value in objects.values() for protocol in range(6)]
    values, long = b.tensor(size=(2,)), b.persistent("1", kind="LongStorage")
    indices = b.tensor(long, size=(2, 2), stride=(2, 1))
    index, rows = b.tensor(long, size=(2,)), b.tensor(long, size=(3,))
    layout = b.call("torch.serialization._get_layout", "torch.sparse_coo")
    csr = b.call("torch.serialization._get_layout", "torch.sparse_csr")
    quantizer = (b.name("torch", "per_tensor_affine"), 0.0, 0)
    quantized = b.persistent("2", numel=8, kind="QInt8Storage")
    untyped = b.persistent(numel=16, kind=b.name("torch.storage", "UntypedStorage"))
    float32 = b.name("torch", "float32")
    kinds = [
        _utils("sparse_tensor", layout, (indices, values, (9, 9), True)),
        _utils("sparse_tensor", csr, (rows, index, values, (2, 2))),
        _utils("qtensor", quantized, 0, (2, 3), (3, 1), quantizer, False, b.HOOKS),
        _utils("meta_tensor_no_storage", float32, (2, 3), (3, 1), False),
        _utils("nested_tensor", values, indices, indices, index),
        _utils("tensor", b.persistent(), 0, (2,), (1,)),
        _utils("tensor_v3", untyped, 0, (2, 2), (2, 1), False, b.HOOKS, float32),
        _utils("parameter", b.tensor(), True, b.HOOKS),
        _utils("parameter_with_state", b.tensor(), True, b.HOOKS, {"x": 1}),
        b.call("torch._tensor._rebuild_from_type_v2",
               b.name("torch._utils", "_rebuild_tensor_v2"),
               b.name("torch.nn.parameter", "Buffer"),
               (b.persistent(), 0, (4,), (1,), False, b.HOOKS), {"persistent": True}),
        b.tensor(b.persistent("3", kind="ComplexFloatStorage", numel=2), size=(2,),
                 extra={"conj": True}),
        b.HOOKS + b.dict_of({"_metadata": b.HOOKS}) + b"b",
        b.call("a.b.C", b.tensor()) + b.dict_of({"w": b.tensor()}) + b"b",
    ]  # fmt: skip
    return made + [b.stream(b.dict_of({"t": kind, "u": b.tensor()})) for kind in kinds]


def _pt2() -> bytes:
    sizes = [{"as_int": 2}, {"as_int": 2}]
    meta = {
        "dtype": 7, "sizes": sizes, "requires_grad": False, "layout": 7,
        "device": {"type": "cpu", "index": None}, "strides": [{"as_int": 2}, {"as_int": 1}],
        "storage_offset": {"as_int": 0},
    }  # fmt: skip
    row = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta}
    records = {
        "data/weights/model_weights_config.json": json.dumps({"config": {"w": row}}).encode(),
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "data/weights/weight_0": b.DATA, "models/model.json": b"{}", "archive_format": b"pt2",
        "archive_version": b"0", ".data/version": b"6\n", "byteorder": b"little",
    }  # fmt: skip
    return b.zip_of(records, root="m/")


#: Checkpoints of many ranks, each in one folder.
_RANKS = pathlib.Path(__file__).parents[1] / "tests" / "data" / "ranks"
_RANK_FOLDERS = (
    "zero-2-bf16/global_step2", "zero-3-fp32/global_step2", "fsdp2-w2", "fsdp-tp-w4", "mcore",
)  # fmt: skip


@cache
def others() -> list[Case]:
    """Return what is not an archive of torch: other formats, shards, folders."""
    made = [Case.of(_tar())]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for data in golden()[:: max(1, len(golden()) // 24)]:
            (folder / "in.pt").write_bytes(data)
            tz.convert(folder / "in.pt", folder / "out.safetensors", overwrite=True)
            made.append(Case.of((folder / "out.safetensors").read_bytes()))
        for suffix in ("gguf", "npz"):
            tz.convert({"x": np.ones((2, 3), np.float32)}, folder / f"x.{suffix}")
            made.append(Case.of((folder / f"x.{suffix}").read_bytes()))
        np.save(folder / "x.npy", np.ones((2, 3), np.float32))
        made.append(Case.of((folder / "x.npy").read_bytes()))
        made.append(_shards(folder))
        made.append(_dcp(folder))
    made += [Case(_files(_RANKS / folder), "") for folder in _RANK_FOLDERS]
    made.append(_nemo())
    return made


def whole() -> list[Case]:
    return [
        *map(Case.of, golden()), *(Case.of(b.build_zip(members)) for members in archives()),
        *others(),
    ]  # fmt: skip


def _tar() -> bytes:
    made = tar_builder.four_numbers()
    tensor = replace(made.tensors[0], size=(2, 2), stride=(2, 1))
    pickle = b.stream(b.dict_of({"w": tar_builder.pid(2), "s": tar_builder.pid(1)}))
    return replace(made, pickle=pickle, tensors=[tensor]).build()


def _nemo() -> Case:
    weights = saved({"w": np.ones((2, 2), np.float32)})
    return Case({"m.nemo": tar_builder.tar_of({"./model_weights.ckpt": weights})}, "m.nemo")


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _shards(folder: pathlib.Path) -> Case:
    whole = {f"w{n}": np.full((4, 4), n, np.float32) for n in range(4)}
    tz.save(whole, folder / "in.pt")
    tz.convert(folder / "in.pt", f"{folder}/shards/", max_shard_size=150)
    files = _files(folder / "shards")
    return Case(files, next(name for name in files if name.endswith(".index.json")))


def _dcp(folder: pathlib.Path) -> Case:
    made = dcp_builder.Builder(folder / "dcp")
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    made.tensor("a.w", array, [((0, 0), (2, 3)), ((2, 0), (2, 3))], path=("a", "w"))
    made.value("step", 7)
    return Case(_files(made.write()), "")


def header_of(data: bytes) -> tuple[bytes, bytes]:
    """Return the header and the rest of a safetensors file."""
    nbytes = struct.unpack_from("<Q", data)[0]
    return data[8 : 8 + nbytes], data[8 + nbytes :]
