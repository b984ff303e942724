"""The Hugging Face hub: repositories, revisions, tokens, redirects to where the bytes are."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests.remote.range_server import Answer, RangeServer, serving
from torchzip.files.hub import Place, parse_place

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub:
    """A server that answers as the hub does, and one that has the bytes."""

    def __init__(self, web: RangeServer, cdn: RangeServer) -> None:
        self.web = web
        self.cdn = cdn
        self.options = {"endpoint": web.url.rstrip("/"), "token": "hf_SECRET"}
        web.answer = self._answer  # type: ignore[method-assign]

    def _answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        if headers.get("Authorization") != "Bearer hf_SECRET":
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        path = path.partition("?")[0]
        if path.startswith("/api/models/org/model"):
            if path.endswith("/gone"):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            names = [{"rfilename": name} for name in [*self.cdn.files, "README.md"]]
            told = {"id": "org/model", "modelId": "org/model", "sha": _COMMIT, "siblings": names}
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        name = path.removeprefix(f"/org/model/resolve/{_COMMIT}/")
        if name in self.cdn.files:
            return 302, {"Location": f"{self.cdn.url}{name}?signature=SECRET"}, b""
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[_Hub]:
    """Serve a private repository with shards, and a whole file in a folder."""
    pytest.importorskip("huggingface_hub")
    tz.save({f"t{i}": np.full((300, 100), i, "f4") for i in range(4)}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", f"{tmp_path}/", max_shard_size="250KB")
    files = {path.name: path.read_bytes() for path in tmp_path.glob("model*")}
    files["ema/model.safetensors"] = files["model-00001-of-00002.safetensors"]
    with serving({}) as web, serving(files) as cdn:
        yield _Hub(web, cdn)


def test_repositories(hub: _Hub) -> None:
    """A repository is a folder, at the commit that it has when it is opened."""
    for url in ("hf://org/model", "hf://org/model/", f"hf://org/model@{_COMMIT}"):
        with tz.lazy_load(url, storage_options=hub.options) as ckpt:
            assert ckpt.format == "sharded"
            assert ckpt["t3"][5, 5] == 3
    loaded = tz.load("hf://org/model@main/ema/", storage_options=hub.options)
    assert sorted(loaded) == ["t0", "t1"]
    assert not any("Authorization" in each.headers for each in hub.cdn.requests)
    assert all(_COMMIT in each.path or "/api/" in each.path for each in hub.web.requests)


def test_files(hub: _Hub) -> None:
    """One file; each of its redirects is followed once."""
    url = "hf://org/model/model-00002-of-00002.safetensors"
    with tz.lazy_load(url, storage_options=hub.options) as ckpt:
        assert ckpt.path == url
        for name in ckpt:
            assert ckpt[name].numpy().mean() == int(name[1:])
    resolved = [each for each in hub.web.requests if "/resolve/" in each.path]
    assert len(resolved) <= 2
    with tz.lazy_load("hf://org/model/model.safetensors.index.json",
                      storage_options=hub.options) as ckpt:  # fmt: skip
        assert len(ckpt) == 4


def test_a_repository_is_scanned(hub: _Hub) -> None:
    """All its files, and those below a folder of it, at the commit that it has."""
    hub.cdn.files = {**hub.cdn.files, "ema/bad.pkl": b"cos\nsystem\n(S'ls'\ntR."}
    found = tz.tools.scan("hf://org/model", storage_options=hub.options).files
    root = f"hf://org/model@{_COMMIT}/"
    verdicts = {file.path.removeprefix(root): file.verdict for file in found}
    assert verdicts.keys() == hub.cdn.files.keys() | {"README.md"}
    assert {name for name, verdict in verdicts.items() if verdict == "foreign"} == {"ema/bad.pkl"}
    below = tz.tools.scan("hf://org/model/ema/", storage_options=hub.options).files
    assert [file.path for file in below] == [
        f"{root}ema/bad.pkl", f"{root}ema/model.safetensors",
    ]  # fmt: skip


def test_errors(hub: _Hub) -> None:
    """What is not there or not allowed says so, without tokens and signatures."""
    cases = {
        "hf://org/model@gone/m.pt": errno.ENOENT,
        "hf://org/model/no.safetensors": errno.ENOENT,
    }
    for url, number in cases.items():
        with pytest.raises(OSError, match="No such object") as caught:
            tz.load(url, storage_options=hub.options)
        assert (caught.value.errno, caught.value.filename) == (number, url)
        assert "SECRET" not in str(caught.value)
    with pytest.raises(OSError, match=r"No such object|refuses access"):
        tz.load("hf://org/model", storage_options=hub.options | {"token": False})
    with pytest.raises(OSError, match="only be read"):
        tz.save({}, "hf://org/model/m.pt", storage_options=hub.options)


def test_places() -> None:
    """What a URL of the hub names."""
    assert parse_place("hf://org/model") == Place("model", "org/model", None, "")
    assert parse_place("hf://org/model@v1/a/b.bin") == Place("model", "org/model", "v1", "a/b.bin")
    assert parse_place("hf://datasets/org/data/x") == Place("dataset", "org/data", None, "x")
    with pytest.raises(ValueError, match="ORGANISATION/MODEL"):
        parse_place("hf://model")
