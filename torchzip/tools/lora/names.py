"""Finds the tensors of a base that the names in an adapter mean.

Names of a module in both are the same, mostly. If they are not, the end of the name decides, as
far as it is that of one tensor only: models are wrapped in others, and transformers has other names
for some than their files have. Names of kohya have ``_`` for ``.``, after a prefix.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torchzip.errors import listed

#: What kohya's names begin with.
_PREFIXES = (
    "lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_te_", "lora_transformer_",
    "lora_prior_unet_", "lycoris_",
)  # fmt: skip


class BaseNames:
    """The names of the tensors of a base."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)

    @cached_property
    def _by_end(self) -> dict[str, list[str]]:
        """All names by the ends that they have after one of their dots, the whole name too."""
        ends: dict[str, list[str]] = {}
        for name in self._names:
            begin = 0
            while True:
                ends.setdefault(name[begin:], []).append(name)
                begin = name.find(".", begin) + 1
                if not begin:
                    break
        return ends

    @cached_property
    def _by_flat_end(self) -> dict[str, list[str]]:
        """The same with ``_`` for the dots."""
        flat: dict[str, list[str]] = {}
        for end, names in self._by_end.items():
            flat.setdefault(end.replace(".", "_"), []).extend(names)
        return flat

    def find(self, name: str) -> tuple[str | None, str]:
        """Return the tensor that a name means, or None and the reason.

        >>> names = BaseNames(["vision.layers.0.q.weight", "text.model.layers.0.q.weight"])
        >>> names.find("model.text.layers.0.q.weight")[0]
        'text.model.layers.0.q.weight'
        >>> names.find("layers.0.q.weight")
        (None, "could be any of 'vision.layers.0.q.weight', 'text.model.layers.0.q.weight'")
        """
        if name in self._names:
            return name, ""
        prefix = next((each for each in _PREFIXES if name.startswith(each)), None)
        if prefix is not None:
            module, _, last = name.removeprefix(prefix).rpartition(".")
            return self._one(self._by_flat_end.get(f"{module}_{last}", []))
        parts = name.split(".")
        for begin in range(len(parts) - 1):
            found = self._by_end.get(".".join(parts[begin:]), [])
            if len(found) > 1:  # by all that is before, in whatever order
                before = sorted(parts[:begin])
                alike = [
                    each
                    for each in found
                    if sorted(each.split(".")[: len(each.split(".")) - len(parts) + begin])
                    == before
                ]
                found = alike if len(alike) == 1 else found
            if found:
                return self._one(found)
        return self._one([])

    @staticmethod
    def _one(found: list[str]) -> tuple[str | None, str]:
        if len(found) == 1:
            return found[0], ""
        return None, f"could be any of {listed(found, 3)}" if found else "is not in the base"
