"""What the names of torch's allow-list give when they are called, and when they do not.

Source: torch 2.13, ``_weights_only_unpickler.py``, ``_utils.py``, ``_tensor.py`` and
``nn/parameter.py``, each compared with what the release does
(`tests/test_against_torch_verdicts.py`). What torchzip has checked while it read the file is not
checked again: that a tensor lies inside its storage, that sizes are ints, that the parts of a
sparse tensor fit together.

A plain value stands for itself, what torch makes of one is a `Made`. What a name outside torch's
allow-list gives is `Unknown`: nothing is known of it, and so nothing is wrong with it.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES, STORAGE_CLASSES
from torchzip.errors import shown
from torchzip.leaf_types import ForeignObject
from torchzip.pickling.allowlist import TORCH_SAFE_NAMES
from torchzip.tensors.specs import is_contiguous

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


#: What nothing is known of; of a frozenset it does not matter what is in it.
Unknown: Any = ForeignObject | frozenset
_TENSORS = ("Tensor", "Parameter", "NestedTensor")


class RefusedError(Exception):
    """Both of torch's loaders fail here; the message says of what."""


@dataclass(slots=True, eq=False)
class Made:
    """A value that is not plain: as much of it as decides whether a later step fails.

    ``kind`` is its class; a function or a class that is not called yet is "function" or "class",
    with its full ``name``. Of a tensor ``name`` is the dtype and ``form`` what kind of tensor it
    is.
    """

    kind: str
    name: str = ""
    form: str = ""
    count: int = 0
    size: tuple[Any, ...] | None = None
    stride: tuple[Any, ...] | None = None


def unknown() -> ForeignObject:
    """Return a value that nothing is known of."""
    return ForeignObject("", "", ())


def is_a(value: Any, *kinds: str) -> bool:
    """Return whether a value is a `Made` of one of these kinds."""
    return isinstance(value, Made) and value.kind in kinds


def is_tensor(value: Any) -> bool:
    return is_a(value, *_TENSORS)


def is_empty(value: Any) -> bool:
    """Return whether a value is false in Python; of what is unknown it is not known."""
    if isinstance(value, Made):
        return value.kind == "Size" and not value.count
    return not isinstance(value, Unknown) and not value


def value_of(path: str) -> Made:
    """Return what stands for a name of the allow-list."""
    module, _, name = path.rpartition(".")
    if module == "torch" and (name in DTYPES or name in NAME_ONLY):
        return Made("dtype", name)
    if module == "torch" and name in QSCHEMES:
        return Made("qscheme", name)
    if module in ("torch", "torch.cuda") and name in STORAGE_CLASSES:
        return Made("StorageType", STORAGE_CLASSES[name].name)
    # Of the classes of the allow-list only these do not begin with a capital letter.
    is_class = module == "builtins" or path == "torch.device" or name.lstrip("_")[0].isupper()
    return Made("class" if is_class else "function", path)


def call(callee: Any, args: Any) -> Any:
    """Return what a call gives; raise RefusedError where it fails."""
    if isinstance(callee, Unknown):
        return unknown()
    if not is_a(callee, "function", "class"):
        raise RefusedError(f"{described(callee)} is called, which cannot be called")
    if not isinstance(args, tuple):
        raise RefusedError(f"{callee.name} is called with {described(args)}, not with a tuple")
    if callee.name not in _CALLS:
        return unknown()
    counts, handler = _CALLS[callee.name]
    if counts and len(args) not in counts:
        name, wanted = callee.name.rpartition(".")[2], " or ".join(map(str, counts))
        raise RefusedError(f"{name} takes {wanted} arguments, not {len(args)}")
    return handler(*args)


def new(callee: Any, args: Any) -> Any:
    """Return what ``cls.__new__(cls, *args)`` gives."""
    if isinstance(callee, Unknown):
        return unknown()
    if not is_a(callee, "class"):
        raise RefusedError(f"a new object of {described(callee)}, which is not a class")
    if not isinstance(args, tuple):
        raise RefusedError(f"a new {callee.name} of {described(args)}, not of a tuple")
    # Collections take their arguments in __init__.
    return call(callee, () if callee.name in _COLLECTIONS else args)


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


def _dtype_of(value: Any) -> str:
    """Return the dtype of a storage or a tensor; "" for anything else."""
    return getattr(value, "name", "")


def _check_gradient(torch_dtype: str, requires_grad: Any) -> None:
    if requires_grad is True and torch_dtype and torch_dtype not in _DIFFERENTIABLE:
        raise RefusedError(
            f"a tensor of {torch_dtype} requires a gradient, which integers, bools and bits cannot"
        )


def _dense(storage: Any, torch_dtype: str, size: Any, stride: Any, requires_grad: Any) -> Any:
    if isinstance(storage, Unknown):
        return unknown()
    if not is_a(storage, "storage"):
        raise RefusedError(f"a tensor has {described(storage)} for its storage")
    _check_gradient(torch_dtype, requires_grad)
    known = size if isinstance(size, tuple) else None
    steps = stride if isinstance(stride, tuple) else None
    return Made("Tensor", torch_dtype, "dense", size=known, stride=steps)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """``rest`` are requires_grad, hooks and metadata, as far as they are there."""
    requires_grad = rest[0] if rest else False
    made = _dense(storage, _dtype_of(storage), size, stride, requires_grad)
    _check_metadata(made, *rest[2:])
    return made


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    requires_grad, _, dtype, *metadata = rest
    if isinstance(dtype, Unknown):
        return unknown()
    if not is_a(dtype, "dtype"):
        raise RefusedError(f"the dtype of a tensor is {described(dtype)}")
    made = _dense(storage, dtype.name, size, stride, requires_grad)
    if requires_grad is True:
        raise RefusedError(
            f"a tensor of {dtype.name} requires a gradient, which _rebuild_tensor_v3 cannot give it"
        )
    _check_metadata(made, *metadata)
    return made


def _check_metadata(made: Any, metadata: Any = None) -> None:
    if not (is_tensor(made) and isinstance(metadata, dict) and "conj" in metadata):
        return
    if made.name not in DTYPES or DTYPES[made.name].kind != "complex":
        raise RefusedError(f"a tensor of {made.name} says that it is or is not conjugated")


def _parameter(*args: Any) -> Any:
    """``torch.nn.Parameter(data, requires_grad)``."""
    if len(args) > 2:
        raise RefusedError("a Parameter takes a tensor and requires_grad")
    data = args[0] if args else None
    requires_grad = args[1] if len(args) == 2 else True
    if isinstance(data, Unknown):
        return unknown()
    if data is None:
        data = Made("Tensor", "float32", "dense")
    if not is_tensor(data):
        raise RefusedError(f"a Parameter of {described(data)}; a tensor was expected")
    if not isinstance(requires_grad, bool | Unknown):
        raise RefusedError(f"a Parameter has {described(requires_grad)} for requires_grad")
    _check_gradient(data.name, requires_grad)
    return replace(data, kind="Parameter" if data.kind == "Tensor" else data.kind)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    made = _parameter(data, requires_grad)
    set_attributes(made, state)
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
        if not isinstance(part, dict):
            raise RefusedError(f"the state of a tensor is {described(part)}; a dict was expected")
        for name, value in part.items():
            if type(name) is not str:
                raise RefusedError("the state of a tensor has keys that are not strings")
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


def _from_type(function: Any, subclass: Any, arguments: Any, state: Any) -> Any:
    made = call(function, tuple(arguments) if isinstance(arguments, list) else arguments)
    if isinstance(made, Unknown) or isinstance(subclass, Unknown):
        return unknown()
    if not is_a(subclass, "class"):
        raise RefusedError(f"a tensor is made one of {described(subclass)}, which is not a class")
    kind = subclass.name.rpartition(".")[2]
    if kind == "NestedTensor" and is_tensor(made) and made.form != "jagged":
        raise RefusedError("a tensor is made one of NestedTensor, and has no parts")
    if is_tensor(made) and kind in _TENSORS:
        made = replace(made, kind=kind)
    elif not is_tensor(made) or kind != made.kind:
        raise RefusedError(
            f"{described(made)} is made one of {subclass.name}, which is not a class of tensors"
        )
    set_attributes(made, state)
    return made


def _quantized(
    storage: Any, offset: Any, size: Any, stride: Any, params: Any, requires_grad: Any, hooks: Any
) -> Any:
    if requires_grad is True:
        raise RefusedError("a quantized tensor requires a gradient, which it cannot")
    zero_point = params[2] if isinstance(params, tuple | list) and len(params) == 3 else 0
    if isinstance(zero_point, int) and not _has_64_bits(zero_point):
        raise RefusedError("a zero point has more than 64 bits")
    return Made("Tensor", _dtype_of(storage), "quantized")


def _sizes(value: Any) -> list[int]:
    """Return the sizes in a value, as far as they are known."""
    sizes = value.size if is_a(value, "Size") else value
    return [size for size in sizes if type(size) is int] if isinstance(sizes, tuple | list) else []


def _has_64_bits(number: int) -> bool:
    return -(1 << 63) <= number < 1 << 63


def _sparse(layout: Any, parts: Any) -> Any:
    values = None
    if isinstance(parts, tuple | list) and len(parts) in (3, 4):
        at = 1 if getattr(layout, "name", "") == "torch.sparse_coo" else 2
        values = parts[at]
        numel = 1
        for size in _sizes(parts[at + 1]) if at + 1 < len(parts) else ():
            numel *= size
            if numel >= 1 << 63:  # also where a later size is 0
                raise RefusedError("a sparse tensor has more elements than 63 bits count")
    return Made("Tensor", _dtype_of(values), "sparse")


def _meta(dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Any:
    name = _dtype_of(dtype)
    _check_gradient(name, requires_grad)
    if name in DTYPES and DTYPES[name].kind == "quantized":
        raise RefusedError(f"a meta tensor of {name}, which torch cannot make")
    return Made("Tensor", name, "meta")


def _nested(values: Any, sizes: Any, strides: Any, offsets: Any) -> Any:
    if getattr(offsets, "size", None) == (0,):
        raise RefusedError("a nested tensor of no tensors, which torch writes and cannot load")
    for what, part in (("sizes", sizes), ("strides", strides), ("offsets", offsets)):
        size, stride = getattr(part, "size", None), getattr(part, "stride", None)
        if size is not None and stride is not None and not is_contiguous(size, stride):
            raise RefusedError(f"the {what} of a nested tensor are not contiguous")
    return Made("Tensor", _dtype_of(values), "nested")


def _jagged(arguments: Any) -> Any:
    items = arguments if isinstance(arguments, dict) else {}
    if not all(type(name) is str for name in items):
        raise RefusedError("a nested tensor has an argument whose name is not a string")
    dtype = _dtype_of(items.get("values"))
    _check_gradient(dtype, items.get("requires_grad"))
    return Made("NestedTensor", dtype, "jagged")


def _nested_tensor(values: Any, offsets: Any) -> Any:
    for part in (values, offsets):
        if not (is_tensor(part) or isinstance(part, Unknown)):
            raise RefusedError(f"a nested tensor of {described(part)}; tensors were expected")
    return Made("NestedTensor", _dtype_of(values), "jagged")


def _from_cpu_tensor(data: Any, dtype: Any, device: Any, requires_grad: Any) -> Any:
    if isinstance(data, Unknown) or isinstance(dtype, Unknown):
        return unknown()
    if not is_tensor(data) or not is_a(dtype, "dtype"):
        raise RefusedError(f"a tensor is made of {described(data)} and {described(dtype)}")
    if not isinstance(requires_grad, bool | Unknown):
        raise RefusedError(f"a tensor has {described(requires_grad)} for requires_grad")
    _check_gradient(dtype.name, requires_grad)
    return Made("Tensor", dtype.name, data.form, size=data.size)


def _of_unknown(message: str) -> Callable[..., Any]:
    """Return what takes something that torch does not know, and refuses all that it knows."""

    def made(first: Any, *rest: Any) -> Any:
        if not isinstance(first, Unknown):
            raise RefusedError(message.format(described(first)))
        return unknown()

    return made


def _tensor_class(name: str) -> Callable[..., Any]:
    """``torch.FloatTensor(...)``: nothing, sizes, numbers, a tensor or a storage."""
    kind = name.rpartition(".")[2].removesuffix("Tensor") or "Float"
    torch_dtype = STORAGE_CLASSES[f"{kind}Storage"].name
    form = "sparse" if ".sparse." in name else "dense"

    def made(*args: Any) -> Any:
        if name.startswith("torch.cuda."):
            raise RefusedError(f"{name} is made, which takes a build of torch with CUDA")
        if any(isinstance(arg, Unknown) for arg in args):
            return unknown()
        first: Any = args[0] if args else 0
        if all(type(arg) is int for arg in args):
            if any(size < 0 or size >= 1 << 63 for size in args):
                raise RefusedError(f"a tensor of the size {shown(args)}")
        elif len(args) > 1 or not (
            _is_numbers(first)
            or is_a(first, "Size")
            or (is_tensor(first) and (first.name, first.form) == (torch_dtype, form))
            or (is_a(first, "storage") and first.name == torch_dtype)
        ):
            raise RefusedError(f"a tensor is made of {', '.join(map(described, args))}")
        elif isinstance(first, list) and not all(isinstance(item, int | float) for item in first):
            return unknown()
        return Made("Tensor", torch_dtype, form)

    return made


def _is_numbers(value: Any) -> bool:
    """Return whether torch may make a tensor of a sequence."""
    if isinstance(value, tuple):
        return all(type(item) in (int, float, bool) for item in value)
    # Lists in a list, say, may be numbers in the end.
    return isinstance(value, list) and not any(
        isinstance(item, str | bytes | complex | None) for item in value
    )


def _storage(*args: Any) -> Any:
    """``UntypedStorage(...)``, ``TypedStorage(...)``: nothing, a size, or a sequence of numbers."""
    if len(args) > 1:
        raise RefusedError(f"a storage is made of {', '.join(map(described, args))}")
    first = args[0] if args else 0
    if isinstance(first, Unknown) or is_a(first, "Size"):
        return unknown()
    if _is_numbers(first):
        return Made("storage") if isinstance(first, tuple) else unknown()
    if type(first) is int and 0 <= first < 1 << 40:
        return Made("storage")
    raise RefusedError(f"a storage is made of {described(first)}")


# -- other values ----------------------------------------------------------------------------


def _size(*args: Any) -> Any:
    if len(args) > 1:
        raise RefusedError("torch.Size takes one sequence of ints")
    items = args[0] if args else ()
    if isinstance(items, Unknown):
        return unknown()
    if is_a(items, "Size"):
        return items
    if not isinstance(items, tuple | list):
        return Made("Size")
    if not all(_has_64_bits(item) for item in items if type(item) is int):
        raise RefusedError("torch.Size has a number of more than 64 bits")
    return Made("Size", count=len(items), size=tuple(items))


def _device(*args: Any) -> Any:
    if any(isinstance(arg, Unknown) for arg in args):
        return unknown()
    text = args[0] if args else None
    if type(text) is not str or len(args) > 2:
        if len(args) == 1 and is_a(text, "device"):
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


def _layout(name: Any) -> Any:
    if not (isinstance(name, str) and name in _LAYOUTS):
        raise RefusedError(f"{described(name)} is not a layout of torch")
    return Made("layout", name)


def _flat_layout(shape: Any, strides: Any = None) -> Any:
    if not isinstance(shape, tuple | int | Unknown):
        raise RefusedError(f"a _FlatLayout has the shape {described(shape)}")
    return unknown()


def _collection(kind: type[Any], something: Any) -> Callable[..., Any]:
    """Return what makes one. Of anything but a dict it matters only whether something is in it."""

    def made(first: Any = None, *rest: Any) -> Any:
        if isinstance(first, dict) and issubclass(kind, dict):
            return kind(first)
        return kind(() if is_empty(first) else something)

    return made


_COLLECTIONS = {
    "collections.OrderedDict": _collection(OrderedDict, {"": None}),
    "collections.Counter": _collection(Counter, {"": 1}),
    "builtins.set": _collection(set, [0]),
    "builtins.bytearray": _collection(bytearray, b"0"),
}
#: The numbers of arguments that a name takes, where that alone decides, and what a call gives.
_CALLS: dict[str, tuple[tuple[int, ...], Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor": ((4,), _tensor),
    "torch._utils._rebuild_tensor_v2": ((6, 7), _tensor),
    "torch._utils._rebuild_tensor_v3": ((7, 8), _tensor_v3),
    "torch._utils._rebuild_parameter": ((3,), _rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": ((4,), _rebuild_parameter),
    "torch._utils._rebuild_qtensor": ((7,), _quantized),
    "torch._utils._rebuild_sparse_tensor": ((2,), _sparse),
    "torch._utils._rebuild_meta_tensor_no_storage": ((4,), _meta),
    "torch._utils._rebuild_nested_tensor": ((4,), _nested),
    "torch._utils._rebuild_wrapper_subclass": (
        (8,),
        _of_unknown(
            "{} wraps another tensor; a class with a __torch_dispatch__ of its own was expected"
        ),
    ),
    "torch._utils._rebuild_device_tensor_from_numpy": (
        (4,),
        _of_unknown("a tensor is made of {}; a numpy array was expected"),
    ),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": ((4,), _from_cpu_tensor),
    "torch._tensor._rebuild_from_type_v2": ((4,), _from_type),
    "torch.nested._internal.nested_tensor._rebuild_njt": ((1,), _jagged),
    "torch.nested._internal.nested_tensor.NestedTensor": ((2,), _nested_tensor),
    "torch.distributed._mesh_layout._FlatLayout": ((1, 2), _flat_layout),
    "torch.distributed._mesh_layout._MeshLayout": ((1,), lambda layout: unknown()),
    "torch.nn.parameter.Parameter": ((), _parameter),
    "torch.storage.UntypedStorage": ((), _storage),
    "torch.storage.TypedStorage": ((), _storage),
    "torch.Size": ((), _size),
    "torch.device": ((), _device),
    "torch.serialization._get_layout": ((1,), _layout),
    "_codecs.encode": ((), lambda *args: b"?" if args and args[0] else b""),
    "builtins.complex": ((), lambda *args: 1j),
    **{name: ((), make) for name, make in _COLLECTIONS.items()},
    **{
        name: ((), _tensor_class(name))
        for name in TORCH_SAFE_NAMES
        if name.endswith("Tensor") and "nested" not in name
    },
}
