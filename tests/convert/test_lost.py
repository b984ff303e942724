"""What a report says is lost is what did not come out, and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.saved import quiet
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import reach
from torchzip.types import ForeignObject, Parameter, SparseTensor


class _NumpyArray:
    """Saved, it is an array of numpy, and not a tensor."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __reduce__(self) -> Any:
        return self._array.__reduce__()


def save(value: Any, path: Path) -> Path:
    with quiet():
        tz.save(value, path)
    return path


def with_attributes() -> Parameter:
    """Return a Parameter that has a tensor and a number hanging on it."""
    return Parameter(np.ones(3, np.float32), True, {"calib": {"amax": np.zeros(4)}, "bits": 8})


@pytest.mark.parametrize("target", ["o.pt", "o.safetensors"])
@pytest.mark.parametrize("by_map", [False, True])
def test_attributes_are_kept_or_said(tmp_path: Path, target: str, by_map: bool) -> None:
    """What hangs on a Parameter comes along, or is listed by its name."""
    source = save({"w": with_attributes(), "b": np.ones(2)}, tmp_path / "m.pt")
    options: Any = {"map": lambda name, tensor: [(name, tensor)]} if by_map else {}
    report = tz.convert(source, tmp_path / target, **options)
    with tz.lazy_load(tmp_path / target) as ckpt:
        tensors = [each for each in reach(ckpt.root) if isinstance(each, LazyTensor)]
    if target == "o.pt":
        assert len(tensors) == 3
        assert report.lost == ()
    else:
        assert len(tensors) == 2
        assert any("amax" in line for line in report.lost)


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("target", ["o.pt", "o.safetensors"])
def test_arrays_of_numpy_are_weights(tmp_path: Path, target: str, dtype: str | None) -> None:
    """They have names, are cast, and come out; in a .pt they stay arrays unless they are cast."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    large = np.zeros(20_000)
    tree = {
        "net": {"w": _NumpyArray(weight), "n": _NumpyArray(np.arange(3))},
        "step": 7,
        "l": _NumpyArray(large),
    }
    source = save(tree, tmp_path / "m.pt")
    with tz.lazy_load(source) as ckpt:
        assert list(ckpt) == ["net.w", "net.n", "l"]
        assert ckpt["net.w"][1].tolist() == [3, 4, 5]
    report = tz.convert(source, tmp_path / target, dtype=dtype)
    assert report.tensors == 3
    with tz.lazy_load(tmp_path / target) as ckpt:
        assert ckpt["net.w"].torch_dtype == (dtype or "float32")
        assert ckpt["net.w"].numpy().astype(np.float32).tolist() == weight.tolist()
        assert ckpt["net.n"].numpy().tolist() == [0, 1, 2]
        stay = {None: ["net.w", "net.n", "l"], "float16": ["net.n"], "bfloat16": ["net.n"]}[dtype]
        assert list(ckpt.arrays) == (stay if target == "o.pt" else [])
    if target == "o.safetensors":
        (line,) = (line for line in report.lost if "arrays of numpy" in line)
        assert ("'net.w'" in line, "'l'" in line) == (dtype is not None, True)
        tz.convert(tmp_path / target, tmp_path / "back.pt")
        with tz.lazy_load(tmp_path / "back.pt") as back:
            assert list(back) == ["net.w", "net.n", "l"]
            assert list(back.arrays) == (["net.n"] if dtype else ["net.w", "net.n"])
        assert tz.load(tmp_path / "back.pt")["step"] == 7


def test_tensors_without_a_name_are_said(tmp_path: Path) -> None:
    """A tensor that hangs in a pickled module beside its state dict."""
    state = {
        "_parameters": {"weight": Parameter(np.ones(2))}, "_buffers": {}, "_modules": {},
        "metric": {"total": np.zeros(3)},
    }  # fmt: skip
    module = ForeignObject("m", "Module", (), state=state)
    source = save(module, tmp_path / "m.pt")
    report = tz.convert(source, tmp_path / "o.safetensors")
    assert report.tensors == 1
    assert "metric.total: a tensor that the state dict does not name" in report.lost
    assert [row for row in report.lost if "weight" in row] == []


def test_the_fate_of_inner_tensors(tmp_path: Path) -> None:
    """Of a tensor of a class of its own it is said what came of what is inside."""
    rebuild = ("torch._tensor", "_rebuild_from_type_v2")
    make, kind = ForeignObject("m", "make"), ForeignObject("m", "W")
    tree = {
        "whole": ForeignObject(*rebuild, (make, kind, (), {"inner": np.ones(2)})),
        "empty": ForeignObject(*rebuild, (make, kind, (), {"scale": 1})),
    }
    source = save(tree, tmp_path / "m.pt")
    lost = tz.convert(source, tmp_path / "o.safetensors").lost
    assert "whole: the class of this tensor; its inner tensors are kept" in lost
    assert "empty: the class of this tensor; it has no inner tensor to keep" in lost


def test_many_values_are_one_line(tmp_path: Path) -> None:
    """What is flattened names a long list once, whatever numbers and strings it has inside."""
    tree: Any = OrderedDict(w=np.ones(2), loss=[float(i) for i in range(5000)], few=[1, 2])
    tree["steps"] = [{"loss": 0.5, "at": [i, (i,)]} for i in range(500)]
    tree["mixed"] = [*range(100), np.ones(2)]
    source = save(tree, tmp_path / "m.pt")
    report = tz.convert(source, tmp_path / "o.pt", map=lambda name, tensor: [(name, tensor)])
    mixed = [f"mixed.{i}" for i in range(100)]
    assert [*report.lost] == [
        "loss (5,000 items)", "few.0", "few.1", "steps (500 items)", *mixed
    ]  # fmt: skip


def test_what_is_not_cast_is_said(tmp_path: Path) -> None:
    """Floats in sparse tensors and in attributes keep their dtype, and a line says so."""
    sparse = SparseTensor("sparse_coo", np.array([[0, 1]]), np.ones(2, np.float32), (3,))
    tree = {"s": sparse, "w": with_attributes(), "n": np.ones(2, np.float32)}
    source = save(tree, tmp_path / "m.pt")
    lost = tz.convert(source, tmp_path / "o.pt", dtype="bfloat16").lost
    assert [line.partition(":")[0] for line in lost] == ["s (values)", "w (calib).amax"]
    assert tz.convert(source, tmp_path / "same.pt").lost == ()
    assert tz.convert(source, tmp_path / "n.pt", dtype=[("n", "float16")]).lost == ()
