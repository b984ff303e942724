"""Checkpoints that four releases of torch wrote give the tensors that their producers had.

The files and their meaning are described in ``tests/data/golden/README.md``.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.saved import GOLDEN_FILES, RELEASES, quiet, records_of, saved

#: Files with a tensor that is not dense beside the others: not in ``truth.json``.
WITH_OTHERS = {"sparse.pt": "s", "quant.pt": "q"}
CASES = [(path.parent.name, path.name) for path in GOLDEN_FILES]
each_release = pytest.mark.parametrize("release", sorted({release for release, _ in CASES}))


def truth(release: str, file: str) -> dict[str, tuple[str, list[int], str]]:
    """Return flat name -> (dtype, shape, hex of the bytes in C order)."""
    told: dict[str, Any] = json.loads((RELEASES / release / "truth.json").read_text())[file]
    return {name: (row[0], row[1], row[2]) for name, row in told.items()}


def hex_of(array: np.ndarray[Any, Any]) -> str:
    return np.ascontiguousarray(array).tobytes().hex()


def expected(release: str, file: str, name: str, told: str) -> str:
    """Return the bytes that the file has, which once are not what its producer had.

    torch 1.13.1 did not write the conj bit (its pickle has no metadata), so the file says the
    unconjugated values, and torch 2.13 loads those as well.
    """
    if (release, file, name) == ("torch-1.13.1", "conj.pt", "c"):
        return hex_of(np.conjugate(np.frombuffer(bytes.fromhex(told), "complex64")))
    return told


@pytest.mark.parametrize(("release", "file"), CASES, ids="/".join)
def test_lazy(release: str, file: str) -> None:
    """Names, dtypes, shapes and bits agree, and every CRC is right."""
    rows = truth(release, file)
    with tz.lazy_load(RELEASES / release / file) as ckpt:
        other = {WITH_OTHERS[file]} if file in WITH_OTHERS else set()
        assert set(ckpt) == set(rows) | other
        for name, (dtype, shape, told) in rows.items():
            tensor = ckpt[name]
            assert (tensor.torch_dtype, list(tensor.shape)) == (dtype, shape)
            assert hex_of(tensor.numpy()) == expected(release, file, name, told)
        report = ckpt.verify()
        assert report.tensors == len(rows) + len(other)
        formats = {"legacy": "legacy" in file, "torchscript": file == "script.pt", "zip": True}
        assert ckpt.format == next(name for name, is_it in formats.items() if is_it)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(("release", "file"), CASES, ids="/".join)
def test_eager(release: str, file: str, mmap: bool) -> None:
    """The whole object has the same arrays, in memory of its own and mapped."""
    path = RELEASES / release / file
    root = tz.load(path, mmap=mmap)
    again = tz.load(io.BytesIO(path.read_bytes()))
    with tz.lazy_load(path) as ckpt:
        for name in ckpt:
            if name == WITH_OTHERS.get(file):
                continue
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
            for kind in ("_modules", "_parameters", "_buffers"):  # of a pickled module
                if name.partition(".")[0] in root.get(kind, ()):
                    root = root[kind]
                    break
        else:
            index, _, name = name.partition(".")
            root = root[int(index)]
    return root


@each_release
def test_sparse(release: str) -> None:
    """A COO tensor is the identity; torch 1.13 did not say whether it is coalesced."""
    path = RELEASES / release / "sparse.pt"
    with tz.lazy_load(path) as ckpt:
        tensor: Any
        for tensor in (ckpt["s"], tz.load(path)["s"], tz.load(path, mmap=True)["s"]):
            assert (tensor.layout, tensor.shape, tensor.nnz) == ("sparse_coo", (3, 3), 3)
            assert tensor.is_coalesced is (None if release == "torch-1.13.1" else True)
            assert tensor.todense().tolist() == np.eye(3).tolist()
            assert tensor.todense().dtype == np.float32


@each_release
def test_quantized(release: str) -> None:
    """A tensor of qint8 has the integers and the numbers that its producer had."""
    path = RELEASES / release / "quant.pt"
    with tz.lazy_load(path) as ckpt:
        tensor: Any
        for tensor in (ckpt["q"], tz.load(path)["q"], tz.load(path, mmap=True)["q"]):
            assert (tensor.torch_dtype, tensor.shape, tensor.axis) == ("qint8", (4,), None)
            assert (tensor.scale, tensor.zero_point) == (0.1, 3)
            assert np.asarray(tensor.int_repr).tolist() == [-4, 2, -4, -13]
            assert hex_of(tensor.dequantize()) == hex_of(
                np.array([-7, -1, -7, -16], "float32") * np.float32(0.1)
            )


@each_release
def test_torchscript(release: str) -> None:
    """A TorchScript archive has its names in the order of its state dict, and the object."""
    with tz.lazy_load(RELEASES / release / "script.pt") as ckpt:
        names = ["steps", "fc.weight", "fc.bias", "seq.0.weight", "seq.0.bias"]
        assert list(ckpt) == names == list(truth(release, "script.pt"))
        assert [ckpt[name].is_parameter for name in ckpt] == [False, True, True, True, True]
        assert isinstance(ckpt.root, tz.types.ForeignObject)
        assert (ckpt.root.module, ckpt.root.name) == ("__torch__", "Net")
        assert ckpt.root.state["training"] is True


@each_release
def test_whole_module_is_inert(release: str) -> None:
    """A pickled module is a foreign object with its tensors inside it."""
    with tz.lazy_load(RELEASES / release / "whole-module.pt") as ckpt:
        assert isinstance(ckpt.root, tz.types.ForeignObject)
        assert (ckpt.root.module, ckpt.root.name) == ("__main__", "Net")
        assert list(ckpt) == list(truth(release, "whole-module.pt"))


@pytest.mark.parametrize(("release", "file"), CASES, ids="/".join)
def test_saved_again_is_read_again(release: str, file: str) -> None:
    """The object, written and read once more, has the same tensors under the same names."""
    if file == "script.pt":
        pytest.skip("its classes exist in its own archive only")
    with (
        quiet(),
        tz.lazy_load(RELEASES / release / file) as ckpt,
        tz.lazy_load(io.BytesIO(saved(ckpt.root))) as second,
    ):
        assert list(second) == list(ckpt)
        assert second.globals == ckpt.globals
        for name, (_, _, told) in truth(release, file).items():
            ours, theirs = second[name], ckpt[name]
            assert hex_of(ours.numpy()) == expected(release, file, name, told)
            assert (ours.shape, ours.stride) == (theirs.shape, theirs.stride)
            assert ours.torch_dtype == theirs.torch_dtype
            assert ours.requires_grad == theirs.requires_grad
        assert second.verify().tensors == len(ckpt)
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.lazy_load(RELEASES / release / "whole-module.pt", foreign="raise")
    assert ("__main__", "Net") in caught.value.names


#: Written with pickle protocol 4, which `save` does not write.
_OTHER_PROTOCOL = "proto4.pt"
#: With Parameters, gradients and conj bits, for which `load` gives bare arrays.
_MORE_THAN_ARRAYS = ("param.pt", "conj.pt")


@pytest.mark.parametrize(
    ("release", "file"),
    [(release, file) for release, file in CASES if release >= "torch-2" and "legacy" not in file],
    ids="/".join,
)
def test_saved_again_is_the_same_file(release: str, file: str) -> None:
    """The pickle and the storages of torch 2 come out byte for byte, where nothing is foreign.

    Both from the lazy object and from what `load` gives.
    """
    data = (RELEASES / release / file).read_bytes()
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        if checkpoint.format != "zip" or checkpoint.foreign or file == _OTHER_PROTOCOL:
            pytest.skip("save does not write such files")
        lazily = saved(checkpoint.root)
    eagerly = saved(tz.load(io.BytesIO(data)))
    old = records_of(data)
    names = [name for name in old if name == "data.pkl" or name.startswith("data/")]
    assert len(names) > 1
    for again in (lazily, *(() if file in _MORE_THAN_ARRAYS else (eagerly,))):
        new = records_of(again)
        assert [name for name in names if old[name] != new.get(name)] == []
