"""DeepSpeed's ZeRO: real directories, a plain model of its layout, and directories that lie."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.formats.test_sharded import refused as _refused
from tests.formats.zero_builder import Zero
from tests.systems import open_files_can_go
from torchzip.types import Size

REAL = Path(__file__).parents[1] / "data" / "ranks"
_NAMES = [
    "scalar", "buf", "emb.weight", "frozen.weight", "frozen.bias", "l1.weight", "l1.bias",
    "norm.weight", "norm.bias", "l2.weight", "head.weight",
]  # fmt: skip


def refused(folder: Path, message: str) -> None:
    """See that a directory is refused with a message that has these parts, cut at ``...``."""
    _refused(folder, *message.split("..."), error=tz.TorchZipError)


def _arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays of numbers that are all different, within one call."""
    made, at = {}, 0
    for name, shape in shapes.items():
        numel = int(np.prod(shape))
        made[name] = np.arange(at, at + numel, dtype=np.float32).reshape(shape)
        at += numel
    return made


def _small(**changes: Any) -> Zero:
    fields: dict[str, Any] = {
        "groups": [_arrays(a=(5, 3), b=(4,)), {"n": np.full(3, 9, np.float32)}],
        "ranks": 3,
        "frozen": {"f": np.arange(7, dtype=np.float32)},
        "buffers": {"count": np.array(3, np.int64)},
        "shared": {"tied": "a"},
    }
    return Zero(**(fields | changes))


def _check(checkpoint: tz.Checkpoint, zero: Zero) -> None:
    weights = zero.weights()
    assert set(checkpoint) == set(weights)
    for name, array in weights.items():
        found = checkpoint[name].numpy()
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        np.testing.assert_array_equal(found, array)


# -- real directories ------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["zero-2-bf16", "zero-3-fp32"])
def test_real(folder: str) -> None:
    """Values are those of DeepSpeed's own script; what is not trained keeps its dtype."""
    with (
        tz.lazy_load(REAL / folder) as found,
        tz.lazy_load(REAL / folder / "ref" / "pytorch_model.bin") as expected,
    ):
        assert found.format == "zero"
        assert list(found) == _NAMES
        assert set(expected) == {*_NAMES}
        for name in found:
            array, wanted = found[name].numpy(), expected[name].numpy()
            assert array.shape == wanted.shape
            assert array.astype(np.float32).tobytes() == wanted.tobytes(), name
        frozen = "bfloat16" if "bf16" in folder else "float32"
        assert found["frozen.weight"].torch_dtype == frozen
        assert found["l1.weight"].torch_dtype == "float32"
        assert found["emb.weight"] is found["head.weight"]
        assert found.verify().records > 50
        assert ("deepspeed.runtime.zero.config", "ZeroStageEnum") in found.foreign
        assert found.foreign_in_root == []


@pytest.mark.parametrize("folder", ["zero-2-bf16", "zero-3-fp32"])
def test_convert_real(folder: str, tmp_path: Path) -> None:
    """It is converted as one file is; ties and the order survive."""
    tz.convert(REAL / folder, tmp_path / "m.pt", dtype="bfloat16")
    tz.convert(REAL / folder / "global_step2", tmp_path / "m.safetensors")
    expected = tz.load(REAL / folder / "ref" / "pytorch_model.bin")
    made = tz.load(tmp_path / "m.pt")
    assert list(made) == _NAMES
    assert made["emb.weight"] is made["head.weight"]
    for name in _NAMES:
        wanted = expected[name].astype(ml_dtypes.bfloat16)
        assert made[name].astype(np.float32).tobytes() == wanted.astype(np.float32).tobytes()
    same = tz.load(tmp_path / "m.safetensors")
    assert sorted(same) == sorted(_NAMES[:-1])  # the head is in the object around
    for name in same:
        assert same[name].astype(np.float32).tobytes() == expected[name].tobytes()


def test_paths(tmp_path: Path) -> None:
    """The directory of a tag, the one around it and ``latest`` are the same checkpoint.

    Beside a ``model.safetensors`` the directory means that one, as the HF Trainer writes both.
    """
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(REAL / "zero-3-fp32", folder)
    paths = [folder, folder / "latest", folder / "global_step2"]
    for path in paths:
        with tz.lazy_load(path) as checkpoint:
            assert (checkpoint.format, len(checkpoint)) == ("zero", 11)
    tz.save({"w": np.ones(1)}, tmp_path / "w.pt")
    tz.convert(tmp_path / "w.pt", folder / "model.safetensors")
    formats = [tz.lazy_load(path).format for path in paths]
    assert formats == ["safetensors", "zero", "zero"]
    (folder / "latest").write_text("../checkpoint-2")
    refused(folder / "latest", "a directory beside it was expected")


# -- a plain model of the layout -------------------------------------------------------------


@given(data=st.data())
def test_any_layout(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the shapes, groups and ranks, each parameter comes out as it was."""
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    count = data.draw(st.integers(1, 3), "groups")
    groups, at = [], 0
    for number in range(count):
        drawn = data.draw(st.lists(shapes, min_size=1, max_size=4), "shapes")
        group = _arrays(**{f"p{number}.{i}": shape for i, shape in enumerate(drawn)})
        groups.append({name: np.asarray(array + at) for name, array in group.items()})
        at += 1000
    stage = data.draw(st.sampled_from([1, 2, 3]), "stage")
    zero = Zero(
        groups,
        ranks=data.draw(st.integers(1, 6), "ranks"),
        stage=stage,
        alignment=data.draw(st.sampled_from([1, 4]), "alignment") if stage < 3 else 1,
        frozen=_arrays(f=data.draw(shapes, "frozen")),
        buffers={"b": np.array(2.5, np.float64)},
        shared={"tied": next(iter(groups[0]))},
    )
    folder = tmp_path_factory.mktemp("zero")
    with tz.lazy_load(zero.write(folder)) as checkpoint:
        _check(checkpoint, zero)
    expected = {name: array.tolist() for name, array in zero.weights().items()}
    assert {name: array.tolist() for name, array in tz.load(folder).items()} == expected
    expected |= {name: array.tolist() for name, array in zero.moments().items()}
    with tz.lazy_load(folder, optimizer=True) as checkpoint:
        assert {name: checkpoint[name].numpy().tolist() for name in checkpoint} == expected


def test_old_layouts(tmp_path: Path) -> None:
    """One dict of shapes, a list of counts, no stage, no underscore in the names of files."""
    zero = _small(groups=[_arrays(a=(5, 3), b=(4,))], ranks=2)
    zero.optimizer = {"partition_count": [2], "zero_stage": None}
    folder = zero.write(tmp_path / "a")
    for rank in range(2):
        old = folder / f"zero_pp_rank_{rank}_mp_rank_00optim_states.pt"
        (folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").rename(old)
    zero.model = {"param_shapes": {"a": Size((5, 3)), "b": Size((4,))}}
    zero.write(tmp_path / "b")
    shutil.copy(tmp_path / "b" / "mp_rank_00_model_states.pt", folder)
    with tz.lazy_load(folder) as checkpoint:
        _check(checkpoint, zero)


def test_ten_ranks(tmp_path: Path) -> None:
    """Ranks are in the order of their numbers, not of their names."""
    for stage in (2, 3):
        zero = _small(ranks=12, stage=stage)
        with tz.lazy_load(zero.write(tmp_path / str(stage))) as checkpoint:
            _check(checkpoint, zero)


def test_stage_0(tmp_path: Path) -> None:
    """Without optimizer states the state dict has the weights."""
    module = {"w": np.ones((2, 2), np.float16), "extra": "words", "n": 3}
    tz.save({"module": module}, tmp_path / "mp_rank_00_model_states.pt")
    with tz.lazy_load(tmp_path) as checkpoint:
        assert checkpoint.format == "zero"
        assert checkpoint["w"].numpy().tolist() == [[1, 1], [1, 1]]
        assert (checkpoint.root["extra"], checkpoint.root["n"]) == ("words", 3)


def test_ties_of_the_state_dict(tmp_path: Path) -> None:
    """Old releases do not list ties; the state dict shows them, and the copy in it is not taken."""
    zero = _small(groups=[_arrays(a=(5, 3))], frozen={}, shared={})
    low = np.zeros((5, 3), np.float16)
    zero.model = {"module": {"a": low, "head": low}, "shared_params": None}
    with tz.lazy_load(zero.write(tmp_path)) as checkpoint:
        assert checkpoint["head"] is checkpoint["a"]
        assert checkpoint["head"].torch_dtype == "float32"


def test_frozen_of_stage_1(tmp_path: Path) -> None:
    """DeepSpeed's own script loses them."""
    zero = _small(stage=1)
    zero.model = {"frozen_param_shapes": None, "frozen_param_fragments": None}
    with tz.lazy_load(zero.write(tmp_path)) as checkpoint:
        _check(checkpoint, zero)


def test_lightning(tmp_path: Path) -> None:
    """Its prefix goes, where every name has it."""
    zero = Zero([_arrays(**{"_forward_module.a": (3,), "_forward_module.b": (2,)})])
    with tz.lazy_load(zero.write(tmp_path / "x.ckpt" / "checkpoint")) as checkpoint:
        assert list(checkpoint) == ["a", "b"]
    (tmp_path / "x.ckpt" / "latest").write_text("checkpoint")
    assert list(tz.load(tmp_path / "x.ckpt")) == ["a", "b"]


def test_pickled(tmp_path: Path) -> None:
    """A checkpoint and its tensors survive ``pickle``, as executors need it."""
    zero = _small(stage=3)
    with tz.lazy_load(zero.write(tmp_path)) as checkpoint:
        tensor = pickle.loads(pickle.dumps(checkpoint["a"]))
        np.testing.assert_array_equal(tensor.numpy(), zero.weights()["a"])
        _check(pickle.loads(pickle.dumps(checkpoint)), zero)


def test_universal() -> None:
    """What ``ds_to_universal`` made of a directory has the same weights."""
    path = REAL / "zero-2-bf16"
    with tz.lazy_load(path) as one, tz.lazy_load(path / "latest_universal") as other:
        assert (other.format, list(other)) == ("zero", list(one))
        for name in one:
            assert one[name].torch_dtype == other[name].torch_dtype
            assert one[name].numpy().tobytes() == other[name].numpy().tobytes()
        assert other["head.weight"] is other["emb.weight"]


_MOMENTS = ["exp_avg", "exp_avg_sq"]


def test_real_moments() -> None:
    """They are what ``ds_to_universal`` made of the same files, which this reads too."""
    path = REAL / "zero-2-bf16"
    beside = path / "universal" / "zero"
    with (
        tz.lazy_load(path, optimizer=True) as one,
        tz.lazy_load(path / "latest_universal", optimizer=True) as other,
    ):
        assert list(one) == list(other)
        names = [name for name in one if name.startswith("optimizer.")]
        trained = sorted(each.parent.name for each in beside.glob("*/exp_avg.pt"))
        assert sorted(names) == sorted(f"optimizer.{n}.{m}" for n in trained for m in _MOMENTS)
        for name in names:
            weight, _, moment = name.removeprefix("optimizer.").rpartition(".")
            expected = tz.load(beside / weight / f"{moment}.pt")["param"]
            assert expected.any()
            assert one[name].shape == expected.shape
            assert one[name].numpy().tobytes() == expected.tobytes()
            assert other[name].numpy().tobytes() == expected.tobytes()


def test_moments_that_are_asked_for(tmp_path: Path) -> None:
    """``include`` asks for them by their name; Lightning's prefix goes from them as well."""
    zero = Zero([_arrays(**{"_forward_module.a": (3, 2), "_forward_module.b": (2,)})])
    folder = zero.write(tmp_path / "z")
    names = [f"optimizer.{name}.{moment}" for name in "ab" for moment in _MOMENTS]
    for include, expected in (
        (None, ["a", "b"]),
        (["*"], ["a", "b"]),
        (["optimizer.*"], names),
        (["*", "optimizer.a.exp_avg"], ["a", "b", *names]),
        (["a", "optimizer.a.exp_avg"], ["a", "optimizer.a.exp_avg"]),
    ):
        tz.convert(folder, tmp_path / "m.pt", include=include, overwrite=True)
        assert list(tz.load(tmp_path / "m.pt")) == expected
    moments = zero.moments()
    with tz.lazy_load(folder, optimizer=True) as checkpoint:
        again = pickle.loads(pickle.dumps(checkpoint))
        assert list(again) == ["a", "b", *names]
        for name in names:
            expected_array = moments[name.replace(".", "._forward_module.", 1)]
            np.testing.assert_array_equal(again[name].numpy(), expected_array)
        again.close()


def test_moments_that_lie(tmp_path: Path) -> None:
    """What is of another size is left out, unless ranks disagree."""
    for number, (key, state, message) in enumerate((
        ("base_optimizer_state", 3, "a dict for each flat buffer"),
        ("base_optimizer_state", {"state": {}}, "number of states of its optimizer is 0"),
        ("base_optimizer_state", {"state": {0: {}, 1: 5}}, "a dict for each flat buffer"),
    )):  # fmt: skip
        folder = _small(optimizer={key: state}).write(tmp_path / str(number))
        with pytest.raises(tz.FormatError, match=message):
            tz.lazy_load(folder, optimizer=True)
        assert len(tz.load(folder)) == 6
    states = [{"step": 7, "x": np.ones(90, np.float32), "short": np.ones(3, np.float32)}] * 2
    folder = _small(optimizer={"base_optimizer_state": states}).write(tmp_path / "list")
    refused_with = "the rank has 90 elements|elements, and the flat buffers"
    with pytest.raises(tz.FormatError, match=refused_with):
        tz.lazy_load(folder, optimizer=True)
    folder = _small(ranks=2).write(tmp_path / "two")
    other = _small(ranks=2, optimizer={"base_optimizer_state": {"state": {0: {}, 1: {}}}})
    other.write(tmp_path / "other")
    shutil.copy(tmp_path / "other" / _OPTIMIZER.format(1), folder)
    with pytest.raises(tz.FormatError, match=r"rank_1_mp.*its optimizer has no 'exp_avg'"):
        tz.lazy_load(folder, optimizer=True)


def _universal(tmp_path: Path, stage: int) -> tuple[Zero, Path]:
    """Write what ``ds_to_universal`` makes."""
    zero = _small(stage=stage)
    folder = zero.write(tmp_path / "u")
    for path in folder.glob("*optim*"):
        path.unlink()
    for group in zero.groups:
        for name, array in group.items():
            (folder / "zero" / name).mkdir(parents=True)
            value = array.reshape(-1) if stage == 3 else {"param": array, "cat_dim": 0}
            tz.save(value, folder / "zero" / name / "fp32.pt")
            tz.save(value, folder / "zero" / name / "exp_avg.pt")
            tz.save(7, folder / "zero" / name / "step.pt")
    return zero, folder


@pytest.mark.parametrize("stage", [1, 2, 3])
@open_files_can_go
def test_universal_stages(stage: int, tmp_path: Path) -> None:
    """Frozen parameters, buffers and ties come from the model states."""
    zero, folder = _universal(tmp_path, stage)
    with tz.lazy_load(folder) as checkpoint:
        _check(checkpoint, zero)
    with tz.lazy_load(folder, optimizer=True) as checkpoint:
        np.testing.assert_array_equal(
            checkpoint["optimizer.a.exp_avg"].numpy(), zero.groups[0]["a"]
        )
    tz.save(np.ones(2), folder / "zero" / "a" / "fp32.pt")
    refused(folder, "a/fp32.pt...of size [2]; [5, 3] was expected")
    (folder / "zero" / "a" / "fp32.pt").unlink()
    with pytest.raises(FileNotFoundError):
        tz.lazy_load(folder)
    shutil.rmtree(folder / "zero" / "a")
    refused(folder, "'a' has no directory in zero")


# -- directories that are not whole, or lie ----------------------------------------------------


def _without(pattern: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return remove


def _cut(pattern: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = next(folder.glob(pattern))
        path.write_bytes(path.read_bytes()[:-40])

    return cut


def _other_step(pattern: str, **changes: Any) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        other = folder.parent / "other"
        _small(stage=3 if "zero_pp_rank_1_mp_rank_00_m" in pattern else 2, **changes).write(other)
        shutil.copy(other / pattern, folder)

    return replace


_OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
_DAMAGED: dict[str, tuple[int, Callable[[Path], None], str]] = {
    "rank 1 missing": (2, _without("*rank_1_mp*"), "'zero_pp_rank_1_mp_rank_00_optim_states.pt'"),
    "last rank missing": (2, _without("*rank_2_mp*"), "files of 1 of 3 ranks...pp_rank_2_mp"),
    "all missing": (2, _without("*optim*"), "has no *_optim_states.pt"),
    "model states missing": (2, _without("*model*"), "fetch it"),
    "model states of rank 1 missing": (3, _without("*rank_1*model*"), "pp_rank_1_mp_rank_00_model"),
    "truncated": (2, _cut("*rank_1_mp*"), "rank_1_mp_rank_00_optim_states.pt...truncated"),
    "step": (2, _other_step(_OPTIMIZER.format(1), step=8), "rank_1_mp...at step 8...not of one"),
    "step of model states": (
        3,
        _other_step("zero_pp_rank_1_mp_rank_00_model_states.pt", step=8),
        "rank_1_mp...of step 8...not of one save",
    ),
    "length": (
        2,
        _other_step(_OPTIMIZER.format(1), groups=[_arrays(a=(90,)), _arrays(n=(3,))]),
        "rank_1_mp...30 elements",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _DAMAGED)
def test_damaged(name: str, tmp_path: Path) -> None:
    """What is missing or from elsewhere is named."""
    stage, damage, message = _DAMAGED[name]
    folder = _small(stage=stage).write(tmp_path / "z")
    damage(folder)
    refused(folder, message)


@pytest.mark.parametrize("stage", [2, 3])
def test_damaged_bytes(stage: int, tmp_path: Path) -> None:
    """No tensor has all of a flat buffer, and its CRC is compared all the same."""
    folder = _small(stage=stage).write(tmp_path / "z")
    path = folder / _OPTIMIZER.format(1)
    data = path.read_bytes()
    with tz.lazy_load(folder) as checkpoint:
        values = checkpoint["a"].numpy().reshape(-1)
    at = data.index(values[8:10].tobytes())  # rank 1 has both
    path.write_bytes(data[: at + 1] + bytes([data[at + 1] ^ 1]) + data[at + 2 :])
    with tz.lazy_load(folder) as checkpoint:
        assert not np.array_equal(checkpoint["a"].numpy().reshape(-1), values)
        with pytest.raises(tz.FormatError, match="CRC"):
            checkpoint.verify()
    for read in (
        lambda: tz.load(folder),
        lambda: tz.convert(folder, tmp_path / "m.pt", verify=True),
    ):
        with pytest.raises(tz.FormatError, match=r"rank_1_mp_rank_00_optim_states\.pt.*CRC"):
            read()
    assert not (tmp_path / "m.pt").exists()
    tz.load(folder, verify=False)


_HOSTILE: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "count": (2, {}, {"partition_count": 10**9}, "999,999,997 of 1,000,000,000 ranks"),
    "count of fewer": (2, {}, {"partition_count": 1}, "MiCS"),
    "count of nothing": (2, {}, {"partition_count": []}, "partition_count is an empty list"),
    "count of words": (2, {}, {"partition_count": "3"}, "a number of ranks"),
    "counts": (2, {}, {"partition_count": [3, 1]}, "mixture"),
    "no buffers": (2, {}, {"single_partition_of_fp32_groups": None}, "a list was expected"),
    "an int for a buffer": (2, {}, {"single_partition_of_fp32_groups": [1, 2]}, "dense tensor"),
    "two dimensions": (
        2, {}, {"single_partition_of_fp32_groups": [np.ones((2, 2), np.float32)] * 2},
        "one dimension",
    ),
    "fewer groups": (
        2, {}, {"single_partition_of_fp32_groups": [np.ones(7, np.float32)]}, "flat buffers is 1",
    ),
    "no groups": (3, {}, {"fp32_flat_groups": []}, "fp32_flat_groups"),
    "dtypes": (
        3, {}, {"fp32_flat_groups": [np.ones(7, np.float32), np.ones(1, np.float64)]}, "float64",
    ),
    "shape beyond": (2, {"param_shapes": [{"a": Size((1 << 62, 1 << 62))}, {}]}, {}, "ends at"),
    "shape beyond, slices": (3, {"param_shapes": [{"a": Size((1 << 62, 1 << 62))}]}, {}, "ends at"),
    "shape of many": (2, {"param_shapes": [{"a": Size((1,) * 65)}, {}]}, {}, "65 dimensions"),
    "shape below 0": (2, {"param_shapes": [{"a": Size((-1,))}, {}]}, {}, "sizes"),
    "shape of words": (2, {"param_shapes": [{"a": "x"}, {}]}, {}, "torch.Size"),
    "shapes of nothing": (2, {"param_shapes": 1}, {}, "list of dicts"),
    "a name twice": (2, {"param_shapes": [{"a": Size((1,))}] * 2}, {}, "each name once"),
    "shorter": (2, {"param_shapes": [{"a": Size((1,))}, {"n": Size((3,))}]}, {}, "not of one save"),
    "paddings": (2, {}, {"param_alignment_paddings": [[1], [1]]}, "a list of 2 numbers"),
    "paddings beyond": (2, {}, {"param_alignment_paddings": [[1 << 60, 0], [0]]}, "not of one"),
    "module": (2, {"module": [1]}, {}, "a dict of names"),
    "module of parts": (2, {"module": {"x": [np.ones(2)]}}, {}, "dense tensor"),
    "placeholder": (3, {"module": {"lost": np.ones(0)}}, {}, "'lost' of its module"),
    "cycle": (2, {}, {}, "dict of names"),
}  # fmt: skip


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    """Numbers that lie are found before anything is made of them."""
    stage, model, optimizer, message = _HOSTILE[name]
    if name == "cycle":
        held: list[Any] = []
        held.append(held)
        model = {"module": held}
    refused(_small(stage=stage, model=model, optimizer=optimizer).write(tmp_path), message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor parallel"),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "both of rank 0"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "experts"),
        ("layer_01-model_00-model_states.pt", "pipeline"),
        ("zero_pp_rank_999999_mp_rank_00_optim_states.pt", "999,996 of 1,000,000 ranks"),
    ],
)
def test_files_of_other_layouts(name: str, message: str, tmp_path: Path) -> None:
    """They are refused by their names."""
    folder = _small().write(tmp_path)
    (folder / name).write_bytes(b"")
    refused(folder, message)
