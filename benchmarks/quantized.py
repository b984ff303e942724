"""Quantized weights made plain, and an adapter merged: torchzip, and torch on whole tensors.

The torch scripts are what one writes who has the memory: each tensor is read, computed by
operations on all of it, and saved at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Work = Callable[[], object]
#: What a name in the rows means: the tensors of ``numbers`` weights, and how torch dequantizes.
SCHEMES = ("fp8", "mxfp4", "nvfp4", "int4", "gptq", "awq", "nf4", "int8")
_ROWS = 4096
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)


def _columns(size: float) -> int:
    """Return the columns of one of two weights that have ``size`` GB together in bfloat16."""
    return max(1, round(size * 1e9 / 2 / 2 / _ROWS / 256)) * 256


def _layer(scheme: str, columns: int) -> dict[str, Array]:
    """Return the parts of one weight of random codes."""
    import ml_dtypes

    rng = np.random.default_rng(0)

    def codes(shape: tuple[int, ...], dtype: str = "u1") -> Array:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(rng.bytes(nbytes), dtype).reshape(shape)

    def scale(*shape: int, dtype: Any = np.float32) -> Array:
        return rng.random(shape, np.float32).astype(dtype)

    if scheme == "fp8":
        weight = rng.standard_normal((_ROWS, columns), np.float32).astype(ml_dtypes.float8_e4m3fn)
        return {"weight": weight, "weight_scale_inv": scale(_ROWS // 128, columns // 128)}
    if scheme == "mxfp4":  # an expert of 4096 rows and 256 groups is a third of one of gpt-oss
        experts = max(1, columns // 8192)
        exponents = rng.integers(115, 130, (experts, _ROWS, 256)).astype(np.uint8)
        return {"up_blocks": codes((experts, _ROWS, 256, 16)), "up_scales": exponents}
    if scheme == "nvfp4":
        return {
            "weight": codes((_ROWS, columns // 2)),
            "weight_scale": scale(_ROWS, columns // 16, dtype=ml_dtypes.float8_e4m3fn),
            "weight_scale_2": np.full((), 0.3, np.float32),
        }
    if scheme == "int4":
        return {
            "weight_packed": codes((_ROWS, columns // 8), "<i4"),
            "weight_scale": scale(_ROWS, columns // 128, dtype=ml_dtypes.bfloat16),
            "weight_shape": np.array([_ROWS, columns]),
        }
    if scheme == "gptq":
        return {
            "qweight": codes((columns // 8, _ROWS), "<i4"),
            "qzeros": codes((columns // 128, _ROWS // 8), "<i4"),
            "scales": scale(columns // 128, _ROWS, dtype=np.float16),
            "g_idx": (np.arange(columns) // 128).astype(np.int32),
        }
    if scheme == "awq":
        return {
            "qweight": codes((columns, _ROWS // 8), "<i4"),
            "qzeros": codes((columns // 128, _ROWS // 8), "<i4"),
            "scales": scale(columns // 128, _ROWS, dtype=np.float16),
        }
    if scheme == "nf4":
        state = (
            f'{{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[{_ROWS},{columns}]}}'
        )
        return {
            "weight": codes((_ROWS * columns // 2, 1)),
            "weight.absmax": scale(_ROWS * columns // 64),
            "weight.quant_map": np.sort(rng.standard_normal(16)).astype(np.float32),
            "weight.quant_state.bitsandbytes__nf4": np.frombuffer(state.encode(), np.uint8),
        }
    return {"weight": codes((_ROWS, columns), "i1"), "weight_scale": scale(_ROWS, 1)}


def prepare(scheme: str, folder: Path, size: float) -> None:
    """Write two weights of a scheme, of ``size`` GB together in bfloat16."""
    import torchzip

    path = folder / f"quantized-{scheme}.pt"
    if not path.exists():
        layers = [_layer(scheme, _columns(size)) for _ in range(2)]
        torchzip.save(
            {f"{number}.{name}": each for number, layer in enumerate(layers)
             for name, each in layer.items()},
            path,
        )  # fmt: skip


def dequantize(scheme: str, tool: str, folder: Path, size: float) -> Work:
    """Return the conversion to plain weights, synced."""
    path, target = folder / f"quantized-{scheme}.pt", folder / "out.pt"
    if tool.startswith("torchzip"):
        import torchzip

        jobs = 2 if "jobs=2" in tool else None
        return lambda: torchzip.convert(path, target, dequantize=True, overwrite=True, jobs=jobs)
    import torch

    def script() -> None:
        held = torch.load(path, weights_only=True)
        made = {}
        for number in "01":
            parts = {name[2:]: each for name, each in held.items() if name[0] == number}
            made[f"{number}.weight"] = _by_torch(scheme, parts)
        _save(made, target)

    return script


def _save(state: dict[str, Any], target: Path) -> None:
    import torch

    torch.save(state, target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _nibbles(packed: Any) -> Any:
    """Return the codes of 4 bits of bytes along the last axis, low ones first."""
    import torch

    raw = packed.contiguous().view(torch.uint8)
    return torch.stack([raw & 15, raw >> 4], -1).reshape(*raw.shape[:-1], -1)


def _by_torch(scheme: str, parts: dict[str, Any]) -> Any:
    """Return a weight, computed by operations on whole tensors."""
    import torch

    if scheme == "fp8":
        weight, scale = parts["weight"], parts["weight_scale_inv"]
        blocks = weight.float().view(scale.shape[0], 128, scale.shape[1], 128)
        return (blocks * scale[:, None, :, None]).view(weight.shape).to(torch.bfloat16)
    if scheme == "int8":
        return (parts["weight"].float() * parts["weight_scale"]).to(torch.bfloat16)
    table = torch.tensor([*_FP4, *(-each for each in _FP4)])
    if scheme == "mxfp4":
        blocks, scales = parts["up_blocks"], parts["up_scales"]
        numbers = table.to(torch.bfloat16)[_nibbles(blocks).int()]
        numbers = torch.ldexp(numbers, scales.int()[..., None] - 127)
        return numbers.flatten(-2).transpose(-1, -2).contiguous()
    if scheme == "nvfp4":
        numbers = table[_nibbles(parts["weight"]).int()]
        scale = parts["weight_scale"].float() * parts["weight_scale_2"]
        return (numbers.unflatten(-1, (-1, 16)) * scale[..., None]).flatten(-2).to(torch.bfloat16)
    if scheme == "nf4":
        raw = parts["weight"].view(-1)
        codes = torch.stack([raw >> 4, raw & 15], -1).view(-1)
        numbers = parts["weight.quant_map"][codes.int()].view(-1, 64)
        made = numbers * parts["weight.absmax"][:, None]
        return made.view(_ROWS, -1).to(torch.bfloat16)
    if scheme == "int4":
        codes = _nibbles(parts["weight_packed"]).to(torch.bfloat16) - 8
        scale = parts["weight_scale"]
        return (codes.unflatten(-1, (-1, 128)) * scale[..., None]).flatten(-2)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    if scheme == "gptq":
        codes = ((parts["qweight"][:, None, :] >> shifts[None, :, None]) & 15).to(torch.int8)
        zeros = ((parts["qzeros"][:, :, None] >> shifts) & 15).flatten(1) + 1
        index = parts["g_idx"].long()
        made = (codes.flatten(0, 1) - zeros[index]) * parts["scales"][index]
        return made.t().contiguous()
    codes, zeros = (
        ((parts[name][:, :, None] >> shifts) & 15)[:, :, list(_AWQ)].flatten(1).to(torch.int8)
        for name in ("qweight", "qzeros")
    )
    wide = [each.repeat_interleave(128, 0) for each in (zeros, parts["scales"])]
    return ((codes - wide[0]) * wide[1]).t().contiguous()


def prepare_lora(folder: Path, size: float) -> None:
    """Write a base of two weights in bfloat16, and factors of rank 32."""
    import ml_dtypes

    import torchzip

    columns = _columns(size)
    rng = np.random.default_rng(0)
    base, factors = {}, {}
    for number in "01":
        weight = rng.standard_normal((_ROWS, columns), np.float32)
        base[f"{number}.weight"] = weight.astype(ml_dtypes.bfloat16)
        factors[f"{number}.lora_A.weight"] = rng.standard_normal((32, columns), np.float32)
        factors[f"{number}.lora_B.weight"] = rng.standard_normal((_ROWS, 32), np.float32)
    torchzip.save(base, folder / "lora-base.pt")
    torchzip.convert(factors, folder / "lora.safetensors", overwrite=True)


def merge_lora(tool: str, folder: Path, size: float) -> Work:
    """Return the merge, synced."""
    base, adapter, target = (folder / name for name in ("lora-base.pt", "lora.safetensors", "o.pt"))
    if tool.startswith("torchzip"):
        import torchzip

        jobs = 2 if "jobs=2" in tool else None
        return lambda: torchzip.tools.merge_lora(base, adapter, target, overwrite=True, jobs=jobs)
    import torch

    import torchzip

    factors = {name: torch.from_numpy(each) for name, each in torchzip.load(adapter).items()}

    def script() -> None:
        held = torch.load(base, weights_only=True)
        for name, weight in held.items():
            module = name.removesuffix(".weight")
            weight += factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        _save(held, target)

    return script


def rows() -> list[tuple[str, Callable[..., Work], Callable[[Path, float], None]]]:
    """Return the names of the rows, what is measured, and what is written before."""
    made: list[tuple[str, Callable[..., Work], Callable[[Path, float], None]]] = [
        (
            f"dequantize {scheme}, all with fsync",
            partial(dequantize, scheme),
            partial(prepare, scheme),
        )
        for scheme in SCHEMES
    ]
    return [*made, ("merge an adapter of rank 32, all with fsync", merge_lora, prepare_lora)]
