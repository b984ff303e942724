"""`merge_lora`: files that peft wrote, formulas of other programs, names, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from tests.quantization import packers
from torchzip import lazy, tools
from torchzip.tools.lora import deltas

Array = np.ndarray[Any, Any]
GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "lora"
BF16 = ml_dtypes.bfloat16


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "_BLOCK_ELEMENTS", 1 << 9)


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def read(path: Path) -> dict[str, Array]:
    with tz.lazy_load(path) as checkpoint:
        return {name: tensor.numpy() for name, tensor in checkpoint.items()}


def same(made: Array, want: Array) -> None:
    assert (made.dtype, made.shape) == (want.dtype, want.shape)
    raw = [np.ascontiguousarray(each).view(np.uint8) for each in (made, want)]
    np.testing.assert_array_equal(raw[0], raw[1])


def as_promised(made: Array, want: Array) -> None:
    """What docs/lora.md says of the order in which products are added up, which BLAS chooses.

    Of the kernels of OpenBLAS, SkylakeX gives peft's bits, and Haswell one other in 16,384.
    """
    assert (made.dtype, made.shape) == (want.dtype, want.shape)
    places = [each.view(f"i{each.itemsize}").astype(np.int64) for each in (made, want)]
    least = np.iinfo(f"i{made.itemsize}").min
    steps = np.subtract(*(np.where(each < 0, least - each, each) for each in places))
    assert np.abs(steps).max() <= 1
    assert np.count_nonzero(steps) <= 0.001 * steps.size


@pytest.mark.parametrize("kind", ["plain", "dora", "emb"])
def test_golden(kind: str, tmp_path: Path) -> None:
    """A base in bfloat16 in four shards: what peft 0.21 made of it, copied tensors in every bit."""
    target = tmp_path / "o.safetensors"
    merged = tools.merge_lora(GOLDEN / "base", GOLDEN / kind, target)
    made, want = read(target), read(GOLDEN / f"{kind}_merged" / "model.safetensors")
    assert set(made) == set(want)
    for name, array in want.items():
        (as_promised if name in merged.merged else same)(made[name], array)
    changed = {*merged.merged, *merged.replaced}
    base = read(GOLDEN / "base")
    assert {name for name in base if (base[name] != made[name]).any()} <= changed
    assert merged.left_out == {}


def test_shards_jobs_and_a_dry_run(tmp_path: Path) -> None:
    """The options of `convert` are those of this too."""
    dry = tools.merge_lora(GOLDEN / "base", GOLDEN / "plain", tmp_path / "x.pt", dry_run=True)
    assert not (tmp_path / "x.pt").exists()
    for folder, jobs in (("one", 1), ("two", 2)):
        merged = tools.merge_lora(
            GOLDEN / "base",
            GOLDEN / "plain",
            f"{tmp_path / folder}/",
            jobs=jobs,
            max_shard_size="60KB",
        )
        assert merged.merged == dry.merged
        assert len(merged.converted.files) > 2
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    for name, array in one.items():
        same(two[name], array)


# -- formulas of other programs, written down another time ---------------------------------------


def lora(down: Array, up: Array, scale: float) -> Array:
    """Return a delta, element by element of the kernel."""
    kernel = down.shape[2:]
    flat = up.reshape(len(up), -1).astype(np.float64) @ down.reshape(len(down), -1).astype(
        np.float64
    )
    return scale * flat.reshape(len(up), down.shape[1], *kernel)


BASE = {
    "model.diffusion_model.in.0.to_q.weight": random(24, 16),
    "model.diffusion_model.in.0.conv.weight": random(24, 16, 3, 3),
    "model.diffusion_model.in.0.one.weight": random(24, 16, 1, 1),
    "model.diffusion_model.in.0.to_q.bias": random(24),
    "text.layers.0.q.weight": random(16, 16),
    "scale.weight": random(),
}
Q, CONV, ONE, BIAS, TEXT, _ = BASE
_Q, _CONV, _ONE = "lora_unet_in_0_to_q", "lora_unet_in_0_conv", "lora_unet_in_0_one"


def parts(prefix: str, **tensors: Array) -> dict[str, Array]:
    return {f"{prefix}.{name.replace('__', '.')}": each for name, each in tensors.items()}


def low(module: str, out: int, inner: int, rank: int, *kernel: int, alpha: float | None) -> Any:
    """Return factors of kohya, and their delta."""
    down, up = random(rank, inner, *kernel, seed=1), random(out, rank, *(1 for _ in kernel), seed=2)
    made = parts(module, lora_down__weight=down, lora_up__weight=up)
    if alpha is not None:
        made[f"{module}.alpha"] = np.array(alpha, np.float32)
    return made, lora(down, up, 1 if alpha is None else alpha / rank)


def cp(core: Array, left: Array, right: Array) -> Array:
    wide = [each.astype(np.float64) for each in (core, right, left)]
    return np.asarray(np.einsum("ijkl,jr,ip->prkl", *wide))


def locon() -> Any:
    down, up, mid = random(4, 16, 1, 1), random(24, 5, 1, 1), random(5, 4, 3, 3)
    delta = np.einsum("oa,abkl,bi->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    return parts(_CONV, lora_down__weight=down, lora_up__weight=up, lora_mid__weight=mid), delta


def loha(module: str, out: int, inner: int) -> Any:
    a, b, c, d = random(out, 3), random(3, inner), random(out, 3, seed=1), random(3, inner, seed=1)
    made = parts(
        module, hada_w1_a=a, hada_w1_b=b, hada_w2_a=c, hada_w2_b=d, alpha=np.array(6, np.float32)
    )
    return made, (a @ b) * (c @ d) * 2


def loha_cores() -> Any:
    halves = []
    made: dict[str, Array] = {}
    for number in (1, 2):
        core, left, right = (
            random(3, 3, 3, 3, seed=number), random(3, 24, seed=number), random(3, 16, seed=number)
        )  # fmt: skip
        made |= parts(_CONV, **{
            f"hada_t{number}": core, f"hada_w{number}_a": left, f"hada_w{number}_b": right,
        })  # fmt: skip
        halves.append(cp(core, left, right))
    return made, halves[0] * halves[1]


def lokr() -> Any:
    one, left, right = random(4, 2), random(6, 2), random(2, 8)
    made = parts(_Q, lokr_w1=one, lokr_w2_a=left, lokr_w2_b=right, alpha=np.array(1, np.float32))
    return made, np.kron(one, left @ right) / 2


def lokr_whole() -> Any:
    one, two = random(4, 2), random(6, 8, 3, 3)
    delta = np.kron(one[..., None, None], two)
    return parts(_CONV, lokr_w1=one, lokr_w2=two), delta


def diffusers(form: str) -> Any:
    made, delta = low("x", 24, 16, 4, alpha=None)
    down, up = made.values()
    names = {
        "A": ("unet.in.0.to_q.lora_A.weight", "unet.in.0.to_q.lora_B.weight"),
        "dots": ("unet.in.0.to_q.lora.down.weight", "unet.in.0.to_q.lora.up.weight"),
        "processor": (
            "unet.in.0.processor.to_q_lora.down.weight", "unet.in.0.processor.to_q_lora.up.weight"
        ),
    }[form]  # fmt: skip
    return dict(zip(names, (down, up), strict=True)), delta


#: What makes the adapter and its delta, and the tensor of the base that it is for.
FORMULAS: dict[str, tuple[Any, str]] = {
    "kohya": (lambda: low(_Q, 24, 16, 4, alpha=2), Q),
    "kohya, without alpha": (lambda: low(_Q, 24, 16, 4, alpha=None), Q),
    "kohya, convolution": (lambda: low(_CONV, 24, 16, 4, 3, 3, alpha=2), CONV),
    "kohya, 1x1": (lambda: low(_ONE, 24, 16, 4, 1, 1, alpha=2), ONE),
    "kohya, 1x1 as a matrix": (lambda: low(_ONE, 24, 16, 4, alpha=2), ONE),
    "kohya, text": (lambda: low("lora_te_layers_0_q", 16, 16, 4, alpha=2), TEXT),
    "locon": (locon, CONV),
    "loha": (lambda: loha(_Q, 24, 16), Q),
    "loha, convolution": (lambda: loha(_CONV, 24, 144), CONV),
    "loha, cores": (loha_cores, CONV),
    "lokr": (lokr, Q),
    "lokr, whole": (lokr_whole, CONV),
    "diff": (lambda: (parts(_Q, diff=random(24, 16, seed=3)), random(24, 16, seed=3)), Q),
    "diffusers": (lambda: diffusers("A"), Q),
    "diffusers, dots": (lambda: diffusers("dots"), Q),
    "diffusers, processor": (lambda: diffusers("processor"), Q),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=["f4", "f2", "bf2"])
@pytest.mark.parametrize("case", FORMULAS)
def test_formula(case: str, dtype: Any, tmp_path: Path) -> None:
    """With a weight, and two times the same file."""
    make, name = FORMULAS[case]
    adapter, delta = make()
    base = {each: array.astype(dtype) for each, array in BASE.items()}
    tz.save(base, tmp_path / "base.pt")
    tz.convert(adapter, tmp_path / "a.safetensors")
    merged = tools.merge_lora(
        tmp_path / "base.pt", [tmp_path / "a.safetensors"] * 2, tmp_path / "o.pt", weights=[0.5, -1]
    )
    assert list(merged.merged) == [name]
    assert (merged.left_out, merged.replaced) == ({}, ())
    made = tz.load(tmp_path / "o.pt")
    for each, array in base.items():
        if each != name:
            same(made[each], array)
    want = base[name].astype(np.float64) - 0.5 * delta.reshape(base[name].shape)
    if dtype == np.float32:
        np.testing.assert_allclose(made[name], want, rtol=2e-5, atol=2e-5)
        return
    got, rounded = made[name].astype(np.float64), want.astype(np.float32).astype(dtype)
    assert (made[name] != rounded).mean() <= 0.003
    np.testing.assert_allclose(got, want, rtol=2**-7, atol=1e-4)


def test_bias_of_lycoris(tmp_path: Path) -> None:
    """A difference for the bias alone."""
    tz.save(BASE, tmp_path / "base.pt")
    delta = random(24, seed=5)
    tz.convert(parts(_Q, diff_b=delta), tmp_path / "a.safetensors")
    merged = tools.merge_lora(
        tmp_path / "base.pt", tmp_path / "a.safetensors", tmp_path / "o.pt", weights=[2]
    )
    assert merged.merged == {BIAS: "bias"}
    np.testing.assert_allclose(tz.load(tmp_path / "o.pt")[BIAS], BASE[BIAS] + 2 * delta, rtol=1e-6)


def test_quantized_base(tmp_path: Path) -> None:
    """It is dequantized in the same step: rounded once, to the dtype of its scales."""
    quantized, _ = packers.gptq(4, 64, 96, 32)
    with pytest.warns(UserWarning, match="quantized weights"):
        tz.convert({**quantized, "n": np.ones(3, np.float32)}, tmp_path / "base.safetensors")
    down, up = random(4, 96), random(64, 4)
    adapter = parts("a", lora_down__weight=down, lora_up__weight=up)
    tz.convert(adapter, tmp_path / "a.safetensors")
    merged = tools.merge_lora(
        tmp_path / "base.safetensors", tmp_path / "a.safetensors", tmp_path / "o.safetensors"
    )
    assert merged.dequantized == {"a.weight": "gptq int4, groups of 32, of float16"}
    made = read(tmp_path / "o.safetensors")
    assert set(made) == {"a.weight", "n"}
    with tz.lazy_load(tmp_path / "base.safetensors") as base:
        plain = lazy.dequantized(base)["a.weight"].to("float32").numpy()
    want = (plain + up @ down).astype(np.float16)
    assert (made["a.weight"] != want).mean() <= 0.001


def test_what_is_around_stays(tmp_path: Path) -> None:
    """A nested object, ties, and tensors that are not named."""
    weight = random(8, 8)
    tz.save({"model": {"q.weight": weight, "tied": weight}, "epoch": 3}, tmp_path / "base.pt")
    adapter, delta = low("q", 8, 8, 2, alpha=None)
    tz.convert(adapter, tmp_path / "a.safetensors")
    tools.merge_lora(tmp_path / "base.pt", tmp_path / "a.safetensors", tmp_path / "o.pt")
    made = tz.load(tmp_path / "o.pt")
    assert made["epoch"] == 3
    assert np.shares_memory(made["model"]["q.weight"], made["model"]["tied"])
    np.testing.assert_allclose(made["model"]["tied"], weight + delta, rtol=1e-5, atol=1e-5)


def peft_adapter(folder: Path, tensors: dict[str, Array], **config: Any) -> Path:
    """Write a directory as peft does."""
    folder.mkdir()
    names = {f"base_model.model.{name}": each for name, each in tensors.items()}
    tz.convert(names, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _pair(module: str, out: int = 24, inner: int = 16, rank: int = 4) -> dict[str, Array]:
    return {
        f"{module}.lora_A.weight": random(rank, inner),
        f"{module}.lora_B.weight": random(out, rank),
    }


_MODULE = "model.diffusion_model.in.0.to_q"
#: What is in an adapter, its config, and the words of the error.
REFUSED: dict[str, tuple[dict[str, Array], dict[str, Any], list[str]]] = {
    "no such module": (_pair("elsewhere.k"), {}, ["elsewhere.k.lora_A", "is not in the base"]),
    "several": (
        _pair("0.weight_of"), {}, ["0.weight_of.lora_A", "is not in the base"],
    ),
    "half": (
        {f"{_MODULE}.lora_A.weight": random(4, 16)}, {}, [f"'{_MODULE}' has no up", "lora_A"],
    ),
    "another shape": (_pair(_MODULE, 25), {}, ["lora_B", "[25, 4]", "[24, 16]"]),
    "ranks": (
        {f"{_MODULE}.lora_A.weight": random(4, 16), f"{_MODULE}.lora_B.weight": random(24, 3)}, {},
        ["[4, 16]", "[24, 3]"],
    ),
    "a head": ({"score.weight": random(2, 16)}, {}, ["score.weight", "is not in the base"]),
    "another kind": (_pair(_MODULE), {"peft_type": "IA3"}, ["'IA3'", "LORA"]),
    "pissa": (_pair(_MODULE), {"init_lora_weights": "pissa"}, ["'pissa'"]),
    "alpha": (_pair(_MODULE), {"lora_alpha": "x"}, ["lora_alpha is 'x'"]),
    "a pattern": (
        _pair(_MODULE), {"alpha_pattern": {"(": 3}}, ["alpha_pattern", "'('"],
    ),
    "more": (
        _pair(_MODULE) | {f"{_MODULE}.lora_C.weight": random(4, 4)}, {},
        ["lora_C.weight", "is not in the base"],
    ),
    "experts": (
        _pair("mlp.experts"), {"target_parameters": ["mlp.experts.gate_up_proj"]},
        ["experts.lora_A", "target_parameters other than a weight"],
    ),
    "lora_ga": (_pair(_MODULE), {"init_lora_weights": "lora_ga"}, ["'lora_ga'"]),
    "an alpha without end": (_pair(_MODULE), {"lora_alpha": float("inf")}, ["lora_alpha is inf"]),
    "half a rank": (
        {f"{_MODULE}.lokr_w1": random(4, 4), f"{_MODULE}.lokr_w2": random(6, 4)},
        {"peft_type": "LOKR", "alpha": 1, "r": 0.5}, ["r is 0.5"],
    ),
    "ints": (
        {f"{_MODULE}.weight": np.ones((24, 16), np.int32)}, {}, ["to_q.weight", "int32", "float32"],
    ),
    "a bias of ints": (
        _pair(_MODULE) | {f"{_MODULE}.lora_B.bias": np.ones(24, np.int64)}, {},
        ["lora_B.bias", "int64"],
    ),
    "a number": (_pair("scale", 1, 1), {}, ["scale.lora_A", "in the base, []"]),
    "dora, magnitude": (
        _pair(_MODULE) | {f"{_MODULE}.lora_magnitude_vector": random(25)}, {}, ["[25]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path) -> None:
    """With the key, and nothing is written."""
    tensors, config, words = REFUSED[case]
    tz.save(BASE, tmp_path / "base.pt")
    adapter = peft_adapter(tmp_path / "a", tensors, **config)
    with pytest.raises((ValueError, tz.UnsupportedError)) as caught:
        tools.merge_lora(tmp_path / "base.pt", adapter, tmp_path / "o.pt")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "o.pt").exists()


def test_every_key_is_used_or_named(tmp_path: Path) -> None:
    """What is left out with `partial` is exactly what an error names without."""
    tz.save(BASE, tmp_path / "base.pt")
    tensors = _pair(_MODULE) | _pair("elsewhere") | {"score.weight": random(2, 2)}
    adapter = peft_adapter(tmp_path / "a", tensors)
    with pytest.raises(ValueError, match="3 tensors of adapters are not used"):
        tools.merge_lora(tmp_path / "base.pt", adapter, tmp_path / "o.pt")
    merged = tools.merge_lora(tmp_path / "base.pt", adapter, tmp_path / "o.pt", partial=True)
    assert set(merged.left_out) == {
        "base_model.model.elsewhere.lora_A.weight", "base_model.model.elsewhere.lora_B.weight",
        "base_model.model.score.weight",
    }  # fmt: skip
    assert list(merged.merged) == [Q]


def test_names_by_their_ends(tmp_path: Path) -> None:
    """Other prefixes, as long as one tensor only is meant."""
    base = {
        "language_model.model.layers.0.q.weight": random(8, 8),
        "vision.layers.0.q.weight": random(8, 8, seed=1),
    }
    tz.save(base, tmp_path / "base.pt")
    adapter = peft_adapter(tmp_path / "a", _pair("model.language_model.layers.0.q", 8, 8))
    merged = tools.merge_lora(tmp_path / "base.pt", adapter, tmp_path / "o.pt")
    assert list(merged.merged) == ["language_model.model.layers.0.q.weight"]
    unclear = peft_adapter(tmp_path / "b", _pair("other.layers.0.q", 8, 8))
    with pytest.raises(ValueError, match="could be any of 'language_model"):
        tools.merge_lora(tmp_path / "base.pt", unclear, tmp_path / "p.pt")


def test_two_doras_are_refused(tmp_path: Path) -> None:
    """The norm is that of the base alone."""
    with pytest.raises(ValueError, match="DoRA needs the norm"):
        tools.merge_lora(GOLDEN / "base", [GOLDEN / "dora"] * 2, tmp_path / "o.pt")


def test_replaced_with_a_weight(tmp_path: Path) -> None:
    """A tensor is replaced as a whole or not at all."""
    with pytest.raises(ValueError, match=r"lm_head.weight.*only 1"):
        tools.merge_lora(GOLDEN / "base", GOLDEN / "emb", tmp_path / "o.pt", weights=[0.5])


def test_one_of_tied_tensors_is_replaced(tmp_path: Path) -> None:
    """They are two for the adapter: one of them alone, or both by others, is an error.

    In peft the copy that was trained is no longer tied. Which one a reader takes, nobody knows.
    """
    old, new = random(9, 4), random(9, 4, seed=1)
    tz.save({"e.weight": old, "head.weight": old}, tmp_path / "base.pt")
    for number, other in enumerate([{}, {"head.weight": new + 1}]):
        adapter = peft_adapter(tmp_path / f"{number}", {"e.weight": new, **other})
        with pytest.raises(ValueError, match=r"'e.weight' is tied to 'head.weight'.*--untie"):
            tools.merge_lora(tmp_path / "base.pt", adapter, tmp_path / "o.pt")
    both = peft_adapter(tmp_path / "both", {"e.weight": new, "head.weight": new.copy()})
    tools.merge_lora(tmp_path / "base.pt", both, tmp_path / "o.pt")
    made = tz.load(tmp_path / "o.pt")
    same(made["head.weight"], new)
    assert np.shares_memory(made["head.weight"], made["e.weight"])
    tz.convert(tmp_path / "base.pt", tmp_path / "apart.pt", untie=True)
    tools.merge_lora(tmp_path / "apart.pt", tmp_path / "0", tmp_path / "o.pt", overwrite=True)
    made = tz.load(tmp_path / "o.pt")
    same(made["e.weight"], new)
    same(made["head.weight"], old)


def test_arguments(tmp_path: Path) -> None:
    plain = [GOLDEN / "plain"]
    wrong: list[tuple[list[Path], list[float] | None]] = [
        ([], None), (plain, [1, 2]), (plain, [np.nan]),
    ]  # fmt: skip
    for adapters, weights in wrong:
        with pytest.raises(ValueError, match=r"adapter|weights"):
            tools.merge_lora(GOLDEN / "base", adapters, tmp_path / "o.pt", weights=weights)
    tz.convert({"w": random(3)}, tmp_path / "w.safetensors")
    with pytest.raises(tz.FormatError, match="such as lora_A"):
        tools.merge_lora(GOLDEN / "base", tmp_path / "w.safetensors", tmp_path / "o.pt")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights after an equals sign; a dry run; --partial."""
    target = tmp_path / "o.safetensors"
    words = ["merge-lora", GOLDEN / "base", f"{GOLDEN / 'plain'}=0.5", "-o", target]
    status, out, said = run(capsys, *words, "--dry-run")
    assert status == 0
    assert "model.layers.0.mlp.down_proj.weight" in out
    assert "merged: 6 tensors (lora)" in said
    assert not target.exists()
    status, _, said = run(capsys, *words)
    assert status == 0
    assert "o.safetensors: 21 tensors" in said
    made, base = read(target), read(GOLDEN / "base")
    whole = read(GOLDEN / "plain_merged" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    half = (base[name].astype("f4") + whole[name].astype("f4")) / 2
    np.testing.assert_allclose(made[name].astype("f4"), half, rtol=0.02, atol=1e-3)
    status, _, said = run(capsys, *words, "--include", "lm_head*", "--force")
    assert status == 0


@pytest.mark.parametrize("case", FORMULAS)
def test_any_shapes(case: str, tmp_path: Path) -> None:
    """Whatever shapes and dtypes the factors have: a result, or an error that says what is odd."""
    adapter, _ = FORMULAS[case][0]()
    rng = np.random.default_rng(len(case))
    tz.save(BASE, tmp_path / "base.pt")
    said: list[ValueError] = []
    for _ in range(40):
        changed = dict(adapter)
        name = rng.choice(list(adapter))
        shape = list(adapter[name].shape)
        for _ in range(rng.integers(3)):
            if shape and rng.random() < 0.6:
                shape[rng.integers(len(shape))] = int(rng.choice([0, 1, 2, 4, 16, 24]))
            elif shape and rng.random() < 0.5:
                del shape[rng.integers(len(shape))]
            else:
                shape.insert(0, int(rng.choice([0, 1, 2])))
        dtype = [np.float32, np.float16, np.int32, ml_dtypes.float8_e4m3fn][rng.integers(4)]
        changed[name] = np.ones(shape, dtype)
        if rng.random() < 0.2:
            del changed[rng.choice(list(adapter))]
        tz.convert(changed, tmp_path / "a.safetensors", overwrite=True)
        try:
            tools.merge_lora(
                tmp_path / "base.pt", tmp_path / "a.safetensors", tmp_path / "o.pt", overwrite=True
            )
        except ValueError as error:
            said.append(error)
    for each in said:
        assert isinstance(each, tz.FormatError) or re.search("not used|the shape", str(each)), each
