"""torchzip: PyTorch checkpoints without PyTorch.

Read, write and convert the files of ``torch.save`` with numpy and ml_dtypes alone.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

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
    "executors",
    "incremental_save",
    "lazy",
    "lazy_load",
    "load",
    "save",
    "tools",
    "types",
]

# Each name is imported when it is first used: a program that only reads does not wait for the
# writers, and one that may never open a checkpoint does not wait for numpy.
if TYPE_CHECKING:
    from torchzip import executors, lazy, tools, types
    from torchzip.checkpoint.incremental import incremental_save
    from torchzip.checkpoint.lazy import Checkpoint, lazy_load
    from torchzip.checkpoint.lazy_tensor import LazyTensor
    from torchzip.checkpoint.loading import load
    from torchzip.checkpoint.saving import save
    from torchzip.convert.conversion import convert
    from torchzip.errors import (
        FormatError,
        LimitError,
        TorchZipError,
        UnsafeGlobalError,
        UnsupportedError,
    )
    from torchzip.limits import Limits
else:
    # Importing the package of that name first keeps it from replacing the function later.
    from torchzip import convert

    del convert

    def __getattr__(name: str) -> Any:
        if name in ("Checkpoint", "LazyTensor", "lazy_load"):
            from torchzip.checkpoint import lazy as home
        elif name == "load":
            from torchzip.checkpoint import loading as home
        elif name == "save":
            from torchzip.checkpoint import saving as home
        elif name == "incremental_save":
            from torchzip.checkpoint import incremental as home
        elif name == "convert":
            from torchzip.convert import conversion as home
        elif name == "Limits":
            from torchzip import limits as home
        elif name == "executors":
            import torchzip.executors

            return torchzip.executors
        elif name == "lazy":
            import torchzip.lazy

            return torchzip.lazy
        elif name == "types":
            import torchzip.types

            return torchzip.types
        elif name == "tools":
            import torchzip.tools

            return torchzip.tools
        elif name in __all__:
            from torchzip import errors as home
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = vars(home)[name]
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
