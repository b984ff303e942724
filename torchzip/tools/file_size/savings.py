"""What `convert` would save of a file, to the byte: its own plans, which nothing is written for."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.container.hub_names import split_suffix, whole_of
from torchzip.convert.outputs.registry import output_of
from torchzip.convert.plan import make_plan
from torchzip.convert.rules import Rules
from torchzip.convert.targets import parse_target
from torchzip.errors import TorchZipError, as_argument, is_printable
from torchzip.files.location import Location
from torchzip.limits import Limits


@dataclass(frozen=True, slots=True)
class Saving:
    """A command, what it does, the size of its output and what that is less than the file.

    ``is_lossy`` says that numbers are rounded. ``not_carried`` is what else the output lacks, as
    `convert` says it.
    """

    what: str
    command: str
    nbytes: int
    saved: int
    is_lossy: bool
    not_carried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Idea:
    """A conversion that may save something: ``label`` goes into the name of its output."""

    what: str
    label: str
    suffix: str | None = None
    exclude: tuple[str, ...] = ()
    dtype: str | None = None


def saving_of(file: str | os.PathLike[str], size: int, idea: Idea, limits: Limits) -> Saving | None:
    """Return what an idea saves; None if that is nothing, or it cannot be done."""
    globs = [re.sub(r"([*?[])", r"[\1]", prefix) + ".*" for prefix in idea.exclude]
    try:
        with Checkpoint(file, limits=limits) as checkpoint:
            path = checkpoint.path
            # What is read from a store or a web server is written here.
            target = _target(os.path.basename(path) if isinstance(file, Location) else path, idea)
            rules = Rules(dtype=idea.dtype, exclude=globs or None)
            plan = make_plan(checkpoint, parse_target(target), rules)
    except (TorchZipError, ValueError):
        return None  # a tensor that the target cannot hold, say
    options = []
    for glob in globs:
        options += [f"--exclude={glob}"] if glob.startswith("-") else ["--exclude", glob]
    options += ["--dtype", idea.dtype] if idea.dtype else []
    words = ["torchzip", "convert", as_argument(path), as_argument(target), *options]
    if plan.nbytes >= size or plan.unused or not all(map(is_printable, words)):
        return None
    return Saving(
        what=idea.what,
        command=shlex.join(words),
        nbytes=plan.nbytes,
        saved=size - plan.nbytes,
        is_lossy=idea.dtype is not None,
        not_carried=tuple(plan.lost),
    )


def _target(path: str, idea: Idea) -> str:
    """Return a path beside the file where nothing is yet."""
    folder, name = os.path.split(path.rstrip(os.sep) or path)
    name = whole_of(name) or name
    stem, suffix = split_suffix(name)
    if output_of(suffix) is None:
        stem, suffix = (name, ".safetensors") if os.path.isdir(path) else (stem, ".pt")
    suffix = idea.suffix or suffix
    label = idea.label
    made = os.path.join(folder, f"{stem}-{label}{suffix}")
    number = 2
    while os.path.lexists(made):
        made = os.path.join(folder, f"{stem}-{label}-{number}{suffix}")
        number += 1
    return made
