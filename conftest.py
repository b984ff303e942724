"""How much a run tries, and what the examples in docstrings may use without an import."""

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

import torchzip
from tests import sampling

#: What makes data for tests is not a test, and needs more than the tests do; what takes calls away
#: does it when it is imported.
collect_ignore = ["tests/data", "tests/without_posix.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--full``."""
    parser.addoption(
        "--full", action="store_true", help="try every row and many examples, not a sample of them"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile before any test is imported."""
    if config.getoption("full"):
        config.option.markexpr = ""
    profile = sampling.QUICK if config.option.markexpr else sampling.FULL
    profile.load(is_seeded=config.getoption("hypothesis_seed") is not None)
    # What hypothesis keeps goes where pytest's own files are.
    cache = getattr(config, "cache", None)
    if cache is not None:
        set_hypothesis_home_dir(cache.mkdir("hypothesis"))


@pytest.fixture(autouse=True)
def _names_for_doctests(doctest_namespace: dict[str, object]) -> None:
    for name in ("save", "load", "lazy_load", "incremental_save", "convert"):
        doctest_namespace[name] = getattr(torchzip, name)
