"""What a user asks of an edit: which items are renamed, dropped, set and marked.

All rules look at the names that the file has, before any of them is applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchzip.convert.rules import (
    Glob,
    Globs,
    RenameRules,
    Renames,
    match_any,
    parse_globs,
    parse_pairs,
    unused_globs,
)

#: One answer for all tensors, or (glob, answer) rules of which the first match wins.
GradRules = bool | Sequence[tuple[str, bool]] | None
DeviceRules = str | Sequence[tuple[str, str]] | None

_DEVICES = "cpu, mps, cuda[:N], xpu[:N], hpu[:N] or mtia[:N]"
_DEVICE = re.compile(r"(cpu|mps)|((?:cuda|xpu|hpu|mtia)(?::[0-9]{1,4})?)")
_MOST_DEPTH = 100


class EditRules:
    """The rules of one edit. They note what they match, for `unused`.

    ``values`` are copies of what is to be set, by path; ``device`` is the device of all storages.

    Raises
    ------
    TypeError, ValueError
        If a rule has another form, or says what no file can hold.
    """

    def __init__(
        self,
        rename: RenameRules = None,
        drop: Globs = None,
        set_values: Mapping[str, Any] | None = None,
        requires_grad: GradRules = None,
        device: DeviceRules = None,
    ) -> None:
        self.renames = Renames(rename, "item of a dict")
        self._drop = parse_globs("drop", drop, "item of a dict")
        self.values = _parse_values(set_values)
        if isinstance(requires_grad, bool):
            requires_grad = [("*", requires_grad)]
        self._grads = [
            (Glob("requires_grad", glob, "floating tensor"), _parse_bool(wanted))
            for glob, wanted in parse_pairs(
                "requires_grad", "a list of (glob, bool)", requires_grad
            )
        ]
        self.device = parse_device(device) if isinstance(device, str) else None
        rules = None if isinstance(device, str) else device
        self._devices = [
            (Glob("device", glob), parse_device(tag))
            for glob, tag in parse_pairs("device", "a list of (glob, device)", rules)
        ]

    @property
    def changes_names(self) -> bool:
        """Whether there is a rule that gives an item a name."""
        return bool(self.renames or self.values)

    def drops(self, path: str) -> bool:
        """Return whether an item is left out."""
        return bool(self._drop) and match_any(self._drop, path)

    def requires_grad_of(self, name: str) -> bool | None:
        """Return what a floating tensor is to say of its gradient; None for no change."""
        return next((wanted for glob, wanted in self._grads if glob.matches(name)), None)

    def device_of(self, name: str) -> str | None:
        """Return the device of a tensor's storages; None for no change."""
        if self.device is not None:
            return self.device
        return next((tag for glob, tag in self._devices if glob.matches(name)), None)

    def unused(self) -> list[str]:
        """Return a line for each rule that has matched nothing so far.

        One for all others has done its work where there are none.
        """
        globs = [*self._drop, *(glob for glob, _ in (*self._grads, *self._devices))]
        globs = [glob for glob in globs if glob.text != "*"]
        return unused_globs(globs) + self.renames.unused()


def parse_device(device: Any) -> str:
    """Return the tag that torch gives to storages of a device.

    >>> parse_device("cpu"), parse_device("cuda"), parse_device("cuda:1")
    ('cpu', 'cuda:0', 'cuda:1')
    """
    if not isinstance(device, str):
        raise TypeError(f"a device is a string, not {type(device).__name__}")
    found = _DEVICE.fullmatch(device)
    if found is None:
        raise ValueError(
            f"torch restores no storage to the device {device!r}; {_DEVICES} was expected"
        )
    return device if found[1] or ":" in device else f"{device}:0"


def _parse_bool(wanted: Any) -> bool:
    if not isinstance(wanted, bool):
        raise TypeError(f"requires_grad is True or False, not {wanted!r}")
    return wanted


def _parse_values(values: Mapping[str, Any] | None) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"set_values takes a dict of paths, not {type(values).__name__}")
    for path in values:
        if not isinstance(path, str):
            raise TypeError(f"set_values takes paths as strings, not {type(path).__name__}")
    return {path: _plain_copy(value, path) for path, value in values.items()}


def _plain_copy(value: Any, path: str, depth: int = 0) -> Any:
    """Return a copy of a plain value; raise TypeError or ValueError for anything else."""
    if depth > _MOST_DEPTH:
        raise ValueError(f"the value for {path!r} is nested more than {_MOST_DEPTH} deep")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_plain_copy(item, path, depth + 1) for item in value]
    if type(value) is dict:
        for key in value:
            if type(key) not in (str, int, bool, float, type(None)):
                raise TypeError(f"the value for {path!r} has a key that is {type(key).__name__}")
        return {key: _plain_copy(item, path, depth + 1) for key, item in value.items()}
    raise TypeError(
        f"the value for {path!r} has {type(value).__name__} in it; None, bool, int, float, str, "
        "list or dict was expected"
    )


def prefixes(paths: Iterable[str]) -> set[str]:
    """Return what may be a dict around the items of these paths.

    >>> sorted(prefixes(["a.b.c"]))
    ['a', 'a.b']
    """
    return {path[:index] for path in paths for index, letter in enumerate(path) if letter == "."}
