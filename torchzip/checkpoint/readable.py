"""Whether readers will take what a writer is about to write.

Whatever is written without an error is read with the same `Limits`: by `load`, and by `lazy_load`
with its flat names. The rules of the reader are in the reader alone. So a pickle is read again
before anything is written, without any tensor, unless there is nothing in it that a rule could be
about, which is so for most checkpoints: see `Emitter.is_plain` and `Survey.is_plain`. What these
let through is within all other bounds by how it is written: no opcode that is counted is there for
each 4 bytes of such a pickle, and no call has arguments that were written before.
"""

from __future__ import annotations

from torchzip.checkpoint.lazy_tensor import LazyFactory, is_tensor
from torchzip.checkpoint.names import NameTable
from torchzip.errors import FormatError, LimitError, TorchZipError
from torchzip.formats.base import read_pickle
from torchzip.limits import Limits
from torchzip.tensors.storage import MeasuredStorage

#: Records of an archive that are not storages: four around them, and two at its end.
_OTHER_RECORDS = 6


def check_readable(pickle: bytes, storages: int, limits: Limits, *, is_plain: bool) -> None:
    """Raise if readers would refuse a pickle with so many storages, or could give it no names.

    Raises
    ------
    TorchZipError
        Its message is for whoever writes; its offset is the byte of the pickle, if there is one.
    """
    try:
        for limit, actual in (
            ("pickle_nbytes", len(pickle)),
            ("entries", storages + _OTHER_RECORDS),
        ):
            if actual > getattr(limits, limit):
                raise LimitError(limit, actual, getattr(limits, limit))
        if not is_plain:
            contents = read_pickle(
                pickle, lambda _, measure: MeasuredStorage(*measure), LazyFactory, limits, path=""
            )
            NameTable(contents.root, is_tensor, limits, len(pickle))
    except TorchZipError as error:
        why = error.message
        if isinstance(error, LimitError):
            why = f"{error.limit} would be {error.actual:,}, past {error.bound:,}"
        raise FormatError(f"readers would refuse it ({why})", offset=error.offset) from None
