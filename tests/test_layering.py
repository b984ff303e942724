"""The folders are layers: imports point down, and out of the package to numpy only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchzip
from tests.child_process import python

_PACKAGE = Path(torchzip.__file__).parent

#: Module or folder -> rank. A module may import what has a lower rank, or what lies in its folder.
_RANKS = {
    "errors": 0,
    "limits": 0,
    "dtypes": 0,
    "leaf_types": 0,
    "files": 1,
    "container": 2,
    "pickling": 2,
    "tensors": 3,
    "types": 3.5,  # names what users see of `leaf_types` and `tensors.kinds`; rooms above import it
    "formats": 4,
    "checkpoint": 5,
    "quantization": 5.3,  # makes LazyTensors of LazyTensors, which `lazy.dequantized` returns
    "lazy": 5.5,  # makes LazyTensors of LazyTensors; `convert` and `tools` may use it
    "executors": 5.5,
    "convert": 6,
    "tools": 7,
    "cli": 8,
    "web": 9,  # what runs in the page shows what commands print
}
_ABOVE_ALL = {"__init__", "__main__"}

#: Who may import what from outside the standard library.
_NUMPY_ROOMS = {
    "files", "container", "tensors", "formats", "checkpoint", "quantization", "lazy", "convert",
    "tools",
}  # fmt: skip
_OPTIONAL = {
    "isal": {"files.crc"},
    "tqdm": {"cli.progress"},
    "shtab": {"cli.completion"},
    "obstore": {"files.obstore_objects"},
    "fsspec": {"files.fsspec_objects"},
    "huggingface_hub": {"files.hub"},
    "ray": {"executors"},
    "typing_extensions": {"checkpoint.lazy"},  # for type checkers alone, which have it
}
_ML_DTYPES_ROOMS = {"tensors"}

_MODULES = sorted(_PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    parts = path.relative_to(_PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imports(path: Path) -> Iterator[str]:
    """Yield the full names of what a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                # `from torchzip.x import y` names a module of the package, or has one
                inner = f"{node.module}.{alias.name}"
                is_module = _PACKAGE.parent.joinpath(*inner.split(".")).with_suffix(".py").exists()
                yield inner if is_module or node.module == "torchzip" else node.module


def _room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_imports_point_down(path: Path) -> None:
    """A module imports lower ranks and its own folder, and nothing beside or above.

    So what every layer speaks stands alone, and the two rooms of rank 2 do not know one another.
    """
    own = _name(path)
    if own in _ABOVE_ALL:
        return
    room = _room(own)
    assert room in _RANKS, f"{own} has no place in the table of layers"
    for name in _imports(path):
        if _room(name) != "torchzip":
            continue
        inner = name.removeprefix("torchzip").removeprefix(".")
        if room in ("cli", "web") and (not inner or inner.startswith("_")):
            continue  # the command line and the page use the public names
        other = _room(inner)
        assert other in _RANKS, f"{own} imports {name}"
        assert _RANKS[other] < _RANKS[room] or other == room, f"{own} imports {name}"


def test_pickling_needs_no_files() -> None:
    """Opcodes are a matter of bytes: rank 0 is all they need."""
    for path in _MODULES:
        if _room(_name(path)) == "pickling":
            for name in _imports(path):
                if name.startswith("torchzip"):
                    room = _room(name.removeprefix("torchzip."))
                    assert room == "pickling" or _RANKS[room] == 0, (path, name)


def test_no_cycles() -> None:
    """No module is imported by what it imports."""
    graph: dict[str, set[str]] = {}
    known = {_name(path) for path in _MODULES}
    for path in _MODULES:
        own = _name(path)
        inner = {
            name.removeprefix("torchzip.") for name in _imports(path) if _room(name) == "torchzip"
        }
        graph[own] = {name for name in inner if name in known and name != own}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_imports_from_outside(path: Path) -> None:
    """Numpy and ml_dtypes where they belong, extras where they are used, torch nowhere."""
    own = _name(path)
    for name in _imports(path):
        outer = _room(name)
        if outer == "torchzip" or outer in sys.stdlib_module_names:
            continue
        if outer == "numpy":
            assert _room(own) in _NUMPY_ROOMS, f"{own} imports numpy"
        elif outer == "ml_dtypes":
            assert _room(own) in _ML_DTYPES_ROOMS, f"{own} imports ml_dtypes"
        else:
            assert own in _OPTIONAL.get(outer, set()), f"{own} imports {name}"


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_pickle_is_not_used(path: Path) -> None:
    """No module uses pickle, nor marshal, nor anything that runs code from text.

    `reductions` asks pickle how the running Python writes a nested class, and never has it read.
    """
    for name in _imports(path):
        assert _room(name) not in ("_pickle", "marshal", "shelve", "dill", "joblib")
        assert _room(name) != "pickle" or _name(path) == "pickling.reductions"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile"), f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("Unpickler", "find_class"), f"{path}:{node.lineno}"
            if isinstance(node.value, ast.Name) and node.value.id == "pickle":
                assert node.attr == "dumps", f"{path}:{node.lineno}"


def test_reading_looks_up_no_names() -> None:
    """``__import__`` stands in the emitter only, where the caller's own objects are named."""
    for path in _MODULES:
        text = path.read_text()
        if "__import__(" in text or "import_module" in text:
            assert _name(path) == "pickling.emitter"


def test_no_assert_on_a_file() -> None:
    """The modules that parse bytes raise errors; an assertion would vanish under -O."""
    for room in ("files", "container", "pickling"):
        for path in (_PACKAGE / room).glob("*.py"):
            if path.name == "emitter.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}"


#: What some systems lack, or do otherwise. Any system has the others.
_PLATFORM_CALLS = {
    "os": {
        "chown", "copy_file_range", "fchmod", "fork", "fstatvfs", "fsync", "getegid", "geteuid",
        "getgid", "getuid", "name", "open", "posix_fadvise", "posix_fallocate", "pread", "preadv",
        "pwrite", "pwritev", "replace", "sched_getaffinity", "sendfile", "statvfs", "sysconf",
        "uname",
    },
    "signal": {"pthread_sigmask", "SIGKILL", "SIGHUP", "SIGPIPE", "alarm", "setitimer"},
    "mmap": {"MADV_HUGEPAGE", "MAP_SHARED", "MAP_PRIVATE", "PROT_READ"},
    "sys": {"platform"},
    "ctypes": {"CDLL", "WinDLL", "windll"},
}  # fmt: skip
_PLATFORM_MODULES = {"fcntl", "grp", "msvcrt", "pwd", "resource", "termios", "platform"}
_FLAGS_OF_ALL = {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_CREAT", "O_EXCL"}


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_platform_calls_stand_in_one_module(path: Path) -> None:
    """What not every system has is named in `files/platform_calls.py` alone, with its fallback."""
    if _name(path) == "files.platform_calls":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            calls = _PLATFORM_CALLS.get(node.value.id, set())
            is_flag = node.value.id == "os" and node.attr.startswith("O_")
            assert node.attr not in calls, f"{path}:{node.lineno}"
            assert not is_flag or node.attr in _FLAGS_OF_ALL, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked = node.args[0] if node.func.id in ("hasattr", "getattr") else None
            is_asked = isinstance(asked, ast.Name) and asked.id in ("os", "signal", "mmap")
            assert not is_asked, f"{path}:{node.lineno}"
    assert not _PLATFORM_MODULES & set(map(_room, _imports(path))), path


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_text_has_an_encoding(path: Path) -> None:
    """What is opened is opened as bytes, or as UTF-8: never as what the system prefers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg for keyword in node.keywords}
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            assert node.args or "encoding" in keywords, f"{path}:{node.lineno}"
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            modes = [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
            is_binary = any("b" in str(mode) for mode in modes)
            assert is_binary or "encoding" in keywords, f"{path}:{node.lineno}"


def test_import_needs_no_torch_and_no_extras() -> None:
    """``import torchzip`` brings numpy and ml_dtypes, and neither torch nor tqdm."""
    code = (
        "import sys, torchzip; "
        "print([m for m in ('torch', 'tqdm', 'pandas', 'pickle_compat', 'safetensors')"
        " if m in sys.modules])"
    )
    assert python("-c", code).strip() == "[]"


def test_modules_are_not_too_long() -> None:
    """A module that passes about 600 lines has two jobs."""
    for path in _MODULES:
        lines = len(path.read_text().splitlines())
        assert lines <= 700, f"{_name(path)} has {lines} lines"
