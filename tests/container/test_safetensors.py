"""The safetensors header: the bytes of the package when written, every lie refused when read."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import safetensors as build
from tests.container.memory import BytesSource
from tests.refusals import Refusal, each_refusal
from tests.test_cost import peak_below
from torchzip.container.safetensors import build_header, parse_header
from torchzip.container.tensor_entry import TensorEntry
from torchzip.dtypes import DTYPES, SAFETENSORS
from torchzip.errors import ArchiveError, LimitError, TorchZipError, UnsupportedError
from torchzip.limits import Limits
from torchzip.tensors.numpy_dtypes import numpy_dtype

package = pytest.importorskip("safetensors")
from safetensors.numpy import save as save_numpy  # noqa: E402

#: The dtypes that the package's numpy module writes.
_NUMPY_DTYPES = {
    name: numpy_dtype(name)
    for name in (
        "bool uint8 int8 int16 uint16 float16 int32 uint32 float32 complex64"
        " int64 uint64 float64 bfloat16 float8_e4m3fn float8_e5m2"
        " float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz"
    ).split()
}


def parse(data: bytes, limits: Limits | None = None) -> tuple[list[TensorEntry], dict[str, str]]:
    return parse_header(BytesSource(data), limits or Limits())


def _supported() -> list[str]:
    """Return those that this release of the package takes."""
    found = []
    for name, dtype in _NUMPY_DTYPES.items():
        try:
            save_numpy({"x": np.zeros(2, dtype)})
        except Exception:
            continue
        found.append(name)
    return found


_SUPPORTED = _supported()

_NAMES = st.text(st.characters(codec="utf-8"), max_size=12).filter(
    lambda name: name != "__metadata__"
)
_TENSORS = st.dictionaries(
    _NAMES,
    st.tuples(st.sampled_from(_SUPPORTED), st.lists(st.integers(0, 4), max_size=4).map(tuple)),
    max_size=12,
)
_METADATA = st.none() | st.dictionaries(_NAMES, _NAMES, min_size=1, max_size=1)


def test_dtypes_of_the_package() -> None:
    """The package takes the plain dtypes at least, or the comparison would be hollow."""
    assert {"bool", "uint8", "int64", "float16", "float32", "float64", "bfloat16"} <= set(
        _SUPPORTED
    )


@given(_TENSORS, _METADATA)
def test_bytes_of_the_package(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    """Header and order of the data are those of the package, for any names and dtypes."""
    arrays = {
        name: np.full(shape, index, _NUMPY_DTYPES[dtype])
        for index, (name, (dtype, shape)) in enumerate(tensors.items())
    }
    head, order = build_header(((n, d, s) for n, (d, s) in tensors.items()), metadata)
    ours = head + b"".join(arrays[name].tobytes() for name in order)
    assert ours == save_numpy(arrays, metadata)
    entries, texts = parse(ours)
    assert texts == (metadata or {})
    assert [entry.name for entry in entries if entry.begin != entry.end] == [
        name for name in order if arrays[name].size
    ]
    assert {e.name: (e.torch_dtype, e.shape) for e in entries} == tensors
    for entry in entries:
        assert ours[entry.begin : entry.end] == arrays[entry.name].tobytes()


@pytest.mark.parametrize(
    "name", ['"', "\\", "\n", "\0", "\x1f", "\x7f", "é", "😀", "\u2028", "/", "a.b", "", "</x>"]
)
def test_escapes_of_the_package(name: str) -> None:
    """Each character that JSON can write in two ways is written as the package does."""
    arrays = {name: np.zeros(1, np.float32)}
    metadata = {name + "k": name}
    head, _ = build_header([(name, "float32", (1,))], metadata)
    assert head + bytes(4) == save_numpy(arrays, metadata)


def test_metadata_is_sorted() -> None:
    texts = dict.fromkeys("zabq", "v")
    head, _ = build_header([], texts)
    assert head[8:].rstrip() == b'{"__metadata__":{"a":"v","b":"v","q":"v","z":"v"}}'
    assert head == build_header([], dict(reversed(texts.items())))[0]
    assert parse(head)[1] == texts


def test_header_is_padded() -> None:
    """The data starts on a multiple of 8 bytes, whatever the names."""
    for length in range(20):
        head, _ = build_header([("n" * length, "float64", (1,))])
        assert len(head) % 8 == 0
        assert int.from_bytes(head[:8], "little") == len(head) - 8


@pytest.mark.parametrize("code", SAFETENSORS)
def test_every_code_comes_back(code: str) -> None:
    row = SAFETENSORS[code]
    head, _ = build_header([("x", row.name, (3, 2))])
    data = head + bytes(6 * row.itemsize)
    (entry,), _ = parse(data)
    assert (entry.torch_dtype, entry.shape) == (row.name, (3, 2))
    assert (entry.begin, entry.end) == (len(head), len(data))
    shape = json.loads(head[8:])["x"]["shape"]
    assert shape == ([3, 4] if code == "F4" else [3, 2])


@pytest.mark.parametrize("dtype", [name for name, row in DTYPES.items() if not row.safetensors])
def test_dtypes_without_a_code(dtype: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"w: .*torch\.{dtype}"):
        build_header([("w", dtype, (1,))])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("__metadata__", "float32", (1,))], "__metadata__"),
        ([("\ud800", "float32", (1,))], "not valid Unicode"),
        ([("x", "float4_e2m1fn_x2", ())], "float4"),
    ],
)
def test_names_that_cannot_be_written(tensors: Any, message: str) -> None:
    """A name that would mean something else, or is no text, is refused."""
    with pytest.raises(UnsupportedError, match=message):
        build_header(tensors)


# -- what is refused -----------------------------------------------------------------------------


def _entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def _file(header: Any, nbytes: int = 4) -> bytes:
    return build(json.dumps(header).encode(), bytes(nbytes))


_REFUSED: list[Refusal] = [
    ("empty", b"", "8 bytes or more"),
    ("seven bytes", b"\x02\0\0\0\0\0\0", "8 bytes or more"),
    ("no header", struct.pack("<Q", 2), "the header takes 2 bytes"),
    ("a header of 2**64", b"\xff" * 8 + b"{}", "header_nbytes", LimitError),
    ("a header past the limit", build(b"{}", nbytes=100_000_001), "header_nbytes", LimitError),
    ("a header past the end", build(b"{}", nbytes=3), "the header takes 3 bytes"),
    ("an empty header", build(b""), "not valid JSON"),
    ("not valid JSON", build(b"{x}"), "not valid JSON"),
    ("JSON cut short", build(b'{"x":'), "not valid JSON"),
    ("two JSON values", build(b"{}{}"), "not valid JSON"),
    ("not UTF-8", build(b'{"\xff":1}'), "not valid JSON"),
    ("a list", build(b"[]"), "an object was expected"),
    ("a number", build(b"12"), "an object was expected"),
    ("deep JSON", build(b"[" * 100_000), "not valid JSON"),
    ("a huge number", build(b'{"x":' + b"9" * 5000 + b"}"), "not valid JSON"),
    ("a name twice", build(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
     b'"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab"), "occurs twice"),
    ("a name twice, once with an escape",
     build(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
     b'"\\u0078":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab"),
     "occurs twice"),
    ("a dtype twice", build(b'{"x":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
     b"a"), "occurs twice"),
    ("metadata that is a list", _file({"__metadata__": []}, 0), "__metadata__"),
    ("metadata of numbers", _file({"__metadata__": {"a": 1}}, 0), "__metadata__"),
    ("an entry that is a list", _file({"x": []}), "an object with dtype"),
    ("an entry that is null", _file({"x": None}), "an object with dtype"),
    ("no dtype", _file({"x": {"shape": [1], "data_offsets": [0, 4]}}), "an object with dtype"),
    ("no shape", _file({"x": {"dtype": "F32", "data_offsets": [0, 4]}}), "an object with dtype"),
    ("no offsets", _file({"x": {"dtype": "F32", "shape": [1]}}), "an object with dtype"),
    ("one offset", _file({"x": _entry(offsets=[0])}), "an object with dtype"),
    ("three offsets", _file({"x": _entry(offsets=[0, 2, 4])}), "an object with dtype"),
    ("offsets that are text", _file({"x": _entry(offsets="04")}), "ints from 0"),
    ("a negative offset", _file({"x": _entry(offsets=[-4, 0])}), "ints from 0"),
    ("a float offset", _file({"x": _entry(offsets=[0.0, 4.0])}), "ints from 0"),
    ("a bool in the shape", _file({"x": _entry(shape=[True])}), "ints from 0"),
    ("a negative size", _file({"x": _entry(shape=[-1])}), "ints from 0"),
    ("a shape that is a number", _file({"x": _entry(shape=1)}), "a list"),
    ("a shape that is text", _file({"x": _entry(shape="1")}), "a list"),
    ("an unknown dtype", _file({"x": _entry("F128")}), "F128", UnsupportedError),
    ("a dtype in lower case", _file({"x": _entry("f32")}), "f32", UnsupportedError),
    ("a dtype that is a list", _file({"x": _entry([])}), "dtype", UnsupportedError),
    ("a dtype that is a number", _file({"x": _entry(1)}), "dtype", UnsupportedError),
    ("an odd number of halves",
     _file({"x": _entry("F4", [3])}), "even last size", UnsupportedError),
    ("a scalar of halves", _file({"x": _entry("F4", [])}), "even last size", UnsupportedError),
    ("a size that lies", _file({"x": _entry(shape=[2])}), "takes 8 bytes"),
    ("offsets in reverse", _file({"x": _entry(offsets=[4, 0])}), "takes 4 bytes"),
    ("a shape that overflows", _file({"x": _entry(shape=[1 << 62, 4])}), "takes"),
    ("a gap at the start", _file({"x": _entry(offsets=[4, 8])}, 8), "begins at"),
    ("a gap", _file({"x": _entry(), "y": _entry(offsets=[5, 9])}, 9), "the data of 'y' begins at"),
    ("an overlap", _file({"x": _entry(), "y": _entry(offsets=[3, 7])}, 7),
     "the data of 'y' begins at"),
    ("two tensors on the same bytes",
     _file({"x": _entry(), "y": _entry()}), "the data of 'y' begins at"),
    ("bytes behind the data", _file({"x": _entry()}, 5), "the file has"),
    ("bytes without a tensor", _file({}, 1), "the file has"),
    ("data that is missing", _file({"x": _entry()}, 3), "the file has"),
]  # fmt: skip


@each_refusal(_REFUSED, ArchiveError)
def test_refused(given: bytes, error: type[TorchZipError], message: str) -> None:
    """Each lie in a header has its error, which names the file."""
    with pytest.raises(error) as caught:
        parse(given)
    assert message in str(caught.value)
    assert caught.value.path == "made.pt"


def test_the_package_refuses_them_too() -> None:
    """What is refused as broken is not something that the package would read."""
    for name, data, *rest in _REFUSED:
        if len(rest) == 1 and "twice" not in name:
            with pytest.raises(package.SafetensorError):
                package.deserialize(data)


def test_every_truncation_is_refused() -> None:
    data = save_numpy({"a": np.arange(3.0), "b": np.zeros((2, 2), np.int8)}, {"k": "v"})
    for cut in range(len(data)):
        with pytest.raises(TorchZipError):
            parse(data[:cut])


@given(st.data())
def test_changed_headers(data: st.DataObject) -> None:
    """Any change of a header gives a table that fits the file, or a TorchZipError."""
    made = bytearray(save_numpy({"a": np.arange(3.0), "b": np.zeros((2, 2), np.int8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        made[data.draw(st.integers(0, len(made) - 29))] = data.draw(st.integers(0, 255))
    try:
        entries, _ = parse(bytes(made))
    except TorchZipError:
        return
    assert all(8 <= entry.begin <= entry.end <= len(made) for entry in entries)


def test_unknown_fields_are_passed_over() -> None:
    (entry,), _ = parse(_file({"x": _entry(comment="x")}))
    assert entry.name == "x"


def test_declared_header_size_costs_nothing() -> None:
    """Nothing is allocated from the length before the file is seen to be so long."""
    with peak_below(100_000), pytest.raises(TorchZipError):
        parse(build(b"{}", nbytes=99_999_999))


def test_only_the_header_is_read() -> None:
    data = save_numpy({"a": np.zeros(100_000)})
    source = BytesSource(data)
    parse_header(source, Limits())
    assert sum(nbytes for _, nbytes in source.reads) == len(data) - 800_000
