"""An S3 on loopback (moto), for tests of what is written to a store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BUCKET = "models"


class Request(NamedTuple):
    """A request to a store: ``PUT models/m.pt partNumber=1&...``."""

    method: str
    path: str
    query: str


@dataclass
class Store:
    """A bucket, and how to reach it. A request that ``fails`` is answered with an error."""

    options: dict[str, Any]
    client: Any
    requests: list[Request] = field(default_factory=list)
    fails: Callable[[int, Request], bool] = lambda number, request: False

    def url(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}"

    def __getitem__(self, key: str) -> bytes:
        found: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return found

    def __setitem__(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def keys(self, prefix: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix, MaxKeys=1000)
        return [each["Key"] for each in found.get("Contents", [])]

    def open_uploads(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET)
        return [each["Key"] for each in found.get("Uploads", [])]

    def clear(self) -> None:
        """Remove all, and let all requests pass."""
        for each in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            self.client.abort_multipart_upload(
                Bucket=BUCKET, Key=each["Key"], UploadId=each["UploadId"]
            )
        self.fails = lambda number, request: False
        for key in self.keys():
            self.client.delete_object(Bucket=BUCKET, Key=key)
        self.requests.clear()


@contextmanager
def serving_s3() -> Iterator[Store]:
    """Serve an empty bucket until the block ends."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    inner = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def app(environ: dict[str, Any], start: Any) -> Any:
        request = Request(
            environ["REQUEST_METHOD"], environ["PATH_INFO"].lstrip("/"), environ["QUERY_STRING"]
        )
        if "Boto3" not in environ.get("HTTP_USER_AGENT", ""):
            with lock:
                number = len(store.requests)
                store.requests.append(request)
            if store.fails(number, request):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start("400 Bad Request", [("Content-Length", "0")])
                return [b""]
        with _ONE_AT_A_TIME:  # moto's objects do not stand several threads
            return [b"".join(inner(environ, start))]

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="key", aws_secret_access_key="SECRET",
    )  # fmt: skip
    options = {
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "SECRET",
        "client_options": {"allow_http": True},
    }
    store = Store(options, client)
    try:
        client.create_bucket(Bucket=BUCKET)
        yield store
    finally:
        client.close()
        server.shutdown()
        server.server_close()
        thread.join()


_ONE_AT_A_TIME = threading.Lock()
