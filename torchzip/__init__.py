"""torchzip: PyTorch checkpoints without PyTorch.

Read, write and convert the files of ``torch.save`` with numpy and ml_dtypes alone.
"""

from typing import TYPE_CHECKING, Any

from torchzip import types
from torchzip.checkpoint.lazy import Checkpoint, LazyTensor, lazy_load
from torchzip.checkpoint.loading import load
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

# Whoever only reads need not wait for what writes: these are imported when they are asked for.
if TYPE_CHECKING:
    from torchzip.checkpoint.saving import incremental_save, save
    from torchzip.convert.conversion import convert
else:
    # Once the package of that name is imported, it does not take the function's place later.
    from torchzip import convert

    del convert

    def __getattr__(name: str) -> Any:
        if name == "save":
            from torchzip.checkpoint.saving import save as found
        elif name == "incremental_save":
            from torchzip.checkpoint.saving import incremental_save as found
        elif name == "convert":
            from torchzip.convert.conversion import convert as found
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
