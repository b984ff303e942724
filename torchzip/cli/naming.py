"""``torchzip globals``: every class and function that a file names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torchzip
from torchzip.checkpoint.quantities import count_text
from torchzip.cli.command import BAD, DONE, Command, print_verdict, reading_options, say
from torchzip.cli.rendering import fitted_table, screen
from torchzip.errors import printable
from torchzip.tools.global_names import GlobalName, global_names

if TYPE_CHECKING:
    from torchzip.tools.scanning.policy import Policy

ALLOW_ARGUMENT = {
    "--allow POLICY ...": "names that are accepted: a policy file or a preset; may be repeated",
}
#: Of the commands whose exit status tells of names that torch.load refuses by default.
POLICY_ARGUMENTS: dict[str, str | dict[str, Any] | None] = {
    **ALLOW_ARGUMENT,
    "--fail-on": {
        "choices": ["foreign", "never"],
        "default": "foreign",
        "help": "exit status 1 for names that torch.load refuses by default and the policy does "
        "not allow (the default); or never for names",
    },
}

COMMAND = Command(
    name="globals",
    summary="list every class and function that the file names",
    description="""\
List every class and function that a checkpoint names, in any pickle that a loader of its format
runs. Foreign ones are unknown to torchzip and kept as inert objects. Nothing is ever imported or
called. The last column shows what torch.load accepts by default (weights_only=True). The exit
status is 1 if it refuses a name, unless the policy allows that: torchzip scan --help says how.
""",
    examples="""
        torchzip globals model.ckpt
        torchzip globals model.ckpt --allow lightning
    """,
    arguments={
        "FILE": None,
        **POLICY_ARGUMENTS,
        "--json": "print the names as JSON",
    },
)


def run(arguments: argparse.Namespace) -> int:
    gate = gate_of(arguments)
    with torchzip.lazy_load(arguments.file, **reading_options(arguments)) as checkpoint:
        names = global_names(checkpoint)
    if arguments.json:
        print_verdict(json.dumps([row._asdict() for row in names], indent=2))
    else:
        print_verdict(globals_as_text(names, f"{checkpoint.path}: {checkpoint.format}"))
    return gate(
        checkpoint.path, (f"{row.module}.{row.name}" for row in names if not row.torch_safe)
    )


def gate_of(arguments: argparse.Namespace) -> Callable[[str, Iterable[str]], int]:
    """Return a function from a file and the names that torch.load refuses to the exit status.

    It says on stderr why that is 1.

    Raises
    ------
    OSError, ValueError
        If a policy cannot be read.
    """
    policy = policy_of(arguments)

    def gate(file: str, refused: Iterable[str]) -> int:
        left = [name for name in refused if not policy.allows(name)]
        if arguments.fail_on == "never" or not left:
            return DONE
        say(f"{file}: exit status 1, as torch.load refuses names in it by default; {advice(left)}")
        return BAD

    return gate


def advice(names: Iterable[str]) -> str:
    """Return which options accept names that torch.load refuses by default."""
    from torchzip.tools.scanning.policy import preset_for  # which few runs need

    preset = preset_for(names)
    if preset is not None:
        return f"--allow {preset} accepts them"
    return "--allow FILE accepts those in a file, --fail-on never all"


def policy_of(arguments: argparse.Namespace) -> Policy:
    """Return what all the policies of a command line allow together."""
    from torchzip.tools.scanning.policy import Policy, parse_policy  # which few runs need

    return Policy(glob for text in arguments.allow for glob in parse_policy(text).globs)


def globals_as_text(names: list[GlobalName], place: str) -> str:
    rows = [
        (
            printable(f"{row.module}.{row.name}"),
            "foreign" if row.foreign else "known",
            "accepts" if row.torch_safe else "refuses",
        )
        for row in names
    ]
    head = ("name", "torchzip", "torch.load")
    lines = fitted_table([head, *rows], screen(), (0,)) if names else []
    foreign = sum(row.foreign for row in names)
    refused = sum(not row.torch_safe for row in names)
    count = count_text(len(names), "name")
    lines.append(
        f"{printable(place)}, {count}, {foreign:,} foreign, {refused:,} that torch.load refuses by "
        "default"
    )
    return "\n".join(lines)
