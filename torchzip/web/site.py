"""The files of the page: its own, torchzip as an archive, and those of Pyodide that it needs.

Strategy: `site_files` names them all, each with its bytes or its place; `server` and `write_site`
are two ways to hand them out. Pyodide is not part of torchzip: its folder has the interpreter, and
the wheels of numpy and ml_dtypes that its ``pyodide-lock.json`` names.
"""

from __future__ import annotations

import errno
import http.server
import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torchzip

#: What `worker.js` loads, by the names of Pyodide's lock file.
_PACKAGES = ("numpy", "ml-dtypes")
#: Pyodide's own files; the first of a pair in some of its versions, the second in others.
_CORE = (
    ("pyodide.mjs",),
    ("pyodide.asm.js", "pyodide.asm.mjs"),
    ("pyodide.asm.wasm",),
    ("python_stdlib.zip",),
)
_LOCK = "pyodide-lock.json"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}

#: The path of each file of the page: its bytes, or where it is.
Files = Mapping[str, bytes | Path]


def site_files(pyodide: str | os.PathLike[str]) -> Files:
    """Return the files of the page, with those of Pyodide from a folder.

    Raises
    ------
    FileNotFoundError
        If the folder lacks one of them.
    ValueError
        If its lock file does not say which wheels belong to it.
    """
    folder = Path(pyodide)
    return {
        "index.html": _own("index.html"),
        "worker.js": _own("worker.js"),
        "torchzip.zip": _package(),
        **{f"pyodide/{name}": folder / name for name in _pyodide_files(folder)},
    }


def _own(name: str) -> bytes:
    return resources.files("torchzip.web").joinpath(name).read_bytes()


def _package() -> bytes:
    """Return torchzip's own modules and assets as a zip, the same bytes each time."""
    root = Path(torchzip.__file__).parent
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix in (".py", ".html", ".css", ".js"):
                entry = zipfile.ZipInfo(path.relative_to(root.parent).as_posix())
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return made.getvalue()


def _pyodide_files(folder: Path) -> list[str]:
    names = [_LOCK]
    for choices in _CORE:
        names.append(next((name for name in choices if (folder / name).exists()), choices[0]))
    _check_there(folder, names)
    packages = _locked_packages(folder / _LOCK)
    waiting = list(_PACKAGES)
    for name in waiting:
        try:
            package = packages[name]
            wheel, needed = package["file_name"], package["depends"]
        except (KeyError, TypeError):
            raise ValueError(
                f"{folder / _LOCK}: it does not say which file has the package {name!r}; a release "
                "of Pyodide was expected"
            ) from None
        if os.path.basename(wheel) != wheel:
            raise ValueError(
                f"{folder / _LOCK}: the file of {name!r} is not in its folder: {wheel}"
            )
        names.append(wheel)
        waiting += [each for each in needed if each not in waiting]
    _check_there(folder, names)
    return names


def _locked_packages(path: Path) -> dict[str, Any]:
    try:
        packages: dict[str, Any] = json.loads(path.read_bytes())["packages"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a lock file of Pyodide") from None
    return packages


def _check_there(folder: Path, names: list[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            errno.ENOENT,
            f"Pyodide's folder lacks {', '.join(missing)}. A full release, unpacked, has "
            "all of it; its package in the npm registry has no wheels (docs/browser.md)",
            os.fspath(folder),
        )


def write_site(files: Files, out: str | os.PathLike[str]) -> None:
    """Write the page into a new folder, for any web server that serves files.

    Raises
    ------
    FileExistsError
        If ``out`` exists.
    """
    folder = Path(out)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)


def server(files: Files, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the page for this computer alone. It serves these files and no others."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).removeprefix("/") or "index.html"
            content = files.get(name)
            if content is None:
                self.send_error(404)
                return
            content = content if isinstance(content, bytes) else content.read_bytes()
            self.send_response(200)
            kind = _TYPES.get(os.path.splitext(name)[1], "application/octet-stream")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-cache")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            """Print nothing for each request."""

    return http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
