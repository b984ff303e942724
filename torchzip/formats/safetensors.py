"""The safetensors format: a JSON header, and the bytes of tensors."""

from __future__ import annotations

from torchzip.container.safetensors import parse_header
from torchzip.files.source import Source
from torchzip.formats.base import NamedTensorsContainer
from torchzip.limits import Limits


class SafetensorsContainer(NamedTensorsContainer):
    """A safetensors file: a flat dict of tensors, each with a storage of its own."""

    format = "safetensors"
    label = "safetensors"
    lists_ties = True
    torch_reason = (
        "a safetensors file; safetensors.torch.load_file reads it, and torch.load since 2.13 if "
        "its name ends in .safetensors"
    )

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source, *parse_header(source, limits))
