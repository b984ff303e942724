"""Edits of a checkpoint in place: a new structure is appended, and no tensor moves."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyFactory
from torchzip.checkpoint.saving import Archive, head_records, warn_refused
from torchzip.checkpoint.structure import Structure
from torchzip.container import zip_edit
from torchzip.container.zip_writer import MAX_ALIGNMENT, archive_name, measure
from torchzip.convert.rules import Globs, RenameRules
from torchzip.errors import EnoughMemory, TorchZipError, UnsupportedError, as_argument
from torchzip.files.in_place import InPlaceFile
from torchzip.files.location import Location, located
from torchzip.files.platform_calls import let_go
from torchzip.files.source import FileSource
from torchzip.formats.base import check_options
from torchzip.formats.opening import open_checkpoint
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.numpy_values import module_among
from torchzip.tensors.reduce import StorageKeys, Stored
from torchzip.tensors.storage import Measure, OpenStorage, TensorStorage
from torchzip.tools.edit_rules import DeviceRules, EditRules, GradRules
from torchzip.tools.file_size.reach import unreached_nbytes
from torchzip.tools.metadata_edits import set_metadata
from torchzip.tools.tree_edits import TreeEdit

_FORMAT_VERSION = ".format_version"


@dataclass(frozen=True, slots=True)
class Edited:
    """What `edit` has done, or with ``dry_run`` would do.

    ``how`` is "appended", "rewritten" or "unchanged". ``renamed`` are pairs of old and new paths,
    ``dropped`` and ``set`` paths; what is inside a container that was renamed or dropped is not
    listed. ``requires_grad`` counts tensors, ``device`` storages. ``unused`` has a line for each
    rule that matched nothing. ``nbytes`` is the size of the file now, ``appended_nbytes`` how much
    was appended, ``dropped_nbytes`` the size of the storages that this edit left out.
    ``dead_nbytes`` are the bytes of the file that nothing uses any more; ``compact`` frees them.
    ``unreached_nbytes`` are those of storages that no tensor reaches, such as the other rows of a
    slice: a file that is rewritten keeps them, and only then they are counted.
    """

    path: str
    how: str
    renamed: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    requires_grad: int = 0
    device: int = 0
    unused: tuple[str, ...] = ()
    nbytes: int = 0
    appended_nbytes: int = 0
    dropped_nbytes: int = 0
    dead_nbytes: int = 0
    unreached_nbytes: int = 0
    notes: tuple[str, ...] = ()


@EnoughMemory()
def edit(
    file: str | os.PathLike[str],
    *,
    rename: RenameRules = None,
    drop: Globs = None,
    set_values: Mapping[str, Any] | None = None,
    requires_grad: GradRules = None,
    device: DeviceRules = None,
    metadata: Mapping[str, Any] | None = None,
    compact: bool = False,
    dry_run: bool = False,
    limits: Limits | None = None,
) -> Edited:
    """Change names, values and marks in a file of ``torch.save``, and move no tensor data.

    A new ``data.pkl`` and a new directory are appended after the old ones, which takes milliseconds
    whatever the size of the tensors; with their number it grows, to some seconds for 100,000. At
    every moment the file is readable, with its old content or its new one; after an exception it is
    as it was. Its inode stays, and whoever has it open keeps reading the old tensors. Space of
    dropped tensors stays in the file until it is rewritten, with ``compact``: by itself, or with
    other changes. That is all or nothing too, and compares all CRCs.

    All rules go by the paths to items of dicts that the file has, joined by dots as in
    `Checkpoint`; containers are items too. ``rename`` are old and new paths, (regex, replacement)
    pairs or a function, as for `convert`; an item stays in its container, and what is below a
    container goes with it. A name None drops an item, and so does a glob of ``drop``.
    ``set_values`` maps paths to plain values (None, bool, int, float, str, list, dict): an item
    gets this value, or the innermost dict that there is gets a new item. ``requires_grad`` is for
    all floating and complex tensors, or (glob, bool) pairs; ``device`` for all storages, or (glob,
    device) pairs, of which the first match wins. The ``_metadata`` of a state dict, which names
    modules, stays as it is.

    ``metadata`` sets strings of a .safetensors file, or values of a .gguf, by their keys; None
    takes a key away. Such a file is rewritten, and takes no other changes.

    A file without zip64 end records, such as one that was zipped again, is rewritten.

    Raises
    ------
    UnsupportedError
        If ``torch.save`` since 1.6 did not write the file; convert it first.
    ValueError
        If two items would have one name, one would leave its container, or a value would take the
        place of a tensor. Nothing is changed then.
    OSError
        If the file cannot be written to, or another process is editing it.

    Examples
    --------
    >>> import numpy as np, os, tempfile, torchzip
    >>> path = os.path.join(tempfile.mkdtemp(), "m.pt")
    >>> torchzip.save({"w": np.ones(3), "old": np.ones(1000), "step": 1}, path)
    >>> found = edit(path, rename={"w": "weight"}, drop="old", set_values={"step": 2})
    >>> found.how, found.renamed, found.dropped_nbytes
    ('appended', (('w', 'weight'),), 8000)
    >>> torchzip.load(path)
    {'weight': array([1., 1., 1.]), 'step': 2}
    """
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"edit takes the path of a file, not {type(file).__name__}")
    file = located(file)
    if isinstance(file, Location):
        raise ValueError(
            f"{file.name}: edit changes a file in place, and objects of stores are only replaced; "
            "convert writes a changed copy"
        )
    limits = check_options("keep", limits)
    rules = EditRules(rename, drop, set_values, requires_grad, device)
    if metadata is not None:
        others = (rename, drop, set_values, requires_grad, device, compact or None)
        if any(each is not None and each != [] and each != {} for each in others):
            raise ValueError("metadata is changed by itself; make the other changes first")
        return _with_metadata(file, metadata, limits, dry_run)
    with contextlib.ExitStack() as stack:
        target = None if dry_run else stack.enter_context(InPlaceFile(file))
        container = stack.enter_context(contextlib.closing(_open(file, limits)))
        task = _Edit(file, container, rules, limits)
        if not (task.is_changed or compact):
            return task.report("unchanged", task.source.size)
        if not compact:
            appended = task.append()
            if appended is not None:
                # Made first: it reads, and once the file is changed nothing may fail.
                report = task.report("appended", appended.size, appended.size - appended.start)
                if target is not None:
                    target.check_same(task.source)
                    zip_edit.write(target, appended, task.source.size)
                return report
            task.notes[:] = [
                "nothing can be appended to an archive like this one, so all of it is rewritten"
            ]
        return task.report("rewritten", task.rewrite(target))


def _with_metadata(
    file: str | os.PathLike[str], metadata: Mapping[str, Any], limits: Limits, dry_run: bool
) -> Edited:
    nbytes, changed, unused = set_metadata(file, metadata, limits, dry_run=dry_run)
    return Edited(
        path=os.fsdecode(file),
        how="rewritten" if changed else "unchanged",
        dropped=tuple(key for key in changed if metadata[key] is None),
        set=tuple(key for key in changed if metadata[key] is not None),
        unused=tuple(unused),
        nbytes=nbytes,
    )


def _open(file: str | os.PathLike[str], limits: Limits) -> ZipContainer:
    container = open_checkpoint(file, limits)
    if type(container) is not ZipContainer:
        container.close()
        raise UnsupportedError(
            f"a checkpoint of format {container.format}; only files of torch.save since 1.6 are "
            f"edited. Convert it first: torchzip convert "
            f"{shlex.quote(as_argument(container.name))} new.pt",
            path=container.name,
        )
    return container


class _Edit:
    """A file and what is to become of it."""

    def __init__(
        self,
        file: str | os.PathLike[str],
        container: ZipContainer,
        rules: EditRules,
        limits: Limits,
    ) -> None:
        self.file = os.fsdecode(file)
        self.notes: list[str] = []
        assert isinstance(container.source, FileSource)  # of a path
        self.source = container.source
        self._rules = rules
        self._limits = limits
        self._archive = container.archive
        self._opened: dict[str, TensorStorage] = {}
        contents = container.read(lambda open_storage: _Recording(open_storage, self._opened))
        self._contents = contents
        tree = TreeEdit(contents.root, rules, limits, contents.pickle_nbytes)
        self._tree = tree
        self._marked, moved = tree.apply(self._opened.values())
        self._moved = set(map(id, moved))
        self.is_changed = bool(
            tree.renamed or tree.dropped or tree.set or self._marked or self._moved
        )
        self._kept = list(self._opened)
        self._without: set[str] = set()
        self._unreached_nbytes = 0
        self._pickle_nbytes = contents.pickle_nbytes

    def append(self) -> zip_edit.Appended | None:
        """Return what is to be appended to the file; None if that is impossible."""
        if zip_edit.old_size(self._archive) is None:
            return None
        keys = _FileKeys(self._opened)
        structure = self._structure(keys)
        self._kept = self._keys_of(keys)
        without = {f"data/{key}" for key in self._opened.keys() - set(self._kept)}
        before = list(self._opened)
        # torch can work out where storages lie, from the first that the pickle mentions on, if
        # there is a record of this name. Else it reads that from each one's header.
        if _FORMAT_VERSION in self._archive and self._kept != before[: len(self._kept)]:
            without.add(_FORMAT_VERSION)
            self.notes.append(
                "its storages no longer follow one another, so the record .format_version was left "
                "out: torch reads their places instead of working them out"
            )
        made = zip_edit.append(
            self._archive,
            {"data.pkl": structure.pickle},
            without,
            self._limits,
            self._alignment(),
        )
        if made is not None:
            self._without, self._pickle_nbytes = without, len(structure.pickle)
        return made

    def _keys_of(self, keys: StorageKeys) -> list[str]:
        """Return the keys in the file of the storages that are mentioned, by first mention."""
        known = {id(storage): key for key, storage in self._opened.items()}
        return [known[id(each)] for each in keys.order if id(each) in known]

    def _dead(self, nbytes: int) -> int:
        """Return how much of a file of this size an archive of its records does not need."""
        records = [
            (len(name), self._archive.size_of(name)[0])
            for name in self._archive
            if name not in self._without and name not in _OTHER_RECORDS
        ]
        records.append((len("data.pkl"), self._pickle_nbytes))
        return max(0, nbytes - measure(self._archive.root, records, self._alignment())[1])

    def rewrite(self, target: InPlaceFile | None) -> int:
        """Rewrite the file if a target is given; return its size."""
        keys = StorageKeys()
        structure = self._structure(keys)
        storages = keys.storages()
        self._kept = self._keys_of(keys)
        self._unreached_nbytes = unreached_nbytes([self._contents.root])
        if target is None:
            records = [(len(name), len(data)) for name, data in head_records(structure.pickle)]
            records += [(len(f"data/{key}"), each.nbytes) for key, each in enumerate(storages)]
            return measure(archive_name(self.file), records)[1]
        target.check_same(self.source)
        with Archive(self.file) as archive:
            archive.write_head(structure.pickle)
            for key, storage in enumerate(storages):
                archive.writer.begin_record(f"data/{key}", storage.nbytes, crc=storage.crc)
                for block in storage.checked_blocks():
                    archive.writer.write(block.data)
                archive.writer.end_record()
            archive.writer.finish()
            nbytes = archive.writer.position
            let_go(self.source, target)
            archive.commit()
        return nbytes

    def _structure(self, keys: StorageKeys) -> Structure:
        # Tensors are written many at once where their keys follow one another: it would be tried
        # in vain, and cost time, for each that is behind one that was dropped.
        in_order = list(self._opened) == list(map(str, range(len(self._opened))))
        is_in_vain = isinstance(keys, _FileKeys) and (self._tree.dropped or not in_order)
        try:
            structure = Structure(
                self._contents.root, keys, place_arrays, in_bulk=not is_in_vain,
                numpy_module=module_among(self._contents.globals),
                limits=self._limits.or_default(),
            )  # fmt: skip
        except TorchZipError as error:
            raise error.at(path=self.source.name) from None
        except (TypeError, ValueError) as error:  # what torch itself could not have saved
            raise UnsupportedError(
                f"the object in the file cannot be saved again: {error}", path=self.source.name
            ) from None
        if all(is_torch_safe(*name) for name in self._contents.globals):
            warn_refused(structure)
        return structure

    def _alignment(self) -> int:
        name = ".storage_alignment"
        text = self._archive.read(name, limit="text_nbytes") if name in self._archive else b""
        return min(int(text), MAX_ALIGNMENT) if text.isdigit() and int(text) else 64

    def report(self, how: str, nbytes: int, appended_nbytes: int = 0) -> Edited:
        """Return what was done."""
        kept = set(self._kept)
        dropped = [each for key, each in self._opened.items() if key not in kept]
        moved = [each for key, each in self._opened.items() if key in kept]
        tree = self._tree
        return Edited(
            path=self.file,
            how=how,
            renamed=tuple(tree.renamed),
            dropped=tuple(tree.dropped),
            set=tuple(tree.set),
            requires_grad=self._marked,
            device=sum(id(each) in self._moved for each in moved),
            unused=tuple(self._rules.unused()),
            nbytes=nbytes,
            appended_nbytes=appended_nbytes,
            dropped_nbytes=sum(each.nbytes for each in dropped),
            dead_nbytes=self._dead(nbytes) if how != "rewritten" else 0,
            unreached_nbytes=self._unreached_nbytes,
            notes=tuple(self.notes),
        )


#: Counted by `measure` itself, or replaced.
_OTHER_RECORDS = ("data.pkl", "version", ".data/serialization_id")


class _Recording(LazyFactory):
    """Notes every storage by its key, in the order in which the pickle mentions them."""

    def __init__(self, open_storage: OpenStorage, opened: dict[str, TensorStorage]) -> None:
        super().__init__(open_storage)
        one, many = self.storage, self.storages

        def open_one(key: str, measure: Measure) -> TensorStorage:
            opened[key] = one(key, measure)
            return opened[key]

        def open_many(
            keys: list[str], measures: list[Measure], which: list[int]
        ) -> list[TensorStorage] | None:
            storages = None if many is None else many(keys, measures, which)
            if storages is not None:
                opened.update(zip(keys, storages, strict=True))
            return storages

        self.storage = open_one
        self.storages = open_many


class _FileKeys(StorageKeys):
    """The keys that storages have in the file already."""

    def __init__(self, opened: Mapping[str, TensorStorage]) -> None:
        super().__init__()
        # Not the strings of the file, which may stand for other things in it too.
        self._known = {id(storage): key[:1] + key[1:] for key, storage in opened.items()}

    def are_new(self, storages: Sequence[Stored]) -> bool:
        # Many at once are written under keys that follow one another from the next one on.
        first = len(self.order)
        found = [self._known.get(id(each)) for each in storages]
        expected = list(map(str, range(first, first + len(storages))))
        return found == expected and super().are_new(storages)

    def add(self, storages: Sequence[Stored]) -> list[str]:
        keys = [self._known[id(each)] for each in storages]
        self._keys.update(zip(map(id, storages), keys, strict=True))
        self.order += storages
        return keys

    def key_of(self, storage: TensorStorage) -> str:
        key = self._known.get(id(storage))
        if key is None:
            raise UnsupportedError(
                f"a storage of {storage.torch_dtype} would be packed again; compact (--compact) "
                "writes the whole file"
            )
        if id(storage) not in self._keys:
            self._keys[id(storage)] = key
            self.order.append(storage)
        return key
