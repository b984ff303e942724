"""A row of the table of dtypes is all that a dtype needs, or says what else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.child_process import python
from torchzip import dtypes
from torchzip.tensors.casts import is_castable
from torchzip.tensors.numpy_dtypes import has_numpy_dtype

#: Rows that torch does not have, and what is done with tensors of them.
_ADDED = """
    _row("float99", 2, "float", "NoveltyStorage", None, None, 99, raw="uint16"),
    _row("float98", 1, "float"),
    _row("qint99", 1, "quantized", "QInt99Storage", per_byte=4),
"""
_USE = """
import io, tempfile, os
import numpy as np
import torchzip as tz
from torchzip.formats import pt2
from torchzip.tensors.script import storage_class

wide = tz.types.TypedArray(np.arange(6, dtype="u2").reshape(2, 3), "float99")
narrow = tz.types.TypedArray(np.arange(3, dtype="u1"), "float98")
packed = tz.types.QuantizedTensor(
    np.array([0b11100100, 1], "u1"), 0.5, 0, torch_dtype="qint99", shape=(5,)
)
tree = {"w": wide, "n": narrow, "q": packed, "d": tz.types.Dtype("float99"), "f": np.ones(2, "f4")}
with tempfile.TemporaryDirectory() as folder:
    path, other = (os.path.join(folder, name) for name in ("a.pt", "b.pt"))
    tz.save(tree, path)
    assert tz.tools.verify(path).torch_load == "accepts"
    # Nobody has said that it can be cast: it goes through a conversion as it is.
    tz.convert(path, other, dtype="bfloat16")
    for file in (path, other):
        made = tz.load(file)
        for name in "wn":
            assert made[name].torch_dtype == tree[name].torch_dtype
            assert made[name].array.tolist() == tree[name].array.tolist()
        assert made["d"] == tree["d"]
        assert made["q"].dequantize().tolist() == [0, 0.5, 1, 1.5, 0.5]
    assert made["f"].dtype == "bfloat16"
    refused = os.path.join(folder, "c.safetensors")
    for call, message in (
        (lambda: tz.convert(path, refused, dtype="float99"), "not to float99"),
        (lambda: tz.convert(path, refused, exclude="q"), "no dtype for torch."),
        (lambda: tz.tools.statistics(tz.lazy_load(path)["w"]), "no numbers of dtype float99"),
    ):
        try:
            call()
        except (ValueError, tz.UnsupportedError) as error:
            assert message in str(error), error
        else:
            raise AssertionError(message)
assert pt2.PT2[99].name == "float99"
assert storage_class(tz.dtypes.DTYPES["float98"]) == "Float98Storage"
"""


def test_adding_a_row_is_enough() -> None:
    """With a row more, its tensors are saved, read, converted and refused as any others."""
    source = Path(dtypes.__file__).read_text()
    assert source.count("\n_ROWS = [") == 1
    added = source.replace("\n_ROWS = [", f"\n_ROWS = [{_ADDED}")
    code = (
        "import sys, types, torchzip\n"
        "made = sys.modules['torchzip.dtypes'] = types.ModuleType('torchzip.dtypes')\n"
        f"torchzip.dtypes = made\nexec({added!r}, made.__dict__)\n{_USE}"
    )
    python("-c", code)


def test_rows_agree_with_themselves() -> None:
    """What a row needs beside itself is there: a type to cast with, a place in safetensors."""
    rows = dtypes.DTYPES.values()
    codes = [row.safetensors for row in rows if row.safetensors is not None]
    assert sorted(codes) == sorted(dtypes.SAFETENSORS_ORDER)
    numbers = [row.pt2 for row in rows if row.pt2 is not None]
    assert len(numbers) == len(set(numbers))
    for row in rows:
        assert np.dtype(row.raw).itemsize == row.itemsize or row.numpy, row.name
        assert not is_castable(row.name) or has_numpy_dtype(row.name), row.name
        assert row.per_byte == 1 or (row.kind, row.itemsize) == ("quantized", 1), row.name
