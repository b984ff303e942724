"""Looks into files of any kind for what they would have Python do when they are loaded.

It is an allow list with a proof, and no list of bad names: what ``torch.load`` accepts by default
is known to the name and the opcode, archives are read in one way only, and whatever allows a second
is refused. So a file is said to be safe if torch's own loader takes it and nothing else is in it;
all else is a finding, also what cannot be read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torchzip.checkpoint.lazy import checkpoint_of
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import EnoughMemory, TorchZipError, shown
from torchzip.files.backends import list_files, member_of
from torchzip.files.folder import check_plain_name
from torchzip.files.location import Location, StorageOptions, located
from torchzip.files.opening import is_folder, open_folder, open_source
from torchzip.files.source import Source
from torchzip.formats.base import Container, check_options
from torchzip.formats.dcp import is_metadata
from torchzip.formats.opening import open_checkpoint, open_container
from torchzip.formats.pickled import HEAD_NBYTES, may_be_pickle
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.tensors.script import is_script_class
from torchzip.tools.scanning.followed import Followed, follow, follow_bytes
from torchzip.tools.scanning.inside import (
    COMPRESSED,
    UNOPENED,
    Member,
    decompressed,
    tar_members,
    zip_members,
)
from torchzip.tools.scanning.policy import Policy, parse_policy
from torchzip.tools.torch_verdict.verification import verdict_of

#: The rules that findings break.
FOREIGN, REFUSED, AMBIGUOUS, UNREADABLE = (
    "foreign-global", "torch-refuses", "ambiguous-archive", "unreadable",
)  # fmt: skip
#: Archives in archives that are looked into.
_MOST_DEPTH = 5
_HEAD_NBYTES = 512
_MAGICS = (b"PK\3\4", b"PK\5\6", b"\x93NUMPY", *COMPRESSED, *UNOPENED)
_NUMPY_OBJECTS = b"'descr': '|O'"
#: What is called so, and cannot be opened as a checkpoint, is a finding. (.bin is many things.)
_SUFFIXES = (
    ".pt", ".pth", ".ckpt", ".pth.tar", ".th", ".safetensors", ".sft", ".gguf", ".npz", ".npy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a file that is not known to be harmless.

    ``rule`` is "foreign-global" (a name outside torch's list and the policy), "torch-refuses" (what
    only ``weights_only=False`` loads, or nothing does), "ambiguous-archive" or "unreadable".
    ``member`` is where in an archive, ``offset`` the byte of the pickle, ``calls`` arguments with
    which the name is called.
    """

    rule: str
    message: str
    path: str
    member: str | None = None
    name: str | None = None
    offset: int | None = None
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """What a file is: ``verdict`` is the worst of what is in it.

    "no pickle" (nothing in it is run), "plain" (pickles that name nothing but what torch accepts,
    in another file than a checkpoint), "safe" (torch.load takes it by default), "known" (with names
    that the policy allows), and with findings "unreadable", "refused" and "foreign".
    """

    path: str
    format: str
    verdict: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Scanned:
    """What `scan` has found, by file."""

    files: tuple[ScannedFile, ...]

    @property
    def findings(self) -> list[Finding]:
        """Those of all files."""
        return [finding for file in self.files for finding in file.findings]

    @property
    def has_findings(self) -> bool:
        """Whether there is one that is more than a file that cannot be read."""
        return any(finding.rule != UNREADABLE for finding in self.findings)


@EnoughMemory()
def scan(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    allow: str | os.PathLike[str] | Iterable[str] | None = None,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> Scanned:
    """Look into files and directories for what loading them would do; nothing is loaded.

    Every file is judged by its content: checkpoints of all formats, plain pickles, arrays of
    objects, and what is in zip and tar archives and in files of gzip, bzip2 and xz, five deep.
    Tensors are not read. Directories are walked; links that lead out of them are not followed. A
    path may be the URL of a file, or of a folder in a store, which ends with a slash
    (docs/remote.md), with ``storage_options``.

    ``allow`` is what somebody accepts beside torch's own list: the path of a policy file, the name
    of a preset (`policy.PRESETS`), or lines of globs.

    Raises
    ------
    OSError
        If a path is not there, a folder of a store cannot be listed, or the policy cannot be read.
    FormatError
        If an object in a store has a name such as ``a//b`` or ``../b``.

    Examples
    --------
    >>> import os, tempfile, torchzip
    >>> path = os.path.join(tempfile.mkdtemp(), "m.pt")
    >>> torchzip.save({"step": 7}, path)
    >>> [(file.verdict, file.findings) for file in scan(path).files]
    [('safe', ())]
    >>> with open(path, "wb") as file:
    ...     written = file.write(b"cos\\nsystem\\n(S'ls'\\ntR.")
    >>> [(each.name, each.calls) for each in scan(path).findings]
    [('os.system', ("('ls')",))]
    """
    policy, limits = parse_policy(allow), check_options("keep", limits)
    files: list[ScannedFile] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        place = located(path, storage_options)
        found = _objects(place) if isinstance(place, Location) else _files(os.fsdecode(place))
        files += [_Judge(file, policy, limits).run() for file in found]
    return Scanned(tuple(files))


def _files(path: str) -> Iterator[str]:
    """Yield the files of a path, in order, and directories that are distributed checkpoints.

    Directories that cannot be listed come last, so that they are not taken for empty ones.
    """
    if not os.path.isdir(path):
        os.stat(path)
        yield path
        return
    root = os.path.realpath(path)
    unread: list[str] = []
    for folder, folders, names in os.walk(
        path, onerror=lambda error: unread.append(error.filename)
    ):
        folders.sort()
        if any(map(is_metadata, names)):
            yield folder
            names = [n for n in names if not (is_metadata(n) or n.endswith(".distcp"))]
        for name in sorted(names):
            file = os.path.join(folder, name)
            is_inside = os.path.realpath(file).startswith(os.path.join(root, ""))
            if is_inside and os.path.isfile(file):
                yield file
    yield from unread


def _objects(location: Location) -> Iterator[Location]:
    """Yield a URL, or those of the files below it, and folders that are distributed checkpoints."""
    if not is_folder(location):
        yield location
        return
    top, paths = list_files(location)
    if not paths:  # a store has no empty folders: the name is wrong
        raise FileNotFoundError(errno.ENOENT, "No object is below this URL", location.name)
    for path in paths:  # what a URL has of it would lead to another object
        for name in path.split("/"):
            check_plain_name(name, location.name)
    folders = {os.path.dirname(path) for path in paths if is_metadata(os.path.basename(path))}
    for path in sorted([*paths, *(f"{folder}/" for folder in folders)]):
        folder, name = os.path.split(path)
        if folder not in folders or not (is_metadata(name) or name.endswith(".distcp")):
            yield member_of(top, path if path != "/" else "")


_RANKS = ("no pickle", "plain", "safe", "known", "unreadable", "refused", "foreign")


class _Judge:
    """Judges one file and what is in it."""

    def __init__(self, file: str | Location, policy: Policy, limits: Limits) -> None:
        self._file = file
        self._path = os.fsdecode(file)
        self._policy = policy
        self._limits = limits
        self._findings: list[Finding] = []
        self._verdict = "no pickle"
        self._format = ""

    def run(self) -> ScannedFile:
        try:
            if is_folder(self._file):
                self._folder()
            else:
                with contextlib.closing(open_source(self._file)) as source:
                    self._source(source, None, 0)
        except TorchZipError as error:
            self._unreadable(error, None)
        except OSError as error:
            self._find(UNREADABLE, error.strerror or str(error), None)
        return ScannedFile(
            self._path, self._format or "other", self._verdict, tuple(self._findings)
        )

    def _folder(self) -> None:
        """Judge a distributed checkpoint; its files one by one if it cannot be opened."""
        try:
            container = open_checkpoint(self._file, self._limits)
        except TorchZipError as error:
            self._unreadable(error, None)
            with contextlib.closing(open_folder(self._file)) as folder:
                for name in folder.names:
                    if is_metadata(name) or name.endswith(".distcp"):
                        self._source(folder.open(name), name, 0)
        else:
            with contextlib.closing(container):
                self._checkpoint(container, None)

    def _find(
        self, rule: str, message: str, member: str | None, *, name: str | None = None,
        offset: int | None = None, calls: Iterable[str] = (),
    ) -> None:  # fmt: skip
        made = Finding(rule, message, self._path, member, name, offset, tuple(calls))
        if made not in self._findings:
            self._findings.append(made)
        worse = {FOREIGN: "foreign", REFUSED: "refused"}.get(rule, "unreadable")
        self._note(worse)

    def _unreadable(self, error: TorchZipError, member: str | None) -> None:
        place = _join(member, error.record) if error.record else member
        self._find(UNREADABLE, error.message, place, offset=error.offset)

    def _note(self, verdict: str) -> None:
        self._verdict = max(self._verdict, verdict, key=_RANKS.index)

    def _say_format(self, format: str) -> None:
        self._format = self._format or format

    # -- one file, or one member ----------------------------------------------------------------

    def _source(self, source: Source, member: str | None, depth: int) -> None:
        """Judge the bytes of a file, or of what is in it."""
        head = bytes(source.read_at(0, min(source.size, _HEAD_NBYTES)))
        try:
            container = open_container(source, self._limits)
        except TorchZipError as error:
            self._other(source, head, member, depth, error)
            is_named_so = member is None and self._path.lower().endswith(_SUFFIXES)
            if is_named_so and not self._findings and self._format != "pickle":
                self._find(UNREADABLE, f"not what it is called: {error.message}", error.record)
        else:
            self._checkpoint(container, member)

    def _other(
        self, source: Source, head: bytes, member: str | None, depth: int, error: TorchZipError
    ) -> None:
        """Judge what is not a checkpoint; ``error`` says why not."""
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            self._say_format("zip archive")
            self._zip(source, member, depth)
        elif head.startswith(b"\x93NUMPY"):
            self._say_format("npy")
            if _NUMPY_OBJECTS in head:
                at = head.index(b"\n", 10) + 1 if b"\n" in head[10:] else len(head)
                self._pickles(source, member, start=at, is_sure=True)
            elif member is None:
                self._find(UNREADABLE, error.message, member)
        elif head[257:262] == b"ustar":
            self._say_format("tar archive")
            self._members(tar_members(source), member, depth)
        elif (kind := _kind_of(head)) is not None:
            self._say_format(kind)
            self._find(UNREADABLE, f"a {kind} file, which is not looked into; unpack it", member)
        else:
            inside = decompressed(source, head)
            if inside is not None:
                self._say_format("compressed")
                self._deeper(inside, member, depth)
            elif may_be_pickle(head[:HEAD_NBYTES]):
                self._pickles(source, member, start=0, is_sure=head[:1] == b"\x80")

    def _zip(self, source: Source, member: str | None, depth: int) -> None:
        try:
            archive = ZipReader(source, self._limits, in_folder=False)
        except TorchZipError as error:
            self._find(AMBIGUOUS, error.message, member, offset=error.offset)
            return
        self._members(zip_members(archive, archive), member, depth)

    def _members(self, members: Iterator[Member], member: str | None, depth: int) -> None:
        for each in members:
            name = f"{member}!{each.name}" if member else each.name
            if _is_of_interest(each.head):
                self._deeper(each.open(), name, depth)

    def _deeper(self, source: Source, member: str | None, depth: int) -> None:
        with contextlib.closing(source):
            if depth >= _MOST_DEPTH:
                self._find(UNREADABLE, f"archives in archives, {depth} deep", member)
                return
            try:
                self._source(source, member, depth + 1)
            except TorchZipError as error:
                self._find(UNREADABLE, error.message, member)

    # -- pickles --------------------------------------------------------------------------------

    def _pickles(self, source: Source, member: str | None, *, start: int, is_sure: bool) -> None:
        """Judge pickles in a row. Text may look like one, and then names nothing."""
        found = follow(source, self._limits, start=start)
        if not is_sure and found.problem is not None and not found.names_what_exists:
            return
        self._say_format("pickle")
        self._mentions(found, member)
        self._note("plain")
        if found.problem is not None:
            self._find(
                UNREADABLE, f"a pickle that cannot be followed: {found.problem.message}", member,
                offset=found.problem.offset,
            )  # fmt: skip

    def _mentions(self, found: Followed, member: str | None) -> None:
        for mention in found.mentions.values():
            module, _, name = mention.name.rpartition(".")
            if is_torch_safe(module, name):
                continue
            if self._policy.allows(mention.name):
                self._note("known")
                continue
            what = f"{shown(mention.name)}, which torch.load does not accept"
            if mention.calls:
                what += f", called with {mention.calls[0]}"
            self._find(
                FOREIGN, what, member,
                name=mention.name, offset=mention.offset, calls=mention.calls,
            )  # fmt: skip

    # -- checkpoints ----------------------------------------------------------------------------

    def _checkpoint(self, container: Container, member: str | None) -> None:
        """Judge a checkpoint that is open: its pickles, and what torch.load makes of them."""
        self._say_format(container.format)
        before = len(self._findings)
        named: set[str] = set()
        for each in container.pickles():
            found = Followed()
            follow_bytes(each.data(), self._limits, found)
            # A TorchScript archive has a pickle for each module, and they name the same things.
            found.mentions = {k: v for k, v in found.mentions.items() if k not in named}
            named |= found.mentions.keys()
            if container.has_code:
                self._own_classes(found, _join(member, each.place))
            self._mentions(found, _join(member, each.place))
        try:
            self._loading(container, member, is_found=len(self._findings) > before)
        except TorchZipError as error:
            self._unreadable(error, member)

    def _loading(self, container: Container, member: str | None, *, is_found: bool) -> None:
        """Judge what torch.load makes of a checkpoint; ``is_found`` says its names are findings."""
        checkpoint = checkpoint_of(container, self._limits)
        checkpoint.check_indices()  # torch may crash on wrong ones
        verdict = verdict_of(checkpoint)
        if any(container.pickles()):
            accepts = verdict.torch_load == "accepts" and member is None
            self._note("safe" if accepts else "plain")
        unknown = [name for name in verdict.refused if not self._policy.allows(name)]
        if verdict.refused_opcodes:
            codes = ", ".join(verdict.refused_opcodes)
            self._find(REFUSED, f"opcodes that torch.load does not know: {codes}", member)
        elif verdict.torch_load == "refuses" or (
            verdict.torch_load.startswith("needs")
            and not verdict.refused
            and not container.has_code
        ):
            reason = verdict.reason or "torch.load refuses it"
            self._find(REFUSED, reason, member)
        elif unknown and not is_found:  # of an opcode without a name
            self._find(FOREIGN, f"{', '.join(unknown)}", member, name=unknown[0])
        if isinstance(container, ZipContainer):
            self._beside(container, member)

    def _own_classes(self, found: Followed, member: str | None) -> None:
        """Take the classes that the code of an archive defines out of what a pickle mentions."""
        own = [each for each in found.mentions.values() if is_script_class(each.name)]
        for each in own:
            del found.mentions[each.name]
        unknown = [each for each in own if not self._policy.allows(each.name)]
        if unknown:
            first, count = unknown[0], len(unknown)
            self._find(
                FOREIGN, "classes of the code in a TorchScript archive, which torch.load does not "
                f"accept by default and torch.jit.load compiles: {shown(first.name)}"
                + (f" and {count - 1:,} more" if count > 1 else ""),
                member, name=first.name, offset=first.offset,
            )  # fmt: skip
        elif own:
            self._note("known")

    def _beside(self, container: ZipContainer, member: str | None) -> None:
        """Judge records of an archive that no loader of it reads, and that may be pickles."""
        archive = container.archive
        declared = {each.place for each in container.pickles()}
        storages = {
            name for name in archive if name.startswith("data/") and name[5:].isdecimal()
        } - declared
        # Of a storage only its header is read, which has to agree with the directory.
        stored = {name for name in storages if archive.stored_span(name) is not None}
        others = [name for name in archive if name not in declared | stored]
        for each in zip_members(archive, others):
            if each.name not in storages and may_be_pickle(each.head[:HEAD_NBYTES]):
                with contextlib.closing(each.open()) as part:
                    self._pickles(part, _join(member, each.name), start=0, is_sure=False)


def _join(member: str | None, inner: str) -> str:
    return f"{member}!{inner}" if member else inner


def _kind_of(head: bytes) -> str | None:
    """Return what an archive is that is not looked into."""
    return next((kind for magic, kind in UNOPENED.items() if head.startswith(magic)), None)


def _is_of_interest(head: bytes) -> bool:
    """Return whether what begins so can have pickles in it."""
    return (
        head.startswith(_MAGICS) or head[257:262] == b"ustar" or may_be_pickle(head[:HEAD_NBYTES])
    )
