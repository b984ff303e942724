"""Quantized tensors, per tensor and per channel: <-> ``_rebuild_qtensor``.

`QuantizedTensor.dequantize` is equal to torch 2.13's for all bits (tests compare them), NaN
payloads apart: ``(q - zero_point) * scale``. Per tensor, the difference is of int32 and the product
of float32; per channel the difference is of float32, and the product of float64 or, with zero
points that are floats, of float32.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchzip.dtypes import DTYPES, DtypeRow
from torchzip.errors import EnoughMemory, PickleError, TensorError, UnsupportedError, shown
from torchzip.leaf_types import QScheme
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.base import OtherTensor, PartReader, PartWriter
from torchzip.tensors.kinds.parts import (
    MAX,
    Array,
    Checked,
    as_array,
    bare,
    check_memory,
    dtype_name,
    dtype_of,
    ends,
    shape_of,
    sizes_of,
)
from torchzip.tensors.specs import check_count, check_hooks, contiguous_stride, is_contiguous

if TYPE_CHECKING:
    from torchzip.pickling.emitter import Emitter

#: The dtype of a tensor of these integers, unless they are packed.
_OF_INTEGERS = {
    row.raw: row.name for row in DTYPES.values() if row.kind == "quantized" and row.per_byte == 1
}
_PER_CHANNEL = ("per_channel_affine", "per_channel_affine_float_qparams")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantizedTensor(OtherTensor):
    """A quantized tensor: integers, and the scale and zero point that turn them into floats.

    Per tensor, ``axis`` is None, ``scale`` a float and ``zero_point`` an int. Per channel, the last
    two are one-dimensional arrays with an element for each index of ``axis``: float64 and int64, or
    both float32 for the scheme ``per_channel_affine_float_qparams``. In files of torch before 1.4
    they are lists.

    ``int_repr`` holds the integers: int8 for qint8, uint8 for quint8, int32 for qint32. The packed
    dtypes have 2 (quint4x2) or 4 (quint2x4) values in a byte, the first in the lowest bits. Their
    ``int_repr`` is a one-dimensional uint8 array, and ``torch_dtype`` and ``shape`` are required.

    >>> import numpy as np
    >>> tensor = QuantizedTensor(np.array([3, 4], "uint8"), 0.5, 3)
    >>> tensor, tensor.dequantize().tolist()
    (QuantizedTensor(quint8, shape=[2], per_tensor_affine), [0.0, 0.5])
    """

    int_repr: Any
    scale: Any
    zero_point: Any
    axis: int | None = None
    requires_grad: bool = field(default=False, kw_only=True)
    torch_dtype: str = field(default="", kw_only=True)
    shape: tuple[int, ...] = field(default=None, kw_only=True)  # type: ignore[arg-type]

    PARTS: ClassVar[tuple[str, ...]] = ("int_repr", "scale", "zero_point")
    REBUILT_BY: ClassVar[Name] = ("torch._utils", "_rebuild_qtensor")
    kind = "quantized"

    def __post_init__(self) -> None:
        self._check_parts("int_repr")
        if self.axis is None:
            object.__setattr__(self, "scale", float(self.scale))
            object.__setattr__(self, "zero_point", int(self.zero_point))
        if not self.torch_dtype:
            name = dtype_name(self.int_repr)
            object.__setattr__(self, "torch_dtype", _OF_INTEGERS.get(name, name))
        shape: Any = self.shape  # None: that of the integers
        if shape is None:
            shape = bare(self.int_repr).shape
        object.__setattr__(self, "shape", tuple(map(operator.index, shape)))

    @property
    def qscheme(self) -> str:
        """Torch's name for the scheme."""
        if self.axis is None:
            return "per_tensor_affine"
        listed = isinstance(self.zero_point, list)
        floats = not listed and dtype_name(self.zero_point).startswith("float")
        return "per_channel_affine_float_qparams" if floats else "per_channel_affine"

    @EnoughMemory()
    def dequantize(self) -> Array:
        """Return the float32 array that torch's ``dequantize()`` gives.

        Raises
        ------
        TensorError
            If a zero point lies outside the integers of the dtype, which torch refuses too.
        OSError
            If the array does not fit into memory.
        """
        self.check()
        self.check_values()
        numel = math.prod(self.shape)
        check_memory(3 * 4 * numel, f"a float32 array of shape {list(self.shape)}")
        stored = as_array(self.int_repr)
        row = DTYPES[self.torch_dtype]
        if row.per_byte > 1:
            bits = 8 // row.per_byte
            shifts = np.arange(row.per_byte, dtype=np.uint8) * np.uint8(bits)
            flat = stored[: _packed_nbytes(row, self.shape), None] >> shifts
            flat = (flat & np.uint8((1 << bits) - 1)).reshape(-1)
            stored = flat[:numel].reshape(self.shape)
        scales, zero_points = as_array(self.scale), as_array(self.zero_point)
        floats = zero_points.dtype.kind not in "iu"
        bounds = np.iinfo(np.dtype(row.raw))
        if zero_points.size and not floats:
            low, high = ends(zero_points)
            if low < bounds.min or high > bounds.max:
                raise TensorError(
                    f"zero points from {low} to {high} for a tensor of {self.torch_dtype}, whose "
                    f"integers go from {bounds.min} to {bounds.max}"
                )
        with np.errstate(all="ignore"):
            if self.axis is None:
                # Past 32 bits the difference wraps, as in torch.
                whole = stored.astype(np.int32) - zero_points.astype(np.int32)
                return np.asarray(whole.astype(np.float32) * np.float32(self.scale))
            along = tuple(-1 if axis == self.axis else 1 for axis in range(len(self.shape)))
            differences = stored.astype(np.float32) - zero_points.reshape(along).astype(np.float32)
            scales = scales.reshape(along).astype(np.float32 if floats else np.float64)
            return np.asarray((differences * scales).astype(np.float32))

    def _check(self) -> None:
        row = DTYPES.get(self.torch_dtype)
        if row is None or row.kind != "quantized":
            raise TensorError(
                f"a quantized tensor is of dtype {shown(self.torch_dtype)}; a quantized one was "
                "expected"
            )
        sizes_of(self.shape, "the shape of a quantized tensor")
        found, shape = dtype_of(self.int_repr), shape_of(self.int_repr)
        if found not in (row.name, row.raw):
            raise TensorError(
                f"the integers of a {row.name} tensor are {found}; {row.raw} was expected"
            )
        if row.per_byte > 1:
            needed = _packed_nbytes(row, self.shape)
            if len(shape) != 1 or shape[0] < needed:
                raise TensorError(
                    f"a {row.name} tensor of shape {list(self.shape)} needs {needed:,} bytes with "
                    f"one dimension, and its integers have shape {list(shape)}"
                )
        elif shape != self.shape:
            raise TensorError(
                f"a quantized tensor of shape {list(self.shape)} has integers of shape "
                f"{list(shape)}"
            )
        if self.axis is None:
            scale, zero_point = self.scale, self.zero_point
            if not (type(scale) is float and type(zero_point) is int and -MAX <= zero_point < MAX):
                raise _wrong_scale(scale, zero_point)
            return
        axis = self.axis
        if type(axis) is not int or not 0 <= axis < len(self.shape):
            raise TensorError(
                f"the axis of a quantized tensor of {len(self.shape)} dimensions is {shown(axis)}"
            )
        for part, what, kinds in (
            (self.scale, "scales", ("float",)),
            (self.zero_point, "zero points", ("float", "int")),
        ):
            is_list = type(part) is list  # of torch before 1.4; its items are checked with values
            if not is_list and DTYPES[dtype_of(part)].kind not in kinds:
                raise TensorError(
                    f"the {what} of a quantized tensor are {dtype_of(part)}; "
                    f"{' or '.join(kinds)} was expected"
                )
            sizes = (len(part),) if is_list else shape_of(part)
            if sizes != (self.shape[axis],):
                raise TensorError(
                    f"a quantized tensor has {what} of shape {list(sizes)} for "
                    f"{self.shape[axis]:,} channels on axis {axis}"
                )

    def _check_values(self, checked: Checked) -> None:
        if self.axis is not None:
            for numbers, kinds in ((self.scale, (int, float)), (self.zero_point, (int,))):
                if type(numbers) is list:
                    _check_list(numbers, kinds, checked)

    def _write_arguments(self, emitter: Emitter, parts: PartWriter, requires_grad: bool) -> Any:
        from torchzip.tensors.reduce import empty_ordered_dict

        spec = parts.integers_of(emitter, self)
        emitter.write(b"(")
        parts.dense.persistent_id(emitter, spec.storage, self.torch_dtype)
        emitter.save(spec.storage_offset)
        packed = DTYPES[self.torch_dtype].per_byte > 1
        emitter.save(tuple(map(int, self.shape)))
        emitter.save(contiguous_stride(self.shape) if packed else (*spec.stride,))
        # The name is the same for both schemes per channel: the dtypes tell them apart.
        scheme = QScheme("per_tensor_affine" if self.axis is None else "per_channel_affine")
        axis = () if self.axis is None else (self.axis,)
        parts.tuple(emitter, scheme, self.scale, self.zero_point, *axis)
        emitter.save(requires_grad)
        empty_ordered_dict(emitter)
        emitter.write(b"t")
        emitter.put(None)
        return self.attributes

    def _describe(self) -> str:
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"{self.torch_dtype}, shape={list(self.shape)}, {self.qscheme}{axis}"


def _check_list(numbers: list[Any], kinds: tuple[type, ...], checked: Checked) -> None:
    """Check the scales or zero points of a file of torch before 1.4."""
    for number in numbers if checked.is_new(numbers) else ():
        if type(number) not in kinds or not (type(number) is float or abs(number) < MAX):
            raise TensorError(
                f"the scales or zero points of a tensor have {shown(number)} in them; numbers of "
                "64 bits were expected"
            )


def _packed_nbytes(row: DtypeRow, shape: tuple[int, ...]) -> int:
    """Return the bytes that the elements of a packed tensor take: it is packed as if flat."""
    return -(-math.prod(shape) // row.per_byte)


def _wrong_scale(scale: Any, zero_point: Any) -> TensorError:
    """Return the error of a scale and zero point that are not valid numbers."""
    return TensorError(
        f"a quantized tensor has scale {shown(scale)} and zero point {shown(zero_point)}; a float "
        "and an int of 64 bits were expected"
    )


QuantizedTensor.__module__ = "torchzip.types"


def rebuild(args: tuple[Any, ...], parts: PartReader) -> QuantizedTensor:
    check_count("_rebuild_qtensor", args, 7)
    storage, offset, size, stride, params, requires_grad, hooks = args
    check_hooks(hooks)
    torch_dtype: Any = getattr(getattr(storage, "storage", None), "torch_dtype", None) or "uint8"
    row = DTYPES[torch_dtype]
    shape = sizes_of(size, "the size of a quantized tensor")
    scale, zero_point, axis = _params(params, parts)
    if row.per_byte > 1:
        # Packed as if flat; its offset counts bytes (so do torch's kernels).
        if not is_contiguous(shape, sizes_of(stride, "the stride of a quantized tensor")):
            raise TensorError(f"a {torch_dtype} tensor of size {list(shape)} is not contiguous")
        size, stride = (_packed_nbytes(row, shape),), (1,)
    return QuantizedTensor(
        bare(parts.dense(storage, offset, size, stride)),
        scale, zero_point, axis,
        torch_dtype=torch_dtype, shape=shape, requires_grad=requires_grad,
    )  # fmt: skip


def _params(params: Any, parts: PartReader) -> tuple[Any, Any, int | None]:
    """Return scale, zero point and axis of the parameters of a quantizer."""
    if type(params) not in (tuple, list) or not params or type(params[0]) is not QScheme:
        raise PickleError(
            f"the parameters of a quantized tensor are {shown(params)}; they begin with a scheme"
        )
    scheme = params[0].name
    if scheme == "per_tensor_affine" and len(params) == 3:
        scale, zero_point = params[1:]
        if type(scale) is int and abs(scale) < 1 << 63:
            scale = float(scale)
        if type(scale) is not float or type(zero_point) is not int:
            raise _wrong_scale(scale, zero_point)
        return scale, zero_point, None
    if scheme not in _PER_CHANNEL or len(params) != 4:
        raise TensorError(f"a quantized tensor of scheme {scheme} has {len(params):,} parameters")
    scales, zero_points, axis = params[1:]
    if type(axis) is not int:
        raise TensorError(f"the axis of a quantized tensor is {shown(axis)}; an int was expected")
    if type(scales) is list and type(zero_points) is list:  # torch before 1.4
        if scheme != "per_channel_affine":
            raise UnsupportedError(
                f"a quantized tensor of scheme {scheme} with lists for its scales is not read"
            )
        return scales, zero_points, axis
    return parts.part(scales, "scales"), parts.part(zero_points, "zero points"), axis
