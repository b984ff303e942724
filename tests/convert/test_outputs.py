"""What `convert` asks of a format that it writes: one class of tests that every output passes."""

from __future__ import annotations

import dataclasses
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import torchzip as tz
from tests.convert.test_run import NeighbourProcess, make_pieces_small, tree
from tests.saved import quiet
from torchzip.checkpoint.walk import ways
from torchzip.cli import converting
from torchzip.convert import run
from torchzip.convert.outputs.base import Output
from torchzip.convert.outputs.registry import OUTPUTS, output_of
from torchzip.convert.plan import Plan, make_plan
from torchzip.convert.rules import Rules
from torchzip.convert.targets import parse_target
from torchzip.dtypes import DTYPES
from torchzip.tensors.casts import CastStorage


class Planned(NamedTuple):
    """A plan that was carried out, and the storages of each of its files as bytes."""

    plan: Plan
    contents: list[list[bytes]]


def _tree() -> dict[str, Any]:
    """Return a tree of dtypes that every output has."""
    return {
        name: value.view("i1") if isinstance(value, np.ndarray) and value.dtype == "u1" else value
        for name, value in tree(2).items()
    }


class OutputContract:
    """What `torchzip.convert.outputs.base.Output` promises, shown for one output."""

    @pytest.fixture(autouse=True)
    def _small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make_pieces_small(monkeypatch)

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Write a checkpoint with storages of all sizes, ties, views and a plain value."""
        path = tmp_path / "m.pt"
        tz.save(_tree() | {"scalar": np.full((1,), 7.5), "empty": np.ones((0, 3))}, path)
        return path

    def read(self, path: Path) -> dict[str, Any]:
        """Return the arrays of a file by their names, as its readers get them."""
        with tz.lazy_load(path) as checkpoint:
            return {name: tensor.numpy() for name, tensor in checkpoint.items()}

    def carry_out(self, source: Path, target: Path, size: int | None = None) -> Planned:
        """Plan a conversion to float16, which reads nothing, and run it."""
        with tz.lazy_load(source) as checkpoint:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("torchzip.tensors.storage.SpanStorage.read_into", None)
                rules = Rules(dtype="float16")
                plan = make_plan(checkpoint, parse_target(target), rules, max_shard_nbytes=size)
            run.run(plan)
            contents = [
                [bytes(storage.read(0, storage.nbytes)) for storage in file.storages]
                for file in plan.files
            ]
        return Planned(plan, contents)

    def test_suffixes(self, output: type[Output]) -> None:
        """Each leads to this output and to no other, whatever its case."""
        assert output.suffixes
        for suffix in output.suffixes:
            assert suffix == suffix.lower()
            assert suffix.startswith(".")
            assert [suffix in other.suffixes for other in OUTPUTS].count(True) == 1
            assert output_of(suffix.upper()) is output
            assert parse_target(f"a{suffix}").output is output

    @pytest.mark.parametrize("size", [None, 20_000])
    def test_the_plan_knows_every_place(
        self, output: type[Output], source: Path, tmp_path: Path, size: int | None
    ) -> None:
        """Each file has the planned size; each storage is in its place, on its elements."""
        plan, contents = self.carry_out(source, tmp_path / f"o{output.suffixes[0]}", size)
        assert (len(plan.files) > 1) == (plan.index is not None) == (size is not None)
        for file, expected in zip(plan.files, contents, strict=True):
            data = Path(file.path).read_bytes()
            assert len(data) == file.nbytes
            at = 0
            for storage, start, content in zip(file.storages, file.starts, expected, strict=True):
                assert start >= at
                if isinstance(storage, CastStorage):
                    assert start % DTYPES[storage.target].itemsize == 0
                assert data[start : start + len(content)] == content
                at = start + len(content)

    @pytest.mark.parametrize("size", [None, 20_000])
    def test_every_name_is_somewhere(
        self, output: type[Output], source: Path, tmp_path: Path, size: int | None
    ) -> None:
        """A tensor is read back from the one file that the plan names, or is a tie of one there."""
        plan, _ = self.carry_out(source, tmp_path / f"o{output.suffixes[0]}", size)
        found: dict[str, Any] = {}
        for file in plan.files:
            made = self.read(Path(file.path))
            assert not found.keys() & made.keys()
            assert all(row.file in ("", file.path) for row in plan.tensors if row.name in made)
            found |= made
        with tz.lazy_load(source) as checkpoint:
            left_out = {line.partition(":")[0] for line in plan.lost if "no elements" in line}
            names = [name for name in checkpoint if name not in left_out]
            assert [row.name for row in plan.tensors] == names
            assert bool(plan.tied) != output.has_ties
            assert found.keys() == set(names) - plan.tied.keys()
            for row in plan.tensors:
                values = found[plan.tied.get(row.name, row.name)]
                expected = checkpoint[row.name].numpy()
                if row.to_dtype == "float16":  # torch rounds to float32 on the way
                    expected = expected.astype("float32").astype("float16")
                assert (values.dtype, values.shape) == (expected.dtype, row.shape)
                assert values.tobytes() == expected.tobytes()

    @pytest.mark.parametrize(
        "rules",
        [
            {"rename": {"net.base": "net.first", "tuple.1.w": "tuple.1.v", "array": "numbers"}},
            {"rename": {"list.0": "list.1"}},
            {"rename": [("^", "all.")]},
            {"exclude": ["net.*", "tuple.1.w"]},
            {"dtype": [("*.base", "float32"), ("*ied", "float64"), ("*", "float16")]},
            {"dtype": "float16", "exclude": "*.0", "rename": [("base", "basis")]},
        ],
        ids=str,
    )
    def test_planning_leaves_the_checkpoint(
        self, output: type[Output], tmp_path: Path, rules: dict[str, Any]
    ) -> None:
        """Its root has the same objects in the same places, whatever the rules; so a plan again."""
        net = OrderedDict(_tree())
        vars(net)["_metadata"] = {"version": 1}
        numbers = np.arange(9.0)
        root = {
            "net": net,
            "tuple": ({"step": 1}, {"w": numbers}),
            "list": [numbers, {}, np.ones(3)],
        }
        tz.save(root, tmp_path / "m.pt")

        def look(root: Any) -> list[Any]:
            return [(str(way), id(value), key_order(value)) for way, value in ways(root)]

        def key_order(value: Any) -> Any:
            return list(value) if isinstance(value, dict) else None

        with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
            checkpoint.root["array"] = np.arange(3.0)  # as numpy pickles one
            before, plans = look(checkpoint.root), []
            for _ in range(2):
                target = parse_target(tmp_path / f"o{output.suffixes[0]}")
                plan = make_plan(checkpoint, target, Rules(**rules))
                plans.append((plan.tensors, plan.lost, plan.files[0].head))
                assert look(checkpoint.root) == before
            assert plans[0] == plans[1]

    def test_same_input_same_bytes(
        self, output: type[Output], source: Path, tmp_path: Path
    ) -> None:
        """Once more, by another process, and with no plan from outside."""
        made = []
        for number, executor in enumerate((None, None, NeighbourProcess())):
            (tmp_path / str(number)).mkdir()
            target = tmp_path / str(number) / f"o{output.suffixes[0]}"
            report = tz.convert(source, target, executor=executor)
            assert (report.format, report.files) == (output.format, (str(target),))
            assert report.nbytes == target.stat().st_size
            made.append(target.read_bytes())
        assert made[0] == made[1] == made[2]

    @pytest.mark.parametrize("size", [None, "20KB"])
    def test_a_dry_run_gives_the_report(
        self, output: type[Output], source: Path, tmp_path: Path, size: str | None
    ) -> None:
        """Of the run that follows, but for what only the numbers show; nothing is written."""
        target = tmp_path / f"o{output.suffixes[0]}"

        def options() -> dict[str, Any]:
            rules = {"dtype": "float16", "exclude": "layer.7", "rename": {"base": "first"}}
            return rules | {"max_shard_size": size, "jobs": 2}

        calls: list[int] = []
        told = tz.convert(
            source,
            target,
            dry_run=True,
            progress=lambda done, total: calls.append(done),
            **options(),
        )
        assert not calls
        assert list(tmp_path.iterdir()) == [source]
        with quiet():  # of what is out of range
            done = tz.convert(source, target, **options())
        assert told == dataclasses.replace(done, overflowed={})
        assert [os.path.getsize(file) for file in told.files] == list(told.file_nbytes)
        assert tz.convert(source, target, dry_run=True, **options()) == told  # it is there now

    @pytest.mark.parametrize("name", ["base", "layer.3"])
    def test_damage_of_the_source_shows(
        self, output: type[Output], tmp_path: Path, name: str
    ) -> None:
        """Of large storages and of small ones; nothing is left then."""
        source = tmp_path / "m.pt"
        small, large = np.arange(100.0), np.arange(9000.0) + 0.5
        tz.save({"base": large, "layer.3": small}, source)
        needle = (large if name == "base" else small)[40:60].tobytes()
        data = source.read_bytes()
        assert data.count(needle) == 1
        source.write_bytes(data.replace(needle, bytes(len(needle))))
        with pytest.raises(tz.TorchZipError, match="CRC"):
            tz.convert(source, tmp_path / f"o{output.suffixes[0]}", dtype="float32")
        assert list(tmp_path.iterdir()) == [source]

    def test_what_is_out_of_range_is_counted(self, output: type[Output], tmp_path: Path) -> None:
        """By the names of tensors, whatever storages they are in."""
        tz.save({"a": np.full(5000, 1e9), "b": np.ones(7), "c": np.array([1e9])}, tmp_path / "m.pt")
        with pytest.warns(UserWarning, match="out of the range"):
            report = tz.convert(
                tmp_path / "m.pt", tmp_path / f"o{output.suffixes[0]}", dtype="float16"
            )
        assert report.overflowed == {"a": 5000, "c": 1}


class TestRegistered(OutputContract):
    """The outputs of torchzip."""

    @pytest.fixture(params=list(OUTPUTS), ids=lambda output: str(output.format))
    def output(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def test_help_and_docstring_have_all_suffixes() -> None:
    for text in (tz.convert.__doc__, converting.COMMAND.description):
        words = {word.rstrip(".,)") for word in (text or "").split()}
        assert [word for each in OUTPUTS for word in each.suffixes if word not in words] == []
