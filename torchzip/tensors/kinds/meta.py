"""Tensors on torch's meta device: <-> ``_rebuild_meta_tensor_no_storage``."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torchzip.dtypes import DTYPES, NAME_ONLY
from torchzip.errors import TensorError, shown
from torchzip.leaf_types import Dtype
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.base import OtherTensor, PartReader, PartWriter
from torchzip.tensors.kinds.parts import MAX, sizes_of
from torchzip.tensors.specs import check_count, contiguous_stride, wrong_dtype

if TYPE_CHECKING:
    from torchzip.pickling.emitter import Emitter


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MetaTensor(OtherTensor):
    """A tensor on torch's meta device: dtype, shape and stride (in elements), and no data.

    >>> MetaTensor("float32", (2, 3)), MetaTensor("float32", (2, 3)).stride
    (MetaTensor(float32, shape=[2, 3]), (3, 1))
    """

    torch_dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] = None  # type: ignore[assignment]
    requires_grad: bool = False

    REBUILT_BY: ClassVar[Name] = ("torch._utils", "_rebuild_meta_tensor_no_storage")
    kind = "meta"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(operator.index, self.shape)))
        stride: Any = self.stride  # None: that of a contiguous tensor
        stride = contiguous_stride(self.shape) if stride is None else map(operator.index, stride)
        object.__setattr__(self, "stride", tuple(stride))

    def _check(self) -> None:
        if self.torch_dtype not in DTYPES and self.torch_dtype not in NAME_ONLY:
            raise TensorError(
                f"the dtype of a meta tensor is {shown(self.torch_dtype)}, which torch does not "
                "have"
            )
        shape = sizes_of(self.shape, "the shape of a meta tensor")
        stride = sizes_of(self.stride, "the stride of a meta tensor")
        if len(shape) != len(stride):
            raise TensorError(f"a meta tensor has {len(shape)} sizes and {len(stride)} strides")
        if math.prod(max(size, 1) for size in shape) >= MAX:
            raise TensorError(f"a meta tensor of size {list(shape)} has 2**63 elements or more")

    def _write_arguments(self, emitter: Emitter, parts: PartWriter, requires_grad: bool) -> Any:
        emitter.save((Dtype(self.torch_dtype), (*self.shape,), (*self.stride,), requires_grad))
        return self.attributes


MetaTensor.__module__ = "torchzip.types"


def rebuild(args: tuple[Any, ...], parts: PartReader) -> MetaTensor:
    check_count("_rebuild_meta_tensor_no_storage", args, 4)
    dtype, size, stride, requires_grad = args
    if type(dtype) is not Dtype:
        raise wrong_dtype("a meta tensor", dtype)
    size = sizes_of(size, "the size of a meta tensor")
    return MetaTensor(
        dtype.name, size, sizes_of(stride, "the stride of a meta tensor"), requires_grad
    )
