"""The names that torch's default loader accepts (``weights_only=True``, torch 2.13).

See docs/format.md, section 8.3. They show a user in advance what that loader will refuse;
torchzip's reader has a table of its own. 144 names, and the four that ``import torch`` adds.
"""

from __future__ import annotations

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES, STORAGE_CLASSES

_CUDA_STORAGES = [name for name, row in STORAGE_CLASSES.items() if row.kind != "quantized"]
_TENSORS = (
    "DoubleTensor FloatTensor HalfTensor BFloat16Tensor LongTensor IntTensor ShortTensor "
    "CharTensor ByteTensor"
).split()

TORCH_SAFE_NAMES: frozenset[str] = frozenset(
    [
        "collections.OrderedDict", "collections.Counter", "_codecs.encode",
        "builtins.bytearray", "builtins.set", "builtins.complex",
        "torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        *(
            f"torch._utils.{name}"
            for name in (
                "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3",
                "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_qtensor",
                "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage",
                "_rebuild_nested_tensor", "_rebuild_wrapper_subclass",
                "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor",
            )
        ),
        "torch._tensor._rebuild_from_type_v2",
        *(f"torch.{name}" for name in DTYPES),
        *(f"torch.{name}" for name in NAME_ONLY),
        *(f"torch.{name}" for name in QSCHEMES),
        *(f"torch.{name}" for name in STORAGE_CLASSES),
        *(f"torch.cuda.{name}" for name in _CUDA_STORAGES),
        "torch.storage.UntypedStorage", "torch.storage.TypedStorage",
        *(f"torch.{cuda}{name}" for cuda in ("", "cuda.") for name in (*_TENSORS, "BoolTensor")),
        *(f"torch.{cuda}sparse.{name}" for cuda in ("", "cuda.") for name in _TENSORS),
        "torch.nested._internal.nested_tensor.NestedTensor",
        "torch.nested._internal.nested_tensor._rebuild_njt",
        "torch.distributed._mesh_layout._FlatLayout",
        "torch.distributed._mesh_layout._MeshLayout",
    ]
)  # fmt: skip


def is_torch_safe(module: str, name: str) -> bool:
    """Return whether torch's default loader accepts a name.

    It looks up ``module.name`` as one string, so the place of the dot does not matter.
    """
    return f"{module}.{name}" in TORCH_SAFE_NAMES and module not in ("sys", "os", "posix", "nt")
