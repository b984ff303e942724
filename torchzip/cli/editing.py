"""``torchzip edit``: its options, and the changes as text or JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchzip import tools
from torchzip.checkpoint.quantities import count_text, nbytes_text
from torchzip.cli.command import (
    BAD,
    DONE,
    Command,
    exit_on_sigterm,
    limits_of,
    parse_renames,
    parse_rules,
    print_found,
    say,
    split_rule,
    warnings_said,
)
from torchzip.cli.converting import parse_metadata
from torchzip.errors import printable

if TYPE_CHECKING:
    from torchzip.tools.editing import Edited

COMMAND = Command(
    name="edit",
    summary="rename, drop and set items in place, without moving tensors",
    description="""\
Change names, values, requires_grad and devices in a file of torch.save, in
place. A new structure is appended and no tensor data moves, so this takes
milliseconds for tensors of any size (seconds for 100,000 of them). The file is
readable at every moment, with its old or its new content. Dropped tensors keep
their space until --compact, alone or with other options, rewrites the file.

A rule that matches nothing is a warning, and the exit status is 1 then.

All rules match paths before the edit: keys joined by dots, as ls shows them.
Containers have paths too.
""",
    examples=r"""
        torchzip edit model.pt --rename '^module\.=>'
        torchzip edit run.ckpt --drop optimizer_states --drop 'callbacks.*' --dry-run
        torchzip edit model.pt --set epoch=3 --set config.name='"base"' --device cpu
        torchzip edit model.pt --requires-grad 'encoder.*=false'
        torchzip edit model.pt --compact
        torchzip edit model.safetensors --metadata author=me --metadata note
    """,
    arguments={
        "FILE": None,
        "--rename REGEX=>REPL ...": "replace in paths, as Python's re.sub does (may be repeated, "
        "applied in order); an item stays in its container",
        "--drop GLOB ...": "remove these items: tensors, values or whole containers",
        "--set PATH=JSON ...": "set an item to a plain value, or add an item to a dict; anything "
        "that is not valid JSON is taken as a string",
        "--requires-grad [GLOB=]true|false ...": "of all floating tensors, or of those whose name "
        "matches (the first match wins)",
        "--device [GLOB=]DEVICE ...": "device that torch.load restores storages to: cpu, cuda:0, "
        "mps, ...",
        "--metadata KEY[=VALUE] ...": "set metadata of a .safetensors or .gguf file, which is "
        "rewritten; a KEY alone is taken away. VALUE is as for convert",
        "--compact": "rewrite the file, without bytes of dropped items; storages stay whole",
        "--dry-run": "show the changes and make none",
        "--json": "print what was done as JSON",
    },
)

#: At most so many lines of each kind are shown.
_MOST = 20


def run(arguments: argparse.Namespace) -> int:
    rules = rules_of(arguments)
    with warnings_said(), exit_on_sigterm():
        found = tools.edit(
            arguments.file,
            metadata=parse_metadata(arguments.metadata, arguments.file, can_drop=True),
            compact=arguments.compact,
            dry_run=arguments.dry_run,
            limits=limits_of(arguments),
            **rules,
        )
    for line in found.unused:
        say(f"warning: {line}")
    print_found(found, arguments, lambda found: as_text(found, arguments.dry_run))
    return BAD if found.unused else DONE  # a typo, most likely


def rules_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rules of a command line as `torchzip.tools.edit` takes them."""
    renames = parse_renames(arguments.rename)
    values = {}
    for text in arguments.set:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: PATH=JSON was expected")
        try:
            values[path] = json.loads(value)
        except (ValueError, RecursionError):
            values[path] = value
    grads = []
    for glob, word in map(split_rule, arguments.requires_grad):
        if word not in ("true", "false"):
            raise ValueError(f"--requires-grad {word!r}: true or false was expected")
        grads.append((glob, word == "true"))
    return {
        "rename": renames,
        "drop": arguments.drop,
        "set_values": values,
        "requires_grad": grads,
        "device": parse_rules(arguments.device),
    }


def as_text(found: Edited, dry_run: bool = False) -> str:
    renamed = [f"{old} -> {new}" for old, new in found.renamed]
    changed = {"renamed": renamed, "dropped": found.dropped, "set": found.set}
    lines = [line for what, names in changed.items() for line in _some(what, names)]
    done = [f"{len(names):,} {what}" for what, names in changed.items() if names]
    if found.requires_grad:
        done.append(f"requires_grad of {count_text(found.requires_grad, 'tensor')}")
    if found.device:
        done.append(f"device of {count_text(found.device, 'storage')}")
    if found.how == "appended":
        done.append(
            f"{nbytes_text(found.appended_nbytes)} {'to append' if dry_run else 'appended'}"
        )
    elif found.how == "rewritten":
        written = "to be rewritten" if dry_run else "rewritten"
        done.append(f"{written}, {nbytes_text(found.nbytes)}")
    else:
        done.append("nothing to change")
    lines.append(f"{printable(found.path)}: {', '.join(done)}")
    if found.dead_nbytes:
        are = "would be" if dry_run else "are"
        lines.append(
            f"{nbytes_text(found.dead_nbytes)} of {nbytes_text(found.nbytes)} {are} used by "
            "nothing; --compact frees them"
        )
    if found.unreached_nbytes:
        lines.append(
            f"{nbytes_text(found.unreached_nbytes)} of {nbytes_text(found.nbytes)} are kept though "
            "no tensor reaches them; torchzip convert --pack leaves them out"
        )
    lines += [f"note: {printable(note)}" for note in found.notes]
    return "\n".join(lines)


def _some(what: str, names: Sequence[str]) -> list[str]:
    lines = [f"{what:<7}  {printable(name)}" for name in names[:_MOST]]
    if len(names) > _MOST:
        lines.append(f"{'':<7}  and {len(names) - _MOST:,} more")
    return lines
