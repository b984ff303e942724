"""Persistent ids: which of several mentions of a storage counts."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.saved import saved
from torchzip.dtypes import STORAGE_CLASSES
from torchzip.errors import TensorError

_CLASSES = sorted(STORAGE_CLASSES)
#: Makes a file of a pickle.
Form = Callable[[bytes], bytes]


def _tensors(kinds: list[str], numel: int = 0) -> bytes:
    """Return a pickle of one tensor for each storage class, all on storage 0."""
    storages = [b.persistent(numel=numel, kind=b.name("torch", kind)) for kind in kinds]
    tensors = {str(n): b.tensor(each, size=[numel]) for n, each in enumerate(storages)}
    return b.stream(b.dict_of(tensors))


def _zip(pickle: bytes) -> bytes:
    return b.checkpoint(pickle, {"0": b""})


def _legacy(pickle: bytes) -> bytes:
    return b.legacy(pickle, b.stream(b.list_of(b.text("0"))), bytes(8))


@given(st.lists(st.sampled_from(_CLASSES), min_size=1), st.sampled_from([_zip, _legacy]))
def test_each_mention_of_an_empty_storage_has_its_dtype(kinds: list[str], form: Form) -> None:
    """An empty storage is written once by torch, which reads another of each mention."""
    data = form(_tensors(kinds))
    expected = [STORAGE_CLASSES[kind].name for kind in kinds]
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert [tensor.torch_dtype for tensor in checkpoint.values()] == expected
        # One storage in, one storage out: whoever writes the file again has the same keys.
        assert len({id(tensor.spec.storage) for tensor in checkpoint.values()}) == 1
        again = saved(checkpoint.root)
    with tz.lazy_load(io.BytesIO(again)) as checkpoint:
        assert [tensor.torch_dtype for tensor in checkpoint.values()] == expected


def test_the_first_mention_of_other_storages_counts() -> None:
    """As in torch: what later ones say is not looked at."""
    data = b.checkpoint(_tensors(["FloatStorage", "IntStorage"], 4))
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert [tensor.torch_dtype for tensor in checkpoint.values()] == ["float32", "float32"]


@pytest.mark.parametrize("form", [_zip, _legacy])
def test_an_empty_storage_with_elements(form: Form) -> None:
    """A mention that has elements of it is as wrong as a record of another size."""
    mentions = [b.persistent(numel=count, kind=b.name("torch", "IntStorage")) for count in (0, 5)]
    data = form(b.stream(b.list_of(*mentions)))
    for read in (tz.load, tz.lazy_load):
        with pytest.raises(TensorError, match=r"0 bytes by its first mention and 20 by another"):
            read(io.BytesIO(data))
