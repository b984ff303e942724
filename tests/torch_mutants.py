"""Files of ``torch.save`` with one thing or a few changed, most of which can still be read.

A pickle is changed opcode by opcode, an archive record by record and field by field. Nothing here
names anything that does harm, so ``torch.load(weights_only=False)`` may read them all.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests import builders as b
from torchzip.pickling.allowlist import TORCH_SAFE_NAMES
from torchzip.pickling.disassembly import parse_step

_HARMLESS = (
    "collections.deque collections.defaultdict builtins.range builtins.slice builtins.frozenset "
    "builtins.list builtins.int builtins.str decimal.Decimal datetime.date numpy.dtype "
    "torch.UntypedStorage torch.FloatStorage torch.storage._UntypedStorage torch.float torch.half "
    "torch._utils._rebuild_xla_tensor torch._utils._rebuild_sparse_csr_tensor "
    "torch.nn.parameter.Buffer torch.nn.modules.linear.Linear torch.strided"
).split()
#: Names that a pickle gets in place of another.
_NAMES = [*sorted(TORCH_SAFE_NAMES), *_HARMLESS]
_TEXTS = (
    "cpu cuda cuda:0 cuda:x cuda:-1 meta mps xpu:0 gpu privateuseone foo 0 1 2 storage module conj "
    "neg torch.strided torch.sparse_coo torch.sparse_csr torch._mkldnn torch.jagged latin1 latin-1 "
    "utf-8 ascii zzz float32"
).split()
#: What pushes one value.
_PUSHES: list[bytes] = [
    b"N", b"\x88", b"\x89", b"K\0", b"K\1", b"K\2", b"K\5", b"M\0\1", b")", b"]", b"}", b"\x8f",
    b.integer(-1), b.integer(1 << 40), b.integer(1 << 63), b.integer(1 << 70),
    *(b"G" + struct.pack(">d", number) for number in (1.5, 4.0, float("nan"))),
    b"U\1a", b"U\1\xff", b"U\x07storage", b"\x8a\0", b.ints(1), b.ints(2, 3), b.ints(0),
    b.tuple_of(False), b.list_of(1), b.list_of(2, 3),
    b.call("torch.Size", (2, 3)), b.call("torch.Size", (1,)),
    b.HOOKS, b.dict_of({"conj": True}), b.dict_of({"neg": True}), b.dict_of({"x": True}),
    b.dict_of({"neg": 1}), b.call("builtins.complex", *[b"G" + bytes(8)] * 2),
    b.call("builtins.bytearray"), b.call("builtins.set", b"]"),
    b.call("collections.Counter", b"}"),
    b.call("torch.device", "cpu"),
    b.call("_codecs.encode", "x", "latin1"),
    b"C\1x", b"\x8c\1y", b"I5\n", b"I01\n", b"F2.5\n", b"L7L\n", b"S'a'\n", b"Vq\n",
    b"T\1\0\0\0z",
    *map(b.text, _TEXTS),
    *(b.name(*each.rsplit(".", 1)) for each in ("torch.float32", "torch.int64", "torch.float")),
]  # fmt: skip
_AFTER: list[bytes] = [
    b")R", b"N\x85R", b"0", b"2", b"20", b"}b", b")b", b"Nb", b"N\x85b", b"Na", b"K\1K\1s", b"\x85",
    b"q\0", b"h\0", b"h\1", b"h\0\x86", b"(l", b"(d", b"(\x91", b"Q", b"\x94", b")\x81", b"}\x92",
    b"K\1\x85R", b"X\3\0\0\0cpu\x85R", b"}}\x86b", b"N}X\1\0\0\0ah\0s\x86b", b"}X\1\0\0\0aNsb",
]  # fmt: skip


def objects(torch: Any) -> dict[str, Any]:
    """Return what is saved."""
    o = torch.ones(3)
    made: dict[str, Any] = {
        "dict": {"w": torch.ones(2, 3), "v": o, "n": 5},
        "tied": [o, o, o[1:], o.view(3, 1)],
        "int": torch.arange(4),
        "bool": torch.ones(2, dtype=torch.bool),
        "complex": torch.ones(2, dtype=torch.complex64),
        "conj": torch.ones(2, dtype=torch.complex64).conj(),
        "neg": torch.ones(2, dtype=torch.complex64).conj().imag,
        "half": o.half(),
        "bf16": o.bfloat16(),
        "f8": o.to(torch.float8_e4m3fn),
        "u16": torch.ones(2).to(torch.uint16),
        "c32": o.to(torch.complex32),
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "sparse param": torch.nn.Parameter(torch.eye(3).to_sparse()),
        "bsr": torch.eye(4).to_sparse_bsr((2, 2)),
        "q": torch.quantize_per_tensor(o, 0.1, 0, torch.quint8),
        "qc": torch.quantize_per_channel(
            torch.ones(2, 3), torch.ones(2), torch.zeros(2, dtype=torch.int64), 0, torch.qint8
        ),
        "meta": torch.empty(3, 2, device="meta"),
        "nested": torch.nested.nested_tensor([o, torch.ones(2)]),
        "jagged": torch.nested.nested_tensor([o, torch.ones(2)], layout=torch.jagged),
        "param": torch.nn.Parameter(o.clone()),
        "frozen": torch.nn.Parameter(o.clone(), requires_grad=False),
        "buffer": torch.nn.Buffer(o),
        "grad": o.clone().requires_grad_(),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
        "expanded": torch.ones(1).expand(5),
        "module": torch.nn.Linear(2, 2),
        "state": torch.nn.BatchNorm1d(2).state_dict(),
        "storage": o.untyped_storage(),
        "typed": o.storage(),
        "bytes": {"b": b"x\xff", "a": bytearray(b"y")},
        "sets": [{1, "a"}, set()],
        "foreign": [frozenset([1]), range(3), slice(1), collections.deque([1])],
        "numbers": [1j, 1 << 3000, 1 << 62, -5, 1.5, None, True],
        "odd keys": {1.5: 1, (1, (2, "a")): 2, None: 3, True: 4, b"k": 5},
        "tensor keys": {o: 1},
        "numpy": [np.arange(3), np.float32(1)],
        "dates": [datetime.date(2020, 1, 1), decimal.Decimal(1)],
        "leaves": [torch.Size([1, 2]), torch.device("cuda:1"), torch.device("cpu"), torch.bfloat16,
                   torch.strided, torch.per_tensor_affine, torch.int3],
        "counter": [collections.Counter("ab"), collections.OrderedDict(a=1)],
        "optimizer": torch.optim.Adam([torch.nn.Parameter(o)]).state_dict(),
        "texts": ["\ud800", "", "é" * 100],
    }  # fmt: skip
    attributes = o.clone()
    attributes.note = "x"
    made["attributes"] = attributes
    attributes = torch.nn.Parameter(o.clone())
    attributes.note = [1]
    made["parameter attributes"] = attributes
    return made


def originals(torch: Any) -> Iterator[tuple[str, bytes]]:
    """Yield what torch writes of them, in both formats."""
    warnings.simplefilter("ignore")
    for name, value in objects(torch).items():
        for suffix, options in (
            ("zip", {}),
            ("legacy", {"_use_new_zipfile_serialization": False}),
            ("proto3", {"pickle_protocol": 3}),
            ("proto4", {"pickle_protocol": 4}),
        ):
            file = io.BytesIO()
            try:
                torch.save(value, file, **options)
            except Exception:
                continue
            yield f"{name}-{suffix}", file.getvalue()


def _opcodes(pickle: bytes, start: int = 0) -> tuple[list[bytes], int]:
    """Return the opcodes of a pickle, and where it ends."""
    found, at = [], start
    while True:
        step = parse_step(pickle, at)
        found.append(pickle[at : step.end])
        at = step.end
        if step.opcode.name == "STOP":
            return found, at


_PUSH_CODES = b"N\x88\x89IKMJ\x8a\x8bFGXU\x8cBCSTV)]}\x8fc"


def changed_pickle(pickle: bytes, random: random.Random) -> bytes:
    """Return a pickle with one opcode or a few changed."""
    steps, _ = _opcodes(pickle)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.randrange(1, len(steps)) if len(steps) > 1 else 0
        step = steps[at]
        way = random.randrange(10)
        if way < 5 and step[:1] in (bytes([code]) for code in _PUSH_CODES):
            if step[:1] == b"c" and random.random() < 0.8:
                steps[at] = b.name(*random.choice(_NAMES).rsplit(".", 1))
            else:
                steps[at] = random.choice(_PUSHES)
        elif way == 5 and step[:1] in b"hjqr" and len(step) == 2:
            steps[at] = step[:1] + bytes([random.randrange(12)])
        elif way == 6:
            steps[at] = step + random.choice(_AFTER)
        elif way == 7 and step[:1] in (b"R", b"\x81", b"b", b"u", b"e", b"s", b"a", b"t"):
            steps[at] = random.choice(
                (b"R", b"\x81", b"b", b"u", b"e", b"s", b"a", b"t", b"l", b"d")
            )
        elif way == 8 and step != b".":
            del steps[at]
        elif way == 9:
            steps[at] = random.choice((random.choice(_PUSHES) + b"0" + step, step + step))
        if not steps:
            return pickle
    return b"".join(steps)


def _changed_legacy(data: bytes, random: random.Random) -> bytes:
    bounds = [0]
    for _ in range(5):
        bounds.append(_opcodes(data, bounds[-1])[1])
    which = random.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 4))
    pickle = data[bounds[which] : bounds[which + 1]]
    changed = changed_pickle(pickle, random)
    return data[: bounds[which]] + changed + data[bounds[which + 1] :]


_RECORDS: dict[str, list[bytes]] = {
    ".storage_alignment": [b"",
     b"x", b" 64\n", b"6_4", b"-1", b"0", b"\xff", b"64.0", b"+8", b"1e3"],
    ".format_version": [b"", b"0", b"2", b"\xff", b"x"],
    "byteorder": [b"big", b"little"],
    "version": [b"1", b"10", b"3", b"3x", b" 4"],
    ".data/serialization_id": [b"", b"x", b"\xff\xfe", b"\xc3\xa9", b"\0", b"\xed\xa0\x80"],
    "data.pkl": [],
    "extra": [b"x", b""],
    "constants.pkl": [b"\x80\2)."],
    "data/99": [b"abc"],
}  # fmt: skip


def _changed_zip(data: bytes, random: random.Random) -> bytes:
    archive = zipfile.ZipFile(io.BytesIO(data))
    records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    way = random.randrange(20)
    if way < 14:
        name = f"{root}/data.pkl"
        records[name] = changed_pickle(records[name], random)
    else:
        name = random.choice(list(_RECORDS))
        records.pop(f"{root}/{name}", None)
        if _RECORDS[name] and random.random() < 0.85:
            records[f"{root}/{name}"] = random.choice(_RECORDS[name])
    if way == 19:
        return _changed_headers(data, random)
    odd = random.choice(list(records)) if way == 18 else None
    members = [
        b.Member(name=name.encode(), data=raw, **(_fields(random, raw) if name == odd else {}))
        for name, raw in records.items()
    ]
    end = b.End(
        zip64=random.random() < 0.7,
        locator_disks=random.choice((0, 1, 1)),
        comment=random.choice((b"", b"", b"hello")),
        zip64_length=random.choice((44, 44, 45, 60)),
    )
    return b.build_zip(members, end if way in (16, 17) else None)


def _fields(random: random.Random, raw: bytes) -> dict[str, Any]:
    """Return what is odd in a record."""
    return random.choice(
        (
            {"flags": 1 << random.randrange(16)},
            {"method": 8},
            {"crc": 0},
            {"comment": b"hello"},
            {"extra": b"UT\5\0\3abcd"},
            {"local_extra": b"UT\5\0\3abcd"},
            {"extra": struct.pack("<HHQQ", 1, 16, len(raw), len(raw))},
            {"extra": struct.pack("<HHI", 0x7075, 4, 1)},
            {"extra": b"\1\0"},
            {"local_extra": b"\1\0\x20\0"},
            {"disk": random.choice((1, 0xFFFF))},
            {"local_crc": 0, "flags": 8, "local_nbytes": 0, "local_compressed": 0},
        )
    )


def _changed_headers(data: bytes, random: random.Random) -> bytes:
    """Return an archive with a byte changed in its directory, its end, or a local header."""
    made = bytearray(data)
    places = [at for at in range(len(data) - 3) if data[at : at + 2] == b"PK"]
    at = random.choice(places) + random.randrange(60)
    if at < len(made):
        made[at] = random.choice((0, 1, 2, 8, 0x20, 0x80, 0xFF, random.randrange(256)))
    return bytes(made)


def changed(data: bytes, random: random.Random) -> bytes:
    """Return a file with one thing or a few changed."""
    return (_changed_zip if data[:2] == b"PK" else _changed_legacy)(data, random)


Make = Callable[[int], tuple[str, bytes]]


def mutants(torch: Any) -> Make:
    """Return what makes a mutant from a number."""
    files = list(originals(torch))

    def make(number: int) -> tuple[str, bytes]:
        chosen = random.Random(number)
        name, data = files[number % len(files)]
        return f"{name}-{number}", data if number < len(files) else changed(data, chosen)

    return make
