"""A conversion's fast copies are the plain copy, however the tensors lie in their storages.

`convert` has several ways to move bytes: copies by the kernel that keep a CRC, pieces for workers,
small storages in batches, storages cast whole or tensor by tensor. Each is compared here with numpy
alone, over layouts that a save of arrays never writes: it keeps only what the arrays reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import torchzip as tz
from tests.comparing import assert_same_tree
from tests.convert.test_run import NeighbourProcess, make_pieces_small, write_source
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.tensors.storage import ArrayStorage

CASTS: dict[str | None, Any] = {None: None, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


@dataclass(frozen=True)
class Layout:
    """A view of a storage of float32: all in elements."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    neg: bool = False

    def of(self, base: NDArray[np.float32]) -> NDArray[np.float32]:
        view = np.lib.stride_tricks.as_strided(
            base[self.offset :], self.shape, tuple(step * 4 for step in self.stride)
        )
        return -view if self.neg else view.copy()


@dataclass(frozen=True)
class Model:
    """Storages, as bytes, and the views of them that have names."""

    storages: tuple[bytes, ...]
    views: tuple[Layout, ...]

    def tensors(self) -> dict[str, tz.LazyTensor]:
        """Return the tensors, each over a whole storage, to save."""
        kept = [ArrayStorage(np.frombuffer(data, np.uint8), "float32") for data in self.storages]
        return {
            f"t{number}": tz.LazyTensor(
                TensorSpec(
                    "float32", view.shape, view.stride, view.offset, kept[view.storage],
                    neg=view.neg,
                )
            )
            for number, view in enumerate(self.views)
        }  # fmt: skip

    def expected(self, cast: Any) -> dict[str, NDArray[Any]]:
        """Return the arrays that a conversion has to give."""
        bases = [np.frombuffer(data, "<f4") for data in self.storages]
        arrays = [view.of(bases[view.storage]) for view in self.views]
        return {
            f"t{number}": array if cast is None else array.astype(cast)
            for number, array in enumerate(arrays)
        }


@st.composite
def layouts(draw: st.DrawFn, storage: int, numel: int) -> Layout:
    """Draw a view that lies inside a storage of ``numel`` elements."""
    kinds = ["whole", "head", "tail", "middle", "strided", "transposed", "overlapping"]
    kind = draw(st.sampled_from(kinds))
    cut = draw(st.integers(0, numel))
    other = draw(st.integers(0, numel))
    first, last = sorted((cut, other))
    if kind == "strided":
        step = draw(st.integers(1, 5))
        count = -(-(last - first) // step)
        return Layout(storage, first, (count,), (step,), draw(st.booleans()))
    if kind == "transposed":
        columns = draw(st.integers(1, 40))
        rows = (last - first) // columns
        return Layout(storage, first, (columns, rows), (1, columns))
    if kind == "overlapping":  # rows that share elements, or are all one
        width = min(last - first, draw(st.integers(0, 700)))
        rows = draw(st.integers(0, 6))
        step = min(draw(st.integers(0, 30)), (last - first - width) // max(rows, 1))
        return Layout(storage, first, (rows, width), (step, 1))
    first, last = {"whole": (0, numel), "head": (0, last), "tail": (first, numel)}.get(
        kind, (first, last)
    )
    return Layout(storage, first, (last - first,), (1,), draw(st.booleans()) and kind == "middle")


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Draw one to three storages with one to three views each."""
    storages = []
    views = []
    for number in range(draw(st.integers(1, 3))):
        numel = draw(st.sampled_from([0, 3, 500, 3000, 9000]))
        values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(numel)
        storages.append(values.astype("<f4").tobytes())
        for _ in range(draw(st.integers(1, 3))):
            views.append(draw(layouts(number, numel)))
    return Model(tuple(storages), tuple(views))


@given(
    models(),
    st.sampled_from([".pt", ".safetensors", ".bin.index.json", ".safetensors.index.json"]),
    st.sampled_from(list(CASTS)),
    st.booleans(),
    st.sampled_from([None, 1, 12_000]),
    st.sampled_from(["zip", "zip", "deflated", "no crc", "safetensors", "shards"]),
    st.booleans(),
)
def test_every_layout_comes_through(
    tmp_path_factory: pytest.TempPathFactory, model: Model, suffix: str, dtype: str | None,
    by_workers: bool, max_shard_size: int | None, kind: str, verify: bool,
) -> None:  # fmt: skip
    """The values are those of numpy, whatever way the bytes took."""
    folder = tmp_path_factory.mktemp("layouts")
    source = write_source(model.tensors(), folder, kind)
    with pytest.MonkeyPatch.context() as patch:
        make_pieces_small(patch)
        report = tz.convert(
            source, folder / f"out{suffix}", dtype=dtype, max_shard_size=max_shard_size,
            executor=NeighbourProcess() if by_workers else None, verify=verify,
        )  # fmt: skip
    target = Path(report.target)
    if "safetensors" in suffix:  # which lists a tie in its metadata, for who converts it back
        target = folder / "back.pt"
        tz.convert(report.target, target)
    with tz.lazy_load(target) as checkpoint:
        checkpoint.verify()
        found = {name: tensor.numpy() for name, tensor in checkpoint.items()}
    assert_same_tree(found, model.expected(CASTS[dtype]))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_three_chunks_of_one_storage(tmp_path: Path, suffix: str, dtype: str | None) -> None:
    """What torch saves of ``torch.randn(768, 256).chunk(3)``, at the sizes that users have."""
    rows, size = 256, 256
    values = np.random.default_rng(0).standard_normal((3 * rows, size), np.float32)
    chunks = tuple(
        Layout(0, number * rows * size, (rows, size), contiguous_stride((rows, size)))
        for number in range(3)
    )
    tz.save(Model((values.tobytes(),), chunks).tensors(), tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / f"o{suffix}", dtype=dtype)
    loaded = tz.load(tmp_path / f"o{suffix}")
    for number, expected in enumerate(np.split(values, 3)):
        assert np.array_equal(loaded[f"t{number}"], expected.astype(CASTS[dtype] or np.float32))
