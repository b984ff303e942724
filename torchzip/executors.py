"""Executors of clusters for ``convert(executor=...)``, over the engines' own public interfaces.

Whatever is a `concurrent.futures.Executor` needs nothing from here: pools of processes, loky,
``MPIPoolExecutor``, Parsl, and of dask both a ``Client`` and its ``get_executor()``. The engines
start, place and retry the work; what they are given are functions and what these take.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

__all__ = ["ray", "spark"]


def as_executor(executor: Any) -> Executor:
    """Return the executor that was given, or that of a ``Client`` of dask.

    Raises
    ------
    TypeError
        For anything else.
    """
    if isinstance(executor, Executor):
        return executor
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(executor).__mro__}
    if "distributed.client.Client" in kinds:
        of_client: Executor = executor.get_executor()
        return of_client
    is_class = isinstance(executor, type)
    given = f"the class {executor.__name__}; make one" if is_class else type(executor).__name__
    raise TypeError(
        "executor must be a concurrent.futures.Executor or a dask.distributed.Client, or come from "
        f"torchzip.executors; not {given}"
    )


def _called(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


class _RayExecutor(Executor):
    def __init__(self, options: dict[str, Any]) -> None:
        import ray

        self._call = ray.remote(_called)
        if options:
            self._call = self._call.options(**options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        found: Future[Any] = self._call.remote(fn, args, kwargs).future()
        return found


def ray(**options: Any) -> Executor:
    """Return an executor whose calls are tasks of Ray, on the cluster of ``ray.init``.

    ``options`` are those of a Ray task, such as ``num_cpus``, ``memory`` and ``max_retries``; a
    task whose worker dies is tried again three times by default.
    """
    return _RayExecutor(options)


class _SparkExecutor(Executor):
    def __init__(self, context: Any) -> None:
        self._context = context
        self._waiting = ThreadPoolExecutor(max(1, context.defaultParallelism), "torchzip-spark")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def run() -> Any:
            made = self._context.parallelize([0], 1).map(lambda _: _called(fn, args, kwargs))
            return made.collect()[0]

        return self._waiting.submit(run)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._waiting.shutdown(wait, cancel_futures=cancel_futures)


def spark(context: Any) -> Executor:
    """Return an executor whose calls are jobs of one task, of a ``SparkContext``."""
    return _SparkExecutor(context)
