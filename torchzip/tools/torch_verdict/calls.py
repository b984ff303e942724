"""What the names of torch's allow-list give when they are called, and when they do not.

Source: torch 2.13, ``_weights_only_unpickler.py``, ``_utils.py``, ``_tensor.py`` and
``nn/parameter.py``, each compared with what the release does (`tests/test_torch_mutants.py`). What
torchzip has checked while it read the file is not checked again: that a tensor lies inside its
storage, that sizes are ints, that the parts of a sparse tensor fit together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES, STORAGE_CLASSES
from torchzip.errors import shown
from torchzip.pickling.allowlist import TORCH_SAFE_NAMES
from torchzip.tensors.specs import is_contiguous
from torchzip.tools.torch_verdict.values import (
    UNKNOWN,
    Made,
    RefusedError,
    Unknown,
    is_dict,
    is_empty,
    is_tensor,
)

Args = tuple[Any, ...]

_DEVICES = (
    "cpu cuda ipu xpu mkldnn opengl opencl ideep hip ve fpga maia xla lazy vulkan mps meta hpu "
    "mtia privateuseone"
).split()
_DEVICE = re.compile(rf"(?:{'|'.join(_DEVICES)})(:(?:0|[1-9]\d{{0,8}}))?", re.ASCII)
_LAYOUTS = frozenset(
    "torch.strided torch.sparse_coo torch.sparse_csr torch.sparse_csc torch.sparse_bsr "
    "torch.sparse_bsc torch._mkldnn torch.jagged".split()
)
#: Attributes of a tensor that cannot be set, or to a tensor at most.
_FIXED = frozenset(
    "H T __class__ __cuda_array_interface__ __weakref__ _base _cdata _has_symbolic_sizes_strides "
    "_python_dispatch _version device dtype grad_fn imag is_cpu is_cuda is_ipu is_leaf is_maia "
    "is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr is_vulkan "
    "is_xla is_xpu itemsize layout mH mT name nbytes ndim output_nr real retains_grad shape "
    "__dict__ data".split()
)
_NONE_OR_TENSOR = frozenset("_grad _grad_fn grad grad_dtype".split())
#: Dtypes whose tensors can have a gradient.
_DIFFERENTIABLE = frozenset(
    name
    for name, row in DTYPES.items()
    if row.kind in ("float", "complex") or name == "float4_e2m1fn_x2"
)
#: Classes of the allow-list; all other names that are called are functions.
_CLASSES = frozenset(
    [
        "collections.OrderedDict", "collections.Counter", "builtins.bytearray", "builtins.set",
        "builtins.complex", "torch.Size", "torch.Tensor", "torch.device",
        "torch.nn.parameter.Parameter", "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage", "torch.nested._internal.nested_tensor.NestedTensor",
        "torch.distributed._mesh_layout._FlatLayout", "torch.distributed._mesh_layout._MeshLayout",
        *(name for name in TORCH_SAFE_NAMES if name.endswith("Tensor")),
    ]
)  # fmt: skip


def value_of(path: str) -> Made:
    """Return what stands for a name of the allow-list."""
    module, _, name = path.rpartition(".")
    if module == "torch" and (name in DTYPES or name in NAME_ONLY):
        return Made("dtype", name)
    if module == "torch" and name in QSCHEMES:
        return Made("qscheme", name)
    if module in ("torch", "torch.cuda") and name in STORAGE_CLASSES:
        return Made("StorageType", STORAGE_CLASSES[name].name)
    return Made("class" if path in _CLASSES else "function", path)


def call(callee: Any, args: Any) -> Any:
    """Return what a call gives; raise RefusedError where it fails."""
    if isinstance(callee, Unknown):
        return UNKNOWN
    if not isinstance(callee, Made) or callee.kind not in ("function", "class"):
        raise RefusedError(f"{described(callee)} is called, which cannot be called")
    if not isinstance(args, tuple):
        raise RefusedError(f"{callee.name} is called with {described(args)}, not with a tuple")
    handler = _CALLS.get(callee.name)
    return UNKNOWN if handler is None else handler(args)


def new(callee: Any, args: Any) -> Any:
    """Return what ``cls.__new__(cls, *args)`` gives."""
    if isinstance(callee, Unknown):
        return UNKNOWN
    if not isinstance(callee, Made) or callee.kind != "class":
        raise RefusedError(f"a new object of {described(callee)}, which is not a class")
    if not isinstance(args, tuple):
        raise RefusedError(f"a new {callee.name} of {described(args)}, not of a tuple")
    if callee.name in _EMPTY:  # which take their arguments in __init__
        return Made(callee.name.rpartition(".")[2])
    return call(callee, args)


def described(value: Any) -> str:
    """Return what a value is, for messages."""
    if isinstance(value, Made):
        if value.kind in ("function", "class"):
            return value.name
        if value.kind in ("dtype", "qscheme"):
            return f"torch.{value.name}"
        return f"a {value.kind}"
    return "a value" if isinstance(value, Unknown) else shown(value)


# -- tensors ---------------------------------------------------------------------------------


def _arity(args: Args, name: str, *counts: int) -> None:
    if len(args) not in counts:
        wanted = " or ".join(map(str, counts))
        raise RefusedError(f"{name} takes {wanted} arguments, not {len(args)}")


def _check_gradient(torch_dtype: str, requires_grad: Any) -> None:
    if requires_grad is True and torch_dtype and torch_dtype not in _DIFFERENTIABLE:
        raise RefusedError(
            f"a tensor of {torch_dtype} requires a gradient, which integers, bools and bits cannot"
        )


def _dense(storage: Any, torch_dtype: str, size: Any, stride: Any, requires_grad: Any) -> Any:
    if isinstance(storage, Unknown):
        return UNKNOWN
    if not (isinstance(storage, Made) and storage.kind == "storage"):
        raise RefusedError(f"a tensor has {described(storage)} for its storage")
    _check_gradient(torch_dtype, requires_grad)
    known = size if isinstance(size, tuple) else None
    steps = stride if isinstance(stride, tuple) else None
    return Made("Tensor", torch_dtype, "dense", size=known, stride=steps)


def _dtype_of(storage: Any) -> str:
    return storage.name if isinstance(storage, Made) else ""


def _tensor_v1(args: Args) -> Any:
    _arity(args, "_rebuild_tensor", 4)
    return _dense(args[0], _dtype_of(args[0]), args[2], args[3], False)


def _tensor_v2(args: Args) -> Any:
    _arity(args, "_rebuild_tensor_v2", 6, 7)
    made = _dense(args[0], _dtype_of(args[0]), *args[2:5])
    if len(args) == 7:
        _check_metadata(made, args[6])
    return made


def _tensor_v3(args: Args) -> Any:
    _arity(args, "_rebuild_tensor_v3", 7, 8)
    dtype = args[6]
    if not (isinstance(dtype, Made) and dtype.kind == "dtype"):
        if isinstance(dtype, Unknown):
            return UNKNOWN
        raise RefusedError(f"the dtype of a tensor is {described(dtype)}")
    made = _dense(args[0], dtype.name, *args[2:5])
    if args[4] is True:
        raise RefusedError(
            f"a tensor of {dtype.name} requires a gradient, which _rebuild_tensor_v3 cannot give it"
        )
    if len(args) == 8:
        _check_metadata(made, args[7])
    return made


def _check_metadata(made: Any, metadata: Any) -> None:
    if is_empty(metadata) or not is_tensor(made):
        return
    if is_dict(metadata) and "conj" in (metadata.items or {}) and not _is_complex(made.name):
        raise RefusedError(f"a tensor of {made.name} says that it is or is not conjugated")


def _is_complex(torch_dtype: str) -> bool:
    return torch_dtype in DTYPES and DTYPES[torch_dtype].kind == "complex"


def parameter(args: Args) -> Any:
    """``torch.nn.Parameter(data, requires_grad)``."""
    if len(args) > 2:
        raise RefusedError("a Parameter takes a tensor and requires_grad")
    data = args[0] if args else None
    requires_grad = args[1] if len(args) == 2 else True
    if isinstance(data, Unknown):
        return UNKNOWN
    if data is None:
        data = Made("Tensor", "float32", "dense")
    if not is_tensor(data):
        raise RefusedError(f"a Parameter of {described(data)}; a tensor was expected")
    if not isinstance(requires_grad, bool | Unknown):
        raise RefusedError(f"a Parameter has {described(requires_grad)} for requires_grad")
    _check_gradient(data.name, requires_grad)
    kind = "Parameter" if data.kind in ("Tensor", "Parameter") else data.kind
    return Made(kind, data.name, data.form, size=data.size, stride=data.stride)


def _rebuild_parameter(args: Args) -> Any:
    _arity(args, "_rebuild_parameter", 3)
    return parameter(args[:2])


def _rebuild_parameter_with_state(args: Args) -> Any:
    _arity(args, "_rebuild_parameter_with_state", 4)
    made = parameter(args[:2])
    set_attributes(made, args[3])
    return made


def set_attributes(tensor: Any, state: Any) -> None:
    """``_set_obj_state``: attributes from a dict, or from a pair of dicts."""
    parts: tuple[Any, ...] = (state,)
    if isinstance(state, tuple):
        if len(state) != 2:
            raise RefusedError("the state of a tensor is a tuple, and not of two dicts")
        parts = state
    for part in parts:
        if is_empty(part) or isinstance(part, Unknown):
            continue
        if not is_dict(part):
            raise RefusedError(f"the state of a tensor is {described(part)}; a dict was expected")
        if part.has_other_keys:
            raise RefusedError("the state of a tensor has keys that are not strings")
        for name, value in (part.items or {}).items():
            _set_attribute(tensor, name, value)


def _set_attribute(tensor: Any, name: str, value: Any) -> None:
    if isinstance(value, Unknown) or not is_tensor(tensor):
        return
    if name == "requires_grad":
        if type(value) is not bool:
            raise RefusedError(f"requires_grad of a tensor is set to {described(value)}")
        _check_gradient(tensor.name, value)
    elif name in _NONE_OR_TENSOR:
        if value is not None and not (is_tensor(value) and name in ("grad", "_grad")):
            raise RefusedError(f"{name} of a tensor is set to {described(value)}")
    elif name in _FIXED and not (name == "data" and is_tensor(value)):
        raise RefusedError(f"{name} of a tensor is set, which cannot be set")


def _from_type(args: Args) -> Any:
    _arity(args, "_rebuild_from_type_v2", 4)
    function, subclass, arguments, state = args
    if isinstance(arguments, Made) and arguments.kind == "list":
        return UNKNOWN  # what is in it is not kept
    made = call(function, arguments)
    if isinstance(made, Unknown):
        return made
    if isinstance(subclass, Unknown):
        return UNKNOWN
    if not (isinstance(subclass, Made) and subclass.kind == "class"):
        raise RefusedError(f"a tensor is made one of {described(subclass)}, which is not a class")
    kind = subclass.name.rpartition(".")[2]
    if kind == "NestedTensor" and is_tensor(made) and made.form != "jagged":
        raise RefusedError("a tensor is made one of NestedTensor, and has no parts")
    if is_tensor(made) and kind in ("Tensor", "Parameter", "NestedTensor"):
        if made.kind != kind:
            made = Made(kind, made.name, made.form, size=made.size, stride=made.stride)
    elif not is_tensor(made) or kind != made.kind:
        raise RefusedError(
            f"{described(made)} is made one of {subclass.name}, which is not a class of tensors"
        )
    set_attributes(made, state)
    return made


def _quantized(args: Args) -> Any:
    _arity(args, "_rebuild_qtensor", 7)
    if args[5] is True:
        raise RefusedError("a quantized tensor requires a gradient, which it cannot")
    params = args[4]
    if isinstance(params, tuple) and len(params) == 3 and isinstance(params[2], int):
        _check_zero_point(params[2])
    return Made("Tensor", _dtype_of(args[0]), "quantized")


def _check_zero_point(zero_point: int) -> None:
    if not -(1 << 63) <= zero_point < 1 << 63:
        raise RefusedError("a zero point has more than 64 bits")


def _sparse(args: Args) -> Any:
    _arity(args, "_rebuild_sparse_tensor", 2)
    parts = args[1]
    values = None
    if isinstance(parts, tuple) and len(parts) in (3, 4):
        is_coo = getattr(args[0], "name", "") == "torch.sparse_coo"
        values = parts[1 if is_coo else 2]
    return Made("Tensor", getattr(values, "name", ""), "sparse")


def _meta(args: Args) -> Any:
    _arity(args, "_rebuild_meta_tensor_no_storage", 4)
    name = getattr(args[0], "name", "")
    _check_gradient(name, args[3])
    if name in DTYPES and DTYPES[name].kind == "quantized":
        raise RefusedError(f"a meta tensor of {name}, which torch cannot make")
    return Made("Tensor", name, "meta")


def _nested(args: Args) -> Any:
    _arity(args, "_rebuild_nested_tensor", 4)
    if getattr(args[3], "size", None) == (0,):
        raise RefusedError("a nested tensor of no tensors, which torch writes and cannot load")
    for part, what in zip(args[1:], ("sizes", "strides", "offsets"), strict=True):
        size, stride = getattr(part, "size", None), getattr(part, "stride", None)
        if size is not None and stride is not None and not is_contiguous(size, stride):
            raise RefusedError(f"the {what} of a nested tensor are not contiguous")
    return Made("Tensor", getattr(args[0], "name", ""), "nested")


def _jagged(args: Args) -> Any:
    _arity(args, "_rebuild_njt", 1)
    items = args[0].items or {} if is_dict(args[0]) else {}
    if is_dict(args[0]) and args[0].has_other_keys:
        raise RefusedError("a nested tensor has an argument whose name is not a string")
    values = items.get("values")
    requires_grad = items.get("requires_grad", False)
    _check_gradient(getattr(values, "name", ""), requires_grad)
    return Made("NestedTensor", getattr(values, "name", ""), "jagged")


def _nested_tensor(args: Args) -> Any:
    """``NestedTensor(values, offsets)``."""
    _arity(args, "NestedTensor", 2)
    for part in args:
        if not (is_tensor(part) or isinstance(part, Unknown)):
            raise RefusedError(f"a nested tensor of {described(part)}; tensors were expected")
    return Made("NestedTensor", getattr(args[0], "name", ""), "jagged")


def _from_numpy(args: Args) -> Any:
    _arity(args, "_rebuild_device_tensor_from_numpy", 4)
    if not isinstance(args[0], Unknown):
        raise RefusedError(f"a tensor is made of {described(args[0])}; a numpy array was expected")
    return UNKNOWN


def _from_cpu_tensor(args: Args) -> Any:
    _arity(args, "_rebuild_device_tensor_from_cpu_tensor", 4)
    data, dtype, _, requires_grad = args
    if isinstance(data, Unknown) or isinstance(dtype, Unknown):
        return UNKNOWN
    if not is_tensor(data) or not (isinstance(dtype, Made) and dtype.kind == "dtype"):
        raise RefusedError(f"a tensor is made of {described(data)} and {described(dtype)}")
    if not isinstance(requires_grad, bool | Unknown):
        raise RefusedError(f"a tensor has {described(requires_grad)} for requires_grad")
    _check_gradient(dtype.name, requires_grad)
    return Made("Tensor", dtype.name, data.form, size=data.size)


def _wrapper_subclass(args: Args) -> Any:
    _arity(args, "_rebuild_wrapper_subclass", 8)
    if not isinstance(args[0], Unknown):
        raise RefusedError(
            f"{described(args[0])} wraps another tensor; a class with a __torch_dispatch__ of its "
            "own was expected"
        )
    return UNKNOWN


def _old_tensor(name: str) -> Callable[[Args], Any]:
    kind = name.rpartition(".")[2].removesuffix("Tensor")
    torch_dtype = STORAGE_CLASSES[f"{kind}Storage"].name
    form = "sparse" if ".sparse." in name else "dense"

    def made(args: Args) -> Any:
        if name.startswith("torch.cuda."):
            raise RefusedError(f"{name} is made, which takes a build of torch with CUDA")
        return _plain_tensor(args, torch_dtype, form)

    return made


def _plain_tensor(args: Args, torch_dtype: str = "float32", form: str = "dense") -> Any:
    """``torch.Tensor(...)``: nothing, sizes, one sequence of numbers, a tensor or a storage."""
    made = Made("Tensor", torch_dtype, form)
    if any(isinstance(arg, Unknown) for arg in args):
        return UNKNOWN
    if not args or all(type(arg) is int for arg in args):
        if any(size < 0 or size >= 1 << 63 for size in args):
            raise RefusedError(f"a tensor of the size {shown(args)}")
        return made
    first = args[0]
    if len(args) == 1 and (
        (isinstance(first, tuple) and all(type(item) in (int, float, bool) for item in first))
        or (isinstance(first, Made) and first.kind == "Size")
        or (is_tensor(first) and first.name == torch_dtype and first.form == form)
        or (isinstance(first, Made) and first.kind == "storage" and first.name == torch_dtype)
    ):
        return made
    is_list = len(args) == 1 and isinstance(first, Made) and first.kind == "list"
    if is_list and first.form != "mixed":
        return UNKNOWN if first.form else made
    raise RefusedError(f"a tensor is made of {', '.join(map(described, args))}")


def _storage(args: Args) -> Any:
    """``UntypedStorage(...)``, ``TypedStorage(...)``: nothing, a size, or a sequence of numbers."""
    if len(args) > 1:
        raise RefusedError(f"a storage is made of {', '.join(map(described, args))}")
    first = args[0] if args else 0
    if isinstance(first, Unknown) or (isinstance(first, Made) and first.kind == "Size"):
        return UNKNOWN
    if isinstance(first, Made) and first.kind == "list" and first.form != "mixed":
        return UNKNOWN
    if type(first) is int and 0 <= first < 1 << 40:
        return Made("storage")
    if isinstance(first, tuple) and all(type(item) in (int, float, bool) for item in first):
        return Made("storage")
    raise RefusedError(f"a storage is made of {described(first)}")


# -- other values ----------------------------------------------------------------------------


def _size(args: Args) -> Any:
    if len(args) > 1:
        raise RefusedError("torch.Size takes one sequence of ints")
    if args and isinstance(args[0], Unknown):
        return UNKNOWN
    items = args[0] if args and isinstance(args[0], tuple) else ()
    if any(type(item) is int and not -(1 << 63) <= item < 1 << 63 for item in items):
        raise RefusedError("torch.Size has a number of more than 64 bits")
    count = len(items) if not args or isinstance(args[0], tuple) else getattr(args[0], "count", 0)
    return Made("Size", count=count)


def _device(args: Args) -> Any:
    if any(isinstance(arg, Unknown) for arg in args):
        return UNKNOWN
    text = args[0] if args else None
    if type(text) is not str or len(args) > 2:
        if len(args) == 1 and isinstance(text, Made) and text.kind == "device":
            return text
        raise RefusedError(f"a device of {', '.join(map(described, args)) or 'nothing'}")
    match = _DEVICE.fullmatch(text)
    if match is None:
        raise RefusedError(f"{shown(text)} is not a device of torch")
    if len(args) == 2:
        if match[1] is not None:
            raise RefusedError(f"the device {shown(text)} has an index already")
        if type(args[1]) is not int or not 0 <= args[1] < 1 << 63:
            raise RefusedError(f"a device has the index {described(args[1])}")
    return Made("device", text)


def _layout(args: Args) -> Any:
    _arity(args, "_get_layout", 1)
    if not (isinstance(args[0], str) and args[0] in _LAYOUTS):
        raise RefusedError(f"{described(args[0])} is not a layout of torch")
    return Made("layout", args[0])


def _flat_layout(args: Args) -> Any:
    _arity(args, "_FlatLayout", 1, 2)
    if not isinstance(args[0], tuple | int | Unknown):
        raise RefusedError(f"a _FlatLayout has the shape {described(args[0])}")
    return UNKNOWN


def _mesh_layout(args: Args) -> Any:
    _arity(args, "_MeshLayout", 1)
    return UNKNOWN


def _encode(args: Args) -> Any:
    return b"?" if args and args[0] else b""


def _collection(kind: str) -> Callable[[Args], Any]:
    def made(args: Args) -> Any:
        first = args[0] if args else None
        if not isinstance(first, Made):
            return Made(kind, count=int(bool(first)))
        return Made(kind, count=first.count, items=first.items, has_other_keys=first.has_other_keys)

    return made


_UTILS = "torch._utils"
_EMPTY = (
    "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.bytearray",
)  # fmt: skip
_CALLS: dict[str, Callable[[Args], Any]] = {
    f"{_UTILS}._rebuild_tensor": _tensor_v1,
    f"{_UTILS}._rebuild_tensor_v2": _tensor_v2,
    f"{_UTILS}._rebuild_tensor_v3": _tensor_v3,
    f"{_UTILS}._rebuild_parameter": _rebuild_parameter,
    f"{_UTILS}._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    f"{_UTILS}._rebuild_qtensor": _quantized,
    f"{_UTILS}._rebuild_sparse_tensor": _sparse,
    f"{_UTILS}._rebuild_meta_tensor_no_storage": _meta,
    f"{_UTILS}._rebuild_nested_tensor": _nested,
    f"{_UTILS}._rebuild_wrapper_subclass": _wrapper_subclass,
    f"{_UTILS}._rebuild_device_tensor_from_numpy": _from_numpy,
    f"{_UTILS}._rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.nested._internal.nested_tensor._rebuild_njt": _jagged,
    "torch.nested._internal.nested_tensor.NestedTensor": _nested_tensor,
    "torch.distributed._mesh_layout._FlatLayout": _flat_layout,
    "torch.distributed._mesh_layout._MeshLayout": _mesh_layout,
    "torch.nn.parameter.Parameter": parameter,
    "torch.Tensor": _plain_tensor,
    "torch.storage.UntypedStorage": _storage,
    "torch.storage.TypedStorage": _storage,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    "_codecs.encode": _encode,
    "builtins.complex": lambda args: 1j,
    **{name: _collection(name.rpartition(".")[2]) for name in _EMPTY},
    **{
        name: _old_tensor(name)
        for name in TORCH_SAFE_NAMES
        if name.endswith("Tensor") and name not in ("torch.Tensor",) and "nested" not in name
    },
}
