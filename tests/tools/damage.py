"""A checkpoint, what damage leaves of it, and a judge of what `repair` makes of that."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import torchzip as tz
from tests.saved import RELEASES, quiet
from torchzip.errors import FormatError
from torchzip.tools import Repaired, repair
from torchzip.types import OtherTensor, Parameter

#: What a tensor is, for comparisons: dtype, shape, strides and bytes; of several parts, of each.
Value = Any
Span = tuple[int, int]


#: What torch wrote, of all releases.
GOLDEN = sorted(RELEASES.glob("torch-*/*.pt"))


def end_of_pickle(data: bytes) -> int:
    """Return the byte behind the descriptor of data.pkl, the first record."""
    return data.index(b"PK\7\x08") + 16


def twenty() -> dict[str, Any]:
    """Return an object with 20 tensors of many dtypes, two views of one storage, and a tie."""
    rng = np.random.default_rng(0)
    dtypes: list[Any] = [
        "float32", "float64", "float16", ml_dtypes.bfloat16, "int64", "int32", "int8", "uint8",
        ml_dtypes.float8_e4m3fn, "complex64", "float32", "int16", "float32", "uint8",
    ]  # fmt: skip
    tensors: OrderedDict[str, Any] = OrderedDict()
    for index, dtype in enumerate(map(np.dtype, dtypes)):
        raw = rng.bytes(int(rng.integers(1, 400)) * dtype.itemsize)
        tensors[f"layers.{index}.weight"] = np.frombuffer(raw, dtype).copy()
    base = np.arange(200, dtype=np.float32)
    tensors["first"], tensors["second"] = base[:100], base[50:150:2]
    tensors["tied"] = tensors["layers.0.weight"]
    tensors["scalar"] = np.full((), 3.5, np.float32)
    tensors["empty"] = np.zeros((0, 3), np.float32)
    tensors["parameter"] = Parameter(rng.standard_normal((20, 7)).astype(np.float32))
    assert len(tensors) == 20
    return {"model": tensors, "step": 7, "name": "x"}


def alike() -> dict[str, Any]:
    """Return 20 tensors of one size: what is misplaced by a whole record fits there."""
    rng = np.random.default_rng(1)
    return {f"k{i}": rng.standard_normal(16).astype(np.float32) for i in range(20)} | {"step": 7}


class Original:
    """A sound file: where the bytes of each tensor lie, and what it is."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.spans: dict[str, list[Span]] = {}
        self.values: dict[str, Value] = {}
        places = places_of(data)
        with tz.lazy_load(io.BytesIO(data)) as checkpoint:
            for name, tensor in checkpoint.items():
                self.values[name] = value_of(tensor)
                self.spans[name] = []
                for spec in _specs(tensor):
                    storage = spec.storage
                    if not storage.nbytes:
                        continue
                    place = places.get(storage.record)
                    if place is None:
                        start = storage._locator.locate(storage.record)[1]
                        place = (start, start + storage.nbytes)
                    self.spans[name].append(place)

    def before(self, cut: int) -> set[str]:
        """Return the names of tensors that lie wholly before a byte."""
        return {name for name, spans in self.spans.items() if all(stop <= cut for _, stop in spans)}

    def without(self, place: int) -> set[str]:
        """Return the names of tensors that have not a byte in their storage."""
        return {
            name
            for name, spans in self.spans.items()
            if not any(start <= place < stop for start, stop in spans)
        }


def places_of(data: bytes) -> dict[Any, Span]:
    """Return where records lie, by zipfile and the local headers; nothing for other formats."""
    if not data.startswith(b"PK"):
        return {}
    found: dict[Any, Span] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            lengths = struct.unpack_from("<HH", data, info.header_offset + 26)
            start = info.header_offset + 30 + sum(lengths)
            found[info.filename.partition("/")[2]] = (start, start + info.compress_size)
    return found


def _specs(tensor: Any) -> list[Any]:
    if isinstance(tensor, OtherTensor):
        return [spec for part in tensor.parts for spec in _specs(part)]
    return [tensor.spec]


def value_of(tensor: Any) -> Value:
    """Return what a tensor of a lazy checkpoint is."""
    if isinstance(tensor, OtherTensor):
        return (repr(tensor), [value_of(part) for part in tensor.parts])
    array = np.ascontiguousarray(tensor.numpy())
    return (tensor.torch_dtype, tensor.shape, tensor.stride, array.tobytes())


def repaired(data: bytes, folder: Path, **options: Any) -> tuple[Repaired, Any]:
    """Return what `repair` says of a file and the checkpoint that it writes."""
    broken, out = folder / "broken.pt", folder / "out.pt"
    broken.write_bytes(data)
    out.unlink(missing_ok=True)
    with quiet():  # of what torch.load refuses
        try:
            found = repair(broken, out, **options)
        except BaseException:
            assert not out.exists()
            raise
    assert sorted(path.name for path in folder.iterdir()) == ["broken.pt", "out.pt"]
    return found, tz.lazy_load(out)


def judge(original: Original, data: bytes, must: set[str], folder: Path) -> Repaired | None:
    """Repair a damaged file: what must come back does, nothing is wrong, all else is said.

    None if it is said that nothing can be recovered, and nothing must.
    """
    try:
        found, checkpoint = repaired(data, folder)
    except FormatError as error:
        if must or "nothing can be recovered" not in str(error):
            raise
        return None
    with checkpoint:
        names = set(checkpoint)
        assert must <= names, sorted(must - names)
        for name in names:
            assert value_of(checkpoint[name]) == original.values[name], name
        lost = [each.name for each in found.lost]
        assert sorted([*names, *lost]) == sorted(original.values)
        assert found.tensors == len(names)
        assert set(found.unverified) <= names
    return found


def judge_some(original: Original, data: bytes, must: set[str], folder: Path) -> Repaired:
    """Do as `judge`, where something is left."""
    found = judge(original, data, must, folder)
    assert found is not None
    return found


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, list[tuple[Any, ...]]]:
    """Return bytes with one to three kinds of damage, and what was done."""
    made = bytearray(data)
    done: list[tuple[Any, ...]] = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(["flip", "flips", "zeros", "lose", "add", "swap", "cut", "copy"])
        start = rng.randrange(len(made))
        count = min(rng.choice([1, 2, 4, 16, 64, 100, 512, 2000]), len(made) - start)
        other = rng.randrange(len(made))
        done.append((kind, start, count, other))
        if kind == "flip":
            made[start] ^= rng.randint(1, 255)
        elif kind == "flips":
            for _ in range(rng.randint(2, 5)):
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        elif kind == "zeros":
            made[start : start + count] = bytes(count)
        elif kind == "lose" and len(made) > 4000:
            del made[start : start + count]
        elif kind == "add":
            made[start:start] = rng.randbytes(count)
        elif kind == "swap":
            size = rng.choice([64, 128, 512])
            one, two = sorted((start // size * size, other // size * size))
            if one + size <= two and two + size <= len(made):
                made[one : one + size], made[two : two + size] = (
                    made[two : two + size], made[one : one + size],
                )  # fmt: skip
        elif kind == "cut" and start > 2000:
            del made[start:]
        elif kind == "copy":
            count = min(count, len(made) - other)
            made[start : start + count] = made[other : other + count]
    return bytes(made), done
