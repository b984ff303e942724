"""Which tensors of a checkpoint are the model, and under which names: before any rule is applied.

Steps that everybody scripts have a name of their own here:

* ``weights``: the state dict of the model out of a training checkpoint, without the way to it. What
  belongs to optimizers and what looks like an EMA copy (`checkpoint.roles`) is not of it. Of
  what is left, an item with one of the usual names is taken (`_STATE_DICTS`), else the only one
  that has tensors.
* ``ema``: the same, with the averaged tensors in place of those that they are averages of.
* ``strip_wrappers``: without the steps that wrappers of modules put into names (`_WRAPPERS`).
* ``stack``, ``unstack``: tensors whose names have a number become one with an axis more, and back.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor, is_weight
from torchzip.checkpoint.outline import outline
from torchzip.checkpoint.quantities import count_text
from torchzip.checkpoint.roles import EMA, Role, find_roles
from torchzip.checkpoint.walk import key_text
from torchzip.convert.rules import parse_pairs
from torchzip.errors import listed, shown
from torchzip.lazy import stack
from torchzip.types import OtherTensor

Held = LazyTensor | OtherTensor

#: What training loops call the item with the model's state dict, the surest first.
_STATE_DICTS = ("state_dict", "model_state_dict", "model_state", "model", "module", "params")
#: The steps of DistributedDataParallel and DeepSpeed, torch.compile, FSDP 1, checkpoint_wrapper,
#: Lightning's strategies and fairscale.
_WRAPPERS = frozenset(
    {
        "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
        "_forward_module", "_fpw_module",
    }
)  # fmt: skip
#: Where the copy of Stable Diffusion's LitEma is; its names go on without their dots.
_LIT_EMA, _LIT_MODEL = "model_ema.", "model."


@dataclass(frozen=True, slots=True)
class Taken:
    """The tensors by the names that rules see, and the name of each in the source.

    ``what`` says which part of the checkpoint they are; "" if nothing was chosen. ``is_flat``: they
    are no longer where they were, so the output is one dict of them.
    """

    tensors: dict[str, Held]
    sources: dict[str, str]
    what: str = ""
    is_flat: bool = False


@dataclass(kw_only=True)
class Surgery:
    """What is asked for.

    Raises
    ------
    ValueError, TypeError
        If a rule of ``stack`` or ``unstack`` is not valid.
    """

    weights: bool = False
    ema: bool = False
    strip_wrappers: bool = False
    untie: bool = False
    pack: bool = False
    stack: Iterable[tuple[str, str]] | None = None
    unstack: Iterable[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        what = "a list of pairs (old name, new name)"
        self._rules = [
            _Numbered(option, *pair)
            for option, pairs in (("stack", self.stack), ("unstack", self.unstack))
            for pair in parse_pairs(option, what, pairs)
        ]

    def take(self, checkpoint: Checkpoint, root: Any, tensors: Mapping[str, Held]) -> Taken:
        """Return what the rules see of the tensors of a checkpoint, whose object is ``root``.

        Raises
        ------
        ValueError
            If there is no model, or there are several; or if two tensors get one name.
        """
        taken = Taken(dict(tensors), {name: name for name in tensors})
        if self.weights or self.ema:
            roles = find_roles(root, outline(checkpoint, plain=False))
            taken = _weights(root, taken.tensors, roles, ema=self.ema)
        if self.strip_wrappers:
            taken = _without_wrappers(taken)
        for rule in self._rules:
            taken = (_stacked if rule.option == "stack" else _unstacked)(taken, rule)
        return taken


def _weights(root: Any, tensors: dict[str, Held], roles: list[Role], *, ema: bool) -> Taken:
    """Return the state dict of the model."""
    in_roles = {name: role.kind for role in roles for name in role.names}
    prefix = _way_to_model(root, [name for name in tensors if name not in in_roles])
    if prefix is None:
        raise ValueError("weights: the file has no state dict of a model; ls shows what it has")
    names = [name for name in tensors if name.startswith(prefix) and name not in in_roles]
    sources = {name[len(prefix) :]: name for name in names}
    from_ema = ""
    if ema:
        averages = _averages(tensors, roles, prefix) | _lit_averages(sources)
        alone = None if averages else _lone_ema(root, tensors)
        if alone is not None:
            return alone
        if not averages:
            raise ValueError("ema: no averaged copy of the model's tensors was found")
        of_ema = {name for name in sources if name.startswith(_LIT_EMA)}
        sources = {
            name: averages.get(source, source)
            for name, source in sources.items()
            if name not in of_ema
        }
        swapped = sum(averages.get(prefix + name) == source for name, source in sources.items())
        from_ema = f", {swapped:,} of them from the EMA copy"
    what = f"{count_text(len(sources), 'tensor')} of {prefix[:-1] or 'the object itself'}{from_ema}"
    return Taken({new: tensors[old] for new, old in sources.items()}, sources, what, True)


def _any_below(names: list[str], prefix: str) -> bool:
    """Return whether one of the names, which are sorted, begins with a prefix."""
    at = bisect_left(names, prefix)
    return at < len(names) and names[at].startswith(prefix)


def _way_to_model(root: Any, candidates: list[str]) -> str | None:
    """Return what the names of the model's tensors begin with; None if there is no model.

    Raises
    ------
    ValueError
        If several could be it.
    """
    names, value, prefix = sorted(candidates), root, ""
    if not candidates:
        return None
    while isinstance(value, dict):
        below: dict[str, Any] = {}
        has_tensors = False
        for key, child in value.items():
            text = key_text(key)
            if is_weight(child):
                has_tensors = True
            elif _any_below(names, f"{prefix}{text}."):
                below[text] = child
        known = next((name for name in _STATE_DICTS if name in below), None)
        if known is None and (has_tensors or not below):
            break
        if known is None and len(below) > 1:
            if prefix or len(below) == len(value):
                break  # the modules of a model, each in a dict of its own
            raise ValueError(
                f"weights: {listed(list(below))} could each be the model; choose one with include "
                "and rename instead (--include 'NAME.*' --rename '^NAME\\.=>')"
            )
        chosen = known if known is not None else next(iter(below))
        value, prefix = below[chosen], f"{prefix}{chosen}."
    return prefix


def _averages(tensors: Mapping[str, Held], roles: list[Role], prefix: str) -> dict[str, str]:
    """Return the names of tensors -> those of their averages, of the copy of this model."""
    for role in roles:
        before = f"{role.of}." if role.of else ""
        if role.of is None or not before.startswith(prefix):
            continue
        tails = [name[len(role.prefix) + 1 :] for name in role.names]
        while before + tails[0] not in tensors and "." in tails[0]:
            tails = [tail.partition(".")[2] for tail in tails]
        found = {
            before + tail: name for tail, name in zip(tails, role.names, strict=True)
            if before + tail in tensors
        }  # fmt: skip
        if found:
            return found
    return {}


def _lit_averages(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the same for the copy of LitEma, whose names lack the dots of the others."""
    averages = {
        name[len(_LIT_EMA) :]: source
        for name, source in sources.items()
        if name.startswith(_LIT_EMA)
    }
    return {
        source: averages[short]
        for name, source in sources.items()
        if name.startswith(_LIT_MODEL)
        and (short := name[len(_LIT_MODEL) :].replace(".", "")) in averages
    }


def _lone_ema(root: Any, tensors: dict[str, Held]) -> Taken | None:
    """Return the averaged tensors of a checkpoint that has nothing that they are averages of."""
    if not isinstance(root, dict):
        return None
    for prefix in [f"{text}." for text in map(key_text, root) if EMA.search(text)]:
        inside = {name[len(prefix) :]: name for name in tensors if name.startswith(prefix)}
        if not inside:
            continue
        step = next((name.partition(".")[0] for name in inside if "." in name), "")
        if EMA.search(step):
            prefix, step = f"{prefix}{step}.", f"{step}."
            inside = {new[len(step) :]: old for new, old in inside.items() if new.startswith(step)}
        what = f"{count_text(len(inside), 'tensor')} of {prefix[:-1]}, an EMA copy"
        return Taken({new: tensors[old] for new, old in inside.items()}, inside, what, True)
    return None


def without_wrappers(name: str) -> str:
    """Return a name without the steps of wrappers; a last step is that of a tensor, and stays.

    >>> without_wrappers("module.layer._orig_mod.weight"), without_wrappers("module")
    ('layer.weight', 'module')
    """
    *steps, last = name.split(".")
    return ".".join([*(step for step in steps if step not in _WRAPPERS), last])


def _without_wrappers(taken: Taken) -> Taken:
    new: dict[str, str] = {}
    for name in taken.tensors:
        stripped = without_wrappers(name)
        first = new.setdefault(stripped, name)
        if first != name:
            raise ValueError(
                f"strip_wrappers: {first!r} and {name!r} would both be called {stripped!r}"
            )
    return Taken(
        {stripped: taken.tensors[name] for stripped, name in new.items()},
        {stripped: taken.sources[name] for stripped, name in new.items()},
        taken.what,
        taken.is_flat,
    )


class _Numbered:
    """A rule of ``stack`` or ``unstack``: two names, of which one has a number, ``{i}``.

    Stars stand for anything but dots, and for the same in both names.
    """

    def __init__(self, option: str, old: str, new: str) -> None:
        with_number, without = (old, new) if option == "stack" else (new, old)
        if (
            not (isinstance(old, str) and isinstance(new, str))
            or with_number.count("{i}") != 1
            or "{i}" in without
            or old.count("*") != new.count("*")
        ):
            example = "'a.*.{i}.w', 'a.*.w'" if option == "stack" else "'a.*.w', 'a.*.{i}.w'"
            raise ValueError(
                f"{option} {shown(old)}, {shown(new)}: two names such as {example} were expected, "
                "with {i} where the number is, and as many stars in both"
            )
        self.option = option
        self.old = old
        parts = re.split(r"(\*|\{i\})", old)
        words = {"*": r"([^.]+)", "{i}": r"(?P<i>\d+)"}
        self._pattern = re.compile("".join(words.get(part, re.escape(part)) for part in parts))
        self._new = new

    def match(self, name: str) -> tuple[str, int] | None:
        """Return the new name, and the number in the old one; None if the rule is not for it."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        number = found.groupdict().get("i")
        place = self._pattern.groupindex.get("i", 0)
        stars = iter([text for at, text in enumerate(found.groups(), 1) if at != place])
        new = re.sub(r"\*", lambda star: next(stars), self._new)
        return new, int(number) if number is not None else 0

    def unused(self) -> ValueError:
        return ValueError(f"the {self.option} rule {self.old!r} matches no tensor")


def _stacked(taken: Taken, rule: _Numbered) -> Taken:
    """Put tensors whose names differ in a number into one, where the first of them was."""
    groups: dict[str, dict[int, str]] = {}
    made: dict[str, Held | None] = {}
    for name, held in taken.tensors.items():
        found = rule.match(name)
        if found is None:
            _add(made, name, held, rule)
            continue
        new, number = found
        if new not in groups:
            _add(made, new, None, rule)
        groups.setdefault(new, {})[number] = name
    if not groups:
        raise rule.unused()
    for new, names in groups.items():
        if sorted(names) != list(range(len(names))):
            raise ValueError(
                f"stack: {new!r} would have the numbers {listed(sorted(names))}; all from 0 on "
                "were expected"
            )
        parts = [taken.tensors[names[number]] for number in range(len(names))]
        try:
            made[new] = stack(parts)
        except (TypeError, ValueError) as error:
            raise ValueError(f"stack: {new!r}: {error}") from None
    return _flat(taken, made)


def _unstacked(taken: Taken, rule: _Numbered) -> Taken:
    """Take tensors apart along their first axis."""
    made: dict[str, Held | None] = {}
    is_used = False
    for name, held in taken.tensors.items():
        found = rule.match(name)
        if found is None:
            _add(made, name, held, rule)
            continue
        is_used = True
        if not isinstance(held, LazyTensor) or not held.shape:
            raise ValueError(f"unstack: {name!r} is not a dense tensor with an axis")
        for number in range(held.shape[0]):
            _add(made, found[0].replace("{i}", str(number)), held.lazy[number], rule)
    if not is_used:
        raise rule.unused()
    return _flat(taken, made)


def _add(made: dict[str, Held | None], name: str, held: Held | None, rule: _Numbered) -> None:
    if name in made:
        raise ValueError(f"{rule.option} {rule.old!r}: two tensors would be called {name!r}")
    made[name] = held


def _flat(taken: Taken, made: dict[str, Held | None]) -> Taken:
    tensors = {name: held for name, held in made.items() if held is not None}
    return Taken(tensors, {name: taken.sources.get(name, name) for name in made}, taken.what, True)
