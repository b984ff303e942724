"""What `verify` says of torch.load, without torch: a row for each rule that its loaders have.

`tests/test_against_torch_verdicts.py` compares the rules with torch itself.
"""

from __future__ import annotations

import io
import struct

import pytest

from tests import builders as b
from torchzip.tools import verify

_UTILS = "torch._utils"
_UNTYPED = b.name("torch.storage", "UntypedStorage")
_V3 = b.name(_UTILS, "_rebuild_tensor_v3")
_NO_GRADIENT, _GRADIENT = b.FALSE, b.TRUE


def _pid(kind: bytes = b.name("torch", "FloatStorage"), numel: int = 4, *, old: bool) -> bytes:
    view = (b"N",) if old else ()
    return b.tuple_of("storage", kind, "0", "cpu", numel, *view) + b"Q"


def _legacy(value: bytes) -> bytes:
    keys = b.stream(b.list_of("0") if b"storage" in value else b"]")
    count = 16 if _UNTYPED in value else 4
    data = struct.pack("<q", count) + b.DATA if b"storage" in value else b""
    return b.legacy(b.stream(value), keys, data)


def _zip(value: bytes, **records: bytes) -> bytes:
    made = b.members_of(b.stream(value), {"0": b.DATA, "1": b""})
    made += [
        b.Member(name=f"archive/{name.replace('__', '.')}".encode(), data=data)
        for name, data in records.items()
    ]
    return b.build_zip(made)


def _commented(nbytes: int, before: int = 0) -> bytes:
    """Return an archive with a comment, and a record of so many bytes before it."""
    made = b.members_of(b.stream(b"N"))
    data = b.build_zip([*made, b.Member(name=b"archive/more", data=bytes(before))])
    return data[:-2] + nbytes.to_bytes(2, "little") + b"c" * nbytes


def _in_folder(nbytes: int) -> bytes:
    return b.build_zip(b.members_of(b.stream(b"N"), root="x" * nbytes))


def _v3(dtype: str, requires_grad: bytes = _NO_GRADIENT, *, old: bool = False) -> bytes:
    pid = _pid(_UNTYPED, 16, old=old)
    return b.call(_V3, pid, 0, (4,), (1,), requires_grad, b.HOOKS, b.name("torch", dtype))


def _v2(requires_grad: bytes = _NO_GRADIENT, kind: str = "FloatStorage", *more: bytes) -> bytes:
    numel = {"FloatStorage": 4, "IntStorage": 4, "BoolStorage": 16}[kind]
    return b.call(
        b.name(_UTILS, "_rebuild_tensor_v2"), _pid(b.name("torch", kind), numel, old=False),
        0, (4,), (1,), requires_grad, b.HOOKS, *more,
    )  # fmt: skip


def _sparse(parts: bytes) -> bytes:
    layout = b.call("torch.serialization._get_layout", "torch.sparse_coo")
    made = b.call(b.name(_UTILS, "_rebuild_sparse_tensor"), layout, parts)
    return b.call(b.name(_UTILS, "_rebuild_parameter"), made, True, b.HOOKS)


_PARTS = [
    b.tensor(
        b.persistent(kind=b.name("torch", "LongStorage"), numel=2), size=(1, 0), stride=(1, 1)
    ),
    b.tensor(b.persistent(key="1", numel=0), size=(0,)),
    b.ints(3),
]
_STATE = b.name(_UTILS, "_rebuild_parameter_with_state")
_CONJ = b.dict_of({"conj": False})
_OLD = _pid(old=True)

#: name -> (the file, what torch.load does with it, a part of the reason)
ROWS: dict[str, tuple[bytes, str, str]] = {
    "a tensor": (_zip(_v2()), "accepts", ""),
    "a gradient": (_zip(_v2(_GRADIENT)), "accepts", ""),
    "a gradient of ints": (_zip(_v2(_GRADIENT, "IntStorage")), "refuses", "requires a gradient"),
    "a gradient of bools": (_zip(_v2(_GRADIENT, "BoolStorage")), "refuses", "requires a gradient"),
    "float8": (_zip(_v3("float8_e4m3fn")), "accepts", ""),
    "a gradient of float8": (_zip(_v3("float8_e4m3fn", _GRADIENT)), "refuses", "cannot give it"),
    "legacy float8": (_legacy(_v3("float8_e4m3fn", old=True)), "refuses", "legacy format"),
    "a legacy untyped storage": (_legacy(_pid(_UNTYPED, 16, old=True)), "refuses", "legacy"),
    "a legacy storage": (_legacy(_OLD), "accepts", ""),
    "a legacy id in a zip": (_zip(_OLD), "refuses", "6 values"),
    "an id of a zip in a legacy file": (_legacy(_pid(old=False)), "refuses", "5 values"),
    "a real tensor that is not conjugated": (_zip(_v2(_NO_GRADIENT, "FloatStorage", _CONJ)),
     "refuses", "conjugated"),
    "a storage alignment": (_zip(b"N", __storage_alignment=b" 64\n"), "accepts", ""),
    "a storage alignment of junk": (_zip(b"N", __storage_alignment=b"x"), "refuses", "'x'"),
    "no storage alignment": (_zip(b"N", __storage_alignment=b""), "refuses", "a number"),
    "a serialization id": (b.build_zip([*b.members_of(b.stream(b"N")),
     b.Member(name=b"archive/.data/serialization_id", data=b"\xff")]), "refuses", "not UTF-8"),
    "a comment of 3,000 bytes": (_commented(3000), "accepts", ""),
    "a comment of 5,000 bytes": (_commented(5000), "refuses", "far from the end"),
    "a comment of 5,000 bytes far behind": (_commented(5000, 9000), "accepts", ""),
    "a comment of 65,535 bytes": (_commented(65_535), "refuses", "far from the end"),
    "a folder of 510 bytes": (_in_folder(510), "accepts", ""),
    "a folder of 511 bytes": (_in_folder(511), "refuses", "511 bytes"),
    "a name that is not UTF-8": (b.build_zip([*b.members_of(b.stream(b"N")),
     b.Member(name=b"archive/\xff", data=b"")]), "refuses", "not UTF-8"),
    "a device": (_zip(b.call("torch.device", "cuda:1")), "accepts", ""),
    "an odd device": (_zip(b.call("torch.device", "gpu")), "refuses", "'gpu'"),
    "a device of two indices": (_zip(b.call("torch.device", "cuda:0", 1)), "refuses", "index"),
    "an odd tag": (_zip(b.tensor(b.persistent(location="gpu:0"))), "accepts", "with map_location"),
    "a sparse tensor with a gradient": (_zip(_sparse(b.tuple_of(*_PARTS))), "accepts", ""),
    "a sparse tensor of a list": (_zip(_sparse(b.list_of(*_PARTS))), "accepts", ""),
    "an odd layout": (_zip(b.call("torch.serialization._get_layout", "torch.zigzag")),
     "refuses", "not a layout"),
    "a state of numbers": (_zip(b.call(_STATE, _v2(), True, b.HOOKS, b"}K\1K\2s")),
     "refuses", "not strings"),
    "a state that is the shape": (_zip(b.call(_STATE, _v2(), True, b.HOOKS, {"shape": 1})),
     "refuses", "cannot be set"),
    "a string of Python 2": (_zip(b"U\1a"), "accepts", ""),
    "bytes of Python 2": (_zip(b"U\1\xff"), "refuses", "not UTF-8"),
    "a name of another": (_zip(b.name("lib", "f")), "needs weights_only=False", ""),
    "a name and a fault": (_zip(b.list_of(b.name("lib", "f"), b.call("torch.device", "gpu"))),
     "refuses", "'gpu'"),
    "constants that make no TorchScript": (_zip(b"N", constants__pkl=b.stream(b")")),
     "refuses", "not TorchScript"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_verdict(name: str) -> None:
    """A file, what torch.load does with it, and why."""
    data, verdict, reason = ROWS[name]
    found = verify(io.BytesIO(data))
    assert (found.torch_load, reason in (found.reason or "")) == (verdict, True), found.reason


def test_names_in_the_pickles_around_the_object() -> None:
    """One of another than the object's blocks a legacy file as well."""
    pickles = [b.stream(b.MAGIC), b.stream(b.integer(1001)), b.stream(b"}"), b.stream(b"N")]
    plain = b"".join(pickles) + b.stream(b"]")
    assert verify(io.BytesIO(plain)).torch_load == "accepts"
    for number in range(4):
        changed = [*pickles, b.stream(b"]")]
        changed[number] = changed[number][:2] + b.name("lib", "f") + changed[number][2:]
        found = verify(io.BytesIO(b"".join(changed)))
        assert (found.torch_load, found.refused) == ("needs weights_only=False", ("lib.f",))
