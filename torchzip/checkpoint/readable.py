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
from torchzip.tensors.storage import Measure, MeasuredStorage

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
        _check_size("pickle_nbytes", len(pickle), limits.pickle_nbytes)
        _check_size("entries", storages + _OTHER_RECORDS, limits.entries)
        if not is_plain:
            contents = read_pickle(pickle, _measured, LazyFactory, limits, path="")
            NameTable(contents.root, is_tensor, limits, len(pickle))
    except LimitError as error:
        raise _refused(
            f"{error.limit} would be {error.actual:,}, past {error.bound:,}", error
        ) from None
    except TorchZipError as error:
        raise _refused(error.message, error) from None


def _measured(key: str, measure: Measure) -> MeasuredStorage:
    return MeasuredStorage(*measure)


def _check_size(limit: str, actual: int, bound: int) -> None:
    if actual > bound:
        raise LimitError(limit, actual, bound)


def _refused(why: str, error: TorchZipError) -> FormatError:
    return FormatError(f"readers would refuse it ({why})", offset=error.offset)
