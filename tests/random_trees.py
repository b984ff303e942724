"""Random trees that both torch and torchzip can write."""

from __future__ import annotations

import fractions
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

from tests.picklable import Color, Data, DictSubclass, ListSubclass, Plain, Point, add
from tests.torch_oracle import TENSOR_DTYPES, TYPED_STORAGES, tensor, typed_storage, view
from tests.value_trees import DTYPE_NAMES

_WORDS = ("", "a", "0", "cpu", "storage", "latin1", "weight", "lr", "cuda:0", "\u00e9t\u00e9")


class _Grower:
    """Grows one random tree; what it has made before may appear again."""

    def __init__(self, torch: Any, rng: random.Random, size: int) -> None:
        self._torch = torch
        self._rng = rng
        self._left = size
        self._made: list[Any] = []
        self._hashable: list[Any] = []
        self._bases: list[tuple[str, Any, int]] = []

    def value(self, depth: int) -> Any:
        """Return a value of at most this depth."""
        rng = self._rng
        if self._made and rng.random() < 0.15:
            return rng.choice(self._made)
        self._left -= 1
        if depth <= 0 or self._left <= 0 or rng.random() < 0.45:
            made = self._leaf() if rng.random() < 0.6 else self._tensor()
            self._made.append(made)
            return made
        return self._container(depth - 1)

    def _count(self) -> int:
        rng = self._rng
        return rng.choice((0, 1, 2, 3, 4, 5, rng.randint(6, 12)))

    def _container(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.choice((list, list, dict, dict, tuple, tuple, OrderedDict, ListSubclass,
                           DictSubclass, Point, Plain, Data, defaultdict, deque))  # fmt: skip
        made: Any
        if kind in (tuple, Point):
            count = self._count() if kind is tuple else 2
            items = [self.value(depth) for _ in range(count)]
            made = tuple(items) if kind is tuple else Point._make(items)
            self._made.append(made)
            return made
        make: Any = kind
        made = defaultdict(list) if kind is defaultdict else make()
        self._made.append(made)  # from here on it can hold itself
        if kind in (list, ListSubclass, deque):
            for _ in range(self._count()):
                made.append(self.value(depth))
        elif kind is Plain or kind is Data:
            for name in ("first", "rest")[: self._count()]:
                setattr(made, name, self.value(depth))
        else:
            for _ in range(self._count()):
                key = self._key()
                if key not in made:  # what was made must stay in the tree
                    made[key] = self.value(depth)
            if kind is OrderedDict and rng.random() < 0.3:
                made._metadata = self.value(depth)
        return made

    def _key(self) -> Any:
        rng = self._rng
        if self._hashable and rng.random() < 0.2:
            return rng.choice(self._hashable)
        key: Any = rng.choice((
            lambda: rng.choice(_WORDS), lambda: f"layers.{rng.randint(0, 99)}.weight",
            lambda: rng.randint(-3, 300), lambda: (rng.randint(0, 9), rng.choice(_WORDS)),
            lambda: None, lambda: rng.random(), lambda: b"key", lambda: rng.random() < 0.5,
        ))()  # fmt: skip
        self._hashable.append(key)
        return key

    def _leaf(self) -> Any:
        rng, torch = self._rng, self._torch
        made: Any = rng.choice((
            lambda: rng.getrandbits(rng.randint(1, 80)) * rng.choice((1, -1)),
            lambda: rng.getrandbits(rng.choice((8, 16, 31, 32, 63, 64, 2040, 2100))),
            lambda: rng.choice((0.0, -0.0, float("inf"), float("nan"), rng.random())),
            lambda: rng.choice(_WORDS),
            lambda: "".join(chr(rng.choice((rng.randint(0, 127), rng.randint(0, 0xFFFF))))
                            for _ in range(rng.randint(0, 5))),
            lambda: rng.randbytes(rng.randint(0, 6)),
            lambda: bytearray(rng.randbytes(rng.randint(0, 6))),
            lambda: rng.choice((None, True, False, ..., int, add, Color.RED, Plain.Inner)),
            lambda: complex(rng.random(), rng.random()),
            lambda: {rng.randint(0, 9) for _ in range(self._count())},
            lambda: Counter({rng.choice(_WORDS): rng.randint(0, 5)}),
            lambda: range(rng.randint(0, 9)),
            lambda: slice(rng.randint(0, 9), None),
            lambda: fractions.Fraction(rng.randint(1, 9), 7),
            lambda: getattr(torch, rng.choice(DTYPE_NAMES)),
            lambda: torch.Size([rng.randint(0, 9) for _ in range(rng.randint(0, 4))]),
            lambda: torch.device(rng.choice(("cpu", "cuda", "cuda:1", "meta"))),
            lambda: rng.choice((torch.strided, torch.sparse_coo, torch.per_tensor_affine)),
        ))()  # fmt: skip
        return made

    def _tensor(self) -> Any:
        rng, torch = self._rng, self._torch
        if self._bases and rng.random() < 0.4:
            dtype, base, numel = rng.choice(self._bases)
            made = self._view(dtype, base.untyped_storage(), numel)
        else:
            dtype = rng.choice(TENSOR_DTYPES)
            shape = tuple(rng.randint(0 if rng.random() < 0.2 else 1, 3)
                          for _ in range(rng.randint(0, 4)))  # fmt: skip
            base = tensor(torch, dtype, shape, seed=rng.getrandbits(30))
            if base.numel():
                self._bases.append((dtype, base, base.numel()))
            made = base
        if rng.random() < 0.2:
            floating = dtype in ("float64", "float32", "float16", "bfloat16", "complex64")
            made = torch.nn.Parameter(made, requires_grad=floating and rng.random() < 0.7)
        elif rng.random() < 0.05 and dtype in TYPED_STORAGES:
            made = typed_storage(torch, dtype, made.untyped_storage())
        return made

    def _view(self, dtype: str, storage: Any, numel: int) -> Any:
        rng = self._rng
        offset = rng.randrange(numel)
        room = numel - offset - 1
        shape, stride = [], []
        for _ in range(rng.randint(0, 4)):
            step = rng.choice((0, 1, 2, rng.randint(0, numel)))
            size = rng.randint(1, 3) if step == 0 else rng.randint(1, min(4, room // step + 1))
            room -= (size - 1) * step
            shape.append(size)
            stride.append(step)
        return view(self._torch, dtype, storage, shape, stride, offset)


def random_tree(torch: Any, rng: random.Random, size: int = 40, depth: int = 4) -> Any:
    """Return a random torch tree of about ``size`` values that torchzip can write too."""
    grower = _Grower(torch, rng, size)
    return [grower.value(depth) for _ in range(rng.randint(1, 8))]
