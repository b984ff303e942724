"""Hostile files and hostile servers: what they say leads nowhere, and is never believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.hostile.attack import Attack
from tests.hostile.every import ATTACKS
from tests.remote.range_server import Answer, RangeServer, serving
from tests.sampling import spread
from torchzip.errors import TorchZipError
from torchzip.files import web


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_pause", lambda attempt: None)


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacked() -> Iterator[RangeServer]:
    with serving({str(number): each.data for number, each in enumerate(ATTACKS)}) as server:
        yield server


@pytest.mark.parametrize("attack", ATTACKS, ids=[each.name for each in ATTACKS])
def test_attack(attacked: RangeServer, attack: Attack) -> None:
    """Behind a URL a hostile file is what it is on a disk."""
    number = next(at for at, each in enumerate(ATTACKS) if each is attack)
    url = f"{attacked.url}{number}"
    if attack.error is None:
        tz.load(url, foreign=attack.foreign)
        return
    with pytest.raises(attack.error):
        tz.load(url, foreign=attack.foreign)


# -- names in indices ----------------------------------------------------------------------------


def _index_of(name: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {"w": name}}).encode()


@pytest.mark.parametrize(
    "name",
    [
        "../m.safetensors", "/m.safetensors", "a/../../m.safetensors", "..", "",
        "http://127.0.0.1:9/m.safetensors", "//127.0.0.1:9/m.safetensors", "s3://b/m.safetensors",
        "..\\m.safetensors", "a\0.safetensors", "c:m.safetensors", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_names_that_lead_away(name: str) -> None:
    """An index names files beside it, by one component."""
    files = {"in/model.safetensors.index.json": _index_of(name)}
    with serving(files) as server:
        with pytest.raises(tz.FormatError, match="plain"):
            tz.lazy_load(f"{server.url}in/model.safetensors.index.json")
        assert {each.path for each in server.requests} == {"/in/model.safetensors.index.json"}


@pytest.mark.parametrize(
    "name",
    ["%2e%2e%2fm.safetensors", "%2e%2e", "a b.safetensors", "50%.safetensors", "a?b.safetensors",
     "a#b.safetensors", "ä.safetensors", "a;b.safetensors", "user@host.safetensors"],
)  # fmt: skip
def test_names_that_mean_something_in_urls(name: str, tmp_path: Path) -> None:
    """They are the names of files, whatever they would be in a URL."""
    from urllib.parse import quote

    tz.save({"w": np.arange(3.0)}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    files = {
        "in/model.safetensors.index.json": _index_of(name),
        f"in/{quote(name)}": (tmp_path / "m.safetensors").read_bytes(),
    }
    with serving(files) as server:
        loaded = tz.load(f"{server.url}in/model.safetensors.index.json")
        assert loaded["w"].tolist() == [0, 1, 2]
        assert all(each.path.startswith("/in/") for each in server.requests)


def test_shards_that_are_redirected_to_the_own_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server of an index cannot have its reader ask what it cannot see itself."""
    monkeypatch.setattr(web, "_is_private", lambda address: address == "127.0.0.2")
    tz.save({"w": np.arange(3.0)}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    inner = {"m.safetensors": (tmp_path / "m.safetensors").read_bytes()}
    files = {"model.safetensors.index.json": _index_of("m.safetensors")}
    with serving(inner, address="127.0.0.2") as private, serving(files) as server:

        def answer(status: int, headers: dict[str, str], body: bytes) -> Answer:
            return (302, {"Location": f"{private.url}m.safetensors"}, b"") if status == 404 else (
                status, headers, body
            )  # fmt: skip

        server.change = answer
        with pytest.raises(OSError, match="address of your own network"):
            tz.load(f"{server.url}model.safetensors.index.json")
        assert not private.requests


# -- answers -------------------------------------------------------------------------------------

Lie = Callable[[int, dict[str, str], bytes], Answer]
_LIES: dict[str, Lie] = {
    "another status": lambda status, headers, body: (500, {}, b""),
    "another object": lambda status, headers, body: (status, headers | {"ETag": '"2"'}, body),
    "no ETag": lambda status, headers, body: (status, headers | {"ETag": ""}, body),
    "a shorter body": lambda status, headers, body: (status, headers, body[:-1]),
    "a cut body": lambda status, headers, body: (
        status, headers | {"Content-Length": str(len(body))}, body[: len(body) // 2]
    ),
    "a longer body": lambda status, headers, body: (status, headers, body + b"x"),
    "another size": lambda status, headers, body: (
        status,
        headers | {"Content-Range": headers["Content-Range"].rpartition("/")[0] + "/999999999"},
        body,
    ),
    "another range": lambda status, headers, body: (
        status, headers | {"Content-Range": f"bytes 1-{len(body)}/{len(body) + 1}"}, body
    ),
    "no range": lambda status, headers, body: (status, headers | {"Content-Range": ""}, body),
    "a whole body": lambda status, headers, body: (200, headers, body * 3),
    "nothing": lambda status, headers, body: (status, headers, b""),
    "changed since": lambda status, headers, body: (412, {}, b""),
    "not HTTP": lambda status, headers, body: (status, headers | {"Content-Length": "-5"}, body),
}  # fmt: skip


@pytest.mark.parametrize("lie", _LIES.values(), ids=_LIES)
@pytest.mark.parametrize("is_always", [True, False])
def test_lies_at_each_request(lie: Lie, is_always: bool, tmp_path: Path) -> None:
    """From whichever request on a server lies: the right values come, or an error."""
    tensors = {f"t{i}": np.full((200, 500), i, "f4") for i in range(30)}
    tz.save(tensors, tmp_path / "m.pt")
    with serving({"m.pt": (tmp_path / "m.pt").read_bytes()}) as server:
        tz.load(server.url + "m.pt")
        count = len(server.requests)
        assert count >= 4
        for number in range(count):
            server.requests.clear()

            def change(
                status: int, headers: dict[str, str], body: bytes, number: int = number
            ) -> Answer:
                at = len(server.requests) - 1
                lies = at >= number if is_always else at == number
                return lie(status, headers, body) if lies else (status, headers, body)

            server.change = change
            try:
                loaded: Any = tz.load(server.url + "m.pt", verify=False)
            except (TorchZipError, OSError):
                continue
            assert all(np.array_equal(loaded[name], each) for name, each in tensors.items())


def test_a_server_that_changes_the_object(tmp_path: Path) -> None:
    """At whichever request another object takes the place: never a mixture of the two."""
    both = []
    for seed in (1, 2):
        tz.save({f"t{i}": np.full((200, 500), seed, "f4") for i in range(30)}, tmp_path / "m.pt")
        both.append((tmp_path / "m.pt").read_bytes())
    assert len(both[0]) == len(both[1])
    files = {"m.pt": both[0]}
    with serving(files) as server:
        for number in spread(range(7), 7):
            server.requests.clear()
            files["m.pt"] = both[0]

            def change(
                status: int, headers: dict[str, str], body: bytes, number: int = number
            ) -> Answer:
                if len(server.requests) > number:
                    files["m.pt"] = both[1]
                return status, headers, body

            server.change = change
            try:
                loaded = tz.load(server.url + "m.pt")
            except TorchZipError:
                continue
            assert len({float(each.flat[0]) for each in loaded.values()}) == 1
