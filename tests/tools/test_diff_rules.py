"""Differences of a part of two checkpoints, within a tolerance, and of a file by name."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.cli.main import main
from torchzip.container.gguf import build_header
from torchzip.dtypes import BLOCKS
from torchzip.tools import diff, report


def saved(folder: Path, *trees: Any) -> list[Path]:
    paths = [folder / f"{number}.pt" for number in range(len(trees))]
    for path, tree in zip(paths, trees, strict=True):
        tz.save(tree, path)
    return paths


def test_a_part(tmp_path: Path) -> None:
    """Globs choose among tensors and values; a container has a name too."""
    one = {"model": {"a": np.ones(3), "b": np.ones(2)}, "opt": {"a": np.zeros(3), "lr": 0.1}}
    other = {"model": {"a": np.ones(3), "b": np.zeros(2)}, "opt": {"a": np.ones(3), "lr": 0.2}}
    a, b = saved(tmp_path, one, other)
    found = diff(a, b)
    assert [change.before.name for change in found.changed] == ["model.b", "opt.a"]
    assert [change.name for change in found.values] == ["opt.lr"]
    found = diff(a, b, exclude="opt")
    assert [change.before.name for change in found.changed] == ["model.b"]
    assert (found.values, found.equal) == ((), 1)
    found = diff(a, b, include=["opt.*"], tensors_only=True)
    assert ([change.before.name for change in found.changed], found.values) == (["opt.a"], ())
    assert diff(a, b, include="model.a").is_equal
    with pytest.raises(ValueError, match="nothing is left to compare: the include rule 'x'"):
        diff(a, b, include="x")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "u2", "c8", "c16"])
def test_tolerance(tmp_path: Path, dtype: str) -> None:
    """Numbers are close as numpy says, and the largest distance in proportion is told."""
    rng = np.random.default_rng(3)
    one = (rng.standard_normal(3000) * 100).astype(dtype if dtype[0] != "u" else "i4")
    one = np.abs(one).astype(dtype) if dtype[0] == "u" else one
    other = one.copy()
    other[::7] += np.asarray(3, dtype)
    a, b = saved(tmp_path, {"w": one}, {"w": other})
    wide = np.complex128 if dtype[0] == "c" else np.float64
    x, y = one.astype(wide), other.astype(wide)
    for atol, rtol in ((0, 0), (0, 0.05), (2, 0.01), (4, 0), (0, 10)):
        found = diff(a, b, atol=atol, rtol=rtol)
        far = ~np.isclose(x, y, rtol=rtol, atol=atol) & (x != y)
        if not far.any():
            assert (found.is_equal, found.close) == (True, ("w",))
            continue
        values = found.changed[0].values
        assert values is not None
        assert (values.count, values.first) == (far.sum(), (int(np.argmax(far)),))
        shares = (np.abs(x - y)[far & (y != 0)] / np.abs(y)[far & (y != 0)]).max()
        assert values.max_rel == pytest.approx(shares)
        assert found.close == ()


def test_infinities_and_nans_are_close_to_nothing(tmp_path: Path) -> None:
    """Whatever the tolerance; they are equal to themselves."""
    one = np.array([np.inf, np.inf, np.nan, 1.0, np.inf])
    a, b = saved(tmp_path, {"w": one}, {"w": np.array([np.inf, 1.0, np.nan, np.nan, -np.inf])})
    values = diff(a, b, atol=1e9, rtol=1e9).changed[0].values
    assert values is not None
    assert (values.count, values.nans, values.first) == (3, 1, (1,))


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), True, "1"])
def test_wrong_tolerances(tmp_path: Path, wrong: Any) -> None:
    """They are refused before a file is opened."""
    with pytest.raises((TypeError, ValueError), match="atol"):
        diff("no", "such", atol=wrong)


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "gguf"])
def test_a_state_dict_and_its_tensors_by_name(tmp_path: Path, suffix: str) -> None:
    """Equal, where another package has left out what such a file has no place for."""
    state = OrderedDict({"a.weight": np.ones((2, 3), "f4"), "b": np.zeros(3, "f4")})
    vars(state)["_metadata"] = OrderedDict({"": {"version": 1}, "a": {"version": 1}})
    (path,) = saved(tmp_path, state)
    plain = tmp_path / f"plain.{suffix}"
    tz.convert(dict(state), plain)
    assert diff(path, plain).is_equal
    assert diff(plain, path).is_equal
    assert main(["diff", str(path), str(plain)]) == 0
    tz.save(dict(state), tmp_path / "other.pt")
    assert not diff(path, tmp_path / "other.pt").is_equal  # both have a place for it


def coded(path: Path, codes: dict[str, tuple[str, int]]) -> Path:
    """Write a .gguf of tensors of (2, 256) by their types, all bytes of which are one number."""
    head, begins, nbytes = build_header(
        {}, [(name, block, (2, 256)) for name, (block, _) in codes.items()]
    )
    data = bytearray(head.ljust(nbytes, b"\0"))
    for begin, (block, number) in zip(begins, codes.values(), strict=True):
        size = 512 // BLOCKS[block].elements * BLOCKS[block].nbytes
        data[begin : begin + size] = bytes([number]) * size
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("cast", [False, True])
def test_types_of_gguf_that_are_not_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cast: bool
) -> None:
    """Their codes are compared."""
    before = {
        "same": ("iq4_nl", 1), "w": ("iq4_nl", 1), "v": ("tq1_0", 1), "old": ("mxfp4", 3),
        "gone": ("mxfp4", 4),
    }  # fmt: skip
    after = {
        "same": ("iq4_nl", 1), "w": ("iq4_nl", 2), "v": ("q8_0", 0), "new": ("mxfp4", 3),
        "more": ("iq4_xs", 4),
    }  # fmt: skip
    a, b = coded(tmp_path / "a.gguf", before), coded(tmp_path / "b.gguf", after)
    found = diff(a, b, cast=cast)
    assert found.equal == 1
    assert [(change.before.name, change.what) for change in found.changed] == [
        ("w", ("codes",)),
        ("v", ("dtype",)),
    ]
    assert [(one.name, other.name) for one, other in found.renamed] == [("old", "new")]
    assert [row.name for row in (*found.removed, *found.added)] == ["gone", "more"]
    assert diff(a, a, cast=cast, read=True).is_equal
    assert main(["diff", str(a), str(b)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["changed", "w", "iq4_nl", "[2,", "256]", "codes"]


def test_progress(tmp_path: Path) -> None:
    """Both tell bytes that grow to the sum; diff counts what is read, and report all."""
    rng = np.random.default_rng(3)
    one, other = (rng.standard_normal(1 << 20) for _ in range(2))
    a, b = saved(tmp_path, {"w": one, "same": one}, {"w": other, "same": one})
    calls: list[tuple[int, int]] = []
    for read, nbytes in ((False, 2 * one.nbytes), (True, 4 * one.nbytes)):
        calls.clear()
        diff(a, b, read=read, progress=lambda *call: calls.append(call))
        assert len(calls) > 5
        assert calls == sorted(calls)
        assert calls[-1] == (nbytes, nbytes)
    calls.clear()
    report(a, tmp_path / "a.html", progress=lambda *call: calls.append(call))
    assert len(calls) > 2
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of the library, and the numbers in proportion."""
    one = {"w": np.array([1.0, 2.0]), "epoch": 1}
    a, b = map(str, saved(tmp_path, one, {"w": np.array([1.0, 2.5]), "epoch": 2}))
    assert main(["diff", a, b, "--tensors-only"]) == 1
    assert "max abs difference 0.5, max relative 0.2" in capsys.readouterr().out
    assert main(["diff", a, b, "--exclude", "epoch", "--rtol", "0.2"]) == 0
    assert "equal within the tolerance: w" in capsys.readouterr().out
    assert main(["diff", a, b, "--include", "epoch", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["equal"], [each["name"] for each in found["values"]]) == (0, ["epoch"])
    assert main(["diff", a, b, "--rtol", "much"]) == 2
    assert main(["diff", a, b, "--include", "nothing"]) == 2
    assert "the include rule 'nothing' matches no tensor" in capsys.readouterr().err
