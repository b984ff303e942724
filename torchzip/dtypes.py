"""The dtypes of torch, one row each, with every spelling that a file may use.

Source: docs/format.md, section 10 (torch 2.13). A dtype with a storage class is
pickled with `_rebuild_tensor_v2` and a typed storage that counts elements; one
without uses `_rebuild_tensor_v3` and an `UntypedStorage` that counts bytes.
"""

from __future__ import annotations

from typing import NamedTuple


class DtypeRow(NamedTuple):
    """One torch dtype. What a row leaves out is as for a dtype that only torch has."""

    name: str
    itemsize: int
    #: ``float``, ``complex``, ``int``, ``bool``, ``quantized`` or ``other``.
    kind: str = "other"
    storage_class: str | None = None
    #: The numpy or ml_dtypes type of the same bits and meaning.
    numpy: str | None = None
    #: The code in safetensors, which must also have a place in `SAFETENSORS_ORDER`.
    safetensors: str | None = None
    #: The number in the configs of a ``.pt2``; TorchScript has others.
    pt2: int | None = None
    #: The numpy type that carries the bits where there is no ``numpy``.
    raw: str = "uint8"
    #: Whether conversions cast it and to it. Such a dtype needs a ``numpy`` type, and the tests of
    #: `tensors.casts` must show that torch's casts give the same bits.
    castable: bool = False
    #: The elements that share a byte: torch's shape counts the elements.
    per_byte: int = 1
    #: The elements of safetensors in one of torch's: the last axis there is so many times longer.
    safetensors_per_element: int = 1
    #: What TorchScript calls the storage class, up to its ending, if not by its name in torch.
    script_name: str | None = None
    #: Whether it has no signs: it is of the scales of codes, and never of the codes.
    is_scale: bool = False
    #: The type in the header of a .npy file, without its byte order.
    npy: str | None = None
    #: The number of the type in GGUF (``enum ggml_type``).
    gguf: int | None = None

    @property
    def has_numbers(self) -> bool:
        """Whether numpy can calculate with its elements."""
        return self.castable or self.kind in ("int", "bool", "complex")

    @property
    def safetensors_rank(self) -> int:
        """The place in the order of the safetensors package's output, -1 without a code."""
        return -1 if self.safetensors is None else SAFETENSORS_ORDER.index(self.safetensors)


#: The package writes tensors by descending rank of their dtype, then by name
#: (safetensors 0.8; the order of its enum).
SAFETENSORS_ORDER = (
    "BOOL F4 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ "
    "I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64"
).split()

_row = DtypeRow
_ROWS = [
    _row(
        "float64", 8, "float", "DoubleStorage", "float64", "F64", 8,
        castable=True, npy="f8", gguf=28,
    ),
    _row(
        "float32", 4, "float", "FloatStorage", "float32", "F32", 7,
        castable=True, npy="f4", gguf=0,
    ),
    _row(
        "float16", 2, "float", "HalfStorage", "float16", "F16", 6,
        castable=True, npy="f2", gguf=1,
    ),
    _row("bfloat16", 2, "float", "BFloat16Storage", "bfloat16", "BF16", 13, castable=True, gguf=30),
    _row("int64", 8, "int", "LongStorage", "int64", "I64", 5, npy="i8", gguf=27),
    _row("int32", 4, "int", "IntStorage", "int32", "I32", 4, npy="i4", gguf=26),
    _row("int16", 2, "int", "ShortStorage", "int16", "I16", 3, npy="i2", gguf=25),
    _row("int8", 1, "int", "CharStorage", "int8", "I8", 2, npy="i1", gguf=24),
    _row("uint8", 1, "int", "ByteStorage", "uint8", "U8", 1, npy="u1"),
    _row("bool", 1, "bool", "BoolStorage", "bool", "BOOL", 12, npy="b1"),
    _row("complex128", 16, "complex", "ComplexDoubleStorage", "complex128", None, 11, npy="c16"),
    _row("complex64", 8, "complex", "ComplexFloatStorage", "complex64", "C64", 10, npy="c8"),
    _row("quint8", 1, "quantized", "QUInt8Storage"),
    _row("qint8", 1, "quantized", "QInt8Storage", raw="int8"),
    _row("qint32", 4, "quantized", "QInt32Storage", raw="int32"),
    _row("quint4x2", 1, "quantized", "QUInt4x2Storage", per_byte=2),
    _row("quint2x4", 1, "quantized", "QUInt2x4Storage", per_byte=4),
    _row("uint16", 2, "int", None, "uint16", "U16", 28, npy="u2"),
    _row("uint32", 4, "int", None, "uint32", "U32", 34, npy="u4"),
    _row("uint64", 8, "int", None, "uint64", "U64", 35, npy="u8"),
    _row(  # ml_dtypes has it from 0.6
        "complex32", 4, "complex", None, "complex32", None, 9, "uint32", script_name="ComplexHalf"
    ),
    _row("float8_e4m3fn", 1, "float", None, "float8_e4m3fn", "F8_E4M3", 29, castable=True),
    _row("float8_e4m3fnuz", 1, "float", None, "float8_e4m3fnuz", "F8_E4M3FNUZ", 31, castable=True),
    _row("float8_e5m2", 1, "float", None, "float8_e5m2", "F8_E5M2", 30, castable=True),
    _row("float8_e5m2fnuz", 1, "float", None, "float8_e5m2fnuz", "F8_E5M2FNUZ", 32, castable=True),
    _row(
        "float8_e8m0fnu", 1, "float", None, "float8_e8m0fnu", "F8_E8M0", 33,
        castable=True, is_scale=True,
    ),
    _row("float4_e2m1fn_x2", 1, safetensors="F4", safetensors_per_element=2),
    _row("bits8", 1),
    _row("bits1x8", 1),
    _row("bits2x4", 1),
    _row("bits4x2", 1),
    _row("bits16", 2, raw="uint16"),
]  # fmt: skip

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

#: By the type of a .npy file: ``NPY["f2"].name``.
NPY: dict[str, DtypeRow] = {row.npy: row for row in _ROWS if row.npy is not None}

#: By the number in GGUF: ``GGUF[30].name``.
GGUF: dict[int, DtypeRow] = {row.gguf: row for row in _ROWS if row.gguf is not None}

#: By the number in the configs of a ``.pt2``: ``PT2[13].name``.
PT2: dict[int, DtypeRow] = {row.pt2: row for row in _ROWS if row.pt2 is not None}


class BlockRow(NamedTuple):
    """A type of GGUF whose numbers are codes: each block of them shares a scale."""

    name: str
    #: The number of the type in GGUF.
    gguf: int
    #: The numbers in a block, and its bytes.
    elements: int
    nbytes: int


#: By name, as rules for dtypes and listings have it: ``BLOCKS["q8_0"].nbytes``. Which are computed
#: is in `tensors.gguf_blocks`.
BLOCKS: dict[str, BlockRow] = {
    row.name: row
    for row in (
        BlockRow("q8_0", 8, 32, 34), BlockRow("q4_0", 2, 32, 18), BlockRow("q4_1", 3, 32, 20),
        BlockRow("q5_0", 6, 32, 22), BlockRow("q5_1", 7, 32, 24), BlockRow("q2_k", 10, 256, 84),
        BlockRow("q3_k", 11, 256, 110), BlockRow("q4_k", 12, 256, 144),
        BlockRow("q5_k", 13, 256, 176), BlockRow("q6_k", 14, 256, 210),
        BlockRow("q8_k", 15, 256, 292), BlockRow("iq2_xxs", 16, 256, 66),
        BlockRow("iq2_xs", 17, 256, 74), BlockRow("iq3_xxs", 18, 256, 98),
        BlockRow("iq1_s", 19, 256, 50), BlockRow("iq4_nl", 20, 32, 18),
        BlockRow("iq3_s", 21, 256, 110), BlockRow("iq2_s", 22, 256, 82),
        BlockRow("iq4_xs", 23, 256, 136), BlockRow("iq1_m", 29, 256, 56),
        BlockRow("tq1_0", 34, 256, 54), BlockRow("tq2_0", 35, 256, 66),
        BlockRow("mxfp4", 39, 32, 17),
    )
}  # fmt: skip

#: Dtypes that exist by name only: no tensor in a file can have them.
NAME_ONLY = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))

#: The schemes of quantized tensors, by torch's names.
QSCHEMES = (
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
    "per_channel_symmetric", "per_channel_affine_float_qparams",
)  # fmt: skip

#: Aliases of these dtypes that users may type.
ALIASES = {
    "double": "float64", "float": "float32", "half": "float16", "bf16": "bfloat16",
    "fp16": "float16", "fp32": "float32", "fp64": "float64", "long": "int64", "int": "int32",
    "short": "int16", "cdouble": "complex128", "cfloat": "complex64", "chalf": "complex32",
}  # fmt: skip
