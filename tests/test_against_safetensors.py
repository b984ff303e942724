"""Headers of safetensors files, with the package as the judge of what may stand in them."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.builders import safetensors as build
from tests.container.memory import BytesSource
from tests.sampling import thorough
from torchzip.container.safetensors import parse_header
from torchzip.dtypes import DTYPES
from torchzip.limits import Limits

package = pytest.importorskip("safetensors")

#: What the messages say where torchzip is stricter than the package, and why.
_STRICTER = (
    "occurs twice",  # readers disagree about which of the two counts
    "an object with dtype, shape and two data_offsets was expected",  # a list of the three
    "has dtype {",  # {"F32": null}
    "which torch does not have",
    "an even last size was expected",
    "dimensions; torch and numpy stop at",
    "ints from 0 to 2**63 were expected",  # and the package goes to 2**64
)


def by_package(data: bytes) -> dict[str, tuple[str, list[int], int]] | None:
    """Return dtype, shape and number of bytes of each tensor; None if the package refuses."""
    try:
        rows = package.deserialize(data)
    except package.SafetensorError:
        return None
    return {name: (row["dtype"], row["shape"], len(row["data"])) for name, row in rows}


def check_against_the_package(data: bytes) -> str:
    """Compare what both say of a file; return who reads it."""
    theirs = by_package(data)
    refusal = ""
    try:
        entries, _ = parse_header(BytesSource(data), Limits())
    except tz.TorchZipError as error:
        refusal = error.message
    if refusal:
        assert theirs is None or any(reason in refusal for reason in _STRICTER), refusal
        return "nobody" if theirs is None else "the package"
    assert theirs == {
        entry.name: (
            DTYPES[entry.torch_dtype].safetensors, list(entry.shape), entry.end - entry.begin
        )
        for entry in entries
    }  # fmt: skip
    return "both"


_X = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


def _more(value: bytes) -> bytes:
    """Return a header with a field of no meaning."""
    return b'{%s,"more":%s}}' % (_X[:-1], value)


def _named(name: bytes) -> bytes:
    return b'{"%s":%s}' % (name, _X[4:])


def _meta(value: bytes) -> bytes:
    return b'{"__metadata__":%s,%s}' % (value, _X)


def _of(dtype: bytes = b'"F32"', shape: bytes = b"[1]", offsets: bytes = b"[0,4]") -> bytes:
    return b'{"x":{"dtype":%s,"shape":%s,"data_offsets":%s}}' % (dtype, shape, offsets)


_NUMBERS = b"""NaN -NaN Infinity -Infinity 1e99999 -1e99999 1E+400 1e308 1.8e308 -1.8e308 0e99999
    1e-99999 -0 -0.0 0.0 1.0 1e0 01 +1 .5 1. 1e 0x1 1_0 -1 4294967296 18446744073709551615
    18446744073709551616 true True null nan""".split()
_NUMBERS += [
    b"9" * 308,
    b"9" * 309,
    b"-" + b"9" * 309,
    b"9" * 5000,
    b"1" + b"0" * 308,
    b"0.%d" % 7**999,
]
_TEXTS = [
    rb"\ud800", rb"\udc00", rb"\uDBFF", rb"\ud83d\ude00", rb"\ude00\ud83d", rb"\ud83dx",
    rb"\ud83d\n",
    rb"\ud83d\ud83d\ude00", rb"\\ud800", rb"\\\ud800", rb"\u0000", rb"\u00E9", rb"\/", rb"\a",
    rb"\'", rb"\u12", rb"\x41", b"\x01", b"\t", b"\n", b"\x7f", b"\xed\xa0\x80", b"\xc0\x80",
    b"\xff",
    b"\xc2\xa0", b"\xe2\x80\xa8", b"\xf4\x90\x80\x80", b"",
]  # fmt: skip
_BLANKS = [
    b" ", b"\n", b"\t\r\n ", b" " * 4008, b"\x0b", b"\x0c", b"\xc2\xa0", b"\xef\xbb\xbf", b"\0",
    b"\x1e",     b"\xe2\x80\xa8", b"\x85", b"//\n", b"/**/",
]  # fmt: skip
_HEADERS: list[bytes] = [
    *(blank + b"{" + _X + b"}" for blank in _BLANKS),
    *(b"{" + _X + b"}" + blank for blank in _BLANKS),
    *(b"{" + blank + _X.replace(b":", b":" + blank) + b"}" for blank in _BLANKS),
    *(_more(number) for number in _NUMBERS),
    *(_more(b"[%s]" % number) for number in _NUMBERS),
    *(_more(b'{"a":{"b":%s}}' % number) for number in _NUMBERS),
    *(_of(offsets=b"[%s,4]" % number) for number in _NUMBERS),
    *(_of(shape=b"[1,%s]" % number) for number in _NUMBERS),
    *(_of(dtype=number) for number in _NUMBERS),
    *(_meta(number) for number in _NUMBERS),
    *(_meta(b'{"a":%s}' % number) for number in _NUMBERS),
    *(b"{%s,%s:%s}" % (_X, number, number) for number in _NUMBERS),
    *(b"{%s%s}" % (_X, number) for number in _NUMBERS),
    *map(_named, _TEXTS),
    *(_more(b'"%s"' % text) for text in _TEXTS),
    *(_more(b'["%s"]' % text) for text in _TEXTS),
    *(_more(b'{"%s":1}' % text) for text in _TEXTS),
    *(b'{%s,"%s":1}}' % (_X[:-1], text) for text in _TEXTS),
    *(_meta(b'{"a":"%s"}' % text) for text in _TEXTS),
    *(_meta(b'{"%s":"a"}' % text) for text in _TEXTS),
    *(_of(dtype=b'"F32%s"' % text) for text in _TEXTS),
    *(_more(b"[" * count + b"]" * count) for count in (1, 124, 125, 126, 127, 128, 900, 50_000)),
    *(_more(b'{"a":' * count + b"1" + b"}" * count) for count in (1, 124, 125, 126, 127, 900)),
    *(_more(b'[{"a":' * count + b"1" + b"}]" * count) for count in (1, 62, 63, 64, 300)),
    *(_meta(value) for value in (b"{}", b"[]", b'""', b"0", b"false", b'{"a":null}', b'{"a":{}}',
                                 b'{"a":["b"]}', b'{"a":"1","a":"2"}', b'{"a":"b",}', _X[4:])),
    _meta(b"null")[:-1] + b',"__metadata__":null}', _meta(b"null")[:-1] + b',"__metadata__":{}}',
    b'{"__metad\\u0061ta__":null,' + _X + b"}", b'{"__metadata__":null}', b'{"__metadata__":{}}',
    b"{}", b"[]", b"", b" ", b"null", b"{" + _X + b"," + _X + b"}", b"{" + _X + b",}", b"{,}",
    b"{" + _X, b"{" + _X + b"}}", b"{" + _X + b"}{}", b"{'x':1}", b'{"x":null}', b'{"x":1}',
    b'{"x":["F32",[1],[0,4]]}', b'{"x":["F32",[1],[0,4],1]}', b'{"x":["F32",[1]]}', b'{"x":[]}',
    _of(dtype=b'{"F32":null}'), _of(dtype=b'["F32"]'), _of(dtype=b'"F\\u0033\\u0032"'),
    _of(dtype=b'"f32"'), _of(dtype=b'"F32","dtype":"F32"'), _of(dtype=b'"F32","d\\u0074ype":"F32"'),
    _of(offsets=b'{"0":0,"1":4}'), _of(offsets=b'"04"'), _of(offsets=b"[0,4,4]"),
    _of(offsets=b"[0]"),
    _of(offsets=b"[[0,4]]"), _of(offsets=b"null"), _of(offsets=b"[4,0]"), _of(offsets=b"[4,8]"),
    _of(shape=b"[]"), _of(shape=b'["1"]'), _of(shape=b'"1"'), _of(shape=b"{}"), _of(shape=b"null"),
    _of(shape=b"1"), _of(shape=b"[2]"), _of(shape=b"[[1]]"), _of(shape=b"[" + b"1," * 99 + b"1]"),
    *(_of(shape=b"[%s]" % sizes, offsets=b"[0,0]") for sizes in (
        b"0,9223372036854775807", b"0,9223372036854775808", b"1099511627776,1099511627776,0",
        b"0,1099511627776,1099511627776", b"4611686018427387904,4,0", b"4611686018427387904,3,0",
        b"9223372036854775807,2,0", b"9223372036854775807,3,0", b"0,18446744073709551616")),
    _of(shape=b"[4611686018427387905]"), _of(shape=b"[2305843009213693953]"),
    _of(shape=b"[4611686018427387904,4611686018427387904]"),
]  # fmt: skip


@pytest.mark.parametrize("nbytes", [0, 4])
def test_headers_that_the_package_reads(nbytes: int) -> None:
    """Each is read by both or by neither, but for what is said above, and means the same."""
    readers = [check_against_the_package(build(header, bytes(nbytes))) for header in _HEADERS]
    assert len(readers) > 500
    assert {"both", "nobody"} <= {*readers}


_TOKENS = st.sampled_from(
    [*_NUMBERS[:29], *(b'"%s"' % text for text in _TEXTS), *_BLANKS[:4], b"0", b"1", b"4", b"{",
     b"}", b"[", b"]", b",", b":", b'"x"', b'"y"', b'"F32"', b'"dtype"', b'"shape"',
     b'"data_offsets"', b'"__metadata__"', b'"more"']
)  # fmt: skip
_SCALARS = st.one_of(
    st.sampled_from(_NUMBERS),
    st.sampled_from(_TEXTS).map(lambda text: b'"%s"' % text),
    st.sampled_from([b"0", b"1", b"4", b'"a"', b'"F32"', b'"U8"']),
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]"),
        st.dictionaries(st.sampled_from(_TEXTS), inner, max_size=3).map(
            lambda pairs: b"{" + b",".join(b'"%s":%s' % pair for pair in pairs.items()) + b"}"
        ),
    ),
    max_leaves=6,
)


_HOLES = [
    _more, _meta, lambda value: _of(dtype=value), lambda value: _of(shape=value),
    lambda value: _of(offsets=value),
]  # fmt: skip


@thorough
@given(_JSON, st.sampled_from(_HOLES))
def test_any_json_in_a_header(value: bytes, place: Any) -> None:
    """Whatever stands in the metadata, for a field, or in one without a meaning."""
    check_against_the_package(build(place(value), bytes(4)))


@thorough
@given(st.data())
def test_any_tokens_in_a_header(data: st.DataObject) -> None:
    """A header of tokens, or a good one with some of its tokens changed."""
    header = re.findall(rb'"[^"]*"|[0-9]+|.', _more(b'[1,"a"]')[:-1] + b',"__metadata__":null}')
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(header)))
        header[at : at + data.draw(st.integers(0, 2))] = data.draw(st.lists(_TOKENS, max_size=2))
    check_against_the_package(build(b"".join(header), bytes(4)))


@pytest.mark.parametrize(
    "blanks", [b" ", b"\n", b"\t\r\n ", b" " * 497, b" " * 504, b"\n" * 100_000]
)
def test_blanks_before_the_header(blanks: bytes) -> None:
    """However many they are, the file is known as what it is."""
    data = build(blanks + b"{" + _X + b"}", bytes(4))
    assert check_against_the_package(data) == "both"
    assert tz.load(io.BytesIO(data))["x"].tolist() == [0]
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert (checkpoint.format, list(checkpoint)) == ("safetensors", ["x"])


def test_blanks_and_no_header() -> None:
    """That is a header without an object; and text that begins with blanks is not such a file."""
    for data in (build(b" " * 600), build(b" ")):
        with pytest.raises(tz.FormatError, match="the header"):
            tz.load(io.BytesIO(data))
    for data in (b" " * 600, bytes(8), b"\n" * 9):
        with pytest.raises(tz.FormatError, match="not a checkpoint"):
            tz.load(io.BytesIO(data))


def test_metadata_that_is_null() -> None:
    """It is none, as in a file without it."""
    with tz.lazy_load(io.BytesIO(build(_meta(b"null"), bytes(4)))) as checkpoint:
        assert checkpoint.metadata == {}
        assert list(checkpoint) == ["x"]
