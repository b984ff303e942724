"""Writes every hostile file into a folder, for other readers to be tried on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tests.hostile.every import BY_KIND


def main() -> None:
    """Write the files, and ``index.tsv`` with the error that torchzip raises for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file\tattack\terror"]
    for kind, rows in BY_KIND.items():
        for number, attack in enumerate(rows):
            plain = re.sub(r"[^a-z0-9]+", "-", attack.name.lower()).strip("-")
            name = f"{kind}-{number:03}-{plain}.pt"
            (folder / name).write_bytes(attack.data)
            error = "a value" if attack.error is None else attack.error.__name__
            lines.append(f"{name}\t{attack.name}\t{error}")
    (folder / "index.tsv").write_text("\n".join(lines) + "\n")
    print(f"{len(lines) - 1} files in {folder}")


if __name__ == "__main__":
    main()
