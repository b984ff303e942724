"""Conversions, without torch: what comes out, what is said to be lost, what is refused."""

from __future__ import annotations

import io
import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.pickling.test_interpreter_refusals import colliding_pairs
from torchzip.convert.targets import parse_target


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a small nested checkpoint with a tie, a view, ints and plain values."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    tied = np.linspace(-3, 3, 10, dtype=np.float64)
    path = tmp_path / "model.pt"
    tz.save(
        {
            "net": OrderedDict(weight=base, transposed=base.T, rows=base[1:3]),
            "head": tied,
            "tail": tied,
            "steps": np.arange(5),
            "epoch": 3,
            "names": ["a", "b"],
        },
        path,
    )
    return path


def test_from_a_file_object(model: Path, tmp_path: Path) -> None:
    """As `load` takes one; the report has its name."""
    with open(model, "rb") as file:
        report = tz.convert(file, tmp_path / "a.pt")
    assert report.source == str(model)
    report = tz.convert(io.BytesIO(model.read_bytes()), tmp_path / "b.pt", jobs=2)
    assert report.source == "<BytesIO>"
    assert tz.tools.diff(model, tmp_path / "a.pt").is_equal
    assert tz.tools.diff(model, tmp_path / "b.pt").is_equal


def test_a_dry_run_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """Neither the directory that was asked for, nor what `map` has made."""

    def double(name: str, tensor: tz.LazyTensor) -> list[tuple[str, Any]]:
        return [(name, tensor.numpy() * 2)]

    report = tz.convert(model, f"{tmp_path}/new/", map=double, dry_run=True)
    assert report.target == str(tmp_path / "new" / "model.safetensors")
    assert [row.nbytes for row in report.rows] == [96, 96, 48, 80, 80, 40]
    assert list(tmp_path.iterdir()) == [model]
    with pytest.raises(ValueError, match="would both be called"):
        tz.convert(model, tmp_path / "o.pt", rename=lambda name: "w", dry_run=True)


def test_to_safetensors(model: Path, tmp_path: Path) -> None:
    """Floats are cast, ints are not, a tie is data once and a name in the metadata."""
    report = tz.convert(model, tmp_path / "out.safetensors", dtype="bfloat16")
    source = tz.load(model)
    with tz.lazy_load(tmp_path / "out.safetensors") as ckpt:
        assert ckpt.format == "safetensors"
        assert set(ckpt) == {"net.weight", "net.transposed", "net.rows", "head", "steps"}
        assert json.loads(ckpt.metadata["torchzip.aliases"]) == {"tail": "head"}
        assert ckpt.metadata["format"] == "pt"
        for name, array in (
            ("net.weight", source["net"]["weight"]),
            ("net.transposed", source["net"]["transposed"]),
            ("net.rows", source["net"]["rows"]),
            ("head", source["head"].astype(np.float32)),
        ):
            assert ckpt[name].torch_dtype == "bfloat16"
            expected = np.ascontiguousarray(array.astype(ml_dtypes.bfloat16))
            assert ckpt[name].numpy().tobytes() == expected.tobytes()
        assert np.array_equal(ckpt["steps"].numpy(), np.arange(5))
    (lost,) = report.lost
    assert lost.startswith("net.weight, net.transposed, net.rows: views of one storage")


def test_safetensors_bytes_are_the_packages(tmp_path: Path) -> None:
    """For contiguous tensors the file is what the safetensors package writes."""
    package = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(2)
    arrays = {
        f"{kind}.{i}": rng.integers(0, 100, (i, 3)).astype(kind)
        for kind in ("float32", "int64", "uint8", "float16", "bool", "float64", "int16")
        for i in range(3)
    }
    package.save_file(arrays, tmp_path / "order.safetensors")
    with tz.lazy_load(tmp_path / "order.safetensors") as ckpt:
        tz.save({name: arrays[name] for name in ckpt}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "ours.safetensors")
    package.save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


@given(
    st.dictionaries(
        st.text("ab.1é", max_size=4), st.sampled_from(["f4", "f8", "i2", "u1", "f2"]), max_size=6
    ),
    st.sampled_from(["o.safetensors", "o.safetensors.index.json", "o.pt.index.json"]),
    st.sampled_from([{}, {"map": lambda name, tensor: [(name, tensor)]}, {"dtype": "float16"}]),
    st.booleans(),
)
@example({"1": "u1"}, "o.safetensors.index.json", {}, False)  # its total_size is 1
def test_the_order_of_a_flat_dict(
    tmp_path_factory: pytest.TempPathFactory, names: dict[str, str], middle: str, options: Any,
    tied: bool,
) -> None:  # fmt: skip
    """A dict of tensors comes back in its order, whatever order the file has."""
    folder = tmp_path_factory.mktemp("order")
    source: dict[str, Any] = {
        name: np.arange(number + 1).astype(dtype)
        for number, (name, dtype) in enumerate(names.items())
    }
    if tied and source:
        source["a.tied"] = source[next(iter(source))]
    tz.save(source, folder / "m.pt")
    tz.convert(folder / "m.pt", folder / middle, **options)
    tz.convert(folder / middle, folder / "again.safetensors")
    for file in (middle, "again.safetensors"):
        report = tz.convert(folder / file, folder / "back.pt", overwrite=True)
        assert report.lost == ()
        back = tz.load(folder / "back.pt")
        assert list(back) == list(source)
        assert all(np.array_equal(back[name], source[name]) for name in source)


def test_an_order_that_is_not_the_files_any_more(tmp_path: Path) -> None:
    """Tensors that another program has added come last, and one that it removed is not missed."""
    package = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.full(2, number) for number, name in enumerate("cab")}
    tz.save(arrays, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    with tz.lazy_load(tmp_path / "m.safetensors") as ckpt:
        metadata = dict(ckpt.metadata)
    del arrays["a"]
    package.save_file(arrays | {"0": np.ones(1)}, tmp_path / "m.safetensors", metadata=metadata)
    report = tz.convert(tmp_path / "m.safetensors", tmp_path / "back.pt")
    assert report.lost == ()
    assert list(tz.load(tmp_path / "back.pt")) == ["c", "b", "0"]


def test_there_and_back(model: Path, tmp_path: Path) -> None:
    """From .pt to .safetensors to .pt the tensors are equal and the tie is a tie again."""
    tz.convert(model, tmp_path / "there.safetensors")
    tz.convert(tmp_path / "there.safetensors", tmp_path / "back.pt")
    source, back = tz.load(model), tz.load(tmp_path / "back.pt")
    assert back["head"] is back["tail"]
    assert type(back["net"]) is OrderedDict
    assert np.array_equal(back["net"]["transposed"], source["net"]["transposed"])
    assert back["net"]["transposed"].strides == source["net"]["transposed"].strides
    assert back["head"].dtype == np.float64
    assert (back["epoch"], back["names"]) == (3, ["a", "b"])


def test_to_zip_keeps_structure(model: Path, tmp_path: Path) -> None:
    """A .pt keeps containers, plain values, ties, views and strides; only the dtype changes."""
    report = tz.convert(model, tmp_path / "out.pt", dtype="float16")
    assert report.lost == ()
    source, out = tz.load(model), tz.load(tmp_path / "out.pt")
    assert list(out) == list(source)
    assert type(out["net"]) is OrderedDict
    assert (out["epoch"], out["names"]) == (3, ["a", "b"])
    assert out["head"] is out["tail"]
    weight, transposed = out["net"]["weight"], out["net"]["transposed"]
    assert np.shares_memory(weight, transposed)
    assert transposed.strides == (2, 12)
    assert np.array_equal(weight, source["net"]["weight"].astype(np.float16))
    assert out["steps"].dtype == np.int64


def test_zip_bytes_are_those_of_save(tmp_path: Path) -> None:
    """A converted .pt is the file that `save` writes of the cast arrays."""
    arrays = {f"layer.{i}": np.random.default_rng(i).standard_normal((3, 5)) for i in range(40)}
    tz.save(arrays, tmp_path / "m.pt")
    (tmp_path / "out").mkdir()
    tz.convert(tmp_path / "m.pt", tmp_path / "out" / "m.pt", dtype="float32")
    tz.save({name: array.astype(np.float32) for name, array in arrays.items()}, tmp_path / "m.pt")
    assert (tmp_path / "out" / "m.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def test_without_dtype_nothing_changes(tmp_path: Path) -> None:
    """A file that torch wrote is the same after a conversion to its own format and name."""
    for file in ("plain.pt", "views.pt", "tied.pt", "many.pt"):
        tz.convert(b.GOLDEN / file, tmp_path / file)
        source, out = tz.load(b.GOLDEN / file), tz.load(tmp_path / file)
        assert str(source) == str(out)


def test_rules_first_match_wins(model: Path, tmp_path: Path) -> None:
    """Rules are tried in their order, and a storage whose tensors part ways is split."""
    tz.convert(
        model,
        tmp_path / "out.pt",
        dtype=[("net.rows", "float64"), ("net.*", "bfloat16"), ("*", "float16")],
    )
    with tz.lazy_load(tmp_path / "out.pt") as ckpt:
        dtypes = {name: ckpt[name].torch_dtype for name in ckpt}
        rows, weight = ckpt["net.rows"].numpy(), ckpt["net.weight"].numpy()
    assert dtypes == {
        "net.weight": "bfloat16",
        "net.transposed": "bfloat16",
        "net.rows": "float64",
        "head": "float16",
        "tail": "float16",
        "steps": "int64",
    }
    source = tz.load(model)["net"]["weight"]
    assert np.array_equal(rows, source[1:3].astype(np.float64))
    assert weight.tobytes() == source.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize("dtype", ["int8", "complex64", "quint8"])
def test_only_floats_are_targets(model: Path, tmp_path: Path, dtype: str) -> None:
    """A dtype that is none of the floating ones is a mistake of the caller."""
    with pytest.raises(ValueError, match="floating"):
        tz.convert(model, tmp_path / "out.pt", dtype=dtype)
    with pytest.raises(ValueError, match="not a torch dtype"):
        tz.convert(model, tmp_path / "out.pt", dtype="bfloat17")
    assert not (tmp_path / "out.pt").exists()


def test_target_must_not_exist(model: Path, tmp_path: Path) -> None:
    """An existing file is overwritten only on demand, and may be the source itself."""
    (tmp_path / "out.pt").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        tz.convert(model, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_bytes() == b"precious"
    before = tz.load(model)
    tz.convert(model, model, dtype="float16", overwrite=True)
    assert np.array_equal(tz.load(model)["head"], before["head"].astype(np.float16))


def test_damage_is_not_passed_on(model: Path, tmp_path: Path) -> None:
    """A source that ends early is an error and leaves no target."""
    data = model.read_bytes()
    model.write_bytes(data[: len(data) - 100])
    with pytest.raises(tz.TorchZipError, match=r"model\.pt"):
        tz.convert(model, tmp_path / "out.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


def test_suffix_decides() -> None:
    """The suffix of the target says what is written, and an unknown one is an error."""
    assert parse_target("a.safetensors").output.format == "safetensors"
    suffixes = (".pt", ".PTH", ".bin", ".ckpt")
    assert {parse_target(f"a{suffix}").output.format for suffix in suffixes} == {"zip"}
    with pytest.raises(ValueError, match="suffix"):
        parse_target("a.onnx")


def test_dtypes_without_a_safetensors_code(tmp_path: Path) -> None:
    """What safetensors cannot hold is named, and nothing is written."""
    tz.save({"z": np.zeros(2, np.complex128)}, tmp_path / "a.pt")
    with pytest.raises(tz.UnsupportedError, match=r"z: safetensors has no dtype"):
        tz.convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_other_kinds_are_kept_or_said(tmp_path: Path) -> None:
    """A sparse tensor passes through a .pt as it is, and is named as lost by safetensors."""
    report = tz.convert(b.GOLDEN / "sparse.pt", tmp_path / "out.safetensors", dtype="float16")
    assert any("s: a sparse coo tensor" in text for text in report.lost)
    tz.convert(b.GOLDEN / "sparse.pt", tmp_path / "out.pt", dtype="float16")
    with tz.lazy_load(tmp_path / "out.pt") as ckpt:
        assert ckpt["w"].torch_dtype == "float16"
        sparse: Any = ckpt["s"]
        assert (sparse.indices.torch_dtype, sparse.torch_dtype) == ("int64", "float32")
        assert sparse.todense().tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("target", ["a.pt", "new/", "a.safetensors.index.json"])
def test_progress_that_fails_at_the_end(model: Path, tmp_path: Path, target: str) -> None:
    """The callback's last call comes before any file has its name, so its error undoes all."""
    before = sorted(tmp_path.iterdir())

    def fail(done: int, total: int) -> None:
        if done == total:
            raise KeyError("of the caller")

    with pytest.raises(KeyError):
        tz.convert(model, f"{tmp_path}/{target}", progress=fail)
    assert sorted(tmp_path.iterdir()) == before


def test_strided_tensors_become_contiguous(tmp_path: Path) -> None:
    """Transposed, sliced, expanded and conjugated tensors have their values in safetensors."""
    for file in ("views.pt", "conj.pt"):
        tz.convert(b.GOLDEN / file, tmp_path / f"{file}.safetensors")
        source, out = tz.load(b.GOLDEN / file), tz.load(tmp_path / f"{file}.safetensors")
        aliases = set(source) - set(out)
        assert not aliases
        for name in out:
            assert np.array_equal(out[name], source[name])
            assert out[name].flags.c_contiguous


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """No safetensors file can hold a name with surrogates, which a pickle can; a .pt can."""
    tz.save({"\ud800": np.ones(2), "epoch": 3}, tmp_path / "in.pt")
    with pytest.raises(
        tz.UnsupportedError, match=r"name \('\\ud800'\) is not valid Unicode, .*; rename"
    ):
        tz.convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    tz.convert(tmp_path / "in.pt", tmp_path / "out.pt")
    assert tz.load(tmp_path / "out.pt").keys() == {"\ud800", "epoch"}


def test_layouts_of_one_hash_cost_no_time(tmp_path: Path) -> None:
    """Strides whose tuples have one hash are told apart as quickly as others."""
    strides = colliding_pairs(4_000)
    storage = b.persistent() + b"q\x05"
    first, *others = strides
    tensors = [b.text("first") + b.tensor(storage, size=(1, 1), stride=first)]
    tensors += [
        b.text(str(stride)) + b.tensor(b"h\x05", size=(1, 1), stride=stride) for stride in others
    ]
    (tmp_path / "in.pt").write_bytes(b.checkpoint(b.stream(b"}(", *tensors, b"u")))
    before = time.process_time()
    tz.convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    tz.convert(tmp_path / "in.pt", tmp_path / "out.pt")
    assert time.process_time() - before < 3  # 5 to 10 seconds where each is compared with each
