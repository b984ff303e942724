"""`convert`: a plan is made and carried out."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.container.hub_names import safetensors_name
from torchzip.convert.companions import companions as find_companions
from torchzip.convert.mapped import Map, MappedTensors
from torchzip.convert.meter import Progress
from torchzip.convert.overflow import sentence
from torchzip.convert.pipeline import convert_pipeline, is_pipeline
from torchzip.convert.plan import make_plan
from torchzip.convert.report import ConvertReport
from torchzip.convert.rules import DtypeRules, Globs, RenameRules, Rules
from torchzip.convert.run import computed_here, paying_jobs, run
from torchzip.convert.sources import Source, opened
from torchzip.convert.surgery import Surgery
from torchzip.convert.targets import Target, parse_size, parse_target
from torchzip.convert.tasks import workers
from torchzip.errors import EnoughMemory, ErrorPlace
from torchzip.executors import as_executor
from torchzip.files.folder import Folder
from torchzip.files.location import StorageOptions, located
from torchzip.files.opening import is_folder, open_folder
from torchzip.formats.base import collector_paused
from torchzip.limits import Limits


def convert(
    src: Source,
    dst: str | os.PathLike[str],
    *,
    dtype: DtypeRules = None,
    rename: RenameRules = None,
    include: Globs = None,
    exclude: Globs = None,
    map: Map | None = None,
    weights: bool = False,
    ema: bool = False,
    strip_wrappers: bool = False,
    untie: bool = False,
    pack: bool = False,
    stack: Iterable[tuple[str, str]] | None = None,
    unstack: Iterable[tuple[str, str]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_shard_size: int | str | None = None,
    companions: bool = True,
    jobs: int | Literal["auto"] | None = None,
    executor: Any = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    verify: bool = False,
    dequantize: bool = False,
    dry_run: bool = False,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> ConvertReport:
    """Convert a checkpoint to ``dst``, whose suffix says which format, or to shards.

    The suffixes are .pt .pth .bin .ckpt .th .pth.tar (a zip as ``torch.save`` writes it),
    .safetensors .sft, .gguf and .npz.

    ``src`` is a path, which may be that of a directory as in `lazy_load`, or a binary file object;
    its format is recognised by its content. It may also be a `Checkpoint` that is open, and stays
    so, or a mapping from names to tensors: arrays, and LazyTensors of any number of checkpoints,
    computed ones (`torchzip.lazy`) as well. ``dst`` may be a directory, which gets a
    ``model.safetensors``, or an ``*.index.json``, which gets shards beside it. It appears complete
    or not at all, and may be the source itself.

    The rules look at the flat names of the source, or at those that ``map`` gives:

    * ``dtype``: a torch dtype's name for all floating tensors, or a dict or a list of pairs from
      globs to dtypes, of which the first match wins; others keep theirs. Dtypes of numpy, ml_dtypes
      and torch do as well as names. Rounded as torch's ``.to()`` rounds. For a
      .gguf ``q8_0`` and ``q4_0`` are dtypes too; they are for tensors of two dimensions or more
      whose rows have a multiple of 32 numbers, and ``lost`` names those that stay what they are.
    * ``include``, ``exclude``: globs; only tensors that match one of the first, if there are any,
      and none of the second are taken. ``exclude`` also takes the names of what they are in:
      ``optimizer`` for all of ``optimizer.*``. What an optimizer keeps of the weights of a ZeRO
      directory is there if a glob of ``include`` begins with ``optimizer.``, as in
      ``["*", "optimizer.*"]``.
    * ``rename``: a dict of names, a list of ``(regex, replacement)`` that are all applied in turn
      as by `re.sub`, or a function ``name -> name``; None leaves a tensor out.
    * ``map``: a function ``(name, LazyTensor) -> iterable of (name, array or LazyTensor)`` for what
      rules cannot say, called for each dense tensor in order. LazyTensors that it gives, views and
      computed ones, are read when they are written. Arrays are kept on disk beside ``dst`` until
      the plan is known.

    Seven steps come before the rules, which see the names that they give:

    * ``weights``: the model's state dict out of a training checkpoint, without the way to it in
      names, and nothing else; ``taken`` of the report says which it is.
    * ``ema``: the same with the averaged tensors in place of the model's, where both exist.
    * ``strip_wrappers``: names without what DDP, torch.compile, FSDP and others put into them
      (``module.``, ``_orig_mod.``, ``_fsdp_wrapped_module.``, ...), at every level.
    * ``untie``: each name gets data of its own.
    * ``pack``: of a storage only what its tensors reach is written, from the first byte to the
      last; views and ties stay. Other formats than the zip never write more.
    * ``stack``: pairs such as ``("experts.{i}.w", "experts.w")``: tensors that are numbered from 0
      on become one, with a new first axis; ``unstack``: pairs the other way round take one apart. A
      star stands for anything but dots, and for the same in both names.

    ``metadata`` is put beside that which the source has: strings by their keys into a .safetensors,
    and into a .gguf also bools, numbers and lists of one of these (a plain int becomes a u32, one
    in a list an i32; scalars and arrays of numpy keep their type). None takes a key away.

    In a zip the object around the tensors is kept as long as the names can be changed in its
    dicts; otherwise, and with ``map``, the output is one dict from names to tensors, and the
    ``lost`` of the report lists what else there was.

    ``max_shard_size`` (``"5GB"``, decimal as on the hub, or bytes) writes shards with an index
    if the tensors have more bytes together. ``jobs=N`` shares the work among N processes, and
    ``jobs="auto"`` among as many as pay: one for each core, at most four, and one alone for what is
    soon done or only copied; the bytes are the same. ``executor`` shares it among those of a
    `concurrent.futures.Executor`, of a ``Client`` of dask, or of what `torchzip.executors` returns.
    ``progress`` is called with the bytes written so far and in all.

    From a directory to a directory, the small files beside the weights are copied (those called
    ``*.json``, ``*.txt``, ``*.model``, ``*.md``, ``*.jinja`` and ``*.tiktoken``, of up to 100 MB):
    config and tokenizer, so that the new directory loads as the old one did; ``companions=False``
    leaves them out. Of a pipeline of diffusers (a directory with a ``model_index.json``) each
    component is converted in its place.

    ``src`` and ``dst`` may be URLs (docs/remote.md), with ``storage_options`` for both. In a store
    there is no temporary file: each file is uploaded while the source is read, and to an executor
    each file is one task. Shards appear one by one, and the index last.

    Storages that go from zip to zip unchanged take their CRC along; others are compared with the
    CRC of the source, where all of the storage is read. ``verify=True`` compares the CRC of every
    storage. ``limits`` are the bounds on what the source may ask for.

    ``dequantize=True`` writes plain weights in the place of quantized ones, as `lazy.dequantized`
    makes them; the rules and ``map`` get the plain ones. A loader must not find the
    ``quantization_config`` of the source beside them.

    ``dry_run=True`` gives the report, to the byte, and writes nothing: only the structure of the
    source is read, what is at ``dst`` does not matter, and ``progress`` is not called. What ``map``
    makes is kept in the folder for temporary files until then.

    The memory of each process is a constant, whatever the size of a tensor or of the file. Two
    things need more, one tensor at a time: a strided tensor in a deflated record, and what ``map``
    makes.

    Warns
    -----
    UserWarning
        If a rule matches nothing, if tensors are codes of quantized weights, and if elements are
        out of the range of their new dtype.

    Raises
    ------
    FileExistsError
        If a file is there already and ``overwrite`` is false.
    ValueError
        If a rule is not valid, or two tensors would have one name.
    TorchZipError, OSError
        If the source cannot be read, or the output cannot be written.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> save({"weight": np.ones((2, 2), "float32")}, os.path.join(folder, "a.pt"))
    >>> report = convert(
    ...     os.path.join(folder, "a.pt"), os.path.join(folder, "a.safetensors"), dtype="bfloat16"
    ... )
    >>> report.tensors, report.lost
    (1, ())
    """
    options = dict(locals())  # before there are others
    src, dst = located(src, storage_options), located(dst, storage_options)
    if isinstance(src, str | os.PathLike) and is_pipeline(src):
        for name in ("src", "dst", "storage_options"):
            del options[name]
        return convert_pipeline(convert, src, dst, **options)
    around = _folder_around(src, dst) if companions else None
    target = parse_target(dst, safetensors_name(around.names if around is not None else ()))
    surgery = Surgery(
        weights=weights, ema=ema, strip_wrappers=strip_wrappers, untie=untie, pack=pack,
        stack=stack, unstack=unstack,
    )  # fmt: skip
    rules = Rules(
        dtype=dtype, rename=rename, include=include, exclude=exclude, blocks=target.output.blocks
    )
    if metadata is not None:
        target.output.check_metadata(metadata)  # before a long look at the source
    max_shard_nbytes = None if max_shard_size is None else parse_size(max_shard_size)
    if jobs is not None and executor is not None:
        raise ValueError("jobs makes a pool of its own; give it or an executor, not both")
    is_auto = isinstance(jobs, str) and jobs == "auto"
    if not is_auto and jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int)):
        raise TypeError(f"jobs is a number of processes or 'auto', not {jobs!r}")
    if isinstance(jobs, int) and jobs < 1:
        raise ValueError(f"jobs={jobs}; 1 or more processes were expected")
    executor = None if executor is None else as_executor(executor)
    for option, function in (("map", map), ("progress", progress)):
        if function is not None and not callable(function):
            raise TypeError(f"{option} must be a function, not {type(function).__name__}")
    if not overwrite and not dry_run:
        target.place.refuse_existing(target.path)  # before a long look at the source
    with (
        EnoughMemory(),
        opened(src, limits, optimizer=rules.asks_for_optimizer) as checkpoint,
        contextlib.ExitStack() as until_done,
    ):
        if not dry_run and target.makes_folder:
            until_done.enter_context(target.place.folder_of(target.path))
        mapping = None
        if map is not None:
            folder = None if dry_run else target.place.scratch(target.path)
            mapping = MappedTensors(map, folder)
            until_done.callback(mapping.close)
        several = isinstance(src, Mapping) and not isinstance(src, Checkpoint)
        with ErrorPlace(path=None if several else checkpoint.path):
            with collector_paused(map is None):  # all of a plan stays; a function may make cycles
                plan = make_plan(
                    checkpoint, target, rules, max_shard_nbytes=max_shard_nbytes, mapping=mapping,
                    metadata=metadata, surgery=surgery, dequantize=dequantize,
                )  # fmt: skip
            files = plan.sizes
            if around is not None:
                until_done.callback(around.close)
                plan.companions, left_out = find_companions(
                    around, os.path.dirname(target.path), is_dequantized=bool(plan.dequantized)
                )
                plan.lost += left_out
            copied = tuple(each.path for each in plan.companions)
            held = [] if isinstance(src, Mapping) else [checkpoint]
            replaced = [] if dry_run else _make_way(target, [*files, *copied], overwrite)
            for line in plan.warnings:
                warnings.warn(line, UserWarning, stacklevel=2)
            overflowed: dict[str, int] = {}
            processes = paying_jobs(plan) if jobs == "auto" else jobs or 1
            here = computed_here(plan, executor) if executor is not None or processes > 1 else ()
            if plan.nbytes < _WORTH_NBYTES:
                processes = 1

            def told(counts: dict[str, int]) -> None:
                overflowed.update(counts)
                if counts:
                    warnings.warn(sentence(counts, plan), UserWarning, stacklevel=4)

            if not dry_run:
                if verify:
                    checkpoint.container.check_parts()
                if processes > 1:
                    executor = until_done.enter_context(workers(processes))
                run(
                    plan, executor=executor, verify=verify, progress=progress, overflowed=told,
                    overwrite=overwrite, opened=held,
                )  # fmt: skip
        for path in replaced:
            target.place.remove(path)
    source = os.fsdecode(src) if isinstance(src, str | os.PathLike) else checkpoint.path
    return ConvertReport(
        source, [*files][-1], plan.output.format, len(plan.tensors), plan.nbytes,
        tuple(plan.lost), tuple(plan.refused), tuple(files), tuple(plan.unused),
        plan.tied, overflowed, here, copied, plan.taken,
        tuple(plan.tensors), tuple(files.values()), plan.dequantized,
        processes, checkpoint.container.notes,
    )  # fmt: skip


def _folder_around(src: Source, dst: str | os.PathLike[str]) -> Folder | None:
    """Return the source as a folder whose small files are copied; None if there are none to copy.

    Both must be folders, and not one and the same.
    """
    if not isinstance(src, str | os.PathLike) or not is_folder(src):
        return None
    path = os.fsdecode(dst)
    if not (is_folder(dst) or path.endswith(("/", os.sep))):
        return None
    if os.path.realpath(path) == os.path.realpath(os.fsdecode(src)):
        return None
    return open_folder(src)


#: Workers cost some tens of milliseconds; less than this is written sooner.
_WORTH_NBYTES = 64 << 20


def _make_way(target: Target, files: Collection[str], overwrite: bool) -> list[str]:
    """Refuse what is in the way of the files; return what goes when they are there.

    That is a whole file of the name that has shards now: readers would take it for the checkpoint,
    with its old values. Where they look for the index of older shards, a whole file is refused.
    """
    place = target.place
    if not overwrite:
        for file in files:
            place.refuse_existing(file)
    index = target.index_path
    if target.makes_folder and index not in files and place.exists(index):
        raise OSError(
            errno.ENOTEMPTY,
            "The index of older shards would hide the new file; remove it and its shards first",
            index,
        )
    path = target.path
    if path in files or not place.exists(path):
        return []
    place.check_removable(path, files)
    return [path]
