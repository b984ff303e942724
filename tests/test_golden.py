"""Checkpoints that four releases of torch wrote give the tensors that their producers had.

The files and their meaning are described in ``tests/data/golden/README.md``.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz

GOLDEN = Path(__file__).parent / "data" / "golden"
#: Files of kinds that are not read yet.
LATER = {"whole-module.pt"}
#: Files with a tensor of such a kind beside the others: lazily only.
LAZY_ONLY = {"sparse.pt", "quant.pt"}
CASES = [
    (release.name, file)
    for release in sorted(GOLDEN.glob("torch-*"))
    for file in json.loads((release / "truth.json").read_text())
]


def truth(release: str, file: str) -> dict[str, tuple[str, list[int], str]]:
    """Return flat name -> (dtype, shape, hex of the bytes in C order)."""
    told: dict[str, Any] = json.loads((GOLDEN / release / "truth.json").read_text())[file]
    return {name: (row[0], row[1], row[2]) for name, row in told.items()}


def hex_of(array: np.ndarray[Any, Any]) -> str:
    """Return an array's bytes in C order."""
    return np.ascontiguousarray(array).tobytes().hex()


def expected(release: str, file: str, name: str, told: str) -> str:
    """Return the bytes that the file has, which once are not what its producer had.

    torch 1.13.1 did not write the conj bit (its pickle has no metadata), so the file says the
    unconjugated values, and torch 2.13 loads those as well.
    """
    if (release, file, name) == ("torch-1.13.1", "conj.pt", "c"):
        return hex_of(np.conjugate(np.frombuffer(bytes.fromhex(told), "complex64")))
    return told


@pytest.mark.parametrize(
    ("release", "file"), [case for case in CASES if case[1] not in LATER], ids="/".join
)
def test_lazy(release: str, file: str) -> None:
    """Names, dtypes, shapes and bits agree, and every CRC is right."""
    rows = truth(release, file)
    with tz.lazy_load(GOLDEN / release / file) as ckpt:
        assert set(ckpt) == set(rows)
        for name, (dtype, shape, told) in rows.items():
            tensor = ckpt[name]
            assert (tensor.torch_dtype, list(tensor.shape)) == (dtype, shape)
            assert hex_of(tensor.numpy()) == expected(release, file, name, told)
        report = ckpt.verify()
        assert report.tensors == len(rows)
        formats = {"legacy": "legacy" in file, "torchscript": file == "script.pt", "zip": True}
        assert ckpt.format == next(name for name, is_it in formats.items() if is_it)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    ("release", "file"),
    [case for case in CASES if case[1] not in LATER | LAZY_ONLY],
    ids="/".join,
)
def test_eager(release: str, file: str, mmap: bool) -> None:
    """The whole object has the same arrays, in memory of its own and mapped."""
    path = GOLDEN / release / file
    root = tz.load(path, mmap=mmap)
    again = tz.load(io.BytesIO(path.read_bytes()))
    with tz.lazy_load(path) as ckpt:
        for name in ckpt:
            for whole in (root, again):
                array = reach(whole, name)
                assert hex_of(array) == hex_of(ckpt[name].numpy())
                assert array.dtype == ckpt[name].dtype


def reach(root: Any, name: str) -> Any:
    """Return what a flat name stands for in a loaded object."""
    while name:
        if isinstance(root, dict):
            key = next(k for k in root if name == str(k) or name.startswith(f"{k}."))
            root, name = root[key], name[len(str(key)) + 1 :]
        elif isinstance(root, tz.types.ForeignObject):
            root = root.state
        else:
            index, _, name = name.partition(".")
            root = root[int(index)]
    return root


@pytest.mark.parametrize(("release", "file"), [case for case in CASES if case[1] in LAZY_ONLY])
def test_other_kinds_are_said(release: str, file: str) -> None:
    """A sparse or quantized tensor is named, and an error where it is asked for."""
    with tz.lazy_load(GOLDEN / release / file) as ckpt:
        (name,) = ckpt.others
        with pytest.raises(tz.UnsupportedError, match=r"are not read yet"):
            ckpt[name]
    with pytest.raises(tz.UnsupportedError, match=r"are not read yet"):
        tz.load(GOLDEN / release / file)


@pytest.mark.parametrize("release", sorted({release for release, _ in CASES}))
def test_torchscript(release: str) -> None:
    """A TorchScript archive has its names in the order of its state dict, and the object."""
    with tz.lazy_load(GOLDEN / release / "script.pt") as ckpt:
        names = ["steps", "fc.weight", "fc.bias", "seq.0.weight", "seq.0.bias"]
        assert list(ckpt) == names == list(truth(release, "script.pt"))
        assert [ckpt[name].is_parameter for name in ckpt] == [False, True, True, True, True]
        assert isinstance(ckpt.root, tz.types.ForeignObject)
        assert (ckpt.root.module, ckpt.root.name) == ("__torch__", "Net")
        assert ckpt.root.state["training"] is True


@pytest.mark.parametrize("release", sorted({release for release, _ in CASES}))
def test_whole_module_is_inert(release: str) -> None:
    """A pickled module is a foreign object with its tensors inside it."""
    with tz.lazy_load(GOLDEN / release / "whole-module.pt") as ckpt:
        assert isinstance(ckpt.root, tz.types.ForeignObject)
        assert (ckpt.root.module, ckpt.root.name) == ("__main__", "Net")
        assert len(ckpt) == 5
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.lazy_load(GOLDEN / release / "whole-module.pt", foreign="raise")
    assert ("__main__", "Net") in caught.value.names
