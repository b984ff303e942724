"""A source that somebody writes to while it is read: an error, and nothing at the target."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.convert.test_run import NeighbourProcess, make_pieces_small
from tests.faults import Call, under
from tests.systems import open_files_can_go
from tests.test_files_under_readers import NEW, OLD, is_of, overwrite, values, write


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch)


def _paths(folder: Path, kind: str) -> tuple[Path, Path]:
    """Write two checkpoints of the same size; return the files with their tensors."""
    made = []
    for name, seed in (("old", OLD), ("new", NEW)):
        path = write(folder / name, kind, seed)
        # Of shards the first; all were written a while ago, as far as the system knows.
        for file in path.parent.iterdir():
            os.utime(file, (1_000_000_000, 1_000_000_000))
        made.append(path)
    return made[0], made[1]


def _file_of(path: Path) -> Path:
    return min(path.parent.glob("*-of-*"), default=path) if path.suffix == ".json" else path


def _overwrite_with_its_time(path: Path, other: Path) -> None:
    before = path.stat()
    overwrite(path, other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _append(path: Path, other: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _once(change: Callable[[Path, Path], None], path: Path, other: Path) -> Callable[..., None]:
    """Return a progress function that changes the source when the first piece is written."""
    done = [False]

    def progress(nbytes: int, total: int) -> None:
        if not done[0]:
            done[0] = True
            change(_file_of(path), _file_of(other))

    return progress


EXECUTORS: dict[str, Callable[[], Executor | None]] = {
    "alone": lambda: None,
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": NeighbourProcess,
}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "shards"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("change", [overwrite, _append])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_convert(
    tmp_path: Path, kind: str, suffix: str, dtype: str | None,
    change: Callable[[Path, Path], None], executor: str,
) -> None:  # fmt: skip
    """Whoever writes it, in whatever way the bytes go, and with a CRC or without."""
    path, other = _paths(tmp_path, kind)
    out = tmp_path / f"o{suffix}"
    out.write_bytes(b"old")
    with pytest.raises(tz.FormatError, match=r"written to while|changed since|CRC-32") as caught:
        tz.convert(
            path, out, dtype=dtype, executor=EXECUTORS[executor](), overwrite=True,
            progress=_once(change, path, other),
        )  # fmt: skip
    assert caught.value.path == str(_file_of(path))
    assert out.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["new", out.name, "old"]


def test_time_put_back(tmp_path: Path) -> None:
    """What was copied unread is compared with its CRC then, which the new bytes do not have."""
    path, other = _paths(tmp_path, "zip")
    progress = _once(_overwrite_with_its_time, path, other)
    with pytest.raises(tz.FormatError, match="CRC-32"):
        tz.convert(path, tmp_path / "o.pt", progress=progress)
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


_GONE: dict[str, Callable[[Path, Path], None]] = {
    "replaced": lambda path, other: os.replace(other, path),
    "renamed": lambda path, other: os.replace(path, path.with_name("x")),
    "removed": lambda path, other: path.unlink(),
}
HARMLESS = _GONE | {
    "linked": lambda path, other: os.link(path, path.with_name("x")),
    "private": lambda path, other: path.chmod(0o600),
    "nothing": lambda path, other: None,
}


@pytest.mark.parametrize(
    "change",
    [pytest.param(each, marks=[open_files_can_go] * (each in _GONE)) for each in HARMLESS],
)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "shards"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_harmless_changes(tmp_path: Path, change: str, kind: str, suffix: str) -> None:
    """What happens to its name and mode is no change of the file that is open."""
    path, other = _paths(tmp_path, kind)
    out = tmp_path / f"o{suffix}"
    tz.convert(path, out, progress=_once(HARMLESS[change], path, other))
    assert is_of(tz.load(out), OLD)


@open_files_can_go
def test_a_part_of_a_storage(tmp_path: Path) -> None:
    """It is not compared with the CRC of the whole storage when the file is renamed."""
    path, out = tmp_path / "m.pt", tmp_path / "o.safetensors"
    whole = np.arange(100_000)
    tz.save({"a": whole[:60_000], "b": whole[60_000:]}, path)
    tz.convert(path, out, progress=_once(HARMLESS["renamed"], path, path))
    assert tz.load(out)["b"].tolist() == whole[60_000:].tolist()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_file_object(tmp_path: Path, suffix: str) -> None:
    """It cannot tell whether it was written to, so its CRCs are compared."""
    path, other = _paths(tmp_path, "zip")
    file = io.BytesIO(path.read_bytes())

    def progress(done: int, total: int) -> None:
        file.getbuffer()[:] = other.read_bytes()

    with pytest.raises(tz.FormatError, match="CRC-32"):
        tz.convert(file, tmp_path / f"o{suffix}", progress=progress)
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def _save(root: Any, out: Path) -> None:
    tz.save(root, out)


def _store_early(root: Any, out: Path) -> None:
    with tz.incremental_save(out) as writer:
        writer.save({name: writer.store_early(tensor) for name, tensor in root.items()})


@pytest.mark.parametrize("write_it", [_save, _store_early])
@pytest.mark.parametrize("nbytes", [500, 100_000])
def test_save(tmp_path: Path, write_it: Callable[[Any, Path], None], nbytes: int) -> None:
    """The CRC of a lazy tensor goes along when it is saved, too."""
    path, other = tmp_path / "old" / "m.pt", tmp_path / "new" / "m.pt"
    for seed, file in enumerate((path, other)):
        file.parent.mkdir()
        tz.save({name: np.full(nbytes // 4, seed, np.float32) for name in "abc"}, file)
        os.utime(file, (1_000_000_000, 1_000_000_000))
    out = tmp_path / "o.pt"
    out.write_bytes(b"before")

    def calls(effect: Callable[..., Any], call: Call) -> list[Call]:
        with tz.lazy_load(path) as ckpt, under(call.__eq__, effect) as system:
            write_it(ckpt.root, out)
            return [each for each in system.calls if each[0] in ("preadv", "pread")]

    def effect(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        overwrite(path, other)
        return real(*args, **more)

    reads = calls(effect, ("", 0))
    kept = path.read_bytes()
    out.write_bytes(b"before")
    for call in reads:
        with pytest.raises(tz.FormatError, match=r"written to while|CRC-32"):
            calls(effect, call)
        assert out.read_bytes() == b"before"
        path.write_bytes(kept)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    with tz.lazy_load(path) as ckpt:  # written to before, where the tensors are not
        tz.tools.edit(path, rename={"a": "x"})
        write_it(ckpt.root, out)
    assert sorted(tz.load(out)) == ["a", "b", "c"]


def test_values_are_not_alike() -> None:
    """The tests above change something."""
    assert not is_of(values(NEW), OLD)
