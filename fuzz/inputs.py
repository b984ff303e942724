"""Makes inputs: good files, changed in one layer or another, or made of parts of several."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from fuzz import archives, pickles, seeds
from fuzz.seeds import Case
from tests import builders as b

_BYTES = [0, 1, 0x7F, 0x80, 0xFF, 0x28, 0x2E, 0x50, 0x63, 0x52]


def make(rng: Random) -> Case:
    """Return one input. The same state of ``rng`` gives the same input."""
    return rng.choice(_WAYS)(rng)


def changed_bytes(rng: Random, data: bytes) -> bytes:
    """Return bytes with one to five changes: set, flipped, cut out, doubled, cut off."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        if not made:
            break
        at = rng.randrange(len(made))
        way = rng.randrange(7)
        if way == 0:
            made[at] = rng.choice(_BYTES)
        elif way < 3:
            made[at] ^= 1 << rng.randrange(8)
        elif way == 3:
            del made[at : at + rng.randrange(1, 20)]
        elif way == 4:
            made[at:at] = made[max(0, at - rng.randrange(1, 40)) : at]
        elif way == 5:
            size = rng.choice([2, 4, 8])
            value = rng.choice(pickles.NUMBERS) % (1 << 8 * size)
            made[at : at + size] = value.to_bytes(size, rng.choice(["little", "big"]))
        elif rng.random() < 0.4:
            del made[at:]
    return bytes(made)


def _any_bytes(rng: Random) -> Case:
    return Case.of(changed_bytes(rng, rng.choice(seeds.golden())))


def _pickle_in_archive(rng: Random) -> Case:
    """A pickle with other values, behind CRCs that are right."""
    members = list(rng.choice(seeds.archives()))
    streams = [at for at, member in enumerate(members) if member.name.endswith(b".pkl")]
    if not streams:  # a .pt2 of torch.export has none
        return Case.of(archives.with_lies(rng, members))
    at = rng.choice(streams)
    members[at] = replace(members[at], data=_pickle(rng))
    return Case.of(b.build_zip(members))


def _pickle(rng: Random) -> bytes:
    tree = rng.choice(seeds.trees())
    body = pickles.changed(rng, tree, seeds.parts())
    protocol = rng.choice([2, 2, 2, 2, 3, 4, 5])
    if rng.random() < 0.2:
        body = changed_bytes(rng, body)
    return b"\x80" + bytes([protocol]) + body + b"."


def _own_pickle(rng: Random) -> Case:
    """An archive's own pickle with changed bytes: names and keys stay those of its storages."""
    return Case.of(_with_own_pickle(rng, rng.choice(seeds.archives())))


def _with_own_pickle(rng: Random, members: Sequence[b.Member]) -> bytes:
    members = list(members)
    for at, member in enumerate(members):
        if member.name.endswith(b".pkl"):
            if rng.random() < 0.5:
                data = changed_bytes(rng, member.data)
            else:
                tree = pickles.parse(member.data)
                changed = pickles.changed(rng, tree, seeds.parts())
                data = member.data[:2] + changed + b"."
            members[at] = replace(member, data=data)
    return b.build_zip(members)


def _archive(rng: Random) -> Case:
    return Case.of(archives.with_lies(rng, rng.choice(seeds.archives())))


def _legacy(rng: Random) -> Case:
    stream = _pickle(rng)
    keys = b.list_of(*rng.choice([["0"], ["0"], ["0", "1"], ["1"], ["0", "0"], []]))
    count = rng.choice([4, 4, 4, *pickles.NUMBERS]) % (1 << 64)
    storages = struct.pack("<Q", count) + b.DATA + bytes(rng.randrange(3) * 12)
    return Case.of(b.legacy(stream, b.stream(keys), storages))


def _record_text(rng: Random) -> Case:
    """A record that is text or JSON, changed: byteorder, version, code, configurations."""
    members = list(rng.choice(seeds.archives()))
    texts = [at for at, member in enumerate(members) if not member.name.endswith(b".pkl")]
    at = rng.choice(texts)
    data = members[at].data
    data = _changed_json(rng, data) if data.startswith(b"{") else changed_bytes(rng, data)
    members[at] = replace(members[at], data=data)
    return Case.of(b.build_zip(members))


def _changed_json(rng: Random, data: bytes) -> bytes:
    """Return a JSON text in which one value is another."""
    if rng.random() < 0.2:
        return changed_bytes(rng, data)
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        held = pending.pop()
        keys = list(held) if isinstance(held, dict) else range(len(held))
        for key in keys:
            places.append((held, key))
            if isinstance(held[key], dict | list):
                pending.append(held[key])
    if places:
        held, key = rng.choice(places)
        other, other_key = rng.choice(places)
        text = held[key]
        if isinstance(text, str) and text[:1] in ("{", "[") and rng.random() < 0.9:
            held[key] = _changed_json(rng, text.encode()).decode("utf-8", "replace")
        else:
            odd: list[Any] = [None, True, 1.5, [], {}, "", "F32", float("nan"), *pickles.TEXTS]
            way = rng.randrange(4)
            held[key] = (
                rng.choice(pickles.NUMBERS) if way < 2 else rng.choice(odd) if way == 2
                else json.loads(json.dumps(other[other_key]))
            )  # fmt: skip
        if isinstance(held, dict) and rng.random() < 0.1:
            held[rng.choice(pickles.TEXTS)] = held.pop(key)
    return json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")


def _other_format(rng: Random) -> Case:
    case = rng.choice(seeds.others())
    name = rng.choice(sorted(case.files))
    data = case.files[name]
    if name.endswith(".json"):
        data = _changed_json(rng, data)
    elif data[8:9] == b"{" and rng.random() < 0.8:
        header, rest = seeds.header_of(data)
        data = b.safetensors(_changed_json(rng, header), rest)
    elif name.endswith(".pt") and data.startswith(b"PK") and rng.random() < 0.8:
        data = _with_own_pickle(rng, seeds.records_of(data))
    elif name == ".metadata":
        tree = pickles.parse(data)
        data = data[:2] + pickles.changed(rng, tree, seeds.parts()) + b"."
    else:
        data = changed_bytes(rng, data)
    return replace(case, files={**case.files, name: data})


_WAYS: list[Callable[[Random], Case]] = [
    _any_bytes, _pickle_in_archive, _own_pickle, _own_pickle, _own_pickle, _archive, _archive,
    _legacy, _record_text, _other_format, _other_format,
]  # fmt: skip
