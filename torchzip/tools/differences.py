"""What differs between two checkpoints, of whatever formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of, is_tensor, storages_of
from torchzip.checkpoint.plain_values import same_value, what_is_beside
from torchzip.checkpoint.walk import Label, joined
from torchzip.container.gguf import value_text
from torchzip.convert.carried import OBJECT_KEY
from torchzip.convert.meter import Meter, Progress
from torchzip.convert.rules import Globs, Rules
from torchzip.convert.selection import Held, select
from torchzip.dtypes import BLOCKS, DTYPES
from torchzip.errors import EnoughMemory, ErrorPlace, shown
from torchzip.files.location import StorageOptions, located
from torchzip.files.source import File
from torchzip.limits import Limits
from torchzip.tensors.casts import is_castable
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.specs import TensorSpec, layout
from torchzip.tensors.storage import Part, will_read
from torchzip.tools.elements import (
    Compared,
    ElementDifference,
    Located,
    Tolerance,
    Work,
    compare_elements,
    content_crc,
    digest,
    once_each,
    same_codes,
    same_unread,
    undecoded,
)
from torchzip.tools.parts import named_parts
from torchzip.types import (
    MetaTensor,
    NestedTensor,
    OtherTensor,
    QuantizedTensor,
    SparseTensor,
)


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """What a tensor is, but for its elements. ``kind`` is "dense", "storage", "sparse_coo", ...

    ``torch_dtype`` is the GGUF type of one whose numbers are not decoded.
    """

    name: str
    kind: str
    torch_dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that both have and that is not the same.

    ``what`` has one or more of "kind", "dtype", "shape" and "form" (what else a tensor that is not
    dense is made of); or it is "codes" alone, of a GGUF type that is not decoded; or it is "values"
    alone, and ``values`` says how they differ. ``part`` is the part of a tensor that is not dense,
    such as "indices" or "indices.0".
    """

    before: TensorSummary
    after: TensorSummary
    what: tuple[str, ...]
    values: ElementDifference | None = None
    part: str | None = None


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A value that is not a tensor, as messages show it; None where it is not there."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between two checkpoints.

    ``equal`` counts the tensors that are the same. Those in ``other_bits`` are among them:
    equal in value, with zeros of another sign or NaNs of another payload; and so are those in
    ``close``, which are equal within the tolerance only. Of ``unread`` ones only
    the stored CRCs were compared. A pair in ``renamed``
    has the same bytes, dtype and shape under another name.
    """

    a: str
    b: str
    equal: int
    unread: int
    added: tuple[TensorSummary, ...]
    removed: tuple[TensorSummary, ...]
    renamed: tuple[tuple[TensorSummary, TensorSummary], ...]
    changed: tuple[TensorChange, ...]
    values: tuple[ValueChange, ...]
    other_bits: tuple[str, ...]
    close: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.added or self.removed or self.renamed or self.changed or self.values)


@EnoughMemory()
def diff(
    a: File,
    b: File,
    *,
    include: Globs = None,
    exclude: Globs = None,
    tensors_only: bool = False,
    cast: bool = False,
    atol: float = 0,
    rtol: float = 0,
    read: bool = False,
    dequantize: bool = False,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> Diff:
    """Compare two checkpoints and return what differs, from ``a`` to ``b``.

    No data is read of tensors whose storages have one size and one stored CRC in both files (as
    all of zip files of torch have), unless ``read`` is true: damage and forged CRCs do not show.
    Others are read block by block, in memory that does not grow with them, and compared by value:
    NaN equals NaN, 0.0 equals -0.0. Tensors are compared by their flat names and by what they show:
    ``{"a.b": t}`` is ``{"a": {"b": t}}``, and strides, ties, devices, requires_grad, whether a
    sparse one is coalesced, and the order of keys may differ. What hangs on tensors, Parameters
    and dicts (the ``_metadata`` of a state dict) is compared too, under names such as
    ``layer.weight (scale)``, and so is what containers are: ``config (form)`` is OrderedDict or
    dict, say. With ``cast``, a floating tensor of another dtype is first cast to that of ``b``, as
    `convert` does it.

    With ``dequantize``, plain weights are compared in the place of quantized ones of either side
    (`lazy.dequantized`): of a model and what it was quantized from, in the same dtype or with
    ``cast``.

    ``include`` and ``exclude`` are globs on the names of tensors and of all else, as for `convert`;
    ``tensors_only`` leaves out all else. With ``atol`` and ``rtol`` two numbers are equal if they
    are not further apart than ``atol + rtol * abs(b)``; an infinity is close to none but itself.
    ``progress`` is called with the bytes compared so far and those in all.

    A file that holds tensors by name, such as a .safetensors, has no place for the ``_metadata`` of
    a state dict, nor for the class of a dict: against it neither is a difference. What `convert`
    has put into the metadata of a safetensors file, ties and the object around the tensors, is
    compared too.

    Raises
    ------
    TorchZipError, OSError
        If one of the files is bad, whatever its bytes; nothing else.

    Examples
    --------
    >>> import numpy as np, os, tempfile, torchzip
    >>> folder = tempfile.mkdtemp()
    >>> one, other = os.path.join(folder, "a.pt"), os.path.join(folder, "b.pt")
    >>> torchzip.save({"w": np.array([1.0, 2.0, 3.0]), "step": 7}, one)
    >>> torchzip.save({"w": np.array([1.0, 2.5, 3.0]), "step": 7}, other)
    >>> found = diff(one, other)
    >>> values = found.changed[0].values
    >>> found.is_equal, values.count, values.max_abs, values.first, values.max_rel
    (False, 1, 0.5, (1,), 0.2)
    >>> diff(one, other, rtol=0.3).close
    ('w',)
    """
    rules, tolerance = Rules(include=include, exclude=exclude), Tolerance(atol, rtol)
    a, b = located(a, storage_options), located(b, storage_options)
    with Checkpoint(a, limits=limits) as before, Checkpoint(b, limits=limits) as after:
        one, other = (_Side(each, rules, tensors_only, dequantize) for each in (before, after))
        if rules.unused() and not any(side.tensors or side.values for side in (one, other)):
            raise ValueError(f"nothing is left to compare: {'; '.join(rules.unused())}")
        return _Comparison(one, other, cast, read, tolerance, progress).run()


Comparable = Held | BareStorage
_T = TypeVar("_T")


class _Side:
    """One of the two checkpoints: its tensors, bare storages among them, and its values."""

    def __init__(
        self, checkpoint: Checkpoint, rules: Rules, tensors_only: bool, dequantize: bool
    ) -> None:
        self.path = checkpoint.path
        with ErrorPlace(path=self.path):
            selection = select(checkpoint, Rules(), dequantize=dequantize)
            named = [*selection.original.values(), *selection.arrays.values()]
            named += selection.tensors.values()
            beside = what_is_beside(selection.around, named, checkpoint.limits)
        self.tensors: dict[str, Comparable] = beside.tensors | selection.tensors
        values = {}
        for index, constant in enumerate(checkpoint.constants):
            if is_tensor(constant):
                self.tensors[f"(constant {index})"] = data_of(constant)
            else:
                beside.values[f"(constant {index})"] = constant
        for name, value in beside.values.items():
            if isinstance(value, BareStorage):
                self.tensors.setdefault(name, value)
            elif not tensors_only:
                values[name] = value
        # A file that holds tensors by name has no object around them, but for ours.
        is_by_name = checkpoint.container.is_by_name
        self.has_object = not is_by_name or OBJECT_KEY in checkpoint.metadata
        self.tensors = _kept(self.tensors, rules)
        self.values = _kept(values, rules)
        has_forms = self.has_object and not tensors_only
        self.forms = _kept(beside.forms, rules) if has_forms else None
        storages = {id(each): each for held in self.tensors.values() for each in storages_of(held)}
        self.storages = [*storages.values()]
        self.stored_nbytes = sum(storage.nbytes for storage in self.storages)
        # The strings of a safetensors header; other formats have none to compare them with.
        self.texts = None
        if is_by_name and not tensors_only:
            self.texts = {key: value_text(text) for key, text in selection.metadata.items()}

    def row(self, name: str) -> TensorSummary:
        held = self.tensors[name]
        if isinstance(held, OtherTensor):
            return TensorSummary(name, held.kind, held.torch_dtype, held.shape)
        ((_, spec),) = _parts(held)
        kind = "storage" if isinstance(held, BareStorage) else "dense"
        return TensorSummary(name, kind, undecoded(spec) or spec.torch_dtype, spec.shape)


def _kept(named: Mapping[str, _T], rules: Rules) -> dict[str, _T]:
    return {name: each for name, each in named.items() if rules.keeps(name)}


def _parts(held: Comparable) -> list[tuple[str | None, TensorSpec]]:
    """Return the parts of a tensor that is not dense with their names; any other as one part."""
    if isinstance(held, OtherTensor):
        return [(name, part.spec) for name, part in named_parts(held)]
    if isinstance(held, LazyTensor):
        return [(None, held.spec)]
    dtype = held.torch_dtype or "uint8"
    return [(None, TensorSpec(dtype, (held.count,), (1,), held.first, held.storage))]


class _Comparison:
    """The steps of `diff`, and what was found of tensors that were seen before."""

    def __init__(
        self,
        a: _Side,
        b: _Side,
        cast: bool,
        read: bool,
        tolerance: Tolerance,
        progress: Progress | None,
    ) -> None:
        self._a = a
        self._b = b
        self._cast = cast
        self._read = read
        self._left_unread = 0
        self._tolerance = tolerance
        self._seen: dict[Any, Compared] = {}
        self._digests: dict[Any, bytes] = {}
        self._meter = Meter(0 if progress is None else self._nbytes_to_read(), progress)
        self._work = Work(a.stored_nbytes + b.stored_nbytes, self._meter.add)

    def run(self) -> Diff:
        a, b = self._a, self._b
        changed: list[TensorChange] = []
        other_bits: list[str] = []
        close: list[str] = []
        equal = unread = 0
        for side, other in ((a, b), (b, a)):
            will_read(side.storages, self._parts_to_read(side, other))
        for name in a.tensors:
            if name not in b.tensors:
                continue
            before = self._left_unread
            found, same_bits, is_close = self._tensor(name)
            changed += found
            if not found:
                equal += 1
                unread += self._left_unread > before
                if is_close:
                    close.append(name)
                elif not same_bits:
                    other_bits.append(name)
        removed = [name for name in a.tensors if name not in b.tensors]
        added = [name for name in b.tensors if name not in a.tensors]
        renamed = self._renamed(removed, added)
        self._meter.finish()
        new_names = set(renamed.values())
        return Diff(
            a=a.path,
            b=b.path,
            equal=equal,
            unread=unread,
            added=tuple(b.row(name) for name in added if name not in new_names),
            removed=tuple(a.row(name) for name in removed if name not in renamed),
            renamed=tuple((a.row(old), b.row(new)) for old, new in renamed.items()),
            changed=tuple(changed),
            values=tuple(self._values()),
            other_bits=tuple(other_bits),
            close=tuple(close),
        )

    def _nbytes_to_read(self) -> int:
        """Return the bytes of both sides that are gone over for names that both have."""
        total = 0
        for name in self._a.tensors.keys() & self._b.tensors.keys():
            pairs = zip(_parts(self._a.tensors[name]), _parts(self._b.tensors[name]), strict=False)
            for (_, one), (_, other) in pairs:
                if one.shape == other.shape and (self._read or not same_unread(one, other)):
                    total += 2 * other.numel * DTYPES[other.torch_dtype].itemsize
        return total

    def _parts_to_read(self, side: _Side, other: _Side) -> Iterator[Part]:
        """Yield what is read of one side for the tensors whose names both have."""
        known: set[int] = set()
        for name in self._a.tensors:
            if name in self._b.tensors:
                pairs = zip(_parts(side.tensors[name]), _parts(other.tensors[name]), strict=False)
                for (_, spec), (_, its) in pairs:
                    is_read = self._read or not same_unread(spec, its)
                    if is_read and id(spec.storage) not in known:
                        known.add(id(spec.storage))
                        yield from spec.storage.parts(0, spec.storage.nbytes)

    # -- tensors of one name --------------------------------------------------------------

    def _tensor(self, name: str) -> tuple[list[TensorChange], bool, bool]:
        """Return how a tensor of both differs, if its bits are the same, if it is only close."""
        before, after = self._a.row(name), self._b.row(name)
        one, other = self._a.tensors[name], self._b.tensors[name]
        what = []
        if before.kind != after.kind:
            what.append("kind")
        if not self._same_dtype(before.torch_dtype, after.torch_dtype):
            what.append("dtype")
        if before.shape != after.shape:
            what.append("shape")
        if not (what or self._same_form(one, other)):
            what.append("form")
        if not what and before.torch_dtype in BLOCKS:
            sides = ((one, self._a.path), (other, self._b.path))
            located = (Located(_parts(each)[0][1], path, self._work) for each, path in sides)
            if same_codes(*located):
                return [], True, False
            what.append("codes")
        if what:
            return [TensorChange(before, after, tuple(what))], False, False
        found = []
        all_same_bits, is_close = True, False
        for (part, mine), (_, theirs) in zip(_parts(one), _parts(other), strict=True):
            compared = self._elements(mine, theirs)
            all_same_bits &= compared.same_bits
            is_close |= compared.is_close
            if compared.difference is not None:
                values = compared.difference
                found.append(TensorChange(before, after, ("values",), values, part))
        return found, all_same_bits, is_close

    def _same_dtype(self, a: str, b: str) -> bool:
        if self._cast and a in DTYPES and b in DTYPES:  # not types of GGUF
            return a == b or (is_castable(a) and is_castable(b))
        return a == b

    def _same_form(self, one: Comparable, other: Comparable) -> bool:
        """Return whether two tensors of one kind and shape differ in nothing but elements."""
        parts, others = _parts(one), _parts(other)
        return (
            same_value(_form_of(one), _form_of(other))
            and [(name, part.shape) for name, part in parts]
            == [(name, part.shape) for name, part in others]
            and all(
                self._same_dtype(mine.torch_dtype, theirs.torch_dtype)
                for (_, mine), (_, theirs) in zip(parts, others, strict=True)
            )
        )

    def _elements(self, a: TensorSpec, b: TensorSpec) -> Compared:
        if not self._read and same_unread(a, b):
            self._left_unread += 1
            return Compared(None, True)
        key = (layout(a), layout(b))
        if key not in self._seen:
            self._seen[key] = compare_elements(
                Located(a, self._a.path, self._work),
                Located(b, self._b.path, self._work),
                self._tolerance,
            )
        return self._seen[key]

    # -- tensors under other names --------------------------------------------------------

    def _renamed(self, removed: list[str], added: list[str]) -> dict[str, str]:
        """Return which of the removed tensors are which of the added ones.

        Their bytes are read where dtype, shape, size and CRC leave it open, each once.
        """
        groups: dict[Any, tuple[list[str], list[str]]] = {}
        for place, side, names in ((0, self._a, removed), (1, self._b, added)):
            for name in names:
                signature = _signature(side.row(name), side.tensors[name])
                groups.setdefault(signature, ([], []))[place].append(name)
        renamed: dict[str, str] = {}
        for old, new in groups.values():
            if not (old and new):
                continue
            sides = ((self._a, old), (self._b, new))
            crcs = [{n: _crc_of(side.tensors[n]) for n in names} for side, names in sides]
            if not self._read and not any(None in each.values() for each in crcs):
                both = set(crcs[0].values()) & set(crcs[1].values())
                old, new = ([n for n, crc in each.items() if crc in both] for each in crcs)
            by_digest: dict[bytes, list[str]] = {}
            for name in reversed(new):
                by_digest.setdefault(self._digest(self._b, name), []).append(name)
            for name in old:
                same = by_digest.get(self._digest(self._a, name))
                if same:
                    renamed[name] = same.pop()
        order = {name: place for place, name in enumerate(removed)}
        return dict(sorted(renamed.items(), key=lambda pair: order[pair[0]]))

    def _digest(self, side: _Side, name: str) -> bytes:
        digests = []
        for _, spec in _parts(side.tensors[name]):
            key = layout(spec)
            if key not in self._digests:
                self._digests[key] = digest(Located(spec, side.path, self._work))
            digests.append(self._digests[key])
        return b"".join(digests)

    # -- everything else ------------------------------------------------------------------

    def _values(self) -> Iterator[ValueChange]:
        a, b = self._a.values, self._b.values
        if not (self._a.has_object and self._b.has_object):
            a, b = ({k: v for k, v in each.items() if "(_metadata)" not in k} for each in (a, b))
        yield from _changes(a, b)
        yield from self._forms()
        if self._a.texts is not None and self._b.texts is not None:
            for change in _changes(self._a.texts, self._b.texts):
                yield ValueChange(f"__metadata__.{change.name}", change.before, change.after)

    def _forms(self) -> Iterator[ValueChange]:
        """Yield what differs of containers and tensors that both have, but for what is in them."""
        a, b = self._a, self._b
        before, after = a.forms, b.forms
        if before is None or after is None:
            return
        in_both = before.keys() | a.values.keys() | a.tensors.keys()
        in_both &= after.keys() | b.values.keys() | b.tensors.keys()
        for name in [*before, *(name for name in after if name not in before)]:
            old, new = before.get(name), after.get(name)
            if "a Parameter" in (old, new):
                old, new = old or "a tensor", new or "a tensor"
            if old != new and name in in_both:
                yield ValueChange(joined(f"{name}." if name else "", Label("form")), old, new)


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[ValueChange]:
    for name, value in before.items():
        if name not in after:
            yield ValueChange(name, shown(value), None)
        elif not same_value(value, after[name]):
            yield ValueChange(name, shown(value), shown(after[name]))
    for name, value in after.items():
        if name not in before:
            yield ValueChange(name, None, shown(value))


def _form_of(tensor: Comparable) -> tuple[Any, ...]:
    """Return what a tensor has beside its parts, its dtype and its shape."""
    if isinstance(tensor, SparseTensor):
        return (tensor.is_coalesced,)
    if isinstance(tensor, QuantizedTensor):
        held = [tensor.scale, tensor.zero_point]
        return (tensor.axis, *(None if isinstance(each, LazyTensor) else each for each in held))
    if isinstance(tensor, NestedTensor):
        return (tensor.ragged_idx,)
    if isinstance(tensor, MetaTensor):
        return tuple(tensor.stride)
    return ()


def _signature(row: TensorSummary, held: Comparable) -> Any:
    """Return what tensors of the same bytes, dtype and shape have in common, unread."""
    parts = tuple(
        (name, spec.torch_dtype, spec.shape, once_each(spec)) for name, spec in _parts(held)
    )
    return row.kind, row.torch_dtype, row.shape, repr(_form_of(held)), parts


def _crc_of(held: Comparable) -> int | None:
    return None if isinstance(held, OtherTensor) else content_crc(_parts(held)[0][1])
