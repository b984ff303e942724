"""The quantization config beside the weights: which method made them, and its parameters.

====================  ====================================  ======================================
file                  key                                   written by
====================  ====================================  ======================================
config.json           quantization_config                   transformers, diffusers
config.json           text_config.quantization_config       models of several parts
config.json           compression_config                    older compressed-tensors
quantize_config.json  the file itself                       AutoGPTQ
quant_config.json     the file itself                       AutoAWQ
hf_quant_config.json  quantization                          modelopt
====================  ====================================  ======================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, place_beside
from torchzip.container.json_objects import parse_json
from torchzip.errors import FormatError, shown
from torchzip.limits import DEFAULT_LIMITS

#: The files that are looked for beside the weights, in this order.
_FILES = ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
_KEYS = ("quantization_config", "compression_config")
#: What a mapping has that is a quantization config itself.
_OWN_KEYS = frozenset(
    ["quant_method", "quant_algo", "bits", "w_bit", "config_groups", "load_in_4bit", "load_in_8bit"]
)


class QuantizationConfig:
    """What a config says of the quantization. An empty one says nothing.

    ``values`` is the mapping as it was found, ``where`` the file that it is from.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, where: str = "config") -> None:
        self.values: Mapping[str, Any] = values or {}
        self.where = where

    @property
    def method(self) -> str:
        """The name of the method in lower case; "" if the config has none."""
        for key in ("quant_method", "quant_algo"):
            method = self.values.get(key)
            if isinstance(method, str):
                return method.lower()
        return ""

    def number(self, *keys: str, among: Mapping[str, Any] | None = None) -> int | None:
        """Return the first of some keys that has a positive int, of the config or of a part of it.

        Raises
        ------
        FormatError
            If there is something else under a key; None and -1 mean that there is no number.
        """
        for key in keys:
            value = (self.values if among is None else among).get(key)
            if value is None or value == -1:
                continue
            if type(value) is not int or value < 1:
                raise FormatError(
                    f"{key} is {shown(value)}; a number of 1 or more was expected", path=self.where
                )
            return value
        return None

    def pair(self, value: Any, key: str) -> tuple[int, int] | None:
        """Return two positive ints, such as the sides of a block; None for None."""
        if value is None:
            return None
        if (
            not isinstance(value, list | tuple)
            or len(value) != 2
            or not all(type(each) is int and each > 0 for each in value)
        ):
            raise FormatError(
                f"{key} is {shown(value)}; two numbers of 1 or more were expected", path=self.where
            )
        return value[0], value[1]

    @property
    def block(self) -> tuple[int, int] | None:
        """The rows and columns of a block with one scale; None if the config has none."""
        return self.pair(self.values.get("weight_block_size"), "weight_block_size")

    def weights_of(self, module: str) -> Mapping[str, Any]:
        """Return what ``config_groups`` (compressed-tensors) says of the weights of a module.

        Targets are names or, after ``re:``, regular expressions. Those that are names of classes,
        such as ``Linear``, are taken last, as what class a module has is not in the file.
        """
        groups = self.values.get("config_groups")
        by_class: Mapping[str, Any] = {}
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if not isinstance(weights, Mapping):
                continue
            targets = group.get("targets") or ()
            if not isinstance(targets, list | tuple):
                raise FormatError(
                    f"targets is {shown(targets)}; a list of names was expected", path=self.where
                )
            for target in targets:
                if _is_target(str(target), module):
                    return weights
                if not by_class and "." not in str(target) and not str(target).startswith("re:"):
                    by_class = weights
        return by_class


def _is_target(target: str, module: str) -> bool:
    if not target.startswith("re:"):
        return target == module
    try:
        return re.match(target[3:], module) is not None
    except re.error:
        return False


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a model without what it says of quantization.

    transformers refuses plain weights beside a config that says that they are quantized.

    >>> without_quantization({"model_type": "llama", "quantization_config": {"bits": 4}})
    {'model_type': 'llama'}
    """
    return {
        key: without_quantization(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _KEYS
    }


def is_config(name: str) -> bool:
    """Return whether a file of this name may say how the weights beside it are quantized."""
    return name in _FILES


def plain_config(name: str, raw: bytes) -> bytes | None:
    """Return the bytes of such a file for plain weights: the same ones if it says nothing of that.

    None stands for a file that is about quantization alone.

    Raises
    ------
    FormatError
        If it is not a JSON object.
    """
    if name != _FILES[0]:
        return None
    values = parse_json(raw, "the config", name)
    plain = without_quantization(values)
    return raw if plain == values else json.dumps(plain, indent=2).encode() + b"\n"


def parse_config(config: Mapping[str, Any] | str | os.PathLike[str]) -> QuantizationConfig:
    """Return the config that a user gives: a mapping, or the path of a JSON file with one."""
    if isinstance(config, Mapping):
        found = _config_in(config)
        return QuantizationConfig(config if found is None else found)
    if not isinstance(config, str | os.PathLike):
        raise TypeError(f"config is a mapping or a path, not {type(config).__name__}")
    path = os.fsdecode(config)
    with open(path, "rb") as file:
        values = parse_json(file.read(), "the config", path, limits=DEFAULT_LIMITS)
    found = _config_in(values)
    if found is None:
        raise FormatError("the file has no quantization_config", path=path)
    return QuantizationConfig(found, path)


def config_beside(checkpoint: Checkpoint) -> QuantizationConfig:
    """Return the config in the folder of a checkpoint; an empty one if it has none."""
    for name in _FILES:
        raw = checkpoint.beside(name)
        if raw is None:
            continue
        place = place_beside(checkpoint, name)
        values = parse_json(raw, "the config", place, limits=checkpoint.limits)
        found = _config_in(values)
        if found is not None:
            return QuantizationConfig(found, place)
    return QuantizationConfig()


def _config_in(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the quantization config in a mapping, or the mapping itself if it is one."""
    for key in (*_KEYS, "quantization"):
        found = values.get(key)
        if isinstance(found, Mapping):
            return found
    if values.keys() & _OWN_KEYS:
        return values
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = values.get(key)
        found = _config_in(inner) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None
