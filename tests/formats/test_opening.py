"""What `opening` knows of formats whose modules it imports when a file has them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from torchzip.container.hub_names import INDEX_SUFFIX
from torchzip.formats import opening, pt2
from torchzip.formats.dcp import METADATA_NAME


def test_records_that_formats_are_told_by() -> None:
    """`opening` knows the names without the modules of the formats."""
    assert pt2.Pt2Container.needed_record == opening._PT2
    assert pt2.OldPt2Container.needed_record == opening._OLD_PT2
    assert INDEX_SUFFIX.endswith(opening._OF_DIRECTORIES)
    assert METADATA_NAME in opening._OF_DIRECTORIES


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    """What `convert` makes of a directory, and what the hub has, is read by its name."""
    model, folder = tmp_path / "model.pt", tmp_path / "hub"
    tz.save({"weight": np.ones(3, np.float32)}, model)
    tz.convert(model, f"{folder}/")
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"no checkpoint")
    with tz.lazy_load(folder) as checkpoint:
        assert (checkpoint.format, checkpoint.path) == (
            "safetensors", str(folder / "model.safetensors"),
        )  # fmt: skip
    assert tz.convert(folder, folder, dtype="float16", overwrite=True).tensors == 1
    assert tz.load(folder)["weight"].dtype == np.float16
    os.rename(model, folder / "pytorch_model.bin")
    with pytest.raises(tz.FormatError, match=r"several .*'model.safetensors', 'pytorch_model.bin'"):
        tz.load(folder)
    (folder / "model.safetensors").unlink()
    assert tz.load(folder)["weight"].dtype == np.float32
    (folder / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(tz.FormatError, match=r"pytorch_model.bin: not a checkpoint"):
        tz.load(folder)
