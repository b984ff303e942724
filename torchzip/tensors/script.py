"""The names that only the C++ pickler of TorchScript writes, beside those of ``torch.save``.

Observed in archives of torch 1.13 to 2.13. That pickler knows every dtype by a storage class of
its own (``torch UInt16Storage``), named for its C++ scalar type and counting elements, and rebuilds
all of them with ``_rebuild_tensor_v2``. Typed containers go through ``torch.jit._pickle``, which
says their static type and changes nothing. An enum's member is its class called with the bare
value, without a tuple. A device is one string, its index in it. A tensor on the meta device is
written like any other, on a storage of that location: its record has no bytes and is not read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torchzip.dtypes import DTYPES, DtypeRow
from torchzip.errors import PickleError, UnsupportedError, wrong_arguments
from torchzip.leaf_types import Device
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.meta import MetaTensor
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.rebuild import Args, Rebuilder
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import Measure, MeasuredStorage, TensorStorage

#: How the modules begin of all classes that an archive defines itself.
SCRIPT_PREFIX = "__torch__"


def is_script_class(module: str) -> bool:
    """Return whether the classes of a module are those that an archive defines itself."""
    return module == SCRIPT_PREFIX or module.startswith(f"{SCRIPT_PREFIX}.")


class ScriptRebuilder(Rebuilder):
    """The table for one pickle of a TorchScript archive."""

    def __init__(self, factory: Factory) -> None:
        super().__init__(_MetaAside(factory))
        self._storages.classes |= {
            ("torch", storage_class(row)): (row.name, row.itemsize) for row in DTYPES.values()
        }
        self.table = dataclasses.replace(
            self.table,
            calls={**self.table.calls, **_CALLS},
            names=self.table.names | frozenset(self._storages.classes),
            one_value=SCRIPT_PREFIX,
        )


class _MetaAside(Factory):
    """A Factory that makes MetaTensors of what is on the meta device, and else asks another."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        # Not ``storages``: any of them may be on it.
        for name in ("spec_of", "parameter", "is_tensor", "on_device", "key", "other"):
            setattr(self, name, getattr(factory, name))

    def storage(self, key: str, measure: Measure) -> TensorStorage:
        if _is_meta(measure.location):
            return MeasuredStorage(*measure)
        return self._factory.storage(key, measure)

    def tensor(self, spec: TensorSpec) -> Any:
        if not _is_meta(spec.storage.location):
            return self._factory.tensor(spec)
        made = MetaTensor(spec.torch_dtype, spec.shape, spec.stride, spec.requires_grad)
        made.check()
        return self.other(made)


def _is_meta(location: str) -> bool:
    return location.partition(":")[0] == "meta"


def storage_class(row: DtypeRow) -> str:
    """Return the storage class of a dtype as the C++ pickler writes it.

    >>> storage_class(DTYPES["uint16"]), storage_class(DTYPES["float8_e4m3fn"])
    ('UInt16Storage', 'Float8_e4m3fnStorage')
    """
    if row.storage_class is not None:
        return row.storage_class
    name = row.script_name or (row.name[0].upper() + row.name[1:]).replace("Uint", "UInt")
    return f"{name}Storage"


def _typed_list(name: str) -> Callable[[Args], Any]:
    def call(args: Args) -> Any:
        if len(args) != 1 or type(args[0]) is not list:
            raise wrong_arguments(f"torch.jit._pickle.{name}", "one list", args)
        return args[0]

    return call


def _restore_type_tag(args: Args) -> Any:
    if len(args) != 2 or type(args[1]) is not str:
        raise wrong_arguments("torch.jit._pickle.restore_type_tag", "a value and a type", args)
    return args[0]


def _tensor_from_id(args: Args) -> Any:
    raise UnsupportedError(
        "torch.jit._pickle.build_tensor_from_id: a tensor of a table outside this pickle, as "
        "archives before torch 1.4 have them"
    )


def _device(args: Args) -> Device:
    """Return a device from one string such as ``cuda:1``."""
    if len(args) != 1 or type(args[0]) is not str:
        raise wrong_arguments("torch.device", "one string in a TorchScript archive", args)
    kind, colon, index = args[0].partition(":")
    if not colon:
        return Device(kind)
    if not (index.isascii() and index.isdigit() and len(index) <= 9):
        raise PickleError(f"the device {args[0][:40]!r} has an index that is not a number")
    return Device(kind, int(index))


_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")

_CALLS: dict[Name, Callable[[Args], Any]] = {
    **{("torch.jit._pickle", name): _typed_list(name) for name in _LISTS},
    ("torch.jit._pickle", "restore_type_tag"): _restore_type_tag,
    ("torch.jit._pickle", "build_tensor_from_id"): _tensor_from_id,
    ("torch", "device"): _device,
}
