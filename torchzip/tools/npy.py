"""A tensor as a .npy file, written block by block."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.errors import UnsupportedError
from torchzip.files.opening import open_sink, refuse_existing
from torchzip.tensors.casts import CastStorage, is_castable
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype, parse_torch_dtype
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.storage import TensorStorage


def write_npy(
    tensor: LazyTensor,
    file: str | os.PathLike[str] | BinaryIO,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a tensor as `numpy.save` would: C order, conj and neg carried out.

    It goes through memory block by block. A path is written all or nothing; a file object, which
    may be a pipe, as it comes. The numbers are exact: a dtype that plain numpy cannot read
    from a file, such as bfloat16, is refused unless ``dtype`` says what to cast it to. Casts
    are those of `convert`; float32 holds every bfloat16, float16 and float8.

    Raises
    ------
    UnsupportedError
        If a .npy file has no such dtype.
    ValueError
        If ``dtype`` is not a floating dtype of numpy, or the tensor is none.
    FileExistsError
        If the path is there and ``overwrite`` is false.

    Examples
    --------
    >>> import io, torchzip
    >>> checkpoint, out = io.BytesIO(), io.BytesIO()
    >>> torchzip.save({"w": np.arange(3.0)}, checkpoint)
    >>> start = checkpoint.seek(0)
    >>> with torchzip.lazy_load(checkpoint) as opened:
    ...     write_npy(opened["w"], out)
    >>> start = out.seek(0)
    >>> np.load(out)
    array([0., 1., 2.])
    """
    elements, stored = _elements(tensor, dtype)
    if isinstance(file, str | os.PathLike) and not overwrite:
        refuse_existing(file)
    sink = open_sink(file)
    try:
        header: dict[str, Any] = {
            "descr": np.lib.format.dtype_to_descr(stored),
            "fortran_order": False,
            "shape": tensor.shape,
        }
        np.lib.format.write_array_header_1_0(sink, header)
        for block in elements.checked_blocks():
            sink.write(block.data)
        sink.commit()
    finally:
        sink.abort()


def _elements(tensor: LazyTensor, dtype: str | None) -> tuple[TensorStorage, np.dtype[Any]]:
    """Return the elements as they are written, and their dtype."""
    source = tensor.torch_dtype
    elements: TensorStorage = ElementStorage(tensor.spec)
    target = source if dtype is None else parse_torch_dtype(dtype)
    if source != target:
        if not is_castable(source) or not is_castable(target):
            raise ValueError(
                f"{source} cannot be cast to {target}; both have to be floating dtypes"
            )
        elements = CastStorage(elements, source, target)
    stored = numpy_dtype(target)
    if stored.isbuiltin != 1 or not has_numpy_dtype(target):
        advice = "; cast it to one that numpy has: --dtype float32" if is_castable(target) else ""
        raise UnsupportedError(f"a .npy file has no {target}{advice}")
    return elements, stored
