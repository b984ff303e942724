"""Of several names for one tensor, the one that has the data where only one can have it.

Whoever loads a model makes the missing names from that one, if it is the one that they look for.
transformers lists for each model which name is made from which, in ``_tied_weights_keys``, such as
``{"lm_head.weight": "model.embed_tokens.weight"}``. Before version 5 it knew no other way: from a
file with the head alone it makes a model whose embedding is random. The rules here are what these
lists have in common; `tests/convert/test_tied_names.py` has the names, and the exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence

#: What a name can be, the preferred one first: the embedding that both sides of a model share (T5,
#: BART, Marian), any other embedding, something else, and what makes words of vectors again.
_SHARED, _EMBEDDING, _OTHER, _HEAD = range(4)


def preferred(names: Sequence[str]) -> str:
    """Return the name that has the data of a tensor that has all these names.

    An embedding before anything else, a head last. Among embeddings and among heads the one with
    the shortest way to it (``cls.predictions.bias`` before ``cls.predictions.decoder.bias``). Then
    the first.

    >>> preferred(["lm_head.weight", "model.embed_tokens.weight"])
    'model.embed_tokens.weight'
    """
    return min(names, key=_rank)


def _rank(name: str) -> tuple[int, int]:
    parts = name.split(".")
    kind = _kind_of(parts)
    return kind, 0 if kind == _OTHER else len(parts)


def _kind_of(parts: list[str]) -> int:
    # lm_head, generator_lm_head; BERT has predictions, GPT-NeoX embed_out
    for module in parts[:-1]:
        if module.endswith(("head", "predictions")) or module.startswith(("embed_out", "unembed")):
            return _HEAD
    if parts[-2:-1] == ["shared"]:
        return _SHARED
    for part in parts:  # embed_tokens, word_embeddings, embed_in, tok_emb; GPT-2 has wte
        if "embed" in part or part == "wte" or "emb" in part.split("_"):
            return _EMBEDDING
    return _OTHER
