"""A web server on loopback that serves bytes by ranges, counts what it is asked, and can lie."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
#: What is changed of an answer before it is sent: status, headers, body.
Change = Callable[[int, dict[str, str], bytes], Answer]


@dataclass
class Request:
    """One request, as it came in, and how many bytes were sent."""

    path: str
    headers: dict[str, str]
    nbytes: int = 0


@dataclass
class RangeServer:
    """``files`` maps paths to bytes, ``requests`` lists what was asked; each waits ``delay_s``."""

    files: Mapping[str, bytes]
    delay_s: float = 0
    #: Called in turn for the next answers.
    changes: list[Change] = field(default_factory=list)
    #: Called for each answer.
    change: Change | None = None
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    @property
    def nbytes(self) -> int:
        """The bytes of all answers so far."""
        return sum(request.nbytes for request in self.requests)

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Return status, headers and body, as a server that tells the truth."""
        data = self.files.get(path.partition("?")[0].lstrip("/"))
        if data is None:
            return 404, {}, b"not here"
        etag = f'"{hashlib.sha256(data[:1000] + data[-1000:]).hexdigest()[:16]}"'
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
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b"past the end"
        part = data[start:stop]
        return 206, known | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, part


@contextmanager
def serving(
    files: Mapping[str, bytes], *, delay_s: float = 0, address: str = "127.0.0.1"
) -> Iterator[RangeServer]:
    """Serve files on loopback until the block ends."""
    made = RangeServer(files, delay_s)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and a short body in one packet
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            request = Request(self.path, {key.title(): each for key, each in self.headers.items()})
            with lock:
                made.requests.append(request)
                change = made.changes.pop(0) if made.changes else made.change
            time.sleep(made.delay_s)
            status, headers, body = made.answer(self.path, request.headers)
            if change is not None:
                status, headers, body = change(status, headers, body)
            request.nbytes = len(body)
            try:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    if value:  # an empty one is left out
                        self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
                self.wfile.flush()
            except OSError:
                self.close_connection = True
            if headers.get("Content-Length", str(len(body))) != str(len(body)):
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 64
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server((address, 0), Handler)
    made.url = f"http://{address}:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
