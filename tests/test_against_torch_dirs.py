"""Directories and old files, written by torch or read by it: distributed, sharded, tar."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.child_process import python
from tests.comparing import assert_same_tree
from tests.formats.tar_builder import OldCheckpoint, OldStorage, OldTensor, pid
from tests.torch_oracle import asks_torch

pytestmark = asks_torch(
    "TypedStorage is deprecated", "torch.distributed is", ".*_write_state_dict",
    "Detected an existing checkpoint", ":FutureWarning",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks(torch: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which four processes have saved."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    python("-W", "ignore", "-m", "tests.dcp_ranks", folder, env=environment, timeout=120)
    return folder


@pytest.fixture(scope="module")
def expected(torch: Any, ranks: Path) -> dict[str, Any]:
    """Return the whole tensors, as arrays."""
    made: dict[str, Any] = tz.load(ranks / "expected.pt")
    return made


def _converted(torch: Any, folder: Path, target: Path) -> Any:
    """Return what torch itself makes of a distributed checkpoint."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(folder, target)
    return torch.load(target, weights_only=False)


@pytest.mark.few
@pytest.mark.parametrize("name", ["dcp", "threads", "files"])
def test_distributed(torch: Any, ranks: Path, tmp_path: Path, name: str) -> None:
    """The same object as torch's own conversion: nesting, objects, DTensors, ShardedTensors."""
    made = tz.load(ranks / name)
    assert_same_tree(made, _converted(torch, ranks / name, tmp_path / "t.pt"))
    mapped = tz.load(ranks / name, mmap=True)
    np.testing.assert_array_equal(mapped["model"]["grid"], made["model"]["grid"])


def test_distributed_lazily(ranks: Path, expected: dict[str, Any]) -> None:
    """Slices of sharded tensors are those of the whole; every CRC is right."""
    with tz.lazy_load(ranks / "dcp") as checkpoint:
        assert checkpoint.format == "dcp"
        for name, array in expected.items():
            tensor = checkpoint[f"model.{name}"]
            for key in np.s_[1:], np.s_[::-2], np.s_[..., -1], np.s_[..., 1:]:
                np.testing.assert_array_equal(tensor[key], array[key])
        sharded = np.arange(16.0).reshape(8, 2)
        np.testing.assert_array_equal(checkpoint["sharded"][1:7, 1], sharded[1:7, 1])
        assert checkpoint["plain.transposed"].stride == (10, 1)
        report = checkpoint.verify()
        assert report.without_crc == ()
        assert report.notes == ()
        assert checkpoint.metadata["version"] == "1.0.0"
        tensor = pickle.loads(pickle.dumps(checkpoint["model.columns"]))
    np.testing.assert_array_equal(tensor, expected["columns"])


def test_distributed_converts(
    torch: Any, ranks: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """To a .pt that torch's default loader takes, and to safetensors."""
    tz.convert(ranks / "dcp", tmp_path / "m.pt")
    made = torch.load(tmp_path / "m.pt", weights_only=True)
    for name, array in expected.items():
        assert_same_tree(array, made["model"][name])
    report = tz.convert(ranks / "dcp", tmp_path / "m.safetensors")
    assert report.lost == ()
    from safetensors.torch import load_file

    assert_same_tree(expected["columns"], load_file(tmp_path / "m.safetensors")["model.columns"])


def test_a_metadata_of_each_rank(ranks: Path, expected: dict[str, Any]) -> None:
    """With use_collectives=False each rank has a checkpoint of its own."""
    with pytest.raises(tz.FormatError, match=r"'a' is in __0\.metadata and in __1\.metadata"):
        tz.load(ranks / "alone")
    made = tz.load(ranks / "alone" / "__2.metadata")
    assert sorted(made) == ["a", "own2", "rank"]
    assert made["rank"] == 2
    np.testing.assert_array_equal(made["a"], expected["rows"] * 2)


@pytest.mark.parametrize("name", ["hub", os.path.join("joined", "sharded")])
def test_safetensors_parts(ranks: Path, expected: dict[str, Any], name: str) -> None:
    """What HuggingFaceStorageWriter writes from several ranks."""
    with tz.lazy_load(ranks / name) as checkpoint:
        assert checkpoint.format == "dcp"
        for name, tensor in checkpoint.items():
            np.testing.assert_array_equal(tensor, expected[name])
            np.testing.assert_array_equal(tensor[..., ::-1], expected[name][..., ::-1])
        assert len(checkpoint) >= 6


def test_consolidated(ranks: Path, expected: dict[str, Any]) -> None:
    """What torch joins has an index: shards."""
    with tz.lazy_load(ranks / "joined") as checkpoint:
        assert checkpoint.format == "sharded"
        assert sorted(checkpoint) == sorted(expected.keys() - {"long"})
        assert checkpoint.verify().notes == ()
        for name, tensor in checkpoint.items():
            np.testing.assert_array_equal(tensor, expected[name])


# -- one process -----------------------------------------------------------------------------------


def _save(torch: Any, state: Any, writer: Any) -> None:
    from torch.distributed import checkpoint

    checkpoint.save(state, storage_writer=writer, no_dist=True)


def test_a_model_and_its_optimizer(torch: Any, tmp_path: Path) -> None:
    """State dicts of torch come back as torch converts them; ties are two tensors there."""
    from torch.distributed.checkpoint import FileSystemWriter

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "tied": [model[0].weight, model[0].weight],
        "dtypes": {
            str(dtype): torch.arange(6).to(dtype).reshape(2, 3)
            for dtype in (torch.bool, torch.uint16, torch.complex64, torch.float8_e4m3fn)
        },
    }
    _save(torch, state, FileSystemWriter(tmp_path / "c"))
    want = _converted(torch, tmp_path / "c", tmp_path / "t.pt")
    assert_same_tree(tz.load(tmp_path / "c"), want)
    with tz.lazy_load(tmp_path / "c") as checkpoint:
        assert checkpoint["tied.0"].requires_grad
        assert not checkpoint["model.0.weight"].requires_grad
        tz.save(checkpoint.root, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert_same_tree(tz.load(tmp_path / "c"), again)


def test_without_flattening(torch: Any, tmp_path: Path) -> None:
    """Then nested dicts are objects with tensors of their own."""
    from torch.distributed import checkpoint

    planner = checkpoint.DefaultSavePlanner(flatten_state_dict=False)
    state = {"w": torch.arange(4.0), "more": {"x": torch.arange(3), "lr": 0.5}}
    writer = checkpoint.FileSystemWriter(tmp_path)
    checkpoint.save(state, storage_writer=writer, planner=planner, no_dist=True)
    with tz.lazy_load(tmp_path) as made:
        assert list(made) == ["w", "more.x"]
        assert made["more.x"].numpy().tolist() == [0, 1, 2]
    loaded = tz.load(tmp_path)
    assert loaded["more"]["lr"] == 0.5
    assert loaded["more"]["x"].tolist() == [0, 1, 2]


def test_encoded_items(torch: Any, tmp_path: Path) -> None:
    """Compression is said by its name."""
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint._extension import StreamTransformExtension

    class Same(StreamTransformExtension):  # type: ignore[misc]
        @staticmethod
        def from_descriptor(version: str) -> Any:
            return Same()

        @staticmethod
        def registry_name() -> str:
            return "stream.same"

        def get_descriptor(self) -> str:
            return "stream.same/1"

        def transform_to(self, output: Any) -> Any:
            return output

        def transform_from(self, data: Any) -> Any:
            return data

    writer = FileSystemWriter(tmp_path, _extensions=[Same()])
    _save(torch, {"w": torch.ones(3)}, writer)
    with pytest.raises(tz.UnsupportedError, match=r"'w' is encoded \(stream\.same/1\)"):
        tz.load(tmp_path)


def test_items_that_are_no_archives(torch: Any, tmp_path: Path) -> None:
    """FileSystemWriter with SAFETENSORS gives no place for each tensor; nothing is guessed."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

    writer = FileSystemWriter(tmp_path, serialization_format=SerializationFormat.SAFETENSORS)
    _save(torch, {"w": torch.ones(300)}, writer)
    with pytest.raises(tz.TorchZipError, match=r"begins with|an item of"):
        tz.load(tmp_path)


def test_saved_for_the_hub(torch: Any, tmp_path: Path) -> None:
    """HuggingFaceStorageWriter of one process writes shards with an index."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4), "c": torch.ones(2).half()}
    writer = HuggingFaceStorageWriter(str(tmp_path), {"a": 1, "b": 2, "c": 1})
    _save(torch, state, writer)
    with tz.lazy_load(tmp_path) as checkpoint:
        assert checkpoint.format == "sharded"
        assert checkpoint.verify().notes == ()
    assert_same_tree({name: tz.load(tmp_path)[name] for name in "abc"}, state)


def test_shards_that_torch_saved(torch: Any, tmp_path: Path) -> None:
    """``pytorch_model-*.bin`` of state dicts: ties, Parameters, both containers of torch.save."""
    weight = torch.nn.Parameter(torch.randn(3, 4))
    first = {"lm_head.weight": weight, "embed.weight": weight, "x": torch.randn(5)[::2]}
    second = torch.nn.Linear(2, 2).state_dict()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    torch.save(first, tmp_path / names[0])
    torch.save(second, tmp_path / names[1], _use_new_zipfile_serialization=False)
    weight_map = dict.fromkeys(second, names[1]) | dict.fromkeys(first, names[0])
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    made = tz.load(tmp_path)
    assert list(made) == ["weight", "bias", "lm_head.weight", "embed.weight", "x"]
    assert np.shares_memory(made["embed.weight"], made["lm_head.weight"])
    with torch.no_grad():
        assert_same_tree(made, {**second, **first})
    with tz.lazy_load(tmp_path) as checkpoint:
        assert checkpoint["lm_head.weight"].is_parameter
        tz.convert(tmp_path, tmp_path / "one.pt")
    again = torch.load(tmp_path / "one.pt", weights_only=True)
    assert again["lm_head.weight"] is again["embed.weight"]
    assert again["x"].stride() == (2,)


# -- tar -------------------------------------------------------------------------------------------

_KINDS = {
    "Float": ("f", 4), "Double": ("d", 8), "Half": ("e", 2), "Long": ("q", 8), "Int": ("i", 4),
    "Short": ("h", 2), "Char": ("b", 1), "Byte": ("B", 1),
}  # fmt: skip


def _tar(kinds: Iterable[str]) -> bytes:
    """Return a checkpoint with a tensor, its transpose and a window of each kind."""
    made = OldCheckpoint(pickle=b"")
    entries: dict[str, bytes] = {}
    storages, tensors, views = [], [], []
    for number, kind in enumerate(kinds, 1):
        code, itemsize = _KINDS[kind]
        data = struct.pack(f"<6{code}", *range(number, number + 6))
        storage = b.name("torch", f"{kind}Storage")
        storages.append(
            OldStorage(key=b.integer(number), data=data, kind=storage, itemsize=itemsize)
        )
        views.append((100 + number, number, 2, 4))
        own = b.name("torch", f"{kind}Tensor")
        layouts: list[tuple[int, tuple[int, ...], tuple[int, ...], int]] = [
            (number, (2, 3), (3, 1), 0), (number, (3, 2), (1, 3), 0), (100 + number, (3,), (1,), 1),
            (number, (2,), (2,), 1),
        ]  # fmt: skip
        for place, (storage_key, size, stride, offset) in enumerate(layouts):
            key = 1000 * (place + 1) + number
            tensors.append(
                OldTensor(
                    key=b.integer(key), storage=b.integer(storage_key), size=size, stride=stride,
                    offset=offset, kind=own,
                )
            )  # fmt: skip
            entries[f"{kind}{place}"] = pid(str(key))
        entries[f"{kind} again"] = pid(str(1000 + number))
    made.storages, made.tensors, made.views = storages, tensors, views
    made.pickle = b.stream(b.dict_of({**entries, "n": 7}))
    return made.build()


def test_tar(torch: Any, tmp_path: Path) -> None:
    """Torch reads the same values from the files that the tests make."""
    (tmp_path / "m.pt").write_bytes(_tar(_KINDS))
    want = torch.load(tmp_path / "m.pt", weights_only=False)
    made = tz.load(tmp_path / "m.pt")
    assert_same_tree(made, want)
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        for name, tensor in checkpoint.items():
            assert tensor.stride == want[name].stride(), name
            # Torch counts the offset of a window from its storage's start, and so does torchzip.
        tz.save(checkpoint.root, tmp_path / "n.pt")
    again = torch.load(tmp_path / "n.pt", weights_only=True)
    assert_same_tree(made, again)
    assert again["Float0"] is again["Float again"]
    again["Float0"][1, 0] = 99
    assert again["Float2"][0] == 99


def _old(kind: str, put: bytes = b"") -> bytes:
    storage = b.persistent(kind=b.name("torch", "FloatStorage"))
    state = b.tuple_of(storage, 1, (3,), (1,))
    return b.call(b.name("torch", kind)) + put + state + b"b"


def test_tensors_by_their_class(torch: Any) -> None:
    """The tensors and Parameters of old files are what torch 2.13 makes of them."""
    parameter = b.name("torch.nn.parameter", "Parameter")
    whole = b.tuple_of(_old("FloatTensor"), b"N", b"N", False, False) + b"b"
    three = b.tuple_of(True, False, b"N") + b"b"
    data = b.checkpoint(
        b.stream(
            b.dict_of(
                {
                    "tensor": _old("FloatTensor", b"q\x05"),
                    "tied": b"h\x05",
                    "whole": parameter + b")\x81" + whole,
                    "around": b.call(parameter, _old("FloatTensor")) + three,
                }
            )
        )
    )
    want = torch.load(io.BytesIO(data), weights_only=False)
    with torch.no_grad():
        assert_same_tree(tz.load(io.BytesIO(data)), want)
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        for name, tensor in checkpoint.items():
            assert tensor.requires_grad == want[name].requires_grad, name
            assert tensor.is_parameter == isinstance(want[name], torch.nn.Parameter), name
            assert tensor.stride == want[name].stride(), name
        assert checkpoint.root["tied"] is checkpoint.root["tensor"]


def test_several_legacy_streams(torch: Any) -> None:
    """Each load takes the next, as torch does; a lazy one begins where the file stands."""
    file = io.BytesIO()
    starts = []
    for number in range(3):
        starts.append(file.tell())
        tree = {"n": number, "w": torch.full((4,), float(number)), "v": torch.arange(6)[1:3]}
        torch.save(tree, file, _use_new_zipfile_serialization=False)
    end = file.tell()
    file.write(b"more")
    file.seek(0)
    ends = []
    for number in range(3):
        made = tz.load(file)
        ends.append(file.tell())
        assert made["n"] == number
        assert made["w"].tolist() == [number] * 4
    assert ends == [*starts[1:], end]
    file.seek(starts[1])
    with tz.lazy_load(file) as one:
        file.seek(starts[2])
        with tz.lazy_load(file) as two:
            assert one["w"][0] == 1
            assert two["w"][0] == 2
            assert one["v"].numpy().tolist() == [1, 2]
