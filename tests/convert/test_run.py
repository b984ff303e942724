"""How a plan is carried out: in pieces, by workers, all or nothing; the same bytes in any case."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.sampling import costly
from tests.saved import zipped_again
from tests.systems import needs
from torchzip.convert import conversion, run, tasks, work
from torchzip.convert.plan import make_plan
from torchzip.convert.rules import Rules
from torchzip.convert.targets import parse_target
from torchzip.files import ranges
from torchzip.files.platform_calls import CAN_FORK

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e5m2", None]


def make_pieces_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few KB large, so that everything is cut."""
    monkeypatch.setattr(work, "_SMALL_NBYTES", 1 << 11)
    monkeypatch.setattr(work, "_PIECE_NBYTES", 1 << 13)
    monkeypatch.setattr(work, "_TASK_NBYTES", 3 << 13)
    monkeypatch.setattr(work, "_BATCH_RECORDS", 3)
    monkeypatch.setattr(ranges, "_DIRECT_NBYTES", 1 << 12)
    monkeypatch.setattr(conversion, "_WORTH_NBYTES", 0)


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch)


class NeighbourProcess(Executor):
    """Sends tasks as a pool of processes would, and carries them out here."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        from multiprocessing.reduction import ForkingPickler

        future: Future[Any] = Future()
        try:
            sent = ForkingPickler.loads(ForkingPickler.dumps((fn, args)))
            future.set_result(sent[0](*sent[1]))
        except Exception as error:
            future.set_exception(error)
        return future


def tree(seed: int) -> dict[str, Any]:
    """Return arrays of many sizes and dtypes, ties, views and strides among them."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((64, 96)).astype(np.float32)
    made: dict[str, Any] = {"base": base, "tied": base, "view": base[3:20], "strided": base[::2].T}
    for index in range(12):
        count = int(rng.integers(0, 9000))
        dtype = [np.float32, np.float64, np.float16, np.int32, np.uint8][index % 5]
        made[f"layer.{index}"] = (rng.standard_normal(count) * 50).astype(dtype)
    return made | {"step": 3}


def write_source(value: Any, folder: Path, kind: str) -> Path:
    """Write a checkpoint of a kind: how a zip is packed, or what it was converted to."""
    source = folder / "m.pt"
    tz.save(value, source, crc32=kind != "no crc")
    if kind == "deflated":
        source.write_bytes(zipped_again(source.read_bytes(), zipfile.ZIP_DEFLATED))
    if kind in ("safetensors", "shards"):
        made = folder / ("m.safetensors" if kind == "safetensors" else "source.bin.index.json")
        tz.convert(source, made, max_shard_size=None if kind == "safetensors" else 9_000)
        return made
    return source


@costly
@given(
    st.integers(0, 1000), st.sampled_from(DTYPES), st.sampled_from([".pt", ".safetensors"]),
    st.booleans(), st.sampled_from(["zip", "deflated", "no crc", "safetensors"]),
)  # fmt: skip
@pytest.mark.usefixtures("_small_pieces")
def test_pieces_and_workers_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: str | None, suffix: str,
    verify: bool, kind: str,
) -> None:  # fmt: skip
    """One by one, by threads, by what is like processes: the file of a plain conversion."""
    folder = tmp_path_factory.mktemp("run")
    source = write_source(tree(seed), folder, kind)
    results: list[bytes] = []
    with ThreadPoolExecutor(2) as threads:
        for executor in (None, threads, NeighbourProcess()):
            target = folder / f"out{len(results)}{suffix}"
            tz.convert(source, target, dtype=dtype, executor=executor, verify=verify)
            results.append(target.read_bytes())
    # The archive name is in a zip: as long, so that all else is the same.
    plain = [result.replace(b"out%d/" % i, b"out0/") for i, result in enumerate(results)]
    assert len({len(result) for result in results}) == 1
    if suffix == ".safetensors":
        assert len(set(results)) == 1
    else:
        for number in range(len(results)):
            with tz.lazy_load(folder / f"out{number}{suffix}") as ckpt:
                ckpt.verify()
        tail = plain[0].index(b".data/serialization_id")  # the id is over the names
        assert plain[1][: tail - 200] == plain[2][: tail - 200] == plain[0][: tail - 200]
    if dtype is None:
        loaded = tz.load(folder / f"out0{suffix}")
        for name, array in tz.load(source).items():
            assert name == "step" or name not in loaded or np.array_equal(loaded[name], array)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_a_pool_of_processes(tmp_path: Path, dtype: str | None) -> None:
    """``jobs=2`` writes the bytes that one process writes."""
    tz.save(tree(5), tmp_path / "m.pt")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    tz.convert(tmp_path / "m.pt", tmp_path / "one" / "o.pt", dtype=dtype)
    tz.convert(tmp_path / "m.pt", tmp_path / "two" / "o.pt", dtype=dtype, jobs=2)
    assert (tmp_path / "one" / "o.pt").read_bytes() == (tmp_path / "two" / "o.pt").read_bytes()


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pool_beside_threads(tmp_path: Path) -> None:
    """Where forking is not safe, workers start afresh."""
    tz.save({"w": np.arange(20_000, dtype=np.float32)}, tmp_path / "m.pt")
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    try:
        tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dtype="float16", jobs=2)
    finally:
        wait.set()
        thread.join()
    assert tz.load(tmp_path / "o.pt")["w"].tolist() == (
        np.arange(20_000, dtype=np.float32).astype(np.float16).tolist()
    )


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_zip_is_byte_identical_to_save(tmp_path: Path, suffix: str) -> None:
    """A conversion in pieces gives what a save of the converted object gives."""
    made = {name: tree(9)[name] for name in ("base", "layer.0", "layer.5", "layer.10")}
    tz.save(made, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / f"o{suffix}", dtype="float16")
    (tmp_path / "direct").mkdir()
    with np.errstate(all="ignore"):
        cast = {name: value.astype(np.float16) for name, value in made.items()}
    tz.save(cast, tmp_path / "direct" / "o.pt")
    if suffix == ".pt":
        assert (tmp_path / "o.pt").read_bytes() == (tmp_path / "direct" / "o.pt").read_bytes()
    else:
        tz.convert(tmp_path / "direct" / "o.pt", tmp_path / "direct" / "o.safetensors")
        expected = (tmp_path / "direct" / "o.safetensors").read_bytes()
        assert (tmp_path / "o.safetensors").read_bytes() == expected


@pytest.mark.parametrize("is_sharded", [False, True])
def test_unchanged_bytes_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sharded: bool
) -> None:
    """From zip to zip the kernel copies, and the CRC goes along."""
    if not hasattr(os, "copy_file_range"):
        pytest.skip("no copies by the kernel on this system")
    source = tmp_path / "m.pt"
    tz.save({"w": np.arange(1 << 20)}, source)
    if is_sharded:
        tz.convert(source, tmp_path / "m.bin.index.json", max_shard_size="1GB")
        source = tmp_path / "m.bin.index.json"

    def no_read(*args: Any) -> None:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr("torchzip.tensors.storage.SpanStorage.read_into", no_read)
    tz.convert(source, tmp_path / "o.pt", rename={"w": "v"})
    monkeypatch.undo()
    with tz.lazy_load(tmp_path / "o.pt") as ckpt:
        assert ckpt.verify().without_crc == ()
        assert np.array_equal(ckpt["v"].numpy(), np.arange(1 << 20))


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_copies_by_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """Two file systems, or one that cannot: the bytes are read and written."""
    if not hasattr(os, "copy_file_range"):
        pytest.skip("no copies by the kernel on this system")
    tz.save({"w": np.arange(1 << 18)}, tmp_path / "m.pt")

    def refuse(*args: Any) -> int:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    tz.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    assert np.array_equal(tz.load(tmp_path / "o.pt")["w"], np.arange(1 << 18))


def damage(path: Path, name: str) -> None:
    """Flip a bit in the data of a tensor."""
    with tz.lazy_load(path) as ckpt:
        place = ckpt[name].spec.storage.span()
        assert place is not None
        offset = place[1] + 100_000
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 4]))


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".pt", {"dtype": "float16"}), (".pt", {"verify": True}), (".safetensors", {}),
     (".safetensors", {"dtype": "bfloat16"})],
)  # fmt: skip
def test_damage_is_seen(tmp_path: Path, path: Path, jobs: int, suffix: str, options: Any) -> None:
    """Bytes that get no old CRC along are compared with it, and nothing is left of the output."""
    tz.save({"a": np.ones(50_000, np.float32), "w": np.ones(50_000, np.float32)}, path)
    damage(path, "w")
    target = tmp_path / f"o{suffix}"
    target.write_bytes(b"old")
    with pytest.raises(tz.FormatError, match=r"m\.pt.*data/1.*CRC-32"):
        tz.convert(path, target, jobs=jobs, overwrite=True, **options)
    assert sorted(os.listdir(tmp_path)) == sorted(["m.pt", target.name])
    assert target.read_bytes() == b"old"


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("view", [np.s_[:20_000], np.s_[::2], np.s_[20_000:25_000]])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_damage_beside_what_is_taken(tmp_path: Path, view: slice, dtype: str | None) -> None:
    """A CRC is of a whole storage: ``verify`` reads all of it, also for a part."""
    path = tmp_path / "m.pt"
    base = np.ones(50_000, np.float32)
    tz.save({"all": base, "part": base[view]}, path)
    damage(path, "all")
    options: Any = {"dtype": dtype, "include": "part", "overwrite": True}
    with pytest.raises(tz.FormatError, match=r"m\.pt.*data/0.*CRC-32"):
        tz.convert(path, tmp_path / "o.safetensors", verify=True, **options)
    assert os.listdir(tmp_path) == ["m.pt"]
    tz.convert(path, tmp_path / "o.safetensors", **options)


@pytest.mark.usefixtures("_small_pieces")
def test_copied_damage_stays_visible(tmp_path: Path, path: Path) -> None:
    """Unchanged bytes keep their CRC, so who reads the copy sees it."""
    tz.save({"w": np.ones(50_000, np.float32)}, path)
    damage(path, "w")
    tz.convert(path, tmp_path / "o.pt")
    with pytest.raises(tz.FormatError, match="CRC-32"):
        tz.load(tmp_path / "o.pt")


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("jobs", [1, 2])
def test_truncated_meanwhile(tmp_path: Path, path: Path, jobs: int) -> None:
    """A source that is cut short while it is read is an error, in any process."""
    tz.save({"w": np.ones(200_000, np.float32)}, path)
    with tz.lazy_load(path) as ckpt:
        plan = make_plan(ckpt, parse_target(tmp_path / "o.pt"), Rules(dtype="float16"))
        os.truncate(path, 200_000)
        if jobs == 1:
            with pytest.raises(tz.FormatError, match="cut it short"):
                run.run(plan)
        else:
            with tasks.workers(2) as executor, pytest.raises(tz.FormatError, match="changed since"):
                run.run(plan, executor=executor)
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted(tmp_path: Path, jobs: int, error: type[BaseException]) -> None:
    """Whatever ends it in the middle: the old file is there, and no other."""
    tz.save({"w": np.ones(2_000_000, np.float32)}, tmp_path / "m.pt")
    (tmp_path / "o.pt").write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        tz.convert(
            tmp_path / "m.pt", tmp_path / "o.pt", dtype="bfloat16", jobs=jobs, progress=stop,
            overwrite=True,
        )  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == ["m.pt", "o.pt"]
    assert (tmp_path / "o.pt").read_bytes() == b"old"


def _said_to_the_end(child: subprocess.Popen[str]) -> str:
    """Wait for a process that leads its group, of which nothing stays; return its stderr."""
    try:
        return child.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.few
@needs("killpg")
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (signal.SIGINT, "torchzip: interrupted; no file was left half written\n"),
        (signal.SIGTERM, ""),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_ctrl_c(tmp_path: Path, jobs: str, sent: signal.Signals, text: str) -> None:
    """Ctrl-C reaches the whole group: one line, status 130, nothing left; so with SIGTERM."""
    blocks = (np.zeros(1 << 22, np.float32) for _ in range(40))
    with tz.incremental_save(tmp_path / "m.pt") as out:
        out.save({"w": out.store_chunks(blocks, shape=(40, 1 << 22), dtype="float32")})
    command = [sys.executable, "-m", "torchzip", "convert", "m.pt", "o.pt", "--dtype", "float64"]
    for _ in range(5):
        child = subprocess.Popen(
            [*command, "--jobs", jobs], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        while not list(tmp_path.glob(".torchzip-*")) and child.poll() is None:
            time.sleep(0.001)
        if sent == signal.SIGINT:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, sent)
        else:  # a terminal sends it to nobody; whoever does means one process
            child.send_signal(sent)
        said = _said_to_the_end(child)
        if child.returncode:
            break
        (tmp_path / "o.pt").unlink()  # on a busy machine it had ended before: once more
    assert (said, child.returncode) == (text, 128 + sent)
    assert os.listdir(tmp_path) == ["m.pt"]


_SIGNAL_WHILE_FORKING = """
import os, sys
from multiprocessing import context
from torchzip.cli.main import main
from torchzip.convert import conversion, work
conversion._WORTH_NBYTES = 0
work._PIECE_NBYTES = work._TASK_NBYTES = 1 << 20
real = context.ForkProcess.start
def start(process):
    real(process)
    os.kill(os.getpid(), int(sys.argv[1]))
context.ForkProcess.start = start
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.few
@pytest.mark.skipif(not CAN_FORK, reason="workers are forked on Linux only")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_workers_are_made(tmp_path: Path, sent: signal.Signals) -> None:
    """It waits until the pool knows of its worker; no process waits for another for ever."""
    tz.save({"w": np.ones(1 << 20, np.float32)}, tmp_path / "m.pt")
    command = [sys.executable, "-c", _SIGNAL_WHILE_FORKING, str(int(sent))]
    command += ["convert", "m.pt", "o.pt", "--dtype", "float64", "--jobs", "2"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    _said_to_the_end(child)
    assert child.returncode == 128 + sent
    assert os.listdir(tmp_path) == ["m.pt"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is refused before the writing begins."""
    tz.save({"w": np.ones(50_000, np.float32)}, tmp_path / "m.pt")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with pytest.raises(
        OSError, match=r"201,\d+ bytes are to be written, and the disk has"
    ) as caught:
        tz.convert(tmp_path / "m.pt", tmp_path / "o.pt")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["m.pt"]


def _die() -> None:
    os._exit(9)


class DyingPool(Executor):
    """A pool whose workers are killed."""

    def __init__(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._pool = ProcessPoolExecutor(1)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(_die)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_killed_workers(tmp_path: Path) -> None:
    """It is an error of the system, and nothing is left."""
    tz.save({"w": np.ones(50_000, np.float32)}, tmp_path / "m.pt")
    with DyingPool() as pool, pytest.raises(ChildProcessError, match="ended before its work"):
        tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", executor=pool, dtype="float16")
    assert os.listdir(tmp_path) == ["m.pt"]


def test_progress_in_small_steps(tmp_path: Path) -> None:
    """The callback hears of every few megabytes, in order, and of the end."""
    tz.save({"w": np.ones(4 << 20, np.float32)}, tmp_path / "m.pt")
    seen: list[tuple[int, int]] = []
    tz.convert(
        tmp_path / "m.pt", tmp_path / "o.pt", dtype="bfloat16",
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert len(seen) >= 4
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert {total for _, total in seen} == {(tmp_path / "o.pt").stat().st_size}


def test_onto_itself_with_workers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Source and destination may be one path."""
    monkeypatch.setattr(conversion, "_WORTH_NBYTES", 0)
    tz.save({"w": np.arange(100_000, dtype=np.float32)}, path)
    tz.convert(path, path, dtype="float64", jobs=2, overwrite=True)
    assert np.array_equal(tz.load(path)["w"], np.arange(100_000, dtype=np.float64))
