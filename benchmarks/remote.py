"""Measures what reading behind a URL takes: requests, bytes, time, and the peak memory.

    python -m benchmarks.remote

A web server on loopback, in a process of its own, waits 50 ms before each answer, as a store in
another region does. A conversion is measured beside a bare download of the same bytes by as many
connections, which keeps nothing. Prints the table of docs/remote.md.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

_DELAY_S = 0.05


def _serve(folder: str, ready: Connection) -> None:
    """Serve the files of a folder by ranges; ``/counts`` says what was asked for since it was."""
    counts = [0, 0]
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path == "/counts":
                self._answer(200, {}, json.dumps(counts).encode())
                counts[:] = [0, 0]
                return
            time.sleep(_DELAY_S)
            with open(folder + self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
                first, last = asked.groups() if asked is not None else ("0", "")
                start = int(first) if first else max(0, size - int(last))
                stop = min(size, int(last) + 1) if first and last else size
                with lock:
                    counts[0] += 1
                    counts[1] += stop - start
                file.seek(start)
                span = f"bytes {start}-{stop - 1}/{size}"
                self._answer(206, {"Content-Range": span, "ETag": '"1"'}, file.read(stop - start))

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_port)
    server.serve_forever()


def _measured(task: Callable[..., object], arguments: tuple[Any, ...]) -> tuple[float, int]:
    """Return the seconds that a task takes in a process of its own, and the peak memory there."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(task, arguments, there))
    process.start()
    seconds, peak = here.recv()
    process.join()
    return seconds, peak


def _run(task: Callable[..., object], arguments: tuple[Any, ...], result: Connection) -> None:
    import torchzip  # noqa: F401  # not measured

    begin = time.perf_counter()
    task(*arguments)
    seconds = time.perf_counter() - begin
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    result.send((seconds, int(peak) << 10))


# -- tasks -----------------------------------------------------------------------------------------


def names(url: str) -> None:
    import torchzip

    with torchzip.lazy_load(url) as checkpoint:
        list(checkpoint.items())


def load(url: str) -> None:
    import torchzip

    torchzip.load(url)


def convert(url: str, target: str) -> None:
    import torchzip

    torchzip.convert(url, target, dtype="bfloat16", overwrite=True)


def download(url: str, nbytes: int) -> None:
    """Fetch an object in ranges of 8 MB over 8 connections, and keep nothing."""
    host, _, path = url.removeprefix("http://").partition("/")
    local = threading.local()

    def fetch(start: int) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(host)
        stop = min(start + (8 << 20), nbytes)
        local.connection.request("GET", f"/{path}", headers={"Range": f"bytes={start}-{stop - 1}"})
        local.connection.getresponse().read()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch, range(0, nbytes, 8 << 20)))


# -- the table -------------------------------------------------------------------------------------


def make_files(folder: Path, size: float) -> None:
    """Write a model of 300 tensors in several formats, and one of 100,000 tensors."""
    import torchzip

    side = int((size * 1e9 / 300 / 4) ** 0.5)
    block = np.random.default_rng(0).standard_normal((side, side)).astype("f4")
    torchzip.save({f"layers.{i}.weight": block + i for i in range(300)}, folder / "big.pt")
    torchzip.convert(folder / "big.pt", folder / "big.safetensors")
    (folder / "shards").mkdir()
    torchzip.convert(folder / "big.pt", f"{folder}/shards/", max_shard_size=int(size * 1e9 / 10.8))
    torchzip.save({f"p{i}": np.full(4, i, "f4") for i in range(100_000)}, folder / "many.pt")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--size", type=float, default=2.2, help="GB of the model (default 2.2)")
    parser.add_argument("--folder", help="where to put the files (default: the temporary folder)")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        make_files(folder, arguments.size)
        here, there = context.Pipe()
        server = context.Process(target=_serve, args=(place, there), daemon=True)
        server.start()
        host = f"127.0.0.1:{here.recv()}"
        url = f"http://{host}"
        index = "shards/model.safetensors.index.json"
        nbytes = (folder / "big.pt").stat().st_size
        rows: list[tuple[str, Callable[..., object], tuple[Any, ...]]] = [
            ("names and shapes, 300 tensors, .pt", names, (f"{url}/big.pt",)),
            ("the same, .safetensors", names, (f"{url}/big.safetensors",)),
            (f"the same, {len(os.listdir(folder / 'shards')) - 1} shards", names,
             (f"{url}/{index}",)),
            ("the same, 100,000 tensors, .pt", names, (f"{url}/many.pt",)),
            ("load 100,000 tensors", load, (f"{url}/many.pt",)),
            ("a bare download", download, (f"{url}/big.pt", nbytes)),
            ("load", load, (f"{url}/big.pt",)),
            ("convert to bfloat16, .pt to .safetensors", convert,
             (f"{url}/big.pt", f"{folder}/o.safetensors")),
            ("convert to bfloat16, shards to .pt", convert, (f"{url}/{index}", f"{folder}/o.pt")),
        ]  # fmt: skip
        print(f"Big is {nbytes / 1e9:.1f} GB.\n\n| | requests | MB | time | peak memory |\n"
              "|---|---|---|---|---|")  # fmt: skip
        for name, task, given in rows:
            seconds, peak = _measured(task, given)
            connection = http.client.HTTPConnection(host)
            connection.request("GET", "/counts")
            requests, fetched = json.loads(connection.getresponse().read())
            connection.close()
            print(f"| {name} | {requests} | {fetched / 1e6:,.1f} | {seconds:.2f} s | "
                  f"{peak / 1e6:,.0f} MB |", flush=True)  # fmt: skip
        server.terminate()


if __name__ == "__main__":
    main()
