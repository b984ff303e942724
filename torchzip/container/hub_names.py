"""Names of the files in a Hugging Face directory (docs/format.md, section 11.5).

A checkpoint there is one file, or shards with an index. Each may have variants, such as one in
float16, whose name comes before the suffix::

    whole   model.safetensors                  model.fp16.safetensors
    shard   model-00001-of-00002.safetensors   model.fp16-00001-of-00002.safetensors
    index   model.safetensors.index.json       model.safetensors.index.fp16.json

Sources: transformers 5.24 (``utils/__init__.py``, ``_add_variant`` and ``save_pretrained`` in
``modeling_utils.py``), diffusers 0.42 (``utils/constants.py``, ``loaders/lora_base.py``,
``variant_compatible_siblings`` in ``pipelines/pipeline_loading_utils.py``), peft 0.21
(``utils/constants.py``), and ``consolidated.safetensors`` of the models that Mistral publishes.
diffusers before 0.28 wrote ``model-00001-of-00002.fp16.safetensors`` and
``model.safetensors.fp16.index.json`` for a variant; both are understood.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

#: The names of checkpoints in one file, without a variant, and who writes them.
WHOLE_FILES = (
    "model.safetensors",  # transformers: SAFE_WEIGHTS_NAME
    "pytorch_model.bin",  # transformers: WEIGHTS_NAME
    "diffusion_pytorch_model.safetensors",  # diffusers: SAFETENSORS_WEIGHTS_NAME
    "diffusion_pytorch_model.bin",  # diffusers: WEIGHTS_NAME
    "adapter_model.safetensors",  # peft: SAFETENSORS_WEIGHTS_NAME
    "adapter_model.bin",  # peft: WEIGHTS_NAME
    "pytorch_lora_weights.safetensors",  # diffusers: LORA_WEIGHT_NAME_SAFE
    "pytorch_lora_weights.bin",  # diffusers: LORA_WEIGHT_NAME
    "consolidated.safetensors",  # Mistral
)
#: The end of the name of an index without a variant.
INDEX_SUFFIX = ".index.json"
#: Suffixes of shards of which a variant, or a set without an index, is recognised.
_SUFFIXES = r"(?:safetensors|bin|pth|pt|ckpt)"

_VARIANT_INDEX = re.compile(rf"(.+\.{_SUFFIXES})\.index\.([^/\\]{{1,100}})\.json", re.DOTALL)
_SHARD = re.compile(r"(.{0,200})-(\d{1,9})-of-(\d{1,9})(\..{1,40})", re.ASCII | re.DOTALL)
_LOADABLE = re.compile(rf"\..*\b{_SUFFIXES}", re.DOTALL)


class ShardSet(NamedTuple):
    """What the names of all shards of one save share: everything but the number."""

    stem: str
    total: int
    suffix: str

    @property
    def is_loadable(self) -> bool:
        """Whether the suffix is that of a checkpoint, which may have no index."""
        return _LOADABLE.fullmatch(self.suffix) is not None


class Shard(NamedTuple):
    """The parts of the name of a shard. ``span`` is where in the name its number is."""

    of: ShardSet
    number: int
    name: str
    span: tuple[int, int]

    def other(self, number: int) -> str:
        """Return the name of another shard of the set.

        >>> parse_shard("model-00001-of-00012.safetensors").other(10)
        'model-00010-of-00012.safetensors'
        """
        start, end = self.span
        return f"{self.name[:start]}{number:0{end - start}d}{self.name[end:]}"


def parse_shard(name: str) -> Shard | None:
    """Return the parts of the name of a shard; None for other files.

    >>> parse_shard("model.fp16-00001-of-00002.safetensors").of
    ShardSet(stem='model.fp16', total=2, suffix='.safetensors')
    """
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    stem, number, count, suffix = match.groups()
    return Shard(ShardSet(stem, int(count), suffix), int(number), name, match.span(2))


def shard_name(whole: str, number: int, count: int) -> str:
    """Return the name or path of a shard, counted from 1, of a checkpoint named ``whole``.

    >>> shard_name("model.fp16.safetensors", 1, 2)
    'model.fp16-00001-of-00002.safetensors'
    """
    stem, suffix = split_suffix(whole)
    return f"{stem}-{number:05d}-of-{count:05d}{suffix}"


def split_suffix(name: str) -> tuple[str, str]:
    """Return a name or path without its suffix, and the suffix.

    >>> split_suffix("model.fp16.bin"), split_suffix("run/last.pth.tar")
    (('model.fp16', '.bin'), ('run/last', '.pth.tar'))
    """
    stem, suffix = os.path.splitext(name)
    if suffix.lower() == ".tar":
        stem, inner = os.path.splitext(stem)
        suffix = inner + suffix
    return stem, suffix


def is_whole(name: str) -> bool:
    """Return whether a file of this name is a checkpoint in one file, of any variant.

    >>> [is_whole(name) for name in ("model.fp16.safetensors", "model.bin", "optimizer.pt")]
    [True, False, False]
    """
    return parse_shard(name) is None and _without_variant(name)[0] in WHOLE_FILES


def is_index(name: str) -> bool:
    """Return whether a file of this name is an index of shards, of any variant.

    >>> is_index("model.safetensors.index.fp16.json"), is_index("config.json")
    (True, False)
    """
    return whole_of(name) is not None


def whole_of(index: str) -> str | None:
    """Return the name of the checkpoint that an index belongs to; None if it is not an index.

    >>> whole_of("model.safetensors.index.json"), whole_of("model.safetensors.index.fp16.json")
    ('model.safetensors', 'model.fp16.safetensors')
    """
    if index.lower().endswith(INDEX_SUFFIX):
        return index[: -len(INDEX_SUFFIX)]
    match = _VARIANT_INDEX.fullmatch(index)
    if match is None:
        return None
    stem, suffix = os.path.splitext(match[1])
    return f"{stem}.{match[2]}{suffix}"


def safetensors_name(names: Iterable[str]) -> str:
    """Return what readers call the safetensors file of a folder that has these files.

    >>> safetensors_name(["pytorch_model.bin"]), safetensors_name(["adapter_model.bin"])
    ('model.safetensors', 'adapter_model.safetensors')
    """
    for name in names:
        plain = _without_variant(whole_of(name) or name)[0]
        stem = os.path.splitext(plain)[0]
        if plain in WHOLE_FILES and f"{stem}.safetensors" in WHOLE_FILES:
            return f"{stem}.safetensors"
    return WHOLE_FILES[0]


def index_of(whole: str) -> str:
    """Return the name or path of the index of a checkpoint named ``whole``.

    >>> index_of("model.safetensors"), index_of("model.fp16.safetensors")
    ('model.safetensors.index.json', 'model.safetensors.index.fp16.json')
    """
    name = os.path.basename(whole)
    plain, variant = _without_variant(name)
    if variant and plain in WHOLE_FILES:
        return f"{whole.removesuffix(name)}{plain}.index.{variant}.json"
    return whole + INDEX_SUFFIX


def _without_variant(name: str) -> tuple[str, str]:
    """Return ``model.safetensors`` and ``fp16`` for ``model.fp16.safetensors``."""
    stem, suffix = os.path.splitext(name)
    plain, _, variant = stem.partition(".")
    return plain + suffix, variant
