"""Reads an adapter: which tensors of it are of one module, and what part each is.

===============================  ===================================================================
written by                       names
===============================  ===================================================================
peft, LoRA                       ``base_model.model.<module>.lora_A.weight`` [r, in], ``lora_B``
                                 [out, r]; ``lora_B.bias``; ``lora_embedding_A`` [r, vocabulary],
                                 ``lora_embedding_B``; ``lora_magnitude_vector`` (DoRA)
peft, LoHa and LoKr              ``hada_w1_a``, ``hada_w1_b``, ``hada_t1``, ...; ``lokr_w1``, or
                                 ``lokr_w1_a`` and ``lokr_w1_b``, ``lokr_w2``, ..., ``lokr_t2``
peft, whole tensors              ``<module>.weight`` (modules_to_save), ``<module>.bias``,
                                 ``<module>.base_layer.weight``
kohya, LyCORIS                   ``lora_unet_<module, _ for .>.lora_down.weight``, ``lora_up``,
                                 ``lora_mid``, ``alpha``; ``hada_*``, ``lokr_*``, ``diff``
diffusers                        ``unet.<module>.lora_A.weight``, ``.lora.down.weight``,
                                 ``.processor.to_q_lora.down.weight``
===============================  ===================================================================

peft has ranks and alphas in ``adapter_config.json`` beside the file, the others in the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, place_beside
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.container.json_objects import parse_json
from torchzip.errors import FormatError, UnsupportedError, shown
from torchzip.files.location import StorageOptions
from torchzip.limits import Limits

_CONFIG = "adapter_config.json"
#: The part that a tensor is, by the end of its name.
_ROLES = tuple(
    (re.compile(rf"(.+?)(?:{endings})"), role)
    for role, endings in {
        "down": r"\.lora_A(?:\.\w+)?\.weight|[._]lora[._]down\.weight"
                r"|\.lora_linear_layer\.down\.weight",
        "up": r"\.lora_B(?:\.\w+)?\.weight|[._]lora[._]up\.weight"
              r"|\.lora_linear_layer\.up\.weight",
        "mid": r"[._]lora[._]mid\.weight",
        "bias": r"\.lora_B(?:\.\w+)?\.bias",
        "embedding_down": r"\.lora_embedding_A(?:\.\w+)?",
        "embedding_up": r"\.lora_embedding_B(?:\.\w+)?",
        "magnitude": r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?",
        "alpha": r"\.alpha",
        "diff": r"\.diff",
        "diff_bias": r"\.diff_b",
    }.items()
)  # fmt: skip
_NAMED_ROLE = re.compile(r"(.+)\.((?:hada|lokr)_[wt][12](?:_[ab])?)")
#: The kinds of peft that have formulas here.
_PEFT_TYPES = ("LORA", "LOHA", "LOKR")
#: Ways to begin that change the base, and whose adapters belong to what is left of it.
_OF_RESIDUALS = ("pissa", "olora", "corda", "loftq", "lora_ga")
#: What peft puts into the name of a whole tensor: that of a copy that was trained, of a layer
#: inside of an adapter, and of a layer beside its copy. The first of a tensor's names counts.
_WRAPPERS = ("modules_to_save", "base_layer", "original_module")


@dataclass(slots=True)
class Module:
    """The tensors of an adapter for one module: by their part, with their names."""

    name: str
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


class Adapter:
    """An adapter. ``modules`` are what it has for modules, ``saved`` its whole tensors by key.

    ``saved`` has the key that counts if peft wrote several for one tensor of the base. ``config``
    is that of peft, None for files of others.
    """

    def __init__(
        self, tensors: Mapping[str, Any], config: Mapping[str, Any] | None, path: str
    ) -> None:
        self.config = config
        self.path = path
        self.modules: dict[str, Module] = {}
        self.saved: dict[str, LazyTensor] = {}
        if config is not None:
            self._check_config(config)
        whole: dict[str, LazyTensor] = {}
        for key, tensor in tensors.items():
            if not isinstance(tensor, LazyTensor):
                raise FormatError(f"{shown(key)} is not a dense tensor", path=path)
            found = part_of(key)
            if found is None:
                whole[key] = tensor
                continue
            name, role = found
            module = self.modules.setdefault(name, Module(name))
            if role in module.keys:
                raise FormatError(
                    f"{shown(module.keys[role])} and {shown(key)} are the same part of "
                    f"{shown(name)}",
                    path=path,
                )
            module.tensors[role], module.keys[role] = tensor, key
        first: dict[str, str] = {}
        for key in sorted(whole, key=_precedence):
            first.setdefault(whole_name(key), key)
        self.saved = {key: whole[key] for key in whole if first[whole_name(key)] == key}
        if not self.modules and config is None:
            raise FormatError(
                "no tensor has the name of a part of an adapter, such as lora_A or lora_down",
                path=path,
            )

    def _check_config(self, config: Mapping[str, Any]) -> None:
        kind = str(config.get("peft_type"))
        if kind not in _PEFT_TYPES:
            raise UnsupportedError(
                f"an adapter of the kind {shown(kind)}; one of {', '.join(_PEFT_TYPES)} was "
                "expected",
                path=self.path,
            )
        begin = config.get("init_lora_weights")
        if isinstance(begin, str) and begin.lower().startswith(_OF_RESIDUALS):
            raise UnsupportedError(
                f"init_lora_weights is {shown(begin)}: the adapter belongs to a base that was "
                "changed; save it with path_initial_model_for_weight_conversion",
                path=self.path,
            )
        for key in ("layer_replication", "alora_invocation_tokens"):
            if config.get(key):
                raise UnsupportedError(
                    f"{key} in the config: a model with more layers, or adapters for some tokens "
                    "alone, has no merged weights",
                    path=self.path,
                )

    def scale_of(self, module: Module, rank: int) -> float:
        """Return what the product of the factors is multiplied by: alpha / rank, mostly."""
        config = self.config
        if config is None:
            held = module.tensors.get("alpha")
            if held is None:
                return 1.0
            if held.spec.numel != 1:
                raise FormatError(f"{shown(module.keys['alpha'])} has the shape {held.shape}")
            return float(held.numpy().reshape(())) / rank
        kind = config.get("peft_type")
        own = self._number(config, "lora_alpha" if kind == "LORA" else "alpha", 8)
        alpha = self._by_pattern(module.name, "alpha_pattern", own)
        if kind == "LORA" and config.get("use_rslora"):
            return alpha / math.sqrt(rank)
        return alpha / rank

    def rank_of(self, module: Module) -> int:
        """Return the rank that the config has for a module, where no shape says it."""
        config = self.config or {}
        rank = self._by_pattern(module.name, "rank_pattern", self._number(config, "r", 8))
        if rank < 1 or rank != int(rank):
            raise FormatError(f"r is {rank}; a whole number was expected", path=self.path)
        return int(rank)

    def rounds_first(self, weight: str) -> bool:
        """Return whether peft rounds a delta to the dtype of this weight before it is added."""
        config = self.config or {}
        targets = config.get("target_parameters")
        return str(config.get("init_lora_weights")).lower() == "mica" or any(
            weight == target or weight.endswith(f".{target}")
            for target in (targets if isinstance(targets, list | tuple) else ())
        )

    def _number(self, config: Mapping[str, Any], key: str, default: float) -> float:
        value = config.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value:
            raise FormatError(f"{key} is {shown(value)}; a number was expected", path=self.path)
        if not math.isfinite(value):
            raise FormatError(f"{key} is {value}; a finite number was expected", path=self.path)
        return value

    def _by_pattern(self, module: str, key: str, default: float) -> float:
        """Return what the first pattern has that a module's name ends with."""
        patterns = (self.config or {}).get(key) or {}
        for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
            try:
                found = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise FormatError(
                    f"{key} has {shown(pattern)}, which is not a regular expression: {error}",
                    path=self.path,
                ) from None
            if found:
                return self._number({key: value}, key, default)
        return default


def part_of(key: str) -> tuple[str, str] | None:
    """Return the module of a tensor of an adapter, and which part it is; None for whole tensors.

    >>> part_of("base_model.model.a.q.lora_A.weight"), part_of("lora_unet_a_q.alpha")
    (('a.q', 'down'), ('lora_unet_a_q', 'alpha'))
    >>> part_of("u.attn.processor.to_q_lora.up.weight"), part_of("base_model.model.head.weight")
    (('u.attn.to_q', 'up'), None)
    """
    found = _NAMED_ROLE.fullmatch(key)
    if found is not None:
        return without_prefix(found[1]), found[2]
    for pattern, role in _ROLES:
        match = pattern.fullmatch(key)
        if match is not None:
            return without_prefix(match[1]).replace(".processor.", "."), role
    return None


def whole_name(key: str) -> str:
    """Return the tensor of the base that a whole tensor of an adapter is for.

    >>> whole_name("base_model.model.head.modules_to_save.default.weight")
    'head.weight'
    """
    parts = [part for part in without_prefix(key).split(".") if part not in _WRAPPERS]
    if ".modules_to_save." in key and len(parts) > 1:  # the name of the adapter comes after it
        parts = [*parts[:-2], parts[-1]] if parts[-2] == "default" else parts
    return ".".join(parts)


def _precedence(key: str) -> int:
    """Return the place of a key among those of one tensor: a trained copy first, its origin last.

    A name without a wrapper is that of a trained copy as well.
    """
    return max((_WRAPPERS.index(part) for part in key.split(".") if part in _WRAPPERS), default=0)


def without_prefix(name: str) -> str:
    """Return a name without what peft puts before those of the base."""
    return name.removeprefix("base_model.model.") if name.startswith("base_model.") else name


def open_adapter(
    path: str | os.PathLike[str], limits: Limits | None, storage_options: StorageOptions
) -> tuple[Checkpoint, Adapter]:
    """Open an adapter, a directory or a file; its checkpoint must stay open until all is read."""
    checkpoint = Checkpoint(path, limits=limits, storage_options=storage_options)
    try:
        raw = checkpoint.beside(_CONFIG)
        config = None
        if raw is not None:
            place = place_beside(checkpoint, _CONFIG)
            config = parse_json(raw, "the config", place, limits=checkpoint.limits)
        return checkpoint, Adapter(dict(checkpoint.items()), config, checkpoint.path)
    except BaseException:
        checkpoint.close()
        raise
