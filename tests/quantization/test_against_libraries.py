"""Weights that the libraries quantized are what the libraries themselves make of them, in bits.

Each test needs its library, on a CPU, and is skipped without it.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.quantization import packers
from tests.quantization.packers import Array
from torchzip import lazy

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),
]


def array(tensor: Any) -> Array:
    """Return a tensor of torch as an array, of a dtype of ml_dtypes where numpy has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    raw = tensor.detach().contiguous().view(torch.uint8) if tensor.ndim else None
    if raw is None:
        return array(tensor.reshape(1)).reshape(())
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    return np.asarray(raw.numpy().view(dtype))


def same(made: Any, tensor: Any) -> None:
    """Compare a lazy tensor with one of torch, bit for bit."""
    want = array(tensor)
    assert (made.shape, made.dtype) == (want.shape, want.dtype)
    raw = [np.ascontiguousarray(each).view(np.uint8) for each in (made.numpy(), want)]
    np.testing.assert_array_equal(raw[0], raw[1])


def lazily(state: dict[str, Any], config: Any = None) -> dict[str, Any]:
    """Return what is made of tensors of torch."""
    return lazy.dequantized({name: array(tensor) for name, tensor in state.items()}, config)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(("shape", "size"), [((64, 128), 64), ((256, 512), 128), ((48, 64), 64)])
def test_bitsandbytes(kind: str, nested: bool, dtype: str, shape: Any, size: int) -> None:
    """Shapes whose rows are whole groups: on a CPU the library is wrong about others."""
    library = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=getattr(torch, dtype))
    codes, state = library.quantize_4bit(
        weight, blocksize=size, quant_type=kind, compress_statistics=nested
    )
    parts = {"a.weight": codes}
    parts |= {f"a.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    same(lazily(parts)["a.weight"], library.dequantize_4bit(codes, state))


def test_bitsandbytes_int8() -> None:
    """The product with the scale is rounded before that with a 127th."""
    library = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (50, 70), dtype=torch.int8)
    scale = torch.rand(50) * 3
    made = lazily({"a.weight": codes, "a.SCB": scale, "a.weight_format": torch.tensor(0)})
    want = library.int8_vectorwise_dequant(codes, scale)
    same(made["a.weight"].to("float32"), want)
    same(made["a.weight"], want.to(torch.bfloat16))


#: Arguments of a quantization in compressed-tensors, and a shape. Formats follow from them.
_INT = {"type": "int", "symmetric": True}
_FLOAT = {"num_bits": 8, "type": "float", "symmetric": True}
COMPRESSED: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "int4, groups": (
        "pack-quantized", _INT | {"num_bits": 4, "strategy": "group", "group_size": 32}, (48, 96),
    ),
    "int4, rows": ("pack-quantized", _INT | {"num_bits": 4, "strategy": "channel"}, (33, 45)),
    "int3, rows": ("pack-quantized", _INT | {"num_bits": 3, "strategy": "channel"}, (33, 45)),
    "int8, rows": ("pack-quantized", _INT | {"num_bits": 8, "strategy": "channel"}, (33, 45)),
    "int4, zero points": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 16},
        (37, 64),
    ),
    "int4, one zero point": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "tensor"}, (9, 20),
    ),
    "int8": ("int-quantized", _INT | {"num_bits": 8, "strategy": "channel"}, (33, 45)),
    "int8, zero points": (
        "int-quantized",
        {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel"}, (33, 45),
    ),
    "fp8": ("float-quantized", _FLOAT | {"strategy": "tensor"}, (33, 45)),
    "fp8, rows": ("float-quantized", _FLOAT | {"strategy": "channel"}, (33, 45)),
    "fp8, blocks": (
        "float-quantized", _FLOAT | {"strategy": "block", "block_structure": [32, 16]}, (96, 64),
    ),
    "fp8, blocks cut off": (
        "float-quantized", _FLOAT | {"strategy": "block", "block_structure": [32, 16]}, (70, 45),
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, (33, 64),
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, (33, 64),
    ),
    "mxfp6": (
        "mxfp6-pack-quantized",
        {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}, (33, 64),
    ),
    "mxfp8": (
        "mxfp8-quantized", _FLOAT | {"strategy": "group", "group_size": 32}, (33, 64),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", COMPRESSED)
def test_compressed_tensors(case: str, dtype: str) -> None:
    """What its compressor wrote, as its decompressor reads it, rounded to bfloat16."""
    library = pytest.importorskip("compressed_tensors.quantization")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    form, arguments, shape = COMPRESSED[case]
    args = library.QuantizationArgs(**arguments)
    scheme = library.QuantizationScheme(targets=["Linear"], weights=args)
    torch.manual_seed(0)
    weight = torch.randn(shape).to(getattr(torch, dtype))
    rows, columns = {
        "tensor": shape, "channel": (1, shape[1]), "block": arguments.get("block_structure"),
    }.get(arguments["strategy"]) or (1, arguments["group_size"])  # fmt: skip
    grid: tuple[int, ...] = -(-shape[0] // rows), -(-shape[1] // columns)
    if arguments["strategy"] == "tensor":
        grid = (1,)
    scale = torch.rand(grid) * 0.1 + 0.01
    state: dict[str, Any] = {"weight": weight}
    if form.startswith("mx"):
        scale = 2.0 ** torch.randint(-8, 3, grid)
    elif form.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([37.7])
        scale = (scale * 300).to(torch.float8_e4m3fn).float()
    state["weight_scale"] = scale.to(getattr(torch, dtype))
    if not arguments.get("symmetric", True):
        state["weight_zero_point"] = torch.randint(-7, 7, grid, dtype=torch.int8)
    compressor = compressors.BaseCompressor.load_from_registry(form)
    kept = dict(compressor.compress(state, scheme))
    want = compressor.decompress(dict(kept), scheme)["weight"].to(torch.bfloat16)
    groups = {"group_0": {"targets": ["Linear"], "weights": arguments}}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    made = lazily({f"a.{name}": tensor for name, tensor in kept.items()}, config)
    assert list(made) == ["a.weight"]
    same(made["a.weight"], want)


@pytest.mark.parametrize("shape", [((3,), 50, 5), ((2,), 64, 3), ((1,), 7, 1)], ids=str)
def test_gpt_oss(shape: Any) -> None:
    """As transformers reads the experts of gpt-oss."""
    library = pytest.importorskip("transformers.integrations.mxfp4")
    parts, _ = packers.gpt_oss(*shape)
    blocks, scales = (torch.from_numpy(each) for each in parts.values())
    same(
        lazy.dequantized(parts)["e.gate_up_proj"],
        library.convert_moe_packed_tensors(blocks, scales),
    )


@pytest.mark.parametrize("shape", [(256, 384), (128, 128)], ids=str)
def test_fp8_of_transformers(shape: tuple[int, int]) -> None:
    """Blocks of DeepSeek, of which transformers takes whole ones only."""
    library = pytest.importorskip("transformers.integrations.finegrained_fp8")
    torch.manual_seed(0)
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = torch.rand(shape[0] // 128, shape[1] // 128)
    dequantizer = library.Fp8Dequantize(None)
    kept = {"a.weight": [codes], "a.weight_scale_inv": [scale]}
    (want,) = dequantizer.convert(kept, full_layer_name="a.weight")["a.weight"]
    made = lazily({"a.weight": codes, "a.weight_scale_inv": scale})["a.weight"]
    same(made.to(str(want.dtype).removeprefix("torch.")), want)


def _torchao() -> dict[str, Any]:
    """Return weights as torchao quantizes them without a GPU."""
    quantization = pytest.importorskip("torchao.quantization")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor").MXTensor
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor").NVFP4Tensor
    torch.manual_seed(0)
    weight = torch.randn(48, 96, dtype=torch.bfloat16)
    made = {
        "mx8": mx.to_mx(weight, torch.float8_e4m3fn, 32),
        "mx4": mx.to_mx(weight, torch.float4_e2m1fn_x2, 32),
        "mx4, groups of 16": mx.to_mx(weight, torch.float4_e2m1fn_x2, 16),
        "mx6": mx.to_mx(weight, "fp6_e2m3", 32),
        "mx6, more exponent": mx.to_mx(weight.float(), "fp6_e3m2", 32),
        "nv": nv.to_nvfp4(weight),
        "nv, tiles": nv.to_nvfp4(weight, is_swizzled_scales=True),
        "nv, scaled": nv.to_nvfp4(weight, per_tensor_scale=torch.tensor(0.3)),
    }
    for name in ("Float8WeightOnly", "Int8WeightOnly", "IntxWeightOnly",
                 "Int8DynamicActivationIntxWeight", "Int8DynamicActivationInt8Weight"):  # fmt: skip
        for dtype in (torch.bfloat16, torch.float32):
            layer = torch.nn.Sequential(torch.nn.Linear(96, 48, bias=False)).to(dtype)
            quantization.quantize_(layer, getattr(quantization, f"{name}Config")())
            made[f"{name} {dtype}"] = layer.state_dict()["0.weight"]
    return {f"l.{index}.{name}.weight": each for index, (name, each) in enumerate(made.items())}


def test_torchao() -> None:
    """Wrappers in a .pt, and torchao's own safetensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = _torchao()
        flat = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
        saved = pytest.importorskip("safetensors.torch")
        file = io.BytesIO()
        torch.save(weights, file)
        tensors, metadata = flat.flatten_tensor_state_dict(weights)
        raw = saved.save({name: each.contiguous() for name, each in tensors.items()}, metadata)
    for source in (io.BytesIO(file.getvalue()), io.BytesIO(raw)):
        with tz.lazy_load(source) as checkpoint:
            made = lazy.dequantized(checkpoint)
            assert set(made) == set(weights)
            for name, weight in weights.items():
                same(made[name], weight.dequantize())
