"""Calls that are allowed, with arguments that are absurd."""

from __future__ import annotations

from tests import builders as b
from tests.hostile.attack import Attack
from tests.hostile.parts import DTYPE, byte_array, zipped
from torchzip.errors import PickleError, TorchZipError, UnsupportedError

_PICKLES: list[tuple[str, bytes, type[TorchZipError]]] = [
    ("Size of text", b.call(b.name("torch", "Size"), b.tuple_of(b.text("1"))), PickleError),
    ("Size of a number", b.call(b.name("torch", "Size"), b.integer(1)), PickleError),
    ("device of a number", b.call(b.name("torch", "device"), b.integer(1)), PickleError),
    ("device of text twice", b.call(b.name("torch", "device"), b.text("a"), b.text("b")),
     PickleError),
    ("layout without torch", b.call(b.name("torch.serialization", "_get_layout"), b.text("os.x")),
     PickleError),
    ("encode by another codec", b.call(b.name("_codecs", "encode"), b.text("x"), b.text("zip")),
     PickleError),
    ("encode past latin1", b.call(b.name("_codecs", "encode"), b.text("ā"), b.text("latin1")),
     PickleError),
    ("encode by a tensor", b.call(b.name("_codecs", "encode"), b.text("x"), b.tensor()),
     PickleError),
    ("bytes of 2**40", b.call(b.name("builtins", "bytes"), b.integer(1 << 40)), PickleError),
    ("bytearray of 2**40", byte_array(b.integer(1 << 40)), PickleError),
    ("bytearray of text", byte_array(b.text("x")), PickleError),
    ("complex of text", b.call(b.name("builtins", "complex"), b.text("1"), b.text("2")),
     PickleError),
    ("complex of 2**2000", b.call(b.name("builtins", "complex"), b.integer(1 << 2000), b.FALSE),
     PickleError),
    ("complex past the floats", b.call(b.name("builtins", "complex"), b.integer(1 << 2000),
                                       b.integer(0)), PickleError),
    ("range of step 0", b.name("__builtin__", "xrange") + b.ints(0, 1, 0) + b"R", PickleError),
    ("range of text", b.call(b.name("__builtin__", "xrange"), b.text("1")), PickleError),
    ("slice of one", b.call(b.name("builtins", "slice"), b.integer(1)), PickleError),
    ("set of lists", b.call(b.name("builtins", "set"), b.list_of(b"]", b"]")), UnsupportedError),
    ("set of a number", b.call(b.name("builtins", "set"), b.integer(1)), PickleError),
    ("set of tensors", b.call(b.name("builtins", "set"), b.list_of(b.tensor(), b"]")),
     UnsupportedError),
    ("OrderedDict of a dict", b.call(b.name("collections", "OrderedDict"), b"}"), PickleError),
    ("OrderedDict of triples", b.call(b.name("collections", "OrderedDict"),
                                      b.list_of(b.ints(1, 2, 3))), PickleError),
    ("Counter of a list", b.call(b.name("collections", "Counter"), b"]"), PickleError),
    ("BUILD of a tensor", b.tensor() + b"}b", UnsupportedError),
    ("BUILD of a class attribute", b.HOOKS + b.dict_of({"__class__": b"N"}) + b"b", PickleError),
    ("a key into a tensor", b.tensor() + b.text("a") + b"Ns", PickleError),
    ("an item to a tensor", b.tensor() + b"Na", PickleError),
    ("a call of a tensor", b.tensor() + b")R", PickleError),
    ("a call of a storage", b.persistent() + b")R", PickleError),
    ("a call of a dtype", DTYPE + b")R", PickleError),
]  # fmt: skip

ROWS = [Attack(name, zipped(pickle), error) for name, pickle, error in _PICKLES]
