"""Sparse tensors: COO, CSR, CSC, BSR and BSC.

`SparseTensor.todense` is equal to torch 2.13's ``to_dense()`` for all bits (tests compare them),
NaN payloads apart: values are added to zeros, one after the other, in the dtype of the values. So a
value of -0.0 becomes 0.0, and bools are or-ed.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

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
from torchzip.tensors.kinds.base import OtherTensor, PartReader, PartWriter
from torchzip.tensors.kinds.parts import (
    Array,
    Checked,
    as_array,
    check_memory,
    dtype_name,
    dtype_of,
    ends,
    outside,
    shape_of,
    sizes_of,
    steps,
)
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype
from torchzip.tensors.specs import Shape, check_hooks

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

    PARTS: ClassVar[tuple[str, ...]] = ("indices", "values")
    REBUILT_BY: ClassVar[Name] = ("torch._utils", "_rebuild_sparse_tensor")

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(operator.index, self.shape)))
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
        return int(self._all_indices[-1].shape[-1])

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
        with np.errstate(all="ignore"):
            return (_coo if self.layout == "sparse_coo" else _compressed)(tensor, dtype)

    @property
    def _all_indices(self) -> tuple[Any, ...]:
        return self.indices if isinstance(self.indices, tuple) else (self.indices,)

    def _check(self) -> None:
        layout, indices = self.layout, self._all_indices
        shape = sizes_of(self.shape, f"the shape of a {layout} tensor")
        is_coo = layout == "sparse_coo"
        if not (is_coo or layout in _COMPRESSED):
            raise TensorError(
                f"a sparse tensor has layout {shown(layout)}, which torch does not have"
            )
        if type(self.is_coalesced) is not bool and self.is_coalesced is not None:
            raise TensorError(
                f"is_coalesced of a sparse tensor is {shown(self.is_coalesced)}; True or False was "
                "expected"
            )
        dtypes = [dtype_of(part) for part in indices]
        allowed = [["int64"]] if is_coo else [["int64"] * 2, ["int32"] * 2]
        if dtypes not in allowed:
            raise TensorError(
                f"the indices of a {layout} tensor are {' and '.join(dtypes)}; "
                f"{'one int64 tensor' if is_coo else 'two of int64, or of int32,'} was expected"
            )
        if DTYPES[dtype_of(self.values)].kind == "quantized":
            raise TensorError(
                "the values of a sparse tensor are quantized; another dtype was expected"
            )
        shapes = [*map(shape_of, indices), shape_of(self.values)]
        if not (self._coo_fits if is_coo else self._compressed_fits)(shape, *shapes):
            raise TensorError(
                f"a {layout} tensor of shape {list(shape)} has indices of shape "
                f"{' and '.join(str(list(each)) for each in shapes[:-1])} and values of shape "
                f"{list(shapes[-1])}, which do not fit together"
            )

    def _coo_fits(self, shape: Shape, indices: Shape, values: Shape) -> bool:
        if len(indices) != 2 or indices[0] > len(shape):
            return False
        return values == (indices[1], *shape[indices[0] :])

    def _compressed_fits(
        self, shape: Shape, compressed: Shape, plain: Shape, values: Shape
    ) -> bool:
        by_rows, blocks = _COMPRESSED[self.layout]
        batch = len(plain) - 1
        first_dense = batch + (3 if blocks else 1)
        if not (
            len(compressed) == len(plain) >= 1
            and len(values) >= first_dense
            and len(shape) >= batch + 2
            and compressed[:batch] == plain[:batch] == values[:batch] == shape[:batch]
            and values[batch] == plain[batch]
            and values[first_dense:] == shape[batch + 2 :]
        ):
            return False
        block = values[batch + 1 : batch + 3] if blocks else (1, 1)
        sizes = shape[batch : batch + 2]
        if any(step == 0 or size % step for size, step in zip(sizes, block, strict=True)):
            return False
        axis = 0 if by_rows else 1
        return compressed[batch] == sizes[axis] // block[axis] + 1

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
        emitter.save(Layout(self.layout))
        mark = (self.is_coalesced,) if says_coalesced else ()
        parts.tuple(emitter, *self._all_indices, self.values, Size(self.shape), *mark)
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
    dense = np.zeros((math.prod(tensor.shape[:dimensions]), *tensor.shape[dimensions:]), dtype)
    np.add.at(dense, places, values)  # one after the other
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
    dense = np.zeros((batches * rows * columns, *block, *rest), dtype)
    np.add.at(dense, places, values.reshape(-1, *block, *rest))
    # Rows of blocks and rows in a block side by side, and columns likewise.
    split = dense.reshape(batches, rows, columns, *block, *rest).swapaxes(2, 3)
    return np.ascontiguousarray(split).reshape(tensor.shape)


SparseTensor.__module__ = "torchzip.types"


def rebuild(args: tuple[Any, ...], parts: PartReader) -> SparseTensor:
    requires_grad = False
    if len(args) in (6, 7) and type(args[0]) is int:
        # TorchScript's: (layout, size, requires_grad, indices ..., values, hooks).
        number, size, requires_grad, *data, hooks = args
        check_hooks(hooks)
        data.append(size)
        layout = _LAYOUT_NUMBERS.get(number)
    elif len(args) == 2 and type(args[0]) is Layout and type(args[1]) in (tuple, list):
        layout, data = args[0].name, args[1]
    else:
        raise wrong_arguments("_rebuild_sparse_tensor", "a layout and a tuple", args)
    is_coo = layout == "sparse_coo"
    whats = ("indices", "values") if is_coo else ("compressed indices", "plain indices", "values")
    if layout is None or len(data) - len(whats) not in ((1, 2) if is_coo else (1,)):
        raise PickleError(
            f"a sparse tensor of layout {shown(layout)} is made of {len(data):,} parts; "
            f"{', '.join(whats)} and a size were expected"
        )
    *indices, values = map(parts.part, data, whats)
    size, *mark = data[len(whats) :]
    return SparseTensor(
        layout,
        indices[0] if is_coo else tuple(indices),
        values,
        sizes_of(size, "the size of a sparse tensor"),
        mark[0] if mark else None,
        requires_grad=requires_grad,
    )
