"""What the name of a destination promises its readers: the writers of this room keep to it.

`save` and `incremental_save` write the zip of ``torch.save``, whatever the name. Under the suffix
of another format, every reader that goes by names would take it for a broken file of that one.
"""

from __future__ import annotations

import os
import re

#: The formats that tensors are kept in beside torch's own, by the ends of their names.
OTHER_FORMATS = {
    ".safetensors": "safetensors",
    ".sft": "safetensors",
    ".gguf": "GGUF",
    ".npz": "numpy",
    ".npy": "numpy",
}
#: ``model.safetensors.index.json``, and that of a variant, ``model.safetensors.index.fp16.json``.
_INDEX = re.compile(r"\.index(\.[^./\\]+)?\.json$", re.IGNORECASE)


def refuse_other_format(file: object) -> None:
    """Raise ValueError if a destination is a path with the suffix of another format.

    An open file has no name that counts.
    """
    if not isinstance(file, str | os.PathLike):
        return
    path = os.fsdecode(file)
    index = _INDEX.search(path)
    suffix = index[0] if index is not None else os.path.splitext(path)[1]
    name = "an index of shards" if index is not None else OTHER_FORMATS.get(suffix.lower())
    if name is not None:
        raise ValueError(
            f"{path}: {suffix} is the suffix of {name}, and this writes the zip format of "
            "torch.save. Save it as .pt; torchzip.convert writes other formats from that: "
            f"convert('model.pt', {os.path.basename(path)!r})"
        )
