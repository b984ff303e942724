"""What gives an array is one, wherever arrays are taken."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python
from tests.comparing import assert_same_bytes
from tests.saved import saved

Array = np.ndarray[Any, Any]


class _Wrapper:
    """Has what all libraries' arrays have."""

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def shape(self) -> Any:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype


class GivesArray(_Wrapper):
    """Has the method of numpy's protocol, as the arrays of JAX and TensorFlow do."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.array


class Capsule(_Wrapper):
    """Has DLPack's methods, as the arrays of MLX and CuPy do."""

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OnDevice(Capsule):
    """Lies where numpy cannot look, and refuses to be copied unasked."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("implicit conversion is not allowed; use .get()")

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("the array is on a device")

    def __dlpack_device__(self) -> Any:
        return (2, 0)


class OptedOut:
    """Says that it has no such method, as a class may whose base has it."""

    __array__ = None


WRAPS: list[Callable[[Array], Any]] = [GivesArray, Capsule]


@pytest.mark.parametrize("wrap", WRAPS)
def test_is_saved_as_its_array(wrap: Callable[[Array], Any]) -> None:
    """The bytes are those of the same tree with arrays: identity, ties, Parameters and all."""
    base = np.arange(12.0).reshape(3, 4)
    column = base[:, 1]

    def tree(each: Callable[[Array], Any]) -> Any:
        one = each(base)
        return {
            "one": one, "again": [one], "part": each(base[1:]), "plain": base[:],
            "parameter": tz.types.Parameter(each(base[2])),
            "sparse": tz.types.SparseTensor(
                "sparse_coo", each(np.array([[0], [1]])), each(np.ones(1, "f4")), (2, 2)
            ),
            "storage": tz.types.Storage(each(np.ones(3)), "float64"),
            "column": each(column), "scalar": np.float32(1.5),
        }  # fmt: skip

    with pytest.warns(UserWarning, match="scalar"):
        assert_same_bytes(saved(tree(wrap)), saved(tree(lambda array: array)))


def test_dtypes_of_ml_dtypes() -> None:
    """What gives a bfloat16 array is saved as bfloat16."""
    array = np.ones(3, ml_dtypes.bfloat16)
    assert_same_bytes(saved([GivesArray(array)]), saved([array]))


@pytest.mark.parametrize("wrap", WRAPS)
def test_other_places(tmp_path: pathlib.Path, wrap: Callable[[Array], Any]) -> None:
    """The incremental writer and ``map`` take them too."""
    array = np.arange(6.0)
    path = tmp_path / "m.pt"
    with tz.incremental_save(path) as out:
        out.save({
            "early": out.store_early(wrap(array)), "again": out.store_early(wrap(array[2:])),
            "parameter": tz.types.Parameter(out.store_early(wrap(array))),
            "chunks": out.store_chunks([wrap(array), wrap(array)], shape=(12,), dtype="float64"),
            "late": wrap(array),
        })  # fmt: skip
    with tz.lazy_load(path) as checkpoint:
        storages = {id(checkpoint[name].spec.storage) for name in checkpoint if name != "chunks"}
        # Who owns the memory of a capsule is not known: it is stored each time.
        assert len(storages) == (1 if wrap is GivesArray else 4)
        assert checkpoint["chunks"].numpy().tolist() == [*array, *array]
    report = tz.convert(path, tmp_path / "o.pt", map=lambda name, _: [(name, wrap(array))])
    assert report.tensors == 5
    assert tz.load(tmp_path / "o.pt")["early"].tolist() == array.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GivesArray(np.array(["a"])), "GivesArray: .* dtype <U1, which torch does not have; conv"),
        (GivesArray(np.array([{}])), "GivesArray: .* dtype object, which torch does not have; co"),
        (GivesArray(3), "GivesArray: it gives no array"),
        (OnDevice(np.ones(2)), r"OnDevice: it gives no array \(implicit .*; copy it into a numpy"),
    ],
)
def test_what_gives_no_numbers(tmp_path: pathlib.Path, value: Any, message: str) -> None:
    """It is an error with the place and what to do, never an object of its class."""
    with pytest.raises(TypeError, match=rf"^layers\.0: cannot save a {message}"):
        saved({"layers": [value]})
    with pytest.raises(TypeError, match=rf"^p: cannot save a {message}"):
        saved({"p": tz.types.Parameter(value)})
    with (
        pytest.raises(TypeError, match=f"cannot save a {message}"),
        tz.incremental_save(tmp_path / "m.pt") as out,
    ):
        out.store_early(value)
    tz.save({"w": np.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(TypeError, match=f"w: what map gives: cannot save a {message}"):
        tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", map=lambda name, _: [(name, value)])
    assert not (tmp_path / "m.pt").exists()


def test_objects_and_scalars_that_are_no_arrays() -> None:
    """Classes, scalars of numpy, and what has opted out are saved as before."""
    with pytest.warns(UserWarning, match="weights_only"):
        data = saved([np.float64(2.5), GivesArray, OptedOut()])
    scalar, kind, opted_out = tz.lazy_load(io.BytesIO(data)).root
    assert type(scalar) is np.float64
    assert [kind.how, opted_out.how] == ["name", "new"]


def test_torch_is_never_imported() -> None:
    """A class that claims to be torch's brings no import of torch."""
    script = (
        "import io, sys, torchzip, numpy\n"
        "Tensor = type('Tensor', (), {'__module__': 'torch', '__reduce_ex__': None})\n"
        "try:\n    torchzip.save([numpy.ones(2), Tensor()], io.BytesIO())\n"
        "except TypeError as error:\n    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert python("-c", script).startswith("1: cannot save")
