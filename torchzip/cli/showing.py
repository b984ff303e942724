"""``torchzip cat``: one tensor or value, as text, as statistics, or as a .npy file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from typing import TYPE_CHECKING, Any

import torchzip
from torchzip import tools
from torchzip.checkpoint.lazy_tensor import LazyTensor, is_tensor
from torchzip.checkpoint.quantities import name_text, share_text
from torchzip.cli.command import DONE, Command, reading_options
from torchzip.cli.histogram import can_encode, histogram_lines
from torchzip.cli.indexing import parse_index
from torchzip.cli.rendering import fitted_table, screen
from torchzip.errors import ErrorPlace, UnsupportedError, printable, shown
from torchzip.tensors.numpy_dtypes import has_numpy_dtype
from torchzip.tools.array_text import tensor_text
from torchzip.tools.lookup import look_up
from torchzip.tools.npy import write_npy
from torchzip.tools.parts import dense_of, named_parts, view
from torchzip.tools.value_json import json_value
from torchzip.tools.value_text import value_lines
from torchzip.types import MetaTensor, OtherTensor

if TYPE_CHECKING:
    from torchzip.tools.element_statistics import Number, Statistics

COMMAND = Command(
    name="cat",
    summary="print one tensor or value, its statistics, or a .npy file",
    description="""\
Print one tensor or a slice of it, as numpy prints an array: if it has more than 1,000 elements,
only its corners are shown and read. NAME may also be another value, such as `epoch`, or a part of a
tensor that is not dense, such as `w.indices`. Without NAME, the whole object is shown.

SLICE is numpy's basic indexing, with or without brackets: 0  :10  3,:,::2  -1  ...,0

--npy writes exact numbers, block by block. A .npy file cannot hold bfloat16 or float8: give
--dtype float32, which represents them exactly.
""",
    examples="""
        torchzip cat model.pt layers.0.weight
        torchzip cat model.pt layers.0.weight 10:12,:4
        torchzip cat model.pt layers.0.weight --stats
        torchzip cat model.pt layers.0.weight --npy weight.npy
        torchzip cat model.pt layers.0.weight --npy - | python my_script.py
        torchzip cat model.ckpt epoch
        torchzip cat model.ckpt hyper_parameters --json
    """,
    arguments={
        "FILE": None,
        "name": {"metavar": "NAME", "nargs": "?"},
        "slice": {"metavar": "SLICE", "nargs": "?", "help": "such as 3,:,::2"},
        "--full": "print all elements, up to a million",
        "--stats": "print min, max, mean, std, NaN, inf and a histogram",
        "--json": "print a value of any depth as JSON, or the statistics",
        "--npy OUT": "write a .npy file; - is stdout",
        "--dtype DTYPE": "with --npy: cast to this floating dtype",
        "--force": "with --npy: overwrite OUT",
    },
    takes_negatives=True,  # an index such as -1,:
)


def run(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    index = None if arguments.slice is None else parse_index(arguments.slice)
    with (
        torchzip.lazy_load(
            arguments.file,
            optimizer=(arguments.name or "").startswith("optimizer."),
            **reading_options(arguments),
        ) as checkpoint,
        ErrorPlace(path=checkpoint.path),
    ):
        try:
            found = checkpoint.root
            if arguments.name is not None or is_tensor(found):
                found = look_up(checkpoint, arguments.name or "")
            _show(_chosen(found, index, arguments), arguments)
        except IndexError as error:
            raise ValueError(f"{_title(arguments)}: {error}") from None
    return DONE


def _check_options(arguments: argparse.Namespace) -> None:
    has_numbers = arguments.npy is not None or arguments.slice is not None
    if arguments.json and has_numbers and not arguments.stats:
        raise ValueError("--json goes with --stats, or with the NAME of a value")
    if arguments.npy is None and (arguments.dtype is not None or arguments.force):
        raise ValueError("--dtype and --force go with --npy")
    if arguments.npy is not None and (arguments.stats or arguments.full):
        raise ValueError("--npy writes numbers only; it does not go with --stats or --full")
    if arguments.npy == "-" and sys.stdout.isatty():
        raise ValueError("a .npy file is not printed on a terminal; redirect it, or name a file")


def _chosen(found: Any, index: Any, arguments: argparse.Namespace) -> Any:
    """Return the value to show: a LazyTensor if numbers are asked for."""
    wants_numbers = index is not None or arguments.stats or arguments.npy is not None
    if not wants_numbers:
        return found
    if isinstance(found, OtherTensor):
        found = dense_of(found, printable(arguments.name or ""))
    tensor = view(found, index)
    if tensor is None:
        asked = "a SLICE" if index is not None else "--stats" if arguments.stats else "--npy"
        raise ValueError(
            f"{_title(arguments)} is {shown(found)}, not a tensor; {asked} is for tensors"
        )
    return tensor


def _show(found: Any, arguments: argparse.Namespace) -> None:
    title = _title(arguments)
    if arguments.npy is not None:
        out = sys.stdout.buffer if arguments.npy == "-" else arguments.npy
        write_npy(found, out, dtype=arguments.dtype, overwrite=arguments.force)
    elif arguments.stats:
        made = tools.statistics(found)
        about = {"torch_dtype": found.torch_dtype, "shape": found.shape}
        as_json = json.dumps({**about, **dataclasses.asdict(made)}, indent=2)
        print(as_json if arguments.json else _stats_text(title, found, made))
    elif arguments.json and isinstance(found, LazyTensor):
        raise ValueError(f"{title} is a tensor; --json goes with --stats then")
    elif arguments.json:
        print(json.dumps(json_value(found), indent=2))
    elif isinstance(found, LazyTensor):
        print(f"{title}: {_kind(found)}\n{_text(found, arguments)}")
    elif isinstance(found, OtherTensor):
        print("\n".join(_other_lines(found, title, arguments)))
    else:
        print("\n".join(value_lines(found)))


def _title(arguments: argparse.Namespace) -> str:
    index = "" if arguments.slice is None else f"[{arguments.slice.strip().strip('[]')}]"
    return f"{name_text(arguments.name or '')}{printable(index)}"


def _kind(tensor: LazyTensor) -> str:
    bits = "" if has_numpy_dtype(tensor.torch_dtype) else " as raw bits"
    return f"{tensor.torch_dtype} {list(tensor.shape)}{bits}"


def _text(tensor: LazyTensor, arguments: argparse.Namespace) -> str:
    if 0 in tensor.shape:
        return "[]"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    return tensor_text(tensor, full=arguments.full, width=max(width, 20))


def _other_lines(tensor: OtherTensor, title: str, arguments: argparse.Namespace) -> list[str]:
    """Return lines about a tensor that is not dense: its parts, and its numbers if quantized."""
    lines = [f"{title}: {printable(repr(tensor))}"]
    if isinstance(tensor, MetaTensor):
        return [*lines, "a tensor on the meta device has no data"]
    for name, part in named_parts(tensor):
        lines += [f"{title}.{name}: {_kind(part)}", _text(part, arguments)]
    if tensor.kind == "quantized":
        try:
            dense = dense_of(tensor, title)
        except UnsupportedError as error:
            return [*lines, error.message]
        lines += [f"{title}, dequantized: {_kind(dense)}", _text(dense, arguments)]
    return lines


def number_text(number: Number | None) -> str:
    """Return a number as it is shown in statistics.

    >>> number_text(12345), number_text(0.1 + 0.2), number_text(None)
    ('12,345', '0.3', '-')
    """
    if number is None:
        return "-"
    return f"{number:,}" if isinstance(number, int) else f"{number:.6g}"


def _stats_text(title: str, tensor: LazyTensor, made: Statistics) -> str:
    about = "" if made.of == "values" else f", statistics of the {made.of}"
    rows = [["elements", f"{made.count:,}", ""]]
    if made.finite < made.count:
        rows.append(["finite", f"{made.finite:,}", _share(made.finite, made)])
    rows += [[name, number_text(getattr(made, name)), ""] for name in ("min", "max", "mean", "std")]
    zeros = f", {made.negative_zeros:,} of them -0.0" if made.negative_zeros else ""
    rows.append(["zeros", f"{made.zeros:,}", _share(made.zeros, made) + zeros])
    odd = {"NaN": made.nans, "+Inf": made.positive_infinities, "-Inf": made.negative_infinities}
    rows += [[name, f"{count:,}", _share(count, made)] for name, count in odd.items()]
    lines = [f"{title}: {_kind(tensor)}{about}", *fitted_table(rows, screen(), (2,), right=(1,))]
    if made.counts:
        ends = (number_text(made.min), number_text(made.max))
        blocks = can_encode(sys.stdout.encoding)
        lines += ["", *histogram_lines(made.counts, ends, blocks=blocks, width=screen().width)]
    return "\n".join(lines)


def _share(count: int, made: Statistics) -> str:
    return share_text(count / made.count) if count else ""
