"""What callers of views and `torchzip.lazy` give: sizes, axes, dtypes, numbers, other operands."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz

#: They are called with what their types forbid.
lazy: Any = tz.lazy
_FLOATS: Any = lazy.cat([np.arange(12, dtype=np.float32).reshape(3, 4)])
_INTS: Any = lazy.cat([np.arange(12, dtype=np.int8).reshape(3, 4)])


def _first(block: Any) -> Any:
    return block


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: _FLOATS.reshape(np.int64(2), 6), (2, 6)),
        (lambda: _FLOATS.reshape(np.array([2, -1])), (2, 6)),
        (lambda: _FLOATS.reshape(True, 12), (1, 12)),  # as numpy and torch have it
        (lambda: _FLOATS.permute(np.array([1, 0])), (4, 3)),
        (lambda: lazy.pad(_FLOATS, np.array([4, 5])), (4, 5)),
        (lambda: lazy.pad(_FLOATS, [np.int32(3), 4]), (3, 4)),
        (lambda: lazy.compute(_first, _FLOATS, shape=np.array([3, 4])), (3, 4)),
        (lambda: lazy.compute(_first, _FLOATS, shape=np.array([3, 4]), rows=True), (3, 4)),
        (lambda: lazy.cat([_FLOATS, _FLOATS], axis=np.int64(1)), (3, 8)),
    ],
)
def test_ints_of_numpy_are_sizes(made: Callable[[], tz.LazyTensor], shape: tuple[int, ...]) -> None:
    """What comes out has plain ints: it is saved, and its numbers are those of the file."""
    tensor = made()
    assert tensor.shape == shape
    assert all(type(size) is int for size in tensor.shape)
    file = io.BytesIO()
    tz.save(tensor, file)
    file.seek(0)
    np.testing.assert_array_equal(tz.load(file), tensor.numpy())


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: _FLOATS.reshape(3.0, 4), TypeError, "a shape is made of ints"),
        (lambda: _FLOATS.reshape("34"), TypeError, "a shape is made of ints"),
        (lambda: _FLOATS.reshape(*(1,) * 65, 12), ValueError, "66 dimensions"),
        (lambda: _FLOATS.lazy[(None,) * 63], ValueError, "65 dimensions"),
        (lambda: _FLOATS.permute("x"), TypeError, "an order of axes is made of ints"),
        (lambda: _FLOATS.permute(1.0, 0.0), TypeError, "made of ints"),
        (lambda: lazy.pad(_FLOATS, 5), TypeError, "a shape is made of ints, not 5"),
        (lambda: lazy.pad(_FLOATS, (3.0, 4)), TypeError, "a shape is made of"),
        (lambda: lazy.pad(_FLOATS, (2**62, 4)), ValueError, "no file can hold"),
        (lambda: lazy.compute(_first, _FLOATS, shape=5), TypeError, "a shape is made of"),
        (lambda: lazy.compute(_first, _FLOATS, shape=(3, -4), rows=True), ValueError, "shape"),
        (lambda: lazy.compute(_first, _FLOATS, rows=True, repeat=1), TypeError, "repeat is made"),
        (lambda: lazy.cat([_FLOATS], axis=1.5), TypeError, "an axis is an int"),
        (lambda: lazy.stack([_FLOATS], axis=None), TypeError, "an axis is an int"),
        (lambda: lazy.cat(5), TypeError, "a list of tensors was expected, not int"),
        (lambda: lazy.reduce(5, _FLOATS), TypeError, "fn must be a function"),
        (lambda: lazy.reduce(max), TypeError, "one tensor or more"),
        (lambda: lazy.pad(_INTS, (4, 5), 300), ValueError, "300 does not go into int8"),
        (lambda: lazy.pad(_INTS, (4, 5), 1.5), ValueError, "1.5 does not go into int8"),
        (lambda: lazy.pad(_INTS, (4, 5), float("nan")), ValueError, "nan does not go into int8"),
        (lambda: lazy.pad(_FLOATS, (4, 5), 1j), ValueError, "1j does not go into float32"),
        (lambda: lazy.pad(_FLOATS, (4, 5), "1"), TypeError, "padded with a number, not '1'"),
        (lambda: lazy.pad(_FLOATS, (4, 5), [1, 2]), TypeError, "padded with a number, not"),
        (lambda: _FLOATS[..., ...], IndexError, "one ellipsis"),
    ],
)  # fmt: skip
def test_wrong_arguments(wrong: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Refused where the expression is written down: nothing wrong is ever saved."""
    with pytest.raises(error, match=message):
        wrong()


def test_numbers_to_pad_with() -> None:
    """Any number that the dtype has."""
    for value in (3, 3.0, np.int64(3), np.array(3), np.float16(3), True + 2):
        assert lazy.pad(_INTS, (3, 5), value).numpy()[:, 4].tolist() == [3, 3, 3]
    assert lazy.pad(_FLOATS, (3, 5), ml_dtypes.bfloat16(0.5)).numpy()[0, 4] == 0.5
    assert np.isnan(lazy.pad(_FLOATS, (3, 5), np.nan).numpy()[0, 4])
    assert lazy.pad(_FLOATS, (3, 5), 2**70).numpy()[0, 4] == 2.0**70


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16), "bfloat16"])
def test_dtypes_are_names_or_objects(dtype: Any) -> None:
    """As those of `convert`."""
    assert _FLOATS.to(dtype).torch_dtype == "bfloat16"
    assert lazy.compute(_first, _FLOATS, dtype=dtype).torch_dtype == "bfloat16"
    for wrong in (None, 5, object, np.dtype("S3")):
        with pytest.raises(TypeError, match="a dtype is a string"):
            _FLOATS.to(wrong)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch
def test_with_tensors_of_torch(torch: Any) -> None:
    """They stand wherever an array may; dtypes of torch wherever a name may."""
    ones = torch.ones(4, dtype=torch.float32)
    for made, expected in (
        (_FLOATS + ones, _FLOATS.numpy() + 1),
        (ones + _FLOATS, _FLOATS.numpy() + 1),
        (_FLOATS * torch.tensor(2.0), _FLOATS.numpy() * 2),
        (torch.nn.Parameter(ones) - _FLOATS, 1 - _FLOATS.numpy()),
        (_FLOATS / ones.to(torch.bfloat16), _FLOATS.numpy()),
    ):
        assert isinstance(made, tz.LazyTensor)
        np.testing.assert_array_equal(made.numpy(), expected)
    turned = (torch.arange(12.0) * 1j).reshape(4, 3).T.conj()
    np.testing.assert_array_equal(
        (_FLOATS + turned).numpy(), _FLOATS.numpy() + turned.resolve_conj().numpy()
    )
    imaginary = torch.full((4,), 2j).conj().imag
    np.testing.assert_array_equal((_FLOATS + imaginary).numpy(), _FLOATS.numpy() - 2)
    for other in (
        torch.eye(4).to_sparse(),
        torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([ones]),
    ):
        with pytest.raises(TypeError, match="unsupported operand"):
            _FLOATS + other
        with pytest.raises(TypeError, match="a dense tensor was expected, not a"):
            lazy.cat([other])
        assert isinstance(lazy.dequantized({"a": other})["a"], tz.types.OtherTensor)
    with pytest.raises(TypeError, match="meta device"):
        _FLOATS + ones.to("meta")
    assert _FLOATS.to(torch.bfloat16).torch_dtype == "bfloat16"
    file = io.BytesIO()
    with tz.incremental_save(file) as out:
        half = np.zeros(2, np.float16)
        out.save(out.store_chunks([half], shape=half.shape, dtype=torch.float16))
    file.seek(0)
    assert tz.load(file).dtype == np.float16
