"""Directories of DeepSpeed's ZeRO: each rank has a slice of the weights in float32.

A directory (of a tag, such as ``global_step500``) has, with dp the number of a rank and mp 00:

* stages 1 and 2, and BF16_Optimizer: ``mp_rank_00_model_states.pt`` and, for each rank,
  ``[bf16_|fp16_]zero_pp_rank_<dp>_mp_rank_00_optim_states.pt``;
* stage 3: ``zero_pp_rank_<dp>_mp_rank_00_model_states.pt`` as well;
* stage 0: the first file alone, with all weights.

A file of model states has the state dict in ``module`` (in stage 3 without elements), the names of
the trained parameters in the order of the flat buffers (``param_shapes``, a dict for a group),
those that are not trained (``frozen_param_shapes``, ``frozen_param_fragments``), and ties
(``shared_params``: {name: name that has the data}). A file of optimizer states has flat buffers:

* ``single_partition_of_fp32_groups`` (stages 1 and 2), one for each group. Those of all ranks one
  after another have the parameters one after another, each padded as
  ``param_alignment_paddings`` says, if that is there; the end is padded to a multiple of 2W.
* ``fp32_flat_groups`` (stage 3). Those of one rank, one after another, have a W-th of each
  parameter, rounded up; the slices of a parameter are at the same place in all ranks.

What an optimizer keeps of each weight lies in buffers like these: those of ``state`` in
``base_optimizer_state`` (stages 1 and 2) or ``optimizer_state_dict`` (stage 3). With ``optimizer``
it is read too, as ``optimizer.<name>.exp_avg`` and so on.

A universal checkpoint (``ds_to_universal.py``) has a directory ``zero`` instead, with a directory
for each trained parameter. Its ``fp32.pt`` is a dict with the whole tensor as ``param``, or after
stage 3 its elements, flat; ``exp_avg.pt`` and so on are alike.

Observed: DeepSpeed 0.19.8, whose ``zero_to_fp32.py`` gives the same values. It loses frozen
parameters of stage 1; whatever of ``module`` has elements and is nowhere else is taken from there.
"""

from __future__ import annotations

import contextlib
import math
import os

from torchzip.errors import ErrorPlace, FormatError, UnsupportedError, shown
from torchzip.files.folder import Folder
from torchzip.files.opening import open_given
from torchzip.formats.base import Opener
from torchzip.formats.rank_files import (
    Flat,
    Joined,
    RankFilesContainer,
    check_dense,
    identity,
)
from torchzip.formats.zero_files import States, check_optimizers, files_of_ranks
from torchzip.tensors.chunks import Chunk
from torchzip.tensors.specs import Shape, TensorSpec

#: The directory of the parameters in a universal checkpoint, and the file of a weight.
UNIVERSAL, _WEIGHT = "zero", "fp32"
#: What names of an optimizer's values begin with.
OPTIMIZER = "optimizer."
#: What every name has in a checkpoint of Lightning.
_LIGHTNING = "_forward_module."


class ZeroContainer(RankFilesContainer):
    """The weights of a ZeRO checkpoint, with the names and in the order of the state dict."""

    format = "zero"
    label = "DeepSpeed ZeRO"

    def __init__(self, folder: Folder, opener: Opener) -> None:
        super().__init__(folder, opener)
        #: What the optimizer has of a parameter, by its name and then by that of a value.
        self._moments: dict[str, dict[str, Joined]] = {}
        with ErrorPlace(path=self.name):
            models, optimizers = files_of_ranks(folder.names)
            folder.will_open([models[0], *optimizers.values()])
            self._model_name = models[0]
            self._model = self._read_states(models[0])
            made, is_sliced = self._trained(models, optimizers)
            self._add_others(made, is_sliced)
            self._arrange(made)

    def _trained(
        self, models: dict[int, str], optimizers: dict[int, str]
    ) -> tuple[dict[str, Joined], bool]:
        """Return the parameters that are cut over ranks, and whether all are, as in stage 3."""
        groups = self._model.groups_of_shapes("param_shapes")
        names = [*optimizers.values()]
        ranks = [self._read_states(name).inner("optimizer_state_dict") for name in names]
        check_optimizers(ranks, names)
        if not ranks:
            if any(groups):
                raise FormatError(
                    "the directory has no *_optim_states.pt, which have the weights in float32. "
                    f"Fetch those of all ranks, or give the path of {shown(models[0])} to read "
                    "what it has."
                )
            return {}, False
        is_sliced = "fp32_flat_groups" in ranks[0]
        key = "fp32_flat_groups" if is_sliced else "single_partition_of_fp32_groups"
        if key not in ranks[0]:
            raise UnsupportedError(
                f"the optimizer states have {ranks[0]}; single_partition_of_fp32_groups or "
                "fp32_flat_groups was expected",
                path=ranks[0].place,
            )
        join = self._sliced if is_sliced else self._concatenated
        flats = [states.flats(key) for states in ranks]
        made = join(groups, ranks, flats)
        if self._opener.optimizer:
            held = [states.moments(own) for states, own in zip(ranks, flats, strict=True)]
            for moment in held[0]:
                for states, own in zip(ranks, held, strict=True):
                    if moment not in own:
                        raise states.not_of_one_save(f"its optimizer has no {shown(moment)}")
                for name, joined in join(groups, ranks, [own[moment] for own in held]).items():
                    self._moments.setdefault(name, {})[moment] = joined
        return made | (self._frozen_slices(models, len(ranks)) if is_sliced else {}), is_sliced

    def _read_states(self, name: str) -> States:
        return States(self.read_file(name), self.folder.place(name))

    def _concatenated(
        self, groups: list[dict[str, Shape]], ranks: list[States], parts: list[list[TensorSpec]]
    ) -> dict[str, Joined]:
        """Return the trained parameters of stages 1 and 2; ``parts`` are the flat buffers."""
        for states, own in zip(ranks, parts, strict=True):
            if len(own) != len(groups):
                raise states.wrong("the number of flat buffers", len(own), f"{len(groups):,}")
        made: dict[str, Joined] = {}
        unit = 2 * len(ranks)
        for number, shapes in enumerate(groups):
            _check_lengths([own[number].numel for own in parts], ranks, last_is_cut=True)
            flat = Flat([(own[number], each.place) for own, each in zip(parts, ranks, strict=True)])
            paddings = ranks[0].numbers("param_alignment_paddings", number, len(shapes))
            at = 0
            for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
                made[name] = self._from_slices(name, shape, [flat], at)
                at += math.prod(shape) + padding
            if -(-at // unit) != -(-flat.numel // unit):
                raise self._model.not_of_one_save(
                    f"the parameters of group {number:,} have {shown(at)} elements, and the flat "
                    f"buffers of the ranks {flat.numel:,}"
                )
        return made

    def _sliced(
        self, groups: list[dict[str, Shape]], ranks: list[States], parts: list[list[TensorSpec]]
    ) -> dict[str, Joined]:
        """Return the trained parameters of stage 3; ``parts`` are the flat buffers."""
        for states, own in zip(ranks, parts, strict=True):
            if not own:
                raise states.wrong("its fp32_flat_groups", own, "one flat buffer or more")
        flats = [
            Flat([(spec, states.place) for spec in own])
            for states, own in zip(ranks, parts, strict=True)
        ]
        _check_lengths([flat.numel for flat in flats], ranks)
        made: dict[str, Joined] = {}
        at = 0
        for group in groups:
            for name, shape in group.items():
                made[name] = self._from_slices(name, shape, flats, at)
                at += -(-math.prod(shape) // len(flats))
        if at != flats[0].numel:
            raise self._model.not_of_one_save(
                f"a rank's slices of the parameters have {at:,} elements, and its flat buffers "
                f"{flats[0].numel:,}"
            )
        return made

    def _from_slices(self, name: str, shape: Shape, flats: list[Flat], at: int) -> Joined:
        """Return a tensor of which each flat buffer has a slice, at the same place in all."""
        numel = math.prod(shape)
        each = -(-numel // len(flats))
        chunks: list[Chunk] = []
        for begin, flat in zip(range(0, numel, each or 1), flats, strict=False):
            count = min(each, numel - begin)
            if at + count > flat.numel:
                raise self._model.not_of_one_save(
                    f"{shown(name)} ends at element {shown(at + count)} of a flat buffer of "
                    f"{flat.numel:,}"
                )
            chunks += flat.runs(at, count, begin)
        return self.join(name, flats[0].torch_dtype, shape, chunks, (numel,))

    def _frozen_slices(self, models: dict[int, str], count: int) -> dict[str, Joined]:
        """Return the parameters of stage 3 that are not trained."""
        shapes = self._model.shapes("frozen_param_shapes")
        if not shapes:
            return {}
        if len(models) != count:
            raise FormatError(
                f"the directory has the model states of {len(models):,} of {count:,} ranks. Fetch "
                "what is missing."
            )
        self.folder.will_open(models.values())
        ranks = [self._model] + [self._read_states(models[rank]) for rank in range(1, count)]
        for states in ranks:
            steps = states.get("global_steps"), self._model.get("global_steps")
            if steps[0] != steps[1]:
                raise states.not_of_one_save(
                    f"the file is of step {shown(steps[0])}, and {shown(self._model_name)} of step "
                    f"{shown(steps[1])}"
                )
        fragments = [states.by_name("frozen_param_fragments") for states in ranks]
        made: dict[str, Joined] = {}
        for name, shape in shapes.items():
            what = f"the part of {shown(name)}"
            flats = [
                Flat([(states.flat(held.get(name), what), states.place)])
                for states, held in zip(ranks, fragments, strict=True)
            ]
            made[name] = self._from_slices(name, shape, flats, 0)
        return made

    def _add_others(self, made: dict[str, Joined], is_sliced: bool) -> None:
        """Add ties, and what only the state dict has: buffers, and what nobody trains."""
        module = self._model.by_name("module")
        for name, holder in self._model.by_name("shared_params").items():
            if type(holder) is str and holder in made:
                made.setdefault(name, made[holder])
        # A tie that shared_params does not list is seen in the state dict: one tensor, two names.
        known = {
            identity(value): made[name]
            for name, value in module.items()
            if type(value) is TensorSpec and value.numel and name in made
        }
        buffers = self._model.get("buffer_names") or ()
        for name, value in (self._model.by_name("frozen_param_fragments") | module).items():
            if name in made:
                continue
            if isinstance(value, bool | int | float | str | None):
                self.values[name] = value
                continue
            spec = check_dense(value, shown(name), self._model.place)
            if is_sliced and not spec.numel and not (isinstance(buffers, list) and name in buffers):
                raise self._model.wrong(
                    f"{shown(name)} of its module", spec, "part of a flat buffer"
                )
            joined = known.get(identity(spec)) or self.alone(name, spec, self._model.place)
            known[identity(spec)] = made[name] = joined

    def _arrange(self, made: dict[str, Joined]) -> None:
        """Take over the tensors in the order of the state dict, which has no names of Lightning."""
        order = [name for name in self._model.by_name("module") if name in made]
        names = list(dict.fromkeys([*order, *made]))
        cut = len(_LIGHTNING) if all(name.startswith(_LIGHTNING) for name in names) else 0
        self.tensors = {name[cut:]: made[name] for name in names}
        for name in names:
            for moment, joined in self._moments.get(name, {}).items():
                self.tensors[f"{OPTIMIZER}{name[cut:]}.{moment}"] = joined


def _check_lengths(lengths: list[int], ranks: list[States], *, last_is_cut: bool = False) -> None:
    """See that all ranks have as many elements, or the last one fewer, if its padding was cut."""
    usual = max(lengths[:-1] or lengths, key=lengths.count)
    for length, states in zip(lengths, ranks, strict=True):
        if length != usual and not (last_is_cut and states is ranks[-1] and length < usual):
            raise states.not_of_one_save(
                f"the rank has {length:,} elements of a group of which others have {usual:,}"
            )


class UniversalZeroContainer(ZeroContainer):
    """A universal checkpoint of ZeRO, in which each trained parameter has files of its own."""

    _below: Folder | None = None

    def _trained(
        self, models: dict[int, str], optimizers: dict[int, str]
    ) -> tuple[dict[str, Joined], bool]:
        shapes: dict[str, Shape] = {}
        for group in self._model.groups_of_shapes("param_shapes"):
            shapes |= group
        made: dict[str, Joined] = {}
        is_sliced = models[0].startswith("zero_pp_rank_")
        with contextlib.closing(self.folder.within(UNIVERSAL)) as around:
            files = {
                (name, what): self.folder.file(UNIVERSAL, name, f"{what}.pt")
                for name in shapes
                for what in (_WEIGHT, *self._moments_beside(name, around))
            }
        self._below = open_given([*files.values()])
        self._below.will_open(self._below.names)
        for (name, what), file in files.items():
            joined = self._alone(name, shapes[name], os.fsdecode(file))
            if what == _WEIGHT:
                made[name] = joined
            else:
                self._moments.setdefault(name, {})[what] = joined
        if is_sliced:
            made |= self._frozen_slices(models, len(models))
        return made, is_sliced

    def _moments_beside(self, name: str, around: Folder) -> list[str]:
        """Return what the optimizer has of a parameter, if that is asked for."""
        if name not in around.names:
            raise FormatError(f"{shown(name)} has no directory in {UNIVERSAL}. Fetch it.")
        if not self._opener.optimizer:
            return []
        with contextlib.closing(around.within(name)) as own:
            stems = [each.removesuffix(".pt") for each in own.names if each.endswith(".pt")]
        return [stem for stem in stems if stem not in (_WEIGHT, "step")]

    def _alone(self, name: str, shape: Shape, place: str) -> Joined:
        value = self.read_file(place, self._below)
        value = value.get("param") if isinstance(value, dict) else value
        spec = check_dense(value, shown(name), place)
        if spec.shape not in (shape, (math.prod(shape),)):
            raise FormatError(
                f"{shown(name)} is of size {list(spec.shape)}; {list(shape)} was expected, as in "
                f"{shown(self._model_name)}",
                path=place,
            )
        return self.alone(name, spec, place, shape)

    def close(self) -> None:
        super().close()
        if self._below is not None:
            self._below.close()


def open_zero(folder: Folder, opener: Opener) -> ZeroContainer:
    """Return the checkpoint of ZeRO that a directory is."""
    kind = UniversalZeroContainer if UNIVERSAL in folder.names else ZeroContainer
    return kind(folder, opener)
