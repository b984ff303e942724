"""The formats that `convert` writes, found by the suffix of a path.

To add one, write a class with the members of `base.Output` and list it here.
"""

from __future__ import annotations

from torchzip.convert.outputs.base import Output
from torchzip.convert.outputs.gguf import GgufOutput
from torchzip.convert.outputs.npz import NpzOutput
from torchzip.convert.outputs.safetensors import SafetensorsOutput
from torchzip.convert.outputs.zip import ZipOutput

#: In the order in which messages list their suffixes.
OUTPUTS: list[type[Output]] = [ZipOutput, SafetensorsOutput, GgufOutput, NpzOutput]


def output_of(path: str) -> type[Output] | None:
    """Return the output whose files end so, in any case of letters; None if there is none.

    >>> output_of("m.PTH.tar"), output_of("m.onnx")
    (<class 'torchzip.convert.outputs.zip.ZipOutput'>, None)
    """
    return next((output for output in OUTPUTS if path.lower().endswith(output.suffixes)), None)
