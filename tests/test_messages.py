"""The errors side by side, one of each kind, in full: this is where their style is reviewed.

A message names the file, the record and the byte where they are known, then what was found, what
was expected, and what to do where there is something. What a file holds is quoted, escaped and cut.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as dcp
from tests.formats import pt2_builder as pt2
from tests.formats import tar_builder as tar
from tests.hostile.every import ATTACKS
from tests.hostile.parts import legacy
from tests.hostile.parts import zipped as _zip
from tests.sampling import some
from torchzip.container.hub_names import WHOLE_FILES
from torchzip.errors import TorchZipError, printable, shown

#: What moves the cursor, ends the line or turns the writing of a terminal, or shows nothing:
#: Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt of 16.0), and blanks that are
#: no spaces.
_IGNORABLE = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    r"\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    r"\U000e0000-\U000e0fff"
)
_CONTROL = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff{_IGNORABLE}\u2800\ufffc\U00013441\U00013442]"
)
_HOSTILE = "\x1b[31m\nevil\u202e\u3164\u2800"


def _changed(record: str, **changes: Any) -> bytes:
    """Return a good checkpoint with one record changed."""
    name = f"archive/{record}".encode()
    members = b.members_of(b.stream(b.tensor()))
    return b.build_zip([replace(m, **changes) if m.name == name else m for m in members])


_GOOD = _zip(b.dict_of({"weight": b.tensor(), "bias": b.tensor()}))
_BYTES = np.zeros(8, np.uint8)
_COMPLEX128 = b.tensor(
    b.persistent(numel=1, kind=b.name("torch", "ComplexDoubleStorage")), size=(1,)
)
_FOREIGN = b.call("lightning.Config")


def _load(data: bytes, name: str = "model.pt", **options: Any) -> Callable[[], object]:
    def run() -> object:
        Path(name).write_bytes(data)
        return tz.load(name, **options)

    return run


def _item(name: str, data: bytes = _GOOD) -> Callable[[], object]:
    def run() -> object:
        Path("model.pt").write_bytes(data)
        with tz.lazy_load("model.pt") as checkpoint:
            return checkpoint[name]

    return run


def _save(value: object, name: str = "out.pt") -> Callable[[], object]:
    return lambda: tz.save(value, name)


def _convert(target: str, data: bytes = _GOOD, **options: Any) -> Callable[[], object]:
    def run() -> object:
        Path("model.pt").write_bytes(data)
        return tz.convert("model.pt", target, **options)

    return run


def _index(weight_map: dict[str, str]) -> Callable[[], object]:
    def run() -> object:
        Path("model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return tz.load(".")

    return run


def _distributed(change: Callable[[dcp.Builder], object]) -> Callable[[], object]:
    def run() -> object:
        made = dcp.Builder(Path("run"))
        made.tensor("w", np.zeros(3, np.float32), files=1)
        change(made)
        return tz.load(made.write())

    return run


#: kind -> (what raises, the message)
MESSAGES: dict[str, tuple[Callable[[], object], str]] = {
    # no checkpoint, or not all of one
    "an empty file": (_load(b""), "model.pt: not a checkpoint: the file is empty; fetch it again"),
    "a file of another kind": (_load(b"\x1b[31mhello"),
     "model.pt: not a checkpoint: it begins with b'\\x1b[31mhel'"),
    "a web page": (_load(b"<html>404</html>"),
     "model.pt: not a checkpoint: a web page or XML; the download may have "
     "failed, so fetch it again"),
    "a pointer of Git LFS": (_load(b"version https://git-lfs.github.com/spec/v1"),
     "model.pt: not a checkpoint: a Git LFS pointer; fetch the file itself with git lfs pull"),
    "a zip of something else": (_load(b.build_zip([b.Member(name=b"a/b.txt", data=b"")])),
     "model.pt: a zip archive without data.pkl is not a checkpoint; it has 'b.txt'"),
    "a truncated zip": (_load(_GOOD[:300]),
     "model.pt: no zip directory in the last 300 bytes (the file has 300 bytes "
     "and starts like a zip archive). It looks truncated; compare its size with "
     "the place it came from. `torchzip repair` saves what is whole."),
    "an index without its shards": (_index({f"layer.{i}": f"model-{i}.safetensors"
     for i in range(9)}), "./model.safetensors.index.json: 9 of 9 shards are not in the directory: "
     "'model-0.safetensors', 'model-1.safetensors', 'model-2.safetensors', "
     "'model-3.safetensors', 'model-4.safetensors' and 4 more. Fetch them and "
     "put them beside the index."),
    "a shard elsewhere": (_index({"weight": "../secret.safetensors"}),
     "./model.safetensors.index.json: the index names the shard "
     "'../secret.safetensors'; a plain file name in the same directory was expected"),
    "a directory of nothing": (lambda: tz.load("."),
     ".: a directory, and not one checkpoint: it has nothing in it. A directory "
     "is read that has one of: shards, with an *.index.json or all of them; "
     f"{', '.join(WHOLE_FILES)}; the .metadata or the *.safetensors of "
     "torch.distributed.checkpoint; the *_states.pt of DeepSpeed's ZeRO, or a latest "
     "that names their directory; the model_world_size_*.pt of all ranks. "
     "For a single file give its own path."),
    # the container
    "a wrong CRC": (_load(_changed("data/0", crc=1)),
     "model.pt, record data/0: the CRC-32 of the bytes is 8ba71454, the "
     "directory says 00000001. The record is damaged; fetch the file again. "
     "`torchzip repair` saves what is whole."),
    "two records of one name": (_load(b.build_zip([*b.members_of(b""), b.members_of(b"")[0]])),
     "model.pt: two records are called 'data.pkl'"),
    "two headers that differ": (_load(_changed("data/0", local_name=b"archive/data/1")),
     "model.pt, record data/0, byte 240: the local header names "
     "'archive/data/1', the directory 'archive/data/0'"),
    "an encrypted archive": (_load(_changed("data/0", flags=1)),
     "model.pt, byte 472: the archive is encrypted; decrypt it first"),
    "another compression": (_load(_changed("data/0", method=12)),
     "model.pt, byte 472: a record is compressed with method 12; only stored (0) "
     "and deflate (8) are used in checkpoints"),
    "a version to come": (_load(_changed("version", data=b"11\n")),
     "model.pt, record version: the format version is b'11'; 1 to 10 was expected"),
    "a byte order of its own": (_load(_changed("byteorder", data=b"middle")),
     "model.pt, record byteorder: the byte order is b'middle'; b'little' or b'big' was expected"),
    "a limit": (_load(_GOOD, limits=tz.Limits(entries=2)),
     "model.pt: entries would be 4, past the limit of 2. If you trust the file, "
     "pass limits=tz.Limits(entries=...)."),
    # the pickle
    "a pickle that ends early": (_load(b.checkpoint(b"\x80\x02}q\x00X\x05")),
     "model.pt, record data.pkl, byte 5: the pickle ends within the argument of BINUNICODE"),
    "a string that ends early": (_load(b.checkpoint(b"\x80\x02X\x05\0\0\0abc")),
     "model.pt, record data.pkl, byte 2: BINUNICODE of 5 bytes, and 3 are left"),
    "a byte that is no opcode": (_load(b.checkpoint(b"\x80\x02\xff")),
     "model.pt, record data.pkl, byte 2: byte 0xff is not an opcode"),
    "a protocol to come": (_load(b.checkpoint(b"\x80\x06N.")),
     "model.pt, record data.pkl, byte 0: the pickle protocol is 6; 0 to 5 was expected"),
    "a memo number": (_load(_zip(b"h\x07")),
     "model.pt, record data.pkl, byte 2: memo number 7 was never set"),
    "a call of a number": (_load(_zip(b.integer(3), b")R")),
     "model.pt, record data.pkl, byte 8: a call of 3; a class or a function was expected"),
    "wrong arguments": (_load(_zip(b.call("builtins.complex", 1, "x"))),
     "model.pt, record data.pkl, byte 33: builtins.complex takes two numbers, not (1, 'x')"),
    "a key without a hash": (_load(_zip(b"}]Ns")),
     "model.pt, record data.pkl, byte 5: an empty list as a key of a dict or an "
     "item of a set; it has no hash"),
    "foreign names": (_load(_zip(b.list_of(_FOREIGN, b.call("a\x1b[2J.b"))), foreign="raise"),
     "model.pt: names outside torchzip's table: lightning.Config, a\\x1b[2J.b. "
     "foreign='keep' reads them as inert ForeignObjects."),
    # tensors
    "a storage key that climbs": (_load(_zip(b.tensor(b.persistent("../0")))),
     "model.pt, record data.pkl, byte 92: a storage key is '../0'; one plain "
     "component of a path was expected"),
    "a storage that is not there": (_load(_zip(b.tensor(b.persistent("7")))),
     "model.pt, record data/7: the archive has no record of this name"),
    "a storage of another size": (_load(_zip(b.tensor(b.persistent(numel=5)))),
     "model.pt, record data/0: storage 0 has 16 bytes in the archive and 20 in the pickle"),
    "a storage of an unknown class": (_load(_zip(b.tensor(b.persistent(kind=b.name("torch",
     "QuadStorage"))))), "model.pt, record data.pkl, byte 88: storage 0 is of class <foreign "
     "torch.QuadStorage>, which torch 2.13 does not have"),
    "a tensor past its storage": (_load(_zip(b.tensor(offset=1))),
     "model.pt, record data.pkl, byte 139: a tensor of size [4], stride [1] and "
     "offset 1 reaches to byte 20 of a storage of 16 bytes"),
    "a size below zero": (_load(_zip(b.tensor(size=(-1,)))),
     "model.pt, record data.pkl, byte 139: the size of a tensor has -1 in it; "
     "ints from 0 to 2**63 were expected"),
    "many dimensions": (_load(_zip(b.tensor(size=(1,) * 65, stride=(1,) * 65))),
     "model.pt, record data.pkl, byte 779: a tensor has 65 dimensions; torch and "
     "numpy stop at 64"),
    "hooks": (_load(_zip(b.tensor(hooks=b.dict_of({"a": b"N"})))),
     "model.pt, record data.pkl, byte 121: a tensor has a dict for its backward "
     "hooks; tensors without any are read"),
    "a sparse tensor of no layout": (_load(_zip(b.call("torch._utils._rebuild_sparse_tensor",
     b"N", b")"))), "model.pt, record data.pkl, byte 43: _rebuild_sparse_tensor takes a layout and "
     "a tuple, not (None, an empty tuple)"),
    # the other formats
    "a legacy file that is cut": (_load(legacy(data=b.DATA[:-1])),
     "model.pt: the storages end at byte 204, the file has 203 bytes. It looks "
     "truncated; compare its size with the place it came from. `torchzip repair` "
     "saves what is whole."),
    "a legacy file of two counts": (_load(legacy(count=3)),
     "model.pt, byte 180: storage 0 has 3 elements in the file and 4 in the pickle"),
    "a header of safetensors that is cut": (
     _load(b.safetensors(b"{}", nbytes=100), "model.safetensors"),
     "model.safetensors: the header takes 100 bytes after the first 8, and the "
     "file has 10 bytes in all. It looks truncated; compare its size with the "
     "place it came from."),
    "a header that is no JSON": (_load(b.safetensors(b"{nope}"), "model.safetensors"),
     "model.safetensors: the header is not valid JSON (Expecting property name enclosed "
     "in double quotes: line 1 column 2 (char 1))"),
    "safetensors with a gap": (_load(b.safetensors(
     b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab"), "model.safetensors"),
     "model.safetensors: the data of 'x' begins at byte 62, and the data before "
     "it ends at byte 61"),
    "a .pt2 archive of an unknown dtype": (_load(pt2.weights({"w": pt2.payload(tensor_meta=pt2.meta(
     99))}), "model.pt2"), "model.pt2, record data/weights/model_weights_config.json: 'w': dtype "
     "number 99, which torch 2.13 does not have"),
    "a tar file of something else": (_load(tar.tar_of({"a.txt": b""})),
     "model.pt: a tar file without storages and tensors and pickle is not a "
     "checkpoint; it has 'a.txt'"),
    "a distributed checkpoint without a file": (_distributed(lambda made: made.files.clear()),
     "run: the directory lacks 1 of its files, among them '__0_0.distcp', which "
     "has 'w'. Fetch them again."),
    "a distributed checkpoint of wrong sizes": (
     _distributed(lambda made: made.items.update(w=dcp.tensor_metadata((3,), [((0,), (2,))]))),
     "run, record w: the chunks hold 2 of the 3 elements of a tensor of size "
     "[3]; a file may be missing"),
    # names, and what a caller gives
    "a tensor that is not there": (_item("weihgt"),
     "model.pt: no tensor is called 'weihgt', of 2; did you mean 'weight'?"),
    "a name that is two tensors'": (
     _item("a.b", _zip(b.dict_of({"a.b": b.tensor(), "a": {"b": b.tensor()}}))),
     "model.pt: two tensors are called 'a.b': root['a.b'] and root['a']['b']; "
     "take them from the checkpoint's root"),
    "an option that is none": (
        lambda: tz.load("model.pt", foreign="ignore"),  # type: ignore[arg-type]
        "foreign must be 'keep' or 'raise', not 'ignore'",
    ),
    "no file": (
        lambda: tz.load(3),  # type: ignore[arg-type]
        "expected a path or a binary file object with read and seek, not int",
    ),
    # saving
    "an array of objects": (_save({"model": {"layers": [np.array([object()])]}}),
     "model.layers.0: cannot save an array of dtype object, which torch does not have; "
     "save its tolist(), or convert it with astype"),
    "a value that is no data": (_save({"model": [1, sys]}),
     "model.1: cannot save an object of type module (cannot pickle 'module' object)"),
    "two dtypes over one memory": (_save({"a": _BYTES, "b": _BYTES.view("i4")}),
     "a, b: arrays of dtype int32 and uint8 share memory, which a checkpoint "
     "cannot keep; copy one"),
    "no directory": (_save({}, "none/out.pt"),
     "[Errno 2] The directory to put it in does not exist; make it first: 'none/out.pt'"),
    # converting
    "a dtype that safetensors has not": (
     _convert("out.safetensors", _zip(b.dict_of({"z": _COMPLEX128}))),
     "model.pt: z: safetensors has no dtype for torch.complex128; exclude the "
     "tensor, give it another dtype, or write a .pt"),
    "a suffix": (_convert("out.what"),
     "out.what: the suffix .what is not known; one of .pt .pth .bin .ckpt .pth.tar .th "
     ".safetensors .sft .gguf .npz .index.json was expected, or a slash at the end for a new "
     "directory: out.what/"),
    "a dtype": (_convert("out.pt", dtype="int8"),
     "tensors are cast to floating dtypes only, not to int8; one of float64, float32, float16, "
     "bfloat16, float8_e4m3fn, float8_e4m3fnuz, float8_e5m2, float8_e5m2fnuz, float8_e8m0fnu "
     "was expected"),
    "one name for two": (_convert("out.pt", rename=[(".+", "x")]),
     "'weight' and 'bias' would both be called 'x'"),
    "a file that is there": (_convert("model.pt"),
     "[Errno 17] Exists already; overwrite=True replaces it: 'model.pt'"),
    "damage in the source": (_convert("out.safetensors", _changed("data/0", crc=1)),
     "model.pt, record data/0: the CRC-32 of the bytes is 8ba71454, the "
     "directory says 00000001. The record is damaged; fetch the file again. "
     "`torchzip repair` saves what is whole."),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path) -> Iterator[None]:
    with contextlib.chdir(tmp_path):
        yield


@pytest.mark.parametrize("kind", MESSAGES)
def test_message(kind: str) -> None:
    """The whole text of an error."""
    run, message = MESSAGES[kind]
    with pytest.raises((TorchZipError, OSError, ValueError, TypeError)) as caught:
        run()
    assert str(caught.value) == message


def _said(data: bytes) -> Iterator[str]:
    """Yield all that is said about a file."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: tz.load(io.BytesIO(data)),
        lambda: tz.load(io.BytesIO(data), foreign="raise"),
        lambda: tz.lazy_load(io.BytesIO(data)).verify(),
    )
    for way in ways:
        try:
            way()
        except TorchZipError as error:
            yield str(error)
            yield error.message


def test_no_hostile_row_writes_on_the_terminal() -> None:
    """Of a sample: no message has a control character, and none is longer than a screen."""
    for attack in some(ATTACKS[::4]):  # the length of all is looked at in test_hostile.py
        for text in _said(attack.data):
            assert _CONTROL.search(text) is None, attack.name
            assert len(text) < 2000, attack.name


_PLACES: dict[str, Callable[[str], bytes]] = {
    "a storage key": lambda text: _zip(b.tensor(b.persistent(text))),
    "a name": lambda text: _zip(b.call(b.name("m" + text.replace("\n", ""), "x"), b.tensor())),
    "many names": lambda text: _zip(
     b.list_of(*[b.call(b.name(f"{text[:99]}{i}".replace("\n", ""), "x")) for i in range(200)])),
    "a text": lambda text: _zip(b.tensor(size=b.tuple_of(text))),
    "a key": lambda text: _zip(b.dict_of({text: b.tensor(), "a": b"N"}) + b"Na"),
    "a record": lambda text: b.build_zip(
     [b.Member(name=b"archive/" + text[:50_000].encode(), data=b"")]),
    "a name in a header": lambda text: b.safetensors(json.dumps({text: {}}).encode()),
    "a text in a header": lambda text: b.safetensors(json.dumps({"x": {text: 1}}).encode()),
    "a member of a tar": lambda text: tar.tar_of({text[:90]: b""}),
}  # fmt: skip


@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize("text", [_HOSTILE, _HOSTILE * 3000, "x" * 60_000], ids=range(3))
def test_texts_of_a_file_are_escaped_and_cut(place: str, text: str) -> None:
    """Whatever place a hostile text stands in."""
    for said in _said(_PLACES[place](text)):
        assert _CONTROL.search(said) is None
        assert len(said) < 2000


def test_a_hostile_path_is_escaped() -> None:
    """The place is shown like the message; the attributes have it as it is."""
    error = TorchZipError("broken\r\n", path=f"a{_HOSTILE}.pt", record=f"r{_HOSTILE}", offset=12345)
    assert str(error) == (
        r"a\x1b[31m\nevil\u202e\u3164\u2800.pt, "
        r"record r\x1b[31m\nevil\u202e\u3164\u2800, byte 12,345: broken\r\n"
    )
    assert error.path == f"a{_HOSTILE}.pt"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (True, "True"), (1.5, "1.5"), (-12345, "-12,345"), (b"\0", r"b'\x00'"),
        (1 << 100_000, "an int of 100,001 bits"), ([], "an empty list"), ({}, "an empty dict"),
        ((1, "a\n", [2]), r"(1, 'a\n', a list)"), ({1: 2}, "a dict"), (object(), "an object"),
        (np.zeros(2), "a tensor"), (tz.types.Dtype("half\n"), r"torch.half\n"),
        ("x" * 200, f"'{'x' * 100}'..."), (tz.types.ForeignObject("m\n", "C"), r"<foreign m\n.C>"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)  # fmt: skip
def test_shown(value: object, text: str) -> None:
    """One way to show a value, which never walks what it holds."""
    assert shown(value) == text
    assert printable(text) == text


def test_every_character_shows() -> None:
    """What moves, turns or shows nothing is escaped; letters, digits, signs and marks are not."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        text = printable(character)
        assert shown(character) in (f"'{text}'", repr(character))
        if _CONTROL.match(character) or unicodedata.category(character)[0] in "CZ":
            assert text == (" " if code == 32 else ascii(character)[1:-1])
    for text in ("layer.0.weight", "é ü ß", "重み", "ключ", "وزن", "e\u0301", "वज़न", "⠿ 😀 ½ ∑"):
        assert printable(text) == text
    assert shown("a\u3164") == r"'a\u3164'"


def test_shown_is_cheap() -> None:
    """A list that is 2**200 long as a tree, and one that holds itself."""
    doubled: Any = []
    for _ in some(range(200)):
        doubled = [doubled, doubled]
    assert shown(doubled) == "[a list, a list]"
    doubled.append(doubled)
    assert shown(doubled) == "[a list, a list, a list]"


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torchzip", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(tz.__file__).parents[1])},
    )


@pytest.mark.few
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["ls", "cut.pt"], 1), (["verify", "cut.pt"], 1), (["globals", "cut.pt"], 1),
        (["dis", "cut.pt"], 1), (["convert", "cut.pt", "o.pt"], 1), (["ls", "none.pt"], 1),
        (["convert", "evil.pt", "evil.pt"], 2), (["convert", "evil.pt", "o.what"], 2),
        (["dis", "evil.pt", _HOSTILE], 1), (["ls", f"no{_HOSTILE}.pt"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_the_command_line_says_it_in_one_line(arguments: list[str], status: int) -> None:
    """On stderr, with nothing on stdout."""
    Path("cut.pt").write_bytes(_GOOD[:300])
    Path("evil.pt").write_bytes(_GOOD)
    made = _command(*arguments)
    assert made.returncode == status
    assert made.stdout == ""
    assert made.stderr.startswith("torchzip: ")
    assert made.stderr.count("\n") == 1
    assert _CONTROL.search(made.stderr[:-1]) is None


@pytest.mark.few
@pytest.mark.parametrize("command", ["ls", "ls -l", "globals", "verify", "dis", "ls --json"])
def test_listings_escape_hostile_names(command: str) -> None:
    """A name from a file moves no cursor."""
    members = b.members_of(
        b.stream(b.dict_of({_HOSTILE: b.tensor(), "o": b.call("m\x1b]0;x\x07.n\u202e")}))
    )
    members.append(b.Member(name=b"archive/extra\x1b[2J", data=b"", crc=0))
    Path("evil.pt").write_bytes(b.build_zip(members))
    made = _command(*command.split(), "evil.pt")
    refused = command in ("globals", "verify")  # the file names what torch.load refuses
    assert made.returncode == refused, made.stderr
    assert _CONTROL.search(made.stdout.replace("\n", "")) is None
    assert "evil" in made.stdout or "m\\x1b" in made.stdout


def test_paths_in_what_is_saved_are_escaped_and_cut() -> None:
    """Keys may come from a file that is saved again."""
    for key in (_HOSTILE, _HOSTILE * 1000, "x" * 60_000):
        with pytest.raises(TypeError, match="cannot save") as caught:
            tz.save({key: [np.array([object()])]}, "out.pt")
        assert _CONTROL.search(str(caught.value)) is None
        assert len(str(caught.value)) < 2000
        assert ".0: cannot save an array" in str(caught.value)
