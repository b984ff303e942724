"""Files of numpy, with numpy as the judge: .npz and .npy, written and read."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.sampling import costly
from torchzip.container.npy import build_header, parse_header
from torchzip.dtypes import NPY

_SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def tree() -> dict[str, Any]:
    """Return arrays of all dtypes of a .npz, of sizes below and above that of a piece."""
    rng = np.random.default_rng(3)
    made: dict[str, Any] = {
        f"layer.{code}": np.asarray(rng.standard_normal((7, 3)) * 5).astype(code) for code in NPY
    }
    made["é/重"] = np.asarray(3.5)
    made["empty"] = np.ones((0, 3))
    made["large"] = rng.standard_normal((300, 500))
    made["columns"] = np.asfortranarray(made["large"])
    return made


def check(path: Path, expected: dict[str, Any]) -> None:
    """Compare what numpy and torchzip read."""
    with np.load(path) as file:
        assert file.files == list(expected)
        for name, array in expected.items():
            assert (file[name].dtype, file[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(file[name], array)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for mmap in (False, True):
        back = tz.load(path, mmap=mmap)
        assert list(back) == list(expected)
        for name, array in expected.items():
            assert back[name].dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(back[name], array)


def test_what_is_written(tmp_path: Path) -> None:
    """Numpy reads each array, from a zip without a fault; the data can be mapped."""
    arrays = tree()
    tz.save({"sub": arrays}, tmp_path / "a.pt")
    report = tz.convert(tmp_path / "a.pt", tmp_path / "a.npz", rename=[(r"^sub\.", "")])
    check(tmp_path / "a.npz", arrays)
    assert report.lost == ()
    with tz.lazy_load(tmp_path / "a.npz") as checkpoint:
        assert not checkpoint.verify().without_crc
        for tensor in checkpoint.values():
            span = tensor.spec.storage.span()
            assert span is not None
            assert not tensor.nbytes or span[1] % 64 == 0


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path: Path, write: Any) -> None:
    """It is read, verified, and converted to the same arrays, by their CRCs where they are."""
    arrays = tree() | {"swapped": np.arange(5, dtype=">f4"), "swapped too": np.ones(3, ">c8")}
    write(tmp_path / "a.npz", **arrays)
    check(tmp_path / "a.npz", arrays)
    with tz.lazy_load(tmp_path / "a.npz") as checkpoint:
        assert len(checkpoint.verify().without_crc) == 0
        assert checkpoint["columns"][7:9, 3].tolist() == arrays["columns"][7:9, 3].tolist()
    tz.convert(tmp_path / "a.npz", tmp_path / "b.npz", verify=True)
    check(tmp_path / "b.npz", {k: v.astype(v.dtype.newbyteorder("=")) for k, v in arrays.items()})
    tz.convert(tmp_path / "a.npz", tmp_path / "c.pt")
    assert tz.tools.diff(tmp_path / "a.npz", tmp_path / "c.pt").equal == len(arrays)


def test_damage_shows(tmp_path: Path) -> None:
    """By the CRC of the record, which gives that of the data."""
    np.savez(tmp_path / "a.npz", w=np.arange(5000.0))
    data = (tmp_path / "a.npz").read_bytes()
    needle = np.arange(100.0, 110.0).tobytes()
    assert data.count(needle) == 1
    (tmp_path / "a.npz").write_bytes(data.replace(needle, needle[::-1]))
    for read in (tz.load, lambda path: tz.convert(path, tmp_path / "b.pt", dtype="float32")):
        with pytest.raises(tz.TorchZipError, match="CRC"):
            read(tmp_path / "a.npz")
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_a_dtype_that_numpy_lacks(tmp_path: Path, dtype: str) -> None:
    """It is refused with the option that helps, which does."""
    tz.save({"w": np.ones(3), "n": np.ones(3, "i4")}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype=dtype)
    with pytest.raises(tz.UnsupportedError, match=f"w: .* no {dtype}; .* --dtype w=float32"):
        tz.convert(tmp_path / "b.pt", tmp_path / "b.npz")
    assert not (tmp_path / "b.npz").exists()
    tz.convert(tmp_path / "b.pt", tmp_path / "b.npz", dtype=[("w", "float32")])
    check(tmp_path / "b.npz", {"w": np.ones(3, "f4"), "n": np.ones(3, "i4")})


@pytest.mark.parametrize("name", ["a.npy", "", "x\0y"])
def test_names_that_numpy_would_not_find(tmp_path: Path, name: str) -> None:
    """They are refused: a file that opens and has other names in it is worse."""
    with pytest.raises(tz.UnsupportedError, match="rename"):
        tz.convert({"a": np.ones(2), name: np.ones(3)}, tmp_path / "a.npz")


def test_where_the_bytes_are(tmp_path: Path) -> None:
    """Of a deflated array those that the file has, and all together are the file."""
    arrays: dict[str, Any] = {"a": np.zeros(9000), "b": np.arange(7.0)}
    for write, kind in ((np.savez, "tensors"), (np.savez_compressed, "tensors, deflated")):
        write(tmp_path / "a.npz", **arrays)
        found = tz.tools.why_big(tmp_path / "a.npz")
        assert sum(part.nbytes for part in found.parts) == found.nbytes
        assert {part.kind for part in found.parts} == {kind, "headers"}
        assert all(part.nbytes > 0 for part in found.parts)


@costly
@given(_SHAPES, st.sampled_from(sorted(NPY)), st.booleans())
def test_arrays(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], code: str, columns: bool
) -> None:
    """A .npy file is what `numpy.save` writes, whatever the array, and is read back."""
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(code)
    np.save(path, array)
    header = build_header(NPY[code].name, shape)
    assert path.read_bytes() == header + array.tobytes()
    assert parse_header(header) == (NPY[code].name, "little", False, shape, len(header))
    np.save(path, np.asarray(array, order="F" if columns else "C"))
    np.testing.assert_array_equal(tz.load(path), array)
    tz.convert(path, path.with_suffix(".pt"))
    np.testing.assert_array_equal(tz.load(path.with_suffix(".pt")), array)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"w": 0, "w.npy": 0}, "w: numpy takes w.npy for the same name"),
        ({"layer.A": 0, "layer.a": 0}, "differ in case alone"),
        ({"a//b": 0}, "cannot be the name of a file"),
        ({"/c": 0}, "cannot be the name of a file"),
        ({"../d": 0}, "cannot be the name of a file"),
        ({"e\\f": 0}, "cannot be the name of a file"),
        ({"g\0": 0}, "cannot be the name of a file"),
        ({"": 0, "x": 0}, "a tensor without a name"),
        ({}, "the output would be without tensors"),
        ({"a": None}, "the output would be without tensors"),
    ],
    ids=repr,
)
def test_what_no_reader_takes(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    """Names, and an absence of them, with which torchzip or numpy would not read the file."""
    values = {name: np.ones(3) if value == 0 else value for name, value in tree.items()}
    tz.save(values, tmp_path / "a.pt")
    with pytest.raises(tz.UnsupportedError, match=said):
        tz.convert(tmp_path / "a.pt", tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_unusual_names(tmp_path: Path) -> None:
    """Whatever else a name has in it is read again under it."""
    names = ["a b", "é", "x/y", "...", "a.", " ", "%", "-", "~", "a/.b"]
    arrays = {name: np.full(2, float(index)) for index, name in enumerate(names)}
    tz.save(arrays, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "a.npz")
    check(tmp_path / "a.npz", arrays)
    assert tz.load(tmp_path / "a.npz").keys() == arrays.keys()
