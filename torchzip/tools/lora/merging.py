"""Adapters merged into a base: `merge_lora`.

Each weight that an adapter changes is an expression over the base and the factors
(`tensors.computed`), so nothing is read before it is written, block after block.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.quantities import some_of
from torchzip.convert.conversion import convert
from torchzip.convert.report import ConvertReport
from torchzip.dtypes import DTYPES
from torchzip.errors import EnoughMemory, ErrorPlace, FormatError, shown
from torchzip.files.location import StorageOptions
from torchzip.limits import Limits
from torchzip.quantization.codes import codes
from torchzip.quantization.dequantizing import dequantized_checkpoint
from torchzip.tensors.specs import TensorSpec, layout
from torchzip.tensors.views import permuted
from torchzip.tools.lookup import named_tensors
from torchzip.tools.lora.adapters import Adapter, Module, open_adapter, whole_name
from torchzip.tools.lora.deltas import Constant, Normalize, Step, merged
from torchzip.tools.lora.names import BaseNames
from torchzip.tools.lora.steps import change_of, needed
from torchzip.tools.merging import factors_of, put_in_place

Path = str | os.PathLike[str]
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class LoraMerged:
    """What `merge_lora` did.

    ``converted`` is what `convert` reports. ``merged`` are the tensors of the base that adapters
    were added to, each with the kinds of these, ``replaced`` those that an adapter has as a whole.
    ``left_out`` are keys of adapters that were not used, each with the reason; they are an error
    unless ``partial`` allows it. ``dequantized`` are weights of the base that were quantized.
    """

    converted: ConvertReport
    merged: dict[str, str]
    replaced: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    dequantized: dict[str, str] = field(default_factory=dict)


@EnoughMemory()
def merge_lora(
    base: Path,
    adapters: Path | Sequence[Path],
    dst: Path,
    *,
    weights: Sequence[float] | None = None,
    partial: bool = False,
    **convert_options: Any,
) -> LoraMerged:
    """Write a base with adapters merged into it to ``dst``, in the dtypes of the base.

    An adapter is a directory of peft (LoRA with its variants rslora, DoRA, patterns of ranks and
    alphas, biases and modules_to_save; LoHa and LoKr), or a LoRA file of kohya, LyCORIS or
    diffusers. Of several, the deltas are added up in float32, each times its weight, and rounded
    once to the dtype of the base; peft rounds after each. A quantized base is dequantized on the
    way. Names are matched by their ends where they are not the same.

    Every tensor of an adapter is used, or it is an error that lists those that are not; with
    ``partial`` they are left out. ``convert_options`` are the options of `convert`;
    ``storage_options`` are for all URLs. The memory is a constant beside the factors of one module.

    Raises
    ------
    ValueError
        If tensors of an adapter have no place in the base, or the weights are not as many as the
        adapters.
    FormatError
        If the factors of a module do not fit together, or do not fit the base.
    UnsupportedError
        If an adapter is of another kind.
    TorchZipError, OSError
        If the base or an adapter cannot be read, or the output cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> base, adapter = (os.path.join(folder, name) for name in ("base.pt", "lora.safetensors"))
    >>> save({"a.weight": np.zeros((2, 3), "float32")}, base)
    >>> factors = {"a.lora_up.weight": np.ones((2, 1)), "a.lora_down.weight": np.ones((1, 3))}
    >>> report = convert(factors, adapter, dtype="float32")
    >>> merge_lora(base, adapter, os.path.join(folder, "out.pt"), weights=[0.5]).merged
    {'a.weight': 'lora'}
    >>> load(os.path.join(folder, "out.pt"))["a.weight"].tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    paths = [adapters] if isinstance(adapters, str | os.PathLike) else list(adapters)
    if not paths:
        raise ValueError("one adapter or more were expected")
    factors = factors_of(weights, len(paths), "adapter")
    if not np.isfinite(factors).all():
        raise ValueError(f"the weights are {factors}; finite numbers were expected")
    limits: Limits | None = convert_options.pop("limits", None)
    storage_options: StorageOptions = convert_options.get("storage_options")
    with contextlib.ExitStack() as opened:
        opened.callback(Constant.forget)
        checkpoint = opened.enter_context(
            Checkpoint(base, limits=limits, storage_options=storage_options)
        )
        plan = _Plan(checkpoint)
        for path, factor in zip(paths, factors, strict=True):
            held, adapter = open_adapter(path, limits, storage_options)
            opened.enter_context(held)
            with ErrorPlace(path=held.path):
                plan.add(adapter, factor)
        if plan.left_out and not partial:
            raise ValueError(_listed(plan.left_out))
        report = convert(plan.source(), dst, **convert_options)
    return LoraMerged(
        report,
        {name: ", ".join(dict.fromkeys(kinds)) for name, kinds in plan.kinds.items()},
        tuple(plan.replaced),
        plan.left_out,
        plan.dequantized,
    )


class _Plan:
    """What becomes of each tensor of the base."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = named_tensors(checkpoint)
        self.dequantized: dict[str, str] = {}
        dtypes = {name: held.torch_dtype for name, held in self._tensors.items()}
        self._is_quantized = bool(codes(dtypes) or checkpoint.subclassed)
        if self._is_quantized:
            found = dequantized_checkpoint(checkpoint, tensors=self._tensors)
            self._tensors, self.dequantized = found.tensors, found.schemes
        self._names = BaseNames(self._tensors)
        #: By name, what a tensor is before the steps, and these; by whether they are transposed.
        self._bases: dict[str, TensorSpec] = {}
        self._steps: dict[str, list[tuple[bool, tuple[Step, ...]]]] = {}
        self.kinds: dict[str, list[str]] = {}
        self.replaced: list[str] = []
        #: By name, the tensors that are replaced by copies that were trained apart.
        self._whole: dict[str, LazyTensor] = {}
        self.left_out: dict[str, str] = {}

    def add(self, adapter: Adapter, factor: float) -> None:
        """Add what an adapter does."""
        for key, tensor in adapter.saved.items():
            self._replace(key, tensor, factor)
        for module in adapter.modules.values():
            self._merge(adapter, module, factor)

    def _replace(self, key: str, tensor: LazyTensor, factor: float) -> None:
        """Take a tensor that an adapter has as a whole."""
        name, reason = self._names.find(whole_name(key))
        held = self._tensors.get(name or "")
        if name is None or not isinstance(held, LazyTensor):
            self.left_out[key] = reason or "is not a dense tensor in the base"
            return
        if factor != 1:
            raise ValueError(
                f"{shown(key)} replaces a tensor of the base, and the adapter has the weight "
                f"{factor}; only 1 is possible"
            )
        kinds = {DTYPES[each.torch_dtype].kind for each in (held, tensor)}
        if tensor.torch_dtype != held.torch_dtype and kinds != {"float"}:
            raise FormatError(
                f"{shown(key)} is {tensor.torch_dtype}, and {shown(name)}, which it replaces, is "
                f"{held.torch_dtype}"
            )
        if name in self._bases:
            raise ValueError(f"{shown(key)} replaces {shown(name)}, which another adapter changes")
        self._bases[name] = tensor.to(held.torch_dtype).spec
        self.replaced.append(name)
        if ".base_layer." not in key:
            self._whole[name] = tensor

    def _merge(self, adapter: Adapter, module: Module, factor: float) -> None:
        """Merge the factors of a module."""
        left = dict(module.keys)
        reasons: dict[str, str] = {}
        if left.keys() - {"bias", "diff_bias", "alpha"}:
            name, reason = self._names.find(f"{module.name}.weight")
            if name is None:
                name, other = self._names.find(module.name)  # a parameter that is not a weight
                reason = reason if name is None else other
                if name is None and (adapter.config or {}).get("target_parameters"):
                    reason += ", or one of target_parameters other than a weight; none is merged"
            reasons = dict.fromkeys(left, reason)
            if name is not None:
                held = self._weight(name, module)
                rounded = held.torch_dtype if adapter.rounds_first(name) else None
                change = change_of(adapter, module, held, factor, rounded)
                self._add(name, change.is_transposed, change.steps, change.kind)
                for part in change.parts:
                    left.pop(part, None)
        for part, scaled in (("bias", True), ("diff_bias", False)):
            if part not in left:
                continue
            name, reasons[part] = self._names.find(f"{module.name}.bias")
            if name is None:
                continue
            scale = factor
            if scaled:
                scale *= adapter.scale_of(module, needed(module, "down")[0].shape[0])
            held, (delta,) = self._weight(name, module), needed(module, part)
            if delta.shape != held.shape:
                raise ValueError(f"{shown(left[part])} has the shape {list(delta.shape)}; that of "
                                 f"{shown(name)} is {list(held.shape)}")  # fmt: skip
            total = (held + delta * scale).to(held.torch_dtype)
            self._bases[name] = total.spec
            self.kinds.setdefault(name, []).append("bias")
            del left[part]
        for part, key in left.items():
            self.left_out[key] = reasons.get(part) or "is not a part of a formula that is known"

    def _weight(self, name: str, module: Module) -> LazyTensor:
        """Return a tensor of the base, as an adapter may have replaced it."""
        held = self._tensors[name]
        if not isinstance(held, LazyTensor) or DTYPES[held.torch_dtype].kind != "float":
            raise ValueError(
                f"{shown(name)}, for {shown(module.name)}, is {held.torch_dtype}; floats were "
                "expected"
            )
        return LazyTensor(self._bases.get(name, held.spec))

    def _add(self, name: str, turned: bool, steps: tuple[Step, ...], kind: str) -> None:
        own = self._steps.setdefault(name, [])
        own.append((turned, steps))
        if len(own) > 1 and any(isinstance(step, Normalize) for _, each in own for step in each):
            raise ValueError(
                f"{shown(name)}: DoRA needs the norm of the weight without other adapters; merge "
                "one after another"
            )
        self.kinds.setdefault(name, []).append(kind)

    def _result(self, name: str, held: LazyTensor) -> TensorSpec:
        """Return a tensor after all steps."""
        spec = self._bases.get(name, held.spec)
        for turned in (False, True):
            steps = [each for own, group in self._steps.get(name, ()) if own == turned
                     for each in group]  # fmt: skip
            if steps:
                spec = permuted(spec, (1, 0)) if turned else spec
                spec = merged(spec, steps)
                spec = permuted(spec, (1, 0)) if turned else spec
        return spec

    def _is_replaced_as_another(self, name: str, own: Any) -> bool:
        """Return whether a tensor is replaced by the same numbers as one before that it is tied to.

        Raises
        ------
        ValueError
            If one of tied tensors is replaced, and another is not, or not by the same: they are one
            tensor in the base, and two for the adapter.
        """
        tensor = self._whole.get(name)
        if tensor is None:
            return False
        tied = [
            each
            for each, held in self._tensors.items()
            if isinstance(held, LazyTensor) and held.spec.numel and layout(held.spec) == own
        ]
        for each in tied:
            other = self._whole.get(each)
            if other is None or self._steps.keys() & {*tied} or not _same(tensor, other):
                raise ValueError(
                    f"{shown(name)} is tied to {shown(each)} in the base, and an adapter replaces "
                    "one of them alone; convert the base with untie=True (--untie) first"
                )
        return bool(tied) and name != tied[0]

    def source(self) -> Checkpoint | Mapping[str, Any]:
        """Return what is converted: the base with other tensors in their places."""
        results: dict[Any, TensorSpec] = {}
        changed = [*self._steps, *(name for name in self._bases if name not in self._steps)]
        for name in changed:
            held = self._tensors[name]
            own = layout(held.spec)
            if self._is_replaced_as_another(name, own):
                continue
            if own in results:
                raise ValueError(
                    f"{shown(name)} is tied to another tensor that an adapter changes; convert the "
                    "base with untie=True (--untie) first"
                )
            results[own] = self._result(name, held)
        for held in {id(each): each for each in self._tensors.values()}.values():
            if isinstance(held, LazyTensor) and held.spec.numel:
                result = results.get(layout(held.spec))
                if result is not None:
                    put_in_place(held, result)
        return self._tensors if self._is_quantized else self._checkpoint


def _same(one: LazyTensor, other: LazyTensor) -> bool:
    """Return whether two tensors are equal, bit for bit; they are read in blocks of rows."""
    if one is other or layout(one.spec) == layout(other.spec):
        return True
    if (one.torch_dtype, one.shape) != (other.torch_dtype, other.shape):
        return False
    if not one.shape:
        return one.numpy().tobytes() == other.numpy().tobytes()
    rows = max(1, (1 << 22) // max(one.nbytes // max(one.shape[0], 1), 1))
    return all(
        one[begin : begin + rows].tobytes() == other[begin : begin + rows].tobytes()
        for begin in range(0, one.shape[0], rows)
    )


def _listed(left_out: Mapping[str, str]) -> str:
    lines = [f"{shown(key)} {reason}" for key, reason in left_out.items()]
    first = some_of(lines, _MOST_SHOWN, "; ", "; and ")
    return (
        f"{len(lines):,} tensors of adapters are not used: {first}. The option partial leaves them "
        "out"
    )
