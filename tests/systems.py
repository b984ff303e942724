"""What a test needs of the system that it runs on."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from types import ModuleType

import pytest


def _has(name: str) -> bool:
    return hasattr(os, name) or hasattr(signal, name) or _has_module(name)


def _has_module(name: str) -> bool:
    return isinstance(sys.modules.get(name), ModuleType) or (
        name not in sys.modules and importlib.util.find_spec(name) is not None
    )


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test where the system lacks one of these calls of ``os`` or ``signal``, or modules."""
    missing = [name for name in names if not _has(name)]
    return pytest.mark.skipif(bool(missing), reason=f"this system has no {', '.join(missing)}")


#: Windows keeps a file that is open, whoever wants to replace, rename or remove it.
open_files_can_go = pytest.mark.skipif(
    not hasattr(os, "chown"), reason="this system keeps files that are open"
)
