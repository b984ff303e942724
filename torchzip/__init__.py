"""torchzip: PyTorch checkpoints without PyTorch.

Read, write and convert the files of ``torch.save`` with numpy and ml_dtypes alone.
"""

from torchzip import types
from torchzip.checkpoint.lazy import Checkpoint, LazyTensor, lazy_load
from torchzip.checkpoint.loading import load
from torchzip.checkpoint.saving import incremental_save, save
from torchzip.convert.conversion import convert
from torchzip.errors import (
    FormatError,
    LimitError,
    TorchZipError,
    UnsafeGlobalError,
    UnsupportedError,
)
from torchzip.limits import Limits

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "FormatError",
    "LazyTensor",
    "LimitError",
    "Limits",
    "TorchZipError",
    "UnsafeGlobalError",
    "UnsupportedError",
    "__version__",
    "convert",
    "incremental_save",
    "lazy_load",
    "load",
    "save",
    "types",
]
