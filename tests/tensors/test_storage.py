"""Storages whose bytes come in pieces of any size, read in blocks by their readers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchzip.errors import ArchiveError
from torchzip.files.crc import crc32
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import StreamStorage, compare_crcs


def _stream(data: bytes, cuts: list[int], dtype: str, swap: int = 1, crc: int = 0) -> StreamStorage:
    def inflate() -> Iterator[bytes]:
        at = 0
        for cut in [*cuts, len(data)]:
            yield data[at : at + cut]
            at += cut
        if len(data) % 3 == 1:
            raise ArchiveError("other bytes follow")

    return StreamStorage(
        dtype, len(data), "cpu", inflate=inflate, crc=crc or crc32(data), swap_nbytes=swap
    )


_CUTS = st.lists(st.integers(0, 30), max_size=8)


@given(st.binary(max_size=50), _CUTS, st.sampled_from([1, 2, 4, 8]), st.integers(1, 20))
def test_blocks_of_a_stream(data: bytes, cuts: list[int], unit: int, nbytes: int) -> None:
    """Blocks of one size come out, swapped where they have to be; the last one is shorter."""
    data = data[: len(data) // 3 * 3 * unit] * unit * 3
    storage = _stream(data, cuts, "uint8", unit)
    blocks = [block.copy() for block in storage.reader(0, len(data)).blocks(nbytes)]
    assert all(block.size == nbytes for block in blocks[:-1])
    swapped = np.frombuffer(data, np.uint8).reshape(-1, unit)[:, ::-1]
    assert b"".join(block.tobytes() for block in blocks) == swapped.tobytes()


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1).filter(lambda x: len(x) % 3), _CUTS
)
def test_damage_of_a_stream_shows_in_what_is_made_of_it(
    values: list[float], cuts: list[int]
) -> None:
    """A wrong CRC, and bytes that follow, are errors of a cast and of a negated tensor too."""
    values = values * 3
    data = np.array(values, np.float32).tobytes()
    shape, stride = (len(values),), (1,)
    sound, damaged = (_stream(data, cuts, "float32", crc=crc) for crc in (0, 1 + crc32(data)))
    for storage in (sound, damaged):
        turned = ElementStorage(TensorSpec("float32", shape, stride, 0, storage, neg=True))
        read = b"".join(block.tobytes() for block in turned.checked_blocks(7))
        assert read == (-np.array(values, np.float32)).tobytes()
    cast = CastStorage(sound, "float32", "float64")
    read = b"".join(block.tobytes() for block in cast.checked_blocks(11))
    assert read == np.array(values, np.float32).astype(np.float64).tobytes()
    with pytest.raises(ArchiveError, match="CRC-32"):
        list(CastStorage(damaged, "float32", "float64").checked_blocks())
    reader = sound.reader(0, len(data))
    reader.read_into(4, np.empty(len(data) - 4, np.uint8))
    compare_crcs(sound.compared(), [[each] for each in reader.crcs()])
    reader.read_into(0, np.empty(4, np.uint8))  # begins again


def test_a_stream_that_goes_on_is_an_error() -> None:
    for swap in (1, 2):  # swapped bytes have no CRC
        storage = _stream(b"abcd", [], "uint8", swap)
        assert sorted(storage.read(0, 4).tobytes()) == [*b"abcd"]
        for made in (storage, ElementStorage(TensorSpec("uint8", (4,), (1,), 0, storage))):
            with pytest.raises(ArchiveError, match="follow"):
                list(made.checked_blocks())
