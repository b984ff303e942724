"""What the commands share: how they are added, their exit statuses, and messages on stderr."""

from __future__ import annotations

import argparse
import contextlib
import errno
import glob
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, BinaryIO, TextIO

import torchzip
from torchzip.errors import TorchZipError, printable
from torchzip.files.platform_calls import open_file
from torchzip.limits import Limits

_LIMITS = {field.name: field.default for field in fields(Limits)}
_LIMIT_NAMES = ", ".join(f"{name} ({default:,})" for name, default in _LIMITS.items())
#: What `LimitError` says to do.
_TO_RAISE = re.compile(r"pass limits=tz\.Limits\((\w+)=\.\.\.\)")

#: Exit statuses: done, the file is bad or differs, wrong usage.
DONE, BAD, USAGE = 0, 1, 2


class CommandParser(argparse.ArgumentParser):
    """A parser that accepts options between optional arguments.

    argparse alone does not find NAME in ``cat FILE --stats NAME``: when it reaches the option, it
    has already decided that NAME was left out.
    """

    _is_inner = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what argparse makes of the arguments, options first."""
        if self._is_inner:  # called by the call below
            return super().parse_known_args(args, namespace)
        self._is_inner = True
        words = list(args or ())
        at = words.index("--") if "--" in words else len(words)
        # What follows is not an option, whatever it begins with. A mark keeps it from looking so.
        words[at:] = [_MARK + word for word in words[at + 1 :]]
        try:
            made, left = self.parse_known_intermixed_args(words, namespace)
        finally:
            self._is_inner = False
        for name, value in vars(made).items():
            setattr(made, name, _unmarked(value))
        return made, _unmarked(left)


_MARK = "\0"


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    return value.removeprefix(_MARK) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says of a command.

    ``summary`` is shown in the list of commands, ``description`` above the options and
    ``examples``, one per line, below them. A command that ``reads`` a file gets options for the
    bounds on what the file may ask for: `limits_of`. With ``takes_negatives``, what begins with a
    minus sign and a digit is not an option.

    ``arguments`` are written as on the command line, with their help: ``"FILE"`` must be given,
    ``"--force"`` is a switch, ``"--npy OUT"`` takes a string, and ``"--drop GLOB ..."`` one each
    time that it is given. Others have the keywords of ``add_argument``.
    """

    name: str
    summary: str
    description: str
    examples: str
    arguments: Mapping[str, str | dict[str, Any] | None]
    reads: bool = True
    takes_negatives: bool = False


def add_command(commands: Any, command: Command, run: Callable[[argparse.Namespace], int]) -> None:
    """Add a command; ``run`` is called with what was parsed, and returns the exit status."""
    lines = "".join(f"  {line.strip()}\n" for line in command.examples.strip().splitlines())
    parser: argparse.ArgumentParser = commands.add_parser(
        command.name,
        help=command.summary,
        description=command.description.strip(),
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    if command.takes_negatives:
        parser._negative_number_matcher = re.compile(r"-\d")
    if command.reads:
        group = parser.add_argument_group("bounds on what a file may ask for")
        group.add_argument(
            "--limit",
            action="append",
            default=[],
            metavar="NAME=N",
            type=_parse_limit,
            help=f"change a bound; may be repeated. NAME and its default: {_LIMIT_NAMES}",
        )
        group = parser.add_argument_group("files behind URLs")
        group.add_argument(
            "--storage-option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            type=_parse_storage_option,
            help="an option for what reads and writes them, such as region=eu-north-1; may be "
            "repeated. VALUE is taken as JSON if it is valid JSON, else as a string",
        )
    for words, told in command.arguments.items():
        name, *more = words.split()
        if isinstance(told, dict):
            parser.add_argument(name, *more, **told)
        elif not name.startswith("-"):
            parser.add_argument(name.lower(), metavar=name, help=told)
        elif not more:
            parser.add_argument(name, action="store_true", help=told)
        elif len(more) == 1:
            parser.add_argument(name, metavar=more[0], help=told)
        else:
            parser.add_argument(name, action="append", default=[], metavar=more[0], help=told)


def _parse_limit(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if name not in _LIMITS or not equals:
        raise argparse.ArgumentTypeError(
            f"{text!r}: NAME=N was expected, NAME one of {', '.join(_LIMITS)}"
        )
    try:
        bound = int(number.replace(",", ""))
        Limits(**{name: bound})
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a whole number, 0 or more, was expected after {name}="
        ) from None
    return name, bound


def _parse_storage_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: KEY=VALUE was expected")
    with contextlib.suppress(ValueError):
        return key, json.loads(value)
    return key, value


def limits_of(arguments: argparse.Namespace) -> Limits:
    """Return the bounds: those that the command line sets, and the defaults for all others."""
    return Limits(**dict(arguments.limit))


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the functions that read a file have as keywords, all of them."""
    return {
        "limits": limits_of(arguments),
        "storage_options": dict(arguments.storage_option) or None,
    }


@contextlib.contextmanager
def readable(word: str) -> Iterator[Any]:
    """Give what is read for a word of the command line: a path, or for ``-`` what comes on stdin.

    That is kept in a temporary file, since a checkpoint is not read from its start to its end.
    """
    if word != "-":
        yield word
        return
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept, 1 << 20)
        kept.seek(0)
        yield _Stdin(kept)


class _Stdin:
    """A file object that messages call by the name of the stream that it came from."""

    name = "<stdin>"

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def in_options(message: str) -> str:
    """Return a message of the library with its advice rewritten as a command line option.

    >>> in_options("If you trust the file, pass limits=tz.Limits(nesting=...).")
    'If you trust the file, pass --limit nesting=N.'
    """
    return _TO_RAISE.sub(r"pass --limit \1=N", message)


def print_found(found: Any, arguments: argparse.Namespace, text: Callable[[Any], str]) -> None:
    """Print what a function of `torchzip.tools` has returned: as text, or with --json as JSON."""
    print_verdict(json.dumps(asdict(found), indent=2) if arguments.json else text(found))


def print_verdict(text: str) -> None:
    """Print what the exit status says as well, which must be right also if nobody reads this."""
    with reader_may_leave(sys.stdout):
        print(text)


def split_rule(text: str) -> tuple[str, str]:
    """Return the glob and the word of ``[GLOB=]WORD``.

    >>> split_rule("a.*=cpu"), split_rule("cpu")
    (('a.*', 'cpu'), ('*', 'cpu'))
    """
    glob, equals, word = text.rpartition("=")
    return (glob if equals else "*"), word


#: The option of commands that read the shards of a model that was cut.
JOIN_ARGUMENT: dict[str, str | dict[str, Any] | None] = {
    "--join RULE ...": "put shards of a model together: llama, mistral or megatron, or GLOB=AXIS, "
    "GLOB=AXIS,PARTS or GLOB=same for names (may be repeated, the first match wins)",
}


@contextlib.contextmanager
def opened(
    file: str, arguments: argparse.Namespace, *, optimizer: bool = False
) -> Iterator[torchzip.Checkpoint]:
    """Open the checkpoint of a command line: a path or -, or with --join the files of a pattern."""
    join = parse_join(arguments.join)
    with (
        readable(file) if join is None else contextlib.nullcontext(files_of(file)) as source,
        torchzip.lazy_load(
            source, join=join, optimizer=optimizer, **reading_options(arguments)
        ) as checkpoint,
    ):
        yield checkpoint


def files_of(pattern: str) -> list[str]:
    """Return the files that match a pattern, in the order of the numbers in their names.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    found = glob.glob(pattern)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "No file matches", pattern)

    def key(path: str) -> list[tuple[int, str]]:
        return [
            (int(part or 0), "") if part.isdecimal() else (0, part)
            for part in re.split(r"([0-9]+)", path)
        ]

    return sorted(found, key=key)


def parse_join(texts: Sequence[str]) -> str | dict[str, Any] | None:
    """Return the rule of --join as `torchzip.lazy_load` takes it; None if it was not given.

    >>> parse_join(["llama"]), parse_join(["*norm*=same", "*=0,2"])
    ('llama', {'*norm*': 'same', '*': (0, 2)})
    """
    if not texts:
        return None
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    made: dict[str, Any] = {}
    for text in texts:
        glob_, _, how = text.rpartition("=")
        numbers = how.split(",")
        if not glob_ or not (how == "same" or all(map(str.isdecimal, numbers))):
            raise ValueError(
                f"--join {text!r}: GLOB=AXIS, GLOB=AXIS,PARTS or GLOB=same was expected"
            )
        axes = tuple(map(int, numbers)) if how != "same" else ()
        made[glob_] = "same" if how == "same" else axes[0] if len(axes) == 1 else axes
    return made


def parse_rules(texts: Sequence[str]) -> str | list[tuple[str, str]]:
    """Return the (glob, word) pairs of an option, or the word alone if it is given for all."""
    rules = list(map(split_rule, texts))
    return rules[0][1] if [glob for glob, _ in rules] == ["*"] else rules


def parse_renames(texts: Sequence[str], option: str = "--rename") -> list[tuple[str, str]]:
    """Return the pairs of ``--rename``, or of another option with an arrow.

    >>> parse_renames(["^a=>b"])
    [('^a', 'b')]
    """
    renames = []
    form = "REGEX=>REPL" if option == "--rename" else "OLD=>NEW"
    for text in texts:
        pattern, arrow, replacement = text.partition("=>")
        if not arrow:
            raise ValueError(f"{option} {text!r}: {form} was expected")
        renames.append((pattern, replacement))
    return renames


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that unfinished files are removed."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def warnings_said() -> Iterator[None]:
    """Print the warnings of the block when it ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        say(f"warning: {warning.message}")


@contextlib.contextmanager
def reader_may_leave(stream: TextIO) -> Iterator[None]:
    """Let the block print to nobody from when the reader of the stream has gone (``| head -1``).

    What comes after the block goes on. So an exit status that says something of a file is that of
    the file, whoever reads what is printed beside it.
    """
    try:
        yield
        stream.flush()
    except BrokenPipeError:  # the interpreter must not fail again when it flushes
        os.dup2(open_file(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Print a line on stderr, since stdout may be redirected."""
    with reader_may_leave(sys.stderr):
        print(f"torchzip: {printable(in_options(text))}", file=sys.stderr)


def error_text(error: TorchZipError | OSError) -> str:
    """Return what an error says, with the file before it."""
    if isinstance(error, TorchZipError):
        return str(error)
    place = "" if error.filename is None else f"{error.filename or repr('')}: "
    return f"{place}{error.strerror or error}"
