"""What a file or directory is that is not a checkpoint, and what to do with it.

Looked at when everything else has failed, so the common ways never come here.
"""

from __future__ import annotations

import os
import shlex

from torchzip.container.zip_reader import ZipReader
from torchzip.errors import (
    ArchiveError,
    FormatError,
    TorchZipError,
    UnsupportedError,
    as_argument,
    listed,
    shown,
)
from torchzip.files.source import FileObjectSource, Source
from torchzip.limits import Limits

#: Bytes in which the first tensor of a bare pickle is looked for.
_PICKLE_NBYTES = 1 << 16
#: Subdirectories that are looked into.
_MOST_FOLDERS = 100

#: Records that only one format has, at the top of its archive's folder.
_RECORDS = ("data.pkl", "constants.pkl", "model.json", "archive_format")
#: What else is there: records and folders of them.
_BESIDE = ("version", "byteorder", "data", ".data", "constants", "code")
#: Suffixes of checkpoints, as they lie in archives around them.
_INNER = (
    ".pt", ".pth", ".bin", ".ckpt", ".th", ".safetensors", ".pt2", ".ptl", ".distcp", ".zip",
    ".tar",
)  # fmt: skip
#: In every archive of torch.package (torch 1.9 to 2.13).
_PACKAGE = ".data/extern_modules"

_MAGICS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with git lfs pull"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "gzip-compressed; decompress it first"),
    (b"BZh", "bzip2-compressed; decompress it first"),
    (b"\xfd7zXZ\0", "xz-compressed; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; decompress it first"),
    (b"PK\5\6", "an empty zip archive"),
    (b"Rar!", "a RAR archive; extract it first"),
    (b"7z\xbc\xaf", "a 7z archive; extract it first"),
)


def file_error(source: Source, head: bytes) -> FormatError:
    """Return the error for a file that begins with ``head`` and has no format that is read."""
    return FormatError(f"not a checkpoint: {_look_of(source, head)}")


def _look_of(source: Source, head: bytes) -> str:
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    is_path = hasattr(source, "path")  # and no file object, which lies nowhere
    folder = _folder_of_record(source.name) if is_path else None
    if folder is not None:
        return f"a record of an unzipped checkpoint. {_zip_again(folder)}"
    if not source.size and isinstance(source, FileObjectSource) and source.start:
        return (
            f"no bytes are left after byte {source.start:,}, where the file object is; seek to "
            "where the checkpoint begins"
        )
    if not source.size:
        return "the file is empty; fetch it again"
    if head[:1] == b"\x80" and head[1:2] <= b"\5":
        start = bytes(source.read_at(0, min(source.size, _PICKLE_NBYTES)))
        # What the persistent id of a storage begins with, in torch's protocol 2.
        if b"X\x07\0\0\0storage" in start and b"ctorch" in start:
            return (
                "the pickle of a checkpoint alone, such as the data.pkl of an unzipped one; its "
                "tensors are in other records. Give the whole file, or zip the folder that the "
                "pickle came from."
            )
        return "a pickle, but not one that torch.save wrote"
    if head.lstrip()[:1] == b"{":
        return "JSON; an index of shards is recognised by its name, which ends in .index.json"
    if head.lstrip()[:1] == b"<":
        return "a web page or XML; the download may have failed, so fetch it again"
    return f"it begins with {head[:8]!r}"


def folder_error(path: str, names: list[str], understood: str) -> FormatError:
    """Return the error for a directory that is not a checkpoint."""
    folder = path if _is_unzipped(path) else _folder_of_record(path)
    below = [name for name in names[:_MOST_FOLDERS] if _is_unzipped(os.path.join(path, name))]
    if folder is not None:
        what = f"the records of an unzipped checkpoint. {_zip_again(folder)}"
    elif len(below) == 1:
        inner = os.path.join(path, below[0])
        what = (
            f"a directory around {listed(below)}, which has the records of an unzipped checkpoint. "
            f"{_zip_again(inner)}"
        )
    else:
        what = (
            "a directory, and not one checkpoint: it has "
            f"{listed(names, 10) or 'nothing in it'}. {understood}"
        )
    return FormatError(what, path=path)


def _is_unzipped(folder: str) -> bool:
    """Return whether a directory has the records of an archive."""
    here = os.path.join(folder, "") if folder else ""
    return os.path.isfile(here + "archive_format") or (
        os.path.isfile(here + "data.pkl") and any(os.path.exists(here + name) for name in _BESIDE)
    )


def _folder_of_record(path: str) -> str | None:
    """Return the folder of an unzipped checkpoint that a file or folder lies in; None if in none.

    >>> _folder_of_record("no/such/archive/data/0")
    """
    folder, name = os.path.split(os.path.normpath(path))
    for _ in range(2):
        if (name in _RECORDS or name in _BESIDE) and _is_unzipped(folder):
            return folder or os.curdir
        folder, name = os.path.split(folder)  # of FOLDER/data/0
    return None


def _zip_again(folder: str) -> str:
    parent, name = os.path.split(os.path.normpath(folder))
    if name in ("", os.curdir, os.pardir):
        parent, name = os.path.split(os.path.abspath(folder))
    target = f"{name}.pt"
    while os.path.lexists(os.path.join(parent, target)):  # zip would add to what is there
        target = f"new-{target}"
    words = ["zip", "-0", "-r", *map(as_argument, (target, name))]
    change = f"cd {shlex.quote(as_argument(parent))} && " if parent else ""
    return f"Zip its folder again, without compression: {change}{shlex.join(words)}"


def zip_error(error: ArchiveError, source: Source, limits: Limits) -> TorchZipError:
    """Return what is wrong with a zip archive that could not be read, which may be ``error``."""
    try:
        names = list(ZipReader(source, limits, in_folder=False))
    except (TorchZipError, OSError):
        return error
    if any(name.count("/") < 2 and name.rpartition("/")[2] in _RECORDS for name in names):
        return error  # a checkpoint, and a broken one
    if any(name.endswith(f"/{_PACKAGE}") for name in names):
        return UnsupportedError(
            "an archive of torch.package, which holds code. Where you trust it, load its model "
            "with torch.package.PackageImporter and save the state_dict() with torch.save."
        )
    deep = [name for name in names if name.endswith("/data.pkl")]
    if len(deep) == 1:
        folder = deep[0].removesuffix("/data.pkl")
        return ArchiveError(
            f"the records of a checkpoint lie in {shown(folder)}; a single directory at the top "
            "was expected. Unzip the file, and zip that directory by itself, from where it lies."
        )
    around = around_checkpoints(names)
    if around is not None:
        return ArchiveError(f"a zip archive {around}")
    return error


def around_checkpoints(names: list[str]) -> str | None:
    """Return what to say of an archive if files in it are checkpoints by their names, else None."""
    inner = [name for name in names if name.lower().endswith(_INNER)]
    if not inner:
        return None
    them = "it" if len(inner) == 1 else "them"
    return f"around {listed(inner)}, not a checkpoint itself. Extract {them} first."
