"""What the examples in docstrings may use without an import."""

import pytest

import torchzip


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, object]) -> None:
    for name in ("save", "load", "lazy_load", "incremental_save", "convert"):
        doctest_namespace[name] = getattr(torchzip, name)
