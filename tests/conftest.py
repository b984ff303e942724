"""What all tests share: torch as an oracle, where it is installed."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

#: Set in CI: the fidelity tests must run there, so a missing torch is a failure.
REQUIRE_TORCH = "TORCHZIP_REQUIRE_TORCH"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `torch` where it is not installed, unless that is a failure."""
    if importlib.util.find_spec("torch") is not None:
        return
    if os.environ.get(REQUIRE_TORCH):
        raise pytest.UsageError(f"{REQUIRE_TORCH} is set and torch is not installed")
    skip = pytest.mark.skip(reason="torch is not installed; it is the oracle of this test")
    for item in items:
        if item.get_closest_marker("torch") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def torch() -> Any:
    """Return the torch module, for tests that are marked `torch`."""
    return pytest.importorskip("torch")
