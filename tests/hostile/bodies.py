"""Other formats than the zip archive, and files that are no checkpoint."""

from __future__ import annotations

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import HUGE, legacy, tensor_on
from torchzip.errors import FormatError, PickleError, TensorError, TorchZipError, UnsupportedError

_LEGACY: list[Row] = [
    ("of version 1000", legacy(version=b.integer(1000))),
    ("of a version as text", legacy(version=b.text("1001"))),
    ("with keys in a dict", legacy(keys=b"}"), PickleError),
    ("with a key twice", legacy(keys=b.list_of("0", "0")), PickleError),
    ("with a key as text and number", legacy(keys=b.list_of("0", 0)), PickleError),
    ("without its key", legacy(keys=b"]")),
    ("with another key", legacy(keys=b.list_of("1"))),
    ("of fewer elements", legacy(count=3), TensorError),
    ("of -1 elements", legacy(count=-1), TensorError),
    ("of 2**62 elements", legacy(count=1 << 62), TensorError),
    ("that is cut", legacy(data=b.DATA[:-1])),
    ("with a storage of 2**60", legacy(root=tensor_on(numel=1 << 60)), TensorError),
    ("with a view past the storage", legacy(root=tensor_on(extra=(9, 2, 3))), TensorError),
    ("with an offset past the end", legacy(root=b.tensor(offset=1)), TensorError),
    ("with nothing behind", b.legacy(b"", b"", b""), PickleError),
    ("of version true", legacy(version=b.TRUE)),
    ("of version 1001.0", legacy(version=b"G\x40\x8f\x48" + bytes(5))),
    ("of a version of 7,000 digits", legacy(version=HUGE), TorchZipError),
    ("of a version that is a tuple of it", legacy(version=b.ints(1001))),
    ("in another protocol", b"\x80\4" + legacy()[2:], None),
    ("of a magic that is text", b.stream(b.text("119547037146038801333356")) + legacy()[15:]),
    ("of a magic of one bit more", legacy().replace(b"\x6c\xfc", b"\x6c\xfd", 1)),
    ("of a magic below 0", legacy().replace(b"\x50\x19.", b"\x50\x99.", 1)),
    ("of a magic in letters", b"L119547037146038801333356L\n." + legacy()[15:], None),
    ("of a big-endian system", legacy(system=b.dict_of({"little_endian": False})), None),
    ("of a system that is code", legacy(system=b.call("os.system", "x")), None),
    ("of a system that is a storage", legacy(system=b.persistent()), PickleError),
    ("without a system", legacy().replace(b.stream(b"}"), b"", 1), TorchZipError),
    ("with keys in a tuple", legacy(keys=b.tuple_of("0")), PickleError),
    ("with keys in text", legacy(keys=b.text("0")), PickleError),
    ("with a key that is a number", legacy(keys=b.list_of(0)), PickleError),
    ("with a key that is None", legacy(keys=b.list_of(b"N")), PickleError),
    ("with a key that is a list", legacy(keys=b.list_of(b"]")), PickleError),
    ("with keys of itself", legacy(keys=b"]q\1h\1a"), PickleError),
    ("with a key more", legacy(keys=b.list_of("0", "1"))),
    ("with a key behind a blank", legacy(keys=b.list_of(" 0"))),
    ("with keys that are a storage", legacy(keys=b.list_of(b.persistent())), PickleError),
    ("with keys that are code", legacy(keys=b.list_of(b.call("os.system", "x"))), PickleError),
    ("with a key that climbs", legacy(root=tensor_on("../0"), keys=b.list_of("../0")), PickleError),
    ("of 16 elements, which are bytes", legacy(count=16), TensorError),
    ("of no elements", legacy(count=0), TensorError),
    ("of 2**63 - 1 elements", legacy(count=(1 << 63) - 1), TensorError),
    ("of -2**63 elements", legacy(count=-(1 << 63)), TensorError),
    ("of a count in big-endian", legacy(count=4 << 56), TensorError),
    ("without data", legacy(data=b"")),
    ("without a count", legacy()[:-24]),
    ("with half a count", legacy()[:-20]),
    ("with a byte behind it", legacy() + b"x", None),
    ("with another behind it", legacy() + legacy(data=bytes(16)), None),
    ("with an archive behind it", legacy() + b.checkpoint(b.stream(b"N")), None),
    ("with a byte before it", b"x" + legacy()),
    ("of a class that is not known", legacy(root=tensor_on(kind="QuadStorage")), UnsupportedError),
    ("of many storages of all that is there", legacy(root=b.list_of(
        *(tensor_on(str(i), numel=60) for i in range(100)))), TensorError),
    ("of a module with its source", legacy(root=b.tuple_of(
        "module", b.name("a", "b"), "f", "source") + b"Q"), TorchZipError),
    ("of a view of no elements", legacy(root=tensor_on(extra=("v", 4, 0))), TensorError),
    ("of a view before its storage", legacy(root=tensor_on(extra=("v", -1, 1))), TensorError),
    ("of a view that is its storage", legacy(root=tensor_on(extra=("0", 0, 4))), None),
    ("of a pickle that is cut", legacy()[:60], PickleError),
]  # fmt: skip

_FILES: list[Row] = [
    ("an empty file", b""),
    ("one byte", b"P"),
    ("text", b"hello world, this is no checkpoint"),
    ("zeros", bytes(1000)),
    ("a pickle of another program", b.stream(b"}")),
    ("a web page", b"<!DOCTYPE html><html>404</html>"),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(100)),
    ("a gzip file", b"\x1f\x8b\x08" + bytes(100)),
    ("a RAR archive", b"Rar!\x1a\7" + bytes(100)),
    ("a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(100)),
    ("an empty zip archive", b"PK\5\6" + bytes(18)),
    ("the preview format", b"PYTORCH1" + bytes(100), UnsupportedError),
    ("a tar file", bytes(257) + b"ustar\0" + bytes(300)),
    # safetensors
    ("a safetensors header that is cut", b.safetensors(b'{"x":', nbytes=100)),
    ("safetensors of a shape of many digits",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[%s,%s],"data_offsets":[0,1]}}'
                   % (b"9" * 4000, b"9" * 4000), b"x")),
    ("safetensors of an offset of many digits",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[%s,%s]}}'
                   % (b"9" * 4000, b"9" * 4000), b"x")),
    ("safetensors of 65 dimensions",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}'
                   % b",".join([b"1"] * 65), b"x"), TorchZipError),
]  # fmt: skip

ROWS = attacks(_LEGACY, FormatError, prefix="legacy ") + attacks(_FILES, FormatError)
