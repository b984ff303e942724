"""``python -m torchzip``, and what the command ``torchzip`` runs."""

from __future__ import annotations


def run() -> int:
    """Run the command line; return its exit status.

    Ctrl-C may come before it is there: an import takes a moment.
    """
    try:
        from torchzip.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(run())
