"""TorchScript archives and exported programs: code, constants and configs that lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests import builders as b
from tests.formats.pt2_builder import meta, payload
from tests.hostile.attack import Row, attacks
from torchzip.errors import (
    ArchiveError,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    UnsupportedError,
)

_CODE = (
    b'class Net(Module):\n  __parameters__ = ["weight", ]\n  __buffers__ = []\n  weight : Tensor\n'
)
_MODULE = b.name("__torch__", "Net") + b")\x81" + b.dict_of({"weight": b.tensor()}) + b"b"


def _script(
    code: bytes | None = _CODE,
    *,
    module: bytes = _MODULE,
    constants: bytes = b")",
    method: int = 8,
    **more: b.Member,
) -> bytes:
    """Return a TorchScript archive of one module; ``more`` replaces records."""
    members = b.members_of(b.stream(module))
    members.append(b.Member(name=b"archive/constants.pkl", data=b.stream(constants)))
    if code is not None:
        members.append(b.Member(name=b"archive/code/__torch__.py", data=code, method=method))
    return b.build_zip([*members, *more.values()])


def _code_record(**changes: Any) -> bytes:
    member = b.Member(name=b"archive/code/__torch__.py", data=_CODE, method=8)
    return _script(None, code_record=replace(member, **changes))


def _class(name: bytes, lists: bytes = b"") -> bytes:
    return b"class " + name + b"(Module):\n" + lists


_SCRIPTS: list[Row] = [
    ("a script", _script(), None),
    ("a script without code", _script(None), None),
    ("a script of code that is no text", _script(b"\xff\xfe" * 999), None),
    ("a script of code without line breaks", _script(b"x" * (1 << 20)), None),
    ("a script of a class twice", _script(_CODE * 2), None),
    ("a script of 100,000 classes", _script(_class(b"A") * 100_000), None),
    ("a script of a list without end", _script(
        _class(b"Net", b"  __parameters__ = [" + b'"a", ' * 100_000)), None),
    ("a script of a name without end", _script(
        _class(b"Net", b'  __parameters__ = ["' + b"\\" * 100_000)), None),
    ("a script of a class name of a megabyte", _script(_class(b"N" * (1 << 20))), None),
    ("a script that would run", _script(b"import os\nos.system('x')\n" + _CODE), None),
    ("a script of a code bomb", _script(_CODE + b" " * (33 << 20)), LimitError),
    ("a script of code that says 1 GiB", _code_record(nbytes=1 << 30), LimitError),
    ("a script of code that goes on", _code_record(stored=b.deflate(_CODE * 99)), ArchiveError),
    ("a script of code that is cut", _code_record(stored=b.deflate(_CODE)[:-3]), ArchiveError),
    ("a script of code with a wrong CRC", _code_record(crc=1), ArchiveError),
    ("a script of code under another name", _code_record(local_name=b"archive/code/x.py"),
     ArchiveError),
    ("a script whose class climbs", _script(module=b.name("__torch__...etc.passwd", "Net")
     + _MODULE[len(b"c__torch__\nNet\n") :]), None),
    ("a script of a storage that is a constant", _script(
        module=_MODULE.replace(b.text("0"), b.text("../constants/0"))), PickleError),
    ("a script of a storage that is not there", _script(
        module=_MODULE.replace(b.persistent(), b.persistent("9"))), ArchiveError),
    ("a script of a storage of five", _script(
        module=_MODULE.replace(b.persistent(), b.persistent(numel=5))), TensorError),
    ("a script without pickle", b.build_zip([b.Member(name=b"archive/constants.pkl",
     data=b.stream(b")")), b.Member(name=b"archive/version", data=b"3")]), ArchiveError),
    ("a script of an unknown tensor id", _script(module=b.call(
        "torch.jit._pickle.build_tensor_from_id", 1)), UnsupportedError),
    ("a script of a list that is a number", _script(module=b.call(
        "torch.jit._pickle.build_intlist", 1)), PickleError),
]  # fmt: skip


def _program(config: Any, records: Mapping[str, bytes | None] | None = None) -> bytes:
    """Return an exported program with this config of its weights."""
    text = config if isinstance(config, bytes) else json.dumps({"config": config}).encode()
    whole: dict[str, bytes | None] = {
        "data/weights/weight_0": b.DATA, "data/weights/model_weights_config.json": text,
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "models/model.json": b"{}", "archive_format": b"pt2", "archive_version": b"0",
        "version": b"6\n", "byteorder": b"little", **(records or {}),
    }  # fmt: skip
    return b.zip_of(whole, root="m/")


def _ints(*numbers: Any) -> list[dict[str, Any]]:
    return [{"as_int": number} for number in numbers]


def _weight(data: bytes | None = b.DATA, **changes: Any) -> bytes:
    """Return a program of one weight, whose record has this data."""
    return _program({"x": payload(**changes)}, {"data/weights/weight_0": data})


def _tensor(**changes: Any) -> bytes:
    return _weight(tensor_meta=meta(**changes))


_PROGRAMS: list[Row] = [
    ("a program", _weight(), None),
    ("a program of a weight that climbs", _weight(path_name="../weights/weight_0"), ArchiveError),
    ("a program of an absolute weight", _weight(path_name="/etc/passwd"), ArchiveError),
    ("a program of a weight in capitals", _weight(path_name="WEIGHT_0"), ArchiveError),
    ("a program of a weight of no name", _weight(path_name="")),
    ("a program of a weight that is a number", _weight(path_name=0)),
    ("a program of a weight of 12 bytes", _weight(b.DATA[:12]), TensorError),
    ("a program of a weight of 15 bytes", _weight(b.DATA[:15]), TensorError),
    ("a program of a weight of 20 bytes", _weight(b.DATA + bytes(4)), None),
    ("a program without its weight", _weight(None), ArchiveError),
    ("a program of 2**62 numbers", _tensor(sizes=_ints(1 << 62)), TensorError),
    ("a program of -4 numbers", _tensor(sizes=_ints(-4))),
    ("a program of 4.0 numbers", _tensor(sizes=_ints(4.0))),
    ("a program of NaN numbers", _tensor(sizes=_ints(float("nan")))),
    ("a program of a symbol of numbers", _tensor(sizes=[{"as_expr": {"expr_str": "s0"}}]),
     UnsupportedError),
    ("a program of 65 dimensions", _tensor(
        sizes=_ints(*[1] * 65), strides=_ints(*[1] * 65)), TensorError),
    ("a program of sizes without strides", _tensor(strides=[]), TensorError),
    ("a program of a stride past the end", _tensor(strides=_ints(2)), TensorError),
    ("a program of a stride of -1", _tensor(strides=_ints(-1))),
    ("a program from 1", _tensor(storage_offset={"as_int": 1}), TensorError),
    ("a program from 2**63", _tensor(storage_offset={"as_int": 1 << 63})),
    ("a program of dtype 0", _tensor(dtype=0), UnsupportedError),
    ("a program of dtype true", _tensor(dtype=True)),
    ("a program of dtype 7.0", _tensor(dtype=7.0)),
    ("a program of a dtype of eight bytes", _tensor(dtype=8), TensorError),
    ("a program of a sparse layout", _tensor(layout=1), UnsupportedError),
    ("a program on a device of a number", _tensor(device={"type": 0})),
    ("a program on no device", _tensor(device=None)),
    ("a program that requires 1", _tensor(requires_grad=1)),
    ("a program of a parameter of 1", _weight(is_param=1)),
    ("a program without meta", _program({"x": payload() | {"tensor_meta": None}})),
    ("a program of a pickle that is data", _weight(use_pickle=True), ArchiveError),
    ("a program of a program", _weight(use_pickle=True, data=_weight()), ArchiveError),
    ("a program of a file",
     _weight(use_pickle=True, data=b.checkpoint(b.stream(b.tensor()))), None),
    ("a program of a file with a comment that is an archive",
     _weight(use_pickle=True, data=b.checkpoint(b.stream(b.tensor())) * 2), ArchiveError),
    ("a config that is no text", _program(b"\xff")),
    ("a config behind a byte order mark", _program(b'\xef\xbb\xbf{"config": {}}')),
    ("a config that is a list", _program(b"[]")),
    ("a config in a config", _program(b'{"config": {"x": {"config": {}}}}')),
    ("a config with a name twice", _program(b'{"config": {"x": 1, "x": 1}}')),
    ("a config twice", _program(b'{"config": {}, "config": {}}')),
    ("a config nested 100,000 deep", _program(b'{"config":' + b"[" * 100_000)),
    ("a config of 5,000 digits", _program(b'{"config":{"x":' + b"9" * 5000 + b"}}")),
    ("a config of 3 MB of blanks", _program(b'{"config": {}}' + b" " * (3 << 20) + b"x")),
    ("no config", _program({}, {"data/weights/model_weights_config.json": None}), ArchiveError),
    ("a weight that is a constant too", _program({"x": payload()}, {
        "data/constants/weight_0": b.DATA, "data/constants/model_constants_config.json":
        json.dumps({"config": {"x": payload()}}).encode()})),
    ("a program of another format", _program({}, {"archive_format": b"pt3"}), UnsupportedError),
    ("a program of another version", _program({}, {"archive_version": b"1"}), UnsupportedError),
    ("a program of a format of 5,000 bytes", _program({}, {"archive_format": b"pt2" * 2000}),
     LimitError),
]  # fmt: skip


def _old(records: Mapping[str, bytes]) -> bytes:
    """Return an exported program as torch 2.1 to 2.7 wrote it."""
    return b.zip_of({"serialized_exported_program.json": b"{}", **records}, root="")


def _state(raw: bytes) -> bytes:
    """Return an old program whose weights are this file."""
    return _old({"serialized_state_dict.pt": raw})


_STATE = b.checkpoint(b.stream(b.dict_of({"x": b.tensor()})))
_OLD: list[Row] = [
    ("an old program", _state(_STATE), None),
    ("an old program without state", _old({}), ArchiveError),
    ("an old program of a list", _state(b.checkpoint(b.stream(b"]")))),
    ("an old program of numbers as names", _old(
        {"serialized_state_dict.pt": b.checkpoint(b.stream(b"}K\1K\2s"))})),
    ("an old program of a state that is cut", _state(_STATE[:-1]), ArchiveError),
    ("an old program of a state with bytes before it", _state(b"x" + _STATE), ArchiveError),
    ("an old program of two states", _old({
        "serialized_state_dict.pt": _STATE, "serialized_state_dict.json": b"other"}), None),
    ("an old program of a weight that is a constant too", _old({
        "serialized_state_dict.pt": _STATE, "serialized_constants.pt": _STATE})),
    ("an old program of itself", _old({"serialized_state_dict.pt": _state(_STATE)}), ArchiveError),
    ("an old program of a legacy file", _state(b"\x80\2."), ArchiveError),
]  # fmt: skip

ROWS = attacks([*_SCRIPTS, *_PROGRAMS, *_OLD], FormatError)
