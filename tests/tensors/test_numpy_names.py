"""What a file calls numpy's inner module, it keeps calling it: numpy.core, or numpy._core."""

from __future__ import annotations

import copy
import io
import pathlib
import pickle
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.sampling import costly
from tests.saved import saved, zipped_again
from torchzip.checkpoint.plain_values import same_value
from torchzip.tensors.numpy_values import pickled_array, plain_type

OLD, NEW = b"cnumpy.core.", b"cnumpy._core."


#: Values that numpy pickles by a function of its inner module.
SCALARS: dict[str, Any] = {
    "float32": np.float32(1.5), "float64": np.float64(-0.0), "float16": np.float16(2),
    "nan": np.frombuffer(b"\1\0\xa0\x7f", np.float32)[0], "int8": np.int8(-3),
    "uint64": np.uint64(2**63), "complex64": np.complex64(1j), "str": np.str_("text"),
    "empty str": np.str_(""), "bytes": np.bytes_(b"a\0b"), "bool": np.True_,
    "datetime": np.datetime64("2020-01", "M"), "timedelta": np.array(5, "m8[25s]")[()],
    "record": np.array([(1, 2.5)], "i4,f8")[0], "bfloat16": ml_dtypes.bfloat16(3),
    "longdouble": np.longdouble(2),
}  # fmt: skip
#: Those that remember nothing, and have to follow the others of their file.
FOLLOWERS = ("bool", "datetime", "timedelta", "record", "bfloat16", "longdouble")
ARRAYS: dict[str, Any] = {
    "array": np.arange(3.0), "empty": np.zeros((0, 3), "i4"), "0-d": np.array(5),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "texts": np.array(["a", "bc"]),
    "records": np.array([(1, 2.5)], "i4,f8"), "halves": np.ones(2, ml_dtypes.bfloat16),
    "swapped": np.arange(3, dtype=">i4"), "objects": np.array([None, 5], object),
}  # fmt: skip
VALUES = {**SCALARS, **ARRAYS}


def pickle_of(data: bytes) -> bytes:
    """Return the pickle of a file."""
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        return source.read(next(name for name in source.namelist() if name.endswith("data.pkl")))


def save(tree: Any) -> bytes:
    """Return what is saved, without the warning that there are names of numpy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(tree)


def globals_of(data: bytes) -> list[tuple[str, str]]:
    """Return the names that a file mentions."""
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        return checkpoint.globals


def file_of(tree: Any) -> bytes:
    """Return a file as numpy 1 would have written it."""
    tree = {
        name: pickled_array(value) if isinstance(value, np.ndarray) else value
        for name, value in tree.items()
    }
    return zipped_again(
        save({**tree, "w": np.ones(2, "f4"), "epoch": 1}),
        change=lambda name, raw: raw.replace(NEW, OLD) if name.endswith(".pkl") else raw,
    )


def by_load(data: bytes, folder: pathlib.Path) -> bytes:
    return save(tz.load(io.BytesIO(data)))


def by_root(data: bytes, folder: pathlib.Path) -> bytes:
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        return save(checkpoint.root)


def by_incremental_save(data: bytes, folder: pathlib.Path) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), tz.incremental_save(file) as out:
        warnings.simplefilter("ignore")
        root = tz.load(io.BytesIO(data))
        out.save({**root, "w": out.store_early(root["w"])})
    return file.getvalue()


def by_convert(data: bytes, folder: pathlib.Path) -> bytes:
    tz.convert(io.BytesIO(data), folder / "o.pt", overwrite=True)
    return (folder / "o.pt").read_bytes()


def by_edit(data: bytes, folder: pathlib.Path) -> bytes:
    (folder / "e.pt").write_bytes(data)
    tz.tools.edit(folder / "e.pt", set_values={"epoch": 2})
    return (folder / "e.pt").read_bytes()


def by_safetensors(data: bytes, folder: pathlib.Path) -> bytes:
    tz.convert(io.BytesIO(data), folder / "o.safetensors", overwrite=True)
    tz.convert(folder / "o.safetensors", folder / "o.pt", overwrite=True)
    return (folder / "o.pt").read_bytes()


WAYS: list[Callable[[bytes, pathlib.Path], bytes]] = [
    by_load, by_root, by_incremental_save, by_convert, by_edit,
]  # fmt: skip
EXPLICIT = [by_convert, by_edit]  # which know what the file mentions


@pytest.mark.filterwarnings("ignore:torch.load")
@costly
@given(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5, unique=True))
def test_names_stay(tmp_path: pathlib.Path, names: list[str]) -> None:
    """Whatever reads a file of numpy 1 and writes it again, the names are those of numpy 1."""
    data = file_of({name: VALUES[name] for name in names})
    assert OLD in pickle_of(data)
    for way in WAYS:
        if set(names) <= set(FOLLOWERS) and way not in EXPLICIT:
            continue  # nothing here remembers, and nobody knows the file
        written = way(data, tmp_path)
        assert NEW not in pickle_of(written), way
        assert set(globals_of(written)) == set(globals_of(data)), way


@pytest.mark.parametrize("name", ["float32", "float64", "str"])
def test_names_stay_on_the_way_through_safetensors(tmp_path: pathlib.Path, name: str) -> None:
    """The object in the metadata of a safetensors file says it as well; arrays become tensors."""
    data = file_of({"value": VALUES[name]})
    if name == "str":
        with tz.lazy_load(io.BytesIO(data)) as checkpoint:
            assert checkpoint.root["value"] == "text"
        return
    got = pickle_of(by_safetensors(data, tmp_path))
    assert NEW not in got
    assert OLD in got


@pytest.mark.parametrize("name", VALUES)
def test_values_of_numpy_2(tmp_path: pathlib.Path, name: str) -> None:
    """A file of numpy 2 is written as before, and its scalars are of numpy's own classes."""
    value = VALUES[name]
    tree = {"value": pickled_array(value) if isinstance(value, np.ndarray) else value}
    data = save(tree)
    for way in (by_load, by_root):
        assert OLD not in pickle_of(way(data, tmp_path))
    if name in SCALARS:
        assert type(tz.load(io.BytesIO(data))["value"]) is type(value)


@pytest.mark.parametrize("name", SCALARS)
def test_scalars_that_remember(name: str) -> None:
    """They are the scalars that they were, in everything but the class, which is below theirs."""
    value: Any = SCALARS[name]
    found: Any = tz.load(io.BytesIO(file_of({"value": value})))["value"]
    assert issubclass(type(found), type(value))
    kind: Any = type(value)
    assert plain_type(found) is kind
    assert (found.dtype, found.tobytes(), repr(found)) == (
        value.dtype, value.tobytes(), repr(value),
    )  # fmt: skip
    assert np.asarray(found).dtype == np.asarray(value).dtype
    assert type(pickle.loads(pickle.dumps(found))) is type(value)
    assert type(copy.deepcopy(found)) in (type(value), type(found))
    if name in ("float32", "float64", "int8", "complex64"):
        assert type(found + value) is type(value)


def test_trees_of_both() -> None:
    """Each value has the name that it came with, and values made here that of this numpy."""
    old = tz.load(io.BytesIO(file_of({"a": np.float32(1), "m": np.arange(3)})))
    tree = {"a": old["a"], "b": np.float32(2), "m": old["m"], "n": pickled_array(np.arange(3))}
    found = pickle_of(save(tree))
    assert [found.count(OLD), found.count(NEW)] == [2, 2]
    again = pickle_of(save(tz.load(io.BytesIO(save(tree)))))
    assert [again.count(OLD), again.count(NEW)] == [2, 2]
    followed = pickle_of(save({"a": old["a"], "flag": np.True_}))
    assert NEW not in followed


def test_files_of_both_numpys_are_equal() -> None:
    """A name of numpy is no difference between two values."""
    old, new = io.BytesIO(file_of(SCALARS)), io.BytesIO(save({**SCALARS, "w": np.ones(2, "f4")}))
    with tz.lazy_load(old) as a, tz.lazy_load(new) as b:
        for name in SCALARS:
            assert same_value(a.root[name], b.root[name]), name
