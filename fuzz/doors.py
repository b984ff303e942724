"""Every door through which a stranger's file comes in, opened the way its users do."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torchzip as tz
from fuzz.guard import guarded
from fuzz.seeds import Case, golden, others
from torchzip.checkpoint.outline import outline
from torchzip.cli import checking, comparing, disassembly, listing, naming, weighing
from torchzip.cli.rendering import Screen
from torchzip.errors import TorchZipError
from torchzip.tools import diff, verify, why_big
from torchzip.tools.global_names import global_names
from torchzip.types import NestedTensor, OtherTensor, QuantizedTensor, SparseTensor

_FORMATS = frozenset(
    "zip legacy safetensors torchscript tar pt2 sharded dcp zero ranks nemo gguf npy npz".split()
)
#: What a file goes through beside `load` and `lazy_load`.
DOORS = ("show", "disassemble", "convert")
#: Of the tensors of one file, so many are looked at: a file may have one for each 20 bytes.
_MOST_TENSORS = 200
_MOST_NBYTES = 1 << 20


class Send(Protocol):
    """Sends the files of a case through the doors; returns what `load` made of it."""

    def __call__(self, case: Case, doors: Collection[str] = DOORS) -> type: ...


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """The one sentence: a value, a `TorchZipError` or an `OSError`."""
    try:
        yield
    except TorchZipError:
        pass
    except OSError as error:
        _check_memory(error)


def _check_memory(error: OSError) -> None:
    """Raise MemoryError if a file made its reader ask for more than the guard leaves."""
    if error.errno == errno.ENOMEM and "Not enough memory" in str(error):
        raise MemoryError(str(error)) from None


def load_eagerly(path: Path) -> type:
    """``tz.load``: from the path, by mmap, and from a file object. Return what came of it."""
    made = _answer(tz.load, path)
    if path.is_file() and not path.name.endswith(".index.json"):  # which is of the files beside it
        assert _answer(tz.load, io.BytesIO(path.read_bytes())) == made
    with allowed():
        tz.load(path, mmap=True)
    with allowed():
        tz.load(path, foreign="raise")
    return made[0]


def _answer(read: Callable[..., Any], file: Any) -> tuple[type, str]:
    try:
        made = read(file)
    except TorchZipError as error:
        return type(error), error.message
    except OSError as error:
        _check_memory(error)
        return OSError, ""
    return type(made), ""


def read_lazily(path: Path) -> None:
    """``tz.lazy_load``: names, each tensor whole and in part, foreign objects, CRCs."""
    with allowed(), tz.lazy_load(path) as checkpoint:
        assert checkpoint.format in _FORMATS
        assert repr(checkpoint)
        assert isinstance(checkpoint.globals, list | tuple)
        with allowed():
            checkpoint.verify()
        with allowed():
            assert all(map(repr, checkpoint.subclassed.values()))
        for name in _names(checkpoint)[:_MOST_TENSORS]:
            with allowed():
                _look_at(checkpoint[name])


def _names(checkpoint: tz.Checkpoint) -> list[str]:
    with allowed():
        return list(checkpoint)
    return []


def _look_at(tensor: Any) -> None:
    assert repr(tensor)
    assert tensor.nbytes >= 0
    if isinstance(tensor, OtherTensor):
        make_dense(tensor)
        return
    if tensor.nbytes <= _MOST_NBYTES:
        assert tensor[...].shape == tensor.shape
    if tensor.ndim and tensor.shape[0]:
        row = tensor[0:0] if tensor.nbytes > _MOST_NBYTES else tensor[:1]
        assert row.shape[1:] == tensor.shape[1:]


def make_dense(tensor: OtherTensor) -> None:
    """Ask for the numbers of a tensor that is not dense."""
    if isinstance(tensor, SparseTensor):
        assert tensor.todense().shape == tensor.shape
    elif isinstance(tensor, QuantizedTensor):
        assert tensor.dequantize().shape == tensor.shape
    elif isinstance(tensor, NestedTensor):
        assert len(tensor.unbind()) == tensor.shape[0]


def show(path: Path) -> None:
    """What the commands print: ``ls``, ``globals``, ``verify``, ``diff`` and ``why-big``."""
    with allowed(), tz.lazy_load(path) as checkpoint:
        found = outline(checkpoint)
        texts = ["\n".join(listing.text_lines(found, Screen(), tree=tree, long=not tree))
                 for tree in (False, True)]  # fmt: skip
        texts += [repr(checkpoint), checkpoint._repr_html_()]
        names = global_names(checkpoint)
        texts.append(naming.globals_as_text(names, checkpoint.path))
        assert json.loads(listing.as_json(listing.describe(found)))
        with allowed():
            texts.append(checking.check_as_text(verify(path)))
        with allowed():
            texts.append(comparing.as_text(diff(path, path)))
        with allowed():
            texts.append("\n".join(weighing.text_lines(why_big(path), Screen())))
        for text in texts:
            _check_printable(text)


def _check_printable(text: str) -> None:
    """Nothing from the file reaches a terminal as a control sequence."""
    assert all(map(str.isprintable, text.split("\n")))


def disassemble(path: Path) -> None:
    """``torchzip dis``, as text and as JSON that can be read however the pickle ends."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), allowed():
        disassembly.disassemble(str(path), None, as_json=False)
    _check_printable(text.getvalue())
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            disassembly.disassemble(str(path), None, as_json=True)
        except (TorchZipError, OSError) as error:
            if isinstance(error, OSError):
                _check_memory(error)
            if not text.getvalue():  # no file at all
                return
    assert json.loads(text.getvalue())


def convert(path: Path, folder: Path) -> None:
    """``tz.convert`` to both formats, and back from what travels as JSON."""
    with allowed():
        tz.convert(path, folder / "out.pt", overwrite=True)
    with allowed():
        tz.convert(path, folder / "out.safetensors", overwrite=True)
        tz.convert(folder / "out.safetensors", folder / "back.pt", overwrite=True)
        tz.load(folder / "back.pt")


def go_through(path: Path, folder: Path, doors: Collection[str] = DOORS) -> type:
    """Send a file through every door, or `load`, `lazy_load` and these ones.

    ``folder`` is for what a conversion writes. Return the type of what `load` made, or its error.
    """
    made = load_eagerly(path)
    read_lazily(path)
    if "show" in doors:
        show(path)
    if "disassemble" in doors:
        disassemble(path)
    if "convert" in doors:
        convert(path, folder)
    return made


@contextlib.contextmanager
def room() -> Iterator[Send]:
    """Give `go_through` for a case, under guard, in a folder of its own.

    It raises what is neither a value nor an error that is allowed.
    """
    _warm_up()
    with tempfile.TemporaryDirectory() as name:
        given, made = Path(name) / "given", Path(name) / "made"
        made.mkdir()

        def send(case: Case, doors: Collection[str] = DOORS) -> type:
            path = put(case, given)
            with guarded(made):
                return go_through(path, made, doors)

        yield send


def put(case: Case, folder: Path) -> Path:
    """Write the files of a case, and no others, into a folder; return what is to be opened."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / case.opened


@cache
def _warm_up() -> None:
    """Use all that reads once, so that nothing is imported later."""
    late = "torchzip.formats.pt2 decimal fractions pathlib encodings.raw_unicode_escape"
    for module in late.split():
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as name:
        given, made = Path(name) / "given", Path(name) / "made"
        made.mkdir()
        for case in map(Case.of, golden()):
            go_through(put(case, given), made, ())
        for case in [*others(), Case.of(golden()[0]), Case.of(b"")]:
            go_through(put(case, given), made)
