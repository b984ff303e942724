"""Edited files in torch: plain, by mmap, and with the places of storages worked out."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.comparing import assert_equal_in_torch
from tests.random_trees import random_tree
from tests.tools.test_edit import records, write_sparse
from tests.torch_oracle import asks_torch, torch_settings
from tests.trees import CASES, TORCH_ONLY
from torchzip.container.zip_reader import ZipReader
from torchzip.files.source import FileSource
from torchzip.limits import Limits
from torchzip.tools import edit

pytestmark = asks_torch(":UserWarning", ":FutureWarning", ":DeprecationWarning")

ALL = {**CASES, **TORCH_ONLY}
_SEEDS = 60


@contextmanager
def calculating() -> Iterator[None]:
    """Let torch work out where storages lie."""
    config = importlib.import_module("torch.utils.serialization.config")
    with config.patch("load.calculate_storage_offsets", True):
        yield


def three_ways(torch: Any, path: Path, **options: Any) -> Iterator[Any]:
    """Yield what torch reads."""
    yield torch.load(path, **options)
    yield from mapped(torch, path, **options)


def mapped(torch: Any, path: Path, **options: Any) -> Iterator[Any]:
    """Yield what torch reads by mmap; a large file would not fit into memory."""
    yield torch.load(path, mmap=True, **options)
    with calculating():
        yield torch.load(path, mmap=True, **options)


def _flat(torch: Any) -> dict[str, Any]:
    """Return tensors of many sizes, an empty one and a tie."""
    made = {f"t{index}": torch.full((index * 37 % 200 + 1,), float(index)) for index in range(14)}
    made["t5"] = torch.empty(0)
    made["tie of t2"] = made["t2"]
    made["view of t3"] = made["t3"][1:4]
    return made


@pytest.mark.parametrize("alignment", [1, 64, 4096])
@pytest.mark.parametrize(
    ("dropped", "in_order"),
    [
        ([], True),
        (["t0"], False),
        (["t1"], False),
        (["t7"], False),
        (["t13"], True),
        (["t13", "t12"], True),
        (["t5"], False),
        (["t2"], False),
        (["tie of t2"], True),
        (["t2", "tie of t2"], False),
        (["t3"], False),
        (["t0", "t13"], False),
        ([f"t{index}" for index in range(14)], False),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_drops(torch: Any, path: Path, dropped: list[str], in_order: bool, alignment: int) -> None:
    """Where storages no longer follow one another, torch is told to look at each."""
    tree = _flat(torch)
    with torch_settings(torch, alignment):
        torch.save(tree, path)
    edit(path, drop=dropped, rename=[("^t1", "u1")])
    assert (".format_version" in records(path)) == in_order
    expected = {
        name.replace("t1", "u1") if name.startswith("t1") else name: value
        for name, value in tree.items()
        if name not in dropped
    }
    for loaded in three_ways(torch, path):
        assert_equal_in_torch(torch, loaded, expected)
    edit(path, rename=[("^u1", "t1")], set_values={"x": [1, 2.5, None, True, {"a": "b"}]})
    expected = {name: value for name, value in tree.items() if name not in dropped}
    for loaded in three_ways(torch, path):
        assert loaded.pop("x") == [1, 2.5, None, True, {"a": "b"}]
        assert_equal_in_torch(torch, loaded, expected)


@pytest.mark.parametrize("name", ALL)
def test_each_kind_of_value(torch: Any, path: Path, name: str) -> None:
    """What is beside an edited item stays what it was."""
    tree = ALL[name](torch)
    torch.save({"case": tree, "other": torch.ones(3), "last": torch.zeros(2)}, path)
    expected = torch.load(path, weights_only=False)["case"]
    assert edit(path, rename={"case": "kept"}, drop="other").how == "appended"
    for loaded in three_ways(torch, path, weights_only=False):
        assert list(loaded) == ["kept", "last"]
        assert_equal_in_torch(torch, loaded["kept"], expected)


@pytest.mark.parametrize("seed", range(_SEEDS))
def test_random_trees(torch: Any, path: Path, seed: int) -> None:
    """The same for random ones, in turn edited and rewritten."""
    rng = random.Random(seed)
    tree = random_tree(torch, rng, size=30)
    torch.save({"before": torch.ones(rng.randrange(4)), "tree": tree}, path)
    expected = torch.load(path, weights_only=False)["tree"]
    edit(path, rename={"tree": "t"})
    if rng.random() < 0.5:
        edit(path, drop="before")
    if rng.random() < 0.3:
        edit(path, compact=True)
    edit(path, set_values={"step": seed})
    for loaded in three_ways(torch, path, weights_only=False):
        assert loaded["step"] == seed
        assert_equal_in_torch(torch, loaded["t"], expected)


def test_marks(torch: Any, path: Path) -> None:
    """Gradients and devices are as torch has them."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save({"state": model.state_dict(), "parameters": list(model.parameters())}, path)
    edit(path, requires_grad=[("parameters.0", False), ("state.*", True)])
    for loaded in three_ways(torch, path):
        gradients = [each.requires_grad for each in loaded["parameters"]]
        assert gradients == [False, True, True, True]
        wanted = {name: value.is_floating_point() for name, value in loaded["state"].items()}
        assert {name: each.requires_grad for name, each in loaded["state"].items()} == wanted
        assert all(type(each) is torch.nn.Parameter for each in loaded["parameters"])
    edit(path, requires_grad=False, device="cuda:1")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path)
    for loaded in three_ways(torch, path, map_location="cpu"):
        assert not any(each.requires_grad for each in loaded["parameters"])
        assert_equal_in_torch(
            torch, loaded["state"]["0.weight"], model.state_dict()["0.weight"].clone()
        )
    seen = set()

    def note(storage: Any, location: str) -> Any:
        seen.add(location)
        return storage

    torch.load(path, map_location=note)
    assert seen == {"cuda:1"}
    edit(path, device="cpu")
    torch.load(path)


def test_state_dict_goes_into_its_module(torch: Any, path: Path) -> None:
    """``_metadata`` is there, and load_state_dict is strict."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    wrapped = torch.nn.ModuleDict({"module": model})
    torch.save(wrapped.state_dict(), path)
    edit(path, rename=[(r"^module\.", "")])
    loaded = torch.load(path)
    assert loaded._metadata == wrapped.state_dict()._metadata
    model.load_state_dict(loaded)


@pytest.mark.long
def test_past_4_gib(torch: Any, path: Path) -> None:
    """The appended records lie past 4 GiB, and so do storages; torch reads them in all ways."""
    write_sparse(path, 5, 1_000_000_000)
    if path.stat().st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    with path.open("r+b") as file:
        archive = ZipReader(FileSource(path), Limits())
        for index in range(5):
            file.seek(archive.data_offset(f"data/{index}"))
            file.write(memoryview(torch.full((2,), float(index)).numpy()))
    edit(path, rename=[("^layers", "blocks")])
    assert ".format_version" in records(path)
    for loaded in mapped(torch, path):
        found = [loaded[f"blocks.{index}.weight"][:3].tolist() for index in range(5)]
        assert found == [[float(index)] * 2 + [0.0] for index in range(5)]
    del loaded
    edit(path, drop=["blocks.0.weight", "blocks.1.weight", "blocks.2.weight", "blocks.3.weight"])
    for loaded in three_ways(torch, path):
        assert loaded["blocks.4.weight"][:3].tolist() == [4.0, 4.0, 0.0]
