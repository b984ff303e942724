"""Directories of ZeRO by hand: a plain model of how DeepSpeed cuts parameters, in numpy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import torchzip as tz
from torchzip.types import Size

#: What the optimizer has of each weight: here the weight and so much more.
_MOMENTS = {"exp_avg": 1000, "exp_avg_sq": 2000}

Arrays = Mapping[str, NDArray[Any]]


def _padded(flat: NDArray[Any], numel: int) -> NDArray[Any]:
    return np.concatenate([flat, np.full(numel - flat.size, -1, flat.dtype)])


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@dataclass
class Zero:
    """What a directory is made of. ``model`` and ``optimizer`` go over what the files have."""

    groups: Sequence[Arrays]
    ranks: int = 2
    stage: int = 2
    frozen: Arrays = field(default_factory=dict)
    buffers: Arrays = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    alignment: int = 1
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    step: int = 7

    def moments(self) -> dict[str, NDArray[Any]]:
        """Return what a reader is to get of the optimizer."""
        return {
            f"optimizer.{name}.{moment}": array + add
            for group in self.groups
            for name, array in group.items()
            for moment, add in _MOMENTS.items()
        }

    def weights(self) -> dict[str, NDArray[Any]]:
        """Return what a reader is to get."""
        made = dict(self.buffers) | dict(self.frozen)
        for group in self.groups:
            made |= group
        return made | {name: made[of] for name, of in self.shared.items()}

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, root in self.roots().items():
            tz.save(root, folder / name)
        return folder

    def roots(self) -> dict[str, Any]:
        """Return the objects in the files, by their names."""
        sliced = self.stage == 3
        made: dict[str, Any] = {}
        for rank in range(self.ranks if sliced else 1):
            name = f"zero_pp_rank_{rank}_mp_rank_00" if sliced else "mp_rank_00"
            made[f"{name}_model_states.pt"] = self._model_states(rank)
        for rank in range(self.ranks):
            states = self._sliced(rank) if sliced else self._partitions(rank)
            states = {"zero_stage": self.stage, "partition_count": self.ranks} | states
            name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            made[name] = {"optimizer_state_dict": states | self.optimizer}
        return made

    def _model_states(self, rank: int) -> dict[str, Any]:
        sliced = self.stage == 3
        module = {
            name: array if name in self.buffers or not sliced else np.empty(0, array.dtype)
            for name, array in self.weights().items()
        }
        return {
            "module": OrderedDict(module),
            "buffer_names": list(self.buffers),
            "param_shapes": [
                OrderedDict((name, Size(array.shape)) for name, array in group.items())
                for group in self.groups
            ],
            "frozen_param_shapes": {name: Size(a.shape) for name, a in self.frozen.items()},
            "frozen_param_fragments": {
                name: self._slice(array, rank) if sliced else array
                for name, array in self.frozen.items()
            },
            "shared_params": dict(self.shared),
            "global_steps": self.step,
            **self.model,
        }

    def _slice(self, array: NDArray[Any], rank: int) -> NDArray[Any]:
        each = -(-array.size // self.ranks)
        return _padded(array.reshape(-1), each * self.ranks)[rank * each : (rank + 1) * each]

    def _sliced(self, rank: int) -> dict[str, Any]:
        flats = [
            np.concatenate([self._slice(array, rank) for array in group.values()])
            for group in self.groups
        ]
        state = {number: self._state(flat) for number, flat in enumerate(flats)}
        return {"fp32_flat_groups": flats, "optimizer_state_dict": {"state": state}}

    def _state(self, flat: NDArray[Any]) -> dict[str, Any]:
        made = {"step": np.array(float(self.step), np.float32)}
        return made | {name: flat + add for name, add in _MOMENTS.items()}

    def _partitions(self, rank: int) -> dict[str, Any]:
        partitions: list[NDArray[Any]] = []
        paddings: list[list[int]] = []
        state: dict[int, dict[str, Any]] = {}
        for group in self.groups:
            sizes = [_up(array.size, self.alignment) for array in group.values()]
            paddings.append(
                [size - array.size for size, array in zip(sizes, group.values(), strict=True)]
            )
            parts = [
                _padded(array.reshape(-1), size)
                for size, array in zip(sizes, group.values(), strict=True)
            ]
            flat = np.concatenate(parts)
            each = _up(flat.size, 2 * self.ranks) // self.ranks
            part = _padded(flat, each * self.ranks)[rank * each : (rank + 1) * each]
            state[len(partitions)] = self._state(part)
            if rank == self.ranks - 1:  # padding is cut from the last rank
                part = part[: max(0, flat.size - rank * each)]
            partitions.append(part)
        made: dict[str, Any] = {"single_partition_of_fp32_groups": partitions}
        if self.alignment > 1:
            made["param_alignment_paddings"] = paddings
        return made | {"base_optimizer_state": {"state": state}}
