"""GGUF files, with the ``gguf`` package as the judge: the same bytes written, the same read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.sampling import costly
from torchzip.checkpoint.outline import outline
from torchzip.dtypes import BLOCKS

gguf = pytest.importorskip("gguf")

#: The dtypes of numpy that the package's writer takes.
_DTYPES = ["f4", "f2", "f8", "i1", "i2", "i4", "i8"]
_BLOCKS = ["Q8_0", "Q4_0"]

#: Values, and how the package's writer is asked for each.
_VALUES: dict[str, tuple[Any, str]] = {
    "llama.block_count": (32, "uint32"),
    "llama.neg": (-5, "int32"),
    "llama.eps": (1e-5, "float32"),
    "general.name": ("é name", "string"),
    "tokenizer.add": (True, "bool"),
    "tokenizer.tokens": (["a", "", "重"], "array"),
    "tokenizer.types": ([1, 2, -3], "array"),
    "tokenizer.scores": ([0.5, -1.25], "array"),
    "x.u8": (np.uint8(3), "uint8"),
    "x.i8": (np.int8(-3), "int8"),
    "x.u16": (np.uint16(3), "uint16"),
    "x.i16": (np.int16(3), "int16"),
    "x.u64": (np.uint64(1 << 63), "uint64"),
    "x.i64": (np.int64(-(1 << 40)), "int64"),
    "x.f64": (np.float64(0.1), "float64"),
}


def by_package(
    path: Path, tensors: dict[str, Any], values: dict[str, tuple[Any, str]], blocks: str = ""
) -> bytes:
    """Return what the package writes, with all that fits in blocks."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind) in values.items():
        getattr(writer, f"add_{kind}")(key, value)
    for name, array in tensors.items():
        array = np.ascontiguousarray(array).reshape(array.shape or (1,))
        if blocks and array.ndim > 1 and array.shape[-1] % 32 == 0 and array.dtype.kind == "f":
            kind = gguf.GGMLQuantizationType[blocks]
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def tree(seed: int) -> dict[str, Any]:
    """Return arrays of all dtypes that both can write."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for index in range(12):
        shape = tuple(rng.integers(1, 5, rng.integers(0, 4)).tolist())
        if index % 2:
            shape = (*shape, int(rng.integers(1, 4)) * 32)
        numbers = np.asarray(rng.standard_normal(shape) * 50, _DTYPES[index % len(_DTYPES)])
        made[f"blk.{index}.weight"] = numbers
    made["token_embd.weight"] = rng.standard_normal((600, 96)).astype("f4")  # cut in pieces
    made["strided"] = rng.standard_normal((64, 40)).astype("f2").T
    return made


@costly
@given(st.integers(0, 1000), st.sampled_from(["", *_BLOCKS]))
def test_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, seed: int, blocks: str) -> None:
    """As the package's writer for the same tensors and values, whatever the source."""
    folder, tensors = tmp_path_factory.mktemp("gguf"), tree(seed)
    expected = by_package(folder / "a.gguf", tensors, _VALUES, blocks)
    metadata = {"general.architecture": "llama"} | {k: value for k, (value, _) in _VALUES.items()}
    tz.save(tensors, folder / "b.pt")
    tz.convert(folder / "b.pt", folder / "b.gguf", metadata=metadata, dtype=blocks.lower() or None)
    assert (folder / "b.gguf").read_bytes() == expected
    # What was read of it is written again: types of values, and codes, stay what they are.
    tz.convert(folder / "a.gguf", folder / "c.gguf")
    assert (folder / "c.gguf").read_bytes() == expected


def test_alignment(tmp_path: Path) -> None:
    """Another alignment is one of the values."""
    tensors = {"a": np.arange(3, dtype="f4"), "b": np.arange(5, dtype="f2")}
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "x")
    writer.add_custom_alignment(64)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {"general.architecture": "x", "general.alignment": 64}
    tz.convert(tensors, tmp_path / "b.gguf", metadata=metadata)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_its_reader_reads_every_float(tmp_path: Path, dtype: str) -> None:
    """With the bits of what was cast; and torchzip reads them back."""
    tensors = tree(3)
    tz.save(tensors, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "a.gguf", dtype=dtype)
    tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", dtype=dtype)
    back, expected = tz.load(tmp_path / "a.gguf"), tz.load(tmp_path / "b.pt")
    found = {each.name: each for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert back.keys() == expected.keys() == found.keys() == tensors.keys()
    for name, array in expected.items():
        assert back[name].tobytes() == array.tobytes() == found[name].data.tobytes()
        assert back[name].dtype == array.dtype
        assert [*reversed(found[name].shape)] == [*back[name].shape] == [*(array.shape or (1,))]


def test_codes_of_odd_numbers(tmp_path: Path) -> None:
    """Zeros, halves between two codes, the smallest and the largest numbers, a single row."""
    rows = np.zeros((8, 64), "f4")
    rows[1] = np.arange(64) - 31.5
    rows[2, :32], rows[2, 32:] = 1e-44, -3e38
    rows[3] = np.linspace(-127, 127, 64)
    rows[4, 5], rows[4, 6] = 7, -7  # the first of two of one magnitude decides
    rows[5] = np.float32(6e4) * np.sign(np.arange(64) - 30)
    rows[6] = -0.0
    rows[7] = np.arange(64) / 2
    tz.save({"w": rows}, tmp_path / "a.pt")
    for blocks in _BLOCKS:
        with np.errstate(all="ignore"):
            expected = by_package(tmp_path / "a.gguf", {"w": rows}, {}, blocks)
            numbers = gguf.quants.dequantize(
                gguf.quants.quantize(rows, gguf.GGMLQuantizationType[blocks]),
                gguf.GGMLQuantizationType[blocks],
            )
        tz.convert(
            tmp_path / "a.pt", tmp_path / "b.gguf", dtype=blocks.lower(), overwrite=True,
            metadata={"general.architecture": "llama"},
        )  # fmt: skip
        assert (tmp_path / "b.gguf").read_bytes() == expected
        with tz.lazy_load(tmp_path / "b.gguf") as checkpoint:
            np.testing.assert_array_equal(checkpoint["w"].numpy(), numbers)
            np.testing.assert_array_equal(checkpoint["w"][2:5, 7:50], numbers[2:5, 7:50])
            assert checkpoint.verify().tensors == 1


def coded_file(path: Path) -> dict[str, Any]:
    """Write a tensor of any codes for each type of blocks; return the codes by their types."""
    rng = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    made: dict[str, Any] = {}
    for block, row in BLOCKS.items():
        made[block] = rng.integers(0, 256, (700, 3 * row.nbytes), dtype=np.uint8)
        kind = gguf.GGMLQuantizationType[block.upper()]
        assert (row.gguf, row.elements, row.nbytes) == (kind, *gguf.GGML_QUANT_SIZES[kind])
        writer.add_tensor(f"blk.{block}", made[block], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def test_all_blocks_are_read(tmp_path: Path) -> None:
    """Numbers of all types are the package's to the bit, or the error names tensor and type."""
    codes = coded_file(tmp_path / "a.gguf")
    with tz.lazy_load(tmp_path / "a.gguf") as checkpoint:
        for block, raw in codes.items():
            tensor = checkpoint[f"blk.{block}"]
            assert (tensor.torch_dtype, tensor.shape[0]) == ("float32", 700)
            if block.startswith(("iq", "tq", "mx", "q8_k")):
                told = rf"blk\.{block}: numbers of the GGUF type {block} are not decoded"
                with pytest.raises(tz.UnsupportedError, match=told):
                    tensor.numpy()
                continue
            found = tensor.numpy()
            with np.errstate(all="ignore"):
                kind = gguf.GGMLQuantizationType[block.upper()]
                expected = gguf.quants.dequantize(raw, kind)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(tensor[600:602, 5:77], expected[600:602, 5:77])


def test_blocks_are_listed_and_copied_as_they_are(tmp_path: Path) -> None:
    """By their types and the bytes of their codes; a cast needs numbers."""
    codes = coded_file(tmp_path / "a.gguf")
    with tz.lazy_load(tmp_path / "a.gguf") as checkpoint:
        found = outline(checkpoint)
        assert checkpoint.verify().nbytes == found.stored_nbytes
    assert {row.dtype: row.nbytes for row in found.tensors} == {
        block: raw.nbytes for block, raw in codes.items()
    }
    assert found.nbytes == found.stored_nbytes == sum(raw.nbytes for raw in codes.values())
    sizes = tz.tools.why_big(tmp_path / "a.gguf")
    assert {part.kind: part.nbytes for part in sizes.parts}["tensors"] == found.nbytes
    assert sum(part.nbytes for part in sizes.parts) == sizes.nbytes
    tz.convert(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    assert tz.tools.diff(tmp_path / "a.gguf", tmp_path / "b.gguf").equal == len(codes)
    raw = bytearray((tmp_path / "b.gguf").read_bytes())
    raw[-40] ^= 1  # of mxfp4, which is last
    (tmp_path / "b.gguf").write_bytes(raw)
    differ = tz.tools.diff(tmp_path / "a.gguf", tmp_path / "b.gguf").changed
    assert [(each.before.torch_dtype, each.what) for each in differ] == [("mxfp4", ("codes",))]
    with pytest.raises(tz.UnsupportedError, match=r"blk\.q8_k: numbers of the GGUF type q8_k"):
        tz.convert(tmp_path / "a.gguf", tmp_path / "c.safetensors", include="*k")
    with pytest.raises(ValueError, match="q4_k is read and not written; one of q8_0, q4_0, "):
        tz.convert(tmp_path / "a.gguf", tmp_path / "c.gguf", dtype="q4_k")
    with pytest.raises(ValueError, match=r"only a \.gguf file has q4_k"):
        tz.convert(tmp_path / "a.gguf", tmp_path / "c.pt", dtype="q4_k")
    tz.convert(tmp_path / "a.gguf", tmp_path / "c.safetensors", include="*.q?_k", exclude="*.q8_k")
    with tz.lazy_load(tmp_path / "c.safetensors") as checkpoint:
        assert list(checkpoint) == [f"blk.q{bits}_k" for bits in (2, 3, 4, 5, 6)]


def test_values_are_read_as_they_were(tmp_path: Path) -> None:
    """By their keys, in `Checkpoint.metadata`, with their types."""
    by_package(tmp_path / "a.gguf", {"w": np.ones(3, "f4")}, _VALUES)
    with tz.lazy_load(tmp_path / "a.gguf") as checkpoint:
        assert list(checkpoint.metadata) == ["general.architecture", *_VALUES]
        for key, (value, kind) in _VALUES.items():
            found = checkpoint.metadata[key]
            if kind == "array":
                assert [*found] == value
            else:
                assert found == (np.float32(value) if kind == "float32" else value)
                assert kind in ("string", "bool") or found.dtype == kind


def test_what_ggml_does_not_read_is_said(tmp_path: Path) -> None:
    """Names, dimensions and dtypes are refused with what to do; tensors without elements go."""
    target = tmp_path / "a.gguf"
    for tensors, message in (
        ({"x" * 64: np.ones(3)}, "64 bytes.*--rename"),
        ({"x": np.ones((1, 1, 1, 1, 1))}, "5 dimensions.*--exclude"),
        ({"a b": np.ones(3, bool)}, "no bool; leave the tensor out: --exclude 'a b'"),
        ({"x": np.ones(3, "u1")}, "no uint8"),
    ):
        with pytest.raises(tz.UnsupportedError, match=message):
            tz.convert(tensors, target)
    report = tz.convert({"e": np.ones((0, 3)), "s": np.ones((), "f4")}, target)
    assert report.lost == (
        "e: no elements, which ggml does not read",
        "s: a shape without dimensions, which becomes [1]",
    )
    assert list(tz.load(target)) == ["s"]
