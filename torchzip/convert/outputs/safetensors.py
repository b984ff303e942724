"""The safetensors format: a header with the names, and the elements of each tensor."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any

from torchzip.container.gguf import plain_value, value_text
from torchzip.container.safetensors import ALIASES_KEY, build_header, data_order
from torchzip.convert.carried import OBJECT_KEY
from torchzip.convert.lost import lost_metadata
from torchzip.convert.outputs.by_name import PlannerByName
from torchzip.convert.planned import PlannedFile
from torchzip.errors import shown


class SafetensorsOutput(PlannerByName):
    """A header and the elements of each tensor; one tensor of a tie has the data."""

    format = "safetensors"
    suffixes = (".safetensors", ".sft")
    has_crcs = False
    has_metadata = True

    @classmethod
    def check_value(cls, key: str, value: Any) -> None:
        if not isinstance(value, str):
            raise TypeError(
                f"the metadata {shown(key)} is {shown(value)}; safetensors holds strings"
            )

    @property
    def _texts(self) -> dict[str, str]:
        """The metadata of the source as strings; lists of GGUF, such as tokens, are left out."""
        return {
            key: value_text(value)
            for key, value in self.selection.metadata.items()
            if not isinstance(plain_value(value), list)
        }

    def one_file(self, path: str) -> PlannedFile:
        order = sorted(self.storages, key=lambda name: data_order(name, self.dtypes[name]))
        carried = self.carry(order + sorted(self.aliases))
        self.lost += lost_metadata(self.selection.metadata.keys() - self._texts.keys())
        metadata = {} if carried is None else {OBJECT_KEY: carried}
        return self._with(path, list(self.storages), metadata)

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        return self._with(path, names, {})

    def _with(self, path: str, names: list[str], metadata: dict[str, str]) -> PlannedFile:
        metadata |= {"format": "pt"} | self._texts  # what transformers asks for
        held = set(names)
        aliases = {name: holder for name, holder in self.aliases.items() if holder in held}
        if aliases:
            metadata[ALIASES_KEY] = json.dumps(aliases, ensure_ascii=False, sort_keys=True)
        head, order = build_header(
            ((name, self.dtypes[name], self.tensors[name].shape) for name in names), metadata
        )
        sizes = [self.storages[name].nbytes for name in order]
        *starts, end = accumulate(sizes, initial=len(head))
        return self.file(path, head, order, starts, end)
