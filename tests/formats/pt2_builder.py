"""Archives of exported programs by hand, with a lie in any field that a test wants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests import builders as b


def meta(
    dtype: Any = 7, sizes: Any = (4,), strides: Any = (1,), offset: Any = 0, **changes: Any
) -> dict[str, Any]:
    """Return a tensor_meta: four float32 unless told otherwise."""
    return {
        "dtype": dtype,
        "sizes": [{"as_int": n} for n in sizes] if isinstance(sizes, tuple) else sizes,
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": n} for n in strides] if isinstance(strides, tuple) else strides,
        "storage_offset": {"as_int": offset} if isinstance(offset, int) else offset,
        "layout": 7,
        **changes,
    }


def payload(path_name: Any = "weight_0", tensor_meta: Any = None, **changes: Any) -> dict[str, Any]:
    """Return what a config says of a name."""
    return {
        "path_name": path_name, "is_param": False, "use_pickle": False,
        "tensor_meta": meta() if tensor_meta is None else tensor_meta, **changes,
    }  # fmt: skip


def config(rows: Mapping[str, Any]) -> bytes:
    return json.dumps({"config": rows}).encode()


def archive(records: Mapping[str, bytes | None], *, method: int = 0) -> bytes:
    """Return an archive with these records; None takes one of the usual ones away."""
    whole: dict[str, bytes | None] = {
        "data/weights/model_weights_config.json": config({}),
        "data/constants/model_constants_config.json": config({}),
        "models/model.json": b"{}", "archive_format": b"pt2", "archive_version": b"0",
        ".data/version": b"6\n", "byteorder": b"little", **records,
    }  # fmt: skip
    return b.zip_of(whole, root="m/", method=method)


def held(kind: str, rows: Mapping[str, Any], records: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the records of weights or constants and their config."""
    return {
        **{f"data/{kind}/{name}": data for name, data in records.items()},
        f"data/{kind}/model_{kind}_config.json": config(rows),
    }


#: Four float32.
FOUR = {"weight_0": b.DATA}


def weights(
    rows: Mapping[str, Any],
    records: Mapping[str, bytes] = FOUR,
    *,
    method: int = 0,
    **more: bytes,
) -> bytes:
    """Return an archive with these weights, over four float32 unless given others."""
    return archive({**held("weights", rows, records), **more}, method=method)
