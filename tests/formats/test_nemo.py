"""``.nemo`` files: a tar around a file of torch.save, plain or compressed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from tests.formats.test_zero import refused
from tests.saved import saved
from tests.test_cost import CountingFile
from torchzip.tools import report

_A = np.arange(6, dtype=np.float32).reshape(2, 3)
_WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "encoder.weight": _A,
    "decoder.bias": np.ones(3, np.float16),
}


def _tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            row = tarfile.TarInfo(name)
            row.size = len(data)
            archive.addfile(row, io.BytesIO(data))
    return file.getvalue()


def _nemo(prefix: str = "./", name: str = "model_weights.ckpt") -> bytes:
    config = {f"{prefix}model_config.yaml": b"target: x\n", f"{prefix}{name}": saved(_WEIGHTS)}
    return _tar(config | {f"{prefix}tokenizer.model": b"\x80\x02no pickle"})


@pytest.fixture
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that temporary files go to."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(made))
    return made


@pytest.mark.parametrize("prefix", ["", "./"])
def test_plain(prefix: str, tmp_path: Path) -> None:
    """It is the checkpoint inside, read where it stands; pieces survive ``pickle``."""
    (tmp_path / "x.nemo").write_bytes(_nemo(prefix))
    with tz.lazy_load(tmp_path / "x.nemo") as checkpoint:
        assert (checkpoint.format, list(checkpoint)) == ("nemo", [*_WEIGHTS])
        tensor = pickle.loads(pickle.dumps(checkpoint["encoder.weight"]))
        np.testing.assert_array_equal(tensor.numpy(), _A)
        report = checkpoint.verify()
        assert (report.without_crc, report.notes) == ((), ())
    tz.convert(tmp_path / "x.nemo", tmp_path / "x.safetensors")
    made = tz.load(tmp_path / "x.safetensors")
    assert {name: array.tobytes() for name, array in made.items()} == {
        name: array.tobytes() for name, array in _WEIGHTS.items()
    }


def test_nothing_is_extracted() -> None:
    """A file object that counts is read at the places of what is asked for."""
    big = {"w": np.zeros(1 << 20, np.uint8), "v": np.arange(4)}
    file = CountingFile(_tar({"./model_weights.ckpt": saved(big)}))
    with tz.lazy_load(file) as checkpoint:
        assert checkpoint["v"].numpy().tolist() == [0, 1, 2, 3]
    assert file.nbytes < 100_000


def test_compressed(tmp_path: Path, own_temporary: Path) -> None:
    """It is decompressed once, which is said; the temporary file goes with the checkpoint."""
    path = tmp_path / "x.nemo"
    path.write_bytes(gzip.compress(_nemo()))
    with tz.lazy_load(path) as checkpoint:
        assert checkpoint.path == os.fspath(path)
        np.testing.assert_array_equal(checkpoint["encoder.weight"].numpy(), _A)
        tensor = pickle.loads(pickle.dumps(checkpoint["encoder.weight"]))
        np.testing.assert_array_equal(tensor.numpy(), _A)
        size = len(_nemo())
        assert checkpoint.verify().notes == (
            f"decompressed into a temporary file of {size:,} bytes",
        )
        assert len(list(own_temporary.iterdir())) == 1
        del tensor  # it has the file open too, and Windows would keep that
    assert list(own_temporary.iterdir()) == []
    np.testing.assert_array_equal(tz.load(path)["encoder.weight"], _A)
    assert list(own_temporary.iterdir()) == []


def test_commands_say_so(
    tmp_path: Path, own_temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for it, or has a small folder for temporary files, sees why."""
    path = tmp_path / "x.nemo"
    path.write_bytes(gzip.compress(_nemo()))
    note = f"note: decompressed into a temporary file of {len(_nemo()):,} bytes\n"
    assert run.done(capsys, "ls", path).endswith(note)
    assert run.done(capsys, "verify", path).count(note) == 1
    assert f"torchzip: {note}" in run.says(0, capsys, "convert", path, tmp_path / "x.safetensors")
    page = io.BytesIO()
    report(path, page)
    assert page.getvalue().count(b"decompressed into a temporary file") == 1


def _bad(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.nemo"
    path.write_bytes(data)
    return path


def test_compressed_and_bad(tmp_path: Path, own_temporary: Path) -> None:
    """Whatever is wrong, no temporary file stays."""
    good = gzip.compress(_nemo())
    refused(_bad(tmp_path, good[:-20]), "ends after")
    refused(_bad(tmp_path, good + good), "other bytes follow")
    refused(_bad(tmp_path, good[:50] + b"\xff" * 9 + good[59:]), "damaged")
    refused(_bad(tmp_path, gzip.compress(bytes(80 << 20))), "deflate_ratio")
    refused(_bad(tmp_path, gzip.compress(_tar({"a": b"b"}))), "gzip-compressed")
    refused(_bad(tmp_path, gzip.compress(b"words")), "gzip-compressed")
    assert list(own_temporary.iterdir()) == []


def test_weights_in_parts(tmp_path: Path) -> None:
    """They are refused with what to do."""
    many = {f"./mp_rank_0{rank}/model_weights.ckpt": saved({}) for rank in range(2)}
    refused(_bad(tmp_path, _tar(many)), "weights in parts: 'mp_rank_00/model_weights.ckpt'")
    refused(_bad(tmp_path, _tar({"./model_weights/.metadata": b""})), "distributed checkpoint")
    refused(_bad(tmp_path, _tar({"rank0.safetensors": b"", "rank1.safetensors": b""})), "TensorRT")
    refused(_bad(tmp_path, _tar({"./model_weights.ckpt": b"no"})), "x.nemo, ./model_weights.ckpt")
    both = {"model_weights.ckpt": saved({}), "./model_weights.ckpt": saved({})}
    refused(_bad(tmp_path, _tar(both)), "not a checkpoint itself")
