"""What a user asks of a conversion: which tensors, under which names, in which dtypes.

All rules look at the flat names that the source has, or that ``map`` gives. They are applied in
this order: include, exclude, rename; the dtype goes by the name before renaming.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torchzip.dtypes import BLOCKS, DTYPES
from torchzip.tensors.casts import is_castable
from torchzip.tensors.numpy_dtypes import dtype_name, parse_torch_dtype

#: One dtype for all floating tensors, or (glob, dtype) rules of which the first match wins. Dtypes
#: are names, or objects of numpy or torch.
DtypeRules = Any
#: Old names and new ones, (regular expression, replacement) rules, or a function. None drops one.
RenameRules = (
    Mapping[str, str | None] | Sequence[tuple[str, str]] | Callable[[str], str | None] | None
)
#: Globs on flat names.
Globs = str | Sequence[str] | None


class Rules:
    """The rules of one conversion. They note what they match, for `unused`.

    ``blocks`` are what the target has beside the floating dtypes (`dtypes.BLOCKS`).

    Raises
    ------
    ValueError
        If torch does not have a dtype or does not cast to it, or an expression is not valid.
    TypeError
        If a rule has another form.
    """

    def __init__(
        self,
        *,
        dtype: DtypeRules = None,
        rename: RenameRules = None,
        include: Globs = None,
        exclude: Globs = None,
        blocks: Collection[str] = (),
    ) -> None:
        is_one = dtype is not None and not isinstance(dtype, Iterable | Mapping)
        is_one = is_one or isinstance(dtype, str | type)
        if isinstance(dtype, Mapping):
            dtype = [*dtype.items()]
        what = "one dtype, or a list of (glob, dtype)"
        dtypes = [("*", dtype)] if is_one else parse_pairs("dtype", what, dtype)
        self._dtypes = [
            (Glob("dtype", glob, "floating tensor"), _parse_dtype(target, blocks))
            for glob, target in dtypes
        ]
        if is_one:
            self._dtypes[0][0].used = True  # for all tensors, be there any or not
        self._include = parse_globs("include", include)
        self._exclude = parse_globs("exclude", exclude)
        self._renames = Renames(rename)

    @property
    def asks_for_optimizer(self) -> bool:
        """Whether what optimizers keep is included by its name, and not by ``*`` alone."""
        return any(glob.text.startswith("optimizer.") for glob in self._include)

    def keeps(self, name: str) -> bool:
        """Return whether a tensor is wanted at all."""
        wanted = not self._include or match_any(self._include, name)
        # Both are asked, so that a rule counts as used because of what it says alone.
        return not self._excludes(name) and wanted

    def _excludes(self, name: str) -> bool:
        """Return whether a tensor is left out, by its name or by that of what it is in."""
        if not self._exclude:
            return False
        dots = [at for at, letter in enumerate(name) if letter == "."]
        found = [match_any(self._exclude, name[:at]) for at in [*dots, len(name)]]
        return any(found)

    def renamed(self, name: str) -> str | None:
        """Return the name in the output; None for a tensor that is left out."""
        return self._renames.of(name)

    def dtype_of(self, name: str, torch_dtype: str) -> str:
        """Return the dtype in the output."""
        if not is_castable(torch_dtype):
            return torch_dtype
        return next((target for glob, target in self._dtypes if glob.matches(name)), torch_dtype)

    def unused(self) -> list[str]:
        """Return a line for each rule that has matched nothing so far."""
        globs = [*self._include, *self._exclude, *(glob for glob, _ in self._dtypes)]
        return unused_globs(globs) + self._renames.unused()


class Glob:
    """A glob on names, which notes whether it matched; ``what`` messages call what it matches."""

    def __init__(self, option: str, text: str, what: str = "tensor") -> None:
        if not isinstance(text, str):
            raise TypeError(f"{option} takes globs, not {type(text).__name__}")
        self.option = option
        self.text = text
        self.what = what
        self.used = False
        self._match = re.compile(fnmatch.translate(text)).match

    def matches(self, name: str) -> bool:
        """Return whether it matches a name."""
        if self._match(name) is None:
            return False
        self.used = True
        return True


class Expression:
    """A regular expression and what replaces it, which notes whether it matched."""

    def __init__(self, text: str, replacement: str) -> None:
        if not isinstance(text, str | re.Pattern) or not (
            isinstance(replacement, str) or callable(replacement)
        ):
            kinds = f"{type(text).__name__}, {type(replacement).__name__}"
            raise TypeError(f"rename takes pairs (regex, replacement) of strings, not ({kinds})")
        self.text = text
        self.used = False
        try:
            self._pattern = re.compile(text)
            self._pattern.sub(replacement, "")  # groups that are not there show here
        except (re.error, IndexError) as error:
            raise ValueError(f"rename {text!r} to {replacement!r}: {error}") from None
        self._replacement = replacement

    def apply(self, name: str) -> str:
        """Return a name with what it matches replaced."""
        new, count = self._pattern.subn(self._replacement, name)
        self.used = self.used or bool(count)
        return new


class Renames:
    """Old and new names, a function, or expressions; false if there are none.

    They note what they match. ``what`` messages call what has the names.
    """

    def __init__(self, rename: RenameRules, what: str = "tensor") -> None:
        self._table = dict(rename) if isinstance(rename, Mapping) else {}
        self._function = rename if callable(rename) else None
        pairs = None if self._function or isinstance(rename, Mapping) else rename
        self._expressions = [
            Expression(pattern, text)
            for pattern, text in parse_pairs("rename", "a list of (regex, replacement)", pairs)
        ]
        self._met: set[str] = set()
        self._what = what

    def __bool__(self) -> bool:
        return bool(self._table or self._function or self._expressions)

    def of(self, name: str, *, is_container: bool = False) -> str | None:
        """Return the new name; None for what is left out.

        An expression that is about what is in a container, such as ``^model\\.``, renames the
        container too.
        """
        self._met.add(name)
        new = self._function(name) if self._function is not None else self._table.get(name, name)
        if new is not None and not isinstance(new, str):
            raise TypeError(f"rename gives {type(new).__name__} for {name!r}, not a name or None")
        for expression in self._expressions:
            before = str(new)
            new = expression.apply(before)
            if is_container and new == before:
                inside = expression.apply(f"{before}.")
                new = inside[:-1] if inside.endswith(".") else before
        return new

    def unused(self) -> list[str]:
        """Return a line for each rule that has matched nothing so far."""
        texts = [each.text for each in self._expressions if not each.used]
        texts += [old for old in self._table if old not in self._met]
        return [f"the rename rule {text!r} matches no {self._what}" for text in texts]


def parse_pairs(option: str, what: str, rules: Any) -> list[Any]:
    """Return the rules of a list of pairs; none for None."""
    if rules is None:
        return []
    if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
        raise TypeError(f"{option} takes {what}, not {type(rules).__name__}")
    pairs = list(rules)
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError(f"{option} takes {what}, and {pair!r} is in it")
    return pairs


def unused_globs(globs: Iterable[Glob]) -> list[str]:
    """Return a line for each glob that has matched nothing so far."""
    return [
        f"the {glob.option} rule {glob.text!r} matches no {glob.what}"
        for glob in globs
        if not glob.used
    ]


def parse_globs(option: str, globs: Globs, what: str = "tensor") -> list[Glob]:
    """Return the globs of one text or several; none for None."""
    if not isinstance(globs, str | Iterable | None):
        raise TypeError(f"{option} takes globs, not {type(globs).__name__}")
    texts = [globs] if isinstance(globs, str) else globs or ()
    return [Glob(option, text, what) for text in texts]


def match_any(globs: Sequence[Glob], name: str) -> bool:
    """Return whether one of the globs matches."""
    matches = [glob.matches(name) for glob in globs]  # each is asked, and notes what it matches
    return any(matches)


def _parse_dtype(dtype: Any, blocks: Collection[str]) -> str:
    text = dtype_name(dtype)
    if text.lower() in blocks:
        return text.lower()
    if text.lower() in BLOCKS:
        reason = f"{text} is read and not written" if blocks else f"only a .gguf file has {text}"
        raise ValueError(f"{reason}; one of {', '.join([*blocks, _CASTABLE])} was expected")
    try:
        target = parse_torch_dtype(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a torch dtype; one of {_CASTABLE} was expected"
        ) from None
    if not is_castable(target):
        raise ValueError(
            f"tensors are cast to floating dtypes only, not to {target}; one of {_CASTABLE} was "
            "expected"
        )
    return target


_CASTABLE = ", ".join(filter(is_castable, DTYPES))
