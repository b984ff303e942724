"""What `convert` says that it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchzip.convert.planned import PlannedTensor


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What `convert` did, or with ``dry_run`` would do. ``lost`` names what the target cannot hold.

    ``target`` is the file that was written, or the index of the shards; ``files`` are all, and
    ``nbytes`` counts the bytes of all. ``refused`` is what torch's default loader will not take
    from a .pt: (path, reason). ``unused`` are rules that matched nothing. ``tied`` are names that
    a .safetensors does not have, each with the name that has the data of that tensor: that of an
    embedding rather than of a head, because this is where readers look. ``overflowed`` counts the
    elements of a tensor that its new dtype has no place for: finite ones that became infinite, NaN
    or the greatest number, infinities that became something else, and signs that float8_e8m0fnu
    does not have; a dry run does not know it. ``here`` are tensors that this process computes alone
    although there are workers, because what computes them cannot be pickled. ``copied`` are the
    files that are copied from beside the weights, and not among ``files``. ``taken`` says what
    ``weights`` has chosen. ``rows`` has one row for each of the ``tensors``, and ``file_nbytes``
    the size of each of the ``files``. ``dequantized`` has the weights that were quantized, each
    with its scheme. ``jobs`` is the number of processes of this computer that share the work, this
    one alone (1) if there is little of it. ``notes`` say what is odd about the source.
    """

    source: str
    target: str
    format: str
    tensors: int
    nbytes: int
    lost: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    files: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    tied: dict[str, str] = field(default_factory=dict)
    overflowed: dict[str, int] = field(default_factory=dict)
    here: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    taken: str = ""
    rows: tuple[PlannedTensor, ...] = field(default=(), repr=False)
    file_nbytes: tuple[int, ...] = field(default=(), repr=False)
    dequantized: dict[str, str] = field(default_factory=dict)
    jobs: int = 1
    notes: tuple[str, ...] = ()
