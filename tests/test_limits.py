"""Each bound of `Limits`, lowered: a small file that needs more raises LimitError by its name."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests import floods
from tests.cli.running import usage
from tests.hostile.parts import zipped as _zip
from tests.saved import saved, zipped_again
from torchzip.cli.main import build_parser, main
from torchzip.errors import LimitError

_TENSOR = b.tensor()


class Sparse(NamedTuple):
    """A file that is zeros but for some parts, and takes no room for them."""

    parts: dict[int, bytes]
    size: int

    def write(self, path: Path) -> None:
        """Write it, where the disk can hold such files."""
        with path.open("wb") as file:
            file.truncate(self.size)
            for offset, data in self.parts.items():
                file.seek(offset)
                file.write(data)


def _many_calls() -> bytes:
    """Return 100 sets of one list of 100 items."""
    items = b"(" + b"K\x01" * 100 + b"l\x85q\x010" + b.name("builtins", "set") + b"q\x020"
    return _zip(items, b"(", b"h\x02h\x01R" * 100, b"l")


def _deflated() -> bytes:
    """Return a pickle of 10 MB that takes half a megabyte."""
    noise = np.random.default_rng(0).bytes(1 << 19)
    return zipped_again(
        _zip(b"B" + struct.pack("<I", len(noise)) + noise, b.text("x" * 9_500_000)),
        zipfile.ZIP_DEFLATED,
    )


#: field -> (a bound that is too low, the file)
_ROWS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "pickle_nbytes": (50, lambda: _zip(_TENSOR)),
    "nesting": (3, lambda: _zip(_TENSOR, b"\x85" * 10)),
    "containers": (10, lambda: _zip(b"(", b"]" * 100, b"l")),
    "memo": (10, lambda: _zip(b"(", b"N\x94" * 100, b"l")),
    "argument_items": (100, _many_calls),
    "int_nbytes": (8, lambda: _zip(b.integer(1 << 70))),
    "key_values": (100, lambda: _zip(b"}((" + b"N" * 9_000 + b"tq\x01N" + b"h\x01N" * 40 + b"u")),
    "key_nesting": (3, lambda: _zip(b"}N" + b"\x85" * 5 + b"Ns")),
    "entries": (2, lambda: _zip(_TENSOR)),
    "text_nbytes": (1, lambda: _zip(_TENSOR)),
    "deflate_ratio": (2, _deflated),
    "shared_names": (2, lambda: _zip(_TENSOR, b"\x85", b"2\x86" * 4)),
    "names_nbytes": (1000, lambda: _zip(b.dict_of({"x" * 200: b"(" + _TENSOR + b"2" * 50 + b"l"}))),
    "header_nbytes": (10, lambda: b.safetensors(b'{"__metadata__":{}}')),
    "code_nbytes": (10, lambda: (b.GOLDEN / "script.pt").read_bytes()),
}  # fmt: skip
#: What counts for the flat names only, which an eager load does not make.
_OF_NAMES = {"nesting", "shared_names", "names_nbytes"}


def _read_lazily(data: bytes, limits: tz.Limits | None) -> None:
    with tz.lazy_load(io.BytesIO(data), limits=limits) as checkpoint:
        list(checkpoint)
        checkpoint.verify()


def _read(data: bytes, limits: tz.Limits | None) -> None:
    tz.load(io.BytesIO(data), limits=limits)


def test_each_bound_has_a_row() -> None:
    """A new bound needs one; of the ratio, `tests/hostile/deflated.py` tries the default."""
    assert [field.name for field in fields(tz.Limits)] == list(_ROWS)
    assert [*_DEFAULTS] == [name for name in _ROWS if name != "deflate_ratio"]


@pytest.mark.parametrize("name", _ROWS)
def test_lowered(tmp_path: Path, name: str) -> None:
    """The error has the bound's name and numbers; without it, and with a higher one, it is read.

    An eager load has the same bounds; so has the source of a conversion, which writes nothing.
    """
    bound, make = _ROWS[name]
    data, lowered = make(), tz.Limits(**{name: bound})
    with pytest.raises(tz.LimitError) as caught:
        _read_lazily(data, lowered)
    assert caught.value.limit == name
    assert caught.value.actual > caught.value.bound >= bound
    assert caught.value.path == "<BytesIO>"
    assert f"pass limits=tz.Limits({name}=...)" in str(caught.value)
    _read_lazily(data, None)
    _read_lazily(data, tz.Limits(**{name: 1 << 40}))
    if name not in _OF_NAMES:
        with pytest.raises(tz.LimitError, match=f"{name} would be"):
            _read(data, lowered)
        _read(data, None)
    source = tmp_path / "source"
    source.write_bytes(data)
    with pytest.raises(tz.LimitError, match=f"{name} would be"):
        tz.convert(source, tmp_path / "out.pt", limits=lowered)
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
    "containers": ["[]", "{}", "set()", "frozenset()", "(", "[] by LIST",
     "{} by DICT", "[None]", "(None,)", "a tuple around", "a pair", "(None,) by TUPLE",
     "a new object", "a call", "a call around", "an old object", "an OrderedDict",
     "a Size", "a set by a call", "a complex", "an object with keywords", "an instance"],
    "memo": ["MEMOIZE"],
}  # fmt: skip
_MORE = {
    "an object with keywords": (b.name("a", "B") + b"q\0", b"h\0)}\x92"),
    "an instance": (b"", b"(ia\nB\n"),
}


@pytest.mark.parametrize(
    ("bound", "name"), [(bound, name) for bound in _COUNTED for name in _COUNTED[bound]]
)
def test_each_opcode_counts(bound: str, name: str) -> None:
    """Whatever makes a container or numbers a value: two hundred of it are past a bound of five.

    But for what has four bytes for each: the file pays for that.
    """
    before, unit = (floods.UNITS | _MORE)[name]
    data = b.checkpoint(b.stream(b"(", before, unit * 200, b"t"), {})
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
        assert "pass limits=tz.Limits(deflate_ratio=...)" in str(caught.value)
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


_ZIPPED: dict[str, Callable[[], Any]] = {
    "weights": lambda: {"w": np.random.default_rng(0).standard_normal(100_000)},
    "moments": lambda: _with_moments("float32", 1_500_000),
    "half": lambda: _with_moments("float16", 1_500_000),
    "mask": lambda: {"mask": np.zeros((6000, 2500), "float32")},
    "losses": lambda: {"losses": [0.0] * 800_000, "steps": list(range(100_000))},
    "many": lambda: {f"block.{i}.weight": np.full(4, i, "float32") for i in range(3000)},
}


@pytest.mark.parametrize("name", _ZIPPED)
@pytest.mark.parametrize("level", [pytest.param(1, marks=pytest.mark.long), 9])
def test_checkpoints_that_were_zipped_again(name: str, level: int) -> None:
    """What people zip is read: it is large for its file here and there, and not altogether."""
    tree = _ZIPPED[name]()
    data = zipped_again(saved(tree), zipfile.ZIP_DEFLATED, level=level)
    found = tz.load(io.BytesIO(data))
    _read_lazily(data, None)
    assert str(found) == str(tree)


# -- the defaults --------------------------------------------------------------------------------


def _many_entries() -> Sparse:
    """Return a directory of ten million entries and one, none of which is looked at."""
    count = 10_000_001
    nbytes = 46 * count
    end_64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, nbytes, 30)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 30 + nbytes, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return Sparse({0: b"PK\3\4", 30 + nbytes: end_64 + locator + end}, 30 + nbytes + 98)


def _long_pickle() -> bytes:
    lie = (1 << 30) + 1
    members = b.members_of(b.stream(_TENSOR), {"0": bytes(16)})
    return b.build_zip(
        [
            replace(each, method=8, nbytes=lie, local_nbytes=lie, stored=bytes(1 << 20))
            if each.name.endswith(b".pkl")
            else each
            for each in members
        ]
    )


def _long_code() -> bytes:
    """Return a script whose every file of code is 33 MB of empty lines, deflated."""
    written = io.BytesIO()
    with zipfile.ZipFile(b.GOLDEN / "script.pt") as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            is_code = name.endswith(".py")
            data = old.read(name) + b"\n" * (33 << 20) * is_code
            method = zipfile.ZIP_DEFLATED if is_code else zipfile.ZIP_STORED
            new.writestr(name, data, method, compresslevel=1)
    return written.getvalue()


def _state_dict(count: int) -> dict[str, Any]:
    zero = np.zeros(1, np.float32)
    return {f"model.layers.{i}.self_attn.q_proj.weight": zero.copy() for i in range(count)}


def _named(count: int) -> bytes:
    """Return safetensors with so many names."""
    rows = (f'"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i, name in
            enumerate(_state_dict(count)))  # fmt: skip
    return b.safetensors(f"{{{','.join(rows)}}}".encode(), bytes(count))


def _shared_lists(names: int, length: int, before: str = "") -> Any:
    listed = [np.zeros(1) for _ in range(length)]
    return {f"{before}{index}": listed for index in range(names)}


_BOARD = tuple(range(361))
#: field -> (a small file that it stops, one as programs write them that needs much of it)
_DEFAULTS: dict[str, tuple[Callable[[], bytes | Sparse], Callable[[], bytes]]] = {
    "pickle_nbytes": (_long_pickle, lambda: saved(_state_dict(3000))),
    "nesting": (lambda: _zip(_TENSOR, b"\x85" * 1000), lambda: _zip(_TENSOR, b"\x85" * 800)),
    "containers": (lambda: _zip(b"(", b"]" * 400_000, b"l"),
     lambda: saved([[index] for index in range(100_000)])),
    "memo": (lambda: _zip(b"(", b"N\x94" * 300_000, b"l"),
     lambda: saved([str(index) for index in range(200_000)])),
    "argument_items": (lambda: _zip(b"(](", b"K\1" * 10_000, b"e\x85q\0", b.name("builtins", "set"),
     b"q\1", b"h\1h\0R" * 1000, b"l"), lambda: saved(set(range(300_000)))),
    "int_nbytes": (lambda: _zip(b"\x8b", struct.pack("<i", 1786), b"\1" * 1786),
     lambda: saved({"primes": [(1 << 8 * 255) - 1] * 10})),
    "key_values": (lambda: _zip(b"](", b"(", b"N" * 10_000, b"tq\0", b"}h\0Ns" * 10_000, b"e"),
     lambda: saved([{(_BOARD, action): 0.0 for action in range(362)} for _ in range(10)])),
    "key_nesting": (lambda: _zip(b"})", b"\x85" * 101, b"Ns"),
     lambda: _zip(b"})", b"\x85" * 90, b"Ns")),
    "entries": (_many_entries, lambda: saved([np.zeros(1) for _ in range(8000)])),
    "text_nbytes": (lambda: b.build_zip(b.members_of(
     b.stream(_TENSOR), {"0": bytes(16)}, version=b"3" * 5000)), lambda: saved({})),
    "shared_names": (lambda: _zip(_TENSOR, b"\x85", b"2\x86" * 30),
     lambda: saved(_shared_lists(400, 400))),
    "names_nbytes": (lambda: _zip(b.dict_of({"x" * 40_000: b"(" + _TENSOR + b"2" * 2000 + b"l"})),
     lambda: saved(_shared_lists(200, 400, "text_model.encoder.layers.with_a_long_name." * 2))),
    "header_nbytes": (lambda: struct.pack("<Q", 100_000_001)
     + b"{" + b" " * 90, lambda: _named(20_000)),
    "code_nbytes": (_long_code, lambda: (b.GOLDEN / "script.pt").read_bytes()),
}  # fmt: skip


@pytest.mark.parametrize("name", _DEFAULTS)
def test_a_default_stops_a_hostile_file(path: Path, name: str) -> None:
    """A file that takes little on a disk and much to be read is an error by the bound's name."""
    made = _DEFAULTS[name][0]()
    if isinstance(made, Sparse):
        made.write(path)
    else:
        path.write_bytes(made)
        assert len(made) < 1_300_000
    # Some are deflated, and would be stopped by their ratio as well.
    opened = functools.partial(tz.lazy_load, path, limits=tz.Limits(deflate_ratio=1 << 20))
    with pytest.raises(tz.LimitError) as caught, opened() as checkpoint:
        list(checkpoint)
    assert (caught.value.limit, caught.value.path) == (name, str(path))


@pytest.mark.filterwarnings("ignore:torch.load with")
@pytest.mark.parametrize("name", _DEFAULTS)
def test_a_default_lets_a_real_file_through(name: str) -> None:
    """Whatever programs have of it, whole and by its flat names."""
    data = _DEFAULTS[name][1]()
    tz.load(io.BytesIO(data))
    _read_lazily(data, None)


# -- the command line ----------------------------------------------------------------------------

#: What each command that reads a file is called with, for a file ``F`` and a folder ``D``.
_ADAPTER = Path(__file__).parent / "data" / "golden" / "lora" / "plain"
_COMMANDS = {
    "ls": "ls F", "cat": "cat F", "report": "report F -o D/page.html", "why-big": "why-big F",
    "globals": "globals F", "verify": "verify F", "diff": "diff F F", "repair": "repair F D/out.pt",
    "edit": "edit F --device cpu --dry-run", "convert": "convert F D/out.safetensors",
    "convert --dry-run": "convert F D/out.pt --dry-run", "dis": "dis F",
    "scan": "scan F --fail-on unreadable",
    "average": "average F F -o D/out.pt --force", "combine": "combine a a=F -o D/out.pt --force",
    "merge-lora": f"merge-lora F {_ADAPTER} -o D/out.pt --partial",
}  # fmt: skip


def _main(command: str, folder: Path, *more: str) -> int:
    words = [word.replace("D/", f"{folder}/") for word in command.split()]
    return main([re.sub("^(.=)?F$", rf"\1{folder}/F.pt", word) for word in words] + [*more])


def _parsers() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    (found,) = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def test_each_command_that_reads_has_the_option() -> None:
    """And its help lists all bounds, with their defaults."""
    parsers = _parsers()
    assert parsers.keys() - {"completion"} == {command.split()[0] for command in _COMMANDS}
    for name in parsers.keys() - {"completion"}:
        text = " ".join(parsers[name].format_help().split())
        assert "--limit NAME=N" in text
        for field in fields(tz.Limits):
            assert f"{field.name} ({field.default:,})" in text
    assert "--limit" not in parsers["completion"].format_help()


@pytest.mark.parametrize("command", _COMMANDS)
def test_the_option_of_a_command(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It lowers and raises a bound, and the error names it as it is given here."""
    (tmp_path / "F.pt").write_bytes(_zip(_TENSOR))
    status = _main(_COMMANDS[command], tmp_path, "--limit", "entries=2")
    said = "".join(capsys.readouterr())
    assert "pass --limit entries=N" in said
    assert "limits=" not in said
    if command == "repair":  # it is damage, and the rest is saved
        (tmp_path / "out.pt").unlink()
    else:
        assert status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["F.pt"]
    more = ["--limit", "memo=1000000", "--limit", "entries=1", "--limit", "entries=1,000"]
    assert _main(_COMMANDS[command], tmp_path, *more) == 0


def test_a_raised_bound_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the error says to do is what helps."""
    shared = [np.ones(1)] * 3
    tz.save({str(i): shared for i in range(4)}, tmp_path / "F.pt")
    assert _main("ls F", tmp_path, "--limit", "shared_names=5") == 1
    assert "shared_names would be" in capsys.readouterr().err
    assert _main("ls F", tmp_path, "--limit", "shared_names=50") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("entries", "NAME=N was expected"), ("entrys=3", "NAME one of pickle_nbytes"),
        ("=3", "NAME=N was expected"), ("entries=", "a whole number"),
        ("entries=-1", "a whole number"), ("entries=1.5", "a whole number"),
    ],
)  # fmt: skip
def test_an_option_that_is_wrong(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the user's mistake, and said so before anything is read."""
    assert said in " ".join(usage(capsys, "ls", "no file", "--limit", text).split())
