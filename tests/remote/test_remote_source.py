"""Objects behind URLs: what is asked of a server, and what comes of its answers."""

from __future__ import annotations

import errno
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.remote.range_server import Answer, RangeServer, serving
from torchzip.files import web
from torchzip.files.location import Location, located
from torchzip.files.read_ahead import RANGE_NBYTES, ranges_of
from torchzip.files.remote_source import RemoteSource

_DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that failed is sent again at once."""
    monkeypatch.setattr(web, "_pause", lambda attempt: None)


def _source(server: RangeServer, path: str = "m.bin") -> RemoteSource:
    return RemoteSource(Location(server.url + path))


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 17, (1 << 18) + 1, 3_000_000])
def test_reads(size: int) -> None:
    """Any part of an object of any size."""
    data = _DATA[:size]
    with serving({"m.bin": data}) as server:
        source = _source(server)
        assert source.size == size
        for start in (0, size // 2, max(0, size - 7)):
            for nbytes in (0, 7, 70_000, size):
                nbytes = min(nbytes, size - start)
                assert bytes(source.read_at(start, nbytes)) == data[start : start + nbytes]
                out = bytearray(nbytes)
                source.read_into(start, memoryview(out))
                assert out == data[start : start + nbytes]
        with pytest.raises(tz.FormatError):
            source.read_at(size, 1)
        source.close()
        with pytest.raises(ValueError, match="closed"):
            source.read_at(0, 0)


def test_long_reads_go_over_several_connections() -> None:
    """A read of many MB is cut; each byte comes once."""
    data = bytes(30_000_000)
    with serving({"m.bin": data}) as server:
        source = _source(server)
        assert source.read_at(1_000_000, 25_000_000) == data[:25_000_000]
        assert len(server.requests) == 2 + 3
        assert server.nbytes < 25_400_000
        source.close()


def test_requests_are_for_the_opened_object() -> None:
    """A change is noticed by the server, or else by its answer."""
    files = {"m.bin": _DATA}
    for is_polite in (True, False):
        files["m.bin"] = _DATA
        with serving(files) as server:
            source = _source(server)
            assert source.read_at(2_000_000, 1) == _DATA[2_000_000:2_000_001]
            files["m.bin"] = _DATA[:-1] + b"\0"
            if not is_polite:
                server.changes.append(
                    lambda *answer: server.answer("m.bin", {"Range": "bytes=995904-1126975"})
                )
            with pytest.raises(tz.FormatError, match="replaced or changed"):
                source.read_at(1_000_000, 10)
            source.close()


def test_pickles() -> None:
    """A copy asks for nothing until it is read; it reads the same object, and refuses another."""
    files = {"m.bin": _DATA}
    with serving(files) as server:
        source = _source(server)
        packed = pickle.dumps(source)
        count = len(server.requests)
        copy = pickle.loads(packed)
        assert (copy.size, len(server.requests)) == (len(_DATA), count)
        assert bytes(copy.read_at(5, 5)) == _DATA[5:10]
        copy.close()
        files["m.bin"] = _DATA[:1_000_000]
        copy = pickle.loads(packed)
        with pytest.raises(tz.FormatError, match="replaced or changed"):
            copy.read_at(5, 5)
        copy.close()
        source.close()


_Spans = st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 400_000)), max_size=12)


@given(_Spans)
def test_ranges_cover_spans(spans: list[tuple[int, int]]) -> None:
    """Every byte of a span is in a range, and no range is longer than one request."""
    with serving({"m.bin": _DATA[:10]}) as server:
        source = _source(server)
        ranges = list(ranges_of((source, *span) for span in spans))
        source.close()
    for offset, nbytes in spans:
        for at in (offset, offset + nbytes // 2, offset + nbytes - 1):
            assert not nbytes or any(start <= at < stop for _, start, stop, _ in ranges)
    assert all(0 < stop - start <= RANGE_NBYTES for _, start, stop, _ in ranges)


def test_announced_reads() -> None:
    """What was announced is read as everything is, in whatever order."""
    with serving({"m.bin": _DATA}) as server:

        @given(_Spans, st.randoms(use_true_random=False))
        def check(spans: list[tuple[int, int]], random: Any) -> None:
            source = _source(server)
            spans = [(offset, min(nbytes, len(_DATA) - offset)) for offset, nbytes in spans]
            source.will_read([(source, *span) for span in spans])
            random.shuffle(spans)
            for offset, nbytes in spans:
                assert bytes(source.read_at(offset, nbytes)) == _DATA[offset : offset + nbytes]
            source.close()

        check()


def test_announced_reads_are_few() -> None:
    """Neighbours come in one request, and long runs in ranges of some MB."""
    data = bytes(40_000_000)
    with serving({"m.bin": data}) as server:
        source = _source(server)
        spans = [(start, 10_000) for start in range(1_000_000, 39_000_000, 10_050)]
        source.will_read([(source, *span) for span in spans])
        for offset, nbytes in spans:
            source.read_at(offset, nbytes)
        assert len(server.requests) <= 2 + 6
        assert server.nbytes < 38_000_000 + 500_000
        source.close()


def test_announced_reads_in_another_order() -> None:
    """What is read near each other in time comes together, and nothing comes twice."""
    data = bytes(60_000_000)
    spans = [(start, 100_000) for start in range(0, 60_000_000, 100_000)]
    blocks = [spans[at : at + 30] for at in range(0, len(spans), 30)]
    order = [span for block in blocks for span in reversed(block)]
    with serving({"m.bin": data}) as server:
        source = _source(server)
        source.will_read([(source, *span) for span in order])
        for offset, nbytes in order:
            source.read_at(offset, nbytes)
        assert len(server.requests) <= 2 + 16
        assert server.nbytes < 61_000_000
        source.close()


def test_announced_several_times() -> None:
    """What is read again is announced again: the passes are told apart, and go on ahead."""
    data = bytes(64_000_000)
    passes = [(start, 100_000) for start in range(0, 64_000_000, 100_000)] * 2
    with serving({"m.bin": data}) as server:
        source = _source(server)
        source.will_read([(source, *span) for span in passes])
        for offset, nbytes in passes:
            source.read_at(offset, nbytes)
        assert len(server.requests) <= 2 + 2 * 9
        assert server.nbytes < 2 * 64_000_000 + 1_000_000
        source.close()


def test_threads() -> None:
    """Several threads read one source, announced and not."""
    with serving({"m.bin": _DATA}) as server:
        source = _source(server)
        source.will_read([(source, 500_000, 2_000_000)])
        wrong: list[int] = []

        def read(seed: int) -> None:
            starts = np.random.default_rng(seed).integers(0, 2_900_000, 50).tolist()
            for start in starts:
                if source.read_at(start, 90_000) != _DATA[start : start + 90_000]:
                    wrong.append(start)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        source.close()


# -- errors --------------------------------------------------------------------------------------


def _with_status(status: int) -> Callable[..., Answer]:
    return lambda *answer: (status, {}, b"<secret/>")


@pytest.mark.parametrize(
    ("status", "number", "said"),
    [
        (401, errno.EACCES, "refuses access"),
        (403, errno.EACCES, "refuses access"),
        (404, errno.ENOENT, "No such object"),
        (416, errno.EIO, "status 416"),
        (500, errno.EIO, "status 500"),
        (503, errno.EIO, "status 503"),
        (304, errno.EIO, "status 304"),
    ],
)
def test_statuses(status: int, number: int, said: str) -> None:
    """An answer without the bytes is an OSError with the URL, and without its query."""
    with serving({"m.bin": _DATA}) as server:
        server.change = _with_status(status)
        with pytest.raises(OSError, match=said) as caught:
            _source(server, "m.bin?signature=SECRET")
        assert caught.value.errno == number
        assert caught.value.filename == server.url + "m.bin"
        assert "SECRET" not in str(caught.value)
        assert len(server.requests) <= 8


def test_a_failure_that_passes() -> None:
    """A request is sent again after an error of the server, a cut answer or a closed connection."""
    with serving({"m.bin": _DATA}) as server:
        source = _source(server)
        server.changes += [_with_status(503), _short, _with_status(500)]
        assert source.read_at(1_000_000, 10) == _DATA[1_000_000:1_000_010]
        source.close()


def _short(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Length": str(len(body))}, body[:-5]


def _shifted(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Range": "bytes 5-14/3000000"}, body[:10]


def _longer(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers, body + bytes(100)


def _endless(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Length": "", "Connection": "close"}, body + bytes(10_000_000)


def _whole(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return 200, headers, _DATA


def _packed(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Encoding": "gzip"}, body


def _vast(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Range": f"bytes 0-{10**15}/{10**16}"}, body


def _digits(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Range": f"bytes 0-{'9' * 5000}/{'9' * 5001}"}, body


@pytest.mark.parametrize(
    "lie", [_short, _shifted, _longer, _endless, _whole, _packed, _vast, _digits]
)
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_lies(lie: Callable[..., Answer], when: str) -> None:
    """Other bytes than those that were asked for are an error, and cost no memory."""
    with serving({"m.bin": _DATA}) as server:
        if when == "opening":
            server.change = lie
            with pytest.raises((OSError, tz.FormatError)):
                _source(server).read_at(1_000_000, 10)
            return
        source = _source(server)
        server.change = lie
        with pytest.raises(OSError, match=r"server|request"):
            source.read_at(1_000_000, 10)
        source.close()


def test_a_small_object_may_come_whole() -> None:
    """A server that knows no ranges is no hindrance then."""
    with serving({"m.bin": _DATA[:1000]}) as server:
        server.change = lambda status, headers, body: (200, {"ETag": '"1"'}, _DATA[:1000])
        source = _source(server)
        assert source.read_at(990, 10) == _DATA[990:1000]
        source.close()


# -- redirects -----------------------------------------------------------------------------------


def _redirect(to: str) -> Callable[..., Answer]:
    return lambda *answer: (302, {"Location": to}, b"")


def test_redirects() -> None:
    """A redirect is followed once, and the credentials of the first server stay with it."""
    with serving({"cdn.bin": _DATA}) as other, serving({}) as server:
        server.change = _redirect(f"{other.url}cdn.bin?signature=1")
        options = {"headers": {"Authorization": "Bearer SECRET"}}
        source = RemoteSource(Location(server.url + "m.bin", options))
        assert source.read_at(1_000_000, 10) == _DATA[1_000_000:1_000_010]
        assert {each.headers.get("Authorization") for each in server.requests} == {"Bearer SECRET"}
        assert not any("Authorization" in each.headers for each in other.requests)
        assert len(server.requests) <= 2
        source.close()


def test_redirects_that_end_nowhere() -> None:
    """They are followed so far and no further."""
    with serving({}) as server:
        server.change = _redirect(f"{server.url}m.bin")
        with pytest.raises(OSError, match="Too many redirects"):
            _source(server)
        for to in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://[bad"):
            server.change = _redirect(to)
            with pytest.raises(OSError, match=r"not followed|no sense"):
                _source(server)


def test_redirects_to_the_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of the internet (here 127.0.0.1) reaches nothing that it could not see itself."""
    monkeypatch.setattr(web, "_is_private", lambda address: address == "127.0.0.2")
    with serving({"m.bin": _DATA}, address="127.0.0.2") as inner, serving({}) as server:
        server.change = _redirect(f"{inner.url}m.bin")
        with pytest.raises(OSError, match="address of your own network"):
            _source(server)
        assert not inner.requests
        _source(inner).close()  # which its user may open


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("8.8.8.8", False), ("2606:4700::1111", False), ("10.1.2.3", True), ("127.0.0.1", True),
        ("169.254.169.254", True), ("192.168.1.1", True), ("::1", True), ("fe80::1%eth0", True),
        ("fd00::1", True), ("::ffff:10.0.0.1", True), ("100.64.0.1", True), ("0.0.0.0", True),
    ],
)  # fmt: skip
def test_private_addresses(address: str, is_private: bool) -> None:
    """Which addresses are of the internet."""
    assert web._is_private(address) is is_private


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy that the environment names is asked, with the whole URL."""
    with serving({"http://example.invalid/m.bin": _DATA}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        source = RemoteSource(Location("http://example.invalid/m.bin"))
        assert source.read_at(1_000_000, 10) == _DATA[1_000_000:1_000_010]
        source.close()


def test_users_in_urls() -> None:
    """They are sent as HTTP has it, and are in no message."""
    with serving({"m.bin": _DATA}) as server:
        url = server.url.replace("http://", "http://me:pass%20word@") + "m.bin"
        source = RemoteSource(Location(url))
        assert source.name == server.url + "m.bin"
        assert server.requests[0].headers["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
        source.close()


def test_locations() -> None:
    """What is taken for a URL, and what is shown of it."""
    assert isinstance(located("s3://bucket/key"), Location)
    assert located("c:/m.pt") == "c:/m.pt"
    assert located("file://localhost/m.pt") == located("file:///m.pt")
    with pytest.raises(ValueError, match=r"host 'data'.*three slashes"):
        located("file://data/m.pt")
    assert located(b"x") == b"x"
    shown = Location("https://user:key@host/m.pt?sig=SECRET#x", {"key": "SECRET"})
    assert shown.name == "https://host/m.pt"
    assert "SECRET" not in repr(shown)
    with pytest.raises(TypeError, match="storage_options must be a mapping"):
        located("s3://b/k", "region=x")  # type: ignore[arg-type]
