"""Elements that the dtypes of a conversion have no place for: of which tensors, and in words.

They are counted in storages, while these are written (`torchzip.tensors.cast_range`). A storage of
a zip can be of several tensors or more than one; such tensors are gone over once more by
themselves, if there is anything to count at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torchzip.convert.plan import Plan
from torchzip.convert.planned import PlannedFile
from torchzip.dtypes import DTYPES
from torchzip.errors import shown
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec, is_dense

_SHOWN = 5


def by_tensor(file: PlannedFile, counts: Mapping[int, int]) -> Iterator[tuple[str, int]]:
    """Yield names and counts, given those of storages by their place in a file."""
    for key, count in counts.items():
        storage = file.storages[key]
        if not count or not isinstance(storage, CastStorage):
            continue
        tensors = file.cast[key]
        for name, spec in tensors:
            is_all = spec.numel * DTYPES[storage.source].itemsize == storage.base.nbytes
            if len(tensors) > 1 or not is_all or not is_dense(spec.shape, spec.stride):
                count = _count(spec, storage)
            if count:
                yield name, count


def _count(spec: TensorSpec, storage: CastStorage) -> int:
    before = storage.base
    if not isinstance(before, ElementStorage):
        before = ElementStorage(spec.replace(storage=before, torch_dtype=storage.source))
    cast = CastStorage(before, storage.source, storage.target)
    reader = cast.reader(0, cast.nbytes)
    for _ in reader.blocks():
        pass
    return reader.out_of_range


def sentence(overflowed: Mapping[str, int], plan: Plan) -> str:
    """Return what to say of the counts of all tensors, the largest first."""
    dtypes = {row.name: row.to_dtype for row in plan.tensors}
    most = sorted(overflowed.items(), key=lambda item: -item[1])
    places = [f"{shown(name)} ({count:,}, {dtypes[name]})" for name, count in most[:_SHOWN]]
    if len(most) > _SHOWN:
        places.append(f"and {len(most) - _SHOWN:,} more tensors")
    return (
        f"{sum(overflowed.values()):,} elements are out of the range of their new dtype and became "
        f"infinite, NaN or its greatest number, in {', '.join(places)}. Give these tensors a dtype "
        "of a wider range"
    )
