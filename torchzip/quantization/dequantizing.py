"""Plain weights in the place of quantized ones: `dequantize`.

Each weight takes the tensors that it is made from (its codes and what scales them), which are then
no tensors of the result. Whatever else may be a part of a quantized weight is an error: codes are
never handed on as values, nor scales that nothing was multiplied by.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.errors import FormatError, TorchZipError, UnsupportedError, shown
from torchzip.leaf_types import ForeignObject
from torchzip.quantization.arithmetic import Part
from torchzip.quantization.codes import codes as codes_among
from torchzip.quantization.configs import QuantizationConfig, config_beside, parse_config
from torchzip.quantization.scheme import FLOAT8, Found, Plain
from torchzip.quantization.table import SCHEMES
from torchzip.quantization.torchao import Wrapper, plain_of, wrappers
from torchzip.tensors.specs import layout

ConfigLike = Mapping[str, Any] | str | os.PathLike[str] | None

#: Scales of activations, of caches, and marks: no weight is made from them.
_DROPPED = re.compile(
    r"(.*[._])?(?:"
    r"(?:input|output|[kvq]|k_proj\.output|v_proj\.output|prob_output|attn_output)_"
    r"(?:activation_)?(?:global_)?(?:scale(?:_ub|_inv)?|zero_point)"
    r"|activation_scale|scaled_fp8)"
)
#: How names end that only parts of quantized weights have.
_PART = re.compile(
    r".*(?:[._]?weight(?:_scale(?:_inv|_2)?|_global_scale|_zero_point|_packed|_g_idx)"
    r"|_scale_inv|scale_weight|[._](?:qweight|qzeros|SCB|W_q|absmax|nested_absmax|quant_map|qdata)"
    r"|quant_state\.[^.]+)"
)


@dataclass(slots=True)
class Dequantized:
    """``tensors`` are all tensors by name, plain ones where there were quantized ones.

    ``schemes`` has the name of each that was quantized, and how. ``dropped`` are the names of
    scales of activations and the like, which plain weights do not need. ``wrappers`` are objects
    of torchao whose tensors are plain now. ``codes`` has the name of the codes of each weight.
    """

    tensors: dict[str, Any]
    codes: dict[str, str] = field(default_factory=dict)
    schemes: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    wrappers: dict[str, ForeignObject] = field(default_factory=dict)
    #: The names of what is inside of these.
    inner: set[str] = field(default_factory=set)
    #: Keys of the metadata that describe what is plain now.
    described: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Claim:
    """A quantized weight, and the names of its parts."""

    name: str
    plain: Plain
    parts: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def dequantize(
    tensors: Mapping[str, Any],
    config: QuantizationConfig | None = None,
    *,
    subclassed: Mapping[str, ForeignObject] | None = None,
    metadata: Mapping[str, str] | None = None,
    transposes: bool = True,
) -> Dequantized:
    """Return tensors with plain weights in the place of quantized ones. No weight is read.

    ``subclassed`` and ``metadata`` are those of the checkpoint: what torchao says of its tensors.

    Raises
    ------
    FormatError
        If a weight lacks its scale, or has one of a shape or dtype that does not fit.
    UnsupportedError
        If a scheme is not known.
    """
    config = config or QuantizationConfig()
    wrapped = list(wrappers(tensors, subclassed or {}, metadata or {}))
    claims = _claims(tensors, wrapped, config, transposes)
    by_codes = {claim.parts[0]: claim for claim in claims}
    taken = {name for claim in claims for name in claim.parts}
    dropped = [name for claim in claims for name in claim.dropped]
    if claims:
        dropped += [name for name in tensors if name not in taken and _DROPPED.fullmatch(name)]
    left = tensors.keys() - taken - set(dropped)
    _refuse_parts({name: tensors[name] for name in tensors if name in left}, config)
    found = Dequantized({}, dropped=list(dict.fromkeys(dropped)))
    found.wrappers = {each.name: each.call for each in wrapped if each.call is not None}
    found.inner = {name for each in wrapped if each.call is not None for name in each.names}
    found.described = {each.name for each in wrapped if each.call is None}
    made: dict[Any, LazyTensor] = {}
    for name, held in tensors.items():
        claim = by_codes.get(name)
        if claim is None:
            if name in left:
                found.tensors[name] = held
            continue
        if claim.name in left or claim.name in found.tensors:
            raise FormatError(
                f"{shown(claim.name)} is there twice: as it is, and as the codes {shown(name)}"
            )
        own = tuple(layout(tensors[each].spec) for each in claim.parts)
        if own not in made:
            made[own] = LazyTensor(claim.plain.make())
        found.tensors[claim.name] = made[own]
        found.schemes[claim.name] = claim.plain.text
        found.codes[claim.name] = name
    return found


def schemes_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return how the weights of a checkpoint are quantized, by the names of their codes.

    That is read off names, dtypes, shapes, and the config beside it. What lacks a part or is of an
    unknown scheme has none.
    """
    tensors = dict(checkpoint.items())
    try:
        wrapped = list(wrappers(tensors, checkpoint.subclassed, checkpoint.metadata))
        claims = _claims(tensors, wrapped, config_beside(checkpoint), True)
    except TorchZipError:  # `dequantize` says what is wrong
        return {}
    return {claim.parts[0]: claim.plain.text for claim in claims}


def _claims(
    tensors: Mapping[str, Any],
    wrapped: Sequence[Wrapper],
    config: QuantizationConfig,
    transposes: bool,
) -> list[Claim]:
    """Return all weights, those of objects first, whose inner tensors no scheme takes."""
    claims = [Claim(each.name, plain_of(each), each.names) for each in wrapped]
    inner = {name for claim in claims for name in claim.parts}
    rest = {name: held for name, held in tensors.items() if name not in inner}
    return claims + list(_claims_by_name(rest, config, transposes))


def _claims_by_name(
    tensors: Mapping[str, Any], config: QuantizationConfig, transposes: bool
) -> Iterator[Claim]:
    """Yield the weights that a scheme has the names and dtypes of."""
    for name, held in tensors.items():
        if not isinstance(held, LazyTensor):
            continue
        for scheme in SCHEMES:
            if not name.endswith(scheme.codes) or held.torch_dtype not in scheme.dtypes:
                continue
            base = name[: len(name) - len(scheme.codes)]
            beside = {
                ending: Part(base + ending, part.spec)
                for ending in (*scheme.needs, *scheme.may_have)
                if isinstance(part := tensors.get(base + ending), LazyTensor)
            }
            if any(ending not in beside for ending in scheme.needs):
                continue
            codes = Part(name, held.spec)
            weight = base + scheme.weight
            module = weight.rpartition(".")[0]
            plain = scheme.make(Found(codes, beside, module, config, transposes))
            dropped = [base + each for each in scheme.dropped if base + each in tensors]
            parts = (name, *(part.name for part in beside.values()))
            yield Claim(weight, plain, parts, tuple(dropped))
            break


def _refuse_parts(left: Mapping[str, Any], config: QuantizationConfig) -> None:
    """Raise an error if tensors that no scheme took are parts of quantized weights."""
    dtypes = {name: held.torch_dtype for name, held in left.items() if isinstance(held, LazyTensor)}
    for name, dtype in dtypes.items():
        _refuse_without(name, dtype, left)
    method = f" ({shown(config.method)} in {config.where})" if config.method else ""
    for name, scale in codes_among(dtypes).items():
        raise UnsupportedError(
            f"{shown(name)} ({dtypes[name]}) and {shown(scale)} ({dtypes[scale]}) are codes and "
            f"their scale, of a scheme that is not known{method}; no scheme of "
            "torchzip has these names and dtypes"
        )
    for name, dtype in dtypes.items():
        is_weight = name.rpartition(".")[2] == "weight" and dtype in ("int8", "uint8")
        if dtype in FLOAT8 or is_weight:
            raise FormatError(
                f"{shown(name)} is {dtype}, codes of a weight, and its scale is not there: "
                f"{shown(f'{name}_scale_inv')}, say. A model that was cast to float8 has none: "
                "convert it without dequantize and with a dtype"
            )
        if _PART.fullmatch(name):
            raise FormatError(
                f"{shown(name)} ({dtype}) is a part of a quantized weight, "
                f"{shown(_weight_of(name))}, of which other parts are not there or are of other "
                "dtypes"
            )


def _refuse_without(name: str, dtype: str, left: Mapping[str, Any]) -> None:
    """Raise FormatError for codes, by the end of their name, that lack what a scheme needs."""
    missing: list[str] = []
    for scheme in SCHEMES:
        if scheme.codes in ("", "weight") or not name.endswith(scheme.codes):
            continue
        if dtype in scheme.dtypes:
            base = name.removesuffix(scheme.codes)
            lacks = [base + ending for ending in scheme.needs if base + ending not in left]
            missing = min([missing, lacks] if missing else [lacks], key=len)
    if missing:
        raise FormatError(
            f"{shown(name)} ({dtype}) are codes of a weight, and {shown(missing[0])} is not there"
        )


def _weight_of(name: str) -> str:
    """Return what the weight of a part may be called.

    >>> _weight_of("a.weight_scale_inv"), _weight_of("a.qzeros")
    ('a.weight', 'a.weight')
    """
    base, _, last = name.rpartition(".")
    if last.startswith("weight"):
        return f"{base}.weight" if base else "weight"
    if last.endswith("_scale_inv"):
        return name.removesuffix("_scale_inv")
    return base if base.endswith("weight") else f"{base}.weight"


def dequantized_checkpoint(
    checkpoint: Checkpoint | Mapping[str, Any],
    config: ConfigLike = None,
    *,
    tensors: Mapping[str, Any] | None = None,
    transposes: bool = True,
) -> Dequantized:
    """Return the tensors of a checkpoint, or of a mapping, as `dequantize` does.

    ``config`` is that of a user, else the one beside the checkpoint is taken; ``tensors`` are those
    of the checkpoint if the caller has some under more names.
    """
    if config is not None:
        parsed = parse_config(config)
    elif isinstance(checkpoint, Checkpoint):
        parsed = config_beside(checkpoint)
    else:
        parsed = QuantizationConfig()
    return dequantize(
        dict(checkpoint.items()) if tensors is None else tensors,
        parsed,
        subclassed=checkpoint.subclassed if isinstance(checkpoint, Checkpoint) else None,
        metadata=checkpoint.metadata if isinstance(checkpoint, Checkpoint) else None,
        transposes=transposes,
    )
