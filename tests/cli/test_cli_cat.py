"""``torchzip cat``: a tensor, a slice, a part, a value, as a user sees it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.child_process import python
from tests.cli.running import Capture, Command
from tests.formats.counting import Counted
from tests.saved import zipped_again
from torchzip.cli.histogram import histogram_lines
from torchzip.cli.indexing import parse_index
from torchzip.cli.main import main
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype
from torchzip.tools.array_text import tensor_text
from torchzip.tools.lookup import _below
from torchzip.tools.npy import write_npy
from torchzip.tools.value_text import value_lines
from torchzip.types import (
    Dtype,
    ForeignObject,
    MetaTensor,
    NestedTensor,
    QuantizedTensor,
    SparseTensor,
    TypedArray,
)

run = Command("cat")
shown = run.done


def save(value: Any) -> None:
    tz.save(value, "m.pt")


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- the index -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", (0,)),
        ("-1", (-1,)),
        (":10", (slice(10),)),
        ("3,:,::2", (3, slice(None), slice(None, None, 2))),
        ("...,0", (..., 0)),
        ("[1:2, None]", (slice(1, 2), None)),
        (" [ +3 , ] ", (3,)),
        ("::-1", (slice(None, None, -1),)),
    ],
)
def test_parse_index(text: str, expected: tuple[Any, ...]) -> None:
    """What numpy takes as a basic index."""
    assert parse_index(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"), ("[]", "empty"), ("0,,1", "empty"), (",", "empty"), ("a", "'a'"),
        ("1.5", "'1.5'"), ("[1", "bracket"), ("1]", "bracket"), ("[", "bracket"), ("::0", "step"),
        ("1:2:3:4", "3 colons"), ("...,...", "more than one"), ("0" * 20, "too large"),
        ("__import__('os')", "not an integer"), ("٣", "not an integer"), ("1_0", "not an integer"),
        ("0" + ",0" * 64, "65 items"),
    ],
)  # fmt: skip
def test_wrong_index(text: str, said: str, capsys: Capture) -> None:
    """Anything else: status 2, and what was wrong with it."""
    save({"w": np.zeros((3, 3))})
    err = run.says(2, capsys, "m.pt", "w", text)
    assert said in err


items = st.one_of(
    st.integers(-3, 2),
    st.just(...),
    st.none(),
    st.builds(
        slice, st.none() | st.integers(-4, 4), st.none() | st.integers(-4, 4),
        st.sampled_from([None, 1, 2, -1, -2]),
    ),
)  # fmt: skip


def index_text(item: Any) -> str:
    if isinstance(item, slice):
        ends = [item.start, item.stop, item.step]
        return ":".join("" if end is None else str(end) for end in ends)
    return "..." if item is ... else str(item)


@given(st.lists(items, min_size=1, max_size=5))
def test_any_index(index: list[Any]) -> None:
    """Numpy's answer, or an error where numpy has one."""
    array = np.arange(27, dtype=np.int32).reshape(3, 3, 3)
    tz.save({"w": array}, "m.pt")
    out = io.BytesIO()
    text = ",".join(map(index_text, index))
    try:
        expected = array[tuple(index)]
    except IndexError:
        assert main(["cat", "m.pt", "w", text]) == 2
        return
    assert main(["cat", "m.pt", "w", text, "--npy", "x.npy", "--force"]) == 0
    np.save(out, np.ascontiguousarray(expected).reshape(np.shape(expected)))
    assert Path("x.npy").read_bytes() == out.getvalue()


# -- tensors as text -----------------------------------------------------------------------------


def test_text(capsys: Capture) -> None:
    """A head line, and what numpy prints."""
    array = np.array([[1.5, -2.0], [np.nan, np.inf]], np.float32)
    save({"a": {"w": array}})
    assert shown(capsys, "m.pt", "a.w") == f"a.w: float32 [2, 2]\n{array}\n"
    assert shown(capsys, "m.pt", "a.w", "0,::-1") == "a.w[0,::-1]: float32 [2]\n[-2.   1.5]\n"
    assert shown(capsys, "m.pt", "a.w", "-1,:") == "a.w[-1,:]: float32 [2]\n[nan inf]\n"
    assert shown(capsys, "m.pt", "a.w", "[0,0]") == "a.w[0,0]: float32 []\n1.5\n"


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array(7), "int64 []\n7"),
        (np.zeros((0, 3)), "float64 [0, 3]\n[]"),
        (np.array([True, False]), "bool [2]\n[ True False]"),
        (np.array([1 + 2j], np.complex64), "complex64 [1]\n[1.+2.j]"),
        *(
            [(np.array([1 + 2j]).astype(numpy_dtype("complex32")), "complex32 [1]\n[1.+2.j]")]
            if has_numpy_dtype("complex32")
            else []
        ),
        (np.array([1, 0.1]).astype(ml_dtypes.bfloat16), "bfloat16 [2]\n[1.         0.10009766]"),
        (np.array([1, 0.1]).astype(ml_dtypes.float8_e4m3fn), None),
        (np.array([1.0]).astype(ml_dtypes.float8_e8m0fnu), "float8_e8m0fnu [1]\n[1.]"),
        (np.array([2**64 - 1], np.uint64), "uint64 [1]\n[18446744073709551615]"),
        (TypedArray(np.array([255], "u1"), "float4_e2m1fn_x2"), None),
        (TypedArray(np.array([7], "u2"), "bits16"), "bits16 [1] as raw bits\n[7]"),
    ],
)
def test_dtypes(array: Any, text: str | None, capsys: Capture) -> None:
    """Every kind of dtype; what numpy has not is shown by its bits."""
    save([array])
    out = shown(capsys, "m.pt", "0")
    if text is None:
        raw = isinstance(array, TypedArray)
        text = (
            "float4_e2m1fn_x2 [1] as raw bits\n[255]"
            if raw
            else "float8_e4m3fn [2]\n[1.        0.1015625]"
        )
    assert out == f"0: {text}\n"


def corner_cases() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((40, 7, 50)).astype(np.float32)
    return {
        "long": np.arange(5000),
        "matrix": base[0, :, :].repeat(50, 0),
        "three axes": base,
        "transposed": base.transpose(2, 0, 1),
        "steps": base[::3, ::2, ::-5][:, :, ::-1],
        "short axes": rng.standard_normal((2, 6, 5, 30)),
        "ones": rng.standard_normal((1, 1, 40, 1, 40, 1)),
        "broadcast": np.broadcast_to(base[:, :1], (40, 90, 50)),
        "ints": rng.integers(-(10**12), 10**12, (60, 60)),
        "complex": base + 1j * base,
        "bool": base > 0,
    }


@pytest.mark.few
@pytest.mark.parametrize("name", corner_cases())
def test_corners(name: str) -> None:
    """A summary is numpy's, letter for letter."""
    array = corner_cases()[name]
    save({"w": array})
    with tz.lazy_load("m.pt") as checkpoint:
        assert tensor_text(checkpoint["w"]) == np.array2string(array, max_line_width=80)
        assert tensor_text(checkpoint["w"], full=True) == np.array2string(
            array, max_line_width=80, threshold=array.size
        )


def test_corners_of_a_deflated_record() -> None:
    """Deflated bytes come in order; the summary is the same."""
    array = np.random.default_rng(0).integers(0, 9, (90, 50, 20)).astype(np.float32)
    save({"w": array})
    Path("m.pt").write_bytes(zipped_again(Path("m.pt").read_bytes(), zipfile.ZIP_DEFLATED))
    with tz.lazy_load("m.pt") as checkpoint:
        assert not checkpoint["w"].spec.storage.random_access
        assert tensor_text(checkpoint["w"]) == np.array2string(array, max_line_width=80)


def test_reads_the_corners_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tensor of 8 GB the bytes that are printed are read, and few others."""
    shape = (32, 1 << 16, 1 << 10)
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8 << 30]}}
    text = json.dumps(header).encode()
    with open("m.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (8 << 30))  # a hole
        file.seek(-4, io.SEEK_END)
        file.write(np.float32(7).tobytes())
    counted = Counted(monkeypatch)
    out = shown(capsys, "m.safetensors", "w")
    assert counted.nbytes < 10_000
    assert out.endswith("7.]]]\n")
    assert out.count("...") > 10


def test_conj(capsys: Capture) -> None:
    """A lazy conjugation is carried out, in the corners too."""
    numbers = np.arange(2000) * (1 + 1j)
    storage = b.persistent(numel=2000, kind=b.name("torch", "ComplexDoubleStorage"))
    made = b.tensor(storage, size=(2000,), extra={"conj": True})
    Path("m.pt").write_bytes(b.checkpoint(b.stream(made), {"0": numbers.tobytes()}))
    assert str(numbers.conj()) in shown(capsys, "m.pt")


def test_many_dimensions(capsys: Capture) -> None:
    """What nobody could read is refused before it is made."""
    made = b.tensor(size=(2,) * 60, stride=(0,) * 60)
    Path("m.pt").write_bytes(b.checkpoint(b.stream(made), {"0": bytes(16)}))
    err = run.says(2, capsys, "m.pt", "")
    assert "60 dimensions" in err
    err = run.says(2, capsys, "m.pt", "", "--full")
    assert "--npy" in err
    assert "[0. 0.]" in shown(capsys, "m.pt", "", ",".join(["0"] * 59))


# -- other kinds ---------------------------------------------------------------------------------


def test_sparse(capsys: Capture) -> None:
    """Its parts, each with a name that can be asked for."""
    coo = SparseTensor("sparse_coo", np.array([[0, 2]]), np.array([1.5, 2.5]), (4,), True)
    rows, columns = np.array([0, 1, 2]), np.array([1, 0])
    csr = SparseTensor("sparse_csr", (rows, columns), np.array([1.0, 2.0]), (2, 2))
    save({"s": coo, "c": csr})
    assert shown(capsys, "m.pt", "s").splitlines() == [
        "s: SparseTensor(sparse_coo, float64, shape=[4], nnz=2)",
        "s.indices: int64 [1, 2]", "[[0 2]]", "s.values: float64 [2]", "[1.5 2.5]",
    ]  # fmt: skip
    assert shown(capsys, "m.pt", "c.indices.1") == "c.indices.1: int64 [2]\n[1 0]\n"
    assert shown(capsys, "m.pt", "s.values", "1") == "s.values[1]: float64 []\n2.5\n"
    err = run.says(1, capsys, "m.pt", "s", "0")
    assert "s.indices, s.values" in err


def test_quantized(capsys: Capture) -> None:
    """The integers and the numbers that they stand for; slices are of the numbers."""
    save({"q": QuantizedTensor(np.array([3, 4], "uint8"), 0.5, 3)})
    assert shown(capsys, "m.pt", "q").splitlines() == [
        "q: QuantizedTensor(quint8, shape=[2], per_tensor_affine)",
        "q.int_repr: quint8 [2] as raw bits", "[3 4]", "q, dequantized: float32 [2]", "[0.  0.5]",
    ]  # fmt: skip
    assert shown(capsys, "m.pt", "q", "1") == "q[1]: float32 []\n0.5\n"
    assert "max        0.5" in shown(capsys, "m.pt", "q", "--stats")
    assert "int_repr[0]: quint8 [] as raw bits\n3\n" in shown(capsys, "m.pt", "q.int_repr", "0")


def test_meta_and_nested(capsys: Capture) -> None:
    """No data, and several tensors in one."""
    nested = NestedTensor("jagged", np.arange(5.0), np.array([0, 2, 5]))
    save({"m": MetaTensor("float32", (2, 3)), "n": nested})
    assert "no data" in shown(capsys, "m.pt", "m")
    assert "n.offsets: int64 [3]\n[0 2 5]" in shown(capsys, "m.pt", "n")
    status, _, err = run(capsys, "m.pt", "m", "--stats")
    assert (status, "no data" in err) == (1, True)


# -- other values --------------------------------------------------------------------------------

VALUES: dict[str, tuple[Any, str]] = {
    "epoch": (7, "7"),
    "lr": (0.1, "0.1"),
    "none": (None, "None"),
    "flag": (True, "True"),
    "name": ("resnet", "resnet"),
    "evil": ("a\x1b[31m\nb\u202e", "a\\x1b[31m\nb\\u202e"),
    "bytes": (b"ab\0", r"b'ab\x00'"),
    "betas": ((0.9, 0.999), "(0.9, 0.999)"),
    "list": ([1, "two"], "[1, 'two']"),
    "dtype": (Dtype("float16"), "torch.float16"),
    "empty": ({}, "{}"),
    "huge": (1 << 9000, str(1 << 9000)),
    "foreign": (ForeignObject("os", "system"), "<foreign os.system>"),
}


@pytest.mark.filterwarnings("ignore:torch.load")
@pytest.mark.parametrize("name", VALUES)
def test_values(name: str, capsys: Capture) -> None:
    """A value that is no tensor is printed as it is."""
    value, text = VALUES[name]
    save({"w": np.zeros(2), "deep": {"er": [value, {"x": value}]}, name: value})
    for path in (name, "deep.er.0", "deep.er.1.x"):
        assert shown(capsys, "m.pt", path) == f"{text}\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(2.5), "2.5"),
        (np.array(["a\x1b", "b"]), r"['a\x1b' 'b']"),
        (np.array([(1, 2.5)], "i4,f8"), "[(1, 2.5)]"),
        (np.array([1, 2], ">i2"), "[1 2]"),
        (np.array([{}, None], object), "[{} None]"),
        (np.array([1.5]).astype(ml_dtypes.bfloat16), "[1.5]"),
        ({3, 1}, "{1, 3}"),
        ({(1, 2)}, "set of 1\n  (1, 2)"),
        (frozenset(), "[]"),
        ((1,), "(1,)"),
        ([[1]], "list of 1\n  0  [1]"),
        ("x" * 200_000, "x" * 100_000 + "... (200,000 characters)"),
    ],
)
def test_odd_values(value: Any, text: str) -> None:
    """Arrays of numpy's own dtypes, sets, long texts."""
    assert "\n".join(value_lines(value)) == text


def test_many_children() -> None:
    """Of a container the first hundred are listed."""
    lines = value_lines({str(number): {number: number} for number in range(1000)})
    assert len(lines) == 102
    assert lines[-1] == "  ..."


def test_cycles() -> None:
    """A container that holds itself, and paths that go round in it."""
    loop: dict[str, Any] = {"step": 7}
    loop["self"] = loop
    assert value_lines(loop) == ["dict of 2", "  step  7", "  self  a dict"]
    found = _below(loop, "self.self.self.step")
    assert found == (7,)
    assert _below(loop, "self.self.nothing") is None


def test_containers(capsys: Capture) -> None:
    """The keys of a container, and of the object itself."""
    save({"w": np.zeros(2), "optimizer": {"state": {}, "groups": [{"lr": 0.1}]}, 3: "x"})
    assert shown(capsys, "m.pt", "optimizer") == (
        "dict of 2\n  state   an empty dict\n  groups  [a dict]\n"
    )
    assert shown(capsys, "m.pt", "optimizer.groups.0") == "dict of 1\n  lr  0.1\n"
    assert shown(capsys, "m.pt", "3") == "x\n"
    assert shown(capsys, "m.pt").splitlines()[0] == "dict of 3"


def test_names_with_dots(capsys: Capture) -> None:
    """Keys may have dots; what is no tensor is found all the same."""
    save({"a.b": {"c.d": 5}, "a": {"b": 6}, "w": np.zeros(1)})
    assert shown(capsys, "m.pt", "a.b.c.d") == "5\n"
    assert shown(capsys, "m.pt", "a") == "dict of 1\n  b  6\n"


def test_a_key_without_letters(capsys: Capture) -> None:
    """Without a NAME the whole object is shown, whatever lies under the key that is empty."""
    save({"": np.zeros(1), "epoch": 7})
    assert shown(capsys, "m.pt").split() == ["dict", "of", "2", "float64", "[1]", "epoch", "7"]
    assert shown(capsys, "m.pt", "").endswith(": float64 [1]\n[0.]\n")
    save(np.zeros(1))
    assert shown(capsys, "m.pt") == shown(capsys, "m.pt", "")
    assert "of 1 tensor\n" in run.says(1, capsys, "m.pt", "0")


def test_wrong_names(capsys: Capture) -> None:
    """What is near: tensors and values."""
    save({"weight": np.zeros(2), "epoch": 7})
    err = run.says(1, capsys, "m.pt", "epok")
    assert "did you mean 'epoch'" in err
    assert "did you mean 'weight'" in run(capsys, "m.pt", "wieght")[2]
    err = run.says(2, capsys, "m.pt", "epoch", "0")
    assert "7, not a tensor" in err


def test_index_out_of_bounds(capsys: Capture) -> None:
    """Status 2, and which axis."""
    save({"w": np.zeros((2, 3))})
    for index, said in (("5", "axis 0 of size 2"), ("0,0,0", "3 indices")):
        status, _, err = run(capsys, "m.pt", "w", index)
        assert (status, said in err) == (2, True)


# -- .npy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", corner_cases())
def test_npy(name: str, capsys: Capture) -> None:
    """The bytes of numpy.save."""
    array = corner_cases()[name]
    save({"w": array})
    assert shown(capsys, "m.pt", "w", "--npy", "x.npy") == ""
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array))
    assert Path("x.npy").read_bytes() == out.getvalue()


def test_npy_is_not_overwritten(capsys: Capture) -> None:
    """A file that is there stays, without --force."""
    save({"w": np.zeros(2), "v": np.ones(3)})
    shown(capsys, "m.pt", "w", "--npy", "x.npy")
    status, _, err = run(capsys, "m.pt", "v", "--npy", "x.npy")
    assert (status, "--force" in err) == (2, True)
    assert np.load("x.npy").shape == (2,)
    shown(capsys, "m.pt", "v", "--npy", "x.npy", "--force")
    assert np.load("x.npy").shape == (3,)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2", "float8_e8m0fnu"])
def test_npy_of_other_dtypes(dtype: str, capsys: Capture) -> None:
    """Numpy would read raw bits; so it is refused, and float32 holds every number."""
    array = np.array([1, 0.25, 8]).astype(getattr(ml_dtypes, dtype))
    save({"w": array})
    status, _, err = run(capsys, "m.pt", "w", "--npy", "x.npy")
    assert (status, Path("x.npy").exists()) == (1, False)
    assert "--dtype float32" in err
    shown(capsys, "m.pt", "w", "--npy", "x.npy", "--dtype", "float32")
    loaded = np.load("x.npy")
    assert (loaded.dtype, loaded.tolist()) == (np.float32, [1, 0.25, 8])


def test_npy_to_a_pipe() -> None:
    """``-`` is stdout, with nothing else in it."""
    save({"w": np.arange(6).reshape(2, 3)})
    command = [sys.executable, "-m", "torchzip", "cat", "m.pt", "w", "1", "--npy", "-"]
    made = subprocess.run(command, capture_output=True, check=True)
    assert np.load(io.BytesIO(made.stdout)).tolist() == [3, 4, 5]
    assert made.stderr == b""


def test_npy_is_no_text_for_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where stdout is a terminal."""
    save({"w": np.zeros(2)})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    err = run.says(2, capsys, "m.pt", "w", "--npy", "-")
    assert "terminal" in err


def test_npy_in_blocks() -> None:
    """A tensor is written in blocks, a transposed one too."""

    class Blocks(io.BytesIO):
        largest = 0

        def write(self, data: Any) -> int:
            self.largest = max(self.largest, memoryview(data).nbytes)
            return super().write(data)

    array = np.ones((2000, 3000), np.float32)
    save({"w": array})
    out = Blocks()
    with tz.lazy_load("m.pt") as checkpoint:
        write_npy(checkpoint["w"], out)
    assert out.largest <= 1 << 20
    assert len(out.getvalue()) == array.nbytes + 128


# -- statistics ----------------------------------------------------------------------------------

STATS = [
    "w: float32 [6]",
    "elements 6", "finite 4 66.7 %", "min -1", "max 2", "mean 0.25", "std 1.08972",
    "zeros 2 33.3 %, 1 of them -0.0", "NaN 1 16.7 %", "+Inf 1 16.7 %", "-Inf 0", "",
]  # fmt: skip


def test_stats(capsys: Capture) -> None:
    """A table and a histogram within 80 columns."""
    save({"w": np.array([0.0, -0.0, -1, 2, np.nan, np.inf], np.float32)})
    out = shown(capsys, "m.pt", "w", "--stats")
    assert [" ".join(line.split()) for line in out.splitlines()][: len(STATS)] == STATS
    assert "█" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "elements   1\n" in shown(capsys, "m.pt", "w", "2", "--stats")


def test_stats_json(capsys: Capture) -> None:
    """The same as JSON, without numbers that JSON has not."""
    save({"w": np.array([1.0, 3.0, np.nan])})
    found = json.loads(shown(capsys, "m.pt", "w", "--stats", "--json"), parse_constant=pytest.fail)
    assert (found["torch_dtype"], found["shape"], found["mean"], found["nans"]) == (
        "float64", [3], 2.0, 1,
    )  # fmt: skip


def test_stats_of_nothing(capsys: Capture) -> None:
    """No elements, and no finite ones: no histogram."""
    save({"e": np.zeros((0, 3)), "n": np.array([np.nan])})
    assert "min       -" in shown(capsys, "m.pt", "e", "--stats")
    assert "─" not in shown(capsys, "m.pt", "n", "--stats")


def test_stats_in_ascii() -> None:
    """Where the output has no blocks."""
    save({"w": np.arange(1000.0)})
    place = Path("m.pt").resolve()
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    out = python("-m", "torchzip", "cat", place, "w", "--stats", env=environment)
    assert "#" in out
    assert "\\u" not in out


@given(st.lists(st.integers(0, 10**18), min_size=1, max_size=64), st.booleans())
def test_histogram_lines(counts: list[int], blocks: bool) -> None:
    """It fits, and every bin that is not empty can be seen."""
    counts[0] = counts[0] or 1
    lines = histogram_lines(counts, ("-1.23457e+100", "1.23457e+100"), blocks=blocks)
    assert max(map(len, lines)) <= 80
    lowest = lines[-3].ljust(80)
    start = lines[-2].index("└" if blocks else "+") + 1
    bar = max(1, min(8, 64 // len(counts)))
    for place, count in enumerate(counts):
        assert (lowest[start + place * bar] != " ") == (count > 0)


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("most", [3, 999_999_999, 10**15])
@pytest.mark.parametrize("bins", [1, 7, 61, 64])
def test_histogram_on_a_narrow_screen(width: int, most: int, bins: int) -> None:
    """A line that the terminal wraps tears the plot apart, so bins are put together."""
    lines = histogram_lines([most] * bins, ("-1.5", "1.5"), width=width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 8
    assert lines[-3].count("█") >= min(bins, 13)


# -- usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [["--json"], ["--dtype", "float32"], ["--force"], ["--npy", "x", "--stats"],
     ["--npy", "x", "--full"], ["--npy", "x", "--dtype", "int8"], ["--npy", "x", "--dtype", "no"]],
)  # fmt: skip
def test_wrong_usage(options: list[str], capsys: Capture) -> None:
    """Options that do not go together."""
    save({"w": np.zeros(2)})
    run.says(2, capsys, "m.pt", "w", *options)
    assert not Path("x").exists()


def test_options_anywhere(capsys: Capture) -> None:
    """Before, between and behind FILE, NAME and SLICE; ``--`` for a name with a dash."""
    save({"w": np.arange(6).reshape(2, 3), "-v": np.zeros(1)})
    expected = shown(capsys, "m.pt", "w", "-1", "--stats")
    for order in ("--stats m.pt w -1", "m.pt --stats w -1", "m.pt w --stats -1"):
        assert shown(capsys, *order.split()) == expected
    assert shown(capsys, "m.pt", "--", "-v").startswith("-v: float64")
