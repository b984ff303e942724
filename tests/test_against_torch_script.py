"""TorchScript and .pt2 archives that torch writes: names, order, bits and flags are torch's own."""

from __future__ import annotations

import enum
import io
import json
import logging
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, List, Optional, Tuple  # noqa: UP035 - what torch.jit understands

import numpy as np
import pytest

import torchzip as tz
from tests.comparing import array_of, assert_same_array, assert_same_tensor
from tests.saved import quiet
from tests.torch_oracle import QUANTIZED_DTYPES, TENSOR_DTYPES, asks_torch

torch: Any = pytest.importorskip("torch")
nn: Any = torch.nn

pytestmark = asks_torch(
    ".*torch.jit:DeprecationWarning", ".*TracerWarning", "ComplexHalf support is experimental",
    "torch.quantize_per_tensor", ":DeprecationWarning", ":FutureWarning", ":UserWarning",
)  # fmt: skip


def assert_same(ckpt: tz.Checkpoint, expected: dict[str, Any]) -> None:
    """Compare names, order, and each tensor's fields and bits."""
    assert list(ckpt) == list(expected)
    for name, tensor in expected.items():
        assert_same_tensor(ckpt[name], tensor, name)
        assert ckpt[name].requires_grad == tensor.requires_grad, name


def same_ties(ckpt: tz.Checkpoint, expected: dict[str, Any]) -> None:
    """Compare which names share a storage."""
    ours = [id(ckpt[name].spec.storage) for name in expected]
    theirs = [tensor.untyped_storage()._cdata for tensor in expected.values()]
    assert [ours.index(each) for each in ours] == [theirs.index(each) for each in theirs]


# -- TorchScript -----------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Pair:
    """A script class: its tensor is no part of a state dict."""

    def __init__(self, a: torch.Tensor, b: int) -> None:
        self.a = a
        self.b = b


class Scale(nn.Module):  # type: ignore[misc]
    def __init__(self, n: int = 2) -> None:
        super().__init__()
        self.plain = torch.arange(3.0)
        self.register_buffer("count", torch.tensor(n))
        self.weight = nn.Parameter(torch.ones(n) * n, requires_grad=n != 3)
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Everything(nn.Module):  # type: ignore[misc]
    """One attribute of each kind that TorchScript knows."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Scale(5)
        self.color = Color.BLUE
        self.pair = Pair(torch.zeros(3), 4)
        self.tensors = [torch.ones(1), torch.zeros(2)]
        self.table = {"a": torch.ones(3)}
        self.numbers = {1: 2.0}
        self.texts = ["a", "bc"]
        self.floats = [1.5]
        self.flags = [True]
        self.maybe = torch.jit.Attribute([None, 1], List[Optional[int]])  # noqa: UP006, UP045
        self.mixed = (torch.ones(1), 2, "x")
        self.complex = 1 + 2j
        self.device = torch.device("cuda:1")
        self.large = 1 << 40
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.arange(12.0).reshape(3, 4).t())
        self.register_buffer("none", None)
        self.register_buffer("conj", torch.tensor([1 + 2j, 3j]).conj())
        self.register_buffer("neg", torch.tensor([1 + 2j, 3j]).conj().imag)
        self.kind = torch.float16
        self.first = Scale(3)
        self.modules_ = nn.ModuleList([Scale(2), Scale(3), nn.Linear(2, 2, bias=False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.color == Color.RED:
            return x
        return self.first(x) + self.pair.a.sum() + self.tensors[0] + self.table["a"].sum()


class Tied(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        base = torch.arange(24.0)
        self.register_buffer("whole", base.reshape(4, 6))
        self.register_buffer("part", base.reshape(4, 6)[1:3, ::2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


class Params(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(3))])
        self.dict = nn.ModuleDict({"a.b".replace(".", "_"): Scale(2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.list[0]


class Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.norm = nn.Sequential(nn.BatchNorm1d(8), nn.LayerNorm(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: Tuple[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]] = self.lstm(x)  # noqa: UP006
        return self.norm(out[0].reshape(-1, 8))


class OwnState(nn.Module):  # type: ignore[misc]
    """A module that is restored by code of its own, and has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = torch.arange(4)

    @torch.jit.export  # type: ignore[untyped-decorator]
    def __getstate__(self) -> Tuple[torch.Tensor, bool]:  # noqa: UP006
        return self.packed, self.training

    @torch.jit.export  # type: ignore[untyped-decorator]
    def __setstate__(self, state: Tuple[torch.Tensor, bool]) -> None:  # noqa: UP006
        self.packed = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.packed


class OddNames(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        for name in ("ä", "x y", "0"):
            self.register_buffer(name, torch.ones(2))
        self.register_parameter("a'b", nn.Parameter(torch.ones(1)))
        self.add_module("mod-x", nn.Linear(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _quantized() -> Any:
    from torch.ao.quantization import quantize_dynamic

    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    return torch.jit.script(quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8))


def _traced(model: Any, *inputs: Any) -> Any:
    with quiet():
        return torch.jit.trace(model.eval(), inputs)


SCRIPTS: dict[str, Callable[[], Any]] = {
    "everything": lambda: torch.jit.script(Everything()),
    "tied": lambda: torch.jit.script(Tied()),
    "tied, traced": lambda: _traced(Tied(), torch.arange(3)),
    "parameter list": lambda: torch.jit.script(Params()),
    "recurrent": lambda: torch.jit.script(Recurrent()),
    "recurrent, traced": lambda: _traced(Recurrent(), torch.ones(2, 3, 3)),
    "convolutions": lambda: torch.jit.script(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.PReLU()))
    ),
    "two of a class": lambda: torch.jit.script(nn.Sequential(Scale(2), Scale(3), Scale(2))),
    "a state of its own": lambda: torch.jit.script(nn.Sequential(OwnState(), nn.Linear(2, 2))),
    "one module twice": lambda: torch.jit.script(nn.Sequential(*[nn.Linear(2, 2)] * 2)),
    "odd names": lambda: _traced(OddNames(), torch.ones(1)),
    "a function": lambda: _function(),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(3, 3)).eval())),
    "channels last": lambda: torch.jit.script(
        nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    ),
    "half": lambda: torch.jit.script(nn.Linear(2, 2).to(torch.bfloat16)),
}


def _function() -> Any:
    def shift(x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(2)

    return torch.jit.script(shift)


def state_dict(path: Path) -> dict[str, Any]:
    """Return what torch makes of an archive, with the flags of its parameters."""
    loaded = torch.jit.load(path)
    if not hasattr(loaded, "state_dict"):
        return {}
    return dict(loaded.state_dict(keep_vars=True))


@pytest.mark.parametrize("case", SCRIPTS)
def test_scripts(path: Path, case: str) -> None:
    """Names and order are those of the state dict of what torch loads; so are bits and flags."""
    torch.manual_seed(1)
    torch.jit.save(SCRIPTS[case](), str(path))
    expected = state_dict(path)
    with tz.lazy_load(path) as ckpt:
        assert ckpt.format == "torchscript"
        assert_same(ckpt, expected)
        same_ties(ckpt, expected)
        parameters = {name for name, _ in torch.jit.load(path).named_parameters(
            remove_duplicate=False)} if expected else set()  # fmt: skip
        assert {name for name in ckpt if ckpt[name].is_parameter} == parameters
        assert ckpt.verify().tensors == len(expected)
        name = next(iter(ckpt), None)
        if name is not None:
            again = pickle.loads(pickle.dumps(ckpt[name]))
            assert again.numpy().tobytes() == ckpt[name].numpy().tobytes()
    for mmap in (False, True):
        root = tz.load(path, mmap=mmap)
        for name, tensor in expected.items():
            array = root
            for part in name.split("."):
                array = array.state[part]
            assert_same_array(array, tensor)


def test_values_of_all_kinds(tmp_path: Path) -> None:
    """What is no tensor comes back as what it was."""
    torch.jit.save(torch.jit.script(Everything()), tmp_path / "script.pt")
    state = tz.load(tmp_path / "script.pt").state
    assert (state["color"].name, state["color"].args) == ("Color", (2,))
    assert (state["pair"].name, state["pair"].state["b"]) == ("Pair", 4)
    assert [array.tolist() for array in state["tensors"]] == [[1], [0, 0]]
    assert state["table"]["a"].tolist() == [1, 1, 1]
    assert (state["numbers"], state["texts"], state["floats"]) == ({1: 2.0}, ["a", "bc"], [1.5])
    assert (state["flags"], state["maybe"]) == ([True], [None, 1])
    assert (state["mixed"][0].tolist(), state["mixed"][1:]) == ([1], (2, "x"))
    assert (state["complex"], state["large"]) == (1 + 2j, 1 << 40)
    assert state["device"] == tz.types.Device("cuda", 1)


@pytest.mark.parametrize("name", TENSOR_DTYPES)
def test_meta_tensors(path: Path, name: str) -> None:
    """They come back with their fields, views and ties of them too, beside tensors with data."""
    dtype = getattr(torch, name)
    held = torch.empty(3, 4, dtype=dtype, device="meta")
    model = nn.Module()
    needs_gradient = dtype.is_floating_point or dtype.is_complex
    model.weight = nn.Parameter(held[1:, ::2], requires_grad=needs_gradient)
    model.tied = model.weight
    model.register_buffer("empty", held[:0])
    model.register_buffer("bias", torch.arange(3.0))
    torch.jit.save(torch.jit.script(model), path)
    expected = torch.jit.load(path).state_dict(keep_vars=True)
    with tz.lazy_load(path) as ckpt:
        assert list(ckpt) == list(expected)
        assert ckpt["bias"].numpy().tolist() == [0, 1, 2]
        for key in ("weight", "tied", "empty"):
            tensor = expected[key]
            assert tensor.device.type == "meta"
            meta = ckpt[key]
            assert isinstance(meta, tz.types.MetaTensor)
            assert f"torch.{meta.torch_dtype}" == str(tensor.dtype)
            assert (meta.shape, meta.stride) == (tuple(tensor.shape), tensor.stride())
            assert meta.requires_grad == tensor.requires_grad
            assert meta.is_parameter is (key != "empty")
        assert ckpt["weight"] is ckpt["tied"]


@pytest.mark.parametrize("name", [*TENSOR_DTYPES, *QUANTIZED_DTYPES])
def test_every_dtype(path: Path, name: str) -> None:
    """Also those for which only the C++ pickler has a storage class."""
    model = nn.Module()
    model.register_buffer("t", torch.arange(16, dtype=torch.uint8).view(getattr(torch, name)))
    torch.jit.save(torch.jit.script(model), path)
    expected = torch.jit.load(path).state_dict()
    with tz.lazy_load(path) as ckpt:
        assert list(ckpt) == ["t"]
        assert f"torch.{ckpt['t'].torch_dtype}" == str(expected["t"].dtype)
        assert ckpt["t"].shape == tuple(expected["t"].shape)
        assert ckpt["t"].numpy().tobytes() == bytes(range(16))


def test_quantized_modules(path: Path) -> None:
    """Packed weights are inert objects of C++ classes, and nothing of a state dict."""
    torch.jit.save(_quantized(), path)
    with tz.lazy_load(path) as ckpt:
        assert_same(ckpt, state_dict(path))
        packed = ckpt.root.state["0"].state["_packed_params"].state["_packed_params"]
        assert packed.module.startswith("__torch__.torch.classes")


def test_constants(path: Path) -> None:
    """The weights of a frozen module are constants of its code."""
    torch.manual_seed(1)
    linear = nn.Linear(3, 3).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(linear)), path)
    with tz.lazy_load(path) as ckpt:
        assert list(ckpt) == []
        found = {constant.numpy().tobytes() for constant in ckpt.constants}
    assert found == {array_of(linear.weight).tobytes(), array_of(linear.bias).tobytes()}


def test_mobile(tmp_path: Path) -> None:
    """An archive for the lite interpreter is one too."""
    path = str(tmp_path / "script.ptl")
    script = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    script._save_for_lite_interpreter(path)
    with tz.lazy_load(path) as ckpt:
        assert_same(ckpt, dict(script.state_dict(keep_vars=True)))


def test_extra_files_and_buffers(tmp_path: Path) -> None:
    """Extra files are of no account; an archive in memory is read like one on disk."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(Scale()), file, _extra_files={"data.txt": "x"})
    file.seek(0)
    with tz.lazy_load(file) as ckpt:
        assert list(ckpt) == ["weight", "count"]
        assert ckpt.verify().without_crc == ()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_convert(tmp_path: Path, path: Path, suffix: str) -> None:
    """What is written is the state dict, and torch loads it with its default loader."""
    torch.jit.save(torch.jit.script(Tied()), path)
    expected = state_dict(path)
    report = tz.convert(path, tmp_path / f"out.{suffix}")
    assert report.refused == ()
    if suffix == "pt":
        made = torch.load(tmp_path / "out.pt", weights_only=True)
        assert list(made) == list(expected)
        assert made["head.weight"].data_ptr() == made["embed.weight"].data_ptr()
        for name in expected:
            assert_same_array(made[name], expected[name])
        Tied().load_state_dict(made)
    else:
        with tz.lazy_load(tmp_path / "out.safetensors") as ckpt:
            for name in ckpt:
                assert_same_array(ckpt[name], expected[name])
            aliases = json.loads(ckpt.metadata["torchzip.aliases"])
            assert set(ckpt) | set(aliases) == set(expected)


# -- .pt2 ------------------------------------------------------------------------------------------


class Exported(nn.Module):  # type: ignore[misc]
    """Weights that share memory in every way, buffers of several dtypes, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.fc2 = nn.Linear(4, 4)
        self.fc2.weight = self.fc.weight
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("passing", torch.ones(4), persistent=False)
        base = torch.arange(24.0).reshape(4, 6)
        self.register_buffer("rows", base[1:3])
        self.register_buffer("columns", base.t()[1:5])
        self.strided = nn.Parameter(torch.arange(24.0).reshape(4, 6).t()[1:5])
        self.constant = torch.arange(4.0)
        for name in ("bfloat16", "float16", "float8_e4m3fn", "uint16", "int8", "complex64"):
            self.register_buffer(f"as_{name}", torch.arange(4).to(getattr(torch, name)))
        self.register_buffer("empty", torch.ones(0, 3))
        self.register_buffer("scalar", torch.tensor(3))
        self.register_buffer("expanded", torch.ones(1, 1).expand(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.norm(self.fc2(self.fc(x))) + self.passing + self.constant + self.strided.sum()
        return made + self.rows.sum() + self.scalar + torch.tensor([1.0, 2, 3, 4])


@pytest.fixture(scope="module")
def exported() -> Any:
    torch.manual_seed(1)
    return torch.export.export(Exported().eval(), (torch.ones(2, 4),))


def assert_export(path: Path, program: Any, *, exact: bool = True) -> None:
    """Compare a .pt2 file with the weights and constants of a program.

    The order is that in which torch loads them, which the file groups by records. The flags are
    those of the program: torch gives a buffer that shares a record with a parameter its gradient.
    """
    loaded = torch.export.load(path)
    values = {**program.state_dict, **program.constants}
    expected = {name: values[name] for name in (*loaded.state_dict, *loaded.constants)}
    assert len(expected) == len(values)
    with tz.lazy_load(path) as ckpt:
        assert ckpt.format == "pt2"
        assert ckpt.foreign == []
        assert_same(ckpt, expected)
        if exact:
            same_ties(ckpt, expected)
        for name, tensor in expected.items():
            assert ckpt[name].is_parameter == isinstance(tensor, nn.Parameter)
        assert ckpt.verify().tensors == len(expected)
        again = pickle.loads(pickle.dumps(ckpt["fc.weight"]))
        assert_same_array(again, expected["fc.weight"])
    for mmap in (False, True):
        root = tz.load(path, mmap=mmap)
        assert list(root) == list(expected)
        for name, tensor in expected.items():
            assert_same_array(root[name], tensor)
        assert np.shares_memory(root["fc.weight"], root["fc2.weight"])


def test_export(tmp_path: Path, exported: Any) -> None:
    """Weights, then constants, in their order; what shares memory shares it."""
    path = tmp_path / "model.pt2"
    torch.export.save(exported, path)
    assert_export(path, exported)


@pytest.mark.parametrize("suffix", ["pt", "json"])
def test_export_of_2_1_to_2_7(tmp_path: Path, exported: Any, suffix: str) -> None:
    """The layout before 2.8, as torch 2.13 still loads it: what serialize gives, in a zipfile."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    artifact = serialize(exported)
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr(f"serialized_state_dict.{suffix}", artifact.state_dict)
        archive.writestr(f"serialized_constants.{suffix}", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
        archive.writestr("extra_files/x.txt", b"x")
    assert_export(path, exported, exact=False)


def test_export_with_files_for_weights(tmp_path: Path, exported: Any) -> None:
    """The layout with files of torch.save in the place of configs, as torch 2.13 still loads it."""
    from torch._export.serde.serialize import serialize
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    artifact = serialize(exported)
    path = tmp_path / "model.pt2"
    with PT2ArchiveWriter(str(path)) as archive:
        archive.write_bytes("models/model.json", artifact.exported_program)
        archive.write_bytes("data/weights/model.pt", artifact.state_dict)
        archive.write_bytes("data/constants/model.pt", artifact.constants)
        archive.write_bytes("data/sample_inputs/model.pt", artifact.example_inputs)
    assert_export(path, exported, exact=False)


class Small(nn.Module):  # type: ignore[misc]
    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_export_of_several_models(tmp_path: Path) -> None:
    """Each has a dict of its own, under its name."""
    from torch.export.pt2_archive._package import load_pt2, package_pt2

    programs = {
        name: torch.export.export(Small(n), (torch.ones(1, n),))
        for name, n in (("encoder", 3), ("decoder", 4))
    }
    path = tmp_path / "model.pt2"
    package_pt2(str(path), exported_programs=programs)
    loaded = load_pt2(str(path)).exported_programs
    with tz.lazy_load(path) as ckpt:
        assert list(ckpt.root) == ["encoder", "decoder"]
        for model, program in loaded.items():
            for name, tensor in program.state_dict.items():
                assert_same_array(ckpt[f"{model}.{name}"], tensor)
        assert len(ckpt) == 4


def test_export_of_fake_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without data are zeros, as torch makes them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    # torch 2.13 warns of such files with a message that it cannot format.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    path = tmp_path / "model.pt2"
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.export.save(torch.export.export(Small(5), (torch.ones(1, 5),)), path)
    loaded = torch.export.load(path).state_dict
    with tz.lazy_load(path) as ckpt:
        for name, tensor in loaded.items():
            assert ckpt[name].shape == tuple(tensor.shape)
            assert_same_array(ckpt[name], tensor)
            assert ckpt[name].is_parameter
    assert not tz.load(path)["fc.weight"].any()


def test_export_of_a_subclass(tmp_path: Path) -> None:
    """A weight of a tensor subclass is pickled, and comes back inert."""
    testing = pytest.importorskip("torch.testing._internal.two_tensor")

    class Two(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(testing.TwoTensor(torch.ones(2), torch.zeros(2)))
            self.v = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w + self.v

    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Two(), (torch.ones(2),)), path)
    with tz.lazy_load(path) as ckpt:
        assert list(ckpt.root) == ["w", "v"]
        assert type(ckpt.root["w"]) is tz.types.ForeignObject
        assert ckpt["v"].numpy().tolist() == [1, 1]


def test_export_converted(tmp_path: Path, exported: Any) -> None:
    """A .pt2 becomes a .pt that torch loads, with its ties and its parameters."""
    path = tmp_path / "model.pt2"
    torch.export.save(exported, path)
    report = tz.convert(path, tmp_path / "out.pt")
    assert (report.refused, report.lost) == ((), ())
    made = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = {**exported.state_dict, **exported.constants}
    assert set(made) == set(expected)
    for name, tensor in expected.items():
        assert_same_array(made[name], tensor)
        assert made[name].stride() == tensor.stride()
        assert isinstance(made[name], nn.Parameter) == isinstance(tensor, nn.Parameter)
    assert made["fc.weight"].data_ptr() == made["fc2.weight"].data_ptr()
