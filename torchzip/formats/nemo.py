"""``.nemo`` files: a tar with the configuration of a model and its weights, a file of torch.save.

``model_weights.ckpt`` (or ``./model_weights.ckpt``) is read where it lies in the tar: nothing is
extracted. A tar that was compressed by gzip can be read from its start only. It is decompressed
into a temporary file, which goes when the checkpoint is closed.

Models in several parts have ``mp_rank_00/model_weights.ckpt`` and so on, or a distributed
checkpoint in ``model_weights/``. These are read after the file was extracted.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator

from torchzip.container.gzip import decompressed, remove
from torchzip.container.tar import find_members
from torchzip.errors import UnsupportedError, listed
from torchzip.files.source import FileSource, PartSource, Source
from torchzip.formats.base import (
    Contents,
    FileContainer,
    MakeFactory,
    Opener,
    Pickle,
    RecordCheck,
)

#: The parts of a ``.qnemo``, one for each rank.
_ENGINE = re.compile(r"(?:.*/)?rank\d{1,6}\.safetensors", re.ASCII)
#: What the weights are called, after the folder ``./`` that most programs put before it.
WEIGHTS = "model_weights.ckpt"


class NemoContainer(FileContainer):
    """The weights in a ``.nemo`` file."""

    format = "nemo"
    label = "NeMo"
    torch_load = "does not apply"
    #: Removes what was decompressed, if the file was; at the latest when nobody has the container.
    remove: weakref.finalize[..., NemoContainer] | None = None
    torch_reason = "a tar file with a file of torch.save in it; NeMo extracts that first"

    def __init__(self, source: Source, members: dict[str, tuple[int, int]], opener: Opener) -> None:
        super().__init__(source)
        (name,) = (name for name in members if name.removeprefix("./") == WEIGHTS)
        self._member = name
        part = PartSource(source, *members[name], f"{source.name}, {name}")
        #: The file of torch.save.
        self.inner = opener.of_source(part)
        if not self.inner.keeps_root:
            raise UnsupportedError(
                f"the weights are of format {self.inner.format}; a file of torch.save was expected",
                path=part.name,
            )

    def read(self, make_factory: MakeFactory) -> Contents:
        return self.inner.read(make_factory)

    def pickles(self) -> Iterator[Pickle]:
        for each in self.inner.pickles():
            yield each._replace(place=f"{self._member}: {each.place}")

    def check_records(self) -> Iterator[RecordCheck]:
        for check in self.inner.check_records():
            yield check._replace(name=f"{self._member}: {check.name}")
        self.notes = tuple(dict.fromkeys([*self.notes, *self.inner.notes]))

    def close(self) -> None:
        super().close()
        if self.remove is not None:
            self.remove()


def open_tar(source: Source, opener: Opener) -> NemoContainer | None:
    """Return the container that a tar file is; None if it is not of NeMo.

    Raises
    ------
    UnsupportedError
        If its weights are in several files.
    """
    members, _ = find_members(source, opener.limits)
    names = [name.removeprefix("./") for name in members]
    if names.count(WEIGHTS) == 1:
        return NemoContainer(source, members, opener)
    if any(name.startswith("model_weights/") for name in names):
        inside = (
            "a distributed checkpoint in model_weights/. Extract it (tar -xf) and give the path of "
            "that directory"
        )
    elif any(name.endswith(f"/{WEIGHTS}") for name in names):
        own = sorted(name for name in names if name.endswith(f"/{WEIGHTS}"))
        inside = f"weights in parts: {listed(own)}. Extract them (tar -xf) and join them"
    elif any(map(_ENGINE.fullmatch, names)):
        inside = (
            "parts of an engine of TensorRT-LLM (.qnemo), which do not say how they go together. "
            "Extract them (tar -xf) and give the path of one"
        )
    else:
        return None
    raise UnsupportedError(f"a .nemo file with {inside}.")


def open_gzip(source: Source, opener: Opener) -> NemoContainer | None:
    """Return the container that a compressed tar file is; None if it is not of NeMo."""
    path = decompressed(source, opener.limits)
    inside = FileSource(path)
    inside.name = source.name
    made: NemoContainer | None = None
    try:
        made = open_tar(inside, opener)
    finally:
        if made is None:
            inside.close()
            remove(path)
    if made is not None:
        source.close()
        made.remove = weakref.finalize(made, remove, path)
        made.notes = (f"decompressed into a temporary file of {inside.size:,} bytes",)
    return made
