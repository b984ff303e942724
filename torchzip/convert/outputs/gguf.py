"""The GGUF format: values by key, a table of tensors, and the elements of each.

The bytes are those of the ``gguf`` package's writer for the same values and tensors in the same
order. Names stay as they are: what llama.cpp calls the tensors of a model is not known here.
"""

from __future__ import annotations

from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.container.gguf import MOST_NAME_NBYTES, MOST_NDIM, build_header
from torchzip.convert.casting import DtypeOf, cast_elements
from torchzip.convert.outputs.by_name import PlannerByName, name_bytes
from torchzip.convert.planned import PlannedFile
from torchzip.convert.selection import Selection
from torchzip.dtypes import BLOCKS, DTYPES
from torchzip.errors import UnsupportedError, listed
from torchzip.tensors.gguf_blocks import ENCODED, encoded, fits
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage


class GgufOutput(PlannerByName):
    """Tensors by their names, some as blocks of codes; one tensor of a tie has the data."""

    format = "gguf"
    suffixes = (".gguf",)
    has_crcs = False
    has_metadata = True
    has_typed_metadata = True
    blocks = ENCODED

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        #: By the blocks that were asked for, the tensors that do not have them.
        self._left: dict[str, list[str]] = {}
        super().__init__(checkpoint, selection, dtype_of)
        self.lost += [
            f"blocks of {block}, which tensors of two dimensions or more have if their rows are "
            f"multiples of {BLOCKS[block].elements}; others stay what they are: {listed(names)}"
            for block, names in self._left.items()
        ]
        self.lost += [
            f"{name}: a shape without dimensions, which becomes [1]"
            for name, tensor in self.tensors.items()
            if not tensor.shape
        ]

    @classmethod
    def check_value(cls, key: str, value: Any) -> None:
        build_header({key: value}, [])  # which raises

    def shape(self, tensor: LazyTensor) -> tuple[int, ...]:
        return tensor.shape or (1,)  # ggml has at least one dimension

    def left_out(self, spec: TensorSpec) -> str | None:
        # ggml divides by the sizes of the slower axes.
        return None if spec.numel else "no elements, which ggml does not read"

    def stored_dtype(self, name: str, spec: TensorSpec, dtype: str) -> str:
        self._check(name, spec)
        if dtype in BLOCKS and not fits(dtype, spec):
            self._left.setdefault(dtype, []).append(name)
            dtype = spec.torch_dtype
        elif dtype == spec.torch_dtype and spec.storage.block is not None and spec.is_whole:
            dtype = spec.storage.block  # without a rule it stays what it was in its file
        if dtype not in BLOCKS and DTYPES[dtype].gguf is None:
            raise self.no_dtype(name, dtype)
        return dtype

    def stored(self, spec: TensorSpec, dtype: str) -> TensorStorage:
        return encoded(spec, dtype) if dtype in BLOCKS else cast_elements(spec, dtype)

    def _check(self, name: str, spec: TensorSpec) -> None:
        """Raise UnsupportedError for what ggml does not read."""
        nbytes = len(name_bytes(name))
        if nbytes > MOST_NAME_NBYTES:
            raise UnsupportedError(
                f"{name}: a name of {nbytes:,} bytes, and ggml reads {MOST_NAME_NBYTES} at most; "
                "give it a shorter one with --rename"
            )
        if len(spec.shape) > MOST_NDIM:
            raise UnsupportedError(
                f"{name}: {len(spec.shape)} dimensions, and GGUF has {MOST_NDIM} at most; leave "
                "the tensor out with --exclude"
            )

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        rows = [(name, self.dtypes[name], self.shape(self.tensors[name])) for name in names]
        head, starts, nbytes = build_header(self.selection.metadata, rows)
        return self.file(path, head, names, starts, nbytes)
