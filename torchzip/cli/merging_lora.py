"""``torchzip merge-lora``: a base with adapters merged into it."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from torchzip import tools
from torchzip.checkpoint.quantities import count_text
from torchzip.cli.averaging import first_names
from torchzip.cli.command import DONE, Command, say
from torchzip.cli.converting import OUTPUT_ARGUMENTS, show, writing

if TYPE_CHECKING:
    from torchzip.tools.lora.merging import LoraMerged

COMMAND = Command(
    name="merge-lora",
    summary="write a model with LoRA adapters merged into it",
    description="""\
Write a base with adapters merged into it to OUT; convert says which formats that can be. An adapter
is a directory of peft (LoRA, DoRA, LoHa, LoKr), or a LoRA file of kohya, LyCORIS or diffusers, each
with a weight if others than 1 are wanted. A quantized base is dequantized on the way. Deltas are
added up in float32 and rounded once, to the dtypes of the base.
""",
    examples="""
        torchzip merge-lora llama/ adapter/ -o merged/ --max-shard-size 5GB
        torchzip merge-lora unet.safetensors style.safetensors=0.7 pose.safetensors=0.4 -o out.pt
        torchzip merge-lora llama/ adapter/ -o merged/ --dry-run
    """,
    arguments={
        "BASE": None,
        "adapter": {"metavar": "ADAPTER[=WEIGHT]", "nargs": "+"},
        "-o": {"metavar": "OUT", "dest": "out", "required": True, "help": "where to write it"},
        "--partial": "leave out tensors of adapters that have no place in the base",
        **OUTPUT_ARGUMENTS,
    },
)


def run(arguments: argparse.Namespace) -> int:
    pairs = list(map(_parse_adapter, arguments.adapter))
    with writing(arguments, arguments.out) as options:
        merged = tools.merge_lora(
            arguments.base,
            [path for path, _ in pairs],
            arguments.out,
            weights=[weight for _, weight in pairs],
            partial=arguments.partial,
            **options,
        )
    show(merged.converted, arguments)
    _say_merged(merged)
    return DONE


def _parse_adapter(text: str) -> tuple[str, float]:
    """Return the path and the weight of ``ADAPTER[=WEIGHT]``.

    >>> _parse_adapter("a=0.5"), _parse_adapter("run=7/lora")
    (('a', 0.5), ('run=7/lora', 1.0))
    """
    path, equals, number = text.rpartition("=")
    try:
        return (path, float(number)) if equals else (text, 1.0)
    except ValueError:  # the sign is in the path
        return text, 1.0


def _say_merged(merged: LoraMerged) -> None:
    kinds = Counter(merged.merged.values())
    parts = [f"{count_text(count, 'tensor')} ({kind})" for kind, count in kinds.items()]
    say(f"merged: {', '.join(parts) or 'nothing'}")
    if merged.replaced:
        say(f"replaced as a whole: {first_names(merged.replaced)}")
    if merged.dequantized:
        say(f"dequantized: {count_text(len(merged.dequantized), 'weight')}")
    if merged.left_out:
        say(f"not used: {first_names([f'{key} {why}' for key, why in merged.left_out.items()])}")
