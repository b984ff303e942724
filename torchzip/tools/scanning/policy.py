"""Which names outside torch's own list somebody accepts: globs, one a line.

A line such as ``argparse.Namespace`` or ``numpy.*`` allows names; what follows a ``#`` is a
comment, and ``preset:lightning`` stands for the lines of a preset. Nothing that runs a program,
opens a file or imports a module belongs into one: those of the presets are classes of settings and
tensors.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Iterable, Sequence

#: What checkpoints of these packages name beside tensors. Each is data alone.
PRESETS: dict[str, Sequence[str]] = {
    "lightning": (
        "argparse.Namespace", "collections.defaultdict", "pathlib.PosixPath", "pathlib.Path",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "omegaconf.base.*", "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
        "omegaconf.nodes.AnyNode", "builtins.dict", "builtins.list", "builtins.int", "typing.Any",
    ),
    "transformers-args": (
        "transformers.training_args.*", "transformers.trainer_utils.*",
        "transformers.training_args_seq2seq.*", "transformers.trainer_pt_utils.AcceleratorConfig",
        "accelerate.state.PartialState", "accelerate.utils.dataclasses.*",
    ),
    "deepspeed": (
        "deepspeed.runtime.fp16.loss_scaler.*", "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address", "argparse.Namespace",
    ),
    "torchao": ("torchao.*",),
    "torchscript": ("__torch__.*", "torch.jit._pickle.*"),  # classes that are in the archive
    "dtensor": (
        "torch.distributed.tensor.*", "torch.distributed._tensor.*",
        "torch.distributed.device_mesh.*", "torch.distributed.checkpoint.metadata.*",
    ),
    "numpy": (
        "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar", "numpy.random.*",
    ),
}  # fmt: skip
_PRESET = "preset:"


class Policy:
    """The names that somebody allows beside those that torch accepts by default.

    Raises
    ------
    ValueError
        If a preset has no such name.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self.globs: list[str] = []
        for line in lines:
            text = line.partition("#")[0].strip()
            if text.startswith(_PRESET):
                self.globs += _preset(text.removeprefix(_PRESET).strip())
            elif text:
                self.globs.append(text)

    def allows(self, name: str) -> bool:
        """Return whether a name, ``module.name``, is one of them."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in self.globs)


def parse_policy(allow: str | os.PathLike[str] | Iterable[str] | None) -> Policy:
    """Return the policy of a preset's name, of the path of a file, or of lines.

    >>> parse_policy("deepspeed").allows("argparse.Namespace"), parse_policy(["a.*"]).allows("b.c")
    (True, False)
    """
    if allow is None:
        return Policy()
    if isinstance(allow, str) and allow in PRESETS:
        return Policy([_PRESET + allow])
    if isinstance(allow, str | os.PathLike):
        try:
            file = open(allow, encoding="utf-8")  # noqa: SIM115
        except FileNotFoundError:
            what = f"Neither a file nor a preset, which are {', '.join(PRESETS)}"
            raise FileNotFoundError(errno.ENOENT, what, os.fsdecode(allow)) from None
        with file:
            return Policy(file)
    return Policy(allow)


def preset_for(names: Iterable[str]) -> str | None:
    """Return the first preset that allows all of some names; None if there is none.

    >>> preset_for(["argparse.Namespace"]), preset_for(["os.system"])
    ('lightning', None)
    """
    wanted = set(names)
    return next((each for each in PRESETS if all(map(parse_policy(each).allows, wanted))), None)


def _preset(name: str) -> Sequence[str]:
    if name not in PRESETS:
        raise ValueError(f"{name!r} is not a preset; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
