"""``python -m torchzip.web``: serve the page on this computer, or write it into a folder."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

from torchzip.web.site import server, site_files, write_site


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 2 if the page cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m torchzip.web",
        description="Serve a page that shows checkpoints in the browser; nothing is uploaded.",
    )
    parser.add_argument(
        "--pyodide", metavar="FOLDER", required=True, help="a release of Pyodide, unpacked"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="where to serve it (default: a free one)"
    )
    parser.add_argument(
        "--write", metavar="OUT", help="write the page into a new folder, and do not serve it"
    )
    arguments = parser.parse_args(argv)
    try:
        files = site_files(arguments.pyodide)
        if arguments.write is not None:
            write_site(files, arguments.write)
            print(f"{arguments.write}: the page, for any server of files")
            return 0
        serving = server(files, arguments.port)
    except ValueError as error:
        print(f"torchzip.web: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"torchzip.web: {place}{error.strerror}", file=sys.stderr)
        return 2
    with serving:
        print(f"http://127.0.0.1:{serving.server_port}/  (Ctrl+C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
