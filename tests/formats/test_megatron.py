"""Distributed checkpoints of Megatron-Core, whose metadata has attributes of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as d

_A = np.arange(28, dtype=np.float32).reshape(7, 4)


@pytest.fixture
def made(tmp_path: Path) -> d.Builder:
    """Return a checkpoint of nothing yet."""
    return d.Builder(tmp_path / "c")


_PLAN = d.new("torch.distributed.checkpoint.planner", "SavePlan", b.dict_of({"items": b"]"}))


def test_attributes_of_others(made: d.Builder) -> None:
    """Megatron-Core puts plans into the metadata. They are skipped, and their names are said."""
    made.tensor("w", _A)
    member = b.call("builtins.getattr", b.name("torch.distributed.checkpoint.planner", "W"), "x")
    made.more = {"all_local_plans": b.list_of(_PLAN, member), "mcore_data": b.dict_of({"w": 1})}
    folder = made.write()
    np.testing.assert_array_equal(tz.load(folder)["w"], _A)
    with tz.lazy_load(folder) as checkpoint:
        assert ("torch.distributed.checkpoint.planner", "SavePlan") in checkpoint.foreign
        assert checkpoint.foreign_in_root == []
    with pytest.raises(tz.UnsafeGlobalError, match="SavePlan"):
        tz.load(folder, foreign="raise")


@pytest.mark.parametrize(
    "more",
    [
        {"all_local_plans": _PLAN, "version": _PLAN},
        {"all_local_plans": _PLAN, "version": b.call("os.system", "ls")},
        {"all_local_plans": _PLAN, "storage_meta": d.new(d.MODULE, "StorageMeta", _PLAN)},
        {"all_local_plans": b.name("os", "system") + b"0N"},
        {"all_local_plans": b.integer(1), "version": b.call("builtins.getattr", _PLAN, "x")},
    ],
    ids=["in both", "beside", "deeper", "dropped", "getattr"],
)
def test_foreign_names_elsewhere(made: d.Builder, more: dict[str, bytes]) -> None:
    """A foreign name is refused wherever a reader looks, and where nobody sees what it is for."""
    made.tensor("w", _A)
    made.more = more
    with pytest.raises(tz.UnsafeGlobalError):
        tz.load(made.write())


def test_megatron() -> None:
    """A real checkpoint of Megatron-Core: layers are stacked, and objects are values."""
    ranks = Path(__file__).parents[1] / "data" / "ranks"
    expected = tz.load(ranks / "mcore-full.pt")
    with tz.lazy_load(ranks / "mcore") as found:
        assert found.format == "dcp"
        stacked = found["decoder.layers.self_attention.linear_qkv.weight"].numpy()
        for layer, array in expected["layers"].items():
            np.testing.assert_array_equal(stacked[layer], array)
        embedding = found["embedding.word_embeddings.weight"].numpy()
        np.testing.assert_array_equal(embedding, expected["emb"])
        assert found.root["decoder.layers.self_attention._extra_state/shard_2_4"] == [{"l": 2}]
        assert found.verify().tensors == 2
