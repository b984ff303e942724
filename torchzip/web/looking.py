"""What runs in the page: a path -> what `report` and ``torchzip ls`` show of it, as JSON."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable

from torchzip.cli.main import main
from torchzip.errors import TorchZipError
from torchzip.tools import report


def looked(path: str, read_data: bool, progress: Callable[[int, int], None]) -> str:
    """Return an object with ``report`` (a page) and ``listing``, or with ``error`` alone.

    ``damage`` is what is wrong with the data, if that was read; null if nothing is.
    """
    page, listing = io.BytesIO(), io.StringIO()
    try:
        made = report(path, page, read_data=read_data, progress=progress)
        with contextlib.redirect_stdout(listing), contextlib.redirect_stderr(listing):
            main(["ls", "-l", "--", path])
    except TorchZipError as error:
        return json.dumps({"error": str(error)})
    except OSError as error:
        return json.dumps({"error": error.strerror or str(error)})
    found = {
        "report": page.getvalue().decode(),
        "listing": listing.getvalue(),
        "damage": made.damage,
    }
    return json.dumps(found)
