"""Pickles as trees: each value with the values it is made of, to be cut and grafted.

A pickle is a postfix text: every opcode takes what is on the stack and leaves a value. So a value
is an opcode and its children, and any child may be replaced by a value from another file. What
comes out is a pickle that a stack machine carries out to the end, unless the change was meant to
break it.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from tests import builders as b

_ON_AN_OBJECT = frozenset(b"eu\x90")  # APPENDS, SETITEMS, ADDITEMS: what is below the mark counts
_CHANGE_AN_OBJECT = frozenset(b"aesub\x90")
_NUMBER_IT = frozenset(b"pqr\x94")  # PUT and its like leave what they number
_BY_NUMBER = frozenset(b"ghj")  # GET and its like
_SKIPPED = frozenset(b"\x80\x95")  # PROTO, FRAME


@dataclass(frozen=True, eq=False)
class Node:
    """An opcode with its argument, and what it takes from the stack, ``below`` of it below a mark.

    Nodes may be shared: a value that a pickle mentions by number is one node in many places.
    """

    opcode: bytes
    children: Sequence[Node] = ()
    has_mark: bool = False
    below: int = 0

    def write(self, changed: Mapping[int, bytes] | None = None) -> bytes:
        """Return the opcodes that make this value, with others for the nodes of these ids."""
        parts: list[bytes] = []
        pending: list[Node | bytes] = [self]
        while pending:
            node = pending.pop()
            if not isinstance(node, bytes) and changed:
                node = changed.get(id(node), node)
            if isinstance(node, bytes):
                parts.append(node)
                continue
            pending.append(node.opcode)
            pending += reversed(node.children[node.below :])
            if node.has_mark:
                pending.append(b"(")
            pending += reversed(node.children[: node.below])
        return b"".join(parts)

    def nodes(self) -> list[Node]:
        """Return this node and all below it, each once."""
        found = {id(self): self}
        pending = [self]
        while pending:
            for child in pending.pop().children:
                if id(child) not in found:
                    found[id(child)] = child
                    pending.append(child)
        return list(found.values())


def parse(data: bytes, *, by_number: bool = True) -> Node:
    """Return the tree of a pickle that is whole.

    Without ``by_number`` no value is numbered: where one was mentioned by number, it is itself, so
    that any part of the tree can stand in another. (Values inside themselves are left out.)
    """
    stack: list[Node] = []
    marks: list[int] = []
    numbered: dict[int, Node] = {}
    steps = list(pickletools.genops(data))
    ends = [position for _, _, position in steps[1:]] + [len(data)]
    for (code, argument, position), end in zip(steps, ends, strict=True):
        raw = data[position:end]
        if raw[0] in _SKIPPED:
            continue
        if raw == b".":
            break
        if raw == b"(":
            marks.append(len(stack))
        elif raw in (b"0", b"1"):  # POP, POP_MARK
            del stack[marks.pop() if raw == b"1" else -1 :]
        elif raw == b"2":  # DUP
            stack.append(stack[-1])
        elif raw[0] in _NUMBER_IT:
            numbered[len(numbered) if argument is None else int(str(argument))] = stack[-1]
            if by_number:
                stack[-1] = Node(raw, [stack[-1]])
        elif raw[0] in _BY_NUMBER and not by_number:
            stack.append(numbered[int(str(argument))])
        elif pickletools.markobject in code.stack_before:
            below = 1 if raw[0] in _ON_AN_OBJECT else 0
            start = marks.pop()
            start -= below
            stack[start:] = [Node(raw, stack[start:], has_mark=True, below=below)]
        else:
            start = len(stack) - len(code.stack_before)
            stack[start:] = [Node(raw, stack[start:])]
        if raw[0] in _CHANGE_AN_OBJECT:  # which keeps its number
            for number, node in numbered.items():
                if node is stack[-1].children[0]:
                    numbered[number] = stack[-1]
    return stack[-1]


#: Numbers at which something overflows, wraps round or is no longer small.
NUMBERS = [
    *range(-2, 18), 64, 65, 127, 128, 255, 256, 1000, 4095, 65535, 65536, 2**20, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**53, 2**61 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, -128,
    -256, -(2**31), -(2**63), -(2**64),
]  # fmt: skip
TEXTS = [
    "", "0", "1", "00", ".", "..", "../0", "a/b", "data.pkl", "\0", "\n", "\ud800", "é", "cpu",
    "cuda:0", "meta", "storage", "module", "tensor", "little", "big", "float32", "torch.strided",
    "torch.sparse_coo", "weight", "a.b", "__class__", "__dict__", "__setstate__", "_metadata",
    "conj", "neg", "latin1", "utf-8", "zip", "C", "O8", "<f4", "|b1", "V8", "x" * 300,
]  # fmt: skip
_FOREIGN_NAMES = [
    ("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("builtins", "object"),
    ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"), ("collections", "deque"),
    ("collections", "defaultdict"), ("torch", "load"), ("torch", "Tensor"), ("torch", "int4"),
    ("torch.nn.parameter", "Parameter"), ("torch.serialization", "load"), ("__main__", "Net"),
    ("numpy", "dtype"), ("numpy", "ndarray"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"), ("decimal", "Decimal"), ("datetime", "datetime"),
    ("fractions", "Fraction"), ("pathlib", "PosixPath"), ("enum", "Enum"), ("builtins", "list"),
    ("builtins", "dict"), ("builtins", "bytes"), ("builtins", "frozenset"), ("builtins", "range"),
    ("builtins", "slice"), ("__builtin__", "set"), ("__builtin__", "xrange"), ("", ""),
    ("a.b", "c.d"),
]  # fmt: skip


@cache
def _names() -> list[tuple[str, str]]:
    from torchzip.pickling.allowlist import TORCH_SAFE_NAMES

    return _FOREIGN_NAMES + [
        (name.rpartition(".")[0], name.rpartition(".")[2]) for name in sorted(TORCH_SAFE_NAMES)
    ]


def _number(rng: Random) -> bytes:
    value = rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(rng.randrange(1, 90))
    way = rng.randrange(4)
    if way == 0:
        return b"I%d\n" % value
    if way == 1:
        return b"L%dL\n" % value
    if way == 2 and 0 <= value < 256:
        return b"K" + bytes([value])
    return b.integer(value)


def _text(rng: Random) -> bytes:
    value = rng.choice(TEXTS) if rng.random() < 0.8 else str(rng.choice(NUMBERS))
    raw = value.encode("utf-8", "surrogatepass")
    way = rng.randrange(4)
    if way == 0 and len(raw) < 256:
        return b"\x8c" + bytes([len(raw)]) + raw
    if way == 1 and len(raw) < 256:
        return b"U" + bytes([len(raw)]) + raw
    if way == 2:
        return b"\x8d" + struct.pack("<Q", len(raw)) + raw
    return b.text(value)


def atom(rng: Random) -> Node:
    """Return a value without parts, often a strange one."""
    way = rng.randrange(12)
    if way < 4:
        return Node(_number(rng))
    if way < 6:
        return Node(_text(rng))
    if way < 8:
        return Node(b.name(*rng.choice(_names())))
    if way == 8:
        value = rng.choice([0.0, -0.0, 1.5, float("nan"), float("inf"), 1e308])
        return Node(b"G" + struct.pack(">d", value))
    if way == 9:
        raw = bytes(rng.getrandbits(8) for _ in range(rng.randrange(20)))
        opcode = rng.choice([b"C" + bytes([len(raw)]), b"\x96" + struct.pack("<Q", len(raw))])
        return Node(opcode + raw)
    if way == 10:
        return Node(b"h" + bytes([rng.randrange(40)]))
    return Node(rng.choice([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f"]))


#: Opcodes that take as many values and leave one.
_ALIKE = [
    b"N\x88\x89)]}\x8f", b"\x85Q\x98", b"\x86Rba\x81\x93", b"\x87s\x92", b"tld\x91o", b"eu\x90",
]  # fmt: skip


def changed(rng: Random, tree: Node, parts: Sequence[Node]) -> bytes:
    """Return a tree with one to four of its values changed; ``parts`` are grafted into it."""
    nodes = tree.nodes()
    changes: dict[int, bytes] = {}
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
        node = rng.choice(nodes)
        changes[id(node)] = _instead_of(rng, node, nodes, parts)
    return tree.write(changes)


def _instead_of(rng: Random, node: Node, nodes: Sequence[Node], parts: Sequence[Node]) -> bytes:
    way = rng.randrange(14)
    if way < 3:
        return atom(rng).write()
    if way < 5:
        return rng.choice(parts).write()
    if way < 7:
        return rng.choice(nodes).write()
    if way < 10 and node.children:
        children = list(node.children)
        at = rng.randrange(len(children))
        if way == 7 and node.has_mark:
            del children[at]
        elif way == 8 and node.has_mark:
            children[at:at] = [children[at]] * rng.choice([1, 1, 2, 300])
        else:
            other = rng.randrange(len(children))
            children[at], children[other] = children[other], children[at]
        return replace(node, children=children).write()
    if way == 10:
        for alike in _ALIKE:
            if node.opcode[0] in alike:
                other = rng.choice(alike)
                return replace(node, opcode=bytes([other])).write()
    if way == 11 and len(node.opcode) > 1:
        argument = bytearray(node.opcode)
        argument[rng.randrange(1, len(argument))] ^= 1 << rng.randrange(8)
        return replace(node, opcode=bytes(argument)).write()
    return _wrapped(rng, node.write(), rng.choice(parts).write())


def _wrapped(rng: Random, value: bytes, other: bytes) -> bytes:
    """Return a value inside another, or inside itself."""
    name = b.name(*rng.choice(_names()))
    ways = [
        value + b"\x85", b"](" + value + b"e", value + b"2\x86", b"}" + value + other + b"s",
        b"}" + other + value + b"s", b"\x8f(" + value + b"\x90", name + value + b"R",
        name + value + b"\x85R", name + value + other + b"\x86R",
        name + b")\x81" + value + b"b", value + other + b"b", value + other + b"a", value + b")R",
        other + value + b"\x85R", value + b"Q", b"(" + value + other + b"o", value + b"q\x01",
        b"]q\x27h\x27a", b"}q\x27" + value + b"h\x27s", value + b"}" + other + other + b"sb",
        b"(" + value + b"1" + other, value + b"0" + other,
    ]  # fmt: skip
    return rng.choice(ways)
