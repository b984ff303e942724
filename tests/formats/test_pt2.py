""".pt2 archives made by hand: the three layouts, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.formats.pt2_builder import FOUR, archive, config, held, meta, payload, weights
from tests.saved import saved
from torchzip.dtypes import DTYPES
from torchzip.errors import (
    ArchiveError,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    TorchZipError,
    UnsupportedError,
)

#: docs/format.md, section 11.4.
NUMBERS = {
    "uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float16": 6, "float32": 7,
    "float64": 8, "complex32": 9, "complex64": 10, "complex128": 11, "bool": 12, "bfloat16": 13,
    "uint16": 28, "float8_e4m3fn": 29, "float8_e5m2": 30, "float8_e4m3fnuz": 31,
    "float8_e5m2fnuz": 32, "float8_e8m0fnu": 33, "uint32": 34, "uint64": 35,
}  # fmt: skip


def tensor(*arguments: Any, **changes: Any) -> dict[str, Any]:
    """Return what a config says of a tensor, by its tensor_meta."""
    return payload(tensor_meta=meta(*arguments, **changes))


def lazy(data: bytes, **options: Any) -> tz.Checkpoint:
    return tz.lazy_load(io.BytesIO(data), **options)


def load(data: bytes) -> Any:
    return tz.load(io.BytesIO(data))


# -- the layout of 2.8 and later ---------------------------------------------------------------


def test_weights_and_constants() -> None:
    """Weights come first, then constants, each in the order of its config."""
    parameter = payload(is_param=True, tensor_meta=meta(requires_grad=True))
    constant = payload("tensor_0", meta(3, (2,)))
    data = archive(
        held("weights", {"z": parameter, "a": payload()}, {"weight_0": b.DATA})
        | held("constants", {"c": constant}, {"tensor_0": struct.pack("<2h", 5, 6)})
    )
    with lazy(data) as ckpt:
        assert (ckpt.format, list(ckpt), ckpt.constants) == ("pt2", ["z", "a", "c"], ())
        assert type(ckpt.root) is dict
        assert type(ckpt.root["z"]) is tz.types.Parameter
        assert (ckpt["z"].is_parameter, ckpt["z"].requires_grad) == (True, True)
        assert (ckpt["a"].is_parameter, ckpt["a"].requires_grad) == (False, False)
        assert ckpt["z"].spec.storage is ckpt["a"].spec.storage
        assert ckpt["c"].numpy().tolist() == [5, 6]
        assert (ckpt.globals, ckpt.foreign) == ([], [])
        assert ckpt.verify().tensors == 3
    root = load(data)
    assert np.shares_memory(root["z"], root["a"])


@pytest.mark.parametrize("name", NUMBERS)
def test_dtypes(name: str) -> None:
    count = 16 // DTYPES[name].itemsize
    data = weights({"t": tensor(NUMBERS[name], (count,))})
    with lazy(data) as ckpt:
        assert (ckpt["t"].torch_dtype, ckpt["t"].shape) == (name, (count,))
        assert ckpt["t"].numpy().tobytes() == b.DATA
        again = saved(ckpt.root)
    with lazy(again) as ckpt:
        assert (ckpt["t"].torch_dtype, ckpt["t"].numpy().tobytes()) == (name, b.DATA)


@pytest.mark.parametrize("number", [0, 14, 27, 36, 1 << 40])
def test_unknown_dtypes(number: int) -> None:
    with pytest.raises(UnsupportedError, match=f"'t': dtype number {number}"):
        load(weights({"t": tensor(number)}))


def test_layouts() -> None:
    """Strides and offsets count elements; the storage is the whole record."""
    rows = {
        "t": tensor(7, (2, 2), (1, 2)),
        "last": tensor(7, (), (), 3),
        "wide": tensor(7, (3, 4), (0, 1)),
        "none": tensor(7, (0, 3), (3, 1), 99),
    }
    with lazy(weights(rows)) as ckpt:
        assert ckpt["t"].numpy().tolist() == [[1, 3], [2, 4]]
        assert ckpt["last"].numpy() == 4
        assert ckpt["wide"].stride == (0, 1)
        assert ckpt["none"].numpy().shape == (0, 3)
        assert len({id(ckpt[name].spec.storage) for name in ckpt}) == 1


def test_one_record_as_two_dtypes() -> None:
    """Each is right; saved again they are two storages, as a file has one dtype for each."""
    rows = {"f": payload(), "i": tensor(4)}
    with lazy(weights(rows)) as ckpt:
        assert ckpt["i"].numpy().tobytes() == ckpt["f"].numpy().tobytes() == b.DATA
        root = load(saved(ckpt.root))
    assert (root["f"].dtype, root["i"].dtype) == (np.float32, np.int32)
    assert root["i"].tobytes() == b.DATA


def test_empty_records_are_zeros() -> None:
    """Of any size, without the memory for it."""
    rows = {
        "w": payload(is_param=True, tensor_meta=meta(7, (2, 3), (3, 1))),
        "giant": tensor(13, (1 << 20, 1 << 20), (1 << 20, 1)),
        "none": tensor(7, (0,)),
        "scalar": tensor(7, (), ()),
    }
    with lazy(weights(rows, {"weight_0": b""})) as ckpt:
        assert ckpt["w"].numpy().tolist() == [[0, 0, 0], [0, 0, 0]]
        assert ckpt["w"].is_parameter
        assert ckpt["giant"][5, :3].tolist() == [0, 0, 0]
        assert ckpt["none"].shape == (0,)
        assert ckpt["scalar"].numpy() == 0
    root = load(weights(rows, {"weight_0": b""}))
    assert root["giant"].shape == (1 << 20, 1 << 20)
    assert not root["w"].any()


def test_several_models() -> None:
    """A dict for each; records are not shared between their names by accident."""
    records: dict[str, bytes | None] = {"models/model.json": None, "data/weights/weight_0": b.DATA}
    for name in ("b", "a"):
        records[f"models/{name}.json"] = b"{}"
        records[f"data/weights/{name}_weights_config.json"] = config({"w": payload()})
        records[f"data/constants/{name}_constants_config.json"] = config({})
    with lazy(archive(records)) as ckpt:
        assert list(ckpt) == ["b.w", "a.w"]
        assert list(ckpt.root) == ["b", "a"]


def test_devices() -> None:
    for device, location in (
        ({"type": "cuda", "index": 1}, "cuda:1"), ({"type": "cpu", "index": None}, "cpu"),
        ({"type": "meta"}, "meta"),
    ):  # fmt: skip
        with lazy(weights({"t": tensor(device=device)})) as ckpt:
            assert ckpt["t"].spec.storage.location == location


def test_big_endian() -> None:
    records = {"weight_0": struct.pack(">2H", 1, 2)}
    assert load(weights({"t": tensor(28, (2,))}, records, byteorder=b"big"))["t"].tolist() == [1, 2]


def test_deflated() -> None:
    assert load(weights({"t": payload()}, method=8))["t"].tolist() == [1, 2, 3, 4]


def test_mapped(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(weights({"t": payload()}))
    made = tz.load(path, mmap=True)["t"]
    assert made.tolist() == [1, 2, 3, 4]
    assert not made.flags.writeable


# -- what is pickled ---------------------------------------------------------------------------


def inner(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    return b.checkpoint(b.stream(pickle), storages)


def test_pickled_tensors() -> None:
    """A weight in a file of ``torch.save`` is what is in that."""
    pickled = payload("weight_0", use_pickle=True, is_param=True)
    with lazy(weights({"w": pickled}, {"weight_0": inner(b.tensor())})) as ckpt:
        assert ckpt["w"].numpy().tolist() == [1, 2, 3, 4]
        assert ("torch", "FloatStorage") in ckpt.globals
    foreign = inner(b.call("lib.make", b.tensor()))
    with lazy(weights({"w": pickled}, {"weight_0": foreign})) as ckpt:
        assert type(ckpt.root["w"]) is tz.types.ForeignObject
        assert ckpt.foreign == [("lib", "make")]
    with pytest.raises(tz.UnsafeGlobalError, match=r"lib\.make"):
        lazy(weights({"w": pickled}, {"weight_0": foreign}), foreign="raise")


def test_custom_objects() -> None:
    """Those of C++ are read as TorchScript, those of Python as a plain pickle; both are inert."""
    pid = b.persistent(numel=8, kind=b.name("torch", "UInt16Storage"))
    packed = b.name("__torch__.torch.classes.q", "Packed") + b")\x81" + b.tensor(pid, size=(8,))
    rows = {
        "c": payload("custom_obj_0", use_pickle=True) | {"tensor_meta": None},
        "o": payload("opaque_obj_0", use_pickle=True) | {"tensor_meta": None},
    }
    opaque = b.stream(b.call("lib.Thing", b"K\1"))
    records = {"custom_obj_0": inner(packed + b"\x85b"), "opaque_obj_0": opaque}
    data = archive(held("constants", rows, records))
    with lazy(data) as ckpt:
        assert repr(ckpt.root["c"]).startswith("<foreign __torch__.torch.classes.q.Packed")
        assert ckpt.root["c"].state[0].torch_dtype == "uint16"
        assert ckpt.root["o"].args == (1,)
        assert ckpt.foreign == [("__torch__.torch.classes.q", "Packed"), ("lib", "Thing")]
    assert load(data)["c"].state[0].shape == (8,)
    records = {"opaque_obj_0": b.stream(b.tensor())}
    with pytest.raises(FormatError, match="without storages"):
        load(archive(held("constants", {"o": rows["o"]}, records)))


# -- older layouts -------------------------------------------------------------------------------

STATE = b.dict_of({"w": b.call("torch._utils._rebuild_parameter", b.tensor(), True,
                               b.HOOKS), "v": b.tensor()})  # fmt: skip
CONSTANT = b.dict_of({"c": b.tensor()})
CONSTANTS = inner(CONSTANT, {"0": struct.pack("<4f", 5, 6, 7, 8)})


def old(records: Mapping[str, bytes | None], *, method: int = 0) -> bytes:
    """Return an archive of 2.1 to 2.7: the records lie in no folder."""
    whole: dict[str, bytes | None] = {
        "serialized_exported_program.json": b"{}",
        "serialized_state_dict.pt": inner(STATE),
        "serialized_constants.pt": CONSTANTS,
        "serialized_example_inputs.pt": inner(b")"), "version": b"8.2", **records,
    }  # fmt: skip
    return b.zip_of(whole, root="", method=method)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(old({}), id="2.1 to 2.7"),
        pytest.param(
            old({"serialized_state_dict.pt": None, "serialized_constants.pt": None,
                 "serialized_state_dict.json": inner(STATE),
                 "serialized_constants.json": CONSTANTS, "extra_files/a/b.txt": b"x"}),
            id="the suffix of 2.1"),
        pytest.param(
            archive({"data/weights/model.pt": inner(STATE), "data/constants/model.pt": CONSTANTS,
                     "data/weights/model_weights_config.json": None,
                     "data/constants/model_constants_config.json": None}),
            id="files in the later layout"),
    ],
)  # fmt: skip
def test_older_layouts(tmp_path: Path, data: bytes) -> None:
    """Weights and constants are files of ``torch.save`` inside the archive."""
    path = tmp_path / "m.pt2"
    path.write_bytes(data)
    with tz.lazy_load(path) as ckpt:
        assert (ckpt.format, list(ckpt)) == ("pt2", ["w", "v", "c"])
        assert type(ckpt.root) is dict
        assert ckpt["w"].is_parameter
        assert ckpt["w"].spec.storage is ckpt["v"].spec.storage
        assert ckpt["c"][1:].tolist() == [6, 7, 8]
        assert ckpt.verify().tensors == 3
    for root in (tz.load(path), tz.load(path, mmap=True), load(data)):
        assert root["v"].tolist() == [1, 2, 3, 4]
        assert np.shares_memory(root["w"], root["v"])
        assert root["c"].tolist() == [5, 6, 7, 8]
    tz.convert(path, tmp_path / "out.pt")
    assert tz.load(tmp_path / "out.pt")["c"].tolist() == [5, 6, 7, 8]


def test_older_layouts_without() -> None:
    """No constants, or an empty record for them (``None`` was saved), are none."""
    assert list(load(old({"serialized_constants.pt": None}))) == ["w", "v"]
    assert list(load(old({"serialized_constants.pt": b""}))) == ["w", "v"]
    assert list(load(old({"version": None}))) == ["w", "v", "c"]
    with pytest.raises(ArchiveError, match=r"serialized_state_dict\.pt"):
        load(old({"serialized_state_dict.pt": None}))


def test_errors_name_the_inner_file(tmp_path: Path) -> None:
    """A place in an inner file is given with both."""
    path = tmp_path / "m.pt2"
    path.write_bytes(
        old({"serialized_state_dict.pt": inner(b.dict_of({"w": b.tensor(size=(5,))}))})
    )
    with pytest.raises(TensorError) as caught:
        tz.lazy_load(path)
    assert str(caught.value).startswith(f"{path}: serialized_state_dict.pt, record data.pkl")


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (inner(b"]"), FormatError),
        (inner(b"}K\1K\2s"), FormatError),
        (inner(b.tensor()), FormatError),
        (inner(b.dict_of({"c": b.tensor()})), FormatError),  # a constant is called so too
        (b"PK\3\4", ArchiveError),
        (b"nothing", ArchiveError),
        (b.build_zip([b.Member(name=b"a/x", data=b"")]), ArchiveError),
        (inner(b.tensor(b.persistent("5"))), ArchiveError),
    ],
)
def test_broken_files_inside(state: bytes, error: type[TorchZipError]) -> None:
    """Whatever stands in their place is an error."""
    for data in (
        old({"serialized_state_dict.pt": state}),
        archive({"data/weights/model.pt": state, "data/constants/model.pt": inner(CONSTANT)}),
    ):
        with pytest.raises(error) as caught:
            load(data)
        assert caught.value.path is not None


def test_deflated_files_inside() -> None:
    """They would have to be read as a whole, whatever their size."""
    with pytest.raises(UnsupportedError, match="deflated"):
        load(old({}, method=8))


def test_no_folder_is_for_old_files_only() -> None:
    """Any other archive without a folder is what it was: an error."""
    with pytest.raises(ArchiveError, match="lie in one directory"):
        load(b.build_zip([b.Member(name=b"data.pkl", data=b.stream(b"N"))]))


# -- hostile configs -----------------------------------------------------------------------------

_JUNK: list[Any] = [None, True, -1, 1.5, "x", [], {}, [[]], 1 << 70, {"as_int": 1}]
_FIELDS = ["path_name", "is_param", "use_pickle", "tensor_meta"]
_META = ["dtype", "sizes", "requires_grad", "device", "strides", "storage_offset", "layout"]


@pytest.mark.parametrize("junk", _JUNK, ids=repr)
@pytest.mark.parametrize("field", [*_FIELDS, *_META])
def test_junk_in_a_field(field: str, junk: Any) -> None:
    """Each field has its type; any other is an error that names it, or another reading."""
    if field in _FIELDS:
        row = payload() | {field: junk}
    else:
        row = payload(tensor_meta=meta() | {field: junk})
    data = weights({"the name": row})
    right = {**payload(), **meta()}[field]
    if type(junk) is bool and type(right) is bool and field != "use_pickle":
        assert list(load(data)) == ["the name"]
        return
    with pytest.raises(TorchZipError) as caught:
        load(data)
    assert len(str(caught.value)) < 1000
    assert caught.value.path is not None


@pytest.mark.parametrize("field", [*_FIELDS, *_META])
def test_missing_field(field: str) -> None:
    row = payload()
    (row if field in _FIELDS else row["tensor_meta"]).pop(field)
    with pytest.raises(FormatError, match="'the name'"):
        load(weights({"the name": row}))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (payload("weight_1"), ArchiveError),
        (payload("../weights/weight_1"), ArchiveError),
        (tensor(7, (5,)), TensorError),
        (tensor(7, (4,), (2,)), TensorError),
        (tensor(7, (4,), (1,), 1), TensorError),
        (tensor(7, (4, 1), (1,)), TensorError),
        (tensor(7, (1,) * 65, (1,) * 65), TensorError),
        (tensor(7, (1 << 62, 0), (1, 1)), TensorError),
        (tensor(layout=1), UnsupportedError),
        (tensor(sizes=[{"as_expr": {"expr_str": "s0"}}]), UnsupportedError),
        (tensor(sizes=[{"as_int": True}]), FormatError),
        (tensor(sizes=[{"as_int": 1 << 63}]), FormatError),
        (tensor(sizes=[4]), FormatError),
        (tensor(device={"type": 1}), FormatError),
        (tensor(device={"type": "cuda", "index": "0"}), FormatError),
        (payload(use_pickle=True), ArchiveError),
        ([], FormatError),
        (None, FormatError),
    ],
)
def test_refused(row: Any, error: type[TorchZipError]) -> None:
    for read in (tz.load, tz.lazy_load):
        with pytest.raises(error) as caught:
            read(io.BytesIO(weights({"t": row})))
        assert caught.value.record is not None


def test_a_part_of_an_element() -> None:
    with pytest.raises(TensorError, match="not a whole number"):
        load(weights({"t": tensor(7, (1,))}, {"weight_0": b"12345"}))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", FormatError),
        (b"\xff", FormatError),
        (b"[]", FormatError),
        (b"{}", FormatError),
        (b'{"config": []}', FormatError),
        (b'{"config": {"a": 1, "a": 1}}', FormatError),
        (b"[" * 100_000, FormatError),
        (b'{"config": {"a": ' + b"9" * 5000 + b"}}", FormatError),
        (b'{"config": NaN}', FormatError),
        (None, ArchiveError),
    ],
)
def test_configs_that_are_none(text: bytes | None, error: type[TorchZipError]) -> None:
    """No JSON, or JSON of another form."""
    with pytest.raises(error) as caught:
        load(archive({"data/weights/model_weights_config.json": text}))
    assert caught.value.record == "data/weights/model_weights_config.json"


def test_configs_are_bounded() -> None:
    """One that is far larger than the file, or many that are together."""
    bomb = config({"a": payload()}) + b" " * (3 << 20)
    with pytest.raises(LimitError) as caught:
        load(archive({"data/weights/model_weights_config.json": bomb}, method=8))
    assert caught.value.limit == "header_nbytes"
    half = b'{"config": {}}' + b" " * (1 << 20)
    many = {f"models/{i}.json": b"{}" for i in range(4)}
    many |= {f"data/weights/{i}_weights_config.json": half for i in range(4)}
    many |= {f"data/constants/{i}_constants_config.json": half for i in range(4)}
    with pytest.raises(LimitError):
        load(archive(many, method=8))


@pytest.mark.parametrize(
    ("records", "error"),
    [
        ({"archive_format": b"pt3"}, UnsupportedError),
        ({"archive_version": b"1"}, UnsupportedError),
        ({"archive_version": b"x" * 5000}, LimitError),
        ({"models/model.json": None}, UnsupportedError),
        ({".data/version": b"99"}, ArchiveError),
        ({"byteorder": b"middle"}, ArchiveError),
    ],
)
def test_other_archives(records: dict[str, bytes | None], error: type[TorchZipError]) -> None:
    with pytest.raises(error):
        load(archive(records))


def test_archive_without_its_version() -> None:
    """The oldest have none, which means 0."""
    assert load(archive({"archive_version": None})) == {}


def test_a_name_twice() -> None:
    rows, records = {"t": payload()}, {"weight_0": b.DATA}
    data = archive(held("weights", rows, records) | held("constants", rows, records))
    with pytest.raises(FormatError, match="a weight and a constant"):
        load(data)


def test_damage_is_found() -> None:
    data = weights({"t": payload()})
    broken = data.replace(struct.pack("<L", zlib.crc32(b.DATA)), b"\1\2\3\4")
    with pytest.raises(ArchiveError, match="CRC"):
        load(broken)
    with lazy(broken) as ckpt, pytest.raises(ArchiveError, match="CRC"):
        ckpt.verify()


@given(st.sampled_from([old({}), weights({"t": payload()})]), st.data())
def test_changed_archives(data: bytes, draw: st.DataObject) -> None:
    made = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        made[draw.draw(st.integers(0, len(made) - 1))] = draw.draw(st.integers(0, 255))
    for read in (tz.load, tz.lazy_load):
        with contextlib.suppress(TorchZipError, OSError):
            found = read(io.BytesIO(bytes(made)))
            if isinstance(found, tz.Checkpoint):
                for name in found:
                    found[name].numpy()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inside: (
            st.lists(inside, max_size=3)
            | st.dictionaries(st.sampled_from([*_FIELDS, *_META, "as_int", "config"]), inside)
        ),
        max_leaves=10,
    )
)
def test_any_config(value: Any) -> None:
    for rows in ({"config": value}, {"config": {"t": value}}, value):
        records = {**FOUR, "model_weights_config.json": json.dumps(rows).encode()}
        with contextlib.suppress(TorchZipError, OSError):
            load(archive({f"data/weights/{name}": data for name, data in records.items()}))


def test_pickles_inside_are_hostile_too() -> None:
    """A key that climbs stays in the inner file."""
    state = inner(b.tensor(b.persistent("../../version")))
    with pytest.raises(PickleError):
        load(old({"serialized_state_dict.pt": state}))
