"""Sparse tensors: COO, CSR, CSC, BSR and BSC.

`SparseTensor.todense` is equal to torch 2.13's ``to_dense()`` for all bits (tests compare them),
NaN payloads apart: values are added to zeros, one after the other, in the dtype of the values. So a
value of -0.0 becomes 0.0, and bools are or-ed.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.errors import (
    EnoughMemory,
    PickleError,
    TensorError,
    UnsupportedError,
    shown,
    wrong_arguments,
)
from torchzip.leaf_types import Layout, Size
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.base import OtherTensor, PartReader, PartWriter, Rebuild
from torchzip.tensors.kinds.checked import Checked, ends, outside, steps
from torchzip.tensors.kinds.parts import (
    Array,
    as_array,
    check_memory,
    check_sizes,
    dtype_name,
    dtype_of,
    shape_of,
    sizes_of,
)
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype
from torchzip.tensors.specs import check_hooks

if TYPE_CHECKING:
    from torchzip.pickling.emitter import Emitter

#: layout -> (whether rows are what is compressed, whether values are blocks)
_COMPRESSED: dict[str, tuple[bool, bool]] = {
    "sparse_csr": (True, False), "sparse_csc": (False, False),
    "sparse_bsr": (True, True), "sparse_bsc": (False, True),
}  # fmt: skip
#: Layouts as TorchScript writes them (the order of torch's enum).
_LAYOUT_NUMBERS = {1: "sparse_coo", 2: "sparse_csr"}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SparseTensor(OtherTensor):
    """A sparse tensor: the values, and their places in a dense tensor of ``shape``.

    ``layout`` is torch's name. For ``"sparse_coo"``, ``indices`` is an int64 array of shape (sparse
    dimensions, n) and ``values`` has shape (n, dense dimensions ...). For ``"sparse_csr"``,
    ``"sparse_csc"``, ``"sparse_bsr"`` and ``"sparse_bsc"``, ``indices`` is the pair of the
    compressed and the plain indices, int64 or int32, as in ``crow_indices()`` and ``col_indices()``
    of a CSR tensor. The blocks of BSR and BSC are two axes of ``values`` after the axis that counts
    them. ``is_coalesced`` is None for these, and for a COO tensor if its file does not say.

    >>> import numpy as np
    >>> eye = SparseTensor("sparse_coo", np.array([[0, 1], [0, 1]]), np.ones(2), (2, 2))
    >>> eye, eye.todense().tolist()
    (SparseTensor(sparse_coo, float64, shape=[2, 2], nnz=2), [[1.0, 0.0], [0.0, 1.0]])
    """

    layout: str
    indices: Any
    values: Any
    shape: tuple[int, ...]
    is_coalesced: bool | None = False
    requires_grad: bool = field(default=False, kw_only=True)

    PARTS = ("indices", "values")
    REBUILT_BY = ("torch._utils", "_rebuild_sparse_tensor")

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if isinstance(self.indices, list):
            object.__setattr__(self, "indices", tuple(self.indices))
        if self.layout != "sparse_coo":
            object.__setattr__(self, "is_coalesced", None)
        self._check_parts("indices", "values")

    @property
    def torch_dtype(self) -> str:
        """Torch's name of the dtype of the values."""
        return dtype_name(self.values)

    @property
    def compressed_indices(self) -> Any:
        """The first of the two indices of a compressed layout; None for COO."""
        return self.indices[0] if isinstance(self.indices, tuple) else None

    @property
    def plain_indices(self) -> Any:
        """The second of the two indices of a compressed layout; None for COO."""
        return self.indices[1] if isinstance(self.indices, tuple) else None

    @property
    def nnz(self) -> int:
        """The number of values (blocks, for BSR and BSC) in each batch."""
        indices = self.indices[1] if isinstance(self.indices, tuple) else self.indices
        return int(indices.shape[-1])

    @property
    def kind(self) -> str:
        return self.layout

    @EnoughMemory()
    def todense(self) -> Array:
        """Return the dense array that torch's ``to_dense()`` gives; values in the same place are
        added.

        Raises
        ------
        TensorError
            If an index lies outside the shape.
        OSError
            If the dense array does not fit into memory.
        """
        self.check()
        if not has_numpy_dtype(self.torch_dtype):
            raise UnsupportedError(f"numpy cannot add values of dtype {self.torch_dtype}")
        dtype = numpy_dtype(self.torch_dtype)
        nbytes = math.prod(self.shape) * dtype.itemsize
        blocks = self.layout in ("sparse_bsr", "sparse_bsc")  # they are put in order at the end
        check_memory(
            nbytes * (2 if blocks else 1) + self.nbytes,
            f"a dense array for a {self.layout} tensor of shape {list(self.shape)}",
        )
        tensor = self.with_parts(as_array)  # read once
        tensor.check_values()
        if not math.prod(self.shape):
            return np.zeros(self.shape, dtype)
        return (_coo if self.layout == "sparse_coo" else _compressed)(tensor, dtype)

    def _check(self) -> None:
        check_sizes(self.shape, f"the shape of a {self.layout} tensor")
        if self.layout == "sparse_coo":
            self._check_coo()
        elif self.layout in _COMPRESSED:
            self._check_compressed()
        else:
            raise TensorError(
                f"a sparse tensor has layout {shown(self.layout)}, which torch does not have"
            )
        if DTYPES[dtype_of(self.values)].kind == "quantized":
            raise TensorError(
                "the values of a sparse tensor are quantized; another dtype was expected"
            )

    def _check_coo(self) -> None:
        if isinstance(self.indices, tuple):
            raise TensorError("a sparse_coo tensor has a pair of index tensors; one was expected")
        if type(self.is_coalesced) is not bool and self.is_coalesced is not None:
            raise TensorError(
                f"is_coalesced of a sparse tensor is {shown(self.is_coalesced)}; True or False was "
                "expected"
            )
        indices, values = shape_of(self.indices), shape_of(self.values)
        if dtype_of(self.indices) != "int64" or len(indices) != 2:
            raise TensorError(
                f"the indices of a sparse_coo tensor are {dtype_of(self.indices)} of shape "
                f"{list(indices)}, not int64 with two dimensions"
            )
        dimensions, nnz = indices
        expected = (nnz, *self.shape[dimensions:])
        if dimensions > len(self.shape) or values != expected:
            raise TensorError(
                f"a sparse_coo tensor of shape {list(self.shape)} has indices of shape "
                f"{list(indices)} and values of shape {list(values)}, which do not fit together"
            )

    def _check_compressed(self) -> None:
        layout, shape = self.layout, self.shape
        by_rows, blocks = _COMPRESSED[layout]
        if not (isinstance(self.indices, tuple) and len(self.indices) == 2):
            raise TensorError(f"a {layout} tensor has one tensor of indices; a pair was expected")
        dtypes = [dtype_of(part) for part in self.indices]
        if dtypes[0] != dtypes[1] or dtypes[0] not in ("int64", "int32"):
            raise TensorError(
                f"the indices of a {layout} tensor are {' and '.join(dtypes)}; int64 or int32 for "
                "both was expected"
            )
        compressed, plain = (shape_of(part) for part in self.indices)
        values = shape_of(self.values)
        batch = len(plain) - 1
        first_dense = batch + (3 if blocks else 1)
        fits = (
            len(compressed) == len(plain) >= 1
            and len(values) >= first_dense
            and len(shape) >= batch + 2
            and compressed[:batch] == plain[:batch] == values[:batch] == shape[:batch]
            and values[batch] == plain[batch]
            and values[first_dense:] == shape[batch + 2 :]
        )
        if fits:
            block = values[batch + 1 : batch + 3] if blocks else (1, 1)
            counts = [0, 0]
            for axis, (size, step) in enumerate(zip(shape[batch : batch + 2], block, strict=True)):
                if step == 0 or size % step:
                    raise TensorError(
                        f"a {layout} tensor of shape {list(shape)} has blocks of {list(block)}, "
                        "which do not fit into it"
                    )
                counts[axis] = size // step
            fits = compressed[batch] == counts[0 if by_rows else 1] + 1
        if not fits:
            raise TensorError(
                f"a {layout} tensor of shape {list(shape)} has compressed indices of shape "
                f"{list(compressed)}, plain indices of shape {list(plain)} and values of shape "
                f"{list(values)}, which do not fit together"
            )

    def _check_values(self, checked: Checked) -> None:
        if self.layout != "sparse_coo":
            self._check_compressed_indices(checked)
            return
        if 0 in shape_of(self.indices):
            return
        found = checked.find(_row_ends, self.indices)
        rows = len(found) // 2
        for axis in range(shape_of(self.indices)[0]):
            row = min(axis, rows - 1)  # one row of indices may stand for all of them
            if found[row] < 0 or found[rows + row] >= self.shape[axis]:
                raise outside(
                    f"the indices of dimension {axis} of a sparse tensor of shape "
                    f"{list(self.shape)}", found[row], found[rows + row], self.shape[axis] - 1,
                )  # fmt: skip

    def _check_compressed_indices(self, checked: Checked) -> None:
        by_rows, blocks = _COMPRESSED[self.layout]
        batch = len(shape_of(self.indices[1])) - 1
        compressed, plain = self.indices
        nnz = self.nnz
        if 0 not in shape_of(compressed):
            *found, backwards = checked.find(steps, compressed)
            if found != [0, 0, nnz, nnz]:
                raise TensorError(
                    f"the compressed indices of a {self.layout} tensor of {nnz:,} values do not go "
                    f"from 0 to {nnz:,}"
                )
            if backwards:
                raise TensorError(f"the compressed indices of a {self.layout} tensor go backwards")
        if 0 not in shape_of(plain):
            axis = 1 if by_rows else 0
            step = shape_of(self.values)[batch + 1 + axis] if blocks else 1
            bound = self.shape[batch + axis] // step
            low, high = checked.find(ends, plain)
            if low < 0 or high >= bound:
                raise outside(
                    f"the plain indices of a {self.layout} tensor of shape {list(self.shape)}",
                    low, high, bound - 1,
                )  # fmt: skip

    def _write_arguments(self, emitter: Emitter, parts: PartWriter, requires_grad: bool) -> Any:
        says_coalesced = self.layout == "sparse_coo" and self.is_coalesced is not None
        has_mark = self.layout != "sparse_coo" or says_coalesced  # of four parts, not three
        emitter.save(Layout(self.layout))
        if has_mark:
            emitter.write(b"(")
        pair = self.indices if isinstance(self.indices, tuple) else (self.indices,)
        for part in (*pair, self.values):
            parts.part(emitter, part)
        emitter.save(Size(map(int, self.shape)))
        if says_coalesced:
            emitter.save(self.is_coalesced)
        emitter.write(b"t" if has_mark else b"\x87")
        emitter.put(None)
        emitter.write(b"\x86")
        emitter.put(None)
        return self.attributes

    def _describe(self) -> str:
        return f"{self.layout}, {self.torch_dtype}, shape={list(self.shape)}, nnz={self.nnz}"


def _row_ends(indices: Array) -> tuple[int, ...]:
    """Return the least of each row, and then the greatest of each."""
    return (*indices.min(axis=1).tolist(), *indices.max(axis=1).tolist())


def _coo(tensor: SparseTensor, dtype: np.dtype[Any]) -> Array:
    indices, values = tensor.indices, tensor.values
    dimensions = len(indices)
    places = np.zeros(indices.shape[1], np.int64)
    for size, row in zip(tensor.shape[:dimensions], indices, strict=True):
        places = places * size + row
    dense = _zeros((math.prod(tensor.shape[:dimensions]), *tensor.shape[dimensions:]), dtype)
    _add(dense, places, values)
    return dense.reshape(tensor.shape)


def _compressed(tensor: SparseTensor, dtype: np.dtype[Any]) -> Array:
    by_rows, blocks = _COMPRESSED[tensor.layout]
    compressed, plain = (part.astype(np.int64) for part in tensor.indices)
    values: Array = tensor.values
    batch = plain.ndim - 1
    batches, nnz = math.prod(plain.shape[:-1]), plain.shape[-1]
    block = values.shape[batch + 1 : batch + 3] if blocks else (1, 1)
    rest = tensor.shape[batch + 2 :]
    counts = [size // step for size, step in zip(tensor.shape[batch:], block, strict=False)]
    rows, columns = counts
    # Each place along the compressed axis as often as it has values.
    lengths = np.diff(compressed.reshape(batches, -1), axis=1)
    along = np.tile(np.arange(lengths.shape[1]), batches).repeat(lengths.reshape(-1))
    across = plain.reshape(-1)
    row, column = (along, across) if by_rows else (across, along)
    places = (np.repeat(np.arange(batches), nnz) * rows + row) * columns + column
    dense = _zeros((batches * rows * columns, *block, *rest), dtype)
    _add(dense, places, values.reshape(-1, *block, *rest))
    # Rows of blocks and rows in a block side by side, and columns likewise.
    split = dense.reshape(batches, rows, columns, *block, *rest).swapaxes(2, 3)
    return np.ascontiguousarray(split).reshape(tensor.shape)


def _add(dense: Array, places: Array, values: Array) -> None:
    """Add values to the rows of an array, one after the other."""
    with np.errstate(all="ignore"):
        np.add.at(dense, places, values)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        return np.zeros(shape, dtype)
    except MemoryError:
        raise OSError(
            errno.ENOMEM, f"an array of shape {list(shape)} and dtype {dtype} does not fit"
        ) from None


def _rebuild(args: tuple[Any, ...], parts: PartReader) -> SparseTensor:
    if len(args) in (6, 7) and type(args[0]) is int:
        return _rebuild_flat(args, parts)
    if len(args) != 2 or type(args[1]) not in (tuple, list):
        raise wrong_arguments("_rebuild_sparse_tensor", "a layout and a tuple", args)
    layout, data = args
    if type(layout) is not Layout:
        raise PickleError(
            f"the layout of a sparse tensor is {shown(layout)}; a torch layout was expected"
        )
    is_coo = layout.name == "sparse_coo"
    if len(data) not in ((3, 4) if is_coo else (4,)):
        count = "3 or 4" if is_coo else "4"
        raise PickleError(f"a {layout.name} tensor is made of {count} parts, not {len(data):,}")
    held = 2 if is_coo else 3
    return _made(parts, layout.name, data[:held], *data[held:])


def _rebuild_flat(args: tuple[Any, ...], parts: PartReader) -> SparseTensor:
    """Make one of TorchScript's: (layout, size, requires_grad, indices ..., values, hooks)."""
    layout = _LAYOUT_NUMBERS.get(args[0])
    if layout is None or len(args) != (6 if layout == "sparse_coo" else 7):
        raise PickleError(
            f"a sparse tensor has layout {shown(args[0])} and {len(args)} arguments, which do "
            "not fit"
        )
    size, requires_grad, *held, hooks = args[1:]
    check_hooks(hooks)
    return _made(parts, layout, held, size).replace(requires_grad=requires_grad)


def _made(
    parts: PartReader, layout: str, held: Sequence[Any], size: Any, is_coalesced: Any = None
) -> SparseTensor:
    """Make a tensor of its indices, one tensor or two, and its values."""
    whats = ("indices",) if layout == "sparse_coo" else ("compressed indices", "plain indices")
    *indices, values = map(parts.part, held, (*whats, "values"))
    return SparseTensor(
        layout, indices[0] if len(indices) == 1 else indices, values, sizes_of(size), is_coalesced
    )


REBUILDS: dict[Name, Rebuild] = {
    SparseTensor.REBUILT_BY: _rebuild,
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _rebuild,
}
