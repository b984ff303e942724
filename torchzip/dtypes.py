"""The dtypes of torch, one row each, with every spelling that a file may use.

Source: docs/format.md, section 10 (torch 2.13). A dtype with a storage class is
pickled with `_rebuild_tensor_v2` and a typed storage that counts elements; one
without uses `_rebuild_tensor_v3` and an `UntypedStorage` that counts bytes.
"""

from __future__ import annotations

from typing import NamedTuple


class DtypeRow(NamedTuple):
    """One torch dtype.

    ``numpy`` is the name of the numpy or ml_dtypes type with the same bits, or None. In that
    case ``raw`` is the numpy type that holds them. ``safetensors`` is the code in that
    format, ``safetensors_rank`` its rank in the order of the package's output.
    """

    name: str
    itemsize: int
    storage_class: str | None = None
    numpy: str | None = None
    raw: str = "uint8"
    safetensors: str | None = None
    safetensors_rank: int = -1
    kind: str = "other"  # float, complex, int, bool, quantized, other
    per_byte: int = 1  # the elements of a quantized dtype that share a byte


#: The package writes tensors by descending rank of their dtype, then by name
#: (safetensors 0.8; the order of its enum).
_SAFETENSORS_ORDER = (
    "BOOL F4 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ "
    "I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
).split()


def _row(
    name: str,
    itemsize: int,
    storage_class: str | None,
    numpy: str | None,
    safetensors: str | None,
    kind: str,
    raw: str = "uint8",
    per_byte: int = 1,
) -> DtypeRow:
    rank = _SAFETENSORS_ORDER.index(safetensors) if safetensors else -1
    return DtypeRow(name, itemsize, storage_class, numpy, raw, safetensors, rank, kind, per_byte)


_ROWS = [
    _row("float64", 8, "DoubleStorage", "float64", "F64", "float"),
    _row("float32", 4, "FloatStorage", "float32", "F32", "float"),
    _row("float16", 2, "HalfStorage", "float16", "F16", "float"),
    _row("bfloat16", 2, "BFloat16Storage", "bfloat16", "BF16", "float"),
    _row("int64", 8, "LongStorage", "int64", "I64", "int"),
    _row("int32", 4, "IntStorage", "int32", "I32", "int"),
    _row("int16", 2, "ShortStorage", "int16", "I16", "int"),
    _row("int8", 1, "CharStorage", "int8", "I8", "int"),
    _row("uint8", 1, "ByteStorage", "uint8", "U8", "int"),
    _row("bool", 1, "BoolStorage", "bool", "BOOL", "bool"),
    _row("complex128", 16, "ComplexDoubleStorage", "complex128", None, "complex"),
    _row("complex64", 8, "ComplexFloatStorage", "complex64", "C64", "complex"),
    _row("quint8", 1, "QUInt8Storage", None, None, "quantized"),
    _row("qint8", 1, "QInt8Storage", None, None, "quantized", raw="int8"),
    _row("qint32", 4, "QInt32Storage", None, None, "quantized", raw="int32"),
    _row("quint4x2", 1, "QUInt4x2Storage", None, None, "quantized", per_byte=2),
    _row("quint2x4", 1, "QUInt2x4Storage", None, None, "quantized", per_byte=4),
    _row("uint16", 2, None, "uint16", "U16", "int"),
    _row("uint32", 4, None, "uint32", "U32", "int"),
    _row("uint64", 8, None, "uint64", "U64", "int"),
    _row("complex32", 4, None, "complex32", None, "complex", raw="uint32"),  # in ml_dtypes 0.6
    _row("float8_e4m3fn", 1, None, "float8_e4m3fn", "F8_E4M3", "float"),
    _row("float8_e4m3fnuz", 1, None, "float8_e4m3fnuz", "F8_E4M3FNUZ", "float"),
    _row("float8_e5m2", 1, None, "float8_e5m2", "F8_E5M2", "float"),
    _row("float8_e5m2fnuz", 1, None, "float8_e5m2fnuz", "F8_E5M2FNUZ", "float"),
    _row("float8_e8m0fnu", 1, None, "float8_e8m0fnu", "F8_E8M0", "float"),
    _row("float4_e2m1fn_x2", 1, None, None, "F4", "other"),
    _row("bits8", 1, None, None, None, "other"),
    _row("bits1x8", 1, None, None, None, "other"),
    _row("bits2x4", 1, None, None, None, "other"),
    _row("bits4x2", 1, None, None, None, "other"),
    _row("bits16", 2, None, None, None, "other", raw="uint16"),
]

#: By torch's name: ``DTYPES["bfloat16"].itemsize``.
DTYPES: dict[str, DtypeRow] = {row.name: row for row in _ROWS}

#: By storage class: ``STORAGE_CLASSES["HalfStorage"].name``.
STORAGE_CLASSES: dict[str, DtypeRow] = {
    row.storage_class: row for row in _ROWS if row.storage_class is not None
}

#: By safetensors code: ``SAFETENSORS["BF16"].name``.
SAFETENSORS: dict[str, DtypeRow] = {
    row.safetensors: row for row in _ROWS if row.safetensors is not None
}

#: Dtypes that exist by name only: no tensor in a file can have them.
NAME_ONLY = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))

#: The schemes of quantized tensors, by torch's names.
QSCHEMES = (
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
    "per_channel_symmetric", "per_channel_affine_float_qparams",
)  # fmt: skip

#: Aliases of these dtypes that users may type.
ALIASES = {
    "double": "float64",
    "float": "float32",
    "half": "float16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "cdouble": "complex128",
    "cfloat": "complex64",
    "chalf": "complex32",
}
