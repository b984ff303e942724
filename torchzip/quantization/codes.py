"""Tensors that hold codes of weights: what is a weight only with the scale that lies beside it.

A quantized checkpoint has a weight as a tensor of 8 bits or less an element, packed in ints maybe,
and what it is to be multiplied by under another name. A conversion hands both on as they are.
Whoever takes the codes for weights, after a cast to bfloat16 say, gets no error and wrong numbers.

====================================  ==============================================================
written by                            names
====================================  ==============================================================
DeepSeek, Qwen (fp8 in blocks)        ``weight``, ``weight_scale_inv``
compressed-tensors, FBGEMM, modelopt  ``weight`` or ``weight_packed``, ``weight_scale``,
                                      ``weight_global_scale``, ``weight_scale_2``
ComfyUI                               ``weight``, ``scale_weight``
gpt-oss (MXFP4)                       ``gate_up_proj_blocks``, ``gate_up_proj_scales``
GPTQ, AWQ                             ``qweight``, ``scales``, ``qzeros``
bitsandbytes                          ``weight``, ``weight.absmax``, ``weight.quant_state.*``;
                                      ``weight``, ``SCB`` for 8 bits
torchao                               ``weight.qdata``, ``weight.scale``
HQQ                                   ``W_q``, ``scale``
====================================  ==============================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torchzip.dtypes import DTYPES
from torchzip.errors import shown

#: What the name of a scale has after that of its codes, or after that of their module. Bounded:
#: a name is as long as a file says.
_SCALE = re.compile(
    r"(?:weight_|global_|block_){0,3}(?:scales?|absmax|SCB|qzeros)(?:_inv|_2|_weight)?"
    r"|quant_state\.[^.]{1,99}"
)
_HAS_SCALE = re.compile("scale|absmax|SCB|qzeros|quant_state")
#: What may follow on the name that codes share with their scale.
_PACKED = ("", "_packed", "_blocks", "_quantized")
#: Ints under these names are codes if there is a scale in their module. Of any name: float8.
_CODES = frozenset(["weight", "qweight", "weight_packed", "qdata", "W_q"])


def codes(dtypes: Mapping[str, str]) -> dict[str, str]:
    """Return the tensors that are codes, each with the name of a scale that belongs to it.

    ``dtypes`` are those of all tensors of a checkpoint, by name.

    >>> codes({"a.weight": "float8_e4m3fn", "a.weight_scale_inv": "float32", "b": "float8_e5m2"})
    {'a.weight': 'a.weight_scale_inv'}
    """
    # A scale may be kept as codes too, with a scale of its own.
    packed = {
        name for name, dtype in dtypes.items() if _may_be_codes(dtype) and not _is_scale(name)
    }
    if not packed:
        return {}
    in_module: dict[str, list[str]] = {}
    for name in packed:
        in_module.setdefault(_module(name), []).append(name)
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for scale in filter(_HAS_SCALE.search, dtypes):
        dtype = dtypes[scale]
        named = list(_named_by(scale))
        module = _module(scale)
        if (module, dtype) not in seen and _is_scale(scale):
            seen.add((module, dtype))  # another one there would find the same
            for name in in_module.get(module, ()):
                if _is_float8(dtypes[name]) or name[len(module) :] in _CODES:
                    named.append(name)
        for name in named:
            # A model that was cast to float8 may have a norm whose weight is called scale.
            if name in packed and not (_is_float8(dtype) and dtypes[name] == dtype):
                found.setdefault(name, scale)
    return {name: found[name] for name in dtypes if name in found}


def _named_by(scale: str) -> Iterator[str]:
    """Yield the names of which that of a scale may be made."""
    for match in re.finditer(r"[._]", scale):
        if _SCALE.fullmatch(scale, match.end()):
            for ending in _PACKED:
                yield scale[: match.start()] + ending


def _is_scale(name: str) -> bool:
    return _SCALE.fullmatch(name, len(_module(name))) is not None


def _module(name: str) -> str:
    return name[: name.rfind(".") + 1]


def _is_float8(torch_dtype: str) -> bool:
    row = DTYPES[torch_dtype]
    return row.kind == "float" and row.itemsize == 1 and not row.is_scale


def _may_be_codes(torch_dtype: str) -> bool:
    dtype = DTYPES[torch_dtype]
    packed = dtype.kind == "other" or (dtype.kind == "int" and dtype.itemsize <= 4)
    return packed or _is_float8(torch_dtype)


def sentence(found: Mapping[str, str]) -> str:
    """Return what to say of codes."""
    name, scale = next(iter(found.items()))
    more = f" and {len(found) - 1:,} more tensors" if len(found) > 1 else ""
    return (
        f"quantized weights: {shown(name)}{more} are codes, which become weights with the scales "
        f"that lie beside them ({shown(scale)}). Both are converted as they are; dequantize=True "
        "(--dequantize) writes plain weights instead"
    )
