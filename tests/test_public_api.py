"""What users import, type and rely on."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python
from tests.public_api import RECORD, public_api
from torchzip import errors, types

_NAMES = {
    "load", "save", "lazy_load", "incremental_save", "convert", "executors", "lazy", "tools",
    "types", "Checkpoint", "LazyTensor", "Limits", "TorchZipError", "FormatError",
    "UnsafeGlobalError", "UnsupportedError", "LimitError", "__version__",
}  # fmt: skip


def test_names() -> None:
    """``__all__`` is the list of public names, no more and no less, in order."""
    assert set(tz.__all__) == _NAMES
    assert len(tz.__all__) == len(_NAMES)
    assert list(tz.__all__) == sorted(tz.__all__)
    assert all(hasattr(tz, name) for name in tz.__all__)


def test_version() -> None:
    """The version is one."""
    parts = tz.__version__.split(".")
    assert len(parts) == 3
    assert all(part[:1].isdigit() for part in parts)


def test_record() -> None:
    """Names, parameters, fields, options: what is public changes on purpose, or not at all."""
    recorded, now = RECORD.read_text(encoding="utf-8").splitlines(), public_api()
    gone = "\n  ".join(line for line in recorded if line not in now)
    new = "\n  ".join(line for line in now if line not in recorded)
    assert recorded == now, (
        f"What is public has changed.\nOnly in the record:\n  {gone}\n"
        f"Only in the code:\n  {new}\n"
        "If that was not meant, undo it. If a name or an option goes or changes, keep the old one "
        "with a DeprecationWarning first (CONTRIBUTING.md, 'What stays compatible'). Then write a "
        "line in CHANGELOG.md, run `python -m tests.public_api`, and commit tests/public_api.txt."
    )


@pytest.mark.parametrize(
    "function", [tz.load, tz.save, tz.lazy_load, tz.incremental_save, tz.convert]
)
def test_options_are_keyword_only(function: Any) -> None:
    """So that their order never counts."""
    parameters = inspect.signature(function).parameters.values()
    plain = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert plain in (["file"], ["obj", "file"], ["src", "dst"])
    assert all(each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) for each in parameters)


@pytest.mark.parametrize(
    "name", sorted(_NAMES - {"__version__", "executors", "lazy", "tools", "types"})
)
def test_docstrings(name: str) -> None:
    """Everything public says what it is; functions show an example that runs."""
    thing = getattr(tz, name)
    doc = inspect.getdoc(thing)
    assert doc
    assert doc[0].isupper() or doc[0] == "`"
    if inspect.isfunction(thing):
        assert ">>>" in doc


@pytest.mark.parametrize("name", tz.lazy.__all__)
def test_lazy(name: str) -> None:
    """Each function has an example that runs."""
    assert ">>>" in (inspect.getdoc(getattr(tz.lazy, name)) or "")


@pytest.mark.parametrize("name", tz.tools.__all__)
def test_tools(name: str) -> None:
    """Each function has an example, and returns a frozen dataclass of the name beside it."""
    thing = getattr(tz.tools, name)
    doc = inspect.getdoc(thing)
    assert doc
    if inspect.isfunction(thing):
        assert ">>>" in doc
        returned = getattr(tz.tools, inspect.signature(thing).return_annotation)
        assert dataclasses.is_dataclass(returned)
        assert vars(returned)["__dataclass_params__"].frozen


@pytest.mark.parametrize(
    "attribute",
    ["shape", "dtype", "torch_dtype", "nbytes", "stride", "storage_offset", "requires_grad",
     "is_parameter", "numpy", "__array__", "__getitem__"],
)  # fmt: skip
def test_lazy_tensor(attribute: str) -> None:
    """The attributes of a lazy tensor."""
    assert hasattr(tz.LazyTensor, attribute)


def test_checkpoint(tmp_path: Path) -> None:
    """The attributes of a checkpoint, and that `lazy_load` gives one."""
    tz.save({"w": np.ones(2)}, tmp_path / "m.pt")
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        assert type(checkpoint) is tz.Checkpoint
        assert type(checkpoint["w"]) is tz.LazyTensor
        assert checkpoint.format == "zip"
        assert ("torch", "DoubleStorage") in checkpoint.globals
        assert checkpoint.root.keys() == {"w"}
        assert checkpoint.verify().tensors == 1


def test_files_are_paths_or_objects(path: Path) -> None:
    """``str``, ``os.PathLike`` and file objects are taken everywhere."""

    class Odd:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __fspath__(self) -> str:
            return str(self.path)

    for file in (str(path), path, Odd(path)):
        tz.save([1], file)
        assert tz.load(file) == [1]
        with tz.lazy_load(file) as checkpoint:
            assert checkpoint.root == [1]
        with tz.incremental_save(file) as out:
            out.save([2])
        assert tz.load(file) == [2]
    with path.open("wb") as target:
        tz.save([3], target)
    with path.open("rb") as source:
        assert tz.load(source) == [3]


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (tz.FormatError, (tz.TorchZipError, ValueError)),
        (tz.UnsupportedError, (tz.TorchZipError, NotImplementedError)),
        (tz.UnsafeGlobalError, (tz.TorchZipError,)),
        (tz.LimitError, (tz.TorchZipError,)),
        (errors.ArchiveError, (tz.FormatError,)),
        (errors.PickleError, (tz.FormatError,)),
        (errors.TensorError, (tz.FormatError,)),
        (errors.TensorNotFoundError, (tz.TorchZipError, KeyError)),
    ],
)
def test_error_tree(error: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    """Each error is also the builtin one that a caller would catch."""
    assert all(issubclass(error, base) for base in bases)
    assert not issubclass(error, OSError)


@pytest.mark.parametrize(
    "error",
    [
        errors.TorchZipError("m", path="p", record="r", offset=3),
        errors.ArchiveError("m", path="p"),
        errors.TensorNotFoundError("m", path="p"),
        errors.LimitError("nesting", 5, 3, path="p"),
        errors.UnsafeGlobalError([("a", "b"), ("c", "d")], path="p"),
        errors.UnsupportedError("m"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickle(error: errors.TorchZipError) -> None:
    """Worker processes send them home as they are."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def test_place_of_an_error() -> None:
    """What is known of the place stands before the message, and the first to know it counts."""
    error = errors.FormatError("broken", record="data.pkl", offset=7)
    assert str(error) == "record data.pkl, byte 7: broken"
    assert error.at(path="m.pt", record="other", offset=9) is error
    assert str(error) == "m.pt, record data.pkl, byte 7: broken"
    assert (error.path, error.record, error.offset) == ("m.pt", "data.pkl", 7)
    assert str(errors.TorchZipError("alone")) == "alone"


def test_attributes_of_errors() -> None:
    """The numbers and names that a program needs."""
    limit = errors.LimitError("entries", 10, 5)
    assert (limit.limit, limit.actual, limit.bound) == ("entries", 10, 5)
    unsafe = errors.UnsafeGlobalError([("os", "system"), ("a", "b")])
    assert (unsafe.module, unsafe.name, len(unsafe.names)) == ("os", "system", 2)


# -- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (types.Size((2, 3)), "Size([2, 3])"),
        (types.Dtype("float16"), "Dtype(name='float16')"),
        (types.Device("cuda", 1), "Device(type='cuda', index=1)"),
        (types.Layout("strided"), "Layout(name='strided')"),
        (types.QScheme("per_tensor_affine"), "QScheme(name='per_tensor_affine')"),
        (types.Parameter(1), "Parameter(1, requires_grad=True)"),
        (types.TypedArray(1, "bits8"), "TypedArray(1, 'bits8')"),
        (types.Storage(1), "Storage(1, None, 'cpu')"),
        (types.ForeignObject("m", "C"), "<foreign m.C>"),
        (types.ForeignObject("m", "f", (1, 2), {"k": 1}, {"s": 1}, [1]),
         "<foreign m.f(2 args, kwargs {k}, state {s}, 1 items)>"),
    ],
)  # fmt: skip
def test_reprs(value: Any, text: str) -> None:
    """One honest line each."""
    assert repr(value) == text


def test_text_of_leaf_types() -> None:
    """``str`` is what torch shows."""
    assert str(types.Dtype("float16")) == "torch.float16"
    assert str(types.Device("cuda", 1)) == "cuda:1"
    assert str(types.Device("cpu")) == "cpu"
    assert str(types.Layout("strided")) == "torch.strided"
    assert str(types.QScheme("per_tensor_affine")) == "torch.per_tensor_affine"


@pytest.mark.parametrize(
    "value",
    [types.Parameter(1), types.TypedArray(1, "x"), types.Storage(1), types.Dtype("x"),
     types.Device("x"), types.Layout("x"), types.QScheme("x"), tz.Limits()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_leaf_types_are_immutable(value: Any) -> None:
    """Nothing can be set, changed or taken away."""
    name = type(value).__match_args__[0] if type(value) is not tz.Limits else "nesting"
    with pytest.raises(AttributeError):
        setattr(value, name, 2)
    with pytest.raises(AttributeError):
        delattr(value, name)
    with pytest.raises((AttributeError, TypeError)):
        value.something_new = 1


@pytest.mark.parametrize(
    "value",
    [types.Size((1, 2)), types.Dtype("x"), types.Device("x", 1), types.Layout("x"),
     types.QScheme("x"), tz.Limits(nesting=3)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_leaf_types_are_values(value: Any) -> None:
    """Equal if their parts are, and as keys of a dict too."""
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert hash(again) == hash(value)
    assert type(again) is type(value)


def test_objects_are_equal_to_themselves_only() -> None:
    """Parameters, arrays, storages and foreign objects are told apart by identity."""
    for make in (
        lambda: types.Parameter(1),
        lambda: types.TypedArray(1, "x"),
        lambda: types.Storage(1),
        lambda: types.ForeignObject("m", "C"),
    ):
        value: Any = make()
        assert value == value
        assert value != make()
        assert len({value, make()}) == 2


@pytest.mark.parametrize(
    "value", [types.Parameter([1], False, {"a": 1}), types.TypedArray([1], "bits8"),
              types.Storage([1], "float32", "cuda:0")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_leaf_types_survive_pickle(value: Any) -> None:
    """All of their parts do."""
    again = pickle.loads(pickle.dumps(value))
    assert type(again) is type(value)
    assert all(getattr(again, name) == getattr(value, name) for name in type(value).__slots__)


def test_foreign_object_survives_pickle() -> None:
    """With everything that is in it."""
    setter = types.ForeignObject("m", "set")
    value = types.ForeignObject("m", "f", (1,), None, {"s": 1}, [2], setter=setter)
    again = pickle.loads(pickle.dumps(value))
    assert (again.module, again.name, again.args, again.how) == ("m", "f", (1,), "call")
    assert (again.state, again.items, again.setter.name) == ({"s": 1}, [2], "set")


def test_typed() -> None:
    """The package says that it is typed."""
    assert (Path(tz.__file__).parent / "py.typed").exists()


def test_import_is_quiet() -> None:
    """Importing prints nothing, warns of nothing and starts nothing."""
    code = "import threading, torchzip; assert threading.active_count() == 1"
    assert python("-B", "-W", "error", "-c", code) == ""
