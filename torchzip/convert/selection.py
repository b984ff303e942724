"""The tensors that a conversion takes from a checkpoint, their new names, and what is around them.

The object around the tensors is kept, with new keys where tensors have new names, as long as that
can be done in its dicts: each tensor that is renamed or left out is an item of a dict, there is one
way to that dict, and the new name begins with the way to it. Otherwise the output is one flat dict
of the tensors, a state dict.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, named_tensors
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of, is_weight
from torchzip.checkpoint.walk import holders, key_text, reach, shared
from torchzip.container.safetensors import FILE_KEYS, parse_ties
from torchzip.convert.carried import OBJECT_KEY
from torchzip.convert.mapped import MappedTensors
from torchzip.convert.restored import restore
from torchzip.convert.rules import Rules
from torchzip.convert.surgery import Surgery
from torchzip.dtypes import DTYPES
from torchzip.errors import FormatError, TorchZipError, shown
from torchzip.formats.base import Child
from torchzip.limits import Limits
from torchzip.tensors.computed import fresh_spec
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec, span_of
from torchzip.types import ForeignObject, OtherTensor, Parameter

#: Containers whose items can have other keys.
_PLAIN = (dict, OrderedDict, list, tuple)
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
    #: What a source has beside its tensors: strings, or values of GGUF; without our own.
    metadata: dict[str, Any] = field(default_factory=dict)
    #: By the names of ``tensors``, those that rules go by: after surgery, before renaming.
    seen_as: dict[str, str] = field(default_factory=dict)
    #: Which part of the checkpoint surgery has taken, in words.
    taken: str = ""
    #: What of the source could not be taken.
    lost: list[str] = field(default_factory=list)
    #: The arrays of numpy that tensors of ``original`` stand for, by the names there.
    arrays: dict[str, Any] = field(default_factory=dict)
    #: Tensors of classes of their own that stay objects, by name.
    subclassed: Mapping[str, ForeignObject] = field(default_factory=dict)
    #: The weights that were quantized, by the names in ``tensors``: how. And their objects.
    dequantized: dict[str, str] = field(default_factory=dict)
    unwrapped: list[ForeignObject] = field(default_factory=list)

    def put(self, tensors: Mapping[str, Held]) -> list[str]:
        """Put other tensors where those of these names are, in dicts and lists with one way there.

        Returns the names of those that are elsewhere, and stay.
        """
        if not tensors:
            return []
        left = dict(tensors)
        containers = [(self.root, "", None, None)] if self.is_flat else _containers(self.root)
        edits: _Edits = {}
        for name, _, holder, key in _items(containers):
            new = left.pop(name, None)
            if new is not None:
                old = holder[key]
                is_parameter = isinstance(old, Parameter)
                made = Parameter(new, old.requires_grad, old.state) if is_parameter else new
                edits.setdefault(id(holder), {})[key] = (key, made)
                self.tensors[name] = new
        self.root = _edited(self.root, containers, edits)
        if not self.is_flat:
            self.around = self.root
        return list(left)


def select(
    checkpoint: Checkpoint,
    rules: Rules,
    mapping: MappedTensors | None = None,
    surgery: Surgery | None = None,
    *,
    dequantize: bool = False,
) -> Selection:
    """Return what the rules take of a checkpoint, which stays as it is; ``surgery`` comes first.

    With ``dequantize``, plain weights are in the place of quantized ones before any rule is asked.

    Raises
    ------
    ValueError
        If two tensors would have one name.
    """
    selection = _source(checkpoint)
    before = {name: name for name in selection.tensors}
    if dequantize:
        before = _dequantize(selection, checkpoint)
    surgery = surgery if surgery is not None else Surgery()
    taken = surgery.take(checkpoint, selection.root, selection.tensors)
    selection.taken, selection.is_flat = taken.what, selection.is_flat or taken.is_flat
    named = {name: held for name, held in taken.tensors.items() if rules.keeps(name)}
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
    selection.tensors = {new: named[old] for new, old in sources.items()}
    selection.seen_as = dict(sources)
    if mapping is None:
        sources = {new: taken.sources[old] for new, old in sources.items()}
    news = {old: new for new, old in sources.items()}
    changed = {old: new for old, name in before.items() if (new := news.get(name)) != old}
    selection.sources = sources
    schemes = selection.dequantized
    selection.dequantized = {new: schemes[old] for new, old in sources.items() if old in schemes}
    if mapping is not None:
        selection.is_flat = True
    if changed and not selection.is_flat:
        renamed = _renamed(selection.root, changed)
        if renamed is None:
            selection.is_flat = True
        else:
            selection.root = selection.around = renamed
    if schemes and not selection.is_flat:
        elsewhere = selection.put({new: selection.tensors[new] for new in selection.dequantized})
        selection.is_flat = bool(elsewhere)
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
    if surgery.pack:
        selection.put(_packed(selection.tensors))
    if surgery.untie:
        selection.lost += [
            f"{name}: data of its own; it is in an object that cannot be changed"
            for name in selection.put(_untied(selection.tensors))
        ]
    return selection


def _packed(tensors: dict[str, Held]) -> dict[str, LazyTensor]:
    """Return tensors for those whose storage has bytes that none of them reaches, on a part of it.

    The part goes from the first byte that one of them reaches to the last, so that views of one
    storage stay views. What other objects have of the storage stays where it is.
    """
    together: dict[int, list[tuple[str, LazyTensor]]] = {}
    for name, held in tensors.items():
        if isinstance(held, LazyTensor):
            together.setdefault(id(held.spec.storage), []).append((name, held))
    made: dict[str, LazyTensor] = {}
    for group in together.values():
        specs = [held.spec for _, held in group if held.spec.numel]
        dtypes = {spec.torch_dtype for spec in specs}
        if len(dtypes) != 1:
            continue
        storage, dtype = specs[0].storage, dtypes.pop()
        first = min(spec.storage_offset for spec in specs)
        stop = max(spec.storage_offset + span_of(spec.shape, spec.stride) for spec in specs)
        if (stop - first) * DTYPES[dtype].itemsize == storage.nbytes:
            continue
        part = ElementStorage(TensorSpec(dtype, (stop - first,), (1,), first, storage))
        for name, held in group:
            offset = held.spec.storage_offset - first if held.spec.numel else 0
            made[name] = LazyTensor(held.spec.replace(storage=part, storage_offset=offset))
    return made


def _untied(tensors: dict[str, Held]) -> dict[str, LazyTensor]:
    """Return tensors of their own for those whose storage an earlier one has too."""
    known: set[int] = set()
    made: dict[str, LazyTensor] = {}
    for name, held in tensors.items():
        if isinstance(held, LazyTensor):
            if id(held.spec.storage) in known:
                elements = ElementStorage(held.spec)
                apart = fresh_spec(held.torch_dtype, held.shape, elements)
                made[name] = LazyTensor(
                    held.spec.replace(
                        storage=elements, stride=apart.stride, storage_offset=0, conj=False,
                        neg=False,
                    )
                )  # fmt: skip
            known.add(id(held.spec.storage))
    return made


def _dequantize(selection: Selection, checkpoint: Checkpoint) -> dict[str, str]:
    """Put plain weights among the tensors, and in the place of objects that stand for them.

    Returns the names of what is in the object, with what is of each among the tensors.
    """
    from torchzip.quantization.dequantizing import dequantized_checkpoint  # all its schemes

    found = dequantized_checkpoint(checkpoint, tensors=selection.tensors)
    before = {name: name for name in selection.original if name not in found.inner}
    before |= {codes: name for name, codes in found.codes.items() if codes in before}
    before |= {name: name for name in found.wrappers}
    selection.tensors = found.tensors
    selection.dequantized = found.schemes
    selection.unwrapped = list(found.wrappers.values())
    selection.subclassed = {
        name: each for name, each in selection.subclassed.items() if name not in found.wrappers
    }
    containers = _containers(selection.root)
    plain = {id(each): found.tensors[name] for name, each in found.wrappers.items()}
    edits: _Edits = {}
    for container, *_ in containers:
        for key, child in _pairs(container) if plain else ():
            if id(child) in plain:
                edits.setdefault(id(container), {})[key] = (key, plain[id(child)])
    if sum(map(len, edits.values())) < len(plain):
        selection.is_flat = True
    elif plain:
        selection.root = selection.around = _edited(selection.root, containers, edits)
    if found.described:  # by torchao, of tensors that are no more
        selection.metadata.pop("tensor_names", None)
        for name in [key for key, text in selection.metadata.items() if '"_type"' in text[:9]]:
            del selection.metadata[name]
    selection.lost += [
        f"{name}: of the quantization, and not for plain weights" for name in found.dropped
    ]
    return before


def _source(checkpoint: Checkpoint) -> Selection:
    """Return all that a checkpoint has."""
    tensors: dict[str, Held] = {name: checkpoint[name] for name in checkpoint}
    arrays = dict(checkpoint.arrays)
    root = checkpoint.root
    metadata: dict[str, Any] = {}
    lost: list[str] = []
    if checkpoint.container.is_by_name:
        ties = parse_ties(checkpoint.metadata, tensors) if checkpoint.container.lists_ties else {}
        aliases = {name: tensors[kept] for name, kept in ties.items()}
        tensors |= aliases
        if aliases:
            root = root | aliases

        def is_tie(key: str, text: Any) -> bool:
            return key in ties and ties[key] == text

        metadata = {
            key: text
            for key, text in checkpoint.metadata.items()
            if not (key.startswith("torchzip.") or key in FILE_KEYS or is_tie(key, text))
        }
        text = checkpoint.metadata.get(OBJECT_KEY)
        if text is not None:
            try:
                root, tensors, arrays = _restored_object(text, tensors, checkpoint.limits)
            except TorchZipError as error:
                lost.append(f"the object around the tensors: {error.message}")
    sources = {name: name for name in tensors}
    is_flat = checkpoint.container.is_script
    return Selection(
        root, tensors, sources, tensors, root, is_flat, metadata, lost=lost, arrays=arrays,
        subclassed=checkpoint.subclassed,
    )  # fmt: skip


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


#: By the id of a container, for keys of it: the new key and the new item, None if both go.
_Edits = dict[int, dict[Any, tuple[Any, Any] | None]]
#: A container, the way to its items, what holds it, and its key there.
_Place = tuple[Any, str, Any, Any]


def _renamed(root: Any, changed: dict[str, str | None]) -> Any:
    """Return the object with new keys for tensors in the dicts that hold them, or without them.

    Returns None if that cannot be done for all of them.
    """
    containers = _containers(root)
    edits: _Edits = {}
    left = dict(changed)
    for name, prefix, holder, key in _items(containers):
        if name not in left or not isinstance(holder, dict):
            continue
        new = left.pop(name)
        if new is not None and not new.startswith(prefix):
            return None
        item = None if new is None else (new[len(prefix) :], holder[key])
        edits.setdefault(id(holder), {})[key] = item
    if left:
        return None
    for holder, *_ in containers:
        changes = edits.get(id(holder), {})
        pairs = [changes.get(key, (key, None)) for key in (holder if changes else ())]
        keys = [str(pair[0]) for pair in pairs if pair is not None]
        if len(set(keys)) < len(keys):
            return None  # beside something that is not a tensor
    return _edited(root, containers, edits)


def _edited(root: Any, containers: list[_Place], edits: _Edits) -> Any:
    """Return the root with other items in some containers: copies of these and of those around."""
    for container, _, holder, own_key in reversed(containers):
        changed = edits.get(id(container))
        if changed is None:
            continue
        pairs = [changed.get(key, (key, item)) for key, item in _pairs(container)]
        kept = [pair for pair in pairs if pair is not None]
        made = type(container)(kept if isinstance(container, dict) else [item for _, item in kept])
        if isinstance(container, OrderedDict):
            vars(made).update(vars(container))  # such as the _metadata of a state dict
        if holder is None:
            return made
        edits.setdefault(id(holder), {})[own_key] = (own_key, made)
    return root


def _containers(root: Any) -> list[_Place]:
    """Return the plain containers to which there is one way, each before those in it.

    No other object may lead to one either: a copy would not be there.
    """
    several_ways = shared(root, _parts)
    found: list[_Place] = []
    todo: list[_Place] = [(root, "", None, None)]
    while todo:
        place = todo.pop()
        container, prefix, _, _ = place
        if type(container) not in _PLAIN or id(container) in several_ways:
            continue
        found.append(place)
        for key, child in _pairs(container):
            if type(child) in _PLAIN:
                todo.append((child, f"{prefix}{key_text(key)}.", container, key))
    return found


def _items(containers: list[_Place]) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield the tensors in dicts and lists: name, the way to what holds it, that, the key."""
    for container, prefix, _, _ in containers:
        if isinstance(container, tuple):
            continue
        for key, child in _pairs(container):
            if is_weight(child):
                yield prefix + key_text(key), prefix, container, key


def _pairs(container: Any) -> Iterable[tuple[Any, Any]]:
    return container.items() if isinstance(container, dict) else enumerate(container)


def _parts(value: Any) -> Iterable[Child]:
    """Return what a value holds. Most are tensors that hold nothing, which is quick to see."""
    if type(value) is LazyTensor and value.spec.attributes is None:
        return ()
    return holders(value)
