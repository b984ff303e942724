"""What a user writes with every public name, for type checkers alone: nobody runs it.

`test_typing.py` has mypy and pyright read it as they read any user's program. ``assert_type`` says
what a type is, so a name that begins to be Any is an error here.
"""

import io
import os
from collections.abc import ItemsView, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import torchzip as tz
from torchzip import executors, lazy, tools, types


def reading(path: str, file: Path, stream: io.BytesIO) -> None:
    """Lazily: whatever is given for the file."""
    for checkpoint in (tz.lazy_load(path), tz.lazy_load(file), tz.lazy_load(stream)):
        assert_type(checkpoint, tz.Checkpoint[tz.LazyTensor])
    options = {"region": "eu"}
    tz.lazy_load([path, file], join="llama", storage_options=options)
    with tz.Checkpoint(path, foreign="raise", limits=tz.Limits(nesting=50)) as opened:
        assert_type(opened, tz.Checkpoint[tz.LazyTensor])
        assert_type(opened["w"], tz.LazyTensor)
        assert_type(opened.get("w"), tz.LazyTensor | None)
        assert_type(opened.items(), ItemsView[str, tz.LazyTensor])
        assert_type(list(opened), list[str])
        assert_type([tensor.nbytes for tensor in opened.values()], list[int])
        assert_type(opened.format, str)
        assert_type(opened.path, str)
        assert_type(opened.globals, list[tuple[str, str]])
        assert_type(opened.foreign, list[tuple[str, str]])
        assert_type(opened.metadata, dict[str, Any])
        assert_type(opened.verify().nbytes, int)
        assert_type(opened.beside("config.json"), bytes | None)
        assert_type("w" in opened, bool)
        assert_type(len(opened), int)


def annotated(path: str) -> tz.Checkpoint:
    """A function that says no more than ``Checkpoint`` has said what most of them yield."""
    assert_type(tz.lazy_load(path)["w"].shape, tuple[int, ...])
    return tz.lazy_load(path)


def of_all_kinds(path: str) -> list[str]:
    """Whoever expects tensors that are not dense says so, and has to handle both."""
    checkpoint: tz.Checkpoint[tz.LazyTensor | types.OtherTensor] = tz.lazy_load(path)
    found = []
    for tensor in checkpoint.values():
        if isinstance(tensor, types.SparseTensor):
            found.append(tensor.layout)
        elif isinstance(tensor, types.OtherTensor):
            found.append(tensor.kind)
        else:
            assert_type(tensor, tz.LazyTensor)
            found.append(tensor.torch_dtype)
    return found


def tensors(tensor: tz.LazyTensor, array: NDArray[np.float32], at: np.int64) -> None:
    """Slices are arrays, elements may be numbers, and views are tensors."""
    assert_type(tensor.shape, tuple[int, ...])
    assert_type(tensor.ndim, int)
    assert_type(tensor.dtype, np.dtype[Any])
    assert_type(tensor.torch_dtype, str)
    assert_type(tensor.stride, tuple[int, ...])
    assert_type(tensor.storage_offset, int)
    assert_type(tensor.requires_grad, bool)
    assert_type(tensor.is_parameter, bool)
    assert_type(tensor.numpy(), NDArray[Any])
    assert_type(np.asarray(tensor), NDArray[Any])
    assert_type(tensor[10:20], NDArray[Any])
    assert_type(tensor[10:20, :4], NDArray[Any])
    assert_type(tensor[0, :4], NDArray[Any])
    assert_type(tensor[at, ..., None], NDArray[Any])
    assert_type(tensor[...], NDArray[Any])
    assert_type(tensor[None], NDArray[Any])
    assert_type(tensor[[1, 2]], NDArray[Any])
    assert_type(tensor[np.array([True, False])], NDArray[Any])
    _number: float = tensor[0, 1].item()
    _row: NDArray[Any] = tensor[0]
    for each in (
        tensor.lazy[1:], tensor.T, tensor.permute(1, 0), tensor.permute((1, 0)),
        tensor.reshape(-1), tensor.to("bfloat16"), tensor + 1, 1 - tensor, tensor * tensor,
        tensor / array, -tensor,
    ):  # fmt: skip
        assert_type(each, tz.LazyTensor)


def computing(a: tz.LazyTensor, b: NDArray[np.float32], checkpoint: tz.Checkpoint) -> None:
    """`torchzip.lazy`."""

    def most(so_far: float, block: NDArray[Any]) -> float:
        return max(so_far, float(block.max()))

    assert_type(lazy.cat([a, b], axis=1), tz.LazyTensor)
    assert_type(lazy.stack([a, b]), tz.LazyTensor)
    assert_type(lazy.pad(a, (3, 4), value=0), tz.LazyTensor)
    assert_type(lazy.compute(np.sqrt, a, dtype="float32", rows=True, repeat=(1,)), tz.LazyTensor)
    assert_type(lazy.reduce(most, a, b, initial=0.0), float)
    plain = lazy.dequantized(checkpoint, {"quant_method": "fp8"}, transpose_experts=False)
    assert_type(plain["w"].shape, tuple[int, ...])
    lazy.dequantized({"w": a, "w.scale": b})


def loading(path: str, stream: io.BytesIO) -> None:
    """What was saved can be anything, so `load` gives Any, whatever the options."""
    assert_type(tz.load(path, mmap=True, verify=False, foreign="keep"), Any)
    state: dict[str, NDArray[Any]] = tz.load(stream, map_location="cpu", weights_only=True)
    assert_type(tz.save(state, path, alignment=64, crc32=True), None)
    assert_type(tz.save([1], stream), None)
    with tz.incremental_save(path) as out:
        early = out.store_early(np.ones(3))
        blocks = out.store_chunks((np.ones(2) for _ in range(3)), shape=(6,), dtype="float64")
        assert_type(blocks.shape, tuple[int, ...])
        assert_type(out.save({"early": early, "blocks": blocks}), None)


def fused(name: str, tensor: tz.LazyTensor) -> Iterable[tuple[str, tz.LazyTensor]]:
    """A ``map``."""
    yield name, tensor.T


def renamed(name: str) -> str | None:
    """A ``rename``."""
    return None if name.startswith("optimizer.") else name


def converting(
    checkpoint: tz.Checkpoint, arrays: dict[str, NDArray[np.float32]], dry: bool
) -> None:
    """The report is one type, of a dry run too: a dry run says of each field what would be."""
    report = tz.convert("a.pt", Path("b.safetensors"), dtype="bfloat16", rename=renamed)
    assert_type(report.tensors, int)
    assert_type(report.lost, tuple[str, ...])
    assert_type(report.files, tuple[str, ...])
    assert_type(report.tied, dict[str, str])
    assert_type([row.name for row in report.rows], list[str])
    assert_type(tz.convert("a.pt", "b.pt", dry_run=True).file_nbytes, tuple[int, ...])
    tz.convert(checkpoint, "b/", dtype={"*.norm": "float32"}, map=fused, jobs="auto")
    tz.convert(arrays, "b.gguf", dtype=[("*", "q8_0")], metadata={"a": 1}, max_shard_size="5GB")
    tz.convert({**checkpoint, **arrays}, "b.pt", include="*", exclude=["a", "b"], jobs=2)
    tz.convert("a.pt", "b.pt", rename={"a": "b"}, progress=lambda done, total: None)
    tz.convert("a.pt", "b.pt", rename=[(r"^a", "b")], stack=[("e.{i}", "e")], limits=tz.Limits())
    tz.convert("a.pt", "b.pt", executor=executors.spark(object()))
    assert_type(executors.ray(num_cpus=1), Executor)


def with_tools(stream: io.BytesIO, tensor: tz.LazyTensor) -> None:
    """`torchzip.tools`: each returns a dataclass of plain fields."""
    assert_type(tools.diff("a", "b", include="*", rtol=1e-3), tools.Diff)
    assert_type(tools.diff("a", "b").changed[0].after.shape, tuple[int | None, ...])
    assert_type(tools.edit("a", rename={"a": "b"}, drop="c", set_values={"x": 1}), tools.Edited)
    assert_type(tools.statistics(tensor, bins=5), tools.Statistics)
    assert_type(tools.statistics(tensor).mean, float | None)
    assert_type(tools.average(["a", Path("b")], "c", weights=[1, 2], overwrite=True), tools.Merged)
    assert_type(tools.combine("a+b", {"a": "a", "b": Path("b")}, "c").converted.nbytes, int)
    assert_type(tools.merge_lora("a", "b", "c", weights=[0.5]), tools.LoraMerged)
    assert_type(tools.merge_lora("a", ["b"], "c").merged, dict[str, str])
    assert_type(tools.repair("a", "b", overwrite=True), tools.Repaired)
    assert_type(tools.report("a", stream, read_data=False), tools.Report)
    assert_type(tools.report("a", stream).damage, str | None)
    assert_type(tools.scan(["a", Path("b")], allow="lightning"), tools.Scanned)
    assert_type([found.path for found in tools.scan("a").files], list[str])
    assert_type(tools.verify("a", values=True), tools.Verified)
    assert_type(tools.why_big("a"), tools.WhyBig)


def leaves(value: object) -> str:
    """`torchzip.types`, as a tree of values is gone over."""
    match value:
        case types.Parameter(_data, requires_grad):
            return str(assert_type(requires_grad, bool))
        case types.TypedArray(_, torch_dtype):
            return torch_dtype
        case types.Storage(_, torch_dtype, location):
            assert_type(torch_dtype, str | None)
            return location
        case types.Device(kind, index):
            assert_type(index, int | None)
            return kind
        case types.Dtype(name) | types.Layout(name) | types.QScheme(name):
            return name
        case types.Size():
            return str(assert_type(value[0], int))
        case types.SparseTensor():
            assert_type(value.todense(), NDArray[Any])
            return value.layout
        case types.QuantizedTensor():
            assert_type(value.dequantize(), NDArray[Any])
            return value.torch_dtype
        case types.NestedTensor() | types.MetaTensor():
            _shape: tuple[int | None, ...] = value.shape
            return value.kind
        case types.ForeignObject():
            assert_type(value.args, tuple[Any, ...] | None)
            return f"{value.module}.{value.name}"
    return ""


def errors(path: str | os.PathLike[str]) -> str | None:
    """Each error says where, and is the builtin one as well."""
    try:
        tz.load(path)
    except tz.UnsafeGlobalError as error:
        assert_type(error.module, str)
        assert_type(error.name, str)
        return error.path
    except tz.LimitError as error:
        assert_type(error.actual, int)
        return error.limit
    except (tz.FormatError, tz.UnsupportedError) as error:
        assert_type(error.offset, int | None)
        return error.record
    except tz.TorchZipError as error:
        assert_type(error.message, str)
    return assert_type(tz.__version__, str)


def wrong(path: str, tensor: tz.LazyTensor) -> None:
    """What a type checker must refuse: without an error, the comment is the error."""
    tz.load(path, foreign="maybe")  # type: ignore[arg-type]
    tz.lazy_load(3)  # type: ignore[arg-type]
    tz.convert(path, path, jobs="all")  # type: ignore[arg-type]
    tz.convert(path, path, dtypes="float16")  # type: ignore[call-arg]
    lazy.cat(tensor)  # type: ignore[arg-type]
    tools.diff(path)  # type: ignore[call-arg]
    tensor.shape = (1,)  # type: ignore[misc]
