"""The files of a ZeRO directory: which there are, and what is in one (`formats.zero`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torchzip.dtypes import DTYPES
from torchzip.errors import FormatError, TorchZipError, UnsupportedError, listed, shown
from torchzip.formats.rank_files import check_dense, check_shape, lacking
from torchzip.limits import is_number
from torchzip.tensors.specs import Shape, TensorSpec, read_view

_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,6})_model_states\.pt", re.ASCII)
_OPTIMIZER = re.compile(
    r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,6})_?optim_states\.pt", re.ASCII
)
#: Files of layouts that are not read, and what they have.
_REFUSED = (
    (re.compile(r"layer_\d+_expert_\d+_.*|expp_rank_\d+_.*", re.ASCII), "experts of a mixture"),
    (re.compile(r"layer_\d+-model_.*", re.ASCII), "layers of a pipeline"),
)


def is_zero(names: list[str]) -> bool:
    """Return whether a directory has the files of a ZeRO checkpoint, by their names."""
    return any(_MODEL.fullmatch(name) or _OPTIMIZER.fullmatch(name) for name in names)


def files_of_ranks(names: list[str]) -> tuple[dict[int, str], dict[int, str]]:
    """Return the model states and the optimizer states in a directory, by the numbers of ranks.

    Raises
    ------
    FormatError, UnsupportedError
        If there is not one of each rank, or the files are of a layout that is not read.
    """
    models: dict[int, str] = {}
    optimizers: dict[int, str] = {}
    for name in names:
        for pattern, what in _REFUSED:
            if pattern.fullmatch(name):
                raise UnsupportedError(f"{what} in files of their own ({shown(name)})")
        for pattern, found in ((_MODEL, models), (_OPTIMIZER, optimizers)):
            match = pattern.fullmatch(name)
            if match is not None:
                _add_file(found, name, int(match[1] or 0), int(match[2]))
    for found in (models, optimizers):
        count = max(found, default=-1) + 1
        if len(found) < count:
            raise _lacking(found, count)
    if not models:
        raise FormatError(
            "the directory has no *mp_rank_00_model_states.pt, which has the names and shapes of "
            "the parameters; fetch it"
        )
    return models, dict(sorted(optimizers.items()))


def _add_file(found: dict[int, str], name: str, rank: int, part: int) -> None:
    if part:
        raise UnsupportedError(
            f"{shown(name)} is of part {part:,} of a model that is cut in parts (tensor "
            "parallel), which DeepSpeed does not put together either"
        )
    if rank in found:
        raise FormatError(
            f"{shown(found[rank])} and {shown(name)} are both of rank {rank:,}; move away the one "
            "that does not belong"
        )
    found[rank] = name


def _lacking(found: dict[int, str], count: int) -> FormatError:
    """Return the error of a directory that does not have a file of each of so many ranks."""
    rank, name = next(iter(found.items()))
    return lacking(found, count, name.replace(f"pp_rank_{rank}_", "pp_rank_{}_", 1))


class States:
    """The object of one file, a dict; its values are checked when they are asked for."""

    def __init__(self, held: Any, place: str) -> None:
        self.place = place
        if not isinstance(held, dict):
            raise self.wrong("the object", held, "a dict")
        self._held = held

    def wrong(self, what: str, found: object, wanted: str) -> FormatError:
        return FormatError(f"{what} is {shown(found)}; {wanted} was expected", path=self.place)

    def not_of_one_save(self, why: str) -> FormatError:
        return FormatError(
            f"{why}: the files are not of one save. Fetch them again.", path=self.place
        )

    def get(self, key: str) -> Any:
        return self._held.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __str__(self) -> str:
        return listed(list(self._held))

    def inner(self, key: str) -> States:
        return States(self._held.get(key), self.place)

    def by_name(self, key: str) -> dict[str, Any]:
        """Return a dict with names for keys; an empty one for None."""
        value = self._held.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(type(name) is str for name in value):
            raise self.wrong(f"its {key}", value, "a dict of names")
        return value

    def shapes(self, key: str) -> dict[str, Shape]:
        return self._shapes(self.by_name(key))

    def groups_of_shapes(self, key: str) -> list[dict[str, Shape]]:
        """Return the shapes of parameters by their names, group by group; [] for None."""
        groups = self._held.get(key)
        if groups is None:
            return []
        groups = [groups] if isinstance(groups, dict) else groups  # one dict in old releases
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise self.wrong(f"its {key}", groups, "a list of dicts")
        names = [name for group in groups for name in group]
        if len({*names}) < len(names) or not all(type(name) is str for name in names):
            raise self.wrong(f"its {key}", groups, "each name once")
        return [self._shapes(group) for group in groups]

    def _shapes(self, held: dict[str, Any]) -> dict[str, Shape]:
        return {
            name: check_shape(shape, f"the shape of {shown(name)}", self.place)
            for name, shape in held.items()
        }

    def flats(self, key: str) -> list[TensorSpec]:
        """Return a list of tensors of one dimension."""
        held = self._held.get(key)
        if not isinstance(held, list):
            raise self.wrong(f"its {key}", held, "a list")
        return [self.flat(value, f"number {at:,} of its {key}") for at, value in enumerate(held)]

    def flat(self, value: Any, what: str) -> TensorSpec:
        spec = check_dense(value, what, self.place)
        if len(spec.shape) != 1:
            raise self.wrong(f"the shape of {what}", spec.shape, "one dimension")
        return spec

    def numbers(self, key: str, group: int, count: int) -> list[int]:
        """Return a list of numbers, one list for each group; zeros if the file has none."""
        rows = self._held.get(key)
        if rows is None:
            return [0] * count
        row = rows[group] if isinstance(rows, list) and group < len(rows) else None
        if not isinstance(row, list) or len(row) != count or not all(map(is_number, row)):
            raise self.wrong(f"its {key} of group {group:,}", row, f"a list of {count:,} numbers")
        return row

    def moments(self, flats: Sequence[TensorSpec]) -> dict[str, list[TensorSpec]]:
        """Return what the optimizer keeps of each weight in these flat buffers, by its names.

        Of ``exp_avg`` and the like there is a buffer for each; the padding of the last rank is not
        cut from it. What has another number of elements, such as ``step``, is left out.
        """
        held = self._held.get("base_optimizer_state", self._held.get("optimizer_state_dict"))
        rows = held.get("state") if isinstance(held, dict) else held  # a list if it is elastic
        rows = list(rows.values()) if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self.wrong("the state of its optimizer", rows, "a dict for each flat buffer")
        if len(rows) != len(flats):
            raise self.wrong("the number of states of its optimizer", len(rows), f"{len(flats):,}")
        made: dict[str, list[TensorSpec]] = {}
        for key in rows[0] if rows else ():
            values = [row.get(key) for row in rows]
            if type(key) is str and all(
                type(value) is TensorSpec and len(value.shape) == 1 and value.numel >= flat.numel
                for value, flat in zip(values, flats, strict=True)
            ):
                made[key] = values
        return made

    @property
    def step(self) -> float | None:
        """How many steps the optimizer has made, as its first group says; None if it does not."""
        held = self._held.get("base_optimizer_state", self._held.get("optimizer_state_dict"))
        for key in ("state", None, "step"):
            if not isinstance(held, dict):
                return None
            held = next(iter(held.values()), None) if key is None else held.get(key)
        if type(held) is TensorSpec:
            if held.numel != 1 or DTYPES[held.torch_dtype].kind == "complex":
                return None
            return float(read_view(held, (), (), held.storage_offset))
        return float(held) if is_number(held) else None


def check_optimizers(ranks: Sequence[States], names: Sequence[str]) -> None:
    """See that optimizer states are of all ranks of one save. ``names`` are those of the files."""
    for states in ranks:
        count = states.get("partition_count")
        counts = count if isinstance(count, list) else [len(ranks) if count is None else count]
        if not counts or not all(map(is_number, counts)):
            raise states.wrong("its partition_count", count, "a number of ranks")
        if len({*counts}) > 1:
            raise UnsupportedError(
                f"groups of parameters in {shown(counts)} parts, as those of a mixture of experts; "
                "one number for all was expected",
                path=states.place,
            )
        if counts[0] != len(ranks):
            raise _wrong_count(counts[0], ranks, names, states.place)
        first = ranks[0].step
        if None not in (first, states.step) and first != states.step:
            raise states.not_of_one_save(
                f"the optimizer is at step {shown(states.step)}, and in {shown(names[0])} at step "
                f"{shown(first)}"
            )


def _wrong_count(
    count: int, ranks: Sequence[States], names: Sequence[str], place: str
) -> TorchZipError:
    if count < len(ranks):
        return UnsupportedError(
            f"the weights are in {count:,} parts, and the directory has optimizer states of "
            f"{len(ranks):,} ranks. Files of another save lie there, or the parts are repeated in "
            "groups of ranks (MiCS, hpZ), which are not read.",
            path=place,
        )
    return _lacking(dict(enumerate(names)), count)
