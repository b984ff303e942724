"""Types of values in a checkpoint for which numpy has none, and of tensors that are not dense.

They are immutable. Load, save and torch keep each of them unchanged.
"""

from torchzip.leaf_types import (
    Device,
    Dtype,
    ForeignObject,
    Layout,
    Parameter,
    QScheme,
    Size,
    Storage,
    TypedArray,
)
from torchzip.tensors.kinds.base import OtherTensor
from torchzip.tensors.kinds.meta import MetaTensor
from torchzip.tensors.kinds.nested import NestedTensor
from torchzip.tensors.kinds.quantized import QuantizedTensor
from torchzip.tensors.kinds.sparse import SparseTensor

__all__ = [
    "Device", "Dtype", "ForeignObject", "Layout", "MetaTensor", "NestedTensor", "OtherTensor",
    "Parameter", "QScheme", "QuantizedTensor", "Size", "SparseTensor", "Storage", "TypedArray",
]  # fmt: skip
