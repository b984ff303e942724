"""How the shards of tensor-parallel models are put together: which axis each name was cut along.

A rule is a table from globs to one of

* an axis: the shards lie one after another along it;
* ``(axis, parts)``: each shard has so many parts along the axis, of which the whole has all first
  parts, then all second ones (the two halves of a gated MLP, which every rank has a piece of);
* ``"same"``: each shard has the whole tensor.

The first glob that matches counts. A name that none matches is refused: nobody can tell what to do
with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torchzip.errors import FormatError, UnsupportedError, shown
from torchzip.leaf_types import ForeignObject
from torchzip.tensors.specs import TensorSpec

#: What a user may give for a rule, and what it says of one tensor.
How = int | tuple[int, int] | str
Join = str | Mapping[str, How]

#: Words of the tables below that depend on what else is in the files.
_EMBEDDING, _GATED = "embedding", "gated"

#: Meta's ``consolidated.<NN>.pth``, and those of Mistral.
_LLAMA: dict[str, How] = {
    "*.wq.weight": 0,
    "*.wk.weight": 0,
    "*.wv.weight": 0,
    "*.w1.weight": 0,
    "*.w3.weight": 0,
    "output.weight": 0,
    "*.wo.weight": 1,
    "*.w2.weight": 1,
    "tok_embeddings.weight": _EMBEDDING,
    "*norm.weight": "same",
    "*.gate.weight": "same",
    "rope.freqs": "same",
}

#: ``mp_rank_<TT>[_<PPP>]/model_optim_rng.pt`` of Megatron-Core, and the names before that.
_MEGATRON: dict[str, How] = {
    "*word_embeddings.weight": 0,
    "*word_embeddings_for_head.weight": 0,
    "*output_layer.weight": 0,
    "*.linear_qkv.weight": 0,
    "*.linear_qkv.bias": 0,
    "*.linear_fc1.weight": _GATED,
    "*.linear_fc1.bias": _GATED,
    "*.linear_proj.weight": 1,
    "*.linear_fc2.weight": 1,
    "*.query_key_value.weight": 0,
    "*.query_key_value.bias": 0,
    "*.dense_h_to_4h.weight": _GATED,
    "*.dense_h_to_4h.bias": _GATED,
    "*attention.dense.weight": 1,
    "*.dense_4h_to_h.weight": 1,
    "*.linear_proj.bias": "same",
    "*.linear_fc2.bias": "same",
    "*attention.dense.bias": "same",
    "*.dense_4h_to_h.bias": "same",
    "*norm.weight": "same",
    "*norm.bias": "same",
    "*.layer_norm_weight": "same",
    "*.layer_norm_bias": "same",
    "*position_embeddings.weight": "same",
    "*.router.weight": "same",
    "*.inv_freq": "same",
}

_TABLES: dict[str, dict[str, How]] = {"llama": _LLAMA, "mistral": _LLAMA, "megatron": _MEGATRON}


def check_join(join: Join) -> Mapping[str, How]:
    """Return the table of a rule.

    Raises
    ------
    ValueError, TypeError
        If it is not one; the mistake is the caller's.
    """
    if isinstance(join, str):
        if join not in _TABLES:
            raise ValueError(f"join={join!r}; {', '.join(_TABLES)} or a mapping was expected")
        return _TABLES[join]
    if not isinstance(join, Mapping):
        raise TypeError(f"join must be a name or a mapping, not {type(join).__name__}")
    for glob, how in join.items():
        axis, parts = how if isinstance(how, tuple) and len(how) == 2 else (how, 1)
        is_axis = type(axis) is int and axis >= 0 and type(parts) is int and parts > 0
        if not isinstance(glob, str) or not (is_axis or how == "same"):
            raise ValueError(
                f"join has {how!r} for {glob!r}; an axis from 0 on, (axis, parts) or 'same' was "
                "expected"
            )
    return join


def how_of(name: str, join: Join, shards: list[TensorSpec], around: Mapping[str, Any]) -> How:
    """Return what to do with the shards of a name, given what else is in the first file.

    Raises
    ------
    UnsupportedError
        If no rule says it.
    """
    for glob, how in check_join(join).items():
        if fnmatchcase(name, glob):
            if how == _EMBEDDING:
                return _axis_of_embedding(shards, around)
            return (0, 2) if how == _GATED and _is_gated(around) else 0 if how == _GATED else how
    rule = f"join={join!r}" if isinstance(join, str) else "the rule"
    raise UnsupportedError(
        f"{rule} does not say how {shown(name)} was cut; give a mapping from globs to an axis, "
        "(axis, parts) or 'same'"
    )


def _axis_of_embedding(shards: list[TensorSpec], around: Mapping[str, Any]) -> int:
    """Return how Meta cut the embedding: by columns until Llama 2, by rows since Llama 3.

    The norm at the end has as many elements as the embedding has columns.
    """
    norm = around.get("norm.weight")
    if type(norm) is not TensorSpec or len(shards[0].shape) != 2:
        raise FormatError("norm.weight, which says how the embedding was cut, is not in the files")
    columns = shards[0].shape[1]
    if columns == norm.numel:
        return 0
    if columns * len(shards) == norm.numel:
        return 1
    raise FormatError(
        f"{len(shards):,} shards with {columns:,} columns; by norm.weight the embedding has "
        f"{norm.numel:,}"
    )


def _is_gated(around: Mapping[str, Any]) -> bool:
    """Return whether an MLP of Megatron has two halves, as the arguments of the run say."""
    held = around.get("args")
    known = held.state if type(held) is ForeignObject else held
    if not isinstance(known, dict):
        raise UnsupportedError(
            "the file has no args, which say whether the MLP has two halves (SwiGLU); give a "
            "mapping from globs instead of a name"
        )
    return known.get("swiglu") is True or known.get("gated_linear_unit") is True
