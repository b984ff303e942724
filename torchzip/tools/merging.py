"""Several checkpoints made into one: averages, and any formula of their tensors.

Tensors are matched by their flat names, and each is an expression over those of all sources
(`torchzip.lazy`), so nothing is read before it is written. What is around the tensors, such as
epochs and arguments, is that of the first source.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.quantities import count_text, some_of
from torchzip.convert.conversion import convert
from torchzip.convert.report import ConvertReport
from torchzip.convert.rules import Rules
from torchzip.dtypes import DTYPES
from torchzip.errors import EnoughMemory, shown
from torchzip.files.location import StorageOptions
from torchzip.lazy import compute
from torchzip.limits import Limits
from torchzip.tensors.specs import TensorSpec, layout
from torchzip.tools.formula import Formula
from torchzip.tools.lookup import named_tensors

Path = str | os.PathLike[str]
#: Names of the states of optimizers: moments are not weights.
_OPTIMIZER = re.compile(r"(^|\.)(last_)?optim(izer)?(s|_states?|_state_dict)?\.")
_MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Merged:
    """What `average` or `combine` did.

    ``converted`` is what `convert` reports. ``computed`` counts the tensors that were computed,
    ``counters`` are the names of ints that were averaged, rounded down, and ``kept`` those that
    were taken from one source as they are, each with the reason. ``left_out`` are names that the
    first source does not have.
    """

    converted: ConvertReport
    computed: int
    counters: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@EnoughMemory()
def average(
    sources: Sequence[Path],
    dst: Path,
    *,
    weights: Sequence[float] | None = None,
    partial: bool = False,
    **convert_options: Any,
) -> Merged:
    """Write the average of checkpoints of one model, of any formats, to ``dst``.

    Floats are added up in the order of the sources, in float32 (float64 in their own dtype),
    divided by their number or the sum of the ``weights``, and rounded once to the dtype of the
    first source. Of float32 this is bit for bit what ``a += b; a /= n`` makes in torch. Ints, such
    as counters of batches, are divided with rounding down, as fairseq does; with ``weights`` they
    are those of the last source, and so are bools. States of optimizers, arrays of numpy, tensors
    that are not dense and what is around them are those of the first.

    A tensor that a source lacks, or has in another shape, is an error that lists them. With
    ``partial`` those are averaged that have it, and those of other shapes are those of the first.
    ``convert_options`` are the options of `convert`; ``storage_options`` are for all URLs.

    Raises
    ------
    ValueError
        If tensors do not match, or the weights are not as many as the sources.
    TorchZipError, OSError
        If a source cannot be read, or the output cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> paths = [os.path.join(folder, name) for name in ("a.pt", "b.pt")]
    >>> for number, path in enumerate(paths):
    ...     save({"w": np.full(3, number, "float32")}, path)
    >>> average(paths, os.path.join(folder, "mean.pt")).computed
    1
    >>> load(os.path.join(folder, "mean.pt"))["w"].tolist()
    [0.5, 0.5, 0.5]
    """
    _check_paths(sources)
    factors = factors_of(weights, len(sources), "source")
    if not np.isfinite(factors).all() or not sum(factors):
        raise ValueError(
            f"the weights are {factors}; numbers with a sum other than 0 were expected"
        )
    counters: list[str] = []

    def mean(name: str, tensors: list[LazyTensor], present: list[int]) -> LazyTensor | str:
        row = DTYPES[tensors[0].torch_dtype]
        if row.kind == "bool" or (row.kind == "int" and weights is not None):
            return "of the last source: ints and bools have no weighted average"
        chosen = [factors[each] for each in present]
        if row.kind == "int":
            counters.append(name)
        function = FloorMean() if row.kind == "int" else Mean(tuple(chosen), weights is not None)
        return compute(function, *tensors, dtype=tensors[0].torch_dtype)

    named = {f"source {number}": path for number, path in enumerate(sources, 1)}
    return _merge(named, dst, mean, partial, counters, convert_options)


@EnoughMemory()
def combine(
    formula: str,
    sources: Mapping[str, Path],
    dst: Path,
    *,
    partial: bool = False,
    **convert_options: Any,
) -> Merged:
    """Write what a formula makes of checkpoints, such as ``a + 0.7*(b - c)``, to ``dst``.

    ``sources`` has a checkpoint for each name in the formula, which has numbers, ``+ - * /`` and
    parentheses besides. It is computed in float32 (float64 in its own dtype) for every floating
    tensor, and rounded once to the dtype of the first source. All else is that of the first, as are
    tensors of other shapes or without a counterpart if ``partial`` allows them.

    Raises
    ------
    ValueError
        If the formula is not one, or tensors do not match.
    TorchZipError, OSError
        If a source cannot be read, or the output cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> paths = {name: os.path.join(folder, f"{name}.pt") for name in ("base", "tuned")}
    >>> for number, path in enumerate(paths.values(), 2):
    ...     save({"w": np.full(3, number, "float32")}, path)
    >>> merged = combine("base + 2*(tuned - base)", paths, os.path.join(folder, "out.pt"))
    >>> load(os.path.join(folder, "out.pt"))["w"].tolist()
    [4.0, 4.0, 4.0]
    """
    parsed = Formula(formula)
    if set(parsed.names) != set(sources):
        odd = sorted(set(parsed.names) ^ set(sources))[0]
        where = "has no checkpoint" if odd in parsed.names else "is not in the formula"
        raise ValueError(f"{shown(odd)} {where}: {formula!r}")
    names = list(sources)

    def made(name: str, tensors: list[LazyTensor], present: list[int]) -> LazyTensor | str:
        if len(tensors) < len(names):
            return "not in every source"
        if DTYPES[tensors[0].torch_dtype].kind not in ("float", "complex"):
            return "not a floating tensor"
        try:
            found = parsed.of(dict(zip(names, tensors, strict=True)))
        except ZeroDivisionError:
            raise ValueError(f"{formula!r} divides by 0") from None
        if not isinstance(found, LazyTensor):
            raise ValueError(f"{formula!r} is a number and no tensor")
        return found.to(tensors[0].torch_dtype)

    _check_paths(list(sources.values()))
    return _merge(sources, dst, made, partial, [], convert_options)


def _check_paths(sources: Sequence[Path]) -> None:
    if isinstance(sources, str | os.PathLike) or not sources:
        raise ValueError("one checkpoint or more were expected, as a list of paths")
    for each in sources:
        if not isinstance(each, str | os.PathLike):
            raise TypeError(f"a source is a path, not {type(each).__name__}")


def _merge(
    sources: Mapping[str, Path],
    dst: Path,
    make: Callable[[str, list[LazyTensor], list[int]], LazyTensor | str],
    partial: bool,
    counters: list[str],
    options: dict[str, Any],
) -> Merged:
    """Put what ``make`` gives in the place of the first source's tensors, and convert that.

    ``make`` gets a name, the tensors of it, and the numbers of the sources that they are of; it
    gives a tensor, or why one is taken as it is: the last if the reason says so, else the first.
    """
    limits: Limits | None = options.pop("limits", None)
    storage_options: StorageOptions = options.get("storage_options")
    rules = Rules(include=options.get("include"), exclude=options.get("exclude"))
    with contextlib.ExitStack() as opened:
        checkpoints = [
            opened.enter_context(Checkpoint(path, limits=limits, storage_options=storage_options))
            for path in sources.values()
        ]
        labels = [f"{label} ({checkpoint.path})" for label, checkpoint in
                  zip(sources, checkpoints, strict=True)]  # fmt: skip
        matched = _Matched(labels, list(map(named_tensors, checkpoints)), rules)
        pairs = _replacements(checkpoints[0], matched, make)
        left_out = matched.left_out()
        if matched.problems and not partial:
            raise ValueError(_listed(matched.problems))
        computed = sum(found is not held for held, found in pairs)
        for held, found in pairs:
            put_in_place(held, found.spec)
        report = convert(checkpoints[0], dst, **options)
    return Merged(report, computed, tuple(counters), matched.kept, left_out)


def factors_of(weights: Sequence[float] | None, count: int, what: str) -> list[float]:
    """Return the weights of ``count`` files, which are 1 if none are given.

    Raises
    ------
    ValueError
        If there are more or fewer of them; ``what`` is the word for one of the files.
    """
    factors = [1.0] * count if weights is None else [float(each) for each in weights]
    if len(factors) != count:
        number = count_text(count, what)
        raise ValueError(f"the weights are {factors}, for {number}; one for each was expected")
    return factors


def put_in_place(held: LazyTensor, made: TensorSpec) -> None:
    """Let a tensor of an object, which is what is written, be another; its marks stay."""
    marks = {"is_parameter": held.spec.is_parameter, "requires_grad": held.spec.requires_grad}
    held.spec = made.replace(**marks)


def _replacements(
    first: Checkpoint,
    matched: _Matched,
    make: Callable[[str, list[LazyTensor], list[int]], LazyTensor | str],
) -> list[tuple[LazyTensor, LazyTensor]]:
    """Return the tensors of the first source, each with what takes its place."""
    made: dict[Any, tuple[str, LazyTensor]] = {}
    pairs: list[tuple[LazyTensor, LazyTensor]] = []
    for name, held in matched.first.items():
        reason = _kept_reason(first, name, held)
        if reason:
            matched.kept[name] = reason
            continue
        tensors = matched.of_all(name, held)
        if not tensors:
            continue
        own = layout(held.spec)
        if own in made and held.spec.numel:  # tied, and it stays so
            before, found = made[own]
            matched.see_tie(before, name)
            pairs.append((held, found))
            continue
        result = make(name, list(tensors.values()), list(tensors))
        if isinstance(result, str):
            matched.kept[name] = result
            last = list(tensors.values())[-1]
            result = last if result.startswith("of the last") else held
        made[own] = name, result
        pairs.append((held, result))
    return pairs


class _Matched:
    """The tensors of several sources by name, and in ``problems`` what does not match.

    ``kept`` are those of the first source that are taken as they are, each with the reason.
    """

    def __init__(
        self, labels: Sequence[str], tensors_of: Sequence[Mapping[str, Any]], rules: Rules
    ) -> None:
        self._labels = labels
        self._tensors_of = tensors_of
        self._rules = rules
        self.first = {name: held for name, held in tensors_of[0].items() if rules.keeps(name)}
        self.problems: list[str] = []
        self.kept: dict[str, str] = {}

    def of_all(self, name: str, held: LazyTensor) -> dict[int, LazyTensor]:
        """Return the tensors of a name by the numbers of their sources; {} if they do not match."""
        tensors: dict[int, LazyTensor] = {}
        for number, (label, named) in enumerate(zip(self._labels, self._tensors_of, strict=True)):
            other = named.get(name)
            if other is None:
                self.problems.append(f"{name} is not in {label}")
            elif not _matches(held, other):
                self.kept[name] = f"{_look(other)} in {label}"
                self.problems.append(f"{name} is {_look(held)}, and {self.kept[name]}")
            else:
                tensors[number] = other
        return {} if name in self.kept else tensors

    def see_tie(self, before: str, name: str) -> None:
        """Look for sources in which two names are two tensors; the first has one."""
        for label, named in zip(self._labels, self._tensors_of, strict=True):
            pair = [named.get(each) for each in (before, name)]
            held = [each.spec for each in pair if isinstance(each, LazyTensor)]
            if len(held) == 2 and layout(held[0]) != layout(held[1]):
                self.problems.append(f"{name} is tied to {before}, and is not in {label}")

    def left_out(self) -> tuple[str, ...]:
        """Return the names that the first source does not have."""
        names = dict.fromkeys(
            name
            for named in self._tensors_of[1:]
            for name in named
            if name not in self._tensors_of[0] and self._rules.keeps(name)
        )
        self.problems += [f"{name} is not in {self._labels[0]}" for name in names]
        return tuple(names)


def _kept_reason(first: Checkpoint, name: str, held: Any) -> str:
    """Return why a tensor is that of the first source, whatever the others have; "" if not."""
    if not isinstance(held, LazyTensor):
        return f"a {held.kind.replace('_', ' ')} tensor"
    if name in first.arrays:
        return "an array of numpy"
    if _OPTIMIZER.search(name):
        return "the state of an optimizer"
    if not DTYPES[held.torch_dtype].has_numbers:
        return f"{held.torch_dtype}, which has no numbers"
    return ""


def _look(tensor: Any) -> str:
    return f"{tensor.torch_dtype} {list(tensor.shape)}"


def _matches(held: LazyTensor, other: Any) -> bool:
    """Return whether two tensors have one shape, and numbers of one kind."""
    kinds = [DTYPES[each.torch_dtype].kind for each in (held, other)]
    return isinstance(other, LazyTensor) and other.shape == held.shape and kinds[0] == kinds[1]


def _listed(problems: Sequence[str]) -> str:
    first = some_of(problems, _MOST_SHOWN, "; ", "; and ")
    return (
        f"{len(problems):,} tensors do not match: {first}. The option partial takes what there is; "
        "include and exclude choose tensors"
    )


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of floats: their sum in order, each with its weight if it ``is_weighted``."""

    weights: tuple[float, ...]
    is_weighted: bool

    def __call__(self, *blocks: NDArray[Any]) -> NDArray[Any]:
        total = blocks[0]
        if self.is_weighted:
            total *= self.weights[0]
        for weight, block in zip(self.weights[1:], blocks[1:], strict=True):
            if self.is_weighted:
                block *= weight
            total += block
        total /= sum(self.weights)
        return total


@dataclass(frozen=True, slots=True)
class FloorMean:
    """The mean of ints, rounded down."""

    def __call__(self, *blocks: NDArray[Any]) -> NDArray[Any]:
        dtype = blocks[0].dtype
        total = blocks[0].astype(np.uint64 if dtype.kind == "u" else np.int64)
        for block in blocks[1:]:
            total += block.astype(total.dtype)
        return (total // len(blocks)).astype(dtype)
