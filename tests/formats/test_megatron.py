"""Distributed checkpoints of Megatron-Core, whose metadata has attributes of its own."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as d
from tests.test_cost import peak_below
from torchzip.formats import dcp_metadata
from torchzip.formats.dcp_others import without_others
from torchzip.limits import Limits

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


# -- what is skipped ---------------------------------------------------------------------------

REAL = Path(__file__).parents[1] / "data" / "ranks" / "mcore" / ".metadata"


def _state(*parts: bytes) -> bytes:
    """Return an object whose state has ``a``, a list with memo number 0, and these opcodes."""
    head = b.call("torch.X") + b"}(" + b.text("a") + b"]q\0" + b.text("b") + b"]"
    return b.stream(head, *parts, b"ub")


_TAIL = b.text("x") + b.list_of(b.call("torch.Y", 1), b"N")


def test_skipped_is_all_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real file has the same items and places, whether plans are skipped or not."""
    data = REAL.read_bytes()
    own = without_others(data, dcp_metadata._FIELDS)
    assert own is not None
    assert len(own.data) < len(data) - 1000
    assert ("torch.distributed.checkpoint.planner", "WriteItem") in own.names
    assert [opcode.name for opcode, _, _ in pickletools.genops(own.data)][-2:] == ["BUILD", "STOP"]
    skipped = dcp_metadata.parse_metadata(data, Limits(), "m")
    monkeypatch.setattr(dcp_metadata, "without_others", lambda data, fields: None)
    whole = dcp_metadata.parse_metadata(data, Limits(), "m")
    for field in ("items", "paths", "places", "texts", "nbytes"):
        assert getattr(skipped, field) == getattr(whole, field)
    assert {*skipped.globals} == {*whole.globals}
    assert {*skipped.foreign} == {*whole.foreign}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_python(protocol: int) -> None:
    """The C pickler writes frames, memo numbers and strings of many lengths."""
    others = {"plans": [[("w" * n, n, 1 << n, n / 3, b"x", True, None) for n in range(50)]] * 3}
    root = pickle.dumps(_Object({"a": [1, 2], "b": None, **others}), protocol)
    own = without_others(root, ("a", "b"))
    assert own is not None
    assert pickle.loads(own.data).__dict__ == {"a": [1, 2], "b": None}


class _Object:
    """What is pickled as torch's Metadata is."""

    def __init__(self, state: dict[str, object]) -> None:
        self.__dict__ = state


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a known attribute behind", [_TAIL, b.text("b"), b"N"]),
        ("a known attribute again", [_TAIL, b.text("a"), b"]"]),
        ("an item put into what is before", [b.text("x"), b"h\0", b"Na"]),
        ("items put into what is before", [b.text("x"), b"h\0", b"(NNe"]),
        ("a state for what is before", [b.text("x"), b"h\0", b"}b"]),
        ("a pop", [b.text("x"), b"N0N"]),
        ("a pop to the mark", [b.text("x"), b"(NN1N"]),
        ("a copy", [b.text("x"), b"N2"]),
        ("a memo number in the past", [b.text("x"), b"Nq\x09"]),
        ("a number that was never set", [b.text("x"), b"h\x63"]),
        ("a key that is no string", [_TAIL, b"NN"]),
        ("a value too few", [_TAIL, b.text("y")]),
        ("more than the object", [_TAIL, b"ubNu"]),
        ("nothing", []),
        ("an attribute before as a key", [b.text("x"), b"NNs", b.text("y"), b"N"]),
        ("a name of attributes before", [b.text("x"), b"\x93", b"N"]),
        ("an object behind", [_TAIL, b"ub0N}("]),
        ("a name of no strings", [b.text("x"), b"NN\x93"]),
        ("a text of long lines", [b.text("x"), b"Va\n"]),
    ],
)
def test_what_is_not_skipped(name: str, parts: list[bytes]) -> None:
    """Where it is not sure that nothing depends on it, all is interpreted."""
    assert name
    assert without_others(_state(*parts), ("a", "b")) is None


@pytest.mark.parametrize(
    "behind", [b"h\0N", b.text("y") + b"h\2K\1Ns", b"h\0N" + b.text("y") + b"N"]
)
def test_what_the_memo_has_is_not_skipped(behind: bytes) -> None:
    """A known attribute may come again by the number of its name, or a value change by its own."""
    head = b.call("torch.X") + b"}(" + b.text("a") + b"q\0N" + b.text("b") + b"q\1}q\2"
    assert without_others(b.stream(head, _TAIL, b"ub"), ("a", "b")) is not None
    assert without_others(b.stream(head, _TAIL, behind, b"ub"), ("a", "b")) is None


def test_skipped() -> None:
    """What those rows have beside what is wrong with them."""
    own = without_others(_state(_TAIL), ("a", "b"))
    assert own == (_state(), [("torch", "Y")])
    assert without_others(_state(b.text("x"), b"h\0", b"\x85"), ("a", "b")) == (_state(), [])


@pytest.mark.parametrize("opcode", [b"\x86", b"R", b"\x81", b"a", b"b"])
def test_a_string_that_is_no_key(opcode: bytes) -> None:
    """What takes it takes the attribute before as well, and is interpreted."""
    before = b.text("x") + opcode
    own = without_others(_state(before, _TAIL), ("a", "b"))
    assert own == (_state(before), [("torch", "Y")])


def test_cut_anywhere() -> None:
    """A damaged file is for the interpreter."""
    data = _state(_TAIL)
    for nbytes in range(len(data) - 1):
        assert without_others(data[:nbytes], ("a", "b")) is None


@pytest.mark.long
def test_plans_cost_nothing(made: d.Builder) -> None:
    """Three megabytes of plans are no more than the bytes of the file."""
    made.tensor("w", _A)
    made.more = {"all_local_plans": b.list_of(*[_PLAN] * 60_000)}
    folder = made.write()
    nbytes = (folder / ".metadata").stat().st_size
    assert nbytes > 3_000_000
    with peak_below(nbytes + 1_500_000):
        tz.lazy_load(folder).close()
