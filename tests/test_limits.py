"""Each bound of `Limits`, lowered: a small file that needs more raises LimitError by its name."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests import floods
from torchzip.errors import LimitError

_TENSOR = b.tensor()


def _zip(*parts: bytes) -> bytes:
    return b.checkpoint(b.stream(*parts))


def _many_calls() -> bytes:
    """Return 100 sets of one list of 100 items."""
    items = b"(" + b"K\x01" * 100 + b"l\x85q\x010" + b.name("builtins", "set") + b"q\x020"
    return _zip(items, b"(", b"h\x02h\x01R" * 100, b"l")


def _deflated() -> bytes:
    """Return a pickle of 10 MB that takes half a megabyte."""
    noise = np.random.default_rng(0).bytes(1 << 19)
    return zipped_again(_zip(b"B" + struct.pack("<I", len(noise)) + noise, b.text("x" * 9_500_000)))


def zipped_again(data: bytes, level: int = 6) -> bytes:
    """Return an archive as somebody makes it who zips a folder."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return file.getvalue()


#: field -> (a bound that is too low, the file)
_ROWS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "pickle_nbytes": (50, lambda: _zip(_TENSOR)),
    "nesting": (3, lambda: _zip(_TENSOR, b"\x85" * 10)),
    "containers": (10, lambda: _zip(b"(", b"]" * 100, b"l")),
    "memo": (10, lambda: _zip(b"(", b"N\x94" * 100, b"l")),
    "argument_items": (100, _many_calls),
    "int_nbytes": (8, lambda: _zip(b.integer(1 << 70))),
    "entries": (2, lambda: _zip(_TENSOR)),
    "text_nbytes": (1, lambda: _zip(_TENSOR)),
    "deflate_ratio": (2, _deflated),
    "shared_names": (2, lambda: _zip(_TENSOR, b"\x85", b"2\x86" * 4)),
    "names_nbytes": (
        1000,
        lambda: _zip(b.dict_of({"x" * 200: b"(" + _TENSOR + b"2" * 50 + b"l"})),
    ),
    "header_nbytes": (10, lambda: b.safetensors(b'{"__metadata__":{}}')),
    "code_nbytes": (10, lambda: (b.GOLDEN / "script.pt").read_bytes()),
}
#: What counts for the flat names only, which an eager load does not make.
_OF_NAMES = {"nesting", "shared_names", "names_nbytes"}
_NAMES = sorted(_ROWS)


def _read_lazily(data: bytes, limits: tz.Limits | None) -> None:
    with tz.lazy_load(io.BytesIO(data), limits=limits) as checkpoint:
        list(checkpoint)
        checkpoint.verify()


def _read(data: bytes, limits: tz.Limits | None) -> None:
    tz.load(io.BytesIO(data), limits=limits)


def test_each_bound_has_a_row() -> None:
    """A new bound needs one."""
    assert [field.name for field in fields(tz.Limits)] == list(_ROWS)


@pytest.mark.parametrize("name", _NAMES)
def test_lowered_for_a_lazy_load(name: str) -> None:
    """The error has the bound's name and numbers; without it, and with a higher one, it is read."""
    bound, make = _ROWS[name]
    with pytest.raises(tz.LimitError) as caught:
        _read_lazily(make(), tz.Limits(**{name: bound}))
    assert caught.value.limit == name
    assert caught.value.actual > caught.value.bound >= bound
    assert caught.value.path == "<BytesIO>"
    assert f"pass limits=Limits({name}=...)" in str(caught.value)
    _read_lazily(make(), None)
    _read_lazily(make(), tz.Limits(**{name: 1 << 40}))


@pytest.mark.parametrize("name", sorted(_ROWS.keys() - _OF_NAMES))
def test_lowered_for_a_load(name: str) -> None:
    """An eager load has the same bounds."""
    bound, make = _ROWS[name]
    with pytest.raises(tz.LimitError) as caught:
        tz.load(io.BytesIO(make()), limits=tz.Limits(**{name: bound}))
    assert caught.value.limit == name
    tz.load(io.BytesIO(make()))


@pytest.mark.parametrize("name", _NAMES)
def test_lowered_for_a_conversion(tmp_path: Path, name: str) -> None:
    """The source of a conversion is read within them, and nothing is written."""
    bound, make = _ROWS[name]
    source = tmp_path / "source"
    source.write_bytes(make())
    with pytest.raises(tz.LimitError) as caught:
        tz.convert(source, tmp_path / "out.pt", limits=tz.Limits(**{name: bound}))
    assert caught.value.limit == name
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_raised() -> None:
    """A bound can be raised past its default."""
    value = (1 << 8 * 3000) - 1
    data = _zip(b"\x8b" + struct.pack("<i", 3001) + b"\xff" * 3000 + b"\0")
    with pytest.raises(tz.LimitError):
        tz.load(io.BytesIO(data))
    assert tz.load(io.BytesIO(data), limits=tz.Limits(int_nbytes=4000)) == value


def test_an_int_as_text_is_bounded_by_the_same() -> None:
    """Digits count as the bytes that they hold; more than Python reads are said to be too many."""
    digits = b"I" + b"9" * 4300 + b"\n"
    assert tz.load(io.BytesIO(_zip(digits))) == 10**4300 - 1
    with pytest.raises(tz.LimitError) as caught:
        tz.load(io.BytesIO(_zip(digits)), limits=tz.Limits(int_nbytes=1000))
    assert (caught.value.limit, caught.value.actual) == ("int_nbytes", 1784)
    more = _zip(b"I" + b"9" * 5000 + b"\n")
    with pytest.raises(tz.UnsupportedError, match="5,000 digits"):
        tz.load(io.BytesIO(more), limits=tz.Limits(int_nbytes=4000))


@pytest.mark.parametrize(
    ("bound", "error"), [(-1, ValueError), ("5", TypeError), (1.5, TypeError), (True, TypeError)]
)
def test_a_bound_is_a_number(bound: object, error: type[Exception]) -> None:
    """A mistake of the caller shows where it is made."""
    with pytest.raises(error, match="entries must be"):
        tz.Limits(entries=bound)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limits must be"):
        tz.load("x.pt", limits=bound)  # type: ignore[arg-type]


#: Opcodes that make what `containers` counts, and what `memo` counts.
_COUNTED = {
    "containers": [
        "[]", "{}", "set()", "frozenset()", "(", "[] by LIST", "{} by DICT", "[None]", "(None,)",
        "a tuple around", "a pair", "(None,) by TUPLE", "a new object", "a call", "a call around",
        "an old object", "an OrderedDict", "a Size", "a set by a call", "a device", "a complex",
        "an object with keywords", "an instance", "three in a tuple",
    ],
    "memo": ["MEMOIZE", "numbers", "numbers of protocol 0"],
}  # fmt: skip
_MORE = {
    "an object with keywords": (b.name("a", "B") + b"q\0", b"h\0)}\x92"),
    "an instance": (b"", b"(ia\nB\n"),
    "three in a tuple": (b"", b"NNN\x87"),
}


@pytest.mark.parametrize(
    ("bound", "name"), [(bound, name) for bound in _COUNTED for name in _COUNTED[bound]]
)
def test_each_opcode_counts(bound: str, name: str) -> None:
    """Whatever makes a container or numbers a value: two hundred of it are past a bound of five."""
    if name == "numbers":
        parts = [b"N", *(b"r" + struct.pack("<I", number) for number in range(200))]
    elif name == "numbers of protocol 0":
        parts = [b"N", *(b"p%d\n" % number for number in range(200))]
    else:
        before, unit = (floods.UNITS | _MORE)[name]
        parts = [b"(", before, unit * 200, b"t"]
    data = b.checkpoint(b.stream(*parts), {})
    loose = {"containers": 10_000, "memo": 10_000}
    with pytest.raises(LimitError) as caught:
        tz.load(io.BytesIO(data), limits=tz.Limits(**(loose | {bound: 5})))
    assert caught.value.limit == bound
    with contextlib.suppress(tz.FormatError):  # marks that are open
        tz.load(io.BytesIO(data), limits=tz.Limits(**loose))


# -- deflated records: bombs, and what only looks like one -----------------------------------------


def _bombs(*sizes: int, kind: bytes = b"data/") -> bytes:
    """Return an archive of deflated records that come to these sizes, each as small as it can be.

    Their bytes are none that anybody could inflate: they are not looked at.
    """
    keys = [str(index) for index in range(len(sizes))]
    tensors = [
        b.tensor(b.persistent(key, numel=size // 4), size=(1,), stride=(1,))
        for key, size in zip(keys, sizes, strict=True)
    ]
    pickle = b.stream(b.list_of(*tensors)) if kind == b"data/" else b.stream(b"N")
    members = b.members_of(pickle, dict.fromkeys(keys, b"") if kind == b"data/" else {})
    left = list(sizes)
    for index, member in enumerate(members):
        if member.name.startswith(b"archive/" + kind):
            nbytes = left.pop(0)
            stored = bytes(-(-nbytes // 1032))
            members[index] = replace(member, method=8, nbytes=nbytes, stored=stored, crc=1)
    return b.build_zip(members)


@pytest.mark.parametrize(
    "data",
    [
        _bombs(1 << 29), _bombs(80 << 20), _bombs(*[1 << 24] * 5), _bombs(*[1 << 20] * 80),
        _bombs(1 << 30, kind=b"data.pkl"), _bombs(9 << 20, kind=b"data.pkl"),
    ],
    ids=["512 MB", "80 MB", "5 of 16 MB", "80 of 1 MB", "a pickle of 1 GB", "a pickle of 9 MB"],
)  # fmt: skip
def test_bombs(data: bytes) -> None:
    """What comes to a thousand times the file is refused; the error says which bound lifts it."""
    for read in (_read, _read_lazily):
        with pytest.raises(tz.LimitError) as caught:
            read(data, None)
        assert caught.value.limit == "deflate_ratio"
        assert "pass limits=Limits(deflate_ratio=...)" in str(caught.value)
        with pytest.raises(tz.FormatError, match=r"damaged|cut short|follow"):  # it is looked at
            read(data, tz.Limits(deflate_ratio=caught.value.actual))


@pytest.mark.parametrize("stored", [b"", b"x" * 100])
def test_a_deflated_record_cannot_claim_what_deflate_cannot_do(stored: bytes) -> None:
    """That is no bomb but a lie, whatever the limit."""
    members = b.members_of(b.stream(b.text("x")), {})
    most = 1032 * len(stored)
    for nbytes, message in ((most, "damaged|cut short"), (most + 1, "1,032 of one at most")):
        members[0] = replace(members[0], method=8, stored=stored, nbytes=nbytes)
        with pytest.raises(tz.FormatError, match=message):
            _read(b.build_zip(members), tz.Limits(deflate_ratio=1 << 40))


def _with_moments(dtype: str, count: int) -> dict[str, Any]:
    """Return weights, and the state of an optimizer that has not made a step."""
    weights = np.random.default_rng(0).standard_normal(count).astype(dtype)
    moments = {key: np.zeros(count, "float32") for key in ("exp_avg", "exp_avg_sq", "master")}
    return {"model": {"w": weights}, "optimizer": {"state": {0: moments | {"step": 0}}}}


@pytest.mark.parametrize(
    "tree",
    [
        {"w": np.random.default_rng(0).standard_normal(100_000)},
        _with_moments("float32", 1_500_000),
        _with_moments("float16", 1_500_000),
        {"mask": np.zeros((6000, 2500), "float32")},
        {"losses": [0.0] * 800_000, "steps": list(range(100_000))},
        {f"block.{index}.weight": np.full(4, index, "float32") for index in range(3000)},
    ],
    ids="weights moments half mask losses many".split(),
)
@pytest.mark.parametrize("level", [1, 9])
def test_checkpoints_that_were_zipped_again(tree: Any, level: int) -> None:
    """What people zip is read: it is large for its file here and there, and not altogether."""
    file = io.BytesIO()
    tz.save(tree, file)
    data = zipped_again(file.getvalue(), level)
    found = tz.load(io.BytesIO(data))
    _read_lazily(data, None)
    assert str(found) == str(tz.load(io.BytesIO(file.getvalue())))
