"""Codes of few bits: each scheme against a packer that goes code by code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.quantization import packers
from tests.quantization.packers import Array, Parts
from tests.quantization.test_blocks import same_bits
from torchzip import lazy
from torchzip.tensors import computed

#: How a case is called, and what makes it. A layer is ``a``, its experts are ``e``.
CASES: dict[str, Any] = {
    **{
        f"gptq, {bits} bits": lambda bits=bits: packers.gptq(bits, 64, 96, 32)
        for bits in (2, 3, 4, 8)
    },
    "gptq, columns in any order": lambda: packers.gptq(4, 40, 96, 32, sorts=True),
    "gptq, 3 bits in any order": lambda: packers.gptq(3, 32, 64, 16, sorts=True),
    "gptq, one group": lambda: packers.gptq(4, 24, 64, 64),
    "awq": lambda: packers.awq(40, 96, 32),
    "awq, one group": lambda: packers.awq(8, 96, 96),
    **{
        f"compressed, {bits} bits": lambda bits=bits: packers.compressed(bits, (7, 96), 32)
        for bits in range(1, 9)
    },
    "compressed, a row": lambda: packers.compressed(4, (9, 37), None),
    "compressed, cut": lambda: packers.compressed(4, (9, 30), 10),
    "compressed, zero points": lambda: packers.compressed(4, (13, 64), 16, zero=True),
    "compressed, 3 bits, zero points": lambda: packers.compressed(3, (37, 64), 16, zero=True),
    "compressed, 8 bits, zero points": lambda: packers.compressed(8, (5, 64), None, zero=True),
    "compressed, any order": lambda: packers.compressed(4, (13, 64), 16, zero=True, sorts=True),
    "compressed, experts": lambda: packers.compressed(4, (3, 13, 64), 16, zero=True),
    "gpt-oss": lambda: packers.gpt_oss((3,), 50, 5),
    "gpt-oss, one": lambda: packers.gpt_oss((), 7, 1),
    "gpt-oss, no rows": lambda: packers.gpt_oss((2,), 0, 3),
    "gpt-oss, more axes": lambda: packers.gpt_oss((2, 2), 6, 3),
    "mxfp6": lambda: packers.mxfp6((33, 96)),
    "mxfp6, experts": lambda: packers.mxfp6((2, 5, 64)),
    "nvfp4, modelopt": lambda: packers.nvfp4((30, 80), modelopt=True),
    "nvfp4, modelopt, experts": lambda: packers.nvfp4((3, 30, 80), modelopt=True),
    "nvfp4, compressed": lambda: packers.nvfp4((30, 80), modelopt=False),
    "nf4": lambda: packers.bitsandbytes((33, 48), 64, "bfloat16", nested=False),
    "nf4, nested": lambda: packers.bitsandbytes((130, 300), 64, "float16", nested=True),
    "fp4, odd": lambda: packers.bitsandbytes((9, 7), 16, "float32", nested=False, kind="fp4"),
    "nf4, one axis": lambda: packers.bitsandbytes((1000,), 128, "bfloat16", nested=True),
}


def test_experts_of_deepseek() -> None:
    """Beside its float8, as int8 or as a dtype of torch, with scales of e8m0."""
    rng = np.random.default_rng(0)
    codes, numbers = packers.fp4_codes((30, 96), rng)
    scale = rng.integers(110, 140, (30, 3)).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)
    weight = (numbers * np.repeat(scale.astype(np.float32), 32, 1)).astype(packers.BF16)
    parts = {"a.weight": codes.view(np.int8), "a.weight_scale_inv": scale}
    same_bits(lazy.dequantized(parts)["a.weight"].numpy(), weight)


@pytest.mark.parametrize("elements", [1 << 7, 1 << 16])
@pytest.mark.parametrize("case", CASES)
def test_a_weight(case: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, as a whole and in parts, in short blocks and long ones."""
    monkeypatch.setattr(computed, "_BLOCK_ELEMENTS", elements)
    parts, weight = CASES[case]()
    made = lazy.dequantized({**parts, "n.weight": np.ones(3, np.float32)}, config_of(case))
    name = "e.gate_up_proj" if "gpt-oss" in case else "a.weight"
    assert set(made) == {name, "n.weight"}
    same_bits(made[name].numpy(), weight)
    same_bits(np.asarray(made[name][1::3]), weight[1::3])
    same_bits(made[name].T.numpy(), weight.T)


def config_of(case: str) -> dict[str, Any] | None:
    """Return a config where the shapes leave the bits open."""
    if "compressed" in case and "bits" in case:
        bits = int(case.split()[1])
        weights = {"num_bits": bits, "type": "int", "group_size": 32}
        return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    return None


def test_gptq_v2() -> None:
    """The config says that zero points are as they are."""
    parts, weight = packers.gptq(4, 64, 96, 32, v2=True)
    config = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}
    same_bits(lazy.dequantized(parts, config)["a.weight"].numpy(), weight)


def test_gpt_oss_as_it_is() -> None:
    """Some loaders want the axes of the file."""
    parts, weight = packers.gpt_oss((3,), 50, 5)
    made = lazy.dequantized(parts, transpose_experts=False)["e.gate_up_proj"]
    same_bits(made.numpy(), np.ascontiguousarray(weight.swapaxes(1, 2)))


def test_groups_of_the_config() -> None:
    """Targets of compressed-tensors are names, regular expressions, or classes."""
    parts: Parts = {}
    weights: dict[str, Array] = {}
    for name, bits in (("m.a", 3), ("m.b", 8), ("m.c", 4)):
        made, weights[name] = packers.compressed(bits, (5, 64), 32)
        parts |= {each.replace("a.", f"{name}.", 1): value for each, value in made.items()}
    groups: dict[str, Any] = {
        "0": {"targets": ["Linear"], "weights": {"num_bits": 4}},
        "1": {"targets": ["re:.*b$"], "weights": {"num_bits": 8}},
        "2": {"targets": ["m.a"], "weights": {"num_bits": 3}},
    }
    plain = lazy.dequantized(parts, {"config_groups": groups})
    for name, weight in weights.items():
        same_bits(plain[f"{name}.weight"].numpy(), weight)


def test_no_experts() -> None:
    """A stack of none is an empty tensor."""
    parts = {
        "a.weight_packed": np.zeros((0, 4, 2), np.int32),
        "a.weight_scale": np.zeros((0, 4, 1), np.float32),
        "a.weight_shape": np.array([0, 4, 16]),
    }
    assert lazy.dequantized(parts)["a.weight"].numpy().shape == (0, 4, 16)


def test_experts_with_scales_of_their_own() -> None:
    """The second scale of NVFP4 may be one for each expert."""
    parts, _ = packers.nvfp4((3, 30, 80), modelopt=True)
    common = np.array([0.5, 1, 2], np.float32)
    alone = lazy.dequantized(parts | {"a.weight_scale_2": np.float32(1)})["a.weight"]
    for shape in ((3,), (3, 1, 1)):
        made = lazy.dequantized(parts | {"a.weight_scale_2": common.reshape(shape)})["a.weight"]
        want = alone.numpy().astype(np.float32) * common[:, None, None]
        np.testing.assert_array_equal(made.numpy().astype(np.float32), want)


def _without(parts: Parts, *names: str) -> Parts:
    return {name: value for name, value in parts.items() if name not in names}


_GPTQ = packers.gptq(4, 64, 96, 32)[0]
_NF4 = packers.bitsandbytes((33, 48), 64, "bfloat16", nested=False)[0]
_NESTED = packers.bitsandbytes((33, 48), 64, "bfloat16", nested=True)[0]
_OSS = packers.gpt_oss((3,), 50, 5)[0]
_INT4 = packers.compressed(4, (9, 64), 16)[0]
_NARROW = packers.compressed(3, (9, 20), None)[0]
_MXFP6 = packers.mxfp6((30, 96))[0]
_NVFP4 = packers.nvfp4((30, 80), modelopt=False)[0]


def _weights(**values: Any) -> dict[str, Any]:
    """Return the config of compressed-tensors with what it says of weights."""
    return {"config_groups": {"g": {"targets": ["Linear"], "weights": values}}}


_STATE = "a.weight.quant_state.bitsandbytes__nf4"
#: What is refused: the tensors, and words of the message.
REFUSED: dict[str, tuple[Parts, list[str]]] = {
    "gptq without scales": (_without(_GPTQ, "a.scales"), ["'a.qweight'", "'a.scales'"]),
    "gptq, other scales": (
        _GPTQ | {"a.scales": np.ones((3, 60), "f2")}, ["'a.qzeros'", "'a.scales'"],
    ),
    "gptq, g_idx": (
        _GPTQ | {"a.g_idx": np.ones(90, "i4")}, ["'a.g_idx'", "'a.qweight'", "[96]"],
    ),
    "nf4 without its state": (_without(_NF4, _STATE), ["'a.weight'", "'a.weight.absmax'"]),
    "nf4, absmax": (
        _NF4 | {"a.weight.absmax": np.ones(7, "f4")}, ["'a.weight.absmax'", "'a.weight'", "25"],
    ),
    "nf4, nested": (
        _without(_NESTED, "a.weight.nested_absmax"), ["'.nested_absmax'", "'a.weight'"],
    ),
    "nf4, state": (
        _NF4 | {_STATE: np.frombuffer(b'{"blocksize": 0}', np.uint8)}, [_STATE, "blocksize"],
    ),
    "nf4, no JSON": (_NF4 | {_STATE: np.ones(3, "u1")}, [_STATE]),
    "gpt-oss without scales": (
        _without(_OSS, "e.gate_up_proj_scales"),
        ["'e.gate_up_proj_blocks'", "'e.gate_up_proj_scales'"],
    ),
    "gpt-oss, scales": (
        _OSS | {"e.gate_up_proj_scales": np.ones((3, 50, 4), "u1")},
        ["'e.gate_up_proj_scales'", "'e.gate_up_proj_blocks'", "[3, 50, 5]"],
    ),
    "int4 without a shape": (
        _without(_INT4, "a.weight_shape"), ["'a.weight_packed'", "'a.weight_shape'"],
    ),
    "int4, another shape": (
        _INT4 | {"a.weight_shape": np.array([9, 640])}, ["'a.weight_packed'", "'a.weight_shape'"],
    ),
    "int3, or another": (_NARROW, ["'a.weight_packed'", "2 or 3 bits", "num_bits", "config.json"]),
    "mx, groups of another size": (
        _MXFP6 | {"a.weight_scale": np.ones((30, 2), "u1")},
        ["'a.weight_scale'", "'a.weight_packed'", "groups of 32"],
    ),
    "nvfp4, scales": (
        _NVFP4 | {"a.weight_scale": np.ones((29, 5), "f4")}, ["'a.weight_packed'", "[30, 5]"],
    ),
    "zero points of fp4": (
        _NVFP4 | {"a.weight_zero_point": np.ones(1, "f4")}, ["'a.weight_zero_point'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """With the names of both, when it is asked for, and no codes are handed on."""
    parts, words = REFUSED[case]
    with pytest.raises((tz.FormatError, tz.UnsupportedError)) as caught:
        lazy.dequantized(parts)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "config", "word"),
    [
        (_GPTQ, {"bits": 8}, "8 bits"),
        (_GPTQ, {"checkpoint_format": "marlin"}, "marlin"),
        (packers.awq(40, 96, 32)[0], {"version": "gemv"}, "gemv"),
        (_INT4, _weights(num_bits="4"), "num_bits is '4'"),
        (_INT4, {"config_groups": {"g": {"targets": 5, "weights": {}}}}, "targets is 5"),
    ],
)
def test_configs_that_do_not_fit(parts: Parts, config: dict[str, Any], word: str) -> None:
    with pytest.raises((tz.FormatError, tz.UnsupportedError), match=word):
        lazy.dequantized(parts, config)


def test_a_group_that_is_not_there() -> None:
    """Known when the weight is read, as the indices are."""
    parts = _GPTQ | {"a.g_idx": np.full(96, 3, np.int32)}
    with pytest.raises(tz.FormatError, match=r"'a.g_idx'.*3 groups"):
        lazy.dequantized(parts)["a.weight"].numpy()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_through_files(tmp_path: Path, suffix: str) -> None:
    """A model of several schemes, converted by two processes: the same bytes as by one."""
    model: Parts = {}
    weights: dict[str, Array] = {}
    for number, case in enumerate(
        ("gptq, 4 bits", "awq", "gpt-oss", "nf4, nested", "nvfp4, modelopt")
    ):
        parts, weight = CASES[case]()
        for name, value in parts.items():
            model[f"l.{number}.{name}"] = value
        weights[f"l.{number}." + ("e.gate_up_proj" if case == "gpt-oss" else "a.weight")] = weight
    tz.save(model, tmp_path / "m.pt")
    target = tmp_path / f"o{suffix}"
    report = tz.convert(tmp_path / "m.pt", target, dequantize=True)
    assert set(report.dequantized) == set(weights)
    tz.convert(tmp_path / "m.pt", tmp_path / f"p{suffix}", dequantize=True, jobs=2)
    with tz.lazy_load(target) as one, tz.lazy_load(tmp_path / f"p{suffix}") as two:
        for name, weight in weights.items():
            same_bits(one[name].numpy(), weight)
            same_bits(two[name].numpy(), weight)


@pytest.mark.parametrize("case", CASES)
def test_any_shapes(case: str) -> None:
    """Whatever shapes and dtypes the parts have: a weight, or an error of torchzip."""
    parts, _ = CASES[case]()
    rng = np.random.default_rng(len(case))
    dtypes = ["u1", "i1", "i4", "i8", "f2", "f4", ml_dtypes.float8_e4m3fn, packers.BF16]
    for _ in range(100):
        changed = dict(parts)
        name = rng.choice(list(parts))
        if ".quant_state" in name:
            raw = bytearray(parts[name].tobytes())
            raw[rng.integers(len(raw))] = rng.integers(32, 127)
            changed[name] = np.frombuffer(bytes(raw), np.uint8)
        else:
            shape = list(parts[name].shape)
            for _ in range(rng.integers(3)):
                if shape and rng.random() < 0.7:
                    shape[rng.integers(len(shape))] = int(rng.choice([0, 1, 2, 3, 8, 64]))
                elif shape and rng.random() < 0.5:
                    del shape[rng.integers(len(shape))]
                else:
                    shape.insert(0, int(rng.choice([0, 1, 2])))
            dtype = parts[name].dtype if rng.random() < 0.8 else dtypes[rng.integers(len(dtypes))]
            changed[name] = np.ones(shape, dtype)
        try:
            for made in lazy.dequantized(changed, config_of(case)).values():
                made.numpy()
        except tz.TorchZipError:
            pass
