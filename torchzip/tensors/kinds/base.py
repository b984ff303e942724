"""What the kinds of tensors that are not dense have in common.

A kind is a module here: a subclass of `OtherTensor` that says how its parts must fit together, what
numbers they stand for and how torch writes it, and what makes one of the arguments of a call, which
the table of `tensors.rebuild` names. No module of a kind is imported before a file has one.

The arguments are those that torch 2.13 writes (section 6.2 of the format), and for reading the
shorter ones of older files and the flat ones of TorchScript archives (section 11.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from torchzip.errors import TensorError, TorchZipError, shown
from torchzip.leaf_types import ForeignObject, TypedArray
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.parts import Checked, bare, is_part
from torchzip.tensors.specs import TensorSpec, check_requires_grad

if TYPE_CHECKING:  # a program that only reads needs nothing that writes
    from torchzip.pickling.emitter import Emitter
    from torchzip.tensors.reduce import DenseWriter

#: Where torch has the class of jagged nested tensors.
NJT = "torch.nested._internal.nested_tensor"
#: What torch names as the class of a tensor that has attributes and no class of its own.
PLAIN_CLASS = ForeignObject("torch", "Tensor")


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class OtherTensor:
    """A tensor that is not dense.

    Its parts are LazyTensors in a lazy checkpoint and numpy arrays elsewhere. ``is_parameter`` is
    True for the data of a Parameter. A tensor with Python attributes, or of a subclass, has
    the name of its class in ``subclass`` and its saved state in ``attributes``; both are None for
    plain tensors.
    """

    attributes: Any = None
    subclass: ForeignObject | None = None
    is_parameter: bool = False

    #: The fields that hold tensors, in torch's order.
    PARTS: ClassVar[tuple[str, ...]] = ()
    #: The function of torch that makes it of the arguments that are written.
    REBUILT_BY: ClassVar[Name]

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def named_parts(self) -> Iterator[tuple[str, Any]]:
        """Yield what is in the fields of `PARTS`: ``indices``, or ``indices.0`` of a pair.

        A field can also hold None, a number or a list of numbers.
        """
        for name in self.PARTS:
            value = getattr(self, name)
            if isinstance(value, tuple):
                for index, part in enumerate(value):
                    yield f"{name}.{index}", part
            else:
                yield name, value

    @property
    def parts(self) -> list[Any]:
        """The tensors that this one consists of."""
        return [part for _, part in self.named_parts() if is_part(part)]

    def with_parts(self, change: Callable[[Any], Any]) -> Self:
        """Return a copy with ``change`` applied to each part."""
        changes: dict[str, Any] = {}
        for name in self.PARTS:
            value = getattr(self, name)
            if isinstance(value, tuple):
                changes[name] = tuple(change(part) for part in value)
            elif is_part(value):
                changes[name] = change(value)
        return replace(self, **changes)

    @property
    def requires_grad(self) -> bool:
        raise NotImplementedError

    @property
    def torch_dtype(self) -> str:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int | None, ...]:
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """Its kind: ``"sparse_csr"``, ``"quantized"``, ``"nested"``, ..."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of its parts, counting broadcast axes in full."""
        return sum(bare(part).nbytes for part in self.parts)

    def check(self) -> None:
        """Raise TensorError if the shapes and dtypes of the parts do not fit together.

        Reads nothing: it is what a lazy checkpoint can know.
        """
        check_requires_grad("a tensor", self.requires_grad)
        self._check()

    def check_values(self, checked: Checked | None = None) -> None:
        """Read indices, offsets and sizes; raise TensorError if one points outside the tensor.

        Takes time and memory in proportion to what their storages hold. With ``checked``, what was
        looked at for another tensor is not looked at again. This is what `load`,
        `Checkpoint.verify` and everything that writes ask. torch 2.13 leaves it to its user
        (``check_sparse_tensor_invariants``); it also accepts columns that are not sorted or occur
        twice in a row, and so does this.
        """
        self._check_values(Checked() if checked is None else checked)

    def check_to_write(self, checked: Checked | None = None) -> None:
        """Check all that can be: the values of parts that were stored early cannot be read."""
        self.check()
        if all(
            hasattr(part, "__array__") and (not hasattr(part, "spec") or part.spec.storage.is_read)
            for part in map(bare, self.parts)
        ):
            self.check_values(checked)

    def write(self, emitter: Emitter, parts: PartWriter, requires_grad: bool) -> None:
        """Write a tensor up to its REDUCE, without its put.

        Raises
        ------
        ValueError
            If its parts do not fit together, or an index lies outside the shape.
        """
        try:
            self.check_to_write(parts.checked)
        except TorchZipError as error:
            raise ValueError(f"{emitter.where()}: {error.message}") from None
        rebuild, own_class = self._torch_names()
        subclass = self.subclass or own_class
        if subclass is None and self.attributes is None:
            emitter.name(*rebuild)
            self._write_arguments(emitter, parts, requires_grad)
        else:
            emitter.name("torch._tensor", "_rebuild_from_type_v2")
            emitter.write(b"(")
            emitter.name(*rebuild)
            emitter.save(subclass or PLAIN_CLASS)
            emitter.save(self._write_arguments(emitter, parts, requires_grad))
            emitter.write(b"t")
            emitter.put(None)
        emitter.write(b"R")

    def _check(self) -> None:
        raise NotImplementedError

    def _check_values(self, checked: Checked) -> None:
        pass

    def _torch_names(self) -> tuple[Name, ForeignObject | None]:
        """Return what makes it of its arguments, and the class if torch has one for the kind."""
        return self.REBUILT_BY, None

    def _write_arguments(self, emitter: Emitter, parts: PartWriter, requires_grad: bool) -> Any:
        """Write the argument tuple; return the attributes that are to be written after it."""
        raise NotImplementedError

    def _check_parts(self, *needed: str) -> None:
        """Raise TypeError if a part has no shape; fields not ``needed`` may hold other values."""
        for name, part in self.named_parts():
            is_needed = name.partition(".")[0] in needed
            if (is_needed or is_part(part)) and not hasattr(bare(part), "shape"):
                raise TypeError(
                    f"{name} of a {type(self).__name__}: a {type(part).__name__}; an array or a "
                    "tensor was expected"
                )

    def _describe(self) -> str:
        return f"{self.torch_dtype}, shape={list(self.shape)}"

    def __repr__(self) -> str:
        extra = ", parameter" if self.is_parameter else ""
        extra += ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({self._describe()}{extra})"


OtherTensor.__module__ = "torchzip.types"  # where users have it; a pickle of one says so


class PartReader:
    """What the functions that rebuild a tensor need of the file that it is in.

    ``dense`` returns a checked dense tensor of (storage, offset, size, stride), and ``is_tensor``
    whether a value is a dense tensor.
    """

    def __init__(
        self, dense: Callable[[Any, Any, Any, Any], Any], is_tensor: Callable[[Any], bool]
    ) -> None:
        self.dense = dense
        self.is_tensor = is_tensor

    def part(self, value: Any, what: str) -> Any:
        """Return a value that is a dense tensor, else raise TensorError."""
        if not self.is_tensor(value):
            raise TensorError(f"{what} of a tensor are {shown(value)}; a dense tensor was expected")
        return value


class PartWriter:
    """Writes what a tensor is made of.

    ``spec_of`` gives the spec of a part in the file that is written, ``integers_of`` that of the
    integers of a quantized tensor.
    """

    def __init__(
        self,
        dense: DenseWriter,
        spec_of: Callable[[Emitter, Any], TensorSpec],
        integers_of: Callable[[Emitter, Any], TensorSpec],
    ) -> None:
        self.dense = dense
        self.spec_of = spec_of
        self.integers_of = integers_of
        self.checked: Checked = Checked()

    def tuple(self, emitter: Emitter, *items: Any) -> None:
        """Write a tuple of dense tensors inside another, and of other values.

        torch makes a new object for a tensor each time it is asked, so an array is written again.
        A LazyTensor is one object wherever its file had one.
        """
        emitter.write(b"(" if len(items) > 3 else b"")
        for item in items:
            if isinstance(item, np.ndarray | TypedArray):
                self.dense.tensor(emitter, self.spec_of(emitter, item))
                emitter.put(None)
            else:
                emitter.save(item)
        emitter.write((b"t", b"\x85", b"\x86", b"\x87")[len(items) if len(items) <= 3 else 0])
        emitter.put(None)
