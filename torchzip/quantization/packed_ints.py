"""Ints of few bits, packed into words of int32: compressed-tensors, GPTQ and AWQ.

==================  ========================  ======================================================
                    codes                     beside them
==================  ========================  ======================================================
compressed-tensors  ``weight_packed``         ``weight_scale`` [rows, groups], ``weight_shape``,
(pack-quantized)    [rows, words]             ``weight_zero_point`` packed along its first axis,
                                              ``weight_g_idx``, the group of each column
GPTQ                ``qweight``               ``scales`` [groups, out], ``qzeros``
                    [words, out]              [groups, words], ``g_idx`` [in]
AWQ (gemm)          ``qweight``               ``scales`` [groups, out], ``qzeros``
                    [in, words]               [groups, words]
==================  ========================  ======================================================

A code is the next ``bits`` of the words, little end first; it may go on in the next word. In AWQ
the eight nibbles of a word are columns 0, 2, 4, 6, 1, 3, 5, 7 of eight. The weight is
``(code - zero point) * scale``; without zero points, compressed-tensors subtracts half the range.
GPTQ keeps a zero point less 1, unless ``checkpoint_format`` is ``gptq_v2``. The weights of GPTQ and
AWQ are transposed to [out, in], and have the dtype of their scales.
"""

from __future__ import annotations

from torchzip.errors import FormatError, UnsupportedError, shown
from torchzip.quantization.arithmetic import Numbers, Part, check_dtype, misfit, of_each
from torchzip.quantization.scheme import Found, Plain, Scheme, read_small
from torchzip.quantization.words import Packed, grouped, packed_rows
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import broadcast_spec

#: Where the nibble of each of eight columns of AWQ is in its word.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_GPTQ_FORMATS = {"": 1, "gptq": 1, "gptq_v2": 0}


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _compressed(found: Found) -> Plain:
    codes, scale, shape = found.codes, found.parts["_scale"], found.parts["_shape"]
    check_dtype(scale, codes, "float")
    check_dtype(shape, codes, "int")
    told = found.config.weights_of(found.module)
    bits = found.config.number("num_bits", among=told)
    text = f"int{bits}" if bits else "packed ints"
    groups = scale.shape[-1] if scale.shape else 1
    return Plain(
        f"{text}, one scale a row" if groups == 1 else f"{text}, {groups} groups a row",
        "bfloat16",
        lambda: _compressed_weight(found, bits),
    )


def _compressed_weight(found: Found, bits: int | None) -> TensorSpec:
    codes, scale, held = found.codes, found.parts["_scale"], found.parts["_shape"]
    shape = tuple(int(size) for size in read_small(held).reshape(-1))
    if len(shape) < 2 or shape[:-1] != codes.shape[:-1]:
        raise misfit(held, codes, f"a shape that begins with {list(codes.shape[:-1])}; it has "
                     f"{list(shape)}, and that")  # fmt: skip
    columns = shape[-1]
    if bits is None:
        fits = [each for each in range(1, 9) if _words(columns, each) == codes.shape[-1]]
        if len(fits) > 1 and codes.spec.numel:
            raise FormatError(
                f"{codes} may be rows of {columns:,} codes of {' or '.join(map(str, fits))} bits; "
                "the num_bits that says which is missing. It is looked for in the "
                "quantization_config of the config.json beside the weights"
            )
        bits = fits[0] if fits else 0
    if not 1 <= bits <= 8 or _words(columns, bits) != codes.shape[-1]:
        raise misfit(codes, held, f"{_words(columns, bits or 4):,} words a row")
    zero, index = found.parts.get("_zero_point"), found.parts.get("_g_idx")
    if scale.spec.numel == 1:
        scale = _spread(scale, (*shape[:-1], 1))
        if zero is not None and zero.spec.numel == 1 and zero.dtype != "int32":
            zero = _spread(zero, (*shape[:-1], 1))
    if len(shape) == 2:
        return _compressed_matrix(codes, scale, zero, index, bits, columns)
    for each in (scale, zero):
        if each is not None and (len(each.shape), each.shape[:-2]) != (len(shape), shape[:-2]):
            raise misfit(each, codes, f"{list(shape[:-2])} before the last two axes")
    return of_each(
        lambda codes, scale, zero: _compressed_matrix(codes, scale, zero, index, bits, columns),
        "bfloat16", shape, codes, scale, zero,
    )  # fmt: skip


def _spread(part: Part, shape: tuple[int, ...]) -> Part:
    return Part(part.name, broadcast_spec(part.reshaped(*(1,) * len(shape)).spec, shape))


def _compressed_matrix(
    codes: Part, scale: Part, zero: Part | None, index: Part | None, bits: int, columns: int
) -> TensorSpec:
    rows = codes.shape[0]
    offset = 1 << (bits - 1)
    if zero is not None and zero.dtype == "int32":
        if zero.shape != (_words(rows, bits), scale.shape[-1]):
            raise misfit(zero, codes, f"{[_words(rows, bits), scale.shape[-1]]}")
        zero = packed_rows(zero, bits, rows, offset=offset)
    return grouped(
        codes, scale, "bfloat16", Packed(bits, columns, offset), size=None, zero=zero, index=index
    )


def _gptq_or_awq(found: Found) -> Plain:
    """Tell by the shapes along which axis the codes are packed."""
    codes, scale, zeros = found.codes, found.parts["scales"], found.parts["qzeros"]
    check_dtype(scale, codes, "float")
    check_dtype(zeros, codes, "int32")
    if any(len(each.shape) != 2 for each in (codes, scale, zeros)):
        raise misfit(codes, scale, "a matrix")
    groups, out = scale.shape
    if zeros.shape[0] != groups or not out or zeros.shape[1] * 32 % out:
        raise misfit(zeros, scale, f"a row of words for each of {groups:,} groups")
    bits = zeros.shape[1] * 32 // out
    if not 1 <= bits <= 8:
        raise misfit(zeros, scale, "codes of 1 to 8 bits")
    told = found.config.number("bits", "w_bit")
    if told is not None and told != bits:
        raise misfit(zeros, scale, f"codes of {told} bits, as the config says,")
    if codes.shape[1] == out and codes.shape[0] * 32 % bits == 0:
        return _gptq(found, bits)
    if codes.shape[1] == zeros.shape[1]:
        return _awq(found, bits)
    raise misfit(codes, scale, f"{out:,} or {zeros.shape[1]:,} columns")


def _plain(name: str, spec: TensorSpec, bits: int, groups: int) -> Plain:
    inside = f"groups of {spec.shape[1] // groups}" if groups > 1 else "one scale a row"
    return Plain(f"{name} int{bits}, {inside}", spec.torch_dtype, lambda: spec)


def _gptq(found: Found, bits: int) -> Plain:
    codes, scale, zeros = found.codes, found.parts["scales"], found.parts["qzeros"]
    layout = str(found.config.values.get("checkpoint_format") or "")
    if layout not in _GPTQ_FORMATS:
        raise UnsupportedError(
            f"{codes} with {scale}: the checkpoint_format {shown(layout)} of GPTQ; one of "
            f"{', '.join(filter(None, _GPTQ_FORMATS))} was expected"
        )
    groups, out = scale.shape
    zero = packed_rows(zeros.permuted(1, 0), bits, out, offset=-_GPTQ_FORMATS[layout])
    columns = codes.shape[0] * 32 // bits
    size = found.config.number("group_size")
    if size is None or -(-columns // size) != groups:
        size = None
    index = found.parts.get("g_idx")
    spec = grouped(
        codes.permuted(1, 0), scale.permuted(1, 0), scale.dtype, Packed(bits, columns), size=size,
        zero=zero, index=index if index is not None and index.spec.numel else None,
    )  # fmt: skip
    return _plain("gptq", spec, bits, groups)


def _awq(found: Found, bits: int) -> Plain:
    codes, scale, zeros = found.codes, found.parts["scales"], found.parts["qzeros"]
    layout = str(found.config.values.get("version") or "gemm").lower()
    if layout != "gemm" or bits != 4:
        raise UnsupportedError(
            f"{codes} with {scale}: AWQ of {bits} bits in the layout {shown(layout)}; 4 bits in "
            "the layout gemm were expected"
        )
    groups, out = scale.shape
    number, zero = (
        packed_rows(each.permuted(1, 0), bits, out, order=_AWQ_ORDER) for each in (codes, zeros)
    )
    spec = grouped(number, scale.permuted(1, 0), scale.dtype, Numbers(), size=None, zero=zero)
    return _plain("awq", spec, bits, groups)


SCHEMES = (
    Scheme(
        "_packed", ("int32",), ("_scale", "_shape"), _compressed,
        may_have=("_zero_point", "_g_idx"),
    ),
    Scheme(
        "qweight", ("int32",), ("scales", "qzeros"), _gptq_or_awq, may_have=("g_idx",),
        weight="weight",
    ),
)  # fmt: skip
