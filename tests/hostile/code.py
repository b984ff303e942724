"""Opcodes and names that would run code in a reader that trusts them."""

from __future__ import annotations

import struct
from dataclasses import replace

from tests import builders as b
from tests.hostile.attack import Attack, Row, attacks
from tests.hostile.parts import (
    FROM_TYPE,
    SYSTEM,
    by_stack,
    short_text,
    tar_of,
    torchscript,
    zipped,
)
from torchzip.errors import (
    ArchiveError,
    FormatError,
    PickleError,
    UnsafeGlobalError,
    UnsupportedError,
)

_CALLED = b.name("tests.hostile.canary", "called")
_VICTIM = b.name("tests.hostile.canary", "Victim")
_OBJECT = _VICTIM + b")\x81"
_STATE = b.dict_of({"__class__": _CALLED, "__reduce__": _CALLED, "x": b"N"})

#: Every way from a name to a call, an object, its items and its state. `pickle` leaves a record
#: with each; the tests say so.
CANARIES: list[tuple[str, bytes]] = [
    ("a name by GLOBAL", _CALLED),
    ("a name by STACK_GLOBAL", by_stack("tests.hostile.canary", "called")),
    ("a dotted name by STACK_GLOBAL", by_stack("tests.hostile.canary", "Victim.append")),
    ("a name that is dropped at once", _CALLED + b"0N"),
    ("a name under a mark that is dropped", b"(" + _CALLED + b"1N"),
    ("a call by REDUCE", _CALLED + b")R"),
    ("a call by REDUCE with arguments", b.call(_CALLED, "x", (_CALLED,))),
    ("a call by REDUCE that is dropped", _CALLED + b")R0N"),
    ("a call by REDUCE of a duplicate", _CALLED + b"2)R\x86"),
    ("a call by REDUCE through the memo", _CALLED + b"q\x070h\x07)R"),
    ("a call by REDUCE through a text memo", _CALLED + b"p1234\n0g1234\n)R"),
    ("a call by REDUCE through MEMOIZE", _CALLED + b"\x940h\0)R"),
    ("a call by INST", b"(itests.hostile.canary\ncalled\n"),
    ("a call by INST with arguments", b"(K\1K\2itests.hostile.canary\nVictim\n"),
    ("a call by OBJ", b"(" + _VICTIM + b"o"),
    ("a call by OBJ with arguments", b"(" + _CALLED + b"K\1K\2o"),
    ("a call by OBJ through the memo", _CALLED + b"q\x000(h\0o"),
    ("an object by NEWOBJ", _OBJECT),
    ("an object by NEWOBJ with arguments", _VICTIM + b"K\1\x85\x81"),
    ("an object by NEWOBJ_EX", _VICTIM + b")}\x92"),
    ("an object by NEWOBJ_EX with keywords", _VICTIM + b")" + b.dict_of({"a": b"N"}) + b"\x92"),
    ("a state by BUILD", _OBJECT + _STATE + b"b"),
    ("a state of slots by BUILD", _OBJECT + b"N" + _STATE + b"\x86b"),
    ("a state of dict and slots by BUILD", _OBJECT + _STATE + _STATE + b"\x86b"),
    ("a state of a list by BUILD", _OBJECT + b.list_of(_CALLED) + b"b"),
    ("a state of False by BUILD", _OBJECT + b.FALSE + b"b"),
    ("a state for the result of a call", _VICTIM + b")R" + _STATE + b"b"),
    ("a state by a setter that is called", _OBJECT + b"q\0" + _CALLED + b"h\0N\x86R0"),
    ("an item by APPEND", _OBJECT + b"Na"),
    ("items by APPENDS", _OBJECT + b"(NNe"),
    ("items by ADDITEMS", _OBJECT + b"(NN\x90"),
    ("an item by SETITEM", _OBJECT + b.text("a") + b"Ns"),
    ("items by SETITEMS", _OBJECT + b"(" + b.text("a") + b"NK\1Nu"),
    ("an item by APPEND to the result of a call", _VICTIM + b")RNa"),
    ("an object as a key", b"}" + _OBJECT + b"Ns"),
    ("objects as items of a set", b"\x8f(" + _OBJECT + _OBJECT + b"\x90"),
    ("objects as items of a frozenset", b"(" + _OBJECT + _OBJECT + b"\x91"),
    ("an object as a key of a DICT", b"(" + _OBJECT + b"Nd"),
    ("a call as an item of a set", b.call("__builtin__.set", [_OBJECT])),
    ("a factory of a defaultdict", b.call("collections.defaultdict", _CALLED)),
    ("an attribute by getattr", b.call("__builtin__.getattr", _VICTIM, "append")),
    ("a call of an attribute by getattr", b.call(b.call("__builtin__.getattr", _VICTIM, "mro"))),
    ("a call by map", b.call("itertools.imap", _CALLED, [b"N", b"N"])),
    ("a call by reduce", b.call("__builtin__.reduce", _CALLED, (1, 2, 3))),
    ("a call by partial", b.call(b.call("functools.partial", _CALLED))),
    ("a call by methodcaller", b.call(b.call("operator.methodcaller", "append"), _OBJECT)),
    ("a call by attrgetter", b.call(b.call("operator.attrgetter", "append"), _OBJECT)),
    ("an object by _reconstructor",
     b.call("copy_reg._reconstructor", _VICTIM, b.name("__builtin__", "object"), b"N")),
    ("an object by __newobj__", b.call("copy_reg.__newobj__", _VICTIM)),
    ("a call after a state", b.HOOKS + b.dict_of({"hook": _CALLED}) + b"b0" + _CALLED + b")R"),
]  # fmt: skip

#: These are inert in torchzip, and in `pickle` too, or cannot be carried out there at all.
_ALIKE: list[tuple[str, bytes]] = [
    ("a call by apply", b.call("__builtin__.apply", _CALLED, b")")),
    ("a call of a nested class by its name", b.call(b.name("tests.hostile.canary", "Victim.mro"))),
    ("a call of the result of a call", b.call(_CALLED) + b")R"),
    ("a new object of the result of a call", b.call(_CALLED) + b")\x81"),
    ("a new object of a function", _CALLED + b")\x81"),
    ("a tensor as the argument of a call", b.call(_CALLED, b.tensor())),
    ("a storage as the argument of a call", b.call(SYSTEM, b.persistent())),
    ("a subclass made by a call", b.call(FROM_TYPE, SYSTEM, _VICTIM, ("x",), b"N")),
    ("a subclass with a state of callables",
     b.call(FROM_TYPE, b.name("torch._utils", "_rebuild_tensor_v2"),
     _VICTIM, (b.persistent(), 0, (4,), (1,), False, b.HOOKS), {"__setstate__": SYSTEM})),
    ("a module with its source",
     b.tuple_of("module", _VICTIM, "x.py", "import os; os.abort()") + b"Q"),
    ("a module with its source that is called",
     b.tuple_of("module", SYSTEM, "x.py", "") + b"Q" + b.tuple_of("exit 1") + b"R"),
    ("a parameter with a state of callables", b.call("torch._utils._rebuild_parameter_with_state",
     b.tensor(), True, b.HOOKS, {"__setstate__": SYSTEM, "__class__": _VICTIM})),
    ("an extension by EXT1", b"\x82\1"),
    ("an extension by EXT1 that is called", b"\x82\x7f" + b.tuple_of("x") + b"R"),
    ("an extension by EXT2", b"\x83\xff\xff"),
    ("an extension by EXT2 that makes an object", b"\x83\0\1)\x81"),
    ("an extension by EXT4", b"\x84\xff\xff\xff\x7f"),
    ("an extension by EXT4 with a state", b"\x84\1\0\0\0)R}b"),
    ("an extension as a name and a number",
     b"\x82\5" + b.name("copy_reg", "extension 5") + b"\x86"),
    ("a factory that is a call", b.call("collections.defaultdict", b.call(SYSTEM))),
    ("a factory that is print", b.call("collections.defaultdict", b.name("__builtin__", "print"))),
    ("a class as an attribute of an OrderedDict", b.HOOKS + b.dict_of({"hook": _VICTIM}) + b"b"),
    ("attributes of an OrderedDict that are called",
     b.HOOKS + b.dict_of({"hook": b.call(SYSTEM, "x")}) + b"b"),
    ("a name as a key", b"}" + SYSTEM + b"Ns"),
    ("a chain of getattr", b.call("__builtin__.getattr",
     b.call("__builtin__.getattr", b.name("torch", "serialization"), "os"), "system")),
    ("a getattr of many names",
     (b.name("__builtin__", "getattr") + b"(") * 200 + SYSTEM + (b.text("x" * 20) + b"tR") * 200),
    ("a getattr of a dunder", b.call("__builtin__.getattr", b.HOOKS, "__reduce_ex__")),
    ("a setattr on a class", b.call("__builtin__.setattr", _VICTIM, "a", b"N")),
    ("a dtype of numpy by a class", b.call("numpy.dtype", _VICTIM, False, True)),
    ("an array of numpy by a class",
     b.call("numpy.core.multiarray._reconstruct", _VICTIM, (0,), "b")),
]  # fmt: skip

#: Names that are called with a text, by what one would see of it.
_CALLED_NAMES = [
    # a shell
    "os system", "posix system", "nt system", "os popen", "os execv", "os _exit", "pty spawn",
    "subprocess check_output", "subprocess getoutput", "_posixsubprocess fork_exec",
    # code
    "builtins exec", "builtins compile", "builtins open", "builtins breakpoint", "builtins input",
    "builtins vars", "builtins type", "builtins memoryview", "codeop compile_command",
    "code interact", "runpy run_path", "importlib import_module", "imp load_source",
    "types FunctionType", "types CodeType", "ctypes CDLL", "pydoc locate", "timeit timeit",
    "pdb run", "cProfile run", "doctest debug_script", "bdb Bdb.run", "pip main", "sys exit",
    "_frozen_importlib _call_with_frames_removed", "logging.config dictConfig",
    # other ways to bytes that are code
    "pickle loads", "_pickle loads", "marshal loads", "shelve open", "dill loads", "joblib load",
    "zipimport zipimporter", "tarfile open", "shutil rmtree", "socket create_connection",
    "urllib.request urlopen", "webbrowser open", "multiprocessing.util spawnv_passfds",
    # torch and numpy
    "torch.serialization load", "torch.hub load_state_dict_from_url", "torch.jit load",
    "torch.storage _load_from_bytes", "torch._utils _import_dotted_name", "torch.ops load_library",
    "torch.utils.cpp_extension load_inline", "torch.package PackageImporter",
    "torch._dynamo.guards CLOSURE_VARS", "numpy fromfile", "numpy.f2py compile",
    "numpy.testing._private.utils runstring", "numpy.core.numerictypes exec",
    # names of Python 2
    "__builtin__ eval", "__builtin__ execfile", "__builtin__ file", "__builtin__ reload",
    "__builtin__ intern", "commands getoutput", "popen2 popen3", "cPickle loads",
    "copy_reg add_extension", "exceptions SystemExit", "UserDict UserDict", "new function",
]  # fmt: skip

#: Names that are nearly ones of the table, and no more in it than any other.
_NEARLY: list[tuple[str, bytes]] = [
    ("a name of torch with a capital", b.name("Torch", "float32")),
    ("a name of torch with a space before", b.name("torch", " float32")),
    ("a name of torch with a space behind", b.name("torch", "float32 ")),
    ("a module of torch with a space", b.name(" torch", "float32")),
    ("a module of torch with a dot", b.name("torch.", "float32")),
    ("a name of torch with a dot", b.name("torch", ".float32")),
    ("a name of torch with a tab", b.name("torch", "float32\t")),
    ("a name of torch with a zero byte", b.name("torch", "float32\0")),
    ("a module in Cyrillic letters", b.name("t\u043erch", "float32")),
    ("a module in wide letters", b.name("\uff54orch", "float32")),
    ("a name with a ligature", b.name("torch", "\ufb02oat32")),
    ("a name with a space of no width", b.name("torch", "float32\u200b")),
    ("a name that is written backwards", b.name("torch", "\u202e23taolf")),
    ("a name with a control sequence", b.name("os\x1b[2J", "system\x07")),
    ("a name of nothing", b.name("", "")),
    ("a name without a module", b.name("", "float32")),
    ("a module without a name", b.name("torch", "")),
    ("a name of 100,000 characters", b.name("os", "x" * 100_000)),
    ("2,000 names", b"(" + b"".join(b.name("os", f"x{i}") for i in range(2000)) + b"t"),
    ("a module of 1,000 parts", b.name(".".join(["os"] * 1000), "system")),
    ("a relative module", b.name("..os", "system")),
    ("a module that is a path", b.name("../../os", "system")),
    ("a rebuild function that is split elsewhere", b.name("torch", "_utils._rebuild_tensor_v2")),
    ("a rebuild function and its globals",
     b.name("torch._utils", "_rebuild_tensor_v2.__globals__")),
    ("a rebuild function as a module", b.name("torch._utils._rebuild_tensor_v2", "__globals__")),
    ("a module behind a dtype", b.name("torch.float32", "__class__")),
    ("a method of OrderedDict", b.call(b.name("collections", "OrderedDict.fromkeys"), b"]")),
    ("a class method as a name of its own", b.name("collections.OrderedDict", "fromkeys")),
    ("a namedtuple by its maker", b.call("collections.namedtuple", "x", "a")),
    ("a function beside one of the table", b.call("_codecs.decode", b"N")),
    ("a lookup beside one of the table", b.call("_codecs.lookup", "zip")),
    ("an array from its buffer", b.call("numpy.frombuffer", "x", "O")),
    ("a function of numpy by its prefix", b.call("numpy.core.multiarray.fromfile", b"N")),
    ("a function of numpy by its new prefix", b.call("numpy._core.multiarray.set_typeDict", b"}")),
    ("a rebuild function of XLA that is none",
     b.call("torch._utils._rebuild_xla_tensor2", b.tensor())),
    ("a STACK_GLOBAL with dots into a class", by_stack("builtins", "str.__class__")),
    ("a STACK_GLOBAL with dots into a module", by_stack("torch", "serialization.os.system")),
    ("a STACK_GLOBAL with dots into the table", by_stack("torch", "nn.parameter.Parameter")),
    ("a STACK_GLOBAL with a line break", by_stack("os\nsystem", "x\ny")),
    ("a STACK_GLOBAL with a lone surrogate", by_stack("torch", "\ud800")),
    ("a STACK_GLOBAL of nothing", by_stack("", "")),
    ("a STACK_GLOBAL from the memo", short_text("os") + b"\x94" + short_text("system")
     + b"\x9400h\0h\1\x93"),
    ("a STACK_GLOBAL of Python 2 at protocol 4", b"\x80\4" + by_stack("__builtin__", "eval")),
    ("a STACK_GLOBAL of Python 2 at protocol 2", b"\x80\2" + by_stack("__builtin__", "eval")),
    ("a set of Python 2 at protocol 4", b"\x80\4" + b.call(by_stack("__builtin__", "set"))),
]  # fmt: skip

_BROKEN: list[Row] = [
    ("a STACK_GLOBAL of numbers", b"K\1K\2\x93"),
    ("a STACK_GLOBAL of bytes", b"C\2osC\6system\x93"),
    ("a STACK_GLOBAL of a name", b.text("os") + SYSTEM + b"\x93"),
    ("a STACK_GLOBAL of a call", b.text("os") + b.call(SYSTEM) + b"\x93"),
    ("a STACK_GLOBAL of one text", b.text("os") + b"\x93"),
    ("a GLOBAL that is not UTF-8", b"cos\xff\nsystem\n"),
    ("a GLOBAL of one line", b"cos\nsystem"),
    ("an INST that is not UTF-8", b"(ios\nsys\xfftem\n"),
    ("an INST without a mark", b"ios\nsystem\n"),
    ("an OBJ of nothing", b"(o"),
    ("an OBJ of a text", b"(" + b.text("os.system") + b"o"),
    ("an OBJ of a dtype", b"(" + b.name("torch", "float32") + b"o"),
    ("an EXT1 of 0", b"\x82\0"),
    ("an EXT2 of 0", b"\x83\0\0"),
    ("an EXT4 of 0", b"\x84\0\0\0\0"),
    ("an EXT4 of -1", b"\x84\xff\xff\xff\xff"),
    ("an EXT4 of -2**31", b"\x84\0\0\0\x80"),
    ("a call of a text", b.text("os.system") + b")R"),
    ("a call of None", b"N)R"),
    ("a call of a list", b"])R"),
    ("a call of a value of a Counter", b.call("collections.Counter") + b")R"),
    ("a call of itself", SYSTEM + b"q\0h\0R"),
    ("a call with a list", SYSTEM + b"]R"),
    ("a call with a text", SYSTEM + b.text("exit 1") + b"R"),
    ("a call with None", SYSTEM + b"NR"),
    ("a call with a call", SYSTEM + b.call(SYSTEM) + b"R"),
    ("a call without arguments", SYSTEM + b"R"),
    ("a new object of a text", b.text("x") + b")\x81"),
    ("a new object with a list", _VICTIM + b"]\x81"),
    ("a new object of a tensor", b.tensor() + b")\x81"),
    ("a new object with keywords that are None", _VICTIM + b")N\x92"),
    ("a new object with keywords that are numbers", _VICTIM + b")}K\1Ns\x92"),
    ("a new object with keywords that are items", _VICTIM + b")" + b.HOOKS + b"\x92"),
    ("a new object with keywords and a list", _VICTIM + b"]}\x92"),
    ("a state for a name", _VICTIM + b"}b", UnsupportedError),
    ("a state for a name of 100,000 characters", b.name("x", "y" * 100_000) + b"}b",
     UnsupportedError),
    ("an item to a name of 100,000 characters", b.name("y" * 100_000, "x") + b"Na"),
    ("a storage whose class is a name of 100,000 characters",
     b.persistent(kind=b.name("torch", "y" * 100_000)), UnsupportedError),
    ("a state for a dtype", b.name("torch", "float32") + b"}b", UnsupportedError),
    ("a state for a list", b"]}b", UnsupportedError),
    ("a state for a dict", b"}" + _STATE + b"b", UnsupportedError),
    ("a state for a set", b"\x8f" + _STATE + b"b", UnsupportedError),
    ("a state for a text", b.text("x") + b"}b", UnsupportedError),
    ("a state for a number", b"K\1}b", UnsupportedError),
    ("a state for a storage", b.persistent() + b"}b", UnsupportedError),
    ("a state for a Counter", b.call("collections.Counter") + b"}b", UnsupportedError),
    ("a state for an extension", b"\x82\1}b", UnsupportedError),
    ("a state twice", _OBJECT + b"}b}b", UnsupportedError),
    ("a state of slots for an OrderedDict", b.HOOKS + b"N}\x86b", UnsupportedError),
    ("a state of a list for an OrderedDict", b.HOOKS + b"]b", UnsupportedError),
    ("a state of an OrderedDict for an OrderedDict", b.HOOKS + b.HOOKS + b"b", UnsupportedError),
    *[(f"{attribute} as an attribute of an OrderedDict",
     b.HOOKS + b.dict_of({attribute: _CALLED}) + b"b") for attribute in ("__dict__",
     "__reduce__", "__reduce_ex__", "__init__", "__eq__", "keys", "update", "__setstate__",
     "__deepcopy__", "__array__", "__array_interface__", "__fspath__", "__len__", "move_to_end")],
    ("a number as an attribute of an OrderedDict", b.HOOKS + b"}K\1Nsb"),
    ("a name as an attribute of an OrderedDict", b.HOOKS + b"}" + SYSTEM + b"Nsb"),
    ("an item to a name", _VICTIM + b"Na"),
    ("items to a name", _VICTIM + b"(NNe"),
    ("a key to a name", _VICTIM + b.text("a") + b"Ns"),
    ("set items to a name", _VICTIM + b"(N\x90"),
    ("an item to a dict", b"}Na"),
    ("an item to a set", b"\x8fNa"),
    ("an item to a tuple", b")Na"),
    ("an item to a text", b.text("x") + b.text("y") + b"a"),
    ("an item to an OrderedDict", b.HOOKS + b"Na"),
    ("an item to a parameter", b.call("torch._utils._rebuild_parameter", b.tensor(),
                                      True, b.HOOKS) + b"Na"),
    ("a key to a list", b"]K\0Ns"),
    ("a key to a tuple", b"N\x85K\0Ns"),
    ("a key to bytes", b"\x96" + struct.pack("<Q", 1) + b"xK\0K\1s"),
    ("set items to a dict", b"}(N\x90"),
    ("set items to a list", b"](N\x90"),
    ("set items to a frozenset", b"(\x91(N\x90"),
    ("list items and dict items", _OBJECT + b"Na" + b.text("a") + b"Ns", UnsupportedError),
    ("dict items and list items", _OBJECT + b.text("a") + b"NsNa", UnsupportedError),
    ("list items and set items", _OBJECT + b"Na(N\x90", UnsupportedError),
    ("a persistent id of a name", SYSTEM + b"Q"),
    ("a persistent id of a call", b.call(SYSTEM, "x") + b"Q"),
    ("a persistent id of a list", b"]Q"),
    ("a persistent id of a number", b"K\0Q"),
    ("a persistent id as a line", b"P0\n"),
    ("a persistent id as a line of Python", b"P__import__('os').system('exit 1')\n"),
    ("a persistent id as an empty line", b"P\n"),
    ("a persistent id that is not UTF-8", b"P\xff\n"),
    ("a module of a text", b.tuple_of("module", "os", b"NN") + b"Q"),
    ("a module of five", b.tuple_of("module", SYSTEM, b"NNN") + b"Q"),
    ("a storage whose class is a call", b.persistent(kind=b.call(SYSTEM, "x")), UnsupportedError),
    ("a storage whose class is os.system", b.persistent(kind=SYSTEM), UnsupportedError),
    ("a NEXT_BUFFER", b"\x97", UnsupportedError),
    ("a NEXT_BUFFER at protocol 5", b"\x80\5\x97", UnsupportedError),
    ("a READONLY_BUFFER of nothing", b"\x98", UnsupportedError),
    ("a READONLY_BUFFER of bytes", b"C\1x\x98", UnsupportedError),
    ("a getattr of a table", b.call(b.call("torch.Size", b")") + b")R")),
]  # fmt: skip

_CODE = b.call(SYSTEM, "exit 1")
_PICKLE = b.stream(_CODE)
_MEMBERS = b.members_of(b.stream(b.tensor()))
_CODE_MEMBERS = b.members_of(_PICKLE, root="other")


def _legacy(
    *, pickle: bytes = b.stream(b"N"), keys: bytes = b.stream(b"]"), **more: bytes
) -> bytes:
    return b.legacy(pickle, keys, b"", **more)


def _second(name: bytes) -> bytes:
    """Return a good archive and the pickle that is code in one more record."""
    return b.build_zip([*_MEMBERS, b.Member(name=name, data=_PICKLE)])


_FILES: list[Row] = [
    # where a reader must not look for code
    ("a second pickle after STOP", b.checkpoint(b.stream(b"N") + _PICKLE), None),
    ("a second pickle in the file's tail", b.checkpoint(b.stream(b"N")) + _PICKLE, None),
    ("a second data.pkl in another root", b.build_zip(_MEMBERS + _CODE_MEMBERS[:1]), ArchiveError),
    ("another root before the first", b.build_zip(_CODE_MEMBERS[:1] + _MEMBERS), ArchiveError),
    ("a second data.pkl below", _second(b"archive/data/data.pkl"), None),
    ("a second data.pkl of the same name", _second(b"archive/data.pkl"), ArchiveError),
    ("a second data.pkl in capitals", _second(b"archive/DATA.PKL"), ArchiveError),
    ("a data.pkl without a root", _second(b"data.pkl"), ArchiveError),
    ("a byteorder that is a pickle", b.build_zip([replace(each, data=_PICKLE)
     if each.name.endswith(b"byteorder") else each for each in _MEMBERS]), ArchiveError),
    ("a version that is a pickle", b.build_zip([replace(each, data=_PICKLE)
     if each.name.endswith(b"version") else each for each in _MEMBERS]), ArchiveError),
    ("a storage that is a pickle", b.checkpoint(b.stream(b.tensor(b.persistent(kind=b.name("torch",
     "ByteStorage"), numel=len(_PICKLE)), size=(len(_PICKLE),))), {"0": _PICKLE}), None),
    ("a bare pickle of code", _PICKLE, FormatError),
    ("a bare pickle of code at protocol 0", b"cos\nsystem\n(S'exit 1'\ntR.", FormatError),
    # the legacy stream
    ("legacy with code for its magic", _legacy(magic=_CODE), FormatError),
    ("legacy with code before its magic", _PICKLE + _legacy(), FormatError),
    ("legacy with code within its magic", _legacy(magic=_CODE + b"0" + b.MAGIC), None),
    ("legacy with code for its version", _legacy(version=_CODE), FormatError),
    ("legacy with code within its version", _legacy(version=_CODE + b"0" + b.integer(1001)), None),
    ("legacy with code for its description", _legacy(system=_CODE), None),
    ("legacy with code as its object", _legacy(pickle=_PICKLE), None),
    ("legacy with code for its keys", _legacy(keys=_PICKLE)),
    ("legacy with code among its keys", _legacy(keys=b.stream(b.list_of(_CODE)))),
    ("legacy with a storage as its version", _legacy(version=b.persistent())),
    ("legacy with a storage among its keys", _legacy(keys=b.stream(b.list_of(b.persistent())))),
    ("legacy with code behind its keys", _legacy() + _PICKLE, None),
    # the tar file
    ("tar with code as its object", tar_of(root=_PICKLE), None),
    ("tar with code for its storages", tar_of(storages=_PICKLE)),
    ("tar with code for its tensors", tar_of(tensors=_PICKLE)),
    ("tar with code as a storage", tar_of(storages=b.stream(b"K\1") + _PICKLE)),
    ("tar with code as the class of a storage", tar_of(storages=b.stream(b"K\1")
     + b.stream(b.tuple_of(0, "cpu", SYSTEM)) + bytes(8)), UnsupportedError),
    ("tar with code for its description", tar_of(description=_PICKLE), None),
    ("tar with a persistent id that is code", tar_of(root=b.stream(b.call(SYSTEM, "x") + b"Q"))),
    # TorchScript
    ("TorchScript with code as its object", torchscript(_PICKLE), None),
    ("TorchScript with code for its constants", torchscript(b.stream(b"N"), constants=_PICKLE),
     None),
    ("TorchScript with source of Python",
     torchscript(b.stream(b"N"), source=b"import os\nos.system('exit 1')\n"), None),
    ("TorchScript with an enum that is code",
     torchscript(b.stream(b.name("__torch__.os", "system") + b.text("exit 1") + b"R")), None),
    ("TorchScript with a call by one value", torchscript(b.stream(SYSTEM + b.text("x") + b"R"))),
    ("TorchScript with a state of code", torchscript(b.stream(b.name("__torch__", "Net")
     + b")\x81" + b.dict_of({"x": b.call(SYSTEM, "exit 1")}) + b"b")), None),
    ("TorchScript with a type tag that is code", torchscript(
     b.stream(b.call("torch.jit._pickle.restore_type_tag", b"]", b.call(SYSTEM))))),
]  # fmt: skip


def _twins(name: str, data: bytes) -> list[Attack]:
    """Return a file that is inert, and the same where names outside the table are refused."""
    return [Attack(name, data, None), Attack(f"{name}, refused", data, UnsafeGlobalError, "raise")]


ROWS: list[Attack] = [
    attack
    for name, pickle in [
        *CANARIES,
        *_ALIKE,
        *((f"a call of {each}", b.call(b.name(*each.split()), "exit 1"))
          for each in _CALLED_NAMES),
        *_NEARLY,
    ]
    for attack in _twins(name, zipped(pickle))
]  # fmt: skip
ROWS += attacks(_BROKEN, PickleError, zipped)
ROWS += attacks(_FILES, PickleError)
