"""Calls of a checkpoint's pickle -> tensors that are not dense.

The counterpart of `reduce_kinds`, and a part of the table of `rebuild`. The arguments are those
that torch 2.13 writes (docs/format.md, section 6.2), the shorter ones of older files, and the
flat ones of TorchScript archives (section 11.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchzip.dtypes import DTYPES
from torchzip.errors import (
    PickleError,
    TensorError,
    UnsupportedError,
    listed,
    shown,
    wrong_arguments,
)
from torchzip.limits import is_number
from torchzip.pickling.table import Name
from torchzip.tensors.kind_checks import PACKED, check_kind, packed_nbytes, wrong_scale
from torchzip.tensors.specs import is_contiguous, wrong_dtype
from torchzip.types import (
    Dtype,
    Layout,
    MetaTensor,
    NestedTensor,
    OtherTensor,
    QScheme,
    QuantizedTensor,
    SparseTensor,
    TypedArray,
)

Args = tuple[Any, ...]
#: (storage, offset, size, stride) -> a checked dense tensor
MakeDense = Callable[[Any, Any, Any, Any], Any]

NJT = "torch.nested._internal.nested_tensor"

#: Layouts as TorchScript writes them (the order of torch's enum).
_LAYOUT_NUMBERS = {1: "sparse_coo", 2: "sparse_csr"}
_PER_CHANNEL = ("per_channel_affine", "per_channel_affine_float_qparams")


class KindRebuilder:
    """The functions that make tensors that are not dense, for one file.

    ``dense`` makes the tensors that hold integers and packed bytes, ``is_tensor`` knows a dense
    tensor. ``keep`` is called with every tensor that came out sound, and returns what stands
    for it.
    """

    def __init__(
        self,
        dense: MakeDense,
        is_tensor: Callable[[Any], bool],
        keep: Callable[[OtherTensor], Any],
    ) -> None:
        self._make_dense = dense
        self._is_tensor = is_tensor
        self._keep = keep
        self.calls: dict[Name, Callable[[Args], Any]] = {
            ("torch._utils", "_rebuild_sparse_tensor"): self._sparse,
            ("torch._utils", "_rebuild_sparse_csr_tensor"): self._sparse,
            ("torch._utils", "_rebuild_qtensor"): self._quantized,
            ("torch._utils", "_rebuild_nested_tensor"): self._nested,
            ("torch._utils", "_rebuild_meta_tensor_no_storage"): self._meta,
            (NJT, "_rebuild_njt"): self._jagged,
        }

    def finish(self) -> None:
        """Let go of what makes the tensors: `calls` and this object refer to each other."""
        del self._is_tensor, self._keep

    def _made(self, tensor: OtherTensor) -> Any:
        check_kind(tensor)
        return self._keep(tensor)

    def _part(self, value: Any, what: str) -> Any:
        if not self._is_tensor(value):
            raise TensorError(f"{what} of a tensor are {shown(value)}; a dense tensor was expected")
        return value

    # -- sparse ------------------------------------------------------------------------------

    def _sparse(self, args: Args) -> Any:
        if len(args) in (6, 7) and type(args[0]) is int:
            return self._flat_sparse(args)
        if len(args) != 2 or type(args[1]) not in (tuple, list):
            raise wrong_arguments("_rebuild_sparse_tensor", "a layout and a tuple", args)
        layout, data = _layout(args[0]), tuple(args[1])
        if layout == "sparse_coo":
            if len(data) not in (3, 4):
                raise PickleError(f"a sparse_coo tensor is made of 3 or 4 parts, not {len(data):,}")
            indices, values, size = data[:3]
            coalesced = data[3] if len(data) == 4 else None
            return self._made(
                SparseTensor(
                    layout, self._part(indices, "indices"), self._part(values, "values"),
                    _sizes(size), coalesced,
                )
            )  # fmt: skip
        if len(data) != 4:
            raise PickleError(f"a {layout} tensor is made of 4 parts, not {len(data):,}")
        return self._made(self._compressed(layout, *data))

    def _compressed(
        self, layout: str, compressed: Any, plain: Any, values: Any, size: Any
    ) -> SparseTensor:
        pair = (self._part(compressed, "compressed indices"), self._part(plain, "plain indices"))
        return SparseTensor(layout, pair, self._part(values, "values"), _sizes(size))

    def _flat_sparse(self, args: Args) -> Any:
        """Make one of TorchScript's: (layout, size, requires_grad, indices ..., values, hooks)."""
        layout = _LAYOUT_NUMBERS.get(args[0])
        if layout is None or len(args) != (6 if layout == "sparse_coo" else 7):
            raise PickleError(
                f"a sparse tensor has layout {shown(args[0])} and {len(args)} arguments, which do "
                "not fit"
            )
        size, requires_grad, *parts, hooks = args[1:]
        check_hooks(hooks)
        if layout == "sparse_coo":
            indices, values = parts
            made = SparseTensor(
                layout, self._part(indices, "indices"), self._part(values, "values"),
                _sizes(size), None,
            )  # fmt: skip
        else:
            compressed, plain, values = parts
            made = self._compressed(layout, compressed, plain, values, size)
        return self._made(made.replace(requires_grad=requires_grad))

    # -- quantized ---------------------------------------------------------------------------

    def _quantized(self, args: Args) -> Any:
        if len(args) != 7:
            raise PickleError(f"_rebuild_qtensor takes 7 arguments, not {len(args)}")
        storage, offset, size, stride, params, requires_grad, hooks = args
        check_hooks(hooks)
        torch_dtype = getattr(getattr(storage, "storage", None), "torch_dtype", None)
        if torch_dtype is None or DTYPES[torch_dtype].kind != "quantized":
            raise TensorError(
                f"a quantized tensor has a storage of {torch_dtype or 'no dtype'}; a quantized "
                "dtype was expected"
            )
        shape = _sizes(size)
        scale, zero_point, axis = self._params(params)
        if torch_dtype in PACKED:
            # Packed as if flat; its offset counts bytes (so do torch's kernels).
            if not is_contiguous(shape, _sizes(stride)):
                raise TensorError(f"a {torch_dtype} tensor of size {list(shape)} is not contiguous")
            size, stride = (packed_nbytes(torch_dtype, shape),), (1,)
        made = QuantizedTensor(
            _untyped(self._make_dense(storage, offset, size, stride)),
            scale, zero_point, axis,
            torch_dtype=torch_dtype, shape=shape, requires_grad=requires_grad,
        )  # fmt: skip
        return self._made(made)

    def _params(self, params: Any) -> tuple[Any, Any, int | None]:
        """Return scale, zero point and axis of the parameters of a quantizer."""
        if type(params) not in (tuple, list) or not params or type(params[0]) is not QScheme:
            raise PickleError(
                f"the parameters of a quantized tensor are {shown(params)}; they begin with a "
                "scheme"
            )
        scheme = params[0].name
        if scheme == "per_tensor_affine" and len(params) == 3:
            scale, zero_point = params[1:]
            if type(scale) is int and abs(scale) < 1 << 63:
                scale = float(scale)
            if type(scale) is not float or type(zero_point) is not int:
                raise wrong_scale(scale, zero_point)
            return scale, zero_point, None
        if scheme not in _PER_CHANNEL or len(params) != 4:
            raise TensorError(
                f"a quantized tensor of scheme {scheme} has {len(params):,} parameters"
            )
        scales, zero_points, axis = params[1:]
        if type(axis) is not int:
            raise TensorError(
                f"the axis of a quantized tensor is {shown(axis)}; an int was expected"
            )
        if type(scales) is list and type(zero_points) is list:  # torch before 1.4
            if scheme != "per_channel_affine":
                raise UnsupportedError(
                    f"a quantized tensor of scheme {scheme} with lists for its scales is not read"
                )
            return scales, zero_points, axis
        return self._part(scales, "scales"), self._part(zero_points, "zero points"), axis

    # -- nested and meta ---------------------------------------------------------------------

    def _nested(self, args: Args) -> Any:
        if len(args) != 4:
            raise PickleError(f"_rebuild_nested_tensor takes 4 arguments, not {len(args)}")
        values, sizes, strides, offsets = (
            self._part(part, what)
            for part, what in zip(args, ("values", "sizes", "strides", "offsets"), strict=True)
        )
        return self._made(NestedTensor("strided", values, offsets, sizes=sizes, strides=strides))

    def _jagged(self, args: Args) -> Any:
        if len(args) != 1 or type(args[0]) is not dict:
            raise wrong_arguments("_rebuild_njt", "one dict", args)
        given = args[0]
        if not {"values", "offsets"} <= given.keys():
            raise PickleError(
                f"_rebuild_njt takes values and offsets, not {listed(list(given)) or 'nothing'}"
            )
        lengths = given.get("lengths")
        return self._made(
            NestedTensor(
                "jagged",
                self._part(given["values"], "values"),
                self._part(given["offsets"], "offsets"),
                lengths=None if lengths is None else self._part(lengths, "lengths"),
                ragged_idx=given.get("_ragged_idx", 1),
                requires_grad=given.get("requires_grad", False),
                constructor=given,
            )
        )

    def _meta(self, args: Args) -> Any:
        if len(args) != 4:
            raise PickleError(f"_rebuild_meta_tensor_no_storage takes 4 arguments, not {len(args)}")
        dtype, size, stride, requires_grad = args
        if type(dtype) is not Dtype:
            raise wrong_dtype("a meta tensor", dtype)
        return self._made(MetaTensor(dtype.name, _sizes(size), _sizes(stride), requires_grad))


def check_hooks(hooks: Any) -> None:
    """Raise UnsupportedError unless there are no backward hooks, as torch writes them."""
    if not (hooks is None or (isinstance(hooks, dict) and len(hooks) == 0)):
        raise UnsupportedError(
            f"a tensor has {shown(hooks)} for its backward hooks; tensors without any are read"
        )


def _layout(value: Any) -> str:
    if type(value) is not Layout:
        raise PickleError(
            f"the layout of a sparse tensor is {shown(value)}; a torch layout was expected"
        )
    return value.name


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(map(is_number, value)):
        raise TensorError(
            f"a size or stride of a tensor is {shown(value)}; a tuple of ints from 0 to 2**63 was "
            "expected"
        )
    return tuple(value)


def _untyped(tensor: Any) -> Any:
    """Return the integers of a quantized tensor without the name that numpy has not."""
    return tensor.array if type(tensor) is TypedArray else tensor
