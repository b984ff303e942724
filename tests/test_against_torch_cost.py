"""Opening any kind of checkpoint reads and holds its structure, and none of its tensors."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

import torchzip as tz
from tests.test_cost import CountingFile, peak_below
from tests.torch_oracle import asks_torch, torch_bytes

pytestmark = asks_torch(".*torch.jit", "Sparse", ".*quantiz", ".*isinstance.*LeafSpec")

#: A weight of 4 MB, and what may be read and held of a file that has several.
_SIDE = 1000
_STRUCTURE_NBYTES = 300_000


def _model(torch: Any) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(_SIDE, _SIDE), torch.nn.Linear(_SIDE, _SIDE))


def _script(torch: Any) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(_model(torch)), file)
    return file.getvalue()


def _pt2(torch: Any) -> bytes:
    file = io.BytesIO()
    program = torch.export.export(_model(torch), (torch.zeros(1, _SIDE),))
    torch.export.save(program, file)
    return file.getvalue()


def _kinds(torch: Any) -> bytes:
    dense = torch.ones(_SIDE, _SIDE)
    return torch_bytes(
        torch,
        {
            "sparse": dense.to_sparse(),
            "csr": dense.to_sparse_csr(),
            "quantized": torch.quantize_per_tensor(dense, 0.1, 0, torch.qint32),
        },
    )


_MAKERS: dict[str, Callable[[Any], bytes]] = {
    "legacy": lambda torch: torch_bytes(
        torch, _model(torch).state_dict(), _use_new_zipfile_serialization=False
    ),
    "module": lambda torch: torch_bytes(torch, _model(torch)),
    "torchscript": _script,
    "pt2": _pt2,
    "kinds": _kinds,
}


@pytest.mark.parametrize("kind", _MAKERS)
def test_opening_reads_no_tensor(torch: Any, kind: str) -> None:
    """Names, shapes and the object are there after a small part of the file was read."""
    data = _MAKERS[kind](torch)
    assert len(data) > 8_000_000
    tz.lazy_load(io.BytesIO(data)).close()  # what is made once for the process
    file = CountingFile(data)
    # The pickles of a legacy stream have no directory: a megabyte is read to find their end.
    allowed = _STRUCTURE_NBYTES + ((2 << 20) if kind == "legacy" else 0)
    with peak_below(allowed), tz.lazy_load(file) as ckpt:
        assert len(ckpt) >= 3
        for name in ckpt:
            assert ckpt[name].shape is not None
        repr(ckpt.root)
    assert file.nbytes < allowed
