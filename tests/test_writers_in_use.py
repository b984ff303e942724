"""Writers beside forks, threads and readers: a file is whole, and belongs to who opened it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import in_threads
from tests.faults import forks, in_child

#: Past what goes through the page cache, so that the writer has a thread.
_FORK = """
import os, sys, numpy as np, torchzip as tz
path, how = sys.argv[1:]
with tz.incremental_save(path) as out:
    early = out.store_early(np.arange(3_000_000.0))
    if how == "after save":
        out.save({"w": early})
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        if how != "after save":
            out.save({"w": early})
    elif how == "exception":
        raise KeyError("of the child")
    elif how == "_exit":
        os._exit(0)
    elif how == "exit":
        sys.exit(0)
    elif how == "use":
        for use in (lambda: out.save({}), lambda: out.store_early(np.ones(2))):
            try:
                use()
            except ValueError:
                pass
            else:
                sys.exit(2)
        out.close()
"""


@pytest.mark.few
@pytest.mark.parametrize(
    "how", ["end of the block", "after save", "exception", "_exit", "exit", "use"]
)
def test_child_ends(tmp_path: Path, path: Path, how: str) -> None:
    """However a forked child ends: it neither completes nor removes what its parent writes."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", _FORK, path, how],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{int(how == 'exception')}\n"), done.stderr
    assert os.listdir(tmp_path) == ["m.pt"]
    assert np.array_equal(tz.load(path)["w"], np.arange(3_000_000.0))


@forks
def test_fork_while_a_thread_stores(tmp_path: Path) -> None:
    """The thread is not there in the child, which does not wait for it."""
    is_storing, go_on = threading.Event(), threading.Event()

    def blocks() -> Iterator[Any]:
        is_storing.set()
        go_on.wait()
        yield np.ones(4)

    made: list[Any] = []
    with tz.incremental_save(tmp_path / "m.pt") as out:
        thread = threading.Thread(
            target=lambda: made.append(out.store_chunks(blocks(), shape=(4,), dtype="float64"))
        )
        thread.start()
        is_storing.wait()

        def task() -> None:
            signal.alarm(20)
            for use in (lambda: out.store_early(np.ones(2)), lambda: out.save({})):
                with pytest.raises(ValueError, match="process that opened it"):
                    use()
            out.close()

        try:
            assert in_child(task) == 0
        finally:
            go_on.set()
            thread.join()
        out.save(made)
    assert tz.load(tmp_path / "m.pt")[0].tolist() == [1] * 4
    assert os.listdir(tmp_path) == ["m.pt"]


def test_threads_that_store_save_and_close(tmp_path: Path, path: Path) -> None:
    """All at once: what comes too late is a ValueError, and the file is whole or as it was."""
    outcomes = set()
    for number in range(40):
        tz.save({"old": number}, path)
        old = path.read_bytes()
        out = tz.incremental_save(path)
        early = out.store_early(np.full(3000, number))
        saved: list[bool] = []

        def store(_: int, out: Any = out) -> None:
            with contextlib.suppress(ValueError):
                for index in range(5):
                    out.store_early(np.full(2000, index))

        def save(_: int, out: Any = out, early: Any = early, saved: list[bool] = saved) -> None:
            with contextlib.suppress(ValueError):
                out.save({"w": early, "late": np.ones(5)})
                saved.append(True)

        def close(_: int, out: Any = out) -> None:
            with contextlib.suppress(ValueError):
                out.close()

        in_threads(store, store, save, save, close if number % 2 else store)
        out.close()
        assert len(saved) <= 1
        if saved:
            assert tz.load(path)["w"].tolist() == [number] * 3000
        else:
            assert path.read_bytes() == old
        outcomes.add(bool(saved))
        assert os.listdir(tmp_path) == ["m.pt"]
    assert True in outcomes


def test_readers_of_a_file_that_is_replaced(path: Path) -> None:
    """Each reads the file that it opened to its end, whatever has its name by now."""

    def save(number: int) -> None:
        tz.save({"n": number, **{f"w{i}": np.full(5000, number) for i in range(5)}}, path)

    save(0)
    is_over = threading.Event()
    wrong: list[Any] = []
    seen: set[int] = set()

    def read() -> None:
        while not is_over.is_set():
            with tz.lazy_load(path) as ckpt:
                number = ckpt.root["n"]
                for name in ckpt:
                    if (ckpt[name].numpy() != number).any():
                        wrong.append((number, name))
                seen.add(number)

    with tz.lazy_load(path) as first:
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 30):
            save(number)
        is_over.set()
        for thread in threads:
            thread.join()
        assert all((first[name].numpy() == 0).all() for name in first)
    assert wrong == []
    assert len(seen) > 1


def test_ties_after_a_change(tmp_path: Path) -> None:
    """What a view reaches decides: it is tied where that is as it was stored, else it is not."""
    base = np.arange(40.0).reshape(4, 10)
    with tz.incremental_save(tmp_path / "m.pt") as out:
        early = out.store_early(base)
        base[2] = -1
        state = {
            "early": early,
            "same row": out.store_early(base[1]),
            "changed row": out.store_early(base[2]),
            "whole": base,
            "changed column at save": base[:, 3],
            "same part at save": base[:2],
        }
        base[3] = -2
        state["row changed last"] = base[3]
        out.save(state)
    expected = np.arange(40.0).reshape(4, 10)
    made = tz.load(tmp_path / "m.pt")
    assert np.array_equal(made["early"], expected)
    assert np.array_equal(made["same row"], expected[1])
    assert made["changed row"].tolist() == [-1] * 10
    for name, now in {
        "whole": base, "changed column at save": base[:, 3], "same part at save": base[:2],
        "row changed last": base[3],
    }.items():  # fmt: skip
        assert np.array_equal(made[name], now), name
    assert np.shares_memory(made["early"], made["same row"])
    assert np.shares_memory(made["early"], made["same part at save"])
    assert not np.shares_memory(made["early"], made["whole"])
    assert np.shares_memory(made["whole"], made["row changed last"])


def test_forked_child(path: Path) -> None:
    """A child can neither write nor complete nor remove what its parent writes."""
    with tz.incremental_save(path) as out:
        early = out.store_early(np.arange(3.0))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for act in (lambda: out.store_early(np.ones(9)), lambda: out.save({})):
                    with pytest.raises(ValueError, match="process that opened it"):
                        act()
                out.close()
                del out
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        out.save({"w": early, "late": np.ones(2)})
    made = tz.load(path)
    assert made["w"].tolist() == [0, 1, 2]
    assert made["late"].tolist() == [1, 1]


def test_threads(path: Path) -> None:
    """Several threads may store at the same time."""
    state: dict[str, Any] = {}
    with tz.incremental_save(path) as out:

        def work(index: int) -> None:
            for part in range(20):
                number = 100 * index + part
                state[f"w{number}"] = out.store_early(np.full(5000, number, np.float32))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        out.save(dict(sorted(state.items())))
    made = tz.load(path)
    assert len(made) == 120
    assert all((array == int(name[1:])).all() for name, array in made.items())


def test_storing_from_within_chunks(path: Path) -> None:
    """A generator that stores another tensor while its own is written raises."""
    path.write_bytes(b"old")
    out = tz.incremental_save(path)

    def blocks() -> Iterator[np.ndarray[Any, Any]]:
        yield np.zeros(1, np.float32)
        out.store_early(np.ones(2))
        yield np.zeros(1, np.float32)

    with pytest.raises((RuntimeError, ValueError)):
        out.store_chunks(blocks(), shape=(2,), dtype="float32")
    with pytest.raises(ValueError, match="cannot be completed"):
        out.save({})
    out.close()
    assert path.read_bytes() == b"old"


def test_over_the_file_that_is_read(path: Path) -> None:
    """Tensors of the old file go into the new one under the same name."""
    tz.save({"a": np.arange(1000.0), "b": np.ones(3)}, path)
    with tz.lazy_load(path) as old:
        with tz.incremental_save(path) as out:
            state = {name: out.store_early(old[name]) for name in old}
            out.save(state)
        assert old["a"].numpy().sum() == 499_500
    assert tz.load(path)["a"].sum() == 499_500
