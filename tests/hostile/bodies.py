"""Other formats than the zip archive, and files that are no checkpoint."""

from __future__ import annotations

from tests import builders as b
from tests.hostile.attack import Attack
from tests.hostile.parts import legacy
from torchzip.errors import FormatError, PickleError, TensorError, TorchZipError, UnsupportedError

_FILES: list[tuple[str, bytes, type[TorchZipError]]] = [
    # the legacy stream
    ("legacy of version 1000", legacy(version=b.integer(1000)), FormatError),
    ("legacy of a version as text", legacy(version=b.text("1001")), FormatError),
    ("legacy with keys in a dict", legacy(keys=b"}"), PickleError),
    ("legacy with a key twice", legacy(keys=b.list_of(b.text("0"), b.text("0"))), PickleError),
    ("legacy with a key as text and number", legacy(keys=b.list_of(b.text("0"), b.integer(0))),
     PickleError),
    ("legacy without its key", legacy(keys=b"]"), FormatError),
    ("legacy with another key", legacy(keys=b.list_of(b.text("1"))), FormatError),
    ("legacy of fewer elements", legacy(count=3), TensorError),
    ("legacy of -1 elements", legacy(count=-1), TensorError),
    ("legacy of 2**62 elements", legacy(count=1 << 62), TensorError),
    ("legacy that is cut", legacy(data=b.DATA[:-1]), FormatError),
    ("legacy with a storage of 2**60", legacy(root=b.tensor(b.persistent(numel=1 << 60))),
     TensorError),
    ("legacy with a view past the storage",
     legacy(root=b.tensor(b.persistent(extra=b.ints(9, 2, 3)))),
     TensorError),
    ("legacy with an offset past the end", legacy(root=b.tensor(offset=1)), TensorError),
    ("legacy with nothing behind", b.legacy(b"", b"", b""), PickleError),
    # other files
    ("an empty file", b"", FormatError),
    ("one byte", b"P", FormatError),
    ("text", b"hello world, this is no checkpoint", FormatError),
    ("zeros", bytes(1000), FormatError),
    ("a pickle of another program", b.stream(b"}"), FormatError),
    ("a web page", b"<!DOCTYPE html><html>404</html>", FormatError),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
     FormatError),
    ("a GGUF file", b"GGUF\3\0\0\0" + bytes(100), FormatError),
    ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(100), FormatError),
    ("a .npy file", b"\x93NUMPY\1\0" + bytes(100), FormatError),
    ("a gzip file", b"\x1f\x8b\x08" + bytes(100), FormatError),
    ("a RAR archive", b"Rar!\x1a\7" + bytes(100), FormatError),
    ("a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(100), FormatError),
    ("an empty zip archive", b"PK\5\6" + bytes(18), FormatError),
    ("the preview format", b"PYTORCH1" + bytes(100), UnsupportedError),
    ("a tar file", bytes(257) + b"ustar\0" + bytes(300), FormatError),
    # safetensors
    ("a safetensors header that is cut", b.safetensors(b'{"x":', nbytes=100), FormatError),
    ("safetensors of a shape of many digits",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[%s,%s],"data_offsets":[0,1]}}'
                   % (b"9" * 4000, b"9" * 4000), b"x"), FormatError),
    ("safetensors of an offset of many digits",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[%s,%s]}}'
                   % (b"9" * 4000, b"9" * 4000), b"x"), FormatError),
    ("safetensors of 65 dimensions",
     b.safetensors(b'{"x":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}'
                   % b",".join([b"1"] * 65), b"x"), TorchZipError),
]  # fmt: skip

ROWS = [Attack(name, data, error) for name, data, error in _FILES]
