"""Shards of tensor-parallel models: cut from a whole by a plain model, joined by the tables."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import torchzip as tz
from tests.formats.rank_builder import write_ranks
from torchzip.errors import UnsupportedError

Arrays = dict[str, NDArray[Any]]
_DIM, _HIDDEN = 16, 32


def _numbers(names: dict[str, tuple[int, ...]]) -> Arrays:
    made, at = {}, 0
    for name, shape in names.items():
        size = int(np.prod(shape))
        made[name] = np.arange(at, at + size, dtype=np.float32).reshape(shape)
        at += size
    return made


def _llama() -> Arrays:
    block = {
        "attention.wq.weight": (_DIM, _DIM),
        "attention.wk.weight": (8, _DIM),
        "attention.wv.weight": (8, _DIM),
        "attention.wo.weight": (_DIM, _DIM),
        "feed_forward.w1.weight": (_HIDDEN, _DIM),
        "feed_forward.w2.weight": (_DIM, _HIDDEN),
        "feed_forward.w3.weight": (_HIDDEN, _DIM),
        "attention_norm.weight": (_DIM,),
        "ffn_norm.weight": (_DIM,),
    }
    names: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (64, _DIM)}
    names |= {f"layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    names |= {"norm.weight": (_DIM,), "output.weight": (64, _DIM), "rope.freqs": (4,)}
    return _numbers(names)


_CUT_0 = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
_CUT_1 = ("wo.weight", "w2.weight")


def _cut(name: str, array: NDArray[Any], count: int, rank: int, embedding: int) -> NDArray[Any]:
    if name.endswith(_CUT_0):
        return np.split(array, count, 0)[rank]
    if name.endswith(_CUT_1):
        return np.split(array, count, 1)[rank]
    return np.split(array, count, embedding)[rank] if name.startswith("tok_") else array


def _write_llama(folder: Path, count: int, embedding: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"consolidated.{rank:02}.pth" for rank in range(count)]
    for rank, path in enumerate(paths):
        shard = {
            name: np.ascontiguousarray(_cut(name, array, count, rank, embedding))
            for name, array in _llama().items()
        }
        tz.save(shard, path)
    return paths


def _same(checkpoint: tz.Checkpoint, expected: Arrays) -> None:
    assert list(checkpoint) == list(expected)
    for name, array in expected.items():
        found = checkpoint[name].numpy()
        assert found.shape == array.shape, name
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("embedding", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_llama(count: int, embedding: int, tmp_path: Path) -> None:
    """Shards of Meta are the model, whichever way the embedding was cut."""
    paths = _write_llama(tmp_path / "m", count, embedding)
    with tz.lazy_load(paths, join="llama") as checkpoint:
        assert checkpoint.format == "joined"
        _same(checkpoint, _llama())
        again = pickle.loads(pickle.dumps(checkpoint))
        _same(again, _llama())
        again.close()
        tz.convert(checkpoint, tmp_path / "m.safetensors")
    made = tz.load(tmp_path / "m.safetensors")
    assert {name: array.tobytes() for name, array in made.items()} == {
        name: array.tobytes() for name, array in _llama().items()
    }


# -- Megatron --------------------------------------------------------------------------------------


def _megatron(layers: int) -> Arrays:
    block = {
        "self_attention.linear_qkv.weight": (24, 8),
        "self_attention.linear_qkv.layer_norm_weight": (8,),
        "self_attention.linear_proj.weight": (8, 8),
        "mlp.linear_fc1.weight": (32, 8),
        "mlp.linear_fc2.weight": (8, 16),
    }
    names: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (16, 8)}
    names |= {f"decoder.layers.{i}.{n}": shape for i in range(layers) for n, shape in block.items()}
    return _numbers(
        names | {"decoder.final_layernorm.weight": (8,), "output_layer.weight": (16, 8)}
    )


def _megatron_part(name: str, array: NDArray[Any], count: int, rank: int, gated: bool) -> Any:
    if "linear_fc1" in name and gated:
        halves = [np.split(half, count)[rank] for half in np.split(array, 2)]
        return np.concatenate(halves)
    if "layer_norm" in name or "layernorm" in name:
        return array
    axis = 1 if "linear_proj" in name or "linear_fc2" in name else 0
    return np.ascontiguousarray(np.split(array, count, axis)[rank])


def _write_megatron(folder: Path, ranks: int, stages: int, gated: bool) -> list[Path]:
    each = 4 // stages
    paths = []
    for stage in range(stages):
        for rank in range(ranks):
            model: dict[str, Any] = {}
            for name, array in _megatron(4).items():
                part = _megatron_part(name, array, ranks, rank, gated)
                if name.startswith("decoder.layers."):
                    layer, rest = name.removeprefix("decoder.layers.").split(".", 1)
                    if int(layer) // each == stage:
                        model[f"decoder.layers.{int(layer) % each}.{rest}"] = part
                elif stage == (0 if name.startswith("embedding") else stages - 1):
                    model[name] = part
            model["decoder.x._extra_state"] = None
            root = {"args": {"swiglu": gated}, "model": model, "optimizer": {"w": np.ones(3)}}
            place = f"mp_rank_{rank:02}" + (f"_{stage:03}" if stages > 1 else "")
            (folder / place).mkdir(parents=True)
            paths.append(folder / place / "model_optim_rng.pt")
            tz.save(root, paths[-1])
    return paths


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("ranks", "stages"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_megatron(ranks: int, stages: int, gated: bool, tmp_path: Path) -> None:
    """Ranks and stages are told by the directories, whatever their order; halves are put apart."""
    paths = _write_megatron(tmp_path, ranks, stages, gated)
    with tz.lazy_load(paths[::-1], join="megatron") as checkpoint:
        expected = _megatron(4)
        assert set(checkpoint) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(checkpoint[name].numpy(), array)


def test_old_megatron(tmp_path: Path) -> None:
    """Dicts inside one another have names with dots."""
    whole = np.arange(32.0).reshape(8, 4)
    for rank in range(2):
        inner = {"dense": {"weight": np.ascontiguousarray(np.split(whole, 2, 1)[rank])}}
        model = {"language_model": {"encoder": {"layers.0.attention": inner}}}
        (tmp_path / f"mp_rank_0{rank}").mkdir()
        tz.save({"model": model}, tmp_path / f"mp_rank_0{rank}" / "model_optim_rng.pt")
    with tz.lazy_load(sorted(tmp_path.glob("*/*.pt")), join="megatron") as checkpoint:
        name = "language_model.encoder.layers.0.attention.dense.weight"
        np.testing.assert_array_equal(checkpoint[name].numpy(), whole)


# -- rules of a user -------------------------------------------------------------------------------


@given(data=st.data())
def test_any_rule(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut by any rule and joined by it, a tensor is what it was."""
    count = data.draw(st.integers(1, 4), "shards")
    shape = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3), "shape")
    axis = data.draw(st.integers(0, len(shape) - 1), "axis")
    parts = data.draw(st.integers(1, 3), "parts")
    shape[axis] *= count * parts
    array = np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape)
    pieces = np.split(array, count * parts, axis)
    folder = tmp_path_factory.mktemp("j")
    paths = [folder / f"{rank}.pt" for rank in range(count)]
    for rank, path in enumerate(paths):
        own = np.concatenate(pieces[rank::count], axis)
        tz.save({"w": own, "of.all": np.ones(2), "n": 1}, path)
    join: dict[str, Any] = {"of.*": "same", "*": (axis, parts)}
    with tz.lazy_load(paths, join=join) as checkpoint:
        np.testing.assert_array_equal(checkpoint["w"].numpy(), array)
        assert checkpoint["of.all"].shape == (2,)
        assert checkpoint.root["n"] == 1


def test_a_list_of_ranks(tmp_path: Path) -> None:
    """Files of ranks with other names, in any order, say themselves how they were cut."""
    array = np.arange(12.0).reshape(6, 2)
    write_ranks(tmp_path, {"a": (array, [0])}, [3])
    for rank in range(3):
        (tmp_path / f"model_world_size_3_rank_{rank}.pt").rename(tmp_path / f"{rank}.bin")
    paths = [tmp_path / f"{rank}.bin" for rank in (2, 0, 1)]
    with tz.lazy_load(paths) as checkpoint:
        np.testing.assert_array_equal(checkpoint["a"].numpy(), array)
    with pytest.raises(tz.FormatError, match="hold 8 of the 12"):
        tz.lazy_load(paths[:2])


_W = np.ones((4, 2))


@pytest.mark.parametrize(
    ("shards", "join", "message"),
    [
        ([{"w": _W}, {"v": _W}], {"*": 0}, "'v', 'w' is not in the first shard and in this one"),
        ([{"w": _W}, {"w": _W[:, :1]}], {"*": 0}, "1.pt, record w: float64 of size .4, 1."),
        ([{"w": _W}, {"w": _W[0]}], {"*": 0}, "does not go along axis 0"),
        ([{"w": _W}, {"w": _W.astype("f4")}], {"*": 1}, "float32"),
        ([{"w": _W}], {"*": 2}, "does not go along axis 2"),
        ([{"w": _W}], {"*": (0, 3)}, "is not 3 parts along axis 0"),
        ([{"w": _W}, {"w": _W + 1}], {"*": "same"}, "1.pt, record w: it is not what"),
        ([{"w": _W}, {"w": _W[0]}], {"*": "same"}, "1.pt, record w: it is not what"),
        ([{"w": "words"}, {"w": _W}], {"*": 0}, "no tensors"),
        ([{"w": _W}, {"w": 3}], {"*": 0}, "'w' is 3; a dense tensor"),
        ([[_W]], {"*": 0}, "a dict was expected"),
        ([{"tok_embeddings.weight": _W}], "llama", "norm.weight"),
        (
            [{"tok_embeddings.weight": _W, "norm.weight": np.ones(3)}],
            "llama",
            "by norm.weight the embedding has 3",
        ),
    ],
)
def test_refused(shards: list[Any], join: Any, message: str, tmp_path: Path) -> None:
    """What does not fit together is named."""
    paths = [tmp_path / f"{number}.pt" for number in range(len(shards))]
    for shard, path in zip(shards, paths, strict=True):
        tz.save(shard, path)
    with pytest.raises(tz.FormatError, match=message):
        tz.lazy_load(paths, join=join)


def test_unsupported(tmp_path: Path) -> None:
    """A name without a rule, and what the files do not say, is refused."""
    path = tmp_path / "mp_rank_00" / "a.pt"
    path.parent.mkdir()
    for root, join, message in (
        ({"what": _W}, "llama", "join='llama' does not say how 'what' was cut"),
        ({"what": _W}, {"x": 0}, "the rule does not say how 'what' was cut"),
        ({"model0": {}}, "megatron", "virtual stages"),
        ({"model": {"a.mlp.linear_fc1.bias": _W}}, "megatron", "no args"),
    ):
        tz.save(root, path)
        with pytest.raises(UnsupportedError, match=message):
            tz.lazy_load([path], join=join)


def test_stages_that_are_missing(tmp_path: Path) -> None:
    """The directories around say which there are."""
    paths = _write_megatron(tmp_path / "a", 2, 2, False)
    for lacking, message in ((0, "rank 0 of stage 0"), (3, "rank 1 of stage 1")):
        kept = [path for number, path in enumerate(paths) if number != lacking]
        with pytest.raises(tz.FormatError, match=message):
            tz.lazy_load(kept, join="megatron")
    with pytest.raises(tz.FormatError, match="two files are of rank 0 of stage 0"):
        tz.lazy_load([*paths, tmp_path / "b" / "mp_rank_00_000" / "x.pt"], join="megatron")
    with pytest.raises(tz.FormatError, match="not called mp_rank_<TT>"):
        tz.lazy_load([tmp_path / "x.pt"], join="megatron")


@pytest.mark.parametrize(
    ("file", "join", "error"),
    [
        (["a.pt"], "gpt", ValueError),
        (["a.pt"], 3, TypeError),
        (["a.pt"], {"*": -1}, ValueError),
        (["a.pt"], {"*": (0, 0)}, ValueError),
        (["a.pt"], {"*": "whole"}, ValueError),
        (["a.pt"], {3: 0}, ValueError),
        ([], None, TypeError),
        ("a.pt", "llama", ValueError),
        (["no-such-file.pt"], None, FileNotFoundError),
    ],
)
def test_mistakes(file: Any, join: Any, error: type[Exception]) -> None:
    """A caller's mistake is a plain error."""
    with pytest.raises(error):
        tz.lazy_load(file, join=join)
