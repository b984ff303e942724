"""Shards out and in, and what `map` makes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import torchzip as tz
from tests.comparing import assert_same_tree


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a checkpoint of six tensors of 4,000 bytes, two of them tied, and a small one."""
    weights = {f"layers.{i}.weight": np.arange(1000, dtype=np.float32) + i for i in range(5)}
    weights["head"] = weights["layers.1.weight"]
    path = tmp_path / "model.pt"
    tz.save(weights | {"bias": np.ones(3, np.float32)}, path)
    return path


@pytest.mark.parametrize(
    ("dst", "names", "index"),
    [
        ("out/", "model-0000{}-of-00003.safetensors", "model.safetensors.index.json"),
        ("w.safetensors", "w-0000{}-of-00003.safetensors", "w.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model-0000{}-of-00003.bin", "pytorch_model.bin.index.json"),
        ("m.pt.index.json", "m-0000{}-of-00003.pt", "m.pt.index.json"),
    ],
)
def test_shards_and_back(tmp_path: Path, model: Path, dst: str, names: str, index: str) -> None:
    """Each shard keeps to the size, the index has every tensor, and a merge gives all back."""
    target = f"{tmp_path}/to/{dst}"
    (tmp_path / "to").mkdir()
    report = tz.convert(model, target, max_shard_size=9000)
    folder = Path(report.target).parent
    expected = [names.format(number) for number in (1, 2, 3)]
    assert [os.path.basename(file) for file in report.files] == [*expected, index]
    assert sorted(os.listdir(folder)) == sorted([*expected, index])
    assert report.nbytes == sum(os.path.getsize(file) for file in report.files)
    content = json.loads((folder / index).read_text())
    assert content["metadata"]["total_size"] == 20_012
    assert set(content["weight_map"].values()) == set(expected)
    is_zip = "safetensors" not in names
    assert set(content["weight_map"]) == set(tz.load(model)) - (set() if is_zip else {"head"})
    for file in report.files[:-1]:
        held = tz.load(file)
        assert {name for name, at in content["weight_map"].items() if at == Path(file).name} == set(
            held
        )
        assert len({array.ctypes.data for array in held.values()}) <= 2
        if not is_zip:
            assert load_file(file).keys() == held.keys()
    for back in ("back.pt", "back.safetensors"):
        tz.convert(report.target, tmp_path / back)
    merged = tz.load(tmp_path / "back.pt")
    assert_same_tree(tz.load(tmp_path / "back.pt"), tz.load(model))
    assert np.shares_memory(merged["head"], merged["layers.1.weight"])
    tz.convert(tmp_path / "back.safetensors", tmp_path / "again.pt")
    assert_same_tree(tz.load(tmp_path / "again.pt"), tz.load(model))
    with tz.lazy_load(report.target) as ckpt:
        assert ckpt.verify().notes == ()


def test_no_shards_where_one_file_is_enough(tmp_path: Path, model: Path) -> None:
    """As transformers does: a plain file, unless an index is asked for."""
    (tmp_path / "d").mkdir()
    report = tz.convert(model, tmp_path / "d", max_shard_size="1MB")
    assert os.listdir(tmp_path / "d") == ["model.safetensors"]
    assert report.target == str(tmp_path / "d" / "model.safetensors")
    report = tz.convert(model, tmp_path / "d" / "x.safetensors.index.json")
    assert [os.path.basename(file) for file in report.files] == [
        "x-00001-of-00001.safetensors", "x.safetensors.index.json",
    ]  # fmt: skip


def test_a_tensor_larger_than_a_shard(tmp_path: Path, model: Path) -> None:
    """It has one for itself."""
    report = tz.convert(model, tmp_path / "s.bin", max_shard_size="1KB")
    assert len(report.files) == 7
    assert_same_tree(tz.load(Path(report.target)), tz.load(model))


def test_all_or_nothing(tmp_path: Path, model: Path) -> None:
    """No file is overwritten unasked, whichever; a shard that cannot be written leaves none."""
    taken = tmp_path / "s-00002-of-00003.bin"
    taken.write_bytes(b"mine")
    with pytest.raises(FileExistsError) as caught:
        tz.convert(model, tmp_path / "s.bin", max_shard_size=9000)
    assert caught.value.filename == str(taken)
    assert sorted(os.listdir(tmp_path)) == ["model.pt", taken.name]
    taken.unlink()
    taken.mkdir()
    with pytest.raises(OSError, match="directory"):
        tz.convert(model, tmp_path / "s.bin", max_shard_size=9000, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["model.pt", taken.name]


def test_a_whole_file_gives_way_to_shards(tmp_path: Path, model: Path) -> None:
    """Readers would go on taking the old file for the checkpoint."""
    target = tmp_path / "model.safetensors"
    tz.convert(model, target)
    with pytest.raises(FileExistsError):
        tz.convert(target, target, max_shard_size=9000)
    tz.convert(target, target, max_shard_size=9000, overwrite=True)
    assert not target.exists()
    tz.convert(tmp_path / "model.safetensors.index.json", tmp_path / "back.pt")
    assert_same_tree(tz.load(tmp_path / "back.pt"), tz.load(model))


def test_an_index_that_would_hide_a_whole_file(tmp_path: Path, model: Path) -> None:
    """In a directory readers look for the index first: an old one is not left beside a new file."""
    folder = f"{tmp_path / 'out'}/"
    tz.convert(model, folder, max_shard_size=5_000)
    before = sorted(os.listdir(folder))
    with pytest.raises(OSError, match="would hide the new file") as caught:
        tz.convert(model, folder, rename=[("^", "new.")], overwrite=True)
    assert caught.value.filename.endswith("model.safetensors.index.json")
    assert sorted(os.listdir(folder)) == before


def test_a_directory_in_the_place_of_a_whole_file(tmp_path: Path, model: Path) -> None:
    """It cannot give way to shards, which is found before there are any."""
    (tmp_path / "m.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        tz.convert(model, tmp_path / "m.safetensors.index.json", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "model.pt"]


def test_links_that_lead_two_shards_to_one_place(tmp_path: Path) -> None:
    """One would be lost; the same goes for a link to the whole file, which is taken away."""
    model = tmp_path / "model.pt"
    tz.save({"a": np.ones(100), "b": np.zeros(100)}, model)
    blob = tmp_path / "blob"
    blob.write_bytes(b"old")
    names = [f"m-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        (tmp_path / name).symlink_to(blob)
    with pytest.raises(FileExistsError, match="leads to the same file") as caught:
        tz.convert(model, tmp_path / "m.safetensors", max_shard_size=800, overwrite=True)
    assert caught.value.filename == str(tmp_path / names[1])
    assert blob.read_bytes() == b"old"
    for name in names:
        (tmp_path / name).unlink()
    blob.rename(tmp_path / "m.safetensors")
    (tmp_path / names[0]).symlink_to("m.safetensors")
    with pytest.raises(FileExistsError, match="leads here"):
        tz.convert(model, tmp_path / "m.safetensors", max_shard_size=800, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [names[0], "m.safetensors", "model.pt"]


def test_metadata_of_safetensors_is_kept(tmp_path: Path) -> None:
    """A header's texts go along to safetensors, in shards as well; a .pt has no place for them."""
    from safetensors.numpy import save_file

    arrays = {"a": np.ones(1000, np.float32), "b": np.ones(1000, np.float32)}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"title": "größe", "format": "pt"})
    for options in ({}, {"max_shard_size": 5000}):
        report = tz.convert(tmp_path / "m.safetensors", tmp_path / "o.safetensors", **options)  # type: ignore[arg-type]
        with tz.lazy_load(report.target) as ckpt:
            assert ckpt.metadata["title"] == "größe"
        assert report.lost == ()
        os.unlink(report.files[0])
    report = tz.convert(tmp_path / "m.safetensors", tmp_path / "o.pt")
    assert report.lost == ("'title' in the metadata of the file",)


# -- map -----------------------------------------------------------------------------------------


def test_map(tmp_path: Path, model: Path) -> None:
    """Fusing, splitting, passing on and leaving out; dtype and rename come after."""
    waiting: list[np.ndarray[Any, Any]] = []

    def change(name: str, tensor: tz.LazyTensor) -> Iterator[tuple[str, Any]]:
        if name in ("layers.0.weight", "layers.1.weight"):
            waiting.append(tensor.numpy())
            if len(waiting) == 2:
                yield "fused", np.concatenate(waiting)
        elif name == "layers.2.weight":
            yield "left", tensor[:500]
            yield "right", tensor[500:]
        elif name != "bias":
            yield name, tensor

    for suffix in (".pt", ".safetensors"):
        waiting.clear()
        report = tz.convert(
            model, tmp_path / f"o{suffix}", map=change, dtype=[("fused", "float16")],
            rename={"left": "first"},
        )  # fmt: skip
        loaded = tz.load(tmp_path / f"o{suffix}")
        assert set(loaded) == {
            "fused",
            "first",
            "right",
            "layers.3.weight",
            "layers.4.weight",
            "head",
        }
        assert loaded["fused"].dtype == np.float16
        source = tz.load(model)
        fused = np.concatenate([source["layers.0.weight"], source["layers.1.weight"]])
        assert np.array_equal(loaded["fused"], fused.astype(np.float16))
        assert np.array_equal(loaded["first"], source["layers.2.weight"][:500])
        assert np.array_equal(loaded["head"], source["head"])
        assert report.lost == ()
        os.unlink(tmp_path / f"o{suffix}")
        assert os.listdir(tmp_path) == ["model.pt"]


def test_map_keeps_what_it_makes_tied(tmp_path: Path, model: Path) -> None:
    """An array that comes under two names is one storage; so are tensors that are passed on."""

    def twice(name: str, tensor: tz.LazyTensor) -> list[tuple[str, Any]]:
        array = tensor.numpy() + 1
        return [(f"{name}.a", array), (f"{name}.b", array), (f"{name}.c", tensor)]

    tz.convert(model, tmp_path / "o.pt", map=twice, dtype="bfloat16")
    loaded = tz.load(tmp_path / "o.pt")
    assert loaded["bias.a"].dtype == ml_dtypes.bfloat16
    assert np.shares_memory(loaded["bias.a"], loaded["bias.b"])
    assert np.shares_memory(loaded["head.c"], loaded["layers.1.weight.c"])
    assert not np.shares_memory(loaded["head.a"], loaded["layers.1.weight.a"])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([("x", [1, 2])], TypeError),
        ([("x", np.array(["a"]))], TypeError),
        ([(5, np.ones(2))], TypeError),
        (["x"], TypeError),
        ([5], TypeError),
        ([("x", np.ones(2)), ("x", np.ones(2))], ValueError),
    ],
)
def test_map_that_gives_something_else(
    tmp_path: Path, model: Path, given: Any, error: type[Exception]
) -> None:
    """It is the caller's mistake, which names the tensor, and nothing is left."""
    with pytest.raises(error, match="map gives"):
        tz.convert(model, tmp_path / "o.pt", map=lambda name, tensor: given)
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("given", [None, 5])
def test_map_that_gives_no_pairs(tmp_path: Path, model: Path, given: Any) -> None:
    """As a function does that forgets its return."""
    with pytest.raises(TypeError, match=r"map gives .* for 'layers"):
        tz.convert(model, tmp_path / "o.pt", map=lambda name, tensor: given)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_map_that_fails(tmp_path: Path, model: Path) -> None:
    """Its exception comes through, and what it had made before is gone."""

    def fail(name: str, tensor: tz.LazyTensor) -> Iterator[tuple[str, Any]]:
        yield name, tensor.numpy()
        if name == "layers.3.weight":
            raise KeyError(name)

    with pytest.raises(KeyError):
        tz.convert(model, tmp_path / "o.pt", map=fail)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_map_says_what_is_lost(tmp_path: Path) -> None:
    """The output is a dict of what it gives; everything else is listed."""
    tz.save({"w": np.ones(2), "epoch": 3}, tmp_path / "m.pt")
    report = tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", map=lambda n, t: [(n, t)])
    assert report.lost == ("epoch",)
    assert list(tz.load(tmp_path / "o.pt")) == ["w"]


def test_map_into_a_new_directory(tmp_path: Path, model: Path) -> None:
    """What it makes is kept in the directory until then, and nothing of it is left."""
    tz.convert(model, f"{tmp_path}/new/", map=lambda n, t: [(n, t.numpy() * 2)])
    assert os.listdir(tmp_path / "new") == ["model.safetensors"]
    assert sorted(os.listdir(tmp_path)) == ["model.pt", "new"]
