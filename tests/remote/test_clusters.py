"""Conversions on clusters: the bytes of a serial run, also when workers are killed."""

from __future__ import annotations

import copyreg
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.remote.s3_store import Store, serving_s3
from torchzip.executors import as_executor

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the engines, about each other
    pytest.mark.long,
]


def _tensors(count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {f"t{i:03}": rng.standard_normal((500, 1000)).astype("f4") for i in range(count)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Serve a model, and the shards that a serial run makes of it."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    with serving_s3() as made:
        tz.save(_tensors(20), made.url("m.pt"), storage_options=made.options)
        _convert(made, "serial/", None)
        yield made


def _convert(store: Store, target: str, executor: Any, **options: Any) -> Any:
    return tz.convert(
        store.url("m.pt"), store.url(target), dtype="bfloat16", max_shard_size="4MB",
        executor=executor, overwrite=True, storage_options=store.options, **options,
    )  # fmt: skip


def _check(store: Store, executor: Any, name: str) -> None:
    """Convert from store to store, each shard by one worker, and compare all files."""
    told: list[tuple[int, int]] = []
    report = _convert(store, f"{name}/", executor, progress=lambda *both: told.append(both))
    names = [key.partition("/")[2] for key in store.keys("serial/")]
    assert len(names) == 6
    assert [key.partition("/")[2] for key in store.keys(f"{name}/")] == names
    assert all(store[f"serial/{each}"] == store[f"{name}/{each}"] for each in names)
    assert told[-1] == (report.nbytes, report.nbytes)
    assert len(told) >= 5


def _check_local(executor: Any, folder: Path) -> None:
    """Convert between files that all workers see, large storages in pieces."""
    tz.save(_tensors(20), folder / "m.pt")
    tz.convert(folder / "m.pt", folder / "serial.safetensors", dtype="bfloat16")
    tz.convert(folder / "m.pt", folder / "o.safetensors", dtype="bfloat16", executor=executor)
    assert (folder / "o.safetensors").read_bytes() == (folder / "serial.safetensors").read_bytes()


# -- engines -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    # It has exceptions pickled with their tracebacks, from its import on.
    before = dict(copyreg.dispatch_table)
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as made,
    ):
        yield made
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )  # fmt: skip
    yield ray
    ray.shutdown()


def test_dask(client: Any, store: Store, tmp_path: Path) -> None:
    """A ``Client`` of dask is taken, and so is its executor."""
    _check(store, client, "dask")
    _check_local(client, tmp_path)
    _check(store, client.get_executor(), "dask-executor")


def test_ray(ray_cluster: Any, store: Store, tmp_path: Path) -> None:
    """Tasks of Ray."""
    assert ray_cluster
    _check(store, tz.executors.ray(), "ray")
    _check_local(tz.executors.ray(num_cpus=1), tmp_path)


def test_loky(store: Store, tmp_path: Path) -> None:
    """A pool of loky is an executor like any other."""
    loky = pytest.importorskip("loky")
    executor = loky.get_reusable_executor(2)
    _check(store, executor, "loky")
    _check_local(executor, tmp_path)
    executor.shutdown()


def test_mpi(store: Store) -> None:
    """So is one of MPI, where there is one."""
    futures = pytest.importorskip("mpi4py.futures")
    with futures.MPIPoolExecutor(2) as executor:
        _check(store, executor, "mpi")


def test_spark(store: Store, tmp_path: Path) -> None:
    """Jobs of Spark."""
    pyspark = pytest.importorskip("pyspark")
    context = pyspark.SparkContext("local[2]")
    try:
        with tz.executors.spark(context) as executor:
            _check(store, executor, "spark")
            _check_local(executor, tmp_path)
    finally:
        context.stop()


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_pools(store: Store, kind: Callable[[int], Executor]) -> None:
    """Pools of threads and of processes, the latter by ``jobs`` as well."""
    import multiprocessing

    if kind is ProcessPoolExecutor:
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
            _check(store, executor, "processes")
        return
    with kind(2) as executor:
        _check(store, executor, "threads")


def test_anything_else() -> None:
    """What is no executor is refused before anything is read."""
    for wrong in (object(), ThreadPoolExecutor, 2, "processes"):
        with pytest.raises(TypeError, match="executor must be"):
            tz.convert("m.pt", "o.pt", executor=wrong)
    with ThreadPoolExecutor(1) as executor:
        assert as_executor(executor) is executor


# -- workers that go -----------------------------------------------------------------------------


def _kill_once(marker: str) -> None:
    """End this worker, and none that finds the marker of an earlier one."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class _Killing(Executor):
    """Has each of the first tasks end its worker once."""

    def __init__(self, inner: Executor, folder: Path, kills: int) -> None:
        self._inner = inner
        self._markers = [str(folder / f"killed-{number}") for number in range(kills)]

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        marker = self._markers.pop() if self._markers else None
        return self._inner.submit(_killed_or_called, marker, fn, args)


def _killed_or_called(marker: str | None, fn: Any, args: Any) -> Any:
    if marker is not None:
        _kill_once(marker)
    return fn(*args)


def test_killed_workers_of_dask(client: Any, store: Store, tmp_path: Path) -> None:
    """Dask gives the work to another worker; the output is whole."""
    _check(store, _Killing(client.get_executor(), tmp_path, 3), "dask-killed")
    assert len(list(tmp_path.iterdir())) == 3


def test_killed_workers_of_ray(ray_cluster: Any, store: Store, tmp_path: Path) -> None:
    """Ray tries a task again."""
    assert ray_cluster
    _check(store, _Killing(tz.executors.ray(), tmp_path, 3), "ray-killed")
    assert len(list(tmp_path.iterdir())) == 3


def _end_worker(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Ending(Executor):
    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._inner.submit(_end_worker)


def _ending_executors(request: pytest.FixtureRequest) -> Iterator[Executor]:
    import multiprocessing

    yield ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    yield request.getfixturevalue("client").get_executor()
    request.getfixturevalue("ray_cluster")
    yield tz.executors.ray(max_retries=0)


def test_workers_that_always_end(request: pytest.FixtureRequest, store: Store) -> None:
    """It is one clear error, and no shard stays."""
    for executor in _ending_executors(request):
        with pytest.raises(ChildProcessError, match="A worker ended"):
            _convert(store, "ended/", _Ending(executor))
        assert not store.keys("ended/")


# -- memory --------------------------------------------------------------------------------------


def _peak_nbytes() -> int:
    # That of ``getrusage`` counts what the process was before it became a worker.
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts it")
def test_memory_of_workers(store: Store) -> None:
    """40 shards from store to store by two workers, each with less than 250 MB at its peak."""
    import multiprocessing

    tz.save(_tensors(160), store.url("large.pt"), storage_options=store.options)  # 320 MB
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        report = tz.convert(
            store.url("large.pt"), store.url("large/"), max_shard_size="8MB", executor=executor,
            storage_options=store.options,
        )  # fmt: skip
        assert len(report.files) == 41
        peaks = [executor.submit(_peak_nbytes).result() for _ in range(4)]
    assert max(peaks) < 250e6, peaks
    with tz.lazy_load(store.url("large/"), storage_options=store.options) as ckpt:
        assert len(ckpt) == 160


def test_shards_of_workers_are_taken_back(store: Store) -> None:
    """When one task fails, what others have uploaded meanwhile does not stay."""
    store.fails = lambda number, request: "00003-of" in request.path and request.method == "PUT"
    try:
        with ThreadPoolExecutor(4) as executor, pytest.raises(OSError, match="status 400"):
            _convert(store, "failed/", executor)
    finally:
        store.fails = lambda number, request: False
    assert not store.keys("failed/")
    assert not store.open_uploads()
