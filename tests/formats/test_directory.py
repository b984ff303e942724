"""Which checkpoint a directory is: names, variants, shards without an index; what is refused."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.formats.test_sharded import refused
from tests.formats.test_sharded import write_shard as _write
from tests.sampling import some
from torchzip.container.hub_names import (
    WHOLE_FILES,
    index_of,
    is_index,
    is_whole,
    parse_shard,
    shard_name,
    whole_of,
)
from torchzip.errors import UnsupportedError
from torchzip.files.folder import is_plain_name

_TENSORS = {name: np.full(3, number, np.float32) for number, name in enumerate("cab")}
_VARIANTS = (None, "fp16", "non_ema", "v1.0")


def _named(whole: str, variant: str | None) -> str:
    """Return the name of a variant, as both transformers and diffusers make it."""
    stem, suffix = os.path.splitext(whole)
    return whole if variant is None else f"{stem}.{variant}{suffix}"


def _shards(folder: Path, whole: str, count: int = 3) -> list[Path]:
    """Write one tensor into each of some shards."""
    paths = [folder / shard_name(whole, number, count) for number in range(1, count + 1)]
    for path, name in zip(paths, _TENSORS, strict=False):
        _write(path, {name: _TENSORS[name]})
    return paths


def _index(folder: Path, index: str, shards: list[Path]) -> Path:
    weight_map = {name: path.name for name, path in zip(_TENSORS, shards, strict=False)}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / index


def _same(path: Path) -> None:
    with tz.lazy_load(path) as checkpoint:
        assert {name: checkpoint[name].numpy()[0] for name in checkpoint} == {
            name: array[0] for name, array in _TENSORS.items()
        }
    assert sorted(tz.load(path)) == sorted(_TENSORS)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", _VARIANTS)
@pytest.mark.parametrize("whole", WHOLE_FILES)
def test_every_name_and_variant(tmp_path: Path, whole: str, variant: str | None) -> None:
    """A directory with one whole file, or with shards and their index, is that checkpoint."""
    name = _named(whole, variant)
    _write(tmp_path / "one" / name, dict(_TENSORS))
    (tmp_path / "one" / "config.json").write_text("{}")
    (tmp_path / "one" / "training_args.bin").write_bytes(b"no checkpoint")
    _same(tmp_path / "one")
    shards = _shards(tmp_path / "many", name)
    index = _index(tmp_path / "many", index_of(name), shards)
    assert whole_of(index.name) == name
    for path in (index, index.parent):
        _same(path)
    relative = os.path.relpath(index)
    _same(Path(relative))


def test_names_that_others_give() -> None:
    """The names in the documentation of transformers and diffusers."""
    assert index_of("pytorch_model.bin") == "pytorch_model.bin.index.json"
    assert index_of("x/model.fp16.safetensors") == "x/model.safetensors.index.fp16.json"
    assert index_of("my.model.bin") == "my.model.bin.index.json"
    assert whole_of("model.safetensors.fp16.index.json") == "model.safetensors.fp16"
    assert all(map(is_index, ("model.safetensors.fp16.index.json", "m.bin.index.v1.0.json")))
    assert not any(map(is_index, ("a.index.en.json", "index.json", "model.safetensors.json")))
    assert not any(map(is_whole, ("optimizer.bin", "model.pt", "model-00001-of-00002.safetensors")))
    assert not any(map(is_whole, ("model.bin", "model_1.safetensors", "model.safetensors.bak")))


def test_an_index_of_a_variant_as_diffusers_named_it(tmp_path: Path) -> None:
    """Before 0.28 the variant stood behind the number, and before ``.index``."""
    shards = [tmp_path / f"model-0000{number}-of-00003.fp16.safetensors" for number in (1, 2, 3)]
    for path, name in zip(shards, _TENSORS, strict=True):
        _write(path, {name: _TENSORS[name]})
    _same(_index(tmp_path, "model.safetensors.fp16.index.json", shards))
    _same(tmp_path)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=30),
    st.sampled_from([".bin", ".safetensors", ".fp16.bin"]),
    st.integers(1, 99999),
    st.integers(1, 99999),
)
def test_shard_names_come_back(stem: str, suffix: str, number: int, count: int) -> None:
    """What is written is understood, and the names of the others follow from any of them."""
    name = shard_name(f"m{stem}{suffix}", number, count)
    shard = parse_shard(name)
    assert shard is not None
    assert (shard.number, shard.other(number)) == (number, name)
    other = parse_shard(shard.other(count))
    assert other is not None
    assert (other.of, other.number) == (shard.of, count)


# -- several checkpoints in one directory --------------------------------------------------------


def _make_whole(folder: Path, name: str) -> str:
    _write(folder / name, dict(_TENSORS))
    return name


def _make_sharded(folder: Path, name: str) -> str:
    return _index(folder, index_of(name), _shards(folder, name)).name


def _make_loose(folder: Path, name: str) -> str:
    return _shards(folder, name)[0].name


def _make_metadata(folder: Path, name: str) -> str:
    (folder / ".metadata").touch()
    return ".metadata"


_PAIRS = [
    (one, other)
    for one, other in itertools.permutations(
        [
            (_make_whole, "model.safetensors"),
            (_make_whole, "model.fp16.safetensors"),
            (_make_whole, "pytorch_model.bin"),
            (_make_whole, "consolidated.safetensors"),
            (_make_sharded, "model.safetensors"),
            (_make_sharded, "model.fp16.safetensors"),
            (_make_sharded, "pytorch_model.bin"),
            (_make_loose, "adapter_model.bin"),
            (_make_loose, "odd.pth"),
            (_make_metadata, ""),
        ],
        2,
    )
    # Shards without an index are of no account beside what says that it is a checkpoint.
    if _make_loose not in (one[0], other[0]) or {one[0], other[0]} <= {_make_loose, _make_whole}
]


def test_two_checkpoints_are_refused(tmp_path: Path) -> None:
    """Whichever two they are, both are named: readers differ on which of them counts."""
    for number, ((make, name), (make_other, other)) in enumerate(some(_PAIRS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        first, second = make(folder, name), make_other(folder, other)
        refused(folder, repr(first), repr(second), "Give the path of the one that you mean")


def test_diff_refuses_them_too(tmp_path: Path) -> None:
    """Old shards must not be compared in place of the file that transformers reads."""
    _make_sharded(tmp_path, "pytorch_model.bin")
    _write(tmp_path / "model.safetensors", {name: array + 1 for name, array in _TENSORS.items()})
    for a, b in itertools.permutations([tmp_path, tmp_path / "model.safetensors"]):
        with pytest.raises(tz.FormatError, match=r"several.*bin\.index\.json.*model\.safetensors"):
            tz.tools.diff(a, b, cast=True)


def test_an_index_of_a_whole_file(tmp_path: Path) -> None:
    """They are one checkpoint, as the index says."""
    _write(tmp_path / "model.safetensors", dict(_TENSORS))
    _index(tmp_path, "model.safetensors.index.json", [tmp_path / "model.safetensors"] * 3)
    with tz.lazy_load(tmp_path) as checkpoint:
        assert checkpoint.format == "sharded"
    _same(tmp_path)
    _write(tmp_path / "pytorch_model.bin", dict(_TENSORS))
    refused(tmp_path, "'model.safetensors.index.json', 'pytorch_model.bin'")


def test_the_target_of_a_variant(tmp_path: Path) -> None:
    """Shards of a variant have the names that transformers and diffusers look for."""
    tz.save({name: array.repeat(100) for name, array in _TENSORS.items()}, tmp_path / "m.pt")
    for target in ("model.fp16.safetensors", "model.safetensors.index.fp16.json"):
        folder = tmp_path / target
        folder.mkdir()
        report = tz.convert(tmp_path / "m.pt", folder / target, max_shard_size="3KB")
        assert sorted(os.listdir(folder)) == [
            "model.fp16-00001-of-00002.safetensors",
            "model.fp16-00002-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
        ]
        assert len(report.files) == 3
        assert len(tz.load(folder)) == 3
        shutil.rmtree(folder)


# -- shards without an index ---------------------------------------------------------------------


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin", "odd.fp16.pth"])
def test_all_shards_without_an_index(tmp_path: Path, whole: str) -> None:
    """They are one checkpoint, in the order of their numbers."""
    _shards(tmp_path, whole)
    _same(tmp_path)
    with tz.lazy_load(tmp_path) as checkpoint:
        assert list(checkpoint) == list(_TENSORS)
        assert (checkpoint.format, checkpoint.path) == ("sharded", str(tmp_path))
        assert checkpoint.verify().notes == ()
        again = pickle.loads(pickle.dumps(checkpoint))
        assert list(again) == list(_TENSORS)
        again.close()
    assert tz.tools.why_big(tmp_path).nbytes == sum(
        file.stat().st_size for file in tmp_path.iterdir()
    )
    tz.convert(tmp_path, tmp_path / "out.safetensors")
    assert sorted(tz.load(tmp_path / "out.safetensors")) == sorted(_TENSORS)


@given(data=st.data(), count=st.integers(1, 9))
def test_missing_shards_are_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int
) -> None:
    """Whichever are missing; of many the first, and how many more there are."""
    folder = tmp_path_factory.mktemp("shards")
    names = [shard_name("model.bin", number, count) for number in range(1, count + 1)]
    present = data.draw(st.sets(st.sampled_from(names), min_size=1))
    for name in present:
        tz.save({name: np.zeros(1)}, folder / name)
    missing = [name for name in names if name not in present]
    if not missing:
        assert list(tz.load(folder)) == names
        return
    message = refused(folder, f"{len(missing)} of {count} shards are not in the directory")
    for name in missing[:5]:
        assert repr(name) in message
    assert ("more" in message) is (len(missing) > 5)


def test_a_number_of_shards_that_nobody_has(tmp_path: Path) -> None:
    """A name that lies costs nothing."""
    (tmp_path / "model-00001-of-999999999.bin").touch()
    refused(tmp_path, "999,999,998 of 999,999,999 shards", "'model-00002-of-999999999.bin'")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model-00000-of-00002.bin", "model-00001-of-00002.bin"], "number 0 of 2 by its name"),
        (["model-00001-of-00001.bin", "model-00002-of-00001.bin"], "number 2 of 1 by its name"),
        (["model-1-of-2.bin", "model-01-of-2.bin"], "are both number 1 of 2"),
        (["model-00001-of-00001.bin", "other-00001-of-00001.bin"], "several checkpoints"),
        (["data-00001-of-00001.arrow"], "not one checkpoint"),
    ],
)
def test_odd_sets_of_shards(tmp_path: Path, names: list[str], expected: str) -> None:
    """Numbers that make no sense are said; shards of something else are not looked at."""
    for name in names:
        tz.save({name: np.zeros(1)}, tmp_path / name)
    refused(tmp_path, expected)


def test_a_name_in_two_shards_without_an_index(tmp_path: Path) -> None:
    """Which of them counts nothing says."""
    for name in ("model-00001-of-00002.bin", "model-00002-of-00002.bin"):
        tz.save({"a": np.zeros(1)}, tmp_path / name)
    refused(tmp_path, "'a' is in 'model-00001-of-00002.bin' and in 'model-00002-of-00002.bin'")


def test_names_on_every_system() -> None:
    """A name of an index leads nowhere else, not even on Windows."""
    names = ("c:x.bin", "C:\\x.bin", "\\\\host\\x.bin", "../x.bin", "a/../x.bin", "/x.bin", "..")
    assert not any(map(is_plain_name, names))


# -- what is not a checkpoint --------------------------------------------------------------------


def _zip_of(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


def _unzipped(folder: Path) -> Path:
    tz.save(dict(_TENSORS), folder / "made.pt")
    with zipfile.ZipFile(folder / "made.pt") as archive:
        archive.extractall(folder)
    return folder / "made"


def _in_folder_above(folder: Path) -> Path:
    (folder / "out").mkdir()
    return _unzipped(folder / "out").parent


def _pickle_alone(folder: Path) -> Path:
    return Path(shutil.copy(_unzipped(folder) / "data.pkl", folder / "alone.pt"))


def _tar_around(folder: Path) -> Path:
    tz.save(dict(_TENSORS), folder / "model.pt")
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(folder / "model.pt", "run/model.pt")
    return folder / "a.tar"


_NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an unzipped checkpoint": (_unzipped, "zip -0 -r new-made.pt made"),
    "its folder of storages": (lambda folder: _unzipped(folder) / "data", "made.pt made"),
    "its pickle": (lambda folder: _unzipped(folder) / "data.pkl", "made.pt made"),
    "one of its storages": (lambda folder: _unzipped(folder) / "data" / "0", "made.pt made"),
    "the folder above it": (_in_folder_above, "a directory around 'made'"),
    "its pickle alone": (_pickle_alone, "the pickle of a checkpoint alone"),
    "a zip around a checkpoint": (lambda folder: _zip_of(folder / "a.zip", {"model.pt": b"PK"}),
     "a zip archive around 'model.pt', not a checkpoint itself. Extract it first."),
    "a zip around two": (
     lambda folder: _zip_of(folder / "a.zip", {"x/a.bin": b"", "x/b.safetensors": b""}),
     "around 'x/a.bin', 'x/b.safetensors', not a checkpoint itself. Extract them first."),
    "a zip of the folder above": (lambda folder: _zip_of(folder / "a.zip", {"x/y/data.pkl": b"",
     "x/y/version": b""}), "lie in 'x/y'; a single directory at the top was expected"),
    "a tar file around a checkpoint": (_tar_around, "a tar file around 'run/model.pt'"),
    "a zip of anything": (lambda folder: _zip_of(folder / "a.zip", {"x/a.txt": b""}),
     "a zip archive without data.pkl is not a checkpoint; it has 'a.txt'"),
    "a broken checkpoint": (
     lambda folder: _zip_of(folder / "a.pt", {"x/data.pkl": b"", "x/a.pt": b""}), "version"),
}  # fmt: skip


@pytest.mark.parametrize("name", _NO_CHECKPOINTS)
def test_what_is_not_a_checkpoint(tmp_path: Path, name: str) -> None:
    make, expected = _NO_CHECKPOINTS[name]
    refused(make(tmp_path), expected)


@pytest.mark.skipif(shutil.which("zip") is None, reason="needs zip")
def test_the_command_that_is_told(tmp_path: Path) -> None:
    """It makes the checkpoint whole again, and does not touch what lies beside it."""
    folder = _unzipped(tmp_path)
    before = (tmp_path / "made.pt").read_bytes()
    command = refused(folder).partition("without compression: ")[2]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    _same(tmp_path / "new-made.pt")
    assert (tmp_path / "made.pt").read_bytes() == before


@pytest.mark.parametrize("names", [("m/model.pkl",), ("a/b.txt", "m/model.pt", "data.pkl/x")])
def test_an_archive_of_torch_package(tmp_path: Path, names: tuple[str, ...]) -> None:
    """It has a name of its own: it holds code."""
    records = (*names, ".data/extern_modules", ".data/version", "byteorder")
    path = _zip_of(tmp_path / "p.pt", {f"package/{name}": b"" for name in records})
    with pytest.raises(UnsupportedError, match=r"p\.pt: an archive of torch\.package"):
        tz.load(path)
