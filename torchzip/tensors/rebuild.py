"""Names and calls of a checkpoint's pickle -> specs and values.

This is the fixed table of everything that torchzip understands in a file. Reading it is
knowing what a file can make happen: each function here checks its arguments and builds a spec,
a leaf type or a plain Python container, and does nothing else.

Sources: docs/format.md, sections 6 and 7; torch 2.13's ``torch/_utils.py`` and
``torch/_tensor.py`` as observed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES, STORAGE_CLASSES
from torchzip.errors import (
    PickleError,
    TensorError,
    TorchZipError,
    UnsupportedError,
    shown,
    wrong_arguments,
)
from torchzip.leaf_types import Device, Dtype, ForeignObject, Layout, Parameter, QScheme, Size
from torchzip.limits import is_number
from torchzip.pickling.keys import KeyCheck
from torchzip.pickling.table import KEEP, Name, Table
from torchzip.tensors.kinds.base import NJT, OtherTensor, PartReader
from torchzip.tensors.numpy_values import NUMPY_BUILDS, NUMPY_CALLS, NUMPY_NAMES
from torchzip.tensors.persistent_ids import BareStorage, Factory, PersistentIds
from torchzip.tensors.python_values import PYTHON_CALLS, PYTHON_NAMES
from torchzip.tensors.record_runs import TENSOR, RunReader, TensorLayout
from torchzip.tensors.specs import (
    TensorSpec,
    check_count,
    check_hooks,
    check_requires_grad,
    check_spec,
    wrong_dtype,
)
from torchzip.tensors.storage import Measure, MeasuredStorage

Args = tuple[Any, ...]


#: What rebuilds tensors that are not dense, and the kind of each.
_KINDS: dict[Name, str] = {
    ("torch._utils", "_rebuild_sparse_tensor"): "sparse",
    ("torch._utils", "_rebuild_sparse_csr_tensor"): "sparse",
    ("torch._utils", "_rebuild_qtensor"): "quantized",
    ("torch._utils", "_rebuild_nested_tensor"): "nested",
    (NJT, "_rebuild_njt"): "jagged",
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): "meta",
}

#: What rebuilds tensors that stay `ForeignObject` s, with their inner tensors inside.
FOREIGN_TENSORS: frozenset[Name] = frozenset(
    [
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._tensor", "_rebuild_from_type_v2"),
    ]
)

#: Tensors of accelerators whose memory torch cannot share: (array or tensor on the CPU, dtype,
#: device, requires_grad).
_DEVICE_TENSORS: tuple[Name, ...] = (
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch._utils", "_rebuild_xla_tensor"),  # the name before torch 1.10
)
#: Has a dense tensor, and how its device lays it out, which only that device needs.
_NPU_MODULE = "torch_npu.utils.storage"

#: Tensors of torch before 0.1.10 by their class, and the dtype of each.
_OLD_TENSORS: dict[Name, str] = {
    (module, f"{kind}Tensor"): STORAGE_CLASSES[f"{kind}Storage"].name
    for module in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")
    for kind in "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()
}
_OLD_DENSE = {name: dtype for name, dtype in _OLD_TENSORS.items() if not name[0].endswith("sparse")}
#: Tensors with a gradient, before 0.4: made without or around a tensor, and given a state.
_OLD_VARIABLES: tuple[Name, ...] = (
    ("torch.nn.parameter", "Parameter"),
    ("torch.autograd.variable", "Variable"),
)


class Rebuilder:
    """The table for one file. `table` is what an `Interpreter` takes.

    ``factory`` says what the tensors become.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._storages = PersistentIds(factory)
        self._keys = KeyCheck(factory.key)
        self._parts = PartReader(self._tensor, factory.is_tensor)
        self._builds: dict[Name, Callable[[Args], Any]] = {
            **_counted("_rebuild_tensor", self._tensor, 4),
            **_counted("_rebuild_tensor_v2", self._tensor, 6, 7),
            **_counted("_rebuild_tensor_v3", self._tensor_v3, 7, 8),
            **{name: partial(self._other, kind) for name, kind in _KINDS.items()},
        }
        self.table = Table(
            values=_VALUES,
            calls={
                **self._builds,
                **_counted("_rebuild_parameter", self._parameter, 3),
                **_counted("_rebuild_parameter_with_state", self._parameter, 4),
                **dict.fromkeys(FOREIGN_TENSORS, lambda args: KEEP),
                **dict.fromkeys(_DEVICE_TENSORS, self._device_tensor),
                **_counted(
                    "_rebuild_npu_tensor",
                    lambda *args: self._tensor(*args[:6]),
                    7,
                    module=_NPU_MODULE,
                ),
                **{name: partial(_old_tensor, name) for name in _OLD_TENSORS},
                ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
                **LEAF_CALLS,
                **PYTHON_CALLS,
                **NUMPY_CALLS,
                ("builtins", "set"): lambda args: self._keys.set_of(self._items(args, "set")),
                ("builtins", "frozenset"): lambda args: self._keys.frozen(
                    self._items(args, "frozenset")
                ),
                ("collections", "OrderedDict"): self._ordered_dict,
                ("collections", "Counter"): self._counter,
            },
            builds={
                **NUMPY_BUILDS,
                **dict.fromkeys(_OLD_DENSE, self._build_old_dense),
                **dict.fromkeys(_OLD_VARIABLES, self._build_old_variable),
            },
            names=frozenset(self._storages.classes) | _NAMES | PYTHON_NAMES | NUMPY_NAMES,
            persistent=self._storages.find,
            keys=self._keys,
            shortcut=(
                TENSOR,
                lambda names: RunReader(
                    names, self._tensors, self._factory.parameter, self._storages.known
                ),
            ),
        )

    def finish(self) -> None:
        """Let go of the storages and of the file once the object is made.

        The table refers to this object and this object to the table, so both stay until Python
        looks for cycles; the memory of tensors that nobody holds must not stay with them, nor a
        file that nobody closes stay open.
        """
        self._storages.finish()
        self._keys.finish()
        del self._factory, self._parts

    # -- tensors ---------------------------------------------------------------------------

    def _build_old_dense(self, made: ForeignObject, state: Any) -> Any:
        """A ``torch.FloatTensor`` and its state: storage, offset, size, stride."""
        name = (made.module, made.name)
        if made.args or type(state) is not tuple or len(state) != 4:
            raise PickleError(
                f"the state of a torch.{name[1]} is {shown(state)}; (storage, offset, size, "
                "stride) was expected"
            )
        if type(state[0]) is BareStorage and state[0].torch_dtype != _OLD_DENSE[name]:
            raise TensorError(
                f"a torch.{name[1]} on a storage of dtype {state[0].torch_dtype or 'none'}"
            )
        return self._tensor(*state)

    def _build_old_variable(self, made: ForeignObject, state: Any) -> Any:
        """A Parameter or Variable of torch before 0.4.

        Either it was made around its tensor, and the state is (requires_grad, volatile, hooks); or
        without one, and the state is (tensor, gradient, hooks, requires_grad, volatile). torch 2.13
        takes both (``Tensor.__setstate__``).
        """
        if type(state) is not tuple or made.kwargs or made.items is not None:
            return KEEP
        args = made.args or ()
        if len(state) == 3 and args:
            data, (requires_grad, _, hooks) = args[0], state
        elif len(state) == 5 and not args:
            data, _, hooks, requires_grad, _ = state
        else:
            return KEEP
        if made.name == "Parameter":
            return self._parameter(data, requires_grad, hooks)
        check_hooks(hooks)
        check_requires_grad("a tensor", requires_grad)
        data = self._wrapped(data, "a Variable")
        spec = self._factory.spec_of(data)
        if spec is None:
            return data
        return self._factory.tensor(spec.replace(requires_grad=requires_grad))

    def _device_tensor(self, args: Args) -> Any:
        """A tensor that was on an accelerator: dense, with the tag of its device."""
        check_count("a device tensor", args, 4)
        data, dtype, device, requires_grad = args
        if type(dtype) is not Dtype or dtype.name not in DTYPES:
            raise wrong_dtype("a device tensor", dtype)
        if type(device) is not str:
            raise TensorError(f"the device of a tensor is {shown(device)}; a string was expected")
        check_requires_grad("a device tensor", requires_grad)
        made = self._factory.on_device(data, dtype.name, device, requires_grad)
        if made is None:
            raise TensorError(
                f"a device tensor of dtype {dtype.name} is made of {shown(data)}; a dense tensor "
                "of that dtype or an array of numpy was expected"
            )
        return made

    def _tensor_v3(
        self, bare: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any,
        dtype: Any, metadata: Any = None,
    ) -> Any:  # fmt: skip
        check_hooks(hooks)
        if type(dtype) is not Dtype or dtype.name not in DTYPES:
            raise wrong_dtype("a tensor", dtype)
        return self._tensor(bare, offset, size, stride, requires_grad, hooks, metadata, dtype.name)

    def _tensor(
        self,
        bare: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
        torch_dtype: str | None = None,
    ) -> Any:
        check_hooks(hooks)
        if type(bare) is not BareStorage:
            raise TensorError(f"a tensor has {shown(bare)} for its storage; a storage was expected")
        check_requires_grad("a tensor", requires_grad)
        if bare.first:
            if type(offset) is not int:
                raise TensorError(
                    f"the storage offset of a tensor is {shown(offset)}; an int from 0 to 2**63 "
                    "was expected"
                )
            offset += bare.first
        torch_dtype = torch_dtype or bare.torch_dtype or "uint8"
        spec = TensorSpec(torch_dtype, size, stride, offset, bare.storage, requires_grad)
        if metadata is not None:
            _apply_metadata(spec, metadata)
        return self._factory.tensor(check_spec(spec))

    def _tensors(self, keys: list[str], layouts: list[TensorLayout], which: list[int]) -> list[Any]:
        """`PersistentIds.known` and `_tensor` for many, up to one that is not in order."""
        made: list[Any] = []
        try:
            measures = [self._measure_layout(layout) for layout in layouts]
            storages = self._storages.many(keys, measures, which)
            if storages is not None:
                fields = [
                    (measure.torch_dtype or "uint8", *layout[-2:], layout.storage_offset)
                    for measure, layout in zip(measures, layouts, strict=True)
                ]
                columns = zip(*[fields[place] for place in which], strict=True)
                return list(map(self._factory.tensor, map(TensorSpec, *columns, storages)))
            for key, place in zip(keys, which, strict=True):
                kind, location, numel, offset, size, stride = layouts[place]
                bare = self._storages.known(kind, key, location, numel)
                made.append(self._tensor(bare, offset, size, stride))
        except TorchZipError:
            pass  # said again by whoever reads that tensor alone, and knows where it is
        return made

    def _measure_layout(self, layout: TensorLayout) -> Measure:
        """Return what storages of a layout are like, if tensors of it lie inside of them."""
        measure = self._storages.measure(layout.kind, "", layout.location, layout.numel)
        dtype, storage = measure.torch_dtype or "uint8", MeasuredStorage(*measure)
        check_spec(TensorSpec(dtype, layout.size, layout.stride, layout.storage_offset, storage))
        return measure

    def _parameter(self, data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
        check_hooks(hooks)
        check_requires_grad("a tensor", requires_grad)
        return self._factory.parameter(self._wrapped(data, "a Parameter"), requires_grad, state)

    def _wrapped(self, data: Any, what: str) -> Any:
        """Return the tensor that ``what`` is made of, or the call that may give one.

        Raise TensorError for any other value.
        """
        if isinstance(data, Parameter):
            data = data.data
        is_call = type(data) is ForeignObject and data.how != "name"
        if not (is_call or isinstance(data, OtherTensor) or self._factory.is_tensor(data)):
            raise TensorError(f"{what} is made of {shown(data)}; a tensor was expected")
        return data

    def _from_type(self, args: Args) -> Any:
        """A tensor with attributes, or of a subclass: built as if plain, and labelled."""
        if len(args) != 4 or not all(isinstance(name, ForeignObject) for name in args[:2]):
            raise PickleError(
                "_rebuild_from_type_v2 takes a function, a class, a tuple of arguments and a state"
            )
        function, subclass, arguments, state = args
        name = (function.module, function.name)
        build = self._builds.get(name)
        if build is None or function.how != "name" or type(arguments) is not tuple:
            return KEEP  # of a class that only its own code can make
        tensor = build(arguments)
        if isinstance(tensor, OtherTensor):
            # A parameter that is a jagged nested tensor says so itself.
            jagged = tensor.kind == "nested_jagged" and type(state) is dict
            is_parameter = jagged and state.get("_is_param") is True
            return tensor.replace(attributes=state, subclass=subclass, is_parameter=is_parameter)
        spec = self._factory.spec_of(tensor)
        if spec is not None:
            spec.attributes = state
            spec.subclass = subclass
        return tensor

    def _other(self, kind: str, args: Args) -> Any:
        """Return what stands for a tensor that is not dense."""
        from torchzip.tensors.kinds import meta, nested, quantized, sparse  # which few files need

        rebuild: Callable[[Args, PartReader], OtherTensor] = {
            "sparse": sparse.rebuild,
            "quantized": quantized.rebuild,
            "nested": nested.rebuild,
            "jagged": nested.rebuild_jagged,
            "meta": meta.rebuild,
        }[kind]
        tensor = rebuild(args, self._parts)
        tensor.check()
        return self._factory.other(tensor)

    # -- containers with keys ----------------------------------------------------------------

    def _items(self, args: Args, what: str) -> list[Any]:
        if not args:
            return []
        if len(args) != 1 or type(args[0]) not in (list, tuple):
            raise wrong_arguments(what, "one list", args)
        return self._keys.checked(args[0])

    def _ordered_dict(self, args: Args) -> OrderedDict[Any, Any]:
        made: OrderedDict[Any, Any] = OrderedDict()
        if args:
            if len(args) != 1 or type(args[0]) not in (list, tuple):
                raise wrong_arguments("OrderedDict", "one list of pairs", args)
            for pair in args[0]:  # Python 2 writes the items so
                if type(pair) not in (list, tuple) or len(pair) != 2:
                    raise PickleError(
                        f"OrderedDict takes a list of pairs, not one with {shown(pair)}"
                    )
            keys = self._keys.checked(pair[0] for pair in args[0])
            self._keys.fill(made, keys, [pair[1] for pair in args[0]])
        return made

    def _counter(self, args: Args) -> Counter[Any]:
        if not args:
            return Counter()
        if len(args) != 1 or type(args[0]) is not dict:
            raise wrong_arguments("Counter", "one dict", args)
        made: Counter[Any] = Counter()
        self._keys.fill(made, self._keys.checked(args[0]), list(args[0].values()))
        return made


#: The bits of a tensor that says to conjugate or to negate it, and the dtypes that can have them.
_KINDS_OF_BITS = {"conj": ("complex",), "neg": ("float", "complex", "int")}


def _apply_metadata(spec: TensorSpec, metadata: Any) -> None:
    if type(metadata) is not dict:
        raise TensorError(f"the metadata of a tensor is {shown(metadata)}; a dict was expected")
    for key, value in metadata.items():
        if key not in _KINDS_OF_BITS or type(value) is not bool:
            raise UnsupportedError(
                f"the metadata of a tensor says {shown(value)} for {shown(key)}; True or False for "
                "'conj' and 'neg' are read"
            )
        kinds = _KINDS_OF_BITS[key]
        if value and DTYPES[spec.torch_dtype].kind not in kinds:
            raise TensorError(
                f"a tensor with the bit {key!r} is {spec.torch_dtype}; a dtype of kind "
                f"{' or '.join(kinds)} was expected"
            )
        setattr(spec, key, value)


def _counted(
    name: str, build: Callable[..., Any], *counts: int, module: str = "torch._utils"
) -> dict[Name, Callable[[Args], Any]]:
    """Return the entry of a function of torch that takes so many arguments."""

    def call(args: Args) -> Any:
        check_count(name, args, *counts)
        return build(*args)

    return {(module, name): call}


def _old_tensor(name: Name, args: Args) -> Any:
    is_dense = name in _OLD_DENSE
    if is_dense and not args:
        return KEEP  # its state is still to come
    what = "tensors made from arguments" if is_dense else "sparse tensors of torch before 0.4"
    raise UnsupportedError(f"{name[0]}.{name[1]}: {what} are not read yet")


# -- leaf types ---------------------------------------------------------------------------------


def _size(args: Args) -> Size:
    sizes = args[0] if len(args) == 1 else None
    if type(sizes) not in (tuple, list) or not all(type(size) is int for size in sizes or ()):
        raise wrong_arguments("torch.Size", "one tuple of ints", args)
    return Size(sizes or ())


def _device(args: Args) -> Device:
    if not (
        1 <= len(args) <= 2 and type(args[0]) is str and (len(args) == 1 or is_number(args[1]))
    ):
        raise wrong_arguments("torch.device", "a type and an index", args)
    return Device(*args)


def make_layout(args: Args) -> Layout:
    """Return what ``_get_layout`` gives for the name of a layout."""
    if len(args) != 1 or type(args[0]) is not str or not args[0].startswith("torch."):
        raise wrong_arguments("_get_layout", "a name like 'torch.strided'", args)
    return Layout(args[0].removeprefix("torch."))


#: By name, what makes a value of torch that holds no tensor.
LEAF_CALLS: dict[Name, Callable[[Args], Any]] = {
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("torch.serialization", "_get_layout"): make_layout,
}

_VALUES: dict[Name, Any] = {
    **{("torch", name): Dtype(name) for name in (*DTYPES, *NAME_ONLY)},
    **{("torch", name): QScheme(name) for name in QSCHEMES},
}

#: Names that mean something in one place only: the class argument of `_rebuild_from_type_v2`.
_NAMES = frozenset(
    [
        ("torch", "Tensor"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.nn.parameter", "Buffer"),
        ("torch.storage", "TypedStorage"),
        (NJT, "NestedTensor"),
        ("torch._dynamo.decorators", "_DimRange"),  # in what a jagged nested tensor has cached
    ]
)
