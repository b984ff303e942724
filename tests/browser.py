"""Debian's Chromium, driven by playwright; what is shared by the tests and the screenshots."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

#: Nothing in the background: the page alone.
_ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
SMALL_PHONE = {"width": 360, "height": 740}


def chromium_path() -> str | None:
    """Return where Chromium is; None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Give a browser.

    Raises
    ------
    RuntimeError
        If Chromium or playwright is missing.
    """
    path = chromium_path()
    if path is None:
        raise RuntimeError("no Chromium; install it: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise RuntimeError("no playwright; install it: pip install playwright") from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()
