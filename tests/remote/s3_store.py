"""An S3 on loopback (moto), for tests of what is written to a store."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = "models"


@dataclass
class Store:
    """A bucket, and how to reach it."""

    options: dict[str, Any]
    client: Any

    def url(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}"

    def __getitem__(self, key: str) -> bytes:
        found: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return found

    def __setitem__(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, MaxKeys=1000)
        return [each["Key"] for each in found.get("Contents", [])]

    def open_uploads(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=BUCKET)
        return [each["Key"] for each in found.get("Uploads", [])]


@contextmanager
def serving_s3() -> Iterator[Store]:
    """Serve an empty bucket until the block ends."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "SECRET"}
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        client.create_bucket(Bucket=BUCKET)
        options = {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": "key",
            "secret_access_key": "SECRET",
            "client_options": {"allow_http": True},
        }
        yield Store(options, client)
    finally:
        request = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
        json.load(urllib.request.urlopen(request))
        server.stop()
