"""The formats that `convert` writes, found by the suffix of a path.

To add one, write a class with the members of `base.Output` and list it here.
"""

from __future__ import annotations

from torchzip.convert.outputs.base import Output
from torchzip.convert.outputs.safetensors import SafetensorsOutput
from torchzip.convert.outputs.zip import ZipOutput

#: In the order in which messages list their suffixes.
OUTPUTS: list[type[Output]] = [ZipOutput, SafetensorsOutput]


def output_of(suffix: str) -> type[Output] | None:
    """Return the output whose files have a suffix, in any case of letters; None if there is none.

    >>> output_of(".PTH"), output_of(".onnx")
    (<class 'torchzip.convert.outputs.zip.ZipOutput'>, None)
    """
    return next((output for output in OUTPUTS if suffix.lower() in output.suffixes), None)
