"""A web server on loopback that serves bytes by ranges, counts what it is asked, and can lie."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: What is changed of an answer before it is sent: status, headers, body.
Change = Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


@dataclass
class Request:
    """One request, as it came in."""

    path: str
    headers: dict[str, str]
    nbytes: int = 0


@dataclass
class RangeServer:
    """``files`` maps paths to bytes, ``requests`` lists what was asked; each waits ``delay_s``."""

    files: dict[str, bytes]
    delay_s: float = 0
    #: Called in turn for the next answers.
    changes: list[Change] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    @property
    def nbytes(self) -> int:
        """The bytes of all answers so far."""
        return sum(request.nbytes for request in self.requests)

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body, as a server that tells the truth."""
        data = self.files.get(path.partition("?")[0].lstrip("/"))
        if data is None:
            return 404, {}, b"not here"
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        known = {"ETag": etag, "Last-Modified": "Mon, 30 Nov 2026 10:00:00 GMT"}
        if headers.get("If-Match", etag) != etag:
            return 412, {}, b"another"
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
        if asked is None:
            return 200, known, data
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return 416, {}, b"past the end"
        part = data[start:stop]
        return 206, known | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, part


@contextmanager
def serving(files: dict[str, bytes], *, delay_s: float = 0) -> Iterator[RangeServer]:
    """Serve files on loopback until the block ends."""
    made = RangeServer(files, delay_s)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request = Request(self.path, {key.title(): each for key, each in self.headers.items()})
            with lock:
                made.requests.append(request)
                change = made.changes.pop(0) if made.changes else None
            time.sleep(made.delay_s)
            status, headers, body = made.answer(self.path, request.headers)
            if change is not None:
                status, headers, body = change(status, headers, body)
            request.nbytes = len(body)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
