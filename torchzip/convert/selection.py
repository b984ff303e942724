"""The tensors that a conversion takes from a checkpoint, their new names, and what is around them.

The object around the tensors is kept, with new keys where tensors have new names, as long as that
can be done in its dicts: each tensor that is renamed or left out is an item of a dict, there is one
way to that dict, and the new name begins with the way to it. Otherwise the output is one flat dict
of the tensors, a state dict.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, named_tensors
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of, is_weight
from torchzip.checkpoint.walk import children, reach, shared
from torchzip.container.safetensors import FILE_KEYS, parse_ties
from torchzip.convert.carried import OBJECT_KEY
from torchzip.convert.mapped import MappedTensors
from torchzip.convert.restored import restore
from torchzip.convert.rules import Rules
from torchzip.errors import FormatError, TorchZipError, shown
from torchzip.limits import Limits
from torchzip.types import OtherTensor, Parameter

#: A tensor of the source, dense or of another kind.
Held = LazyTensor | OtherTensor


@dataclass(slots=True)
class Selection:
    """``root`` is the object to be written, ``tensors`` has all tensors in it by name.

    ``sources`` maps each of these names to that before renaming, ``original`` has all tensors of
    the source, wanted or not. ``is_flat`` says that ``root`` is a flat dict made here; ``around``
    is the object that the tensors were in.
    """

    root: Any
    tensors: dict[str, Held]
    sources: dict[str, str]
    original: dict[str, Held]
    around: Any
    is_flat: bool = False
    #: Texts of a safetensors source, without our own.
    metadata: dict[str, str] = field(default_factory=dict)
    #: What of the source could not be taken.
    lost: list[str] = field(default_factory=list)
    #: The arrays of numpy that tensors of ``original`` stand for, by the names there.
    arrays: dict[str, Any] = field(default_factory=dict)

    def put(self, tensors: dict[str, LazyTensor]) -> list[str]:
        """Put other tensors where those of these names are, in dicts and lists with one way there.

        Returns the names of those that are elsewhere, and stay.
        """
        left = dict(tensors)
        if self.is_flat:
            items = [(name, "", self.root, name) for name in tensors]
        else:
            items = list(_items(self.root)) if tensors else []
        for name, _, holder, key in items:
            new = left.pop(name, None)
            if new is not None:
                old = holder[key]
                holder[key] = (
                    Parameter(new, old.requires_grad, old.state)
                    if isinstance(old, Parameter)
                    else new
                )
                self.tensors[name] = new
        return list(left)


def select(checkpoint: Checkpoint, rules: Rules, mapping: MappedTensors | None = None) -> Selection:
    """Return what the rules take of a checkpoint, whose root is changed where names are.

    Raises
    ------
    ValueError
        If two tensors would have one name.
    """
    selection = _source(checkpoint)
    named = {name: held for name, held in selection.tensors.items() if rules.keeps(name)}
    if mapping is not None:
        for name, held in named.items():
            if isinstance(held, LazyTensor):
                mapping.add(name, held)
        others = {name: held for name, held in named.items() if isinstance(held, OtherTensor)}
        mapped = mapping.tensors()
        for name in others.keys() & mapped.keys():
            raise ValueError(f"map gives {name!r}, which is the name of a tensor of another kind")
        named = {**mapped, **others}
    sources: dict[str, str] = {}
    for old in named:
        new = rules.renamed(old)
        if new is not None:
            known = sources.setdefault(new, old)
            if known != old:
                raise ValueError(f"{known!r} and {old!r} would both be called {new!r}")
    changed: dict[str, str | None] = dict.fromkeys(selection.tensors)
    changed |= {old: new for new, old in sources.items()}
    changed = {old: new for old, new in changed.items() if new != old}
    selection.sources = sources
    selection.tensors = {new: named[old] for new, old in sources.items()}
    if not selection.is_flat and (
        mapping is not None or (changed and not _rename_in_place(selection.root, changed))
    ):
        selection.is_flat = True
    if selection.is_flat:
        # A Parameter with attributes is more than its tensor.
        parameters = {
            id(value.data): value
            for value in reach(selection.around)
            if isinstance(value, Parameter) and value.state is not None
        }
        selection.root = {
            name: parameters.get(id(held), held) for name, held in selection.tensors.items()
        }
    return selection


def _source(checkpoint: Checkpoint) -> Selection:
    """Return all that a checkpoint has."""
    tensors: dict[str, Held] = {name: checkpoint[name] for name in checkpoint}
    arrays = dict(checkpoint.arrays)
    root = checkpoint.root
    metadata: dict[str, str] = {}
    lost: list[str] = []
    if checkpoint.format in ("safetensors", "sharded"):
        ties = parse_ties(checkpoint.metadata, tensors)
        aliases = {name: tensors[kept] for name, kept in ties.items()}
        tensors |= aliases
        root = dict(root) | aliases
        metadata = {
            key: text
            for key, text in checkpoint.metadata.items()
            if not key.startswith("torchzip.") and key not in FILE_KEYS and ties.get(key) != text
        }
        text = checkpoint.metadata.get(OBJECT_KEY)
        if text is not None:
            try:
                root, tensors, arrays = _restored_object(text, tensors, checkpoint.limits)
            except TorchZipError as error:
                lost.append(f"the object around the tensors: {error.message}")
    # The objects of a TorchScript archive are of classes that exist in it only.
    is_flat = checkpoint.format == "torchscript"
    sources = {name: name for name in tensors}
    return Selection(root, tensors, sources, tensors, root, is_flat, metadata, lost, arrays)


def _restored_object(
    text: str, tensors: dict[str, Held], limits: Limits
) -> tuple[Any, dict[str, Held], dict[str, Any]]:
    """Return the object that `carry` has put into a file's metadata, its tensors and its arrays.

    Tensors that it does not mention, because another program has added them, say, are put into
    it under their names.
    """
    mentioned: set[int] = set()

    def tensor(name: str) -> LazyTensor | None:
        held = tensors.get(name)
        mentioned.add(id(held))  # under all its names, if it is tied
        return held if isinstance(held, LazyTensor) else None

    root = restore(text, tensor, limits)
    # A small array of numpy is in the text too, so that it comes back as one: with the values that
    # the file has now.
    for name, array in named_tensors(root, limits).arrays.items():
        held = tensors.get(name)
        if isinstance(held, LazyTensor) and (held.dtype, held.shape) == (array.dtype, array.shape):
            array[...] = held.numpy()
            mentioned.add(id(held))
    left = {name: held for name, held in tensors.items() if id(held) not in mentioned}
    if left:
        if not isinstance(root, dict) or root.keys() & left.keys():
            raise FormatError(f"it does not mention {shown(next(iter(left)))}, which the file has")
        root.update(left)
    table = named_tensors(root, limits)
    for name in table.names:
        table.check(name)
    return root, {name: data_of(leaf) for name, leaf in table.names.items()}, table.arrays


def _rename_in_place(root: Any, changed: dict[str, str | None]) -> bool:
    """Give tensors their new keys, or take them out, in the dicts that hold them.

    Returns False, and changes nothing, if that cannot be done for all of them.
    """
    edits: dict[int, tuple[dict[Any, Any], dict[Any, Any]]] = {}
    left = dict(changed)
    for name, prefix, holder, key in _items(root):
        if name not in left or not isinstance(holder, dict):
            continue
        new = left.pop(name)
        if new is not None and not new.startswith(prefix):
            return False
        _, keys = edits.setdefault(id(holder), (holder, {}))
        keys[key] = None if new is None else new[len(prefix) :]
    if left:
        return False
    for holder, keys in edits.values():
        kept = Counter(str(keys.get(key, key)) for key in holder if keys.get(key, key) is not None)
        if any(count > 1 for count in kept.values()):
            return False  # beside something that is no tensor
    for holder, keys in edits.values():
        gone = {key for key, new in keys.items() if new is None}
        items = [(keys.get(key, key), item) for key, item in holder.items() if key not in gone]
        holder.clear()
        holder.update(items)
    return True


def _items(root: Any) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield tensors in dicts and lists: name, the way to what holds it, that, the key.

    Only what there is one way to.
    """
    several_ways = shared(root, _below)
    steps: list[tuple[Any, str]] = [(root, "")]
    while steps:
        value, prefix = steps.pop()
        if id(value) in several_ways or not isinstance(value, dict | list | tuple):
            continue
        keys = value if isinstance(value, dict) else range(len(value))
        for (text, _, child), key in zip(_below(value), keys, strict=False):
            if is_weight(child):
                if isinstance(value, dict | list):
                    yield prefix + text, prefix, value, key
            else:
                steps.append((child, f"{prefix}{text}."))


def _below(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield what plain containers hold."""
    if type(value) in (dict, OrderedDict, list, tuple):
        yield from children(value)
